//! `cargo xtask kernels`: other kernels than this machine's, as Debian packages them, booted in QEMU.
//!
//! ```text
//! apt-get download ─► unpacked, not installed ─► QEMU: KVM, or TCG where a machine under KVM does not come alive
//!                                                │ files: this machine's, read-only, changes in memory
//!                                                ▼
//!                     mesh-agent check --load: what the kernel offers, what its verifier says of each program
//!                     ring 3's capture test:   each program attached, and doing its work
//! ```

mod machine;
mod package;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::testbed::cgroup;
use crate::{build, ebpf, packages};
use machine::{Done, Machine, Work};
use package::Kernel;

/// Boot kernels of Debian's in QEMU: check, load and attach every program
#[derive(clap::Args)]
pub struct Kernels {
    /// Only kernels whose version begins so, such as 6.1.
    #[arg(long, value_name = "VERSION", default_value = "")]
    only: String,
    /// Tests of ring 3 there too, whose names contain this; slow without KVM
    #[arg(long, value_name = "TEXT")]
    mesh: Option<String>,
    /// Tests of ring 3, v6-only, there too, whose names contain this
    #[arg(long, value_name = "TEXT")]
    v6_only: Option<String>,
}

/// Debian 12's own, and the later one that it offers beside it. It packages none between 5.10, which is below the floor,
/// and 6.1.
const METAPACKAGES: [&str; 2] = ["linux-image-amd64", "linux-image-6.12-amd64"];

/// What each kernel's verifier said, by program.
type Verdicts = BTreeMap<String, String>;

