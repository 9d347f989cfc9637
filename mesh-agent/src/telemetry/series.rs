//! The counters of connections, kept per [`ConnectionKey`], with an end to how many keys there can be.
//!
//! Identities come and go with the cluster, and a scrape must not grow with its history: at [`MAX_SERIES`] keys, those
//! that were idle for [`IDLE`] make room; if none was, the connection counts under one overflow key, whose names are
//! [`OVERFLOW_NAME`], and the overflow itself is counted.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::{ConnectionKey, ConnectionResult, Direction};

/// How many keys are kept. Each is about ten lines of 250 bytes in a scrape: 2.5 MB at most.
pub const MAX_SERIES: usize = 1024;

/// How long a key without an open connection stays when room is needed: longer than any scrape interval, so that its
/// last counts have been read.
pub const IDLE: Duration = Duration::from_secs(15 * 60);

/// How often, at most, a full table is searched for idle keys.
pub(super) const SWEEP_INTERVAL: Duration = Duration::from_secs(10);

/// The namespace and service account of the overflow key. Not a valid Kubernetes name, so no workload can have it.
pub const OVERFLOW_NAME: &str = "_overflow";

/// How many kinds of result there are.
pub(super) const RESULTS: usize = 5;

/// The names of the results, by their place in [`Series::closed`].
pub(super) const RESULT_NAMES: [&str; RESULTS] = ["ok", "denied", "refused", "failed", "cut"];

/// The counters of one key.
#[derive(Debug, Default)]
pub(super) struct Series {
    /// Connections that were opened.
    pub opened: AtomicU64,
    /// Connections that are open now.
    pub open: AtomicI64,
    /// Connections that were closed, by [`result_index`].
    closed: [AtomicU64; RESULTS],
    /// Application bytes, client to server.
    pub sent: AtomicU64,
    /// Application bytes, server to client.
    pub received: AtomicU64,
    /// Milliseconds after the table's birth at which the last connection opened or closed.
    last_used: AtomicU64,
}

impl Series {
    /// The counter of connections that ended so.
    pub fn closed(&self, result: &ConnectionResult) -> &AtomicU64 {
        let [ok, denied, refused, failed, cut] = &self.closed;
        match result {
            ConnectionResult::Ok => ok,
            ConnectionResult::Denied { .. } => denied,
            ConnectionResult::Refused { .. } => refused,
            ConnectionResult::Failed { .. } => failed,
            ConnectionResult::Cut { .. } => cut,
        }
    }

    /// Name and count of every kind of result.
    pub fn closed_by_name(&self) -> impl Iterator<Item = (&'static str, u64)> {
        RESULT_NAMES.into_iter().zip(self.closed.iter().map(|count| count.load(Ordering::Relaxed)))
    }
}

/// All keys and their counters. The lock is held for one look-up; counting needs none.
#[derive(Debug)]
pub(super) struct SeriesTable {
    born: Instant,
    capacity: usize,
    inner: RwLock<Inner>,
    /// Where connections count that found no room, by direction.
    overflow: [(Direction, Arc<Series>); 2],
    overflowed: AtomicU64,
}

/// Whose counters a [`Series`] is.
#[derive(Clone, Debug)]
pub(super) enum Owner {
    /// Those of one key.
    Key(ConnectionKey),
    /// Those of every connection of this direction that found no room.
    Overflow(Direction),
}

#[derive(Debug, Default)]
struct Inner {
    by_key: HashMap<ConnectionKey, Arc<Series>>,
    last_sweep: Option<Instant>,
}

impl SeriesTable {
    /// An empty table for at most `capacity` keys.
    pub fn new(capacity: usize) -> Self {
        Self {
            born: Instant::now(),
            capacity,
            inner: RwLock::default(),
            overflow: [Direction::Outbound, Direction::Inbound].map(|direction| (direction, Arc::default())),
            overflowed: AtomicU64::new(0),
        }
    }

