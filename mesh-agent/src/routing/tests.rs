//! Tables, then properties.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::policy::{Mode, PeerAuthentication, PolicyMeta, PolicySet, SameNode, Target};
use crate::state::{
    AppProtocol, Backend, Backends, Exclusions, ExternalAddresses, HostPort, InternalTraffic, Node, PortSpec,
    ServiceSpec, TargetPort, Traffic, World,
};

/// A port that speaks HTTP is no refusal even without endpoints: each request is told.
#[test]
fn where_requests_are_spoken_each_is_decided_by_itself() {
    let speaking = |name: &str, ip: &str, endpoints: &[(&str, u16)], protocol| {
        let mut service = service(name, &[ip], endpoints);
        service.ports.iter_mut().for_each(|port| port.protocol = protocol);
        service
    };
    let world = World {
        workloads: vec![pod("client", &["10.0.0.1"], true), pod("meshed", &["10.0.0.2"], true)],
        services: vec![
            speaking("bytes", "10.96.0.1", &[("10.0.0.2", 8080)], AppProtocol::Bytes),
            speaking("http", "10.96.0.2", &[("10.0.0.2", 8080)], AppProtocol::Http1),
            speaking("grpc", "10.96.0.3", &[], AppProtocol::Grpc),
        ],
        ..World::default()
    };
    let state = MeshState::build(1, "node", &world);
    let client = state.workload_by_ip("10.0.0.1".parse().unwrap()).unwrap();
    for (dialled, expected) in [
        ("10.96.0.1:80", "10.0.0.2:8080 T"),
        ("10.96.0.2:80", "request by request, http"),
        ("10.96.0.3:80", "request by request, grpc"),
        ("10.0.0.2:8080", "10.0.0.2:8080 T"),
    ] {
        let dialled = OrigDstAddr::new(dialled.parse().unwrap());
        assert_eq!(words(&resolve(&state, client, dialled, OutboundMode::AllowAny, 3)), expected, "{dialled}");
    }
}

/// Where TLS is not asked for there too.
#[test]
fn on_its_own_node_a_pod_is_reached_without_a_tunnel() {
    let peer = |port: u16, mode, same_node| {
        let mut peer = disable("shop/meshed", port);
        (peer.mode, peer.same_node) = (mode, same_node);
        peer.ports.clear();
        peer
    };
    let id = || SpiffeId::new("cluster.local", "shop", "meshed").unwrap();
    let (near, tunnel) = (Transport::SameNode(id()), Transport::Tunnel(id()));
    let encrypt = Some(SameNode::Encrypt);
    let kernel = Some(SameNode::KernelIdentity);
    // (the pod's node, whether it is in the mesh, what its PeerAuthentication says, the way)
    for (node, enrolled, peers, expected) in [
        ("node", true, vec![], near.clone()),
        ("far", true, vec![], tunnel.clone()),
        ("node", false, vec![], Transport::Plaintext),
        ("node", true, vec![peer(80, Some(Mode::Strict), None)], near.clone()),
        ("node", true, vec![peer(80, Some(Mode::Strict), kernel)], near.clone()),
        ("node", true, vec![peer(80, Some(Mode::Strict), encrypt)], tunnel.clone()),
        ("node", true, vec![peer(80, None, encrypt)], tunnel.clone()),
        ("far", true, vec![peer(80, None, encrypt)], tunnel),
        // Plaintext is what it asks for, wherever its callers are.
        ("node", true, vec![peer(80, Some(Mode::Disable), encrypt)], Transport::Plaintext),
        ("node", true, vec![disable("shop/meshed", 9090)], near),
    ] {
        let meshed = Workload { node: node.into(), ..pod("meshed", &["10.0.0.2"], enrolled) };
        let world = World {
            workloads: vec![pod("client", &["10.0.0.1"], true), meshed],
            policies: PolicySet::new(peers.clone(), vec![], vec![]),
            ..World::default()
        };
        let state = MeshState::build(1, "node", &world);
        let workload = |ip: &str| state.workload_by_ip(ip.parse().unwrap()).unwrap();
        let address = ServerAddr::new("10.0.0.2:8080".parse().unwrap());
        let seen = upstream(&state, workload("10.0.0.1"), address, Some(workload("10.0.0.2"))).transport;
        assert_eq!(seen, expected, "{node} {enrolled} {peers:?}");
        let own = upstream(&state, workload("10.0.0.2"), address, Some(workload("10.0.0.2"))).transport;
        assert_eq!(own, Transport::Itself, "{peers:?}");
    }
}

