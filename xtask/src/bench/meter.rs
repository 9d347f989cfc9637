//! Who used the processors: the agents, everything of the run, and whatever else there was.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};

/// Where to read it.
pub struct Meter {
    agents: Vec<PathBuf>,
    peers: Vec<PathBuf>,
    run: PathBuf,
    processors: f64,
}

/// Seconds of processor time since boot.
#[derive(Clone, Copy)]
struct Reading {
    at: Instant,
    agents: f64,
    peers: f64,
    run: f64,
    machine: f64,
    softirq: f64,
}

/// What a sample took.
#[derive(Clone, Copy, Debug)]
pub struct Used {
    /// Seconds of both agents.
    pub agents: f64,
    /// Seconds of the other pair of proxies.
    pub peers: f64,
    /// Processors that were busy, whoever with.
    pub busy: f64,
    /// The share of the whole machine that went to what is neither of the run nor the kernel's own work for it.
    pub others: f64,
    /// How long it took.
    pub seconds: f64,
}

impl Meter {
    /// All of them are cgroups.
    pub fn new(agents: Vec<PathBuf>, peers: Vec<PathBuf>, run: PathBuf) -> Result<Self> {
        let processors = std::thread::available_parallelism().context("counting the processors")?.get() as f64;
        Ok(Self { agents, peers, run, processors })
    }

    /// What is used while something is done.
    pub fn during<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<(T, Used)> {
        let before = self.read()?;
        let done = work()?;
        let after = self.read()?;
        let seconds = after.at.duration_since(before.at).as_secs_f64();
        let accounted = (after.run - before.run) + (after.softirq - before.softirq);
        let machine = after.machine - before.machine;
        let others = (machine - accounted).max(0.0) / (seconds * self.processors);
        let (agents, peers) = (after.agents - before.agents, after.peers - before.peers);
        Ok((done, Used { agents, peers, busy: machine / seconds, others, seconds }))
    }

    fn read(&self) -> Result<Reading> {
        let agents = self.agents.iter().map(|agent| seconds_of(agent)).sum::<Result<f64>>()?;
        let peers = self.peers.iter().map(|peer| seconds_of(peer)).sum::<Result<f64>>()?;
        let run = seconds_of(&self.run)?;
        let (machine, softirq) = machine()?;
        Ok(Reading { at: Instant::now(), agents, peers, run, machine, softirq })
    }
}

fn seconds_of(cgroup: &Path) -> Result<f64> {
    let file = cgroup.join("cpu.stat");
    let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    let used = text.lines().find_map(|line| line.strip_prefix("usage_usec ")?.parse::<f64>().ok());
    Ok(used.with_context(|| format!("no usage_usec in {}", file.display()))? / 1e6)
}

/// All that is not idle, and of that the interrupts and ksoftirqd, which carry the packets of the run.
fn machine() -> Result<(f64, f64)> {
    let ticks = rustix::param::clock_ticks_per_second() as f64;
    let text = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
    let line = text.lines().next().and_then(|line| line.strip_prefix("cpu ")).context("/proc/stat without cpu")?;
    let fields: Vec<f64> = line.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal
    let [user, nice, system, _idle, _iowait, irq, softirq, steal, ..] = fields[..] else {
        anyhow::bail!("/proc/stat says: {line}");
    };
    let daemons = softirq_daemons()?;
    Ok(((user + nice + system + irq + softirq + steal) / ticks, (irq + softirq + daemons) / ticks))
}

/// Ticks of the ksoftirqd threads, which `system` has.
fn softirq_daemons() -> Result<f64> {
    let mut ticks = 0.0;
    for entry in fs::read_dir("/proc").context("reading /proc")?.flatten() {
        // One that ends meanwhile was none of them.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((name, rest)) = stat.rsplit_once(')') else { continue };
        if name.contains("(ksoftirqd/") {
            // utime and stime are fields 14 and 15; `rest` begins with field 3.
            ticks +=
                rest.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum::<f64>();
        }
    }
    Ok(ticks)
}
