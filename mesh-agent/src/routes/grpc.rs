//! What is particular to gRPC: calls as paths (`/package.Service/Method`), and answers that a gRPC client understands.

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, response};

use super::filters;
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

/// Status codes of gRPC that the agent itself answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// 2
    Unknown,
    /// 4
    DeadlineExceeded,
    /// 7
    PermissionDenied,
    /// 8
    ResourceExhausted,
    /// 12
    Unimplemented,
    /// 13
    Internal,
    /// 14
    Unavailable,
    /// 16
    Unauthenticated,
}

impl Code {
    /// Its number.
    pub fn number(self) -> u8 {
        match self {
            Self::Unknown => 2,
            Self::DeadlineExceeded => 4,
            Self::PermissionDenied => 7,
            Self::ResourceExhausted => 8,
            Self::Unimplemented => 12,
            Self::Internal => 13,
            Self::Unavailable => 14,
            Self::Unauthenticated => 16,
        }
    }

    /// What the agent's answer with an HTTP status is called in gRPC: as a client would read that status from a proxy
    /// (gRPC's http-grpc-status-mapping.md), except where the agent knows more than a status says.
    pub fn of(status: StatusCode) -> Self {
        match status {
            StatusCode::BAD_REQUEST | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => Self::Internal,
            StatusCode::UNAUTHORIZED => Self::Unauthenticated,
            StatusCode::FORBIDDEN => Self::PermissionDenied,
            StatusCode::NOT_FOUND => Self::Unimplemented,
            // Of rate limits, and of bodies that are too large.
            StatusCode::TOO_MANY_REQUESTS | StatusCode::PAYLOAD_TOO_LARGE => Self::ResourceExhausted,
            // "When a GRPCBackendRef is invalid, UNAVAILABLE statuses MUST be returned": that is the agent's only 500.
            StatusCode::INTERNAL_SERVER_ERROR | StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE => {
                Self::Unavailable
            }
            // The agent's own timeout: the call may have been served, so a client that retries what is UNAVAILABLE must
            // not take it for that.
            StatusCode::GATEWAY_TIMEOUT => Self::DeadlineExceeded,
            _ => Self::Unknown,
        }
    }
}

/// Whether a request is a gRPC call: `application/grpc`, maybe with `+proto` or parameters. gRPC-Web is another protocol,
/// whose clients read HTTP statuses.
pub fn is_call(headers: &HeaderMap) -> bool {
    let value = headers.get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    let (start, rest) = value.split_at_checked(b"application/grpc".len()).unwrap_or((value, b""));
    start.eq_ignore_ascii_case(b"application/grpc") && matches!(rest.first(), None | Some(b'+' | b';' | b' '))
}

/// An answer that is an error and nothing else ("Trailers-Only"): HTTP 200, the status in the head, no body.
pub fn answer(code: Code, message: &str) -> response::Parts {
    let mut head = filters::head(StatusCode::OK);
    head.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    head.headers.insert(HeaderName::from_static("grpc-status"), HeaderValue::from(u16::from(code.number())));
    if let Ok(message) = HeaderValue::try_from(percent_encoded(message)) {
        head.headers.insert(HeaderName::from_static("grpc-message"), message);
    }
    head
}

/// "Percent-encoded": printable ASCII but `%` as it is, all other bytes of UTF-8 as `%XX`.
fn percent_encoded(message: &str) -> String {
    let mut encoded = String::with_capacity(message.len());
    for byte in message.bytes() {
        match byte {
            b' '..=b'$' | b'&'..=b'~' => encoded.push(byte.into()),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses() {
        for (status, number) in [
            (400, 13),
            (401, 16),
            (403, 7),
            (404, 12),
            (413, 8),
            (429, 8),
            (431, 13),
            (500, 14),
            (502, 14),
            (503, 14),
            (504, 4),
            (418, 2),
            (302, 2),
        ] {
            assert_eq!(Code::of(StatusCode::from_u16(status).unwrap()).number(), number, "{status}");
        }
    }

    #[test]
    fn calls_are_told_by_their_content_type() {
        for (value, wanted) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("Application/gRPC;charset=utf-8", true),
            ("application/grpc-web", false),
            ("application/grpc-web+proto", false),
            ("application/grp", false),
            ("application/json", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(CONTENT_TYPE, value.parse().unwrap())]);
            assert_eq!(is_call(&headers), wanted, "{value}");
        }
        assert!(!is_call(&HeaderMap::new()));
    }

    #[test]
    fn an_error_is_a_head_alone() {
        let head = answer(Code::of(StatusCode::NOT_FOUND), "no route: 100 % säker\n");
        assert_eq!(head.status, StatusCode::OK);
        assert_eq!(head.headers["content-type"], "application/grpc");
        assert_eq!(head.headers["grpc-status"], "12");
        assert_eq!(head.headers["grpc-message"], "no route: 100 %25 s%C3%A4ker%0A");
    }

    #[test]
    fn patterns_of_names_stay_names() {
        assert!(call(Some(Name::Regex("a)|(?:b")), None).is_err());
        assert!(call(Some(Name::Regex("(")), Some(Name::Exact("x"))).is_err());
        let Ok(PathMatch::Call(made)) = call(Some(Name::Regex("a|b")), Some(Name::Exact("Get"))) else { panic!() };
        let PathMatch::Regex(pattern) = *made.path else { panic!() };
        for (path, wanted) in
            [("/a/Get", true), ("/b/Get", true), ("/b/GetX", false), ("/a", false), ("/ab/Get", false)]
        {
            assert_eq!(pattern.is_match(path), wanted, "{path}");
        }
    }
}
