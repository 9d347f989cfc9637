//! One sample of one kind of load, made by the program that is best at it.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::stage::{BYTES, GRPC, HTTP, HTTP2, IPERF};
use crate::probe::load::Protocol;
use crate::testbed::Pod;

/// What is asked of the path between two pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// So many requests a second over 16 connections, each due at its time.
    Rate(u64, Protocol),
    /// As many requests as 32 connections carry, one at a time each.
    Max32(Protocol),
    /// A connection for each request, 16 at a time.
    NewConn16(Protocol),
    /// So many streams of bytes.
    Bulk(u32),
    /// Large answers, one after the other, over one connection.
    Large(Protocol),
}

/// What a sample came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Done {
    /// Requests, connections or bytes.
    pub units: f64,
    /// How long it took.
    pub seconds: f64,
    /// Microseconds.
    pub p50: Option<f64>,
    /// Microseconds.
    pub p99: Option<f64>,
    /// Microseconds.
    pub p999: Option<f64>,
}

const RATE_CONNECTIONS: u64 = 16;
const MAX_CONNECTIONS: u64 = 32;
const AT_ONCE: u64 = 16;

impl Load {
    /// The part of a row's id.
    pub fn name(self) -> String {
        match self {
            Self::Rate(rate, _) => format!("rate{rate}"),
            Self::Max32(_) => format!("max{MAX_CONNECTIONS}"),
            Self::NewConn16(_) => format!("newconn{AT_ONCE}"),
            Self::Bulk(streams) => format!("bulk{streams}"),
            Self::Large(_) => "bulk1".to_string(),
        }
    }

    /// The port of a server that it goes to; `bytes`: where the mesh does not look into it.
    pub fn port(self, bytes: bool) -> u16 {
        match self {
            Self::Bulk(_) => IPERF,
            Self::Rate(_, protocol) | Self::Max32(protocol) | Self::NewConn16(protocol) | Self::Large(protocol) => {
                match protocol {
                    Protocol::H1 if bytes => BYTES,
                    Protocol::H1 => HTTP,
                    Protocol::H2 => HTTP2,
                    Protocol::Grpc => GRPC,
                }
            }
        }
    }

    /// Runs it from a pod. An error if a single request fails.
    pub fn run(self, pod: &Pod, to: SocketAddr, path: &str, seconds: u64) -> Result<Done> {
        match self {
            Self::Rate(rate, protocol) => {
                generate(pod, to, path, protocol, seconds, &["--rate", &rate.to_string()], RATE_CONNECTIONS)
            }
            Self::NewConn16(protocol) => generate(pod, to, path, protocol, seconds, &["--afresh"], AT_ONCE),
            Self::Max32(Protocol::H1) => wrk(pod, to, path, MAX_CONNECTIONS, seconds).map(|(done, _)| done),
            Self::Max32(protocol) => h2load(pod, to, path, protocol, MAX_CONNECTIONS, seconds).map(|(done, _)| done),
            Self::Large(protocol) => {
                let (done, bytes) = match protocol {
                    Protocol::H1 => wrk(pod, to, path, 1, seconds)?,
                    _ => h2load(pod, to, path, protocol, 1, seconds)?,
                };
                Ok(Done { units: bytes, seconds: done.seconds, ..Done::default() })
            }
            Self::Bulk(streams) => iperf(pod, to, streams, seconds),
        }
    }
}

fn patience(seconds: u64) -> Duration {
    Duration::from_secs(seconds + 20)
}

fn generate(
    pod: &Pod,
    to: SocketAddr,
    path: &str,
    protocol: Protocol,
    seconds: u64,
    more: &[&str],
    connections: u64,
) -> Result<Done> {
    let protocol = match protocol {
        Protocol::H1 => "h1",
        Protocol::H2 => "h2",
        Protocol::Grpc => "grpc",
    };
    let (to, seconds_text, connections) = (to.to_string(), seconds.to_string(), connections.to_string());
    let load = ["load", &to, "--protocol", protocol, "--path", path, "--seconds", &seconds_text];
    let arguments = [&load[..], &["--connections", &connections], more].concat();
    let said = pod.probe_for(&arguments, patience(seconds))?.expect_ok("the load generator")?;
    let said: Value = serde_json::from_str(said.trim()).with_context(|| said.clone())?;
    let at = |name: &str| said["latency"][name].as_f64();
    Ok(Done {
        units: said["done"].as_f64().context("no count")?,
        seconds: seconds as f64,
        p50: at("p50_us"),
        p99: at("p99_us"),
        p999: at("p999_us"),
    })
}

