//! Which of a Service's endpoints a request goes to. One [`Balancer`] per worker and Service port; what it knows of an
//! endpoint stays with the endpoint's address when the world changes around it.
//!
//! ```text
//! set() ── endpoints, policy ──► places (this node, zone, elsewhere), ring
//! pick() ─► session? ─► place by share ─► two at random, one in turn, ring, … ─► limits ─► Lease
//!                                                                                   │
//!            round trips, outliers, busy endpoints ◄── Lease::answered ◄────────────┘
//! ```

mod endpoint;
mod load;
mod places;
mod ring;

#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;

pub use endpoint::Endpoint;
pub use places::Place;
pub use ring::key as hash_key;

use self::places::Places;
use self::ring::Ring;
use super::limits::MAX_PICKS;
use super::outcome::{Outcome, Sign};
use super::outlier::{self, Cause, Health};
use super::policy::{Balance, Endpoints, HashKey, Traffic};
use super::pool::{Counted, Overflow, Permit, Pool, PoolKey, Pools};
use super::request::Request;

/// An endpoint as the world has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Where it is reached.
    pub address: SocketAddr,
    /// How far that is.
    pub place: Place,
}

/// Chooses endpoints of one port of a Service, for one worker.
#[derive(Clone)]
pub struct Balancer(Rc<Inner>);

struct Inner {
    /// The Service's counts, shared with the other workers.
    pool: Arc<Pool>,
    set: RefCell<Set>,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ask<'a> {
    /// For a consistent hash: [`key_of`] the request.
    pub key: Option<u64>,
    /// The token of the client's session.
    pub session: Option<u64>,
    /// Endpoints that this request tried before: another one if there is any.
    pub tried: &'a [SocketAddr],
}

/// Why no endpoint is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoEndpoint {
    /// The Service has none.
    None,
    /// All of them are ejected, and the policy knows no panic.
    AllEjected,
    /// The Service, or each endpoint, has as much as the policy allows.
    Overflow(Counted),
}

/// One try at an endpoint; while it lives, the try counts as under way. Dropped without an answer: the client went away.
pub struct Lease {
    inner: Rc<Inner>,
    endpoint: Rc<Endpoint>,
    since: Instant,
    of_service: Permit,
    of_endpoint: Permit,
}

/// An endpoint was ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ejection {
    /// Which.
    pub address: SocketAddr,
    /// Why.
    pub cause: Cause,
    /// For how long.
    pub length: Duration,
}

/// What the key of a consistent hash is for a request; None: the policy hashes nothing, or the request has it not.
pub fn key_of(policy: &Endpoints, request: &Request<'_>) -> Option<u64> {
    let Balance::ConsistentHash(key) = &policy.balance else { return None };
    match key {
        HashKey::Header(name) => request.header(name).map(hash_key),
        HashKey::Cookie(name) => request.cookie(name).map(|value| hash_key(value.as_bytes())),
        HashKey::SourceIp => Some(match request.source_ip.to_canonical() {
            IpAddr::V4(v4) => hash_key(&v4.octets()),
            IpAddr::V6(v6) => hash_key(&v6.octets()),
        }),
        HashKey::SourceIdentity => request.source.map(|id| hash_key(id.as_str().as_bytes())),
    }
}

/// What stands for an endpoint in a session's cookie or header: the same on every node, and no address. A client that
/// makes one up chooses among the endpoints of the Service that it may reach anyway.
pub fn session_token(address: &SocketAddr) -> String {
    format!("{:016x}", session_of(address))
}

