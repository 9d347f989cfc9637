//! Tables: which routes hold where, for whom, and what is said of them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::*;
use crate::routes::{self, BackendRef, Connections, Match, Parent, Route, RouteKind, Rule, Rules, Timeouts, TlsRule};

use RouteKind::{Grpc, Http, Tcp, Tls};

/// GEP-1294: consumer routes of a client's namespace stand in the place of the producer's, all of them; nobody else's
/// routes count.
#[test]
fn whose_routes_a_client_sees() {
    let producer = route(Http, "shop", "producer").to("shop", "web");
    let consumer = route(Http, "bank", "consumer").to("shop", "web");
    let second = route(Http, "bank", "second").to("shop", "web");
    // (routes, what clients of shop, bank and elsewhere see)
    let table = [
        (vec![], ["", "", ""]),
        (vec![producer.clone()], ["producer", "producer", "producer"]),
        (vec![consumer.clone()], ["", "consumer", ""]),
        (vec![consumer.clone(), producer.clone()], ["producer", "consumer", "producer"]),
        (vec![second, producer, consumer], ["producer", "consumer second", "producer"]),
    ];
    for (routes, expected) in table {
        let shown = format!("{:?}", names(&routes));
        let state = build(routes);
        let seen = ["shop", "bank", "elsewhere"].map(|namespace| seen(&state, "web", 80, namespace));
        assert_eq!(seen, expected.map(str::to_string), "{shown}");
    }
}

/// (port and sectionName of the parent) → at which ports of the Service, 80 named http and 81 named other, it holds.
#[test]
fn at_which_ports_a_route_holds() {
    let table: [(Option<u16>, Option<&str>, &[u16]); 8] = [
        (None, None, &[80, 81]),
        (Some(80), None, &[80]),
        (None, Some("other"), &[81]),
        (Some(81), Some("other"), &[81]),
        (Some(80), Some("other"), &[]),
        (Some(82), None, &[]),
        (None, Some("none"), &[]),
        (None, Some(""), &[]),
    ];
    for (port, section, expected) in table {
        let parent = Parent { namespace: "shop".into(), name: "web".into(), port, section: section.map(Arc::from) };
        let route = route(Http, "shop", "r");
        let state = build(vec![route.at(vec![parent])]);
        let ports: Vec<u16> = [80, 81].into_iter().filter(|port| !seen(&state, "web", *port, "x").is_empty()).collect();
        assert_eq!(ports, expected, "{port:?} {section:?}");
        let status = &state.route_status()[0].parents[0].conditions[0];
        let reason = if expected.is_empty() { "NoMatchingParent" } else { "Accepted" };
        assert_eq!((status.status, status.reason), (!expected.is_empty(), reason));
    }
}

/// A route without a port makes one table, however many ports there are.
#[test]
fn one_table_for_all_ports() {
    let state = build(vec![route(Http, "shop", "r").to("shop", "web")]);
    let service = service_of(&state, "web");
    let tables = [80, 81].map(|port| state.requests(service, port, "x").unwrap());
    assert!(Arc::ptr_eq(tables[0], tables[1]));
}

