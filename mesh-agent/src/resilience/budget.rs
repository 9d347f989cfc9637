//! The retry budget: how many retries a Service may get from this worker (GEP-3388). One per worker and Service; the
//! least number of retries is split among the workers, the share needs no splitting.
//!
//! Retries are counted over a window that is a step too long, and requests over one that is a step too short, so that over
//! *any* window of the length, wherever it begins, retries stay within the larger of the share and the least number.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use super::limits::{BUDGET_SLOTS as SLOTS, BUDGET_STEPS};
use super::policy::RetryBudget;

/// What was asked for lately, and what may be.
#[derive(Clone, Debug)]
pub struct Budget {
    policy: RetryBudget,
    workers: NonZeroU32,
    /// The beginning of all steps.
    start: Instant,
    /// The step that the newest slot stands for.
    step: u64,
    /// First tries by step, the step's number modulo the number of slots.
    requests: [u32; SLOTS],
    /// Retries that were allowed, likewise.
    retries: [u32; SLOTS],
}

impl Budget {
    /// An unused one for one of so many workers.
    pub fn new(policy: RetryBudget, workers: NonZeroU32, now: Instant) -> Self {
        Self { policy, workers, start: now, step: 0, requests: [0; SLOTS], retries: [0; SLOTS] }
    }

    /// Takes a changed policy. What was counted in steps of another length begins anew.
    pub fn set(&mut self, policy: RetryBudget, now: Instant) {
        if policy.interval != self.policy.interval {
            *self = Self::new(policy, self.workers, now);
        }
        self.policy = policy;
    }

    /// A request came. To be called for first tries alone, once each.
    pub fn note_request(&mut self, now: Instant) {
        self.advance(now);
        if let Some(slot) = self.requests.get_mut(slot(self.step)) {
            *slot = slot.saturating_add(1);
        }
    }

    /// Whether one more retry may be made; if so, it is counted.
    pub fn take_retry(&mut self, now: Instant) -> bool {
        self.advance(now);
        let retries = sum(self.retries.iter().copied()).saturating_add(1);
        let oldest = slot(self.step.saturating_add(1));
        let newer = self.requests.iter().enumerate().filter(|(index, _)| *index != oldest).map(|(_, count)| *count);
        let all = sum(newer).saturating_add(retries);
        let of_share = retries.saturating_mul(100) <= all.saturating_mul(self.policy.percent.min(100).into());
        let allowed = of_share || retries <= self.least();
        if let Some(count) = self.retries.get_mut(slot(self.step)).filter(|_| allowed) {
            *count = count.saturating_add(1);
        }
        allowed
    }

    /// Retries that are allowed in a window however few requests there are, of this worker.
    fn least(&self) -> u64 {
        let RetryBudget { interval, min_retries, min_interval, .. } = self.policy;
        let whole = u128::from(min_retries).saturating_mul(interval.as_nanos());
        let all = whole.checked_div(min_interval.as_nanos()).unwrap_or(0);
        // Rounded up: with more workers than retries each may still make one.
        u64::try_from(all.div_ceil(u128::from(self.workers.get()))).unwrap_or(u64::MAX)
    }

    /// Moves on to the step of `now` and clears the steps between. A clock that goes back stays where it was.
    fn advance(&mut self, now: Instant) {
        let step_length = (self.policy.interval / BUDGET_STEPS).max(Duration::from_nanos(1));
        let since = now.saturating_duration_since(self.start).as_nanos();
        let step = u64::try_from(since / step_length.as_nanos()).unwrap_or(u64::MAX).max(self.step);
        let passed = usize::try_from(step.saturating_sub(self.step)).unwrap_or(SLOTS).min(SLOTS);
        for cleared in (0_u64..).take(passed) {
            let index = slot(step.saturating_sub(cleared));
            for counts in [&mut self.requests, &mut self.retries] {
                if let Some(count) = counts.get_mut(index) {
                    *count = 0;
                }
            }
        }
        self.step = step;
    }
}

