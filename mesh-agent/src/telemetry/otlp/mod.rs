//! What an OTLP collector is told: spans, lines of the access log, metrics; over HTTP or gRPC, with TLS or without.
//!
//! ```text
//! worker ─► Spans ─► queue ─┐
//! worker ─► Lines ─► queue ─┼─► batch ─► Courier ─► the collector
//! every --otlp-interval: Metrics::encode ─► points ─┘
//! ```
//!
//! Nothing here makes the data path wait: what waits for the collector is bounded, and what it does not take fast enough is
//! lost and counted. Each signal goes its own way: one that hangs does not hold up the others.

mod batch;
mod courier;
pub mod lines;
mod points;
mod record;
mod starts;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tls_tests;
mod wire;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans};
use opentelemetry_sdk::trace::SpanData;
use tokio::sync::{mpsc, watch};

use super::Metrics;
use super::spans::{Sampling, Spans};
use courier::{Courier, Way};
use lines::Lines;

pub use batch::{GLANCE, LINGER, MOST_AT_ONCE};
pub use courier::{
    CONNECT_TIMEOUT, EXPORT_TIMEOUT, KEEPALIVE, LONGEST_PAUSE, MAX_ANSWER_BYTES, MAX_TRIES, SHORTEST_PAUSE,
};
pub use lines::COLLECTOR_LINES;
pub use points::MOST_POINTS;
pub use record::LINES_CHUNK;
pub use wire::{Credentials, HEADERS_FILE_BYTES};

/// Bytes of a text in an attribute; a collector takes 4 MiB at once, and a batch stays below that.
pub const MAX_TEXT_BYTES: usize = 1024;

/// What there is to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Spans of requests.
    Traces,
    /// Lines of the access log.
    Logs,
    /// What a scrape has.
    Metrics,
}

impl Signal {
    const ALL: [Signal; 3] = [Signal::Traces, Signal::Logs, Signal::Metrics];

    /// The stable name, in metrics and settings.
    pub fn name(self) -> &'static str {
        match self {
            Signal::Traces => "traces",
            Signal::Logs => "logs",
            Signal::Metrics => "metrics",
        }
    }
}

/// Which of them a collector is told: `traces,logs,metrics`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signals {
    traces: bool,
    logs: bool,
    metrics: bool,
}

impl Signals {
    /// Whether it is among them.
    pub fn has(self, signal: Signal) -> bool {
        match signal {
            Signal::Traces => self.traces,
            Signal::Logs => self.logs,
            Signal::Metrics => self.metrics,
        }
    }
}

impl FromStr for Signals {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut all = Self { traces: false, logs: false, metrics: false };
        for word in text.split(',') {
            match word.trim() {
                "traces" => all.traces = true,
                "logs" => all.logs = true,
                "metrics" => all.metrics = true,
                _ => return Err(()),
            }
        }
        Ok(all)
    }
}

impl fmt::Display for Signals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = Signal::ALL.into_iter().filter(|signal| self.has(*signal)).map(Signal::name).collect();
        f.write_str(&names.join(","))
    }
}

/// Where a collector is: `http://HOST:PORT`, or `grpc://HOST:PORT`; with TLS `https://HOST` or `grpcs://HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collector {
    text: String,
    is_grpc: bool,
    is_encrypted: bool,
}

impl Collector {
    /// Whether TLS is spoken there.
    pub fn is_encrypted(&self) -> bool {
        self.is_encrypted
    }
}

impl FromStr for Collector {
    type Err = ();

    /// With HTTP a path may follow, before the standard's `/v1/traces`.
    fn from_str(text: &str) -> Result<Self, ()> {
        let uri: http::Uri = text.parse().map_err(drop)?;
        let has_path = uri.path().len() > 1;
        let (is_grpc, is_encrypted) = match uri.scheme_str() {
            Some("http") => (false, false),
            Some("https") => (false, true),
            Some(scheme @ ("grpc" | "grpcs")) if !has_path && uri.port().is_some() => (true, scheme == "grpcs"),
            _ => return Err(()),
        };
        let has_user = uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
        if uri.host().is_none_or(str::is_empty) || uri.query().is_some() || has_user {
            return Err(());
        }
        Ok(Self { text: text.trim_end_matches('/').to_string(), is_grpc, is_encrypted })
    }
}

impl fmt::Display for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What an operator sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where to.
    pub collector: Collector,
    /// Whom to believe there, and what to show.
    pub credentials: Credentials,
    /// What.
    pub signals: Signals,
    /// How often metrics go.
    pub interval: Duration,
    /// Of requests that come without a trace.
    pub sampling: Sampling,
}

/// What became of the records of one signal.
#[derive(Debug, Default)]
pub struct Counts {
    /// The collector has them.
    exported: AtomicU64,
    /// The collector was given them and did not take them, or was not there.
    failed: AtomicU64,
    /// The collector took the request, and refused these of it.
    rejected: AtomicU64,
    /// The queue was full, or the records before them had failed.
    dropped: AtomicU64,
}

