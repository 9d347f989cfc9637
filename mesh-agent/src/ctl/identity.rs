//! `meshctl identity`: whom the mesh knows, by which certificate, until when.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use clap::Args;
use serde::Serialize;

use super::args::Output;
use super::reach::{self, Agents, Name, Told, Unanswered};
use super::table::{Breadth, Cell, Paint, Table, Tone};
use super::{Screen, Verdict, words};
use crate::told::dump::{self, Dump, RootEntry, SvidEntry, WorkloadEntry};

/// `meshctl identity`
#[derive(Args, Debug)]
pub struct IdentityArgs {
    /// The pod whose identity is shown, with its chain [default: all identities]
    #[arg(value_name = "NAMESPACE/POD")]
    pub pod: Option<String>,
    /// What to print
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// What the agents said. Its JSON is an interface.
#[derive(Debug, Serialize)]
struct Identities {
    identities: Vec<Identity>,
    /// Agents that did not answer.
    unanswered: Vec<Unanswered>,
}

/// An identity on a node. Times are seconds of Unix time.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Identity {
    id: String,
    node: String,
    /// The pods of the node that have it and are in the mesh, `<namespace>/<name>`.
    pods: Vec<String>,
    in_force: bool,
    serial: String,
    issued: Option<f64>,
    not_after: Option<f64>,
    seconds_left: Option<f64>,
    last_error: Option<String>,
    failures: u64,
    /// The root at which its certificate ends; null where there is none, or the agent does not trust it any more.
    root: Option<Root>,
    /// Every root that the node's agent trusts.
    trusted: Vec<Root>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Root {
    id: String,
    not_after: f64,
    /// Whether new certificates end at it.
    signs: bool,
}

/// Asks and prints.
pub async fn run(args: &IdentityArgs, agents: &Agents, screen: &mut Screen<'_>) -> Result<Verdict> {
    let pod = args.pod.as_deref();
    if let Some(pod) = pod {
        let is_name = pod.split_once('/').is_some_and(|(namespace, name)| !namespace.is_empty() && !name.is_empty());
        ensure!(is_name, "{pod:?} is no pod: expected NAMESPACE/POD, as in meshctl identity shop/web-0");
    }
    let identities = Identities::new(agents.ask(dump::PATH).await, pod);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    match (args.output, pod) {
        (Output::Json, _) => screen.json(&identities)?,
        (Output::Yaml, _) => screen.yaml(&identities)?,
        (Output::Table | Output::Wide, Some(pod)) => screen.print(&identities.of_pod(pod, now, screen.paint()))?,
        (Output::Table, None) => screen.print(&identities.render(Breadth::Usual, screen.paint()))?,
        (Output::Wide, None) => screen.print(&identities.render(Breadth::Wide, screen.paint()))?,
    }
    let Identities { identities, unanswered } = &identities;
    let is_found = pod.is_none() || !identities.is_empty();
    let is_well = is_found && identities.iter().all(|identity| identity.in_force);
    Ok(Verdict::of(is_well, unanswered.len(), agents))
}

impl Identities {
    /// All of them, or that of a pod.
    fn new(told: Vec<Told>, pod: Option<&str>) -> Self {
        let (read, unanswered) =
            reach::read(told, |name, answer| Dump::read(answer).and_then(|dump| identities(name, dump, pod)));
        let mut identities: Vec<Identity> = read.into_iter().flat_map(|(_, identities)| identities).collect();
        identities.sort_by(|one, other| (&one.id, &one.node).cmp(&(&other.id, &other.node)));
        Self { identities, unanswered }
    }

    fn render(&self, breadth: Breadth, paint: Paint) -> String {
        let mut columns = vec!["IDENTITY", "NODE", "PODS", "ENDS IN", "ROOT"];
        if breadth == Breadth::Wide {
            columns.extend(["SERIAL", "FAILURES", "LAST ERROR"]);
        }
        let mut table = Table::new(&columns);
        for identity in &self.identities {
            let mut row = vec![
                Cell::plain(if breadth == Breadth::Wide { &identity.id } else { words::identity(&identity.id) }),
                Cell::plain(&identity.node),
                Cell::plain(identity.pods.len().to_string()),
                identity.ends_in(),
                Cell::plain(identity.root.as_ref().map_or("", |root| root.shown(breadth))),
            ];
            if breadth == Breadth::Wide {
                row.extend([
                    Cell::plain(&identity.serial),
                    Cell::plain(identity.failures.to_string()),
                    Cell::new(identity.last_error.as_deref().unwrap_or_default(), Tone::Bad),
                ]);
            }
            table.push(row);
        }
        format!("{}{}", table.render(paint), Unanswered::lines(&self.unanswered, paint))
    }

