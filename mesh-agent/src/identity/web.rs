//! TLS towards servers that are not of the mesh, such as those with the keys of issuers: their certificates end at a root
//! that the machine trusts, or at one of a file. Of an [`super::Svid`] nothing is shown to them.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::tls::PROVIDER;

/// The only protocol that is spoken there.
const ALPN: &[u8] = b"http/1.1";

/// Whom to believe. TLS 1.3, as everywhere.
pub struct WebTls {
    connector: TlsConnector,
}

impl WebTls {
    /// Reads the machine's roots, or, with a file (PEM), that one beside them.
    ///
    /// # Errors
    /// The file cannot be read, or there is no root at all.
    pub fn load(file: Option<&Path>) -> io::Result<Self> {
        let mut roots = RootCertStore::empty();
        // Some of what a machine has may be of no use; what is left counts.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if let Some(file) = file {
            let wrong = |error: String| io::Error::other(format!("{}: {error}", file.display()));
            let certificates = CertificateDer::pem_file_iter(file).map_err(|error| wrong(error.to_string()))?;
            let before = roots.len();
            for certificate in certificates {
                let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
                roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
            }
            if roots.len() == before {
                return Err(wrong("no certificate in it".to_string()));
            }
        }
        if roots.is_empty() {
            return Err(io::Error::other("the machine has no roots, and no file with any is named"));
        }
        let builder = ClientConfig::builder_with_provider(PROVIDER.clone());
        let builder = builder.with_protocol_versions(&[&rustls::version::TLS13]).map_err(io::Error::other)?;
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Self { connector: TlsConnector::from(Arc::new(config)) })
    }

    /// Makes a connection one of TLS with the server of this name or IP address.
    ///
    /// # Errors
    /// Its certificate is not that server's, or no root vouches for it; or what TLS says.
    pub async fn connect(&self, tcp: TcpStream, host: &str) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(host.to_string()).map_err(io::Error::other)?;
        self.connector.connect(name, tcp).await
    }
}
