//! One request and its answer, told once when the last byte of both has passed, or nobody waits for it any more.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use http::{HeaderMap, Method, Version, header};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::conversation::Conversation;
use super::limits::{UNREAD_BYTES, UNREAD_PATIENCE};
use super::traffic::Try;
use super::untaken::Arriving;
use crate::resilience::pool::Permit;
use crate::telemetry::{Event, RequestRecord, RequestResult};

/// How the bytes of an exchange ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With the whole answer.
    Complete,
    /// The client went away before it had the whole answer.
    ClientGone,
    /// The client broke off, or its body was not HTTP.
    ClientBroke,
    /// The application broke off within its answer.
    ApplicationBroke,
    /// The time for the request was over within the answer, or no byte came for too long.
    TimedOut,
}

/// What becomes of the client's body.
enum Question {
    /// There is none, or it was read to its end.
    Read,
    /// Somebody reads it, or may yet.
    Comes,
    /// Nobody will.
    Left(Arriving),
}

/// What counts as under way.
#[derive(Default)]
struct Held {
    of: Option<Try>,
    retry: Option<Permit>,
    timer: Option<Timer>,
}

/// Ends with who holds it.
struct Timer(AbortHandle);

impl Drop for Timer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What is known of a request so far. Shared by its two bodies; the last to go tells it.
pub struct Exchange {
    record: RefCell<RequestRecord>,
    started: Instant,
    sent: Cell<u64>,
    received: Cell<u64>,
    is_ended: Cell<bool>,
    question: RefCell<Question>,
    /// Whoever has the body to send has asked for more of it than has come.
    lacks_body: Cell<bool>,
    /// The client sends its body when it is told to.
    waits_to_send: Cell<bool>,
    /// The application closes its connection after its answer.
    application_closes: Cell<bool>,
    /// The head of its answer is on its way.
    is_answered: Cell<bool>,
    /// How long no byte may come in either direction; None: as long as it likes.
    idle: Cell<Option<Duration>>,
    /// When the last one came, if that matters.
    moved: Cell<Instant>,
    /// What counts as under way until the answer's end.
    held: RefCell<Held>,
    /// The same request as the application's side tells of it, where that is in this agent too.
    beyond: RefCell<Option<Rc<Exchange>>>,
    conversation: Rc<Conversation>,
}

impl Exchange {
    /// A request that has just come.
    pub fn new(record: RequestRecord, conversation: Rc<Conversation>) -> Rc<Self> {
        let now = Instant::now();
        Rc::new(Self {
            record: RefCell::new(record),
            started: now,
            idle: Cell::new(None),
            moved: Cell::new(now),
            held: RefCell::default(),
            beyond: RefCell::default(),
            sent: Cell::new(0),
            received: Cell::new(0),
            is_ended: Cell::new(false),
            question: RefCell::new(Question::Read),
            lacks_body: Cell::new(false),
            waits_to_send: Cell::new(false),
            application_closes: Cell::new(false),
            is_answered: Cell::new(false),
            conversation,
        })
    }

    /// Notes what was learnt.
    pub fn note(&self, note: impl FnOnce(&mut RequestRecord)) {
        note(&mut self.record.borrow_mut());
    }

    /// Notes what happened to a request that is part of a trace.
    pub fn happened(&self, event: impl FnOnce() -> Event) {
        let mut record = self.record.borrow_mut();
        if record.span.is_some() {
            record.events.add(event());
        }
    }

    /// The application's side tells of this try as well, from now on. What it told of the last one is over.
    pub fn goes_beyond(&self, beyond: Rc<Exchange>) {
        if let Some(last) = self.beyond.replace(Some(beyond)) {
            let was_answered = last.record.borrow().status.is_some();
            last.end(if was_answered { End::Complete } else { End::ClientGone });
        }
    }

    /// What the head says that matters beyond it.
    pub fn asked(&self, headers: &HeaderMap) {
        self.waits_to_send.set(headers.contains_key(header::EXPECT));
    }

    /// Whether the head of the answer is all that was asked for.
    pub fn is_for_the_head(&self) -> bool {
        self.record.borrow().method == Some(Method::HEAD)
    }

    /// The request has a body.
    pub fn body_comes(&self) {
        self.question.replace(Question::Comes);
    }

    /// The body was read to its end.
    pub fn body_ended(&self) {
        self.question.replace(Question::Read);
    }

    /// Whether there is room for more of the body than the client has sent.
    pub fn lacks_body(&self) -> bool {
        self.lacks_body.get()
    }

    /// Notes whether there is.
    pub fn note_lack(&self, lacks_body: bool) {
        self.lacks_body.set(lacks_body);
    }

    /// The application has said that its connection closes after this answer.
    pub fn application_closes(&self) {
        self.application_closes.set(true);
    }

    /// Nobody will read the rest of the body.
    pub fn leaves(&self, rest: Arriving) {
        // Streams of HTTP/2 end one by one.
        if !self.is_answered.get() && self.record.borrow().version < Version::HTTP_2 {
            self.question.replace(Question::Left(rest));
        }
    }

