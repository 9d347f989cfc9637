//! Load shedding: new requests are refused with 503 before latency or memory goes. One [`Shedder`] per worker.
//!
//! **Queueing** is told from bursts as CoDel does (RFC 8289): a worker is overloaded when no request of a whole interval
//! came through its queue within the target. Then requests that queued longer than the target are refused, which is what
//! it takes to come back to it; the others go on. Whatever queued longer than the longest is refused in any case: its
//! client has given up, or is about to.
//!
//! **Memory**: from a first share of the budget on a growing part of new requests is refused, from a second on all of
//! them. Requests under way are never cut for it.

use std::time::{Duration, Instant};

use fastrand::Rng;

use super::limits::{SHED_INTERVAL, SHED_LONGEST, SHED_MEMORY, SHED_MEMORY_ALL, SHED_TARGET};

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shed {
    /// It queued too long while the worker was overloaded.
    Queue,
    /// Too much memory is in use.
    Memory,
}

/// What is in use, of how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Bytes in use.
    pub used: u64,
    /// Bytes that may be; 0: not known, so nothing is refused for it.
    pub budget: u64,
}

/// What one worker remembers of its queue.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shedder {
    /// The end of the interval under way.
    ends: Option<Instant>,
    /// The shortest queueing in it.
    shortest: Option<Duration>,
    /// Whether in the one before nobody came through within the target.
    overloaded: bool,
}

impl Shedder {
    /// Whether a request may go on that waited so long for its worker.
    pub fn admit(&mut self, queued: Duration, memory: Memory, now: Instant, rng: &mut Rng) -> Result<(), Shed> {
        self.note(queued, now);
        if queued > SHED_LONGEST || (self.overloaded && queued > SHED_TARGET) {
            return Err(Shed::Queue);
        }
        if memory.is_scarce(rng) { Err(Shed::Memory) } else { Ok(()) }
    }

    /// Whether the worker is overloaded, for metrics.
    pub fn is_overloaded(&self) -> bool {
        self.overloaded
    }

    fn note(&mut self, queued: Duration, now: Instant) {
        match self.ends {
            Some(ends) if now < ends => {
                self.shortest = Some(self.shortest.map_or(queued, |shortest| shortest.min(queued)));
            }
            Some(ends) => {
                // An interval or more without a request is no overload.
                let follows = now.saturating_duration_since(ends) < SHED_INTERVAL;
                self.overloaded = follows && self.shortest.is_some_and(|shortest| shortest > SHED_TARGET);
                self.begin(queued, now);
            }
            None => self.begin(queued, now),
        }
    }

    fn begin(&mut self, queued: Duration, now: Instant) {
        self.ends = now.checked_add(SHED_INTERVAL);
        self.shortest = Some(queued);
    }
}

impl Memory {
    fn is_scarce(self, rng: &mut Rng) -> bool {
        let used = u128::from(self.used).saturating_mul(10_000).checked_div(self.budget.into()).unwrap_or(0);
        let first = u128::from(SHED_MEMORY).saturating_mul(100);
        let all = u128::from(SHED_MEMORY_ALL).saturating_mul(100);
        let beyond = u64::try_from(used.saturating_sub(first)).unwrap_or(u64::MAX);
        let range = u64::try_from(all.saturating_sub(first)).unwrap_or(1).max(1);
        used >= all || (beyond > 0 && rng.u64(..range) < beyond)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLENTY: Memory = Memory { used: 1, budget: 100 };

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// Requests every 10 ms, queued so long each: how many of each second's hundred are refused.
    fn refused(queued: impl Fn(u64) -> u64, seconds: u64) -> Vec<usize> {
        let (start, mut shedder, mut rng) = (Instant::now(), Shedder::default(), Rng::with_seed(1));
        let mut second = |second: u64| {
            let mut refused = |tick: &u64| {
                let now = start + ms(tick * 10);
                shedder.admit(ms(queued(*tick)), PLENTY, now, &mut rng) == Err(Shed::Queue)
            };
            (second * 100..(second + 1) * 100).filter(&mut refused).count()
        };
        (0..seconds).map(&mut second).collect()
    }

    #[test]
    fn a_lasting_queue_is_overload_and_a_burst_is_none() {
        assert_eq!(refused(|_| 0, 2), [0, 0]);
        assert_eq!(refused(|_| 50, 2), [0, 0], "the target itself");
        assert_eq!(refused(|tick| if tick % 5 == 0 { 1 } else { 900 }, 2), [0, 0], "some come through");
        assert_eq!(refused(|_| 80, 2), [50, 100], "a whole interval in which nobody did");
        assert_eq!(refused(|_| 6000, 1), [100], "longer than anybody waits");
        let recovered = refused(|tick| if tick < 100 { 80 } else { 5 }, 3);
        assert_eq!(recovered, [50, 0, 0], "what comes through is admitted, and ends it");
        let mixed = refused(
            |tick| {
                if tick < 100 {
                    80
                } else if tick % 2 == 0 {
                    40
                } else {
                    90
                }
            },
            2,
        );
        assert!(mixed[1] > 0 && mixed[1] <= 26, "only those over the target, until an interval went well: {mixed:?}");
    }

    #[test]
    fn after_silence_there_is_no_overload() {
        let (start, mut shedder, mut rng) = (Instant::now(), Shedder::default(), Rng::with_seed(1));
        for tick in 0..100 {
            let _any = shedder.admit(ms(80), PLENTY, start + ms(tick * 10), &mut rng);
        }
        assert!(shedder.is_overloaded());
        assert_eq!(shedder.admit(ms(80), PLENTY, start + ms(10_000), &mut rng), Ok(()));
    }

    #[test]
    fn memory_is_refused_more_the_scarcer_it_is() {
        let refused = |used, budget| {
            let (mut shedder, mut rng) = (Shedder::default(), Rng::with_seed(1));
            let memory = Memory { used, budget };
            let now = Instant::now();
            (0..1000).filter(|_| shedder.admit(ms(0), memory, now, &mut rng) == Err(Shed::Memory)).count()
        };
        assert_eq!(refused(85, 100), 0);
        assert!((400..600).contains(&refused(90, 100)), "{}", refused(90, 100));
        assert_eq!(refused(95, 100), 1000);
        assert_eq!(refused(u64::MAX, 100), 1000);
        assert_eq!(refused(u64::MAX, 0), 0, "an unknown budget refuses nobody");
    }
}
