//! Bodies on their way: counted, their trailers cleaned, never gathered. One frame at a time, and only when whoever
//! writes it on has room for it.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use super::Room;
use super::exchange::{End, Exchange};
use super::hygiene;
use super::limits::{KEPT_PIECE_BYTES, MAX_MIRROR_BODY, SMALL_PIECE};
use super::untaken::Arriving;
use super::upstream::Lease;

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// Its sender broke off, or what came was not HTTP.
    #[error("{0}")]
    Broken(#[from] hyper::Error),
    /// The time for the request is over, or no byte came for too long.
    #[error("the request's time is over")]
    TimedOut,
    /// Another try has taken the body over.
    #[error("the body is sent elsewhere")]
    Elsewhere,
}

/// A client's body, and what becomes of it: whoever drops it before its end leaves the rest to its exchange.
pub struct ClientBody {
    /// None: it has ended.
    incoming: Option<Arriving>,
    exchange: Rc<Exchange>,
}

impl ClientBody {
    /// Of which nothing was read yet.
    pub fn new(incoming: Arriving, exchange: Rc<Exchange>) -> Self {
        let mut body = Self { incoming: Some(incoming), exchange };
        body.exchange.body_comes();
        body.look();
        body
    }

    /// Whether nothing more comes.
    pub fn is_end_stream(&self) -> bool {
        self.incoming.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Polled {
        let Some(incoming) = &mut self.incoming else { return Poll::Ready(None) };
        let polled = Pin::new(incoming).poll_frame(cx);
        self.exchange.note_lack(polled.is_pending());
        let frame = ready!(polled);
        if frame.is_none() {
            self.end();
        }
        self.look();
        match frame {
            Some(Ok(frame)) => Poll::Ready(Some(Ok(clean(frame, |bytes| self.exchange.sent(bytes))))),
            Some(Err(error)) => {
                self.exchange.end(End::ClientBroke);
                Poll::Ready(Some(Err(error.into())))
            }
            None => Poll::Ready(None),
        }
    }

    fn look(&mut self) {
        if self.incoming.as_ref().is_some_and(Body::is_end_stream) {
            self.end();
        }
    }

    fn end(&mut self) {
        self.incoming = None;
        self.exchange.body_ended();
    }
}

impl Drop for ClientBody {
    fn drop(&mut self) {
        if let Some(incoming) = self.incoming.take() {
            self.exchange.leaves(incoming);
        }
    }
}

/// Where a body comes from.
pub enum Origin {
    /// A client.
    Client(ClientBody),
    /// A client, read by who asked on its behalf, who has counted it.
    Read(Box<UpBody>),
}

impl From<ClientBody> for Origin {
    fn from(body: ClientBody) -> Self {
        Self::Client(body)
    }
}

impl From<UpBody> for Origin {
    fn from(body: UpBody) -> Self {
        Self::Read(Box::new(body))
    }
}

impl Origin {
    fn poll(&mut self, cx: &mut Context<'_>) -> Polled {
        match self {
            Origin::Client(body) => body.poll(cx),
            Origin::Read(body) => Pin::new(&mut **body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Origin::Client(body) => body.is_end_stream(),
            Origin::Read(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Origin::Client(body) => body.size_hint(),
            Origin::Read(body) => body.size_hint(),
        }
    }
}

/// What a client sends to an application.
pub struct UpBody(Upward);

enum Upward {
    Nothing,
    /// As it comes, once.
    Passing(Origin),
    /// For one of several tries.
    Kept(KeptReader),
    /// One of our own.
    Whole(Bytes),
    /// One that came whole, once more.
    Copy(CopyReader),
}

/// A request's body, for all its tries.
pub enum Load {
    /// There is none.
    Nothing,
    /// It can be sent once.
    Once(UpBody),
    /// Its beginning is kept.
    Kept(Rc<Kept>),
}

impl Load {
    /// The body for the first try.
    pub fn first(self) -> (UpBody, Again) {
        match self {
            Load::Nothing => (UpBody::empty(), Again::Nothing),
            Load::Once(body) => (body, Again::Impossible),
            Load::Kept(kept) => (UpBody::kept(&kept), Again::Kept(kept)),
        }
    }
}

/// Whether a body can be sent again.
pub enum Again {
    /// There is none to send.
    Nothing,
    /// It is gone.
    Impossible,
    /// As far as it is kept.
    Kept(Rc<Kept>),
}

impl Again {
    /// Whether all that was sent so far can be sent again.
    pub fn is_whole(&self) -> bool {
        match self {
            Again::Nothing => true,
            Again::Impossible => false,
            Again::Kept(kept) => kept.is_whole(),
        }
    }

    /// The body for another try.
    pub fn body(&self) -> UpBody {
        match self {
            Again::Nothing | Again::Impossible => UpBody::empty(),
            Again::Kept(kept) => UpBody::kept(kept),
        }
    }

    /// There will be no other try.
    pub fn keep_no_more(&self) {
        if let Again::Kept(kept) = self {
            kept.keep_no_more();
        }
    }
}

impl UpBody {
    /// No body.
    pub fn empty() -> Self {
        Self(Upward::Nothing)
    }

    /// One of our own.
    pub fn whole(bytes: Bytes) -> Self {
        Self(if bytes.is_empty() { Upward::Nothing } else { Upward::Whole(bytes) })
    }

    /// A client's body.
    pub fn new(origin: Origin) -> Self {
        match origin {
            Origin::Read(body) => *body,
            origin if origin.is_end_stream() => Self(Upward::Nothing),
            origin => Self(Upward::Passing(origin)),
        }
    }

    /// A body that came whole, once more.
    pub fn copy(stock: Rc<Stock>, exchange: Rc<Exchange>) -> Self {
        Self(Upward::Copy(CopyReader { stock, next: 0, has_trailers: true, exchange }))
    }

    /// A client's body from its beginning; readers of earlier tries hear no more of it.
    pub fn kept(kept: &Rc<Kept>) -> Self {
        let turn = kept.turn.get().wrapping_add(1);
        kept.turn.set(turn);
        Self(Upward::Kept(KeptReader { kept: kept.clone(), turn, next: 0, has_trailers: true }))
    }
}

impl Body for UpBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.get_mut().0 {
            Upward::Nothing => Poll::Ready(None),
            Upward::Passing(origin) => origin.poll(cx),
            Upward::Kept(reader) => reader.poll(cx),
            Upward::Whole(bytes) => match std::mem::take(bytes) {
                bytes if bytes.is_empty() => Poll::Ready(None),
                bytes => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            },
            Upward::Copy(reader) => Poll::Ready(reader.next().map(Ok)),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Upward::Nothing => true,
            Upward::Passing(origin) => origin.is_end_stream(),
            Upward::Kept(reader) => reader.is_at_end(),
            Upward::Whole(bytes) => bytes.is_empty(),
            Upward::Copy(reader) => reader.is_at_end(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Upward::Nothing => SizeHint::with_exact(0),
            Upward::Passing(origin) => origin.size_hint(),
            Upward::Kept(reader) => reader.size_hint(),
            Upward::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Upward::Copy(reader) => SizeHint::with_exact(reader.stock.bytes_from(reader.next)),
        }
    }
}

type Polled = Poll<Option<Result<Frame<Bytes>, BodyError>>>;

/// What is kept of a body, in the pod's budget for as long as somebody has it.
pub struct Stock {
    data: RefCell<Vec<Bytes>>,
    trailers: RefCell<Option<HeaderMap>>,
    /// What it takes of the budget.
    weight: Cell<usize>,
    room: RefCell<Box<dyn Room>>,
}

impl Stock {
    /// Keeps one more piece. False: there is no room for it, and nothing is kept any more.
    fn push(&self, piece: &Bytes) -> bool {
        let weight = self.weight.get().saturating_add(piece.len()).saturating_add(KEPT_PIECE_BYTES);
        self.weight.set(weight);
        if !self.room.borrow_mut().hold(weight) {
            self.clear();
            return false;
        }
        // A part of a buffer keeps the whole of it.
        let is_small = piece.len() < SMALL_PIECE;
        self.data.borrow_mut().push(if is_small { Bytes::copy_from_slice(piece) } else { piece.clone() });
        true
    }

