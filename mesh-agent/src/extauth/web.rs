//! The check by HTTP: the request's own method and path, behind a prefix; 200 allows it.

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Request, StatusCode, Uri, request};

use super::limits::MAX_CHANGES;
use super::{Allowed, Change, Denied, Failed, PARTIAL_BODY, Question, Shown, Verdict, for_caller, joined};
use crate::policy::HttpCheck;

/// Who asks, by the certificate of the tunnel. Set by the agent alone.
const PRINCIPAL: &str = "x-nodemesh-source-principal";

/// What is sent: a head in the one form, and what is shown of the body. None: its target cannot be put behind the prefix.
pub fn question(check: &HttpCheck, asked: &Question<'_>) -> Option<(request::Parts, Bytes)> {
    let mut head = Request::new(()).into_parts().0;
    head.method = asked.head.method.clone();
    let target = asked.head.uri.path_and_query().map_or("/", |target| target.as_str());
    let target = PathAndQuery::try_from(format!("{}{target}", check.path_prefix)).ok()?;
    head.uri = Uri::from(target);
    let shown = [HOST, AUTHORIZATION].into_iter().chain(check.shown.iter().cloned());
    for name in shown.filter(|name| name.as_str() != PARTIAL_BODY && name.as_str() != PRINCIPAL) {
        let value = joined(&asked.head.headers, &name).and_then(|value| HeaderValue::from_bytes(&value).ok());
        if let Some(value) = value {
            head.headers.insert(name, value);
        }
    }
    for (name, value) in &check.added {
        head.headers.insert(name.clone(), value.clone());
    }
    for name in ["traceparent", "tracestate"] {
        if let Some(value) = asked.head.headers.get(name) {
            head.headers.insert(HeaderName::from_static(name), value.clone());
        }
    }
    if let Some(source) = asked.source.and_then(|source| HeaderValue::try_from(source.to_string()).ok()) {
        head.headers.insert(HeaderName::from_static(PRINCIPAL), source);
    }
    let body = match &asked.body {
        None => Bytes::new(),
        Some(Shown { bytes, is_whole }) => {
            let partial = HeaderValue::from_static(if *is_whole { "false" } else { "true" });
            head.headers.insert(HeaderName::from_static(PARTIAL_BODY), partial);
            if let Some(kind) = asked.head.headers.get(CONTENT_TYPE) {
                head.headers.insert(CONTENT_TYPE, kind.clone());
            }
            bytes.clone()
        }
    };
    head.headers.insert(CONTENT_LENGTH, body.len().into());
    Some((head, body))
}

/// What was answered. A body that was too long is not there.
pub fn verdict(check: &HttpCheck, status: StatusCode, head: HeaderMap, body: Option<Bytes>) -> Result<Verdict, Failed> {
    if status.is_server_error() || status.is_informational() || head.len() > MAX_CHANGES {
        return Err(Failed::Broken);
    }
    if status == StatusCode::OK {
        let mut request = Vec::new();
        for name in &check.to_application {
            // The caller's own never gets there, whether or not the authorizer says something.
            request.push(Change::Remove(name.clone()));
            let values = head.get_all(name).iter();
            request.extend(values.map(|value| Change::Append(name.clone(), value.clone())));
        }
        return Ok(Verdict::Allow(Allowed { request, response: Vec::new() }));
    }
    let is_told = |name: &HeaderName| check.to_caller.as_ref().is_none_or(|told| told.contains(name));
    let told = head.iter().filter(|(name, _)| is_told(name)).map(|(name, value)| (name.clone(), value.clone()));
    Ok(Verdict::Deny(Denied { status, headers: for_caller(told), body: body.unwrap_or_default() }))
}
