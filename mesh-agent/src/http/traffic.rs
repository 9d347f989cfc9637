//! What a worker knows of the Services that its clients ask, and how requests to them are treated: TrafficPolicies, and
//! what the rules of routes say besides, made ready once and remembered until one of them changes.
//!
//! ```text
//! Services ─► of one Service: the budget of its retries
//!                └─► Port: endpoints, balancer ─► Treatment, for each rule by which requests come there
//! ```
//!
//! What is decided is decided in `resilience`. Everything here belongs to one worker; what must hold for the node as a
//! whole, limits on what is under way and rates, is counted in [`NodeLimits`].

use std::cell::{Cell, Ref, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;

use super::Place;
use super::limits::{KEPT_UNASKED, MAX_TREATMENTS, SWEEP_INTERVAL};
use super::load::{Load, MemoryGauge};
use crate::named::named;
use crate::resilience::balance::{self, Ask, Candidate, Lease, NoEndpoint};
use crate::resilience::fault::{self, Injection};
use crate::resilience::policy::{self, Retry, Session, SessionBy, Timeouts, Traffic};
use crate::resilience::pool::{Overflow, Permit, Pools};
use crate::resilience::rate::{Gate, Limited, Split};
use crate::resilience::retry::{self, Decision, Tried};
use crate::resilience::shed::Shed;
use crate::resilience::{Balancer, Budget, Outcome, Rates, Request};
use crate::routes::{self, CompiledRule, RouteKind};
use crate::routing;
use crate::state::{Affinity, Endpoint, Frontend, MeshState, Service, Stamp, StateReader};

/// What the workers of an agent count together, so that a limit holds for the node and not for each of them. Clones are
/// the same.
#[derive(Clone, Default)]
pub struct NodeLimits {
    pools: Pools,
    rates: Rates,
    /// What the agent may take of the node's memory.
    memory: MemoryGauge,
}

impl NodeLimits {
    /// Of an agent that may take so much memory.
    pub fn within(memory: MemoryGauge) -> Self {
        Self { memory, ..Self::default() }
    }
}

/// The Services that a worker's clients ask. Clones are the same.
#[derive(Clone)]
pub struct Services {
    inner: Rc<Inner>,
}

/// Namespace and name.
type Name = (Arc<str>, Arc<str>);

struct Inner {
    limits: NodeLimits,
    workers: NonZeroU32,
    /// Those that are no longer there go with the next sweep.
    services: RefCell<HashMap<Name, Rc<OfService>>>,
    load: Load,
    chance: RefCell<Rng>,
}

/// What all ports of a Service have in common.
struct OfService {
    name: Arc<str>,
    budget: RefCell<Budget>,
    ports: RefCell<HashMap<Door, Rc<Port>>>,
}

/// By what a Service is entered: different doors lead to different endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Door {
    port: u16,
    frontend: Frontend,
    is_ipv4: bool,
}

/// The endpoints behind one door.
struct Port {
    door: Door,
    of: Rc<OfService>,
    services: Services,
    balancer: Balancer,
    known: RefCell<Known>,
    /// By the address of the rule, which each holds; 0: no rule.
    treatments: RefCell<HashMap<usize, Rc<Treatment>>>,
    asked: Cell<Instant>,
}

/// As the world was when it was last looked at.
struct Known {
    service: Arc<Service>,
    stamp: Stamp,
    endpoints: HashMap<SocketAddr, Endpoint>,
    split: Split,
}

/// How requests to a Service's port are treated that met one rule, or none.
pub struct Treatment {
    port: Rc<Port>,
    service: Arc<Service>,
    stamp: Stamp,
    rule: Option<Arc<CompiledRule>>,
    traffic: Traffic,
    gate: Gate,
    timeouts: Timeouts,
    /// From one try's request to the end of its response.
    whole_try: Option<Duration>,
    retry: Option<Retry>,
    session: Option<Session>,
    /// Whether anything looks at requests before they are sent.
    looks: bool,
}

/// What was decided about a request before it is sent.
#[derive(Clone, Debug, Default)]
pub struct Admitted {
    /// What goes wrong on purpose.
    pub injection: Injection,
    /// Of a consistent hash.
    pub key: Option<u64>,
    /// The endpoint of the client's session, by its token.
    pub session: Option<u64>,
}

