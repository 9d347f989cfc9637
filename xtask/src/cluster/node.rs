//! A node from outside: its place in the machine's cgroups and networks, started, entered, cut off.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::init::NodeSpec;
use super::layout::{
    self, CONTROL, CONTROL_IP, DNS_SERVICE, NODES, PODS, netns, netns_name, node_dir, node_ip, pki, run_dir,
    tools_archive,
};
use super::parts::Parts;
use super::{Options, ProxyMode, kubectl};
use crate::clean::delete_netns;
use crate::testbed::run::{Kind, Run, xtask_binary};
use crate::testbed::{Netns, cgroup, eventually};

/// The bridge that joins nodes and control plane.
const BRIDGE: &str = "nodes";

/// The cgroup hierarchies of version 1 that this machine has beside cgroup2: kubelet uses them then.
pub fn v1_hierarchies() -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("reading /proc/self/mounts")?;
    let of_v1 = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let (point, kind) = (words.nth(1)?, words.next()?);
        (kind == "cgroup").then(|| PathBuf::from(point))
    });
    let mut found: Vec<PathBuf> = of_v1.collect();
    found.sort();
    found.dedup();
    Ok(found)
}

/// Makes the control plane's network.
pub fn make_network(run: &Run) -> Result<()> {
    let control = Netns::create(run, CONTROL)?;
    control.batch(&format!(
        "link add {BRIDGE} type bridge\naddr add {CONTROL_IP}/24 dev {BRIDGE}\nlink set {BRIDGE} up"
    ))?;
    for node in NODES {
        plug_in(node, &Netns::create(run, node)?, &control)?;
    }
    Ok(())
}

/// Joins a node's network namespace to the bridge.
fn plug_in(node: &str, netns: &Netns, control: &Netns) -> Result<()> {
    netns.batch(&format!(
        "link add eth0 type veth peer name {node} netns {}\naddr add {}/24 dev eth0\nlink set eth0 up\n\
         route add default via {CONTROL_IP}",
        control.name,
        node_ip(node)
    ))?;
    control.batch(&format!("link set {node} master {BRIDGE} up"))
}

/// Makes the cgroups of a node in every hierarchy.
pub fn make_cgroups(run: &Run) -> Result<()> {
    let make = |path: &Path| fs::create_dir_all(path).with_context(|| format!("making {}", path.display()));
    make(&run.cgroup().join(CONTROL))?;
    for hierarchy in v1_hierarchies()? {
        let top = layout::part_of(&hierarchy);
        run.note(Kind::Cgroup, &top.to_string_lossy())?;
        make(&top)?;
        inherit_cpuset(&hierarchy, &top)?;
        for node in NODES {
            make(&top.join(node))?;
            inherit_cpuset(&hierarchy, &top.join(node))?;
        }
    }
    NODES.iter().try_for_each(|node| make(&run.cgroup().join(node).join("system")))
}

/// A cpuset of version 1 begins empty, and nothing can run in it.
fn inherit_cpuset(hierarchy: &Path, cgroup: &Path) -> Result<()> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        if let Ok(value) = fs::read_to_string(hierarchy.join(name)) {
            fs::write(cgroup.join(name), value).with_context(|| format!("writing {name} of {}", cgroup.display()))?;
        }
    }
    Ok(())
}

/// Starts a node: kubelet, containerd and kube-proxy in namespaces of their own. They are ready some seconds later.
pub fn start(node: &str, parts: &Parts, options: &Options) -> Result<()> {
    let directory = node_dir(node);
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    let spec = NodeSpec {
        name: node.to_string(),
        ip: node_ip(node),
        directory: directory.clone(),
        pki: pki(),
        programs: parts.programs(),
        images: parts.images()?.into_iter().chain([tools_archive()]).collect(),
        dns: DNS_SERVICE.to_string(),
        pods: PODS.to_string(),
        proxy_mode: options.proxy.as_str().to_string(),
        v1_hierarchies: v1_hierarchies()?,
    };
    let file = directory.join("node.json");
    fs::write(&file, serde_json::to_string_pretty(&spec)?).with_context(|| format!("writing {}", file.display()))?;
    let (xtask, file) = (xtask_binary()?.display().to_string(), file.display().to_string());
    let argv = [xtask.as_str(), "__cluster-node", "--spec", &file];
    let mut process = layout::place(node)?.spawn("init", &argv)?;
    fs::write(pid_file(node), process.pid().to_string()).context("writing a pid down")?;
    process.keep();
    Ok(())
}

/// Cuts a node's power: every process of it is killed at once. Its disk stays.
pub fn cut_power(node: &str) -> Result<()> {
    let of_cgroup2 = layout::cgroup(node)?;
    cgroup::destroy(&of_cgroup2)?;
    fs::create_dir_all(of_cgroup2.join("system")).with_context(|| format!("making {}", of_cgroup2.display()))?;
    for hierarchy in v1_hierarchies()? {
        let of_v1 = layout::part_of(&hierarchy).join(node);
        cgroup::destroy(&of_v1)?;
        fs::create_dir(&of_v1).with_context(|| format!("making {}", of_v1.display()))?;
        inherit_cpuset(&hierarchy, &of_v1)?;
    }
    fs::remove_file(pid_file(node)).with_context(|| format!("{node} was not started"))
}

