//! Tables first, then the comparison with a reference that knows no compilation.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;

/// Caller as (service account in shop, or None), its IP, the port dialled.
type Call = (Option<&'static str>, &'static str, u16);

#[test]
fn deny_first_then_only_what_some_allow_allows() {
    let allow_web = policy("a-web", Action::Allow, vec![rule(vec![account("web")], vec![])]);
    let allow_80 = policy("b-any80", Action::Allow, vec![rule(vec![Source::Any], vec![80])]);
    let deny_bad = policy("c-bad", Action::Deny, vec![rule(vec![block("10.9.0.0/16", &["10.9.1.0/24"])], vec![])]);
    let nobody = policy("d-nobody", Action::Allow, vec![]);
    let empty_allow = policy("e", Action::Allow, vec![rule(vec![], vec![])]);
    let empty_deny = policy("f", Action::Deny, vec![rule(vec![], vec![80])]);
    let audit = policy("g", Action::Audit, vec![rule(vec![Source::Any], vec![])]);
    let web: Call = (Some("web"), "10.0.0.1", 80);
    let web_443: Call = (Some("web"), "10.0.0.1", 443);
    let plain: Call = (None, "10.0.0.1", 80);
    let plain_443: Call = (None, "10.0.0.1", 443);
    let bad: Call = (Some("web"), "10.9.0.1", 80);
    let hole: Call = (Some("web"), "10.9.1.1", 80);
    use DenyReason::{DenyRule, NoAllowRule};
    type Row<'a> = (Vec<&'a AuthorizationPolicy>, Call, Result<Option<&'a str>, (DenyReason, &'a str)>);
    let table: Vec<Row<'_>> = vec![
        (vec![], plain, Ok(None)),
        (vec![&audit], plain, Ok(None)),
        (vec![&allow_web], web, Ok(Some("shop/a-web"))),
        // A caller without identity does not meet a rule on principals, PERMISSIVE or not.
        (vec![&allow_web], plain, Err((NoAllowRule, "shop/a-web"))),
        (vec![&allow_web, &allow_80], plain, Ok(Some("shop/b-any80"))),
        (vec![&allow_web, &allow_80], plain_443, Err((NoAllowRule, "shop/a-web"))),
        (vec![&allow_web, &allow_80], web_443, Ok(Some("shop/a-web"))),
        (vec![&allow_web, &deny_bad], bad, Err((DenyRule, "shop/c-bad"))),
        (vec![&allow_web, &deny_bad], hole, Ok(Some("shop/a-web"))),
        (vec![&deny_bad], plain, Ok(None)),
        (vec![&nobody], web, Err((NoAllowRule, "shop/d-nobody"))),
        (vec![&empty_allow], web, Err((NoAllowRule, "shop/e"))),
        (vec![&empty_deny], web, Err((DenyRule, "shop/f"))),
        (vec![&empty_deny], web_443, Ok(None)),
    ];
    for (policies, call, expected) in table {
        let set = PolicySet::new(vec![], policies.iter().copied().cloned().collect(), vec![]);
        let decision = authorize(&set.compile(&subject(&BTreeMap::new(), &BTreeMap::new())), &facts(call));
        let expected =
            expected.map(|rule| rule.map(Arc::from)).map_err(|(reason, rule)| (reason, Some(Arc::from(rule))));
        let seen = decision.map(|permit| permit.rule).map_err(|denial| (denial.reason, denial.rule));
        assert_eq!(seen, expected, "{call:?} {policies:#?}");
    }
}

#[test]
fn audit_records_and_decides_nothing() {
    let audit = policy("audit", Action::Audit, vec![rule(vec![account("web")], vec![])]);
    let set = PolicySet::new(vec![], vec![audit], vec![]);
    let compiled = set.compile(&subject(&BTreeMap::new(), &BTreeMap::new()));
    assert_eq!(audited(&compiled, &facts((Some("web"), "10.0.0.1", 80))), [Arc::from("shop/audit")]);
    assert_eq!(audited(&compiled, &facts((Some("api"), "10.0.0.1", 80))), []);
}

