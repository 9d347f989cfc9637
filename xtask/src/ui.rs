//! `cargo xtask ui`: the page of the live map, built of mesh-agent/ui by Node.js.
//!
//! What is built is committed, so that whoever builds the agent needs no Node.js; `--check` says whether it is what the
//! sources give. What npm installs, by the lock file, is kept outside the clone under a hash of that file.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use crate::{build, ebpf, packages};

/// Build the page of the live map from mesh-agent/ui; needs Node.js 18 or later
#[derive(clap::Args)]
pub struct Ui {
    /// Say whether what is committed is what the sources give, and change nothing
    #[arg(long)]
    check: bool,
}

/// What npm takes.
const MANIFESTS: [&str; 2] = ["package.json", "package-lock.json"];
/// What the page is built of and tested with, beside those.
const SOURCES: [&str; 5] = ["build.mjs", "dist", "src", "test", "tsconfig.json"];

impl Ui {
    /// Builds, or compares.
    pub fn run(self) -> Result<()> {
        packages::for_ui()?;
        let copied = prepare()?;
        let place = copied.path();
        node(place, &["node_modules/typescript/bin/tsc", "-p", "."])?;
        let built = place.join("built");
        node(place, &["build.mjs", "built"])?;
        let committed = sources().join("dist");
        if !self.check {
            copy(&built, &committed)?;
            println!("{}", committed.display());
            return Ok(());
        }
        let (ours, theirs) = (files(&built)?, files(&committed)?);
        let differ = ours.len() != theirs.len() || ours.iter().zip(&theirs).any(|(one, other)| one != other);
        ensure!(!differ, "mesh-agent/ui/dist is not what its sources give: cargo xtask ui, then commit it");
        println!("mesh-agent/ui/dist is what its sources give");
        Ok(())
    }
}

/// A copy of the sources with what npm installs for them, for as long as this is held.
pub fn prepare() -> Result<TempDir> {
    fs::create_dir_all(build::target_dir())?;
    let made = tempfile::Builder::new().prefix("ui-").tempdir_in(build::target_dir());
    let copied = made.context("making a directory below target")?;
    let place = copied.path();
    for name in MANIFESTS.iter().chain(&SOURCES) {
        copy(&sources().join(name), &place.join(name))?;
    }
    std::os::unix::fs::symlink(modules()?.join("node_modules"), place.join("node_modules"))?;
    Ok(copied)
}

/// What npm installs by the lock file, once for each.
fn modules() -> Result<PathBuf> {
    let mut hash = Sha256::new();
    for name in MANIFESTS {
        hash.update(fs::read(sources().join(name)).with_context(|| format!("reading mesh-agent/ui/{name}"))?);
    }
    let hash: String = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let home = ebpf::cache_directory()?.join(format!("ui-{hash}"));
    if home.join("node_modules").is_dir() {
        return Ok(home);
    }
    // Under its name only once it is whole.
    let parent = ebpf::cache_directory()?;
    fs::create_dir_all(&parent).with_context(|| format!("making {}", parent.display()))?;
    let begun = tempfile::Builder::new().prefix("ui-begun-").tempdir_in(&parent)?;
    for name in MANIFESTS {
        copy(&sources().join(name), &begun.path().join(name))?;
    }
    eprintln!("installing what the page is built with: npm ci");
    let mut npm = Command::new("npm");
    npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", "--fetch-retries=5"]);
    npm.current_dir(begun.path());
    let status = npm.status().context("starting npm")?;
    ensure!(status.success(), "npm ci: {status}");
    match fs::rename(begun.path(), &home) {
        // Another was quicker.
        Err(_) if home.join("node_modules").is_dir() => {}
        renamed => renamed.with_context(|| format!("making {}", home.display()))?,
    }
    Ok(home)
}

fn node(place: &Path, arguments: &[&str]) -> Result<()> {
    let status = Command::new("node").args(arguments).current_dir(place).status().context("starting node")?;
    ensure!(status.success(), "node {}: {status}", arguments.join(" "));
    Ok(())
}

fn sources() -> PathBuf {
    build::root().join("mesh-agent/ui")
}

/// Names and contents, sorted.
fn files(directory: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))? {
        let entry = entry?;
        all.push((entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path())?));
    }
    all.sort();
    Ok(all)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if !from.is_dir() {
        fs::copy(from, to).with_context(|| format!("copying {}", from.display()))?;
        return Ok(());
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        copy(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}
