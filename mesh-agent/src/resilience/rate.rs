//! Rate limits: GCRA (the leaky bucket as a meter, ITU-T I.371), a bucket per key.
//!
//! A bucket is one number, the time at which it would be full again; to take from it is one compare-and-swap, so workers
//! share it without a lock and the limit holds for the node rather than for each worker.
//!
//! **Keys are bounded.** A limit tells [`RATE_KEYS`] keys apart. A bucket that is full again says no more than one that
//! never was, so its place is free; one that is not full is never taken from its key. A key that finds no place shares one
//! bucket with all others that find none. So who floods a limit with invented keys neither grows memory nor gets his own
//! bucket back, and who comes new meanwhile shares what a single key may take.
//!
//! **Fair.** A fair limit gives each identity its part (rate ÷ identities that were seen lately) and half of the burst is
//! for those who stay within theirs: who asks for more gets what the others leave.
//!
//! **Of the mesh.** A rate of the mesh is split over nodes without any talk between them: node's rate = rate × ready
//! endpoints of the Service on this node ÷ all its ready endpoints ([`share`]). Sums to the rate; assumes that load is
//! spread evenly over endpoints.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::limits::{FAIR_WINDOW, RATE_KEYS, RATE_WAYS};
use super::policy::{RateKey, RateLimit, RateScope, TargetLevel, Traffic};
use super::request::Request;

/// What part of a rate is this node's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// Ready endpoints on this node.
    pub here: u32,
    /// All ready endpoints.
    pub everywhere: u32,
}

impl Default for Split {
    fn default() -> Self {
        Self { here: 1, everywhere: 1 }
    }
}

/// A rate as this node enforces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Nanoseconds in which one more request is allowed.
    interval: u64,
    /// Requests at once.
    burst: u64,
}

/// The rate of a limit on this node; never none at all, so that a node whose endpoint just came is not mute.
pub fn share(limit: &RateLimit, split: Split) -> Quota {
    let (here, everywhere) = match limit.scope {
        RateScope::Node => (1, 1),
        RateScope::Mesh => (u128::from(split.here.max(1)), u128::from(split.everywhere.max(split.here).max(1))),
    };
    let requests = u128::from(limit.requests.max(1)).saturating_mul(here);
    let interval = limit.per.as_nanos().saturating_mul(everywhere).checked_div(requests).unwrap_or(u128::MAX);
    let burst = u128::from(limit.burst.max(1)).saturating_mul(here).div_ceil(everywhere);
    // A bucket must fit into the clock's 584 years, whatever was written: no interval longer than two of them, and a burst
    // only as large as fills half of them.
    let interval = u64::try_from(interval).unwrap_or(u64::MAX).clamp(1, u64::MAX >> 8);
    let most = (u64::MAX >> 2).checked_div(interval).unwrap_or(1);
    Quota { interval, burst: u64::try_from(burst).unwrap_or(u64::MAX).clamp(1, most) }
}

impl Quota {
    fn tolerance(&self) -> u64 {
        self.interval.saturating_mul(self.burst)
    }

    /// The part of one of so many.
    fn part(&self, of: u32) -> Quota {
        let of = u64::from(of.max(1));
        Quota { interval: self.interval.saturating_mul(of), burst: self.burst.checked_div(of).unwrap_or(1).max(1) }
    }
}

/// Where a request stands with a limit that let it pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Requests that could follow at once.
    pub remaining: u64,
}

/// A limit is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limited {
    /// The limit's name.
    pub name: Arc<str>,
    /// Its requests...
    pub requests: u64,
    /// ...in this time.
    pub per: Duration,
    /// When to try again.
    pub retry_after: Duration,
}

/// What stands for one limit of one target, shared by all workers.
pub struct Buckets {
    start: Instant,
    /// All requests together.
    all: AtomicU64,
    /// Of keys that found no place.
    crowd: AtomicU64,
    /// Of keys. Made when the first key comes; [`RATE_KEYS`] slots.
    keys: OnceLock<Box<[Slot]>>,
    /// Differs from process to process: nobody can aim at another's slot.
    hasher: RandomState,
    active: Active,
}

/// The bucket of one key.
#[derive(Default)]
struct Slot {
    /// The key's hash; 0: nobody's yet.
    key: AtomicU64,
    full_at: AtomicU64,
    /// The window in which the key was last seen, counted from 1.
    seen: AtomicU32,
}

