//! Scripts: routes come, break, are mended and go, and this is what holds then.

use std::path::PathBuf;

use super::file::{Changes, SourceFile};
use super::object::{self, Kind, Meaning};
use super::tests::{config, directory, repository};
use super::{Current, Effect, load, validate};
use crate::routes::{BackendRef, Connections, Rules};
use crate::state::{AppProtocol, MeshState, RouteSpec, Service};

const SERVICES: &str = "
{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: web}, spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: api}, spec: {clusterIP: 10.96.0.2, ports: [{port: 80}]}}
";

const ROUTE: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {namespace: shop, name: r}
spec:
  parentRefs: [{group: '', kind: Service, name: web}]
  rules:
    - matches: [{path: {value: /api}}]
      backendRefs: [{name: api, port: 80}]
    - backendRefs: [{name: web, port: 80}]
";

/// (step: file and text, None for gone; what holds at web:80; effects of the findings).
#[test]
fn the_life_of_a_route() {
    type Step<'a> = (&'a str, Option<&'a str>, &'a str, &'a [Effect]);
    let unknown_field = ROUTE.replace("matches:", "matchs:");
    let bad_match = ROUTE.replace("{value: /api}", "{value: api}");
    let bad_filter =
        ROUTE.replace("- backendRefs: [{name: web", "- filters: [{type: New}]\n      backendRefs: [{name: web");
    let no_yaml = format!("{ROUTE}  }}: [\n");
    let no_parents = ROUTE.replace("parentRefs: [{group: '', kind: Service, name: web}]", "parentRefs: 1");
    let other_parent = bad_match.replace("name: web}]\n  rules", "name: api}]\n  rules");
    let old = ROUTE.replace("gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1alpha2");
    let scripts: Vec<Vec<Step<'_>>> = vec![
        // It comes, breaks in many ways, is mended, and goes.
        vec![
            ("r", Some(ROUTE), "/api>api />web", &[]),
            ("r", Some(&bad_match), "/api>api />web", &[Effect::PreviousStays]),
            ("r", Some(&no_yaml), "/api>api />web", &[Effect::PreviousStays]),
            ("r", Some(&no_parents), "/api>api />web", &[Effect::PreviousStays]),
            ("r", Some(&old), "/api>api />web", &[Effect::PreviousStays]),
            // One rule is lost, the other holds.
            ("r", Some(&bad_filter), "/api>api />error", &[Effect::RuleFails]),
            ("r", Some(ROUTE), "/api>api />web", &[]),
            ("r", None, "", &[]),
        ],
        // It never could be read: what it is attached to answers with an error, until it can.
        vec![
            ("r", Some(&bad_match), "*>error", &[Effect::RouteFails]),
            ("r", Some(&old), "*>error", &[Effect::RouteFails]),
            ("r", Some(ROUTE), "/api>api />web", &[]),
            ("r", Some(&bad_match), "/api>api />web", &[Effect::PreviousStays]),
        ],
        vec![("r", Some(&bad_match), "*>error", &[Effect::RouteFails]), ("r", None, "", &[])],
        // Attached elsewhere, then nowhere that could be told.
        vec![
            ("r", Some(&bad_match), "*>error", &[Effect::RouteFails]),
            ("r", Some(&other_parent), "", &[Effect::RouteFails]),
            ("r", Some(&bad_match), "*>error", &[Effect::RouteFails]),
            ("r", Some(&no_parents), "", &[Effect::Skipped]),
        ],
        // A misspelt field in a rule makes the rule fail, not match what it did not say.
        vec![("r", Some(&unknown_field), "/>error />web", &[Effect::RuleFails])],
        // Another file has it right.
        vec![
            ("r", Some(&bad_match), "*>error", &[Effect::RouteFails]),
            ("s", Some(ROUTE), "/api>api />web", &[Effect::PreviousStays]),
            ("s", None, "/api>api />web", &[Effect::PreviousStays]),
            ("r", None, "", &[]),
        ],
    ];
    for (number, script) in scripts.iter().enumerate() {
        let mut current = Current::new(&config("node-1"));
        current.take(&Changes { changed: vec![source("a", SERVICES)], gone: vec![] });
        for (step, (file, text, holds, effects)) in script.iter().enumerate() {
            current.take(&match text {
                Some(text) => Changes { changed: vec![source(file, text)], gone: vec![] },
                None => Changes { changed: vec![], gone: vec![PathBuf::from(format!("{file}.yaml"))] },
            });
            let findings = current.store.findings();
            let seen: Vec<Effect> = findings.iter().map(|finding| finding.effect).collect();
            assert_eq!(seen, *effects, "script {number}, step {step}: {findings:#?}");
            assert_eq!(holding(&current.engine.snapshot()), *holds, "script {number}, step {step}");
        }
    }
}

