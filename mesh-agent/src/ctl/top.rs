//! `meshctl top`: what is carried in a second, of two readings of what every agent counts.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use super::args::{Output, some_time};
use super::connections::tone;
use super::graph::touches;
use super::reach::{self, Agents, Name, Unanswered};
use super::table::{Cell, Paint, Table};
use super::{Screen, Verdict, words};
use crate::told::{BothEnds, Counted, Tallies, Way, tallies};

/// `meshctl top`
#[derive(Args, Debug)]
pub struct TopArgs {
    /// What a namespace has to do with, at either end
    #[arg(long, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Between two readings
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = some_time)]
    pub interval: Duration,
    /// Print one table and end, as for JSON and YAML
    #[arg(long)]
    pub once: bool,
    /// What to print
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// What the agents counted at one time.
struct Reading {
    taken: Instant,
    agents: BTreeMap<Name, Tallies>,
    unanswered: Vec<Unanswered>,
}

/// What was carried between two readings. Its JSON is an interface.
#[derive(Debug, Serialize)]
struct Rates {
    /// The busiest first; none at which nothing is open and nothing was.
    rates: Vec<Rate>,
    /// Agents that did not answer: what they alone know is not here.
    unanswered: Vec<Unanswered>,
}

#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Rate {
    from: String,
    to: String,
    transport: String,
    /// Connections now.
    open: u64,
    opened_per_second: f64,
    sent_bytes_per_second: f64,
    received_bytes_per_second: f64,
}

/// Asks and prints, again and again.
pub async fn run(args: &TopArgs, agents: &Agents, screen: &mut Screen<'_>) -> Result<Verdict> {
    let mut before = Reading::take(agents).await;
    loop {
        tokio::time::sleep(args.interval).await;
        let after = Reading::take(agents).await;
        let seconds = after.taken.duration_since(before.taken).as_secs_f64();
        let rates = rates(&before.agents, &after.agents, seconds, args.namespace.as_deref());
        before = Reading { unanswered: Vec::new(), ..after };
        let rates = Rates { rates, unanswered: after.unanswered };
        match args.output {
            Output::Json => screen.json(&rates)?,
            Output::Yaml => screen.yaml(&rates)?,
            Output::Table | Output::Wide => {
                if !args.once {
                    screen.again()?;
                }
                screen.print(&rates.render(screen.paint()))?;
                if !args.once {
                    continue;
                }
            }
        }
        return Ok(Verdict::of(true, rates.unanswered.len(), agents));
    }
}

impl Reading {
    async fn take(agents: &Agents) -> Self {
        let told = agents.ask("/metrics").await;
        let taken = Instant::now();
        let (agents, unanswered) = reach::read(told, |_, answer| Ok(tallies(answer)));
        Self { taken, agents: agents.into_iter().collect(), unanswered }
    }
}

/// Of agents that answered both times: what an agent has counted before it was first asked is not of this second.
fn rates(
    before: &BTreeMap<Name, Tallies>,
    after: &BTreeMap<Name, Tallies>,
    seconds: f64,
    namespace: Option<&str>,
) -> Vec<Rate> {
    // By way: what was counted ever, and since.
    let mut sums = BTreeMap::<&Way, (BothEnds, BothEnds)>::new();
    for (name, tallies) in after {
        let Some(earlier) = before.get(name) else { continue };
        for (way, ends) in tallies {
            let begin = earlier.get(way).copied().unwrap_or_default();
            let (ever, since) = sums.entry(way).or_default();
            ever.outbound.add(ends.outbound);
            ever.inbound.add(ends.inbound);
            since.outbound.add(difference(ends.outbound, begin.outbound));
            since.inbound.add(difference(ends.inbound, begin.inbound));
        }
    }
    let rate = |(way, (ever, since)): (&Way, (BothEnds, BothEnds))| {
        let is_by_caller = ever.outbound.opened > 0;
        let since = if is_by_caller { since.outbound } else { since.inbound };
        let (from, to, transport) = way.clone();
        Rate {
            from,
            to,
            transport,
            open: ever.believed().open,
            opened_per_second: since.opened as f64 / seconds,
            sent_bytes_per_second: since.sent_bytes as f64 / seconds,
            received_bytes_per_second: since.received_bytes as f64 / seconds,
        }
    };
    let is_shown = |rate: &Rate| {
        (rate.open > 0 || rate.opened_per_second > 0.0 || rate.bytes() > 0)
            && touches([&rate.from, &rate.to], namespace)
    };
    let mut rates: Vec<Rate> = sums.into_iter().map(rate).filter(is_shown).collect();
    // Where nothing moves the order is that of the names.
    rates.sort_by_key(|rate| Reverse(rate.bytes()));
    rates
}

