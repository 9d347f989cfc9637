//! The maps of what goes from pod to pod, for the decisions in `mesh_common::same_node`.

use mesh_common::addr::FourTuple;
use mesh_common::record::PodConfig;
use mesh_common::same_node::{Path, PathKey, Published, StraightRecord};

use crate::ctx;
use crate::maps::{LEASE, LINKED, PATHS, PODS, STRAIGHT};

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
}

/// The record of a connection.
#[inline(always)]
pub fn filed(tuple: &FourTuple) -> Option<StraightRecord> {
    ctx::get(&STRAIGHT, tuple)
}
