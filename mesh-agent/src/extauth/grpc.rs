//! The check by gRPC: the part of `envoy.service.auth.v3` that is said and understood here. Fields of it that are not in
//! here are passed over, as protobuf has it: dynamic metadata, changes of the query.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::UNIX_EPOCH;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use http::{Method, Request, StatusCode, request};
use prost::Message;

use super::limits::{MAX_ANSWER_BYTES, MAX_CHANGES};
use super::{Allowed, Change, Denied, Failed, PARTIAL_BODY, Question, Shown, Verdict, for_caller, joined};

/// The method that is called.
pub const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";

/// What is before a message: whether it is compressed, and its length in bytes.
const PREFIX: usize = 5;

#[derive(Clone, PartialEq, Message)]
pub(super) struct CheckRequest {
    #[prost(message, optional, tag = "1")]
    pub attributes: Option<Attributes>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Attributes {
    #[prost(message, optional, tag = "1")]
    pub source: Option<Peer>,
    #[prost(message, optional, tag = "2")]
    pub destination: Option<Peer>,
    #[prost(message, optional, tag = "4")]
    pub request: Option<Asked>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Peer {
    #[prost(message, optional, tag = "1")]
    pub address: Option<Address>,
    #[prost(string, tag = "4")]
    pub principal: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Address {
    #[prost(message, optional, tag = "1")]
    pub socket: Option<SocketAddress>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct SocketAddress {
    #[prost(string, tag = "2")]
    pub address: String,
    #[prost(uint32, tag = "3")]
    pub port: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Asked {
    #[prost(message, optional, tag = "1")]
    pub time: Option<Timestamp>,
    #[prost(message, optional, tag = "2")]
    pub http: Option<HttpRequest>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Timestamp {
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct HttpRequest {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub method: String,
    #[prost(map = "string, string", tag = "3")]
    pub headers: HashMap<String, String>,
    #[prost(string, tag = "4")]
    pub path: String,
    #[prost(string, tag = "5")]
    pub host: String,
    #[prost(string, tag = "6")]
    pub scheme: String,
    #[prost(int64, tag = "9")]
    pub size: i64,
    #[prost(string, tag = "10")]
    pub protocol: String,
    /// Where it is text.
    #[prost(string, tag = "11")]
    pub body: String,
    /// Where it is not.
    #[prost(bytes = "vec", tag = "12")]
    pub raw_body: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct CheckResponse {
    #[prost(message, optional, tag = "1")]
    pub status: Option<Status>,
    /// One of the two.
    #[prost(message, optional, tag = "2")]
    pub denied: Option<DeniedResponse>,
    #[prost(message, optional, tag = "3")]
    pub ok: Option<OkResponse>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Status {
    #[prost(int32, tag = "1")]
    pub code: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct DeniedResponse {
    #[prost(message, optional, tag = "1")]
    pub status: Option<HttpStatus>,
    #[prost(message, repeated, tag = "2")]
    pub headers: Vec<HeaderOption>,
    #[prost(string, tag = "3")]
    pub body: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct HttpStatus {
    #[prost(int32, tag = "1")]
    pub code: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct OkResponse {
    #[prost(message, repeated, tag = "2")]
    pub headers: Vec<HeaderOption>,
    #[prost(string, repeated, tag = "5")]
    pub headers_to_remove: Vec<String>,
    #[prost(message, repeated, tag = "6")]
    pub response_headers_to_add: Vec<HeaderOption>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct HeaderOption {
    #[prost(message, optional, tag = "1")]
    pub header: Option<Header>,
    #[prost(message, optional, tag = "2")]
    pub append: Option<Flag>,
    #[prost(int32, tag = "3")]
    pub append_action: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Flag {
    #[prost(bool, tag = "1")]
    pub value: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Header {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(string, tag = "2")]
    pub value: String,
    #[prost(bytes = "vec", tag = "3")]
    pub raw_value: Vec<u8>,
}

/// What is sent: a head in the one form, and one message.
pub fn question(asked: &Question<'_>, host: &str, timeout: std::time::Duration) -> (request::Parts, Bytes) {
    let message = framed(&check(asked));
    let mut head = Request::new(()).into_parts().0;
    head.method = Method::POST;
    head.uri = http::Uri::from_static(CHECK);
    let headers = &mut head.headers;
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(USER_AGENT, HeaderValue::from_static(concat!("nodemesh/", env!("CARGO_PKG_VERSION"))));
    if let Ok(host) = HeaderValue::try_from(host) {
        headers.insert(HOST, host);
    }
    if let Ok(timeout) = HeaderValue::try_from(format!("{}m", timeout.as_millis())) {
        headers.insert("grpc-timeout", timeout);
    }
    for name in ["traceparent", "tracestate"] {
        if let Some(value) = asked.head.headers.get(name) {
            headers.insert(HeaderName::from_static(name), value.clone());
        }
    }
    (head, message)
}

fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX.saturating_add(length));
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    bytes.extend_from_slice(&message.encode_to_vec());
    bytes.freeze()
}

fn check(asked: &Question<'_>) -> CheckRequest {
    let peer = |address: SocketAddr, principal: String| {
        let socket = SocketAddress { address: address.ip().to_string(), port: address.port().into() };
        Peer { address: Some(Address { socket: Some(socket) }), principal }
    };
    let since = asked.time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let time = Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or_default(),
    };
    CheckRequest {
        attributes: Some(Attributes {
            source: Some(peer(asked.client, asked.source.map(ToString::to_string).unwrap_or_default())),
            destination: Some(peer(asked.server, asked.destination.to_string())),
            request: Some(Asked { time: Some(time), http: Some(http_request(asked)) }),
        }),
    }
}

fn http_request(asked: &Question<'_>) -> HttpRequest {
    let Question { head, body, .. } = asked;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let path = head.uri.path_and_query().map_or("/", |target| target.as_str()).to_string();
    let host = head.headers.get(HOST).map(|host| text(host.as_bytes())).unwrap_or_default();
    let mut headers: HashMap<String, String> = HashMap::new();
    for name in head.headers.keys().filter(|name| **name != HOST && name.as_str() != PARTIAL_BODY) {
        if let Some(value) = joined(&head.headers, name) {
            headers.insert(name.to_string(), text(&value));
        }
    }
    let method = head.method.to_string();
    for (name, value) in [(":method", &method), (":path", &path), (":authority", &host)] {
        headers.insert(name.to_string(), value.clone());
    }
    headers.insert(":scheme".to_string(), "http".to_string());
    let length = head.headers.get(http::header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    let (mut as_text, mut as_bytes) = (String::new(), Vec::new());
    if let Some(Shown { bytes, is_whole }) = body {
        headers.insert(PARTIAL_BODY.to_string(), (!is_whole).to_string());
        match std::str::from_utf8(bytes) {
            Ok(text) => as_text = text.to_string(),
            Err(_) => as_bytes = bytes.to_vec(),
        }
    }
    HttpRequest {
        id: head.headers.get("x-request-id").map(|id| text(id.as_bytes())).unwrap_or_default(),
        method,
        headers,
        path,
        host,
        scheme: "http".to_string(),
        size: length.and_then(|length| length.parse().ok()).unwrap_or(-1),
        protocol: if asked.is_http2 { "HTTP/2" } else { "HTTP/1.1" }.to_string(),
        body: as_text,
        raw_body: as_bytes,
    }
}

/// What was answered: a head, one message, and trailers, which may be in the head where there is no message.
pub fn verdict(
    status: StatusCode,
    head: &HeaderMap,
    body: Option<&[u8]>,
    trailers: &HeaderMap,
) -> Result<Verdict, Failed> {
    let code = trailers.get("grpc-status").or(head.get("grpc-status")).map(HeaderValue::as_bytes);
    if status != StatusCode::OK || code != Some(b"0") {
        return Err(Failed::Broken);
    }
    let message = body.and_then(message).ok_or(Failed::Broken)?;
    decided(CheckResponse::decode(message).map_err(|_| Failed::Broken)?)
}

/// The one message of a body.
fn message(body: &[u8]) -> Option<&[u8]> {
    let (prefix, message) = body.split_first_chunk::<PREFIX>()?;
    let [0, length @ ..] = prefix else { return None };
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    (message.len() == length && length <= MAX_ANSWER_BYTES).then_some(message)
}

/// An answer that says nothing at all allows nothing, and neither does one that says both.
fn decided(response: CheckResponse) -> Result<Verdict, Failed> {
    let CheckResponse { status, denied, ok } = response;
    match (status.map(|status| status.code), denied, ok) {
        (Some(0), None, ok) => allowed(ok.unwrap_or_default()).map(Verdict::Allow),
        (None, None, Some(ok)) => allowed(ok).map(Verdict::Allow),
        (Some(0), Some(_), _) | (None, None, None) | (None, Some(_), Some(_)) => Err(Failed::Broken),
        (Some(_) | None, denied, _) => refused(denied.unwrap_or_default()).map(Verdict::Deny),
    }
}

fn allowed(ok: OkResponse) -> Result<Allowed, Failed> {
    let OkResponse { headers, headers_to_remove, response_headers_to_add } = ok;
    if headers.len().saturating_add(headers_to_remove.len()) > MAX_CHANGES
        || response_headers_to_add.len() > MAX_CHANGES
    {
        return Err(Failed::Broken);
    }
    // Removed first, so that what is set stays.
    let removed = headers_to_remove.iter().filter_map(|name| Change::of(name)).map(Change::Remove);
    let set = headers.into_iter().filter_map(|option| option.change(Change::Set));
    let added = response_headers_to_add.into_iter().filter_map(|option| option.change(Change::Append));
    Ok(Allowed { request: removed.chain(set).collect(), response: added.collect() })
}

fn refused(denied: DeniedResponse) -> Result<Denied, Failed> {
    let DeniedResponse { status, headers, body } = denied;
    if headers.len() > MAX_CHANGES {
        return Err(Failed::Broken);
    }
    let mut map = HeaderMap::new();
    for change in headers.into_iter().filter_map(|option| option.change(Change::Set)) {
        change.apply(&mut map);
    }
    let code = status.and_then(|status| u16::try_from(status.code).ok()).filter(|code| (200..600).contains(code));
    Ok(Denied {
        status: code.and_then(|code| StatusCode::from_u16(code).ok()).unwrap_or(StatusCode::FORBIDDEN),
        headers: for_caller(pairs(map)),
        body: body.into(),
    })
}

/// Every value with its name.
fn pairs(map: HeaderMap) -> Vec<(HeaderName, HeaderValue)> {
    map.iter().map(|(name, value)| (name.clone(), value.clone())).collect()
}

impl HeaderOption {
    /// What is to be done, if it is something that may be. Where nothing is said of other values, `otherwise`.
    fn change(self, otherwise: fn(HeaderName, HeaderValue) -> Change) -> Option<Change> {
        let Header { key, value, raw_value } = self.header?;
        let name = Change::of(&key)?;
        let value = if raw_value.is_empty() { value.into_bytes() } else { raw_value };
        let value = HeaderValue::from_bytes(&value).ok()?;
        let how = match (self.append, self.append_action) {
            (Some(Flag { value: true }), _) => Change::Append,
            (Some(Flag { value: false }), _) => Change::Set,
            (None, 1) => Change::SetIfAbsent,
            (None, 2) => Change::Set,
            (None, 3) => Change::SetIfPresent,
            (None, _) => otherwise,
        };
        Some(how(name, value))
    }
}
