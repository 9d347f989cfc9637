//! Every verb of meshctl on a running pair of agents, by their admin sockets: an operator's questions, each answered by one
//! command. What is said is compared with golden/; after a change that is meant: `GOLDEN=write cargo test -p xtask --test mesh
//! an_operators_questions`, then look at what git shows.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::build;
use xtask::rings::can_use_kernel;
use xtask::testbed::{
    AgentOptions, Family, PodSpec, Process, ServiceSpec, Testbed, eventually, start_nginx, start_redis,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// `web` answers the client alone; it and `web-next` nobody about /admin; the cache is for nobody; a tenth of the requests to
/// `web` goes to `web-next`.
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
  targetRefs: [{kind: Service, name: web}, {kind: Service, name: web-next}]
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

/// What other meshes' objects are converted from.
const ISTIO: &str = include_str!("../../../mesh-agent/src/ctl/fixtures/convert/istio-traffic.yaml");
const SMI: &str = include_str!("../../../mesh-agent/src/ctl/fixtures/convert/smi.yaml");

struct Scene {
    bed: Testbed,
    /// WORLD, another world, and what other meshes' objects are converted from.
    place: tempfile::TempDir,
    /// A connection that lives while it is looked at.
    _call: Process,
}

impl Scene {
    fn build() -> Result<Self> {
        let mut bed = Testbed::of_two_nodes("shop")?;
        bed.add_pod(PodSpec::new("shop", "client", "n1"))?;
        for name in ["web", "web-next", "cache", "queue"] {
            bed.add_pod(PodSpec::new("shop", name, "n2"))?;
        }
        for name in ["web", "web-next"] {
            bed.add_service(ServiceSpec::new("shop", name).port("http", 80, 80))?;
            start_nginx(bed.pod(name))?;
        }
        for name in ["cache", "queue"] {
            bed.add_service(ServiceSpec::new("shop", name).port("redis", 6379, 6379))?;
            start_redis(bed.pod(name))?;
        }
        bed.world.apply("policies", WORLD)?;
        bed.start_agents(&AgentOptions::default())?;
        let place = tempfile::tempdir()?;
        let other = WORLD.replace("weight: 9", "weight: 8").replace("name: no-admin", "name: no-admins");
        let wrong = WORLD.replace("mode: STRICT", "mode: STRICTER");
        for (name, text) in [("same", WORLD), ("other", &other), ("wrong", &wrong), ("istio", ISTIO), ("smi", SMI)] {
            std::fs::write(place.path().join(name).with_extension("yaml"), text)?;
        }
        let queue = bed.service("queue").socket(Family::V4, 6379);
        let call = format!("until redis-cli -h {} -p {} SUBSCRIBE news; do sleep 0.2; done", queue.ip(), queue.port());
        let call = bed.pod("client").spawn("caller", &["sh", "-c", &call])?;
        Ok(Self { bed, place, _call: call })
    }

    /// meshctl, asking both agents; its exit status and what it said.
    fn meshctl(&self, typed: &[&str], asks: bool) -> Result<(Option<i32>, String)> {
        let output = self.command(typed, asks).output().context("starting meshctl")?;
        let said = self.said(&output);
        println!("$ meshctl {}\n{said}", typed.join(" "));
        Ok((output.status.code(), said))
    }

    /// meshctl as a process of the client's pod.
    fn meshctl_in_a_pod(&self, typed: &[&str]) -> Result<(Option<i32>, String)> {
        let program = build::target_dir().join("debug/meshctl").display().to_string();
        let argv: Vec<&str> = [program.as_str()].into_iter().chain(typed.iter().copied()).collect();
        let ended = self.bed.pod("client").run(&argv, PATIENCE)?;
        let said = format!("{}{}", ended.stdout, ended.stderr);
        println!("$ meshctl {}\n{said}", typed.join(" "));
        Ok((ended.status.and_then(|status| status.code()), said))
    }

    fn command(&self, typed: &[&str], asks: bool) -> Command {
        let mut command = Command::new(build::target_dir().join("debug/meshctl"));
        command.args(typed).current_dir(self.place.path());
        for node in ["n1", "n2"].iter().filter(|_| asks) {
            command.arg(format!("--admin=unix:{}", self.bed.agent(node).admin().display()));
        }
        command
    }

    /// Names of sockets are those of nodes.
    fn said(&self, output: &Output) -> String {
        let mut said =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        for node in ["n1", "n2"] {
            said = said.replace(&format!("unix:{}", self.bed.agent(node).admin().display()), node);
        }
        said
    }

    fn ask(&self, path: &str) -> Result<String> {
        let url = format!("http://{}{path}", self.bed.service("web").socket(Family::V4, 80));
        let told = ["-A", "shopper", "-H", "authorization: Bearer secret", "-H", "x-basket: secret"];
        let curl = ["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "20", &url];
        let curl: Vec<&str> = curl.into_iter().chain(told).collect();
        self.bed.pod("client").run(&curl, PATIENCE)?.expect_ok("curl")
    }

    /// Whatever becomes of it.
    fn dial_the_cache(&self) -> Result<()> {
        let address = self.bed.service("cache").socket(Family::V4, 6379);
        let curl = ["curl", "-sS", "--max-time", "2", &format!("telnet://{address}")];
        self.bed.pod("client").run(&curl, PATIENCE).map(|_| ())
    }

    /// Somebody asks, until what listens has ended.
    fn while_asked(&self, typed: &[&str]) -> Result<(Option<i32>, String)> {
        thread::scope(|scope| {
            let listening = scope.spawn(|| self.meshctl(typed, true));
            while !listening.is_finished() {
                self.ask("/?token=secret")?;
                self.ask("/admin")?;
                self.dial_the_cache()?;
            }
            listening.join().map_err(|_| anyhow::anyhow!("listening panicked"))?
        })
    }
}

/// How what was said is made the same in every run.
#[derive(Clone, Copy, PartialEq)]
enum Steady {
    /// Ages, times, addresses, serials and the version are words.
    Ages,
    /// Numbers are, too; not shares such as 1/1.
    Numbers,
    /// Pairs of bytes are, too.
    Bytes,
    /// The same, while somebody asks: lines in the order of letters, each once.
    Heard,
}
use Steady::{Ages, Bytes, Heard, Numbers};

/// What is typed, how it ends, how it is compared, and what it must say besides.
struct Case {
    golden: &'static str,
    typed: &'static [&'static str],
    status: i32,
    steady: Steady,
    says: &'static [&'static str],
}