/// A try at an endpoint. What came of it is noted once; dropped before, the client went away.
pub struct Try {
    lease: Lease,
    /// The endpoint.
    pub endpoint: Endpoint,
    service: Arc<str>,
    is_noted: Cell<bool>,
}

impl Services {
    /// Of a worker that is one of so many.
    pub fn new(limits: NodeLimits, workers: usize) -> Self {
        let workers = u32::try_from(workers).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN);
        let (load, chance) = (Load::new(limits.memory.clone()), RefCell::new(Rng::new()));
        Self { inner: Rc::new(Inner { limits, workers, services: RefCell::default(), load, chance }) }
    }

    /// Whether the worker serves one more request.
    ///
    /// # Errors
    /// It has too much to do, or the agent too little memory.
    pub async fn admit(&self) -> Result<(), Shed> {
        self.inner.load.admit(&self.inner.chance).await
    }

    /// How requests to a place are treated that met this rule. `dialled` is an address of the family that the client
    /// dialled.
    pub fn treatment(
        &self,
        state: &MeshState,
        place: &Place,
        dialled: IpAddr,
        rule: Option<&Arc<CompiledRule>>,
    ) -> Rc<Treatment> {
        let now = Instant::now();
        let port = self.port(state, place, dialled, now);
        port.asked.set(now);
        port.look(state, &place.service, dialled, now);
        let id = rule.map_or(0, |rule| Arc::as_ptr(rule) as usize);
        if let Some(known) = port.treatments.borrow().get(&id) {
            return known.clone();
        }
        let made = Rc::new(Treatment::new(state, &port, rule, now));
        let mut treatments = port.treatments.borrow_mut();
        if treatments.len() >= MAX_TREATMENTS {
            treatments.clear();
        }
        treatments.insert(id, made.clone());
        made
    }

    fn port(&self, state: &MeshState, place: &Place, dialled: IpAddr, now: Instant) -> Rc<Port> {
        let Place { service, port, frontend, .. } = place;
        let of = self.of_service(state, service, now);
        let door = Door { port: *port, frontend: *frontend, is_ipv4: dialled.is_ipv4() };
        let mut ports = of.ports.borrow_mut();
        let port = ports.entry(door).or_insert_with(|| {
            let known = Known {
                service: service.clone(),
                // Of no snapshot: the first look finds that everything has changed.
                stamp: Stamp::default(),
                endpoints: HashMap::new(),
                split: Split::default(),
            };
            Rc::new(Port {
                door,
                of: of.clone(),
                services: self.clone(),
                balancer: Balancer::new(&self.inner.limits.pools, &of.name, door.port),
                known: RefCell::new(known),
                treatments: RefCell::default(),
                asked: Cell::new(now),
            })
        });
        port.clone()
    }

    fn of_service(&self, state: &MeshState, service: &Arc<Service>, now: Instant) -> Rc<OfService> {
        let key = (service.namespace.clone(), service.name.clone());
        let mut services = self.inner.services.borrow_mut();
        let of = services.entry(key).or_insert_with(|| {
            let budget = Budget::new(state.traffic(service, None).budget(), self.inner.workers, now);
            Rc::new(OfService {
                name: format!("{}/{}", service.namespace, service.name).into(),
                budget: RefCell::new(budget),
                ports: RefCell::default(),
            })
        });
        of.clone()
    }

    /// Forgets Services that are gone and ports that nobody asked for long, again and again.
    pub async fn sweep(self, state: StateReader) {
        loop {
            tokio::time::sleep(SWEEP_INTERVAL).await;
            self.forget(&state.current(), Instant::now());
        }
    }

    fn forget(&self, state: &MeshState, now: Instant) {
        self.inner.services.borrow_mut().retain(|(namespace, name), of| {
            let is_here = state.service(namespace, name).is_some();
            // Treatments and ports hold each other; requests under way hold what they need of them.
            of.ports.borrow_mut().retain(|_, port| {
                let stays = is_here && now.saturating_duration_since(port.asked.get()) < KEPT_UNASKED;
                if !stays {
                    port.treatments.borrow_mut().clear();
                }
                stays
            });
            is_here && !of.ports.borrow().is_empty()
        });
    }

    /// How many Services and ports are known.
    #[cfg(test)]
    fn counts(&self) -> (usize, usize) {
        let services = self.inner.services.borrow();
        (services.len(), services.values().map(|of| of.ports.borrow().len()).sum())
    }
}

