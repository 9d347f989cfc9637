//! The journey of a request: hygiene → plan → endpoint → connection → answer.
//!
//! Nothing of the client's body is taken before an application's connection is there to take it, so every endpoint may
//! be tried; and what was sent is sent again only when the application cannot have acted on it, or when acting twice is
//! acting once.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::{Request, Response, StatusCode, Version, header, request};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::answer::Local;
use super::body::{DownBody, UpBody};
use super::exchange::{Exchange, Report};
use super::hygiene::{self, Asked};
use super::limits::{MAX_RESENDS, MIRROR_TIMEOUT, RETRY_PAUSE};
use super::plan::{self, Plan, Planned, Ruled};
use super::screen::Gate;
use super::upgrade::Change;
use super::upstream::{Key, Lease, Unsent, Upgraded, Upstreams, Wire};
use super::{Mesh, Place};
use crate::routes::{CompiledRule, grpc};
use crate::routing::Upstream;
use crate::telemetry::{RequestRecord, RequestResult};

/// One client's connection, as its requests see it.
pub struct Session<M> {
    mesh: Rc<M>,
    upstreams: Upstreams,
    /// What every request's record begins with.
    template: RequestRecord,
    /// The source pod, by uid.
    source: Arc<str>,
    client: SocketAddr,
    /// Where the client dialled, in words: the Host of requests that have none.
    dialled: String,
    gate: RefCell<Option<Rc<Gate>>>,
    change: RefCell<Option<Change>>,
    /// The rule that the last request met, and its name.
    rule: RefCell<Option<(Arc<CompiledRule>, Arc<str>)>>,
    /// Requests under way.
    busy: Cell<u32>,
    /// Whether there has been one.
    has_begun: Cell<bool>,
    first: Notify,
    rests_since: Cell<Instant>,
}

/// Who the client is.
pub struct Client {
    /// Its pod, by uid.
    pub source: Arc<str>,
    /// Its end of the connection.
    pub address: SocketAddr,
    /// What it dialled.
    pub dialled: SocketAddr,
    /// What every request's record begins with.
    pub template: RequestRecord,
}

impl<M: Mesh> Session<M> {
    /// A connection that has not asked for anything yet.
    pub fn new(mesh: Rc<M>, upstreams: Upstreams, client: Client) -> Rc<Self> {
        let Client { source, address, dialled, template } = client;
        Rc::new(Self {
            mesh,
            upstreams,
            template,
            source,
            client: address,
            dialled: dialled.to_string(),
            gate: RefCell::default(),
            change: RefCell::default(),
            rule: RefCell::default(),
            busy: Cell::new(0),
            has_begun: Cell::new(false),
            first: Notify::new(),
            rests_since: Cell::new(Instant::now()),
        })
    }

    /// What the connection's bytes go through, if it speaks HTTP/1.1.
    pub fn screened(&self, gate: Rc<Gate>) {
        self.gate.replace(Some(gate));
    }

    /// Since when it rests; none while a request is under way.
    pub fn rests_since(&self) -> Option<Instant> {
        (self.busy.get() == 0).then(|| self.rests_since.get())
    }

    /// Returns when the first request has begun. For one waiter.
    pub async fn begun(&self) {
        if !self.has_begun.get() {
            self.first.notified().await;
        }
    }

    /// The change of protocol that was agreed on, once.
    pub fn take_change(&self) -> Option<Change> {
        self.change.take()
    }

    /// Tells of bytes that were no request.
    pub fn report_refused(&self, reason: &'static str, status: Option<StatusCode>) {
        let result = RequestResult::Local { reason };
        self.mesh.report(&RequestRecord { status, result, ..self.template.clone() });
    }

    /// Answers one request.
    pub async fn answer(self: Rc<Self>, request: Request<Incoming>) -> Response<DownBody> {
        let is_grpc = grpc::is_call(request.headers());
        let (mut parts, body) = request.into_parts();
        // What the parser put in there is for the parser.
        parts.extensions.clear();
        let exchange = self.begin(&parts);
        let mut ruled = None;
        let answered = self.ask(parts, body, is_grpc, &exchange, &mut ruled).await;
        if self.change.borrow().is_none()
            && let Some(gate) = &*self.gate.borrow()
        {
            gate.release();
        }
        let response = answered.unwrap_or_else(|local| {
            let response = local.response(is_grpc);
            exchange.grpc_status(response.headers());
            exchange.note(|record| {
                record.status = Some(response.status());
                record.result = RequestResult::Local { reason: local.label() };
            });
            response.map(|body| body.within(exchange))
        });
        match ruled {
            Some(ruled) => {
                let (mut head, body) = response.into_parts();
                ruled.response(&mut head);
                Response::from_parts(head, body)
            }
            None => response,
        }
    }

    fn begin(self: &Rc<Self>, parts: &request::Parts) -> Rc<Exchange> {
        self.busy.set(self.busy.get().saturating_add(1));
        if !self.has_begun.replace(true) {
            self.first.notify_one();
        }
        let record = RequestRecord {
            version: parts.version,
            method: Some(parts.method.clone()),
            path: parts.uri.path_and_query().cloned(),
            traceparent: parts.headers.get("traceparent").cloned(),
            ..self.template.clone()
        };
        Exchange::new(record, self.clone())
    }

