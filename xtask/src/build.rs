//! `cargo xtask build`: the agent, with the BPF object inside.
//!
//! It needs no library of the machine that it runs on: an image has nothing else in it, and the CNI plugin, which is the
//! same program, is started by the machine's own container runtime.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Build the release agent with the BPF object embedded; prints its path
#[derive(clap::Args)]
pub struct Build {}

impl Build {
    /// Builds both and prints the agent's path.
    pub fn run(self) -> Result<()> {
        println!("{}", agent()?.display());
        Ok(())
    }
}

/// The clone's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder of the workspace").to_path_buf()
}

/// Cargo's target directory.
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Builds the BPF object and the agent, for tests and the demo; returns the agent's path.
pub fn agent() -> Result<PathBuf> {
    build("release")
}

/// Builds the BPF object and the agent as it is shipped, which takes longer; returns the agent's path.
pub fn shipped_agent() -> Result<PathBuf> {
    build("dist")
}

fn build(profile: &str) -> Result<PathBuf> {
    if std::env::var_os(OTHER_AGENT).is_some() {
        return agent_binary();
    }
    let object = crate::ebpf::build()?;
    // For a named target the flags are the agent's alone, and not those of what is run while it is built.
    let target = host()?;
    let flags = format!("target.{target}.rustflags=[\"-Ctarget-feature=+crt-static\"]");
    // meshctl, the package's other program, is for people: it is in no image.
    let programs: &[&str] =
        if profile == "dist" { &["--bin=mesh-agent"] } else { &["--bin=mesh-agent", "--bin=meshctl"] };
    let arguments = ["build", "--package=mesh-agent", "--profile", profile, "--target", &target, "--config", &flags];
    let status = cargo()
        .args(arguments)
        .args(programs)
        .env("NODEMESH_BPF_OBJECT", &object)
        .status()
        .context("starting cargo")?;
    ensure!(status.success(), "cargo {}: {status}", arguments.join(" "));
    built(profile)
}

/// Another agent to test than the one that is built here, with the BPF object inside.
const OTHER_AGENT: &str = "MESH_TEST_AGENT";

/// The agent that [`agent`] built.
pub fn agent_binary() -> Result<PathBuf> {
    if let Some(other) = std::env::var_os(OTHER_AGENT) {
        return Ok(other.into());
    }
    built("release")
}

/// meshctl, beside the agent that [`agent_binary`] names.
pub fn meshctl_binary() -> Result<PathBuf> {
    let binary = agent_binary()?.with_file_name("meshctl");
    ensure!(binary.is_file(), "{} is missing: cargo xtask build", binary.display());
    Ok(binary)
}

fn built(profile: &str) -> Result<PathBuf> {
    let binary = target_dir().join(host()?).join(profile).join("mesh-agent");
    ensure!(binary.is_file(), "{} is missing: cargo xtask build", binary.display());
    Ok(binary)
}

/// What this machine is to the compiler, such as `x86_64-unknown-linux-gnu`.
fn host() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("-vV").current_dir(root()).output().context("starting rustc")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_string).context("rustc -vV does not name its host")
}

/// cargo, as the toolchain that runs this, in the clone's root.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}
