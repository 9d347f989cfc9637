//! Every metric of the agent: names, help and labels in this one file. They are an interface that dashboards rest on.
//!
//! | metric | kind | labels |
//! |---|---|---|
//! | `nodemesh_connections_opened_total` | counter | *connection* |
//! | `nodemesh_connections_closed_total` | counter | *connection*, `result` |
//! | `nodemesh_connections_open` | gauge | *connection* |
//! | `nodemesh_sent_bytes_total` | counter | *connection*; client to server, counted while a connection runs |
//! | `nodemesh_received_bytes_total` | counter | *connection*; server to client |
//! | `nodemesh_tcp_rtt_seconds_total` | counter | *connection*; the smoothed round trip times at the ends of connections that crossed a network, together |
//! | `nodemesh_tcp_rtt_measurements_total` | counter | *connection*; how many: the one by the other is the mean |
//! | `nodemesh_tcp_retransmits_total` | counter | *connection*; segments sent again; of connections that share a tunnel each counts the tunnel's |
//! | `nodemesh_connection_duration_seconds` | histogram | `direction`, `transport` |
//! | `nodemesh_denials_total` | counter | `direction`, `reason`, `destination_namespace`, `destination_service_account` |
//! | `nodemesh_connection_faults_total` | counter | `direction`, `result` (refused, failed, cut), `reason` |
//! | `nodemesh_audit_matches_total` | counter | `policy` (`<namespace>/<name>`); connections and requests that an AUDIT policy matched |
//! | `nodemesh_authorizer_checks_total` | counter | `authorizer` (`<namespace>/<name>`), `result` (allowed, denied, or why there was no answer), `passed` (true, false) |
//! | `nodemesh_workload_connections` | gauge | *workload*; live, each counted at the pod where it was accepted |
//! | `nodemesh_workload_tunnels` | gauge | *workload*; that peers hold open to it |
//! | `nodemesh_workload_handshakes` | gauge | *workload*; peers of its tunnel port that have not proved who they are |
//! | `nodemesh_workload_buffered_bytes` | gauge | *workload*; that wait for its applications to read |
//! | `nodemesh_workload_over_budget_total` | counter | *workload*, `budget`; refused, or cut for `buffer-budget` |
//! | `nodemesh_tunnels_open` | gauge | – ; tunnels that this agent dialled |
//! | `nodemesh_tunnel_streams_open` | gauge | – ; connections on them |
//! | `nodemesh_tunnel_establishments_total` | counter | `result` (ok, connect-failed, timed-out, tls, wrong-identity, lost, backoff: not tried, since it failed a moment ago) |
//! | `nodemesh_metrics_overflow_total` | counter | – ; what was counted under `_overflow`, but for requests |
//! | `nodemesh_kernel_outcomes_total` | counter | `outcome` |
//! | `nodemesh_certificate_expiry_timestamp_seconds` | gauge | `identity`; Unix time |
//! | `nodemesh_certificate_expiry_seconds` | gauge | `identity`; what is left by the node's clock, below zero when it has ended |
//! | `nodemesh_certificate_issued_timestamp_seconds` | gauge | `identity`; Unix time of the last renewal that worked |
//! | `nodemesh_certificate_renewal_failures_total` | counter | `identity`; from the first failure on, also before the first certificate |
//! | `nodemesh_root_expiry_timestamp_seconds` | gauge | `root`, `signs` (true, false); trusted roots |
//! | `nodemesh_root_peers` | gauge | `root`; live tunnels, either direction, whose peer rests on it |
//! | `nodemesh_jwks_in_force` | gauge | `uri`; 1: tokens can be verified by the keys that were fetched there |
//! | `nodemesh_jwks_age_seconds` | gauge | `uri`; since the keys were had last |
//! | `nodemesh_jwks_fetches_total` | counter | `uri`, `result` (ok, failed) |
//! | `nodemesh_ready` | gauge | – ; 1: `/readyz` says so |
//! | `nodemesh_same_node_kernel_connections_open` | gauge | – ; from pod to pod of this node, by the kernel alone |
//! | `nodemesh_pods_not_captured` | gauge | – ; pods that should be captured and are not |
//! | `nodemesh_pods_with_remarks` | gauge | – ; captured pods of which `/readyz` has something to say |
//! | `nodemesh_config_age_seconds` | gauge | – ; since the world was last read whole |
//! | `nodemesh_discovery_watch_state` | gauge | `watch`, `state`; 1 for the state in which the list of an API server is |
//! | `nodemesh_discovery_lists_total` | counter | `watch`; lists made from their beginning |
//! | `nodemesh_discovery_failures_total` | counter | `watch`, `cause` (unreachable, forbidden, refused) |
//! | `nodemesh_log_lines_dropped_total` | counter | – ; lines that a slow reader of the log lost |
//! | `nodemesh_http_…` | – | requests; see `requests.rs` |
//! | `nodemesh_http_requests_overflow_total` | counter | – ; requests counted under `_overflow` |
//! | `nodemesh_otlp_records_total` | counter | `signal` (traces, logs, metrics), `result` (exported, failed, rejected: the collector did not want them, dropped: the queue was full) |
//! | `nodemesh_http_upstream_connections_open` | gauge | – ; connections to applications that requests share |
//! | `nodemesh_http_upstream_connections_made_total` | counter | – |
//! | `nodemesh_http_upstream_reuses_total` | counter | – ; requests that went out on one that was there |
//! | `nodemesh_http_resends_total` | counter | – ; requests that went out again, because the application had closed their connection |
//! | `nodemesh_http_retries_total` | counter | – ; tries of requests after the first, as a TrafficPolicy or a route asked for |
//! | `nodemesh_http_ejections_total` | counter | – ; endpoints left out for a while, because they failed too often (by a worker) |
//! | `nodemesh_ca_certificates_total` | counter | `result` (issued, or why not: docs/operations.md); of the controller |
//! | `nodemesh_ca_token_reviews_total` | counter | `result` (believed, remembered, or why not); of the controller |
//! | `nodemesh_controller_leads` | gauge | – ; 1: this replica writes |
//! | `nodemesh_build_info` | info | `version` |
//!
//! *connection* = `direction`, `transport`, `source_namespace`, `source_service_account`, `destination_namespace`,
//! `destination_service_account`. A party that is not known has empty names. All of these are stable, but for
//! `nodemesh_connection_duration_seconds`, whose buckets may change.
//!
//! *workload* = `namespace`, `pod`: the pods that are enrolled on this node now; a series goes with its pod.
//!
//! With `--istio-metrics` there are Istio's besides (`istio.rs`).
//!
//! Cardinality is bounded (`table.rs`): *connection*, *request* and Istio's by `--metrics-series`; denials, audit matches
//! and checks by [`MAX_WORDS`] each; *workload* by the pods of a node, certificates by their service accounts, the others
//! by the words in the code. A series goes when whom it names has left the mesh.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::counted::{CountedConnections, CountedRequests};
use super::exposition;
use super::istio::{self, Istio, PartySource};
use super::otlp;
use super::requests::{self, Requests};
use super::series::{self, Series};
use super::table::{Entry, Key, OVERFLOW_NAME, Owner, Present, Table};
use super::{
    ConnectionKey, ConnectionRecord, ConnectionResult, Direction, RequestMemo, RequestRecord, Transport, TunnelNumbers,
    UpstreamNumbers, WorkloadUsage, logs,
};
use crate::spiffe::SpiffeId;