    fn clear(&self) {
        self.data.take();
        self.weight.set(0);
        self.room.borrow_mut().hold(0);
    }

    fn bytes_from(&self, piece: usize) -> u64 {
        self.data.borrow().iter().skip(piece).map(|data| data.len() as u64).sum()
    }
}

/// What is done with a body that came whole; none: it did not, or it was not kept.
type OnEnd = Box<dyn FnOnce(Option<Rc<Stock>>)>;

/// A client's body of which the beginning is kept, so that it can be sent again. One try reads it at a time, and reads on
/// from the client where earlier tries had stopped.
pub struct Kept {
    origin: RefCell<Origin>,
    exchange: Rc<Exchange>,
    /// The reader of which try has it.
    turn: Cell<u32>,
    stock: Rc<Stock>,
    bytes: Cell<u64>,
    /// What is kept for other tries at most, in bytes.
    most: u64,
    /// Nothing is kept any more: more came than may be kept.
    is_dropped: Cell<bool>,
    /// There is no other try.
    is_last: Cell<bool>,
    has_ended: Cell<bool>,
    /// For copies of the request.
    on_end: RefCell<Option<OnEnd>>,
}

impl Kept {
    /// Of which so many bytes are kept at most for other tries, and up to [`MAX_MIRROR_BODY`] where there is something to
    /// do at its end.
    pub fn new(
        origin: Origin,
        most: u64,
        on_end: Option<OnEnd>,
        room: Box<dyn Room>,
        exchange: Rc<Exchange>,
    ) -> Rc<Self> {
        let stock = Stock {
            data: RefCell::default(),
            trailers: RefCell::default(),
            weight: Cell::new(0),
            room: RefCell::new(room),
        };
        Rc::new(Self {
            origin: RefCell::new(origin),
            exchange,
            turn: Cell::new(0),
            stock: Rc::new(stock),
            bytes: Cell::new(0),
            most,
            is_dropped: Cell::new(false),
            is_last: Cell::new(false),
            has_ended: Cell::new(false),
            on_end: RefCell::new(on_end),
        })
    }

