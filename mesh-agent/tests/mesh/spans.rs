//! Spans: what two agents tell of one request, and what the application is told of its trace.

use http::{Request, Version};
use opentelemetry_sdk::trace::SpanData;

use super::requests::{Client, app, mirror, nothing, pair, read};
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
