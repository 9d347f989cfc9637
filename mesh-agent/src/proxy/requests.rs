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
use super::inbound::{self, Arrived};
use super::judged;
use super::outbound::{self, Reached};
use super::worker::{Pod, Worker};
use super::{record, same_node};
use crate::addr::{ClientAddr, OrigDstAddr, ServerAddr};
use crate::hbone;
use crate::http::{
    self, Caller, Claims, Client, Io, Judge, Local, Mesh, Meter, Place, Room, Services, Session, Teller, Treatment,
    Unreached, Untaken, Wire,
};
use crate::podnet::ClientRecord;
use crate::routes::{BackendRef, CompiledRule, Table};
use crate::routing::{self, Upstream};
use crate::state::{AppProtocol, Destination, Endpoint, Frontend, MeshState, Service, ServicePort};
use crate::telemetry::{RequestMemo, RequestRecord, Span, TappedHeaders};

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
        let taken = pod.budget.take(Kind::Connection, None).map_err(|over| Unreached {
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

    fn tapped(&self, headers: &::http::HeaderMap) -> Option<Arc<TappedHeaders>> {
        self.worker.tapped(headers)
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
    /// To another pod of this node, or to the pod itself where its policy needs what requests ask. Among the connections
    /// of the pod that is reached it is one that came for it.
    Within(Box<Arrived>),
}

/// A pod that reaches itself where requests are judged meets its own policy as any other's.
fn within(worker: &Rc<Worker>, pod: &Arc<Pod>, client: ClientAddr, reached: Reached) -> Result<Way, Failure> {
    let (app, server) = match reached {
        Reached::Tunnel(stream) => return Ok(Way::Tunnel(stream)),
        Reached::Direct(tcp) => return Ok(Way::Direct(tcp)),
        Reached::SameNode(arrived) => return Ok(Way::Within(arrived)),
        Reached::Application(app) => return Ok(Way::Application(app)),
        Reached::Judged { app, server } => (app, server),
    };
    let taken = pod.budget.take(Kind::Connection, None).map_err(Failure::OverBudget)?;
    let live = worker.register(pod, taken, record::from_itself(pod, client, server));
    let judged = outbound::judged_itself(pod, server);
    let facts = judged.facts.clone();
    match inbound::admit(worker, &live, judged) {
        Ok(admission) => {
            Ok(Way::Within(Box::new(Arrived { pod: pod.clone(), live, app, facts, client, server, admission })))
        }
        Err(failure) => {
            worker.finish_failed(live, &failure);
            Err(failure)
        }
    }
}

fn opened(worker: &Rc<Worker>, pod: &Arc<Pod>, live: Registration, way: Way) -> http::Reached {
    worker.opened(&live);
    let meter = Rc::new(OfServer(live.live()));
    let is_current = is_current(worker, pod, &way);
    let destination = live.record.borrow().destination_pod.clone();
    let mut shared = Shared { worker: worker.clone(), live: Some(live), inner: None, _record: None };
    let (io, judge) = match way {
        Way::Tunnel(stream) => {
            if let Some(live) = &shared.live {
                live.goes_by(&stream);
                live.weigh_from_now(stream.waiting());
            }
            (Io::tunnel(stream, meter), None)
        }
        Way::Direct(tcp) => (Io::socket(tcp, meter), None),
        Way::Application(AppConnection { tcp, record }) => {
            shared._record = Some(record);
            (Io::socket(tcp, meter), None)
        }
        Way::Within(arrived) => {
            worker.opened(&arrived.live);
            let ends = arrived.is_judged().then(|| arrived.ends(worker));
            let Arrived { pod: to, live: inner, app: AppConnection { tcp, record }, .. } = *arrived;
            let judge = ends.map(|ends| Rc::new(judged::bench(worker, to, inner.live(), ends, None)) as Rc<dyn Judge>);
            let meters = OfServers([meter, Rc::new(OfServer(inner.live()))]);
            (shared.inner, shared._record) = (Some(inner), Some(record));
            (Io::socket(tcp, Rc::new(meters)), judge)
        }
    };
    http::Reached { io, cut: Box::pin(shared.cut()), is_current, pod: destination, judge }
}

/// Whether a connection may serve further requests. One that goes through a tunnel may while the tunnel would take it
/// anew, with the pod's certificate of that time; without a certificate nothing may. One to another pod of this node may
/// while this agent holds that pod.
fn is_current(worker: &Rc<Worker>, pod: &Arc<Pod>, way: &Way) -> Box<dyn Fn() -> bool> {
    let stream = match way {
        Way::Tunnel(stream) => stream,
        Way::Within(arrived) => {
            let (worker, to) = (worker.clone(), arrived.pod.clone());
            return Box::new(move || worker.pod(to.uid()).is_some_and(|held| Arc::ptr_eq(&held, &to)));
        }
        Way::Direct(_) | Way::Application(_) => return Box::new(|| true),
    };
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
        is_denied: failure.is_denied(),
    }
}

/// A connection that requests share, in the table of the live ones for as long as it is open.
struct Shared {
    worker: Rc<Worker>,
    live: Option<Registration>,
    /// Among those of the pod that is reached, if that is of this node and reached within the agent.
    inner: Option<Registration>,
    _record: Option<ClientRecord>,
}

impl Shared {
    /// Ready when it is to be cut.
    async fn cut(self) {
        match (&self.live, &self.inner) {
            (Some(live), Some(inner)) => same_node::either_cut(live.live(), inner.live()).await,
            (Some(live), None) => drop(live.cancel.cancelled().await),
            (None, _) => {}
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        for live in [self.live.take(), self.inner.take()].into_iter().flatten() {
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

    fn waits(&self, untaken: &Rc<Untaken>) {
        self.0.weigh_untaken(untaken);
    }
}

/// Counts the bytes of a connection to a server.
struct OfServer(Rc<Live>);

impl Meter for OfServer {
    fn carried(&self, read: usize, written: usize) {
        self.0.counters.add(written, read);
    }

    fn waits(&self, untaken: &Rc<Untaken>) {
        self.0.weigh_untaken(untaken);
    }
}

/// Counts them on both sides: of the client's pod, and of the server's.
struct OfServers([Rc<OfServer>; 2]);

impl Meter for OfServers {
    fn carried(&self, read: usize, written: usize) {
        self.0.iter().for_each(|one| one.carried(read, written));
    }

    /// Answers wait for the client.
    fn waits(&self, untaken: &Rc<Untaken>) {
        let [client, _] = &self.0;
        client.waits(untaken);
    }
}