    async fn ask(
        self: &Rc<Self>,
        mut parts: request::Parts,
        body: Incoming,
        is_grpc: bool,
        exchange: &Rc<Exchange>,
        ruled: &mut Option<Ruled>,
    ) -> Result<Response<DownBody>, Local> {
        let has_body = !body.is_end_stream();
        let mut asked =
            hygiene::request(&mut parts, has_body, self.client.ip(), &self.dialled).map_err(Local::Fault)?;
        exchange.note(|record| record.host = parts.headers.get(header::HOST).cloned());
        let planned = plan::plan(&*self.mesh, &mut parts, ruled);
        if let Some(ruled) = ruled {
            exchange.note(|record| record.route = Some(self.name_of(&ruled.rule)));
        }
        let Plan { place, timeout } = match planned? {
            Planned::Forward(plan) => plan,
            Planned::Answer(head) => {
                exchange.note(|record| record.status = Some(head.status));
                return Ok(Response::from_parts(*head, DownBody::text("").within(exchange.clone())));
            }
        };
        if !has_body && let Some(ruled) = ruled {
            self.mirror(&parts, &asked, ruled);
        }
        // gRPC is HTTP/2 whatever the port is called: nobody speaks it otherwise.
        let wire = if is_grpc { Wire::Http2 } else { place.wire };
        match wire {
            Wire::Http1 => hygiene::for_http1(&mut parts, &asked),
            Wire::Http2 => {
                asked.upgrade = None;
                hygiene::for_http2(&mut parts, &asked).map_err(Local::Fault)?;
            }
        }
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let request = Request::from_parts(parts, UpBody::new(body, exchange.clone()));
        let tries = self.send(&place, wire, request, asked, deadline, exchange);
        match deadline {
            Some(deadline) => tokio::time::timeout_at(deadline, tries).await.unwrap_or(Err(Local::TimedOut)),
            None => tries.await,
        }
    }

    async fn send(
        &self,
        place: &Place,
        wire: Wire,
        mut request: Request<UpBody>,
        asked: Asked,
        deadline: Option<Instant>,
        exchange: &Rc<Exchange>,
    ) -> Result<Response<DownBody>, Local> {
        let is_idempotent = request.method().is_idempotent();
        let (mut resends, mut since) = (0, None);
        loop {
            let mut lease = self.reach(place, wire, since, exchange).await?;
            let is_reused = lease.is_reused();
            let has_no_body = request.body().is_end_stream() && asked.upgrade.is_none();
            let has_more_tries = resends < MAX_RESENDS;
            let can_repeat = has_no_body && has_more_tries && (is_idempotent || wire == Wire::Http2);
            let copy = can_repeat.then(|| copy_of(&request));
            let upgraded = asked.upgrade.is_some().then(|| lease.expect_upgrade());
            let failed = match lease.send(request).await {
                Ok(response) => return answered(response, lease, &asked, upgraded, deadline, exchange, &self.change),
                Err(failed) => failed,
            };
            // An application may close a connection that rests at the moment that we use it.
            let is_harmless = is_idempotent && (is_reused || failed.lost_its_tunnel());
            let copy = copy.filter(|_| is_harmless || failed.is_untouched());
            let Unsent { error, request: unsent } = failed;
            let again = unsent.filter(|_| has_more_tries).or(copy);
            request = match again {
                Some(again) if !exchange.client_broke() => again,
                _ if exchange.client_broke() => return Err(Local::ClientBody),
                _ if error.is_parse() => return Err(Local::BadAnswer),
                _ => return Err(Local::Broken),
            };
            tracing::debug!(%error, "a connection was closed before it answered; the request goes out again");
            self.upstreams.tally().resent.fetch_add(1, Ordering::Relaxed);
            // What else rests there may have been closed at the same time.
            (resends, since) = (resends + 1, Some(Instant::now()));
        }
    }