fn slot(step: u64) -> usize {
    usize::try_from(step % SLOTS as u64).unwrap_or(0)
}

fn sum(counts: impl Iterator<Item = u32>) -> u64 {
    counts.map(u64::from).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn budget(percent: u32, min_retries: u32, workers: u32, start: Instant) -> Budget {
        let policy = RetryBudget { percent, min_retries, ..RetryBudget::default() };
        Budget::new(policy, NonZeroU32::new(workers).unwrap(), start)
    }

    /// How many of `asked` retries are allowed after so many requests at one time.
    fn allowed(percent: u32, min_retries: u32, workers: u32, requests: u32, asked: u32) -> u32 {
        let start = Instant::now();
        let mut budget = budget(percent, min_retries, workers, start);
        (0..requests).for_each(|_| budget.note_request(start));
        (0..asked).filter(|_| budget.take_retry(start)).count() as u32
    }

    #[test]
    fn a_share_or_the_least_number() {
        assert_eq!(SLOTS, BUDGET_STEPS as usize + 1);
        // (percent, least per second, workers, requests, asked) and what is allowed: with 20 % of all requests, 800 first
        // tries allow 200 retries.
        let table = [
            ((20, 0, 1, 800, 1000), 200),
            ((20, 10, 1, 800, 1000), 200),
            ((20, 10, 1, 0, 1000), 100),
            ((20, 10, 1, 100, 1000), 100),
            ((20, 10, 4, 0, 1000), 25),
            ((20, 1, 64, 0, 1000), 1),
            ((0, 0, 1, 1000, 10), 0),
            ((20, 0, 1, 0, 10), 0),
            ((50, 0, 1, 30, 100), 30),
        ];
        for ((percent, least, workers, requests, asked), expected) in table {
            assert_eq!(
                allowed(percent, least, workers, requests, asked),
                expected,
                "{percent} %, {least}/s, {workers} workers, {requests} requests"
            );
        }
    }

    #[test]
    fn what_is_long_ago_counts_no_more() {
        let start = Instant::now();
        let mut budget = budget(20, 0, 1, start);
        (0..800).for_each(|_| budget.note_request(start));
        assert!(budget.take_retry(start + Duration::from_secs(9)));
        assert!(!budget.take_retry(start + Duration::from_secs(10)), "the requests are too old");
        (0..4).for_each(|_| budget.note_request(start + Duration::from_secs(30)));
        assert!(budget.take_retry(start + Duration::from_secs(30)), "the old retry is forgotten as well");
        assert!(!budget.take_retry(start), "a clock that goes back gives nothing away");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        /// A storm: everything fails and everybody asks again at once, for as long as it lasts. Over any window of the
        /// interval's length that ends with a retry, retries are within the share of the requests of that window, or
        /// within the least number.
        #[test]
        fn retries_never_exceed_the_budget_over_any_window(
            percent in 0_u32..=60,
            least in 0_u32..4,
            steps in prop::collection::vec((0_u64..1500, 0_u32..40, 0_u32..40), 1..120),
        ) {
            let start = Instant::now();
            let interval = Duration::from_secs(10);
            let mut budget = budget(percent, least, 1, start);
            let mut now = start;
            let (mut requests, mut retries): (Vec<Instant>, Vec<Instant>) = Default::default();
            for (millis, came, failed) in steps {
                now += Duration::from_millis(millis);
                for _ in 0..came {
                    budget.note_request(now);
                    requests.push(now);
                }
                for _ in 0..failed {
                    if !budget.take_retry(now) {
                        continue;
                    }
                    retries.push(now);
                    let within = |times: &[Instant]| times.iter().filter(|time| now - **time <= interval).count() as u64;
                    let (retried, first) = (within(&retries), within(&requests));
                    let share = retried * 100 <= (retried + first) * u64::from(percent);
                    prop_assert!(share || retried <= u64::from(least) * 10, "{retried} retries, {first} requests");
                }
            }
        }
    }
}
