//! Scripts: a directory changes, and this is what comes of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use super::store::Store;
use super::{Config, Effect, Finding, GATE, Health, Origin, Source, crd, load, run, validate};
use crate::drain::Drain;
use crate::policy::{DenyReason, Facts, Mode, Provider, authorize};
use crate::readiness::Readiness;
use crate::routing::{self, OutboundMode, Refusal, Route, Transport, resolve};
use crate::sandboxes::{Sandbox, Sandboxes};
use crate::spiffe::SpiffeId;
use crate::state::{Destination, MeshState, StateReader, StateWriter, Workload};

const NAMESPACE: &str =
    "{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {nodemesh.dev/mesh: enabled}}}";
pub(super) const DENY: &str = "
apiVersion: nodemesh.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: no-web}
spec:
  targetRefs: [{kind: Pod, selector: {matchLabels: {app: api}}}]
  action: DENY
  rules: [{sources: [{type: ServiceAccount, serviceAccount: {name: web}}]}]
";

#[test]
fn the_samples_are_sound_and_mean_what_they_say() {
    let config = config("node-2");
    let (state, findings) = load(&repository().join("manifests/samples"), &config).unwrap();
    assert_eq!(findings, []);
    let web = state.workload_by_ip("10.1.1.1".parse().unwrap()).unwrap().clone();
    let api = state.workload_by_ip("fd00:2::1".parse().unwrap()).unwrap().clone();
    let store = state.workload_by_ip("10.1.2.2".parse().unwrap()).unwrap().clone();
    assert!(web.enrolled && api.enrolled);
    assert!(!state.workload_by_ip("10.1.1.9".parse().unwrap()).unwrap().enrolled);

    // Through the Service: both pods, each at the port that it gives the name.
    let mut places = upstreams(&state, &web, "10.96.0.10:80");
    places.sort();
    assert_eq!(places, [("10.1.1.2:8081".into(), true), ("10.1.2.1:8080".into(), true)]);
    assert_eq!(upstreams(&state, &web, "10.96.0.11:6379"), [("10.1.2.2:6379".into(), true)]);

    let judged = |workload: &Workload, source: Option<&str>, ip: &str, port| {
        let policy = state.inbound_policy(&workload.uid).unwrap();
        let source = source.map(|id| SpiffeId::parse(id).unwrap());
        let facts = Facts {
            source,
            is_same_node: false,
            source_ip: ip.parse().unwrap(),
            destination_ip: workload.ips[0],
            destination_port: port,
        };
        authorize(policy, &facts).map(|permit| permit.rule().map(ToString::to_string)).map_err(|denial| denial.reason)
    };
    let id = |name: &str| format!("spiffe://cluster.local/{name}");
    let web_id = id("ns/shop/sa/web");
    assert_eq!(judged(&api, Some(&web_id), "10.1.1.1", 8080), Ok(Some("shop/api-callers".into())));
    assert_eq!(judged(&api, Some(&id("ns/shop/sa/store")), "10.1.2.2", 8080), Err(DenyReason::NoAllowRule));
    assert_eq!(judged(&api, Some(&id("ns/outside/sa/x")), "10.1.1.9", 9090), Err(DenyReason::DenyRule));
    assert_eq!(judged(&api, None, "10.1.1.9", 8080), Err(DenyReason::StrictPlaintext));
    assert_eq!(judged(&api, None, "10.1.1.9", 9090), Ok(None));
    assert_eq!(judged(&store, Some(&web_id), "10.1.1.1", 6379), Ok(Some("shop/store-callers".into())));
    assert_eq!(judged(&store, Some(&web_id), "10.1.1.1", 22), Err(DenyReason::NoAllowRule));
}

/// The sample of every kind of Service, dialled from a pod of each node.
#[test]
fn the_sample_services_lead_where_they_say() {
    const ONE: &str = "10.1.1.2:8081";
    const TWO: &str = "10.1.2.1:8080";
    let table: [(&str, &[&str], &[&str]); 12] = [
        ("10.96.0.20:80", &[ONE], &[TWO]),
        ("10.96.0.21:80", &[ONE], &[TWO]),
        ("10.96.0.23:80", &[ONE, TWO], &[ONE, TWO]),
        ("192.168.0.1:30080", &[ONE, TWO], &[ONE, TWO]),
        ("192.168.0.2:30080", &[ONE, TWO], &[ONE, TWO]),
        ("[fd00:aaaa::2]:30080", &["[fd00:1::2]:8081", "[fd00:2::1]:8080"], &["[fd00:1::2]:8081", "[fd00:2::1]:8080"]),
        ("198.51.100.23:80", &[ONE, TWO], &[ONE, TWO]),
        ("198.51.100.24:80", &[ONE, TWO], &[ONE, TWO]),
        ("10.1.2.1:8080", &[TWO], &[TWO]),
        ("10.96.0.26:80", &["203.0.113.26:8080"], &["203.0.113.26:8080"]),
        ("192.168.0.1:8443", &["10.1.1.10:443"], &["10.1.1.10:443"]),
        ("[fd00:aaaa::1]:8443", &["[fd00:1::10]:443"], &["[fd00:1::10]:443"]),
    ];
    for (node, client, column) in [("node-1", "10.1.1.1", 0), ("node-2", "10.1.2.2", 1)] {
        let (state, findings) = load(&repository().join("manifests/samples"), &config(node)).unwrap();
        assert_eq!(findings, []);
        let client = workload(&state, client);
        for (address, from_one, from_two) in table {
            let mut seen = upstreams(&state, &client, address);
            seen.sort();
            let tunnelled = !address.starts_with("10.96.0.26:");
            let expected = if column == 0 { from_one } else { from_two };
            let expected: Vec<(String, bool)> = expected.iter().map(|place| (place.to_string(), tunnelled)).collect();
            assert_eq!(seen, expected, "{address} from {node}");
        }
        let left_alone = resolve(&state, &client, dialled("198.51.100.25:80"), OutboundMode::AllowAny, 1);
        assert!(matches!(left_alone, Route::PassThrough(_)), "{left_alone:?}");
        assert_eq!(state.vips_without_endpoint().count(), 0);
    }
}

