//! Many connections: at once, one after another, and held in silence.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::testbed::{Family, Finished, Process};

use crate::pair::{PORT, Pair, in_both_families, lines, meshed};

/// A crowd on a busy machine.
const LONG: Duration = Duration::from_secs(300);

#[test]
fn two_thousand_connections_at_once_are_all_answered() -> Result<()> {
    in_both_families("2000 at once", |pair, family| {
        let _server = echo_server(pair)?;
        let said = hold(pair, family, &["--connections=2000", "--at-once=1000"])?;
        println!("{family}: {said}");
        said.expect_ok("2000 at once").map(drop)
    })
}

/// As many as the machine's limit of 20 000 descriptors for each process allows with room to spare: a connection is one
/// descriptor in each agent and one in each application.
#[test]
fn fifteen_thousand_connections_held_idle_still_answer() -> Result<()> {
    const CONNECTIONS: usize = 15_000;
    let Some(pair) = meshed("15 000 idle")? else { return Ok(()) };
    let _server = echo_server(&pair)?;
    let before = agents(&pair)?;
    // Half of them in each family, from two processes.
    let (address4, address6) = (pair.server(Family::V4, PORT).to_string(), pair.server(Family::V6, PORT).to_string());
    let half = format!("--connections={}", CONNECTIONS / 2);
    let mut held = Vec::new();
    for (name, address) in [("held-4", &address4), ("held-6", &address6)] {
        let arguments = ["hold", address, &half, "--at-once=64", "--idle=12", "--rounds=1"];
        held.push(pair.bed.pod("client").spawn_probe(name, &arguments)?);
    }
    for process in &mut held {
        xtask::testbed::eventually(LONG, "all to be open", || {
            process.check_running()?;
            Ok(lines(&process.log()).iter().any(|line| !line["opened"].is_null()).then_some(()))
        })
        .map_err(|error| pair.bed.explain(error))?;
    }
    let with_all = agents(&pair)?;
    for (before, with_all) in before.iter().zip(&with_all) {
        println!("{CONNECTIONS} idle: {before} → {with_all}");
    }
    for process in &mut held {
        let status = process.wait(LONG)?;
        println!("{}", process.log().trim());
        ensure!(status.success(), "{}", pair.bed.explain(anyhow::anyhow!("{}", process.log())));
    }
    if pair.with_mesh {
        for (before, with_all) in before.iter().zip(&with_all) {
            let each = (with_all.resident_bytes.saturating_sub(before.resident_bytes)) / CONNECTIONS as u64;
            println!("{} bytes of the agent of {} for each idle connection", each, with_all.node);
            ensure!(each < 64 << 10, "{each} bytes for each idle connection");
        }
    }
    Ok(())
}

/// As long as the short ones take.
const OLDER: Duration = Duration::from_secs(20);

/// The client closes first, so its ports stay in TIME_WAIT: with addresses of their own they never run out. The number is
/// CI's; `cargo xtask soak` makes 300 000. One that was there before them still has the peer that it dialled.
#[test]
fn short_connections_never_run_out_of_ports() -> Result<()> {
    in_both_families("short connections", |pair, family| {
        let _server = echo_server(pair)?;
        let address = pair.server(family, PORT).to_string();
        let argument = ["hold", &address, "--connections=2", &format!("--idle={}", OLDER.as_secs())];
        let mut older = pair.bed.pod("client").spawn_probe("older", &argument)?;
        let argument = ["short", &address, "--connections=30000", "--at-once=16"];
        let mut short = pair.bed.pod("client").spawn_probe("short", &argument)?;
        let status = short.wait(LONG)?;
        let said = lines(&short.log());
        println!("{family}: {}", said.last().unwrap_or(&Value::Null));
        ensure!(status.success(), "{}", short.log());
        let status = older.wait(LONG)?;
        ensure!(status.success(), "{}", older.log());
        Ok(())
    })
}

fn echo_server(pair: &Pair) -> Result<Process> {
    let server = pair.bed.pod("server").spawn_probe("echo", &["echo", &PORT.to_string()])?;
    pair.bed.pod("server").wait_listening(PORT)?;
    Ok(server)
}

fn hold(pair: &Pair, family: Family, arguments: &[&str]) -> Result<Finished> {
    let address = pair.server(family, PORT).to_string();
    pair.bed.pod("client").probe_for(&[&["hold", &address][..], arguments].concat(), LONG)
}

/// What an agent takes.
struct Taken {
    node: String,
    resident_bytes: u64,
    descriptors: usize,
}

impl std::fmt::Display for Taken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { node, resident_bytes, descriptors } = self;
        write!(f, "{node} {} MiB, {descriptors} descriptors", resident_bytes >> 20)
    }
}

fn agents(pair: &Pair) -> Result<Vec<Taken>> {
    let taken = |agent: &xtask::testbed::Agent| {
        Ok(Taken {
            node: agent.node.clone(),
            resident_bytes: resident_bytes(agent.pid())?,
            descriptors: std::fs::read_dir(format!("/proc/{}/fd", agent.pid()))?.count(),
        })
    };
    pair.bed.agents().map(taken).collect()
}

/// What a process has in memory.
pub fn resident_bytes(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kilobytes: u64 = line.split_whitespace().next().context("no number")?.parse()?;
    Ok(kilobytes << 10)
}
