//! What the client hears when a request is not sent on, in one place.

use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};

use super::balance::NoEndpoint;
use super::outcome::{GRPC_DEADLINE_EXCEEDED, GRPC_RESOURCE_EXHAUSTED, GRPC_UNAVAILABLE};
use super::policy::Abort;
use super::rate::Limited;

/// Why a request is answered here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No endpoint can be chosen.
    NoEndpoint(NoEndpoint),
    /// A limit on connections, or on requests that wait for one.
    Overflow,
    /// One more retry would exceed the budget.
    RetryBudget,
    /// A rate limit.
    Limited(Limited),
    /// The agent has too much to do.
    Shed,
    /// A fault on purpose.
    Fault(Abort),
    /// The time for the request is over, or that for the only try.
    Timeout,
    /// No try reached an endpoint.
    Unreachable,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code; 200 for gRPC, whose own status is in `grpc`.
    pub status: StatusCode,
    /// grpc-status; None: the client speaks no gRPC.
    pub grpc: Option<u32>,
    /// Further headers.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// For log and metrics.
    pub mark: Mark,
}

/// What a log line and a metric say about an answer that is the mesh's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mark {
    /// The Service has no endpoint.
    NoEndpoint,
    /// All endpoints are ejected.
    AllEjected,
    /// A circuit breaker.
    Overflow,
    /// Over the retry budget.
    RetryBudget,
    /// Rate limited.
    RateLimited,
    /// Load shedding.
    Shed,
    /// A fault on purpose.
    FaultInjected,
    /// Time is over.
    Timeout,
    /// No endpoint was reached.
    Unreachable,
}

impl Mark {
    /// As logs and metrics have it; never changed.
    pub fn as_str(self) -> &'static str {
        match self {
            Mark::NoEndpoint => "no-endpoint",
            Mark::AllEjected => "all-ejected",
            Mark::Overflow => "overflow",
            Mark::RetryBudget => "retry-budget",
            Mark::RateLimited => "rate-limited",
            Mark::Shed => "shed",
            Mark::FaultInjected => "fault-injected",
            Mark::Timeout => "timed-out",
            Mark::Unreachable => "unreachable",
        }
    }
}

/// RateLimit, of draft-ietf-httpapi-ratelimit-headers.
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
/// RateLimit-Policy, of the same.
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

impl Refusal {
    /// The answer to a client that speaks gRPC, or does not.
    pub fn answer(&self, is_grpc: bool) -> Answer {
        let (status, grpc, mark) = self.words();
        let headers = match self {
            Refusal::Limited(limited) => limited.headers(),
            _ => Vec::new(),
        };
        // An abort says itself which of the two it is.
        let of_grpc = match self {
            Refusal::Fault(Abort::Grpc(_)) => true,
            Refusal::Fault(Abort::Http(_)) => false,
            _ => is_grpc,
        };
        match of_grpc {
            true => Answer { status: StatusCode::OK, grpc: Some(grpc), headers, mark },
            false => Answer { status, grpc: None, headers, mark },
        }
    }

    /// Status code, grpc-status and mark.
    fn words(&self) -> (StatusCode, u32, Mark) {
        let unavailable = |mark| (StatusCode::SERVICE_UNAVAILABLE, GRPC_UNAVAILABLE, mark);
        match self {
            Refusal::NoEndpoint(NoEndpoint::None) => unavailable(Mark::NoEndpoint),
            Refusal::NoEndpoint(NoEndpoint::AllEjected) => unavailable(Mark::AllEjected),
            Refusal::NoEndpoint(NoEndpoint::Overflow(_)) | Refusal::Overflow => unavailable(Mark::Overflow),
            Refusal::RetryBudget => unavailable(Mark::RetryBudget),
            Refusal::Shed => unavailable(Mark::Shed),
            Refusal::Unreachable => unavailable(Mark::Unreachable),
            Refusal::Limited(_) => (StatusCode::TOO_MANY_REQUESTS, GRPC_RESOURCE_EXHAUSTED, Mark::RateLimited),
            Refusal::Timeout => (StatusCode::GATEWAY_TIMEOUT, GRPC_DEADLINE_EXCEEDED, Mark::Timeout),
            Refusal::Fault(Abort::Http(status)) => (*status, GRPC_UNAVAILABLE, Mark::FaultInjected),
            Refusal::Fault(Abort::Grpc(code)) => (StatusCode::OK, *code, Mark::FaultInjected),
        }
    }
}

