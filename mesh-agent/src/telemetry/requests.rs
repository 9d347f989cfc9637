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
//! Cardinality is bounded by [`MAX_REQUEST_SERIES`]: methods are those that OpenTelemetry knows, everything else
//! `_OTHER`; routes and error types are words of the configuration and of the code.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderValue, Method, StatusCode, Version};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::Direction;
use super::series::OVERFLOW_NAME;
use super::spans::Span;
use crate::spiffe::SpiffeId;

/// How many sets of request labels are kept. Each is 19 lines of some 350 bytes in a scrape: 14 MB at most.
pub const MAX_REQUEST_SERIES: usize = 2048;

/// Upper bounds in seconds: OpenTelemetry's advice, with one millisecond besides, since a mesh is asked about less than
/// five.
const BUCKETS: [f64; 15] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

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
    /// This agent's part of the trace, where it is sampled.
    pub span: Option<Span>,
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
            span: None,
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
struct Key {
    direction: Direction,
    source: Option<SpiffeId>,
    destination: Option<SpiffeId>,
    service: Option<Arc<str>>,
    route: Option<Arc<str>>,
    method: &'static str,
    status: &'static str,
    grpc_status: Option<u16>,
    error: &'static str,
}

/// The counters of one key.
#[derive(Debug, Default)]
struct Series {
    /// By bucket; the last has what is above all bounds.
    durations: [AtomicU64; BUCKETS.len() + 1],
    /// In microseconds.
    total: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
}

impl Series {
    fn count(&self, record: &RequestRecord) {
        let seconds = record.duration.as_secs_f64();
        let bucket = BUCKETS.iter().position(|bound| seconds <= *bound).unwrap_or(BUCKETS.len());
        if let Some(bucket) = self.durations.get(bucket) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        let micros = u64::try_from(record.duration.as_micros()).unwrap_or(u64::MAX);
        self.total.fetch_add(micros, Ordering::Relaxed);
        self.sent.fetch_add(record.bytes_sent, Ordering::Relaxed);
        self.received.fetch_add(record.bytes_received, Ordering::Relaxed);
    }
}

/// All keys and their counters.
#[derive(Debug)]
pub(super) struct RequestTable {
    by_key: RwLock<HashMap<Key, Arc<Series>>>,
    overflow: [Arc<Series>; 2],
    overflowed: AtomicU64,
    capacity: usize,
}

/// Remembers whose counters the last request moved: most requests of a connection are alike, and those meet no lock.
#[derive(Debug, Default)]
pub struct RequestMemo {
    last: RefCell<Option<(Key, Arc<Series>)>>,
}

impl RequestTable {
    pub(super) fn new(capacity: usize) -> Self {
        Self { by_key: RwLock::default(), overflow: Default::default(), overflowed: AtomicU64::new(0), capacity }
    }

    /// Counts a request.
    pub(super) fn count(&self, record: &RequestRecord, memo: &RequestMemo) {
        let key = record.key();
        if let Some((last, series)) = &*memo.last.borrow()
            && *last == key
        {
            return series.count(record);
        }
        let series = self.series(&key);
        series.count(record);
        memo.last.replace(Some((key, series)));
    }

    fn series(&self, key: &Key) -> Arc<Series> {
        if let Some(series) = self.by_key.read().unwrap_or_else(PoisonError::into_inner).get(key) {
            return series.clone();
        }
        let mut by_key = self.by_key.write().unwrap_or_else(PoisonError::into_inner);
        if !by_key.contains_key(key) && by_key.len() >= self.capacity {
            self.overflowed.fetch_add(1, Ordering::Relaxed);
            let [client, server] = &self.overflow;
            return match key.direction {
                Direction::Outbound => client.clone(),
                Direction::Inbound => server.clone(),
            };
        }
        by_key.entry(key.clone()).or_default().clone()
    }

    fn snapshot(&self, direction: Direction) -> Vec<(Option<Key>, Arc<Series>)> {
        let by_key = self.by_key.read().unwrap_or_else(PoisonError::into_inner);
        let known = by_key.iter().filter(|(key, _)| key.direction == direction);
        let mut all: Vec<_> = known.map(|(key, series)| (Some(key.clone()), series.clone())).collect();
        let [client, server] = &self.overflow;
        let overflow = if direction == Direction::Outbound { client } else { server };
        if overflow.durations.iter().any(|count| count.load(Ordering::Relaxed) > 0) {
            all.push((None, overflow.clone()));
        }
        all
    }
}

