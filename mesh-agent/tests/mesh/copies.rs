//! Requests of which more than one goes out, with their bodies: mirrors, and retries, within the pod's buffer.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version};
use http_body_util::BodyExt as _;
use hyper::body::{Frame, Incoming};
use mesh_agent::proxy::Budgets;
use mesh_agent::routing::OutboundMode;
use tokio::sync::mpsc;

use super::Pair;
use super::requests::{Answer, Client, Sent, app, nothing, read, text};
use super::support::*;

/// The bodies that came, with their trailers and fields.
type Bodies = Arc<Mutex<Vec<(Bytes, Option<HeaderMap>, HeaderMap)>>>;

/// Takes whole bodies and notes them.
fn taking(bodies: &Bodies, status: u16) -> impl Fn(Request<Incoming>) -> Answer + Send + Sync + 'static {
    let bodies = bodies.clone();
    move |request| {
        let bodies = bodies.clone();
        Box::pin(async move {
            let fields = request.headers().clone();
            if let Ok(body) = request.into_body().collect().await {
                let trailers = body.trailers().cloned();
                bodies.lock().unwrap().push((body.to_bytes(), trailers, fields));
            }
            let mut response = Response::new(text("taken"));
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            response
        })
    }
}

/// A pair whose Service `web` has a route that mirrors to `copies`, whose application is at port 8081.
async fn mirroring(version: Version, budgets: [Budgets; 2]) -> (Pair, Bodies, Bodies) {
    let pair = Pair::start_on(Mesh::start_within(OutboundMode::AllowAny, budgets)).await;
    let (web, copies) = (Bodies::default(), Bodies::default());
    app((pair.server.ip, 8080), version, taking(&web, 200));
    app((pair.server.ip, 8081), version, taking(&copies, 500));
    let spoken = if version == Version::HTTP_2 { "kubernetes.io/h2c" } else { "http" };
    let speaking = |yaml: String| yaml.replace("protocol: TCP", &format!("protocol: TCP, appProtocol: {spoken}"));
    pair.mesh.apply("copies.yaml", &speaking(service_yaml("copies", "server", "10.96.0.9", 80, 8081)));
    let world = [
        pod_yaml("client", "node1", pair.client.ip),
        pod_yaml("server", "node2", pair.server.ip),
        speaking(service_yaml("web", "server", "10.96.0.7", 80, 8080)),
    ];
    pair.mesh.apply("world.yaml", &world.concat());
    pair.mesh.apply(
        "route.yaml",
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: web, port: 80}]
  rules:
  - filters: [{type: RequestMirror, requestMirror: {backendRef: {name: copies, port: 80}}}]
    backendRefs: [{name: web, port: 80}]
",
    );
    (pair, web, copies)
}

fn count(bodies: &Bodies) -> usize {
    bodies.lock().unwrap().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirrored_request_has_its_body() {
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let (pair, web, copies) = mirroring(version, [ample(), ample()]).await;
        let mut client = Client::connect(&pair, version).await;
        let bodies: [Bytes; 4] = ["".into(), "short".into(), vec![b'x'; 20_000].into(), vec![b'y'; 64 << 10].into()];
        for (number, body) in bodies.iter().enumerate() {
            let uri = client.uri("/");
            let sent = if body.is_empty() { nothing() } else { text(body.clone()) };
            let response = client.ask(Request::post(uri).header("x-number", number), sent).await;
            assert_eq!(read(response).await, (StatusCode::OK, "taken".into()), "the mirror's answer is nobody's");
            eventually("the copy", || count(&copies) == number + 1).await;
            let seen = [&web, &copies].map(|bodies| bodies.lock().unwrap().last().cloned().unwrap());
            for (at, (seen, _, fields)) in ["web", "copies"].iter().zip(&seen) {
                assert!(seen == body, "{version:?}, {at}: {} bytes for {}", seen.len(), body.len());
                assert_eq!(fields["x-number"], number.to_string().as_str(), "{version:?}, {at}");
            }
        }
    }
}

