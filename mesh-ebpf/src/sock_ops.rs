//! sockops on the agent's cgroup: every connection that the agent opens is filed before its SYN leaves, and taken off
//! the file when it closes. The guard passes what is filed. The lookup in the pods asks the file only about dials from the
//! agent's own range: what the agent dials for another pod of the node meets policy like any other connection.

use aya_ebpf::bindings::{BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_TCP_CONNECT_CB};
use mesh_common::outcome::Outcome;
use mesh_common::record::Filed;

use crate::count::now;
use crate::ctx::OpsContext;
use crate::maps::FILED;

const CLOSE: u32 = 7;

#[inline(always)]
pub fn file_dials(ops: &OpsContext<'_>) -> Outcome {
    let operation = ops.operation();
    if operation == BPF_SOCK_OPS_TCP_CONNECT_CB {
        ops.watch_state();
        return match FILED.insert(ops.four_tuple(), Filed::new(now()), 0) {
            Ok(()) => Outcome::DialFiled,
            Err(_) => Outcome::DialNotFiled,
        };
    }
    if operation == BPF_SOCK_OPS_STATE_CB && ops.new_state() == CLOSE {
        let _ = FILED.remove(ops.four_tuple());
        return Outcome::DialClosed;
    }
    Outcome::DialOther
}