/// What was added. An agent that was started anew counts from nothing.
fn difference(after: Counted, before: Counted) -> Counted {
    Counted {
        opened: after.opened.saturating_sub(before.opened),
        open: after.open,
        sent_bytes: after.sent_bytes.saturating_sub(before.sent_bytes),
        received_bytes: after.received_bytes.saturating_sub(before.received_bytes),
    }
}

impl Rate {
    fn bytes(&self) -> u64 {
        (self.sent_bytes_per_second + self.received_bytes_per_second) as u64
    }
}

impl Rates {
    fn render(&self, paint: Paint) -> String {
        let mut table = Table::new(&["FROM", "TO", "TRANSPORT", "OPEN", "OPENED/S", "SENT/S", "RECEIVED/S"]);
        for rate in &self.rates {
            table.push(vec![
                Cell::plain(&rate.from),
                Cell::plain(&rate.to),
                Cell::new(&rate.transport, tone(&rate.transport)),
                Cell::plain(rate.open.to_string()),
                Cell::plain(format!("{:.1}", rate.opened_per_second)),
                Cell::plain(words::bytes(rate.sent_bytes_per_second as u64)),
                Cell::plain(words::bytes(rate.received_bytes_per_second as u64)),
            ]);
        }
        let lines = Unanswered::lines(&self.unanswered, paint);
        match self.rates.is_empty() {
            true => format!("nothing is carried now\n{lines}"),
            false => format!("{}{lines}", table.render(paint)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(direction: &str, to: &str, opened: u64, sent: u64) -> String {
        let labels = format!(
            "direction=\"{direction}\",transport=\"tunnel\",source_namespace=\"shop\",source_service_account=\"web\",\
             destination_namespace=\"shop\",destination_service_account=\"{to}\""
        );
        format!(
            "nodemesh_connections_opened_total{{{labels}}} {opened}\nnodemesh_connections_open{{{labels}}} 1\n\
             nodemesh_sent_bytes_total{{{labels}}} {sent}\n"
        )
    }

    fn reading(agents: &[(&str, String)]) -> BTreeMap<Name, Tallies> {
        let name = |node: &str| Name { node: node.into(), pod: None };
        agents.iter().map(|(node, metrics)| (name(node), tallies(metrics.as_bytes()))).collect()
    }

    #[test]
    fn what_is_added_between_two_readings() {
        let before = reading(&[("a", of("outbound", "api", 10, 1000)), ("b", of("inbound", "api", 10, 1000))]);
        let table = [
            (
                "both ends count it once",
                vec![("a", of("outbound", "api", 14, 5000)), ("b", of("inbound", "api", 14, 4000))],
                vec![("api", 2.0, 2000.0)],
            ),
            (
                "a new way begins at nothing",
                vec![("a", of("outbound", "api", 10, 1000) + &of("outbound", "cart", 2, 6000))],
                vec![("cart", 1.0, 3000.0), ("api", 0.0, 0.0)],
            ),
            (
                "an agent that was away is not told as a burst",
                vec![("a", of("outbound", "api", 12, 1000)), ("c", of("outbound", "api", 9000, 900_000))],
                vec![("api", 1.0, 0.0)],
            ),
            (
                "one that was started anew is not told as less than nothing",
                vec![("a", of("outbound", "api", 1, 10))],
                vec![("api", 0.0, 0.0)],
            ),
            ("nobody answers", vec![], vec![]),
        ];
        for (what, after, expected) in table {
            let rates = rates(&before, &reading(&after), 2.0, None);
            let shown: Vec<(&str, f64, f64)> = rates
                .iter()
                .map(|rate| {
                    (rate.to.strip_prefix("shop/").unwrap(), rate.opened_per_second, rate.sent_bytes_per_second)
                })
                .collect();
            assert_eq!(shown, expected, "{what}");
        }
        let after = reading(&[("a", of("outbound", "api", 14, 5000))]);
        assert!(rates(&before, &after, 2.0, Some("other")).is_empty());
        assert_eq!(rates(&before, &after, 2.0, Some("shop")).len(), 1);
    }
}
