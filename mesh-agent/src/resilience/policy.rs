//! What a TrafficPolicy means: checked, with units, and with every default filled in.
//!
//! ```text
//! TrafficPolicy (as read) ─► state ─► one per Service, one per route ─► Traffic::of(service, route) ─► http
//! ```
//!
//! A policy on a Service says how its endpoints are used; one on a route what happens to the route's requests. Where both
//! speak of timeouts, retries, faults or sessions, the route's section counts as a whole; rate limits of both count.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, StatusCode};

use super::limits;

/// One TrafficPolicy object.
#[derive(Clone, Debug, PartialEq)]
pub struct TrafficPolicy {
    /// metadata.namespace
    pub namespace: Arc<str>,
    /// metadata.name
    pub name: Arc<str>,
    /// metadata.creationTimestamp in seconds since the epoch: of two policies on one target the oldest counts, then
    /// `namespace/name`.
    pub created: Option<i64>,
    /// What it is attached to, in its own namespace.
    pub targets: Vec<Target>,
    /// What it says.
    pub settings: Arc<Settings>,
}

impl TrafficPolicy {
    /// Whether this one counts where both are attached to one target. One without a time is younger than any with.
    pub fn beats(&self, other: &TrafficPolicy) -> bool {
        let rank = |policy: &TrafficPolicy| {
            (policy.created.is_none(), policy.created, policy.namespace.clone(), policy.name.clone())
        };
        rank(self) < rank(other)
    }
}

/// What a policy is attached to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    /// Its kind.
    pub kind: TargetKind,
    /// Its name, in the policy's namespace.
    pub name: Arc<str>,
}

/// The kinds that a policy can be attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TargetKind {
    /// v1 Service
    Service,
    /// gateway.networking.k8s.io/v1 HTTPRoute
    HttpRoute,
    /// gateway.networking.k8s.io/v1 GRPCRoute
    GrpcRoute,
}

impl fmt::Display for TargetKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TargetKind::Service => "Service",
            TargetKind::HttpRoute => "HTTPRoute",
            TargetKind::GrpcRoute => "GRPCRoute",
        })
    }
}

/// What one policy says; None and empty: nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// Of a Service: how endpoints are used.
    pub endpoints: Endpoints,
    /// Of a Service: the budget of its retries.
    pub budget: Option<RetryBudget>,
    /// How long things may take.
    pub timeouts: Option<Timeouts>,
    /// What is tried again.
    pub retry: Option<Retry>,
    /// How many requests pass.
    pub rate_limits: Vec<RateLimit>,
    /// What goes wrong on purpose.
    pub faults: Vec<Fault>,
    /// Whether a client comes to the same endpoint again.
    pub session: Option<Session>,
}

/// How a Service's endpoints are used.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Endpoints {
    /// Which endpoint a request goes to.
    pub balance: Balance,
    /// Whether near endpoints come first.
    pub locality: Locality,
    /// How long a new endpoint takes to its full load; None: none.
    pub slow_start: Option<Duration>,
    /// How much may be under way to the Service as a whole, from this node.
    pub of_service: PoolLimits,
    /// How much may be under way to each endpoint, from this node.
    pub of_endpoint: PoolLimits,
    /// When endpoints are left out for a while; None: never.
    pub outlier: Option<Outlier>,
    /// Below this share of endpoints in use, in percent, ejections are ignored; 0: never.
    pub panic_percent: Panic,
}

/// A panic threshold, in percent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Panic(pub u32);

impl Default for Panic {
    fn default() -> Self {
        Self(limits::PANIC_PERCENT)
    }
}

/// Which endpoint a request goes to.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Balance {
    /// Of two at random the one with the smaller product of round trip (peak-sensitive moving average) and requests
    /// under way. The default.
    #[default]
    PeakEwma,
    /// Of two at random the one with fewer requests under way.
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// Any.
    Random,
    /// The one that the key leads to; the next on the ring where that one is ejected.
    ConsistentHash(HashKey),
}

