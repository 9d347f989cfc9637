//! The journey of a connection that arrives by tunnel: CONNECT → authorise → dial the application → carry.
//!
//! One TCP connection to :15008 carries many of them; all stay on the worker that accepted it.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use tokio::net::TcpStream;

use super::budget::{Kind, Taken};
use super::connection::{Judged, Layer, Live, Registration};
use super::error::Failure;
use super::judged::{self, Ends};
use super::worker::{Pod, Shared, Worker};
use super::{copy, dial, record};
use crate::addr::{ClientAddr, ServerAddr};
use crate::hbone::{self, Incoming};
use crate::http::Io;
use crate::podnet::Role;
use crate::policy::{Admission, Facts, Permit};
use crate::spiffe::SpiffeId;

/// Serves one TCP connection accepted on the pod's tunnel listener.
pub async fn serve_tunnel(worker: Rc<Worker>, pod: Arc<Pod>, _taken: Taken, tcp: TcpStream) {
    let Some((client, reached)) = worker.ends(&pod, Role::Tunnel, &tcp) else { return };
    let stranger = match pod.budget.take(Kind::Handshake) {
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
async fn serve_connect(
    worker: Rc<Worker>,
    pod: Arc<Pod>,
    reached: ServerAddr,
    tunnel: ClientAddr,
    mut incoming: Incoming,
) {
    let server = ServerAddr::new(incoming.authority);
    let client = real_client(tunnel, incoming.forwarded);
    let trace_id = incoming.traceparent.map(|trace| trace.trace_id().into());
    let record = record::inbound(&pod, client, Some(&incoming.peer), server, trace_id);
    let taken = match pod.budget.admit(Kind::Connection) {
        Ok(taken) => taken,
        Err(over) => {
            let failure = Failure::OverBudget(over);
            incoming.refuse(failure.status());
            return worker.report_failed(record, &failure);
        }
    };
    let live = worker.register(&pod, taken, record);
    let judged = judged(&pod, Some(incoming.peer.clone()), tunnel.ip(), server);
    let facts = judged.facts.clone();
    let admission = match check_authority(reached, server).and_then(|()| admit(&worker, &live, judged)) {
        Ok(admission) => admission,
        Err(failure) => {
            incoming.refuse(failure.status());
            return worker.finish_failed(live, &failure);
        }
    };
    let reached = tokio::select! {
        biased;
        () = incoming.abandoned() => Err(Failure::Abandoned),
        reached = reach_admitted(&pod, &admission, &live, client, server) => reached,
    };
    let app = match reached {
        Ok(app) => app,
        Err(failure) => {
            incoming.refuse(failure.status());
            return worker.finish_failed(live, &failure);
        }
    };
    let incoming_peer = incoming.peer.clone();
    let Ok(mut stream) = incoming.accept(&pod.baggage) else {
        copy::reset(app.tcp);
        return worker.finish_failed(live, &Failure::Abandoned);
    };
    worker.opened(&live);
    if let Admission::Requests(_) = admission {
        let meter = Rc::new(judged::OfTunnel(live.live()));
        live.weigh_from_now(stream.waiting(), pod.budget.clone());
        // In a box, as every connection of bytes would take the room of this one's state.
        let claims = judged::claims_of_peer(&worker.shared.state.current(), &incoming_peer, tunnel.ip());
        let ends = Ends { facts, client, server, claims };
        return Box::pin(judged::serve(worker, pod, Io::tunnel(stream, meter), live, ends, app)).await;
    }
    let cancelled = async { drop(live.cancel.cancelled().await) };
    let end = copy::tunnel(app.tcp, stream, &live.counters, cancelled).await;
    drop(app.record);
    worker.finish(live, end);
}

/// What policy is asked about a connection to an application of `pod`.
pub fn judged(pod: &Pod, source: Option<SpiffeId>, source_ip: std::net::IpAddr, server: ServerAddr) -> Judged {
    let facts = Facts { source, source_ip, destination_ip: server.ip(), destination_port: server.port() };
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
