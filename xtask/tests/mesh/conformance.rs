//! The mesh tests of Gateway API's conformance suite (v1.6.3, conformance/tests/mesh), between real pods on two nodes. A
//! row has the name of the suite's test; its routes and requests are those of the suite, here on a Service of its own, so
//! that all rows hold at once. The suite asks again until an answer is right twenty times; here all routes are in force
//! before the first request, and each answer has to be right.
//!
//! Ring 1 has the same table, as far as routes decide it: `routes/tests/conformance.rs` of the agent.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use xtask::rings::can_use_kernel;
use xtask::testbed::{
    AgentOptions, Family, PodSpec, ServiceSpec, Testbed, eventually, grpc_calls, start_grpc_echo, start_reflector,
};

const PATIENCE: Duration = Duration::from_secs(60);
const MESH: &str = "gateway-conformance-mesh";
const CONSUMER: &str = "gateway-conformance-mesh-consumer";

/// Ports of the pods.
const HTTP: u16 = 8080;
const GRPC: u16 = 7070;

/// The requests by which shares are measured, and how many may be off: six standard deviations. The suite asks until one
/// of ten such measurements is within five per cent.
const MANY: usize = 400;
const MOST_OFF: usize = 55;

/// What the suite's servers would be asked.
const CALL: &str = "/gateway_api_conformance.echo_basic.grpcecho.GrpcEcho/Echo";

/// One test of the suite: its Service, its route, its requests.
struct Row {
    name: &'static str,
    service: &'static str,
    route: Option<Value>,
    cases: Vec<Case>,
}

/// One request and what has to become of it.
#[derive(Clone)]
struct Case {
    client: &'static str,
    service: Option<&'static str>,
    /// The pod's own address is asked instead of the Service's.
    is_direct: bool,
    port: u16,
    host: &'static str,
    path: &'static str,
    fields: Vec<(&'static str, &'static str)>,
    want: Want,
    /// The path that the application sees.
    sees_path: Option<&'static str>,
    /// Fields that the application sees, and those that it must not.
    sees: Vec<(&'static str, &'static str)>,
    absent: Vec<&'static str>,
    /// `x-header-set` of the answer.
    marked: Option<Option<&'static str>>,
}

#[derive(Clone)]
enum Want {
    /// An answer of this pod.
    Pod(&'static str),
    /// An answer of one of the pods.
    Anyone,
    Status(&'static str),
    Redirect(&'static str, &'static str),
}

fn ask(path: &'static str, want: Want) -> Case {
    Case {
        client: "client",
        service: None,
        is_direct: false,
        port: 80,
        host: "echo",
        path,
        fields: Vec::new(),
        want,
        sees_path: None,
        sees: Vec::new(),
        absent: Vec::new(),
        marked: None,
    }
}

fn v1(path: &'static str) -> Case {
    ask(path, Want::Pod("echo-v1"))
}

fn v2(path: &'static str) -> Case {
    ask(path, Want::Pod("echo-v2"))
}

fn none(path: &'static str) -> Case {
    ask(path, Want::Status("404"))
}

fn moved(path: &'static str, status: &'static str, to: &'static str) -> Case {
    ask(path, Want::Redirect(status, to))
}

impl Case {
    fn with(mut self, name: &'static str, value: &'static str) -> Self {
        self.fields.push((name, value));
        self
    }

    fn sees(mut self, name: &'static str, value: &'static str) -> Self {
        self.sees.push((name, value));
        self
    }

    fn sees_no(mut self, name: &'static str) -> Self {
        self.absent.push(name);
        self
    }

    fn marked(self, value: Option<&'static str>) -> Self {
        Self { marked: Some(value), ..self }
    }

    fn host(self, host: &'static str) -> Self {
        Self { host, ..self }
    }
}

fn route(kind: &str, namespace: &str, service: &str, port: Option<u16>, rules: Value) -> Value {
    let mut parent = json!({"group": "", "kind": "Service", "name": service, "namespace": MESH});
    if let Some(port) = port {
        parent["port"] = port.into();
    }
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": kind,
        "metadata": {"name": format!("{service}-{namespace}"), "namespace": namespace},
        "spec": {"parentRefs": [parent], "rules": rules},
    })
}

fn http(service: &str, rules: Value) -> Option<Value> {
    Some(route("HTTPRoute", MESH, service, Some(80), rules))
}

fn to(backend: &str) -> Value {
    json!([{"name": backend, "port": 80}])
}

