//! Sequences of changes to files: what follows step by step is what follows at once, and nothing opens on the way.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::file::{Changes, SourceFile};
use super::store::Store;
use super::tests::{DENY, config, denies_web, world};
use super::{Current, Effect, join};
use crate::state::MeshState;

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Sound files that come, change and go: the objects are those of a reading from scratch, the findings too, and the
    /// snapshot is that of the joined world.
    #[test]
    fn changed_files_are_as_all_files(steps in prop::collection::vec(a_step(), 1..10)) {
        let mut current = Current::new(&config("node-1"));
        let mut files = BTreeMap::new();
        for step in steps {
            let changes = changes(&mut files, step);
            current.take(&changes);
            let mut fresh = Store::new("cluster.local");
            fresh.apply(&all(&files), &[]);
            prop_assert_eq!(current.store.items(), fresh.items());
            prop_assert_eq!(current.store.findings(), fresh.findings());
            let joined = MeshState::build(1, "node-1", &join::world(&fresh));
            prop_assert_eq!(told(&current.engine.snapshot()), told(&joined));
        }
    }

    /// A file that somebody breaks again and again, while others come and go. What was closed when the file was last sound
    /// stays closed until it is sound again; and what cannot be read is named.
    #[test]
    fn no_typo_of_many_opens(steps in prop::collection::vec((any::<bool>(), a_typo(), a_step()), 1..12)) {
        let mut current = Current::new(&config("node-1"));
        let mut text = DENY.to_string();
        let mut files = BTreeMap::from([("a.yaml".to_string(), world()), ("p.yaml".to_string(), text.clone())]);
        current.take(&Changes { changed: all(&files), gone: vec![] });
        let mut closed = denies_web(&current.engine.snapshot());
        prop_assert!(closed);
        for (again, typo, others) in steps {
            text = typo_in(if again { &text } else { DENY }, &typo);
            let mut changes = changes(&mut files, others);
            changes.changed.push(source("p.yaml", &text));
            files.insert("p.yaml".to_string(), text.clone());
            current.take(&changes);
            let findings = current.store.findings();
            let unsound = findings.iter().any(|f| f.file().is_some_and(|file| file.ends_with("p.yaml")) && f.effect != Effect::LaterWins);
            let is_closed = denies_web(&current.engine.snapshot());
            prop_assert!(is_closed || !closed || !unsound, "{}\n{:#?}", text, findings);
            if !unsound {
                closed = is_closed;
            }
        }
    }
}

/// One object is in force, whoever speaks of it: the file that can be read, the later of two, and the last good version
/// only when there is no other.
#[test]
fn who_speaks_of_an_object() {
    let good = DENY.to_string();
    let other = DENY.replace("name: web}", "name: other}");
    let bad = DENY.replace("DENY", "DENI");
    let both = format!("{DENY}---\n{}", other.replace("no-web", "earlier"));
    let [mistaken, nameless] = [
        DENY.replace("AuthorizationPolicy", "AuthorisationPolicy").replace("no-web", "of-web"),
        DENY.replace("name: no-web", "nmae: no-web"),
    ];
    // (step: file and text, None for gone; whether web is denied; effects of the findings)
    type Step<'a> = (&'a str, Option<&'a str>, bool, &'a [Effect]);
    let scripts: [&[Step<'_>]; 7] = [
        // The later wins, and the earlier is back when the later goes.
        &[("p", Some(&good), true, &[]), ("q", Some(&other), false, &[Effect::LaterWins]), ("q", None, true, &[])],
        // A good one anywhere is in force.
        &[
            ("p", Some(&bad), true, &[Effect::TargetDeniesAll]),
            ("q", Some(&other), false, &[Effect::PreviousStays]),
            ("q", None, false, &[Effect::PreviousStays]),
            ("p", None, false, &[]),
        ],
        // What broke in one file and is sound in another follows the other.
        &[
            ("p", Some(&good), true, &[]),
            ("p", Some(&bad), true, &[Effect::PreviousStays]),
            ("q", Some(&other), false, &[Effect::PreviousStays]),
            ("p", Some(&good), false, &[Effect::LaterWins]),
        ],
        // Moved to another file and broken there at once.
        &[
            ("p", Some(&good), true, &[]),
            ("q", Some(&bad), true, &[Effect::PreviousStays]),
            ("p", None, true, &[Effect::PreviousStays]),
        ],
        // Text that is no YAML, for good, then gone.
        &[
            ("p", Some(&good), true, &[]),
            ("p", Some("{"), true, &[Effect::PreviousStays]),
            ("p", Some("["), true, &[Effect::PreviousStays]),
            ("p", None, false, &[]),
        ],
        // What could be either of two that are missing is taken for both.
        &[("p", Some(&both), true, &[]), ("p", Some(&mistaken), true, &[Effect::PreviousStays])],
        &[("p", Some(&both), true, &[]), ("p", Some(&nameless), true, &[Effect::PreviousStays])],
    ];
    for (number, script) in scripts.iter().enumerate() {
        let mut current = Current::new(&config("node-1"));
        current.take(&Changes { changed: vec![source("a.yaml", &world())], gone: vec![] });
        for (step, (file, text, denied, effects)) in script.iter().enumerate() {
            let path = format!("{file}.yaml");
            current.take(&match text {
                Some(text) => Changes { changed: vec![source(&path, text)], gone: vec![] },
                None => Changes { changed: vec![], gone: vec![PathBuf::from(path)] },
            });
            let findings = current.store.findings();
            let seen: Vec<Effect> = findings.iter().map(|finding| finding.effect).collect();
            assert_eq!(seen, *effects, "script {number}, step {step}: {findings:#?}");
            assert_eq!(denies_web(&current.engine.snapshot()), *denied, "script {number}, step {step}");
        }
    }
}