#[test]
fn crds_are_the_committed_ones() {
    let directory = repository().join("manifests/crds");
    for (name, generated) in crd::manifests().unwrap() {
        let path = directory.join(name);
        if std::env::var_os("NODEMESH_WRITE_CRDS").is_some() {
            fs::create_dir_all(&directory).unwrap();
            fs::write(&path, &generated).unwrap();
        }
        let committed = fs::read_to_string(&path).unwrap_or_default();
        assert!(committed == generated, "{} is stale: run this test with NODEMESH_WRITE_CRDS=1", path.display());
    }
}

/// What is wrong, where, and what follows: `(document, line, field, part of the reason, effect)`.
#[test]
fn what_cannot_be_read_is_named() {
    let policy = |spec: &str| {
        format!(
            "# a comment\n---\napiVersion: nodemesh.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{namespace: shop, name: p}}\n{spec}"
        )
    };
    let authz = |rest: &str| policy(&format!("spec:\n  targetRefs: [{{kind: Namespace}}]\n{rest}"));
    let peer = |spec: &str| {
        format!(
            "apiVersion: nodemesh.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {{namespace: shop, name: p}}\n{spec}"
        )
    };
    let table: Vec<(String, u64, &str, &str, Effect)> = vec![
        (authz("  action: ALOW\n"), 8, "spec.action", "unknown variant `ALOW`", Effect::TargetDeniesAll),
        (authz("  action: ALLOW\n  rulez: []\n"), 9, "spec.rulez", "unknown field `rulez`", Effect::TargetDeniesAll),
        (
            authz("  action: ALLOW\n  rules:\n    - sources:\n        - type: SPIFFE\n          spiffe: 'spiffe://a*b'\n"),
            12,
            "spec.rules[0].sources[0].spiffe",
            "`*`",
            Effect::TargetDeniesAll,
        ),
        (
            authz("  action: ALLOW\n  rules:\n    - sources: []\n"),
            10,
            "spec.rules[0].sources",
            "empty",
            Effect::TargetDeniesAll,
        ),
        (authz("  action: DENY\n  rules: [{}]\n"), 9, "spec.rules[0]", "missing field `sources`", Effect::TargetDeniesAll),
        (
            authz("  action: ALLOW\n  rules:\n    - sources: [{type: Any}]\n      ports: [0]\n"),
            11,
            "spec.rules[0].ports[0]",
            "not a port",
            Effect::TargetDeniesAll,
        ),
        (
            authz("  action: ALLOW\n  rules:\n    - sources: [{type: Any}]\n      requests: [{paths: []}]\n"),
            11,
            "spec.rules[0].requests[0].paths",
            "empty",
            Effect::TargetDeniesAll,
        ),
        (
            authz("  action: DENY\n  rules:\n    - sources: [{type: Any}]\n      requests: [{}]\n"),
            11,
            "spec.rules[0].requests[0]",
            "empty",
            Effect::TargetDeniesAll,
        ),
        (
            authz("  action: DENY\n  rules:\n    - sources: [{type: Any}]\n      requests: [{paths: [/a/../b]}]\n"),
            11,
            "spec.rules[0].requests[0].paths[0]",
            "no request has this path",
            Effect::TargetDeniesAll,
        ),
        (
            authz("  action: DENY\n  rules:\n    - sources: [{type: Any}]\n      requests: [{methods: [get]}]\n"),
            11,
            "spec.rules[0].requests[0].methods[0]",
            "capitals",
            Effect::TargetDeniesAll,
        ),
        (
            authz("  action: DENY\n  rules:\n    - sources: [{type: Any}]\n      requests: [{hosts: ['a:80']}]\n"),
            11,
            "spec.rules[0].requests[0].hosts[0]",
            "ports",
            Effect::TargetDeniesAll,
        ),
        (
            authz("  action: DENY\n  rules:\n    - sources: [{type: Any}]\n      requests: [{grpc: [{}]}]\n"),
            11,
            "spec.rules[0].requests[0].grpc[0]",
            "empty",
            Effect::TargetDeniesAll,
        ),
        (
            authz("  action: DENY\n  rules:\n    - sources: [{type: Any}]\n      when: [{key: x, values: [a]}]\n"),
            11,
            "spec.rules[0].when[0].key",
            "not known",
            Effect::TargetDeniesAll,
        ),
        (
            authz("  action: DENY\n  rules:\n    - sources: [{type: Any}]\n      when: [{key: request.auth.principal}]\n"),
            11,
            "spec.rules[0].when[0]",
            "neither values nor notValues",
            Effect::TargetDeniesAll,
        ),
        (
            authz("  action: ALLOW\n  rules:\n    - sources:\n        - {type: IPBlock, ipBlock: {cidr: 10.0.0.0/33}}\n"),
            11,
            "spec.rules[0].sources[0].ipBlock.cidr",
            "not a range",
            Effect::TargetDeniesAll,
        ),
        (
            authz("  action: DENY\n  rules:\n    - sources: [{type: ServiceAccount, serviceAccount: {name: 'web*'}}]\n"),
            10,
            "spec.rules[0].sources[0].serviceAccount.name",
            "wildcards",
            Effect::TargetDeniesAll,
        ),
        (
            authz("  action: DENY\n  rules:\n    - sources: [{type: Any, namespace: x}]\n"),
            10,
            "spec.rules[0].sources[0].namespace",
            "does not go with",
            Effect::TargetDeniesAll,
        ),
        (policy("spec: {targetRefs: [], action: DENY}\n"), 6, "spec.targetRefs", "empty", Effect::TargetDeniesAll),
        (policy("spec: {action: AUDIT}\n"), 6, "spec", "missing field `targetRefs`", Effect::Skipped),
        (policy("spce: {}\n"), 6, "spce", "unknown field", Effect::TargetDeniesAll),
        (
            peer("spec: {targetRefs: [{kind: Service, name: x}], mode: STRICT}\n"),
            4,
            "spec.targetRefs[0].kind",
            "Pod or Namespace",
            Effect::TargetStrict,
        ),
        (
            peer("spec: {targetRefs: [{kind: Namespace}], portOverrides: [{port: 1, mode: STRICT}]}\n"),
            4,
            "spec.portOverrides[0].port",
            "kind Pod with a selector",
            Effect::TargetStrict,
        ),
        (
            "{apiVersion: nodemesh.dev/v1, kind: PeerAuthentication, metadata: {name: p}, spec: {}}".into(),
            1,
            "apiVersion",
            "not a version",
            Effect::TargetStrict,
        ),
        ("{apiVersion: nodemesh.dev/v1alpha1, kind: Polcy, metadata: {name: p}}".into(), 1, "kind", "no kind", Effect::Skipped),
        (
            "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: p}}".into(),
            1,
            "apiVersion",
            "not read",
            Effect::Skipped,
        ),
        (
            "kind: List\napiVersion: v1\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: a}}\n- apiVersion: v1\n  kind: Service\n  metadata: {name: s}\n  spec:\n    clusterIP: 10.0.0\n".into(),
            9,
            "spec.clusterIP",
            "not an IP",
            Effect::Skipped,
        ),
        (
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: x\n  labels:\n    nodemesh.dev/mesh: 'true'\n".into(),
            6,
            "metadata.labels[\"nodemesh.dev/mesh\"]",
            "neither",
            Effect::Skipped,
        ),
        ("a: [\n".into(), 1, "", "not YAML", Effect::Skipped),
    ];
    for (text, line, field, reason, effect) in table {
        let directory = directory(&[("a.yaml", &text)]);
        let findings = validate(directory.path(), "cluster.local").unwrap();
        let [finding] = &findings[..] else { panic!("{text}\n{findings:#?}") };
        assert_eq!((&*finding.field, finding.effect), (field, effect), "{text}\n{finding}");
        assert!(finding.reason.contains(reason), "{text}\n{finding}");
        assert_eq!(finding.line, Some(line), "{text}\n{finding}");
    }
}

