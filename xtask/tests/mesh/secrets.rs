//! What is told of requests and of the mesh has nothing secret in it, and neither has what a crash leaves; and whom the log
//! names.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use xtask::demo::stage::MESH_LABEL;
use xtask::rings::can_use_kernel;
use xtask::testbed::{AgentOptions, Family, PodSpec, ServiceSpec, Testbed, eventually, start_nginx, start_web};

const PATIENCE: Duration = Duration::from_secs(30);

/// What a client says that nobody else may read.
const SECRETS: [&str; 4] = ["s3cret-bearer", "s3cret-cookie", "s3cret-query", "s3cret-body"];

fn bed(test: &str, options: &AgentOptions) -> Result<Option<Testbed>> {
    if !can_use_kernel(test) {
        return Ok(None);
    }
    let mut bed = Testbed::of_two_nodes("shop")?;
    bed.add_pod(PodSpec::new("shop", "client", "n1"))?;
    bed.add_pod(PodSpec::new("shop", "web", "n2"))?;
    bed.add_service(ServiceSpec::new("shop", "web").port("http", 80, 80))?;
    bed.start_agents(options)?;
    Ok(Some(bed))
}

/// Lets the application's node read requests too.
const POLICY: &str = "\
apiVersion: nodemesh.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: web}]
  action: ALLOW
  rules: [{sources: [{type: Any}], requests: [{methods: [GET]}]}]
";

#[test]
fn nothing_secret_is_told_of_requests() -> Result<()> {
    let Some(bed) = bed("secrets of requests", &AgentOptions::with(["--log-level=debug"]))? else { return Ok(()) };
    start_nginx(bed.pod("web"))?;
    bed.world.apply("policy", POLICY)?;
    let run = || -> Result<()> {
        let url = format!("http://{}/?token={}", bed.service("web").socket(Family::V4, 80), SECRETS[2]);
        let (bearer, cookie) =
            (format!("Authorization: Bearer {}", SECRETS[0]), format!("Cookie: session={}", SECRETS[1]));
        for (protocol, method, status) in
            [("--http1.1", "GET", "200"), ("--http2-prior-knowledge", "GET", "200"), ("--http1.1", "POST", "403")]
        {
            let argv = ["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "-H", &bearer, "-H", &cookie];
            let body = ["--data-binary", SECRETS[3], protocol, "-X", method, &url];
            let ask = || bed.pod("client").run(&[&argv[..], &body].concat(), PATIENCE)?.expect_ok("curl");
            eventually(PATIENCE, "the policy to be in force", || Ok((ask()? == status).then_some(())))?;
        }
        for agent in bed.agents() {
            // The answer is there before its line.
            eventually(PATIENCE, "a request to be told", || {
                let is_told = agent.access_log().iter().any(|line| line["path"] == "/");
                ensure!(is_told, "no request was told:\n{}", agent.log());
                Ok(Some(()))
            })?;
            let mut told = vec![("the log", agent.log())];
            for path in ["/config_dump", "/connections", "/metrics"] {
                told.push((path, agent.get(path)?.1));
            }
            for (place, text) in told {
                for secret in SECRETS.iter().chain(&["PRIVATE KEY"]) {
                    ensure!(!text.contains(secret), "{place} has {secret:?}:\n{text}");
                }
            }
        }
        Ok(())
    };
    run().map_err(|error| bed.explain(error))
}

/// One object by which an endpoint is left out, and one that cannot be read.
const AVIARY: &str = "\
apiVersion: nodemesh.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: marsh, namespace: aviary}
spec:
  targetRefs: [{kind: Service, name: marsh}]
  loadBalancing: {algorithm: RoundRobin}
  outlierDetection: {consecutiveGatewayErrors: 3, baseEjectionTime: 300s}
---
apiVersion: nodemesh.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: reeds, namespace: aviary}
spec:
  targetRefs: [{kind: Service, name: fen}]
  action: PERHAPS
