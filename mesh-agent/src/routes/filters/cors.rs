//! CORS, as Gateway API has it and the Fetch standard (section 3.2) means it.
//!
//! With this filter the route alone says what browsers may do: what an application says of it in its answers is replaced.

use std::sync::Arc;

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, SET_COOKIE, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, request, response};

use super::super::object::Cors;
use super::head;

const ANYTHING: &str = "*";

/// The answer to a preflight; None: it is none.
pub(super) fn preflight(cors: &Cors, request: &request::Parts) -> Option<response::Parts> {
    let origin = request.headers.get(ORIGIN)?;
    let method = request.headers.get(ACCESS_CONTROL_REQUEST_METHOD)?;
    if request.method != Method::OPTIONS {
        return None;
    }
    let mut answer = head(StatusCode::NO_CONTENT);
    if !grant(cors, Some(origin), &mut answer.headers) {
        return Some(answer);
    }
    let methods = allowed(cors, &cors.allow_methods, Some(method));
    put(&mut answer.headers, ACCESS_CONTROL_ALLOW_METHODS, methods);
    let headers = allowed(cors, &cors.allow_headers, request.headers.get(ACCESS_CONTROL_REQUEST_HEADERS));
    put(&mut answer.headers, ACCESS_CONTROL_ALLOW_HEADERS, headers);
    put(&mut answer.headers, ACCESS_CONTROL_MAX_AGE, Some(cors.max_age.as_secs().into()));
    // Browsers look for it in the answer to the request itself; the conformance suite looks here too.
    put(&mut answer.headers, ACCESS_CONTROL_EXPOSE_HEADERS, allowed(cors, &cors.expose_headers, None));
    Some(answer)
}

/// What the answer to the request itself says.
pub(super) fn respond(cors: &Cors, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
    for name in [ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_EXPOSE_HEADERS] {
        headers.remove(name);
    }
    if grant(cors, origin, headers) {
        let exposed = exposed(cors, headers);
        put(headers, ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    }
}

/// Says whether this origin may read the answer, and so does the return value.
fn grant(cors: &Cors, origin: Option<&HeaderValue>, headers: &mut HeaderMap) -> bool {
    let any = is_anything(&cors.allow_origins) && !cors.allow_credentials;
    if !any {
        // A cache must not give one origin's answer to another, nor that for none.
        headers.append(VARY, HeaderValue::from_static("Origin"));
    }
    let Some(origin) = origin.filter(|origin| allows(cors, origin)) else { return false };
    let granted = if any { HeaderValue::from_static(ANYTHING) } else { origin.clone() };
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, granted);
    if cors.allow_credentials {
        headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    true
}

fn allows(cors: &Cors, origin: &HeaderValue) -> bool {
    let Ok(origin) = origin.to_str() else { return false };
    if is_anything(&cors.allow_origins) {
        // Sandboxed documents and files all call themselves `null`: whoever lets any origin in with its cookies does not
        // mean them.
        return Url::parse(origin).is_some() || (origin == "null" && !cors.allow_credentials);
    }
    Url::parse(origin).is_some_and(|origin| cors.allow_origins.iter().any(|allowed| origin.is_like(allowed)))
}

/// The list; where it is everything, what was asked for if credentials forbid a `*`.
fn allowed(cors: &Cors, list: &[Arc<str>], asked: Option<&HeaderValue>) -> Option<HeaderValue> {
    if is_anything(list) && cors.allow_credentials { asked.cloned() } else { joined(list.iter().map(|one| &**one)) }
}

/// The list; where it is everything and credentials forbid a `*`, the names of the headers that are there.
fn exposed(cors: &Cors, headers: &HeaderMap) -> Option<HeaderValue> {
    if is_anything(&cors.expose_headers) && cors.allow_credentials {
        // A script never sees Set-Cookie, listed or not.
        return joined(headers.keys().filter(|name| **name != SET_COOKIE).map(HeaderName::as_str));
    }
    joined(cors.expose_headers.iter().map(|one| &**one))
}

fn is_anything(list: &[Arc<str>]) -> bool {
    list.iter().any(|one| **one == *ANYTHING)
}

fn joined<'a>(list: impl Iterator<Item = &'a str>) -> Option<HeaderValue> {
    let list: Vec<&str> = list.collect();
    if list.is_empty() { None } else { HeaderValue::try_from(list.join(", ")).ok() }
}

