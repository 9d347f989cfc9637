//! The certificates of this node's workloads: fetched when a pod needs one, rotated at half life, forgotten with the
//! last pod.
//!
//! Connections look certificates up without a lock; one task (`run`) does everything that takes time.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, ServerConfig};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::ca::{CaError, CertificateAuthority, CertificateRequest, IssuedCertificate};
use super::tls;
use crate::drain;
use crate::spiffe::SpiffeId;

/// Requests at the authority at once: a node that starts with a hundred service accounts does not flood it.
pub(super) const MAX_REQUESTS_IN_FLIGHT: usize = 16;
/// How long one request may take.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Wait after the first failure; doubled with each further one.
pub(super) const FIRST_RETRY: Duration = Duration::from_millis(500);
/// The longest wait between two tries.
pub(super) const LAST_RETRY: Duration = Duration::from_secs(60);
/// Never sooner than this after the last issue, however short-lived what the authority gives.
pub(super) const SHORTEST_ROTATION: Duration = Duration::from_secs(1);

/// How certificates are asked for.
#[derive(Clone, Debug)]
pub struct Config {
    /// The trust domain of this mesh; no other is accepted from peers.
    pub trust_domain: String,
    /// How long a certificate is asked for.
    pub lifetime: Duration,
}

/// A certificate of a workload, as TLS configurations. The key inside cannot be taken out.
pub struct Svid {
    /// The identity that it proves.
    pub id: SpiffeId,
    /// Grows with every certificate that this process fetched; a tunnel remembers the one it was made with.
    pub generation: u64,
    /// When peers stop taking it.
    pub not_after: SystemTime,
    /// Serial number in hexadecimal.
    pub serial: String,
    /// For dialling other agents.
    pub client: Arc<ClientConfig>,
    /// For accepting tunnels.
    pub server: Arc<ServerConfig>,
}

/// A certificate's state for status pages and metrics.
#[derive(Clone, Debug)]
pub struct SvidStatus {
    /// The identity.
    pub id: SpiffeId,
    /// When the current certificate ends; none before the first was issued.
    pub not_after: Option<SystemTime>,
    /// Serial number in hexadecimal; empty before the first issue.
    pub serial: String,
    /// Generation of the current certificate; 0 before the first issue.
    pub generation: u64,
    /// Why the last try failed; none if it did not.
    pub last_error: Option<String>,
}

/// All identities of this node. Cheap to clone.
#[derive(Clone)]
pub struct Identities {
    shared: Arc<Shared>,
}

struct Shared {
    ca: Arc<dyn CertificateAuthority>,
    config: Config,
    /// What is wanted and how it stands. Written by `want`, `force_rotate` and the rotation; never held across an await.
    table: Mutex<BTreeMap<SpiffeId, Entry>>,
    /// What connections read; replaced as a whole after each change of the table.
    published: ArcSwap<HashMap<SpiffeId, Arc<Svid>>>,
    /// Rings after each publication, for `ready`.
    publications: watch::Sender<u64>,
    /// Wakes `run` when there may be something due.
    wake: Notify,
    generations: AtomicU64,
}

/// ```text
/// due ──start──► in flight ──issued──► waiting for half life ──► due
///                    └──────failed───► waiting for the retry ──► due
/// ```
struct Entry {
    due: Instant,
    in_flight: bool,
    /// Asked to rotate while a request was in flight: that answer is not the one that was meant.
    again: bool,
    failures: u32,
    last_error: Option<String>,
    svid: Option<Arc<Svid>>,
}

impl Svid {
    /// Whether peers would refuse it by now.
    pub fn is_expired(&self) -> bool {
        self.not_after <= SystemTime::now()
    }
}

impl std::fmt::Debug for Svid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Svid").field("id", &self.id).field("generation", &self.generation).finish_non_exhaustive()
    }
}

