//! A certificate authority inside the agent: for one machine, tests and demos.
//!
//! Its root is either in memory (one agent) or in a directory that several agents of one machine share. It signs for
//! whoever holds the directory; a controller that checks who asks comes in its place in a real cluster.
//!
//! A key in a directory is read for each certificate and not kept: what is issued is always signed by the root that is
//! there now, and while the directory is away nothing is issued.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

use super::ca::{BoxFuture, CaError, CaState, CertificateAuthority, CertificateRequest, IssuedCertificate};
use super::clock::Clock;
pub use super::directory::Error;
use super::directory::{RootDirectory, SigningRoot, new_root, parse_root};
use super::signing::SigningRequest;
use crate::spiffe;

/// How often the directory is looked at: a rotation of the root is a matter of seconds. Some small files each time.
pub(super) const POLL: Duration = Duration::from_secs(1);

/// The embedded authority.
pub struct LocalCa {
    signer: Arc<Signer>,
}

/// What outlives a call that was given up, on a thread for blocking work.
struct Signer {
    source: Source,
    trust_domain: String,
    clock: Clock,
    state: watch::Sender<CaState>,
}

/// Where the root is.
enum Source {
    Memory(Box<SigningRoot>),
    Directory(RootDirectory),
}

impl LocalCa {
    /// An authority that lives and dies with this process.
    pub fn memory(trust_domain: &str) -> Result<Self, Error> {
        spiffe::check_trust_domain(trust_domain)?;
        let root = parse_root(&new_root(trust_domain)?.together(), trust_domain, &"memory")?;
        Self::new(Source::Memory(Box::new(root)), trust_domain, Clock::system())
    }

    /// An authority whose root is in `path`. The first of several agents creates it, the others read it.
    pub fn directory(path: &Path, trust_domain: &str) -> Result<Self, Error> {
        Self::directory_with_clock(path, trust_domain, Clock::system())
    }

    /// As [`LocalCa::directory`], by another clock than the system's.
    pub fn directory_with_clock(path: &Path, trust_domain: &str, clock: Clock) -> Result<Self, Error> {
        let directory = RootDirectory::new(path, trust_domain)?;
        directory.create()?;
        Self::new(Source::Directory(directory), trust_domain, clock)
    }

    /// The certificate of the root that signs, as it was last seen.
    pub fn root(&self) -> CertificateDer<'static> {
        self.signer.state.borrow().roots.first().cloned().unwrap_or_else(|| CertificateDer::from(Vec::new()))
    }

    fn new(source: Source, trust_domain: &str, clock: Clock) -> Result<Self, Error> {
        let state = watch::Sender::new(CaState::default());
        let signer = Signer { source, trust_domain: trust_domain.to_string(), clock, state };
        signer.look()?;
        Ok(Self { signer: Arc::new(signer) })
    }
}

impl CertificateAuthority for LocalCa {
    fn issue(&self, request: CertificateRequest) -> BoxFuture<'_, Result<IssuedCertificate, CaError>> {
        let signer = self.signer.clone();
        Box::pin(async move {
            let signed = tokio::task::spawn_blocking(move || signer.sign(&request)).await;
            signed.map_err(|error| CaError::Unavailable(error.to_string()))?
        })
    }

    fn state(&self) -> watch::Receiver<CaState> {
        self.signer.state.subscribe()
    }

    fn keep_state(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            loop {
                tokio::time::sleep(POLL).await;
                let signer = self.signer.clone();
                // What went wrong is in the state.
                let _ = tokio::task::spawn_blocking(move || drop(signer.look())).await;
            }
        })
    }

    fn describe(&self) -> String {
        match &self.signer.source {
            Source::Memory(_) => "memory".to_string(),
            Source::Directory(directory) => format!("dir:{}", directory.path().display()),
        }
    }
}

impl Signer {
    /// Reads the roots and says so in the state; on an error the earlier ones stay trusted.
    fn look(&self) -> Result<(), Error> {
        let seen = self.see();
        let state = match &seen {
            Ok(state) => state.clone(),
            Err(error) => CaState { trouble: Some(error.to_string()), ..self.state.borrow().clone() },
        };
        self.state.send_if_modified(|current| {
            let is_news = *current != state;
            if is_news {
                current.clone_from(&state);
            }
            is_news
        });
        seen.map(drop)
    }

    fn see(&self) -> Result<CaState, Error> {
        let now = self.clock.now();
        let (signer, roots) = match &self.source {
            Source::Memory(root) => (root.id(), vec![root.certificate.clone()]),
            Source::Directory(directory) => {
                // In this order: see `directory`.
                let signer = directory.signer()?;
                let roots = directory.trusted(&signer, now)?;
                (signer.id(), roots)
            }
        };
        let trouble = roots.is_empty().then(|| "every root has ended: mesh-agent ca rotate".to_string());
        Ok(CaState { roots, signer: Some(signer), trouble })
    }

    fn sign(&self, request: &CertificateRequest) -> Result<IssuedCertificate, CaError> {
        if request.id.trust_domain() != self.trust_domain {
            return Err(CaError::Refused(format!("{} is not in trust domain {}", request.id, self.trust_domain)));
        }
        let unavailable = |error: Error| CaError::Unavailable(error.to_string());
        match &self.source {
            Source::Memory(root) => self.sign_by(root, request),
            Source::Directory(directory) => {
                let root = directory.signer().map_err(unavailable)?;
                // Whoever signs by a root trusts it, also if it was replaced a moment ago.
                let is_known = {
                    let state = self.state.borrow();
                    state.signer == Some(root.id()) && state.trouble.is_none()
                };
                if !is_known {
                    self.look().map_err(unavailable)?;
                }
                self.sign_by(&root, request)
            }
        }
    }

    fn sign_by(&self, root: &SigningRoot, request: &CertificateRequest) -> Result<IssuedCertificate, CaError> {
        // Nothing but the public key is taken from the signing request: what it asks to be called is not our evidence.
        let asked = SigningRequest::from_pem(&request.csr)?;
        let leaf = asked.sign(&root.issuer, root.not_after, &request.id, request.lifetime, self.clock.now())?;
        Ok(IssuedCertificate { chain: vec![leaf.der().clone()] })
    }
}
