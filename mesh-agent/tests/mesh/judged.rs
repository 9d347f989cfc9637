//! Requests that are judged one by one on the application's node, by real clients through both agents.

use std::sync::Arc;

use http::{Request, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

use super::requests::{Client, Seen, app, hear, mirror, nothing, read, say, speaks, text, until};
use super::support::*;
use super::{Pair, guard, vip};

/// A policy on the server's pods, with these rules.
fn rules(pair: &Pair, action: &str, rules: &str) {
    pair.mesh.apply("policy.yaml", &guard("guard", action, rules));
}

/// The client may read what is public.
const PUBLIC: &str = "{sources: [{type: ServiceAccount, serviceAccount: {name: client}}],
    requests: [{methods: [GET], paths: ['/public/*'], hosts: [w, '*.shop']}]}";

async fn judged(app_protocol: Option<&str>, spoken: Version) -> (Pair, Arc<Seen>) {
    let pair = Pair::start().await;
    if let Some(app_protocol) = app_protocol {
        speaks(&pair, app_protocol);
    }
    rules(&pair, "ALLOW", PUBLIC);
    let seen = app((pair.server.ip, 8080), spoken, mirror);
    (pair, seen)
}

fn ask(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: w\r\n\r\n")
}

/// The port is one of bytes to the client's node: what is judged is what the client wrote.
#[tokio::test(flavor = "multi_thread")]
async fn requests_are_judged_by_what_they_ask() {
    let (pair, seen) = judged(None, Version::HTTP_11).await;
    // (the target, the status, the target that the application sees)
    for (target, status, sent) in [
        ("/public/a?q=/../x", 200, Some("/public/a?q=/../x")),
        ("/public//b/./c", 200, Some("/public/b/c")),
        ("/%70ublic/%7e%c3%bc", 200, Some("/public/~%C3%BC")),
        ("/public/../admin", 403, None),
        ("/public/%2e%2e/admin", 403, None),
        ("//admin", 403, None),
        ("/admin", 403, None),
        ("/public", 403, None),
        ("/public/..%2fadmin", 400, None),
        ("/public/..;/admin", 400, None),
        ("/public/%5c..%5cadmin", 400, None),
        ("/public/%252e%252e/admin", 400, None),
        ("/public/%c0%ae", 400, None),
        ("/public/%00", 400, None),
        ("/../admin", 400, None),
    ] {
        let before = seen.counts().1;
        let heard = say(&pair, ask(target).replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n").as_bytes()).await;
        assert!(heard.starts_with(&format!("HTTP/1.1 {status} ")), "{target}: {heard}");
        match sent {
            Some(sent) => assert!(heard.contains(&format!("GET {sent} HTTP/1.1")), "{target}: {heard}"),
            None => assert_eq!(seen.counts().1, before, "{target}: the application heard of it"),
        }
    }
    for (head, status) in [
        ("POST /public/a HTTP/1.1\r\nHost: w\r\nContent-Length: 0\r\n", 403),
        ("GET /public/a HTTP/1.1\r\nHost: other\r\n", 403),
        ("GET /public/a HTTP/1.1\r\nHost: W:8080\r\n", 200),
        ("GET /public/a HTTP/1.1\r\nHost: w\r\nX-HTTP-Method-Override: DELETE\r\n", 403),
        ("GET /public/a HTTP/1.1\r\nHost: w\r\nHost: w\r\n", 400),
    ] {
        let heard = say(&pair, format!("{head}Connection: close\r\n\r\n").as_bytes()).await;
        assert!(heard.starts_with(&format!("HTTP/1.1 {status} ")), "{head}: {heard}");
    }
    // One after the other on one connection: a refusal ends nothing.
    let three = [ask("/public/1"), ask("/admin"), ask("/public/2").replace("w\r\n", "w\r\nConnection: close\r\n")];
    let heard = say(&pair, three.concat().as_bytes()).await;
    let statuses: Vec<&str> = heard.split("HTTP/1.1 ").filter_map(|part| part.get(..3)).collect();
    let statuses: Vec<&str> = statuses.into_iter().filter(|word| word.parse::<u16>().is_ok()).collect();
    assert_eq!(statuses, ["200", "403", "200"], "{heard}");
    let metrics = &pair.mesh.nodes[1].metrics;
    for reason in ["no-allow-rule", "path-hidden-dots", "path-above-root"] {
        let line = |line: &str| line.contains("http_server") && line.contains(&format!("error_type=\"{reason}\""));
        eventually(reason, || metrics.encode().lines().any(line)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_request_is_refused_and_counted() {
    let (pair, seen) = judged(None, Version::HTTP_11).await;
    for bytes in [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello\r\n\r\n"[..], b"SELECT 1;\r\n\r\n\r\n"] {
        let heard = say(&pair, bytes).await;
        assert!(heard.starts_with("HTTP/1.1 400 "), "{heard}");
    }
    // Half a preface of HTTP/2 is none.
    let mut tcp = pair.client.connect(vip()).await.unwrap();
    tcp.write_all(b"PRI * HT").await.unwrap();
    tcp.shutdown().await.unwrap();
    let mut heard = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, tcp.read_to_end(&mut heard)).await.unwrap();
    assert_eq!(seen.counts().1, 0, "the application heard of it");
    let metrics = &pair.mesh.nodes[1].metrics;
    let is_told = |line: &str| line.contains("http_server") && line.contains("http_response_status_code=\"4xx\"");
    eventually("it is counted", || metrics.encode().lines().any(is_told)).await;
    let is_refused = |line: &str| line.contains("connections_closed") && line.contains("result=\"refused\"");
    eventually("the connections end as refused", || metrics.encode().lines().any(is_refused)).await;
}

/// Whatever the client's node makes of the port, and whatever the application speaks.
#[tokio::test(flavor = "multi_thread")]
async fn both_protocols_are_judged() {
    for (app_protocol, spoken) in
        [(None, Version::HTTP_2), (Some("http"), Version::HTTP_11), (Some("kubernetes.io/h2c"), Version::HTTP_2)]
    {
        let (pair, seen) = judged(app_protocol, spoken).await;
        for version in [Version::HTTP_11, Version::HTTP_2] {
            if app_protocol.is_none() && version != spoken {
                continue;
            }
            let mut client = Client::connect(&pair, version).await;
            let (status, body) = client.get("/public/a").await;
            assert_eq!(status, StatusCode::OK, "{app_protocol:?} {version:?}: {body}");
            assert!(body.contains("/public/a"), "{body}");
            let (status, body) = client.get("/admin").await;
            assert_eq!(
                (status, body.as_str()),
                (StatusCode::FORBIDDEN, "no-allow-rule"),
                "{app_protocol:?} {version:?}"
            );
            assert_eq!(client.get("/public/b").await.0, StatusCode::OK, "{app_protocol:?} {version:?}");
        }
        assert!(seen.counts().1 > 0);
    }
}

/// gRPC is told in its own words: HTTP 200 and a status in the head, which is all there is.
#[tokio::test(flavor = "multi_thread")]
async fn grpc_is_judged_by_service_and_method() {
    for app_protocol in [None, Some("grpc")] {
        let (pair, _) = judged(app_protocol, Version::HTTP_2).await;
        rules(&pair, "DENY", "{sources: [{type: Any}], requests: [{grpc: [{service: shop.Cart, method: Empty}]}]}");
        let mut client = Client::connect(&pair, Version::HTTP_2).await;
        for (path, code) in
            [("/shop.Cart/Empty", Some("7")), ("/shop.Cart/Add", None), ("/shop.Cart/%45mpty", Some("7"))]
        {
            let request = Request::post(client.uri(path)).header("content-type", "application/grpc");
            let response = client.ask(request, nothing()).await;
            let status = response.headers().get("grpc-status").map(|status| status.to_str().unwrap().to_string());
            assert_eq!((response.status(), status.as_deref()), (StatusCode::OK, code), "{app_protocol:?} {path}");
            read(response).await;
        }
    }
}

/// Where requests are read anyway, AUDIT records those that it means.
#[tokio::test(flavor = "multi_thread")]
async fn audit_records_requests() {
    let (pair, _) = judged(None, Version::HTTP_11).await;
    pair.mesh.apply(
        "audit.yaml",
        "apiVersion: nodemesh.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: watch, namespace: shop}
spec:
  targetRefs: [{kind: Namespace}]
  action: AUDIT
  rules: [{sources: [{type: Any}], requests: [{paths: ['/public/b']}]}]
",
    );
    let mut client = Client::connect(&pair, Version::HTTP_11).await;
    assert_eq!(client.get("/public/a").await.0, StatusCode::OK);
    assert_eq!(client.get("/public/b").await.0, StatusCode::OK);
    let metrics = &pair.mesh.nodes[1].metrics;
    let line = "nodemesh_audit_matches_total{policy=\"shop/watch\"} 1";
    eventually("the one request is recorded", || metrics.encode().contains(line)).await;
}

/// On connections that stay open.
#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_changes_holds_for_the_next_request() {
    for app_protocol in [None, Some("http")] {
        let (pair, _) = judged(app_protocol, Version::HTTP_11).await;
        let mut client = Client::connect(&pair, Version::HTTP_11).await;
        assert_eq!(client.get("/public/a").await.0, StatusCode::OK);
        assert_eq!(client.get("/other").await.0, StatusCode::FORBIDDEN);
        rules(&pair, "ALLOW", &PUBLIC.replace("/public/*", "/other"));
        assert_eq!(client.get("/public/a").await.0, StatusCode::FORBIDDEN, "{app_protocol:?}");
        assert_eq!(client.get("/other").await.0, StatusCode::OK, "{app_protocol:?}");
    }
}

/// A connection of bytes cannot be judged by what its requests ask: it is cut, and the next one is read.
#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_open_when_such_a_policy_comes_are_cut() {
    let pair = Pair::start().await;
    app((pair.server.ip, 8080), Version::HTTP_11, mirror);
    let mut tcp = pair.client.connect(vip()).await.unwrap();
    tcp.write_all(ask("/public/a").as_bytes()).await.unwrap();
    until(&mut tcp, "body: ").await;
    rules(&pair, "ALLOW", PUBLIC);
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, tcp.read_to_end(&mut rest)).await.expect("it is cut");
    assert!(ended.is_err(), "with a reset: {rest:?}");
    assert!(
        say(&pair, ask("/admin").replace("w\r\n", "w\r\nConnection: close\r\n").as_bytes()).await.contains(" 403 ")
    );
}

