//! What comes out, compared with files in fixtures/convert; and that our own discovery takes it. After a change that is
//! meant: `GOLDEN=write cargo test -p mesh-agent --lib ctl::convert`, then look at what git shows.

use std::fs;
use std::path::{Path, PathBuf};

use super::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ctl/fixtures/convert").join(name)
}

fn converted(text: &str, convert: fn(&World, &mut Converted)) -> Converted {
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join("all.yaml"), text).unwrap();
    let documents = discovery::raw(place.path()).unwrap();
    let objects = documents.into_iter().flat_map(|document| Object::all(document.unwrap())).collect();
    World { objects, root: "istio-system".into(), mesh: "nodemesh-system".into() }.converted(convert).unwrap()
}

/// What our discovery finds wrong with it.
fn refused(converted: &Converted, others: &str) -> Vec<String> {
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join("all.yaml"), format!("{}\n---\n{others}", converted.yaml().unwrap())).unwrap();
    let findings = discovery::validate(place.path(), "cluster.local").unwrap();
    // Services that the objects name are not among them.
    findings.iter().filter(|finding| !finding.field.is_empty()).map(ToString::to_string).collect()
}

fn golden(name: &str, convert: fn(&World, &mut Converted)) {
    let came = converted(&fs::read_to_string(fixture(&format!("{name}.yaml"))).unwrap(), convert);
    assert_eq!(refused(&came, ""), Vec::<String>::new(), "our own discovery refuses what came out");
    let notes: String = came.notes.iter().map(|note| format!("# {}\n", note.line())).collect();
    let text = format!("{notes}{}\n", came.yaml().unwrap());
    let file = fixture(&format!("{name}.golden.yaml"));
    if std::env::var_os("GOLDEN").is_some_and(|what| what == "write") {
        fs::write(&file, &text).unwrap();
    }
    let expected = fs::read_to_string(&file).unwrap_or_default();
    assert!(text == expected, "{name} is otherwise:\n{text}");
}

#[test]
fn policies_of_istio() {
    golden("istio-security", istio::convert);
}

#[test]
fn traffic_of_istio() {
    golden("istio-traffic", istio::convert);
}

#[test]
fn smi() {
    golden("smi", smi::convert);
}

fn policy(action: &str, rule: &str) -> Converted {
    let text = format!(
        "{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: p, namespace: shop}}, spec: {{action: \
         {action}, rules: [{rule}]}}}}"
    );
    converted(&text, istio::convert)
}

