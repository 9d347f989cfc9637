//! The Nodemesh kernel programs: entry points only. Each hands its context to the file of its attach point, which
//! returns an [`Outcome`]; here the outcome is counted, reported and turned into the verdict that the hook wants.
//!
//! On the host this builds to an empty program, so that the stable toolchain checks the types.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]
#![allow(missing_docs, reason = "the entry point macros generate items that cannot carry docs")]
#![allow(unsafe_code, reason = "the entry point macros export symbols; every unsafe block of ours is in ctx.rs")]
#![cfg_attr(not(target_arch = "bpf"), allow(dead_code, reason = "only the kernel calls the entry points"))]

mod connect;
mod count;
mod ctx;
mod dials;
mod exclude;
mod guard;
mod ingress;
mod maps;
mod peername;
mod pod_ops;
mod probe_ops;
mod release;
mod sock_ops;
mod straight;

use aya_ebpf::macros::{cgroup_sock, cgroup_sock_addr, classifier, sk_lookup, sock_ops};
use aya_ebpf::programs::{SkLookupContext, SockAddrContext, SockContext, SockOpsContext, TcContext};
use mesh_common::outcome::{Outcome, Verdict};

use crate::count::count;
use crate::ctx::{LookupContext, OpsContext, PacketContext, ReleaseContext, SocketContext};

/// TC_ACT_SHOT.
const TC_DROP: i32 = 2;
/// TC_ACT_UNSPEC, TCX_NEXT: whoever else is attached has a say.
const TC_NEXT: i32 = -1;

/// cgroup/connect4. Kernel 4.17.
#[cgroup_sock_addr(connect4)]
pub fn nm_connect4(ctx: SockAddrContext) -> i32 {
    let socket = SocketContext::new(&ctx);
    let destination = socket.destination_v4();
    connect_verdict(&socket, connect::connect(&socket, destination, connect::Kind::V4))
}

/// cgroup/connect6. Kernel 4.17.
#[cgroup_sock_addr(connect6)]
pub fn nm_connect6(ctx: SockAddrContext) -> i32 {
    let socket = SocketContext::new(&ctx);
    let destination = socket.destination_v6();
    let kind = if destination.ip().is_v4() { connect::Kind::Mapped } else { connect::Kind::V6 };
    connect_verdict(&socket, connect::connect(&socket, destination, kind))
}

/// cgroup/getpeername4. Kernel 5.8.
#[cgroup_sock_addr(getpeername4)]
pub fn nm_getpeername4(ctx: SockAddrContext) -> i32 {
    let socket = SocketContext::new(&ctx);
    count(peername::show_v4(&socket));
    1
}

/// cgroup/getpeername6. Kernel 5.8.
#[cgroup_sock_addr(getpeername6)]
pub fn nm_getpeername6(ctx: SockAddrContext) -> i32 {
    let socket = SocketContext::new(&ctx);
    count(peername::show_v6(&socket));
    1
}

/// cgroup/sock_release. Kernel 5.9.
#[cgroup_sock(sock_release)]
pub fn nm_sock_release(ctx: SockContext) -> i32 {
    count(release::release(&ReleaseContext::new(&ctx)));
    1
}

/// sockops on the agent's cgroup. Kernel 4.13.
#[sock_ops]
pub fn nm_sock_ops(ctx: SockOpsContext) -> u32 {
    count(sock_ops::file_dials(&OpsContext::new(&ctx)));
    1
}

/// sockops on kubelet's cgroup. Kernel 4.13.
#[sock_ops]
pub fn nm_probe_ops(ctx: SockOpsContext) -> u32 {
    count(probe_ops::file_probes(&OpsContext::new(&ctx)));
    1
}

/// sockops on the pods' parent cgroup. Kernel 4.13; bpf_sk_storage_get there 5.7.
#[sock_ops]
pub fn nm_pod_ops(ctx: SockOpsContext) -> u32 {
    count(pod_ops::file_straight(&OpsContext::new(&ctx)));
    1
}

/// sk_lookup in an enrolled pod's network namespace. Kernel 5.9.
#[sk_lookup]
pub fn nm_sk_lookup(ctx: SkLookupContext) -> u32 {
    let lookup = LookupContext::read(&ctx);
    let outcome = ingress::steer(&lookup);
    count(outcome);
    match outcome.verdict() {
        Verdict::Pass => 1,
        Verdict::Refuse => {
            count::report(outcome, lookup.remote(), lookup.local(), 0, 0);
            0
        }
    }
}

/// tc, host-side interface, ingress: what leaves the pod. tcx from kernel 6.6, clsact before.
#[classifier]
pub fn nm_guard_from(ctx: TcContext) -> i32 {
    guard_verdict(&ctx, guard::Direction::FromPod)
}

/// tc, host-side interface, egress: what reaches the pod. tcx from kernel 6.6, clsact before.
#[classifier]
pub fn nm_guard_to(ctx: TcContext) -> i32 {
    guard_verdict(&ctx, guard::Direction::ToPod)
}

#[inline(always)]
fn connect_verdict(socket: &SocketContext<'_>, outcome: Outcome) -> i32 {
    count(outcome);
    match outcome.verdict() {
        Verdict::Pass => 1,
        Verdict::Refuse => {
            socket.refuse();
            0
        }
    }
}

#[inline(always)]
fn guard_verdict(ctx: &TcContext, direction: guard::Direction) -> i32 {
    let packet = PacketContext::new(ctx);
    let judged = guard::judge(&packet, direction);
    count(judged.outcome);
    match judged.outcome.verdict() {
        Verdict::Pass => TC_NEXT,
        Verdict::Refuse => {
            count::report(judged.outcome, judged.source, judged.destination, 0, packet.interface());
            TC_DROP
        }
    }
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program that could come here.
    loop {}
}

#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
