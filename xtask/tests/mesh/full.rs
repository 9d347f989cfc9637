//! What the kernel side holds is full: the maps of connections, and the ring that tells of refusals.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::demo::stage::marker;
use xtask::testbed::{AgentOptions, Family, Recording, eventually, map_entries};

use crate::kernel::bpftool;
use crate::pair::{PORT, Pair};
use crate::reach::outcome;

const PATIENCE: Duration = Duration::from_secs(30);
const PYTHON: &str = "/usr/bin/python3";

/// The smallest size that the agent takes.
const ENTRIES: usize = 1024;

/// (the node whose map is full, the map, outcomes of which one must be counted then)
const FULL: [(&str, &str, &[&str]); 4] = [
    // Full of what no pod's share explains.
    ("n1", "DIALS", &["connect_map_full"]),
    // The tunnel's own SYN meets the guard.
    ("n1", "FILED", &["dial_not_filed", "guard_syn_unfiled"]),
    // The SYN to the application meets the lookup: it comes from the agent's range, and the agent has not filed it.
    ("n2", "FILED", &["dial_not_filed", "lookup_forged"]),
    // The application could not be told who calls: it is not dialled.
    ("n2", "CLIENTS", &[]),
];

#[test]
fn maps_that_are_full_refuse_and_count() -> Result<()> {
    if !xtask::rings::can_use_kernel("full maps") {
        return Ok(());
    }
    let options = AgentOptions::with([format!("--map-connections={ENTRIES}")]);
    let mut pair = Pair::build()?;
    pair.bed.start_agents(&options)?;
    pair.with_mesh = true;
    let _listener = pair.listen(&["echo"])?;
    let marker = marker("full")?;
    let (said, heard) = (format!("send:{marker}"), format!("read:{}", marker.len()));
    let node = pair.bed.node("n1");
    let recording = Recording::start(&node.tool_place(), &node.link_to("n2"), &pair.bed.dir().join("full.pcap"))?;
    for (node, map, counted) in FULL {
        for family in Family::BOTH {
            let what = format!("{map} of {node}, {family}");
            let pin = pair.bed.agent(node).pins().join("v1/maps").join(map);
            let file = pair.bed.dir().join("full.batch");
            eventually(PATIENCE, "the map to be empty", || Ok((map_entries(&pin)? == 0).then_some(())))?;
            fill(&pin, ENTRIES, &file).with_context(|| what.clone())?;
            let before = counted.iter().map(|name| outcome(&pair.bed, node, name)).collect::<Result<Vec<_>>>()?;
            let refused = pair.connect(family, &[&said, &heard])?;
            ensure!(!refused.ok(), "{what}: a connection went through: {refused}");
            for (name, before) in counted.iter().zip(before) {
                ensure!(outcome(&pair.bed, node, name)? > before, "{what}: {name} was not counted");
            }
            let told = |line: &Value| line["result"] != "ok" && line["reason"].is_string();
            eventually(PATIENCE, "the refusal to be told", || {
                let agent = pair.bed.agent(node);
                // What the kernel refuses at connect() is told here alone.
                let denials = agent.get_json("/denials")?;
                let denials = denials.as_array().into_iter().flatten();
                Ok(agent.access_log().iter().chain(denials).any(told).then_some(()))
            })?;
            empty(&pin, ENTRIES, &file).with_context(|| what.clone())?;
            // An endpoint that could not be reached is tried again in its time.
            eventually(PATIENCE, "room for a connection", || {
                Ok(pair.connect(family, &[&said, &heard])?.ok().then_some(()))
            })
            .with_context(|| what.clone())?;
            // The next one shall need a tunnel of its own, and nothing of this one may lie in the maps.
            for node in ["n1", "n2"] {
                pair.bed.agent_mut(node).stop()?;
                pair.bed.start_agent(node, &options)?;
            }
        }
    }
    let packets = recording.stop()?;
    ensure!(packets.containing(&marker) == 0, "{} packets in plaintext", packets.containing(&marker));
    Ok(())
}

/// Fills a map with records of no connection.
pub fn fill(pin: &Path, entries: usize, file: &Path) -> Result<()> {
    let [key_bytes, value_bytes] = sizes(pin)?;
    let value = format!(" value hex {}", "00 ".repeat(value_bytes));
    std::fs::write(file, commands(pin, "update", entries, key_bytes, &value))?;
    batch(file)
}