/// The content type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper bounds in seconds: from a request to a database session.
const DURATION_BUCKETS: [f64; 12] = [0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0, 86400.0];

/// Reads the kernel's counters: name of the outcome and how often, since the maps were made.
pub type OutcomeSource = Box<dyn Fn() -> Vec<(&'static str, u64)> + Send + Sync>;

/// How the certificate of one identity stands. Times in seconds of Unix time.
#[derive(Clone, Debug, PartialEq)]
pub struct CertificateFacts {
    /// Whose it is.
    pub identity: SpiffeId,
    /// When it ends; none before the first was issued.
    pub expiry: Option<f64>,
    /// What is left of it, in seconds; below zero when it has ended.
    pub left: Option<f64>,
    /// When it was issued.
    pub issued: Option<f64>,
    /// Tries that failed.
    pub failures: u64,
}

/// How a trusted root stands.
#[derive(Clone, Debug, PartialEq)]
pub struct RootFacts {
    /// Which.
    pub root: String,
    /// When it ends, in seconds of Unix time.
    pub expiry: f64,
    /// Whether new certificates end at it.
    pub signs: bool,
    /// Live tunnels whose peer rests on it.
    pub peers: u64,
}

/// Reads the certificates of this node and the roots that it trusts.
pub type CertificateSource = Box<dyn Fn() -> (Vec<CertificateFacts>, Vec<RootFacts>) + Send + Sync>;

/// How the keys of an issuer stand that are fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeysFacts {
    /// Where from.
    pub uri: String,
    /// Whether tokens can be verified by them.
    pub in_force: bool,
    /// Since they were had last; None: never.
    pub age: Option<Duration>,
    /// Fetches that ended well.
    pub good: u64,
    /// Fetches that failed.
    pub failed: u64,
}

/// Reads the keys of issuers.
pub type KeysSource = Box<dyn Fn() -> Vec<KeysFacts> + Send + Sync>;

/// How a list of an API server stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchFacts {
    /// What is listed.
    pub watch: &'static str,
    /// How it stands.
    pub state: &'static str,
    /// How often it was made from its beginning.
    pub lists: u64,
    /// Requests that failed, by cause.
    pub failures: Vec<(&'static str, u64)>,
}

/// Reads how the lists of an API server stand.
pub type WatchSource = Box<dyn Fn() -> Vec<WatchFacts> + Send + Sync>;

/// Reads how long ago the world was last read whole; nothing before the first time.
pub type ConfigAgeSource = Box<dyn Fn() -> Option<Duration> + Send + Sync>;

/// Reads how many pods should be captured and are not.
pub type PodCountSource = Box<dyn Fn() -> usize + Send + Sync>;

/// How many connections go from pod to pod by the kernel alone.
pub type StraightSource = Box<dyn Fn() -> u64 + Send + Sync>;

/// Reads whether the agent is ready.
pub type ReadySource = Box<dyn Fn() -> bool + Send + Sync>;

/// Reads what the pods of this node have taken of their budgets.
pub type WorkloadSource = Box<dyn Fn() -> Vec<WorkloadUsage> + Send + Sync>;

/// Reads what became of tunnels.
pub type TunnelSource = Box<dyn Fn() -> TunnelNumbers + Send + Sync>;

/// Reads what became of the connections that requests share.
pub type UpstreamSource = Box<dyn Fn() -> UpstreamNumbers + Send + Sync>;

/// Reads what became of what a collector was told.
pub type OtlpSource = Box<dyn Fn() -> otlp::Numbers + Send + Sync>;

