//! Which endpoint a request means, and its answer.

use std::convert::Infallible;
use std::fmt::Write;
use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, timeout, timeout_at};

use super::serve::REQUEST_TIMEOUT;
use super::stream::FlowLines;
use super::{Hook, Provider, Sources, Surface};
use crate::telemetry::access_log::FilterError;
use crate::telemetry::{AccessLog, flows, logs, metrics};

/// How large the body of a request may be, in bytes: a log filter.
pub(super) const MAX_BODY_BYTES: usize = 4096;

/// How long one section of /config_dump may take; the rest of the dump does not wait for a part that hangs.
pub(super) const SECTION_TIMEOUT: Duration = Duration::from_secs(3);

const JSON: &str = "application/json";
/// Of answers that go on.
pub(super) const JSON_LINES: &str = "application/x-ndjson";
const TEXT: &str = "text/plain; charset=utf-8";

/// An answer that is whole, or one that goes on.
pub(super) type Body = UnsyncBoxBody<Bytes, Infallible>;

type Answer = Response<Body>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Endpoint {
    Ready,
    Metrics,
    ConfigDump,
    Connections,
    Flows,
    Denials,
    Rotate,
    Drain,
    LogLevel,
    AccessLog,
}

impl Endpoint {
    const ALL: [Endpoint; 10] = [
        Endpoint::Ready,
        Endpoint::Metrics,
        Endpoint::ConfigDump,
        Endpoint::Connections,
        Endpoint::Flows,
        Endpoint::Denials,
        Endpoint::Rotate,
        Endpoint::Drain,
        Endpoint::LogLevel,
        Endpoint::AccessLog,
    ];

    fn path(self) -> &'static str {
        match self {
            Endpoint::Ready => "/readyz",
            Endpoint::Metrics => "/metrics",
            Endpoint::ConfigDump => "/config_dump",
            Endpoint::Connections => "/connections",
            Endpoint::Flows => "/flows",
            Endpoint::Denials => "/denials",
            Endpoint::Rotate => "/rotate",
            Endpoint::Drain => "/drain",
            Endpoint::LogLevel => "/log-level",
            Endpoint::AccessLog => "/access-log",
        }
    }

    fn methods(self) -> &'static str {
        match self {
            Endpoint::Ready | Endpoint::Metrics | Endpoint::ConfigDump | Endpoint::Connections | Endpoint::Denials => {
                "GET, HEAD"
            }
            Endpoint::Flows => "GET",
            Endpoint::Rotate | Endpoint::Drain => "POST",
            Endpoint::LogLevel | Endpoint::AccessLog => "GET, HEAD, PUT",
        }
    }

    fn takes(self, method: &Method) -> bool {
        self.methods().split(", ").any(|allowed| allowed == method.as_str())
    }

    fn is_on(self, surface: Surface) -> bool {
        match surface {
            Surface::Admin => true,
            Surface::Metrics => self == Endpoint::Metrics,
            Surface::Readiness => self == Endpoint::Ready,
            Surface::Status => matches!(self, Endpoint::Ready | Endpoint::Metrics),
        }
    }

    fn find(path: &str, surface: Surface) -> Option<Self> {
        Self::ALL.into_iter().find(|endpoint| endpoint.path() == path && endpoint.is_on(surface))
    }
}

/// Answers one request, within [`REQUEST_TIMEOUT`].
pub(super) async fn answer(request: Request<Incoming>, surface: Surface, sources: &Sources) -> Answer {
    let Some(endpoint) = Endpoint::find(request.uri().path(), surface) else { return not_found(surface) };
    if !endpoint.takes(request.method()) {
        return not_allowed(endpoint);
    }
    if surface == Surface::Admin
        && let Some(refusal) = browser_refusal(request.headers(), request.method())
    {
        return text(StatusCode::FORBIDDEN, refusal);
    }
    match timeout(REQUEST_TIMEOUT, act(endpoint, request, sources)).await {
        Ok(answer) => answer,
        Err(_) => text(StatusCode::GATEWAY_TIMEOUT, "the agent did not answer in time; its log may say why\n"),
    }
}

