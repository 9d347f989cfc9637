//! Two pods of one node: one agent is both sides, and nothing is between them that a tunnel would carry.

use std::net::Ipv4Addr;
use std::time::Duration;

use http::{Request, StatusCode, Version};
use mesh_agent::podnet::Role;
use mesh_agent::proxy::{Budgets, LiveConnection};
use mesh_agent::routing::OutboundMode;
use mesh_agent::telemetry::Transport;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::judged::Signer;
use super::requests::{Client, app, mirror, nothing, read, text};
use super::support::*;
use super::{Pair, guard, policy, vip};

/// A client and a server on node 1; the port of the Service speaks this.
async fn neighbours(app_protocol: &str) -> Pair {
    let (mesh, client, server) = client_alone(app_protocol).await;
    let server = mesh.enrol(server).await;
    Pair { mesh, client, server }
}

/// The same, and the agent does not hold the server.
async fn client_alone(app_protocol: &str) -> (Mesh, Pod, Ipv4Addr) {
    let mesh = Mesh::start();
    let (client, server) = (fresh_ip(), fresh_ip());
    let service = service_yaml("web", "server", "10.96.0.7", 80, 8080)
        .replace("protocol: TCP", &format!("protocol: TCP, appProtocol: {app_protocol}"));
    let yaml = [pod_yaml("client", "node1", client), pod_yaml("server", "node1", server), service];
    mesh.apply("world.yaml", &yaml.concat());
    let client = mesh.enrol(client).await;
    (mesh, client, server)
}

/// A PeerAuthentication with this spec.
fn peer(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---
apiVersion: nodemesh.dev/v1alpha1
kind: PeerAuthentication
metadata: {{name: {name}, namespace: {namespace}}}
spec: {{{spec}}}
"
    )
}

const ENCRYPT: &str = "targetRefs: [{kind: Namespace}], sameNode: Encrypt";

/// The transports of the live connections, of the client's side and of the server's.
fn ways(live: &[LiveConnection]) -> Vec<(&'static str, Transport)> {
    let mut ways: Vec<_> = live.iter().map(|one| (one.record.direction.name(), one.record.transport)).collect();
    ways.sort_unstable_by_key(|(direction, _)| *direction);
    ways
}

#[tokio::test(flavor = "multi_thread")]
async fn how_a_pod_of_the_node_is_reached() {
    let mesh_wide = peer("nodemesh-system", "all", ENCRYPT);
    let pods = "targetRefs: [{kind: Pod, selector: {matchLabels: {app: server}}}]";
    // (the policies, whether a newer agent has taken over, the way)
    for (policies, is_handed_over, way) in [
        (String::new(), false, Transport::SameNode),
        (peer("shop", "p", "targetRefs: [{kind: Namespace}], mode: STRICT"), false, Transport::SameNode),
        (peer("shop", "p", ENCRYPT), false, Transport::Tunnel),
        (peer("shop", "p", &format!("{ENCRYPT}, mode: STRICT")), false, Transport::Tunnel),
        (mesh_wide.clone(), false, Transport::Tunnel),
        (
            mesh_wide.clone() + &peer("shop", "p", &format!("{pods}, sameNode: KernelIdentity")),
            false,
            Transport::SameNode,
        ),
        (peer("shop", "p", &format!("{pods}, mode: DISABLE")), false, Transport::Plaintext),
        (String::new(), true, Transport::Tunnel),
    ] {
        let pair = neighbours("bytes").await;
        let node = &pair.mesh.nodes[0];
        pair.mesh.apply("peers.yaml", &policies);
        if is_handed_over {
            node.drain.start();
        }
        let mut clients = echo_app((pair.server.ip, 8080));
        let mut stream = pair.client.connect(vip()).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'x', "{policies}");
        // Plaintext is steered by the kernel, which is not here.
        let both = if way == Transport::Plaintext {
            vec![("outbound", way)]
        } else {
            vec![("inbound", way), ("outbound", way)]
        };
        assert_eq!(ways(&node.proxy.connections().await), both, "{policies}");
        assert_eq!(node.proxy.tunnels().await.is_empty(), way != Transport::Tunnel, "{policies}");
        if way == Transport::SameNode {
            let seen = clients.recv().await.unwrap();
            let told = pair.server.client_behind(seen).unwrap();
            assert_eq!(told.ip(), std::net::IpAddr::from(pair.client.ip), "its address is the pod's");
            assert_eq!(told.port(), stream.local_addr().unwrap().port());
        }
        drop(stream);
        node.until_live("the connection is closed", <[_]>::is_empty).await;
        pair.client.until_no_records().await;
        pair.server.until_no_records().await;
        let metrics = node.metrics.encode();
        let is_counted = |direction: &str| {
            let words = [format!("direction=\"{direction}\",transport=\"{}\"", way.name()), "result=\"ok\"".into()];
            metrics
                .lines()
                .any(|line| line.contains("connections_closed") && words.iter().all(|word| line.contains(word)))
        };
        assert!(both.iter().all(|(direction, _)| is_counted(direction)), "{way:?}: {metrics}");
    }
}

