//! Many connections from one process: opened at once, held, and used again after a pause.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;

use super::say;
use super::tally::{Tally, raise_descriptor_limit};

/// The connections.
#[derive(clap::Args)]
pub struct Hold {
    /// An echo server, or one of HTTP/1.1
    address: SocketAddr,
    /// How many
    #[arg(long)]
    connections: usize,
    /// How many to open at a time
    #[arg(long, default_value_t = 64)]
    at_once: usize,
    /// Seconds of silence before they are used again
    #[arg(long, default_value_t = 0)]
    idle: u64,
    /// How often to be silent and use them again
    #[arg(long, default_value_t = 1)]
    rounds: u64,
    /// Ask for `/` instead of being echoed
    #[arg(long)]
    http: bool,
}

/// How long one connection may take to be made, and one word to come back: a crowd on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

impl Hold {
    /// Prints a line once they are open and one after each round. Fails if a connection did.
    pub fn run(self) -> Result<()> {
        let Self { address, connections, at_once, idle, rounds, http } = self;
        let word = if http { request } else { word };
        raise_descriptor_limit();
        let threads = at_once.clamp(1, connections.max(1));
        let started = Instant::now();
        let (held, opened) = (Mutex::new(Vec::with_capacity(connections)), Tally::default());
        on_threads(threads, |thread| {
            for number in (thread..connections).step_by(threads) {
                let stream = open(&address).and_then(|mut stream| word(&mut stream, number as u64).map(|()| stream));
                if let Some(stream) = opened.count("open", stream) {
                    held.lock().expect("no holder panics").push(stream);
                }
            }
        })?;
        let mut held = held.into_inner().expect("no holder panics");
        let mut failed = connections - held.len();
        say(&json!({"opened": opened.json(), "ms": started.elapsed().as_millis() as u64}))?;
        for round in 1..=rounds {
            std::thread::sleep(Duration::from_secs(idle));
            let (started, answered) = (Instant::now(), Tally::default());
            std::thread::scope(|scope| {
                for part in held.chunks_mut(connections.div_ceil(threads).max(1)) {
                    let answered = &answered;
                    scope.spawn(move || {
                        for stream in part {
                            answered.count("use", word(stream, round).and_then(|()| is_still(stream, &address)));
                        }
                    });
                }
            });
            let tally = answered.json();
            failed += tally["failed"].as_u64().unwrap_or(0) as usize;
            say(&json!({"round": round, "answered": tally, "ms": started.elapsed().as_millis() as u64}))?;
        }
        ensure!(failed == 0, "{failed} failures on {connections} connections");
        Ok(())
    }
}

/// Runs `work` on so many threads with small stacks.
fn on_threads(threads: usize, work: impl Fn(usize) + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let work = &work;
            std::thread::Builder::new().stack_size(128 << 10).spawn_scoped(scope, move || work(thread))?;
        }
        Ok(())
    })
}

fn open(address: &SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Whether a connection is to whom it was made, however long ago and whatever was made since.
fn is_still(stream: &TcpStream, address: &SocketAddr) -> io::Result<()> {
    let peer = stream.peer_addr()?;
    if peer == *address { Ok(()) } else { Err(io::Error::other(format!("its peer is {peer} now"))) }
}

fn word(stream: &mut TcpStream, number: u64) -> io::Result<()> {
    let said = number.to_be_bytes();
    stream.write_all(&said)?;
    let mut heard = [0; 8];
    stream.read_exact(&mut heard)?;
    if heard == said { Ok(()) } else { Err(io::Error::other("the echo is not what was said")) }
}

fn request(stream: &mut TcpStream, _: u64) -> io::Result<()> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: held\r\n\r\n")?;
    let mut heard = Vec::new();
    loop {
        let mut piece = [0; 4096];
        let length = stream.read(&mut piece)?;
        heard.extend_from_slice(&piece[..length]);
        let text = String::from_utf8_lossy(&heard).to_ascii_lowercase();
        let head = text.split_once("\r\n\r\n").map(|(head, _)| head);
        let body =
            head.and_then(|head| head.split("content-length: ").nth(1)?.split("\r\n").next()?.parse::<usize>().ok());
        match (head, body) {
            (Some(head), Some(body)) if heard.len() == head.len() + 4 + body => return Ok(()),
            _ if length == 0 => return Err(io::Error::other("the answer broke off")),
            _ => {}
        }
    }
}
