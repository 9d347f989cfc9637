//! Lines of the access log, for a collector: the same fields by the same names, as attributes of log records.

use std::fmt::Display;
use std::sync::Arc;
use std::time::SystemTime;

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, SeverityNumber};
use tokio::sync::mpsc;

use super::super::{ConnectionRecord, RequestRecord};
use super::{Counts, attribute, nanos, text};

/// Lines that wait for the collector, of some KiB each.
pub const COLLECTOR_LINES: usize = 4096;

/// Takes lines for the collector. Clones are of the same.
#[derive(Clone, Debug)]
pub struct Lines {
    queue: mpsc::Sender<Line>,
    counts: Arc<Counts>,
}

/// A line that is not written yet: the data path only copies what it is made of.
#[derive(Debug)]
pub struct Line {
    at: SystemTime,
    of: Of,
}

#[derive(Debug)]
enum Of {
    Connection(Box<ConnectionRecord>),
    Request(Box<RequestRecord>),
}

impl Lines {
    /// Lines that go to an exporter, which the caller runs.
    pub fn new() -> (Self, mpsc::Receiver<Line>, Arc<Counts>) {
        let (queue, lines) = mpsc::channel(COLLECTOR_LINES);
        let counts = Arc::<Counts>::default();
        (Self { queue, counts: counts.clone() }, lines, counts)
    }

    /// Takes the line of a connection.
    pub fn tell(&self, record: &ConnectionRecord) {
        self.put(|| Of::Connection(Box::new(record.clone())));
    }

    /// Takes the line of a request.
    pub fn tell_request(&self, record: &RequestRecord) {
        self.put(|| Of::Request(Box::new(record.clone())));
    }

    fn put(&self, of: impl FnOnce() -> Of) {
        match self.queue.try_reserve() {
            Ok(room) => room.send(Line { at: SystemTime::now(), of: of() }),
            Err(_) => self.counts.drop_one(),
        }
    }
}

impl From<Line> for LogRecord {
    fn from(line: Line) -> Self {
        let at = nanos(line.at);
        let (name, fields, (trace_id, span_id)) = match &line.of {
            Of::Connection(record) => ("connection", connection(record), (hex(record.trace_id.as_deref()), Vec::new())),
            Of::Request(record) => ("request", request(record), trace(record)),
        };
        LogRecord {
            time_unix_nano: at,
            observed_time_unix_nano: at,
            severity_number: SeverityNumber::Info.into(),
            severity_text: "INFO".to_string(),
            body: Some(AnyValue { value: Some(Value::StringValue(name.to_string())) }),
            event_name: format!("nodemesh.{name}"),
            attributes: fields.0,
            trace_id,
            span_id,
            ..LogRecord::default()
        }
    }
}

/// This agent's part of the trace where there is one, else the trace that came.
fn trace(record: &RequestRecord) -> (Vec<u8>, Vec<u8>) {
    match &record.span {
        Some(span) => (hex(Some(&span.trace_id())), hex(Some(&span.id()))),
        None => (hex(record.trace_id()), Vec::new()),
    }
}

fn hex(text: Option<&str>) -> Vec<u8> {
    let pairs = text.unwrap_or_default().as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    pairs.map(byte).collect::<Option<_>>().unwrap_or_default()
}

/// The fields of a line; one with nothing to say is left out.
#[derive(Default)]
struct Fields(Vec<KeyValue>);

impl Fields {
    fn text(&mut self, name: &str, value: Option<&str>) {
        self.0.extend(value.map(|value| text(name, value)));
    }

    fn shown(&mut self, name: &str, value: Option<impl Display>) {
        self.text(name, value.map(|value| value.to_string()).as_deref());
    }

    fn number(&mut self, name: &str, value: Option<u64>) {
        let value = value.map(|value| Value::IntValue(i64::try_from(value).unwrap_or(i64::MAX)));
        self.0.extend(value.map(|value| attribute(name, value)));
    }

