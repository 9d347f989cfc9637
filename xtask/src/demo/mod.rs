//! `cargo xtask demo`.

use std::process::ExitCode;

use anyhow::Result;

/// Show the mesh at work
#[derive(clap::Args)]
pub struct Demo {}

impl Demo {
    /// Runs it.
    pub fn run(self) -> Result<ExitCode> {
        Ok(ExitCode::SUCCESS)
    }
}
