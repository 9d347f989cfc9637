//! Which roots peers are checked against, now; and which root each live peer rests on.
//!
//! The bundle is the authority's word and may change at any time. Every handshake reads the one that is current, so a
//! change needs no new TLS configuration. A root that leaves the bundle takes the peers that rest on it with it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use rustls::RootCertStore;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use tokio::sync::watch;

use super::clock::Clock;
use super::tls::{self, PROVIDER, PeerError};
use crate::spiffe::SpiffeId;

/// Most roots of one bundle: a rotation has two or three, and each is tried for each peer.
pub const MAX_ROOTS: usize = 16;

/// Bytes of SHA-256.
const DIGEST_BYTES: usize = 32;
/// How many of them are shown: enough to tell the roots of one mesh apart.
const SHOWN_BYTES: usize = 8;

/// A root, by the SHA-256 of its certificate. Shown by its first eight bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RootId([u8; DIGEST_BYTES]);

impl RootId {
    /// The id of a certificate.
    pub fn of(root: &CertificateDer<'_>) -> Self {
        let mut id = [0; DIGEST_BYTES];
        for (byte, digest) in id.iter_mut().zip(tls::sha256(root).as_ref()) {
            *byte = *digest;
        }
        Self(id)
    }
}

impl fmt::Display for RootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(SHOWN_BYTES).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for RootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A trusted root, for status pages and metrics.
#[derive(Clone, Debug, PartialEq)]
pub struct RootStatus {
    /// Which.
    pub id: RootId,
    /// When it ends.
    pub not_after: SystemTime,
    /// Whether new certificates end at it, as far as the authority says.
    pub is_signer: bool,
    /// Live tunnels, either direction, whose peer's certificate ends at it.
    pub peers: u64,
}

/// The bundle, shared by all that check or show peers. Cheap to clone.
#[derive(Clone)]
pub(super) struct Trust {
    shared: Arc<Shared>,
}

struct Shared {
    clock: Clock,
    bundle: ArcSwap<Bundle>,
    /// Live peers by root; a root is kept while it has any.
    peers: Mutex<BTreeMap<RootId, Arc<AtomicU64>>>,
    /// Counts the bundles.
    versions: watch::Sender<u64>,
}

/// One state of the bundle, ready for handshakes.
pub(super) struct Bundle {
    pub store: RootCertStore,
    /// None while there is no root.
    pub clients: Option<Arc<dyn ClientCertVerifier>>,
    roots: Vec<Root>,
}

struct Root {
    id: RootId,
    not_after: SystemTime,
    certificate: CertificateDer<'static>,
    /// This root alone.
    store: RootCertStore,
}

impl Trust {
    /// Trusts nobody yet.
    pub fn new(clock: Clock) -> Self {
        let shared =
            Shared { clock, bundle: ArcSwap::default(), peers: Mutex::default(), versions: watch::Sender::new(0) };
        Self { shared: Arc::new(shared) }
    }

