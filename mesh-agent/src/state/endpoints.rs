//! Which endpoints a Service's port has.

use std::borrow::Cow;
use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::nodes::Nodes;
use super::pods::Pods;
use super::topology::{self, Here};
use super::{
    Backend, Backends, Distribution, Endpoint, Hints, InternalTraffic, PortSpec, ServicePort, ServiceSpec, TargetPort,
    Workload,
};
use crate::resilience::balance::Place;

/// Everything that says where a Service leads.
pub(super) struct Behind<'a> {
    pub(super) spec: &'a ServiceSpec,
    /// What its EndpointSlices list; None when it has none.
    pub(super) listed: Option<Vec<&'a Backend>>,
    pub(super) pods: &'a Pods,
    pub(super) nodes: &'a Nodes,
}

impl<'a> Behind<'a> {
    /// `slices` are those of the Service, if it has any.
    pub(super) fn new(
        spec: &'a ServiceSpec,
        slices: Option<impl Iterator<Item = &'a Arc<[Backend]>>>,
        pods: &'a Pods,
        nodes: &'a Nodes,
    ) -> Self {
        let listed = match (slices, &spec.backends) {
            (Some(slices), _) => Some(slices.flat_map(|slice| slice.iter()).collect()),
            (None, Backends::Listed(backends)) => Some(backends.iter().collect()),
            (None, Backends::Selected) => None,
        };
        Self { spec, listed, pods, nodes }
    }

    /// A port with the endpoints that this node's clients get.
    pub(super) fn port(&self, port: &PortSpec, here: &Here) -> ServicePort {
        let candidates = self.candidates(port);
        let node_local = match self.spec.traffic.internal {
            InternalTraffic::Cluster => None,
            InternalTraffic::Local => Some(self.endpoints(&candidates, here, topology::node_local)),
        };
        ServicePort {
            name: port.name.clone(),
            port: port.port,
            node_port: port.node_port,
            endpoints: self.endpoints(&candidates, here, topology::cluster_wide),
            node_local,
            protocol: port.protocol,
        }
    }

    /// What is chosen of each family, each address once.
    fn endpoints(&self, candidates: &[Cow<'_, Backend>], here: &Here, choose: Choose) -> Vec<Endpoint> {
        let (v4, v6): (Vec<&Backend>, Vec<&Backend>) =
            candidates.iter().map(|candidate| &**candidate).partition(|backend| backend.ip.is_ipv4());
        let mut seen = HashSet::with_capacity(candidates.len());
        let chosen = [v4, v6].into_iter().flat_map(|family| choose(&family, here));
        let distinct = chosen.filter(|backend| seen.insert((backend.ip, backend.port)));
        let endpoint = |backend: &Backend| {
            let workload = self.pods.by_ip(&backend.ip).cloned();
            let place = self.place(backend, workload.as_deref(), here);
            Endpoint { ip: backend.ip, port: backend.port, workload, place }
        };
        distinct.map(endpoint).collect()
    }

    /// A node's zone counts for pods alone: when it changes, Services are found by the pods on it.
    fn place(&self, backend: &Backend, workload: Option<&Workload>, here: &Here) -> Place {
        let node = workload.map_or(&backend.node, |workload| &workload.node);
        let is_known = |name: &str| !name.is_empty();
        if is_known(node) && *node == here.node {
            Place::Node
        } else if workload.is_some() && is_known(&here.zone) && self.nodes.zone(node) == here.zone {
            Place::Zone
        } else {
            Place::Elsewhere
        }
    }

    /// Everything behind a port, ready or not.
    pub(super) fn candidates(&self, port: &PortSpec) -> Vec<Cow<'a, Backend>> {
        match &self.listed {
            Some(backends) => {
                let of_port = backends.iter().filter(|backend| backend.port_name == port.name);
                of_port.map(|backend| Cow::Borrowed(*backend)).collect()
            }
            None => self.selected().flat_map(|workload| self.backends(port, workload)).map(Cow::Owned).collect(),
        }
    }

    /// What the EndpointSlice controller would list of a pod.
    fn backends(&self, port: &PortSpec, workload: &Arc<Workload>) -> impl Iterator<Item = Backend> {
        let target = target_port(workload, &port.target);
        let traffic = self.spec.traffic;
        let backend = move |ip: IpAddr, target: u16| Backend {
            ip,
            port_name: port.name.clone(),
            port: target,
            ready: traffic.publish_not_ready || (workload.ready && !workload.terminating),
            serving: workload.ready,
            terminating: workload.terminating,
            node: workload.node.clone(),
            hints: hints(traffic.distribution, &workload.node, self.nodes),
        };
        workload.ips.iter().filter_map(move |ip| Some(backend(*ip, target?)))
    }

    /// The pods that the selector selects; none without selector.
    pub(super) fn selected(&self) -> impl Iterator<Item = &'a Arc<Workload>> {
        let (spec, pods) = (self.spec, self.pods);
        spec.selector.iter().flat_map(|selector| pods.selected(&spec.namespace, selector))
    }

    /// The addresses whose holder matters to the Service.
    pub(super) fn ips(&self) -> Vec<IpAddr> {
        match &self.listed {
            Some(backends) => backends.iter().map(|backend| backend.ip).collect(),
            None => self.selected().flat_map(|workload| workload.ips.iter().copied()).collect(),
        }
    }
}

type Choose = for<'a> fn(&[&'a Backend], &Here) -> Vec<&'a Backend>;

fn hints(distribution: Distribution, node: &Arc<str>, nodes: &Nodes) -> Hints {
    let known = |name: Arc<str>| Some(name).filter(|name| !name.is_empty()).into_iter().collect();
    match distribution {
        Distribution::Even => Hints::default(),
        Distribution::SameZone => Hints { zones: known(nodes.zone(node)), nodes: Vec::new() },
        Distribution::SameNode => Hints { zones: known(nodes.zone(node)), nodes: known(node.clone()) },
    }
}

pub(super) fn target_port(workload: &Workload, target: &TargetPort) -> Option<u16> {
    match target {
        TargetPort::Number(port) => Some(*port),
        TargetPort::Name(name) => workload.named_ports.get(name).copied(),
    }
}
