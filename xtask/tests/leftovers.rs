//! What stays in the kernel when an agent is killed and started again. In a binary of its own, because it counts the
//! programs and maps of the whole machine, and cargo runs test binaries one after another.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::demo::stage::Stage;
use xtask::rings::can_use_kernel;
use xtask::testbed::{AgentOptions, Family, eventually};

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn agents_that_are_killed_and_started_again_leave_no_program_or_map() -> Result<()> {
    if !can_use_kernel("leftovers") {
        return Ok(());
    }
    let at_first = settled()?;
    let mut stage = Stage::build(Family::V4)?;
    stage.start_mesh()?;
    served(&stage)?;
    let with_mesh = settled()?;
    for _ in 0..3 {
        for node in ["n1", "n2"] {
            stage.bed.agent_mut(node).kill()?;
            stage.bed.start_agent(node, &AgentOptions::default())?;
        }
        served(&stage)?;
    }
    settles_at(&with_mesh, "after three kills of each agent")?;
    drop(stage);
    settles_at(&at_first, "after the end of the run")
}

fn served(stage: &Stage) -> Result<()> {
    eventually(PATIENCE, "requests to be served", || {
        stage.curl("shop", &["http://web.demo/"])?.expect_ok("curl").map(Some)
    })?;
    Ok(())
}

/// Kinds of objects and how many of each name there are.
type Count = BTreeMap<String, usize>;

fn count() -> Result<Count> {
    let mut found = Count::new();
    for kind in ["prog", "map", "link"] {
        let output = Command::new("bpftool").args(["-j", kind, "show"]).output().context("running bpftool")?;
        ensure!(output.status.success(), "bpftool {kind} show: {}", String::from_utf8_lossy(&output.stderr));
        let objects: Vec<Value> = serde_json::from_slice(&output.stdout).context("reading bpftool's answer")?;
        for object in objects {
            let name = object["name"].as_str().or(object["type"].as_str()).unwrap_or("?");
            *found.entry(format!("{kind} {name}")).or_default() += 1;
        }
    }
    Ok(found)
}

/// What there is once nothing comes or goes any more: what ran before this may have its last objects freed only now.
fn settled() -> Result<Count> {
    let mut before = count()?;
    eventually(PATIENCE, "the kernel's objects to stay as they are", || {
        std::thread::sleep(Duration::from_secs(1));
        let now = count()?;
        let is_settled = now == before;
        before = now;
        Ok(is_settled.then_some(()))
    })?;
    Ok(before)
}

/// The kernel frees some objects a little after their last user is gone.
fn settles_at(expected: &Count, when: &str) -> Result<()> {
    eventually(PATIENCE, &format!("the kernel's objects {when} to be what they were"), || {
        let now = count()?;
        let differ = |name: &&String| now.get(*name) != expected.get(*name);
        let differences: Vec<String> = now
            .keys()
            .chain(expected.keys().filter(|name| !now.contains_key(*name)))
            .filter(differ)
            .map(|name| format!("{name}: {:?} → {:?}", expected.get(name), now.get(name)))
            .collect();
        ensure!(differences.is_empty(), "{}", differences.join(", "));
        Ok(Some(()))
    })
}
