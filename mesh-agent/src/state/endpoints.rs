//! Which endpoints a Service's port has.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::pods::Pods;
use super::{Backends, Endpoint, PortSpec, ServiceSpec, TargetPort, Workload};

/// The ready endpoints of one port, each address once.
pub(super) fn endpoints(spec: &ServiceSpec, port: &PortSpec, pods: &Pods<'_>) -> Vec<Endpoint> {
    let places: Vec<(IpAddr, u16)> = match &spec.backends {
        Backends::Listed(backends) => {
            let serving = backends.iter().filter(|backend| backend.ready && backend.port_name == port.name);
            serving.map(|backend| (backend.ip, backend.port)).collect()
        }
        Backends::Selected => {
            let ready = selected(spec, pods).filter(|workload| workload.ready && !workload.terminating);
            ready.flat_map(|workload| places(workload, &port.target)).collect()
        }
    };
    let mut seen = HashSet::with_capacity(places.len());
    let distinct = places.into_iter().filter(|place| seen.insert(*place));
    distinct.map(|(ip, port)| Endpoint { ip, port, workload: pods.by_ip.get(&ip).cloned() }).collect()
}

fn places(workload: &Arc<Workload>, target: &TargetPort) -> impl Iterator<Item = (IpAddr, u16)> {
    let port = target_port(workload, target);
    workload.ips.iter().filter_map(move |ip| Some((*ip, port?)))
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
