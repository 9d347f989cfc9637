//! What was added between two rounds, by edge: what is now, and a quarter of an hour of points for charts. Time is handed in.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde::Serialize;

use super::reading::{Counts, Edge, Ends, Party, Reading};
use crate::told::Name;

/// What is now.
pub(super) const WINDOW: Duration = Duration::from_secs(10);
/// What one point of a chart stands for.
pub(super) const SAMPLE: Duration = Duration::from_secs(5);
/// How many points are kept.
pub(super) const SAMPLES: usize = 180;
/// How many edges have a history.
pub(super) const MOST_EDGES: usize = 1024;

/// One point of a chart.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sample {
    /// Unix time at its end.
    pub at: f64,
    /// Requests in a second.
    pub requests: f32,
    /// The part of them that succeeded; none where there were none.
    pub success: Option<f32>,
    /// Seconds.
    pub p50: Option<f32>,
    /// Seconds.
    pub p99: Option<f32>,
    /// Connections opened in a second.
    pub opened: f32,
    /// Requests and connections refused in a second.
    pub denied: f32,
    /// Bytes in a second, either way.
    pub bytes: f32,
}

/// What is known of an edge.
#[derive(Debug, Default)]
pub struct Track {
    /// Since the agents started.
    pub ever: Ends,
    /// What rounds within [`WINDOW`] added: when, in how many seconds, what.
    recent: VecDeque<(f64, f64, Ends)>,
    /// Since the last point of the chart: in how many seconds, what.
    gathered: (f64, Ends),
    /// The points.
    pub samples: VecDeque<Sample>,
    /// Unix time at which something moved last.
    pub active: Option<f64>,
}

/// What was added within the window.
pub struct Now {
    /// How long that was, in seconds; not nothing.
    pub seconds: f64,
    /// What.
    pub counts: Counts,
}

/// All edges.
#[derive(Debug, Default)]
pub struct History {
    tracks: BTreeMap<Edge, Track>,
    /// What each agent said last, and when.
    last: BTreeMap<Name, (f64, Reading)>,
    /// Edges that found no room.
    overflowed: u64,
}

impl History {
    /// Takes a round: what agents count at a time (Unix). `shown` says by which edge one is shown.
    pub fn take(&mut self, at: f64, readings: BTreeMap<Name, Reading>, shown: impl Fn(&Edge) -> Edge) {
        let mut added = BTreeMap::<Edge, Ends>::new();
        let mut seconds = 0.0_f64;
        for (name, reading) in &readings {
            // What an agent counted before it was first asked is not of now.
            let Some((then, before)) = self.last.get(name) else { continue };
            seconds = seconds.max(at - then);
            for (edge, ends) in reading {
                let begin = before.get(edge).cloned().unwrap_or_default();
                added.entry(shown(edge)).or_default().add(&ends.since(&begin));
            }
        }
        self.last.extend(readings.into_iter().map(|(name, reading)| (name, (at, reading))));
        self.last.retain(|_, (then, _)| at - *then < SAMPLE.as_secs_f64() * SAMPLES as f64);
        let mut ever = BTreeMap::<Edge, Ends>::new();
        for (edge, ends) in self.last.values().flat_map(|(_, reading)| reading) {
            ever.entry(shown(edge)).or_default().add(ends);
        }
        self.tracks.values_mut().for_each(|track| track.ever = Ends::default());
        self.overflowed = 0;
        let (mut rest, mut rest_ever) = (Ends::default(), Ends::default());
        for (edge, ever) in ever {
            let added = added.remove(&edge).unwrap_or_default();
            if self.tracks.contains_key(&edge) || self.tracks.len() < MOST_EDGES {
                self.tracks.entry(edge).or_default().take(at, seconds, added, ever);
            } else {
                self.overflowed += 1;
                rest.add(&added);
                rest_ever.add(&ever);
            }
        }
        if self.overflowed > 0 {
            self.tracks.entry((Party::Other, Party::Other)).or_default().take(at, seconds, rest, rest_ever);
        }
        self.tracks.values_mut().for_each(|track| track.age(at));
        // An edge goes with the last agent that counted it.
        self.tracks.retain(|_, track| track.ever != Ends::default() || !track.samples.is_empty());
    }

    /// All edges.
    pub fn tracks(&self) -> impl Iterator<Item = (&Edge, &Track)> {
        self.tracks.iter()
    }

    /// The edge with these names.
    pub fn track(&self, from: &str, to: &str) -> Option<(&Edge, &Track)> {
        self.tracks.iter().find(|((one, other), _)| one.id() == from && other.id() == to)
    }

    /// How many edges found no room in the last round.
    pub fn overflowed(&self) -> u64 {
        self.overflowed
    }
}

impl Track {
    fn take(&mut self, at: f64, seconds: f64, added: Ends, ever: Ends) {
        self.ever = ever;
        if seconds <= 0.0 {
            return;
        }
        if moves(&added.believed(&self.ever)) {
            self.active = Some(at);
        }
        self.gathered.0 += seconds;
        self.gathered.1.add(&added);
        if self.gathered.0 + 0.5 >= SAMPLE.as_secs_f64() {
            let (seconds, gathered) = std::mem::take(&mut self.gathered);
            if self.samples.len() >= SAMPLES {
                self.samples.pop_front();
            }
            self.samples.push_back(sample(at, seconds, &gathered.believed(&self.ever)));
        }
        self.recent.push_back((at, seconds, added));
    }

