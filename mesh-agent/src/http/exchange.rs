//! One request and its answer, told once when the last byte of both has passed, or nobody waits for it any more.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Instant;

use http::HeaderMap;

use crate::telemetry::{RequestRecord, RequestResult};

/// Takes what is told about a request.
pub trait Report {
    /// Counts and logs it.
    fn report(&self, record: &RequestRecord);
}

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
    /// The route's time was over within the answer.
    TimedOut,
}

/// What is known of a request so far. Shared by its two bodies; the last to go tells it.
pub struct Exchange {
    record: RefCell<RequestRecord>,
    started: Instant,
    sent: Cell<u64>,
    received: Cell<u64>,
    is_ended: Cell<bool>,
    reporter: Rc<dyn Report>,
}

impl Exchange {
    /// A request that has just come.
    pub fn new(record: RequestRecord, reporter: Rc<dyn Report>) -> Rc<Self> {
        Rc::new(Self {
            record: RefCell::new(record),
            started: Instant::now(),
            sent: Cell::new(0),
            received: Cell::new(0),
            is_ended: Cell::new(false),
            reporter,
        })
    }

    /// Notes what was learnt.
    pub fn note(&self, note: impl FnOnce(&mut RequestRecord)) {
        note(&mut self.record.borrow_mut());
    }

    /// Counts bytes of the client's body.
    pub fn sent(&self, bytes: usize) {
        self.sent.set(self.sent.get().saturating_add(bytes as u64));
    }

    /// Counts bytes of the application's body.
    pub fn received(&self, bytes: usize) {
        self.received.set(self.received.get().saturating_add(bytes as u64));
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
        self.reporter.report(record);
    }
}
