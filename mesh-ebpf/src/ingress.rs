//! sk_lookup in an enrolled pod: what arrives goes to the agent, or passes by rule, or is dropped. A missing listener
//! is a drop, because passing without a socket would reach the application.

use mesh_common::addr::FourTuple;
use mesh_common::outcome::Outcome;
use mesh_common::record::ListenerKey;
use mesh_common::same_node;
use mesh_common::steer::{self, Steer};

use crate::ctx::{self, LookupContext};
use crate::exclude::Published;
use crate::maps::{FILED, PROBE_PORTS, PROBES};
use crate::straight::{self, Maps};

/// -ENOENT.
const ABSENT: i32 = -2;

#[inline(always)]
pub fn steer(lookup: &LookupContext<'_>) -> Outcome {
    if !lookup.is_tcp() {
        return Outcome::LookupNotTcp;
    }
    match steer::steer(lookup.local(), lookup.remote().ip(), lookup.over_lo(), &Published) {
        Steer::Done(outcome) => outcome,
        Steer::FiledOr(otherwise) => {
            if is_filed(lookup) {
                return Outcome::LookupFiled;
            }
            otherwise
        }
        Steer::Listener(key, outcome) => assign(lookup, &key, outcome),
        Steer::ProbeOr(_) if is_straight(lookup) => Outcome::LookupStraight,
        Steer::ProbeOr(_) if is_probe(lookup) => Outcome::LookupProbe,
        Steer::ProbeOr(key) => assign(lookup, &key, Outcome::LookupPlaintext),
    }
}

#[inline(always)]
fn is_filed(lookup: &LookupContext<'_>) -> bool {
    ctx::get(&FILED, &FourTuple::new(lookup.remote(), lookup.local())).is_some()
}

/// The port is looked at again: with the pod ends what was declared for its address.
#[inline(always)]
fn is_probe(lookup: &LookupContext<'_>) -> bool {
    ctx::get(&PROBES, &FourTuple::new(lookup.remote(), lookup.local())).is_some()
        && ctx::get(&PROBE_PORTS, &lookup.local()).is_some()
}

#[inline(always)]
fn is_straight(lookup: &LookupContext<'_>) -> bool {
    match straight::filed(&FourTuple::new(lookup.remote(), lookup.local())) {
        Some(record) => same_node::may_arrive(&Maps, &record, &lookup.local().ip()),
        None => false,
    }
}

#[inline(always)]
fn assign(lookup: &LookupContext<'_>, key: &ListenerKey, outcome: Outcome) -> Outcome {
    match lookup.assign(key) {
        Ok(()) => outcome,
        Err(ABSENT) => Outcome::LookupNoListener,
        Err(_) => Outcome::LookupAssign,
    }
}