    fn age(&mut self, at: f64) {
        while self.recent.front().is_some_and(|(then, _, _)| at - then >= WINDOW.as_secs_f64()) {
            self.recent.pop_front();
        }
        while self.samples.front().is_some_and(|sample| at - sample.at >= SAMPLE.as_secs_f64() * SAMPLES as f64) {
            self.samples.pop_front();
        }
    }

    /// What was added within the window.
    pub fn now(&self) -> Now {
        let mut sum = Ends::default();
        let mut seconds = 0.0;
        for (_, took, added) in &self.recent {
            seconds += took;
            sum.add(added);
        }
        let mut counts = sum.believed(&self.ever);
        // What is open is that of the last round.
        let last = self.recent.back().map(|(_, _, added)| added.believed(&self.ever));
        counts.connections.open = last.map_or(0, |last| last.connections.open);
        Now { seconds: f64::max(seconds, 1.0), counts }
    }
}

fn moves(added: &Counts) -> bool {
    let Counts { connections, failed, denied, requests, transports: _ } = added;
    connections.opened + connections.sent_bytes + connections.received_bytes + failed + denied > 0 || requests.count > 0
}

/// The part of requests that succeeded.
pub fn success(counts: &Counts) -> Option<f64> {
    let requests = &counts.requests;
    let good = requests.count.saturating_sub(requests.failed.saturating_add(requests.denied));
    (requests.count > 0).then(|| good as f64 / requests.count as f64)
}

fn sample(at: f64, seconds: f64, counts: &Counts) -> Sample {
    let rate = |count: u64| (count as f64 / seconds) as f32;
    let connections = counts.connections;
    let bytes = connections.sent_bytes.saturating_add(connections.received_bytes);
    Sample {
        at,
        requests: rate(counts.requests.count),
        success: success(counts).map(|part| part as f32),
        p50: counts.requests.quantile(0.5).map(|time| time as f32),
        p99: counts.requests.quantile(0.99).map(|time| time as f32),
        opened: rate(connections.opened),
        denied: rate(counts.denied.saturating_add(counts.requests.denied)),
        bytes: rate(bytes.max(counts.requests.bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::reading::Requests;
    use super::*;

    fn edge(to: &str) -> Edge {
        (Party::Account("shop/web".into()), Party::Account(format!("shop/{to}")))
    }

    fn reading(edges: &[(&str, u64, u64)]) -> BTreeMap<Name, Reading> {
        let ends = |count: u64, failed: u64| {
            let requests = Requests { count, failed, ..Requests::default() };
            Ends { outbound: Counts { requests, ..Counts::default() }, inbound: Counts::default() }
        };
        let reading = edges.iter().map(|(to, count, failed)| (edge(to), ends(*count, *failed))).collect();
        BTreeMap::from([(Name { node: "n1".into(), pod: None }, reading)])
    }

    #[test]
    fn what_is_now_and_what_was() {
        let mut history = History::default();
        let mut at = 1000.0;
        let mut take = |history: &mut History, edges: &[(&str, u64, u64)]| {
            history.take(at, reading(edges), Clone::clone);
            at += 2.0;
        };
        let now = |history: &History| {
            let now = history.track("shop/web", "shop/api").unwrap().1.now();
            (now.counts.requests.count as f64 / now.seconds, success(&now.counts))
        };
        take(&mut history, &[("api", 5000, 0)]);
        assert_eq!(now(&history), (0.0, None), "what was before the first round is not of now");
        for count in [5010, 5020, 5030] {
            take(&mut history, &[("api", count, 0)]);
        }
        assert_eq!(now(&history), (5.0, Some(1.0)));
        take(&mut history, &[("api", 5040, 10)]);
        assert_eq!(now(&history).1, Some(0.75), "a failure shows in the round that it is told in");
        for _ in 0..5 {
            take(&mut history, &[("api", 5040, 10)]);
        }
        assert_eq!(now(&history), (0.0, None), "and is over after the window");
        let track = history.track("shop/web", "shop/api").unwrap().1;
        assert_eq!(track.samples.len(), 3);
        assert_eq!(track.samples[1].success, Some(0.0), "a point keeps what its own seconds added: all of ten failed");
        take(&mut history, &[("api", 3, 0)]);
        assert_eq!(now(&history), (0.0, None), "an agent that was started anew");
        for _ in 0..(SAMPLES * 3) {
            take(&mut history, &[]);
        }
        assert_eq!(history.tracks().count(), 0, "what nobody counts any longer");
    }

    #[test]
    fn edges_are_bounded() {
        let mut history = History::default();
        for round in 0..3 {
            let edges: Vec<(String, u64, u64)> =
                (0..MOST_EDGES + 50).map(|number| (format!("a{number:05}"), round * 10, 0)).collect();
            let edges: Vec<(&str, u64, u64)> = edges.iter().map(|(name, a, b)| (name.as_str(), *a, *b)).collect();
            history.take(round as f64 * 2.0, reading(&edges), Clone::clone);
        }
        assert_eq!(history.tracks().count(), MOST_EDGES + 1);
        assert_eq!(history.overflowed(), 50);
        let rest = history.track("other", "other").unwrap().1.now();
        assert_eq!(rest.counts.requests.count, 1000, "fifty edges of ten a round in two rounds");
    }

    #[test]
    fn a_service_is_shown_by_who_serves_it() {
        let mut history = History::default();
        let shown = |edge: &Edge| (edge.0.clone(), Party::Account("shop/api".into()));
        for count in [0, 4] {
            history.take(count as f64, reading(&[("api", count, 0), ("nobody", count, count)]), shown);
        }
        let now = history.track("shop/web", "shop/api").unwrap().1.now();
        assert_eq!((now.counts.requests.count, now.counts.requests.failed), (8, 4));
    }
}
