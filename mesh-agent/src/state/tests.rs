//! Tables.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use super::*;
use crate::policy::{Action, AuthorizationPolicy, Facts, PolicyMeta, PolicySet, Target, authorize};
use crate::spiffe::SpiffeId;

#[test]
fn an_ip_that_two_pods_claim_is_the_newest_ones_that_stays() {
    // (created, terminating) of two pods; which of them holds the IP
    let table = [
        ((Some(1), false), (Some(2), false), "b"),
        ((Some(2), false), (Some(1), false), "a"),
        ((Some(2), true), (Some(1), false), "b"),
        ((Some(2), true), (Some(1), true), "a"),
        ((None, false), (Some(1), false), "b"),
        ((None, false), (None, false), "b"),
    ];
    for (a, b, holder) in table {
        let claim = |name: &str, (created, terminating)| Workload { created, terminating, ..pod(name, &["10.0.0.1"]) };
        for pods in [vec![claim("a", a), claim("b", b)], vec![claim("b", b), claim("a", a)]] {
            let state = build(pods, vec![]);
            assert_eq!(&*state.workload_by_ip(ip("10.0.0.1")).unwrap().name, holder, "{a:?} {b:?}");
            assert_eq!(names(state.local_workloads()), [holder]);
        }
    }
}

/// Whoever writes of a pod elsewhere that it has an address finds nobody at it, and takes nobody's mesh away.
#[test]
fn a_claim_of_another_node_takes_no_pod_from_this_one() {
    let own = Workload { created: Some(1), ..pod("own", &["10.0.0.1"]) };
    let claim = Workload { created: Some(2), node: "other".into(), ..pod("claim", &["10.0.0.1"]) };
    for pods in [vec![own.clone(), claim.clone()], vec![claim, own]] {
        let state = build(pods, vec![]);
        assert_eq!(&*state.workload_by_ip(ip("10.0.0.1")).unwrap().name, "claim");
        assert_eq!(names(state.local_workloads()), ["own"]);
        assert!(state.inbound_policy("uid-own").is_some());
    }
}

/// In whatever order they come: of two of this node the newer has the address here, until it goes, whoever has it elsewhere.
#[test]
fn who_has_an_address_here_does_not_hang_on_who_has_it_elsewhere() {
    let claim = |name: &str, created, node: &str| {
        let workload = Workload { created: Some(created), node: node.into(), ..pod(name, &["10.0.0.1"]) };
        let key = Key { kind: Kind::Pod, namespace: workload.namespace.to_string(), name: name.into() };
        (key, Item::Pod { workload: workload.into(), mesh: Some(true) })
    };
    let claims = [claim("older", 1, "node"), claim("newer", 2, "node"), claim("elsewhere", 3, "other")];
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let mut engine = Engine::new("node");
        for (key, item) in order.map(|index| claims[index].clone()) {
            engine.upsert(&key, item);
            engine.snapshot();
        }
        assert_eq!(names(engine.snapshot().local_workloads()), ["newer"], "{order:?}");
        engine.delete(&claims[1].0);
        let state = engine.snapshot();
        assert_eq!(names(state.local_workloads()), ["older"], "{order:?}");
        assert_eq!(&*state.workload_by_ip(ip("10.0.0.1")).unwrap().name, "elsewhere", "{order:?}");
    }
}

#[test]
fn local_pods_come_once_and_host_network_pods_are_not_found_by_ip() {
    let host = Workload { host_network: true, ..pod("host", &["192.168.0.1"]) };
    let away = Workload { node: "other".into(), ..pod("away", &["10.0.0.9"]) };
    let unscheduled = Workload { node: "".into(), ..pod("unscheduled", &["10.0.0.8"]) };
    let state = build(vec![pod("dual", &["10.0.0.1", "fd00::1"]), host, away, unscheduled], vec![]);
    assert_eq!(names(state.local_workloads()), ["dual", "host"]);
    assert!(state.workload_by_ip(ip("192.168.0.1")).is_none());
    assert!(state.workload_by_ip(ip("10.0.0.9")).is_some());
    assert!(state.inbound_policy("uid-dual").is_some());
    assert!(state.inbound_policy("uid-away").is_none());
}

