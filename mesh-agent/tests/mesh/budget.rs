//! What is over a pod's budget is refused or cut, counted by its reason, and nobody else notices.

use std::io::ErrorKind;
use std::time::Duration;

use mesh_agent::hbone;
use mesh_agent::proxy::Budgets;
use mesh_agent::routing::OutboundMode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::support::*;
use super::{Pair, vip};

/// A pair whose first node (the client's) and second (the server's) have these budgets.
async fn pair_within(budgets: [Budgets; 2]) -> Pair {
    Pair::start_on(Mesh::start_within(OutboundMode::AllowAny, budgets)).await
}

/// An open connection that carries bytes, or how it was refused.
async fn echoing(pair: &Pair) -> Result<TcpStream, ErrorKind> {
    let exchange = async {
        let mut stream = pair.client.connect(vip()).await?;
        stream.write_all(b"x").await?;
        stream.read_u8().await?;
        Ok(stream)
    };
    let exchanged = tokio::time::timeout(PATIENCE, exchange).await.expect("an answer or a refusal in time");
    exchanged.map_err(|error: std::io::Error| error.kind())
}

fn faults(node: &Node, direction: &str, result: &str, reason: &str) -> bool {
    let line = format!(
        "nodemesh_connection_faults_total{{direction=\"{direction}\",result=\"{result}\",reason=\"{reason}\"}} "
    );
    node.metrics.encode().contains(&line)
}