/// A pod that the world calls enrolled, and that this agent does not hold: by tunnel, where nobody listens. Never past it.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_not_held_is_not_reached_in_plaintext() {
    let (mesh, client, server) = client_alone("tcp").await;
    let mut clients = echo_app((server, 8080));
    assert!(client.ask(vip(), "hello").await.is_err());
    // Once it is held it is reached.
    let held = mesh.enrol(server).await;
    assert_eq!(client.ask(vip(), "hello").await.unwrap(), "hello");
    assert!(clients.recv().await.is_some() && clients.try_recv().is_err(), "one connection, the second");
    // And when it has left, no more.
    mesh.unenrol(&held).await;
    held.until_refused((server, mesh_agent::hbone::PORT).into()).await;
    assert!(client.ask(vip(), "hello").await.is_err());
    assert!(clients.try_recv().is_err());
}

/// Where the network does not let the tunnel through, a pod of the same node is no more reached than one of another.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_network_refuses_between_pods_stays_refused() {
    let (mesh, client, server) = client_alone("tcp").await;
    // Held, and its tunnel port cannot be reached.
    let held = mesh.enrol_without(server, Role::Tunnel).await;
    let mut clients = echo_app((server, 8080));
    assert!(client.ask(vip(), "hello").await.is_err());
    assert!(clients.try_recv().is_err(), "the application was reached");
    // Somebody else's agent at that port is no witness, whatever it answers.
    let other = tokio::net::TcpListener::bind((server, mesh_agent::hbone::PORT)).await.unwrap();
    let answering = tokio::spawn(async move {
        while let Ok((mut tcp, _)) = other.accept().await {
            let mut said = [0; 8];
            if tcp.read_exact(&mut said).await.is_ok() {
                let _ = tcp.write_all(&said).await;
            }
        }
    });
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(client.ask(vip(), "hello").await.is_err());
    assert!(clients.try_recv().is_err(), "the application was reached");
    answering.abort();
    held.until_no_records().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_receiving_pods_policy_decides_and_both_sides_tell() {
    for (action, sources, is_allowed) in [
        ("ALLOW", "{type: ServiceAccount, serviceAccount: {name: client, namespace: shop}}", true),
        ("ALLOW", "{type: ServiceAccount, serviceAccount: {name: other, namespace: shop}}", false),
        ("DENY", "{type: ServiceAccount, serviceAccount: {name: client, namespace: shop}}", false),
        ("DENY", "{type: IPBlock, ipBlock: {cidr: CLIENT}}", false),
        ("DENY", "{type: IPBlock, ipBlock: {cidr: 10.0.0.0/8}}", true),
        ("ALLOW", "{type: Namespace, namespace: shop}", true),
    ] {
        let pair = neighbours("bytes").await;
        let mut clients = echo_app((pair.server.ip, 8080));
        pair.mesh.apply("policy.yaml", &policy(action, &sources.replace("CLIENT", &pair.client.ip.to_string())));
        let asked = pair.client.ask(vip(), "hello").await;
        assert_eq!(asked.is_ok(), is_allowed, "{action} {sources}: {asked:?}");
        assert_eq!(clients.try_recv().is_ok(), is_allowed, "{action} {sources}");
        let node = &pair.mesh.nodes[0];
        assert!(node.proxy.tunnels().await.is_empty());
        if !is_allowed {
            let metrics = &node.metrics;
            let reason = if action == "DENY" { "deny-rule" } else { "no-allow-rule" };
            for (direction, reason) in [("inbound", reason), ("outbound", "far-side-denied")] {
                let words = [format!("direction=\"{direction}\""), format!("reason=\"{reason}\"")];
                eventually(reason, || {
                    metrics.encode().lines().any(|line| words.iter().all(|word| line.contains(word.as_str())))
                })
                .await;
            }
        }
    }
}

