//! sockops on the pods' parent cgroup: a connection that connect() sent straight to a pod of the node is filed before its SYN
//! leaves, and told and taken off the file when it closes. Guard and lookup pass what is filed and good.

use aya_ebpf::bindings::{BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_TCP_CONNECT_CB};
use mesh_common::outcome::Outcome;
use mesh_common::same_node::{self, Standing, StraightEnd, StraightRecord};

use crate::count::{count, now};
use crate::ctx::OpsContext;
use crate::maps::{EVENTS, STRAIGHT};
use crate::straight::{self, Maps};

const CLOSE: u32 = 7;
/// BPF_EXIST.
const IF_PRESENT: u64 = 2;

#[inline(always)]
pub fn file_straight(ops: &OpsContext<'_>) -> Outcome {
    let operation = ops.operation();
    if operation == BPF_SOCK_OPS_TCP_CONNECT_CB {
        return dialled(ops);
    }
    if operation == BPF_SOCK_OPS_STATE_CB && ops.new_state() == CLOSE {
        return closed(ops);
    }
    Outcome::StraightOther
}

#[inline(always)]
fn dialled(ops: &OpsContext<'_>) -> Outcome {
    let Some(socket) = ops.straight() else {
        return Outcome::StraightOther;
    };
    let tuple = ops.four_tuple();
    let Some(standing) = same_node::file(&Maps, &socket, &tuple, now()) else {
        return Outcome::StraightOther;
    };
    ops.watch_state();
    let record = StraightRecord::new(socket, ops.socket_cookie(), now(), standing);
    if !straight::put(&tuple, &record) {
        return Outcome::StraightNotFiled;
    }
    // The record is there: whoever takes the path away from now on finds it.
    if let Some(Standing::Good) = same_node::file(&Maps, &socket, &tuple, now()) {
        return Outcome::StraightFiled;
    }
    let _ = STRAIGHT.insert(tuple, record.refused(), IF_PRESENT);
    Outcome::StraightRefused
}

#[inline(always)]
fn closed(ops: &OpsContext<'_>) -> Outcome {
    let tuple = ops.four_tuple();
    let Some(record) = straight::filed(&tuple) else {
        return Outcome::StraightOther;
    };
    if !record.is_of(ops.socket_cookie()) || !straight::take_off(&tuple, &record) {
        return Outcome::StraightOther;
    }
    match EVENTS.reserve::<StraightEnd>(0) {
        Some(mut entry) => {
            let (rtt, retransmits) = ops.measured();
            let end = StraightEnd::new(tuple, record, now(), ops.bytes(), ops.old_state());
            entry.write(end.measured(rtt, retransmits));
            entry.submit(0);
        }
        None => count(Outcome::EventLost),
    }
    Outcome::StraightClosed
}
