// What is too much for a picture, in fewer parts: namespaces in place of their workloads.
import type { Edge, Health, Workload } from "./data";
import { edgeId } from "./data";
import { WORST } from "./words";

/** So many workloads are drawn one by one: laid out in a moment, and still told apart. */
export const MOST_DRAWN = 240;
/** So many rows of a table. */
export const MOST_ROWS = 500;

const END = "/*";

/** The namespace that a group stands for; null for a workload. */
export const namespaceOf = (id: string) => (id.endsWith(END) ? id.slice(0, -END.length) : null);

interface Shown {
  workloads: Workload[];
  edges: Edge[];
}

/**
 * All of it where it can be drawn. Otherwise a namespace is one, but for the chosen one: of that those are drawn that
 * somebody should look at, then those that are busiest.
 */
export function grouped(shown: Shown, chosen: string): Shown & { isGrouped: boolean } {
  if (shown.workloads.length <= MOST_DRAWN) return { ...shown, isGrouped: false };
  const busy = new Map<string, number>();
  for (const edge of shown.edges) {
    for (const id of [edge.from, edge.to]) busy.set(id, (busy.get(id) ?? 0) + 1 + edge.requestsPerSecond);
  }
  const own = shown.workloads.filter((workload) => workload.namespace === chosen && chosen);
  const worst = (one: { health: Health }) => WORST.indexOf(one.health);
  own.sort((one, other) => worst(one) - worst(other) || (busy.get(other.id) ?? 0) - (busy.get(one.id) ?? 0) || one.id.localeCompare(other.id));
  const single = new Set(own.slice(0, MOST_DRAWN).map((workload) => workload.id));
  // Whoever has no namespace stands for many already.
  const isSingle = (workload: Workload) => single.has(workload.id) || !workload.namespace;
  const home = new Map(shown.workloads.map((workload) => [workload.id, isSingle(workload) ? workload.id : workload.namespace + END]));
  const groups = new Map<string, Workload>();
  for (const workload of shown.workloads) {
    const id = home.get(workload.id) ?? workload.id;
    if (id === workload.id) groups.set(id, workload);
    else groups.set(id, together(id, workload, groups.get(id)));
  }
  const edges = new Map<string, Edge>();
  for (const edge of shown.edges) {
    const [from, to] = [home.get(edge.from) ?? edge.from, home.get(edge.to) ?? edge.to];
    // What goes on within a group is its own affair: the group's sign says how it is.
    if (from === to && from.endsWith(END)) continue;
    const id = edgeId({ from, to });
    edges.set(id, sum({ ...edge, from, to }, edges.get(id)));
  }
  return { workloads: [...groups.values()], edges: [...edges.values()], isGrouped: true };
}

function together(id: string, workload: Workload, group?: Workload): Workload {
  const count = Number.parseInt(group?.name ?? "0", 10) + 1;
  const before = group ?? { ...workload, pods: 0, enrolled: 0, captured: 0, why: [] };
  const isWorse = WORST.indexOf(workload.health) < WORST.indexOf(before.health);
  const isSick = workload.health === "bad" || workload.health === "warning" || workload.health === "denied";
  return {
    ...before,
    id,
    kind: "group",
    name: `${count} workload${count === 1 ? "" : "s"}`,
    health: isWorse ? workload.health : before.health,
    why: isSick && before.why.length < 5 ? [...before.why, `${workload.id}: ${workload.why[0] ?? workload.health}`] : before.why,
    identity: null,
    pods: before.pods + workload.pods,
    enrolled: before.enrolled + workload.enrolled,
    captured: before.captured + workload.captured,
    certificateLeft: null,
  };
}

function sum(edge: Edge, before?: Edge): Edge {
  if (!before) return edge;
  const requests = before.requestsPerSecond + edge.requestsPerSecond;
  const good = before.requestsPerSecond * (before.success ?? 0) + edge.requestsPerSecond * (edge.success ?? 0);
  const transports = { ...before.transports };
  for (const [way, count] of Object.entries(edge.transports)) transports[way] = (transports[way] ?? 0) + count;
  const carried = (one: Edge) => Object.keys(one.transports).length > 0;
  const most = (one: number | null, other: number | null) => (one === null ? other : other === null ? one : Math.max(one, other));
  return {
    ...before,
    health: WORST.indexOf(edge.health) < WORST.indexOf(before.health) ? edge.health : before.health,
    why: [...before.why, ...edge.why].slice(0, 5),
    proved: (before.proved || !carried(before)) && (edge.proved || !carried(edge)) && (carried(before) || carried(edge)),
    transports,
    requestsPerSecond: requests,
    success: requests > 0 ? good / requests : null,
    // The slowest of them: of times no mean is one.
    p50: most(before.p50, edge.p50),
    p99: most(before.p99, edge.p99),
    deniedPerSecond: before.deniedPerSecond + edge.deniedPerSecond,
    openedPerSecond: before.openedPerSecond + edge.openedPerSecond,
    failedPerSecond: before.failedPerSecond + edge.failedPerSecond,
    open: before.open + edge.open,
    sentPerSecond: before.sentPerSecond + edge.sentPerSecond,
    receivedPerSecond: before.receivedPerSecond + edge.receivedPerSecond,
    requests: before.requests + edge.requests,
    opened: before.opened + edge.opened,
    active: most(before.active, edge.active),
  };
}
