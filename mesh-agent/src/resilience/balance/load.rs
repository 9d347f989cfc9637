//! Peak EWMA: what an endpoint's next request is likely to cost. A slow answer counts at once and in full, fast ones win it
//! back over time, and what is not asked for long is forgotten, so that it is tried again. After Finagle's and
//! linkerd2-proxy's.

use std::time::{Duration, Instant};

use crate::resilience::limits::{DEFAULT_RTT, RTT_DECAY};

/// A moving average of round trips that peaks raise at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct PeakEwma {
    /// In seconds, at `at`.
    rtt: f64,
    at: Instant,
}

impl PeakEwma {
    pub(super) fn new(now: Instant) -> Self {
        Self { rtt: DEFAULT_RTT.as_secs_f64(), at: now }
    }

    /// Takes a measured round trip in.
    pub(super) fn note(&mut self, sample: Duration, now: Instant) {
        let sample = sample.as_secs_f64();
        let kept = self.kept(now);
        self.rtt = if sample > self.rtt { sample } else { self.rtt * kept + sample * (1.0 - kept) };
        self.at = self.at.max(now);
    }

    /// The estimate now, in seconds, times the requests that the next one would share the endpoint with.
    pub(super) fn cost(&self, in_flight: u32, now: Instant) -> f64 {
        self.rtt * self.kept(now) * (f64::from(in_flight) + 1.0)
    }

    /// How much of what was known is still worth.
    fn kept(&self, now: Instant) -> f64 {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        (-elapsed / RTT_DECAY.as_secs_f64()).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_counts_at_once_and_fades() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut load = PeakEwma::new(start);
        assert!((load.cost(0, start) - 0.03).abs() < 1e-9, "the default");
        load.note(Duration::from_secs(2), at(1));
        assert!((load.cost(0, at(1)) - 2.0).abs() < 1e-9, "a peak counts in full");
        assert!((load.cost(3, at(1)) - 8.0).abs() < 1e-9, "four would share it");
        load.note(Duration::from_millis(10), at(11));
        let faded = load.cost(0, at(11));
        assert!(faded > 0.7 && faded < 0.8, "after one time constant 37 % is left: {faded}");
        assert!(load.cost(0, at(100)) < 0.001, "forgotten");
        load.note(Duration::from_millis(20), at(5));
        assert!(load.cost(0, at(100)).is_finite(), "a clock that goes back does no harm");
    }
}
