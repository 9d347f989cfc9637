//! What requests need of the proxy: where they go, connections to there, and that they are told.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use tokio::net::TcpStream;

use super::budget::{Held, Kind};
use super::connection::{Live, Registration};
use super::copy::End;
use super::dial::AppConnection;
use super::error::Failure;
use super::judged::{self, Ends};
use super::outbound::{self, Reached};
use super::worker::{Pod, Worker};
use super::{inbound, record};
use crate::addr::{ClientAddr, OrigDstAddr, ServerAddr};
use crate::hbone;
use crate::http::{
    self, Caller, Claims, Client, Io, Local, Mesh, Meter, Place, Room, Services, Session, Teller, Treatment, Unreached,
    Wire,
};
use crate::podnet::ClientRecord;
use crate::routes::{BackendRef, CompiledRule, Table};
use crate::routing::{self, Upstream};
use crate::state::{AppProtocol, Destination, Endpoint, Frontend, MeshState, Service, ServicePort};
use crate::telemetry::{RequestMemo, RequestRecord, Span};

/// Serves a connection to a Service port on which requests are spoken.
pub async fn serve(
    worker: Rc<Worker>,
    pod: Arc<Pod>,
    tcp: TcpStream,
    live: Registration,
    client: ClientAddr,
    dialled: OrigDstAddr,
    service: &Arc<Service>,
) {
    worker.opened(&live);
    let template = record::request(&pod, client, service);
    // As its owner has it now.
    let state = worker.shared.state.current();
    let now = pod.workload.ips.first().and_then(|ip| state.workload_by_ip(*ip));
    let forwards = now.is_some_and(|now| now.uid == *pod.uid() && now.forwards);
    let claims = if forwards { Claims::PassedOn } else { Claims::Dropped };
    let caller = Caller::new(client.ip(), claims);
    let about = Client { source: pod.uid().clone(), caller, dialled: dialled.socket(), template };
    let mesh = Rc::new(Outbound {
        worker: worker.clone(),
        pod,
        client,
        dialled,
        memo: RequestMemo::default(),
        treated: RefCell::default(),
    });
    let session = Session::new(mesh, worker.upstreams.clone(), about);
    let client = Io::socket(tcp, Rc::new(OfClient(live.live())));
    let cut = async { drop(live.cancel.cancelled().await) };
    let ended = http::serve(client, session, worker.shared.leaving.clone(), cut).await;
    worker.finish(live, ended.into());
}

/// What a pod's agent asks a Service on the pod's behalf, nobody's connection being there.
pub fn on_behalf(worker: &Rc<Worker>, pod: &Arc<Pod>, place: &Place) -> Rc<Session<impl Mesh + use<>>> {
    let own = pod.workload.ips.first().copied().unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED));
    // Decides about the family of the endpoints.
    let dialled = SocketAddr::new(place.service.cluster_ips.first().copied().unwrap_or(own), place.port);
    let client = ClientAddr::new(SocketAddr::new(own, 0));
    let template = record::request(pod, client, &place.service);
    let caller = Caller::new(own, Claims::Dropped);
    let about = Client { source: pod.uid().clone(), caller, dialled, template };
    let mesh = Rc::new(Outbound {
        worker: worker.clone(),
        pod: pod.clone(),
        client,
        dialled: OrigDstAddr::new(dialled),
        memo: RequestMemo::default(),
        treated: RefCell::default(),
    });
    Session::new(mesh, worker.upstreams.clone(), about)
}

/// A Service's port, as it is by itself.
pub fn place(service: &Arc<Service>, port: &ServicePort) -> Place {
    let wire = wire(port.protocol);
    Place { service: service.clone(), port: port.port, frontend: Frontend::ClusterIp, wire }
}

/// What is around one connection of a pod's application.
struct Outbound {
    worker: Rc<Worker>,
    pod: Arc<Pod>,
    client: ClientAddr,
    dialled: OrigDstAddr,
    memo: RequestMemo,
    /// How the last request was treated; the next one mostly is alike.
    treated: RefCell<Option<Rc<Treatment>>>,
}

impl Outbound {
    /// What is spoken at the port that was dialled, where a route may have its say.
    fn wire(&self, state: &MeshState, service: &Service, port: &ServicePort) -> Wire {
        wire(state.protocol(service, port, &self.pod.workload.namespace))
    }
}

