//! What agents say of themselves, judged.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::super::reach::Between;
use super::super::status::{self, OLD_CONFIG};
use super::super::words;
use super::{Line, MAX_SKEW, Part, ROOT_SOON, some_of};
use crate::told::Told;
use crate::told::dump::{Dump, FindingEntry, IdentitiesSection, SvidEntry, WorkloadEntry};

/// The mesh, as its agents tell it.
pub struct Mesh {
    agents: Vec<Agent>,
    /// Node and why.
    silent: Vec<(String, String)>,
    /// By node: what its kernel has not, or why that was not told.
    kernels: Vec<(String, Result<Vec<Feature>, String>)>,
}

struct Agent {
    node: String,
    dump: Dump,
    /// How far its node's clock may be ahead of this machine's: at least, at most, in seconds.
    ahead: Option<(f64, f64)>,
}

/// A feature of a kernel, as `mesh-agent check --json` has it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Feature {
    name: String,
    required: bool,
    missing: Option<String>,
    matters: String,
}

impl Mesh {
    /// Of answers to [`crate::told::dump::PATH`], and of what kernels were said to be.
    pub fn new(told: Vec<(Told, Between)>, kernels: Vec<Told>) -> Self {
        let (mut agents, mut silent) = (Vec::new(), Vec::new());
        for (Told { name, answer }, between) in told {
            match answer.and_then(|answer| Dump::read(&answer)) {
                Ok(dump) => agents.push(Agent::new(name.node, between, dump)),
                Err(error) => silent.push((name.node, error)),
            }
        }
        let features = |answer: &[u8]| {
            let features: Vec<Feature> =
                serde_json::from_slice(answer).map_err(|error| format!("no list of features: {error}"))?;
            Ok(features.into_iter().filter(|feature| feature.missing.is_some()).collect())
        };
        let kernel = |told: Told| (told.name.node, told.answer.and_then(|answer| features(&answer)));
        Self { agents, silent, kernels: kernels.into_iter().map(kernel).collect() }
    }

    /// Whether any agent did.
    pub fn is_answered(&self) -> bool {
        !self.agents.is_empty()
    }

    /// A line for each thing.
    pub fn judge(&self) -> Vec<Line> {
        let mut lines = vec![self.answers()];
        if self.is_answered() {
            lines.extend([
                self.readiness(),
                self.versions(),
                self.sources(),
                self.findings(),
                self.capture(),
                self.certificates(),
                self.roots(),
                self.clocks(),
            ]);
        }
        lines.extend(self.kernels_judged());
        lines
    }

    fn answers(&self) -> Line {
        let name = "agents answer";
        if self.silent.is_empty() {
            return Line::ok(Part::Mesh, name, format!("all {}", self.agents.len()));
        }
        let silent: Vec<String> = self.silent.iter().map(|(node, error)| format!("{node}: {error}")).collect();
        let todo = "see the agents' pods and their logs: kubectl -n nodemesh-system get pods -o wide; kubectl logs. New \
                    connections of a node's meshed pods are refused while it has no agent";
        Line::failed(Part::Mesh, name, some_of(&silent), todo)
    }

    fn readiness(&self) -> Line {
        let name = "agents are ready";
        let closed = |agent: &Agent| {
            let gates = agent.dump.agent.as_ref().map(|section| section.not_ready.clone()).unwrap_or_default();
            let of_agent = gates.into_iter().filter(|(gate, _)| !gate.starts_with("pod/"));
            of_agent.map(|(gate, reason)| format!("{}: {gate}: {reason}", agent.node)).collect::<Vec<_>>()
        };
        let closed: Vec<String> = self.agents.iter().flat_map(closed).collect();
        match closed.is_empty() {
            true => Line::ok(Part::Mesh, name, "all that answer"),
            false => Line::failed(
                Part::Mesh,
                name,
                some_of(&closed),
                "the reason names what is waited for; the agent's log has more (docs/operations.md, Readiness)",
            ),
        }
    }

