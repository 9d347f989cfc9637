//! What an AuthorizationPolicy says about requests.

use http::HeaderName;

use super::{FieldPath, Problem, not_empty};
use crate::discovery::crd;
use crate::policy::{Attribute, Condition, Operation, PathPattern, Pattern, PatternError, normal_host};

/// Reads `requests` of a rule.
pub fn operations(rule: &crd::PolicyRule, path: &FieldPath) -> Result<Vec<Operation>, Problem> {
    let path = path.key("requests");
    let requests = not_empty(rule.requests.as_deref(), &path)?.unwrap_or_default();
    requests.iter().enumerate().map(|(index, request)| operation(request, &path.index(index))).collect()
}

fn operation(request: &crd::PolicyRequest, path: &FieldPath) -> Result<Operation, Problem> {
    let crd::PolicyRequest { hosts, not_hosts, methods, not_methods, paths, not_paths, grpc, not_grpc } = request;
    if *request == crd::PolicyRequest::default() {
        return Err(Problem::new(path.clone(), "empty: name hosts, methods, paths or grpc, or leave requests out"));
    }
    let all_paths = |paths: &Option<Vec<String>>, grpc: &Option<Vec<crd::PolicyGrpc>>, of: &str, of_grpc: &str| {
        let mut all = read(paths, &path.key(of), PathPattern::parse)?;
        let calls = path.key(of_grpc);
        for (index, call) in not_empty(grpc.as_deref(), &calls)?.unwrap_or_default().iter().enumerate() {
            all.push(grpc_path(call, &calls.index(index))?);
        }
        Ok(all)
    };
    Ok(Operation {
        hosts: read(hosts, &path.key("hosts"), host)?,
        not_hosts: read(not_hosts, &path.key("notHosts"), host)?,
        methods: read(methods, &path.key("methods"), method)?,
        not_methods: read(not_methods, &path.key("notMethods"), method)?,
        paths: all_paths(paths, grpc, "paths", "grpc")?,
        not_paths: all_paths(not_paths, not_grpc, "notPaths", "notGrpc")?,
    })
}

/// Reads each text of a list.
fn read<T, E: std::fmt::Display>(
    texts: &Option<Vec<String>>,
    path: &FieldPath,
    parse: impl Fn(&str) -> Result<T, E>,
) -> Result<Vec<T>, Problem> {
    let texts = not_empty(texts.as_deref(), path)?.unwrap_or_default().iter().enumerate();
    let problem = |index, text: &str, error: E| Problem::new(path.index(index), format!("{text:?}: {error}"));
    texts.map(|(index, text)| parse(text).map_err(|error| problem(index, text, error))).collect()
}

/// A pattern of hosts, in the form that requests' hosts have.
fn host(text: &str) -> Result<Pattern, String> {
    let pattern = Pattern::parse(&text.to_ascii_lowercase()).map_err(|error| error.to_string())?;
    let word = match &pattern {
        Pattern::Any => return Ok(pattern),
        Pattern::Exact(word) | Pattern::Prefix(word) | Pattern::Suffix(word) => word,
    };
    let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~[:]".contains(&byte);
    if !word.bytes().all(is_legal) || word.contains(':') && !word.starts_with('[') {
        return Err("is no host; ports are said in `ports`".to_string());
    }
    match &pattern {
        Pattern::Exact(word) => match normal_host(word) {
            Some(normal) => Ok(Pattern::Exact((&*normal).into())),
            None => Err("is no host".to_string()),
        },
        _ => Ok(pattern),
    }
}

/// Methods have case (RFC 9110 9.1), and those that there are have capitals.
fn method(text: &str) -> Result<Pattern, String> {
    let pattern = Pattern::parse(text).map_err(|error| error.to_string())?;
    let is_legal = |letter: char| letter.is_ascii_uppercase() || letter.is_ascii_digit() || "-_*".contains(letter);
    if text.chars().all(is_legal) { Ok(pattern) } else { Err("methods are written in capitals".to_string()) }
}

fn grpc_path(call: &crd::PolicyGrpc, path: &FieldPath) -> Result<PathPattern, Problem> {
    let crd::PolicyGrpc { service, method } = call;
    let name = |name: &Option<String>, field: &str| match name {
        Some(name)
            if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._".contains(&byte)) =>
        {
            Err(Problem::new(path.key(field), format!("{name:?} is no name of gRPC; no wildcards here")))
        }
        name => Ok(name.clone()),
    };
    let text = match (name(service, "service")?, name(method, "method")?) {
        (None, None) => return Err(Problem::new(path.clone(), "empty: name a service, a method or both")),
        (Some(service), None) => format!("/{service}/*"),
        (None, Some(method)) => format!("/{{*}}/{method}"),
        (Some(service), Some(method)) => format!("/{service}/{method}"),
    };
    PathPattern::parse(&text).map_err(|error| Problem::new(path.clone(), error.to_string()))
}

/// Reads `when` and the request principals of a rule.
pub fn conditions(rule: &crd::PolicyRule, path: &FieldPath) -> Result<Vec<Condition>, Problem> {
    let crd::PolicyRule { request_principals, not_request_principals, when, .. } = rule;
    let values = read(request_principals, &path.key("requestPrincipals"), Pattern::parse)?;
    let not_values = read(not_request_principals, &path.key("notRequestPrincipals"), Pattern::parse)?;
    let mut conditions = Vec::new();
    if !values.is_empty() || !not_values.is_empty() {
        conditions.push(Condition { key: Attribute::Principal, values, not_values });
    }
    let path = path.key("when");
    for (index, condition) in not_empty(when.as_deref(), &path)?.unwrap_or_default().iter().enumerate() {
        conditions.push(self::condition(condition, &path.index(index))?);
    }
    Ok(conditions)
}

fn condition(condition: &crd::PolicyCondition, path: &FieldPath) -> Result<Condition, Problem> {
    let crd::PolicyCondition { key, values, not_values } = condition;
    if values.is_none() && not_values.is_none() {
        return Err(Problem::new(path.clone(), "neither values nor notValues is set: it would ask for nothing"));
    }
    let attribute = attribute(key).ok_or_else(|| {
        let known = "request.headers[name], request.auth.principal, request.auth.audiences, request.auth.claims[name]";
        Problem::new(path.key("key"), format!("{key:?} is not known: {known}"))
    })?;
    // Host is judged as hosts are.
    let parse = |text: &str| match &attribute {
        Attribute::Header(name) if *name == http::header::HOST => host(text),
        _ => Pattern::parse(text).map_err(|error: PatternError| error.to_string()),
    };
    let (values, not_values) =
        (read(values, &path.key("values"), parse)?, read(not_values, &path.key("notValues"), parse)?);
    Ok(Condition { key: attribute, values, not_values })
}

fn attribute(key: &str) -> Option<Attribute> {
    match key {
        "request.auth.principal" => return Some(Attribute::Principal),
        "request.auth.audiences" => return Some(Attribute::Audiences),
        _ => {}
    }
    if let Some(name) = key.strip_prefix("request.headers[") {
        let name = HeaderName::try_from(name.strip_suffix(']')?).ok()?;
        return Some(Attribute::Header(name));
    }
    let names = key.strip_prefix("request.auth.claims[")?.strip_suffix(']')?;
    let names: Vec<&str> = names.split("][").collect();
    let is_legal = names.iter().all(|name| !name.is_empty() && !name.contains(['[', ']']));
    is_legal.then(|| Attribute::Claim(names.into_iter().map(std::sync::Arc::from).collect()))
}
