//! A client's connection: which protocol it speaks, its limits, and its end.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use super::LocalExecutor;
use super::body::DownBody;
use super::conversation::Conversation;
use super::framing::Violation;
use super::gather::Gather;
use super::io::Io;
use super::limits::{
    BUFFER_BYTES, CONNECTION_WINDOW, FAREWELL, HEAD_TIMEOUT, IDLE_CLIENT, MAX_FRAME_BYTES, MAX_HEAD_BYTES,
    MAX_LOCAL_RESETS, MAX_PENDING_RESETS, MAX_STREAMS, REST_AFTER, SEND_BUFFER_BYTES, STREAM_WINDOW,
};
use super::screen::{Gate, Screen};
use super::untaken::{Arriving, Untaken, Watched};
use super::upgrade::{self, Change};
use crate::drain;

/// What HTTP/2 begins with (RFC 9113 3.4).
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How a client's connection ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// In order: closed by the client, or by us when it was done.
    Finished,
    /// The client broke it off, or an answer broke off on its way.
    Broken(io::ErrorKind),
    /// What came was not HTTP, or could be read in two ways.
    Refused(&'static str),
    /// Cut from outside, with a reset.
    Cut,
}

/// Answers the requests of one client's connection.
pub trait Serves: 'static {
    /// The connection.
    fn conversation(&self) -> &Rc<Conversation>;

    /// Answers one request.
    fn answer(self: Rc<Self>, request: Request<Arriving>) -> impl Future<Output = Response<DownBody>>;
}

/// Serves one client's connection, whatever carries it, until it ends or `cut` is ready.
pub async fn serve<S: Serves>(
    mut client: Io,
    session: Rc<S>,
    leaving: drain::Token,
    cut: impl Future<Output = ()>,
) -> Ended {
    let mut cut = pin!(cut);
    let protocol = tokio::select! {
        biased;
        () = &mut cut => None,
        protocol = tokio::time::timeout(IDLE_CLIENT, protocol(&mut client)) => Some(protocol),
    };
    match protocol {
        None => {
            client.reset();
            Ended::Cut
        }
        // Nothing was said for too long.
        Some(Err(_)) => Ended::Finished,
        Some(Ok(Err(error))) => {
            client.reset();
            Ended::Broken(error.kind())
        }
        Some(Ok(Ok(Protocol::Nothing))) => Ended::Finished,
        Some(Ok(Ok(Protocol::Http1))) => http1(client, session, leaving, cut).await,
        // In a box of its own: connections of the other kind, which are more, do not take its room.
        Some(Ok(Ok(Protocol::Http2))) => Box::pin(http2(client, session, leaving, cut)).await,
    }
}

enum Protocol {
    Http1,
    Http2,
    /// It ended before it began.
    Nothing,
}

/// Looks at the first bytes without taking them. Only HTTP/2's preface is waited for, and only while it may yet become
/// one.
async fn protocol(client: &mut Io) -> io::Result<Protocol> {
    let mut seen = 0;
    let patience = Instant::now() + HEAD_TIMEOUT;
    loop {
        // The parser of HTTP/1.1 will say what is wrong with a piece of a preface.
        let Ok(looked) = tokio::time::timeout_at(patience, client.look(seen)).await else {
            if seen > 0 {
                return Ok(Protocol::Http1);
            }
            // Nothing yet: whoever called has more patience.
            client.look(0).await?;
            continue;
        };
        let first = looked?;
        match PREFACE.strip_prefix(&*first) {
            _ if first.len() <= seen => return Ok(if seen == 0 { Protocol::Nothing } else { Protocol::Http1 }),
            None if first.starts_with(PREFACE) => return Ok(Protocol::Http2),
            None => return Ok(Protocol::Http1),
            Some([]) => return Ok(Protocol::Http2),
            Some(_) => seen = first.len(),
        }
    }
}

