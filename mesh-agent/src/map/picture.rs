//! What the page is told: a picture of all, and what is known of one edge or one workload. Pure; its JSON is an interface
//! between the page and whoever serves it, of the same version.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::history::{History, Now, Sample, Track, success};
use super::reading::{Edge, Party};
use super::world::{AgentFacts, Certificate, Pod, Service, Workload, World, account};
use crate::told::{Name, UNKNOWN, is_proof};

/// How many workloads are shown: all that an edge can name, and some more.
pub(super) const MOST_WORKLOADS: usize = 2500;
/// How many sentences say what is wrong with one.
pub(super) const MOST_REASONS: usize = 8;
/// How many refusals are shown.
pub(super) const MOST_DENIALS: usize = 200;

/// How many requests of a hundred may fail before an edge is called failing.
pub(super) const FAILING_PERCENT: u32 = 5;
/// The age of a world from which an agent is not well.
pub(super) const OLD_CONFIG: Duration = Duration::from_secs(60);
/// A certificate with less than one such part of its life left is late: it is renewed at half.
pub(super) const LATE_PART: u32 = 4;

/// How something is, in a word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Nothing moves.
    #[default]
    Idle,
    /// As it should be.
    Good,
    /// Somebody should look.
    Warning,
    /// Policy refuses, and nothing else fails.
    Denied,
    /// It does not work.
    Bad,
}

/// All, as it is now.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Picture {
    /// Unix time.
    at: f64,
    /// Seconds that rates are of.
    window: f64,
    agents: Vec<AgentSeen>,
    workloads: Vec<WorkloadSeen>,
    /// Workloads that are left out: nobody talks to them, and there are too many.
    omitted: usize,
    edges: Vec<EdgeSeen>,
    denials: Vec<DenialSeen>,
    /// Edges that are told as one, or not at all, because there are too many.
    overflowed: u64,
    /// Why Services, routes and policies are not known, if so.
    trouble: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct AgentSeen {
    node: String,
    pod: Option<String>,
    health: Health,
    /// What is wrong, a sentence each.
    why: Vec<String>,
    version: Option<String>,
    /// Unix time.
    started: Option<f64>,
    pods: usize,
    enrolled: usize,
    captured: usize,
    certificates: usize,
    certificates_in_force: usize,
    config_age: Option<f64>,
    connections: u64,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct WorkloadSeen {
    id: String,
    namespace: String,
    name: String,
    /// `workload`, `service`, `unknown` or `other`
    kind: &'static str,
    health: Health,
    why: Vec<String>,
    identity: Option<String>,
    pods: usize,
    enrolled: usize,
    captured: usize,
    /// Seconds, of the certificate that ends first.
    certificate_left: Option<f64>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct EdgeSeen {
    from: String,
    to: String,
    health: Health,
    why: Vec<String>,
    /// Whether both ends' identities are proved, whatever way its connections go.
    proved: bool,
    /// Connections that were opened ever, by how they are carried.
    transports: BTreeMap<String, u64>,
    requests_per_second: f64,
    success: Option<f64>,
    p50: Option<f64>,
    p99: Option<f64>,
    denied_per_second: f64,
    opened_per_second: f64,
    failed_per_second: f64,
    open: u64,
    sent_per_second: f64,
    received_per_second: f64,
    /// Since the agents started.
    requests: u64,
    opened: u64,
    /// Unix time at which something moved last.
    active: Option<f64>,
}

/// What an agent told of a refusal, and by which edge it is shown.
#[derive(Clone, Debug, Serialize)]
pub struct DenialSeen {
    node: String,
    from: String,
    to: String,
    #[serde(flatten)]
    denial: Value,
}

/// One edge, looked at.
#[derive(Debug, Serialize)]
pub struct EdgeDetail<'a> {
    edge: EdgeSeen,
    history: Vec<Sample>,
    flows: Vec<Value>,
    /// Why there are no flows, if they could not be asked.
    #[serde(rename = "flowsTrouble")]
    flows_trouble: Option<&'a str>,
    /// How many connections each policy has let through or refused, of those that are known.
    deciding: Vec<Deciding>,
    /// The policy before the pods that are called.
    policies: Vec<&'a Value>,
    denials: Vec<&'a DenialSeen>,
}

/// A policy that has decided something that is known.
#[derive(Debug, Serialize)]
struct Deciding {
    /// `namespace/name`; nothing where none had to be named.
    policy: Option<String>,
    rule: Option<u64>,
    /// `allowed` or the word of a refusal.
    decision: String,
    reason: Option<String>,
    count: u64,
}

/// One workload, looked at.
#[derive(Debug, Serialize)]
pub struct WorkloadDetail<'a> {
    workload: WorkloadSeen,
    pods: &'a [Pod],
    certificates: &'a [Certificate],
    services: Vec<&'a Service>,
    routes: Vec<&'a Value>,
    calls: Vec<EdgeSeen>,
    called: Vec<EdgeSeen>,
    denials: Vec<&'a DenialSeen>,
}

