//! Requests that an authorizer is asked about, by gRPC and by HTTP, by real clients through both agents. The authorizer is
//! a pod of the mesh; the pod that is asked for asks it by its own tunnel.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version};
use http_body_util::BodyExt as _;
use hyper::body::{Frame, Incoming};
use prost::Message;

use super::Pair;
use super::requests::{Body, Client, Seen, app, mirror, nothing, read, say, text};
use super::support::*;

/// The part of the protocol that the test looks at, written down once more.
#[derive(Clone, PartialEq, Message)]
struct CheckRequest {
    #[prost(message, optional, tag = "1")]
    attributes: Option<Attributes>,
}

#[derive(Clone, PartialEq, Message)]
struct Attributes {
    #[prost(message, optional, tag = "1")]
    source: Option<Peer>,
    #[prost(message, optional, tag = "2")]
    destination: Option<Peer>,
    #[prost(message, optional, tag = "4")]
    request: Option<Outer>,
}

#[derive(Clone, PartialEq, Message)]
struct Peer {
    #[prost(string, tag = "4")]
    principal: String,
}

#[derive(Clone, PartialEq, Message)]
struct Outer {
    #[prost(message, optional, tag = "2")]
    http: Option<Asked>,
}

#[derive(Clone, PartialEq, Message)]
struct Asked {
    #[prost(string, tag = "2")]
    method: String,
    #[prost(map = "string, string", tag = "3")]
    headers: HashMap<String, String>,
    #[prost(string, tag = "4")]
    path: String,
    #[prost(string, tag = "11")]
    body: String,
}

/// What the authorizer was asked, as `<method> <path> by <source> of <destination>`, with the body.
type Heard = Arc<Mutex<Vec<(String, Asked)>>>;

/// A field of protobuf that has a length.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2, u8::try_from(bytes.len()).unwrap()], bytes].concat()
}

fn header(name: &str, value: &str) -> Vec<u8> {
    field(1, &[field(1, name.as_bytes()), field(2, value.as_bytes())].concat())
}

/// `status: OK`, a header set, one removed, one added to the answer.
fn allowed() -> Vec<u8> {
    let changes = [field(2, &header("x-user", "alice")), field(5, b"x-secret"), field(6, &header("x-seen", "yes"))];
    [field(1, b""), field(3, &changes.concat())].concat()
}

/// `status: UNAUTHENTICATED`, 401, a header and a body.
fn denied() -> Vec<u8> {
    let status = field(1, &[0x08, 0x91, 0x03]);
    let told = [status, field(2, &header("www-authenticate", "Basic")), field(3, b"who are you?")].concat();
    [field(1, &[0x08, 16]), field(2, &told)].concat()
}

fn grpc(message: Vec<u8>, status: &'static str) -> Response<Body> {
    let mut body = vec![0];
    body.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
    body.extend_from_slice(&message);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static(status));
    let frames = [Ok(Frame::data(Bytes::from(body))), Ok(Frame::trailers(trailers))];
    let body = Frames(frames.into_iter().collect());
    Response::builder().header("content-type", "application/grpc").body(body.boxed()).unwrap()
}

/// Frames that are there already.
struct Frames(VecDeque<Result<Frame<Bytes>, hyper::Error>>);

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Poll::Ready(self.0.pop_front())
    }
}

/// An authorizer by gRPC, that answers by the path.
fn grpc_authorizer(pod: &Pod) -> (Arc<Seen>, Heard) {
    let heard = Heard::default();
    let shown = heard.clone();
    let answer = move |request: Request<Incoming>| -> super::requests::Answer {
        let shown = shown.clone();
        Box::pin(async move {
            assert_eq!(request.uri().path(), "/envoy.service.auth.v3.Authorization/Check");
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let Attributes { source, destination, request } =
                CheckRequest::decode(&body[5..]).unwrap().attributes.unwrap();
            let asked = request.unwrap().http.unwrap();
            let (source, destination) = (source.unwrap().principal, destination.unwrap().principal);
            let line = format!("{} {} by {source} of {destination}", asked.method, asked.path);
            let path = asked.path.clone();
            shown.lock().unwrap().push((line, asked));
            match path.as_str() {
                path if path.contains("deny") => grpc(denied(), "0"),
                path if path.contains("slow") => {
                    tokio::time::sleep(PATIENCE).await;
                    grpc(allowed(), "0")
                }
                path if path.contains("broken") => grpc(allowed(), "14"),
                path if path.contains("empty") => grpc(Vec::new(), "0"),
                _ => grpc(allowed(), "0"),
            }
        })
    };
    (app((pod.ip, 9191), Version::HTTP_2, answer), heard)
}

