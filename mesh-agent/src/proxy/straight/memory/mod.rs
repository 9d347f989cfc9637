//! What pods may reach by the kernel alone, kept from one snapshot to the next: an answer is worked out again only where
//! something that it followed from is another object than it was.
//!
//! Snapshots share what did not change, so most of them cost a look at the Services and at what each destination leads to,
//! and no answer at all; a pod that comes costs its own answers and those about it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use super::path;
use crate::podnet::StraightPath;
use crate::policy::WorkloadPolicy;
use crate::proxy::limits::MAX_PAIRS;
use crate::state::{AppProtocol, Destination, Frontend, MeshState, Service, Workload};

/// The answers for the snapshot that was seen last.
#[derive(Default)]
pub struct Memory {
    callers: Vec<Arc<Workload>>,
    /// By what is dialled.
    answers: HashMap<SocketAddr, Answers>,
    paths: Arc<[StraightPath]>,
    /// How many answers were worked out.
    pub worked_out: u64,
}

struct Answers {
    inputs: Inputs,
    /// By the caller's uid; who has none is to be carried by the agent.
    paths: HashMap<Arc<str>, StraightPath>,
}

/// All that answers about one destination follow from, but for the caller.
struct Inputs {
    leads_to: LeadsTo,
    /// For each namespace that has callers: whether it is carried as bytes, along no route.
    is_bytes: BTreeMap<Arc<str>, bool>,
    is_regulated: bool,
    endpoints: Vec<EndpointInputs>,
}

/// Immutable both, with all that they say.
enum LeadsTo {
    Service(Arc<Service>, u16),
    Pod(Arc<Workload>),
}

struct EndpointInputs {
    is_tunnelled: bool,
    is_encrypted: bool,
    is_held: bool,
    holder: Option<Arc<Workload>>,
    policy: Option<Arc<WorkloadPolicy>>,
}

impl Memory {
    /// For every pod of this node that is held, what it may dial: the same object as before where nothing changed.
    pub fn paths(&mut self, world: &MeshState, is_held: &dyn Fn(&str) -> bool) -> Arc<[StraightPath]> {
        let held = world.local_workloads().filter(|pod| pod.enrolled && is_held(&pod.uid));
        let callers: Vec<Arc<Workload>> = held.cloned().collect();
        let new = self.new_among(&callers);
        let mut has_changed = !new.is_empty() || callers.len() != self.callers.len();
        let namespaces: BTreeSet<&Arc<str>> = callers.iter().map(|pod| &pod.namespace).collect();
        let destinations = destinations(world, &callers);
        let mut before = std::mem::take(&mut self.answers);
        for dialled in &destinations {
            let Some(inputs) = Inputs::of(world, &namespaces, *dialled, is_held) else { continue };
            let (paths, asked) = match before.remove(dialled) {
                Some(known) if known.inputs.are(&inputs) => (known.paths, &new),
                Some(_) | None => (HashMap::new(), &callers),
            };
            has_changed |= !asked.is_empty();
            let mut answers = Answers { inputs, paths };
            for caller in asked {
                self.worked_out += 1;
                answers.set(caller, path(world, caller, *dialled, is_held));
            }
            self.answers.insert(*dialled, answers);
        }
        if has_changed || !before.is_empty() {
            self.collect(&callers, &destinations);
        }
        self.callers = callers;
        self.paths.clone()
    }

    /// Those that were not there, or were another object.
    fn new_among(&self, callers: &[Arc<Workload>]) -> Vec<Arc<Workload>> {
        let earlier: HashMap<&str, &Arc<Workload>> = self.callers.iter().map(|pod| (&*pod.uid, pod)).collect();
        let is_known = |pod: &Arc<Workload>| earlier.get(&*pod.uid).is_some_and(|earlier| Arc::ptr_eq(earlier, pod));
        callers.iter().filter(|pod| !is_known(pod)).cloned().collect()
    }

    /// In the order of the destinations: where the kernel has no room for all, pods' own addresses go without.
    fn collect(&mut self, callers: &[Arc<Workload>], destinations: &[SocketAddr]) {
        let uids: HashSet<&str> = callers.iter().map(|pod| &*pod.uid).collect();
        for answers in self.answers.values_mut() {
            answers.paths.retain(|uid, _| uids.contains(&**uid));
        }
        let mut paths = Vec::new();
        for answers in destinations.iter().filter_map(|dialled| self.answers.get(dialled)) {
            paths.extend(callers.iter().filter_map(|pod| answers.paths.get(&pod.uid).cloned()));
        }
        self.paths = paths.into();
    }
}

impl Answers {
    fn set(&mut self, caller: &Workload, path: Option<StraightPath>) {
        match path {
            Some(path) => drop(self.paths.insert(caller.uid.clone(), path)),
            None => drop(self.paths.remove(&caller.uid)),
        }
    }
}

