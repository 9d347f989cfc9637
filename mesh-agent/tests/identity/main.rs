//! Ring 2: who is let in, and who is not. Every refusal is tried in both directions, against a control that passes.

mod lifecycle;
#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Method, Request};
use mesh_agent::hbone::{Limits, OpenError, ServeError, Timeout};
use mesh_agent::identity::local_ca::LocalCa;
use mesh_agent::identity::{CertificateAuthority, Identities};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};
use support::*;
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

type Change = fn(&mut CertificateParams);

/// What is wrong with a certificate that the right root has signed.
const FORGERIES: &[(&str, Change)] = &[
    ("no URI name", |params| {
        params.subject_alt_names = vec!["localhost".try_into().map(rcgen::SanType::DnsName).unwrap()]
    }),
    ("no name at all", |params| params.subject_alt_names.clear()),
    ("two URI names", |params| params.subject_alt_names.push(uri("spiffe://cluster.local/ns/default/sa/other"))),
    ("the same URI name twice", |params| params.subject_alt_names.push(params.subject_alt_names[0].clone())),
    ("another trust domain", |params| params.subject_alt_names = vec![uri("spiffe://elsewhere/ns/default/sa/peer")]),
    ("another scheme", |params| params.subject_alt_names = vec![uri("https://cluster.local/ns/default/sa/peer")]),
    ("no path", |params| params.subject_alt_names = vec![uri("spiffe://cluster.local")]),
    ("a path of another form", |params| params.subject_alt_names = vec![uri("spiffe://cluster.local/workload/peer")]),
    ("an authority as leaf", |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
    ("may sign certificates", |params| params.key_usages.push(KeyUsagePurpose::KeyCertSign)),
    ("may sign revocations", |params| params.key_usages.push(KeyUsagePurpose::CrlSign)),
    ("no key usage", |params| params.key_usages.clear()),
    ("no digital signature", |params| params.key_usages = vec![KeyUsagePurpose::KeyEncipherment]),
    ("no extended key usage", |params| params.extended_key_usages.clear()),
    ("servers only", |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
    ("clients only", |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]),
    ("expired", |params| params.not_after = OffsetDateTime::now_utc() - Duration::from_secs(5)),
    ("not yet valid", |params| params.not_before = OffsetDateTime::now_utc() + Duration::from_secs(300)),
];

#[test]
fn a_forged_client_is_refused() {
    local(async {
        let ca = TestCa::new();
        let identities = identities(ca.clone(), &["server"]).await;
        let server = Server::start(&identities, "server", Limits::default(), relay()).await;
        let app = app(echo).await;
        let honest = ca.forge(&id("peer"), |_| {});
        assert_eq!(status_for(honest, &server, app).await, Ok(200), "the control is refused");
        for (what, change) in FORGERIES {
            let forged = ca.forge(&id("peer"), change);
            let status = status_for(forged, &server, app).await;
            assert!(status.is_err(), "a client with {what} got {status:?}");
            let ended = server.first_end().await;
            assert!(matches!(ended, Err(ServeError::Tls(_))), "{what}: {ended:?}");
        }
        let other_root = TestCa::new().forge(&id("peer"), |_| {});
        assert!(status_for(other_root, &server, app).await.is_err(), "a client of another root got in");
    });
}

#[test]
fn a_forged_server_is_refused_before_any_request() {
    local(async {
        let ca = TestCa::new();
        let identities = identities(ca.clone(), &["client"]).await;
        let honest = open_to(ca.forge(&id("peer"), |_| {}), &identities).await;
        // The control has no HTTP/2 behind its TLS, so it gets beyond the check and no further.
        assert!(matches!(honest, OpenError::Lost(_)), "the control: {honest:?}");
        for (what, change) in FORGERIES {
            let refused = open_to(ca.forge(&id("peer"), change), &identities).await;
            assert!(matches!(refused, OpenError::Tls(_)), "a server with {what}: {refused:?}");
        }
        let other_root = open_to(TestCa::new().forge(&id("peer"), |_| {}), &identities).await;
        assert!(matches!(other_root, OpenError::Tls(_)), "a server of another root: {other_root:?}");
        let other = open_to(ca.forge(&id("impostor"), |_| {}), &identities).await;
        assert_eq!(other, OpenError::WrongIdentity { expected: id("peer"), presented: id("impostor") });
    });
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    local(async {
        let identities = identities(TestCa::new(), &["server"]).await;
        let server = Server::start(&identities, "server", Limits::default(), relay()).await;
        let mut config = client_builder().with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        assert!(status_with(config, &server, app(echo).await).await.is_err());
        assert!(matches!(server.first_end().await, Err(ServeError::Tls(_))));
    });
}

#[test]
fn a_peer_that_does_not_negotiate_http2_is_refused() {
    local(async {
        let ca = TestCa::new();
        let identities = identities(ca.clone(), &["server"]).await;
        let server = Server::start(&identities, "server", Limits::default(), relay()).await;
        let forged = ca.forge(&id("peer"), |_| {});
        let config = client_builder().with_client_auth_cert(forged.chain, forged.key).unwrap();
        assert!(status_with(config, &server, app(echo).await).await.is_err());
        assert!(matches!(server.first_end().await, Err(ServeError::NotHttp2)));
    });
}

const TLS_1_3: u16 = 0x0304;
const AES_256_GCM: u16 = 0x1302;
const X25519MLKEM768: u16 = 0x11ec;
/// Records, and two of what an alert says (RFC 8446 6).
const ALERT: u8 = 0x15;
const HANDSHAKE: u8 = 0x16;
const HANDSHAKE_FAILURE: u8 = 40;
const PROTOCOL_VERSION: u8 = 70;

/// A client's first words that offer just this. No key comes with a group: who takes the group asks for one.
fn hello(versions: &[u16], suites: &[u16], groups: &[u16]) -> Vec<u8> {
    fn counted(width: usize, bytes: &[u8]) -> Vec<u8> {
        [&bytes.len().to_be_bytes()[size_of::<usize>() - width..], bytes].concat()
    }
    fn words(words: &[u16]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_be_bytes()).collect()
    }
    let extension = |number: u16, bytes: &[u8]| [&number.to_be_bytes()[..], &counted(2, bytes)].concat();
    let mut extensions = vec![
        extension(10, &counted(2, &words(groups))),
        // ECDSA with P-256.
        extension(13, &counted(2, &[4, 3])),
        extension(16, &counted(2, &counted(1, b"h2"))),
        extension(51, &counted(2, &[])),
    ];
    // A client that knows no TLS 1.3 has nothing to say there.
    if !versions.is_empty() {
        extensions.push(extension(43, &counted(1, &words(versions))));
    }
    let head = [&[3, 3][..], &[7; 32], &counted(1, &[]), &counted(2, &words(suites)), &counted(1, &[0])].concat();
    let body = [head, counted(2, &extensions.concat())].concat();
    let handshake = [vec![1], counted(3, &body)].concat();
    [vec![HANDSHAKE, 3, 1], counted(2, &handshake)].concat()
}

