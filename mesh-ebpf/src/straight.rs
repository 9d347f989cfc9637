//! The maps of what goes from pod to pod, for the decisions in `mesh_common::same_node`.

use mesh_common::addr::FourTuple;
use mesh_common::record::PodConfig;
use mesh_common::same_node::{NODE, Path, PathKey, Published, StraightRecord};

use crate::ctx;
use crate::maps::{LEASE, LINKED, PATHS, PODS, STRAIGHT, STRAIGHT_LIVE, STRAIGHT_ROOM};

/// The maps in the kernel.
pub struct Maps;

impl Published for Maps {
    #[inline(always)]
    fn path(&self, key: &PathKey) -> Option<Path> {
        ctx::get(&PATHS, key)
    }

    #[inline(always)]
    fn lease(&self) -> u64 {
        ctx::get(&LEASE, &0).unwrap_or(0)
    }

    #[inline(always)]
    fn has_interface(&self, index: u32) -> bool {
        LINKED.get_ifindex(index).is_some()
    }

    #[inline(always)]
    fn pod(&self, netns: u64) -> Option<PodConfig> {
        ctx::get(&PODS, &netns)
    }

    #[inline(always)]
    fn live(&self, netns: u64) -> Option<i64> {
        ctx::get(&STRAIGHT_LIVE, &netns)
    }

    #[inline(always)]
    fn room(&self, netns: u64) -> Option<i64> {
        ctx::get(&STRAIGHT_ROOM, &netns)
    }
}

/// BPF_NOEXIST.
const IF_ABSENT: u64 = 1;

/// Puts a connection on file, in place of one that has its addresses and was left behind. False where there is no room.
#[inline(always)]
pub fn put(tuple: &FourTuple, record: &StraightRecord) -> bool {
    if let Some(earlier) = filed(tuple) {
        let _ = take_off(tuple, &earlier);
    }
    let is_filed = STRAIGHT.insert(tuple, record, IF_ABSENT).is_ok();
    if is_filed {
        count(record, 1);
    }
    is_filed
}

/// Takes a connection off the file; false where somebody else did.
#[inline(always)]
pub fn take_off(tuple: &FourTuple, record: &StraightRecord) -> bool {
    let is_off = STRAIGHT.remove(tuple).is_ok();
    if is_off {
        count(record, -1);
    }
    is_off
}

#[inline(always)]
fn count(record: &StraightRecord, by: i64) {
    ctx::add(&STRAIGHT_LIVE, &NODE, by);
    ctx::add(&STRAIGHT_LIVE, &record.client(), by);
    ctx::add(&STRAIGHT_LIVE, &record.server(), by);
}

/// The record of a connection.
#[inline(always)]
pub fn filed(tuple: &FourTuple) -> Option<StraightRecord> {
    ctx::get(&STRAIGHT, tuple)
}
