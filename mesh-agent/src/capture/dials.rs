//! What applications dialled, and how many of these records each pod has: the kernel gives each its share by these numbers
//! (`mesh_common::share`), so whoever removes a record takes it off them. Kernel programs and agents add to the same memory.
//!
//! A process that ends between the two, or one that knew of no counts, leaves numbers that are wrong. The sweep puts them
//! right, where they stood still while it read the map.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};

use mesh_common::names::maps;
use mesh_common::record::{DialRecord, PodConfig};
use mesh_common::share::{ALL, COUNTERS, PLACES, Place};

use super::sweep::MAX_KEYS;
use super::table::Table;
use crate::sys;

/// The map of dials.
pub(super) struct Dials {
    records: Table<u64, DialRecord>,
    counts: &'static [AtomicI64],
}

impl Dials {
    pub fn open(directory: &Path) -> io::Result<Self> {
        let counts = sys::bpf_open(&directory.join(maps::DIAL_COUNTS))?;
        let counts = sys::map_numbers(counts.as_fd(), COUNTERS as usize)?;
        Ok(Self { records: Table::open(directory, maps::DIALS)?, counts })
    }

    /// The record of `key`.
    pub fn get(&self, key: &u64) -> Option<DialRecord> {
        self.records.get(key)
    }

    /// Removes a record, if it is there.
    pub fn remove(&self, key: &u64) {
        if let Some(counter) = self.records.take(key).and_then(|record| record.place().counter()) {
            self.add(ALL, -1);
            self.add(counter, -1);
        }
    }

    /// Removes the stale ones, puts the counts right, and says how many it removed.
    pub fn sweep(&self, is_stale: impl Fn(u64, &DialRecord) -> bool) -> u64 {
        let before = self.counted();
        let mut keys = self.records.keys(MAX_KEYS);
        let is_whole = keys.len() < MAX_KEYS;
        // A walk that was begun anew has met some of them twice.
        keys.sort_unstable();
        keys.dedup();
        let (mut removed, mut on_file) = (0, vec![0; before.len()]);
        for key in keys {
            let Some(record) = self.get(&key) else { continue };
            if is_stale(key, &record) {
                self.remove(&key);
                removed += 1;
                continue;
            }
            let Some(counter) = record.place().counter() else { continue };
            for counter in [ALL, counter] {
                if let Some(count) = on_file.get_mut(counter as usize) {
                    *count += 1;
                }
            }
        }
        if is_whole {
            put_right(self.counts, &before, &on_file);
        }
        removed
    }

    /// Where a pod's records are counted: where they are already, else where no pod's are, and by preference none of a pod
    /// that left.
    pub fn place(&self, cookie: u64, pods: &Table<u64, PodConfig>) -> Place {
        if let Some(place) = pods.get(&cookie).map(|pod| pod.place()).filter(|place| *place != Place::NONE) {
            return place;
        }
        let others = pods.keys(PLACES.into()).into_iter();
        let taken = others.filter_map(|other| Some(pods.get(&other)?.place())).collect();
        choose(&taken, self.counts)
    }

    fn counted(&self) -> Vec<i64> {
        self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }

    fn add(&self, counter: u32, by: i64) {
        if let Some(count) = self.counts.get(counter as usize) {
            count.fetch_add(by, Ordering::Relaxed);
        }
    }
}

/// Sets what is on file where it was counted otherwise before and still is.
fn put_right(counts: &[AtomicI64], before: &[i64], on_file: &[i64]) {
    for ((count, before), on_file) in counts.iter().zip(before).zip(on_file) {
        if before != on_file {
            let _ = count.compare_exchange(*before, *on_file, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

fn choose(taken: &BTreeSet<Place>, counts: &[AtomicI64]) -> Place {
    let is_empty = |place: &Place| {
        place
            .counter()
            .and_then(|counter| counts.get(counter as usize))
            .is_some_and(|count| count.load(Ordering::Relaxed) == 0)
    };
    let free = || Place::own().filter(move |place| !taken.contains(place));
    free().find(is_empty).or_else(|| free().next()).unwrap_or(Place::NONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(of: &[i64]) -> Vec<AtomicI64> {
        of.iter().copied().map(AtomicI64::new).collect()
    }

    #[test]
    fn counts_are_put_right_where_they_stood_still() {
        // (before the walk, on file, now, then)
        let table = [
            (3, 3, 3, 3),
            // An agent was killed between a record and its count.
            (3, 2, 3, 2),
            // Records of an agent that knew of no counts went.
            (-4, 0, -4, 0),
            // Something moved: the next sweep sees to it.
            (3, 2, 4, 4),
            (3, 4, 4, 4),
        ];
        for (before, on_file, now, then) in table {
            let counts = counts(&[now]);
            put_right(&counts, &[before], &[on_file]);
            assert_eq!(counts[0].load(Ordering::Relaxed), then, "{before} {on_file} {now}");
        }
    }

    #[test]
    fn a_pod_has_a_place_that_no_other_has() {
        let own: Vec<Place> = Place::own().collect();
        let all: BTreeSet<Place> = own.iter().copied().collect();
        let mut numbers = vec![0; COUNTERS as usize];
        assert_eq!(choose(&BTreeSet::new(), &counts(&numbers)), own[0]);
        assert_eq!(choose(&[own[0], Place::NONE].into(), &counts(&numbers)), own[1]);
        // Connections of a pod that left are still counted there.
        numbers[own[1].counter().unwrap() as usize] = 2;
        assert_eq!(choose(&[own[0]].into(), &counts(&numbers)), own[2]);
        let but_one: BTreeSet<Place> = all.iter().copied().filter(|place| *place != own[1]).collect();
        assert_eq!(choose(&but_one, &counts(&numbers)), own[1]);
        assert_eq!(choose(&all, &counts(&numbers)), Place::NONE);
    }
}
