//! An agent that the machine gives too little: processor time, memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask::testbed::{AgentOptions, Family, Process, Recording, eventually};

use crate::pair::{PORT, Pair, lines, meshed};

const PATIENCE: Duration = Duration::from_secs(60);

/// What connections say: it must never be seen between the nodes.
const WORD: &str = "a short word";

/// A twentieth of one processor: five milliseconds of each hundred.
const PERIOD_US: u64 = 100_000;
const QUOTA_US: u64 = 5_000;
const STARVED: Duration = Duration::from_secs(10);

/// Less than two thousand connections need.
const MEMORY_BYTES: u64 = 8 << 20;
const CROWD: usize = 2000;

#[test]
fn an_agent_short_of_processor_time_is_slow_and_lets_nothing_past() -> Result<()> {
    let Some(pair) = meshed("an agent short of processor time")? else { return Ok(()) };
    if !pair.with_mesh {
        return Ok(());
    }
    let _echo = echo(&pair)?;
    let mut load = load(&pair)?;
    let recording = record(&pair, "starved")?;
    for node in ["n1", "n2"] {
        let Some(limit) = Limit::cpu(&pair, node)? else { return Ok(()) };
        std::thread::sleep(STARVED);
        let held_back = limit.held_back()?;
        ensure!(held_back > 20, "the agent of {node} was held back {held_back} times: it had enough");
        drop(limit);
        for load in &mut load {
            serves_again(load).with_context(|| format!("after {node}")).map_err(|error| pair.bed.explain(error))?;
        }
        println!("{node}: held back {held_back} times in {} s", STARVED.as_secs());
    }
    load.iter_mut().try_for_each(Process::kill)?;
    no_plaintext(recording)
}

#[test]
fn an_agent_that_its_memory_limit_ends_leaves_nothing_open() -> Result<()> {
    for node in ["n1", "n2"] {
        let Some(mut pair) = meshed("an agent short of memory")? else { return Ok(()) };
        if !pair.with_mesh {
            return Ok(());
        }
        let _echo = echo(&pair)?;
        let recording = record(&pair, "memory")?;
        let Some(limit) = Limit::memory(&pair, node)? else { return Ok(()) };
        let address = pair.server(Family::V4, PORT).to_string();
        let mut crowd =
            pair.bed.pod("client").spawn_probe("crowd", &["hold", &address, &format!("--connections={CROWD}")])?;
        eventually(PATIENCE, "the kernel to end the agent", || {
            Ok((!pair.bed.agent_mut(node).is_running()).then_some(()))
        })
        .with_context(|| node.to_string())?;
        let _ = crowd.kill();
        for family in Family::BOTH {
            let refused = pair.connect(family, &[&format!("send:{WORD}"), "read:1"])?;
            ensure!(!refused.ok(), "{node}, {family}: a connection with no agent: {refused}");
        }
        drop(limit);
        pair.bed.start_agent(node, &AgentOptions::default())?;
        for mut load in load(&pair)? {
            serves_again(&mut load).with_context(|| node.to_string()).map_err(|error| pair.bed.explain(error))?;
            load.kill()?;
        }
        no_plaintext(recording)?;
    }
    Ok(())
}

fn echo(pair: &Pair) -> Result<Process> {
    let server = pair.bed.pod("server").spawn_probe("echo", &["echo", &PORT.to_string()])?;
    pair.bed.pod("server").wait_listening(PORT)?;
    Ok(server)
}

/// Short connections without end, in each family.
fn load(pair: &Pair) -> Result<Vec<Process>> {
    let start = |family| {
        let address = pair.server(family, PORT).to_string();
        let arguments = ["short", &address, "--seconds=600", "--at-once=8", "--rate=100"];
        pair.bed.pod("client").spawn_probe(&format!("short-{family}"), &arguments)
    };
    Family::BOTH.into_iter().map(start).collect()
}

fn serves_again(load: &mut Process) -> Result<()> {
    let done = |log: &str| lines(log).iter().rev().find_map(|line| line["done"].as_u64()).unwrap_or(0);
    let before = done(&load.log());
    eventually(PATIENCE, "connections to succeed again", || {
        load.check_running()?;
        Ok((done(&load.log()) > before + 50).then_some(()))
    })
}