/// What became of what a controller was asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuthorityNumbers {
    /// Requests for certificates: `issued`, or why not.
    pub certificates: Vec<(&'static str, u64)>,
    /// Tokens: `believed`, `remembered`, or why not.
    pub reviews: Vec<(&'static str, u64)>,
    /// Whether this replica writes.
    pub leads: bool,
}

/// Reads what became of what a controller was asked.
pub type AuthoritySource = Box<dyn Fn() -> AuthorityNumbers + Send + Sync>;

/// All metrics of the process. Cheap to clone; no method waits for another thread for longer than a look-up.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

/// What a scrape may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How many lines the families of connections and requests may have together.
    pub series: usize,
    /// Whether Istio's metrics are there too.
    pub istio: bool,
}

/// How many lines there may be unless somebody says otherwise: 14 MB as they usually are, 29 MB with Istio's.
pub const DEFAULT_SERIES: usize = 50_000;

/// How many sets of labels denials, audit matches and checks may have, each.
pub const MAX_WORDS: usize = 1024;

struct Inner {
    registry: Mutex<Registry>,
    connections: Arc<Table<ConnectionKey, Series>>,
    requests: Requests,
    istio: Option<Istio>,
    denials: Arc<Table<DenialLabels, AtomicU64>>,
    audits: Arc<Table<AuditLabels, AtomicU64>>,
    checks: Arc<Table<CheckLabels, AtomicU64>>,
    faults: Family<FaultLabels, Counter>,
    durations: Family<DurationLabels, Histogram>,
}

/// A connection that counts as open until [`OpenConnection::closed`]. Dropped without it (the task was cancelled), it
/// counts as failed, so that opened = closed + open holds always.
pub struct OpenConnection {
    metrics: Metrics,
    entry: Arc<Entry<Series>>,
    istio: Option<Arc<Entry<istio::ConnectionSeries>>>,
    /// What [`OpenConnection::progress`] has counted so far.
    sent: AtomicU64,
    received: AtomicU64,
    is_closed: bool,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DenialLabels {
    direction: &'static str,
    reason: &'static str,
    destination_namespace: String,
    destination_service_account: String,
}

impl Words for DenialLabels {
    fn overflow(direction: Direction) -> Self {
        Self {
            direction: direction.name(),
            reason: OVERFLOW_NAME,
            destination_namespace: OVERFLOW_NAME.to_string(),
            destination_service_account: OVERFLOW_NAME.to_string(),
        }
    }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct AuditLabels {
    policy: String,
}

impl Words for AuditLabels {
    fn overflow(_: Direction) -> Self {
        Self { policy: OVERFLOW_NAME.to_string() }
    }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CheckLabels {
    authorizer: String,
    result: &'static str,
    passed: &'static str,
}

impl Words for CheckLabels {
    fn overflow(_: Direction) -> Self {
        Self { authorizer: OVERFLOW_NAME.to_string(), result: OVERFLOW_NAME, passed: OVERFLOW_NAME }
    }
}

/// Labels of a counter that are words of the configuration: they stay, and there is an end to how many.
trait Words: Clone + Eq + std::hash::Hash + EncodeLabelSet + fmt::Debug + Send + Sync + 'static {
    /// Those of what found no room.
    fn overflow(direction: Direction) -> Self;
}

impl<W: Words> Key for W {
    fn direction(&self) -> Direction {
        Direction::Outbound
    }

    fn is_present(&self, _: &Present) -> bool {
        true
    }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct FaultLabels {
    direction: &'static str,
    result: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DurationLabels {
    direction: &'static str,
    transport: &'static str,
}

impl Metrics {
    /// The metrics of a process that has counted nothing.
    pub fn new() -> Self {
        Self::with(Settings { series: DEFAULT_SERIES, istio: false })
    }

    /// As [`Metrics::new`], with these bounds.
    pub fn with(settings: Settings) -> Self {
        let Settings { series, istio } = settings;
        // A fifth for connections. Istio's families say the same once more.
        let series = if istio { series / 2 } else { series };
        let (of_connections, of_requests) = (series / 5, series - series / 5);
        let istio_tables = || Istio::new(of_requests / istio::REQUEST_LINES, of_connections / istio::CONNECTION_LINES);
        Self::of(
            of_connections / series::LINES_OF_CONNECTIONS,
            of_requests / requests::LINES_OF_REQUESTS,
            istio.then(istio_tables),
        )
    }

    /// With at most `sets` sets of labels in each table.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn with_capacity(sets: usize) -> Self {
        Self::of(sets, sets, None)
    }

    fn of(connections: usize, requests: usize, istio: Option<Istio>) -> Self {
        let inner = Inner {
            registry: Mutex::new(Registry::with_prefix("nodemesh")),
            connections: Arc::new(Table::new(connections)),
            requests: Requests::new(requests),
            istio,
            denials: Arc::new(Table::new(MAX_WORDS)),
            audits: Arc::new(Table::new(MAX_WORDS)),
            checks: Arc::new(Table::new(MAX_WORDS)),
            faults: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new(DURATION_BUCKETS)),
        };
        inner.register();
        Self { inner: Arc::new(inner) }
    }

    /// Counts a connection whose parties and way are known. Once per connection; allocates for a new key only.
    pub fn opened_as(&self, record: &ConnectionRecord) -> OpenConnection {
        let istio = self.inner.istio.as_ref().and_then(|istio| istio.connection(record));
        if let Some(istio) = &istio {
            istio.counters.opened.fetch_add(1, Ordering::Relaxed);
        }
        let mut open = self.opened(&record.key());
        open.istio = istio;
        open
    }

