//! The mesh tests of Gateway API's conformance suite (conformance/tests/mesh), as far as routes decide them: the routes
//! of its YAML, the requests of its tests, the backends, requests and answers that it wants. Where the suite sends many
//! requests and looks at shares, so do we.

use std::collections::BTreeMap;

use http::header::{HOST, LOCATION};
use http::{StatusCode, request, response};

use super::super::build::{self, change, exact, get, prefix, rule};
use super::super::*;

const MESH: &str = "gateway-conformance-mesh";
const CONSUMER: &str = "gateway-conformance-mesh-consumer";

/// What became of a request.
#[derive(Debug)]
struct Outcome {
    /// The Service that it goes on to.
    backend: Option<String>,
    /// As it goes on.
    request: request::Parts,
    /// As the client sees it.
    answer: response::Parts,
    rule: Option<String>,
}

/// A client that dials a Service.
#[derive(Clone, Copy)]
struct Dial<'a> {
    service: &'a str,
    port: u16,
    from: &'a str,
    seed: u64,
}

fn dial(service: &str) -> Dial<'_> {
    Dial { service, port: 80, from: MESH, seed: 0 }
}

/// What the two agents do with a request, in their order.
fn ask(routes: &[Route], dial: Dial<'_>, request: &build::Request) -> Outcome {
    let builder = http::Request::builder().method(request.method.clone()).uri(request.uri.clone());
    let (mut parts, ()) = builder.body(()).unwrap().into_parts();
    parts.headers = request.headers.clone();
    parts.headers.insert(HOST, request.host.parse().unwrap());
    let frontend = Frontend { namespace: MESH, name: dial.service, port: dial.port, port_name: None };
    let Some(attached) = attached(frontend, dial.from, routes) else {
        return Outcome { backend: Some(dial.service.into()), request: parts, answer: ok(), rule: None };
    };
    let table = Table::compile(attached.routes);
    let Some(found) = table.find(&request.head()) else {
        return Outcome { backend: None, request: parts, answer: status(404), rule: None };
    };
    let around =
        filters::Around { scheme: "http", host: &request.host, port: dial.port, matched_prefix: found.matched_prefix };
    let name = found.rule.name.as_deref().map(Into::into);
    let origin = filters::Origin::of(&parts);
    if let filters::Step::Answer(answer, _) = filters::request(&found.rule.filters, &around, &mut parts) {
        return Outcome { backend: None, request: parts, answer: *answer, rule: name };
    }
    let Some(backend) = found.rule.backend(Seed::new(dial.seed)) else {
        return Outcome { backend: None, request: parts, answer: status(500), rule: name };
    };
    assert!(matches!(filters::request(&backend.filters, &around, &mut parts), filters::Step::Forward));
    let mut answer = ok();
    filters::response(&found.rule.filters, &origin, &mut answer);
    filters::response(&backend.filters, &origin, &mut answer);
    Outcome { backend: Some(build::name_of(backend).into()), request: parts, answer, rule: name }
}

fn ok() -> response::Parts {
    status(200)
}

fn status(status: u16) -> response::Parts {
    http::Response::builder().status(status).body(()).unwrap().into_parts().0
}

/// The backend, or the status of what was answered here.
fn place(outcome: &Outcome) -> String {
    outcome.backend.clone().unwrap_or_else(|| outcome.answer.status.as_u16().to_string())
}

fn location(outcome: &Outcome) -> (u16, &str) {
    (outcome.answer.status.as_u16(), outcome.answer.headers[LOCATION].to_str().unwrap())
}

/// A header's values, joined by commas as the suite joins them.
fn header(headers: &http::HeaderMap, name: &str) -> Option<String> {
    let values: Vec<&str> = headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect();
    (!values.is_empty()).then(|| values.join(","))
}

/// An HTTPRoute of the Service `echo`, port 80.
fn echo(rules: Vec<Rule>) -> Vec<Route> {
    vec![at("echo", Some(80), build::http(MESH, "route", rules))]
}

fn at(service: &str, port: Option<u16>, route: Route) -> Route {
    Route { parents: vec![Parent { port, ..build::parent(MESH, service) }], ..route }
}

fn anything() -> Match {
    prefix("/")
}

fn with(filters: Vec<Filter>, rule: Rule) -> Rule {
    Rule { filters, ..rule }
}

