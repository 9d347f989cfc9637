use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::demo::stage::Stage;
use crate::demo::steps::{PATIENCE, Tell};
use crate::testbed::{Process, eventually};

const POLICY: &str = "policy-deny-ledger";
/// Within this an open session breaks.
const PROMISED: Duration = Duration::from_secs(1);
/// A machine with much else to do may stand still for longer; not each time.
const TRIES: usize = 3;

pub fn run(stage: &mut Stage, tell: Tell) -> Result<String> {
    let mut cut = cut_off(stage, tell)?;
    for _ in 1..TRIES {
        if cut < PROMISED {
            break;
        }
        tell(&format!("the session broke only after {cut:?}; once more"));
        cut = cut_off(stage, tell)?;
    }
    ensure!(
        cut < PROMISED,
        "the ledger's session broke only after {cut:?}, and {TRIES} times not sooner than promised"
    );
    Ok(format!(
        "open session cut after {} ms; a new one failed; the shop's session went on; with the policy gone the ledger \
         is served",
        cut.as_millis()
    ))
}

/// The policy comes and goes; how long it took to break the session that was open.
fn cut_off(stage: &mut Stage, tell: Tell) -> Result<Duration> {
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
    ensure!(!fresh.ok(), "the ledger could open a new session: {fresh}");
    shop_goes_on.context("the policy hit the wrong caller")?;
    tell("taking the policy away");
    eventually(PATIENCE, "the ledger to be served again", || {
        Ok(stage.probe("ledger", &["redis", &cache, "--rounds=1"])?.ok().then_some(()))
    })?;
    Ok(cut)
}

fn lines(session: &Process) -> Vec<Value> {
    session.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn rounds(session: &Process) -> u64 {
    lines(session).iter().filter_map(|line| line["rounds"].as_u64()).max().unwrap_or(0)
}
