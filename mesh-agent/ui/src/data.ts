// What the server tells (mesh-agent/src/map/picture.rs), and the ways to it.

export type Health = "idle" | "good" | "warning" | "denied" | "bad";

export interface Agent {
  node: string;
  pod: string | null;
  health: Health;
  why: string[];
  version: string | null;
  started: number | null;
  pods: number;
  enrolled: number;
  captured: number;
  certificates: number;
  certificatesInForce: number;
  configAge: number | null;
  connections: number;
}

export interface Workload {
  id: string;
  namespace: string;
  name: string;
  /** A group is the page's own: all of a namespace, or the rest of it. */
  kind: "workload" | "service" | "unknown" | "other" | "group";
  health: Health;
  why: string[];
  identity: string | null;
  pods: number;
  enrolled: number;
  captured: number;
  certificateLeft: number | null;
}

export interface Edge {
  from: string;
  to: string;
  health: Health;
  why: string[];
  proved: boolean;
  transports: Record<string, number>;
  requestsPerSecond: number;
  success: number | null;
  p50: number | null;
  p99: number | null;
  deniedPerSecond: number;
  openedPerSecond: number;
  failedPerSecond: number;
  open: number;
  sentPerSecond: number;
  receivedPerSecond: number;
  requests: number;
  opened: number;
  active: number | null;
}

export interface Denial {
  node: string;
  from: string;
  to: string;
  kind: "connection" | "request";
  direction: string;
  result: string;
  reason: string;
  policy: string | null;
  rule: number | null;
  sourcePod: string | null;
  sourceIdentity: string | null;
  sourceAddress: string;
  service: string | null;
  destinationPod: string | null;
  destinationPort: number | null;
  method: string | null;
  path: string | null;
  first: number;
  last: number;
  count: number;
}

export interface Picture {
  at: number;
  window: number;
  agents: Agent[];
  workloads: Workload[];
  edges: Edge[];
  denials: Denial[];
  overflowed: number;
  omitted: number;
  trouble: string | null;
}

export interface Sample {
  at: number;
  requests: number;
  success: number | null;
  p50: number | null;
  p99: number | null;
  opened: number;
  denied: number;
  bytes: number;
}

export interface Flow {
  agent: string;
  direction: string;
  transport: string;
  source: { pod: string | null; identity: string | null };
  client: string;
  service: string | null;
  destination: { pod: string | null; identity: string | null };
  server: string | null;
  rule: string | null;
  bytesSent: number;
  bytesReceived: number;
  ageSeconds: number;
}

export interface PolicyOfPod {
  allow?: { id: string }[];
  deny?: { id: string }[];
  custom?: { id: string }[];
  audit?: { id: string }[];
  tokens?: { id: string }[];
  unreadable?: { id: string }[];
  modes?: unknown;
}

export interface EdgeDetail {
  edge: Edge;
  history: Sample[];
  flows: Flow[];
  flowsTrouble: string | null;
  deciding: { policy: string | null; rule: number | null; decision: string; reason: string | null; count: number }[];
  policies: PolicyOfPod[];
  denials: Denial[];
}

export interface WorkloadDetail {
  workload: Workload;
  pods: {
    node: string;
    name: string;
    ips: string[];
    enrolled: boolean;
    captured: boolean | null;
    notCaptured: string | null;
    refusal: string | null;
    policy: PolicyOfPod | null;
  }[];
  certificates: {
    node: string;
    serial: string;
    notAfter: number | null;
    secondsLeft: number | null;
    root: string | null;
    lastError: string | null;
  }[];
  services: { namespace: string; name: string; clusterIPs: string[]; ports: { name: string; port: number; endpoints: string[] }[] }[];
  routes: {
    kind: string;
    namespace: string;
    name: string;
    parents: { namespace: string; name: string; conditions: { type: string; status: boolean; reason: string; message: string }[] }[];
  }[];
  calls: Edge[];
  called: Edge[];
  denials: Denial[];
}

/** Pictures, as they come; the browser comes back by itself when a stream ends. */
export function follow(show: (picture: Picture) => void, state: (isLive: boolean) => void): () => void {
  const events = new EventSource("/api/events");
  let timer: ReturnType<typeof setTimeout> | undefined;
  // A stream ends every two minutes, and the next one begins: that is no news.
  const late = () => state(false);
  const wait = () => {
    clearTimeout(timer);
    timer = setTimeout(late, 12_000);
  };
  wait();
  events.onmessage = (event) => {
    wait();
    state(true);
    show(JSON.parse(event.data) as Picture);
  };
  events.onerror = () => {
    // 2: it does not come back, as where the token is not good any longer.
    if (events.readyState === 2) state(false);
  };
  return () => {
    clearTimeout(timer);
    events.close();
  };
}

async function ask<T>(path: string, query: Record<string, string>, signal: AbortSignal): Promise<T | null> {
  const answer = await fetch(`${path}?${new URLSearchParams(query)}`, { signal });
  return answer.ok ? ((await answer.json()) as T) : null;
}

export const askEdge = (from: string, to: string, signal: AbortSignal) =>
  ask<EdgeDetail>("/api/edge", { from, to }, signal);
export const askWorkload = (id: string, signal: AbortSignal) => ask<WorkloadDetail>("/api/workload", { id }, signal);

export const edgeId = (edge: { from: string; to: string }) => `${edge.from}→${edge.to}`;