/// Who is allowed, or refused, without a look at requests speaks what he likes.
#[tokio::test(flavor = "multi_thread")]
async fn callers_whom_no_request_decides_about_carry_bytes() {
    let pair = Pair::start().await;
    answering_app("web", (pair.server.ip, 8080));
    let own = "{sources: [{type: ServiceAccount, serviceAccount: {name: client}}]}";
    let others = "{sources: [{type: ServiceAccount, serviceAccount: {name: other}}], requests: [{paths: ['/a']}]}";
    rules(&pair, "ALLOW", &format!("{own}, {others}"));
    assert_eq!(pair.client.ask(vip(), "\x01no request").await.unwrap(), "web:\x01no request");
    rules(&pair, "ALLOW", others);
    assert!(pair.client.ask(vip(), "\x01no request").await.is_err(), "no request of this caller is allowed");
    rules(&pair, "ALLOW", &format!("{{sources: [{{type: Any}}]}}, {others}"));
    assert_eq!(pair.client.ask(vip(), "\x01again").await.unwrap(), "web:\x01again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_is_judged_by_its_request_and_cut_when_that_is_no_longer_allowed() {
    let pair = Pair::start().await;
    app((pair.server.ip, 8080), Version::HTTP_11, |mut request| {
        Box::pin(async move {
            let upgraded = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut io = TokioIo::new(upgraded.await.unwrap());
                let mut said = [0; 5];
                while io.read_exact(&mut said).await.is_ok() {
                    said.make_ascii_uppercase();
                    io.write_all(&said).await.unwrap();
                }
            });
            let response =
                Response::builder().status(101).header("connection", "upgrade").header("upgrade", "websocket");
            response.body(nothing()).unwrap()
        })
    });
    rules(&pair, "ALLOW", PUBLIC);
    let open = |path: &'static str| {
        format!(
            "GET {path} HTTP/1.1\r\nHost: w\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n"
        )
    };
    let mut tcp = pair.client.connect(vip()).await.unwrap();
    tcp.write_all(open("/admin").as_bytes()).await.unwrap();
    until(&mut tcp, " 403 ").await;
    let mut tcp = pair.client.connect(vip()).await.unwrap();
    tcp.write_all(open("/public/ws").as_bytes()).await.unwrap();
    until(&mut tcp, " 101 ").await;
    tcp.write_all(b"hello").await.unwrap();
    until(&mut tcp, "HELLO").await;
    // A change that lets it stand.
    rules(&pair, "ALLOW", &PUBLIC.replace("/public/*", "/public/ws"));
    tcp.write_all(b"hallo").await.unwrap();
    until(&mut tcp, "HALLO").await;
    rules(&pair, "ALLOW", &PUBLIC.replace("/public/*", "/other"));
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, tcp.read_to_end(&mut rest)).await.expect("it is cut");
    assert!(ended.is_err(), "with a reset: {rest:?}");
}