#[test]
fn where_connections_go() {
    let world = World {
        workloads: vec![
            pod("client", &["10.0.0.1", "fd00::1"], true),
            pod("meshed", &["10.0.0.2", "fd00::2"], true),
            pod("plain", &["10.0.0.3"], false),
            Workload { host_network: true, ..pod("host", &["192.168.0.1"], false) },
        ],
        services: vec![
            service("one", &["10.96.0.1", "fd00:96::1"], &[("10.0.0.2", 8080)]),
            service("own", &["10.96.0.2"], &[("10.0.0.1", 8080)]),
            service("plain", &["10.96.0.3"], &[("10.0.0.3", 8080)]),
            service("none", &["10.96.0.4"], &[]),
            service("elsewhere", &["10.96.0.5"], &[("203.0.113.1", 443)]),
            service("node", &["10.96.0.6"], &[("192.168.0.1", 6443)]),
        ],
        policies: PolicySet::new(vec![disable("shop/meshed", 9090)], vec![], vec![]),
        ..World::default()
    };
    let state = MeshState::build(1, "node", &world);
    let client = state.workload_by_ip("10.0.0.1".parse().unwrap()).unwrap();
    // (dialled, what comes of it): address and T(unnel), I(tself) or P(laintext); + PassThrough; ! refused
    let table = [
        ("10.96.0.1:80", "10.0.0.2:8080 T"),
        // The cluster IP of a family that no endpoint has.
        ("[fd00:96::1]:80", "! NoEndpoint"),
        ("10.96.0.1:81", "! NoSuchPort"),
        ("10.96.0.2:80", "10.0.0.1:8080 I"),
        ("10.96.0.3:80", "10.0.0.3:8080 P"),
        ("10.96.0.4:80", "! NoEndpoint"),
        ("10.96.0.5:80", "203.0.113.1:443 P"),
        ("10.96.0.6:80", "192.168.0.1:6443 P"),
        ("10.0.0.2:7777", "10.0.0.2:7777 T"),
        ("10.0.0.2:9090", "10.0.0.2:9090 P"),
        ("[::ffff:10.0.0.2]:80", "10.0.0.2:80 T"),
        ("[fd00::2]:80", "[fd00::2]:80 T"),
        ("10.0.0.3:22", "10.0.0.3:22 P"),
        ("192.168.0.1:80", "+ 192.168.0.1:80"),
        ("203.0.113.9:80", "+ 203.0.113.9:80"),
    ];
    for (dialled, expected) in table {
        let dialled = OrigDstAddr::new(dialled.parse().unwrap());
        let seen = words(&resolve(&state, client, dialled, OutboundMode::AllowAny, 3));
        assert_eq!(seen, expected, "{dialled}");
        let strict = words(&resolve(&state, client, dialled, OutboundMode::RegistryOnly, 3));
        let expected = if expected.starts_with('+') { "! NotInRegistry" } else { expected };
        assert_eq!(strict, expected, "{dialled}");
    }
}

