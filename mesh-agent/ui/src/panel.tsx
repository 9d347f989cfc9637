// What is known of one edge or one workload.
import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { askEdge, askWorkload, type Denial, type Edge, type EdgeDetail, edgeId, type Health, type PolicyOfPod, type Sample, type WorkloadDetail } from "./data";
import { LockSign, type Selection } from "./graph";
import { bytes, clock, edgeLines, edgeSpoken, HEALTH, number, percent, protection, span, time } from "./words";

interface Props {
  selection: Selection;
  /** Changes with each picture: then it is asked again. */
  at: number;
  /** Seconds that charts show. */
  range: number;
  select: (selection: Selection | null) => void;
}

export function Panel({ selection, at, range, select }: Props) {
  const [edge, setEdge] = useState<EdgeDetail | null>(null);
  const [workload, setWorkload] = useState<WorkloadDetail | null>(null);
  const [isGone, setGone] = useState(false);
  const head = useRef<HTMLHeadingElement>(null);
  useEffect(() => {
    setEdge(null);
    setWorkload(null);
    setGone(false);
    head.current?.focus();
  }, [selection.id]);
  useEffect(() => {
    const stop = new AbortController();
    const ended = () => undefined;
    if (selection.kind === "edge") {
      const [from, to] = selection.id.split("→") as [string, string];
      askEdge(from, to, stop.signal).then((detail) => { setEdge(detail); setGone(!detail); }, ended);
    } else {
      askWorkload(selection.id, stop.signal).then((detail) => { setWorkload(detail); setGone(!detail); }, ended);
    }
    return () => stop.abort();
  }, [selection.id, at]);
  const [from, to] = selection.id.split("→");
  return (
    <aside class="panel" aria-label="Details">
      <header>
        <h2 ref={head} tabIndex={-1}>
          {selection.kind === "edge" ? <>{from} <span aria-label="to">→</span> {to}</> : selection.id}
        </h2>
        <button type="button" class="close" onClick={() => select(null)} aria-label="Close details (Escape)">✕</button>
      </header>
      <div class="scroll">
        {isGone && <p class="muted">Nothing is known of it any longer.</p>}
        {selection.kind === "edge" && edge && <EdgeParts detail={edge} range={range} select={select} />}
        {selection.kind === "workload" && workload && <WorkloadParts detail={workload} select={select} />}
        {!isGone && !edge && !workload && <p class="muted">Asking the agents…</p>}
      </div>
    </aside>
  );
}

function EdgeParts({ detail, range, select }: { detail: EdgeDetail; range: number; select: Props["select"] }) {
  const { edge, flows, deciding, policies, denials } = detail;
  const until = detail.history.at(-1)?.at ?? 0;
  const history = detail.history.filter((sample) => sample.at > until - range);
  return (
    <>
      <State health={edge.health} why={edge.why} />
      <dl class="facts">
        <Fact name="Protection" value={protection(edge)} sign={<LockSign isClosed={edge.proved} />} />
        <Fact name="Requests" value={`${number(edge.requestsPerSecond)}/s`} />
        <Fact name="Success" value={percent(edge.success)} />
        <Fact name="p50 · p99" value={`${time(edge.p50)} · ${time(edge.p99)}`} />
        <Fact name="Connections" value={`${edge.open} open, ${number(edge.openedPerSecond)}/s new`} />
        <Fact name="Bytes" value={`${bytes(edge.sentPerSecond)}/s out, ${bytes(edge.receivedPerSecond)}/s back`} />
      </dl>
      <div class="goto">
        <button type="button" onClick={() => select({ kind: "workload", id: edge.from })}>{edge.from}</button>
        <button type="button" onClick={() => select({ kind: "workload", id: edge.to })}>{edge.to}</button>
      </div>
      <Part title={`Over the last ${span(range)}`}>
        <div class="charts">
          <Chart name="Requests" unit={(value) => `${number(value)}/s`} samples={history} lines={[{ of: (one) => one.requests }]} range={range} />
          <Chart name="Success" unit={percent} samples={history} lines={[{ of: (one) => one.success }]} range={range} top={1} />
          <Chart name="Latency" unit={time} samples={history} lines={[{ of: (one) => one.p99, name: "p99" }, { of: (one) => one.p50, name: "p50" }]} range={range} />
          <Chart name="Bytes" unit={(value) => `${bytes(value)}/s`} samples={history} lines={[{ of: (one) => one.bytes }]} range={range} />
          <Chart name="New connections" unit={(value) => `${number(value)}/s`} samples={history} lines={[{ of: (one) => one.opened }]} range={range} />
          <Chart name="Denied" unit={(value) => `${number(value)}/s`} samples={history} lines={[{ of: (one) => one.denied }]} range={range} />
        </div>
      </Part>
      <Part title="Which policy decides">
        {deciding.length === 0 && <p class="muted">No live connection and no refusal to tell by.</p>}
        <ul class="rows">
          {deciding.map((one) => (
            <li key={JSON.stringify(one)}>
              <Badge health={one.decision === "allowed" ? "good" : "denied"} word={one.decision} />{" "}
              {one.policy ? <code>{one.policy}</code> : "no policy had to be named"}
              {one.rule !== null && ` rule ${one.rule}`}
              {one.reason && `, ${one.reason}`} <span class="muted">×{one.count}</span>
            </li>
          ))}
        </ul>
        <Policies policies={policies} whose={edge.to} />
      </Part>
      <Part title={`Flows (${flows.length})`}>
        {detail.flowsTrouble && <p class="muted">{detail.flowsTrouble}</p>}
        {flows.length === 0 && !detail.flowsTrouble && <p class="muted">No connection is open now.</p>}
        <ul class="rows">
          {flows.map((flow) => (
            <li key={`${flow.agent}${flow.client}${flow.direction}${flow.server}`}>
              <code>{flow.client}</code> → <code>{flow.server ?? "?"}</code>
              <span class="muted"> {flow.direction}, {flow.transport}, {bytes(flow.bytesSent)} / {bytes(flow.bytesReceived)}, {span(flow.ageSeconds)}</span>
            </li>
          ))}
        </ul>
      </Part>
      <Part title={`Denials (${denials.length})`}>
        <Denials denials={denials} />
      </Part>
    </>
  );
}

