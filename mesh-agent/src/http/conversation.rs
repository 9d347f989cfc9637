//! One client's connection, as requests and answers that follow each other: what is the same whoever answers them.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use http::header::{self, HeaderMap, HeaderValue};
use http::{Request, Response, StatusCode, request};
use http_body::Body as _;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::answer::Local;
use super::body::{ClientBody, DownBody};
use super::exchange::Exchange;
use super::screen::Gate;
use super::untaken::Arriving;
use super::upgrade::Change;
use crate::routes::grpc;
use crate::telemetry::{RequestRecord, RequestResult, Span, TappedHeaders};

/// Whom requests are told.
pub trait Teller: 'static {
    /// Begins this agent's part of a trace that is sampled.
    fn trace(&self, headers: &mut HeaderMap) -> Option<Span>;

    /// What of a request's headers is told in the end; None where nobody listens for that.
    fn tapped(&self, headers: &HeaderMap) -> Option<Arc<TappedHeaders>>;

    /// Counts and logs a request that is over.
    fn report(&self, record: &RequestRecord);
}

/// A request that has just come, and what is known of it so far.
pub struct Begun {
    /// Its head.
    pub parts: request::Parts,
    /// Its body.
    pub body: ClientBody,
    /// Whether it is a call of gRPC.
    pub is_grpc: bool,
    /// What will be told of it.
    pub exchange: Rc<Exchange>,
}

/// One client's connection.
pub struct Conversation {
    teller: Rc<dyn Teller>,
    /// What every request's record begins with.
    pub template: RequestRecord,
    gate: RefCell<Option<Rc<Gate>>>,
    change: RefCell<Option<Change>>,
    /// Requests under way.
    busy: Cell<u32>,
    /// Whether there has been one.
    has_begun: Cell<bool>,
    first: Notify,
    rests_since: Cell<Instant>,
}

impl Conversation {
    /// In which nothing has been asked yet.
    pub fn new(teller: Rc<dyn Teller>, template: RequestRecord) -> Rc<Self> {
        Rc::new(Self {
            teller,
            template,
            gate: RefCell::default(),
            change: RefCell::default(),
            busy: Cell::new(0),
            has_begun: Cell::new(false),
            first: Notify::new(),
            rests_since: Cell::new(Instant::now()),
        })
    }

    /// Notes what the connection's bytes go through; it speaks HTTP/1.1.
    pub fn screened(&self, gate: Rc<Gate>) {
        self.gate.replace(Some(gate));
    }

    /// Since when it rests; none while a request is under way.
    pub fn rests_since(&self) -> Option<Instant> {
        (self.busy.get() == 0).then(|| self.rests_since.get())
    }

    /// As if nothing had been asked for so long: tests do not wait for it.
    #[cfg(test)]
    pub fn has_rested(&self, length: std::time::Duration) {
        self.rests_since.set(self.rests_since.get().checked_sub(length).expect("a clock that goes so far back"));
    }

    /// Returns when the first request has begun. For one waiter.
    pub async fn begun(&self) {
        if !self.has_begun.get() {
            self.first.notified().await;
        }
    }

    /// Both sides agreed to change the protocol.
    pub fn agree(&self, change: Change) {
        self.change.replace(Some(change));
    }

    /// The change of protocol that was agreed on, once.
    pub fn take_change(&self) -> Option<Change> {
        self.change.take()
    }

    /// Tells of bytes that were no request.
    pub fn refuse(&self, reason: &'static str, status: Option<StatusCode>) {
        let result = RequestResult::Local { reason };
        self.teller.report(&RequestRecord { status, result, ..self.template.clone() });
    }

    /// A request has come, as the parser hands it over.
    pub fn take(self: &Rc<Self>, request: Request<Arriving>) -> Begun {
        let is_grpc = grpc::is_call(request.headers());
        let (mut parts, body) = request.into_parts();
        // What the parser put in there is for the parser.
        parts.extensions.clear();
        let exchange = self.begin(&mut parts);
        Begun { parts, body: ClientBody::new(body, exchange.clone()), is_grpc, exchange }
    }

    /// A request begins.
    pub fn begin(self: &Rc<Self>, parts: &mut request::Parts) -> Rc<Exchange> {
        self.busy.set(self.busy.get().saturating_add(1));
        if !self.has_begun.replace(true) {
            self.first.notify_one();
        }
        let traceparent = parts.headers.get("traceparent").cloned();
        let record = RequestRecord {
            version: parts.version,
            method: Some(parts.method.clone()),
            path: parts.uri.path_and_query().cloned(),
            traceparent,
            headers: self.teller.tapped(&parts.headers),
            span: self.teller.trace(&mut parts.headers),
            ..self.template.clone()
        };
        let exchange = Exchange::new(record, self.clone());
        exchange.asked(&parts.headers);
        exchange
    }

    /// The answer as it goes out: the application's, or our own with what is noted of it. The next request may come.
    pub async fn settle(
        &self,
        answered: Result<Response<DownBody>, Local>,
        is_grpc: bool,
        exchange: Rc<Exchange>,
    ) -> Response<DownBody> {
        if self.change.borrow().is_none()
            && let Some(gate) = &*self.gate.borrow()
        {
            gate.release();
        }
        let is_own = answered.is_err();
        let own = |local| self.own(&local, is_grpc, &exchange).map(|body| body.within(exchange.clone()));
        let mut response = answered.unwrap_or_else(own);
        if exchange.must_close(is_own).await {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if !exchange.is_for_the_head() {
            return response;
        }
        // Of our own answers: an application has said how long its answer would be, or has not.
        if let (false, Some(length)) = (response.body().is_end_stream(), response.body().size_hint().exact()) {
            response.headers_mut().entry(header::CONTENT_LENGTH).or_insert_with(|| length.into());
        }
        response.map(DownBody::unsaid)
    }

    /// Our own answer, with what is noted of it.
    pub fn own(&self, local: &Local, is_grpc: bool, exchange: &Exchange) -> Response<DownBody> {
        let response = local.response(is_grpc);
        exchange.grpc_status(response.headers());
        exchange.note(|record| {
            record.status = Some(response.status());
            record.result = RequestResult::Local { reason: local.label() };
        });
        response
    }

    /// A request is over, and told.
    pub fn end(&self, record: &RequestRecord) {
        self.busy.set(self.busy.get().saturating_sub(1));
        self.rests_since.set(Instant::now());
        self.teller.report(record);
    }
}