/// (kinds of routes at one port) → (the kind that holds, who is Conflicted).
#[test]
fn one_kind_holds_at_a_port() {
    let table: [(&[RouteKind], Option<RouteKind>, &[RouteKind]); 6] = [
        (&[Tcp, Tls, Http, Grpc], Some(Grpc), &[Http, Tcp, Tls]),
        (&[Tcp, Tls, Http], Some(Http), &[Tcp, Tls]),
        (&[Tcp, Tls], Some(Tls), &[Tcp]),
        (&[Tcp], Some(Tcp), &[]),
        (&[Http, Http], Some(Http), &[]),
        (&[], None, &[]),
    ];
    for (kinds, holds, conflicted) in table {
        let routes = kinds.iter().enumerate();
        let routes = routes.map(|(index, kind)| route(*kind, "shop", &format!("r{index}")).to("shop", "web")).collect();
        let state = build(routes);
        let service = service_of(&state, "web");
        let protocol = state.protocol(service, service.port(80).unwrap(), "x");
        let expected = match holds {
            None | Some(Tcp | Tls) => AppProtocol::Bytes,
            Some(Http) => AppProtocol::Http1,
            Some(Grpc) => AppProtocol::Grpc,
        };
        assert_eq!(protocol, expected, "{kinds:?}");
        assert_eq!(state.requests(service, 80, "x").is_some(), matches!(holds, Some(Http | Grpc)), "{kinds:?}");
        assert_eq!(state.connections(service, 80, "x").is_some(), matches!(holds, Some(Tcp | Tls)), "{kinds:?}");
        let status = state.route_status();
        let lost: BTreeSet<Kind> = status
            .iter()
            .filter(|status| status.parents[0].conditions[0].reason == "Conflicted")
            .map(|status| status.kind)
            .collect();
        assert_eq!(lost, conflicted.iter().map(|kind| Kind::of_route(*kind)).collect(), "{kinds:?}");
    }
    // Each group by itself: a consumer's TCPRoute does not yield to the producer's HTTPRoute.
    let routes = vec![route(Http, "shop", "p").to("shop", "web"), route(Tcp, "bank", "c").to("shop", "web")];
    let state = build(routes);
    let service = service_of(&state, "web");
    assert!(state.requests(service, 80, "shop").is_some() && state.connections(service, 80, "shop").is_none());
    assert!(state.requests(service, 80, "bank").is_none() && state.connections(service, 80, "bank").is_some());
}

/// (what the Service says, the route) → what is read of a connection.
#[test]
fn what_is_read_of_a_connection() {
    use AppProtocol::{Bytes, Grpc as GrpcPort, Http1, Http2};
    let table = [
        (Bytes, None, Bytes),
        (Http1, None, Http1),
        (Bytes, Some(Http), Http1),
        (Http2, Some(Http), Http2),
        (GrpcPort, Some(Http), GrpcPort),
        (Bytes, Some(Grpc), GrpcPort),
        (Http1, Some(Grpc), GrpcPort),
        (Http1, Some(Tcp), Bytes),
        (GrpcPort, Some(Tls), Bytes),
    ];
    for (protocol, kind, expected) in table {
        let routes = kind.map(|kind| route(kind, "shop", "r").to("shop", "web")).into_iter().collect();
        let mut world = world(routes);
        world.services[0].ports[0].protocol = protocol;
        let state = MeshState::build(1, "node", &world);
        let service = service_of(&state, "web");
        assert_eq!(state.protocol(service, service.port(80).unwrap(), "x"), expected, "{protocol:?} {kind:?}");
    }
}

/// A route is attached to a frontend: a headless Service has none.
#[test]
fn a_service_without_address_has_no_routes() {
    let mut world = world(vec![route(Http, "shop", "r").to("shop", "web")]);
    world.services[0].cluster_ips.clear();
    let state = MeshState::build(1, "node", &world);
    assert_eq!(seen(&state, "web", 80, "shop"), "");
    let condition = &state.route_status()[0].parents[0].conditions[0];
    assert_eq!((condition.status, condition.reason), (false, "NoMatchingParent"));
}

/// (target) → where it leads. GEP-1294: another namespace needs no grant.
#[test]
fn references() {
    use BadBackend::{BackendNotFound, InvalidKind};
    let table = [
        ("shop/web:80", Ok("web:80")),
        ("shop/web:81", Ok("web:81")),
        ("bank/till:80", Ok("till:80")),
        ("shop/api:81", Err(BackendNotFound)),
        ("shop/none:80", Err(BackendNotFound)),
        ("bank/web:80", Err(BackendNotFound)),
        ("wrong", Err(InvalidKind)),
    ];
    let state = build(vec![]);
    for (target, expected) in table {
        let seen = state.backend(&reference(target)).map(|(service, port)| format!("{}:{}", service.name, port.port));
        assert_eq!(seen.as_deref().map_err(|fault| *fault), expected, "{target}");
    }
}

