//! Requests: what is told about one, and the counters of all.
//!
//! | metric | kind | labels |
//! |---|---|---|
//! | `nodemesh_http_client_request_duration_seconds` | histogram | *request*; requests of this node's pods, from the head's last byte to the answer's |
//! | `nodemesh_http_server_request_duration_seconds` | histogram | *request*; requests to this node's pods |
//! | `nodemesh_http_client_request_body_size_bytes_total`, `nodemesh_http_server_…` | counter | *request* |
//! | `nodemesh_http_client_response_body_size_bytes_total`, `nodemesh_http_server_…` | counter | *request* |
//! | `nodemesh_http_requests_overflow_total` | counter | – ; requests counted under `_overflow` |
//!
//! *request* = `source_namespace`, `source_service_account`, `destination_namespace`, `destination_service_account`,
//! `server_address` (`<namespace>/<name>` of the Service), `http_route`, `http_request_method`,
//! `http_response_status_code` (its class, such as `2xx`; of gRPC too), `rpc_grpc_status_code` (of gRPC), `error_type`
//! (empty when an application answered). The names are OpenTelemetry's (semantic conventions 1.44) as Prometheus writes
//! them.
//!
//! A bucket of a histogram has the trace of the last sampled request in it as its exemplar.
//!
//! Cardinality is bounded by the [`Table`]: methods are those that OpenTelemetry knows, everything else `_OTHER`; routes
//! and error types are words of the configuration and of the code.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderValue, Method, StatusCode, Version};

use super::Direction;
use super::exposition::{self, Distribution, Shape};
use super::istio;
use super::spans::{Events, Span};
use super::table::{Counters, Entry, Key as TableKey, OVERFLOW_NAME, Owner, Present, Table};
use super::tapped::TappedHeaders;
use crate::spiffe::SpiffeId;

/// How many lines of a scrape a key takes: its buckets, sum and count, and both ways' bytes.
pub const LINES_OF_REQUESTS: usize = BUCKETS.len() + 1 + 2 + 2;

/// Upper bounds in seconds: OpenTelemetry's advice, with one millisecond besides, since a mesh is asked about less than
/// five.
const BUCKETS: [f64; 15] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

static DURATION: Shape = Shape { bounds: &BUCKETS, per_unit: 1e6 };

/// How a request was answered. Reasons are words from the code: they are metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestResult {
    /// By an application, to the last byte.
    Answered,
    /// By this agent.
    Local {
        /// Why.
        reason: &'static str,
    },
    /// The client went away before it had the whole answer.
    ClientGone,
    /// The answer, or the request, broke off on its way.
    Broken {
        /// What broke.
        reason: &'static str,
    },
}

impl RequestResult {
    /// Why, when no application's answer came through whole.
    pub fn reason(self) -> Option<&'static str> {
        match self {
            RequestResult::Answered => None,
            RequestResult::ClientGone => Some("client-gone"),
            RequestResult::Local { reason } | RequestResult::Broken { reason } => Some(reason),
        }
    }
}

