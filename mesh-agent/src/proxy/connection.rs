//! The table of live connections of one worker, and the late revocation of those that policy no longer allows.
//!
//! A worker is one thread: deciding, registering and re-judging never overlap there, so a connection that was allowed
//! by an old snapshot is in the table before the re-judgement of the new one can run. Judging a long table again goes in
//! pieces; what is decided between two of them is decided by the newest snapshot, and so is the next piece.

use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use slab::Slab;
use tokio::sync::Notify;

use super::budget::{Held, Over, Taken};
use super::copy::Counters;
use super::limits::TABLE_CHUNK;
use super::record;
use crate::hbone::{Line, Stream, Waiting};
use crate::http::Untaken;
use crate::path;
use crate::policy::{self, Admission, Denial, Facts, Permit, WorkloadPolicy};
use crate::state::{MeshState, StateReader};
use crate::telemetry::{ConnectionRecord, Direction, Metrics, Network, OpenConnection, Transport};
use crate::tokens::Token;

/// Why a live connection was cut.
#[derive(Clone, Debug, PartialEq)]
pub enum Cut {
    /// Policy changed and no longer allows it.
    Revoked(Denial),
    /// Its pod left the mesh or ended.
    PodLeft,
    /// It outlived the drain window.
    DrainWindow,
    /// More waits in the agent for its pod than may, and it made more wait.
    Buffer,
}

impl Cut {
    /// The stable label for metrics and logs.
    pub fn reason(&self) -> &'static str {
        match self {
            Cut::Revoked(_) => "policy-revoked",
            Cut::PodLeft => "pod-left",
            Cut::DrainWindow => "drain-window",
            Cut::Buffer => Over::Buffer.label(),
        }
    }
}

/// Tells a connection's own task to end it.
#[derive(Default)]
pub struct Cancel {
    cut: RefCell<Option<Cut>>,
    notify: Notify,
}

impl Cancel {
    /// Ends the connection; its own task sees to it.
    pub fn cut(&self, cut: Cut) {
        // The first reason stands.
        self.cut.borrow_mut().get_or_insert(cut);
        // Both of its ends may wait for this.
        self.notify.notify_waiters();
    }

    /// Why it was cut, if it was.
    pub fn reason(&self) -> Option<Cut> {
        self.cut.borrow().clone()
    }

    /// Returns when the connection is to be cut.
    pub async fn cancelled(&self) -> Cut {
        loop {
            if let Some(cut) = self.cut.borrow().clone() {
                return cut;
            }
            self.notify.notified().await;
        }
    }
}

/// What decided about a connection to a pod of this node, kept to decide again.
#[derive(Clone, Debug)]
pub struct Judged {
    /// The pod that is reached, by uid.
    pub destination_uid: Arc<str>,
    /// What policy was asked.
    pub facts: Facts,
    /// As what the connection goes on.
    pub layer: Layer,
}

/// What a connection carries, as far as policy is concerned.
#[derive(Clone, Debug)]
pub enum Layer {
    /// Bytes that nobody reads.
    Bytes,
    /// Requests, each of which is judged by itself.
    Requests,
    /// Bytes again, since both ends agreed on it after this request.
    Upgraded(Box<Standing>),
}

/// A request that stands for all that follows it.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Its head, with the path that was judged.
    pub head: http::request::Parts,
    /// What its token said.
    pub token: Option<Arc<Token>>,
    /// The CUSTOM policies whose authorizer let it pass. It is not asked again.
    pub answered: Vec<Arc<str>>,
}

impl Standing {
    fn authorize(&self, policy: &WorkloadPolicy, facts: &Facts) -> Result<Permit, Denial> {
        let Self { head, token, answered } = self;
        let host = policy::normal_host(crate::http::host(&head.headers));
        let (Some(host), Ok(path)) = (host, path::normalise(head.uri.path())) else {
            // It was judged, so it can be judged; whatever else it is, it is not allowed.
            return Err(Denial::of(policy::DenyReason::UnknownWorkload, None));
        };
        let request = policy::Request {
            method: &head.method,
            host: &host,
            path: &path,
            headers: &head.headers,
            token: token.as_deref(),
        };
        policy::authorize_request(policy, facts, &request, answered)
    }
}

/// One live connection.
pub struct Live {
    /// The pod whose listener it came in by, by uid.
    pub pod_uid: Arc<str>,
    /// Present while it leads, or is about to lead, to an application of this node. Set by [`Live::judge`].
    judged: RefCell<Option<Judged>>,
    /// What is known of it so far; completed when it closes.
    pub record: RefCell<ConnectionRecord>,
    /// Bytes carried, updated while it runs.
    pub counters: Counters,
    /// When it was accepted.
    pub started: Instant,
    /// How it is told to end.
    pub cancel: Cancel,
    /// Present while it counts as open in the metrics.
    open: RefCell<Option<OpenConnection>>,
    /// What waits for whoever reads its requests or answers, and counts in the pod's budget.
    waits: RefCell<Waits>,
    /// What its tunnel runs on, where it has one.
    line: RefCell<Option<Line>>,
}