    fn versions(&self) -> Line {
        let name = "versions";
        let mut versions = BTreeMap::<&str, Vec<String>>::new();
        for agent in &self.agents {
            if let Ok(section) = &agent.dump.agent {
                versions.entry(&section.version).or_default().push(agent.node.clone());
            }
        }
        let own = env!("CARGO_PKG_VERSION");
        let told: Vec<String> =
            versions.iter().map(|(version, nodes)| format!("{version} on {}", some_of(nodes))).collect();
        match versions.keys().copied().collect::<Vec<_>>().as_slice() {
            [one] if *one == own => Line::ok(Part::Mesh, name, format!("{own}, meshctl's too")),
            [one] => Line::warning(
                Part::Mesh,
                name,
                format!("agents {one}, meshctl {own}"),
                "use the meshctl of the agents' version: what it does not know of the other is shown as unknown",
            ),
            _ => Line::warning(
                Part::Mesh,
                name,
                told.join("; "),
                "an upgrade is under way, or stopped: kubectl -n nodemesh-system rollout status daemonset/nodemesh-agent",
            ),
        }
    }

    /// Whether each knows the world as it is.
    fn sources(&self) -> Line {
        let name = "configuration is fresh";
        let mut wrong = Vec::new();
        let mut oldest = 0.0_f64;
        for agent in &self.agents {
            match &agent.dump.discovery {
                Err(error) => wrong.push(format!("{}: {error}", agent.node)),
                Ok(discovery) => {
                    let lists = discovery.health.watches.iter();
                    let stuck = lists.filter(|watch| !matches!(watch.state.as_str(), "following" | "notServed"));
                    wrong.extend(discovery.health.unreachable.iter().map(|why| format!("{}: {why}", agent.node)));
                    wrong.extend(stuck.map(|watch| {
                        let reason = watch.reason.as_deref().unwrap_or("no reason told");
                        format!("{}: {} is {}: {reason}", agent.node, watch.watch, watch.state)
                    }));
                    match discovery.age_seconds {
                        Some(age) => oldest = oldest.max(age),
                        None => wrong.push(format!("{}: nothing was read yet", agent.node)),
                    }
                }
            }
        }
        let todo = "connections go on by what was last known. See whether the node reaches the API server, and whether the \
                    ClusterRole nodemesh-agent is as manifests/base/rbac.yaml has it";
        match (wrong.is_empty(), oldest > OLD_CONFIG.as_secs_f64()) {
            (false, _) => Line::failed(Part::Mesh, name, some_of(&wrong), todo),
            (true, true) => Line::warning(Part::Mesh, name, format!("{} old", words::span(oldest)), todo),
            (true, false) => Line::ok(Part::Mesh, name, format!("{} old at most", words::span(oldest))),
        }
    }

    fn findings(&self) -> Line {
        let name = "objects are understood";
        let all: BTreeSet<&FindingEntry> = self
            .agents
            .iter()
            .filter_map(|agent| agent.dump.discovery.as_ref().ok())
            .flat_map(|discovery| &discovery.health.findings)
            .collect();
        let told: Vec<String> = all
            .iter()
            .map(|FindingEntry { kind, object, field, reason }| format!("{kind} {object} {field}: {reason}"))
            .collect();
        let objects = self.agents.iter().filter_map(|agent| agent.dump.discovery.as_ref().ok()?.health.objects).max();
        match told.is_empty() {
            true => Line::ok(Part::Mesh, name, format!("all {}", objects.unwrap_or_default())),
            false => Line::failed(
                Part::Mesh,
                name,
                some_of(&told),
                "put the objects right (an unreadable policy refuses what it selects); meshctl config validate PATH looks \
                 at YAML before an agent does",
            ),
        }
    }

    fn capture(&self) -> Line {
        let name = "pods are captured";
        let mut wrong: Vec<String> =
            self.agents.iter().filter_map(|agent| agent.dump.workloads.as_ref().err().cloned()).collect();
        let all = || self.agents.iter().filter_map(|agent| agent.dump.workloads.as_ref().ok()).flatten();
        wrong.extend(all().filter_map(not_captured));
        let meshed = all().filter(|workload| workload.enrolled).count();
        match (wrong.is_empty(), meshed) {
            (false, _) => Line::failed(
                Part::Mesh,
                name,
                some_of(&wrong),
                "the reason says why; a pod of the host's network cannot be in the mesh (label it \
                 nodemesh.dev/mesh=disabled), for others the agent's log has more",
            ),
            (true, 0) => Line::warning(
                Part::Mesh,
                name,
                "no pod asks for the mesh",
                "kubectl label namespace NAME nodemesh.dev/mesh=enabled",
            ),
            (true, meshed) => Line::ok(Part::Mesh, name, format!("all {meshed} that ask for it")),
        }
    }

