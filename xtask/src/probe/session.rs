//! One long session with an echo server: a numbered word now and then, and the moment it breaks.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;

use super::redis::now_ms;
use super::say;
use super::script::error_name;

/// The session.
#[derive(clap::Args)]
pub struct Session {
    /// The server
    address: SocketAddr,
    /// Milliseconds between two words
    #[arg(long, default_value_t = 20)]
    interval: u64,
    /// Words before it ends by itself; 0: never
    #[arg(long, default_value_t = 0)]
    rounds: u64,
    /// Seconds that an answer may take: an application without timeouts of its own waits for the connection's end
    #[arg(long, default_value_t = 120)]
    patience: u64,
}

impl Session {
    /// Prints a line at the start, one about every quarter of a second, and one at the end.
    pub fn run(self) -> Result<()> {
        let Self { address, interval, rounds, patience } = self;
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(20))
            .with_context(|| format!("connecting to {address}"))?;
        stream.set_read_timeout(Some(Duration::from_secs(patience)))?;
        stream.set_nodelay(true)?;
        say(&json!({"connected": address.to_string(), "local": stream.local_addr()?.to_string()}))?;
        let mut said = Instant::now();
        for number in 1.. {
            let began = Instant::now();
            if let Err(error) = word(&mut stream, number) {
                let silent = began.elapsed().as_millis() as u64;
                let name = error_name(&error);
                say(&json!({"broken": name, "rounds": number - 1, "silent_ms": silent, "at_ms": now_ms()}))?;
                return Err(error).context("the session broke");
            }
            if number == 1 || said.elapsed() > Duration::from_millis(250) {
                said = Instant::now();
                say(&json!({"rounds": number}))?;
            }
            if number == rounds {
                break;
            }
            std::thread::sleep(Duration::from_millis(interval));
        }
        say(&json!({"ended": true, "rounds": rounds}))
    }
}

fn word(stream: &mut TcpStream, number: u64) -> io::Result<()> {
    let mut said = [0x5a; 256];
    said[..8].copy_from_slice(&number.to_be_bytes());
    stream.write_all(&said)?;
    let mut heard = [0; 256];
    stream.read_exact(&mut heard)?;
    if heard == said { Ok(()) } else { Err(io::Error::other("the echo is not what was said")) }
}
