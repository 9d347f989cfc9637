// Where everything is. A layout changes only with who is there and who talks to whom, never with numbers: each namespace is
// laid out by dagre by itself, then the namespaces are packed into the shape of the window.
import dagre from "@dagrejs/dagre";
import type { Edge, Workload } from "./data";

export interface Box {
  x: number;
  y: number;
  width: number;
  height: number;
}

export interface Layout {
  nodes: Map<string, Box>;
  groups: { namespace: string; box: Box }[];
  width: number;
  height: number;
}

export const NODE = { width: 168, height: 46 };
const PAD = 22;
const HEAD = 34;
/** Between namespaces, and with many workloads. */
const GAP = 96;
const NARROW_GAP = 34;
/** From so many workloads on things stand closer: they are looked at from afar. */
const MANY = 60;

interface Placed {
  namespace: string;
  width: number;
  height: number;
  nodes: Map<string, Box>;
  rank: number;
}

/** In a narrow window callers stand above whom they call; with many workloads there is no room for that. */
export const standsTall = (shape: number, workloads: number) => shape < 0.9 && workloads <= MANY;

/** `shape`: width by height of where it is shown. */
export function layout(workloads: Workload[], edges: Edge[], shape: number): Layout {
  const groups = new Map<string, Workload[]>();
  for (const workload of workloads) {
    const name = workload.namespace || "outside the mesh";
    groups.set(name, [...(groups.get(name) ?? []), workload]);
  }
  const ranks = rankOf([...groups.keys()], workloads, edges);
  const isMany = workloads.length > MANY;
  const placed = [...groups].map(([namespace, members]) => inside(namespace, members, edges, ranks.get(namespace) ?? 0, shape, isMany, standsTall(shape, workloads.length)));
  const byRank = (one: Placed, other: Placed) => one.rank - other.rank || other.height - one.height;
  const byHeight = (one: Placed, other: Placed) => other.height - one.height || one.rank - other.rank;
  placed.sort((one, other) => (isMany ? byHeight : byRank)(one, other) || one.namespace.localeCompare(other.namespace));
  const widest = Math.max(0, ...placed.map((one) => one.width));
  const all = placed.reduce((sum, one) => sum + one.width + GAP, 0);
  const tries = Array.from({ length: 25 }, (_, at) => pack(placed, widest + ((all - widest) * at) / 24, isMany ? NARROW_GAP : GAP));
  // The one that is shown largest.
  const scale = (one: Layout) => Math.min(shape / one.width, 1 / one.height);
  return tries.reduce((best, one) => (scale(one) > scale(best) * 1.01 ? one : best));
}

/** Which namespace calls which, from left to right. */
function rankOf(names: string[], workloads: Workload[], edges: Edge[]): Map<string, number> {
  const graph = new dagre.graphlib.Graph();
  graph.setGraph({ rankdir: "LR" });
  graph.setDefaultEdgeLabel(() => ({}));
  const home = new Map(workloads.map((workload) => [workload.id, workload.namespace || "outside the mesh"]));
  for (const name of names) graph.setNode(name, { width: 10, height: 10 });
  for (const edge of edges) {
    const [from, to] = [home.get(edge.from), home.get(edge.to)];
    if (from && to && from !== to) graph.setEdge(from, to);
  }
  dagre.layout(graph);
  return new Map(names.map((name) => [name, (graph.node(name) as { x: number }).x]));
}

function inside(namespace: string, members: Workload[], edges: Edge[], rank: number, shape: number, isMany: boolean, isTall: boolean): Placed {
  const own = new Set(members.map((member) => member.id));
  const within = edges.filter((edge) => own.has(edge.from) && own.has(edge.to) && edge.from !== edge.to);
  const linked = new Set(within.flatMap((edge) => [edge.from, edge.to]));
  const graph = new dagre.graphlib.Graph();
  graph.setGraph({ rankdir: isTall ? "TB" : "LR", nodesep: isMany ? 14 : 46, ranksep: isMany ? 64 : isTall ? 150 : 210, marginx: 0, marginy: 0 });
  graph.setDefaultEdgeLabel(() => ({}));
  for (const member of members) if (linked.has(member.id)) graph.setNode(member.id, { ...NODE });
  for (const edge of within) graph.setEdge(edge.from, edge.to);
  dagre.layout(graph);
  const nodes = new Map<string, Box>();
  let [right, bottom] = [0, 0];
  for (const id of graph.nodes()) {
    const at = graph.node(id) as { x: number; y: number };
    const box = { x: at.x - NODE.width / 2, y: at.y - NODE.height / 2, ...NODE };
    nodes.set(id, box);
    right = Math.max(right, box.x + box.width);
    bottom = Math.max(bottom, box.y + box.height);
  }
  // Who talks to nobody in here stands below, in rows.
  const rest = members.filter((member) => !linked.has(member.id));
  const columns = Math.max(1, Math.round(right / (NODE.width + 30)) || Math.ceil(Math.sqrt((rest.length * shape * NODE.height) / NODE.width)));
  const top = bottom === 0 ? 0 : bottom + 40;
  rest.forEach((member, index) => {
    const box = {
      x: (index % columns) * (NODE.width + 30),
      y: top + Math.floor(index / columns) * (NODE.height + 26),
      ...NODE,
    };
    nodes.set(member.id, box);
    right = Math.max(right, box.x + box.width);
    bottom = Math.max(bottom, box.y + box.height);
  });
  return { namespace, width: right + 2 * PAD, height: bottom + HEAD + 2 * PAD, nodes, rank };
}

