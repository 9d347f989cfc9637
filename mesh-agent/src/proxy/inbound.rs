//! The journey of a connection that arrives by tunnel: CONNECT → authorise → dial the application → carry.
//!
//! One TCP connection to :15008 carries many of them; all stay on the worker that accepted it. What comes from a pod of
//! the same node without a tunnel is taken in the same way ([`take_in`]).

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use tokio::net::TcpStream;

use super::budget::{Kind, Taken};
use super::connection::{Judged, Layer, Live, Registration};
use super::error::Failure;
use super::judged::{self, Ends};
use super::worker::{Pod, Shared, Worker};
use super::{Boxed, copy, dial, make_then_carry, record};
use crate::addr::{ClientAddr, ServerAddr};
use crate::hbone::{self, Incoming, Stream};
use crate::http::Io;
use crate::podnet::Role;
use crate::policy::{Admission, Facts, Permit};
use crate::spiffe::SpiffeId;
use crate::telemetry::{ConnectionRecord, Transport};

/// Serves one TCP connection accepted on the pod's tunnel listener.
pub async fn serve_tunnel(worker: Rc<Worker>, pod: Arc<Pod>, _taken: Taken, tcp: TcpStream) {
    let Some((client, reached)) = worker.ends(&pod, Role::Tunnel, &tcp) else { return };
    if worker.pods.witnesses.hear(&tcp).await {
        return;
    }
    let stranger = match pod.budget.take(Kind::Handshake, Some(client.ip())) {
        Ok(stranger) => stranger,
        Err(over) => {
            worker.report_failed(record::tunnel(&pod, client), &over.into());
            return copy::reset(tcp);
        }
    };
    let svid = match worker.svid(&pod.workload.identity).await {
        Ok(svid) => svid,
        Err(failure) => return worker.report_failed(record::tunnel(&pod, client), &failure),
    };
    let on_connect = {
        let (worker, pod) = (worker.clone(), pod.clone());
        move |incoming: Incoming| serve_connect(worker.clone(), pod.clone(), reached, client, incoming)
    };
    let limits = &worker.shared.limits;
    let serve = async {
        let tunnel = hbone::accept(tcp, &svid, limits).await?;
        drop((stranger, svid));
        let Shared { leaving, drain, .. } = &*worker.shared;
        tunnel.serve(limits, leaving.clone(), drain.clone(), on_connect).await
    };
    let served = tokio::select! {
        biased;
        // Cut first, or its connections would be told as those of a tunnel that was lost.
        () = pod.left() => return worker.live.cut_pod(pod.uid()),
        served = serve => served,
    };
    if let Err(error) = served {
        worker.report_tunnel_error(record::tunnel(&pod, client), &error);
    }
}

/// Serves one CONNECT. `reached` is the pod address that the tunnel's TCP connection was made to.
pub fn serve_connect(
    worker: Rc<Worker>,
    pod: Arc<Pod>,
    reached: ServerAddr,
    tunnel: ClientAddr,
    incoming: Incoming,
) -> impl Future<Output = ()> {
    make_then_carry(Box::pin(make(worker, pod, reached, tunnel, incoming)))
}

/// Answers the CONNECT; none if it was refused.
async fn make(
    worker: Rc<Worker>,
    pod: Arc<Pod>,
    reached: ServerAddr,
    tunnel: ClientAddr,
    mut incoming: Incoming,
) -> Option<Boxed<()>> {
    let server = ServerAddr::new(incoming.authority);
    let client = real_client(tunnel, incoming.forwarded);
    let trace_id = incoming.traceparent.map(|trace| trace.trace_id().into());
    let coming = Coming {
        record: record::inbound(&pod, client, Some(&incoming.peer), server, trace_id),
        peer: incoming.peer.clone(),
        ip: tunnel.ip(),
        client,
        server,
        reached,
    };
    let arrived = match take_in(&worker, &pod, coming, incoming.abandoned()).await {
        Ok(arrived) => arrived,
        Err(failure) => {
            incoming.refuse(failure.status());
            return None;
        }
    };
    let Ok(stream) = incoming.accept(&pod.baggage) else {
        copy::reset(arrived.app.tcp);
        worker.finish_failed(arrived.live, &Failure::Abandoned);
        return None;
    };
    worker.opened(&arrived.live);
    Some(carry(worker, pod, stream, arrived))
}

fn carry(worker: Rc<Worker>, pod: Arc<Pod>, stream: Stream, arrived: Arrived) -> Boxed<()> {
    let ends = arrived.is_judged().then(|| arrived.ends(&worker));
    let Arrived { live, app, .. } = arrived;
    live.goes_by(&stream);
    if let Some(ends) = ends {
        let meter = Rc::new(judged::OfTunnel(live.live()));
        live.weigh_from_now(stream.waiting());
        return Box::pin(judged::serve(worker, pod, Io::tunnel(stream, meter), live, ends, app));
    }
    Box::pin(async move {
        let cancelled = async { drop(live.cancel.cancelled().await) };
        let end = copy::tunnel(app.tcp, stream, &live.counters, cancelled).await;
        drop(app.record);
        worker.finish(live, end);
    })
}

/// A connection that comes for an application of a pod, from a caller whose identity is proven.
pub struct Coming {
    /// What is known of it so far; how it comes is in there.
    pub record: ConnectionRecord,
    /// Who calls.
    pub peer: SpiffeId,
    /// The address that the caller was seen to come from.
    pub ip: IpAddr,
    /// Who the application is told is calling.
    pub client: ClientAddr,
    /// The application that is asked for.
    pub server: ServerAddr,
    /// The address of the pod that was reached.
    pub reached: ServerAddr,
}

