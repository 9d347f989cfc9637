// The picture itself: namespaces, workloads, edges; moved and scaled by mouse, fingers and keys.
import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import type { Edge, Workload } from "./data";
import { edgeId } from "./data";
import { type Box, curve, layout, spread, standsTall } from "./layout";
import { edgeLines, edgeSpoken, HEALTH } from "./words";

export interface Selection {
  kind: "edge" | "workload";
  id: string;
}

interface View {
  x: number;
  y: number;
  scale: number;
}

const MIN_SCALE = 0.08;
const MAX_SCALE = 2.5;
/** From this scale on every edge has its numbers. */
const READABLE = 0.62;
/** So many edges for a workload are dense. */
const DENSE = 3;
/** Below this scale a workload is its name alone. */
const FAR = 0.5;
/** A phone's window is narrower. */
const NARROW = 700;
/** So many edges are reached by Tab; of more, those of the chosen workload. */
const TABBED_EDGES = 80;

interface Props {
  workloads: Workload[];
  edges: Edge[];
  /** What a search found; null where nothing is searched. */
  found: Set<string> | null;
  selection: Selection | null;
  select: (selection: Selection | null) => void;
}

export function Graph({ workloads, edges, found, selection, select }: Props) {
  const frame = useRef<SVGSVGElement>(null);
  const [size, setSize] = useState({ width: 0, height: 0 });
  const [view, setView] = useState<View>({ x: 0, y: 0, scale: 1 });
  const [hovered, setHovered] = useState<string | null>(null);
  const moved = useRef(false);
  const pointers = useRef(new Map<number, { x: number; y: number }>());

  useLayoutEffect(() => {
    const svg = frame.current;
    if (!svg) return;
    const measure = () => setSize({ width: svg.clientWidth, height: svg.clientHeight });
    const observer = new ResizeObserver(measure);
    observer.observe(svg);
    measure();
    return () => observer.disconnect();
  }, []);

  const shape = size.height > 0 ? size.width / size.height : 1.6;
  const isTall = standsTall(shape, workloads.length);
  const names = workloads.map((workload) => workload.id).join("\n") + "\n\n" + edges.map(edgeId).join("\n");
  // Numbers change all the time, and nothing moves for them. A window's shape counts roughly.
  const rough = Math.round(shape * 2) / 2;
  const placed = useMemo(() => layout(workloads, edges, shape), [names, rough, isTall]);

  const fit = () => {
    if (size.width === 0 || placed.width === 0) return;
    // The signs' names stand at the bottom.
    const [width, height] = [size.width - 36, size.height - (size.width < NARROW ? 100 : 74)];
    const held = Math.max(MIN_SCALE, Math.min(width / placed.width, height / placed.height, 1.25));
    setView({ scale: held, x: (size.width - placed.width * held) / 2, y: 18 + (height - placed.height * held) / 2 });
  };
  // Whoever has moved it keeps what he sees.
  useEffect(() => {
    if (!moved.current) fit();
  }, [placed, size.width, size.height]);

  const zoom = (factor: number, at?: { x: number; y: number }) => {
    moved.current = true;
    setView((view) => {
      const scale = Math.min(MAX_SCALE, Math.max(MIN_SCALE, view.scale * factor));
      const { x, y } = at ?? { x: size.width / 2, y: size.height / 2 };
      const by = scale / view.scale;
      return { scale, x: x - (x - view.x) * by, y: y - (y - view.y) * by };
    });
  };
  const pan = (x: number, y: number) => {
    moved.current = true;
    setView((view) => ({ ...view, x: view.x + x, y: view.y + y }));
  };
  useEffect(() => {
    const svg = frame.current;
    if (!svg) return;
    const wheel = (event: WheelEvent) => {
      event.preventDefault();
      const place = svg.getBoundingClientRect();
      zoom(Math.exp(-event.deltaY * 0.0016), { x: event.clientX - place.left, y: event.clientY - place.top });
    };
    svg.addEventListener("wheel", wheel, { passive: false });
    return () => svg.removeEventListener("wheel", wheel);
  }, [size]);

  const down = (event: PointerEvent) => {
    pointers.current.set(event.pointerId, { x: event.clientX, y: event.clientY });
  };
  const move = (event: PointerEvent) => {
    const before = pointers.current.get(event.pointerId);
    if (!before) return;
    const now = { x: event.clientX, y: event.clientY };
    const others = [...pointers.current].filter(([id]) => id !== event.pointerId);
    const other = others[0]?.[1];
    if (other) {
      const place = frame.current?.getBoundingClientRect();
      const apart = (point: { x: number; y: number }) => Math.hypot(point.x - other.x, point.y - other.y) || 1;
      const middle = { x: (now.x + other.x) / 2 - (place?.left ?? 0), y: (now.y + other.y) / 2 - (place?.top ?? 0) };
      zoom(apart(now) / apart(before), middle);
    } else {
      if (Math.hypot(now.x - before.x, now.y - before.y) < 3) return;
      frame.current?.setPointerCapture(event.pointerId);
      pan(now.x - before.x, now.y - before.y);
    }
    pointers.current.set(event.pointerId, now);
  };
  const up = (event: PointerEvent) => {
    pointers.current.delete(event.pointerId);
  };
  const key = (event: KeyboardEvent) => {
    const steps: Record<string, [number, number]> = {
      ArrowLeft: [60, 0],
      ArrowRight: [-60, 0],
      ArrowUp: [0, 60],
      ArrowDown: [0, -60],
    };
    const step = steps[event.key];
    if (step) pan(...step);
    else if (event.key === "+" || event.key === "=") zoom(1.25);
    else if (event.key === "-") zoom(0.8);
    else if (event.key === "0") {
      moved.current = false;
      fit();
    } else return;
    event.preventDefault();
  };

  const focus = hovered ?? selection?.id ?? null;
  const near = useMemo(() => {
    if (!focus) return null;
    const all = new Set<string>();
    for (const edge of edges) {
      const id = edgeId(edge);
      if (id === focus || edge.from === focus || edge.to === focus) {
        all.add(id).add(edge.from).add(edge.to);
      }
    }
    return all.size > 0 ? all : null;
  }, [focus, names]);
  const isFaint = (...ids: string[]) => {
    if (found && !ids.some((id) => found.has(id))) return true;
    return near !== null && !ids.some((id) => near.has(id) && (ids.length === 1 || id === ids[0]));
  };
  const both = new Set(edges.map(edgeId));
  // Where everybody talks to everybody, numbers would hide all of it but themselves.
  const isDense = edges.length > workloads.length * DENSE;
  const isReadable = edges.length <= 24 || (view.scale >= READABLE && !isDense);

  const drawn = edges.flatMap((edge) => {
    const [from, to] = [placed.nodes.get(edge.from), placed.nodes.get(edge.to)];
    if (!from || !to) return [];
    const id = edgeId(edge);
    const bend = both.has(`${edge.to}→${edge.from}`) && edge.from !== edge.to ? (edge.from < edge.to ? 1 : -1) : 0;
    const isChosen = selection?.id === id || hovered === id || (near?.has(id) ?? false);
    const isLoud = edge.health === "bad" || edge.health === "denied";
    const isNear = isChosen && (near?.size ?? 0) < 24;
    const hasLabel = selection?.id === id || hovered === id || isNear || isReadable || isLoud;
    return [{ edge, id, line: curve(from, to, bend, isTall), hasLabel, isLoud, isChosen, isFaint: isFaint(id, edge.from, edge.to) }];
  });
  const by = Math.max(1, (size.width < NARROW ? 0.62 : 0.85) / view.scale);
  const labels = drawn.filter((one) => one.hasLabel && !one.isFaint).map((one) => {
    const [width, height] = labelSize(one.edge);
    return { ...one, width: width * by, height: height * by };
  });
  // The loudest have the first choice, and stand above the others.
  labels.sort((one, other) => Number(other.isLoud) - Number(one.isLoud) || one.id.localeCompare(other.id));
  const places = spread(labels);
  labels.reverse();
  drawn.sort((one, other) => Number(one.isChosen) - Number(other.isChosen));
  const isTabbed = (edge: Edge) =>
    edges.length <= TABBED_EDGES || edge.from === selection?.id || edge.to === selection?.id || edgeId(edge) === selection?.id;

  return (
    <div class="graph">
      <svg
        ref={frame}
        role="group"
        aria-label={`Topology: ${workloads.length} workloads, ${edges.length} edges. Tab goes through them, Enter shows one, arrow keys move the picture, plus and minus scale it, 0 fits it.`}
        tabindex={0}
        onPointerDown={down}
        onPointerMove={move}
        onPointerUp={up}
        onPointerCancel={up}
        onPointerLeave={up}
        onKeyDown={key}
        onClick={(event) => event.target === frame.current && select(null)}
      >
        <defs>
          {(["good", "bad", "warning", "denied", "idle"] as const).map((health) => (
            <marker key={health} id={`arrow-${health}`} viewBox="0 0 8 8" refX="5" refY="4" markerWidth="7" markerHeight="7" orient="auto-start-reverse" markerUnits="userSpaceOnUse">
              <path d="M0 0 8 4 0 8z" class={`arrow ${health}`} />
            </marker>
          ))}
        </defs>
        <g class={view.scale < FAR ? "far" : ""} transform={`translate(${view.x} ${view.y}) scale(${view.scale})`}>
          {placed.groups.map(({ namespace, box }) => (
            <g key={namespace} class="namespace" aria-hidden="true">
              <rect x={box.x} y={box.y} width={box.width} height={box.height} rx="14" />
              <text x={box.x + 16} y={box.y + (view.scale < FAR ? 34 : 26)} style={{ fontSize: `${Math.min(30, Math.max(13, 11 / view.scale))}px` }}>
                {namespace}
              </text>
            </g>
          ))}
          {drawn.map(({ edge, id, line, isChosen, isLoud, isFaint }) => (
            <g
              key={id}
              class={`edge ${edge.health} ${edge.proved ? "proved" : "open"} ${isChosen ? "chosen" : ""} ${isFaint ? "faint" : ""}`}
              data-edge={id}
              data-health={edge.health}
              role="button"
              tabindex={isTabbed(edge) ? 0 : -1}
              aria-label={edgeSpoken(edge)}
              onClick={() => select({ kind: "edge", id })}
              onKeyDown={(event) => enter(event, () => select({ kind: "edge", id }))}
              onPointerEnter={() => setHovered(id)}
              onPointerLeave={() => setHovered(null)}
            >
              <path class="reach" d={line.path} />
              <path class="line" d={line.path} marker-end={`url(#arrow-${edge.health})`} style={{ strokeWidth: `${Math.max(weight(edge), (isLoud ? 2 : 0.9) / view.scale).toFixed(1)}px` }} />
            </g>
          ))}
          {workloads.map((workload) => {
            const box = placed.nodes.get(workload.id);
            return box && (
              <Node
                key={workload.id}
                workload={workload}
                box={box}
                isChosen={selection?.id === workload.id}
                isFaint={isFaint(workload.id)}
                select={() => select({ kind: "workload", id: workload.id })}
                hover={setHovered}
              />
            );
          })}
          {labels.map(({ edge, id }) => (
            <Label key={id} edge={edge} at={places.get(id) ?? { x: 0, y: 0 }} by={by} />
          ))}
        </g>
      </svg>
      <div class="zoom" role="group" aria-label="Scale">
        <button type="button" onClick={() => zoom(1.25)} aria-label="Larger">+</button>
        <button type="button" onClick={() => zoom(0.8)} aria-label="Smaller">−</button>
        <button type="button" onClick={() => { moved.current = false; fit(); }} aria-label="Fit all">⤢</button>
      </div>
    </div>
  );
}