/// A pair, and an authorizer that its server is to ask; which is in the mesh, on the client's node.
async fn asked_about(protocol: &str, more: &str) -> (Pair, Pod) {
    let pair = Pair::start().await;
    let ip = fresh_ip();
    let yaml = [pod_yaml("opa", "node1", ip), service_yaml("opa", "opa", "10.96.0.9", 9191, 9191)];
    pair.mesh.apply("opa.yaml", &yaml.concat());
    let opa = pair.mesh.enrol(ip).await;
    authorizer(&pair, protocol, more);
    custom(&pair, "requests: [{paths: ['/asked/{**}']}]");
    (pair, opa)
}

fn authorizer(pair: &Pair, protocol: &str, more: &str) {
    pair.mesh.apply(
        "authorizer.yaml",
        &format!(
            "apiVersion: nodemesh.dev/v1alpha1
kind: ExternalAuthorizer
metadata: {{name: opa, namespace: shop}}
spec: {{service: {{name: opa, port: 9191}}, protocol: {protocol}, {more}}}
"
        ),
    );
}

fn custom(pair: &Pair, rest: &str) {
    pair.mesh.apply_whatever(
        "custom.yaml",
        &format!(
            "apiVersion: nodemesh.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {{name: asks, namespace: shop}}
spec:
  targetRefs: [{{kind: Pod, selector: {{matchLabels: {{app: server}}}}}}]
  action: CUSTOM
  provider: {{name: opa}}
  rules: [{{sources: [{{type: Any}}], {rest}}}]
"
        ),
    );
}

fn is_counted(pair: &Pair, result: &str, passed: bool) -> impl Fn() -> bool {
    let metrics = pair.mesh.nodes[1].metrics.clone();
    let words = [format!("result=\"{result}\""), format!("passed=\"{passed}\""), "shop/opa".to_string()];
    move || {
        let text = metrics.encode();
        text.lines().any(|line| line.contains("authorizer_checks") && words.iter().all(|word| line.contains(word)))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authorizer_is_asked_by_grpc_and_what_it_says_holds() {
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let (pair, opa) = asked_about("GRPC", "timeout: 5s").await;
        let (seen, heard) = grpc_authorizer(&opa);
        app((pair.server.ip, 8080), version, mirror);
        let mut client = Client::connect(&pair, version).await;
        // Nobody is asked about what the policy does not mean.
        let (status, body) = client.get("/open").await;
        assert_eq!((status, seen.counts().1), (StatusCode::OK, 0), "{body}");
        let request = Request::get(client.uri("/asked//a?q=1"));
        let request = request.header("x-user", "forged").header("x-secret", "1").header("x-kept", "2");
        let response = client.ask(request, nothing()).await;
        assert_eq!(response.headers().get("x-seen").map(HeaderValue::as_bytes), Some(&b"yes"[..]));
        let (status, body) = read(response).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        for (word, is_there) in [
            ("x-user: alice", true),
            ("forged", false),
            ("x-secret", false),
            ("x-kept: 2", true),
            ("/asked/a?q=1", true),
        ] {
            assert_eq!(body.contains(word), is_there, "{word}: {body}");
        }
        let (line, asked) = heard.lock().unwrap().pop().unwrap();
        let id = |name: &str| format!("spiffe://cluster.local/ns/shop/sa/{name}");
        assert_eq!(line, format!("GET /asked/a?q=1 by {} of {}", id("client"), id("server")));
        assert_eq!(asked.headers.get("x-user").map(String::as_str), Some("forged"), "it is shown what the caller says");
        let response = client.ask(Request::get(client.uri("/asked/deny")), nothing()).await;
        assert_eq!(response.headers().get("www-authenticate").map(HeaderValue::as_bytes), Some(&b"Basic"[..]));
        assert_eq!(read(response).await, (StatusCode::UNAUTHORIZED, "who are you?".to_string()));
        for _ in 0..50 {
            assert_eq!(client.get("/asked/b").await.0, StatusCode::OK);
        }
        let (connections, requests) = seen.counts();
        assert!(requests >= 52 && connections <= 4, "{requests} checks on {connections} connections");
        eventually("allowed is counted", is_counted(&pair, "allowed", true)).await;
        eventually("denied is counted", is_counted(&pair, "denied", false)).await;
        // By the tunnel of the pod that is asked for.
        let metrics = &pair.mesh.nodes[0].metrics;
        let line = |line: &str| line.contains("connections_open") && line.contains("source_service_account=\"server\"");
        eventually("it comes as the server", || metrics.encode().lines().any(line)).await;
    }
}

/// A call by gRPC is refused in its own words.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_refused_in_its_own_words() {
    let (pair, opa) = asked_about("GRPC", "timeout: 5s").await;
    let _authorizer = grpc_authorizer(&opa);
    app((pair.server.ip, 8080), Version::HTTP_2, mirror);
    let mut client = Client::connect(&pair, Version::HTTP_2).await;
    let request = Request::post(client.uri("/asked/deny")).header("content-type", "application/grpc");
    let response = client.ask(request, nothing()).await;
    let status = response.headers().get("grpc-status").map(|status| status.to_str().unwrap().to_string());
    assert_eq!((response.status(), status.as_deref()), (StatusCode::OK, Some("16")));
    assert_eq!(response.headers().get("content-type").unwrap(), "application/grpc");
}

