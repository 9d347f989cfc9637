//! Tables: an object, and what the mesh takes from it.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::discovery::object::{self, Meaning};

/// (own label, namespace's label, spec) → enrolled, refused.
#[test]
fn enrolment() {
    let plain = json!({"containers": []});
    let host = json!({"containers": [], "hostNetwork": true});
    let kata = json!({"containers": [], "runtimeClassName": "kata-qemu"});
    let gvisor = json!({"containers": [], "runtimeClassName": "gvisor"});
    let windows = json!({"containers": [], "os": {"name": "windows"}});
    let table = [
        (None, None, &plain, (false, false)),
        (Some("enabled"), None, &plain, (true, false)),
        (None, Some("enabled"), &plain, (true, false)),
        (Some("disabled"), Some("enabled"), &plain, (false, false)),
        (Some("enabled"), Some("disabled"), &plain, (true, false)),
        (None, Some("enabled"), &host, (false, true)),
        (Some("disabled"), Some("enabled"), &host, (false, false)),
        (None, None, &host, (false, false)),
        (Some("enabled"), None, &kata, (false, true)),
        (Some("enabled"), None, &gvisor, (false, true)),
        (Some("enabled"), None, &windows, (false, true)),
    ];
    for (own, namespace, spec, expected) in table {
        let label = |value: Option<&str>| value.map_or(json!({}), |value| json!({MESH_LABEL: value}));
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n", "labels": label(namespace)}});
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": "n", "name": "p", "uid": "u", "labels": label(own)},
            "spec": spec, "status": {"podIPs": [{"ip": "10.0.0.1"}]},
        });
        let world = world(&[namespace, pod]);
        let [workload] = &world.workloads[..] else { panic!("no pod") };
        assert_eq!((workload.enrolled, workload.refusal.is_some()), expected, "{own:?} {spec}");
    }
}

#[test]
fn pods() {
    let pod = |change: Value| {
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "uid": "u"},
            "spec": {"containers": [
                {"name": "a", "ports": [{"name": "http", "containerPort": 80}, {"name": "dns", "protocol": "UDP", "containerPort": 53}]},
            ], "initContainers": [
                {"name": "once", "ports": [{"name": "once", "containerPort": 1}]},
                {"name": "side", "restartPolicy": "Always", "ports": [{"name": "side", "containerPort": 2}]},
            ]},
            "status": {"phase": "Running", "podIPs": [{"ip": "::ffff:10.0.0.1"}, {"ip": "fd00::1"}]},
        });
        merge(&mut pod, change);
        let world = world(&[pod]);
        world.workloads.into_iter().next()
    };
    let workload = pod(json!({})).unwrap();
    assert_eq!(workload.ips, ["10.0.0.1", "fd00::1"].map(|ip| ip.parse::<std::net::IpAddr>().unwrap()));
    assert_eq!(workload.identity.to_string(), "spiffe://cluster.local/ns/default/sa/default");
    assert_eq!(workload.named_ports, BTreeMap::from([("http".into(), 80), ("side".into(), 2)]));
    assert!(workload.ready && !workload.terminating && workload.created.is_none());

    let with = |change| pod(change).unwrap();
    assert_eq!(with(json!({"metadata": {"creationTimestamp": "1970-01-01T00:01:00Z"}})).created, Some(60));
    assert!(with(json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})).terminating);
    assert!(!with(json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}})).ready);
    assert!(!with(json!({"status": {"phase": "Pending"}})).ready);
    assert!(pod(json!({"status": {"phase": "Succeeded"}})).is_none());
    assert!(pod(json!({"status": {"phase": "Failed"}})).is_none());
    assert!(pod(json!({"status": {"podIPs": []}})).is_none());
    assert_eq!(with(json!({"status": {"podIPs": [], "podIP": "10.0.0.9"}})).ips.len(), 1);
}

#[test]
fn services_and_slices() {
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "n", "name": "s"},
        "spec": {"clusterIP": "None", "clusterIPs": ["None"], "selector": {"a": "b"}, "ports": [
            {"name": "dns", "port": 53, "protocol": "UDP"},
            {"name": "http", "port": 80, "targetPort": "web"},
            {"name": "same", "port": 81},
            {"name": "zero", "port": 82, "targetPort": 0},
        ]},
    });
    let slice = |family: &str, address: &str, ready: Value| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "metadata": {"namespace": "n", "name": format!("s-{family}"), "labels": {"kubernetes.io/service-name": "s"}},
            "ports": [{"name": "http", "port": 8080}, {"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "all", "port": null}],
            "endpoints": [{"addresses": [address], "conditions": {"ready": ready}}],
        })
    };
    let world = world(&[
        service,
        slice("IPv4", "10.0.0.1", json!(null)),
        slice("IPv6", "fd00::1", json!(false)),
        slice("FQDN", "example.com", json!(true)),
    ]);
    let [service] = &world.services[..] else { panic!("one Service") };
    assert!(service.cluster_ips.is_empty());
    let targets: Vec<_> = service.ports.iter().map(|port| (&*port.name, port.port, port.target.clone())).collect();
    use crate::state::TargetPort::{Name, Number};
    assert_eq!(targets, [("http", 80, Name("web".into())), ("same", 81, Number(81)), ("zero", 82, Number(82))]);
    let backend =
        |ip: &str, ready| Backend { port_name: "http".into(), ready, ..Backend::ready(ip.parse().unwrap(), 8080) };
    let expected = vec![backend("10.0.0.1", true), backend("fd00::1", false)];
    assert_eq!(service.backends, crate::state::Backends::Listed(expected));
}

