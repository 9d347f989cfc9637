//! Who is asked about requests beside policy: what an ExternalAuthorizer says, parsed and valid.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};
use serde::{Serialize, Serializer};

/// Which authorizer a CUSTOM policy means: the first of these that there is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Provider {
    /// Namespace and name: one of the policy's own namespace, then one of the whole mesh.
    pub places: Vec<(Arc<str>, Arc<str>)>,
}

/// Somebody who is asked about requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Authorizer {
    /// `namespace/name`
    pub id: Arc<str>,
    /// Namespace and name of the Service that answers.
    pub service: (Arc<str>, Arc<str>),
    /// Its port.
    pub port: u16,
    /// How it is asked.
    pub protocol: CheckProtocol,
    /// How long an answer may take, connection included.
    #[serde(serialize_with = "in_millis")]
    pub timeout: Duration,
    /// Whether a request passes that nobody answered about.
    pub fail_open: bool,
    /// What is answered to a request that nobody answered about and that does not pass.
    #[serde(serialize_with = "as_number")]
    pub status_on_error: StatusCode,
    /// What of the request's body is shown; None: nothing.
    pub body: Option<BodyInCheck>,
}

/// How an authorizer is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum CheckProtocol {
    /// `envoy.service.auth.v3.Authorization/Check`
    Grpc,
    /// The request's own method and path; 200 allows it.
    Http(HttpCheck),
}

/// What is said in a check by HTTP, and taken from its answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpCheck {
    /// What stands before the request's path.
    pub path_prefix: String,
    /// Headers of the request that are shown beside Host and Authorization.
    #[serde(serialize_with = "as_texts")]
    pub shown: Vec<HeaderName>,
    /// Headers that are added.
    #[serde(skip)]
    pub added: Vec<(HeaderName, HeaderValue)>,
    /// Headers of an answer that allows, which the application gets in place of the caller's.
    #[serde(serialize_with = "as_texts")]
    pub to_application: Vec<HeaderName>,
    /// Headers of an answer that refuses, which the caller gets; None: all.
    #[serde(serialize_with = "as_texts_if_any")]
    pub to_caller: Option<Vec<HeaderName>>,
}

/// What of a body is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BodyInCheck {
    /// In bytes.
    pub most: usize,
    /// Whether the beginning of a longer one is enough; otherwise that is answered with 413.
    pub allow_partial: bool,
}

fn in_millis<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u128(duration.as_millis())
}

fn as_number<S: Serializer>(status: &StatusCode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u16(status.as_u16())
}

fn as_texts<S: Serializer>(names: &[HeaderName], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(names.iter().map(HeaderName::as_str))
}

fn as_texts_if_any<S: Serializer>(names: &Option<Vec<HeaderName>>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(names.iter().flatten().map(HeaderName::as_str))
}
