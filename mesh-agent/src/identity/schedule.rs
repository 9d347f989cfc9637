//! When a certificate is asked for: pure, on readings of two clocks. The wall clock says how old a certificate is and may
//! jump; the monotonic clock says how long ago the authority was asked and may stand still while the machine sleeps.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// Wait after the first failure; doubled with each further one.
pub(super) const FIRST_RETRY: Duration = Duration::from_millis(500);
/// The longest wait between two tries.
pub(super) const LAST_RETRY: Duration = Duration::from_secs(60);
/// The longest wait when the certificate has ended, or is about to: connections are being refused.
pub(super) const URGENT_RETRY: Duration = Duration::from_secs(5);
/// Never sooner than this after the last issue, however short-lived what the authority gives.
pub(super) const SHORTEST_ROTATION: Duration = Duration::from_secs(1);
/// How long a step of the wall clock, or the end of a sleep, can go unnoticed.
pub(super) const CLOCK_CHECK: Duration = Duration::from_secs(5);
/// When the authority signs with another root, each certificate is renewed within this: not all at once.
pub(super) const RENEWAL_SPREAD: Duration = Duration::from_secs(5);

/// Validity of a certificate, and when it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Validity {
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    pub issued: SystemTime,
}

/// When the next certificate is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Schedule {
    /// By the wall clock.
    pub renew_at: SystemTime,
    /// Not before this, by the monotonic clock.
    pub retry_at: Instant,
}

impl Schedule {
    /// As soon as the monotonic clock says so, whatever the other one says: it may be ahead now, and step back.
    pub fn at(mono: Instant) -> Self {
        Self { renew_at: UNIX_EPOCH, retry_at: mono }
    }

    /// After a certificate was issued: half of what it is good for, give or take a tenth, so that a node's certificates
    /// do not all come due at once. `random` is between 0 and 1.
    pub fn issued(validity: &Validity, mono: Instant, random: f64) -> Self {
        let left = validity.not_after.duration_since(validity.issued).unwrap_or_default();
        let renew_at = validity.issued + left.mul_f64(0.45 + 0.1 * random);
        Self { renew_at, retry_at: mono + SHORTEST_ROTATION }
    }

    /// Whether it is time. A certificate that starts after the present, although it was issued before it, comes from a
    /// clock that was ahead: peers whose clock is right would not take it.
    pub fn is_due(&self, validity: Option<&Validity>, wall: SystemTime, mono: Instant) -> bool {
        let stepped_back = validity.is_some_and(|validity| wall < validity.not_before.min(validity.issued));
        self.retry_at <= mono && (self.renew_at <= wall || stepped_back)
    }

    /// How long nothing can become due, but for a step of the clock.
    pub fn wait(&self, wall: SystemTime, mono: Instant) -> Duration {
        let renewal = self.renew_at.duration_since(wall).unwrap_or_default();
        renewal.max(self.retry_at.saturating_duration_since(mono)).min(CLOCK_CHECK)
    }
}

/// Doubles from the first retry to the last, or to the urgent one as the end comes near, and takes between half and all
/// of it. `left` is what the certificate is still good for.
pub(super) fn retry_delay(failures: u32, left: Duration, random: f64) -> Duration {
    let most = (left / 10).clamp(URGENT_RETRY, LAST_RETRY);
    let full = FIRST_RETRY.saturating_mul(1u32 << failures.min(16)).min(most);
    full.mul_f64(0.5 + 0.5 * random)
}

/// How bad it is that no certificate could be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Urgency {
    /// There is time for many more tries.
    Calm,
    /// Under a quarter of the certificate's life is left.
    Soon,
    /// It has ended, or there never was one: connections are refused.
    Ended,
}

