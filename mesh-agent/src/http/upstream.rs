//! Connections to applications, kept between requests: per worker, and within it by source pod, endpoint, identity and
//! protocol. Two pods never share one, whatever their service accounts.
//!
//! ```text
//! HTTP/1.1:  made ──► lent to one request ──answer's end──► resting ──► lent …
//!                             │                                └─ too long, too many, pod left, stale ──► closed
//!                             └─ 101 ──► bytes;  broken, dropped within an answer ──► closed
//! HTTP/2:    made ──► lent to up to MAX_STREAMS requests at once ──old, stale──► none new ──last answer──► closed
//! ```
//! Stale is what would not be made like that again: its tunnel was retired or is saying goodbye, a certificate was
//! renewed or has ended, a root is no longer trusted. It serves no further request, and a resting one closes, so that
//! nobody who drains waits for it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::{Request, Response, request};
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::TokioIo;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::LocalExecutor;
use super::body::{AppBody, UpBody};
use super::exchange::Exchange;
use super::hygiene::{self, Asked, Fault};
use super::io::Io;
use super::judged::{Judge, Ruling};
use super::limits::{
    BUFFER_BYTES, CONNECTION_WINDOW, IDLE_UPSTREAM, MAX_CONNECTIONS_PER_ENDPOINT, MAX_FRAME_BYTES, MAX_HEAD_BYTES,
    MAX_IDLE, MAX_IDLE_PER_ENDPOINT, MAX_STREAMS, MAX_UPSTREAM_AGE, SEND_BUFFER_BYTES, STREAM_WINDOW, SWEEP_INTERVAL,
};
use super::untaken::{Arriving, Untaken, Watched};
use crate::addr::ServerAddr;
use crate::routing::Transport;
use crate::telemetry::UpstreamNumbers;

/// The word of a limit of this room on connections to one endpoint.
pub(super) const TOO_MANY_CONNECTIONS: &str = "too-many-connections";

/// The protocol that an application is spoken to in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wire {
    /// HTTP/1.1
    Http1,
    /// HTTP/2 by prior knowledge.
    Http2,
}

impl Wire {
    /// Gives a request of the one form that of the protocol.
    pub(super) fn prepare(self, parts: &mut request::Parts, asked: &Asked) -> Result<(), Fault> {
        match self {
            Wire::Http1 => {
                hygiene::for_http1(parts, asked);
                Ok(())
            }
            Wire::Http2 => hygiene::for_http2(parts, asked),
        }
    }
}

/// What tells one connection from another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The pod that asks, by uid.
    pub source: Arc<str>,
    /// The endpoint.
    pub address: ServerAddr,
    /// The pod behind it, by uid: another pod at its address gets none of its connections.
    pub workload: Option<Arc<str>>,
    /// How it is reached, and whom it must prove to be.
    pub transport: Transport,
    /// What is spoken.
    pub wire: Wire,
}

/// Tells when a connection is to be cut, and holds what lives as long as the connection.
pub type Cut = Pin<Box<dyn Future<Output = ()>>>;

/// A connection that was just made.
pub struct Reached {
    /// Its bytes.
    pub io: Io,
    /// Ready when it is to be reset. It holds what must go with the connection.
    pub cut: Cut,
    /// Whether it may serve further requests: what it was made with still holds.
    pub is_current: Box<dyn Fn() -> bool>,
    /// The pod at its end, as `<namespace>/<name>`, where known.
    pub pod: Option<Arc<str>>,
    /// Who is asked about each request before it is sent, where that is for this agent to do.
    pub judge: Option<Rc<dyn Judge>>,
}

/// Why no connection was made. Nothing was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreached {
    /// The stable label for metrics and logs.
    pub reason: &'static str,
    /// Whether another endpoint would answer the same.
    pub is_final: bool,
    /// Whether the same endpoint may well answer in a moment.
    pub is_passing: bool,
    /// Whether it was policy that said no.
    pub is_denied: bool,
}

/// Counts of all workers.
#[derive(Debug, Default)]
pub struct Tally {
    /// Connections that were made.
    pub made: AtomicU64,
    /// Requests that went out on one that was there.
    pub reused: AtomicU64,
    /// Requests that went out again, because their connection had been closed.
    pub resent: AtomicU64,
    /// Requests that a policy had tried again.
    pub retried: AtomicU64,
    /// Endpoints that were left out for a while, because they failed too often.
    pub ejected: AtomicU64,
    /// Connections that are open.
    pub open: AtomicU64,
}

