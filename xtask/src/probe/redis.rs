//! A long Redis session: one connection, binary values there and back, until told to stop or broken.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde_json::json;

use super::say;
use super::script::error_name;

/// The session.
#[derive(clap::Args)]
pub struct Session {
    /// The server
    address: SocketAddr,
    /// Milliseconds between two rounds of SET and GET
    #[arg(long, default_value_t = 20)]
    interval: u64,
    /// Rounds before it ends by itself; 0: never
    #[arg(long, default_value_t = 0)]
    rounds: u64,
}

/// For an answer: a session that is cut hears of it, and one that waits for a busy machine is not broken.
const PATIENCE: Duration = Duration::from_secs(20);

impl Session {
    /// Prints a line at the start, one about every quarter of a second, and one at the end.
    pub fn run(self) -> Result<()> {
        let Self { address, interval, rounds } = self;
        let mut stream =
            TcpStream::connect_timeout(&address, PATIENCE).with_context(|| format!("connecting to {address}"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        // Other sessions write to the same server.
        let key = stream.local_addr()?.to_string();
        say(&json!({"connected": address.to_string()}))?;
        let mut said = Instant::now();
        for done in 0.. {
            if rounds > 0 && done == rounds {
                break;
            }
            if let Err(error) = round(&mut stream, key.as_bytes(), done) {
                say(&json!({"broken": error_name(&error), "rounds": done, "at_ms": now_ms()}))?;
                return Err(error).context("the session broke");
            }
            if done == 0 || said.elapsed() > Duration::from_millis(250) {
                said = Instant::now();
                say(&json!({"rounds": done + 1}))?;
            }
            std::thread::sleep(Duration::from_millis(interval));
        }
        say(&json!({"ended": true, "rounds": rounds}))
    }
}

/// Milliseconds since the epoch, to compare with another process's clock.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

fn round(stream: &mut TcpStream, key: &[u8], number: u64) -> io::Result<()> {
    let value: Vec<u8> = (0..=255u8).map(|byte| byte.wrapping_add(number as u8)).collect();
    stream.write_all(&command(&[b"SET", key, &value]))?;
    expect(stream, b"+OK\r\n")?;
    stream.write_all(&command(&[b"GET", key]))?;
    let mut answer = format!("${}\r\n", value.len()).into_bytes();
    answer.extend(&value);
    answer.extend(b"\r\n");
    expect(stream, &answer)
}

fn command(words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend(format!("${}\r\n", word.len()).as_bytes());
        bytes.extend(*word);
        bytes.extend(b"\r\n");
    }
    bytes
}

fn expect(stream: &mut TcpStream, wanted: &[u8]) -> io::Result<()> {
    let mut answer = vec![0; wanted.len()];
    stream.read_exact(&mut answer)?;
    if answer == wanted { Ok(()) } else { Err(io::Error::other("the answer is not what was stored")) }
}
