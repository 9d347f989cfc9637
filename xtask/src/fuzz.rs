//! `cargo xtask fuzz`: builds the fuzz targets of the agent and runs them.
//!
//! The compiler's own coverage passes feed libFuzzer, so the stable toolchain does and cargo-fuzz is not needed; the
//! layout of `mesh-agent/fuzz` is cargo-fuzz's all the same. No address sanitizer: the code under test has no `unsafe`,
//! and overflows and failed assertions are crashes without it.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};

use crate::{build, packages};

/// Feed the agent's parsers with what libFuzzer makes up
#[derive(clap::Args)]
pub struct Fuzz {
    /// The target [default: all, one after another]
    target: Option<String>,
    /// How long each target runs
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Build without optimising: quicker to build, slower to run
    #[arg(long)]
    quick: bool,
    /// Build here, where other clones build as well; what is not a library of others is always built anew
    #[arg(long, value_name = "DIR")]
    build_dir: Option<PathBuf>,
}

/// What makes the compiler count edges and comparisons for libFuzzer, as cargo-fuzz asks for it.
const COVERAGE: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// The profiles of `mesh-agent/fuzz/Cargo.toml`.
const RELEASE: &str = "release";
const QUICK: &str = "quick";

/// Largest input in bytes: a long policy, or some dozen frames.
const MAX_INPUT_BYTES: u32 = 4096;
/// Seconds that one input may take before it counts as a hang.
const INPUT_SECONDS: u32 = 25;
/// MiB that a target may take before that counts as a crash.
const MEMORY_MIB: u32 = 2048;

impl Fuzz {
    /// Builds all targets and runs those that are meant. What is found is left under `target/fuzz/artifacts`.
    pub fn run(self) -> Result<ExitCode> {
        let Self { target, seconds, quick, build_dir } = self;
        let known = targets()?;
        let chosen = match target {
            Some(target) if known.contains(&target) => vec![target],
            Some(target) => bail!("there is no target {target}; there are {}", known.join(", ")),
            None => known,
        };
        packages::for_fuzzing()?;
        let directory = build_targets(build_dir, if quick { QUICK } else { RELEASE })?;
        let mut failed = Vec::new();
        for target in chosen {
            println!("=== {target}, {seconds} s ===");
            if !run_target(&directory, &target, seconds)? {
                failed.push(target);
            }
        }
        if failed.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
        let found = artifacts(Path::new(""));
        eprintln!("FAILED: {}; the inputs are in {}", failed.join(", "), found.display());
        eprintln!("When the fault is mended, keep the input in mesh-agent/fuzz/corpus: cargo test replays it.");
        Ok(ExitCode::FAILURE)
    }
}

fn home() -> PathBuf {
    build::root().join("mesh-agent/fuzz")
}

fn output() -> PathBuf {
    build::target_dir().join("fuzz")
}

fn artifacts(target: &Path) -> PathBuf {
    output().join("artifacts").join(target)
}

/// The names of all targets, in order.
fn targets() -> Result<Vec<String>> {
    let directory = home().join("fuzz_targets");
    let entries = std::fs::read_dir(&directory).with_context(|| directory.display().to_string())?;
    let stem = |entry: std::fs::DirEntry| Some(entry.path().file_stem()?.to_str()?.to_string());
    let mut names: Vec<String> = entries.flatten().filter_map(stem).collect();
    names.sort();
    Ok(names)
}

/// The packages that come from the clone.
const OURS: &[&str] = &["mesh-agent", "mesh-agent-fuzz", "mesh-common"];

/// Returns where the binaries are.
fn build_targets(shared: Option<PathBuf>, profile: &str) -> Result<PathBuf> {
    // The versions that the agent is built with; cargo adds libFuzzer's own.
    std::fs::copy(build::root().join("Cargo.lock"), home().join("Cargo.lock")).context("copying Cargo.lock")?;
    let host = host()?;
    let directory = shared.clone().unwrap_or_else(output);
    if shared.is_some() {
        forget_ours(&directory, &host, profile)?;
    }
    // With --target, build scripts and macros are left without coverage, which they could not be linked with.
    let status = build::cargo()
        .args(["build", "--profile", profile, "--bins", "--target", &host, "--target-dir"])
        .arg(&directory)
        .arg("--manifest-path")
        .arg(home().join("Cargo.toml"))
        .env("RUSTFLAGS", COVERAGE.join(" "))
        .status()
        .context("starting cargo")?;
    ensure!(status.success(), "building the fuzz targets: {status}");
    Ok(directory.join(host).join(profile))
}

/// Cargo tells what is old by the time of its files; those of another clone in the same place may be older than a build
/// that they are not of.
fn forget_ours(directory: &Path, host: &str, profile: &str) -> Result<()> {
    let packages = OURS.iter().flat_map(|package| ["--package", package]);
    let status = build::cargo()
        .args(["clean", "--profile", profile, "--target", host, "--target-dir"])
        .arg(directory)
        .args(packages)
        .arg("--manifest-path")
        .arg(home().join("Cargo.toml"))
        .status()
        .context("starting cargo")?;
    ensure!(status.success(), "cleaning {}: {status}", directory.display());
    Ok(())
}

/// The triple that this toolchain builds for.
fn host() -> Result<String> {
    let version = Command::new("rustc").arg("-vV").output().context("rustc -vV")?;
    let text = String::from_utf8_lossy(&version.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc does not say its host")?.to_string())
}

/// Runs one target on a working corpus that starts with the committed one; false if it found something.
fn run_target(directory: &Path, target: &str, seconds: u64) -> Result<bool> {
    let found = artifacts(target.as_ref());
    let working = output().join("corpus").join(target);
    for directory in [&found, &working] {
        std::fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    }
    let status = Command::new(directory.join(target))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={MAX_INPUT_BYTES}"))
        .arg(format!("-timeout={INPUT_SECONDS}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
        .arg(format!("-artifact_prefix={}/", found.display()))
        .args(["-print_final_stats=1", "-print_funcs=0", "-verbosity=0"])
        .arg(&working)
        .arg(home().join("corpus").join(target))
        .status()
        .with_context(|| format!("starting {target}"))?;
    Ok(status.success())
}
