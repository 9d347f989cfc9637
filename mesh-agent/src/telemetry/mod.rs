//! What happened: logs, metrics and one access log line per connection.
//!
//! Every other room reports here; this room asks nobody. What it shows that belongs to others (kernel outcomes,
//! certificates, the age of the configuration) it reads through closures that `app` registers. It decides nothing,
//! and no call here waits: the data path never stops for a slow reader of its logs.

pub mod access_log;
mod counted;
mod denials;
mod exposition;
pub mod flows;
pub mod istio;
mod json_line;
pub mod logs;
pub mod metrics;
pub mod otlp;
mod requests;
mod series;
pub mod spans;
pub mod table;
mod tapped;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::limit::{Limit, limits};
use crate::spiffe::SpiffeId;

pub use access_log::AccessLog;
pub use counted::{Answers, CountedConnections, CountedRequests, Whose};
pub use denials::{Denial, Denials};
pub use metrics::{AuthorityNumbers, CertificateFacts, KeysFacts, Metrics, OpenConnection, RootFacts, WatchFacts};
pub use requests::{RequestMemo, RequestRecord, RequestResult};
pub use spans::{Event, Span, Spans};
pub use tapped::TappedHeaders;

/// The bounds of this room.
pub fn limits() -> Vec<Limit> {
    limits![
        metrics::DEFAULT_SERIES, "lines of a scrape", "of connections and requests; the rest counts under _overflow (--metrics-series)";
        metrics::MAX_WORDS, "sets of labels", "of denials, audit matches and checks, each; words of the configuration";
        series::LINES_OF_CONNECTIONS, "lines", "of a scrape that a set of labels of connections takes";
        requests::LINES_OF_REQUESTS, "lines", "of a scrape that a set of labels of requests takes";
        istio::REQUEST_LINES, "lines", "of a scrape that a set of Istio's labels of requests takes";
        istio::CONNECTION_LINES, "lines", "of a scrape that a set of Istio's labels of connections takes";
        table::GRACE, "milliseconds", "then a set of labels goes that names whom the mesh does not have any more";
        table::IDLE, "milliseconds", "then an unused set of labels makes room in a full table";
        table::SWEEP_INTERVAL, "milliseconds", "between two searches for sets of labels that may go";
        flows::MAX_LISTENERS, "listeners", "to what ends at one agent; each costs the data path a copy of what it asks for";
        flows::QUEUE, "records", "that wait for one listener, about a KiB each, three with headers; more are lost for it and counted";
        tapped::MAX_HEADERS, "headers", "of one request that a listener is told who asks for them; more are counted";
        tapped::MAX_HEADERS_BYTES, "bytes", "of these names and values together";
        tapped::MAX_VALUE_BYTES, "bytes", "of one of these values; the rest is cut";
        logs::QUEUE_LINES, "lines", "that wait for a slow reader of the log; more are lost and counted";
        logs::FLUSH_WAIT, "milliseconds", "for a slow reader of the log at the end of the process";
        spans::QUEUE_SPANS, "spans", "that wait for the collector, 2 KiB each; more are lost and counted";
        spans::MOST_EVENTS, "events", "of a span: retries, faults; of more it is told how many";
        otlp::COLLECTOR_LINES, "lines", "of the access log that wait for the collector, about a KiB each; more are lost and counted";
        otlp::LINES_CHUNK, "bytes", "in which lines for the collector are written, of each worker; held until the last of them has gone out";
        otlp::MOST_AT_ONCE, "records", "spans or lines that go to the collector together: 500 KiB";
        otlp::LINGER, "milliseconds", "how long a span or a line waits for others to go with";
        otlp::GLANCE, "milliseconds", "between two looks whether others have come to go with";
        otlp::MOST_POINTS, "points", "of metrics that go to the collector together: 2 MiB";
        otlp::MAX_TEXT_BYTES, "bytes", "of a path, a host, a label that the collector is told; the rest is cut";
        otlp::CONNECT_TIMEOUT, "milliseconds", "for a connection to the collector";
        otlp::EXPORT_TIMEOUT, "milliseconds", "for the collector to take them; then they are lost and counted";
        otlp::KEEPALIVE, "milliseconds", "between two questions whether the collector's gRPC connection lives";
        otlp::MAX_TRIES, "tries", "of a request that the collector cannot take now";
        otlp::SHORTEST_PAUSE, "milliseconds", "before the second try; it doubles";
        otlp::LONGEST_PAUSE, "milliseconds", "before another try, also where the collector asks for more";
        otlp::HEADERS_FILE_BYTES, "bytes", "of the file with headers for the collector; a longer one is not read";
        otlp::MAX_ANSWER_BYTES, "bytes", "of the collector's answer";
        denials::MOST_DENIALS, "refusals", "of different kinds that /denials shows, 1 KiB each; older ones are forgotten";
        denials::MAX_PATH_BYTES, "bytes", "of a refused request's path that /denials shows";
        json_line::USUAL_BYTES, "bytes", "that a line of the access log takes room for at first";
        logs::COLLECT, "milliseconds", "how long lines of the log wait for others to be written with";
        logs::BATCH_BYTES, "bytes", "of the log that are written at once";
        logs::FLUSH_POLL, "milliseconds", "how often the end looks whether a full queue has room";
    ]
}

