//! What the agent asks of a certificate authority. The agent keeps the key: the authority sees a signing request only.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

use super::trust::RootId;
use crate::spiffe::SpiffeId;

/// A boxed future, for a trait that is used as an object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A request for the certificate of one workload identity.
#[derive(Clone, Debug)]
pub struct CertificateRequest {
    /// The identity that the certificate is to carry. The authority decides whether this agent may have it.
    pub id: SpiffeId,
    /// PKCS #10 request in PEM: the public key, and the proof that the agent holds the private one.
    pub csr: String,
    /// How long the certificate is wanted for; the authority may give less.
    pub lifetime: Duration,
}

/// What the authority answered.
#[derive(Clone, Debug)]
pub struct IssuedCertificate {
    /// The leaf, then intermediates; without the root.
    pub chain: Vec<CertificateDer<'static>>,
}

/// What an authority says of itself at any time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CaState {
    /// The roots that peers are checked against. Several of them while one replaces another. An empty list says
    /// nothing and changes nothing.
    pub roots: Vec<CertificateDer<'static>>,
    /// The root at which new certificates end, where the authority knows. When it becomes another one, certificates are
    /// renewed at once.
    pub signer: Option<RootId>,
    /// What is wrong with the authority. When that ends, what failed is tried again at once.
    pub trouble: Option<String>,
}

/// Why no certificate was issued. All of them are tried again, with backoff.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CaError {
    /// The authority cannot be reached or is not working.
    #[error("the certificate authority is not available: {0}")]
    Unavailable(String),
    /// The authority will not issue this certificate to this agent.
    #[error("the certificate authority refused: {0}")]
    Refused(String),
    /// What came back is no certificate for the request.
    #[error("the certificate authority answered with something unusable: {0}")]
    BadAnswer(String),
}

impl CaError {
    /// What it is, in a word. What else it says may name whom the certificate was to be for.
    pub fn label(&self) -> &'static str {
        match self {
            CaError::Unavailable(_) => "unavailable",
            CaError::Refused(_) => "refused",
            CaError::BadAnswer(_) => "unusable",
        }
    }
}

/// Issues certificates for workload identities. May be far away: every call can take long and fail.
pub trait CertificateAuthority: Send + Sync + 'static {
    /// Asks for the certificate of one identity. Roots that come with the answer go into the state first.
    fn issue(&self, request: CertificateRequest) -> BoxFuture<'_, Result<IssuedCertificate, CaError>>;

    /// Whom to trust and how the authority is, now and as it changes.
    fn state(&self) -> watch::Receiver<CaState>;

    /// Keeps the state current, for as long as it is polled. Does not return.
    fn keep_state(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }

    /// What it is, for status pages: such as `memory` or `dir:/var/lib/nodemesh/ca`.
    fn describe(&self) -> String;
}
