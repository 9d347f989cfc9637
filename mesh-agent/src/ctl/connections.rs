//! `meshctl connections`: the live connections of the mesh. A connection between two agents is known to both; the table has
//! it once, as its caller's agent tells it.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::args::Output;
use super::reach::{self, Agents, Name, Told, Unanswered};
use super::table::{Breadth, Cell, Paint, Table, Tone};
use super::{Screen, Verdict, words};
use crate::told::is_proof;

/// Between two looks with `--watch`.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(2);

/// `meshctl connections`
#[derive(Args, Debug)]
pub struct ConnectionsArgs {
    /// Those of pods of a namespace, at either end
    #[arg(long, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Those of a pod, at either end
    #[arg(long, value_name = "[NAMESPACE/]NAME")]
    pub pod: Option<String>,
    /// Those that are carried so: tunnel, same-node, same-node-kernel, plaintext, pass-through, requests, itself, undecided
    #[arg(long, value_name = "NAME", value_parser = TRANSPORTS)]
    pub transport: Option<String>,
    /// Look again every two seconds, until Ctrl-C
    #[arg(short, long)]
    pub watch: bool,
    /// What to print
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// The names of `telemetry::Transport`, which are stable.
const TRANSPORTS: [&str; 8] =
    ["tunnel", "same-node", "same-node-kernel", "plaintext", "pass-through", "requests", "itself", "undecided"];

/// What the agents said. Its JSON is an interface.
#[derive(Debug, Serialize)]
struct Connections {
    /// Every connection as its agent tells it, with `node`.
    connections: Vec<Value>,
    /// Agents that did not answer.
    unanswered: Vec<Unanswered>,
    #[serde(skip)]
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    node: String,
    connection: Connection,
}

/// What is read of a connection; agents of other versions may say less.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Connection {
    direction: String,
    transport: String,
    source: Party,
    client: String,
    dialled: Option<String>,
    service: Option<String>,
    destination: Party,
    server: Option<String>,
    rule: Option<Value>,
    /// None where nobody counts them yet.
    bytes_sent: Option<u64>,
    bytes_received: Option<u64>,
    age_seconds: f64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Party {
    /// `<namespace>/<name>`
    pod: Option<String>,
    identity: Option<String>,
}

/// Asks and prints; with `--watch` until it is ended.
pub async fn run(args: &ConnectionsArgs, agents: &Agents, screen: &mut Screen<'_>) -> Result<Verdict> {
    loop {
        let connections = Connections::new(agents.ask("/connections").await, args);
        if args.watch && args.output != Output::Json {
            screen.again()?;
        }
        match args.output {
            Output::Table => screen.print(&connections.render(Breadth::Usual, screen.paint()))?,
            Output::Wide => screen.print(&connections.render(Breadth::Wide, screen.paint()))?,
            Output::Json => screen.json(&connections)?,
            Output::Yaml => screen.yaml(&connections)?,
        }
        if !args.watch {
            return Ok(Verdict::of(true, connections.unanswered.len(), agents));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

impl Connections {
    fn new(told: Vec<Told>, args: &ConnectionsArgs) -> Self {
        let (read, unanswered) = reach::read(told, |_, answer| read(answer));
        let mut all = Self { connections: Vec::new(), unanswered, rows: Vec::new() };
        for (Name { node, pod: _ }, connections) in read {
            for (mut raw, connection) in connections {
                if !connection.is_of(args) {
                    continue;
                }
                if let Some(fields) = raw.as_object_mut() {
                    fields.insert("node".into(), node.clone().into());
                }
                all.connections.push(raw);
                all.rows.push(Row { node: node.clone(), connection });
            }
        }
        all
    }

    /// For people: each connection once.
    fn render(&self, breadth: Breadth, paint: Paint) -> String {
        let told_by_caller: HashSet<(&str, &str)> = self
            .rows
            .iter()
            .filter(|row| row.connection.direction == "outbound")
            .filter_map(|row| row.connection.ends())
            .collect();
        let is_twin = |row: &&Row| {
            let ends = row.connection.ends();
            row.connection.direction == "inbound" && ends.is_some_and(|ends| told_by_caller.contains(&ends))
        };
        let mut rows: Vec<&Row> = self.rows.iter().filter(|row| !is_twin(row)).collect();
        rows.sort_by_cached_key(|row| (row.connection.from(), row.connection.to(), row.connection.client.clone()));
        let mut columns = vec!["SOURCE", "DESTINATION", "IDENTITY", "TRANSPORT", "BYTES", "AGE"];
        if breadth == Breadth::Wide {
            columns.extend(["NODE", "DIRECTION", "CLIENT", "SERVICE", "PEER", "RULE"]);
        }
        let mut table = Table::new(&columns);
        rows.iter().for_each(|row| table.push(row.cells(breadth)));
        let lines = Unanswered::lines(&self.unanswered, paint);
        if rows.is_empty() {
            format!("no such connections\n{lines}")
        } else {
            format!("{}{lines}", table.render(paint))
        }
    }
}

fn read(answer: &[u8]) -> Result<Vec<(Value, Connection)>, String> {
    let connections: Value = serde_json::from_slice(answer).map_err(|error| format!("no /connections: {error}"))?;
    match connections {
        Value::Array(connections) => {
            let one = |raw: Value| Ok((raw.clone(), Connection::deserialize(raw).map_err(|error| error.to_string())?));
            connections.into_iter().map(one).collect()
        }
        other => Err(other.get("error").and_then(Value::as_str).unwrap_or("no list of connections").to_string()),
    }
}

impl Connection {
    fn is_of(&self, args: &ConnectionsArgs) -> bool {
        let ends = || [&self.source.pod, &self.destination.pod].into_iter().flatten();
        let of_namespace = |pod: &String, wanted: &str| pod.split_once('/').is_some_and(|(name, _)| name == wanted);
        let of_pod =
            |pod: &String, wanted: &str| pod == wanted || pod.split_once('/').is_some_and(|(_, name)| name == wanted);
        args.namespace.as_ref().is_none_or(|wanted| ends().any(|pod| of_namespace(pod, wanted)))
            && args.pod.as_ref().is_none_or(|wanted| ends().any(|pod| of_pod(pod, wanted)))
            && args.transport.as_ref().is_none_or(|wanted| self.transport == *wanted)
    }

    /// The sockets at both ends, by which both agents know it.
    fn ends(&self) -> Option<(&str, &str)> {
        Some((self.client.as_str(), self.server.as_deref()?))
    }

    fn from(&self) -> String {
        self.source.pod.clone().unwrap_or_else(|| self.client.clone())
    }

    fn to(&self) -> String {
        let server = self.server.as_deref().or(self.dialled.as_deref()).unwrap_or_default();
        match (&self.destination.pod, &self.service, server.rsplit_once(':')) {
            (Some(pod), _, Some((_, port))) => format!("{pod}:{port}"),
            (Some(name), _, None) | (None, Some(name), None) => name.clone(),
            (None, Some(service), Some((_, port))) => format!("{service}:{port}"),
            (None, None, _) => server.to_string(),
        }
    }

    /// Of a connection that is many requests each goes its own way, and is told by itself.
    fn is_proved(&self) -> bool {
        is_proof(&self.transport) || self.transport == "requests"
    }
}

/// How a transport is shown.
pub fn tone(transport: &str) -> Tone {
    match transport {
        "tunnel" => Tone::Good,
        "plaintext" | "pass-through" => Tone::Doubtful,
        _ => Tone::Plain,
    }
}

impl Row {
    fn cells(&self, breadth: Breadth) -> Vec<Cell> {
        let Self { node, connection } = self;
        let identity = connection.source.identity.as_deref().filter(|_| connection.is_proved()).unwrap_or_default();
        let [sent, received] =
            [connection.bytes_sent, connection.bytes_received].map(|count| count.map_or("?".into(), words::bytes));
        let mut cells = vec![
            Cell::plain(connection.from()),
            Cell::plain(connection.to()),
            Cell::plain(if breadth == Breadth::Wide { identity } else { words::identity(identity) }),
            Cell::new(&connection.transport, tone(&connection.transport)),
            Cell::plain(format!("{sent}/{received}")),
            Cell::plain(words::span(connection.age_seconds)),
        ];
        if breadth == Breadth::Wide {
            let known = |text: &Option<String>| Cell::plain(text.as_deref().unwrap_or_default());
            let rule = match &connection.rule {
                None | Some(Value::Null) => String::new(),
                Some(Value::String(rule)) => rule.clone(),
                Some(other) => other.to_string(),
            };
            cells.extend([
                Cell::plain(node),
                Cell::plain(&connection.direction),
                Cell::plain(&connection.client),
                known(&connection.service),
                known(&connection.destination.identity),
                Cell::plain(rule),
            ]);
        }
        cells
    }
}
