//! What a load came to.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::line::Answer;
use super::schedule::Schedule;

/// The longest latency that is told apart: longer than any answer is waited for.
pub(super) const SLOWEST: Duration = Duration::from_secs(120);
/// Of a latency: a thousandth of it is as near as anybody looks.
const DIGITS: u8 = 3;

/// How a request fails that has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// Nobody listens there, or the kernel refused for the mesh.
    Refused,
    /// No way leads there.
    Unreachable,
    /// The connection was reset.
    Reset,
    /// The connection ended before the answer did.
    Closed,
    /// What came is no HTTP.
    NotHttp,
    /// No whole answer in time.
    Timeout,
    /// All connections waited for other answers for so long.
    Unsent,
    /// Anything else.
    Other,
}

impl Failure {
    /// As people and machines read it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::Reset => "reset",
            Self::Closed => "closed",
            Self::NotHttp => "not-http",
            Self::Timeout => "timeout",
            Self::Unsent => "unsent",
            Self::Other => "other",
        }
    }
}

/// What became of a request.
#[derive(Clone, Copy, Debug)]
pub enum Outcome {
    /// It was answered, so long after it was due.
    Answered { answer: Answer, latency: Duration },
    /// It was not.
    Failed(Failure),
}

/// What was counted so far.
pub struct Tally {
    /// Microseconds. None only if its bounds were none.
    latencies: Option<Histogram<u64>>,
    slowest: Duration,
    sum: Duration,
    statuses: BTreeMap<u16, u64>,
    errors: BTreeMap<Failure, u64>,
    late: u64,
    bytes: u64,
}

/// What a load came to. Its JSON is an interface.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// What was asked for.
    pub url: String,
    /// Requests a second that were due.
    pub rate: u32,
    /// By how many connections.
    pub connections: u32,
    /// From when the first was due until the last was answered or given up.
    pub duration_seconds: f64,
    /// How many were due.
    pub requests: u64,
    /// Answered with a status below 400.
    pub ok: u64,
    /// The others.
    pub failed: u64,
    /// Sent later than they were due by more than the machine itself is late: every connection waited for an answer.
    pub late: u64,
    /// Answers of any status in a second.
    pub answered_per_second: f64,
    /// Of answers' bodies.
    pub received_bytes: u64,
    /// From when a request was due until its whole answer was there. None where nothing was answered.
    pub latency_seconds: Option<Latency>,
    /// Answers by status.
    pub statuses: BTreeMap<u16, u64>,
    /// Requests without an answer, by [`Failure::word`].
    pub errors: BTreeMap<String, u64>,
}

/// How long answers took, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Latency {
    /// All together by their number.
    pub mean: f64,
    /// Of a hundred, so many took no longer.
    pub p50: f64,
    /// See `p50`.
    pub p90: f64,
    /// See `p50`.
    pub p99: f64,
    /// Of a thousand, so many took no longer.
    pub p999: f64,
    /// The slowest.
    pub max: f64,
}

/// The least status that is no success.
const FIRST_BAD: u16 = 400;

impl Tally {
    pub fn new() -> Self {
        let most = u64::try_from(SLOWEST.as_micros()).unwrap_or(u64::MAX);
        Self {
            latencies: Histogram::new_with_bounds(1, most, DIGITS).ok(),
            slowest: Duration::ZERO,
            sum: Duration::ZERO,
            statuses: BTreeMap::new(),
            errors: BTreeMap::new(),
            late: 0,
            bytes: 0,
        }
    }

    pub fn count(&mut self, outcome: Outcome, is_late: bool) {
        self.late += u64::from(is_late);
        match outcome {
            Outcome::Failed(failure) => *self.errors.entry(failure).or_default() += 1,
            Outcome::Answered { answer: Answer { status, bytes }, latency } => {
                *self.statuses.entry(status).or_default() += 1;
                self.bytes += bytes;
                self.slowest = self.slowest.max(latency);
                self.sum += latency;
                if let Some(latencies) = &mut self.latencies {
                    latencies.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
                }
            }
        }
    }

    fn answered(&self) -> u64 {
        self.statuses.values().sum()
    }

