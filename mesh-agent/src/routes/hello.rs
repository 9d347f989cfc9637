//! The server name in the first message of a TLS client (RFC 8446, section 4.1.2; RFC 6066, section 3), read in passing:
//! the connection goes on as it is, and whoever ends the TLS judges the rest of the message.
//!
//! Strict where two readers could see different names, so that nobody is led elsewhere than the server believes: one
//! message, one name, all lengths exact.

use std::borrow::Cow;
use std::net::IpAddr;

use super::limits::{CLIENT_HELLO_BYTES, SERVER_NAME_BYTES};

const HANDSHAKE: u8 = 22;
const MAJOR_VERSION: u8 = 3;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;
/// Of a handshake message: type and length.
const HEADER: usize = 4;
/// RFC 8446, section 5.1, of a record.
const LARGEST_RECORD: usize = 1 << 14;

/// What the first bytes of a connection are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientHello {
    /// The beginning of one: ask again with more bytes. Never said of twice `CLIENT_HELLO_BYTES` or more.
    Incomplete,
    /// One with this server name, in lower case.
    Named(String),
    /// One without, or with an address, which is none (RFC 6066).
    Nameless,
    /// Not TLS, or not right, or too long.
    Refused,
}

impl ClientHello {
    /// Reads what has come so far, from the first byte of the connection on.
    pub fn read(bytes: &[u8]) -> Self {
        match message(bytes) {
            // A message in crumbs of records takes more bytes than its own.
            Message::Incomplete if bytes.len() >= CLIENT_HELLO_BYTES.saturating_mul(2) => Self::Refused,
            Message::Incomplete => Self::Incomplete,
            Message::Refused => Self::Refused,
            Message::Whole(body) => match server_name(&body) {
                None => Self::Refused,
                Some(None) => Self::Nameless,
                Some(Some(name)) => named(name),
            },
        }
    }
}

enum Message<'a> {
    Incomplete,
    Refused,
    /// Without its header.
    Whole(Cow<'a, [u8]>),
}

/// Puts the message together from its records.
fn message(bytes: &[u8]) -> Message<'_> {
    let mut rest = bytes;
    let mut message: Cow<'_, [u8]> = Cow::Borrowed(&[]);
    loop {
        let Some(fragment) = record(&mut rest) else { return Message::Refused };
        if message.is_empty() {
            message = Cow::Borrowed(fragment.bytes);
        } else {
            message.to_mut().extend_from_slice(fragment.bytes);
        }
        if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return Message::Refused;
        }
        if let Some(&[_, high, middle, low]) = message.first_chunk::<HEADER>() {
            let length = u32::from_be_bytes([0, high, middle, low]) as usize;
            if length > CLIENT_HELLO_BYTES {
                return Message::Refused;
            }
            let whole = HEADER.saturating_add(length);
            if message.len() >= whole {
                return Message::Whole(body(message, whole));
            }
        }
        if !fragment.is_whole {
            return Message::Incomplete;
        }
    }
}

fn body(message: Cow<'_, [u8]>, end: usize) -> Cow<'_, [u8]> {
    match message {
        Cow::Borrowed(bytes) => Cow::Borrowed(bytes.get(HEADER..end).unwrap_or_default()),
        Cow::Owned(bytes) => Cow::Owned(bytes.get(HEADER..end).unwrap_or_default().to_vec()),
    }
}

/// What there is of a record's content.
struct Fragment<'a> {
    bytes: &'a [u8],
    is_whole: bool,
}

/// The next record; None: it is none that may stand here.
fn record<'a>(rest: &mut &'a [u8]) -> Option<Fragment<'a>> {
    let nothing = Some(Fragment { bytes: &[], is_whole: false });
    match **rest {
        [] => return nothing,
        [kind, ..] if kind != HANDSHAKE => return None,
        [_, version, ..] if version != MAJOR_VERSION => return None,
        _ => {}
    }
    let Some((&[_, _, _, high, low], content)) = rest.split_first_chunk() else { return nothing };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length == 0 || length > LARGEST_RECORD {
        return None;
    }
    let (bytes, after) = content.split_at_checked(length).unwrap_or((content, &[]));
    *rest = after;
    Some(Fragment { bytes, is_whole: bytes.len() == length })
}

/// The name in a ClientHello, if there is one. None: the message is not right.
fn server_name(body: &[u8]) -> Option<Option<&[u8]>> {
    let mut reader = Reader(body);
    let _version = reader.take(2)?;
    let _random = reader.take(32)?;
    let session = reader.vector8()?;
    let suites = reader.vector16()?;
    let compressions = reader.vector8()?;
    if session.len() > 32 || suites.is_empty() || suites.len() % 2 != 0 || compressions.is_empty() {
        return None;
    }
    if reader.is_empty() {
        return Some(None);
    }
    let mut extensions = Reader(reader.vector16()?);
    let mut found = None;
    while !extensions.is_empty() {
        let kind = extensions.u16()?;
        let content = extensions.vector16()?;
        if kind == SERVER_NAME && found.replace(only_name(content)?).is_some() {
            return None;
        }
    }
    reader.is_empty().then_some(found)
}

