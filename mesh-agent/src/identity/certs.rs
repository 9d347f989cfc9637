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
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, ServerConfig};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use super::ca::{CaError, CaState, CertificateAuthority, CertificateRequest, IssuedCertificate};
use super::clock::Clock;
use super::schedule::{self, FIRST_RETRY, RENEWAL_SPREAD, Schedule, Urgency, Validity};
use super::tls::{self, PeerError};
use super::trust::{Peer, RootId, RootStatus, Trust};
use crate::drain;
use crate::named::named;
use crate::spiffe::SpiffeId;

/// Requests at the authority at once: a node that starts with a hundred service accounts does not flood it.
pub(super) const MAX_REQUESTS_IN_FLIGHT: usize = 16;
/// How long one request may take.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

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
    /// The root at which it ends.
    pub root: RootId,
    /// For dialling other agents.
    pub client: Arc<ClientConfig>,
    /// For accepting tunnels.
    pub server: Arc<ServerConfig>,
    validity: Validity,
    trust: Trust,
    clock: Clock,
}

/// A certificate's state for status pages and metrics.
#[derive(Clone, Debug)]
pub struct SvidStatus {
    /// The identity.
    pub id: SpiffeId,
    /// When the current certificate ends; none before the first was issued.
    pub not_after: Option<SystemTime>,
    /// What is left of it by this node's clock, in seconds; below zero when it has ended.
    pub seconds_left: Option<f64>,
    /// When it was issued, by this node's clock of that time.
    pub issued: Option<SystemTime>,
    /// The root at which it ends.
    pub root: Option<RootId>,
    /// Serial number in hexadecimal; empty before the first issue.
    pub serial: String,
    /// Generation of the current certificate; 0 before the first issue.
    pub generation: u64,
    /// Why the last try failed; none if it did not.
    pub last_error: Option<String>,
    /// Tries that failed since the identity is wanted here.
    pub failures: u64,
}

/// All identities of this node. Cheap to clone.
#[derive(Clone)]
pub struct Identities {
    shared: Arc<Shared>,
}

struct Shared {
    ca: Arc<dyn CertificateAuthority>,
    config: Config,
    clock: Clock,
    trust: Trust,
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
/// due ──start──► in flight ──issued──► waiting for half life, another root, a step of the clock ──► due
///                    └──────failed───► waiting for the retry, or for the end of the authority's trouble ──► due
/// ```
struct Entry {
    schedule: Schedule,
    in_flight: bool,
    /// Asked to rotate while a request was in flight: that answer is not the one that was meant.
    again: bool,
    /// In a row.
    failures: u32,
    /// Since the entry is there.
    all_failures: u64,
    last_error: Option<String>,
    svid: Option<Arc<Svid>>,
}

impl Svid {
    /// Whether peers would refuse it by now.
    pub fn is_expired(&self) -> bool {
        self.not_after <= self.clock.now()
    }