    /// Answered or failed.
    pub fn done(&self) -> u64 {
        self.answered() + self.errors.values().sum::<u64>()
    }

    /// Without an answer, or with one that says so.
    pub fn failed(&self) -> u64 {
        let refused: u64 = self.statuses.range(FIRST_BAD..).map(|(_, count)| count).sum();
        refused + self.errors.values().sum::<u64>()
    }

    pub fn summary(&self, url: &str, schedule: Schedule, connections: u32, took: Duration) -> Summary {
        let seconds = took.as_secs_f64();
        Summary {
            url: url.to_string(),
            rate: schedule.rate,
            connections,
            duration_seconds: seconds,
            requests: self.done(),
            ok: self.done() - self.failed(),
            failed: self.failed(),
            late: self.late,
            answered_per_second: if seconds > 0.0 { self.answered() as f64 / seconds } else { 0.0 },
            received_bytes: self.bytes,
            latency_seconds: self.latency(),
            statuses: self.statuses.clone(),
            errors: self.errors.iter().map(|(failure, count)| (failure.word().to_string(), *count)).collect(),
        }
    }

    fn latency(&self) -> Option<Latency> {
        let latencies = self.latencies.as_ref().filter(|latencies| !latencies.is_empty())?;
        let max = self.slowest.as_secs_f64();
        // What is kept of a latency may be a thousandth more than it was.
        let at = |share: f64| (latencies.value_at_quantile(share) as f64 / 1e6).min(max);
        Some(Latency {
            mean: self.sum.as_secs_f64() / self.answered() as f64,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(status: u16, latency: Duration) -> Outcome {
        Outcome::Answered { answer: Answer { status, bytes: 10 }, latency }
    }

    #[test]
    fn all_of_them_are_told_of() {
        let mut tally = Tally::new();
        // 1 ms to 1 s.
        for number in 1..=1000 {
            tally
                .count(answered(if number % 10 == 0 { 503 } else { 200 }, Duration::from_millis(number)), number > 990);
        }
        tally.count(Outcome::Failed(Failure::Timeout), true);
        tally.count(Outcome::Failed(Failure::Reset), false);
        tally.count(Outcome::Failed(Failure::Reset), false);
        let told = tally.summary("http://a/", Schedule::new(100, Duration::from_secs(10)), 4, Duration::from_secs(20));
        assert_eq!((told.requests, told.ok, told.failed, told.late), (1003, 900, 103, 11));
        assert_eq!((told.answered_per_second, told.received_bytes), (50.0, 10_000));
        assert_eq!(told.statuses, BTreeMap::from([(200, 900), (503, 100)]));
        assert_eq!(told.errors, BTreeMap::from([("reset".to_string(), 2), ("timeout".to_string(), 1)]));
        let latency = told.latency_seconds.unwrap();
        let table = [
            (latency.mean, 0.5005),
            (latency.p50, 0.5),
            (latency.p90, 0.9),
            (latency.p99, 0.99),
            (latency.p999, 0.999),
            (latency.max, 1.0),
        ];
        for (told, is) in table {
            assert!((told - is).abs() <= is / 1000.0, "{told} {is}");
        }
        // What a pod says is read where it is compared.
        let text = serde_json::to_string(&told).unwrap();
        assert_eq!(serde_json::from_str::<Summary>(&text).unwrap(), told, "{text}");
        assert!(text.contains("\"statuses\":{\"200\":900,\"503\":100}") && text.contains("\"p999\":"), "{text}");
    }

    #[test]
    fn nothing_that_was_answered_has_no_latency() {
        let mut tally = Tally::new();
        tally.count(Outcome::Failed(Failure::Refused), false);
        let told = tally.summary("http://a/", Schedule::new(1, Duration::from_secs(1)), 1, Duration::ZERO);
        assert_eq!((told.latency_seconds, told.ok, told.failed, told.answered_per_second), (None, 0, 1, 0.0));
        // One that took longer than anything should is the slowest, and no error.
        tally.count(answered(200, SLOWEST * 2), true);
        let latency = tally.latency().unwrap();
        assert_eq!(latency.max, 240.0);
        assert!((latency.p50 - 120.0).abs() < 0.2, "{latency:?}");
    }
}
