//! Ring 2: whole journeys between two agents in one process.

mod budget;
mod certificates;
mod claims;
mod copies;
mod external;
#[path = "../support/frames.rs"]
mod frames;
mod issuers;
mod judged;
mod kept;
mod requests;
mod resting;
mod same_node;
mod spans;
mod streams;
mod support;
mod traffic;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use mesh_agent::addr::ClientAddr;
use mesh_agent::hbone::{self, ConnectRequest, OpenError, Pool, TunnelKey};
use mesh_agent::routing::OutboundMode;
use mesh_agent::spiffe::SpiffeId;
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What is forbidden is cut in a fraction of this; a busy machine needs the rest.
const SOON: Duration = Duration::from_secs(5);

/// A client on node 1 and a server on node 2, both enrolled.
struct Pair {
    mesh: Mesh,
    client: Pod,
    server: Pod,
}

impl Pair {
    async fn start() -> Self {
        Self::start_with(OutboundMode::AllowAny).await
    }

    async fn start_with(mode: OutboundMode) -> Self {
        Self::start_on(Mesh::start_with(mode)).await
    }

    async fn start_on(mesh: Mesh) -> Self {
        let (client, server) = (fresh_ip(), fresh_ip());
        let yaml = [
            pod_yaml("client", "node1", client),
            pod_yaml("server", "node2", server),
            service_yaml("web", "server", "10.96.0.7", 80, 8080),
        ];
        mesh.apply("world.yaml", &yaml.concat());
        let client = mesh.enrol(client).await;
        let server = mesh.enrol(server).await;
        Self { mesh, client, server }
    }
}

fn vip() -> SocketAddr {
    (Ipv4Addr::new(10, 96, 0, 7), 80).into()
}

fn policy(action: &str, sources: &str) -> String {
    guard("guard", action, &format!("{{sources: [{sources}]}}"))
}

