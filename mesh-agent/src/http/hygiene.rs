//! What a message must look like on either side of us (RFC 9110, 9112, 9113).
//!
//! A request leaves [`request`] in one form, whatever protocol it came by: the target in origin form, the authority in
//! one valid Host field, no field that was meant for us alone. Both upstream protocols are written from that form, so
//! that nothing of one framing survives into the other.
//!
//! What is said about where a request comes from is settled in [`super::claims`].

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, Parts as UriParts, PathAndQuery, Scheme, Uri};
use http::{Method, StatusCode, Version, request, response};

use super::claims::{self, Caller};
use super::limits::{MAX_CONNECTION_OPTIONS, MAX_HEADERS};
use crate::path::{self, Ambiguous, NormalPath};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Why a request is refused for what it is. The words are metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No Host, several, or one that is no host.
    Host,
    /// A target whose authority is not that of Host, or one that is no path.
    Target,
    /// CONNECT: a way out for bytes that no route describes.
    Connect,
    /// An expectation other than `100-continue`.
    Expectation,
    /// A Connection field that nominates what frames the message, or too much.
    Connection,
    /// A TRACE with a body (RFC 9110 9.3.8).
    Trace,
    /// More fields than HTTP/1.1 may have. Its parser sees to that; of HTTP/2 the size alone is bounded before.
    TooMany,
}

impl Fault {
    /// The stable label for metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            Fault::Host => "host",
            Fault::Target => "request-target",
            Fault::Connect => "connect-method",
            Fault::Expectation => "expectation",
            Fault::Connection => "connection-options",
            Fault::Trace => "trace-with-body",
            Fault::TooMany => "too-many-fields",
        }
    }

    /// What the client is told.
    pub fn status(self) -> StatusCode {
        match self {
            Fault::Host | Fault::Target | Fault::Connection | Fault::Trace => StatusCode::BAD_REQUEST,
            Fault::Connect => StatusCode::NOT_IMPLEMENTED,
            Fault::Expectation => StatusCode::EXPECTATION_FAILED,
            Fault::TooMany => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        }
    }
}

/// What a request said to us alone, and what its fields have lost with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// The protocol that it wants to change to.
    pub upgrade: Option<HeaderValue>,
    /// Whether it takes trailers.
    pub trailers: bool,
}

/// A cookie in crumbs is one field.
fn has_too_many(headers: &HeaderMap) -> bool {
    let crumbs = || headers.get_all(header::COOKIE).iter().count().saturating_sub(1);
    headers.len() > MAX_HEADERS && headers.len().saturating_sub(crumbs()) > MAX_HEADERS
}

/// Puts a client's request into the one form. `dialled` stands in for the Host that HTTP/1.0 may leave out.
pub fn request(parts: &mut request::Parts, has_body: bool, caller: &Caller, dialled: &str) -> Result<Asked, Fault> {
    match parts.method {
        Method::CONNECT => return Err(Fault::Connect),
        Method::TRACE if has_body => return Err(Fault::Trace),
        _ => {}
    }
    if has_too_many(&parts.headers) {
        return Err(Fault::TooMany);
    }
    settle_target(parts, dialled)?;
    let headers = &mut parts.headers;
    let mut expectations = headers.get_all(header::EXPECT).iter();
    match (expectations.next(), expectations.next()) {
        (None, _) => {}
        // The parser asks the client for its body once somebody reads it.
        (Some(one), None) if one.as_bytes().eq_ignore_ascii_case(b"100-continue") => {
            headers.remove(header::EXPECT);
        }
        (Some(_), _) => return Err(Fault::Expectation),
    }
    let asked = Asked {
        upgrade: if has_body || parts.version != Version::HTTP_11 { None } else { upgrade(headers) },
        trailers: lists(headers, &header::TE, "trailers"),
    };
    remove_hop_by_hop(headers)?;
    caller.settle(headers);
    Ok(asked)
}