#[test]
fn what_is_in_force_can_be_read() {
    let targets = vec![
        Target::Mesh,
        Target::Pods { namespace: Some("shop".into()), selector: equal("app", "api") },
        Target::Service { namespace: "shop".into(), name: "api".into() },
    ];
    let rules = vec![rule(vec![account("web"), block("10.9.0.0/16", &["10.9.1.0/24"]), Source::Any], vec![80])];
    let deny = AuthorizationPolicy { targets, ..policy("guard", Action::Deny, rules) };
    let peer = PeerAuthentication {
        meta: PolicyMeta { id: "shop/strict".into(), created: None },
        targets: vec![Target::Namespace("shop".into())],
        mode: Some(Mode::Strict),
        ports: BTreeMap::from([(9090, Mode::Permissive)]),
        same_node: Some(SameNode::Encrypt),
    };
    let set = PolicySet::new(vec![peer], vec![deny], vec![]);
    let guard = serde_json::json!({
        "id": "shop/guard",
        "created": null,
        "targets": ["the mesh", "pods of shop with app=api", "service shop/api"],
        "action": "deny",
        "rules": [{
            "sources": [
                "identity spiffe://cluster.local/ns/shop/sa/web",
                "ip 10.9.0.0/16 except 10.9.1.0/24",
                "anyone",
            ],
            "ports": [80],
        }],
    });
    let shown = serde_json::to_value(&set).unwrap();
    assert_eq!(shown["authorizationPolicies"], serde_json::json!([guard]));
    assert_eq!(shown["peerAuthentications"][0]["targets"][0], "namespace shop");
    assert_eq!(shown["peerAuthentications"][0]["ports"]["9090"], "permissive");
    assert_eq!(shown["unreadable"], serde_json::json!([]));
    let one = serde_json::to_value(set.compile(&subject(&BTreeMap::new(), &BTreeMap::new()))).unwrap();
    assert_eq!(one["modes"]["rest"], serde_json::json!({"mode": "strict", "rule": "shop/strict"}));
    assert_eq!(one["deny"], serde_json::json!([{"id": "shop/guard", "ports": "all"}]));
}

#[test]
fn a_service_covers_its_target_ports_and_no_others() {
    let target = Target::Service { namespace: "shop".into(), name: "api".into() };
    let policy = AuthorizationPolicy { targets: vec![target], ..policy("p", Action::Allow, vec![]) };
    let set = PolicySet::new(vec![], vec![policy], vec![]);
    let services = BTreeMap::from([(Arc::from("api"), BTreeSet::from([8080]))]);
    let compiled = set.compile(&subject(&BTreeMap::new(), &services));
    assert!(authorize(&compiled, &facts((Some("web"), "10.0.0.1", 8080))).is_err());
    assert!(authorize(&compiled, &facts((Some("web"), "10.0.0.1", 8081))).is_ok());
    let elsewhere = set.compile(&subject(&BTreeMap::new(), &BTreeMap::new()));
    assert_eq!(elsewhere, WorkloadPolicy::default());
}

