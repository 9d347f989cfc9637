//! Latency by wrk against nginx, throughput by iperf3. A first impression on a busy machine, not a benchmark.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::demo::stage::Stage;
use crate::demo::steps::{PATIENCE, Tell, WRK_TIMEOUT};

/// What was measured between two pods of different nodes.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// Requests per second on 16 kept-alive connections.
    requests: f64,
    /// Median latency of one request at a time, in microseconds.
    median: f64,
    /// 99th percentile of the same.
    p99: f64,
    /// New connections per second, one request each, on 16 at a time.
    connections: f64,
    /// One stream from client to server, in Gbit/s.
    gigabits: f64,
}

const SECONDS: &str = "2";

pub(super) fn run(stage: &mut Stage, tell: Tell) -> Result<String> {
    let plain = stage.plain_figures.context("nothing was measured while there was no mesh")?;
    tell("measuring with the mesh");
    let mesh = measure(stage)?;
    let memory = ["n1", "n2"].map(|node| stage.bed.agent(node).resident().map_or(0, |bytes| bytes >> 20));
    let rows = [
        row("one at a time, p50", plain.median, mesh.median, "µs", 0),
        row("one at a time, p99", plain.p99, mesh.p99, "µs", 0),
        row("16 kept alive", plain.requests, mesh.requests, "requests/s", 0),
        row("16, connection each", plain.connections, mesh.connections, "requests/s", 0),
        row("one stream", plain.gigabits, mesh.gigabits, "Gbit/s", 2),
    ];
    let head = format!("{:<21} {:>10} {:>10}", "", "no mesh", "mesh");
    let foot = format!("agents' resident memory: {} MB, {} MB", memory[0], memory[1]);
    Ok([&[head], &rows[..], &[foot]].concat().join("\n"))
}

/// Measures from the shop to web, by pod IP: without a mesh there is nothing that knows cluster IPs.
pub fn measure(stage: &Stage) -> Result<Figures> {
    let url = format!("http://{}/", stage.pod_socket("web", 80));
    let single = wrk(stage, &["-c1", "--latency", &url])?;
    let many = wrk(stage, &["-c16", &url])?;
    let each = wrk(stage, &["-c16", "-H", "Connection: close", &url])?;
    Ok(Figures {
        median: latency(&single, "50%")?,
        p99: latency(&single, "99%")?,
        requests: rate(&many)?,
        connections: rate(&each)?,
        gigabits: gigabits(stage)?,
    })
}

fn row(name: &str, plain: f64, mesh: f64, unit: &str, digits: usize) -> String {
    format!("{name:<21} {plain:>10.digits$} {mesh:>10.digits$} {unit}")
}

fn wrk(stage: &Stage, arguments: &[&str]) -> Result<String> {
    let fixed = ["wrk", "-t1", "-d", SECONDS, "--timeout", WRK_TIMEOUT];
    let finished = stage.bed.pod("shop").run(&[&fixed[..], arguments].concat(), PATIENCE)?;
    let said = finished.expect_ok("wrk")?;
    ensure!(!said.contains("Socket errors") && !said.contains("Non-2xx"), "wrk counted errors:\n{said}");
    Ok(said)
}

fn rate(said: &str) -> Result<f64> {
    let line = said.lines().find_map(|line| line.trim().strip_prefix("Requests/sec:"));
    line.and_then(|text| text.trim().parse().ok()).with_context(|| format!("wrk said no rate: {said}"))
}

/// A line such as `50%  123.00us` in microseconds.
fn latency(said: &str, percentile: &str) -> Result<f64> {
    let text = said.lines().find_map(|line| line.trim().strip_prefix(percentile)).map(str::trim);
    let units = [("us", 1.0), ("ms", 1e3), ("s", 1e6)];
    let microseconds = text.and_then(|text| {
        let (number, factor) = units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)))?;
        Some(number.parse::<f64>().ok()? * factor)
    });
    microseconds.with_context(|| format!("wrk said no {percentile} latency: {said}"))
}

fn gigabits(stage: &Stage) -> Result<f64> {
    const PORT: u16 = 5201;
    let web = stage.bed.pod("web");
    let mut server = web.spawn("iperf3-server", &["iperf3", "--server", "--one-off"])?;
    web.wait_listening(PORT)?;
    let ip = web.ips.ip(stage.family).to_string();
    let client = ["iperf3", "--client", &ip, "--time", SECONDS, "--json", "--connect-timeout", "20000"];
    let said = stage.bed.pod("shop").run(&client, PATIENCE)?.expect_ok("iperf3")?;
    let report: Value = serde_json::from_str(&said).context("reading iperf3's report")?;
    let bits = report["end"]["sum_received"]["bits_per_second"].as_f64();
    server.wait(PATIENCE)?;
    Ok(bits.with_context(|| format!("iperf3 said no rate: {said}"))? / 1e9)
}