fn prefix(path: &str) -> Value {
    json!({"path": {"type": "PathPrefix", "value": path}})
}

fn redirect(path: &str, more: Value) -> Value {
    json!({"matches": [prefix(path)], "filters": [{"type": "RequestRedirect", "requestRedirect": more}]})
}

/// A rule that marks answers.
fn marking(backend: &str, mark: &str) -> Value {
    let filter = json!({"set": [{"name": "X-Header-Set", "value": mark}]});
    json!([{
        "filters": [{"type": "ResponseHeaderModifier", "responseHeaderModifier": filter}],
        "backendRefs": to(backend),
    }])
}

/// A change of a request's fields.
fn change(set: &[(&str, &str)], add: &[(&str, &str)], remove: &[&str]) -> Value {
    let pairs = |pairs: &[(&str, &str)]| -> Vec<Value> {
        pairs.iter().map(|(name, value)| json!({"name": name, "value": value})).collect()
    };
    let change = json!({"set": pairs(set), "add": pairs(add), "remove": remove});
    json!({"type": "RequestHeaderModifier", "requestHeaderModifier": change})
}

/// The changes that the suite makes, for the rule in one test and for the backend in the other.
fn header_changes() -> Vec<(&'static str, Value)> {
    vec![
        ("/set", change(&[("X-Header-Set", "set-overwrites-values")], &[], &[])),
        ("/add", change(&[], &[("X-Header-Add", "add-appends-values")], &[])),
        ("/remove", change(&[], &[], &["X-Header-Remove"])),
        (
            "/multiple",
            change(
                &[("X-Header-Set-1", "header-set-1"), ("X-Header-Set-2", "header-set-2")],
                &[
                    ("X-Header-Add-1", "header-add-1"),
                    ("X-Header-Add-2", "header-add-2"),
                    ("X-Header-Add-3", "header-add-3"),
                ],
                &["X-Header-Remove-1", "X-Header-Remove-2"],
            ),
        ),
        (
            "/case-insensitivity",
            change(&[("X-Header-Set", "header-set")], &[("X-Header-Add", "header-add")], &["X-Header-Remove"]),
        ),
    ]
}

fn header_cases() -> Vec<Case> {
    vec![
        v1("/set")
            .with("Some-Other-Header", "val")
            .sees("some-other-header", "val")
            .sees("x-header-set", "set-overwrites-values"),
        v1("/set").with("X-Header-Set", "some-other-value").sees("x-header-set", "set-overwrites-values"),
        v1("/add")
            .with("Some-Other-Header", "val")
            .sees("some-other-header", "val")
            .sees("x-header-add", "add-appends-values"),
        v1("/add").with("X-Header-Add", "some-other-value").sees("x-header-add", "some-other-value,add-appends-values"),
        v1("/remove").with("X-Header-Remove", "val").sees_no("x-header-remove"),
        v1("/multiple")
            .with("X-Header-Set-2", "set-val-2")
            .with("X-Header-Add-2", "add-val-2")
            .with("X-Header-Remove-2", "remove-val-2")
            .with("Another-Header", "another-header-val")
            .sees("x-header-set-1", "header-set-1")
            .sees("x-header-set-2", "header-set-2")
            .sees("x-header-add-1", "header-add-1")
            .sees("x-header-add-2", "add-val-2,header-add-2")
            .sees("x-header-add-3", "header-add-3")
            .sees("another-header", "another-header-val")
            .sees_no("x-header-remove-1")
            .sees_no("x-header-remove-2"),
        v1("/case-insensitivity")
            .with("x-header-set", "original-val-set")
            .with("x-header-add", "original-val-add")
            .with("x-header-remove", "original-val-remove")
            .with("Another-Header", "another-header-val")
            .sees("x-header-set", "header-set")
            .sees("x-header-add", "original-val-add,header-add")
            .sees("another-header", "another-header-val")
            .sees_no("x-header-remove"),
    ]
}

fn rewrite(path: &str, kind: &str, value: &str, more: Option<Value>) -> Value {
    let field = if kind == "ReplaceFullPath" { "replaceFullPath" } else { "replacePrefixMatch" };
    let mut filters = vec![json!({"type": "URLRewrite", "urlRewrite": {"path": {"type": kind, field: value}}})];
    filters.extend(more);
    json!({"matches": [prefix(path)], "filters": filters, "backendRefs": to("echo-v1")})
}

