//! sockops on kubelet's cgroup: what kubelet dials for probes is filed before its SYN leaves, and taken off the file when it
//! closes. That the program runs is the proof of who dials: another process that binds the address and port which kubelet
//! had is in another cgroup, and files nothing.

use aya_ebpf::bindings::{BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_TCP_CONNECT_CB};
use mesh_common::outcome::Outcome;
use mesh_common::record::ProbeRecord;

use crate::count::now;
use crate::ctx::{self, OpsContext};
use crate::maps::{HAS_CURRENT_CGROUP, KUBELETS, PROBE_PORTS, PROBES};

const CLOSE: u32 = 7;

#[inline(always)]
pub fn file_probes(ops: &OpsContext<'_>) -> Outcome {
    let operation = ops.operation();
    if operation == BPF_SOCK_OPS_TCP_CONNECT_CB {
        return dialled(ops);
    }
    if operation == BPF_SOCK_OPS_STATE_CB && ops.new_state() == CLOSE {
        return closed(ops);
    }
    Outcome::ProbeOther
}

#[inline(always)]
fn dialled(ops: &OpsContext<'_>) -> Outcome {
    // The program runs for the cgroups below as well, which may be the pods'.
    if HAS_CURRENT_CGROUP.load() != 0 && ctx::get(&KUBELETS, &ops.current_cgroup()).is_none() {
        return Outcome::ProbeStranger;
    }
    let tuple = ops.four_tuple();
    if ctx::get(&PROBE_PORTS, &tuple.destination()).is_none() {
        return Outcome::ProbeOther;
    }
    ops.watch_state();
    match PROBES.insert(tuple, ProbeRecord::new(now(), ops.socket_cookie()), 0) {
        Ok(()) => Outcome::ProbeFiled,
        Err(_) => Outcome::ProbeNotFiled,
    }
}

#[inline(always)]
fn closed(ops: &OpsContext<'_>) -> Outcome {
    let tuple = ops.four_tuple();
    let own = ctx::get(&PROBES, &tuple).is_some_and(|record| record.is_of(ops.socket_cookie()));
    if own && PROBES.remove(tuple).is_ok() { Outcome::ProbeClosed } else { Outcome::ProbeOther }
}