/// One request, told at its end.
#[derive(Clone, Debug)]
pub struct RequestRecord {
    /// Which journey.
    pub direction: Direction,
    /// `<namespace>/<name>` of the pod that asked, where known.
    pub source_pod: Option<Arc<str>>,
    /// Who asked.
    pub source_identity: Option<SpiffeId>,
    /// The TCP peer that asked.
    pub client: SocketAddr,
    /// `<namespace>/<name>` of the Service.
    pub service: Option<Arc<str>>,
    /// `<namespace>/<name>` of the pod that answered, where known.
    pub destination_pod: Option<Arc<str>>,
    /// Who answered, where known.
    pub destination_identity: Option<SpiffeId>,
    /// Where the request was sent, when it got that far.
    pub server: Option<SocketAddr>,
    /// What the client speaks.
    pub version: Version,
    /// Absent where what came was no request.
    pub method: Option<Method>,
    /// Host, or `:authority`.
    pub host: Option<HeaderValue>,
    /// As it came; the query is never told.
    pub path: Option<PathAndQuery>,
    /// The route that matched, by its name.
    pub route: Option<Arc<str>>,
    /// What the client was told.
    pub status: Option<StatusCode>,
    /// What gRPC says in its own way.
    pub grpc_status: Option<u16>,
    /// How it was answered.
    pub result: RequestResult,
    /// The policy that let it pass or refused it, as `namespace/name`, where one did; of the application's node.
    pub policy: Option<Arc<str>>,
    /// The number of the rule in there, from 0.
    pub rule: Option<usize>,
    /// The AUDIT policies that matched, as `namespace/name`.
    pub audited: Vec<Arc<str>>,
    /// Who asks by a valid token, as `<issuer>/<subject>`.
    pub principal: Option<Arc<str>>,
    /// Who was asked about it last, as `namespace/name`, and the word for what came of it.
    pub authorizer: Option<(Arc<str>, &'static str)>,
    /// Tries after the first.
    pub retries: u32,
    /// The rate limit or the fault of a TrafficPolicy that had a say, by its name.
    pub traffic_rule: Option<Arc<str>>,
    /// The request's own.
    pub traceparent: Option<HeaderValue>,
    /// What of its headers is told; kept where somebody listens for that.
    pub headers: Option<Arc<TappedHeaders>>,
    /// This agent's part of the trace, where it is sampled.
    pub span: Option<Span>,
    /// What happened to it on its way; kept where it is sampled.
    pub events: Events,
    /// Bytes of the request's body.
    pub bytes_sent: u64,
    /// Bytes of the answer's body.
    pub bytes_received: u64,
    /// From the head to the end of the answer.
    pub duration: Duration,
}

impl RequestRecord {
    /// A request of which nothing is known.
    pub fn blank(direction: Direction, client: SocketAddr) -> Self {
        Self {
            direction,
            source_pod: None,
            source_identity: None,
            client,
            service: None,
            destination_pod: None,
            destination_identity: None,
            server: None,
            version: Version::HTTP_11,
            method: None,
            host: None,
            path: None,
            route: None,
            status: None,
            grpc_status: None,
            result: RequestResult::Answered,
            policy: None,
            rule: None,
            audited: Vec::new(),
            principal: None,
            authorizer: None,
            retries: 0,
            traffic_rule: None,
            traceparent: None,
            headers: None,
            span: None,
            events: Events::default(),
            bytes_sent: 0,
            bytes_received: 0,
            duration: Duration::ZERO,
        }
    }

    /// The kind of its result, in the words of the access log's filter.
    pub fn kind(&self) -> &'static str {
        let is_client_error = self.status.is_some_and(|status| status.is_client_error());
        match self.result {
            // Whatever the application, or a route's redirect, said.
            RequestResult::Answered | RequestResult::ClientGone => "ok",
            RequestResult::Local { .. } if self.status == Some(StatusCode::FORBIDDEN) => "denied",
            RequestResult::Local { .. } if is_client_error => "refused",
            RequestResult::Local { .. } | RequestResult::Broken { .. } => "failed",
        }
    }

    /// The trace id of `traceparent`, if it is one (W3C Trace Context 3.2).
    pub fn trace_id(&self) -> Option<&str> {
        let text = self.traceparent.as_ref()?.to_str().ok()?;
        let id = text.get(3..35)?;
        let is_hex = id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        (text.as_bytes().get(2) == Some(&b'-') && text.as_bytes().get(35) == Some(&b'-') && is_hex).then_some(id)
    }

    fn key(&self) -> Key {
        Key {
            direction: self.direction,
            source: self.source_identity.clone(),
            destination: self.destination_identity.clone(),
            service: self.service.clone(),
            route: self.route.clone(),
            method: method(self.method.as_ref()),
            status: class(self.status),
            grpc_status: self.grpc_status.map(|status| status.min(GRPC_UNKNOWN_FROM)),
            error: self.result.reason().unwrap_or(""),
        }
    }
}

/// gRPC's codes end at 16; whatever is above counts as one.
const GRPC_UNKNOWN_FROM: u16 = 17;