export function enter(event: KeyboardEvent, act: () => void) {
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    event.stopPropagation();
    act();
  }
}

/** Busier edges are broader, slowly. */
const weight = (edge: Edge) => 1.5 + Math.min(3, Math.log10(1 + edge.requestsPerSecond + edge.openedPerSecond));

function Node({ workload, box, isChosen, isFaint, select, hover }: {
  workload: Workload;
  box: Box;
  isChosen: boolean;
  isFaint: boolean;
  select: () => void;
  hover: (id: string | null) => void;
}) {
  const { word, sign } = HEALTH[workload.health];
  const sub = {
    workload: workload.pods === 0 ? "no pod seen" : `${workload.pods} pod${workload.pods === 1 ? "" : "s"}${workload.enrolled === 0 ? ", not in the mesh" : ""}`,
    service: "Service, nobody reached",
    unknown: "nobody knows who",
    other: "too many to show",
    group: `${workload.pods} pod${workload.pods === 1 ? "" : "s"}`,
  }[workload.kind];
  return (
    <g
      class={`node ${workload.kind} ${workload.health} ${isChosen ? "chosen" : ""} ${isFaint ? "faint" : ""}`}
      transform={`translate(${box.x} ${box.y})`}
      data-workload={workload.id}
      role="button"
      tabindex={0}
      aria-label={`${workload.name}${workload.namespace ? ` in ${workload.namespace}` : ""}: ${word}, ${sub}${workload.why.length ? `, ${workload.why.join(", ")}` : ""}`}
      onClick={select}
      onKeyDown={(event) => enter(event, select)}
      onPointerEnter={() => hover(workload.id)}
      onPointerLeave={() => hover(null)}
    >
      <rect width={box.width} height={box.height} rx="10" />
      <circle cx="20" cy={box.height / 2} r="9.5" />
      <text class="sign" x="20" y={box.height / 2 + 4}>{sign}</text>
      <text class="name" x="38" y="20">{cut(workload.name, 18)}</text>
      <text class="sub" x="38" y="35">{sub}</text>
      <text class="far-name" x={box.width / 2} y="31">{`${workload.health === "good" || workload.health === "idle" ? "" : sign}${cut(workload.name, 12)}`}</text>
      {workload.enrolled > 0 && workload.captured < workload.enrolled && <text class="sub flag" x={box.width - 10} y="20">{`${workload.captured}/${workload.enrolled}`}</text>}
    </g>
  );
}