/// One Service of every kind, dialled at every address that it has, in both families.
#[test]
fn every_address_of_every_kind_of_service() {
    let state = MeshState::build(1, "node", &every_kind());
    let client = state.workload_by_ip("10.0.0.1".parse().unwrap()).unwrap();
    let table = [
        // internalTrafficPolicy Local: the endpoint on this node only, at the cluster IP only.
        ("10.96.0.1:80", "10.0.0.2:8080 T"),
        ("[fd00:96::1]:80", "[fd00::2]:8080 T"),
        ("192.168.0.1:30001", "10.0.0.9:8080 T"),
        ("10.96.0.2:80", "! NoLocalEndpoint"),
        ("192.168.0.1:30002", "10.0.0.9:8080 T"),
        // Node ports at every address of every node, known by its object or by its pods.
        ("10.96.0.3:80", "10.0.0.2:8080 T"),
        ("192.168.0.1:30003", "10.0.0.2:8080 T"),
        ("192.168.0.2:30003", "10.0.0.2:8080 T"),
        ("192.168.0.3:30003", "10.0.0.2:8080 T"),
        ("198.51.100.1:30003", "10.0.0.2:8080 T"),
        ("[fd00:aaaa::1]:30003", "[fd00::2]:8080 T"),
        ("[::ffff:192.168.0.1]:30003", "10.0.0.2:8080 T"),
        ("192.168.0.1:30999", "+ 192.168.0.1:30999"),
        ("10.0.0.9:30003", "10.0.0.9:30003 T"),
        ("203.0.113.9:30003", "+ 203.0.113.9:30003"),
        ("192.168.0.1:30004", "! NoEndpoint"),
        // External and load balancer IPs; other ports of these are not the Service's.
        ("198.51.100.5:80", "10.0.0.2:8080 T"),
        ("[2001:db8::5]:80", "[fd00::2]:8080 T"),
        ("198.51.100.6:80", "10.0.0.2:8080 T"),
        ("198.51.100.6:81", "+ 198.51.100.6:81"),
        ("198.51.100.7:80", "! SourceRange"),
        ("[2001:db8::7]:80", "[fd00::2]:8080 T"),
        ("198.51.100.8:80", "! NoEndpoint"),
        // Nobody takes a pod's or a cluster IP by writing it into a Service.
        ("10.0.0.9:80", "10.0.0.9:80 T"),
        ("10.96.0.3:81", "! NoSuchPort"),
        // Host ports, at the addresses where they hold.
        ("192.168.0.1:8443", "10.0.0.2:443 T"),
        ("[fd00:aaaa::1]:8443", "[fd00::2]:443 T"),
        ("192.168.0.2:8443", "+ 192.168.0.2:8443"),
        ("192.168.0.1:8444", "10.0.0.2:444 T"),
        ("[fd00:aaaa::1]:8444", "+ [fd00:aaaa::1]:8444"),
        ("203.0.113.66:8445", "+ 203.0.113.66:8445"),
        ("192.168.0.2:9000", "10.0.0.1:9000 I"),
        // A headless Service: its pods by their IPs, and what is listed outside the mesh.
        ("10.0.0.2:5432", "10.0.0.2:5432 T"),
        ("203.0.113.40:5432", "203.0.113.40:5432 P"),
        ("203.0.113.40:5433", "+ 203.0.113.40:5433"),
        // Manual slices behind a cluster IP.
        ("10.96.0.8:80", "203.0.113.41:443 P"),
    ];
    for (dialled, expected) in table {
        let dialled = OrigDstAddr::new(dialled.parse().unwrap());
        let seen = words(&resolve(&state, client, dialled, OutboundMode::AllowAny, 3));
        assert_eq!(seen, expected, "{dialled}");
        let strict = words(&resolve(&state, client, dialled, OutboundMode::RegistryOnly, 3));
        let expected = if expected.starts_with('+') { "! NotInRegistry" } else { expected };
        assert_eq!(strict, expected, "{dialled}");
    }
    let unserved: BTreeSet<String> = state.vips_without_endpoint().map(|address| address.to_string()).collect();
    let expected = [
        "10.96.0.2:80",
        "192.168.0.1:30004",
        "192.168.0.2:30004",
        "192.168.0.3:30004",
        "198.51.100.1:30004",
        "198.51.100.8:80",
        "[fd00:aaaa::1]:30001",
        "[fd00:aaaa::1]:30002",
        "[fd00:aaaa::1]:30004",
    ];
    assert_eq!(unserved, expected.map(String::from).into());
}

/// What a decision costs among few and among many Services of every address; prints, asserts nothing about time.
#[test]
fn a_decision_among_many_services() {
    for count in [10u16, 10_000] {
        let one = |index: u16| {
            let [high, low] = index.to_be_bytes();
            let external = ExternalAddresses { ips: vec![IpAddr::from([198, 18, high, low])], ..Default::default() };
            let port = PortSpec { node_port: Some(20_000 + index), ..service("", &[], &[]).ports.remove(0) };
            let cluster_ip = format!("10.96.{high}.{low}");
            let name = format!("s-{index}");
            ServiceSpec { external, ports: vec![port], ..service(&name, &[&cluster_ip], &[("10.0.0.2", 8080)]) }
        };
        let services = (0..count).map(one).collect();
        let workloads = vec![pod("meshed", &["10.0.0.2"], true)];
        let nodes = vec![node("node", &["192.168.0.1"])];
        let state = MeshState::build(1, "node", &World { workloads, services, nodes, ..World::default() });
        let client = pod("client", &["10.0.0.1"], true);
        let addresses = ["10.96.0.9:80", "198.18.0.9:80", "192.168.0.1:20009"];
        let started = std::time::Instant::now();
        for (index, address) in addresses.iter().cycle().take(3000).enumerate() {
            let route = resolve(&state, &client, dialled(address), OutboundMode::RegistryOnly, index as u64);
            assert!(matches!(route, Route::Upstreams { .. }), "{address}");
        }
        println!("{count} Services: a decision takes {:?}", started.elapsed() / 3000);
    }
}

