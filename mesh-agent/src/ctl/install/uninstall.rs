//! `meshctl uninstall`: the agents first, and nothing else before they are gone. Without its agent a node's pods would stay
//! captured; without its rights an agent could not see that it is to take the mesh off.

use std::collections::BTreeSet;
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use clap::Args;
use serde_json::{Value, json};

use super::cluster::{Cluster, Step, is_ready, node_of};
use super::objects::{self, AGENTS, Profile, Wanted};
use super::{awaited, helm_release};
use crate::ctl::args::{WhomArgs, some_time};
use crate::ctl::table::Tone;
use crate::ctl::{Screen, Verdict};

/// `meshctl uninstall`
#[derive(Args, Debug)]
pub struct UninstallArgs {
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    /// Delete the definitions of policies, too, and with them every policy of the cluster
    #[arg(long)]
    pub purge: bool,
    /// Go on though nodes have no agent that is ready: what the mesh has there stays until mesh-agent detach
    #[arg(long)]
    pub force: bool,
    /// How long to wait for the agents: they serve what they have, for ten minutes at most
    #[arg(long, value_name = "DURATION", default_value = "15m", value_parser = some_time)]
    pub wait: Duration,
}

/// `meshctl uninstall`
pub async fn uninstall(args: &UninstallArgs, whom: &WhomArgs, screen: &mut Screen<'_>) -> Result<Verdict> {
    let cluster = Cluster::find(whom).await?;
    let set = cluster.agents().await?;
    if let Some(release) = set.as_ref().and_then(helm_release) {
        bail!(
            "Helm installed it (release {release}): kubectl -n {} delete daemonset {AGENTS}, wait until its pods are gone, \
             then helm uninstall {release} -n {}",
            cluster.namespace,
            cluster.namespace
        );
    }
    let pods = cluster.pods().await?;
    if set.is_none() && pods.is_empty() && !cluster.has_namespace().await? {
        bail!("there is no mesh in namespace {}: -n names the one that it is in", cluster.namespace);
    }
    let wanted = set.as_ref().and_then(|set| set.status.as_ref()).map_or(0, |status| status.desired_number_scheduled);
    let nodes: BTreeSet<&str> = pods.iter().filter(|pod| is_ready(pod)).filter_map(node_of).collect();
    let ready = i32::try_from(nodes.len()).unwrap_or(i32::MAX);
    ensure!(
        ready >= wanted || args.force,
        "{ready} of {wanted} nodes have an agent that is ready: on the others pods would stay captured, and refuse new \
         connections. See meshctl check; or --force, then on each such node mesh-agent detach --bpf-pins /sys/fs/bpf/nodemesh"
    );
    let strangers = cluster.strangers().await?;
    if !args.yes && !agreed(&warning(&cluster, args.purge, strangers.is_empty()), screen)? {
        screen.print("nothing was changed\n")?;
        return Ok(Verdict::Wrong);
    }
    let objects = Wanted { profile: Profile::Default, namespace: &whom.mesh_namespace, image: None }.objects()?;
    let (agents, others): (Vec<Value>, Vec<Value>) =
        objects.into_iter().partition(|object| object["kind"] == "DaemonSet");
    for object in &agents {
        delete(&cluster, object, screen).await?;
    }
    let gone = || async {
        let pods = cluster.pods().await?;
        let nodes: BTreeSet<&str> = pods.iter().filter_map(node_of).collect();
        let nodes: Vec<&str> = nodes.into_iter().collect();
        let told = if pods.is_empty() { "gone".into() } else { format!("end on {}", nodes.join(", ")) };
        Ok(Step { is_done: pods.is_empty(), told })
    };
    if !awaited("agents", Instant::now() + args.wait, screen, gone).await? {
        let wait = humantime::format_duration(args.wait);
        bail!(
            "agents are still there after {wait} (--wait), so what they need stays, too: kubectl -n {} get pods -o wide has \
             why. Then meshctl uninstall again",
            cluster.namespace
        );
    }
    let kept = others.iter().filter(|object| is_kept(object, args.purge));
    let kept: Vec<String> = kept.map(objects::name).collect();
    for object in others.iter().rev().filter(|object| !is_kept(object, args.purge)) {
        // The namespace may be others', too.
        if object["kind"] != "Namespace" || strangers.is_empty() {
            delete(&cluster, object, screen).await?;
        }
    }
    if !strangers.is_empty() {
        for object in left_by_controller(&cluster.namespace) {
            delete(&cluster, &object, screen).await?;
        }
        screen.print(&format!("kept      Namespace {}: {} runs there\n", cluster.namespace, strangers.join(", ")))?;
    }
    if !kept.is_empty() {
        screen.print(&format!("kept      {} definitions, and the policies of these kinds (--purge)\n", kept.len()))?;
    }
    screen.print("the mesh is uninstalled\n")?;
    Ok(Verdict::Well)
}

/// Whoever loses the definitions loses every policy.
fn is_kept(object: &Value, purge: bool) -> bool {
    object["kind"] == "CustomResourceDefinition" && !purge
}

/// What the controller made by itself; the root is among it.
fn left_by_controller(namespace: &str) -> Vec<Value> {
    let object = |version: &str, kind: &str, name: &str| json!({"apiVersion": version, "kind": kind, "metadata": {"namespace": namespace, "name": name}});
    vec![
        object("v1", "Secret", "nodemesh-ca"),
        object("v1", "ConfigMap", "nodemesh-ca-roots"),
        object("coordination.k8s.io/v1", "Lease", "nodemesh-controller"),
    ]
}

async fn delete(cluster: &Cluster, object: &Value, screen: &mut Screen<'_>) -> Result<()> {
    let (word, tone) = match cluster.delete(object).await? {
        true => ("deleted  ", Tone::Doubtful),
        false => ("not there", Tone::Faint),
    };
    screen.print(&format!("{} {}\n", screen.paint().apply(word, tone), objects::name(object)))
}

fn warning(cluster: &Cluster, purge: bool, with_namespace: bool) -> String {
    let mut said = format!(
        "This takes the mesh off the cluster at {}: pods talk in plaintext again, and no policy of the mesh holds.\n",
        cluster.server.address()
    );
    if with_namespace {
        said.push_str(&format!("Namespace {} goes with all that is in it, the root's key too.\n", cluster.namespace));
    }
    if purge {
        said.push_str("Every policy of the mesh in every namespace is deleted.\n");
    }
    said
}

/// Whether somebody at a terminal says yes.
fn agreed(warning: &str, screen: &mut Screen<'_>) -> Result<bool> {
    ensure!(io::stdin().is_terminal(), "{warning}there is no terminal to ask whether that is meant: --yes");
    screen.print(&format!("{warning}Go on? [y/N] "))?;
    io::stdout().flush()?;
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    Ok(matches!(line.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}
