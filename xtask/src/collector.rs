//! The collector that a test has take what agents tell: OpenTelemetry's own, built once from Go modules.
//!
//! `xtask/collector` holds the module that names every version; what was built is kept under the user's cache by a hash of
//! it. Two minutes the first time.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::build::root;
use crate::cluster::go;
use crate::{ebpf, oci};

/// What it is made of.
const SOURCES: [&str; 3] = ["go.mod", "go.sum", "main.go"];

/// The collector, which takes `--config=FILE`; built where it is not there.
pub fn program() -> Result<PathBuf> {
    let sources = root().join("xtask/collector");
    let home = ebpf::cache_directory()?.join(format!("collector-{}", hash_of(&sources)?));
    let program = home.join("otelcol");
    if program.is_file() {
        return Ok(program);
    }
    eprintln!("building OpenTelemetry's collector (about two minutes, once)");
    let begun = Instant::now();
    fs::create_dir_all(&home).with_context(|| format!("making {}", home.display()))?;
    // Whoever is stopped within leaves nothing that looks whole.
    let place = tempfile::tempdir_in(&home)?;
    let built = place.path().join("otelcol");
    let mut command = Command::new(go::program()?);
    command.current_dir(&sources).args(["build", "-ldflags", "-s -w", "-o"]).arg(&built).arg(".");
    // Less collecting of garbage: a quarter faster, and the machine has the memory.
    command.env("CGO_ENABLED", "0").env("GOGC", "400").env("GOFLAGS", "-trimpath -buildvcs=false");
    let status = command.status().context("starting Go")?;
    ensure!(status.success(), "building xtask/collector: {status}");
    fs::rename(&built, &program).with_context(|| format!("making {}", program.display()))?;
    eprintln!("  otelcol: {} s", begun.elapsed().as_secs());
    Ok(program)
}

fn hash_of(sources: &Path) -> Result<String> {
    let mut all = Vec::new();
    for name in SOURCES {
        all.extend(fs::read(sources.join(name)).with_context(|| format!("reading {name}"))?);
    }
    Ok(oci::digest(&all).trim_start_matches("sha256:").chars().take(12).collect())
}
