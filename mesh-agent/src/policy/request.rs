//! What a rule says about requests, and what a request says.
//!
//! An attribute can have several values: a header that comes twice, a path that applications read in two ways, a method
//! that a header overrides. Whoever asks an application may choose which of them it goes by, so the stricter reading
//! counts:
//!
//! | | ALLOW | DENY, AUDIT |
//! |---|---|---|
//! | `values` | there is one, and all of them are meant | one of them is meant |
//! | `notValues` | none of them is meant | there is none, or one of them is not meant |
//!
//! DENY also looks into the elements of a header's list, and takes methods without case; ALLOW takes nothing but the plain
//! word. A header's name has `_` for `-` or not, as it likes.

use std::borrow::Cow;
use std::net::Ipv6Addr;
use std::sync::Arc;

use http::header::{HOST, HeaderMap, HeaderName};
use serde::{Serialize, Serializer};

use super::object::Action;
use super::pattern::{PathPattern, Pattern};
use crate::fields;
use crate::path::NormalPath;
use crate::tokens::Token;

/// Headers by which applications let a request say that it has another method.
static OVERRIDES: [HeaderName; 3] = [
    HeaderName::from_static("x-http-method-override"),
    HeaderName::from_static("x-http-method"),
    HeaderName::from_static("x-method-override"),
];

/// One request, as policy is asked about it.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Its method.
    pub method: &'a http::Method,
    /// Its host, as [`normal_host`] has it.
    pub host: &'a str,
    /// Its path, normalised.
    pub path: &'a NormalPath<'a>,
    /// Its headers, without Host.
    pub headers: &'a HeaderMap,
    /// What its token says, if it brought one that is valid.
    pub token: Option<&'a Token>,
}

/// What of requests a rule means: one value of each list that is not empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Operation {
    /// Hosts, in lower case, without port.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<Pattern>,
    /// Hosts that are not meant.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_hosts: Vec<Pattern>,
    /// Methods.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<Pattern>,
    /// Methods that are not meant.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_methods: Vec<Pattern>,
    /// Paths, normalised. A gRPC method is a path.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<PathPattern>,
    /// Paths that are not meant.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_paths: Vec<PathPattern>,
}

/// Something else that must be so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What is looked at.
    pub key: Attribute,
    /// Values that are meant; empty means any, or none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<Pattern>,
    /// Values that are not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_values: Vec<Pattern>,
}

/// What a condition looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attribute {
    /// `request.headers[name]`
    Header(HeaderName),
    /// `request.auth.principal`
    Principal,
    /// `request.auth.audiences`
    Audiences,
    /// `request.auth.claims[name][within]…`
    Claim(Arc<[Arc<str>]>),
}

impl Serialize for Attribute {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = match self {
            Attribute::Header(name) => format!("request.headers[{name}]"),
            Attribute::Principal => "request.auth.principal".to_string(),
            Attribute::Audiences => "request.auth.audiences".to_string(),
            Attribute::Claim(path) => {
                format!("request.auth.claims{}", path.iter().map(|name| format!("[{name}]")).collect::<String>())
            }
        };
        serializer.serialize_str(&text)
    }
}

/// A host as policy compares it: in lower case, without port, without the dot at its end. The text is a valid authority.
/// None: several dots at its end, which no name has.
pub fn normal_host(authority: &str) -> Option<Cow<'_, str>> {
    if let Some(bracketed) = authority.strip_prefix('[') {
        let (address, _) = bracketed.split_once(']')?;
        let address: Ipv6Addr = address.parse().ok()?;
        return Some(Cow::Owned(format!("[{address}]")));
    }
    let name = authority.split_once(':').map_or(authority, |(name, _)| name);
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.is_empty() || name.ends_with('.') {
        return None;
    }
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Some(Cow::Owned(name.to_ascii_lowercase()));
    }
    Some(Cow::Borrowed(name))
}

/// How several values of one attribute count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    /// All must be meant: what an ALLOW asks for.
    Strict,
    /// One is enough: what a DENY fears.
    Wide,
}

impl Reading {
    fn of(action: Action) -> Self {
        match action {
            Action::Allow => Reading::Strict,
            Action::Deny | Action::Audit | Action::Custom => Reading::Wide,
        }
    }

    fn opposite(self) -> Self {
        match self {
            Reading::Strict => Reading::Wide,
            Reading::Wide => Reading::Strict,
        }
    }

    /// Whether values are meant. None are never.
    fn holds<T>(self, mut values: impl Iterator<Item = T>, mut is_meant: impl FnMut(T) -> bool) -> bool {
        match self {
            Reading::Wide => values.any(is_meant),
            Reading::Strict => values.next().is_some_and(&mut is_meant) && values.all(is_meant),
        }
    }
}