/// A pod is in the mesh whole when one of its annotations cannot be read; the others hold.
#[test]
fn an_exclusion_that_cannot_be_read_excludes_nothing() {
    let annotations = "nodemesh.dev/exclude-outbound-ports: '80,x', nodemesh.dev/exclude-inbound-ports: '9'";
    let text = world().replace("name: web, uid", &format!("name: web, annotations: {{{annotations}}}, uid"));
    let directory = directory(&[("a.yaml", &text)]);
    let (state, findings) = load(directory.path(), &config("node-1")).unwrap();
    let [finding] = &findings[..] else { panic!("{text}\n{findings:#?}") };
    assert_eq!(finding.field, "metadata.annotations[\"nodemesh.dev/exclude-outbound-ports\"]");
    assert_eq!((&*finding.kind, finding.effect), ("Pod", Effect::ExcludesNothing));
    let excluding = state.workloads().find(|pod| !pod.exclusions.inbound_ports.is_empty()).unwrap();
    assert!(excluding.enrolled && excluding.exclusions.outbound_ports.is_empty());
}

/// Claims are passed on for those alone whose owner asks for it in the one word that is known.
#[test]
fn an_ingress_is_marked_by_its_owner() {
    for (annotations, passed_on, is_named) in [
        ("", false, false),
        ("nodemesh.dev/forwarded: append", true, false),
        ("nodemesh.dev/forwarded: Append", false, true),
        ("nodemesh.dev/forwarded: ''", false, true),
    ] {
        let text = world().replace("name: web, uid", &format!("name: web, annotations: {{{annotations}}}, uid"));
        let directory = directory(&[("a.yaml", &text)]);
        let (state, findings) = load(directory.path(), &config("node-1")).unwrap();
        assert_eq!(state.workloads().any(|pod| pod.forwards), passed_on, "{annotations}");
        let named: Vec<_> = findings.iter().map(|finding| finding.effect).collect();
        assert_eq!(named, if is_named { vec![Effect::ClaimsDropped] } else { vec![] }, "{annotations}\n{findings:#?}");
    }
}

#[test]
fn a_finding_reads_as_one_line() {
    let text = DENY.replace("DENY", "DENI");
    let directory = directory(&[("a.yaml", &text)]);
    let finding = validate(directory.path(), "cluster.local").unwrap().remove(0);
    let expected = "a.yaml:7: AuthorizationPolicy shop/no-web spec.action: unknown variant `DENI`, expected one of \
                    `ALLOW`, `DENY`, `AUDIT`, `CUSTOM` (there is no previous version, so its target refuses every connection)";
    assert_eq!(format!("{}", Finding { origin: Origin::File("a.yaml".into()), ..finding }), expected);
}

#[test]
fn an_unreadable_policy_refuses_at_its_target_and_only_there() {
    let unreadable_target = DENY.replace("kind: Pod", "kind: Pods");
    let unreadable_action = DENY.replace("DENY", "DENI");
    let no_yaml = format!("{DENY}  }}: [\n");
    let no_name = DENY.replace("namespace: shop, name", "namespce: shop, name");
    // (policy, api refuses, web refuses)
    let table = [
        (&unreadable_action, true, false),
        (&unreadable_target, true, true),
        (&no_yaml, true, true),
        (&no_name, true, true),
    ];
    for (text, api_refuses, web_refuses) in table {
        let directory = directory(&[("a.yaml", &world()), ("p.yaml", text)]);
        let (state, findings) = load(directory.path(), &config("node-1")).unwrap();
        assert_eq!(findings.len(), 1, "{findings:?}");
        let refuses = |uid: &str| {
            let denial = authorize(state.inbound_policy(uid).unwrap(), &facts(None)).err();
            denial.is_some_and(|denial| denial.reason == DenyReason::UnreadablePolicy)
        };
        assert_eq!((refuses("uid-api"), refuses("uid-web")), (api_refuses, web_refuses), "{text}");
    }
}

