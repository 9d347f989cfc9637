//! Sequences of changes: the snapshot that comes of them, step by step, is the one that comes of the world at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::net::IpAddr;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::*;
use crate::policy::{
    Action, AuthorizationPolicy, Mode, Operator, PeerAuthentication, PolicyMeta, Requirement, Rule, SameNode, Selector,
    Source, Target, Unreadable, Weight,
};
use crate::routes::{self, BackendRef, Parent, Route, RouteKind, Rules, TlsRule};
use crate::spiffe::SpiffeId;

/// The node that sees the world.
const HERE: &str = "n1";

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    /// The important one. Each step is one snapshot; compared is everything that a reader can see, with an engine that
    /// got the same objects at once and in the opposite order.
    #[test]
    fn step_by_step_is_as_at_once(steps in prop::collection::vec(prop::collection::vec(a_change(), 1..4), 1..20)) {
        let mut engine = Engine::new(HERE);
        let mut world = Objects::default();
        let mut before = engine.snapshot();
        for step in steps {
            for change in &step {
                world.take(change);
                take(&mut engine, change);
            }
            let state = engine.snapshot();
            let expected = world.at_once();
            let (seen, expected) = (all_of(&state), all_of(&expected));
            for (what, expected) in &expected {
                prop_assert_eq!(seen.get(what), Some(expected), "{} after {:?}", what, step);
            }
            prop_assert_eq!(seen.len(), expected.len());
            unchanged_is_the_same(&before, &state)?;
            before = state;
        }
    }
}

/// What is equal in two snapshots is one object, and the stamps tell what is not.
fn unchanged_is_the_same(before: &MeshState, after: &MeshState) -> Result<(), TestCaseError> {
    prop_assert_eq!(after.version, before.version + 1);
    same(&before.workloads, &after.workloads)?;
    same(&before.services, &after.services)?;
    same(&before.peer_modes, &after.peer_modes)?;
    same(&before.local_policies, &after.local_policies)?;
    same(&before.workloads_by_ip, &after.workloads_by_ip)?;
    same(&before.routes, &after.routes)?;
    same(&before.attached, &after.attached)?;
    same(&before.grants, &after.grants)?;
    let (old, new) = (all_of(before), all_of(after));
    let moved = |what: &str| old.get(what) != new.get(what);
    prop_assert!(!moved("unserved") || after.unserved_stamp() != before.unserved_stamp());
    prop_assert_eq!(moved("local policies"), after.local_policies_stamp() != before.local_policies_stamp());
    prop_assert_eq!(moved("local pods"), after.local_workloads_stamp() != before.local_workloads_stamp());
    Ok(())
}

fn same<K, V>(before: &cow::CowMap<K, Arc<V>>, after: &cow::CowMap<K, Arc<V>>) -> Result<(), TestCaseError>
where
    K: std::hash::Hash + Eq + Clone + Debug,
    V: PartialEq + Debug,
{
    for (key, new) in after.iter() {
        if let Some(old) = before.get(key).filter(|old| *old == new) {
            prop_assert!(Arc::ptr_eq(old, new), "{:?} was copied", key);
        }
    }
    Ok(())
}

/// A pod that changes leaves every other object as it is, and the maps share what they share.
#[test]
fn one_change_touches_what_depends_on_it() {
    let mut engine = Engine::new(HERE);
    let key = |index: u32| Key { kind: Kind::Pod, namespace: "a".into(), name: format!("p{index}") };
    let pod = |index: u32, ready| Pod { ready, ..Pod::new(&key(index).name, &format!("10.1.0.{index}"), index % 10) };
    for index in 0..100 {
        engine.upsert(&key(index), pod(index, true).item());
    }
    for index in 0..10 {
        let (key, item) = selecting("a", &format!("s{index}"), &format!("10.96.0.{index}"), index);
        engine.upsert(&key, item);
    }
    let before = engine.snapshot();
    engine.upsert(&key(7), pod(7, false).item());
    let after = engine.snapshot();
    let names = |changed: Vec<String>| changed.join(" ");
    assert_eq!(names(changed(&before.workloads, &after.workloads)), "p7");
    assert_eq!(names(changed(&before.services, &after.services)), "s7");
    assert_eq!(after.unserved_stamp(), before.unserved_stamp());
    assert_eq!(after.local_policies_stamp(), before.local_policies_stamp());
    assert_ne!(after.local_workloads_stamp(), before.local_workloads_stamp());
    let untouched = engine.snapshot();
    assert_eq!(changed(&after.workloads, &untouched.workloads), [""; 0]);
    assert_eq!(changed(&after.services, &untouched.services), [""; 0]);
    assert_eq!(untouched.local_workloads_stamp(), after.local_workloads_stamp());
}

