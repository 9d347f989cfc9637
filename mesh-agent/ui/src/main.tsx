// The page: what is shown, searched and chosen.
import { render } from "preact";
import { useEffect, useMemo, useState } from "preact/hooks";
import { type Agent, type Edge, edgeId, follow, type Health, type Picture, type Workload } from "./data";
import { Graph, LockSign, type Selection } from "./graph";
import { grouped, MOST_DRAWN, MOST_ROWS, namespaceOf } from "./group";
import { Badge, Denials, Panel } from "./panel";
import { bytes, edgeSpoken, HEALTH, number, percent, protection, span, time, WORST } from "./words";

type Tab = "map" | "list" | "denials" | "agents";
type Theme = "system" | "light" | "dark";

const RANGES = [["1 min", 60], ["5 min", 300], ["15 min", 900]] as const;
const NARROW = 700;

function App() {
  const [picture, setPicture] = useState<Picture | null>(null);
  const [isLive, setLive] = useState(false);
  const [isPaused, setPaused] = useState(false);
  const [tab, setTab] = useState<Tab>(() => (innerWidth < NARROW && location.hash !== "#map" ? "list" : "map"));
  const [search, setSearch] = useState("");
  const [namespace, setNamespace] = useState("");
  const [filter, setFilter] = useState<"all" | "active" | "trouble" | "plain">("all");
  const [range, setRange] = useState(300);
  const [selection, setSelection] = useState<Selection | null>(null);
  const [theme, setTheme] = useTheme();

  useEffect(() => (isPaused ? undefined : follow(setPicture, setLive)), [isPaused]);
  useEffect(() => {
    const key = (event: KeyboardEvent) => {
      const isTyping = event.target instanceof HTMLInputElement || event.target instanceof HTMLSelectElement;
      if (event.key === "Escape") {
        if (isTyping && search) setSearch("");
        else choose(null);
      } else if (event.key === "/" && !isTyping) {
        event.preventDefault();
        document.getElementById("search")?.focus();
      }
    };
    addEventListener("keydown", key);
    return () => removeEventListener("keydown", key);
  });
  // Who closes the details is where he was.
  const choose = (next: Selection | null) => {
    if (!next && selection) {
      const kind = selection.kind;
      const last = document.querySelector<HTMLElement>(`[data-${kind}="${CSS.escape(selection.id)}"]`);
      setTimeout(() => last?.focus?.({ preventScroll: true }));
    }
    setSelection(next);
  };

  const shown = useMemo(() => (picture ? narrowed(picture, namespace, filter, range) : null), [picture, namespace, filter, range]);
  const found = useMemo(() => (shown && search.trim() ? matches(shown, search) : null), [shown, search]);
  // What is searched may be in a group: then it is drawn by itself.
  const drawn = useMemo(() => (shown ? grouped(found && shown.workloads.length > MOST_DRAWN ? only(shown, found) : shown, namespace) : null), [shown, found, namespace]);
  const pick = (next: Selection | null) => {
    const ends = next?.id.split("→") ?? [];
    const inside = ends.map(namespaceOf).find((name) => name !== null && name !== namespace);
    if (inside) {
      setNamespace(inside);
      setSelection(null);
    } else if (!ends.some((end) => namespaceOf(end) !== null)) choose(next);
  };
  if (!picture || !shown || !drawn) return <p class="waiting" role="status">Asking the agents…</p>;

  const namespaces = [...new Set(picture.workloads.map((workload) => workload.namespace).filter(Boolean))].sort();
  const sick = picture.agents.filter((agent) => agent.health !== "good").length;
  const tabs: [Tab, string, number | null][] = [
    ["map", "Map", null],
    ["list", "List", null],
    ["denials", "Denials", picture.denials.length || null],
    ["agents", "Agents", sick || null],
  ];
  return (
    <div class={`app ${selection ? "has-panel" : ""}`}>
      <header class="top">
        <h1><img src="/icon.svg" alt="" width="22" height="22" /> Nodemesh</h1>
        <Totals picture={picture} />
        <span class={`live ${isLive && !isPaused ? "" : "off"}`} role="status">
          {isPaused ? "❚❚ paused" : isLive ? "● live" : "○ no answer"}
        </span>
        <button type="button" onClick={() => setPaused(!isPaused)}>{isPaused ? "Go on" : "Pause"}</button>
        <label class="theme"><span class="unseen">Colours</span>
          <select value={theme} onChange={(event) => setTheme(event.currentTarget.value as Theme)} aria-label="Colours">
            <option value="system">Colours: system</option><option value="light">Light</option><option value="dark">Dark</option>
          </select>
        </label>
      </header>
      <nav class="bar" aria-label="Views and filters">
        <div class="tabs" role="tablist">
          {tabs.map(([id, name, count]) => (
            <button key={id} type="button" role="tab" id={`tab-${id}`} aria-selected={tab === id} aria-controls="view" class={tab === id ? "on" : ""} onClick={() => setTab(id)}>
              {name}{count !== null && <span class="count">{count}</span>}
            </button>
          ))}
        </div>
        <input id="search" type="search" placeholder="Search ( / )" aria-label="Search workloads, namespaces, identities" value={search} onInput={(event) => setSearch(event.currentTarget.value)} />
        <select aria-label="Namespace" value={namespace} onChange={(event) => setNamespace(event.currentTarget.value)}>
          <option value="">All namespaces</option>
          {namespaces.map((name) => <option key={name}>{name}</option>)}
        </select>
        <select aria-label="Which edges" value={filter} onChange={(event) => setFilter(event.currentTarget.value as typeof filter)}>
          <option value="all">All edges</option>
          <option value="active">Active in the time range</option>
          <option value="trouble">In trouble</option>
          <option value="plain">Not protected</option>
        </select>
        <select aria-label="Time range" value={range} onChange={(event) => setRange(Number(event.currentTarget.value))}>
          {RANGES.map(([name, seconds]) => <option key={seconds} value={seconds}>Last {name}</option>)}
        </select>
      </nav>
      <div class="notices">
        {picture.trouble && <p class="notice">Services, routes and policies are not known: {picture.trouble}</p>}
        {picture.overflowed > 0 && <p class="notice">{picture.overflowed} edges more are shown as one, <code>other</code>.</p>}
        {picture.omitted > 0 && <p class="notice">{picture.omitted} workloads more are not shown: nobody talks to them now.</p>}
        {tab === "map" && drawn.isGrouped && (
          <p class="notice">
            {shown.workloads.length} workloads are more than one picture has room for: a namespace is one, and a click opens it.{" "}
            {namespace && <button type="button" onClick={() => setNamespace("")}>All namespaces</button>}
          </p>
        )}
      </div>
      <main id="view" role="tabpanel" aria-labelledby={`tab-${tab}`}>
        {tab === "map" && (shown.workloads.length === 0
          ? <p class="waiting">Nothing to show: no pods, or the filters leave none.</p>
          : <Graph workloads={drawn.workloads} edges={drawn.edges} found={drawn.isGrouped ? null : found} selection={selection} select={pick} />)}
        {tab === "list" && <List workloads={shown.workloads} edges={shown.edges} found={found} select={choose} />}
        {tab === "denials" && <div class="page"><h2>Who was refused</h2><Denials denials={picture.denials.filter((one) => !found || found.has(one.from) || found.has(one.to))} /></div>}
        {tab === "agents" && <Agents agents={picture.agents} />}
        {tab === "map" && <Legend />}
      </main>
      {selection && <Panel selection={selection} at={picture.at} range={range} select={choose} />}
    </div>
  );
}