    /// The same where no more is known than the key.
    pub fn opened(&self, key: &ConnectionKey) -> OpenConnection {
        let (entry, _) = self.inner.connections.entry(key);
        entry.counters.opened.fetch_add(1, Ordering::Relaxed);
        entry.counters.open.fetch_add(1, Ordering::Relaxed);
        OpenConnection {
            metrics: self.clone(),
            entry,
            istio: None,
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            is_closed: false,
        }
    }

    /// Counts a connection that was over before it was open: denied, refused, or failed at once.
    pub fn closed(&self, record: &ConnectionRecord) {
        self.opened_as(record).closed(record);
    }

    /// Counts a request. `memo` is the connection's own.
    pub fn request(&self, record: &RequestRecord, memo: &RequestMemo) {
        self.inner.requests.count(record, memo);
        if let Some(istio) = &self.inner.istio {
            istio.count(record, &memo.istio);
        }
        self.inner.count_audited(&record.audited);
    }

    /// Counts what came of asking an authorizer, `namespace/name`, and whether the request went on.
    pub fn checked(&self, authorizer: &str, result: &'static str, has_passed: bool) {
        let passed = if has_passed { "true" } else { "false" };
        let labels = CheckLabels { authorizer: authorizer.to_string(), result, passed };
        count(&self.inner.checks, &labels);
    }

    /// Says which workload has which address, in Istio's words.
    pub fn register_parties(&self, source: PartySource) {
        if let Some(istio) = &self.inner.istio {
            istio.register_parties(source);
        }
    }

    /// Lets go of series that name whom the mesh does not have any more.
    pub fn sweep(&self, present: &Present) {
        self.sweep_at(present, Instant::now());
    }

    pub(super) fn sweep_at(&self, present: &Present, now: Instant) {
        self.inner.connections.sweep(present, now);
        self.inner.requests.sweep(present, now);
        if let Some(istio) = &self.inner.istio {
            istio.sweep(present, now);
        }
    }

    /// Shows the kernel's counters as `nodemesh_kernel_outcomes_total`.
    pub fn register_outcomes(&self, source: OutcomeSource) {
        self.inner.collect(OutcomeCollector(source));
    }

    /// Shows certificates as `nodemesh_certificate_…` and roots as `nodemesh_root_…`.
    pub fn register_certificates(&self, source: CertificateSource) {
        self.inner.collect(CertificateCollector(source));
    }

    /// Shows the keys of issuers as `nodemesh_jwks_…`.
    pub fn register_keys(&self, source: KeysSource) {
        self.inner.collect(KeysCollector(source));
    }

    /// Shows the age of the world as `nodemesh_config_age_seconds`.
    pub fn register_config_age(&self, source: ConfigAgeSource) {
        self.inner.collect(ConfigAgeCollector(source));
    }

    /// Shows the lists of an API server as `nodemesh_discovery_…`.
    pub fn register_watches(&self, source: WatchSource) {
        self.inner.collect(WatchCollector(source));
    }

    /// Shows how many pods that should be captured are not as `nodemesh_pods_not_captured`.
    pub fn register_pods_not_captured(&self, source: PodCountSource) {
        let help = "Pods of this node that should be captured and are not; /readyz names them";
        self.inner.collect(PodCountCollector { name: "pods_not_captured", help, source });
    }

    /// Shows of how many captured pods something is to be said as `nodemesh_pods_with_remarks`.
    pub fn register_pods_with_remarks(&self, source: PodCountSource) {
        let help = "Captured pods of this node that have something that nobody can guard; /readyz names them";
        self.inner.collect(PodCountCollector { name: "pods_with_remarks", help, source });
    }

    /// Shows how many connections go from pod to pod by the kernel alone as `nodemesh_same_node_kernel_connections_open`.
    pub fn register_straight(&self, source: StraightSource) {
        self.inner.collect(StraightCollector(source));
    }

    /// Shows whether the agent is ready as `nodemesh_ready`.
    pub fn register_ready(&self, source: ReadySource) {
        self.inner.collect(ReadyCollector(source));
    }

    /// Shows what each pod takes as `nodemesh_workload_…`.
    pub fn register_workloads(&self, source: WorkloadSource) {
        self.inner.collect(WorkloadCollector(source));
    }

    /// Shows tunnels as `nodemesh_tunnel…`.
    pub fn register_tunnels(&self, source: TunnelSource) {
        self.inner.collect(TunnelCollector(source));
    }

    /// Shows the connections that requests share as `nodemesh_http_upstream_…`.
    pub fn register_upstreams(&self, source: UpstreamSource) {
        self.inner.collect(UpstreamCollector(source));
    }

    /// Shows what became of what a collector was told as `nodemesh_otlp_records_total`.
    pub fn register_otlp(&self, source: OtlpSource) {
        self.inner.collect(OtlpCollector(source));
    }

    /// Shows what a controller was asked as `nodemesh_ca_…`.
    pub fn register_authority(&self, source: AuthoritySource) {
        self.inner.collect(AuthorityCollector(source));
    }

