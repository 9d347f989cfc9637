//! The Gateway API's resources (group `gateway.networking.k8s.io`, v1 as of v1.6.3, experimental fields included), as
//! far as a mesh reads them.
//!
//! A field that is not known here is refused: it may restrict or change what the route does. Rules are kept as they were
//! written until each is read by itself, so that one that cannot be taken does not take the others down. `status` is not
//! looked at. Defaults are those of the API's schema, which a file has not been through.

mod filter;
mod grant;
mod grpc;
mod http;
mod reference;
mod session;
mod stream;

pub use filter::{
    BackendFilters, Cors, Filter, FilterType, Header, HeaderFilter, MirrorFilter, PathModifier, PathModifierType,
    RedirectFilter, RewriteFilter,
};
pub use grant::{ReferenceGrant, ReferenceGrantSpec};
pub use grpc::{GrpcMatch, GrpcMethodMatch, GrpcRoute, GrpcRouteSpec, GrpcRule};
pub use http::{
    HeaderMatch, HttpMatch, HttpRoute, HttpRouteSpec, HttpRule, PathMatch, PathMatchType, QueryMatch, RetrySpec,
    Timeouts, ValueMatchType,
};
pub use reference::{BackendObjectReference, BackendRef, ParentReference};
pub use session::{LifetimeType, SessionPersistence, SessionType};
pub use stream::{StreamRule, TcpRoute, TcpRouteSpec, TlsRoute, TlsRouteSpec};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

/// The API group.
pub const GROUP: &str = "gateway.networking.k8s.io";

/// What tells which requests a rule is about, whatever the rest of it is like.
#[derive(Clone, Debug, Deserialize)]
pub struct RuleHead<M> {
    /// Unique within the route.
    pub name: Option<String>,
    /// Absent or empty: everything.
    #[serde(default = "Vec::new")]
    pub matches: Vec<M>,
}

/// An object with the parts that are read.
#[derive(Clone, Debug, Deserialize)]
pub struct Object<S> {
    /// metadata
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// spec
    pub spec: S,
}
