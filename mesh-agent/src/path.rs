//! The path of a request, brought into one form before anything is decided about it.
//!
//! Whoever judges a request and whoever serves it must read the same path. So a path is normalised first, what is judged
//! is what is sent on, and what applications are known to read in two ways is refused.
//!
//! | in the path | becomes |
//! |---|---|
//! | `%41` `%2e` `%7E`: percent-encoded letters, digits, `-._~` | the character (RFC 3986 6.2.2.2) |
//! | `%c3%bc`: other percent-encoded bytes | upper-case hexadecimal digits |
//! | bytes above 127 | percent-encoded |
//! | `//` | `/` |
//! | `/./` `/a/../` | resolved (RFC 3986 5.2.4) |
//! | `/;x` `/%3B` and `%2F` `%5C`, one kind of them | kept; judged as it stands and as an application sees it that strips parameters, or decodes: both must be acceptable |
//! | two of these kinds together | refused |
//! | `..` above the root; `.` or `..` once parameters are stripped or slashes decoded (`/..;/`, `/..%2f`) | refused |
//! | a backslash, blanks, `#`, control characters, also percent-encoded | refused |
//! | `%` without two digits; bytes that are not UTF-8, overlong forms among them | refused |
//! | `%252F` and its like: `/ \ . ; %` or NUL encoded twice | refused |
//!
//! Case stays: paths that differ in it are different paths. The query is no part of a path.

use std::borrow::Cow;

/// A path of the one form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NormalPath<'a> {
    sent: Cow<'a, str>,
    /// As an application reads it that strips parameters or decodes slashes, where that is something else.
    folded: Option<String>,
}

/// Why a path is refused. The words are metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ambiguous {
    /// It does not begin with a slash.
    NoSlash,
    /// A backslash, a blank, `#` or a control character.
    Character,
    /// A `%` that no byte follows.
    Escape,
    /// Bytes that are not UTF-8.
    NotUtf8,
    /// What separates segments, or stands for one, is encoded twice.
    EncodedTwice,
    /// `..` above the root.
    AboveRoot,
    /// A segment that is `.` or `..` to some applications only.
    HiddenDots,
    /// Parameters and encoded slashes in one path: there are too many ways to read it.
    TwoReadings,
}

impl Ambiguous {
    /// The stable label for metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            Ambiguous::NoSlash => "path-no-slash",
            Ambiguous::Character => "path-character",
            Ambiguous::Escape => "path-escape",
            Ambiguous::NotUtf8 => "path-not-utf8",
            Ambiguous::EncodedTwice => "path-encoded-twice",
            Ambiguous::AboveRoot => "path-above-root",
            Ambiguous::HiddenDots => "path-hidden-dots",
            Ambiguous::TwoReadings => "path-two-readings",
        }
    }
}

impl<'a> NormalPath<'a> {
    /// `/`
    pub fn root() -> Self {
        Self { sent: Cow::Borrowed("/"), folded: None }
    }

    /// What is sent on, and what a rule is compared with first.
    pub fn as_str(&self) -> &str {
        &self.sent
    }

    /// The other way to read it, where there is one.
    pub fn folded(&self) -> Option<&str> {
        self.folded.as_deref()
    }

    /// Whether the path came in the one form already.
    pub fn is_as_it_came(&self) -> bool {
        matches!(self.sent, Cow::Borrowed(_))
    }
}

/// Brings a path into the one form. `*` (of OPTIONS) is a form of its own; an empty path is `/`.
///
/// # Errors
/// Why it cannot be read in one way.
pub fn normalise(path: &str) -> Result<NormalPath<'_>, Ambiguous> {
    if path == "*" {
        return Ok(NormalPath { sent: Cow::Borrowed(path), folded: None });
    }
    if path.is_empty() {
        return Ok(NormalPath::root());
    }
    if !path.starts_with('/') {
        return Err(Ambiguous::NoSlash);
    }
    let unescaped = match is_plain(path) {
        true => Cow::Borrowed(path),
        false => Some(unescape(path)?).filter(|text| text != path).map_or(Cow::Borrowed(path), Cow::Owned),
    };
    let sent = match resolve(&unescaped)? {
        Some(resolved) => Cow::Owned(resolved),
        None => unescaped,
    };
    let folded = fold(&sent)?;
    Ok(NormalPath { sent, folded })
}

