use anyhow::{Result, bail, ensure};
use serde_json::Value;

use crate::demo::stage::Stage;
use crate::demo::steps::{PATIENCE, Tell};
use crate::testbed::{eventually, greeter_client};

/// Caller, server, what they speak.
const PAIRS: [(&str, &str, &str); 3] =
    [("shop", "web", "HTTP/1.1 by curl"), ("ledger", "cache", "Redis"), ("shop", "greeter", "gRPC")];

pub fn run(stage: &mut Stage, _tell: Tell) -> Result<String> {
    let answer = stage.curl("shop", &["http://web.demo/"])?.expect_ok("curl http://web.demo/")?;
    ensure!(answer == "hello from web\n", "curl got {answer:?}");
    let cache = stage.service("cache", 6379).to_string();
    stage.probe("ledger", &["redis", &cache, "--rounds=3"])?.expect_ok("a Redis session")?;
    let greeter = stage.service("greeter", 50051);
    let said = greeter_client(stage.bed.pod("shop"), greeter, "mesh")?.expect_ok("a gRPC call")?;
    ensure!(said.contains("hello mesh") && said.contains("counted 100"), "gRPC got {said:?}");

    let mut seen = Vec::new();
    for (caller, server, protocol) in PAIRS {
        for (node, direction) in [("n1", "outbound"), ("n2", "inbound")] {
            let what = format!("the {direction} access log record of {caller} → {server}");
            eventually(PATIENCE, &what, || Ok(is_told(stage, node, direction, caller, server)?.then_some(())))
                .or_else(|error| bail!("{error:#}; {node} logged: {}", records_of(stage, node)))?;
        }
        let (from, to) = (stage.bed.pod(caller).identity(), stage.bed.pod(server).identity());
        seen.push(format!("{from} → {to}  ({protocol})"));
    }
    Ok(seen.join("\n"))
}

/// By the log, or, of a connection that is kept for more requests, by the list of those that are open.
fn is_told(stage: &Stage, node: &str, direction: &str, caller: &str, server: &str) -> Result<bool> {
    let [from, to] = [caller, server].map(|name| Value::from(stage.bed.pod(name).identity()));
    let agent = stage.bed.agent(node);
    let is_tunnelled = |record: &Value| record["direction"] == direction && record["transport"] == "tunnel";
    let has_ended = agent.access_log().iter().any(|record| {
        is_tunnelled(record)
            && record["result"] == "ok"
            && record["source_identity"] == from
            && record["destination_identity"] == to
    });
    let connections = agent.get_json("/connections")?;
    let is_open = connections.as_array().is_some_and(|connections| {
        connections
            .iter()
            .any(|one| is_tunnelled(one) && one["source"]["identity"] == from && one["destination"]["identity"] == to)
    });
    Ok(has_ended || is_open)
}

fn records_of(stage: &Stage, node: &str) -> String {
    let records = stage.bed.agent(node).access_log();
    let lines: Vec<String> = records.iter().rev().take(5).map(Value::to_string).collect();
    if lines.is_empty() { "nothing".to_string() } else { lines.join("\n") }
}
