//! One line per closed connection and per request, under the target `access` at level info: `--log-level info,access=off` silences it.
//! Which connections get a line is a filter of its own ([`Filter`]), which changes at run time.
//!
//! The fields are an interface, stable by name; a field with nothing to say is left out. Every text is recorded as a
//! string, never through `Display`: the text format then quotes and escapes it and the JSON format encodes it, so no
//! name from a certificate or a header can end the line and begin one of its own.
//!
//! ```text
//! 2026-01-31T12:00:00.000000Z  INFO access: connection direction="inbound" transport="tunnel" result="denied"
//!   reason="no-allow-rule" rule="shop/only-web" source_pod="shop/outsider-0" … bytes_sent=0 duration_ms=1.2
//! ```
//! (one line in truth)

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use tracing::info;

use super::flows::Flows;
use super::otlp::lines::Lines;
use super::series::RESULT_NAMES;
use super::{ConnectionRecord, ConnectionResult, Denials, RequestRecord};
use crate::spiffe::SpiffeId;

/// The target of access log lines.
pub const TARGET: &str = "access";

/// Writes the lines of connections that its filter admits. Cheap to clone; clones share the filter.
#[derive(Clone, Default)]
pub struct AccessLog {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    filter: ArcSwap<Filter>,
    /// Connections that ended well and were to be sampled.
    ok: AtomicU64,
    /// Those who hear the same as it happens.
    flows: Flows,
    /// Where lines go besides: to a collector.
    lines: Option<Lines>,
    /// The last refusals, whatever the filter says.
    denials: Denials,
}

/// Which connections get a line. Its text is what an operator writes:
///
/// | word | means |
/// |---|---|
/// | `all`, `off` | alone: every connection, none |
/// | `failures` | all that did not end `ok` |
/// | `result=denied` | those that ended so; also `ok`, `refused`, `failed`, `cut` |
/// | `namespace=shop` | those with a party in this namespace |
/// | `pod=shop/web-0` | those of this pod |
/// | `sample=100` | of those that ended `ok`, one in so many |
///
/// Words are joined by commas: words of one kind widen (`result=denied,result=cut`), kinds narrow each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    text: String,
    is_off: bool,
    /// None given: any.
    results: Vec<&'static str>,
    namespaces: Vec<String>,
    pods: Vec<String>,
    sample: u64,
}

/// Why a text is no filter.
#[derive(Debug, thiserror::Error)]
#[error(
    "{text:?} is no access log filter: {word:?}; give all, off, or words such as failures,namespace=shop,sample=100"
)]
pub struct FilterError {
    text: String,
    word: String,
}

impl Default for Filter {
    fn default() -> Self {
        Self {
            text: "all".to_string(),
            is_off: false,
            results: Vec::new(),
            namespaces: Vec::new(),
            pods: Vec::new(),
            sample: 1,
        }
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::str::FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        let mut filter = Self { text: text.to_string(), ..Self::default() };
        match text {
            "all" => return Ok(filter),
            "off" => return Ok(Self { is_off: true, ..filter }),
            _ => {}
        }
        for word in text.split(',') {
            let word = word.trim();
            filter.add(word).ok_or_else(|| FilterError { text: text.to_string(), word: word.to_string() })?;
        }
        Ok(filter)
    }
}

impl Filter {
    fn add(&mut self, word: &str) -> Option<()> {
        let is_name = |name: &str| !name.is_empty() && !name.contains(|c: char| c.is_control() || c == ' ');
        match word.split_once('=') {
            None if word == "failures" => self.results.extend(RESULT_NAMES.into_iter().filter(|name| *name != "ok")),
            Some(("result", name)) => self.results.push(RESULT_NAMES.into_iter().find(|known| *known == name)?),
            Some(("namespace", name)) if is_name(name) => self.namespaces.push(name.to_string()),
            Some(("pod", name)) if is_name(name) && name.contains('/') => self.pods.push(name.to_string()),
            Some(("sample", number)) => self.sample = number.parse().ok().filter(|number| *number > 0)?,
            Some(_) | None => return None,
        }
        Some(())
    }