#[test]
fn the_narrowest_mode_wins_and_the_oldest_among_equals() {
    let pods = || Target::Pods { namespace: Some("shop".into()), selector: equal("app", "api") };
    let others = || Target::Pods { namespace: Some("shop".into()), selector: equal("app", "web") };
    let namespace = || Target::Namespace("shop".into());
    let peer = |name: &str, created, target, mode, ports: &[(u16, Mode)]| PeerAuthentication {
        meta: PolicyMeta { id: format!("shop/{name}").into(), created },
        targets: vec![target],
        mode,
        ports: ports.iter().copied().collect(),
        same_node: None,
    };
    use Mode::{Disable, Permissive, Strict};
    let mesh = peer("mesh", Some(1), Target::Mesh, Some(Strict), &[]);
    let ns = peer("ns", Some(2), namespace(), Some(Permissive), &[]);
    let ns_older = peer("ns-older", Some(1), namespace(), Some(Strict), &[]);
    let ns_undated = peer("a", None, namespace(), Some(Disable), &[]);
    let pod = peer("pod", Some(9), pods(), Some(Disable), &[]);
    let other = peer("other", Some(0), others(), Some(Strict), &[(80, Strict)]);
    let port = peer("port", Some(10), pods(), None, &[(80, Strict)]);
    let port_newer = peer("port-newer", Some(11), pods(), None, &[(80, Disable), (81, Strict)]);
    // (objects, mode of 80, mode of 81)
    let table: Vec<(Vec<&PeerAuthentication>, Mode, Mode)> = vec![
        (vec![], Permissive, Permissive),
        (vec![&mesh], Strict, Strict),
        (vec![&mesh, &ns], Permissive, Permissive),
        (vec![&mesh, &ns, &ns_older], Strict, Strict),
        (vec![&ns_undated, &ns], Permissive, Permissive),
        (vec![&ns_older, &pod], Disable, Disable),
        (vec![&ns_older, &other], Strict, Strict),
        (vec![&ns, &other], Permissive, Permissive),
        (vec![&ns, &port], Strict, Permissive),
        (vec![&pod, &port], Strict, Disable),
        (vec![&port_newer, &port, &pod], Strict, Strict),
    ];
    let labels = BTreeMap::from([("app".to_string(), "api".to_string())]);
    for (peers, at_80, at_81) in table {
        for reversed in [false, true] {
            let mut objects: Vec<PeerAuthentication> = peers.iter().copied().cloned().collect();
            if reversed {
                objects.reverse();
            }
            let modes = PolicySet::new(objects, vec![], vec![]).peer_modes(&subject(&labels, &BTreeMap::new()));
            assert_eq!((modes.at(80).0, modes.at(81).0), (at_80, at_81), "{peers:#?}");
        }
    }
}

/// Who owes TLS on one node: the narrowest object that says something, the oldest among equals; and an unreadable one
/// says the most that it could.
#[test]
fn tls_is_owed_on_one_node_where_it_is_asked_for() {
    let pods = || Target::Pods { namespace: Some("shop".into()), selector: equal("app", "api") };
    let namespace = || Target::Namespace("shop".into());
    let peer = |name: &str, created, target, mode, same_node| PeerAuthentication {
        meta: PolicyMeta { id: format!("shop/{name}").into(), created },
        targets: vec![target],
        mode,
        ports: BTreeMap::new(),
        same_node,
    };
    let (encrypt, kernel) = (Some(SameNode::Encrypt), Some(SameNode::KernelIdentity));
    let mesh = peer("mesh", Some(1), Target::Mesh, None, encrypt);
    let ns = peer("ns", Some(2), namespace(), None, kernel);
    let ns_older = peer("ns-older", Some(1), namespace(), None, encrypt);
    let strict = peer("strict", Some(0), namespace(), Some(Mode::Strict), None);
    let pod = peer("pod", Some(9), pods(), Some(Mode::Disable), kernel);
    // (objects, the one that wants it)
    let table: Vec<(Vec<&PeerAuthentication>, Option<&str>)> = vec![
        (vec![], None),
        (vec![&strict], None),
        (vec![&mesh], Some("shop/mesh")),
        (vec![&mesh, &strict], Some("shop/mesh")),
        (vec![&mesh, &ns], None),
        (vec![&mesh, &ns, &ns_older], Some("shop/ns-older")),
        (vec![&mesh, &ns_older, &pod], None),
    ];
    let labels = BTreeMap::from([("app".to_string(), "api".to_string())]);
    let services = BTreeMap::new();
    let subject = subject(&labels, &services);
    for (peers, expected) in table {
        for reversed in [false, true] {
            let mut objects: Vec<PeerAuthentication> = peers.iter().copied().cloned().collect();
            if reversed {
                objects.reverse();
            }
            let compiled = PolicySet::new(objects, vec![], vec![]).compile(&subject);
            for account in [Some("web"), None] {
                let call = facts((account, "10.0.0.1", 80));
                let near = authorize(&compiled, &Facts { is_same_node: true, ..call.clone() });
                let denied = near.err().filter(|denial| denial.reason == DenyReason::SameNodePlaintext);
                assert_eq!(denied.and_then(|denial| denial.rule).as_deref(), expected, "{peers:#?}");
                assert_eq!(authorize(&compiled, &call).is_ok(), account.is_some() || !peers.contains(&&strict));
            }
        }
    }
    let unread = Unreadable {
        meta: PolicyMeta { id: "shop/unread".into(), created: None },
        targets: vec![namespace()],
        weight: Weight::Strict,
    };
    let compiled = PolicySet::new(vec![pod], vec![], vec![unread]).compile(&subject);
    let near = authorize(&compiled, &Facts { is_same_node: true, ..facts((Some("web"), "10.0.0.1", 80)) });
    assert_eq!(near.map_err(|denial| denial.reason), Err(DenyReason::SameNodePlaintext));
}