impl Limited {
    /// Retry-After (RFC 9110 section 10.2.3), RateLimit-Policy and RateLimit (draft-ietf-httpapi-ratelimit-headers: an
    /// item named after the limit with the quota `q` of a window of `w` seconds, and with `r` remaining requests, more of
    /// them after `t` seconds).
    pub fn headers(&self) -> Vec<(HeaderName, HeaderValue)> {
        let wait = whole_seconds(self.retry_after);
        let window = whole_seconds(self.per);
        let quota = match window {
            // Windows are whole seconds there: a shorter one is said as what it comes to in a second.
            1 => (self.requests as f64 / self.per.as_secs_f64().min(1.0)) as u64,
            _ => self.requests,
        };
        let name = &self.name;
        let texts = [
            (http::header::RETRY_AFTER, wait.to_string()),
            (RATE_LIMIT_POLICY, format!("\"{name}\";q={quota};w={window}")),
            (RATE_LIMIT, format!("\"{name}\";r=0;t={wait}")),
        ];
        let values = texts.into_iter().filter_map(|(name, text)| Some((name, HeaderValue::try_from(text).ok()?)));
        values.collect()
    }
}

/// Rounded up, at least one: a client that comes a moment early is refused again.
fn whole_seconds(time: Duration) -> u64 {
    let more = u64::from(time.subsec_nanos() > 0);
    time.as_secs().saturating_add(more).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resilience::pool::Counted;

    fn limited(requests: u64, per: Duration, retry_after: Duration) -> Limited {
        Limited { name: "per-user".into(), requests, per, retry_after }
    }

    #[test]
    fn what_the_client_hears() {
        let rate = limited(10, Duration::from_secs(1), Duration::from_millis(100));
        let table = [
            (Refusal::NoEndpoint(NoEndpoint::None), 503, 14, Mark::NoEndpoint),
            (Refusal::NoEndpoint(NoEndpoint::AllEjected), 503, 14, Mark::AllEjected),
            (Refusal::NoEndpoint(NoEndpoint::Overflow(Counted::Requests)), 503, 14, Mark::Overflow),
            (Refusal::Overflow, 503, 14, Mark::Overflow),
            (Refusal::RetryBudget, 503, 14, Mark::RetryBudget),
            (Refusal::Limited(rate), 429, 8, Mark::RateLimited),
            (Refusal::Shed, 503, 14, Mark::Shed),
            (Refusal::Timeout, 504, 4, Mark::Timeout),
            (Refusal::Unreachable, 503, 14, Mark::Unreachable),
        ];
        for (refusal, status, grpc, mark) in table {
            let plain = refusal.answer(false);
            assert_eq!((plain.status.as_u16(), plain.grpc, plain.mark), (status, None, mark), "{refusal:?}");
            let call = refusal.answer(true);
            assert_eq!((call.status.as_u16(), call.grpc, call.mark), (200, Some(grpc), mark), "{refusal:?}");
        }
        let teapot = Refusal::Fault(Abort::Http(StatusCode::IM_A_TEAPOT)).answer(true);
        assert_eq!((teapot.status, teapot.grpc), (StatusCode::IM_A_TEAPOT, None));
        let cancelled = Refusal::Fault(Abort::Grpc(1)).answer(false);
        assert_eq!((cancelled.status, cancelled.grpc), (StatusCode::OK, Some(1)));
    }

    #[test]
    fn headers_of_a_rate_limit() {
        let table = [
            (
                limited(100, Duration::from_secs(60), Duration::from_millis(1200)),
                ["2", "\"per-user\";q=100;w=60", "\"per-user\";r=0;t=2"],
            ),
            (
                limited(5, Duration::from_millis(500), Duration::from_millis(1)),
                ["1", "\"per-user\";q=10;w=1", "\"per-user\";r=0;t=1"],
            ),
        ];
        for (limited, expected) in table {
            let headers = limited.headers();
            let names: Vec<&str> = headers.iter().map(|(name, _)| name.as_str()).collect();
            let values: Vec<&str> = headers.iter().map(|(_, value)| value.to_str().unwrap()).collect();
            assert_eq!(names, ["retry-after", "ratelimit-policy", "ratelimit"]);
            assert_eq!(values, expected);
        }
        let odd = Limited { name: "a\nb".into(), ..limited(1, Duration::from_secs(1), Duration::ZERO) };
        assert_eq!(odd.headers().len(), 1, "a name that cannot be written leaves Retry-After alone");
    }
}
