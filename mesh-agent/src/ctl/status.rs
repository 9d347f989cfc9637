//! `meshctl status`: how every agent is, a line each, and below what is wrong.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use super::args::Output;
use super::reach::{Agents, Told};
use super::table::{Breadth, Cell, Paint, Table, Tone};
use super::{Screen, Verdict, words};
use crate::told::dump::{self, Dump, IdentitiesSection, SvidEntry, WorkloadEntry};

/// A certificate with less than this part of its life left is late: it is renewed at half.
pub(super) const LATE_PART: u32 = 4;
/// A world that was not seen whole for longer is shown as doubtful.
pub(super) const OLD_CONFIG: Duration = Duration::from_secs(60);

/// `meshctl status`
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// What to print
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// How the mesh is. Its JSON is an interface.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Mesh {
    /// Whether nothing is wrong.
    pub healthy: bool,
    /// Every agent, those that did not answer included.
    pub agents: Vec<AgentStatus>,
    /// What is worth knowing, and not wrong.
    pub notes: Vec<String>,
}

/// How one agent is. What it did not say is null.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentStatus {
    /// Its node; its address where it did not answer at one.
    pub node: String,
    /// Its pod.
    pub pod: Option<String>,
    /// Whether it did.
    pub answered: bool,
    /// Its version.
    pub version: Option<String>,
    /// Since when it runs, in seconds of Unix time.
    pub started: Option<f64>,
    /// Whether it serves.
    pub ready: Option<bool>,
    /// The pods of its node.
    pub pods: Option<Pods>,
    /// The certificates of their identities.
    pub certificates: Option<Certificates>,
    /// Its world.
    pub config: Option<World>,
    /// Live connections.
    pub connections: Option<u64>,
    /// What is wrong, a line each; nothing where all is well.
    pub trouble: Vec<String>,
}

/// The pods of a node.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pods {
    /// All of them.
    pub total: usize,
    /// Those of the mesh.
    pub enrolled: usize,
    /// Those whose traffic the agent has; null where it does not say.
    pub captured: Option<usize>,
}

/// Certificates of a node.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Certificates {
    /// Identities that need one.
    pub wanted: usize,
    /// Those with one in force.
    pub in_force: usize,
    /// What is left of the one that ends first, in seconds.
    pub soonest_seconds: Option<f64>,
    /// Those that should have been renewed.
    pub late: usize,
}

/// An agent's world.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct World {
    /// The version of its snapshot.
    pub version: Option<u64>,
    /// Since it was last seen whole, in seconds.
    pub age_seconds: Option<f64>,
    /// Objects in force.
    pub objects: Option<u64>,
    /// Things wrong with objects.
    pub findings: usize,
}

/// Asks, prints, and says by its exit status whether all is well.
pub async fn run(args: &StatusArgs, agents: &Agents, screen: &mut Screen<'_>) -> Result<Verdict> {
    let mesh = Mesh::new(agents.ask(dump::PATH).await);
    match args.output {
        Output::Table => screen.print(&mesh.render(Breadth::Usual, screen.paint()))?,
        Output::Wide => screen.print(&mesh.render(Breadth::Wide, screen.paint()))?,
        Output::Json => screen.json(&mesh)?,
        Output::Yaml => screen.yaml(&mesh)?,
    }
    let silent = mesh.agents.iter().filter(|agent| !agent.answered).count();
    Ok(Verdict::of(mesh.healthy, silent, agents))
}

impl Mesh {
    /// Of what the agents said.
    pub fn new(told: Vec<Told>) -> Self {
        let agents: Vec<AgentStatus> = told.into_iter().map(AgentStatus::new).collect();
        let mut versions = BTreeMap::<&str, usize>::new();
        for version in agents.iter().filter_map(|agent| agent.version.as_deref()) {
            *versions.entry(version).or_default() += 1;
        }
        let mut notes = Vec::new();
        if versions.len() > 1 {
            let each: Vec<String> = versions.iter().map(|(version, count)| format!("{version} ({count})")).collect();
            notes.push(format!("the agents are of different versions: {}", each.join(", ")));
        }
        let findings = agents.iter().filter_map(|agent| agent.config.as_ref()).map(|config| config.findings).max();
        if let Some(findings) = findings.filter(|findings| *findings > 0) {
            notes.push(format!(
                "findings about objects of the cluster: {findings}; discovery in /config_dump and meshctl config validate \
                 PATH name them"
            ));
        }
        Self { healthy: agents.iter().all(|agent| agent.trouble.is_empty()), agents, notes }
    }

