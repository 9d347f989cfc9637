//! What a tunnel costs to make: TCP, mutual TLS 1.3 and the first words of HTTP/2, both agents together.
//!
//! Its socket is taken away before each connection, which needs a new one then. As many connections for which nothing is
//! taken away are what they, and agents with little to do, cost by themselves.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::meter::{Meter, Used};
use super::report::{self, Figure, Row};
use super::stage::{ECHO, Stage, Way};
use crate::testbed::Pod;

/// The row.
const ID: &str = "handshake.agents_cpu_us";
/// What an agent counts of the tunnels that it made or could not make.
const MADE: &str = "nodemesh_tunnel_establishments_total";
/// The sockets of a pod's tunnels to others.
const TUNNELS: &str = "dst :15008";
/// Tunnels of a sample for each second that it may take: a connection and what cuts it are a process each.
const EACH_SECOND: u64 = 25;

/// The row, which is printed; none where it is not wanted.
pub fn measure(stage: &Stage, meter: &Meter, samples: u64, seconds: u64, only: &str) -> Result<Option<Row>> {
    if !ID.contains(only) {
        return Ok(None);
    }
    let rounds = seconds * EACH_SECOND;
    let mut figure = Figure::default();
    for _ in 0..samples {
        let (warm, few) = sample(stage, meter, rounds, false)?;
        let (cold, many) = sample(stage, meter, rounds, true)?;
        let tunnels = many - few;
        ensure!(tunnels * 2.0 > rounds as f64, "{many} tunnels were made where {few} are without, of {rounds}");
        figure.add(Way::Mesh, (cold.agents - warm.agents) * 1e6 / tunnels, cold.others.max(warm.others));
    }
    let row = figure.row(ID.to_string(), "µs");
    println!("{}", report::line(&row));
    Ok(Some(row))
}

/// So many connections one after the other, each by a tunnel of its own or all by those of their workers; and how many
/// tunnels were made for them.
fn sample(stage: &Stage, meter: &Meter, rounds: u64, is_cold: bool) -> Result<(Used, f64)> {
    let made = || stage.bed.agent("n1").metric_sum(MADE);
    let before = made()?;
    let ((), used) = meter.during(|| {
        (0..rounds).try_for_each(|_| {
            if is_cold {
                cut(stage.caller(Way::Mesh))?;
            }
            connect(stage)
        })
    })?;
    Ok((used, made()? - before))
}

fn connect(stage: &Stage) -> Result<()> {
    let echo = stage.address(Way::Mesh, "cross", ECHO).to_string();
    stage.caller(Way::Mesh).probe_for(&["connect", &echo], Duration::from_secs(10))?.expect_ok("a connection").map(drop)
}

/// Takes the sockets of all tunnels away, which both ends see at once.
fn cut(caller: &Pod) -> Result<()> {
    let output = caller.netns.within(|| Command::new("ss").args(["-K", "-H", "-t"]).arg(TUNNELS).output())?;
    let output = output.context("starting ss, of iproute2")?;
    ensure!(output.status.success(), "ss: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