/// What a consistent hash is taken of. A request without it goes anywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashKey {
    /// The first value of a header.
    Header(HeaderName),
    /// A cookie.
    Cookie(Arc<str>),
    /// The IP of the client's pod.
    SourceIp,
    /// The client's identity.
    SourceIdentity,
}

/// Whether near endpoints come first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Locality {
    /// Distance plays no part. What the Service's trafficDistribution says holds all the same: it chooses the endpoints
    /// among which this chooses.
    #[default]
    Ignore,
    /// This node, then this zone, then elsewhere: as far out as it takes to find enough healthy endpoints.
    Failover,
    /// So much to each, as far as healthy endpoints are there.
    Weighted {
        /// This node.
        node: u32,
        /// Other nodes of this zone.
        zone: u32,
        /// Elsewhere.
        elsewhere: u32,
    },
}

/// How much may be under way; None: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolLimits {
    /// Connections.
    pub connections: Option<u32>,
    /// Requests that wait for a connection.
    pub pending: Option<u32>,
    /// Requests.
    pub requests: Option<u32>,
    /// Retries.
    pub retries: Option<u32>,
}

/// When an endpoint is left out for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outlier {
    /// So many 5xx and failures in a row; None: not for that.
    pub consecutive_5xx: Option<u32>,
    /// So many 502, 503, 504 and failures (of connecting, resets, timeouts) in a row; None: not for that.
    pub consecutive_gateway: Option<u32>,
    /// A success rate that far below the others'; None: not for that.
    pub success_rate: Option<SuccessRate>,
    /// How often success rates are compared; a healthy endpoint is forgiven one ejection as often.
    pub interval: Duration,
    /// Length of the first ejection; the n-th is n times as long.
    pub ejection: Duration,
    /// Length of the longest.
    pub longest: Duration,
    /// The share of endpoints, in percent, that may be ejected at a time; at least one where there are two or more.
    pub share: u32,
}

impl Default for Outlier {
    fn default() -> Self {
        Self {
            consecutive_5xx: None,
            consecutive_gateway: Some(limits::OUTLIER_CONSECUTIVE),
            success_rate: None,
            interval: limits::OUTLIER_INTERVAL,
            ejection: limits::OUTLIER_EJECTION,
            longest: limits::OUTLIER_LONGEST,
            share: limits::OUTLIER_SHARE,
        }
    }
}

/// How success rates are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SuccessRate {
    /// Endpoints that must have enough requests.
    pub hosts: u32,
    /// Requests of an interval that are enough.
    pub requests: u32,
    /// Thousandths of the standard deviation below the mean.
    pub deviation: u32,
}

impl Default for SuccessRate {
    fn default() -> Self {
        Self { hosts: limits::OUTLIER_HOSTS, requests: limits::OUTLIER_REQUESTS, deviation: limits::OUTLIER_DEVIATION }
    }
}

/// How long things may take; None: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// From the whole request to the end of the response, retries included. 504.
    pub request: Option<Duration>,
    /// From one try's request to the response's headers. 504, or another try.
    pub per_try: Option<Duration>,
    /// Without a byte in either direction, once the response has begun or the connection is upgraded. Reset.
    pub idle: Option<Duration>,
    /// Of a connection to an endpoint. 504, or another try.
    pub connect: Option<Duration>,
}

impl Timeouts {
    /// These, and where they are silent, those.
    #[must_use]
    pub fn or(self, wider: Timeouts) -> Timeouts {
        Timeouts {
            request: self.request.or(wider.request),
            per_try: self.per_try.or(wider.per_try),
            idle: self.idle.or(wider.idle),
            connect: self.connect.or(wider.connect),
        }
    }
}

