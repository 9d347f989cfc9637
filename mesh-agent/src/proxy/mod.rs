//! The two journeys of a connection, each readable from top to bottom: [`outbound`] and [`inbound`] (with
//! [`plaintext`] for what arrives outside the tunnel, and [`same_node`] for what needs none).
//!
//! The proxy takes listeners that `capture` bound inside the pods, and knows nothing of eBPF, cgroups or YAML.

mod authorizer;
mod budget;
pub mod connection;
pub mod copy;
mod dial;
mod error;
mod inbound;
mod judged;
pub mod limits;
mod outbound;
mod plaintext;
mod record;
mod refused;
mod requests;
mod same_node;
mod server_name;
mod shares;
mod straight;
mod turns;
mod witness;
mod worker;

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{mpsc, oneshot};

pub use budget::Budgets;
pub use straight::{Neighbours, records as straight_records};
use worker::{Job, Pod, Pods, WorkerHandle};
pub use worker::{LiveConnection, Shared};

use crate::hbone::TunnelStatus;
use crate::named::named;
use crate::podnet::{EnrolledPod, PodEvent};
use crate::state::Workload;
use crate::telemetry::WorkloadUsage;

/// A step of a connection's life, in as much room as it needs and no more.
type Boxed<T> = Pin<Box<dyn Future<Output = T>>>;

/// Makes a connection, which may refuse it, and then carries it. Making takes many times the room that carrying does, and
/// gives it back: thousands are carried, most of them idle.
async fn make_then_carry(making: Boxed<Option<Boxed<()>>>) {
    if let Some(carried) = making.await {
        carried.await;
    }
}

/// The data plane of one agent. Cheap to clone.
#[derive(Clone)]
pub struct Proxy {
    shared: Arc<Shared>,
    workers: Arc<[WorkerHandle]>,
    pods: Arc<Mutex<HashMap<Arc<str>, Home>>>,
    /// The same pods, as the workers see them.
    held: Pods,
}

/// A pod and the worker that accepts for it.
struct Home {
    pod: Arc<Pod>,
    worker: usize,
}

impl Proxy {
    /// Starts the worker threads. `workers` is at least 1.
    pub fn start(shared: Shared, workers: usize) -> io::Result<Self> {
        let shared = Arc::new(shared);
        let held = Pods::default();
        let workers = worker::start(shared.clone(), &held, workers.max(1))?;
        Ok(Self { shared, workers, pods: Arc::default(), held })
    }

    /// Takes pods as capture enrols them, until the sender is dropped.
    pub async fn run(self, mut events: mpsc::Receiver<PodEvent>) {
        while let Some(event) = events.recv().await {
            match event {
                PodEvent::Enrolled(pod) => self.enrolled(pod),
                PodEvent::Left(uid) => self.left(&uid),
            }
        }
    }

    fn enrolled(&self, enrolled: EnrolledPod) {
        let EnrolledPod { workload, net, listeners } = enrolled;
        let Workload { uid, name, namespace, identity, .. } = &*workload;
        tracing::info!(%uid, pod = named(name), namespace = named(namespace), identity = named(identity), "enrolled");
        self.left(&workload.uid.clone());
        let pod = Arc::new(Pod::new(workload, net, self.shared.budgets.clone()));
        let worker = self.add(&pod);
        if let Some(worker) = self.workers.get(worker) {
            worker.send(Job::Listen(pod, listeners));
        }
    }

    /// Remembers the pod on the worker with the fewest pods, and asks for its certificate.
    fn add(&self, pod: &Arc<Pod>) -> usize {
        let mut pods = self.pods();
        let pods_of = |worker: &usize| pods.values().filter(|home| home.worker == *worker).count();
        let worker = (0..self.workers.len()).min_by_key(pods_of).unwrap_or(0);
        pods.insert(pod.uid().clone(), Home { pod: pod.clone(), worker });
        self.tell(&pods);
        worker
    }

    fn left(&self, uid: &str) {
        let mut pods = self.pods();
        let Some(home) = pods.remove(uid) else { return };
        self.tell(&pods);
        drop(pods);
        tracing::info!(uid, pod = named(home.pod.name()), "left the mesh");
        home.pod.leave();
        self.workers.iter().for_each(|worker| worker.send(Job::Leave(home.pod.uid().clone())));
    }

    fn tell(&self, pods: &HashMap<Arc<str>, Home>) {
        self.held.set(pods.iter().map(|(uid, home)| (uid.clone(), home.pod.clone())).collect());
        self.shared.identities.want(&pods.values().map(|home| home.pod.workload.identity.clone()).collect());
    }

    fn pods(&self) -> std::sync::MutexGuard<'_, HashMap<Arc<str>, Home>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The live connections of all workers.
    pub async fn connections(&self) -> Vec<LiveConnection> {
        self.ask(Job::Connections).await
    }

    /// The tunnels of all workers.
    pub async fn tunnels(&self) -> Vec<TunnelStatus> {
        self.ask(Job::Tunnels).await
    }

    async fn ask<T>(&self, question: impl Fn(oneshot::Sender<Vec<T>>) -> Job) -> Vec<T> {
        let mut all = Vec::new();
        for worker in self.workers.iter() {
            let (answer, answered) = oneshot::channel();
            worker.send(question(answer));
            all.append(&mut answered.await.unwrap_or_default());
        }
        all
    }

    /// Closes every listener: new connections are refused from now on.
    pub fn stop_listening(&self) {
        self.workers.iter().for_each(|worker| worker.send(Job::StopListening));
    }

    /// Cuts what outlived the drain window, with its reason in the log.
    pub fn cut_all(&self) {
        self.workers.iter().for_each(|worker| worker.send(Job::CutAll));
    }

    /// What each pod has taken of its budget.
    pub fn usage(&self) -> Vec<WorkloadUsage> {
        self.pods().values().map(|home| home.pod.usage()).collect()
    }

    /// The number of live connections of each worker.
    pub fn loads(&self) -> Vec<usize> {
        self.workers.iter().map(WorkerHandle::load).collect()
    }

    /// The number of live connections.
    pub fn live(&self) -> usize {
        self.loads().into_iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_four<A, B, C, D, F: Future>(_: fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    fn of_five<A, B, C, D, E, F: Future>(_: fn(A, B, C, D, E) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn the_task_of_a_connection_is_small() {
        let sizes = [
            ("outbound", of_four(outbound::serve)),
            ("by tunnel", of_five(inbound::serve_connect)),
            ("plaintext", of_four(plaintext::serve)),
        ];
        assert!(sizes.iter().all(|(_, bytes)| *bytes <= 128), "{sizes:?}");
    }
}
