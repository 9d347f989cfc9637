//! The root of the mesh: replaced while connections are made, and away for a while.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::build;
use xtask::testbed::{Family, eventually, start_nginx};

use crate::pair::{Pair, meshed};

const PATIENCE: Duration = Duration::from_secs(60);
const NODES: [&str; 2] = ["n1", "n2"];

/// A connection each, until told to stop.
const UNTIL_STOPPED: &str = r#"while [ ! -e "$1" ]; do
    curl -sS -o /dev/null --max-time 30 -w '%{http_code}\n' "$0" || echo FAILED
done"#;

#[test]
fn the_root_is_replaced_under_traffic_and_no_connection_fails() -> Result<()> {
    let Some(pair) = meshed("another root")? else { return Ok(()) };
    if !pair.with_mesh {
        return Ok(());
    }
    start_nginx(pair.bed.pod("server"))?;
    served(&pair)?;
    let first = signers(&pair)?;
    ensure!(first.len() == 1, "two agents of one directory have two roots: {first:?}");
    let stop = pair.bed.dir().join("stop-root").to_string_lossy().into_owned();
    let url = format!("http://{}/", pair.server(Family::V4, 80));
    let caller = pair.bed.pod("client").spawn("caller", &["sh", "-c", UNTIL_STOPPED, &url, &stop])?;
    let more_requests = |what: &str| {
        let before = caller.log().lines().count();
        eventually(PATIENCE, what, || Ok((caller.log().lines().count() > before + 20).then_some(())))
    };
    more_requests("requests before")?;

    rotate(&pair, "prepare")?;
    until_all(&pair, "both roots to be trusted", |dump| {
        dump["roots"].as_array().is_some_and(|roots| roots.len() == 2)
    })?;
    more_requests("requests while two roots are trusted")?;

    rotate(&pair, "switch")?;
    eventually(PATIENCE, "every certificate to rest on the next root", || {
        let now = signers(&pair)?;
        Ok((now.len() == 1 && now.is_disjoint(&first)).then_some(()))
    })?;
    more_requests("requests with the next root")?;

    rotate(&pair, "finish")?;
    until_all(&pair, "one root to be trusted", |dump| dump["roots"].as_array().is_some_and(|roots| roots.len() == 1))?;
    more_requests("requests without the earlier root")?;

    std::fs::write(&stop, "")?;
    let log = caller.log();
    let failed: Vec<&str> = log.lines().filter(|line| *line != "200").collect();
    ensure!(failed.is_empty(), "{failed:?} of {} requests", log.lines().count());
    for node in NODES {
        // The client's own connections carry requests, each of which goes on by a connection with a line of its own.
        let lines = pair.bed.agent(node).access_log();
        let past = lines.iter().find(|line| {
            let transport = line["transport"].as_str();
            line["message"] != "request" && !matches!(transport, Some("tunnel" | "requests"))
        });
        ensure!(past.is_none(), "something went past the tunnels: {past:?}");
        ensure!(lines.iter().any(|line| line["transport"] == "tunnel"), "{node} told of no tunnel");
    }
    Ok(())
}

#[test]
fn while_the_directory_of_the_root_is_away_what_is_valid_serves() -> Result<()> {
    let Some(pair) = meshed("no root for a while")? else { return Ok(()) };
    if !pair.with_mesh {
        return Ok(());
    }
    start_nginx(pair.bed.pod("server"))?;
    served(&pair)?;
    let (there, away) = (pair.bed.dir().join("ca"), pair.bed.dir().join("ca-away"));
    std::fs::rename(&there, &away)?;
    until_all(&pair, "the agents to notice", |dump| dump["trouble"].is_string())?;
    for node in NODES {
        pair.bed.agent(node).post("/rotate")?;
    }
    let all = |is_so: fn(&Value) -> bool| {
        move |dump: &Value| dump["svids"].as_array().is_some_and(|svids| svids.iter().all(is_so))
    };
    until_all(
        &pair,
        "renewals to fail",
        all(|svid| svid["failures"].as_u64() > Some(0) && svid["lastError"].is_string()),
    )?;
    let (status, metrics) = pair.bed.agent("n1").get("/metrics")?;
    let failures = metrics.lines().find(|line| line.starts_with("nodemesh_certificate_renewal_failures_total"));
    ensure!(status == 200 && failures.is_some_and(|line| !line.ends_with(" 0")), "{failures:?}");
    served(&pair)?;
    std::fs::rename(&away, &there)?;
    until_all(
        &pair,
        "renewals to work",
        all(|svid| svid["lastError"].is_null() && svid["generation"].as_u64() > Some(1)),
    )?;
    until_all(&pair, "no trouble", |dump| dump["trouble"].is_null())?;
    served(&pair)
}

fn rotate(pair: &Pair, phase: &str) -> Result<()> {
    let done = Command::new(build::agent_binary()?)
        .args(["ca", "rotate", "--force", "--phase", phase])
        .arg(format!("--ca=dir:{}", pair.bed.dir().join("ca").display()))
        .output()
        .context("mesh-agent ca rotate")?;
    ensure!(done.status.success(), "{phase}: {}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

/// The roots at which the certificates of all agents end.
fn signers(pair: &Pair) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for node in NODES {
        let dump = pair.bed.agent(node).get_json("/config_dump")?;
        let svids = dump["identities"]["svids"].as_array().context("no certificates in /config_dump")?.clone();
        ensure!(!svids.is_empty(), "{node} has no certificate");
        found.extend(svids.iter().map(|svid| svid["root"].to_string()));
    }
    Ok(found)
}

fn until_all(pair: &Pair, what: &str, is_so: impl Fn(&Value) -> bool) -> Result<()> {
    for node in NODES {
        eventually(PATIENCE, what, || {
            Ok(is_so(&pair.bed.agent(node).get_json("/config_dump")?["identities"]).then_some(()))
        })?;
    }
    Ok(())
}

fn served(pair: &Pair) -> Result<()> {
    for family in Family::BOTH {
        let url = format!("http://{}/", pair.server(family, 80));
        let answer = pair.bed.pod("client").run(&["curl", "-sS", "--max-time", "30", &url], PATIENCE)?;
        answer.expect_ok("curl").map_err(|error| pair.bed.explain(error))?;
    }
    Ok(())
}
