//! The keys of issuers whose tokens are believed, where an object says where they are instead of what they are.
//!
//! ```text
//! state ─► which addresses this node's policies name ─► one source each ─► fetch (from the node's namespace) ─► Ring
//!                                                          ▲                                                   │
//!                      a token names a key that is not there └────────────────── workers look keys up ◄──────────┘
//! ```
//! Fetched on the control runtime, never on a worker; a request waits for keys only while they are being fetched, and not
//! for long. What cannot be had leaves tokens unverified, which refuses them.

mod fetch;
pub mod limits;
mod reach;
mod source;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use self::fetch::{Fetched, Trouble};
use self::limits::{KEYS_WAIT, MAX_FETCHES};
use self::source::Source;
use crate::drain::Token;
use crate::named::named;
use crate::state::StateReader;
use crate::tokens::{Keys, KeysUri};

pub use reach::{Allowed, Reach};

/// The keys that were fetched. Clones are the same.
#[derive(Clone, Default)]
pub struct Ring {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    held: ArcSwap<HashMap<KeysUri, Held>>,
    /// Where a key is missing.
    missed: Mutex<BTreeSet<KeysUri>>,
    wake: Notify,
    /// Counts tries that ended.
    ended: watch::Sender<u64>,
}

/// What is held of one address.
#[derive(Clone, Debug)]
struct Held {
    /// The keys, and until when they hold.
    keys: Option<(Keys, Instant)>,
    is_fetching: bool,
    refetch_from: Instant,
    had: Option<Instant>,
    ended: u64,
    good: u64,
    trouble: Option<Trouble>,
}

/// How the keys of an address stand, for people and metrics.
#[derive(Clone, Debug)]
pub struct KeysStatus {
    /// Where they are fetched from.
    pub uri: String,
    /// Whether tokens can be verified by them now.
    pub in_force: bool,
    /// How old they are; None: there have been none yet.
    pub age: Option<Duration>,
    /// Fetches that ended well.
    pub good: u64,
    /// Fetches that failed.
    pub failed: u64,
    /// Why the last one did, if it did: label and words.
    pub trouble: Option<(&'static str, String)>,
}

impl Ring {
    /// The keys of an address, if they are in force.
    pub fn keys(&self, uri: &KeysUri) -> Option<Keys> {
        let held = self.inner.held.load();
        let (keys, ends) = held.get(uri)?.keys.as_ref()?;
        (Instant::now() < *ends).then(|| keys.clone())
    }

    /// A token needs a key that is not there. Returns whether a fetch has ended since, for which it may have to wait;
    /// at once where there was one a moment ago, however often it is asked.
    pub async fn renewed(&self, uri: &KeysUri) -> bool {
        let mut ended = self.inner.ended.subscribe();
        let tries = |ring: &Self| ring.inner.held.load().get(uri).map(|held| held.ended);
        let held = self.inner.held.load().get(uri).cloned();
        let Some(held) = held else { return self.wanted_soon(uri, &mut ended).await };
        if !held.is_fetching {
            if Instant::now() < held.refetch_from {
                return false;
            }
            self.inner.missed.lock().unwrap_or_else(PoisonError::into_inner).insert(uri.clone());
            self.inner.wake.notify_one();
        }
        let has_ended = ended.wait_for(|_| tries(self) != Some(held.ended));
        tokio::time::timeout(KEYS_WAIT, has_ended).await.is_ok_and(|waited| waited.is_ok())
    }

    /// The policy that names the address is so new that nobody has looked at it here.
    async fn wanted_soon(&self, uri: &KeysUri, ended: &mut watch::Receiver<u64>) -> bool {
        let is_there = ended.wait_for(|_| self.inner.held.load().get(uri).is_some_and(|held| held.ended > 0));
        tokio::time::timeout(KEYS_WAIT, is_there).await.is_ok_and(|waited| waited.is_ok())
    }