    /// What a scrape says of connections, as numbers.
    pub fn each_of_connections(&self, mut tell: impl FnMut(CountedConnections<'_>)) {
        for (owner, entry) in self.inner.connections.snapshot() {
            tell(CountedConnections::new(&owner, &entry.counters));
        }
    }

    /// What a scrape says of requests, as numbers.
    pub fn each_of_requests(&self, mut tell: impl FnMut(CountedRequests<'_>)) {
        for (owner, entry) in self.inner.requests.snapshot() {
            tell(CountedRequests::new(&owner, &entry.counters));
        }
    }

    /// Everything, as OpenMetrics text (see [`CONTENT_TYPE`]). Takes a while where there are many series: call it where
    /// no connection waits for it.
    pub fn encode(&self) -> String {
        use prometheus_client::encoding::text;
        let mut out = String::new();
        {
            let registry = self.inner.registry.lock().unwrap_or_else(PoisonError::into_inner);
            // Writing into a String fails only if a collector says so, and ours pass on nothing but the writer's errors.
            let _ = text::encode_registry(&mut out, &registry);
        }
        self.inner.requests.write(&mut out);
        if let Some(istio) = &self.inner.istio {
            istio.write(&mut out);
        }
        let name = "nodemesh_metrics_overflow";
        let help =
            "What was counted under the overflow labels, because there were too many label sets; but for requests";
        exposition::head(&mut out, name, "counter", help);
        exposition::sample(&mut out, &format!("{name}_total"), "", self.inner.overflowed());
        let _ = text::encode_eof(&mut out);
        out
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl OpenConnection {
    /// Counts bytes of a connection that is still running, given its totals so far. A long session is seen while it
    /// lasts, not only at its end.
    pub fn progress(&self, sent_so_far: u64, received_so_far: u64) {
        let (sent, received) = (growth(&self.sent, sent_so_far), growth(&self.received, received_so_far));
        self.entry.counters.sent.fetch_add(sent, Ordering::Relaxed);
        self.entry.counters.received.fetch_add(received, Ordering::Relaxed);
        if let Some(istio) = &self.istio {
            istio.counters.client_to_server.fetch_add(sent, Ordering::Relaxed);
            istio.counters.server_to_client.fetch_add(received, Ordering::Relaxed);
        }
    }

    /// Counts the end. Totals in the record include what [`OpenConnection::progress`] has counted.
    pub fn closed(mut self, record: &ConnectionRecord) {
        self.progress(record.bytes_sent, record.bytes_received);
        // From pod to pod by the kernel no network was crossed.
        if let Some(network) = record.network.filter(|_| record.transport != Transport::SameNodeKernel) {
            self.entry.counters.crossed(network);
        }
        self.count_end(&record.result);
        self.metrics.inner.count_result(record);
    }

    fn count_end(&mut self, result: &ConnectionResult) {
        self.is_closed = true;
        self.entry.counters.closed(result).fetch_add(1, Ordering::Relaxed);
        self.entry.counters.open.fetch_sub(1, Ordering::Relaxed);
        if let Some(istio) = &self.istio {
            istio.counters.closed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        if !self.is_closed {
            self.count_end(&ConnectionResult::Failed { reason: "abandoned" });
        }
    }
}

/// What `total` is above what was `counted` before.
fn growth(counted: &AtomicU64, total: u64) -> u64 {
    total.saturating_sub(counted.fetch_max(total, Ordering::Relaxed))
}

fn count<W: Words>(table: &Table<W, AtomicU64>, labels: &W) {
    table.entry(labels).0.counters.fetch_add(1, Ordering::Relaxed);
}

impl Inner {
    fn register(&self) {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        registry.register("build", "The running agent", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        let denials = ("denials", "Connections that policy denied");
        registry.register_collector(Box::new(WordCollector(denials, self.denials.clone())));
        let audits = ("audit_matches", "Connections that an AUDIT policy matched; it decided nothing");
        registry.register_collector(Box::new(WordCollector(audits, self.audits.clone())));
        let checks = ("authorizer_checks", "Requests that an authorizer was asked about");
        registry.register_collector(Box::new(WordCollector(checks, self.checks.clone())));
        registry.register(
            "connection_faults",
            "Connections that were refused by rule, failed, or were cut by the agent, by reason",
            self.faults.clone(),
        );
        registry.register(
            "connection_duration_seconds",
            "From accept to close, of connections that ended well or were cut",
            self.durations.clone(),
        );
        registry.register_collector(Box::new(ConnectionCollector(self.connections.clone())));
    }

    fn collect(&self, collector: impl Collector) {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner).register_collector(Box::new(collector));
    }

    fn overflowed(&self) -> u64 {
        let istio = self.istio.as_ref().map_or(0, Istio::overflowed);
        let words = self.denials.overflowed() + self.audits.overflowed() + self.checks.overflowed();
        self.connections.overflowed() + words + istio
    }

    fn count_audited(&self, policies: &[Arc<str>]) {
        for policy in policies {
            count(&self.audits, &AuditLabels { policy: policy.to_string() });
        }
    }

    fn count_result(&self, record: &ConnectionRecord) {
        let direction = record.direction.name();
        self.count_audited(&record.audited);
        match &record.result {
            ConnectionResult::Ok | ConnectionResult::Cut { .. } => {
                let labels = DurationLabels { direction, transport: record.transport.name() };
                self.durations.get_or_create(&labels).observe(record.duration.as_secs_f64());
            }
            ConnectionResult::Denied { .. } | ConnectionResult::Refused { .. } | ConnectionResult::Failed { .. } => {}
        }
        match &record.result {
            ConnectionResult::Ok => {}
            ConnectionResult::Denied { reason } => {
                let (namespace, service_account) = names(record.destination_identity.as_ref());
                let labels = DenialLabels {
                    direction,
                    reason,
                    destination_namespace: namespace.to_string(),
                    destination_service_account: service_account.to_string(),
                };
                count(&self.denials, &labels);
            }
            ConnectionResult::Refused { reason }
            | ConnectionResult::Failed { reason }
            | ConnectionResult::Cut { reason } => {
                self.faults.get_or_create(&FaultLabels { direction, result: record.result.name(), reason }).inc();
            }
        }
    }
}

/// Namespace and service account, empty where nothing is known.
fn names(identity: Option<&SpiffeId>) -> (&str, &str) {
    identity.map_or(("", ""), |identity| (identity.namespace(), identity.service_account()))
}

/// The labels called *connection* above.
fn connection_labels(owner: &Owner<ConnectionKey>) -> [(&'static str, &str); 6] {
    let (direction, transport, source, destination) = match owner {
        Owner::Key(key) => {
            let ConnectionKey { direction, transport, source, destination } = key;
            (direction, transport.name(), names(source.as_ref()), names(destination.as_ref()))
        }
        Owner::Overflow(direction) => {
            (direction, OVERFLOW_NAME, (OVERFLOW_NAME, OVERFLOW_NAME), (OVERFLOW_NAME, OVERFLOW_NAME))
        }
    };
    [
        ("direction", direction.name()),
        ("transport", transport),
        ("source_namespace", source.0),
        ("source_service_account", source.1),
        ("destination_namespace", destination.0),
        ("destination_service_account", destination.1),
    ]
}

/// Shows the series of connections.
#[derive(Debug)]
struct ConnectionCollector(Arc<Table<ConnectionKey, Series>>);

/// Picks one counter of a series.
type CounterOf = fn(&Series) -> &AtomicU64;

impl Collector for ConnectionCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let all = self.0.snapshot();
        let counters: [(&str, &str, CounterOf); 3] = [
            ("connections_opened", "Connections whose parties and way became known", |series| &series.opened),
            ("sent_bytes", "Bytes of applications from client to server", |series| &series.sent),
            ("received_bytes", "Bytes of applications from server to client", |series| &series.received),
        ];
        for (name, help, counter) in counters {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (owner, series) in &all {
                let count = counter(&series.counters).load(Ordering::Relaxed);
                family.encode_family(&connection_labels(owner))?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
            }
        }
        let mut open =
            encoder.encode_descriptor("connections_open", "Connections that are open", None, MetricType::Gauge)?;
        for (owner, series) in &all {
            open.encode_family(&connection_labels(owner))?
                .encode_gauge(&series.counters.open.load(Ordering::Relaxed))?;
        }
        encode_closed(&mut encoder, &all)?;
        encode_networks(&mut encoder, &all)?;
        encode_counter(
            &mut encoder,
            "log_lines_dropped",
            "Log lines lost because whoever reads the log was too slow",
            logs::dropped_lines(),
        )
    }
}

fn encode_closed(
    encoder: &mut DescriptorEncoder,
    all: &[(Owner<ConnectionKey>, Arc<Entry<Series>>)],
) -> Result<(), fmt::Error> {
    let help = "Connections that ended, by result";
    let mut closed = encoder.encode_descriptor("connections_closed", help, None, MetricType::Counter)?;
    for (owner, series) in all {
        for (result, count) in series.counters.closed_by_name().filter(|(_, count)| *count > 0) {
            let [direction, transport, source_ns, source_sa, destination_ns, destination_sa] = connection_labels(owner);
            let labels =
                [direction, transport, source_ns, source_sa, destination_ns, destination_sa, ("result", result)];
            closed.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
    }
    Ok(())
}

/// How the network was, of those that crossed one.
fn encode_networks(
    encoder: &mut DescriptorEncoder,
    all: &[(Owner<ConnectionKey>, Arc<Entry<Series>>)],
) -> Result<(), fmt::Error> {
    let crossed = || all.iter().filter(|(_, series)| series.counters.measured.load(Ordering::Relaxed) > 0);
    let help = "Round trip times at the ends of connections that crossed a network, together";
    let mut family = encoder.encode_descriptor("tcp_rtt_seconds", help, None, MetricType::Counter)?;
    for (owner, series) in crossed() {
        let seconds = Duration::from_micros(series.counters.round_trips.load(Ordering::Relaxed)).as_secs_f64();
        family.encode_family(&connection_labels(owner))?.encode_counter::<NoLabelSet, _, u64>(&seconds, None)?;
    }
    let counters: [(&str, &str, CounterOf); 2] = [
        ("tcp_rtt_measurements", "Connections that crossed a network and told how it was", |series| &series.measured),
        ("tcp_retransmits", "Segments that were sent again while they lived", |series| &series.retransmits),
    ];
    for (name, help, counter) in counters {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (owner, series) in crossed() {
            let count = counter(&series.counters).load(Ordering::Relaxed);
            family.encode_family(&connection_labels(owner))?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
    }
    Ok(())
}

/// Shows counters whose labels are words of the configuration: their name and help, and the counters.
#[derive(Debug)]
struct WordCollector<W: Words>((&'static str, &'static str), Arc<Table<W, AtomicU64>>);

impl<W: Words> Collector for WordCollector<W> {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let Self((name, help), table) = self;
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (owner, entry) in table.snapshot() {
            let labels = match owner {
                Owner::Key(labels) => labels,
                Owner::Overflow(direction) => W::overflow(direction),
            };
            let count = entry.counters.load(Ordering::Relaxed);
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
        Ok(())
    }
}

fn encode_counter(encoder: &mut DescriptorEncoder, name: &str, help: &str, count: u64) -> Result<(), fmt::Error> {
    ConstCounter::new(count).encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)
}

struct OutcomeCollector(OutcomeSource);

impl Collector for OutcomeCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let help = "How the kernel programs ended, summed over CPUs";
        let mut family = encoder.encode_descriptor("kernel_outcomes", help, None, MetricType::Counter)?;
        for (outcome, count) in (self.0)() {
            family.encode_family(&[("outcome", outcome)])?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
        Ok(())
    }
}

struct KeysCollector(KeysSource);

impl Collector for KeysCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let all = (self.0)();
        let help = "Whether tokens can be verified by the keys that were fetched from there";
        let mut family = encoder.encode_descriptor("jwks_in_force", help, None, MetricType::Gauge)?;
        for facts in &all {
            family.encode_family(&[("uri", facts.uri.as_str())])?.encode_gauge(&i64::from(facts.in_force))?;
        }
        let help = "Since the keys were had last";
        let mut family = encoder.encode_descriptor("jwks_age_seconds", help, None, MetricType::Gauge)?;
        for (facts, age) in all.iter().filter_map(|facts| Some((facts, facts.age?))) {
            family.encode_family(&[("uri", facts.uri.as_str())])?.encode_gauge(&age.as_secs_f64())?;
        }
        let help = "Fetches of issuers' keys";
        let mut family = encoder.encode_descriptor("jwks_fetches", help, None, MetricType::Counter)?;
        for facts in &all {
            for (result, count) in [("ok", facts.good), ("failed", facts.failed)] {
                let labels = [("uri", facts.uri.as_str()), ("result", result)];
                family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
            }
        }
        Ok(())
    }
}

struct CertificateCollector(CertificateSource);

/// Picks one gauge of a certificate.
type GaugeOf = fn(&CertificateFacts) -> Option<f64>;

impl Collector for CertificateCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let (certificates, roots) = (self.0)();
        let gauges: [(&str, &str, GaugeOf); 3] = [
            (
                "certificate_expiry_timestamp_seconds",
                "When the certificate of an identity on this node ends, in seconds of Unix time",
                |facts| facts.expiry,
            ),
            (
                "certificate_expiry_seconds",
                "What is left of the certificate by the node's clock; below zero when it has ended",
                |facts| facts.left,
            ),
            (
                "certificate_issued_timestamp_seconds",
                "When the certificate was issued, in seconds of Unix time",
                |facts| facts.issued,
            ),
        ];
        for (name, help, gauge) in gauges {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for facts in &certificates {
                let Some(value) = gauge(facts) else { continue };
                family.encode_family(&[("identity", facts.identity.to_string())])?.encode_gauge(&value)?;
            }
        }
        let help = "Tries to get a certificate that failed";
        let mut failures =
            encoder.encode_descriptor("certificate_renewal_failures", help, None, MetricType::Counter)?;
        for facts in &certificates {
            let labels = [("identity", facts.identity.to_string())];
            failures.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&facts.failures, None)?;
        }
        encode_roots(&mut encoder, &roots)
    }
}

fn encode_roots(encoder: &mut DescriptorEncoder, roots: &[RootFacts]) -> Result<(), fmt::Error> {
    let help = "When a trusted root ends, in seconds of Unix time";
    let mut expiry = encoder.encode_descriptor("root_expiry_timestamp_seconds", help, None, MetricType::Gauge)?;
    for facts in roots {
        let signs = if facts.signs { "true" } else { "false" };
        expiry.encode_family(&[("root", &*facts.root), ("signs", signs)])?.encode_gauge(&facts.expiry)?;
    }
    let help = "Live tunnels whose peer rests on this root";
    let mut peers = encoder.encode_descriptor("root_peers", help, None, MetricType::Gauge)?;
    for facts in roots {
        peers.encode_family(&[("root", &*facts.root)])?.encode_gauge(&facts.peers)?;
    }
    Ok(())
}

struct ConfigAgeCollector(ConfigAgeSource);

impl Collector for ConfigAgeCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let Some(age) = (self.0)() else { return Ok(()) };
        let help = "How long ago the configuration of the mesh was last read whole";
        let gauge = ConstGauge::new(age.as_secs_f64());
        gauge.encode(encoder.encode_descriptor("config_age_seconds", help, None, MetricType::Gauge)?)
    }
}