impl Operation {
    /// Whether nothing is asked of a request.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn matches(&self, action: Action, request: &Request<'_>) -> bool {
        let reading = Reading::of(action);
        let meant = |list: bool, is_meant: &dyn Fn(Reading) -> bool| list || is_meant(reading);
        let not_meant = |list: bool, is_meant: &dyn Fn(Reading) -> bool| list || !is_meant(reading.opposite());
        meant(self.methods.is_empty(), &|reading| methods(&self.methods, reading, request))
            && not_meant(self.not_methods.is_empty(), &|reading| methods(&self.not_methods, reading, request))
            && meant(self.hosts.is_empty(), &|_| hosts(&self.hosts, request))
            && not_meant(self.not_hosts.is_empty(), &|_| hosts(&self.not_hosts, request))
            && meant(self.paths.is_empty(), &|reading| paths(&self.paths, reading, request))
            && not_meant(self.not_paths.is_empty(), &|reading| paths(&self.not_paths, reading, request))
    }
}

fn hosts(patterns: &[Pattern], request: &Request<'_>) -> bool {
    patterns.iter().any(|pattern| pattern.matches(request.host))
}

fn paths(patterns: &[PathPattern], reading: Reading, request: &Request<'_>) -> bool {
    let readings = [Some(request.path.as_str()), request.path.folded()].into_iter().flatten();
    reading.holds(readings, |path| patterns.iter().any(|pattern| pattern.matches(path)))
}

fn methods(patterns: &[Pattern], reading: Reading, request: &Request<'_>) -> bool {
    let overrides = request.headers.iter();
    let overrides = overrides.filter(|(have, _)| OVERRIDES.iter().any(|name| fields::are_alike(have, name)));
    // What is no text is no method, and nothing that a rule could mean.
    let overrides = overrides.map(|(_, value)| value.to_str().unwrap_or_default().trim());
    let methods = std::iter::once(request.method.as_str()).chain(overrides);
    reading.holds(methods, |method| {
        patterns.iter().any(|pattern| match reading {
            Reading::Strict => pattern.matches(method),
            Reading::Wide => pattern.matches_any_case(method),
        })
    })
}

impl Condition {
    pub(super) fn matches(&self, action: Action, request: &Request<'_>) -> bool {
        let reading = Reading::of(action);
        (self.values.is_empty() || self.key.has(&self.values, reading, request))
            && (self.not_values.is_empty() || !self.key.has(&self.not_values, reading.opposite(), request))
    }
}

impl Attribute {
    fn has(&self, patterns: &[Pattern], reading: Reading, request: &Request<'_>) -> bool {
        let is_meant = |word: &str| patterns.iter().any(|pattern| pattern.matches(word));
        let token = request.token;
        match self {
            Attribute::Header(name) => header(name, reading, request, is_meant),
            Attribute::Principal => token.is_some_and(|token| is_meant(&token.principal)),
            Attribute::Audiences => token.is_some_and(|token| token.audiences.iter().any(|word| is_meant(word))),
            Attribute::Claim(path) => token.is_some_and(|token| claim(&token.claims, path, is_meant)),
        }
    }
}

fn header(name: &HeaderName, reading: Reading, request: &Request<'_>, is_meant: impl Fn(&str) -> bool) -> bool {
    if *name == HOST {
        return is_meant(request.host);
    }
    let lines = request.headers.iter().filter(|(have, _)| fields::are_alike(have, name));
    // What is no text is a value that nobody means.
    let lines = lines.map(|(_, value)| value.to_str().unwrap_or_default());
    match reading {
        Reading::Strict => reading.holds(lines, is_meant),
        Reading::Wide => {
            reading.holds(lines, |line| is_meant(line) || line.split(',').any(|element| is_meant(element.trim())))
        }
    }
}

/// A claim that is a list has each of its elements; so has one with words between blanks (RFC 8693 4.2, `scope`). What is
/// verified is not chosen by the caller, so there is no stricter reading.
fn claim(
    claims: &serde_json::Map<String, serde_json::Value>,
    path: &[Arc<str>],
    is_meant: impl Fn(&str) -> bool,
) -> bool {
    use serde_json::Value;
    let Some((first, within)) = path.split_first() else { return false };
    let found = claims.get(&**first);
    let found = within.iter().fold(found, |value, name| value.and_then(|value| value.get(&**name)));
    let one = |value: &Value| match value {
        Value::String(text) => is_meant(text) || text.contains(' ') && text.split(' ').any(&is_meant),
        Value::Bool(_) | Value::Number(_) => is_meant(&value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => false,
    };
    match found {
        Some(Value::Array(list)) => list.iter().any(one),
        Some(value) => one(value),
        None => false,
    }
}
