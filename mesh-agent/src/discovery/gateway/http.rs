//! HTTPRoute.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::{BackendFilters, BackendRef, Filter, Object, ParentReference, SessionPersistence};

/// gateway.networking.k8s.io/v1 HTTPRoute
pub type HttpRoute = Object<HttpRouteSpec>;

/// Its spec.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRouteSpec {
    /// What it is attached to.
    #[serde(default)]
    pub parent_refs: Vec<ParentReference>,
    /// For Gateways. On a Service they mean nothing (GEP-1294).
    #[serde(default)]
    pub hostnames: Vec<String>,
    /// [`HttpRule`]s, unread. Absent: one that matches everything.
    pub rules: Option<Vec<Value>>,
}

/// One rule, but for what its [`RuleHead`] says.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRule {
    #[serde(rename = "name")]
    _name: Option<IgnoredAny>,
    #[serde(rename = "matches")]
    _matches: Option<IgnoredAny>,
    /// In this order.
    #[serde(default)]
    pub filters: Vec<Filter>,
    /// Where to.
    #[serde(default)]
    pub backend_refs: Vec<BackendRef<BackendFilters>>,
    /// GEP-1742
    pub timeouts: Option<Timeouts>,
    /// GEP-1731
    pub retry: Option<RetrySpec>,
    /// GEP-1619
    pub session_persistence: Option<SessionPersistence>,
}

/// All of it must match.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpMatch {
    /// Absent: the prefix `/`.
    pub path: Option<PathMatch>,
    /// Headers.
    #[serde(default)]
    pub headers: Vec<HeaderMatch>,
    /// Query parameters.
    #[serde(default)]
    pub query_params: Vec<QueryMatch>,
    /// GET and the like.
    pub method: Option<String>,
}

/// A path.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PathMatch {
    /// How it is meant.
    #[serde(rename = "type", default)]
    pub match_type: PathMatchType,
    /// Absent: `/`.
    pub value: Option<String>,
}

/// How a path is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum PathMatchType {
    /// To the byte.
    Exact,
    /// By segments.
    #[default]
    PathPrefix,
    /// In the syntax of the crate regex.
    RegularExpression,
}

/// A header, of HTTPRoute and GRPCRoute.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderMatch {
    /// How the value is meant.
    #[serde(rename = "type", default)]
    pub match_type: ValueMatchType,
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// A query parameter.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct QueryMatch {
    /// How the value is meant.
    #[serde(rename = "type", default)]
    pub match_type: ValueMatchType,
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// How a value is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum ValueMatchType {
    /// To the byte.
    #[default]
    Exact,
    /// In the syntax of the crate regex.
    RegularExpression,
}

/// GEP-2257 durations.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Timeouts {
    /// Of the whole request.
    pub request: Option<String>,
    /// Of one try.
    pub backend_request: Option<String>,
}

/// When to try again.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetrySpec {
    /// Status codes, 400 to 599.
    #[serde(default)]
    pub codes: Vec<i64>,
    /// Tries after the first.
    pub attempts: Option<i64>,
    /// A GEP-2257 duration.
    pub backoff: Option<String>,
}