/// A rule that sends clients elsewhere.
fn redirecting(path: &str, redirect: Redirect) -> Rule {
    Rule { backends: vec![], ..with(vec![Filter::Redirect(redirect)], rule("none", vec![prefix(path)])) }
}

fn to_prefix(path: &str) -> Option<PathRewrite> {
    Some(PathRewrite::Prefix(path.into()))
}

fn to_path(path: &str) -> Option<PathRewrite> {
    Some(PathRewrite::Full(path.into()))
}

fn marked(value: &str) -> Filter {
    Filter::ResponseHeaders(change(&[("X-Header-Set", value)], &[], &[]))
}

/// Whether backends get their shares, in per cent, within what the suite allows.
fn shares(routes: &[Route], dial: Dial<'_>, request: &build::Request, wanted: &[(&str, usize)]) {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for seed in 0..2_000 {
        *counts.entry(place(&ask(routes, Dial { seed, ..dial }, request))).or_default() += 1;
    }
    assert!(counts.keys().map(String::as_str).eq(wanted.iter().map(|(backend, _)| *backend)), "{counts:?}");
    for (backend, share) in wanted {
        assert!((counts[*backend] / 20).abs_diff(*share) <= 5, "{counts:?}");
    }
}

fn redirects(routes: &[Route], cases: &[(&str, u16, &str)]) {
    for (path, status, wanted) in cases {
        assert_eq!(location(&ask(routes, dial("echo"), &get(path).host("echo"))), (*status, *wanted), "{path}");
    }
}

fn places(routes: &[Route], cases: &[(build::Request, &str)]) {
    for (request, wanted) in cases {
        assert_eq!(place(&ask(routes, dial("echo"), request)), *wanted, "{request:?}");
    }
}

#[test]
fn mesh_basic() {
    assert_eq!(place(&ask(&[], dial("echo"), &get("/").host("echo"))), "echo");
}

#[test]
fn mesh_ports() {
    let marking = |service: &str, port, value| {
        at(service, port, build::http(MESH, service, vec![with(vec![marked(value)], rule(service, vec![anything()]))]))
    };
    let routes = [marking("echo-v1", Some(80), "v1"), marking("echo-v2", None, "v2")];
    for (service, port, wanted) in [
        ("echo-v1", 80, Some("v1")),
        ("echo-v1", 8080, None),
        ("echo-v2", 80, Some("v2")),
        ("echo-v2", 8080, Some("v2")),
    ] {
        let outcome = ask(&routes, Dial { port, ..dial(service) }, &get("/"));
        assert_eq!(place(&outcome), service);
        assert_eq!(header(&outcome.answer.headers, "x-header-set").as_deref(), wanted, "{service} {port}");
    }
}

/// That a pod's own address meets no route is the proxy's: it asks for routes of Services alone.
#[test]
fn mesh_frontend_and_mesh_frontend_hostname() {
    let marking = with(vec![marked("set")], rule("echo-v2", vec![anything()]));
    let routes = [at("echo-v2", None, build::http(MESH, "mesh-split-v1", vec![marking]))];
    for (service, host, wanted) in [
        ("echo-v2", "echo-v2", Some("set")),
        // What the client dials counts, not what it says.
        ("echo-v2", "echo-v1", Some("set")),
        ("echo-v1", "echo-v2", None),
    ] {
        let outcome = ask(&routes, dial(service), &get("/").host(host));
        assert_eq!(place(&outcome), service);
        assert_eq!(header(&outcome.answer.headers, "x-header-set").as_deref(), wanted, "{service} {host}");
    }
}

#[test]
fn mesh_traffic_split() {
    let rules = vec![rule("echo-v1", vec![exact("/v1")]), rule("echo-v2", vec![exact("/v2")])];
    let routes = [at("echo", None, build::http(MESH, "mesh-split", rules))];
    places(&routes, &[(get("/v1"), "echo-v1"), (get("/v2"), "echo-v2"), (get("/v3"), "404")]);
}

