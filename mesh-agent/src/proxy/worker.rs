//! The data-plane threads. A connection is accepted on its pod's home worker, is handed to another at most once (as a
//! file descriptor, when the home worker carries clearly more), and then never leaves its thread: tunnels, pools and
//! the table of live connections are the worker's own, without locks.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{io, thread};

use ::http::HeaderMap;
use arc_swap::ArcSwap;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, LocalSet};

use super::budget::{Budgets, Kind, Over, PodBudget, Taken};
use super::connection::{Cut, LiveTable, Registration};
use super::error::{Failure, serve_reason};
use super::limits::{ACCEPT_BACKOFF, COUNT_INTERVAL, MEMORY_INTERVAL, SPILL, SVID_TIMEOUT, WEIGH_INTERVAL};
use super::witness::{Ways, Witnesses};
use super::{copy, dial, inbound, outbound, plaintext, record};
use crate::addr::{ClientAddr, ServerAddr};
use crate::drain;
use crate::hbone::{self, Pool, TunnelStatus};
use crate::http;
use crate::identity::{Identities, Svid};
use crate::issuers::Ring;
use crate::named::named;
use crate::podnet::{DialRecord, PodListener, PodNet, Role};
use crate::routing::OutboundMode;
use crate::spiffe::SpiffeId;
use crate::state::{StateReader, Workload};
use crate::sys;
use crate::telemetry::{
    AccessLog, ConnectionRecord, ConnectionResult, Metrics, RequestMemo, RequestRecord, Span, Spans, TappedHeaders,
    WorkloadUsage,
};
use crate::tokens::Verified;

/// What every worker reads.
pub struct Shared {
    /// The world.
    pub state: StateReader,
    /// Certificates of the pods here.
    pub identities: Identities,
    /// Keys of issuers of tokens.
    pub keys: Ring,
    /// Counters.
    pub metrics: Metrics,
    /// A line per connection that ended.
    pub access_log: AccessLog,
    /// Takes what is told of requests whose trace is sampled.
    pub spans: Spans,
    /// What each pod may take.
    pub budgets: Budgets,
    /// What happens to unknown destinations.
    pub mode: OutboundMode,
    /// This agent is told to end: it serves whoever comes, and keeps nothing for later.
    pub leaving: drain::Token,
    /// Another agent takes whoever comes.
    pub drain: drain::Token,
    /// What tunnels may cost.
    pub limits: hbone::Limits,
    /// What became of the tunnels of all workers.
    pub tunnels: Arc<hbone::Tally>,
    /// What became of the connections that requests share, of all workers.
    pub requests: Arc<http::Tally>,
    /// What the workers count together of the Services that are asked.
    pub node_limits: http::NodeLimits,
}

/// A pod of this node, as its connections see it. Any worker may serve one.
pub struct Pod {
    /// Who it is.
    pub workload: Arc<Workload>,
    /// Its network namespace.
    pub net: Arc<dyn PodNet>,
    /// The `baggage` header that describes it, written once.
    pub baggage: String,
    /// What it may take and has taken.
    pub budget: Arc<PodBudget>,
    left: watch::Sender<bool>,
}

impl Pod {
    /// A pod that has just been enrolled.
    pub fn new(workload: Arc<Workload>, net: Arc<dyn PodNet>, budgets: Budgets) -> Self {
        let baggage = hbone::Baggage {
            namespace: workload.namespace.to_string(),
            workload_kind: "pod".to_string(),
            workload: workload.name.to_string(),
            service: workload.identity.service_account().to_string(),
            ..hbone::Baggage::default()
        };
        let (budget, left) = (PodBudget::new(budgets), watch::Sender::new(false));
        Self { workload, net, baggage: baggage.to_string(), budget, left }
    }

    /// metadata.uid
    pub fn uid(&self) -> &Arc<str> {
        &self.workload.uid
    }

    /// `namespace/name`, for logs.
    pub fn name(&self) -> String {
        format!("{}/{}", self.workload.namespace, self.workload.name)
    }

    /// What it has taken of its budget.
    pub fn usage(&self) -> WorkloadUsage {
        self.budget.usage(&self.workload.namespace, &self.workload.name)
    }

    /// Says that the pod left the mesh or ended.
    pub fn leave(&self) {
        self.left.send_replace(true);
    }

    /// Whether the pod left the mesh or ended.
    pub fn has_left(&self) -> bool {
        *self.left.borrow()
    }

