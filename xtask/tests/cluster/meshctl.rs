//! What people look at the mesh with, through the API server and with their own rights.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::build;
use xtask::cluster::{control, layout};
use xtask::testbed::eventually;

use crate::support::{PATIENCE, in_cluster};

/// meshctl beside the API server; its exit status and what it said.
fn meshctl(arguments: &[&str]) -> Result<(Option<i32>, String)> {
    let config = format!("--kubeconfig={}", layout::admin_config().display());
    let program = build::target_dir().join("debug/meshctl").display().to_string();
    let argv: Vec<&str> = [program.as_str(), &config].into_iter().chain(arguments.iter().copied()).collect();
    let output = control::place()?.command(&argv)?.output().context("starting meshctl")?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Ok((output.status.code(), said))
}

#[test]
fn meshctl_asks_every_agent_through_the_api_server() {
    in_cluster("meshctl_asks_every_agent_through_the_api_server", |kube| {
        let built = build::cargo().args(["build", "--package=mesh-agent", "--bin=meshctl"]).status()?;
        ensure!(built.success(), "building meshctl: {built}");
        let namespace = kube.shop("looked-at", &[("shop", "n2")])?;

        // Pods of the test before may be there for a moment, with what is wrong with them.
        let said = eventually(PATIENCE, "all to be well", || {
            let (status, said) = meshctl(&["status"])?;
            ensure!(status == Some(0), "{status:?}: {said}");
            Ok(Some(said))
        })?;
        ensure!(["n1", "n2"].iter().all(|node| said.lines().any(|line| line.starts_with(node))), "{said}");
        let (status, said) = meshctl(&["status", "-o", "json"])?;
        let mesh: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
        ensure!(status == Some(0) && mesh["healthy"] == true, "{status:?}: {said}");
        ensure!(mesh["agents"].as_array().is_some_and(|agents| agents.iter().all(|a| a["ready"] == true)), "{said}");

        let (status, said) = meshctl(&["identity", "looked-at/web"])?;
        ensure!(status == Some(0) && said.contains("spiffe://cluster.local/ns/looked-at/sa/web"), "{status:?}: {said}");

        // A connection that lives while it is looked for.
        let call = "(printf 'GET / '; sleep 61) | nc web 80";
        let (shown, graph) = std::thread::scope(|scope| {
            let calling = scope.spawn(|| namespace.run("shop", &["sh", "-c", call]));
            let seen = eventually(PATIENCE, "the connection to be shown", || {
                let (_, said) = meshctl(&["connections", "--namespace", "looked-at"])?;
                Ok((said.contains("looked-at/shop") && said.contains("tunnel")).then_some(said))
            });
            let graph = meshctl(&["graph", "-o", "dot"]);
            namespace.run("shop", &["pkill", "-f", "sleep 61"])?;
            let _ = calling.join();
            Ok::<_, anyhow::Error>((seen?, graph?))
        })?;
        ensure!(shown.contains("looked-at/web"), "{shown}");
        ensure!(graph.0 == Some(0) && graph.1.contains("looked-at/shop"), "{graph:?}");

        // Who may not, is told so.
        let (status, said) = meshctl(&["status", "-n", "nowhere"])?;
        ensure!(status == Some(2) && said.contains("no agents in namespace nowhere"), "{status:?}: {said}");
        Ok(())
    });
}