#[test]
fn endpoints_by_selector_and_by_slice() {
    let named = |name: &str, ip: &str, port| Workload {
        named_ports: BTreeMap::from([("http".to_string(), port)]),
        ..pod(name, &[ip])
    };
    let unready = Workload { ready: false, ..named("unready", "10.0.0.3", 8080) };
    let terminating = Workload { terminating: true, ..named("terminating", "10.0.0.4", 8080) };
    let nameless = pod("nameless", &["10.0.0.5"]);
    let other = Workload { labels: BTreeMap::new(), ..named("other", "10.0.0.6", 8080) };
    let foreign = Workload { namespace: "else".into(), ..named("foreign", "10.0.0.7", 8080) };
    let pods = vec![
        named("a", "10.0.0.1", 8080),
        named("b", "10.0.0.2", 8081),
        unready,
        terminating,
        nameless,
        other,
        foreign,
    ];
    let by_name = PortSpec {
        name: "".into(),
        port: 80,
        target: TargetPort::Name("http".into()),
        node_port: None,
        protocol: AppProtocol::Bytes,
    };
    let by_number = PortSpec {
        name: "n".into(),
        port: 81,
        target: TargetPort::Number(9000),
        node_port: None,
        protocol: AppProtocol::Bytes,
    };
    let selected = ServiceSpec { ports: vec![by_name.clone(), by_number], ..service("selected", "10.96.0.1") };
    let backend = |ip_text: &str, port, ready| Backend { ready, ..Backend::ready(ip(ip_text), port) };
    let listed = ServiceSpec {
        ports: vec![by_name.clone()],
        backends: Backends::Listed(vec![
            backend("10.0.0.1", 1, true),
            backend("10.0.0.1", 1, true),
            backend("10.0.0.2", 2, false),
            Backend { port_name: "else".into(), ..backend("10.0.0.3", 3, true) },
            backend("203.0.113.1", 4, true),
        ]),
        ..service("listed", "10.96.0.2")
    };
    let unselected = ServiceSpec { ports: vec![by_name], selector: None, ..service("unselected", "10.96.0.3") };
    let state = build(pods, vec![selected, listed, unselected]);
    let places = |vip: &str, port| {
        let service = state.service_by_ip(ip(vip)).unwrap();
        let endpoints = &service.port(port).unwrap().endpoints;
        endpoints.iter().map(|endpoint| SocketAddr::new(endpoint.ip, endpoint.port).to_string()).collect::<Vec<_>>()
    };
    assert_eq!(places("10.96.0.1", 80), ["10.0.0.1:8080", "10.0.0.2:8081"]);
    assert_eq!(places("10.96.0.1", 81), ["10.0.0.1:9000", "10.0.0.2:9000", "10.0.0.5:9000"]);
    assert_eq!(places("10.96.0.2", 80), ["10.0.0.1:1", "203.0.113.1:4"]);
    assert_eq!(places("10.96.0.3", 80), [""; 0]);
    let unserved: Vec<String> = state.vips_without_endpoint().map(|vip| vip.to_string()).collect();
    assert_eq!(unserved, ["10.96.0.3:80"]);
}