fn over(node: &Node, pod: &str, budget: &str) -> u64 {
    let usage = node.proxy.usage().into_iter().find(|usage| &*usage.pod == pod).expect("a pod of this node");
    usage.refused.into_iter().find(|(name, _)| *name == budget).expect("a budget").1
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_too_many_is_reset_where_it_is_dialled() {
    if needs_two_nodes() {
        return;
    }
    let pair = pair_within([Budgets { connections: 2, ..ample() }, ample()]).await;
    let [near, _] = &pair.mesh.nodes;
    let _clients = echo_app((pair.server.ip, 8080));
    let mut held = vec![echoing(&pair).await.unwrap(), echoing(&pair).await.unwrap()];
    assert_eq!(echoing(&pair).await.unwrap_err(), ErrorKind::ConnectionReset);
    eventually("connection-budget", || faults(near, "outbound", "refused", "connection-budget")).await;
    assert_eq!(over(near, "client", "connection-budget"), 1);
    for stream in &mut held {
        stream.write_all(b"y").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'y', "what is open goes on");
    }
    held.pop();
    near.until_live("one is left", |live| live.len() == 1).await;
    held.push(echoing(&pair).await.expect("there is room again"));
    drop(held);
    pair.client.until_no_records().await;
    assert_eq!(near.proxy.usage()[0].connections, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_too_many_is_refused_where_it_arrives() {
    if needs_two_nodes() {
        return;
    }
    let pair = pair_within([ample(), Budgets { connections: 1, ..ample() }]).await;
    let [near, far] = &pair.mesh.nodes;
    let _clients = echo_app((pair.server.ip, 8080));
    let _held = echoing(&pair).await.unwrap();
    assert_eq!(echoing(&pair).await.unwrap_err(), ErrorKind::ConnectionReset);
    eventually("connection-budget", || faults(far, "inbound", "refused", "connection-budget")).await;
    eventually("far-side-unavailable", || faults(near, "outbound", "failed", "far-side-unavailable")).await;
    assert_eq!(over(far, "server", "connection-budget"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_come_too_fast_are_reset() {
    if needs_two_nodes() {
        return;
    }
    let pair = pair_within([Budgets { accept_rate: 1, accept_burst: 3, ..ample() }, ample()]).await;
    let [near, _] = &pair.mesh.nodes;
    let _clients = echo_app((pair.server.ip, 8080));
    let mut opened = 0;
    for _ in 0..10 {
        opened += usize::from(echoing(&pair).await.is_ok());
    }
    // Three at once, and one more for each second that a slow machine takes.
    assert!((3..10).contains(&opened), "{opened} of 10");
    assert_eq!(over(near, "client", "accept-budget"), 10 - opened as u64);
    assert!(faults(near, "outbound", "refused", "accept-budget"));
}

/// From outside the mesh to the server's tunnel port, with nothing to say.
async fn stranger(pair: &Pair) -> std::io::Result<TcpStream> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.bind("127.99.0.1:0".parse().unwrap())?;
    socket.connect((pair.server.ip, hbone::PORT).into()).await
}

/// Strangers take a part of what there is for peers that have not proved who they are, and of the rate of new ones; a pod
/// of the mesh that was not there before is served.
#[tokio::test(flavor = "multi_thread")]
async fn strangers_at_the_tunnel_port_keep_no_peer_away() {
    if needs_two_nodes() {
        return;
    }
    let slow = Budgets { accept_rate: 1, accept_burst: 20, ..ample() };
    for (what, far) in [("that stay", Budgets { handshakes: 8, ..ample() }), ("that come too fast", slow)] {
        let pair = pair_within([ample(), far]).await;
        let [_, far] = &pair.mesh.nodes;
        let _clients = echo_app((pair.server.ip, 8080));
        let mut strangers = Vec::new();
        for _ in 0..50 {
            strangers.extend(stranger(&pair).await);
        }
        eventually(what, || over(far, "server", "source-budget") >= 30).await;
        echoing(&pair).await.unwrap_or_else(|error| panic!("beside strangers {what}: {error}"));
        drop(strangers);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_short_of_descriptors_refuses_and_says_so() {
    // Every socket of this process has a higher number.
    let pair = pair_within([Budgets { descriptors: 3, ..ample() }, ample()]).await;
    let [near, _] = &pair.mesh.nodes;
    assert_eq!(echoing(&pair).await.unwrap_err(), ErrorKind::ConnectionReset);
    eventually("descriptor-budget", || faults(near, "outbound", "refused", "descriptor-budget")).await;
    pair.client.until_no_records().await;
}

/// Applications that stop reading fill their pod's buffer budget: one that makes more wait is cut; a connection that is
/// read, and another pod, go on.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_applications_that_do_not_read_has_an_end() {
    if needs_two_nodes() {
        return;
    }
    let pair = pair_within([Budgets { buffered_bytes: 1 << 20, ..ample() }, ample()]).await;
    let [near, _] = &pair.mesh.nodes;
    let _clients = echo_app((pair.server.ip, 8080));
    flooding_app((pair.server.ip, 8081));
    let mut read = echoing(&pair).await.unwrap();
    let mut deaf = Vec::new();
    for _ in 0..4 {
        deaf.push(pair.client.connect((pair.server.ip, 8081)).await.unwrap());
    }
    let waited = tokio::time::timeout(PATIENCE, async {
        while !faults(near, "outbound", "cut", "buffer-budget") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    waited.await.expect("somebody is cut");
    assert!(over(near, "client", "buffer-budget") >= 1);
    for _ in 0..20 {
        read.write_all(b"z").await.unwrap();
        assert_eq!(read.read_u8().await.unwrap(), b'z');
    }
    drop((deaf, read));
    pair.client.until_no_records().await;
    assert_eq!(near.proxy.usage()[0].buffered_bytes, 0, "all is given back");
}

/// Where requests are read nobody pumps bytes ahead: what waits for a client that does not read waits in the tunnel, and
/// counts as well.
#[tokio::test(flavor = "multi_thread")]
async fn answers_that_wait_for_clients_that_do_not_read_have_an_end() {
    if needs_two_nodes() {
        return;
    }
    use super::requests::{Client, Sent, app, mirror, speaks, until};
    use http_body_util::BodyExt as _;

    let near = Budgets { buffered_bytes: 1 << 20, ..ample() };
    let pair = pair_within([near, ample()]).await;
    speaks(&pair, "http");
    app((pair.server.ip, 8080), http::Version::HTTP_11, |request| {
        if request.uri() != "/endless" {
            return mirror(request);
        }
        Box::pin(async {
            let (frames, endless) = tokio::sync::mpsc::channel(1);
            tokio::spawn(async move {
                let block = bytes::Bytes::from(vec![7; 64 << 10]);
                while frames.send(hyper::body::Frame::data(block.clone())).await.is_ok() {}
            });
            http::Response::new(Sent(endless).boxed())
        })
    });
    let mut readers = Vec::new();
    for _ in 0..6 {
        let mut tcp = pair.client.connect(vip()).await.unwrap();
        tcp.write_all(b"GET /endless HTTP/1.1\r\nHost: web\r\n\r\n").await.unwrap();
        until(&mut tcp, "HTTP/1.1 200").await;
        readers.push(tcp);
    }
    let [near, _] = &pair.mesh.nodes;
    eventually("some are cut", || over(near, "client", "buffer-budget") > 0).await;
    eventually("it is told", || near.metrics.encode().contains("reason=\"buffer-budget\"")).await;
    let held = || near.proxy.usage().iter().map(|usage| usage.buffered_bytes).sum::<u64>();
    eventually("what waits is within the budget", || held() <= 1 << 20).await;
    // Whoever reads is served.
    let mut client = Client::connect(&pair, http::Version::HTTP_11).await;
    assert_eq!(client.get("/").await.0, http::StatusCode::OK);
    drop(readers);
    eventually("nothing waits", || held() == 0).await;
}

/// HTTP/2 takes in what its windows allow, whether anybody reads the bodies or not: that counts as well. Bodies that the
/// application does not read wait on the client's connection, answers that the client does not read on the application's.
#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_wait_on_http2_have_an_end() {
    if needs_two_nodes() {
        return;
    }
    use http::{Request, Response, Version};
    use http_body_util::BodyExt as _;

    use super::requests::{Client, Sent, app, mirror, nothing, speaks};

    fn endless() -> Sent {
        let (frames, endless) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            let block = bytes::Bytes::from(vec![7; 64 << 10]);
            while frames.send(hyper::body::Frame::data(block.clone())).await.is_ok() {}
        });
        Sent(endless)
    }
    // 3 MiB by the windows of the streams.
    const STREAMS: usize = 12;
    for (app_protocol, spoken, path) in
        [("http", Version::HTTP_11, "/deaf"), ("kubernetes.io/h2c", Version::HTTP_2, "/endless")]
    {
        let near = Budgets { buffered_bytes: 1 << 20, ..ample() };
        let pair = pair_within([near, ample()]).await;
        speaks(&pair, app_protocol);
        app((pair.server.ip, 8080), spoken, |request| match request.uri().path() {
            "/deaf" => Box::pin(async move {
                let _unread = request;
                std::future::pending().await
            }),
            "/endless" => Box::pin(async { Response::new(endless().boxed()) }),
            _ => mirror(request),
        });
        let Client::Http2(send) = Client::connect(&pair, Version::HTTP_2).await else { unreachable!() };
        let mut unread = tokio::task::JoinSet::new();
        for _ in 0..STREAMS {
            let (mut send, uri) = (send.clone(), format!("http://web.shop{path}"));
            let body = if path == "/deaf" { endless().boxed() } else { nothing() };
            unread.spawn(async move {
                let _answer = send.send_request(Request::post(uri).body(body).unwrap()).await;
                std::future::pending::<()>().await;
            });
        }
        let [near, _] = &pair.mesh.nodes;
        eventually("it is cut", || over(near, "client", "buffer-budget") > 0).await;
        eventually("it is told", || near.metrics.encode().contains("reason=\"buffer-budget\"")).await;
        let held = || near.proxy.usage().iter().map(|usage| usage.buffered_bytes).sum::<u64>();
        eventually("what waits is within the budget", || held() <= 1 << 20).await;
        // Whoever reads is served.
        let mut client = Client::connect(&pair, Version::HTTP_2).await;
        assert_eq!(client.get("/").await.0, http::StatusCode::OK, "{app_protocol}");
        drop((unread, send));
        eventually("nothing waits", || held() == 0).await;
    }
}