/// As scanners ask: one version, one suite, one group at a time.
#[test]
fn a_client_that_offers_only_what_we_do_not_speak_is_refused() {
    /// What is offered, versions, suites, groups, and the alert that answers it; none where the handshake goes on.
    type Offer = (&'static str, &'static [u16], &'static [u16], &'static [u16], Option<u8>);
    const OURS: (&[u16], &[u16], &[u16]) = (&[TLS_1_3], &[AES_256_GCM], &[X25519MLKEM768]);
    const OFFERS: &[Offer] = &[
        ("TLS 1.3 as we speak it", OURS.0, OURS.1, OURS.2, None),
        ("AES-128-GCM", OURS.0, &[0x1301], OURS.2, None),
        ("X25519", OURS.0, OURS.1, &[0x001d], None),
        ("P-256", OURS.0, OURS.1, &[0x0017], None),
        ("P-384", OURS.0, OURS.1, &[0x0018], None),
        ("TLS 1.2, by a client that knows no other", &[], &[0xc02b, 0xc02c], &[0x001d, 0x0017], Some(PROTOCOL_VERSION)),
        ("TLS 1.2, by a client that knows 1.3", &[0x0303], &[0xc02b, 0xc02c], &[0x001d], Some(PROTOCOL_VERSION)),
        ("TLS 1.0 and 1.1", &[0x0301, 0x0302], &[0xc009], &[0x0017], Some(PROTOCOL_VERSION)),
        ("ChaCha20-Poly1305", OURS.0, &[0x1303], OURS.2, Some(HANDSHAKE_FAILURE)),
        ("AES-128-CCM", OURS.0, &[0x1304, 0x1305], OURS.2, Some(HANDSHAKE_FAILURE)),
        ("integrity without secrecy", OURS.0, &[0xc0b4, 0xc0b5], OURS.2, Some(HANDSHAKE_FAILURE)),
        ("P-521", OURS.0, OURS.1, &[0x0019], Some(HANDSHAKE_FAILURE)),
        ("X448", OURS.0, OURS.1, &[0x001e], Some(HANDSHAKE_FAILURE)),
        ("ffdhe2048", OURS.0, OURS.1, &[0x0100], Some(HANDSHAKE_FAILURE)),
    ];
    local(async {
        let identities = identities(TestCa::new(), &["server"]).await;
        let server = Server::start(&identities, "server", Limits::default(), relay()).await;
        for (what, versions, suites, groups, alert) in OFFERS {
            let mut tcp = TcpStream::connect(server.address).await.unwrap();
            tcp.write_all(&hello(versions, suites, groups)).await.unwrap();
            let mut answer = [0; 7];
            tcp.read_exact(&mut answer).await.unwrap();
            match alert {
                Some(alert) => {
                    assert_eq!((answer[0], answer[6]), (ALERT, *alert), "{what} alone: {answer:?}");
                    let ended = server.first_end().await;
                    assert!(matches!(ended, Err(ServeError::Tls(_))), "{what} alone: {ended:?}");
                }
                None => {
                    assert_eq!(answer[0], HANDSHAKE, "{what} alone: {answer:?}");
                    drop(tcp);
                    server.first_end().await.expect_err("nobody finished that handshake");
                }
            }
        }
    });
}

