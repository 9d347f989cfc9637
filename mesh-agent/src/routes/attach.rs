//! Which routes hold at a Service's port for the clients of a namespace.
//!
//! GEP-1294: routes of a client's own namespace that are attached to another namespace's Service (consumer routes) take
//! the place of those of the Service's namespace (producer routes); the two are not merged. And one kind of route holds
//! at a port: GRPCRoute before HTTPRoute before TLSRoute before TCPRoute. The others are refused (`Conflicted`).

use super::object::{Parent, Route, RouteKind};

/// The port of a Service that a client has dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frontend<'a> {
    /// The Service's namespace.
    pub namespace: &'a str,
    /// The Service's name.
    pub name: &'a str,
    /// The Service's port.
    pub port: u16,
    /// The port's name.
    pub port_name: Option<&'a str>,
}

/// The routes that hold.
#[derive(Clone, Debug, PartialEq)]
pub struct Attached<'a> {
    /// Their kind.
    pub kind: RouteKind,
    /// Never empty.
    pub routes: Vec<&'a Route>,
    /// Attached like these, but of a kind that comes after theirs.
    pub conflicted: Vec<&'a Route>,
}

/// Chooses among routes, which may also be such as are attached elsewhere. None: the port works as if there were no
/// routes at all.
pub fn attached<'a>(
    frontend: Frontend<'_>,
    client_namespace: &str,
    routes: impl IntoIterator<Item = &'a Route>,
) -> Option<Attached<'a>> {
    let here = routes.into_iter().filter(|route| route.parents.iter().any(|parent| parent.is_at(frontend)));
    let (producers, others): (Vec<_>, Vec<_>) = here.partition(|route| *route.namespace == *frontend.namespace);
    let consumers: Vec<_> = others.into_iter().filter(|route| *route.namespace == *client_namespace).collect();
    of_one_kind(if consumers.is_empty() { producers } else { consumers })
}

/// The routes of the kind that comes first.
pub(super) fn of_one_kind(routes: Vec<&Route>) -> Option<Attached<'_>> {
    let kind = routes.iter().map(|route| route.kind).min_by_key(|kind| precedence(*kind))?;
    let (routes, conflicted) = routes.into_iter().partition(|route| route.kind == kind);
    Some(Attached { kind, routes, conflicted })
}

impl Parent {
    /// Whether it is this port: "the name and port of the selected port must match both specified values".
    pub fn is_at(&self, frontend: Frontend<'_>) -> bool {
        *self.namespace == *frontend.namespace
            && *self.name == *frontend.name
            && self.port.is_none_or(|port| port == frontend.port)
            && self.section.as_deref().is_none_or(|section| Some(section) == frontend.port_name)
    }
}

fn precedence(kind: RouteKind) -> u8 {
    match kind {
        RouteKind::Grpc => 0,
        RouteKind::Http => 1,
        RouteKind::Tls => 2,
        RouteKind::Tcp => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::super::build;
    use super::*;

    const WEB: Frontend<'static> = Frontend { namespace: "shop", name: "web", port: 80, port_name: Some("http") };

    fn names(client: &str, routes: &[Route]) -> (Vec<String>, Vec<String>) {
        let names = |routes: Vec<&Route>| routes.into_iter().map(|route| route.name.to_string()).collect();
        attached(WEB, client, routes).map_or((vec![], vec![]), |found| (names(found.routes), names(found.conflicted)))
    }

    #[test]
    fn a_parent_names_its_port_or_all() {
        for (parent, holds) in [
            (build::parent("shop", "web"), true),
            (Parent { port: Some(80), ..build::parent("shop", "web") }, true),
            (Parent { port: Some(8080), ..build::parent("shop", "web") }, false),
            (Parent { section: Some("http".into()), ..build::parent("shop", "web") }, true),
            (Parent { section: Some("grpc".into()), ..build::parent("shop", "web") }, false),
            (Parent { port: Some(80), section: Some("grpc".into()), ..build::parent("shop", "web") }, false),
            (build::parent("shop", "cart"), false),
            (build::parent("other", "web"), false),
        ] {
            let route = Route { parents: vec![parent.clone()], ..build::http("shop", "r", vec![]) };
            assert_eq!(attached(WEB, "any", [&route]).is_some(), holds, "{parent:?}");
        }
    }

    #[test]
    fn consumer_routes_take_the_place_of_producer_routes() {
        let routes = [
            build::http("shop", "producer", vec![]).to("shop", "web"),
            build::http("buyer", "consumer", vec![]).to("shop", "web"),
            build::http("thief", "foreign", vec![]).to("shop", "web"),
        ];
        assert_eq!(names("buyer", &routes).0, ["consumer"]);
        assert_eq!(names("shop", &routes).0, ["producer"]);
        assert_eq!(names("elsewhere", &routes).0, ["producer"], "nobody else's routes change what a client sees");
        assert_eq!(names("elsewhere", &routes[1..]).0, [""; 0]);
    }

    #[test]
    fn one_kind_of_route_holds_at_a_port() {
        let of = |name: &str, kind| Route { kind, ..build::http("shop", name, vec![]).to("shop", "web") };
        let routes = [
            of("tcp", RouteKind::Tcp),
            of("tls", RouteKind::Tls),
            of("http", RouteKind::Http),
            of("grpc", RouteKind::Grpc),
            of("http2", RouteKind::Http),
        ];
        let strings = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<Vec<_>>();
        assert_eq!(names("x", &routes), (strings(&["grpc"]), strings(&["tcp", "tls", "http", "http2"])));
        assert_eq!(names("x", &routes[..3]), (strings(&["http"]), strings(&["tcp", "tls"])));
        assert_eq!(names("x", &routes[..2]), (strings(&["tls"]), strings(&["tcp"])));
        // A consumer's namespace has its own choice, whatever the producer's routes are.
        let consumer = build::http("buyer", "mine", vec![]).to("shop", "web");
        let all = [&routes[..], &[consumer]].concat();
        assert_eq!(names("buyer", &all), (strings(&["mine"]), vec![]));
    }
}
