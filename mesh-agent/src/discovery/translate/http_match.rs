//! Matches of HTTPRoute, and what those of GRPCRoute have in common with them.

use std::sync::Arc;

use http::{HeaderName, Method};
use regex::Regex;

use super::route::bounded;
use super::{FieldPath, Problem};
use crate::discovery::gateway::{HeaderMatch, HttpMatch, PathMatch, PathMatchType, QueryMatch, ValueMatchType};
use crate::routes::{self, Match, Text};

/// Headers and query parameters of a match, each.
pub const MAX_CONDITIONS: usize = 16;
/// A path, or the value of a query parameter.
pub const MAX_TEXT: usize = 1024;
/// The value of a header.
pub const MAX_HEADER_VALUE: usize = 4096;
/// The methods that the API has a word for.
const METHODS: [Method; 9] = [
    Method::GET,
    Method::HEAD,
    Method::POST,
    Method::PUT,
    Method::DELETE,
    Method::CONNECT,
    Method::OPTIONS,
    Method::TRACE,
    Method::PATCH,
];

/// One match. Without a path it is every path.
pub(super) fn http_match(spec: &HttpMatch, path: &FieldPath) -> Result<Match, Problem> {
    let HttpMatch { path: path_match, headers, query_params, method } = spec;
    let any = PathMatch { match_type: PathMatchType::PathPrefix, value: None };
    Ok(Match {
        path: Some(read_path(path_match.as_ref().unwrap_or(&any), &path.key("path").key("value"))?),
        method: method.as_deref().map(|method| read_method(method, &path.key("method"))).transpose()?,
        headers: read_headers(headers, &path.key("headers"))?,
        query: read_query(query_params, &path.key("queryParams"))?,
    })
}

fn read_method(method: &str, path: &FieldPath) -> Result<Method, Problem> {
    let known = METHODS.iter().find(|known| known.as_str() == method);
    known.cloned().ok_or_else(|| Problem::new(path.clone(), format!("{method:?} is not a method of the API")))
}

fn read_path(spec: &PathMatch, path: &FieldPath) -> Result<routes::PathMatch, Problem> {
    let value = spec.value.as_deref().unwrap_or("/");
    bounded(value.len(), MAX_TEXT, path)?;
    Ok(match spec.match_type {
        PathMatchType::Exact => routes::PathMatch::Exact(plain_path(value, path)?.into()),
        PathMatchType::PathPrefix => {
            let whole = plain_path(value, path)?;
            let trimmed = whole.strip_suffix('/').filter(|rest| !rest.is_empty());
            routes::PathMatch::Prefix(trimmed.unwrap_or(whole).into())
        }
        PathMatchType::RegularExpression => routes::PathMatch::Regex(anchored(value, path)?),
    })
}

/// A path that means one thing only: what the API's schema lets pass.
fn plain_path<'a>(value: &'a str, path: &FieldPath) -> Result<&'a str, Problem> {
    let wrong = |reason: String| Err(Problem::new(path.clone(), reason));
    if !value.starts_with('/') {
        return wrong(format!("{value:?} does not begin with /"));
    }
    let ambiguous = ["//", "/./", "/../", "%2f", "%2F", "#"].into_iter().find(|part| value.contains(part));
    let ambiguous = ambiguous.or_else(|| ["/..", "/."].into_iter().find(|end| value.ends_with(end)));
    if let Some(part) = ambiguous {
        return wrong(format!("{value:?} has {part:?} in it"));
    }
    if !is_path_text(value) {
        return wrong(format!("{value:?} has a character that no path has"));
    }
    Ok(value)
}

fn is_path_text(value: &str) -> bool {
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        let legal = match byte {
            b'%' => {
                let is_hex = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_hexdigit());
                is_hex(rest.next()) && is_hex(rest.next())
            }
            byte => byte.is_ascii_alphanumeric() || b"-/._~!$&'()*+,;=:@".contains(&byte),
        };
        if !legal {
            return false;
        }
    }
    true
}

/// Of two entries with one name the first counts, as the API has it; the second means nothing.
pub(super) fn read_headers(specs: &[HeaderMatch], path: &FieldPath) -> Result<Vec<(HeaderName, Text)>, Problem> {
    bounded(specs.len(), MAX_CONDITIONS, path)?;
    let mut headers: Vec<(HeaderName, Text)> = Vec::with_capacity(specs.len());
    for (index, spec) in specs.iter().enumerate() {
        let path = path.index(index);
        let name = header_name(&spec.name, &path.key("name"))?;
        let text = read_text(spec.match_type, &spec.value, MAX_HEADER_VALUE, &path.key("value"))?;
        if !headers.iter().any(|(known, _)| *known == name) {
            headers.push((name, text));
        }
    }
    Ok(headers)
}

/// A header's name. Those that HTTP/2 writes with a colon are none.
pub(super) fn header_name(name: &str, path: &FieldPath) -> Result<HeaderName, Problem> {
    name.parse().map_err(|_| Problem::new(path.clone(), format!("{name:?} is not the name of a header")))
}

fn read_query(specs: &[QueryMatch], path: &FieldPath) -> Result<Vec<(Arc<str>, Text)>, Problem> {
    bounded(specs.len(), MAX_CONDITIONS, path)?;
    let mut query: Vec<(Arc<str>, Text)> = Vec::with_capacity(specs.len());
    for (index, spec) in specs.iter().enumerate() {
        let path = path.index(index);
        if spec.name.is_empty() {
            return Err(Problem::new(path.key("name"), "empty"));
        }
        let text = read_text(spec.match_type, &spec.value, MAX_TEXT, &path.key("value"))?;
        if !query.iter().any(|(known, _)| **known == *spec.name) {
            query.push((spec.name.as_str().into(), text));
        }
    }
    Ok(query)
}

fn read_text(kind: ValueMatchType, value: &str, most: usize, path: &FieldPath) -> Result<Text, Problem> {
    bounded(value.len(), most, path)?;
    if value.is_empty() {
        return Err(Problem::new(path.clone(), "empty"));
    }
    Ok(match kind {
        ValueMatchType::Exact => Text::Exact(value.into()),
        ValueMatchType::RegularExpression => Text::Regex(anchored(value, path)?),
    })
}

/// A regular expression for a whole text.
pub(super) fn anchored(pattern: &str, path: &FieldPath) -> Result<Regex, Problem> {
    routes::anchored(pattern).map_err(|error| Problem::new(path.clone(), format!("not a regular expression: {error}")))
}