function WorkloadParts({ detail, select }: { detail: WorkloadDetail; select: Props["select"] }) {
  const { workload, pods, certificates, services, routes, calls, called, denials } = detail;
  return (
    <>
      <State health={workload.health} why={workload.why} />
      <Part title="Identity">
        <p>{workload.identity ? <code class="wrap">{workload.identity}</code> : <span class="muted">No agent has a pod of it.</span>}</p>
      </Part>
      <Part title="Certificate">
        {certificates.length === 0 && <p class="muted">None.</p>}
        <ul class="rows">
          {certificates.map((one) => (
            <li key={one.node}>
              <Badge health={(one.secondsLeft ?? 0) > 0 ? "good" : "bad"} word={(one.secondsLeft ?? 0) > 0 ? "in force" : "none"} />{" "}
              on {one.node}{one.secondsLeft !== null && `, ends in ${span(one.secondsLeft)}`}
              <div class="muted">serial <code>{one.serial || "–"}</code>, root <code>{one.root?.slice(0, 12) ?? "–"}</code></div>
              {one.lastError && <div class="trouble">{one.lastError}</div>}
            </li>
          ))}
        </ul>
      </Part>
      <Part title={`Pods (${pods.length})`}>
        <ul class="rows">
          {pods.map((pod) => (
            <li key={pod.name}>
              <Badge health={pod.captured ? "good" : pod.enrolled ? "bad" : "idle"} word={pod.captured ? "captured" : pod.enrolled ? "not captured" : "not in the mesh"} />{" "}
              <b>{pod.name}</b> on {pod.node} <span class="muted">{pod.ips.join(", ")}</span>
              {(pod.notCaptured ?? pod.refusal) && <div class="trouble">{pod.notCaptured ?? pod.refusal}</div>}
            </li>
          ))}
        </ul>
      </Part>
      <Part title="Calls"><Edges edges={calls} other={(edge) => edge.to} select={select} /></Part>
      <Part title="Called by"><Edges edges={called} other={(edge) => edge.from} select={select} /></Part>
      <Part title="Services and endpoints">
        {services.length === 0 && <p class="muted">No Service leads here.</p>}
        <ul class="rows">
          {services.map((service) => (
            <li key={service.name}>
              <b>{service.namespace}/{service.name}</b> <span class="muted">{service.clusterIPs.join(", ")}</span>
              {service.ports.map((port) => (
                <div key={port.port} class="muted">{port.name || "port"} {port.port} → {port.endpoints.join(", ") || "no endpoint"}</div>
              ))}
            </li>
          ))}
        </ul>
      </Part>
      <Part title="Routes">
        {routes.length === 0 && <p class="muted">None: requests go to the Service's endpoints.</p>}
        <ul class="rows">
          {routes.map((route) => (
            <li key={`${route.kind}${route.namespace}${route.name}`}>
              <b>{route.kind}</b> {route.namespace}/{route.name}
              {route.parents.flatMap((parent) => parent.conditions).filter((condition) => condition.status === (condition.type === "PartiallyInvalid")).map((condition) => (
                <div key={condition.type} class="trouble">{condition.type}: {condition.message || condition.reason}</div>
              ))}
            </li>
          ))}
        </ul>
      </Part>
      <Part title="Policies">
        <Policies policies={pods.flatMap((pod) => (pod.policy ? [pod.policy] : []))} whose={workload.id} />
      </Part>
      <Part title={`Denials (${denials.length})`}><Denials denials={denials} /></Part>
    </>
  );
}

function Policies({ policies, whose }: { policies: PolicyOfPod[]; whose: string }) {
  const all = new Map<string, string>();
  for (const policy of policies) {
    for (const kind of ["deny", "custom", "allow", "audit", "tokens", "unreadable"] as const) {
      for (const one of policy[kind] ?? []) all.set(`${kind} ${one.id}`, kind);
    }
  }
  if (all.size === 0) return <p class="muted">No AuthorizationPolicy stands before {whose}.</p>;
  return (
    <ul class="rows">
      {[...all].map(([key, kind]) => (
        <li key={key}><span class="tag">{kind.toUpperCase()}</span> <code>{key.slice(kind.length + 1)}</code> <span class="muted">before {whose}</span></li>
      ))}
    </ul>
  );
}

export function Edges({ edges, other, select }: { edges: Edge[]; other: (edge: Edge) => string; select: Props["select"] }) {
  if (edges.length === 0) return <p class="muted">Nobody.</p>;
  return (
    <ul class="rows">
      {edges.map((edge) => (
        <li key={edgeId(edge)}>
          <button type="button" class="row" aria-label={edgeSpoken(edge)} onClick={() => select({ kind: "edge", id: edgeId(edge) })}>
            <Badge health={edge.health} /> <b>{other(edge)}</b> <span class="muted">{edgeLines(edge).filter(Boolean).join(" · ")}</span>
          </button>
        </li>
      ))}
    </ul>
  );
}

export function Denials({ denials }: { denials: Denial[] }) {
  if (denials.length === 0) return <p class="muted">Nobody was refused.</p>;
  return (
    <ul class="rows denials">
      {denials.map((one) => (
        <li key={`${one.node}${one.kind}${one.from}${one.to}${one.sourceAddress}${one.policy}${one.rule}${one.reason}${one.destinationPort}${one.direction}`}>
          <div>
            <Badge health="denied" word={one.result} /> <b>{one.sourcePod ?? one.from}</b> → <b>{one.destinationPod ?? one.service ?? one.to}</b>
            {one.destinationPort !== null && `:${one.destinationPort}`}
          </div>
          <div>
            {one.policy ? <>by <code>{one.policy}</code>{one.rule !== null && `, rule ${one.rule}`}: </> : ""}{one.reason}
            {one.method && <> · <code>{one.method} {one.path}</code></>}
          </div>
          <div class="muted">
            {clock(one.last)}{one.count > 1 && `, ${one.count} times since ${clock(one.first)}`} · {one.sourceAddress} · said by {one.node}
          </div>
        </li>
      ))}
    </ul>
  );
}

export function Badge({ health, word }: { health: Health; word?: string }) {
  const known = HEALTH[health];
  return <span class={`badge ${health}`}><span aria-hidden="true">{known.sign}</span> {word ?? known.word}</span>;
}

function State({ health, why }: { health: Health; why: string[] }) {
  return (
    <div class={`state ${health}`}>
      <Badge health={health} />
      {why.map((one) => <div key={one}>{one}</div>)}
    </div>
  );
}

function Part({ title, children }: { title: string; children: ComponentChildren }) {
  return <section><h3>{title}</h3>{children}</section>;
}

function Fact({ name, value, sign }: { name: string; value: string; sign?: ComponentChildren }) {
  return <div><dt>{name}</dt><dd>{sign}{value}</dd></div>;
}

const WIDE = 300;
const HIGH = 64;

function Chart({ name, unit, samples, lines, range, top }: {
  name: string;
  unit: (value: number) => string;
  samples: Sample[];
  lines: { of: (sample: Sample) => number | null; name?: string }[];
  range: number;
  top?: number;
}) {
  const values = samples.flatMap((sample) => lines.map((line) => line.of(sample))).filter((value) => value !== null);
  const most = top ?? Math.max(...values, 0) * 1.15;
  const until = samples.at(-1)?.at ?? 0;
  const x = (sample: Sample) => WIDE - ((until - sample.at) / range) * WIDE;
  const y = (value: number) => HIGH - 3 - (most > 0 ? value / most : 0) * (HIGH - 8);
  const path = (of: (sample: Sample) => number | null) => {
    let text = "";
    let isDown = false;
    for (const sample of samples) {
      const value = of(sample);
      if (value === null) { isDown = false; continue; }
      text += `${isDown ? "L" : "M"}${x(sample).toFixed(1)} ${y(value).toFixed(1)}`;
      // A single point is a short line.
      if (!isDown) text += "h.1";
      isDown = true;
    }
    return text;
  };
  const last = lines.map((line) => ({ name: line.name, value: samples.length ? line.of(samples[samples.length - 1] as Sample) : null }));
  const said = last.map((one) => `${one.name ? `${one.name} ` : ""}${one.value === null ? "none" : unit(one.value)}`).join(", ");
  return (
    <figure>
      <figcaption>{name} <b>{said}</b></figcaption>
      <svg viewBox={`0 0 ${WIDE} ${HIGH}`} preserveAspectRatio="none" role="img" aria-label={`${name}: ${said} now, at most ${unit(Math.max(...values, 0))} in ${span(range)}`}>
        <path class="base" d={`M0 ${HIGH - 3}H${WIDE}`} />
        {lines.map((line, index) => <path key={index} class={`series s${index}`} d={path(line.of)} />)}
      </svg>
      {values.length > 0 && <span class="most" aria-hidden="true">{unit(top ?? Math.max(...values))}</span>}
    </figure>
  );
}
