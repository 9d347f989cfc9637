//! Keys that are fetched from a server of HTTPS, and what tokens are worth while they are there, gone, or others.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

use bytes::Bytes;
use http::{Request, Response, StatusCode, Version};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::PrivateKeyDer;
use tokio_rustls::TlsAcceptor;

use super::Pair;
use super::requests::{Client, app, mirror, nothing, read};
use super::support::*;

/// Signs the certificates of the servers of this process.
static AUTHORITY: LazyLock<Authority> = LazyLock::new(Authority::new);

struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(ISSUERS_CA.path(), certificate.pem()).unwrap();
        Self { issuer: rcgen::Issuer::new(params, key) }
    }

    fn acceptor(&self, name: &str) -> TlsAcceptor {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![name.to_string()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

/// A server with keys.
struct Server {
    address: SocketAddr,
    answer: Mutex<(StatusCode, String)>,
    fetches: AtomicUsize,
    is_away: AtomicBool,
}

impl Server {
    /// `name` is what its certificate says.
    fn start(name: &str, keys: &[&Signer]) -> Arc<Self> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let server = Arc::new(Self {
            address: listener.local_addr().unwrap(),
            answer: Mutex::new((StatusCode::OK, set(keys))),
            fetches: AtomicUsize::new(0),
            is_away: AtomicBool::new(false),
        });
        let (listener, acceptor) = (tokio::net::TcpListener::from_std(listener).unwrap(), AUTHORITY.acceptor(name));
        let shown = server.clone();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                if shown.is_away.load(Ordering::SeqCst) {
                    continue;
                }
                let (acceptor, shown) = (acceptor.clone(), shown.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(tcp).await else { return };
                    let service = service_fn(move |_: Request<hyper::body::Incoming>| {
                        shown.fetches.fetch_add(1, Ordering::SeqCst);
                        let (status, body) = shown.answer.lock().unwrap().clone();
                        let response = Response::builder().status(status).header("location", "https://127.0.0.1/");
                        let response = response.body(Full::new(Bytes::from(body))).unwrap();
                        async move { Ok::<_, Infallible>(response) }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        server
    }

    fn uri(&self) -> String {
        format!("https://{}/keys", self.address)
    }

    fn says(&self, status: StatusCode, body: String) {
        *self.answer.lock().unwrap() = (status, body);
    }

    fn fetches(&self) -> usize {
        self.fetches.load(Ordering::SeqCst)
    }
}

struct Signer {
    id: &'static str,
    key: jsonwebtoken::EncodingKey,
    jwk: serde_json::Value,
}

impl Signer {
    fn new(id: &'static str) -> Self {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let key = jsonwebtoken::EncodingKey::from_ec_der(&pair.serialize_der());
        let jwk = jsonwebtoken::jwk::Jwk::from_encoding_key(&key, jsonwebtoken::Algorithm::ES256).unwrap();
        let mut jwk = serde_json::to_value(jwk).unwrap();
        jwk["kid"] = id.into();
        Self { id, key, jwk }
    }

    fn sign(&self, id: &str) -> String {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let claims = serde_json::json!({ "iss": "https://issuer", "sub": "alice", "exp": now + 600 });
        let mut header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::ES256);
        header.kid = Some(id.to_string());
        jsonwebtoken::encode(&header, &claims, &self.key).unwrap()
    }

    fn token(&self) -> String {
        self.sign(self.id)
    }
}

fn set(signers: &[&Signer]) -> String {
    let keys: Vec<&serde_json::Value> = signers.iter().map(|signer| &signer.jwk).collect();
    serde_json::json!({ "keys": keys }).to_string()
}

fn believe(pair: &Pair, name: &str, port: u16, uri: &str) {
    pair.mesh.apply(
        &format!("{name}.yaml"),
        &format!(
            "apiVersion: nodemesh.dev/v1alpha1
kind: RequestAuthentication
metadata: {{name: {name}, namespace: shop}}
spec:
  targetRefs: [{{kind: Pod, selector: {{matchLabels: {{app: server}}}}}}]
  ports: [{port}]
  jwtRules: [{{issuer: 'https://issuer', jwksUri: '{uri}'}}]
"
        ),
    );
}

async fn ask(pair: &Pair, token: Option<&str>) -> (u16, String) {
    let mut client = Client::connect(pair, Version::HTTP_11).await;
    let mut request = Request::get("/x").header("connection", "close");
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let (status, body) = read(client.ask(request, nothing()).await).await;
    (status.as_u16(), if status == StatusCode::OK { String::new() } else { body })
}

fn good() -> (u16, String) {
    (200, String::new())
}

fn refused(reason: &str) -> (u16, String) {
    (401, reason.to_string())
}

/// Waits until a token is answered so.
async fn until(pair: &Pair, token: &str, expected: (u16, String)) {
    let waited = tokio::time::timeout(PATIENCE, async {
        loop {
            let seen = ask(pair, Some(token)).await;
            if seen == expected {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("never {expected:?}: {:?}", pair.mesh.nodes[1].keys.status()));
}

/// Fetched once whoever names them; looked for again when a key is missing, and not for each token that says so; kept
/// while the issuer is away.
#[tokio::test(flavor = "multi_thread")]
async fn keys_are_fetched_kept_and_replaced() {
    if needs_two_nodes() {
        return;
    }
    let pair = Pair::start().await;
    app((pair.server.ip, 8080), Version::HTTP_11, mirror);
    let (first, second) = (Signer::new("one"), Signer::new("two"));
    let server = Server::start("127.0.0.1", &[&first]);
    believe(&pair, "here", 8080, &server.uri());
    believe(&pair, "there", 9090, &server.uri());
    // At once: the request waits for the keys that are being fetched.
    until(&pair, &first.token(), good()).await;
    assert_eq!(ask(&pair, Some(&second.sign("one"))).await, refused("token-signature"));
    assert_eq!(ask(&pair, None).await, good());
    assert_eq!(server.fetches(), 1, "one address is fetched once, by the one node that has the pods");

    // The issuer goes over to another key: a token that names it makes the keys be fetched again.
    server.says(StatusCode::OK, set(&[&second]));
    until(&pair, &second.token(), good()).await;
    assert_eq!(ask(&pair, Some(&first.token())).await, refused("token-key"), "what was withdrawn vouches for nothing");
    let (before, asking) = (server.fetches(), std::time::Instant::now());
    for number in 0..40 {
        let (status, _) = ask(&pair, Some(&second.sign(&format!("invented-{number}")))).await;
        assert_eq!(status, 401);
    }
    let more = server.fetches() - before;
    // One each ten seconds (`REFETCH_PAUSE`), and a busy machine may need more than these.
    let most = 2 + asking.elapsed().as_secs() / 10;
    assert!(more as u64 <= most, "40 tokens with invented keys caused {more} fetches");

    // Away, and then answering nonsense: the last good keys stay.
    server.is_away.store(true, Ordering::SeqCst);
    assert_eq!(ask(&pair, Some(&second.token())).await, good());
    server.is_away.store(false, Ordering::SeqCst);
    server.says(StatusCode::OK, "{}".to_string());
    let keys = &pair.mesh.nodes[1].keys;
    let is_failing = || keys.status().iter().any(|status| status.trouble.is_some());
    let waited = tokio::time::timeout(PATIENCE, async {
        while !is_failing() {
            ask(&pair, Some(&first.token())).await;
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("{:?}", keys.status()));
    assert_eq!(ask(&pair, Some(&second.token())).await, good(), "{:?}", keys.status());
    let status = keys.status();
    assert!(status.len() == 1 && status[0].in_force && status[0].age.is_some(), "{status:?}");
    assert!(pair.mesh.nodes[0].keys.status().is_empty(), "the client's node has none of the pods");
}

/// No keys, no token; whatever the reason.
#[tokio::test(flavor = "multi_thread")]
async fn without_keys_tokens_are_refused() {
    let signer = Signer::new("one");
    let (elsewhere, other_name) = (Server::start("127.0.0.1", &[&signer]), Server::start("other.example", &[&signer]));
    elsewhere.says(StatusCode::FOUND, set(&[&signer]));
    let large = Server::start("127.0.0.1", &[&signer]);
    large.says(StatusCode::OK, format!("{}{}", set(&[&signer]), " ".repeat(300 << 10)));
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let pair = Pair::start().await;
    app((pair.server.ip, 8080), Version::HTTP_11, mirror);
    for (uri, trouble) in [
        (elsewhere.uri(), "status"),
        (other_name.uri(), "tls"),
        (large.uri(), "too-large"),
        (format!("https://{closed}/keys"), "connect"),
        (elsewhere.uri().replace("https", "http"), "http-not-allowed"),
        ("https://169.254.169.254/latest/meta-data".to_string(), "address-not-allowed"),
        ("https://[::1]/keys".to_string(), "address-not-allowed"),
        ("https://keys.shop.svc/keys".to_string(), "unresolved"),
    ] {
        believe(&pair, "here", 8080, &uri);
        until(&pair, &signer.token(), refused("token-no-keys")).await;
        let keys = &pair.mesh.nodes[1].keys;
        let is_so = || {
            let status = keys.status();
            status.len() == 1 && status[0].trouble.as_ref().is_some_and(|(label, _)| *label == trouble)
        };
        eventually(&format!("{uri} fails by {trouble}"), is_so).await;
        assert!(!keys.status()[0].in_force);
        assert_eq!(ask(&pair, None).await, good(), "{uri}: who brings no token is nobody's principal");
    }
    let metrics = &pair.mesh.nodes[1].metrics;
    eventually("it is counted", || metrics.encode().contains("error_type=\"token-no-keys\"")).await;
}
