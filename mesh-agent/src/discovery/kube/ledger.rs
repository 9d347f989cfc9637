//! What is known of the lists that are followed: which are whole, which are in trouble, what vanished. Pure; the time is
//! handed in.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant, SystemTime};

use super::kinds::Watch;
use super::watch::{Cause, Failure, Heard};
use crate::discovery::health::{WatchReport, WatchState};
use crate::discovery::store::{Observed, Store};
use crate::state::Key;

/// How long the API server must say that it does not serve a kind, until what is in force of it goes: a definition that
/// is taken away takes its objects away first, and what has none left says nothing by being gone.
pub const CERTAIN: Duration = Duration::from_secs(60);

/// Now, by both clocks: people read the one, which may jump; what takes something away goes by the other.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// The time of day.
    pub wall: SystemTime,
    /// For how long.
    pub mono: Instant,
}

impl Moment {
    /// As the system's clocks have it.
    pub fn now() -> Self {
        Self { wall: SystemTime::now(), mono: Instant::now() }
    }
}

/// All lists, by their numbers.
pub struct Ledger {
    lists: Vec<List>,
    certain: Duration,
}

/// One list.
struct List {
    watch: Watch,
    standing: Standing,
    since: SystemTime,
    /// Whether it was whole once, or there is nothing to list.
    settled: bool,
    /// While it is made: what was there before and did not come yet.
    unseen: Option<HashSet<Key>>,
    /// Since when the API server has said that it does not serve the kind, and nothing else.
    not_served: Option<Instant>,
    lists: u64,
    failures: BTreeMap<Cause, u64>,
}

/// How a list stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Standing {
    /// It was asked for, or is on its way.
    Listing,
    /// It is whole, and changes come as they are made.
    Following,
    /// There is nothing to list.
    NotServed,
    /// It cannot be had; what is in force of it stays.
    Failing(Failure),
}

impl Ledger {
    /// Nothing is known yet.
    pub fn new(watches: Vec<Watch>, certain: Duration, now: SystemTime) -> Self {
        let list = |watch| List {
            watch,
            standing: Standing::Listing,
            since: now,
            settled: false,
            unseen: None,
            not_served: None,
            lists: 0,
            failures: BTreeMap::new(),
        };
        Self { lists: watches.into_iter().map(list).collect(), certain }
    }

    /// Takes what a watch tells. Says what the store is to be told.
    pub fn hear(&mut self, number: usize, heard: Heard, store: &Store, now: Moment) -> Vec<Observed> {
        let Some(list) = self.lists.get_mut(number) else { return Vec::new() };
        list.hear(heard, store, self.certain, now)
    }

    /// Whether every list was whole once, so that what is known can be shown.
    pub fn is_settled(&self) -> bool {
        self.lists.iter().all(|list| list.settled)
    }

    /// Whether what is in force is what the API server has.
    pub fn is_current(&self) -> bool {
        let current = |list: &List| matches!(list.standing, Standing::Following | Standing::NotServed);
        self.lists.iter().all(current)
    }

    /// What is wrong, in words for the operator.
    pub fn trouble(&self) -> Option<String> {
        let mut by_reason: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for list in &self.lists {
            let Some(reason) = list.trouble() else { continue };
            by_reason.entry(reason).or_default().push(list.watch.name);
        }
        let all = self.lists.len();
        let one = |(reason, names): (String, Vec<&str>)| match names.len() == all {
            true => reason,
            false => format!("{}: {reason}", names.join(", ")),
        };
        let text: Vec<String> = by_reason.into_iter().map(one).collect();
        (!text.is_empty()).then(|| text.join("; "))
    }

    /// What is still missing before the first snapshot.
    pub fn missing(&self) -> String {
        let missing: Vec<&str> = self.lists.iter().filter(|list| !list.settled).map(|list| list.watch.name).collect();
        format!("waiting for the lists of {}", missing.join(", "))
    }

    /// Every list, for people and metrics.
    pub fn report(&self) -> Vec<WatchReport> {
        let report = |list: &List| WatchReport {
            watch: list.watch.name,
            state: list.state(),
            since: list.since,
            reason: list.trouble(),
            lists: list.lists,
            failures: list.failures.iter().map(|(cause, count)| (cause.word(), *count)).collect(),
        };
        self.lists.iter().map(report).collect()
    }
}

