//! The head of a CONNECT and of its answer, as fields: read by the rules of RFC 9113 (sections 8.1 to 8.5), and written.

use std::net::SocketAddr;

use h2::Reason;
use http::{HeaderName, HeaderValue};

use super::hpack::{self, Known};
use super::limits::{HEADER_FLOOD_BYTES, MAX_BAGGAGE_BYTES, MAX_HEADER_LIST_BYTES};
use super::words::{self, ConnectRequest, Forwarded, TraceParent};

const LIST: usize = MAX_HEADER_LIST_BYTES as usize;
const FLOOD: usize = HEADER_FLOOD_BYTES as usize;

/// What a peer asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wish {
    pub authority: SocketAddr,
    pub forwarded: Option<Forwarded>,
    pub baggage: Option<String>,
    pub traceparent: Option<TraceParent>,
}

/// What a head comes to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// CONNECT to an address.
    Connect(Box<Wish>),
    /// A request that is answered no.
    Refused(http::StatusCode),
}

/// What a head says, as its fields come.
#[derive(Default)]
pub(super) struct Fields {
    method: Only,
    authority: Only,
    /// These two a CONNECT has not.
    scheme: Only,
    path: Only,
    status: Only,
    is_extended: bool,
    forwarded: Only,
    baggage: Only,
    traceparent: Only,
    has_regular: bool,
    is_malformed: bool,
    size: usize,
}

/// A field that is there once. Twice is ambiguous, and ambiguous is absent.
#[derive(Default)]
enum Only {
    #[default]
    None,
    One(String),
    More,
}

impl Only {
    fn put(&mut self, value: &[u8]) {
        *self = match (&self, str::from_utf8(value)) {
            (Self::None, Ok(value)) => Self::One(value.to_string()),
            _ => Self::More,
        };
    }

    fn get(&self) -> Option<&str> {
        match self {
            Self::One(value) => Some(value),
            Self::None | Self::More => None,
        }
    }

    fn is_absent(&self) -> bool {
        matches!(self, Self::None)
    }
}

impl Fields {
    /// Takes the next field.
    pub(super) fn take(&mut self, name: &[u8], value: &[u8]) {
        self.size = self.size.saturating_add(hpack::size(name, value));
        if self.size > LIST {
            return;
        }
        match name {
            [b':', ..] => self.pseudo(name, value),
            name => self.regular(name, value),
        }
    }

    fn pseudo(&mut self, name: &[u8], value: &[u8]) {
        let field = match name {
            b":method" => &mut self.method,
            b":authority" => &mut self.authority,
            b":scheme" => &mut self.scheme,
            b":path" => &mut self.path,
            b":status" => &mut self.status,
            b":protocol" => {
                self.is_extended = true;
                return self.is_malformed |= self.has_regular;
            }
            _ => return self.is_malformed = true,
        };
        self.is_malformed |= self.has_regular || !field.is_absent() || HeaderValue::from_bytes(value).is_err();
        field.put(value);
    }

    fn regular(&mut self, name: &[u8], value: &[u8]) {
        self.has_regular = true;
        match name {
            b"forwarded" => self.forwarded.put(value),
            b"baggage" => self.baggage.put(value),
            b"traceparent" => self.traceparent.put(value),
            // Of a hop of HTTP/1.1 (section 8.2.2), and of a body, which a CONNECT has not.
            b"connection" | b"keep-alive" | b"proxy-connection" | b"transfer-encoding" | b"upgrade"
            | b"content-length" => self.is_malformed = true,
            b"te" => self.is_malformed |= value != b"trailers",
            name => self.is_malformed |= HeaderName::from_lowercase(name).is_err(),
        }
        self.is_malformed |= HeaderValue::from_bytes(value).is_err();
    }

    /// Whether a peer that says this is up to no good.
    pub(super) fn is_flood(&self) -> bool {
        self.size > FLOOD
    }

    /// As a request; the reason for which the stream is reset, if it is none.
    pub(super) fn request(&self) -> Result<Asked, Reason> {
        use http::StatusCode;
        if self.size > LIST {
            return Ok(Asked::Refused(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE));
        }
        let is_connect = self.method.get() == Some("CONNECT");
        let has_what_it_needs = if is_connect && !self.is_extended {
            self.scheme.is_absent() && self.path.is_absent()
        } else {
            self.scheme.get().is_some() && self.path.get().is_some_and(|path| !path.is_empty())
        };
        if self.is_malformed || self.method.is_absent() || !self.status.is_absent() || !has_what_it_needs {
            return Err(Reason::PROTOCOL_ERROR);
        }
        let authority = self.authority.get().filter(|_| is_connect && !self.is_extended);
        Ok(match authority.and_then(words::parse_authority) {
            Some(authority) => Asked::Connect(Box::new(Wish {
                authority,
                forwarded: self.forwarded.get().and_then(Forwarded::parse),
                baggage: self.baggage(),
                traceparent: self.traceparent.get().and_then(TraceParent::parse),
            })),
            None => Asked::Refused(StatusCode::BAD_REQUEST),
        })
    }