/// What a change of one object in a large file costs: one object.
#[test]
fn a_changed_list_changes_one_object() {
    for text in [list_of_pods as fn(bool) -> String, documents_and_list] {
        let mut store = Store::new("cluster.local");
        let first = store.apply(&[source("a.yaml", &text(true))], &[]);
        assert!(first.upserts.len() >= 50);
        let second = store.apply(&[source("a.yaml", &text(false))], &[]);
        let names: Vec<&str> = second.upserts.iter().map(|(key, _)| &*key.name).collect();
        assert_eq!((names, second.deletes.len()), (vec!["p7"], 0));
        let third = store.apply(&[source("a.yaml", &format!("# a comment\n{}", text(false)))], &[]);
        assert_eq!((third.upserts.len(), third.deletes.len()), (0, 0));
    }
}

/// 50 pods, of which one is ready or not.
fn list_of_pods(ready: bool) -> String {
    let mut list = "kind: List\napiVersion: v1\nitems:\n".to_string();
    for index in 0..50 {
        let phase = if ready || index != 7 { "Running" } else { "Pending" };
        writeln!(
            list,
            "- {{apiVersion: v1, kind: Pod, metadata: {{name: p{index}, uid: u{index}}}, spec: {{containers: []}}, status: {{phase: {phase}, podIPs: [{{ip: 10.0.0.{index}}}]}}}}"
        )
        .unwrap();
    }
    list
}

fn documents_and_list(ready: bool) -> String {
    format!("{}\n---\n{}", world(), list_of_pods(ready))
}

// — steps —