/// HTTP/1.1. A connection that rests gives its parser and buffers back, and gets others when its client goes on: of many
/// connections most rest.
async fn http1<S: Serves>(
    mut client: Io,
    session: Rc<S>,
    leaving: drain::Token,
    mut cut: Pin<&mut impl Future<Output = ()>>,
) -> Ended {
    let mut first = Vec::new();
    loop {
        // In a box, which goes while it rests.
        let spoken = Box::pin(speak(client, first, session.clone(), leaving.clone(), cut.as_mut())).await;
        (client, first) = match spoken {
            Spoken::Ended(ended) => return ended,
            Spoken::Rests(client, first) => (client, first),
        };
        if first.is_empty() && rest(&mut client, &*session, leaving.clone(), cut.as_mut()).await.is_none() {
            client.reset();
            return Ended::Cut;
        }
    }
}

/// How a stretch of a conversation went.
enum Spoken {
    Ended(Ended),
    /// Nothing was said for a while. With what was read and not answered, which is nothing if all is well.
    Rests(Io, Vec<u8>),
}

/// Serves requests until the connection ends or rests. `first` was read from it already.
async fn speak<S: Serves>(
    client: Io,
    first: Vec<u8>,
    session: Rc<S>,
    leaving: drain::Token,
    mut cut: Pin<&mut impl Future<Output = ()>>,
) -> Spoken {
    let screen = Screen::new(client, first);
    let gate = screen.gate();
    session.conversation().screened(gate.clone());
    let answering = session.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let session = answering.clone();
        async move { Ok::<_, Infallible>(session.answer(request.map(Arriving::from)).await) }
    });
    let mut builder = http1::Builder::new();
    builder.max_buf_size(BUFFER_BYTES).max_header_size(MAX_HEAD_BYTES).auto_date_header(false);
    let mut connection = builder.serve_connection(TokioIo::new(screen), service);
    let goodbye = |connection: Pin<&mut _>| http1::Connection::graceful_shutdown(connection);
    let rests = may_rest(&*session, &gate);
    let driven = drive(&mut connection, goodbye, &*session, leaving, rests, cut.as_mut()).await;
    // However that ended: a change that stays there holds the request that it began with, and that the conversation.
    let change = session.conversation().take_change();
    let parts = connection.into_parts();
    let (client, kept) = parts.io.into_inner().into_inner();
    let unread = [&parts.read_buf[..], &kept[..]].concat();
    match driven {
        Driven::Rests => Spoken::Rests(client, unread),
        Driven::Cut => {
            client.reset();
            Spoken::Ended(Ended::Cut)
        }
        Driven::Rested => Spoken::Ended(Ended::Finished),
        Driven::Ended(ended) => {
            let ended = ended.map(|()| change);
            Spoken::Ended(part(client, unread, ended, &*session, &gate, cut).await)
        }
    }
}

/// The end of a connection on which nothing more is asked: in order, in another protocol, or with what was wrong.
async fn part<S: Serves>(
    mut client: Io,
    unread: Vec<u8>,
    ended: hyper::Result<Option<Change>>,
    session: &S,
    gate: &Gate,
    cut: Pin<&mut impl Future<Output = ()>>,
) -> Ended {
    let change = match ended {
        Ok(Some(change)) => change,
        Ok(None) => {
            client.linger().await;
            return Ended::Finished;
        }
        Err(error) if gate.violation().is_none() && !error.is_parse() => {
            client.reset();
            return Ended::Broken(kind(&error));
        }
        Err(error) => {
            // The parser has answered with 400 or 431. What it found too long itself is too long all the same.
            let own = if error.is_parse_too_large() { Violation::TooLong.label() } else { "not-http" };
            let reason = gate.violation().map_or(own, Violation::label);
            let status = if error.is_parse_too_large() {
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
            } else {
                StatusCode::BAD_REQUEST
            };
            session.conversation().refuse(reason, Some(status));
            client.linger().await;
            return Ended::Refused(reason);
        }
    };
    let carried = tokio::select! {
        biased;
        () = cut => None,
        ended = upgrade::carry(&mut client, &unread, change) => Some(ended),
    };
    match carried {
        Some(upgrade::Ended::Finished) => Ended::Finished,
        Some(upgrade::Ended::Broken(kind)) => {
            client.reset();
            Ended::Broken(kind)
        }
        None => {
            client.reset();
            Ended::Cut
        }
    }
}

