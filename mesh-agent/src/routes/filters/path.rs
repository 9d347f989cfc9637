//! URLRewrite, and the paths of RequestRedirect.

use std::borrow::Cow;

use http::header::HOST;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderValue, Uri, request};

use super::super::object::{PathRewrite, UrlRewrite};

/// Rewrites a request's host and path; the query stays. None: what comes out is no request target.
pub(super) fn rewrite(rewrite: &UrlRewrite, matched_prefix: Option<&str>, request: &mut request::Parts) -> Option<()> {
    let UrlRewrite { hostname, path } = rewrite;
    let mut parts = std::mem::take(&mut request.uri).into_parts();
    if let Some(path) = path
        && let Some(target) = &parts.path_and_query
        // `OPTIONS *` is about no path.
        && target.path().starts_with('/')
    {
        parts.path_and_query = Some(changed_target(path, matched_prefix, target.path(), target.query())?);
    }
    if let Some(hostname) = hostname {
        let authority = Authority::try_from(&**hostname).ok()?;
        request.headers.insert(HOST, HeaderValue::try_from(authority.as_str()).ok()?);
        parts.authority = parts.authority.map(|_| authority);
    }
    request.uri = Uri::from_parts(parts).ok()?;
    Some(())
}

/// A path as it becomes, and the query as it was.
pub(super) fn changed_target(
    change: &PathRewrite,
    matched_prefix: Option<&str>,
    path: &str,
    query: Option<&str>,
) -> Option<PathAndQuery> {
    let mut target = changed(change, matched_prefix, path)?;
    if let Some(query) = query {
        target.push('?');
        target.push_str(query);
    }
    PathAndQuery::try_from(target).ok()
}

/// None: it was no prefix that matched, or not of this path.
fn changed(change: &PathRewrite, matched_prefix: Option<&str>, path: &str) -> Option<String> {
    let (replacement, rest) = match change {
        PathRewrite::Full(path) => (&**path, ""),
        PathRewrite::Prefix(replacement) => {
            let rest = path.strip_prefix(matched_prefix?)?;
            (replacement.strip_suffix('/').unwrap_or(replacement), rest)
        }
    };
    let rest_is_path = replacement.is_empty() && rest.starts_with('/');
    let mut changed = String::with_capacity(path.len());
    if !rest_is_path && !replacement.starts_with('/') {
        changed.push('/');
    }
    changed.push_str(&as_path(replacement));
    changed.push_str(rest);
    Some(changed)
}

/// What is written as a path stays one: it begins no query and no fragment.
fn as_path(text: &str) -> Cow<'_, str> {
    if text.contains(['?', '#']) { text.replace('?', "%3F").replace('#', "%23").into() } else { text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(replacement: &str) -> PathRewrite {
        PathRewrite::Prefix(replacement.into())
    }

    /// The table in the standard's comment on ReplacePrefixMatch, and what it leaves out.
    #[test]
    fn a_prefix_is_replaced() {
        for (path, matched, replacement, wanted) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
            // Beyond the table.
            ("/foo", "/foo", "/xyz/", "/xyz"),
            ("/foo/bar", "/foo", "/", "/bar"),
            ("/foo/bar", "/", "/xyz", "/xyz/foo/bar"),
            ("/", "/", "/xyz", "/xyz/"),
            ("/", "/", "/", "/"),
            ("/foo/bar", "/foo", "xyz", "/xyz/bar"),
            ("/foo//bar", "/foo", "/xyz", "/xyz//bar"),
            ("/foo/a%2Fb", "/foo", "/x%20y", "/x%20y/a%2Fb"),
            ("/foo/bar", "/foo", "/x?y#z", "/x%3Fy%23z/bar"),
        ] {
            // As the table hands it over: without the slash at the end.
            let matched = matched.strip_suffix('/').unwrap_or(matched);
            let target = changed_target(&prefix(replacement), Some(matched), path, None).unwrap();
            assert_eq!(target, wanted, "{path} {matched} {replacement}");
            let target = changed_target(&prefix(replacement), Some(matched), path, Some("a=1?2")).unwrap();
            assert_eq!(target, *format!("{wanted}?a=1?2"));
        }
    }

    #[test]
    fn a_path_is_replaced_as_a_whole() {
        for (replacement, wanted) in
            [("/x", "/x"), ("/x/", "/x/"), ("/", "/"), ("", "/"), ("x", "/x"), ("/x?y", "/x%3Fy")]
        {
            let full = PathRewrite::Full(replacement.into());
            assert_eq!(changed_target(&full, None, "/foo/bar", Some("q")).unwrap(), *format!("{wanted}?q"));
        }
    }

    #[test]
    fn what_cannot_be_rewritten_is_said() {
        assert_eq!(changed_target(&prefix("/x"), None, "/foo", None), None);
        assert_eq!(changed_target(&prefix("/x"), Some("/bar"), "/foo", None), None);
        assert_eq!(changed_target(&PathRewrite::Full("/a b".into()), None, "/foo", None), None);
    }

    fn rewritten(rewrite_: UrlRewrite, uri: &str) -> Option<(String, Option<String>)> {
        let (mut parts, ()) = http::Request::builder().uri(uri).header(HOST, "web:80").body(()).unwrap().into_parts();
        rewrite(&rewrite_, Some("/foo"), &mut parts)?;
        let host = parts.headers.get(HOST).map(|host| host.to_str().unwrap().to_string());
        Some((parts.uri.to_string(), host))
    }

    #[test]
    fn hosts_and_paths_of_requests() {
        let both =
            |hostname: Option<&str>, path: Option<PathRewrite>| UrlRewrite { hostname: hostname.map(Into::into), path };
        for (rewrite, uri, wanted, host) in [
            (both(Some("other"), None), "/foo?q", "/foo?q", "other"),
            (both(Some("other"), None), "http://web:80/foo?q", "http://other/foo?q", "other"),
            (both(None, Some(prefix("/bar"))), "/foo/x?q", "/bar/x?q", "web:80"),
            (both(None, Some(prefix("/bar"))), "http://web:80/foo/x", "http://web:80/bar/x", "web:80"),
            (both(Some("other"), Some(PathRewrite::Full("/bar".into()))), "/foo/x", "/bar", "other"),
            (both(None, Some(PathRewrite::Full("/bar".into()))), "*", "*", "web:80"),
        ] {
            assert_eq!(rewritten(rewrite, uri), Some((wanted.to_string(), Some(host.to_string()))), "{uri}");
        }
        assert_eq!(rewritten(both(Some("a b"), None), "/foo"), None);
        assert_eq!(rewritten(both(None, Some(PathRewrite::Full("/a b".into()))), "/foo"), None);
    }
}
