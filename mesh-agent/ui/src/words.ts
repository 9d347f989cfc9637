// Numbers as people read them, and a word and a sign for what colours say.
import type { Edge, Health } from "./data";

export const HEALTH: Record<Health, { word: string; sign: string }> = {
  bad: { word: "failing", sign: "✕" },
  denied: { word: "denied", sign: "⊘" },
  warning: { word: "warning", sign: "!" },
  good: { word: "healthy", sign: "✓" },
  idle: { word: "idle", sign: "–" },
};

export const WORST: Health[] = ["bad", "denied", "warning", "good", "idle"];

export function number(value: number): string {
  if (value === 0) return "0";
  if (value >= 1e6) return `${(value / 1e6).toFixed(1)}M`;
  if (value >= 1e3) return `${(value / 1e3).toFixed(1)}k`;
  if (value >= 10) return value.toFixed(0);
  return value >= 0.1 ? value.toFixed(1) : "<0.1";
}

export function bytes(value: number): string {
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (value < 1024) return `${unit === "B" || value >= 10 ? value.toFixed(0) : value.toFixed(1)} ${unit}`;
    value /= 1024;
  }
  return `${value.toFixed(1)} TiB`;
}

export function time(seconds: number | null): string {
  if (seconds === null) return "–";
  if (seconds < 0.001) return `${(seconds * 1e6).toFixed(0)} µs`;
  if (seconds < 1) return `${(seconds * 1e3).toFixed(seconds < 0.01 ? 1 : 0)} ms`;
  return `${seconds.toFixed(1)} s`;
}

export function span(seconds: number): string {
  const left = Math.max(0, seconds);
  if (left < 60) return `${left.toFixed(0)} s`;
  if (left < 3600) return `${Math.floor(left / 60)} min`;
  if (left < 86400) return `${Math.floor(left / 3600)} h ${Math.floor((left % 3600) / 60)} min`;
  return `${Math.floor(left / 86400)} d`;
}

export function percent(part: number | null): string {
  if (part === null) return "–";
  if (part === 1) return "100 %";
  // What failed is never rounded away.
  return `${Math.min(99.9, Math.floor(part * 1000) / 10).toFixed(1)} %`;
}

export const clock = (at: number) => new Date(at * 1000).toLocaleTimeString();

/** Two short lines for an edge. */
export function edgeLines(edge: Edge): [string, string] {
  if (edge.requests > 0) {
    if (edge.requestsPerSecond === 0) return ["no requests now", `${number(edge.requests)} before`];
    return [`${number(edge.requestsPerSecond)} req/s`, `${percent(edge.success)} · p99 ${time(edge.p99)}`];
  }
  const both = edge.sentPerSecond + edge.receivedPerSecond;
  if (edge.deniedPerSecond > 0) return [`${number(edge.deniedPerSecond)} denied/s`, ""];
  if (edge.open === 0 && edge.openedPerSecond === 0 && both === 0) return ["no connections now", edge.opened > 0 ? `${number(edge.opened)} before` : ""];
  return [`${edge.open} open${edge.openedPerSecond > 0 ? ` · ${number(edge.openedPerSecond)} conn/s` : ""}`, `${bytes(both)}/s`];
}

const PROTECTION: Record<string, string> = {
  tunnel: "mutual TLS",
  "same-node": "same node, identity by the kernel",
  itself: "to itself",
  plaintext: "plaintext",
  "pass-through": "passed as it is, not protected",
};

export function protection(edge: Edge): string {
  const ways = Object.keys(edge.transports);
  if (ways.length === 0) return "nothing was carried";
  return ways.map((way) => PROTECTION[way] ?? way).join(", ");
}

/** Whole sentences, for whoever hears the page. */
export function edgeSpoken(edge: Edge): string {
  const [first, second] = edgeLines(edge);
  return `${edge.from} to ${edge.to}: ${HEALTH[edge.health].word}, ${first}${second ? `, ${second}` : ""}, ${protection(edge)}`;
}