/// A port that the agent answers is not refused by the kernel for want of endpoints, whoever's the route is.
#[test]
fn a_port_with_routes_is_not_unserved() {
    let unserved = |state: &MeshState| state.vips_without_endpoint().map(|at| at.to_string()).collect::<BTreeSet<_>>();
    let all = ["10.96.0.1:80", "10.96.0.1:81", "10.96.0.2:80", "10.96.0.3:80"];
    let without = |gone: &[&str]| all.iter().filter(|at| !gone.contains(at)).map(|at| at.to_string()).collect();
    assert_eq!(unserved(&build(vec![])), without(&[]));
    for kind in [Http, Grpc, Tcp, Tls] {
        for namespace in ["shop", "bank"] {
            let state = build(vec![route(kind, namespace, "r").to("shop", "web")]);
            assert_eq!(unserved(&state), without(&["10.96.0.1:80", "10.96.0.1:81"]), "{kind:?} {namespace}");
        }
    }
    let mut world = world(vec![]);
    world.services[1].ports[0].protocol = AppProtocol::Http1;
    assert_eq!(unserved(&MeshState::build(1, "node", &world)), without(&["10.96.0.2:80"]));
    // It comes and goes with the route.
    let mut engine = Engine::new("node");
    for spec in super::route_tests::world(vec![]).services {
        let key = Key { kind: Kind::Service, namespace: spec.namespace.to_string(), name: spec.name.to_string() };
        engine.upsert(&key, Item::Service(spec.into()));
    }
    let before = engine.snapshot();
    let key = Key { kind: Kind::HttpRoute, namespace: "shop".into(), name: "r".into() };
    engine.upsert(&key, Item::Route(route(Http, "shop", "r").to("shop", "api").into()));
    let with = engine.snapshot();
    engine.delete(&key);
    let after = engine.snapshot();
    assert_eq!((unserved(&with), unserved(&after)), (without(&["10.96.0.2:80"]), without(&[])));
    assert!(before.unserved_stamp() != with.unserved_stamp() && with.unserved_stamp() != after.unserved_stamp());
}

/// What a port's TCPRoutes and TLSRoutes come to is the business of `routes`; here, that they are those of the port.
#[test]
fn where_connections_go() {
    let state = build(vec![route(Tcp, "shop", "all").to("shop", "web")]);
    let connections = state.connections(service_of(&state, "web"), 80, "x").unwrap();
    assert!(matches!(&**connections, Connections::All(rule) if &*rule.route == "all"));
    let state = build(vec![route(Tls, "shop", "named").to("shop", "web")]);
    let connections = state.connections(service_of(&state, "web"), 80, "x").unwrap();
    assert!(matches!(&**connections, Connections::Named(names) if names.find(Some("x.example")).is_some()));
    assert!(state.connections(service_of(&state, "api"), 80, "x").is_none());
}

/// (route) → its conditions at its only parent, in short.
#[test]
fn conditions() {
    let to = |target: &str| route(Http, "shop", "r").to("shop", "web").with(target);
    let reading = |field: &str, reason: &str| Reading { field: field.into(), reason: reason.into() };
    let partly =
        RouteSpec { refused_rules: vec![(1, reading("spec.rules[1].filters", "unknown"))], ..to("shop/web:80") };
    let refused = RouteSpec { refused: Some(reading("spec.rules", "empty")), ..to("wrong") };
    let wrong = RouteSpec { wrong_refs: vec![(BadBackend::InvalidKind, reading("f", "kind"))], ..to("wrong") };
    let good = "Accepted=true/Accepted";
    let table = [
        (to("shop/web:80"), format!("{good} ResolvedRefs=true/ResolvedRefs")),
        (to("shop/none:80"), format!("{good} ResolvedRefs=false/BackendNotFound")),
        (to("shop/web:99"), format!("{good} ResolvedRefs=false/BackendNotFound")),
        (to("bank/till:80"), format!("{good} ResolvedRefs=true/ResolvedRefs")),
        (wrong, format!("{good} ResolvedRefs=false/InvalidKind")),
        (partly, format!("{good} ResolvedRefs=true/ResolvedRefs PartiallyInvalid=true/UnsupportedValue")),
        (refused, "Accepted=false/UnsupportedValue".to_string()),
        (
            route(Http, "shop", "r").to("shop", "none"),
            "Accepted=false/NoMatchingParent ResolvedRefs=true/ResolvedRefs".to_string(),
        ),
        (
            route(Http, "bank", "r").to("shop", "web").with("shop/web:80"),
            format!("{good} ResolvedRefs=true/ResolvedRefs"),
        ),
    ];
    for (spec, expected) in table {
        let state = build(vec![spec.clone()]);
        let conditions = &state.route_status()[0].parents[0].conditions;
        let shown = conditions.iter().map(|one| format!("{:?}={}/{}", one.condition, one.status, one.reason));
        assert_eq!(shown.collect::<Vec<_>>().join(" "), expected, "{spec:?}");
        assert!(conditions.iter().all(|one| one.is_good() || !one.message.is_empty()));
        let partly = conditions.iter().find(|one| one.condition == ConditionType::PartiallyInvalid);
        assert!(partly.is_none_or(|one| one.message.starts_with("Dropped Rule")));
    }
}

