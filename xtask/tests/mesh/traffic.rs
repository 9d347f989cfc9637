//! TrafficPolicies with real clients and real servers: curl and h2load on one node, web servers on the other.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use xtask::rings::can_use_kernel;
use xtask::testbed::{AgentOptions, Family, PodSpec, ServiceSpec, Testbed, eventually, start_web, web_requests};

const PORT: u16 = 8080;
const PATIENCE: Duration = Duration::from_secs(60);

/// A client, servers that each answer with a status after some seconds, and a policy from the beginning on.
fn farm(test: &str, servers: &[(&str, u16, u32)], policy: &str) -> Result<Option<Testbed>> {
    if !can_use_kernel(test) {
        return Ok(None);
    }
    let mut bed = Testbed::of_two_nodes("shop")?;
    bed.add_pod(PodSpec::new("shop", "client", "n1"))?;
    for (name, ..) in servers {
        bed.add_pod(PodSpec::new("shop", name, "n2").label("app", "web"))?;
    }
    bed.add_service(ServiceSpec::new("shop", "web").port("http", 80, PORT))?;
    bed.world.apply(
        "traffic",
        &format!(
            "apiVersion: nodemesh.dev/v1alpha1
kind: TrafficPolicy
metadata: {{name: web, namespace: shop}}
spec:
  targetRefs: [{{kind: Service, name: web}}]
{policy}
"
        ),
    )?;
    for (name, status, seconds) in servers {
        start_web(bed.pod(name), PORT, *status, *seconds)?;
    }
    bed.start_agents(&AgentOptions::default())?;
    Ok(Some(bed))
}

/// Status and body of one request by curl, each with a connection of its own.
fn curl(bed: &Testbed, path: &str, more: &[&str]) -> Result<(String, String)> {
    let url = format!("http://{}{path}", bed.service("web").socket(Family::V4, 80));
    let command = [&["curl", "-sS", "--max-time", "30", "-w", "%{http_code}"], more, &[&url]].concat();
    let said = bed.pod("client").run(&command, PATIENCE)?.expect_ok("curl")?;
    let (body, status) = said.split_at_checked(said.len().saturating_sub(3)).context("no status")?;
    Ok((status.to_string(), body.trim().to_string()))
}

/// The access log of the client's node.
fn told(bed: &Testbed, is_it: impl Fn(&serde_json::Value) -> bool) -> Result<serde_json::Value> {
    eventually(PATIENCE, "the request to be told", || {
        Ok(bed.agent("n1").access_log().into_iter().find(|line| is_it(line)))
    })
}

#[test]
fn a_failing_server_is_met_by_retries_and_then_left_out() -> Result<()> {
    let policy = "  retry: {attempts: 2, backoff: 5ms}
  outlierDetection: {consecutiveGatewayErrors: 3, baseEjectionTime: 300s}
  loadBalancing: {algorithm: RoundRobin}";
    let Some(bed) = farm("retries", &[("good", 200, 0), ("bad", 503, 0)], policy)? else { return Ok(()) };
    let run = || -> Result<()> {
        for _ in 0..20 {
            let (status, body) = curl(&bed, "/", &[])?;
            ensure!((&*status, &*body) == ("200", "good"), "{status} {body}");
        }
        let (good, bad) = (web_requests(bed.pod("good"))?, web_requests(bed.pod("bad"))?);
        ensure!(good >= 20 && (3..10).contains(&bad), "{good} requests to the good one, {bad} to the bad one");
        let line = told(&bed, |line| line["retries"].as_u64() > Some(0))?;
        ensure!(line["status"] == 200 && line["service"] == "shop/web", "{line}");
        Ok(())
    };
    run().map_err(|error| bed.explain(error))
}

