//! What people look at the mesh with, through the API server and with their own rights.

use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::build;
use xtask::cluster::layout::NODES;
use xtask::cluster::{self, control, layout};
use xtask::testbed::eventually;

use crate::support::{ENABLED, Kube, PATIENCE, STRICT, in_cluster};
use crate::uninstall::LEFT;

/// meshctl beside the API server; its exit status and what it said.
fn meshctl(arguments: &[&str]) -> Result<(Option<i32>, String)> {
    let config = format!("--kubeconfig={}", layout::admin_config().display());
    let program = build::target_dir().join("debug/meshctl").display().to_string();
    let argv: Vec<&str> = [program.as_str(), &config].into_iter().chain(arguments.iter().copied()).collect();
    let output = control::place()?.command(&argv)?.output().context("starting meshctl")?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Ok((output.status.code(), said))
}

/// What it says, once it ends so, or in any way, and all of this is in it: agents hear of the cluster, and tell of
/// connections, a moment later, and a busy one answers late.
fn eventually_says(typed: &[&str], status: Option<i32>, parts: &[&str]) -> Result<String> {
    eventually(PATIENCE, &format!("meshctl {} to say {parts:?}", typed.join(" ")), || {
        let (ended, said) = meshctl(typed)?;
        let missing: Vec<&&str> = parts.iter().filter(|part| !said.contains(**part)).collect();
        ensure!((status.is_none() || ended == status) && missing.is_empty(), "{ended:?}, no {missing:?} in {said}");
        Ok(Some(said))
    })
}

#[test]
fn meshctl_asks_every_agent_through_the_api_server() {
    in_cluster("meshctl_asks_every_agent_through_the_api_server", |kube| {
        let built = build::cargo().args(["build", "--package=mesh-agent", "--bin=meshctl"]).status()?;
        ensure!(built.success(), "building meshctl: {built}");
        let namespace = kube.shop("looked-at", &[("shop", "n2")])?;

        // Pods of the test before may be there for a moment, with what is wrong with them.
        let said = eventually_says(&["status"], Some(0), &[])?;
        ensure!(["n1", "n2"].iter().all(|node| said.lines().any(|line| line.starts_with(node))), "{said}");
        let said = eventually_says(&["status", "-o", "json"], Some(0), &[])?;
        let mesh: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
        ensure!(mesh["healthy"] == true, "{said}");
        ensure!(mesh["agents"].as_array().is_some_and(|agents| agents.iter().all(|a| a["ready"] == true)), "{said}");

        let spiffe = "spiffe://cluster.local/ns/looked-at/sa/web";
        eventually_says(&["identity", "looked-at/web"], Some(0), &[spiffe])?;

        // A connection that lives while it is looked for.
        let call = "(printf 'GET / '; sleep 61) | nc web 80";
        let shown = std::thread::scope(|scope| {
            let calling = scope.spawn(|| namespace.run("shop", &["sh", "-c", call]));
            let seen = eventually(PATIENCE, "the connection to be shown", || {
                let (_, said) = meshctl(&["connections", "--namespace", "looked-at"])?;
                Ok((said.contains("looked-at/shop") && said.contains("tunnel")).then_some(said))
            });
            let graph = eventually_says(&["graph", "-o", "dot"], Some(0), &["looked-at/shop"]);
            namespace.run("shop", &["pkill", "-f", "sleep 61"])?;
            let _ = calling.join();
            graph.and(seen)
        })?;
        ensure!(shown.contains("looked-at/web"), "{shown}");

        // What the API server says, too; other tests' objects may be in trouble.
        let parts = [
            "ok      API server: v1.",
            "ok      your rights",
            "ok      nodes have an agent: all 2",
            "ok      agents answer: all 2",
            "ok      agents are rolled out",
            "ok      controller: 2 of 2 ready",
            "ok      clocks",
            "kernels: ",
        ];
        eventually_says(&["check"], None, &parts)?;
        eventually_says(&["policy", "explain", "looked-at/web"], Some(0), &["everybody else may"])?;

        // What ends while somebody listens is heard through the API server.
        let heard = std::thread::scope(|scope| {
            let listening =
                scope.spawn(|| meshctl(&["flows", "--namespace", "looked-at", "--for", "15s", "-o", "json"]));
            while !listening.is_finished() {
                namespace.run("shop", &["sh", "-c", "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 2 web 80"])?;
            }
            listening.join().map_err(|_| anyhow::anyhow!("listening panicked"))?
        })?;
        let flows = heard.1.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let told: Vec<Value> = flows.filter(|flow| flow["source"]["pod"] == "looked-at/shop").collect();
        ensure!(heard.0 == Some(0) && !told.is_empty(), "{heard:?}");

        // Who may not, is told so.
        let (status, said) = meshctl(&["status", "-n", "nowhere"])?;
        ensure!(status == Some(2) && said.contains("no agents in namespace nowhere"), "{status:?}: {said}");
        Ok(())
    });
}

