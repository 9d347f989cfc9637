//! TLSRoute.

use std::sync::Arc;

use super::http_filter::is_hostname;
use super::route::{Notes, bounded, parents, taken};
use super::tcp_route::one_rule;
use super::{FieldPath, Problem, Taken};
use crate::discovery::gateway::{StreamRule, TlsRoute, TlsRouteSpec};
use crate::discovery::object::Key;
use crate::routes::{RouteKind, Rules, TlsRule};

/// Server names of a route.
pub const MAX_SERVER_NAMES: usize = 1024;

/// None of ours without a Service among its parents.
///
/// GEP-1294 would have `hostnames` mean nothing on a Service; but without them a TLSRoute is a TCPRoute, and the type
/// itself says that they are matched with the ClientHello's server name.
pub fn tls_route(route: &TlsRoute, key: &Key) -> Result<Taken, Problem> {
    let TlsRouteSpec { parent_refs, hostnames, rules } = &route.spec;
    let Some(parents) = parents(parent_refs, key)? else { return Ok(Taken::default()) };
    let mut notes = Notes::new(key);
    let path = FieldPath::of("spec.hostnames");
    bounded(hostnames.len(), MAX_SERVER_NAMES, &path)?;
    if hostnames.is_empty() {
        return Err(Problem::new(path, "empty: at least one server name is needed"));
    }
    let names = hostnames.iter().enumerate().map(|(index, name)| server_name(name, &path.index(index)));
    let hostnames = names.collect::<Result<_, _>>()?;
    let StreamRule { backend_refs, .. } = one_rule(rules)?;
    let backends = notes.backends(backend_refs, &FieldPath::of("spec.rules").index(0).key("backendRefs"))?;
    let rules = Rules::ServerNames(TlsRule { hostnames, backends });
    Ok(taken(RouteKind::Tls, &route.metadata, key, parents, rules, Vec::new(), notes))
}

fn server_name(name: &str, path: &FieldPath) -> Result<Arc<str>, Problem> {
    match is_hostname(name.strip_prefix("*.").unwrap_or(name)) {
        true => Ok(name.into()),
        false => Err(Problem::new(path.clone(), format!("{name:?} is not a server name"))),
    }
}