function labelLines(edge: Edge): [string, string] {
  const [first, second] = edgeLines(edge);
  const sign = edge.health === "good" || edge.health === "idle" ? "" : `${HEALTH[edge.health].sign} `;
  return [sign + first, second];
}

function labelSize(edge: Edge): [number, number] {
  const [text, second] = labelLines(edge);
  return [Math.max(text.length + 3, second.length) * 5.9 + 16, second ? 32 : 19];
}

function Label({ edge, at, by }: { edge: Edge; at: { x: number; y: number }; by: number }) {
  const [text, second] = labelLines(edge);
  const [width, height] = labelSize(edge);
  const carried = Object.keys(edge.transports).length > 0;
  return (
    <g class={`label ${edge.health}`} transform={`translate(${at.x} ${at.y}) scale(${by}) translate(${-width / 2} ${-height / 2})`} aria-hidden="true">
      <rect width={width} height={height} rx="7" />
      {carried && <Lock x={7} y={4} isClosed={edge.proved} />}
      <text x={carried ? 22 : 8} y="13.5">{text}</text>
      {second && <text class="second" x="8" y="26.5">{second}</text>}
    </g>
  );
}

/** The same beside text; what it says is said by the text. */
export const LockSign = ({ isClosed }: { isClosed: boolean }) => (
  <svg class="locksign" width="11" height="13" viewBox="-0.5 -1 11 14" aria-hidden="true"><Lock x={0} y={0} isClosed={isClosed} /></svg>
);

/** A padlock, closed or open: whether both ends' identities are proved. */
export function Lock({ x, y, isClosed }: { x: number; y: number; isClosed: boolean }) {
  return (
    <g transform={`translate(${x} ${y})`} class={isClosed ? "lock" : "lock open"}>
      <rect x="0" y="5" width="10" height="7" rx="1.5" />
      <path d={isClosed ? "M2 5V3.5a3 3 0 0 1 6 0V5" : "M2 5V3.5a3 3 0 0 1 5.6-1.4"} />
    </g>
  );
}

const cut = (text: string, most: number) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