    /// Whether the client's connection must close when the request is answered, by the application or as our own answer:
    /// its body may be in the way of the next request. To be asked before the answer's head is sent.
    ///
    /// The library reads on once, when the answer has been written, and closes where that did not bring the body's end:
    /// too late to say so in the head. Whoever has kept the connection finds it closed by its next request, which is
    /// lost where it may not be sent twice. So what is there of a small body is read before; with more of it the client
    /// is told.
    pub async fn must_close(&self, is_own: bool) -> bool {
        self.is_answered.set(true);
        if self.record.borrow().version >= Version::HTTP_2 {
            return false;
        }
        match self.question.replace(Question::Read) {
            Question::Read => false,
            Question::Comes => is_own || self.application_closes.get(),
            // To read it would be to ask for it.
            Question::Left(_) if self.waits_to_send.get() => true,
            Question::Left(rest) => !is_soon_read(rest).await,
        }
    }

    /// Counts bytes of the client's body.
    pub fn sent(&self, bytes: usize) {
        self.sent.set(self.sent.get().saturating_add(bytes as u64));
        self.moves();
        self.sent_again(bytes);
    }

    /// Counts bytes of the client's body that the client sent once, for an earlier try.
    pub fn sent_again(&self, bytes: usize) {
        if let Some(beyond) = &*self.beyond.borrow() {
            beyond.sent(bytes);
        }
    }

    /// Counts bytes of the application's body.
    pub fn received(&self, bytes: usize) {
        self.received.set(self.received.get().saturating_add(bytes as u64));
        self.moves();
        if let Some(beyond) = &*self.beyond.borrow() {
            beyond.received(bytes);
        }
    }

    /// Limits the time in which no byte comes in either direction.
    pub fn limit_idle(&self, idle: Option<Duration>) {
        self.idle.set(idle);
        self.moved.set(Instant::now());
    }

    /// Notes that bytes came.
    pub fn moves(&self) {
        if self.idle.get().is_some() {
            self.moved.set(Instant::now());
        }
    }

    /// When it will have been idle for too long, unless bytes come; None: never.
    pub fn idle_until(&self) -> Option<Instant> {
        self.moved.get().checked_add(self.idle.get()?)
    }

    /// Counts the try as under way until the answer's end.
    pub fn hold_try(&self, of: Try) {
        self.held.borrow_mut().of = Some(of);
    }

    /// What a limit counts of it counts until then, however long the client leaves the answer unread: of a body that finds no
    /// room on its way nobody asks for more, and nobody looks at its time.
    pub fn hold_until(self: &Rc<Self>, deadline: Instant) {
        let mut held = self.held.borrow_mut();
        let is_counted =
            held.of.as_ref().is_some_and(Try::is_counted) || held.retry.as_ref().is_some_and(Permit::is_held);
        if !is_counted {
            return;
        }
        let exchange = Rc::downgrade(self);
        let timer = tokio::task::spawn_local(async move {
            tokio::time::sleep_until(deadline).await;
            if let Some(exchange) = exchange.upgrade() {
                exchange.end(End::TimedOut);
            }
        });
        held.timer = Some(Timer(timer.abort_handle()));
    }

    /// Counts a retry as under way until the answer's end.
    pub fn hold_permit(&self, permit: Option<Permit>) {
        self.held.borrow_mut().retry = permit;
    }

    /// Notes the code that gRPC says in its trailers, or in a head that is all there is.
    pub fn grpc_status(&self, fields: &HeaderMap) {
        if let Some(status) = fields.get("grpc-status").and_then(|status| status.to_str().ok()) {
            self.record.borrow_mut().grpc_status = status.parse().ok();
        }
        if let Some(beyond) = &*self.beyond.borrow() {
            beyond.grpc_status(fields);
        }
    }

    /// Whether it was the client that broke off.
    pub fn client_broke(&self) -> bool {
        self.record.borrow().result == RequestResult::Broken { reason: "client-body" }
    }

    /// Notes how it ended; the first word stands.
    pub fn end(&self, end: End) {
        if self.is_ended.replace(true) {
            return;
        }
        self.held.take();
        if let Some(beyond) = &*self.beyond.borrow() {
            beyond.end(end);
        }
        let mut record = self.record.borrow_mut();
        if record.result == RequestResult::Answered {
            record.result = match end {
                End::Complete => RequestResult::Answered,
                End::ClientGone => RequestResult::ClientGone,
                End::ClientBroke => RequestResult::Broken { reason: "client-body" },
                End::ApplicationBroke => RequestResult::Broken { reason: "upstream-body" },
                End::TimedOut => RequestResult::Broken { reason: "timed-out" },
            };
        }
    }
}

/// Reads what is left of a body, if that is little and there, or right behind its head.
async fn is_soon_read(mut rest: Arriving) -> bool {
    if rest.size_hint().lower() > UNREAD_BYTES {
        return false;
    }
    let mut read = 0u64;
    let reading = async {
        while let Some(frame) = rest.frame().await {
            let Ok(frame) = frame else { return false };
            read = read.saturating_add(frame.data_ref().map_or(0, |data| data.len() as u64));
            if read > UNREAD_BYTES {
                return false;
            }
        }
        true
    };
    tokio::time::timeout(UNREAD_PATIENCE, reading).await.unwrap_or(false)
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.end(End::ClientGone);
        let record = self.record.get_mut();
        record.duration = self.started.elapsed();
        (record.bytes_sent, record.bytes_received) = (self.sent.get(), self.received.get());
        self.conversation.end(record);
    }
}