fn rewritten(path: &'static str, seen: &'static str) -> Case {
    let case = v1(path)
        .with("X-Header-Remove", "remove-val")
        .with("X-Header-Add-Append", "append-val-1")
        .with("X-Header-Set", "set-val");
    let case = Case { sees_path: Some(seen), ..case };
    if !path.contains("modify-headers") {
        return case;
    }
    case.sees("x-header-add", "header-val-1")
        .sees("x-header-add-append", "append-val-1,header-val-2")
        .sees("x-header-set", "set-overwrites-values")
        .sees_no("x-header-remove")
}

/// Everything about where a request goes and what is asked of it.
fn rows() -> Vec<Row> {
    let row = |name, service, route, cases| Row { name, service, route, cases };
    let direct = Case { is_direct: true, port: HTTP, service: Some("frontend-v2"), ..v2("/").marked(None) };
    let from_self = Case { client: "echo-v1", ..v1("/") };
    let of_consumer = Case { client: "consumer", ..v1("/").host("echo-v1.gateway-conformance-mesh") };
    let query = |name: &str, value: &str| json!({"queryParams": [{"name": name, "value": value}]});
    let and = |a: &Value, b: &Value| {
        let mut both = a.clone();
        for (name, value) in b.as_object().into_iter().flatten() {
            both[name] = value.clone();
        }
        both
    };
    let version = |value: &str| json!({"headers": [{"name": "version", "value": value}]});
    let rewrite_and_change = change(
        &[("X-Header-Set", "set-overwrites-values")],
        &[("X-Header-Add", "header-val-1"), ("X-Header-Add-Append", "header-val-2")],
        &["X-Header-Remove"],
    );
    vec![
        row(
            "MeshBasic",
            "basic",
            None,
            vec![
                ask("/", Want::Anyone),
                Case { service: Some("echo-v1"), ..v1("/") },
                Case { service: Some("echo-v1"), ..from_self },
            ],
        ),
        row(
            "MeshPorts",
            "ports-v1",
            Some(route("HTTPRoute", MESH, "ports-v1", Some(80), marking("echo-v1", "v1"))),
            vec![v1("/").marked(Some("v1")), Case { port: 8080, ..v1("/").marked(None) }],
        ),
        row(
            "MeshPorts, no port",
            "ports-v2",
            Some(route("HTTPRoute", MESH, "ports-v2", None, marking("echo-v2", "v2"))),
            vec![v2("/").marked(Some("v2")), Case { port: 8080, ..v2("/").marked(Some("v2")) }],
        ),
        row(
            "MeshFrontend",
            "frontend-v2",
            Some(route("HTTPRoute", MESH, "frontend-v2", None, marking("echo-v2", "set"))),
            vec![v2("/").marked(Some("set")), direct],
        ),
        row(
            "MeshFrontendHostname",
            "hostname-v2",
            Some(route("HTTPRoute", MESH, "hostname-v2", None, marking("echo-v2", "set"))),
            vec![
                v2("/").host("echo-v2").marked(Some("set")),
                v2("/").host("echo-v1").marked(Some("set")),
                Case { service: Some("echo-v1"), ..v1("/").host("echo-v2").marked(None) },
            ],
        ),
        row(
            "MeshTrafficSplit",
            "split",
            http(
                "split",
                json!([
                    {"matches": [{"path": {"type": "Exact", "value": "/v1"}}], "backendRefs": to("echo-v1")},
                    {"matches": [{"path": {"type": "Exact", "value": "/v2"}}], "backendRefs": to("echo-v2")},
                ]),
            ),
            vec![v1("/v1"), v2("/v2"), none("/v3")],
        ),
        row(
            "MeshConsumerRoute",
            "consumed",
            Some(route("HTTPRoute", CONSUMER, "consumed", None, {
                let mut rules = marking("echo-v1", "set");
                rules[0]["backendRefs"][0]["namespace"] = MESH.into();
                rules
            })),
            vec![of_consumer.marked(Some("set")), v1("/").host("echo-v1.gateway-conformance-mesh").marked(None)],
        ),
        row(
            "MeshHTTPRouteSimpleSameNamespace",
            "simple",
            http("simple", json!([{"backendRefs": to("echo-v1")}])),
            vec![v1("/")],
        ),
        row(
            "MeshHTTPRouteMatching",
            "matching",
            http(
                "matching",
                json!([
                    {"matches": [prefix("/"), version("one")], "backendRefs": to("echo-v1")},
                    {"matches": [prefix("/v2"), version("two")], "backendRefs": to("echo-v2")},
                ]),
            ),
            vec![
                v1("/"),
                v1("/example"),
                v1("/").with("Version", "one"),
                v2("/v2"),
                v2("/v2/example"),
                v2("/").with("Version", "two"),
                v2("/v2/"),
                v1("/v2example"),
                v1("/foo/v2/example"),
            ],
        ),
        row(
            "MeshHTTPRouteQueryParamMatching",
            "query",
            http(
                "query",
                json!([
                    {"matches": [query("animal", "whale")], "backendRefs": to("echo-v1")},
                    {"matches": [query("animal", "dolphin")], "backendRefs": to("echo-v2")},
                    {"matches": [and(&prefix("/path1"), &query("animal", "whale"))], "backendRefs": to("echo-v1")},
                    {"matches": [and(&version("one"), &query("animal", "whale"))], "backendRefs": to("echo-v2")},
                    {
                        "matches": [
                            and(&prefix("/path3"), &query("animal", "shark")),
                            and(&and(&prefix("/path4"), &version("three")), &query("animal", "kraken")),
                        ],
                        "backendRefs": to("echo-v1"),
                    },
                    {"matches": [prefix("/path5")], "backendRefs": to("echo-v1")},
                    {"matches": [query("animal", "hydra")], "backendRefs": to("echo-v2")},
                ]),
            ),
            vec![
                v1("/?animal=whale"),
                v2("/?animal=dolphin"),
                v1("/?animal=whale&otherparam=irrelevant"),
                v2("/?animal=dolphin&color=yellow"),
                none("/?color=blue"),
                none("/?animal=dog"),
                none("/?animal=whaledolphin"),
                none("/"),
                v1("/path1?animal=whale"),
                v2("/?animal=whale").with("version", "one"),
                v1("/path3?animal=shark"),
                v1("/path4?animal=kraken").with("version", "three"),
                none("/?animal=shark"),
                none("/path4?animal=kraken"),
                v1("/path5?animal=hydra"),
            ],
        ),
        row(
            "MeshHTTPRouteNamedRule",
            "named",
            http(
                "named",
                json!([
                    {"name": "named-rule", "matches": [prefix("/named")], "backendRefs": to("echo-v1")},
                    {"matches": [prefix("/unnamed")], "backendRefs": to("echo-v2")},
                ]),
            ),
            vec![v1("/named"), v2("/unnamed")],
        ),
        row(
            "MeshHTTPRoute303Redirect",
            "redirect-303",
            http("redirect-303", json!([redirect("/redirect", json!({"statusCode": 303}))])),
            vec![moved("/redirect", "303", "http://echo/redirect")],
        ),
        row(
            "MeshHTTPRoute307Redirect",
            "redirect-307",
            http("redirect-307", json!([redirect("/temporary", json!({"statusCode": 307}))])),
            vec![moved("/temporary", "307", "http://echo/temporary")],
        ),
        row(
            "MeshHTTPRoute308Redirect",
            "redirect-308",
            http("redirect-308", json!([redirect("/permanent", json!({"statusCode": 308}))])),
            vec![moved("/permanent", "308", "http://echo/permanent")],
        ),
        row(
            "MeshHTTPRouteRedirectHostAndStatus",
            "redirect-host",
            http(
                "redirect-host",
                json!([
                    redirect("/hostname-redirect", json!({"hostname": "example.org"})),
                    redirect("/host-and-status", json!({"hostname": "example.org", "statusCode": 301})),
                ]),
            ),
            vec![
                moved("/hostname-redirect", "302", "http://example.org/hostname-redirect"),
                moved("/host-and-status", "301", "http://example.org/host-and-status"),
            ],
        ),
        row(
            "MeshHTTPRouteRedirectPath",
            "redirect-path",
            http("redirect-path", {
                let replaced = json!({"type": "ReplacePrefixMatch", "replacePrefixMatch": "/replacement-prefix"});
                let full = |path: &str| json!({"type": "ReplaceFullPath", "replaceFullPath": path});
                json!([
                    redirect("/original-prefix", json!({"path": replaced})),
                    redirect("/full", json!({"path": full("/full-path-replacement")})),
                    redirect("/path-and-host", json!({"path": replaced, "hostname": "example.org"})),
                    redirect("/path-and-status", json!({"path": replaced, "statusCode": 301})),
                    redirect(
                        "/full-path-and-host",
                        json!({"path": full("/replacement-full"), "hostname": "example.org"})
                    ),
                    redirect("/full-path-and-status", json!({"path": full("/replacement-full"), "statusCode": 301})),
                ])
            }),
            vec![
                moved("/original-prefix/lemon", "302", "http://echo/replacement-prefix/lemon"),
                moved("/full/path/original", "302", "http://echo/full-path-replacement"),
                moved("/path-and-host", "302", "http://example.org/replacement-prefix"),
                moved("/path-and-status", "301", "http://echo/replacement-prefix"),
                moved("/full-path-and-host", "302", "http://example.org/replacement-full"),
                moved("/full-path-and-status", "301", "http://echo/replacement-full"),
            ],
        ),
        row(
            "MeshHTTPRouteRedirectPort",
            "redirect-port",
            http(
                "redirect-port",
                json!([
                    redirect("/port", json!({"port": 8083})),
                    redirect("/port-and-host", json!({"port": 8083, "hostname": "example.org"})),
                    redirect("/port-and-status", json!({"port": 8083, "statusCode": 301})),
                    redirect(
                        "/port-and-host-and-status",
                        json!({"port": 8083, "hostname": "example.org", "statusCode": 302})
                    ),
                ]),
            ),
            vec![
                moved("/port", "302", "http://echo:8083/port"),
                moved("/port-and-host", "302", "http://example.org:8083/port-and-host"),
                moved("/port-and-status", "301", "http://echo:8083/port-and-status"),
                moved("/port-and-host-and-status", "302", "http://example.org:8083/port-and-host-and-status"),
            ],
        ),
        row(
            "MeshHTTPRouteSchemeRedirect",
            "redirect-scheme",
            http(
                "redirect-scheme",
                json!([
                    redirect("/scheme", json!({"scheme": "https"})),
                    redirect("/scheme-and-host", json!({"scheme": "https", "hostname": "example.org"})),
                    redirect("/scheme-and-status", json!({"scheme": "https", "statusCode": 301})),
                    redirect(
                        "/scheme-and-host-and-status",
                        json!({"scheme": "https", "hostname": "example.org", "statusCode": 302})
                    ),
                ]),
            ),
            vec![
                moved("/scheme", "302", "https://echo/scheme"),
                moved("/scheme-and-host", "302", "https://example.org/scheme-and-host"),
                moved("/scheme-and-status", "301", "https://echo/scheme-and-status"),
                moved("/scheme-and-host-and-status", "302", "https://example.org/scheme-and-host-and-status"),
            ],
        ),
        row(
            "MeshHTTPRouteRequestHeaderModifier",
            "headers",
            http("headers", {
                let rule = |(path, change): &(&str, Value)| json!({"matches": [prefix(path)], "filters": [change], "backendRefs": to("echo-v1")});
                header_changes().iter().map(rule).collect::<Vec<_>>().into()
            }),
            header_cases(),
        ),
        row(
            "MeshHTTPRouteBackendRequestHeaderModifier",
            "backend-headers",
            http("backend-headers", {
                let rule = |(path, change): &(&str, Value)| {
                    let backend = json!({"name": "echo-v1", "port": 80, "filters": [change]});
                    json!({"matches": [prefix(path)], "backendRefs": [backend]})
                };
                header_changes().iter().map(rule).collect::<Vec<_>>().into()
            }),
            header_cases(),
        ),
        row(
            "MeshHTTPRouteRewritePath",
            "rewrite",
            http(
                "rewrite",
                json!([
                    rewrite("/prefix/one", "ReplacePrefixMatch", "/one", None),
                    rewrite("/strip-prefix", "ReplacePrefixMatch", "/", None),
                    rewrite("/full/one", "ReplaceFullPath", "/one", None),
                    rewrite(
                        "/full/rewrite-path-and-modify-headers",
                        "ReplaceFullPath",
                        "/test",
                        Some(rewrite_and_change.clone())
                    ),
                    rewrite(
                        "/prefix/rewrite-path-and-modify-headers",
                        "ReplacePrefixMatch",
                        "/prefix",
                        Some(rewrite_and_change)
                    ),
                ]),
            ),
            vec![
                rewritten("/prefix/one/two", "/one/two"),
                rewritten("/strip-prefix/three", "/three"),
                rewritten("/strip-prefix", "/"),
                rewritten("/full/one/two", "/one"),
                rewritten("/full/rewrite-path-and-modify-headers/test", "/test"),
                rewritten("/prefix/rewrite-path-and-modify-headers/one", "/prefix/one"),
            ],
        ),
        row(
            "MeshHTTPRouteWeight",
            "weight",
            http(
                "weight",
                json!([{"backendRefs": [
                    {"name": "echo-v1", "port": 80, "weight": 70},
                    {"name": "echo-v2", "port": 80, "weight": 30},
                ]}]),
            ),
            // `weights` counts.
            Vec::new(),
        ),
    ]
}