/// How many keys there are lately: those of this window, or of the one before if these were more.
#[derive(Default)]
struct Active {
    window: AtomicU32,
    now: AtomicU32,
    before: AtomicU32,
}

impl Buckets {
    /// Full ones.
    pub fn new(start: Instant) -> Self {
        Self {
            start,
            all: AtomicU64::new(0),
            crowd: AtomicU64::new(0),
            keys: OnceLock::new(),
            hasher: RandomState::new(),
            active: Active::default(),
        }
    }

    /// Takes one request from the limit, or says when to come again.
    pub fn take(
        &self,
        limit: &RateLimit,
        split: Split,
        request: &Request<'_>,
        now: Instant,
    ) -> Result<Standing, Limited> {
        let quota = share(limit, split);
        let nanos = self.nanos(now);
        let taken = match &limit.key {
            RateKey::All if limit.fair => self.take_fairly(quota, identity(request), nanos),
            RateKey::All => take(&self.all, nanos, quota, 0),
            RateKey::SourceIdentity => take(self.bucket(identity(request), nanos).0, nanos, quota, 0),
            RateKey::SourceNamespace => {
                let namespace = request.source.map(|id| id.namespace().as_bytes()).unwrap_or_default();
                take(self.bucket(namespace, nanos).0, nanos, quota, 0)
            }
            RateKey::Header(name) => {
                take(self.bucket(request.header(name).unwrap_or_default(), nanos).0, nanos, quota, 0)
            }
        };
        let wait = match taken {
            Ok(remaining) => return Ok(Standing { remaining }),
            Err(wait) => wait,
        };
        let per = limit.per.max(Duration::from_nanos(1));
        let requests = per.as_nanos().checked_div(quota.interval.into()).unwrap_or(1).max(1);
        Err(Limited {
            name: limit.name.clone(),
            requests: u64::try_from(requests).unwrap_or(u64::MAX),
            per,
            retry_after: Duration::from_nanos(wait),
        })
    }

    /// An identity within its part may take all there is; one beyond it only what is above half of the burst.
    fn take_fairly(&self, quota: Quota, identity: &[u8], now: u64) -> Result<u64, u64> {
        let (own, slot) = self.bucket(identity, now);
        let parts = self.active.count(slot, now);
        let part = quota.part(parts);
        let within = take(own, now, part, 0);
        let kept = if within.is_ok() { 0 } else { quota.tolerance() / 2 };
        let taken = take(&self.all, now, quota, kept);
        match (within, taken) {
            (_, Ok(remaining)) => Ok(remaining),
            // What is not given is not owed.
            (Ok(_), Err(wait)) => {
                give_back(own, part);
                Err(wait)
            }
            (Err(own), Err(all)) => Err(own.min(all)),
        }
    }

    /// The bucket of a key, and its slot if it has one of its own.
    ///
    /// Two workers that bring the same new key at one moment may give it two slots when a third key's bucket fills in
    /// between. The first is found from then on; the key had one burst more, once.
    fn bucket(&self, key: &[u8], now: u64) -> (&AtomicU64, Option<&Slot>) {
        let hash = self.hasher.hash_one(key).max(1);
        let slots = self.keys.get_or_init(|| (0..RATE_KEYS).map(|_| Slot::default()).collect());
        let sets = (slots.len() / RATE_WAYS).max(1);
        // The low bits choose the set; the whole hash tells keys apart.
        let set = usize::try_from(hash % sets as u64).unwrap_or(0).saturating_mul(RATE_WAYS);
        let ways = || slots.iter().skip(set).take(RATE_WAYS);
        for _ in 0..RATE_WAYS {
            if let Some(slot) = ways().find(|slot| slot.key.load(Ordering::Relaxed) == hash) {
                return (&slot.full_at, Some(slot));
            }
            let free = ways().find_map(|slot| {
                let key = slot.key.load(Ordering::Relaxed);
                (key == 0 || slot.full_at.load(Ordering::Relaxed) <= now).then_some((slot, key))
            });
            let Some((slot, was)) = free else { break };
            if slot.key.compare_exchange(was, hash, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                slot.seen.store(0, Ordering::Relaxed);
                return (&slot.full_at, Some(slot));
            }
        }
        (&self.crowd, None)
    }

