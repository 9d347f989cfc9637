//! How many connections may go from pod to pod by the kernel alone, of each pod and of all.
//!
//! The kernel counts what it files and takes off, and this agent says with how many no more come: two maps, each with one
//! writer, so neither undoes what the other did. What this agent took off the file the kernel's count still has. That is
//! seen when nothing moved while the file was read, and as much more room is given.

use std::collections::BTreeMap;
use std::io::ErrorKind;

use mesh_common::same_node::{MAX_STRAIGHT, NODE};

use super::sweep::MAX_KEYS;
use super::tables::Tables;

/// With more connections than this on file the agent carries new ones: what is on its way between connect() and the file
/// when the last of them comes still has a place.
pub(super) const CROWDED: u32 = MAX_STRAIGHT / 4 * 3;
/// One pod has a part in no more of them: some that want all there are leave room for others.
pub(super) const OF_ONE_POD: u32 = MAX_STRAIGHT / 4;

/// Of each pod, by the cookie of its namespace, and of all at [`NODE`].
pub(super) type Counts = BTreeMap<u64, i64>;

/// What the kernel was told.
#[derive(Default)]
pub(super) struct Room {
    /// None before the first time.
    given: Option<Counts>,
    /// What the kernel counts and is not on file.
    excess: Counts,
}

impl Room {
    /// What the kernel counts.
    pub fn live(tables: &Tables) -> Counts {
        let keys = tables.straight_live.keys(MAX_KEYS).into_iter();
        keys.filter_map(|key| Some((key, tables.straight_live.get(&key)?))).collect()
    }

    /// Takes in what the file was seen to hold between `before` and `after`.
    pub fn learn(&mut self, before: &Counts, on_file: &Counts, after: &Counts) {
        self.excess.retain(|key, _| after.contains_key(key));
        self.excess.extend(excess(before, on_file, after));
    }

    /// Gives these pods room, each for as many as `most`, and no other. A pod that is new starts with none.
    pub fn give(&mut self, pods: impl Iterator<Item = u64>, most: u32, tables: &Tables) {
        let mut wanted: Counts = pods.map(|pod| (pod, i64::from(most.min(OF_ONE_POD)))).collect();
        if !wanted.is_empty() {
            wanted.insert(NODE, i64::from(CROWDED));
        }
        for (key, room) in &mut wanted {
            *room = room.saturating_add(self.excess.get(key).copied().unwrap_or_default());
        }
        let given = self.given.get_or_insert_with(|| {
            let keys = tables.straight_room.keys(MAX_KEYS).into_iter().chain(tables.straight_live.keys(MAX_KEYS));
            keys.map(|key| (key, i64::MIN)).collect()
        });
        for key in given.keys().filter(|key| !wanted.contains_key(key)) {
            tables.straight_room.remove(key);
            tables.straight_live.remove(key);
        }
        for (key, room) in wanted.iter().filter(|(key, room)| given.get(key) != Some(room)) {
            // An earlier agent's count goes on.
            let counts = tables.straight_live.insert(key, &0);
            let is_counted = counts.is_ok() || counts.is_err_and(|error| error.kind() == ErrorKind::AlreadyExists);
            let told = if is_counted { tables.straight_room.set(key, room) } else { Ok(()) };
            if let Err(error) = told {
                tracing::warn!(%error, "the kernel was not told how much may go from pod to pod: the agent carries it");
            }
        }
        *given = wanted;
    }
}

/// How many are open now: what the kernel counts, without what this agent or one before it found too much in that.
pub(super) fn open(tables: &Tables) -> u64 {
    let live = tables.straight_live.get(&NODE).unwrap_or_default();
    let excess = tables.straight_room.get(&NODE).map_or(0, |room| room.saturating_sub(i64::from(CROWDED)));
    u64::try_from(live.saturating_sub(excess)).unwrap_or_default()
}

/// Of whom nothing came and nothing went while the file was read.
fn excess(before: &Counts, on_file: &Counts, after: &Counts) -> Counts {
    let quiet = after.iter().filter(|(key, count)| before.get(key) == Some(count));
    quiet.map(|(key, count)| (*key, count.saturating_sub(on_file.get(key).copied().unwrap_or_default()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_and_not_on_file_is_seen_where_nothing_moves() {
        const CLIENT: u64 = 7;
        let of = |count: Option<i64>| count.map(|count| (CLIENT, count)).into_iter().collect::<Counts>();
        // (counted before, on file, counted after, known before, known then)
        let table = [
            (Some(3), Some(3), Some(3), None, Some(0)),
            (Some(3), Some(1), Some(3), None, Some(2)),
            // Filed by a program that did not count.
            (Some(-1), Some(1), Some(-1), None, Some(-2)),
            (Some(2), None, Some(2), Some(1), Some(2)),
            // Something moved: what was known stays.
            (Some(3), Some(3), Some(4), None, None),
            (Some(3), Some(1), Some(2), Some(5), Some(5)),
            // Not counted before.
            (None, Some(1), Some(0), None, None),
            // The pod is gone.
            (Some(3), Some(1), None, Some(2), None),
        ];
        for (before, on_file, after, known, expected) in table {
            let mut room = Room { excess: of(known), ..Room::default() };
            room.learn(&of(before), &of(on_file), &of(after));
            assert_eq!(room.excess, of(expected), "{before:?} {on_file:?} {after:?} {known:?}");
        }
    }

    /// A few pods that want all there are leave room.
    const _: () = assert!(OF_ONE_POD < CROWDED && CROWDED < MAX_STRAIGHT);
}