impl Port {
    /// Takes over what changed in the world since the last look; nothing, mostly.
    fn look(&self, state: &MeshState, service: &Arc<Service>, dialled: IpAddr, now: Instant) {
        let (is_same, is_policed) = {
            let known = self.known.borrow();
            (Arc::ptr_eq(&known.service, service), known.stamp == *state.traffic_stamp())
        };
        if is_same && is_policed {
            return;
        }
        self.treatments.borrow_mut().clear();
        let traffic = state.traffic(service, None);
        let behind = || {
            let port = service.port(self.door.port).into_iter();
            port.flat_map(|port| port.behind(self.door.frontend, dialled))
        };
        let address = |endpoint: &Endpoint| SocketAddr::new(endpoint.ip, endpoint.port);
        let candidates: Vec<Candidate> =
            behind().map(|endpoint| Candidate { address: address(endpoint), place: endpoint.place }).collect();
        let here = candidates.iter().filter(|candidate| candidate.place == balance::Place::Node).count();
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        self.known.replace(Known {
            service: service.clone(),
            stamp: state.traffic_stamp().clone(),
            endpoints: behind().map(|endpoint| (address(endpoint), endpoint.clone())).collect(),
            split: Split { here: count(here), everywhere: count(candidates.len()) },
        });
        self.of.budget.borrow_mut().set(traffic.budget(), now);
        self.balancer.set(&traffic, &candidates, now, &mut self.services.inner.chance.borrow_mut());
    }
}

impl Treatment {
    fn new(state: &MeshState, port: &Rc<Port>, rule: Option<&Arc<CompiledRule>>, now: Instant) -> Self {
        let known = port.known.borrow();
        let route = rule.map(|rule| (rule.kind, &rule.namespace, &rule.route));
        let traffic = state.traffic(&known.service, route);
        let of_service = format!("Service {}", port.of.name);
        let of_route = route.map(|(kind, namespace, name)| format!("{} {namespace}/{name}", kind_name(kind)));
        let rates = &port.services.inner.limits.rates;
        let gate = Gate::new(rates, &traffic, &of_service, &of_route.unwrap_or_default(), now);
        let own = rule.map(|rule| rule.timeouts).unwrap_or_default();
        let timeouts = Timeouts { request: own.request, per_try: own.backend_request, ..Timeouts::default() };
        let hashes = matches!(traffic.endpoints().balance, policy::Balance::ConsistentHash(_));
        let retry = match rule.and_then(|rule| rule.retry.as_ref()) {
            Some(own) => Some(of_rule(own)),
            None => traffic.retry().cloned(),
        };
        let session = match rule.and_then(|rule| rule.session.as_ref()) {
            Some(own) => Some(session_of_rule(own)),
            None => traffic.session().cloned(),
        };
        Self {
            port: port.clone(),
            service: known.service.clone(),
            stamp: known.stamp.clone(),
            rule: rule.cloned(),
            timeouts: timeouts.or(traffic.timeouts()),
            whole_try: own.backend_request,
            looks: hashes || session.is_some() || !gate.is_empty() || !traffic.faults().is_empty(),
            retry,
            session,
            gate,
            traffic,
        }
    }

    /// Whether it holds in this snapshot for requests to this place that met this rule.
    pub fn is_of(&self, state: &MeshState, place: &Place, rule: Option<&Arc<CompiledRule>>) -> bool {
        let same_rule = match (&self.rule, rule) {
            (None, None) => true,
            (Some(own), Some(rule)) => Arc::ptr_eq(own, rule),
            (Some(_), None) | (None, Some(_)) => false,
        };
        let Door { port, frontend, .. } = self.port.door;
        same_rule
            && Arc::ptr_eq(&self.service, &place.service)
            && (port, frontend) == (place.port, place.frontend)
            && self.stamp == *state.traffic_stamp()
    }