impl Tally {
    /// The counts, for metrics.
    pub fn numbers(&self) -> UpstreamNumbers {
        UpstreamNumbers {
            open: self.open.load(Ordering::Relaxed),
            made: self.made.load(Ordering::Relaxed),
            reused: self.reused.load(Ordering::Relaxed),
            resent: self.resent.load(Ordering::Relaxed),
            retried: self.retried.load(Ordering::Relaxed),
            ejected: self.ejected.load(Ordering::Relaxed),
        }
    }
}

/// The connections of one worker. Clones are the same.
#[derive(Clone)]
pub struct Upstreams {
    inner: Rc<Inner>,
}

struct Inner {
    slots: RefCell<HashMap<Key, Rc<Slot>>>,
    /// HTTP/1.1 connections that rest, of all slots.
    resting: Cell<usize>,
    /// Connections close with their requests.
    keeps_nothing: Cell<bool>,
    tally: Arc<Tally>,
}

/// What there is for one key.
#[derive(Default)]
struct Slot {
    resting: RefCell<Vec<Resting>>,
    shared: RefCell<Vec<Shared>>,
    /// Held by the one request that makes an HTTP/2 connection; the others wait to share it.
    making: tokio::sync::Mutex<()>,
}

/// An HTTP/1.1 connection between two requests.
struct Resting {
    sender: http1::SendRequest<UpBody>,
    connection: Rc<Connection>,
    since: Instant,
}

/// An HTTP/2 connection.
struct Shared {
    sender: http2::SendRequest<UpBody>,
    connection: Rc<Connection>,
}

/// What is known of a connection while it lives.
struct Connection {
    pod: Option<Arc<str>>,
    judge: Option<Rc<dyn Judge>>,
    made: Instant,
    has_ended: Cell<bool>,
    /// What waits on it for who reads its answers; of HTTP/2.
    untaken: Option<Rc<Untaken>>,
    is_current: Box<dyn Fn() -> bool>,
    /// Requests that hold it.
    requests: Cell<u32>,
    /// Where its bytes go when it changes its protocol.
    upgrade: RefCell<Option<oneshot::Sender<Upgraded>>>,
    tally: Arc<Tally>,
}

/// A connection that speaks another protocol now.
pub struct Upgraded {
    /// Its bytes.
    pub io: Io,
    /// What the application has said in it already.
    pub first: Bytes,
    /// As it was made with.
    pub cut: Cut,
}

impl Connection {
    /// Whether it takes new requests.
    fn is_useful(&self) -> bool {
        !self.is_over() && (self.is_current)()
    }

    fn is_over(&self) -> bool {
        self.has_ended.get() || self.made.elapsed() >= MAX_UPSTREAM_AGE
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.tally.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection lent to a request. Dropped without [`Lease::give_back`], an HTTP/1.1 connection closes.
pub struct Lease {
    sender: Sender,
    held: Held,
    slot: Weak<Slot>,
    pool: Weak<Inner>,
    is_reused: bool,
}

/// A request's hold on a connection.
struct Held(Rc<Connection>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.requests.set(self.0.requests.get().saturating_sub(1));
    }
}

enum Sender {
    Http1(http1::SendRequest<UpBody>),
    Http2(http2::SendRequest<UpBody>),
}

/// A request that was not answered.
pub struct Unsent {
    /// What happened.
    pub error: hyper::Error,
    /// The request, if no byte of it left.
    pub request: Option<Request<UpBody>>,
}

impl Unsent {
    /// Whether the application said that it has not touched the request and never will: a stream that it refused, or
    /// one above the last that its goodbye names (RFC 9113 8.7).
    pub fn is_untouched(&self) -> bool {
        self.http2().is_some_and(|error| {
            let is_goodbye = error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
            let is_refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
            error.is_remote() && (is_goodbye || is_refused)
        })
    }

    /// Whether the tunnel was lost, as when a root is withdrawn: the application has no part in it.
    pub fn lost_its_tunnel(&self) -> bool {
        let cause = self.cause();
        let io = cause.and_then(|cause| cause.downcast_ref::<io::Error>());
        let io = io.or_else(|| self.http2().and_then(h2::Error::get_io));
        io.is_some_and(|error| error.kind() == io::ErrorKind::ConnectionAborted)
    }

    fn http2(&self) -> Option<&h2::Error> {
        self.cause().and_then(|cause| cause.downcast_ref())
    }