impl Live {
    /// Asks policy whether this connection may reach an application of this node. From now on it is asked again
    /// whenever the world changes.
    pub fn judge(&self, state: &MeshState, judged: Judged) -> Result<Permit, Denial> {
        let decision = authorize(state, &judged);
        let mut record = self.record.borrow_mut();
        record.rule = match &decision {
            Ok(permit) => permit.rule().cloned(),
            Err(denial) => denial.rule.clone(),
        };
        record.audited = match state.inbound_policy(&judged.destination_uid) {
            Some(policy) => policy::audited(policy, &judged.facts),
            None => Vec::new(),
        };
        self.judged.replace(Some(judged));
        decision
    }

    /// Asks policy what may become of a connection to an application of this node whose requests this agent can read.
    /// From now on it is asked again whenever the world changes.
    pub fn admit(&self, state: &MeshState, judged: Judged) -> Result<Admission, Denial> {
        let admitted = match state.inbound_policy(&judged.destination_uid) {
            Some(policy) => policy::admit(policy, &judged.facts),
            None => Err(Denial::of(policy::DenyReason::UnknownWorkload, None)),
        };
        match admitted {
            Ok(Admission::Requests(permit)) => {
                self.judged.replace(Some(Judged { layer: Layer::Requests, ..judged }));
                Ok(Admission::Requests(permit))
            }
            // What is said without a look at requests is said once more, for the record.
            Ok(Admission::Bytes(_)) => self.judge(state, judged).map(Admission::Bytes),
            Err(_) => self.judge(state, judged).and(admitted),
        }
    }

    /// The connection has become bytes by this request. It was judged a while ago, and what changed meanwhile was asked about
    /// a connection of requests: policy is asked again.
    pub fn upgraded(&self, standing: Standing, state: &MeshState) {
        if let Some(judged) = &mut *self.judged.borrow_mut() {
            judged.layer = Layer::Upgraded(Box::new(standing));
        }
        self.rejudge(state);
    }

    /// The connection leads elsewhere after all: what this node decided about it no longer matters.
    pub fn forget_judgement(&self) {
        self.judged.take();
    }

    fn rejudge(&self, state: &MeshState) {
        let Some(Err(denial)) = self.judged.borrow().as_ref().map(|judged| authorize(state, judged)) else { return };
        self.record.borrow_mut().rule = denial.rule.clone();
        self.cancel.cut(Cut::Revoked(denial));
    }

    /// Counts what waits in a tunnel whose bytes are read as requests: with nobody to pump them, they wait where they came.
    pub fn weigh_from_now(&self, waiting: Waiting) {
        self.waits.borrow_mut().tunnel = Some(waiting);
    }

    /// Counts what waits on a connection of HTTP/2 for who reads its bodies as well, and all of it now.
    pub fn weigh_untaken(&self, untaken: &Rc<Untaken>) {
        self.waits.borrow_mut().add(untaken);
        self.weigh();
    }

    /// Tells the pod's budget what waits now; over it, a connection that makes more wait is cut.
    pub fn weigh(&self) {
        if self.waits.borrow_mut().weigh().is_err() {
            self.cancel.cut(Cut::Buffer);
        }
    }

    /// It is in this stream's tunnel: at its end the tunnel's socket tells how the network was.
    pub fn goes_by(&self, stream: &Stream) {
        self.line.replace(stream.line());
    }

    /// How the network was, asked once, at the end. None where the pods are of one node, where requests share an application's
    /// connection, and where a tunnel was lost.
    pub fn network(&self) -> Option<Network> {
        let of_tunnel = self.line.take().and_then(|line| line.info()).map(record::network);
        of_tunnel.or_else(|| self.counters.network())
    }

    /// Counts it as open: it carries bytes from now on.
    pub fn count_open(&self, metrics: &Metrics) {
        self.open.replace(Some(metrics.opened_as(&self.record.borrow())));
    }

    /// Brings the byte counters of the metrics up to date.
    pub fn count_bytes(&self) {
        if let Some(open) = &*self.open.borrow() {
            let (sent, received) = self.bytes();
            open.progress(sent, received);
        }
    }

    /// The application's bytes so far: from client to server, from server to client.
    pub fn bytes(&self) -> (u64, u64) {
        let (forward, backward) = (self.counters.forward(), self.counters.backward());
        let record = self.record.borrow();
        // The pump counts from the application to the tunnel, and behind an inbound tunnel the application is the
        // server.
        match (record.direction, record.transport) {
            (Direction::Inbound, Transport::Tunnel) => (backward, forward),
            _ => (forward, backward),
        }
    }