    /// Whether they may stand at a message's end, where nothing is said of the message itself.
    pub(super) fn are_trailers(&self) -> bool {
        let pseudo = [&self.method, &self.authority, &self.scheme, &self.path, &self.status];
        !self.is_malformed && !self.is_extended && pseudo.into_iter().all(Only::is_absent)
    }

    /// As an answer; the reason for which the stream is reset, if it is none.
    pub(super) fn answer(&self) -> Result<Answer, Reason> {
        let status = self.status.get().filter(|_| !self.is_malformed && self.method.is_absent());
        match status.and_then(|status| status.parse().ok()) {
            Some(status) => Ok(Answer { status, baggage: self.baggage() }),
            None => Err(Reason::PROTOCOL_ERROR),
        }
    }

    fn baggage(&self) -> Option<String> {
        self.baggage.get().filter(|text| text.len() as u64 <= MAX_BAGGAGE_BYTES).map(str::to_string)
    }
}

/// How a CONNECT was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub status: http::StatusCode,
    pub baggage: Option<String>,
}

/// A request's block. A word that HTTP cannot carry is left out.
pub(super) fn request(wish: &ConnectRequest) -> Vec<u8> {
    let mut block = Vec::with_capacity(256);
    hpack::put_known(&mut block, Known::Method, b"CONNECT");
    hpack::put_known(&mut block, Known::Authority, wish.authority.to_string().as_bytes());
    let forwarded = Forwarded { client: wish.forwarded.socket(), host: wish.host.clone() };
    put(&mut block, words::FORWARDED, &forwarded.to_string());
    put(&mut block, words::BAGGAGE, &wish.baggage);
    put(&mut block, words::TRACEPARENT, &wish.traceparent);
    block
}

/// An answer's block.
pub(super) fn answer(status: http::StatusCode, baggage: &str) -> Vec<u8> {
    let mut block = Vec::with_capacity(8);
    hpack::put_status(&mut block, status.as_u16());
    put(&mut block, words::BAGGAGE, baggage);
    block
}

