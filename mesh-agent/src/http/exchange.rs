//! One request and its answer, told once when the last byte of both has passed, or nobody waits for it any more.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;

use super::conversation::Conversation;
use super::traffic::Try;
use crate::resilience::pool::Permit;
use crate::telemetry::{RequestRecord, RequestResult};

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

/// What is known of a request so far. Shared by its two bodies; the last to go tells it.
pub struct Exchange {
    record: RefCell<RequestRecord>,
    started: Instant,
    sent: Cell<u64>,
    received: Cell<u64>,
    is_ended: Cell<bool>,
    /// How long no byte may come in either direction; None: as long as it likes.
    idle: Cell<Option<Duration>>,
    /// When the last one came, if that matters.
    moved: Cell<Instant>,
    /// What counts as under way until the answer's end.
    held: RefCell<(Option<Try>, Option<Permit>)>,
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
            sent: Cell::new(0),
            received: Cell::new(0),
            is_ended: Cell::new(false),
            conversation,
        })
    }

    /// Notes what was learnt.
    pub fn note(&self, note: impl FnOnce(&mut RequestRecord)) {
        note(&mut self.record.borrow_mut());
    }

    /// Counts bytes of the client's body.
    pub fn sent(&self, bytes: usize) {
        self.sent.set(self.sent.get().saturating_add(bytes as u64));
        self.moves();
    }

    /// Counts bytes of the application's body.
    pub fn received(&self, bytes: usize) {
        self.received.set(self.received.get().saturating_add(bytes as u64));
        self.moves();
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
        self.held.borrow_mut().0 = Some(of);
    }

    /// Counts a retry as under way until the answer's end.
    pub fn hold_permit(&self, permit: Option<Permit>) {
        self.held.borrow_mut().1 = permit;
    }

    /// Notes the code that gRPC says in its trailers, or in a head that is all there is.
    pub fn grpc_status(&self, fields: &HeaderMap) {
        if let Some(status) = fields.get("grpc-status").and_then(|status| status.to_str().ok()) {
            self.record.borrow_mut().grpc_status = status.parse().ok();
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

impl Drop for Exchange {
    fn drop(&mut self) {
        self.end(End::ClientGone);
        let record = self.record.get_mut();
        record.duration = self.started.elapsed();
        (record.bytes_sent, record.bytes_received) = (self.sent.get(), self.received.get());
        self.conversation.end(record);
    }
}
