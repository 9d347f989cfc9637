//! What one end of a TCP connection does, step by step.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_linger;
use serde_json::{Value, json};

use super::say;

/// No step waits longer than this for the other end.
const PATIENCE: Duration = Duration::from_secs(30);

/// One move.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// `send:TEXT`
    Send(String),
    /// `flood:BYTES`: sends that many.
    Flood(usize),
    /// `read:BYTES`: reads exactly that many.
    Read(usize),
    /// `read-end`: reads until the other end's FIN.
    ReadEnd,
    /// `read-reset`: reads until the other end's RST; a FIN is a failure.
    ReadReset,
    /// `echo`: sends back what comes until the other end's FIN.
    Echo,
    /// `fin`: closes the sending half.
    Fin,
    /// `reset`: closes with RST; the last step of a script.
    Reset,
    /// `sleep:MILLISECONDS`
    Sleep(u64),
}

impl FromStr for Step {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (verb, value) = text.split_once(':').unwrap_or((text, ""));
        let number = || value.parse::<usize>().map_err(|error| format!("{text}: {error}"));
        Ok(match verb {
            "send" => Step::Send(value.to_string()),
            "flood" => Step::Flood(number()?),
            "read" => Step::Read(number()?),
            "read-end" => Step::ReadEnd,
            "read-reset" => Step::ReadReset,
            "echo" => Step::Echo,
            "fin" => Step::Fin,
            "reset" => Step::Reset,
            "sleep" => Step::Sleep(number()? as u64),
            _ => return Err(format!("{text}: not a step")),
        })
    }
}

/// Follows a script on a connection; prints one line per step, with `peer` where there is one. Stops at the first step
/// that fails.
pub fn follow(mut stream: TcpStream, steps: &[Step], peer: &Value) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    for step in steps {
        let started = Instant::now();
        let result = take(&mut stream, step);
        let mut line = json!({"step": step_name(step), "ms": started.elapsed().as_millis() as u64});
        if !peer.is_null() {
            line["peer"] = peer.clone();
        }
        match &result {
            Ok(bytes) => {
                line["bytes"] = bytes.len().into();
                if bytes.len() <= 200 {
                    line["text"] = String::from_utf8_lossy(bytes).into();
                }
            }
            Err(error) => line["error"] = error_name(error).into(),
        }
        say(&line)?;
        result?;
    }
    Ok(())
}

fn take(stream: &mut TcpStream, step: &Step) -> io::Result<Vec<u8>> {
    match step {
        Step::Send(text) => stream.write_all(text.as_bytes()).map(|()| text.as_bytes().to_vec()),
        Step::Flood(bytes) => flood(stream, *bytes),
        Step::Read(bytes) => {
            let mut buffer = vec![0; *bytes];
            stream.read_exact(&mut buffer).map(|()| buffer)
        }
        Step::ReadEnd => {
            let mut buffer = Vec::new();
            stream.read_to_end(&mut buffer).map(|_| buffer)
        }
        Step::ReadReset => read_reset(stream),
        Step::Echo => echo(stream),
        Step::Fin => stream.shutdown(Shutdown::Write).map(|()| Vec::new()),
        Step::Reset => reset(stream),
        Step::Sleep(milliseconds) => {
            std::thread::sleep(Duration::from_millis(*milliseconds));
            Ok(Vec::new())
        }
    }
}

fn flood(stream: &mut TcpStream, bytes: usize) -> io::Result<Vec<u8>> {
    let chunk = vec![b'f'; 1 << 16];
    let mut left = bytes;
    while left > 0 {
        let part = left.min(chunk.len());
        stream.write_all(&chunk[..part])?;
        left -= part;
    }
    Ok(Vec::new())
}

fn echo(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(Vec::new()),
            read => stream.write_all(&buffer[..read])?,
        }
    }
}

fn read_reset(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut seen = Vec::new();
    match stream.read_to_end(&mut seen) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(seen),
        Err(error) => Err(error),
        Ok(_) => Err(io::Error::new(ErrorKind::UnexpectedEof, "the other end closed without a reset")),
    }
}

fn reset(stream: &TcpStream) -> io::Result<Vec<u8>> {
    // With no time to linger, the close at the end of the script sends RST.
    set_socket_linger(stream, Some(Duration::ZERO))?;
    Ok(Vec::new())
}

fn step_name(step: &Step) -> &'static str {
    match step {
        Step::Send(_) => "send",
        Step::Flood(_) => "flood",
        Step::Read(_) => "read",
        Step::ReadEnd => "read-end",
        Step::ReadReset => "read-reset",
        Step::Echo => "echo",
        Step::Fin => "fin",
        Step::Reset => "reset",
        Step::Sleep(_) => "sleep",
    }
}

/// ECONNREFUSED rather than "Connection refused (os error 111)".
pub fn error_name(error: &io::Error) -> String {
    let known = [
        (Errno::CONNREFUSED, "ECONNREFUSED"),
        (Errno::CONNRESET, "ECONNRESET"),
        (Errno::CONNABORTED, "ECONNABORTED"),
        (Errno::PIPE, "EPIPE"),
        (Errno::PERM, "EPERM"),
        (Errno::HOSTUNREACH, "EHOSTUNREACH"),
        (Errno::NETUNREACH, "ENETUNREACH"),
        (Errno::TIMEDOUT, "ETIMEDOUT"),
        (Errno::AGAIN, "EAGAIN"),
    ];
    let name = Errno::from_io_error(error).and_then(|errno| known.iter().find(|(known, _)| *known == errno));
    match (name, error.kind()) {
        (Some((_, name)), _) => name.to_string(),
        (None, ErrorKind::TimedOut) => "ETIMEDOUT".to_string(),
        (None, ErrorKind::UnexpectedEof) => "EOF".to_string(),
        (None, _) => error.to_string(),
    }
}
