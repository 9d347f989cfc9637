//! A load generator for benchmarks: so many requests a second, whatever the answers take, or as many as there can be.
//!
//! At a fixed rate each request has a time at which it is due, and its latency is counted from then: a request that had
//! to wait for the one before it has waited (no coordinated omission).

mod http1;
mod http2;

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::num::NonZeroU64;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use super::say;
use super::short::latency;
use super::tally::{Tally, raise_descriptor_limit};

/// The requests.
#[derive(clap::Args)]
pub struct Load {
    /// A server whose answers are small
    address: SocketAddr,
    /// What to speak
    #[arg(long, value_enum)]
    protocol: Protocol,
    /// How many connections, each with one request at a time
    #[arg(long, default_value_t = 16)]
    connections: u64,
    /// Requests a second, all connections together; 0: as many as there can be
    #[arg(long, default_value_t = 0)]
    rate: u64,
    /// Seconds
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// A new connection for each request
    #[arg(long)]
    afresh: bool,
    /// What to ask for
    #[arg(long, default_value = "/")]
    path: String,
}

/// What is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// HTTP/1.1
    H1,
    /// HTTP/2 with prior knowledge
    H2,
    /// A gRPC call: HTTP/2, a message, trailers
    Grpc,
}

/// How long a connection may take to be made, and an answer to come.
const PATIENCE: Duration = Duration::from_secs(10);

/// One connection, one request at a time.
trait Caller: Sized {
    fn new(stream: TcpStream, request: &Request) -> io::Result<Self>;
    /// Sends one and reads the whole answer; another answer than 200 is an error.
    fn call(&mut self) -> io::Result<()>;
}

struct Request {
    authority: String,
    path: String,
    is_grpc: bool,
    /// The server is to close after its answer, as far as the protocol can ask for that.
    is_last: bool,
}

impl Load {
    /// Prints one line at the end: what went well, the errors, latencies. Fails if a request did.
    pub fn run(self) -> Result<()> {
        ensure!(self.connections > 0 && self.seconds > 0, "a load has connections and takes seconds");
        raise_descriptor_limit();
        let is_grpc = self.protocol == Protocol::Grpc;
        let (authority, path) = (self.address.to_string(), self.path.clone());
        let request = Request { authority, path, is_grpc, is_last: self.afresh };
        let (tally, latencies) = match self.protocol {
            Protocol::H1 => self.play::<http1::Connection>(&request)?,
            Protocol::H2 | Protocol::Grpc => self.play::<http2::Connection>(&request)?,
        };
        let mut line = tally.json();
        line["seconds"] = self.seconds.into();
        line["latency"] = latency(latencies);
        say(&line)?;
        ensure!(line["failed"] == 0, "{} requests failed: {}", line["failed"], line["errors"]);
        Ok(())
    }

    fn play<C: Caller>(&self, request: &Request) -> Result<(Tally, Vec<u64>)> {
        let (tally, latencies) = (Tally::default(), Mutex::new(Vec::new()));
        // Time for all threads to be there.
        let begin = Instant::now() + Duration::from_millis(100);
        std::thread::scope(|scope| {
            for number in 0..self.connections {
                let (tally, latencies) = (&tally, &latencies);
                let thread = std::thread::Builder::new().stack_size(256 << 10);
                thread.spawn_scoped(scope, move || {
                    let own = self.play_one::<C>(request, number, begin, tally);
                    latencies.lock().unwrap_or_else(PoisonError::into_inner).extend(own);
                })?;
            }
            anyhow::Ok(())
        })
        .context("starting a thread")?;
        Ok((tally, latencies.into_inner().unwrap_or_else(PoisonError::into_inner)))
    }

    /// One connection after another, until the time is over; latencies in microseconds.
    fn play_one<C: Caller>(&self, request: &Request, number: u64, begin: Instant, tally: &Tally) -> Vec<u64> {
        // A sleep of this thread ends when it is over, not 50 µs later.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
        let end = begin + Duration::from_secs(self.seconds);
        let (mut latencies, mut done) = (Vec::new(), 0);
        let mut kept = if self.afresh { None } else { tally.count_errors("connect", self.open::<C>(request)) };
        std::thread::sleep(begin.saturating_duration_since(Instant::now()));
        while Instant::now() < end {
            let due = self.due(begin, number, done);
            if due >= end {
                break;
            }
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let since = if self.rate > 0 { due } else { Instant::now() };
            done += 1;
            let mut connection = match kept.take() {
                Some(connection) => connection,
                None => match tally.count_errors("connect", self.open::<C>(request)) {
                    Some(connection) => connection,
                    None => continue,
                },
            };
            if tally.count("request", connection.call()).is_some() {
                latencies.push(since.elapsed().as_micros() as u64);
                kept = Some(connection).filter(|_| !self.afresh);
            }
        }
        latencies
    }

    fn due(&self, begin: Instant, number: u64, done: u64) -> Instant {
        if self.rate == 0 {
            return begin;
        }
        begin + Duration::from_secs_f64((done * self.connections + number) as f64 / self.rate as f64)
    }

    fn open<C: Caller>(&self, request: &Request) -> io::Result<C> {
        let stream = TcpStream::connect_timeout(&self.address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        C::new(stream, request)
    }
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_string())
}
