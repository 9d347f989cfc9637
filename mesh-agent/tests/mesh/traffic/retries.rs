//! What is tried again, and that retries never become a storm.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{HeaderValue, Request, Response, StatusCode, Version};
use http_body_util::BodyExt;

use super::*;

/// Fails so often with a status, then answers with what it was sent.
fn failing_first(times: usize, status: u16) -> impl Fn(Request<Incoming>) -> Answer + Send + Sync + 'static {
    let count = AtomicUsize::new(0);
    move |request| {
        let fails = count.fetch_add(1, Ordering::SeqCst) < times;
        Box::pin(async move {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let mut response = Response::new(text(body));
            if fails {
                *response.status_mut() = StatusCode::from_u16(status).unwrap();
            }
            response
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_tried_again() {
    let table = [
        // policy, method, body, fails so often with, what the client sees, requests that came
        ("retry: {attempts: 2}", "GET", 0, (2, 503), 200, 3),
        ("retry: {attempts: 1}", "GET", 0, (2, 503), 503, 2),
        ("retry: {attempts: 2}", "GET", 0, (2, 500), 500, 1),
        ("retry: {attempts: 2, codes: [500]}", "GET", 0, (2, 500), 200, 3),
        ("retry: {attempts: 2}", "PUT", 1000, (1, 503), 200, 2),
        ("retry: {attempts: 2, maxBodyBytes: 999}", "PUT", 1000, (1, 503), 503, 1),
        ("retry: {attempts: 2}", "POST", 1000, (1, 503), 503, 1),
        ("retry: {attempts: 2, methods: All}", "POST", 60_000, (2, 503), 200, 3),
        ("timeouts: {request: 60s}", "GET", 0, (1, 503), 503, 1),
    ];
    for (says, method, length, (times, status), expected, tries) in table {
        let farm = Farm::start(1).await;
        let served = farm.serve(0, failing_first(times, status));
        farm.policy(says);
        let mut client = farm.connect().await;
        let body: String = (0..length).map(|at| char::from(b'a' + (at % 26) as u8)).collect();
        let request = Request::builder().method(method).uri(client.uri("/"));
        let sent = if length == 0 { nothing() } else { text(body.clone()) };
        let (status, echoed) = read(client.ask(request, sent).await).await;
        assert_eq!((status.as_u16(), served.count()), (expected, tries), "{says}: {method}");
        assert!(expected != 200 || echoed == body, "{says}: {} of {length} bytes", echoed.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_goes_to_another_endpoint() {
    let farm = Farm::start(3).await;
    let bad = [farm.serve(0, failing(503)), farm.serve(1, failing(502))];
    farm.serve(2, saying("good"));
    farm.policy("retry: {attempts: 2, backoff: 1ms}\nretryBudget: {minRetryRate: {count: 1000}}");
    let mut client = farm.connect().await;
    for _ in 0..20 {
        assert_eq!(client.get("/").await, (StatusCode::OK, "good".into()));
    }
    assert!(bad[0].count() + bad[1].count() > 0, "chance never chose the bad ones");
    assert!(farm.numbers().retried > 0);
}

/// An endpoint that hangs is given up after its time, and another one answers within the client's.
#[tokio::test(flavor = "multi_thread")]
async fn a_try_that_takes_too_long_is_tried_elsewhere() {
    let farm = Farm::start(2).await;
    farm.serve(0, |_| Box::pin(std::future::pending()));
    farm.serve(1, saying("good"));
    farm.policy(
        "timeouts: {perTry: 500ms, request: 15s}\nretry: {attempts: 2}\nloadBalancing: {algorithm: RoundRobin}",
    );
    let mut client = farm.connect().await;
    for _ in 0..4 {
        assert_eq!(client.get("/").await, (StatusCode::OK, "good".into()));
    }
}

/// An application that closes without an answer.
#[tokio::test(flavor = "multi_thread")]
async fn what_broke_is_tried_again_where_that_is_harmless() {
    for (says, method, expected) in [
        ("retry: {attempts: 1}", "GET", 200),
        ("retry: {attempts: 1}", "POST", 502),
        ("retry: {attempts: 1, methods: All}", "POST", 200),
        ("retry: {attempts: 1, on: [ConnectFailure]}", "GET", 502),
    ] {
        let farm = Farm::start(1).await;
        let listener = tokio::net::TcpListener::bind((farm.pair.server.ip, 8080)).await.unwrap();
        tokio::spawn(async move {
            for number in 0.. {
                let (mut tcp, _) = listener.accept().await.unwrap();
                super::super::requests::until(&mut tcp, "sent whole").await;
                if number > 0 {
                    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                    tokio::io::AsyncWriteExt::write_all(&mut tcp, answer).await.unwrap();
                }
            }
        });
        farm.policy(says);
        let mut client = farm.connect().await;
        let request = Request::builder().method(method).uri(client.uri("/"));
        let (status, _) = read(client.ask(request, text("sent whole")).await).await;
        assert_eq!(status.as_u16(), expected, "{says}: {method}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_tried_again_by_their_own_status() {
    for (says, expected, tries) in [
        ("retry: {attempts: 1, grpcCodes: [UNAVAILABLE]}", "0", 2),
        ("retry: {attempts: 1, grpcCodes: [INTERNAL]}", "14", 1),
        ("retry: {attempts: 1}", "14", 1),
    ] {
        let farm = Farm::start_on("grpc", &["node2"]).await;
        let count = AtomicUsize::new(0);
        let served = farm.serve(0, move |_| {
            let status = if count.fetch_add(1, Ordering::SeqCst) == 0 { "14" } else { "0" };
            let mut response = Response::new(nothing());
            response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
            response.headers_mut().insert("grpc-status", HeaderValue::from_static(status));
            Box::pin(std::future::ready(response))
        });
        farm.policy(says);
        let mut client = Client::connect(&farm.pair, Version::HTTP_2).await;
        let request = Request::post("http://web.shop/a.B/C").header("content-type", "application/grpc");
        let response = client.ask(request, text("message")).await;
        let status = response.headers()["grpc-status"].to_str().unwrap();
        assert_eq!((status, served.count()), (expected, tries), "{says}");
    }
}

/// A backend that fails at everything gets its requests and what the budget allows besides; without it, it would get
/// four times as many.
#[tokio::test(flavor = "multi_thread")]
async fn retries_never_become_a_storm() {
    const CLIENTS: usize = 20;
    const EACH: usize = 25;
    let farm = Farm::start(2).await;
    let served = [farm.serve(0, failing(503)), farm.serve(1, failing(503))];
    farm.policy(
        "retry: {attempts: 3, backoff: 1ms}\nretryBudget: {percent: 20, interval: 10s, minRetryRate: {count: 1, interval: 1s}}",
    );
    let started = std::time::Instant::now();
    let mut asking = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = farm.connect().await;
        asking.push(tokio::spawn(async move {
            for _ in 0..EACH {
                assert_eq!(client.get("/").await.0, StatusCode::SERVICE_UNAVAILABLE);
            }
        }));
    }
    for asked in asking {
        tokio::time::timeout(Duration::from_secs(120), asked).await.expect("answers in time").unwrap();
    }
    let (asked, came) = (CLIENTS * EACH, served[0].count() + served[1].count());
    // A fifth of all that comes is a quarter of what is asked; besides, the least number for each window that began, of
    // either worker.
    let windows = 1 + started.elapsed().as_secs() as usize / 10;
    let most = asked + asked / 4 + windows * 10;
    assert!(came > asked && came <= most, "{asked} asked, {came} came, {most} may");
    farm.told("retry-budget").await;
}
