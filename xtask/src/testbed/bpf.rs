//! What bpftool tells of pinned maps.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// How many entries a pinned map has.
pub fn map_entries(pin: &Path) -> Result<usize> {
    let output = Command::new("bpftool").args(["-j", "map", "dump", "pinned"]).arg(pin).output();
    let output = output.context("starting bpftool")?;
    ensure!(output.status.success(), "bpftool: {}", String::from_utf8_lossy(&output.stderr));
    let entries: Value = serde_json::from_slice(&output.stdout).context("reading bpftool's answer")?;
    entries.as_array().map(Vec::len).context("bpftool gave no list")
}