#[test]
fn garbage_is_refused() {
    local(async {
        let identities = identities(TestCa::new(), &["server"]).await;
        let server = Server::start(&identities, "server", Limits::default(), relay()).await;
        let http = b"GET / HTTP/1.1\r\nHost: server\r\n\r\n".to_vec();
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        for (what, bytes) in [("HTTP/1", http), ("HTTP/2 in plain", preface), ("noise", vec![0xff; 4096])] {
            let mut tcp = TcpStream::connect(server.address).await.unwrap();
            tcp.write_all(&bytes).await.unwrap();
            let mut answer = Vec::new();
            let _ = tcp.read_to_end(&mut answer).await;
            // At most an alert.
            assert!(answer.is_empty() || answer[0] == ALERT, "{what} was answered with {answer:?}");
            let ended = server.first_end().await;
            assert!(matches!(ended, Err(ServeError::Tls(_))), "{what}: {ended:?}");
        }
    });
}

/// However far it came, and however slowly it goes on.
#[test]
fn a_handshake_that_stalls_is_timed_out_at_either_end() {
    local(async {
        let limits = Limits { handshake_timeout: Duration::from_secs(1), ..Limits::default() };
        let identities = identities(TestCa::new(), &["client", "server"]).await;
        let server = Server::start(&identities, "server", limits.clone(), relay()).await;
        let hello = hello(&[TLS_1_3], &[AES_256_GCM], &[X25519MLKEM768]);
        let half = hello[..hello.len() / 2].to_vec();
        // (what, said at once, a byte of it at a time)
        for (what, said, trickles) in [
            ("silence", vec![], false),
            ("half a ClientHello", half, false),
            ("a ClientHello that trickles", hello.clone(), true),
            ("a ClientHello, and no more", hello, false),
        ] {
            let mut tcp = TcpStream::connect(server.address).await.unwrap();
            let saying = tokio::task::spawn_local(async move {
                if trickles {
                    for byte in said.iter().cycle() {
                        let Ok(()) = tcp.write_all(&[*byte]).await else { break };
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                } else {
                    tcp.write_all(&said).await.unwrap();
                }
                std::future::pending::<TcpStream>().await
            });
            let ended = tokio::time::timeout(Duration::from_secs(30), server.first_end()).await.expect(what);
            assert!(matches!(ended, Err(ServeError::HandshakeTimeout)), "{what}: {ended:?}");
            saying.abort();
        }
        let svid = identities.svid(&id("client")).unwrap();
        let tcp = TcpStream::connect(server.address).await.unwrap();
        let silent = TlsConnector::from(svid.client.clone()).connect(name(), tcp).await.unwrap();
        let ended =
            tokio::time::timeout(Duration::from_secs(30), server.first_end()).await.expect("TLS without HTTP/2");
        assert!(matches!(ended, Err(ServeError::HandshakeTimeout)), "TLS without HTTP/2: {ended:?}");
        drop(silent);

        let listener = TcpListener::bind(loopback()).await.unwrap();
        let client = Client::new(&identities, "client", "server", listener.local_addr().unwrap(), limits);
        let refused = client.open(server.address).await.err().unwrap();
        assert_eq!(refused, OpenError::TimedOut(Timeout::Handshake));
    });
}

#[test]
fn the_handshake_is_hybrid_tls_1_3_without_tickets() {
    local(async {
        let ca = TestCa::new();
        let identities = identities(ca.clone(), &["server"]).await;
        let server = Server::start(&identities, "server", Limits::default(), relay()).await;
        let svid = identities.svid(&id("server")).unwrap();
        let tcp = TcpStream::connect(server.address).await.unwrap();
        let tls = TlsConnector::from(svid.client.clone()).connect(name(), tcp).await.unwrap();
        let (_, session) = tls.get_ref();
        assert_eq!(session.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
        assert_eq!(session.negotiated_key_exchange_group().unwrap().name(), rustls::NamedGroup::X25519MLKEM768);
        assert_eq!(session.negotiated_cipher_suite().unwrap().suite(), rustls::CipherSuite::TLS13_AES_256_GCM_SHA384);
        assert_eq!(session.alpn_protocol(), Some(&b"h2"[..]));
        assert_eq!(session.tls13_tickets_received(), 0);
        assert!(!svid.client.enable_sni);
    });
}

#[test]
fn agents_share_a_root_in_a_directory() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("nodemesh-ca");
    let start = |_| {
        let path = path.clone();
        std::thread::spawn(move || LocalCa::directory(&path, TRUST_DOMAIN).unwrap())
    };
    let agents: Vec<LocalCa> =
        (0..8).map(start).collect::<Vec<_>>().into_iter().map(|agent| agent.join().unwrap()).collect();
    assert!(agents.iter().all(|agent| agent.root() == agents[0].root()));
    let mode = |file: &str| fs::metadata(path.join(file)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("root.pem"), 0o600);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    assert!(!fs::read_to_string(path.join("root-cert.pem")).unwrap().contains("PRIVATE"));

    let wrong = LocalCa::directory(&path, "elsewhere").err().unwrap();
    assert!(wrong.to_string().contains("spiffe://cluster.local"), "{wrong}");
    let root = fs::read(path.join("root.pem")).unwrap();
    fs::write(path.join("root.pem"), "not a root").unwrap();
    assert!(LocalCa::directory(&path, TRUST_DOMAIN).is_err(), "a root that cannot be read was replaced");
    fs::write(path.join("root.pem"), root).unwrap();

    // Two agents with that root talk to each other.
    let mut agents = agents.into_iter();
    local(async {
        let mut next = || Arc::new(agents.next().unwrap()) as Arc<dyn CertificateAuthority>;
        let far = identities(next(), &["server"]).await;
        let near = identities(next(), &["client"]).await;
        let server = Server::start(&far, "server", Limits::default(), relay()).await;
        let client = Client::new(&near, "client", "server", server.address, Limits::default());
        client.open(app(echo).await).await.unwrap();
    });
}

#[test]
fn an_authority_that_fails_is_asked_again_and_the_reason_is_shown() {
    use mesh_agent::identity::{BoxFuture, CaError, CaState, CertificateRequest, Config, IssuedCertificate};
    struct Flaky(Arc<TestCa>, std::sync::atomic::AtomicU32);
    impl CertificateAuthority for Flaky {
        fn issue(&self, request: CertificateRequest) -> BoxFuture<'_, Result<IssuedCertificate, CaError>> {
            match self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
                0 => Box::pin(async { Err(CaError::Unavailable("not today".to_string())) }),
                // The certificate of somebody else.
                1 => self.0.issue(CertificateRequest { id: id("impostor"), ..request }),
                _ => self.0.issue(request),
            }
        }
        fn state(&self) -> tokio::sync::watch::Receiver<CaState> {
            self.0.state()
        }
        fn describe(&self) -> String {
            "flaky".to_string()
        }
    }
    local(async {
        let ca = Arc::new(Flaky(TestCa::new(), Default::default()));
        let config = Config { trust_domain: TRUST_DOMAIN.to_string(), lifetime: Duration::from_secs(60) };
        let identities = Identities::new(ca, config);
        let drain = mesh_agent::drain::Drain::new();
        let running = tokio::spawn(identities.clone().run(drain.token()));
        identities.want(&[id("client")].into());
        let mut seen = Vec::new();
        while identities.svid(&id("client")).is_none() {
            seen.extend(identities.status().remove(0).last_error);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(seen.iter().any(|error| error.contains("not today")));
        assert!(
            seen.iter().any(|error| error.contains("names spiffe://cluster.local/ns/default/sa/impostor")),
            "{seen:?}"
        );
        let status = identities.status().remove(0);
        assert_eq!((status.last_error, status.generation), (None, 1));
        drain.start();
        tokio::time::timeout(Duration::from_secs(30), running).await.expect("the rotation does not end").unwrap();
    });
}

