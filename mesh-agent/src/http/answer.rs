//! What we answer ourselves, in the words of the protocol that the client speaks.

use http::header::{self, HeaderValue};
use http::{Response, StatusCode};

use super::body::DownBody;
use super::hygiene::Fault;
use crate::routes::grpc;

/// Why a request was answered here and not by an application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// Policy said no.
    Denied(&'static str),
    /// The application closed or broke the connection before it answered.
    Broken,
    /// The application's answer is none.
    BadAnswer,
    /// No answer in the time that the route allows.
    TimedOut,
    /// A filter of the route cannot do to this request what it says.
    Impossible,
}

impl Local {
    /// The stable label for metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            Local::Fault(fault) => fault.label(),
            Local::NoRoute => "no-route",
            Local::BadBackend => "bad-backend",
            Local::NoEndpoint => "no-endpoint",
            Local::Unreached(reason) | Local::Denied(reason) => reason,
            Local::ClientBody => "client-body",
            Local::Broken => "upstream-closed",
            Local::BadAnswer => "upstream-protocol",
            Local::TimedOut => "timed-out",
            Local::Impossible => "filter-impossible",
        }
    }

    /// What a client is told.
    pub fn status(self) -> StatusCode {
        match self {
            Local::Fault(fault) => fault.status(),
            Local::ClientBody => StatusCode::BAD_REQUEST,
            Local::Denied(_) => StatusCode::FORBIDDEN,
            Local::NoRoute => StatusCode::NOT_FOUND,
            Local::BadBackend | Local::Impossible => StatusCode::INTERNAL_SERVER_ERROR,
            Local::NoEndpoint | Local::Unreached(_) => StatusCode::SERVICE_UNAVAILABLE,
            Local::Broken | Local::BadAnswer => StatusCode::BAD_GATEWAY,
            Local::TimedOut => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// The answer. One that says why it is refused closes the connection: what follows may not be what it seems.
    pub fn response(self, is_grpc: bool) -> Response<DownBody> {
        let mut response = if is_grpc {
            Response::from_parts(grpc::answer(grpc::Code::of(self.status()), self.label()), DownBody::text(""))
        } else {
            let mut response = Response::new(DownBody::text(self.label()));
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
            *response.status_mut() = self.status();
            response
        };
        if matches!(self, Local::Fault(_) | Local::ClientBody) {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
