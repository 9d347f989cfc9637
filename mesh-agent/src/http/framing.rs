//! Where one HTTP/1.1 request ends and the next begins, decided so that nobody can decide otherwise.
//!
//! The parser (hyper) is lenient where RFC 9112 lets a recipient choose: it takes a bare LF for an end of line, drops a
//! Content-Length beside a Transfer-Encoding, joins equal Content-Lengths. Whoever stands before or behind us may choose
//! otherwise, and then one of us sees two requests where the other sees one. So nothing is chosen here: what can be read
//! in two ways is refused.
//!
//! ```text
//!           ┌──────────────── length 0 ───────────────┐
//!  ► head ──┼─► length ──────── 0 left ───────────────┼──► head
//!           ├─► chunked ─────── last chunk, trailers ─┤
//!           └─► held (Upgrade) ── answered, not 101 ──┘
//! ```
//! Pure: bytes in, a verdict out.

use super::limits::{MAX_CHUNK_EXTENSION_BYTES, MAX_EMPTY_LINES, MAX_TRAILER_BYTES};

/// Why bytes were refused. The words are metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A line that ends in LF alone, or a CR that is not followed by LF.
    BareLineEnd,
    /// Content-Length beside Transfer-Encoding.
    LengthAndEncoding,
    /// More than one Content-Length, or one that is not a plain number.
    Length,
    /// More than one Transfer-Encoding, or another than `chunked`, or one in HTTP/1.0.
    Encoding,
    /// A chunk that is not framed as it must be.
    Chunk,
    /// A line that begins with white space: obs-fold.
    Folded,
    /// A line without a name, or with white space around it.
    FieldName,
    /// NUL, or another control character.
    Control,
    /// A request line that is not method, target and version with one space between them, or a fragment in the target.
    RequestLine,
    /// A head that is too long.
    TooLong,
    /// A head that did not arrive in time.
    TooSlow,
}

impl Violation {
    /// The stable label for metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            Violation::BareLineEnd => "bare-line-end",
            Violation::LengthAndEncoding => "length-and-encoding",
            Violation::Length => "content-length",
            Violation::Encoding => "transfer-encoding",
            Violation::Chunk => "chunk",
            Violation::Folded => "folded-field",
            Violation::FieldName => "field-name",
            Violation::Control => "control-character",
            Violation::RequestLine => "request-line",
            Violation::TooLong => "head-too-long",
            Violation::TooSlow => "head-too-slow",
        }
    }
}

/// Where in the client's bytes the next one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// Before a request.
    Head,
    /// In a body of which so many bytes are left.
    Length(u64),
    /// In a chunked body.
    Chunk(Chunk),
    /// After a request that asked for an upgrade: what follows is of the one protocol or of the other.
    Held,
}

/// Where in a chunked body. Sizes and extensions are checked to the byte; data is stepped over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunk {
    /// At the size: its value and its digits so far.
    Size(u64, u8),
    /// In the extension, which nobody reads; its bytes so far.
    Extension(u64, usize),
    /// Before the LF of the size's line.
    SizeLf(u64),
    /// In the data; what is left of it.
    Data(u64),
    /// Before the CR behind the data.
    DataCr,
    /// Before the LF behind the data.
    DataLf,
    /// In the trailers: their bytes so far, and those of this line.
    Trailer(usize, usize),
    /// Before the LF of a trailer's line.
    TrailerLf(usize, usize),
}

/// What became of some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judged {
    /// So many of them are good.
    pub good: usize,
    /// So many heads began and ended in them.
    pub heads: u64,
}

impl At {
    /// Judges what came next, as far as it can be judged: a head that is not whole, and what follows a request that
    /// asked for an upgrade, are not among the good. What is good before something that is not is good; that shows with
    /// the next call, which begins with it.
    pub fn judge(&mut self, bytes: &[u8]) -> Result<Judged, Violation> {
        let mut judged = Judged { good: 0, heads: 0 };
        while let Some(rest) = bytes.get(judged.good..).filter(|rest| !rest.is_empty()) {
            let (taken, next) = match self.step(rest) {
                Ok(Some(step)) => step,
                Err(violation) if judged.good == 0 => return Err(violation),
                Ok(None) | Err(_) => break,
            };
            judged.heads += u64::from(*self == At::Head);
            judged.good = judged.good.saturating_add(taken);
            *self = next;
        }
        Ok(judged)
    }