/// No answer is no: unless the operator says otherwise, and then it is counted as what it is.
#[tokio::test(flavor = "multi_thread")]
async fn without_an_answer_it_is_as_the_authorizer_says() {
    let (pair, opa) = asked_about("GRPC", "timeout: 1s").await;
    let seen = app((pair.server.ip, 8080), Version::HTTP_11, mirror);
    let mut client = Client::connect(&pair, Version::HTTP_11).await;
    // Nobody listens yet.
    assert_eq!(client.get("/asked/a").await, (StatusCode::FORBIDDEN, "authorizer-unreachable".to_string()));
    let _authorizer = grpc_authorizer(&opa);
    let mut cases = vec![];
    for (path, reason) in [
        ("/asked/slow", "authorizer-timed-out"),
        ("/asked/broken", "authorizer-broken"),
        ("/asked/empty", "authorizer-broken"),
    ] {
        cases.push(("timeout: 1s", path, StatusCode::FORBIDDEN, reason));
        cases.push(("timeout: 1s, statusOnError: 503", path, StatusCode::SERVICE_UNAVAILABLE, reason));
        cases.push(("timeout: 1s, failOpen: true", path, StatusCode::OK, reason));
    }
    for (more, path, status, reason) in cases {
        authorizer(&pair, "GRPC", more);
        let before = seen.counts().1;
        let (answered, body) = client.get(path).await;
        assert_eq!(answered, status, "{more} {path}: {body}");
        let is_open = status == StatusCode::OK;
        assert!(is_open || body == reason, "{more} {path}: {body}");
        assert_eq!(seen.counts().1 > before, is_open, "{more} {path}: the application heard of it");
        eventually(reason, is_counted(&pair, reason, is_open)).await;
    }
    // A no is a no, open or not.
    assert_eq!(client.get("/asked/deny").await.0, StatusCode::UNAUTHORIZED);
    // Nobody who is named: a mistake, not an outage.
    let findings = pair.mesh.apply_whatever("authorizer.yaml", "");
    assert!(findings.iter().any(|finding| finding.object == "shop/asks"), "{findings:?}");
    assert_eq!(client.get("/asked/a").await, (StatusCode::FORBIDDEN, "authorizer-unknown".to_string()));
    assert_eq!(client.get("/open").await.0, StatusCode::OK);
}

