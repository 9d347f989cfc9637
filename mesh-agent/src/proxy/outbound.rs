//! The journey of a connection that a pod's application dialled: identify → route → reach → carry.
//!
//! The application's connect() has already succeeded (the agent accepted it), so every refusal from here on is a reset
//! at its first read or write.

use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

use tokio::net::TcpStream;

use super::budget::Taken;
use super::connection::{Judged, Registration};
use super::copy;
use super::error::Failure;
use super::inbound::{self, Arrived};
use super::judged::{self, Ends};
use super::limits::TUNNEL_RETRY_PAUSE;
use super::record;
use super::worker::{Pod, Worker};
use super::{Boxed, dial, make_then_carry, requests, same_node, server_name};
use crate::addr::{ClientAddr, OrigDstAddr, ServerAddr};
use crate::hbone::{self, ConnectRequest, TraceParent, TunnelKey};
use crate::http::Io;
use crate::podnet::{DialRecord, Role};
use crate::policy::Admission;
use crate::routes::Connections;
use crate::routing::{self, Refusal, Route, Transport, Upstream};
use crate::spiffe::SpiffeId;
use crate::state::Service;
use crate::telemetry;

/// Everything that is decided before anything is dialled.
struct Decision {
    /// Removes the kernel's record when the connection ends: getpeername may ask for it as long as it lives.
    dial: DialRecord,
    client: ClientAddr,
    route: Route,
}

/// A connection that was made, ready to carry bytes.
pub enum Reached {
    /// To a pod of the mesh.
    Tunnel(hbone::Stream),
    /// To what is not of the mesh.
    Direct(TcpStream),
    /// To another pod of this node, within this agent.
    SameNode(Box<Arrived>),
    /// To the pod itself.
    Application(dial::AppConnection),
    /// To the pod itself, where each request is judged.
    Judged {
        /// The application.
        app: dial::AppConnection,
        /// Where it is.
        server: ServerAddr,
    },
}

/// Serves one connection accepted on the pod's outbound listener.
pub fn serve(worker: Rc<Worker>, pod: Arc<Pod>, taken: Taken, tcp: TcpStream) -> impl Future<Output = ()> {
    make_then_carry(Box::pin(make(worker, pod, taken, tcp)))
}

/// Makes a connection; none if it was refused, or is over.
async fn make(worker: Rc<Worker>, pod: Arc<Pod>, taken: Taken, tcp: TcpStream) -> Option<Boxed<()>> {
    let decision = match decide(&worker, &pod, &tcp) {
        Ok(decision) => decision,
        Err(failure) => {
            worker.report_failed(record::nameless(&pod, Role::Outbound), &failure);
            copy::reset(tcp);
            return None;
        }
    };
    let Decision { dial, client, route } = decision;
    let live = worker.register(&pod, taken, record::outbound(&pod, client, dial.dialled(), &route));
    let reached = match &route {
        Route::Refused(refusal) => Err(Failure::Refused(*refusal)),
        Route::PassThrough(address) => {
            let upstream = Upstream { address: *address, workload: None, transport: Transport::Plaintext };
            try_upstreams(&worker, &pod, &live, client, None, std::slice::from_ref(&upstream)).await
        }
        Route::Requests { service } => {
            let service = service.clone();
            return Some(Box::pin(async move {
                requests::serve(worker, pod, tcp, live, client, dial.dialled(), &service).await;
            }));
        }
        Route::ByServerName { routes, .. } => {
            match by_server_name(&worker, &pod, &tcp, &live, dial.dialled(), routes).await {
                Ok((service, upstreams)) => {
                    live.record.borrow_mut().service = Some(record::service_name(&service));
                    try_upstreams(&worker, &pod, &live, client, Some(&service), &upstreams).await
                }
                Err(failure) => Err(failure),
            }
        }
        Route::Upstreams { service, upstreams } => {
            try_upstreams(&worker, &pod, &live, client, service.as_ref(), upstreams).await
        }
    };
    match reached {
        Ok(reached) => Some(carry(worker, pod, tcp, live, client, dial, reached)),
        Err(failure) => {
            worker.finish_failed(live, &failure);
            copy::reset(tcp);
            None
        }
    }
}