    /// Whether this connection gets a line; `ok` counts those that are sampled.
    pub(super) fn admits(&self, line: &Line<'_>, ok: &AtomicU64) -> bool {
        let names_namespace = |name: &String| {
            let of_pod = line.pods.into_iter().flatten();
            of_pod.filter_map(|pod| pod.split_once('/')).any(|(namespace, _)| namespace == name)
                || line.identities.into_iter().flatten().any(|identity| identity.namespace() == name)
        };
        let names_pod = |name: &String| line.pods.into_iter().flatten().any(|pod| **pod == **name);
        !self.is_off
            && (self.results.is_empty() || self.results.contains(&line.result))
            && (self.namespaces.is_empty() || self.namespaces.iter().any(names_namespace))
            && (self.pods.is_empty() || self.pods.iter().any(names_pod))
            && (self.sample == 1
                || line.result != ConnectionResult::Ok.name()
                || ok.fetch_add(1, Ordering::Relaxed).is_multiple_of(self.sample))
    }
}

/// What a filter looks at.
pub(super) struct Line<'a> {
    result: &'static str,
    pods: [Option<&'a Arc<str>>; 2],
    identities: [Option<&'a SpiffeId>; 2],
}

impl<'a> From<&'a ConnectionRecord> for Line<'a> {
    fn from(record: &'a ConnectionRecord) -> Self {
        Self {
            result: record.result.name(),
            pods: [record.source_pod.as_ref(), record.destination_pod.as_ref()],
            identities: [record.source_identity.as_ref(), record.destination_identity.as_ref()],
        }
    }
}

impl<'a> From<&'a RequestRecord> for Line<'a> {
    fn from(record: &'a RequestRecord) -> Self {
        Self {
            result: record.kind(),
            pods: [record.source_pod.as_ref(), record.destination_pod.as_ref()],
            identities: [record.source_identity.as_ref(), record.destination_identity.as_ref()],
        }
    }
}

impl AccessLog {
    /// A log with this filter.
    pub fn new(filter: Filter) -> Self {
        Self::telling(filter, None)
    }

    /// The same, which tells a collector as well.
    pub fn telling(filter: Filter, lines: Option<Lines>) -> Self {
        Self { inner: Arc::new(Inner { filter: ArcSwap::from_pointee(filter), lines, ..Inner::default() }) }
    }

    /// The filter as it is.
    pub fn filter(&self) -> Arc<Filter> {
        self.inner.filter.load_full()
    }

    /// Replaces the filter.
    pub fn set(&self, filter: Filter) {
        self.inner.filter.store(Arc::new(filter));
    }

    /// The last refusals.
    pub fn denials(&self) -> &Denials {
        &self.inner.denials
    }

    /// Those who listen to the same, whatever the filter of the log.
    pub fn flows(&self) -> &Flows {
        &self.inner.flows
    }

    /// Writes the line of a connection that has ended. Costs one look at the filters when they admit none, and one at
    /// whether somebody listens.
    pub fn write(&self, record: &ConnectionRecord) {
        self.tell(record);
        let (is_written, lines) = self.readers(&record.into());
        if is_written {
            write(record);
        }
        if let Some(lines) = lines {
            lines.tell(record);
        }
    }

    /// Tells of what was no connection of the agent's, without a line: those who listen, and the last refusals.
    pub fn tell(&self, record: &ConnectionRecord) {
        self.inner.flows.tell(record);
        self.inner.denials.connection(record);
    }

    /// Writes the line of a request that is over, by the same filter.
    pub fn write_request(&self, record: &RequestRecord) {
        self.inner.flows.tell_request(record);
        self.inner.denials.request(record);
        let (is_written, lines) = self.readers(&record.into());
        if is_written {
            write_request(record);
        }
        if let Some(lines) = lines {
            lines.tell_request(record);
        }
    }