fn changed<V>(before: &cow::CowMap<object::Name, Arc<V>>, after: &cow::CowMap<object::Name, Arc<V>>) -> Vec<String> {
    let other = after.iter().filter(|(name, new)| before.get(name).is_none_or(|old| !Arc::ptr_eq(old, new)));
    let names: BTreeSet<String> = other.map(|(name, _)| name.name.to_string()).collect();
    names.into_iter().collect()
}

// — everything that can be seen of a snapshot —

fn all_of(state: &MeshState) -> BTreeMap<&'static str, BTreeMap<String, String>> {
    let frontends = &state.frontends;
    let local: Vec<_> = state.local_workloads().map(|workload| (workload.uid.clone(), workload.clone())).collect();
    let unserved: BTreeSet<_> = state.vips_without_endpoint().collect();
    BTreeMap::from([
        ("pods", content(state.workloads.iter())),
        ("pods by IP", content(state.workloads_by_ip.iter())),
        ("local pods", content(local.iter().map(|(name, workload)| (name, workload)))),
        ("Services", content(state.services.iter())),
        ("Services by IP", content(state.services_by_ip.iter())),
        ("frontends", frontends.content()),
        ("unserved", content(unserved.iter().map(|address| (address, &())))),
        ("routes", content(state.routes.iter())),
        ("attached", content(state.attached.iter())),
        ("grants", content(state.grants.iter())),
        ("conditions", content(state.route_status().iter().map(|status| (status, &())))),
        ("policies", BTreeMap::from([(String::new(), serde_json::to_string(&*state.policies).unwrap())])),
        ("peer modes", content(state.peer_modes.iter())),
        ("local policies", content(state.local_policies.iter())),
    ])
}

fn content<'a, K: Debug + 'a, V: Debug + 'a>(
    entries: impl Iterator<Item = (&'a K, &'a V)>,
) -> BTreeMap<String, String> {
    entries.map(|(key, value)| (format!("{key:?}"), format!("{value:?}"))).collect()
}

// — changes —

#[derive(Clone, Debug)]
enum Change {
    Upsert(Key, Item),
    Delete(Key),
    Refuse(Vec<Unreadable>),
}

fn take(engine: &mut Engine, change: &Change) {
    match change.clone() {
        Change::Upsert(key, item) => engine.upsert(&key, item),
        Change::Delete(key) => engine.delete(&key),
        Change::Refuse(unreadable) => engine.refuse(unreadable),
    }
}

/// The objects that are there.
#[derive(Default)]
struct Objects {
    items: BTreeMap<Key, Item>,
    unreadable: Vec<Unreadable>,
}

impl Objects {
    fn take(&mut self, change: &Change) {
        match change.clone() {
            Change::Upsert(key, item) => drop(self.items.insert(key, item)),
            Change::Delete(key) => drop(self.items.remove(&key)),
            Change::Refuse(unreadable) => self.unreadable = unreadable,
        }
    }

    fn at_once(&self) -> MeshState {
        let mut engine = Engine::new(HERE);
        engine.refuse(self.unreadable.clone());
        for (key, item) in self.items.iter().rev() {
            engine.upsert(key, item.clone());
        }
        engine.snapshot()
    }
}

fn a_change() -> impl Strategy<Value = Change> {
    prop_oneof![
        6 => a_pod().prop_map(|(key, item)| Change::Upsert(key, item)),
        4 => a_service().prop_map(|(key, item)| Change::Upsert(key, item)),
        3 => a_slice().prop_map(|(key, item)| Change::Upsert(key, item)),
        2 => a_namespace().prop_map(|(key, item)| Change::Upsert(key, item)),
        2 => a_node().prop_map(|(key, item)| Change::Upsert(key, item)),
        4 => a_route().prop_map(|(key, item)| Change::Upsert(key, item)),
        2 => a_grant().prop_map(|(key, item)| Change::Upsert(key, item)),
        2 => a_peer_authentication().prop_map(|(key, item)| Change::Upsert(key, item)),
        2 => an_authorization_policy().prop_map(|(key, item)| Change::Upsert(key, item)),
        1 => prop::collection::vec(an_unreadable(), 0..3).prop_map(Change::Refuse),
        6 => a_key().prop_map(Change::Delete),
    ]
}

