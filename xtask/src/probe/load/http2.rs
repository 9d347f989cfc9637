//! HTTP/2 (RFC 9113) with one stream at a time: a fixed block of headers out, frames in until the stream ends.
//!
//! Header compression (RFC 7541) is kept out of the way: what we send uses the static table alone, and our settings leave
//! the server no dynamic one, so that a status of 200 is always the one byte 0x88.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use super::{Caller, Request, wrong};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

const STATUS_200: u8 = 0x88;

/// When so much was received, the connection's window is given back.
const WINDOW_STEP: u32 = 32 << 10;

/// The answers' largest frame: the default of SETTINGS_MAX_FRAME_SIZE.
const FRAME_BYTES: usize = 16 << 10;

pub(super) struct Connection {
    stream: TcpStream,
    headers: Vec<u8>,
    /// A gRPC message; none: the headers are all.
    message: Option<Vec<u8>>,
    next: u32,
    received: u32,
    payload: Vec<u8>,
}

impl Caller for Connection {
    fn new(stream: TcpStream, request: &Request) -> io::Result<Self> {
        let headers = header_block(request);
        let message = request.is_grpc.then(|| vec![0, 0, 0, 0, 3, 10, 1, b'x']);
        let mut connection =
            Self { stream, headers, message, next: 1, received: 0, payload: Vec::with_capacity(FRAME_BYTES) };
        let mut hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        // SETTINGS_HEADER_TABLE_SIZE 0, SETTINGS_ENABLE_PUSH 0.
        frame(&mut hello, SETTINGS, 0, 0, &[0, 1, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]);
        connection.stream.write_all(&hello)?;
        Ok(connection)
    }

    fn call(&mut self) -> io::Result<()> {
        let stream = self.next;
        self.next += 2;
        let mut out = Vec::with_capacity(256);
        let end = if self.message.is_some() { 0 } else { END_STREAM };
        frame(&mut out, HEADERS, END_HEADERS | end, stream, &self.headers);
        if let Some(message) = &self.message {
            frame(&mut out, DATA, END_STREAM, stream, message);
        }
        self.stream.write_all(&out)?;
        let (mut has_status, mut blocks) = (false, 0);
        loop {
            let (kind, flags, of) = self.read_frame()?;
            match kind {
                HEADERS if of == stream => {
                    blocks += 1;
                    has_status |= status(&self.payload)? == STATUS_200;
                }
                DATA if of == stream => self.give_window_back()?,
                SETTINGS if flags & ACK == 0 => self.answer(SETTINGS)?,
                PING if flags & ACK == 0 => self.answer(PING)?,
                RST_STREAM if of == stream => return Err(io::ErrorKind::ConnectionReset.into()),
                GOAWAY => return Err(io::ErrorKind::ConnectionAborted.into()),
                _ => continue,
            }
            if matches!(kind, HEADERS | DATA) && flags & END_STREAM != 0 {
                let as_called = has_status && (self.message.is_none() || blocks == 2);
                return if as_called { Ok(()) } else { Err(wrong("no 200, or a call without trailers")) };
            }
        }
    }
}

impl Connection {
    /// One frame: its type, its flags and its stream; its payload is kept.
    fn read_frame(&mut self) -> io::Result<(u8, u8, u32)> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head)?;
        let [a, b, c, kind, flags, stream @ ..] = head;
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        if length > FRAME_BYTES {
            return Err(wrong("a frame that is too large"));
        }
        self.payload.resize(length, 0);
        self.stream.read_exact(&mut self.payload)?;
        Ok((kind, flags, u32::from_be_bytes(stream) & 0x7fff_ffff))
    }

    fn give_window_back(&mut self) -> io::Result<()> {
        const WINDOW_UPDATE: u8 = 8;
        self.received += self.payload.len() as u32;
        if self.received < WINDOW_STEP {
            return Ok(());
        }
        let mut out = Vec::new();
        frame(&mut out, WINDOW_UPDATE, 0, 0, &self.received.to_be_bytes());
        self.received = 0;
        self.stream.write_all(&out)
    }

    fn answer(&mut self, kind: u8) -> io::Result<()> {
        let mut out = Vec::new();
        let echoed: &[u8] = if kind == PING { &self.payload } else { &[] };
        frame(&mut out, kind, ACK, 0, echoed);
        self.stream.write_all(&out)
    }
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// Fields of the static table by their index there, values as they are; all below 127 bytes.
fn header_block(request: &Request) -> Vec<u8> {
    const GET: u8 = 0x82;
    const POST: u8 = 0x83;
    const SCHEME_HTTP: u8 = 0x86;
    const AUTHORITY: &[u8] = &[0x01];
    const PATH: &[u8] = &[0x04];
    const CONTENT_TYPE: &[u8] = &[0x0f, 31 - 15];
    let mut block = vec![if request.is_grpc { POST } else { GET }, SCHEME_HTTP];
    let mut field = |name: &[u8], value: &str| {
        block.extend_from_slice(name);
        block.push(value.len() as u8);
        block.extend_from_slice(value.as_bytes());
    };
    field(PATH, &request.path);
    field(AUTHORITY, &request.authority);
    if request.is_grpc {
        field(CONTENT_TYPE, "application/grpc");
        field(b"\x00\x02te", "trailers");
    }
    block
}

/// The first byte of a block that is no change of the table's size.
fn status(block: &[u8]) -> io::Result<u8> {
    block.iter().copied().find(|byte| byte & 0xe0 != 0x20).ok_or_else(|| wrong("no header"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_as_the_standard_writes_them() {
        let get = Request { authority: "a".into(), path: "/".into(), is_grpc: false, is_last: false };
        assert_eq!(header_block(&get), b"\x82\x86\x04\x01/\x01\x01a");
        let call = Request { is_grpc: true, ..get };
        assert_eq!(
            header_block(&call),
            b"\x83\x86\x04\x01/\x01\x01a\x0f\x10\x10application/grpc\x00\x02te\x08trailers"
        );
        let mut out = Vec::new();
        frame(&mut out, HEADERS, END_STREAM, 3, b"ab");
        assert_eq!(out, b"\x00\x00\x02\x01\x01\x00\x00\x00\x03ab");
        assert_eq!(status(b"\x20\x88").unwrap(), STATUS_200);
        assert!(status(b"").is_err());
    }
}