    /// Whether they say no more than new ones would.
    fn are_full(&self, now: Instant) -> bool {
        let now = self.nanos(now);
        let slots = self.keys.get().map(|slots| &**slots).unwrap_or_default();
        let keys = slots.iter().map(|slot| &slot.full_at);
        [&self.all, &self.crowd].into_iter().chain(keys).all(|full_at| full_at.load(Ordering::Relaxed) <= now)
    }

    /// The clock starts a little before the first request, so that 0 is the past.
    fn nanos(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.start).as_nanos();
        // Leaves room above for any tolerance.
        u64::try_from(since).unwrap_or(u64::MAX).min(u64::MAX >> 1).saturating_add(1)
    }
}

/// Callers without identity are one: nobody gets a bucket by having none.
fn identity<'a>(request: &Request<'a>) -> &'a [u8] {
    request.source.map(|id| id.as_str().as_bytes()).unwrap_or_default()
}

impl Active {
    /// Notes that a key is there, and says how many are.
    fn count(&self, slot: Option<&Slot>, now: u64) -> u32 {
        let length = u64::try_from(FAIR_WINDOW.as_nanos()).unwrap_or(u64::MAX).max(1);
        let window = u32::try_from(now / length).unwrap_or(u32::MAX).saturating_add(1);
        let known = self.window.load(Ordering::Relaxed);
        let newer =
            known < window && self.window.compare_exchange(known, window, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if newer {
            let ended = self.now.swap(0, Ordering::Relaxed);
            let follows = known.saturating_add(1) == window;
            self.before.store(if follows { ended } else { 0 }, Ordering::Relaxed);
        }
        if slot.is_none_or(|slot| slot.seen.swap(window, Ordering::Relaxed) != window) {
            // Those without a slot count once a request: they are many, or the table would not be full.
            self.now.fetch_add(1, Ordering::Relaxed);
        }
        let most = u32::try_from(RATE_KEYS).unwrap_or(u32::MAX);
        self.now.load(Ordering::Relaxed).max(self.before.load(Ordering::Relaxed)).clamp(1, most)
    }
}

/// Takes one request from a bucket, of which `kept` nanoseconds' worth must stay. Ok: how many could follow at once. Err:
/// nanoseconds to wait.
fn take(bucket: &AtomicU64, now: u64, quota: Quota, kept: u64) -> Result<u64, u64> {
    let most = quota.tolerance().saturating_sub(kept).max(quota.interval);
    let after = |full_at: u64| full_at.max(now).saturating_add(quota.interval);
    let fits = |full_at: u64| Some(after(full_at)).filter(|after| after.saturating_sub(now) <= most);
    // One number, and no other memory hangs on it.
    match bucket.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
        Ok(before) => {
            let used = after(before).saturating_sub(now);
            Ok(most.saturating_sub(used).checked_div(quota.interval).unwrap_or(0))
        }
        Err(full_at) => Err(after(full_at).saturating_sub(now).saturating_sub(most)),
    }
}

fn give_back(bucket: &AtomicU64, quota: Quota) {
    let less = |full_at: u64| Some(full_at.saturating_sub(quota.interval));
    let _always = bucket.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
}

/// The rate limits of the requests of one route to one Service, ready to be asked. Made by a worker when a policy changed.
#[derive(Default)]
pub struct Gate {
    limits: Vec<(Arc<Buckets>, RateLimit)>,
}

impl Gate {
    /// The limits of both policies. `service` and `route` name the targets, such as `Service shop/web`.
    pub fn new(rates: &Rates, traffic: &Traffic, service: &str, route: &str, now: Instant) -> Self {
        let of = |(level, limit): (TargetLevel, &RateLimit)| {
            let target = match level {
                TargetLevel::Service => service,
                TargetLevel::Route => route,
            };
            (rates.of(target, &limit.name, now), limit.clone())
        };
        let mut limits: Vec<(Arc<Buckets>, RateLimit)> = traffic.rate_limits().map(of).collect();
        // Keys first: who is over his own limit takes nothing from what all share.
        limits.sort_by_key(|(_, limit)| limit.key == RateKey::All);
        Self { limits }
    }