fn a_key() -> impl Strategy<Value = Key> {
    prop_oneof![
        4 => a_pod().prop_map(|(key, _)| key),
        3 => a_service().prop_map(|(key, _)| key),
        2 => a_slice().prop_map(|(key, _)| key),
        1 => a_namespace().prop_map(|(key, _)| key),
        1 => a_node().prop_map(|(key, _)| key),
        2 => a_route().prop_map(|(key, _)| key),
        1 => a_grant().prop_map(|(key, _)| key),
        1 => a_peer_authentication().prop_map(|(key, _)| key),
        1 => an_authorization_policy().prop_map(|(key, _)| key),
    ]
}

// — objects, from few names and addresses, so that they meet —

/// A pod in short.
struct Pod {
    name: String,
    ips: Vec<IpAddr>,
    labels: BTreeMap<String, String>,
    ready: bool,
}

impl Pod {
    fn new(name: &str, ip: &str, app: u32) -> Self {
        let labels = BTreeMap::from([("app".to_string(), app.to_string())]);
        Self { name: name.into(), ips: vec![ip.parse().unwrap()], labels, ready: true }
    }

    fn item(self) -> Item {
        Item::Pod { workload: Arc::new(self.workload()), mesh: Some(true) }
    }

    fn workload(self) -> Workload {
        Workload {
            uid: format!("uid-{}", self.name).into(),
            name: self.name.as_str().into(),
            namespace: "a".into(),
            node: HERE.into(),
            identity: SpiffeId::new("cluster.local", "a", "sa").unwrap(),
            ips: self.ips,
            labels: self.labels,
            named_ports: BTreeMap::from([("http".to_string(), 8080)]),
            host_ips: vec![],
            host_ports: vec![],
            exclusions: Exclusions::default(),
            probe_ports: Default::default(),
            forwards: false,
            enrolled: true,
            refusal: None,
            host_network: false,
            ready: self.ready,
            terminating: false,
            created: None,
        }
    }
}

fn selecting(namespace: &str, name: &str, vip: &str, app: u32) -> (Key, Item) {
    let key = Key { kind: Kind::Service, namespace: namespace.into(), name: name.into() };
    let spec = ServiceSpec {
        namespace: namespace.into(),
        name: name.into(),
        cluster_ips: vec![vip.parse().unwrap()],
        selector: Some(BTreeMap::from([("app".to_string(), app.to_string())])),
        ports: vec![PortSpec {
            name: "".into(),
            port: 80,
            target: TargetPort::Number(8080),
            node_port: None,
            protocol: AppProtocol::Bytes,
        }],
        ..ServiceSpec::default()
    };
    (key, Item::Service(Arc::new(spec)))
}

fn ips(from: &'static [&'static str], most: usize) -> impl Strategy<Value = Vec<IpAddr>> {
    let all: Vec<IpAddr> = from.iter().map(|text| text.parse().unwrap()).collect();
    subsequence(all, 0..=most)
}

const POD_IPS: &[&str] = &["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1", "fd00::2"];
/// One that is a pod's too, and one that is a cluster IP.
const NODE_IPS: &[&str] = &["192.168.0.1", "192.168.0.2", "fd00:aaaa::1", "10.0.0.3", "10.96.0.2"];
const CLUSTER_IPS: &[&str] = &["10.96.0.1", "10.96.0.2", "fd00:96::1"];
/// One that is a node's, one that is a pod's, one that is a cluster IP.
const EXTERNAL_IPS: &[&str] = &["198.51.100.1", "192.168.0.1", "10.0.0.2", "10.96.0.1"];

fn a_word(words: &'static [&'static str]) -> impl Strategy<Value = String> {
    select(words).prop_map(str::to_string)
}

