//! Spans of requests, for a collector that speaks OTLP: one per request and agent, for requests whose trace is sampled.
//!
//! The caller decides: a trace context that comes with a request (W3C Trace Context, or B3) says whether it is sampled,
//! and the span becomes the parent of whatever the application tells. A request without one begins a trace by chance
//! (`--trace-sampling`). Requests that are not sampled pass with the headers that they have; with no collector named, all
//! do.
//!
//! Nothing here waits: what the collector does not take fast enough is lost and counted.

mod context;
mod events;
mod export;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use http::{HeaderMap, StatusCode, Version};
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{SpanData, SpanLinks};
use tokio::sync::mpsc;

use super::{Direction, RequestRecord};
use context::{Context, Decision};

pub use events::{Event, Events, MOST_EVENTS};
pub use export::{Collector, EXPORT_TIMEOUT, Exporter, LINGER, MOST_AT_ONCE};

/// Spans that wait for the collector, of some 2 KiB each.
pub const QUEUE_SPANS: usize = 4096;

/// How many traces of a million are sampled, of those that begin here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampling(u32);

impl Sampling {
    const PER_MILLION: u32 = 1_000_000;

    /// From percent; none beyond 0 to 100.
    pub fn percent(percent: f64) -> Option<Self> {
        (0.0..=100.0).contains(&percent).then(|| Self((percent * f64::from(Self::PER_MILLION) / 100.0).round() as u32))
    }

    /// In percent.
    pub fn as_percent(self) -> f64 {
        f64::from(self.0) * 100.0 / f64::from(Self::PER_MILLION)
    }

    fn takes(self, random: u64) -> bool {
        random % u64::from(Self::PER_MILLION) < u64::from(self.0)
    }
}

/// What a request's part of a trace is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    trace: TraceId,
    id: SpanId,
    parent: Option<SpanId>,
    began: SystemTime,
}

/// Begins spans and hands them to the exporter. Clones are of the same.
#[derive(Clone, Debug, Default)]
pub struct Spans(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    sampling: Sampling,
    queue: mpsc::Sender<SpanData>,
    scope: InstrumentationScope,
    tally: Arc<Tally>,
}

/// What became of spans.
#[derive(Debug, Default)]
pub struct Tally {
    /// The collector has them.
    exported: AtomicU64,
    /// The collector was given them and did not take them.
    failed: AtomicU64,
    /// The queue was full.
    dropped: AtomicU64,
}

impl Tally {
    /// By stable label.
    pub fn numbers(&self) -> [(&'static str, u64); 3] {
        [("exported", &self.exported), ("failed", &self.failed), ("dropped", &self.dropped)]
            .map(|(label, count)| (label, count.load(Ordering::Relaxed)))
    }
}

impl Spans {
    /// Spans that go to an exporter, which the caller runs.
    pub fn new(sampling: Sampling) -> (Self, mpsc::Receiver<SpanData>, Arc<Tally>) {
        let (queue, spans) = mpsc::channel(QUEUE_SPANS);
        let tally = Arc::<Tally>::default();
        let scope = InstrumentationScope::builder("nodemesh").with_version(env!("CARGO_PKG_VERSION")).build();
        let inner = Inner { sampling, queue, scope, tally: tally.clone() };
        (Self(Some(Arc::new(inner))), spans, tally)
    }

    /// Decides about a request. One that is sampled goes on with this span as its parent.
    pub fn begin(&self, headers: &mut HeaderMap, mut random: impl FnMut() -> u64) -> Option<Span> {
        let inner = self.0.as_ref()?;
        let context = Context::read(headers);
        let is_sampled = match context.as_ref().map(Context::decision) {
            Some(Decision::Sampled) => true,
            Some(Decision::NotSampled) => false,
            Some(Decision::Open) | None => inner.sampling.takes(random()),
        };
        if !is_sampled {
            return None;
        }
        let id = SpanId::from_bytes(random().max(1).to_be_bytes());
        let fresh = || {
            let (high, low) = (u128::from(random()), u128::from(random().max(1)));
            TraceId::from_bytes((high << 64 | low).to_be_bytes())
        };
        let trace = context.as_ref().map_or_else(fresh, Context::trace);
        context::write(headers, context.as_ref(), trace, id);
        Some(Span { trace, id, parent: context.and_then(|context| context.parent()), began: SystemTime::now() })
    }

