//! The journey of a request: hygiene → plan → endpoint → connection → answer.
//!
//! Nothing of the client's body is taken before an application's connection is there to take it, so every endpoint may
//! be tried; and what was sent is sent again only when the application cannot have acted on it, or when acting twice is
//! acting once.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use http::{Request, Response, StatusCode, Version, header, request};
use http_body_util::BodyExt as _;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::answer::Local;
use super::body::{AppBody, ClientBody, DownBody, Kept, Load, Stock, UpBody};
use super::claims::Caller;
use super::conversation::{Begun, Conversation};
use super::exchange::Exchange;
use super::hygiene::{self, Asked};
use super::limits::MIRROR_TIMEOUT;
use super::plan::{self, Plan, Planned, Ruled};
use super::server::Serves;
use super::traffic::Admitted;
use super::tries::Journey;
use super::untaken::Arriving;
use super::upgrade::Change;
use super::upstream::{Key, Lease, Upgraded, Upstreams, Wire};
use super::{Mesh, Place};
use crate::resilience::Refusal;
use crate::resilience::fault::Injection;
use crate::routes::CompiledRule;
use crate::routing::Upstream;
use crate::telemetry::{Event, RequestRecord, RequestResult};

/// The word of a copy that was not sent, since its body was too long, did not come whole, or had no room.
const NOT_MIRRORED: &str = "mirror-body";

/// One client's connection, as its requests see it.
pub struct Session<M> {
    pub(super) mesh: Rc<M>,
    pub(super) conversation: Rc<Conversation>,
    pub(super) upstreams: Upstreams,
    /// The source pod, by uid.
    source: Arc<str>,
    pub(super) caller: Caller,
    /// Where the client dialled, in words: the Host of requests that have none.
    dialled: String,
    /// The rule that the last request met, and its name.
    rule: RefCell<Option<(Arc<CompiledRule>, Arc<str>)>>,
}

/// Who the client is.
pub struct Client {
    /// Its pod, by uid.
    pub source: Arc<str>,
    /// Its address, and what becomes of its claims.
    pub caller: Caller,
    /// What it dialled.
    pub dialled: SocketAddr,
    /// What every request's record begins with.
    pub template: RequestRecord,
}

impl<M: Mesh> Session<M> {
    /// A connection that has not asked for anything yet.
    pub fn new(mesh: Rc<M>, upstreams: Upstreams, client: Client) -> Rc<Self> {
        let Client { source, caller, dialled, template } = client;
        Rc::new(Self {
            conversation: Conversation::new(mesh.clone(), template),
            mesh,
            upstreams,
            source,
            caller,
            dialled: dialled.to_string(),
            rule: RefCell::default(),
        })
    }

    async fn ask(
        self: &Rc<Self>,
        mut parts: request::Parts,
        body: ClientBody,
        is_grpc: bool,
        exchange: &Rc<Exchange>,
        ruled: &mut Option<Ruled>,
    ) -> Result<Response<DownBody>, Local> {
        let has_body = !body.is_end_stream();
        let mut asked = hygiene::request(&mut parts, has_body, &self.caller, &self.dialled).map_err(Local::Fault)?;
        exchange.note(|record| record.host = parts.headers.get(header::HOST).cloned());
        self.mesh.services().admit().await.map_err(|_| Local::Refused(Refusal::Shed))?;
        let source = self.conversation.template.source_identity.as_ref();
        let planned = plan::plan(&*self.mesh, &mut parts, (source, self.caller.ip), ruled);
        if let Some(ruled) = ruled {
            exchange.note(|record| record.route = Some(self.name_of(&ruled.rule)));
        }
        let Plan { place, treatment, admitted } = match planned {
            Ok(Planned::Forward(plan)) => plan,
            Err(local) => {
                exchange.note(|record| record.traffic_rule = local.traffic_rule());
                return Err(local);
            }
            Ok(Planned::Answer(head)) => {
                exchange.note(|record| record.status = Some(head.status));
                return Ok(Response::from_parts(*head, DownBody::text("").within(exchange.clone())));
            }
        };
        let mirror = ruled.as_ref().and_then(|ruled| self.mirror(&parts, &asked, ruled));
        let on_end = match mirror {
            Some(mirror) if has_body => Some(mirror),
            Some(mirror) => {
                mirror.send(None);
                None
            }
            None => None,
        };
        // gRPC is HTTP/2 whatever the port is called: nobody speaks it otherwise.
        let wire = if is_grpc { Wire::Http2 } else { place.wire };
        if wire == Wire::Http2 {
            asked.upgrade = None;
        }
        wire.prepare(&mut parts, &asked).map_err(Local::Fault)?;
        let timeouts = treatment.timeouts();
        let deadline = timeouts.request.and_then(|length| Instant::now().checked_add(length));
        exchange.limit_idle(timeouts.idle);
        self.inject(&admitted.injection, deadline, exchange).await?;
        let (treatment, admitted, place) = (&*treatment, &admitted, &place);
        let journey = Journey { place, treatment, admitted, wire, asked, deadline, exchange, may_retry: true };
        let load = match (has_body, on_end, treatment.retry()) {
            (false, ..) => Load::Nothing,
            (true, None, None) => Load::Once(UpBody::new(body.into())),
            (true, mirror, retry) => {
                let most = retry.map_or(0, |retry| retry.body);
                let on_end = mirror.map(Mirror::with_body);
                Load::Kept(Kept::new(body.into(), most, on_end, self.mesh.room(), exchange.clone()))
            }
        };
        self.send(&journey, parts, load).await
    }

