//! What is kept says what a world that nobody has seen would say, and little of it is worked out again.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::policy::{Action, Mode, SameNode};
use crate::proxy::straight::tests::{peer, pod, policy, service};
use crate::resilience::policy::{Settings, Target, TargetKind, Timeouts, TrafficPolicy};
use crate::routes::{self, BackendRef, Parent, Route, RouteKind, Rules};
use crate::state::{Affinity, Backend, Backends, Engine, Item, Key, Kind, RouteSpec, ServiceSpec, Traffic};

fn key(kind: Kind, name: &str) -> Key {
    Key { kind, namespace: "shop".into(), name: name.into() }
}

fn pod_item(pod: Workload) -> Item {
    Item::Pod { workload: pod.into(), mesh: Some(true) }
}

fn many(engine: &mut Engine, pods: usize, services: usize) {
    for number in 0..pods {
        let name = format!("pod-{number}");
        engine.upsert(&key(Kind::Pod, &name), pod_item(pod(&name, &address(number), "node", true)));
    }
    for number in 0..services {
        let backends: Vec<(String, u16)> = (0..5).map(|each| (address((number * 5 + each) % pods), 8080)).collect();
        let backends: Vec<(&str, u16)> = backends.iter().map(|(ip, port)| (&**ip, *port)).collect();
        let spec = service(
            &format!("s-{number}"),
            &format!("10.96.{}.{}", number / 250, number % 250),
            &backends,
            AppProtocol::Bytes,
        );
        engine.upsert(&key(Kind::Service, &spec.name.clone()), Item::Service(spec.into()));
    }
}

fn address(number: usize) -> String {
    format!("10.1.{}.{}", number / 250, number % 250 + 1)
}

/// A node of a thousand pods and two hundred Services: what changes elsewhere costs nothing, a pod its own answers, a Service
/// those about it.
#[test]
fn what_did_not_change_is_not_worked_out_again() {
    const PODS: usize = 1000;
    let mut engine = Engine::new("node");
    many(&mut engine, PODS, 200);
    let mut memory = Memory::default();
    let mut cost = |engine: &mut Engine| {
        let before = (memory.worked_out, memory.paths.clone());
        let paths = memory.paths(&engine.snapshot(), &|_| true);
        (memory.worked_out - before.0, Arc::ptr_eq(&before.1, &paths))
    };
    let destinations = MAX_PAIRS / PODS;
    assert_eq!(cost(&mut engine), ((destinations * PODS) as u64, false));
    assert_eq!(cost(&mut engine), (0, true));
    engine.upsert(&key(Kind::Pod, "far"), pod_item(pod("far", "10.2.0.1", "elsewhere", true)));
    let far = service("far", "10.97.0.1", &[("10.2.0.1", 80)], AppProtocol::Bytes);
    engine.upsert(&key(Kind::Service, "far"), Item::Service(far.into()));
    assert_eq!(cost(&mut engine), (0, true), "of another node");
    engine.upsert(&key(Kind::Pod, "new"), pod_item(pod("new", "10.1.9.9", "node", true)));
    assert_eq!(cost(&mut engine), (destinations as u64, false), "a pod that comes");
    engine.delete(&key(Kind::Pod, "new"));
    assert_eq!(cost(&mut engine), (0, false), "and goes");
    let first = service("s-0", "10.96.0.0", &[(&address(7), 8080)], AppProtocol::Bytes);
    engine.upsert(&key(Kind::Service, "s-0"), Item::Service(first.into()));
    assert_eq!(cost(&mut engine), (PODS as u64, false), "a Service");
}

/// Leads connections to `one` elsewhere.
fn route() -> RouteSpec {
    let target = BackendRef::Service { namespace: "shop".into(), name: "two".into(), port: 80 };
    let parent = Parent { namespace: "shop".into(), name: "one".into(), port: None, section: None };
    let route = Route {
        kind: RouteKind::Tcp,
        namespace: "shop".into(),
        name: "r".into(),
        created: 0,
        parents: vec![parent],
        rules: Rules::Connections(vec![routes::Backend { target, weight: 1, filters: vec![] }]),
    };
    RouteSpec { route: route.into(), generation: None, refused: None, refused_rules: vec![], wrong_refs: vec![] }
}

