//! Tables: an object, and what the mesh takes from it.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::discovery::object::{self, Meaning};
use crate::state::{Backend, HostPort};

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

/// (change to the Service, external IPs, load balancer IPs, source ranges, node port)
#[test]
fn addresses_of_a_service() {
    let ingress = |ip: &str, mode: Value| json!({"loadBalancer": {"ingress": [{"ip": ip, "ipMode": mode}]}});
    let node_port = json!({"ports": [{"port": 80, "nodePort": 30080}]});
    let table = [
        (json!({}), "", "", "", None),
        (json!({"spec": {"ports": [{"port": 80, "nodePort": 0}]}}), "", "", "", None),
        (json!({"spec": node_port}), "", "", "", Some(30080)),
        (json!({"spec": {"externalIPs": ["198.51.100.1", "2001:db8::1"]}}), "198.51.100.1 2001:db8::1", "", "", None),
        (json!({"status": ingress("198.51.100.2", json!(null))}), "", "198.51.100.2", "", None),
        (json!({"status": ingress("198.51.100.2", json!("VIP"))}), "", "198.51.100.2", "", None),
        (json!({"status": ingress("198.51.100.2", json!("Proxy"))}), "", "", "", None),
        (json!({"status": {"loadBalancer": {"ingress": [{"hostname": "example.com"}]}}}), "", "", "", None),
        (json!({"spec": {"loadBalancerSourceRanges": [" 10.0.0.0/8 "]}}), "", "", "10.0.0.0/8", None),
        // It is about clients outside the cluster.
        (
            json!({"spec": {"externalTrafficPolicy": "Local", "externalIPs": ["198.51.100.1"]}}),
            "198.51.100.1",
            "",
            "",
            None,
        ),
        // Neither has an address of its own.
        (
            json!({"spec": {"clusterIP": "None", "externalIPs": ["198.51.100.1"], "ports": [{"port": 80, "nodePort": 30080}]}}),
            "",
            "",
            "",
            None,
        ),
        (json!({"spec": {"type": "ExternalName", "externalIPs": ["198.51.100.1"]}}), "", "", "", None),
    ];
    for (change, external, balanced, ranges, node_port) in table {
        let service = one_service(&change);
        assert_eq!(joined(&service.external.ips), external, "{change}");
        assert_eq!(joined(&service.external.load_balancer_ips), balanced, "{change}");
        assert_eq!(joined(&service.external.source_ranges), ranges, "{change}");
        assert_eq!(service.ports[0].node_port, node_port, "{change}");
    }
}

#[test]
fn traffic_of_a_service() {
    use crate::state::{Affinity, Distribution, InternalTraffic, Traffic};
    let plain = Traffic::default();
    let table = [
        (json!({}), plain),
        (json!({"internalTrafficPolicy": "Cluster", "sessionAffinity": "None"}), plain),
        (json!({"internalTrafficPolicy": "Local"}), Traffic { internal: InternalTraffic::Local, ..plain }),
        (
            json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10}}}),
            Traffic { affinity: Affinity::ClientIp, ..plain },
        ),
        (json!({"trafficDistribution": "PreferClose"}), Traffic { distribution: Distribution::SameZone, ..plain }),
        (json!({"trafficDistribution": "PreferSameZone"}), Traffic { distribution: Distribution::SameZone, ..plain }),
        (json!({"trafficDistribution": "PreferSameNode"}), Traffic { distribution: Distribution::SameNode, ..plain }),
        (json!({"trafficDistribution": "PreferSomething"}), plain),
        (json!({"publishNotReadyAddresses": true}), Traffic { publish_not_ready: true, ..plain }),
    ];
    for (spec, expected) in table {
        assert_eq!(one_service(&json!({ "spec": spec })).traffic, expected, "{spec}");
    }
}