    /// Trusts exactly these roots from now on. Returns whether that is a change.
    pub fn replace(&self, certificates: &[CertificateDer<'static>]) -> Result<bool, PeerError> {
        let current = self.shared.bundle.load();
        if current.roots.iter().map(|root| &root.certificate).eq(certificates) {
            return Ok(false);
        }
        self.shared.bundle.store(Arc::new(Bundle::new(certificates)?));
        self.shared.versions.send_modify(|version| *version = version.wrapping_add(1));
        Ok(true)
    }

    /// The roots in force.
    pub fn bundle(&self) -> Arc<Bundle> {
        self.shared.bundle.load_full()
    }

    /// The root at which a chain ends, of those that are trusted now, as of a time at which the chain is valid. Leaf
    /// first.
    pub fn anchor(&self, chain: &[CertificateDer<'_>], at: SystemTime) -> Result<RootId, PeerError> {
        self.bundle().anchor(chain, at)
    }

    /// What a peer proved with a chain that the handshake has verified. Leaf first.
    pub fn peer(&self, chain: Option<&[CertificateDer<'_>]>) -> Result<Peer, PeerError> {
        // Before the bundle is read: what changes after that is seen as a change.
        let versions = self.shared.versions.subscribe();
        let (id, expiry) = (tls::peer_id(chain)?, tls::peer_expiry(chain)?);
        let chain: Vec<_> =
            chain.unwrap_or_default().iter().map(|certificate| certificate.clone().into_owned()).collect();
        let since = self.shared.clock.now();
        let place = self.shared.place(self.bundle().anchor(&chain, since)?);
        Ok(Peer { id, expiry, chain, since, place: Mutex::new(Some(place)), versions, trust: self.clone() })
    }

    /// Every trusted root; and those that are no longer trusted while a peer still rests on them.
    pub fn status(&self, signer: Option<RootId>) -> Vec<RootStatus> {
        let peers = self.shared.peers();
        let count = |id: &RootId| peers.get(id).map_or(0, |count| count.load(Ordering::Relaxed));
        let status = |root: &Root| RootStatus {
            id: root.id,
            not_after: root.not_after,
            is_signer: signer == Some(root.id),
            peers: count(&root.id),
        };
        self.bundle().roots.iter().map(status).collect()
    }
}

impl Shared {
    fn peers(&self) -> std::sync::MutexGuard<'_, BTreeMap<RootId, Arc<AtomicU64>>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self, root: RootId) -> Place {
        let mut peers = self.peers();
        peers.retain(|_, count| count.load(Ordering::Relaxed) > 0);
        let count = peers.entry(root).or_default().clone();
        count.fetch_add(1, Ordering::Relaxed);
        Place { root, count }
    }
}

impl Default for Bundle {
    fn default() -> Self {
        Self { store: RootCertStore::empty(), clients: None, roots: Vec::new() }
    }
}

impl Bundle {
    fn new(certificates: &[CertificateDer<'static>]) -> Result<Self, PeerError> {
        if certificates.len() > MAX_ROOTS {
            return Err(PeerError::TooManyRoots);
        }
        let mut bundle = Self::default();
        for certificate in certificates {
            let mut store = RootCertStore::empty();
            store.add(certificate.clone()).map_err(|_| PeerError::Unreadable)?;
            bundle.store.roots.extend(store.roots.iter().cloned());
            let (_, not_after) = tls::root_facts(certificate)?;
            let root = Root {
                id: RootId::of(certificate),
                not_after: not_after.into(),
                certificate: certificate.clone(),
                store,
            };
            bundle.roots.push(root);
        }
        if !bundle.roots.is_empty() {
            let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(bundle.store.clone()), PROVIDER.clone())
                .clear_root_hint_subjects()
                .build();
            bundle.clients = Some(clients.map_err(|_| PeerError::Unreadable)?);
        }
        Ok(bundle)
    }

    fn anchor(&self, chain: &[CertificateDer<'_>], at: SystemTime) -> Result<RootId, PeerError> {
        let (leaf, intermediates) = chain.split_first().ok_or(PeerError::NoCertificate)?;
        let leaf = ParsedCertificate::try_from(leaf).map_err(|_| PeerError::Unreadable)?;
        let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = UnixTime::since_unix_epoch(since);
        let algorithms = PROVIDER.signature_verification_algorithms.all;
        let ends_at = |root: &&Root| {
            verify_server_cert_signed_by_trust_anchor(&leaf, &root.store, intermediates, now, algorithms).is_ok()
        };
        self.roots.iter().find(ends_at).map(|root| root.id).ok_or(PeerError::NotTrusted)
    }
}

/// Who is at the other end of a live tunnel, and for how long that may be relied on.
pub struct Peer {
    /// Who.
    pub id: SpiffeId,
    /// When the certificate that proved it ends.
    expiry: SystemTime,
    chain: Vec<CertificateDer<'static>>,
    /// When it was verified: afterwards only trust is asked again, since its end is judged by `expiry`.
    since: SystemTime,
    /// What it rests on; none when that is no longer trusted.
    place: Mutex<Option<Place>>,
    versions: watch::Receiver<u64>,
    trust: Trust,
}

/// One peer that rests on a root.
struct Place {
    root: RootId,
    count: Arc<AtomicU64>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Peer {
    /// Whether new connections may rely on it: its certificate has not ended, and its root is trusted.
    pub fn is_current(&self) -> bool {
        if self.expiry <= self.trust.shared.clock.now() {
            return false;
        }
        let place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        place.as_ref().is_some_and(|place| self.trust.bundle().roots.iter().any(|root| root.id == place.root))
    }

    /// Returns when no trusted root vouches for this peer any more.
    pub async fn distrusted(&self) {
        let mut versions = self.versions.clone();
        loop {
            if versions.changed().await.is_err() {
                // The sender is in `self.trust`, so this does not happen.
                std::future::pending::<()>().await;
            }
            let place = self.trust.bundle().anchor(&self.chain, self.since).map(|root| self.trust.shared.place(root));
            let is_trusted = place.is_ok();
            *self.place.lock().unwrap_or_else(PoisonError::into_inner) = place.ok();
            if !is_trusted {
                return;
            }
        }
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer").field("id", &self.id).field("expiry", &self.expiry).finish_non_exhaustive()
    }
}
