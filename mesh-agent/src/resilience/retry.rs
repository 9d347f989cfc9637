//! Whether a request that failed is tried again, and when. The budget is asked last, so that only retries that would be
//! made are counted against it.

use std::time::{Duration, Instant};

use fastrand::Rng;
use http::{Method, StatusCode};

use super::budget::Budget;
use super::limits::RETRY_LONGEST_WAIT;
use super::outcome::Outcome;
use super::policy::Retry;

/// A try that failed, or that may have.
#[derive(Clone, Copy, Debug)]
pub struct Tried<'a> {
    /// The request's method.
    pub method: &'a Method,
    /// Tries so far, this one included.
    pub tries: u32,
    /// How this one ended.
    pub outcome: &'a Outcome,
    /// Whether the whole body can be sent again: there is none, or it is kept. A body of which nothing was sent yet can.
    pub body_is_whole: bool,
    /// What is left of the time for the request; None: no limit.
    pub time_left: Option<Duration>,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Try again after this pause, at another endpoint if there is one.
    Again(Duration),
    /// Pass on what there is: the response, or 502, 503, 504 for what has none.
    GiveUp(Why),
    /// Answer 503: the budget is spent (GEP-3388).
    OverBudget,
}

/// Why there is no other try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The policy does not ask for it after this outcome.
    NotAsked,
    /// The endpoint may have seen the request, and to make it twice may do harm.
    NotIdempotent,
    /// The policy's number of tries is reached.
    Attempts,
    /// The body was longer than is kept.
    Body,
    /// The pause would outlast the time for the request, or is longer than anybody should wait here.
    Time,
}

/// Decides.
pub fn decide(policy: &Retry, tried: &Tried<'_>, budget: &mut Budget, now: Instant, rng: &mut Rng) -> Decision {
    match allowed(policy, tried, rng) {
        Err(why) => Decision::GiveUp(why),
        Ok(_) if !budget.take_retry(now) => Decision::OverBudget,
        Ok(pause) => Decision::Again(pause),
    }
}

/// Everything but the budget.
fn allowed(policy: &Retry, tried: &Tried<'_>, rng: &mut Rng) -> Result<Duration, Why> {
    match asked(policy, tried.outcome) {
        Asked::No => return Err(Why::NotAsked),
        Asked::Unseen | Asked::ByName => {}
        Asked::MaybeSeen if policy.not_idempotent || is_idempotent(tried.method) => {}
        Asked::MaybeSeen => return Err(Why::NotIdempotent),
    }
    if tried.tries > policy.attempts {
        return Err(Why::Attempts);
    }
    if !tried.body_is_whole {
        return Err(Why::Body);
    }
    let pause = pause(policy, tried, rng)?;
    if tried.time_left.is_some_and(|left| pause >= left) { Err(Why::Time) } else { Ok(pause) }
}

/// Whether a policy asks for a retry after an outcome, and whether the endpoint may have acted on the request.
enum Asked {
    No,
    /// It surely has not: any method may be sent again (RFC 9110 section 9.2.2, RFC 9113 section 8.7).
    Unseen,
    MaybeSeen,
    /// The policy names the grpc-status: calls are all POST, so only who knows the service can say, as in gRPC's own
    /// retry policy.
    ByName,
}

fn asked(policy: &Retry, outcome: &Outcome) -> Asked {
    let maybe_seen = |asked| if asked { Asked::MaybeSeen } else { Asked::No };
    match *outcome {
        Outcome::ConnectFailed if policy.connect_failure => Asked::Unseen,
        Outcome::Refused if policy.refused_stream => Asked::Unseen,
        Outcome::ConnectFailed | Outcome::Refused => Asked::No,
        Outcome::Reset => maybe_seen(policy.reset),
        Outcome::TimedOut => maybe_seen(policy.per_try_timeout),
        Outcome::Answered { grpc: Some(code), .. } if policy.grpc_codes.contains(&code) => Asked::ByName,
        // Of a gRPC response the status code says nothing.
        Outcome::Answered { grpc: Some(_), status: StatusCode::OK, .. } => Asked::No,
        Outcome::Answered { status, .. } => maybe_seen(policy.codes.contains(&status)),
    }
}