    /// The counters of `key`.
    pub fn series(&self, key: &ConnectionKey) -> Arc<Series> {
        if let Some(series) = self.inner.read().unwrap_or_else(PoisonError::into_inner).by_key.get(key) {
            return series.clone();
        }
        self.insert(key, Instant::now())
    }

    /// Notes that a connection of this series opened or closed now.
    pub fn touch(&self, series: &Series) {
        series.last_used.store(self.age(Instant::now()), Ordering::Relaxed);
    }

    /// How many connections counted under the overflow key.
    pub fn overflowed(&self) -> u64 {
        self.overflowed.load(Ordering::Relaxed)
    }

    /// Every key with its counters; those of the overflow only once it was needed.
    pub fn snapshot(&self) -> Vec<(Owner, Arc<Series>)> {
        let mut all: Vec<_> = {
            let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
            inner.by_key.iter().map(|(key, series)| (Owner::Key(key.clone()), series.clone())).collect()
        };
        let used = self.overflow.iter().filter(|(_, series)| series.opened.load(Ordering::Relaxed) > 0);
        all.extend(used.map(|(direction, series)| (Owner::Overflow(*direction), series.clone())));
        all
    }

    fn insert(&self, key: &ConnectionKey, now: Instant) -> Arc<Series> {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(series) = inner.by_key.get(key) {
            return series.clone();
        }
        if inner.by_key.len() >= self.capacity {
            self.sweep(&mut inner, now);
        }
        if inner.by_key.len() >= self.capacity {
            self.overflowed.fetch_add(1, Ordering::Relaxed);
            let [outbound, inbound] = &self.overflow;
            let (_, series) = match key.direction {
                Direction::Outbound => outbound,
                Direction::Inbound => inbound,
            };
            return series.clone();
        }
        let series = Arc::new(Series::default());
        series.last_used.store(self.age(now), Ordering::Relaxed);
        inner.by_key.insert(key.clone(), series.clone());
        series
    }

    fn sweep(&self, inner: &mut Inner, now: Instant) {
        if inner.last_sweep.is_some_and(|last| now.duration_since(last) < SWEEP_INTERVAL) {
            return;
        }
        inner.last_sweep = Some(now);
        let age = self.age(now);
        let is_idle = |series: &Series| age.saturating_sub(series.last_used.load(Ordering::Relaxed)) >= millis(IDLE);
        // A handle outside the table may be about to count: only a series that nobody holds may go.
        inner.by_key.retain(|_, series| Arc::strong_count(series) > 1 || !is_idle(series));
    }

    fn age(&self, now: Instant) -> u64 {
        millis(now.duration_since(self.born))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::Transport;
    use super::*;
    use crate::spiffe::SpiffeId;

    fn key(number: usize) -> ConnectionKey {
        let source = SpiffeId::new("cluster.local", "shop", &format!("client-{number}")).unwrap();
        ConnectionKey {
            direction: Direction::Inbound,
            transport: Transport::Tunnel,
            source: Some(source),
            destination: None,
        }
    }

    #[test]
    fn a_full_table_counts_the_rest_under_one_key() {
        let table = SeriesTable::new(2);
        for number in 0..5 {
            table.series(&key(number)).opened.fetch_add(1, Ordering::Relaxed);
        }
        assert_eq!(table.overflowed(), 3);
        assert_eq!(table.snapshot().len(), 3, "two keys and the overflow of one direction");
        table.series(&key(1)).opened.fetch_add(1, Ordering::Relaxed);
        assert_eq!(table.overflowed(), 3, "a known key has its place");
    }

    #[test]
    fn idle_keys_make_room_and_open_ones_stay() {
        let table = SeriesTable::new(2);
        let held = table.series(&key(0));
        drop(table.series(&key(1)));
        let later = Instant::now() + IDLE + Duration::from_secs(1);
        let new = table.insert(&key(2), later);
        assert_eq!(table.overflowed(), 0);
        assert!(Arc::ptr_eq(&held, &table.series(&key(0))));
        assert!(Arc::ptr_eq(&new, &table.series(&key(2))));
        table.insert(&key(1), later);
        assert_eq!(table.overflowed(), 1, "both are in use");
    }
}