/// What cannot be said, in the words of a rule. In an ALLOW policy none of it may allow anything, in a DENY policy each must
/// still deny what it did.
#[test]
fn no_authorization_is_widened() {
    let inexact = [
        "{from: [{source: {principals: [cluster.local/ns/a/sa/b], namespaces: [c]}}]}",
        "{from: [{source: {remoteIpBlocks: [10.0.0.0/8]}}]}",
        "{from: [{source: {namespaces: ['a*']}}]}",
        "{from: [{source: {}}]}",
        "{from: [{source: {principals: nobody}}]}",
        "{from: [{source: {principals: [cluster.local/ns/a/sa/b], hue: [red]}}]}",
        "{to: [{operation: {notPorts: ['80']}}]}",
        "{to: [{operation: {hosts: ['a.example:8080']}}]}",
        "{to: [{operation: {ports: [http]}}]}",
        "{to: [{operation: {}}]}",
        "{when: [{key: source.ip, values: [10.0.0.1]}]}",
        "{when: [{key: destination.port, values: ['80']}]}",
        "{unless: [{}]}",
    ];
    for rule in inexact {
        let allow = policy("ALLOW", rule);
        assert_eq!(allow.objects[0]["spec"]["rules"], json!([]), "{rule}: ALLOW without a rule means nobody");
        assert!(allow.notes.iter().all(|note| note.effect == Effect::Stricter) && !allow.notes.is_empty(), "{rule}");
        let deny = policy("DENY", rule);
        assert_eq!(deny.objects[0]["spec"]["rules"].as_array().map(Vec::len), Some(1), "{rule}: DENY stays");
        assert!(!deny.notes.is_empty(), "{rule}: it is not said");
        for converted in [&allow, &deny] {
            assert_eq!(refused(converted, ""), Vec::<String>::new(), "{rule}");
        }
    }
    // A good rule beside a bad one stays.
    let both = policy("ALLOW", &format!("{{from: [{{source: {{namespaces: [a]}}}}]}}, {}", inexact[1]));
    assert_eq!(both.objects[0]["spec"]["rules"].as_array().map(Vec::len), Some(1));
    // Where even the target cannot be said, nothing is written, and it is said.
    for target in
        ["selector: {matchExpressions: []}", "targetRefs: [{kind: Gateway, name: g}]", "selector: {matchLabels: {}}"]
    {
        let text = format!(
            "{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: p, namespace: shop}}, spec: \
             {{{target}, rules: [{{}}]}}}}"
        );
        let came = converted(&text, istio::convert);
        assert_eq!(
            (came.objects.len(), came.notes.first().map(|note| note.effect)),
            (0, Some(Effect::NotConverted)),
            "{target}"
        );
    }
    // What our own discovery does not take is not written, and said.
    let refused = policy("ALLOW", "{to: [{operation: {paths: [items]}}]}");
    assert_eq!((refused.objects.len(), refused.notes[0].effect), (0, Effect::NotConverted), "{:?}", refused.notes);
    let dry = converted(
        "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: p, namespace: shop, annotations: \
         {istio.io/dry-run: 'true'}}, spec: {rules: [{}]}}",
        istio::convert,
    );
    assert_eq!((dry.objects.len(), dry.notes[0].effect), (0, Effect::NotConverted));
    // A DENY without a rule means nobody there, and everybody here.
    assert_eq!(policy("DENY", "").objects, Vec::<Value>::new());
    assert_eq!(policy("CUSTOM", "{}").notes[0].effect, Effect::NotConverted);
}

#[test]
fn nothing_is_left_out_without_a_word() {
    let table = [
        ("networking.istio.io/v1", "Sidecar", "{}"),
        (
            "networking.istio.io/v1",
            "VirtualService",
            "{hosts: [a], http: [{fault: {}, route: [{destination: {host: a, port: {number: 80}}}]}]}",
        ),
        (
            "networking.istio.io/v1",
            "VirtualService",
            "{hosts: [a], tcp: [{}], http: [{route: [{destination: {host: a, port: {number: 80}}}]}]}",
        ),
        (
            "networking.istio.io/v1",
            "VirtualService",
            "{hosts: [a], gateways: [front], http: [{route: [{destination: {host: a, port: {number: 80}}}]}]}",
        ),
        (
            "networking.istio.io/v1",
            "VirtualService",
            "{hosts: [a], http: [{route: [{destination: {host: a, subset: v1, port: {number: 80}}}]}]}",
        ),
        ("networking.istio.io/v1", "VirtualService", "{hosts: [a], http: [{route: [{destination: {host: a}}]}]}"),
        ("networking.istio.io/v1", "VirtualService", "{hosts: [example.com.], http: [{}]}"),
        ("networking.istio.io/v1", "DestinationRule", "{host: a, trafficPolicy: {tls: {mode: SIMPLE}}}"),
        (
            "networking.istio.io/v1",
            "DestinationRule",
            "{host: a, trafficPolicy: {loadBalancer: {simple: PASSTHROUGH}}}",
        ),
        ("networking.istio.io/v1", "DestinationRule", "{host: a, workloadSelector: {}}"),
        ("security.istio.io/v1", "PeerAuthentication", "{mtls: {mode: SOMETIMES}}"),
        (
            "security.istio.io/v1",
            "RequestAuthentication",
            "{jwtRules: [{issuer: a, jwksUri: 'https://a/k', timeout: 5s}]}",
        ),
    ];
    for (version, kind, spec) in table {
        let text =
            format!("{{apiVersion: {version}, kind: {kind}, metadata: {{name: x, namespace: shop}}, spec: {spec}}}");
        let came = converted(&text, istio::convert);
        assert_eq!(came.objects, Vec::<Value>::new(), "{text}");
        assert!(came.notes.iter().any(|note| note.effect == Effect::NotConverted), "{text}: {:?}", came.notes);
    }
}