/// Whoever is asked does not get to say more than policy allows.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_let_pass_is_judged_by_policy_after_that() {
    let (pair, opa) = asked_about("GRPC", "timeout: 5s").await;
    let (seen, _) = grpc_authorizer(&opa);
    app((pair.server.ip, 8080), Version::HTTP_11, mirror);
    pair.mesh.apply(
        "deny.yaml",
        "apiVersion: nodemesh.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: closed, namespace: shop}
spec:
  targetRefs: [{kind: Pod, selector: {matchLabels: {app: server}}}]
  action: DENY
  rules: [{sources: [{type: Any}], requests: [{paths: ['/asked/closed']}]}]
",
    );
    let mut client = Client::connect(&pair, Version::HTTP_11).await;
    assert_eq!(client.get("/asked/closed").await, (StatusCode::FORBIDDEN, "deny-rule".to_string()));
    assert_eq!(seen.counts().1, 1, "it was asked first");
    assert_eq!(client.get("/asked/a").await.0, StatusCode::OK);
    // What is no request is asked about by nobody, and passes nowhere.
    let heard = say(&pair, b"\x01 no request\r\n\r\n").await;
    assert!(heard.starts_with("HTTP/1.1 400 "), "{heard}");
    custom(&pair, "ports: [8080]");
    assert_eq!(client.get("/open").await.0, StatusCode::OK);
    assert_eq!(seen.counts().1, 3, "a rule without a path means every request");
}

/// Bodies are shown as far as is wanted, and arrive whole.
#[tokio::test(flavor = "multi_thread")]
async fn the_beginning_of_a_body_is_shown_and_all_of_it_arrives() {
    let (pair, opa) = asked_about("GRPC", "timeout: 5s").await;
    let (seen, heard) = grpc_authorizer(&opa);
    app((pair.server.ip, 8080), Version::HTTP_11, mirror);
    let long = "0123456789".repeat(20_000);
    let exact = &long[..8];
    let mut client = Client::connect(&pair, Version::HTTP_11).await;
    // (what is shown, sent, the status, what the authorizer sees, whether it is part of more)
    for (more, sent, status, shown, is_part) in [
        ("timeout: 5s", long.as_str(), 200, "", None),
        ("includeRequestBodyInCheck: {maxRequestBytes: 8}", "short", 200, "short", Some("false")),
        ("includeRequestBodyInCheck: {maxRequestBytes: 8}", exact, 200, exact, Some("false")),
        ("includeRequestBodyInCheck: {maxRequestBytes: 8}", "", 200, "", Some("false")),
        ("includeRequestBodyInCheck: {maxRequestBytes: 8}", "too long!", 413, "", None),
        (
            "includeRequestBodyInCheck: {maxRequestBytes: 8, allowPartialMessage: true}",
            long.as_str(),
            200,
            exact,
            Some("true"),
        ),
    ] {
        authorizer(&pair, "GRPC", more);
        let before = seen.counts().1;
        let response = client.ask(Request::post(client.uri("/asked/body")), text(sent.to_string())).await;
        let (answered, body) = read(response).await;
        assert_eq!(answered.as_u16(), status, "{more}: {body}");
        if status != 200 {
            assert_eq!(seen.counts().1, before, "{more}: it was asked");
            client = Client::connect(&pair, Version::HTTP_11).await;
            continue;
        }
        assert!(body.ends_with(&format!("body: {sent}")), "{more}: the application got {} bytes", body.len());
        let (_, asked) = heard.lock().unwrap().pop().unwrap();
        let partial = asked.headers.get("x-envoy-auth-partial-body").map(String::as_str);
        assert_eq!((asked.body.as_str(), partial), (shown, is_part), "{more}");
    }
}