    /// For people.
    pub fn render(&self, breadth: Breadth, paint: Paint) -> String {
        let mut columns =
            vec!["NODE", "VERSION", "READY", "PODS", "CAPTURED", "CERTIFICATES", "CONFIG AGE", "CONNECTIONS"];
        if breadth == Breadth::Wide {
            columns.extend(["OBJECTS", "FINDINGS", "STATE", "POD"]);
        }
        let mut table = Table::new(&columns);
        for agent in &self.agents {
            table.push(agent.row(breadth));
        }
        let mut text = table.render(paint);
        let wrong = self.agents.iter().flat_map(|agent| agent.trouble.iter().map(|line| (&agent.node, line)));
        let lines: Vec<String> = wrong
            .map(|(node, line)| paint.apply(&format!("{node}: {line}"), Tone::Bad))
            .chain(self.notes.iter().map(|note| paint.apply(&format!("note: {note}"), Tone::Doubtful)))
            .collect();
        if !lines.is_empty() {
            text.push_str(&format!("\n{}\n", lines.join("\n")));
        }
        text
    }
}

impl AgentStatus {
    fn new(told: Told) -> Self {
        let Told { name, answer } = told;
        let blank = Self { node: name.node, pod: name.pod, ..Self::default() };
        match answer.and_then(|answer| Dump::read(&answer)) {
            Ok(dump) => Self { answered: true, ..blank }.filled(dump),
            Err(error) => Self { trouble: vec![format!("does not answer: {error}")], ..blank },
        }
    }

    fn filled(mut self, dump: Dump) -> Self {
        let Dump { agent, discovery, identities, workloads } = dump;
        match agent {
            Ok(agent) => {
                if !agent.node.is_empty() {
                    self.node = agent.node;
                }
                self.version = Some(agent.version);
                self.started = Some(agent.started);
                self.ready = Some(agent.not_ready.is_empty());
                self.connections = Some(agent.connections_by_worker.iter().sum());
                let missing = agent.not_ready.iter().filter(|(gate, _)| !gate.starts_with("pod/"));
                self.trouble.extend(missing.map(|(gate, reason)| format!("not ready: {gate}: {reason}")));
            }
            Err(error) => self.trouble.push(error),
        }
        match workloads {
            Ok(workloads) => {
                self.trouble.extend(workloads.iter().filter_map(trouble_of_pod));
                self.pods = Some(Pods::new(&workloads));
            }
            Err(error) => self.trouble.push(error),
        }
        match identities {
            Ok(identities) => {
                self.trouble.extend(trouble_of_identities(&identities));
                self.certificates = Some(Certificates::new(&identities));
            }
            Err(error) => self.trouble.push(error),
        }
        match discovery {
            Ok(discovery) => {
                if let Some(reason) = discovery.health.unreachable {
                    self.trouble.push(format!("its world is as it was: {reason}"));
                }
                self.config = Some(World {
                    version: discovery.state_version,
                    age_seconds: discovery.age_seconds,
                    objects: discovery.health.objects,
                    findings: discovery.health.findings.len(),
                });
            }
            Err(error) => self.trouble.push(error),
        }
        self
    }

    fn row(&self, breadth: Breadth) -> Vec<Cell> {
        let known = |text: Option<String>| Cell::plain(text.unwrap_or_default());
        let ready = match self.ready {
            Some(true) => Cell::new("yes", Tone::Good),
            Some(false) => Cell::new("no", Tone::Bad),
            None => Cell::new("?", Tone::Bad),
        };
        let mut row = vec![
            Cell::plain(&self.node),
            known(self.version.clone()),
            ready,
            known(self.pods.as_ref().map(|pods| pods.total.to_string())),
            self.pods.as_ref().map_or_else(|| Cell::plain(""), Pods::cell),
            self.certificates.as_ref().map_or_else(|| Cell::plain(""), Certificates::cell),
            self.config.as_ref().map_or_else(|| Cell::plain(""), World::cell),
            known(self.connections.map(|count| count.to_string())),
        ];
        if breadth == Breadth::Wide {
            let config = self.config.as_ref();
            row.extend([
                known(config.and_then(|config| config.objects).map(|count| count.to_string())),
                known(config.map(|config| config.findings.to_string())),
                known(config.and_then(|config| config.version).map(|version| version.to_string())),
                known(self.pod.clone()),
            ]);
        }
        row
    }
}