async fn http2<S: Serves>(
    client: Io,
    session: Rc<S>,
    leaving: drain::Token,
    cut: Pin<&mut impl Future<Output = ()>>,
) -> Ended {
    let untaken = Untaken::of_client();
    let (answering, shared) = (session.clone(), untaken.clone());
    let service = service_fn(move |request: Request<Incoming>| {
        let (session, share) = (answering.clone(), shared.share());
        let request = request.map(|body| Arriving::new(body, Some(share)));
        async move { Ok::<_, Infallible>(session.answer(request).await) }
    });
    let mut builder = http2::Builder::new(LocalExecutor);
    builder
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME_BYTES)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD_BYTES as u32)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(MAX_LOCAL_RESETS)
        .auto_date_header(false);
    let client = Gather::new(Watched::new(client, untaken));
    let mut connection = builder.serve_connection(TokioIo::new(client.clone()), service);
    let goodbye = |connection: Pin<&mut _>| http2::Connection::graceful_shutdown(connection);
    // Its state is the connection's: it cannot be given back and made anew.
    let never = std::future::pending();
    match client.drive(drive(&mut connection, goodbye, &*session, leaving, never, cut)).await {
        Driven::Ended(Ok(())) | Driven::Rests | Driven::Rested => Ended::Finished,
        Driven::Ended(Err(error)) => Ended::Broken(kind(&error)),
        Driven::Cut => Ended::Cut,
    }
}

enum Driven {
    Ended(hyper::Result<()>),
    Cut,
    /// Nothing is under way, for now.
    Rests,
    /// It rested for too long, and did not say goodbye in time.
    Rested,
}

/// Drives a connection to its end. When the agent is leaving, or when it has rested for too long, it says goodbye: not
/// before its first request has begun, since whoever has just connected expects an answer.
async fn drive<C, S: Serves>(
    connection: &mut C,
    goodbye: impl Fn(Pin<&mut C>),
    session: &S,
    mut leaving: drain::Token,
    rests: impl Future<Output = ()>,
    mut cut: Pin<&mut impl Future<Output = ()>>,
) -> Driven
where
    C: Future<Output = hyper::Result<()>> + Unpin,
{
    {
        let mut told = pin!(async {
            leaving.started().await;
            let _ = tokio::time::timeout(HEAD_TIMEOUT, session.conversation().begun()).await;
        });
        let mut rested = pin!(rested(session, IDLE_CLIENT));
        tokio::select! {
            biased;
            () = cut.as_mut() => return Driven::Cut,
            ended = &mut *connection => return Driven::Ended(ended),
            () = &mut told => goodbye(Pin::new(connection)),
            () = rests => return Driven::Rests,
            () = &mut rested => {
                goodbye(Pin::new(connection));
                return match tokio::time::timeout(FAREWELL, connection).await {
                    Ok(ended) => Driven::Ended(ended),
                    Err(_) => Driven::Rested,
                };
            }
        }
    }
    tokio::select! {
        biased;
        () = cut => Driven::Cut,
        ended = connection => Driven::Ended(ended),
    }
}

/// Returns when nothing has been under way for a while: all that was asked is answered, and the answer has left.
async fn may_rest<S: Serves>(session: &S, gate: &Gate) {
    rested(session, REST_AFTER).await;
    while !gate.is_at_rest() {
        tokio::time::sleep(REST_AFTER).await;
        rested(session, REST_AFTER).await;
    }
}

