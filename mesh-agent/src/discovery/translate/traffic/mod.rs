//! TrafficPolicy: checks what the type cannot say, and fills the defaults in.

mod endpoints;
mod requests;

#[cfg(test)]
mod tests;

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use super::duration::duration;
use super::policy::plain_name;
use super::{FieldPath, Problem};
use crate::discovery::crd;
use crate::discovery::object::Key;
use crate::resilience::policy::{Settings, Target, TargetKind, TrafficPolicy};

/// The group of routes.
const ROUTES: &str = "gateway.networking.k8s.io";

/// Reads a policy.
pub fn traffic_policy(policy: &crd::TrafficPolicy, key: &Key) -> Result<TrafficPolicy, Problem> {
    let spec = FieldPath::of("spec");
    let targets = targets(&policy.spec.target_refs, &spec.key("targetRefs"))?;
    let created = policy.metadata.creation_timestamp.as_ref().map(|time| time.0.as_second());
    Ok(TrafficPolicy {
        namespace: key.namespace.as_str().into(),
        name: key.name.as_str().into(),
        created,
        settings: settings(&policy.spec, &targets, &spec, key)?.into(),
        targets,
    })
}

fn targets(refs: &[crd::TrafficTargetRef], path: &FieldPath) -> Result<Vec<Target>, Problem> {
    if refs.is_empty() {
        return Err(Problem::new(path.clone(), "empty: name what the policy applies to"));
    }
    let mut targets = Vec::new();
    for (index, target) in refs.iter().enumerate() {
        let path = path.index(index);
        let crd::TrafficTargetRef { group, kind, name } = target;
        let (kind, expected) = match kind {
            crd::TrafficTargetKind::Service => (TargetKind::Service, ""),
            crd::TrafficTargetKind::HttpRoute => (TargetKind::HttpRoute, ROUTES),
            crd::TrafficTargetKind::GrpcRoute => (TargetKind::GrpcRoute, ROUTES),
        };
        if group != expected {
            return Err(Problem::new(path.key("group"), format!("{group:?}: the group of {kind} is {expected:?}")));
        }
        let target = Target { kind, name: plain_name(name, &path.key("name"))?.into() };
        if targets.contains(&target) {
            return Err(Problem::new(path, "is named twice"));
        }
        targets.push(target);
    }
    Ok(targets)
}

fn settings(
    spec: &crd::TrafficPolicySpec,
    targets: &[Target],
    path: &FieldPath,
    key: &Key,
) -> Result<Settings, Problem> {
    let crd::TrafficPolicySpec {
        target_refs: _,
        load_balancing,
        connection_limits,
        outlier_detection,
        timeouts,
        retry,
        retry_budget,
        rate_limits,
        faults,
        session_persistence,
    } = spec;
    let of_services_alone = [
        ("loadBalancing", load_balancing.is_some()),
        ("connectionLimits", connection_limits.is_some()),
        ("outlierDetection", outlier_detection.is_some()),
        ("retryBudget", retry_budget.is_some()),
    ];
    let has_route = targets.iter().any(|target| target.kind != TargetKind::Service);
    if let Some((field, _)) = of_services_alone.into_iter().find(|(_, is_set)| *is_set && has_route) {
        return Err(Problem::new(path.key(field), "is about endpoints: only with targets of kind Service"));
    }
    Ok(Settings {
        endpoints: endpoints::read_all(
            load_balancing.as_ref(),
            connection_limits.as_ref(),
            outlier_detection.as_ref(),
            path,
        )?,
        budget: read(retry_budget, |budget| requests::budget(budget, &path.key("retryBudget")))?,
        timeouts: read(timeouts, |timeouts| requests::timeouts(timeouts, &path.key("timeouts")))?,
        retry: read(retry, |retry| requests::retry(retry, &path.key("retry")))?,
        rate_limits: requests::rate_limits(rate_limits, &path.key("rateLimits"), key)?,
        faults: requests::faults(faults, &path.key("faults"), key)?,
        session: read(session_persistence, |session| requests::session(session, &path.key("sessionPersistence")))?,
    })
}

fn read<T, R>(value: &Option<T>, how: impl FnOnce(&T) -> Result<R, Problem>) -> Result<Option<R>, Problem> {
    value.as_ref().map(how).transpose()
}

/// A number within bounds, or the default.
fn number(value: Option<u32>, bounds: RangeInclusive<u32>, default: u32, path: &FieldPath) -> Result<u32, Problem> {
    let number = value.unwrap_or(default);
    let wrong = || Problem::new(path.clone(), format!("{number}: {} to {}", bounds.start(), bounds.end()));
    if bounds.contains(&number) { Ok(number) } else { Err(wrong()) }
}

/// A duration within bounds, or the default.
fn length(
    text: Option<&String>,
    bounds: RangeInclusive<Duration>,
    default: Duration,
    path: &FieldPath,
) -> Result<Duration, Problem> {
    let Some(text) = text else { return Ok(default) };
    let length = duration(text, path)?;
    let wrong = || Problem::new(path.clone(), format!("{text}: {:?} to {:?}", bounds.start(), bounds.end()));
    if bounds.contains(&length) { Ok(length) } else { Err(wrong()) }
}

/// A name that is unique among those before it.
fn unique(name: &str, before: &mut Vec<Arc<str>>, path: &FieldPath) -> Result<Arc<str>, Problem> {
    let legal = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-';
    let dash_at_end = name.starts_with('-') || name.ends_with('-');
    if name.is_empty() || name.len() > 63 || dash_at_end || !name.chars().all(legal) {
        return Err(Problem::new(path.clone(), format!("{name:?}: lower-case letters, digits and - within")));
    }
    let name: Arc<str> = name.into();
    if before.contains(&name) {
        return Err(Problem::new(path.clone(), "is another's name already"));
    }
    before.push(name.clone());
    Ok(name)
}

/// The one of several fields that is set.
fn exactly_one(given: &[(&str, bool)], path: &FieldPath) -> Result<(), Problem> {
    let mut set = given.iter().filter(|(_, is_set)| *is_set);
    let names = || given.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    match (set.next(), set.next()) {
        (Some(_), None) => Ok(()),
        (None, _) => Err(Problem::new(path.clone(), format!("missing: one of {}", names()))),
        (Some(_), Some((second, _))) => Err(Problem::new(path.key(second), format!("only one of {}", names()))),
    }
}