impl Mesh for Outbound {
    fn services(&self) -> &Services {
        &self.worker.services
    }

    fn dialled(&self) -> Result<Place, Local> {
        let state = self.worker.shared.state.current();
        let client = routing::client_ip(&self.pod.workload, self.dialled);
        match state.destination(self.dialled.socket(), client) {
            Destination::Service { service, port, frontend } => Ok(Place {
                service: service.clone(),
                port: port.port,
                frontend,
                wire: self.wire(&state, service, port),
            }),
            // What was dialled is no Service's any more.
            _ => Err(Local::NoEndpoint),
        }
    }

    fn routes(&self, dialled: &Place) -> Option<Arc<Table>> {
        let state = self.worker.shared.state.current();
        state.requests(&dialled.service, dialled.port, &self.pod.workload.namespace).cloned()
    }

    fn backend(&self, target: &BackendRef) -> Result<Place, Local> {
        let state = self.worker.shared.state.current();
        let (service, port) = state.backend(target).map_err(|_| Local::BadBackend)?;
        Ok(place(service, port))
    }

    fn treatment(&self, place: &Place, rule: Option<&Arc<CompiledRule>>) -> Rc<Treatment> {
        let state = self.worker.shared.state.current();
        if let Some(last) = &*self.treated.borrow()
            && last.is_of(&state, place, rule)
        {
            return last.clone();
        }
        let treatment = self.worker.services.treatment(&state, place, self.dialled.ip(), rule);
        self.treated.replace(Some(treatment.clone()));
        treatment
    }

    fn upstream(&self, endpoint: &Endpoint) -> Upstream {
        let state = self.worker.shared.state.current();
        let address = ServerAddr::new(SocketAddr::new(endpoint.ip, endpoint.port));
        routing::upstream(&state, &self.pod.workload, address, endpoint.workload.as_ref())
    }

    async fn reach(&self, place: &Place, upstream: &Upstream) -> Result<http::Reached, Unreached> {
        let Self { worker, pod, client, .. } = self;
        let taken = pod.budget.take(Kind::Connection).map_err(|over| Unreached {
            reason: over.label(),
            is_final: true,
            is_passing: false,
            is_denied: false,
        })?;
        let live = worker.register(pod, taken, record::shared(pod, *client, &place.service, upstream));
        let service = Some(&place.service);
        let reached = tokio::select! {
            biased;
            cut = live.cancel.cancelled() => Err(Failure::Cut(cut)),
            reached = outbound::reach(worker, pod, &live, *client, service, upstream) => reached,
        };
        match reached.and_then(|reached| within(worker, pod, *client, reached)) {
            Ok(reached) => Ok(opened(worker, pod, live, reached)),
            Err(failure) => {
                let unreached = unreached(&failure);
                worker.finish_failed(live, &failure);
                Err(unreached)
            }
        }
    }

    fn room(&self) -> Box<dyn Room> {
        Box::new(Held::of(Some(self.pod.budget.clone())))
    }

    fn random(&self) -> u64 {
        self.worker.random()
    }
}

impl Teller for Outbound {
    fn trace(&self, headers: &mut ::http::HeaderMap) -> Option<Span> {
        self.worker.begin_span(headers)
    }

    fn report(&self, record: &RequestRecord) {
        self.worker.report_request(record, &self.memo);
    }
}

fn wire(protocol: AppProtocol) -> Wire {
    match protocol {
        AppProtocol::Bytes | AppProtocol::Http1 => Wire::Http1,
        AppProtocol::Http2 | AppProtocol::Grpc => Wire::Http2,
    }
}

impl Room for Held {
    fn hold(&mut self, bytes: usize) -> bool {
        self.set(bytes).is_ok()
    }
}

/// A connection on which requests are sent.
enum Way {
    Tunnel(hbone::Stream),
    Direct(TcpStream),
    /// To the pod itself.
    Application(AppConnection),
    /// To the pod itself, with somebody in between who judges the requests: the registration of that part, and what it
    /// is served with.
    Within(Box<(Registration, Ends, AppConnection)>),
}

