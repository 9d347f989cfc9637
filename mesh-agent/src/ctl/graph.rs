//! `meshctl graph`: who talks to whom and how that is protected, of what every agent has counted since it started.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::connections::tone;
use super::reach::{self, Agents, Told, Unanswered};
use super::table::{Cell, Paint, Table};
use super::{Screen, Verdict, words};
use crate::told::{Counted, Tallies, UNKNOWN, is_proof, tallies};

/// `meshctl graph`
#[derive(Args, Debug)]
pub struct GraphArgs {
    /// Edges of a namespace, at either end
    #[arg(long, value_name = "NAME")]
    pub namespace: Option<String>,
    /// What to print; dot is for Graphviz: meshctl graph -o dot | dot -Tsvg
    #[arg(short, long, value_enum, default_value_t = GraphOutput::Ascii)]
    pub output: GraphOutput,
}

/// How a graph is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GraphOutput {
    /// For people.
    Ascii,
    /// For Graphviz.
    Dot,
    /// For machines.
    Json,
    /// The same as JSON.
    Yaml,
}

/// Who talks to whom. Its JSON is an interface.
#[derive(Debug, Serialize)]
struct Graph {
    /// `<namespace>/<service account>`, and `unknown`.
    nodes: BTreeSet<String>,
    edges: Vec<Edge>,
    /// Agents that did not answer: what they alone know is not here.
    unanswered: Vec<Unanswered>,
}

#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Edge {
    from: String,
    to: String,
    transport: String,
    /// Whether the identities of both ends are proved.
    proved: bool,
    #[serde(flatten)]
    counted: Counted,
}

/// Asks and draws.
pub async fn run(args: &GraphArgs, agents: &Agents, screen: &mut Screen<'_>) -> Result<Verdict> {
    let graph = Graph::new(agents.ask("/metrics").await, args.namespace.as_deref());
    match args.output {
        GraphOutput::Ascii => screen.print(&graph.ascii(screen.paint()))?,
        GraphOutput::Dot => screen.print(&graph.dot())?,
        GraphOutput::Json => screen.json(&graph)?,
        GraphOutput::Yaml => screen.yaml(&graph)?,
    }
    Ok(Verdict::of(true, graph.unanswered.len(), agents))
}

impl Graph {
    fn new(told: Vec<Told>, namespace: Option<&str>) -> Self {
        let (read, unanswered) = reach::read(told, |_, answer| Ok(tallies(answer)));
        let mut counted = Tallies::new();
        for (way, ends) in read.into_iter().flat_map(|(_, tallies)| tallies) {
            let sum = counted.entry(way).or_default();
            sum.outbound.add(ends.outbound);
            sum.inbound.add(ends.inbound);
        }
        let edges = counted.into_iter().map(|((from, to, transport), ends)| Edge {
            proved: is_proof(&transport),
            counted: ends.believed(),
            from,
            to,
            transport,
        });
        let is_wanted = |edge: &Edge| edge.counted.opened > 0 && touches([&edge.from, &edge.to], namespace);
        let edges: Vec<Edge> = edges.filter(is_wanted).collect();
        let nodes = edges.iter().flat_map(|edge| [edge.from.clone(), edge.to.clone()]).collect();
        Self { nodes, edges, unanswered }
    }

    fn ascii(&self, paint: Paint) -> String {
        let mut table = Table::new(&["FROM", "HOW", "TO", "OPENED", "OPEN", "BYTES"]);
        for Edge { from, to, transport, proved, counted } in &self.edges {
            let arrow = match (transport.as_str(), proved) {
                ("tunnel", _) => "==mTLS==>".to_string(),
                (other, true) => format!("=={other}==>"),
                (other, false) => format!("--{other}-->"),
            };
            table.push(vec![
                Cell::plain(from),
                Cell::new(arrow, tone(transport)),
                Cell::plain(to),
                Cell::plain(counted.opened.to_string()),
                Cell::plain(counted.open.to_string()),
                Cell::plain(format!("{}/{}", words::bytes(counted.sent_bytes), words::bytes(counted.received_bytes))),
            ]);
        }
        let lines = Unanswered::lines(&self.unanswered, paint);
        match self.edges.is_empty() {
            true => format!("no connections were counted yet\n{lines}"),
            false => format!("{}{lines}", table.render(paint)),
        }
    }

    fn dot(&self) -> String {
        let mut text = String::from("digraph mesh {\n  rankdir=LR;\n  node [shape=box, fontname=\"sans-serif\"];\n");
        for one in &self.unanswered {
            let _ = writeln!(text, "  // {} does not answer: {}", commented(&one.node), commented(&one.error));
        }
        for node in &self.nodes {
            let style = if node == UNKNOWN { " [style=dashed]" } else { "" };
            let _ = writeln!(text, "  {}{style};", quoted(node));
        }
        for Edge { from, to, transport, proved, counted } in &self.edges {
            let look = if *proved { "color=darkgreen" } else { "color=red, style=dashed" };
            let label = quoted(&format!("{transport} ({})", counted.opened));
            let _ = writeln!(text, "  {} -> {} [label={label}, {look}];", quoted(from), quoted(to));
        }
        text.push_str("}\n");
        text
    }
}

/// Whether one of two ends is of a namespace, where one is asked for.
pub fn touches(ends: [&String; 2], namespace: Option<&str>) -> bool {
    let is_of = |end: &String, wanted: &str| end.split_once('/').is_some_and(|(namespace, _)| namespace == wanted);
    namespace.is_none_or(|wanted| ends.into_iter().any(|end| is_of(end, wanted)))
}

/// A comment ends with its line.
fn commented(text: &str) -> String {
    text.replace(char::is_control, " ")
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", commented(text).replace('\\', "\\\\").replace('"', "\\\""))
}