/// Trailers of a body are copied with it, and a copy waits for the whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_waits_for_the_end_of_its_body() {
    let (pair, web, copies) = mirroring(Version::HTTP_2, [ample(), ample()]).await;
    let mut client = Client::connect(&pair, Version::HTTP_2).await;
    let (frames, incoming) = mpsc::channel(1);
    let request = Request::post("http://web.shop/a.B/C").header("te", "trailers");
    let asked = tokio::spawn(async move { client.ask(request, Sent(incoming).boxed()).await.status() });
    for piece in ["one ", "two ", "three"] {
        frames.send(Frame::data(Bytes::from_static(piece.as_bytes()))).await.unwrap();
    }
    let near = &pair.mesh.nodes[0];
    let held = || near.proxy.usage().iter().map(|usage| usage.buffered_bytes).sum::<u64>();
    eventually("all that was sent is kept", || held() > 13).await;
    assert_eq!(count(&copies), 0, "a copy of half a body");
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", HeaderValue::from_static("3"));
    frames.send(Frame::trailers(trailers.clone())).await.unwrap();
    drop(frames);
    assert_eq!(asked.await.unwrap(), StatusCode::OK);
    eventually("the copy", || count(&copies) == 1).await;
    for bodies in [&web, &copies] {
        let (body, seen, _) = bodies.lock().unwrap()[0].clone();
        assert_eq!((&body[..], seen), (&b"one two three"[..], Some(trailers.clone())));
    }
}

/// What is too long, or has no room, goes to its application alone, and the copy that there is not is told.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_long_is_not_mirrored_and_counted() {
    // (the client's pod may buffer so much, the body's length)
    for (buffered, length) in [(ample().buffered_bytes, (64 << 10) + 1), (20_000, 40_000)] {
        let near = Budgets { buffered_bytes: buffered, ..ample() };
        let (pair, web, copies) = mirroring(Version::HTTP_11, [near, ample()]).await;
        let mut client = Client::connect(&pair, Version::HTTP_11).await;
        let body = Bytes::from(vec![b'z'; length]);
        let response = client.ask(Request::post("/"), text(body.clone())).await;
        assert_eq!(read(response).await.0, StatusCode::OK, "{length} bytes");
        assert!(web.lock().unwrap()[0].0 == body, "{length} bytes did not arrive whole");
        let metrics = &pair.mesh.nodes[0].metrics;
        eventually("it is told", || metrics.encode().contains("error_type=\"mirror-body\"")).await;
        assert_eq!(count(&copies), 0, "{length} bytes were mirrored");
        // The next has room.
        assert_eq!(read(client.ask(Request::post("/"), text("short")).await).await.0, StatusCode::OK);
        eventually("a copy of a short one", || count(&copies) == 1).await;
        let near = &pair.mesh.nodes[0];
        let held = || near.proxy.usage().iter().map(|usage| usage.buffered_bytes).sum::<u64>();
        eventually("nothing is kept", || held() == 0).await;
    }
}

/// A body that is kept to be sent again counts in the pod's buffer; without room there it goes out once.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_may_be_sent_again_counts_in_the_pods_buffer() {
    for (buffered, tries) in [(ample().buffered_bytes, 2), (20_000, 1)] {
        let near = Budgets { buffered_bytes: buffered, ..ample() };
        let pair = Pair::start_on(Mesh::start_within(OutboundMode::AllowAny, [near, ample()])).await;
        super::requests::speaks(&pair, "http");
        pair.mesh.apply(
            "traffic.yaml",
            "apiVersion: nodemesh.dev/v1alpha1
kind: TrafficPolicy
metadata: {namespace: shop, name: t}
spec:
  targetRefs: [{kind: Service, name: web}]
  retry: {attempts: 1, codes: [503], methods: All}
",
        );
        let bodies = Bodies::default();
        app((pair.server.ip, 8080), Version::HTTP_11, taking(&bodies, 503));
        let mut client = Client::connect(&pair, Version::HTTP_11).await;
        let body = Bytes::from(vec![b'r'; 40_000]);
        let response = client.ask(Request::post("/"), text(body.clone())).await;
        assert_eq!(read(response).await.0, StatusCode::SERVICE_UNAVAILABLE);
        let seen = bodies.lock().unwrap().clone();
        assert_eq!(seen.len(), tries, "with a buffer of {buffered}");
        assert!(seen.iter().all(|(seen, ..)| *seen == body), "with a buffer of {buffered}");
        let near = &pair.mesh.nodes[0];
        let held = || near.proxy.usage().iter().map(|usage| usage.buffered_bytes).sum::<u64>();
        eventually("nothing is kept", || held() == 0).await;
    }
}
