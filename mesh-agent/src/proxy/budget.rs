//! What one pod may take from its node: live connections, tunnels, new ones in a second, handshakes, bytes that wait.
//!
//! The budget is the pod's, both directions together, whichever worker serves: atomics, and nothing here waits. What is
//! over budget is refused at once and counted; it never queues, so one flooding pod costs its neighbours no more than the
//! refusals. Who takes how much of the pod that he reaches ([`Shares`]) is behind a lock, which is held to count one
//! connection and never for a byte.

use std::net::IpAddr;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::limits::FAIR_BUFFER;
use super::shares::{Left, Shares};
use crate::telemetry::WorkloadUsage;

/// What each pod may take. One for all pods of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budgets {
    /// Connections of one pod that live at once, each counted where it was accepted. Tunnels that peers hold open to
    /// the pod are counted apart, up to the same number.
    pub connections: usize,
    /// New connections and tunnels of one pod, per second.
    pub accept_rate: u32,
    /// How many may come at once before the rate counts.
    pub accept_burst: u32,
    /// Peers of one pod's tunnel port that have not proved who they are yet.
    pub handshakes: usize,
    /// Bytes that wait in the agent for applications that do not read.
    pub buffered_bytes: usize,
    /// Descriptors of the process that connections may use. They are given out lowest number first, so a socket whose
    /// number is at or above this shows that as many are in use, whatever for.
    pub descriptors: u64,
}

/// What a budget counts until it is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A connection that an application dialled, or that came for one.
    Connection,
    /// A tunnel that a peer opened to the pod.
    Tunnel,
    /// A peer of the tunnel port that has not proved who it is.
    Handshake,
}

impl Kind {
    /// All of them, in their order.
    pub const ALL: [Kind; 3] = [Kind::Connection, Kind::Tunnel, Kind::Handshake];
}

/// Which budget has no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// [`Budgets::connections`]
    Connections,
    /// [`Budgets::connections`], of tunnels.
    Tunnels,
    /// [`Budgets::accept_rate`]
    AcceptRate,
    /// [`Budgets::handshakes`]
    Handshakes,
    /// [`Budgets::buffered_bytes`]
    Buffer,
    /// [`Budgets::descriptors`]
    Descriptors,
    /// What one source may take of what is left.
    Share,
}

impl Over {
    const ALL: [Over; 7] = [
        Over::Connections,
        Over::Tunnels,
        Over::AcceptRate,
        Over::Handshakes,
        Over::Buffer,
        Over::Descriptors,
        Over::Share,
    ];

    /// The stable label for metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            Over::Connections => "connection-budget",
            Over::Tunnels => "tunnel-budget",
            Over::AcceptRate => "accept-budget",
            Over::Handshakes => "too-many-handshakes",
            Over::Buffer => "buffer-budget",
            Over::Descriptors => "descriptor-budget",
            Over::Share => "source-budget",
        }
    }
}

/// What one pod has taken of its budget.
pub struct PodBudget {
    limits: Budgets,
    connections: AtomicUsize,
    tunnels: AtomicUsize,
    handshakes: AtomicUsize,
    buffered: AtomicUsize,
    rate: AcceptRate,
    shares: Shares,
    refused: [AtomicU64; Over::ALL.len()],
}

/// One unit of a pod's budget; given back on drop.
pub struct Taken {
    budget: Arc<PodBudget>,
    kind: Kind,
    /// Whose share it is of, once it is.
    source: Option<IpAddr>,
}

impl PodBudget {
    /// A budget of which nothing is taken.
    pub fn new(limits: Budgets) -> Arc<Self> {
        let rate = AcceptRate::new(limits.accept_rate, limits.accept_burst);
        Arc::new(Self {
            limits,
            connections: AtomicUsize::new(0),
            tunnels: AtomicUsize::new(0),
            handshakes: AtomicUsize::new(0),
            buffered: AtomicUsize::new(0),
            rate,
            shares: Shares::default(),
            refused: Default::default(),
        })
    }

