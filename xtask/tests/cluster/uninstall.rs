//! The mesh goes, and leaves nothing.

use anyhow::{Result, ensure};
use xtask::cluster::layout::NODES;
use xtask::testbed::eventually;

use crate::support::{Kube, PATIENCE, in_cluster};

/// Everything that the mesh may leave on a node, one name a line.
pub const LEFT: &str = "find /sys/fs/bpf/nodemesh /opt/cni/bin/nodemesh-cni /etc/cni/net.d/nodemesh-* 2>/dev/null; \
                    find /run/nodemesh -type f -o -type s 2>/dev/null; grep -l nodemesh /etc/cni/net.d/*; true";

#[test]
fn nothing_is_left_of_it() {
    in_cluster("nothing_is_left_of_it", |kube| {
        kube.install("overlays/cni")?;
        kube.spoil();
        // Earlier agents still drain: they must not take capture back from those that leave.
        let namespace = kube.shop("leaves", &[("shop", "n2")])?;
        for node in NODES {
            for part in ["/sys/fs/bpf/nodemesh/", "/opt/cni/bin/nodemesh-cni", "/etc/cni/net.d/10-podnet.conflist"] {
                eventually(PATIENCE, &format!("{part} to be on {node} while the mesh runs"), || {
                    let there = kube.on_node(node, LEFT)?;
                    ensure!(there.contains(part), "{there}");
                    Ok(Some(()))
                })?;
            }
        }
        // At no time the configuration may name a plugin that is not there: pods would not start, and not end either.
        let watch = "while [ ! -e /tmp/nodemesh-watched ]; do \
                     if [ ! -x /opt/cni/bin/nodemesh-cni ] && grep -q nodemesh-cni /etc/cni/net.d/*; \
                     then echo named and not there; fi; sleep 0.01; done; rm /tmp/nodemesh-watched";
        let said = std::thread::scope(|scope| {
            let watched = scope.spawn(|| kube.on_node("n1", watch));
            let gone = uninstall(kube);
            kube.on_node("n1", "touch /tmp/nodemesh-watched")?;
            gone.and(watched.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })?;
        ensure!(said.is_empty(), "{said}");
        for node in NODES {
            eventually(PATIENCE, &format!("nothing to be left on {node}"), || {
                let left = kube.on_node(node, LEFT)?;
                ensure!(left.is_empty(), "{left}");
                Ok(Some(()))
            })?;
        }
        // The pods are as if there had never been a mesh, and new ones start.
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
    kube.kubectl(&["-n", "nodemesh-system", "wait", "--for=delete", "pod", "-l", agents, "--timeout=300s"])?;
    let base = xtask::build::root().join("manifests/base").display().to_string();
    kube.kubectl(&["delete", "-k", &base, "--ignore-not-found", "--timeout=300s"]).map(drop)
}