fn decide(worker: &Worker, pod: &Pod, tcp: &TcpStream) -> Result<Decision, Failure> {
    let local = tcp.local_addr().map_err(Failure::Socket)?;
    let client = ClientAddr::new(tcp.peer_addr().map_err(Failure::Socket)?);
    let dial = DialRecord::lookup(&pod.net, local)?;
    let state = worker.shared.state.current();
    let route = routing::resolve(&state, &pod.workload, dial.dialled(), worker.shared.mode, worker.random());
    Ok(Decision { dial, client, route })
}

/// Where the server name leads that the client asks for, in the world as it is once that is known.
async fn by_server_name(
    worker: &Worker,
    pod: &Pod,
    tcp: &TcpStream,
    live: &Registration,
    dialled: OrigDstAddr,
    routes: &Connections,
) -> Result<(Arc<Service>, Vec<Upstream>), Failure> {
    let name = tokio::select! {
        biased;
        cut = live.cancel.cancelled() => return Err(Failure::Cut(cut)),
        name = server_name::read(tcp) => name.map_err(Failure::Refused)?,
    };
    let state = worker.shared.state.current();
    routing::by_server_name(&state, &pod.workload, routes, name.as_deref(), dialled, worker.random())
        .map_err(Failure::Refused)
}

/// A pod that reaches itself through a Service is judged here, since no other agent will be asked.
pub fn judged_itself(pod: &Pod, address: ServerAddr) -> Judged {
    inbound::judged(pod, Some(pod.workload.identity.clone()), address.ip(), address)
}

async fn try_upstreams(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    live: &Registration,
    client: ClientAddr,
    service: Option<&Arc<Service>>,
    upstreams: &[Upstream],
) -> Result<Reached, Failure> {
    let reached = reach_first(worker, pod, live, client, service, upstreams).await;
    if let Err(Failure::Tunnel { error, .. }) = &reached
        && error.is_passing()
    {
        tokio::time::sleep(TUNNEL_RETRY_PAUSE).await;
        return reach_first(worker, pod, live, client, service, upstreams).await;
    }
    reached
}

/// Tries the endpoints in order. No byte of the application has been taken yet, so each may be tried.
async fn reach_first(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    live: &Registration,
    client: ClientAddr,
    service: Option<&Arc<Service>>,
    upstreams: &[Upstream],
) -> Result<Reached, Failure> {
    let mut last = Failure::Refused(Refusal::NoEndpoint);
    for upstream in upstreams {
        live.forget_judgement();
        record::aim(&mut live.record.borrow_mut(), upstream);
        let reached = tokio::select! {
            biased;
            cut = live.cancel.cancelled() => Err(Failure::Cut(cut)),
            reached = reach(worker, pod, live, client, service, upstream) => reached,
        };
        match reached {
            Err(failure) if !is_final(&failure) => {
                tracing::debug!(pod = %pod.name(), %failure, "endpoint did not take the connection; trying another");
                last = failure;
            }
            settled => return settled,
        }
    }
    Err(last)
}

/// Whether another endpoint would answer the same.
pub fn is_final(failure: &Failure) -> bool {
    match failure {
        Failure::Cut(_) | Failure::NoCertificate(_) => true,
        // Policy stands before the Service as a whole: asking every endpoint in turn would only be more refusals.
        Failure::Denied(_) | Failure::Tunnel { .. } | Failure::NotTakenIn { .. } => failure.is_denied(),
        Failure::Refused(_)
        | Failure::NotThisPod(_)
        | Failure::Record(_)
        | Failure::Connect { .. }
        | Failure::OverBudget(_)
        | Failure::Socket(_)
        | Failure::Abandoned => false,
    }
}

/// Makes a connection to one endpoint.
pub async fn reach(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    live: &Registration,
    client: ClientAddr,
    service: Option<&Arc<Service>>,
    upstream: &Upstream,
) -> Result<Reached, Failure> {
    let address = upstream.address.socket();
    match &upstream.transport {
        Transport::Plaintext => {
            let dialled = dial::from_pod(pod, address).await;
            dialled.map(Reached::Direct).map_err(|error| Failure::dial(address, error))
        }
        Transport::Itself => {
            let admission = inbound::admit(worker, live, judged_itself(pod, upstream.address))?;
            let app = inbound::reach_admitted(pod, &admission, live, client, upstream.address).await?;
            Ok(match admission {
                Admission::Bytes(_) => Reached::Application(app),
                Admission::Requests(_) => Reached::Judged { app, server: upstream.address },
            })
        }
        Transport::SameNode(identity) => within_the_node(worker, pod, live, client, service, upstream, identity).await,
        Transport::Tunnel(identity) => tunnel(worker, pod, live, client, service, upstream, identity).await,
    }
}

