//! Many short connections: connect, a word there and back, and the client closes first.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::say;
use super::tally::{Tally, raise_descriptor_limit};

/// The connections.
#[derive(clap::Args)]
pub struct Short {
    /// An echo server
    address: SocketAddr,
    /// How many; 0: until the time is over
    #[arg(long, default_value_t = 0)]
    connections: u64,
    /// Seconds after which no more are made; 0: never
    #[arg(long, default_value_t = 0)]
    seconds: u64,
    /// How many at a time
    #[arg(long, default_value_t = 32)]
    at_once: usize,
    /// At most so many a second; 0: as many as there can be
    #[arg(long, default_value_t = 0)]
    rate: u64,
}

const PATIENCE: Duration = Duration::from_secs(30);

/// How often a line says how far it is.
const REPORT: Duration = Duration::from_secs(1);

impl Short {
    /// Prints a line every second and one at the end, with latencies. Fails if a connection did.
    pub fn run(self) -> Result<()> {
        raise_descriptor_limit();
        let started = Instant::now();
        let (tally, next, ended) = (Tally::default(), AtomicU64::new(0), AtomicBool::new(false));
        let latencies = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            let callers: Vec<_> = (0..self.at_once)
                .map(|_| {
                    scope.spawn(|| {
                        let mut own = Vec::new();
                        while self.may_go_on(next.fetch_add(1, Ordering::Relaxed), started) {
                            let began = Instant::now();
                            if tally.count("connection", once(&self.address)).is_some() {
                                own.push(began.elapsed().as_micros() as u64);
                            }
                        }
                        latencies.lock().unwrap_or_else(PoisonError::into_inner).extend(own);
                    })
                })
                .collect();
            scope.spawn(|| {
                let mut said = Instant::now();
                while !ended.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(50));
                    if said.elapsed() >= REPORT {
                        said = Instant::now();
                        // Nobody reads any more: then nobody misses it.
                        let _ = say(&tally.json());
                    }
                }
            });
            for caller in callers {
                let _ = caller.join();
            }
            ended.store(true, Ordering::Relaxed);
        });
        let mut line = tally.json();
        line["ms"] = (started.elapsed().as_millis() as u64).into();
        line["latency"] = latency(latencies.into_inner().unwrap_or_else(PoisonError::into_inner));
        line["ended"] = true.into();
        say(&line)?;
        ensure!(line["failed"] == 0, "{} connections failed", line["failed"]);
        Ok(())
    }

    /// Waits for this one's turn; false when there are no more.
    fn may_go_on(&self, number: u64, started: Instant) -> bool {
        if self.connections > 0 && number >= self.connections {
            return false;
        }
        if self.rate > 0 {
            let due = started + Duration::from_secs_f64(number as f64 / self.rate as f64);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        self.seconds == 0 || started.elapsed() < Duration::from_secs(self.seconds)
    }
}

fn once(address: &SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"a short word")?;
    let mut heard = [0; 12];
    stream.read_exact(&mut heard)?;
    if &heard == b"a short word" { Ok(()) } else { Err(io::Error::other("the echo is not what was said")) }
}

/// Of latencies in microseconds.
pub(super) fn latency(mut all: Vec<u64>) -> Value {
    all.sort_unstable();
    let at = |share: f64| all.get((all.len() as f64 * share) as usize).or(all.last()).copied();
    json!({"p50_us": at(0.5), "p99_us": at(0.99), "p999_us": at(0.999), "max_us": all.last()})
}
