//! `cargo xtask test`: the test rings, each announced, none skipped in silence.
//!
//! | ring | what | needs |
//! |---|---|---|
//! | 1 | tables and properties: unit tests of every crate | nothing |
//! | 2 | two agents in one process, real TLS and HTTP/2 | nothing |
//! | 3 | real programs in simulated nodes: eBPF, namespaces, nginx, curl, … | root, Linux 5.15, cgroup2 |
//! | 3, v6-only | the heart of it once more with no IPv4 address anywhere and with the guards on clsact | the same |
//! | 3, browser | the live map of the running demo, in a headless browser: `cargo xtask test browser` | the same, Node.js and Chromium |
//! | 4 | a real Kubernetes of two nodes: [`crate::cluster`] | the same, and Go, which it fetches |
//!
//! A ring that cannot run says so in capitals, and what it lacks; with MESH_REQUIRE_KERNEL set (for ring 3, as in CI) or
//! MESH_REQUIRE_CLUSTER (for ring 4, whose parts cannot be had everywhere) that is a failure.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};

use crate::cluster;
use crate::cluster::go;
use crate::cluster::parts::Parts;
use crate::testbed::cgroup;
use crate::tools::{COLLECTOR, H2SPEC, Tool};
use crate::{build, packages};

/// Run the tests: all rings, or those that are named
#[derive(clap::Args)]
pub struct Test {
    /// 1: pure, 2: in one process, 3: on the kernel, 4: on Kubernetes; browser: the live map, a part of 3
    #[arg(value_parser = ring)]
    rings: Vec<Ring>,
    /// Only tests whose name contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    name: String,
}

/// How many kernel tests run at a time: each has two nodes, eight processes or more, and timings of its own.
const KERNEL_TESTS_AT_ONCE: usize = 2;

/// How a ring ended.
#[derive(Clone, Copy, Debug, Default)]
struct Outcome {
    passed: u64,
    failed: u64,
    ok: bool,
    skipped: bool,
}

impl Test {
    /// Runs the rings one after another, all of them even if one fails.
    pub fn run(self) -> Result<ExitCode> {
        let Self { rings, name } = self;
        let rings = if rings.is_empty() { vec![1, 2, KERNEL, CLUSTER] } else { rings };
        let is_asked = |part: &Part, ring: Ring| part.ring == ring || (part.ring == BROWSER && ring == KERNEL);
        let mut output = Output::default();
        let mut outcomes = Vec::new();
        for part in rings.iter().flat_map(|ring| PARTS.iter().filter(move |part| is_asked(part, *ring))) {
            outcomes.push((part.name, run_part(part, &name, &mut output)?));
        }
        output.summary(&outcomes)?;
        let ok = outcomes.iter().all(|(_, outcome)| outcome.ok || outcome.skipped);
        Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Runs ring 4 alone.
pub fn of_cluster(name: String) -> Result<ExitCode> {
    Test { rings: vec![CLUSTER], name }.run()
}

/// For a test of ring 3: whether it can run. If not, says so past the capture of the test harness, or panics with
/// MESH_REQUIRE_KERNEL.
pub fn can_use_kernel(test: &str) -> bool {
    is_possible(test, KERNEL, kernel_obstacle().or_else(|| build::agent_binary().err().map(|error| error.to_string())))
}

/// The same for a test in a browser.
pub fn can_use_browser(test: &str) -> bool {
    can_use_kernel(test) && is_possible(test, BROWSER, browser_obstacle())
}

/// The same for a test with a program that is built where it is not there: its parts, as a cluster's, cannot be had
/// everywhere.
pub fn can_use_tool(test: &str, tool: &Tool) -> bool {
    let missing = || go::obstacle().or_else(|| tool.program().err().map(|error| format!("{error:#}")));
    can_use_kernel(test) && is_possible(test, CLUSTER, missing())
}

/// The same for a test of ring 4.
pub fn can_use_cluster(test: &str) -> bool {
    is_possible(test, CLUSTER, cluster_obstacle())
}

fn is_possible(test: &str, ring: Ring, obstacle: Option<String>) -> bool {
    let Some(reason) = obstacle else { return true };
    assert!(required_by(ring).is_none(), "{test} cannot run: {reason}");
    // println! would be swallowed when the test passes.
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {reason}");
    false
}

/// What says that a ring has to run.
fn required_by(ring: Ring) -> Option<&'static str> {
    let variable = match ring {
        KERNEL | BROWSER => "MESH_REQUIRE_KERNEL",
        CLUSTER => "MESH_REQUIRE_CLUSTER",
        _ => return None,
    };
    std::env::var_os(variable).filter(|value| !value.is_empty() && value != "0").map(|_| variable)
}

/// Why real programs in simulated nodes cannot run here; None if they can.
pub fn kernel_obstacle() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("not root".to_string());
    }
    if let Err(error) = cgroup::mount_point() {
        return Some(error.to_string());
    }
    packages::missing_for_testbed().into_iter().next().map(|missing| format!("missing: {missing}"))
}