fn named(kind: Kind, namespace: String, name: String) -> Key {
    Key { kind, namespace, name }
}

fn some_labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    let pairs = [("app", "x"), ("app", "y"), ("tier", "t"), ("tier", "u")];
    subsequence(pairs.to_vec(), 0..=3).prop_map(|pairs| pairs.into_iter().map(|(k, v)| (k.into(), v.into())).collect())
}

fn a_pod() -> impl Strategy<Value = (Key, Item)> {
    let names = (a_word(&["a", "b"]), a_word(&["p1", "p2", "p3"]), any::<bool>());
    let places = (a_word(&[HERE, "n2", ""]), ips(POD_IPS, 2), ips(NODE_IPS, 2), some_labels());
    let flags = (prop::bool::weighted(0.2), any::<bool>(), prop::bool::weighted(0.2), any::<Option<bool>>());
    let host_port = (select(vec![None, Some("0.0.0.0"), Some("192.168.0.1")]), 443..445u16);
    let ports = (prop::option::of(host_port), select(vec![None, Some(80), Some(81)]), 0..3i64);
    (names, places, flags, ports).prop_map(|((namespace, name, reborn), place, flags, (host_port, http, created))| {
        let (node, ips, host_ips, labels) = place;
        let (host_network, ready, terminating, mesh) = flags;
        let host_port =
            host_port.map(|(ip, port)| HostPort { ip: ip.map(|ip: &str| ip.parse().unwrap()), port, target: port });
        let workload = Workload {
            uid: format!("uid-{namespace}-{name}-{reborn}").into(),
            name: name.as_str().into(),
            namespace: namespace.as_str().into(),
            node: node.into(),
            identity: SpiffeId::new("cluster.local", &namespace, "sa").unwrap(),
            ips: if ips.is_empty() { vec!["10.0.0.1".parse().unwrap()] } else { ips },
            labels,
            named_ports: http.into_iter().map(|port| ("http".to_string(), port)).collect(),
            host_ips,
            host_ports: host_port.into_iter().filter(|_| !host_network).collect(),
            exclusions: Exclusions::default(),
            probe_ports: Default::default(),
            forwards: false,
            enrolled: !host_network,
            refusal: host_network.then_some("hostNetwork"),
            host_network,
            ready,
            terminating,
            created: Some(created).filter(|created| *created > 0),
        };
        (named(Kind::Pod, namespace, name), Item::Pod { workload: workload.into(), mesh })
    })
}

fn a_service() -> impl Strategy<Value = (Key, Item)> {
    let names = (a_word(&["a", "b"]), a_word(&["s1", "s2", "s3"]));
    let addresses = (ips(CLUSTER_IPS, 2), ips(EXTERNAL_IPS, 2), ips(EXTERNAL_IPS, 1));
    let distribution = select(vec![Distribution::Even, Distribution::SameZone, Distribution::SameNode]);
    let traffic = (any::<bool>(), distribution, any::<bool>());
    let target = select(vec![TargetPort::Number(8080), TargetPort::Name("http".into())]);
    let port = (80..82u16, a_word(&["", "web"]), target, select(vec![None, Some(30_001), Some(30_002)]));
    let ports = prop::collection::vec(port, 1..3);
    let selector = prop::option::of(some_labels());
    (names, addresses, traffic, ports, selector).prop_map(|((namespace, name), addresses, traffic, ports, selector)| {
        let (cluster_ips, ips, load_balancer_ips) = addresses;
        let (local, distribution, publish_not_ready) = traffic;
        let port = |(port, name, target, node_port): (u16, String, TargetPort, Option<u16>)| PortSpec {
            name: name.into(),
            port,
            target,
            node_port,
            protocol: AppProtocol::of(None, ""),
        };
        let spec = ServiceSpec {
            namespace: namespace.as_str().into(),
            name: name.as_str().into(),
            cluster_ips,
            external: ExternalAddresses { ips, load_balancer_ips, source_ranges: vec![] },
            selector,
            ports: ports.into_iter().map(port).collect(),
            traffic: Traffic {
                internal: if local { InternalTraffic::Local } else { InternalTraffic::Cluster },
                distribution,
                affinity: Affinity::None,
                publish_not_ready,
            },
            backends: Backends::Selected,
        };
        (named(Kind::Service, namespace, name), Item::Service(spec.into()))
    })
}

