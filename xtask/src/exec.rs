//! `cargo xtask exec`: a command in a pod of a running demo, as `kubectl exec` does it.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::clean;
use crate::testbed::Place;
use crate::testbed::run::RUNS;

/// Run a command in a pod of a running demo: exec shop -- curl http://web.demo/
#[derive(clap::Args)]
pub struct InPod {
    /// The run, if there is more than one
    #[arg(long)]
    run: Option<String>,
    /// The pod's name
    pod: String,
    /// The command
    #[arg(last = true, required = true)]
    argv: Vec<String>,
}

impl InPod {
    /// Runs it with this terminal and passes its exit status on.
    pub fn run(self) -> Result<ExitCode> {
        let Self { run, pod, argv } = self;
        let run = run.map_or_else(only_run, Ok)?;
        let file = Path::new(RUNS).join(&run).join("pods").join(&pod).join("place");
        let place = fs::read_to_string(&file).with_context(|| format!("run {run} has no pod {pod}"))?;
        let place: Place = serde_json::from_str(&place)?;
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        let mut command = place.command(&argv)?;
        if let Some(terminal) = std::env::var_os("TERM") {
            command.env("TERM", terminal);
        }
        let status = command.status().with_context(|| format!("starting {}", argv.join(" ")))?;
        Ok(status.code().map_or(ExitCode::FAILURE, |code| ExitCode::from(code as u8)))
    }
}

fn only_run() -> Result<String> {
    let runs = clean::find()?;
    match &runs[..] {
        [run] => Ok(run.id().to_string()),
        [] => bail!("nothing is running: cargo xtask demo --keep --detach"),
        several => {
            let ids: Vec<&str> = several.iter().map(|run| run.id()).collect();
            bail!("more than one run: choose with --run from {}", ids.join(", "))
        }
    }
}