    fn certificates(&self) -> Line {
        let name = "certificates";
        let (mut wrong, mut late, mut in_force) = (Vec::new(), Vec::new(), 0);
        let mut soonest: Option<f64> = None;
        for agent in &self.agents {
            match &agent.dump.identities {
                Err(error) => wrong.push(format!("{}: {error}", agent.node)),
                Ok(identities) => {
                    wrong.extend(identities.trouble.iter().map(|trouble| format!("{}: {trouble}", agent.node)));
                    let absent = identities.svids.iter().filter(|svid| !svid.is_in_force());
                    wrong.extend(absent.map(|svid| {
                        let why = svid.last_error.as_deref().unwrap_or("none was issued yet");
                        format!("{}: {} has none in force: {why}", agent.node, svid.id)
                    }));
                    let present: Vec<&SvidEntry> = identities.svids.iter().filter(|svid| svid.is_in_force()).collect();
                    in_force += present.len();
                    let ends = present.iter().filter_map(|svid| svid.seconds_left);
                    soonest = ends.chain(soonest).reduce(f64::min);
                    late.extend(present.iter().filter(|svid| status::is_late(svid)).map(|svid| {
                        let why = svid.last_error.as_deref().unwrap_or("it is not said why");
                        format!(
                            "{}: {} ends in {}: {why}",
                            agent.node,
                            svid.id,
                            words::span(svid.seconds_left.unwrap_or(0.0))
                        )
                    }));
                }
            }
        }
        let todo = "see whether the controller is ready and lets the agent have them: kubectl -n nodemesh-system logs \
                    deploy/nodemesh-controller (lines of target audit); without a certificate new connections are refused";
        match (wrong.is_empty(), late.is_empty()) {
            (false, _) => Line::failed(Part::Mesh, name, some_of(&wrong), todo),
            (true, false) => Line::warning(Part::Mesh, name, some_of(&late), todo),
            (true, true) => {
                let ends =
                    soonest.map_or_else(String::new, |left| format!(", the first ends in {}", words::span(left)));
                Line::ok(Part::Mesh, name, format!("{in_force} in force{ends}"))
            }
        }
    }

    fn roots(&self) -> Line {
        let name = "roots";
        let read = || self.agents.iter().filter_map(|agent| Some((agent, agent.dump.identities.as_ref().ok()?)));
        let mut signers = BTreeMap::<&str, f64>::new();
        let mut strangers = Vec::new();
        let trusted: Vec<(&str, BTreeSet<&str>)> =
            read().map(|(agent, known)| (agent.node.as_str(), names(known))).collect();
        for (_, identities) in read() {
            for root in identities.roots.iter().filter(|root| root.signs) {
                signers.insert(&root.root, root.not_after);
            }
        }
        for (node, roots) in &trusted {
            let unknown = signers.keys().filter(|signer| !roots.contains(**signer));
            strangers
                .extend(unknown.map(|signer| format!("{node} does not trust root {signer}, which signs elsewhere")));
        }
        let clock = self.agents.iter().find_map(|agent| agent.dump.agent.as_ref().ok()?.now);
        let now = clock.unwrap_or_else(super::super::reach::now);
        let soonest = signers
            .iter()
            .map(|(root, end)| (*root, end - now))
            .reduce(|one, other| if other.1 < one.1 { other } else { one });
        if !strangers.is_empty() {
            let todo = "peers under that root are refused there. Agents of one mesh need one authority: look at --ca and \
                        --ca-roots of both, or wait where a root is being replaced (mesh-agent ca status)";
            return Line::failed(Part::Mesh, name, some_of(&strangers), todo);
        }
        let todo = "replace it: mesh-agent ca rotate (docs/operations.md, Replace the root)";
        match soonest {
            None => Line::warning(
                Part::Mesh,
                name,
                "none signs",
                "the controller makes one, or Secret nodemesh-ca brings it",
            ),
            Some((root, left)) if left <= 0.0 => Line::failed(Part::Mesh, name, format!("{root} has ended"), todo),
            Some((root, left)) if left < ROOT_SOON.as_secs_f64() => {
                Line::warning(Part::Mesh, name, format!("{root} ends in {}", words::span(left)), todo)
            }
            Some((_, left)) => Line::ok(Part::Mesh, name, format!("the one that signs ends in {}", words::span(left))),
        }
    }

