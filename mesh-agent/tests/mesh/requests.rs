//! Requests between two agents: a port that speaks HTTP, real clients and applications at both ends.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::support::*;
use super::{Pair, frames, vip};

pub type Body = BoxBody<Bytes, hyper::Error>;
pub type Answer = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;

/// What an application saw.
#[derive(Default)]
pub struct Seen {
    connections: AtomicUsize,
    requests: AtomicUsize,
}

impl Seen {
    pub fn counts(&self) -> (usize, usize) {
        (self.connections.load(Ordering::SeqCst), self.requests.load(Ordering::SeqCst))
    }
}

/// The port of the pair's Service speaks this.
pub async fn pair(app_protocol: &str) -> Pair {
    let pair = Pair::start().await;
    speaks(&pair, app_protocol);
    pair
}

pub fn speaks(pair: &Pair, app_protocol: &str) {
    let service = service_yaml("web", "server", "10.96.0.7", 80, 8080)
        .replace("protocol: TCP", &format!("protocol: TCP, appProtocol: {app_protocol}"));
    let pods = [pod_yaml("client", "node1", pair.client.ip), pod_yaml("server", "node2", pair.server.ip), service];
    pair.mesh.apply("world.yaml", &pods.concat());
}

/// An application that answers as it is told to.
pub fn app(
    address: impl Into<SocketAddr>,
    version: Version,
    answer: impl Fn(Request<Incoming>) -> Answer + Send + Sync + 'static,
) -> Arc<Seen> {
    let listener = std::net::TcpListener::bind(address.into()).unwrap();
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let (seen, answer) = (Arc::<Seen>::default(), Arc::new(answer));
    let shown = seen.clone();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            shown.connections.fetch_add(1, Ordering::SeqCst);
            let (shown, answer) = (shown.clone(), answer.clone());
            let service = service_fn(move |request| {
                shown.requests.fetch_add(1, Ordering::SeqCst);
                let answer = answer(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            tokio::spawn(async move {
                if version == Version::HTTP_2 {
                    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(tcp), service).await;
                } else {
                    let mut builder = hyper::server::conn::http1::Builder::new();
                    builder.half_close(true);
                    let _ = builder.serve_connection(TokioIo::new(tcp), service).with_upgrades().await;
                }
            });
        }
    });
    seen
}

pub fn text(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never| match never {}).boxed()
}

pub fn nothing() -> Body {
    Empty::new().map_err(|never| match never {}).boxed()
}

/// Answers with what was asked: the request line and the fields.
pub fn mirror(request: Request<Incoming>) -> Answer {
    Box::pin(async move {
        let mut lines = vec![format!("{} {} {:?}", request.method(), request.uri(), request.version())];
        lines.extend(request.headers().iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())));
        let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        lines.push(format!("body: {}", String::from_utf8_lossy(&body)));
        Response::new(text(lines.join("\n")))
    })
}

/// Sends back what comes, as it comes, with its trailers.
pub(super) fn echo(request: Request<Incoming>) -> Answer {
    Box::pin(async move {
        let mut response = Response::new(request.into_body().boxed());
        response.headers_mut().insert("trailer", HeaderValue::from_static("grpc-status, x-sum"));
        response
    })
}

pub enum Client {
    Http1(hyper::client::conn::http1::SendRequest<Body>),
    Http2(hyper::client::conn::http2::SendRequest<Body>),
}

impl Client {
    pub async fn connect(pair: &Pair, version: Version) -> Self {
        let io = TokioIo::new(pair.client.connect(vip()).await.unwrap());
        if version == Version::HTTP_2 {
            let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
            let (send, driver) = builder.handshake(io).await.unwrap();
            tokio::spawn(driver);
            Client::Http2(send)
        } else {
            let (send, driver) = hyper::client::conn::http1::handshake(io).await.unwrap();
            tokio::spawn(driver);
            Client::Http1(send)
        }
    }

    pub async fn ask(&mut self, request: http::request::Builder, body: Body) -> Response<Incoming> {
        let asked = async {
            match self {
                Client::Http1(send) => {
                    send.ready().await.unwrap();
                    send.send_request(request.header("host", "web.shop").body(body).unwrap()).await
                }
                Client::Http2(send) => send.send_request(request.body(body).unwrap()).await,
            }
        };
        tokio::time::timeout(PATIENCE, asked).await.expect("an answer in time").unwrap()
    }

    /// `/path` for HTTP/1.1, with the authority for HTTP/2.
    pub fn uri(&self, path: &str) -> String {
        match self {
            Client::Http1(_) => path.to_string(),
            Client::Http2(_) => format!("http://web.shop{path}"),
        }
    }

    pub async fn get(&mut self, path: &str) -> (StatusCode, String) {
        let uri = self.uri(path);
        read(self.ask(Request::get(uri), nothing()).await).await
    }
}