    /// Takes in a new connection or tunnel: there must be room for it, and for its kind in this second. `source` is the
    /// address of who reaches the pod; none where the pod itself dials.
    pub fn admit(self: &Arc<Self>, kind: Kind, source: Option<IpAddr>) -> Result<Taken, Over> {
        self.admit_at(Instant::now(), kind, source)
    }

    fn admit_at(self: &Arc<Self>, now: Instant, kind: Kind, source: Option<IpAddr>) -> Result<Taken, Over> {
        let taken = self.take(kind, source)?;
        let now = self.rate.time(now);
        if let Some(source) = source
            && !self.shares.charge(source, now, self.rate.token, self.rate.left(now))
        {
            return Err(self.count(Over::Share));
        }
        if !self.rate.take(now) {
            return Err(self.count(Over::AcceptRate));
        }
        Ok(taken)
    }

    /// Takes one unit, whatever the rate.
    pub fn take(self: &Arc<Self>, kind: Kind, source: Option<IpAddr>) -> Result<Taken, Over> {
        let (most, over) = match kind {
            Kind::Connection => (self.limits.connections, Over::Connections),
            Kind::Tunnel => (self.limits.connections, Over::Tunnels),
            Kind::Handshake => (self.limits.handshakes, Over::Handshakes),
        };
        // Counted before it is judged: two workers never both take the last one.
        let mut taken = Taken { budget: self.clone(), kind, source: None };
        let before = self.taken(kind).fetch_add(1, Ordering::Relaxed);
        if before >= most {
            return Err(self.count(over));
        }
        if let Some(source) = source {
            if !self.shares.take(source, kind, most - before) {
                return Err(self.count(Over::Share));
            }
            taken.source = Some(source);
        }
        Ok(taken)
    }

    /// Refuses a socket whose number shows that the process has few descriptors left.
    pub fn check_descriptor(&self, descriptor: RawFd) -> Result<(), Over> {
        match u64::try_from(descriptor) {
            Ok(number) if number < self.limits.descriptors => Ok(()),
            _ => Err(self.count(Over::Descriptors)),
        }
    }

    /// Counts a refusal for want of descriptors that the kernel made itself.
    pub fn out_of_descriptors(&self) -> Over {
        self.count(Over::Descriptors)
    }

    /// A connection that held `before` bytes for its application now holds `now`. Over budget, one that grows is to
    /// end, unless what it holds is little: the pod's other connections go on.
    fn hold(&self, before: usize, now: usize) -> Result<(), Over> {
        if now <= before {
            self.buffered.fetch_sub(before - now, Ordering::Relaxed);
            return Ok(());
        }
        let more = now - before;
        let total = self.buffered.fetch_add(more, Ordering::Relaxed).saturating_add(more);
        if total <= self.limits.buffered_bytes || now <= FAIR_BUFFER {
            return Ok(());
        }
        Err(self.count(Over::Buffer))
    }

    /// What is taken now, for metrics and `/config_dump`.
    pub fn usage(&self, namespace: &Arc<str>, pod: &Arc<str>) -> WorkloadUsage {
        let now = |count: &AtomicUsize| count.load(Ordering::Relaxed) as u64;
        WorkloadUsage {
            namespace: namespace.clone(),
            pod: pod.clone(),
            connections: now(&self.connections),
            tunnels: now(&self.tunnels),
            handshakes: now(&self.handshakes),
            buffered_bytes: now(&self.buffered),
            refused: std::iter::zip(Over::ALL, &self.refused)
                .map(|(over, count)| (over.label(), count.load(Ordering::Relaxed)))
                .collect(),
        }
    }

    fn taken(&self, kind: Kind) -> &AtomicUsize {
        match kind {
            Kind::Connection => &self.connections,
            Kind::Tunnel => &self.tunnels,
            Kind::Handshake => &self.handshakes,
        }
    }

