//! The page, a picture, a stream of pictures, what is known of an edge or a workload; and the login. Within the bounds that
//! the agent's own HTTP has.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream;
use http::header::{self, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;

use super::gate::Gate;
use super::keeper::{Map, Shot};
use super::page::{ASSETS, Asset, ICON, LOGIN, STYLE};
use crate::admin::{self, Listener, REQUEST_TIMEOUT};

/// How many streams of events there may be at once: half of the connections that a listener serves.
pub(super) const MOST_STREAMS: usize = 32;
/// How many pictures a stream may miss: who reads slower than that is not served with it.
pub(super) const MOST_LAG: u64 = 5;
/// How large a login may be.
pub(super) const MAX_FORM_BYTES: usize = 4096;

/// Nothing but what this server has itself, and nobody may put it into a page of his own.
const CONTENT_SECURITY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
                                form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

type Body = UnsyncBoxBody<Bytes, Infallible>;
type Answer = Response<Body>;

/// Serves the map until the returned future is dropped.
pub async fn serve(listener: Listener, map: Map, gate: Gate) {
    let server = Arc::new(Server { map, gate, streams: Arc::new(Semaphore::new(MOST_STREAMS)) });
    let answer = move |request: Request<Incoming>| -> admin::BoxFuture<Answer> {
        let server = server.clone();
        Box::pin(async move { secured(server.answer(request).await) })
    };
    admin::serve_with(listener, answer).await
}

struct Server {
    map: Map,
    gate: Gate,
    streams: Arc<Semaphore>,
}

impl Server {
    async fn answer(&self, request: Request<Incoming>) -> Answer {
        if let Some(refusal) = self.gate.refusal(request.headers()) {
            return text(StatusCode::FORBIDDEN, refusal);
        }
        match timeout(REQUEST_TIMEOUT, self.judged(request)).await {
            Ok(answer) => answer,
            Err(_) => text(StatusCode::GATEWAY_TIMEOUT, "the agents did not answer in time\n"),
        }
    }

    async fn judged(&self, request: Request<Incoming>) -> Answer {
        let path = request.uri().path().to_string();
        if request.method() == Method::POST && path == LOGIN.path {
            return self.log_in(request).await;
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let answer = text(StatusCode::METHOD_NOT_ALLOWED, "the map shows, and changes nothing: GET\n");
            return with(answer, header::ALLOW, "GET, HEAD");
        }
        if let Some(asset) = [STYLE, ICON].into_iter().find(|asset| asset.path == path) {
            return file(StatusCode::OK, &asset);
        }
        if !self.gate.admits(request.headers()) {
            return match path.starts_with("/api/") {
                true => text(StatusCode::UNAUTHORIZED, "log in first, or send Authorization: Bearer TOKEN\n"),
                false => file(StatusCode::UNAUTHORIZED, &LOGIN),
            };
        }
        if let Some(asset) = ASSETS.iter().find(|asset| asset.path == path) {
            return file(StatusCode::OK, asset);
        }
        let asked = |name: &str| {
            let pairs = form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes());
            pairs.into_iter().find(|(key, _)| key == name).map(|(_, value)| value.into_owned()).unwrap_or_default()
        };
        match path.as_str() {
            "/api/snapshot" => self.snapshot().await,
            "/api/events" => self.events(request.method()),
            "/api/edge" => found(self.map.edge(&asked("from"), &asked("to")).await),
            "/api/workload" => found(self.map.workload(&asked("id"))),
            _ => text(StatusCode::NOT_FOUND, "there is /, /api/snapshot, /api/events, /api/edge and /api/workload\n"),
        }
    }

    async fn log_in(&self, request: Request<Incoming>) -> Answer {
        let form = match Limited::new(request.into_body(), MAX_FORM_BYTES).collect().await {
            Ok(form) => form.to_bytes(),
            Err(_) => return text(StatusCode::PAYLOAD_TOO_LARGE, "that is no token\n"),
        };
        let token =
            form_urlencoded::parse(&form).find(|(name, _)| name == "token").map(|(_, value)| value.into_owned());
        let cookie = self.gate.log_in(&token.unwrap_or_default()).await;
        match cookie.and_then(|cookie| HeaderValue::from_str(&cookie).ok()) {
            Some(cookie) => {
                let mut answer = with(text(StatusCode::SEE_OTHER, "come in\n"), header::LOCATION, "/");
                answer.headers_mut().insert(header::SET_COOKIE, cookie);
                answer
            }
            None => file(StatusCode::UNAUTHORIZED, &LOGIN),
        }
    }

    async fn snapshot(&self) -> Answer {
        match self.map.shot().await {
            Some(shot) => typed(StatusCode::OK, "application/json", shot.json),
            None => text(StatusCode::SERVICE_UNAVAILABLE, "there is no picture yet\n"),
        }
    }

    fn events(&self, method: &Method) -> Answer {
        const KIND: &str = "text/event-stream; charset=utf-8";
        if method == Method::HEAD {
            return typed(StatusCode::OK, KIND, Bytes::new());
        }
        let Ok(permit) = self.streams.clone().try_acquire_owned() else {
            let answer = text(StatusCode::SERVICE_UNAVAILABLE, "too many look at the map at once\n");
            return with(answer, header::RETRY_AFTER, "10");
        };
        let mut shots = self.map.shots();
        // Who comes sees what there is at once.
        shots.mark_changed();
        let events = stream::unfold((shots, 0, permit), next_event).map(|event| Ok(Frame::data(event)));
        let answer = Response::new(StreamBody::new(events).boxed_unsync());
        with(with(answer, header::CONTENT_TYPE, KIND), header::CACHE_CONTROL, "no-store")
    }
}