fn grpc_routes() -> Vec<Value> {
    let to = |backend: &str, weight: u16| json!({"name": backend, "port": GRPC, "weight": weight});
    let rule = |case: &str, backend: &str, change: Value| {
        let about = json!({"headers": [{"name": "x-test-case", "value": case}]});
        json!({"matches": [about], "filters": [change], "backendRefs": [to(backend, 1)]})
    };
    let shares = json!([{"backendRefs": [to("echo-v1", 70), to("echo-v2", 30), to("nobody", 0)]}]);
    let changes = json!([
        rule("set", "echo-v1", change(&[("x-header-set", "set-overwrites-values")], &[], &[])),
        rule("add", "echo-v1", change(&[], &[("x-header-add", "add-appends-values")], &[])),
        rule("remove", "echo-v1", change(&[], &[], &["x-header-remove"])),
        rule(
            "multi",
            "echo-v2",
            change(
                &[("x-header-set-1", "header-set-1"), ("x-header-set-2", "header-set-2")],
                &[("x-header-add-1", "header-add-1"), ("x-header-add-2", "header-add-2")],
                &["x-header-remove-1", "x-header-remove-2"],
            )
        ),
    ]);
    vec![
        route("GRPCRoute", MESH, "grpc-weight", Some(GRPC), shares),
        route("GRPCRoute", MESH, "grpc-headers", Some(GRPC), changes),
    ]
}