/// A TrafficPolicy restricts how much comes and how it is treated, never who: without an earlier version what cannot be read
/// is left out, and requests go on as with none.
#[test]
fn the_life_of_a_traffic_policy() {
    let policy = |spec: &str| {
        format!(
            "{{apiVersion: nodemesh.dev/v1alpha1, kind: TrafficPolicy, metadata: {{namespace: shop, name: t}}, \
             spec: {{targetRefs: [{{kind: Service, name: web}}], {spec}}}}}"
        )
    };
    let good = policy("timeouts: {request: 3s}");
    let other = policy("timeouts: {request: 4s}");
    let (unknown, bad) = (policy("timeout: {request: 1s}"), policy("timeouts: {request: soon}"));
    let steps: [(&str, Option<u64>, &[Effect]); 7] = [
        (&unknown, None, &[Effect::Skipped]),
        (&bad, None, &[Effect::Skipped]),
        (&good, Some(3), &[]),
        (&bad, Some(3), &[Effect::PreviousStays]),
        (&unknown, Some(3), &[Effect::PreviousStays]),
        (&other, Some(4), &[]),
        ("", None, &[]),
    ];
    let mut current = Current::new(&config("node-1"));
    current.take(&Changes { changed: vec![source("a", SERVICES)], gone: vec![] });
    for (text, seconds, effects) in steps {
        current.take(&match text {
            "" => Changes { changed: vec![], gone: vec![PathBuf::from("t.yaml")] },
            text => Changes { changed: vec![source("t", text)], gone: vec![] },
        });
        let findings = current.store.findings();
        let seen: Vec<Effect> = findings.iter().map(|finding| finding.effect).collect();
        assert_eq!(seen, effects, "{text}: {findings:#?}");
        let state = current.engine.snapshot();
        let web = state.services().find(|service| &*service.name == "web").unwrap();
        let holds = state.traffic(web, None).timeouts().request.map(|request| request.as_secs());
        assert_eq!(holds, seconds, "{text}");
    }
}

/// An object that cannot be read takes nothing else down, and is named with field, line and what follows.
#[test]
fn a_bad_object_is_named_and_the_rest_holds() {
    let grant = "{apiVersion: gateway.networking.k8s.io/v1, kind: ReferenceGrant, metadata: {namespace: shop, name: g}, spec: {from: 1}}";
    let bad = ROUTE.replace("name: r}", "name: bad}").replace("{value: /api}", "{type: Exact, value: api}");
    let udp = "{apiVersion: gateway.networking.k8s.io/v1, kind: UDPRoute, metadata: {namespace: shop, name: u}, spec: {parentRefs: [{group: '', kind: Service, name: web}]}}";
    let misspelt = ROUTE.replace("namespace: shop, name: r}", "namespce: shop, name: m}");
    let text = [SERVICES, ROUTE, &bad, grant, udp, &misspelt].join("\n---\n");
    let directory = directory(&[("a.yaml", &text)]);
    let (state, findings) = load(directory.path(), &config("node-1")).unwrap();
    assert_eq!(holding(&state), "*>error /api>api />web");
    let seen: Vec<(&str, &str, &str, Effect)> =
        findings.iter().map(|one| (&*one.kind, &*one.object, &*one.field, one.effect)).collect();
    let expected = [
        ("HTTPRoute", "shop/bad", "spec.rules[0].matches[0].path.value", Effect::RouteFails),
        ("ReferenceGrant", "shop/g", "spec.from", Effect::Skipped),
        ("HTTPRoute", "", "metadata.namespce", Effect::Skipped),
        ("UDPRoute", "u", "kind", Effect::Skipped),
    ];
    assert_eq!(seen, expected);
    let line = text.lines().position(|line| line.contains("{type: Exact, value: api}")).unwrap() as u64 + 1;
    assert_eq!(findings[0].line, Some(line));
}