    /// Whether the clocks of the nodes agree, as far as the time that answers took lets see.
    fn clocks(&self) -> Line {
        let name = "clocks";
        let told: Vec<(&str, (f64, f64))> =
            self.agents.iter().filter_map(|agent| Some((agent.node.as_str(), agent.ahead?))).collect();
        let Some((last, (_, most_behind))) =
            told.iter().copied().reduce(|one, other| if other.1.1 < one.1.1 { other } else { one })
        else {
            return Line::unknown(Part::Mesh, name, "no agent says its time", None);
        };
        let Some((first, (least_ahead, _))) =
            told.iter().copied().reduce(|one, other| if other.1.0 > one.1.0 { other } else { one })
        else {
            return Line::unknown(Part::Mesh, name, "no agent says its time", None);
        };
        let apart = least_ahead - most_behind;
        if apart > MAX_SKEW.as_secs_f64() {
            let found = format!("{first} is at least {} ahead of {last}", words::span(apart));
            let todo = "set the nodes' clocks by one source (chrony, systemd-timesyncd): certificates begin a minute early, and \
                        one that is not valid yet is refused";
            return Line::failed(Part::Mesh, name, found, todo);
        }
        Line::ok(
            Part::Mesh,
            name,
            format!("of {} nodes, not more than {} apart", told.len(), words::span(apart.max(1.0))),
        )
    }

    fn kernels_judged(&self) -> Option<Line> {
        let name = "kernels";
        if self.kernels.is_empty() {
            return None;
        }
        let (mut missing, mut optional, mut unseen) = (Vec::new(), Vec::new(), Vec::new());
        for (node, told) in &self.kernels {
            match told {
                Err(error) => unseen.push(format!("{node}: {error}")),
                Ok(features) => {
                    for Feature { name, required, missing: reason, matters } in features {
                        let reason = reason.as_deref().unwrap_or_default();
                        let line = format!("{node}: {name}: {reason} ({matters})");
                        if *required { missing.push(line) } else { optional.push(line) }
                    }
                }
            }
        }
        Some(match (missing.is_empty(), optional.is_empty(), unseen.is_empty()) {
            (false, _, _) => Line::failed(
                Part::Mesh,
                name,
                some_of(&missing),
                "the mesh does not work on these nodes; docs/kubernetes.md has what it needs",
            ),
            (true, _, false) => {
                Line::unknown(Part::Mesh, name, some_of(&unseen), Some("on the node: mesh-agent check".into()))
            }
            (true, false, true) => Line::warning(
                Part::Mesh,
                name,
                some_of(&optional),
                "the mesh works without; what it cannot do then stands in brackets",
            ),
            (true, true, true) => Line::ok(Part::Mesh, name, "all that is needed is there"),
        })
    }
}

impl Agent {
    fn new(node: String, (asked, answered): (f64, f64), dump: Dump) -> Self {
        let own = dump.agent.as_ref().ok();
        let now = own.and_then(|section| section.now);
        let named = own.map(|section| section.node.clone()).filter(|node| !node.is_empty());
        Self { node: named.unwrap_or(node), ahead: now.map(|now| (now - answered, now - asked)), dump }
    }
}

fn names(identities: &IdentitiesSection) -> BTreeSet<&str> {
    identities.roots.iter().map(|root| root.root.as_str()).collect()
}