    /// How the keys of every address stand.
    pub fn status(&self) -> Vec<KeysStatus> {
        let now = Instant::now();
        let held = self.inner.held.load();
        let mut all: Vec<KeysStatus> = held
            .iter()
            .map(|(uri, held)| KeysStatus {
                uri: uri.to_string(),
                in_force: held.keys.as_ref().is_some_and(|(_, ends)| now < *ends),
                age: held.had.map(|had| now.saturating_duration_since(had)),
                good: held.good,
                failed: held.ended.saturating_sub(held.good),
                trouble: held.trouble.as_ref().map(|trouble| (trouble.label(), trouble.to_string())),
            })
            .collect();
        all.sort_unstable_by(|one, other| one.uri.cmp(&other.uri));
        all
    }

    /// Fetches what the policies of this node's pods name, until `shutdown`.
    pub async fn run(self, mut state: StateReader, reach: Reach, mut shutdown: Token) {
        let reach = Arc::new(reach);
        let mut sources: BTreeMap<KeysUri, Source> = BTreeMap::new();
        let mut fetches: JoinSet<(KeysUri, Result<Fetched, Trouble>)> = JoinSet::new();
        let mut seen = None;
        loop {
            let now = Instant::now();
            let world = state.current();
            if seen.as_ref() != Some(world.local_policies_stamp()) {
                seen = Some(world.local_policies_stamp().clone());
                let wanted = world.keys_wanted();
                sources.retain(|uri, _| wanted.contains(uri));
                for uri in wanted {
                    sources.entry(uri).or_insert_with(|| Source::new(now));
                }
            }
            for uri in std::mem::take(&mut *self.inner.missed.lock().unwrap_or_else(PoisonError::into_inner)) {
                if let Some(source) = sources.get_mut(&uri) {
                    source.miss(now);
                }
            }
            for (uri, source) in &mut sources {
                if fetches.len() < MAX_FETCHES && source.due().is_some_and(|due| due <= now) {
                    source.begin(now);
                    let (uri, reach, world) = (uri.clone(), reach.clone(), world.clone());
                    fetches.spawn(async move {
                        let fetched = fetch::fetch(&uri, &reach, &world).await;
                        (uri, fetched)
                    });
                }
            }
            self.hold(&sources, now);
            let has_room = fetches.len() < MAX_FETCHES;
            let next = sources.values().filter_map(Source::due).min().filter(|_| has_room);
            let sleep = tokio::time::sleep_until(next.unwrap_or(now).into());
            tokio::select! {
                () = shutdown.started() => return,
                is_published = state.changed() => if !is_published { return },
                () = self.inner.wake.notified() => {}
                () = sleep, if next.is_some() => {}
                Some(Ok((uri, fetched))) = fetches.join_next() => {
                    if let Some(source) = sources.get_mut(&uri) {
                        told(&uri, source, &fetched);
                        source.end(fetched, Instant::now(), fastrand::f64());
                        self.hold(&sources, Instant::now());
                        self.inner.ended.send_modify(|count| *count = count.wrapping_add(1));
                    }
                }
            }
        }
    }

    fn hold(&self, sources: &BTreeMap<KeysUri, Source>, now: Instant) {
        let held = sources.iter().map(|(uri, source)| {
            let (ended, good) = source.counts();
            let held = Held {
                keys: source.in_force().map(|(keys, ends)| (keys.clone(), ends)),
                is_fetching: source.is_fetching(),
                refetch_from: source.refetch_from(now),
                had: source.age(now).and_then(|age| now.checked_sub(age)),
                ended,
                good,
                trouble: source.trouble().cloned(),
            };
            (uri.clone(), held)
        });
        self.inner.held.store(Arc::new(held.collect()));
    }
}

/// Says once that something is wrong, and once that it is not any more.
fn told(uri: &KeysUri, source: &Source, fetched: &Result<Fetched, Trouble>) {
    match (source.trouble(), fetched) {
        (None, Err(trouble)) => {
            tracing::warn!(uri = named(uri), reason = trouble.label(), "the keys of an issuer cannot be fetched");
        }
        (Some(_), Ok(_)) => tracing::info!(uri = named(uri), "the keys of an issuer are fetched again"),
        (Some(_), Err(trouble)) => tracing::debug!(%uri, "still no keys: {trouble}"),
        (None, Ok(_)) => tracing::debug!(%uri, "keys fetched"),
    }
}
