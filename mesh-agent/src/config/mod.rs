//! What was typed, and what it means: plain values, one struct per concern.
//!
//! `cli` holds the texts, this module judges them. No room imports it: `app` hands each room the values that it needs.
//! Every refusal says where the value came from, what the right form is, and shows one.

mod controller;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod meaning;
mod refusal;
mod surroundings;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use crate::admin::Address;
use crate::departure::OwnDaemonSet;
use crate::identity::Remote;
use crate::issuers;
use crate::routing::OutboundMode;
use crate::telemetry::{access_log, logs, metrics, otlp, spans};

pub use controller::ControllerConfig;
pub use meaning::{PINS_EXPECTED, cgroup_root, is_pins_path};
pub use refusal::{Refusal, Refusals};
pub use surroundings::Surroundings;

/// Defaults that the help text quotes.
pub mod default {
    /// `--bpf-pins`
    pub const BPF_PINS: &str = "/sys/fs/bpf/nodemesh";
    /// `--trust-domain`
    pub const TRUST_DOMAIN: &str = "cluster.local";
    /// `--outbound-mode`
    pub const OUTBOUND_MODE: &str = "allow-any";
    /// `--admin`
    pub const ADMIN: &str = "127.0.0.1:15000";
    /// `--metrics`
    pub const METRICS: &str = "[::]:15020";
    /// `--readiness`
    pub const READINESS: &str = "[::]:15021";
    /// `--log-format`
    pub const LOG_FORMAT: &str = "text";
    /// `--log-level`
    pub const LOG_LEVEL: &str = "info";
    /// `--pod-connections`: twice what one pod is shown to hold, at 8 to 10 KB each.
    pub const POD_CONNECTIONS: &str = "32768";
    /// `--pod-accept-rate`: three times 100 000 a minute, about what one core serves.
    pub const POD_ACCEPT_RATE: &str = "5000";
    /// `--pod-accept-burst`: an application that opens all its connections at its start.
    pub const POD_ACCEPT_BURST: &str = "20000";
    /// `--pod-handshakes`
    pub const POD_HANDSHAKES: &str = "1024";
    /// `--pod-buffer`: 256 connections whose applications have stopped reading.
    pub const POD_BUFFER: &str = "256Mi";
    /// `--access-log`
    pub const ACCESS_LOG: &str = "all";
    /// `--otlp-signals`
    pub const OTLP_SIGNALS: &str = "traces,logs,metrics";
    /// `--otlp-interval`: OpenTelemetry's own.
    pub const OTLP_INTERVAL: &str = "60s";
    /// `--trace-sampling`, in percent: what Istio takes, too.
    pub const TRACE_SAMPLING: &str = "1";
    /// `--metrics-series`: a scrape of 14 MB, of 29 MB with Istio's.
    pub const METRICS_SERIES: &str = "50000";
    /// `--istio-metrics`
    pub const ISTIO_METRICS: &str = "false";
    /// `--drain-window`
    pub const DRAIN_WINDOW: &str = "10m";
    /// `--map-connections`
    pub const MAP_CONNECTIONS: &str = "262144";
    /// `--svid-ttl`
    pub const SVID_TTL: &str = "4h";
    /// `--namespace` of the controller
    pub const NAMESPACE: &str = "nodemesh-system";
    /// `--agents` of the controller
    pub const AGENTS: &str = "nodemesh-agent";
    /// `--svid-ttl-max` of the controller
    pub const SVID_TTL_MAX: &str = "24h";
    /// `--listen` of the controller
    pub const LISTEN: &str = "[::]:15012";
    /// `--http` of the controller
    pub const CONTROLLER_HTTP: &str = "[::]:15014";
    /// `--tc`
    pub const TC: &str = "auto";
    /// `--bpf-log`
    pub const BPF_LOG: &str = "false";
    /// `--same-node-kernel`
    pub const SAME_NODE_KERNEL: &str = "false";
}

