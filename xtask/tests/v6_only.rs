//! Ring 3 once more where it is different: no IPv4 address on any node or pod, and the guards on clsact, as on kernels
//! before 6.6.
//!
//! Each test makes sure, before and after, that the ground was as announced; so what passes here passed on that.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpStream};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::demo::stage::{Stage, marker};
use xtask::demo::steps::by_id;
use xtask::rings::can_use_kernel;
use xtask::testbed::{AgentOptions, Family, Links, Node, Testbed, World, eventually};

const PATIENCE: Duration = Duration::from_secs(30);

macro_rules! steps {
    ($($id:literal => $name:ident),* $(,)?) => {
        $(#[test]
        fn $name() -> Result<()> {
            let Some(mut stage) = stage(stringify!($name))? else { return Ok(()) };
            on_that_ground(&mut stage, |stage| {
                let seen = (by_id($id)?.run)(stage, &|_| ())?;
                println!("{seen}");
                Ok(())
            })
        })*
    };
}

steps! {
    "capture" => services_lead_into_tunnels,
    "source-address" => the_server_sees_the_client,
    "deny" => policy_denies_and_cuts,
    "strict" => strict_refuses_plaintext,
    "crash" => without_its_agent_nothing_passes,
    "unenrol" => pods_leave_and_return,
}

#[test]
fn the_guard_drops_what_no_hook_saw() -> Result<()> {
    let Some(mut stage) = stage("the guard over IPv6 on clsact")? else { return Ok(()) };
    let past = |stage: &Stage, patience: Duration| -> Result<_> {
        // A thread of this process is in the pod's network and not in its cgroup.
        let (web, shop) = (stage.pod_socket("web", 80), stage.bed.pod("shop"));
        shop.netns.within(|| TcpStream::connect_timeout(&web, patience))
    };
    past(&stage, PATIENCE)?
        .context("plain networking does not lead to the server, so the guard would prove nothing")?;
    on_that_ground(&mut stage, |stage| {
        let before = stage.bed.agent("n1").kernel_outcome("guard_syn_unfiled")?;
        ensure!(past(stage, Duration::from_secs(2))?.is_err(), "a connection went past the guard");
        let dropped = stage.bed.agent("n1").kernel_outcome("guard_syn_unfiled")? - before;
        ensure!(dropped > 0, "it was not the guard that dropped it");
        stage.marked_request("shop", &marker("guard")?)?.expect_ok("a request by the book").map(drop)
    })
}

#[test]
fn other_ground_is_told_from_it() -> Result<()> {
    if !can_use_kernel("both families") {
        return Ok(());
    }
    let stage = Stage::build(Family::V6)?;
    ensure!(!ipv4_addresses(&stage.bed)?.is_empty() && !ipv4_words(&stage.bed.world)?.is_empty());
    ensure!(check_ground(&stage).is_err());
    Ok(())
}

/// The demo's stage on such ground, without a mesh; None if this machine cannot.
fn stage(test: &str) -> Result<Option<Stage>> {
    if !can_use_kernel(test) {
        return Ok(None);
    }
    let links = Links { families: &[Family::V6], ..Links::default() };
    let agents = AgentOptions::with(["--tc=clsact"]);
    Stage::build_over(Family::V6, links, agents).map(Some)
}

/// Starts the mesh and runs a test; the ground must be as announced from its start to its end.
fn on_that_ground(stage: &mut Stage, test: impl FnOnce(&mut Stage) -> Result<()>) -> Result<()> {
    let run = |stage: &mut Stage| {
        stage.start_mesh()?;
        check_ground(stage).context("at the start")?;
        test(stage)?;
        check_ground(stage).context("at the end")
    };
    run(stage).map_err(|error| stage.bed.explain(error))
}

fn check_ground(stage: &Stage) -> Result<()> {
    let bed = &stage.bed;
    let own = ipv4_addresses(bed)?;
    ensure!(own.is_empty(), "there are IPv4 addresses: {own:?}");
    let stated = ipv4_words(&bed.world)?;
    ensure!(stated.is_empty(), "the world states IPv4 addresses: {stated:?}");
    for node in bed.nodes() {
        let pods = bed.pods().filter(|pod| pod.spec.node == node.name && pod.spec.namespace == stage.namespace());
        let expected: BTreeSet<String> =
            pods.flat_map(|pod| ["ingress", "egress"].map(|way| format!("{} clsact/{way}", pod.host_end))).collect();
        // A pod that has just returned has its guards by and by.
        eventually(PATIENCE, "the guards", || {
            let attached = guards(node)?;
            ensure!(attached == expected, "guards on {}: {attached:?}, not {expected:?}", node.name);
            Ok(Some(()))
        })?;
    }
    Ok(())
}

/// Every IPv4 address of a node or a pod but 127.0.0.1, with whose it is.
fn ipv4_addresses(bed: &Testbed) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for netns in bed.nodes().iter().map(|node| &node.netns).chain(bed.pods().map(|pod| &pod.netns)) {
        let shown = Command::new("ip").args(["-n", &netns.name, "-4", "-oneline", "address", "show"]).output()?;
        ensure!(shown.status.success(), "ip in {}: {}", netns.name, String::from_utf8_lossy(&shown.stderr));
        let shown = String::from_utf8(shown.stdout)?;
        let beyond_loopback = shown.lines().filter(|line| !line.contains(" inet 127.0.0.1/8 "));
        found.extend(beyond_loopback.map(|line| format!("{}: {line}", netns.name)));
    }
    Ok(found)
}

/// Every IPv4 address in the YAML that the agents read.
fn ipv4_words(world: &World) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for file in std::fs::read_dir(world.dir())? {
        let text = std::fs::read_to_string(file?.path())?;
        let words = text.split(|c: char| !c.is_ascii_digit() && c != '.');
        found.extend(words.filter(|word| word.parse::<Ipv4Addr>().is_ok()).map(str::to_string));
    }
    Ok(found)
}

/// Where a node's guards are attached: interface, and mechanism and direction as bpftool words them.
fn guards(node: &Node) -> Result<BTreeSet<String>> {
    let shown = node.tool_place().run(&["bpftool", "-j", "net", "show"], PATIENCE)?.expect_ok("bpftool")?;
    let shown: Value = serde_json::from_str(&shown).with_context(|| format!("bpftool says {shown}"))?;
    let text = |program: &Value, field: &str| program[field].as_str().unwrap_or_default().to_string();
    let programs = shown[0]["tc"].as_array().context("bpftool lists no tc programs")?.iter();
    let guards = programs.filter(|program| text(program, "name").starts_with("nm_guard_"));
    Ok(guards.map(|guard| format!("{} {}", text(guard, "devname"), text(guard, "kind"))).collect())
}
