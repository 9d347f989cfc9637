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

/// A port with the endpoints that this node's clients get.
pub(super) fn service_port(
    spec: &ServiceSpec,
    port: &PortSpec,
    pods: &Pods<'_>,
    nodes: &Nodes<'_>,
    here: &Here,
) -> ServicePort {
    let candidates = candidates(spec, port, pods, nodes);
    let node_local = match spec.traffic.internal {
        InternalTraffic::Cluster => None,
        InternalTraffic::Local => Some(endpoints(&candidates, here, topology::node_local, pods)),
    };
    ServicePort {
        name: port.name.clone(),
        port: port.port,
        node_port: port.node_port,
        endpoints: endpoints(&candidates, here, topology::cluster_wide, pods),
        node_local,
    }
}

type Choose = for<'a> fn(&[&'a Backend], &Here) -> Vec<&'a Backend>;

/// What is chosen of each family, each address once.
fn endpoints(candidates: &[Cow<'_, Backend>], here: &Here, choose: Choose, pods: &Pods<'_>) -> Vec<Endpoint> {
    let (v4, v6): (Vec<&Backend>, Vec<&Backend>) =
        candidates.iter().map(|candidate| &**candidate).partition(|backend| backend.ip.is_ipv4());
    let mut seen = HashSet::with_capacity(candidates.len());
    let chosen = [v4, v6].into_iter().flat_map(|family| choose(&family, here));
    let distinct = chosen.filter(|backend| seen.insert((backend.ip, backend.port)));
    let endpoint = |backend: &Backend| Endpoint {
        ip: backend.ip,
        port: backend.port,
        workload: pods.by_ip.get(&backend.ip).cloned(),
    };
    distinct.map(endpoint).collect()
}

/// Everything behind a port, ready or not.
pub(super) fn candidates<'a>(
    spec: &'a ServiceSpec,
    port: &PortSpec,
    pods: &Pods<'_>,
    nodes: &Nodes<'_>,
) -> Vec<Cow<'a, Backend>> {
    match &spec.backends {
        Backends::Listed(backends) => {
            backends.iter().filter(|backend| backend.port_name == port.name).map(Cow::Borrowed).collect()
        }
        Backends::Selected => {
            let pods = selected(spec, pods);
            pods.flat_map(|workload| backends(spec, port, workload, nodes)).map(Cow::Owned).collect()
        }
    }
}

/// What the EndpointSlice controller would list of a pod.
fn backends(
    spec: &ServiceSpec,
    port: &PortSpec,
    workload: &Arc<Workload>,
    nodes: &Nodes<'_>,
) -> impl Iterator<Item = Backend> {
    let target = target_port(workload, &port.target);
    let backend = |ip: IpAddr, target: u16| Backend {
        ip,
        port_name: port.name.clone(),
        port: target,
        ready: spec.traffic.publish_not_ready || (workload.ready && !workload.terminating),
        serving: workload.ready,
        terminating: workload.terminating,
        node: workload.node.clone(),
        hints: hints(spec.traffic.distribution, &workload.node, nodes),
    };
    workload.ips.iter().filter_map(move |ip| Some(backend(*ip, target?)))
}

fn hints(distribution: Distribution, node: &Arc<str>, nodes: &Nodes<'_>) -> Hints {
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

/// The pods that a Service's selector selects; none without selector.
pub(super) fn selected<'a>(spec: &'a ServiceSpec, pods: &'a Pods<'_>) -> impl Iterator<Item = &'a Arc<Workload>> {
    spec.selector.iter().flat_map(|selector| pods.selected(&spec.namespace, selector))
}