fn method(method: Option<&Method>) -> &'static str {
    match method {
        Some(&Method::GET) => "GET",
        Some(&Method::POST) => "POST",
        Some(&Method::PUT) => "PUT",
        Some(&Method::DELETE) => "DELETE",
        Some(&Method::HEAD) => "HEAD",
        Some(&Method::OPTIONS) => "OPTIONS",
        Some(&Method::PATCH) => "PATCH",
        Some(&Method::TRACE) => "TRACE",
        Some(&Method::CONNECT) => "CONNECT",
        _ => "_OTHER",
    }
}

fn class(status: Option<StatusCode>) -> &'static str {
    match status.map(|status| status.as_u16() / 100) {
        Some(1) => "1xx",
        Some(2) => "2xx",
        Some(3) => "3xx",
        Some(4) => "4xx",
        Some(5) => "5xx",
        _ => "",
    }
}

/// The labels called *request* above.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub direction: Direction,
    pub source: Option<SpiffeId>,
    pub destination: Option<SpiffeId>,
    pub service: Option<Arc<str>>,
    route: Option<Arc<str>>,
    method: &'static str,
    pub status: &'static str,
    pub grpc_status: Option<u16>,
    pub error: &'static str,
}

impl TableKey for Key {
    fn direction(&self) -> Direction {
        self.direction
    }

    fn is_present(&self, present: &Present) -> bool {
        let is_there = |identity: &Option<SpiffeId>| present.has(identity.as_ref());
        is_there(&self.source) && is_there(&self.destination) && present.has_service(self.service.as_ref())
    }
}

/// The counters of one key.
#[derive(Debug)]
pub(super) struct Series {
    /// In microseconds.
    pub durations: Distribution,
    sent: AtomicU64,
    received: AtomicU64,
}

impl Default for Series {
    fn default() -> Self {
        Self { durations: Distribution::new(&DURATION), sent: AtomicU64::new(0), received: AtomicU64::new(0) }
    }
}

impl Counters for Series {
    fn counted(&self) -> u64 {
        self.durations.count()
    }
}

impl Series {
    /// Of bodies, either way.
    pub fn bytes(&self) -> u64 {
        self.sent.load(Ordering::Relaxed).saturating_add(self.received.load(Ordering::Relaxed))
    }

    fn count(&self, record: &RequestRecord) {
        let micros = u64::try_from(record.duration.as_micros()).unwrap_or(u64::MAX);
        self.durations.observe(micros, record.span.as_ref());
        self.sent.fetch_add(record.bytes_sent, Ordering::Relaxed);
        self.received.fetch_add(record.bytes_received, Ordering::Relaxed);
    }
}

/// Remembers whose counters the last request moved: most requests of a connection are alike, and those meet no lock.
#[derive(Debug, Default)]
pub struct RequestMemo {
    last: RefCell<Option<(Key, Arc<Entry<Series>>)>>,
    pub(super) istio: istio::RequestMemo,
}

/// The counters of all requests.
#[derive(Debug)]
pub(super) struct Requests(Table<Key, Series>);

impl Requests {
    pub fn new(capacity: usize) -> Self {
        Self(Table::new(capacity))
    }

    /// Counts a request.
    pub fn count(&self, record: &RequestRecord, memo: &RequestMemo) {
        let key = record.key();
        if let Some((last, entry)) = &*memo.last.borrow()
            && *last == key
        {
            return entry.counters.count(record);
        }
        let (entry, is_its_own) = self.0.entry(&key);
        entry.counters.count(record);
        memo.last.replace(is_its_own.then_some((key, entry)));
    }

    /// Lets go of what need not be kept.
    pub fn sweep(&self, present: &Present, now: std::time::Instant) {
        self.0.sweep(present, now);
    }

    /// Every key with its counters.
    pub fn snapshot(&self) -> Vec<(Owner<Key>, Arc<Entry<Series>>)> {
        self.0.snapshot()
    }

