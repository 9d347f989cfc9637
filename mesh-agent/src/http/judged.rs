//! The other end of a request's journey: an application of this node, where somebody must be asked about each request.
//!
//! ```text
//!  client ─► server ─► screen ─► hyper ─► hygiene ─► path ─► judge ─────────► the application's own connection
//!            h1 or h2                      │ 400      │ 400    │ 401, 403        │ 503, 502
//! ```
//!
//! Nothing is routed here. A request goes on as it was judged: with the path of the one form, in the protocol that it came
//! in, on a connection to the application that this client's connection alone uses, for the application is told of its
//! client by it.

use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::{HeaderValue, Request, Response, StatusCode, Version, header, request};
use http_body::Body as _;
use hyper::body::Incoming;
use tokio::time::Instant;

use super::answer::Local;
use super::body::{DownBody, UpBody};
use super::claims::{Caller, Claims};
use super::conversation::{Conversation, Teller};
use super::exchange::Exchange;
use super::hygiene::{self, Asked};
use super::limits::MAX_RESENDS;
use super::server::Serves;
use super::session::{answered, copy_of, head_of};
use super::upstream::{Key, Reached, Tally, Unreached, Unsent, Upstreams, Wire};
use crate::addr::ServerAddr;
use crate::path::{self, NormalPath};
use crate::routes::grpc;
use crate::routing::Transport;
use crate::telemetry::RequestRecord;

/// Who is asked about each request of a connection, and makes connections to the application.
pub trait Guard: Teller {
    /// The proof that a request may pass, without which no connection is made.
    type Permit;

    /// Decides about a request of the one form, and may take from its head what is not for the application, or add what
    /// the application is told. What is learnt is noted, also about one that is refused.
    fn judge(
        &self,
        head: &mut request::Parts,
        path: &NormalPath<'_>,
        noted: &mut Noted,
    ) -> impl Future<Output = Result<Self::Permit, Local>>;

    /// Makes a connection to the application.
    fn reach(&self, permit: &Self::Permit) -> impl Future<Output = Result<Reached, Unreached>>;

    /// The application agreed to change the protocol: this request stands for all that follows.
    fn upgraded(&self, head: request::Parts);
}

/// What is told of a decision.
#[derive(Clone, Debug, Default)]
pub struct Noted {
    /// The policy that decided, as `namespace/name`.
    pub policy: Option<Arc<str>>,
    /// The number of its rule, from 0.
    pub rule: Option<usize>,
    /// The AUDIT policies that matched.
    pub audited: Vec<Arc<str>>,
    /// Who asks by a valid token.
    pub principal: Option<Arc<str>>,
}

/// One client's connection to an application of this node.
pub struct Judged<G> {
    guard: Rc<G>,
    conversation: Rc<Conversation>,
    /// To the application, for this client alone.
    upstreams: Upstreams,
    caller: Caller,
    server: ServerAddr,
    /// The Host of requests that have none.
    dialled: String,
}

impl<G: Guard> Judged<G> {
    /// A connection that has not asked for anything yet; `template` is what every request's record begins with, `claims`
    /// what becomes of its client's.
    pub fn new(
        guard: Rc<G>,
        tally: Arc<Tally>,
        server: ServerAddr,
        template: RequestRecord,
        claims: Claims,
    ) -> Rc<Self> {
        Rc::new(Self {
            upstreams: Upstreams::new(tally),
            caller: Caller::new(template.client.ip(), claims),
            conversation: Conversation::new(guard.clone(), template),
            guard,
            server,
            dialled: server.socket().to_string(),
        })
    }