async fn act(endpoint: Endpoint, request: Request<Incoming>, sources: &Sources) -> Answer {
    match endpoint {
        Endpoint::Ready => readiness(sources),
        Endpoint::Metrics => scrape(sources).await,
        Endpoint::ConfigDump => json_answer(StatusCode::OK, &config_dump(request.uri().query(), sources).await),
        Endpoint::Connections => json_answer(StatusCode::OK, &connections(sources).await),
        Endpoint::Flows => follow(request.uri().query().unwrap_or_default(), sources.access_log.flows()),
        Endpoint::Denials => json_answer(StatusCode::OK, &json!(sources.access_log.denials().recent())),
        Endpoint::Rotate => run_hook(&sources.rotate).await,
        Endpoint::Drain => run_hook(&sources.drain).await,
        Endpoint::LogLevel => log_level(request, sources.log_filter.as_ref()).await,
        Endpoint::AccessLog => access_log(request, &sources.access_log).await,
    }
}

/// Written on a thread of its own: fifty thousand series take a while, and discovery shares this runtime's threads.
async fn written(sources: &Sources) -> Result<String, JoinError> {
    let metrics = sources.metrics.clone();
    tokio::task::spawn_blocking(move || metrics.encode()).await
}

async fn scrape(sources: &Sources) -> Answer {
    match written(sources).await {
        Ok(written) => typed(StatusCode::OK, HeaderValue::from_static(metrics::CONTENT_TYPE), written),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("the metrics could not be written: {error}\n")),
    }
}

/// What an agent tells of itself, to a part of the same process: as GET on the admin address would. None: it tells nothing
/// there.
pub async fn tell(path: &str, sources: &Sources) -> Option<Bytes> {
    let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
    match Endpoint::find(path, Surface::Admin)? {
        Endpoint::Metrics => Some(written(sources).await.ok()?.into()),
        Endpoint::ConfigDump => Some(config_dump(query, sources).await.to_string().into()),
        Endpoint::Connections => Some(connections(sources).await.to_string().into()),
        Endpoint::Denials => Some(json!(sources.access_log.denials().recent()).to_string().into()),
        Endpoint::Ready
        | Endpoint::Flows
        | Endpoint::Rotate
        | Endpoint::Drain
        | Endpoint::LogLevel
        | Endpoint::AccessLog => None,
    }
}

