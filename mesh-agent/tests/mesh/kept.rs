//! Connections to applications that are kept between requests, when what they were made with no longer holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use http::{Request, Response, StatusCode, Version};
use mesh_agent::identity::local_ca::LocalCa;
use mesh_agent::identity::{
    BoxFuture, CaError, CaState, CertificateAuthority, CertificateRequest, IssuedCertificate, RootId,
};
use mesh_agent::routing::OutboundMode;
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;

use super::Pair;
use super::requests::{Client, app, mirror, pair, read, speaks, text, until};
use super::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_renewed_ends_the_reuse_of_connections() {
    if needs_two_nodes() {
        return;
    }
    for (app_protocol, spoken) in [("http", Version::HTTP_11), ("kubernetes.io/h2c", Version::HTTP_2)] {
        let pair = pair(app_protocol).await;
        let seen = app((pair.server.ip, 8080), spoken, mirror);
        let mut client = Client::connect(&pair, Version::HTTP_11).await;
        assert_eq!(client.get("/").await.0, StatusCode::OK);
        let identities = &pair.mesh.nodes[0].identities;
        let generation = |of: &Pair| of.mesh.nodes[0].identities.status()[0].generation;
        let before = generation(&pair);
        identities.force_rotate();
        eventually("the client's certificate is renewed", || generation(&pair) > before).await;
        assert_eq!(client.get("/").await.0, StatusCode::OK);
        assert_eq!(seen.counts(), (2, 2), "{spoken:?}");
        pair.mesh.nodes[1].until_live("the earlier connection is closed", |live| live.len() == 1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_drains_does_not_wait_for_connections_that_rest() {
    if needs_two_nodes() {
        return;
    }
    for (app_protocol, spoken) in [("http", Version::HTTP_11), ("kubernetes.io/h2c", Version::HTTP_2)] {
        let pair = pair(app_protocol).await;
        app((pair.server.ip, 8080), spoken, mirror);
        let mut client = Client::connect(&pair, Version::HTTP_11).await;
        assert_eq!(client.get("/").await.0, StatusCode::OK);
        pair.mesh.nodes[1].until_live("the connection rests", |live| live.len() == 1).await;
        pair.mesh.nodes[1].drain.start();
        pair.mesh.nodes[1].until_live("it is let go", <[_]>::is_empty).await;
    }
}

/// On either node: what rests goes, who comes is served, and nothing stays behind.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_leaving_serves_and_keeps_nothing() {
    if needs_two_nodes() {
        return;
    }
    for (app_protocol, spoken) in [("http", Version::HTTP_11), ("kubernetes.io/h2c", Version::HTTP_2)] {
        for leaving in [0, 1] {
            let pair = pair(app_protocol).await;
            app((pair.server.ip, 8080), spoken, mirror);
            assert_eq!(Client::connect(&pair, Version::HTTP_11).await.get("/").await.0, StatusCode::OK);
            pair.mesh.nodes[1].until_live("the connection rests", |live| live.len() == 1).await;
            pair.mesh.nodes[leaving].leaving.start();
            pair.mesh.nodes[1].until_live("it is let go", <[_]>::is_empty).await;
            for _ in 0..3 {
                for version in [Version::HTTP_11, Version::HTTP_2] {
                    let mut client = Client::connect(&pair, version).await;
                    let (status, said) = client.get("/").await;
                    assert_eq!(status, StatusCode::OK, "{version:?} while node {leaving} is leaving: {said}");
                }
            }
            for node in &pair.mesh.nodes {
                node.until_live("nothing stays behind", <[_]>::is_empty).await;
            }
        }
    }
}

/// Two roots, and each identity's choice of them.
struct TwoRoots {
    roots: [LocalCa; 2],
    /// Whether the client's and the server's certificates end at the second root.
    has_switched: [AtomicBool; 2],
    state: watch::Sender<CaState>,
}

impl TwoRoots {
    fn new() -> Arc<Self> {
        let roots = [(); 2].map(|()| LocalCa::memory(TRUST_DOMAIN).unwrap());
        let state = CaState { roots: roots.iter().map(LocalCa::root).collect(), ..CaState::default() };
        Arc::new(Self { roots, has_switched: Default::default(), state: watch::Sender::new(state) })
    }

    /// The certificate of a node's pod ends at the second root from now on.
    async fn switch(&self, pair: &Pair, node: usize) {
        self.has_switched[node].store(true, Ordering::SeqCst);
        let identities = &pair.mesh.nodes[node].identities;
        identities.force_rotate();
        let second = Some(RootId::of(&self.roots[1].root()));
        eventually("the certificate ends at the next root", || identities.status()[0].root == second).await;
    }

    fn withdraw_the_first(&self) {
        self.state.send_modify(|state| state.roots = vec![self.roots[1].root()]);
    }
}

impl CertificateAuthority for TwoRoots {
    fn issue(&self, request: CertificateRequest) -> BoxFuture<'_, Result<IssuedCertificate, CaError>> {
        let node = usize::from(request.id.service_account() == "server");
        self.roots[usize::from(self.has_switched[node].load(Ordering::SeqCst))].issue(request)
    }

    fn state(&self) -> watch::Receiver<CaState> {
        self.state.subscribe()
    }

    fn describe(&self) -> String {
        "two roots".to_string()
    }
}

/// Whoever switches first: when the earlier root goes, no request that may go out again fails. Where the server was
/// first, no tunnel rests on that root any more, and no request fails at all.
#[tokio::test(flavor = "multi_thread")]
async fn a_root_is_withdrawn_under_requests_and_none_fails() {
    if needs_two_nodes() {
        return;
    }
    for (order, app_protocol, spoken) in [
        ([1, 0], "http", Version::HTTP_11),
        ([0, 1], "http", Version::HTTP_11),
        ([1, 0], "kubernetes.io/h2c", Version::HTTP_2),
        ([0, 1], "kubernetes.io/h2c", Version::HTTP_2),
    ] {
        let ca = TwoRoots::new();
        let pair = Pair::start_on(Mesh::start_on(ca.clone(), OutboundMode::AllowAny)).await;
        speaks(&pair, app_protocol);
        app((pair.server.ip, 8080), spoken, mirror);
        let (answered, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
        let caller = async |version: Version| {
            let mut client = Client::connect(&pair, version).await;
            while !is_over.load(Ordering::SeqCst) {
                let (status, said) = client.get("/").await;
                assert_eq!(status, StatusCode::OK, "{version:?} to {spoken:?}, {order:?}: {said}");
                if order == [1, 0] {
                    let uri = client.uri("/");
                    let (status, said) = read(client.ask(Request::post(uri), text("body")).await).await;
                    assert_eq!(status, StatusCode::OK, "POST by {version:?} to {spoken:?}: {said}");
                }
                answered.fetch_add(1, Ordering::SeqCst);
            }
        };
        let more = async |what: &str| {
            let before = answered.load(Ordering::SeqCst);
            eventually(what, || answered.load(Ordering::SeqCst) >= before + 30).await;
        };
        let rotate = async {
            more("requests with the first root").await;
            for node in order {
                ca.switch(&pair, node).await;
                more("requests while both roots are trusted").await;
            }
            ca.withdraw_the_first();
            eventually("one root is trusted", || pair.mesh.nodes.iter().all(|node| node.identities.roots().len() == 1))
                .await;
            more("requests with the next root").await;
            is_over.store(true, Ordering::SeqCst);
        };
        tokio::join!(rotate, caller(Version::HTTP_11), caller(Version::HTTP_11), caller(Version::HTTP_2));
    }
}

/// RFC 9113 8.7: what a goodbye does not name was not touched, and goes out again, whatever its method.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_goodbye_left_out_goes_out_again() {
    let pair = pair("kubernetes.io/h2c").await;
    let listener = tokio::net::TcpListener::bind((pair.server.ip, 8080)).await.unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let count = counted.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                if count == 0 {
                    // SETTINGS, and once a request has come: GOAWAY that names no stream.
                    tcp.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(300)).await;
                    tcp.write_all(&[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).await.unwrap();
                    return tokio::time::sleep(PATIENCE).await;
                }
                let service = hyper::service::service_fn(async |_| {
                    Ok::<_, std::convert::Infallible>(Response::new(text("done")))
                });
                let builder = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
                let _ = builder.serve_connection(hyper_util::rt::TokioIo::new(tcp), service).await;
            });
        }
    });
    let mut tcp = pair.client.connect(super::vip()).await.unwrap();
    tcp.write_all(b"POST / HTTP/1.1\r\nHost: w\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await.unwrap();
    let heard = until(&mut tcp, "\r\n\r\n").await;
    assert!(heard.starts_with("HTTP/1.1 200"), "{heard}");
    assert_eq!(connections.load(Ordering::SeqCst), 2);
}
