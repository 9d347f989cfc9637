//! TLS of a server that is not of the data path: the authority's own, towards agents that have no certificate yet. It
//! shows a name of DNS and no identity, so nobody can take it for a workload.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use rcgen::SanType;
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::clock::Clock;
use super::tls::{ALPN, PROVIDER};

/// A certificate of a server, ready for handshakes. TLS 1.3 and HTTP/2 alone; clients show no certificate.
#[derive(Clone)]
pub struct Serving {
    acceptor: TlsAcceptor,
    not_after: SystemTime,
}

impl Serving {
    pub(super) fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        not_after: SystemTime,
        clock: &Clock,
    ) -> Result<Self, rustls::Error> {
        let key = Arc::new(CertifiedKey::from_der(chain, key, &PROVIDER)?);
        let mut config = ServerConfig::builder_with_details(PROVIDER.clone(), Arc::new(clock.clone()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), not_after })
    }

    /// When it ends.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Makes a connection one of TLS.
    ///
    /// # Errors
    /// What TLS says.
    pub async fn accept(&self, tcp: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        self.acceptor.accept(tcp).await
    }
}

/// Names of DNS and IP addresses, as a certificate says them.
pub(super) fn names(names: &[String]) -> Result<Vec<SanType>, rcgen::Error> {
    let name = |name: &String| match name.parse::<IpAddr>() {
        Ok(ip) => Ok(SanType::IpAddress(ip)),
        Err(_) => Ok(SanType::DnsName(name.as_str().try_into()?)),
    };
    names.iter().map(name).collect()
}