/// RFC 9110 section 9.2.2. An extension method may mean anything.
fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE)
}

/// The first pause is the shortest, each further one twice the one before, up to the longest; up to half of it comes on
/// top by chance, so that clients who failed together do not come back together. Never shorter than the endpoint asks.
fn pause(policy: &Retry, tried: &Tried<'_>, rng: &mut Rng) -> Result<Duration, Why> {
    let doublings = tried.tries.saturating_sub(1).min(16);
    let longest = policy.longest_backoff.max(policy.backoff);
    let grown = policy.backoff.saturating_mul(1 << doublings).min(longest);
    let jittered = grown.saturating_add(grown.mul_f64(rng.f64() / 2.0));
    match tried.outcome {
        Outcome::Answered { retry_after: Some(asked), .. } if *asked > RETRY_LONGEST_WAIT => Err(Why::Time),
        Outcome::Answered { retry_after: Some(asked), .. } => Ok(jittered.max(*asked)),
        _ => Ok(jittered),
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use fastrand::Rng;
    use proptest::prelude::*;

    use super::*;
    use crate::resilience::policy::RetryBudget;

    fn answered(status: u16, grpc: Option<u32>, after: Option<u64>) -> Outcome {
        let status = StatusCode::from_u16(status).unwrap();
        Outcome::Answered { status, grpc, retry_after: after.map(Duration::from_secs) }
    }

    fn tried<'a>(method: &'a Method, outcome: &'a Outcome) -> Tried<'a> {
        Tried { method, tries: 1, outcome, body_is_whole: true, time_left: None }
    }

    fn budget(percent: u32, least: u32) -> Budget {
        let policy = RetryBudget { percent, min_retries: least, ..RetryBudget::default() };
        Budget::new(policy, NonZeroU32::MIN, Instant::now())
    }

    fn decided(policy: &Retry, tried: &Tried<'_>) -> Decision {
        decide(policy, tried, &mut budget(20, 10), Instant::now(), &mut Rng::with_seed(1))
    }

    #[test]
    fn what_is_tried_again() {
        let default = Retry::default();
        let any_method = Retry { not_idempotent: true, ..default.clone() };
        let grpc = Retry { grpc_codes: vec![14], ..default.clone() };
        let nothing = Retry {
            connect_failure: false,
            refused_stream: false,
            reset: false,
            per_try_timeout: false,
            codes: Vec::new(),
            ..default.clone()
        };
        let (get, put, post) = (Method::GET, Method::PUT, Method::POST);
        let own = Method::from_bytes(b"RESERVE").unwrap();
        let (not_asked, harmful) = (Some(Why::NotAsked), Some(Why::NotIdempotent));
        let table = [
            (&default, &get, Outcome::ConnectFailed, None),
            (&default, &post, Outcome::ConnectFailed, None),
            (&default, &post, Outcome::Refused, None),
            (&default, &get, Outcome::Reset, None),
            (&default, &put, Outcome::Reset, None),
            (&default, &post, Outcome::Reset, harmful),
            (&default, &own, Outcome::Reset, harmful),
            (&any_method, &post, Outcome::Reset, None),
            (&default, &get, Outcome::TimedOut, None),
            (&default, &post, Outcome::TimedOut, harmful),
            (&default, &get, answered(503, None, None), None),
            (&default, &post, answered(503, None, None), harmful),
            (&any_method, &post, answered(503, None, None), None),
            (&default, &get, answered(500, None, None), not_asked),
            (&default, &get, answered(200, None, None), not_asked),
            (&grpc, &post, answered(200, Some(14), None), None),
            (&grpc, &post, answered(200, Some(13), None), not_asked),
            (&grpc, &post, answered(200, Some(0), None), not_asked),
            (&default, &post, answered(200, Some(14), None), not_asked),
            (&nothing, &get, Outcome::ConnectFailed, not_asked),
            (&nothing, &get, Outcome::Refused, not_asked),
            (&nothing, &get, Outcome::Reset, not_asked),
            (&nothing, &get, Outcome::TimedOut, not_asked),
        ];
        for (policy, method, outcome, gives_up) in table {
            let decision = decided(policy, &tried(method, &outcome));
            match gives_up {
                Some(why) => assert_eq!(decision, Decision::GiveUp(why), "{method} {outcome:?}"),
                None => assert!(matches!(decision, Decision::Again(_)), "{method} {outcome:?}: {decision:?}"),
            }
        }
    }

    #[test]
    fn what_ends_the_tries() {
        let policy = Retry { attempts: 2, backoff: Duration::from_millis(100), ..Retry::default() };
        let reset = Outcome::Reset;
        let base = tried(&Method::GET, &reset);
        let patient = answered(503, None, Some(2));
        let too_long = answered(503, None, Some(6));
        let left = |millis| Some(Duration::from_millis(millis));
        let table = [
            (Tried { tries: 2, ..base }, None),
            (Tried { tries: 3, ..base }, Some(Why::Attempts)),
            (Tried { body_is_whole: false, ..base }, Some(Why::Body)),
            (Tried { time_left: left(90), ..base }, Some(Why::Time)),
            (Tried { time_left: left(1000), ..base }, None),
            (Tried { outcome: &patient, time_left: left(3000), ..base }, None),
            (Tried { outcome: &patient, time_left: left(1500), ..base }, Some(Why::Time)),
            (Tried { outcome: &too_long, ..base }, Some(Why::Time)),
        ];
        for (tried, gives_up) in table {
            let decision = decided(&policy, &tried);
            assert_eq!(matches!(decision, Decision::Again(_)), gives_up.is_none(), "{tried:?}: {decision:?}");
            assert!(gives_up.is_none_or(|why| decision == Decision::GiveUp(why)), "{tried:?}: {decision:?}");
        }
    }

    #[test]
    fn over_the_budget_nothing_is_tried_and_what_is_not_tried_costs_none() {
        let (policy, outcome) = (Retry::default(), Outcome::Reset);
        let (mut budget, mut rng, now) = (budget(0, 1), Rng::with_seed(1), Instant::now());
        let mut decide = |method| decide(&policy, &tried(method, &outcome), &mut budget, now, &mut rng);
        for _ in 0..100 {
            assert_eq!(decide(&Method::POST), Decision::GiveUp(Why::NotIdempotent));
        }
        for _ in 0..10 {
            assert!(matches!(decide(&Method::GET), Decision::Again(_)));
        }
        assert_eq!(decide(&Method::GET), Decision::OverBudget);
    }

    proptest! {
        /// Pauses are never shorter than asked for, grow no further than the longest and half of that, and never panic.
        #[test]
        fn pauses_keep_within_their_bounds(
            millis in 0_u64..100_000,
            longest in 0_u64..100_000,
            tries in 1_u32..=u32::MAX,
            seed in any::<u64>(),
        ) {
            let backoff = Duration::from_millis(millis);
            let policy = Retry { backoff, longest_backoff: Duration::from_millis(longest), attempts: u32::MAX, ..Retry::default() };
            let outcome = Outcome::Reset;
            let tried = Tried { tries, ..tried(&Method::GET, &outcome) };
            let pause = pause(&policy, &tried, &mut Rng::with_seed(seed)).unwrap();
            let most = policy.longest_backoff.max(backoff);
            prop_assert!(pause >= backoff && pause <= most + most / 2 + Duration::from_millis(1));
        }
    }
}
