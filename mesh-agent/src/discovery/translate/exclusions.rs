//! The annotations by which a pod keeps connections out of the mesh.
//!
//! A value is taken whole or not at all: half of it would be a pod of which nobody knows what it is. What cannot be read
//! excludes nothing, so a mistake leaves more in the mesh, never less.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use mesh_common::addr::{CAPTURE_V6, SOURCE_V6, TUNNEL_PORT};

use super::{FieldPath, Problem};
use crate::state::Exclusions;

/// What the names of all of them begin with.
const PREFIX: &str = "nodemesh.dev/exclude-";
const OUTBOUND_PORTS: &str = "nodemesh.dev/exclude-outbound-ports";
const INBOUND_PORTS: &str = "nodemesh.dev/exclude-inbound-ports";
const OUTBOUND_CIDRS: &str = "nodemesh.dev/exclude-outbound-cidrs";

/// Ports in one annotation. 250 pods with both their lists full, in both families, fit the kernel's map of 65 536.
pub const MAX_PORTS: usize = 64;
/// Networks in one annotation. 250 pods with full lists fit the kernel's map of 16 384.
pub const MAX_NETWORKS: usize = 64;

/// What a pod's annotations exclude; what is wrong with them goes to `problems`, one for each annotation.
pub fn read(annotations: Option<&BTreeMap<String, String>>, problems: &mut Vec<Problem>) -> Exclusions {
    let mut exclusions = Exclusions::default();
    for (name, value) in annotations.into_iter().flatten().filter(|(name, _)| name.starts_with(PREFIX)) {
        let taken = match name.as_str() {
            OUTBOUND_PORTS => list(value, MAX_PORTS, port).map(|ports| exclusions.outbound_ports = ports),
            INBOUND_PORTS => list(value, MAX_PORTS, port).map(|ports| exclusions.inbound_ports = ports),
            OUTBOUND_CIDRS => list(value, MAX_NETWORKS, network).map(|cidrs| exclusions.outbound_networks = cidrs),
            _ => Err(format!("unknown: {OUTBOUND_PORTS}, {INBOUND_PORTS} and {OUTBOUND_CIDRS} are known")),
        };
        if let Err(reason) = taken {
            problems.push(Problem::new(FieldPath::of("metadata.annotations").key(name), reason));
        }
    }
    exclusions
}

/// Comma-separated, with spaces where one likes; an empty value is an empty list.
fn list<T: Ord>(value: &str, most: usize, read: impl Fn(&str) -> Result<T, String>) -> Result<BTreeSet<T>, String> {
    if value.trim().is_empty() {
        return Ok(BTreeSet::new());
    }
    let entries: BTreeSet<T> = value.split(',').map(|entry| read(entry.trim())).collect::<Result<_, _>>()?;
    if entries.len() > most { Err(format!("{} entries; {most} at most", entries.len())) } else { Ok(entries) }
}

fn port(text: &str) -> Result<u16, String> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse::<u16>() {
        Ok(TUNNEL_PORT) => Err(format!("{TUNNEL_PORT} is the agents' own port and cannot be excluded")),
        Ok(port) if port != 0 && digits => Ok(port),
        Ok(_) | Err(_) => Err(format!("{text:?} is not a port: 1 to 65535, separated by commas")),
    }
}

fn network(text: &str) -> Result<IpNet, String> {
    let network: IpNet = text.parse().map_err(|_| format!("{text:?} is not a CIDR, such as 10.0.0.0/8 or fd00::/8"))?;
    if network.network() != network.addr() {
        return Err(format!("{text:?} has bits beyond its prefix; {} is the network", network.trunc()));
    }
    match never(&network) {
        Some(what) => Err(format!("{text:?} cannot be excluded: it is {what}")),
        None => Ok(network),
    }
}

/// The upper half of a range of the mesh's own, as a network.
const fn own_range(half: [u8; 8]) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::from_bits((u64::from_be_bytes(half) as u128) << 64), 64))
}

/// What the kernel's rule does not pass whatever is asked for: said here, not left to be wondered at.
const NEVER: [(IpNet, &str); 6] = [
    (IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)), "loopback, which is never in the mesh"),
    (IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128)), "loopback, which is never in the mesh"),
    (IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10)), "link-local, which is refused"),
    (IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96)), "IPv4: write it as IPv4"),
    (own_range(CAPTURE_V6), "the mesh's own range"),
    (own_range(SOURCE_V6), "the mesh's own range"),
];

fn never(network: &IpNet) -> Option<&'static str> {
    NEVER.iter().find(|(range, _)| range.contains(network)).map(|(_, what)| *what)
}