#[test]
fn principals_in_all_their_forms() {
    let id = "spiffe://cluster.local/ns/shop/sa/web";
    // (pattern, matches `id`; None: refused)
    let table = [
        ("*", Some(true)),
        (id, Some(true)),
        ("spiffe://cluster.local/ns/shop/sa/we", Some(false)),
        ("spiffe://cluster.local/ns/shop/*", Some(true)),
        ("spiffe://cluster.local/ns/shopping/*", Some(false)),
        ("spiffe://other.example/*", Some(false)),
        ("spiffe://*", Some(true)),
        ("*/sa/web", Some(true)),
        ("*/sa/eb", Some(false)),
        ("cluster.local/ns/shop/*", None),
        ("spiffe://*/sa/web", None),
        ("*shop*", None),
        ("**", None),
        ("", None),
        ("spiffe://cluster.local/shop/web", None),
    ];
    for (pattern, expected) in table {
        let parsed = Principal::parse(pattern).ok();
        let seen = parsed.map(|principal| Source::Principal(principal).matches(&facts((Some("web"), "10.0.0.1", 80))));
        assert_eq!(seen, expected, "{pattern}");
    }
}

#[test]
fn ip_blocks_see_mapped_addresses_as_ipv4() {
    let Source::IpBlock(block) = block("10.0.0.0/8", &["10.1.0.0/16"]) else { unreachable!() };
    let table = [
        ("10.0.0.1", true),
        ("::ffff:10.0.0.1", true),
        ("10.1.2.3", false),
        ("::ffff:10.1.2.3", false),
        ("fd00::1", false),
    ];
    for (ip, expected) in table {
        assert_eq!(block.contains(ip.parse().unwrap()), expected, "{ip}");
    }
}

#[test]
fn selectors_as_kubernetes_has_them() {
    let labels = BTreeMap::from([("a".to_string(), "1".to_string())]);
    let values = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    let table = [
        ("a", Operator::In(values(&["1", "2"])), true),
        ("a", Operator::In(values(&["2"])), false),
        ("b", Operator::In(values(&["1"])), false),
        ("a", Operator::NotIn(values(&["1"])), false),
        ("b", Operator::NotIn(values(&["1"])), true),
        ("a", Operator::Exists, true),
        ("b", Operator::Exists, false),
        ("a", Operator::DoesNotExist, false),
        ("b", Operator::DoesNotExist, true),
    ];
    for (key, operator, expected) in table {
        let selector = Selector { requirements: vec![Requirement { key: key.into(), operator }] };
        assert_eq!(selector.matches(&labels), expected, "{selector:?}");
    }
    assert!(Selector::default().matches(&labels));
}

// — the comparison —