/// (appProtocol, name of the port) → what is spoken there.
#[test]
fn protocols_of_a_port() {
    use crate::state::AppProtocol::{Bytes, Grpc, Http1, Http2};
    let table = [
        (None, "", Bytes),
        (None, "http", Http1),
        (None, "http-web", Http1),
        (None, "http2", Http2),
        (None, "http2-web", Http2),
        (None, "grpc", Grpc),
        (None, "grpc-web", Grpc),
        (None, "https", Bytes),
        (None, "httpx", Bytes),
        (None, "http3", Bytes),
        (None, "web-http", Bytes),
        (None, "tcp", Bytes),
        (Some("http"), "", Http1),
        (Some("kubernetes.io/ws"), "", Http1),
        (Some("kubernetes.io/h2c"), "", Http2),
        (Some("grpc"), "", Grpc),
        // appProtocol decides alone.
        (Some("grpc"), "http", Grpc),
        (Some("https"), "http", Bytes),
        (Some("kubernetes.io/wss"), "http", Bytes),
        (Some("redis"), "grpc-cache", Bytes),
        (Some("HTTP"), "", Bytes),
    ];
    for (app_protocol, name, expected) in table {
        let port = json!({"name": name, "port": 80, "appProtocol": app_protocol});
        let service = one_service(&json!({"spec": {"ports": [port]}}));
        assert_eq!(service.ports[0].protocol, expected, "{app_protocol:?} {name:?}");
    }
}

/// What a Service cannot mean is named with its field.
#[test]
fn services_that_cannot_be_read() {
    let table = [
        (json!({"spec": {"internalTrafficPolicy": "local"}}), "spec.internalTrafficPolicy"),
        (json!({"spec": {"sessionAffinity": "Cookie"}}), "spec.sessionAffinity"),
        (json!({"spec": {"externalIPs": ["one"]}}), "spec.externalIPs[0]"),
        (json!({"spec": {"loadBalancerSourceRanges": ["10.0.0.0/99"]}}), "spec.loadBalancerSourceRanges[0]"),
        (json!({"spec": {"ports": [{"port": 80, "nodePort": 70000}]}}), "spec.ports[0].nodePort"),
        (json!({"status": {"loadBalancer": {"ingress": [{"ip": "one"}]}}}), "status.loadBalancer.ingress[0].ip"),
    ];
    for (change, field) in table {
        let object = service_object(&change);
        let Meaning::Known { key: Ok(key), .. } = object::meaning(&object) else { panic!("a Service") };
        let problem = object::read(&key, &object, "cluster.local").expect_err("a problem");
        assert_eq!(problem.field.to_string(), field);
    }
}

#[test]
fn endpoints_of_a_slice() {
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv6",
        "metadata": {"name": "s", "labels": {"kubernetes.io/service-name": "s"}},
        "ports": [{"port": 8080}],
        "endpoints": [
            {"addresses": ["fd00::1"], "nodeName": "n", "hints": {"forZones": [{"name": "z"}], "forNodes": [{"name": "n"}]}},
            {"addresses": ["fd00::2"], "conditions": {"ready": false, "serving": true, "terminating": true}},
            {"addresses": ["fd00::3"], "conditions": {"ready": false, "serving": false}},
        ],
    });
    let world = world(&[service_object(&json!({})), slice]);
    let backend = |ip: &str| Backend::ready(ip.parse().unwrap(), 8080);
    let hints = crate::state::Hints { zones: vec!["z".into()], nodes: vec!["n".into()] };
    let expected = vec![
        Backend { node: "n".into(), hints, ..backend("fd00::1") },
        Backend { ready: false, terminating: true, ..backend("fd00::2") },
        Backend { ready: false, serving: false, ..backend("fd00::3") },
    ];
    assert_eq!(world.services[0].backends, crate::state::Backends::Listed(expected));
}

