//! HPACK (RFC 7541), as far as a tunnel needs it: everything a peer may say is read; what we say is neither remembered nor
//! compressed.

use std::borrow::Cow;
use std::collections::VecDeque;

use super::huffman;
use super::limits::HEADER_TABLE_BYTES;

const TABLE: usize = HEADER_TABLE_BYTES as usize;
/// What the RFC adds to each field's length.
pub(super) const FIELD_OVERHEAD: usize = 32;

/// Fields that both ends know (appendix A).
const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

/// A block that cannot be read. What both ends know is out of step from there on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unreadable;

/// A name and a value.
type Field<Text> = (Text, Text);

/// Reads the blocks of one connection, in order.
pub(super) struct Decoder {
    /// The newest first.
    table: VecDeque<Field<Box<[u8]>>>,
    size: usize,
    most: usize,
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self { table: VecDeque::new(), size: 0, most: TABLE }
    }

    /// Hands out each field of a block.
    pub(super) fn decode(&mut self, block: &[u8], mut field: impl FnMut(&[u8], &[u8])) -> Result<(), Unreadable> {
        let mut rest = block;
        let mut has_fields = false;
        while let Some(first) = rest.first().copied() {
            match first {
                0x80.. => {
                    let (name, value) = self.entry(integer(&mut rest, 7)?)?;
                    field(name, value);
                }
                0x40.. => {
                    let (name, value) = self.literal(&mut rest, 6)?;
                    field(&name, &value);
                    let (name, value) = (name.into(), value.into());
                    self.remember(name, value);
                }
                0x20.. => {
                    let most = integer(&mut rest, 5)?;
                    if has_fields || most > TABLE {
                        return Err(Unreadable);
                    }
                    self.most = most;
                    self.evict(most);
                    continue;
                }
                _ => {
                    let (name, value) = self.literal(&mut rest, 4)?;
                    field(&name, &value);
                }
            }
            has_fields = true;
        }
        Ok(())
    }

    /// A field as it stands there.
    fn literal<'a, 'b>(&'a self, rest: &mut &'b [u8], prefix: u32) -> Result<Field<Cow<'a, [u8]>>, Unreadable>
    where
        'b: 'a,
    {
        let name = match integer(rest, prefix)? {
            0 => string(rest)?,
            index => Cow::Borrowed(self.entry(index)?.0),
        };
        Ok((name, string(rest)?))
    }

    fn entry(&self, index: usize) -> Result<(&[u8], &[u8]), Unreadable> {
        let index = index.checked_sub(1).ok_or(Unreadable)?;
        if let Some((name, value)) = STATIC.get(index) {
            return Ok((name.as_bytes(), value.as_bytes()));
        }
        let (name, value) =
            index.checked_sub(STATIC.len()).and_then(|index| self.table.get(index)).ok_or(Unreadable)?;
        Ok((name, value))
    }

    fn remember(&mut self, name: Box<[u8]>, value: Box<[u8]>) {
        let size = size(&name, &value);
        self.evict(self.most.saturating_sub(size));
        if size <= self.most {
            self.size = self.size.saturating_add(size);
            self.table.push_front((name, value));
        }
    }

    fn evict(&mut self, most: usize) {
        while self.size > most
            && let Some((name, value)) = self.table.pop_back()
        {
            self.size = self.size.saturating_sub(size(&name, &value));
        }
    }
}

/// What a field counts for.
pub(super) fn size(name: &[u8], value: &[u8]) -> usize {
    name.len().saturating_add(value.len()).saturating_add(FIELD_OVERHEAD)
}

/// Section 5.1, up to what a block could be about.
fn integer(rest: &mut &[u8], prefix: u32) -> Result<usize, Unreadable> {
    let (first, mut left) = rest.split_first().ok_or(Unreadable)?;
    let mask = (1usize << prefix) - 1;
    let mut number = usize::from(*first) & mask;
    if number == mask {
        for shift in [0, 7, 14, 21] {
            let (byte, after) = left.split_first().ok_or(Unreadable)?;
            left = after;
            number = number.saturating_add(usize::from(byte & 0x7f) << shift);
            if byte & 0x80 == 0 {
                *rest = left;
                return Ok(number);
            }
        }
        return Err(Unreadable);
    }
    *rest = left;
    Ok(number)
}

fn string<'a>(rest: &mut &'a [u8]) -> Result<Cow<'a, [u8]>, Unreadable> {
    let is_coded = rest.first().is_some_and(|first| first & 0x80 != 0);
    let length = integer(rest, 7)?;
    let (bytes, left) = rest.split_at_checked(length).ok_or(Unreadable)?;
    *rest = left;
    if !is_coded {
        return Ok(Cow::Borrowed(bytes));
    }
    // Each symbol has five bits at least.
    let mut read = Vec::with_capacity(length.saturating_mul(8) / 5);
    huffman::decode(bytes, &mut read).ok_or(Unreadable)?;
    Ok(Cow::Owned(read))
}

