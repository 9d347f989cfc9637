//! The kernel's counters of outcomes.

use std::os::fd::AsFd;
use std::sync::Arc;

use mesh_common::outcome::Outcome;

use super::tables::Tables;
use crate::sys;

/// Reads the counters. Cheap to clone.
#[derive(Clone)]
pub struct OutcomeReader {
    tables: Arc<Tables>,
    cpus: usize,
}

impl OutcomeReader {
    pub(super) fn new(tables: Arc<Tables>) -> Self {
        // More room than CPUs does no harm; less would be written past.
        let cpus = aya::util::nr_cpus().unwrap_or(4_096);
        Self { tables, cpus }
    }

    /// Every outcome with how often it was met since the maps were made, summed over the CPUs.
    pub fn read(&self) -> Vec<(Outcome, u64)> {
        Outcome::ALL.iter().map(|outcome| (*outcome, self.count(*outcome))).collect()
    }

    fn count(&self, outcome: Outcome) -> u64 {
        let mut per_cpu = vec![0u64; self.cpus];
        match sys::map_lookup(self.tables.outcomes.as_fd(), &(outcome as u32), &mut per_cpu) {
            Ok(()) => per_cpu.iter().sum(),
            Err(_) => 0,
        }
    }
}
