//! The mesh goes, and leaves nothing.

use anyhow::{Context, Result, ensure};
use xtask::cluster::{layout::NODES, node};
use xtask::testbed::eventually;

use crate::enrolment::STRICT;
use crate::support::{ENABLED, Kube, PATIENCE, in_cluster};

fn on_node(kube: &Kube, node: &str, script: &str) -> Result<String> {
    let output = node::command(node, &kube.parts, &["sh", "-c", script])?.output().context("entering a node")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_string())
}

#[test]
fn nothing_is_left_of_it() {
    in_cluster("nothing_is_left_of_it", |kube| {
        kube.spoil();
        let namespace = kube.namespace("leaves", ENABLED)?;
        namespace.web("web", "n1")?;
        namespace.client("shop", "n2")?;
        namespace.wait_ready()?;
        namespace.apply(STRICT)?;
        namespace.eventually_answers("shop", "http://web/", "web to ")?;
        for node in NODES {
            let pins = on_node(kube, node, "find /sys/fs/bpf/nodemesh -type f | wc -l")?;
            ensure!(pins.parse::<u32>().is_ok_and(|pins| pins > 0), "{node} has {pins} pins while the mesh runs");
        }
        uninstall(kube)?;
        for node in NODES {
            eventually(PATIENCE, &format!("nothing to be left on {node}"), || {
                let left = on_node(
                    kube,
                    node,
                    "find /sys/fs/bpf/nodemesh /run/nodemesh -mindepth 1 2>/dev/null; ls /etc/cni/net.d/*nodemesh* 2>/dev/null",
                )?;
                Ok(left.is_empty().then_some(()))
            })?;
        }
        // The pods are as if there had never been a mesh.
        namespace.eventually_answers("shop", "http://web/", "web to ")?;
        let (_, routes) = namespace.run("shop", &["sh", "-c", "ip route show table local | grep 127.128; true"])?;
        ensure!(routes.is_empty(), "a route is left in a pod: {routes}");
        namespace.client("late", "n1")?;
        namespace.wait_ready()?;
        namespace.eventually_answers("late", "http://web/", "web to ")
    });
}

/// As docs/kubernetes.md says it.
fn uninstall(kube: &Kube) -> Result<()> {
    let agents = "app.kubernetes.io/name=nodemesh-agent";
    kube.kubectl(&["-n", "nodemesh-system", "delete", "daemonset", "nodemesh-agent"])?;
    kube.kubectl(&["-n", "nodemesh-system", "wait", "--for=delete", "pod", "-l", agents, "--timeout=120s"])?;
    let base = xtask::build::root().join("manifests/base").display().to_string();
    kube.kubectl(&["delete", "-k", &base, "--ignore-not-found", "--timeout=180s"]).map(drop)
}
