//! What became of tunnels, over all workers of a process; for metrics.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::client::OpenError;

/// Counts tunnels that this process dials.
#[derive(Default)]
pub struct Tally {
    pub(super) tunnels: AtomicU64,
    pub(super) streams: AtomicU64,
    /// Locked once per tunnel that is made, or fails to be.
    establishments: Mutex<BTreeMap<&'static str, u64>>,
}

impl Tally {
    /// Tunnels that live, retired ones too.
    pub fn tunnels(&self) -> u64 {
        self.tunnels.load(Ordering::Relaxed)
    }

    /// Streams open on them, or waiting for their answer.
    pub fn streams(&self) -> u64 {
        self.streams.load(Ordering::Relaxed)
    }

    /// How tries to make a tunnel ended, by stable label: `ok`, or why not.
    pub fn establishments(&self) -> Vec<(&'static str, u64)> {
        self.by_result().iter().map(|(result, count)| (*result, *count)).collect()
    }

    pub(super) fn established<T>(&self, result: &Result<T, OpenError>) {
        let label = match result {
            Ok(_) => "ok",
            Err(error) => error.label(),
        };
        let mut by_result = self.by_result();
        let count = by_result.entry(label).or_default();
        *count = count.saturating_add(1);
    }

    fn by_result(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, u64>> {
        self.establishments.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