fn readiness(sources: &Sources) -> Answer {
    let missing = sources.readiness.missing();
    let (status, said) = match missing.is_empty() {
        true => (StatusCode::OK, "ready\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
    };
    let mut body = String::from(said);
    for (gate, reason) in missing.into_iter().chain(sources.readiness.notes()).chain(sources.readiness.remarks()) {
        // A reason is one line here, whatever it says.
        let reason = reason.replace(char::is_control, " ");
        // Writing into a String does not fail.
        let _ = writeln!(body, "{gate}: {reason}");
    }
    text(status, body)
}

/// All sections, or those that the query names: the services of a large cluster are most of a dump.
async fn config_dump(query: Option<&str>, sources: &Sources) -> Value {
    let deadline = Instant::now() + SECTION_TIMEOUT;
    let wanted = query.and_then(|query| query.split('&').find_map(|part| part.strip_prefix("sections=")));
    let is_wanted = |name: &str| wanted.is_none_or(|wanted| wanted.split(',').any(|one| one == name));
    let shown = sources.config_dump.iter().filter(|(name, _)| is_wanted(name));
    let sections: Vec<_> = shown.map(|(name, provider)| (*name, Section::start(provider))).collect();
    let mut dump = serde_json::Map::new();
    for (name, section) in sections {
        dump.insert(name.to_string(), section.finish(deadline).await);
    }
    Value::Object(dump)
}

async fn connections(sources: &Sources) -> Value {
    Section::start(&sources.connections).finish(Instant::now() + SECTION_TIMEOUT).await
}

/// Lines that go on for as long as somebody reads them.
fn follow(query: &str, flows: &flows::Flows) -> Answer {
    let filter = match flows::Filter::of_query(query) {
        Ok(filter) => filter,
        Err(error) => return text(StatusCode::BAD_REQUEST, format!("{error}\n")),
    };
    let subscription = match flows.listen(filter) {
        Ok(subscription) => subscription,
        Err(error) => return text(StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
    };
    let answer = Response::new(FlowLines::new(subscription).boxed_unsync());
    let answer = with_header(answer, header::CONTENT_TYPE, HeaderValue::from_static(JSON_LINES));
    with_header(answer, header::CACHE_CONTROL, HeaderValue::from_static("no-store"))
}

/// A provider that runs in a task of its own: one that panics or hangs costs its own section alone.
struct Section(JoinHandle<Value>);

impl Section {
    fn start(provider: &Provider) -> Self {
        Self(tokio::spawn(provider()))
    }

    async fn finish(mut self, deadline: Instant) -> Value {
        match timeout_at(deadline, &mut self.0).await {
            Ok(Ok(value)) => value,
            Ok(Err(error)) => json!({ "error": format!("this section could not be made: {error}") }),
            Err(_) => json!({ "error": "this section was not ready in time" }),
        }
    }
}

impl Drop for Section {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn run_hook(hook: &Hook) -> Answer {
    match hook().await {
        Ok(said) => text(StatusCode::OK, format!("{said}\n")),
        Err(said) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{said}\n")),
    }
}

async fn log_level(request: Request<Incoming>, filter: Option<&logs::Filter>) -> Answer {
    let Some(filter) = filter else { return text(StatusCode::NOT_FOUND, "this agent has no log filter to change\n") };
    setting(request, || filter.current(), |wanted| filter.set(wanted).map_err(|error| error.to_string())).await
}

async fn access_log(request: Request<Incoming>, log: &AccessLog) -> Answer {
    let set = |wanted: &str| {
        log.set(wanted.parse().map_err(|error: FilterError| error.to_string())?);
        Ok(())
    };
    setting(request, || log.filter().to_string(), set).await
}

/// Shows a setting, or replaces it by the body of a PUT and shows what it is then.
async fn setting(
    request: Request<Incoming>,
    current: impl Fn() -> String,
    set: impl Fn(&str) -> Result<(), String>,
) -> Answer {
    if request.method() != Method::PUT {
        return text(StatusCode::OK, format!("{}\n", current()));
    }
    let wanted = match Limited::new(request.into_body(), MAX_BODY_BYTES).collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => return text(StatusCode::PAYLOAD_TOO_LARGE, "the filter is too long, or was not sent whole\n"),
    };
    match set(String::from_utf8_lossy(&wanted).trim()) {
        Ok(()) => text(StatusCode::OK, format!("{}\n", current())),
        Err(error) => text(StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
}

/// A web page in a browser on this machine reaches loopback addresses as well as its user does. It is told apart by the
/// Origin header of what changes things, and by a Host that is a name (an attacker's name may resolve to 127.0.0.1).
fn browser_refusal(headers: &HeaderMap, method: &Method) -> Option<&'static str> {
    let changes = method != Method::GET && method != Method::HEAD;
    if changes && headers.contains_key(header::ORIGIN) {
        return Some("requests from web pages are refused here\n");
    }
    let host = headers.get(header::HOST)?.to_str().unwrap_or("?");
    (!is_local_host(host)).then_some("call this server by IP address, by localhost, or through its unix socket\n")
}

fn is_local_host(host: &str) -> bool {
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((ipv6, _port)) => ipv6,
        None => host.split_once(':').map_or(host, |(name, _port)| name),
    };
    name.is_empty() || name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

fn not_found(surface: Surface) -> Answer {
    let endpoints: Vec<String> = Endpoint::ALL
        .into_iter()
        .filter(|endpoint| endpoint.is_on(surface))
        .map(|endpoint| format!("{} {}", endpoint.methods(), endpoint.path()))
        .collect();
    json_answer(StatusCode::NOT_FOUND, &json!({ "error": "no such endpoint", "endpoints": endpoints }))
}

fn not_allowed(endpoint: Endpoint) -> Answer {
    let body = json!({ "error": format!("{} takes {}", endpoint.path(), endpoint.methods()) });
    let allow = HeaderValue::from_static(endpoint.methods());
    with_header(json_answer(StatusCode::METHOD_NOT_ALLOWED, &body), header::ALLOW, allow)
}

fn json_answer(status: StatusCode, value: &Value) -> Answer {
    typed(status, HeaderValue::from_static(JSON), format!("{value:#}\n"))
}

fn text(status: StatusCode, body: impl Into<String>) -> Answer {
    typed(status, HeaderValue::from_static(TEXT), body.into())
}

fn typed(status: StatusCode, content_type: HeaderValue, body: String) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body)).boxed_unsync());
    *answer.status_mut() = status;
    let answer = with_header(answer, header::CONTENT_TYPE, content_type);
    with_header(answer, header::CACHE_CONTROL, HeaderValue::from_static("no-store"))
}

fn with_header(mut answer: Answer, name: HeaderName, value: HeaderValue) -> Answer {
    answer.headers_mut().insert(name, value);
    answer
}