fn not_captured(workload: &WorkloadEntry) -> Option<String> {
    let WorkloadEntry { namespace, name, enrolled, refusal, captured, not_captured, .. } = workload;
    let reason = match (refusal, enrolled, captured) {
        (Some(refusal), _, _) => refusal.as_str(),
        (None, true, Some(false)) => not_captured.as_deref().unwrap_or("it was not looked at yet"),
        (None, _, _) => return None,
    };
    Some(format!("{namespace}/{name}: {reason}"))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::{Value, json};

    use super::super::super::table::Paint;
    use super::super::{Judged, Report};
    use super::*;
    use crate::told::Name;

    const DUMP: &str = include_str!("../fixtures/config_dump.json");
    /// A second before the first root of the fixture has 36 days left.
    const NOW: f64 = 1_790_007_200.0;

    fn dump(node: &str, change: impl FnOnce(&mut Value)) -> Value {
        let mut dump: Value = serde_json::from_str(DUMP).unwrap();
        dump["agent"]["node"] = node.into();
        dump["agent"]["now"] = NOW.into();
        change(&mut dump);
        dump
    }

    fn told(node: &str, answer: Result<Value, &str>) -> (Told, Between) {
        let name = Name { node: node.into(), pod: None };
        let answer = answer.map(|value| Bytes::from(value.to_string())).map_err(str::to_string);
        // Asked by a clock that is an hour off, which says nothing of the nodes'.
        (Told { name, answer }, (NOW + 3600.0, NOW + 3602.0))
    }

    fn judged(dumps: Vec<(Told, Between)>, kernels: Vec<(Told, Between)>) -> Vec<Line> {
        Mesh::new(dumps, kernels.into_iter().map(|(told, _)| told).collect()).judge()
    }

    #[test]
    fn a_mesh_that_is_well() {
        let features = json!([{"name": "bpf", "required": true, "missing": null, "matters": "all of it"}]);
        let dumps = vec![told("n1", Ok(dump("n1", |_| {}))), told("n2", Ok(dump("n2", |_| {})))];
        let checks = judged(dumps, vec![told("n1", Ok(features))]);
        let report = Report { healthy: true, checks };
        let expected = "\
THE MESH
ok      agents answer: all 2
ok      agents are ready: all that answer
ok      versions: 0.1.0, meshctl's too
ok      configuration is fresh: 0s old at most
ok      objects are understood: all 117
ok      pods are captured: all 4 that ask for it
ok      certificates: 4 in force, the first ends in 2h11m
ok      roots: the one that signs ends in 364d22h
ok      clocks: of 2 nodes, not more than 1s apart
ok      kernels: all that is needed is there

nothing is wrong
";
        assert_eq!(report.render(Paint::Plain), expected);
    }

    #[test]
    fn what_is_wrong_and_what_to_do() {
        type Change = fn(&mut Value);
        let table: [(&str, Change, Judged, &str, &str); 17] = [
            (
                "agents are ready",
                |d| d["agent"]["notReady"] = json!({"discovery": "nothing was read", "pod/shop/web-0": "x"}),
                Judged::Failed,
                "n2: discovery: nothing was read",
                "log",
            ),
            (
                "versions",
                |d| d["agent"]["version"] = "0.0.9".into(),
                Judged::Warning,
                "0.0.9 on n2; 0.1.0 on n1",
                "rollout status",
            ),
            (
                "configuration is fresh",
                |d| d["discovery"]["health"]["unreachable"] = "connection refused".into(),
                Judged::Failed,
                "n2: connection refused",
                "API server",
            ),
            (
                "configuration is fresh",
                |d| {
                    d["discovery"]["health"]["watches"] =
                        json!([{"watch": "pods", "state": "forbidden", "reason": "no"}])
                },
                Judged::Failed,
                "n2: pods is forbidden: no",
                "ClusterRole",
            ),
            (
                "configuration is fresh",
                |d| d["discovery"]["health"]["watches"] = json!([{"watch": "tcproutes", "state": "notServed"}]),
                Judged::Ok,
                "old at most",
                "",
            ),
            (
                "configuration is fresh",
                |d| d["discovery"]["ageSeconds"] = 400.into(),
                Judged::Warning,
                "6m40s old",
                "API server",
            ),
            (
                "configuration is fresh",
                |d| d["discovery"]["ageSeconds"] = Value::Null,
                Judged::Failed,
                "nothing was read yet",
                "",
            ),
            (
                "objects are understood",
                |d| {
                    let finding = json!({"kind": "HTTPRoute", "object": "shop/api", "field": "spec", "reason": "no"});
                    d["discovery"]["health"]["findings"] = json!([finding, finding]);
                },
                Judged::Failed,
                "HTTPRoute shop/api spec: no",
                "config validate",
            ),
            (
                "pods are captured",
                |d| {
                    d["workloads"][0]["captured"] = false.into();
                    d["workloads"][0]["notCaptured"] = "no routes".into();
                },
                Judged::Failed,
                "shop/web-0: no routes",
                "mesh=disabled",
            ),
            (
                "pods are captured",
                |d| d["workloads"][2]["refusal"] = "host network".into(),
                Judged::Failed,
                "other-0: host network",
                "",
            ),
            (
                "certificates",
                |d| {
                    d["identities"]["svids"][0]["secondsLeft"] = (-1).into();
                    d["identities"]["svids"][0]["lastError"] = "no-pod".into();
                },
                Judged::Failed,
                "sa/web has none in force: no-pod",
                "target audit",
            ),
            (
                "certificates",
                |d| d["identities"]["svids"][0]["secondsLeft"] = 60.into(),
                Judged::Warning,
                "sa/web ends in 1m",
                "controller",
            ),
            ("certificates", |d| d["identities"]["trouble"] = "away".into(), Judged::Failed, "n2: away", ""),
            (
                "roots",
                |d| d["identities"]["roots"][0]["root"] = "ff".into(),
                Judged::Failed,
                "n1 does not trust root ff, which signs elsewhere",
                "--ca-roots",
            ),
            (
                "clocks",
                |d| d["agent"]["now"] = (NOW + 50.0).into(),
                Judged::Failed,
                "n2 is at least 48s ahead of n1",
                "chrony",
            ),
            ("clocks", |d| d["agent"]["now"] = (NOW + 31.0).into(), Judged::Ok, "not more than", ""),
            ("clocks", |d| d["agent"]["now"] = Value::Null, Judged::Ok, "of 1 nodes", ""),
        ];
        for (name, change, result, found, todo) in table {
            let lines =
                judged(vec![told("n1", Ok(dump("n1", |_| {}))), told("n2", Ok(dump("n2", change)))], Vec::new());
            let line = lines.iter().find(|line| line.name == name).unwrap();
            assert_eq!(line.result, result, "{line:?}");
            assert!(line.found.contains(found), "{found:?} in {line:?}");
            assert!(line.todo.as_deref().unwrap_or_default().contains(todo), "{todo:?} in {line:?}");
            assert!(line.result == Judged::Ok || line.todo.as_ref().is_some_and(|todo| !todo.is_empty()), "{line:?}");
        }
    }

    #[test]
    fn roots_that_end() {
        for (left, result) in [(-1.0, Judged::Failed), (86_400.0, Judged::Warning), (40.0 * 86_400.0, Judged::Ok)] {
            let change = |d: &mut Value| d["identities"]["roots"][0]["notAfter"] = (NOW + left).into();
            let lines = judged(vec![told("n1", Ok(dump("n1", change)))], Vec::new());
            assert_eq!(lines.iter().find(|line| line.name == "roots").map(|line| line.result), Some(result), "{left}");
        }
    }

    #[test]
    fn silence_and_old_kernels_are_told() {
        let feature =
            |required: bool| json!([{"name": "tcx", "required": required, "missing": "no such", "matters": "why"}]);
        for (kernels, result, found) in [
            (vec![told("n1", Ok(feature(true)))], Judged::Failed, "n1: tcx: no such (why)"),
            (vec![told("n1", Ok(feature(false)))], Judged::Warning, "n1: tcx: no such (why)"),
            (vec![told("n1", Err("not here"))], Judged::Unknown, "n1: not here"),
        ] {
            let lines = judged(vec![told("n1", Ok(dump("n1", |_| {}))), told("n2", Err("gone"))], kernels);
            let kernels = lines.last().unwrap();
            assert_eq!((kernels.result, kernels.found.as_str()), (result, found));
            assert_eq!((lines[0].result, lines[0].found.as_str()), (Judged::Failed, "n2: gone"));
        }
        let nobody = judged(vec![told("n1", Err("gone"))], Vec::new());
        assert_eq!(nobody.len(), 1, "nothing is said of what nobody told: {nobody:?}");
    }
}