impl List {
    fn hear(&mut self, heard: Heard, store: &Store, certain: Duration, moment: Moment) -> Vec<Observed> {
        let now = moment.wall;
        match heard {
            Heard::Listing => {
                self.unseen = Some(store.spoken_of(self.watch.name).cloned().collect());
                if self.standing == Standing::Following {
                    self.stands(Standing::Listing, now);
                }
                Vec::new()
            }
            Heard::Object(object, resource) => {
                self.answered(now);
                let Some(key) = object.key(self.watch.kind) else { return Vec::new() };
                if let Some(unseen) = &mut self.unseen {
                    unseen.remove(&key);
                }
                let generation = object.generation();
                vec![Observed { watch: self.watch.name, key, generation, object: Some(object.into_value(&resource)) }]
            }
            Heard::Gone(key) => {
                self.answered(now);
                vec![self.gone(key)]
            }
            Heard::Listed => {
                self.lists += 1;
                self.settled = true;
                self.not_served = None;
                self.stands(Standing::Following, now);
                let unseen = self.unseen.take().unwrap_or_default();
                unseen.into_iter().map(|key| self.gone(key)).collect()
            }
            Heard::Answered => {
                self.answered(now);
                Vec::new()
            }
            Heard::Expired => {
                self.stands(Standing::Listing, now);
                Vec::new()
            }
            Heard::NotServed => self.not_served(store, certain, moment),
            Heard::Failed(failure) => {
                *self.failures.entry(failure.cause).or_default() += 1;
                self.not_served = None;
                self.stands(Standing::Failing(failure), now);
                Vec::new()
            }
        }
    }

    fn answered(&mut self, now: SystemTime) {
        self.not_served = None;
        if let Standing::Failing(_) = self.standing {
            let standing =
                if self.unseen.is_some() || self.lists == 0 { Standing::Listing } else { Standing::Following };
            self.stands(standing, now);
        }
    }

    fn not_served(&mut self, store: &Store, certain: Duration, now: Moment) -> Vec<Observed> {
        self.unseen = None;
        self.stands(Standing::NotServed, now.wall);
        let Some(since) = self.not_served else {
            // Said once. Before the first snapshot it takes twice: an API server that starts may not know yet.
            self.not_served = Some(now.mono);
            return Vec::new();
        };
        self.settled = true;
        let lasts = now.mono.saturating_duration_since(since);
        if lasts < certain {
            return Vec::new();
        }
        let gone: Vec<Key> = store.spoken_of(self.watch.name).cloned().collect();
        if !gone.is_empty() {
            tracing::warn!(watch = self.watch.name, objects = gone.len(), "the kind is gone, and its objects with it");
        }
        gone.into_iter().map(|key| self.gone(key)).collect()
    }

    fn gone(&self, key: Key) -> Observed {
        Observed { watch: self.watch.name, key, generation: None, object: None }
    }

    /// A failure that goes on is the same, whatever is said of it each time.
    fn stands(&mut self, standing: Standing, now: SystemTime) {
        let state = self.state();
        self.standing = standing;
        if self.state() != state {
            self.since = now;
        }
    }

    fn state(&self) -> WatchState {
        match &self.standing {
            Standing::Listing => WatchState::Listing,
            Standing::Following => WatchState::Following,
            Standing::NotServed => WatchState::NotServed,
            Standing::Failing(Failure { cause, .. }) => match cause {
                Cause::Unreachable => WatchState::Unreachable,
                Cause::Forbidden => WatchState::Forbidden,
                Cause::Refused => WatchState::Refused,
            },
        }
    }

    fn trouble(&self) -> Option<String> {
        let Standing::Failing(Failure { cause, reason }) = &self.standing else { return None };
        Some(match cause {
            Cause::Unreachable => format!("no answer: {reason}"),
            Cause::Forbidden => format!("not allowed: {reason}; the account needs {}", self.watch.rule()),
            Cause::Refused => format!("refused: {reason}"),
        })
    }
}

impl Cause {
    /// As metrics have it.
    pub fn word(self) -> &'static str {
        match self {
            Cause::Unreachable => "unreachable",
            Cause::Forbidden => "forbidden",
            Cause::Refused => "refused",
        }
    }
}