    fn cause(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.error)
    }
}

impl Upstreams {
    /// What they count into.
    pub fn tally(&self) -> &Tally {
        &self.inner.tally
    }

    /// An empty pool that counts into `tally`.
    pub fn new(tally: Arc<Tally>) -> Self {
        let inner = Inner { slots: RefCell::default(), resting: Cell::new(0), keeps_nothing: Cell::new(false), tally };
        Self { inner: Rc::new(inner) }
    }

    /// Closes what has rested for too long, again and again.
    pub async fn sweep(self) {
        loop {
            tokio::time::sleep(SWEEP_INTERVAL).await;
            self.inner.slots.borrow_mut().retain(|_, slot| {
                self.inner.close_old(slot);
                Rc::strong_count(slot) > 1 || !slot.is_empty()
            });
        }
    }

    /// Closes the resting connections of a pod that left; those that are lent go with their requests.
    pub fn drop_source(&self, uid: &str) {
        self.drop_where(|key| *key.source == *uid);
    }

    /// Closes every connection that rests; from now on they close with their requests.
    pub fn keep_nothing(&self) {
        self.inner.keeps_nothing.set(true);
        self.drop_where(|_| true);
    }

    fn drop_where(&self, is_wanted: impl Fn(&Key) -> bool) {
        self.inner.slots.borrow_mut().retain(|key, slot| {
            let goes = is_wanted(key);
            if goes {
                self.inner.rests(slot.resting.take().len(), 0);
                for shared in slot.shared.take() {
                    shared.connection.has_ended.set(true);
                }
            }
            !goes
        });
    }

    /// Lends a connection: one that is there, if it was made at `since` or later, or one that `connect` makes.
    pub async fn lease(
        &self,
        key: &Key,
        since: Option<Instant>,
        connect: impl AsyncFnOnce() -> Result<Reached, Unreached>,
    ) -> Result<Lease, Unreached> {
        let found = self.inner.slots.borrow().get(key).cloned();
        let slot = found.unwrap_or_else(|| self.inner.slots.borrow_mut().entry(key.clone()).or_default().clone());
        if let Some(lease) = self.check_out(&slot, key.wire, since) {
            return Ok(lease);
        }
        // In a box: the request that finds a connection carries no room for making one.
        Box::pin(self.make(&slot, key.wire, since, connect)).await
    }

    async fn make(
        &self,
        slot: &Rc<Slot>,
        wire: Wire,
        since: Option<Instant>,
        connect: impl AsyncFnOnce() -> Result<Reached, Unreached>,
    ) -> Result<Lease, Unreached> {
        match wire {
            Wire::Http1 => self.make_http1(slot, connect().await?).await,
            Wire::Http2 => {
                let _making = slot.making.lock().await;
                if let Some(lease) = self.check_out(slot, wire, since) {
                    return Ok(lease);
                }
                if slot.shared.borrow().len() >= MAX_CONNECTIONS_PER_ENDPOINT {
                    return Err(Unreached::own(TOO_MANY_CONNECTIONS));
                }
                self.make_http2(slot, connect().await?).await
            }
        }
    }

    fn check_out(&self, slot: &Rc<Slot>, wire: Wire, since: Option<Instant>) -> Option<Lease> {
        let is_young = |connection: &Connection| since.is_none_or(|since| connection.made >= since);
        let lease = match wire {
            Wire::Http1 => {
                let mut resting = slot.resting.borrow_mut();
                let before = resting.len();
                let found = take_last(&mut resting, is_young);
                self.inner.rests(before, resting.len());
                let Resting { sender, connection, .. } = found?;
                self.lent(slot, Sender::Http1(sender), connection)
            }
            Wire::Http2 => {
                let mut shared = slot.shared.borrow_mut();
                shared.retain(|one| one.is_useful());
                let free = shared.iter().filter(|one| one.has_room() && is_young(&one.connection));
                let one = free.max_by_key(|one| one.connection.requests.get())?;
                self.lent(slot, Sender::Http2(one.sender.clone()), one.connection.clone())
            }
        };
        self.inner.tally.reused.fetch_add(1, Ordering::Relaxed);
        Some(Lease { is_reused: true, ..lease })
    }

    fn lent(&self, slot: &Rc<Slot>, sender: Sender, connection: Rc<Connection>) -> Lease {
        connection.requests.set(connection.requests.get().saturating_add(1));
        let (slot, pool) = (Rc::downgrade(slot), Rc::downgrade(&self.inner));
        Lease { sender, held: Held(connection), slot, pool, is_reused: false }
    }