    /// How many of these bytes are judged together, and what follows; none when more must come first.
    fn step(self, bytes: &[u8]) -> Result<Option<(usize, At)>, Violation> {
        Ok(match self {
            At::Head => head(bytes)?,
            At::Length(left) => {
                let taken = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                let left = left.saturating_sub(taken as u64);
                Some((taken, if left == 0 { At::Head } else { At::Length(left) }))
            }
            At::Chunk(chunk) => {
                let (taken, next) = chunk.step(bytes)?;
                Some((taken, next.map_or(At::Head, At::Chunk)))
            }
            At::Held => None,
        })
    }
}

/// What the fields of a head say about what follows it.
#[derive(Default)]
struct Fields {
    length: Option<u64>,
    is_chunked: bool,
    asks_upgrade: bool,
}

/// The length of the head that `bytes` begin with, once it is whole, and what follows it.
fn head(bytes: &[u8]) -> Result<Option<(usize, At)>, Violation> {
    let mut at = 0;
    // RFC 9112 2.2: at least one empty line before a request is to be ignored.
    let mut empty_lines = 0;
    let (request_line, after) = loop {
        let Some((line, after)) = line(bytes, at)? else { return Ok(None) };
        at = after;
        if !line.is_empty() {
            break (line, after);
        }
        empty_lines += 1;
        if empty_lines > MAX_EMPTY_LINES {
            return Err(Violation::RequestLine);
        }
    };
    let mut at = after;
    let is_http_1_1 = check_request_line(request_line)?;
    let mut fields = Fields::default();
    loop {
        let Some((line, after)) = line(bytes, at)? else { return Ok(None) };
        at = after;
        if line.is_empty() {
            return Ok(Some((at, fields.framing(is_http_1_1))));
        }
        fields.add(line, is_http_1_1)?;
    }
}

/// The line that begins at `from`, and where the next one begins; none while it is not whole.
fn line(bytes: &[u8], from: usize) -> Result<Option<(&[u8], usize)>, Violation> {
    let rest = bytes.get(from..).unwrap_or_default();
    let Some(end) = rest.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
    let line = rest.get(..end).unwrap_or_default();
    let Some((b'\r', line)) = line.split_last() else { return Err(Violation::BareLineEnd) };
    if line.contains(&b'\r') {
        return Err(Violation::BareLineEnd);
    }
    if line.iter().any(|byte| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f) {
        return Err(Violation::Control);
    }
    Ok(Some((line, from.saturating_add(end).saturating_add(1))))
}

/// Whether it is HTTP/1.1; else HTTP/1.0.
fn check_request_line(line: &[u8]) -> Result<bool, Violation> {
    let mut words = line.split(|byte| *byte == b' ');
    match (words.next(), words.next(), words.next(), words.next()) {
        (Some(method), Some(target), Some(version), None)
            if !method.is_empty() && !target.is_empty() && !target.contains(&b'#') && !line.contains(&b'\t') =>
        {
            match version {
                b"HTTP/1.1" => Ok(true),
                b"HTTP/1.0" => Ok(false),
                _ => Err(Violation::RequestLine),
            }
        }
        _ => Err(Violation::RequestLine),
    }
}

impl Fields {
    fn add(&mut self, line: &[u8], is_http_1_1: bool) -> Result<(), Violation> {
        if matches!(line.first(), Some(b' ' | b'\t')) {
            return Err(Violation::Folded);
        }
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let (Some(name), Some(value)) = (parts.next(), parts.next()) else { return Err(Violation::FieldName) };
        if name.is_empty() || name.contains(&b' ') || name.contains(&b'\t') {
            return Err(Violation::FieldName);
        }
        // By length first: few names have one of these.
        match name.len() {
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                if self.length.is_some() {
                    return Err(Violation::Length);
                }
                self.length = Some(number(value.trim_ascii()).ok_or(Violation::Length)?);
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                if self.is_chunked || !is_http_1_1 || !value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                    return Err(Violation::Encoding);
                }
                self.is_chunked = true;
            }
            // A name that a careless recipient takes for the one above.
            17 if is_lookalike(name) => return Err(Violation::Encoding),
            7 if name.eq_ignore_ascii_case(b"upgrade") => self.asks_upgrade = true,
            _ => {}
        }
        if self.is_chunked && self.length.is_some() {
            return Err(Violation::LengthAndEncoding);
        }
        Ok(())
    }

    fn framing(&self, is_http_1_1: bool) -> At {
        match self {
            Fields { is_chunked: true, .. } => At::Chunk(Chunk::Size(0, 0)),
            Fields { length: Some(length), .. } if *length > 0 => At::Length(*length),
            Fields { asks_upgrade: true, .. } if is_http_1_1 => At::Held,
            Fields { .. } => At::Head,
        }
    }
}