fn put(headers: &mut HeaderMap, name: HeaderName, value: Option<HeaderValue>) {
    if let Some(value) = value {
        headers.insert(name, value);
    }
}

/// `<scheme>://<host>(:<port>)`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Url<'a> {
    scheme: &'a str,
    host: &'a str,
    port: u16,
}

impl<'a> Url<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let default = match scheme {
            _ if scheme.eq_ignore_ascii_case("http") => 80,
            _ if scheme.eq_ignore_ascii_case("https") => 443,
            _ => return None,
        };
        // An IPv6 address has its colons in brackets.
        let port_at = rest.rfind(':').filter(|at| rest.rfind(']').is_none_or(|bracket| bracket < *at));
        let (host, port) = match port_at {
            Some(at) => (rest.get(..at)?, decimal(rest.get(at.saturating_add(1)..)?)?),
            None => (rest, default),
        };
        let is_host = !host.is_empty() && !host.contains(['/', '?', '#', '@', ' ', ',', '\\']);
        is_host.then_some(Self { scheme, host, port })
    }

    /// Whether this origin is one that is allowed; there `*` at the left stands for one or more labels, and alone for
    /// every host.
    fn is_like(&self, allowed: &str) -> bool {
        let Some(allowed) = Url::parse(allowed) else { return false };
        let host = match allowed.host.strip_prefix('*') {
            Some(end) => ends_with(self.host, end),
            None => self.host.eq_ignore_ascii_case(allowed.host),
        };
        host && self.port == allowed.port && self.scheme.eq_ignore_ascii_case(allowed.scheme)
    }
}

