//! The plugin of the container network: pods start captured, or wait.

use anyhow::{Context, Result, ensure};
use xtask::cluster::layout::NODES;
use xtask::image;
use xtask::testbed::eventually;

use crate::support::{Kube, PATIENCE, in_cluster};

/// The first thing that it does is to call.
const AT_ONCE: &str =
    "command: [sh, -c, 'curl -sS --max-time 60 http://web/ > /tmp/first 2>&1; exec sleep 2147483647']";

/// Kubelet calls it when a container of it has started, and before that is ended.
const HOOKED: &str = "
apiVersion: v1
kind: Pod
metadata: {name: hooked}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 15
  containers:
  - name: main
    image: localhost/tools:1
    command: [nginx]
    lifecycle:
      postStart: {exec: {command: [sh, -c, 'until curl -s -o /dev/null http://localhost:8080/; do sleep 0.1; done']}}
      preStop: {exec: {command: [sleep, '8']}}
  - name: aside
    image: localhost/tools:1
    lifecycle:
      postStart: {httpGet: {port: 8080, path: /begun}}
      preStop: {httpGet: {port: 8080, path: /ending}}
";

#[test]
fn pods_of_the_mesh_start_captured_or_wait() {
    in_cluster("pods_of_the_mesh_start_captured_or_wait", |kube| {
        kube.install("overlays/cni")?;
        for node in NODES {
            eventually(PATIENCE, &format!("the plugin to be in the chain on {node}"), || {
                Ok(kube.on_node(node, PLUGIN)?.contains("/etc/cni/net.d").then_some(()))
            })?;
        }
        // Its caller is answered: DNS and kube-proxy, which nobody waits for, know the Service before a pod calls at once.
        let namespace = kube.shop("races", &[("shop", "n2")])?;
        let others = kube.namespace("races-others", "")?;
        namespace.pod("first", "n2", AT_ONCE)?;
        namespace.apply(HOOKED)?;
        namespace.wait_ready()?;
        let said = eventually(PATIENCE, "the first call to end", || {
            let (ok, said) = namespace.run("first", &["cat", "/tmp/first"])?;
            Ok((ok && !said.is_empty()).then_some(said))
        })?;
        ensure!(said.starts_with("web to "), "the first call of a pod was answered {said:?}");
        let hooks = std::thread::scope(|scope| {
            let log = scope.spawn(|| namespace.kubectl(&["logs", "--follow", "hooked", "--container=main"]));
            namespace.kubectl(&["delete", "pod", "hooked"])?;
            log.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        for called in ["GET /begun ", "GET /ending "] {
            ensure!(hooks.contains(called), "kubelet's call of a pod that is STRICT is not in its log:\n{hooks}");
        }

        break_agent(kube, "n1")?;
        namespace.client("late", "n1")?;
        others.client("other", "n1")?;
        // Who is not of the mesh does not wait.
        others.wait_ready()?;
        eventually(PATIENCE, "the reason why a pod waits", || {
            let selector = "--field-selector=involvedObject.name=late,reason=FailedCreatePodSandBox";
            let events = namespace.kubectl(&["get", "events", selector, "-o", "jsonpath={.items[*].message}"])?;
            ensure!(events.contains("no agent answers on this node"), "{events}");
            ensure!(events.contains("and waits for it"), "{events}");
            Ok(Some(()))
        })?;
        // Kubelet tells the event and the state by different ways.
        let waiting = ".status.containerStatuses[0].state.waiting.reason";
        namespace.eventually_says("pod/late", waiting, "ContainerCreating")?;
        mend_agent(kube, "n1")?;
        namespace.wait_ready()?;
        namespace.eventually_answers("late", "http://web/", "web to ")?;

        // The plugin is taken back, the mesh stays.
        kube.install("base")?;
        for node in NODES {
            eventually(PATIENCE, &format!("the plugin to be gone from {node}"), || {
                let left = kube.on_node(node, PLUGIN)?;
                ensure!(left.is_empty(), "{left}");
                Ok(Some(()))
            })?;
        }
        namespace.client("later", "n1")?;
        namespace.wait_ready()?;
        namespace.eventually_answers("later", "http://web/", "web to ")
    });
}

/// What the plugin has on a node, one file a line.
const PLUGIN: &str =
    "ls /opt/cni/bin/nodemesh-cni /etc/cni/net.d/nodemesh-* 2>/dev/null; grep -l nodemesh-cni /etc/cni/net.d/*; true";

/// The agent of a node dies, and its image is gone: its pod stays, and does not come back.
fn break_agent(kube: &Kube, node: &str) -> Result<()> {
    let agent = kube.agent(node)?;
    let status = |what: &str| {
        let path = format!("jsonpath={{.status.containerStatuses[?(@.name=='agent')].{what}}}");
        kube.kubectl(&["-n", "nodemesh-system", "get", &agent, "-o", &path])
    };
    let id = status("containerID")?;
    let id = id.strip_prefix("containerd://").with_context(|| format!("{id} is no container"))?;
    let ctr = "ctr --namespace k8s.io";
    let script = format!("{ctr} images rm {} && {ctr} tasks kill --signal SIGKILL {id}", image::default_name());
    kube.on_node(node, &script)?;
    eventually(PATIENCE, "the agent to be dead", || {
        let (state, other) = (status("state")?, status("containerID")?);
        ensure!(!other.ends_with(id) || !state.contains("running"), "{state}");
        ensure!(state.contains("waiting"), "{state}");
        Ok(Some(()))
    })
}

/// Its image is there again, and so is a new pod of it.
fn mend_agent(kube: &Kube, node: &str) -> Result<()> {
    let dead = kube.agent(node)?;
    xtask::cluster::import_agent(&kube.parts)?;
    kube.kubectl(&["-n", "nodemesh-system", "delete", &dead])?;
    let agents = "daemonset/nodemesh-agent";
    kube.kubectl(&["-n", "nodemesh-system", "rollout", "status", agents, "--timeout=180s"]).map(drop)
}
