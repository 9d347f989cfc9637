//! How a try ended, and what that says about the endpoint.

use std::time::Duration;

use http::StatusCode;

use super::limits::{BUSY_DEFAULT, BUSY_LONGEST};

/// A grpc-status, as gRPC's doc/statuscodes.md numbers them.
pub type GrpcStatus = u32;

/// grpc-status UNKNOWN
pub const GRPC_UNKNOWN: GrpcStatus = 2;
/// grpc-status DEADLINE_EXCEEDED
pub const GRPC_DEADLINE_EXCEEDED: GrpcStatus = 4;
/// grpc-status RESOURCE_EXHAUSTED
pub const GRPC_RESOURCE_EXHAUSTED: GrpcStatus = 8;
/// grpc-status INTERNAL
pub const GRPC_INTERNAL: GrpcStatus = 13;
/// grpc-status UNAVAILABLE
pub const GRPC_UNAVAILABLE: GrpcStatus = 14;
/// grpc-status DATA_LOSS
pub const GRPC_DATA_LOSS: GrpcStatus = 15;

/// How a try ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A response began.
    Answered {
        /// Its status.
        status: StatusCode,
        /// grpc-status, where it came with the headers.
        grpc: Option<GrpcStatus>,
        /// Retry-After, as a time from now.
        retry_after: Option<Duration>,
    },
    /// No connection: the endpoint saw nothing.
    ConnectFailed,
    /// The endpoint says that it did not look at the request.
    Refused,
    /// The connection or stream ended before a response began.
    Reset,
    /// No response within the time for a try.
    TimedOut,
}

/// What an outcome says about the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// It works; answers that are the caller's fault too.
    Well,
    /// It works and has too much to do: loaded less for so long, and never ejected for it.
    Busy(Duration),
    /// It failed at this request: 5xx.
    Failing,
    /// It, or the way to it, is not there: 502, 503, 504, and what has no response.
    Unreachable,
}

impl Outcome {
    /// A response with a status alone.
    pub fn status(status: StatusCode) -> Self {
        Outcome::Answered { status, grpc: None, retry_after: None }
    }

    /// Whether another endpoint might have done better.
    pub fn is_failure(&self) -> bool {
        self.sign() != Sign::Well
    }

    /// What it says about the endpoint.
    pub fn sign(&self) -> Sign {
        match *self {
            Outcome::ConnectFailed | Outcome::Reset | Outcome::TimedOut => Sign::Unreachable,
            // A server that goes away politely, or is at its limit of streams.
            Outcome::Refused => Sign::Busy(BUSY_DEFAULT),
            Outcome::Answered { status, grpc, retry_after } => answered(status, grpc, retry_after),
        }
    }
}

fn answered(status: StatusCode, grpc: Option<GrpcStatus>, retry_after: Option<Duration>) -> Sign {
    let busy = || Sign::Busy(retry_after.unwrap_or(BUSY_DEFAULT).min(BUSY_LONGEST));
    match (status, grpc) {
        (StatusCode::TOO_MANY_REQUESTS, _) | (_, Some(GRPC_RESOURCE_EXHAUSTED)) => busy(),
        (StatusCode::SERVICE_UNAVAILABLE, _) if retry_after.is_some() => busy(),
        (StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT, _)
        | (_, Some(GRPC_UNAVAILABLE | GRPC_DEADLINE_EXCEEDED)) => Sign::Unreachable,
        (_, Some(GRPC_UNKNOWN | GRPC_INTERNAL | GRPC_DATA_LOSS)) => Sign::Failing,
        _ if status.is_server_error() => Sign::Failing,
        _ => Sign::Well,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_outcomes_say_of_an_endpoint() {
        let answer = |status: u16, grpc, after: Option<u64>| Outcome::Answered {
            status: StatusCode::from_u16(status).unwrap(),
            grpc,
            retry_after: after.map(Duration::from_secs),
        };
        let busy = |seconds| Sign::Busy(Duration::from_secs(seconds));
        let table = [
            (answer(200, None, None), Sign::Well),
            (answer(404, None, None), Sign::Well),
            (answer(429, None, None), busy(1)),
            (answer(429, None, Some(7)), busy(7)),
            (answer(429, None, Some(86_400)), busy(60)),
            (answer(503, None, Some(2)), busy(2)),
            (answer(503, None, None), Sign::Unreachable),
            (answer(502, None, None), Sign::Unreachable),
            (answer(504, None, None), Sign::Unreachable),
            (answer(500, None, None), Sign::Failing),
            (answer(501, None, None), Sign::Failing),
            (answer(200, Some(0), None), Sign::Well),
            (answer(200, Some(5), None), Sign::Well),
            (answer(200, Some(12), None), Sign::Well),
            (answer(200, Some(8), None), busy(1)),
            (answer(200, Some(13), None), Sign::Failing),
            (answer(200, Some(14), None), Sign::Unreachable),
            (Outcome::ConnectFailed, Sign::Unreachable),
            (Outcome::Refused, busy(1)),
            (Outcome::Reset, Sign::Unreachable),
            (Outcome::TimedOut, Sign::Unreachable),
        ];
        for (outcome, sign) in table {
            assert_eq!(outcome.sign(), sign, "{outcome:?}");
        }
    }
}