proptest! {
    /// The compiled policy and a reading of the objects one after the other decide alike.
    #[test]
    fn compiled_and_naive_agree(world in a_world(), call in a_call()) {
        let labels = BTreeMap::from([("app".to_string(), "api".to_string())]);
        let services = BTreeMap::from([(Arc::from("api"), BTreeSet::from([80, 81]))]);
        let subject = subject(&labels, &services);
        let (peers, policies, unreadable) = world;
        let set = PolicySet::new(peers.clone(), policies.clone(), unreadable.clone());
        let decision = authorize(&set.compile(&subject), &call).map(drop).map_err(|denial| denial.reason);
        prop_assert_eq!(decision, naive(&peers, &policies, &unreadable, &call));
    }

    /// One more DENY policy, or one that cannot be read, never opens anything.
    #[test]
    fn a_deny_never_opens(world in a_world(), deny in a_policy(), call in a_call()) {
        let labels = BTreeMap::from([("app".to_string(), "api".to_string())]);
        let services = BTreeMap::from([(Arc::from("api"), BTreeSet::from([80, 81]))]);
        let (peers, mut policies, mut unreadable) = world;
        let allows = |policies: &[AuthorizationPolicy], unreadable: &[Unreadable]| {
            let set = PolicySet::new(peers.clone(), policies.to_vec(), unreadable.to_vec());
            authorize(&set.compile(&subject(&labels, &services)), &call).is_ok()
        };
        let before = allows(&policies, &unreadable);
        unreadable.push(Unreadable { meta: deny.meta.clone(), targets: deny.targets.clone(), weight: Weight::DenyAll });
        prop_assert!(before || !allows(&policies, &unreadable));
        unreadable.pop();
        policies.push(AuthorizationPolicy { action: Action::Deny, ..deny });
        prop_assert!(before || !allows(&policies, &unreadable));
    }
}

/// Decides by the words of the documentation, object by object, for the pod `app: api` of namespace shop behind the
/// Service shop/api with target ports 80 and 81.
fn naive(
    peers: &[PeerAuthentication],
    policies: &[AuthorizationPolicy],
    unreadable: &[Unreadable],
    call: &Facts,
) -> Result<(), DenyReason> {
    // 3: pod, 2: namespace, 1: mesh; 0: only as a port of the Service
    let reach = |target: &Target| match target {
        Target::Mesh => Some(1),
        Target::Namespace(namespace) => (&**namespace == "shop").then_some(2),
        Target::Pods { namespace, selector } => {
            let labels = BTreeMap::from([("app".to_string(), "api".to_string())]);
            (namespace.as_deref().unwrap_or("shop") == "shop" && selector.matches(&labels)).then_some(3)
        }
        Target::Service { namespace, name } => {
            (&**namespace == "shop" && &**name == "api" && [80, 81].contains(&call.destination_port)).then_some(0)
        }
    };
    let covers = |targets: &[Target]| targets.iter().any(|target| reach(target).is_some());
    let age = |meta: &PolicyMeta| (meta.created.unwrap_or(i64::MAX), meta.id.to_string());

    if unreadable.iter().any(|object| object.weight == Weight::DenyAll && covers(&object.targets)) {
        return Err(DenyReason::UnreadablePolicy);
    }
    let overrides =
        peers.iter().filter(|peer| covers(&peer.targets) && peer.ports.contains_key(&call.destination_port));
    let plain = peers.iter().filter(|peer| peer.mode.is_some()).filter_map(|peer| {
        let width = peer.targets.iter().filter_map(reach).max()?;
        Some((std::cmp::Reverse(width), age(&peer.meta), peer.mode?))
    });
    let mode = match overrides.min_by_key(|peer| age(&peer.meta)) {
        Some(peer) => peer.ports[&call.destination_port],
        None => plain.min_by_key(|(width, age, _)| (*width, age.clone())).map_or(Mode::Permissive, |(.., mode)| mode),
    };
    let said = peers.iter().filter(|peer| peer.same_node.is_some()).filter_map(|peer| {
        let width = peer.targets.iter().filter_map(reach).max()?;
        Some((std::cmp::Reverse(width), age(&peer.meta), peer.same_node?))
    });
    let said = said.min_by_key(|(width, age, _)| (*width, age.clone())).map(|(.., said)| said);
    let forced = unreadable.iter().any(|object| object.weight == Weight::Strict && covers(&object.targets));
    // It is a word about the pod, not about its ports.
    let is_own = |target: &Target| {
        reach(target).is_some()
            || matches!(target, Target::Service { name, namespace } if &**name == "api" && &**namespace == "shop")
    };
    let owed = unreadable.iter().any(|object| object.weight == Weight::Strict && object.targets.iter().any(is_own));
    if call.is_same_node && (owed || said == Some(SameNode::Encrypt)) {
        return Err(DenyReason::SameNodePlaintext);
    }
    if call.source.is_none() && (forced || mode == Mode::Strict) {
        return Err(DenyReason::StrictPlaintext);
    }
    let source_matches = |source: &Source| match source {
        Source::Any => true,
        Source::IpBlock(block) => {
            block.cidr.contains(&call.source_ip) && block.except.iter().all(|hole| !hole.contains(&call.source_ip))
        }
        Source::Namespace { trust_domain, namespace } => call
            .source
            .as_ref()
            .is_some_and(|id| id.to_string().starts_with(&format!("spiffe://{trust_domain}/ns/{namespace}/"))),
        Source::Principal(principal) => call.source.as_ref().is_some_and(|id| match principal {
            Principal::Any => true,
            Principal::Exact(exact) => exact.to_string() == id.to_string(),
            Principal::Prefix(prefix) => id.to_string().starts_with(&**prefix),
            Principal::Suffix(suffix) => id.to_string().ends_with(&**suffix),
        }),
    };
    let matches = |policy: &AuthorizationPolicy| {
        let empty = policy.action != Action::Allow;
        let rule_matches = |rule: &Rule| {
            let source = if rule.sources.is_empty() { empty } else { rule.sources.iter().any(source_matches) };
            let port = rule.ports.is_empty() || rule.ports.contains(&call.destination_port);
            source && port
        };
        if policy.rules.is_empty() { empty } else { policy.rules.iter().any(rule_matches) }
    };
    let of = |action| policies.iter().filter(move |policy| policy.action == action && covers(&policy.targets));
    if of(Action::Deny).any(matches) {
        return Err(DenyReason::DenyRule);
    }
    if of(Action::Allow).count() > 0 && !of(Action::Allow).any(matches) {
        return Err(DenyReason::NoAllowRule);
    }
    Ok(())
}