/// The suite's pods and namespaces: a client beside `echo-v2`, `echo-v1` on the other node, a client of another namespace.
fn bed(rows: &[Row]) -> Result<Option<Testbed>> {
    if !can_use_kernel("the conformance tests") {
        return Ok(None);
    }
    let mut bed = Testbed::new()?;
    bed.add_node()?;
    bed.add_node()?;
    for namespace in [MESH, CONSUMER] {
        bed.add_namespace(namespace, &[("nodemesh.dev/mesh", "enabled")])?;
    }
    bed.add_pod(PodSpec::new(MESH, "client", "n1"))?;
    bed.add_pod(PodSpec::new(CONSUMER, "consumer", "n1"))?;
    for (pod, node) in [("echo-v1", "n2"), ("echo-v2", "n1")] {
        bed.add_pod(PodSpec::new(MESH, pod, node))?;
        start_reflector(bed.pod(pod), HTTP)?;
        start_grpc_echo(bed.pod(pod), GRPC)?;
    }
    let ports =
        |service: ServiceSpec| service.port("http", 80, HTTP).port("http-alt", 8080, HTTP).port("grpc", GRPC, GRPC);
    let both = ["echo-v1", "echo-v2"].map(|pod| Family::BOTH.map(|family| bed.pod(pod).ips.ip(family))).concat();
    let services = rows.iter().map(|row| row.service).chain(["grpc-weight", "grpc-headers", "echo-v1", "echo-v2"]);
    for name in services.collect::<std::collections::BTreeSet<_>>() {
        let service = ServiceSpec::new(MESH, name);
        let service = match name.rsplit_once('-') {
            Some((_, "v1")) => service.of("echo-v1"),
            Some((_, "v2")) => service.of("echo-v2"),
            _ if name == "consumed" => service.of("echo-v1"),
            _ => service.listing(&both),
        };
        bed.add_service(ports(service))?;
    }
    bed.add_service(ports(ServiceSpec::new(MESH, "nobody")))?;
    let routes = rows.iter().filter_map(|row| row.route.clone()).chain(grpc_routes());
    for (number, route) in routes.enumerate() {
        bed.world.apply(&format!("route-{number}"), &route.to_string())?;
    }
    bed.start_agents(&AgentOptions::default())?;
    Ok(Some(bed))
}