/// Between the two the connection is one of requests still, which a policy that refuses this one lets be.
#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_that_is_denied_between_its_request_and_the_101_is_cut() {
    for app_protocol in [None, Some("http")] {
        let pair = Pair::start().await;
        if let Some(app_protocol) = app_protocol {
            speaks(&pair, app_protocol);
        }
        let [asked, may_agree] = [(); 2].map(|()| Arc::new(Notify::new()));
        let told = (asked.clone(), may_agree.clone());
        app((pair.server.ip, 8080), Version::HTTP_11, move |mut request| {
            let (asked, may_agree) = told.clone();
            Box::pin(async move {
                let upgraded = hyper::upgrade::on(&mut request);
                asked.notify_one();
                may_agree.notified().await;
                tokio::spawn(async move {
                    // Says nothing, and stays.
                    let mut io = TokioIo::new(upgraded.await.unwrap());
                    let _ = io.read_exact(&mut [0]).await;
                });
                let response =
                    Response::builder().status(101).header("connection", "upgrade").header("upgrade", "websocket");
                response.body(nothing()).unwrap()
            })
        });
        rules(&pair, "ALLOW", PUBLIC);
        let mut tcp = pair.client.connect(vip()).await.unwrap();
        let ask = ask("/public/ws").replace("w\r\n", "w\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n");
        tcp.write_all(ask.as_bytes()).await.unwrap();
        tokio::time::timeout(PATIENCE, asked.notified()).await.expect("the application is asked");
        rules(&pair, "ALLOW", &PUBLIC.replace("/public/*", "/other"));
        // By then the connections that there are have been judged.
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        may_agree.notify_one();
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(PATIENCE, tcp.read_to_end(&mut rest)).await.expect("it is cut");
        assert!(ended.is_err(), "{app_protocol:?}: with a reset: {rest:?}");
    }
}

