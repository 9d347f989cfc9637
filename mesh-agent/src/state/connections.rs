//! Where connections to a Service port with TCPRoutes or TLSRoutes go.

use std::collections::HashMap;
use std::sync::Arc;

use super::RouteSpec;
use crate::routes::{Backend, Route, Rules};

/// Routes of connections that hold at a port. Looking one up costs a hash of each label of the server name.
#[derive(Clone, Debug)]
pub enum Connections {
    /// A TCPRoute, for every connection. Of several the oldest has them all: there is nothing else to tell them apart by.
    All(Arc<Route>),
    /// TLSRoutes.
    ByServerName(ServerNames),
}

/// TLSRoutes by what their clients ask for.
#[derive(Clone, Debug, Default)]
pub struct ServerNames {
    exact: HashMap<Arc<str>, Arc<Route>>,
    /// By what follows `*.`
    below: HashMap<Arc<str>, Arc<Route>>,
    /// For any name and for none: a route that could not be read.
    any: Option<Arc<Route>>,
}

impl Connections {
    /// `routes` are of one kind, the first in precedence first. None: they are not about connections.
    pub(super) fn compile(routes: &[Arc<RouteSpec>]) -> Option<Self> {
        let first = &routes.first()?.route;
        match &first.rules {
            Rules::Requests(_) => None,
            Rules::Connections(_) => Some(Connections::All(first.clone())),
            Rules::ServerNames(_) => Some(Connections::ByServerName(ServerNames::of(routes))),
        }
    }

    /// Whether the server name has to be known, which is in the client's first bytes.
    pub fn asks_for_server_name(&self) -> bool {
        matches!(self, Connections::ByServerName(_))
    }

    /// The route of a connection and its backends. None: no route is about it, and it is refused.
    pub fn find(&self, server_name: Option<&str>) -> Option<(&Arc<Route>, &[Backend])> {
        let route = match self {
            Connections::All(route) => route,
            Connections::ByServerName(names) => names.find(server_name)?,
        };
        match &route.rules {
            Rules::Connections(backends) => Some((route, backends)),
            Rules::ServerNames(rule) => Some((route, &rule.backends)),
            Rules::Requests(_) => None,
        }
    }
}

impl ServerNames {
    /// What comes first has the name.
    fn of(routes: &[Arc<RouteSpec>]) -> Self {
        let mut names = Self::default();
        for spec in routes {
            let Rules::ServerNames(rule) = &spec.route.rules else { continue };
            if rule.hostnames.is_empty() && names.any.is_none() {
                names.any = Some(spec.route.clone());
            }
            for hostname in &rule.hostnames {
                let (map, name) = match hostname.strip_prefix("*.") {
                    Some(suffix) => (&mut names.below, Arc::from(suffix)),
                    None => (&mut names.exact, hostname.clone()),
                };
                map.entry(name).or_insert_with(|| spec.route.clone());
            }
        }
        names
    }

    /// The whole name first, then the longest suffix: a wildcard stands for one label or more. Names have no case.
    fn find(&self, server_name: Option<&str>) -> Option<&Arc<Route>> {
        let name = server_name.unwrap_or_default().to_ascii_lowercase();
        let name = name.strip_suffix('.').unwrap_or(&name);
        if let Some(route) = self.exact.get(name) {
            return Some(route);
        }
        let mut rest = name;
        while let Some((_, suffix)) = rest.split_once('.') {
            if let Some(route) = self.below.get(suffix) {
                return Some(route);
            }
            rest = suffix;
        }
        self.any.as_ref()
    }
}