    fn all(&mut self, name: &str, values: &[Arc<str>]) {
        self.text(name, (!values.is_empty()).then(|| values.join(",")).as_deref());
    }

    fn duration(&mut self, duration: std::time::Duration) {
        let millis = (duration.as_secs_f64() * 1e6).round() / 1e3;
        self.0.push(attribute("duration_ms", Value::DoubleValue(millis)));
    }
}

/// As the log has it.
fn connection(record: &ConnectionRecord) -> Fields {
    let ConnectionRecord {
        direction,
        transport,
        source_pod,
        source_identity,
        client,
        dialled,
        service,
        destination_pod,
        destination_identity,
        server,
        trace_id,
        rule,
        audited,
        result,
        bytes_sent,
        bytes_received,
        duration,
        network,
    } = record;
    let mut fields = Fields::default();
    fields.text("direction", Some(direction.name()));
    fields.text("transport", Some(transport.name()));
    fields.text("result", Some(result.name()));
    fields.text("reason", result.reason());
    fields.text("rule", rule.as_deref());
    fields.all("audited", audited);
    fields.text("source_pod", source_pod.as_deref());
    fields.shown("source_identity", source_identity.as_ref());
    fields.shown("client", Some(client));
    fields.shown("dialled", dialled.as_ref());
    fields.text("service", service.as_deref());
    fields.text("destination_pod", destination_pod.as_deref());
    fields.shown("destination_identity", destination_identity.as_ref());
    fields.shown("server", server.as_ref());
    fields.text("trace_id", trace_id.as_deref());
    fields.number("bytes_sent", Some(*bytes_sent));
    fields.number("bytes_received", Some(*bytes_received));
    fields.duration(*duration);
    fields.number("rtt_us", network.map(|network| network.rtt.as_micros() as u64));
    fields.number("retransmits", network.map(|network| network.retransmits.into()));
    fields
}

/// As the log has it: nothing of a query.
fn request(record: &RequestRecord) -> Fields {
    let mut fields = Fields::default();
    fields.text("direction", Some(record.direction.name()));
    fields.text("result", Some(record.kind()));
    fields.text("reason", record.result.reason());
    fields.text("method", record.method.as_ref().map(http::Method::as_str));
    fields.text("host", record.host.as_ref().and_then(|host| host.to_str().ok()));
    fields.text("path", record.path.as_ref().map(http::uri::PathAndQuery::path));
    fields.text("protocol", Some(if record.version == http::Version::HTTP_2 { "2" } else { "1.1" }));
    fields.number("status", record.status.map(|status| status.as_u16().into()));
    fields.number("grpc_status", record.grpc_status.map(Into::into));
    fields.text("route", record.route.as_deref());
    fields.text("policy", record.policy.as_deref());
    fields.number("rule", record.rule.map(|rule| rule as u64));
    fields.all("audited", &record.audited);
    fields.text("principal", record.principal.as_deref());
    fields.text("authorizer", record.authorizer.as_ref().map(|(authorizer, _)| &**authorizer));
    fields.text("authorizer_said", record.authorizer.as_ref().map(|(_, said)| *said));
    fields.number("retries", (record.retries > 0).then(|| record.retries.into()));
    fields.text("traffic_rule", record.traffic_rule.as_deref());
    fields.text("source_pod", record.source_pod.as_deref());
    fields.shown("source_identity", record.source_identity.as_ref());
    fields.shown("client", Some(record.client));
    fields.text("service", record.service.as_deref());
    fields.text("destination_pod", record.destination_pod.as_deref());
    fields.shown("destination_identity", record.destination_identity.as_ref());
    fields.shown("server", record.server);
    fields.text("trace_id", record.trace_id());
    fields.number("bytes_sent", Some(record.bytes_sent));
    fields.number("bytes_received", Some(record.bytes_received));
    fields.duration(record.duration);
    fields
}