    /// How long things may take.
    pub fn timeouts(&self) -> &Timeouts {
        &self.timeouts
    }

    /// From one try's request to the end of its response, where a route says so.
    pub fn whole_try(&self) -> Option<Duration> {
        self.whole_try
    }

    /// What is tried again.
    pub fn retry(&self) -> Option<&Retry> {
        self.retry.as_ref()
    }

    /// Whether rates or faults depend on what a request asks.
    pub fn looks_at_requests(&self) -> bool {
        !self.gate.is_empty() || !self.traffic.faults().is_empty()
    }

    /// Decides about a request before it is sent: rates, faults, whose session it is.
    pub fn admit(&self, request: &Request<'_>) -> Result<Admitted, Limited> {
        if !self.looks {
            return Ok(Admitted::default());
        }
        self.gate.check(self.port.known.borrow().split, request, Instant::now())?;
        let injection = fault::decide(self.traffic.faults(), request, &mut self.chance());
        let key = balance::key_of(self.traffic.endpoints(), request);
        let session = self.session.as_ref().and_then(|session| session_token(session, request));
        Ok(Admitted { injection, key, session })
    }

    /// Chooses an endpoint, other than those that were tried if there is any.
    pub fn choose(&self, admitted: &Admitted, tried: &[SocketAddr], client: IpAddr) -> Result<Try, NoEndpoint> {
        let session = admitted.session.or_else(|| self.favourite(tried, client));
        let ask = Ask { key: admitted.key, session, tried };
        let now = Instant::now();
        self.port.asked.set(now);
        let lease = self.port.balancer.pick(&ask, now, &mut self.chance())?;
        // The balancer chooses among these.
        let endpoint = self.port.known.borrow().endpoints.get(&lease.address()).cloned().ok_or(NoEndpoint::None)?;
        Ok(Try { lease, endpoint, service: self.port.of.name.clone(), is_noted: Cell::new(false) })
    }

    /// Where sessionAffinity ClientIP has the client go.
    fn favourite(&self, tried: &[SocketAddr], client: IpAddr) -> Option<u64> {
        if self.service.affinity == Affinity::None {
            return None;
        }
        let known = Ref::map(self.port.known.borrow(), |known| &known.endpoints);
        let favourites = routing::favourites(known.values(), client);
        favourites.into_iter().find(|address| !tried.contains(address)).map(|address| balance::session_of(&address))
    }

    /// Counts a request that may be tried again, before its first try.
    pub fn note_request(&self) {
        self.port.of.budget.borrow_mut().note_request(Instant::now());
    }

    /// Whether a try is followed by another.
    pub fn decide(&self, retry: &Retry, tried: &Tried<'_>) -> Decision {
        retry::decide(retry, tried, &mut self.port.of.budget.borrow_mut(), Instant::now(), &mut self.chance())
    }

    /// A permit for one more retry, held until it is over.
    pub fn permit_retry(&self) -> Result<Permit, Overflow> {
        self.port.balancer.retry()
    }

    /// The field that tells a client of the session that it has now, by name and value; None: it knows, or there is
    /// none.
    pub fn session_field(&self, admitted: &Admitted, answered: &SocketAddr, unix: Duration) -> Option<SessionField> {
        let session = self.session.as_ref()?;
        (admitted.session != Some(balance::session_of(answered))).then(|| {
            let ends = session.absolute_timeout.map(|length| unix.saturating_add(length).as_secs());
            let token = balance::session_token(answered);
            let token = ends.map_or(token.clone(), |ends| format!("{token}-{ends:x}"));
            match session.by {
                SessionBy::Header => SessionField { name: session.name.clone(), is_cookie: false, value: token },
                SessionBy::Cookie { permanent } => {
                    let age = session.absolute_timeout.filter(|_| permanent);
                    let age = age.map_or(String::new(), |age| format!("; Max-Age={}", age.as_secs()));
                    let value = format!("{}={token}; Path=/; HttpOnly{age}", session.name);
                    SessionField { name: "set-cookie".into(), is_cookie: true, value }
                }
            }
        })
    }

