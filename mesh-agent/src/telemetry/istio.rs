//! Istio's metrics, for Kiali and the dashboards that are there: off unless `--istio-metrics`.
//!
//! | metric | kind |
//! |---|---|
//! | `istio_requests_total` | counter |
//! | `istio_request_duration_milliseconds`, `istio_request_bytes`, `istio_response_bytes` | histogram |
//! | `istio_tcp_connections_opened_total`, `istio_tcp_connections_closed_total` | counter |
//! | `istio_tcp_sent_bytes_total`, `istio_tcp_received_bytes_total` | counter; seen from the server, as Istio does |
//!
//! What is in their labels, and what is not known and so `unknown`: docs/operations.md.

use std::cell::RefCell;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use super::exposition::{self, Distribution, Shape};
use super::table::{Counters, Entry, Key, OVERFLOW_NAME, Owner, Present, Table};
use super::{ConnectionRecord, Direction, RequestRecord, Transport};
use crate::spiffe::SpiffeId;

/// Istio's own bounds, which its dashboards know.
const BOUNDS: [f64; 19] =
    [0.5, 1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1e3, 2.5e3, 5e3, 1e4, 3e4, 6e4, 3e5, 6e5, 1.8e6, 3.6e6];

static MILLISECONDS: Shape = Shape { bounds: &BOUNDS, per_unit: 1e3 };
static BYTES: Shape = Shape { bounds: &BOUNDS, per_unit: 1.0 };

/// How many lines of a scrape a set of labels of requests takes: a counter and three histograms.
pub const REQUEST_LINES: usize = 1 + 3 * (BOUNDS.len() + 1 + 2);

/// How many lines of a scrape a set of labels of connections takes.
pub const CONNECTION_LINES: usize = 4;

const UNKNOWN: &str = "unknown";

/// What Istio calls the cluster of a mesh that has one.
const CLUSTER: &str = "Kubernetes";

/// A workload in Istio's words.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Party {
    /// Who it is.
    pub identity: SpiffeId,
    /// What made the pod, such as a Deployment, by its name.
    pub workload: Arc<str>,
    /// `service.istio.io/canonical-name`, or what stands for it.
    pub canonical_service: Arc<str>,
    /// `service.istio.io/canonical-revision`, or what stands for it.
    pub canonical_revision: Arc<str>,
    /// The label `app`.
    pub app: Option<Arc<str>>,
    /// The label `version`.
    pub version: Option<Arc<str>>,
    /// Whether it is on this agent's node.
    pub is_local: bool,
}

/// Finds the workload that has an address.
pub type PartySource = Box<dyn Fn(IpAddr) -> Option<Party> + Send + Sync>;

/// One end of an edge, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct End {
    identity: Option<SpiffeId>,
    party: Option<Party>,
}

/// The labels of requests.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct RequestLabels {
    edge: Edge,
    protocol: &'static str,
    code: u16,
    grpc_status: Option<u16>,
    flags: &'static str,
}

/// The labels of connections, and those of requests that they have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Edge {
    direction: Direction,
    source: End,
    destination: End,
    service: Option<Arc<str>>,
    security: &'static str,
}

#[derive(Debug)]
struct RequestSeries {
    requests: AtomicU64,
    /// In microseconds.
    durations: Distribution,
    sent: Distribution,
    received: Distribution,
}

impl Default for RequestSeries {
    fn default() -> Self {
        let [sent, received] = [&BYTES; 2].map(Distribution::new);
        Self { requests: AtomicU64::new(0), durations: Distribution::new(&MILLISECONDS), sent, received }
    }
}

impl RequestSeries {
    fn count(&self, record: &RequestRecord) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(record.duration.as_micros()).unwrap_or(u64::MAX);
        self.durations.observe(micros, record.span.as_ref());
        self.sent.observe(record.bytes_sent, None);
        self.received.observe(record.bytes_received, None);
    }
}