#[test]
fn an_unreadable_peer_authentication_is_strict() {
    let text = "{apiVersion: nodemesh.dev/v1alpha1, kind: PeerAuthentication, metadata: {namespace: shop, name: p}, spec: {mode: OPEN}}";
    let directory = directory(&[("a.yaml", &world()), ("p.yaml", text)]);
    let (state, _) = load(directory.path(), &config("node-1")).unwrap();
    let denial = authorize(state.inbound_policy("uid-api").unwrap(), &facts(None)).unwrap_err();
    assert_eq!((denial.reason, denial.rule.as_deref()), (DenyReason::StrictPlaintext, Some("shop/p")));
    assert!(authorize(state.inbound_policy("uid-api").unwrap(), &facts(Some("web"))).is_ok());
}

#[tokio::test]
async fn a_change_is_published_and_what_breaks_keeps_its_last_good_version() {
    let directory = directory(&[("a.yaml", &world()), ("p.yaml", DENY)]);
    let mut mesh = Running::start(directory.path()).await;
    assert_eq!(mesh.judge("web"), Err(DenyReason::DenyRule));
    assert!(mesh.readiness.missing().is_empty());

    let broken = [
        DENY.replace("action", "actoin"),
        DENY.replace("rules: [{", "rules: [}"),
        DENY.replace("metadata: {", "metadata: {}"),
        DENY.replace("name: no-web", "nmae: no-web"),
        DENY.replace("AuthorizationPolicy", "AuthorisationPolicy"),
        "---\n{".to_string(),
    ];
    for broken in broken {
        mesh.write("p.yaml", &broken).await;
        assert_eq!(mesh.judge("web"), Err(DenyReason::DenyRule), "{broken}");
        assert_eq!(mesh.health.report().findings.len(), 1, "{broken}");
        assert_eq!(mesh.health.report().findings[0].effect, Effect::PreviousStays, "{broken}");
    }
    mesh.write("p.yaml", &DENY.replace("name: web", "name: other")).await;
    assert_eq!(mesh.judge("web"), Ok(()));
    assert!(mesh.health.report().findings.is_empty());

    mesh.write("p.yaml", DENY).await;
    fs::remove_file(directory.path().join("p.yaml")).unwrap();
    mesh.published().await;
    assert_eq!(mesh.judge("web"), Ok(()));

    // The directory goes: the last good state stays, and health says so.
    mesh.write("p.yaml", DENY).await;
    fs::remove_dir_all(directory.path()).unwrap();
    while mesh.health.report().unreachable.is_none() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(mesh.judge("web"), Err(DenyReason::DenyRule));
    assert_eq!(mesh.health.report().objects, 4);

    // It comes back with another content.
    fs::create_dir_all(directory.path()).unwrap();
    mesh.write("a.yaml", &world()).await;
    assert_eq!(mesh.judge("web"), Ok(()));
    assert_eq!(mesh.health.report().unreachable, None);
    mesh.stop().await;
}

/// Keys that cannot be read vouch for nobody, and a RequestAuthentication that cannot be read lets nobody in.
#[test]
fn a_request_authentication_that_cannot_be_read_refuses() {
    let secret = r#"{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}"#;
    let with = |rules: &str| {
        format!(
            "apiVersion: nodemesh.dev/v1alpha1\nkind: RequestAuthentication\nmetadata: {{namespace: shop, name: p}}\n\
             spec:\n  targetRefs: [{{kind: Namespace}}]\n  jwtRules: {rules}\n"
        )
    };
    for (rules, field, reason) in [
        ("[]".to_string(), "spec.jwtRules", "empty"),
        ("[{issuer: a, jwks: '{}'}]".to_string(), "spec.jwtRules[0].jwks", "no JWK Set"),
        ("[{issuer: a, jwks: '{\"keys\": []}'}]".to_string(), "spec.jwtRules[0].jwks", "no key in it"),
        (format!("[{{issuer: a, jwks: '{secret}'}}]"), "spec.jwtRules[0].jwks", "symmetric"),
        ("[{issuer: a}]".to_string(), "spec.jwtRules[0].jwks", "neither jwks nor jwksUri"),
        ("[{issuer: a, jwksURI: 'https://a/keys'}]".to_string(), "spec.jwtRules[0].jwksURI", "unknown field"),
        ("[{issuer: a, jwksUri: 'https://me:pw@a/keys'}]".to_string(), "spec.jwtRules[0].jwksUri", "password"),
        ("[{issuer: a, jwksUri: 'file:///etc/keys'}]".to_string(), "spec.jwtRules[0].jwksUri", "not an address"),
        ("[{issuer: a, jwks: '{}', jwksUri: 'https://a/k'}]".to_string(), "spec.jwtRules[0].jwksUri", "with jwks"),
        ("[{issuer: '', jwks: '{}'}]".to_string(), "spec.jwtRules[0].issuer", "empty"),
        (
            "[{issuer: a, jwks: '{}', fromHeaders: [{name: host}]}]".to_string(),
            "spec.jwtRules[0].fromHeaders[0].name",
            "not for this",
        ),
        ("[{issuer: a, jwks: '{}', audiences: []}]".to_string(), "spec.jwtRules[0].audiences", "empty"),
    ] {
        let directory = directory(&[("a.yaml", &world()), ("p.yaml", &with(&rules))]);
        let (state, findings) = load(directory.path(), &config("node-1")).unwrap();
        let [finding] = &findings[..] else { panic!("{rules}: {findings:#?}") };
        assert_eq!((finding.field.as_str(), finding.effect), (field, Effect::TargetDeniesAll), "{finding:?}");
        assert!(finding.reason.contains(reason), "{finding:?}");
        let denial = authorize(state.inbound_policy("uid-api").unwrap(), &facts(Some("web"))).unwrap_err();
        assert_eq!(denial.reason, DenyReason::UnreadablePolicy, "{rules}");
    }
}