/// To people a pod is one endpoint, though it has an address of each family.
#[test]
fn a_pod_of_two_families_is_one_endpoint() {
    let pods = vec![pod("dual", &["10.0.0.1", "fd00::1"]), pod("single", &["10.0.0.2"])];
    let table: [(&[&str], usize); 6] = [
        (&[], 0),
        (&["10.0.0.1"], 1),
        (&["10.0.0.1", "fd00::1"], 1),
        (&["10.0.0.1", "fd00::1", "10.0.0.2"], 2),
        // No pods': which address belongs to which is not told.
        (&["203.0.113.1", "203.0.113.2", "2001:db8::1"], 2),
        (&["fd00::1", "2001:db8::1", "2001:db8::2"], 3),
    ];
    for (addresses, expected) in table {
        let listed = addresses.iter().map(|address| Backend::ready(ip(address), 8080)).collect();
        let spec = ServiceSpec {
            cluster_ips: vec![ip("10.96.0.1"), ip("fd00:96::1")],
            ports: vec![port(80, None)],
            backends: Backends::Listed(listed),
            ..service("dual", "10.96.0.1")
        };
        let state = build(pods.clone(), vec![spec]);
        let service = state.service_by_ip(ip("10.96.0.1")).unwrap();
        assert_eq!(shown::count_ready(&service.port(80).unwrap().endpoints), expected, "{addresses:?}");
    }
}

/// Without slices the pods tell what the EndpointSlice controller would: readiness, draining, node and zone.
#[test]
fn selected_pods_serve_as_their_slices_would() {
    let placed = |name: &str, ip: &str, node: &str| Workload { node: node.into(), ..pod(name, &[ip]) };
    let here = placed("here", "10.0.0.1", "node");
    let near = placed("near", "10.0.0.2", "near");
    let far = placed("far", "10.0.0.3", "far");
    let unready = |pod: &Workload| Workload { ready: false, ..pod.clone() };
    let ending = |pod: &Workload| Workload { terminating: true, ..pod.clone() };
    let traffic = |distribution| Traffic { distribution, ..Traffic::default() };
    let (even, zone, same_node) =
        (traffic(Distribution::Even), traffic(Distribution::SameZone), traffic(Distribution::SameNode));
    let publish = Traffic { publish_not_ready: true, ..even };
    let all = || vec![here.clone(), near.clone(), far.clone()];
    let table = [
        ("even", all(), even, ".1 .2 .3"),
        ("zone", all(), zone, ".1 .2"),
        ("node", all(), same_node, ".1"),
        ("node, then zone", vec![near.clone(), far.clone()], same_node, ".2"),
        ("node, then zone, then all", vec![far.clone()], same_node, ".3"),
        ("ready first", vec![unready(&here), near.clone(), ending(&far)], even, ".2"),
        ("what ends, when nothing is ready", vec![unready(&here), ending(&near), ending(&far)], even, ".2 .3"),
        ("what ends and does not serve", vec![ending(&unready(&here))], even, ""),
        ("published unready", vec![unready(&here), ending(&unready(&near))], publish, ".1 .2"),
    ];
    for (what, workloads, traffic, expected) in table {
        let services = vec![ServiceSpec { traffic, ports: vec![port(80, None)], ..service("s", "10.96.0.1") }];
        let node =
            |name: &str, zone: &str| Node { name: name.into(), zone: zone.into(), kubelet_port: None, ips: vec![] };
        let nodes = vec![node("node", "z1"), node("near", "z1"), node("far", "z2")];
        let state = MeshState::build(1, "node", &World { workloads, services, nodes, ..World::default() });
        let endpoints = &state.service_by_ip(ip("10.96.0.1")).unwrap().port(80).unwrap().endpoints;
        let mut seen: Vec<String> = endpoints.iter().map(|e| e.ip.to_string().replace("10.0.0", "")).collect();
        seen.sort();
        assert_eq!(seen.join(" "), expected, "{what}");
    }
}