/// The counters of connections with the same labels. Bytes are told from the server's side, as Istio does.
#[derive(Debug, Default)]
pub(super) struct ConnectionSeries {
    pub opened: AtomicU64,
    pub closed: AtomicU64,
    pub client_to_server: AtomicU64,
    pub server_to_client: AtomicU64,
}

impl Counters for RequestSeries {
    fn counted(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

impl Counters for ConnectionSeries {
    fn counted(&self) -> u64 {
        self.opened.load(Ordering::Relaxed).wrapping_add(self.closed.load(Ordering::Relaxed))
    }
}

impl Edge {
    fn is_present(&self, present: &Present) -> bool {
        let is_there = |end: &End| present.has(end.identity.as_ref());
        is_there(&self.source) && is_there(&self.destination) && present.has_service(self.service.as_ref())
    }
}

impl Key for RequestLabels {
    fn direction(&self) -> Direction {
        self.edge.direction
    }

    fn is_present(&self, present: &Present) -> bool {
        self.edge.is_present(present)
    }
}

impl Key for Edge {
    fn direction(&self) -> Direction {
        self.direction
    }

    fn is_present(&self, present: &Present) -> bool {
        Edge::is_present(self, present)
    }
}

/// Remembers whose counters the last request moved.
#[derive(Debug, Default)]
pub(super) struct RequestMemo(RefCell<Option<(Seen, Arc<Entry<RequestSeries>>)>>);

/// What labels are made of: two requests that have it in common have the same labels while the world stays as it is.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    source: Option<SpiffeId>,
    destination: Option<SpiffeId>,
    server: Option<IpAddr>,
    service: Option<Arc<str>>,
    code: Option<u16>,
    grpc_status: Option<u16>,
    reason: Option<&'static str>,
}

impl Seen {
    fn of(record: &RequestRecord) -> Self {
        Self {
            source: record.source_identity.clone(),
            destination: record.destination_identity.clone(),
            server: record.server.map(|server| server.ip()),
            service: record.service.clone(),
            code: record.status.map(|status| status.as_u16()),
            grpc_status: record.grpc_status,
            reason: record.result.reason(),
        }
    }
}

/// The counters of the whole node in Istio's words.
pub(super) struct Istio {
    requests: Table<RequestLabels, RequestSeries>,
    connections: Table<Edge, ConnectionSeries>,
    parties: OnceLock<PartySource>,
}

impl Istio {
    pub fn new(requests: usize, connections: usize) -> Self {
        Self { requests: Table::new(requests), connections: Table::new(connections), parties: OnceLock::new() }
    }

    /// Says who has which address. The first one stays.
    pub fn register_parties(&self, source: PartySource) {
        // Registered once, at the start.
        let _ = self.parties.set(source);
    }

    /// Counts a request. All that a memo sees are of one client.
    pub fn count(&self, record: &RequestRecord, memo: &RequestMemo) {
        let seen = Seen::of(record);
        if let Some((last, entry)) = &*memo.0.borrow()
            && *last == seen
        {
            return entry.counters.count(record);
        }
        let (entry, is_its_own) = self.requests.entry(&self.request_labels(record));
        entry.counters.count(record);
        memo.0.replace(is_its_own.then_some((seen, entry)));
    }

    /// The counters of a connection; none for one that is many requests, which count themselves.
    pub fn connection(&self, record: &ConnectionRecord) -> Option<Arc<Entry<ConnectionSeries>>> {
        if record.transport == Transport::Requests {
            return None;
        }
        let edge = Edge {
            direction: record.direction,
            source: self.end(record.source_identity.as_ref(), Some(record.client.ip())),
            destination: self.end(record.destination_identity.as_ref(), record.server.map(|server| server.ip())),
            service: record.service.clone(),
            security: if record.transport == Transport::Tunnel { "mutual_tls" } else { "none" },
        };
        Some(self.connections.entry(&edge).0)
    }

    /// Lets go of what need not be kept.
    pub fn sweep(&self, present: &Present, now: Instant) {
        self.requests.sweep(present, now);
        self.connections.sweep(present, now);
    }