fn a_slice() -> impl Strategy<Value = (Key, Item)> {
    let address = select(vec!["10.0.0.1", "10.0.0.2", "fd00::1", "203.0.113.1", "192.168.0.1"]);
    let backend =
        (address, a_word(&["", "web"]), any::<bool>(), any::<bool>(), a_word(&["", HERE, "n2"]), any::<bool>());
    let backends = prop::collection::vec(backend, 0..4);
    let names = (a_word(&["a", "b"]), a_word(&["l1", "l2"]), a_word(&["s1", "s2", "s3"]));
    (names, backends).prop_map(|((namespace, name, service), backends)| {
        let backends = backends.into_iter().map(|(ip, port_name, ready, serving, node, hinted)| Backend {
            port_name: port_name.into(),
            ready,
            serving,
            terminating: !ready,
            node: node.as_str().into(),
            hints: Hints { zones: if hinted { vec!["z1".into()] } else { vec![] }, nodes: vec![] },
            ..Backend::ready(ip.parse().unwrap(), 8080)
        });
        let item = Item::EndpointSlice { service: service.into(), backends: backends.collect() };
        (named(Kind::EndpointSlice, namespace, name), item)
    })
}

fn a_namespace() -> impl Strategy<Value = (Key, Item)> {
    (a_word(&["a", "b"]), any::<Option<bool>>())
        .prop_map(|(name, mesh)| (named(Kind::Namespace, String::new(), name), Item::Namespace { mesh }))
}

fn a_node() -> impl Strategy<Value = (Key, Item)> {
    (a_word(&[HERE, "n2"]), ips(NODE_IPS, 2), a_word(&["", "z1", "z2"])).prop_map(|(name, ips, zone)| {
        let node = Node { name: name.as_str().into(), ips, zone: zone.into(), kubelet_port: None };
        (named(Kind::Node, String::new(), name), Item::Node(node.into()))
    })
}

fn a_route() -> impl Strategy<Value = (Key, Item)> {
    let names = (a_word(&["a", "b", "c"]), a_word(&["r1", "r2"]), 0..3i64);
    let kind = select(vec![RouteKind::Http, RouteKind::Grpc, RouteKind::Tcp, RouteKind::Tls]);
    let parent = (
        a_word(&["a", "b"]),
        a_word(&["s1", "s2", "s3"]),
        prop::option::of(80..83u16),
        prop::option::of(a_word(&["web", "other"])),
    );
    let parents = prop::collection::vec(parent, 1..3);
    let backend = (a_word(&["a", "b"]), a_word(&["s1", "s2", "s3", "none"]), 80..82u16);
    let backends = prop::collection::vec(backend, 0..3);
    (names, kind, parents, backends, any::<bool>()).prop_map(
        |((namespace, name, created), kind, parents, backends, bad)| {
            let parents = parents.into_iter().map(|(namespace, name, port, section)| Parent {
                namespace: namespace.into(),
                name: name.into(),
                port,
                section: section.map(Arc::from),
            });
            let backends: Vec<_> = backends
                .into_iter()
                .map(|(namespace, name, port)| routes::Backend {
                    target: BackendRef::Service { namespace: namespace.into(), name: name.into(), port },
                    weight: 1,
                    filters: vec![],
                })
                .collect();
            let kind_of_object = match kind {
                RouteKind::Http => Kind::HttpRoute,
                RouteKind::Grpc => Kind::GrpcRoute,
                RouteKind::Tcp => Kind::TcpRoute,
                RouteKind::Tls => Kind::TlsRoute,
            };
            let rules = match kind {
                RouteKind::Http | RouteKind::Grpc => Rules::Requests(vec![routes::Rule {
                    name: None,
                    matches: vec![routes::Match::default()],
                    filters: vec![],
                    backends,
                    timeouts: routes::Timeouts::default(),
                    retry: None,
                    session: None,
                }]),
                RouteKind::Tcp => Rules::Connections(backends),
                RouteKind::Tls => Rules::ServerNames(TlsRule { hostnames: vec!["x.example".into()], backends }),
            };
            let route = Route {
                kind,
                namespace: namespace.as_str().into(),
                name: name.as_str().into(),
                created,
                parents: parents.collect(),
                rules,
            };
            let spec = RouteSpec {
                route: route.into(),
                generation: None,
                refused: bad.then(|| Reading { field: "spec".into(), reason: "bad".into() }),
                refused_rules: vec![],
                wrong_refs: vec![],
            };
            (named(kind_of_object, namespace, name), Item::Route(spec.into()))
        },
    )
}