/// Waits until the client goes on, or whoever serves it has something to say; None: the connection is to be cut.
async fn rest<S: Serves>(
    client: &mut Io,
    session: &S,
    mut leaving: drain::Token,
    cut: Pin<&mut impl Future<Output = ()>>,
) -> Option<()> {
    tokio::select! {
        biased;
        () = cut => None,
        () = client.readable() => Some(()),
        () = leaving.started() => Some(()),
        () = rested(session, IDLE_CLIENT) => Some(()),
    }
}

/// Returns when no request was under way for so long. Wakes once in that time, not at every request.
async fn rested<S: Serves>(session: &S, length: Duration) {
    loop {
        let rested = session.conversation().rests_since().map_or(Duration::ZERO, |since| since.elapsed());
        match length.checked_sub(rested) {
            Some(left) if !left.is_zero() => tokio::time::sleep(left).await,
            Some(_) | None => return,
        }
    }
}

fn kind(error: &hyper::Error) -> io::ErrorKind {
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        if let Some(error) = inner.downcast_ref::<io::Error>() {
            return error.kind();
        }
        source = inner.source();
    }
    io::ErrorKind::Other
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::sync::Arc;

    use http::HeaderMap;
    use socket2::SockRef;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::{Notify, oneshot};
    use tokio::task::{LocalSet, spawn_local};

    use super::super::conversation::{Begun, Teller};
    use super::super::io::Meter;
    use super::super::upstream::Upgraded;
    use super::*;
    use crate::drain::Drain;
    use crate::telemetry::{Direction, RequestRecord, Span, TappedHeaders};

    struct Nobody;

    impl Teller for Nobody {
        fn trace(&self, _: &mut HeaderMap) -> Option<Span> {
            None
        }

        fn tapped(&self, _: &HeaderMap) -> Option<Arc<TappedHeaders>> {
            None
        }

        fn report(&self, _: &RequestRecord) {}
    }

    impl Meter for Nobody {
        fn carried(&self, _: usize, _: usize) {}
        fn waits(&self, _: &Rc<Untaken>) {}
    }

    struct Unasked(Rc<Conversation>);

    impl Serves for Unasked {
        fn conversation(&self) -> &Rc<Conversation> {
            &self.0
        }

        async fn answer(self: Rc<Self>, request: Request<Arriving>) -> Response<DownBody> {
            panic!("no head is ever whole: {:?}", request.uri())
        }
    }

    /// A client's connection: its end, ours, and what is said on it.
    async fn connected() -> (TcpStream, TcpStream, Rc<Conversation>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, peer) = listener.accept().await.unwrap();
        let conversation = Conversation::new(Rc::new(Nobody), RequestRecord::blank(Direction::Outbound, peer));
        (client, accepted, conversation)
    }

    /// Serves a client on a connection that has rested for so long; the client's end.
    async fn served(has_rested: Duration) -> TcpStream {
        let (client, accepted, conversation) = connected().await;
        conversation.has_rested(has_rested);
        let drain = Drain::new();
        spawn_local(async move {
            let io = Io::socket(accepted, Rc::new(Nobody));
            serve(io, Rc::new(Unasked(conversation)), drain.token(), std::future::pending()).await
        });
        client
    }

    /// Says the beginning of HTTP/2 and then a head of one frame, a few bytes at a time; after how long it was closed.
    async fn trickle(client: TcpStream, patience: Duration) -> Option<Duration> {
        // SETTINGS with nothing in it, then HEADERS of 8000 bytes on stream 1.
        const BEGINNING: [u8; 18] = [0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 31, 64, 1, 4, 0, 0, 0, 1];
        let (began, (mut read, mut write)) = (Instant::now(), client.into_split());
        write.write_all(&[&PREFACE[..], &BEGINNING].concat()).await.unwrap();
        let saying = async {
            while write.write_all(&[0x40]).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            std::future::pending::<()>().await;
        };
        let mut heard = Vec::new();
        tokio::select! {
            _ = read.read_to_end(&mut heard) => Some(began.elapsed()),
            () = saying => None,
            () = tokio::time::sleep(patience) => None,
        }
    }

    /// Bytes of a head are no request that is under way: the connection's time to rest is the head's.
    #[test]
    fn a_head_of_http2_that_never_ends_has_the_time_that_its_connection_may_rest() {
        let left = Duration::from_secs(2);
        const SLACK: Duration = Duration::from_secs(6);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, async {
            let (old, young) = (served(IDLE_CLIENT - left).await, served(Duration::ZERO).await);
            let most = left + FAREWELL + SLACK;
            let (old, young) = tokio::join!(trickle(old, 2 * most), trickle(young, most));
            let took = old.expect("it was never closed");
            assert!((left..most).contains(&took), "closed after {took:?}");
            assert_eq!(young, None, "it has more time");
        });
    }

    /// Agrees to another protocol when it is told to.
    struct Agrees {
        conversation: Rc<Conversation>,
        application: RefCell<Option<oneshot::Receiver<Upgraded>>>,
        asked: Notify,
        may_agree: Notify,
        agreed: Rc<Notify>,
        /// The answer never leaves.
        is_stuck: bool,
    }

    impl Serves for Agrees {
        fn conversation(&self) -> &Rc<Conversation> {
            &self.conversation
        }

        async fn answer(self: Rc<Self>, request: Request<Arriving>) -> Response<DownBody> {
            let Begun { exchange, .. } = self.conversation.take(request);
            self.asked.notify_one();
            self.may_agree.notified().await;
            let application = self.application.take().unwrap();
            self.conversation.agree(Change { application, exchange: exchange.clone() });
            self.agreed.notify_one();
            if self.is_stuck {
                std::future::pending::<()>().await;
            }
            let answer = Response::builder().status(101).header("connection", "upgrade").header("upgrade", "chat");
            self.conversation.settle(Ok(answer.body(DownBody::text("")).unwrap()), false, exchange).await
        }
    }

    /// Whether its client resets the connection before it can be answered, or it is cut then.
    #[test]
    fn a_change_of_protocol_that_nobody_hears_of_is_given_back() {
        const PATIENCE: Duration = Duration::from_secs(10);
        const ASK: &[u8] = b"GET / HTTP/1.1\r\nHost: w\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\n";
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for is_cut in [false, true] {
            LocalSet::new().block_on(&runtime, async {
                let (mut client, accepted, conversation) = connected().await;
                let (application, upgraded) = oneshot::channel();
                let (held, agreed) = (Rc::downgrade(&conversation), Rc::new(Notify::new()));
                let session = Rc::new(Agrees {
                    conversation,
                    application: RefCell::new(Some(upgraded)),
                    asked: Notify::new(),
                    may_agree: Notify::new(),
                    agreed: agreed.clone(),
                    is_stuck: is_cut,
                });
                let (drain, served) = (Drain::new(), session.clone());
                let leaving = drain.token();
                let serving = spawn_local(async move {
                    let cut = async { if is_cut { agreed.notified().await } else { std::future::pending().await } };
                    serve(Io::socket(accepted, Rc::new(Nobody)), served, leaving, cut).await
                });
                client.write_all(ASK).await.unwrap();
                session.asked.notified().await;
                if !is_cut {
                    SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
                    drop(client);
                }
                session.may_agree.notify_one();
                let ended = tokio::time::timeout(PATIENCE, serving).await.expect("its end").unwrap();
                assert_eq!(ended == Ended::Cut, is_cut, "{ended:?}");
                assert!(session.application.borrow().is_none(), "the application agreed");
                drop(session);
                assert!(application.is_closed(), "{ended:?}: the application's connection is kept");
                assert!(held.upgrade().is_none(), "{ended:?}: the conversation is kept");
            });
        }
    }
}
