//! The accept loop and its limits: nobody who can reach a surface may cost the agent more than these.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::{debug, warn};

use super::listener::{Connection, Listener};
use super::{BoxFuture, Sources, Surface, respond};

/// How many connections one listener serves at once; more wait in the kernel's queue.
pub(super) const MAX_CONNECTIONS: usize = 64;

/// How long a request line and its headers may take to arrive; an idle keep-alive connection ends after it as well.
pub(super) const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long one answer may take to be made.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long one connection may last, whatever it does: a client that reads its answer a byte at a time ends here.
pub(super) const CONNECTION_TIMEOUT: Duration = Duration::from_secs(120);

/// How long one connection may last whose answer goes on (/flows); whoever wants more asks again.
pub(super) const STREAM_TIMEOUT: Duration = Duration::from_secs(3600);

/// How large a request's line and headers may be together, in bytes.
pub(super) const MAX_HEADER_BYTES: usize = 16 * 1024;

/// How many headers a request may have.
pub(super) const MAX_HEADERS: usize = 64;

/// How long to wait after a failed accept: out of file descriptors, most likely, and trying at once would spin.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Serves `surface` on `listener` until the returned future is dropped, and every connection with it. It goes on while
/// the process drains: that is when somebody wants to look.
pub async fn serve(listener: Listener, surface: Surface, sources: Arc<Sources>) {
    serve_with(listener, answers(surface, sources)).await
}

fn answers(
    surface: Surface,
    sources: Arc<Sources>,
) -> impl Fn(Request<Incoming>) -> BoxFuture<Response<respond::Body>> + Clone + Send + Sync + 'static {
    move |request| {
        let sources = sources.clone();
        Box::pin(async move { respond::answer(request, surface, &sources).await })
    }
}

/// Serves what `answer` says, within the same bounds.
pub async fn serve_with<A, B>(listener: Listener, answer: A)
where
    A: Fn(Request<Incoming>) -> BoxFuture<Response<B>> + Clone + Send + Sync + 'static,
    B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        // Never closed, so this does not fail; if it did, there would be nothing to serve with.
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        let connection = match listener.accept().await {
            Ok(connection) => connection,
            Err(error) => {
                warn!(%error, address = %listener.address(), "cannot accept; check the limit on open files");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let answer = answer.clone();
        connections.spawn(async move {
            let _permit = permit;
            match connection {
                Connection::Tcp(stream) => answer_on(stream, answer).await,
                Connection::Unix(stream) => answer_on(stream, answer).await,
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

/// One connection of [`serve`].
#[cfg(any(test, feature = "fuzzing"))]
pub(super) async fn serve_connection<S>(stream: S, surface: Surface, sources: Arc<Sources>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    answer_on(stream, answers(surface, sources)).await
}

async fn answer_on<S, A, B>(stream: S, answer: A)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: Fn(Request<Incoming>) -> BoxFuture<Response<B>> + Send + Sync + 'static,
    B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    let is_stream = Arc::new(AtomicBool::new(false));
    let noted = is_stream.clone();
    let service = service_fn(move |request| {
        let (answered, noted) = (answer(request), noted.clone());
        async move {
            let answer = answered.await;
            if answer.headers().get(CONTENT_TYPE).is_some_and(|kind| kind == respond::JSON_LINES) {
                noted.store(true, Ordering::Relaxed);
            }
            Ok::<_, Infallible>(answer)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEADER_BYTES)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        ended = connection => if let Err(error) = ended {
            debug!(%error, "connection to this server ended badly");
        },
        () = too_long(&is_stream) => debug!("connection to this server lasted too long and was closed"),
    }
}

/// Returns when a connection has lasted long enough.
async fn too_long(is_stream: &AtomicBool) {
    tokio::time::sleep(CONNECTION_TIMEOUT).await;
    if is_stream.load(Ordering::Relaxed) {
        tokio::time::sleep(STREAM_TIMEOUT).await;
    }
}
