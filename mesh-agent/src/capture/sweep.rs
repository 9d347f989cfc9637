//! Removes records that outlived their connection: those of an agent that ended between two steps.

use std::time::Duration;

use super::pod::Live;
use super::tables::Tables;
use crate::sys;

/// Longer than a SYN is retransmitted and a connection waits in an accept queue: an older record that no connection of
/// this agent holds has none. A filed four-tuple serves the SYN alone, so age is enough there.
pub(super) const STALE: Duration = Duration::from_secs(600);
/// More than any map holds.
pub(super) const MAX_KEYS: usize = 1 << 22;

pub(super) fn sweep(tables: &Tables, live: &Live) {
    let now = sys::monotonic_time();
    let is_stale = |time: u64| now.saturating_sub(time) > STALE.as_nanos() as u64;
    let mut removed = 0u64;
    removed += tables.dials.sweep(|key, record| !live.has_dial(key) && is_stale(record.time()));
    for key in tables.clients.keys(MAX_KEYS) {
        if !live.has_client(&key) && tables.clients.get(&key).is_some_and(|record| is_stale(record.time())) {
            tables.clients.remove(&key);
            removed += 1;
        }
    }
    for key in tables.filed.keys(MAX_KEYS) {
        if tables.filed.get(&key).is_some_and(|filed| is_stale(filed.time())) {
            tables.filed.remove(&key);
            removed += 1;
        }
    }
    for key in tables.probes.keys(MAX_KEYS) {
        if tables.probes.get(&key).is_some_and(|probe| is_stale(probe.time())) {
            tables.probes.remove(&key);
            removed += 1;
        }
    }
    if removed > 0 {
        tracing::debug!(removed, "stale records swept");
    }
}