    /// Writes the families of requests.
    pub fn write(&self, out: &mut String) {
        let all: Vec<_> =
            self.snapshot().into_iter().map(|(owner, entry)| (direction(&owner), labels(&owner), entry)).collect();
        for (direction, side) in [(Direction::Outbound, "client"), (Direction::Inbound, "server")] {
            let of_side = || all.iter().filter(move |(of, ..)| *of == direction);
            if of_side().next().is_none() {
                continue;
            }
            let name = format!("nodemesh_http_{side}_request_duration_seconds");
            exposition::head(out, &name, "histogram", "Requests, from the head to the end of the answer");
            for (_, labels, entry) in of_side() {
                entry.counters.durations.write(out, &name, labels);
            }
            let bytes: [(&str, &str, CounterOf); 2] = [
                ("request_body_size_bytes", "Bytes of requests' bodies", |series| &series.sent),
                ("response_body_size_bytes", "Bytes of answers' bodies", |series| &series.received),
            ];
            for (name, help, counter) in bytes {
                let name = format!("nodemesh_http_{side}_{name}");
                exposition::head(out, &name, "counter", help);
                let name = format!("{name}_total");
                for (_, labels, entry) in of_side() {
                    exposition::sample(out, &name, labels, counter(&entry.counters).load(Ordering::Relaxed));
                }
            }
        }
        let name = "nodemesh_http_requests_overflow";
        let help = "Requests counted under the overflow labels, because there were too many label sets";
        exposition::head(out, name, "counter", help);
        exposition::sample(out, &format!("{name}_total"), "", self.0.overflowed());
    }
}

/// Picks one counter of a series.
type CounterOf = fn(&Series) -> &AtomicU64;

fn direction(owner: &Owner<Key>) -> Direction {
    match owner {
        Owner::Key(key) => key.direction,
        Owner::Overflow(direction) => *direction,
    }
}

const LABELS: [&str; 10] = [
    "source_namespace",
    "source_service_account",
    "destination_namespace",
    "destination_service_account",
    "server_address",
    "http_route",
    "http_request_method",
    "http_response_status_code",
    "rpc_grpc_status_code",
    "error_type",
];

fn labels(owner: &Owner<Key>) -> String {
    let Owner::Key(key) = owner else { return exposition::labels(LABELS.map(|name| (name, OVERFLOW_NAME))) };
    let names = |identity: &'_ Option<SpiffeId>| {
        let names = |id: &SpiffeId| [id.namespace().to_string(), id.service_account().to_string()];
        identity.as_ref().map(names).unwrap_or_default()
    };
    let [source_namespace, source] = names(&key.source);
    let [destination_namespace, destination] = names(&key.destination);
    let grpc = key.grpc_status.map(|status| status.to_string()).unwrap_or_default();
    let values = [
        &source_namespace,
        &source,
        &destination_namespace,
        &destination,
        key.service.as_deref().unwrap_or_default(),
        key.route.as_deref().unwrap_or_default(),
        key.method,
        key.status,
        &grpc,
        key.error,
    ];
    exposition::labels(LABELS.into_iter().zip(values))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(method: Method, status: u16) -> RequestRecord {
        let client = "10.0.0.1:1".parse().unwrap();
        RequestRecord {
            method: Some(method),
            status: StatusCode::from_u16(status).ok(),
            duration: Duration::from_millis(3),
            bytes_sent: 5,
            ..RequestRecord::blank(Direction::Outbound, client)
        }
    }

    #[test]
    fn labels_are_bounded_whatever_is_asked() {
        let table = Requests::new(3);
        let memo = RequestMemo::default();
        for number in 0..50 {
            let method = Method::from_bytes(format!("M{number}").as_bytes()).unwrap();
            table.count(&record(method, 200), &memo);
        }
        assert_eq!(table.0.snapshot().len(), 1, "unknown methods are one");
        for status in [200, 201, 301, 404, 500] {
            table.count(&record(Method::GET, status), &memo);
        }
        assert_eq!(table.0.snapshot().len(), 4, "three keys and the overflow");
        assert_eq!(table.0.overflowed(), 2);
        // What found no place is not remembered as another's.
        table.count(&record(Method::GET, 500), &memo);
        assert_eq!(table.0.overflowed(), 3);
    }

    #[test]
    fn trace_ids() {
        let with = |text: &'static str| RequestRecord {
            traceparent: Some(HeaderValue::from_static(text)),
            ..record(Method::GET, 200)
        };
        let id = "4bf92f3577b34da6a3ce929d0e0e4736";
        assert_eq!(with("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").trace_id(), Some(id));
        for text in ["", "00-4bf9", "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", "xx"] {
            assert_eq!(with(text).trace_id(), None, "{text}");
        }
    }
}