/// Whether nothing in it has to be decoded, encoded or refused.
fn is_plain(path: &str) -> bool {
    path.bytes().all(|byte| is_unreserved(byte) || b"/!$&'()*+,;=:@".contains(&byte))
}

/// RFC 3986 2.3
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// Every byte in its one spelling.
fn unescape(path: &str) -> Result<String, Ambiguous> {
    let mut out = String::with_capacity(path.len());
    // Bytes above 127 that follow one another, to be read as UTF-8 together.
    let mut wide = Vec::new();
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        let (byte, was_escaped) = match byte {
            b'%' => (escaped(bytes.next(), bytes.next()).ok_or(Ambiguous::Escape)?, true),
            byte => (byte, false),
        };
        if byte >= 0x80 {
            wide.push(byte);
            continue;
        }
        flush(&mut wide, &mut out)?;
        match byte {
            byte if is_unreserved(byte) => out.push(char::from(byte)),
            // `%5C` is a character of a segment to some, a separator to others; a bare one is sent by no client.
            0..=0x1f | 0x7f => return Err(Ambiguous::Character),
            b' ' | b'\\' | b'#' if !was_escaped => return Err(Ambiguous::Character),
            byte if was_escaped => push_escaped(byte, &mut out),
            // Not legal in a path; kept by some parsers as it is, encoded by others.
            b'"' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}' | b'[' | b']' => push_escaped(byte, &mut out),
            b'?' => return Err(Ambiguous::Character),
            byte => out.push(char::from(byte)),
        }
    }
    flush(&mut wide, &mut out)?;
    if is_encoded_twice(&out) { Err(Ambiguous::EncodedTwice) } else { Ok(out) }
}

fn escaped(high: Option<u8>, low: Option<u8>) -> Option<u8> {
    let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
    u8::try_from(digit(high)? << 4 | digit(low)?).ok()
}

fn push_escaped(byte: u8, out: &mut String) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let digit = |nibble: u8| DIGITS.get(usize::from(nibble)).copied().map_or('0', char::from);
    out.extend(['%', digit(byte >> 4), digit(byte & 0xf)]);
}

fn flush(wide: &mut Vec<u8>, out: &mut String) -> Result<(), Ambiguous> {
    if !wide.is_empty() {
        std::str::from_utf8(wide).map_err(|_| Ambiguous::NotUtf8)?;
        wide.drain(..).for_each(|byte| push_escaped(byte, out));
    }
    Ok(())
}

/// Whether decoding once more would uncover what separates or hides.
fn is_encoded_twice(path: &str) -> bool {
    path.match_indices("%25").any(|(at, _)| {
        let mut rest = path.bytes().skip(at.saturating_add(3));
        escaped(rest.next(), rest.next()).is_some_and(|byte| b"/\\.;%\0".contains(&byte))
    })
}

/// Slashes merged and dot segments resolved; None where there is nothing to do.
fn resolve(path: &str) -> Result<Option<String>, Ambiguous> {
    let is_dots = |segment: &str| segment == "." || segment == "..";
    if !path.contains("//") && !path.split('/').any(is_dots) {
        return Ok(None);
    }
    let mut kept: Vec<&str> = Vec::new();
    // Whether the last segment stands for a directory: its slash stays.
    let mut ends_in_slash = false;
    for segment in path.split('/').skip(1) {
        ends_in_slash = segment.is_empty() || is_dots(segment);
        match segment {
            "" | "." => {}
            ".." => drop(kept.pop().ok_or(Ambiguous::AboveRoot)?),
            segment => kept.push(segment),
        }
    }
    let mut resolved = String::with_capacity(path.len());
    for segment in &kept {
        resolved.push('/');
        resolved.push_str(segment);
    }
    if ends_in_slash || kept.is_empty() {
        resolved.push('/');
    }
    Ok(Some(resolved))
}