fn record(pair: &Pair, name: &str) -> Result<Recording> {
    let node = pair.bed.node("n1");
    Recording::start(&node.tool_place(), &node.link_to("n2"), &pair.bed.dir().join(format!("{name}.pcap")))
}

fn no_plaintext(recording: Recording) -> Result<()> {
    let packets = recording.stop()?;
    ensure!(packets.containing(WORD) == 0, "{} packets carried plaintext", packets.containing(WORD));
    ensure!(!packets.tcp().is_empty(), "the recording has nothing, so it is no witness");
    Ok(())
}

/// What bounds an agent, until it is dropped: a cgroup of the controller's own hierarchy where the machine has these
/// (version 1), else the agent's own.
struct Limit {
    cgroup: PathBuf,
    /// Version 1's, which is removed; the agent's own is given back what it had.
    is_own: bool,
    /// What takes the limit away, for version 2.
    file: &'static str,
}

impl Limit {
    fn cpu(pair: &Pair, node: &str) -> Result<Option<Self>> {
        let (period, quota) = (PERIOD_US.to_string(), QUOTA_US.to_string());
        let old = [("cpu.cfs_period_us", &*period), ("cpu.cfs_quota_us", &*quota)];
        Self::set(pair, node, "cpu", &old, ("cpu.max", &format!("{QUOTA_US} {PERIOD_US}")))
    }

    fn memory(pair: &Pair, node: &str) -> Result<Option<Self>> {
        let bytes = MEMORY_BYTES.to_string();
        Self::set(pair, node, "memory", &[("memory.limit_in_bytes", &bytes)], ("memory.max", &bytes))
    }

    /// None, and said aloud, where the machine has no such controller.
    fn set(
        pair: &Pair,
        node: &str,
        controller: &str,
        old: &[(&str, &str)],
        (file, value): (&'static str, &str),
    ) -> Result<Option<Self>> {
        let pid = pair.bed.agent(node).pid();
        let write = |path: PathBuf, value: &str| {
            fs::write(&path, value).with_context(|| format!("writing {value} to {}", path.display()))
        };
        let hierarchy = Path::new("/sys/fs/cgroup").join(controller);
        if hierarchy.join("cgroup.procs").exists() && !hierarchy.join("cgroup.controllers").exists() {
            let cgroup = hierarchy.join(format!("nodemesh-scarce-{pid}"));
            fs::create_dir(&cgroup).with_context(|| format!("making {}", cgroup.display()))?;
            let limit = Self { cgroup: cgroup.clone(), is_own: true, file };
            old.iter().try_for_each(|(file, value)| write(cgroup.join(file), value))?;
            write(cgroup.join("cgroup.procs"), &pid.to_string())?;
            return Ok(Some(limit));
        }
        let cgroup = pair.bed.node(node).agent_place().cgroup;
        for above in [
            cgroup.parent().and_then(Path::parent).and_then(Path::parent),
            cgroup.parent().and_then(Path::parent),
            cgroup.parent(),
        ] {
            let above = above.context("the agent's cgroup has some above it")?;
            if fs::write(above.join("cgroup.subtree_control"), format!("+{controller}")).is_err() {
                eprintln!("SKIPPED: no {controller} controller below {}", above.display());
                return Ok(None);
            }
        }
        write(cgroup.join(file), value)?;
        Ok(Some(Self { cgroup, is_own: false, file }))
    }

    /// In how many periods it had used up what it may.
    fn held_back(&self) -> Result<u64> {
        let text = fs::read_to_string(self.cgroup.join("cpu.stat"))?;
        let count = text.lines().find_map(|line| line.strip_prefix("nr_throttled "));
        Ok(count.context("no count of periods")?.trim().parse()?)
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        if !self.is_own {
            let _ = fs::write(self.cgroup.join(self.file), "max");
            return;
        }
        let parent = self.cgroup.with_file_name("cgroup.procs");
        let pids = fs::read_to_string(self.cgroup.join("cgroup.procs")).unwrap_or_default();
        pids.lines().for_each(|pid| drop(fs::write(&parent, pid)));
        for _ in 0..50 {
            if fs::remove_dir(&self.cgroup).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
