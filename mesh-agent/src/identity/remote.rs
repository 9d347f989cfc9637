//! An authority that is somewhere else: our controller, istiod or istio-csr, asked by gRPC over TLS.
//!
//! ```text
//! roots file ──(each second)──► state ──► whom the mesh trusts, and whom the authority's own TLS must end at
//! token file ──(each call)────► authorization: Bearer …
//! ```
//! The roots file is the only source of trust: a root that comes with an answer is passed over. Both files may be replaced
//! under the agent at any time, as Kubernetes does with what it mounts.

use std::error::Error;
use std::fmt::{self, Display};
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{CertificateError, ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::client::Grpc;
use tonic::codegen::Service;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::ca::{BoxFuture, CaError, CaState, CertificateAuthority, CertificateRequest, IssuedCertificate};
use super::clock::Clock;
use super::directory;
use super::istio;
use super::local_ca::POLL;
use super::signing::{self, MAX_INTERMEDIATES};
use super::tls::{ALPN, PROVIDER};
use super::trust::MAX_ROOTS;

/// For one call, a connection that has to be made among it: below what `certs` gives a request.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// For name, TCP and TLS of a connection.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two signs of life while an answer is awaited.
pub(super) const KEEPALIVE: Duration = Duration::from_secs(5);
/// Most of a token that is read. Those of service accounts are under two kilobytes.
pub(super) const MAX_TOKEN_BYTES: u64 = 16 << 10;
/// Most of an answer: a chain of RSA certificates is under twenty kilobytes.
pub(super) const MAX_ANSWER_BYTES: usize = 256 << 10;

/// Begins the line of a roots file that names the root at which new certificates end. Whoever publishes roots may leave
/// it out; then certificates follow another root at half their life.
pub const SIGNS: &str = "# signs: ";

/// Where an authority is, `https://HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteAddress {
    /// A name or an IP address; the authority's own certificate must carry it.
    pub host: String,
    /// TCP.
    pub port: u16,
}

/// What an agent needs to ask it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Where it is.
    pub address: RemoteAddress,
    /// PEM: whom the mesh trusts.
    pub roots: PathBuf,
    /// The token that says who this agent is.
    pub token: PathBuf,
}

/// An authority that is somewhere else.
pub struct RemoteCa {
    shared: Arc<Shared>,
}

struct Shared {
    remote: Remote,
    clock: Clock,
    state: watch::Sender<CaState>,
    /// The connection; another one from the moment on that other roots are trusted.
    channel: Mutex<Option<Channel>>,
}

impl FromStr for RemoteAddress {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let authority = text.strip_prefix("https://").ok_or(())?;
        let (host, port) = authority.strip_suffix('/').unwrap_or(authority).rsplit_once(':').ok_or(())?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        ServerName::try_from(host).map_err(drop)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or(())?;
        Ok(Self { host: host.to_string(), port })
    }
}

impl Display for RemoteAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "https://[{}]:{}", self.host, self.port),
            false => write!(f, "https://{}:{}", self.host, self.port),
        }
    }
}

impl RemoteCa {
    /// Reads the roots and connects to nobody yet. A file that is not there yet is trouble in the state, not an error.
    pub fn new(remote: Remote) -> Self {
        Self::with_clock(remote, Clock::system())
    }

    /// As [`RemoteCa::new`], by another clock than the system's.
    pub fn with_clock(remote: Remote, clock: Clock) -> Self {
        let state = watch::Sender::new(CaState::default());
        let shared = Arc::new(Shared { remote, clock, state, channel: Mutex::default() });
        shared.look();
        Self { shared }
    }
}

impl RemoteCa {
    /// For what else is served where certificates are: a new connection, and the `authorization` of a call.
    ///
    /// # Errors
    /// The token cannot be read, or the address is none.
    pub async fn call(&self) -> Result<(Channel, AsciiMetadataValue), CaError> {
        let shared = self.shared.clone();
        let authorization = shared.clone().aside(|shared| shared.authorization()).await?;
        shared.clone().look_aside().await;
        Ok((shared.connect_lazily()?, authorization))
    }
}

impl CertificateAuthority for RemoteCa {
    fn issue(&self, request: CertificateRequest) -> BoxFuture<'_, Result<IssuedCertificate, CaError>> {
        Box::pin(self.shared.clone().issue(request))
    }

    fn state(&self) -> watch::Receiver<CaState> {
        self.shared.state.subscribe()
    }

    fn keep_state(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            loop {
                tokio::time::sleep(POLL).await;
                self.shared.clone().look_aside().await;
            }
        })
    }

    fn describe(&self) -> String {
        self.shared.remote.address.to_string()
    }
}

