//! The dialling end: TLS, HTTP/2 and one CONNECT.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use h2::Reason;
use http::StatusCode;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::connection::Connection;
use super::limits::Limits;
use super::liveness;
use super::pool::Occupied;
use super::session::{Opener, Session, Unopened};
use super::socket::{Below, Socket};
use super::stream::Stream;
use super::words::ConnectRequest;
use crate::identity::{Peer, Svid};
use crate::spiffe::SpiffeId;

/// Why no stream was opened. No byte of the application was taken in any of these cases, so another endpoint may be
/// tried; [`OpenError::Refused`] is the far side's word and would be the same there only by policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The other agent could not be reached by TCP.
    #[error("connecting to the tunnel: {message}")]
    Connect {
        /// The kind, to tell refused from unreachable.
        kind: io::ErrorKind,
        /// The operating system's words.
        message: String,
    },
    /// A step took too long.
    #[error("{0} timed out")]
    TimedOut(Timeout),
    /// The TLS handshake failed, or the peer's certificate is not one of this mesh.
    #[error("TLS: {0}")]
    Tls(String),
    /// The peer proved another identity than the destination's. Nothing was sent.
    #[error("the peer is {presented}, not {expected}")]
    WrongIdentity {
        /// Whom we meant to reach.
        expected: SpiffeId,
        /// Who answered.
        presented: SpiffeId,
    },
    /// The tunnel broke, or was going away, before the answer came.
    #[error("the tunnel was lost before the answer: {0}")]
    Lost(String),
    /// The peer drains: it said goodbye (GOAWAY) and did not take the request.
    #[error("the peer is going away: {0}")]
    GoingAway(String),
    /// The far side answered with something else than 200: 401 policy, 400 bad request, 503 no application.
    #[error("the far side answered {0}")]
    Refused(StatusCode),
    /// The far side reset the request instead of answering it.
    #[error("the far side reset the request: {0}")]
    Reset(Reason),
    /// See [`limits::MAX_TUNNELS_PER_KEY`].
    #[error("too many tunnels to one endpoint")]
    TooManyTunnels,
    /// The other agent could not be reached lately, and it is not yet time to try again. Nothing was tried.
    #[error("not tried again yet: {0}")]
    BackingOff(String),
}

/// The steps that are timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timeout {
    /// TCP connect.
    Connect,
    /// TLS and HTTP/2.
    Handshake,
    /// The answer to CONNECT.
    Response,
}

impl std::fmt::Display for Timeout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Timeout::Connect => "connecting to the tunnel",
            Timeout::Handshake => "the tunnel's handshake",
            Timeout::Response => "the answer to CONNECT",
        })
    }
}

impl OpenError {
    /// Whether the far side's policy said no.
    pub fn is_denied(&self) -> bool {
        matches!(self, OpenError::Refused(StatusCode::UNAUTHORIZED))
    }

    /// Whether nobody listened at the tunnel port: the pod or its agent may be starting.
    pub fn is_closed_port(&self) -> bool {
        let closed =
            |kind: &io::ErrorKind| matches!(kind, io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset);
        matches!(self, OpenError::Connect { kind, .. } if closed(kind))
    }

    /// Whether the next try, in a moment, may well succeed: the port was closed, or it was not the time to try.
    pub fn is_passing(&self) -> bool {
        self.is_closed_port() || matches!(self, OpenError::BackingOff(_))
    }

    /// The stable label for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            OpenError::Connect { .. } => "connect-failed",
            OpenError::TimedOut(_) => "timed-out",
            OpenError::Tls(_) => "tls",
            OpenError::WrongIdentity { .. } => "wrong-identity",
            OpenError::Lost(_) => "lost",
            OpenError::GoingAway(_) => "going-away",
            OpenError::Refused(_) => "refused",
            OpenError::Reset(_) => "reset",
            OpenError::TooManyTunnels => "too-many-tunnels",
            OpenError::BackingOff(_) => "backoff",
        }
    }

    /// Whether a tunnel from the pool was already on its way out, so that a new one is worth a try at once.
    pub(super) fn is_stale_tunnel(&self) -> bool {
        matches!(self, OpenError::Lost(_)) || self.is_goodbye()
    }

    /// Whether the peer said that it does not take this request, and that somebody else may.
    pub(super) fn is_goodbye(&self) -> bool {
        matches!(self, OpenError::GoingAway(_) | OpenError::Reset(Reason::REFUSED_STREAM))
    }
}

/// HTTP/2 with a peer who has proved who it is. Its owner must drive it.
pub(super) fn begin<T: AsyncRead + AsyncWrite + Unpin>(io: T, limits: &Limits) -> (Opener, Connection<T>) {
    let (session, opener) = Session::client(limits);
    (opener, Connection::new(io, session))
}

/// Makes a tunnel on a connected socket; returns only if the peer is `expected`.
pub(super) async fn establish(
    tcp: TcpStream,
    svid: &Arc<Svid>,
    address: IpAddr,
    expected: &SpiffeId,
    limits: &Limits,
) -> Result<(Opener, Connection<TlsStream<Socket>>, Peer, Below), OpenError> {
    let established = async {
        let _ = tcp.set_nodelay(true);
        liveness::watch(&tcp, limits);
        let connector = TlsConnector::from(svid.client.clone());
        // The name is neither sent nor checked: the identity is.
        let tls = connector.connect(ServerName::IpAddress(address.into()), Socket::new(tcp)).await;
        let tls = tls.map_err(|error| OpenError::Tls(error.to_string()))?;
        let (socket, session) = tls.get_ref();
        let below = socket.below();
        let peer = svid.peer(session.peer_certificates()).map_err(|error| OpenError::Tls(error.to_string()))?;
        if peer.id != *expected {
            return Err(OpenError::WrongIdentity { expected: expected.clone(), presented: peer.id });
        }
        if session.alpn_protocol() != Some(b"h2") {
            return Err(OpenError::Tls("the peer does not speak HTTP/2".to_string()));
        }
        let (opener, connection) = begin(tls, limits);
        Ok((opener, connection, peer, below))
    };
    match tokio::time::timeout(limits.handshake_timeout, established).await {
        Ok(established) => established,
        Err(_) => Err(OpenError::TimedOut(Timeout::Handshake)),
    }
}

/// Sends one CONNECT and waits for its answer.
pub(super) async fn connect(
    opener: Opener,
    occupied: Option<Occupied>,
    request: &ConnectRequest,
    limits: &Limits,
) -> Result<Stream, OpenError> {
    let exchange = async {
        let handle = opener.ask(request).await?;
        let answer = handle.answer().await?;
        Ok((handle, answer))
    };
    let (handle, answer) = match tokio::time::timeout(limits.response_timeout, exchange).await {
        Ok(exchanged) => exchanged.map_err(before_answer)?,
        Err(_) => return Err(OpenError::TimedOut(Timeout::Response)),
    };
    if answer.status != StatusCode::OK {
        return Err(OpenError::Refused(answer.status));
    }
    let below = occupied.as_ref().map(Occupied::below).unwrap_or_default();
    Ok(Stream::new(handle, answer.baggage, occupied, below))
}

fn before_answer(why: Unopened) -> OpenError {
    match why {
        Unopened::Reset(reason) => OpenError::Reset(reason),
        Unopened::Goodbye(why) => OpenError::GoingAway(why),
        Unopened::Lost(why) => OpenError::Lost(why),
    }
}
