//! Counters by key, with an end to how many keys there can be.
//!
//! Identities come and go with the cluster, and a scrape must not grow with its history. A full table counts what it has
//! no room for under one key for each direction, whose names are [`OVERFLOW_NAME`], and counts that it did. Keys leave in
//! [`Table::sweep`]: those that name whom the mesh does not have any more after [`GRACE`], and in a full table those that
//! nothing was counted under for [`IDLE`].

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::Direction;
use crate::spiffe::SpiffeId;

/// The names in the labels of what found no room. Not a valid Kubernetes name, so no workload can have it.
pub const OVERFLOW_NAME: &str = "_overflow";

/// How long a key stays after its last count when whom it names is gone: longer than any scrape interval, so that its
/// last counts have been read.
pub const GRACE: Duration = Duration::from_secs(5 * 60);

/// How long a key stays in a full table without a count.
pub const IDLE: Duration = Duration::from_secs(15 * 60);

/// How often tables are swept.
pub const SWEEP_INTERVAL: Duration = Duration::from_secs(30);

/// Whom the mesh has, as discovery knows it.
#[derive(Clone, Debug, Default)]
pub struct Present {
    /// Of all pods.
    pub identities: HashSet<SpiffeId>,
    /// As `<namespace>/<name>`.
    pub services: HashSet<Arc<str>>,
}

impl Present {
    /// Whether it is there; nobody is, always.
    pub(super) fn has(&self, identity: Option<&SpiffeId>) -> bool {
        identity.is_none_or(|identity| self.identities.contains(identity))
    }

    /// Whether it is there; no Service is, always.
    pub(super) fn has_service(&self, service: Option<&Arc<str>>) -> bool {
        service.is_none_or(|service| self.services.contains(service))
    }
}

/// What counters are kept by.
pub(super) trait Key: Clone + Eq + Hash {
    /// Under which of the overflow's keys it counts.
    fn direction(&self) -> Direction;
    /// Whether all whom it names are there.
    fn is_present(&self, present: &Present) -> bool;
}

/// What is kept for a key.
pub(super) trait Counters: Default {
    /// Grows whenever something is counted.
    fn counted(&self) -> u64;
}

impl Counters for AtomicU64 {
    fn counted(&self) -> u64 {
        self.load(Ordering::Relaxed)
    }
}

/// All keys and their counters. The lock is held for one look-up; counting needs none.
#[derive(Debug)]
pub(super) struct Table<K, C> {
    capacity: usize,
    by_key: RwLock<HashMap<K, Arc<Entry<C>>>>,
    /// Where counts that find no room go: outbound, inbound.
    overflow: [Arc<Entry<C>>; 2],
    overflowed: AtomicU64,
    born: Instant,
}

/// The counters of one key, and what the sweep saw of them.
#[derive(Debug, Default)]
pub(super) struct Entry<C> {
    pub counters: C,
    /// What [`Counters::counted`] said then.
    seen: AtomicU64,
    /// Milliseconds from the table's birth to the sweep that saw it move last.
    moved: AtomicU64,
}

/// Whose counters an entry has.
#[derive(Clone, Debug)]
pub(super) enum Owner<K> {
    /// Those of one key.
    Key(K),
    /// Those of everything of this direction that found no room.
    Overflow(Direction),
}

impl<K: Key, C: Counters> Table<K, C> {
    /// An empty table for at most `capacity` keys.
    pub fn new(capacity: usize) -> Self {
        let (by_key, overflow) = (RwLock::default(), Default::default());
        Self { capacity, by_key, overflow, overflowed: AtomicU64::new(0), born: Instant::now() }
    }

    /// The counters of `key`, and whether they are its own.
    pub fn entry(&self, key: &K) -> (Arc<Entry<C>>, bool) {
        let is_full = {
            let by_key = self.by_key.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(entry) = by_key.get(key) {
                return (entry.clone(), true);
            }
            by_key.len() >= self.capacity
        };
        // Who finds no room takes the lock for reading alone: a flood of keys stops nobody who has a place.
        if !is_full {
            let mut by_key = self.by_key.write().unwrap_or_else(PoisonError::into_inner);
            if by_key.len() < self.capacity || by_key.contains_key(key) {
                let moved = AtomicU64::new(self.age(Instant::now()));
                let new = || Arc::new(Entry { moved, ..Entry::default() });
                return (by_key.entry(key.clone()).or_insert_with(new).clone(), true);
            }
        }
        self.overflowed.fetch_add(1, Ordering::Relaxed);
        let [outbound, inbound] = &self.overflow;
        let entry = if key.direction() == Direction::Outbound { outbound } else { inbound };
        (entry.clone(), false)
    }

    /// How much counted under the overflow's keys.
    pub fn overflowed(&self) -> u64 {
        self.overflowed.load(Ordering::Relaxed)
    }