/// A denial, TLS that is owed from now on, and the end of either pod.
#[tokio::test(flavor = "multi_thread")]
async fn what_changes_cuts_the_live_connection() {
    for (what, reason) in
        [("denied", "policy-revoked"), ("encrypt", "policy-revoked"), ("server", "pod-left"), ("client", "pod-left")]
    {
        let pair = neighbours("bytes").await;
        let node = &pair.mesh.nodes[0];
        let _clients = echo_app((pair.server.ip, 8080));
        let mut stream = pair.client.connect(vip()).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'x');
        match what {
            "denied" => pair.mesh.apply("policy.yaml", &policy("DENY", "{type: Any}")),
            "encrypt" => pair.mesh.apply("peers.yaml", &peer("shop", "p", ENCRYPT)),
            "server" => pair.mesh.unenrol(&pair.server).await,
            _ => pair.mesh.unenrol(&pair.client).await,
        }
        let end = tokio::time::timeout(PATIENCE, stream.read_u8()).await.expect("cut in time");
        assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset, "{what}");
        node.until_live("nothing is left", <[_]>::is_empty).await;
        pair.client.until_no_records().await;
        pair.server.until_no_records().await;
        let metrics = node.metrics.encode();
        assert!(metrics.contains(&format!("reason=\"{reason}\"")), "{what}: {metrics}");
        if what == "encrypt" {
            assert_eq!(pair.client.ask(vip(), "again").await.unwrap(), "again");
            assert!(!node.proxy.tunnels().await.is_empty(), "by tunnel from now on");
        }
    }
}

/// A connection counts for both pods, and the one that has no room for it refuses it.
#[tokio::test(flavor = "multi_thread")]
async fn the_receiving_pods_budget_counts() {
    let three = || Budgets { connections: 3, ..ample() };
    let mesh = Mesh::start_within(OutboundMode::AllowAny, [three(), three()]);
    let (first, second, server) = (fresh_ip(), fresh_ip(), fresh_ip());
    let yaml = [
        pod_yaml("client", "node1", first),
        pod_yaml("other", "node1", second),
        pod_yaml("server", "node1", server),
        service_yaml("web", "server", "10.96.0.7", 80, 8080),
    ];
    mesh.apply("world.yaml", &yaml.concat());
    let (first, second, server) = (mesh.enrol(first).await, mesh.enrol(second).await, mesh.enrol(server).await);
    let node = &mesh.nodes[0];
    let _clients = echo_app((server.ip, 8080));
    let mut streams = Vec::new();
    for pod in [&first, &first, &second] {
        let mut stream = pod.connect(vip()).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'x');
        streams.push(stream);
    }
    let taken = || {
        let mut taken: Vec<u64> = node.proxy.usage().iter().map(|pod| pod.connections).collect();
        taken.sort_unstable();
        taken
    };
    assert_eq!(taken(), [1, 2, 3]);
    assert!(second.ask(vip(), "one too many").await.is_err());
    let metrics = &node.metrics;
    let is_told = |line: &str| line.contains("inbound") && line.contains("reason=\"connection-budget\"");
    eventually("it is told where it was refused", || metrics.encode().lines().any(is_told)).await;
    drop(streams);
    eventually("all are given back", || taken() == [0, 0, 0]).await;
    assert_eq!(second.ask(vip(), "now").await.unwrap(), "now");
}