    /// How much counted under the overflow's labels.
    pub fn overflowed(&self) -> u64 {
        self.requests.overflowed() + self.connections.overflowed()
    }

    fn request_labels(&self, record: &RequestRecord) -> RequestLabels {
        let source = self.end(record.source_identity.as_ref(), Some(record.client.ip()));
        let security = match (record.direction, &source) {
            // As Istio: who asks does not say how it was carried.
            (Direction::Outbound, _) => UNKNOWN,
            (Direction::Inbound, End { identity: None, .. }) => "none",
            // On one node it is the kernel's word, unless a policy wants TLS there too.
            (Direction::Inbound, End { party: Some(Party { is_local: true, .. }), .. }) => UNKNOWN,
            (Direction::Inbound, _) => "mutual_tls",
        };
        let destination = self.end(record.destination_identity.as_ref(), record.server.map(|server| server.ip()));
        let edge = Edge { direction: record.direction, source, destination, service: record.service.clone(), security };
        RequestLabels {
            edge,
            protocol: if record.grpc_status.is_some() { "grpc" } else { "http" },
            code: record.status.map_or(0, |status| status.as_u16()),
            grpc_status: record.grpc_status,
            flags: record.result.reason().map_or("-", flags),
        }
    }

    /// A name by address alone is no name: it counts where the identity is that workload's.
    fn end(&self, identity: Option<&SpiffeId>, ip: Option<IpAddr>) -> End {
        let party = || {
            let (identity, ip) = (identity?, ip?.to_canonical());
            self.parties.get()?(ip).filter(|party| party.identity == *identity)
        };
        End { identity: identity.cloned(), party: party() }
    }

    /// Writes Istio's families.
    pub fn write(&self, out: &mut String) {
        let requests: Vec<_> =
            self.requests.snapshot().into_iter().map(|(owner, entry)| (request_text(&owner), entry)).collect();
        exposition::head(out, "istio_requests", "counter", "Requests, in Istio's words");
        for (labels, entry) in &requests {
            exposition::sample(out, "istio_requests_total", labels, entry.counters.requests.load(Ordering::Relaxed));
        }
        let histograms: [(&str, &str, DistributionOf); 3] = [
            ("istio_request_duration_milliseconds", "How long requests took", |series| &series.durations),
            ("istio_request_bytes", "How large requests' bodies were", |series| &series.sent),
            ("istio_response_bytes", "How large answers' bodies were", |series| &series.received),
        ];
        for (name, help, distribution) in histograms {
            exposition::head(out, name, "histogram", help);
            for (labels, entry) in &requests {
                distribution(&entry.counters).write(out, name, labels);
            }
        }
        let connections: Vec<_> =
            self.connections.snapshot().into_iter().map(|(owner, entry)| (connection_text(&owner), entry)).collect();
        let counters: [(&str, &str, CounterOf); 4] = [
            ("istio_tcp_connections_opened", "Connections, in Istio's words", |series| &series.opened),
            ("istio_tcp_connections_closed", "Connections that ended", |series| &series.closed),
            ("istio_tcp_sent_bytes", "Bytes from server to client", |series| &series.server_to_client),
            ("istio_tcp_received_bytes", "Bytes from client to server", |series| &series.client_to_server),
        ];
        for (name, help, counter) in counters {
            exposition::head(out, name, "counter", help);
            let name = format!("{name}_total");
            for (labels, entry) in &connections {
                exposition::sample(out, &name, labels, counter(&entry.counters).load(Ordering::Relaxed));
            }
        }
    }
}

type DistributionOf = fn(&RequestSeries) -> &Distribution;
type CounterOf = fn(&ConnectionSeries) -> &AtomicU64;

/// Envoy's word for a reason, `-` where it has none.
fn flags(reason: &str) -> &'static str {
    match reason {
        "client-gone" => "DC",
        "client-body" => "DPE",
        "no-endpoint" | "no-local-endpoint" | "all-ejected" => "UH",
        "overflow" | "shed" => "UO",
        "retry-budget" => "URX",
        "rate-limited" => "RL",
        "fault-injected" => "FI",
        "timed-out" => "UT",
        "unreachable" | "connect-failed" => "UF",
        "upstream-closed" | "upstream-body" => "UC",
        "upstream-protocol" => "UPE",
        "no-route" => "NR",
        "bad-backend" => "NC",
        _ if reason.starts_with("tunnel-") => "UF",
        _ if reason.starts_with("authorizer-") => "UAEX",
        _ => "-",
    }
}