    /// Every key with its counters; those of the overflow only once it was needed.
    pub fn snapshot(&self) -> Vec<(Owner<K>, Arc<Entry<C>>)> {
        let mut all: Vec<_> = self.entries().into_iter().map(|(key, entry)| (Owner::Key(key), entry)).collect();
        let of_directions = [Direction::Outbound, Direction::Inbound].into_iter().zip(&self.overflow);
        let used = of_directions.filter(|(_, entry)| entry.counters.counted() > 0);
        all.extend(used.map(|(direction, entry)| (Owner::Overflow(direction), entry.clone())));
        all
    }

    /// Lets go of what need not be kept.
    pub fn sweep(&self, present: &Present, now: Instant) {
        let entries = self.entries();
        let is_full = entries.len() >= self.capacity;
        let age = self.age(now);
        let goes = |(key, entry): &(K, Arc<Entry<C>>)| {
            let counted = entry.counters.counted();
            if entry.seen.swap(counted, Ordering::Relaxed) != counted {
                entry.moved.store(age, Ordering::Relaxed);
            }
            let idle = age.saturating_sub(entry.moved.load(Ordering::Relaxed));
            (idle >= millis(GRACE) && !key.is_present(present)) || (is_full && idle >= millis(IDLE))
        };
        let going: Vec<K> = entries.into_iter().filter(goes).map(|(key, _)| key).collect();
        if going.is_empty() {
            return;
        }
        let mut by_key = self.by_key.write().unwrap_or_else(PoisonError::into_inner);
        for key in going {
            // A handle outside the table may be about to count: only what nobody holds may go.
            if by_key.get(&key).is_some_and(|entry| Arc::strong_count(entry) == 1) {
                by_key.remove(&key);
            }
        }
    }

    fn entries(&self) -> Vec<(K, Arc<Entry<C>>)> {
        let by_key = self.by_key.read().unwrap_or_else(PoisonError::into_inner);
        by_key.iter().map(|(key, entry)| (key.clone(), entry.clone())).collect()
    }

    fn age(&self, now: Instant) -> u64 {
        millis(now.saturating_duration_since(self.born))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, PartialEq, Eq, Hash)]
    struct Caller(SpiffeId);

    impl Key for Caller {
        fn direction(&self) -> Direction {
            Direction::Inbound
        }

        fn is_present(&self, present: &Present) -> bool {
            present.has(Some(&self.0))
        }
    }

    fn key(number: usize) -> Caller {
        Caller(SpiffeId::new("cluster.local", "shop", &format!("client-{number}")).unwrap())
    }

    fn present(numbers: &[usize]) -> Present {
        let identities = numbers.iter().map(|number| key(*number).0).collect();
        Present { identities, services: HashSet::new() }
    }

    fn table(capacity: usize, keys: usize) -> Table<Caller, AtomicU64> {
        let table = Table::<Caller, AtomicU64>::new(capacity);
        for number in 0..keys {
            table.entry(&key(number)).0.counters.fetch_add(1, Ordering::Relaxed);
        }
        table
    }

    fn kept(table: &Table<Caller, AtomicU64>) -> Vec<Caller> {
        let mut kept: Vec<_> = table.entries().into_iter().map(|(key, _)| key).collect();
        kept.sort_by_key(|Caller(id)| id.to_string());
        kept
    }

    #[test]
    fn a_full_table_counts_the_rest_under_one_key() {
        let table = table(2, 5);
        assert_eq!(table.overflowed(), 3);
        assert_eq!(table.snapshot().len(), 3, "two keys and the overflow of one direction");
        let (_, has_place) = table.entry(&key(1));
        assert!(has_place && table.overflowed() == 3, "a known key has its place");
    }

    #[test]
    fn keys_go_with_whom_they_name() {
        let table = table(10, 3);
        let now = Instant::now();
        // The first sweep sees that all have moved.
        table.sweep(&present(&[0]), now);
        table.sweep(&present(&[0]), now + GRACE - Duration::from_secs(1));
        assert_eq!(kept(&table).len(), 3, "their last counts may not have been read yet");
        let held = table.entry(&key(2)).0;
        table.sweep(&present(&[0]), now + GRACE);
        assert_eq!(kept(&table), [key(0), key(2)], "one is there, the other is in use");
        held.counters.fetch_add(1, Ordering::Relaxed);
        drop(held);
        table.sweep(&present(&[0]), now + 2 * GRACE);
        assert_eq!(kept(&table), [key(0), key(2)], "it was counted under a moment ago");
        table.sweep(&present(&[0]), now + 3 * GRACE);
        assert_eq!(kept(&table), [key(0)]);
    }

    #[test]
    fn idle_keys_make_room_in_a_full_table_alone() {
        for (capacity, expected) in [(3, 2), (2, 1)] {
            let table = table(capacity, 2);
            let now = Instant::now();
            let used = table.entry(&key(0)).0;
            table.sweep(&present(&[0, 1]), now);
            table.sweep(&present(&[0, 1]), now + IDLE);
            assert_eq!(kept(&table).len(), expected, "of {capacity}");
            drop(used);
        }
    }
}