    fn count(&self, over: Over) -> Over {
        if let Some(count) = self.refused.get(over as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        over
    }
}

impl Taken {
    /// What the connection will hold of the same budget; nothing yet.
    pub fn held(&self) -> Held {
        Held::of(Some(self.budget.clone()))
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some(source) = self.source {
            self.budget.shares.give(source, self.kind);
        }
        self.budget.taken(self.kind).fetch_sub(1, Ordering::Relaxed);
    }
}

/// What one connection holds for an application that does not read, told to its pod's budget as it changes; given back
/// on drop.
#[derive(Default)]
pub struct Held {
    budget: Option<Arc<PodBudget>>,
    bytes: usize,
}

impl Held {
    /// Nothing yet, of this budget; of none, everything may be held.
    pub fn of(budget: Option<Arc<PodBudget>>) -> Self {
        Self { budget, bytes: 0 }
    }

    /// It holds this much now. Costs nothing while that does not change.
    pub fn set(&mut self, bytes: usize) -> Result<(), Over> {
        if bytes == self.bytes {
            return Ok(());
        }
        let before = std::mem::replace(&mut self.bytes, bytes);
        self.budget.as_ref().map_or(Ok(()), |budget| budget.hold(before, bytes))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Less is never over budget.
        let _ = self.set(0);
    }
}

/// A token bucket as one number (GCRA): the time at which it will be full again.
struct AcceptRate {
    born: Instant,
    /// Nanoseconds after `born`.
    full_at: AtomicU64,
    /// Nanoseconds that one token takes to come back.
    token: u64,
    /// Nanoseconds that all of them take.
    bucket: u64,
}

impl AcceptRate {
    fn new(rate: u32, burst: u32) -> Self {
        let token = u64::try_from(Duration::from_secs(1).as_nanos()).unwrap_or(u64::MAX) / u64::from(rate.max(1));
        Self {
            born: Instant::now(),
            full_at: AtomicU64::new(0),
            token,
            bucket: token.saturating_mul(u64::from(burst.max(1))),
        }
    }

