//! How many requests pass, and what goes wrong on purpose.

use std::time::{Duration, Instant};

use http::{Request, StatusCode, Version};

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn more_than_the_rate_is_429_for_each_key() {
    let farm = Farm::start(1).await;
    let served = farm.serve(0, saying("passed"));
    farm.policy("rateLimits: [{name: each-user, requests: 2, per: 1h, key: {type: Header, header: x-user}}]");
    // Connections, and with them workers, play no part.
    for expected in [200, 200, 429, 429] {
        for user in ["ann", "bob"] {
            let mut client = farm.connect().await;
            let (status, fields, _) = get_with(&mut client, "x-user", user).await;
            assert_eq!(status.as_u16(), expected, "{user}");
            if expected == 429 {
                let of = |name: &str| fields[name].to_str().unwrap().to_string();
                let wait: u64 = of("retry-after").parse().unwrap();
                assert!((1..=3600).contains(&wait), "{wait}");
                assert_eq!(of("ratelimit-policy"), "\"each-user\";q=2;w=3600");
                assert_eq!(of("ratelimit"), format!("\"each-user\";r=0;t={wait}"));
            }
        }
    }
    assert_eq!(served.count(), 4);
    farm.told("rate-limited").await;
    // The buckets stay when the policy is read anew, with more in it.
    farm.policy(
        "timeouts: {request: 10s}\nrateLimits: [{name: each-user, requests: 2, per: 1h, key: {type: Header, header: x-user}}]",
    );
    let mut client = farm.connect().await;
    assert_eq!(get_with(&mut client, "x-user", "ann").await.0, StatusCode::TOO_MANY_REQUESTS);
    let mut grpc = Client::connect(&farm.pair, Version::HTTP_2).await;
    let request =
        Request::post("http://web.shop/a.B/C").header("content-type", "application/grpc").header("x-user", "ann");
    let response = grpc.ask(request, nothing()).await;
    assert_eq!((response.status(), &response.headers()["grpc-status"]), (StatusCode::OK, &"8".parse().unwrap()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_is_about_who_asks_and_what_for() {
    let farm = Farm::start(1).await;
    farm.serve(0, saying("passed"));
    farm.policy(
        "rateLimits:
- {name: writes, requests: 1, per: 1h, when: {methods: [POST], paths: [{prefix: /api}]}}
- {name: strangers, requests: 1, per: 1h, when: {sources: [{namespace: elsewhere}]}}
- {name: callers, requests: 5, per: 1h, key: {type: SourceIdentity}}",
    );
    let mut client = farm.connect().await;
    let table = [
        ("POST", "/api/x", 200),
        ("POST", "/api/y", 429),
        ("POST", "/other", 200),
        ("GET", "/api/x", 200),
        ("GET", "/", 200),
        // Keys come first: what another limit refused counts there.
        ("GET", "/", 429),
    ];
    for (method, path, expected) in table {
        let request = Request::builder().method(method).uri(client.uri(path));
        assert_eq!(client.ask(request, nothing()).await.status().as_u16(), expected, "{method} {path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_delay_and_abort_what_they_are_about() {
    let farm = Farm::start(1).await;
    let served = farm.serve(0, saying("passed"));
    farm.policy(
        "faults:
- {name: teapot, when: {paths: [{exact: /tea}]}, abort: {httpStatus: 418}}
- {name: slow, when: {paths: [{exact: /slow}]}, delay: {fixed: 400ms}}
- {name: never, abort: {httpStatus: 500, share: {numerator: 0}}}
- {name: gone, when: {paths: [{exact: /a.B/C}]}, abort: {grpcStatus: NOT_FOUND}}",
    );
    let mut client = farm.connect().await;
    assert_eq!(client.get("/tea").await, (StatusCode::IM_A_TEAPOT, "fault-injected".into()));
    assert_eq!(served.count(), 0);
    assert_eq!(client.get("/").await.0, StatusCode::OK);
    let asked = Instant::now();
    assert_eq!(client.get("/slow").await.0, StatusCode::OK);
    assert!(asked.elapsed() >= Duration::from_millis(400), "{:?}", asked.elapsed());
    let mut grpc = Client::connect(&farm.pair, Version::HTTP_2).await;
    let request = Request::post("http://web.shop/a.B/C").header("content-type", "application/grpc");
    assert_eq!(grpc.ask(request, nothing()).await.headers()["grpc-status"], "5");
    farm.told("fault-injected").await;
    // A delay is part of the time that the request has.
    farm.policy("timeouts: {request: 300ms}\nfaults: [{name: slow, delay: {fixed: 60s}}]");
    assert_eq!(client.get("/").await, (StatusCode::GATEWAY_TIMEOUT, "timed-out".into()));
    assert_eq!(served.count(), 2);
}