const fn case(
    golden: &'static str,
    typed: &'static [&'static str],
    status: i32,
    steady: Steady,
    says: &'static [&'static str],
) -> Case {
    Case { golden, typed, status, steady, says }
}

/// Of the agents.
const ASKED: [Case; 18] = [
    case("check", &["check"], 0, Ages, &["all 5 that ask for it", "nothing is wrong"]),
    case("status", &["status"], 0, Numbers, &["1/1", "4/4"]),
    case("status-wide", &["status", "-o", "wide"], 0, Numbers, &["FINDINGS"]),
    case("connections", &["connections", "--pod", "shop/queue"], 0, Bytes, &["shop/client", "shop/queue"]),
    case("identity", &["identity"], 0, Numbers, &["ns/shop/sa/web", "ns/shop/sa/client"]),
    case("identity-of-a-pod", &["identity", "shop/web"], 0, Numbers, &["spiffe://cluster.local/ns/shop/sa/web"]),
    case("graph", &["graph"], 0, Bytes, &["shop/client", "==mTLS==>", "shop/web"]),
    case("top", &["top", "--once", "--interval", "6s"], 0, Heard, &["shop/client", "shop/web"]),
    case("flows", &["flows", "--for", "4s", "--kind", "connection", "--result", "failures"], 0, Heard, &["denied"]),
    case("tap", &["tap", "--for", "4s"], 0, Heard, &["GET /admin N", "policy=shop/no-admin#0"]),
    case(
        "tap-headers",
        &["tap", "--for", "4s", "--headers", "--direction", "outbound"],
        0,
        Heard,
        &["user-agent: shopper", "authorization: …", "x-basket: …"],
    ),
    case(
        "routes",
        &["routes"],
        0,
        Ages,
        &["shop/web:80", "HTTPRoute shop/web", "shop/web:80 90% (1 ready), shop/web-next:80 10% (1 ready)"],
    ),
    case("policy-explain", &["policy", "explain", "shop/web"], 0, Ages, &["nobody else may"]),
    case("policy-explain-none", &["policy", "explain", "shop/none"], 1, Ages, &[]),
    case("config-diff", &["config", "diff"], 0, Ages, &["no difference in 5 objects"]),
    case("config-diff-same", &["config", "diff", "same.yaml"], 0, Ages, &["no difference in 5 objects"]),
    case("config-diff-other", &["config", "diff", "other.yaml"], 1, Ages, &["rules[0].backends[0].weight: "]),
    case("proxy-status", &["proxy-status"], 2, Ages, &["tip: meshctl status"]),
];

