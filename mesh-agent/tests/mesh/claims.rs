//! What requests say of where they come from, as applications see it: in both journeys, by callers of all kinds.

use http::{Request, StatusCode, Version};

use super::requests::{Client, app, mirror, nothing, read, say};
use super::support::*;
use super::{Pair, guard, vip};

/// What no caller is believed.
const FORGED: [(&str, &str); 8] = [
    ("x-forwarded-for", "6.6.6.6"),
    ("x-forwarded-proto", "https"),
    ("x-forwarded-host", "forged"),
    ("forwarded", "for=6.6.6.6"),
    ("x-real-ip", "6.6.6.6"),
    ("x-forwarded-client-cert", "URI=spiffe://forged"),
    ("x-envoy-external-address", "6.6.6.6"),
    ("x_forwarded_for", "6.6.6.6"),
];

/// Where callers are seen to come from: loopback stands for the pods' networks here.
const CALLER: &str = "127.0.0.1";

/// A pair whose client has these annotations; `app_protocol` as of a Service's port, `policy` on the server's pods.
async fn pair(annotations: &str, app_protocol: &str, is_judged: bool) -> Pair {
    let pair = Pair::start().await;
    let mark = |yaml: String| yaml.replacen("labels:", &format!("annotations: {{{annotations}}}, labels:"), 1);
    let service = service_yaml("web", "server", "10.96.0.7", 80, 8080)
        .replace("protocol: TCP", &format!("protocol: TCP, appProtocol: {app_protocol}"));
    let pods =
        [mark(pod_yaml("client", "node1", pair.client.ip)), pod_yaml("server", "node2", pair.server.ip), service];
    pair.mesh.apply("world.yaml", &pods.concat());
    if is_judged {
        let rule = "{sources: [{type: Any}], requests: [{methods: [GET]}]}";
        pair.mesh.apply("policy.yaml", &guard("guard", "ALLOW", rule));
    }
    app((pair.server.ip, 8080), Version::HTTP_11, mirror);
    pair
}

fn forged() -> String {
    let fields: String = FORGED.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("GET / HTTP/1.1\r\nHost: w\r\n{fields}X-Own: kept\r\nConnection: close\r\n\r\n")
}

/// The lines of what the application saw that speak of where the request comes from.
fn told(seen: &str) -> Vec<&str> {
    let is_told = |line: &&str| {
        let name = line.split(':').next().unwrap_or_default();
        FORGED.iter().any(|(forged, _)| name.eq_ignore_ascii_case(forged))
    };
    let mut lines: Vec<&str> = seen.lines().filter(is_told).collect();
    lines.sort_unstable();
    lines
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_believed_who_he_says_he_is() {
    if needs_two_nodes() {
        return;
    }
    // (what is spoken at the port that the client dials, whether its requests are judged at the application's node)
    for (app_protocol, is_judged) in [("http", false), ("http", true), ("bytes", true)] {
        let pair = pair("", app_protocol, is_judged).await;
        let heard = say(&pair, forged().as_bytes()).await;
        assert!(heard.contains("x-own: kept"), "{app_protocol} {is_judged}: {heard}");
        let caller = format!("x-forwarded-for: {CALLER}");
        // Who asks is put right by the application's node. What was asked for is the word of the client's node, which
        // does not look into bytes.
        let expected = match app_protocol {
            "bytes" => vec![&*caller, "x-forwarded-host: forged", "x-forwarded-proto: https"],
            _ => vec![&*caller, "x-forwarded-proto: http"],
        };
        assert_eq!(told(&heard), expected, "{app_protocol}, judged: {is_judged}");
    }
}

/// Ring 3 shows it where requests are judged too: a pod is known there by its address.
#[tokio::test(flavor = "multi_thread")]
async fn an_ingress_passes_on_what_it_was_told() {
    let pair = pair("nodemesh.dev/forwarded: append", "http", false).await;
    let heard = say(&pair, forged().as_bytes()).await;
    let mut expected: Vec<String> = FORGED.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    expected.push(format!("x-forwarded-for: {CALLER}"));
    expected.push(format!("forwarded: for={CALLER}"));
    expected.sort_unstable();
    assert_eq!(told(&heard), expected);
}

/// What a route says of the request stays, though the application's node reads it too.
#[tokio::test(flavor = "multi_thread")]
async fn a_routes_own_word_stays() {
    let pair = pair("", "http", true).await;
    pair.mesh.apply(
        "route.yaml",
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: web, port: 80}]
  rules:
  - filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-forwarded-host, value: outer.example}]}}]
    backendRefs: [{name: web, port: 80}]