/// Digits alone: `parse` would take a sign too.
fn decimal(text: &str) -> Option<u16> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// Longer than its end, which is compared without regard to case.
fn ends_with(host: &str, end: &str) -> bool {
    let at = host.len().checked_sub(end.len()).filter(|at| *at > 0);
    at.and_then(|at| host.get(at..)).is_some_and(|tail| tail.eq_ignore_ascii_case(end))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn list(items: &[&str]) -> Vec<Arc<str>> {
        items.iter().map(|item| (*item).into()).collect()
    }

    fn cors(origins: &[&str]) -> Cors {
        Cors {
            allow_origins: list(origins),
            allow_credentials: false,
            allow_methods: list(&["GET", "PUT"]),
            allow_headers: list(&["x-a", "x-b"]),
            expose_headers: list(&["x-c"]),
            max_age: Duration::from_secs(5),
        }
    }

    fn anything(credentials: bool) -> Cors {
        let all = || list(&["*"]);
        Cors {
            allow_origins: all(),
            allow_credentials: credentials,
            allow_methods: all(),
            allow_headers: all(),
            expose_headers: all(),
            max_age: Duration::from_secs(5),
        }
    }

    fn lines(headers: &HeaderMap) -> Vec<String> {
        let mut lines: Vec<String> =
            headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        lines.sort();
        lines
    }

    /// Of `OPTIONS` with these headers.
    fn answered(cors: &Cors, headers: &[(&str, &str)]) -> Option<Vec<String>> {
        let builder = http::Request::builder().method("OPTIONS").uri("/");
        let builder = headers.iter().fold(builder, |builder, (name, value)| builder.header(*name, *value));
        let answer = preflight(cors, &builder.body(()).unwrap().into_parts().0)?;
        assert_eq!(answer.status, StatusCode::NO_CONTENT);
        Some(lines(&answer.headers))
    }

    fn responded(cors: &Cors, origin: Option<&str>, before: &[(&'static str, &str)]) -> Vec<String> {
        let mut headers = HeaderMap::new();
        for (name, value) in before {
            headers.append(*name, value.parse().unwrap());
        }
        respond(cors, origin.map(|origin| origin.parse().unwrap()).as_ref(), &mut headers);
        lines(&headers)
    }

    #[test]
    fn origins() {
        for (allowed, origin, matches) in [
            ("https://a.com", "https://a.com", true),
            ("https://a.com", "https://A.com", true),
            ("https://a.com", "http://a.com", false),
            ("https://a.com", "https://a.com:443", true),
            ("https://a.com:443", "https://a.com", true),
            ("http://a.com:80", "http://a.com", true),
            ("https://a.com", "https://a.com:8443", false),
            ("https://a.com:8443", "https://a.com:8443", true),
            ("https://a.com", "https://b.a.com", false),
            ("https://a.com", "https://a.com.evil.com", false),
            ("https://*.a.com", "https://b.a.com", true),
            ("https://*.a.com", "https://c.b.a.com", true),
            ("https://*.a.com", "https://a.com", false),
            ("https://*.a.com", "https://.a.com", false),
            ("https://*.a.com", "https://evila.com", false),
            ("https://*.a.com", "https://b.a.com:8443", false),
            ("https://*.a.com", "https://evil.com/.a.com", false),
            ("https://*.a.com", "https://evil.com?.a.com", false),
            ("https://*.a.com", "https://evil.com#.a.com", false),
            ("https://*.a.com", "https://user@b.a.com", false),
            ("https://*", "https://anything", true),
            ("https://*", "http://anything", false),
            ("https://*:8443", "https://anything:8443", true),
            ("*", "http://anything:1", true),
            ("*", "null", true),
            ("*", "", false),
            ("*", "garbage", false),
            ("https://a.com", "null", false),
            ("http://[fd00::1]", "http://[fd00::1]:80", true),
            ("http://[fd00::1]:8080", "http://[fd00::1]", false),
            ("https://a.com", "https://a.com:", false),
            ("https://a.com", "https://a.com:+443", false),
            ("https://a.com", "https://a.com:65979", false),
        ] {
            assert_eq!(allows(&cors(&[allowed]), &origin.parse().unwrap()), matches, "{allowed} {origin}");
        }
        assert!(allows(&cors(&["https://a.com", "https://b.com"]), &"https://b.com".parse().unwrap()));
        assert!(!allows(&cors(&[]), &"https://b.com".parse().unwrap()));
        assert!(!allows(&anything(true), &"null".parse().unwrap()));
    }

    #[test]
    fn a_preflight_is_options_with_an_origin_and_a_method() {
        let asks = ("access-control-request-method", "PUT");
        assert!(answered(&cors(&["*"]), &[("origin", "https://a.com"), asks]).is_some());
        assert_eq!(answered(&cors(&["*"]), &[("origin", "https://a.com")]), None);
        assert_eq!(answered(&cors(&["*"]), &[asks]), None);
        let get = http::Request::builder().uri("/").header("origin", "https://a.com").header(asks.0, asks.1);
        assert!(preflight(&cors(&["*"]), &get.body(()).unwrap().into_parts().0).is_none());
    }

    #[test]
    fn preflights() {
        let origin = ("origin", "https://a.com");
        let method = ("access-control-request-method", "DELETE");
        let headers = ("access-control-request-headers", "x-q, x-r");
        let one = cors(&["https://a.com"]);
        assert_eq!(
            answered(&one, &[origin, method, headers]).unwrap(),
            [
                "access-control-allow-headers: x-a, x-b",
                "access-control-allow-methods: GET, PUT",
                "access-control-allow-origin: https://a.com",
                "access-control-expose-headers: x-c",
                "access-control-max-age: 5",
                "vary: Origin",
            ]
        );
        assert_eq!(answered(&one, &[("origin", "https://b.com"), method, headers]).unwrap(), ["vary: Origin"]);
        assert_eq!(
            answered(&anything(false), &[origin, method, headers]).unwrap(),
            [
                "access-control-allow-headers: *",
                "access-control-allow-methods: *",
                "access-control-allow-origin: *",
                "access-control-expose-headers: *",
                "access-control-max-age: 5",
            ]
        );
        // With credentials no wildcard is sent: browsers would take it for a name.
        assert_eq!(
            answered(&anything(true), &[origin, method, headers]).unwrap(),
            [
                "access-control-allow-credentials: true",
                "access-control-allow-headers: x-q, x-r",
                "access-control-allow-methods: DELETE",
                "access-control-allow-origin: https://a.com",
                "access-control-max-age: 5",
                "vary: Origin",
            ]
        );
        assert_eq!(
            answered(&anything(true), &[origin, method]).unwrap(),
            [
                "access-control-allow-credentials: true",
                "access-control-allow-methods: DELETE",
                "access-control-allow-origin: https://a.com",
                "access-control-max-age: 5",
                "vary: Origin",
            ]
        );
        let bare = Cors { allow_methods: vec![], allow_headers: vec![], expose_headers: vec![], ..one };
        assert_eq!(
            answered(&bare, &[origin, method, headers]).unwrap(),
            ["access-control-allow-origin: https://a.com", "access-control-max-age: 5", "vary: Origin",]
        );
    }

    /// The suite's conformance/tests/httproute-cors: (filter, headers of the preflight, lines that have to be there).
    #[test]
    fn preflights_of_the_conformance_suite() {
        let first = Cors {
            allow_origins: list(&["https://www.foo.com", "https://*.bar.com"]),
            allow_credentials: true,
            allow_methods: list(&["GET", "OPTIONS"]),
            allow_headers: list(&["x-header-1", "x-header-2"]),
            expose_headers: list(&["x-header-3", "x-header-4"]),
            max_age: Duration::from_secs(3600),
        };
        let methods =
            Cors { allow_origins: list(&["https://www.foo.com"]), allow_methods: list(&["*"]), ..Cors::default() };
        let wild = |credentials| Cors { expose_headers: vec![], ..anything(credentials) };
        let asked = "x-header-1, x-header-2";
        for (cors, origin, method, wanted) in [
            (&first, "https://www.foo.com", "GET", Some(("GET, OPTIONS", asked, true))),
            (&first, "https://www.bar.com", "GET", Some(("GET, OPTIONS", asked, true))),
            (&first, "https://xpto.www.bar.com", "GET", Some(("GET, OPTIONS", asked, true))),
            (&first, "https://foobar.com", "GET", None),
            (&methods, "https://www.foo.com", "POST", Some(("*", "", false))),
            (&wild(true), "https://other.foo.com", "PUT", Some(("PUT", asked, true))),
            (&wild(false), "https://other.foo.com:12345", "PUT", Some(("*", "*", false))),
        ] {
            let headers = [
                ("origin", origin),
                ("access-control-request-method", method),
                ("access-control-request-headers", asked),
            ];
            let lines = answered(cors, &headers).unwrap();
            let value = |name: &str| lines.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            let Some((methods, headers, credentials)) = wanted else {
                assert_eq!(lines, ["vary: Origin"]);
                continue;
            };
            assert!([Some(origin), Some("*")].contains(&value("access-control-allow-origin")), "{lines:?}");
            assert!(!credentials || value("access-control-allow-origin") == Some(origin), "{lines:?}");
            assert_eq!(value("access-control-allow-methods"), Some(methods));
            assert_eq!(value("access-control-allow-headers").unwrap_or_default(), headers);
            assert_eq!(value("access-control-allow-credentials").is_some(), credentials);
            assert_eq!(value("access-control-max-age"), Some(cors.max_age.as_secs().to_string()).as_deref());
            let exposed = cors.expose_headers.iter().map(|name| &**name).collect::<Vec<_>>().join(", ");
            assert_eq!(value("access-control-expose-headers").unwrap_or_default(), exposed);
        }
    }

    #[test]
    fn answers() {
        let one = cors(&["https://a.com"]);
        assert_eq!(
            responded(&one, Some("https://a.com"), &[("x-z", "1")]),
            [
                "access-control-allow-origin: https://a.com",
                "access-control-expose-headers: x-c",
                "vary: Origin",
                "x-z: 1",
            ]
        );
        assert_eq!(responded(&one, Some("https://b.com"), &[("x-z", "1")]), ["vary: Origin", "x-z: 1"]);
        assert_eq!(responded(&one, None, &[("vary", "Accept")]), ["vary: Accept", "vary: Origin"]);
        assert_eq!(
            responded(&anything(false), Some("https://a.com"), &[]),
            ["access-control-allow-origin: *", "access-control-expose-headers: *",]
        );
        assert_eq!(
            responded(&anything(true), Some("https://a.com"), &[("x-z", "1"), ("set-cookie", "a=1")]),
            [
                "access-control-allow-credentials: true",
                "access-control-allow-origin: https://a.com",
                "access-control-expose-headers: x-z, vary, access-control-allow-origin, access-control-allow-credentials",
                "set-cookie: a=1",
                "vary: Origin",
                "x-z: 1",
            ]
        );
    }

    #[test]
    fn what_an_application_says_does_not_widen_what_the_route_allows() {
        let wide = [
            ("access-control-allow-origin", "*"),
            ("access-control-allow-credentials", "true"),
            ("access-control-expose-headers", "x-secret"),
        ];
        let one = Cors { expose_headers: vec![], ..cors(&["https://a.com"]) };
        assert_eq!(responded(&one, Some("https://b.com"), &wide), ["vary: Origin"]);
        assert_eq!(
            responded(&one, Some("https://a.com"), &wide),
            ["access-control-allow-origin: https://a.com", "vary: Origin",]
        );
    }
}