/// What is worth asking about: cluster IPs of Services that may lead to pods of this node alone, then those pods' own
/// addresses, as many as there may be for so many callers.
fn destinations(world: &MeshState, callers: &[Arc<Workload>]) -> Vec<SocketAddr> {
    let near: HashSet<&str> = callers.iter().map(|pod| &*pod.uid).collect();
    let is_near = |workload: &Option<Arc<Workload>>| workload.as_ref().is_some_and(|pod| near.contains(&*pod.uid));
    let (mut services, mut pods) = (BTreeSet::new(), BTreeSet::new());
    for (service, port) in world.services().flat_map(|service| service.ports.iter().map(move |port| (service, port))) {
        let here = port.endpoints.iter().filter(|endpoint| is_near(&endpoint.workload));
        let here: Vec<SocketAddr> = here.map(|endpoint| SocketAddr::new(endpoint.ip, endpoint.port)).collect();
        if !here.is_empty() {
            services.extend(service.cluster_ips.iter().map(|ip| SocketAddr::new(*ip, port.port)));
            pods.extend(here);
        }
    }
    let most = MAX_PAIRS / callers.len().max(1);
    let pods: Vec<SocketAddr> = pods.difference(&services).copied().collect();
    services.into_iter().chain(pods).take(most).collect()
}

impl Inputs {
    /// None: nothing that may be reached by the kernel alone.
    fn of(
        world: &MeshState,
        namespaces: &BTreeSet<&Arc<str>>,
        dialled: SocketAddr,
        is_held: &dyn Fn(&str) -> bool,
    ) -> Option<Self> {
        let endpoint = |address: SocketAddr, workload: Option<&Arc<Workload>>| EndpointInputs {
            is_tunnelled: workload.is_some_and(|pod| world.tunnels_to(pod, address.port())),
            is_encrypted: workload.is_some_and(|pod| world.is_encrypted_on_its_node(pod)),
            is_held: workload.is_some_and(|pod| is_held(&pod.uid)),
            holder: world.workload_by_ip(address.ip()).cloned(),
            policy: workload.and_then(|pod| world.inbound_policy(&pod.uid)).cloned(),
        };
        // What these two are does not depend on the caller's address.
        match world.destination(dialled, dialled.ip()) {
            Destination::Service { service, port, frontend: Frontend::ClusterIp } => {
                let is_bytes = |namespace: &str| {
                    world.protocol(service, port, namespace) == AppProtocol::Bytes
                        && world.connections(service, port.port, namespace).is_none()
                };
                let behind = port.behind(Frontend::ClusterIp, dialled.ip());
                Some(Self {
                    leads_to: LeadsTo::Service(service.clone(), port.port),
                    is_bytes: namespaces.iter().map(|name| (Arc::clone(name), is_bytes(name))).collect(),
                    is_regulated: !world.traffic(service, None).is_silent(),
                    endpoints: behind
                        .map(|one| endpoint(SocketAddr::new(one.ip, one.port), one.workload.as_ref()))
                        .collect(),
                })
            }
            Destination::Pod { workload, address } if address == dialled => Some(Self {
                leads_to: LeadsTo::Pod(workload.clone()),
                is_bytes: BTreeMap::new(),
                is_regulated: false,
                endpoints: vec![endpoint(address, Some(workload))],
            }),
            _ => None,
        }
    }

    /// Whether the same answers follow.
    fn are(&self, other: &Self) -> bool {
        let Self { leads_to, is_bytes, is_regulated, endpoints } = self;
        let is_there = match (leads_to, &other.leads_to) {
            (LeadsTo::Service(one, port), LeadsTo::Service(other, others)) => Arc::ptr_eq(one, other) && port == others,
            (LeadsTo::Pod(one), LeadsTo::Pod(other)) => Arc::ptr_eq(one, other),
            _ => false,
        };
        let are_the_same = endpoints.len() == other.endpoints.len()
            && std::iter::zip(endpoints, &other.endpoints).all(|(one, other)| one.is(other));
        // Callers of a namespace that had none are new themselves.
        let is_carried_alike =
            is_bytes.iter().all(|(namespace, is)| other.is_bytes.get(namespace).is_none_or(|other| is == other));
        is_there && is_carried_alike && *is_regulated == other.is_regulated && are_the_same
    }
}

impl EndpointInputs {
    fn is(&self, other: &Self) -> bool {
        let Self { is_tunnelled, is_encrypted, is_held, holder, policy } = self;
        (*is_tunnelled, *is_encrypted, *is_held) == (other.is_tunnelled, other.is_encrypted, other.is_held)
            && is_one(holder, &other.holder)
            && is_one(policy, &other.policy)
    }
}

/// Both are kept, so that no other object has the address of one that is gone.
fn is_one<T>(one: &Option<Arc<T>>, other: &Option<Arc<T>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
