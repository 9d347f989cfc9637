//! cgroup/connect4, connect6: an enrolled pod's TCP connection is led to the agent, and what was dialled is recorded.

use mesh_common::addr::Endpoint;
use mesh_common::capture::{self, Decision};
use mesh_common::key::DialKey;
use mesh_common::outcome::Outcome;
use mesh_common::record::{DialRecord, DialStorage};
use mesh_common::same_node::{self, Not};
use mesh_common::share::Place;

use crate::count::{count, now, report};
use crate::ctx::{self, SocketContext};
use crate::dials;
use crate::exclude::Published;
use crate::maps::{AGENTS, NO_ENDPOINT, PODS};
use crate::straight::Maps;

/// How many generations are tried before a connect is refused.
const GENERATIONS: u8 = 8;
/// How deep below the cgroup root an agent's pod is looked for.
const CGROUP_DEPTH: i32 = 8;

/// Which hook, and which form of address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    V4,
    V6,
    /// An IPv6 socket that dials a v4-mapped address: connect6 alone runs, the packets are IPv4.
    Mapped,
}

#[inline(always)]
pub fn connect(socket: &SocketContext<'_>, destination: Endpoint, kind: Kind) -> Outcome {
    if !socket.is_tcp() {
        return Outcome::ConnectNotTcp;
    }
    let netns = socket.netns_cookie();
    let Some(pod) = ctx::get(&PODS, &netns) else {
        return Outcome::ConnectNotEnrolled;
    };
    if is_agent(socket) {
        return Outcome::ConnectAgent;
    }
    let outcome = match capture::decide(&destination, &pod, &Published) {
        Decision::Done(outcome) => outcome,
        Decision::Capture => match straight(socket, destination, kind, netns) {
            Some(outcome) => outcome,
            None => capture(socket, destination, kind, netns, pod.place()),
        },
    };
    if let mesh_common::outcome::Verdict::Refuse = outcome.verdict() {
        report(outcome, Endpoint::new(mesh_common::addr::Ip::UNSPECIFIED, 0), destination, netns, 0);
    }
    outcome
}

/// The agent dials from inside the pods' namespaces too, told by its cgroup and never by uid or mark.
#[inline(always)]
fn is_agent(socket: &SocketContext<'_>) -> bool {
    let mut level = 1;
    while level <= CGROUP_DEPTH {
        let id = socket.ancestor_cgroup(level);
        if id == 0 {
            return false;
        }
        if ctx::get(&AGENTS, &id).is_some() {
            return true;
        }
        level += 1;
    }
    false
}

/// Leads a connection to the pod itself that serves it, where a path says so; none where it is the agent's.
#[inline(always)]
fn straight(socket: &SocketContext<'_>, destination: Endpoint, kind: Kind, netns: u64) -> Option<Outcome> {
    let path = match same_node::choose(&Maps, netns, destination, now(), ctx::chance()) {
        Ok(path) => path,
        Err(Not::NoPath) => return None,
        Err(Not::NoRoom) => {
            count(Outcome::StraightNoRoom);
            return None;
        }
    };
    // A device-bound socket might miss the other pod. Without storage nothing could be filed.
    if socket.is_bound_to_device() != Some(false) || !socket.remember_straight(path) {
        return None;
    }
    Some(match kind {
        Kind::V4 => {
            socket.set_v4(path.endpoint());
            Outcome::ConnectStraightV4
        }
        Kind::Mapped => {
            socket.set_v6(path.endpoint());
            Outcome::ConnectStraightMapped
        }
        Kind::V6 => {
            socket.set_v6(path.endpoint());
            Outcome::ConnectStraightV6
        }
    })
}

#[inline(always)]
fn capture(socket: &SocketContext<'_>, destination: Endpoint, kind: Kind, netns: u64, place: Place) -> Outcome {
    if ctx::get(&NO_ENDPOINT, &destination).is_some() {
        return Outcome::ConnectNoEndpoint;
    }
    match socket.is_bound_to_device() {
        None => return Outcome::ConnectNoSocket,
        // A device-bound socket would look for the capture range on its device.
        Some(true) if !socket.unbind_device() => return Outcome::ConnectDeviceBound,
        Some(_) => {}
    }
    let mut generation = 0;
    if let Some(previous) = socket.dialled() {
        generation = previous.generation();
        // This hook runs on unconnected sockets only, so the previous connection of this socket is over.
        if let Some(key) = previous.key() {
            let _ = dials::remove(key);
        }
    }
    if !dials::has_room(place) {
        return Outcome::ConnectPodFull;
    }
    let record = DialRecord::new(destination, netns, now(), place);
    let cookie = socket.socket_cookie();
    let mut tries = 0;
    while tries < GENERATIONS {
        generation = generation.wrapping_add(1);
        let key = match kind {
            Kind::V6 => DialKey::for_v6(cookie, generation),
            Kind::V4 | Kind::Mapped => DialKey::for_v4(cookie, generation),
        };
        match dials::file(key, &record) {
            Ok(true) => return divert(socket, destination, kind, DialStorage::new(destination, generation, key), key),
            Ok(false) => tries += 1,
            Err(outcome) => return outcome,
        }
    }
    Outcome::ConnectKeyClash
}

#[inline(always)]
fn divert(
    socket: &SocketContext<'_>,
    destination: Endpoint,
    kind: Kind,
    storage: DialStorage,
    key: DialKey,
) -> Outcome {
    // Without storage getpeername falls back on the record and sock_release cannot clean up: the sweep does.
    let _ = socket.remember(storage);
    match kind {
        Kind::V4 => {
            socket.set_v4(key.encode_v4());
            Outcome::ConnectCapturedV4
        }
        Kind::Mapped => {
            socket.set_v6(key.encode_v4());
            Outcome::ConnectCapturedMapped
        }
        Kind::V6 => {
            socket.set_v6(key.encode_v6(destination.port()));
            Outcome::ConnectCapturedV6
        }
    }
}
