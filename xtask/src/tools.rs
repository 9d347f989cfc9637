//! Programs of others that tests use and no distribution has, built once from Go modules.
//!
//! A folder of `xtask` holds the module that names every version; what was built is kept under the user's cache by a hash
//! of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::build::root;
use crate::cluster::go;
use crate::{ebpf, oci};

/// A program, and what it is made of.
pub struct Tool {
    name: &'static str,
    /// What it is, and how long it takes, for who waits.
    title: &'static str,
    /// Where its module is, below `xtask`.
    folder: &'static str,
    sources: &'static [&'static str],
    /// What of the module Go builds.
    package: &'static str,
}

/// What takes all that agents tell; `--config=FILE`.
pub const COLLECTOR: Tool = Tool {
    name: "otelcol",
    title: "OpenTelemetry's collector (about two minutes, once)",
    folder: "collector",
    sources: &["go.mod", "go.sum", "main.go"],
    package: ".",
};

/// What asks a server of HTTP/2 whether it keeps to the RFC.
pub const H2SPEC: Tool = Tool {
    name: "h2spec",
    title: "h2spec (about a minute, once)",
    folder: "h2spec",
    sources: &["go.mod", "go.sum"],
    package: "github.com/summerwind/h2spec/cmd/h2spec",
};

impl Tool {
    /// Its file; built where it is not there.
    pub fn program(&self) -> Result<PathBuf> {
        let Self { name, title, folder, sources, package } = self;
        let module = root().join("xtask").join(folder);
        let home = ebpf::cache_directory()?.join(format!("{folder}-{}", hash_of(&module, sources)?));
        let program = home.join(name);
        if program.is_file() {
            return Ok(program);
        }
        eprintln!("building {title}");
        let begun = Instant::now();
        fs::create_dir_all(&home).with_context(|| format!("making {}", home.display()))?;
        // Whoever is stopped within leaves nothing that looks whole.
        let place = tempfile::tempdir_in(&home)?;
        let built = place.path().join(name);
        let mut command = Command::new(go::program()?);
        command.current_dir(&module).args(["build", "-ldflags", "-s -w", "-o"]).arg(&built).arg(package);
        // Less collecting of garbage: a quarter faster, and the machine has the memory.
        command.env("CGO_ENABLED", "0").env("GOGC", "400").env("GOFLAGS", "-trimpath -buildvcs=false");
        go::insist(|| {
            let status = command.status().context("starting Go")?;
            ensure!(status.success(), "building xtask/{folder}: {status}");
            Ok(())
        })?;
        fs::rename(&built, &program).with_context(|| format!("making {}", program.display()))?;
        eprintln!("  {name}: {} s", begun.elapsed().as_secs());
        Ok(program)
    }
}

fn hash_of(module: &Path, sources: &[&str]) -> Result<String> {
    let mut all = Vec::new();
    for name in sources {
        all.extend(fs::read(module.join(name)).with_context(|| format!("reading {name}"))?);
    }
    Ok(oci::digest(&all).trim_start_matches("sha256:").chars().take(12).collect())
}
