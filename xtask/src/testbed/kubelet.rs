//! What stands for kubelet on a simulated node, and whoever else dials pods from there.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::node::Node;
use super::process::{Finished, Place, Process};
use super::run::xtask_binary;

/// Where kubelet listens on every node, unless told otherwise.
pub const KUBELET_PORT: u16 = 10250;

/// Debian's interpreter, which has the distribution's modules.
const PYTHON: &str = "/usr/bin/python3";

pub(super) fn listen(node: &Node, cgroup: &str) -> Result<Process> {
    let xtask = xtask_binary()?.to_string_lossy().into_owned();
    let argv = [&*xtask, "__probe", "listen", &KUBELET_PORT.to_string(), "fin"];
    node.place_in(cgroup)?.spawn("kubelet", &argv)
}

/// Who dials pods from a node's host side.
pub struct Dialler {
    place: Place,
    script: PathBuf,
}

impl Dialler {
    pub(super) fn new(node: &Node, cgroup: &str, dir: &Path) -> Result<Self> {
        let script = dir.join("prober.py");
        fs::write(&script, include_str!("servers/prober.py"))?;
        Ok(Self { place: node.place_in(cgroup)?, script })
    }

    /// Dials as a probe of a kind does: `http`, `tcp` or `grpc`. What was said, and from which port; the error's name if
    /// nothing was.
    pub fn probe(&self, kind: &str, to: SocketAddr) -> Result<Result<(String, u16), String>> {
        self.probe_from(kind, to, 0)
    }

    /// The same from a port of its choice.
    pub fn probe_from(&self, kind: &str, to: SocketAddr, port: u16) -> Result<Result<(String, u16), String>> {
        let (host, to, from) = (to.ip().to_string(), to.port().to_string(), port.to_string());
        let said = self.run(&[PYTHON, &self.script.to_string_lossy(), kind, &host, &to, &from])?;
        let answer: Value = serde_json::from_str(said.stdout.trim()).with_context(|| format!("the prober: {said}"))?;
        Ok(match (answer["said"].as_str(), answer["port"].as_u64()) {
            (Some(said), Some(port)) => Ok((said.to_string(), u16::try_from(port)?)),
            _ => Err(answer["error"].as_str().unwrap_or_default().to_string()),
        })
    }

    /// Very many probes, some at a time: connects, exchanges a word with an echo server, and closes.
    pub fn probe_often(&self, to: SocketAddr, count: usize, timeout: Duration) -> Result<Finished> {
        let xtask = xtask_binary()?.to_string_lossy().into_owned();
        let (to, count) = (to.to_string(), count.to_string());
        self.place.run(&[&*xtask, "__probe", "short", &to, "--connections", &count, "--at-once", "64"], timeout)
    }

    /// Runs another process there, to its end.
    pub fn run(&self, argv: &[&str]) -> Result<Finished> {
        self.place.run(argv, Duration::from_secs(60))
    }

    /// Its cgroup.
    pub fn cgroup(&self) -> &Path {
        &self.place.cgroup
    }
}