function Totals({ picture }: { picture: Picture }) {
  const sum = (of: (edge: Edge) => number) => picture.edges.reduce((total, edge) => total + of(edge), 0);
  const requests = sum((edge) => edge.requestsPerSecond);
  const good = sum((edge) => edge.requestsPerSecond * (edge.success ?? 0));
  const open = picture.edges.filter((edge) => !edge.proved && Object.keys(edge.transports).length > 0).length;
  const well = picture.agents.filter((agent) => agent.health === "good").length;
  const failing = picture.edges.filter((edge) => edge.health === "bad").length;
  return (
    <dl class="totals">
      <div><dt>requests</dt><dd>{number(requests)}/s</dd></div>
      <div><dt>success</dt><dd>{requests > 0 ? percent(good / requests) : "–"}</dd></div>
      <div><dt>failing edges</dt><dd class={failing ? "bad" : ""}>{failing}</dd></div>
      <div><dt>unprotected</dt><dd class={open ? "warning" : ""}>{open} of {picture.edges.length}</dd></div>
      <div><dt>agents well</dt><dd class={well < picture.agents.length ? "bad" : ""}>{well}/{picture.agents.length}</dd></div>
    </dl>
  );
}

function Legend() {
  return (
    <ul class="legend" aria-label="Signs">
      {WORST.map((health) => <li key={health}><Badge health={health} /></li>)}
      <li><svg width="26" height="10" aria-hidden="true"><path class="dash" d="M0 5H26" /></svg> not protected</li>
    </ul>
  );
}

