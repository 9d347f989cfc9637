//! What happens to requests: time, retries, rates, faults, sessions.

use std::ops::RangeInclusive;

use http::{HeaderValue, Method, StatusCode};

use super::endpoints::token;
use super::{exactly_one, length, number, read, unique};
use crate::discovery::crd;
use crate::discovery::finding::{FieldPath, Problem};
use crate::discovery::object::Key;
use crate::discovery::translate::duration::{duration, timeout};
use crate::discovery::translate::http_match::header_name;
use crate::discovery::translate::policy::plain_name;
use crate::resilience::limits::{
    BUDGET_LONGEST, BUDGET_MOST, BUDGET_SHORTEST, MAX_FAULT_DELAY, MAX_RETRY_ATTEMPTS, PAUSE_LONGEST, PAUSE_SHORTEST,
    POLICY_LONGEST, POLICY_SHORTEST, RATE_MOST, RATE_PERIOD, RETRY_BACKOFF_GROWTH, RETRY_BODY,
};
use crate::resilience::policy::{
    Abort, Delay, Fault, HeaderMatch, PathMatch, RateKey, RateLimit, RateScope, RequestMatch, Retry, RetryBudget,
    Session, SessionBy, Share, SourceMatch, Timeouts,
};

pub(super) fn timeouts(timeouts: &crd::TrafficTimeouts, path: &FieldPath) -> Result<Timeouts, Problem> {
    let crd::TrafficTimeouts { request, per_try, idle, connect } = timeouts;
    let time = |text: &Option<String>, field| timeout(text.as_deref(), &path.key(field));
    Ok(Timeouts {
        request: time(request, "request")?,
        per_try: time(per_try, "perTry")?,
        idle: time(idle, "idle")?,
        connect: time(connect, "connect")?,
    })
}

pub(super) fn retry(retry: &crd::TrafficRetry, path: &FieldPath) -> Result<Retry, Problem> {
    let crd::TrafficRetry { attempts, codes, grpc_codes, on, methods, backoff, max_backoff, max_body_bytes } = retry;
    let default = Retry::default();
    let asks = |outcome| on.as_ref().is_none_or(|on| on.contains(&outcome));
    let backoff = length(backoff.as_ref(), PAUSE_SHORTEST..=PAUSE_LONGEST, default.backoff, &path.key("backoff"))?;
    let grown = backoff.saturating_mul(RETRY_BACKOFF_GROWTH);
    let longest_backoff = length(max_backoff.as_ref(), PAUSE_SHORTEST..=PAUSE_LONGEST, grown, &path.key("maxBackoff"))?;
    if longest_backoff < backoff {
        return Err(Problem::new(path.key("maxBackoff"), "is shorter than backoff"));
    }
    let most = u32::try_from(RETRY_BODY).unwrap_or(u32::MAX);
    Ok(Retry {
        attempts: number(*attempts, 1..=MAX_RETRY_ATTEMPTS, default.attempts, &path.key("attempts"))?,
        codes: codes.as_ref().map_or(Ok(default.codes), |codes| {
            let codes = codes.iter().enumerate();
            codes.map(|(index, code)| status(*code, 400..=599, &path.key("codes").index(index))).collect()
        })?,
        grpc_codes: grpc_codes.iter().copied().map(grpc_status).collect(),
        connect_failure: asks(crd::RetryOn::ConnectFailure),
        refused_stream: asks(crd::RetryOn::RefusedStream),
        reset: asks(crd::RetryOn::Reset),
        per_try_timeout: asks(crd::RetryOn::PerTryTimeout),
        not_idempotent: *methods == Some(crd::RetryMethods::All),
        backoff,
        longest_backoff,
        body: number(*max_body_bytes, 0..=most, most, &path.key("maxBodyBytes"))?.into(),
    })
}

fn status(code: u16, bounds: RangeInclusive<u16>, path: &FieldPath) -> Result<StatusCode, Problem> {
    let wrong = || Problem::new(path.clone(), format!("{code}: {} to {}", bounds.start(), bounds.end()));
    StatusCode::from_u16(code).ok().filter(|_| bounds.contains(&code)).ok_or_else(wrong)
}