const REQUEST_LABELS: [&str; 4] = ["request_protocol", "response_code", "grpc_response_status", "response_flags"];
const CONNECTION_LABELS: [&str; 2] = ["request_protocol", "response_flags"];

fn request_text(owner: &Owner<RequestLabels>) -> String {
    let (edge, of_request) = match owner {
        Owner::Key(key) => {
            let grpc = key.grpc_status.map(|status| status.to_string()).unwrap_or_default();
            (edge_labels(&key.edge), [key.protocol.to_string(), key.code.to_string(), grpc, key.flags.to_string()])
        }
        Owner::Overflow(direction) => (overflow_labels(*direction), [OVERFLOW_NAME; 4].map(str::to_string)),
    };
    exposition::labels(edge.into_iter().chain(REQUEST_LABELS.into_iter().zip(of_request)))
}

fn connection_text(owner: &Owner<Edge>) -> String {
    let edge = match owner {
        Owner::Key(edge) => edge_labels(edge),
        Owner::Overflow(direction) => overflow_labels(*direction),
    };
    exposition::labels(edge.into_iter().chain(CONNECTION_LABELS.into_iter().zip(["tcp", "-"].map(str::to_string))))
}

const EDGE_LABELS: [&str; 21] = [
    "reporter",
    "connection_security_policy",
    "source_workload",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_canonical_service",
    "source_canonical_revision",
    "source_cluster",
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_cluster",
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
];

type Labels = Vec<(&'static str, String)>;

fn reporter(direction: Direction) -> &'static str {
    match direction {
        Direction::Outbound => "source",
        Direction::Inbound => "destination",
    }
}

fn overflow_labels(direction: Direction) -> Labels {
    let name = |name: &'static str| match name {
        "reporter" => (name, reporter(direction).to_string()),
        _ => (name, OVERFLOW_NAME.to_string()),
    };
    EDGE_LABELS.into_iter().map(name).collect()
}