/// Where keys are to be had is known to the node of the pods that the policy is about, and to no other.
#[test]
fn keys_that_are_elsewhere_are_wanted_where_they_are_needed() {
    let policy = "apiVersion: nodemesh.dev/v1alpha1
kind: RequestAuthentication
metadata: {namespace: shop, name: p}
spec:
  targetRefs: [{kind: Namespace}]
  jwtRules: [{issuer: a, jwksUri: 'https://a/k'}, {issuer: b, jwksUri: 'https://a/k'}, {issuer: c, jwksUri: 'https://c'}]
";
    let directory = directory(&[("a.yaml", &world()), ("p.yaml", policy)]);
    for (node, wanted) in [("node-1", vec!["https://a/k", "https://c"]), ("elsewhere", vec![])] {
        let (state, findings) = load(directory.path(), &config(node)).unwrap();
        assert_eq!(findings, []);
        let seen: Vec<String> = state.keys_wanted().iter().map(ToString::to_string).collect();
        assert_eq!(seen, wanted, "{node}");
    }
}

/// Who may be asked, and whom a policy means.
#[test]
fn authorizers_are_read_or_refused_and_a_policy_names_one_that_is_there() {
    let authorizer = |namespace: &str, spec: &str| {
        format!(
            "---\napiVersion: nodemesh.dev/v1alpha1\nkind: ExternalAuthorizer\nmetadata: {{name: opa, namespace: {namespace}}}\nspec: {spec}\n"
        )
    };
    let policy = |rest: &str| {
        format!(
            "---\napiVersion: nodemesh.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\n\
             spec: {{targetRefs: [{{kind: Namespace}}], rules: [{{sources: [{{type: Any}}]}}], {rest}}}\n"
        )
    };
    let custom = policy("action: CUSTOM, provider: {name: opa}");
    let read = |texts: &[String]| {
        let directory = directory(&[("a.yaml", &world()), ("p.yaml", &texts.concat())]);
        load(directory.path(), &config("node-1")).unwrap()
    };
    let good = "{service: {name: opa, port: 9191}, protocol: GRPC}";
    for (texts, service) in [
        (vec![custom.clone(), authorizer("shop", good)], Some("shop")),
        (vec![custom.clone(), authorizer("nodemesh-system", good)], Some("nodemesh-system")),
        (vec![custom.clone(), authorizer("nodemesh-system", good), authorizer("shop", good)], Some("shop")),
        (vec![custom.clone(), authorizer("other", good)], None),
        (vec![custom.clone()], None),
    ] {
        let (state, findings) = read(&texts);
        let provider =
            Provider { places: vec![("shop".into(), "opa".into()), ("nodemesh-system".into(), "opa".into())] };
        let found = state.authorizer(&provider).map(|found| found.service.0.to_string());
        assert_eq!(found.as_deref(), service, "{texts:?}");
        let effects: Vec<Effect> = findings.iter().map(|finding| finding.effect).collect();
        let expected = if service.is_some() { vec![] } else { vec![Effect::RefusesUnasked] };
        assert_eq!(effects, expected, "{findings:?}");
        // The connection is made, but no byte of it passes unread.
        let policy = state.inbound_policy("uid-api").unwrap();
        assert_eq!(authorize(policy, &facts(Some("web"))).unwrap_err().reason, DenyReason::RequestsUnread);
    }
    let (state, _) = read(&[authorizer(
        "shop",
        "{service: {name: a, namespace: auth, port: 1}, protocol: HTTP,
        timeout: 200ms, failOpen: true, statusOnError: 503, pathPrefix: /check/, includeRequestHeadersInCheck: [X-A],
        headersToUpstreamOnAllow: [x-user], headersToDownstreamOnDeny: [location],
        includeRequestBodyInCheck: {maxRequestBytes: 8, allowPartialMessage: true}}",
    )]);
    let all = state.authorizers();
    let [one] = &all[..] else { panic!("{all:?}") };
    let shown = serde_json::to_value(one).unwrap();
    assert_eq!(
        shown,
        serde_json::json!({
            "id": "shop/opa", "service": ["auth", "a"], "port": 1, "timeout": 200, "failOpen": true,
            "statusOnError": 503, "body": {"most": 8, "allowPartial": true},
            "protocol": {"http": {"pathPrefix": "/check", "shown": ["x-a"], "toApplication": ["x-user"],
                "toCaller": ["location"]}},
        })
    );
    for (text, field, reason) in [
        (authorizer("shop", "{service: {name: a, port: 0}, protocol: GRPC}"), "spec.service.port", "0 is not a port"),
        (authorizer("shop", "{service: {name: A, port: 1}, protocol: GRPC}"), "spec.service.name", "not a Kubernetes"),
        (authorizer("shop", "{service: {name: a, port: 1}, protocol: TCP}"), "spec.protocol", "TCP"),
        (authorizer("shop", "{service: {name: a, port: 1}, protocol: GRPC, timeout: 11s}"), "spec.timeout", "10s"),
        (authorizer("shop", "{service: {name: a, port: 1}, protocol: GRPC, timeout: 0s}"), "spec.timeout", "1ms"),
        (
            authorizer("shop", "{service: {name: a, port: 1}, protocol: GRPC, pathPrefix: /a}"),
            "spec.pathPrefix",
            "HTTP",
        ),
        (authorizer("shop", "{service: {name: a, port: 1}, protocol: HTTP, pathPrefix: a}"), "spec.pathPrefix", "path"),
        (
            authorizer("shop", "{service: {name: a, port: 1}, protocol: HTTP, pathPrefix: '/a?b'}"),
            "spec.pathPrefix",
            "path",
        ),
        (
            authorizer("shop", "{service: {name: a, port: 1}, protocol: HTTP, statusOnError: 200}"),
            "spec.statusOnError",
            "400",
        ),
        (
            authorizer("shop", "{service: {name: a, port: 1}, protocol: HTTP, headersToUpstreamOnAllow: [host]}"),
            "spec.headersToUpstreamOnAllow[0]",
            "no header",
        ),
        (
            authorizer(
                "shop",
                "{service: {name: a, port: 1}, protocol: HTTP, includeRequestBodyInCheck: {maxRequestBytes: 0}}",
            ),
            "spec.includeRequestBodyInCheck.maxRequestBytes",
            "1 to",
        ),
        (
            authorizer("shop", "{service: {name: a, port: 1}, protocol: GRPC, failopen: true}"),
            "spec.failopen",
            "unknown",
        ),
        (policy("action: CUSTOM"), "spec.provider", "missing"),
        (policy("action: DENY, provider: {name: opa}"), "spec.provider", "CUSTOM only"),
        (policy("action: CUSTOM, provider: {name: 'O*'}"), "spec.provider.name", "not a Kubernetes"),
    ] {
        let (_, findings) = read(std::slice::from_ref(&text));
        let [finding] = &findings[..] else { panic!("{text}: {findings:#?}") };
        assert_eq!(finding.field, field, "{finding:?}");
        assert!(finding.reason.contains(reason), "{finding:?}");
    }
}

