//! The snapshot and its one writer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::attachments::ServiceRoutes;
use super::cow::CowMap;
use super::frontends::Frontends;
use super::object::{Name, RouteId};
use super::traffic::Attached;
use super::{ReferenceGrant, RouteSpec, Service, Workload};
use crate::policy::{Authorizer, Mode, PeerModes, PolicySet, Provider, WorkloadPolicy};
use crate::resilience::policy::TrafficPolicy;
use crate::tokens::KeysUri;

/// Everything that a decision may read, frozen. Made by [`super::Engine`]; what did not change between two snapshots is
/// the same object in both, not just an equal one.
#[derive(Clone, Default)]
pub struct MeshState {
    /// Counts up with every publication.
    pub version: u64,
    /// The name of the node this agent runs on.
    pub node: Arc<str>,
    /// Where the kubelet of this node listens, by its Node object.
    pub kubelet_port: Option<u16>,
    /// Pods that hold an IP, and pods of the host network.
    pub(super) workloads: CowMap<Name, Arc<Workload>>,
    pub(super) workloads_by_ip: CowMap<IpAddr, Arc<Workload>>,
    /// Those of `workloads` that are on this node.
    pub(super) local: Arc<BTreeMap<Name, Arc<Workload>>>,
    /// All Services, also those without cluster IP.
    pub(super) services: CowMap<Name, Arc<Service>>,
    pub(super) services_by_ip: CowMap<IpAddr, Arc<Service>>,
    /// All addresses that lead to Services and pods besides their own.
    pub(super) frontends: Frontends,
    /// Every route, as it was read.
    pub(super) routes: CowMap<RouteId, Arc<RouteSpec>>,
    /// By Service: the routes that hold at its ports.
    pub(super) attached: CowMap<Name, Arc<ServiceRoutes>>,
    /// Every ReferenceGrant, as it was read. Nothing depends on them: see [`MeshState::backend`].
    pub(super) grants: CowMap<Name, Arc<ReferenceGrant>>,
    /// Every policy object, as it was read.
    pub(super) policies: Arc<PolicySet>,
    /// By uid: enrolled pods of all nodes whose modes are not the default.
    pub(super) peer_modes: CowMap<Arc<str>, Arc<PeerModes>>,
    /// By uid: pods of this node.
    pub(super) local_policies: CowMap<Arc<str>, Arc<WorkloadPolicy>>,
    /// By target: the TrafficPolicy that counts there.
    pub(super) traffic_policies: CowMap<Attached, Arc<TrafficPolicy>>,
    /// Every ExternalAuthorizer, as it was read.
    pub(super) authorizers: CowMap<Name, Arc<Authorizer>>,
    pub(super) stamps: Stamps,
}

/// Tells whether a part of the state is the same in two snapshots: then the stamps are equal. Those of two engines never
/// are.
#[derive(Clone, Debug, Default)]
pub struct Stamp(Arc<()>);

impl PartialEq for Stamp {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// Who looks at one part of the state alone sees by these whether it changed.
#[derive(Clone, Debug, Default)]
pub(super) struct Stamps {
    pub(super) local_workloads: Stamp,
    pub(super) local_policies: Stamp,
    pub(super) unserved: Stamp,
    pub(super) traffic: Stamp,
}

impl MeshState {
    /// The pod that holds `ip` now. hostNetwork pods are not found by their node's IP.
    pub fn workload_by_ip(&self, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.workloads_by_ip.get(&ip)
    }

    /// The Service whose cluster IP this is.
    pub fn service_by_ip(&self, ip: IpAddr) -> Option<&Arc<Service>> {
        self.services_by_ip.get(&ip)
    }

    /// A Service by its name.
    pub fn service(&self, namespace: &Arc<str>, name: &Arc<str>) -> Option<&Arc<Service>> {
        self.services.get(&Name::new(namespace, name))
    }

    /// Every pod of the cluster that holds an IP, enrolled or not, in no order.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    /// Every Service of the cluster, by namespace and name.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        let mut services: Vec<_> = self.services.iter().collect();
        services.sort_unstable_by_key(|(name, _)| *name);
        services.into_iter().map(|(_, service)| service)
    }

