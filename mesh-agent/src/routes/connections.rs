//! Where whole connections go: TCPRoute, and TLSRoute by the server name that a client asks for.
//!
//! GEP-1294 advises a mesh against giving a meaning to `hostnames`. For TLSRoute we do: without them it would be a
//! TCPRoute, and v1 demands at least one.

use std::collections::HashMap;
use std::sync::Arc;

use super::attach::of_one_kind;
use super::chance::{Seed, choose};
use super::object::{Backend, Route, RouteKind, Rules};

/// Where connections go.
#[derive(Clone, Debug, PartialEq)]
pub struct ConnectionRule {
    /// TCPRoute or TLSRoute.
    pub kind: RouteKind,
    /// The route's namespace: references are made from there.
    pub namespace: Arc<str>,
    /// The route's name.
    pub route: Arc<str>,
    /// By weight.
    pub backends: Vec<Backend>,
}

impl ConnectionRule {
    /// A backend, chosen by weight. None: there is none, or all weigh nothing; the connection is refused.
    pub fn backend(&self, seed: Seed) -> Option<&Backend> {
        choose(&self.backends, seed)
    }
}

/// The routes of connections of one Service port, as one client namespace sees them.
#[derive(Clone, Debug, PartialEq)]
pub enum Connections {
    /// TCPRoute: all of them.
    All(Arc<ConnectionRule>),
    /// TLSRoute: the client has to speak first.
    Named(ServerNames),
}

/// Rules by server name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServerNames {
    exact: HashMap<Arc<str>, Arc<ConnectionRule>>,
    /// By what follows the `*.`.
    wildcard: HashMap<Arc<str>, Arc<ConnectionRule>>,
    /// Of routes without a hostname: every name, or none at all.
    any: Option<Arc<ConnectionRule>>,
}

impl Connections {
    /// From routes that hold at the port (`attached` chooses them). None: they are not about connections.
    pub fn compile<'a>(routes: impl IntoIterator<Item = &'a Route>) -> Option<Self> {
        let mut routes = of_one_kind(routes.into_iter().collect())?.routes;
        routes.sort_by_cached_key(|route| route.age());
        let first = routes.first()?;
        match &first.rules {
            Rules::Connections(backends) => Some(Self::All(Arc::new(rule(first, backends)))),
            Rules::ServerNames(_) => Some(Self::Named(ServerNames::new(&routes))),
            Rules::Requests(_) => None,
        }
    }
}

impl ServerNames {
    /// `routes` in the order in which they win among equals.
    fn new(routes: &[&Route]) -> Self {
        let mut names = Self::default();
        for route in routes {
            let Rules::ServerNames(tls) = &route.rules else { continue };
            let rule = Arc::new(rule(route, &tls.backends));
            if tls.hostnames.is_empty() {
                names.any.get_or_insert_with(|| rule.clone());
            }
            for hostname in &tls.hostnames {
                let (names, name) = match hostname.strip_prefix("*.") {
                    Some(end) => (&mut names.wildcard, end.into()),
                    None => (&mut names.exact, hostname.clone()),
                };
                names.entry(name).or_insert_with(|| rule.clone());
            }
        }
        names
    }

    /// The rule for a name in lower case, or for none: the name itself, then the longest wildcard. None: no route wants
    /// it, and the connection is refused.
    pub fn find(&self, name: Option<&str>) -> Option<&Arc<ConnectionRule>> {
        let by_name = |name: &str| {
            let ends = name.match_indices('.').filter_map(|(dot, _)| name.get(dot.saturating_add(1)..));
            self.exact.get(name).or_else(|| ends.into_iter().find_map(|end| self.wildcard.get(end)))
        };
        name.and_then(by_name).or(self.any.as_ref())
    }
}

fn rule(route: &Route, backends: &[Backend]) -> ConnectionRule {
    ConnectionRule {
        kind: route.kind,
        namespace: route.namespace.clone(),
        route: route.name.clone(),
        backends: backends.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::build;
    use super::super::object::TlsRule;
    use super::*;

    fn tls(name: &str, created: i64, hostnames: &[&str]) -> Route {
        let hostnames = hostnames.iter().map(|name| (*name).into()).collect();
        let rules = Rules::ServerNames(TlsRule { hostnames, backends: vec![build::backend(name)] });
        Route { kind: RouteKind::Tls, rules, ..build::http("default", name, vec![]).at(created) }
    }

    fn tcp(name: &str, created: i64) -> Route {
        let rules = Rules::Connections(vec![build::backend(name)]);
        Route { kind: RouteKind::Tcp, rules, ..build::http("default", name, vec![]).at(created) }
    }

    fn found<'a>(names: &'a ServerNames, name: Option<&str>) -> Option<&'a str> {
        names.find(name).map(|rule| &*rule.route)
    }

    #[test]
    fn server_names() {
        let routes = [
            tls("exact", 5, &["a.example.com", "b.example.com"]),
            tls("wide", 1, &["*.example.com"]),
            tls("narrow", 9, &["*.a.example.com"]),
            tls("younger", 6, &["a.example.com", "c.example.com"]),
            tls("same age", 5, &["b.example.com"]),
        ];
        let Some(Connections::Named(names)) = Connections::compile(&routes) else { panic!() };
        for (name, wanted) in [
            (Some("a.example.com"), Some("exact")),
            (Some("b.example.com"), Some("exact")),
            (Some("c.example.com"), Some("younger")),
            (Some("d.example.com"), Some("wide")),
            (Some("x.d.example.com"), Some("wide")),
            (Some("x.a.example.com"), Some("narrow")),
            (Some("y.x.a.example.com"), Some("narrow")),
            (Some("example.com"), None),
            (Some("notexample.com"), None),
            (Some("com"), None),
            (None, None),
        ] {
            assert_eq!(found(&names, name), wanted, "{name:?}");
        }
        let any = [tls("any", 1, &[]), tls("exact", 2, &["a.example.com"])];
        let Some(Connections::Named(names)) = Connections::compile(&any) else { panic!() };
        assert_eq!(found(&names, Some("a.example.com")), Some("exact"));
        assert_eq!(found(&names, Some("other")), Some("any"));
        assert_eq!(found(&names, None), Some("any"));
    }

    #[test]
    fn the_oldest_tcp_route_takes_all() {
        for (routes, wanted) in [(vec![tcp("young", 2), tcp("old", 1)], "old"), (vec![tcp("b", 1), tcp("a", 1)], "a")] {
            let Some(Connections::All(rule)) = Connections::compile(&routes) else { panic!() };
            assert_eq!(&*rule.route, wanted);
            assert_eq!(build::name_of(rule.backend(Seed::new(1)).unwrap()), wanted);
        }
    }

    #[test]
    fn one_kind_holds() {
        let both = [tcp("tcp", 1), tls("tls", 2, &["a.example.com"])];
        assert!(matches!(Connections::compile(&both), Some(Connections::Named(_))));
        let http = [build::http("default", "http", vec![]), tcp("tcp", 1)];
        assert_eq!(Connections::compile(&http), None);
        assert_eq!(Connections::compile([]), None);
    }

    #[test]
    fn connections_with_no_weight_are_refused() {
        let none = Route { rules: Rules::Connections(vec![]), ..tcp("none", 1) };
        let Some(Connections::All(rule)) = Connections::compile([&none]) else { panic!() };
        assert_eq!(rule.backend(Seed::new(1)), None);
    }
}