impl Identities {
    /// No identity is wanted yet.
    pub fn new(ca: Arc<dyn CertificateAuthority>, config: Config) -> Self {
        let shared = Shared {
            ca,
            config,
            table: Mutex::default(),
            published: ArcSwap::default(),
            publications: watch::Sender::new(0),
            wake: Notify::new(),
            generations: AtomicU64::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Says which identities have an enrolled pod on this node: exactly these. New ones are fetched, others forgotten.
    pub fn want(&self, ids: &HashSet<SpiffeId>) {
        let mut table = self.shared.table();
        let before = table.len();
        table.retain(|id, _| ids.contains(id));
        let forgotten = before - table.len();
        for id in ids {
            table.entry(id.clone()).or_insert_with(Entry::new);
        }
        if forgotten > 0 {
            self.shared.publish(&table);
        }
        drop(table);
        self.shared.wake.notify_one();
    }

    /// The current certificate of an identity, if it is wanted here, was issued and has not expired. Takes no lock.
    pub fn svid(&self, id: &SpiffeId) -> Option<Arc<Svid>> {
        self.shared.published.load().get(id).filter(|svid| !svid.is_expired()).cloned()
    }

    /// Waits until an identity has a certificate. Does not return for one that nobody wants.
    pub async fn ready(&self, id: &SpiffeId) -> Arc<Svid> {
        let mut publications = self.shared.publications.subscribe();
        loop {
            publications.mark_unchanged();
            if let Some(svid) = self.svid(id) {
                return svid;
            }
            if publications.changed().await.is_err() {
                // The sender is in `self`, so this does not happen; and if it did, there would be nothing to wait for.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Fetches and rotates until `shutdown` starts.
    pub async fn run(self, mut shutdown: drain::Token) {
        let mut requests = JoinSet::new();
        loop {
            let next = self.start_due(&mut requests);
            tokio::select! {
                () = shutdown.started() => return,
                () = self.shared.wake.notified() => {}
                Some(_) = requests.join_next(), if !requests.is_empty() => {}
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }

    /// Rotates every certificate now.
    pub fn force_rotate(&self) {
        let now = Instant::now();
        for entry in self.shared.table().values_mut() {
            entry.due = now;
            entry.again = entry.in_flight;
        }
        self.shared.wake.notify_one();
    }

    /// How every wanted identity stands, in order.
    pub fn status(&self) -> Vec<SvidStatus> {
        let status = |(id, entry): (&SpiffeId, &Entry)| SvidStatus {
            id: id.clone(),
            not_after: entry.svid.as_ref().map(|svid| svid.not_after),
            serial: entry.svid.as_ref().map(|svid| svid.serial.clone()).unwrap_or_default(),
            generation: entry.svid.as_ref().map_or(0, |svid| svid.generation),
            last_error: entry.last_error.clone(),
        };
        self.shared.table().iter().map(status).collect()
    }

    /// What issues the certificates, for status pages.
    pub fn authority(&self) -> String {
        self.shared.ca.describe()
    }

    /// Starts the requests that are due, within the bound; returns when the next will be.
    fn start_due(&self, requests: &mut JoinSet<()>) -> Instant {
        let now = Instant::now();
        let mut next = now + LAST_RETRY;
        for (id, entry) in self.shared.table().iter_mut().filter(|(_, entry)| !entry.in_flight) {
            if entry.due > now {
                next = next.min(entry.due);
            } else if requests.len() < MAX_REQUESTS_IN_FLIGHT {
                entry.in_flight = true;
                entry.again = false;
                requests.spawn(self.shared.clone().request(id.clone()));
            }
        }
        next
    }
}

impl Entry {
    fn new() -> Self {
        Self { due: Instant::now(), in_flight: false, again: false, failures: 0, last_error: None, svid: None }
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, BTreeMap<SpiffeId, Entry>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, table: &BTreeMap<SpiffeId, Entry>) {
        let svids = table.iter().filter_map(|(id, entry)| Some((id.clone(), entry.svid.clone()?)));
        self.published.store(Arc::new(svids.collect()));
        self.publications.send_modify(|count| *count += 1);
    }

    async fn request(self: Arc<Self>, id: SpiffeId) {
        let outcome = match tokio::time::timeout(REQUEST_TIMEOUT, self.issue(&id)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(CaError::Unavailable(format!("no answer within {} s", REQUEST_TIMEOUT.as_secs()))),
        };
        let mut table = self.table();
        // The last pod may have gone in the meantime; then the certificate is dropped here and the key with it.
        let Some(entry) = table.get_mut(&id) else { return };
        entry.in_flight = false;
        match outcome {
            Ok(svid) => {
                info!(%id, serial = %svid.serial, generation = svid.generation, "certificate issued");
                entry.due = Instant::now() + rotation_delay(svid.not_after);
                entry.failures = 0;
                entry.last_error = None;
                entry.svid = Some(Arc::new(svid));
                if entry.again {
                    entry.due = Instant::now();
                }
                self.publish(&table);
            }
            Err(error) => {
                let delay = retry_delay(entry.failures);
                warn!(%id, %error, retry_in = ?delay, "no certificate");
                entry.failures = entry.failures.saturating_add(1);
                entry.last_error = Some(error.to_string());
                entry.due = Instant::now() + delay;
            }
        }
    }

    async fn issue(&self, id: &SpiffeId) -> Result<Svid, CaError> {
        let (key, csr) = new_key(id)?;
        debug!(%id, "asking for a certificate");
        let request = CertificateRequest { id: id.clone(), csr, lifetime: self.config.lifetime };
        let issued = self.ca.issue(request).await?;
        self.svid(id, key, issued)
    }

    /// Checks what the authority gave, as a peer would, and makes the configurations.
    fn svid(&self, id: &SpiffeId, key: KeyPair, issued: IssuedCertificate) -> Result<Svid, CaError> {
        let bad = |error: &dyn std::fmt::Display| CaError::BadAnswer(error.to_string());
        let named = tls::peer_id(Some(&issued.chain)).map_err(|error| bad(&error))?;
        if named != *id {
            return Err(CaError::BadAnswer(format!("the certificate names {named} instead of {id}")));
        }
        let leaf = issued.chain.first().ok_or_else(|| bad(&"no certificate"))?;
        let (_, not_after, serial) = tls::leaf_facts(leaf).map_err(|error| bad(&error))?;
        let not_after = SystemTime::from(not_after);
        if not_after <= SystemTime::now() {
            return Err(CaError::BadAnswer("the certificate has already expired".to_string()));
        }
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let configs = tls::configs(issued.chain, key, issued.roots, &self.config.trust_domain);
        let tls::Configs { client, server } = configs.map_err(|error| bad(&error))?;
        let generation = self.generations.fetch_add(1, Ordering::Relaxed) + 1;
        Ok(Svid { id: id.clone(), generation, not_after, serial, client, server })
    }
}

fn new_key(id: &SpiffeId) -> Result<(KeyPair, Vec<u8>), CaError> {
    let make = || {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(id.to_string().try_into()?)];
        let csr = params.serialize_request(&key)?.der().to_vec();
        Ok((key, csr))
    };
    make().map_err(|error: rcgen::Error| CaError::Unavailable(format!("making a key: {error}")))
}

/// Half of what is left, give or take a tenth, so that a node's certificates do not all come due at once.
fn rotation_delay(not_after: SystemTime) -> Duration {
    let left = not_after.duration_since(SystemTime::now()).unwrap_or_default();
    left.mul_f64(0.45 + 0.1 * random_fraction()).max(SHORTEST_ROTATION)
}

/// Doubles from the first retry to the last, and takes between half and all of it.
fn retry_delay(failures: u32) -> Duration {
    let full = FIRST_RETRY.saturating_mul(1u32 << failures.min(16)).min(LAST_RETRY);
    full.mul_f64(0.5 + 0.5 * random_fraction())
}

/// Between 0 and 1.
fn random_fraction() -> f64 {
    let mut bytes = [0u8; 2];
    // Without randomness there is no jitter, which is no reason to stop.
    let _ = tls::fill_random(&mut bytes);
    f64::from(u16::from_le_bytes(bytes)) / f64::from(u16::MAX)
}
