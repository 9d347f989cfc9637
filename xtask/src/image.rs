//! `cargo xtask image`: the container image, from scratch, with no container daemon.
//!
//! There is one file in it, the agent, which is the controller and the CNI plugin too. The archive is an OCI layout:
//! `ctr -n k8s.io images import`, `docker load` and `skopeo copy oci-archive:` take it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::build;
use crate::oci::{Entry, Image};

/// What the manifests call the image, without the version.
pub const NAME: &str = "localhost/nodemesh";

/// Build the container image as an archive; prints its path and size
#[derive(clap::Args)]
pub struct BuildImage {
    /// The image's name; a registry of your own goes here [default: localhost/nodemesh:<version>]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Take the agent as tests build it: quicker to build, a fifth slower
    #[arg(long)]
    quick: bool,
}

impl BuildImage {
    /// Builds the agent and packs it.
    pub fn run(self) -> Result<()> {
        let Self { name, quick } = self;
        let agent = if quick { build::agent()? } else { build::shipped_agent()? };
        let archive = build::target_dir().join(format!("nodemesh-{}.tar", env!("CARGO_PKG_VERSION")));
        pack(&agent, &name.unwrap_or_else(default_name), &archive)?;
        let size = fs::metadata(&archive)?.len() as f64 / 1e6;
        println!("{} ({size:.1} MB)", archive.display());
        Ok(())
    }
}

/// The name that the manifests have.
pub fn default_name() -> String {
    format!("{NAME}:{}", env!("CARGO_PKG_VERSION"))
}

/// Packs an agent as an image.
pub fn pack(agent: &Path, name: &str, archive: &Path) -> Result<()> {
    let place = tempfile::tempdir()?;
    let stripped = strip(agent, &place.path().join("mesh-agent"))?;
    let image = Image {
        names: vec![name.to_string()],
        config: json!({
            "Entrypoint": ["/mesh-agent"],
            "Labels": {
                "org.opencontainers.image.title": "nodemesh",
                "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
                "org.opencontainers.image.licenses": "Apache-2.0",
            },
        }),
        entries: vec![Entry::File(stripped, "/mesh-agent".to_string())],
    };
    image.write(archive)
}

/// Names of functions and lines are for profiles; they are nine tenths of the file.
fn strip(agent: &Path, stripped: &Path) -> Result<PathBuf> {
    let output = Command::new("strip").arg("-o").arg(stripped).arg(agent).output();
    let output = output.context("starting strip: apt-get install binutils")?;
    ensure!(output.status.success(), "strip: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(stripped.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_agent_gives_the_same_image() {
        let place = tempfile::tempdir().unwrap();
        // Any program with names to strip; the one that runs has them.
        let agent = std::env::current_exe().unwrap();
        let [first, second] = ["first.tar", "second.tar"].map(|name| {
            let archive = place.path().join(name);
            pack(&agent, &default_name(), &archive).unwrap();
            fs::read(archive).unwrap()
        });
        assert!(first == second, "{} and {} bytes that differ", first.len(), second.len());
        assert!(first.len() < fs::metadata(&agent).unwrap().len() as usize, "nothing was stripped");
    }
}
