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
//!
//! Where the client's side is this agent's too, nothing is written and read once more in between: the client's session
//! holds the application's connection, and whoever is asked there ([`Bench`]) is asked the same about every request that
//! is sent on it ([`Judge`]).

use std::cell::RefCell;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Version, header, request, response};
use http_body::Body as _;
use tokio::time::Instant;

use super::Room;
use super::answer::Local;
use super::body::{AppBody, ClientBody, DownBody, Kept, Origin, UpBody};
use super::claims::{Caller, Claims};
use super::conversation::{Begun, Conversation, Teller};
use super::exchange::Exchange;
use super::hygiene::{self, Asked};
use super::limits::MAX_RESENDS;
use super::server::Serves;
use super::session::{copy_of, head_of, passed_on};
use super::untaken::Arriving;
use super::upstream::{Key, Reached, Tally, Unreached, Unsent, Upstreams, Wire};
use crate::addr::ServerAddr;
use crate::extauth;
use crate::path::{self, NormalPath};
use crate::routes::grpc;
use crate::routing::Transport;
use crate::telemetry::{Event, RequestRecord, RequestResult};

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
    origin: RefCell<Option<Origin>>,
    kept: RefCell<Option<Rc<Kept>>>,
    exchange: Rc<Exchange>,
}

impl Ahead {
    fn new(origin: Origin, exchange: Rc<Exchange>) -> Self {
        Self { origin: RefCell::new(Some(origin)), kept: RefCell::default(), exchange }
    }

    /// Its beginning: more than so many bytes if there are more, all of it otherwise; and whether it is all.
    ///
    /// # Errors
    /// The client broke off, or there is no room for it.
    pub async fn first(&self, most: usize, room: Box<dyn Room>) -> Result<(Bytes, bool), Local> {
        if let Some(origin) = self.origin.take() {
            self.kept.replace(Some(Kept::new(origin, u64::MAX, None, room, self.exchange.clone())));
        }
        let Some(kept) = self.kept.borrow().clone() else { return Err(Local::ClientBody) };
        let first = kept.first(most).await.map_err(|_| Local::ClientBody)?;
        let (pieces, is_whole) = first.ok_or(Local::Unreached(NO_ROOM))?;
        Ok((Bytes::from(pieces.concat()), is_whole))
    }

    /// The whole, for the application.
    fn into_body(self) -> UpBody {
        match (self.origin.into_inner(), self.kept.into_inner()) {
            (Some(origin), _) => UpBody::new(origin),
            (None, Some(kept)) => {
                kept.keep_no_more();
                UpBody::kept(&kept)
            }
            (None, None) => UpBody::empty(),
        }
    }
}

/// Asks about the requests of one client to an application of this node, and tells of them.
pub struct Bench<G> {
    guard: Rc<G>,
    conversation: Rc<Conversation>,
    caller: Caller,
    /// The Host of requests that have none.
    dialled: String,
}

/// A request that may pass, and what is still to be done for it.
struct Passed<P> {
    permit: P,
    asked: Asked,
    /// What policy is asked again when it changes, once the connection is no HTTP any more.
    standing: Option<request::Parts>,
    answer: Vec<extauth::Change>,
}

impl<G: Guard> Bench<G> {
    /// Of a client that has not asked for anything yet; `template` is what every request's record begins with, `claims`
    /// what becomes of its client's.
    pub fn new(guard: Rc<G>, server: ServerAddr, template: RequestRecord, claims: Claims) -> Self {
        Self {
            caller: Caller::new(template.client.ip(), claims),
            conversation: Conversation::new(guard.clone(), template),
            guard,
            dialled: server.socket().to_string(),
        }
    }

    /// Brings a request into its one form, asks about it, and completes it for the application: all that happens to a
    /// request's head at the application's node, whichever way it came.
    async fn decide(
        &self,
        parts: &mut request::Parts,
        body: &Ahead,
        has_body: bool,
        wire: Wire,
        exchange: &Exchange,
    ) -> Result<Passed<G::Permit>, Local> {
        let asked = hygiene::request(parts, has_body, &self.caller, &self.dialled).map_err(Local::Fault)?;
        exchange.note(|record| record.host = parts.headers.get(header::HOST).cloned());
        let came = parts.uri.clone();
        let path = path::normalise(came.path()).map_err(Local::Ambiguous)?;
        hygiene::set_path(parts, &path).map_err(Local::Ambiguous)?;
        let mut noted = Noted::default();
        let judged = self.guard.judge(parts, &path, body, &mut noted).await;
        let Noted { policy, rule, audited, principal, authorizer, answer } = noted;
        if let Some((authorizer, result)) = &authorizer {
            exchange.happened(|| Event::Authorizer { authorizer: authorizer.clone(), result });
        }
        exchange.note(|record| {
            (record.policy, record.rule, record.audited, record.principal) = (policy, rule, audited, principal);
            record.authorizer = authorizer;
        });
        let permit = judged?;
        let standing = asked.upgrade.is_some().then(|| head_of(parts));
        wire.prepare(parts, &asked).map_err(Local::Fault)?;
        Ok(Passed { permit, asked, standing, answer })
    }

    /// Changes the answer's head as whoever was asked wants it.
    fn answered(&self, standing: Option<request::Parts>, answer: &[extauth::Change], head: &mut response::Parts) {
        if let (StatusCode::SWITCHING_PROTOCOLS, Some(standing)) = (head.status, standing) {
            self.guard.upgraded(standing);
        }
        answer.iter().for_each(|change| change.apply(&mut head.headers));
    }
}

/// Who is asked about every request that is sent on a connection to an application of this node.
pub trait Judge {
    /// Asks about a request as it is to be sent, and changes it. `client` is what the client's side tells of it; what the
    /// application's side tells comes of that.
    fn judge<'a>(&'a self, request: Request<UpBody>, wire: Wire, client: &'a Exchange) -> Judging<'a>;
}