/// What only the whole world tells: (a change of the route) → what `validate` says.
#[test]
fn validate_finds_routes_that_lead_nowhere() {
    let table = [
        ("name: r}", "name: r}", None),
        ("name: api, port: 80", "name: ape, port: 80", Some(("spec.rules", Effect::ShareFails))),
        ("name: api, port: 80", "name: api, port: 81", Some(("spec.rules", Effect::ShareFails))),
        (
            "name: api, port: 80",
            "name: api, port: 80, kind: Secret",
            Some(("spec.rules[0].backendRefs[0].kind", Effect::ShareFails)),
        ),
        ("Service, name: web", "Service, name: wep", Some(("spec.parentRefs", Effect::NotAttached))),
        ("Service, name: web", "Service, name: web, port: 81", Some(("spec.parentRefs", Effect::NotAttached))),
        ("Service, name: web", "Service, name: web, namespace: bank", Some(("spec.parentRefs", Effect::NotAttached))),
    ];
    for (from, to, expected) in table {
        let route = ROUTE.replace(from, to);
        let whole = directory(&[("a.yaml", SERVICES), ("r.yaml", &route)]);
        let findings = validate(whole.path(), "cluster.local").unwrap();
        let seen: Vec<(&str, Effect)> = findings.iter().map(|one| (&*one.field, one.effect)).collect();
        assert_eq!(seen, expected.into_iter().collect::<Vec<_>>(), "{to}: {findings:#?}");
        assert!(findings.iter().all(|one| one.file().is_some_and(|file| file.ends_with("r.yaml"))
            && one.object == "shop/r"
            && one.line.is_some()));
        // A file of routes alone cannot be held against that.
        let alone = directory(&[("r.yaml", &route)]);
        let by_itself = findings.iter().filter(|one| one.field.contains("backendRefs")).count();
        assert_eq!(validate(alone.path(), "cluster.local").unwrap().len(), by_itself, "{to}");
    }
    let conflict = ROUTE.replace("HTTPRoute", "GRPCRoute").replace("path: {value: /api}", "method: {service: a.B}");
    let directory = directory(&[("a.yaml", SERVICES), ("r.yaml", ROUTE), ("s.yaml", &conflict)]);
    let findings = validate(directory.path(), "cluster.local").unwrap();
    let [finding] = &findings[..] else { panic!("{findings:#?}") };
    assert_eq!((&*finding.kind, finding.effect), ("HTTPRoute", Effect::NotAttached));
}

#[test]
fn the_sample_routes_hold_as_they_say() {
    let samples = repository().join("manifests/samples");
    assert_eq!(validate(&samples, "cluster.local").unwrap(), []);
    let (state, _) = load(&samples, &config("node-1")).unwrap();
    for status in state.route_status() {
        let conditions = status.parents.iter().flat_map(|parent| &parent.conditions);
        assert!(conditions.clone().count() > 1 && conditions.clone().all(|one| one.is_good()), "{status:?}");
    }
    // (Service, port, client's namespace) → (what is spoken, the routes that hold)
    let table = [
        ("front", 80, "shop", AppProtocol::Http1, "front"),
        ("front", 80, "elsewhere", AppProtocol::Http1, "front"),
        ("front", 80, "outside", AppProtocol::Http1, "front-from-outside"),
        ("front", 9000, "outside", AppProtocol::Http1, ""),
        ("chat", 7070, "shop", AppProtocol::Grpc, "chat"),
        ("cache", 6379, "shop", AppProtocol::Bytes, "cache"),
        ("vault", 443, "shop", AppProtocol::Bytes, "vault"),
        ("api", 80, "shop", AppProtocol::Http1, ""),
        ("store", 6379, "shop", AppProtocol::Bytes, ""),
    ];
    for (name, port, namespace, protocol, routes) in table {
        let service = service(&state, name);
        let of = |spec: &RouteSpec| spec.route.name.to_string();
        let held: Vec<String> = state.routes_at(service, port, namespace).map(|spec| of(spec)).collect();
        assert_eq!(held.join(" "), routes, "{name}:{port} from {namespace}");
        assert_eq!(state.protocol(service, service.port(port).unwrap(), namespace), protocol, "{name}:{port}");
    }
    let vault = state.connections(service(&state, "vault"), 443, "shop").unwrap();
    let Connections::Named(names) = &**vault else { panic!("{vault:?}") };
    assert!(names.find(Some("a.vault.example")).is_some() && names.find(Some("example")).is_none());
    let grants: Vec<String> =
        state.reference_grants().map(|(namespace, name, _)| format!("{namespace}/{name}")).collect();
    assert_eq!(grants, ["shop/from-outside"]);
}