/// The other reading of a path whose bytes have their one spelling.
fn fold(path: &str) -> Result<Option<String>, Ambiguous> {
    let kinds = [path.contains(';'), path.contains("%3B"), path.contains("%2F") || path.contains("%5C")];
    let separator = match kinds {
        [false, false, false] => return Ok(None),
        [true, false, false] => ";",
        [false, true, false] => "%3B",
        [false, false, true] => return merge(&path.replace("%2F", "/").replace("%5C", "/")).map(Some),
        _ => return Err(Ambiguous::TwoReadings),
    };
    let stripped = path.split('/').map(|segment| segment.split(separator).next().unwrap_or_default());
    merge(&stripped.collect::<Vec<_>>().join("/")).map(Some)
}

/// Dots that only show now are nobody's mistake.
fn merge(path: &str) -> Result<String, Ambiguous> {
    if path.split('/').any(|segment| segment == "." || segment == "..") {
        return Err(Ambiguous::HiddenDots);
    }
    resolve(path).map(|merged| merged.unwrap_or_else(|| path.to_string()))
}

/// Fuzz target: what has the one form keeps it, and no decoding uncovers in it what was not judged.
#[cfg(any(test, feature = "fuzzing"))]
pub fn fuzz(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(normal) = normalise(text) else { return };
    let sent = normal.as_str();
    let again = normalise(sent).expect("what is sent can be judged");
    assert!(again.is_as_it_came(), "{text:?}: {sent:?} becomes {:?}", again.as_str());
    assert_eq!(again.as_str(), sent, "what is judged is what is sent");
    assert_eq!(again.folded(), normal.folded());
    if sent == "*" {
        return;
    }
    for reading in [Some(sent), normal.folded()].into_iter().flatten() {
        assert!(reading.starts_with('/'), "{text:?}: {reading:?}");
        assert!(!reading.contains("//"), "{text:?}: {reading:?}");
        assert!(reading.bytes().all(|byte| (0x21..0x7f).contains(&byte) && byte != b'\\'), "{text:?}: {reading:?}");
        assert!(!reading.contains(['?', '#']), "{text:?}: {reading:?}");
    }
    // However often an application decodes, strips and splits, there is no way up.
    let mut decoded = sent.to_string();
    for _ in 0..3 {
        let segments = decoded.split(['/', '\\']).map(|segment| segment.split(';').next().unwrap_or_default());
        assert!(segments.clone().all(|segment| segment != "." && segment != ".."), "{text:?}: {decoded:?}");
        decoded = decode(&decoded);
    }
}