/// gRPC's numbers (doc/statuscodes.md).
fn grpc_status(code: crd::GrpcCode) -> u32 {
    match code {
        crd::GrpcCode::Cancelled => 1,
        crd::GrpcCode::Unknown => 2,
        crd::GrpcCode::InvalidArgument => 3,
        crd::GrpcCode::DeadlineExceeded => 4,
        crd::GrpcCode::NotFound => 5,
        crd::GrpcCode::AlreadyExists => 6,
        crd::GrpcCode::PermissionDenied => 7,
        crd::GrpcCode::ResourceExhausted => 8,
        crd::GrpcCode::FailedPrecondition => 9,
        crd::GrpcCode::Aborted => 10,
        crd::GrpcCode::OutOfRange => 11,
        crd::GrpcCode::Unimplemented => 12,
        crd::GrpcCode::Internal => 13,
        crd::GrpcCode::Unavailable => 14,
        crd::GrpcCode::DataLoss => 15,
        crd::GrpcCode::Unauthenticated => 16,
    }
}

pub(super) fn budget(budget: &crd::TrafficRetryBudget, path: &FieldPath) -> Result<RetryBudget, Problem> {
    let crd::TrafficRetryBudget { percent, interval, min_retry_rate } = budget;
    let default = RetryBudget::default();
    let rate = path.key("minRetryRate");
    let (min_retries, min_interval) = match min_retry_rate {
        None => (default.min_retries, default.min_interval),
        Some(crd::RetryRate { count, interval }) => (
            number(Some(*count), 0..=BUDGET_MOST, 0, &rate.key("count"))?,
            length(interval.as_ref(), POLICY_SHORTEST..=BUDGET_LONGEST, default.min_interval, &rate.key("interval"))?,
        ),
    };
    Ok(RetryBudget {
        percent: number(*percent, 0..=100, default.percent, &path.key("percent"))?,
        interval: length(interval.as_ref(), BUDGET_SHORTEST..=BUDGET_LONGEST, default.interval, &path.key("interval"))?,
        min_retries,
        min_interval,
    })
}

pub(super) fn rate_limits(
    limits: &[crd::TrafficRateLimit],
    path: &FieldPath,
    policy: &Key,
) -> Result<Vec<RateLimit>, Problem> {
    let mut names = Vec::new();
    let mut read_limit = |(index, limit): (usize, &crd::TrafficRateLimit)| {
        let path = path.index(index);
        let crd::TrafficRateLimit { name, requests, per, burst, key, fair, scope, when } = limit;
        let name = unique(name, &mut names, &path.key("name"))?;
        let most = 1..=RATE_MOST;
        let requests = number(Some(*requests), most.clone(), 0, &path.key("requests"))?;
        let key = key.as_ref().map_or(Ok(RateKey::All), |key| rate_key(key, &path.key("key")))?;
        if *fair && key != RateKey::All {
            return Err(Problem::new(path.key("fair"), "with key All only: another key is a limit for each already"));
        }
        Ok(RateLimit {
            name,
            requests,
            per: length(per.as_ref(), POLICY_SHORTEST..=POLICY_LONGEST, RATE_PERIOD, &path.key("per"))?,
            burst: number(*burst, most, requests, &path.key("burst"))?,
            key,
            fair: *fair,
            scope: match scope {
                Some(crd::TrafficRateScope::Node) | None => RateScope::Node,
                Some(crd::TrafficRateScope::Mesh) => RateScope::Mesh,
            },
            when: request_match(when.as_ref(), &path.key("when"), policy)?,
        })
    };
    limits.iter().enumerate().map(&mut read_limit).collect()
}

