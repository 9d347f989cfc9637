//! What pods keep out of the mesh: keeps the kernel's tables in step with the state.
//!
//! Read anew with every snapshot, whatever is enrolled: an annotation that is edited holds for the next connection.

use std::collections::HashSet;
use std::net::IpAddr;

use ipnet::IpNet;
use mesh_common::addr::Ip;
use mesh_common::exclude::{NetworkKey, PortKey, Way};

use super::table::Table;
use super::tables::Tables;
use crate::podnet::Family;
use crate::state::{MeshState, Workload};

/// What the kernel's table of ports holds (`EXCLUDED_PORTS` in mesh-ebpf).
pub(super) const MAX_PORTS: usize = 65_536;
/// What the kernel's table of networks holds (`EXCLUDED_NETS` in mesh-ebpf).
pub(super) const MAX_NETWORKS: usize = 16_384;

/// What is in the tables, as far as this agent knows.
#[derive(Default)]
pub(super) struct Exclusions {
    /// The snapshot that was published last; None before the first.
    version: Option<u64>,
    published: Entries,
}

/// The content of both tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Entries {
    ports: HashSet<PortKey>,
    networks: HashSet<NetworkKey>,
}

impl Exclusions {
    /// Publishes a snapshot, once. The first time also what an earlier agent left is collected: a pod that was given an
    /// address meanwhile would have its former holder's exclusions.
    pub fn publish(&mut self, state: &MeshState, tables: &Tables) {
        if self.version == Some(state.version) {
            return;
        }
        if self.version.is_none() {
            self.published.ports = tables.excluded_ports.keys(MAX_PORTS).into_iter().collect();
            self.published.networks = tables.excluded_networks.keys(MAX_NETWORKS).into_iter().collect();
        }
        let wanted = Entries::of(state);
        let ports = bring(&tables.excluded_ports, &mut self.published.ports, &wanted.ports, MAX_PORTS);
        let networks = bring(&tables.excluded_networks, &mut self.published.networks, &wanted.networks, MAX_NETWORKS);
        if !(ports && networks) {
            tracing::warn!("what pods exclude could not all be published: the rest stays in the mesh");
        }
        self.version = Some(state.version);
    }
}

impl Entries {
    /// Under the addresses that enrolled pods of this node hold: of two that claim one, only its holder's.
    fn of(state: &MeshState) -> Self {
        let mut entries = Self::default();
        for workload in state.local_workloads().filter(|workload| workload.enrolled) {
            let holds = |ip: &&IpAddr| state.workload_by_ip(**ip).is_some_and(|holder| holder.uid == workload.uid);
            for ip in workload.ips.iter().filter(holds) {
                entries.add(workload, *ip);
            }
        }
        entries
    }

    fn add(&mut self, workload: &Workload, own: IpAddr) {
        let crate::state::Exclusions { outbound_ports, inbound_ports, outbound_networks } = &workload.exclusions;
        let pod = Ip::from(own);
        self.ports.extend(outbound_ports.iter().map(|port| PortKey::new(pod, Way::Outbound, *port)));
        self.ports.extend(inbound_ports.iter().map(|port| PortKey::new(pod, Way::Inbound, *port)));
        let of_family = |network: &&IpNet| Family::of(network.addr()) == Family::of(own);
        let networks = outbound_networks.iter().filter(of_family);
        self.networks.extend(networks.map(|net| NetworkKey::new(pod, Ip::from(net.addr()), net.prefix_len())));
    }
}

