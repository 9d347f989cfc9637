//! A collector with a certificate, that asks for one, and for a header.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::RootCertStore;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::super::tests::Buffer;
use super::super::{Direction, RequestRecord};
use super::tests::counted;
use super::*;

const TOKEN: &str = "Bearer a-secret";

/// Signs certificates; its own is in a file.
struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    root: rcgen::Certificate,
    home: tempfile::TempDir,
}

/// Of the collector, and of somebody else.
static OURS: LazyLock<Authority> = LazyLock::new(Authority::new);
static OTHERS: LazyLock<Authority> = LazyLock::new(Authority::new);

impl Authority {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap();
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("ca.pem"), root.pem()).unwrap();
        let authority = Self { issuer: rcgen::Issuer::new(params, key), root, home };
        let (certificate, key) = authority.sign("agent");
        std::fs::write(authority.file("tls.crt"), certificate.pem()).unwrap();
        std::fs::write(authority.file("tls.key"), key.serialize_pem()).unwrap();
        authority
    }

    fn file(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn sign(&self, name: &str) -> (rcgen::Certificate, rcgen::KeyPair) {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![name.to_string()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// Asks for a certificate of its own.
    fn acceptor(&self, name: &str, protocol: &str) -> TlsAcceptor {
        let (certificate, key) = self.sign(name);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(self.root.der().clone()).unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
            .unwrap();
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }
}

/// Takes what comes with the token; the number of its port.
async fn collect(is_grpc: bool, name: &str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let acceptor = OURS.acceptor(name, if is_grpc { "h2" } else { "http/1.1" });
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let Ok(stream) = acceptor.accept(tcp).await else { continue };
            let stream = TokioIo::new(stream);
            tokio::spawn(async move {
                let answer = service_fn(move |request| answer(request, is_grpc));
                if is_grpc {
                    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(stream, answer).await;
                } else {
                    let _ = hyper::server::conn::http1::Builder::new().serve_connection(stream, answer).await;
                }
            });
        }
    });
    port
}

async fn answer(request: Request<Incoming>, is_grpc: bool) -> Result<Response<Full<Bytes>>, Infallible> {
    let is_known = request.headers().get("authorization").is_some_and(|value| value == TOKEN);
    let scheme = request.uri().scheme_str().map(str::to_string);
    let _ = request.into_body().collect().await;
    let mut response = Response::new(Full::default());
    if is_grpc {
        // Of an error, and of an empty answer that is none, the head says all.
        let status = HeaderValue::from_static(if is_known && scheme.as_deref() == Some("https") { "0" } else { "16" });
        let headers = [("content-type", HeaderValue::from_static("application/grpc")), ("grpc-status", status)];
        let headers = headers.map(|(name, value)| (name.parse().unwrap(), value));
        response.headers_mut().extend(HeaderMap::from_iter(headers));
        if is_known {
            *response.body_mut() = Full::new(Bytes::from_static(&[0; 5]));
        }
    } else if !is_known {
        *response.status_mut() = StatusCode::UNAUTHORIZED;
    }
    Ok(response)
}

/// What became of three spans in two batches, and what the log says of it.
async fn told(collector: &str, credentials: Credentials) -> ([u64; 2], String) {
    use tracing_subscriber::layer::SubscriberExt as _;

    let logged = Buffer::default();
    let layer = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(logged.clone());
    let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));
    let metrics = Metrics::new();
    let settings = Settings {
        collector: collector.parse().unwrap(),
        credentials,
        signals: "traces".parse().unwrap(),
        interval: Duration::from_secs(3600),
        sampling: Sampling::percent(100.0).unwrap(),
    };
    let Telling { spans, exporter, .. } = Telling::new(settings, "node-1", SystemTime::now(), &metrics).unwrap();
    for _ in 0..=MOST_AT_ONCE {
        let span = spans.begin(&mut HeaderMap::new(), || 7);
        spans.end(&RequestRecord {
            span,
            ..RequestRecord::blank(Direction::Inbound, SocketAddr::from(([10, 0, 0, 1], 1)))
        });
    }
    tokio::time::timeout(Duration::from_secs(60), exporter.run(std::future::ready(()))).await.unwrap();
    (["exported", "failed"].map(|result| counted(&metrics, "traces", result)), logged.text())
}

