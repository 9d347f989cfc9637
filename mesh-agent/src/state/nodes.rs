//! What is known of nodes: by their objects, and by what their pods say of them.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::claims::Claims;
use super::object::Name;
use super::topology::Here;
use super::{Node, Workload};

#[derive(Default)]
pub(super) struct Nodes {
    by_name: HashMap<Arc<str>, Arc<Node>>,
    ips: Claims<IpAddr, Teller, ()>,
}

/// Who says that an address is a node's.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Teller {
    Node(Arc<str>),
    Pod(Name),
}

impl Nodes {
    /// Takes a node as it is now. Returns how it was, and the addresses that changed hands.
    pub(super) fn take(&mut self, name: &Arc<str>, node: Option<Arc<Node>>) -> (Option<Arc<Node>>, Vec<IpAddr>) {
        let ips = node.iter().flat_map(|node| node.ips.iter().map(|ip| (*ip, ())));
        let changed = self.ips.replace(&Teller::Node(name.clone()), ips);
        let before = match node {
            Some(node) => self.by_name.insert(name.clone(), node),
            None => self.by_name.remove(name),
        };
        (before, changed)
    }

    /// Takes what a pod says of its node. Returns the addresses that changed hands.
    pub(super) fn take_pod(&mut self, name: &Name, workload: Option<&Workload>) -> Vec<IpAddr> {
        self.ips.replace(&Teller::Pod(name.clone()), workload.into_iter().flat_map(told_by).map(|ip| (ip, ())))
    }

    /// Whether it is the address of a node.
    pub(super) fn have(&self, ip: &IpAddr) -> bool {
        self.ips.is_claimed(ip)
    }

    /// The zone of a node; empty when not known.
    pub(super) fn zone(&self, node: &str) -> Arc<str> {
        self.by_name.get(node).map(|node| node.zone.clone()).unwrap_or_default()
    }

    pub(super) fn here(&self, node: &Arc<str>) -> Here {
        Here { node: node.clone(), zone: self.zone(node) }
    }

    /// The addresses of the node that a pod runs on.
    pub(super) fn ips_under(&self, workload: &Workload) -> HashSet<IpAddr> {
        let of_object = self.by_name.get(&*workload.node).map(|node| node.ips.as_slice()).unwrap_or_default();
        of_object.iter().copied().chain(told_by(workload)).collect()
    }
}

/// A hostNetwork pod's addresses are its node's.
fn told_by(workload: &Workload) -> impl Iterator<Item = IpAddr> + '_ {
    let own = if workload.host_network { workload.ips.as_slice() } else { &[] };
    workload.host_ips.iter().chain(own).copied()
}