pub async fn read(response: Response<Incoming>) -> (StatusCode, String) {
    let status = response.status();
    let body = tokio::time::timeout(PATIENCE, response.into_body().collect()).await.unwrap().unwrap().to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

/// Says bytes and reads until the other side closes, or rests for a moment.
pub(super) async fn say(pair: &Pair, bytes: &[u8]) -> String {
    let mut tcp = pair.client.connect(vip()).await.unwrap();
    tcp.write_all(bytes).await.unwrap();
    hear(&mut tcp).await
}

pub async fn hear(tcp: &mut TcpStream) -> String {
    let mut heard = Vec::new();
    let read = tokio::time::timeout(PATIENCE, tcp.read_to_end(&mut heard)).await;
    read.expect("the connection is closed").expect("in order");
    String::from_utf8_lossy(&heard).into_owned()
}

/// Reads until a text has come.
pub async fn until(tcp: &mut TcpStream, awaited: &str) -> String {
    let mut heard = Vec::new();
    let reading = async {
        while !String::from_utf8_lossy(&heard).contains(awaited) {
            let read = tcp.read_buf(&mut heard).await.unwrap();
            assert!(read > 0, "closed after {:?}", String::from_utf8_lossy(&heard));
        }
    };
    let read = tokio::time::timeout(PATIENCE, reading).await;
    let heard = String::from_utf8_lossy(&heard).into_owned();
    read.unwrap_or_else(|_| panic!("{awaited:?} did not come: {heard:?}"));
    heard
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_either_protocol_reach_applications_of_either() {
    for (app_protocol, spoken) in [("http", Version::HTTP_11), ("kubernetes.io/h2c", Version::HTTP_2)] {
        let pair = pair(app_protocol).await;
        app((pair.server.ip, 8080), spoken, mirror);
        for version in [Version::HTTP_11, Version::HTTP_2] {
            let mut client = Client::connect(&pair, version).await;
            let (status, seen) = client.get("/a/b?c=%20d").await;
            let expected = if spoken == Version::HTTP_2 {
                "GET http://web.shop/a/b?c=%20d HTTP/2.0"
            } else {
                "GET /a/b?c=%20d HTTP/1.1"
            };
            assert_eq!((status, seen.lines().next()), (StatusCode::OK, Some(expected)), "{version:?} to {spoken:?}");
            assert_eq!(seen.contains("host: web.shop"), spoken == Version::HTTP_11, "{seen}");
            let uri = client.uri("/post");
            let (_, seen) = read(client.ask(Request::post(uri), text("some body")).await).await;
            assert!(seen.contains("body: some body"), "{seen}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_to_applications_are_kept_and_shared() {
    for (app_protocol, spoken) in [("http", Version::HTTP_11), ("kubernetes.io/h2c", Version::HTTP_2)] {
        let pair = pair(app_protocol).await;
        let seen = app((pair.server.ip, 8080), spoken, mirror);
        // One after the other, so that all are served by the pod's home worker, and by one connection of its.
        for _ in 0..3 {
            let mut client = Client::connect(&pair, Version::HTTP_11).await;
            for _ in 0..10 {
                assert_eq!(client.get("/").await.0, StatusCode::OK);
            }
        }
        assert_eq!(seen.counts(), (1, 30), "{spoken:?}");
        let numbers = pair.mesh.nodes[0].requests.numbers();
        assert_eq!((numbers.made, numbers.reused, numbers.resent), (1, 29, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_counted_and_told() {
    let pair = pair("http").await;
    app((pair.server.ip, 8080), Version::HTTP_11, mirror);
    let mut client = Client::connect(&pair, Version::HTTP_11).await;
    client.get("/secret?query").await;
    let metrics = &pair.mesh.nodes[0].metrics;
    let line = "nodemesh_http_client_request_duration_seconds_count{source_namespace=\"shop\",source_service_account=\"client\",\
        destination_namespace=\"shop\",destination_service_account=\"server\",server_address=\"shop/web\",http_route=\"\",\
        http_request_method=\"GET\",http_response_status_code=\"2xx\",rpc_grpc_status_code=\"\",error_type=\"\"} 1";
    eventually("the request is counted", || metrics.encode().contains(line)).await;
}

/// Frames go through as they come, in both directions at once, and trailers at the end.
#[tokio::test(flavor = "multi_thread")]
async fn grpc_streams_both_ways_with_trailers() {
    let pair = pair("grpc").await;
    app((pair.server.ip, 8080), Version::HTTP_2, echo);
    let mut client = Client::connect(&pair, Version::HTTP_2).await;
    let (frames, incoming) = mpsc::channel(1);
    let request = Request::post("http://web.shop/chat.Chat/Talk")
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    let response = client.ask(request, Sent(incoming).boxed()).await;
    let mut body = response.into_body();
    for number in 0..20 {
        let said = Bytes::from(format!("message {number}"));
        frames.send(Frame::data(said.clone())).await.unwrap();
        let heard = tokio::time::timeout(PATIENCE, body.frame()).await.expect("an echo at once").unwrap().unwrap();
        assert_eq!(heard.into_data().unwrap(), said);
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    trailers.insert("content-length", HeaderValue::from_static("7"));
    frames.send(Frame::trailers(trailers)).await.unwrap();
    drop(frames);
    let heard = tokio::time::timeout(PATIENCE, body.frame()).await.unwrap().unwrap().unwrap();
    let trailers = heard.into_trailers().unwrap();
    assert_eq!(trailers.get("grpc-status").unwrap(), "0");
    assert_eq!(trailers.len(), 1, "{trailers:?}");
    let metrics = &pair.mesh.nodes[0].metrics;
    eventually("gRPC's own status is told", || metrics.encode().contains("rpc_grpc_status_code=\"0\"")).await;
}

/// A body that comes as it is sent.
pub struct Sent(pub mpsc::Receiver<Frame<Bytes>>);

impl hyper::body::Body for Sent {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.0.poll_recv(cx).map(|frame| frame.map(Ok))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn big_bodies_arrive_whole_though_their_reader_is_slow() {
    const LENGTH: usize = 24 << 20;
    let sent: Bytes = (0..LENGTH as u32).map(|i| (i.wrapping_mul(2654435761) >> 24) as u8).collect::<Vec<u8>>().into();
    for (app_protocol, spoken) in [("http", Version::HTTP_11), ("kubernetes.io/h2c", Version::HTTP_2)] {
        let pair = pair(app_protocol).await;
        app((pair.server.ip, 8080), spoken, echo);
        for version in [Version::HTTP_11, Version::HTTP_2] {
            let mut client = Client::connect(&pair, version).await;
            let uri = client.uri("/echo");
            let mut body = client.ask(Request::post(uri), text(sent.clone())).await.into_body();
            let (mut heard, mut pauses) = (Vec::with_capacity(LENGTH), 0);
            while let Some(frame) = tokio::time::timeout(PATIENCE, body.frame()).await.unwrap() {
                let Ok(data) = frame.unwrap().into_data() else { continue };
                heard.extend_from_slice(&data);
                if heard.len() > (pauses + 1) * (LENGTH / 8) {
                    pauses += 1;
                    tokio::time::sleep(Duration::from_millis(30)).await;
                }
            }
            assert!(heard == sent, "{} of {LENGTH} bytes, {version:?} to {spoken:?}", heard.len());
        }
    }
}

/// A client that takes nothing holds back the application, and costs the agents no more than their windows.
#[tokio::test(flavor = "multi_thread")]
async fn an_endless_answer_waits_for_its_reader() {
    let pair = pair("http").await;
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = sent.clone();
    app((pair.server.ip, 8080), Version::HTTP_11, move |_| {
        let counted = counted.clone();
        Box::pin(async move {
            let (frames, endless) = mpsc::channel(1);
            tokio::spawn(async move {
                let block = Bytes::from(vec![7; 64 << 10]);
                while frames.send(Frame::data(block.clone())).await.is_ok() {
                    counted.fetch_add(block.len(), Ordering::SeqCst);
                }
            });
            Response::new(Sent(endless).boxed())
        })
    });
    let mut tcp = pair.client.connect(vip()).await.unwrap();
    tcp.write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n").await.unwrap();
    until(&mut tcp, "HTTP/1.1 200").await;
    let mut last = 0;
    // Until nothing moves for a while.
    loop {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let now = sent.load(Ordering::SeqCst);
        if now == last {
            break;
        }
        last = now;
    }
    assert!(last < 64 << 20, "{last} bytes left the application for a client that reads nothing");
    drop(tcp);
    pair.mesh.nodes[1].until_live("the application's connection is closed", <[_]>::is_empty).await;
}

/// FIELD 6.4 C, on the wire: 400, closed, and the application hears nothing. [p] marks what the parser would refuse
/// by itself.
#[tokio::test(flavor = "multi_thread")]
async fn what_can_be_read_in_two_ways_is_refused() {
    let pair = pair("http").await;
    let seen = app((pair.server.ip, 8080), Version::HTTP_11, mirror);
    let table: &[(&str, &str)] = &[
        ("C1 CL+TE", "POST / HTTP/1.1\r\nHost: w\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("C1 TE+CL", "POST / HTTP/1.1\r\nHost: w\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n"),
        (
            "C2 TE.TE [p]",
            "POST / HTTP/1.1\r\nHost: w\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n",
        ),
        ("C2 two lists", "POST / HTTP/1.1\r\nHost: w\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
        ("C3 two CL [p]", "POST / HTTP/1.1\r\nHost: w\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde"),
        ("C3 equal CL", "POST / HTTP/1.1\r\nHost: w\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\nabcd"),
        ("C4 bare LF", "GET / HTTP/1.1\nHost: w\n\n"),
        ("C4 one bare LF", "GET / HTTP/1.1\r\nHost: w\nX: y\r\n\r\n"),
        ("C4 bare CR [p]", "GET / HTTP/1.1\r\nHost: w\rX: y\r\n\r\n"),
        ("C6 space before colon [p]", "GET / HTTP/1.1\r\nHost : w\r\n\r\n"),
        ("C6 space before name [p]", "GET / HTTP/1.1\r\n Host: w\r\n\r\n"),
        ("C7 obs-fold [p]", "GET / HTTP/1.1\r\nHost: w\r\nA: b\r\n c\r\n\r\n"),
        ("C8 NUL [p]", "GET / HTTP/1.1\r\nHost: w\r\nA: b\0c\r\n\r\n"),
        ("C10 HTTP/0.9 [p]", "GET /\r\n\r\n"),
        ("C10 TE in 1.0 [p]", "POST / HTTP/1.0\r\nHost: w\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("D7 two Hosts", "GET / HTTP/1.1\r\nHost: w\r\nHost: v\r\n\r\n"),
        ("D8 fragment", "GET /a#b HTTP/1.1\r\nHost: w\r\n\r\n"),
        ("D12 target and Host", "GET http://v/ HTTP/1.1\r\nHost: w\r\n\r\n"),
        ("no Host", "GET / HTTP/1.1\r\n\r\n"),
        ("space in the target", "GET /a b HTTP/1.1\r\nHost: w\r\n\r\n"),
        (
            "C9 framing nominated",
            "POST / HTTP/1.1\r\nHost: w\r\nConnection: content-length\r\nContent-Length: 1\r\n\r\na",
        ),
    ];
    for (name, bytes) in table {
        // What is smuggled behind must never be answered.
        let smuggled = format!("{bytes}GET /smuggled HTTP/1.1\r\nHost: w\r\n\r\n");
        let heard = say(&pair, smuggled.as_bytes()).await;
        assert!(heard.starts_with("HTTP/1.1 400 "), "{name}: {heard:?}");
        assert_eq!(heard.matches("HTTP/1.1").count(), 1, "{name}: {heard:?}");
    }
    assert_eq!(seen.counts(), (0, 0), "the application heard of none");
    for (name, bytes, status) in [
        ("CONNECT", "CONNECT w:80 HTTP/1.1\r\nHost: w:80\r\n\r\n", "501"),
        ("C14 other expectation", "PUT / HTTP/1.1\r\nHost: w\r\nExpect: x\r\nContent-Length: 1\r\n\r\n", "417"),
    ] {
        let heard = say(&pair, bytes.as_bytes()).await;
        assert!(heard.starts_with(&format!("HTTP/1.1 {status} ")), "{name}: {heard:?}");
    }
    let many = format!("GET / HTTP/1.1\r\nHost: w\r\n{}\r\n", "a: b\r\n".repeat(200));
    let long = format!("GET / HTTP/1.1\r\nHost: w\r\nA: {}\r\n\r\n", "b".repeat(70_000));
    for bytes in [many, long] {
        let heard = say(&pair, bytes.as_bytes()).await;
        assert!(heard.starts_with("HTTP/1.1 431 "), "{heard:?}");
    }
    assert_eq!(seen.counts(), (0, 0));
    let metrics = &pair.mesh.nodes[0].metrics;
    for reason in ["length-and-encoding", "bare-line-end", "folded-field", "host", "head-too-long", "connect-method"] {
        eventually(reason, || metrics.encode().contains(&format!("error_type=\"{reason}\""))).await;
    }
}

/// C5: the request is under way when its body turns out to be bad.
#[tokio::test(flavor = "multi_thread")]
async fn a_bad_chunk_breaks_the_request_off() {
    let pair = pair("http").await;
    let whole = Arc::new(AtomicUsize::new(0));
    let counted = whole.clone();
    app((pair.server.ip, 8080), Version::HTTP_11, move |request| {
        let counted = counted.clone();
        Box::pin(async move {
            if request.into_body().collect().await.is_ok() {
                counted.fetch_add(1, Ordering::SeqCst);
            }
            Response::new(nothing())
        })
    });
    for chunk in ["10000000000000000\r\n", "1\r\nab\r\n", "1;a\nb\r\nc\r\n", "zz\r\n", "1\nab\r\n"] {
        let bytes = format!(
            "POST / HTTP/1.1\r\nHost: w\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n{chunk}0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: w\r\n\r\n"
        );
        let mut tcp = pair.client.connect(vip()).await.unwrap();
        tcp.write_all(bytes.as_bytes()).await.unwrap();
        let mut heard = Vec::new();
        // Told, or reset: what counts is that nothing of it is a success.
        let _ = tokio::time::timeout(PATIENCE, tcp.read_to_end(&mut heard)).await.unwrap();
        let heard = String::from_utf8_lossy(&heard);
        assert!(heard.is_empty() || heard.starts_with("HTTP/1.1 400 "), "{chunk:?}: {heard:?}");
    }
    assert_eq!(whole.load(Ordering::SeqCst), 0, "no body was whole");
}

/// C9, C10, C11, and what else may pass.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_application_sees() {
    let pair = pair("http").await;
    let seen = app((pair.server.ip, 8080), Version::HTTP_11, mirror);
    let heard = say(
        &pair,
        b"GET /1 HTTP/1.1\r\nHost: w\r\nConnection: x-hop, close\r\nX-Hop: 1\r\nTE: trailers\r\nKeep-Alive: 5\r\nX-Forwarded-Client-Cert: forged\r\nX-End: 1\r\n\r\n",
    )
    .await;
    assert!(heard.contains("x-end: 1") && heard.contains("te: trailers"), "{heard}");
    for gone in ["x-hop", "keep-alive", "x-forwarded-client-cert", "forged"] {
        assert!(!heard.contains(gone), "{gone}: {heard}");
    }
    // C11: in order, and the body of the one is not the head of the other.
    let heard = say(
        &pair,
        b"POST /1 HTTP/1.1\r\nHost: w\r\nContent-Length: 31\r\n\r\nGET /not-a-request HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\nHost: w\r\n\r\nGET /3 HTTP/1.1\r\nHost: w\r\nConnection: close\r\n\r\n",
    )
    .await;
    let lines: Vec<&str> = heard
        .lines()
        .filter(|line| line.starts_with("GET") || line.starts_with("POST") || line.starts_with("body: GET"))
        .collect();
    assert_eq!(lines, ["POST /1 HTTP/1.1", "body: GET /not-a-request HTTP/1.1", "GET /2 HTTP/1.1", "GET /3 HTTP/1.1"]);
    // C10: HTTP/1.0 closes unless it says otherwise, and needs no Host.
    let heard = say(&pair, b"GET /old HTTP/1.0\r\n\r\n").await;
    assert!(heard.contains("GET /old HTTP/1.1") && heard.contains("host: 10.96.0.7:80"), "{heard}");
    let heard = say(&pair, b"GET /1 HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /2 HTTP/1.0\r\n\r\n").await;
    assert!(heard.contains("GET /1") && heard.contains("GET /2"), "{heard}");
    // HEAD has a length and no body; absolute form is a path for the application.
    let heard = say(
        &pair,
        b"HEAD /h HTTP/1.1\r\nHost: w\r\n\r\nGET http://w/abs HTTP/1.1\r\nHost: w\r\nConnection: close\r\n\r\n",
    )
    .await;
    assert!(heard.contains("GET /abs HTTP/1.1") && !heard.contains("HEAD /h"), "{heard}");
    assert_eq!(seen.counts().0, 1, "one connection served them all");
}

/// C14
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_expects_100_gets_it() {
    let pair = pair("http").await;
    app((pair.server.ip, 8080), Version::HTTP_11, mirror);
    let mut tcp = pair.client.connect(vip()).await.unwrap();
    tcp.write_all(
        b"PUT / HTTP/1.1\r\nHost: w\r\nExpect: 100-continue\r\nContent-Length: 4\r\nConnection: close\r\n\r\n",
    )
    .await
    .unwrap();
    until(&mut tcp, "HTTP/1.1 100 Continue\r\n\r\n").await;
    tcp.write_all(b"body").await.unwrap();
    let heard = hear(&mut tcp).await;
    assert!(heard.contains("HTTP/1.1 200 OK") && heard.contains("body: body"), "{heard}");
}

/// C16: the application says no before it has read the body.
#[tokio::test(flavor = "multi_thread")]
async fn an_early_answer_reaches_the_client() {
    let pair = pair("http").await;
    app((pair.server.ip, 8080), Version::HTTP_11, |_| {
        Box::pin(async {
            let mut response = Response::new(text("too much"));
            *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
            response
        })
    });
    let mut tcp = pair.client.connect(vip()).await.unwrap();
    tcp.write_all(b"POST / HTTP/1.1\r\nHost: w\r\nContent-Length: 1000000\r\n\r\nsome").await.unwrap();
    let heard = until(&mut tcp, "too much").await;
    assert!(heard.starts_with("HTTP/1.1 413 "), "{heard}");
}

/// An application that does not answer keeps nothing of a client that has gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_before_its_upgrade_is_answered_leaves_nothing() {
    let pair = pair("http").await;
    let seen = app((pair.server.ip, 8080), Version::HTTP_11, |_| Box::pin(std::future::pending()));
    for (number, is_reset) in [(1, false), (2, true)] {
        let mut tcp = pair.client.connect(vip()).await.unwrap();
        tcp.write_all(b"GET / HTTP/1.1\r\nHost: w\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n").await.unwrap();
        eventually("it is asked", || seen.counts().1 == number).await;
        if is_reset {
            tcp.write_all(b"said too early").await.unwrap();
            socket2::SockRef::from(&tcp).set_linger(Some(Duration::ZERO)).unwrap();
        }
        drop(tcp);
        for node in &pair.mesh.nodes {
            node.until_live("all are gone", |live| live.is_empty()).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_becomes_bytes_both_ways() {
    let pair = pair("http").await;
    app((pair.server.ip, 8080), Version::HTTP_11, |mut request| {
        Box::pin(async move {
            if request.headers().get("upgrade").is_none_or(|upgrade| upgrade != "websocket") || request.uri() == "/no" {
                return mirror(request).await;
            }
            let upgraded = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut io = TokioIo::new(upgraded.await.unwrap());
                io.write_all(b"welcome;").await.unwrap();
                let mut said = [0; 5];
                while io.read_exact(&mut said).await.is_ok() {
                    said.make_ascii_uppercase();
                    io.write_all(&said).await.unwrap();
                }
                io.write_all(b";bye").await.unwrap();
                io.shutdown().await.unwrap();
            });
            let response =
                Response::builder().status(101).header("connection", "upgrade").header("upgrade", "websocket");
            response.body(nothing()).unwrap()
        })
    });
    const ASK: &[u8] =
        b"GET /ws HTTP/1.1\r\nHost: w\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n";
    let mut tcp = pair.client.connect(vip()).await.unwrap();
    tcp.write_all(ASK).await.unwrap();
    let heard = until(&mut tcp, "welcome;").await;
    assert!(heard.starts_with("HTTP/1.1 101 ") && heard.contains("upgrade: websocket"), "{heard}");
    tcp.write_all(b"hello").await.unwrap();
    until(&mut tcp, "HELLO").await;
    // What looks like a request is none any more.
    tcp.write_all(b"GET /x HTTP/1.1\r\n\r\n.").await.unwrap();
    until(&mut tcp, "GET /X HTTP/1.1\r\n\r\n").await;
    tcp.shutdown().await.unwrap();
    assert_eq!(hear(&mut tcp).await, ";bye", "a half-close passes");

    // C15: refused, so what follows is the next request, with all that is asked of one.
    let refused = [b"GET /no".as_slice(), &ASK[7..]].concat();
    let heard =
        say(&pair, &[&refused, b"GET /next HTTP/1.1\r\nHost: w\r\nConnection: close\r\n\r\n".as_slice()].concat())
            .await;
    assert!(heard.starts_with("HTTP/1.1 200") && heard.contains("GET /next HTTP/1.1"), "{heard}");
    let heard = say(&pair, &[&refused, b"GET /next HTTP/1.1\nHost: w\n\n".as_slice()].concat()).await;
    assert!(heard.starts_with("HTTP/1.1 200") && heard.contains("HTTP/1.1 400") && !heard.contains("/next"), "{heard}");

    // C13: no second framing gets in by way of an upgrade.
    let heard = say(&pair, b"GET /c13 HTTP/1.1\r\nHost: w\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n").await;
    assert!(heard.starts_with("HTTP/1.1 200") && heard.contains("GET /c13 HTTP/1.1"), "{heard}");
    assert!(!heard.to_lowercase().contains("h2c") && !heard.to_lowercase().contains("http2-settings"), "{heard}");
}

/// C12: what HTTP/1.1 would read as lines of its own.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_injected_from_http2_into_http1() {
    let pair = pair("http").await;
    let seen = app((pair.server.ip, 8080), Version::HTTP_11, mirror);
    let good: &[(&[u8], &[u8])] =
        &[(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"w"), (b":path", b"/")];
    let with = |name: &'static [u8], value: &'static [u8]| {
        let mut fields: Vec<(&[u8], &[u8])> =
            good.iter().copied().filter(|(have, _)| *have != name || !name.starts_with(b":")).collect();
        fields.push((name, value));
        // Pseudo fields come first.
        fields.sort_by_key(|(name, _)| !name.starts_with(b":"));
        fields
    };
    for (name, fields) in [
        ("CRLF in a value", with(b"x", b"a\r\nTransfer-Encoding: chunked")),
        ("LF in a value", with(b"x", b"a\nb: c")),
        ("NUL in a value", with(b"x", b"a\0b")),
        ("CRLF in a name", with(b"x: y\r\nz", b"a")),
        ("upper case", with(b"X-Up", b"a")),
        ("colon in a name", with(b"x:y", b"a")),
        ("space in :path", with(b":path", b"/a HTTP/1.1\r\nHost: v\r\n\r\n")),
        ("blank in :path", with(b":path", b"/a b")),
        (":path without a slash", with(b":path", b"a")),
        ("empty :path", with(b":path", b"")),
        ("CRLF in :method", with(b":method", b"GET / HTTP/1.1\r\nx: y\r\n\r\nGET")),
        ("CRLF in :authority", with(b":authority", b"w\r\nx: y")),
        ("user in :authority", with(b":authority", b"u@w")),
        ("D12 Host besides", with(b"host", b"v")),
        ("transfer-encoding", with(b"transfer-encoding", b"chunked")),
        ("connection", with(b"connection", b"close")),
        ("content-length without a body", with(b"content-length", b"5")),
        ("D11 two :path", {
            let mut twice = with(b"x", b"y");
            twice.insert(0, (b":path", b"/b"));
            twice
        }),
    ] {
        let mut tcp = pair.client.connect(vip()).await.unwrap();
        tcp.write_all(&http2_request(&fields)).await.unwrap();
        let outcome = http2_outcome(&mut tcp).await;
        assert!(["reset", "goaway", "400"].contains(&outcome), "{name}: {outcome}");
    }
    assert_eq!(seen.counts(), (0, 0));
    let mut tcp = pair.client.connect(vip()).await.unwrap();
    tcp.write_all(&http2_request(good)).await.unwrap();
    assert_eq!(http2_outcome(&mut tcp).await, "200", "the test knows how to ask");
}

/// B9: heads that HTTP/1.1 may not have, HTTP/2 may not have either.
#[tokio::test(flavor = "multi_thread")]
async fn heads_of_http2_have_the_bounds_of_http1() {
    let pair = pair("http").await;
    let seen = app((pair.server.ip, 8080), Version::HTTP_11, mirror);
    let (one, large, larger) = ("y", "y".repeat(50 << 10), "y".repeat(100 << 10));
    let (ok, too_large) = (StatusCode::OK, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    for (what, name, value, count, expected) in [
        // Some more come to what the application sees, and its own bound is 100.
        ("90 fields", "x", one, 90, ok),
        ("101 fields", "x", one, 101, too_large),
        ("200 fields", "x", one, 200, too_large),
        ("a cookie in 200 crumbs", "cookie", "a=b", 200, ok),
        ("a field of 50 KB", "x", &large, 1, ok),
        ("a field of 100 KB", "x", &larger, 1, too_large),
        ("three of 25 KB", "x", &large[..25 << 10], 3, too_large),
    ] {
        let before = seen.counts().1;
        let mut client = Client::connect(&pair, Version::HTTP_2).await;
        let request = (0..count).fold(Request::get(client.uri("/")), |request, _| request.header(name, value));
        assert_eq!(client.ask(request, nothing()).await.status(), expected, "{what}");
        assert_eq!(seen.counts().1 - before, usize::from(expected == ok), "{what}");
        // The connection serves on.
        assert_eq!(client.get("/").await.0, ok, "{what}, and then another request");
    }
}

/// Preface, settings, and one request without a body.
fn http2_request(fields: &[(&[u8], &[u8])]) -> Vec<u8> {
    let head = frames::frame(frames::HEADERS, frames::END_HEADERS | frames::END_STREAM, 1, &frames::fields(fields));
    [frames::HELLO, &head].concat()
}

/// What becomes of stream 1.
async fn http2_outcome(tcp: &mut TcpStream) -> &'static str {
    let reading = async {
        loop {
            let mut head = [0; 9];
            if tcp.read_exact(&mut head).await.is_err() {
                return "goaway";
            }
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            tcp.read_exact(&mut payload).await.unwrap();
            match head[3] {
                // HEADERS: the static table has 200 at 8 and 400 at 12.
                1 if payload[0] == 0x88 => return "200",
                1 if payload[0] == 0x8c => return "400",
                1 => return "another status",
                3 => return "reset",
                7 => return "goaway",
                _ => {}
            }
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("an outcome")
}

/// An application that closes a connection that rests, at the moment that it is used again.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_goes_out_again_only_where_that_is_safe() {
    let pair = pair("http").await;
    let listener = tokio::net::TcpListener::bind((pair.server.ip, 8080)).await.unwrap();
    let heard = Arc::new(std::sync::Mutex::new(Vec::<String>::new()));
    let seen = heard.clone();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let seen = seen.clone();
            tokio::spawn(async move {
                let request = until(&mut tcp, "\r\n\r\n").await;
                seen.lock().unwrap().push(request.lines().next().unwrap().to_string());
                tcp.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
                // The next one is read and not answered.
                let request = until(&mut tcp, "\r\n\r\n").await;
                seen.lock().unwrap().push(format!("{} (closed)", request.lines().next().unwrap()));
            });
        }
    });
    let mut client = Client::connect(&pair, Version::HTTP_11).await;
    assert_eq!(client.get("/1").await.0, StatusCode::OK);
    assert_eq!(client.get("/2").await.0, StatusCode::OK, "on a new connection");
    let (status, _) = read(client.ask(Request::post("/3"), text("once")).await).await;
    assert_eq!(status, StatusCode::BAD_GATEWAY, "it may have been done");
    assert_eq!(
        *heard.lock().unwrap(),
        ["GET /1 HTTP/1.1", "GET /2 HTTP/1.1 (closed)", "GET /2 HTTP/1.1", "POST /3 HTTP/1.1 (closed)"]
    );
    assert_eq!(pair.mesh.nodes[0].requests.numbers().resent, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_be_reached_is_told_in_the_clients_own_words() {
    let pair = pair("http").await;
    // Nobody listens on the pod's port.
    let mut client = Client::connect(&pair, Version::HTTP_11).await;
    let (status, reason) = client.get("/").await;
    assert_eq!((status, reason.as_str()), (StatusCode::SERVICE_UNAVAILABLE, "far-side-unavailable"));
    let mut grpc = Client::connect(&pair, Version::HTTP_2).await;
    let request =
        Request::post("http://web.shop/a.B/C").header("content-type", "application/grpc").header("te", "trailers");
    let response = grpc.ask(request, nothing()).await;
    assert_eq!((response.status(), response.headers()["grpc-status"].to_str().unwrap()), (StatusCode::OK, "14"));

    pair.mesh.apply("policy.yaml", &super::policy("DENY", "{type: Any}"));
    let (status, reason) = client.get("/").await;
    assert_eq!((status, reason.as_str()), (StatusCode::FORBIDDEN, "far-side-denied"));
    let response =
        grpc.ask(Request::post("http://web.shop/a.B/C").header("content-type", "application/grpc"), nothing()).await;
    assert_eq!(response.headers()["grpc-status"], "7");
}

/// What policy no longer allows ends within the answer; resting connections do not outlive it either.
#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_changes_ends_what_is_open() {
    if needs_two_nodes() {
        return;
    }
    let pair = pair("http").await;
    let seen = app((pair.server.ip, 8080), Version::HTTP_11, mirror);
    let mut client = Client::connect(&pair, Version::HTTP_11).await;
    assert_eq!(client.get("/").await.0, StatusCode::OK);
    pair.mesh.apply("policy.yaml", &super::policy("DENY", "{type: Any}"));
    pair.mesh.nodes[1].until_live("the connection is cut", <[_]>::is_empty).await;
    assert_eq!(client.get("/").await.0, StatusCode::FORBIDDEN);
    assert_eq!(seen.counts().1, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_says_goodbye_and_finishes_what_it_has() {
    let pair = pair("http").await;
    let (release, released) = tokio::sync::watch::channel(false);
    app((pair.server.ip, 8080), Version::HTTP_11, move |request| {
        let mut released = released.clone();
        Box::pin(async move {
            if request.uri() == "/slow" {
                released.wait_for(|released| *released).await.unwrap();
            }
            Response::new(text("done"))
        })
    });
    let mut resting = pair.client.connect(vip()).await.unwrap();
    resting.write_all(b"GET / HTTP/1.1\r\nHost: w\r\n\r\n").await.unwrap();
    until(&mut resting, "done").await;
    let mut busy = pair.client.connect(vip()).await.unwrap();
    busy.write_all(b"GET /slow HTTP/1.1\r\nHost: w\r\n\r\n").await.unwrap();
    let mut two = Client::connect(&pair, Version::HTTP_2).await;
    assert_eq!(two.get("/").await.0, StatusCode::OK);
    pair.mesh.nodes[0].until_live("all three are there", |live| live.len() >= 3).await;

    pair.mesh.nodes[0].leaving.start();
    assert_eq!(hear(&mut resting).await, "", "who rests is let go");
    let Client::Http2(two) = two else { unreachable!() };
    eventually("HTTP/2 has heard GOAWAY", || two.is_closed()).await;
    release.send(true).unwrap();
    let heard = hear(&mut busy).await;
    assert!(heard.contains("connection: close") && heard.ends_with("done"), "{heard}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_leaves_takes_its_connections_along() {
    let pair = pair("http").await;
    app((pair.server.ip, 8080), Version::HTTP_11, mirror);
    let mut client = Client::connect(&pair, Version::HTTP_11).await;
    assert_eq!(client.get("/").await.0, StatusCode::OK);
    pair.mesh.unenrol(&pair.client).await;
    for node in &pair.mesh.nodes {
        node.until_live("nothing is left", <[_]>::is_empty).await;
    }
    pair.client.until_no_records().await;
    pair.server.until_no_records().await;
}

/// The Service's own pod, with policy, and no tunnel.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_asks_itself() {
    let pair = pair("http").await;
    app((pair.client.ip, 8080), Version::HTTP_11, mirror);
    let own = service_yaml("own", "client", "10.96.0.8", 80, 8080)
        .replace("protocol: TCP", "protocol: TCP, appProtocol: http");
    pair.mesh.apply("own.yaml", &own);
    let ask = async || {
        let mut tcp = pair.client.connect((std::net::Ipv4Addr::new(10, 96, 0, 8), 80)).await.unwrap();
        tcp.write_all(b"GET / HTTP/1.1\r\nHost: w\r\nConnection: close\r\n\r\n").await.unwrap();
        hear(&mut tcp).await
    };
    assert!(ask().await.starts_with("HTTP/1.1 200"));
    let policy = super::policy("DENY", "{type: Any}").replace("app: server", "app: client");
    pair.mesh.apply("policy.yaml", &policy);
    let answer = ask().await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn methods_pass_as_they_are() {
    let pair = pair("http").await;
    app((pair.server.ip, 8080), Version::HTTP_11, mirror);
    let mut client = Client::connect(&pair, Version::HTTP_11).await;
    for method in ["DELETE", "PATCH", "OPTIONS", "TRACE", "PURGE"] {
        let request = Request::builder().method(Method::from_bytes(method.as_bytes()).unwrap()).uri("/m");
        let (_, seen) = read(client.ask(request, nothing()).await).await;
        assert!(seen.starts_with(&format!("{method} /m ")), "{seen}");
    }
}

/// Routes decide request by request: matches, filters, backends, and what is answered where none leads on.
#[tokio::test(flavor = "multi_thread")]
async fn routes_lead_requests() {
    let pair = Pair::start().await;
    app((pair.server.ip, 8080), Version::HTTP_11, |request| {
        Box::pin(async move {
            if request.uri() == "/one/slow" {
                std::future::pending::<()>().await;
            }
            mirror(request).await
        })
    });
    app((pair.server.ip, 8081), Version::HTTP_11, mirror);
    let route = "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: split, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: web, port: 80}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /two}}]
    filters:
    - {type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /rewritten}}}
    - {type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: x-added, value: added}]}}
    - {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-answered, value: answered}]}}
    backendRefs: [{name: other, port: 80}]
  - matches: [{path: {type: Exact, value: /moved}}]
    filters: [{type: RequestRedirect, requestRedirect: {hostname: example.com, statusCode: 301}}]
  - matches: [{path: {type: PathPrefix, value: /bad}}]
    filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-answered, value: error}]}}]
    backendRefs: [{name: nowhere, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /one}}]
    timeouts: {request: 700ms}
    backendRefs: [{name: web, port: 80}]
";
    pair.mesh.apply("other.yaml", &service_yaml("other", "server", "10.96.0.9", 80, 8081));
    // The port is one of bytes, until a route is attached.
    pair.mesh.apply("route.yaml", route);
    let mut client = Client::connect(&pair, Version::HTTP_11).await;
    let response = client.ask(Request::get("/two/a?q=1"), nothing()).await;
    assert_eq!(response.headers()["x-answered"], "answered");
    let (status, seen) = read(response).await;
    assert_eq!((status, seen.lines().next()), (StatusCode::OK, Some("GET /rewritten/a?q=1 HTTP/1.1")));
    assert!(seen.contains("x-added: added"), "{seen}");
    let response = client.ask(Request::get("/moved"), nothing()).await;
    assert_eq!(response.status(), StatusCode::MOVED_PERMANENTLY);
    assert!(
        response.headers()["location"].to_str().unwrap().starts_with("http://example.com"),
        "{:?}",
        response.headers()
    );
    let response = client.ask(Request::get("/bad"), nothing()).await;
    assert_eq!(
        (response.status(), &response.headers()["x-answered"]),
        (StatusCode::INTERNAL_SERVER_ERROR, &HeaderValue::from_static("error"))
    );
    assert_eq!(client.get("/one").await.0, StatusCode::OK);
    let (status, reason) = client.get("/one/slow").await;
    assert_eq!((status, reason.as_str()), (StatusCode::GATEWAY_TIMEOUT, "timed-out"));
    let (status, reason) = client.get("/none").await;
    assert_eq!((status, reason.as_str()), (StatusCode::NOT_FOUND, "no-route"));
    let metrics = &pair.mesh.nodes[0].metrics;
    eventually("the route is told", || metrics.encode().contains("http_route=\"shop/split\"")).await;
}