/// What becomes of a file: documents by number, None when it goes.
type Step = Vec<(&'static str, Option<Vec<usize>>)>;

fn a_step() -> impl Strategy<Value = Step> {
    let documents = prop::option::weighted(0.8, prop::collection::vec(0..DOCUMENTS.len(), 0..4));
    prop::collection::vec((select(vec!["b.yaml", "c.yaml", "d.yaml"]), documents), 0..3)
}

/// Each says something; several speak of one object.
const DOCUMENTS: [&str; 16] = [
    "{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {nodemesh.dev/mesh: enabled}}}",
    "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}",
    "{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: x, uid: x, labels: {app: x}}, spec: {nodeName: node-1, containers: []}, status: {podIPs: [{ip: 10.0.0.7}]}}",
    "{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: x, uid: x, labels: {app: w}}, spec: {nodeName: node-2, containers: []}, status: {podIPs: [{ip: 10.0.0.8}]}}",
    "{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: x, uid: x}, spec: {containers: []}, status: {phase: Succeeded}}",
    "{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: z, uid: z, labels: {app: x}}, spec: {nodeName: node-1, containers: []}, status: {podIPs: [{ip: 10.0.0.8}]}}",
    "{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: s}, spec: {clusterIP: 10.96.0.1, selector: {app: x}, ports: [{port: 80}]}}",
    "{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: s}, spec: {clusterIP: 10.96.0.2, selector: {app: w}, ports: [{port: 81}]}}",
    "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {namespace: shop, name: s-1, labels: {kubernetes.io/service-name: s}}, addressType: IPv4, ports: [{port: 80}], endpoints: [{addresses: [10.0.0.7]}]}",
    "{apiVersion: v1, kind: Node, metadata: {name: node-1, labels: {topology.kubernetes.io/zone: z}}, status: {addresses: [{type: InternalIP, address: 192.168.0.1}]}}",
    "{apiVersion: nodemesh.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {namespace: shop, name: q}, spec: {targetRefs: [{kind: Service, name: s}], action: ALLOW, rules: []}}",
    "{apiVersion: nodemesh.dev/v1alpha1, kind: PeerAuthentication, metadata: {namespace: shop, name: r}, spec: {targetRefs: [{kind: Namespace}], mode: STRICT}}",
    "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {namespace: shop, name: h}, spec: {parentRefs: [{group: '', kind: Service, name: s}], rules: [{backendRefs: [{name: s, port: 80}]}]}}",
    "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {namespace: shop, name: h}, spec: {parentRefs: [{group: '', kind: Service, name: s, port: 81}], rules: [{backendRefs: [{name: t, port: 80}]}]}}",
    "{apiVersion: gateway.networking.k8s.io/v1, kind: TCPRoute, metadata: {namespace: w, name: t}, spec: {parentRefs: [{group: '', kind: Service, namespace: shop, name: s}], rules: [{backendRefs: [{name: s, namespace: shop, port: 80}]}]}}",
    "{apiVersion: gateway.networking.k8s.io/v1, kind: ReferenceGrant, metadata: {namespace: shop, name: g}, spec: {from: [{group: gateway.networking.k8s.io, kind: TCPRoute, namespace: w}], to: [{group: '', kind: Service}]}}",
];

fn changes(files: &mut BTreeMap<String, String>, step: Step) -> Changes {
    let mut changes = Changes::default();
    let last_of_each: BTreeMap<_, _> = step.into_iter().collect();
    for (name, documents) in last_of_each {
        match documents {
            Some(documents) => {
                let text: Vec<&str> = documents.into_iter().map(|number| DOCUMENTS[number]).collect();
                let text = text.join("\n---\n");
                changes.changed.push(source(name, &text));
                files.insert(name.to_string(), text);
            }
            None if files.remove(name).is_some() => changes.gone.push(name.into()),
            None => {}
        }
    }
    changes
}

#[derive(Clone, Debug)]
enum Typo {
    Leaves(Index),
    Inserts(Index, char),
    None,
}

fn a_typo() -> impl Strategy<Value = Typo> {
    prop_oneof![
        3 => any::<Index>().prop_map(Typo::Leaves),
        3 => (any::<Index>(), select(vec!['x', '{', ' ', '\n', ':', '#'])).prop_map(|(at, c)| Typo::Inserts(at, c)),
        1 => Just(Typo::None),
    ]
}

fn typo_in(text: &str, typo: &Typo) -> String {
    let mut letters: Vec<char> = text.chars().collect();
    match typo {
        Typo::Leaves(at) if !letters.is_empty() => drop(letters.remove(at.index(letters.len()))),
        Typo::Inserts(at, letter) => letters.insert(at.index(letters.len() + 1), *letter),
        Typo::Leaves(_) | Typo::None => {}
    }
    letters.into_iter().collect()
}

// — helpers —

fn source(name: &str, text: &str) -> SourceFile {
    SourceFile { path: name.into(), content: Ok(text.to_string()) }
}

fn all(files: &BTreeMap<String, String>) -> Vec<SourceFile> {
    files.iter().map(|(name, text)| source(name, text)).collect()
}

/// What readers are told, in short.
pub(super) fn told(state: &MeshState) -> String {
    let mut pods: Vec<_> = state.workloads().collect();
    pods.sort_by_key(|pod| pod.uid.clone());
    let policies: Vec<_> = pods.iter().map(|pod| state.inbound_policy(&pod.uid)).collect();
    let modes: Vec<_> = pods.iter().map(|pod| state.peer_mode(pod, 80)).collect();
    let services: Vec<_> = state.services().collect();
    let mut unserved: Vec<_> = state.vips_without_endpoint().collect();
    unserved.sort();
    let routes = state.route_status();
    let at: Vec<_> = services.iter().flat_map(|service| state.routes_at(service, 80, "shop")).collect();
    let grants: Vec<_> = state.reference_grants().collect();
    format!("{pods:?}\n{policies:?}\n{modes:?}\n{services:?}\n{unserved:?}\n{routes:?}\n{at:?}\n{grants:?}")
}