fn browser_obstacle() -> Option<String> {
    packages::missing_for_browser().into_iter().next().map(|missing| format!("missing: {missing}"))
}

/// Why there can be no cluster here; None if there can.
pub fn cluster_obstacle() -> Option<String> {
    let missing = packages::missing_for_cluster().into_iter().next().map(|missing| format!("missing: {missing}"));
    kernel_obstacle().or(missing).or_else(go::obstacle)
}

/// A ring, or a part of one that is announced and counted by itself.
struct Part {
    ring: Ring,
    /// For its closing line.
    name: &'static str,
    title: &'static str,
    /// The cargo commands that run it.
    commands: &'static [&'static [&'static str]],
}

const PARTS: &[Part] = &[
    Part { ring: 1, name: "ring 1", title: "ring 1: tables and properties", commands: &[&["test", "--lib", "--bins"]] },
    Part {
        ring: 2,
        name: "ring 2",
        title: "ring 2: two agents in one process",
        commands: &[&[
            "test",
            "--package",
            "mesh-agent",
            "--test",
            "allocations",
            "--test",
            "controller",
            "--test",
            "discovery",
            "--test",
            "http2",
            "--test",
            "identity",
            "--test",
            "journey",
            "--test",
            "live_upgrade",
            "--test",
            "mesh",
            "--test",
            "near",
        ]],
    },
    Part {
        ring: KERNEL,
        name: "ring 3",
        title: "ring 3: real programs on this kernel",
        commands: &[
            &["test", "--package", "mesh-agent", "--test", "capture"],
            &["test", "--package", "xtask", "--test", "leftovers", "--test", "mesh", "--test", "testbed"],
        ],
    },
    Part {
        ring: KERNEL,
        name: "ring 3, v6-only",
        title: "ring 3, v6-only: no IPv4 address, guards on clsact",
        commands: &[&["test", "--package", "xtask", "--test", "v6_only"]],
    },
    Part {
        ring: BROWSER,
        name: "ring 3, browser",
        title: "ring 3, browser: the live map of the running demo",
        commands: &[&["test", "--package", "xtask", "--test", "browser"]],
    },
    Part {
        ring: CLUSTER,
        name: "ring 4, API server",
        title: "ring 4: agent and controller against a real API server",
        commands: &[&["test", "--package", "mesh-agent", "--test", "controller", "--test", "kubernetes"]],
    },
    Part {
        ring: CLUSTER,
        name: "ring 4",
        title: "ring 4: a real Kubernetes of two nodes",
        commands: &[&["test", "--package", "xtask", "--test", "cluster"]],
    },
];

/// A ring's number.
type Ring = u8;
/// The ring that needs root and a kernel.
const KERNEL: Ring = 3;
/// The ring that needs Go besides.
const CLUSTER: Ring = 4;
/// The part of ring 3 that needs a browser besides.
const BROWSER: Ring = 30;

fn ring(text: &str) -> Result<Ring, String> {
    match text {
        "1" => Ok(1),
        "2" => Ok(2),
        "3" => Ok(KERNEL),
        "4" => Ok(CLUSTER),
        "browser" => Ok(BROWSER),
        _ => Err("expected 1, 2, 3, 4 or browser".to_string()),
    }
}

fn run_part(part: &Part, name: &str, output: &mut Output) -> Result<Outcome> {
    let Part { ring, name: _, title, commands } = part;
    output.announce(title)?;
    let skipped = match *ring {
        KERNEL => match prepare_kernel(output)? {
            None if name.is_empty() => {
                build_tools();
                None
            }
            prepared => prepared,
        },
        BROWSER => prepare_browser(output)?,
        CLUSTER => prepare_cluster(output)?,
        _ => None,
    };
    if let Some(outcome) = skipped {
        return Ok(outcome);
    }
    let found_one = cluster::is_there();
    let mut total = Outcome { ok: true, ..Outcome::default() };
    for arguments in *commands {
        let mut command = build::cargo();
        command.args(*arguments).args(["--", name]);
        match *ring {
            KERNEL | BROWSER => drop(command.arg(format!("--test-threads={KERNEL_TESTS_AT_ONCE}"))),
            // They take turns.
            CLUSTER => {
                command.arg("--test-threads=1");
                command.env("NODEMESH_KUBE_BIN", Parts::build()?.programs()).env("MESH_REQUIRE_CLUSTER", "1");
            }
            // What needs an API server is skipped aloud there, and has its turn in ring 4.
            _ => drop(command.env_remove("MESH_REQUIRE_CLUSTER")),
        }
        let Outcome { passed, failed, ok, skipped: _ } = output.follow(command)?;
        total.passed += passed;
        total.failed += failed;
        total.ok &= ok;
    }
    if *ring == CLUSTER && !found_one {
        cluster::down()?;
    }
    Ok(total)
}

/// Gets ring 4 ready; an outcome if it cannot be.
fn prepare_cluster(output: &mut Output) -> Result<Option<Outcome>> {
    if rustix::process::geteuid().is_root() {
        packages::for_build()?;
        packages::for_testbed()?;
    }
    // What cannot be built or fetched is named by its own error.
    let parts =
        || go::insist(Parts::build).err().map(|error| format!("a part of the cluster cannot be had: {error:#}"));
    match kernel_obstacle().or_else(parts).or_else(cluster_obstacle) {
        Some(reason) => skip(CLUSTER, &reason, output).map(Some),
        None => {
            build::agent()?;
            Ok(None)
        }
    }
}

fn skip(ring: Ring, reason: &str, output: &mut Output) -> Result<Outcome> {
    let required = required_by(ring);
    let verdict = required.map(|name| format!("{name} is set, so this is a failure"));
    let verdict = verdict.unwrap_or_else(|| "nothing was tested on it".to_string());
    let ring = if ring == BROWSER { "3, BROWSER,".to_string() } else { ring.to_string() };
    output.announce(&format!("RING {ring} SKIPPED: {reason}; {verdict}"))?;
    Ok(Outcome { skipped: required.is_none(), ..Outcome::default() })
}

/// Gets ring 3 ready; an outcome if it cannot be.
fn prepare_kernel(output: &mut Output) -> Result<Option<Outcome>> {
    if rustix::process::geteuid().is_root() {
        packages::for_build()?;
        packages::for_testbed()?;
    }
    let obstacle = match kernel_obstacle() {
        Some(reason) => Some(reason),
        None => what_the_kernel_lacks(&build::agent()?)?.map(|lacks| format!("this kernel lacks something:\n{lacks}")),
    };
    let Some(reason) = obstacle else { return Ok(None) };
    skip(KERNEL, &reason, output).map(Some)
}

/// The same for its part in a browser.
fn prepare_browser(output: &mut Output) -> Result<Option<Outcome>> {
    if let Some(outcome) = prepare_kernel(output)? {
        return Ok(Some(outcome));
    }
    if rustix::process::geteuid().is_root() {
        packages::for_browser()?;
    }
    match browser_obstacle() {
        Some(reason) => skip(BROWSER, &reason, output).map(Some),
        None => Ok(None),
    }
}

/// Builds what tests of ring 3 use before the first of them runs: a compiler on every core is no good company for a test that
/// has times. What cannot be built is named by the test that lacks it.
fn build_tools() {
    if go::obstacle().is_some() {
        return;
    }
    for tool in [&COLLECTOR, &H2SPEC] {
        if let Err(error) = tool.program() {
            eprintln!("{error:#}");
        }
    }
}

/// Asks `mesh-agent check`, about a cgroup that looks like a node's; None if all that is required is there.
fn what_the_kernel_lacks(agent: &Path) -> Result<Option<String>> {
    let node = cgroup::mount_point()?.join(format!("nodemesh-check-{}", std::process::id()));
    std::fs::create_dir_all(node.join("kubepods")).with_context(|| format!("making {}", node.display()))?;
    let check = Command::new(agent).arg("check").arg("--cgroup-root").arg(&node).output();
    cgroup::destroy(&node)?;
    let check = check.context("running mesh-agent check")?;
    // 1: something that is required is missing. 2 is about what is optional.
    let lacks = check.status.code() == Some(1);
    Ok(lacks.then(|| String::from_utf8_lossy(&check.stdout).into_owned()))
}

/// Passes cargo's output on, counts, and keeps its last closing line for the very end.
#[derive(Default)]
struct Output {
    held: Option<String>,
}

impl Output {
    fn announce(&mut self, title: &str) -> Result<()> {
        self.release()?;
        println!("\n=== {title} ===");
        Ok(())
    }

