//! HTTPRoute.

use http::StatusCode;
use serde_json::{Value, json};

use super::duration::{duration, timeout};
use super::http_filter::{Place, filters};
use super::http_match::http_match;
use super::route::{MAX_BACKENDS, Notes, RequestRules, bounded, parents, part, requests};
use super::session::session;
use super::{FieldPath, Problem, Taken};
use crate::discovery::gateway::{
    self, BackendFilters, BackendRef, HttpMatch, HttpRoute, HttpRouteSpec, HttpRule, RetrySpec,
};
use crate::discovery::object::Key;
use crate::routes::{Backend, Match, Retry, RouteKind, Rule, Timeouts};

/// Tries after the first, where `retry` does not say.
pub const RETRY_ATTEMPTS: u32 = 1;
/// What may be tried again.
const RETRY_CODES: std::ops::RangeInclusive<i64> = 400..=599;

/// None of ours without a Service among its parents.
pub fn http_route(route: &HttpRoute, key: &Key) -> Result<Taken, Problem> {
    let HttpRouteSpec { parent_refs, hostnames, rules } = &route.spec;
    let Some(parents) = parents(parent_refs, key)? else { return Ok(Taken::default()) };
    let mut notes = Notes::new(key);
    notes.hostnames(hostnames);
    let default = [json!({})];
    let rules = match rules {
        None => &default[..],
        Some(rules) if rules.is_empty() => {
            return Err(Problem::new(FieldPath::of("spec.rules"), "empty: at least one rule is needed"));
        }
        Some(rules) => rules,
    };
    requests::<HttpRules>(&route.metadata, key, parents, rules, notes)
}

struct HttpRules;

impl RequestRules for HttpRules {
    const KIND: RouteKind = RouteKind::Http;

    type Match = HttpMatch;

    fn read_match(spec: &HttpMatch, path: &FieldPath) -> Result<Match, Problem> {
        http_match(spec, path)
    }

    fn rule(
        number: usize,
        rule: &Value,
        matches: Vec<Match>,
        path: &FieldPath,
        key: &Key,
        notes: &mut Notes<'_>,
    ) -> Result<Rule, Problem> {
        let rule: HttpRule = part(rule, path)?;
        let HttpRule { filters: specs, backend_refs, timeouts, retry, session_persistence, .. } = &rule;
        let place = Place { kind: Self::KIND, matches: &matches, forwards: !backend_refs.is_empty() };
        let filters = filters(specs, &place, &path.key("filters"), notes)?;
        let backends = backends(backend_refs, &place, &path.key("backendRefs"), notes)?;
        let timeouts = timeouts.as_ref().map(|spec| read_timeouts(spec, &path.key("timeouts"))).transpose()?;
        let retry = retry.as_ref().map(|spec| read_retry(spec, &path.key("retry"))).transpose()?.flatten();
        let at = path.key("sessionPersistence");
        let session = session_persistence.as_ref().map(|spec| session(spec, key, number, &at)).transpose()?;
        Ok(Rule { name: None, matches, filters, backends, timeouts: timeouts.unwrap_or_default(), retry, session })
    }
}

/// The backends of a rule, with their filters.
pub(super) fn backends(
    references: &[BackendRef<BackendFilters>],
    place: &Place<'_>,
    path: &FieldPath,
    notes: &mut Notes<'_>,
) -> Result<Vec<Backend>, Problem> {
    bounded(references.len(), MAX_BACKENDS, path)?;
    let backends = references.iter().enumerate().map(|(index, reference)| {
        let path = path.index(index);
        // A backend may redirect what comes its way.
        let place = Place { forwards: false, ..*place };
        let filters = filters(reference.filters.as_deref().unwrap_or_default(), &place, &path.key("filters"), notes)?;
        Ok(Backend { filters, ..notes.backend(reference, &path)? })
    });
    backends.collect()
}

fn read_timeouts(spec: &gateway::Timeouts, path: &FieldPath) -> Result<Timeouts, Problem> {
    let gateway::Timeouts { request, backend_request } = spec;
    let request = timeout(request.as_deref(), &path.key("request"))?;
    let backend_request = timeout(backend_request.as_deref(), &path.key("backendRequest"))?;
    match (request, backend_request) {
        (Some(whole), Some(one)) if one > whole => {
            Err(Problem::new(path.key("backendRequest"), "longer than the timeout of the whole request"))
        }
        _ => Ok(Timeouts { request, backend_request }),
    }
}

/// None: zero attempts.
fn read_retry(spec: &RetrySpec, path: &FieldPath) -> Result<Option<Retry>, Problem> {
    let RetrySpec { codes, attempts, backoff } = spec;
    let code = |(index, code): (usize, &i64)| {
        let status = u16::try_from(*code).ok().filter(|_| RETRY_CODES.contains(code));
        let status = status.and_then(|code| StatusCode::from_u16(code).ok());
        let wrong = || Problem::new(path.key("codes").index(index), format!("{code} is not within 400 to 599"));
        status.ok_or_else(wrong)
    };
    let attempts = match attempts {
        None => RETRY_ATTEMPTS,
        Some(attempts) => u32::try_from(*attempts)
            .map_err(|_| Problem::new(path.key("attempts"), format!("{attempts} is not a number of tries")))?,
    };
    let retry = Retry {
        codes: codes.iter().enumerate().map(code).collect::<Result<_, _>>()?,
        attempts,
        backoff: backoff.as_deref().map(|text| duration(text, &path.key("backoff"))).transpose()?,
    };
    Ok(Some(retry).filter(|retry| retry.attempts > 0))
}