    /// Returns when the pod has left.
    pub async fn left(&self) {
        // An error means that the sender is gone, which this pod itself holds.
        let _ = self.left.subscribe().wait_for(|left| *left).await;
    }
}

/// The pods that this agent holds, by uid, for all workers to look into without a lock. Clones are the same.
#[derive(Clone, Default)]
pub struct Pods {
    inner: Arc<ArcSwap<HashMap<Arc<str>, Arc<Pod>>>>,
    /// Connections between them that ask the network.
    pub witnesses: Witnesses,
}

impl Pods {
    /// These, and no others.
    pub fn set(&self, pods: HashMap<Arc<str>, Arc<Pod>>) {
        self.inner.store(Arc::new(pods));
    }

    fn get(&self, uid: &str) -> Option<Arc<Pod>> {
        self.inner.load().get(uid).cloned()
    }
}

/// What other threads may ask of a worker.
pub enum Job {
    /// Accept on these listeners from now on.
    Listen(Arc<Pod>, Vec<PodListener>),
    /// The pod left: close its listeners and tunnels, cut its connections.
    Leave(Arc<str>),
    /// A connection accepted by another worker.
    Serve(Arc<Pod>, Role, Taken, std::net::TcpStream),
    /// List the live connections.
    Connections(oneshot::Sender<Vec<LiveConnection>>),
    /// List the tunnels of the pool.
    Tunnels(oneshot::Sender<Vec<TunnelStatus>>),
    /// The drain began: accept nothing more.
    StopListening,
    /// The drain window is over.
    CutAll,
}

/// One live connection, for `/connections`.
#[derive(Clone, Debug)]
pub struct LiveConnection {
    /// The worker that serves it.
    pub worker: usize,
    /// Who, whereto, how; with the bytes carried and the time passed so far.
    pub record: ConnectionRecord,
}

/// The way to a worker from anywhere.
#[derive(Clone)]
pub struct WorkerHandle {
    jobs: mpsc::UnboundedSender<Job>,
    load: Arc<AtomicUsize>,
}

impl WorkerHandle {
    /// Hands over a job. A worker that is gone drops it, and with it the connection.
    pub fn send(&self, job: Job) {
        let _ = self.jobs.send(job);
    }

    /// The number of connections that it carries now.
    pub fn load(&self) -> usize {
        self.load.load(Ordering::Relaxed)
    }
}

/// One thread's state.
pub struct Worker {
    /// What all workers read.
    pub shared: Arc<Shared>,
    /// The tunnels to other nodes; this worker's own.
    pub pool: Pool,
    /// The connections to applications that requests share; this worker's own.
    pub upstreams: http::Upstreams,
    /// What is known of the Services that requests go to; this worker's own.
    pub services: http::Services,
    /// The tokens that were verified here.
    pub verified: Verified,
    /// The connections that are served here.
    pub live: Rc<LiveTable>,
    /// The pods that this agent holds.
    pub pods: Pods,
    /// What the network lets through between them.
    pub ways: Ways,
    /// It accepts nothing more.
    is_closed: Cell<bool>,
    index: usize,
    peers: Arc<[WorkerHandle]>,
    random: RefCell<fastrand::Rng>,
}

/// Starts `count` workers. They end with the process.
pub fn start(shared: Arc<Shared>, pods: &Pods, count: usize) -> io::Result<Arc<[WorkerHandle]>> {
    let (handles, inboxes): (Vec<_>, Vec<_>) = (0..count)
        .map(|_| {
            let (jobs, inbox) = mpsc::unbounded_channel();
            (WorkerHandle { jobs, load: Arc::default() }, inbox)
        })
        .unzip();
    let handles: Arc<[WorkerHandle]> = handles.into();
    for (index, inbox) in inboxes.into_iter().enumerate() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (shared, pods, peers) = (shared.clone(), pods.clone(), handles.clone());
        thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
            LocalSet::new().block_on(&runtime, Worker::new(shared, pods, index, peers).run(inbox));
        })?;
    }
    Ok(handles)
}

/// Nobody else can: what a thread has freed is the thread's until it gives it back.
async fn give_memory_back() {
    loop {
        tokio::time::sleep(MEMORY_INTERVAL).await;
        sys::give_old_memory_back();
    }
}