fn a_grant() -> impl Strategy<Value = (Key, Item)> {
    let from = (select(vec![RouteKind::Http, RouteKind::Tcp]), a_word(&["a", "b", "c"]));
    let from = prop::collection::vec(from, 1..3);
    let to = prop::option::of(prop::collection::btree_set(a_word(&["s1", "s2"]), 1..3));
    (a_word(&["a", "b"]), a_word(&["g1", "g2"]), from, to).prop_map(|(namespace, name, from, to)| {
        let from = from.into_iter().map(|(kind, namespace)| (kind, Arc::from(namespace))).collect();
        let to = to.map(|names| names.into_iter().map(Arc::from).collect());
        (named(Kind::ReferenceGrant, namespace, name), Item::ReferenceGrant(ReferenceGrant { from, to }.into()))
    })
}

fn some_targets(services: bool) -> impl Strategy<Value = Vec<Target>> {
    let selector = |key: &str, operator| Selector { requirements: vec![Requirement { key: key.into(), operator }] };
    let x = selector("app", Operator::In(vec!["x".into()]));
    let any_tier = selector("tier", Operator::Exists);
    let pods = |namespace: Option<&str>, selector: &Selector| Target::Pods {
        namespace: namespace.map(Arc::from),
        selector: selector.clone(),
    };
    let mut all = vec![
        Target::Mesh,
        Target::Namespace("a".into()),
        pods(Some("a"), &x),
        pods(Some("b"), &any_tier),
        pods(None, &x),
    ];
    if services {
        let service = |namespace: &str, name: &str| Target::Service { namespace: namespace.into(), name: name.into() };
        all.extend([service("a", "s1"), service("a", "s2"), service("b", "s1")]);
    }
    subsequence(all, 1..3)
}

fn a_peer_authentication() -> impl Strategy<Value = (Key, Item)> {
    let mode = || select(vec![Mode::Strict, Mode::Permissive, Mode::Disable]);
    let ports = prop::collection::btree_map(8080..8082u16, mode(), 0..2);
    let names = (a_word(&["a", "b"]), a_word(&["pa1", "pa2"]), any::<bool>());
    let same_node = select(vec![None, Some(SameNode::KernelIdentity), Some(SameNode::Encrypt)]);
    let all = (names, some_targets(false), mode(), ports, same_node);
    all.prop_map(|((namespace, name, old), targets, mode, ports, same_node)| {
        let key = named(Kind::PeerAuthentication, namespace, name);
        let meta = PolicyMeta { id: key.object().into(), created: old.then_some(1) };
        (key, Item::PeerAuthentication(PeerAuthentication { meta, targets, mode: Some(mode), ports, same_node }.into()))
    })
}

fn an_authorization_policy() -> impl Strategy<Value = (Key, Item)> {
    let action = select(vec![Action::Allow, Action::Deny, Action::Audit]);
    let names = (a_word(&["a", "b"]), a_word(&["ap1", "ap2"]), any::<bool>());
    (names, some_targets(true), action, 0..3u16).prop_map(|((namespace, name, old), targets, action, port)| {
        let key = named(Kind::AuthorizationPolicy, namespace, name);
        let meta = PolicyMeta { id: key.object().into(), created: old.then_some(1) };
        let rules = vec![Rule { sources: vec![Source::Any], ports: vec![port], ..Rule::default() }];
        (key, Item::AuthorizationPolicy(AuthorizationPolicy { meta, targets, action, provider: None, rules }.into()))
    })
}

fn an_unreadable() -> impl Strategy<Value = Unreadable> {
    let weight = select(vec![Weight::DenyAll, Weight::Strict]);
    (a_word(&["a/u1", "b/u2"]), some_targets(true), weight).prop_map(|(id, targets, weight)| Unreadable {
        meta: PolicyMeta { id: id.into(), created: None },
        targets,
        weight,
    })
}