fn a_world() -> impl Strategy<Value = (Vec<PeerAuthentication>, Vec<AuthorizationPolicy>, Vec<Unreadable>)> {
    let unreadable = (a_meta(), a_target(), prop_oneof![Just(Weight::DenyAll), Just(Weight::Strict)])
        .prop_map(|(meta, target, weight)| Unreadable { meta, targets: vec![target], weight });
    (
        prop::collection::vec(a_peer(), 0..4),
        prop::collection::vec(a_policy(), 0..4),
        prop_oneof![4 => Just(vec![]), 1 => prop::collection::vec(unreadable, 1..2)],
    )
}

fn a_meta() -> impl Strategy<Value = PolicyMeta> {
    ("[a-z]{6}", prop::option::of(0..3i64))
        .prop_map(|(name, created)| PolicyMeta { id: format!("shop/{name}").into(), created })
}

fn a_target() -> impl Strategy<Value = Target> {
    prop_oneof![Just(Target::Service { namespace: "shop".into(), name: "api".into() }), a_wide_target()]
}

fn a_wide_target() -> impl Strategy<Value = Target> {
    let namespace = prop_oneof![3 => Just("shop"), 1 => Just("other")];
    let app = prop_oneof![3 => Just("api"), 1 => Just("web")];
    prop_oneof![
        Just(Target::Mesh),
        namespace.clone().prop_map(|namespace| Target::Namespace(namespace.into())),
        (prop::option::of(namespace), app).prop_map(|(namespace, app)| Target::Pods {
            namespace: namespace.map(Arc::from),
            selector: equal("app", app)
        }),
    ]
}

fn a_mode() -> impl Strategy<Value = Mode> {
    prop_oneof![Just(Mode::Strict), Just(Mode::Permissive), Just(Mode::Disable)]
}