/// Which journey through the agent, seen from the pod on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// An application of this node dialled.
    Outbound,
    /// Somebody dialled an application of this node.
    Inbound,
}

impl Direction {
    /// The stable name, in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Direction::Outbound => "outbound",
            Direction::Inbound => "inbound",
        }
    }
}

/// How the bytes travelled outside the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// HBONE: mutual TLS between agents.
    Tunnel,
    /// A peer outside the mesh, or one that takes plaintext only.
    Plaintext,
    /// Between two pods of this node within the agent: identity by the kernel, no TLS.
    SameNode,
    /// Between two pods of this node by the kernel alone: identity by the kernel, no TLS, no agent.
    SameNodeKernel,
    /// A pod that reached itself through a Service, served inside the agent.
    Itself,
    /// A destination that the mesh does not know, passed as it is.
    PassThrough,
    /// Decided anew for every request in it.
    Requests,
    /// Refused before a way was chosen.
    Undecided,
}

impl Transport {
    /// The stable name, in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Transport::Tunnel => "tunnel",
            Transport::Plaintext => "plaintext",
            Transport::SameNode => "same-node",
            Transport::SameNodeKernel => "same-node-kernel",
            Transport::Itself => "itself",
            Transport::PassThrough => "pass-through",
            Transport::Requests => "requests",
            Transport::Undecided => "undecided",
        }
    }
}

/// How a connection ended. Reasons are words from the code, never text from the network: they are metric labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectionResult {
    /// Both sides closed in order.
    Ok,
    /// Policy said no before a byte passed.
    Denied {
        /// Which kind of denial, such as `no-allow-rule`.
        reason: &'static str,
    },
    /// Not served, by rule: no endpoint, unknown destination in registry-only mode, a pod that dials the ranges.
    Refused {
        /// Which rule.
        reason: &'static str,
    },
    /// It should have worked and did not: connect failed, TLS failed, reset.
    Failed {
        /// What failed.
        reason: &'static str,
    },
    /// The agent ended a connection that worked: policy changed, drain window over, pod gone.
    Cut {
        /// What made it so.
        reason: &'static str,
    },
}

impl ConnectionResult {
    /// The stable name of the kind, in metrics and logs.
    pub fn name(&self) -> &'static str {
        match self {
            ConnectionResult::Ok => "ok",
            ConnectionResult::Denied { .. } => "denied",
            ConnectionResult::Refused { .. } => "refused",
            ConnectionResult::Failed { .. } => "failed",
            ConnectionResult::Cut { .. } => "cut",
        }
    }

    /// Why, when it is not [`ConnectionResult::Ok`].
    pub fn reason(&self) -> Option<&'static str> {
        match self {
            ConnectionResult::Ok => None,
            ConnectionResult::Denied { reason }
            | ConnectionResult::Refused { reason }
            | ConnectionResult::Failed { reason }
            | ConnectionResult::Cut { reason } => Some(reason),
        }
    }
}

