//! Faults on purpose: whether a request is delayed or answered by the mesh itself. The caller marks the request's log line
//! with the fault's name, so that nobody takes it for a real one.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;

use super::limits::MAX_FAULT_DELAY;
use super::policy::{Abort, Delay, Fault, Share};
use super::request::Request;

/// What is done to one request: first the delay, then the abort.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Injection {
    /// By which fault, and how long.
    pub delay: Option<(Arc<str>, Duration)>,
    /// By which fault, and what is answered.
    pub abort: Option<(Arc<str>, Abort)>,
}

/// Decides by chance. Of several faults about a request, the first that hits delays it, and the first that hits aborts it.
pub fn decide(faults: &[Fault], request: &Request<'_>, rng: &mut Rng) -> Injection {
    let mut injection = Injection::default();
    for fault in faults.iter().filter(|fault| fault.when.is_about(request)) {
        if let Some((share, delay)) = fault.delay.filter(|_| injection.delay.is_none())
            && share.hits(rng)
        {
            injection.delay = Some((fault.name.clone(), delay.length(rng)));
        }
        if let Some((share, abort)) = fault.abort.filter(|_| injection.abort.is_none())
            && share.hits(rng)
        {
            injection.abort = Some((fault.name.clone(), abort));
        }
    }
    injection
}

impl Share {
    fn hits(&self, rng: &mut Rng) -> bool {
        self.denominator > 0 && rng.u32(..self.denominator) < self.numerator
    }
}

impl Delay {
    fn length(&self, rng: &mut Rng) -> Duration {
        let length = match *self {
            Delay::Fixed(length) => length,
            Delay::Uniform { least, most } => {
                least.saturating_add(most.saturating_sub(least).min(MAX_FAULT_DELAY).mul_f64(rng.f64()))
            }
            Delay::Exponential { mean, most } => {
                // The chance is below 1, so its complement is above 0 and the logarithm finite.
                let times = -(1.0 - rng.f64()).ln();
                mean.min(MAX_FAULT_DELAY).mul_f64(times.min(1e6)).min(most)
            }
        };
        length.min(MAX_FAULT_DELAY)
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, StatusCode};

    use super::*;
    use crate::resilience::policy::{PathMatch, RequestMatch};
    use crate::resilience::request::tests::get;

    fn fault(name: &str, delay: Option<(u32, Delay)>, abort: Option<(u32, Abort)>) -> Fault {
        Fault {
            name: name.into(),
            when: RequestMatch { paths: vec![PathMatch::Prefix("/api".into())], ..RequestMatch::default() },
            delay: delay.map(|(percent, delay)| (Share::percent(percent), delay)),
            abort: abort.map(|(percent, abort)| (Share::percent(percent), abort)),
        }
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn decided(faults: &[Fault], path: &str, times: usize) -> Vec<Injection> {
        let (headers, mut rng) = (HeaderMap::new(), Rng::with_seed(3));
        (0..times).map(|_| decide(faults, &get(path, &headers), &mut rng)).collect()
    }

    #[test]
    fn the_first_that_hits() {
        let (never, always) = (0, 100);
        let teapot = Abort::Http(StatusCode::IM_A_TEAPOT);
        let faults = [
            fault("never", Some((never, Delay::Fixed(seconds(9)))), Some((never, teapot))),
            fault("slow", Some((always, Delay::Fixed(seconds(1)))), None),
            fault("both", Some((always, Delay::Fixed(seconds(2)))), Some((always, Abort::Grpc(14)))),
        ];
        let expected =
            Injection { delay: Some(("slow".into(), seconds(1))), abort: Some(("both".into(), Abort::Grpc(14))) };
        assert_eq!(decided(&faults, "/api/x", 1), [expected]);
        assert_eq!(decided(&faults, "/other", 1), [Injection::default()]);
    }

    #[test]
    fn a_share_is_hit_as_often_as_it_says_and_a_seed_repeats() {
        let faults = [fault("some", None, Some((30, Abort::Http(StatusCode::BAD_GATEWAY))))];
        let found = decided(&faults, "/api", 10_000);
        let hits = found.iter().filter(|injection| injection.abort.is_some()).count();
        assert!((2800..3200).contains(&hits), "{hits} of 10000");
        assert_eq!(found, decided(&faults, "/api", 10_000));
        let broken =
            Fault { abort: Some((Share { numerator: 1, denominator: 0 }, Abort::Grpc(1))), ..faults[0].clone() };
        assert_eq!(decided(&[broken], "/api", 1), [Injection::default()]);
    }

    #[test]
    fn delays_keep_within_their_bounds() {
        let ms = Duration::from_millis;
        let table = [
            (Delay::Fixed(ms(5)), ms(5), ms(5), 5.0),
            (Delay::Fixed(seconds(90_000)), MAX_FAULT_DELAY, MAX_FAULT_DELAY, 300_000.0),
            (Delay::Uniform { least: ms(10), most: ms(30) }, ms(10), ms(30), 20.0),
            (Delay::Uniform { least: ms(30), most: ms(10) }, ms(30), ms(30), 30.0),
            (Delay::Exponential { mean: ms(20), most: seconds(9) }, ms(0), seconds(9), 20.0),
            (Delay::Exponential { mean: ms(20), most: ms(1) }, ms(0), ms(1), 1.0),
        ];
        for (delay, least, most, mean) in table {
            let mut rng = Rng::with_seed(5);
            let lengths: Vec<Duration> = (0..4000).map(|_| delay.length(&mut rng)).collect();
            assert!(lengths.iter().all(|length| (least..=most).contains(length)), "{delay:?}");
            let found = lengths.iter().map(Duration::as_secs_f64).sum::<f64>() * 1000.0 / 4000.0;
            assert!((found - mean).abs() <= mean * 0.08, "{delay:?}: mean {found} ms");
        }
    }
}
