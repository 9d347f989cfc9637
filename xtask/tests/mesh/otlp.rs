//! OpenTelemetry's own collector takes what the agents of two nodes tell: one by gRPC, one by HTTP.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use xtask::rings::can_use_tool;
use xtask::testbed::{AgentOptions, Family, PodSpec, Process, ServiceSpec, Testbed, eventually, start_nginx};
use xtask::tools::COLLECTOR;

const PATIENCE: Duration = Duration::from_secs(60);

/// Requests to `api` are judged, so its node tells of them too; those to `flaky` are tried again.
const POLICY: &str = "apiVersion: nodemesh.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: api}]
  action: ALLOW
  rules: [{sources: [{type: Any}], requests: [{methods: [GET]}]}]
---
apiVersion: nodemesh.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: again, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: api}]
  retry: {attempts: 1, codes: [404], backoff: 1ms}
";

const CONFIG: &str = "receivers:
  otlp:
    protocols:
      grpc: {endpoint: '0.0.0.0:4317'}
      http: {endpoint: '0.0.0.0:4318'}
exporters:
  debug: {verbosity: detailed, sampling_initial: 1000000, use_internal_logger: false}
service:
  telemetry: {metrics: {level: none}}
  pipelines:
    traces: {receivers: [otlp], exporters: [debug]}
    logs: {receivers: [otlp], exporters: [debug]}
    metrics: {receivers: [otlp], exporters: [debug]}
";

/// By node and signal, what one of the collector's records has to have.
const EXPECTED: [(&str, &str, &[&str]); 9] = [
    (
        "n1",
        "ResourceSpans",
        &[
            "-> service.name: Str(nodemesh)",
            "Kind           : Client",
            "-> http.request.method: Str(GET)",
            "-> url.path: Str(/)",
            "-> http.response.status_code: Int(200)",
            "-> nodemesh.service: Str(shop/api)",
            "-> nodemesh.source.identity: Str(spiffe://cluster.local/ns/shop/sa/client)",
            "-> nodemesh.destination.identity: Str(spiffe://cluster.local/ns/shop/sa/api)",
        ],
    ),
    ("n1", "ResourceSpans", &["Name: nodemesh.retry", "-> error.type: Str(404)", "-> network.peer.port: Int(80)"]),
    (
        "n2",
        "ResourceSpans",
        &[
            "Kind           : Server",
            "-> nodemesh.policy: Str(shop/readers)",
            "-> nodemesh.source.identity: Str(spiffe://cluster.local/ns/shop/sa/client)",
        ],
    ),
    (
        "n1",
        "ResourceLog",
        &[
            "Body: Str(request)",
            "-> direction: Str(outbound)",
            "-> path: Str(/)",
            "-> status: Int(200)",
            "-> service: Str(shop/api)",
            "SeverityText: INFO",
        ],
    ),
    ("n2", "ResourceLog", &["Body: Str(request)", "-> direction: Str(inbound)", "-> policy: Str(shop/readers)"]),
    (
        "n1",
        "ResourceMetrics",
        &[
            "-> Name: nodemesh_http_client_request_duration_seconds",
            "-> DataType: Histogram",
            "-> AggregationTemporality: Cumulative",
            "-> Unit: s",
            "-> server_address: Str(shop/api)",
            "ExplicitBounds #0: 0.001000",
        ],
    ),
    (
        "n1",
        "ResourceMetrics",
        &["-> Name: nodemesh_connections_opened\n", "-> DataType: Sum", "-> IsMonotonic: true", "StartTimestamp: 20"],
    ),
    ("n1", "ResourceMetrics", &["-> Name: nodemesh_ready", "-> DataType: Gauge", "Value: 1"]),
    (
        "n2",
        "ResourceMetrics",
        &["-> Name: nodemesh_http_server_request_duration_seconds", "-> source_service_account: Str(client)"],
    ),
];

#[test]
fn a_real_collector_has_all_signals_both_ways_and_holds_up_nobody() -> Result<()> {
    if !can_use_tool("a real collector", &COLLECTOR) {
        return Ok(());
    }
    let mut bed = Testbed::of_two_nodes("shop")?;
    bed.add_pod(PodSpec::new("shop", "client", "n1"))?;
    bed.add_pod(PodSpec::new("shop", "api", "n2"))?;
    bed.add_service(ServiceSpec::new("shop", "api").port("http", 80, 80))?;
    bed.world.apply("policies", POLICY)?;
    start_nginx(bed.pod("api"))?;
    let collector = start_collector(&bed)?;
    let near = ["--otlp=grpc://127.0.0.1:4317", "--otlp-interval=2s", "--trace-sampling=100"].map(str::to_string);
    let far = format!("--otlp=http://{}", bed.node("n1").ips.socket(Family::V4, 4318));
    let far = [&far, "--otlp-interval=2s", "--trace-sampling=0"].map(ToString::to_string);
    bed.start_agent("n1", &AgentOptions::with(near))?;
    bed.start_agent("n2", &AgentOptions::with(far))?;
    let (told, slow) = (is_told(&bed, &collector), is_not_held_up(&bed, &collector));
    told.and(slow).map_err(|error| bed.explain(error))
}

