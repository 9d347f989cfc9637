//! Every bound and default of this room: a constant with unit and reason. `/config_dump` lists them.

use std::time::Duration;

use crate::limit::{Limit, limits};

/// What an endpoint's round trip is taken for before one was measured: slower than most of a cluster, so that a new
/// endpoint is tried by some requests and not by all. As linkerd2-proxy.
pub const DEFAULT_RTT: Duration = Duration::from_millis(30);

/// How fast a measured round trip is forgotten (time constant of the moving average). As Finagle and linkerd2-proxy.
pub const RTT_DECAY: Duration = Duration::from_secs(10);

/// What a failed request counts at least as a round trip: an endpoint that fails fast must not look fast.
pub const FAILURE_RTT: Duration = Duration::from_secs(1);

/// How long an endpoint that answered 429, or 503 with Retry-After, is loaded less, where it does not say.
pub const BUSY_DEFAULT: Duration = Duration::from_secs(1);

/// The longest that an endpoint's Retry-After has it loaded less: it does not decide over the mesh for hours.
pub const BUSY_LONGEST: Duration = Duration::from_secs(60);

/// The share of its load, in percent, that a busy endpoint, one on probation, and one that just came keep.
pub const LEAST_WEIGHT: u32 = 10;

/// How often a choice is made anew because the chosen endpoint's weight, a limit or an earlier try speaks against it,
/// before all endpoints are looked at.
pub const MAX_PICKS: usize = 4;

/// Places of an endpoint on the hash ring: the busiest of ten endpoints gets about a fifth more than its share.
pub const RING_POINTS: u32 = 160;

/// Places of an endpoint on the ring of a Service with more than `RING_MANY` endpoints.
pub const RING_POINTS_OF_MANY: u32 = 16;

/// From how many endpoints on the ring is coarser: it keeps below 2 MiB a worker up to ten thousand endpoints.
pub const RING_MANY: usize = 512;

/// Of the endpoints of a place (this node, this zone), the healthy share in percent from which it takes all the load
/// that is its due. As Envoy's overprovisioning factor of 1.4.
pub const HEALTHY_ENOUGH: u32 = 72;

/// The largest weight of a place: a weight is a share of their sum, and thousands tell enough shares apart.
pub const MOST_WEIGHT: u32 = 1_000_000;

/// Below this share of endpoints in use, in percent, ejections are ignored: the few that are left would fall next.
pub const PANIC_PERCENT: u32 = 30;

/// Consecutive failures that eject an endpoint, where a policy asks for outlier detection without saying. As Envoy.
pub const OUTLIER_CONSECUTIVE: u32 = 5;

/// How often success rates are compared. As Envoy.
pub const OUTLIER_INTERVAL: Duration = Duration::from_secs(10);

/// The first ejection's length; the n-th is n times as long. As Envoy.
pub const OUTLIER_EJECTION: Duration = Duration::from_secs(30);

/// The longest ejection. As Envoy.
pub const OUTLIER_LONGEST: Duration = Duration::from_secs(300);

/// The share of a Service's endpoints, in percent, that may be ejected at a time; at least one where there are two.
pub const OUTLIER_SHARE: u32 = 50;

/// How many endpoints must have enough requests before success rates are compared. As Envoy.
pub const OUTLIER_HOSTS: u32 = 5;

/// How many requests of an interval make a success rate. As Envoy.
pub const OUTLIER_REQUESTS: u32 = 100;

/// How far below the mean a success rate must be, in thousandths of the standard deviation. As Envoy.
pub const OUTLIER_DEVIATION: u32 = 1900;

/// Tries after the first, where a policy asks for retries without a number. As Envoy.
pub const RETRY_ATTEMPTS: u32 = 1;

/// More tries than this a policy cannot ask for.
pub const MAX_RETRY_ATTEMPTS: u32 = 10;

/// The shortest pause before the first retry. As Envoy.
pub const RETRY_BACKOFF: Duration = Duration::from_millis(25);