/// Decodes all there is to decode, as the most eager application would.
#[cfg(any(test, feature = "fuzzing"))]
fn decode(path: &str) -> String {
    let (mut out, mut bytes) = (Vec::new(), path.bytes().collect::<std::collections::VecDeque<_>>());
    while let Some(byte) = bytes.pop_front() {
        match (byte, escaped(bytes.front().copied(), bytes.get(1).copied())) {
            (b'%', Some(decoded)) => {
                bytes.drain(..2);
                out.push(decoded);
            }
            _ => out.push(byte),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// FIELD 6.4 D: (what, path, what is sent, the other reading)
    #[test]
    fn paths_that_have_one_form() {
        for (what, path, sent, folded) in [
            ("as it is", "/a/b.c-d_e~f", "/a/b.c-d_e~f", None),
            ("empty", "", "/", None),
            ("of OPTIONS", "*", "*", None),
            ("D1 slashes", "//admin", "/admin", None),
            ("D1 slashes within", "/a///b//", "/a/b/", None),
            ("D2 slash", "/%2fadmin", "/%2Fadmin", Some("/admin")),
            ("D2 slash within", "/a%2Fb", "/a%2Fb", Some("/a/b")),
            ("D2 letters", "/%61dmin", "/admin", None),
            ("D2 all unreserved", "/%41%7a%30%2D%2e%5F%7e", "/Az0-._~", None),
            ("D2 hexadecimal digits", "/a%c3%bc%3a", "/a%C3%BC%3A", None),
            ("D3 dots", "/a/../admin", "/admin", None),
            ("D3 encoded dots", "/a/%2e%2E/admin", "/admin", None),
            ("D3 one dot", "/./a/.", "/a/", None),
            ("D3 dots at the end", "/a/b/..", "/a/", None),
            ("D3 dots behind slashes", "/a//../admin", "/admin", None),
            ("D3 no dots", "/.../..a/a..", "/.../..a/a..", None),
            ("D4 encoded backslash", "/a%5cb", "/a%5Cb", Some("/a/b")),
            ("D5 parameter", "/admin;x=1/u;v", "/admin;x=1/u;v", Some("/admin/u")),
            ("D5 nothing but a parameter", "/;x/admin", "/;x/admin", Some("/admin")),
            ("D5 encoded", "/admin%3bx", "/admin%3Bx", Some("/admin")),
            ("D6 case stays", "/Admin", "/Admin", None),
            ("beyond ASCII", "/ü", "/%C3%BC", None),
            ("brackets", "/a[1]{b}", "/a%5B1%5D%7Bb%7D", None),
            ("blank", "/a%20b", "/a%20b", None),
            ("encoded query and fragment", "/a%3f%23", "/a%3F%23", None),
            ("percent", "/100%25", "/100%25", None),
            ("sub-delimiters", "/a!$&'()*+,=:@b", "/a!$&'()*+,=:@b", None),
            ("D13 gRPC", "/shop.Cart/Add", "/shop.Cart/Add", None),
        ] {
            let normal = normalise(path).unwrap_or_else(|why| panic!("{what}: {why:?}"));
            assert_eq!((normal.as_str(), normal.folded()), (sent, folded), "{what}: {path}");
            assert_eq!(normal.is_as_it_came(), sent == path || path.is_empty(), "{what}: {path}");
        }
    }

    #[test]
    fn paths_that_can_be_read_in_two_ways_are_refused() {
        use Ambiguous::*;
        for (what, path, why) in [
            ("no slash", "admin", NoSlash),
            ("a scheme", "http://a/", NoSlash),
            ("D3 above the root", "/../admin", AboveRoot),
            ("D3 above the root, encoded", "/a/%2e%2e/%2e%2e/admin", AboveRoot),
            ("D4 backslash", "/a\\admin", Character),
            ("D4 dots and backslash", "/a/..\\admin", Character),
            ("D5 dots with a parameter", "/a/..;/admin", HiddenDots),
            ("D5 the same, encoded", "/a/..%3b/admin", HiddenDots),
            ("D5 dot with a parameter", "/a/.;x/admin", HiddenDots),
            ("D2 dots and slash", "/a/..%2fadmin", HiddenDots),
            ("D2 dots and backslash", "/a%5c..%5cadmin", HiddenDots),
            ("D2 and D5", "/a;x%2fadmin", TwoReadings),
            ("D5 both spellings", "/a;x/b%3by", TwoReadings),
            ("D8 fragment", "/a#b", Character),
            ("query", "/a?b", Character),
            ("NUL", "/a%00.txt", Character),
            ("control", "/a%0d%0ab", Character),
            ("delete", "/a%7f", Character),
            ("blank", "/a b", Character),
            ("half an escape", "/a%2", Escape),
            ("no escape", "/a%zz", Escape),
            ("signs are no digits", "/a%+1", Escape),
            ("percent alone", "/%", Escape),
            ("overlong slash", "/a%c0%af", NotUtf8),
            ("overlong dot", "/%c0%ae%c0%ae/", NotUtf8),
            ("overlong, three bytes", "/%e0%80%af", NotUtf8),
            ("surrogate", "/%ed%a0%80", NotUtf8),
            ("Latin-1", "/caf%e9", NotUtf8),
            ("cut off", "/%c3/%bc", NotUtf8),
            ("encoded twice", "/a%252fadmin", EncodedTwice),
            ("encoded twice, in pieces", "/a%25%32%66admin", EncodedTwice),
            ("encoded twice, dots", "/%252e%252e/", EncodedTwice),
            ("encoded three times", "/%25252e", EncodedTwice),
        ] {
            assert_eq!(normalise(path), Err(why), "{what}: {path}");
        }
    }

    proptest! {
        #[test]
        fn what_has_the_one_form_keeps_it(path in "(/|\\.|%2[eEfF5]|%5[cC]|;|%3[bB]|a|%61|ü|%c3%bc|%00|\\\\|[ -~]){0,12}") {
            fuzz(format!("/{path}").as_bytes());
            fuzz(path.as_bytes());
        }
    }
}