fn file(directory: &Path, name: &str, text: &str) -> Option<PathBuf> {
    let path = directory.join(name);
    std::fs::write(&path, text).unwrap();
    Some(path)
}

#[tokio::test]
async fn a_collector_over_tls_has_it_all_or_the_reason_is_said_once() {
    let home = tempfile::tempdir().unwrap();
    let headers = file(home.path(), "headers", &format!("# for the collector\nAuthorization: {TOKEN}\n"));
    let good = Credentials { ca: Some(OURS.file("ca.pem")), client: Some(OURS.home.path().into()), headers };
    let others = Some(OTHERS.file("ca.pem"));
    // What is said of it, in one way or the other.
    let table: [(&str, &str, Credentials, &[&str]); 8] = [
        ("all is well", "localhost", good.clone(), &[]),
        ("another root", "localhost", Credentials { ca: others, ..good.clone() }, &["/ca.pem vouches for it"]),
        (
            "the machine's roots",
            "localhost",
            Credentials { ca: None, ..good.clone() },
            &["no root of the machine vouches for it", "the machine has no roots"],
        ),
        ("another name", "elsewhere", good.clone(), &["it has another name than localhost"]),
        // The alert comes after the handshake, and may meet a connection that is closed.
        ("no certificate", "localhost", Credentials { client: None, ..good.clone() }, &[""]),
        ("no header", "localhost", Credentials { headers: None, ..good.clone() }, &["401", "Unauthenticated"]),
        (
            "a file that is not there",
            "localhost",
            Credentials { headers: Some(home.path().join("none")), ..good.clone() },
            &["none: No such file"],
        ),
        (
            "a file that is none",
            "localhost",
            Credentials { headers: file(home.path(), "bad", "a-secret\n"), ..good },
            &["bad: line 1 is not of the form"],
        ),
    ];
    for is_grpc in [false, true] {
        for (what, name, credentials, expected) in &table {
            let port = collect(is_grpc, name).await;
            let scheme = if is_grpc { "grpcs" } else { "https" };
            let (numbers, log) = told(&format!("{scheme}://localhost:{port}"), credentials.clone()).await;
            let all = MOST_AT_ONCE as u64 + 1;
            let is_well = expected.is_empty();
            assert_eq!(numbers, if is_well { [all, 0] } else { [0, all] }, "grpc {is_grpc}, {what}: {log}");
            let said = log.matches("does not take telemetry").count();
            assert_eq!(said, usize::from(!is_well), "grpc {is_grpc}, {what}: {log}");
            assert!(is_well || expected.iter().any(|words| log.contains(words)), "grpc {is_grpc}, {what}: {log}");
            assert!(!log.contains("a-secret"), "{log}");
        }
    }
}

/// Files that are replaced count from the next request on, and the next connection.
#[tokio::test]
async fn what_is_replaced_is_read_anew() {
    let home = tempfile::tempdir().unwrap();
    let headers = file(home.path(), "headers", "Authorization: wrong\n");
    let ca = file(home.path(), "ca.pem", &OTHERS.root.pem());
    let credentials = Credentials { ca, client: Some(OURS.home.path().into()), headers };
    let port = collect(false, "localhost").await;
    let collector: Collector = format!("https://localhost:{port}").parse().unwrap();
    let way = Way::to(&collector, &credentials).unwrap();
    let request = ExportTraceServiceRequest::default();
    let send = async || way.send(&collector, &request).await.map(drop).map_err(|refused| format!("{refused:?}"));
    assert!(send().await.unwrap_err().contains("/ca.pem vouches for it"));
    file(home.path(), "ca.pem", &OURS.root.pem());
    assert!(send().await.unwrap_err().contains("401"));
    file(home.path(), "headers", &format!("Authorization: {TOKEN}\n"));
    send().await.unwrap();
}
