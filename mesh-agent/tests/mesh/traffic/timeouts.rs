//! How long things may take.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Frame;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::super::requests::{Sent, until};
use super::super::vip;
use super::*;

/// Never answers.
fn silent(_: http::Request<hyper::body::Incoming>) -> super::Answer {
    Box::pin(std::future::pending())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_or_a_try_that_takes_too_long_is_504() {
    let farm = Farm::start(1).await;
    farm.serve(0, silent);
    for timeouts in ["{request: 300ms}", "{perTry: 300ms}"] {
        farm.policy(&format!("timeouts: {timeouts}"));
        let mut client = farm.connect().await;
        let asked = Instant::now();
        assert_eq!(client.get("/").await, (StatusCode::GATEWAY_TIMEOUT, "timed-out".into()), "{timeouts}");
        assert!(asked.elapsed() >= Duration::from_millis(300), "{:?}", asked.elapsed());
    }
    farm.told("timed-out").await;
    let farm = Farm::start_on("grpc", &["node2"]).await;
    farm.serve(0, silent);
    farm.policy("timeouts: {request: 300ms}");
    let mut grpc = Client::connect(&farm.pair, http::Version::HTTP_2).await;
    let request = http::Request::post("http://web.shop/a.B/C").header("content-type", "application/grpc");
    let response = grpc.ask(request, nothing()).await;
    assert_eq!(response.headers()["grpc-status"], "4");
}

/// A client that keeps its body to itself is answered 504, and nobody else hears of it: an endpoint that could not answer yet
/// is not one that fails.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_withholds_its_body_has_no_endpoint_left_out() {
    let farm = Farm::start(2).await;
    for server in [0, 1] {
        farm.serve(server, super::super::requests::mirror);
    }
    let says = "outlierDetection: {consecutiveGatewayErrors: 2, baseEjectionTime: 300s}\ntimeouts";
    for timeouts in ["{request: 200ms}", "{perTry: 200ms}"] {
        farm.policy(&format!("{says}: {timeouts}"));
        for _ in 0..8 {
            let mut tcp = farm.pair.client.connect(vip()).await.unwrap();
            tcp.write_all(b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 10\r\n\r\nfive!").await.unwrap();
            until(&mut tcp, "HTTP/1.1 504").await;
        }
        assert_eq!(farm.numbers().ejected, 0, "{timeouts}");
    }
    // An endpoint that is silent though it was asked to the end is left out.
    let farm = Farm::start(2).await;
    farm.serve(0, silent);
    farm.serve(1, silent);
    farm.policy(&format!("{says}: {{request: 200ms}}"));
    for _ in 0..8 {
        let mut tcp = farm.pair.client.connect(vip()).await.unwrap();
        tcp.write_all(b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\n\r\nfive!").await.unwrap();
        until(&mut tcp, "HTTP/1.1 504").await;
    }
    assert_eq!(farm.numbers().ejected, 1);
}

/// What a route itself says goes before the policies; the route's policy before the Service's.
#[tokio::test(flavor = "multi_thread")]
async fn the_narrowest_word_about_time_counts() {
    let farm = Farm::start(1).await;
    farm.serve(0, |_| {
        Box::pin(async {
            tokio::time::sleep(Duration::from_millis(600)).await;
            Response::new(text("late"))
        })
    });
    let route = |timeouts: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: r, namespace: shop}}
spec:
  parentRefs: [{{group: '', kind: Service, name: web, port: 80}}]
  rules: [{{{timeouts}backendRefs: [{{name: web, port: 80}}]}}]
"
        )
    };
    let (short, long, none) = ("{request: 50ms}", "{request: 60s}", "");
    let table = [
        // route's own, policy of the route, policy of the Service
        (none, none, short, StatusCode::GATEWAY_TIMEOUT),
        (none, long, short, StatusCode::OK),
        (none, short, long, StatusCode::GATEWAY_TIMEOUT),
        (long, short, short, StatusCode::OK),
        (short, long, long, StatusCode::GATEWAY_TIMEOUT),
    ];
    for (own, of_route, of_service, expected) in table {
        let own = if own.is_empty() { String::new() } else { format!("timeouts: {own}, ") };
        farm.pair.mesh.apply("route.yaml", &route(&own));
        let says = |timeouts: &str| if timeouts.is_empty() { String::new() } else { format!("timeouts: {timeouts}") };
        let policies = [policy("HTTPRoute", "r", &says(of_route)), policy("Service", "web", &says(of_service))];
        farm.pair.mesh.apply("traffic.yaml", &policies.join("---\n"));
        let mut client = farm.connect().await;
        let (status, _) = client.get("/").await;
        assert_eq!(status, expected, "route {own:?}, its policy {of_route:?}, the Service's {of_service:?}");
    }
}