/// Requests that are not judged, and requests that are: one connection to the application for all of them, no tunnel,
/// and each told once on either side.
#[tokio::test(flavor = "multi_thread")]
async fn requests_are_read_once_and_told_on_both_sides() {
    for (app_protocol, spoken) in [("http", Version::HTTP_11), ("kubernetes.io/h2c", Version::HTTP_2)] {
        for is_judged in [false, true] {
            let pair = neighbours(app_protocol).await;
            let node = &pair.mesh.nodes[0];
            if is_judged {
                let rule = "{sources: [{type: Any}], requests: [{paths: ['/public/*']}]}";
                pair.mesh.apply("policy.yaml", &guard("guard", "ALLOW", rule));
            }
            let seen = app((pair.server.ip, 8080), spoken, mirror);
            let mut client = Client::connect(&pair, Version::HTTP_11).await;
            for _ in 0..10 {
                assert_eq!(client.get("/public/a").await.0, StatusCode::OK);
            }
            if is_judged {
                assert_eq!(client.get("/admin").await, (StatusCode::FORBIDDEN, "no-allow-rule".into()));
            }
            assert_eq!(client.get("/public/a").await.0, StatusCode::OK);
            assert_eq!(seen.counts(), (1, 11), "{app_protocol}, judged: {is_judged}");
            assert!(node.proxy.tunnels().await.is_empty());
            let metrics = &node.metrics;
            let count = |side: &str, status: &str| -> u64 {
                let text = metrics.encode();
                let name = format!("nodemesh_http_{side}_request_duration_seconds_count");
                let lines =
                    text.lines().filter(|line| line.starts_with(&name) && line.contains(&format!("\"{status}\"")));
                lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
            };
            let refused = u64::from(is_judged);
            let told = move || {
                (count("client", "2xx"), count("client", "4xx"), count("server", "2xx"), count("server", "4xx"))
            };
            let expected = (11, refused, if is_judged { 11 } else { 0 }, refused);
            eventually("each request is told once on either side", || told() == expected).await;
            // TLS from now on: what is kept is let go.
            pair.mesh.apply("peers.yaml", &peer("shop", "p", ENCRYPT));
            assert_eq!(client.get("/public/a").await.0, StatusCode::OK);
            assert!(!node.proxy.tunnels().await.is_empty(), "by tunnel from now on");
            assert_eq!(seen.counts().1, 12);
        }
    }
}

/// What a newer agent is there for goes to it, by tunnel, on the connections of clients that stay.
#[tokio::test(flavor = "multi_thread")]
async fn a_kept_connection_goes_when_a_newer_agent_takes_over() {
    let pair = neighbours("http").await;
    let node = &pair.mesh.nodes[0];
    let seen = app((pair.server.ip, 8080), Version::HTTP_11, mirror);
    let mut client = Client::connect(&pair, Version::HTTP_11).await;
    assert_eq!(client.get("/").await.0, StatusCode::OK);
    assert!(node.proxy.tunnels().await.is_empty());
    node.drain.start();
    assert_eq!(client.get("/").await.0, StatusCode::OK);
    assert!(!node.proxy.tunnels().await.is_empty());
    assert_eq!(seen.counts(), (2, 2));
}

/// What follows a request that leaves the connection open.
const LAST: &str = "GET /public/last HTTP/1.1\r\nHost: w\r\nConnection: close\r\n\r\n";
const GET: &str = "GET /public/a HTTP/1.1\r\nHost: w\r\n";

/// Requests as clients write them, without the last line of their heads.
fn requests(token: &str) -> Vec<String> {
    let get = |fields: &str| format!("{GET}{fields}\r\n");
    let post = |fields: &str, body: &str| format!("POST /public/a HTTP/1.1\r\nHost: w\r\n{fields}\r\n{body}");
    let forged = "X-Forwarded-For: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\nX_Real_Ip: 6.6.6.6\r\nX-Forwarded-Host: forged\r\n\
        X-Forwarded-Proto: https\r\nX-Forwarded-Client-Cert: URI=spiffe://forged\r\nX-Envoy-External-Address: 6.6.6.6\r\n";
    vec![
        get(""),
        get(forged),
        get("Accept: */*\r\nX-Own: a\r\nX-Own: b\r\nCookie: a=1\r\nCookie: b=2\r\n"),
        get("Connection: close, X-Hop\r\nX-Hop: gone\r\nKeep-Alive: timeout=5\r\nProxy-Connection: x\r\n"),
        get("TE: trailers\r\nConnection: TE\r\n"),
        get("Connection: close, upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n"),
        get("Connection: close, upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n"),
        get("X-HTTP-Method-Override: DELETE\r\n"),
        get("Traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00\r\nBaggage: k=v\r\n"),
        get(&format!("Authorization: Bearer {token}\r\nX-Groups: forged\r\nx_groups: forged\r\n")),
        get("Authorization: Bearer nonsense\r\n"),
        get("Content-Length: 0\r\n"),
        get("").replace("/public/a", "/public//b/./c?q=/../x"),
        get("").replace("/public/a", "/%70ublic/%7e%c3%bc"),
        get("").replace("/public/a", "http://w/public/a"),
        get("").replace("/public/a", "/admin"),
        get("").replace("/public/a", "/public/..%2fadmin"),
        get("").replace("/public/a", "/public/%00"),
        get("").replace("Host: w", "Host: other"),
        get("").replace("GET", "HEAD"),
        get("").replace("GET", "DELETE"),
        get("").replace("HTTP/1.1", "HTTP/1.0"),
        get("").replace("GET /public/a", "OPTIONS *"),
        post("Content-Length: 5\r\n", "hello"),
        post("Content-Length: 0\r\n", ""),
        post("Expect: 100-continue\r\nContent-Length: 5\r\n", "hello"),
        post(
            "Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n",
            "5\r\nhello\r\n0\r\nX-Sum: 1\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n",
        ),
        post("Content-Type: application/grpc\r\nTE: trailers\r\nContent-Length: 0\r\n", "")
            .replace("/public", "/admin"),
    ]
}

