//! What is particular to gRPC: calls as paths (`/package.Service/Method`), and answers that a gRPC client understands.

use super::object::{Call, PathMatch, Said};
use super::pattern::anchored;

/// A name in a GRPCMethodMatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name<'a> {
    /// To the byte.
    Exact(&'a str),
    /// A regular expression that has to match the whole name.
    Regex(&'a str),
}

/// A GRPCMethodMatch as a path. Neither service nor method: every call.
///
/// # Errors
/// What is wrong with a pattern.
pub fn call(service: Option<Name<'_>>, method: Option<Name<'_>>) -> Result<PathMatch, regex::Error> {
    let path = match (service, method) {
        (None, None) => PathMatch::Prefix("/".into()),
        (Some(Name::Exact(service)), Some(Name::Exact(method))) => {
            PathMatch::Exact(format!("/{service}/{method}").into())
        }
        (Some(Name::Exact(service)), None) => PathMatch::Prefix(format!("/{service}").into()),
        (service, method) => PathMatch::Regex(anchored(&format!("/{}/{}", pattern(service)?, pattern(method)?))?),
    };
    Ok(PathMatch::Call(Call { service: said(service), method: said(method), path: Box::new(path) }))
}

fn said(name: Option<Name<'_>>) -> Said {
    match name {
        Some(Name::Exact(_)) => Said::Exact,
        Some(Name::Regex(_)) => Said::Regex,
        None => Said::Nothing,
    }
}

fn pattern(name: Option<Name<'_>>) -> Result<String, regex::Error> {
    Ok(match name {
        None => "[^/]+".to_string(),
        Some(Name::Exact(name)) => regex::escape(name),
        // Right on its own, so that it stays in its parentheses.
        Some(Name::Regex(name)) => anchored(name).map(|_| format!("(?:{name})"))?,
    })
}
