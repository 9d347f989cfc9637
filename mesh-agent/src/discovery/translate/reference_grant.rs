//! ReferenceGrant.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::route::bounded;
use super::{FieldPath, Item, Problem};
use crate::discovery::gateway::{self, GROUP, ReferenceGrantSpec};
use crate::routes::RouteKind;
use crate::state::ReferenceGrant;

/// Entries of `from` and of `to`, each.
pub const MAX_GRANT_ENTRIES: usize = 16;

/// What it says about routes and Services; None when that is nothing.
pub fn reference_grant(grant: &gateway::ReferenceGrant) -> Result<Option<Item>, Problem> {
    let ReferenceGrantSpec { from, to } = &grant.spec;
    bounded(from.len(), MAX_GRANT_ENTRIES, &FieldPath::of("spec.from"))?;
    bounded(to.len(), MAX_GRANT_ENTRIES, &FieldPath::of("spec.to"))?;
    let of_routes = from.iter().filter(|from| from.group == GROUP);
    let kinds = of_routes.filter_map(|from| Some((route_kind(&from.kind)?, Arc::from(from.namespace.as_str()))));
    let from: BTreeSet<(RouteKind, Arc<str>)> = kinds.collect();
    let services: Vec<Option<&str>> = to
        .iter()
        .filter(|to| (to.group.as_str(), to.kind.as_str()) == ("", "Service"))
        .map(|to| to.name.as_deref().filter(|name| !name.is_empty()))
        .collect();
    if from.is_empty() || services.is_empty() {
        return Ok(None);
    }
    // One entry without a name is all of them.
    let to = services.into_iter().map(|name| name.map(Arc::from)).collect::<Option<BTreeSet<Arc<str>>>>();
    Ok(Some(Item::ReferenceGrant(ReferenceGrant { from, to }.into())))
}

fn route_kind(kind: &str) -> Option<RouteKind> {
    match kind {
        "HTTPRoute" => Some(RouteKind::Http),
        "GRPCRoute" => Some(RouteKind::Grpc),
        "TCPRoute" => Some(RouteKind::Tcp),
        "TLSRoute" => Some(RouteKind::Tls),
        _ => None,
    }
}
