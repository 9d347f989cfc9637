//! Where everything of the cluster is: names, addresses, directories.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::testbed::run::{PREFIX, RUNS};
use crate::testbed::{Place, cgroup};

/// The id of the cluster's run: one cluster at a time.
pub const RUN: &str = "cluster";
/// Of the control plane: its network namespace, its cgroup.
pub const CONTROL: &str = "cp";
/// The nodes.
pub const NODES: [&str; 2] = ["n1", "n2"];
/// The control plane's address on the network that it shares with the nodes.
pub const CONTROL_IP: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 1);
/// Cluster IPs.
pub const SERVICES: &str = "10.96.0.0/16";
/// The API server's own cluster IP.
pub const API_SERVICE: &str = "10.96.0.1";
/// The DNS server's.
pub const DNS_SERVICE: &str = "10.96.0.10";
/// What nodes get their pods' addresses from.
pub const PODS: &str = "10.244.0.0/16";

/// Files that need a real disk: etcd's store, what containerd unpacks.
pub fn work() -> PathBuf {
    Path::new("/var/tmp").join(run_name())
}

/// Keys and kubeconfigs.
pub fn pki() -> PathBuf {
    work().join("pki")
}

/// The kubeconfig of one who may do everything.
pub fn admin_config() -> PathBuf {
    pki().join("admin.kubeconfig")
}

/// The run's directory: notes, logs, pids.
pub fn run_dir() -> PathBuf {
    Path::new(RUNS).join(RUN)
}

/// What everything of the cluster is named by that the machine knows by a name.
fn run_name() -> String {
    format!("{PREFIX}{RUN}")
}

/// The cluster's part of a cgroup hierarchy; nodes and control plane have theirs in it.
pub fn part_of(hierarchy: &Path) -> PathBuf {
    hierarchy.join(run_name())
}

/// A node's cgroup, or the control plane's, in cgroup2.
pub fn cgroup(of: &str) -> Result<PathBuf> {
    Ok(part_of(&cgroup::mount_point()?).join(of))
}

/// Where processes of a node start, or the control plane's.
pub fn place(of: &str) -> Result<Place> {
    Ok(Place {
        netns: netns(of),
        cgroup: cgroup(of)?,
        hosts: None,
        logs: run_dir().join("logs"),
        owner: of.to_string(),
    })
}

/// A network namespace's file.
pub fn netns(of: &str) -> PathBuf {
    Path::new("/run/netns").join(netns_name(of))
}

/// A network namespace's name.
pub fn netns_name(of: &str) -> String {
    format!("{}-{of}", run_name())
}

/// A node's address: n1 has 172.30.0.11.
pub fn node_ip(node: &str) -> Ipv4Addr {
    let index = node.trim_start_matches('n').parse::<u8>().unwrap_or_default();
    Ipv4Addr::new(172, 30, 0, index.saturating_add(10))
}

/// A node's directory.
pub fn node_dir(node: &str) -> PathBuf {
    work().join(node)
}

/// The image of the programs of tests' pods.
pub fn tools_archive() -> PathBuf {
    work().join("tools.tar")
}
