//! When an endpoint is left out for a while, and when it may come back. Pure, with the clock handed in.
//!
//! ```text
//!             too many failures in a row,                  the time is over
//!             or far fewer successes than others
//!   Healthy ──────────────────────────────────► Ejected ───────────────────► Probation
//!      ▲                                           ▲                            │  │
//!      │                                           └──── one failure ───────────┘  │
//!      └───────────────────────────────── one success ─────────────────────────────┘
//! ```
//! The n-th ejection is n times as long as the first, up to a longest; for every interval in which an endpoint stays
//! healthy one ejection is forgiven. On probation it gets a small share of its load.

use std::time::{Duration, Instant};

use super::outcome::Sign;
use super::policy::{Outlier, SuccessRate};

/// Where an endpoint is in the picture above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// In use.
    Healthy,
    /// Not in use until then.
    Ejected(Instant),
    /// In use, with little load; one failure is too many.
    Probation,
}

/// Why an endpoint is to be ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Too many 5xx in a row.
    Consecutive5xx,
    /// Too many gateway errors in a row.
    ConsecutiveGateway,
    /// A failure on probation.
    Probation,
    /// A success rate far below the others'.
    SuccessRate,
}

/// What is remembered of an endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Health {
    state: State,
    failures: u32,
    gateway_failures: u32,
    /// Ejections that are not forgiven yet.
    ejections: u32,
    /// Of this interval.
    requests: u32,
    /// Of those.
    successes: u32,
}

impl Default for Health {
    fn default() -> Self {
        Self { state: State::Healthy, failures: 0, gateway_failures: 0, ejections: 0, requests: 0, successes: 0 }
    }
}

impl Health {
    /// Where it is. An ejection whose time is over still counts as one until [`Health::wake`].
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether it is ejected.
    pub fn is_ejected(&self) -> bool {
        matches!(self.state, State::Ejected(_))
    }

    /// Takes note of how a request ended. Some: it should be ejected. A request that began before the ejection and ends
    /// during it changes nothing.
    pub fn note(&mut self, sign: Sign, policy: &Outlier) -> Option<Cause> {
        let success = match sign {
            Sign::Well | Sign::Busy(_) => true,
            Sign::Failing | Sign::Unreachable => false,
        };
        self.requests = self.requests.saturating_add(1);
        self.successes = self.successes.saturating_add(success.into());
        if success {
            (self.failures, self.gateway_failures) = (0, 0);
            if self.state == State::Probation {
                self.state = State::Healthy;
            }
            return None;
        }
        self.failures = self.failures.saturating_add(1);
        self.gateway_failures = if sign == Sign::Unreachable { self.gateway_failures.saturating_add(1) } else { 0 };
        let reached = |count: u32, threshold: Option<u32>| threshold.is_some_and(|threshold| count >= threshold);
        match self.state {
            State::Ejected(_) => None,
            State::Probation => Some(Cause::Probation),
            State::Healthy if reached(self.gateway_failures, policy.consecutive_gateway) => {
                Some(Cause::ConsecutiveGateway)
            }
            State::Healthy if reached(self.failures, policy.consecutive_5xx) => Some(Cause::Consecutive5xx),
            State::Healthy => None,
        }
    }

    /// Leaves the endpoint out. Returns until when.
    pub fn eject(&mut self, policy: &Outlier, now: Instant) -> Instant {
        self.ejections = self.ejections.saturating_add(1);
        let length = policy.ejection.saturating_mul(self.ejections).min(policy.longest.max(policy.ejection));
        // Only a length of centuries overflows: then it is a short one rather than a panic.
        let until = now.checked_add(length).unwrap_or(now);
        *self = Self { state: State::Ejected(until), failures: 0, gateway_failures: 0, ..*self };
        until
    }

    /// Ends an ejection whose time is over. Returns whether it did.
    pub fn wake(&mut self, now: Instant) -> bool {
        let over = matches!(self.state, State::Ejected(until) if until <= now);
        if over {
            self.state = State::Probation;
        }
        over
    }

    /// Ends the interval: the counts begin anew, and a healthy endpoint is forgiven one ejection.
    pub fn end_interval(&mut self) {
        (self.requests, self.successes) = (0, 0);
        if self.state == State::Healthy {
            self.ejections = self.ejections.saturating_sub(1);
        }
    }

    /// The policy no longer asks for ejections.
    pub fn pardon(&mut self) {
        *self = Self::default();
    }
}

/// Whether one more endpoint may be ejected: within the share, and one of two in any case. The only one never is.
pub fn may_eject(ejected: usize, total: usize, share: u32) -> bool {
    let allowed = total.saturating_mul(share.min(100) as usize) / 100;
    total >= 2 && ejected < allowed.max(1)
}

/// The endpoints with a success rate far below the others', worst first: below the mean by so much of the standard
/// deviation. Nobody, where too few had enough requests.
pub fn laggards(healths: &[Health], policy: &SuccessRate) -> Vec<usize> {
    let enough = |health: &Health| health.state == State::Healthy && health.requests >= policy.requests.max(1);
    let rate = |health: &Health| f64::from(health.successes) / f64::from(health.requests);
    let rated = healths.iter().enumerate().filter(|(_, health)| enough(health));
    let mut rates: Vec<(usize, f64)> = rated.map(|(index, health)| (index, rate(health))).collect();
    if rates.len() < policy.hosts.max(2) as usize {
        return Vec::new();
    }
    let count = rates.len() as f64;
    let mean = rates.iter().map(|(_, rate)| rate).sum::<f64>() / count;
    let variance = rates.iter().map(|(_, rate)| (rate - mean).powi(2)).sum::<f64>() / count;
    let threshold = mean - variance.sqrt() * f64::from(policy.deviation) / 1000.0;
    rates.retain(|(_, rate)| *rate < threshold);
    rates.sort_by(|(_, one), (_, other)| one.total_cmp(other));
    rates.into_iter().map(|(index, _)| index).collect()
}

