//! What is told of requests and of the mesh has nothing secret in it, and neither has what a crash leaves.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use xtask::rings::can_use_kernel;
use xtask::testbed::{AgentOptions, Family, PodSpec, ServiceSpec, Testbed, eventually, start_nginx};

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
