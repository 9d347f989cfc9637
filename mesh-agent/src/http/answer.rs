//! What we answer ourselves, in the words of the protocol that the client speaks.

use http::header::{self, HeaderValue};
use http::{HeaderName, Response, StatusCode};

use super::body::DownBody;
use super::hygiene::Fault;

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
    /// A filter of the route says so: a redirect, or the answer to a preflight.
    Filter,
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
            Local::Filter => "filter",
        }
    }

    /// What a client is told.
    pub fn status(self) -> StatusCode {
        match self {
            Local::Fault(fault) => fault.status(),
            Local::ClientBody => StatusCode::BAD_REQUEST,
            Local::Denied(_) => StatusCode::FORBIDDEN,
            Local::NoRoute => StatusCode::NOT_FOUND,
            Local::BadBackend => StatusCode::INTERNAL_SERVER_ERROR,
            Local::NoEndpoint | Local::Unreached(_) => StatusCode::SERVICE_UNAVAILABLE,
            Local::Broken | Local::BadAnswer => StatusCode::BAD_GATEWAY,
            Local::TimedOut => StatusCode::GATEWAY_TIMEOUT,
            Local::Filter => StatusCode::OK,
        }
    }

    /// The code of gRPC's own (grpc/grpc doc/statuscodes.md).
    fn grpc(self) -> &'static str {
        match self {
            // INTERNAL
            Local::Fault(_) | Local::ClientBody | Local::BadAnswer | Local::Filter => "13",
            // PERMISSION_DENIED
            Local::Denied(_) => "7",
            // UNIMPLEMENTED
            Local::NoRoute => "12",
            // UNAVAILABLE; of bad backends GRPCRoute says so too.
            Local::BadBackend | Local::NoEndpoint | Local::Unreached(_) | Local::Broken => "14",
            // DEADLINE_EXCEEDED
            Local::TimedOut => "4",
        }
    }

    /// The answer. One that says why it is refused closes the connection: what follows may not be what it seems.
    pub fn response(self, is_grpc: bool) -> Response<DownBody> {
        let mut response = Response::new(DownBody::text(if is_grpc { "" } else { self.label() }));
        let headers = response.headers_mut();
        if is_grpc {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert(HeaderName::from_static("grpc-status"), HeaderValue::from_static(self.grpc()));
            headers.insert(HeaderName::from_static("grpc-message"), HeaderValue::from_static(self.label()));
        } else {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
            *response.status_mut() = self.status();
        }
        if matches!(self, Local::Fault(_) | Local::ClientBody) {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
