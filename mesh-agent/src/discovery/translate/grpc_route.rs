//! GRPCRoute. A method of a service is the path `/service/method` (gRPC over HTTP/2).

use serde_json::Value;

use super::http_filter::{Place, filters};
use super::http_match::{MAX_TEXT, anchored, read_headers};
use super::http_route::backends;
use super::route::{Notes, RequestRules, bounded, parents, part, requests};
use super::session::session;
use super::{FieldPath, Problem, Taken};
use crate::discovery::gateway::{GrpcMatch, GrpcMethodMatch, GrpcRoute, GrpcRouteSpec, GrpcRule, ValueMatchType};
use crate::discovery::object::Key;
use crate::routes::grpc::{self, Name};
use crate::routes::{Match, PathMatch, RouteKind, Rule, Timeouts};

/// None of ours without a Service among its parents.
pub fn grpc_route(route: &GrpcRoute, key: &Key) -> Result<Taken, Problem> {
    let GrpcRouteSpec { parent_refs, hostnames, rules } = &route.spec;
    let Some(parents) = parents(parent_refs, key)? else { return Ok(Taken::default()) };
    let mut notes = Notes::new(key);
    notes.hostnames(hostnames);
    requests::<GrpcRules>(&route.metadata, key, parents, rules, notes)
}

struct GrpcRules;

impl RequestRules for GrpcRules {
    const KIND: RouteKind = RouteKind::Grpc;

    type Match = GrpcMatch;

    fn read_match(spec: &GrpcMatch, path: &FieldPath) -> Result<Match, Problem> {
        grpc_match(spec, path)
    }

    fn rule(
        number: usize,
        rule: &Value,
        matches: Vec<Match>,
        path: &FieldPath,
        key: &Key,
        notes: &mut Notes<'_>,
    ) -> Result<Rule, Problem> {
        let rule: GrpcRule = part(rule, path)?;
        let GrpcRule { filters: specs, backend_refs, session_persistence, .. } = &rule;
        let place = Place { kind: Self::KIND, matches: &matches, forwards: !backend_refs.is_empty() };
        let filters = filters(specs, &place, &path.key("filters"), notes)?;
        let backends = backends(backend_refs, &place, &path.key("backendRefs"), notes)?;
        let at = path.key("sessionPersistence");
        let session = session_persistence.as_ref().map(|spec| session(spec, key, number, &at)).transpose()?;
        Ok(Rule { name: None, matches, filters, backends, timeouts: Timeouts::default(), retry: None, session })
    }
}

fn grpc_match(spec: &GrpcMatch, path: &FieldPath) -> Result<Match, Problem> {
    let GrpcMatch { method, headers } = spec;
    let method = method.as_ref().map(|method| method_path(method, &path.key("method"))).transpose()?;
    Ok(Match { path: method, method: None, headers: read_headers(headers, &path.key("headers"))?, query: Vec::new() })
}

/// Neither service nor method is every method of every service.
fn method_path(spec: &GrpcMethodMatch, path: &FieldPath) -> Result<PathMatch, Problem> {
    let GrpcMethodMatch { match_type, service, method } = spec;
    let service = service.as_deref().filter(|service| !service.is_empty());
    let method = method.as_deref().filter(|method| !method.is_empty());
    for (field, text) in [("service", service), ("method", method)] {
        bounded(text.map_or(0, str::len), MAX_TEXT, &path.key(field))?;
    }
    if *match_type == ValueMatchType::Exact {
        plain("service", service, is_service, path)?;
        plain("method", method, is_identifier, path)?;
    }
    let is_regex = *match_type == ValueMatchType::RegularExpression;
    for (field, text) in [("service", service), ("method", method)].into_iter().filter(|_| is_regex) {
        anchored(text.unwrap_or_default(), &path.key(field))?;
    }
    let name = |text| if is_regex { Name::Regex(text) } else { Name::Exact(text) };
    let wrong = |error| Problem::new(path.clone(), format!("not a regular expression: {error}"));
    grpc::call(service.map(name), method.map(name)).map_err(wrong)
}

fn plain(field: &str, text: Option<&str>, is_one: fn(&str) -> bool, path: &FieldPath) -> Result<(), Problem> {
    match text {
        Some(text) if !is_one(text) => Err(Problem::new(path.key(field), format!("{text:?} is not a gRPC {field}"))),
        Some(_) | None => Ok(()),
    }
}

fn is_service(text: &str) -> bool {
    text.strip_prefix('.').unwrap_or(text).split('.').all(is_identifier)
}

fn is_identifier(text: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
    text.bytes().next().is_some_and(letter) && text.bytes().all(|byte| letter(byte) || byte.is_ascii_digit())
}