/// What `mesh-agent run` is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The Kubernetes node that this agent serves.
    pub node: String,
    /// Where the world comes from.
    pub discovery: Discovery,
    /// Whose end is that of the mesh on this node.
    pub daemonset: Option<OwnDaemonSet>,
    /// The kernel side.
    pub capture: Capture,
    /// Where the container network's plugin is answered; None: nowhere.
    pub cni_socket: Option<PathBuf>,
    /// Certificates.
    pub identity: Identity,
    /// Where keys of tokens' issuers may be fetched from.
    pub issuers: issuers::Reach,
    /// The data path.
    pub proxy: Proxy,
    /// The agent's own HTTP.
    pub http: Http,
    /// The log.
    pub logs: Logs,
    /// What a collector is told.
    pub otlp: Otlp,
    /// What a scrape may have.
    pub metrics: metrics::Settings,
}

/// Where the world comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Discovery {
    /// A directory of Kubernetes YAML.
    Directory(PathBuf),
    /// The API server of the cluster.
    Kubernetes {
        /// By this kubeconfig; None: by the pod's service account, else as kubectl finds it.
        kubeconfig: Option<PathBuf>,
    },
}

/// The kernel side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capture {
    /// The cgroup under which the pods of this node are found.
    pub cgroup_root: PathBuf,
    /// The directory on bpffs for pins; a directory per ABI version is made below.
    pub bpf_pins: PathBuf,
    /// The eBPF object; none is the one inside this binary.
    pub bpf_object: Option<PathBuf>,
    /// How many captured connections can be on record at once.
    pub map_connections: u32,
    /// How the guard is attached.
    pub tc: Tc,
    /// Whether the eBPF programs log.
    pub bpf_log: bool,
    /// Whether pods of the node may reach each other by the kernel alone.
    pub same_node_kernel: bool,
}

/// How the guard is attached to interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tc {
    /// tcx where the kernel has it, clsact elsewhere.
    Auto,
    /// tcx (Linux 6.6).
    Tcx,
    /// A clsact qdisc with filters.
    Clsact,
}

/// Certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Who signs.
    pub ca: Ca,
    /// The trust domain of every identity.
    pub trust_domain: String,
    /// How long an SVID is valid; it is renewed at half of it.
    pub svid_ttl: Duration,
}

/// Who signs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ca {
    /// A root in memory, of this process alone.
    Memory,
    /// A root on disk, which several agents of one machine share.
    Directory(PathBuf),
    /// Somebody else, who is asked.
    Remote(Remote),
}

/// The data path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// What happens to destinations that the mesh does not know.
    pub outbound_mode: OutboundMode,
    /// How many worker threads serve connections.
    pub workers: NonZeroUsize,
    /// How long connections may go on after the agent was told to end.
    pub drain_window: Duration,
    /// What each pod may take.
    pub pod: PodBudget,
}

/// What one pod may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodBudget {
    /// Connections that live at once.
    pub connections: u32,
    /// New connections per second.
    pub accept_rate: u32,
    /// New connections at once.
    pub accept_burst: u32,
    /// Peers in their handshake at once.
    pub handshakes: u32,
    /// Bytes that wait for applications that do not read.
    pub buffer: usize,
}

/// The agent's own HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http {
    /// Everything: loopback or a unix socket.
    pub admin: Address,
    /// /metrics alone.
    pub metrics: Address,
    /// /readyz alone.
    pub readiness: Address,
    /// The live map; loopback. None: it is not served.
    pub map: Option<SocketAddr>,
}

/// The log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logs {
    /// Text or JSON.
    pub format: logs::Format,
    /// A level or a list of filter directives.
    pub level: String,
    /// Which connections get a line.
    pub access: access_log::Filter,
}

/// What a collector is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Otlp {
    /// Where it is; none: nothing is told.
    pub collector: Option<otlp::Collector>,
    /// Whom to believe there, and what to show.
    pub credentials: otlp::Credentials,
    /// What.
    pub signals: otlp::Signals,
    /// How often metrics go.
    pub interval: Duration,
    /// Of requests that come without a trace.
    pub sampling: spans::Sampling,
}
