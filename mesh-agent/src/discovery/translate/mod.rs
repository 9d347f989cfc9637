//! From one Kubernetes object to what the mesh takes from it. Pure; Kubernetes types end here.
//!
//! Objects from a file and from an API server go the same way. An object that cannot be taken gives a [`Problem`] with
//! the field; it is up to the caller what stays in force then.

mod core;
mod duration;
mod exclusions;
mod node;
mod policy;
mod service;
mod slice;
mod traffic;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;

pub use self::core::{namespace, pod};
pub use self::exclusions::{MAX_NETWORKS, MAX_PORTS};
pub use self::node::node;
pub use self::policy::{authorization_policy, peer_authentication, unreadable};
pub use self::service::service;
pub use self::slice::endpoint_slice;
pub use self::traffic::traffic_policy;

use super::finding::{FieldPath, Problem};
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
    /// Annotations that are taken as if they were not there, because they cannot be read.
    pub problems: Vec<Problem>,
}

impl<T: Into<Option<Item>>> From<T> for Taken {
    fn from(item: T) -> Self {
        Self { item: item.into(), problems: Vec::new() }
    }
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
