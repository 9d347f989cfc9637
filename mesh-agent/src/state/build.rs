//! The pure function from a [`World`] to a snapshot: joins pods, Services, endpoints and policies.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::{Backends, Endpoint, MeshState, PortSpec, Service, ServicePort, ServiceSpec, TargetPort, Workload, World};
use crate::policy::{PeerModes, PolicySet, Subject};

/// By uid: the Services that lead to the workload, and at which of its ports.
type ServicesOfWorkload = HashMap<Arc<str>, BTreeMap<Arc<str>, BTreeSet<u16>>>;

impl MeshState {
    /// Builds the snapshot of a world as one node's agent sees it.
    pub fn build(version: u64, node: &str, world: &World) -> Self {
        let pods = Pods::index(&world.workloads);
        let mut state = MeshState { version, node: node.into(), ..MeshState::default() };
        for spec in &world.services {
            state.add_service(Arc::new(service(spec, &pods)));
        }
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

/// The pods with the ways to find them.
struct Pods<'a> {
    all: Vec<Arc<Workload>>,
    by_ip: HashMap<IpAddr, Arc<Workload>>,
    /// By namespace, label and its value: indexes into `all`.
    by_label: HashMap<(&'a str, &'a str, &'a str), Vec<usize>>,
}

impl<'a> Pods<'a> {
    fn index(workloads: &'a [Workload]) -> Self {
        let all: Vec<Arc<Workload>> = workloads.iter().cloned().map(Arc::new).collect();
        let mut by_ip: HashMap<IpAddr, Arc<Workload>> = HashMap::with_capacity(all.len());
        let mut by_label: HashMap<_, Vec<usize>> = HashMap::new();
        for (index, workload) in workloads.iter().enumerate() {
            for (label, value) in &workload.labels {
                by_label.entry((&*workload.namespace, &**label, &**value)).or_default().push(index);
            }
        }
        for workload in &all {
            if workload.host_network {
                continue;
            }
            for ip in &workload.ips {
                let holder = by_ip.entry(*ip).or_insert_with(|| workload.clone());
                if workload.beats(holder) {
                    *holder = workload.clone();
                }
            }
        }
        Self { all, by_ip, by_label }
    }

    /// The pods of a namespace that have all these labels; none for an empty selector, as Kubernetes has it.
    fn selected<'s>(
        &'s self,
        namespace: &'s str,
        selector: &'s BTreeMap<String, String>,
    ) -> impl Iterator<Item = &'s Arc<Workload>> {
        let lists = selector.iter().map(|(label, value)| self.having(namespace, label, value));
        let fewest = lists.min_by_key(|indexes| indexes.len()).unwrap_or_default();
        let candidates = fewest.iter().filter_map(|index| self.all.get(*index));
        candidates.filter(|pod| selector.iter().all(|(label, value)| pod.labels.get(label) == Some(value)))
    }

    fn having<'s>(&'s self, namespace: &'s str, label: &'s str, value: &'s str) -> &'s [usize] {
        self.by_label.get(&(namespace, label, value)).map(Vec::as_slice).unwrap_or_default()
    }

    /// The pods that hold at least one of the IPs they claim, and those of the host network.
    fn holding_ips(&self) -> Vec<Arc<Workload>> {
        let holds = |workload: &Arc<Workload>| {
            workload.host_network
                || workload.ips.iter().any(|ip| self.by_ip.get(ip).is_some_and(|w| w.uid == workload.uid))
        };
        self.all.iter().filter(|workload| holds(workload)).cloned().collect()
    }
}

fn service(spec: &ServiceSpec, pods: &Pods<'_>) -> Service {
    let ports = spec.ports.iter().map(|port| ServicePort {
        name: port.name.clone(),
        port: port.port,
        endpoints: endpoints(spec, port, pods),
    });
    Service {
        namespace: spec.namespace.clone(),
        name: spec.name.clone(),
        cluster_ips: spec.cluster_ips.clone(),
        ports: ports.collect(),
    }
}

/// The ready endpoints of one port, each address once.
fn endpoints(spec: &ServiceSpec, port: &PortSpec, pods: &Pods<'_>) -> Vec<Endpoint> {
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

fn target_port(workload: &Workload, target: &TargetPort) -> Option<u16> {
    match target {
        TargetPort::Number(port) => Some(*port),
        TargetPort::Name(name) => workload.named_ports.get(name).copied(),
    }
}

/// The pods that a Service's selector selects; none without selector.
fn selected<'a>(spec: &'a ServiceSpec, pods: &'a Pods<'_>) -> impl Iterator<Item = &'a Arc<Workload>> {
    spec.selector.iter().flat_map(|selector| pods.selected(&spec.namespace, selector))
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