impl Picture {
    /// Of what is known now. `unread` edges were told by nobody to whom this is.
    pub fn new(at: f64, world: &World, history: &History, denials: &[DenialSeen], unread: u64) -> Self {
        let edges: Vec<EdgeSeen> = history.tracks().map(|(edge, track)| EdgeSeen::new(edge, track)).collect();
        let shown = edges.into_iter().filter(EdgeSeen::is_worth).collect::<Vec<_>>();
        let parties: BTreeMap<String, &Party> =
            history.tracks().flat_map(|((from, to), _)| [(from.id(), from), (to.id(), to)]).collect();
        let around = around(&shown);
        let near = |id: &str| around.get(id).map(Vec::as_slice).unwrap_or_default();
        let mut workloads: Vec<WorkloadSeen> =
            world.workloads.iter().map(|(id, workload)| WorkloadSeen::of(id, workload, near(id))).collect();
        let others = around.keys().filter(|id| !world.workloads.contains_key(**id));
        let others = others.filter_map(|id| parties.get(*id).map(|party| WorkloadSeen::stranger(party, near(id))));
        workloads.extend(others);
        let omitted = workloads.len().saturating_sub(MOST_WORKLOADS);
        if omitted > 0 {
            // An edge leads to somebody; then what somebody should look at.
            workloads
                .sort_by_cached_key(|one| (!around.contains_key(one.id.as_str()), Reverse(one.health), one.id.clone()));
            workloads.truncate(MOST_WORKLOADS);
            workloads.sort_by(|one, other| one.id.cmp(&other.id));
        }
        Self {
            at,
            window: super::history::WINDOW.as_secs_f64(),
            agents: world.agents.iter().map(|(name, facts)| AgentSeen::new(name, facts)).collect(),
            workloads,
            omitted,
            denials: denials.to_vec(),
            edges: shown,
            overflowed: history.overflowed().saturating_add(unread),
            trouble: world.trouble.clone(),
        }
    }
}

/// The edges of each workload, from it or to it.
fn around(edges: &[EdgeSeen]) -> BTreeMap<&str, Vec<&EdgeSeen>> {
    let mut around = BTreeMap::<&str, Vec<&EdgeSeen>>::new();
    for edge in edges {
        around.entry(&edge.from).or_default().push(edge);
        if edge.from != edge.to {
            around.entry(&edge.to).or_default().push(edge);
        }
    }
    around
}

/// The first of what is wrong, and how much more there is.
fn shortened(mut why: Vec<String>) -> Vec<String> {
    let more = why.len().saturating_sub(MOST_REASONS);
    if more > 0 {
        why.truncate(MOST_REASONS);
        why.push(format!("and {more} more"));
    }
    why
}