/// Bodies go both ways as they come, and their readers' pace is the writers'.
#[tokio::test(flavor = "multi_thread")]
async fn judged_bodies_arrive_whole() {
    let pair = Pair::start().await;
    rules(&pair, "DENY", "{sources: [{type: Any}], requests: [{paths: ['/admin']}]}");
    app((pair.server.ip, 8080), Version::HTTP_11, super::requests::echo);
    let sent: bytes::Bytes =
        (0..8u32 << 20).map(|i| (i.wrapping_mul(2654435761) >> 24) as u8).collect::<Vec<u8>>().into();
    let mut client = Client::connect(&pair, Version::HTTP_11).await;
    let response = client.ask(Request::post(client.uri("/echo")), text(sent.clone())).await;
    assert_eq!(response.status(), StatusCode::OK);
    let body = tokio::time::timeout(PATIENCE * 4, http_body_util::BodyExt::collect(response.into_body())).await;
    let body = body.expect("in time").unwrap().to_bytes();
    assert!(body == sent, "{} of {} bytes", body.len(), sent.len());
    drop(client);
    pair.server.until_no_records().await;
}

/// A body that nobody wants is never in the way of the next request: a small one is read, with more of it the client is
/// told that its connection closes, and closed is what no later request meets. Whoever reads at the client's node does
/// the same with what it keeps.
#[tokio::test(flavor = "multi_thread")]
async fn refused_bodies_spoil_no_later_request() {
    for app_protocol in [None, Some("http")] {
        let (pair, seen) = judged(app_protocol, Version::HTTP_11).await;
        for (length, closes) in [(0, false), (2 << 10, false), (200 << 10, true)] {
            let body = || text(vec![b'a'; length]);
            let mut client = Client::connect(&pair, Version::HTTP_11).await;
            for round in 0..20 {
                let response = client.ask(Request::post("/admin"), body()).await;
                let said = response.headers().get("connection").cloned();
                let (status, reason) = read(response).await;
                let what = format!("{app_protocol:?}, {length} bytes, round {round}");
                assert_eq!((status, reason.as_str()), (StatusCode::FORBIDDEN, "no-allow-rule"), "{what}");
                let is_told = said.is_some_and(|said| said == "close");
                // At the client's node it may have gone out whole before the answer came.
                assert!(is_told == closes || app_protocol.is_some() && closes, "{what}");
                if is_told {
                    client = Client::connect(&pair, Version::HTTP_11).await;
                }
            }
            assert_eq!(client.get("/public/a").await.0, StatusCode::OK, "{app_protocol:?} {length}");
        }
        // A client that waits to be told is not asked for a body that nobody wants, unless another node knows that.
        let waits = "POST /admin HTTP/1.1\r\nHost: w\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";
        let heard = say(&pair, waits.as_bytes()).await;
        assert!(heard.contains("HTTP/1.1 403 "), "{app_protocol:?}: {heard}");
        assert_eq!(heard.starts_with("HTTP/1.1 100 "), app_protocol.is_some() && !IS_NEAR, "{app_protocol:?}: {heard}");
        assert!(heard.to_ascii_lowercase().contains("connection: close"), "{app_protocol:?}: {heard}");
        assert_eq!(seen.counts().1, 3, "{app_protocol:?}: the application heard of what was allowed alone");
        let metrics = pair.mesh.nodes[0].metrics.encode();
        assert!(!metrics.contains("upstream-closed"), "{metrics}");
    }
}

