use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::demo::stage::Stage;
use crate::demo::steps::Tell;
use crate::testbed::{Process, eventually};

const POLICY: &str = "policy-deny-ledger";
const PATIENCE: Duration = Duration::from_secs(5);

pub fn run(stage: &mut Stage, tell: Tell) -> Result<String> {
    let cache = stage.service("cache", 6379).to_string();
    let mut ledger = stage.bed.pod("ledger").spawn_probe("deny-session", &["redis", &cache])?;
    let mut shop = stage.bed.pod("shop").spawn_probe("deny-session", &["redis", &cache])?;
    for session in [&mut ledger, &mut shop] {
        eventually(PATIENCE, "the Redis sessions to begin", || {
            session.check_running()?;
            Ok((rounds(session) > 0).then_some(()))
        })?;
    }
    tell("two Redis sessions run; applying the policy");
    let applied = Instant::now();
    stage.bed.world.apply(POLICY, include_str!("../policies/deny-ledger.yaml"))?;
    let cut = eventually(PATIENCE, "the ledger's open session to break", || {
        Ok(lines(&ledger).iter().any(|line| line["broken"].is_string()).then(|| applied.elapsed()))
    });
    let fresh = stage.probe("ledger", &["redis", &cache, "--rounds=1"])?;
    let rounds_then = rounds(&shop);
    let shop_goes_on = eventually(PATIENCE, "the shop's session to go on", || {
        shop.check_running()?;
        Ok((rounds(&shop) > rounds_then).then_some(()))
    });
    stage.bed.world.delete(POLICY)?;

    let cut = cut?;
    ensure!(cut < Duration::from_secs(1), "the ledger's session broke only after {cut:?}");
    ensure!(!fresh.ok(), "the ledger could open a new session: {fresh}");
    shop_goes_on.context("the policy hit the wrong caller")?;
    tell("taking the policy away");
    eventually(PATIENCE, "the ledger to be served again", || {
        Ok(stage.probe("ledger", &["redis", &cache, "--rounds=1"])?.ok().then_some(()))
    })?;
    Ok(format!(
        "open session cut after {} ms; a new one failed; the shop's session went on; with the policy gone the ledger \
         is served",
        cut.as_millis()
    ))
}

fn lines(session: &Process) -> Vec<Value> {
    session.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn rounds(session: &Process) -> u64 {
    lines(session).iter().filter_map(|line| line["rounds"].as_u64()).max().unwrap_or(0)
}