    /// Takes the request from every limit that is about it. Where one refuses, those before it were taken from.
    pub fn check(&self, split: Split, request: &Request<'_>, now: Instant) -> Result<(), Limited> {
        let about = self.limits.iter().filter(|(_, limit)| limit.when.is_about(request));
        about.map(|(buckets, limit)| buckets.take(limit, split, request, now)).try_for_each(|taken| taken.map(|_| ()))
    }

    /// Whether there is anything to ask.
    pub fn is_empty(&self) -> bool {
        self.limits.is_empty()
    }
}

/// The buckets of the node. A changed rate goes on with the same buckets, and buckets that nobody holds stay until they are
/// full again: an agent that forgets and remembers a limit gives nothing away.
#[derive(Clone, Default)]
pub struct Rates {
    held: Arc<Mutex<Held>>,
}

#[derive(Default)]
struct Held {
    buckets: HashMap<(String, Arc<str>), Arc<Buckets>>,
    sweep_at: usize,
}

impl Rates {
    /// The buckets of a limit of a target. Locked for this look alone, never for a request.
    pub fn of(&self, target: &str, limit: &Arc<str>, now: Instant) -> Arc<Buckets> {
        // Nothing that can panic is done under the lock.
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (target.to_string(), limit.clone());
        if let Some(buckets) = held.buckets.get(&key) {
            return buckets.clone();
        }
        if held.buckets.len() >= held.sweep_at {
            held.buckets.retain(|_, buckets| Arc::strong_count(buckets) > 1 || !buckets.are_full(now));
            held.sweep_at = held.buckets.len().saturating_mul(2).max(64);
        }
        let buckets = Arc::new(Buckets::new(now));
        held.buckets.insert(key, buckets.clone());
        buckets
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderName, HeaderValue};
    use proptest::prelude::*;

    use super::*;
    use crate::resilience::policy::{RequestMatch, Settings};
    use crate::resilience::request::tests::get;
    use crate::spiffe::SpiffeId;

    const X_USER: HeaderName = HeaderName::from_static("x-user");

    fn limit(requests: u32, burst: u32, key: RateKey) -> RateLimit {
        RateLimit {
            name: "limit".into(),
            requests,
            per: Duration::from_secs(1),
            burst,
            key,
            fair: false,
            scope: RateScope::Node,
            when: RequestMatch::default(),
        }
    }

    fn id(account: &str) -> SpiffeId {
        SpiffeId::new("cluster.local", "shop", account).unwrap()
    }

    fn user(name: &str) -> HeaderMap {
        HeaderMap::from_iter([(X_USER, HeaderValue::from_str(name).unwrap())])
    }

    /// How many of so many requests at one moment pass.
    fn pass(buckets: &Buckets, limit: &RateLimit, request: &Request<'_>, now: Instant, asked: u32) -> u32 {
        (0..asked).filter(|_| buckets.take(limit, Split::default(), request, now).is_ok()).count() as u32
    }

    #[test]
    fn a_burst_then_the_rate() {
        let (start, headers) = (Instant::now(), HeaderMap::new());
        let (buckets, limit, request) = (Buckets::new(start), limit(10, 5, RateKey::All), get("/", &headers));
        assert_eq!(pass(&buckets, &limit, &request, start, 20), 5);
        let refused = buckets.take(&limit, Split::default(), &request, start).unwrap_err();
        assert_eq!((refused.requests, refused.per), (10, Duration::from_secs(1)));
        assert_eq!(refused.retry_after, Duration::from_millis(100));
        assert_eq!(pass(&buckets, &limit, &request, start + Duration::from_millis(99), 5), 0);
        assert_eq!(pass(&buckets, &limit, &request, start + Duration::from_millis(200), 5), 2);
        let later = start + Duration::from_secs(60);
        let standing = buckets.take(&limit, Split::default(), &request, later);
        assert_eq!(standing, Ok(Standing { remaining: 4 }));
        assert_eq!(pass(&buckets, &limit, &request, start, 20), 0, "a clock that goes back gives nothing away");
    }