impl Shared {
    async fn issue(self: Arc<Self>, request: CertificateRequest) -> Result<IssuedCertificate, CaError> {
        let authorization = self.clone().aside(|shared| shared.authorization()).await?;
        let seconds = i64::try_from(request.lifetime.as_secs()).unwrap_or(i64::MAX);
        let asked = istio::CertificateRequest::impersonating(request.id.as_str(), request.csr, seconds);
        let mut asked = tonic::Request::new(asked);
        asked.metadata_mut().insert("authorization", authorization);
        let unavailable = |error: &dyn Display| CaError::Unavailable(error.to_string());
        let mut grpc = Grpc::new(self.channel()?).max_decoding_message_size(MAX_ANSWER_BYTES);
        let call = async {
            grpc.ready().await.map_err(|error| unavailable(&self.explain(&error)))?;
            let codec = tonic_prost::ProstCodec::<istio::CertificateRequest, istio::CertificateResponse>::default();
            let path = http::uri::PathAndQuery::from_static(istio::CREATE_CERTIFICATE);
            grpc.unary(asked, path, codec).await.map_err(|status| self.why(&status))
        };
        let answer = match tokio::time::timeout(CALL_TIMEOUT, call).await {
            Ok(answer) => answer?.into_inner(),
            Err(_) => {
                return Err(unavailable(&format!(
                    "no answer from {} within {} s",
                    self.remote.address,
                    CALL_TIMEOUT.as_secs()
                )));
            }
        };
        // What it signs by may have been published a moment ago.
        self.look_aside().await;
        Ok(IssuedCertificate { chain: chain(&answer.cert_chain)? })
    }

    /// The `authorization` of a call, by the token as it is now.
    fn authorization(&self) -> Result<AsciiMetadataValue, CaError> {
        let file = &self.remote.token;
        let unavailable = |error: &dyn Display| {
            CaError::Unavailable(format!(
                "the token in {} cannot be used: {error}; it is a projected service account token, mounted by the pod",
                file.display()
            ))
        };
        let token = read(file, MAX_TOKEN_BYTES).map_err(|error| unavailable(&error))?;
        let token = token.trim();
        if token.is_empty() {
            return Err(unavailable(&"the file is empty"));
        }
        let mut value: AsciiMetadataValue = format!("Bearer {token}").parse().map_err(|error| unavailable(&error))?;
        value.set_sensitive(true);
        Ok(value)
    }

    fn channel(self: &Arc<Self>) -> Result<Channel, CaError> {
        let mut channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = &*channel {
            return Ok(channel.clone());
        }
        let made = self.connect_lazily()?;
        *channel = Some(made.clone());
        Ok(made)
    }