/// The one name of a list of names.
fn only_name(content: &[u8]) -> Option<&[u8]> {
    let mut content = Reader(content);
    let mut names = Reader(content.vector16()?);
    let kind = names.take(1)?;
    let name = names.vector16()?;
    (*kind == [HOST_NAME] && names.is_empty() && content.is_empty()).then_some(name)
}

fn named(name: &[u8]) -> ClientHello {
    let Ok(name) = std::str::from_utf8(name) else { return ClientHello::Refused };
    if name.parse::<IpAddr>().is_ok() {
        return ClientHello::Nameless;
    }
    if is_host_name(name) { ClientHello::Named(name.to_ascii_lowercase()) } else { ClientHello::Refused }
}

/// Labels of letters, digits, `-` and `_` (which DNS does not forbid), none of them empty.
fn is_host_name(name: &str) -> bool {
    let is_label = |label: &str| {
        !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    name.len() <= SERVER_NAME_BYTES && name.split('.').all(is_label)
}

/// Takes bytes from the front; None: there are not as many.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u16(&mut self) -> Option<u16> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u16::from_be_bytes(*number))
    }

    fn vector8(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.0.split_first()?;
        self.0 = rest;
        self.take(usize::from(*length))
    }

    fn vector16(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn vector16(content: &[u8]) -> Vec<u8> {
        [&u16::try_from(content.len()).unwrap().to_be_bytes(), content].concat()
    }

    fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &vector16(content)].concat()
    }

    fn name(name: &[u8]) -> Vec<u8> {
        extension(SERVER_NAME, &vector16(&[&[HOST_NAME], &vector16(name)[..]].concat()))
    }

    /// A whole message.
    fn hello(extensions: Option<&[u8]>) -> Vec<u8> {
        let mut body = [&[3, 3][..], &[7; 32], &[0], &vector16(&[0x13, 0x01]), &[1, 0]].concat();
        body.extend(extensions.map(vector16).unwrap_or_default());
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        [&[CLIENT_HELLO], &length[1..], &body].concat()
    }

    /// In records of at most this size.
    fn records(message: &[u8], size: usize) -> Vec<u8> {
        message.chunks(size).flat_map(|chunk| [&[HANDSHAKE, 3, 1][..], &vector16(chunk)].concat()).collect()
    }

    fn read(extensions: &[u8]) -> ClientHello {
        ClientHello::read(&records(&hello(Some(extensions)), LARGEST_RECORD))
    }

    fn is(wanted: &str) -> ClientHello {
        ClientHello::Named(wanted.into())
    }

    #[test]
    fn names() {
        for (text, wanted) in [
            ("example.com", is("example.com")),
            ("Example.COM", is("example.com")),
            ("web", is("web")),
            ("_x.a-b.example", is("_x.a-b.example")),
            ("10.0.0.1", ClientHello::Nameless),
            ("fd00::1", ClientHello::Nameless),
            ("", ClientHello::Refused),
            (".", ClientHello::Refused),
            ("example.com.", ClientHello::Refused),
            (".example.com", ClientHello::Refused),
            ("a..b", ClientHello::Refused),
            ("*.example.com", ClientHello::Refused),
            ("a b", ClientHello::Refused),
            ("a\0.b", ClientHello::Refused),
            ("ä.com", ClientHello::Refused),
            (&"a.".repeat(127)[..253], is(&"a.".repeat(127)[..253])),
            (&format!("{}aa", "a.".repeat(126)), ClientHello::Refused),
        ] {
            let mut extensions = extension(10, b"before");
            extensions.extend(name(text.as_bytes()));
            extensions.extend(extension(43, b"after"));
            assert_eq!(read(&extensions), wanted, "{text:?}");
        }
    }

    #[test]
    fn messages_that_are_not_right() {
        let good = name(b"a.com");
        let one = |list: &[u8]| extension(SERVER_NAME, list);
        for (what, extensions, wanted) in [
            ("no name", extension(10, b"x"), ClientHello::Nameless),
            ("two extensions of the kind", [good.clone(), good.clone()].concat(), ClientHello::Refused),
            (
                "two names",
                one(&vector16(&[&[0], &vector16(b"a")[..], &[0], &vector16(b"b")].concat())),
                ClientHello::Refused,
            ),
            ("another kind of name", one(&vector16(&[&[1], &vector16(b"a")[..]].concat())), ClientHello::Refused),
            ("an empty list", one(&vector16(b"")), ClientHello::Refused),
            ("an empty extension", one(b""), ClientHello::Refused),
            (
                "more after the list",
                one(&[vector16(&[&[0], &vector16(b"a")[..]].concat()), vec![0]].concat()),
                ClientHello::Refused,
            ),
            ("an extension that is cut", good[..good.len() - 1].to_vec(), ClientHello::Refused),
            ("half an extension's kind", [good.clone(), vec![0]].concat(), ClientHello::Refused),
        ] {
            assert_eq!(read(&extensions), wanted, "{what}");
        }
        assert_eq!(ClientHello::read(&records(&hello(None), LARGEST_RECORD)), ClientHello::Nameless);
        let mut longer = hello(Some(&good));
        longer.push(0);
        longer[3] += 1;
        assert_eq!(ClientHello::read(&records(&longer, LARGEST_RECORD)), ClientHello::Refused);
        let mut too_long = hello(Some(&good));
        too_long[1] = 1;
        assert_eq!(ClientHello::read(&records(&too_long, LARGEST_RECORD)), ClientHello::Refused);
    }

    #[test]
    fn what_is_not_tls_is_refused_at_its_first_wrong_byte() {
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"G",
            &[HANDSHAKE, 2],
            &[HANDSHAKE, 3, 1, 0, 0],
            &[HANDSHAKE, 3, 1, 0x40, 1],
            &[HANDSHAKE, 3, 1, 0, 5, 2],
            &[23, 3, 3],
            &[0x80, 0x2e, 1, 3, 1],
        ] {
            assert_eq!(ClientHello::read(bytes), ClientHello::Refused, "{bytes:?}");
        }
        // Another kind of record amid the message.
        let mut mixed = records(&hello(Some(&name(b"a.com"))), 20);
        mixed[25] = 23;
        assert_eq!(ClientHello::read(&mixed), ClientHello::Refused);
    }

    #[test]
    fn a_long_message_is_read_up_to_a_bound() {
        let padded = |length: usize| hello(Some(&[extension(21, &vec![0; length]), name(b"a.com")].concat()));
        let longest = padded(CLIENT_HELLO_BYTES - 61);
        assert_eq!(longest.len(), HEADER + CLIENT_HELLO_BYTES);
        assert_eq!(ClientHello::read(&records(&longest, LARGEST_RECORD)), is("a.com"));
        assert_eq!(ClientHello::read(&records(&longest, 6)), is("a.com"));
        let crumbs = records(&longest, 1);
        let held = 2 * CLIENT_HELLO_BYTES;
        assert_eq!(ClientHello::read(&crumbs[..held - 1]), ClientHello::Incomplete);
        assert_eq!(ClientHello::read(&crumbs[..held]), ClientHello::Refused);
        assert_eq!(ClientHello::read(&records(&padded(CLIENT_HELLO_BYTES - 60), 100)[..200]), ClientHello::Refused);
    }

    /// As they were sent by real clients.
    #[test]
    fn real_clients() {
        for (bytes, wanted) in [
            (&include_bytes!("../../fuzz/corpus/client_hello/openssl-tls13")[..], is("shop.example.com")),
            (include_bytes!("../../fuzz/corpus/client_hello/openssl-tls12"), is("shop.example.com")),
            (include_bytes!("../../fuzz/corpus/client_hello/openssl-nameless"), ClientHello::Nameless),
            (include_bytes!("../../fuzz/corpus/client_hello/curl"), is("shop.example.com")),
        ] {
            assert_eq!(ClientHello::read(bytes), wanted);
        }
    }

    proptest! {
        #[test]
        fn records_of_any_size_say_the_same(size in 1..80_usize, text in "[a-z]{1,9}(\\.[a-z]{1,9}){0,3}", after: Vec<u8>) {
            let wire = records(&hello(Some(&name(text.as_bytes()))), size);
            for end in 0..wire.len() {
                prop_assert_eq!(ClientHello::read(&wire[..end]), ClientHello::Incomplete, "{} of {}", end, wire.len());
            }
            // What follows, such as early data, changes nothing.
            prop_assert_eq!(ClientHello::read(&[wire, after].concat()), is(&text));
        }

        #[test]
        fn bytes_of_any_kind_are_read(mut message in vec(any::<u8>(), 0..200), size in 1..80_usize) {
            ClientHello::read(&message);
            ClientHello::read(&records(&message, size));
            message.splice(0..0, [CLIENT_HELLO, 0, 0, 190]);
            ClientHello::read(&records(&message, size));
        }
    }
}