    fn chance(&self) -> std::cell::RefMut<'_, Rng> {
        self.port.services.inner.chance.borrow_mut()
    }
}

/// A field of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionField {
    /// Its name.
    pub name: Arc<str>,
    /// Whether it is one of several that may be there.
    pub is_cookie: bool,
    /// Its value.
    pub value: String,
}

impl Try {
    /// Where it goes.
    pub fn address(&self) -> SocketAddr {
        self.lease.address()
    }

    /// Whether a limit counts it.
    pub fn is_counted(&self) -> bool {
        self.lease.is_counted()
    }

    /// Permits for one more connection to the endpoint, held while it is open.
    pub fn connection(&self) -> Result<(Permit, Permit), Overflow> {
        self.lease.connection()
    }

    /// Permits to wait for a connection to the endpoint.
    pub fn pending(&self) -> Result<(Permit, Permit), Overflow> {
        self.lease.pending()
    }

    /// Takes note of how it went, once. True: that was too much, and the endpoint is left out for a while.
    pub fn note(&self, outcome: &Outcome) -> bool {
        if self.is_noted.replace(true) {
            return false;
        }
        let Some(ejection) = self.lease.answered(outcome, Instant::now()) else { return false };
        tracing::info!(
            service = named(&self.service),
            endpoint = named(ejection.address),
            cause = ?ejection.cause,
            seconds = ejection.length.as_secs(),
            "an endpoint fails too often and is left out"
        );
        true
    }

    /// It says nothing about the endpoint.
    pub fn pass_over(&self) {
        self.is_noted.set(true);
    }
}

impl Drop for Try {
    fn drop(&mut self) {
        if !self.is_noted.get() {
            self.lease.abandoned(Instant::now());
        }
    }
}

fn kind_name(kind: RouteKind) -> &'static str {
    match kind {
        RouteKind::Http => "HTTPRoute",
        RouteKind::Grpc => "GRPCRoute",
        RouteKind::Tcp => "TCPRoute",
        RouteKind::Tls => "TLSRoute",
    }
}

/// GEP-1731: the codes that it names, and failures to connect; what else there is to say is the default's.
fn of_rule(own: &routes::Retry) -> Retry {
    let default = Retry::default();
    let backoff = own.backoff.unwrap_or(default.backoff);
    let growth = crate::resilience::limits::RETRY_BACKOFF_GROWTH;
    Retry {
        attempts: own.attempts,
        codes: own.codes.clone(),
        backoff,
        longest_backoff: backoff.saturating_mul(growth),
        ..default
    }
}

fn session_of_rule(own: &routes::Session) -> Session {
    let by = match own.cookie {
        Some(routes::Cookie { permanent }) => SessionBy::Cookie { permanent },
        None => SessionBy::Header,
    };
    Session { name: own.name.clone(), by, absolute_timeout: own.absolute_timeout }
}

/// The endpoint of a request's session, unless the session is over.
fn session_token(session: &Session, request: &Request<'_>) -> Option<u64> {
    let text = match session.by {
        SessionBy::Cookie { .. } => request.cookie(&session.name)?,
        SessionBy::Header => request.headers.get(&*session.name)?.to_str().ok()?,
    };
    let (token, ends) = text.split_once('-').map_or((text, None), |(token, ends)| (token, Some(ends)));
    let is_over = match (session.absolute_timeout, ends) {
        (None, _) => false,
        (Some(_), None) => true,
        (Some(_), Some(ends)) => u64::from_str_radix(ends, 16).map_or(true, |ends| ends <= unix_now().as_secs()),
    };
    balance::read_session_token(token).filter(|_| !is_over)
}