/// What agents told of refusals, the newest first.
pub fn denials(told: Vec<(Name, Vec<Value>)>, world: &World) -> Vec<DenialSeen> {
    let party = |denial: &Value, side: &str| {
        let identity = denial.get(format!("{side}Identity")).and_then(Value::as_str);
        identity.and_then(account).or_else(|| {
            let service = denial.get("service").and_then(Value::as_str).filter(|_| side == "destination")?;
            Some(world.shown(&Party::Service(service.to_string())).id())
        })
    };
    let seen = |name: &Name, denial: Value| DenialSeen {
        node: world
            .agents
            .get(name)
            .and_then(|facts| facts.as_ref().ok())
            .map_or(&name.node, |facts| &facts.agent.node)
            .clone(),
        from: party(&denial, "source").unwrap_or_else(|| UNKNOWN.to_string()),
        to: party(&denial, "destination").unwrap_or_else(|| UNKNOWN.to_string()),
        denial,
    };
    let each = told.into_iter().flat_map(|(name, denials)| denials.into_iter().map(move |one| (name.clone(), one)));
    let mut all: Vec<DenialSeen> = each.map(|(name, denial)| seen(&name, denial)).collect();
    let last = |one: &DenialSeen| one.denial.get("last").and_then(Value::as_f64).unwrap_or_default();
    all.sort_by(|one, other| last(other).total_cmp(&last(one)));
    all.truncate(MOST_DENIALS);
    all
}

impl EdgeSeen {
    fn new((from, to): &Edge, track: &Track) -> Self {
        let Now { seconds, counts } = track.now();
        let ever = track.ever.believed(&track.ever);
        let rate = |count: u64| count as f64 / seconds;
        let (health, why) = health(&counts, seconds);
        Self {
            from: from.id(),
            to: to.id(),
            health,
            why,
            proved: !ever.transports.is_empty() && ever.transports.keys().all(|transport| is_proof(transport)),
            requests_per_second: rate(counts.requests.count),
            success: success(&counts),
            p50: counts.requests.quantile(0.5),
            p99: counts.requests.quantile(0.99),
            denied_per_second: rate(counts.denied.saturating_add(counts.requests.denied)),
            opened_per_second: rate(counts.connections.opened),
            failed_per_second: rate(counts.failed),
            open: counts.connections.open,
            sent_per_second: rate(counts.connections.sent_bytes),
            received_per_second: rate(counts.connections.received_bytes),
            requests: ever.requests.count,
            opened: ever.connections.opened,
            active: track.active,
            transports: ever.transports,
        }
    }

    /// Whether anything was ever carried, or tried.
    fn is_worth(&self) -> bool {
        self.requests > 0 || self.opened > 0 || self.health != Health::Idle || self.active.is_some()
    }
}

fn health(counts: &super::reading::Counts, seconds: f64) -> (Health, Vec<String>) {
    let mut why = Vec::new();
    let mut worst = Health::Idle;
    let mut say = |health: Health, words: String| {
        worst = worst.max(health);
        why.push(words);
    };
    let requests = &counts.requests;
    let denied = counts.denied.saturating_add(requests.denied);
    if denied > 0 {
        say(Health::Denied, format!("policy refused {denied} in {seconds:.0} s"));
    }
    if requests.failed > 0 {
        let part = requests.failed as f64 / requests.count.max(1) as f64;
        // What policy refuses a connection for is a failed request to its caller.
        let is_refused = counts.denied > 0;
        let health = match part {
            _ if is_refused => Health::Denied,
            part if is_failing(part) => Health::Bad,
            _ => Health::Warning,
        };
        say(health, format!("{} of {} requests failed in {seconds:.0} s", requests.failed, requests.count));
    }
    let tried = counts.failed.saturating_add(counts.connections.opened);
    if counts.failed > 0 && requests.failed == 0 {
        let is_most = is_failing(counts.failed as f64 / tried as f64);
        let health = match is_most {
            _ if counts.denied > 0 => Health::Denied,
            true => Health::Bad,
            false => Health::Warning,
        };
        say(health, format!("{} of {tried} connections failed in {seconds:.0} s", counts.failed));
    }
    let connections = counts.connections;
    let moved = requests.count + connections.opened + connections.sent_bytes + connections.received_bytes > 0;
    if worst == Health::Idle && (moved || connections.open > 0) {
        worst = Health::Good;
    }
    (worst, why)
}