    #[test]
    fn slow_rates_are_slow() {
        let (start, headers) = (Instant::now(), HeaderMap::new());
        let request = get("/", &headers);
        let day = Duration::from_secs(24 * 3600);
        for (requests, per, burst) in [(2, Duration::from_secs(3600), 2), (1, day, 1), (1, day, u32::MAX)] {
            let (buckets, limit) = (Buckets::new(start), RateLimit { per, ..limit(requests, burst, RateKey::All) });
            let asked = burst.min(3);
            assert_eq!(pass(&buckets, &limit, &request, start, asked), asked.min(burst));
            let Err(refused) = buckets.take(&limit, Split::default(), &request, start) else {
                assert!(burst > 3, "{limit:?}");
                continue;
            };
            assert_eq!((refused.requests, refused.retry_after), (requests.into(), per / requests));
            assert_eq!(pass(&buckets, &limit, &request, start + per / requests * 9 / 10, 5), 0, "{limit:?}");
            assert_eq!(pass(&buckets, &limit, &request, start + per / requests, 5), 1, "{limit:?}");
        }
    }

    #[test]
    fn a_bucket_for_each_key() {
        let (start, none) = (Instant::now(), HeaderMap::new());
        let (ann, bob) = (user("ann"), user("bob"));
        let (web, db) = (id("web"), id("db"));
        let by = |source| Request { source: Some(source), ..get("/", &none) };
        let table = [
            (RateKey::All, get("/", &ann), get("/", &bob), 0),
            (RateKey::Header(X_USER), get("/", &ann), get("/", &bob), 3),
            (RateKey::Header(X_USER), get("/", &none), get("/", &ann), 3),
            (RateKey::Header(X_USER), get("/", &none), get("/other", &none), 0),
            (RateKey::SourceIdentity, by(&web), by(&db), 3),
            (RateKey::SourceIdentity, get("/", &none), by(&db), 3),
            (RateKey::SourceIdentity, get("/", &ann), get("/", &bob), 0),
            (RateKey::SourceNamespace, by(&web), by(&db), 0),
        ];
        for (key, one, other, of_other) in table {
            let (buckets, limit) = (Buckets::new(start), limit(1, 3, key.clone()));
            assert_eq!(pass(&buckets, &limit, &one, start, 9), 3, "{key:?}");
            assert_eq!(pass(&buckets, &limit, &other, start, 9), of_other, "{key:?} {one:?} {other:?}");
        }
    }

    #[test]
    fn a_flood_of_keys_gives_nobody_his_bucket_back_and_takes_no_memory() {
        let start = Instant::now();
        let (buckets, limit) = (Buckets::new(start), limit(1, 2, RateKey::Header(X_USER)));
        let attacker = user("attacker");
        assert_eq!(pass(&buckets, &limit, &get("/", &attacker), start, 9), 2);
        let mut passed = 0;
        for number in 0..20 * RATE_KEYS {
            let invented = user(&format!("k{number}"));
            passed += pass(&buckets, &limit, &get("/", &invented), start, 1);
            if number % 1000 == 0 {
                assert_eq!(pass(&buckets, &limit, &get("/", &attacker), start, 1), 0, "after {number} keys");
            }
        }
        assert!(passed as usize <= RATE_KEYS + 2, "{passed}: a slot each, then one bucket for all");
        assert_eq!(buckets.keys.get().unwrap().len(), RATE_KEYS);
        let later = start + Duration::from_secs(3);
        assert_eq!(pass(&buckets, &limit, &get("/", &user("new")), later, 9), 2, "full buckets make room");
    }

    #[test]
    fn who_asks_for_more_than_his_part_gets_what_the_others_leave() {
        let (start, none) = (Instant::now(), HeaderMap::new());
        let limit = RateLimit { fair: true, ..limit(100, 20, RateKey::All) };
        let buckets = Buckets::new(start);
        let (flood, calm) = (id("flood"), id("calm"));
        let by = |source| Request { source: Some(source), ..get("/", &none) };
        let (mut flooded, mut calm_refused) = (0, 0);
        // The flood asks 1000 times a second, the calm one 40 times.
        for milli in 0..20_000_u64 {
            let now = start + Duration::from_millis(milli);
            flooded += pass(&buckets, &limit, &by(&flood), now, 1);
            if milli % 25 == 0 {
                calm_refused += 1 - pass(&buckets, &limit, &by(&calm), now, 1);
            }
        }
        assert_eq!(calm_refused, 0);
        assert!((1150..=1230).contains(&flooded), "about 60 a second are left: {flooded} in 20 s");
    }