// — helpers —

fn build(routes: Vec<RouteSpec>) -> MeshState {
    MeshState::build(1, "node", &world(routes))
}

/// The Services shop/web, shop/api and bank/till.
fn world(routes: Vec<RouteSpec>) -> World {
    let port = |port, name: &str| PortSpec {
        name: name.into(),
        port,
        target: TargetPort::Number(8080),
        node_port: None,
        protocol: AppProtocol::Bytes,
    };
    let service = |namespace: &str, name: &str, ip: &str, ports: Vec<PortSpec>| ServiceSpec {
        namespace: namespace.into(),
        name: name.into(),
        cluster_ips: vec![ip.parse::<IpAddr>().unwrap()],
        ports,
        ..ServiceSpec::default()
    };
    let services = vec![
        service("shop", "web", "10.96.0.1", vec![port(80, "http"), port(81, "other")]),
        service("shop", "api", "10.96.0.2", vec![port(80, "")]),
        service("bank", "till", "10.96.0.3", vec![port(80, "")]),
    ];
    World { services, routes, ..World::default() }
}

fn service_of<'a>(state: &'a MeshState, name: &str) -> &'a Arc<Service> {
    state.services().find(|service| &*service.name == name).unwrap()
}

/// The names of the routes that a namespace's clients see at a port.
fn seen(state: &MeshState, service: &str, port: u16, namespace: &str) -> String {
    let service = service_of(state, service);
    let names = state.routes_at(service, port, namespace).map(|spec| spec.route.name.to_string());
    assert_eq!(
        state.requests(service, port, namespace).is_some(),
        state.routes_at(service, port, namespace).count() > 0
    );
    names.collect::<Vec<_>>().join(" ")
}

fn names(routes: &[RouteSpec]) -> Vec<&str> {
    routes.iter().map(|spec| &*spec.route.name).collect()
}

/// `namespace/name:port`, or a reference that is wrong by itself.
fn reference(text: &str) -> BackendRef {
    let Some((namespace, rest)) = text.split_once('/') else { return BackendRef::Wrong { reason: text.into() } };
    let (name, port) = rest.split_once(':').unwrap();
    BackendRef::Service { namespace: namespace.into(), name: name.into(), port: port.parse().unwrap() }
}

/// A route with one rule to nowhere in particular.
fn route(kind: RouteKind, namespace: &str, name: &str) -> RouteSpec {
    let route = Route {
        kind,
        namespace: namespace.into(),
        name: name.into(),
        created: 0,
        parents: vec![],
        rules: rules(kind, "shop/api:80"),
    };
    RouteSpec { route: route.into(), generation: None, refused: None, refused_rules: vec![], wrong_refs: vec![] }
}

fn rules(kind: RouteKind, target: &str) -> Rules {
    let backends = vec![routes::Backend { target: reference(target), weight: 1, filters: vec![] }];
    match kind {
        Http | Grpc => Rules::Requests(vec![Rule {
            name: None,
            matches: vec![Match::default()],
            filters: vec![],
            backends,
            timeouts: Timeouts::default(),
            retry: None,
            session: None,
        }]),
        Tcp => Rules::Connections(backends),
        Tls => Rules::ServerNames(TlsRule { hostnames: vec!["x.example".into()], backends }),
    }
}

impl RouteSpec {
    fn at(mut self, parents: Vec<Parent>) -> Self {
        Arc::make_mut(&mut self.route).parents = parents;
        self
    }

    fn to(self, namespace: &str, name: &str) -> Self {
        self.at(vec![Parent { namespace: namespace.into(), name: name.into(), port: None, section: None }])
    }

    fn with(mut self, target: &str) -> Self {
        let kind = self.route.kind;
        Arc::make_mut(&mut self.route).rules = rules(kind, target);
        self
    }
}
