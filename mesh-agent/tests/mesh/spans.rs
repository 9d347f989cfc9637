//! Spans: what two agents tell of one request, and what the application is told of its trace.

use std::sync::atomic::{AtomicUsize, Ordering};

use http::{Request, Response, StatusCode, Version};
use opentelemetry_sdk::trace::SpanData;

use super::requests::{Client, app, mirror, nothing, pair, read, text};
use super::support::*;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

#[tokio::test(flavor = "multi_thread")]
async fn a_sampled_request_is_told_and_its_trace_goes_on() {
    let pair = pair("http").await;
    app((pair.server.ip, 8080), Version::HTTP_11, mirror);
    let mut client = Client::connect(&pair, Version::HTTP_11).await;
    let node = &pair.mesh.nodes[0];

    // No trace, and one that its caller does not sample: as they came, and nothing is told.
    let (_, seen) = client.get("/").await;
    assert!(!seen.contains("traceparent"), "{seen}");
    let unsampled = format!("00-{TRACE}-{CALLER}-00");
    let request = || Request::get("/of/a/trace?secret");
    let (_, seen) = read(client.ask(request().header("traceparent", &unsampled), nothing()).await).await;
    assert!(seen.contains(&format!("traceparent: {unsampled}")), "{seen}");

    let sampled = format!("00-{TRACE}-{CALLER}-01");
    let sampled = request().header("traceparent", sampled).header("tracestate", "vendor=1");
    let (_, seen) = read(client.ask(sampled, nothing()).await).await;
    let span = told(node).await;
    assert_eq!(span.span_context.trace_id().to_string(), TRACE);
    assert_eq!(span.parent_span_id.to_string(), CALLER);
    assert!(seen.contains(&format!("traceparent: 00-{TRACE}-{}-01", span.span_context.span_id())), "{seen}");
    assert!(seen.contains("tracestate: vendor=1"), "{seen}");
    let attributes = format!("{:?}", span.attributes);
    for expected in ["\"/of/a/trace\"", "shop/web", "sa/client", "sa/server", "200"] {
        assert!(attributes.contains(expected), "{expected}: {attributes}");
    }
    assert!(!attributes.contains("secret"), "a query was told: {attributes}");
    assert!(node.told.lock().unwrap().try_recv().is_err(), "what is not sampled was told");
}

/// What happened to a request on its way is told in its span, in order; and nothing where nothing did.
#[tokio::test(flavor = "multi_thread")]
async fn what_happens_on_the_way_is_told() {
    let pair = pair("http").await;
    pair.mesh.apply(
        "traffic.yaml",
        "apiVersion: nodemesh.dev/v1alpha1
kind: TrafficPolicy
metadata: {namespace: shop, name: t}
spec:
  targetRefs: [{kind: Service, name: web}]
  retry: {attempts: 2, backoff: 1ms}
  timeouts: {perTry: 300ms}
  faults: [{name: slow, when: {paths: [{exact: /slow}]}, delay: {fixed: 10ms}}]
",
    );
    let asked = AtomicUsize::new(0);
    app((pair.server.ip, 8080), Version::HTTP_11, move |_| {
        let number = asked.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            if number == 2 {
                std::future::pending::<()>().await;
            }
            let mut response = Response::new(text("served"));
            if number == 1 {
                *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            }
            response
        })
    });
    let mut client = Client::connect(&pair, Version::HTTP_11).await;
    let peer = format!("network.peer.address={} network.peer.port=8080", pair.server.ip);
    let busy = format!("nodemesh.retry {peer} error.type=503 http.response.status_code=503 nodemesh.pause=");
    let hung = format!("nodemesh.retry {peer} error.type=timed-out nodemesh.pause=");
    let slow = "nodemesh.fault nodemesh.traffic_rule=slow nodemesh.delay=0.01".to_string();
    for (path, expected) in [("/", vec![]), ("/slow", vec![slow, busy, hung])] {
        let sampled = Request::get(path).header("traceparent", format!("00-{TRACE}-{CALLER}-01"));
        assert_eq!(read(client.ask(sampled, nothing()).await).await, (StatusCode::OK, "served".into()), "{path}");
        let span = told(&pair.mesh.nodes[0]).await;
        let events: Vec<String> = span.events.iter().map(shown).collect();
        let is_as_expected = events.iter().zip(&expected).all(|(event, expected)| event.starts_with(expected));
        assert!(events.len() == expected.len() && is_as_expected, "{path}: {events:#?}, not {expected:#?}");
        let times: Vec<_> = span.events.iter().map(|event| event.timestamp).collect();
        assert!(times.is_sorted() && times.iter().all(|at| (span.start_time..=span.end_time).contains(at)));
    }
}

fn shown(event: &opentelemetry::trace::Event) -> String {
    let attributes = event.attributes.iter().map(|of| format!(" {}={}", of.key, of.value)).collect::<String>();
    format!("{}{attributes}", event.name)
}

async fn told(node: &Node) -> SpanData {
    let waited = tokio::time::timeout(PATIENCE, async {
        loop {
            let span = node.told.lock().unwrap().try_recv();
            match span {
                Ok(span) => return span,
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
            }
        }
    });
    waited.await.expect("a span")
}
