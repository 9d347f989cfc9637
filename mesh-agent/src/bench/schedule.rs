//! When which request is due.

use std::time::Duration;

/// So many requests a second, for so long; the first at its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    pub rate: u32,
    pub length: Duration,
}

impl Schedule {
    pub fn new(rate: u32, length: Duration) -> Self {
        Self { rate, length }
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        let count = u128::from(self.rate) * self.length.as_nanos() / Duration::from_secs(1).as_nanos();
        u64::try_from(count).unwrap_or(u64::MAX)
    }

    /// When one is due, since the beginning. Each is counted from there, so that no error adds up.
    pub fn due(&self, number: u64) -> Duration {
        let nanos = u128::from(number) * Duration::from_secs(1).as_nanos() / u128::from(self.rate.max(1));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_has_its_time() {
        let second = Duration::from_secs(1);
        let table = [
            (100, 10 * second, 1000, Duration::from_millis(9_990)),
            (1, 3 * second, 3, 2 * second),
            // Thirds are no whole nanoseconds, and do not add up to less.
            (3, 1000 * second, 3000, Duration::from_nanos(999_666_666_666)),
            (10, Duration::from_millis(250), 2, Duration::from_millis(100)),
            (20_000, 3600 * second, 72_000_000, Duration::from_micros(3_599_999_950)),
        ];
        for (rate, length, count, last) in table {
            let schedule = Schedule::new(rate, length);
            assert_eq!((schedule.count(), schedule.due(count - 1)), (count, last), "{schedule:?}");
            assert_eq!(schedule.due(0), Duration::ZERO);
            assert!(schedule.due(count - 1) < length, "{schedule:?}");
        }
    }
}