fn edge_labels(edge: &Edge) -> Labels {
    let text = |text: Option<&str>| text.unwrap_or(UNKNOWN).to_string();
    let end = |end: &End| {
        let party = end.party.as_ref();
        [
            text(party.map(|party| &*party.workload)),
            text(end.identity.as_ref().map(SpiffeId::namespace)),
            text(end.identity.as_ref().map(ToString::to_string).as_deref()),
            text(party.and_then(|party| party.app.as_deref())),
            text(party.and_then(|party| party.version.as_deref())),
            text(party.map(|party| &*party.canonical_service)),
            text(party.map(|party| &*party.canonical_revision)),
            if end.identity.is_some() { CLUSTER } else { UNKNOWN }.to_string(),
        ]
    };
    let service = match edge.service.as_deref().and_then(|service| service.split_once('/')) {
        Some((namespace, name)) => [format!("{name}.{namespace}.svc.cluster.local"), name.into(), namespace.into()],
        None => [UNKNOWN, UNKNOWN, UNKNOWN].map(str::to_string),
    };
    let first = [reporter(edge.direction), edge.security].map(str::to_string);
    let values = first.into_iter().chain(end(&edge.source)).chain(end(&edge.destination)).chain(service);
    EDGE_LABELS.into_iter().zip(values).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `name` of an address, and whether it is on this node.
    fn party(name: &str, is_local: bool) -> Party {
        Party {
            identity: identity(name),
            workload: name.into(),
            canonical_service: format!("{name}-canonical").into(),
            canonical_revision: "latest".into(),
            app: Some(name.into()),
            version: None,
            is_local,
        }
    }

    fn identity(name: &str) -> SpiffeId {
        SpiffeId::new("cluster.local", "shop", name).unwrap()
    }

    fn istio() -> Istio {
        let istio = Istio::new(10, 10);
        istio.register_parties(Box::new(|ip| match ip.to_string().as_str() {
            "10.0.0.1" => Some(party("web", false)),
            "10.0.0.2" => Some(party("db", true)),
            _ => None,
        }));
        istio
    }

    fn request(client: &str, source: Option<&str>, direction: Direction) -> RequestRecord {
        RequestRecord {
            source_identity: source.map(identity),
            destination_identity: Some(identity("db")),
            server: Some("10.0.0.2:80".parse().unwrap()),
            status: http::StatusCode::from_u16(204).ok(),
            ..RequestRecord::blank(direction, client.parse().unwrap())
        }
    }

    /// The lines of `istio_requests_total`.
    fn requests(istio: &Istio) -> Vec<String> {
        let mut out = String::new();
        istio.write(&mut out);
        out.lines().filter(|line| line.starts_with("istio_requests_total{")).map(str::to_string).collect()
    }

    #[test]
    fn who_is_named_is_who_has_shown_it() {
        for (client, source, direction, expected) in [
            ("10.0.0.1:1", Some("web"), Direction::Inbound, ["\"web\"", "destination", "mutual_tls"]),
            // The address is another's.
            ("10.0.0.1:1", Some("db"), Direction::Inbound, ["\"unknown\"", "destination", "mutual_tls"]),
            ("10.0.0.2:1", Some("db"), Direction::Inbound, ["\"db\"", "destination", "unknown"]),
            ("10.0.0.1:1", None, Direction::Inbound, ["\"unknown\"", "destination", "none"]),
            ("10.0.0.1:1", Some("web"), Direction::Outbound, ["\"web\"", "source", "unknown"]),
        ] {
            let istio = istio();
            istio.count(&request(client, source, direction), &RequestMemo::default());
            let [line] = &requests(&istio)[..] else { panic!("not one line") };
            let [workload, reporter, security] = expected;
            for part in [
                format!("source_workload={workload}"),
                format!("reporter=\"{reporter}\""),
                format!("connection_security_policy=\"{security}\""),
                "response_code=\"204\"".to_string(),
                "destination_canonical_service=\"db-canonical\"".to_string(),
            ] {
                assert!(line.contains(&part), "{client} {source:?}: {part} is not in {line}");
            }
        }
    }

    #[test]
    fn a_memo_sees_what_differs() {
        let (istio, memo) = (istio(), RequestMemo::default());
        let first = request("10.0.0.1:1", Some("web"), Direction::Outbound);
        for record in [
            first.clone(),
            first.clone(),
            RequestRecord { status: http::StatusCode::from_u16(205).ok(), ..first.clone() },
            RequestRecord { grpc_status: Some(3), ..first.clone() },
            RequestRecord { service: Some("shop/db".into()), ..first.clone() },
            RequestRecord { server: None, ..first },
        ] {
            istio.count(&record, &memo);
        }
        let lines = requests(&istio);
        assert_eq!(lines.len(), 5, "{lines:#?}");
        assert!(lines.iter().any(|line| line.contains("destination_service=\"db.shop.svc.cluster.local\"")));
        assert!(lines.iter().any(|line| line.contains("grpc_response_status=\"3\"") && line.contains("grpc\"")));
    }

    #[test]
    fn flags_are_envoys() {
        for (reason, expected) in
            [("no-endpoint", "UH"), ("tunnel-connect-failed", "UF"), ("no-allow-rule", "-"), ("client-gone", "DC")]
        {
            assert_eq!(flags(reason), expected, "{reason}");
        }
    }
}