/// The longest pause is so many times the shortest. As Envoy.
pub const RETRY_BACKOFF_GROWTH: u32 = 10;

/// The longest pause that an answer's Retry-After can ask for; a longer one is passed on to the client.
pub const RETRY_LONGEST_WAIT: Duration = Duration::from_secs(5);

/// How much of a request's body is kept for a retry; a longer body is sent once. As linkerd2-proxy.
pub const RETRY_BODY: u64 = 64 << 10;

/// The share of all requests, in percent, that retries may be. GEP-3388.
pub const BUDGET_PERCENT: u32 = 20;

/// The window over which that share is taken. GEP-3388.
pub const BUDGET_INTERVAL: Duration = Duration::from_secs(10);

/// Retries per second that are allowed however few requests there are. GEP-3388.
pub const BUDGET_MIN_PER_SECOND: u32 = 10;

/// Steps in which the window moves on: retries are counted a step too long, requests a step too short.
pub const BUDGET_STEPS: u32 = 20;

/// Slots in which steps are counted: those of a window, and the one that is under way.
pub const BUDGET_SLOTS: usize = 21;

/// Keys (identities, header values) that one rate limit tells apart at a time; more share one bucket. 96 KiB.
pub const RATE_KEYS: usize = 4 << 10;

/// Keys that share a place in the table of a rate limit: looked through for every request of it, three cache lines.
pub const RATE_WAYS: usize = 8;

/// How often the identities are counted between which a rate is shared.
pub const FAIR_WINDOW: Duration = Duration::from_secs(10);

/// The longest delay that a fault can inject.
pub const MAX_FAULT_DELAY: Duration = Duration::from_secs(300);

/// Queue time that is no sign of overload, even when it lasts.
pub const SHED_TARGET: Duration = Duration::from_millis(50);

/// How long every request must have queued longer than `SHED_TARGET` before the worker counts as overloaded.
pub const SHED_INTERVAL: Duration = Duration::from_millis(500);

/// Queue time that is shed in any case: clients have given up, or are about to.
pub const SHED_LONGEST: Duration = Duration::from_secs(5);

/// Memory in use, in percent of the budget, from which a growing share of new requests is refused.
pub const SHED_MEMORY: u32 = 85;

/// Memory in use, in percent of the budget, from which every new request is refused.
pub const SHED_MEMORY_ALL: u32 = 95;

/// The shortest interval, ejection or period of a rate that a policy can ask for: below it nothing is told apart.
pub const POLICY_SHORTEST: Duration = Duration::from_millis(10);

/// The longest of those: beyond a day nobody remembers why.
pub const POLICY_LONGEST: Duration = Duration::from_secs(24 * 3600);

/// The period of a rate, where a policy gives none.
pub const RATE_PERIOD: Duration = Duration::from_secs(1);

/// The highest rate and burst: beyond what a node serves, and within what a bucket can count.
pub const RATE_MOST: u32 = 1_000_000_000;

/// The shortest pause and delay that a policy can ask for: what timers tell apart.
pub const PAUSE_SHORTEST: Duration = Duration::from_millis(1);

/// The longest pause before a retry that a policy can ask for: no client waits longer.
pub const PAUSE_LONGEST: Duration = Duration::from_secs(3600);

/// The shortest window of a retry budget: its steps are 50 ms then.
pub const BUDGET_SHORTEST: Duration = Duration::from_secs(1);

/// The longest window of a retry budget: a storm would be over before it is told.
pub const BUDGET_LONGEST: Duration = Duration::from_secs(3600);

/// The most retries that a policy can allow however few requests there are.
pub const BUDGET_MOST: u32 = 1_000_000;