/// Names of the table of both ends that we say something new of.
#[derive(Clone, Copy)]
pub(super) enum Known {
    Authority = 1,
    Method = 2,
    Status = 8,
}

/// Appends a status; those of the table in a byte.
pub(super) fn put_status(out: &mut Vec<u8>, status: u16) {
    match status {
        200 => out.push(0x88),
        400 => out.push(0x8c),
        other => put_known(out, Known::Status, other.to_string().as_bytes()),
    }
}

/// Appends a field whose name both ends know.
pub(super) fn put_known(out: &mut Vec<u8>, name: Known, value: &[u8]) {
    out.push(name as u8);
    put_string(out, value);
}

/// Appends a field.
pub(super) fn put(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.push(0);
    put_string(out, name.as_bytes());
    put_string(out, value);
}

fn put_string(out: &mut Vec<u8>, value: &[u8]) {
    const MASK: usize = 0x7f;
    if value.len() < MASK {
        out.push(value.len() as u8);
    } else {
        out.push(MASK as u8);
        let mut left = value.len() - MASK;
        while left > MASK {
            out.push(0x80 | (left & MASK) as u8);
            left >>= 7;
        }
        out.push(left as u8);
    }
    out.extend_from_slice(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits.chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }

    fn read(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<String>, Unreadable> {
        let mut fields = Vec::new();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        decoder.decode(block, |name, value| fields.push(format!("{}: {}", text(name), text(value))))?;
        Ok(fields)
    }

    /// RFC 7541, C.4: three requests on one connection, in Huffman's code.
    #[test]
    fn requests_as_the_rfc_shows_them() {
        let mut decoder = Decoder::new();
        let base = [":method: GET", ":scheme: http", ":path: /", ":authority: www.example.com"];
        assert_eq!(read(&mut decoder, &hex("8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff")).unwrap(), base);
        let second = read(&mut decoder, &hex("8286 84be 5886 a8eb 1064 9cbf")).unwrap();
        assert_eq!(second, [&base[..], &["cache-control: no-cache"]].concat());
        let third = read(&mut decoder, &hex("8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf")).unwrap();
        let expected = [
            ":method: GET",
            ":scheme: https",
            ":path: /index.html",
            ":authority: www.example.com",
            "custom-key: custom-value",
        ];
        assert_eq!(third, expected);
        assert_eq!(decoder.size, 164);
    }

    /// RFC 7541, C.5: a table of 256 bytes, from which the oldest goes.
    #[test]
    fn the_oldest_goes_when_the_table_is_full() {
        let mut decoder = Decoder::new();
        let first =
            "3fe101 4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133
             3a32 3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d";
        let fields = read(&mut decoder, &hex(first)).unwrap();
        assert_eq!(fields[0], ":status: 302");
        assert_eq!((decoder.size, decoder.table.len()), (222, 4));
        let fields = read(&mut decoder, &hex("4803 3330 37c1 c0bf")).unwrap();
        assert_eq!(fields[0], ":status: 307");
        assert_eq!(fields[3], "location: https://www.example.com");
        assert_eq!((decoder.size, decoder.table.len()), (222, 4));
    }

    #[test]
    fn what_cannot_be_read_is_said_to_be_so() {
        for (block, why) in [
            ("80", "the entry 0"),
            ("be", "an entry of an empty table"),
            ("ff80808080808001", "a number without end"),
            ("0001", "a string that ends too soon"),
            ("00ff", "a length that ends too soon"),
            ("0081ff00", "a padding that is none"),
            ("3fe21f", "a table larger than was agreed"),
            ("8220", "a size behind a field"),
        ] {
            assert_eq!(read(&mut Decoder::new(), &hex(block)), Err(Unreadable), "{why}");
        }
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut decoder = Decoder::new();
        for length in [0, 100, 1000, 4000, TABLE - FIELD_OVERHEAD, 5000] {
            for _ in 0..100 {
                let mut block = vec![0x40];
                put_string(&mut block, b"");
                put_string(&mut block, &vec![b'x'; length]);
                read(&mut decoder, &block).unwrap();
                assert!(decoder.size <= TABLE && decoder.table.len() * FIELD_OVERHEAD <= TABLE);
            }
        }
        assert_eq!(decoder.size, 0, "one that is larger than the table empties it");
    }
}