    /// What a peer proved with the chain that it showed in a handshake with these configurations. Leaf first.
    pub fn peer(&self, chain: Option<&[CertificateDer<'_>]>) -> Result<Peer, PeerError> {
        self.trust.peer(chain)
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
        Self::with_clock(ca, config, Clock::system())
    }

    /// As [`Identities::new`], by another clock than the system's.
    pub fn with_clock(ca: Arc<dyn CertificateAuthority>, config: Config, clock: Clock) -> Self {
        let state = ca.state().borrow().clone();
        let shared = Shared {
            ca,
            config,
            trust: Trust::new(clock.clone()),
            clock,
            table: Mutex::default(),
            published: ArcSwap::default(),
            publications: watch::Sender::new(0),
            wake: Notify::new(),
            generations: AtomicU64::new(0),
        };
        shared.heed(&CaState::default(), &state);
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
            // The one that there is may have ended by a step of the clock, a moment ago.
            self.shared.wake.notify_one();
            if publications.changed().await.is_err() {
                // The sender is in `self`, so this does not happen; and if it did, there would be nothing to wait for.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Fetches and rotates until `shutdown` starts.
    pub async fn run(self, mut shutdown: drain::Token) {
        let shared = &self.shared;
        let mut requests = JoinSet::new();
        let mut states = shared.ca.state();
        let mut heeded = states.borrow_and_update().clone();
        // It may have changed since `new`.
        shared.heed(&CaState::default(), &heeded);
        let mut keep_state = shared.ca.keep_state();
        loop {
            let wait = self.start_due(&mut requests);
            tokio::select! {
                () = shutdown.started() => return,
                () = shared.wake.notified() => {}
                Some(_) = requests.join_next(), if !requests.is_empty() => {}
                () = tokio::time::sleep(wait) => {}
                () = &mut keep_state => keep_state = Box::pin(std::future::pending()),
                Ok(()) = states.changed() => {
                    let state = states.borrow_and_update().clone();
                    shared.heed(&heeded, &state);
                    heeded = state;
                }
            }
        }
    }

    /// Rotates every certificate now.
    pub fn force_rotate(&self) {
        let schedule = Schedule::at(Instant::now());
        for entry in self.shared.table().values_mut() {
            entry.schedule = schedule;
            entry.again = entry.in_flight;
        }
        self.shared.wake.notify_one();
    }

    /// How every wanted identity stands, in order.
    pub fn status(&self) -> Vec<SvidStatus> {
        let now = self.shared.clock.now();
        self.shared.table().iter().map(|(id, entry)| entry.status(id, now)).collect()
    }

    /// The roots that peers are checked against.
    pub fn roots(&self) -> Vec<RootStatus> {
        self.shared.trust.status(self.shared.signer())
    }

    /// What is wrong with the authority, as far as it says.
    pub fn trouble(&self) -> Option<String> {
        self.shared.ca.state().borrow().trouble.clone()
    }

    /// What issues the certificates, for status pages.
    pub fn authority(&self) -> String {
        self.shared.ca.describe()
    }

    /// Starts the requests that are due, within the bound; returns how long to wait for the next.
    fn start_due(&self, requests: &mut JoinSet<()>) -> Duration {
        let (wall, mono) = (self.shared.clock.now(), Instant::now());
        let mut wait = schedule::CLOCK_CHECK;
        for (id, entry) in self.shared.table().iter_mut().filter(|(_, entry)| !entry.in_flight) {
            if !entry.schedule.is_due(entry.validity(), wall, mono) {
                wait = wait.min(entry.schedule.wait(wall, mono));
            } else if requests.len() < MAX_REQUESTS_IN_FLIGHT {
                entry.in_flight = true;
                entry.again = false;
                requests.spawn(self.shared.clone().request(id.clone()));
            }
        }
        wait
    }
}

impl Entry {
    fn new() -> Self {
        Self {
            schedule: Schedule::at(Instant::now()),
            in_flight: false,
            again: false,
            failures: 0,
            all_failures: 0,
            last_error: None,
            svid: None,
        }
    }

    fn validity(&self) -> Option<&Validity> {
        self.svid.as_ref().map(|svid| &svid.validity)
    }

    fn status(&self, id: &SpiffeId, now: SystemTime) -> SvidStatus {
        let svid = self.svid.as_deref();
        SvidStatus {
            id: id.clone(),
            not_after: svid.map(|svid| svid.not_after),
            seconds_left: svid.map(|svid| seconds_between(now, svid.not_after)),
            issued: svid.map(|svid| svid.validity.issued),
            root: svid.map(|svid| svid.root),
            serial: svid.map(|svid| svid.serial.clone()).unwrap_or_default(),
            generation: svid.map_or(0, |svid| svid.generation),
            last_error: self.last_error.clone(),
            failures: self.all_failures,
        }
    }

    fn issued(&mut self, svid: Svid) {
        let mono = Instant::now();
        self.schedule = Schedule::issued(&svid.validity, mono, random_fraction());
        self.failures = 0;
        self.last_error = None;
        if self.again {
            self.schedule = Schedule::at(mono);
        }
        self.svid = Some(Arc::new(svid));
    }

    /// Has the certificate renewed soon if it does not end at the root that certificates end at from now on.
    fn follow(&mut self, signer: RootId) {
        // What is under way may have been signed before.
        self.again |= self.in_flight;
        if self.svid.as_ref().is_some_and(|svid| svid.root != signer) {
            let soon = Instant::now() + RENEWAL_SPREAD.mul_f64(random_fraction());
            self.schedule = Schedule::at(self.schedule.retry_at.max(soon));
        }
    }

    fn failed(&mut self, id: &SpiffeId, error: &CaError, now: SystemTime) {
        let left = self.validity().map(|validity| validity.not_after.duration_since(now).unwrap_or_default());
        let delay = schedule::retry_delay(self.failures, left.unwrap_or_default(), random_fraction());
        let (id, reason, error_text) = (named(id), error.label(), named(error));
        match schedule::urgency(self.validity(), now) {
            Urgency::Calm => {
                warn!(id, reason, error = error_text, retry_in = ?delay, expires_in = ?left, "no new certificate");
            }
            Urgency::Soon => error!(
                id, reason, error = error_text, retry_in = ?delay, expires_in = ?left,
                "no new certificate, and the current one ends soon: then new connections are refused"
            ),
            Urgency::Ended => {
                error!(id, reason, error = error_text, retry_in = ?delay, "no certificate: new connections are refused");
            }
        }
        self.failures = self.failures.saturating_add(1);
        self.all_failures = self.all_failures.saturating_add(1);
        self.last_error = Some(error.to_string());
        self.schedule.retry_at = Instant::now() + delay;
    }
}

/// Below zero if `to` has passed.
fn seconds_between(from: SystemTime, to: SystemTime) -> f64 {
    match to.duration_since(from) {
        Ok(left) => left.as_secs_f64(),
        Err(error) => -error.duration().as_secs_f64(),
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

    fn signer(&self) -> Option<RootId> {
        self.ca.state().borrow().signer
    }

    /// Acts on what the authority says of itself, given what it said before.
    fn heed(&self, before: &CaState, state: &CaState) {
        self.follow_roots(&state.roots);
        let recovered = before.trouble.is_some() && state.trouble.is_none();
        match &state.trouble {
            Some(trouble) if before.trouble.as_ref() != Some(trouble) => {
                warn!(authority = self.ca.describe(), %trouble, "the certificate authority is in trouble");
            }
            None if recovered => info!(authority = self.ca.describe(), "the certificate authority is back"),
            Some(_) | None => {}
        }
        let other_signer = state.signer.filter(|signer| before.signer != Some(*signer));
        for entry in self.table().values_mut() {
            if let Some(signer) = other_signer {
                entry.follow(signer);
            }
            if recovered && entry.failures > 0 {
                entry.schedule.retry_at = Instant::now() + FIRST_RETRY.mul_f64(random_fraction());
            }
        }
    }

    fn follow_roots(&self, roots: &[CertificateDer<'static>]) {
        if roots.is_empty() {
            return;
        }
        match self.trust.replace(roots) {
            Ok(false) => {}
            Ok(true) => {
                let roots: Vec<String> = roots.iter().map(|root| RootId::of(root).to_string()).collect();
                info!(roots = roots.join(" "), "peers are checked against these roots from now on");
            }
            Err(error) => error!(%error, "the new trust bundle is unusable; the earlier one stays"),
        }
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
                let (id, generation) = (named(&id), svid.generation);
                info!(id, serial = %svid.serial, generation, root = %svid.root, "certificate issued");
                entry.issued(svid);
                self.publish(&table);
            }
            Err(error) => entry.failed(&id, &error, self.clock.now()),
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
        let (not_before, not_after, serial) = tls::leaf_facts(leaf).map_err(|error| bad(&error))?;
        let (not_before, not_after) = (SystemTime::from(not_before), SystemTime::from(not_after));
        let validity = Validity { not_before, not_after, issued: self.clock.now() };
        if not_after <= validity.issued {
            return Err(CaError::BadAnswer("the certificate has already expired".to_string()));
        }
        // An authority that has just said so trusts its own root: heard here, before the rotation hears of it.
        self.follow_roots(&self.ca.state().borrow().roots);
        let root = self.trust.anchor(&issued.chain, not_before).map_err(|error| bad(&error))?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let configs = tls::configs(issued.chain, key, &self.trust, &self.config.trust_domain, &self.clock);
        let tls::Configs { client, server } = configs.map_err(|error| bad(&error))?;
        let generation = self.generations.fetch_add(1, Ordering::Relaxed) + 1;
        let (id, trust, clock) = (id.clone(), self.trust.clone(), self.clock.clone());
        Ok(Svid { id, generation, not_after, serial, root, client, server, validity, trust, clock })
    }
}

fn new_key(id: &SpiffeId) -> Result<(KeyPair, String), CaError> {
    let make = || {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(id.to_string().try_into()?)];
        let csr = params.serialize_request(&key)?.pem()?;
        Ok((key, csr))
    };
    make().map_err(|error: rcgen::Error| CaError::Unavailable(format!("making a key: {error}")))
}

/// Between 0 and 1.
fn random_fraction() -> f64 {
    let mut bytes = [0u8; 2];
    // Without randomness there is no jitter, which is no reason to stop.
    let _ = tls::fill_random(&mut bytes);
    f64::from(u16::from_le_bytes(bytes)) / f64::from(u16::MAX)
}