/// sessionAffinity ClientIP: the seed has no say, clients spread, and an endpoint that goes moves its own clients only.
#[test]
fn affinity_moves_only_whom_it_must() {
    let mut backends: Vec<(String, u16)> = (2..12).map(|last| (format!("10.0.1.{last}"), 8080)).collect();
    let favourites = |backends: &[(String, u16)]| -> Vec<String> {
        let backends: Vec<(&str, u16)> = backends.iter().map(|(ip, port)| (&**ip, *port)).collect();
        let traffic = Traffic { affinity: Affinity::ClientIp, ..Traffic::default() };
        let service = ServiceSpec { traffic, ..service("s", &["10.96.0.1"], &backends) };
        let state = MeshState::build(1, "node", &World { services: vec![service], ..World::default() });
        let client = |index: usize| {
            let client = pod("client", &[&format!("10.0.{}.{}", 2 + index / 250, index % 250)], true);
            let route = |seed| words(&resolve(&state, &client, dialled("10.96.0.1:80"), OutboundMode::AllowAny, seed));
            assert_eq!(route(1), route(2));
            route(1).split(' ').next().unwrap().to_string()
        };
        (0..1000).map(client).collect()
    };
    let before = favourites(&backends);
    let mut counts = std::collections::HashMap::<&str, u32>::new();
    before.iter().for_each(|endpoint| *counts.entry(endpoint).or_default() += 1);
    assert!(counts.len() == 10 && counts.values().all(|count| (60..140).contains(count)), "{counts:?}");
    let gone = backends.remove(4);
    let after = favourites(&backends);
    for (before, after) in before.iter().zip(&after) {
        assert!(before == after || before.starts_with(&gone.0), "{before} became {after}");
    }
}

/// Each family of a client has a favourite of its own, and the next in rank stand by.
#[test]
fn affinity_names_whom_to_try_next() {
    let traffic = Traffic { affinity: Affinity::ClientIp, ..Traffic::default() };
    let backends: Vec<String> = (1..9).map(|last| format!("fd00:1::{last}")).collect();
    let backends: Vec<(&str, u16)> = backends.iter().map(|ip| (&**ip, 8080)).collect();
    let service = ServiceSpec { traffic, ..service("s", &["fd00:96::1"], &backends) };
    let state = MeshState::build(1, "node", &World { services: vec![service], ..World::default() });
    let client = pod("client", &["10.0.0.1", "fd00::1"], true);
    let route = resolve(&state, &client, dialled("[fd00:96::1]:80"), OutboundMode::AllowAny, 1);
    let Route::Upstreams { upstreams, .. } = route else { panic!("{route:?}") };
    assert_eq!(upstreams.iter().map(|upstream| upstream.address).collect::<HashSet<_>>().len(), MAX_TRIES);
}