impl Kernels {
    /// Tries one kernel after another, all of them even if one fails. Ends with the table of the verifiers.
    pub fn run(self) -> Result<ExitCode> {
        ensure!(cfg!(target_arch = "x86_64"), "the machines of this command are x86-64, as this one has to be");
        ensure!(rustix::process::geteuid().is_root(), "not root: it loads kernel programs here too, to compare");
        packages::for_build()?;
        packages::for_testbed()?;
        packages::for_kernels()?;
        let work = self.work()?;
        let mut columns = vec![(this_kernel()?, verdicts_here(&work.agent)?)];
        let mut all_passed = true;
        let mut accelerator = machine::first_choice();
        for metapackage in METAPACKAGES {
            let kernel = Kernel::fetch(metapackage)?;
            if !kernel.version.starts_with(&self.only) {
                continue;
            }
            let began = Instant::now();
            println!("\n=== kernel {} ===", kernel.version);
            let done = Machine::boot(&kernel, &work, &mut accelerator)?;
            println!("{} in {:.0} s, by {}", kernel.version, began.elapsed().as_secs_f64(), accelerator.name());
            all_passed &= report(&done);
            columns.push((kernel.version, verdicts(done.said("check")?)?));
        }
        println!("\n{}", table(&columns));
        Ok(if all_passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn work(&self) -> Result<Work> {
        let agent = build::agent()?;
        // The capture test reads it beside the agent's own.
        ebpf::build()?;
        let mut tests = vec![("capture", test_program("mesh-agent", "capture")?, String::new())];
        let more = [("mesh", &self.mesh), ("v6_only", &self.v6_only)];
        for (name, text) in more.into_iter().filter_map(|(name, text)| Some((name, text.as_ref()?))) {
            tests.push((name, test_program("xtask", name)?, text.clone()));
        }
        Ok(Work { agent, tests })
    }
}

/// Builds a test and says where it is.
fn test_program(package: &str, name: &str) -> Result<PathBuf> {
    let mut cargo = build::cargo();
    cargo.args(["test", "--package", package, "--test", name, "--no-run", "--message-format=json"]);
    let output = cargo.stderr(std::process::Stdio::inherit()).output().context("starting cargo")?;
    ensure!(output.status.success(), "building the test {name}: {}", output.status);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let messages = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut programs =
        messages.filter(|message| message["target"]["name"] == name && message["profile"]["test"] == true);
    let program = programs.find_map(|message| message["executable"].as_str().map(PathBuf::from));
    program.with_context(|| format!("cargo does not say where the test {name} is"))
}

fn this_kernel() -> Result<String> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").context("asking for this kernel's version")?;
    Ok(release.trim().to_string())
}

/// The same question to the kernel of this machine.
fn verdicts_here(agent: &Path) -> Result<Verdicts> {
    let node = cgroup::mount_point()?.join(format!("nodemesh-check-{}", std::process::id()));
    std::fs::create_dir_all(node.join("kubepods")).with_context(|| format!("making {}", node.display()))?;
    let check = Command::new(agent).args(["check", "--load", "--json", "--cgroup-root"]).arg(&node).output();
    cgroup::destroy(&node)?;
    verdicts(&String::from_utf8_lossy(&check.context("running mesh-agent check")?.stdout))
}

/// Of what `mesh-agent check --load --json` printed: the programs, with what was found or the refusal.
fn verdicts(said: &str) -> Result<Verdicts> {
    let features: Vec<Value> =
        serde_json::from_str(said).with_context(|| format!("reading what check said: {said}"))?;
    let programs = features.iter().filter(|feature| feature["name"].as_str().is_some_and(is_program));
    let told = |feature: &Value| {
        let missing = feature["missing"].as_str().map(|reason| format!("REFUSED: {reason}"));
        let found = feature["found"].as_str().map(str::to_string);
        Some((feature["name"].as_str()?.to_string(), missing.or(found).unwrap_or_default()))
    };
    let verdicts: Verdicts = programs.filter_map(told).collect();
    ensure!(!verdicts.is_empty(), "check named no program: {said}");
    Ok(verdicts)
}

fn is_program(name: &str) -> bool {
    name.starts_with("nm_")
}

/// Prints how each step ended, and all it said where it failed. Whether all passed.
fn report(done: &Done) -> bool {
    let mut all_passed = true;
    for step in &done.steps {
        // 2: something optional is missing, as on any kernel that is not new.
        let passed = step.status == Some(0) || (step.name == "check" && step.status == Some(2));
        all_passed &= passed;
        let ended = step.status.map_or("did not end".to_string(), |status| format!("status {status}"));
        println!("{}: {} ({ended})", step.name, if passed { "ok" } else { "FAILED" });
        if step.name == "check" {
            lacks(&step.said).iter().for_each(|line| println!("  lacks {line}"));
        } else if passed {
            step.said.lines().filter(|line| line.starts_with("test ")).for_each(|line| println!("  {line}"));
        }
        if !passed {
            println!("{}", step.said);
        }
    }
    if !done.is_whole {
        println!("the machine did not do all of its work; its console:\n{}", done.console);
    }
    all_passed && done.is_whole
}

fn lacks(said: &str) -> Vec<String> {
    let features: Vec<Value> = serde_json::from_str(said).unwrap_or_default();
    let missing = features.iter().filter(|feature| !feature["missing"].is_null());
    missing
        .filter_map(|feature| Some(format!("{}: {}", feature["name"].as_str()?, feature["missing"].as_str()?)))
        .collect()
}

/// Programs down, kernels across, as development.md has it.
fn table(columns: &[(String, Verdicts)]) -> String {
    let heads: Vec<&str> = columns.iter().map(|(version, _)| version.as_str()).collect();
    let mut lines =
        vec![format!("| program | {} |", heads.join(" | ")), format!("|---|{}", "---|".repeat(heads.len()))];
    let programs = columns.first().map(|(_, verdicts)| verdicts.keys()).into_iter().flatten();
    for program in programs {
        let cells =
            columns.iter().map(|(_, verdicts)| verdicts.get(program).map_or("-".to_string(), |told| short(told)));
        lines.push(format!("| `{program}` | {} |", cells.collect::<Vec<_>>().join(" | ")));
    }
    lines.join("\n")
}

/// `386 instructions, 1021 of 1000000 processed` → `1021 (386)`
fn short(told: &str) -> String {
    let numbers: Vec<&str> = told.split(|c: char| !c.is_ascii_digit()).filter(|number| !number.is_empty()).collect();
    match numbers[..] {
        [there, processed, _] if !told.starts_with("REFUSED") => format!("{processed} ({there})"),
        _ => told.lines().next().unwrap_or_default().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = r#"[
        {"name": "tcx (6.6)", "required": false, "found": null, "missing": "this is 6.1", "matters": "x"},
        {"name": "nm_connect4", "required": true, "found": "386 instructions, 1021 of 1000000 processed", "missing": null},
        {"name": "nm_sk_lookup", "required": true, "found": null, "missing": "loading it: EACCES\nR1 is not"}
    ]"#;

    #[test]
    fn what_check_says_becomes_a_table() {
        let verdicts = verdicts(SAID).unwrap();
        let table = table(&[("6.1".into(), verdicts.clone()), ("6.12".into(), verdicts)]);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(
            lines,
            [
                "| program | 6.1 | 6.12 |",
                "|---|---|---|",
                "| `nm_connect4` | 1021 (386) | 1021 (386) |",
                "| `nm_sk_lookup` | REFUSED: loading it: EACCES | REFUSED: loading it: EACCES |",
            ]
        );
        assert_eq!(lacks(SAID), ["tcx (6.6): this is 6.1", "nm_sk_lookup: loading it: EACCES\nR1 is not"]);
    }

    #[test]
    fn a_check_that_names_no_program_is_no_verdict() {
        verdicts("[]").unwrap_err();
        verdicts("error: no such option").unwrap_err();
    }
}