impl Worker {
    fn new(shared: Arc<Shared>, pods: Pods, index: usize, peers: Arc<[WorkerHandle]>) -> Self {
        let live = peers.get(index).map(|own| LiveTable::with_load(own.load.clone())).unwrap_or_default();
        let pool = Pool::counted(shared.limits.clone(), shared.tunnels.clone());
        let upstreams = http::Upstreams::new(shared.requests.clone());
        let services = http::Services::new(shared.node_limits.clone(), peers.len());
        Self {
            shared,
            pool,
            upstreams,
            services,
            verified: Verified::default(),
            live: Rc::new(live),
            pods,
            ways: Ways::default(),
            is_closed: Cell::new(false),
            index,
            peers,
            random: RefCell::new(fastrand::Rng::new()),
        }
    }

    async fn run(self, mut inbox: mpsc::UnboundedReceiver<Job>) {
        let worker = Rc::new(self);
        tokio::task::spawn_local(worker.clone().rejudge_on_change());
        tokio::task::spawn_local(worker.clone().count_bytes());
        tokio::task::spawn_local(worker.clone().weigh());
        tokio::task::spawn_local(give_memory_back());
        tokio::task::spawn_local(worker.upstreams.clone().sweep());
        tokio::task::spawn_local(worker.services.clone().sweep(worker.shared.state.clone()));
        tokio::task::spawn_local(worker.clone().keep_nothing_when_leaving());
        let mut acceptors: HashMap<Arc<str>, Vec<JoinHandle<()>>> = HashMap::new();
        while let Some(job) = inbox.recv().await {
            match job {
                // Enrolled when the drain had begun: its listeners close here, as those of all others did.
                Job::Listen(..) if worker.is_closed.get() => {}
                Job::Listen(pod, listeners) => {
                    let tasks = listeners.into_iter().filter_map(|listener| worker.clone().listen(&pod, listener));
                    acceptors.entry(pod.uid().clone()).or_default().extend(tasks);
                }
                Job::Leave(uid) => {
                    acceptors.remove(&uid).into_iter().flatten().for_each(|task| task.abort());
                    worker.pool.drop_source(&uid);
                    worker.upstreams.drop_source(&uid);
                    worker.ways.forget(&uid);
                    worker.live.cut_pod(&uid);
                }
                Job::Serve(pod, role, taken, tcp) => worker.clone().adopt(pod, role, taken, tcp),
                Job::Connections(answer) => drop(tokio::task::spawn_local(worker.clone().connections(answer))),
                Job::Tunnels(answer) => drop(answer.send(worker.pool.status())),
                Job::StopListening => {
                    worker.is_closed.set(true);
                    acceptors.drain().flat_map(|(_, tasks)| tasks).for_each(|task| task.abort());
                }
                Job::CutAll => worker.live.cut_all(),
            }
        }
    }

    /// Judges live connections again whenever the world changes.
    async fn rejudge_on_change(self: Rc<Self>) {
        let mut state = self.shared.state.clone();
        let mut judged = None;
        while state.changed().await {
            let stamp = state.current().local_policies_stamp().clone();
            // Most changes of the world are no change of what this node's pods accept.
            if judged.as_ref() != Some(&stamp) {
                self.live.rejudge(&state).await;
                judged = Some(stamp);
            }
        }
    }

    /// Lets the byte counters of long connections move while they live.
    async fn count_bytes(self: Rc<Self>) {
        loop {
            tokio::time::sleep(COUNT_INTERVAL).await;
            self.live.visit(|live| live.count_bytes()).await;
        }
    }

    /// Lets pods' budgets know what waits for readers of requests.
    async fn weigh(self: Rc<Self>) {
        loop {
            tokio::time::sleep(WEIGH_INTERVAL).await;
            self.live.visit(|live| live.weigh()).await;
        }
    }

    async fn keep_nothing_when_leaving(self: Rc<Self>) {
        self.shared.leaving.clone().started().await;
        self.upstreams.keep_nothing();
    }

    fn listen(self: Rc<Self>, pod: &Arc<Pod>, listener: PodListener) -> Option<JoinHandle<()>> {
        match tokio::net::TcpListener::from_std(listener.socket) {
            Ok(socket) => Some(tokio::task::spawn_local(self.accept(pod.clone(), listener.role, socket))),
            Err(error) => {
                let (uid, pod) = (pod.uid(), named(pod.name()));
                tracing::error!(%uid, pod, %error, "a listener cannot be polled; the pod is refused there");
                None
            }
        }
    }