struct WatchCollector(WatchSource);

impl Collector for WatchCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let all = (self.0)();
        let help = "In which state the list of an API server is";
        let mut family = encoder.encode_descriptor("discovery_watch_state", help, None, MetricType::Gauge)?;
        for facts in &all {
            family.encode_family(&[("watch", facts.watch), ("state", facts.state)])?.encode_gauge(&1i64)?;
        }
        let help = "Lists of an API server that were made from their beginning";
        let mut family = encoder.encode_descriptor("discovery_lists", help, None, MetricType::Counter)?;
        for facts in &all {
            family
                .encode_family(&[("watch", facts.watch)])?
                .encode_counter::<NoLabelSet, _, u64>(&facts.lists, None)?;
        }
        let help = "Requests to the API server that failed";
        let mut family = encoder.encode_descriptor("discovery_failures", help, None, MetricType::Counter)?;
        for (facts, (cause, count)) in all.iter().flat_map(|facts| facts.failures.iter().map(move |one| (facts, one))) {
            let labels = [("watch", facts.watch), ("cause", cause)];
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(count, None)?;
        }
        Ok(())
    }
}

struct PodCountCollector {
    name: &'static str,
    help: &'static str,
    source: PodCountSource,
}

impl Collector for PodCountCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let gauge = ConstGauge::new(i64::try_from((self.source)()).unwrap_or(i64::MAX));
        gauge.encode(encoder.encode_descriptor(self.name, self.help, None, MetricType::Gauge)?)
    }
}