    fn connect_lazily(self: &Arc<Self>) -> Result<Channel, CaError> {
        let unavailable = |error: &dyn Display| CaError::Unavailable(format!("{}: {error}", self.remote.address));
        // TLS is the connector's business, and only the name of the scheme is left for the library.
        let origin = self.remote.address.to_string();
        let plain = origin.replacen("https://", "http://", 1);
        let endpoint = Endpoint::from_shared(plain).map_err(|error| unavailable(&error))?;
        let endpoint = endpoint
            .origin(origin.parse().map_err(|error| unavailable(&error))?)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE);
        Ok(endpoint.connect_with_connector_lazy(Connector(self.clone())))
    }

    async fn connect(self: Arc<Self>) -> io::Result<TlsStream<TcpStream>> {
        let config = self.client_config().map_err(io::Error::other)?;
        let RemoteAddress { host, port } = &self.remote.address;
        let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
        let connect = async {
            let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"));
            for address in tokio::net::lookup_host((host.as_str(), *port)).await? {
                match TcpStream::connect(address).await {
                    Ok(tcp) => {
                        tcp.set_nodelay(true)?;
                        return TlsConnector::from(Arc::new(config)).connect(name, tcp).await;
                    }
                    Err(error) => last = error,
                }
            }
            Err(last)
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
            Ok(connected) => connected,
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no connection within {} s", CONNECT_TIMEOUT.as_secs()),
            )),
        }
    }

    fn client_config(&self) -> Result<ClientConfig, rustls::Error> {
        let mut roots = RootCertStore::empty();
        for root in &self.state.borrow().roots {
            roots.add(root.clone())?;
        }
        let mut config = ClientConfig::builder_with_details(PROVIDER.clone(), Arc::new(self.clock.clone()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        Ok(config)
    }

    /// Reads the roots and says so in the state; on an error the earlier ones stay trusted.
    fn look(&self) {
        let state = match self.roots() {
            Ok(state) => state,
            Err(error) => {
                let trouble = format!(
                    "the roots in {} cannot be used: {error}; it is the key roots.pem of ConfigMap nodemesh-ca-roots, \
                     which the controller makes",
                    self.remote.roots.display()
                );
                CaState { trouble: Some(trouble), ..self.state.borrow().clone() }
            }
        };
        let mut are_other_roots = false;
        self.state.send_if_modified(|current| {
            let is_news = *current != state;
            if is_news {
                are_other_roots = current.roots != state.roots;
                current.clone_from(&state);
            }
            is_news
        });
        if are_other_roots {
            // Whoever is at the other end now was believed by roots that may be gone.
            *self.channel.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    async fn look_aside(self: Arc<Self>) {
        // What went wrong is in the state.
        let looked = self.aside(|shared| {
            shared.look();
            Ok(())
        });
        let _ = looked.await;
    }

    fn roots(&self) -> Result<CaState, String> {
        let text = directory::read(&self.remote.roots, false).map_err(|error| error.to_string())?;
        let facts = signing::roots("roots", &text).map_err(|error| error.to_string())?;
        let roots = signing::certificates("roots", &text, MAX_ROOTS).map_err(|error| error.to_string())?;
        let signer = text.lines().find_map(|line| line.strip_prefix(SIGNS)).map(str::trim);
        let signer = signer.and_then(|signer| facts.iter().map(|root| root.id).find(|id| id.to_string() == signer));
        Ok(CaState { roots, signer, trouble: None })
    }

    /// Does something that touches files on a thread for that.
    async fn aside<T: Send + 'static>(
        self: Arc<Self>,
        act: impl FnOnce(&Self) -> Result<T, CaError> + Send + 'static,
    ) -> Result<T, CaError> {
        let acted = tokio::task::spawn_blocking(move || act(&self)).await;
        acted.map_err(|error| CaError::Unavailable(error.to_string()))?
    }

    /// What the authority's answer means, and what to do about it.
    fn why(&self, status: &Status) -> CaError {
        let told = if status.message().is_empty() { status.code().description() } else { status.message() };
        match status.code() {
            Code::PermissionDenied | Code::InvalidArgument => CaError::Refused(told.to_string()),
            Code::Unauthenticated => CaError::Refused(format!(
                "{told}; the token in {} must be one of the agent's service account, for the audience that the \
                 authority expects",
                self.remote.token.display()
            )),
            Code::Unimplemented => CaError::Unavailable(format!(
                "{} does not serve istio.v1.auth.IstioCertificateService: --ca names another server",
                self.remote.address
            )),
            _ if status.source().is_some() => CaError::Unavailable(self.explain(status)),
            _ => CaError::Unavailable(told.to_string()),
        }
    }

    /// The innermost of an error of the connection, and what to look at.
    fn explain(&self, error: &(dyn Error + 'static)) -> String {
        let mut innermost: &(dyn Error + 'static) = error;
        let mut hint = None;
        let mut next = Some(error);
        while let Some(error) = next {
            innermost = error;
            hint = hint.or_else(|| self.hint(error));
            // An error that is wrapped in one of io is not its source.
            next = match error.downcast_ref::<io::Error>().and_then(|error| error.get_ref()) {
                Some(inner) => Some(inner as &(dyn Error + 'static)),
                None => error.source(),
            };
        }
        format!("{}: {innermost}{}", self.remote.address, hint.unwrap_or_default())
    }

    fn hint(&self, error: &(dyn Error + 'static)) -> Option<String> {
        if let Some(rustls::Error::InvalidCertificate(wrong)) = error.downcast_ref::<rustls::Error>() {
            let roots = self.remote.roots.display();
            return Some(match wrong {
                CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                    format!("; no root in {roots} vouches for it: is that file of this mesh?")
                }
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                    format!("; its certificate has another name than {}, which --ca says", self.remote.address.host)
                }
                _ => String::new(),
            });
        }
        match error.downcast_ref::<io::Error>()?.kind() {
            io::ErrorKind::ConnectionRefused => Some("; is the controller running?".to_string()),
            io::ErrorKind::TimedOut => Some("; is the controller running, and may this node reach it?".to_string()),
            _ => None,
        }
    }
}

/// Makes the connections of a channel.
struct Connector(Arc<Shared>);

impl Service<http::Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Uri) -> Self::Future {
        let shared = self.0.clone();
        Box::pin(async move { shared.connect().await.map(TokioIo::new) })
    }
}

/// Leaf and intermediates of an answer. A root at its end is left out: it would be trusted by nobody.
fn chain(texts: &[String]) -> Result<Vec<CertificateDer<'static>>, CaError> {
    let bad = |error: &dyn Display| CaError::BadAnswer(error.to_string());
    // The leaf, what is between, the root.
    let most = MAX_INTERMEDIATES + 2;
    if texts.len() > most {
        return Err(bad(&format!("more than {most} certificates")));
    }
    let mut chain = Vec::new();
    for text in texts {
        chain.extend(signing::certificates("cert_chain", text, most).map_err(|error| bad(&error))?);
    }
    while chain.len() > 1 && chain.last().is_some_and(super::tls::is_self_issued) {
        chain.pop();
    }
    Ok(chain)
}

fn read(file: &Path, most: u64) -> io::Result<String> {
    use std::io::Read;

    let mut text = String::new();
    std::fs::File::open(file)?.take(most).read_to_string(&mut text)?;
    Ok(text)
}