/// An answer to HEAD is its head, also where the application sends a body with it and our own would have one.
#[tokio::test(flavor = "multi_thread")]
async fn head_is_answered_by_a_head() {
    let honest = |request: Request<hyper::body::Incoming>| -> super::requests::Answer {
        Box::pin(async move {
            assert_eq!(request.method(), http::Method::HEAD);
            Response::builder().header("content-length", "77").body(nothing()).unwrap()
        })
    };
    let rule = PUBLIC.replace("[GET]", "[GET, HEAD]");
    for (app_protocol, spoken) in [("http", Version::HTTP_11), ("kubernetes.io/h2c", Version::HTTP_2)] {
        for (is_judged, is_honest) in [(false, true), (false, false), (true, true), (true, false)] {
            let what = format!("{app_protocol}, judged: {is_judged}, honest: {is_honest}");
            let pair = super::requests::pair(app_protocol).await;
            if is_judged {
                rules(&pair, "ALLOW", &rule);
            }
            match is_honest {
                true => drop(app((pair.server.ip, 8080), spoken, honest)),
                false => drop(app((pair.server.ip, 8080), spoken, mirror)),
            }
            for version in [Version::HTTP_11, Version::HTTP_2] {
                let mut client = Client::connect(&pair, version).await;
                for round in 0..10 {
                    let response = client.ask(Request::head(client.uri("/public/a")), nothing()).await;
                    let length = response.headers().get("content-length").cloned();
                    let (status, body) = read(response).await;
                    assert_eq!((status, body.as_str()), (StatusCode::OK, ""), "{what}, {version:?}, round {round}");
                    assert!(length.is_some_and(|length| !is_honest || length == "77"), "{what}, {version:?}");
                    if is_judged {
                        let response = client.ask(Request::head(client.uri("/admin")), nothing()).await;
                        let length = response.headers().get("content-length").cloned();
                        let told = (read(response).await, length.unwrap());
                        let told = (told.0.0, told.0.1.as_str(), told.1.to_str().unwrap().to_string());
                        assert_eq!(told, (StatusCode::FORBIDDEN, "", "13".to_string()), "{what}, {version:?}");
                    }
                }
            }
            let metrics = pair.mesh.nodes[0].metrics.encode();
            let broken = metrics.lines().find(|line| line.contains("HEAD") && line.contains("error_type=\"client"));
            assert_eq!(broken, None, "{what}");
        }
    }
}

/// An application that cannot be reached is told before anything is asked of it, so that another endpoint may serve.
#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_is_away_is_no_refusal() {
    let pair = Pair::start().await;
    speaks(&pair, "http");
    rules(&pair, "ALLOW", PUBLIC);
    let mut client = Client::connect(&pair, Version::HTTP_11).await;
    let (status, reason) = client.get("/public/a").await;
    assert_eq!((status, reason.as_str()), (StatusCode::SERVICE_UNAVAILABLE, "far-side-unavailable"));
    app((pair.server.ip, 8080), Version::HTTP_11, mirror);
    assert_eq!(client.get("/public/a").await.0, StatusCode::OK);
    let heard = hear_one(&pair).await;
    assert!(heard.starts_with("HTTP/1.1 200 "), "{heard}");
}

async fn hear_one(pair: &Pair) -> String {
    let mut tcp = pair.client.connect(vip()).await.unwrap();
    tcp.write_all(b"GET /public/z HTTP/1.1\r\nHost: w\r\nConnection: close\r\n\r\n").await.unwrap();
    hear(&mut tcp).await
}

/// Signs tokens of `https://issuer`, by a key whose public half it also gives as a JWK Set.
pub struct Signer {
    key: jsonwebtoken::EncodingKey,
    pub jwks: String,
}