struct StraightCollector(StraightSource);

impl Collector for StraightCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let help = "Connections from pod to pod of this node that the kernel carries alone";
        let gauge = ConstGauge::new(i64::try_from((self.0)()).unwrap_or(i64::MAX));
        gauge.encode(encoder.encode_descriptor("same_node_kernel_connections_open", help, None, MetricType::Gauge)?)
    }
}

struct ReadyCollector(ReadySource);

impl Collector for ReadyCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let help = "Whether the agent is ready; /readyz says what is missing";
        let gauge = ConstGauge::new(i64::from((self.0)()));
        gauge.encode(encoder.encode_descriptor("ready", help, None, MetricType::Gauge)?)
    }
}

struct WorkloadCollector(WorkloadSource);

/// Picks one number of a pod's usage.
type UsageOf = fn(&WorkloadUsage) -> u64;

impl Collector for WorkloadCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let all = (self.0)();
        let gauges: [(&str, &str, UsageOf); 4] = [
            ("workload_connections", "Live connections of a pod", |usage| usage.connections),
            ("workload_tunnels", "Tunnels that peers hold open to a pod", |usage| usage.tunnels),
            ("workload_handshakes", "Peers of a pod that have not proved who they are", |usage| usage.handshakes),
            ("workload_buffered_bytes", "Bytes that wait for a pod's applications", |usage| usage.buffered_bytes),
        ];
        for (name, help, number) in gauges {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for usage in &all {
                let labels = [("namespace", &*usage.namespace), ("pod", &*usage.pod)];
                family.encode_family(&labels)?.encode_gauge(&number(usage))?;
            }
        }
        let help = "Connections of a pod that were refused or cut, because it had taken its budget";
        let mut family = encoder.encode_descriptor("workload_over_budget", help, None, MetricType::Counter)?;
        for usage in &all {
            for (budget, count) in usage.refused.iter().filter(|(_, count)| *count > 0) {
                let labels = [("namespace", &*usage.namespace), ("pod", &*usage.pod), ("budget", budget)];
                family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(count, None)?;
            }
        }
        Ok(())
    }
}