/// Of nobody.
const ALONE: [Case; 7] = [
    case("config-validate", &["config", "validate", "same.yaml"], 0, Ages, &[]),
    case("config-validate-wrong", &["config", "validate", "wrong.yaml"], 1, Ages, &["STRICTER"]),
    case(
        "policy-test",
        &["policy", "test", "world", "--from", "shop/client", "--to", "service/shop/web", "--path", "/admin"],
        1,
        Ages,
        &["shop/no-admin"],
    ),
    case("convert-istio", &["convert", "istio", "istio.yaml"], 1, Ages, &["kind: HTTPRoute"]),
    case("convert-smi", &["convert", "smi", "smi.yaml"], 1, Ages, &["kind: HTTPRoute"]),
    case("version", &["version"], 0, Ages, &["meshctl VERSION"]),
    case("no-verb", &["top", "--intervall", "1s"], 2, Ages, &["--interval"]),
];

/// Of a server, from within the client's pod.
const FROM_A_POD: [Case; 2] = [
    case("bench", &["bench", "http://web.shop/", "--rate", "50", "--for", "2s"], 0, Numbers, &["p99.9"]),
    case("bench-refused", &["bench", "http://web.shop/admin", "--for", "1s"], 1, Numbers, &["answered: N by N"]),
];

/// Those with stories of their own: below, and at a real API server (mesh-agent/tests/kubernetes).
const ELSEWHERE: [&str; 6] = ["map", "completion", "install", "upgrade", "uninstall", "support-bundle"];

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

#[test]
fn every_verb_has_a_golden_output() -> Result<()> {
    let cases = ASKED.iter().chain(&ALONE).chain(&FROM_A_POD).filter(|case| case.status < 2);
    let typed: Vec<String> = cases.map(|case| case.typed.join(" ")).collect();
    for verb in mesh_agent::ctl::verbs().iter().filter(|verb| !ELSEWHERE.contains(&verb.as_str())) {
        ensure!(
            typed.iter().any(|typed| format!("{typed} ").starts_with(&format!("{verb} "))),
            "meshctl {verb} has none"
        );
    }
    Ok(())
}