proptest! {
    /// Only endpoints of the Service and family, each once, as many as there are up to the limit, and each tunnel to
    /// the identity of the pod that holds the address.
    #[test]
    fn only_distinct_endpoints_of_the_service(
        mine in prop::collection::btree_set(2..60u8, 0..20),
        theirs in prop::collection::btree_set(2..60u8, 0..20),
        enrolled in prop::collection::btree_set(2..60u8, 0..60),
        seed: u64,
    ) {
        let ip = |last: &u8| format!("10.0.0.{last}");
        let pods = (1..60u8).map(|last| pod(&format!("pod-{last}"), &[&ip(&last)], enrolled.contains(&last)));
        let listed = |set: &std::collections::BTreeSet<u8>| set.iter().map(|last| (ip(last), 8080)).collect::<Vec<_>>();
        let (mine_listed, theirs_listed) = (listed(&mine), listed(&theirs));
        // Every endpoint is listed twice, as in two slices.
        let twice: Vec<(&str, u16)> = mine_listed.iter().chain(&mine_listed).map(|(ip, port)| (&**ip, *port)).collect();
        let others: Vec<(&str, u16)> = theirs_listed.iter().map(|(ip, port)| (&**ip, *port)).collect();
        let world = World {
            workloads: pods.collect(),
            services: vec![service("a", &["10.96.0.1"], &twice), service("b", &["10.96.0.2"], &others)],
            ..World::default()
        };
        let state = MeshState::build(1, "node", &world);
        let client = state.workload_by_ip("10.0.0.1".parse().unwrap()).unwrap();
        let dialled = OrigDstAddr::new("10.96.0.1:80".parse().unwrap());
        match resolve(&state, client, dialled, OutboundMode::AllowAny, seed) {
            Route::Upstreams { service, upstreams } => {
                prop_assert_eq!(&*service.unwrap().name, "a");
                prop_assert_eq!(upstreams.len(), mine.len().min(MAX_TRIES));
                let distinct: HashSet<_> = upstreams.iter().map(|upstream| upstream.address).collect();
                prop_assert_eq!(distinct.len(), upstreams.len());
                for upstream in upstreams {
                    let IpAddr::V4(v4) = upstream.address.ip() else { panic!("another family") };
                    let last = v4.octets()[3];
                    prop_assert!(mine.contains(&last));
                    let expected = if enrolled.contains(&last) {
                        Transport::SameNode(SpiffeId::new("cluster.local", "shop", &format!("pod-{last}")).unwrap())
                    } else {
                        Transport::Plaintext
                    };
                    prop_assert_eq!(upstream.transport, expected);
                }
            }
            Route::Refused(refusal) => prop_assert!(mine.is_empty() && refusal == Refusal::NoEndpoint),
            Route::PassThrough(_) | Route::Requests { .. } | Route::ByServerName { .. } => prop_assert!(false, "a known Service of bytes"),
        }
    }

    /// What the kernel is told to refuse is what resolve() refuses for want of an endpoint, at every frontend.
    #[test]
    fn the_kernel_refuses_what_resolve_refuses(services in prop::collection::vec(a_service(), 0..5)) {
        let nodes = vec![node("node", &["192.168.0.1", "fd00:aaaa::1"]), node("other", &["192.168.0.2"])];
        let workloads = vec![pod("client", &["10.0.0.1", "fd00::1"], true), pod("meshed", &["10.0.0.2", "fd00::2"], true)];
        let state = MeshState::build(1, "node", &World { workloads, services, nodes, ..World::default() });
        let client = state.workload_by_ip("10.0.0.1".parse().unwrap()).unwrap();
        let unserved: HashSet<SocketAddr> = state.vips_without_endpoint().collect();
        for ip in ["10.96.0.1", "10.96.0.2", "fd00:96::1", "192.168.0.1", "192.168.0.2", "fd00:aaaa::1", "10.0.0.2"] {
            for port in [80, 81, 30001, 30002] {
                let address = SocketAddr::new(ip.parse().unwrap(), port);
                let route = resolve(&state, client, OrigDstAddr::new(address), OutboundMode::AllowAny, 1);
                let refused = matches!(route, Route::Refused(Refusal::NoEndpoint | Refusal::NoLocalEndpoint));
                prop_assert_eq!(refused, unserved.contains(&address), "{} {:?}", address, route);
            }
        }
    }

    #[test]
    fn picks_are_distinct_and_in_range(count in 0..50usize, most in 0..5usize, seed: u64) {
        let picked = balance::pick(count, most, seed);
        prop_assert_eq!(picked.len(), count.min(most));
        prop_assert!(picked.iter().all(|index| *index < count));
        prop_assert_eq!(picked.iter().collect::<HashSet<_>>().len(), picked.len());
    }
}

/// Seeds that follow each other spread evenly: no endpoint gets less than 80 % or more than 120 % of its share.
#[test]
fn picks_spread_evenly() {
    for place in 0..MAX_TRIES {
        let mut counts = [0u32; 7];
        for seed in 0..70_000 {
            counts[balance::pick(7, MAX_TRIES, seed)[place]] += 1;
        }
        assert!(counts.iter().all(|count| (8_000..12_000).contains(count)), "{counts:?}");
    }
}

// — helpers —