    /// Reads until more than so many bytes are kept, or the body has ended. Returns what is kept so far, and whether that is
    /// all; None: there was no room for it, and it is lost.
    pub async fn first(&self, most: usize) -> Result<Option<(Vec<Bytes>, bool)>, BodyError> {
        while self.bytes.get() <= most as u64 && !self.is_at_end() {
            let frame = std::future::poll_fn(|cx| self.origin.borrow_mut().poll(cx));
            match frame.await {
                Some(Ok(frame)) => {
                    self.keep(&frame);
                    if frame.is_trailers() {
                        self.end(true);
                    }
                }
                Some(Err(error)) => return Err(error),
                None => self.end(true),
            }
        }
        let pieces = self.stock.data.borrow().clone();
        Ok((!self.is_dropped.get()).then(|| (pieces, self.is_at_end())))
    }

    fn is_at_end(&self) -> bool {
        self.has_ended.get() || self.origin.borrow().is_end_stream()
    }

    /// There will be no other try.
    pub fn keep_no_more(&self) {
        self.is_last.set(true);
    }

    /// Whether all that was sent so far can be sent again.
    fn is_whole(&self) -> bool {
        !self.is_dropped.get() && self.bytes.get() <= self.most
    }

    fn keep(&self, frame: &Frame<Bytes>) {
        let is_copied = self.on_end.borrow().is_some();
        if self.is_dropped.get() || self.is_last.get() && !is_copied {
            return;
        }
        if let Some(trailers) = frame.trailers_ref() {
            self.stock.trailers.replace(Some(trailers.clone()));
        }
        let Some(data) = frame.data_ref() else { return };
        self.bytes.set(self.bytes.get().saturating_add(data.len() as u64));
        let most = if is_copied { self.most.max(MAX_MIRROR_BODY) } else { self.most };
        if self.bytes.get() > most || !self.stock.push(data) {
            self.is_dropped.set(true);
            self.stock.clear();
            self.tell_end(false);
        }
    }

    /// Nothing more comes from the client.
    fn end(&self, is_whole: bool) {
        if !self.has_ended.replace(true) {
            self.tell_end(is_whole && !self.is_dropped.get() && self.bytes.get() <= MAX_MIRROR_BODY);
        }
    }