/// Makes the target a path and the Host field its authority.
fn settle_target(parts: &mut request::Parts, dialled: &str) -> Result<(), Fault> {
    if parts.uri.scheme().is_some_and(|scheme| *scheme != Scheme::HTTP && *scheme != Scheme::HTTPS) {
        return Err(Fault::Target);
    }
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let (host, another) = (hosts.next(), hosts.next());
    if another.is_some() || host.is_some_and(|host| !is_authority(host.as_bytes())) {
        return Err(Fault::Host);
    }
    let is_http_2 = parts.version == Version::HTTP_2;
    let host = match (parts.uri.authority(), host) {
        // RFC 9112 3.2 and 9113 8.3.1; a recipient that takes the one and a recipient that takes the other must not
        // be told different things.
        (Some(authority), Some(host)) if !is_same_authority(authority.as_str(), host.as_bytes()) => {
            return Err(Fault::Target);
        }
        (Some(authority), None) if is_http_2 => Some(authority_value(authority)?),
        // An absolute target does not stand in for the Host that HTTP/1.1 must have.
        (None, None) | (Some(_), None) if parts.version == Version::HTTP_10 => {
            Some(HeaderValue::from_str(dialled).map_err(|_| Fault::Host)?)
        }
        (None, None) | (Some(_), None) => return Err(Fault::Host),
        (Some(_) | None, Some(_)) => None,
    };
    if let Some(host) = host {
        parts.headers.insert(header::HOST, host);
    }
    if parts.uri.authority().is_some() {
        let path = parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        parts.uri = Uri::from(path);
    }
    let path = parts.uri.path();
    let is_asterisk = path == "*" && parts.method == Method::OPTIONS;
    if path.starts_with('/') || is_asterisk { Ok(()) } else { Err(Fault::Target) }
}

fn authority_value(authority: &Authority) -> Result<HeaderValue, Fault> {
    if !is_authority(authority.as_str().as_bytes()) {
        return Err(Fault::Host);
    }
    HeaderValue::from_str(authority.as_str()).map_err(|_| Fault::Host)
}

/// `host` or `host:port`, where the host is a name, an IPv4 address or an IPv6 address in brackets. No user, no percent
/// encoding, nothing that a recipient would have to interpret.
fn is_authority(text: &[u8]) -> bool {
    let (host, port) = match text.strip_prefix(b"[") {
        Some(rest) => {
            let Some(end) = rest.iter().position(|byte| *byte == b']') else { return false };
            let (host, after) = (rest.get(..end).unwrap_or_default(), rest.get(end + 1..).unwrap_or_default());
            let is_v6 = std::str::from_utf8(host).is_ok_and(|host| host.parse::<std::net::Ipv6Addr>().is_ok());
            if !is_v6 {
                return false;
            }
            (host, after)
        }
        None => {
            let end = text.iter().position(|byte| *byte == b':').unwrap_or(text.len());
            let host = text.get(..end).unwrap_or_default();
            if !host.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')) {
                return false;
            }
            (host, text.get(end..).unwrap_or_default())
        }
    };
    let is_port = |port: &[u8]| {
        std::str::from_utf8(port)
            .is_ok_and(|port| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok())
    };
    !host.is_empty() && (port.is_empty() || port.strip_prefix(b":").is_some_and(is_port))
}

/// Two authorities of `http`: names without case, and port 80 where none is said.
fn is_same_authority(a: &str, b: &[u8]) -> bool {
    let plain = |text: &[u8]| text.strip_suffix(b":80").unwrap_or(text).to_ascii_lowercase();
    a.as_bytes().eq_ignore_ascii_case(b) || plain(a.as_bytes()) == plain(b)
}

/// The protocol that the client wants to change to, unless that is HTTP/2: two HTTP framings on one connection, one of
/// which no hygiene has seen, is how h2c smuggling works. Such a request is served as it is.
fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut values = headers.get_all(header::UPGRADE).iter();
    let (value, another) = (values.next()?, values.next());
    let is_http = |word: &str| {
        let protocol = word.split('/').next().unwrap_or_default().trim();
        ["h2c", "h2", "http"].iter().any(|name| protocol.eq_ignore_ascii_case(name))
    };
    let is_plain = another.is_none() && value.to_str().is_ok_and(|value| !value.split(',').any(is_http));
    (is_plain && lists(headers, &header::CONNECTION, "upgrade")).then(|| value.clone())
}

/// Whether a field that is a list has this word.
fn lists(headers: &HeaderMap, name: &HeaderName, word: &str) -> bool {
    let words = headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    // `trailers;q=1`
    words.filter_map(|item| item.split(';').next()).any(|item| item.trim().eq_ignore_ascii_case(word))
}