/// Shows the table.
#[derive(Debug)]
pub(super) struct RequestCollector(pub Arc<RequestTable>);

/// Picks one counter of a series.
type CounterOf = fn(&Series) -> &AtomicU64;

impl Collector for RequestCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        for (direction, side) in [(Direction::Outbound, "client"), (Direction::Inbound, "server")] {
            let all = self.0.snapshot(direction);
            if all.is_empty() {
                continue;
            }
            let name = format!("http_{side}_request_duration_seconds");
            let help = "Requests, from the head to the end of the answer";
            let mut family = encoder.encode_descriptor(&name, help, None, MetricType::Histogram)?;
            for (key, series) in &all {
                let bounds = BUCKETS.into_iter().chain([f64::MAX]);
                let counts = series.durations.iter().map(|count| count.load(Ordering::Relaxed));
                let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
                let count = buckets.iter().map(|(_, count)| count).sum();
                let seconds = series.total.load(Ordering::Relaxed) as f64 / 1e6;
                family.encode_family(&labels(key))?.encode_histogram::<NoLabelSet>(seconds, count, &buckets, None)?;
            }
            let bytes: [(&str, &str, CounterOf); 2] = [
                ("request_body_size_bytes", "Bytes of requests' bodies", |series| &series.sent),
                ("response_body_size_bytes", "Bytes of answers' bodies", |series| &series.received),
            ];
            for (name, help, counter) in bytes {
                let name = format!("http_{side}_{name}");
                let mut family = encoder.encode_descriptor(&name, help, None, MetricType::Counter)?;
                for (key, series) in &all {
                    let count = counter(series).load(Ordering::Relaxed);
                    family.encode_family(&labels(key))?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
                }
            }
        }
        let overflowed = self.0.overflowed.load(Ordering::Relaxed);
        let help = "Requests counted under the overflow labels, because there were too many label sets";
        let overflow = encoder.encode_descriptor("http_requests_overflow", help, None, MetricType::Counter)?;
        prometheus_client::metrics::counter::ConstCounter::new(overflowed).encode(overflow)
    }
}

fn labels(key: &Option<Key>) -> [(&'static str, String); 10] {
    let names = |identity: Option<&SpiffeId>| {
        identity.map_or_else(Default::default, |id| (id.namespace().to_string(), id.service_account().to_string()))
    };
    let text = |text: Option<&Arc<str>>| text.map(ToString::to_string).unwrap_or_default();
    let other = || OVERFLOW_NAME.to_string();
    let (source, destination, service, route, method, status, grpc, error) = match key {
        Some(key) => (
            names(key.source.as_ref()),
            names(key.destination.as_ref()),
            text(key.service.as_ref()),
            text(key.route.as_ref()),
            key.method.to_string(),
            key.status.to_string(),
            key.grpc_status.map(|status| status.to_string()).unwrap_or_default(),
            key.error.to_string(),
        ),
        None => ((other(), other()), (other(), other()), other(), other(), other(), other(), other(), other()),
    };
    [
        ("source_namespace", source.0),
        ("source_service_account", source.1),
        ("destination_namespace", destination.0),
        ("destination_service_account", destination.1),
        ("server_address", service),
        ("http_route", route),
        ("http_request_method", method),
        ("http_response_status_code", status),
        ("rpc_grpc_status_code", grpc),
        ("error_type", error),
    ]
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
        let table = RequestTable::new(3);
        let memo = RequestMemo::default();
        for number in 0..50 {
            let method = Method::from_bytes(format!("M{number}").as_bytes()).unwrap();
            table.count(&record(method, 200), &memo);
        }
        assert_eq!(table.snapshot(Direction::Outbound).len(), 1, "unknown methods are one");
        for status in [200, 201, 301, 404, 500] {
            table.count(&record(Method::GET, status), &memo);
        }
        assert_eq!(table.snapshot(Direction::Outbound).len(), 4, "three keys and the overflow");
        assert_eq!(table.overflowed.load(Ordering::Relaxed), 2);
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
