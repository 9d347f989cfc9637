//! The map of dials and its counts: a record is filed while its pod has room, and whoever removes one takes it off the
//! counts.

use mesh_common::key::DialKey;
use mesh_common::outcome::Outcome;
use mesh_common::record::DialRecord;
use mesh_common::share::{self, ALL, Place};

use crate::ctx;
use crate::maps::{DIAL_COUNTS, DIAL_ENTRIES, DIALS};

/// BPF_NOEXIST.
const IF_ABSENT: u64 = 1;
/// -EEXIST.
const EXISTS: i32 = -17;

/// Whether the pods that are counted at `place` may file another. Others that file at the same moment are not seen: as many
/// as there are CPUs.
#[inline(always)]
pub fn has_room(place: Place) -> bool {
    let Some(counter) = place.counter() else { return true };
    match (ctx::number_at(&DIAL_COUNTS, counter), ctx::number_at(&DIAL_COUNTS, ALL)) {
        (Some(of_pod), Some(of_all)) => share::has_room(of_pod, of_all, DIAL_ENTRIES.load()),
        _ => false,
    }
}

/// Files a record. False where there is one of that key; an outcome where there can be none.
#[inline(always)]
pub fn file(key: DialKey, record: &DialRecord) -> Result<bool, Outcome> {
    match DIALS.insert(key.raw(), record, IF_ABSENT) {
        Ok(()) => {
            count(record.place(), 1);
            Ok(true)
        }
        Err(EXISTS) => Ok(false),
        Err(_) => Err(Outcome::ConnectMapFull),
    }
}

/// Removes a record; false where there is none, or somebody else removed it.
#[inline(always)]
pub fn remove(key: DialKey) -> bool {
    let Some(record) = ctx::get(&DIALS, &key.raw()) else {
        return false;
    };
    let is_off = DIALS.remove(key.raw()).is_ok();
    if is_off {
        count(record.place(), -1);
    }
    is_off
}

#[inline(always)]
fn count(place: Place, by: i64) {
    let Some(counter) = place.counter() else { return };
    ctx::add_at(&DIAL_COUNTS, ALL, by);
    ctx::add_at(&DIAL_COUNTS, counter, by);
}
