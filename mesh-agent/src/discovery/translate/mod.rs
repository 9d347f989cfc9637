//! From one Kubernetes object to what the mesh takes from it. Pure; Kubernetes types end here.
//!
//! Objects from a file and from an API server go the same way. An object that cannot be taken gives a [`Problem`] with
//! the field; it is up to the caller what stays in force then.

mod core;
mod duration;
mod exclusions;
mod grpc_route;
mod http_filter;
mod http_match;
mod http_route;
mod node;
mod policy;
mod probes;
mod reference_grant;
mod route;
mod service;
mod session;
mod slice;
mod tcp_route;
mod tls_route;
mod traffic;

#[cfg(test)]
mod route_tests;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;

pub use self::core::{namespace, pod};
pub use self::exclusions::{MAX_NETWORKS, MAX_PORTS};
pub use self::grpc_route::grpc_route;
pub use self::http_route::http_route;
pub use self::node::node;
pub use self::policy::{
    CHECK_TIMEOUT, MAX_CHECK_BODY, MAX_CHECK_TIMEOUT, authorization_policy, external_authorizer, peer_authentication,
    request_authentication, unreadable,
};
pub use self::reference_grant::reference_grant;
pub use self::route::stand_in;
pub use self::service::service;
pub use self::slice::endpoint_slice;
pub use self::tcp_route::tcp_route;
pub use self::tls_route::tls_route;
pub use self::traffic::traffic_policy;

use super::finding::{Effect, FieldPath, Problem};
use crate::limit::{Limit, limits};
pub use crate::state::Item;

/// The label that puts a namespace or a pod into the mesh (`enabled`) or keeps a pod out of it (`disabled`).
pub const MESH_LABEL: &str = "nodemesh.dev/mesh";
/// The namespace of objects that hold for the whole mesh.
pub const MESH_NAMESPACE: &str = "nodemesh-system";

/// One object, translated.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Taken {
    /// None for an object that says nothing now.
    pub item: Option<Item>,
    /// What of it is not taken as it is, and what follows.
    pub problems: Vec<(Effect, Problem)>,
}

impl<T: Into<Option<Item>>> From<T> for Taken {
    fn from(item: T) -> Self {
        Self { item: item.into(), problems: Vec::new() }
    }
}

/// What bounds a route: what the API's schema allows, which holds for files too.
pub fn route_limits() -> Vec<Limit> {
    limits![
        route::MAX_PARENTS, "parents per route", "the API's";
        route::MAX_RULES, "rules per route", "the API's";
        route::MAX_MATCHES, "matches per rule", "the API's";
        route::MAX_ROUTE_MATCHES, "matches per route", "the API's";
        route::MAX_FILTERS, "filters per rule or backend", "the API's";
        route::MAX_BACKENDS, "backends per rule", "the API's";
        http_match::MAX_CONDITIONS, "headers, parameters or header changes", "the API's";
        http_match::MAX_TEXT, "bytes per path, parameter or method", "the API's";
        http_match::MAX_HEADER_VALUE, "bytes per header to match", "the API's";
        http_filter::CORS_MAX_AGE, "milliseconds", "the API's default";
        http_filter::MAX_CORS, "entries per CORS list", "the API's";
        http_filter::MAX_HOSTNAME, "letters per host name", "the API's, and DNS's";
        http_route::RETRY_ATTEMPTS, "tries after the first", "where a route asks for retries and does not say how many";
        session::MAX_SESSION_NAME, "letters per session name", "the API's";
        tls_route::MAX_SERVER_NAMES, "server names per route", "the API's";
        reference_grant::MAX_GRANT_ENTRIES, "entries per list of a grant", "the API's";
    ]
}

/// What the mesh label says. A word that is neither is refused, not guessed.
fn mesh_label(labels: Option<&BTreeMap<String, String>>) -> Result<Option<bool>, Problem> {
    match labels.and_then(|labels| labels.get(MESH_LABEL)).map(String::as_str) {
        None => Ok(None),
        Some("enabled") => Ok(Some(true)),
        Some("disabled") => Ok(Some(false)),
        Some(other) => {
            let field = FieldPath::of("metadata.labels").key(MESH_LABEL);
            Err(Problem::new(field, format!("{other:?} is neither \"enabled\" nor \"disabled\"")))
        }
    }
}

fn is_tcp(protocol: Option<&str>) -> bool {
    matches!(protocol, None | Some("TCP" | ""))
}

fn parse_ip(text: &str, field: impl FnOnce() -> FieldPath) -> Result<IpAddr, Problem> {
    let ip: Result<IpAddr, _> = text.parse();
    ip.map(|ip| ip.to_canonical()).map_err(|_| Problem::new(field(), format!("{text:?} is not an IP address")))
}

fn port_number(number: i32, field: impl FnOnce() -> FieldPath) -> Result<u16, Problem> {
    let port = u16::try_from(number).ok().filter(|port| *port != 0);
    port.ok_or_else(|| Problem::new(field(), format!("{number} is not a port: 1 to 65535")))
}
