use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::demo::stage::Stage;
use crate::demo::steps::{PATIENCE, Tell, WRK_TIMEOUT};
use crate::testbed::{Process, eventually};

/// How long the requests run; the rotations fall in their middle.
const SECONDS: u64 = 4;
const ROTATIONS: usize = 3;

pub fn run(stage: &mut Stage, tell: Tell) -> Result<String> {
    let before = serials(stage)?;
    ensure!(!before.is_empty(), "/config_dump shows no certificate");
    let url = format!("http://{}/", stage.service("web", 80));
    let cache = stage.service("cache", 6379).to_string();
    let duration = format!("{SECONDS}s");
    let wrk = ["wrk", "-t1", "-c8", "-d", &duration, "--timeout", WRK_TIMEOUT];
    let shop = stage.bed.pod("shop");
    let mut kept_alive = shop.spawn("rotate-wrk", &[&wrk[..], &[&url]].concat())?;
    let mut one_each = shop.spawn("rotate-wrk-close", &[&wrk[..], &["-H", "Connection: close", &url]].concat())?;
    let mut session = stage.bed.pod("ledger").spawn_probe("rotate-session", &["redis", &cache])?;
    std::thread::sleep(Duration::from_millis(500));
    for _ in 0..ROTATIONS {
        tell("rotating every certificate on both nodes");
        for agent in stage.bed.agents() {
            agent.post("/rotate")?;
        }
        std::thread::sleep(Duration::from_millis(700));
    }
    let kept_alive = requests(&mut kept_alive).context("with keep-alive")?;
    let one_each = requests(&mut one_each).context("with a connection for each request")?;
    session.check_running().context("the Redis session")?;
    let after = eventually(PATIENCE, "every certificate to be another one", || {
        let after = serials(stage)?;
        Ok(after.is_disjoint(&before).then_some(after))
    })?;
    Ok(format!(
        "{} certificates replaced {ROTATIONS} times; {kept_alive} requests with keep-alive, {one_each} with a \
         connection each and one Redis session: no error",
        after.len()
    ))
}

/// Every `serial` in what the agents show of themselves.
fn serials(stage: &Stage) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for agent in stage.bed.agents() {
        collect(&agent.get_json("/config_dump")?, &mut found);
    }
    Ok(found)
}

fn collect(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            if let Some(serial) = fields.get("serial") {
                found.insert(serial.to_string());
            }
            fields.values().for_each(|value| collect(value, found));
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, found)),
        _ => {}
    }
}

/// How many requests wrk made; an error if one of them failed.
fn requests(wrk: &mut Process) -> Result<u64> {
    let status = wrk.wait(Duration::from_secs(SECONDS) + PATIENCE)?;
    let said = wrk.log();
    ensure!(status.success(), "wrk: {status}: {said}");
    ensure!(!said.contains("Socket errors") && !said.contains("Non-2xx"), "wrk counted errors:\n{said}");
    let count = said.lines().find_map(|line| line.trim().split_once(" requests in ")?.0.parse().ok());
    let count: u64 = count.with_context(|| format!("wrk did not say how many requests it made: {said}"))?;
    ensure!(count > 0, "wrk made no request");
    Ok(count)
}