/// What is tried again, and how often.
#[derive(Clone, Debug, PartialEq)]
pub struct Retry {
    /// Tries after the first.
    pub attempts: u32,
    /// Status codes.
    pub codes: Vec<StatusCode>,
    /// grpc-status values; to list one says that calls which end so may be made twice.
    pub grpc_codes: Vec<u32>,
    /// The connection failed: nothing was sent.
    pub connect_failure: bool,
    /// The endpoint says that it did not look at the request (HTTP/2 REFUSED_STREAM, a stream beyond GOAWAY).
    pub refused_stream: bool,
    /// The connection or stream ended before a response began.
    pub reset: bool,
    /// A try took too long.
    pub per_try_timeout: bool,
    /// Also methods that are not idempotent (RFC 9110, section 9.2.2), after failures that do not say whether the
    /// request was seen.
    pub not_idempotent: bool,
    /// The shortest pause before the first retry.
    pub backoff: Duration,
    /// The longest.
    pub longest_backoff: Duration,
    /// How much of the body is kept; a longer one is sent once.
    pub body: u64,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: limits::RETRY_ATTEMPTS,
            codes: vec![StatusCode::BAD_GATEWAY, StatusCode::SERVICE_UNAVAILABLE, StatusCode::GATEWAY_TIMEOUT],
            grpc_codes: Vec::new(),
            connect_failure: true,
            refused_stream: true,
            reset: true,
            per_try_timeout: true,
            not_idempotent: false,
            backoff: limits::RETRY_BACKOFF,
            longest_backoff: limits::RETRY_BACKOFF.saturating_mul(limits::RETRY_BACKOFF_GROWTH),
            body: limits::RETRY_BODY,
        }
    }
}

/// How many retries there may be: GEP-3388.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryBudget {
    /// The share of all requests, retries included, in percent.
    pub percent: u32,
    /// The window.
    pub interval: Duration,
    /// Retries that are allowed however few requests there are, within `min_interval`.
    pub min_retries: u32,
    /// Of those.
    pub min_interval: Duration,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self {
            percent: limits::BUDGET_PERCENT,
            interval: limits::BUDGET_INTERVAL,
            min_retries: limits::BUDGET_MIN_PER_SECOND,
            min_interval: Duration::from_secs(1),
        }
    }
}

/// How many requests pass.
#[derive(Clone, Debug, PartialEq)]
pub struct RateLimit {
    /// Its name in answers, logs and metrics; unique in its policy.
    pub name: Arc<str>,
    /// Requests.
    pub requests: u32,
    /// In this time.
    pub per: Duration,
    /// Requests that may come at once.
    pub burst: u32,
    /// What has a bucket of its own.
    pub key: RateKey,
    /// Whether no identity can take what is due to another. With `RateKey::All` only.
    pub fair: bool,
    /// Of what the rate holds.
    pub scope: RateScope,
    /// Requests that it is about.
    pub when: RequestMatch,
}

/// What has a bucket of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RateKey {
    /// The target of the policy: all requests together.
    All,
    /// Each identity. Callers without one share one bucket.
    SourceIdentity,
    /// Each namespace of callers. Callers without identity share one bucket.
    SourceNamespace,
    /// Each value of a header. Requests without it share one bucket.
    Header(HeaderName),
}

/// Of what a rate holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RateScope {
    /// Each node has the whole rate.
    #[default]
    Node,
    /// Each node has its share of the rate: [`super::rate::share`].
    Mesh,
}

/// What goes wrong on purpose.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// Its name in logs and metrics; unique in its policy.
    pub name: Arc<str>,
    /// Requests that it is about.
    pub when: RequestMatch,
    /// How many of these are delayed, and by how much.
    pub delay: Option<(Share, Delay)>,
    /// How many of these are answered by the mesh, and how.
    pub abort: Option<(Share, Abort)>,
}

/// So many of so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Of `denominator`.
    pub numerator: u32,
    /// Zero: none.
    pub denominator: u32,
}

impl Share {
    /// So many percent.
    pub fn percent(percent: u32) -> Self {
        Self { numerator: percent, denominator: 100 }
    }
}

/// How long a request is delayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delay {
    /// Always the same.
    Fixed(Duration),
    /// Anything between, equally likely.
    Uniform {
        /// The shortest.
        least: Duration,
        /// The longest.
        most: Duration,
    },
    /// Many short, few long.
    Exponential {
        /// The mean before the cut.
        mean: Duration,
        /// Longer ones are cut to this.
        most: Duration,
    },
}