/** The same as the graph, for whoever reads by lines. */
function List({ workloads, edges, found, select }: { workloads: Workload[]; edges: Edge[]; found: Set<string> | null; select: (selection: Selection) => void }) {
  const worst = (one: { health: Health }) => WORST.indexOf(one.health);
  const rows = edges.filter((edge) => !found || found.has(edge.from) || found.has(edge.to));
  rows.sort((one, other) => worst(one) - worst(other) || other.requestsPerSecond - one.requestsPerSecond || edgeId(one).localeCompare(edgeId(other)));
  const own = workloads.filter((workload) => !found || found.has(workload.id));
  own.sort((one, other) => worst(one) - worst(other) || one.id.localeCompare(other.id));
  return (
    <div class="page">
      <h2>Who talks to whom <span class="muted">{rows.length}</span></h2>
      <div class="table">
        <table>
          <thead><tr><th scope="col">State</th><th scope="col">From</th><th scope="col">To</th><th scope="col">Requests</th><th scope="col">Success</th><th scope="col">p50</th><th scope="col">p99</th><th scope="col">Open</th><th scope="col">Bytes</th><th scope="col">Protection</th></tr></thead>
          <tbody>
            {rows.slice(0, MOST_ROWS).map((edge) => {
              const id = edgeId(edge);
              return (
                <tr key={id} data-health={edge.health} onClick={() => select({ kind: "edge", id })}>
                  <td><Badge health={edge.health} /></td>
                  <td><button type="button" data-edge={id} aria-label={edgeSpoken(edge)} onClick={(event) => { event.stopPropagation(); select({ kind: "edge", id }); }}>{edge.from}</button></td>
                  <td data-label="to">{edge.to}</td>
                  <td data-label="requests">{edge.requests > 0 ? `${number(edge.requestsPerSecond)}/s` : "–"}</td>
                  <td data-label="success">{percent(edge.success)}</td>
                  <td data-label="p50">{time(edge.p50)}</td>
                  <td data-label="p99">{time(edge.p99)}</td>
                  <td data-label="open">{edge.open}</td>
                  <td data-label="bytes">{bytes(edge.sentPerSecond + edge.receivedPerSecond)}/s</td>
                  <td data-label="protection"><LockSign isClosed={edge.proved} />{protection(edge)}</td>
                </tr>
              );
            })}
          </tbody>
        </table>
      </div>
      <More count={rows.length} />
      <h2>Workloads <span class="muted">{own.length}</span></h2>
      <div class="table">
        <table>
          <thead><tr><th scope="col">State</th><th scope="col">Workload</th><th scope="col">Pods</th><th scope="col">Captured</th><th scope="col">Certificate ends in</th><th scope="col">Trouble</th></tr></thead>
          <tbody>
            {own.slice(0, MOST_ROWS).map((workload) => (
              <tr key={workload.id} onClick={() => select({ kind: "workload", id: workload.id })}>
                <td><Badge health={workload.health} /></td>
                <td><button type="button" data-workload={workload.id} onClick={(event) => { event.stopPropagation(); select({ kind: "workload", id: workload.id }); }}>{workload.id}</button></td>
                <td data-label="pods">{workload.pods}</td>
                <td data-label="captured">{workload.captured}/{workload.enrolled}</td>
                <td data-label="certificate">{workload.certificateLeft === null ? "–" : span(workload.certificateLeft)}</td>
                <td>{workload.why.join("; ")}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      <More count={own.length} />
    </div>
  );
}

const More = ({ count }: { count: number }) =>
  count > MOST_ROWS ? <p class="muted">The first {MOST_ROWS}, the worst first; a search or a filter has the others.</p> : null;

function Agents({ agents }: { agents: Agent[] }) {
  return (
    <div class="page">
      <h2>Agents</h2>
      <div class="table">
        <table>
          <thead><tr><th scope="col">State</th><th scope="col">Node</th><th scope="col">Version</th><th scope="col">Pods</th><th scope="col">Captured</th><th scope="col">Certificates</th><th scope="col">Configuration</th><th scope="col">Connections</th><th scope="col">Up</th><th scope="col">Trouble</th></tr></thead>
          <tbody>
            {agents.map((agent) => (
              <tr key={agent.node + (agent.pod ?? "")}>
                <td><Badge health={agent.health} /></td>
                <td><b>{agent.node}</b>{agent.pod && <div class="muted">{agent.pod}</div>}</td>
                <td data-label="version">{agent.version ?? "–"}</td>
                <td data-label="pods">{agent.pods}</td>
                <td data-label="captured">{agent.captured}/{agent.enrolled}</td>
                <td data-label="certificates">{agent.certificatesInForce}/{agent.certificates}</td>
                <td data-label="configuration">{agent.configAge === null ? "–" : `${span(agent.configAge)} old`}</td>
                <td data-label="connections">{agent.connections}</td>
                <td data-label="up">{agent.started === null ? "–" : span(Date.now() / 1000 - agent.started)}</td>
                <td>{agent.why.join("; ")}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </div>
  );
}

function narrowed(picture: Picture, namespace: string, filter: string, range: number) {
  const home = new Map(picture.workloads.map((workload) => [workload.id, workload.namespace]));
  const is = (edge: Edge) => {
    if (namespace && home.get(edge.from) !== namespace && home.get(edge.to) !== namespace) return false;
    if (filter === "active") return edge.open > 0 || (edge.active !== null && edge.active > picture.at - range);
    if (filter === "trouble") return HEALTH[edge.health].word !== "healthy" && edge.health !== "idle";
    if (filter === "plain") return !edge.proved && Object.keys(edge.transports).length > 0;
    return true;
  };
  const edges = picture.edges.filter(is);
  const named = new Set(edges.flatMap((edge) => [edge.from, edge.to]));
  const workloads = picture.workloads.filter((workload) => named.has(workload.id) || (filter === "all" && (!namespace || workload.namespace === namespace)));
  return { workloads, edges };
}

/** What a search found, and whom it talks to. */
function only({ workloads, edges }: { workloads: Workload[]; edges: Edge[] }, found: Set<string>) {
  const near = edges.filter((edge) => found.has(edge.from) || found.has(edge.to));
  const named = new Set(near.flatMap((edge) => [edge.from, edge.to]));
  return { workloads: workloads.filter((workload) => found.has(workload.id) || named.has(workload.id)), edges: near };
}

function matches({ workloads }: { workloads: Workload[] }, search: string): Set<string> {
  const words = search.toLowerCase().split(/\s+/).filter(Boolean);
  const text = (workload: Workload) => `${workload.id} ${workload.identity ?? ""} ${HEALTH[workload.health].word}`.toLowerCase();
  return new Set(workloads.filter((workload) => words.every((word) => text(workload).includes(word))).map((workload) => workload.id));
}

function useTheme(): [Theme, (theme: Theme) => void] {
  const [theme, setTheme] = useState<Theme>(() => (localStorage.getItem("theme") as Theme | null) ?? "system");
  useEffect(() => {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    localStorage.setItem("theme", theme);
  }, [theme]);
  return [theme, setTheme];
}

const root = document.getElementById("map");
if (root) render(<App />, root);
