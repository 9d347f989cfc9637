//! TLS towards servers that are not of the mesh, such as those with the keys of issuers: their certificates end at a root
//! that the machine trusts, or at one of a file. Of an [`super::Svid`] nothing is shown to them.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{CertificateError, ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::pem;
use super::tls::PROVIDER;

/// What is spoken there, unless somebody says otherwise.
const HTTP1: &[u8] = b"http/1.1";
const HTTP2: &[u8] = b"h2";

/// The files of a certificate in a directory, as a Secret of type kubernetes.io/tls has them.
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";

/// Whom to believe, what to show, what to speak.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WebSettings {
    /// PEM: these roots, and none of the machine's.
    pub roots: Option<PathBuf>,
    /// A directory with tls.crt and tls.key (PEM), for servers that ask who comes.
    pub client: Option<PathBuf>,
    /// HTTP/2, and not HTTP/1.1.
    pub is_http2: bool,
}

/// Whom to believe. TLS 1.3, as everywhere.
pub struct WebTls {
    connector: TlsConnector,
    /// Whose roots these are, for people.
    whose: String,
}

impl WebTls {
    /// Reads the machine's roots, or, with a file (PEM), that one beside them.
    ///
    /// # Errors
    /// The file cannot be read, or there is no root at all.
    pub fn load(file: Option<&Path>) -> io::Result<Self> {
        let mut roots = of_the_machine();
        if let Some(file) = file {
            add(&mut roots, file)?;
        }
        let whose = file.map_or(String::new(), |file| format!(" or {}", file.display()));
        Self::new(roots, format!("the machine{whose}"), None, HTTP1)
    }

    /// Reads what the settings name.
    ///
    /// # Errors
    /// A file cannot be read, or there is no root at all.
    pub fn of(settings: &WebSettings) -> io::Result<Self> {
        let WebSettings { roots: file, client, is_http2 } = settings;
        let mut roots = RootCertStore::empty();
        let whose = match file {
            Some(file) => {
                add(&mut roots, file)?;
                file.display().to_string()
            }
            None => {
                roots = of_the_machine();
                "the machine".to_string()
            }
        };
        Self::new(roots, whose, client.as_deref(), if *is_http2 { HTTP2 } else { HTTP1 })
    }

    fn new(roots: RootCertStore, whose: String, client: Option<&Path>, protocol: &[u8]) -> io::Result<Self> {
        if roots.is_empty() {
            return Err(io::Error::other("the machine has no roots, and no file with any is named"));
        }
        let builder = ClientConfig::builder_with_provider(PROVIDER.clone());
        let builder = builder.with_protocol_versions(&[&rustls::version::TLS13]).map_err(io::Error::other)?;
        let builder = builder.with_root_certificates(roots);
        let mut config = match client {
            Some(directory) => {
                let (chain, key) = (certificates(&directory.join(CERTIFICATE))?, key(&directory.join(KEY))?);
                builder.with_client_auth_cert(chain, key).map_err(|error| wrong(directory, &error))?
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![protocol.to_vec()];
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), whose })
    }

    /// Makes a connection one of TLS with the server of this name or IP address.
    ///
    /// # Errors
    /// Its certificate is not that server's, or no root vouches for it; or what TLS says.
    pub async fn connect(&self, tcp: TcpStream, host: &str) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(host.to_string()).map_err(io::Error::other)?;
        self.connector.connect(name, tcp).await.map_err(|error| self.explained(error, host))
    }

    /// With what to look at.
    fn explained(&self, error: io::Error, host: &str) -> io::Error {
        let told = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let Some(rustls::Error::InvalidCertificate(wrong)) = told else { return error };
        let hint = match wrong {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                format!("no root of {} vouches for it", self.whose)
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                format!("it has another name than {host}")
            }
            _ => return error,
        };
        io::Error::new(error.kind(), format!("{error}; {hint}"))
    }
}

/// Some of what a machine has may be of no use; what is left counts.
fn of_the_machine() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

fn add(roots: &mut RootCertStore, file: &Path) -> io::Result<()> {
    certificates(file)?.into_iter().try_for_each(|root| roots.add(root).map_err(|error| wrong(file, &error)))
}

fn certificates(file: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_file_iter(file).map_err(|error| wrong(file, &pem::words(&error)))?;
    let read: Result<Vec<_>, _> = read.collect();
    let read = read.map_err(|error| wrong(file, &pem::words(&error)))?;
    if read.is_empty() {
        return Err(wrong(file, &"no certificate in it"));
    }
    Ok(read)
}

fn key(file: &Path) -> io::Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_file(file).map_err(|error| wrong(file, &pem::words(&error)))
}

fn wrong(file: &Path, error: &dyn Display) -> io::Error {
    io::Error::other(format!("{}: {error}", file.display()))
}