#[test]
fn mesh_consumer_route() {
    let marking = with(vec![marked("set")], rule("echo-v1", vec![anything()]));
    let routes = [at("echo-v1", None, build::http(CONSUMER, "mesh-echo-add-header", vec![marking]))];
    for (from, wanted) in [(CONSUMER, Some("set")), (MESH, None)] {
        let outcome =
            ask(&routes, Dial { from, ..dial("echo-v1") }, &get("/").host("echo-v1.gateway-conformance-mesh"));
        assert_eq!(place(&outcome), "echo-v1");
        assert_eq!(header(&outcome.answer.headers, "x-header-set").as_deref(), wanted, "{from}");
    }
}

#[test]
fn mesh_http_route_simple_same_namespace() {
    places(&echo(vec![rule("echo-v1", vec![anything()])]), &[(get("/").host("echo"), "echo-v1")]);
}

#[test]
fn mesh_http_route_matching() {
    let headed = |value| anything().header("version", value);
    let routes = echo(vec![
        rule("echo-v1", vec![prefix("/"), headed("one")]),
        rule("echo-v2", vec![prefix("/v2"), headed("two")]),
    ]);
    places(
        &routes,
        &[
            (get("/"), "echo-v1"),
            (get("/example"), "echo-v1"),
            (get("/").header("Version", "one"), "echo-v1"),
            (get("/v2"), "echo-v2"),
            (get("/v2/example"), "echo-v2"),
            (get("/").header("Version", "two"), "echo-v2"),
            (get("/v2/"), "echo-v2"),
            (get("/v2example"), "echo-v1"),
            (get("/foo/v2/example"), "echo-v1"),
        ],
    );
}

#[test]
fn mesh_http_route_query_param_matching() {
    let animal = |path: &str, animal| prefix(path).query("animal", animal);
    let routes = echo(vec![
        rule("echo-v1", vec![animal("/", "whale")]),
        rule("echo-v2", vec![animal("/", "dolphin")]),
        rule("echo-v1", vec![animal("/path1", "whale")]),
        rule("echo-v2", vec![animal("/", "whale").header("version", "one")]),
        rule("echo-v1", vec![animal("/path3", "shark"), animal("/path4", "kraken").header("version", "three")]),
        rule("echo-v1", vec![prefix("/path5")]),
        rule("echo-v2", vec![animal("/", "hydra")]),
    ]);
    places(
        &routes,
        &[
            (get("/?animal=whale"), "echo-v1"),
            (get("/?animal=dolphin"), "echo-v2"),
            (get("/?animal=whale&otherparam=irrelevant"), "echo-v1"),
            (get("/?animal=dolphin&color=yellow"), "echo-v2"),
            (get("/?color=blue"), "404"),
            (get("/?animal=dog"), "404"),
            (get("/?animal=whaledolphin"), "404"),
            (get("/"), "404"),
            (get("/path1?animal=whale"), "echo-v1"),
            (get("/?animal=whale").header("version", "one"), "echo-v2"),
            (get("/path3?animal=shark"), "echo-v1"),
            (get("/path4?animal=kraken").header("version", "three"), "echo-v1"),
            (get("/?animal=shark"), "404"),
            (get("/path4?animal=kraken"), "404"),
            (get("/path5?animal=hydra"), "echo-v1"),
        ],
    );
}

#[test]
fn mesh_http_route_named_rule() {
    let named = Rule { name: Some("named-rule".into()), ..rule("echo-v1", vec![prefix("/named")]) };
    let routes = echo(vec![named, rule("echo-v2", vec![prefix("/unnamed")])]);
    for (path, backend, name) in [("/named", "echo-v1", Some("named-rule")), ("/unnamed", "echo-v2", None)] {
        let outcome = ask(&routes, dial("echo"), &get(path));
        assert_eq!((place(&outcome).as_str(), outcome.rule.as_deref()), (backend, name));
    }
}

#[test]
fn mesh_http_route_303_307_308_redirect() {
    let to = |path: &str, status| {
        let status = StatusCode::from_u16(status).unwrap();
        redirecting(path, Redirect { status, ..build::redirect() })
    };
    let routes = echo(vec![to("/redirect", 303), to("/temporary", 307), to("/permanent", 308)]);
    redirects(
        &routes,
        &[
            ("/redirect", 303, "http://echo/redirect"),
            ("/temporary", 307, "http://echo/temporary"),
            ("/permanent", 308, "http://echo/permanent"),
        ],
    );
}

