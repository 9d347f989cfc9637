//! Fair shares of the map of dials: with how many records there a pod files no more, and where they are counted.
//!
//! Each record is counted for its pod and for all, in one array that kernel programs and agents add to. A pod files
//! another while it has fewer than are left for all: one that wants everything gets half, two in turn a third each, and
//! whoever has none finds room. Nothing has to be set for each pod, and what is idle is nobody's.

/// How many pods have a place of their own.
pub const PLACES: u16 = 4_096;

/// How many counters there are: all, and each place.
pub const COUNTERS: u32 = PLACES as u32 + 1;

/// The counter of all records.
pub const ALL: u32 = 0;

/// Where the records of a pod are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place(u16);

impl Place {
    /// Of pods that have none, such as those that an agent enrolled which knew of none. Their records are not counted, for
    /// that agent takes none off: the map's own end holds for them.
    pub const NONE: Place = Place(0);

    /// Places for one pod each.
    pub fn own() -> impl Iterator<Item = Place> {
        (1..=PLACES).map(Place)
    }

    /// As it stands in a map.
    #[inline(always)]
    pub const fn from_bytes(bytes: [u8; 2]) -> Self {
        Self(u16::from_ne_bytes(bytes))
    }

    /// As it stands in a map.
    #[inline(always)]
    pub const fn bytes(self) -> [u8; 2] {
        self.0.to_ne_bytes()
    }

    /// Its counter, if it is one.
    #[inline(always)]
    pub const fn counter(self) -> Option<u32> {
        if self.0 == 0 { None } else { Some(self.0 as u32) }
    }
}

/// Whether a pod that has `of_pod` records may file another in a map for `entries`, in which there are `of_all`.
#[inline(always)]
pub const fn has_room(of_pod: i64, of_all: i64, entries: u32) -> bool {
    of_pod < (entries as i64).wrapping_sub(of_all)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::collections::BTreeSet;
    use std::vec;
    use std::vec::Vec;

    use super::*;

    #[test]
    fn who_has_none_finds_room() {
        // (of the pod, of all, may file another)
        let table = [
            (0, 0, true),
            (0, 1023, true),
            (0, 1024, false),
            (511, 511, true),
            (512, 512, false),
            (340, 682, true),
            (342, 682, false),
            // A map that an earlier agent made for more.
            (0, 2000, false),
            // Counts that are wrong until they are put right: the map's own end holds.
            (-3, -3, true),
            (5, -3, true),
        ];
        for (of_pod, of_all, expected) in table {
            assert_eq!(has_room(of_pod, of_all, 1024), expected, "{of_pod} of {of_all}");
        }
    }

    /// Pods that want all there is, one after another or in turn, and one more that wants a little.
    #[test]
    fn shares_of_pods_that_want_everything() {
        const ENTRIES: u32 = 1024;
        for pods in 1..=8 {
            for in_turn in [false, true] {
                let mut counts: Vec<i64> = vec![0; pods];
                let wants = |counts: &[i64], pod: usize| has_room(counts[pod], counts.iter().sum(), ENTRIES);
                while (0..pods).any(|pod| wants(&counts, pod)) {
                    for pod in 0..pods {
                        while wants(&counts, pod) {
                            counts[pod] += 1;
                            if in_turn {
                                break;
                            }
                        }
                    }
                }
                let left = i64::from(ENTRIES) - counts.iter().sum::<i64>();
                assert!(left > 0, "{counts:?}");
                // In turn all have the same, and as much is left.
                let fair = i64::from(ENTRIES) / (pods as i64 + 1);
                assert!(!in_turn || counts.iter().chain([&left]).all(|count| (count - fair).abs() <= pods as i64));
            }
        }
    }

    #[test]
    fn places_have_counters_of_their_own() {
        let counters: BTreeSet<u32> = Place::own().filter_map(Place::counter).collect();
        assert_eq!((counters.len(), Place::NONE.counter()), (usize::from(PLACES), None));
        assert!(!counters.contains(&ALL) && counters.iter().all(|counter| *counter < COUNTERS));
        assert!(Place::own().all(|place| Place::from_bytes(place.bytes()) == place && place != Place::NONE));
        assert_eq!(Place::from_bytes([0; 2]), Place::NONE);
    }
}