/// The status that a client with this certificate gets for a CONNECT; an error if it never gets one.
async fn status_for(forged: Forged, server: &Server, app: std::net::SocketAddr) -> Result<u16, String> {
    let mut config = client_builder().with_client_auth_cert(forged.chain, forged.key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    status_with(config, server, app).await
}

async fn status_with(config: ClientConfig, server: &Server, app: std::net::SocketAddr) -> Result<u16, String> {
    let tcp = TcpStream::connect(server.address).await.unwrap();
    let tls = TlsConnector::from(Arc::new(config)).connect(name(), tcp).await.map_err(|error| error.to_string())?;
    let (mut send, connection): (SendRequest<Bytes>, _) =
        h2::client::handshake(tls).await.map_err(|error| error.to_string())?;
    tokio::task::spawn_local(async { drop(connection.await) });
    std::future::poll_fn(|cx| send.poll_ready(cx)).await.map_err(|error| error.to_string())?;
    let request = Request::builder().method(Method::CONNECT).uri(app.to_string()).body(()).unwrap();
    let (response, _body) = send.send_request(request, false).map_err(|error| error.to_string())?;
    response.await.map(|response| response.status().as_u16()).map_err(|error| error.to_string())
}

/// What a pool makes of a server with this certificate that hangs up after the handshake.
async fn open_to(forged: Forged, identities: &Identities) -> OpenError {
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(forged.chain, forged.key);
    let mut config = config.unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let listener = TcpListener::bind(loopback()).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        if let Ok(tls) = TlsAcceptor::from(Arc::new(config)).accept(tcp).await {
            drop(tls);
        }
    });
    let client = Client::new(identities, "client", "peer", address, Limits::default());
    client.open(address).await.err().unwrap()
}

fn client_builder() -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TrustsAnyone))
}

fn name() -> ServerName<'static> {
    ServerName::IpAddress(loopback().ip().into())
}

/// A client that does not care whom it talks to.
#[derive(Debug)]
struct TrustsAnyone;

impl ServerCertVerifier for TrustsAnyone {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider().signature_verification_algorithms.supported_schemes()
    }
}
