//! Every verb of meshctl on a running pair of agents, by their admin sockets: an operator's questions, each answered by one
//! command.

use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::build;
use xtask::rings::can_use_kernel;
use xtask::testbed::{AgentOptions, Family, PodSpec, ServiceSpec, Testbed, eventually, start_nginx, start_redis};

const PATIENCE: Duration = Duration::from_secs(30);

/// `web` answers the client alone, and nobody about /admin; the cache is for nobody; a tenth of the requests to `web` goes
/// to `web-next`.
const WORLD: &str = "apiVersion: nodemesh.dev/v1alpha1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {targetRefs: [{kind: Namespace}], mode: STRICT}
---
apiVersion: nodemesh.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: web-callers, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: web}]
  action: ALLOW
  rules:
    - sources: [{type: ServiceAccount, serviceAccount: {name: client}}]
---
apiVersion: nodemesh.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: no-admin, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: web}]
  action: DENY
  rules:
    - sources: [{type: Any}]
      requests: [{paths: [/admin]}]
---
apiVersion: nodemesh.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: cache-nobody, namespace: shop}
spec: {targetRefs: [{kind: Service, name: cache}], action: ALLOW, rules: []}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: web, port: 80}]
  rules:
    - backendRefs: [{name: web, port: 80, weight: 9}, {name: web-next, port: 80, weight: 1}]
";

struct Scene {
    bed: Testbed,
}

impl Scene {
    fn build() -> Result<Self> {
        let mut bed = Testbed::of_two_nodes("shop")?;
        bed.add_pod(PodSpec::new("shop", "client", "n1"))?;
        bed.add_pod(PodSpec::new("shop", "web", "n2"))?;
        bed.add_pod(PodSpec::new("shop", "web-next", "n2"))?;
        bed.add_pod(PodSpec::new("shop", "cache", "n2"))?;
        for name in ["web", "web-next"] {
            bed.add_service(ServiceSpec::new("shop", name).port("http", 80, 80))?;
        }
        bed.add_service(ServiceSpec::new("shop", "cache").port("redis", 6379, 6379))?;
        start_nginx(bed.pod("web"))?;
        start_nginx(bed.pod("web-next"))?;
        start_redis(bed.pod("cache"))?;
        bed.world.apply("policies", WORLD)?;
        bed.start_agents(&AgentOptions::default())?;
        Ok(Self { bed })
    }

    /// meshctl, asking both agents; names of sockets are those of nodes.
    fn meshctl(&self, typed: &[&str]) -> Result<(Option<i32>, String)> {
        let output = self.command(typed).output().context("starting meshctl")?;
        let said = self.said(&output);
        println!("$ meshctl {}\n{said}", typed.join(" "));
        Ok((output.status.code(), said))
    }

    fn command(&self, typed: &[&str]) -> Command {
        let mut command = Command::new(build::target_dir().join("debug/meshctl"));
        command.args(typed);
        for node in ["n1", "n2"] {
            command.arg(format!("--admin=unix:{}", self.bed.agent(node).admin().display()));
        }
        command
    }

    fn said(&self, output: &Output) -> String {
        let mut said =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        for node in ["n1", "n2"] {
            said = said.replace(&format!("unix:{}", self.bed.agent(node).admin().display()), node);
        }
        said
    }

    /// Of both families one will do.
    fn ask(&self, path: &str) -> Result<String> {
        let url = format!("http://{}{path}", self.bed.service("web").socket(Family::V4, 80));
        let curl = ["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "5", &url];
        self.bed.pod("client").run(&curl, PATIENCE)?.expect_ok("curl")
    }

    /// Whatever becomes of it.
    fn dial_the_cache(&self) -> Result<()> {
        let address = self.bed.service("cache").socket(Family::V4, 6379);
        let curl = ["curl", "-sS", "--max-time", "2", &format!("telnet://{address}")];
        self.bed.pod("client").run(&curl, PATIENCE).map(|_| ())
    }
}

/// What a verb is asked, how it ends, and what it must say.
type Verb = (&'static [&'static str], i32, &'static [&'static str]);