/// The bounds of this room.
pub fn all() -> Vec<Limit> {
    limits![
        DEFAULT_RTT, "milliseconds", "of an endpoint that was not measured yet";
        RTT_DECAY, "milliseconds", "a measured round trip is forgotten";
        FAILURE_RTT, "milliseconds", "a failed request counts as at least, so that failing fast does not attract load";
        BUSY_DEFAULT, "milliseconds", "an endpoint that answered 429 is loaded less, where it does not say how long";
        BUSY_LONGEST, "milliseconds", "the most that an endpoint's Retry-After counts";
        LEAST_WEIGHT, "percent", "of its load kept by a new endpoint in slow start, a busy one, one on probation";
        MAX_PICKS, "choices", "of an endpoint at random before all are looked at";
        RING_POINTS, "points per endpoint", "on the hash ring";
        RING_POINTS_OF_MANY, "points per endpoint", "on the hash ring of a Service with very many endpoints";
        RING_MANY, "endpoints", "from which the hash ring is coarser";
        HEALTHY_ENOUGH, "percent", "of a place's endpoints healthy, and nothing spills over to the next place";
        MOST_WEIGHT, "weight", "of a place in locality weighting";
        PANIC_PERCENT, "percent", "of endpoints in use, below which ejections are ignored";
        OUTLIER_CONSECUTIVE, "failures", "in a row eject an endpoint";
        OUTLIER_INTERVAL, "milliseconds", "between comparisons of success rates";
        OUTLIER_EJECTION, "milliseconds", "of the first ejection; the n-th is n times as long";
        OUTLIER_LONGEST, "milliseconds", "of an ejection";
        OUTLIER_SHARE, "percent", "of endpoints ejected at a time";
        OUTLIER_HOSTS, "endpoints", "with enough requests before success rates are compared";
        OUTLIER_REQUESTS, "requests", "of an interval make a success rate";
        OUTLIER_DEVIATION, "thousandths of the standard deviation", "below the mean eject an endpoint";
        RETRY_ATTEMPTS, "tries", "after the first, where a policy gives no number";
        MAX_RETRY_ATTEMPTS, "tries", "after the first that a policy can ask for";
        RETRY_BACKOFF, "milliseconds", "before the first retry at least";
        RETRY_BACKOFF_GROWTH, "times", "the shortest pause is the longest";
        RETRY_LONGEST_WAIT, "milliseconds", "a Retry-After is waited for; a longer one goes to the client";
        RETRY_BODY, "bytes", "of a request's body kept for a retry";
        BUDGET_PERCENT, "percent", "of requests may be retries (GEP-3388)";
        BUDGET_INTERVAL, "milliseconds", "window of the retry budget (GEP-3388)";
        BUDGET_MIN_PER_SECOND, "retries per second", "however few requests there are (GEP-3388)";
        BUDGET_STEPS, "steps", "in which the window of a retry budget moves";
        BUDGET_SLOTS, "slots", "those steps, and the one under way";
        RATE_KEYS, "keys", "that one rate limit tells apart; the rest share a bucket";
        RATE_WAYS, "keys", "that share a place in a rate limit's table";
        FAIR_WINDOW, "milliseconds", "in which the identities are counted that share a rate";
        MAX_FAULT_DELAY, "milliseconds", "that a fault delays";
        SHED_TARGET, "milliseconds", "of queueing is no overload";
        SHED_INTERVAL, "milliseconds", "of longer queueing is";
        SHED_LONGEST, "milliseconds", "of queueing: shed in any case";
        SHED_MEMORY, "percent", "of the memory budget: new requests begin to be refused";
        SHED_MEMORY_ALL, "percent", "of the memory budget: every new request is refused";
        POLICY_SHORTEST, "milliseconds", "the shortest interval, ejection and period of a rate";
        POLICY_LONGEST, "milliseconds", "the longest of those";
        RATE_PERIOD, "milliseconds", "of a rate, where a policy gives none";
        RATE_MOST, "requests", "the highest rate and burst";
        PAUSE_SHORTEST, "milliseconds", "the shortest pause and delay that a policy can ask for";
        PAUSE_LONGEST, "milliseconds", "the longest pause before a retry that a policy can ask for";
        BUDGET_SHORTEST, "milliseconds", "the shortest window of a retry budget";
        BUDGET_LONGEST, "milliseconds", "the longest window of a retry budget";
        BUDGET_MOST, "retries", "that a policy can allow however few requests there are";
    ]
}
