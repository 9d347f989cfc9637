//! `cargo xtask build-ebpf`: the BPF object.

use std::path::PathBuf;

use anyhow::{Result, bail};

/// Builds the BPF object and returns its path.
pub fn build() -> Result<PathBuf> {
    bail!("the BPF object cannot be built yet")
}
