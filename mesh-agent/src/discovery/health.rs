//! How good the state is: what was refused, and how old it is. Read by /config_dump and metrics.

use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use serde::Serialize;

use super::finding::Finding;

/// The health of the source. Cheap to clone; `run` writes, others read.
#[derive(Clone, Default)]
pub struct Health {
    current: Arc<ArcSwap<Report>>,
}

/// What is known about the source now.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The version of the snapshot in force.
    pub version: u64,
    /// When the source was last seen as it is in force; its age is that of the state. None before the first reading.
    pub seen: Option<SystemTime>,
    /// Why the source cannot be reached, if it cannot. The last good state stays in force.
    pub unreachable: Option<String>,
    /// Since when it has been so.
    pub unreachable_since: Option<SystemTime>,
    /// Objects in force, those kept from an earlier reading included.
    pub objects: usize,
    /// What is wrong in the source as it is now.
    pub findings: Vec<Finding>,
    /// The lists of an API server that are followed; empty for another source.
    pub watches: Vec<WatchReport>,
}

/// How a list of an API server stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WatchReport {
    /// What is listed.
    pub watch: &'static str,
    /// How it stands.
    pub state: WatchState,
    /// Since when.
    pub since: SystemTime,
    /// What is wrong, if something is.
    pub reason: Option<String>,
    /// How often it was made from its beginning.
    pub lists: u64,
    /// Requests that failed, by cause.
    pub failures: Vec<(&'static str, u64)>,
}

/// How a list stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum WatchState {
    /// It is on its way.
    Listing,
    /// It is whole, and changes come.
    Following,
    /// The API server does not serve the kind, which is empty.
    NotServed,
    /// The API server does not answer; what is in force stays.
    Unreachable,
    /// The API server does not allow it; what is in force stays.
    Forbidden,
    /// The API server answers otherwise; what is in force stays.
    Refused,
}

impl WatchState {
    /// As metrics have it.
    pub fn word(self) -> &'static str {
        match self {
            WatchState::Listing => "listing",
            WatchState::Following => "following",
            WatchState::NotServed => "not_served",
            WatchState::Unreachable => "unreachable",
            WatchState::Forbidden => "forbidden",
            WatchState::Refused => "refused",
        }
    }
}

impl Health {
    /// What is known now.
    pub fn report(&self) -> Arc<Report> {
        self.current.load_full()
    }

    pub(super) fn set(&self, report: Report) {
        self.current.store(Arc::new(report));
    }

    pub(super) fn seen_again(&self) {
        let seen = Some(SystemTime::now());
        self.set(Report { seen, unreachable: None, unreachable_since: None, ..(*self.report()).clone() });
    }

    pub(super) fn unreachable(&self, reason: String) {
        let report = self.report();
        let unreachable_since = report.unreachable_since.or_else(|| Some(SystemTime::now()));
        self.set(Report { unreachable: Some(reason), unreachable_since, ..(*report).clone() });
    }

    pub(super) fn watches(&self, watches: Vec<WatchReport>) {
        let report = self.report();
        if report.watches != watches {
            self.set(Report { watches, ..(*report).clone() });
        }
    }
}