fn put(block: &mut Vec<u8>, name: &str, value: &str) {
    let fits = (1..=MAX_BAGGAGE_BYTES).contains(&(value.len() as u64));
    if fits && HeaderValue::from_str(value).is_ok() {
        hpack::put(block, name, value.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::hpack::Decoder;
    use super::*;
    use crate::addr::ClientAddr;

    fn read(block: &[u8]) -> Fields {
        let mut fields = Fields::default();
        Decoder::new().decode(block, |name, value| fields.take(name, value)).unwrap();
        fields
    }

    fn fields(said: &[(&str, &str)]) -> Result<Asked, Reason> {
        let mut block = Vec::new();
        said.iter().for_each(|(name, value)| hpack::put(&mut block, name, value.as_bytes()));
        read(&block).request()
    }

    #[test]
    fn what_a_head_comes_to() {
        const METHOD: (&str, &str) = (":method", "CONNECT");
        const TO: (&str, &str) = (":authority", "10.0.0.1:80");
        const GET: (&str, &str) = (":method", "GET");
        const SCHEME: (&str, &str) = (":scheme", "http");
        const PATH: (&str, &str) = (":path", "/");
        const MALFORMED: Result<Asked, Reason> = Err(Reason::PROTOCOL_ERROR);
        let connect = Ok(Asked::Connect(Box::new(Wish {
            authority: "10.0.0.1:80".parse().unwrap(),
            forwarded: None,
            baggage: None,
            traceparent: None,
        })));
        let bad = || Ok(Asked::Refused(http::StatusCode::BAD_REQUEST));
        for (said, comes_to) in [
            (&[METHOD, TO][..], connect),
            (&[METHOD], bad()),
            (&[METHOD, (":authority", "web:80")], bad()),
            (&[GET, TO, SCHEME, PATH], bad()),
            (&[METHOD, TO, SCHEME, PATH, (":protocol", "websocket")], bad()),
            (&[GET, TO], MALFORMED),
            (&[GET, TO, SCHEME], MALFORMED),
            (&[GET, TO, PATH], MALFORMED),
            (&[GET, TO, SCHEME, (":path", "")], MALFORMED),
            (&[GET, TO, SCHEME, PATH, PATH], MALFORMED),
            (&[GET, TO, SCHEME, SCHEME, PATH], MALFORMED),
            (&[METHOD, TO, SCHEME, (":protocol", "websocket")], MALFORMED),
            (&[TO], MALFORMED),
            (&[METHOD, METHOD, TO], MALFORMED),
            (&[METHOD, TO, TO], MALFORMED),
            (&[METHOD, TO, SCHEME], MALFORMED),
            (&[METHOD, TO, (":status", "200")], MALFORMED),
            (&[METHOD, TO, (":else", "x")], MALFORMED),
            (&[METHOD, ("x", "y"), TO], MALFORMED),
            (&[METHOD, TO, ("X", "y")], MALFORMED),
            (&[METHOD, TO, ("x y", "z")], MALFORMED),
            (&[METHOD, TO, ("x", "y\r\nz")], MALFORMED),
            (&[METHOD, TO, ("baggage", "y\0")], MALFORMED),
            (&[METHOD, TO, ("connection", "close")], MALFORMED),
            (&[METHOD, TO, ("content-length", "1")], MALFORMED),
            (&[METHOD, TO, ("te", "gzip")], MALFORMED),
        ] {
            assert_eq!(fields(said), comes_to, "{said:?}");
        }
        let long = "y".repeat(LIST);
        let too_large = Ok(Asked::Refused(http::StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE));
        assert_eq!(fields(&[METHOD, TO, ("x", &long)]), too_large);
    }

    #[test]
    fn what_may_end_a_message() {
        for (said, may) in [
            (&[][..], true),
            (&[("x", "y")], true),
            (&[(":method", "POST")], false),
            (&[(":status", "200")], false),
            (&[(":protocol", "x")], false),
            (&[("X", "y")], false),
        ] {
            let mut block = Vec::new();
            said.iter().for_each(|(name, value)| hpack::put(&mut block, name, value.as_bytes()));
            assert_eq!(read(&block).are_trailers(), may, "{said:?}");
        }
    }

    #[test]
    fn a_field_that_comes_twice_is_absent() {
        let mut block = request(&ConnectRequest {
            authority: "10.0.0.1:80".parse().unwrap(),
            forwarded: ClientAddr::new("10.0.0.2:2".parse().unwrap()),
            host: None,
            baggage: String::new(),
            traceparent: String::new(),
        });
        put(&mut block, words::FORWARDED, "for=\"10.0.0.1:1\"");
        let Ok(Asked::Connect(wish)) = read(&block).request() else { panic!("it is a CONNECT") };
        assert_eq!(wish.forwarded, None);
    }

    #[test]
    fn answers_read_as_written() {
        for (status, baggage) in [(200, "k8s.namespace.name=shop"), (200, ""), (400, ""), (401, ""), (503, "")] {
            let status = http::StatusCode::from_u16(status).unwrap();
            let answer = read(&answer(status, baggage)).answer().unwrap();
            assert_eq!((answer.status, answer.baggage.as_deref().unwrap_or_default()), (status, baggage));
        }
        let mut block = Vec::new();
        hpack::put(&mut block, ":status", b"2x0");
        assert!(read(&block).answer().is_err() && read(&[]).answer().is_err());
    }

    fn address() -> impl Strategy<Value = SocketAddr> {
        (any::<std::net::IpAddr>(), 1u16..).prop_map(|(ip, port)| SocketAddr::new(ip.to_canonical(), port))
    }

    proptest! {
        #[test]
        fn requests_read_as_written(
            authority in address(),
            client in address(),
            host in proptest::option::of("[a-z0-9.-]{1,40}"),
            baggage in "([a-z.]{1,9}=[a-z]{1,300})?",
            trace in any::<([u8; 16], [u8; 8], u8)>(),
        ) {
            let traceparent = TraceParent { trace: trace.0, parent: trace.1, flags: trace.2 };
            let block = request(&ConnectRequest {
                authority,
                forwarded: ClientAddr::new(client),
                host: host.clone(),
                baggage: baggage.clone(),
                traceparent: traceparent.to_string(),
            });
            let traceparent = Some(traceparent).filter(|trace| trace.trace != [0; 16] && trace.parent != [0; 8]);
            let forwarded = Some(Forwarded { client, host });
            let baggage = Some(baggage).filter(|text| !text.is_empty());
            let wish = Wish { authority, forwarded, baggage, traceparent };
            prop_assert_eq!(read(&block).request(), Ok(Asked::Connect(Box::new(wish))));
        }
    }
}
