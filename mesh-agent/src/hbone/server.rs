//! The accepting end: TLS, HTTP/2, and one handler per CONNECT.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use h2::Reason;
use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::connection::Connection;
use super::head::{Asked, Wish};
use super::limits::{self, Limits};
use super::liveness;
use super::session::{Broken, Handle, Request, Session};
use super::socket::{Below, Socket};
use super::stream::{Stream, StreamError};
use super::words::TraceParent;
use crate::drain;
use crate::identity::{Peer, PeerError, Svid};
use crate::spiffe::SpiffeId;

/// Why a tunnel ended other than by being closed.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The handshake took too long.
    #[error("the tunnel's handshake timed out")]
    HandshakeTimeout,
    /// TLS failed: not TLS at all, or the peer's certificate is not one of this mesh.
    #[error("TLS: {0}")]
    Tls(io::Error),
    /// The peer's certificate is no identity.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// The peer did not negotiate HTTP/2.
    #[error("the peer does not speak HTTP/2")]
    NotHttp2,
    /// The peer broke the protocol or the connection.
    #[error("HTTP/2: {0}")]
    Http2(#[from] Broken),
    /// No answer to a ping.
    #[error("the peer did not answer a ping")]
    PingTimeout,
    /// The root that vouched for the peer is no longer trusted.
    #[error("the root of the peer's certificate is no longer trusted")]
    Distrusted,
    /// The drain window ended before the tunnel's streams did.
    #[error("cut at the end of the drain window")]
    Drained,
}

/// How a CONNECT is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// 400: not a request that we serve, such as one for another pod's address.
    BadRequest,
    /// 401: policy says no.
    Denied,
    /// 503: the application does not answer, or we are overloaded.
    Unavailable,
}