/// The controller's map shows what goes between two nodes, whichever replica is asked; agents tell it.
#[test]
fn the_controllers_map_shows_an_edge_between_nodes() {
    in_cluster("the_controllers_map_shows_an_edge_between_nodes", |kube| {
        let namespace = kube.shop("mapped", &[("shop", "n2")])?;
        let selector = "app.kubernetes.io/name=nodemesh-controller";
        let listed = ["-n", "nodemesh-system", "get", "pods", "-l", selector, "-o", "name"];
        // Those of a mesh before this one may still be ending.
        let replicas = eventually(PATIENCE, "two replicas of the controller", || {
            let replicas = kube.kubectl(&listed)?;
            ensure!(replicas.lines().count() == 2, "{replicas}");
            Ok(Some(replicas))
        })?;
        // Both are told within a minute or two, by chance of the Service.
        let mut forwarded: Vec<PortForward> = (0u16..)
            .zip(replicas.lines())
            .map(|(n, pod)| PortForward::start(kube, pod, 25080 + n))
            .collect::<Result<_>>()?;
        for forward in &mut forwarded {
            eventually(TO_BE_TOLD, "the map to show the edge, and both agents well", || {
                forward.stay(kube)?;
                namespace.run("shop", &["sh", "-c", "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 2 web 80"])?;
                let Some(picture) = forward.ask("/api/snapshot")? else { return Ok(None) };
                let edges = picture["edges"].as_array().context("no edges")?;
                let is_there = edges.iter().any(|edge| edge["from"] == "mapped/shop" && edge["to"] == "mapped/web");
                // What agents are is told less often than what they count.
                let agents = picture["agents"].as_array().context("no agents")?;
                let are_well = agents.len() == 2 && agents.iter().all(|agent| agent["health"] != "bad");
                Ok((is_there && are_well).then_some(()))
            })?;
            eventually(PATIENCE, "the map to show what is live on the edge", || {
                forward.stay(kube)?;
                namespace.run("shop", &["sh", "-c", "(sleep 20 | nc web 80) >/dev/null 2>&1 &"])?;
                let Some(detail) = forward.ask("/api/edge?from=mapped/shop&to=mapped/web")? else { return Ok(None) };
                let told = detail["flows"].as_array().context("no flows")?;
                ensure!(!told.is_empty(), "{detail}");
                let is_own = |flow: &Value| {
                    let identity = flow["destination"]["identity"].as_str().unwrap_or_default();
                    flow["agent"].is_string() && identity.ends_with("/ns/mapped/sa/web")
                };
                ensure!(told.iter().all(is_own), "{detail}");
                Ok(Some(()))
            })?;
        }
        Ok(())
    });
}

/// Until both replicas of the controller are told: an agent looks for another after seconds, then ever less often, up to two
/// minutes, and each time half of the looks find the one that it has.
const TO_BE_TOLD: Duration = Duration::from_secs(600);