/// HTTPRoute: `backendRequest` is the time of one try, its whole answer included; `request` that of all of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_routes_time_for_a_try_is_apart_from_that_for_the_request() {
    let farm = Farm::start(1).await;
    let tries = farm.serve(0, {
        let tries = std::sync::atomic::AtomicUsize::new(0);
        move |request| {
            let number = tries.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            let is_slow = request.uri() == "/never" || request.uri() == "/second" && number.is_multiple_of(2);
            let rests = request.uri() == "/rests";
            Box::pin(async move {
                if is_slow {
                    std::future::pending::<()>().await;
                }
                if rests {
                    let (frames, body) = mpsc::channel(1);
                    frames.send(Frame::data(Bytes::from_static(b"begun"))).await.unwrap();
                    tokio::spawn(async move {
                        std::future::pending::<()>().await;
                        drop(frames);
                    });
                    return Response::new(Sent(body).boxed());
                }
                Response::new(text("in time"))
            })
        }
    });
    let route = |timeouts: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: r, namespace: shop}}
spec:
  parentRefs: [{{group: '', kind: Service, name: web, port: 80}}]
  rules: [{{timeouts: {timeouts}, retry: {{attempts: 1, codes: [504]}}, backendRefs: [{{name: web, port: 80}}]}}]
"
        )
    };
    for (timeouts, path, expected, tried) in [
        ("{request: 60s, backendRequest: 300ms}", "/second", StatusCode::OK, 2),
        ("{request: 60s, backendRequest: 300ms}", "/never", StatusCode::GATEWAY_TIMEOUT, 2),
        ("{request: 300ms, backendRequest: 300ms}", "/never", StatusCode::GATEWAY_TIMEOUT, 1),
        // Zero: no limit.
        ("{request: 300ms, backendRequest: 0s}", "/never", StatusCode::GATEWAY_TIMEOUT, 1),
    ] {
        farm.pair.mesh.apply("route.yaml", &route(timeouts));
        let (mut client, before) = (farm.connect().await, tries.count());
        // The number of a try decides.
        assert!(path != "/second" || before.is_multiple_of(2));
        assert_eq!(client.get(path).await.0, expected, "{timeouts} {path}");
        assert_eq!(tries.count() - before, tried, "tries of {timeouts} {path}");
    }
    farm.pair.mesh.apply("route.yaml", &route("{request: 60s, backendRequest: 300ms}"));
    let mut client = farm.connect().await;
    let response = client.ask(http::Request::get("/rests"), nothing()).await;
    assert_eq!(response.status(), StatusCode::OK);
    let body = tokio::time::timeout(PATIENCE, response.into_body().collect()).await.expect("an end in time");
    assert!(body.is_err(), "the answer took longer than a try may, and came whole");
}

/// An answer may take as long as it likes, but not rest for longer than allowed.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_rests_for_too_long_breaks_off() {
    let farm = Farm::start(1).await;
    farm.serve(0, |request| {
        let pieces = if request.uri() == "/rests" { 1 } else { 16 };
        Box::pin(async move {
            let (frames, body) = mpsc::channel(1);
            tokio::spawn(async move {
                for _ in 0..pieces {
                    frames.send(Frame::data(Bytes::from_static(b"piece"))).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(300)).await;
                }
                if pieces == 1 {
                    frames.closed().await;
                }
            });
            Response::new(Sent(body).boxed())
        })
    });
    farm.policy("timeouts: {idle: 4s}");
    let mut client = farm.connect().await;
    let (status, body) = client.get("/moves").await;
    assert_eq!((status, body.len()), (StatusCode::OK, 80), "4.8 s, and no rest of 4 s");
    let uri = client.uri("/rests");
    let body = client.ask(http::Request::get(uri), nothing()).await.into_body();
    let ended = tokio::time::timeout(PATIENCE, body.collect()).await.expect("an end");
    assert!(ended.is_err(), "it broke off");
    farm.told("timed-out").await;
}