#[test]
fn mesh_http_route_redirect_host_and_status() {
    let host = || Redirect { hostname: Some("example.org".into()), ..build::redirect() };
    let moved = Redirect { status: StatusCode::MOVED_PERMANENTLY, ..host() };
    let routes = echo(vec![redirecting("/hostname-redirect", host()), redirecting("/host-and-status", moved)]);
    redirects(
        &routes,
        &[
            ("/hostname-redirect", 302, "http://example.org/hostname-redirect"),
            ("/host-and-status", 301, "http://example.org/host-and-status"),
        ],
    );
}

#[test]
fn mesh_http_route_redirect_path() {
    let to = |path| Redirect { path, ..build::redirect() };
    let hosted = |path| Redirect { hostname: Some("example.org".into()), ..to(path) };
    let moved = |path| Redirect { status: StatusCode::MOVED_PERMANENTLY, ..to(path) };
    let routes = echo(vec![
        redirecting("/original-prefix", to(to_prefix("/replacement-prefix"))),
        redirecting("/full", to(to_path("/full-path-replacement"))),
        redirecting("/path-and-host", hosted(to_prefix("/replacement-prefix"))),
        redirecting("/path-and-status", moved(to_prefix("/replacement-prefix"))),
        redirecting("/full-path-and-host", hosted(to_path("/replacement-full"))),
        redirecting("/full-path-and-status", moved(to_path("/replacement-full"))),
    ]);
    redirects(
        &routes,
        &[
            ("/original-prefix/lemon", 302, "http://echo/replacement-prefix/lemon"),
            ("/full/path/original", 302, "http://echo/full-path-replacement"),
            ("/path-and-host", 302, "http://example.org/replacement-prefix"),
            ("/path-and-status", 301, "http://echo/replacement-prefix"),
            ("/full-path-and-host", 302, "http://example.org/replacement-full"),
            ("/full-path-and-status", 301, "http://echo/replacement-full"),
        ],
    );
}

#[test]
fn mesh_http_route_redirect_port() {
    let to = || Redirect { port: Some(8083), ..build::redirect() };
    let host = || Some("example.org".into());
    let routes = echo(vec![
        redirecting("/port", to()),
        redirecting("/port-and-host", Redirect { hostname: host(), ..to() }),
        redirecting("/port-and-status", Redirect { status: StatusCode::MOVED_PERMANENTLY, ..to() }),
        redirecting("/port-and-host-and-status", Redirect { hostname: host(), ..to() }),
    ]);
    redirects(
        &routes,
        &[
            ("/port", 302, "http://echo:8083/port"),
            ("/port-and-host", 302, "http://example.org:8083/port-and-host"),
            ("/port-and-status", 301, "http://echo:8083/port-and-status"),
            ("/port-and-host-and-status", 302, "http://example.org:8083/port-and-host-and-status"),
        ],
    );
}

#[test]
fn mesh_http_route_scheme_redirect() {
    let to = || Redirect { scheme: Some("https".into()), ..build::redirect() };
    let host = || Some("example.org".into());
    let routes = echo(vec![
        redirecting("/scheme", to()),
        redirecting("/scheme-and-host", Redirect { hostname: host(), ..to() }),
        redirecting("/scheme-and-status", Redirect { status: StatusCode::MOVED_PERMANENTLY, ..to() }),
        redirecting("/scheme-and-host-and-status", Redirect { hostname: host(), ..to() }),
    ]);
    redirects(
        &routes,
        &[
            ("/scheme", 302, "https://echo/scheme"),
            ("/scheme-and-host", 302, "https://example.org/scheme-and-host"),
            ("/scheme-and-status", 301, "https://echo/scheme-and-status"),
            ("/scheme-and-host-and-status", 302, "https://example.org/scheme-and-host-and-status"),
        ],
    );
}