/// By HTTP: 200 lets it pass, 5xx is no answer, the rest is what the caller gets.
#[tokio::test(flavor = "multi_thread")]
async fn an_authorizer_is_asked_by_http_and_what_it_says_holds() {
    let more =
        "pathPrefix: /check, includeRequestHeadersInCheck: [x-team], headersToUpstreamOnAllow: [x-user], timeout: 5s";
    let (pair, opa) = asked_about("HTTP", more).await;
    let (heard, failures) = (Arc::new(Mutex::new(Vec::<String>::new())), Arc::new(AtomicUsize::new(0)));
    let shown = heard.clone();
    app((opa.ip, 9191), Version::HTTP_11, move |request| {
        let (shown, failures) = (shown.clone(), failures.clone());
        Box::pin(async move {
            let path = request.uri().path().to_string();
            let mut lines = vec![format!("{} {}", request.method(), request.uri())];
            lines.extend(request.headers().iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())));
            shown.lock().unwrap().push(lines.join("\n"));
            let response = Response::builder();
            let response = match path.as_str() {
                "/check/asked/login" => response.status(302).header("location", "https://login.example/"),
                "/check/asked/failing" => {
                    failures.fetch_add(1, Ordering::SeqCst);
                    response.status(500)
                }
                "/check/asked/quiet" => response,
                _ => response.header("x-user", "alice").header("x-other", "1"),
            };
            response.body(text("said")).unwrap()
        })
    });
    app((pair.server.ip, 8080), Version::HTTP_11, mirror);
    let mut client = Client::connect(&pair, Version::HTTP_11).await;
    let request = Request::put("/asked/a?q=1").header("x-user", "forged").header("x-team", "a").header("cookie", "c=1");
    let (status, body) = read(client.ask(request, text("the body")).await).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    assert!(body.contains("x-user: alice") && !body.contains("forged") && !body.contains("x-other"), "{body}");
    assert!(body.ends_with("body: the body"), "{body}");
    let asked = heard.lock().unwrap().pop().unwrap();
    assert!(asked.starts_with("PUT /check/asked/a?q=1\n"), "{asked}");
    let principal = "x-nodemesh-source-principal: spiffe://cluster.local/ns/shop/sa/client";
    for (word, is_there) in [("x-team: a", true), ("host: web.shop", true), (principal, true), ("cookie", false)] {
        assert_eq!(asked.contains(word), is_there, "{word}: {asked}");
    }
    let request = Request::get("/asked/quiet").header("x-user", "forged");
    let (status, body) = read(client.ask(request, nothing()).await).await;
    assert!(status == StatusCode::OK && !body.contains("forged"), "{status}: {body}");
    let response = client.ask(Request::get("/asked/login"), nothing()).await;
    assert_eq!(response.headers().get("location").map(HeaderValue::as_bytes), Some(&b"https://login.example/"[..]));
    assert_eq!(read(response).await, (StatusCode::FOUND, "said".to_string()));
    assert_eq!(client.get("/asked/failing").await, (StatusCode::FORBIDDEN, "authorizer-broken".to_string()));
}

/// An authorizer whose own pod the policy covers would ask itself for ever: it is refused there, at once.
#[tokio::test(flavor = "multi_thread")]
async fn an_authorizer_is_not_asked_about_itself() {
    let (pair, opa) = asked_about("GRPC", "timeout: 10s, failOpen: true").await;
    let (seen, _) = grpc_authorizer(&opa);
    app((pair.server.ip, 8080), Version::HTTP_11, mirror);
    pair.mesh.apply(
        "custom.yaml",
        "apiVersion: nodemesh.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: asks, namespace: shop}
spec: {targetRefs: [{kind: Namespace}], action: CUSTOM, provider: {name: opa}, rules: [{sources: [{type: Any}]}]}
",
    );
    let mut client = Client::connect(&pair, Version::HTTP_11).await;
    let begun = std::time::Instant::now();
    // Its own node refuses the check, which by the server's node is no answer; and failOpen is about that.
    assert_eq!(client.get("/a").await.0, StatusCode::OK);
    assert!(begun.elapsed() < Duration::from_secs(9), "{:?}", begun.elapsed());
    assert_eq!(seen.counts().1, 0);
    let metrics = &pair.mesh.nodes[0].metrics;
    eventually("it is counted", || metrics.encode().contains("authorizer-itself")).await;
}
