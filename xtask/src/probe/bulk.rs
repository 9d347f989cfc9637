//! Large transfers whose every byte is checked, in both directions at once, as fast as can be or slowly.
//!
//! The bytes are a fixed pattern, as long as a prime number, so that a piece that is lost, doubled or moved shows, and
//! comparing costs next to nothing; each connection begins at another place of it. A connection begins with three
//! numbers (client to server, server to client, where the pattern begins) and ends, once the server has seen every byte
//! of its direction, with the server's count of them.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;

use super::echo::listen_on;
use super::say;
use super::script::error_name;
use super::tally::Tally;

/// The server.
#[derive(clap::Args)]
pub struct BulkServer {
    /// The port, of both families
    port: u16,
}

/// The client.
#[derive(clap::Args)]
pub struct Bulk {
    /// The server
    address: SocketAddr,
    /// Bytes from here to the server, on each connection
    #[arg(long, default_value_t = 0)]
    up: u64,
    /// Bytes from the server to here, on each connection
    #[arg(long, default_value_t = 0)]
    down: u64,
    /// Connections at a time
    #[arg(long, default_value_t = 1)]
    streams: u64,
    /// Bytes a second that are sent on each; 0: as fast as can be
    #[arg(long, default_value_t = 0)]
    write_rate: u64,
    /// Bytes a second that are read from each; 0: as fast as can be
    #[arg(long, default_value_t = 0)]
    read_rate: u64,
    /// Does it again and again for so many seconds; 0: once
    #[arg(long, default_value_t = 0)]
    seconds: u64,
    /// Seconds without a byte before it gives up
    #[arg(long, default_value_t = 60)]
    patience: u64,
}

/// Once round the pattern; prime.
const PATTERN_BYTES: usize = 1_048_573;
const CHUNK: usize = 64 << 10;
/// Between two pieces of a slow transfer.
const PACE: Duration = Duration::from_millis(20);

impl BulkServer {
    /// Serves until it is killed; prints a line for each connection that ends badly.
    pub fn run(self) -> Result<()> {
        let listener = listen_on(self.port)?;
        pattern();
        loop {
            let (stream, peer) = listener.accept()?;
            std::thread::spawn(move || {
                if let Err(error) = serve(&stream) {
                    let _ = say(&json!({"peer": peer.to_string(), "error": error_name(&error)}));
                }
            });
        }
    }
}

fn serve(stream: &TcpStream) -> io::Result<()> {
    let [up, down, start] = {
        let mut head = [0; 24];
        (&*stream).read_exact(&mut head)?;
        [0, 8, 16].map(|at| u64::from_be_bytes(head[at..at + 8].try_into().expect("eight bytes")))
    };
    both(|| send(stream, down, start, 0), || receive(stream, up, start, 0))?;
    (&*stream).write_all(&up.to_be_bytes())
}

impl Bulk {
    /// Prints a line for each round of all its connections. Fails if one of them did.
    pub fn run(self) -> Result<()> {
        pattern();
        let (tally, began) = (Tally::default(), Instant::now());
        loop {
            let started = Instant::now();
            std::thread::scope(|scope| {
                for number in 0..self.streams {
                    let (tally, own) = (&tally, &self);
                    scope.spawn(move || tally.count("bulk", own.transfer(number * 131)));
                }
            });
            let seconds = started.elapsed().as_secs_f64();
            let bytes = (self.up + self.down) * self.streams;
            let mut line = tally.json();
            line["ms"] = ((seconds * 1e3) as u64).into();
            line["megabytes_per_second"] = ((bytes as f64 / seconds / 1e6) as u64).into();
            let over = self.seconds == 0 || began.elapsed().as_secs() >= self.seconds || line["failed"] != 0;
            line["ended"] = over.into();
            say(&line)?;
            if over {
                ensure!(line["failed"] == 0, "{line}");
                return Ok(());
            }
        }
    }

    fn transfer(&self, start: u64) -> io::Result<()> {
        let Self { address, up, down, write_rate, read_rate, patience, .. } = *self;
        let patience = Duration::from_secs(patience);
        let stream = TcpStream::connect_timeout(&address, patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        let head = [up, down, start].map(u64::to_be_bytes).concat();
        (&stream).write_all(&head)?;
        both(|| send(&stream, up, start, write_rate), || receive(&stream, down, start, read_rate))?;
        let mut seen = [0; 8];
        (&stream).read_exact(&mut seen)?;
        if u64::from_be_bytes(seen) == up { Ok(()) } else { Err(io::Error::other("the server saw another number")) }
    }
}

/// One on a thread of its own, the other here.
fn both(send: impl FnOnce() -> io::Result<()> + Send, receive: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    std::thread::scope(|scope| {
        let sender = scope.spawn(send);
        let received = receive();
        sender.join().map_err(|_| io::Error::other("the sender panicked"))?.and(received)
    })
}

fn send(mut stream: &TcpStream, bytes: u64, start: u64, rate: u64) -> io::Result<()> {
    let (mut at, end) = (start, start + bytes);
    let pace = Pace::new(rate);
    while at < end {
        let piece = piece(at, end, pace.chunk());
        stream.write_all(piece)?;
        at += piece.len() as u64;
        pace.wait(at - start);
    }
    Ok(())
}

fn receive(mut stream: &TcpStream, bytes: u64, start: u64, rate: u64) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let (mut at, end) = (start, start + bytes);
    let pace = Pace::new(rate);
    while at < end {
        let most = pace.chunk().min((end - at) as usize);
        let read = stream.read(&mut buffer[..most])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut seen = &buffer[..read];
        while !seen.is_empty() {
            let wanted = piece(at, end, seen.len());
            let (now, later) = seen.split_at(wanted.len());
            if now != wanted {
                return Err(io::Error::other(format!("wrong bytes at {}", at - start)));
            }
            at += wanted.len() as u64;
            seen = later;
        }
        pace.wait(at - start);
    }
    Ok(())
}

/// The pattern from `at` on, up to `end` and at most `most` bytes; less where the pattern begins anew.
fn piece(at: u64, end: u64, most: usize) -> &'static [u8] {
    let from = (at % PATTERN_BYTES as u64) as usize;
    let length = most.min((end - at) as usize).min(PATTERN_BYTES - from);
    &pattern()[from..from + length]
}

fn pattern() -> &'static [u8] {
    static PATTERN: OnceLock<Vec<u8>> = OnceLock::new();
    PATTERN.get_or_init(|| {
        let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
        (0..PATTERN_BYTES)
            .map(|_| {
                // xorshift64: no two stretches alike.
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state as u8
            })
            .collect()
    })
}

/// Keeps a transfer at its rate.
struct Pace {
    rate: u64,
    started: Instant,
}

impl Pace {
    fn new(rate: u64) -> Self {
        Self { rate, started: Instant::now() }
    }

    fn chunk(&self) -> usize {
        let slow = (self.rate as f64 * PACE.as_secs_f64()) as usize;
        if self.rate == 0 { CHUNK } else { slow.clamp(1, CHUNK) }
    }

    fn wait(&self, done: u64) {
        if self.rate > 0 {
            let due = self.started + Duration::from_secs_f64(done as f64 / self.rate as f64);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    }
}