",
    );
    let heard = say(&pair, forged().as_bytes()).await;
    assert!(told(&heard).contains(&"x-forwarded-host: outer.example"), "{heard}");
    assert!(!heard.contains("forged") && !heard.contains("6.6.6.6"), "{heard}");
}

/// Routes compare a path in the form in which it is judged and sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_path_is_routed_in_its_one_form() {
    let pair = pair("", "http", false).await;
    app((pair.server.ip, 8081), Version::HTTP_11, |_| {
        Box::pin(async { http::Response::new(super::requests::text("the public one")) })
    });
    pair.mesh.apply("other.yaml", &service_yaml("public", "server", "10.96.0.9", 80, 8081));
    // Without a route the path goes as it came.
    let mut client = Client::connect(&pair, Version::HTTP_11).await;
    let (status, seen) = client.get("/a//b/%7e").await;
    assert!(status == StatusCode::OK && seen.starts_with("GET /a//b/%7e HTTP"), "{seen}");
    pair.mesh.apply(
        "route.yaml",
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: web, port: 80}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /admin}}]
    backendRefs: [{name: web, port: 80}]
  - backendRefs: [{name: public, port: 80}]
",
    );
    for (path, expected, sent) in [
        ("/admin/a?q=%2e%2e/", 200, "GET /admin/a?q=%2e%2e/ HTTP"),
        ("//admin/a", 200, "GET /admin/a HTTP"),
        ("/x/../admin", 200, "GET /admin HTTP"),
        ("/%61dmin/%7e", 200, "GET /admin/~ HTTP"),
        ("/admin/../x", 200, "the public one"),
        ("/x", 200, "the public one"),
        ("/x/..%2fadmin", 400, "path-hidden-dots"),
        ("/../admin", 400, "path-above-root"),
    ] {
        let mut client = Client::connect(&pair, Version::HTTP_11).await;
        let (status, seen) = read(client.ask(Request::get(path), nothing()).await).await;
        assert!(status == expected && seen.starts_with(sent), "{path}: {status} {seen}");
    }
}

/// A pod of the mesh that reaches itself through a Service meets its own policy, request by request, whatever its port
/// speaks.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_asks_itself_is_judged_as_any_other() {
    for app_protocol in ["http", "bytes"] {
        let pair = pair("", app_protocol, true).await;
        for (method, expected) in [("GET", "200"), ("DELETE", "403")] {
            use tokio::io::AsyncWriteExt as _;
            let mut tcp = pair.server.connect(vip()).await.unwrap();
            let said = forged().replacen("GET", method, 1);
            tcp.write_all(said.as_bytes()).await.unwrap();
            let heard = super::requests::hear(&mut tcp).await;
            assert!(heard.starts_with(&format!("HTTP/1.1 {expected} ")), "{app_protocol} {method}: {heard}");
            if expected == "200" {
                assert!(!heard.contains("6.6.6.6"), "{app_protocol}: {heard}");
                assert!(heard.contains(&format!("x-forwarded-for: {CALLER}")), "{app_protocol}: {heard}");
            }
        }
        let metrics = &pair.mesh.nodes[1].metrics;
        let is_told = |line: &str| line.contains("http_server") && line.contains("error_type=\"no-allow-rule\"");
        eventually("the refusal is told", || metrics.encode().lines().any(is_told)).await;
        // A policy that refuses the caller as a whole ends what there is.
        pair.mesh.apply("deny.yaml", &guard("shut", "DENY", "{sources: [{type: Any}]}"));
        pair.mesh.nodes[1].until_live("connections are cut", <[_]>::is_empty).await;
    }
}