    async fn make_http1(&self, slot: &Rc<Slot>, reached: Reached) -> Result<Lease, Unreached> {
        let mut builder = http1::Builder::new();
        builder.max_buf_size(BUFFER_BYTES).max_header_size(MAX_HEAD_BYTES);
        let handshake = builder.handshake(TokioIo::new(reached.io)).await;
        let (sender, driver) = handshake.map_err(|_| Unreached::own("upstream-handshake"))?;
        let connection = self.inner.made(reached.pod, reached.judge, reached.is_current, None);
        tokio::task::spawn_local(drive_http1(driver, connection.clone(), reached.cut));
        Ok(self.lent(slot, Sender::Http1(sender), connection))
    }

    async fn make_http2(&self, slot: &Rc<Slot>, reached: Reached) -> Result<Lease, Unreached> {
        let mut builder = http2::Builder::new(LocalExecutor);
        builder
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(MAX_FRAME_BYTES)
            .max_header_list_size(MAX_HEAD_BYTES as u32)
            .max_send_buf_size(SEND_BUFFER_BYTES);
        let untaken = Untaken::of_application();
        let handshake = builder.handshake(TokioIo::new(Watched::new(reached.io, untaken.clone()))).await;
        let (sender, driver) = handshake.map_err(|_| Unreached::own("upstream-handshake"))?;
        let connection = self.inner.made(reached.pod, reached.judge, reached.is_current, Some(untaken));
        let (driven, cut) = (connection.clone(), reached.cut);
        tokio::task::spawn_local(async move {
            tokio::select! {
                biased;
                () = cut => {}
                ended = driver => if let Err(error) = ended {
                    tracing::debug!(%error, "a connection to an application broke");
                },
            }
            driven.has_ended.set(true);
        });
        if !self.inner.keeps_nothing.get() {
            slot.shared.borrow_mut().push(Shared { sender: sender.clone(), connection: connection.clone() });
        }
        Ok(self.lent(slot, Sender::Http2(sender), connection))
    }
}

/// The one that rested last: the others fall idle and go. What is met on the way and is no longer useful goes at once.
fn take_last(resting: &mut Vec<Resting>, is_wanted: impl Fn(&Connection) -> bool) -> Option<Resting> {
    let mut index = resting.len();
    loop {
        index = index.checked_sub(1)?;
        match resting.get(index) {
            Some(one) if !one.is_useful() => drop(resting.remove(index)),
            // Its last answer has not quite ended.
            Some(one) if !one.sender.is_ready() || !is_wanted(&one.connection) => {}
            Some(_) => return Some(resting.remove(index)),
            None => return None,
        }
    }
}

impl Inner {
    fn made(
        &self,
        pod: Option<Arc<str>>,
        judge: Option<Rc<dyn Judge>>,
        is_current: Box<dyn Fn() -> bool>,
        untaken: Option<Rc<Untaken>>,
    ) -> Rc<Connection> {
        self.tally.made.fetch_add(1, Ordering::Relaxed);
        self.tally.open.fetch_add(1, Ordering::Relaxed);
        Rc::new(Connection {
            pod,
            judge,
            made: Instant::now(),
            has_ended: Cell::new(false),
            untaken,
            is_current,
            requests: Cell::new(0),
            upgrade: RefCell::default(),
            tally: self.tally.clone(),
        })
    }

    fn close_old(&self, slot: &Slot) {
        let mut resting = slot.resting.borrow_mut();
        let before = resting.len();
        resting.retain(|one| one.is_useful() && one.since.elapsed() < IDLE_UPSTREAM);
        self.rests(before, resting.len());
        slot.shared.borrow_mut().retain(|one| one.is_useful() && one.connection.requests.get() > 0 || one.is_young());
    }

    fn rests(&self, before: usize, now: usize) {
        self.resting.set(self.resting.get().saturating_add(now).saturating_sub(before));
    }
}

impl Slot {
    fn is_empty(&self) -> bool {
        self.resting.borrow().is_empty() && self.shared.borrow().is_empty()
    }
}

impl Resting {
    fn is_useful(&self) -> bool {
        !self.is_over() && self.connection.is_useful()
    }

    fn is_over(&self) -> bool {
        self.sender.is_closed() || self.connection.is_over()
    }
}