fn a_peer() -> impl Strategy<Value = PeerAuthentication> {
    let ports = prop::collection::btree_map(80..83u16, a_mode(), 0..2);
    let same_node = prop::option::of(prop_oneof![Just(SameNode::KernelIdentity), Just(SameNode::Encrypt)]);
    let all = (a_meta(), a_wide_target(), prop::option::of(a_mode()), ports, same_node);
    all.prop_map(|(meta, target, mode, mut ports, same_node)| {
        // Only objects that select pods have overrides.
        if !matches!(target, Target::Pods { .. }) {
            ports.clear();
        }
        PeerAuthentication { meta, targets: vec![target], mode, ports, same_node }
    })
}

fn a_policy() -> impl Strategy<Value = AuthorizationPolicy> {
    let action = prop_oneof![Just(Action::Allow), Just(Action::Deny), Just(Action::Audit)];
    let rule = (prop::collection::vec(a_source(), 0..3), prop::collection::vec(80..83u16, 0..3))
        .prop_map(|(sources, ports)| Rule { sources, ports, ..Rule::default() });
    (a_meta(), prop::collection::vec(a_target(), 1..3), action, prop::collection::vec(rule, 0..3))
        .prop_map(|(meta, targets, action, rules)| AuthorizationPolicy { meta, targets, action, provider: None, rules })
}

fn a_source() -> impl Strategy<Value = Source> {
    let principal = prop_oneof![
        Just("*"),
        Just("spiffe://cluster.local/ns/shop/sa/web"),
        Just("spiffe://cluster.local/ns/shop/*"),
        Just("*/sa/api"),
    ];
    prop_oneof![
        Just(Source::Any),
        principal.prop_map(|text| Source::Principal(Principal::parse(text).unwrap())),
        Just(Source::Namespace { trust_domain: "cluster.local".into(), namespace: "shop".into() }),
        Just(Source::Namespace { trust_domain: "other.example".into(), namespace: "shop".into() }),
        Just(block("10.0.0.0/8", &["10.0.0.0/24"])),
        Just(block("fd00::/16", &[])),
    ]
}

fn a_call() -> impl Strategy<Value = Facts> {
    let source = prop_oneof![Just(None), Just(Some("web")), Just(Some("api"))];
    let ip = prop_oneof![Just("10.0.0.1"), Just("10.0.1.1"), Just("fd00::1"), Just("192.0.2.1")];
    (source, ip, 80..84u16).prop_map(facts)
}

// — helpers —

fn facts((account, ip, port): Call) -> Facts {
    Facts {
        source: account.map(|name| SpiffeId::new("cluster.local", "shop", name).unwrap()),
        is_same_node: false,
        source_ip: ip.parse().unwrap(),
        destination_ip: IpAddr::from([10, 0, 0, 9]),
        destination_port: port,
    }
}

fn subject<'a>(labels: &'a BTreeMap<String, String>, services: &'a BTreeMap<Arc<str>, BTreeSet<u16>>) -> Subject<'a> {
    Subject { namespace: "shop", labels, services }
}

fn policy(name: &str, action: Action, rules: Vec<Rule>) -> AuthorizationPolicy {
    let meta = PolicyMeta { id: format!("shop/{name}").into(), created: None };
    AuthorizationPolicy { meta, targets: vec![Target::Namespace("shop".into())], action, provider: None, rules }
}

fn rule(sources: Vec<Source>, ports: Vec<u16>) -> Rule {
    Rule { sources, ports, ..Rule::default() }
}

fn account(name: &str) -> Source {
    Source::Principal(Principal::Exact(SpiffeId::new("cluster.local", "shop", name).unwrap()))
}

fn block(cidr: &str, except: &[&str]) -> Source {
    let except = except.iter().map(|range| range.parse().unwrap()).collect();
    Source::IpBlock(IpBlock { cidr: cidr.parse().unwrap(), except })
}

fn equal(key: &str, value: &str) -> Selector {
    Selector { requirements: vec![Requirement { key: key.into(), operator: Operator::In(vec![value.into()]) }] }
}
