//! Network namespaces and the links between them.
//!
//! Links are made with `ip` from iproute2, which takes the namespace by name. Processes never go through
//! `ip netns exec`: it remounts /sys, and hides cgroup2 from them.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::address::{self, Family};
use super::enter::join_network;
use super::eventually;
use super::node::Node;
use super::process::Process;
use super::relay::{self, Impairment};
use super::run::{Kind, Run};

/// Ethernet's usual; what most clouds and kind give to pods.
const MTU: u32 = 1500;

/// What the links of a testbed are like.
#[derive(Clone, Copy, Debug)]
pub struct Links {
    /// Between nodes, in bytes.
    pub mtu: u32,
    /// Of pods, in bytes.
    pub pod_mtu: u32,
    /// What happens to frames between nodes; None: nothing, over a veth pair.
    pub impairment: Option<Impairment>,
    /// The families that nodes, pods and Services have addresses of, loopback aside.
    pub families: &'static [Family],
}

impl Default for Links {
    fn default() -> Self {
        Self { mtu: MTU, pod_mtu: MTU, impairment: None, families: &Family::BOTH }
    }
}

/// A network namespace with a name.
#[derive(Clone, Debug)]
pub struct Netns {
    /// `nodemesh-<run>-<rest>`
    pub name: String,
}

impl Netns {
    /// Makes a namespace of a run, which ends with the run.
    pub fn create(run: &Run, rest: &str) -> Result<Self> {
        let name = run.name(rest);
        run.note(Kind::Netns, &name)?;
        Self::create_noted(name)
    }

    /// Makes a namespace that its run has noted, with loopback up and no waiting for duplicate IPv6 addresses.
    pub fn create_noted(name: String) -> Result<Self> {
        let netns = Self { name };
        ip(&["netns", "add", &netns.name], "")?;
        netns.within(|| set_sysctls(&[("ipv6/conf/all/accept_dad", "0"), ("ipv6/conf/default/accept_dad", "0")]))??;
        netns.batch("link set lo up")?;
        Ok(netns)
    }

    /// Its file, to join it by.
    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// Runs lines of `ip` inside the namespace.
    pub fn batch(&self, lines: &str) -> Result<()> {
        ip(&["-n", &self.name, "-batch", "-"], lines).map(drop)
    }

    /// Calls `work` on a thread of its own inside the namespace.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let path = self.path();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| join_network(&path).map(|()| work()));
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

/// Makes a node forward between its pods and the other nodes.
pub fn forward(netns: &Netns) -> Result<()> {
    netns.within(|| set_sysctls(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")]))?
}

/// Joins two nodes, `to-n2` in n1 and `to-n1` in n2, with routes to each other's pods: by a veth pair, or by a bad cable,
/// whose process is returned.
pub fn join_nodes(a: &Node, b: &Node, links: &Links) -> Result<Option<Process>> {
    let (to_b, to_a, mtu) = (a.link_to(&b.name), b.link_to(&a.name), links.mtu);
    let cable = match links.impairment {
        Some(impairment) => Some(lay_cable(a, b, impairment)?),
        None => {
            a.netns.batch(&format!("link add {to_b} type veth peer name {to_a} netns {}", b.netns.name))?;
            None
        }
    };
    a.netns.batch(&format!("link set {to_b} mtu {mtu}"))?;
    b.netns.batch(&format!("link set {to_a} mtu {mtu}"))?;
    bring_up([(&a.netns, &to_b), (&b.netns, &to_a)])?;
    half_of_link(a, b, links.families)?;
    half_of_link(b, a, links.families)?;
    Ok(cable)
}

fn lay_cable(a: &Node, b: &Node, impairment: Impairment) -> Result<Process> {
    let places = [a.tool_place(), b.tool_place()];
    let [to_b, to_a] = [a.link_to(&b.name), b.link_to(&a.name)];
    let argv = relay::argv([(&places[0], &to_b), (&places[1], &to_a)], impairment)?;
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    let mut cable = places[0].spawn(&format!("cable-{to_b}"), &argv)?;
    eventually(Duration::from_secs(30), "the cable to be there", || {
        cable.check_running()?;
        Ok(cable.log().contains("relaying").then_some(()))
    })?;
    Ok(cable)
}

fn half_of_link(here: &Node, there: &Node, families: &[Family]) -> Result<()> {
    let link = here.link_to(&there.name);
    for family in families {
        let (own, other) = (address::node(here.index).ip(*family), address::node(there.index).ip(*family));
        let pods = address::pod_range(there.index, *family);
        let join = match family {
            Family::V4 => format!("address add {own} peer {other} dev {link}"),
            Family::V6 => format!("address add {own}/128 dev {link} nodad\nroute add {other}/128 dev {link}"),
        };
        here.netns.batch(&format!("{join}\nroute add {pods} via {other} dev {link} src {own}"))?;
    }
    Ok(())
}

/// Joins a pod to its node as the CNI plugin `ptp` does: a /32, a /128 or both, and the host's end as the gateway.
pub fn join_pod(
    node: &Node,
    pod: &Netns,
    ips: &address::DualStack,
    families: &[Family],
    host_end: &str,
    links: &Links,
) -> Result<()> {
    let (gateways, mtu) = (address::gateway(node.index), links.pod_mtu);
    node.netns
        .batch(&format!("link add {host_end} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}", pod.name))?;
    for family in links.families {
        let (length, once) = length(*family);
        node.netns.batch(&format!("address add {}/{length} dev {host_end} {once}", gateways.ip(*family)))?;
    }
    bring_up([(&node.netns, host_end), (pod, "eth0")])?;
    for family in families {
        let (ip, gateway) = (ips.ip(*family), gateways.ip(*family));
        let (length, once) = length(*family);
        let near = if *family == Family::V4 { "scope link" } else { "" };
        node.netns.batch(&format!("route add {ip}/{length} dev {host_end} src {gateway}"))?;
        pod.batch(&format!(
            "address add {ip}/{length} dev eth0 {once}
             route add {gateway}/{length} dev eth0 {near} src {ip}
             route add default via {gateway} dev eth0 src {ip}"
        ))?;
    }
    Ok(())
}

/// The prefix length of a single address, and what spares it the wait for duplicates.
fn length(family: Family) -> (u8, &'static str) {
    match family {
        Family::V4 => (32, ""),
        Family::V6 => (128, "nodad"),
    }
}

/// Brings both ends of a veth pair up and waits for their carrier, without which IPv6 refuses routes and the first
/// packets are lost.
fn bring_up(ends: [(&Netns, &str); 2]) -> Result<()> {
    for (netns, link) in ends {
        netns.batch(&format!("link set {link} up"))?;
    }
    for (netns, link) in ends {
        eventually(Duration::from_secs(30), &format!("{link} of {} to be up", netns.name), || {
            let shown = ip(&["-n", &netns.name, "-oneline", "link", "show", "dev", link], "")?;
            // A TAP interface does not know its state, and has a carrier from the start.
            let up = shown.contains("state UP") || shown.contains("state UNKNOWN") && shown.contains("LOWER_UP");
            Ok(up.then_some(()))
        })?;
    }
    Ok(())
}

fn ip(arguments: &[&str], lines: &str) -> Result<String> {
    let mut command = Command::new("ip");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("starting ip (package iproute2)")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(lines.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("ip {}: {}\n{lines}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn set_sysctls(values: &[(&str, &str)]) -> Result<()> {
    for (name, value) in values {
        fs::write(format!("/proc/sys/net/{name}"), value).with_context(|| format!("setting net/{name} to {value}"))?;
    }
    Ok(())
}