/// A text that somebody broke in any one place never opens what it closed: either it is named and the last good
/// version stays, or it is a sound text that says something else.
#[test]
fn no_typo_opens_silently() {
    let file = |text: String| super::file::SourceFile { path: "p.yaml".into(), content: Ok(text) };
    let objects = super::file::SourceFile { path: "a.yaml".into(), content: Ok(world()) };
    let read = |files: &[super::file::SourceFile]| {
        let mut store = Store::new("cluster.local");
        store.apply(files, &[]);
        store
    };
    let before = read(&[objects.clone(), file(DENY.into())]);
    let opened = |store: &Store| {
        let state = MeshState::build(1, "node-1", &super::join::world(store));
        authorize(state.inbound_policy("uid-api").unwrap(), &facts(Some("web"))).is_ok()
    };
    assert!(!opened(&before));
    let mut silent = Vec::new();
    for (index, letter) in DENY.char_indices() {
        let (left, right) = (&DENY[..index], &DENY[index + letter.len_utf8()..]);
        for text in [format!("{left}{right}"), format!("{left}{letter}x{right}"), format!("{left}{{{right}")] {
            let mut after = before.clone();
            after.apply(&[file(text.clone())], &[]);
            if opened(&after) {
                assert!(after.findings().is_empty(), "{text}\n{:#?}", after.findings());
                silent.push(text.clone());
            }
            let fresh = read(&[objects.clone(), file(text.clone())]);
            let named = fresh.findings().iter().all(|finding| finding.effect == Effect::Skipped);
            assert!(!opened(&fresh) || named, "{text}\n{:#?}", fresh.findings());
        }
    }
    // What is sound and opens: another namespace or service account, another label, a comment, another word for a kind
    // that is not ours.
    for text in silent {
        let sound = ["no-web}", "app: api", "kind: AuthorizationPolicy", "account", "shop"];
        let touched =
            sound.iter().filter(|word| !text.contains(*word)).count() + usize::from(!text.contains("name: web}"));
        assert!(touched > 0, "{text}");
    }
}

#[tokio::test]
async fn unchanged_content_publishes_nothing() {
    let directory = directory(&[("a.yaml", &world())]);
    let mut mesh = Running::start(directory.path()).await;
    fs::write(directory.path().join("a.yaml"), world()).unwrap();
    fs::write(directory.path().join("README.md"), "not ours").unwrap();
    let changed = tokio::time::timeout(Duration::from_millis(800), mesh.reader.changed()).await;
    assert!(changed.is_err());
    mesh.stop().await;
}

#[tokio::test]
async fn a_directory_that_comes_later_is_waited_for() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("later");
    let (writer, mut reader) = StateWriter::new("node-1");
    let (readiness, health, drain) = (Readiness::default(), Health::default(), Drain::new());
    let source = Source::Directory(path.clone());
    let task = tokio::spawn(run(
        source,
        config("node-1"),
        writer,
        health,
        readiness.clone(),
        Sandboxes::default(),
        drain.token(),
    ));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(readiness.missing()[0].0, GATE);
    let staging = parent.path().join("staging");
    fs::create_dir(&staging).unwrap();
    fs::write(staging.join("a.yaml"), world()).unwrap();
    fs::rename(&staging, &path).unwrap();
    assert!(reader.changed().await);
    assert_eq!(reader.current().local_workloads().count(), 2);
    drain.start();
    task.await.unwrap().unwrap();
}