#[test]
fn an_external_name_is_no_destination() {
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
        "spec": {"type": "ExternalName", "externalName": "example.com", "clusterIP": "10.0.0.1", "selector": {"a": "b"}},
    });
    let world = world(&[service]);
    assert!(world.services[0].cluster_ips.is_empty() && world.services[0].selector.is_none());
}

proptest! {
    /// Whatever a document says, it is taken or refused with a field, never a panic.
    #[test]
    fn anything_is_taken_or_refused(kind in a_kind(), metadata in a_value(), spec in a_value(), status in a_value()) {
        let (api_version, kind) = kind;
        let object = json!({"apiVersion": api_version, "kind": kind, "metadata": metadata, "spec": spec, "status": status});
        if let Meaning::Known { key: Ok(key), .. } = object::meaning(&object) {
            let _ = object::read(&key, &object, "cluster.local");
        }
        if let Meaning::Known { kind, key } = object::meaning(&object) {
            let _ = unreadable(kind, key.ok().as_ref(), &object);
        }
    }

    /// Splitting loses no document and counts lines rightly, whatever is between the markers.
    #[test]
    fn documents_stand_where_they_stood(bodies in prop::collection::vec("[a-z]{1,8}(\n[ a-z]{0,8}){0,3}", 1..6)) {
        let text = bodies.join("\n---\n");
        let documents = crate::discovery::document::split(&text);
        prop_assert_eq!(documents.len(), bodies.len());
        for (document, body) in documents.iter().zip(&bodies) {
            prop_assert_eq!(document.text.trim(), body.trim());
            let first = body.lines().next().unwrap();
            let offset = document.text.lines().take_while(|line| line.trim().is_empty()).count();
            prop_assert_eq!(text.lines().nth(document.line as usize - 1 + offset), Some(first));
        }
    }
}

fn a_kind() -> impl Strategy<Value = (&'static str, &'static str)> {
    prop_oneof![
        Just(("v1", "Pod")),
        Just(("v1", "Service")),
        Just(("v1", "Namespace")),
        Just(("discovery.k8s.io/v1", "EndpointSlice")),
        Just(("nodemesh.dev/v1alpha1", "PeerAuthentication")),
        Just(("nodemesh.dev/v1alpha1", "AuthorizationPolicy")),
    ]
}

/// Trees of the words that objects are made of.
fn a_value() -> impl Strategy<Value = Value> {
    let word = || {
        prop_oneof![
            Just("name"),
            Just("namespace"),
            Just("uid"),
            Just("ports"),
            Just("port"),
            Just("podIPs"),
            Just("ip"),
            Just("targetRefs"),
            Just("kind"),
            Just("Pod"),
            Just("Namespace"),
            Just("selector"),
            Just("action"),
            Just("DENY"),
            Just("rules"),
            Just("sources"),
            Just("type"),
            Just("Any"),
            Just("spiffe"),
            Just("mode"),
            Just("STRICT"),
            Just("containers"),
            Just("clusterIPs"),
            Just("targetPort"),
            Just("10.0.0.1"),
            Just(""),
        ]
    };
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        word().prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 40, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((word(), inner), 0..6).prop_map(|pairs| Value::Object(
                pairs.into_iter().map(|(key, value)| (key.to_string(), value)).collect()
            )),
        ]
    })
}

// — helpers —

fn world(objects: &[Value]) -> crate::state::World {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    let file = crate::discovery::file::SourceFile { path: "a.json".into(), content: Ok(list.to_string()) };
    let store = crate::discovery::store::Store::default().apply(&[file], "cluster.local");
    assert_eq!(store.findings, []);
    crate::discovery::join::world(&store)
}

fn merge(into: &mut Value, change: Value) {
    match (into, change) {
        (Value::Object(into), Value::Object(change)) => {
            for (key, value) in change {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, change) => *into = change,
    }
}