    async fn accept(self: Rc<Self>, pod: Arc<Pod>, role: Role, listener: tokio::net::TcpListener) {
        loop {
            match listener.accept().await {
                Ok((tcp, client)) => {
                    let client = ClientAddr::new(client);
                    match admit(&pod, role, &tcp, client) {
                        Ok(taken) => self.clone().place(&pod, role, taken, tcp),
                        Err(over) => self.turn_away(&pod, role, client, tcp, over),
                    }
                }
                Err(error) => {
                    if dial::is_out_of_descriptors(&error) {
                        pod.budget.out_of_descriptors();
                    }
                    let (uid, pod) = (pod.uid(), named(pod.name()));
                    tracing::warn!(%uid, pod, %error, "accept failed; raise the limit of open files?");
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                }
            }
        }
    }

    /// Serves a new connection here, or on the least loaded worker if that one carries clearly less.
    fn place(self: Rc<Self>, pod: &Arc<Pod>, role: Role, taken: Taken, tcp: TcpStream) {
        let own = self.peers.get(self.index).map_or(0, WorkerHandle::load);
        let least = self.peers.iter().min_by_key(|peer| peer.load());
        match least {
            Some(least) if least.load() + SPILL <= own => match tcp.into_std() {
                Ok(tcp) => least.send(Job::Serve(pod.clone(), role, taken, tcp)),
                Err(error) => self.report_failed(record::nameless(pod, role), &Failure::Socket(error)),
            },
            _ => self.serve(pod.clone(), role, taken, tcp),
        }
    }

    /// Refuses a connection that is over budget, with a reset.
    fn turn_away(&self, pod: &Arc<Pod>, role: Role, client: ClientAddr, tcp: TcpStream, over: Over) {
        let mut record = record::unserved(pod, role, client);
        if role == Role::Outbound
            && let Ok(local) = tcp.local_addr()
            && let Ok(dial) = DialRecord::lookup(&pod.net, local)
        {
            // Dropped here, and the kernel's record with it.
            record.dialled = Some(dial.dialled().socket());
        }
        self.report_failed(record, &Failure::OverBudget(over));
        copy::reset(tcp);
    }

    fn adopt(self: Rc<Self>, pod: Arc<Pod>, role: Role, taken: Taken, tcp: std::net::TcpStream) {
        match TcpStream::from_std(tcp) {
            Ok(tcp) => self.serve(pod, role, taken, tcp),
            Err(error) => self.report_failed(record::nameless(&pod, role), &Failure::Socket(error)),
        }
    }

    fn serve(self: Rc<Self>, pod: Arc<Pod>, role: Role, taken: Taken, tcp: TcpStream) {
        // Small writes go out at once: the far end decides how to batch.
        let _ = tcp.set_nodelay(true);
        match role {
            Role::Outbound => drop(tokio::task::spawn_local(outbound::serve(self, pod, taken, tcp))),
            Role::Tunnel => drop(tokio::task::spawn_local(inbound::serve_tunnel(self, pod, taken, tcp))),
            Role::Plaintext => {
                dial::keep_alive(&tcp);
                drop(tokio::task::spawn_local(plaintext::serve(self, pod, taken, tcp)));
            }
        }
    }

    /// Both ends of an accepted socket. One whose client is gone already is counted here.
    pub fn ends(&self, pod: &Pod, role: Role, tcp: &TcpStream) -> Option<(ClientAddr, ServerAddr)> {
        match (tcp.peer_addr(), tcp.local_addr()) {
            (Ok(peer), Ok(local)) => Some((ClientAddr::new(peer), ServerAddr::new(local))),
            (Err(error), _) | (_, Err(error)) => {
                self.report_failed(record::nameless(pod, role), &Failure::Socket(error));
                None
            }
        }
    }

    /// A pod of this node whose connections come to this agent and to no other: one that it holds, while no newer agent
    /// takes over.
    pub fn pod(&self, uid: &str) -> Option<Arc<Pod>> {
        if self.is_closed.get() || self.shared.drain.has_started() {
            return None;
        }
        self.pods.get(uid).filter(|pod| !pod.has_left())
    }

