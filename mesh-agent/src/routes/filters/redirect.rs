//! RequestRedirect.

use std::borrow::Cow;

use http::header::LOCATION;
use http::uri::Authority;
use http::{HeaderValue, Uri, request, response};

use super::super::object::Redirect;
use super::{Around, head, path};

/// The answer that sends the client elsewhere. None: no Location can be made of this request.
pub(super) fn head_of(redirect: &Redirect, around: &Around<'_>, request: &request::Parts) -> Option<response::Parts> {
    let mut answer = head(redirect.status);
    answer.headers.insert(LOCATION, location(redirect, around, request)?);
    Some(answer)
}

fn location(redirect: &Redirect, around: &Around<'_>, request: &request::Parts) -> Option<HeaderValue> {
    let scheme = redirect.scheme.as_deref().unwrap_or(around.scheme);
    let host = host_of(redirect.hostname.as_deref().unwrap_or(around.host))?;
    let port = shown(scheme, port(redirect, around)?).map_or_else(String::new, |port| format!(":{port}"));
    let target = target(redirect, around, request)?;
    let location = format!("{scheme}://{host}{port}{}", as_ascii(&target));
    // Host, port and target can each be right and the whole not.
    location.parse::<Uri>().ok()?;
    HeaderValue::try_from(location).ok()
}

/// A URL is ASCII (RFC 3986), though requests for other bytes are served.
fn as_ascii(target: &str) -> Cow<'_, str> {
    if target.is_ascii() {
        return Cow::Borrowed(target);
    }
    let encoded = |byte: u8| if byte.is_ascii() { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    Cow::Owned(target.bytes().map(encoded).collect())
}

/// Without port and user, so that neither comes back to the client.
fn host_of(authority: &str) -> Option<String> {
    let authority: Authority = authority.parse().ok()?;
    (!authority.host().is_empty()).then(|| authority.host().to_string())
}

/// "If redirect scheme is not-empty, the redirect port MUST be the well-known port associated with the redirect scheme.
/// … If redirect scheme is empty, the redirect port MUST be the Gateway Listener port": here the Service's.
fn port(redirect: &Redirect, around: &Around<'_>) -> Option<u16> {
    match (redirect.port, &redirect.scheme) {
        (Some(port), _) => Some(port),
        (None, Some(scheme)) => well_known(scheme),
        (None, None) => Some(around.port),
    }
}

/// "Implementations SHOULD NOT add the port number" where it is the scheme's own.
fn shown(scheme: &str, port: u16) -> Option<u16> {
    (well_known(scheme) != Some(port)).then_some(port)
}

fn well_known(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

fn target(redirect: &Redirect, around: &Around<'_>, request: &request::Parts) -> Option<String> {
    let (path, query) = (request.uri.path(), request.uri.query());
    // `OPTIONS *`
    let path = if path.starts_with('/') { path } else { "/" };
    if let Some(change) = &redirect.path {
        return Some(path::changed_target(change, around.matched_prefix, path, query)?.to_string());
    }
    Some(query.map_or_else(|| path.to_string(), |query| format!("{path}?{query}")))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::super::super::build;
    use super::super::super::object::PathRewrite;
    use super::*;

    const AROUND: Around<'static> =
        Around { scheme: "http", host: "echo:8080", port: 80, matched_prefix: Some("/foo") };

    fn located(redirect: &Redirect, around: &Around<'_>, uri: &str) -> Option<String> {
        let (request, ()) = http::Request::builder().uri(uri).body(()).unwrap().into_parts();
        let answer = head_of(redirect, around, &request)?;
        assert_eq!(answer.status, redirect.status);
        Some(answer.headers[LOCATION].to_str().unwrap().to_string())
    }

    #[test]
    fn scheme_host_and_port() {
        let scheme = |scheme: &str, port| Redirect { scheme: Some(scheme.into()), port, ..build::redirect() };
        let port = |port| Redirect { port, ..build::redirect() };
        for (redirect, listener, wanted) in [
            (port(None), 80, "http://echo/foo?q"),
            (port(None), 8080, "http://echo:8080/foo?q"),
            (port(None), 443, "http://echo:443/foo?q"),
            (port(Some(80)), 8080, "http://echo/foo?q"),
            (port(Some(8083)), 80, "http://echo:8083/foo?q"),
            (port(Some(443)), 80, "http://echo:443/foo?q"),
            (scheme("https", None), 8080, "https://echo/foo?q"),
            (scheme("https", Some(443)), 8080, "https://echo/foo?q"),
            (scheme("https", Some(80)), 8080, "https://echo:80/foo?q"),
            (scheme("https", Some(8443)), 8080, "https://echo:8443/foo?q"),
            (scheme("http", None), 8080, "http://echo/foo?q"),
        ] {
            let around = Around { port: listener, ..AROUND };
            assert_eq!(located(&redirect, &around, "/foo?q").as_deref(), Some(wanted), "{redirect:?} {listener}");
        }
    }

    #[test]
    fn the_host_is_the_clients_or_the_filters() {
        for (host, wanted) in [
            ("echo", Some("http://echo/")),
            ("echo:1234", Some("http://echo/")),
            ("user@echo", Some("http://echo/")),
            ("10.0.0.1:80", Some("http://10.0.0.1/")),
            ("[fd00::1]:80", Some("http://[fd00::1]/")),
            ("", None),
            ("a b", None),
            ("echo/../x", None),
            ("x[fd00::1]:8080", None),
        ] {
            let around = Around { host, ..AROUND };
            assert_eq!(located(&build::redirect(), &around, "/").as_deref(), wanted, "{host}");
            let named = Redirect { hostname: Some("example.org".into()), ..build::redirect() };
            assert_eq!(located(&named, &around, "/").as_deref(), Some("http://example.org/"));
        }
    }

    #[test]
    fn paths() {
        let path = |path| Redirect { path: Some(path), status: StatusCode::PERMANENT_REDIRECT, ..build::redirect() };
        for (redirect, uri, wanted) in [
            (path(PathRewrite::Full("/x".into())), "/foo/a?q=1", Some("http://echo/x?q=1")),
            (path(PathRewrite::Prefix("/x".into())), "/foo/a?q=1", Some("http://echo/x/a?q=1")),
            (path(PathRewrite::Prefix("/x".into())), "/bar", None),
            (build::redirect(), "/foo/%2F?a=/b", Some("http://echo/foo/%2F?a=/b")),
            (build::redirect(), "/foo/\u{e9}?\u{e9}", Some("http://echo/foo/%C3%A9?%C3%A9")),
            (build::redirect(), "*", Some("http://echo/")),
            (build::redirect(), "http://web/foo?q", Some("http://echo/foo?q")),
        ] {
            assert_eq!(located(&redirect, &AROUND, uri).as_deref(), wanted, "{uri}");
        }
    }
}