    fn tell_end(&self, is_whole: bool) {
        if let Some(on_end) = self.on_end.take() {
            on_end(is_whole.then(|| self.stock.clone()));
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.tell_end(false);
    }
}

/// What one try has read of a kept body.
struct KeptReader {
    kept: Rc<Kept>,
    turn: u32,
    /// How many pieces of what is kept.
    next: usize,
    /// Whether the trailers are still to come, if there are any.
    has_trailers: bool,
}

impl KeptReader {
    fn poll(&mut self, cx: &mut Context<'_>) -> Polled {
        let kept = self.kept.clone();
        if kept.turn.get() != self.turn {
            return Poll::Ready(Some(Err(BodyError::Elsewhere)));
        }
        if let Some(data) = kept.stock.data.borrow().get(self.next) {
            self.next = self.next.saturating_add(1);
            kept.exchange.sent_again(data.len());
            return Poll::Ready(Some(Ok(Frame::data(data.clone()))));
        }
        if kept.has_ended.get() {
            let trailers = kept.stock.trailers.borrow().clone().filter(|_| self.has_trailers);
            self.has_trailers = false;
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        }
        let (frame, is_at_end) = {
            let mut origin = kept.origin.borrow_mut();
            let frame = ready!(origin.poll(cx));
            (frame, origin.is_end_stream())
        };
        match &frame {
            Some(Ok(frame)) => {
                kept.keep(frame);
                self.next = kept.stock.data.borrow().len();
                if frame.is_trailers() {
                    self.has_trailers = false;
                }
                // Whoever reads may not ask for what comes after the last.
                if frame.is_trailers() || is_at_end {
                    kept.end(true);
                }
            }
            Some(Err(_)) => kept.end(false),
            None => kept.end(true),
        }
        Poll::Ready(frame)
    }

    fn is_at_end(&self) -> bool {
        let kept = &self.kept;
        let has_read_all = self.next >= kept.stock.data.borrow().len();
        let waits_for_trailers = self.has_trailers && kept.stock.trailers.borrow().is_some();
        has_read_all && !waits_for_trailers && (kept.has_ended.get() || kept.origin.borrow().is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let kept = &self.kept;
        let again = kept.stock.bytes_from(self.next);
        let coming = kept.origin.borrow().size_hint();
        let mut hint = SizeHint::new();
        if let Some(upper) = coming.upper() {
            hint.set_upper(upper.saturating_add(again));
        }
        hint.set_lower(coming.lower().saturating_add(again));
        hint
    }
}

/// What was read of a copy.
struct CopyReader {
    stock: Rc<Stock>,
    next: usize,
    has_trailers: bool,
    exchange: Rc<Exchange>,
}

impl CopyReader {
    fn next(&mut self) -> Option<Frame<Bytes>> {
        if let Some(data) = self.stock.data.borrow().get(self.next) {
            self.next = self.next.saturating_add(1);
            self.exchange.sent(data.len());
            return Some(Frame::data(data.clone()));
        }
        let has_trailers = std::mem::take(&mut self.has_trailers);
        self.stock.trailers.borrow().clone().filter(|_| has_trailers).map(Frame::trailers)
    }

    fn is_at_end(&self) -> bool {
        let has_read_all = self.next >= self.stock.data.borrow().len();
        has_read_all && !(self.has_trailers && self.stock.trailers.borrow().is_some())
    }
}

/// What comes back on a connection to an application.
pub enum AppBody {
    /// The application's answer.
    Application(Arriving),
    /// That of who judges its requests, who let this one not through.
    Own(Bytes),
}

impl Body for AppBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            AppBody::Application(incoming) => Pin::new(incoming).poll_frame(cx),
            AppBody::Own(bytes) => match std::mem::take(bytes) {
                bytes if bytes.is_empty() => Poll::Ready(None),
                bytes => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            AppBody::Application(incoming) => incoming.is_end_stream(),
            AppBody::Own(bytes) => bytes.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            AppBody::Application(incoming) => incoming.size_hint(),
            AppBody::Own(bytes) => SizeHint::with_exact(bytes.len() as u64),
        }
    }
}

/// What a client is answered.
pub struct DownBody {
    source: Source,
    exchange: Option<Rc<Exchange>>,
    /// Nobody hears it: what was asked for is its head alone.
    is_unsaid: bool,
}

enum Source {
    Text(Bytes),
    Application {
        incoming: AppBody,
        /// The connection that it comes by, given back at its end.
        lease: Option<Lease>,
        /// The end of its time, and when it will have been idle for too long.
        ends: Option<Pin<Box<Sleep>>>,
        /// The end of the time for the whole.
        deadline: Option<Instant>,
    },
}

impl DownBody {
    /// A text of our own.
    pub fn text(text: &'static str) -> Self {
        Self::bytes(Bytes::from_static(text.as_bytes()))
    }

    /// Bytes that are there already.
    pub fn bytes(bytes: Bytes) -> Self {
        Self { source: Source::Text(bytes), exchange: None, is_unsaid: false }
    }