/// Removes what is meant for the next hop alone, and what Connection says is.
fn remove_hop_by_hop(headers: &mut HeaderMap) -> Result<(), Fault> {
    if headers.contains_key(header::CONNECTION) {
        let mut nominated = Vec::new();
        for value in headers.get_all(header::CONNECTION) {
            let value = value.to_str().map_err(|_| Fault::Connection)?;
            for option in value.split(',').map(str::trim).filter(|option| !option.is_empty()) {
                let is_usual = ["close", "keep-alive", "upgrade", "te"];
                if is_usual.iter().any(|usual| option.eq_ignore_ascii_case(usual)) {
                    continue;
                }
                let name = HeaderName::from_bytes(option.as_bytes()).map_err(|_| Fault::Connection)?;
                if frames(&name) || nominated.len() == MAX_CONNECTION_OPTIONS {
                    return Err(Fault::Connection);
                }
                nominated.push(name);
            }
        }
        for name in nominated {
            headers.remove(name);
        }
        headers.remove(header::CONNECTION);
    }
    for name in [KEEP_ALIVE, PROXY_CONNECTION, HTTP2_SETTINGS, header::TE, header::TRANSFER_ENCODING, header::UPGRADE] {
        headers.remove(name);
    }
    Ok(())
}

/// What says whose the message is and where it ends: not for a Connection field to take away.
fn frames(name: &HeaderName) -> bool {
    [header::HOST, header::CONTENT_LENGTH, header::TRANSFER_ENCODING].contains(name)
}

/// Brings a request's path into its one form, in which it is compared and sent; its query stays.
pub fn normalise_path(parts: &mut request::Parts) -> Result<(), Ambiguous> {
    let came = parts.uri.clone();
    set_path(parts, &path::normalise(came.path())?)
}

/// Gives a request a path of the one form; its query stays, and `*`, which is no path.
pub fn set_path(parts: &mut request::Parts, path: &NormalPath<'_>) -> Result<(), Ambiguous> {
    if path.as_str() == parts.uri.path() {
        return Ok(());
    }
    let target = match parts.uri.query() {
        Some(query) => PathAndQuery::try_from(format!("{}?{query}", path.as_str())),
        None => PathAndQuery::try_from(path.as_str()),
    };
    parts.uri = target.map(Uri::from).map_err(|_| Ambiguous::Character)?;
    Ok(())
}

/// Completes a request of the one form for an application that speaks HTTP/1.1.
pub fn for_http1(parts: &mut request::Parts, asked: &Asked) {
    parts.version = Version::HTTP_11;
    join_cookies(&mut parts.headers);
    match &asked.upgrade {
        Some(upgrade) => {
            parts.headers.insert(header::UPGRADE, upgrade.clone());
            parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        }
        None if asked.trailers => {
            parts.headers.insert(header::TE, HeaderValue::from_static("trailers"));
            parts.headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
        }
        None => {}
    }
}

/// RFC 9113 8.2.3: HTTP/2 may send a cookie in crumbs, HTTP/1.1 may not.
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(header::COOKIE).iter().nth(1).is_none() {
        return;
    }
    let crumbs: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        headers.insert(header::COOKIE, joined);
    }
}