/// What is answered instead of sending the request on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abort {
    /// A status code.
    Http(StatusCode),
    /// A grpc-status.
    Grpc(u32),
}

/// Whether a client comes to the same endpoint again: GEP-1619.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The name of the cookie or header.
    pub name: Arc<str>,
    /// By cookie or by header.
    pub by: SessionBy,
    /// How long it lasts at most.
    pub absolute_timeout: Option<Duration>,
}

/// Where a session's token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionBy {
    /// A cookie that ends with the client's session, or, if permanent, with `absolute_timeout`.
    Cookie {
        /// Whether it is permanent.
        permanent: bool,
    },
    /// A header.
    Header,
}

/// Requests that something is about; all that is given must hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestMatch {
    /// One of these; empty: any.
    pub methods: Vec<Method>,
    /// One of these; empty: any.
    pub paths: Vec<PathMatch>,
    /// Each of these.
    pub headers: Vec<(HeaderName, HeaderMatch)>,
    /// One of these; empty: anyone.
    pub sources: Vec<SourceMatch>,
}

/// How a path (without the query) is matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathMatch {
    /// To the byte.
    Exact(Arc<str>),
    /// Whole segments, as in an HTTPRoute.
    Prefix(Arc<str>),
}

/// How a header is matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderMatch {
    /// One of its values, to the byte.
    Exact(HeaderValue),
    /// It is there.
    Present,
}

/// Who sent the request, by the identity of the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceMatch {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The service account; None: any of the namespace.
    pub service_account: Option<Arc<str>>,
}

/// What holds for the requests of one route to one Service: the two policies put together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Traffic {
    /// The policy of the Service.
    service: Option<Arc<Settings>>,
    /// The policy of the route.
    route: Option<Arc<Settings>>,
}

/// What holds where no policy says a word.
static DEFAULT_ENDPOINTS: Endpoints = Endpoints {
    balance: Balance::PeakEwma,
    locality: Locality::Ignore,
    slow_start: None,
    of_service: PoolLimits { connections: None, pending: None, requests: None, retries: None },
    of_endpoint: PoolLimits { connections: None, pending: None, requests: None, retries: None },
    outlier: None,
    panic_percent: Panic(limits::PANIC_PERCENT),
};

impl Traffic {
    /// No policy says a word.
    pub fn is_silent(&self) -> bool {
        self.service.is_none() && self.route.is_none()
    }

    /// Puts the policy of a Service and that of a route together.
    pub fn of(service: Option<&Arc<Settings>>, route: Option<&Arc<Settings>>) -> Self {
        Self { service: service.cloned(), route: route.cloned() }
    }

    /// How the Service's endpoints are used.
    pub fn endpoints(&self) -> &Endpoints {
        self.service.as_ref().map_or(&DEFAULT_ENDPOINTS, |settings| &settings.endpoints)
    }

    /// The budget of the Service's retries.
    pub fn budget(&self) -> RetryBudget {
        self.service.as_ref().and_then(|settings| settings.budget).unwrap_or_default()
    }

    /// How long things may take: each by the route, then by the Service. What an HTTPRoute itself says goes before both.
    pub fn timeouts(&self) -> Timeouts {
        let by = |settings: &Option<Arc<Settings>>| settings.as_ref().and_then(|settings| settings.timeouts);
        by(&self.route).unwrap_or_default().or(by(&self.service).unwrap_or_default())
    }

    /// What is tried again. What an HTTPRoute itself says goes before it.
    pub fn retry(&self) -> Option<&Retry> {
        self.narrowest(|settings| settings.retry.as_ref())
    }

    /// Whether a client comes to the same endpoint again. What an HTTPRoute itself says goes before it.
    pub fn session(&self) -> Option<&Session> {
        self.narrowest(|settings| settings.session.as_ref())
    }