/// kubectl port-forward beside the API server, until it is dropped.
struct PortForward {
    child: Child,
    pod: String,
    port: u16,
}

impl PortForward {
    fn start(kube: &Kube, pod: &str, port: u16) -> Result<Self> {
        let ports = format!("{port}:15080");
        let argv = ["-n", "nodemesh-system", "port-forward", pod, &ports];
        let mut command = cluster::kubectl_command(&kube.parts, &argv)?;
        let child = command.stdout(Stdio::null()).spawn().context("kubectl port-forward")?;
        Ok(Self { child, pod: pod.to_string(), port })
    }

    /// What is answered there, where that is JSON.
    fn ask(&self, path: &str) -> Result<Option<Value>> {
        let url = format!("http://127.0.0.1:{}{path}", self.port);
        let output = control::place()?.command(&["curl", "-s", "--max-time", "5", &url])?.output()?;
        Ok(serde_json::from_slice(&output.stdout).ok())
    }

    /// It ends with a connection that was lost: then once more.
    fn stay(&mut self, kube: &Kube) -> Result<()> {
        if self.child.try_wait()?.is_some() {
            *self = Self::start(kube, &self.pod, self.port)?;
        }
        Ok(())
    }
}

impl Drop for PortForward {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the mesh costs here: two pods come, are asked, and go.
#[test]
fn meshctl_bench_compares_a_meshed_pod_with_one_that_is_not() {
    in_cluster("meshctl_bench_compares_a_meshed_pod_with_one_that_is_not", |kube| {
        let built = build::cargo().args(["build", "--package=mesh-agent", "--bin=meshctl"]).status()?;
        ensure!(built.success(), "building meshctl: {built}");
        // Pods of a run pass the strictest profile, and whoever is at home there is their identity.
        let labels = format!("{ENABLED}, pod-security.kubernetes.io/warn: restricted");
        let open = kube.namespace("benched", &labels)?;
        open.web("web", "n1")?;
        open.wait_ready()?;
        let guests = kube.namespace("benching", "pod-security.kubernetes.io/enforce: restricted")?;
        let typed =
            ["bench", "http://web.benched/", "--from", "benching", "--node", "n2", "--rate", "50", "-o", "json"];
        let told = eventually(PATIENCE, "both pods to be answered", || {
            let (status, said) = meshctl(&typed)?;
            let told: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
            Ok((status == Some(0)).then_some(told))
        })?;
        ensure!(told["place"]["node"] == "n2" && told["plainIsRefused"] == false, "{told}");
        for pod in ["plain", "meshed"] {
            ensure!(told[pod]["ok"] == 500 && told[pod]["statuses"]["200"] == 500, "{told}");
        }
        ensure!(told["ratio"]["p50"].as_f64().is_some_and(|ratio| ratio > 0.0), "{told}");

        // Nobody without an identity is let in any more.
        open.apply(STRICT)?;
        let typed = ["bench", "http://web.benched/", "--from", "benching/default", "--for", "3s"];
        let said = eventually(PATIENCE, "the pod outside the mesh to be refused", || {
            let (status, said) = meshctl(&typed)?;
            Ok((status == Some(0) && said.contains("without the mesh nothing is let in")).then_some(said))
        })?;
        ensure!(said.contains("MESHED") && !said.contains("PLAIN"), "{said}");

        // A server that is not there fails both, and is told.
        let (status, said) = meshctl(&["bench", "http://web.benched:81/", "--from", "benching", "--for", "1s"])?;
        ensure!(status == Some(1) && said.contains("plain: not answered"), "{status:?}: {said}");
        let (status, said) = meshctl(&["bench", "http://web.benched/", "--from", "nowhere"])?;
        ensure!(status == Some(2) && said.contains("nowhere"), "{status:?}: {said}");
        eventually(PATIENCE, "the pods to be gone", || {
            Ok(guests.kubectl(&["get", "pods", "-o", "name"])?.trim().is_empty().then_some(()))
        })
    });
}

/// The same that manifests and kubectl do, by one command each; and what whoever helps is sent.
#[test]
fn meshctl_upgrades_takes_off_and_installs() {
    in_cluster("meshctl_upgrades_takes_off_and_installs", |kube| {
        let built = build::cargo().args(["build", "--package=mesh-agent", "--bin=meshctl"]).status()?;
        ensure!(built.success(), "building meshctl: {built}");
        kube.spoil();
        let namespace = kube.shop("commanded", &[("shop", "n2")])?;
        // kubectl applied it, and both say the same, so nothing is taken over from anybody.
        done(&["upgrade"], "the mesh is upgraded")?;
        namespace.eventually_answers("shop", "http://web/", "web to ")?;
        bundle(kube)?;

        done(&["uninstall", "--yes", "--purge"], "the mesh is uninstalled")?;
        for node in NODES {
            eventually(PATIENCE, &format!("nothing to be left on {node}"), || {
                let left = kube.on_node(node, LEFT)?;
                ensure!(left.is_empty(), "{left}");
                Ok(Some(()))
            })?;
        }
        namespace.eventually_answers("shop", "http://web/", "web to ")?;

        // The namespace still goes when its successor is wanted.
        until_gone(kube)?;
        done(&["install", "--profile", "cni"], "the mesh is installed")?;
        namespace.eventually_answers("shop", "http://web/", "web to ")?;
        namespace.client("late", "n1")?;
        namespace.wait_ready()?;
        namespace.eventually_answers("late", "http://web/", "web to ")?;
        done(&["uninstall", "--yes", "--purge"], "the mesh is uninstalled")?;
        // The next test installs into it.
        until_gone(kube)
    });
}

fn until_gone(kube: &Kube) -> Result<()> {
    // Its pods, each with its time to end, and everything else in it.
    eventually(2 * PATIENCE, "the namespace to be gone", || {
        let namespaces = kube.kubectl(&["get", "namespaces", "-o", "name"])?;
        Ok((!namespaces.contains("nodemesh-system")).then_some(()))
    })
}

fn done(typed: &[&str], said: &str) -> Result<()> {
    let (status, told) = meshctl(typed)?;
    println!("$ meshctl {}\n{told}", typed.join(" "));
    ensure!(status == Some(0) && told.contains(said), "{typed:?}: {status:?}: {told}");
    Ok(())
}

/// All is in it but what is secret.
fn bundle(kube: &Kube) -> Result<()> {
    let place = tempfile::tempdir()?;
    let file = place.path().join("bundle.tar.gz").display().to_string();
    let (status, said) = meshctl(&["support-bundle", "--file", &file])?;
    ensure!(matches!(status, Some(0 | 1)), "{status:?}: {said}");
    let unpacked = std::process::Command::new("tar").args(["-xzf", &file, "-C"]).arg(place.path()).status()?;
    ensure!(unpacked.success(), "tar: {unpacked}");
    let files = std::process::Command::new("grep").args(["-rc", "", "."]).current_dir(place.path()).output()?;
    let files = String::from_utf8_lossy(&files.stdout).into_owned();
    for part in
        ["cluster/nodes.json", "mesh/pods.json", "config_dump.json", "metrics.txt", "/agent.log", "/controller.log"]
    {
        ensure!(files.contains(part), "{part} is not in {files}");
    }
    let key = kube.kubectl(&["-n", "nodemesh-system", "get", "secret", "nodemesh-ca", "-o", "jsonpath={.data}"])?;
    let longest = key.split('"').max_by_key(|part| part.len()).context("a key")?.to_string();
    for secret in ["PRIVATE KEY", "eyJhbGci", longest.get(..64).unwrap_or(&longest)] {
        let found =
            std::process::Command::new("grep").args(["-rlF", "--", secret, "."]).current_dir(place.path()).output()?;
        ensure!(found.stdout.is_empty(), "{secret}: {}", String::from_utf8_lossy(&found.stdout));
    }
    Ok(())
}
