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
}