    /// A moment as this bucket counts.
    fn time(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.born).as_nanos()).unwrap_or(u64::MAX)
    }

    fn left(&self, now: u64) -> Left {
        let used = self.full_at.load(Ordering::Relaxed).saturating_sub(now);
        Left { now: self.bucket.saturating_sub(used), at_most: self.bucket }
    }

    fn take(&self, now: u64) -> bool {
        let one_less = |full_at: u64| {
            let full_at = full_at.max(now).saturating_add(self.token);
            (full_at - now <= self.bucket).then_some(full_at)
        };
        self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(change: impl FnOnce(&mut Budgets)) -> Arc<PodBudget> {
        let mut limits = Budgets {
            connections: 3,
            accept_rate: 1000,
            accept_burst: 1000,
            handshakes: 2,
            buffered_bytes: 1 << 20,
            descriptors: 100,
        };
        change(&mut limits);
        PodBudget::new(limits)
    }

    fn refused(budget: &PodBudget) -> Vec<(&'static str, u64)> {
        let usage = budget.usage(&"shop".into(), &"web".into());
        usage.refused.into_iter().filter(|(_, count)| *count > 0).collect()
    }

    #[test]
    fn each_kind_has_an_end_and_makes_room() {
        for (kind, most, over) in [
            (Kind::Connection, 3, Over::Connections),
            (Kind::Tunnel, 3, Over::Tunnels),
            (Kind::Handshake, 2, Over::Handshakes),
        ] {
            let budget = budget(|_| {});
            let mut taken: Vec<Taken> = (0..most).map(|_| budget.take(kind, None).unwrap()).collect();
            assert_eq!(budget.take(kind, None).err(), Some(over));
            assert_eq!(budget.take(kind, None).err(), Some(over));
            assert_eq!(refused(&budget), [(over.label(), 2)]);
            taken.pop();
            taken.push(budget.take(kind, None).unwrap());
            assert!(budget.take(kind, None).is_err());
            drop(taken);
            assert_eq!(budget.taken(kind).load(Ordering::Relaxed), 0);
        }
    }

    #[test]
    fn a_burst_passes_and_then_the_rate_counts() {
        let rate = AcceptRate::new(10, 5);
        let at = |millis: u64| rate.born + Duration::from_millis(millis);
        let taken = |millis: u64| (0..100).filter(|_| rate.take(rate.time(at(millis)))).count();
        for (millis, expected) in [(0, 5), (99, 0), (100, 1), (450, 3), (10_000, 5), (10_050, 0), (10_100, 1)] {
            assert_eq!(taken(millis), expected, "at {millis} ms");
        }
    }

    /// Sources that come ten times as fast as anybody may, for 20 s, and one more that wants three quarters of its fair
    /// share: it gets that, and they get what is left.
    #[test]
    fn who_comes_too_fast_leaves_room_for_who_does_not() {
        for hogs in [1, 3, 100] {
            let budget = budget(|limits| (limits.accept_rate, limits.accept_burst) = (1000, 1000));
            let begun = Instant::now();
            let (mut modest, mut greedy, mut wanted) = (0, 0, 0);
            for tick in 0..200_000_u32 {
                let at = begun + Duration::from_micros(100) * tick;
                let hog = IpAddr::from([10, 0, 0, (tick % hogs) as u8]);
                greedy += u32::from(budget.admit_at(at, Kind::Connection, Some(hog)).is_ok());
                if tick % (13 * (hogs + 1)) == 0 {
                    wanted += 1;
                    let source = Some(IpAddr::from([10, 0, 1, 1]));
                    modest += u32::from(budget.admit_at(at, Kind::Connection, source).is_ok());
                }
            }
            assert_eq!(modest, wanted, "beside {hogs}");
            // 20 s of the rate, and what was there at once.
            assert!((20_000..=21_001).contains(&(greedy + modest)), "{greedy} of {hogs}");
        }
    }

    #[test]
    fn what_the_rate_refuses_takes_no_place() {
        let budget = budget(|limits| limits.accept_burst = 1);
        let _first = budget.admit(Kind::Connection, None).unwrap();
        assert_eq!(budget.admit(Kind::Connection, None).err(), Some(Over::AcceptRate));
        assert_eq!(budget.taken(Kind::Connection).load(Ordering::Relaxed), 1);
    }

    #[test]
    fn over_the_buffer_the_one_that_grows_ends_and_small_ones_go_on() {
        let budget = budget(|limits| limits.buffered_bytes = 100_000);
        let mut hogs = [Held::of(Some(budget.clone())), Held::of(Some(budget.clone()))];
        let mut small = Held::of(Some(budget.clone()));
        assert_eq!(hogs[0].set(80_000), Ok(()));
        assert_eq!(hogs[1].set(20_000), Ok(()));
        assert_eq!(small.set(FAIR_BUFFER), Ok(()));
        assert_eq!(hogs[1].set(19_000), Ok(()), "it shrinks");
        assert_eq!(hogs[0].set(80_001), Err(Over::Buffer));
        assert_eq!(refused(&budget), [("buffer-budget", 1)]);
        drop(hogs);
        assert_eq!(budget.buffered.load(Ordering::Relaxed), FAIR_BUFFER);
        assert_eq!(small.set(90_000), Ok(()));
        drop(small);
        assert_eq!(budget.buffered.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_high_descriptor_is_refused() {
        let budget = budget(|_| {});
        assert_eq!(budget.check_descriptor(99), Ok(()));
        assert_eq!(budget.check_descriptor(100), Err(Over::Descriptors));
        assert_eq!(budget.check_descriptor(-1), Err(Over::Descriptors));
        assert_eq!(refused(&budget), [("descriptor-budget", 2)]);
    }
}
