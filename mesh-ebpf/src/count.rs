//! Counters and events.

use mesh_common::addr::Endpoint;
use mesh_common::outcome::Outcome;
use mesh_common::record::{Event, FromTo};

use crate::ctx;
use crate::maps::{EVENTS, OUTCOMES};

/// Bumps the counter of an outcome. Per CPU and not atomic: an interrupt between load and store may lose a count.
#[inline(always)]
pub fn count(outcome: Outcome) {
    // Off unless the agent sets the level at load: the verifier then drops the branch.
    aya_log_ebpf::debug!((), "outcome {}", outcome as u32);
    ctx::increment(&OUTCOMES, outcome as u32);
}

/// Tells the agent about a refusal or a drop.
#[inline(always)]
pub fn report(outcome: Outcome, source: Endpoint, destination: Endpoint, netns: u64, interface: u32) {
    // Written in place: the stack of a program has 512 bytes.
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else {
        return count(Outcome::EventLost);
    };
    entry.write(Event::new(now(), outcome, FromTo(source, destination), netns, interface));
    entry.submit(0);
}

/// CLOCK_MONOTONIC in nanoseconds.
#[inline(always)]
pub fn now() -> u64 {
    ctx::monotonic_time()
}