/// An AuthorizationPolicy on the server's pods, with these rules.
fn guard(name: &str, action: &str, rules: &str) -> String {
    format!(
        "apiVersion: nodemesh.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {{name: {name}, namespace: shop}}
spec:
  targetRefs: [{{kind: Pod, selector: {{matchLabels: {{app: server}}}}}}]
  action: {action}
  rules: [{rules}]
"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_reached_through_the_tunnel() {
    if needs_two_nodes() {
        return;
    }
    let pair = Pair::start().await;
    answering_app("web", (pair.server.ip, 8080));
    assert_eq!(pair.client.ask(vip(), "hello").await.unwrap(), "web:hello");
    let sent = pair.mesh.nodes[0].metrics.encode();
    assert!(sent.contains("transport=\"tunnel\""), "{sent}");
    pair.client.until_no_records().await;
    pair.server.until_no_records().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_ip_is_reached_through_the_tunnel() {
    let pair = Pair::start().await;
    answering_app("web", (pair.server.ip, 9999));
    assert_eq!(pair.client.ask((pair.server.ip, 9999), "hi").await.unwrap(), "web:hi");
    let seen = pair.mesh.nodes[1].metrics.encode();
    assert!(seen.contains("source_service_account=\"client\""), "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_application_is_told_of_the_real_client() {
    if needs_two_nodes() {
        return;
    }
    let pair = Pair::start().await;
    let mut clients = echo_app((pair.server.ip, 8080));
    let stream = pair.client.connect(vip()).await.unwrap();
    let seen = clients.recv().await.unwrap();
    assert_eq!(pair.server.client_behind(seen), Some(stream.local_addr().unwrap()));
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_arrive_whole_both_ways() {
    let pair = Pair::start().await;
    let _clients = echo_app((pair.server.ip, 8080));
    let sent: Arc<Vec<u8>> = Arc::new((0..32 << 20).map(|i: u32| (i.wrapping_mul(2654435761) >> 24) as u8).collect());
    let (mut read, mut write) = pair.client.connect(vip()).await.unwrap().into_split();
    let writer = tokio::spawn({
        let sent = sent.clone();
        async move {
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
        }
    });
    let mut received = Vec::new();
    tokio::time::timeout(PATIENCE, read.read_to_end(&mut received)).await.unwrap().unwrap();
    writer.await.unwrap();
    assert!(received == *sent, "{} of {} bytes came back", received.len(), sent.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn policy_refuses_by_identity() {
    for (action, sources, is_allowed) in [
        ("ALLOW", "{type: ServiceAccount, serviceAccount: {name: client, namespace: shop}}", true),
        ("ALLOW", "{type: ServiceAccount, serviceAccount: {name: other, namespace: shop}}", false),
        ("DENY", "{type: ServiceAccount, serviceAccount: {name: client, namespace: shop}}", false),
        ("DENY", "{type: ServiceAccount, serviceAccount: {name: other, namespace: shop}}", true),
        ("ALLOW", "{type: Namespace, namespace: shop}", true),
        ("ALLOW", "{type: Namespace, namespace: elsewhere}", false),
    ] {
        let pair = Pair::start().await;
        answering_app("web", (pair.server.ip, 8080));
        pair.mesh.apply("policy.yaml", &policy(action, sources));
        let asked = pair.client.ask(vip(), "hello").await;
        assert_eq!(asked.is_ok(), is_allowed, "{action} {sources}: {asked:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_cuts_the_open_connection_that_it_forbids() {
    let pair = Pair::start().await;
    let _clients = echo_app((pair.server.ip, 8080));
    let mut stream = pair.client.connect(vip()).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'x');
    let denied = "{type: ServiceAccount, serviceAccount: {name: client, namespace: shop}}";
    pair.mesh.apply("policy.yaml", &policy("DENY", denied));
    let end = tokio::time::timeout(SOON, stream.read_u8()).await.expect("cut soon");
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    let metrics = &pair.mesh.nodes[1].metrics;
    eventually("it is told why", || metrics.encode().contains("policy-revoked")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_audit_policy_matches_passes_and_is_counted() {
    let pair = Pair::start().await;
    answering_app("web", (pair.server.ip, 8080));
    pair.mesh.apply("policy.yaml", &policy("AUDIT", "{type: Any}"));
    assert_eq!(pair.client.ask(vip(), "hello").await.unwrap(), "web:hello");
    pair.mesh.nodes[1].until_live("the connection is closed", <[_]>::is_empty).await;
    let metrics = pair.mesh.nodes[1].metrics.encode();
    assert!(metrics.contains("nodemesh_audit_matches_total{policy=\"shop/guard\"} 1"), "{metrics}");
}

/// Two endpoints, of which one refuses by policy: its word is final, or a caller could try its luck elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_denial_is_not_asked_of_the_next_endpoint() {
    let mesh = Mesh::start();
    let (client, open, closed) = (fresh_ip(), fresh_ip(), fresh_ip());
    let yaml = [
        pod_yaml("client", "node1", client),
        pod_yaml("server", "node2", open),
        pod_yaml("server", "node2", closed)
            .replace("name: server,", "name: server-2,")
            .replace("app: server", "app: server, is: closed"),
        service_yaml("web", "server", "10.96.0.7", 80, 8080),
        policy("DENY", "{type: Any}").replace("app: server", "is: closed"),
    ];
    mesh.apply("world.yaml", &yaml.join("\n---\n"));
    let (client, open, _closed) = (mesh.enrol(client).await, mesh.enrol(open).await, mesh.enrol(closed).await);
    answering_app("open", (open.ip, 8080));
    let mut refused = 0;
    for _ in 0..24 {
        refused += usize::from(client.ask(vip(), "hello").await.is_err());
    }
    assert!((1..24).contains(&refused), "{refused} of 24");
    let metrics = &mesh.nodes[0].metrics;
    eventually("it is told who refused", || metrics.encode().contains("far-side-denied")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_endpoint_is_passed_over() {
    let mesh = Mesh::start();
    let (client, dead, alive) = (fresh_ip(), fresh_ip(), fresh_ip());
    let yaml = [
        pod_yaml("client", "node1", client),
        pod_yaml("server", "node2", dead),
        pod_yaml("server", "node2", alive).replace("name: server,", "name: server-2,"),
        service_yaml("web", "server", "10.96.0.7", 80, 8080),
    ];
    mesh.apply("world.yaml", &yaml.concat());
    let (client, alive) = (mesh.enrol(client).await, mesh.enrol(alive).await);
    answering_app("alive", (alive.ip, 8080));
    for attempt in 0..8 {
        assert_eq!(client.ask(vip(), "hello").await.unwrap(), "alive:hello", "attempt {attempt}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_is_down_is_a_reset() {
    let pair = Pair::start().await;
    let refused = pair.client.ask(vip(), "hello").await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_destinations_pass_or_are_refused_by_mode() {
    for (mode, passes) in [(OutboundMode::AllowAny, true), (OutboundMode::RegistryOnly, false)] {
        let pair = Pair::start_with(mode).await;
        let outside: SocketAddr = (fresh_ip(), 7070).into();
        answering_app("outside", outside);
        let asked = pair.client.ask(outside, "hello").await;
        assert_eq!(asked.is_ok(), passes, "{mode:?}: {asked:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_reaches_itself_by_service_with_policy() {
    let pair = Pair::start().await;
    let yaml = service_yaml("own", "client", "10.96.0.8", 80, 8181);
    pair.mesh.apply("own.yaml", &yaml);
    answering_app("own", (pair.client.ip, 8181));
    let own: SocketAddr = (Ipv4Addr::new(10, 96, 0, 8), 80).into();
    assert_eq!(pair.client.ask(own, "me").await.unwrap(), "own:me");
    let denied = "{type: ServiceAccount, serviceAccount: {name: client, namespace: shop}}";
    pair.mesh.apply("policy.yaml", &policy("DENY", denied).replace("app: server", "app: client"));
    assert!(pair.client.ask(own, "me").await.is_err());
}

/// A Service that leads to the caller itself and to another pod: what goes to the other is for its own node to judge.
#[tokio::test(flavor = "multi_thread")]
async fn a_policy_of_the_caller_cuts_what_it_sends_to_itself_alone() {
    let mesh = Mesh::start();
    let (caller, other) = (fresh_ip(), fresh_ip());
    let yaml = [
        pod_yaml("client", "node1", caller).replace("app: client", "app: web, is: caller"),
        pod_yaml("server", "node2", other).replace("app: server", "app: web"),
        service_yaml("web", "web", "10.96.0.7", 80, 8080),
    ];
    mesh.apply("world.yaml", &yaml.concat());
    let (caller, other) = (mesh.enrol(caller).await, mesh.enrol(other).await);
    let mut at_caller = echo_app((caller.ip, 8080));
    let mut at_other = echo_app((other.ip, 8080));
    let (mut to_itself, mut to_other) = (None, None);
    while to_itself.is_none() || to_other.is_none() {
        let mut stream = caller.connect(vip()).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'x');
        if at_caller.try_recv().is_ok() {
            to_itself = Some(stream);
        } else {
            at_other.try_recv().expect("one of the two was reached");
            to_other = Some(stream);
        }
    }
    mesh.apply("policy.yaml", &policy("DENY", "{type: Any}").replace("app: server", "is: caller"));
    let cut = tokio::time::timeout(SOON, to_itself.unwrap().read_u8()).await.expect("cut in time");
    assert_eq!(cut.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    let mut to_other = to_other.unwrap();
    to_other.write_all(b"y").await.unwrap();
    assert_eq!(to_other.read_u8().await.unwrap(), b'y');
}

#[tokio::test(flavor = "multi_thread")]
async fn rotation_under_traffic_is_not_noticed() {
    let pair = Pair::start().await;
    answering_app("web", (pair.server.ip, 8080));
    for round in 0..60 {
        if round % 10 == 5 {
            pair.mesh.nodes.iter().for_each(|node| node.identities.force_rotate());
        }
        assert_eq!(pair.client.ask(vip(), "hello").await.unwrap(), "web:hello", "round {round}");
    }
    let generations = pair.mesh.nodes[0].identities.status();
    assert!(generations.iter().all(|svid| svid.generation > 1), "{generations:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn leaving_the_mesh_cuts_what_the_agent_carries() {
    let pair = Pair::start().await;
    let _clients = echo_app((pair.server.ip, 8080));
    let mut stream = pair.client.connect(vip()).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'x');
    pair.mesh.unenrol(&pair.client).await;
    let end = tokio::time::timeout(PATIENCE, stream.read_u8()).await.unwrap();
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    pair.mesh.nodes[1].until_live("nothing is left at the server", <[_]>::is_empty).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ends_with_its_pod_is_told_so() {
    let pair = Pair::start().await;
    let _clients = echo_app((pair.server.ip, 8080));
    let mut stream = pair.client.connect(vip()).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'x');
    pair.mesh.unenrol(&pair.server).await;
    pair.mesh.nodes[1].until_live("nothing is left", <[_]>::is_empty).await;
    pair.server.until_no_records().await;
    let metrics = pair.mesh.nodes[1].metrics.encode();
    assert!(metrics.contains("reason=\"pod-left\"") && !metrics.contains("tunnel-lost"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_takes_nothing_new_and_goes_on_judging() {
    if needs_two_nodes() {
        return;
    }
    let pair = Pair::start().await;
    let _clients = echo_app((pair.server.ip, 8080));
    let mut stream = pair.client.connect(vip()).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'x');
    let [client_node, server_node] = &pair.mesh.nodes;
    client_node.proxy.stop_listening();
    pair.client.until_refused(vip()).await;
    let late = fresh_ip();
    pair.mesh.apply("late.yaml", &pod_yaml("late", "node1", late));
    let late = pair.mesh.enrol(late).await;
    late.until_refused(vip()).await;
    client_node.until_live("the old connection alone lives", |live| live.len() == 1).await;

    stream.write_all(b"y").await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'y', "what is open goes on");
    server_node.proxy.stop_listening();
    pair.mesh.apply("policy.yaml", &policy("DENY", "{type: Any}"));
    let end = tokio::time::timeout(SOON, stream.read_u8()).await.expect("cut soon");
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

/// A peer with a certificate of this mesh that asks for what is not the pod's.
#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_reaches_its_own_pod_only() {
    let pair = Pair::start().await;
    answering_app("other", (pair.client.ip, 8080));
    answering_app("web", (pair.server.ip, 8080));
    let server_id = SpiffeId::new(TRUST_DOMAIN, "shop", "server").unwrap();
    let client_id = SpiffeId::new(TRUST_DOMAIN, "shop", "client").unwrap();
    let svid = pair.mesh.nodes[0].identities.svid(&client_id).unwrap();
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            let pool = Pool::new(hbone::Limits::default());
            let key = TunnelKey { source_uid: "liar".into(), destination: server_id, address: pair.server.ip.into() };
            for (authority, expected) in [
                (SocketAddr::from((pair.server.ip, 8080)), None),
                (SocketAddr::from((pair.client.ip, 8080)), Some(400)),
                (SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)), Some(400)),
                (SocketAddr::from((pair.server.ip, hbone::PORT)), Some(503)),
                (SocketAddr::from((pair.server.ip, 1)), Some(503)),
            ] {
                let request = ConnectRequest {
                    authority,
                    forwarded: ClientAddr::new(([127, 0, 0, 1], 1).into()),
                    host: None,
                    baggage: String::new(),
                    traceparent: String::new(),
                };
                let connect = async || tokio::net::TcpStream::connect((pair.server.ip, hbone::PORT)).await;
                let status = match pool.open(&key, &svid, connect, &request).await {
                    Ok(_) => None,
                    Err(OpenError::Refused(status)) => Some(status.as_u16()),
                    Err(error) => panic!("{authority}: {error}"),
                };
                assert_eq!(status, expected, "{authority}");
            }
        })
        .await;
}

/// The world says that an address is `server`'s, but another pod answers there.
#[tokio::test(flavor = "multi_thread")]
async fn another_identity_at_the_address_gets_nothing() {
    let pair = Pair::start().await;
    answering_app("web", (pair.server.ip, 8080));
    let lie = pod_yaml("server", "node2", pair.server.ip)
        .replace("serviceAccountName: server", "serviceAccountName: mallory");
    pair.mesh.apply("world.yaml", &[pod_yaml("client", "node1", pair.client.ip), lie].concat());
    let refused = pair.client.ask((pair.server.ip, 8080), "secret").await;
    assert!(refused.is_err(), "{refused:?}");
    let metrics = &pair.mesh.nodes[0].metrics;
    eventually("it is told who answered", || metrics.encode().contains("tunnel-wrong-identity")).await;
}