    /// Lets go wrong what goes wrong on purpose.
    async fn inject(&self, injection: &Injection, deadline: Option<Instant>, exchange: &Exchange) -> Result<(), Local> {
        if let Some((name, length)) = &injection.delay {
            exchange.happened(|| Event::Fault { rule: name.clone(), delay: Some(*length) });
            exchange.note(|record| record.traffic_rule = Some(name.clone()));
            let ends = Instant::now().checked_add(*length);
            match (ends, deadline) {
                (Some(ends), Some(deadline)) if deadline <= ends => {
                    tokio::time::sleep_until(deadline).await;
                    return Err(Local::TimedOut);
                }
                (Some(ends), _) => tokio::time::sleep_until(ends).await,
                (None, _) => {}
            }
        }
        match &injection.abort {
            Some((name, abort)) => {
                exchange.happened(|| Event::Fault { rule: name.clone(), delay: None });
                exchange.note(|record| record.traffic_rule = Some(name.clone()));
                Err(Local::Refused(Refusal::Fault(*abort)))
            }
            None => Ok(()),
        }
    }

    /// The copies that the rule wants of a request, as its filters left it. None: it wants none.
    fn mirror(self: &Rc<Self>, parts: &request::Parts, asked: &Asked, ruled: &Ruled) -> Option<Mirror<M>> {
        let places = ruled.mirrors(&*self.mesh);
        if places.is_empty() {
            return None;
        }
        let asked = Asked { upgrade: None, ..asked.clone() };
        Some(Mirror { session: self.clone(), places, head: head_of(parts), asked, rule: self.name_of(&ruled.rule) })
    }