/// A body may come as slowly as it likes, until the request's time is over: F1.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_trickles_has_the_requests_time_and_no_more() {
    let farm = Farm::start(1).await;
    farm.serve(0, |request| {
        Box::pin(async move {
            let body = request.into_body().collect().await;
            Response::new(text(format!("{} bytes", body.unwrap().to_bytes().len())))
        })
    });
    for version in [http::Version::HTTP_11, http::Version::HTTP_2] {
        for (says, pieces, expected) in [
            ("timeouts: {request: 60s}", 10, (StatusCode::OK, "10 bytes")),
            ("timeouts: {request: 1s}", 1000, (StatusCode::GATEWAY_TIMEOUT, "timed-out")),
        ] {
            farm.policy(says);
            let mut client = Client::connect(&farm.pair, version).await;
            let (frames, body) = mpsc::channel(1);
            tokio::spawn(async move {
                for _ in 0..pieces {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    let Ok(()) = frames.send(Frame::data(Bytes::from_static(b"x"))).await else { break };
                }
            });
            let asked = Instant::now();
            let uri = client.uri("/");
            let answer = read(client.ask(http::Request::post(uri), Sent(body).boxed()).await).await;
            assert_eq!((answer.0, answer.1.as_str()), expected, "{version:?}, {says}");
            assert!(asked.elapsed() >= Duration::from_secs(1), "{version:?}, {says}: {:?}", asked.elapsed());
        }
    }
}

/// A WebSocket that says something now and then stays; one that says nothing for too long ends.
#[tokio::test(flavor = "multi_thread")]
async fn an_upgraded_connection_that_rests_for_too_long_ends() {
    let farm = Farm::start(1).await;
    let listener = TcpListener::bind((farm.server(0).ip, 8080)).await.unwrap();
    tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        until(&mut tcp, "\r\n\r\n").await;
        let agreed = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
        tcp.write_all(agreed).await.unwrap();
        let (mut read, mut write) = tcp.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    });
    farm.policy("timeouts: {idle: 4s}");
    let mut tcp = farm.pair.client.connect(vip()).await.unwrap();
    let request = b"GET / HTTP/1.1\r\nHost: w\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    tcp.write_all(request).await.unwrap();
    until(&mut tcp, "101").await;
    for number in 0..16 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let said = format!("message {number}");
        tcp.write_all(said.as_bytes()).await.unwrap();
        until(&mut tcp, &said).await;
    }
    let ended = tokio::time::timeout(PATIENCE, tcp.read(&mut [0; 16])).await.expect("an end");
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    farm.told("timed-out").await;
}

/// The endpoint's tunnel port takes connections and says nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_takes_too_long_is_504_or_passed_over() {
    let mesh = Mesh::start();
    let (client, mute, alive) = (fresh_ip(), fresh_ip(), fresh_ip());
    let listener = TcpListener::bind((mute, mesh_agent::hbone::PORT)).await.unwrap();
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((tcp, _)) = listener.accept().await {
            held.push(tcp);
        }
    });
    let both = world("http", client, &[("node2", alive), ("node2", mute)]);
    mesh.apply("world.yaml", &both);
    let (client, server) = (mesh.enrol(client).await, mesh.enrol(alive).await);
    mesh.apply("world.yaml", &world("http", client.ip, &[("node2", mute)]));
    mesh.apply("traffic.yaml", &policy("Service", "web", "timeouts: {connect: 1s}"));
    let farm = Farm { pair: Pair { mesh, client, server }, app_protocol: "http", others: Vec::new() };
    let mut asking = farm.connect().await;
    assert_eq!(asking.get("/").await, (StatusCode::GATEWAY_TIMEOUT, "timed-out".into()));
    farm.serve(0, saying("alive"));
    farm.pair.mesh.apply("world.yaml", &both);
    for _ in 0..6 {
        assert_eq!(read(asking.ask(http::Request::get("/"), nothing()).await).await, (StatusCode::OK, "alive".into()));
    }
}
