//! What was added between two rounds, by edge: what is now, and a quarter of an hour of points for charts. Time is handed in.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
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
/// What charts show, in seconds.
const WHOLE: f64 = SAMPLE.as_secs() as f64 * SAMPLES as f64;
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
    /// In this round.
    added: Ends,
    /// What rounds within [`WINDOW`] added: when, in how many seconds, what.
    recent: VecDeque<(f64, f64, Ends)>,
    /// Since the last point of the chart: in how many seconds, what.
    gathered: (f64, Ends),
    /// The points.
    pub samples: VecDeque<Sample>,
    /// Unix time at which something moved last.
    pub active: Option<f64>,
    /// Unix time at which something failed or was refused last.
    troubled: Option<f64>,
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
    /// When the last round was.
    round: Option<f64>,
    /// Edges that found no room.
    overflowed: u64,
    /// Whether not all edges were read, in the round before and in the one that comes.
    cut: (bool, bool),
}

impl History {
    /// Says of the round that comes whether not all edges were read.
    pub fn mark_cut(&mut self, is_cut: bool) {
        self.cut = (self.cut.1, is_cut);
    }

    /// Takes a round: what agents count at a time (Unix). `shown` says by which edge one is shown.
    pub fn take(&mut self, at: f64, readings: BTreeMap<Name, Reading>, shown: impl Fn(&Edge) -> Edge) {
        let since = self.round.replace(at).map_or(0.0, |round| at - round);
        let is_cut = self.cut.0 || self.cut.1;
        let Self { tracks, last, .. } = self;
        tracks.values_mut().for_each(|track| (track.ever, track.added) = Default::default());
        let (mut rest, mut rest_ever) = (Ends::default(), Ends::default());
        let (mut without, mut crowded) = (BTreeSet::<Edge>::new(), BTreeMap::<Edge, bool>::new());
        let mut seconds = 0.0;
        for (name, reading) in &readings {
            // What an agent counted before it was first asked is not of now, nor what it counted while it was away.
            let Some((then, before)) = last.get(name) else { continue };
            if at - then > since + WINDOW.as_secs_f64() {
                continue;
            }
            seconds = since;
            for (edge, ends) in reading {
                let added = match before.get(edge) {
                    Some(before) => ends.since(before),
                    // It may have been counted for long where nobody read it.
                    None if is_cut => continue,
                    None => ends.clone(),
                };
                // What moves, or is open, has a place before what does not.
                if !added.is_movement() {
                    continue;
                }
                match place(tracks, shown(edge)) {
                    Ok(track) => track.added.add(&added),
                    Err(edge) => {
                        // What is only open has no claim on the place of another that is.
                        if added.has_moved() {
                            *crowded.entry(edge).or_default() |= added.is_trouble();
                        }
                        rest.add(&added);
                    }
                }
            }
        }
        let nodes: BTreeSet<String> = readings.keys().map(|name| name.node.clone()).collect();
        last.extend(readings.into_iter().map(|(name, reading)| (name, (at, reading))));
        // An agent whose successor tells has ended.
        last.retain(|name, (then, _)| *then == at || (at - *then < WHOLE && !nodes.contains(&name.node)));
        for (edge, ends) in last.values().flat_map(|(_, reading)| reading) {
            match place(tracks, shown(edge)) {
                Ok(track) => track.ever.add(ends),
                Err(edge) => {
                    without.insert(edge);
                    rest_ever.add(ends);
                }
            }
        }
        self.overflowed = without.len() as u64;
        if self.overflowed > 0 {
            let others = tracks.entry((Party::Other, Party::Other)).or_default();
            others.added.add(&rest);
            others.ever.add(&rest_ever);
        }
        for track in tracks.values_mut() {
            track.take(at, seconds);
            track.age(at);
        }
        // An edge goes with the last agent that counted it.
        tracks.retain(|_, track| track.ever != Ends::default() || !track.samples.is_empty());
        make_room(tracks, at, crowded);
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

/// The edge's place, or the edge where there is none.
fn place(tracks: &mut BTreeMap<Edge, Track>, edge: Edge) -> Result<&mut Track, Edge> {
    if tracks.len() >= MOST_EDGES && !tracks.contains_key(&edge) {
        return Err(edge);
    }
    Ok(tracks.entry(edge).or_default())
}

/// From the next round on whoever moves has the place of one that does not, and whoever is in trouble also that of one that
/// is not.
fn make_room(tracks: &mut BTreeMap<Edge, Track>, at: f64, crowded: BTreeMap<Edge, bool>) {
    let is_past = |time: Option<f64>| time.is_none_or(|time| at - time >= WHOLE);
    let all = |edge: &Edge| *edge == (Party::Other, Party::Other);
    let wanted = crowded.len();
    let (troubled, moving): (Vec<_>, Vec<_>) = crowded.into_iter().partition(|(_, is_trouble)| *is_trouble);
    let singles = || tracks.iter().filter(|(edge, _)| !all(edge));
    let idle = singles().filter(|(_, track)| is_past(track.active)).take(wanted);
    let mut going: Vec<Edge> = idle.map(|(edge, _)| edge.clone()).collect();
    let missing = troubled.len().saturating_sub(going.len());
    let well = singles().filter(|(_, track)| !is_past(track.active) && is_past(track.troubled)).take(missing);
    going.extend(well.map(|(edge, _)| edge.clone()));
    for (going, (coming, _)) in going.into_iter().zip(troubled.into_iter().chain(moving)) {
        tracks.remove(&going);
        tracks.insert(coming, Track::default());
    }
}

impl Track {
    fn take(&mut self, at: f64, seconds: f64) {
        let added = std::mem::take(&mut self.added);
        if seconds <= 0.0 || self.ever == Ends::default() {
            return;
        }
        if moves(&added.believed(&self.ever)) {
            self.active = Some(at);
        }
        if added.is_trouble() {
            self.troubled = Some(at);
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
        // A round that began before the window, such as one that nobody looked at, is of now for as long as it is the last.
        let begins = at - (WINDOW + super::LOOK_EVERY).as_secs_f64();
        while self.recent.len() > 1 && self.recent.front().is_some_and(|(then, took, _)| then - took < begins) {
            self.recent.pop_front();
        }
        while self.recent.front().is_some_and(|(then, _, _)| at - then >= WINDOW.as_secs_f64()) {
            self.recent.pop_front();
        }
        while self.samples.front().is_some_and(|sample| at - sample.at >= WHOLE) {
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

impl Ends {
    fn is_movement(&self) -> bool {
        self.has_moved() || [&self.outbound, &self.inbound].into_iter().any(|end| end.connections.open > 0)
    }

    fn has_moved(&self) -> bool {
        [&self.outbound, &self.inbound].into_iter().any(moves)
    }

    fn is_trouble(&self) -> bool {
        [&self.outbound, &self.inbound].into_iter().any(|Counts { failed, denied, requests, .. }| {
            [*failed, *denied, requests.failed, requests.denied].into_iter().any(|number| number > 0)
        })
    }
}

fn moves(added: &Counts) -> bool {
    let Counts { connections, failed, denied, requests, transports: _ } = added;
    let numbers = [connections.opened, connections.sent_bytes, connections.received_bytes, *failed, *denied];
    requests.count > 0 || requests.bytes > 0 || numbers.into_iter().any(|number| number > 0)
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

    /// Nobody looked for a while: a round stands for half a minute. What follows is not thinned by it.
    #[test]
    fn a_wide_round_is_of_now_until_there_is_another() {
        let mut history = History::default();
        let take = |history: &mut History, at: f64, count: u64| {
            history.take(at, reading(&[("api", count, 0)]), Clone::clone);
            let (_, track) = history.track("shop/web", "shop/api").unwrap();
            let now = track.now();
            (now.counts.requests.count as f64 / now.seconds, track.samples.back().map(|sample| sample.requests))
        };
        take(&mut history, 0.0, 100);
        assert_eq!(take(&mut history, 30.0, 400), (10.0, Some(10.0)), "what was, in one point");
        assert_eq!(take(&mut history, 60.0, 400), (0.0, Some(0.0)));
        assert_eq!(take(&mut history, 62.0, 500).0, 50.0, "of two seconds, and not of thirty-two");
        assert_eq!(take(&mut history, 64.0, 500).0, 25.0);
        // An agent that was away for ten minutes: what it counted meanwhile is of no round.
        for round in 0..300 {
            history.take(66.0 + f64::from(round) * 2.0, BTreeMap::new(), Clone::clone);
        }
        assert_eq!(take(&mut history, 666.0, 1_000_400).0, 0.0);
        assert_eq!(take(&mut history, 668.0, 1_000_410).0, 5.0);
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

    /// Those that move are shown, not those that came first.
    #[test]
    fn an_edge_that_moves_has_a_place_before_one_that_does_not() {
        let mut history = History::default();
        let names: Vec<String> = (0..MOST_EDGES + 50).map(|number| format!("a{number:05}")).collect();
        for round in 0..4 {
            let count = |number: usize| if number >= MOST_EDGES { 100 + round * 10 } else { 100 };
            let edges: Vec<_> = names.iter().enumerate().map(|(at, name)| (name.as_str(), count(at), 0)).collect();
            history.take(round as f64 * 2.0, reading(&edges), Clone::clone);
        }
        for name in &names[MOST_EDGES..] {
            let (_, track) = history.track("shop/web", &format!("shop/{name}")).unwrap();
            assert!(track.now().counts.requests.count > 0, "{name}");
        }
        assert_eq!((history.tracks().count(), history.overflowed()), (MOST_EDGES + 1, 50));

        // All of them move, and one without a place fails.
        let lost = "z";
        for round in 4..8 {
            let mut edges: Vec<_> = names.iter().map(|name| (name.as_str(), 200 + round * 10, 0)).collect();
            edges.push((lost, round * 10, (round - 4) * 10));
            history.take(round as f64 * 2.0, reading(&edges), Clone::clone);
        }
        let (_, track) = history.track("shop/web", "shop/z").unwrap();
        assert!(success(&track.now().counts).is_some_and(|part| part < 1.0));
        assert_eq!(history.tracks().count(), MOST_EDGES + 1);
    }

    /// What is only open takes nobody's place: charts would come and go.
    #[test]
    fn an_edge_that_is_only_open_stays_without_a_place() {
        let mut history = History::default();
        let names: Vec<String> = (0..MOST_EDGES + 50).map(|number| format!("a{number:05}")).collect();
        let mut places = Vec::new();
        for round in 0..4 {
            let edges: Vec<_> = names.iter().map(|name| (name.as_str(), 100, 0)).collect();
            let mut readings = reading(&edges);
            let all = readings.values_mut().flat_map(|reading| reading.values_mut());
            all.for_each(|ends| ends.outbound.connections.open = 1);
            history.take(round as f64 * 2.0, readings, Clone::clone);
            places.push(history.tracks().map(|(edge, _)| edge.clone()).collect::<BTreeSet<_>>());
        }
        assert!(places.windows(2).skip(1).all(|two| two[0] == two[1]));
    }

    /// An edge that nobody read before has been counted for long.
    #[test]
    fn what_was_cut_before_is_not_of_now() {
        for (is_cut, expected) in [(true, 0), (false, 5000)] {
            let mut history = History::default();
            for (round, edges) in
                [vec![("api", 1, 0)], vec![("api", 1, 0)], vec![("api", 1, 0), ("z", 5000, 0)]].iter().enumerate()
            {
                history.mark_cut(is_cut && round < 2);
                history.take(round as f64 * 2.0, reading(edges), Clone::clone);
            }
            let now = history.track("shop/web", "shop/z").unwrap().1.now();
            assert_eq!(now.counts.requests.count, expected, "cut: {is_cut}");
        }
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