    fn follow(&mut self, mut command: Command) -> Result<Outcome> {
        let mut child = command.stdout(Stdio::piped()).spawn().context("starting cargo test")?;
        let stdout = child.stdout.take().context("no pipe from cargo test")?;
        let mut outcome = Outcome::default();
        for line in BufReader::new(stdout).lines() {
            let line = line?;
            if line.trim().is_empty() && self.held.is_some() {
                continue;
            }
            self.release()?;
            match counts(&line) {
                Some((passed, failed)) => {
                    outcome.passed += passed;
                    outcome.failed += failed;
                    self.held = Some(line);
                }
                None => println!("{line}"),
            }
        }
        outcome.ok = child.wait()?.success();
        Ok(outcome)
    }

    fn release(&mut self) -> Result<()> {
        if let Some(line) = self.held.take() {
            println!("{line}\n");
        }
        Ok(std::io::stdout().flush()?)
    }

    fn summary(&mut self, outcomes: &[(&str, Outcome)]) -> Result<()> {
        println!();
        for (name, outcome) in outcomes {
            let Outcome { passed, failed, ok, skipped } = outcome;
            let verdict = match (ok, skipped) {
                (true, _) => "ok",
                (false, true) => "SKIPPED",
                (false, false) => "FAILED",
            };
            println!("{name}: {verdict}, {passed} passed, {failed} failed");
        }
        println!();
        self.release()
    }
}

/// `test result: ok. 12 passed; 0 failed; …`
fn counts(line: &str) -> Option<(u64, u64)> {
    let words: Vec<&str> = line.strip_prefix("test result: ")?.split_whitespace().collect();
    let before = |label: &str| words.iter().position(|word| word.starts_with(label)).and_then(|at| words.get(at - 1));
    Some((before("passed")?.parse().ok()?, before("failed")?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_test_binary_is_left_out() {
        let named: Vec<&str> = PARTS.iter().flat_map(|part| part.commands.iter().copied().flatten()).copied().collect();
        for package in ["mesh-agent", "xtask"] {
            let directory = build::root().join(package).join("tests");
            for entry in std::fs::read_dir(&directory).unwrap() {
                let path = entry.unwrap().path();
                let is_test = path.join("main.rs").is_file() || path.extension().is_some_and(|kind| kind == "rs");
                let name = path.file_stem().unwrap().to_str().unwrap();
                assert!(!is_test || named.contains(&name), "no ring runs {}", path.display());
            }
        }
    }
}
