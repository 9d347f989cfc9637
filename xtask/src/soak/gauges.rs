//! What an agent takes: memory, descriptors, threads, connections, tunnels, entries of the kernel's maps.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result};
use serde::Serialize;

use super::stage::Stage;
use crate::testbed::{Agent, map_entries};

/// The maps that grow and shrink, by their pins' names.
const MAPS: [&str; 7] = ["AGENTS", "CLIENTS", "DIALS", "FILED", "GUARDED", "NO_ENDPOINT", "PODS"];

/// What an agent may keep of memory that its connections needed: the allocator's arenas, of which each worker has one,
/// do not shrink below what lives at their ends.
const MEMORY_SLACK: u64 = 64 << 20;
/// Sockets that are made ahead, and files that are read at the moment.
const DESCRIPTOR_SLACK: u64 = 24;
/// Threads of the runtime that come when there is something to read and go when there is not.
const THREAD_SLACK: u64 = 4;

/// Name, value and how much more than before it may be.
#[derive(Clone, Debug, Serialize)]
pub struct Gauge {
    /// In its unit.
    pub value: u64,
    /// The slack.
    pub slack: u64,
}

/// All gauges of both agents, by `node name`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Gauges(pub BTreeMap<String, Gauge>);

impl Gauges {
    /// Everything, the kernel's maps too: not while there are thousands of connections.
    pub fn read(stage: &Stage) -> Result<Self> {
        let mut gauges = Self::brief(stage)?;
        for agent in stage.bed.agents() {
            let dump = agent.get_json("/config_dump")?;
            let tunnels = dump["tunnels"].as_array().map_or(0, Vec::len) as u64;
            gauges.set(agent, "tunnels", tunnels, 0);
            for map in MAPS {
                let entries = map_entries(&agent.pins().join("v1/maps").join(map)).with_context(|| map.to_string())?;
                gauges.set(agent, &format!("map {map}"), entries as u64, 0);
            }
            gauges.set(agent, "pins", pins(&agent.pins().join("v1"))?, 0);
        }
        Ok(gauges)
    }

    /// What costs little to ask.
    pub fn brief(stage: &Stage) -> Result<Self> {
        let mut gauges = Self::default();
        for agent in stage.bed.agents() {
            let process = format!("/proc/{}", agent.pid());
            let count = |part: &str| anyhow::Ok(std::fs::read_dir(format!("{process}/{part}"))?.count() as u64);
            gauges.set(agent, "memory", agent.resident()?, MEMORY_SLACK);
            gauges.set(agent, "descriptors", count("fd")?, DESCRIPTOR_SLACK);
            gauges.set(agent, "threads", count("task")?, THREAD_SLACK);
            gauges.set(agent, "connections", agent.metric_sum("nodemesh_connections_open")? as u64, 0);
        }
        Ok(gauges)
    }

    fn set(&mut self, agent: &Agent, name: &str, value: u64, slack: u64) {
        self.0.insert(format!("{} {name}", agent.node), Gauge { value, slack });
    }

    /// What is more than it was, beyond its slack. A tunnel has a record of its own dial and a descriptor, and what was
    /// open before may be closed now: less is no loss.
    pub fn more_than(&self, before: &Self) -> Vec<String> {
        let mut more = Vec::new();
        for (name, gauge) in &self.0 {
            let before = before.0.get(name).map_or(0, |gauge| gauge.value);
            if gauge.value > before + gauge.slack {
                more.push(format!("{name} was {} and is {}", shown(name, before), shown(name, gauge.value)));
            }
        }
        more
    }

    /// The larger of both, gauge by gauge.
    pub fn raise(&mut self, other: &Self) {
        for (name, gauge) in &other.0 {
            let own = self.0.entry(name.clone()).or_insert_with(|| gauge.clone());
            own.value = own.value.max(gauge.value);
        }
    }
}

impl fmt::Display for Gauges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown: Vec<String> =
            self.0.iter().map(|(name, gauge)| format!("{name} {}", shown(name, gauge.value))).collect();
        f.write_str(&shown.join(", "))
    }
}

/// Memory in MiB, the rest as it is.
pub fn shown(name: &str, value: u64) -> String {
    if name.ends_with("memory") { format!("{} MiB", value >> 20) } else { value.to_string() }
}

fn pins(directory: &std::path::Path) -> Result<u64> {
    let mut count = 0;
    for entry in std::fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?.flatten() {
        count += if entry.file_type()?.is_dir() { pins(&entry.path())? } else { 1 };
    }
    Ok(count)
}