/// Ready when it is decided.
pub type Judging<'a> = Pin<Box<dyn Future<Output = Ruling<'a>> + 'a>>;

/// What was decided about a request.
pub enum Ruling<'a> {
    /// It may be sent like this, and what comes of that is to be changed like that.
    Passes(Request<UpBody>, Box<dyn FnOnce(&mut Came) + 'a>),
    /// It may not: this is the answer.
    Refused(Response<AppBody>),
}

/// What comes of sending a request.
pub type Came = Result<Response<AppBody>, Unsent>;

impl<G: Guard> Judge for Bench<G> {
    fn judge<'a>(&'a self, request: Request<UpBody>, wire: Wire, client: &'a Exchange) -> Judging<'a> {
        Box::pin(async move {
            let is_grpc = grpc::is_call(request.headers());
            let (mut parts, body) = request.into_parts();
            // To be sent elsewhere it has to be what it was.
            let before = parts.clone();
            let exchange = self.conversation.begin(&mut parts);
            client.goes_beyond(exchange.clone());
            let has_body = !body.is_end_stream();
            let body = Ahead::new(body.into(), exchange.clone());
            match self.decide(&mut parts, &body, has_body, wire, &exchange).await {
                Ok(Passed { standing, answer, .. }) => {
                    let request = Request::from_parts(parts, body.into_body());
                    Ruling::Passes(request, Box::new(move |came| self.came(came, before, standing, &answer, &exchange)))
                }
                Err(local) => {
                    let own = self.conversation.own(&local, is_grpc, &exchange);
                    Ruling::Refused(own.map(|body| AppBody::Own(body.into_text())))
                }
            }
        })
    }
}

impl<G: Guard> Bench<G> {
    fn came(
        &self,
        came: &mut Came,
        before: request::Parts,
        standing: Option<request::Parts>,
        answer: &[extauth::Change],
        exchange: &Exchange,
    ) {
        let broken = |local: Local| {
            exchange.note(|record| {
                if record.result == RequestResult::Answered {
                    record.status = Some(local.status());
                    record.result = RequestResult::Local { reason: local.label() };
                }
            });
        };
        match came {
            Ok(response) => {
                let (mut head, body) = mem::replace(response, Response::new(AppBody::Own(Bytes::new()))).into_parts();
                exchange.note(|record| record.status = Some(head.status));
                exchange.grpc_status(&head.headers);
                match hygiene::response(&mut head) {
                    Ok(()) => self.answered(standing, answer, &mut head),
                    // The client's side finds the same, and says so.
                    Err(_) => broken(Local::BadAnswer),
                }
                *response = Response::from_parts(head, body);
            }
            Err(Unsent { error, request }) => {
                broken(if error.is_parse() { Local::BadAnswer } else { Local::Broken });
                if let Some(request) = request {
                    *request = Request::from_parts(before, mem::replace(request.body_mut(), UpBody::empty()));
                }
            }
        }
    }
}

/// One client's connection to an application of this node.
pub struct Judged<G> {
    bench: Bench<G>,
    /// To the application, for this client alone.
    upstreams: Upstreams,
    server: ServerAddr,
}

impl<G: Guard> Judged<G> {
    /// A connection that has not asked for anything yet, and who is asked about what it asks for.
    pub fn new(bench: Bench<G>, tally: Arc<Tally>, server: ServerAddr) -> Rc<Self> {
        Rc::new(Self { bench, upstreams: Upstreams::new(tally), server })
    }

    async fn ask(
        self: &Rc<Self>,
        mut parts: request::Parts,
        body: ClientBody,
        exchange: &Rc<Exchange>,
    ) -> Result<Response<DownBody>, Local> {
        let wire = if parts.version == Version::HTTP_2 { Wire::Http2 } else { Wire::Http1 };
        let has_body = !body.is_end_stream();
        let body = Ahead::new(body.into(), exchange.clone());
        let Passed { permit, asked, standing, answer } =
            self.bench.decide(&mut parts, &body, has_body, wire, exchange).await?;
        let request = Request::from_parts(parts, body.into_body());
        let (mut head, body) = self.send(request, wire, &asked, &permit, exchange).await?.into_parts();
        self.bench.answered(standing, &answer, &mut head);
        Ok(Response::from_parts(head, body))
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
            let connect = async || self.bench.guard.reach(permit).await;
            let leased = self.upstreams.lease(&key, since, connect).await;
            let mut lease = leased.map_err(|unreached| match unreached.is_denied {
                true => Local::Denied(unreached.reason),
                false => Local::Unreached(unreached.reason),
            })?;
            let may_repeat = can_repeat && lease.is_reused();
            let copy = may_repeat.then(|| copy_of(&request));
            let upgraded = asked.upgrade.is_some().then(|| lease.expect_upgrade());
            let Unsent { error, request: unsent } = match lease.send(request, exchange).await {
                Ok(response) => {
                    return passed_on(response, lease, asked, upgraded, None, exchange, &self.bench.conversation);
                }
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
        &self.bench.conversation
    }

    async fn answer(self: Rc<Self>, request: Request<Arriving>) -> Response<DownBody> {
        let Begun { parts, body, is_grpc, exchange } = self.bench.conversation.take(request);
        let answered = self.ask(parts, body, &exchange).await;
        self.bench.conversation.settle(answered, is_grpc, exchange).await
    }
}

/// The host that a request of the one form is for.
pub fn host(headers: &http::HeaderMap) -> &str {
    headers.get(header::HOST).and_then(|host: &HeaderValue| host.to_str().ok()).unwrap_or_default()
}