/// Between two answers.
const END: &str = "=== end ===";

/// What curl says to some requests of one client: a head and a body each.
fn curl(bed: &Testbed, client: &str, requests: &[(String, &Case)]) -> Result<Vec<String>> {
    let mut config = String::new();
    for (url, case) in requests {
        config += &format!("url = \"{url}\"\nheader = \"Host: {}\"\n", case.host);
        for (name, value) in &case.fields {
            config += &format!("header = \"{name}: {value}\"\n");
        }
        config += &format!("include\nsilent\nshow-error\nmax-time = 30\nwrite-out = \"\\n{END}\\n\"\nnext\n");
    }
    let file = bed.pod(client).dir.join("requests");
    std::fs::write(&file, config.trim_end_matches("next\n"))?;
    let said = bed.pod(client).run(&["curl", "--config", &file.to_string_lossy()], PATIENCE)?.expect_ok("curl")?;
    let answers: Vec<String> =
        said.split(END).map(|answer| answer.trim().to_string()).filter(|answer| !answer.is_empty()).collect();
    ensure!(answers.len() == requests.len(), "{} answers to {} requests: {said}", answers.len(), requests.len());
    Ok(answers)
}

/// Compares an answer with what has to come.
fn check(answer: &str, case: &Case) -> Result<()> {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    let status = head.split_whitespace().nth(1).unwrap_or_default();
    let field = |name: &str| -> Option<&str> {
        let lines = head.lines().filter_map(|line| line.split_once(':'));
        lines.filter(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).next()
    };
    let seen: Value = match &case.want {
        Want::Pod(_) | Want::Anyone => {
            ensure!(status == "200", "{status}");
            serde_json::from_str(body)?
        }
        Want::Status(wanted) => {
            ensure!(status == *wanted, "{status} for {wanted}");
            return Ok(());
        }
        Want::Redirect(wanted, location) => {
            ensure!(status == *wanted && field("location") == Some(location), "{status} {:?}", field("location"));
            return Ok(());
        }
    };
    match (&case.want, seen["pod"].as_str()) {
        (Want::Pod(pod), Some(seen)) => ensure!(*pod == seen, "{seen} for {pod}"),
        (_, Some("echo-v1" | "echo-v2")) => {}
        (_, other) => bail!("{other:?}"),
    }
    let path = case.sees_path.unwrap_or(case.path);
    ensure!(seen["path"] == path, "the application sees {} for {path}", seen["path"]);
    for (name, value) in &case.sees {
        ensure!(joined(&seen["fields"][name]).as_deref() == Some(*value), "{name} is {}", seen["fields"][name]);
    }
    for name in &case.absent {
        ensure!(seen["fields"][name].is_null(), "{name} is {}", seen["fields"][name]);
    }
    if let Some(marked) = case.marked {
        ensure!(field("x-header-set") == marked, "x-header-set is {:?} for {marked:?}", field("x-header-set"));
    }
    Ok(())
}

