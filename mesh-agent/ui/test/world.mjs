// A world of many workloads, the same with each start: the shape of what the server tells (src/data.ts).
export function generated(count, round) {
  const random = dice(4711);
  const namespaces = ["shop", "payments", "search", "accounts", "media", "orders", "analytics", "platform", "mail", "edge", "ml", "legacy"];
  const words = ["api", "web", "worker", "cache", "db", "gateway", "index", "queue", "auth", "cart", "feed", "stream", "report", "batch", "notify", "audit", "images", "ledger"];
  const workloads = [];
  for (let at = 0; at < count; at++) {
    const namespace = namespaces[Math.floor(random() * random() * namespaces.length)];
    const name = `${words[at % words.length]}${at >= words.length ? `-${Math.floor(at / words.length)}` : ""}`;
    workloads.push({
      id: `${namespace}/${name}`, namespace, name, kind: "workload", health: "idle", why: [], identity: `spiffe://cluster.local/ns/${namespace}/sa/${name}`,
      pods: 1 + Math.floor(random() * 6), enrolled: 1, captured: 1, certificateLeft: 9000,
    });
  }
  const edges = [];
  const seen = new Set();
  for (const [at, from] of workloads.entries()) {
    const own = workloads.slice(at + 1).filter((one) => one.namespace === from.namespace);
    const others = workloads.slice(at + 1).filter((one) => one.namespace !== from.namespace);
    const pick = (all, most) => Array.from({ length: Math.floor(random() * (most + 1)) }, () => all[Math.floor(random() * Math.min(all.length, 14))]).filter(Boolean);
    for (const to of [...pick(own, 2), ...(random() < 0.25 ? pick(others, 1) : [])]) {
      const id = `${from.id}→${to.id}`;
      if (seen.has(id)) continue;
      seen.add(id);
      const chance = random();
      const health = chance < 0.02 ? "bad" : chance < 0.04 ? "denied" : chance < 0.07 ? "warning" : chance < 0.2 ? "idle" : "good";
      const rate = health === "idle" ? 0 : random() ** 3 * 900 * (1 + 0.05 * Math.sin(round + at));
      const isPlain = random() < 0.06;
      edges.push({
        from: from.id, to: to.id, health, why: health === "bad" ? ["31 of 320 requests failed in 10 s"] : [], proved: !isPlain, transports: { [isPlain ? "plaintext" : "tunnel"]: 5 },
        requestsPerSecond: rate, success: health === "bad" ? 0.9 : health === "idle" ? null : 1, p50: 0.002, p99: 0.004 + random() * 0.2,
        deniedPerSecond: health === "denied" ? 2 : 0, openedPerSecond: 0.4, failedPerSecond: 0, open: 3, sentPerSecond: rate * 300, receivedPerSecond: rate * 2000,
        requests: 1000, opened: 20, active: Date.now() / 1000,
      });
      for (const end of [from, to]) if (end.health === "idle") end.health = "good";
      if (health === "bad" || health === "warning") to.health = health;
    }
  }
  const agents = Array.from({ length: 12 }, (_, at) => ({
    node: `worker-${at + 1}`, pod: `nodemesh-agent-${at}`, health: at === 7 ? "warning" : "good", why: at === 7 ? ["its configuration is 75 s old"] : [], version: "0.1.0",
    started: Date.now() / 1000 - 90000, pods: 30, enrolled: 28, captured: 28, certificates: 17, certificatesInForce: 17, configAge: 0.4, connections: 700,
  }));
  return { at: Date.now() / 1000, window: 10, agents, workloads, edges, denials: [], overflowed: 0, omitted: 0, trouble: null };
}

/** Chance that is the same each time (mulberry32). */
function dice(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}