/// What one pod of this node has taken of its budget, and was refused for being over it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadUsage {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub pod: Arc<str>,
    /// Live connections, each counted at the pod where it was accepted.
    pub connections: u64,
    /// Tunnels that peers hold open to it.
    pub tunnels: u64,
    /// Peers of its tunnel port that have not proved who they are yet.
    pub handshakes: u64,
    /// Bytes that wait in the agent for its applications to read.
    pub buffered_bytes: u64,
    /// Refusals and cuts, by budget; every budget is named.
    pub refused: Vec<(&'static str, u64)>,
}

/// The tunnels that this agent dials, all workers together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TunnelNumbers {
    /// Those that live.
    pub open: u64,
    /// Their streams.
    pub streams: u64,
    /// How tries to make one ended, by stable label.
    pub establishments: Vec<(&'static str, u64)>,
}

/// The connections to applications that requests share, all workers together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UpstreamNumbers {
    /// Those that live.
    pub open: u64,
    /// How many were made.
    pub made: u64,
    /// Requests that went out on one that was there.
    pub reused: u64,
    /// Requests that went out again, because the application had closed their connection.
    pub resent: u64,
    /// Tries after the first, as a policy asked for.
    pub retried: u64,
    /// Endpoints that were left out for a while.
    pub ejected: u64,
}

/// What the metrics of a connection are kept by, known once its route or its peer is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionKey {
    /// Which journey.
    pub direction: Direction,
    /// How the bytes travel.
    pub transport: Transport,
    /// Who dialled, where known.
    pub source: Option<SpiffeId>,
    /// Who serves, where known.
    pub destination: Option<SpiffeId>,
}

/// One connection, told at its end: everything that the access log and the metrics say about it.
#[derive(Clone, Debug)]
pub struct ConnectionRecord {
    /// Which journey.
    pub direction: Direction,
    /// How the bytes travelled.
    pub transport: Transport,
    /// `<namespace>/<name>` of the pod that dialled, where known.
    pub source_pod: Option<Arc<str>>,
    /// Who dialled: for inbound tunnels the identity of the certificate, never a claim.
    pub source_identity: Option<SpiffeId>,
    /// The TCP peer that opened the connection.
    pub client: SocketAddr,
    /// What the application passed to connect(); outbound only.
    pub dialled: Option<SocketAddr>,
    /// `<namespace>/<name>` of the Service that was dialled.
    pub service: Option<Arc<str>>,
    /// `<namespace>/<name>` of the pod that serves, where known.
    pub destination_pod: Option<Arc<str>>,
    /// Who serves, where known.
    pub destination_identity: Option<SpiffeId>,
    /// Where the connection was sent, when it got that far.
    pub server: Option<SocketAddr>,
    /// The trace id of `traceparent`, 32 hex digits, when there was one.
    pub trace_id: Option<Arc<str>>,
    /// The policy that decided last, as `<namespace>/<name>`: it allowed the connection, denied it, or had it cut. None
    /// where this node decided nothing, or no policy had to be named.
    pub rule: Option<Arc<str>>,
    /// The AUDIT policies that match it. They decided nothing.
    pub audited: Vec<Arc<str>>,
    /// How it ended.
    pub result: ConnectionResult,
    /// Bytes of the application from client to server.
    pub bytes_sent: u64,
    /// Bytes of the application from server to client.
    pub bytes_received: u64,
    /// From accept to close.
    pub duration: Duration,
    /// How the network was, where one was crossed and the kernel could be asked.
    pub network: Option<Network>,
}

/// What the kernel measured at this node's end of the TCP connection that crossed the network: a connection's own, or the
/// tunnel's, which others may share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// The smoothed round trip time at the end.
    pub rtt: Duration,
    /// Segments sent again while the connection lived.
    pub retransmits: u32,
}

impl ConnectionRecord {
    /// The key for [`Metrics::opened`].
    pub fn key(&self) -> ConnectionKey {
        ConnectionKey {
            direction: self.direction,
            transport: self.transport,
            source: self.source_identity.clone(),
            destination: self.destination_identity.clone(),
        }
    }
}
