//! Routes of whole connections: TCPRoute, and TLSRoute by the server name that a client asks for.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::support::*;
use super::{Pair, vip};

/// Two Services of the server's pod, `web` on 8080 and `other` on 8081.
async fn pair() -> Pair {
    let pair = Pair::start().await;
    pair.mesh.apply("other.yaml", &service_yaml("other", "server", "10.96.0.9", 80, 8081));
    pair
}

fn route(kind: &str, spec: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: {kind}
metadata: {{name: {}, namespace: shop}}
spec:
  parentRefs: [{{group: '', kind: Service, name: web, port: 80}}]
  {spec}
",
        kind.to_lowercase()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tcp_route_leads_connections() {
    let pair = pair().await;
    answering_app("web", (pair.server.ip, 8080));
    answering_app("other", (pair.server.ip, 8081));
    for (backends, expected) in [
        ("[{name: other, port: 80}]", Some("other:hello")),
        ("[{name: other, port: 80, weight: 0}, {name: web, port: 80}]", Some("web:hello")),
        // What leads nowhere is refused, and does not go to the Service itself.
        ("[{name: nobody, port: 80}]", None),
        ("[{name: web, port: 80, weight: 0}]", None),
    ] {
        pair.mesh.apply("route.yaml", &route("TCPRoute", &format!("rules: [{{backendRefs: {backends}}}]")));
        let heard = pair.client.ask(vip(), "hello").await;
        assert_eq!(heard.as_deref().ok(), expected, "{backends}: {heard:?}");
    }
    let metrics = &pair.mesh.nodes[0].metrics;
    eventually("the refusals are told", || metrics.encode().contains("reason=\"bad-backend\"")).await;
}

/// An application that ends TLS and says its name.
fn tls_app(name: &'static str, address: impl Into<SocketAddr>, names: &[&str]) -> CertificateDer<'static> {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let (certificate, key) = (made.cert.der().clone(), made.signing_key.serialize_der());
    let config = rustls::ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
    let key = PrivateKeyDer::Pkcs8(key.into());
    let config = config.with_no_client_auth().with_single_cert(vec![certificate.clone()], key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = std::net::TcpListener::bind(address.into()).unwrap();
    listener.set_nonblocking(true).unwrap();
    let listener = TcpListener::from_std(listener).unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut tls) = acceptor.accept(tcp).await else { return };
                let _ = tls.write_all(name.as_bytes()).await;
                let _ = tls.shutdown().await;
            });
        }
    });
    certificate
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Who answers a TLS client that asks for a name and checks the certificate.
async fn ask(pair: &Pair, roots: &[CertificateDer<'static>], name: &'static str) -> io::Result<String> {
    let mut store = rustls::RootCertStore::empty();
    store.add_parsable_certificates(roots.iter().cloned());
    let config = rustls::ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(store).with_no_client_auth();
    let tcp = pair.client.connect(vip()).await?;
    let asked = async {
        let mut tls = TlsConnector::from(Arc::new(config)).connect(name.try_into().unwrap(), tcp).await?;
        let mut heard = String::new();
        tls.read_to_string(&mut heard).await?;
        Ok(heard)
    };
    tokio::time::timeout(PATIENCE, asked).await.expect("an answer or a refusal in time")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tls_route_leads_connections_by_server_name() {
    let pair = pair().await;
    let roots = [
        tls_app("web", (pair.server.ip, 8080), &["web.example.com", "deep.web.example.com"]),
        tls_app("other", (pair.server.ip, 8081), &["other.example.com"]),
    ];
    pair.mesh.apply(
        "route.yaml",
        &[
            route("TLSRoute", "hostnames: [other.example.com]\n  rules: [{backendRefs: [{name: other, port: 80}]}]"),
            "---\n".to_string(),
            route("TLSRoute", "hostnames: ['*.example.com']\n  rules: [{backendRefs: [{name: web, port: 80}]}]")
                .replace("name: tlsroute", "name: wide"),
        ]
        .concat(),
    );
    for (name, expected) in [
        ("web.example.com", Some("web")),
        ("deep.web.example.com", Some("web")),
        ("other.example.com", Some("other")),
        ("other.example.org", None),
        // An address is no server name.
        ("10.96.0.7", None),
    ] {
        let heard = ask(&pair, &roots, name).await;
        assert_eq!(heard.as_deref().ok(), expected, "{name}: {heard:?}");
    }
    let heard = pair.client.ask(vip(), "GET / HTTP/1.1\r\nHost: web.example.com\r\n\r\n").await;
    assert!(heard.is_err(), "{heard:?}");
    for reason in ["no-route", "not-tls"] {
        let metrics = &pair.mesh.nodes[0].metrics;
        eventually(reason, || metrics.encode().contains(&format!("reason=\"{reason}\""))).await;
    }
}
