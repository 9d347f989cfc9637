//! Agents that are killed while traffic runs.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask::testbed::{AgentOptions, Family, Recording, eventually, map_entries};

use crate::pair::{PORT, lines, meshed};

const PATIENCE: Duration = Duration::from_secs(60);

/// What the short connections say: it must never be seen between the nodes.
const WORD: &str = "a short word";

/// Connections at a time, times five kills of an agent.
const UNDER_WAY: usize = 2 * 8 * 5;

/// Ten kills, on either side in turn, under new and long connections in both families. After each traffic flows again,
/// and in the end nothing has crossed in plain and no record or program is left over.
#[test]
fn agents_killed_ten_times_under_load() -> Result<()> {
    let Some(mut pair) = meshed("kill -9 under load")? else { return Ok(()) };
    if !pair.with_mesh {
        return Ok(());
    }
    let server = pair.bed.pod("server").spawn_probe("echo", &["echo", &PORT.to_string()])?;
    pair.bed.pod("server").wait_listening(PORT)?;
    let links = pinned(&pair.bed.agent("n1").pins().join("v1"))? + pinned(&pair.bed.agent("n2").pins().join("v1"))?;
    let node = pair.bed.node("n1");
    let recording = Recording::start(&node.tool_place(), &node.link_to("n2"), &pair.bed.dir().join("kills.pcap"))?;
    let mut load = Vec::new();
    for family in Family::BOTH {
        let address = pair.server(family, PORT).to_string();
        let argument = ["short", &address, "--seconds=600", "--at-once=8", "--rate=200"];
        load.push(pair.bed.pod("client").spawn_probe(&format!("short-{family}"), &argument)?);
    }
    for kill in 0..10 {
        let node = ["n1", "n2"][kill % 2];
        std::thread::sleep(Duration::from_millis(500));
        pair.bed.agent_mut(node).kill()?;
        pair.bed.start_agent(node, &AgentOptions::default())?;
        for load in &mut load {
            let before = done(&load.log());
            eventually(PATIENCE, "connections to succeed again", || {
                load.check_running()?;
                Ok((done(&load.log()) > before + 50).then_some(()))
            })
            .with_context(|| format!("after kill {}, of the agent of {node}", kill + 1))
            .map_err(|error| pair.bed.explain(error))?;
        }
    }
    for load in &mut load {
        println!("{}", lines(&load.log()).last().map(ToString::to_string).unwrap_or_default());
        load.kill()?;
    }
    let packets = recording.stop()?;
    ensure!(packets.containing(WORD) == 0, "{} packets carried plaintext", packets.containing(WORD));
    ensure!(!packets.tcp().is_empty(), "the recording has nothing, so it is no witness");
    drop(server);
    eventually(PATIENCE, "as many pins as before", || {
        let now = pinned(&pair.bed.agent("n1").pins().join("v1"))? + pinned(&pair.bed.agent("n2").pins().join("v1"))?;
        ensure!(now == links, "{links} pins became {now}");
        Ok(Some(()))
    })?;
    for node in ["n1", "n2"] {
        let agent = pair.bed.agent(node);
        let maps = agent.pins().join("v1/maps");
        eventually(PATIENCE, &format!("the records of {node} to go"), || {
            // Tunnels stay open for a while, each with the record of its own dial.
            let tunnels = agent.get_json("/config_dump")?["tunnels"].as_array().map_or(0, Vec::len);
            let left = ["DIALS", "CLIENTS", "FILED"].map(|map| map_entries(&maps.join(map)));
            let [dials, clients, filed] = left;
            let left = [dials?, clients?, filed?];
            // A record that an agent was killed with in its hands stays for ten minutes. These cannot be more than
            // connections were under way.
            let are_few = left[0] <= UNDER_WAY && left[1] <= UNDER_WAY;
            ensure!(are_few && left[2] <= tunnels + UNDER_WAY, "{left:?} with {tunnels} tunnels");
            Ok(Some(()))
        })?;
    }
    Ok(())
}

fn done(log: &str) -> u64 {
    lines(log).iter().rev().find_map(|line| line["done"].as_u64()).unwrap_or(0)
}

/// How many programs' links and maps are pinned.
fn pinned(directory: &std::path::Path) -> Result<usize> {
    let mut count = 0;
    for entry in std::fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?.flatten() {
        count += if entry.file_type()?.is_dir() { pinned(&entry.path())? } else { 1 };
    }
    Ok(count)
}