/// A connection that was taken in: its application is there.
pub struct Arrived {
    /// The application's pod.
    pub pod: Arc<Pod>,
    /// Its place among the pod's connections.
    pub live: Registration,
    /// The application.
    pub app: dial::AppConnection,
    /// What policy was asked.
    pub facts: Facts,
    /// Who the application is told is calling.
    pub client: ClientAddr,
    /// Where the application is.
    pub server: ServerAddr,
    /// What may become of it.
    pub admission: Admission,
}

impl Arrived {
    /// Whether each of its requests is judged.
    pub fn is_judged(&self) -> bool {
        matches!(self.admission, Admission::Requests(_))
    }

    /// For who judges its requests.
    pub fn ends(&self, worker: &Worker) -> Ends {
        let Self { facts, client, server, .. } = self;
        let claims = judged::claims_of(&worker.shared.state.current(), facts.source.as_ref(), facts.source_ip);
        Ends { facts: facts.clone(), client: *client, server: *server, claims }
    }
}

/// Takes in a connection for an application of `pod`: room for it, policy, the application. What refuses it is counted
/// and told here.
pub async fn take_in(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    coming: Coming,
    abandoned: impl Future<Output = ()>,
) -> Result<Arrived, Failure> {
    let Coming { record, peer, ip, client, server, reached } = coming;
    let is_same_node = record.transport == Transport::SameNode;
    let taken = match pod.budget.admit(Kind::Connection, Some(ip)) {
        Ok(taken) => taken,
        Err(over) => {
            let failure = Failure::OverBudget(over);
            worker.report_failed(record, &failure);
            return Err(failure);
        }
    };
    let live = worker.register(pod, taken, record);
    let mut judged = judged(pod, Some(peer), ip, server);
    judged.facts.is_same_node = is_same_node;
    let facts = judged.facts.clone();
    let admission = match check_authority(reached, server).and_then(|()| admit(worker, &live, judged)) {
        Ok(admission) => admission,
        Err(failure) => {
            worker.finish_failed(live, &failure);
            return Err(failure);
        }
    };
    let connection = live.live();
    let held = Untold { worker, live: Some(live) };
    let reached = tokio::select! {
        biased;
        () = abandoned => Err(Failure::Abandoned),
        reached = reach_admitted(pod, &admission, &connection, client, server) => reached,
    };
    let live = held.take().ok_or(Failure::Abandoned)?;
    match reached {
        Ok(app) => Ok(Arrived { pod: pod.clone(), live, app, facts, client, server, admission }),
        Err(failure) => {
            worker.finish_failed(live, &failure);
            Err(failure)
        }
    }
}

/// A connection that nobody has told of yet. It is, as one that was given up, if whoever waits for it does so no more.
struct Untold<'a> {
    worker: &'a Worker,
    live: Option<Registration>,
}

impl Untold<'_> {
    fn take(mut self) -> Option<Registration> {
        self.live.take()
    }
}

impl Drop for Untold<'_> {
    fn drop(&mut self) {
        if let Some(live) = self.live.take() {
            self.worker.finish_failed(live, &Failure::Abandoned);
        }
    }
}

/// What policy is asked about a connection to an application of `pod`.
pub fn judged(pod: &Pod, source: Option<SpiffeId>, source_ip: IpAddr, server: ServerAddr) -> Judged {
    let (destination_ip, destination_port) = (server.ip(), server.port());
    let facts = Facts { source, is_same_node: false, source_ip, destination_ip, destination_port };
    Judged { destination_uid: pod.uid().clone(), facts, layer: Layer::Bytes }
}

/// Asks policy, on the snapshot that is current now, what may become of a connection whose requests can be read. This is
/// where a connection's denial is decided; that of a request is in `judged`.
pub fn admit(worker: &Worker, live: &Registration, judged: Judged) -> Result<Admission, Failure> {
    live.admit(&worker.shared.state.current(), judged).map_err(Failure::Denied)
}

/// A tunnel to a pod reaches that pod's address only: not another pod's, not loopback, not the tunnel port again.
fn check_authority(reached: ServerAddr, server: ServerAddr) -> Result<(), Failure> {
    if server.ip() != reached.ip() || server.port() == hbone::PORT {
        return Err(Failure::NotThisPod(server.socket()));
    }
    Ok(())
}

/// The port that the application sees comes from `forwarded` only if its IP is the TCP peer's.
fn real_client(tunnel: ClientAddr, forwarded: Option<SocketAddr>) -> ClientAddr {
    match forwarded.map(ClientAddr::new) {
        Some(client) if client.ip() == tunnel.ip() => client,
        _ => tunnel,
    }
}

/// Dials the application with what policy said of the connection. Where requests are judged nothing is said to the
/// application before one of them may pass; that it cannot be reached is better known before.
pub async fn reach_admitted(
    pod: &Pod,
    admission: &Admission,
    live: &Live,
    client: ClientAddr,
    server: ServerAddr,
) -> Result<dial::AppConnection, Failure> {
    let (Admission::Bytes(permit) | Admission::Requests(permit)) = admission;
    reach_application(pod, permit, live, client, server).await
}

/// Dials the application, unless the connection is cut meanwhile.
pub async fn reach_application(
    pod: &Pod,
    permit: &Permit,
    live: &Live,
    client: ClientAddr,
    server: ServerAddr,
) -> Result<dial::AppConnection, Failure> {
    tokio::select! {
        biased;
        cut = live.cancel.cancelled() => Err(Failure::Cut(cut)),
        dialled = dial::application(pod, permit, client, server) => {
            dialled.map_err(|error| Failure::dial(server.socket(), error))
        }
    }
}