fn rate_key(key: &crd::TrafficRateKey, path: &FieldPath) -> Result<RateKey, Problem> {
    let crd::TrafficRateKey { key_type, header } = key;
    let path = path.key("header");
    match (key_type, header) {
        (crd::RateKeyType::Header, Some(name)) => header_name(name, &path).map(RateKey::Header),
        (crd::RateKeyType::Header, None) => Err(Problem::new(path, "missing: type Header needs it")),
        (_, Some(_)) => Err(Problem::new(path, "goes with type Header only")),
        (crd::RateKeyType::All, None) => Ok(RateKey::All),
        (crd::RateKeyType::SourceIdentity, None) => Ok(RateKey::SourceIdentity),
        (crd::RateKeyType::SourceNamespace, None) => Ok(RateKey::SourceNamespace),
    }
}

fn request_match(wanted: Option<&crd::TrafficMatch>, path: &FieldPath, policy: &Key) -> Result<RequestMatch, Problem> {
    let Some(crd::TrafficMatch { methods, paths, headers, sources }) = wanted else {
        return Ok(RequestMatch::default());
    };
    let read_method = |(index, name): (usize, &String)| {
        let wrong = |_| Problem::new(path.key("methods").index(index), format!("{name:?} is not a method"));
        Method::from_bytes(name.as_bytes()).map_err(wrong)
    };
    let read_header = |(name, value): (&String, &String)| {
        let path = path.key("headers").key(name);
        let wrong = |_| Problem::new(path.clone(), format!("{value:?} is not the value of a header"));
        let wanted = match value.as_str() {
            "" => HeaderMatch::Present,
            value => HeaderMatch::Exact(HeaderValue::from_str(value).map_err(wrong)?),
        };
        Ok((header_name(name, &path)?, wanted))
    };
    Ok(RequestMatch {
        methods: methods.iter().enumerate().map(read_method).collect::<Result<_, _>>()?,
        paths: paths
            .iter()
            .enumerate()
            .map(|(index, wanted)| path_match(wanted, &path.key("paths").index(index)))
            .collect::<Result<_, _>>()?,
        headers: headers.iter().map(read_header).collect::<Result<_, _>>()?,
        sources: sources
            .iter()
            .enumerate()
            .map(|(index, source)| source_match(source, &path.key("sources").index(index), policy))
            .collect::<Result<_, _>>()?,
    })
}

fn path_match(wanted: &crd::TrafficPath, path: &FieldPath) -> Result<PathMatch, Problem> {
    let crd::TrafficPath { exact, prefix } = wanted;
    exactly_one(&[("exact", exact.is_some()), ("prefix", prefix.is_some())], path)?;
    let absolute = |text: &str, field| {
        let wrong = || Problem::new(path.key(field), format!("{text:?} does not begin with /"));
        if text.starts_with('/') { Ok(text.into()) } else { Err(wrong()) }
    };
    match (exact, prefix) {
        (Some(exact), _) => absolute(exact, "exact").map(PathMatch::Exact),
        (None, prefix) => absolute(prefix.as_deref().unwrap_or_default(), "prefix").map(PathMatch::Prefix),
    }
}

fn source_match(source: &crd::TrafficSource, path: &FieldPath, policy: &Key) -> Result<SourceMatch, Problem> {
    let crd::TrafficSource { namespace, service_account } = source;
    let name = |name: &String, field| plain_name(name, &path.key(field)).map(Into::into);
    Ok(SourceMatch {
        namespace: read(namespace, |text| name(text, "namespace"))?.unwrap_or_else(|| policy.namespace.as_str().into()),
        service_account: read(service_account, |text| name(text, "serviceAccount"))?,
    })
}

pub(super) fn faults(faults: &[crd::TrafficFault], path: &FieldPath, policy: &Key) -> Result<Vec<Fault>, Problem> {
    let mut names = Vec::new();
    let mut read_fault = |(index, fault): (usize, &crd::TrafficFault)| {
        let path = path.index(index);
        let crd::TrafficFault { name, when, delay, abort } = fault;
        if delay.is_none() && abort.is_none() {
            return Err(Problem::new(path, "missing: delay, abort or both"));
        }
        Ok(Fault {
            name: unique(name, &mut names, &path.key("name"))?,
            when: request_match(when.as_ref(), &path.key("when"), policy)?,
            delay: read(delay, |delay| read_delay(delay, &path.key("delay")))?,
            abort: read(abort, |abort| read_abort(abort, &path.key("abort")))?,
        })
    };
    faults.iter().enumerate().map(&mut read_fault).collect()
}