struct TunnelCollector(TunnelSource);

impl Collector for TunnelCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let TunnelNumbers { open, streams, establishments } = (self.0)();
        for (name, help, number) in [
            ("tunnels_open", "Tunnels that this agent dialled and that are open", open),
            ("tunnel_streams_open", "Connections on the tunnels that this agent dialled", streams),
        ] {
            ConstGauge::new(number).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        let help = "Tries to make a tunnel, by how they ended";
        let mut family = encoder.encode_descriptor("tunnel_establishments", help, None, MetricType::Counter)?;
        for (result, count) in establishments {
            family.encode_family(&[("result", result)])?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
        Ok(())
    }
}

macro_rules! debug_by_name {
    ($($collector:ident)*) => {$(
        impl fmt::Debug for $collector {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(stringify!($collector))
            }
        }
    )*};
}

debug_by_name! { OutcomeCollector CertificateCollector KeysCollector ConfigAgeCollector PodCountCollector }
debug_by_name! { StraightCollector ReadyCollector WatchCollector WorkloadCollector TunnelCollector UpstreamCollector }
debug_by_name! { OtlpCollector AuthorityCollector }

/// Shows the connections that requests share.
struct UpstreamCollector(UpstreamSource);

impl Collector for UpstreamCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let UpstreamNumbers { open, made, reused, resent, retried, ejected } = (self.0)();
        let help = "Connections to applications that requests share";
        let gauge = encoder.encode_descriptor("http_upstream_connections_open", help, None, MetricType::Gauge)?;
        ConstGauge::new(open).encode(gauge)?;
        for (name, help, count) in [
            ("http_upstream_connections_made", "Connections to applications that requests share, made", made),
            ("http_upstream_reuses", "Requests that went out on a connection that was there", reused),
            ("http_resends", "Requests that went out again: the application had closed their connection", resent),
            ("http_retries", "Tries of requests after the first, as a TrafficPolicy or a route asked for", retried),
            ("http_ejections", "Endpoints left out for a while, because they failed too often", ejected),
        ] {
            encode_counter(&mut encoder, name, help, count)?;
        }
        Ok(())
    }
}

struct AuthorityCollector(AuthoritySource);

impl Collector for AuthorityCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let AuthorityNumbers { certificates, reviews, leads } = (self.0)();
        for (name, help, counts) in [
            ("ca_certificates", "Requests for certificates, by what became of them", certificates),
            ("ca_token_reviews", "Callers' tokens, by what became of them", reviews),
        ] {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (result, count) in counts {
                family.encode_family(&[("result", result)])?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
            }
        }
        let help = "Whether this replica of the controller is the one that writes";
        ConstGauge::new(i64::from(leads)).encode(encoder.encode_descriptor(
            "controller_leads",
            help,
            None,
            MetricType::Gauge,
        )?)
    }
}

/// Shows what became of what a collector was told.
struct OtlpCollector(OtlpSource);

impl Collector for OtlpCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let help = "Spans, lines of the access log and points of metrics for the collector, by what became of them";
        let mut family = encoder.encode_descriptor("otlp_records", help, None, MetricType::Counter)?;
        for (signal, result, count) in (self.0)() {
            let labels = [("signal", signal), ("result", result)];
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
        Ok(())
    }
}