    /// What is known of it now.
    pub fn so_far(&self) -> ConnectionRecord {
        let (bytes_sent, bytes_received) = self.bytes();
        let record = self.record.borrow().clone();
        ConnectionRecord { bytes_sent, bytes_received, duration: self.started.elapsed(), ..record }
    }

    /// Takes its place among the open connections, to close it.
    pub fn take_open(&self) -> Option<OpenConnection> {
        self.open.take()
    }
}

/// What waits in the agent of one connection.
#[derive(Default)]
struct Waits {
    /// In its tunnel, whose bytes nobody pumps.
    tunnel: Option<Waiting>,
    /// By HTTP/2 on it, and on what was made for it.
    untaken: Vec<Weak<Untaken>>,
    held: Held,
}

impl Waits {
    fn add(&mut self, untaken: &Rc<Untaken>) {
        if !self.untaken.iter().any(|known| known.as_ptr() == Rc::as_ptr(untaken)) {
            self.untaken.retain(|known| known.strong_count() > 0);
            self.untaken.push(Rc::downgrade(untaken));
        }
    }

    fn weigh(&mut self) -> Result<(), Over> {
        let tunnel = self.tunnel.as_ref().map_or(0, Waiting::bytes);
        let untaken = self.untaken.iter().filter_map(Weak::upgrade).map(|untaken| untaken.bytes());
        self.held.set(untaken.fold(tunnel, usize::saturating_add))
    }
}

/// The live connections of one worker.
#[derive(Default)]
pub struct LiveTable {
    entries: RefCell<Slab<Rc<Live>>>,
    /// The number of entries, which other workers read to choose the least loaded.
    load: Arc<AtomicUsize>,
}

impl LiveTable {
    /// An empty table that shows its size in `load`.
    pub fn with_load(load: Arc<AtomicUsize>) -> Self {
        Self { load, ..Self::default() }
    }

    /// Puts a connection into the table until the returned guard is dropped.
    pub fn register(
        self: &Rc<Self>,
        pod_uid: Arc<str>,
        record: ConnectionRecord,
        counters: Counters,
        taken: Taken,
    ) -> Registration {
        let live = Rc::new(Live {
            pod_uid,
            judged: RefCell::default(),
            record: RefCell::new(record),
            counters,
            started: Instant::now(),
            cancel: Cancel::default(),
            open: RefCell::default(),
            waits: RefCell::new(Waits { held: taken.held(), ..Waits::default() }),
            line: RefCell::default(),
        });
        self.load.fetch_add(1, Ordering::Relaxed);
        let slot = self.entries.borrow_mut().insert(live.clone());
        Registration { table: self.clone(), slot, live, _taken: taken }
    }

    /// Decides again about every connection that this node authorised, and cuts those that are no longer allowed. A
    /// destination that the snapshot does not know is not allowed.
    pub async fn rejudge(&self, state: &StateReader) {
        self.visit_by(|| state.current(), |state, live| live.rejudge(state)).await;
    }

    /// Does something about every connection of now, piece by piece: the worker's others go ahead in between.
    pub async fn visit(&self, mut work: impl FnMut(&Live)) {
        self.visit_by(|| (), |(), live| work(live)).await;
    }

    /// As [`LiveTable::visit`], with something that is looked up anew for each piece.
    async fn visit_by<T>(&self, look_up: impl Fn() -> T, mut work: impl FnMut(&T, &Live)) {
        for piece in self.snapshot().chunks(TABLE_CHUNK) {
            let found = look_up();
            piece.iter().for_each(|live| work(&found, live));
            tokio::task::yield_now().await;
        }
    }

    /// Cuts every connection that came in by a pod's listeners.
    pub fn cut_pod(&self, uid: &str) {
        self.snapshot().iter().filter(|live| &*live.pod_uid == uid).for_each(|live| live.cancel.cut(Cut::PodLeft));
    }

    /// Cuts everything: the drain window is over.
    pub fn cut_all(&self) {
        self.snapshot().iter().for_each(|live| live.cancel.cut(Cut::DrainWindow));
    }

    /// All live connections now.
    pub fn snapshot(&self) -> Vec<Rc<Live>> {
        self.entries.borrow().iter().map(|(_, live)| live.clone()).collect()
    }
}

/// Decides about a connection to a pod of this node. A pod that the snapshot does not know is refused.
fn authorize(state: &MeshState, judged: &Judged) -> Result<Permit, Denial> {
    let Judged { facts, layer, .. } = judged;
    match state.inbound_policy(&judged.destination_uid) {
        Some(policy) => match layer {
            Layer::Bytes => policy::authorize(policy, facts),
            Layer::Requests => policy::admit(policy, facts).map(Admission::into_permit),
            Layer::Upgraded(standing) => standing.authorize(policy, facts),
        },
        None => Err(Denial::of(policy::DenyReason::UnknownWorkload, None)),
    }
}