const VERBS: [Verb; 16] = [
    (
        &["check"],
        0,
        &[
            "ok      agents answer: all 2",
            "ok      pods are captured: all 4 that ask for it",
            "ok      clocks: of 2 nodes",
            "nothing is wrong",
        ],
    ),
    (&["status"], 0, &["n1", "n2", "1/1", "3/3"]),
    (&["status", "-o", "wide"], 0, &["FINDINGS"]),
    (&["connections"], 0, &[]),
    (&["identity"], 0, &["ns/shop/sa/web", "ns/shop/sa/client"]),
    (&["identity", "shop/web"], 0, &["spiffe://cluster.local/ns/shop/sa/web", "signed by"]),
    (&["graph"], 0, &["shop/client", "==mTLS==>", "shop/web"]),
    (&["graph", "-o", "dot"], 0, &["digraph"]),
    (&["top", "--once", "--interval", "1s"], 0, &[]),
    (
        &["routes"],
        0,
        &["shop/web:80", "HTTPRoute shop/web", "/*", "shop/web:80 90% (1 ready), shop/web-next:80 10% (1 ready)"],
    ),
    (
        &["policy", "explain", "shop/web"],
        0,
        &[
            "refused (STRICT) by shop/strict",
            "deny        shop/no-admin at ports 80",
            "asking for /admin",
            "allow       shop/web-callers",
            "ns/shop/sa/client",
            "nobody else may",
        ],
    ),
    (&["policy", "explain", "shop/none"], 1, &["no agent that answered has shop/none"]),
    (&["config", "diff"], 0, &["no difference in 5 objects"]),
    (&["completion", "bash"], 0, &["_meshctl"]),
    (&["version"], 0, &["meshctl "]),
    (&["proxy-status"], 2, &["tip: meshctl status"]),
];

#[test]
fn an_operators_questions_have_answers() -> Result<()> {
    if !can_use_kernel("an operator's questions") {
        return Ok(());
    }
    let built = build::cargo().args(["build", "--package=mesh-agent", "--bin=meshctl"]).status()?;
    ensure!(built.success(), "building meshctl: {built}");
    let scene = Scene::build()?;
    play(&scene).map_err(|error| scene.bed.explain(error))
}

fn play(scene: &Scene) -> Result<()> {
    eventually(PATIENCE, "web to answer", || Ok((scene.ask("/")? == "200").then_some(())))?;
    heard(scene)?;
    for (typed, status, expected) in VERBS {
        let (ended, said) = if matches!(typed[0], "completion" | "version" | "proxy-status") {
            let output = Command::new(build::target_dir().join("debug/meshctl")).args(typed).output()?;
            (output.status.code(), scene.said(&output))
        } else {
            scene.meshctl(typed)?
        };
        ensure!(ended == Some(status), "{typed:?} ended with {ended:?}: {said}");
        for part in expected {
            ensure!(said.contains(part), "{part:?} is not in what {typed:?} said: {said}");
        }
    }
    diff_of_yaml(scene)
}

/// What is slow, and who was refused and why: heard as it happens.
fn heard(scene: &Scene) -> Result<()> {
    let listen = |typed: &'static [&'static str]| {
        thread::scope(|scope| {
            let listening = scope.spawn(move || scene.meshctl(typed));
            while !listening.is_finished() {
                scene.ask("/?token=secret")?;
                scene.ask("/admin")?;
                scene.dial_the_cache()?;
            }
            let (status, said) = listening.join().map_err(|_| anyhow::anyhow!("listening panicked"))??;
            ensure!(status == Some(0), "{typed:?} ended with {status:?}: {said}");
            ensure!(!said.contains("secret"), "a query was told: {said}");
            Ok(said)
        })
    };
    let requests = listen(&["tap", "--for", "4s", "--direction", "outbound"])?;
    for part in ["shop/client -> shop/web  GET /  200", "GET /admin  403", "route=shop/web"] {
        ensure!(requests.contains(part), "{part:?} is not in {requests}");
    }
    let judged = listen(&["tap", "--for", "4s", "--result", "denied", "--direction", "inbound"])?;
    ensure!(judged.contains("policy=shop/no-admin#0") && !judged.contains("  200  "), "{judged}");
    let refused = listen(&["flows", "--for", "5s", "--kind", "connection", "--result", "failures", "-o", "json"])?;
    let denied = refused
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find(|flow| flow["result"] == "denied" && flow["destination"]["pod"] == "shop/cache");
    let denied = denied.with_context(|| format!("no denial of the cache in {refused}"))?;
    ensure!(denied["node"] == "n2" && denied["reason"].is_string(), "{denied}");
    Ok(())
}

/// The YAML that is in force, and one that says something else.
fn diff_of_yaml(scene: &Scene) -> Result<()> {
    let place = tempfile::tempdir()?;
    let same = place.path().join("same.yaml");
    std::fs::write(&same, WORLD)?;
    let (status, said) = scene.meshctl(&["config", "diff", &same.display().to_string()])?;
    ensure!(status == Some(0) && said.contains("no difference in 5 objects"), "{status:?}: {said}");
    let other = place.path().join("other.yaml");
    std::fs::write(&other, WORLD.replace("weight: 9", "weight: 8").replace("name: no-admin", "name: no-admins"))?;
    let (status, said) = scene.meshctl(&["config", "diff", &other.display().to_string()])?;
    ensure!(status == Some(1), "{status:?}: {said}");
    for part in [
        "n1: HTTPRoute shop/web is in force in another form",
        "rules[0].backends[0].weight: ",
        "n2: AuthorizationPolicy shop/no-admins is not in force",
    ] {
        ensure!(said.contains(part), "{part:?} is not in {said}");
    }
    Ok(())
}