fn play(scene: &Scene) -> Result<()> {
    // One request of ten goes to web-next, and may well be the first.
    eventually(PATIENCE, "web to answer", || {
        let answered = scene.ask("/")? == "200";
        let (_, graph) = scene.meshctl(&["graph"], true)?;
        Ok((answered && graph.contains("shop/web ")).then_some(()))
    })?;
    eventually(PATIENCE, "the queue to be listened to", || {
        let (_, said) = scene.meshctl(&["connections", "--pod", "shop/queue"], true)?;
        Ok(said.contains("shop/client").then_some(()))
    })?;
    // What policy test reads is a directory, of the world as the agents see it.
    std::os::unix::fs::symlink(scene.bed.world.dir(), scene.place.path().join("world"))?;
    let mut wrong = Vec::new();
    for (case, asks) in ASKED.iter().map(|case| (case, true)).chain(ALONE.iter().map(|case| (case, false))) {
        let heard = case.steady == Heard;
        let mut told = if heard { scene.while_asked(case.typed)? } else { scene.meshctl(case.typed, asks)? };
        // Where the machine stalls, not everybody has asked in these seconds.
        for _ in 0..2 {
            if heard && case.is_short(&told.1) {
                told = scene.while_asked(case.typed)?;
            }
        }
        wrong.extend(case.wrong_in(told)?);
    }
    for case in &FROM_A_POD {
        wrong.extend(case.wrong_in(scene.meshctl_in_a_pod(case.typed)?)?);
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    denials_name_who(scene)?;
    a_load_is_told_to_machines(scene)?;
    completion(scene)?;
    the_map(scene)
}

impl Case {
    /// Whether nothing is otherwise than it should be, but that lines are missing.
    fn is_short(&self, said: &str) -> bool {
        let (said, expected) = (self.steady.of(said), std::fs::read_to_string(file(self.golden)).unwrap_or_default());
        let known: BTreeSet<&str> = expected.lines().collect();
        said != expected && said.lines().all(|line| known.contains(line))
    }

    /// What is otherwise than it should be.
    fn wrong_in(&self, (ended, said): (Option<i32>, String)) -> Result<Vec<String>> {
        let Case { golden, typed, status, steady, says } = self;
        let mut wrong = Vec::new();
        if ended != Some(*status) {
            wrong.push(format!("{typed:?} ended with {ended:?}"));
        }
        ensure!(!said.contains("secret"), "a query was told: {said}");
        let said = steady.of(&said);
        let missing = says.iter().filter(|part| !said.contains(**part));
        wrong.extend(missing.map(|part| format!("{part:?} is not in what {typed:?} said:\n{said}")));
        wrong.extend(compared(golden, &said)?);
        Ok(wrong)
    }
}

fn file(golden: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/mesh/golden/{golden}.txt"))
}

/// What is otherwise than the file has it.
fn compared(golden: &str, said: &str) -> Result<Option<String>> {
    let file = file(golden);
    if std::env::var_os("GOLDEN").is_some_and(|what| what == "write") {
        std::fs::write(&file, said)?;
    }
    let expected = std::fs::read_to_string(&file).unwrap_or_default();
    Ok((expected != said).then(|| format!("{golden}.txt is otherwise:\n{said}\nexpected:\n{expected}")))
}

impl Steady {
    fn of(self, said: &str) -> String {
        let line = |line: &str| {
            let words: Vec<String> = line.split_whitespace().map(|word| self.word(word)).collect();
            words.join(" ") + "\n"
        };
        // One request of ten goes there, or none; and whether one is late is the machine's matter.
        let is_chance = |line: &&str| {
            (matches!(self, Bytes | Heard) && line.contains("web-next")) || line.contains(" were sent late: ")
        };
        let lines = said.lines().filter(|line| !is_chance(line)).map(line);
        if self == Heard { lines.collect::<BTreeSet<String>>().into_iter().collect() } else { lines.collect() }
    }

    fn word(self, word: &str) -> String {
        let bare = word.trim_end_matches([',', ';', '.', ')']);
        let rest = word.strip_prefix(bare).unwrap_or_default();
        let (open, bare) = bare.strip_prefix('(').map_or(("", bare), |bare| ("(", bare));
        let is_age = bare.ends_with(['s', 'm', 'h', 'd'])
            && bare.starts_with(|c: char| c.is_ascii_digit())
            && bare.chars().all(|c| c.is_ascii_digit() || ".dhms".contains(c));
        let is_time = bare.len() >= "00:00:00".len()
            && bare.contains(':')
            && bare.chars().all(|c| c.is_ascii_digit() || ":.TZ-".contains(c));
        let is_id = bare.len() >= 12 && bare.bytes().all(|byte| byte.is_ascii_hexdigit());
        let is_number = |text: &str| {
            text.starts_with(|c: char| c.is_ascii_digit())
                && text.trim_end_matches(['K', 'M', 'G', 'i']).chars().all(|c| c.is_ascii_digit() || c == '.')
        };
        let shown = match bare {
            _ if bare.parse::<SocketAddr>().is_ok() || bare.parse::<IpAddr>().is_ok() => "ADDRESS",
            _ if is_age => "AGE",
            _ if is_time => "TIME",
            _ if is_id => "ID",
            env!("CARGO_PKG_VERSION") => "VERSION",
            _ if self != Ages && is_number(bare) => "N",
            _ if matches!(self, Bytes | Heard)
                && bare.split_once('/').is_some_and(|(a, b)| is_number(a) && is_number(b)) =>
            {
                "N/N"
            }
            _ => bare,
        };
        format!("{open}{shown}{rest}")
    }
}

/// Who was refused, by which policy, for machines.
fn denials_name_who(scene: &Scene) -> Result<()> {
    let typed = ["flows", "--for", "5s", "--kind", "connection", "--result", "failures", "-o", "json"];
    let denied = eventually(PATIENCE, "a denial to be heard of", || {
        let (_, refused) = scene.while_asked(&typed)?;
        let denied = refused
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .find(|flow| flow["result"] == "denied" && flow["destination"]["pod"] == "shop/cache");
        denied.with_context(|| format!("no denial of the cache in {refused}")).map(Some)
    })?;
    ensure!(
        denied["node"].as_str().is_some_and(|node| node.contains("n2")) && denied["reason"].is_string(),
        "{denied}"
    );
    Ok(())
}

/// What a load came to has stable fields, each request is one of them, and what the mesh refuses is a failure.
fn a_load_is_told_to_machines(scene: &Scene) -> Result<()> {
    for (path, ok, failed, status) in [("/", 50, 0, "200"), ("/admin", 0, 50, "403")] {
        let url = format!("http://web.shop{path}");
        let (_, said) = scene.meshctl_in_a_pod(&["bench", &url, "--rate", "50", "--for", "1s", "-o", "json"])?;
        let told: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
        ensure!(told["ok"] == ok && told["failed"] == failed && told["statuses"][status] == 50, "{told}");
        ensure!(told["latencySeconds"]["p50"].as_f64().is_some_and(|seconds| seconds > 0.0 && seconds < 5.0), "{told}");
    }
    Ok(())
}

/// Shells complete every verb.
fn completion(scene: &Scene) -> Result<()> {
    for shell in ["bash", "zsh", "fish"] {
        let (status, script) = scene.meshctl(&["completion", shell], false)?;
        ensure!(status == Some(0), "{status:?}");
        for verb in mesh_agent::ctl::verbs() {
            ensure!(verb.split(' ').all(|word| script.contains(word)), "{shell} does not complete {verb}");
        }
    }
    Ok(())
}

/// The map says where it is, and is there.
fn the_map(scene: &Scene) -> Result<()> {
    let mut command = scene.command(&["map", "--listen", "127.0.0.1:0"], true);
    let mut map = command.stdout(Stdio::piped()).spawn().context("starting meshctl")?;
    let mut line = String::new();
    let seen = (|| {
        BufReader::new(map.stdout.take().context("its output")?).read_line(&mut line)?;
        let said = line.trim().strip_prefix("the map of 2 agent(s): ").with_context(|| line.clone())?;
        let page = Command::new("curl").args(["-sS", "--max-time", "30", said]).output()?;
        let page = String::from_utf8_lossy(&page.stdout).into_owned();
        ensure!(page.contains("<title>"), "{page}");
        Ok(())
    })();
    map.kill()?;
    map.wait()?;
    seen
}
