//! TCPRoute and TLSRoute.

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{BackendRef, Object, ParentReference};

/// gateway.networking.k8s.io/v1 TCPRoute
pub type TcpRoute = Object<TcpRouteSpec>;
/// gateway.networking.k8s.io/v1 TLSRoute
pub type TlsRoute = Object<TlsRouteSpec>;

/// The spec of a TCPRoute.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpRouteSpec {
    /// What it is attached to.
    #[serde(default)]
    pub parent_refs: Vec<ParentReference>,
    /// One.
    pub rules: Vec<StreamRule>,
}

/// The spec of a TLSRoute.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TlsRouteSpec {
    /// What it is attached to.
    #[serde(default)]
    pub parent_refs: Vec<ParentReference>,
    /// At least one.
    pub hostnames: Vec<String>,
    /// One.
    pub rules: Vec<StreamRule>,
}

/// Where connections go.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StreamRule {
    #[serde(rename = "name")]
    _name: Option<IgnoredAny>,
    /// At least one.
    pub backend_refs: Vec<BackendRef<NoFilters>>,
}

/// A backend of connections has no field `filters`: nothing can be written there.
#[derive(Clone, Debug, Deserialize)]
pub enum NoFilters {}