#[test]
fn nodes() {
    let node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "n", "labels": {"topology.kubernetes.io/zone": "z"}},
        "status": {"addresses": [
            {"type": "Hostname", "address": "n"},
            {"type": "InternalIP", "address": "192.168.0.1"},
            {"type": "InternalIP", "address": "fd00::1"},
            {"type": "ExternalIP", "address": "198.51.100.1"},
        ]},
    });
    let world = world(&[node, json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "bare"}})]);
    let seen: Vec<_> = world.nodes.iter().map(|node| (&*node.name, joined(&node.ips), &*node.zone)).collect();
    assert_eq!(seen, [("bare", String::new(), ""), ("n", "192.168.0.1 fd00::1 198.51.100.1".into(), "z")]);
}

#[test]
fn ports_of_the_node() {
    let pod = |spec: Value| {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "uid": "u"}, "spec": spec,
            "status": {"podIP": "10.0.0.1", "hostIP": "192.168.0.1", "hostIPs": [{"ip": "192.168.0.1"}, {"ip": "fd00::1"}]},
        });
        world(&[pod]).workloads.remove(0)
    };
    let ports = json!([
        {"containerPort": 80, "hostPort": 8080},
        {"containerPort": 81},
        {"containerPort": 82, "hostPort": 0},
        {"containerPort": 53, "hostPort": 53, "protocol": "UDP"},
        {"containerPort": 83, "hostPort": 8083, "hostIP": "192.168.0.1"},
    ]);
    let workload = pod(json!({"containers": [{"name": "c", "ports": ports}]}));
    let host_port = |ip: Option<&str>, port, target| HostPort { ip: ip.map(|ip| ip.parse().unwrap()), port, target };
    assert_eq!(workload.host_ports, [host_port(None, 8080, 80), host_port(Some("192.168.0.1"), 8083, 83)]);
    assert_eq!(joined(&workload.host_ips), "192.168.0.1 fd00::1");
    let on_host = pod(json!({"hostNetwork": true, "containers": [{"name": "c", "ports": ports}]}));
    assert_eq!(on_host.host_ports, []);
}

/// (annotation, value) → (taken, or the reason why not).
#[test]
fn exclusions_of_a_pod() {
    let many: String = (1..=65).map(|port| format!("{port},")).collect();
    let most = many.trim_end_matches(",65,");
    let table = [
        ("outbound-ports", "3306", Ok("out 3306")),
        ("outbound-ports", " 3306 ,6379,3306", Ok("out 3306 6379")),
        ("outbound-ports", "", Ok("")),
        ("inbound-ports", "9100", Ok("in 9100")),
        ("outbound-cidrs", "10.0.0.0/8, fd77::/16", Ok("net 10.0.0.0/8 fd77::/16")),
        ("outbound-cidrs", "0.0.0.0/0,::/0", Ok("net 0.0.0.0/0 ::/0")),
        ("outbound-cidrs", "169.254.169.254/32", Ok("net 169.254.169.254/32")),
        ("inbound-ports", most, Ok("in 64 of them")),
        ("outbound-ports", "3306,", Err("\"\" is not a port")),
        ("outbound-ports", "3306,http", Err("\"http\" is not a port")),
        ("outbound-ports", "0", Err("\"0\" is not a port")),
        ("outbound-ports", "65536", Err("\"65536\" is not a port")),
        ("outbound-ports", "+80", Err("\"+80\" is not a port")),
        ("outbound-ports", "8000-8100", Err("\"8000-8100\" is not a port")),
        ("outbound-ports", "80,15008", Err("15008 is the agents' own port")),
        ("inbound-ports", "15008", Err("15008 is the agents' own port")),
        ("inbound-ports", many.trim_end_matches(','), Err("65 entries; 64 at most")),
        ("outbound-cidrs", "10.0.0.0", Err("\"10.0.0.0\" is not a CIDR")),
        ("outbound-cidrs", "10.0.0.0/33", Err("\"10.0.0.0/33\" is not a CIDR")),
        ("outbound-cidrs", "10.0.0.0/8,db.example/32", Err("\"db.example/32\" is not a CIDR")),
        ("outbound-cidrs", "10.1.2.3/8", Err("bits beyond its prefix; 10.0.0.0/8 is the network")),
        ("outbound-cidrs", "127.128.0.0/9", Err("loopback")),
        ("outbound-cidrs", "::1/128", Err("loopback")),
        ("outbound-cidrs", "fe80::/64", Err("link-local")),
        ("outbound-cidrs", "fd6e:6f64:656d:6573::/64", Err("the mesh's own range")),
        ("outbound-cidrs", "fd6e:6f64:656d:6572::9/128", Err("the mesh's own range")),
        ("outbound-cidrs", "::ffff:10.0.0.0/104", Err("write it as IPv4")),
        ("outbound-port", "80", Err("unknown: ")),
    ];
    for (name, value, expected) in table {
        let name = format!("nodemesh.dev/exclude-{name}");
        let annotations = BTreeMap::from([(name.clone(), value.to_string()), ("other".to_string(), "80".to_string())]);
        let mut problems = Vec::new();
        let taken = exclusions::read(Some(&annotations), &mut problems);
        match expected {
            Ok(expected) => {
                assert_eq!((shown(&taken), &problems[..]), (expected.to_string(), &[][..]), "{name}: {value}");
            }
            Err(reason) => {
                assert_eq!(taken, crate::state::Exclusions::default(), "{name}: {value}");
                let [problem] = &problems[..] else { panic!("{name}: {value}: {problems:?}") };
                assert_eq!(problem.field.to_string(), format!("metadata.annotations[{name:?}]"));
                assert!(problem.reason.contains(reason), "{name}: {value}: {}", problem.reason);
            }
        }
    }
}