fn is_failing(part: f64) -> bool {
    part * 100.0 >= f64::from(FAILING_PERCENT)
}

impl WorkloadSeen {
    fn of(id: &str, workload: &Workload, edges: &[&EdgeSeen]) -> Self {
        let (namespace, name) = id.split_once('/').unwrap_or(("", id));
        let (mut health, mut why) = (Health::Idle, Vec::new());
        let mut say = |worse: Health, words: String| {
            health = health.max(worse);
            why.push(words);
        };
        for Pod { node: _, entry } in &workload.pods {
            if let Some(reason) = entry.not_captured.as_ref().filter(|_| entry.captured == Some(false)) {
                say(Health::Bad, format!("{} is not captured: {reason}", entry.name));
            }
            if let Some(reason) = &entry.refusal {
                say(Health::Warning, format!("{} is not in the mesh: {reason}", entry.name));
            }
        }
        let enrolled = workload.pods.iter().filter(|pod| pod.entry.enrolled).count();
        for Certificate { node, entry, root_entry: _ } in &workload.certificates {
            if !entry.is_in_force() && enrolled > 0 {
                let reason = entry.last_error.as_deref().unwrap_or("none was issued yet");
                say(Health::Bad, format!("no certificate in force on {node}: {reason}"));
            } else if is_late(entry.issued, entry.not_after, entry.seconds_left) {
                say(Health::Warning, format!("its certificate on {node} is late to be renewed"));
            }
        }
        called(id, edges, &mut say);
        let left = workload.certificates.iter().filter_map(|one| one.entry.seconds_left);
        let mut seen = Self {
            id: id.to_string(),
            namespace: namespace.to_string(),
            name: name.to_string(),
            kind: "workload",
            health,
            why: shortened(why),
            identity: Some(workload.identity.clone()),
            pods: workload.pods.len(),
            enrolled,
            captured: workload.pods.iter().filter(|pod| pod.entry.captured == Some(true)).count(),
            certificate_left: left.reduce(f64::min),
        };
        seen.settle(edges);
        seen
    }

    /// Of whom no agent has a pod.
    fn stranger(party: &Party, edges: &[&EdgeSeen]) -> Self {
        let (kind, name) = match party {
            Party::Account(name) => ("workload", name.as_str()),
            Party::Service(name) => ("service", name.as_str()),
            Party::Unknown => ("unknown", "unknown"),
            Party::Other => ("other", "other"),
        };
        let (namespace, name) = name.split_once('/').unwrap_or(("", name));
        let mut seen =
            Self { id: party.id(), namespace: namespace.to_string(), name: name.to_string(), kind, ..Self::default() };
        let (mut health, mut why) = (Health::Idle, Vec::new());
        called(&seen.id, edges, &mut |worse, words| {
            health = health.max(worse);
            why.push(words);
        });
        (seen.health, seen.why) = (health, shortened(why));
        seen.settle(edges);
        seen
    }

    /// Good is what something reaches.
    fn settle(&mut self, edges: &[&EdgeSeen]) {
        if self.health == Health::Idle && edges.iter().any(|edge| edge.health != Health::Idle) {
            self.health = Health::Good;
        }
    }
}

