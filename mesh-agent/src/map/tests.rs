//! The map over a real socket, of agents that tell what is written here.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use http_body_util::BodyExt as _;
use hyper::{Request, Response, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::*;
use crate::admin::{Address, Listener};
use crate::told::Name;

const TOKEN: &str = "0123456789abcdef-of-the-map";

/// Two agents: of the node that calls and of the one that serves.
#[derive(Clone, Default)]
struct Agents {
    /// Requests that went well, and that failed.
    counts: Arc<(AtomicU64, AtomicU64)>,
    /// Which of them answers.
    is_silent: Arc<Mutex<Option<&'static str>>>,
    asked: Arc<Mutex<BTreeMap<&'static str, u64>>>,
}

const WAY: &str = "source_namespace=\"shop\",source_service_account=\"web\",destination_namespace=\"shop\",\
                   destination_service_account=\"api\"";

impl Agents {
    fn answer(&self, node: &'static str, path: &str) -> Result<Bytes, String> {
        if *self.is_silent.lock().unwrap() == Some(node) {
            return Err("connection refused".to_string());
        }
        let value = match path {
            "/metrics" => return Ok(self.metrics(node).into()),
            "/connections" if node == "serves" => json!([{
                "direction": "inbound", "transport": "tunnel", "client": "10.0.0.1:9", "server": "10.0.0.2:80",
                "source": {"pod": null, "identity": "spiffe://cluster.local/ns/shop/sa/web"},
                "destination": {"pod": "shop/api-0", "identity": "spiffe://cluster.local/ns/shop/sa/api"},
                "rule": "shop/only-web", "bytesSent": 1, "bytesReceived": 2, "ageSeconds": 3.0,
            }]),
            "/denials" if node == "serves" => json!([
                {"kind": "request", "result": "denied", "reason": "no-allow-rule", "policy": "shop/only-web", "rule": 2,
                 "sourceIdentity": "spiffe://cluster.local/ns/shop/sa/cart", "last": 5.0, "count": 3,
                 "destinationIdentity": "spiffe://cluster.local/ns/shop/sa/api"},
                {"kind": "connection", "result": "refused", "reason": "no-endpoint", "sourceIdentity": null,
                 "service": "shop/api", "destinationIdentity": null, "last": 9.0, "count": 1},
            ]),
            "/connections" | "/denials" => json!([]),
            world::OF_ANY => json!({
                "policies": {},
                "routes": {"routes": [{"kind": "HTTPRoute", "namespace": "shop", "name": "api",
                                       "parents": [{"namespace": "shop", "name": "api", "conditions": []}]}]},
                "services": [{"namespace": "shop", "name": "api", "clusterIPs": ["10.96.0.1"],
                              "ports": [{"name": "http", "port": 80, "protocol": "TCP", "endpoints": ["10.0.0.2:80"]}]}],
            }),
            path => self.dump(node, path),
        };
        Ok(value.to_string().into())
    }

    fn metrics(&self, node: &str) -> String {
        let (good, bad) = (self.counts.0.load(Ordering::Relaxed), self.counts.1.load(Ordering::Relaxed));
        match node {
            "calls" => format!(
                "nodemesh_http_client_request_duration_seconds_count{{{WAY},http_response_status_code=\"2xx\"}} {good}\n\
                 nodemesh_http_client_request_duration_seconds_bucket{{{WAY},http_response_status_code=\"2xx\",le=\"0.01\"}} {good}\n\
                 nodemesh_http_client_request_duration_seconds_count{{source_namespace=\"shop\",source_service_account=\"web\",\
                 destination_namespace=\"\",destination_service_account=\"\",server_address=\"shop/api\",\
                 http_response_status_code=\"5xx\",error_type=\"no-endpoint\"}} {bad}\n"
            ),
            _ => format!("nodemesh_connections_opened_total{{direction=\"inbound\",transport=\"tunnel\",{WAY}}} 1\n"),
        }
    }

    fn dump(&self, node: &str, path: &str) -> Value {
        assert_eq!(path, world::OF_AGENTS);
        let (account, ip) = if node == "calls" { ("web", "10.0.0.1") } else { ("api", "10.0.0.2") };
        let id = format!("spiffe://cluster.local/ns/shop/sa/{account}");
        json!({
            "agent": {"version": "0.1.0", "node": node, "started": 1.0, "notReady": {}, "connectionsByWorker": [1]},
            "discovery": {"stateVersion": 1, "ageSeconds": 0.1, "health": {"findings": []}},
            "identities": {"roots": [], "svids": [{"id": id, "notAfter": 1e10, "secondsLeft": 9000.0, "issued": 9e9}]},
            "workloads": [{"namespace": "shop", "name": format!("{account}-0"), "identity": id, "ips": [ip],
                           "enrolled": true, "captured": true, "policy": {"allow": [{"id": "shop/only-web"}]}}],
        })
    }
}

impl Source for Agents {
    fn ask(&self, path: &'static str) -> Asked<'_, Vec<Told>> {
        *self.asked.lock().unwrap().entry(path).or_default() += 1;
        let one = |node: &'static str| Told {
            name: Name { node: node.to_string(), pod: None },
            answer: self.answer(node, path),
        };
        Box::pin(std::future::ready(["calls", "serves"].map(one).into()))
    }

    fn ask_one(&self, path: &'static str) -> Asked<'_, Result<Bytes, String>> {
        Box::pin(std::future::ready(self.answer("serves", path)))
    }
}

/// Names and values.
type Headers<'a> = &'a [(&'a str, &'a str)];

/// A map that is served.
struct Rig {
    agents: Agents,
    address: SocketAddr,
    map: Map,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Rig {
    async fn new(token: Option<&str>) -> Self {
        let agents = Agents::default();
        let map = Map::new(agents.clone());
        let listener = Listener::bind(&Address::Tcp("127.0.0.1:0".parse().unwrap())).await.unwrap();
        let Address::Tcp(address) = *listener.address() else { panic!("no address") };
        let gate = Gate::new(address, token, vec!["map.example".to_string()]).unwrap();
        let (run, serving) = (map.clone(), map.clone());
        let tasks = vec![
            tokio::spawn(async move { run.run(Duration::from_millis(100)).await }),
            tokio::spawn(serve(listener, serving, gate)),
        ];
        Self { agents, address, map, tasks }
    }

    async fn ask(&self, method: &str, path: &str, headers: Headers<'_>, body: &str) -> Response<hyper::body::Incoming> {
        let client = Client::builder(TokioExecutor::new()).build_http();
        let mut request = Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        client.request(request.body(body.to_string()).unwrap()).await.unwrap()
    }

    async fn json(&self, path: &str) -> Value {
        let answer = self.ask("GET", path, &[], "").await;
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        serde_json::from_slice(&answer.into_body().collect().await.unwrap().to_bytes()).unwrap()
    }

    /// Pictures until one is so.
    async fn until(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let looking = async {
            loop {
                let picture = self.json("/api/snapshot").await;
                if is_so(&picture) {
                    return picture;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), looking).await.unwrap_or_else(|_| panic!("never: {what}"))
    }
}

fn edge<'a>(picture: &'a Value, from: &str, to: &str) -> &'a Value {
    let edges = picture["edges"].as_array().unwrap();
    edges.iter().find(|edge| edge["from"] == from && edge["to"] == to).unwrap_or(&Value::Null)
}

#[tokio::test]
async fn an_edge_from_good_to_failing() {
    let rig = Rig::new(None).await;
    rig.until("the first picture", |picture| !edge(picture, "shop/web", "shop/api").is_null()).await;
    rig.agents.counts.0.fetch_add(100, Ordering::Relaxed);
    let picture = rig.until("good", |picture| edge(picture, "shop/web", "shop/api")["health"] == "good").await;
    let seen = edge(&picture, "shop/web", "shop/api");
    assert_eq!(seen["proved"], true, "{seen}");
    assert_eq!(seen["success"], 1.0, "{seen}");
    assert!(seen["p99"].as_f64().is_some_and(|time| time <= 0.01), "{seen}");
    // No endpoint is left: nobody was reached, and it is the edge of who serves the Service all the same.
    rig.agents.counts.1.fetch_add(50, Ordering::Relaxed);
    let picture = rig.until("failing", |picture| edge(picture, "shop/web", "shop/api")["health"] == "bad").await;
    assert_eq!(picture["edges"].as_array().unwrap().len(), 1, "{picture}");
    let api = picture["workloads"].as_array().unwrap().iter().find(|one| one["id"] == "shop/api").unwrap();
    assert_eq!((&api["health"], &api["captured"]), (&json!("bad"), &json!(1)), "{api}");

    let detail = rig.json("/api/edge?from=shop%2Fweb&to=shop%2Fapi").await;
    assert_eq!(detail["flows"].as_array().unwrap().len(), 1, "{detail}");
    assert_eq!(detail["deciding"][0]["policy"], "shop/only-web", "{detail}");
    assert_eq!(detail["policies"][0]["allow"][0]["id"], "shop/only-web", "{detail}");
    let detail = rig.json("/api/workload?id=shop/api").await;
    assert_eq!(detail["routes"][0]["name"], "api", "{detail}");
    assert_eq!(detail["services"][0]["ports"][0]["endpoints"][0], "10.0.0.2:80", "{detail}");
    assert_eq!(detail["certificates"][0]["secondsLeft"], 9000.0, "{detail}");
    assert_eq!(rig.ask("GET", "/api/workload?id=shop/none", &[], "").await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn refusals_and_agents() {
    let rig = Rig::new(None).await;
    let picture = rig.until("refusals", |picture| picture["denials"].as_array().unwrap().len() == 2).await;
    let denials = &picture["denials"];
    assert_eq!(denials[0]["reason"], "no-endpoint", "the newest first: {denials}");
    assert_eq!((&denials[0]["from"], &denials[0]["to"]), (&json!("unknown"), &json!("shop/api")));
    assert_eq!((&denials[1]["from"], &denials[1]["rule"]), (&json!("shop/cart"), &json!(2)));
    assert_eq!(picture["agents"][0]["health"], "good");
    *rig.agents.is_silent.lock().unwrap() = Some("calls");
    rig.map.look().await;
    let picture = rig.until("silence", |picture| picture["agents"][0]["health"] == "bad").await;
    assert_eq!(picture["agents"][0]["why"][0], "does not answer: connection refused");
    assert_eq!(picture["agents"][1]["health"], "good");
}

#[tokio::test]
async fn live_connections_are_asked_once_for_many_who_look() {
    let rig = Rig::new(None).await;
    rig.until("the first picture", |picture| !edge(picture, "shop/web", "shop/api").is_null()).await;
    for _ in 0..20 {
        rig.json("/api/edge?from=shop/web&to=shop/api").await;
    }
    assert_eq!(rig.agents.asked.lock().unwrap()["/connections"], 1);
}

/// One round for the charts, and the next in half a minute; as often as it was said while somebody looks.
#[tokio::test]
async fn what_nobody_looks_at_is_seldom_asked() {
    let rig = Rig::new(None).await;
    let rounds = || rig.agents.asked.lock().unwrap().get("/denials").copied().unwrap_or_default();
    let a_while = || tokio::time::sleep(Duration::from_secs(1));
    a_while().await;
    assert_eq!(rounds(), 1, "nobody looks");
    rig.json("/api/snapshot").await;
    assert!((2..5).contains(&rounds()), "a picture of now, not of then: {}", rounds());
    a_while().await;
    assert!(rounds() >= 6, "somebody looked a moment ago: {}", rounds());
    rig.map.age(keeper::WATCHED_LATELY);
    a_while().await;
    let left = rounds();
    a_while().await;
    assert_eq!(rounds(), left, "they left");

    let looking = rig.ask("GET", "/api/events", &[], "").await;
    a_while().await;
    rig.map.age(keeper::WATCHED_LATELY);
    let (then, _) = (rounds(), a_while().await);
    assert!(rounds() >= then + 4, "a page is open");
    drop(looking);
}

#[tokio::test]
async fn events_are_pictures_and_bounded() {
    let rig = Rig::new(None).await;
    let mut streams = Vec::new();
    for _ in 0..web::MOST_STREAMS {
        let answer = rig.ask("GET", "/api/events", &[], "").await;
        assert_eq!(answer.headers()["content-type"], "text/event-stream; charset=utf-8");
        streams.push(answer);
    }
    let refused = rig.ask("GET", "/api/events", &[], "").await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    rig.json("/api/snapshot").await;
    let mut first = streams.swap_remove(0).into_body();
    let mut text = Vec::new();
    while text.windows(2).filter(|end| end == b"\n\n").count() < 2 {
        text.extend_from_slice(&first.frame().await.unwrap().unwrap().into_data().unwrap());
    }
    let text = String::from_utf8(text).unwrap();
    let picture: Value =
        serde_json::from_str(text.strip_prefix("data: ").unwrap().split("\n\n").next().unwrap()).unwrap();
    assert_eq!(picture["window"], 10.0);
    drop((first, streams));
    let freed = async {
        while rig.ask("GET", "/api/events", &[], "").await.status() != StatusCode::OK {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), freed).await.expect("streams that ended make room");
}

#[tokio::test]
async fn who_may_ask() {
    let rig = Rig::new(None).await;
    let own = rig.address.to_string();
    let table: [(&str, &str, Headers<'_>, u16); 12] = [
        ("GET", "/", &[], 200),
        ("HEAD", "/", &[], 200),
        ("GET", "/", &[("host", "localhost:1")], 200),
        ("GET", "/", &[("host", "map.example")], 200),
        ("GET", "/", &[("host", "[::1]:15080")], 200),
        ("GET", "/", &[("host", "evil.example")], 403),
        ("GET", "/", &[("host", "10.0.0.1")], 403),
        ("GET", "/api/events", &[("host", &own), ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "cors")], 403),
        ("GET", "/", &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")], 200),
        ("POST", "/", &[], 405),
        ("PUT", "/api/snapshot", &[], 405),
        ("GET", "/metrics", &[], 404),
    ];
    for (method, path, headers, expected) in table {
        let answer = rig.ask(method, path, headers, "").await;
        assert_eq!(answer.status().as_u16(), expected, "{method} {path} {headers:?}");
        let policy = answer.headers()["content-security-policy"].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'; ") && policy.contains("frame-ancestors 'none'"), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(answer.headers()["x-content-type-options"], "nosniff");
        assert!(!answer.headers().contains_key("access-control-allow-origin"));
    }
}

#[tokio::test]
async fn a_token_is_asked_for() {
    let rig = Rig::new(Some(TOKEN)).await;
    let bearer = format!("Bearer {TOKEN}");
    let ask = |path, headers: Vec<(&'static str, String)>| {
        let rig = &rig;
        async move {
            let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            rig.ask("GET", path, &headers, "").await.status().as_u16()
        }
    };
    assert_eq!(ask("/", vec![]).await, 401);
    assert_eq!(ask("/map.js", vec![]).await, 401);
    assert_eq!(ask("/map.css", vec![]).await, 200, "the login's looks");
    assert_eq!(ask("/api/snapshot", vec![]).await, 401);
    assert_eq!(ask("/api/snapshot", vec![("authorization", "Bearer wrong-wrong-wrong-wrong".into())]).await, 401);
    assert_eq!(ask("/api/snapshot", vec![("authorization", bearer)]).await, 200);
    assert_eq!(ask("/api/snapshot", vec![("cookie", format!("nodemesh_map={TOKEN}"))]).await, 401, "it is no session");

    let form = [("content-type", "application/x-www-form-urlencoded")];
    let wrong = rig.ask("POST", "/login", &form, "token=guess").await;
    assert_eq!((wrong.status().as_u16(), wrong.headers().get("set-cookie")), (401, None));
    let long = rig.ask("POST", "/login", &form, &"x".repeat(web::MAX_FORM_BYTES + 1)).await;
    assert_eq!(long.status().as_u16(), 413);
    let right = rig.ask("POST", "/login", &form, &format!("token={TOKEN}")).await;
    assert_eq!(right.status().as_u16(), 303);
    let cookie = right.headers()["set-cookie"].to_str().unwrap();
    assert!(cookie.contains("; HttpOnly; SameSite=Strict") && !cookie.contains(TOKEN), "{cookie}");
    let session = cookie.split(';').next().unwrap().to_string();
    assert_eq!(ask("/", vec![("cookie", format!("a=b; {session}"))]).await, 200);
}

#[test]
fn without_a_token_only_loopback() {
    let table = [
        ("127.0.0.1:1", None, true),
        ("[::1]:1", None, true),
        ("0.0.0.0:1", None, false),
        ("10.0.0.1:1", None, false),
        ("[::ffff:10.0.0.1]:1", None, false),
        ("10.0.0.1:1", Some(TOKEN), true),
        ("127.0.0.1:1", Some("short"), false),
    ];
    for (address, token, expected) in table {
        let gate = Gate::new(address.parse().unwrap(), token, Vec::new());
        assert_eq!(gate.is_ok(), expected, "{address} {token:?}");
    }
}

/// What is committed is a page that keeps its own policy: no inline script or style, nothing from elsewhere.
#[test]
fn the_page_is_whole_and_keeps_its_policy() {
    for asset in page::ASSETS.iter().chain([&page::LOGIN]) {
        assert!(!asset.text.is_empty(), "{} is empty: cargo xtask ui", asset.path);
        assert!(!asset.text.contains("https://") || asset.path == "/map.js", "{} loads from elsewhere", asset.path);
        if asset.kind.starts_with("text/html") {
            assert!(!asset.text.contains("style=") && !asset.text.contains("<style"), "{}", asset.path);
            assert!(asset.text.matches("<script").all(|_| asset.text.contains("src=\"/map.js\"")), "{}", asset.path);
        }
    }
    let size: usize = page::ASSETS.iter().map(|asset| asset.text.len()).sum();
    assert!(size < 300_000, "{size} bytes");
}