/// Reads what [`session_token`] wrote.
pub fn read_session_token(text: &str) -> Option<u64> {
    let is_ours = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_ours.then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

/// What [`Ask::session`] says to ask for this endpoint.
pub fn session_of(address: &SocketAddr) -> u64 {
    // Beyond the places on the ring, so that no token is one of them.
    ring::place(address, u64::MAX)
}

impl Balancer {
    /// One without endpoints. `service` is `namespace/name`.
    pub fn new(pools: &Pools, service: &Arc<str>, port: u16) -> Self {
        let pool = pools.of(PoolKey { service: service.clone(), port, endpoint: None });
        let source = Source { pools: pools.clone(), service: service.clone(), port };
        Self(Rc::new(Inner { pool, set: RefCell::new(Set::new(source)) }))
    }

    /// Takes the endpoints and the policy as they now are. What is known of an endpoint stays. To be called when a
    /// snapshot changed one of them.
    pub fn set(&self, traffic: &Traffic, candidates: &[Candidate], now: Instant, rng: &mut Rng) {
        self.0.set.borrow_mut().update(traffic.endpoints(), candidates, now, rng);
    }

    /// Chooses an endpoint and counts the request as under way there.
    pub fn pick(&self, ask: &Ask<'_>, now: Instant, rng: &mut Rng) -> Result<Lease, NoEndpoint> {
        let mut set = self.0.set.borrow_mut();
        set.pass_time(now, rng);
        if set.endpoints.is_empty() {
            return Err(NoEndpoint::None);
        }
        if set.places.is_empty() {
            return Err(NoEndpoint::AllEjected);
        }
        let overflow = |Overflow(counted): Overflow| NoEndpoint::Overflow(counted);
        let of_service = self.0.pool.take(Counted::Requests, &set.policy.of_service).map_err(overflow)?;
        let (endpoint, of_endpoint) = set.choose(ask, now, rng).map_err(overflow)?;
        endpoint.begin();
        Ok(Lease { inner: self.0.clone(), endpoint, since: now, of_service, of_endpoint })
    }

    /// The endpoints with what is known of them, for people.
    pub fn endpoints(&self) -> Vec<Rc<Endpoint>> {
        self.0.set.borrow().endpoints.clone()
    }

    /// A permit for one retry of a request to the Service; held until that try is over.
    pub fn retry(&self) -> Result<Permit, Overflow> {
        self.0.pool.take(Counted::Retries, &self.0.set.borrow().policy.of_service)
    }
}

impl Lease {
    /// The endpoint.
    pub fn address(&self) -> SocketAddr {
        self.endpoint.address()
    }

    /// Permits for one more connection to the endpoint; held while it is open.
    pub fn connection(&self) -> Result<(Permit, Permit), Overflow> {
        self.take(Counted::Connections)
    }

    /// Permits to wait for a connection to the endpoint; held while waiting.
    pub fn pending(&self) -> Result<(Permit, Permit), Overflow> {
        self.take(Counted::Pending)
    }

    fn take(&self, counted: Counted) -> Result<(Permit, Permit), Overflow> {
        let set = self.inner.set.borrow();
        let of_service = self.inner.pool.take(counted, &set.policy.of_service)?;
        Ok((of_service, self.endpoint.pool().take(counted, &set.policy.of_endpoint)?))
    }

    /// Takes note of how the try went, once, when its response's headers are there or it failed. The lease itself lives
    /// on until the response's end.
    pub fn answered(&self, outcome: &Outcome, now: Instant) -> Option<Ejection> {
        let sign = outcome.sign();
        self.endpoint.note(now.saturating_duration_since(self.since), sign, now);
        self.inner.set.borrow_mut().note(&self.endpoint, sign, now)
    }

    /// Whether a limit counts it.
    pub fn is_counted(&self) -> bool {
        self.of_service.is_held() || self.of_endpoint.is_held()
    }

    /// Takes note that the client went away before an answer: had the endpoint been slow until then, that counts.
    pub fn abandoned(&self, now: Instant) {
        self.endpoint.note_wait(now.saturating_duration_since(self.since), now);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.endpoint.end();
    }
}

/// Where counts come from.
struct Source {
    pools: Pools,
    service: Arc<str>,
    port: u16,
}

/// The endpoints as they are used now.
struct Set {
    source: Source,
    policy: Endpoints,
    endpoints: Vec<Rc<Endpoint>>,
    by_token: HashMap<u64, usize>,
    /// Those that may be chosen. Empty: there is none, or all are ejected.
    places: Places,
    /// For a consistent hash; else empty.
    ring: Ring,
    /// Too few endpoints are left: ejections are ignored.
    panic: bool,
    /// When the next ejection ends.
    wake: Option<Instant>,
    /// When success rates are compared next.
    compare: Option<Instant>,
}

impl Set {
    fn new(source: Source) -> Self {
        Self {
            source,
            policy: Endpoints::default(),
            endpoints: Vec::new(),
            by_token: HashMap::new(),
            places: Places::default(),
            ring: Ring::default(),
            panic: false,
            wake: None,
            compare: None,
        }
    }

    fn update(&mut self, policy: &Endpoints, candidates: &[Candidate], now: Instant, rng: &mut Rng) {
        // The first endpoints are no newcomers: there is nobody else to take the load meanwhile.
        let came = (!self.endpoints.is_empty()).then_some(now);
        let mut known: HashMap<SocketAddr, Rc<Endpoint>> =
            self.endpoints.drain(..).map(|endpoint| (endpoint.address(), endpoint)).collect();
        for candidate in candidates {
            let endpoint = known.remove(&candidate.address).unwrap_or_else(|| {
                let Source { pools, service, port } = &self.source;
                let key = PoolKey { service: service.clone(), port: *port, endpoint: Some(candidate.address) };
                Rc::new(Endpoint::new(candidate.address, pools.of(key), now, came))
            });
            endpoint.set_place(candidate.place);
            if policy.outlier.is_none() {
                endpoint.health().borrow_mut().pardon();
            }
            self.endpoints.push(endpoint);
        }
        self.by_token = self.endpoints.iter().enumerate().map(|(index, e)| (session_of(&e.address()), index)).collect();
        self.policy = policy.clone();
        self.ring = match policy.balance {
            Balance::ConsistentHash(_) => {
                Ring::new(&self.endpoints.iter().map(|endpoint| endpoint.address()).collect::<Vec<_>>())
            }
            Balance::PeakEwma | Balance::LeastRequest | Balance::RoundRobin | Balance::Random => Ring::default(),
        };
        self.arrange(rng);
    }

    /// Sorts the endpoints into those that may be chosen, by place.
    fn arrange(&mut self, rng: &mut Rng) {
        let ejected = self.endpoints.iter().filter(|endpoint| endpoint.is_ejected()).count();
        let in_use = self.endpoints.len().saturating_sub(ejected);
        let needed = self.endpoints.len().saturating_mul(self.policy.panic_percent.0 as usize);
        self.panic = ejected > 0 && in_use.saturating_mul(100) < needed;
        let usable = |endpoint: &Endpoint| self.panic || !endpoint.is_ejected();
        self.places = Places::of(&self.endpoints, self.policy.locality, usable, rng);
        self.wake = self.endpoints.iter().filter_map(|endpoint| endpoint.ejected_until()).min();
    }

    /// Does what time brings: ejections end, success rates are compared.
    fn pass_time(&mut self, now: Instant, rng: &mut Rng) {
        let mut moved = false;
        if self.wake.is_some_and(|wake| wake <= now) {
            let woken = self.endpoints.iter().filter(|endpoint| endpoint.health().borrow_mut().wake(now));
            moved = woken.count() > 0;
        }
        if let Some(policy) = self.policy.outlier {
            let due = *self.compare.get_or_insert_with(|| now.checked_add(policy.interval).unwrap_or(now));
            if due <= now {
                self.compare = now.checked_add(policy.interval);
                self.eject_laggards(now);
                self.endpoints.iter().for_each(|endpoint| endpoint.health().borrow_mut().end_interval());
                moved = true;
            }
        }
        if moved {
            self.arrange(rng);
        }
    }

    fn eject_laggards(&mut self, now: Instant) {
        let Some((policy, rate)) = self.policy.outlier.and_then(|policy| Some((policy, policy.success_rate?))) else {
            return;
        };
        let healths: Vec<Health> = self.endpoints.iter().map(|endpoint| *endpoint.health().borrow()).collect();
        for laggard in outlier::laggards(&healths, &rate).into_iter().filter_map(|index| self.endpoints.get(index)) {
            if self.may_eject(policy.share) {
                laggard.health().borrow_mut().eject(&policy, now);
            }
        }
    }

    fn may_eject(&self, share: u32) -> bool {
        let ejected = self.endpoints.iter().filter(|endpoint| endpoint.is_ejected()).count();
        outlier::may_eject(ejected, self.endpoints.len(), share)
    }

    /// Takes note of how a request ended, and ejects the endpoint if that was too much.
    fn note(&mut self, endpoint: &Rc<Endpoint>, sign: Sign, now: Instant) -> Option<Ejection> {
        let policy = self.policy.outlier?;
        let cause = endpoint.health().borrow_mut().note(sign, &policy)?;
        let is_here = self.endpoints.iter().any(|known| Rc::ptr_eq(known, endpoint));
        if !is_here || !self.may_eject(policy.share) {
            return None;
        }
        let until = endpoint.health().borrow_mut().eject(&policy, now);
        // Where a turn begins is no secret and decides nothing: the address will do as a seed.
        self.arrange(&mut Rng::with_seed(session_of(&endpoint.address())));
        Some(Ejection { address: endpoint.address(), cause, length: until.saturating_duration_since(now) })
    }

    /// An endpoint with its permit. There is one that may be chosen; it may be full.
    fn choose(&self, ask: &Ask<'_>, now: Instant, rng: &mut Rng) -> Result<(Rc<Endpoint>, Permit), Overflow> {
        let mut full = Overflow(Counted::Requests);
        let mut permit = |endpoint: &Rc<Endpoint>| {
            let permit = endpoint.pool().take(Counted::Requests, &self.policy.of_endpoint);
            permit.map(|permit| (endpoint.clone(), permit)).inspect_err(|overflow| full = *overflow).ok()
        };
        let fresh = |endpoint: &Rc<Endpoint>| !ask.tried.contains(&endpoint.address());
        if let Some(chosen) = self.of_session(ask).filter(|endpoint| fresh(endpoint)).and_then(&mut permit) {
            return Ok(chosen);
        }
        if let (Balance::ConsistentHash(_), Some(key)) = (&self.policy.balance, ask.key) {
            let from_key = || self.ring.from(key).filter_map(|index| self.endpoints.get(index));
            let usable = || from_key().filter(|endpoint| self.panic || !endpoint.is_ejected());
            let in_order = usable().filter(|endpoint| fresh(endpoint)).chain(usable());
            return in_order.take(self.ring_walk()).find_map(permit).ok_or(full);
        }
        for _ in 0..MAX_PICKS {
            let chosen = self.places.draw(&self.policy, now, rng);
            if let Some(chosen) = chosen.filter(|endpoint| fresh(endpoint)).and_then(&mut permit) {
                return Ok(chosen);
            }
        }
        // Chance found none that is neither tried nor full: look at all, the tried ones last.
        let start = rng.usize(..);
        let all = || self.places.all_from(start);
        all().filter(|endpoint| fresh(endpoint)).chain(all()).find_map(permit).ok_or(full)
    }

    /// The endpoint of the client's session, if it may be chosen.
    fn of_session(&self, ask: &Ask<'_>) -> Option<&Rc<Endpoint>> {
        let index = self.by_token.get(&ask.session?)?;
        self.endpoints.get(*index).filter(|endpoint| self.panic || !endpoint.is_ejected())
    }

    /// How far a key may walk: every place twice, for those that were tried.
    fn ring_walk(&self) -> usize {
        self.ring.len().saturating_mul(2)
    }
}
