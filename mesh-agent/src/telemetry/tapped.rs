//! Headers of a request, for whoever listens with `headers=redacted`: every name, and the values of a few that are known to
//! be harmless. What is not told is never kept: tokens, cookies and whatever an application calls its own stay where they are.

use http::HeaderMap;
use serde_json::{Value, json};

/// Headers of one request that are told; more are counted.
pub(super) const MAX_HEADERS: usize = 64;
/// Bytes of one request's names and values together; what does not fit is counted.
pub(super) const MAX_HEADERS_BYTES: usize = 2048;
/// Bytes of one value; the rest is cut.
pub(super) const MAX_VALUE_BYTES: usize = 128;

/// What a value is told as that is not told as it is, and where one was cut.
const REDACTED: &str = "…";

/// Headers whose values say how a request is carried and read, and nothing of who asks or what for. In the order of letters.
const HARMLESS: [&str; 24] = [
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "cache-control",
    "connection",
    "content-encoding",
    "content-language",
    "content-length",
    "content-type",
    "date",
    "expect",
    "grpc-accept-encoding",
    "grpc-encoding",
    "grpc-timeout",
    "host",
    "max-forwards",
    "pragma",
    "range",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
];

/// What is told of a request's headers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TappedHeaders {
    /// In the order in which they came; a value that is not told is [`REDACTED`].
    told: Vec<(String, String)>,
    left_out: usize,
}

impl TappedHeaders {
    /// Of a head. Copies: a queue holds no buffer that a connection reads into.
    pub fn of(headers: &HeaderMap) -> Self {
        let mut tapped = Self::default();
        let mut room = MAX_HEADERS_BYTES;
        for (name, value) in headers {
            let is_harmless = HARMLESS.binary_search(&name.as_str()).is_ok();
            let value = if is_harmless { start_of(value.as_bytes()) } else { REDACTED.to_string() };
            match room.checked_sub(name.as_str().len() + value.len()) {
                Some(left) if tapped.told.len() < MAX_HEADERS => {
                    room = left;
                    tapped.told.push((name.as_str().to_string(), value));
                }
                _ => tapped.left_out += 1,
            }
        }
        tapped
    }

    /// As JSON: an interface.
    pub(super) fn to_json(&self) -> Value {
        self.told.iter().map(|(name, value)| json!({"name": name, "value": value})).collect()
    }

    /// How many are not told.
    pub(super) fn left_out(&self) -> usize {
        self.left_out
    }
}

fn start_of(value: &[u8]) -> String {
    match value.get(..MAX_VALUE_BYTES) {
        Some(start) if value.len() > MAX_VALUE_BYTES => format!("{}{REDACTED}", String::from_utf8_lossy(start)),
        _ => String::from_utf8_lossy(value).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn tapped(headers: &[(&str, &[u8])]) -> TappedHeaders {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_bytes(value).unwrap());
        }
        TappedHeaders::of(&map)
    }

    #[test]
    fn names_are_told_and_secrets_are_not() {
        assert!(HARMLESS.is_sorted(), "it is searched");
        for secret in [
            "authorization",
            "cookie",
            "proxy-authorization",
            "set-cookie",
            "x-api-key",
            "x-forwarded-for",
            "referer",
            "x-whatever-nobody-knows",
        ] {
            let told = tapped(&[(secret, b"hunter2"), ("accept", b"*/*")]);
            assert_eq!(told.told, [(secret.into(), REDACTED.into()), ("accept".into(), "*/*".into())], "{secret}");
        }
        let told = tapped(&[("accept", b"text/html"), ("accept", b"*/*"), ("user-agent", b"caf\xe9")]);
        assert_eq!(
            told.to_json(),
            json!([
                {"name": "accept", "value": "text/html"},
                {"name": "accept", "value": "*/*"},
                {"name": "user-agent", "value": "caf\u{fffd}"},
            ])
        );
    }

    #[test]
    fn no_request_says_more_than_there_is_room_for() {
        let long = vec![b'a'; 4096];
        let told = tapped(&[("user-agent", &long)]);
        assert_eq!(told.told[0].1.len(), MAX_VALUE_BYTES + REDACTED.len());
        let many: Vec<String> = (0..100).map(|number| format!("x-{number}")).collect();
        let many: Vec<(&str, &[u8])> = many.iter().map(|name| (name.as_str(), b"v".as_slice())).collect();
        let told = tapped(&many);
        assert_eq!((told.told.len(), told.left_out()), (MAX_HEADERS, 100 - MAX_HEADERS));
        // One that is too long does not keep others out.
        let name = "x".repeat(MAX_HEADERS_BYTES);
        let told = tapped(&[(&name, b"v"), ("accept", b"*/*")]);
        assert_eq!((told.told.len(), told.left_out()), (1, 1));
    }
}