fn trouble_of_pod(workload: &WorkloadEntry) -> Option<String> {
    let WorkloadEntry { namespace, name, enrolled, refusal, captured, not_captured, identity: _, ips: _, policy: _ } =
        workload;
    if let Some(refusal) = refusal {
        return Some(format!("pod {namespace}/{name} asks for the mesh and cannot be in it: {refusal}"));
    }
    if !enrolled || *captured == Some(true) {
        return None;
    }
    let reason = not_captured.as_deref().or(captured.is_some().then_some("it was not looked at yet"))?;
    Some(format!("pod {namespace}/{name} is not captured: {reason}"))
}

fn trouble_of_identities(identities: &IdentitiesSection) -> Vec<String> {
    let authority = identities.trouble.iter().map(|trouble| format!("certificates: {trouble}"));
    let certificates = identities.svids.iter().filter_map(|svid| match (&svid.last_error, svid.is_in_force()) {
        (Some(error), true) => Some(format!("certificate of {} is not renewed: {error}", svid.id)),
        (Some(error), false) => Some(format!("{} has no certificate in force: {error}", svid.id)),
        (None, false) => Some(format!("{} has no certificate in force", svid.id)),
        (None, true) => None,
    });
    authority.chain(certificates).collect()
}

impl Pods {
    fn new(workloads: &[WorkloadEntry]) -> Self {
        let of_mesh = || workloads.iter().filter(|workload| workload.enrolled);
        let is_told = of_mesh().all(|workload| workload.captured.is_some() || workload.not_captured.is_some());
        let captured = of_mesh().filter(|workload| workload.captured == Some(true)).count();
        Self { total: workloads.len(), enrolled: of_mesh().count(), captured: is_told.then_some(captured) }
    }

    fn cell(&self) -> Cell {
        let Self { total: _, enrolled, captured } = self;
        match captured {
            Some(captured) if captured == enrolled => Cell::plain(format!("{captured}/{enrolled}")),
            Some(captured) => Cell::new(format!("{captured}/{enrolled}"), Tone::Bad),
            None => Cell::new(format!("?/{enrolled}"), Tone::Doubtful),
        }
    }
}

/// Whether it should have been renewed.
pub fn is_late(svid: &SvidEntry) -> bool {
    let life = svid.not_after.zip(svid.issued).map(|(end, begin)| end - begin);
    life.zip(svid.seconds_left).is_some_and(|(life, left)| left < life / f64::from(LATE_PART))
}

impl Certificates {
    fn new(identities: &IdentitiesSection) -> Self {
        let in_force = || identities.svids.iter().filter(|svid| svid.is_in_force());
        Self {
            wanted: identities.svids.len(),
            in_force: in_force().count(),
            soonest_seconds: in_force().filter_map(|svid| svid.seconds_left).reduce(f64::min),
            late: in_force().filter(|svid| is_late(svid)).count(),
        }
    }

    fn cell(&self) -> Cell {
        let Self { wanted, in_force, soonest_seconds, late } = self;
        let count = format!("{in_force}/{wanted}");
        let text = match soonest_seconds {
            Some(seconds) => format!("{count} {}", words::span(*seconds)),
            None => count,
        };
        let tone = match (in_force == wanted, late) {
            (false, _) => Tone::Bad,
            (true, 0) => Tone::Plain,
            (true, _) => Tone::Doubtful,
        };
        Cell::new(text, tone)
    }
}

impl World {
    fn cell(&self) -> Cell {
        match self.age_seconds {
            Some(age) => {
                Cell::new(words::span(age), if age > OLD_CONFIG.as_secs_f64() { Tone::Doubtful } else { Tone::Plain })
            }
            None => Cell::plain(""),
        }
    }
}