    /// Sends one copy. Nobody waits for what becomes of it, and it is told as a request of its own.
    async fn send_copy(
        self: Rc<Self>,
        place: Place,
        mut head: request::Parts,
        asked: Asked,
        load: Load,
        exchange: Rc<Exchange>,
    ) {
        if let Err(fault) = place.wire.prepare(&mut head, &asked) {
            return exchange.note(|record| record.result = RequestResult::Local { reason: fault.label() });
        }
        let deadline = Some(Instant::now() + MIRROR_TIMEOUT);
        let (treatment, admitted) = (self.mesh.treatment(&place, None), Admitted::default());
        let journey = Journey {
            place: &place,
            treatment: &treatment,
            admitted: &admitted,
            wire: place.wire,
            asked,
            deadline,
            exchange: &exchange,
            may_retry: false,
        };
        match tokio::time::timeout(MIRROR_TIMEOUT, self.send(&journey, head, load)).await {
            // Read to its end, so that its connection serves again.
            Ok(Ok(response)) => {
                let mut body = response.into_body();
                while let Some(Ok(_)) = body.frame().await {}
            }
            Ok(Err(local)) => exchange.note(|record| record.result = RequestResult::Local { reason: local.label() }),
            Err(_) => exchange.note(|record| record.result = RequestResult::Local { reason: "timed-out" }),
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

    pub(super) fn key(&self, upstream: &Upstream, wire: Wire) -> Key {
        Key {
            source: self.source.clone(),
            address: upstream.address,
            workload: upstream.workload.as_ref().map(|workload| workload.uid.clone()),
            transport: upstream.transport.clone(),
            wire,
        }
    }
}

/// Copies of a request that are to be sent. One with a body waits until that has come whole: what is sent on meanwhile is
/// kept for it, up to a limit.
struct Mirror<M> {
    session: Rc<Session<M>>,
    places: Vec<Place>,
    head: request::Parts,
    asked: Asked,
    /// The rule's name.
    rule: Arc<str>,
}

impl<M: Mesh> Mirror<M> {
    /// Sends them, with this body.
    fn send(self, body: Option<Rc<Stock>>) {
        for (exchange, head, place) in self.begin() {
            let load = match &body {
                Some(stock) => Load::Once(UpBody::copy(stock.clone(), exchange.clone())),
                None => Load::Nothing,
            };
            let session = self.session.clone();
            tokio::task::spawn_local(session.send_copy(place, head, self.asked.clone(), load, exchange));
        }
    }

    /// To be called when the body has come, or cannot be had.
    fn with_body(self) -> Box<dyn FnOnce(Option<Rc<Stock>>)> {
        Box::new(move |body| match body {
            Some(body) => self.send(Some(body)),
            None => {
                for (exchange, ..) in self.begin() {
                    exchange.note(|record| record.result = RequestResult::Local { reason: NOT_MIRRORED });
                }
            }
        })
    }

    fn begin(&self) -> Vec<(Rc<Exchange>, request::Parts, Place)> {
        let begin = |place: &Place| {
            let mut head = head_of(&self.head);
            let exchange = self.session.conversation.begin(&mut head);
            exchange.note(|record| record.route = Some(self.rule.clone()));
            (exchange, head, place.clone())
        };
        self.places.iter().map(begin).collect()
    }
}

impl<M: Mesh> Serves for Session<M> {
    fn conversation(&self) -> &Rc<Conversation> {
        &self.conversation
    }

    async fn answer(self: Rc<Self>, request: Request<Arriving>) -> Response<DownBody> {
        let Begun { parts, body, is_grpc, exchange } = self.conversation.take(request);
        let mut ruled = None;
        let answered = self.ask(parts, body, is_grpc, &exchange, &mut ruled).await;
        let (mut head, body) = self.conversation.settle(answered, is_grpc, exchange).await.into_parts();
        if let Some(ruled) = ruled {
            ruled.response(&mut head);
        }
        Response::from_parts(head, body)
    }
}

/// Notes the endpoint that is tried now.
pub(super) fn aim(exchange: &Exchange, upstream: &Upstream) {
    exchange.note(|record| {
        record.server = Some(upstream.address.socket());
        record.destination_identity = upstream.workload.as_ref().map(|workload| workload.identity.clone());
    });
}

/// What is asked, without what the library keeps beside it.
pub(super) fn head_of(parts: &request::Parts) -> request::Parts {
    let mut head = Request::new(()).into_parts().0;
    head.method = parts.method.clone();
    head.uri = parts.uri.clone();
    head.headers = parts.headers.clone();
    head
}

/// Of a request without a body.
pub(super) fn copy_of(request: &Request<UpBody>) -> Request<UpBody> {
    let mut copy = Request::new(UpBody::empty());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    copy
}

/// The application's answer, for the client: cleaned, noted, its body counted. One that changes the protocol, as was asked
/// for, leaves the change to be taken.
pub(super) fn passed_on(
    response: Response<AppBody>,
    lease: Lease,
    asked: &Asked,
    upgraded: Option<oneshot::Receiver<Upgraded>>,
    deadline: Option<Instant>,
    exchange: &Rc<Exchange>,
    conversation: &Conversation,
) -> Result<Response<DownBody>, Local> {
    let (mut parts, body) = response.into_parts();
    parts.extensions.clear();
    // A stream of HTTP/2 may end behind its answer, and the question with it.
    if hygiene::closes(&parts) || parts.version == Version::HTTP_2 {
        exchange.application_closes();
    }
    hygiene::response(&mut parts).map_err(|_| Local::BadAnswer)?;
    parts.version = Version::HTTP_11;
    exchange.note(|record| record.status = Some(parts.status));
    if parts.status == StatusCode::SWITCHING_PROTOCOLS {
        let agreed = match (&asked.upgrade, parts.headers.get(header::UPGRADE)) {
            (Some(asked), Some(agreed)) => asked.as_bytes().eq_ignore_ascii_case(agreed.as_bytes()),
            _ => false,
        };
        let application = upgraded.filter(|_| agreed).ok_or(Local::BadAnswer)?;
        conversation.agree(Change { application, exchange: exchange.clone() });
        // The exchange ends with the bytes that follow.
        return Ok(Response::from_parts(parts, DownBody::text("")));
    }
    lease.forget_upgrade();
    exchange.grpc_status(&parts.headers);
    Ok(Response::from_parts(parts, DownBody::application(body, lease, deadline, exchange.clone())))
}