impl Status {
    /// As HTTP says it.
    pub fn code(self) -> StatusCode {
        match self {
            Status::BadRequest => StatusCode::BAD_REQUEST,
            Status::Denied => StatusCode::UNAUTHORIZED,
            Status::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// A CONNECT that waits for its answer. Dropping it answers 503.
pub struct Incoming {
    /// Who asks, as TLS proved it.
    pub peer: SpiffeId,
    /// What it asks for. Whether that is this pod is for the handler to check.
    pub authority: SocketAddr,
    /// The client that the peer names; a claim.
    pub forwarded: Option<SocketAddr>,
    /// The service that the client dialled; a claim.
    pub host: Option<String>,
    /// Who the peer says it is; a claim.
    pub baggage: Option<String>,
    /// The trace, if the peer sent one that reads.
    pub traceparent: Option<TraceParent>,
    answer: Option<Handle>,
    below: Below,
}

impl Incoming {
    /// Answers 200. Call it once the application is connected.
    pub fn accept(mut self, baggage: &str) -> Result<Stream, StreamError> {
        let Some(handle) = self.answer.take() else { return Err(StreamError::Reset(Reason::CANCEL)) };
        handle.respond(StatusCode::OK, baggage, false)?;
        Ok(Stream::new(handle, None, None, std::mem::take(&mut self.below)))
    }

    /// Answers no.
    pub fn refuse(mut self, status: Status) {
        if let Some(handle) = self.answer.take() {
            refuse(&handle, status.code());
        }
    }

    /// Returns when the peer has taken its request back; the work for it may stop.
    pub async fn abandoned(&mut self) {
        match &self.answer {
            Some(handle) => drop(std::future::poll_fn(|cx| handle.poll_reset(cx)).await),
            None => std::future::pending().await,
        }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Some(handle) = self.answer.take() {
            refuse(&handle, Status::Unavailable.code());
        }
    }
}

fn refuse(handle: &Handle, status: StatusCode) {
    // It fails when the peer is gone, and then nobody waits for the answer.
    let _ = handle.respond(status, "", true);
}

/// Makes a tunnel of a TCP connection: until this has returned nobody knows who the peer is.
pub async fn accept(tcp: TcpStream, svid: &Svid, limits: &Limits) -> Result<Tunnel, ServeError> {
    let handshake = tokio::time::timeout(limits.handshake_timeout, handshake(tcp, svid, limits));
    handshake.await.map_err(|_| ServeError::HandshakeTimeout)?
}

async fn handshake(tcp: TcpStream, svid: &Svid, limits: &Limits) -> Result<Tunnel, ServeError> {
    let _ = tcp.set_nodelay(true);
    liveness::watch(&tcp, limits);
    let tls = TlsAcceptor::from(svid.server.clone()).accept(Socket::new(tcp)).await.map_err(ServeError::Tls)?;
    let (socket, session) = tls.get_ref();
    let below = socket.below();
    let peer = svid.peer(session.peer_certificates())?;
    if session.alpn_protocol() != Some(b"h2") {
        return Err(ServeError::NotHttp2);
    }
    let mut tunnel = Tunnel::with(peer, tls, limits).await?;
    tunnel.handlers.below = below;
    Ok(tunnel)
}

/// A tunnel that a peer has opened to one of our pods.
pub struct Tunnel<T = TlsStream<Socket>> {
    peer: Peer,
    connection: Connection<T>,
    handlers: Handlers,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Tunnel<T> {
    /// HTTP/2 with a peer who has proved who it is.
    pub(super) async fn with(peer: Peer, io: T, limits: &Limits) -> Result<Self, ServeError> {
        let mut connection = Connection::new(io, Session::server(limits));
        connection.begun().await?;
        Ok(Self { peer, connection, handlers: Handlers::new() })
    }

    /// Serves it to its end. `on_connect` runs as a local task per CONNECT.
    ///
    /// When the drain starts the peer is told to open no more streams; those that are open go on until
    /// [`Limits::drain_window`] is over. While this agent is only `leaving` it still serves all who come; but a peer
    /// that has had a stream is told to make its next tunnel anew, so that it keeps nothing here for later.
    pub async fn serve<H, F>(
        self,
        limits: &Limits,
        mut leaving: drain::Token,
        mut drain: drain::Token,
        on_connect: H,
    ) -> Result<(), ServeError>
    where
        H: Fn(Incoming) -> F,
        F: Future<Output = ()> + 'static,
    {
        let Self { peer, mut connection, handlers } = self;
        let session = connection.session().clone();
        let is_in_use = || handlers.count.get() > 0;
        let mut lost = std::pin::pin!(liveness::keep_alive(&session, limits, is_in_use));
        let mut distrusted = std::pin::pin!(peer.distrusted());
        let mut idle = std::pin::pin!(handlers.until_idle(limits.idle_server_tunnel));
        let (mut has_served, mut said_goodbye) = (false, false);
        let (mut cut_at, mut drains) = (None, false);
        loop {
            tokio::select! {
                request = std::future::poll_fn(|cx| connection.poll_request(cx)) => match request {
                    Some(Ok(request)) => {
                        has_served = true;
                        handle(&peer, &handlers, request, &on_connect);
                    }
                    // After our goodbye the peer may close before our last frames are out. What that cuts, if anything,
                    // is told by its handler.
                    Some(Err(error)) if error.is_io() && said_goodbye => return Ok(()),
                    Some(Err(error)) => return Err(error.into()),
                    None => return Ok(()),
                },
                () = drain.started(), if !drains => {
                    session.say_last_call();
                    (drains, said_goodbye) = (true, true);
                    cut_at = earlier(cut_at, limits.drain_window);
                }
                () = at(cut_at) => return farewell(connection, ServeError::Drained).await,
                () = leaving.started(), if has_served && !said_goodbye => {
                    session.say_last_call();
                    said_goodbye = true;
                }
                () = &mut idle, if !said_goodbye => {
                    session.say_last_call();
                    said_goodbye = true;
                    // A peer that does not listen would hold it for ever.
                    cut_at = earlier(cut_at, limits.drain_window);
                }
                () = &mut distrusted => return farewell(connection, ServeError::Distrusted).await,
                () = &mut lost => return farewell(connection, ServeError::PingTimeout).await,
            }
        }
    }
}

/// Answers what is no CONNECT of ours, and hands over what is.
fn handle<H, F>(peer: &Peer, handlers: &Handlers, request: Request, on_connect: &H)
where
    H: Fn(Incoming) -> F,
    F: Future<Output = ()> + 'static,
{
    let Request { asked, handle } = request;
    let wish = match asked {
        // A peer of ours has made a new tunnel long before.
        _ if !peer.is_current() => return refuse(&handle, Status::Denied.code()),
        Asked::Connect(wish) => *wish,
        Asked::Refused(status) => return refuse(&handle, status),
    };
    let Some(handler) = handlers.enter() else { return refuse(&handle, Status::Unavailable.code()) };
    let Wish { authority, forwarded, baggage, traceparent } = wish;
    let (client, host) = forwarded.map(|forwarded| (forwarded.client, forwarded.host)).unzip();
    let incoming = Incoming {
        peer: peer.id.clone(),
        authority,
        forwarded: client,
        host: host.flatten(),
        baggage,
        traceparent,
        answer: Some(handle),
        below: handlers.below.clone(),
    };
    let work = on_connect(incoming);
    tokio::task::spawn_local(async move {
        work.await;
        drop(handler);
    });
}

/// So long from now, if it was not to be sooner.
fn earlier(before: Option<Instant>, window: Duration) -> Option<Instant> {
    let end = Instant::now() + window;
    Some(before.map_or(end, |before| before.min(end)))
}

/// At that time; never, if there is none.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Says goodbye and closes, whatever streams there are.
async fn farewell<T: AsyncRead + AsyncWrite + Unpin>(
    mut connection: Connection<T>,
    why: ServeError,
) -> Result<(), ServeError> {
    let _ = tokio::time::timeout(Duration::from_millis(limits::FAREWELL_MS), connection.close()).await;
    Err(why)
}

/// The requests in work on one tunnel.
#[derive(Clone)]
struct Handlers {
    count: Rc<Cell<u64>>,
    idle_since: Rc<Cell<Instant>>,
    /// The tunnel's socket.
    below: Below,
}

/// One request in work.
struct Handler(Handlers);

impl Handlers {
    fn new() -> Self {
        Self { count: Rc::default(), idle_since: Rc::new(Cell::new(Instant::now())), below: Below::default() }
    }

    fn enter(&self) -> Option<Handler> {
        if self.count.get() >= limits::MAX_HANDLERS {
            return None;
        }
        self.count.set(self.count.get() + 1);
        Some(Handler(self.clone()))
    }

    async fn until_idle(&self, most: Duration) {
        loop {
            let idle = if self.count.get() == 0 { self.idle_since.get().elapsed() } else { Duration::ZERO };
            match most.checked_sub(idle) {
                Some(left) if !left.is_zero() => tokio::time::sleep(left).await,
                Some(_) | None => return,
            }
        }
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        self.0.count.set(self.0.count.get().saturating_sub(1));
        self.0.idle_since.set(Instant::now());
    }
}