#[test]
fn modes_reach_the_callers() {
    let disable = "
apiVersion: nodemesh.dev/v1alpha1
kind: PeerAuthentication
metadata: {namespace: shop, name: plain}
spec:
  targetRefs: [{kind: Pod, selector: {matchLabels: {app: api}}}]
  portOverrides: [{port: 9090, mode: DISABLE}]
";
    let directory = directory(&[("a.yaml", &world()), ("p.yaml", disable)]);
    let (state, findings) = load(directory.path(), &config("node-9")).unwrap();
    assert_eq!(findings, []);
    let (web, api) = (workload(&state, "10.0.0.1"), workload(&state, "10.0.0.2"));
    assert_eq!((state.peer_mode(&api, 9090), state.peer_mode(&api, 80)), (Mode::Disable, Mode::Permissive));
    assert_eq!(upstreams(&state, &web, "10.0.0.2:9090"), [("10.0.0.2:9090".into(), false)]);
    assert_eq!(upstreams(&state, &web, "10.0.0.2:80"), [("10.0.0.2:80".into(), true)]);
    let unknown = resolve(&state, &web, dialled("192.0.2.1:80"), OutboundMode::RegistryOnly, 1);
    assert_eq!(unknown, Route::Refused(Refusal::NotInRegistry));
    // TLS on one node too, by an object that says nothing else.
    assert!(!state.is_encrypted_on_its_node(&api));
    let encrypt = disable.replace("portOverrides: [{port: 9090, mode: DISABLE}]", "sameNode: Encrypt");
    std::fs::write(directory.path().join("p.yaml"), encrypt).unwrap();
    let (state, findings) = load(directory.path(), &config("node-9")).unwrap();
    assert_eq!(findings, []);
    assert!(state.is_encrypted_on_its_node(&api) && !state.is_encrypted_on_its_node(&web));
    assert_eq!(state.peer_mode(&api, 80), Mode::Permissive);
}

// — helpers —

struct Running {
    directory: PathBuf,
    reader: StateReader,
    health: Health,
    readiness: Readiness,
    drain: Drain,
    task: tokio::task::JoinHandle<Result<(), super::Error>>,
}

impl Running {
    async fn start(directory: &Path) -> Self {
        let (writer, mut reader) = StateWriter::new("node-1");
        let (readiness, health, drain) = (Readiness::default(), Health::default(), Drain::new());
        let source = Source::Directory(directory.to_path_buf());
        let task = tokio::spawn(run(
            source,
            config("node-1"),
            writer,
            health.clone(),
            readiness.clone(),
            Sandboxes::default(),
            drain.token(),
        ));
        assert!(reader.changed().await);
        // Health follows the publication.
        while health.report().seen.is_none() {
            tokio::task::yield_now().await;
        }
        Self { directory: directory.to_path_buf(), reader, health, readiness, drain, task }
    }

    /// Writes as an operator should: elsewhere, then into place.
    async fn write(&mut self, name: &str, text: &str) {
        let staged = self.directory.join(format!(".{name}"));
        fs::write(&staged, text).unwrap();
        fs::rename(&staged, self.directory.join(name)).unwrap();
        self.published().await;
    }

    async fn published(&mut self) {
        let changed = tokio::time::timeout(Duration::from_secs(20), self.reader.changed()).await;
        assert!(changed.expect("a snapshot within the poll interval"));
        let version = self.reader.current().version;
        while self.health.report().version < version {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn judge(&self, account: &str) -> Result<(), DenyReason> {
        let state = self.reader.current();
        let Some(policy) = state.inbound_policy("uid-api") else { return Err(DenyReason::UnreadablePolicy) };
        authorize(policy, &facts(Some(account))).map(drop).map_err(|denial| denial.reason)
    }

    async fn stop(self) {
        self.drain.start();
        self.task.await.unwrap().unwrap();
    }
}

/// Whether the pod api refuses the identity web.
pub(super) fn denies_web(state: &MeshState) -> bool {
    state.inbound_policy("uid-api").is_none_or(|policy| authorize(policy, &facts(Some("web"))).is_err())
}

fn facts(account: Option<&str>) -> Facts {
    Facts {
        source: account.map(|name| SpiffeId::new("cluster.local", "shop", name).unwrap()),
        is_same_node: false,
        source_ip: "10.0.0.1".parse().unwrap(),
        destination_ip: "10.0.0.2".parse().unwrap(),
        destination_port: 80,
    }
}

pub(super) fn world() -> String {
    format!("{NAMESPACE}\n{}{}", pod("web", "web", "10.0.0.1"), pod("api", "api", "10.0.0.2"))
}

fn pod(name: &str, app: &str, ip: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Pod
metadata: {{namespace: shop, name: {name}, uid: uid-{name}, labels: {{app: {app}}}}}
spec: {{nodeName: node-1, serviceAccountName: {name}, containers: [{{name: c, ports: [{{name: http, containerPort: 8080}}]}}]}}
status: {{phase: Running, podIPs: [{{ip: {ip}}}]}}
"
    )
}

pub(super) fn directory(files: &[(&str, &str)]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(directory.path().join(name), text).unwrap();
    }
    directory
}

pub(super) fn config(node: &str) -> Config {
    Config { node: node.into(), trust_domain: "cluster.local".into() }
}

pub(super) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn workload(state: &MeshState, ip: &str) -> Workload {
    (**state.workload_by_ip(ip.parse().unwrap()).unwrap()).clone()
}

fn dialled(address: &str) -> crate::addr::OrigDstAddr {
    crate::addr::OrigDstAddr::new(address.parse().unwrap())
}

