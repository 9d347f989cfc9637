//! cgroup/getpeername4, getpeername6: a client sees what it dialled, a server sees the real client. Both also run inside
//! accept().

use mesh_common::addr::Endpoint;
use mesh_common::key::DialKey;
use mesh_common::outcome::Outcome;
use mesh_common::record::SourceKey;

use crate::ctx::{self, SocketContext};
use crate::maps::{CLIENTS, DIALS};

#[inline(always)]
pub fn show_v4(socket: &SocketContext<'_>) -> Outcome {
    let (outcome, shown) = look(socket, socket.destination_v4());
    if let Some(shown) = shown {
        socket.set_v4(shown);
    }
    outcome
}

#[inline(always)]
pub fn show_v6(socket: &SocketContext<'_>) -> Outcome {
    let (outcome, shown) = look(socket, socket.destination_v6());
    if let Some(shown) = shown {
        socket.set_v6(shown);
    }
    outcome
}

#[inline(always)]
fn look(socket: &SocketContext<'_>, peer: Endpoint) -> (Outcome, Option<Endpoint>) {
    if peer.ip().is_capture() {
        if let Some(dialled) = socket.dialled() {
            return (Outcome::PeerDialled, Some(dialled.dialled()));
        }
        // An MPTCP subflow's parent has another socket than the one that dialled.
        let record = DialKey::decode(peer).and_then(|key| ctx::get(&DIALS, &key.raw()));
        return match record {
            Some(record) => (Outcome::PeerRecord, Some(record.dialled())),
            None => (Outcome::PeerMissing, None),
        };
    }
    if peer.ip().is_agent_source() {
        let key = SourceKey::new(socket.netns_cookie(), peer.ip());
        return match ctx::get(&CLIENTS, &key) {
            Some(record) => (Outcome::PeerClient, Some(record.client())),
            None => (Outcome::PeerMissing, None),
        };
    }
    // The storage may be that of an earlier connect() of the socket, to another end.
    match socket.straight() {
        Some(straight) if straight.leads_to(&peer) => (Outcome::PeerStraight, Some(straight.dialled())),
        _ => (Outcome::PeerOther, None),
    }
}
