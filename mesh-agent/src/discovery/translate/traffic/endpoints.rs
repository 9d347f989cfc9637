//! How a Service's endpoints are used.

use http::HeaderName;

use super::{exactly_one, length, number, read};
use crate::discovery::crd;
use crate::discovery::finding::{FieldPath, Problem};
use crate::discovery::translate::duration::duration;
use crate::discovery::translate::http_match::header_name;
use crate::resilience::limits::{MOST_WEIGHT, POLICY_LONGEST, POLICY_SHORTEST};
use crate::resilience::policy::{Balance, Endpoints, HashKey, Locality, Outlier, Panic, PoolLimits, SuccessRate};

pub(super) fn read_all(
    balancing: Option<&crd::LoadBalancing>,
    limits: Option<&crd::ConnectionLimits>,
    outlier: Option<&crd::OutlierDetection>,
    path: &FieldPath,
) -> Result<Endpoints, Problem> {
    let mut endpoints = Endpoints::default();
    if let Some(balancing) = balancing {
        load_balancing(balancing, &path.key("loadBalancing"), &mut endpoints)?;
    }
    if let Some(crd::ConnectionLimits { service, endpoint }) = limits {
        let path = path.key("connectionLimits");
        endpoints.of_service = under_way(service.unwrap_or_default(), &path.key("service"))?;
        endpoints.of_endpoint = under_way(endpoint.unwrap_or_default(), &path.key("endpoint"))?;
        if endpoints.of_endpoint.retries.is_some() {
            let path = path.key("endpoint").key("maxRetries");
            return Err(Problem::new(path, "a retry goes to another endpoint: only of the Service"));
        }
    }
    endpoints.outlier = outlier.map(|outlier| outlier_detection(outlier, &path.key("outlierDetection"))).transpose()?;
    Ok(endpoints)
}

fn load_balancing(balancing: &crd::LoadBalancing, path: &FieldPath, endpoints: &mut Endpoints) -> Result<(), Problem> {
    let crd::LoadBalancing { algorithm, consistent_hash, locality, slow_start, panic_threshold } = balancing;
    let hash = path.key("consistentHash");
    endpoints.balance = match (algorithm.unwrap_or(crd::Algorithm::PeakEwma), consistent_hash) {
        (crd::Algorithm::ConsistentHash, Some(key)) => Balance::ConsistentHash(hash_key(key, &hash)?),
        (crd::Algorithm::ConsistentHash, None) => {
            return Err(Problem::new(hash, "missing: algorithm ConsistentHash needs it"));
        }
        (_, Some(_)) => return Err(Problem::new(hash, "goes with algorithm ConsistentHash only")),
        (crd::Algorithm::PeakEwma, None) => Balance::PeakEwma,
        (crd::Algorithm::LeastRequest, None) => Balance::LeastRequest,
        (crd::Algorithm::RoundRobin, None) => Balance::RoundRobin,
        (crd::Algorithm::Random, None) => Balance::Random,
    };
    if let Some(found) = locality {
        endpoints.locality = read_locality(found, &path.key("locality"))?;
    }
    let slow_start = read(slow_start, |text| duration(text, &path.key("slowStart")))?;
    endpoints.slow_start = slow_start.filter(|window| !window.is_zero());
    if endpoints.slow_start.is_some() && matches!(endpoints.balance, Balance::ConsistentHash(_)) {
        return Err(Problem::new(path.key("slowStart"), "a hash gives a new endpoint its keys at once: not with it"));
    }
    if endpoints.locality != Locality::Ignore && matches!(endpoints.balance, Balance::ConsistentHash(_)) {
        return Err(Problem::new(path.key("locality"), "a hash knows no distance: not with algorithm ConsistentHash"));
    }
    let default = Panic::default().0;
    endpoints.panic_percent = Panic(number(*panic_threshold, 0..=100, default, &path.key("panicThreshold"))?);
    Ok(())
}

fn hash_key(key: &crd::ConsistentHash, path: &FieldPath) -> Result<HashKey, Problem> {
    let crd::ConsistentHash { header, cookie, source } = key;
    let given = [("header", header.is_some()), ("cookie", cookie.is_some()), ("source", source.is_some())];
    exactly_one(&given, path)?;
    if let Some(header) = header {
        return header_name(header, &path.key("header")).map(HashKey::Header);
    }
    if let Some(cookie) = cookie {
        token(cookie, &path.key("cookie"))?;
        return Ok(HashKey::Cookie(cookie.as_str().into()));
    }
    match source {
        Some(crd::HashSource::Identity) => Ok(HashKey::SourceIdentity),
        Some(crd::HashSource::Ip) | None => Ok(HashKey::SourceIp),
    }
}

