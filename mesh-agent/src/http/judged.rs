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

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Version, header, request};
use http_body::Body as _;
use hyper::body::Incoming;
use tokio::time::Instant;

use super::Room;
use super::answer::Local;
use super::body::{DownBody, Kept, UpBody};
use super::claims::{Caller, Claims};
use super::conversation::{Begun, Conversation, Teller};
use super::exchange::Exchange;
use super::hygiene::{self, Asked};
use super::limits::MAX_RESENDS;
use super::server::Serves;
use super::session::{answered, copy_of, head_of};
use super::upstream::{Key, Reached, Tally, Unreached, Unsent, Upstreams, Wire};
use crate::addr::ServerAddr;
use crate::extauth;
use crate::path::{self, NormalPath};
use crate::routing::Transport;
use crate::telemetry::RequestRecord;

/// Who is asked about each request of a connection, and makes connections to the application.
pub trait Guard: Teller {
    /// The proof that a request may pass, without which no connection is made.
    type Permit;

    /// Decides about a request of the one form, and may take from its head what is not for the application, or add what
    /// the application is told; and it may look at the beginning of its body. What is learnt is noted, also about one
    /// that is refused.
    fn judge(
        &self,
        head: &mut request::Parts,
        path: &NormalPath<'_>,
        body: &Ahead,
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
    /// Who was asked last, as `namespace/name`, and the word for what came of it.
    pub authorizer: Option<(Arc<str>, &'static str)>,
    /// What somebody who was asked changes of the answer's head.
    pub answer: Vec<extauth::Change>,
}

/// The word of a body that should be shown to somebody, and for which the pod's budget has no room.
const NO_ROOM: &str = "buffer-budget";

/// A body that has not gone anywhere yet.
pub struct Ahead {
    incoming: RefCell<Option<Incoming>>,
    kept: RefCell<Option<Rc<Kept>>>,
    exchange: Rc<Exchange>,
}

impl Ahead {
    fn new(incoming: Incoming, exchange: Rc<Exchange>) -> Self {
        Self { incoming: RefCell::new(Some(incoming)), kept: RefCell::default(), exchange }
    }

    /// Its beginning: more than so many bytes if there are more, all of it otherwise; and whether it is all.
    ///
    /// # Errors
    /// The client broke off, or there is no room for it.
    pub async fn first(&self, most: usize, room: Box<dyn Room>) -> Result<(Bytes, bool), Local> {
        if let Some(incoming) = self.incoming.take() {
            self.kept.replace(Some(Kept::new(incoming, u64::MAX, None, room, self.exchange.clone())));
        }
        let Some(kept) = self.kept.borrow().clone() else { return Err(Local::ClientBody) };
        let first = kept.first(most).await.map_err(|_| Local::ClientBody)?;
        let (pieces, is_whole) = first.ok_or(Local::Unreached(NO_ROOM))?;
        Ok((Bytes::from(pieces.concat()), is_whole))
    }

    /// The whole, for the application.
    fn into_body(self) -> UpBody {
        match (self.incoming.into_inner(), self.kept.into_inner()) {
            (Some(incoming), _) => UpBody::new(incoming, self.exchange),
            (None, Some(kept)) => {
                kept.keep_no_more();
                UpBody::kept(&kept)
            }
            (None, None) => UpBody::empty(),
        }
    }
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
        let body = Ahead::new(body, exchange.clone());
        let judged = self.guard.judge(&mut parts, &path, &body, &mut noted).await;
        let Noted { policy, rule, audited, principal, authorizer, answer } = noted;
        exchange.note(|record| {
            (record.policy, record.rule, record.audited, record.principal) = (policy, rule, audited, principal);
            record.authorizer = authorizer;
        });
        let permit = judged?;
        // What policy is asked again when it changes, once the connection is no HTTP any more.
        let standing = asked.upgrade.is_some().then(|| head_of(&parts));
        wire.prepare(&mut parts, &asked).map_err(Local::Fault)?;
        let request = Request::from_parts(parts, body.into_body());
        let mut response = self.send(request, wire, &asked, &permit, exchange).await?;
        if let (StatusCode::SWITCHING_PROTOCOLS, Some(head)) = (response.status(), standing) {
            self.guard.upgraded(head);
        }
        answer.iter().for_each(|change| change.apply(response.headers_mut()));
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
        let Begun { parts, body, is_grpc, exchange } = self.conversation.take(request);
        let answered = self.ask(parts, body, &exchange).await;
        self.conversation.settle(answered, is_grpc, exchange)
    }
}

/// The host that a request of the one form is for.
pub fn host(headers: &http::HeaderMap) -> &str {
    headers.get(header::HOST).and_then(|host: &HeaderValue| host.to_str().ok()).unwrap_or_default()
}