/// The longest that can pass before an ejection ends, from the policy alone.
pub fn longest_ejection(policy: &Outlier) -> Duration {
    policy.longest.max(policy.ejection)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy() -> Outlier {
        Outlier {
            consecutive_5xx: Some(3),
            consecutive_gateway: Some(2),
            ejection: Duration::from_secs(30),
            longest: Duration::from_secs(70),
            ..Outlier::default()
        }
    }

    /// Letters: `w` well, `b` busy, `f` failing, `u` unreachable. The letter at which ejection is asked for, and why.
    fn first_cause(signs: &str) -> Option<(usize, Cause)> {
        let mut health = Health::default();
        signs.chars().enumerate().find_map(|(index, letter)| {
            let sign = match letter {
                'w' => Sign::Well,
                'b' => Sign::Busy(Duration::from_secs(1)),
                'f' => Sign::Failing,
                _ => Sign::Unreachable,
            };
            health.note(sign, &policy()).map(|cause| (index, cause))
        })
    }

    #[test]
    fn failures_in_a_row_eject() {
        let table = [
            ("wwww", None),
            ("ffwff", None),
            ("fff", Some((2, Cause::Consecutive5xx))),
            ("uu", Some((1, Cause::ConsecutiveGateway))),
            ("uwu", None),
            ("ufu", Some((2, Cause::Consecutive5xx))),
            ("fuu", Some((2, Cause::ConsecutiveGateway))),
            ("ububub", None),
        ];
        for (signs, cause) in table {
            assert_eq!(first_cause(signs), cause, "{signs}");
        }
    }

    #[test]
    fn ejections_grow_end_in_probation_and_are_forgiven() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut health = Health::default();
        assert_eq!(health.eject(&policy(), start), at(30));
        assert_eq!(health.note(Sign::Unreachable, &policy()), None, "a straggler of before says nothing");
        assert!(!health.wake(at(29)) && health.is_ejected());
        assert!(health.wake(at(30)));
        assert_eq!(health.state(), State::Probation);
        assert_eq!(health.note(Sign::Failing, &policy()), Some(Cause::Probation), "one is too many");
        assert_eq!(health.eject(&policy(), at(30)), at(90), "twice as long");
        assert!(health.wake(at(90)));
        assert_eq!(health.eject(&policy(), at(90)), at(160), "the longest");
        assert!(health.wake(at(160)));
        assert_eq!(health.note(Sign::Well, &policy()), None);
        assert_eq!(health.state(), State::Healthy);
        health.end_interval();
        health.end_interval();
        assert_eq!(health.eject(&policy(), at(200)), at(260), "three ejections, two forgiven");
    }

    #[test]
    fn how_many_may_be_ejected() {
        let table = [
            ((0, 0, 50), false),
            ((0, 1, 100), false),
            ((0, 2, 10), true),
            ((1, 2, 10), false),
            ((1, 2, 100), true),
            ((4, 10, 50), true),
            ((5, 10, 50), false),
            ((0, 2, 0), true),
        ];
        for ((ejected, total, share), may) in table {
            assert_eq!(may_eject(ejected, total, share), may, "{ejected} of {total}, {share} %");
        }
    }

    #[test]
    fn far_fewer_successes_than_others() {
        let health = |successes, requests| Health { successes, requests, ..Health::default() };
        let table: [(&str, Vec<Health>, &[usize]); 5] = [
            ("all alike", vec![health(100, 100); 6], &[]),
            ("one far below", [vec![health(100, 100); 5], vec![health(40, 100)]].concat(), &[5]),
            ("too few endpoints", [vec![health(100, 100); 3], vec![health(0, 100)]].concat(), &[]),
            ("too few requests", [vec![health(100, 100); 5], vec![health(0, 99)]].concat(), &[]),
            ("everyone fails alike", vec![health(0, 200); 6], &[]),
        ];
        for (what, healths, expected) in table {
            assert_eq!(laggards(&healths, &SuccessRate::default()), expected, "{what}");
        }
    }

    proptest! {
        /// Whatever happens when: an ejection lasts at least the first length and at most the longest, nothing but time
        /// ends it, and an endpoint that only ever works well is never ejected.
        #[test]
        fn ejections_end_by_time_alone(steps in prop::collection::vec((0u8..4, 0u64..40), 1..200)) {
            let policy = policy();
            let mut now = Instant::now();
            let mut health = Health::default();
            let mut ejected_at = None;
            for (kind, seconds) in steps {
                now += Duration::from_secs(seconds);
                let before = health.state();
                if health.wake(now) {
                    let since: Instant = ejected_at.take().unwrap();
                    prop_assert!(now - since >= policy.ejection);
                    prop_assert_eq!(health.state(), State::Probation);
                } else if let (State::Ejected(until), Some(since)) = (before, ejected_at) {
                    prop_assert!(until > now && until - since <= longest_ejection(&policy));
                }
                let sign = [Sign::Well, Sign::Failing, Sign::Unreachable, Sign::Busy(Duration::ZERO)][usize::from(kind)];
                let state = health.state();
                match health.note(sign, &policy) {
                    Some(_) => {
                        prop_assert!(!matches!(sign, Sign::Well | Sign::Busy(_)) && !matches!(state, State::Ejected(_)));
                        health.eject(&policy, now);
                        ejected_at = Some(now);
                    }
                    None => prop_assert_eq!(matches!(state, State::Ejected(_)), health.is_ejected()),
                }
            }
        }
    }
}