/// Takes them out again.
pub fn empty(pin: &Path, entries: usize, file: &Path) -> Result<()> {
    let [key_bytes, _] = sizes(pin)?;
    std::fs::write(file, commands(pin, "delete", entries, key_bytes, ""))?;
    batch(file)
}

fn commands(pin: &Path, verb: &str, entries: usize, key_bytes: usize, value: &str) -> String {
    (0..entries as u32).fold(String::new(), |mut lines, entry| {
        let _ = writeln!(lines, "map {verb} pinned {} key hex {}{value}", pin.display(), key(key_bytes, entry));
        lines
    })
}

/// A key of so many bytes that no connection has.
fn key(length: usize, entry: u32) -> String {
    let bytes = entry.to_le_bytes().into_iter().chain(std::iter::repeat(0xee)).take(length);
    bytes.fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x} ");
        text
    })
}

/// How many bytes a map's keys and values have.
fn sizes(pin: &Path) -> Result<[usize; 2]> {
    let shown: Value = serde_json::from_str(&bpftool(&["map", "show", "pinned", &pin.to_string_lossy()])?)?;
    let size = |what: &str| -> Result<usize> {
        let size = shown[what].as_u64().with_context(|| format!("{} has no {what}: {shown}", pin.display()))?;
        Ok(usize::try_from(size)?)
    };
    Ok([size("bytes_key")?, size("bytes_value")?])
}

/// Runs a file of bpftool's commands; the first that fails ends it.
fn batch(file: &Path) -> Result<()> {
    let output = Command::new("bpftool").args(["batch", "file"]).arg(file).output().context("starting bpftool")?;
    ensure!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// More than the ring holds while nobody reads it: each takes more than 64 bytes of 256 KiB.
const SYNS: u64 = 6000;

#[test]
fn a_full_ring_loses_events_and_no_verdict() -> Result<()> {
    let Some(pair) = crate::pair::meshed("a full ring")? else { return Ok(()) };
    if !pair.with_mesh {
        return Ok(());
    }
    let _listener = pair.listen(&["echo"])?;
    let counts = || -> Result<[u64; 2]> {
        Ok([outcome(&pair.bed, "n1", "guard_syn_unfiled")?, outcome(&pair.bed, "n1", "event_lost")?])
    };
    let marker = marker("ring")?;
    let node = pair.bed.node("n1");
    let recording = Recording::start(&node.tool_place(), &node.link_to("n2"), &pair.bed.dir().join("ring.pcap"))?;
    let before = counts()?;
    pair.bed.agent("n1").pause()?;
    let ips = [pair.bed.pod("client"), pair.bed.pod("server")].map(|pod| pod.ips.v4.to_string());
    let [own, other] = &ips;
    let sent = pair.bed.pod("client").run(&[PYTHON, "-c", FLOOD, own, other, &SYNS.to_string(), &marker], PATIENCE);
    pair.bed.agent("n1").resume()?;
    sent?.expect_ok("sending raw packets")?;
    let [refused, lost] = eventually(PATIENCE, "the agent to answer", || counts().map(Some))?;
    ensure!(refused - before[0] == SYNS, "{} of {SYNS} SYNs were refused", refused - before[0]);
    ensure!(lost > before[1], "the ring took {SYNS} events");
    let packets = recording.stop()?;
    ensure!(packets.containing(&marker) == 0, "{} raw packets left the node", packets.containing(&marker));
    let answer = pair.connect_to(pair.server(Family::V4, PORT), &["send:a", "read:1"])?;
    answer.expect_ok("a connection after the flood").map(drop)
}

/// SYNs past the pod's own stack.
const FLOOD: &str = r"
import socket, struct, sys, time
own, other, count, marker = sys.argv[1:]
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
for port in range(int(count)):
    # No queue on the way to the guard, nor the neighbour's address that is still asked for, shall lose one before it.
    if port % 100 == 1: time.sleep(.002)
    raw.sendto(struct.pack('!HHIIBBHHH', 1024 + port, 80, 1, 0, 5 << 4, 2, 65535, 0, 0) + marker.encode(), (other, 0))
";