/// Writes what changed; false if something that is wanted is not in the table now. What goes does so first: it may stand
/// for a pod that has left its address to another.
pub(super) fn bring<K: aya::Pod + Eq + std::hash::Hash>(
    table: &Table<K, u8>,
    published: &mut HashSet<K>,
    wanted: &HashSet<K>,
    most: usize,
) -> bool {
    published.retain(|key| {
        let stays = wanted.contains(key);
        if !stays {
            table.remove(key);
        }
        stays
    });
    for key in wanted {
        if !published.contains(key) && published.len() < most && table.set(key, &0).is_ok() {
            published.insert(*key);
        }
    }
    published.len() == wanted.len()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::spiffe::SpiffeId;
    use crate::state::World;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn pod(name: &str, ips: &[&str], created: i64, exclusions: crate::state::Exclusions) -> Workload {
        Workload {
            uid: name.into(),
            name: name.into(),
            namespace: "shop".into(),
            node: "node".into(),
            identity: SpiffeId::new("cluster.local", "shop", name).unwrap(),
            ips: ips.iter().map(|text| ip(text)).collect(),
            labels: BTreeMap::new(),
            named_ports: BTreeMap::new(),
            host_ips: vec![],
            host_ports: vec![],
            exclusions,
            probe_ports: Default::default(),
            forwards: false,
            enrolled: true,
            refusal: None,
            host_network: false,
            ready: true,
            terminating: false,
            created: Some(created),
        }
    }

    fn excluding(outbound: &[u16], inbound: &[u16], networks: &[&str]) -> crate::state::Exclusions {
        crate::state::Exclusions {
            outbound_ports: outbound.iter().copied().collect(),
            inbound_ports: inbound.iter().copied().collect(),
            outbound_networks: networks.iter().map(|net| net.parse().unwrap()).collect(),
        }
    }

    fn entries(workloads: Vec<Workload>) -> Entries {
        Entries::of(&MeshState::build(1, "node", &World { workloads, ..World::default() }))
    }

    fn expected(ports: &[(&str, Way, u16)], networks: &[(&str, &str, u8)]) -> Entries {
        Entries {
            ports: ports.iter().map(|(pod, way, port)| PortKey::new(ip(pod).into(), *way, *port)).collect(),
            networks: networks
                .iter()
                .map(|(pod, net, n)| NetworkKey::new(ip(pod).into(), ip(net).into(), *n))
                .collect(),
        }
    }

    #[test]
    fn each_family_under_its_own_address() {
        let exclusions = excluding(&[3306], &[9100], &["10.9.0.0/16", "fd77::/16", "::/0"]);
        let dual = expected(
            &[
                ("10.0.0.2", Way::Outbound, 3306),
                ("fd99::2", Way::Outbound, 3306),
                ("10.0.0.2", Way::Inbound, 9100),
                ("fd99::2", Way::Inbound, 9100),
            ],
            &[("10.0.0.2", "10.9.0.0", 16), ("fd99::2", "fd77::", 16), ("fd99::2", "::", 0)],
        );
        assert_eq!(entries(vec![pod("a", &["10.0.0.2", "fd99::2"], 1, exclusions.clone())]), dual);
        let v4 = expected(
            &[("10.0.0.2", Way::Outbound, 3306), ("10.0.0.2", Way::Inbound, 9100)],
            &[("10.0.0.2", "10.9.0.0", 16)],
        );
        assert_eq!(entries(vec![pod("a", &["10.0.0.2"], 1, exclusions)]), v4);
    }

    #[test]
    fn of_this_nodes_enrolled_pods_alone() {
        let asking = pod("a", &["10.0.0.2"], 1, excluding(&[1], &[], &[]));
        let elsewhere = Workload { node: "other".into(), ..asking.clone() };
        let outside = Workload { enrolled: false, ..asking.clone() };
        for workload in [elsewhere, outside] {
            assert_eq!(entries(vec![workload]), Entries::default());
        }
        assert_ne!(entries(vec![asking]), Entries::default());
    }

    #[test]
    fn an_address_brings_no_former_holders_exclusions() {
        let former = pod("former", &["10.0.0.2", "fd99::2"], 1, excluding(&[1], &[2], &["0.0.0.0/0"]));
        let holder = pod("holder", &["10.0.0.2"], 2, excluding(&[], &[3], &[]));
        let left = expected(
            &[("10.0.0.2", Way::Inbound, 3), ("fd99::2", Way::Outbound, 1), ("fd99::2", Way::Inbound, 2)],
            &[],
        );
        for workloads in [vec![former.clone(), holder.clone()], vec![holder, former]] {
            assert_eq!(entries(workloads), left);
        }
    }
}