    /// The text itself; nothing of an application's.
    pub fn into_text(mut self) -> Bytes {
        match &mut self.source {
            Source::Text(text) => std::mem::take(text),
            Source::Application { .. } => Bytes::new(),
        }
    }

    /// The body of an answer to HEAD, of which the head alone is sent (RFC 9110 9.3.2), whatever there is of it. To begin
    /// a body and break it off would take the head back as well, where HTTP/2 has not written it yet.
    pub fn unsaid(mut self) -> Self {
        self.is_unsaid = true;
        self.end(End::Complete);
        self
    }

    /// Of an exchange, which ends with it.
    pub fn within(mut self, exchange: Rc<Exchange>) -> Self {
        self.exchange = Some(exchange);
        self
    }

    /// An application's body. The connection is given back when it has come to its end.
    pub fn application(incoming: AppBody, lease: Lease, deadline: Option<Instant>, exchange: Rc<Exchange>) -> Self {
        let mut lease = Some(lease);
        if incoming.is_end_stream()
            && let Some(lease) = lease.take()
        {
            exchange.end(End::Complete);
            lease.give_back();
        }
        let first = [deadline, exchange.idle_until()].into_iter().flatten().min();
        let ends = first.filter(|_| lease.is_some()).map(|ends| Box::pin(tokio::time::sleep_until(ends)));
        Self {
            source: Source::Application { incoming, lease, ends, deadline },
            exchange: Some(exchange),
            is_unsaid: false,
        }
    }

    fn end(&mut self, end: End) {
        if let Some(exchange) = &self.exchange {
            exchange.end(end);
        }
        if let Source::Application { lease, .. } = &mut self.source
            && let Some(lease) = lease.take()
            && end == End::Complete
        {
            lease.give_back();
        }
    }
}

impl Body for DownBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let (frame, is_last) = match &mut this.source {
            Source::Text(text) => match std::mem::take(text) {
                text if text.is_empty() => (None, true),
                text => (Some(Ok(Frame::data(text))), true),
            },
            Source::Application { incoming, ends, deadline, .. } => {
                if let Some(ends) = ends
                    && is_over(ends, *deadline, this.exchange.as_deref(), cx)
                {
                    this.end(End::TimedOut);
                    return Poll::Ready(Some(Err(BodyError::TimedOut)));
                }
                let frame = ready!(Pin::new(&mut *incoming).poll_frame(cx));
                (frame, incoming.is_end_stream())
            }
        };
        match frame {
            Some(Ok(frame)) => {
                let exchange = this.exchange.clone();
                let frame = clean(frame, |bytes| {
                    if let Some(exchange) = &exchange {
                        exchange.received(bytes);
                    }
                });
                if let (Some(exchange), Some(trailers)) = (&this.exchange, frame.trailers_ref()) {
                    exchange.grpc_status(trailers);
                }
                if is_last || frame.is_trailers() {
                    this.end(End::Complete);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                this.end(End::ApplicationBroke);
                Poll::Ready(Some(Err(error.into())))
            }
            None => {
                this.end(End::Complete);
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.is_unsaid
            || match &self.source {
                Source::Text(text) => text.is_empty(),
                Source::Application { incoming, .. } => incoming.is_end_stream(),
            }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Text(text) => SizeHint::with_exact(text.len() as u64),
            Source::Application { incoming, .. } => incoming.size_hint(),
        }
    }
}

impl Drop for DownBody {
    fn drop(&mut self) {
        let is_whole = self.is_end_stream();
        self.end(if is_whole { End::Complete } else { End::ClientGone });
    }
}

/// Whether the time is over. The timer is not moved for every byte: when it ends, it is seen whether bytes came meanwhile.
fn is_over(
    ends: &mut Pin<Box<Sleep>>,
    deadline: Option<Instant>,
    exchange: Option<&Exchange>,
    cx: &mut Context<'_>,
) -> bool {
    while ends.as_mut().poll(cx).is_ready() {
        let next = [deadline, exchange.and_then(Exchange::idle_until)].into_iter().flatten().min();
        match next.filter(|next| *next > Instant::now()) {
            Some(next) => ends.as_mut().reset(next),
            None => return true,
        }
    }
    false
}

fn clean(mut frame: Frame<Bytes>, count: impl FnOnce(usize)) -> Frame<Bytes> {
    if let Some(data) = frame.data_ref() {
        count(data.len());
    } else if let Some(trailers) = frame.trailers_mut() {
        hygiene::trailers(trailers);
    }
    frame
}
