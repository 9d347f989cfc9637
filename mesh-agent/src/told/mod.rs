//! What agents tell of themselves on their admin addresses, read: for whoever asks several of them (`ctl`, `map`).
//!
//! `/metrics` as counts of who talked to whom, `/config_dump` as far as people are shown it. Agents of other versions say
//! more or less: what cannot be read is left out. Nothing here asks anybody.

pub(crate) mod dump;

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Serialize;

/// What an agent is called.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// Its node; where that is not known, its address.
    pub node: String,
    /// Its pod in the mesh's namespace, where it is asked there.
    pub pod: Option<String>,
}

/// What one agent said to a question: its answer, or why there is none.
pub struct Told {
    /// Who.
    pub name: Name,
    /// What.
    pub answer: Result<Bytes, String>,
}

/// Whether the other end of what is carried so is shown who calls. In plaintext nobody shows anything.
pub fn is_proof(transport: &str) -> bool {
    matches!(transport, "tunnel" | "same-node" | "same-node-kernel" | "itself")
}

/// How connections are carried whose way is known, as agents say it.
pub const TRANSPORTS: [&str; 6] = ["tunnel", "plaintext", "same-node", "same-node-kernel", "itself", "pass-through"];

/// Who is at an end that nobody knows.
pub const UNKNOWN: &str = "unknown";

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
pub fn sample(line: &str) -> Option<(&str, BTreeMap<String, String>, f64)> {
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
