//! Ring 3, browser: the live map of the running demo, looked at with a headless Chromium. It is told what to do by lines of
//! JSON (mesh-agent/ui/test/driver.mjs). Screenshots are left in target/screenshots.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use xtask::demo::stage::Stage;
use xtask::rings::can_use_browser;
use xtask::testbed::{AgentOptions, Family, Links, eventually};
use xtask::{build, ui};

/// Within this a failure has to show.
const PROMISED: Duration = Duration::from_secs(10);
/// What a machine with much else to do may take more.
const SLACK: Duration = Duration::from_secs(10);
/// For what is not timed, on such a machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// In its node's own network.
const OWN_MAP: &str = "127.0.0.1:15080";

const DENY: &str = include_str!("../src/demo/policies/deny-ledger.yaml");

/// A browser with one page.
struct Browser {
    process: Child,
    /// None when it is to end.
    tell: Option<ChildStdin>,
    hear: BufReader<ChildStdout>,
    shots: PathBuf,
    /// The page's sources and what npm installed for them.
    _place: TempDir,
}

impl Browser {
    fn start() -> Result<Self> {
        let place = ui::prepare()?;
        let shots = build::target_dir().join("screenshots");
        std::fs::create_dir_all(&shots)?;
        let mut node = Command::new("node");
        node.arg(place.path().join("test/driver.mjs")).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = node.spawn().context("starting node")?;
        let (tell, hear) = (process.stdin.take(), process.stdout.take().context("no stdout")?);
        Ok(Self { process, tell, hear: BufReader::new(hear), shots, _place: place })
    }

    fn act(&mut self, action: Value) -> Result<Value> {
        let tell = self.tell.as_mut().context("nobody to tell")?;
        writeln!(tell, "{action}").context("telling the browser")?;
        let mut line = String::new();
        self.hear.read_line(&mut line).context("hearing the browser")?;
        let mut said: Value = serde_json::from_str(&line).with_context(|| format!("{action}: {line:?}"))?;
        match said.get("error") {
            Some(error) => bail!("{action}: {error}"),
            None => Ok(said["ok"].take()),
        }
    }

    fn open(&mut self, url: &str, shape: &str, colours: &str) -> Result<()> {
        self.act(json!({"do": "open", "url": url, "shape": shape, "colours": colours})).map(drop)
    }

    /// Waits for something; how long that took, and its text.
    fn see(&mut self, selector: &str, within: Duration) -> Result<(Duration, String)> {
        let begin = Instant::now();
        let text = self.act(json!({"do": "see", "selector": selector, "within": within.as_millis() as u64}))?;
        Ok((begin.elapsed(), text.as_str().unwrap_or_default().to_string()))
    }

    fn choose(&mut self, selector: &str) -> Result<()> {
        self.act(json!({"do": "choose", "selector": selector})).map(drop)
    }

    fn press(&mut self, key: &str) -> Result<()> {
        self.act(json!({"do": "press", "key": key})).map(drop)
    }

    fn shoot(&mut self, name: &str) -> Result<()> {
        let file = self.shots.join(format!("{name}.png"));
        self.act(json!({"do": "screenshot", "file": file})).map(drop)
    }

