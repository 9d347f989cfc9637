//! A route as discovery hands it over: read, checked, references resolved as far as the object alone allows.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, StatusCode};
use regex::Regex;

/// The kinds of routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RouteKind {
    /// gateway.networking.k8s.io/v1 HTTPRoute
    Http,
    /// gateway.networking.k8s.io/v1 GRPCRoute
    Grpc,
    /// gateway.networking.k8s.io/v1 TCPRoute
    Tcp,
    /// gateway.networking.k8s.io/v1 TLSRoute
    Tls,
}

/// One route object.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// Its kind.
    pub kind: RouteKind,
    /// metadata.namespace
    pub namespace: Arc<str>,
    /// metadata.name
    pub name: Arc<str>,
    /// metadata.creationTimestamp in seconds since the epoch: among equal matches the oldest wins, then `namespace/name`.
    pub created: i64,
    /// The Services that it is attached to.
    pub parents: Vec<Parent>,
    /// What it does.
    pub rules: Rules,
}

impl Route {
    /// The order among equals: "the oldest Route based on creation timestamp; the Route appearing first in alphabetical
    /// order by {namespace}/{name}".
    pub fn age(&self) -> (i64, String) {
        (self.created, format!("{}/{}", self.namespace, self.name))
    }
}

/// A Service that a route is attached to. A parent in the route's own namespace makes a producer route, which every
/// client sees; one in another namespace a consumer route, which clients of the route's namespace alone see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parent {
    /// The Service's namespace.
    pub namespace: Arc<str>,
    /// The Service's name.
    pub name: Arc<str>,
    /// The Service's port; absent: all.
    pub port: Option<u16>,
    /// The name of the Service's port; absent: all.
    pub section: Option<Arc<str>>,
}

/// Rules by what they look at.
#[derive(Clone, Debug, PartialEq)]
pub enum Rules {
    /// HTTPRoute and GRPCRoute: requests.
    Requests(Vec<Rule>),
    /// TCPRoute: every connection.
    Connections(Vec<Backend>),
    /// TLSRoute: connections by the server name in the ClientHello.
    ServerNames(TlsRule),
}

/// Where connections of some server names lead.
#[derive(Clone, Debug, PartialEq)]
pub struct TlsRule {
    /// Lowercase; `*.` at the front stands for one or more labels. Empty: every name.
    pub hostnames: Vec<Arc<str>>,
    /// Where to.
    pub backends: Vec<Backend>,
}

/// One rule of an HTTPRoute or a GRPCRoute.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// rules[].name
    pub name: Option<Arc<str>>,
    /// One is enough. Never empty: the default is a match of the prefix `/`, for gRPC of everything.
    pub matches: Vec<Match>,
    /// In this order.
    pub filters: Vec<Filter>,
    /// By weight. With none the answer is 500, unless a filter redirects.
    pub backends: Vec<Backend>,
    /// GEP-1742
    pub timeouts: Timeouts,
    /// GEP-1731, or from a TrafficPolicy.
    pub retry: Option<Retry>,
    /// GEP-1619, or from a TrafficPolicy.
    pub session: Option<Session>,
}

/// All of it must match.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Match {
    /// The path, without the query.
    pub path: Option<PathMatch>,
    /// The method.
    pub method: Option<Method>,
    /// Each header must match; of a header that comes several times the values joined by commas.
    pub headers: Vec<(HeaderName, Text)>,
    /// Each query parameter must match; of one that comes several times the first.
    pub query: Vec<(Arc<str>, Text)>,
}

/// How a path is matched.
#[derive(Clone, Debug)]
pub enum PathMatch {
    /// The whole path, to the byte.
    Exact(Arc<str>),
    /// Whole segments; without a slash at the end unless it is `/` itself.
    Prefix(Arc<str>),
    /// Anchored at both ends: `routes::anchored` makes it.
    Regex(Regex),
    /// A gRPC service and method: `grpc::call` makes it.
    Call(Call),
}

/// A gRPC service and method as a path, and how far they say what they want, which decides between them.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    pub(super) service: Said,
    pub(super) method: Said,
    pub(super) path: Box<PathMatch>,
}

impl Call {
    /// As a path.
    pub fn path(&self) -> &PathMatch {
        &self.path
    }
}

/// How far a name is given; what comes first here goes before the others. Exact names that match one request are equally
/// long, so that the number of their characters decides nothing between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Said {
    Exact,
    Regex,
    Nothing,
}

/// How a value is matched.
#[derive(Clone, Debug)]
pub enum Text {
    /// To the byte.
    Exact(Arc<str>),
    /// Anchored at both ends: `routes::anchored` makes it.
    Regex(Regex),
}