impl Counts {
    /// By stable label.
    pub fn numbers(&self) -> [(&'static str, u64); 4] {
        let Self { exported, failed, rejected, dropped } = self;
        [("exported", exported), ("failed", failed), ("rejected", rejected), ("dropped", dropped)]
            .map(|(label, count)| (label, count.load(Ordering::Relaxed)))
    }

    /// Counts one that found no room.
    pub(super) fn drop_one(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

/// What became of records: the signal, what became of them, how many.
pub type Numbers = Vec<(&'static str, &'static str, u64)>;

/// Takes all that is told to the collector.
pub struct Exporter {
    spans: Option<(mpsc::Receiver<SpanData>, Courier)>,
    lines: Option<(mpsc::Receiver<Bytes>, Courier)>,
    metrics: Option<(Metrics, Duration, Courier)>,
    about: About,
}

/// What the data path tells, and who takes it to the collector.
pub struct Telling {
    /// Begins spans; none where there are to be none.
    pub spans: Spans,
    /// Takes lines; None where there are to be none.
    pub lines: Option<Lines>,
    /// To be run by the caller.
    pub exporter: Exporter,
}

/// Who tells.
#[derive(Clone)]
struct About {
    resource: Resource,
    scope: InstrumentationScope,
    started: SystemTime,
}

impl Telling {
    /// Of the agent of a node, which began at `started`. In a runtime of tokio's.
    ///
    /// # Errors
    /// The collector's address is none.
    pub fn new(settings: Settings, node: &str, started: SystemTime, metrics: &Metrics) -> Result<Self, Unusable> {
        let Settings { collector, credentials, signals, interval, sampling } = settings;
        let courier = |counts: &Arc<Counts>| -> Result<Courier, Unusable> {
            Ok(Courier::new(Way::to(&collector, &credentials)?, collector.clone(), counts.clone()))
        };
        let (mut all, mut spans, mut lines) = (Vec::new(), Spans::default(), None);
        let mut exporter = Exporter { spans: None, lines: None, metrics: None, about: About::of(node, started) };
        if signals.has(Signal::Traces) {
            let (begins, queue, counts) = Spans::new(sampling);
            exporter.spans = Some((queue, courier(&counts)?));
            spans = begins;
            all.push((Signal::Traces, counts));
        }
        if signals.has(Signal::Logs) {
            let (takes, queue, counts) = Lines::new();
            exporter.lines = Some((queue, courier(&counts)?));
            lines = Some(takes);
            all.push((Signal::Logs, counts));
        }
        if signals.has(Signal::Metrics) {
            let counts = Arc::<Counts>::default();
            exporter.metrics = Some((metrics.clone(), interval, courier(&counts)?));
            all.push((Signal::Metrics, counts));
        }
        metrics.register_otlp(Box::new(move || numbers(&all)));
        Ok(Self { spans, lines, exporter })
    }
}

fn numbers(all: &[(Signal, Arc<Counts>)]) -> Numbers {
    let of = |(signal, counts): &(Signal, Arc<Counts>)| counts.numbers().map(|(label, n)| (signal.name(), label, n));
    all.iter().flat_map(of).collect()
}

/// Why there can be no way to a collector.
#[derive(Debug, thiserror::Error)]
#[error("{collector} is no address of a collector: {why}")]
pub struct Unusable {
    collector: String,
    why: String,
}

impl Exporter {
    /// Until `end`; what waits then is sent once, for as long as this is let run.
    pub async fn run(self, end: impl Future<Output = ()>) {
        let Self { spans, lines, metrics, about } = self;
        let (ending, ended) = watch::channel(false);
        let of_spans = async {
            let Some((queue, courier)) = spans else { return };
            batch::run(queue, courier, ended.clone(), |batch| about.spans(batch)).await;
        };
        let of_lines = async {
            let Some((queue, courier)) = lines else { return };
            batch::run(queue, courier, ended.clone(), |batch| about.lines(batch)).await;
        };
        let of_metrics = async {
            let Some((metrics, interval, courier)) = metrics else { return };
            points::run(metrics, interval, courier, ended.clone(), &about).await;
        };
        let until_end = async {
            end.await;
            ending.send_replace(true);
        };
        tokio::join!(of_spans, of_lines, of_metrics, until_end);
    }
}

impl About {
    fn of(node: &str, started: SystemTime) -> Self {
        let version = env!("CARGO_PKG_VERSION");
        let attributes = [
            ("service.name", "nodemesh"),
            ("service.version", version),
            ("service.instance.id", node),
            ("k8s.node.name", node),
        ];
        let attributes = attributes.map(|(name, value)| text(name, value)).to_vec();
        Self {
            resource: Resource { attributes, ..Resource::default() },
            scope: InstrumentationScope {
                name: "nodemesh".to_string(),
                version: version.to_string(),
                ..InstrumentationScope::default()
            },
            started,
        }
    }

    fn spans(&self, batch: Vec<SpanData>) -> ExportTraceServiceRequest {
        let spans = batch.into_iter().map(Into::into).collect();
        let scope_spans = vec![ScopeSpans { scope: Some(self.scope.clone()), spans, ..ScopeSpans::default() }];
        let resource = Some(self.resource.clone());
        let resource_spans = vec![ResourceSpans { resource, scope_spans, ..ResourceSpans::default() }];
        ExportTraceServiceRequest { resource_spans }
    }

    fn lines(&self, records: Vec<Bytes>) -> record::Request {
        let scopes = vec![record::OfScope { scope: Some(self.scope.clone()), records }];
        let of_node = record::OfResource { resource: Some(self.resource.clone()), scopes };
        record::Request { resources: vec![of_node] }
    }
}

fn text(name: &str, value: &str) -> KeyValue {
    attribute(name, Value::StringValue(cut(value).to_string()))
}

fn attribute(name: &str, value: Value) -> KeyValue {
    KeyValue { key: name.to_string(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

/// What of a text is told.
pub(super) fn cut(text: &str) -> &str {
    text.get(..text.floor_char_boundary(MAX_TEXT_BYTES)).unwrap_or(text)
}

fn nanos(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