/// `transfer_encoding` becomes Transfer-Encoding where fields become variables of an environment (CGI, WSGI).
fn is_lookalike(name: &[u8]) -> bool {
    name.get(..8).is_some_and(|start| start.eq_ignore_ascii_case(b"transfer"))
        && name.get(9..).is_some_and(|end| end.eq_ignore_ascii_case(b"encoding"))
}

/// A number of decimal digits alone: no sign, no list.
fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |number, byte| {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit < 10)?;
        number.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

impl Chunk {
    /// How many bytes it takes, at least one, and what follows; nothing after the last.
    fn step(self, bytes: &[u8]) -> Result<(usize, Option<Chunk>), Violation> {
        let byte = bytes.first().copied().unwrap_or_default();
        let next = match (self, byte) {
            (Chunk::Size(size, digits), b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                // Sixteen digits are 64 bits; more, even of zeros, are read differently by different recipients.
                if digits == 16 {
                    return Err(Violation::Chunk);
                }
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                Chunk::Size(size << 4 | u64::from(digit), digits + 1)
            }
            (Chunk::Size(_, 0), _) => return Err(Violation::Chunk),
            (Chunk::Size(size, _), b';') => Chunk::Extension(size, 0),
            (Chunk::Size(size, _), b'\r') => Chunk::SizeLf(size),
            (Chunk::Extension(size, _), b'\r') => Chunk::SizeLf(size),
            (Chunk::Extension(size, length), b'\t' | b' '..=b'~' | 0x80..) if length < MAX_CHUNK_EXTENSION_BYTES => {
                Chunk::Extension(size, length + 1)
            }
            (Chunk::SizeLf(0), b'\n') => Chunk::Trailer(0, 0),
            (Chunk::SizeLf(size), b'\n') => Chunk::Data(size),
            (Chunk::Data(left), _) => {
                let taken = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                let left = left.saturating_sub(taken as u64);
                return Ok((taken, Some(if left == 0 { Chunk::DataCr } else { Chunk::Data(left) })));
            }
            (Chunk::DataCr, b'\r') => Chunk::DataLf,
            (Chunk::DataLf, b'\n') => Chunk::Size(0, 0),
            (Chunk::Trailer(all, line), b'\r') => Chunk::TrailerLf(all, line),
            (Chunk::Trailer(_, 0), b' ' | b'\t') => return Err(Violation::Folded),
            (Chunk::Trailer(all, line), b'\t' | b' '..=b'~' | 0x80..) if all < MAX_TRAILER_BYTES => {
                Chunk::Trailer(all + 1, line + 1)
            }
            (Chunk::TrailerLf(_, 0), b'\n') => return Ok((1, None)),
            (Chunk::TrailerLf(all, _), b'\n') => Chunk::Trailer(all, 0),
            _ => return Err(Violation::Chunk),
        };
        Ok((1, Some(next)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All of it, as a stream would bring it.
    fn judge(bytes: &[u8]) -> Result<Judged, Violation> {
        let (mut at, mut all) = (At::Head, Judged { good: 0, heads: 0 });
        loop {
            let judged = at.judge(&bytes[all.good..])?;
            all = Judged { good: all.good + judged.good, heads: all.heads + judged.heads };
            if judged.good == 0 || all.good == bytes.len() {
                return Ok(all);
            }
        }
    }

    /// By FIELD's names of the classes: what comes of one piece of bytes.
    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        const HEAD: &str = "POST /a HTTP/1.1\r\nHost: h\r\n";
        let table: &[(&str, &str, Violation)] = &[
            ("C1 CL+TE", "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n", Violation::LengthAndEncoding),
            ("C1 TE+CL", "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n", Violation::LengthAndEncoding),
            ("C2 TE.TE", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n", Violation::Encoding),
            ("C2 TE twice", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", Violation::Encoding),
            ("C2 TE list", "Transfer-Encoding: chunked, identity\r\n\r\n", Violation::Encoding),
            ("C2 TE gzip", "Transfer-Encoding: gzip, chunked\r\n\r\n", Violation::Encoding),
            ("C2 TE word", "Transfer-Encoding: xchunked\r\n\r\n", Violation::Encoding),
            ("C2 TE quoted", "Transfer-Encoding: \"chunked\"\r\n\r\n", Violation::Encoding),
            ("C2 TE underscore", "Transfer_Encoding: chunked\r\n\r\n", Violation::Encoding),
            ("C2 TE vertical tab", "Transfer-Encoding: \x0bchunked\r\n\r\n", Violation::Control),
            ("C3 two CL", "Content-Length: 4\r\nContent-Length: 5\r\n\r\n", Violation::Length),
            ("C3 two equal CL", "Content-Length: 4\r\nContent-Length: 4\r\n\r\n", Violation::Length),
            ("C3 CL list", "Content-Length: 4, 4\r\n\r\n", Violation::Length),
            ("C3 CL sign", "Content-Length: +4\r\n\r\n", Violation::Length),
            ("C3 CL negative", "Content-Length: -4\r\n\r\n", Violation::Length),
            ("C3 CL hex", "Content-Length: 0x4\r\n\r\n", Violation::Length),
            ("C3 CL empty", "Content-Length:\r\n\r\n", Violation::Length),
            ("C3 CL too large", "Content-Length: 18446744073709551616\r\n\r\n", Violation::Length),
            ("C4 bare LF", "A: b\nC: d\r\n\r\n", Violation::BareLineEnd),
            ("C4 bare LF at the end", "A: b\r\n\n", Violation::BareLineEnd),
            ("C4 bare CR", "A: b\rC: d\r\n\r\n", Violation::BareLineEnd),
            ("C4 CR CR LF", "A: b\r\r\n\r\n", Violation::BareLineEnd),
            ("C6 space before the colon", "Transfer-Encoding : chunked\r\n\r\n", Violation::FieldName),
            ("C6 tab before the colon", "Content-Length\t: 4\r\n\r\n", Violation::FieldName),
            ("C6 space in a name", "Content Length: 4\r\n\r\n", Violation::FieldName),
            ("C6 no name", ": 4\r\n\r\n", Violation::FieldName),
            ("C6 no colon", "Host\r\n\r\n", Violation::FieldName),
            ("C7 obs-fold", "A: b\r\n c\r\n\r\n", Violation::Folded),
            ("C7 obs-fold of an encoding", "Transfer-Encoding:\r\n chunked\r\n\r\n", Violation::Encoding),
            ("C8 NUL", "A: b\0c\r\n\r\n", Violation::Control),
            ("C8 NUL in a name", "A\0: b\r\n\r\n", Violation::Control),
            ("C10 TE in 1.0", "", Violation::Encoding),
        ];
        for (name, fields, expected) in table {
            let bytes = match *name {
                "C10 TE in 1.0" => "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".to_string(),
                _ => format!("{HEAD}{fields}"),
            };
            assert_eq!(judge(bytes.as_bytes()), Err(*expected), "{name}");
        }
    }

    #[test]
    fn request_lines() {
        for (line, good) in [
            ("GET / HTTP/1.1", true),
            ("GET / HTTP/1.0", true),
            ("OPTIONS * HTTP/1.1", true),
            // C10: HTTP/0.9 has neither a version nor fields.
            ("GET /", false),
            ("GET / HTTP/0.9", false),
            ("GET / HTTP/2.0", false),
            ("GET / HTTP/1.2", false),
            ("GET / http/1.1", false),
            ("GET  / HTTP/1.1", false),
            ("GET / x HTTP/1.1", false),
            (" GET / HTTP/1.1", false),
            ("GET\t/ HTTP/1.1", false),
            ("GET / HTTP/1.1 ", false),
            ("GET /a#b HTTP/1.1", false),
            ("GET /a?b#c HTTP/1.1", false),
        ] {
            let judged = judge(format!("{line}\r\n\r\n").as_bytes());
            assert_eq!(judged.is_ok_and(|judged| judged.heads == 1), good, "{line}");
        }
        let lines = |count: usize| judge(format!("{}GET / HTTP/1.1\r\n\r\n", "\r\n".repeat(count)).as_bytes());
        assert!(lines(MAX_EMPTY_LINES).is_ok());
        assert_eq!(lines(MAX_EMPTY_LINES + 1), Err(Violation::RequestLine));
        assert_eq!(judge(b"\nGET / HTTP/1.1\r\n\r\n"), Err(Violation::BareLineEnd));
    }

    /// C5
    #[test]
    fn chunks() {
        const HEAD: &str = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
        let long = format!("1;{}\r\n", "x".repeat(MAX_CHUNK_EXTENSION_BYTES + 1));
        let trailers = format!("0\r\na: {}\r\n\r\n", "x".repeat(MAX_TRAILER_BYTES));
        let bad = [
            ("10000000000000000\r\n", Violation::Chunk),
            ("00000000000000001\r\na\r\n", Violation::Chunk),
            ("0x1\r\n", Violation::Chunk),
            ("+1\r\n", Violation::Chunk),
            (" 1\r\n", Violation::Chunk),
            ("1 \r\n", Violation::Chunk),
            ("1\n", Violation::Chunk),
            ("1\r\nab", Violation::Chunk),
            ("1\r\na\n", Violation::Chunk),
            ("1;a\nb\r\n", Violation::Chunk),
            ("\r\n", Violation::Chunk),
            ("0\r\n\n", Violation::Chunk),
            ("0\r\na: b\nc: d\r\n\r\n", Violation::Chunk),
            ("0\r\na: b\0\r\n\r\n", Violation::Chunk),
            ("0\r\na: b\r\n c\r\n\r\n", Violation::Folded),
            (&long, Violation::Chunk),
            (&trailers, Violation::Chunk),
        ];
        for (body, expected) in bad {
            assert_eq!(judge(format!("{HEAD}{body}").as_bytes()), Err(expected), "{body:?}");
        }
        for body in ["0\r\n\r\n", "1;a=\"b\"\r\na\r\n000\r\n\r\n", "3\r\nabc\r\n0\r\nx: y\r\nz: 1\r\n\r\n", "aB\r\n"] {
            let bytes = format!("{HEAD}{body}");
            let judged = judge(bytes.as_bytes()).unwrap();
            assert_eq!(judged, Judged { good: bytes.len(), heads: 1 }, "{body:?}");
        }
    }

    /// C11: whatever the pieces, requests end where they end; and what follows a request for an upgrade is kept back.
    #[test]
    fn requests_in_a_row_in_pieces_of_any_size() {
        let bytes = b"GET /1 HTTP/1.1\r\nHost: h\r\n\r\nPOST /2 HTTP/1.1\r\nContent-Length: 5\r\n\r\nab\r\ncPOST /3 HTTP/1.1\r\n\
            Transfer-Encoding: chunked\r\n\r\n4;x\r\nGET \r\n0\r\nt: 1\r\n\r\n\r\nGET /4 HTTP/1.1\r\nUpgrade: websocket\r\n\r\nGET /5 HTTP/1.1\r\n\r\n";
        let until_held = bytes.len() - b"GET /5 HTTP/1.1\r\n\r\n".len();
        for size in 1..=bytes.len() {
            let (mut at, mut kept, mut good, mut heads) = (At::Head, Vec::new(), 0, 0);
            for piece in bytes.chunks(size) {
                kept.extend_from_slice(piece);
                let judged = at.judge(&kept).unwrap();
                kept.drain(..judged.good);
                (good, heads) = (good + judged.good, heads + judged.heads);
            }
            assert_eq!((good, heads, at), (until_held, 4, At::Held), "pieces of {size}");
        }
    }
}
