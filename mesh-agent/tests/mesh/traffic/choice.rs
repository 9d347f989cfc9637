//! Which endpoint a request goes to, and when there is none.

use std::collections::HashSet;
use std::time::Duration;

use http::{Response, StatusCode, Version};
use tokio::sync::watch;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn the_faster_endpoint_gets_the_more() {
    let farm = Farm::start(2).await;
    let quick = farm.serve(0, saying("quick"));
    let slow = farm.serve(1, |_| {
        Box::pin(async {
            // So that no stall of the machine makes the quick one look as slow.
            tokio::time::sleep(Duration::from_secs(1)).await;
            Response::new(text("slow"))
        })
    });
    let mut client = farm.connect().await;
    for _ in 0..30 {
        assert_eq!(client.get("/").await.0, StatusCode::OK);
    }
    let (quick, slow) = (quick.count(), slow.count());
    assert!(slow * 3 < quick, "{quick} to the quick one, {slow} to the slow one");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_comes_to_its_endpoint_again() {
    let farm = Farm::start(3).await;
    farm.serve(0, saying("0"));
    farm.serve(1, saying("1"));
    farm.serve(2, saying("2"));
    farm.policy("loadBalancing: {algorithm: ConsistentHash, consistentHash: {header: x-user}}");
    let mut client = farm.connect().await;
    let mut used = HashSet::new();
    for user in 0..12 {
        let user = format!("user-{user}");
        let (_, _, first) = get_with(&mut client, "x-user", &user).await;
        for _ in 0..3 {
            // Each on a connection of its own: the key decides, not the connection.
            let mut client = farm.connect().await;
            let (_, _, again) = get_with(&mut client, "x-user", &user).await;
            assert_eq!(again, first, "{user}");
        }
        used.insert(first);
    }
    assert!(used.len() > 1, "all keys went to {used:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_stays_with_its_endpoint_while_that_is_there() {
    for (kind, name) in [("Cookie", "set-cookie"), ("Header", "x-session")] {
        let farm = Farm::start(3).await;
        let words = ["0", "1", "2"];
        words.iter().enumerate().for_each(|(number, word)| drop(farm.serve(number, saying(word))));
        farm.policy(&format!("sessionPersistence: {{sessionName: x-session, type: {kind}}}"));
        let mut client = farm.connect().await;
        let (_, fields, first) = get_with(&mut client, "accept", "*/*").await;
        let token = fields[name].to_str().unwrap().to_string();
        // What a client sends back.
        let (field, token) = match kind {
            "Cookie" => ("cookie", token.split(';').next().unwrap().to_string()),
            _ => ("x-session", token),
        };
        for _ in 0..12 {
            let (_, fields, again) = get_with(&mut client, field, &token).await;
            assert_eq!((again, fields.get(name)), (first.clone(), None));
        }
        // Its endpoint goes.
        let gone = words.iter().position(|word| *word == first).unwrap();
        let left = [0, 1, 2].into_iter().filter(|number| *number != gone);
        let servers: Vec<_> = left.map(|number| ("node2", farm.server(number).ip)).collect();
        farm.pair.mesh.apply("world.yaml", &world("http", farm.pair.client.ip, &servers));
        let (status, fields, other) = get_with(&mut client, field, &token).await;
        assert_eq!(status, StatusCode::OK);
        assert!(other != first && fields.contains_key(name), "{other} after {first}: {fields:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn near_endpoints_come_first() {
    if needs_two_nodes() {
        return;
    }
    let farm = Farm::start_on("http", &["node2", "node1", "node2"]).await;
    let far = [farm.serve(0, saying("far")), farm.serve(2, saying("far"))];
    let near = farm.serve(1, saying("near"));
    farm.policy("loadBalancing: {locality: {mode: Failover}}");
    let mut client = farm.connect().await;
    for _ in 0..20 {
        assert_eq!(client.get("/").await, (StatusCode::OK, "near".into()));
    }
    assert_eq!((near.count(), far[0].count() + far[1].count()), (20, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_cannot_be_reached_is_passed_over() {
    let farm = Farm::start(2).await;
    farm.serve(1, saying("alive"));
    let mut client = farm.connect().await;
    for _ in 0..10 {
        assert_eq!(client.get("/").await, (StatusCode::OK, "alive".into()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_fails_is_left_out() {
    let farm = Farm::start(2).await;
    let bad = farm.serve(0, failing(503));
    farm.serve(1, saying("good"));
    farm.policy(
        "loadBalancing: {algorithm: RoundRobin}\noutlierDetection: {consecutiveGatewayErrors: 3, baseEjectionTime: 300s}",
    );
    let mut client = farm.connect().await;
    let mut failed = 0;
    for _ in 0..40 {
        failed += usize::from(client.get("/").await.0 == StatusCode::SERVICE_UNAVAILABLE);
    }
    assert_eq!((failed, bad.count()), (3, 3), "three failures in a row, and no more");
    assert_eq!(farm.numbers().ejected, 1);
    // What is known of endpoints stays when the world changes around them.
    farm.pair.mesh.apply("other.yaml", &service_yaml("other", "server", "10.96.0.9", 80, 8081));
    farm.policy(
        "loadBalancing: {algorithm: Random}\noutlierDetection: {consecutiveGatewayErrors: 3, baseEjectionTime: 300s}",
    );
    for _ in 0..20 {
        assert_eq!(client.get("/").await.0, StatusCode::OK);
    }
    assert_eq!(bad.count(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_all_are_left_out_there_is_panic_or_503() {
    for (panic, last) in [(0, "all-ejected"), (50, "failed")] {
        let farm = Farm::start(2).await;
        farm.serve(0, failing(503));
        farm.serve(1, failing(503));
        farm.policy(&format!(
            "loadBalancing: {{panicThreshold: {panic}, algorithm: RoundRobin}}
outlierDetection: {{consecutiveGatewayErrors: 1, baseEjectionTime: 300s, maxEjectionPercent: 100}}"
        ));
        let mut client = farm.connect().await;
        for _ in 0..2 {
            assert_eq!(client.get("/").await, (StatusCode::SERVICE_UNAVAILABLE, "failed".into()));
        }
        assert_eq!(client.get("/").await, (StatusCode::SERVICE_UNAVAILABLE, last.into()), "panic below {panic} %");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_without_endpoints_is_503() {
    let farm = Farm::start(1).await;
    farm.pair.mesh.apply("world.yaml", &world("http", farm.pair.client.ip, &[]));
    let mut client = farm.connect().await;
    assert_eq!(client.get("/").await, (StatusCode::SERVICE_UNAVAILABLE, "no-endpoint".into()));
}

/// What answers when it is let go.
fn held(go: &watch::Receiver<bool>) -> impl Fn(http::Request<hyper::body::Incoming>) -> Answer + Send + Sync + 'static {
    let go = go.clone();
    move |_| {
        let mut go = go.clone();
        Box::pin(async move {
            go.wait_for(|go| *go).await.unwrap();
            Response::new(text("held"))
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_the_limits_allow_is_refused() {
    for limits in ["service: {maxRequests: 1}", "endpoint: {maxRequests: 1}", "endpoint: {maxConnections: 1}"] {
        let farm = Farm::start(1).await;
        let (let_go, go) = watch::channel(false);
        let served = farm.serve(0, held(&go));
        farm.policy(&format!("connectionLimits: {{{limits}}}"));
        let mut first = farm.connect().await;
        let first = tokio::spawn(async move { first.get("/").await });
        eventually("the first request is there", || served.count() == 1).await;
        let mut second = farm.connect().await;
        assert_eq!(second.get("/").await, (StatusCode::SERVICE_UNAVAILABLE, "overflow".into()), "{limits}");
        farm.told("overflow").await;
        let_go.send(true).unwrap();
        assert_eq!(first.await.unwrap().0, StatusCode::OK);
        assert_eq!(second.get("/").await, (StatusCode::OK, "held".into()), "{limits}: given back");
    }
}

/// One client's unread answer keeps the others out no longer than its time.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_nobody_reads_counts_until_its_time_is_over() {
    use tokio::io::AsyncWriteExt as _;

    for limits in ["service: {maxRequests: 1}", "endpoint: {maxRequests: 1}"] {
        let farm = Farm::start(1).await;
        farm.serve(0, |request| {
            let length = if request.uri() == "/long" { 64 << 20 } else { 5 };
            Box::pin(std::future::ready(Response::new(text(vec![b'x'; length]))))
        });
        farm.policy(&format!("connectionLimits: {{{limits}}}\ntimeouts: {{request: 2s}}"));
        let asked = std::time::Instant::now();
        let mut deaf = farm.pair.client.connect(super::super::vip()).await.unwrap();
        deaf.write_all(b"GET /long HTTP/1.1\r\nHost: web\r\n\r\n").await.unwrap();
        super::super::requests::until(&mut deaf, "HTTP/1.1 200").await;
        let mut other = farm.connect().await;
        let mut refused = 0;
        while other.get("/").await != (StatusCode::OK, "xxxxx".into()) {
            refused += 1;
            assert!(asked.elapsed() < PATIENCE, "{limits}: never given back");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        assert!(refused > 0, "{limits}: it never counted");
        drop(deaf);
        farm.told("timed-out").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_endpoint_is_passed_over() {
    let farm = Farm::start(2).await;
    let (let_go, go) = watch::channel(false);
    let served = [farm.serve(0, held(&go)), farm.serve(1, held(&go))];
    farm.policy("connectionLimits: {endpoint: {maxRequests: 1}}");
    let mut asking = Vec::new();
    for number in 1..=2 {
        let mut client = farm.connect().await;
        asking.push(tokio::spawn(async move { client.get("/").await }));
        eventually("one more request is there", || served[0].count() + served[1].count() == number).await;
    }
    assert_eq!((served[0].count(), served[1].count()), (1, 1));
    let mut grpc = Client::connect(&farm.pair, Version::HTTP_2).await;
    let request = http::Request::post("http://web.shop/a.B/C").header("content-type", "application/grpc");
    let response = grpc.ask(request, nothing()).await;
    assert_eq!((response.status(), &response.headers()["grpc-status"]), (StatusCode::OK, &"14".parse().unwrap()));
    let_go.send(true).unwrap();
    for asked in asking {
        assert_eq!(asked.await.unwrap().0, StatusCode::OK);
    }
}
