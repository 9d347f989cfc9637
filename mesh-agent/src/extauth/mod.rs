//! External authorization: what somebody outside is asked about a request, and what the answer means. Pure; who asks, and
//! when, is the proxy's business.
//!
//! Two ways, as Envoy's users know them: `envoy.service.auth.v3.Authorization/Check` by gRPC ([`grpc`]), and the request's
//! own method and path by HTTP ([`web`]). Both end in a [`Verdict`], or in [`Failed`] where there is none; what is not
//! plainly an answer is none.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
pub mod grpc;
pub mod limits;
pub mod web;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::time::SystemTime;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, COOKIE, EXPECT, HeaderMap, HeaderName, HeaderValue};
use http::{StatusCode, request};

use crate::fields;
use crate::routes::filters::is_changeable;
use crate::spiffe::SpiffeId;

/// Said to an authorizer about a body that it is shown, as Envoy says it. What a caller says in it is not passed on.
const PARTIAL_BODY: &str = "x-envoy-auth-partial-body";

/// The word where a policy names nobody who is there.
pub const AUTHORIZER_UNKNOWN: &str = "authorizer-unknown";

/// A request that somebody is asked about.
pub struct Question<'a> {
    /// Its head in the one form, with Host.
    pub head: &'a request::Parts,
    /// Whether the client speaks HTTP/2.
    pub is_http2: bool,
    /// Who asks, by the certificate of the tunnel.
    pub source: Option<&'a SpiffeId>,
    /// Where from.
    pub client: SocketAddr,
    /// The application's pod.
    pub destination: &'a SpiffeId,
    /// The application.
    pub server: SocketAddr,
    /// What is shown of the body.
    pub body: Option<Shown>,
    /// When it came.
    pub time: SystemTime,
}

/// What is shown of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The beginning.
    pub bytes: Bytes,
    /// Whether that is all.
    pub is_whole: bool,
}

/// What an authorizer says.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// It may go on.
    Allow(Allowed),
    /// It may not, and this is what the caller gets.
    Deny(Denied),
}

/// What is changed of a request that may go on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Allowed {
    /// Of its headers.
    pub request: Vec<Change>,
    /// Of the headers of its answer.
    pub response: Vec<Change>,
}

/// A change of one header.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// This value in place of all others.
    Set(HeaderName, HeaderValue),
    /// This value beside others.
    Append(HeaderName, HeaderValue),
    /// This value if there is none.
    SetIfAbsent(HeaderName, HeaderValue),
    /// This value if there is another.
    SetIfPresent(HeaderName, HeaderValue),
    /// No value.
    Remove(HeaderName),
}

/// What a caller gets.
#[derive(Clone, Debug, PartialEq)]
pub struct Denied {
    /// 403 if nothing else is said.
    pub status: StatusCode,
    /// Without those that say where a message ends.
    pub headers: HeaderMap,
    /// At most [`limits::MAX_ANSWER_BYTES`].
    pub body: Bytes,
}

/// Why there is no verdict. The words are metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failed {
    /// The pod that is asked for answers there itself: the question would come back to it.
    Itself,
    /// No answer in the time that there is.
    TimedOut,
    /// Nobody took the question.
    Unreachable,
    /// What was answered is no answer, or one that says that something went wrong.
    Broken,
}

impl Failed {
    /// The stable label for metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            Failed::Itself => "authorizer-itself",
            Failed::TimedOut => "authorizer-timed-out",
            Failed::Unreachable => "authorizer-unreachable",
            Failed::Broken => "authorizer-broken",
        }
    }

    /// Whether `failOpen` is about it: who asks itself is a mistake and not an outage.
    pub fn may_pass(self) -> bool {
        match self {
            Failed::Itself => false,
            Failed::TimedOut | Failed::Unreachable | Failed::Broken => true,
        }
    }
}

impl Allowed {
    /// Changes the headers of a request.
    pub fn change_request(&self, headers: &mut HeaderMap) {
        self.request.iter().for_each(|change| change.apply(headers));
    }
}

impl Change {
    /// The header, if somebody outside may change it: not what says where a message ends, and who it is for.
    fn of(name: &str) -> Option<HeaderName> {
        HeaderName::try_from(name).ok().filter(|name| is_changeable(name) && name != EXPECT)
    }

    /// Makes the change. What the authorizer says of a field holds for all of its spellings: the caller's own do not stay
    /// beside it.
    pub fn apply(&self, headers: &mut HeaderMap) {
        let (Change::Set(name, _)
        | Change::Append(name, _)
        | Change::SetIfAbsent(name, _)
        | Change::SetIfPresent(name, _)
        | Change::Remove(name)) = self;
        fields::remove_other_spellings(headers, name);
        match self {
            Change::Set(name, value) => drop(headers.insert(name.clone(), value.clone())),
            Change::Append(name, value) => drop(headers.append(name.clone(), value.clone())),
            Change::SetIfAbsent(name, _) if headers.contains_key(name) => {}
            Change::SetIfAbsent(name, value) => drop(headers.insert(name.clone(), value.clone())),
            Change::SetIfPresent(name, value) if headers.contains_key(name) => {
                headers.insert(name.clone(), value.clone());
            }
            Change::SetIfPresent(..) => {}
            Change::Remove(name) => while headers.remove(name).is_some() {},
        }
    }
}

/// The values of a header as one, as RFC 9110 5.3 joins them, and cookies RFC 6265 5.4.
fn joined(headers: &HeaderMap, name: &HeaderName) -> Option<Vec<u8>> {
    let separator: &[u8] = if name == COOKIE { b"; " } else { b", " };
    let values: Vec<&[u8]> = headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
    (!values.is_empty()).then(|| values.join(separator))
}

/// What a caller may get of an answer's headers.
fn for_caller(headers: impl IntoIterator<Item = (HeaderName, HeaderValue)>) -> HeaderMap {
    let mut kept = HeaderMap::new();
    for (name, value) in headers.into_iter().filter(|(name, _)| is_changeable(name) && *name != CONTENT_LENGTH) {
        kept.append(name, value);
    }
    kept
}