/// Holds a connection's place in the table.
pub struct Registration {
    table: Rc<LiveTable>,
    slot: usize,
    live: Rc<Live>,
    _taken: Taken,
}

impl Registration {
    /// The connection, for who counts its bytes.
    pub fn live(&self) -> Rc<Live> {
        self.live.clone()
    }
}

impl std::ops::Deref for Registration {
    type Target = Live;

    fn deref(&self) -> &Live {
        &self.live
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // Not for longer than the stream; others may hold the rest for a moment.
        self.live.waits.take();
        self.table.load.fetch_sub(1, Ordering::Relaxed);
        self.table.entries.borrow_mut().try_remove(self.slot);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, SocketAddr};

    use super::super::budget::{Budgets, Kind, PodBudget};
    use super::super::limits::TABLE_CHUNK;
    use super::super::record;
    use super::super::straight::tests::{policy, world};
    use super::*;
    use crate::addr::ClientAddr;
    use crate::policy::{Action, Operation, Pattern};
    use crate::spiffe::SpiffeId;
    use crate::state::StateWriter;

    fn table(connections: usize) -> (Rc<LiveTable>, Vec<Registration>) {
        let budget = PodBudget::new(Budgets {
            connections,
            accept_rate: 1,
            accept_burst: 1,
            handshakes: 1,
            buffered_bytes: 1,
            descriptors: 1,
        });
        let table = Rc::new(LiveTable::default());
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        let register = |_| {
            let record = record::blank(Direction::Inbound, ClientAddr::new(address));
            let taken = budget.take(Kind::Connection, None).unwrap();
            table.register("pod".into(), record, Counters::default(), taken)
        };
        let registrations = (0..connections).map(register).collect();
        (table, registrations)
    }

    fn judged() -> Judged {
        let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let facts =
            Facts { source: None, is_same_node: false, source_ip: ip, destination_ip: ip, destination_port: 80 };
        Judged { destination_uid: "pod".into(), facts, layer: Layer::Bytes }
    }

    /// In pieces, so that the worker's other tasks run in between; and all of it.
    #[test]
    fn a_long_table_is_judged_in_pieces_and_nothing_is_missed() {
        let connections = 15_000;
        let (_writer, state) = StateWriter::new("node");
        let (table, registrations) = table(connections);
        registrations.iter().for_each(|live| drop(live.judged.replace(Some(judged()))));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let local = tokio::task::LocalSet::new();
        let (turns, longest) = local.block_on(&runtime, async {
            let judging = tokio::task::spawn_local(async move { table.rejudge(&state).await });
            let (mut turns, mut longest, mut last) = (0, std::time::Duration::ZERO, Instant::now());
            while !judging.is_finished() {
                tokio::task::yield_now().await;
                longest = longest.max(last.elapsed());
                (turns, last) = (turns + 1, Instant::now());
            }
            (turns, longest)
        });
        println!("the longest pause of another task: {longest:?}");
        assert!(turns >= connections / TABLE_CHUNK, "another task ran {turns} times");
        assert!(registrations.iter().all(|live| matches!(live.cancel.reason(), Some(Cut::Revoked(_)))));
    }

    /// By the time the application agrees, which may be long after the request was judged: (the policies of then, whether the
    /// connection goes on)
    #[test]
    fn an_upgrade_that_is_no_longer_allowed_is_cut() {
        let allows = |account, method| {
            let methods = vec![Pattern::parse(method).unwrap()];
            vec![policy(Action::Allow, account, &[], vec![Operation { methods, ..Operation::default() }])]
        };
        for (policies, goes_on) in [
            (vec![], true),
            (allows("client", "GET"), true),
            (allows("client", "POST"), false),
            (allows("other", "GET"), false),
        ] {
            let state = MeshState::build(1, "node", &world(vec![], policies.clone()));
            let (_table, connections) = table(1);
            let live = connections.first().unwrap();
            let facts = Facts { source: SpiffeId::new("cluster.local", "shop", "client").ok(), ..judged().facts };
            let of_requests = Judged { destination_uid: "near".into(), facts, layer: Layer::Requests };
            live.judged.replace(Some(of_requests));
            let (head, ()) = http::Request::get("/ws").header("host", "near").body(()).unwrap().into_parts();
            live.upgraded(Standing { head, token: None, answered: vec![] }, &state);
            assert_eq!(live.cancel.reason().is_none(), goes_on, "{policies:?}: {:?}", live.cancel.reason());
        }
    }
}