/** Rows of namespaces, no wider than this. Of one row, who is lower than the tallest shares a column. */
function pack(placed: Placed[], room: number, gap: number): Layout {
  const layout: Layout = { nodes: new Map(), groups: [], width: 0, height: 0 };
  let [top, tallest, right] = [0, 0, 0];
  let column = { x: 0, width: 0, bottom: 0 };
  for (const one of placed) {
    const isBelow = column.width >= one.width && column.bottom + gap + one.height <= top + tallest;
    if (isBelow) {
      column.bottom += gap;
    } else {
      if (right > 0 && right + one.width > room) [top, tallest, right] = [top + tallest + gap, 0, 0];
      column = { x: right, width: one.width, bottom: top };
      right += one.width + gap;
    }
    const [x, y] = [column.x, column.bottom];
    column.bottom += one.height;
    tallest = Math.max(tallest, column.bottom - top);
    layout.groups.push({ namespace: one.namespace, box: { x, y, width: one.width, height: one.height } });
    for (const [id, box] of one.nodes) layout.nodes.set(id, { ...box, x: box.x + x + PAD, y: box.y + y + PAD + HEAD });
    layout.width = Math.max(layout.width, x + one.width);
    layout.height = Math.max(layout.height, y + one.height);
  }
  return layout;
}

export interface Curve {
  path: string;
  /** Where it is after a part of its way. */
  at: (part: number) => { x: number; y: number };
}

function bezier(points: [number, number, number, number, number, number, number, number]): Curve {
  const [x1, y1, a, b, c, d, x2, y2] = points;
  const mix = (part: number, p: number, q: number, r: number, s: number) => {
    const rest = 1 - part;
    return rest ** 3 * p + 3 * rest ** 2 * part * q + 3 * rest * part ** 2 * r + part ** 3 * s;
  };
  return {
    path: `M${x1} ${y1}C${a} ${b} ${c} ${d} ${x2} ${y2}`,
    at: (part) => ({ x: mix(part, x1, a, c, x2), y: mix(part, y1, b, d, y2) }),
  };
}

/** Between two labels. */
const LABEL_GAP = 4;

/** Where labels stand: on their line, in its middle where that is free; beside it where no part of it is. */
export function spread(lines: { id: string; line: Curve; width: number; height: number }[]): Map<string, { x: number; y: number }> {
  const taken: Box[] = [];
  const places = new Map<string, { x: number; y: number }>();
  for (const { id, line, width, height } of lines) {
    const at = (part: number, lift: number) => {
      const { x, y } = line.at(part);
      return { x, y: y + lift * (height + LABEL_GAP) };
    };
    const boxAt = (part: number, lift: number): Box => {
      const { x, y } = at(part, lift);
      return { x: x - (width + LABEL_GAP) / 2, y: y - (height + LABEL_GAP) / 2, width: width + LABEL_GAP, height: height + LABEL_GAP };
    };
    const overlap = (box: Box) =>
      taken.reduce((sum, other) => {
        const wide = Math.min(box.x + box.width, other.x + other.width) - Math.max(box.x, other.x);
        const high = Math.min(box.y + box.height, other.y + other.height) - Math.max(box.y, other.y);
        return sum + (wide > 0 && high > 0 ? wide * high : 0);
      }, 0);
    let best = { part: 0.5, lift: 0, overlap: Number.POSITIVE_INFINITY };
    for (const lift of [0, -1, 1, -2, 2]) {
      for (const part of [0.5, 0.6, 0.4, 0.68, 0.33, 0.73, 0.27]) {
        if (best.overlap === 0) break;
        const found = overlap(boxAt(part, lift));
        if (found < best.overlap) best = { part, lift, overlap: found };
      }
    }
    taken.push(boxAt(best.part, best.lift));
    places.set(id, at(best.part, best.lift));
  }
  return places;
}

/** From the side of one box to that of another; `bend` parts an edge from the one that leads back; `isTall`: callers stand above. */
export function curve(from: Box, to: Box, bend: number, isTall: boolean): Curve {
  const [fx, fy] = [from.x + from.width / 2, from.y + from.height / 2];
  const [tx, ty] = [to.x + to.width / 2, to.y + to.height / 2];
  if (from === to) {
    const [left, right, top] = [fx - 30, fx + 30, from.y];
    return bezier([left, top, left - 10, top - 46, right + 10, top - 46, right, top]);
  }
  const isAcross = isTall
    ? Math.abs(ty - fy) < NODE.height * 1.5
    : Math.abs(tx - fx) >= Math.max(Math.abs(ty - fy) * 0.6, NODE.width * 0.7);
  if (isAcross) {
    const way = tx > fx ? 1 : -1;
    const [x1, x2] = [fx + (way * from.width) / 2, tx - way * (to.width / 2 + 7)];
    const [y1, y2] = [fy + bend * 9, ty + bend * 9];
    const reach = Math.max(36, Math.abs(x2 - x1) * 0.45) * way;
    return bezier([x1, y1, x1 + reach, y1, x2 - reach, y2, x2, y2]);
  }
  const way = ty > fy ? 1 : -1;
  const [y1, y2] = [fy + (way * from.height) / 2, ty - way * (to.height / 2 + 7)];
  const [x1, x2] = [fx + bend * 16, tx + bend * 16];
  const reach = Math.max(24, Math.abs(y2 - y1) * 0.45) * way;
  return bezier([x1, y1, x1, y1 + reach, x2, y2 - reach, x2, y2]);
}