/// Judges what is left.
pub(super) fn urgency(validity: Option<&Validity>, wall: SystemTime) -> Urgency {
    let Some(validity) = validity else { return Urgency::Ended };
    let left = validity.not_after.duration_since(wall).unwrap_or_default();
    let life = validity.not_after.duration_since(validity.issued).unwrap_or_default();
    match left {
        Duration::ZERO => Urgency::Ended,
        left if left < life / 4 => Urgency::Soon,
        _ => Urgency::Calm,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AN_HOUR: u64 = 3600;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    /// Issued at 100 h by the wall clock, backdated by a minute, good for four hours.
    fn four_hours() -> Validity {
        Validity { not_before: at(100 * AN_HOUR - 60), not_after: at(104 * AN_HOUR), issued: at(100 * AN_HOUR) }
    }

    #[test]
    fn the_wall_clock_decides_and_may_jump() {
        let start = Instant::now();
        let later = start + Duration::from_secs(2);
        let schedule = Schedule::issued(&four_hours(), start, 0.5);
        for (what, wall, is_due) in [
            ("just issued", 100 * AN_HOUR, false),
            ("an hour later", 101 * AN_HOUR, false),
            ("after half its life", 102 * AN_HOUR, true),
            ("a step past its end", 200 * AN_HOUR, true),
            ("a step back within the backdating", 100 * AN_HOUR - 59, false),
            ("a step back before its start", 100 * AN_HOUR - 61, true),
            ("a step back by years", 1, true),
        ] {
            assert_eq!(schedule.is_due(Some(&four_hours()), at(wall), later), is_due, "{what}");
        }
        // Not even then twice within the shortest rotation.
        assert!(!schedule.is_due(Some(&four_hours()), at(200 * AN_HOUR), start));
    }

    #[test]
    fn an_authority_whose_clock_is_ahead_is_not_asked_without_end() {
        let start = Instant::now();
        let early = Validity { not_before: at(101 * AN_HOUR), not_after: at(105 * AN_HOUR), issued: at(100 * AN_HOUR) };
        let schedule = Schedule::issued(&early, start, 0.0);
        assert!(!schedule.is_due(Some(&early), at(100 * AN_HOUR + 1), start + Duration::from_secs(2)));
        assert!(schedule.is_due(Some(&early), at(100 * AN_HOUR - 1), start + Duration::from_secs(2)));
    }

    /// A node that starts with its clock ahead: nothing could be issued by that clock, and it is put right.
    #[test]
    fn what_is_wanted_at_once_waits_for_no_clock_to_catch_up() {
        let start = Instant::now();
        let schedule = Schedule::at(start + FIRST_RETRY);
        for (validity, wall) in [(None, 108), (None, 100), (Some(four_hours()), 101), (None, 0)] {
            let (validity, wall) = (validity.as_ref(), at(wall * AN_HOUR));
            assert!(!schedule.is_due(validity, wall, start), "{wall:?}");
            assert!(schedule.is_due(validity, wall, start + FIRST_RETRY), "{wall:?}");
            assert_eq!(schedule.wait(wall, start), FIRST_RETRY, "{wall:?}");
        }
    }

    #[test]
    fn a_sleep_is_bounded_whatever_the_clocks_say() {
        let start = Instant::now();
        let far = Schedule { renew_at: at(u64::from(u32::MAX)), retry_at: start + LAST_RETRY };
        assert_eq!(far.wait(at(0), start), CLOCK_CHECK);
        assert_eq!(far.wait(at(u64::from(u32::MAX)), start + LAST_RETRY), Duration::ZERO);
        let soon = Schedule { renew_at: at(12), retry_at: start };
        assert_eq!(soon.wait(at(10), start), Duration::from_secs(2));
    }

    #[test]
    fn renewal_is_at_half_life_within_a_tenth() {
        for (random, seconds) in [(0.0, 6480), (0.5, 7200), (1.0, 7920)] {
            let renew_at = Schedule::issued(&four_hours(), Instant::now(), random).renew_at;
            let after = renew_at.duration_since(at(100 * AN_HOUR)).unwrap().as_secs_f64();
            assert!((after - f64::from(seconds)).abs() < 1.0, "{random}: {after}");
        }
    }

    #[test]
    fn retries_back_off_and_press_when_the_end_is_near() {
        let hours = Duration::from_secs(2 * AN_HOUR);
        for (failures, left, most) in [
            (0, hours, FIRST_RETRY),
            (1, hours, FIRST_RETRY * 2),
            (7, hours, LAST_RETRY),
            (u32::MAX, hours, LAST_RETRY),
            (20, Duration::from_secs(100), Duration::from_secs(10)),
            (20, Duration::ZERO, URGENT_RETRY),
        ] {
            assert_eq!(retry_delay(failures, left, 1.0), most, "{failures} {left:?}");
            assert_eq!(retry_delay(failures, left, 0.0), most / 2, "{failures} {left:?}");
        }
    }

    #[test]
    fn urgency_grows_with_the_age() {
        for (wall, expected) in [
            (100 * AN_HOUR, Urgency::Calm),
            (103 * AN_HOUR, Urgency::Calm),
            (103 * AN_HOUR + 1, Urgency::Soon),
            (104 * AN_HOUR, Urgency::Ended),
            (900 * AN_HOUR, Urgency::Ended),
        ] {
            assert_eq!(urgency(Some(&four_hours()), at(wall)), expected, "{wall}");
        }
        assert_eq!(urgency(None, at(0)), Urgency::Ended);
    }
}