    /// Nothing that the page's own policy forbids, no error, and a name for every control.
    fn is_well(&mut self) -> Result<()> {
        let (faults, problems) = (self.act(json!({"do": "accessible"}))?, self.act(json!({"do": "problems"}))?);
        ensure!(faults == json!([]), "{faults}");
        ensure!(problems == json!([]), "the browser complains: {problems}");
        Ok(())
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It ends with what it hears, and its browser with it.
        self.tell = None;
        let end = Instant::now() + PATIENCE;
        while matches!(self.process.try_wait(), Ok(None)) {
            if Instant::now() >= end {
                let _ = self.process.kill();
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn edge(from: &str, to: &str) -> String {
    format!("[data-edge='demo/{from}→demo/{to}']")
}

#[test]
fn the_map_of_the_running_demo() {
    if !can_use_browser("the_map_of_the_running_demo") {
        return;
    }
    // Each agent also serves the map of what it alone knows.
    let agents = AgentOptions::with([format!("--map={OWN_MAP}")]);
    let mut stage = Stage::build_over(Family::V4, Links::default(), agents).unwrap();
    let played = play(&mut stage);
    played.map_err(|error| stage.bed.explain(error)).unwrap();
}

fn play(stage: &mut Stage) -> Result<()> {
    stage.start_mesh()?;
    stage.start_visitors()?;
    let url = stage.serve_map()?;
    let mut browser = Browser::start()?;
    browser.open(&url, "desktop", "light")?;

    // Who talks to whom, and that it is protected.
    for (from, to) in [("shop", "web"), ("ledger", "web"), ("shop", "cache"), ("ledger", "cache"), ("shop", "greeter")]
    {
        let what = format!("{}.proved", edge(from, to));
        browser.see(&what, PATIENCE).with_context(|| format!("{from} → {to} is not shown"))?;
    }
    browser.see(&format!("{}[data-health=good]", edge("shop", "web")), PATIENCE)?;
    let spoken = browser.act(json!({"do": "attribute", "selector": edge("shop", "web"), "name": "aria-label"}))?;
    let spoken = spoken.as_str().unwrap_or_default();
    ensure!(spoken.contains("req/s") && spoken.contains("mutual TLS"), "{spoken}");
    browser.shoot("demo-light")?;

    // An agent's own map knows the callers of its node.
    let own = stage.bed.node("n1").tool_place();
    let asked = format!("http://{OWN_MAP}/api/snapshot");
    eventually(PATIENCE, "the map of n1's agent to show shop → web", || {
        let said = own.run(&["curl", "-sS", "--fail", "--max-time", "5", &asked], PATIENCE)?.expect_ok("curl")?;
        let picture: Value = serde_json::from_str(&said)?;
        let is_it = |edge: &Value| edge["from"] == "demo/shop" && edge["requestsPerSecond"].as_f64() > Some(0.0);
        Ok(picture["edges"].as_array().into_iter().flatten().any(is_it).then_some(()))
    })?;

    // By keys alone: an edge, its details, and back.
    browser.act(json!({"do": "focus", "selector": edge("shop", "web")}))?;
    browser.press("Enter")?;
    let (_, details) = browser.see(".panel:has(figure)", PATIENCE)?;
    ensure!(details.contains("mutual TLS") && details.contains("Which policy decides"), "{details}");
    std::thread::sleep(Duration::from_secs(12));
    browser.shoot("edge-light")?;
    browser.press("Escape")?;
    let count = browser.act(json!({"do": "count", "selector": ".panel"}))?;
    ensure!(count == json!(0), "Escape does not close the details");
    let focused = browser.act(json!({"do": "focused"}))?;
    ensure!(focused.to_string().contains("demo/shop→demo/web"), "the focus went elsewhere: {focused}");
    browser.choose("[data-workload='demo/web']")?;
    let (_, details) = browser.see(".panel:has-text('in force')", PATIENCE)?;
    ensure!(details.contains("spiffe://cluster.local/ns/demo/sa/web") && details.contains("10.96."), "{details}");
    browser.shoot("workload-light")?;
    browser.is_well()?;

    // A denied call appears with its rule.
    browser.open(&url, "desktop", "dark")?;
    browser.see(&edge("ledger", "cache"), PATIENCE)?;
    stage.bed.world.apply("policy-deny-ledger", DENY)?;
    let (took, _) = browser.see(&format!("{}[data-health=denied]", edge("ledger", "cache")), PATIENCE)?;
    ensure!(took < PROMISED + SLACK, "a denied call was shown after {took:?}");
    browser.choose(&edge("ledger", "cache"))?;
    let (_, said) = browser.see(".panel .denials li", PATIENCE)?;
    ensure!(said.contains("demo/deny-ledger"), "{said}");
    browser.shoot("denied-dark")?;
    browser.press("Escape")?;
    browser.choose("#tab-denials")?;
    let (_, said) = browser.see(".page .denials li", PATIENCE)?;
    ensure!(said.contains("demo/deny-ledger") && said.contains("demo/cache"), "{said}");
    browser.shoot("denials-dark")?;
    browser.choose("#tab-agents")?;
    let (_, agents) = browser.see("table", PATIENCE)?;
    ensure!(agents.contains("n1") && agents.contains("n2") && agents.contains("healthy"), "{agents}");
    browser.is_well()?;

    // A server that is gone: its edge is red within ten seconds.
    browser.choose("#tab-map")?;
    browser.see(&format!("{}[data-health=good]", edge("shop", "web")), PATIENCE)?;
    for pid in stage.bed.pod("web").pids() {
        let is_server = std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "nginx");
        // A worker ends with its master.
        let _ = Pid::from_raw(pid as i32).filter(|_| is_server).map(|pid| kill_process(pid, Signal::KILL));
    }
    let (took, _) = browser.see(&format!("{}[data-health=bad]", edge("shop", "web")), PATIENCE)?;
    ensure!(took < PROMISED, "a failing edge was red after {took:?}");
    println!("a failing edge was red after {took:?}");
    browser.shoot("failing-dark")?;
    browser.is_well()?;

    // A phone: lines first, the picture when asked for.
    browser.open(&url, "phone", "light")?;
    browser.see(".page table tr[data-health=bad]", PATIENCE)?;
    browser.shoot("phone-list")?;
    browser.is_well()?;
    browser.choose("#tab-map")?;
    browser.see(&edge("shop", "web"), PATIENCE)?;
    browser.shoot("phone-map")?;
    browser.choose(&edge("shop", "web"))?;
    browser.see(".panel:has(figure)", PATIENCE)?;
    browser.shoot("phone-edge")?;
    browser.is_well()?;
    stage.check_agents()
}

/// The page as it is committed, of a world that is made up.
#[test]
fn two_hundred_workloads() {
    if !can_use_browser("two_hundred_workloads") {
        return;
    }
    let mut browser = Browser::start().unwrap();
    let url = browser.act(json!({"do": "generated", "workloads": 200})).unwrap();
    let url = url.as_str().unwrap().to_string();
    for (name, shape, colours) in
        [("200-light", "desktop", "light"), ("200-dark", "desktop", "dark"), ("200-phone", "phone", "light")]
    {
        let begin = Instant::now();
        browser.open(&format!("{url}#map"), shape, colours).unwrap();
        browser.see("[data-workload='shop/web']", PATIENCE).unwrap();
        assert!(begin.elapsed() < PROMISED + SLACK, "{name}: shown after {:?}", begin.elapsed());
        let count = browser.act(json!({"do": "count", "selector": "[data-workload]"})).unwrap();
        assert_eq!(count, json!(200), "{name}");
        browser.shoot(name).unwrap();
        browser.is_well().unwrap();
    }
    browser.act(json!({"do": "fill", "selector": "#search", "text": "payments gateway"})).unwrap();
    browser.choose("#tab-list").unwrap();
    browser.see("[data-workload^='payments/gateway']", PATIENCE).unwrap();
    let others = browser.act(json!({"do": "count", "selector": "td [data-workload^='shop/']"})).unwrap();
    assert_eq!(others, json!(0), "a search leaves what it found");
}

/// More than a picture has room for: namespaces, then one of them.
#[test]
fn two_thousand_workloads() {
    if !can_use_browser("two_thousand_workloads") {
        return;
    }
    let mut browser = Browser::start().unwrap();
    let url = browser.act(json!({"do": "generated", "workloads": 2000})).unwrap();
    let begin = Instant::now();
    browser.open(&format!("{}#map", url.as_str().unwrap()), "desktop", "light").unwrap();
    browser.see("[data-workload='shop/*']", PATIENCE).unwrap();
    assert!(begin.elapsed() < PROMISED + SLACK, "shown after {:?}", begin.elapsed());
    let count = |browser: &mut Browser| {
        let count = browser.act(json!({"do": "count", "selector": "g[data-workload]"})).unwrap();
        count.as_u64().unwrap()
    };
    assert_eq!(count(&mut browser), 12, "a namespace is one");
    browser.shoot("2000-namespaces").unwrap();
    browser.choose("[data-workload='payments/*']").unwrap();
    browser.see("[data-workload^='payments/gateway']", PATIENCE).unwrap();
    let opened = count(&mut browser);
    assert!((20..=260).contains(&opened), "one namespace is open, the others are one each: {opened}");
    browser.shoot("2000-opened").unwrap();
    browser.choose("#tab-list").unwrap();
    browser.see("td [data-workload^='payments/']", PATIENCE).unwrap();
    browser.is_well().unwrap();
}

/// What is committed is what the sources give.
#[test]
fn the_page_is_built_of_its_sources() {
    if !can_use_browser("the_page_is_built_of_its_sources") {
        return;
    }
    let check = Command::new(xtask::testbed::run::xtask_binary().unwrap()).args(["ui", "--check"]).output().unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
}
