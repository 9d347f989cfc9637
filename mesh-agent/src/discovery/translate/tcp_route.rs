//! TCPRoute.

use super::route::{Notes, parents, taken};
use super::{FieldPath, Problem, Taken};
use crate::discovery::gateway::{StreamRule, TcpRoute, TcpRouteSpec};
use crate::discovery::object::Key;
use crate::routes::{RouteKind, Rules};

/// None of ours without a Service among its parents.
pub fn tcp_route(route: &TcpRoute, key: &Key) -> Result<Taken, Problem> {
    let TcpRouteSpec { parent_refs, rules } = &route.spec;
    let Some(parents) = parents(parent_refs, key)? else { return Ok(Taken::default()) };
    let mut notes = Notes::new(key);
    let StreamRule { backend_refs, .. } = one_rule(rules)?;
    let backends = notes.backends(backend_refs, &FieldPath::of("spec.rules").index(0).key("backendRefs"))?;
    Ok(taken(RouteKind::Tcp, &route.metadata, key, parents, Rules::Connections(backends), Vec::new(), notes))
}

/// There is nothing to tell two rules apart by.
pub(super) fn one_rule(rules: &[StreamRule]) -> Result<&StreamRule, Problem> {
    match rules {
        [rule] => Ok(rule),
        _ => Err(Problem::new(FieldPath::of("spec.rules"), format!("{} entries; it takes one", rules.len()))),
    }
}