/// What fails at whoever is called is its own affair first. The edges are its own.
fn called(id: &str, edges: &[&EdgeSeen], say: &mut impl FnMut(Health, String)) {
    for edge in edges.iter().filter(|edge| edge.to == id && edge.health == Health::Bad) {
        say(Health::Bad, format!("from {}: {}", edge.from, edge.why.join("; ")));
    }
    for edge in edges.iter().filter(|edge| edge.to == id && edge.health == Health::Warning) {
        say(Health::Warning, format!("from {}: {}", edge.from, edge.why.join("; ")));
    }
}

fn is_late(issued: Option<f64>, not_after: Option<f64>, left: Option<f64>) -> bool {
    let (Some(issued), Some(not_after), Some(left)) = (issued, not_after, left) else { return false };
    left < (not_after - issued) / f64::from(LATE_PART)
}

impl AgentSeen {
    fn new(name: &Name, facts: &Result<AgentFacts, String>) -> Self {
        let blank = Self {
            node: name.node.clone(),
            pod: name.pod.clone(),
            health: Health::Bad,
            why: Vec::new(),
            version: None,
            started: None,
            pods: 0,
            enrolled: 0,
            captured: 0,
            certificates: 0,
            certificates_in_force: 0,
            config_age: None,
            connections: 0,
        };
        let AgentFacts { agent, discovery, authority, pods, certificates } = match facts {
            Ok(facts) => facts,
            Err(error) => return Self { why: vec![format!("does not answer: {error}")], ..blank },
        };
        let (mut health, mut why) = (Health::Good, Vec::new());
        let mut say = |worse: Health, words: String| {
            health = health.max(worse);
            why.push(words);
        };
        for (gate, reason) in &agent.not_ready {
            say(Health::Bad, format!("not ready, {gate}: {reason}"));
        }
        let age = discovery.as_ref().and_then(|discovery| discovery.age_seconds);
        if let Some(age) = age.filter(|age| *age > OLD_CONFIG.as_secs_f64()) {
            say(Health::Warning, format!("its configuration is {age:.0} s old"));
        }
        let health_of_world = discovery.as_ref().map(|discovery| &discovery.health);
        if let Some(reason) = health_of_world.and_then(|health| health.unreachable.as_ref()) {
            say(Health::Warning, format!("the source of its configuration: {reason}"));
        }
        if let Some(findings) = health_of_world.map(|health| health.findings.len()).filter(|count| *count > 0) {
            say(Health::Warning, format!("{findings} findings in objects; meshctl config validate has them"));
        }
        if let Some(trouble) = authority {
            say(Health::Bad, format!("certificates: {trouble}"));
        }
        Self {
            node: agent.node.clone(),
            health,
            why: shortened(why),
            version: Some(agent.version.clone()),
            started: Some(agent.started),
            pods: pods.0,
            enrolled: pods.1,
            captured: pods.2,
            certificates: certificates.1,
            certificates_in_force: certificates.0,
            config_age: age,
            connections: agent.connections_by_worker.iter().sum(),
            ..blank
        }
    }
}

/// What is known of an edge. None: there is none.
pub fn edge<'a>(
    from: &str,
    to: &str,
    (world, history, denials): (&'a World, &History, &'a [DenialSeen]),
    flows: Result<&[Value], &'a str>,
) -> Option<EdgeDetail<'a>> {
    let (edge, track) = history.track(from, to)?;
    let own: Vec<Value> = flows.unwrap_or_default().iter().filter(|flow| is_between(flow, from, to)).cloned().collect();
    let denials: Vec<&DenialSeen> = denials.iter().filter(|one| one.from == from && one.to == to).collect();
    let policies = world.workloads.get(to).map(|workload| workload.pods.as_slice()).unwrap_or_default();
    let mut policies: Vec<&Value> = policies.iter().map(|pod| &pod.entry.policy).filter(|one| !one.is_null()).collect();
    policies.dedup();
    Some(EdgeDetail {
        deciding: deciding(&own, &denials),
        edge: EdgeSeen::new(edge, track),
        history: track.samples.iter().copied().collect(),
        flows: own.into_iter().take(super::keeper::MOST_FLOWS).collect(),
        flows_trouble: flows.err(),
        policies,
        denials,
    })
}

