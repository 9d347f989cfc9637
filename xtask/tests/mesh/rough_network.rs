//! Links that are narrow, lose packets, mix them up, or fall silent.

use std::time::{Duration, Instant};

use anyhow::Result;
use xtask::rings::can_use_kernel;
use xtask::testbed::{AgentOptions, Family, Impairment, Links, PodSpec, Process, eventually};

use crate::bulk::{self, transfer};
use crate::pair::{PORT, Pair, lines};

const LONG: Duration = Duration::from_secs(60);

/// A mesh over such links; None if this machine cannot.
fn over(test: &str, links: Links) -> Result<Option<Pair>> {
    if !can_use_kernel(test) {
        return Ok(None);
    }
    let mut pair = Pair::build_over(links)?;
    pair.bed.start_agents(&AgentOptions::default())?;
    pair.with_mesh = true;
    Ok(Some(pair))
}

/// An overlay network's pods; and pods that have to find out that the way is narrower than their interface.
#[test]
fn narrow_links_carry_everything() -> Result<()> {
    for (mtu, pod_mtu) in [(1280, 1280), (1280, 1500), (1500, 1280)] {
        let links = Links { mtu, pod_mtu, ..Links::default() };
        let Some(pair) = over("MTU", links)? else { return Ok(()) };
        let _server = bulk::server(&pair)?;
        for family in Family::BOTH {
            let said = transfer(&pair, family, &megabytes(32)).map_err(|error| pair.bed.explain(error))?;
            println!("{family}, MTU {mtu} between nodes and {pod_mtu} in pods: {said}");
        }
    }
    Ok(())
}

/// Everything arrives whole, and a session that shares the tunnel does not break: lost packets are no death.
#[test]
fn lost_and_late_packets_cost_time_alone() -> Result<()> {
    for (per_mille, size) in [(10, 32), (50, 8)] {
        let impairment = Impairment { lost_per_mille: per_mille, late_per_mille: per_mille };
        let links = Links { impairment: Some(impairment), ..Links::default() };
        let Some(pair) = over("packet loss", links)? else { return Ok(()) };
        let _server = bulk::server(&pair)?;
        let _echo = echo(&pair, "server")?;
        for family in Family::BOTH {
            let mut session = session(&pair, "client", "server", family)?;
            let said = transfer(&pair, family, &megabytes(size)).map_err(|error| pair.bed.explain(error))?;
            println!("{family}, {per_mille} of 1000 lost and {per_mille} late: {said}");
            session.check_running()?;
        }
    }
    Ok(())
}

/// The cable between the nodes is pulled: the application hears of it within seconds, what does not cross it goes
/// on, and with the cable plugged in again everything does.
#[test]
fn a_peer_that_falls_silent_is_noticed() -> Result<()> {
    // Pings go unanswered this long at most, and TCP's own patience with sent data is longer by far.
    const NOTICED: Duration = Duration::from_secs(60);
    let links = Links { impairment: Some(Impairment::default()), ..Links::default() };
    let Some(mut pair) = over("a silent peer", links)? else { return Ok(()) };
    pair.bed.add_pod(PodSpec::new("pair", "neighbour", "n1"))?;
    let (_far, _near) = (echo(&pair, "server")?, echo(&pair, "neighbour")?);
    for family in Family::BOTH {
        let mut busy = session(&pair, "client", "server", family)?;
        let mut near = session(&pair, "client", "neighbour", family)?;
        let pulled = Instant::now();
        pair.bed.pull_cable("n1", "n2")?;
        eventually(NOTICED, "the session to break", || Ok((!busy.is_running()).then_some(())))
            .map_err(|error| pair.bed.explain(error))?;
        println!("{family}: noticed after {:.1} s: {}", pulled.elapsed().as_secs_f32(), last(&busy));
        near.check_running()?;
        pair.bed.plug_cable("n1", "n2")?;
        let again = Instant::now();
        eventually(LONG, "the peer to be reached again", || {
            let address = pair.bed.pod("server").ips.socket(family, ECHO).to_string();
            let answer = pair.bed.pod("client").probe(&["connect", &address, "send:again", "read:5"])?;
            answer.expect_ok("a connection").map(Some)
        })?;
        println!("{family}: reached again after {:.1} s", again.elapsed().as_secs_f32());
        near.check_running()?;
        near.kill()?;
    }
    Ok(())
}

/// Where echo servers listen.
const ECHO: u16 = PORT + 1;

fn echo(pair: &Pair, pod: &str) -> Result<Process> {
    let server = pair.bed.pod(pod).spawn_probe("echo", &["echo", &ECHO.to_string()])?;
    pair.bed.pod(pod).wait_listening(ECHO)?;
    Ok(server)
}

/// A session that is under way.
fn session(pair: &Pair, from: &str, to: &str, family: Family) -> Result<Process> {
    let address = pair.bed.pod(to).ips.socket(family, ECHO).to_string();
    let mut session = pair.bed.pod(from).spawn_probe(&format!("session-{to}"), &["session", &address])?;
    eventually(LONG, "the session to begin", || {
        session.check_running()?;
        Ok(session.log().contains("rounds").then_some(()))
    })?;
    Ok(session)
}

fn last(process: &Process) -> String {
    lines(&process.log()).last().map_or_else(|| process.log(), ToString::to_string)
}

fn megabytes(size: u64) -> [String; 2] {
    let bytes = size << 20;
    [format!("--up={bytes}"), format!("--down={bytes}")]
}