/// The changes of both tests of request headers.
fn header_changes() -> Vec<(&'static str, HeaderChange)> {
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

/// Sends the requests of both tests.
fn header_requests(routes: &[Route]) {
    type Headers = &'static [(&'static str, &'static str)];
    let cases: &[(&str, Headers, Headers, &[&str])] = &[
        (
            "/set",
            &[("Some-Other-Header", "val")],
            &[("Some-Other-Header", "val"), ("X-Header-Set", "set-overwrites-values")],
            &[],
        ),
        (
            "/set",
            &[("Some-Other-Header", "val"), ("X-Header-Set", "some-other-value")],
            &[("Some-Other-Header", "val"), ("X-Header-Set", "set-overwrites-values")],
            &[],
        ),
        (
            "/add",
            &[("Some-Other-Header", "val")],
            &[("Some-Other-Header", "val"), ("X-Header-Add", "add-appends-values")],
            &[],
        ),
        (
            "/add",
            &[("Some-Other-Header", "val"), ("X-Header-Add", "some-other-value")],
            &[("Some-Other-Header", "val"), ("X-Header-Add", "some-other-value,add-appends-values")],
            &[],
        ),
        ("/remove", &[("X-Header-Remove", "val")], &[], &["X-Header-Remove"]),
        (
            "/multiple",
            &[
                ("X-Header-Set-2", "set-val-2"),
                ("X-Header-Add-2", "add-val-2"),
                ("X-Header-Remove-2", "remove-val-2"),
                ("Another-Header", "another-header-val"),
            ],
            &[
                ("X-Header-Set-1", "header-set-1"),
                ("X-Header-Set-2", "header-set-2"),
                ("X-Header-Add-1", "header-add-1"),
                ("X-Header-Add-2", "add-val-2,header-add-2"),
                ("X-Header-Add-3", "header-add-3"),
                ("Another-Header", "another-header-val"),
            ],
            &["X-Header-Remove-1", "X-Header-Remove-2"],
        ),
        (
            "/case-insensitivity",
            &[
                ("x-header-set", "original-val-set"),
                ("x-header-add", "original-val-add"),
                ("x-header-remove", "original-val-remove"),
                ("Another-Header", "another-header-val"),
            ],
            &[
                ("X-Header-Set", "header-set"),
                ("X-Header-Add", "original-val-add,header-add"),
                ("Another-Header", "another-header-val"),
            ],
            &["X-Header-Remove"],
        ),
    ];
    for (path, sent, wanted, absent) in cases {
        let request = sent.iter().fold(get(path), |request, (name, value)| request.header(name, value));
        let outcome = ask(routes, dial("echo"), &request);
        assert_eq!((place(&outcome).as_str(), outcome.request.uri.path()), ("echo-v1", *path));
        for (name, value) in *wanted {
            assert_eq!(header(&outcome.request.headers, name).as_deref(), Some(*value), "{path} {name}");
        }
        for name in *absent {
            assert_eq!(header(&outcome.request.headers, name), None, "{path} {name}");
        }
    }
}

#[test]
fn mesh_http_route_request_header_modifier() {
    let changed = |(path, change)| with(vec![Filter::RequestHeaders(change)], rule("echo-v1", vec![prefix(path)]));
    header_requests(&echo(header_changes().into_iter().map(changed).collect()));
}

#[test]
fn mesh_http_route_backend_request_header_modifier() {
    let changed = |(path, change)| {
        let backend = Backend { filters: vec![Filter::RequestHeaders(change)], ..build::backend("echo-v1") };
        Rule { backends: vec![backend], ..rule("echo-v1", vec![prefix(path)]) }
    };
    header_requests(&echo(header_changes().into_iter().map(changed).collect()));
}

#[test]
fn mesh_http_route_rewrite_path() {
    let rewritten = |from: &str, path, more: Vec<Filter>| {
        let rewrite = Filter::Rewrite(UrlRewrite { hostname: None, path });
        with([vec![rewrite], more].concat(), rule("echo-v1", vec![prefix(from)]))
    };
    let changed = || {
        vec![Filter::RequestHeaders(change(
            &[("X-Header-Set", "set-overwrites-values")],
            &[("X-Header-Add", "header-val-1"), ("X-Header-Add-Append", "header-val-2")],
            &["X-Header-Remove"],
        ))]
    };
    let routes = echo(vec![
        rewritten("/prefix/one", to_prefix("/one"), vec![]),
        rewritten("/strip-prefix", to_prefix("/"), vec![]),
        rewritten("/full/one", to_path("/one"), vec![]),
        rewritten("/full/rewrite-path-and-modify-headers", to_path("/test"), changed()),
        rewritten("/prefix/rewrite-path-and-modify-headers", to_prefix("/prefix"), changed()),
    ]);
    for (path, wanted) in [
        ("/prefix/one/two", "/one/two"),
        ("/strip-prefix/three", "/three"),
        ("/strip-prefix", "/"),
        ("/full/one/two", "/one"),
        ("/full/rewrite-path-and-modify-headers/test", "/test"),
        ("/prefix/rewrite-path-and-modify-headers/one", "/prefix/one"),
    ] {
        let request = get(path)
            .header("X-Header-Remove", "remove-val")
            .header("X-Header-Add-Append", "append-val-1")
            .header("X-Header-Set", "set-val");
        let outcome = ask(&routes, dial("echo"), &request);
        assert_eq!((place(&outcome).as_str(), outcome.request.uri.path()), ("echo-v1", wanted), "{path}");
        let headers = |name| header(&outcome.request.headers, name);
        if path.contains("modify-headers") {
            assert_eq!(headers("x-header-add").as_deref(), Some("header-val-1"));
            assert_eq!(headers("x-header-add-append").as_deref(), Some("append-val-1,header-val-2"));
            assert_eq!(headers("x-header-set").as_deref(), Some("set-overwrites-values"));
            assert_eq!(headers("x-header-remove"), None);
        }
    }
}

#[test]
fn mesh_http_route_weight() {
    let backends =
        vec![Backend { weight: 70, ..build::backend("echo-v1") }, Backend { weight: 30, ..build::backend("echo-v2") }];
    let routes = echo(vec![Rule { backends, ..rule("none", vec![anything()]) }]);
    shares(&routes, dial("echo"), &get("/"), &[("echo-v1", 70), ("echo-v2", 30)]);
}

/// The suite's call.
fn call() -> build::Request {
    get("/gateway_api_conformance.echo_basic.grpcecho.GrpcEcho/Echo")
        .method(http::Method::POST)
        .host("echo:7070")
        .header("content-type", "application/grpc")
}

fn grpc_dial() -> Dial<'static> {
    Dial { port: 7070, ..dial("echo") }
}

