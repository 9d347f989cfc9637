//! gRPC over TLS: the accept loop, and what nobody who reaches the port may exceed.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tonic::server::{Grpc, UnaryService};
use tonic::{Response, Status};
use tonic_prost::ProstCodec;
use tracing::{debug, warn};

use super::service::Service;
use super::telling::{Listening, Tell};
use crate::drain;
use crate::identity::istio::{CREATE_CERTIFICATE, CertificateRequest, CertificateResponse};
use crate::map::{MAX_REPORT_BYTES, Report, TELL, Welcome};

/// Connections at once, one per agent; more wait in the kernel's queue.
pub(super) const MAX_CONNECTIONS: usize = 8192;
/// Connections of one address at once: an agent, its successor, and some that are not closed yet.
pub(super) const MAX_CONNECTIONS_OF_ONE: usize = 64;
/// For the handshake of TLS.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two signs of life.
pub(super) const KEEPALIVE: Duration = Duration::from_secs(30);
/// For the answer to one.
pub(super) const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// After this a connection takes nothing new: agents come back to whichever replica there is, and check its certificate
/// anew.
pub(super) const CONNECTION_AGE: Duration = Duration::from_secs(30 * 60);
/// Requests at once on one connection: twice what an agent has in flight.
pub(super) const MAX_STREAMS: u32 = 32;
/// Bytes of a request's headers: the token above all.
pub(super) const MAX_HEADER_BYTES: u32 = 32 << 10;
/// Bytes of a request: a signing request and some words.
pub(super) const MAX_REQUEST_BYTES: usize = 64 << 10;
/// For one request whatever it waits for.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// What is under way has this long when the process ends.
pub(super) const FAREWELL: Duration = Duration::from_secs(5);
/// After a failed accept: out of file descriptors, most likely, and trying at once would spin.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Serves until `shutdown` starts, then lets go of what is under way.
pub async fn serve(
    listener: TcpListener,
    service: Arc<Service>,
    listening: Option<Listening>,
    mut shutdown: drain::Token,
) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let addresses = Addresses::default();
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.started() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = listener.accept() => accepted,
        };
        let (tcp, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "cannot accept; check the limit on open files");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let Some(place) = addresses.place(peer.ip()) else {
            debug!(%peer, "too many connections of this address");
            continue;
        };
        // Never closed, so this does not fail; if it did, there would be nothing to serve with.
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        let (service, listening, shutdown) = (service.clone(), listening.clone(), shutdown.clone());
        connections.spawn(async move {
            let _held = (permit, place);
            serve_connection(tcp, peer, service, listening, shutdown).await;
        });
    }
    drop(listener);
    let finished = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(FAREWELL, finished).await;
}

async fn serve_connection(
    tcp: TcpStream,
    peer: SocketAddr,
    service: Arc<Service>,
    listening: Option<Listening>,
    mut shutdown: drain::Token,
) {
    let Some(serving) = service.authority.serving() else { return };
    let _ = tcp.set_nodelay(true);
    let tls = match tokio::time::timeout(HANDSHAKE_TIMEOUT, serving.accept(tcp)).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => return debug!(%peer, %error, "handshake failed"),
        Err(_) => return debug!(%peer, "handshake timed out"),
    };
    let stopping = shutdown.clone();
    let answer = service_fn(move |request: Request<Incoming>| {
        let (service, listening, shutdown) = (service.clone(), listening.clone(), stopping.clone());
        async move {
            let answered = match (request.uri().path(), listening) {
                (TELL, Some(listening)) => listen(request, Tell { service, peer, listening, shutdown }).await,
                _ => answer(request, peer, service).await,
            };
            Ok::<_, Infallible>(answered)
        }
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_BYTES)
        .serve_connection(TokioIo::new(tls), answer);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.started() => finish(connection).await,
        () = tokio::time::sleep(CONNECTION_AGE) => finish(connection).await,
    };
    if let Err(error) = ended {
        debug!(%peer, %error, "connection ended badly");
    }
}

/// Tells the peer to begin nothing new, and serves what it has begun.
async fn finish<S, B>(
    mut connection: Pin<&mut http2::Connection<TokioIo<tokio_rustls::server::TlsStream<TcpStream>>, S, TokioExecutor>>,
) -> hyper::Result<()>
where
    S: hyper::service::HttpService<Incoming, ResBody = B>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: http_body::Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    TokioExecutor: hyper::rt::bounds::Http2ServerConnExec<S::Future, B>,
{
    connection.as_mut().graceful_shutdown();
    match tokio::time::timeout(REQUEST_TIMEOUT, connection).await {
        Ok(ended) => ended,
        Err(_) => Ok(()),
    }
}

/// The first answer within the time that any request has; then the stream lives as long as its connection.
async fn listen(request: Request<Incoming>, tell: Tell) -> http::Response<tonic::body::Body> {
    let mut grpc = Grpc::new(ProstCodec::<Welcome, Report>::default()).max_decoding_message_size(MAX_REPORT_BYTES);
    match tokio::time::timeout(REQUEST_TIMEOUT, grpc.streaming(tell, request)).await {
        Ok(response) => response,
        Err(_) => Status::deadline_exceeded("who calls was not known in time").into_http(),
    }
}

async fn answer(
    request: Request<Incoming>,
    peer: SocketAddr,
    service: Arc<Service>,
) -> http::Response<tonic::body::Body> {
    if request.uri().path() != CREATE_CERTIFICATE {
        return Status::unimplemented("only istio.v1.auth.IstioCertificateService/CreateCertificate is served here")
            .into_http();
    }
    let codec = ProstCodec::<CertificateResponse, CertificateRequest>::default();
    let mut grpc = Grpc::new(codec).max_decoding_message_size(MAX_REQUEST_BYTES);
    let answered = grpc.unary(CreateCertificate { service, peer }, request);
    match tokio::time::timeout(REQUEST_TIMEOUT, answered).await {
        Ok(response) => response,
        Err(_) => Status::deadline_exceeded("the authority took too long").into_http(),
    }
}

struct CreateCertificate {
    service: Arc<Service>,
    peer: SocketAddr,
}

impl UnaryService<CertificateRequest> for CreateCertificate {
    type Response = CertificateResponse;
    type Future = Pin<Box<dyn Future<Output = Result<Response<CertificateResponse>, Status>> + Send>>;

    fn call(&mut self, request: tonic::Request<CertificateRequest>) -> Self::Future {
        let (service, peer) = (self.service.clone(), self.peer);
        Box::pin(async move {
            let authorization = request.metadata().get("authorization").map(|value| value.as_bytes());
            let answered = service.answer(peer, authorization, request.get_ref()).await;
            answered.map(Response::new)
        })
    }
}

/// How many connections each address has.
#[derive(Clone, Default)]
struct Addresses(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One connection of an address.
struct Place {
    addresses: Addresses,
    address: IpAddr,
}

impl Addresses {
    fn place(&self, address: IpAddr) -> Option<Place> {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = table.entry(address).or_default();
        if *count >= MAX_CONNECTIONS_OF_ONE {
            return None;
        }
        *count += 1;
        Some(Place { addresses: self.clone(), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.addresses.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = table.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                table.remove(&self.address);
            }
        }
    }
}