/// Completes a request of the one form for an application that speaks HTTP/2.
pub fn for_http2(parts: &mut request::Parts, asked: &Asked) -> Result<(), Fault> {
    parts.version = Version::HTTP_2;
    let host = parts.headers.remove(header::HOST).ok_or(Fault::Host)?;
    let mut uri = UriParts::default();
    uri.scheme = Some(Scheme::HTTP);
    uri.authority = Some(Authority::try_from(host.as_bytes()).map_err(|_| Fault::Host)?);
    uri.path_and_query = parts.uri.path_and_query().cloned();
    parts.uri = Uri::from_parts(uri).map_err(|_| Fault::Target)?;
    if asked.trailers {
        parts.headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    Ok(())
}

/// Whether whoever answers closes the connection then (RFC 9112 9.3).
pub fn closes(parts: &response::Parts) -> bool {
    parts.version == Version::HTTP_10 || lists(&parts.headers, &header::CONNECTION, "close")
}

/// Puts an application's response into a form that any client can be given. With 101 the Upgrade field stays.
pub fn response(parts: &mut response::Parts) -> Result<(), Fault> {
    let headers = &mut parts.headers;
    let upgrade = match parts.status {
        StatusCode::SWITCHING_PROTOCOLS => headers.remove(header::UPGRADE),
        _ => None,
    };
    // RFC 9112 6.3: the encoding says where the body ended, and the length is wrong or was.
    if headers.contains_key(header::TRANSFER_ENCODING) {
        headers.remove(header::CONTENT_LENGTH);
    }
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    if let (Some(first), Some(_)) = (lengths.next().cloned(), lengths.next()) {
        // The parser has seen that they are equal.
        headers.insert(header::CONTENT_LENGTH, first);
    }
    remove_hop_by_hop(headers)?;
    if let Some(upgrade) = upgrade {
        headers.insert(header::UPGRADE, upgrade);
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
    parts.version = Version::HTTP_11;
    Ok(())
}

/// Removes from trailers what a recipient that merges them into the head would believe (RFC 9110 6.5.1).
pub fn trailers(headers: &mut HeaderMap) {
    for name in [
        header::CONNECTION,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        header::TE,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::CONTENT_LENGTH,
        header::HOST,
        header::TRAILER,
        header::AUTHORIZATION,
        header::COOKIE,
        header::SET_COOKIE,
        header::CONTENT_TYPE,
        header::CONTENT_ENCODING,
        header::CONTENT_RANGE,
    ] {
        headers.remove(name);
    }
    claims::remove_all(headers);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller() -> Caller {
        Caller::new("10.0.0.7".parse().unwrap(), claims::Claims::Dropped)
    }

    fn parts(version: Version, method: &str, target: &str, headers: &[(&str, &str)]) -> request::Parts {
        let mut builder = http::Request::builder().version(version).method(method).uri(target);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap().into_parts().0
    }

    fn shown(headers: &HeaderMap) -> Vec<String> {
        headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect()
    }

    #[test]
    fn targets_and_hosts() {
        use Version as V;
        // (version, target, Host fields, the Host and path that come of it)
        type Row = (V, &'static str, &'static [&'static str], Result<(&'static str, &'static str), Fault>);
        let table: &[Row] = &[
            (V::HTTP_11, "/a?b", &["web"], Ok(("web", "/a?b"))),
            (V::HTTP_11, "/a", &["web:8080"], Ok(("web:8080", "/a"))),
            (V::HTTP_11, "/a", &["[fd00::1]:80"], Ok(("[fd00::1]:80", "/a"))),
            (V::HTTP_11, "/a", &[], Err(Fault::Host)),
            (V::HTTP_11, "/a", &["web", "web"], Err(Fault::Host)),
            (V::HTTP_11, "/a", &[""], Err(Fault::Host)),
            (V::HTTP_11, "/a", &["a b"], Err(Fault::Host)),
            (V::HTTP_11, "/a", &["user@web"], Err(Fault::Host)),
            (V::HTTP_11, "/a", &["web/x"], Err(Fault::Host)),
            (V::HTTP_11, "/a", &["web, other"], Err(Fault::Host)),
            (V::HTTP_11, "/a", &["web:"], Err(Fault::Host)),
            (V::HTTP_11, "/a", &["web:99999"], Err(Fault::Host)),
            (V::HTTP_11, "/a", &["[fd00::1"], Err(Fault::Host)),
            (V::HTTP_11, "/a", &["[web]"], Err(Fault::Host)),
            (V::HTTP_10, "/a", &[], Ok(("10.96.0.1:80", "/a"))),
            (V::HTTP_10, "/a", &["web"], Ok(("web", "/a"))),
            // D12, and absolute form
            (V::HTTP_11, "http://web/a?b", &["web"], Ok(("web", "/a?b"))),
            (V::HTTP_11, "http://WEB:80/a", &["web"], Ok(("web", "/a"))),
            (V::HTTP_11, "http://web", &["web"], Ok(("web", "/"))),
            (V::HTTP_11, "http://other/a", &["web"], Err(Fault::Target)),
            (V::HTTP_11, "http://web/a", &[], Err(Fault::Host)),
            (V::HTTP_11, "ftp://web/a", &["web"], Err(Fault::Target)),
            (V::HTTP_2, "http://web/a", &[], Ok(("web", "/a"))),
            (V::HTTP_2, "http://web/a", &["web"], Ok(("web", "/a"))),
            (V::HTTP_2, "http://web/a", &["other"], Err(Fault::Target)),
            (V::HTTP_2, "http://user@web/a", &[], Err(Fault::Host)),
            (V::HTTP_2, "/a", &["web"], Ok(("web", "/a"))),
            (V::HTTP_2, "/a", &[], Err(Fault::Host)),
            (V::HTTP_11, "*", &["web"], Err(Fault::Target)),
        ];
        for (version, target, hosts, expected) in table {
            let fields: Vec<_> = hosts.iter().map(|host| ("host", *host)).collect();
            let mut parts = parts(*version, "GET", target, &fields);
            let seen = request(&mut parts, false, &caller(), "10.96.0.1:80");
            let seen = seen.map(|_| (parts.headers[header::HOST].to_str().unwrap(), parts.uri.to_string()));
            let expected = expected.map(|(host, path)| (host, path.to_string()));
            assert_eq!(seen, expected, "{version:?} {target} {hosts:?}");
            assert!(expected.is_err() || parts.headers.get_all(header::HOST).iter().count() == 1);
        }
        let mut options = parts(V::HTTP_11, "OPTIONS", "*", &[("host", "web")]);
        assert!(request(&mut options, false, &caller(), "").is_ok());
    }

    #[test]
    fn methods_and_expectations() {
        for (method, fields, has_body, expected) in [
            ("CONNECT", [("x", "y")], false, Some(Fault::Connect)),
            ("TRACE", [("x", "y")], true, Some(Fault::Trace)),
            ("TRACE", [("x", "y")], false, None),
            ("BREW", [("x", "y")], true, None),
            // C14
            ("PUT", [("expect", "100-Continue")], true, None),
            ("PUT", [("expect", "200-ok")], true, Some(Fault::Expectation)),
            ("PUT", [("expect", "100-continue, x")], true, Some(Fault::Expectation)),
        ] {
            let mut parts = parts(Version::HTTP_11, method, if method == "CONNECT" { "a:1" } else { "/" }, &fields);
            parts.headers.insert(header::HOST, HeaderValue::from_static("web"));
            let seen = request(&mut parts, has_body, &caller(), "").err();
            assert_eq!(seen, expected, "{method} {fields:?}");
            assert!(seen.is_some() || !parts.headers.contains_key(header::EXPECT));
        }
    }

    /// B9
    #[test]
    fn as_many_fields_by_http_2_as_by_http_1() {
        for (name, count, expected) in [
            ("x", MAX_HEADERS, None),
            ("x", MAX_HEADERS + 1, Some(Fault::TooMany)),
            // Browsers send each cookie by itself.
            ("cookie", MAX_HEADERS + 1, None),
        ] {
            let mut many = parts(Version::HTTP_2, "GET", "http://web/a", &vec![(name, "y=z"); count]);
            assert_eq!(request(&mut many, false, &caller(), "").err(), expected, "{count} of {name}");
        }
    }

    /// C9
    #[test]
    fn what_is_for_one_hop_stays_there() {
        let mut all = parts(
            Version::HTTP_11,
            "GET",
            "/",
            &[
                ("host", "web"),
                ("connection", "keep-alive, X-Secret"),
                ("connection", "x-other,,"),
                ("keep-alive", "timeout=5"),
                ("proxy-connection", "keep-alive"),
                ("te", "trailers;q=1, gzip"),
                ("transfer-encoding", "chunked"),
                ("upgrade", "websocket"),
                ("x-secret", "1"),
                ("x-other", "1"),
                ("x-forwarded-client-cert", "URI=spiffe://forged"),
                ("x-kept", "1"),
            ],
        );
        let asked = request(&mut all, true, &caller(), "").unwrap();
        assert_eq!(
            shown(&all.headers),
            ["host: web", "x-kept: 1", "x-forwarded-for: 10.0.0.7", "x-forwarded-proto: http"]
        );
        assert_eq!(asked, Asked { upgrade: None, trailers: true });
        for nominated in ["host", "Content-Length", "transfer-encoding", "a b", "\u{e9}"] {
            let mut one = parts(Version::HTTP_11, "GET", "/", &[("host", "web")]);
            one.headers.insert(header::CONNECTION, HeaderValue::from_bytes(nominated.as_bytes()).unwrap());
            assert_eq!(request(&mut one, false, &caller(), ""), Err(Fault::Connection), "{nominated}");
        }
        let many = (0..=MAX_CONNECTION_OPTIONS).map(|n| format!("x{n}")).collect::<Vec<_>>().join(",");
        let mut one = parts(Version::HTTP_11, "GET", "/", &[("host", "web"), ("connection", &many)]);
        assert_eq!(request(&mut one, false, &caller(), ""), Err(Fault::Connection));
    }

    /// C13, and other upgrades
    #[test]
    fn upgrades() {
        for (fields, expected) in [
            (vec![("connection", "Upgrade"), ("upgrade", "websocket")], Some("websocket")),
            (vec![("connection", "keep-alive, upgrade"), ("upgrade", "foo/2")], Some("foo/2")),
            (vec![("upgrade", "websocket")], None),
            (vec![("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c"), ("http2-settings", "AA")], None),
            (vec![("connection", "Upgrade"), ("upgrade", "websocket, H2C")], None),
            (vec![("connection", "Upgrade"), ("upgrade", "HTTP/2.0")], None),
            (vec![("connection", "Upgrade"), ("upgrade", "websocket"), ("upgrade", "h2c")], None),
        ] {
            let mut parts = parts(Version::HTTP_11, "GET", "/", &fields);
            parts.headers.insert(header::HOST, HeaderValue::from_static("web"));
            let asked = request(&mut parts, false, &caller(), "").unwrap();
            assert_eq!(asked.upgrade.as_ref().map(|value| value.to_str().unwrap()), expected, "{fields:?}");
            for gone in ["connection", "upgrade", "http2-settings"] {
                assert!(!parts.headers.contains_key(gone), "{gone} of {fields:?}");
            }
            for_http1(&mut parts, &asked);
            assert_eq!(parts.headers.contains_key(header::UPGRADE), expected.is_some());
        }
    }

    #[test]
    fn paths_in_their_one_form() {
        for (target, expected) in [
            ("/a/b?c=%2e", Ok("/a/b?c=%2e")),
            ("/a//b/./c/../d", Ok("/a/b/d")),
            ("/%61?x", Ok("/a?x")),
            ("/%c3%bc", Ok("/%C3%BC")),
            ("/a/..;/b", Err(Ambiguous::HiddenDots)),
            ("/../a", Err(Ambiguous::AboveRoot)),
            ("/%252fa", Err(Ambiguous::EncodedTwice)),
        ] {
            let mut parts = parts(Version::HTTP_11, "GET", target, &[]);
            let seen = normalise_path(&mut parts).map(|()| parts.uri.to_string());
            assert_eq!(seen, expected.map(str::to_string), "{target}");
        }
        let mut options = parts(Version::HTTP_11, "OPTIONS", "*", &[]);
        normalise_path(&mut options).unwrap();
        assert_eq!(options.uri.to_string(), "*");
    }

    #[test]
    fn between_the_protocols() {
        let mut down = parts(
            Version::HTTP_2,
            "POST",
            "http://web:81/a?b",
            &[("cookie", "a=1"), ("cookie", "b=2"), ("te", "trailers")],
        );
        let asked = request(&mut down, true, &caller(), "").unwrap();
        for_http1(&mut down, &asked);
        assert_eq!((down.version, down.uri.to_string().as_str()), (Version::HTTP_11, "/a?b"));
        down.headers.remove("x-forwarded-for");
        down.headers.remove("x-forwarded-proto");
        let mut seen = shown(&down.headers);
        seen.sort();
        assert_eq!(seen, ["connection: te", "cookie: a=1; b=2", "host: web:81", "te: trailers"]);

        let mut up = parts(Version::HTTP_11, "POST", "/a?b", &[("host", "web:81"), ("connection", "close")]);
        let asked = request(&mut up, true, &caller(), "").unwrap();
        for_http2(&mut up, &asked).unwrap();
        assert_eq!((up.version, up.uri.to_string().as_str()), (Version::HTTP_2, "http://web:81/a?b"));
        let mut seen = shown(&up.headers);
        seen.sort();
        assert_eq!(seen, ["x-forwarded-for: 10.0.0.7", "x-forwarded-proto: http"]);
    }

    #[test]
    fn responses() {
        let response = |status: u16, fields: &[(&str, &str)]| {
            let mut builder = http::Response::builder().status(status);
            for (name, value) in fields {
                builder = builder.header(*name, *value);
            }
            let mut parts = builder.body(()).unwrap().into_parts().0;
            super::response(&mut parts).map(|()| shown(&parts.headers))
        };
        for (status, fields, expected) in [
            (200, vec![("connection", "close, x-a"), ("x-a", "1"), ("keep-alive", "x"), ("x-b", "1")], vec!["x-b: 1"]),
            (200, vec![("content-length", "3"), ("transfer-encoding", "chunked")], vec![]),
            (200, vec![("content-length", "3"), ("content-length", "3")], vec!["content-length: 3"]),
            (200, vec![("upgrade", "h2c"), ("connection", "upgrade")], vec![]),
            (101, vec![("upgrade", "x"), ("connection", "upgrade")], vec!["upgrade: x", "connection: upgrade"]),
        ] {
            assert_eq!(response(status, &fields).unwrap(), expected, "{fields:?}");
        }
        assert_eq!(response(200, &[("connection", "content-length")]), Err(Fault::Connection));
    }
}