/// What was done, and the bytes of it.
fn wrk(pod: &Pod, to: SocketAddr, path: &str, connections: u64, seconds: u64) -> Result<(Done, f64)> {
    let script = pod.dir.join("wrk.lua");
    std::fs::write(&script, include_str!("wrk.lua"))?;
    let (connections, time, url) = (connections.to_string(), format!("{seconds}s"), format!("http://{to}{path}"));
    let script = script.to_string_lossy();
    let argv = ["wrk", "-t1", "-c", &connections, "-d", &time, "-s", &script, &url];
    let said = pod.run(&argv, patience(seconds))?.expect_ok("wrk")?;
    let line: Value =
        said.lines().rev().find_map(|line| serde_json::from_str(line).ok()).context("wrk said nothing")?;
    ensure!(line["failed"] == 0, "wrk: {line}");
    let number = |name: &str| line[name].as_f64();
    let (units, seconds) = (number("done").context("no count")?, number("seconds").context("no time")?);
    let done = Done { units, seconds, p50: number("p50_us"), p99: number("p99_us"), p999: None };
    Ok((done, number("bytes").context("no bytes")?))
}

/// What was done, and the bytes of it.
fn h2load(
    pod: &Pod,
    to: SocketAddr,
    path: &str,
    protocol: Protocol,
    connections: u64,
    seconds: u64,
) -> Result<(Done, f64)> {
    let body = pod.dir.join("message");
    std::fs::write(&body, [0, 0, 0, 0, 3, 10, 1, b'x'])?;
    let (connections, time, url) = (connections.to_string(), seconds.to_string(), format!("http://{to}{path}"));
    let body = body.to_string_lossy();
    let call = ["-d", &body, "-H", "content-type: application/grpc", "-H", "te: trailers"];
    let load = ["h2load", "-t1", "-m1", "-c", &connections, "-D", &time];
    let call: &[&str] = if protocol == Protocol::Grpc { &call } else { &[] };
    let said = pod.run(&[&load[..], call, &[&url]].concat(), patience(seconds))?.expect_ok("h2load")?;
    let (done, failed) = h2load_counts(&said).with_context(|| format!("h2load said: {said}"))?;
    ensure!(done > 0.0 && failed == 0.0, "h2load: {said}");
    let bytes = h2load_bytes(&said).with_context(|| format!("h2load said: {said}"))?;
    Ok((Done { units: done, seconds: seconds as f64, ..Done::default() }, bytes))
}

/// `traffic: 66.94MB (70188032) total, 1.02KB (1047) headers (space savings 95.35%), 66.90MB (70150144) data`: the last.
fn h2load_bytes(said: &str) -> Option<f64> {
    let line = said.lines().find_map(|line| line.strip_prefix("traffic: ")?.strip_suffix(") data"))?;
    line.rsplit('(').next()?.parse().ok()
}

/// `requests: 10 total, 10 started, 10 done, 10 succeeded, 0 failed, 0 errored, 0 timeout`: succeeded, and not.
fn h2load_counts(said: &str) -> Option<(f64, f64)> {
    let line = said.lines().find_map(|line| line.strip_prefix("requests: "))?;
    let count = |word: &str| {
        let part = line.split(", ").find(|part| part.ends_with(word))?;
        part.split(' ').next()?.parse::<f64>().ok()
    };
    Some((count("succeeded")?, count("failed")? + count("errored")? + count("timeout")?))
}

fn iperf(pod: &Pod, to: SocketAddr, streams: u32, seconds: u64) -> Result<Done> {
    let argv = iperf_client(to, streams, seconds);
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    iperf_result(&pod.run(&argv, patience(seconds))?.expect_ok("iperf3")?)
}

/// The command that sends so many streams of bytes.
pub fn iperf_client(to: SocketAddr, streams: u32, seconds: u64) -> Vec<String> {
    let (ip, port) = (to.ip(), to.port());
    let line = format!("iperf3 -J -c {ip} -p {port} -P {streams} -t {seconds}");
    line.split(' ').map(str::to_string).collect()
}

/// What it says of them at its end.
pub fn iperf_result(said: &str) -> Result<Done> {
    let said: Value = serde_json::from_str(said).context("iperf3's JSON")?;
    let sum = &said["end"]["sum_received"];
    let (bytes, seconds) = (sum["bytes"].as_f64(), sum["seconds"].as_f64());
    Ok(Done { units: bytes.context("no bytes")?, seconds: seconds.context("no time")?, ..Done::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h2load_says_what_failed() {
        let said = "finished in 1.00s\nrequests: 12 total, 12 started, 11 done, 10 succeeded, 1 failed, 1 errored, \
                    0 timeout\nstatus codes: …";
        assert_eq!(h2load_counts(said), Some((10.0, 2.0)));
        assert_eq!(h2load_counts("nothing"), None);
        let said =
            "traffic: 66.94MB (70188032) total, 1.02KB (1047) headers (space savings 95.35%), 66.90MB (70150144) data";
        assert_eq!(h2load_bytes(said), Some(70_150_144.0));
    }
}
