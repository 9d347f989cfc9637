//! `meshctl graph`: who talks to whom and how that is protected, of what every agent has counted since it started.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::connections::tone;
use super::reach::{self, Agents, Told, Unanswered};
use super::table::{Cell, Paint, Table};
use super::{Screen, Verdict, words};

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
}

/// Who is at an end that nobody knows.
const UNKNOWN: &str = "unknown";

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

/// Connections and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counted {
    /// Since the agent started.
    pub opened: u64,
    /// Now.
    pub open: u64,
    /// From client to server.
    pub sent_bytes: u64,
    /// From server to client.
    pub received_bytes: u64,
}

/// Both ends' agents count a connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct BothEnds {
    /// By agents of callers.
    pub outbound: Counted,
    /// By agents of those called.
    pub inbound: Counted,
}

/// From whom, to whom, carried how.
pub type Way = (String, String, String);

/// What one agent has counted, or all of them.
pub type Tallies = BTreeMap<Way, BothEnds>;

/// What an agent's `/metrics` count.
pub fn tallies(answer: &[u8]) -> Tallies {
    let mut tallies = Tallies::new();
    String::from_utf8_lossy(answer).lines().for_each(|line| count(line, &mut tallies));
    tallies
}

impl Counted {
    /// Adds what another agent has counted.
    pub fn add(&mut self, other: Self) {
        let Self { opened, open, sent_bytes, received_bytes } = other;
        self.opened = self.opened.saturating_add(opened);
        self.open = self.open.saturating_add(open);
        self.sent_bytes = self.sent_bytes.saturating_add(sent_bytes);
        self.received_bytes = self.received_bytes.saturating_add(received_bytes);
    }
}

impl BothEnds {
    /// The caller's word, where a caller is of the mesh: its agent knows whom it reached.
    pub fn believed(self) -> Counted {
        if self.outbound.opened > 0 { self.outbound } else { self.inbound }
    }
}

/// Asks and draws.
pub async fn run(args: &GraphArgs, agents: &Agents, screen: &mut Screen<'_>) -> Result<Verdict> {
    let graph = Graph::new(agents.ask("/metrics").await, args.namespace.as_deref());
    match args.output {
        GraphOutput::Ascii => screen.print(&graph.ascii(screen.paint()))?,
        GraphOutput::Dot => screen.print(&graph.dot())?,
        GraphOutput::Json => screen.json(&graph)?,
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
            proved: matches!(transport.as_str(), "tunnel" | "same-node" | "same-node-kernel" | "itself"),
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

/// Adds a line of OpenMetrics, if it counts connections.
fn count(line: &str, counted: &mut Tallies) {
    let Some((name, labels, value)) = sample(line) else { return };
    let field: fn(&mut Counted) -> &mut u64 = match name {
        "nodemesh_connections_opened_total" => |counted| &mut counted.opened,
        "nodemesh_connections_open" => |counted| &mut counted.open,
        "nodemesh_sent_bytes_total" => |counted| &mut counted.sent_bytes,
        "nodemesh_received_bytes_total" => |counted| &mut counted.received_bytes,
        _ => return,
    };
    let label = |name: &str| labels.get(name).map(String::as_str).unwrap_or_default();
    // Of these no way was chosen, or every request chooses another and is counted there.
    if matches!(label("transport"), "requests" | "undecided") {
        return;
    }
    let party = |side: &str| match (label(&format!("{side}_namespace")), label(&format!("{side}_service_account"))) {
        ("", "") => UNKNOWN.to_string(),
        (namespace, account) => format!("{namespace}/{account}"),
    };
    let ends = counted.entry((party("source"), party("destination"), label("transport").to_string())).or_default();
    let side = if label("direction") == "outbound" { &mut ends.outbound } else { &mut ends.inbound };
    let total = field(side);
    *total = total.saturating_add(value as u64);
}

/// Name, labels and value of a line; nothing for comments and what is none.
fn sample(line: &str) -> Option<(&str, BTreeMap<String, String>, f64)> {
    let (name, rest) = line.split_once('{')?;
    let mut labels = BTreeMap::new();
    let mut rest = rest;
    while !rest.starts_with('}') {
        let (label, after) = rest.trim_start_matches(',').split_once("=\"")?;
        let (value, after) = label_value(after)?;
        labels.insert(label.to_string(), value);
        rest = after;
    }
    let value = rest.strip_prefix('}')?.split_whitespace().next()?.parse().ok()?;
    Some((name, labels, value))
}

/// A label's value up to its closing quote, and what follows.
fn label_value(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, text.get(at + 1..)?)),
            '\\' => match characters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_openmetrics() {
        let table = [
            ("# HELP x y", None),
            ("# EOF", None),
            ("nodemesh_config_age_seconds 0.2", None),
            ("a{b=\"c\",d=\"\"} 3", Some(("a", vec![("b", "c"), ("d", "")], 3.0))),
            ("a{} 1.5 1700000000", Some(("a", vec![], 1.5))),
            (r#"a{b="q\"}\\\n,"} 2"#, Some(("a", vec![("b", "q\"}\\\n,")], 2.0))),
            ("a{b=\"c} 2", None),
            ("a{b} 2", None),
            ("a{b=\"c\"", None),
        ];
        for (line, expected) in table {
            let expected = expected.map(|(name, labels, value)| {
                let labels: BTreeMap<String, String> =
                    labels.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
                (name, labels, value)
            });
            assert_eq!(sample(line), expected, "{line}");
        }
    }
}