    /// What goes wrong on purpose: what the route says, else what the Service says.
    pub fn faults(&self) -> &[Fault] {
        self.narrowest(|settings| Some(&*settings.faults).filter(|faults| !faults.is_empty())).unwrap_or_default()
    }

    /// How many requests pass: the limits of the Service and those of the route.
    pub fn rate_limits(&self) -> impl Iterator<Item = (TargetLevel, &RateLimit)> {
        let both = [(TargetLevel::Service, &self.service), (TargetLevel::Route, &self.route)];
        both.into_iter().flat_map(|(level, settings)| {
            let limits = settings.as_ref().map(|settings| &*settings.rate_limits).unwrap_or_default();
            limits.iter().map(move |limit| (level, limit))
        })
    }

    fn narrowest<'a, T>(&'a self, section: impl Fn(&'a Settings) -> Option<T>) -> Option<T> {
        [&self.route, &self.service].into_iter().flatten().find_map(|settings| section(settings))
    }
}

/// Whose policy it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TargetLevel {
    /// The Service's.
    Service,
    /// The route's.
    Route,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_policy_the_defaults_hold() {
        let traffic = Traffic::default();
        assert_eq!(*traffic.endpoints(), Endpoints::default());
        assert_eq!(traffic.endpoints().balance, Balance::PeakEwma);
        assert_eq!(
            traffic.budget(),
            RetryBudget { percent: 20, interval: Duration::from_secs(10), ..Default::default() }
        );
        assert_eq!(traffic.timeouts(), Timeouts::default());
        assert_eq!(traffic.retry(), None);
        assert!(traffic.faults().is_empty());
        assert_eq!(traffic.rate_limits().count(), 0);
    }

    #[test]
    fn the_route_goes_before_the_service() {
        let seconds = |n| Some(Duration::from_secs(n));
        let retry = |attempts| Some(Retry { attempts, ..Retry::default() });
        let limit = |name: &str| RateLimit {
            name: name.into(),
            requests: 1,
            per: Duration::from_secs(1),
            burst: 1,
            key: RateKey::All,
            fair: false,
            scope: RateScope::Node,
            when: RequestMatch::default(),
        };
        let service = Arc::new(Settings {
            timeouts: Some(Timeouts { request: seconds(10), connect: seconds(1), ..Timeouts::default() }),
            retry: retry(1),
            rate_limits: vec![limit("service")],
            ..Settings::default()
        });
        let route = Arc::new(Settings {
            timeouts: Some(Timeouts { request: seconds(3), ..Timeouts::default() }),
            retry: retry(2),
            rate_limits: vec![limit("route")],
            ..Settings::default()
        });
        let both = Traffic::of(Some(&service), Some(&route));
        assert_eq!(both.timeouts(), Timeouts { request: seconds(3), connect: seconds(1), ..Timeouts::default() });
        assert_eq!(both.retry().map(|retry| retry.attempts), Some(2));
        let names: Vec<&str> = both.rate_limits().map(|(_, limit)| &*limit.name).collect();
        assert_eq!(names, ["service", "route"]);
        let one = Traffic::of(Some(&service), None);
        assert_eq!(one.retry().map(|retry| retry.attempts), Some(1));
    }

    #[test]
    fn the_oldest_policy_of_a_target_counts() {
        let policy = |created, name: &str| TrafficPolicy {
            namespace: "shop".into(),
            name: name.into(),
            created,
            targets: Vec::new(),
            settings: Arc::default(),
        };
        let table = [
            (policy(Some(1), "z"), policy(Some(2), "a"), true),
            (policy(Some(2), "a"), policy(Some(1), "z"), false),
            (policy(Some(1), "a"), policy(Some(1), "b"), true),
            (policy(None, "a"), policy(Some(9), "b"), false),
            (policy(None, "a"), policy(None, "b"), true),
        ];
        for (one, other, wins) in table {
            assert_eq!(one.beats(&other), wins, "{one:?} {other:?}");
            assert_eq!(other.beats(&one), !wins);
        }
    }
}