/// By the node of the pod, else by that of the endpoint; a zone that becomes known or another changes it.
#[test]
fn endpoints_say_how_far_they_are() {
    let placed = |name: &str, ip: &str, node: &str| Workload { node: node.into(), ..pod(name, &[ip]) };
    let listed = |text: &str, node: &str| Backend { node: node.into(), ..Backend::ready(ip(text), 1) };
    let mut engine = Engine::new("node");
    let key = |kind, namespace: &str, name: &str| Key { kind, namespace: namespace.into(), name: name.into() };
    for workload in [placed("a", "10.0.0.1", "node"), placed("b", "10.0.0.2", "near"), placed("c", "10.0.0.3", "far")] {
        let item = Item::Pod { workload: workload.clone().into(), mesh: Some(true) };
        engine.upsert(&key(Kind::Pod, &workload.namespace, &workload.name), item);
    }
    let spec = ServiceSpec {
        ports: vec![port(80, None)],
        backends: Backends::Listed(vec![
            listed("10.0.0.1", ""),
            listed("10.0.0.2", "near"),
            listed("10.0.0.3", "far"),
            listed("203.0.113.1", "near"),
            listed("203.0.113.2", "node"),
        ]),
        ..service("s", "10.96.0.1")
    };
    engine.upsert(&key(Kind::Service, &spec.namespace, &spec.name), Item::Service(spec.clone().into()));
    use crate::resilience::balance::Place::{self, Elsewhere, Node as OnNode, Zone};
    let mut step = |nodes: &[(&str, &str)]| -> Vec<Place> {
        for (name, zone) in nodes {
            let node = Node { name: (*name).into(), zone: (*zone).into(), kubelet_port: None, ips: vec![] };
            engine.upsert(&key(Kind::Node, "", name), Item::Node(node.into()));
        }
        let state = engine.snapshot();
        let service = state.service_by_ip(ip("10.96.0.1")).unwrap().clone();
        let mut endpoints = service.port(80).unwrap().endpoints.clone();
        endpoints.sort_by_key(|endpoint| endpoint.ip);
        endpoints.iter().map(|endpoint| endpoint.place).collect()
    };
    assert_eq!(step(&[]), [OnNode, Elsewhere, Elsewhere, Elsewhere, OnNode], "no zone is known");
    assert_eq!(step(&[("near", "z1"), ("far", "")]), [OnNode, Elsewhere, Elsewhere, Elsewhere, OnNode]);
    assert_eq!(step(&[("node", "z1")]), [OnNode, Zone, Elsewhere, Elsewhere, OnNode]);
    assert_eq!(step(&[("far", "z1")]), [OnNode, Zone, Zone, Elsewhere, OnNode], "another node's zone");
    assert_eq!(step(&[("near", "z2")]), [OnNode, Elsewhere, Zone, Elsewhere, OnNode]);
}

/// Each family falls back by itself, as kube-proxy has a proxy for each.
#[test]
fn families_are_judged_apart() {
    let backend = |text: &str, ready| Backend { ready, terminating: !ready, ..Backend::ready(ip(text), 1) };
    let spec = ServiceSpec {
        cluster_ips: vec![ip("10.96.0.1"), ip("fd00:96::1")],
        ports: vec![port(80, None)],
        backends: Backends::Listed(vec![
            backend("10.0.0.1", true),
            backend("10.0.0.2", false),
            backend("fd00::2", false),
        ]),
        ..service("s", "10.96.0.1")
    };
    let state = build(vec![], vec![spec]);
    let endpoints = &state.service_by_ip(ip("10.96.0.1")).unwrap().port(80).unwrap().endpoints;
    assert_eq!(endpoints.iter().map(|e| e.ip).collect::<Vec<_>>(), [ip("10.0.0.1"), ip("fd00::2")]);
    assert_eq!(state.vips_without_endpoint().count(), 0);
}

#[test]
fn a_cluster_ip_is_unserved_in_the_family_that_has_no_endpoint() {
    let spec = ServiceSpec {
        cluster_ips: vec![ip("10.96.0.1"), ip("fd00:96::1")],
        ports: vec![PortSpec {
            name: "".into(),
            port: 80,
            target: TargetPort::Number(80),
            node_port: None,
            protocol: AppProtocol::Bytes,
        }],
        ..service("s", "10.96.0.1")
    };
    let state = build(vec![pod("a", &["10.0.0.1"])], vec![spec]);
    assert_eq!(state.vips_without_endpoint().map(|vip| vip.to_string()).collect::<Vec<_>>(), ["[fd00:96::1]:80"]);
}

