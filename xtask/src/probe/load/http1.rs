//! HTTP/1.1, as much of it as a benchmark's own server answers with: a status, a content-length, a body.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use super::{Caller, Request, wrong};

/// More than the head and body of any answer here.
const BUFFER_BYTES: usize = 64 << 10;

pub(super) struct Connection {
    stream: TcpStream,
    request: Vec<u8>,
    is_last: bool,
    buffer: Vec<u8>,
}

impl Caller for Connection {
    fn new(stream: TcpStream, request: &Request) -> io::Result<Self> {
        let Request { path, authority, is_last, .. } = request;
        let close = if *is_last { "connection: close\r\n" } else { "" };
        let request = format!("GET {path} HTTP/1.1\r\nhost: {authority}\r\n{close}\r\n").into_bytes();
        Ok(Self { stream, request, is_last: *is_last, buffer: vec![0; BUFFER_BYTES] })
    }

    fn call(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.request)?;
        let mut length = 0;
        loop {
            let room = self.buffer.get_mut(length..).filter(|room| !room.is_empty());
            let read = self.stream.read(room.ok_or_else(|| wrong("the answer is too large"))?)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            length += read;
            if let Some(all) = whole(&self.buffer[..length])? {
                // Who closes first keeps the address for a minute: a client that always does runs out of ports.
                let is_right = all == length && !(self.is_last && self.stream.read(&mut self.buffer)? > 0);
                return if is_right { Ok(()) } else { Err(wrong("more than one answer")) };
            }
        }
    }
}

/// The length of the answer, once its head is there and its body too.
fn whole(bytes: &[u8]) -> io::Result<Option<usize>> {
    let Some(head) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let text = std::str::from_utf8(&bytes[..head]).map_err(|_| wrong("a head that is no text"))?;
    if !text.starts_with("HTTP/1.1 200 ") {
        return Err(wrong(text.lines().next().unwrap_or_default()));
    }
    let length = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    let all = head + 4 + length.ok_or_else(|| wrong("no content-length"))?;
    Ok((bytes.len() >= all).then_some(all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_when_its_body_is_there() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc";
        assert_eq!(whole(answer).unwrap(), Some(answer.len()));
        assert_eq!(whole(&answer[..answer.len() - 1]).unwrap(), None);
        assert_eq!(whole(&answer[..20]).unwrap(), None);
        assert!(whole(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n").is_err());
        assert!(whole(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }
}