/// A node whose power was cut comes up with a network that knows no pods.
pub fn make_network_anew(node: &str) -> Result<()> {
    // The end in the control plane's namespace goes with the namespace, once nothing holds it any more.
    delete_netns(&netns_name(node))?;
    let control = Netns { name: netns_name(CONTROL) };
    eventually(Duration::from_secs(60), &format!("the network of {node} to go"), || {
        let links = control.within(|| fs::read_to_string("/proc/thread-self/net/dev"))??;
        Ok((!links.contains(&format!("{node}:"))).then_some(()))
    })?;
    // The run that noted it goes on.
    plug_in(node, &Netns::create_noted(netns_name(node))?, &control)
}

/// Gives a node its pods' network once the controller manager has said which addresses that has.
pub fn join_pods(node: &str, parts: &Parts, options: &Options) -> Result<()> {
    let range = eventually(Duration::from_secs(120), &format!("{node} to register"), || {
        let range = kubectl(parts, &["get", "node", node, "-o", "jsonpath={.spec.podCIDR}"], None);
        Ok(range.ok().filter(|range| !range.is_empty()))
    })?;
    let ipam = json!({
        "type": "host-local", "ranges": [[{"subnet": range}]], "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": "/var/lib/cni/networks",
    });
    let network = if options.bridge {
        json!({
            "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true, "mtu": 1500,
            "ipam": ipam,
        })
    } else {
        json!({"type": "ptp", "ipMasq": false, "mtu": 1500, "ipam": ipam})
    };
    let list = json!({
        "cniVersion": "0.4.0", "name": "podnet",
        "plugins": [network, {"type": "portmap", "capabilities": {"portMappings": true}}],
    });
    let directory = node_dir(node).join("fs/etc/cni/net.d");
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    let file = directory.join("10-podnet.conflist");
    // A node that was rebooted keeps what a plugin wrote into the list.
    if !file.exists() {
        fs::write(&file, serde_json::to_string_pretty(&list)?)
            .with_context(|| format!("writing {}", file.display()))?;
    }
    let via = node_ip(node);
    let others = NODES.iter().copied().filter(|other| *other != node).chain([CONTROL]);
    for other in others {
        Netns { name: netns_name(other) }.batch(&format!("route replace {range} via {via}"))?;
    }
    for other in NODES.iter().copied().filter(|other| *other != node) {
        let theirs = kubectl(parts, &["get", "node", other, "-o", "jsonpath={.spec.podCIDR}"], None);
        if let Some(theirs) = theirs.ok().filter(|range| !range.is_empty()) {
            let via = node_ip(other);
            Netns { name: netns_name(node) }.batch(&format!("route replace {theirs} via {via}"))?;
        }
    }
    Ok(())
}

/// A command on a node, as by a root shell there.
pub fn command(node: &str, parts: &Parts, argv: &[&str]) -> Result<Command> {
    command_in(node, &layout::cgroup(node)?.join("system/shell"), parts, argv)
}

fn command_in(node: &str, cgroup: &Path, parts: &Parts, argv: &[&str]) -> Result<Command> {
    let pid = fs::read_to_string(pid_file(node)).with_context(|| format!("there is no node {node} that runs"))?;
    let pid = pid.trim();
    fs::create_dir_all(cgroup).with_context(|| format!("making {}", cgroup.display()))?;
    let mut command = Command::new(xtask_binary()?);
    command.arg("__exec").arg("--netns").arg(netns(node)).arg("--cgroup").arg(cgroup).arg("--");
    command.args(["nsenter", "--target", pid, "--mount", "--uts", "--cgroup", "--wd=/"]);
    command.arg(format!("--pid=/proc/{pid}/ns/pid_for_children"));
    command.arg("env").arg(format!(
        "PATH={}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        parts.programs().display()
    ));
    command.args(argv);
    Ok(command)
}

/// Starts kube-proxy of a node anew, in another mode.
pub fn set_proxy_mode(node: &str, parts: &Parts, mode: ProxyMode) -> Result<()> {
    let file = node_dir(node).join("kube-proxy.json");
    let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    let mut config: Value = serde_json::from_str(&text)?;
    config["mode"] = mode.as_str().into();
    fs::write(&file, config.to_string()).with_context(|| format!("writing {}", file.display()))?;
    let cgroup = layout::cgroup(node)?.join("system/kube-proxy");
    cgroup::destroy(&cgroup)?;
    let log = File::options().append(true).open(node_dir(node).join("kube-proxy.log"))?;
    let config = format!("--config={}", file.display());
    let mut proxy = command_in(node, &cgroup, parts, &["kube-proxy", &config, "--v=2"])?;
    proxy.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
    // It ends with the node.
    proxy.spawn().context("starting kube-proxy").map(drop)
}

/// Imports an image into every node.
pub fn import_everywhere(archive: &Path, parts: &Parts) -> Result<()> {
    let archive = archive.to_str().context("a path that is text")?;
    for node in NODES {
        let output = command(node, parts, &["ctr", "-n", "k8s.io", "images", "import", archive])?.output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "importing {archive} on {node}: {}", said.trim());
    }
    Ok(())
}

fn pid_file(node: &str) -> PathBuf {
    run_dir().join(format!("{node}.pid"))
}