    /// Every policy object of the cluster, for people to read.
    pub fn policies(&self) -> &PolicySet {
        &self.policies
    }

    /// The pods of this node, each once, enrolled or not, by namespace and name. A list of their own: the pods of other
    /// nodes are not looked at.
    pub fn local_workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.local.values()
    }

    /// Equal in two snapshots: so is [`MeshState::local_workloads`].
    pub fn local_workloads_stamp(&self) -> &Stamp {
        &self.stamps.local_workloads
    }

    /// Equal in two snapshots: so is every [`MeshState::inbound_policy`].
    pub fn local_policies_stamp(&self) -> &Stamp {
        &self.stamps.local_policies
    }

    /// Equal in two snapshots: so is the set of [`MeshState::vips_without_endpoint`].
    pub fn unserved_stamp(&self) -> &Stamp {
        &self.stamps.unserved
    }

    /// The compiled policy of a pod of this node, by uid. None: the pod is unknown, refuse.
    pub fn inbound_policy(&self, uid: &str) -> Option<&Arc<WorkloadPolicy>> {
        self.local_policies.get(uid)
    }

    /// Who a CUSTOM policy wants to be asked. None: nobody is there, refuse.
    pub fn authorizer(&self, provider: &Provider) -> Option<&Arc<Authorizer>> {
        provider.places.iter().find_map(|(namespace, name)| self.authorizers.get(&Name::new(namespace, name)))
    }

    /// Every ExternalAuthorizer of the cluster, for people to read.
    pub fn authorizers(&self) -> Vec<&Arc<Authorizer>> {
        let mut all: Vec<_> = self.authorizers.values().collect();
        all.sort_unstable_by(|one, other| one.id.cmp(&other.id));
        all
    }

    /// Where the keys are that the policies of this node's pods ask for.
    pub fn keys_wanted(&self) -> BTreeSet<KeysUri> {
        self.local_policies.values().flat_map(|policy| policy.keys_wanted()).cloned().collect()
    }

    /// The PeerAuthentication mode of a port of a pod on any node.
    pub fn peer_mode(&self, workload: &Workload, port: u16) -> Mode {
        self.peer_modes.get(&workload.uid).map_or(Mode::Permissive, |modes| modes.at(port).0)
    }

    /// Whether callers in the mesh reach a port of this pod by tunnel.
    pub fn tunnels_to(&self, workload: &Workload, port: u16) -> bool {
        workload.enrolled && self.peer_mode(workload, port) != Mode::Disable
    }

    /// Whether callers of its own node owe this pod TLS too.
    pub fn is_encrypted_on_its_node(&self, workload: &Workload) -> bool {
        self.peer_modes.get(&workload.uid).is_some_and(|modes| modes.encrypted_by().is_some())
    }
}

/// Publishes snapshots. There is one.
pub struct StateWriter {
    shared: Arc<ArcSwap<MeshState>>,
    changed: watch::Sender<u64>,
}

/// Reads snapshots. Cheap to clone.
#[derive(Clone)]
pub struct StateReader {
    shared: Arc<ArcSwap<MeshState>>,
    changed: watch::Receiver<u64>,
}

impl StateWriter {
    /// A writer with an empty world, and its first reader.
    pub fn new(node: &str) -> (Self, StateReader) {
        let shared = Arc::new(ArcSwap::from_pointee(MeshState { node: node.into(), ..MeshState::default() }));
        let changed = watch::Sender::new(0);
        let reader = StateReader { shared: shared.clone(), changed: changed.subscribe() };
        (Self { shared, changed }, reader)
    }

    /// Makes a snapshot current and wakes whoever waits for a change.
    pub fn publish(&self, state: MeshState) {
        let version = state.version;
        self.shared.store(Arc::new(state));
        self.changed.send_replace(version);
    }
}

impl StateReader {
    /// The current snapshot; one reference count, no lock.
    pub fn current(&self) -> Arc<MeshState> {
        self.shared.load_full()
    }

    /// Waits for a publication that this reader has not seen. False when the writer is gone.
    pub async fn changed(&mut self) -> bool {
        self.changed.changed().await.is_ok()
    }
}