/// A policy on a Service holds at the pod's IP, at the target ports, ready or not, and nowhere else.
#[test]
fn a_policy_on_a_service_holds_at_its_pods() {
    let unready = Workload { ready: false, ..pod("unready", &["10.0.0.1"]) };
    let listed_only = Workload { labels: BTreeMap::new(), ..pod("listed", &["10.0.0.2"]) };
    let spec = ServiceSpec {
        ports: vec![PortSpec {
            name: "".into(),
            port: 80,
            target: TargetPort::Number(8080),
            node_port: None,
            protocol: AppProtocol::Bytes,
        }],
        backends: Backends::Listed(vec![Backend { ready: false, ..Backend::ready(ip("10.0.0.2"), 8081) }]),
        ..service("s", "10.96.0.1")
    };
    let policy = AuthorizationPolicy {
        meta: PolicyMeta { id: "shop/p".into(), created: None },
        targets: vec![Target::Service { namespace: "shop".into(), name: "s".into() }],
        action: Action::Allow,
        provider: None,
        rules: vec![],
    };
    let policies = PolicySet::new(vec![], vec![policy], vec![]);
    let state = MeshState::build(
        1,
        "node",
        &World { workloads: vec![unready, listed_only], services: vec![spec], policies, ..World::default() },
    );
    let refused = |uid: &str| -> BTreeSet<u16> {
        let policy = state.inbound_policy(uid).unwrap();
        let facts = |port| Facts {
            source: None,
            is_same_node: false,
            source_ip: ip("10.0.0.9"),
            destination_ip: ip("10.0.0.1"),
            destination_port: port,
        };
        (8079..8083).filter(|port| authorize(policy, &facts(*port)).is_err()).collect()
    };
    assert_eq!(refused("uid-unready"), BTreeSet::from([8080]));
    assert_eq!(refused("uid-listed"), BTreeSet::from([8081]));
}

#[test]
fn readers_see_what_was_published() {
    let (writer, mut reader) = StateWriter::new("node");
    assert_eq!(reader.current().version, 0);
    writer.publish(build(vec![pod("a", &["10.0.0.1"])], vec![]));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    assert!(runtime.block_on(reader.changed()));
    assert_eq!(reader.current().version, 1);
    drop(writer);
    assert!(!runtime.block_on(reader.changed()));
}

// — helpers —

fn build(workloads: Vec<Workload>, services: Vec<ServiceSpec>) -> MeshState {
    MeshState::build(1, "node", &World { workloads, services, ..World::default() })
}

fn names<'a>(workloads: impl Iterator<Item = &'a std::sync::Arc<Workload>>) -> Vec<String> {
    workloads.map(|workload| workload.name.to_string()).collect()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn pod(name: &str, ips: &[&str]) -> Workload {
    Workload {
        uid: format!("uid-{name}").into(),
        name: name.into(),
        namespace: "shop".into(),
        node: "node".into(),
        identity: SpiffeId::new("cluster.local", "shop", name).unwrap(),
        ips: ips.iter().map(|text| ip(text)).collect(),
        labels: BTreeMap::from([("app".to_string(), "s".to_string())]),
        named_ports: BTreeMap::new(),
        host_ips: vec![],
        host_ports: vec![],
        exclusions: Exclusions::default(),
        probe_ports: Default::default(),
        forwards: false,
        enrolled: true,
        refusal: None,
        host_network: false,
        ready: true,
        terminating: false,
        created: None,
    }
}

fn service(name: &str, vip: &str) -> ServiceSpec {
    ServiceSpec {
        namespace: "shop".into(),
        name: name.into(),
        cluster_ips: vec![ip(vip)],
        selector: Some(BTreeMap::from([("app".to_string(), "s".to_string())])),
        ..ServiceSpec::default()
    }
}

fn port(port: u16, node_port: Option<u16>) -> PortSpec {
    PortSpec { name: "".into(), port, target: TargetPort::Number(8080), node_port, protocol: AppProtocol::Bytes }
}