/// Whether a live connection is of an edge.
pub(super) fn is_between(flow: &Value, from: &str, to: &str) -> bool {
    let end = |side: &str| flow.get(side).and_then(|side| side.get("identity")).and_then(Value::as_str);
    let end = |side: &str| end(side).and_then(account).unwrap_or_else(|| UNKNOWN.to_string());
    end("source") == from && end("destination") == to
}

/// Of live connections, as the agents of those called tell them, and of refusals.
fn deciding(flows: &[Value], denials: &[&DenialSeen]) -> Vec<Deciding> {
    let mut counts = BTreeMap::<(Option<String>, Option<u64>, String, Option<String>), u64>::new();
    for flow in flows.iter().filter(|flow| flow.get("direction").and_then(Value::as_str) == Some("inbound")) {
        let policy = flow.get("rule").and_then(Value::as_str).map(str::to_string);
        *counts.entry((policy, None, "allowed".to_string(), None)).or_default() += 1;
    }
    for DenialSeen { denial, .. } in denials {
        let text = |name: &str| denial.get(name).and_then(Value::as_str).map(str::to_string);
        let rule = denial.get("rule").and_then(Value::as_u64);
        let count = denial.get("count").and_then(Value::as_u64).unwrap_or(1);
        *counts.entry((text("policy"), rule, text("result").unwrap_or_default(), text("reason"))).or_default() += count;
    }
    let one = |((policy, rule, decision, reason), count)| Deciding { policy, rule, decision, reason, count };
    counts.into_iter().map(one).collect()
}

/// What is known of a workload. None: there is none.
pub fn workload<'a>(
    id: &str,
    (world, history, denials): (&'a World, &History, &'a [DenialSeen]),
) -> Option<WorkloadDetail<'a>> {
    let edges: Vec<EdgeSeen> = history.tracks().map(|(edge, track)| EdgeSeen::new(edge, track)).collect();
    let known = world.workloads.get(id);
    let own: Vec<&EdgeSeen> = edges.iter().filter(|edge| edge.from == id || edge.to == id).collect();
    let seen = match known {
        Some(workload) => WorkloadSeen::of(id, workload, &own),
        None => {
            let parties = history.tracks().flat_map(|((from, to), _)| [from, to]);
            WorkloadSeen::stranger(parties.into_iter().find(|party| party.id() == id)?, &own)
        }
    };
    let named = |service: &Service| format!("{}/{}", service.namespace, service.name);
    let is_own = |service: &&Service| match known {
        Some(workload) => workload.services.contains(&named(service)),
        None => id == format!("service:{}", named(service)),
    };
    let services: Vec<&Service> = world.services.iter().filter(is_own).collect();
    let leads_here = |route: &&Value| {
        let parents = route.get("parents").and_then(Value::as_array);
        parents.into_iter().flatten().any(|parent| {
            let text = |name: &str| parent.get(name).and_then(Value::as_str).unwrap_or_default();
            services.iter().any(|service| service.namespace == text("namespace") && service.name == text("name"))
        })
    };
    let (calls, rest): (Vec<EdgeSeen>, Vec<EdgeSeen>) =
        edges.into_iter().filter(EdgeSeen::is_worth).partition(|edge| edge.from == id);
    Some(WorkloadDetail {
        workload: seen,
        pods: known.map(|workload| workload.pods.as_slice()).unwrap_or_default(),
        certificates: known.map(|workload| workload.certificates.as_slice()).unwrap_or_default(),
        routes: world.routes.iter().filter(leads_here).collect(),
        services,
        calls,
        called: rest.into_iter().filter(|edge| edge.to == id).collect(),
        denials: denials.iter().filter(|one| one.from == id || one.to == id).collect(),
    })
}
