//! `xtask __probe`: one end of a test connection, with the moves that common tools do not offer.
//!
//! Both ends follow a script of steps and print one JSON line per step, so a test reads as two short lists: see
//! [`script::Step`].

mod bulk;
mod echo;
mod hold;
pub mod load;
mod redis;
pub mod script;
mod session;
mod short;
mod tally;

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use script::{Step, error_name, follow};

/// What to do.
#[derive(clap::Subcommand)]
pub enum Probe {
    /// Connect, then follow a script
    Connect {
        /// Where to
        address: SocketAddr,
        /// Seconds to wait for the connection
        #[arg(long, default_value_t = 5)]
        timeout: u64,
        /// What to do then
        steps: Vec<Step>,
    },
    /// Listen on a TCP port of both families and follow the script on every connection
    Listen {
        /// The port
        port: u16,
        /// What to do on each connection
        steps: Vec<Step>,
    },
    /// Answer UDP datagrams with themselves
    UdpEcho {
        /// The port
        port: u16,
    },
    /// Send one UDP datagram and print the answer
    UdpSend {
        /// Where to
        address: SocketAddr,
        /// What to send
        text: String,
    },
    /// Keep one Redis connection busy and say when it breaks
    Redis(redis::Session),
    /// Keep one connection to an echo server busy and say when it breaks
    Session(session::Session),
    /// Answer thousands of connections
    Echo(echo::Echo),
    /// Open many connections, hold them, use them again
    Hold(hold::Hold),
    /// Make requests at a rate, or as many as there can be
    Load(load::Load),
    /// Make many short connections
    Short(short::Short),
    /// Serve large transfers
    BulkServer(bulk::BulkServer),
    /// Make large transfers and check every byte
    Bulk(bulk::Bulk),
}

impl Probe {
    /// Fails if a step did.
    pub fn run(self) -> Result<()> {
        match self {
            Probe::Connect { address, timeout, steps } => connect(address, Duration::from_secs(timeout), &steps),
            Probe::Listen { port, steps } => listen(port, &steps),
            Probe::UdpEcho { port } => udp_echo(port),
            Probe::UdpSend { address, text } => udp_send(address, &text),
            Probe::Redis(session) => session.run(),
            Probe::Session(session) => session.run(),
            Probe::Echo(echo) => echo.run(),
            Probe::Hold(hold) => hold.run(),
            Probe::Load(load) => load.run(),
            Probe::Short(short) => short.run(),
            Probe::BulkServer(server) => server.run(),
            Probe::Bulk(bulk) => bulk.run(),
        }
    }
}

fn connect(address: SocketAddr, timeout: Duration, steps: &[Step]) -> Result<()> {
    let started = Instant::now();
    let connected = TcpStream::connect_timeout(&address, timeout);
    let milliseconds = started.elapsed().as_millis() as u64;
    match connected {
        Ok(stream) => {
            say(&json!({
                "step": "connect",
                "local": stream.local_addr()?.to_string(),
                "peer": stream.peer_addr()?.to_string(),
                "ms": milliseconds,
            }))?;
            follow(stream, steps, &Value::Null)
        }
        Err(error) => {
            say(&json!({"step": "connect", "error": error_name(&error), "ms": milliseconds}))?;
            Err(error).with_context(|| format!("connecting to {address}"))
        }
    }
}

fn listen(port: u16, steps: &[Step]) -> Result<()> {
    // Linux gives an IPv6 listener on :: the IPv4 connections as well.
    let listener = TcpListener::bind(("::", port)).with_context(|| format!("listening on port {port}"))?;
    loop {
        let (stream, peer) = listener.accept()?;
        let steps = steps.to_vec();
        std::thread::spawn(move || {
            let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port()).to_string();
            // A step that failed has been printed; the listener goes on.
            let _ = say(&json!({"step": "accept", "peer": peer}));
            let _ = follow(stream, &steps, &Value::from(peer));
        });
    }
}

fn udp_echo(port: u16) -> Result<()> {
    let socket = UdpSocket::bind(("::", port))?;
    let mut datagram = [0; 2048];
    loop {
        let (length, peer) = socket.recv_from(&mut datagram)?;
        say(&json!({"step": "datagram", "peer": peer.ip().to_canonical().to_string(), "bytes": length}))?;
        socket.send_to(&datagram[..length], peer)?;
    }
}

fn udp_send(address: SocketAddr, text: &str) -> Result<()> {
    let socket = UdpSocket::bind(if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.set_read_timeout(Some(Duration::from_secs(3)))?;
    socket.send_to(text.as_bytes(), address)?;
    let mut answer = [0; 2048];
    let (length, peer) = socket.recv_from(&mut answer).context("waiting for the answer")?;
    say(&json!({"text": String::from_utf8_lossy(&answer[..length]), "peer": peer.to_string()}))
}

fn say(value: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value}")?;
    Ok(out.flush()?)
}
