//! Why a connection did not go through, by who has to act, and what the wire and the metrics say about it.

use std::io;

use super::budget::Over;
use super::dial;
use crate::hbone::{OpenError, ServeError, Status};
use crate::podnet::RecordError;
use crate::policy::Denial;
use crate::routing::Refusal;

/// Why a connection ended before a byte was carried.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Policy said no: an answer, not an error.
    #[error("denied by policy: {}{}", .0.reason.label(), .0.rule.as_ref().map(|r| format!(" ({r})")).unwrap_or_default())]
    Denied(Denial),
    /// Routing said no: the destination has no endpoint, or is not to be reached from here.
    #[error("refused: {}", .0.label())]
    Refused(Refusal),
    /// A peer asked for something that is not this pod's: another address, or the tunnel port itself.
    #[error("the tunnel to this pod was asked for {0}")]
    NotThisPod(std::net::SocketAddr),
    /// The kernel's record of what the application dialled is not there.
    #[error("{0}; the client closed early, or the record was made before the maps were")]
    Record(#[from] RecordError),
    /// No certificate for the pod's own identity.
    #[error("no certificate for {0} yet: look at the CA in /config_dump")]
    NoCertificate(crate::spiffe::SpiffeId),
    /// The far node did not carry the connection.
    #[error("tunnel to {address}: {error}")]
    Tunnel {
        /// The endpoint that was tried last.
        address: std::net::SocketAddr,
        /// What it said.
        error: OpenError,
    },
    /// The other pod's side, which this agent is as well, did not take the connection in, and told why. The caller hears
    /// as much as by a tunnel.
    #[error("not taken in by {address}: {status:?}")]
    NotTakenIn {
        /// The endpoint that was tried last.
        address: std::net::SocketAddr,
        /// What a tunnel would have answered.
        status: Status,
    },
    /// The TCP connection to an endpoint or to the application could not be made.
    #[error("connect to {address}: {error}")]
    Connect {
        /// What was dialled.
        address: std::net::SocketAddr,
        /// What the kernel said.
        error: io::Error,
    },
    /// The pod has taken all that one pod may take, or the process has.
    #[error("over budget: {}", .0.label())]
    OverBudget(Over),
    /// A socket of the agent's own failed.
    #[error("socket: {0}")]
    Socket(io::Error),
    /// The peer took its request back while the application was dialled.
    #[error("the peer took its request back")]
    Abandoned,
    /// The connection was cut while it was being set up.
    #[error("cut while connecting: {}", .0.reason())]
    Cut(super::connection::Cut),
}

impl From<Over> for Failure {
    fn from(over: Over) -> Self {
        Failure::OverBudget(over)
    }
}

impl Failure {
    /// Whether policy said no, here or at the far end.
    pub fn is_denied(&self) -> bool {
        match self {
            Failure::Denied(_) | Failure::NotTakenIn { status: Status::Denied, .. } => true,
            Failure::Tunnel { error, .. } => error.is_denied(),
            _ => false,
        }
    }

    /// A dial that failed.
    pub fn dial(address: std::net::SocketAddr, error: io::Error) -> Self {
        if dial::is_out_of_descriptors(&error) {
            return Failure::OverBudget(Over::Descriptors);
        }
        Failure::Connect { address, error }
    }

    /// The stable label for metrics and logs.
    pub fn reason(&self) -> &'static str {
        match self {
            Failure::Denied(denial) => denial.reason.label(),
            Failure::Refused(refusal) => refusal.label(),
            Failure::NotThisPod(_) => "not-this-pod",
            Failure::Record(RecordError::NoKey) => "record-no-key",
            Failure::Record(RecordError::NoRecord) => "record-missing",
            Failure::Record(RecordError::OtherPod) => "record-other-pod",
            Failure::NoCertificate(_) => "no-certificate",
            Failure::Tunnel { error, .. } => tunnel_reason(error),
            Failure::NotTakenIn { status, .. } => refused_reason(status.code().as_u16()),
            Failure::Connect { .. } => "connect-failed",
            Failure::OverBudget(over) => over.label(),
            Failure::Socket(_) => "socket-failed",
            Failure::Abandoned => "abandoned",
            Failure::Cut(cut) => cut.reason(),
        }
    }

    /// What a peer is told over HBONE (DESIGN: 401 denied, 400 bad authority, 503 no application).
    pub fn status(&self) -> Status {
        match self {
            Failure::Denied(_) => Status::Denied,
            Failure::NotThisPod(address) if address.port() == crate::hbone::PORT => Status::Unavailable,
            Failure::NotThisPod(_) => Status::BadRequest,
            Failure::Cut(super::connection::Cut::Revoked(_)) => Status::Denied,
            Failure::Refused(_)
            | Failure::Record(_)
            | Failure::NoCertificate(_)
            | Failure::Tunnel { .. }
            | Failure::NotTakenIn { .. }
            | Failure::Connect { .. }
            | Failure::OverBudget(_)
            | Failure::Socket(_)
            | Failure::Abandoned
            | Failure::Cut(_) => Status::Unavailable,
        }
    }
}

fn tunnel_reason(error: &OpenError) -> &'static str {
    match error {
        OpenError::Connect { .. } => "tunnel-connect-failed",
        OpenError::TimedOut(_) => "tunnel-timed-out",
        OpenError::Tls(_) => "tunnel-tls",
        OpenError::WrongIdentity { .. } => "tunnel-wrong-identity",
        OpenError::Lost(_) => "tunnel-lost",
        OpenError::GoingAway(_) => "tunnel-going-away",
        OpenError::Refused(status) => refused_reason(status.as_u16()),
        OpenError::Reset(_) => "tunnel-reset",
        OpenError::TooManyTunnels => "too-many-tunnels",
        OpenError::BackingOff(_) => "tunnel-backoff",
    }
}

/// What the far side's status means (HBONE: 401 policy, 400 bad request, 503 no application).
fn refused_reason(status: u16) -> &'static str {
    match status {
        400 => "far-side-bad-request",
        401 => "far-side-denied",
        503 => "far-side-unavailable",
        _ => "far-side-refused",
    }
}

/// Why a tunnel that a peer opened to us ended in an error.
pub fn serve_reason(error: &ServeError) -> &'static str {
    match error {
        ServeError::HandshakeTimeout => "handshake-timed-out",
        ServeError::Tls(_) => "handshake-tls",
        ServeError::Peer(_) => "peer-certificate",
        ServeError::NotHttp2 => "not-http2",
        ServeError::Http2(_) => "http2",
        ServeError::PingTimeout => "ping-timed-out",
        ServeError::Distrusted => "peer-root-withdrawn",
        ServeError::Drained => "drain-window",
    }
}