impl Signer {
    pub fn new() -> Self {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let key = jsonwebtoken::EncodingKey::from_ec_der(&pair.serialize_der());
        let jwk = jsonwebtoken::jwk::Jwk::from_encoding_key(&key, jsonwebtoken::Algorithm::ES256).unwrap();
        Self { key, jwks: serde_json::json!({ "keys": [jwk] }).to_string() }
    }

    /// A token of a group, that ends in so many seconds.
    pub fn sign(&self, group: &str, seconds: i64) -> String {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
        let claims =
            serde_json::json!({ "iss": "https://issuer", "sub": "alice", "groups": [group], "exp": now + seconds });
        let header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::ES256);
        jsonwebtoken::encode(&header, &claims, &self.key).unwrap()
    }
}

/// What a token is worth, on the wire: 401 for a bad one, a principal for a good one, and nothing for none.
#[tokio::test(flavor = "multi_thread")]
async fn tokens_make_principals() {
    let pair = Pair::start().await;
    app((pair.server.ip, 8080), Version::HTTP_11, mirror);
    let (signer, forger) = (Signer::new(), Signer::new());
    pair.mesh.apply(
        "tokens.yaml",
        &format!(
            "apiVersion: nodemesh.dev/v1alpha1
kind: RequestAuthentication
metadata: {{name: issuer, namespace: shop}}
spec:
  targetRefs: [{{kind: Service, name: web}}]
  jwtRules:
    - issuer: https://issuer
      jwks: '{}'
      outputClaimToHeaders: [{{header: x-groups, claim: groups}}]
",
            signer.jwks
        ),
    );
    let (dev, ops) = (signer.sign("dev", 600), signer.sign("ops", 600));
    let (forged, ended) = (forger.sign("dev", 600), signer.sign("dev", -3600));
    let mut client = Client::connect(&pair, Version::HTTP_11).await;
    // Without an AuthorizationPolicy; with one.
    for (is_asked_for, token, status, reason) in [
        (false, None, 200, ""),
        (false, Some(&dev), 200, ""),
        (false, Some(&forged), 401, "token-signature"),
        (false, Some(&ended), 401, "token-expired"),
        (true, None, 403, "no-allow-rule"),
        (true, Some(&dev), 200, ""),
        (true, Some(&ops), 403, "no-allow-rule"),
        (true, Some(&forged), 401, "token-signature"),
    ] {
        if is_asked_for {
            let condition = "when: [{key: 'request.auth.claims[groups]', values: [dev]}]";
            rules(
                &pair,
                "ALLOW",
                &format!("{{sources: [{{type: Any}}], requestPrincipals: ['https://issuer/*'], {condition}}}"),
            );
        }
        let mut request = Request::get("/x").header("x-groups", "forged").header("x_groups", "forged");
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let (seen, body) = read(client.ask(request, nothing()).await).await;
        assert_eq!(seen.as_u16(), status, "{is_asked_for} {token:?}: {body}");
        if status == 200 {
            assert!(!body.contains("forged") && !body.contains("authorization"), "{body}");
            assert_eq!(body.contains("x-groups: dev"), token.is_some(), "{body}");
        } else {
            assert_eq!(body, reason);
        }
    }
    let metrics = &pair.mesh.nodes[1].metrics;
    eventually("it is counted", || metrics.encode().contains("error_type=\"token-signature\"")).await;
}

/// Whoever must be looked at for tokens cannot pass as bytes.
#[tokio::test(flavor = "multi_thread")]
async fn where_tokens_are_looked_at_bytes_do_not_pass() {
    let pair = Pair::start().await;
    answering_app("web", (pair.server.ip, 8080));
    assert_eq!(pair.client.ask(vip(), "\x01bytes").await.unwrap(), "web:\x01bytes");
    let jwks = Signer::new().jwks;
    pair.mesh.apply(
        "tokens.yaml",
        &format!(
            "apiVersion: nodemesh.dev/v1alpha1
kind: RequestAuthentication
metadata: {{name: issuer, namespace: shop}}
spec: {{targetRefs: [{{kind: Namespace}}], ports: [8080], jwtRules: [{{issuer: 'https://issuer', jwks: '{jwks}'}}]}}
"
        ),
    );
    let heard = pair.client.ask(vip(), "\x01bytes\r\n\r\n").await;
    assert!(heard.as_ref().map_or(true, |heard| heard.starts_with("HTTP/1.1 400 ")), "{heard:?}");
}