type Stream = (watch::Receiver<Shot>, u64, OwnedSemaphorePermit);

/// The next picture. None, which ends the stream: whoever reads it is too slow, or the map has ended.
async fn next_event((mut shots, last, permit): Stream) -> Option<(Bytes, Stream)> {
    loop {
        shots.changed().await.ok()?;
        let shot = shots.borrow_and_update().clone();
        if shot.number == 0 {
            continue;
        }
        if last > 0 && shot.number > last + MOST_LAG {
            return None;
        }
        let mut event = Vec::with_capacity(shot.json.len() + 32);
        event.extend_from_slice(b"data: ");
        event.extend_from_slice(&shot.json);
        event.extend_from_slice(b"\n\n");
        return Some((event.into(), (shots, shot.number, permit)));
    }
}

fn found(detail: Option<Value>) -> Answer {
    match detail {
        Some(detail) => typed(StatusCode::OK, "application/json", detail.to_string().into()),
        None => typed(
            StatusCode::NOT_FOUND,
            "application/json",
            json!({ "error": "nothing is known of it" }).to_string().into(),
        ),
    }
}

fn file(status: StatusCode, asset: &Asset) -> Answer {
    typed(status, asset.kind, Bytes::from_static(asset.text.as_bytes()))
}

fn text(status: StatusCode, text: &'static str) -> Answer {
    typed(status, "text/plain; charset=utf-8", Bytes::from_static(text.as_bytes()))
}

fn typed(status: StatusCode, kind: &'static str, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body).boxed_unsync());
    *answer.status_mut() = status;
    with(with(answer, header::CONTENT_TYPE, kind), header::CACHE_CONTROL, "no-store")
}

fn with(mut answer: Answer, name: HeaderName, value: &'static str) -> Answer {
    answer.headers_mut().insert(name, HeaderValue::from_static(value));
    answer
}

/// What every answer says to browsers.
fn secured(answer: Answer) -> Answer {
    let said = [
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    said.into_iter().fold(answer, |answer, (name, value)| with(answer, name, value))
}