fn start_collector(bed: &Testbed) -> Result<Process> {
    let file = bed.dir().join("collector.yaml");
    std::fs::write(&file, CONFIG)?;
    let program = COLLECTOR.program()?;
    let config = format!("--config=file:{}", file.display());
    let mut collector = bed.node("n1").tool_place().spawn("collector", &[&program.to_string_lossy(), &config])?;
    eventually(PATIENCE, "the collector listens", || {
        collector.check_running()?;
        let ready = ["curl", "-s", "-o", "/dev/null", "--max-time", "5", "http://127.0.0.1:4318/"];
        Ok(bed.node("n1").tool_place().run(&ready, PATIENCE)?.ok().then_some(()))
    })?;
    Ok(collector)
}

fn url(bed: &Testbed, path: &str) -> String {
    format!("http://{}{path}", bed.service("api").socket(Family::V4, 80))
}

fn is_told(bed: &Testbed, collector: &Process) -> Result<()> {
    for path in ["/", "/missing?secret"] {
        let curl = ["curl", "-s", "-o", "/dev/null", "--max-time", "10", &url(bed, path)];
        eventually(PATIENCE, "an answer", || Ok(bed.pod("client").run(&curl, PATIENCE)?.ok().then_some(())))?;
    }
    for (node, kind, expected) in EXPECTED {
        let all_there = eventually(PATIENCE, kind, || {
            let log = collector.log();
            let name = format!("-> k8s.node.name: Str({node})");
            let has_all = |block: &str| block.contains(&name) && expected.iter().all(|text| block.contains(text));
            Ok(blocks(&log, kind).into_iter().any(has_all).then_some(()))
        });
        all_there.with_context(|| format!("{kind} of {node} with {expected:?}"))?;
    }
    ensure!(!collector.log().contains("secret"), "a query was told");
    // The server's span is the client's child, of one trace; either node tells of its own when it is time.
    eventually(PATIENCE, "parent and child", || {
        let log = collector.log();
        let client = field(&log, "n1", "ID             : ").context("the client's span")?;
        let is_parent = |block: &str| block.contains(&format!("Parent ID      : {client}"));
        ensure!(blocks(&log, "ResourceSpans").into_iter().any(is_parent), "nobody is the child of {client}");
        Ok(Some(()))
    })?;
    for agent in bed.agents() {
        for signal in ["traces", "logs", "metrics"] {
            ensure!(count(bed, &agent.node, signal, "exported")? > 0.0, "{}: no {signal} counted", agent.node);
            for lost in ["failed", "rejected", "dropped"] {
                ensure!(count(bed, &agent.node, signal, lost)? == 0.0, "{}: {signal} {lost}", agent.node);
            }
        }
    }
    Ok(())
}

/// What the collector wrote of one request of OTLP each.
fn blocks<'l>(log: &'l str, kind: &str) -> Vec<&'l str> {
    let heads = ["\nTraces\t", "\nLogs\t", "\nMetrics\t"];
    let end = |block: &str| heads.iter().filter_map(|head| block.find(head)).min().unwrap_or(block.len());
    log.split(&format!("{kind} #")).skip(1).map(|block| &block[..end(block)]).collect()
}

/// Of the first span that the client's node told.
fn field(log: &str, node: &str, name: &str) -> Option<String> {
    let of_node = format!("-> k8s.node.name: Str({node})");
    let block = blocks(log, "ResourceSpans").into_iter().find(|block| block.contains(&of_node))?;
    let line = block.lines().find_map(|line| line.trim_start().strip_prefix(name))?;
    Some(line.trim().to_string())
}

fn count(bed: &Testbed, node: &str, signal: &str, result: &str) -> Result<f64> {
    let (_, scrape) = bed.agent(node).get("/metrics")?;
    let start = format!("nodemesh_otlp_records_total{{signal=\"{signal}\",result=\"{result}\"}} ");
    let value = scrape.lines().find_map(|line| line.strip_prefix(&start)).with_context(|| start.clone())?;
    Ok(value.parse()?)
}

/// With the collector stopped requests go on, none longer than wrk's two seconds, and what is lost is counted; when it goes
/// on, so does all. What telling costs is the bench's to say.
fn is_not_held_up(bed: &Testbed, collector: &Process) -> Result<()> {
    // The machine may stall for wrk's two seconds once.
    let with = eventually(PATIENCE, "requests with the collector", || requests_a_second(bed).map(Some))?;
    collector.signal(Signal::STOP)?;
    let mut without = 0.0_f64;
    let lost = eventually(PATIENCE * 2, "what is lost is counted", || {
        without = without.max(requests_a_second(bed)?);
        let lost = |signal| count(bed, "n1", signal, "dropped");
        Ok((lost("traces")? > 0.0 && lost("logs")? > 0.0 && count(bed, "n1", "metrics", "failed")? > 0.0).then_some(()))
    });
    collector.signal(Signal::CONT)?;
    lost?;
    println!("{with:.0} requests a second with the collector, {without:.0} while it stood still");
    for signal in ["traces", "logs", "metrics"] {
        let before = count(bed, "n1", signal, "exported")?;
        eventually(PATIENCE, signal, || {
            requests_a_second(bed)?;
            Ok((count(bed, "n1", signal, "exported")? > before).then_some(()))
        })?;
    }
    Ok(())
}

fn requests_a_second(bed: &Testbed) -> Result<f64> {
    let wrk = ["wrk", "-t1", "-c8", "-d2s", &url(bed, "/")];
    let said = bed.pod("client").run(&wrk, PATIENCE)?.expect_ok("wrk")?;
    ensure!(!said.contains("Socket errors"), "{said}");
    let line = said.lines().find_map(|line| line.strip_prefix("Requests/sec:")).with_context(|| said.clone())?;
    Ok(line.trim().parse()?)
}
