//! A simulated node.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::address::{self, DualStack, Family};
use super::net::{self, Netns};
use super::process::Place;
use super::run::Run;

/// A network namespace and a cgroup subtree that stand for a machine.
pub struct Node {
    /// n1, n2, …
    pub name: String,
    /// 1, 2, …
    pub index: usize,
    /// Its host network.
    pub netns: Netns,
    /// Its part of the cgroup tree: what an agent on a real node sees at the root.
    pub cgroup: PathBuf,
    /// Its own addresses, which are no pod's.
    pub ips: DualStack,
    /// The families that it has an address of.
    pub families: &'static [Family],
    /// The label topology.kubernetes.io/zone; none if empty.
    pub zone: String,
    /// Where its kubelet listens, once it has one.
    pub kubelet_port: Option<u16>,
    /// How many pods it was given so far; addresses are not used twice.
    pub(super) pods_made: usize,
    logs: PathBuf,
}

impl Node {
    pub(super) fn create(run: &Run, index: usize, zone: &str, families: &'static [Family]) -> Result<Self> {
        let name = format!("n{index}");
        let cgroup = run.cgroup().join(&name);
        for part in ["kubepods/besteffort", "agent", "tools"] {
            fs::create_dir_all(cgroup.join(part)).with_context(|| format!("making {}", cgroup.display()))?;
        }
        let netns = Netns::create(run, &name)?;
        net::forward(&netns)?;
        let (ips, zone, logs) = (address::node(index), zone.to_string(), run.dir().join("logs"));
        Ok(Self { name, index, netns, cgroup, ips, families, zone, kubelet_port: None, pods_made: 0, logs })
    }

    /// The interface that leads to another node.
    pub fn link_to(&self, other: &str) -> String {
        format!("to-{other}")
    }

    /// The node's host side, in the agent's cgroup: for the agent itself.
    pub fn agent_place(&self) -> Place {
        self.place("agent")
    }

    /// The node's host side, in no pod's and not in the agent's cgroup: for tools such as tcpdump.
    pub fn tool_place(&self) -> Place {
        self.place("tools")
    }

    /// The node's host side, in another cgroup of the node, by its path below the node's own.
    pub fn place_in(&self, cgroup: &str) -> Result<Place> {
        let place = self.place(cgroup);
        fs::create_dir_all(&place.cgroup).with_context(|| format!("making {}", place.cgroup.display()))?;
        Ok(place)
    }

    fn place(&self, cgroup: &str) -> Place {
        Place {
            netns: self.netns.path(),
            cgroup: self.cgroup.join(cgroup),
            hosts: None,
            logs: self.logs.clone(),
            owner: self.name.clone(),
        }
    }
}