async fn within_the_node(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    live: &Registration,
    client: ClientAddr,
    service: Option<&Arc<Service>>,
    upstream: &Upstream,
    identity: &SpiffeId,
) -> Result<Reached, Failure> {
    match same_node::way(worker, pod, upstream, identity).await {
        Some(to) => {
            trace(live);
            same_node::reach(worker, pod, &to, live, client, upstream).await.map(Reached::SameNode)
        }
        None => {
            live.record.borrow_mut().transport = telemetry::Transport::Tunnel;
            tunnel(worker, pod, live, client, service, upstream, identity).await
        }
    }
}

async fn tunnel(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    live: &Registration,
    client: ClientAddr,
    service: Option<&Arc<Service>>,
    upstream: &Upstream,
    identity: &SpiffeId,
) -> Result<Reached, Failure> {
    let svid = worker.svid(&pod.workload.identity).await?;
    let key =
        TunnelKey { source_uid: pod.uid().clone(), destination: identity.clone(), address: upstream.address.ip() };
    let request = connect_request(pod, live, client, service, upstream);
    let tunnel_address = std::net::SocketAddr::new(upstream.address.ip(), hbone::PORT);
    let connect = async || dial::from_pod(pod, tunnel_address).await;
    let opened = worker.pool.open(&key, &svid, connect, &request).await;
    opened.map(Reached::Tunnel).map_err(|error| Failure::Tunnel { address: upstream.address.socket(), error })
}

fn connect_request(
    pod: &Pod,
    live: &Registration,
    client: ClientAddr,
    service: Option<&Arc<Service>>,
    upstream: &Upstream,
) -> ConnectRequest {
    ConnectRequest {
        authority: upstream.address.socket(),
        forwarded: client,
        host: service.map(|service| format!("{}.{}.svc", service.name, service.namespace)),
        baggage: pod.baggage.clone(),
        traceparent: trace(live).to_string(),
    }
}

/// A trace of the connection's own, told in both nodes' access logs.
fn trace(live: &Registration) -> TraceParent {
    let trace = TraceParent::random();
    live.record.borrow_mut().trace_id = Some(trace.trace_id().into());
    trace
}

/// Carries a connection that was made, each kind in the room that it needs. The kernel's record of it stays until it ends.
fn carry(
    worker: Rc<Worker>,
    pod: Arc<Pod>,
    tcp: TcpStream,
    live: Registration,
    client: ClientAddr,
    dial: DialRecord,
    reached: Reached,
) -> Boxed<()> {
    worker.opened(&live);
    match reached {
        Reached::Tunnel(stream) => Box::pin(async move {
            live.goes_by(&stream);
            let end = copy::tunnel(tcp, stream, &live.counters, cut(&live)).await;
            drop(dial);
            worker.finish(live, end);
        }),
        Reached::Direct(upstream) => Box::pin(async move {
            let end = copy::plain(tcp, upstream, copy::Outer::Second, &live.counters, cut(&live)).await;
            drop(dial);
            worker.finish(live, end);
        }),
        Reached::SameNode(arrived) => Box::pin(async move {
            same_node::carry(worker, tcp, live, *arrived).await;
            drop(dial);
        }),
        Reached::Application(app) => Box::pin(async move {
            let end = copy::plain(tcp, app.tcp, copy::Outer::Neither, &live.counters, cut(&live)).await;
            drop((app.record, dial));
            worker.finish(live, end);
        }),
        Reached::Judged { app, server } => {
            let meter = Rc::new(judged::OfSocket(live.live()));
            let ends = Ends::of_itself(&pod, client, server);
            Box::pin(async move {
                judged::serve(worker, pod, Io::socket(tcp, meter), live, ends, app).await;
                drop(dial);
            })
        }
    }
}

async fn cut(live: &Registration) {
    live.cancel.cancelled().await;
}