/// What a client hears that says this and then no more. Where the end comes as a reset it may have overtaken the answer:
/// once more.
async fn answer_to(pair: &Pair, request: &str) -> String {
    let closes = request.contains("Connection: close") || request.contains("HTTP/1.0");
    let last = if closes { "" } else { LAST };
    for _ in 0..10 {
        let mut tcp = pair.client.connect(vip()).await.unwrap();
        tcp.write_all(format!("{request}{last}").as_bytes()).await.unwrap();
        let mut heard = Vec::new();
        let read = tokio::time::timeout(PATIENCE, tcp.read_to_end(&mut heard)).await;
        if read.expect("the connection is closed").is_ok() {
            return String::from_utf8_lossy(&heard).into_owned();
        }
    }
    panic!("always a reset: {request}");
}

/// How many connections have been opened by tunnel.
fn tunnelled(node: &Node) -> u64 {
    let text = node.metrics.encode();
    let lines = text.lines().filter(|line| line.starts_with("nodemesh_connections_opened_total"));
    let lines = lines.filter(|line| line.contains("transport=\"tunnel\""));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

/// Without what differs by the hour and by the length of an address (here tunnels come from loopback's own), and in an
/// order that means nothing to anybody.
fn comparable(pair: &Pair, heard: &str) -> Vec<String> {
    let named = |line: &str| line.replace(&pair.client.ip.to_string(), "CLIENT").replace("127.0.0.1", "CLIENT");
    let is_of_the_answer = |line: &str| {
        let length =
            line.strip_prefix("content-length: ").and_then(|length| length.trim_matches('"').parse::<u32>().ok());
        line.starts_with("date: ") || length.is_some_and(|length| length > 40)
    };
    let mut lines: Vec<String> = heard.lines().filter(|line| !is_of_the_answer(line)).map(named).collect();
    lines.sort_unstable();
    lines
}

/// What the application hears of a request, and the client of its answer, is the same with and without a tunnel: header
/// for header, for whatever is said, wherever it is judged.
#[tokio::test(flavor = "multi_thread")]
async fn requests_come_out_as_they_do_by_tunnel() {
    let signer = Signer::new();
    let token = signer.sign("dev", 600);
    let route = |rule: &str| {
        format!(
            "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: r, namespace: shop}}
spec:
  parentRefs: [{{group: '', kind: Service, name: web, port: 80}}]
  rules:
  - {rule}
    backendRefs: [{{name: web, port: 80}}]
"
        )
    };
    let tokens = format!(
        "---
apiVersion: nodemesh.dev/v1alpha1
kind: RequestAuthentication
metadata: {{name: issuer, namespace: shop}}
spec:
  targetRefs: [{{kind: Service, name: web}}]
  jwtRules: [{{issuer: https://issuer, jwks: '{}', outputClaimToHeaders: [{{header: x-groups, claim: groups}}]}}]
",
        signer.jwks
    );
    let public = guard(
        "guard",
        "ALLOW",
        "{sources: [{type: Any}], requests: [{methods: [GET, HEAD, POST, OPTIONS], paths: ['/public/*'], hosts: [w, web.shop]}]}",
    );
    let set = route(
        "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-forwarded-host, value: outer}, \
         {name: x-real-ip, value: 1.2.3.4}, {name: x-groups, value: routed}]}}]",
    );
    let rewrite = route(
        "filters: [{type: URLRewrite, urlRewrite: {hostname: w, path: {type: ReplaceFullPath, replaceFullPath: /public/z}}}]",
    );
    let worlds = [
        ("nothing", String::new()),
        ("a policy on requests", public.clone()),
        ("tokens", tokens.clone()),
        ("tokens and a policy", tokens + "\n---\n" + &public),
        ("a route that sets, and a policy", set + "\n---\n" + &public),
        ("a route that rewrites, and a policy", rewrite + "\n---\n" + &public),
    ];
    for (app_protocol, spoken) in
        [("http", Version::HTTP_11), ("bytes", Version::HTTP_11), ("kubernetes.io/h2c", Version::HTTP_2)]
    {
        let pair = neighbours(app_protocol).await;
        let node = &pair.mesh.nodes[0];
        app((pair.server.ip, 8080), spoken, mirror);
        for (world, yaml) in &worlds {
            let mut heard = Vec::new();
            for is_encrypted in [true, false] {
                let peers = if is_encrypted { peer("shop", "p", ENCRYPT) } else { String::new() };
                pair.mesh.apply("rules.yaml", &(peers + "\n---\n" + yaml));
                let (mut all, before) = (Vec::new(), tunnelled(node));
                let is_left_out = |request: &String| match app_protocol {
                    // The test's own application answers an upgrade with a reset where nobody reads in between.
                    "bytes" => request.contains("Upgrade: "),
                    _ => false,
                };
                for request in requests(&token).into_iter().filter(|request| !is_left_out(request)) {
                    let heard = answer_to(&pair, &request).await;
                    all.push((request, comparable(&pair, &heard)));
                }
                for version in [Version::HTTP_11, Version::HTTP_2] {
                    if app_protocol == "bytes" && version != spoken {
                        continue;
                    }
                    let mut client = Client::connect(&pair, version).await;
                    for path in ["/public/a?b=c", "/admin", "/public//x/../y"] {
                        let request =
                            Request::post(client.uri(path)).header("authorization", format!("Bearer {token}"));
                        let response = client.ask(request.header("x-own", "1"), text("a body")).await;
                        let mut lines: Vec<String> =
                            response.headers().iter().map(|(name, value)| format!("{name}: {value:?}")).collect();
                        let (status, body) = read(response).await;
                        lines.extend([status.to_string(), body]);
                        all.push((format!("{version:?} {path}"), comparable(&pair, &lines.join("\n"))));
                    }
                    let gone = client.ask(Request::get(client.uri("/public/last")), nothing()).await;
                    drop(read(gone).await);
                }
                // By tunnel where it must be, if only on a connection that rested there; and else never.
                let rose = tunnelled(node) > before;
                assert!(if is_encrypted { tunnelled(node) > 0 } else { !rose }, "{app_protocol}, {world}");
                heard.push(all);
            }
            for ((request, by_tunnel), (_, near)) in heard[0].iter().zip(&heard[1]) {
                assert_eq!(near, by_tunnel, "{app_protocol}, {world}: {request}");
            }
            // It says something: the application was reached, and where there are rules somebody was refused.
            let all = format!("{:?}", heard[1]);
            assert!(all.contains("x-forwarded-for") || app_protocol == "bytes", "{all}");
            assert!(*world == "nothing" || all.contains("403") || all.contains("401"), "{all}");
        }
    }
}

/// Nothing of a long answer is lost to a client that is slow, nor of a long question to an application that is.
#[tokio::test(flavor = "multi_thread")]
async fn bytes_arrive_whole_between_neighbours() {
    let pair = neighbours("bytes").await;
    let _clients = echo_app((pair.server.ip, 8080));
    let sent: Vec<u8> = (0..16 << 20).map(|i: u32| (i.wrapping_mul(2654435761) >> 24) as u8).collect();
    let (mut near, mut far) = pair.client.connect(vip()).await.unwrap().into_split();
    let writer = tokio::spawn({
        let sent = sent.clone();
        async move {
            far.write_all(&sent).await.unwrap();
            far.shutdown().await.unwrap();
        }
    });
    let (mut received, mut pauses) = (Vec::new(), 0);
    let reading = async {
        while near.read_buf(&mut received).await.unwrap() > 0 {
            if received.len() > (pauses + 1) << 21 {
                pauses += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.unwrap();
    writer.await.unwrap();
    assert!(received == sent, "{} of {} bytes came back", received.len(), sent.len());
    pair.mesh.nodes[0].until_live("the connection is closed", <[_]>::is_empty).await;
    let metrics = pair.mesh.nodes[0].metrics.encode();
    let bytes = |line: &&str| line.contains("transport=\"same-node\"") && line.ends_with(&format!(" {}", sent.len()));
    assert_eq!(metrics.lines().filter(bytes).count(), 4, "sent and received, on both sides: {metrics}");
}