    #[test]
    fn a_rate_of_the_mesh_is_split_by_endpoints() {
        let mesh = RateLimit { scope: RateScope::Mesh, ..limit(100, 10, RateKey::All) };
        let millis = |quota: Quota| quota.interval as f64 / 1e6;
        // (here, everywhere), and what follows: milliseconds a request, burst.
        let table =
            [((1, 1), 10.0, 10), ((1, 4), 40.0, 3), ((3, 4), 13.333_333, 8), ((0, 4), 40.0, 3), ((0, 0), 10.0, 10)];
        for ((here, everywhere), interval, burst) in table {
            let quota = share(&mesh, Split { here, everywhere });
            assert!((millis(quota) - interval).abs() < 1e-3, "{here}/{everywhere}: {quota:?}");
            assert_eq!(quota.burst, burst, "{here}/{everywhere}");
        }
        let node = RateLimit { scope: RateScope::Node, ..mesh };
        assert_eq!(share(&node, Split { here: 1, everywhere: 4 }), share(&node, Split::default()));
    }

    #[test]
    fn a_gate_asks_keys_before_what_all_share_and_keeps_its_buckets() {
        let (start, none) = (Instant::now(), HeaderMap::new());
        let settings = Arc::new(Settings {
            rate_limits: vec![
                RateLimit { name: "all".into(), ..limit(1, 10, RateKey::All) },
                RateLimit { name: "each".into(), ..limit(1, 2, RateKey::SourceIdentity) },
            ],
            ..Settings::default()
        });
        let traffic = Traffic::of(Some(&settings), None);
        let rates = Rates::default();
        let gate = || Gate::new(&rates, &traffic, "Service shop/web", "", start);
        let first = gate();
        let web = id("web");
        let request = Request { source: Some(&web), ..get("/", &none) };
        let refused = (0..50).filter_map(|_| first.check(Split::default(), &request, start).err()).count();
        assert_eq!(refused, 48);
        let second = gate();
        assert_eq!(second.check(Split::default(), &request, start).unwrap_err().name, "each".into());
        let db = id("db");
        let other = Request { source: Some(&db), ..request };
        let passed = (0..50).filter(|_| second.check(Split::default(), &other, start).is_ok()).count();
        assert_eq!(passed, 2, "what was refused took nothing from what all share");
    }

    #[test]
    fn threads_never_pass_more_than_the_burst() {
        let (start, none) = (Instant::now(), HeaderMap::new());
        let web = id("web");
        for key in [RateKey::All, RateKey::SourceIdentity] {
            let (buckets, limit) = (Buckets::new(start), limit(1, 100, key));
            let request = Request { source: Some(&web), ..get("/", &none) };
            let passed = std::thread::scope(|scope| {
                let threads: Vec<_> =
                    (0..4).map(|_| scope.spawn(|| pass(&buckets, &limit, &request, start, 1000))).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).sum::<u32>()
            });
            assert_eq!(passed, 100);
        }
    }

    proptest! {
        /// Over any stretch of time no more pass than the burst and what the rate allows in it, and who waits as long as
        /// he was told passes.
        #[test]
        fn no_more_than_the_rate(
            requests in 1_u32..1000,
            per in 1_u64..5000,
            burst in 1_u32..50,
            gaps in prop::collection::vec(0_u64..200, 1..300),
        ) {
            let (start, none) = (Instant::now(), HeaderMap::new());
            let limit = RateLimit { per: Duration::from_millis(per), ..limit(requests, burst, RateKey::All) };
            let (buckets, request) = (Buckets::new(start), get("/", &none));
            let mut now = start;
            let mut passed: Vec<Instant> = Vec::new();
            for gap in gaps {
                now += Duration::from_millis(gap);
                match buckets.take(&limit, Split::default(), &request, now) {
                    Ok(_) => passed.push(now),
                    Err(refused) => {
                        now += refused.retry_after;
                        prop_assert!(buckets.take(&limit, Split::default(), &request, now).is_ok());
                        passed.push(now);
                    }
                }
                for (index, since) in passed.iter().enumerate() {
                    let stretch = (now - *since).as_secs_f64();
                    let allowed = f64::from(burst) + stretch * f64::from(requests) * 1000.0 / per as f64;
                    prop_assert!((passed.len() - index) as f64 <= allowed + 1e-6 * allowed + 0.001);
                }
            }
        }
    }
}
