//! Tables, then properties.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::policy::{Mode, PeerAuthentication, PolicyMeta, PolicySet, Target};
use crate::state::{Backend, Backends, PortSpec, ServiceSpec, TargetPort, World};

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
                        Transport::Tunnel(SpiffeId::new("cluster.local", "shop", &format!("pod-{last}")).unwrap())
                    } else {
                        Transport::Plaintext
                    };
                    prop_assert_eq!(upstream.transport, expected);
                }
            }
            Route::Refused(refusal) => prop_assert!(mine.is_empty() && refusal == Refusal::NoEndpoint),
            Route::PassThrough(_) => prop_assert!(false, "a known Service passed through"),
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
                Transport::Tunnel(id) => {
                    assert_eq!(id.service_account(), "meshed");
                    "T"
                }
                Transport::Itself => "I",
                Transport::Plaintext => "P",
            };
            let each: Vec<String> = upstreams.iter().map(|u| format!("{} {}", u.address, how(&u.transport))).collect();
            each.join(", ")
        }
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
        ports: vec![PortSpec { name: "".into(), port: 80, target: TargetPort::Number(8080), node_port: None }],
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
    }
}