fn read_delay(delay: &crd::FaultDelay, path: &FieldPath) -> Result<(Share, Delay), Problem> {
    let crd::FaultDelay { share, fixed, uniform, exponential } = delay;
    let given = [("fixed", fixed.is_some()), ("uniform", uniform.is_some()), ("exponential", exponential.is_some())];
    exactly_one(&given, path)?;
    let within =
        |text: &String, path: &FieldPath| length(Some(text), PAUSE_SHORTEST..=MAX_FAULT_DELAY, MAX_FAULT_DELAY, path);
    let read_share = read_share(*share, path)?;
    let delay = match (fixed, uniform, exponential) {
        (Some(text), _, _) => Delay::Fixed(within(text, &path.key("fixed"))?),
        (_, Some(crd::UniformDelay { min, max }), _) => {
            let path = path.key("uniform");
            let (least, most) = (duration(min, &path.key("min"))?, within(max, &path.key("max"))?);
            if least > most {
                return Err(Problem::new(path.key("max"), "is shorter than min"));
            }
            Delay::Uniform { least, most }
        }
        (_, _, Some(crd::ExponentialDelay { mean, max })) => {
            let path = path.key("exponential");
            let mean = within(mean, &path.key("mean"))?;
            let most = read(max, |max| within(max, &path.key("max")))?.unwrap_or(MAX_FAULT_DELAY);
            Delay::Exponential { mean, most }
        }
        (None, None, None) => return Err(Problem::new(path.clone(), "missing")),
    };
    Ok((read_share, delay))
}

fn read_abort(abort: &crd::FaultAbort, path: &FieldPath) -> Result<(Share, Abort), Problem> {
    let crd::FaultAbort { share, http_status, grpc_status: grpc } = abort;
    exactly_one(&[("httpStatus", http_status.is_some()), ("grpcStatus", grpc.is_some())], path)?;
    let answer = match (http_status, grpc) {
        (_, Some(grpc)) => Abort::Grpc(grpc_status(*grpc)),
        (code, None) => Abort::Http(status(code.unwrap_or_default(), 200..=599, &path.key("httpStatus"))?),
    };
    Ok((read_share(*share, path)?, answer))
}

fn read_share(share: Option<crd::FaultShare>, path: &FieldPath) -> Result<Share, Problem> {
    let Some(crd::FaultShare { numerator, denominator }) = share else { return Ok(Share::percent(100)) };
    let path = path.key("share");
    let denominator = number(denominator, 1..=u32::MAX, 100, &path.key("denominator"))?;
    let numerator = number(Some(numerator), 0..=denominator, 0, &path.key("numerator"))?;
    Ok(Share { numerator, denominator })
}

pub(super) fn session(session: &crd::TrafficSession, path: &FieldPath) -> Result<Session, Problem> {
    let crd::TrafficSession { session_name, session_type, cookie_lifetime, absolute_timeout } = session;
    token(session_name, &path.key("sessionName"))?;
    let absolute_timeout = timeout(absolute_timeout.as_deref(), &path.key("absoluteTimeout"))?;
    let permanent = *cookie_lifetime == Some(crd::CookieLifetime::Permanent);
    let by = match session_type {
        Some(crd::TrafficSessionType::Cookie) | None => SessionBy::Cookie { permanent },
        Some(crd::TrafficSessionType::Header) if cookie_lifetime.is_some() => {
            return Err(Problem::new(path.key("cookieLifetime"), "goes with type Cookie only"));
        }
        Some(crd::TrafficSessionType::Header) => SessionBy::Header,
    };
    if permanent && absolute_timeout.is_none() {
        return Err(Problem::new(path.key("absoluteTimeout"), "missing: a permanent cookie needs it"));
    }
    Ok(Session { name: session_name.as_str().into(), by, absolute_timeout })
}