    /// Tells a request that is over, if it is part of a trace.
    pub fn end(&self, record: &RequestRecord) {
        let (Some(inner), Some(span)) = (&self.0, &record.span) else { return };
        if inner.queue.try_send(inner.data(span, record)).is_err() {
            inner.tally.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Span {
    /// The trace, 32 hex digits.
    pub fn trace_id(&self) -> String {
        self.trace.to_string()
    }

    /// This agent's part of it, 16 hex digits.
    pub fn id(&self) -> String {
        self.id.to_string()
    }
}

impl Inner {
    fn data(&self, span: &Span, record: &RequestRecord) -> SpanData {
        let sampled = TraceFlags::SAMPLED;
        SpanData {
            span_context: SpanContext::new(span.trace, span.id, sampled, false, TraceState::default()),
            parent_span_id: span.parent.unwrap_or(SpanId::INVALID),
            parent_span_is_remote: span.parent.is_some(),
            span_kind: kind(record.direction),
            name: name(record).into(),
            start_time: span.began,
            end_time: span.began.checked_add(record.duration).unwrap_or(span.began),
            attributes: attributes(record),
            dropped_attributes_count: 0,
            events: record.events.told(),
            links: SpanLinks::default(),
            status: status(record),
            instrumentation_scope: self.scope.clone(),
        }
    }
}

fn kind(direction: Direction) -> SpanKind {
    match direction {
        Direction::Outbound => SpanKind::Client,
        Direction::Inbound => SpanKind::Server,
    }
}

/// `GET`, or with a route `GET shop/web`: few names, as the semantic conventions demand.
fn name(record: &RequestRecord) -> String {
    let method = record.method.as_ref().map_or("HTTP", |method| method.as_str());
    match &record.route {
        Some(route) => format!("{method} {route}"),
        None => method.to_string(),
    }
}

/// An error for the client from 400 on, for the server from 500 on.
fn status(record: &RequestRecord) -> Status {
    let fails = match record.direction {
        Direction::Outbound => |status: StatusCode| status.is_client_error() || status.is_server_error(),
        Direction::Inbound => |status: StatusCode| status.is_server_error(),
    };
    match record.result.reason() {
        Some(reason) => Status::error(reason),
        None if record.status.is_some_and(fails) || record.grpc_status.is_some_and(|code| code != 0) => {
            Status::error("")
        }
        None => Status::Unset,
    }
}

/// Names of OpenTelemetry's semantic conventions (1.44) where they have one. Nothing of a query.
fn attributes(record: &RequestRecord) -> Vec<KeyValue> {
    let mut all = vec![
        KeyValue::new("network.protocol.name", "http"),
        KeyValue::new("network.protocol.version", version(record.version)),
        KeyValue::new("client.address", record.client.ip().to_string()),
    ];
    let mut add = |name: &'static str, value: Option<String>| all.extend(value.map(|value| KeyValue::new(name, value)));
    add("http.request.method", record.method.as_ref().map(|method| method.to_string()));
    add("url.path", record.path.as_ref().map(|path| path.path().to_string()));
    add("server.address", record.host.as_ref().and_then(|host| host.to_str().ok()).map(str::to_string));
    add("network.peer.address", record.server.map(|server| server.ip().to_string()));
    add("error.type", record.result.reason().map(str::to_string));
    add("nodemesh.route", record.route.as_ref().map(|route| route.to_string()));
    add("nodemesh.policy", record.policy.as_ref().map(|policy| policy.to_string()));
    add("nodemesh.service", record.service.as_ref().map(|service| service.to_string()));
    add("nodemesh.source.pod", record.source_pod.as_ref().map(|pod| pod.to_string()));
    add("nodemesh.source.identity", record.source_identity.as_ref().map(|id| id.to_string()));
    add("nodemesh.destination.pod", record.destination_pod.as_ref().map(|pod| pod.to_string()));
    add("nodemesh.destination.identity", record.destination_identity.as_ref().map(|id| id.to_string()));
    let mut count = |name: &'static str, value: u64| {
        all.push(KeyValue::new(name, i64::try_from(value).unwrap_or(i64::MAX)));
    };
    count("http.request.body.size", record.bytes_sent);
    count("http.response.body.size", record.bytes_received);
    if record.retries > 0 {
        count("http.request.resend_count", u64::from(record.retries));
    }
    if let Some(status) = record.status {
        count("http.response.status_code", u64::from(status.as_u16()));
    }
    if let Some(code) = record.grpc_status {
        count("rpc.grpc.status_code", u64::from(code));
    }
    all
}

fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 => "0.9",
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use super::super::RequestResult;
    use super::*;

    fn record(span: Option<Span>) -> RequestRecord {
        let client: SocketAddr = "10.0.0.1:1".parse().unwrap();
        RequestRecord {
            method: Some(http::Method::GET),
            status: Some(StatusCode::NOT_FOUND),
            duration: Duration::from_millis(5),
            span,
            ..RequestRecord::blank(Direction::Outbound, client)
        }
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    #[test]
    fn the_caller_decides_and_chance_where_nobody_did() {
        let sampled = format!("00-{TRACE}-00f067aa0ba902b7-01");
        let not = format!("00-{TRACE}-00f067aa0ba902b7-00");
        for (percent, traceparent, expected) in
            [(0.0, Some(&sampled), true), (100.0, Some(&not), false), (100.0, None, true), (0.0, None, false)]
        {
            let (spans, _queue, _) = Spans::new(Sampling::percent(percent).unwrap());
            let pairs: Vec<_> = traceparent.map(|text| ("traceparent", text.as_str())).into_iter().collect();
            let (before, mut after) = (headers(&pairs), headers(&pairs));
            let span = spans.begin(&mut after, || 7);
            assert_eq!(span.is_some(), expected, "{percent} % and {traceparent:?}");
            assert_eq!(before == after, !expected, "what is not sampled passes as it is");
        }
        assert!(Spans::default().begin(&mut headers(&[("traceparent", &sampled)]), || 7).is_none());
    }

    #[test]
    fn a_span_is_the_parent_of_what_follows() {
        let (spans, mut queue, _) = Spans::new(Sampling::percent(0.0).unwrap());
        let mut headers =
            headers(&[("traceparent", &format!("00-{TRACE}-00f067aa0ba902b7-01")), ("tracestate", "a=b")]);
        let span = spans.begin(&mut headers, || 0xabcd).unwrap();
        assert_eq!(headers["traceparent"], format!("00-{TRACE}-000000000000abcd-01"));
        assert_eq!(headers["tracestate"], "a=b");
        spans.end(&record(Some(span)));
        spans.end(&record(None));
        let data = queue.try_recv().unwrap();
        assert!(queue.try_recv().is_err(), "a request without a span was told");
        assert_eq!(data.span_context.trace_id().to_string(), TRACE);
        assert_eq!(data.parent_span_id.to_string(), "00f067aa0ba902b7");
        assert_eq!((data.span_kind, data.name.as_ref()), (SpanKind::Client, "GET"));
        assert_eq!(data.end_time.duration_since(data.start_time).unwrap(), Duration::from_millis(5));
        assert_eq!(data.status, Status::error(""));
    }

    #[test]
    fn errors_are_those_of_the_side_that_tells() {
        for (direction, code, result, expected) in [
            (Direction::Outbound, 200, RequestResult::Answered, Status::Unset),
            (Direction::Outbound, 404, RequestResult::Answered, Status::error("")),
            (Direction::Inbound, 404, RequestResult::Answered, Status::Unset),
            (Direction::Inbound, 500, RequestResult::Answered, Status::error("")),
            (Direction::Outbound, 503, RequestResult::Local { reason: "no-endpoint" }, Status::error("no-endpoint")),
        ] {
            let status = StatusCode::from_u16(code).ok();
            assert_eq!(self::status(&RequestRecord { direction, status, result, ..record(None) }), expected, "{code}");
        }
    }

    #[test]
    fn what_the_collector_does_not_take_is_counted() {
        let (spans, _queue, tally) = Spans::new(Sampling::percent(100.0).unwrap());
        let span = spans.begin(&mut HeaderMap::new(), || 1);
        for _ in 0..QUEUE_SPANS + 3 {
            spans.end(&record(span));
        }
        assert_eq!(tally.numbers(), [("exported", 0), ("failed", 0), ("dropped", 3)]);
    }

    #[test]
    fn a_share_is_a_share() {
        assert_eq!([-1.0, 100.1, f64::NAN].map(Sampling::percent), [None; 3]);
        let one = Sampling::percent(1.0).unwrap();
        assert_eq!((0..1_000_000).filter(|number| one.takes(*number)).count(), 10_000);
        assert!((one.as_percent() - 1.0).abs() < 1e-9);
    }
}