fn shown(exclusions: &crate::state::Exclusions) -> String {
    let crate::state::Exclusions { outbound_ports, inbound_ports, outbound_networks } = exclusions;
    let part = |word: &str, entries: Vec<String>| match entries.len() {
        0 => String::new(),
        1..=9 => format!("{word} {}", entries.join(" ")),
        many => format!("{word} {many} of them"),
    };
    let texts = |ports: &std::collections::BTreeSet<u16>| ports.iter().map(u16::to_string).collect();
    let networks = outbound_networks.iter().map(ToString::to_string).collect();
    [part("out", texts(outbound_ports)), part("in", texts(inbound_ports)), part("net", networks)].concat()
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
        if let Meaning::Known { key: Ok(key), .. } = object::meaning(&object)
            && let Err(problem) = object::read(&key, &object, "cluster.local")
        {
            let _ = stand_in(&key, &object, &problem);
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
        Just(("v1", "Node")),
        Just(("v1", "Namespace")),
        Just(("discovery.k8s.io/v1", "EndpointSlice")),
        Just(("gateway.networking.k8s.io/v1", "HTTPRoute")),
        Just(("gateway.networking.k8s.io/v1", "GRPCRoute")),
        Just(("gateway.networking.k8s.io/v1", "TCPRoute")),
        Just(("gateway.networking.k8s.io/v1", "TLSRoute")),
        Just(("gateway.networking.k8s.io/v1", "ReferenceGrant")),
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
            Just("nodePort"),
            Just("hostPort"),
            Just("externalIPs"),
            Just("loadBalancer"),
            Just("ingress"),
            Just("addresses"),
            Just("endpoints"),
            Just("parentRefs"),
            Just("Service"),
            Just("group"),
            Just("matches"),
            Just("path"),
            Just("value"),
            Just("filters"),
            Just("backendRefs"),
            Just("weight"),
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
    let mut store = crate::discovery::store::Store::new("cluster.local");
    store.apply(&[file], &[]);
    assert_eq!(store.findings(), []);
    crate::discovery::join::world(&store)
}

pub(super) fn merge(into: &mut Value, change: Value) {
    match (into, change) {
        (Value::Object(into), Value::Object(change)) => {
            for (key, value) in change {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, change) => *into = change,
    }
}

fn one_service(change: &Value) -> crate::state::ServiceSpec {
    world(&[service_object(change)]).services.remove(0)
}

fn service_object(change: &Value) -> Value {
    let mut service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]},
    });
    merge(&mut service, change.clone());
    service
}

fn joined(items: &[impl ToString]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}
