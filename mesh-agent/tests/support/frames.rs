//! HTTP/2 frames as bytes, also such as no library writes: what a peer says that means harm.

#![allow(dead_code, reason = "every test binary compiles this and uses a part of it")]

/// What a client begins with, its SETTINGS being empty.
pub const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

/// A flag of DATA and HEADERS.
pub const END_STREAM: u8 = 1;
/// A flag of SETTINGS and PING.
pub const ACK: u8 = 1;
/// A flag of HEADERS and CONTINUATION.
pub const END_HEADERS: u8 = 4;

/// What a GOAWAY says (RFC 9113 7).
pub const PROTOCOL_ERROR: u32 = 1;
pub const FLOW_CONTROL_ERROR: u32 = 3;
pub const STREAM_CLOSED: u32 = 5;
pub const ENHANCE_YOUR_CALM: u32 = 11;

/// One of [`SETTINGS`]' parameters.
pub const INITIAL_WINDOW_SIZE: u16 = 4;

/// Longer than any frame's head, which is all that is read of most.
pub const HEAD: usize = 9;

/// Any frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// One parameter.
pub fn settings(parameter: u16, value: u32) -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[&parameter.to_be_bytes()[..], &value.to_be_bytes()].concat())
}

pub fn window_update(stream: u32, more: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &more.to_be_bytes())
}

/// A field by HPACK: a literal, without Huffman coding or the table.
pub fn field(name: &[u8], value: &[u8]) -> Vec<u8> {
    literal(0, name, value)
}

/// The same, and it goes into the table: there it is [`NEWEST`].
pub fn remembered(name: &[u8], value: &[u8]) -> Vec<u8> {
    literal(0x40, name, value)
}

/// The newest field of the table, once more.
pub const NEWEST: u8 = 0x80 | 62;

/// Fields, literally.
pub fn fields(fields: &[(&[u8], &[u8])]) -> Vec<u8> {
    fields.iter().flat_map(|(name, value)| field(name, value)).collect()
}

fn literal(form: u8, name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![form];
    for text in [name, value] {
        bytes.extend(length(text.len()));
        bytes.extend(text);
    }
    bytes
}

/// A string's length, as HPACK writes it (RFC 7541 5.1).
pub fn length(length: usize) -> Vec<u8> {
    let mut bytes = vec![length.min(127) as u8];
    if let Some(mut rest) = length.checked_sub(127) {
        while rest > 127 {
            bytes.push(rest as u8 | 128);
            rest >>= 7;
        }
        bytes.push(rest as u8);
    }
    bytes
}
