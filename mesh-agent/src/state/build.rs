//! The pure function from a [`World`] to a snapshot: joins pods, Services, endpoints and policies.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::endpoints::{selected, service_port, target_port};
use super::frontends::Frontends;
use super::nodes::Nodes;
use super::pods::Pods;
use super::topology::Here;
use super::{Backends, MeshState, Service, ServiceSpec, Workload, World};
use crate::policy::{PeerModes, PolicySet, Subject};

/// By uid: the Services that lead to the workload, and at which of its ports.
type ServicesOfWorkload = HashMap<Arc<str>, BTreeMap<Arc<str>, BTreeSet<u16>>>;

impl MeshState {
    /// Builds the snapshot of a world as one node's agent sees it.
    pub fn build(version: u64, node: &str, world: &World) -> Self {
        let pods = Pods::index(&world.workloads);
        let nodes = Nodes::index(world);
        let mut state = MeshState { version, node: node.into(), ..MeshState::default() };
        let here = nodes.here(&state.node);
        for spec in &world.services {
            state.add_service(Arc::new(service(spec, &pods, &nodes, &here)));
        }
        state.frontends = Frontends::index(world, &state.services, &pods, &nodes);
        let services = services_of_workloads(world, &pods);
        state.judge(&world.policies, &pods, &services);
        state.policies = world.policies.clone();
        state.workloads = pods.holding_ips();
        state.workloads_by_ip = pods.by_ip;
        state
    }

    /// Files a Service under its cluster IPs. A cluster IP that two Services claim stays with the first.
    fn add_service(&mut self, service: Arc<Service>) {
        for ip in &service.cluster_ips {
            self.services_by_ip.entry(*ip).or_insert_with(|| service.clone());
        }
        self.services.push(service);
    }

    /// Compiles the policies of this node's pods, and for all enrolled pods whether they take plaintext.
    fn judge(&mut self, policies: &PolicySet, pods: &Pods<'_>, services: &ServicesOfWorkload) {
        let none = BTreeMap::new();
        let open = PeerModes::default();
        for workload in &pods.all {
            let subject = Subject {
                namespace: &workload.namespace,
                labels: &workload.labels,
                services: services.get(&workload.uid).unwrap_or(&none),
            };
            if workload.enrolled {
                let modes = policies.peer_modes(&subject);
                if modes != open {
                    self.peer_modes.insert(workload.uid.clone(), modes);
                }
            }
            if workload.node == self.node && !self.node.is_empty() {
                self.local_policies.insert(workload.uid.clone(), Arc::new(policies.compile(&subject)));
            }
        }
    }
}

fn service(spec: &ServiceSpec, pods: &Pods<'_>, nodes: &Nodes<'_>, here: &Here) -> Service {
    let ports = spec.ports.iter().map(|port| service_port(spec, port, pods, nodes, here));
    Service {
        namespace: spec.namespace.clone(),
        name: spec.name.clone(),
        cluster_ips: spec.cluster_ips.clone(),
        external: spec.external.clone(),
        affinity: spec.traffic.affinity,
        ports: ports.collect(),
    }
}

/// Which pods a policy on a Service covers. Pods that are not ready count: they can be dialled by their IP. Only
/// Services that a policy targets are looked at.
fn services_of_workloads(world: &World, pods: &Pods<'_>) -> ServicesOfWorkload {
    let targeted = world.policies.targeted_services();
    let mut found = ServicesOfWorkload::new();
    let mut cover = |workload: &Workload, service: &ServiceSpec, port: u16| {
        let services = found.entry(workload.uid.clone()).or_default();
        services.entry(service.name.clone()).or_default().insert(port);
    };
    for spec in &world.services {
        if !targeted.contains(&(spec.namespace.clone(), spec.name.clone())) {
            continue;
        }
        for workload in selected(spec, pods) {
            for port in spec.ports.iter().filter_map(|port| target_port(workload, &port.target)) {
                cover(workload, spec, port);
            }
        }
        let Backends::Listed(backends) = &spec.backends else { continue };
        for backend in backends {
            if let Some(workload) = pods.by_ip.get(&backend.ip).filter(|w| w.namespace == spec.namespace) {
                cover(workload, spec, backend.port);
            }
        }
    }
    found
}