impl Shared {
    fn is_useful(&self) -> bool {
        !self.sender.is_closed() && self.connection.is_useful()
    }

    /// Too young to be closed for having nothing to do.
    fn is_young(&self) -> bool {
        self.is_useful() && self.connection.made.elapsed() < IDLE_UPSTREAM
    }

    fn has_room(&self) -> bool {
        // If the application takes fewer, the library lets the rest wait.
        self.connection.requests.get() < MAX_STREAMS
    }
}

impl Unreached {
    /// A limit or an error of this room: other endpoints may do.
    fn own(reason: &'static str) -> Self {
        Self { reason, is_final: false, is_passing: false, is_denied: false }
    }
}

/// Drives a connection until it ends, is cut, or changes its protocol.
async fn drive_http1(mut driver: http1::Connection<TokioIo<Io>, UpBody>, connection: Rc<Connection>, mut cut: Cut) {
    let ended = tokio::select! {
        biased;
        () = &mut cut => None,
        ended = &mut driver => Some(ended),
    };
    connection.has_ended.set(true);
    let upgrade = connection.upgrade.take();
    match ended {
        None => driver.into_parts().io.into_inner().reset(),
        Some(Ok(())) => {
            if let Some(upgrade) = upgrade {
                let parts = driver.into_parts();
                // Whoever waited may have gone: then it closes here.
                let _ = upgrade.send(Upgraded { io: parts.io.into_inner(), first: parts.read_buf, cut });
            }
        }
        Some(Err(error)) => tracing::debug!(%error, "a connection to an application broke"),
    }
}

impl Lease {
    /// Whether the connection has carried a request before: its application may be about to close it.
    pub fn is_reused(&self) -> bool {
        self.is_reused
    }

    /// What becomes of the connection if the answer to the next request is 101. Of HTTP/1.1 alone.
    pub fn expect_upgrade(&self) -> oneshot::Receiver<Upgraded> {
        let (sender, receiver) = oneshot::channel();
        self.held.0.upgrade.replace(Some(sender));
        receiver
    }

    /// It was not.
    pub fn forget_upgrade(&self) {
        self.held.0.upgrade.take();
    }

    /// The pod at its end, as `<namespace>/<name>`.
    pub fn pod(&self) -> Option<&Arc<str>> {
        self.held.0.pod.as_ref()
    }

    /// Sends a request and waits for the head of its answer. Where somebody has to be asked about it, it is not sent
    /// before that; whoever refuses it answers it.
    pub async fn send(&mut self, request: Request<UpBody>, exchange: &Exchange) -> Result<Response<AppBody>, Unsent> {
        let Some(judge) = self.held.0.judge.clone() else { return self.hand_over(request).await };
        let wire = match &self.sender {
            Sender::Http1(_) => Wire::Http1,
            Sender::Http2(_) => Wire::Http2,
        };
        match judge.judge(request, wire, exchange).await {
            Ruling::Passes(request, settle) => {
                let mut came = self.hand_over(request).await;
                settle(&mut came);
                came
            }
            Ruling::Refused(response) => Ok(response),
        }
    }

    async fn hand_over(&mut self, request: Request<UpBody>) -> Result<Response<AppBody>, Unsent> {
        let unsent = |mut failed: TrySendError<Request<UpBody>>| Unsent {
            request: failed.take_message(),
            error: failed.into_error(),
        };
        let share = self.held.0.untaken.as_ref().map(Untaken::share);
        let answered = match &mut self.sender {
            Sender::Http1(sender) => sender.try_send_request(request).await,
            Sender::Http2(sender) => sender.try_send_request(request).await,
        };
        let application = |body| AppBody::Application(Arriving::new(body, share));
        answered.map(|response| response.map(application)).map_err(unsent)
    }

    /// The answer has come to its end: the next request may have the connection.
    pub fn give_back(self) {
        let Lease { sender, held, slot, pool, .. } = self;
        let (Some(slot), Some(pool), Sender::Http1(sender)) = (slot.upgrade(), pool.upgrade(), sender) else { return };
        let one = Resting { sender, connection: held.0.clone(), since: Instant::now() };
        let mut resting = slot.resting.borrow_mut();
        let is_kept = !pool.keeps_nothing.get() && !one.is_over();
        if is_kept && resting.len() < MAX_IDLE_PER_ENDPOINT && pool.resting.get() < MAX_IDLE {
            resting.push(one);
            pool.rests(0, 1);
        }
    }
}
