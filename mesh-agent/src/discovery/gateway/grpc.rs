//! GRPCRoute.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::{
    BackendFilters, BackendRef, Filter, HeaderMatch, Object, ParentReference, SessionPersistence, ValueMatchType,
};

/// gateway.networking.k8s.io/v1 GRPCRoute
pub type GrpcRoute = Object<GrpcRouteSpec>;

/// Its spec.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcRouteSpec {
    /// What it is attached to.
    #[serde(default)]
    pub parent_refs: Vec<ParentReference>,
    /// For Gateways. On a Service they mean nothing (GEP-1294).
    #[serde(default)]
    pub hostnames: Vec<String>,
    /// [`GrpcRule`]s, unread.
    #[serde(default)]
    pub rules: Vec<Value>,
}

/// One rule, but for what its [`RuleHead`] says.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcRule {
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
    /// GEP-1619
    pub session_persistence: Option<SessionPersistence>,
}

/// All of it must match.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcMatch {
    /// Absent: every method.
    pub method: Option<GrpcMethodMatch>,
    /// Headers.
    #[serde(default)]
    pub headers: Vec<HeaderMatch>,
}

/// A method of a service.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcMethodMatch {
    /// How both are meant.
    #[serde(rename = "type", default)]
    pub match_type: ValueMatchType,
    /// With its package. Absent or empty: any.
    pub service: Option<String>,
    /// Absent or empty: any.
    pub method: Option<String>,
}