";

/// What lines say that are about a workload, other than of its requests.
const TELLING: [&str; 6] = [
    "an object is not in force as it was written",
    "certificate issued",
    "enrolled",
    "an endpoint fails too often and is left out",
    "left the mesh",
    "refused while its processes live",
];

#[test]
fn above_debug_the_access_log_alone_names_workloads() -> Result<()> {
    if !can_use_kernel("names in the log") {
        return Ok(());
    }
    let mut bed = Testbed::of_two_nodes("aviary")?;
    for (pod, node) in [("heron", "n1"), ("stork", "n1"), ("egret", "n2"), ("ibis", "n2")] {
        bed.add_pod(PodSpec::new("aviary", pod, node).label("app", if node == "n2" { "marsh" } else { "none" }))?;
    }
    bed.add_service(ServiceSpec::new("aviary", "marsh").port("http", 80, 8080))?;
    start_web(bed.pod("egret"), 8080, 503, 0)?;
    start_web(bed.pod("ibis"), 8080, 200, 0)?;
    bed.world.apply("objects", AVIARY)?;
    bed.start_agents(&AgentOptions::default())?;
    let addresses: Vec<String> =
        bed.pods().flat_map(|pod| Family::BOTH.map(|family| pod.ips.ip(family).to_string())).collect();
    let of_service = Family::BOTH.map(|family| bed.service("marsh").ips.ip(family).to_string());
    let names =
        ["aviary", "heron", "stork", "egret", "ibis", "marsh", "fen", "reeds", "spiffe://"].map(ToString::to_string);
    let mut run = || -> Result<()> {
        let url = format!("http://{}/", bed.service("marsh").socket(Family::V4, 80));
        let says = |bed: &Testbed, what: &str| bed.agents().any(|agent| agent.log().contains(what));
        eventually(PATIENCE, "an endpoint to be left out", || {
            bed.pod("heron").run(&["curl", "-sS", "-o", "/dev/null", &url], PATIENCE)?.expect_ok("curl")?;
            Ok(says(&bed, TELLING[3]).then_some(()))
        })?;
        bed.label_pod("stork", MESH_LABEL, Some("disabled"))?;
        bed.delete_object("heron")?;
        for what in TELLING {
            eventually(PATIENCE, &format!("a line {what:?}"), || Ok(says(&bed, what).then_some(())))?;
        }
        ensure!(says(&bed, "aviary/heron"), "the access log names nobody");
        for agent in bed.agents() {
            let log = agent.log();
            for line in log.lines().filter(|line| !line.contains("\"target\":\"access\"")) {
                let named = names.iter().chain(&addresses).chain(&of_service).find(|name| line.contains(name.as_str()));
                ensure!(named.is_none(), "{named:?} stands in {line}");
            }
        }
        Ok(())
    };
    let ran = run();
    ran.map_err(|error| bed.explain(error))
}

#[test]
fn a_crash_leaves_no_memory_behind() -> Result<()> {
    let Some(mut bed) = bed("a crash", &AgentOptions::default())? else { return Ok(()) };
    let may_dump = |pid: u32| -> Result<()> {
        let limit = Command::new("prlimit").args(["--core=unlimited", "--pid", &pid.to_string()]).status()?;
        ensure!(limit.success(), "prlimit: {limit}");
        Ok(())
    };
    // What any other process would leave, where the system lets it.
    let mut other = Command::new("sleep").arg("60").current_dir(bed.dir()).spawn()?;
    may_dump(other.id())?;
    kill_process(Pid::from_child(&other), Signal::ABORT)?;
    let other = other.wait()?;
    println!("another process ends so: {other}");

    let agent = bed.agent_mut("n1");
    may_dump(agent.pid())?;
    let ended = agent.abort()?;
    ensure!(ended.signal().is_some() && !ended.core_dumped(), "the agent ended with {ended}");
    Ok(())
}
