//! The address plan: every node has pod ranges of its own, every Service a cluster IP in both families.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// An IP family to run something over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl Family {
    /// Both, for loops.
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

    /// The family of an address.
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// curl's flag for it.
    pub fn flag(self) -> &'static str {
        match self {
            Family::V4 => "-4",
            Family::V6 => "-6",
        }
    }
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

/// One address of each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DualStack {
    /// The IPv4 address.
    pub v4: Ipv4Addr,
    /// The IPv6 address.
    pub v6: Ipv6Addr,
}

impl DualStack {
    /// The address of one family.
    pub fn ip(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }

    /// The address of one family with a port.
    pub fn socket(&self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(family), port)
    }
}

/// A node's own address, reached over every link to another node.
pub fn node(index: usize) -> DualStack {
    let n = index as u8;
    DualStack { v4: Ipv4Addr::new(172, 31, 0, n), v6: Ipv6Addr::new(0xfd00, 0x172, 0x31, 0, 0, 0, 0, n.into()) }
}

/// The host's end of every pod's link on a node, the pods' default gateway.
pub fn gateway(node: usize) -> DualStack {
    pod(node, 1)
}

/// The address of a node's pod; `place` starts at 2.
pub fn pod(node: usize, place: usize) -> DualStack {
    let (n, p) = (node as u8, place as u8);
    DualStack { v4: Ipv4Addr::new(10, 244, n, p), v6: Ipv6Addr::new(0xfd00, 0x10, 0x244, n.into(), 0, 0, 0, p.into()) }
}

/// A node's pod range in a family, as its Node object states it.
pub fn pod_range(node: usize, family: Family) -> String {
    let length = match family {
        Family::V4 => 24,
        Family::V6 => 64,
    };
    format!("{}/{length}", pod(node, 0).ip(family))
}

/// A Service's name and cluster IPs.
#[derive(Clone, Debug)]
pub struct ServiceAddress {
    /// metadata.namespace
    pub namespace: String,
    /// metadata.name
    pub name: String,
    /// What its name resolves to: spec.clusterIPs, or the addresses of a pod where there are none.
    pub ips: DualStack,
}

impl ServiceAddress {
    pub(super) fn nth(index: usize, namespace: &str, name: &str) -> Self {
        let n = index as u8 + 10;
        let v4 = Ipv4Addr::new(10, 96, 0, n);
        let v6 = Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, n.into());
        Self { namespace: namespace.to_string(), name: name.to_string(), ips: DualStack { v4, v6 } }
    }

    /// Cluster IP and port.
    pub fn socket(&self, family: Family, port: u16) -> SocketAddr {
        self.ips.socket(family, port)
    }
}