/// A pod that reaches itself where requests are judged meets its own policy as any other's: what it would meet at another
/// node stands between the two, in the table of connections as one that came for the pod.
fn within(worker: &Rc<Worker>, pod: &Arc<Pod>, client: ClientAddr, reached: Reached) -> Result<Way, Failure> {
    let (app, server) = match reached {
        Reached::Tunnel(stream) => return Ok(Way::Tunnel(stream)),
        Reached::Direct(tcp) => return Ok(Way::Direct(tcp)),
        Reached::Application(app) => return Ok(Way::Application(app)),
        Reached::Judged { app, server } => (app, server),
    };
    let taken = pod.budget.take(Kind::Connection).map_err(Failure::OverBudget)?;
    let live = worker.register(pod, taken, record::inbound(pod, client, Some(&pod.workload.identity), server, None));
    if let Err(failure) = inbound::admit(worker, &live, outbound::judged_itself(pod, server)) {
        worker.finish_failed(live, &failure);
        return Err(failure);
    }
    Ok(Way::Within(Box::new((live, Ends::of_itself(pod, client, server), app))))
}

fn opened(worker: &Rc<Worker>, pod: &Arc<Pod>, live: Registration, way: Way) -> http::Reached {
    worker.opened(&live);
    let meter = Rc::new(OfServer(live.live()));
    let is_current = is_current(worker, pod, &way);
    let destination = live.record.borrow().destination_pod.clone();
    let (io, record) = match way {
        Way::Tunnel(mut stream) => {
            live.weigh_from_now(stream.waiting(), pod.budget.clone());
            (Io::tunnel(stream, meter), None)
        }
        Way::Direct(tcp) => (Io::socket(tcp, meter), None),
        Way::Application(app) => (Io::socket(app.tcp, meter), Some(app.record)),
        Way::Within(inner) => {
            let (inner, ends, app) = *inner;
            worker.opened(&inner);
            let [near, far] = Io::within([meter, Rc::new(judged::OfTunnel(inner.live()))]);
            tokio::task::spawn_local(judged::serve(worker.clone(), pod.clone(), far, inner, ends, app));
            (near, None)
        }
    };
    let pod = destination;
    let shared = Shared { worker: worker.clone(), live: Some(live), _record: record };
    http::Reached { io, cut: Box::pin(shared.cut()), is_current, pod }
}

/// Whether a connection may serve further requests. One that goes through a tunnel may while the tunnel would take it
/// anew, with the pod's certificate of that time; without a certificate nothing may.
fn is_current(worker: &Rc<Worker>, pod: &Arc<Pod>, way: &Way) -> Box<dyn Fn() -> bool> {
    let Way::Tunnel(stream) = way else { return Box::new(|| true) };
    let (worker, pod, carrier) = (worker.clone(), pod.clone(), stream.carrier());
    Box::new(move || {
        let svid = worker.shared.identities.svid(&pod.workload.identity);
        svid.is_some_and(|svid| carrier.as_ref().is_some_and(|carrier| carrier.is_current(&svid)))
    })
}

fn unreached(failure: &Failure) -> Unreached {
    Unreached {
        reason: failure.reason(),
        is_final: outbound::is_final(failure),
        is_passing: matches!(failure, Failure::Tunnel { error, .. } if error.is_passing()),
        is_denied: match failure {
            Failure::Denied(_) => true,
            Failure::Tunnel { error, .. } => error.is_denied(),
            _ => false,
        },
    }
}

/// A connection that requests share, in the table of the live ones for as long as it is open.
struct Shared {
    worker: Rc<Worker>,
    live: Option<Registration>,
    _record: Option<ClientRecord>,
}

impl Shared {
    /// Ready when it is to be cut.
    async fn cut(self) {
        if let Some(live) = &self.live {
            live.cancel.cancelled().await;
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(live) = self.live.take() {
            self.worker.finish(live, End::Finished);
        }
    }
}

/// Counts the bytes of a connection from a client.
struct OfClient(Rc<Live>);

impl Meter for OfClient {
    fn carried(&self, read: usize, written: usize) {
        self.0.counters.add(read, written);
    }
}

/// Counts the bytes of a connection to a server.
struct OfServer(Rc<Live>);

impl Meter for OfServer {
    fn carried(&self, read: usize, written: usize) {
        self.0.counters.add(written, read);
    }
}