    fn of_pod(&self, pod: &str, now: f64, paint: Paint) -> String {
        let mut text: String = self.identities.iter().map(|identity| identity.told(pod, now, paint)).collect();
        if self.identities.is_empty() {
            let line = format!("no agent that answered has {pod} in the mesh: kubectl get pod has its node and labels");
            text = format!("{}\n", paint.apply(&line, Tone::Bad));
        }
        text.push_str(&Unanswered::lines(&self.unanswered, paint));
        text
    }
}

fn identities(name: &Name, dump: Dump, pod: Option<&str>) -> Result<Vec<Identity>, String> {
    let Dump { agent, discovery: _, identities, workloads } = dump;
    let (identities, workloads) = (identities?, workloads?);
    let node = agent.ok().map(|agent| agent.node).filter(|node| !node.is_empty()).unwrap_or_else(|| name.node.clone());
    let trusted: Vec<Root> = identities.roots.into_iter().map(Root::new).collect();
    let all = identities.svids.into_iter().map(|svid| Identity::new(svid, &node, &workloads, &trusted));
    let is_wanted = |identity: &Identity| pod.is_none_or(|pod| identity.pods.iter().any(|name| name == pod));
    Ok(all.filter(is_wanted).collect())
}

impl Identity {
    fn new(svid: SvidEntry, node: &str, workloads: &[WorkloadEntry], trusted: &[Root]) -> Self {
        let in_force = svid.is_in_force();
        let SvidEntry { id, not_after, seconds_left, issued, root, serial, last_error, failures } = svid;
        let pods = workloads.iter().filter(|workload| workload.enrolled && workload.identity == id);
        Self {
            pods: pods.map(|workload| format!("{}/{}", workload.namespace, workload.name)).collect(),
            node: node.to_string(),
            root: root.and_then(|root| trusted.iter().find(|trusted| trusted.id == root)).cloned(),
            trusted: trusted.to_vec(),
            id,
            in_force,
            serial,
            issued,
            not_after,
            seconds_left,
            last_error,
            failures,
        }
    }

    fn ends_in(&self) -> Cell {
        match self.seconds_left {
            Some(left) if self.in_force => Cell::plain(words::span(left)),
            Some(_) => Cell::new("ended", Tone::Bad),
            None => Cell::new("none yet", Tone::Bad),
        }
    }

    fn told(&self, pod: &str, now: f64, paint: Paint) -> String {
        let certificate = match self.seconds_left {
            Some(left) if self.in_force => {
                let issued =
                    self.issued.map_or_else(String::new, |at| format!(", issued {} ago", words::span(now - at)));
                paint.apply(&format!("serial {}, ends in {}{issued}", self.serial, words::span(left)), Tone::Good)
            }
            Some(_) => paint.apply(&format!("serial {}, has ended", self.serial), Tone::Bad),
            None => paint.apply("none yet", Tone::Bad),
        };
        let mut lines = vec![
            ("pod", paint.apply(pod, Tone::Plain)),
            ("node", paint.apply(&self.node, Tone::Plain)),
            ("identity", paint.apply(&self.id, Tone::Plain)),
            ("certificate", certificate),
        ];
        match &self.root {
            Some(root) => lines.push(("signed by", paint.apply(&root.told(now), Tone::Plain))),
            None if self.in_force => {
                lines.push(("signed by", paint.apply("a root that this agent does not trust", Tone::Bad)));
            }
            None => {}
        }
        let others = self.trusted.iter().filter(|root| self.root.as_ref().is_none_or(|own| own.id != root.id));
        lines.extend(others.map(|root| ("also trusted", paint.apply(&root.told(now), Tone::Plain))));
        lines.extend(self.last_error.iter().map(|error| ("last error", paint.apply(error, Tone::Bad))));
        lines.iter().map(|(name, text)| format!("{name:<15}{text}\n")).collect()
    }
}

impl Root {
    fn new(entry: RootEntry) -> Self {
        let RootEntry { root, not_after, signs } = entry;
        Self { id: root, not_after, signs }
    }

    /// Enough of it to tell it from others.
    fn shown(&self, breadth: Breadth) -> &str {
        match breadth {
            Breadth::Usual => self.id.get(..SHOWN_OF_ROOT).unwrap_or(&self.id),
            Breadth::Wide => &self.id,
        }
    }

    fn told(&self, now: f64) -> String {
        let signs = if self.signs { ", signs new certificates" } else { "" };
        format!("root {}, ends in {}{signs}", self.id, words::span(self.not_after - now))
    }
}

/// Characters of a root's name, which is a digest, in a table.
pub(super) const SHOWN_OF_ROOT: usize = 12;