/// Since 1970; zero while the clock says that it is before.
pub fn unix_now() -> Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Wire;
    use crate::resilience::policy::{Settings, Target, TargetKind, TrafficPolicy};
    use crate::state::{AppProtocol, Backend, Backends, Engine, Item, Key, Kind, PortSpec, ServiceSpec, TargetPort};

    fn key(kind: Kind, name: &str) -> Key {
        Key { kind, namespace: "shop".into(), name: name.into() }
    }

    fn service(name: &str, cluster_ip: &str) -> Item {
        let backend = Backend::ready("10.0.0.9".parse().unwrap(), 8080);
        let port = PortSpec {
            name: "".into(),
            port: 80,
            target: TargetPort::Number(8080),
            node_port: None,
            protocol: AppProtocol::Http1,
        };
        let spec = ServiceSpec {
            namespace: "shop".into(),
            name: name.into(),
            cluster_ips: vec![cluster_ip.parse().unwrap()],
            ports: vec![port],
            backends: Backends::Listed(vec![backend]),
            ..ServiceSpec::default()
        };
        Item::Service(spec.into())
    }

    fn policy(target: &str, request: u64) -> Item {
        let timeouts = Timeouts { request: Some(Duration::from_secs(request)), ..Timeouts::default() };
        let target = Target { kind: TargetKind::Service, name: target.into() };
        Item::TrafficPolicy(Arc::new(TrafficPolicy {
            namespace: "shop".into(),
            name: "policy".into(),
            created: None,
            targets: vec![target],
            settings: Settings { timeouts: Some(timeouts), ..Settings::default() }.into(),
        }))
    }

    fn treatment(services: &Services, state: &MeshState, name: &str) -> (Rc<Treatment>, Place) {
        let service = state.service(&"shop".into(), &name.into()).unwrap().clone();
        let place = Place { service, port: 80, frontend: Frontend::ClusterIp, wire: Wire::Http1 };
        (services.treatment(state, &place, "10.96.0.1".parse().unwrap(), None), place)
    }

    #[test]
    fn a_treatment_is_remembered_until_what_it_says_changes() {
        let (mut engine, services) = (Engine::new("node"), Services::new(NodeLimits::default(), 2));
        engine.upsert(&key(Kind::Service, "web"), service("web", "10.96.0.1"));
        let state = engine.snapshot();
        let (first, place) = treatment(&services, &state, "web");
        assert!(first.is_of(&state, &place, None));
        assert!(Rc::ptr_eq(&first, &treatment(&services, &state, "web").0));
        // Another Service changes nothing here.
        engine.upsert(&key(Kind::Service, "other"), service("other", "10.96.0.2"));
        let state = engine.snapshot();
        assert!(first.is_of(&state, &place, None));
        assert!(Rc::ptr_eq(&first, &treatment(&services, &state, "web").0));
        engine.upsert(&key(Kind::TrafficPolicy, "policy"), policy("web", 7));
        let state = engine.snapshot();
        assert!(!first.is_of(&state, &place, None));
        let (second, _) = treatment(&services, &state, "web");
        assert_eq!(second.timeouts().request, Some(Duration::from_secs(7)));
        assert_eq!(first.timeouts().request, None, "requests under way go on as they began");
    }

    #[test]
    fn what_is_gone_or_not_asked_for_is_forgotten() {
        let (mut engine, services) = (Engine::new("node"), Services::new(NodeLimits::default(), 2));
        for (name, cluster_ip) in [("a", "10.96.0.1"), ("b", "10.96.0.2"), ("c", "10.96.0.3")] {
            engine.upsert(&key(Kind::Service, name), service(name, cluster_ip));
        }
        let state = engine.snapshot();
        let held: Vec<_> = ["a", "b", "c"].iter().map(|name| treatment(&services, &state, name).0).collect();
        let port = Rc::downgrade(&held[0].port);
        assert_eq!(services.counts(), (3, 3));
        engine.delete(&key(Kind::Service, "a"));
        let state = engine.snapshot();
        services.forget(&state, Instant::now());
        assert_eq!(services.counts(), (2, 2));
        assert!(port.upgrade().is_some(), "a request under way holds what it needs");
        assert!(held[0].choose(&Admitted::default(), &[], "10.0.0.1".parse().unwrap()).is_ok());
        drop(held);
        assert!(port.upgrade().is_none(), "nothing else does");
        services.forget(&state, Instant::now() + KEPT_UNASKED);
        assert_eq!(services.counts(), (0, 0));
    }
}