fn words(route: &Route) -> String {
    match route {
        Route::Upstreams { upstreams, .. } => {
            let how = |transport: &Transport| match transport {
                // Which of the two is told by `on_its_own_node_a_pod_is_reached_without_a_tunnel`.
                Transport::Tunnel(id) | Transport::SameNode(id) => {
                    assert_eq!(id.service_account(), "meshed");
                    "T"
                }
                Transport::Itself => "I",
                Transport::Plaintext => "P",
            };
            let each: Vec<String> = upstreams.iter().map(|u| format!("{} {}", u.address, how(&u.transport))).collect();
            each.join(", ")
        }
        Route::Requests { service } => format!("request by request, {}", service.name),
        Route::ByServerName { service, .. } => format!("by server name, {}", service.name),
        Route::PassThrough(address) => format!("+ {address}"),
        Route::Refused(refusal) => format!("! {refusal:?}"),
    }
}

fn pod(name: &str, ips: &[&str], enrolled: bool) -> Workload {
    Workload {
        uid: format!("uid-{name}").into(),
        name: name.into(),
        namespace: "shop".into(),
        node: "node".into(),
        identity: SpiffeId::new("cluster.local", "shop", name).unwrap(),
        ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        labels: BTreeMap::from([("name".to_string(), name.to_string())]),
        named_ports: BTreeMap::new(),
        host_ips: vec![],
        host_ports: vec![],
        exclusions: Exclusions::default(),
        probe_ports: Default::default(),
        forwards: false,
        enrolled,
        refusal: None,
        host_network: false,
        ready: true,
        terminating: false,
        created: None,
    }
}

fn service(name: &str, cluster_ips: &[&str], backends: &[(&str, u16)]) -> ServiceSpec {
    let backend = |(ip, port): &(&str, u16)| Backend::ready(ip.parse().unwrap(), *port);
    ServiceSpec {
        namespace: "shop".into(),
        name: name.into(),
        cluster_ips: cluster_ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        ports: vec![PortSpec {
            name: "".into(),
            port: 80,
            target: TargetPort::Number(8080),
            node_port: None,
            protocol: AppProtocol::Bytes,
        }],
        backends: Backends::Listed(backends.iter().map(backend).collect()),
        ..ServiceSpec::default()
    }
}

fn disable(id: &str, port: u16) -> PeerAuthentication {
    let requirement =
        crate::policy::Requirement { key: "name".into(), operator: crate::policy::Operator::In(vec!["meshed".into()]) };
    PeerAuthentication {
        meta: PolicyMeta { id: id.into(), created: None },
        targets: vec![Target::Pods {
            namespace: Some("shop".into()),
            selector: crate::policy::Selector { requirements: vec![requirement] },
        }],
        mode: None,
        ports: BTreeMap::from([(port, Mode::Disable)]),
        same_node: None,
    }
}