/// A step in the life of the small world, by number.
fn step(engine: &mut Engine, number: u8) {
    let bytes = AppProtocol::Bytes;
    let near = || pod("near", "10.0.0.2", "node", true);
    let labelled = Workload { labels: BTreeMap::from([("a".to_string(), "b".to_string())]), ..near() };
    let one =
        |backends: &[(&str, u16)], protocol| Item::Service(service("one", "10.96.0.1", backends, protocol).into());
    let sticky = ServiceSpec {
        traffic: Traffic { affinity: Affinity::ClientIp, ..Traffic::default() },
        ..service("one", "10.96.0.1", &[("10.0.0.2", 8080)], bytes)
    };
    let listed = |ip: &str| Backends::Listed(vec![Backend::ready(ip.parse().unwrap(), 8080)]);
    let limited = TrafficPolicy {
        namespace: "shop".into(),
        name: "t".into(),
        created: None,
        targets: vec![Target { kind: TargetKind::Service, name: "one".into() }],
        settings: Settings { timeouts: Some(Timeouts::default()), ..Settings::default() }.into(),
    };
    let authorization = |action, account: &str| Item::AuthorizationPolicy(policy(action, account, &[], vec![]).into());
    let peers = |mode, same_node| Item::PeerAuthentication(peer(mode, same_node).into());
    let (kind, name, item) = match number {
        0 => (Kind::Pod, "near", Some(pod_item(near()))),
        1 => (Kind::Pod, "near", Some(pod_item(labelled))),
        2 => (Kind::Pod, "near", None),
        3 => (Kind::Pod, "other", Some(pod_item(pod("other", "10.0.0.3", "node", true)))),
        // Under the address of another.
        4 => (Kind::Pod, "other", Some(pod_item(pod("other", "10.0.0.2", "node", true)))),
        5 => (Kind::Pod, "other", Some(pod_item(pod("other", "10.0.0.3", "elsewhere", true)))),
        6 => (Kind::Pod, "client", Some(pod_item(pod("client", "10.0.0.1", "node", true)))),
        7 => (Kind::Pod, "client", None),
        8 => (Kind::Service, "one", Some(one(&[("10.0.0.2", 8080)], bytes))),
        9 => (Kind::Service, "one", Some(one(&[("10.0.0.2", 8080), ("10.0.0.3", 8080)], bytes))),
        10 => (Kind::Service, "one", Some(one(&[("10.0.0.2", 8080)], AppProtocol::Http1))),
        11 => (Kind::Service, "one", Some(Item::Service(sticky.into()))),
        12 => (Kind::Service, "one", None),
        // The same cluster IP.
        13 => {
            let spec = ServiceSpec { backends: listed("10.0.0.3"), ..service("two", "10.96.0.1", &[], bytes) };
            (Kind::Service, "two", Some(Item::Service(spec.into())))
        }
        14 => (Kind::Service, "two", None),
        15 => (Kind::AuthorizationPolicy, "p", Some(authorization(Action::Allow, "client"))),
        16 => (Kind::AuthorizationPolicy, "p", Some(authorization(Action::Deny, "client"))),
        17 => (Kind::AuthorizationPolicy, "p", Some(authorization(Action::Audit, "client"))),
        18 => (Kind::AuthorizationPolicy, "p", None),
        19 => (Kind::PeerAuthentication, "peer", Some(peers(None, Some(SameNode::Encrypt)))),
        20 => (Kind::PeerAuthentication, "peer", Some(peers(Some(Mode::Disable), None))),
        21 => (Kind::PeerAuthentication, "peer", None),
        22 => (Kind::TcpRoute, "r", Some(Item::Route(route().into()))),
        23 => (Kind::TcpRoute, "r", None),
        24 => (Kind::TrafficPolicy, "t", Some(Item::TrafficPolicy(limited.into()))),
        _ => (Kind::TrafficPolicy, "t", None),
    };
    match item {
        Some(item) => engine.upsert(&key(kind, name), item),
        None => engine.delete(&key(kind, name)),
    }
}

fn words(paths: &[StraightPath]) -> BTreeSet<String> {
    paths.iter().map(|path| format!("{path:?}")).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever changes, in whatever order, and whichever pods are held.
    #[test]
    fn what_is_kept_is_what_would_be_worked_out(steps in prop::collection::vec((0u8..26, 0u8..8), 1..40)) {
        let mut engine = Engine::new("node");
        for number in [0, 3, 6, 8] {
            step(&mut engine, number);
        }
        let mut memory = Memory::default();
        for (number, unheld) in steps {
            step(&mut engine, number);
            let state = engine.snapshot();
            let is_held = |uid: &str| ["client", "near", "other"].iter().position(|name| *name == uid) != Some(usize::from(unheld));
            let (kept, fresh) = (memory.paths(&state, &is_held), Memory::default().paths(&state, &is_held));
            prop_assert_eq!(words(&kept), words(&fresh), "after {}", number);
        }
    }
}