/// Every server fails, and h2load asks as fast as it can: what they get stays within the budget.
#[test]
fn a_service_that_fails_gets_no_storm_of_retries() -> Result<()> {
    const ASKED: usize = 2000;
    let policy = "  retry: {attempts: 3, backoff: 1ms}
  retryBudget: {percent: 20, interval: 10s, minRetryRate: {count: 1, interval: 1s}}";
    let Some(bed) = farm("retry budget", &[("one", 503, 0), ("two", 503, 0)], policy)? else { return Ok(()) };
    let run = || -> Result<()> {
        let url = format!("http://{}/", bed.service("web").socket(Family::V4, 80));
        let load = ["h2load", "--h1", "-n", &ASKED.to_string(), "-c", "8", &url];
        let (started, said) = (Instant::now(), bed.pod("client").run(&load, PATIENCE)?.expect_ok("h2load")?);
        ensure!(said.contains(&format!("{ASKED} 5xx")), "{said}");
        let came = web_requests(bed.pod("one"))? + web_requests(bed.pod("two"))?;
        // A fifth of all that comes is a quarter of what is asked; and ten for each window that began, of each worker.
        let windows = 1 + started.elapsed().as_secs() as usize / 10;
        let most = ASKED + ASKED / 4 + windows * 10 * 4;
        println!("{ASKED} asked, {came} came, {most} may");
        ensure!(came > ASKED && came <= most, "{ASKED} asked, {came} came, {most} may: {said}");
        Ok(())
    };
    run().map_err(|error| bed.explain(error))
}

#[test]
fn a_server_that_takes_too_long_is_504() -> Result<()> {
    let Some(bed) = farm("timeouts", &[("slow", 200, 25)], "  timeouts: {request: 1s}")? else { return Ok(()) };
    let run = || -> Result<()> {
        let (status, body) = curl(&bed, "/", &[])?;
        ensure!((&*status, &*body) == ("504", "timed-out"), "{status} {body}");
        let line = told(&bed, |line| line["status"] == 504)?;
        ensure!(line["reason"] == "timed-out" && line["result"] == "failed", "{line}");
        Ok(())
    };
    run().map_err(|error| bed.explain(error))
}

#[test]
fn requests_beyond_the_rate_are_429() -> Result<()> {
    let policy = "  rateLimits: [{name: all, requests: 10, per: 1h, burst: 10}]";
    let Some(bed) = farm("rate limits", &[("web", 200, 0)], policy)? else { return Ok(()) };
    let run = || -> Result<()> {
        let url = format!("http://{}/", bed.service("web").socket(Family::V4, 80));
        let load = ["h2load", "--h1", "-n", "100", "-c", "4", &url];
        let said = bed.pod("client").run(&load, PATIENCE)?.expect_ok("h2load")?;
        ensure!(said.contains("10 2xx") && said.contains("90 4xx"), "{said}");
        let came = web_requests(bed.pod("web"))?;
        ensure!(came == 10, "{came} came");
        let (status, said) = curl(&bed, "/", &["-D", "-"])?;
        let said = said.to_lowercase();
        let has = |field: &str| said.contains(field);
        ensure!(
            status == "429" && has("retry-after: ") && has("ratelimit: \"all\";r=0") && has("rate-limited"),
            "{said}"
        );
        let line = told(&bed, |line| line["status"] == 429)?;
        ensure!(line["traffic_rule"] == "all" && line["reason"] == "rate-limited", "{line}");
        Ok(())
    };
    run().map_err(|error| bed.explain(error))
}

#[test]
fn faults_delay_and_abort() -> Result<()> {
    let policy = "  faults:
  - {name: teapot, when: {paths: [{prefix: /tea}]}, abort: {httpStatus: 418}}
  - {name: slow, when: {headers: {x-slow: ''}}, delay: {fixed: 1s}}";
    let Some(bed) = farm("faults", &[("web", 200, 0)], policy)? else { return Ok(()) };
    let run = || -> Result<()> {
        let (status, body) = curl(&bed, "/tea/pot", &[])?;
        ensure!((&*status, &*body) == ("418", "fault-injected"), "{status} {body}");
        let line = told(&bed, |line| line["status"] == 418)?;
        ensure!(line["traffic_rule"] == "teapot" && line["reason"] == "fault-injected", "{line}");
        let (status, body) = curl(&bed, "/", &["-H", "x-slow: 1"])?;
        ensure!((&*status, &*body) == ("200", "web"), "{status} {body}");
        let line = told(&bed, |line| line["traffic_rule"] == "slow")?;
        ensure!(line["duration_ms"].as_f64() >= Some(1000.0), "{line}");
        ensure!(web_requests(bed.pod("web"))? == 1, "the aborted one came too");
        Ok(())
    };
    run().map_err(|error| bed.explain(error))
}