    async fn ask(
        self: &Rc<Self>,
        mut parts: request::Parts,
        body: Incoming,
        exchange: &Rc<Exchange>,
    ) -> Result<Response<DownBody>, Local> {
        let wire = if parts.version == Version::HTTP_2 { Wire::Http2 } else { Wire::Http1 };
        let has_body = !body.is_end_stream();
        let asked = hygiene::request(&mut parts, has_body, &self.caller, &self.dialled).map_err(Local::Fault)?;
        exchange.note(|record| record.host = parts.headers.get(header::HOST).cloned());
        let came = parts.uri.clone();
        let path = path::normalise(came.path()).map_err(Local::Ambiguous)?;
        hygiene::set_path(&mut parts, &path).map_err(Local::Ambiguous)?;
        let mut noted = Noted::default();
        let judged = self.guard.judge(&mut parts, &path, &mut noted).await;
        exchange.note(|record| {
            let Noted { policy, rule, audited, principal } = noted;
            (record.policy, record.rule, record.audited, record.principal) = (policy, rule, audited, principal);
        });
        let permit = judged?;
        // What policy is asked again when it changes, once the connection is no HTTP any more.
        let standing = asked.upgrade.is_some().then(|| head_of(&parts));
        match wire {
            Wire::Http1 => hygiene::for_http1(&mut parts, &asked),
            Wire::Http2 => hygiene::for_http2(&mut parts, &asked).map_err(Local::Fault)?,
        }
        let request = Request::from_parts(parts, UpBody::new(body, exchange.clone()));
        let response = self.send(request, wire, &asked, &permit, exchange).await?;
        if let (StatusCode::SWITCHING_PROTOCOLS, Some(head)) = (response.status(), standing) {
            self.guard.upgraded(head);
        }
        Ok(response)
    }

    /// Sends it; again where the application had closed the connection before it could act on it, or acting twice is
    /// acting once.
    async fn send(
        &self,
        mut request: Request<UpBody>,
        wire: Wire,
        asked: &Asked,
        permit: &G::Permit,
        exchange: &Rc<Exchange>,
    ) -> Result<Response<DownBody>, Local> {
        let key =
            Key { source: Arc::from(""), address: self.server, workload: None, transport: Transport::Itself, wire };
        let can_repeat = request.body().is_end_stream() && asked.upgrade.is_none() && request.method().is_idempotent();
        let (mut resends, mut since) = (0, None);
        loop {
            let connect = async || self.guard.reach(permit).await;
            let leased = self.upstreams.lease(&key, since, connect).await;
            let mut lease = leased.map_err(|unreached| match unreached.is_denied {
                true => Local::Denied(unreached.reason),
                false => Local::Unreached(unreached.reason),
            })?;
            let may_repeat = can_repeat && lease.is_reused();
            let copy = may_repeat.then(|| copy_of(&request));
            let upgraded = asked.upgrade.is_some().then(|| lease.expect_upgrade());
            let Unsent { error, request: unsent } = match lease.send(request).await {
                Ok(response) => return answered(response, lease, asked, upgraded, None, exchange, &self.conversation),
                Err(failed) => failed,
            };
            let has_more_tries = resends < MAX_RESENDS;
            request = match unsent.or(copy) {
                Some(again) if has_more_tries && !exchange.client_broke() => again,
                _ if exchange.client_broke() => return Err(Local::ClientBody),
                _ if error.is_parse() => return Err(Local::BadAnswer),
                _ => return Err(Local::Broken),
            };
            self.upstreams.tally().resent.fetch_add(1, Ordering::Relaxed);
            (resends, since) = (resends.saturating_add(1), Some(Instant::now()));
        }
    }
}

impl<G: Guard> Serves for Judged<G> {
    fn conversation(&self) -> &Rc<Conversation> {
        &self.conversation
    }

    async fn answer(self: Rc<Self>, request: Request<Incoming>) -> Response<DownBody> {
        let is_grpc = grpc::is_call(request.headers());
        let (mut parts, body) = request.into_parts();
        // What the parser put in there is for the parser.
        parts.extensions.clear();
        let exchange = self.conversation.begin(&mut parts);
        let answered = self.ask(parts, body, &exchange).await;
        self.conversation.settle(answered, is_grpc, exchange)
    }
}

/// The host that a request of the one form is for.
pub fn host(headers: &http::HeaderMap) -> &str {
    headers.get(header::HOST).and_then(|host: &HeaderValue| host.to_str().ok()).unwrap_or_default()
}