/// A field's lines as one.
fn joined(lines: &Value) -> Option<String> {
    let lines: Vec<&str> = lines.as_array()?.iter().filter_map(Value::as_str).collect();
    Some(lines.join(","))
}

fn run(bed: &Testbed, family: Family, row: &Row) -> Result<()> {
    let mut by_client: BTreeMap<&str, Vec<(String, &Case)>> = BTreeMap::new();
    for case in &row.cases {
        let at = match case.is_direct {
            true => bed.pod("echo-v2").ips.socket(family, case.port),
            false => bed.service(case.service.unwrap_or(row.service)).socket(family, case.port),
        };
        by_client.entry(case.client).or_default().push((format!("http://{at}{}", case.path), case));
    }
    for (client, requests) in by_client {
        for (answer, (url, case)) in curl(bed, client, &requests)?.iter().zip(&requests) {
            check(answer, case)
                .with_context(|| format!("{client} asked {url} with {:?} and got {answer}", case.fields))?;
        }
    }
    Ok(())
}

/// Whether 70 of 100 went to `echo-v1` and the rest to `echo-v2`.
fn is_shared<'a>(pods: impl Iterator<Item = Option<&'a str>>) -> Result<()> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for pod in pods {
        *counts.entry(pod.unwrap_or("nobody")).or_default() += 1;
    }
    let seen = |pod: &str| counts.get(pod).copied().unwrap_or_default();
    let is_right = seen("echo-v1").abs_diff(MANY * 7 / 10) <= MOST_OFF && seen("echo-v1") + seen("echo-v2") == MANY;
    ensure!(is_right, "{counts:?}");
    Ok(())
}

