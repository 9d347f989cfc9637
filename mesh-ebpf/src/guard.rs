//! tc on the host-side interface of an enrolled pod: no TCP connection of the pod's own leaves but to what it excludes,
//! nothing forged arrives. SYNs are judged; connections that are under way pass.

use mesh_common::addr::{Endpoint, FourTuple, Ip};
use mesh_common::outcome::Outcome;
use mesh_common::record::PodAddresses;
use mesh_common::same_node;
use mesh_common::steer::{self, FromPod};

use crate::ctx::{self, PacketContext, Short};
use crate::exclude::Published;
use crate::maps::{FILED, GUARDED};
use crate::straight::{self, Maps};

/// Which way a packet goes, seen from the pod.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    FromPod,
    ToPod,
}

/// An outcome, and between whom, for the event.
pub struct Judged {
    pub outcome: Outcome,
    pub source: Endpoint,
    pub destination: Endpoint,
}

const ETHERNET: usize = 14;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const VLAN: u16 = 0x8100;
const QINQ: u16 = 0x88a8;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// More fragments, and the offset.
const V4_FRAGMENT: u16 = 0x3fff;
/// The offset and more fragments, in IPv6's fragment header.
const V6_FRAGMENT: u16 = 0xfff9;
/// How many IPv6 extension headers are walked before a packet is dropped.
const EXTENSIONS: u32 = 8;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// Where TCP starts, between which addresses. Filled in place from zero: a value that is set on some paths only ends as a
/// register that the verifier calls unreadable.
struct Segment {
    source: Ip,
    destination: Ip,
    offset: usize,
}

#[inline(always)]
pub fn judge(packet: &PacketContext<'_>, direction: Direction) -> Judged {
    let none = Endpoint::new(Ip::UNSPECIFIED, 0);
    let mut judged = Judged { outcome: Outcome::GuardMalformed, source: none, destination: none };
    let mut segment = Segment { source: Ip::UNSPECIFIED, destination: Ip::UNSPECIFIED, offset: 0 };
    match parse(packet, &mut segment) {
        Err(Short) => {}
        Ok(Some(outcome)) => judged.outcome = outcome,
        Ok(None) => {
            if let Ok(outcome) = judge_tcp(packet, &segment, direction, &mut judged) {
                judged.outcome = outcome;
            }
        }
    }
    judged
}

/// Finds TCP; an outcome where the packet is something else.
#[inline(always)]
fn parse(packet: &PacketContext<'_>, segment: &mut Segment) -> Result<Option<Outcome>, Short> {
    match packet.half(12)? {
        IPV4 => parse_v4(packet, segment),
        IPV6 => parse_v6(packet, segment),
        VLAN | QINQ => Ok(Some(Outcome::GuardMalformed)),
        _ => Ok(Some(Outcome::GuardOther)),
    }
}

#[inline(always)]
fn not_tcp(protocol: u8) -> Outcome {
    if protocol == UDP { Outcome::GuardUdp } else { Outcome::GuardOther }
}

#[inline(always)]
fn parse_v4(packet: &PacketContext<'_>, segment: &mut Segment) -> Result<Option<Outcome>, Short> {
    let protocol = packet.byte(ETHERNET + 9)?;
    if protocol != TCP {
        return Ok(Some(not_tcp(protocol)));
    }
    if packet.half(ETHERNET + 6)? & V4_FRAGMENT != 0 {
        return Ok(Some(Outcome::GuardFragment));
    }
    let header = ((packet.byte(ETHERNET)? & 0x0f) as usize) * 4;
    segment.source = packet.ip4(ETHERNET + 12)?;
    segment.destination = packet.ip4(ETHERNET + 16)?;
    segment.offset = ETHERNET + header;
    Ok(None)
}

#[inline(always)]
fn parse_v6(packet: &PacketContext<'_>, segment: &mut Segment) -> Result<Option<Outcome>, Short> {
    segment.source = packet.ip6(ETHERNET + 8)?;
    segment.destination = packet.ip6(ETHERNET + 24)?;
    let mut next = packet.byte(ETHERNET + 6)?;
    let mut offset = ETHERNET + 40;
    let mut walked = 0;
    while walked < EXTENSIONS {
        match next {
            TCP => {
                segment.offset = offset;
                return Ok(None);
            }
            // Hop-by-hop, routing, destination options, mobility, HIP, shim6: length in units of 8 bytes, without the
            // first.
            0 | 43 | 60 | 135 | 139 | 140 => {
                next = packet.byte(offset)?;
                offset += (packet.byte(offset + 1)? as usize + 1) * 8;
            }
            // Authentication: length in units of 4 bytes, less 2.
            51 => {
                next = packet.byte(offset)?;
                offset += (packet.byte(offset + 1)? as usize + 2) * 4;
            }
            44 => {
                let inner = packet.byte(offset)?;
                if packet.half(offset + 2)? & V6_FRAGMENT != 0 {
                    // Other extension headers behind a fragment header may hide TCP in a later fragment.
                    return Ok(Some(match inner {
                        TCP | 0 | 43 | 44 | 51 | 60 | 135 | 139 | 140 => Outcome::GuardFragment,
                        other => not_tcp(other),
                    }));
                }
                next = inner;
                offset += 8;
            }
            other => return Ok(Some(not_tcp(other))),
        }
        walked += 1;
    }
    Ok(Some(Outcome::GuardMalformed))
}

#[inline(always)]
fn judge_tcp(
    packet: &PacketContext<'_>,
    segment: &Segment,
    direction: Direction,
    judged: &mut Judged,
) -> Result<Outcome, Short> {
    judged.source = Endpoint::new(segment.source, packet.half(segment.offset)?);
    judged.destination = Endpoint::new(segment.destination, packet.half(segment.offset + 2)?);
    let syn = packet.byte(segment.offset + 13)? & (SYN | ACK) == SYN;
    let Some(pod) = ctx::get(&GUARDED, &packet.interface()) else {
        return Ok(Outcome::GuardUnknownPod);
    };
    Ok(match direction {
        Direction::ToPod => steer::tcp_to_pod(&pod, &segment.source, &segment.destination, syn),
        Direction::FromPod if !syn => Outcome::GuardTcp,
        Direction::FromPod => match steer::syn_from_pod(&pod, &segment.destination) {
            FromPod::Done(outcome) => outcome,
            FromPod::Filed if is_filed(judged.source, judged.destination) => Outcome::GuardSynFiled,
            FromPod::Filed if is_straight(&pod, judged.source, judged.destination) => Outcome::GuardSynStraight,
            FromPod::Filed => steer::unfiled_syn(&pod, &segment.source, &judged.destination, &Published),
        },
    })
}

#[inline(always)]
fn is_filed(source: Endpoint, destination: Endpoint) -> bool {
    ctx::get(&FILED, &FourTuple::new(source, destination)).is_some()
}

#[inline(always)]
fn is_straight(pod: &PodAddresses, source: Endpoint, destination: Endpoint) -> bool {
    match straight::filed(&FourTuple::new(source, destination)) {
        Some(record) => same_node::may_leave(&Maps, &record, pod, &source.ip()),
        None => false,
    }
}