    /// Where a line goes: to the log, and to a collector, which gets it all the same. The filters are asked only where it may
    /// go anywhere.
    fn readers(&self, line: &Line<'_>) -> (bool, Option<&Lines>) {
        let (is_written, lines) = (tracing::enabled!(target: TARGET, tracing::Level::INFO), self.inner.lines.as_ref());
        let is_admitted = (is_written || lines.is_some()) && self.inner.filter.load().admits(line, &self.inner.ok);
        if is_admitted { (is_written, lines) } else { (false, None) }
    }
}

/// The query is left out: it may hold what nobody should read in a log.
fn write_request(record: &RequestRecord) {
    let source_identity = record.source_identity.as_ref().map(ToString::to_string);
    let destination_identity = record.destination_identity.as_ref().map(ToString::to_string);
    let server = record.server.map(|address| address.to_string());
    let audited = (!record.audited.is_empty()).then(|| record.audited.join(","));
    info!(
        target: TARGET,
        direction = record.direction.name(),
        result = record.kind(),
        reason = record.result.reason(),
        method = record.method.as_ref().map(http::Method::as_str),
        host = record.host.as_ref().and_then(|host| host.to_str().ok()),
        path = record.path.as_ref().map(http::uri::PathAndQuery::path),
        protocol = if record.version == http::Version::HTTP_2 { "2" } else { "1.1" },
        status = record.status.map(|status| status.as_u16()),
        grpc_status = record.grpc_status,
        route = record.route.as_deref(),
        policy = record.policy.as_deref(),
        rule = record.rule,
        audited = audited.as_deref(),
        principal = record.principal.as_deref(),
        authorizer = record.authorizer.as_ref().map(|(authorizer, _)| &**authorizer),
        authorizer_said = record.authorizer.as_ref().map(|(_, said)| *said),
        retries = (record.retries > 0).then_some(record.retries),
        traffic_rule = record.traffic_rule.as_deref(),
        source_pod = record.source_pod.as_deref(),
        source_identity = source_identity.as_deref(),
        client = record.client.to_string().as_str(),
        service = record.service.as_deref(),
        destination_pod = record.destination_pod.as_deref(),
        destination_identity = destination_identity.as_deref(),
        server = server.as_deref(),
        trace_id = record.trace_id(),
        bytes_sent = record.bytes_sent,
        bytes_received = record.bytes_received,
        duration_ms = (record.duration.as_secs_f64() * 1e6).round() / 1e3,
        "request"
    );
}

fn write(record: &ConnectionRecord) {
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
    let audited = (!audited.is_empty()).then(|| audited.join(","));
    let source_identity = source_identity.as_ref().map(ToString::to_string);
    let destination_identity = destination_identity.as_ref().map(ToString::to_string);
    let dialled = dialled.map(|address| address.to_string());
    let server = server.map(|address| address.to_string());
    info!(
        target: TARGET,
        direction = direction.name(),
        transport = transport.name(),
        result = result.name(),
        reason = result.reason(),
        rule = rule.as_deref(),
        audited = audited.as_deref(),
        source_pod = source_pod.as_deref(),
        source_identity = source_identity.as_deref(),
        client = client.to_string().as_str(),
        dialled = dialled.as_deref(),
        service = service.as_deref(),
        destination_pod = destination_pod.as_deref(),
        destination_identity = destination_identity.as_deref(),
        server = server.as_deref(),
        trace_id = trace_id.as_deref(),
        bytes_sent,
        bytes_received,
        duration_ms = (duration.as_secs_f64() * 1e6).round() / 1e3,
        rtt_us = network.map(|network| network.rtt.as_micros() as u64),
        retransmits = network.map(|network| network.retransmits),
        "connection"
    );
}