    /// The pod's certificate; waits a bounded time for its first issue.
    pub async fn svid(&self, identity: &SpiffeId) -> Result<Arc<Svid>, Failure> {
        if let Some(svid) = self.shared.identities.svid(identity) {
            return Ok(svid);
        }
        let waited = tokio::time::timeout(SVID_TIMEOUT, self.shared.identities.ready(identity)).await;
        waited.map_err(|_| Failure::NoCertificate(identity.clone()))
    }

    /// Puts a connection into the table. What was accepted before its pod left, and comes here after the table was
    /// cleared of that pod, is cut at once.
    pub fn register(&self, pod: &Pod, taken: Taken, record: ConnectionRecord) -> Registration {
        let counters = copy::Counters::within(pod.budget.clone());
        let live = self.live.register(pod.uid().clone(), record, counters, taken);
        if pod.has_left() {
            live.cancel.cut(Cut::PodLeft);
        }
        live
    }

    /// A random number; seeds the choice of endpoints. Not for secrets.
    pub fn random(&self) -> u64 {
        self.random.borrow_mut().u64(..)
    }

    /// Counts a connection that now carries bytes.
    pub fn opened(&self, live: &Registration) {
        live.count_open(&self.shared.metrics);
    }

    /// Counts and logs the end of a connection that carried bytes.
    pub fn finish(&self, live: Registration, end: copy::End) {
        let result = match live.cancel.reason() {
            Some(cut) => ConnectionResult::Cut { reason: cut.reason() },
            None => record::result_of(&end),
        };
        self.close(live, result);
    }

    /// Counts and logs the end of a connection that never carried a byte.
    pub fn finish_failed(&self, live: Registration, failure: &Failure) {
        tracing::debug!(%failure, "connection refused");
        let result = record::result_of_failure(failure);
        self.close(live, result);
    }

    /// Counts and logs a connection that failed before its place in the table.
    pub fn report_failed(&self, mut record: ConnectionRecord, failure: &Failure) {
        tracing::debug!(%failure, "connection refused");
        record.result = record::result_of_failure(failure);
        self.shared.metrics.closed(&record);
        self.shared.access_log.write(&record);
    }

    /// Counts a tunnel that ended in an error: a handshake that failed, or a peer that broke the protocol.
    pub fn report_tunnel_error(&self, mut record: ConnectionRecord, error: &hbone::ServeError) {
        tracing::debug!(%error, client = %record.client, "tunnel refused or broken");
        record.result = ConnectionResult::Failed { reason: serve_reason(error) };
        self.shared.metrics.closed(&record);
        self.shared.access_log.write(&record);
    }

    /// Begins this agent's part of a request's trace, if that is sampled.
    pub fn begin_span(&self, headers: &mut HeaderMap) -> Option<Span> {
        self.shared.spans.begin(headers, || self.random())
    }

    /// What of a request's headers is told in the end, where somebody listens for that.
    pub fn tapped(&self, headers: &HeaderMap) -> Option<Arc<TappedHeaders>> {
        self.shared.access_log.flows().tapped(headers)
    }

    /// Counts and logs a request that is over.
    pub fn report_request(&self, record: &RequestRecord, memo: &RequestMemo) {
        self.shared.spans.end(record);
        self.shared.metrics.request(record, memo);
        self.shared.access_log.write_request(record);
    }

    fn close(&self, live: Registration, result: ConnectionResult) {
        let mut record = live.so_far();
        (record.result, record.network) = (result, live.network());
        match live.take_open() {
            Some(open) => open.closed(&record),
            None => self.shared.metrics.closed(&record),
        }
        drop(live);
        self.shared.access_log.write(&record);
    }

    async fn connections(self: Rc<Self>, answer: oneshot::Sender<Vec<LiveConnection>>) {
        let mut lines = Vec::new();
        self.live.visit(|live| lines.push(LiveConnection { worker: self.index, record: live.so_far() })).await;
        // Whoever asked may have gone meanwhile.
        let _ = answer.send(lines);
    }
}

/// Whether the pod, and the process, have room for one more.
fn admit(pod: &Pod, role: Role, tcp: &TcpStream, client: ClientAddr) -> Result<Taken, Over> {
    pod.budget.check_descriptor(tcp.as_raw_fd())?;
    match role {
        Role::Outbound => pod.budget.admit(Kind::Connection, None),
        Role::Plaintext => pod.budget.admit(Kind::Connection, Some(client.ip())),
        Role::Tunnel => pod.budget.admit(Kind::Tunnel, Some(client.ip())),
    }
}