/// Where a connection may go, and whether by tunnel.
fn upstreams(state: &MeshState, source: &Workload, address: &str) -> Vec<(String, bool)> {
    let dialled = dialled(address);
    let upstreams = match resolve(state, source, dialled, OutboundMode::AllowAny, 7) {
        Route::Upstreams { upstreams, .. } => upstreams,
        Route::Requests { .. } => match state.destination(dialled.socket(), routing::client_ip(source, dialled)) {
            Destination::Service { service, port, frontend } => {
                routing::endpoints(state, source, (service, port, frontend), dialled, 7)
            }
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    };
    let tunnel = |transport: &Transport| matches!(transport, Transport::Tunnel(_) | Transport::SameNode(_));
    upstreams.iter().map(|upstream| (upstream.address.to_string(), tunnel(&upstream.transport))).collect()
}

#[test]
fn the_sample_of_a_traffic_policy_holds_at_its_service() {
    let (state, findings) = load(&repository().join("manifests/samples"), &config("node-1")).unwrap();
    assert_eq!(findings, []);
    let of = |name: &str| {
        let service = state.services().find(|service| &*service.name == name).unwrap();
        state.traffic(service, None)
    };
    let api = of("api");
    assert_eq!(api.timeouts().request, Some(Duration::from_secs(10)));
    assert_eq!(api.retry().unwrap().attempts, 2);
    assert_eq!(api.rate_limits().map(|(_, limit)| limit.requests).collect::<Vec<_>>(), [200, 1000]);
    assert_eq!(of("store"), Default::default());
}

#[test]
fn of_two_traffic_policies_on_one_target_the_older_counts_and_the_other_is_named() {
    let directory = TempDir::new().unwrap();
    let policy = |name: &str, created: &str, spec: &str| {
        let metadata = format!("{{namespace: shop, name: {name}, creationTimestamp: '{created}'}}");
        format!("---\napiVersion: nodemesh.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {metadata}\nspec:\n{spec}\n")
    };
    let targets = "  targetRefs: [{kind: Service, name: a}, {kind: Service, name: web}]";
    let old = policy("old", "2026-01-01T00:00:00Z", "  targetRefs: [{kind: Service, name: web}]");
    let young = policy("young", "2026-02-01T00:00:00Z", targets);
    let path = directory.path().join("policies.yaml");
    fs::write(&path, format!("{young}{old}")).unwrap();
    let finding = |line, object: &str, field: &str, reason: &str, effect| Finding {
        origin: Origin::File(path.clone()),
        line: Some(line),
        kind: "TrafficPolicy".into(),
        object: object.into(),
        field: field.into(),
        reason: reason.into(),
        effect,
    };
    let overruled = finding(1, "shop/young", "spec.targetRefs[1]", "is a target of shop/old too", Effect::OlderCounts);
    assert_eq!(validate(directory.path(), "cluster.local").unwrap(), [overruled]);

    // What cannot be read counts nowhere, and a misspelt field is one.
    let broken = policy("old", "2026-01-01T00:00:00Z", "  targetRefs: [{kind: Service, name: web}]\n  retrys: {}");
    fs::write(&path, format!("{young}{broken}")).unwrap();
    let findings = validate(directory.path(), "cluster.local").unwrap();
    let found: Vec<_> = findings.iter().map(|finding| (&*finding.object, &*finding.field, finding.effect)).collect();
    assert_eq!(found, [("shop/old", "spec.retrys", Effect::Skipped)]);
}

/// A pod has the addresses of its sandbox before its object tells them, and in the object's order afterwards.
#[tokio::test]
async fn a_sandbox_gives_a_pod_its_addresses_first() {
    const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: fresh, namespace: shop, uid: u-fresh}\n\
         spec: {nodeName: NODE, containers: []}\n";
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("here.yaml"), POD.replace("NODE", "node-1")).unwrap();
    let other = POD.replace("NODE", "node-2").replace("fresh", "other");
    fs::write(directory.path().join("there.yaml"), other).unwrap();
    let (writer, mut reader) = StateWriter::new("node-1");
    let (sandboxes, drain) = (Sandboxes::default(), Drain::new());
    let source = Source::Directory(directory.path().to_path_buf());
    let (health, readiness) = (Health::default(), Readiness::default());
    let task = tokio::spawn(run(source, config("node-1"), writer, health, readiness, sandboxes.clone(), drain.token()));
    assert!(reader.changed().await);
    assert_eq!(reader.current().workloads().count(), 0, "without an address a pod does not count");
    let ips = |reader: &StateReader| -> Vec<Vec<std::net::IpAddr>> {
        reader.current().workloads().map(|workload| workload.ips.clone()).collect()
    };
    let netns = || fs::File::open("/proc/self/ns/net").unwrap();
    let (v4, v6): (std::net::IpAddr, std::net::IpAddr) = ("10.0.0.2".parse().unwrap(), "fd99::2".parse().unwrap());
    for uid in ["u-fresh", "u-other"] {
        sandboxes.add(uid.into(), Sandbox::new(uid, vec![v4, v6], netns()).unwrap());
        while !reader.current().workloads().any(|workload| &*workload.uid == "u-fresh") {
            assert!(reader.changed().await);
        }
    }
    assert_eq!(ips(&reader), [[v4, v6]], "a pod of another node has no sandbox here");
    let told = POD.replace("NODE", "node-1") + "status: {phase: Running, podIPs: [{ip: 'fd99::2'}, {ip: 10.0.0.2}]}\n";
    fs::write(directory.path().join("here.yaml"), told).unwrap();
    while ips(&reader) != [[v6, v4]] {
        assert!(reader.changed().await);
    }
    sandboxes.remove("u-fresh");
    while reader.current().version == 0 || ips(&reader) != [[v6, v4]] {
        assert!(reader.changed().await);
    }
    drain.start();
    task.await.unwrap().unwrap();
}

/// What an earlier agent was told of a sandbox is in the first snapshot: nothing of such a pod is taken for a leftover.
#[tokio::test]
async fn the_first_snapshot_knows_of_sandboxes() {
    let directory = tempfile::tempdir().unwrap();
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: fresh, namespace: shop, uid: u-fresh}\n\
         spec: {nodeName: node-1, containers: []}\n";
    fs::write(directory.path().join("pod.yaml"), pod).unwrap();
    let (writer, mut reader) = StateWriter::new("node-1");
    let (sandboxes, drain) = (Sandboxes::default(), Drain::new());
    let netns = fs::File::open("/proc/self/ns/net").unwrap();
    sandboxes.add("u-fresh".into(), Sandbox::new("c", vec!["10.0.0.2".parse().unwrap()], netns).unwrap());
    let source = Source::Directory(directory.path().to_path_buf());
    let (health, readiness) = (Health::default(), Readiness::default());
    let task = tokio::spawn(run(source, config("node-1"), writer, health, readiness, sandboxes, drain.token()));
    assert!(reader.changed().await);
    assert_eq!(reader.current().local_workloads().count(), 1);
    drain.start();
    task.await.unwrap().unwrap();
}
