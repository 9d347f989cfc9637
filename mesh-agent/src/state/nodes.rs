//! The nodes of a world, indexed while a snapshot is built.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::topology::Here;
use super::{Node, Workload, World};

/// What is known of nodes: by their objects, and by what their pods say of them.
pub(super) struct Nodes<'a> {
    by_name: HashMap<&'a str, &'a Node>,
}

impl<'a> Nodes<'a> {
    pub(super) fn index(world: &'a World) -> Self {
        Self { by_name: world.nodes.iter().map(|node| (&*node.name, node)).collect() }
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

    /// The addresses of all nodes.
    pub(super) fn all_ips(&self, world: &World) -> HashSet<IpAddr> {
        let of_objects = self.by_name.values().flat_map(|node| node.ips.iter().copied());
        of_objects.chain(world.workloads.iter().flat_map(told_by)).collect()
    }
}

/// A hostNetwork pod's addresses are its node's.
fn told_by(workload: &Workload) -> impl Iterator<Item = IpAddr> + '_ {
    let own = if workload.host_network { workload.ips.as_slice() } else { &[] };
    workload.host_ips.iter().chain(own).copied()
}