/// A cookie's name is made of the letters of a header's (RFC 6265 section 4.1.1), but in whatever case.
pub(super) fn token(name: &str, path: &FieldPath) -> Result<(), Problem> {
    let wrong = |_| Problem::new(path.clone(), format!("{name:?} is not the name of a cookie"));
    HeaderName::from_bytes(name.as_bytes()).map(|_| ()).map_err(wrong)
}

fn read_locality(locality: &crd::TrafficLocality, path: &FieldPath) -> Result<Locality, Problem> {
    let crd::TrafficLocality { mode, weights } = locality;
    let path = path.key("weights");
    match (mode, weights) {
        (crd::LocalityMode::Failover, None) => Ok(Locality::Failover),
        (crd::LocalityMode::Failover, Some(_)) => Err(Problem::new(path, "go with mode Weighted only")),
        (crd::LocalityMode::Weighted, None) => Err(Problem::new(path, "missing: mode Weighted needs them")),
        (crd::LocalityMode::Weighted, Some(weights)) => {
            let crd::LocalityWeights { node, zone, elsewhere } = *weights;
            let most = 0..=MOST_WEIGHT;
            for (field, weight) in [("node", node), ("zone", zone), ("elsewhere", elsewhere)] {
                number(Some(weight), most.clone(), 0, &path.key(field))?;
            }
            if (node, zone, elsewhere) == (0, 0, 0) {
                return Err(Problem::new(path, "are all zero"));
            }
            Ok(Locality::Weighted { node, zone, elsewhere })
        }
    }
}

fn under_way(limits: crd::UnderWay, path: &FieldPath) -> Result<PoolLimits, Problem> {
    let crd::UnderWay { max_connections, max_pending, max_requests, max_retries } = limits;
    for (field, limit) in [("maxConnections", max_connections), ("maxRequests", max_requests)] {
        if limit == Some(0) {
            return Err(Problem::new(
                path.key(field),
                "0 would refuse every request; to refuse is for an AuthorizationPolicy",
            ));
        }
    }
    Ok(PoolLimits { connections: max_connections, pending: max_pending, requests: max_requests, retries: max_retries })
}

fn outlier_detection(outlier: &crd::OutlierDetection, path: &FieldPath) -> Result<Outlier, Problem> {
    let crd::OutlierDetection {
        consecutive5xx,
        consecutive_gateway_errors,
        success_rate,
        interval,
        base_ejection_time,
        max_ejection_time,
        max_ejection_percent,
    } = outlier;
    let default = Outlier::default();
    let not_zero = |count: Option<u32>| count.filter(|count| *count > 0);
    let time = |text: &Option<String>, default, field| {
        length(text.as_ref(), POLICY_SHORTEST..=POLICY_LONGEST, default, &path.key(field))
    };
    let ejection = time(base_ejection_time, default.ejection, "baseEjectionTime")?;
    let longest = time(max_ejection_time, default.longest.max(ejection), "maxEjectionTime")?;
    if longest < ejection {
        return Err(Problem::new(path.key("maxEjectionTime"), "is shorter than baseEjectionTime"));
    }
    let read = Outlier {
        consecutive_5xx: not_zero(*consecutive5xx),
        consecutive_gateway: not_zero(consecutive_gateway_errors.or(default.consecutive_gateway)),
        success_rate: success_rate.map(|rate| read_success_rate(rate, &path.key("successRate"))).transpose()?,
        interval: time(interval, default.interval, "interval")?,
        ejection,
        longest,
        share: number(*max_ejection_percent, 0..=100, default.share, &path.key("maxEjectionPercent"))?,
    };
    if read.consecutive_5xx.is_none() && read.consecutive_gateway.is_none() && read.success_rate.is_none() {
        return Err(Problem::new(path.clone(), "nothing would eject: leave it out"));
    }
    Ok(read)
}

fn read_success_rate(rate: crd::SuccessRateDetection, path: &FieldPath) -> Result<SuccessRate, Problem> {
    let crd::SuccessRateDetection { minimum_endpoints, minimum_requests, deviation_thousandths } = rate;
    let SuccessRate { hosts, requests, deviation } = SuccessRate::default();
    Ok(SuccessRate {
        hosts: number(minimum_endpoints, 2..=u32::MAX, hosts, &path.key("minimumEndpoints"))?,
        requests: number(minimum_requests, 1..=u32::MAX, requests, &path.key("minimumRequests"))?,
        deviation: number(deviation_thousandths, 1..=u32::MAX, deviation, &path.key("deviationThousandths"))?,
    })
}
