//! The snapshot and its one writer.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::{Service, Workload};
use crate::policy::WorkloadPolicy;

/// Everything that a decision may read, frozen.
#[derive(Default)]
pub struct MeshState {
    /// Counts up with every publication.
    pub version: u64,
    /// The name of the node this agent runs on.
    pub node: Arc<str>,
    workloads_by_ip: HashMap<IpAddr, Arc<Workload>>,
    services_by_ip: HashMap<IpAddr, Arc<Service>>,
    local_policies: HashMap<Arc<str>, Arc<WorkloadPolicy>>,
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

    /// The pods of this node, enrolled or not.
    pub fn local_workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads_by_ip.values().filter(|w| w.node == self.node)
    }

    /// The compiled policy of a pod of this node, by uid. None: the pod is unknown, refuse.
    pub fn inbound_policy(&self, uid: &str) -> Option<&Arc<WorkloadPolicy>> {
        self.local_policies.get(uid)
    }

    /// Cluster IP and port of every Service port that has no endpoint: connect() answers ECONNREFUSED there.
    pub fn vips_without_endpoint(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.services_by_ip.iter().flat_map(|(ip, service)| {
            service.ports.iter().filter(|p| p.endpoints.is_empty()).map(move |p| SocketAddr::new(*ip, p.port))
        })
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
