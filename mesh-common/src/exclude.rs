//! What a pod keeps out of the mesh: the rule, and the keys that it asks the maps with.
//!
//! Entries stand under the pod's address of the family that they are for, because that alone is known to every hook: to
//! connect by the pod's entry, to the guard by the interface's, to sk_lookup by the packet.

use crate::addr::{Endpoint, Ip, TUNNEL_PORT};
use crate::record::PodAddresses;

/// Which connections an excluded port is about. The numbers are part of the ABI.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// Those that the pod opens: the port dialled.
    Outbound = 0,
    /// Those that it receives: its own port.
    Inbound = 1,
}

/// EXCLUDED_PORTS key.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortKey {
    pod: Ip,
    port: [u8; 2],
    way: [u8; 1],
    zero: [u8; 1],
}

impl PortKey {
    /// A port of the pod that holds the address `pod`, for connections of its family.
    #[inline(always)]
    pub const fn new(pod: Ip, way: Way, port: u16) -> Self {
        Self { pod, port: port.to_be_bytes(), way: [way as u8], zero: [0] }
    }
}

/// EXCLUDED_NETS key, as a trie by longest prefix wants it: the number of bits that count, then the bits.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NetworkKey {
    bits: u32,
    place: Place,
}

/// Whose network, and which: what a trie compares.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    pod: Ip,
    destination: Ip,
}

impl Place {
    /// All bits: the pod's address and one destination.
    pub const BITS: u32 = 256;

    /// A destination of the pod that holds the address `pod`.
    #[inline(always)]
    pub const fn new(pod: Ip, destination: Ip) -> Self {
        Self { pod, destination }
    }
}

impl NetworkKey {
    /// The network `network`/`length` for the pod that holds the address `pod`; `length` counts as it is written, from
    /// 0 to 32 for IPv4.
    pub const fn new(pod: Ip, network: Ip, length: u8) -> Self {
        let before = if network.is_v4() { 96 } else { 0 };
        Self { bits: 128 + before + length as u32, place: Place::new(pod, network) }
    }
}

/// The maps, as the rule asks them.
pub trait Exclusions {
    /// Whether EXCLUDED_PORTS has the key.
    fn has_port(&self, key: &PortKey) -> bool;
    /// Whether a network in EXCLUDED_NETS contains the place.
    fn has_network(&self, place: &Place) -> bool;
}

/// Whether the pod keeps its connections to `destination` out of the mesh.
#[inline(always)]
pub fn outbound(pod: &PodAddresses, destination: &Endpoint, exclusions: &impl Exclusions) -> bool {
    let ip = destination.ip();
    let Some(own) = pod.of_family(&ip) else { return false };
    if !may_be(destination) {
        return false;
    }
    exclusions.has_port(&PortKey::new(own, Way::Outbound, destination.port()))
        || exclusions.has_network(&Place::new(own, ip))
}

/// Whether the pod that holds the address of `local` keeps that port out of the mesh.
#[inline(always)]
pub fn inbound(local: &Endpoint, exclusions: &impl Exclusions) -> bool {
    may_be(local) && exclusions.has_port(&PortKey::new(local.ip(), Way::Inbound, local.port()))
}

/// What no annotation can exclude, whatever the maps hold: the agents' port, the mesh's own ranges, and what never leaves
/// by a gateway.
#[inline(always)]
const fn may_be(end: &Endpoint) -> bool {
    let ip = end.ip();
    let own_range = ip.is_capture() || ip.is_agent_source();
    let stays = ip.is_loopback() || ip.is_unspecified() || ip.is_v6_link_local();
    end.port() != TUNNEL_PORT && !own_range && !stays
}

/// The maps for tests of the rule.
#[cfg(test)]
pub(crate) mod fake {
    extern crate std;
    use core::net::IpAddr;
    use std::collections::HashSet;
    use std::vec::Vec;

    use super::*;

    /// No pod excludes anything.
    pub(crate) const NOTHING: Nothing = Nothing;

    pub(crate) struct Nothing;

    impl Exclusions for Nothing {
        fn has_port(&self, _: &PortKey) -> bool {
            false
        }

        fn has_network(&self, _: &Place) -> bool {
            false
        }
    }

    /// What the maps would hold.
    pub(crate) struct Fake {
        ports: HashSet<PortKey>,
        networks: Vec<NetworkKey>,
    }

    fn ip(text: &str) -> Ip {
        text.parse::<IpAddr>().expect("an address").into()
    }

    impl Fake {
        /// (pod, port dialled) and (pod, network, prefix length)
        pub(crate) fn new(ports: &[(&str, u16)], networks: &[(&str, &str, u8)]) -> Self {
            let key = |(pod, port): &(&str, u16)| PortKey::new(ip(pod), Way::Outbound, *port);
            let network = |(pod, net, length): &(&str, &str, u8)| NetworkKey::new(ip(pod), ip(net), *length);
            Self { ports: ports.iter().map(key).collect(), networks: networks.iter().map(network).collect() }
        }

        /// (pod, its port)
        pub(crate) fn inbound(ports: &[(&str, u16)]) -> Self {
            let key = |(pod, port): &(&str, u16)| PortKey::new(ip(pod), Way::Inbound, *port);
            Self { ports: ports.iter().map(key).collect(), networks: Vec::new() }
        }
    }

    impl Exclusions for Fake {
        fn has_port(&self, key: &PortKey) -> bool {
            self.ports.contains(key)
        }

        /// As the kernel compares: bit by bit, from the first byte's highest.
        fn has_network(&self, place: &Place) -> bool {
            let bits = |place: &Place| {
                let octets = [place.pod.octets(), place.destination.octets()].concat();
                octets.into_iter().flat_map(|octet| (0..8).map(move |bit| octet << bit & 0x80)).collect::<Vec<u8>>()
            };
            let asked = bits(place);
            self.networks.iter().any(|key| {
                let counted = key.bits as usize;
                bits(&key.place)[..counted] == asked[..counted]
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_have_no_padding() {
        assert_eq!(size_of::<PortKey>(), 16 + 2 + 1 + 1);
        assert_eq!(size_of::<NetworkKey>(), 4 + 16 + 16);
        assert_eq!(Place::BITS as usize, size_of::<Place>() * 8);
    }

    #[test]
    fn a_pod_without_an_address_of_the_family_excludes_nothing() {
        let pod = PodAddresses::new(Ip::from_v4([10, 0, 0, 2]), Ip::UNSPECIFIED);
        let all = fake::Fake::new(&[("10.0.0.2", 80), ("::", 80)], &[("::", "::", 0)]);
        let v6 = Endpoint::new(Ip::from_v6([0x20; 16]), 80);
        assert!(!outbound(&pod, &v6, &all));
        assert!(outbound(&pod, &Endpoint::new(Ip::from_v4([10, 0, 0, 3]), 80), &all));
    }
}