fn grpc_echo(rules: Vec<Rule>) -> Vec<Route> {
    vec![at("echo", Some(7070), build::grpc(MESH, "route", rules))]
}

#[test]
fn mesh_grpc_route_weight() {
    let weighted = |name: &str, weight| Backend { weight, ..build::backend(name) };
    let backends = vec![weighted("echo-v1", 70), weighted("echo-v2", 30), weighted("echo-v3", 0)];
    let routes = grpc_echo(vec![Rule { backends, ..rule("none", vec![Match::default()]) }]);
    shares(&routes, grpc_dial(), &call(), &[("echo-v1", 70), ("echo-v2", 30)]);
}

#[test]
fn mesh_grpc_route_request_header_modifier() {
    let changed = |case, backend, change| {
        with(vec![Filter::RequestHeaders(change)], rule(backend, vec![Match::default().header("x-test-case", case)]))
    };
    let routes = grpc_echo(vec![
        changed("set", "echo-v1", change(&[("x-header-set", "set-overwrites-values")], &[], &[])),
        changed("add", "echo-v1", change(&[], &[("x-header-add", "add-appends-values")], &[])),
        changed("remove", "echo-v1", change(&[], &[], &["x-header-remove"])),
        changed(
            "multi",
            "echo-v2",
            change(
                &[("x-header-set-1", "header-set-1"), ("x-header-set-2", "header-set-2")],
                &[("x-header-add-1", "header-add-1"), ("x-header-add-2", "header-add-2")],
                &["x-header-remove-1", "x-header-remove-2"],
            ),
        ),
    ]);
    type Headers = &'static [(&'static str, &'static str)];
    let cases: &[(&str, &str, Headers, Headers, &[&str])] = &[
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
    for (case, backend, sent, wanted, absent) in cases {
        let asked = call().header("x-test-case", case);
        let request = sent.iter().fold(asked, |request, (name, value)| request.header(name, value));
        let outcome = ask(&routes, grpc_dial(), &request);
        assert_eq!(place(&outcome), *backend, "{case}");
        assert_eq!(header(&outcome.request.headers, "x-test-case").as_deref(), Some(*case));
        for (name, value) in *wanted {
            assert_eq!(header(&outcome.request.headers, name).as_deref(), Some(*value), "{case} {name}");
        }
        for name in *absent {
            assert_eq!(header(&outcome.request.headers, name), None, "{case} {name}");
        }
    }
    assert_eq!(place(&ask(&routes, grpc_dial(), &call())), "404");
}
