//! Lines of the access log, for a collector: the same fields by the same names, as attributes of log records.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::super::{ConnectionRecord, RequestRecord};
use super::Counts;
use super::record::Writer;

/// Lines that wait for the collector, of some KiB each.
pub const COLLECTOR_LINES: usize = 4096;

thread_local! {
    /// What lines are written with. A copy of all that one is made of, for another thread to write it, took longer: counters of
    /// what both hold, and memory that comes from one thread and goes back on another.
    static WRITER: RefCell<Writer> = RefCell::default();
}

/// Takes lines for the collector. Clones are of the same.
#[derive(Clone, Debug)]
pub struct Lines {
    queue: mpsc::Sender<Bytes>,
    counts: Arc<Counts>,
}

impl Lines {
    /// Lines that go to an exporter, which the caller runs: log records as they go over the wire.
    pub fn new() -> (Self, mpsc::Receiver<Bytes>, Arc<Counts>) {
        let (queue, lines) = mpsc::channel(COLLECTOR_LINES);
        let counts = Arc::<Counts>::default();
        (Self { queue, counts: counts.clone() }, lines, counts)
    }

    /// Takes the line of a connection.
    pub fn tell(&self, record: &ConnectionRecord) {
        self.put(|out| {
            out.begin(SystemTime::now(), "connection");
            connection(record, out);
            out.trace(&hex(record.trace_id.as_deref()), &[]);
        });
    }

    /// Takes the line of a request.
    pub fn tell_request(&self, record: &RequestRecord) {
        self.put(|out| {
            out.begin(SystemTime::now(), "request");
            request(record, out);
            let (trace, span) = trace(record);
            out.trace(&trace, &span);
        });
    }

    fn put(&self, write: impl FnOnce(&mut Writer)) {
        let Ok(room) = self.queue.try_reserve() else { return self.counts.drop_one() };
        let written = |writer: &RefCell<Writer>| {
            let mut writer = writer.try_borrow_mut().ok()?;
            write(&mut writer);
            Some(writer.end())
        };
        // There is none in a thread that has ended all but for this.
        match WRITER.try_with(written) {
            Ok(Some(line)) => room.send(line),
            Ok(None) | Err(_) => self.counts.drop_one(),
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

fn all(out: &mut Writer, name: &str, values: &[Arc<str>]) {
    out.text(name, (!values.is_empty()).then(|| values.join(",")).as_deref());
}

fn duration(out: &mut Writer, duration: Duration) {
    out.float("duration_ms", (duration.as_secs_f64() * 1e6).round() / 1e3);
}

/// As the log has it.
fn connection(record: &ConnectionRecord, out: &mut Writer) {
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
        duration: lasted,
        network,
    } = record;
    out.text("direction", Some(direction.name()));
    out.text("transport", Some(transport.name()));
    out.text("result", Some(result.name()));
    out.text("reason", result.reason());
    out.text("rule", rule.as_deref());
    all(out, "audited", audited);
    out.text("source_pod", source_pod.as_deref());
    out.shown("source_identity", source_identity.as_ref());
    out.shown("client", Some(client));
    out.shown("dialled", dialled.as_ref());
    out.text("service", service.as_deref());
    out.text("destination_pod", destination_pod.as_deref());
    out.shown("destination_identity", destination_identity.as_ref());
    out.shown("server", server.as_ref());
    out.text("trace_id", trace_id.as_deref());
    out.number("bytes_sent", Some(*bytes_sent));
    out.number("bytes_received", Some(*bytes_received));
    duration(out, *lasted);
    out.number("rtt_us", network.map(|network| network.rtt.as_micros() as u64));
    out.number("retransmits", network.map(|network| network.retransmits.into()));
}

/// As the log has it: nothing of a query.
fn request(record: &RequestRecord, out: &mut Writer) {
    out.text("direction", Some(record.direction.name()));
    out.text("result", Some(record.kind()));
    out.text("reason", record.result.reason());
    out.text("method", record.method.as_ref().map(http::Method::as_str));
    out.text("host", record.host.as_ref().and_then(|host| host.to_str().ok()));
    out.text("path", record.path.as_ref().map(http::uri::PathAndQuery::path));
    out.text("protocol", Some(if record.version == http::Version::HTTP_2 { "2" } else { "1.1" }));
    out.number("status", record.status.map(|status| status.as_u16().into()));
    out.number("grpc_status", record.grpc_status.map(Into::into));
    out.text("route", record.route.as_deref());
    out.text("policy", record.policy.as_deref());
    out.number("rule", record.rule.map(|rule| rule as u64));
    all(out, "audited", &record.audited);
    out.text("principal", record.principal.as_deref());
    out.text("authorizer", record.authorizer.as_ref().map(|(authorizer, _)| &**authorizer));
    out.text("authorizer_said", record.authorizer.as_ref().map(|(_, said)| *said));
    out.number("retries", (record.retries > 0).then(|| record.retries.into()));
    out.text("traffic_rule", record.traffic_rule.as_deref());
    out.text("source_pod", record.source_pod.as_deref());
    out.shown("source_identity", record.source_identity.as_ref());
    out.shown("client", Some(record.client));
    out.text("service", record.service.as_deref());
    out.text("destination_pod", record.destination_pod.as_deref());
    out.shown("destination_identity", record.destination_identity.as_ref());
    out.shown("server", record.server);
    out.text("trace_id", record.trace_id());
    out.number("bytes_sent", Some(record.bytes_sent));
    out.number("bytes_received", Some(record.bytes_received));
    duration(out, record.duration);
}