impl PartialEq for PathMatch {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (PathMatch::Exact(a), PathMatch::Exact(b)) | (PathMatch::Prefix(a), PathMatch::Prefix(b)) => a == b,
            (PathMatch::Regex(a), PathMatch::Regex(b)) => a.as_str() == b.as_str(),
            (PathMatch::Call(a), PathMatch::Call(b)) => a == b,
            _ => false,
        }
    }
}

impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Text::Exact(a), Text::Exact(b)) => a == b,
            (Text::Regex(a), Text::Regex(b)) => a.as_str() == b.as_str(),
            _ => false,
        }
    }
}

/// What happens to a request on its way, or instead of it.
#[derive(Clone, Debug, PartialEq)]
pub enum Filter {
    /// RequestHeaderModifier
    RequestHeaders(HeaderChange),
    /// ResponseHeaderModifier
    ResponseHeaders(HeaderChange),
    /// RequestRedirect
    Redirect(Redirect),
    /// URLRewrite
    Rewrite(UrlRewrite),
    /// RequestMirror
    Mirror(Mirror),
    /// CORS
    Cors(Cors),
}

/// Set, then add, then remove.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderChange {
    /// Replaced, or added where absent.
    pub set: Vec<NameValue>,
    /// Added to what is there.
    pub add: Vec<NameValue>,
    /// Removed.
    pub remove: Vec<HeaderName>,
}

/// A header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameValue {
    /// Its name.
    pub name: HeaderName,
    /// Its value.
    pub value: HeaderValue,
}

/// RequestRedirect: what is absent stays as the request has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// `http` or `https`.
    pub scheme: Option<Arc<str>>,
    /// The host, without a port.
    pub hostname: Option<Arc<str>>,
    /// The port. Absent: that of `scheme` where it is given, else the Service's.
    pub port: Option<u16>,
    /// The path.
    pub path: Option<PathRewrite>,
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
}

/// URLRewrite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UrlRewrite {
    /// The new Host.
    pub hostname: Option<Arc<str>>,
    /// The new path.
    pub path: Option<PathRewrite>,
}

/// How a path is changed; the query stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathRewrite {
    /// ReplaceFullPath
    Full(Arc<str>),
    /// ReplacePrefixMatch: the prefix that matched becomes this.
    Prefix(Arc<str>),
}

/// RequestMirror: a copy whose answer nobody waits for.
#[derive(Clone, Debug, PartialEq)]
pub struct Mirror {
    /// Where to.
    pub backend: BackendRef,
    /// Of how many.
    pub share: Fraction,
}

/// So many of so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fraction {
    /// Of `denominator`.
    pub numerator: u32,
    /// Not zero.
    pub denominator: u32,
}

/// CORS, as the Fetch standard and Gateway API have it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cors {
    /// Such as `https://www.example.com`, `https://*.example.com` or `*`.
    pub allow_origins: Vec<Arc<str>>,
    /// Access-Control-Allow-Credentials
    pub allow_credentials: bool,
    /// Methods, or `*`.
    pub allow_methods: Vec<Arc<str>>,
    /// Header names, or `*`.
    pub allow_headers: Vec<Arc<str>>,
    /// Header names, or `*`.
    pub expose_headers: Vec<Arc<str>>,
    /// Access-Control-Max-Age
    pub max_age: Duration,
}

/// A backend with its share.
#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    /// Where to.
    pub target: BackendRef,
    /// Of the sum of all weights; zero: nothing.
    pub weight: u32,
    /// For requests that go there; after those of the rule.
    pub filters: Vec<Filter>,
}

/// What a backendRef says. Requests to one that is not a Service that may be referred to are answered with 500.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendRef {
    /// A port of a Service. Whether both are there, and whether a ReferenceGrant allows another namespace, is settled
    /// with the world.
    Service {
        /// Its namespace.
        namespace: Arc<str>,
        /// Its name.
        name: Arc<str>,
        /// Its port.
        port: u16,
    },
    /// A reference that the object itself makes wrong, such as to another kind.
    Wrong {
        /// For people and conditions.
        reason: Arc<str>,
    },
}

/// GEP-1742; absent or zero: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// From the whole request to the whole response.
    pub request: Option<Duration>,
    /// Of one try.
    pub backend_request: Option<Duration>,
}

/// GEP-1731
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Status codes that are tried again, besides failures to connect.
    pub codes: Vec<StatusCode>,
    /// Tries after the first.
    pub attempts: u32,
    /// The shortest pause before a try.
    pub backoff: Option<Duration>,
}

/// GEP-1619: a client comes to the same endpoint again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The name of the cookie or header.
    pub name: Arc<str>,
    /// By cookie; else by header.
    pub cookie: Option<Cookie>,
    /// How long it lasts.
    pub absolute_timeout: Option<Duration>,
}

/// The cookie of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cookie {
    /// Expires with `absolute_timeout`; else with the client's session.
    pub permanent: bool,
}
