//! What we answer ourselves, in the words of the protocol that the client speaks.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Response, StatusCode};

use super::body::DownBody;
use super::hygiene::Fault;
use crate::path::Ambiguous;
use crate::resilience::{Answer, Refusal};
use crate::routes::grpc;

/// Why a request was answered here and not by an application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Local {
    /// The request is not what it must be.
    Fault(Fault),
    /// The Service has routes, and none matches.
    NoRoute,
    /// The route's backend is none that may be referred to.
    BadBackend,
    /// The backend has no endpoint.
    NoEndpoint,
    /// No endpoint took the request; with the word of the last try.
    Unreached(&'static str),
    /// The client broke off within its request, or its body was not HTTP.
    ClientBody,
    /// Its path can be read in two ways.
    Ambiguous(Ambiguous),
    /// Its token is not valid.
    Unauthenticated(&'static str),
    /// Policy said no.
    Denied(&'static str),
    /// The application closed or broke the connection before it answered.
    Broken,
    /// The application's answer is none.
    BadAnswer,
    /// No answer in the time that there is.
    TimedOut,
    /// A filter of the route cannot do to this request what it says.
    Impossible,
    /// A decision of a TrafficPolicy, or of load shedding.
    Refused(Refusal),
    /// Somebody who was asked says what is answered.
    Said(Box<Said>),
}

/// An answer in somebody else's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Why it is given, for metrics and logs.
    pub label: &'static str,
    /// Its status.
    pub status: StatusCode,
    /// Without those that say where a message ends.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Local {
    /// The stable label for metrics and logs.
    pub fn label(&self) -> &'static str {
        match self {
            Local::Fault(fault) => fault.label(),
            Local::NoRoute => "no-route",
            Local::BadBackend => "bad-backend",
            Local::NoEndpoint => "no-endpoint",
            Local::Ambiguous(ambiguous) => ambiguous.label(),
            Local::Unreached(reason) | Local::Denied(reason) | Local::Unauthenticated(reason) => reason,
            Local::Said(said) => said.label,
            Local::ClientBody => "client-body",
            Local::Broken => "upstream-closed",
            Local::BadAnswer => "upstream-protocol",
            Local::TimedOut => "timed-out",
            Local::Impossible => "filter-impossible",
            Local::Refused(refusal) => refusal.answer(false).mark.as_str(),
        }
    }

    /// The rate limit that said no, by its name.
    pub fn traffic_rule(&self) -> Option<Arc<str>> {
        match self {
            Local::Refused(Refusal::Limited(limited)) => Some(limited.name.clone()),
            _ => None,
        }
    }

    /// What a client is told.
    pub fn status(&self) -> StatusCode {
        match self {
            Local::Fault(fault) => fault.status(),
            Local::ClientBody | Local::Ambiguous(_) => StatusCode::BAD_REQUEST,
            Local::Unauthenticated(_) => StatusCode::UNAUTHORIZED,
            Local::Denied(_) => StatusCode::FORBIDDEN,
            Local::NoRoute => StatusCode::NOT_FOUND,
            Local::BadBackend | Local::Impossible => StatusCode::INTERNAL_SERVER_ERROR,
            Local::NoEndpoint | Local::Unreached(_) => StatusCode::SERVICE_UNAVAILABLE,
            Local::Broken | Local::BadAnswer => StatusCode::BAD_GATEWAY,
            Local::Refused(refusal) => refusal.answer(false).status,
            Local::TimedOut => StatusCode::GATEWAY_TIMEOUT,
            Local::Said(said) => said.status,
        }
    }

    /// The answer. One that says why it is refused closes the connection: what follows may not be what it seems.
    pub fn response(&self, is_grpc: bool) -> Response<DownBody> {
        if let Local::Refused(refusal) = self {
            return refused(refusal.answer(is_grpc));
        }
        if let Local::Said(said) = self {
            return said.response(is_grpc);
        }
        let mut response = if is_grpc {
            Response::from_parts(grpc::answer(grpc::Code::of(self.status()), self.label()), DownBody::text(""))
        } else {
            let mut response = Response::new(DownBody::text(self.label()));
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
            *response.status_mut() = self.status();
            response
        };
        if matches!(self, Local::Fault(_) | Local::ClientBody | Local::Ambiguous(_)) {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

impl Said {
    fn response(&self, is_grpc: bool) -> Response<DownBody> {
        let Self { label, status, headers, body } = self;
        let mut response = if is_grpc {
            Response::from_parts(grpc::answer(grpc::Code::of(*status), label), DownBody::text(""))
        } else {
            let mut response = Response::new(DownBody::bytes(body.clone()));
            *response.status_mut() = *status;
            response
        };
        for (name, value) in headers {
            // A call's answer stays one.
            if !(is_grpc && response.headers().contains_key(name)) {
                response.headers_mut().append(name.clone(), value.clone());
            }
        }
        response
    }
}

fn refused(answer: Answer) -> Response<DownBody> {
    let label = answer.mark.as_str();
    let mut response = match answer.grpc {
        Some(status) => {
            let mut head = grpc::answer(grpc::Code::Unavailable, label);
            head.headers.insert("grpc-status", status.into());
            Response::from_parts(head, DownBody::text(""))
        }
        None => {
            let mut response = Response::new(DownBody::text(label));
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
            *response.status_mut() = answer.status;
            response
        }
    };
    response.headers_mut().extend(answer.headers);
    response
}