/// A world with a Service of every kind; `node` is 192.168.0.1.
fn every_kind() -> World {
    let host_port = |ip: Option<&str>, port, target| HostPort { ip: ip.map(|ip| ip.parse().unwrap()), port, target };
    let meshed = Workload {
        host_ips: ips(&["192.168.0.1", "fd00:aaaa::1"]),
        host_ports: vec![
            host_port(None, 8443, 443),
            host_port(Some("0.0.0.0"), 8444, 444),
            // A pod's word for an address that its node does not have.
            host_port(Some("203.0.113.66"), 8445, 445),
            // A node port of the same number comes first.
            host_port(None, 30003, 3),
        ],
        ..pod("meshed", &["10.0.0.2", "fd00::2"], true)
    };
    // It lost its IP to `far`, so nothing leads to it.
    let old = Workload {
        terminating: true,
        host_ips: ips(&["192.168.0.1"]),
        host_ports: vec![host_port(None, 30999, 1)],
        ..pod("old", &["10.0.0.9"], false)
    };
    let client = Workload {
        host_ips: ips(&["192.168.0.2"]),
        host_ports: vec![host_port(None, 9000, 9000)],
        ..pod("client", &["10.0.0.1", "fd00::1"], true)
    };
    let workloads = vec![
        client,
        meshed,
        old,
        Workload {
            identity: SpiffeId::new("cluster.local", "shop", "meshed").unwrap(),
            ..pod("far", &["10.0.0.9"], true)
        },
        Workload { host_network: true, node: "third".into(), ..pod("host", &["192.168.0.3"], false) },
    ];
    let local = Traffic { internal: InternalTraffic::Local, ..Traffic::default() };
    let on = |node: &str, ip: &str| Backend { node: node.into(), ..Backend::ready(ip.parse().unwrap(), 8080) };
    let behind =
        |backends: Vec<Backend>, spec: ServiceSpec| ServiceSpec { backends: Backends::Listed(backends), ..spec };
    let node_port = |number, spec: ServiceSpec| {
        let ports = spec.ports.into_iter().map(|port| PortSpec { node_port: Some(number), ..port }).collect();
        ServiceSpec { ports, ..spec }
    };
    let external = |ips_: &[&str], balanced: &[&str], ranges: &[&str]| ExternalAddresses {
        ips: ips(ips_),
        load_balancer_ips: ips(balanced),
        source_ranges: ranges.iter().map(|range| range.parse().unwrap()).collect(),
    };
    let both = [("10.0.0.2", 8080), ("fd00::2", 8080)];
    let services = vec![
        ServiceSpec {
            traffic: local,
            ..behind(
                vec![on("node", "10.0.0.2"), on("node", "fd00::2"), on("far", "10.0.0.9")],
                service("local", &["10.96.0.1", "fd00:96::1"], &[]),
            )
        },
        node_port(
            30002,
            ServiceSpec { traffic: local, ..behind(vec![on("far", "10.0.0.9")], service("away", &["10.96.0.2"], &[])) },
        ),
        node_port(30001, behind(vec![on("far", "10.0.0.9")], service("far", &["10.96.0.22"], &[]))),
        node_port(30003, service("node-port", &["10.96.0.3"], &both)),
        node_port(30004, service("unserved", &[], &[])),
        ServiceSpec {
            external: external(&["198.51.100.5", "2001:db8::5", "10.0.0.9", "10.96.0.3"], &[], &[]),
            ..service("external", &[], &both)
        },
        ServiceSpec { external: external(&[], &["198.51.100.6"], &["10.0.0.0/8"]), ..service("balanced", &[], &both) },
        ServiceSpec {
            external: external(&[], &["198.51.100.7", "2001:db8::7"], &["172.16.0.0/12"]),
            ..service("fenced", &[], &both)
        },
        ServiceSpec { external: external(&["198.51.100.8"], &[], &[]), ..service("unserved-external", &[], &[]) },
        service("headless", &[], &[("10.0.0.2", 5432), ("203.0.113.40", 5432)]),
        service("manual", &["10.96.0.8"], &[("203.0.113.41", 443)]),
    ];
    let nodes = vec![node("node", &["192.168.0.1", "198.51.100.1", "fd00:aaaa::1"])];
    World { workloads, services, nodes, ..World::default() }
}

fn a_service() -> impl Strategy<Value = ServiceSpec> {
    let some_of = |all: &[&'static str]| prop::sample::subsequence(all.to_vec(), 0..=all.len());
    let cluster_ips = some_of(&["10.96.0.1", "10.96.0.2", "fd00:96::1"]);
    let external = some_of(&["10.96.0.2", "192.168.0.1", "10.0.0.2"]);
    let backends = some_of(&["10.0.0.2", "fd00::2"]);
    let ports = prop::sample::subsequence(vec![80u16, 81, 30001], 0..3);
    let node_port = prop::option::of(prop::sample::select(vec![30001u16, 30002]));
    let internal = prop::sample::select(vec![InternalTraffic::Cluster, InternalTraffic::Local]);
    (cluster_ips, external, backends, ports, node_port, internal).prop_map(
        |(cluster_ips, external, backends, ports, node_port, internal)| {
            let port = |port| PortSpec {
                name: "".into(),
                port,
                target: TargetPort::Number(1),
                node_port,
                protocol: AppProtocol::Bytes,
            };
            let backends: Vec<(&str, u16)> = backends.into_iter().map(|ip| (ip, 8080)).collect();
            ServiceSpec {
                external: ExternalAddresses { ips: ips(&external), ..ExternalAddresses::default() },
                ports: ports.into_iter().map(port).collect(),
                traffic: Traffic { internal, ..Traffic::default() },
                ..service("any", &cluster_ips, &backends)
            }
        },
    )
}

fn node(name: &str, addresses: &[&str]) -> Node {
    Node { name: name.into(), ips: ips(addresses), zone: "".into(), kubelet_port: None }
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|ip| ip.parse().unwrap()).collect()
}

fn dialled(address: &str) -> OrigDstAddr {
    OrigDstAddr::new(address.parse().unwrap())
}