    /// A connection to one of the endpoints, the first that can be reached; made at `since` or later.
    async fn reach(
        &self,
        place: &Place,
        wire: Wire,
        since: Option<Instant>,
        exchange: &Exchange,
    ) -> Result<Lease, Local> {
        let mut has_paused = false;
        loop {
            let mut last = None;
            for upstream in self.mesh.endpoints(place) {
                aim(exchange, &upstream);
                let key = self.key(&upstream, wire);
                let connect = async || self.mesh.reach(place, &upstream).await;
                match self.upstreams.lease(&key, since, connect).await {
                    Ok(lease) => {
                        exchange.note(|record| record.destination_pod = lease.pod().cloned());
                        return Ok(lease);
                    }
                    Err(unreached) if unreached.is_denied => return Err(Local::Denied(unreached.reason)),
                    Err(unreached) if unreached.is_final => return Err(Local::Unreached(unreached.reason)),
                    Err(unreached) => last = Some(unreached),
                }
            }
            match last {
                None => return Err(Local::NoEndpoint),
                Some(unreached) if unreached.is_passing && !has_paused => {
                    has_paused = true;
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                Some(unreached) => return Err(Local::Unreached(unreached.reason)),
            }
        }
    }

    /// Sends copies where the rule wants them. Nobody waits for what becomes of them, and they are told as requests of
    /// their own. A request with a body is not copied: its body is not kept.
    fn mirror(self: &Rc<Self>, parts: &request::Parts, asked: &Asked, ruled: &Ruled) {
        for place in ruled.mirrors(&*self.mesh) {
            let mut copy = Request::new(()).into_parts().0;
            copy.method = parts.method.clone();
            copy.uri = parts.uri.clone();
            copy.headers = parts.headers.clone();
            let (session, exchange) = (self.clone(), self.begin(&copy));
            exchange.note(|record| record.route = Some(session.name_of(&ruled.rule)));
            let asked = Asked { upgrade: None, ..asked.clone() };
            let ready = match place.wire {
                Wire::Http1 => {
                    hygiene::for_http1(&mut copy, &asked);
                    Ok(())
                }
                Wire::Http2 => hygiene::for_http2(&mut copy, &asked),
            };
            if ready.is_err() {
                continue;
            }
            tokio::task::spawn_local(async move {
                let (request, wire) = (Request::from_parts(copy, UpBody::empty()), place.wire);
                let deadline = Some(Instant::now() + MIRROR_TIMEOUT);
                let sent = session.send(&place, wire, request, asked, deadline, &exchange);
                match tokio::time::timeout(MIRROR_TIMEOUT, sent).await {
                    // Read to its end, so that its connection serves again.
                    Ok(Ok(response)) => {
                        let mut body = response.into_body();
                        while let Some(Ok(_)) = body.frame().await {}
                    }
                    Ok(Err(local)) => {
                        exchange.note(|record| record.result = RequestResult::Local { reason: local.label() });
                    }
                    Err(_) => exchange.note(|record| record.result = RequestResult::Local { reason: "timed-out" }),
                }
            });
        }
    }

    /// How the rule is called in telemetry: written once for as long as the client's requests meet the same.
    fn name_of(&self, rule: &Arc<CompiledRule>) -> Arc<str> {
        if let Some((last, name)) = &*self.rule.borrow()
            && Arc::ptr_eq(last, rule)
        {
            return name.clone();
        }
        let CompiledRule { namespace, route, name, .. } = &**rule;
        let name: Arc<str> = match name {
            Some(name) => format!("{namespace}/{route}/{name}").into(),
            None => format!("{namespace}/{route}").into(),
        };
        self.rule.replace(Some((rule.clone(), name.clone())));
        name
    }

    fn key(&self, upstream: &Upstream, wire: Wire) -> Key {
        Key {
            source: self.source.clone(),
            address: upstream.address,
            workload: upstream.workload.as_ref().map(|workload| workload.uid.clone()),
            transport: upstream.transport.clone(),
            wire,
        }
    }
}

impl<M: Mesh> Report for Session<M> {
    fn report(&self, record: &RequestRecord) {
        self.busy.set(self.busy.get().saturating_sub(1));
        self.rests_since.set(Instant::now());
        self.mesh.report(record);
    }
}

/// Notes the endpoint that is tried now.
fn aim(exchange: &Exchange, upstream: &Upstream) {
    exchange.note(|record| {
        record.server = Some(upstream.address.socket());
        record.destination_identity = upstream.workload.as_ref().map(|workload| workload.identity.clone());
    });
}

/// Of a request without a body.
fn copy_of(request: &Request<UpBody>) -> Request<UpBody> {
    let mut copy = Request::new(UpBody::empty());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    copy
}

fn answered(
    response: Response<Incoming>,
    lease: Lease,
    asked: &Asked,
    upgraded: Option<oneshot::Receiver<Upgraded>>,
    deadline: Option<Instant>,
    exchange: &Rc<Exchange>,
    change: &RefCell<Option<Change>>,
) -> Result<Response<DownBody>, Local> {
    let (mut parts, body) = response.into_parts();
    parts.extensions.clear();
    hygiene::response(&mut parts).map_err(|_| Local::BadAnswer)?;
    parts.version = Version::HTTP_11;
    exchange.note(|record| record.status = Some(parts.status));
    if parts.status == StatusCode::SWITCHING_PROTOCOLS {
        let agreed = match (&asked.upgrade, parts.headers.get(header::UPGRADE)) {
            (Some(asked), Some(agreed)) => asked.as_bytes().eq_ignore_ascii_case(agreed.as_bytes()),
            _ => false,
        };
        let application = upgraded.filter(|_| agreed).ok_or(Local::BadAnswer)?;
        change.replace(Some(Change { application, exchange: exchange.clone() }));
        return Ok(Response::from_parts(parts, DownBody::text("").within(exchange.clone())));
    }
    lease.forget_upgrade();
    exchange.grpc_status(&parts.headers);
    let deadline = deadline.map(|deadline| Box::pin(tokio::time::sleep_until(deadline)));
    Ok(Response::from_parts(parts, DownBody::application(body, lease, deadline, exchange.clone())))
}