fn http_weight(bed: &Testbed, family: Family) -> Result<()> {
    let url = format!("http://{}/?[1-{MANY}]", bed.service("weight").socket(family, 80));
    let command = ["curl", "-sS", "--globoff", "--max-time", "60", "-w", "\n", &url];
    // An address of IPv6 in a URL would be a pattern; its brackets are said as such.
    let escaped = url.replacen("http://[", "http://\\[", 1).replacen("]:", "\\]:", 1);
    let command: Vec<&str> = command
        .into_iter()
        .filter(|word| *word != "--globoff")
        .map(|word| if word == url { &*escaped } else { word })
        .collect();
    let said = bed.pod("client").run(&command, PATIENCE)?.expect_ok("curl")?;
    let answers: Vec<Value> = said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    is_shared(answers.iter().map(|answer| answer["pod"].as_str()))
}

fn grpc(bed: &Testbed, family: Family) -> Result<()> {
    let client = bed.pod("client");
    let weight = bed.service("grpc-weight").socket(family, GRPC);
    let answers = grpc_calls(client, weight, CALL, &[], MANY)?;
    is_shared(answers.iter().map(|answer| answer["pod"].as_str())).context("MeshGRPCRouteWeight")?;

    let headers = bed.service("grpc-headers").socket(family, GRPC);
    type Pairs = &'static [(&'static str, &'static str)];
    let table: &[(&str, &str, Pairs, Pairs, &[&str])] = &[
        (
            "set",
            "echo-v1",
            &[("some-other-header", "this-header-should-be-set"), ("x-header-set", "this-value-should-be-overwritten")],
            &[("some-other-header", "this-header-should-be-set"), ("x-header-set", "set-overwrites-values")],
            &[],
        ),
        (
            "add",
            "echo-v1",
            &[("x-header-add", "this-value-should-be-appended")],
            &[("x-header-add", "this-value-should-be-appended,add-appends-values")],
            &[],
        ),
        ("remove", "echo-v1", &[("x-header-remove", "this-should-be-removed")], &[], &["x-header-remove"]),
        (
            "multi",
            "echo-v2",
            &[
                ("x-header-set-2", "set-header-2"),
                ("x-header-add-2", "add-header-2"),
                ("x-header-remove-2", "should-be-removed-2"),
            ],
            &[
                ("x-header-set-1", "header-set-1"),
                ("x-header-set-2", "header-set-2"),
                ("x-header-add-1", "header-add-1"),
                ("x-header-add-2", "add-header-2,header-add-2"),
            ],
            &["x-header-remove-1", "x-header-remove-2"],
        ),
    ];
    for (case, pod, sent, wanted, absent) in table {
        let metadata = [&[("x-test-case", *case)][..], sent].concat();
        let answers = grpc_calls(client, headers, CALL, &metadata, 1)?;
        let [seen] = &answers[..] else { bail!("{answers:?}") };
        ensure!(seen["code"] == "OK" && seen["pod"] == *pod && seen["method"] == CALL, "{case}: {seen}");
        for (name, value) in *wanted {
            ensure!(joined(&seen["metadata"][name]).as_deref() == Some(*value), "{case}, {name}: {seen}");
        }
        for name in *absent {
            ensure!(seen["metadata"][name].is_null(), "{case}, {name}: {seen}");
        }
    }
    let unknown = grpc_calls(client, headers, CALL, &[], 1)?;
    ensure!(unknown.iter().all(|answer| answer["code"] == "UNIMPLEMENTED"), "no rule matches: {unknown:?}");
    Ok(())
}

#[test]
fn the_mesh_tests_of_gateway_api_pass() -> Result<()> {
    let rows = rows();
    let Some(bed) = bed(&rows)? else { return Ok(()) };
    // What is served last is there when all are there.
    let first = rows.iter().find(|row| row.name == "MeshTrafficSplit").context("no first row")?;
    eventually(PATIENCE, "routes to hold", || Ok(run(&bed, Family::V4, first).is_ok().then_some(())))
        .map_err(|error| bed.explain(error))?;
    for family in Family::BOTH {
        let failed: Vec<String> = rows
            .iter()
            .map(|row| (row.name, run(&bed, family, row)))
            .chain([("MeshHTTPRouteWeight", http_weight(&bed, family)), ("MeshGRPCRoute…", grpc(&bed, family))])
            .filter_map(|(name, ended)| ended.err().map(|error| format!("{name}: {error:#}")))
            .collect();
        ensure!(failed.is_empty(), "over {family}:\n{}", failed.join("\n"));
    }
    Ok(())
}