/// The upstream's own examples and mesh conformance manifests, from a clone of kubernetes-sigs/gateway-api: each is read
/// whole. Routes of Gateways are read as if they were on a Service, which makes them ours.
#[test]
#[ignore = "needs NODEMESH_GATEWAY_API, a clone of kubernetes-sigs/gateway-api"]
fn the_upstream_examples_are_read() {
    let clone = PathBuf::from(std::env::var_os("NODEMESH_GATEWAY_API").expect("NODEMESH_GATEWAY_API"));
    let mut files = Vec::new();
    for directory in ["examples", "conformance/tests/mesh", "conformance/mesh"] {
        yaml_files(&clone.join(directory), &mut files);
    }
    let (mut read, mut wrong) = (0, Vec::new());
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        for document in super::document::split(&text) {
            let Ok(mut value) = document.parse() else { continue };
            if value["kind"].as_str().is_some_and(|kind| kind.ends_with("Route")) {
                value["spec"]["parentRefs"] = serde_json::json!([{"group": "", "kind": "Service", "name": "web"}]);
            }
            let Meaning::Known { kind, key: Ok(key) } = object::meaning(&value) else { continue };
            if kind.route().is_none() && kind != Kind::ReferenceGrant {
                continue;
            }
            read += 1;
            match object::read(&key, &value, "cluster.local") {
                Ok(taken) => wrong.extend(
                    taken
                        .problems
                        .into_iter()
                        .filter(|(effect, _)| *effect != Effect::NoEffect)
                        .map(|(effect, problem)| format!("{}: {effect:?} {problem:?}", file.display())),
                ),
                Err(problem) => wrong.push(format!("{}: {problem:?}", file.display())),
            }
        }
    }
    println!("{read} objects\n{}", wrong.join("\n"));
    // Backends that are no Services, versions that v1.6 does not serve.
    wrong.retain(|one| {
        !["is not supported as a backend", "is not a version", "is not supported\""]
            .iter()
            .any(|known| one.contains(known))
    });
    assert!(read > 60 && wrong.is_empty(), "{wrong:#?}");
}

fn yaml_files(directory: &std::path::Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => yaml_files(&path, found),
            false if path.extension().is_some_and(|ending| ending == "yaml") => found.push(path),
            false => {}
        }
    }
}

// — helpers —

fn source(name: &str, text: &str) -> SourceFile {
    SourceFile { path: format!("{name}.yaml").into(), content: Ok(text.to_string()) }
}

fn service<'a>(state: &'a MeshState, name: &str) -> &'a Service {
    state.services().find(|service| &*service.name == name).unwrap()
}

/// What holds at web:80: the path of each rule and where it leads.
fn holding(state: &MeshState) -> String {
    let routes = state.routes_at(service(state, "web"), 80, "shop");
    let rules = routes.flat_map(|spec| match &spec.route.rules {
        Rules::Requests(rules) => rules.clone(),
        Rules::Connections(_) | Rules::ServerNames(_) => vec![],
    });
    let shown = rules.map(|rule| {
        let path = match &rule.matches[0].path {
            Some(crate::routes::PathMatch::Prefix(path)) => path.to_string(),
            _ => "*".to_string(),
        };
        let to = match &rule.backends[0].target {
            BackendRef::Service { name, .. } => name.to_string(),
            BackendRef::Wrong { .. } => "error".to_string(),
        };
        format!("{path}>{to}")
    });
    shown.collect::<Vec<_>>().join(" ")
}
