//! `cargo xtask demo`: the mesh at work, step by step, each step checked.
//!
//! A step promises something and then looks for itself: at the bytes between the nodes, the application's log, the
//! agents' access logs. The kernel tests run the same steps, each in a testbed of its own and in both IP families.

mod report;
pub mod stage;
pub mod steps;

use std::io::{BufRead, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::testbed::Family;
use crate::{build, packages};
use report::Report;
use stage::Stage;
use steps::STEPS;

/// Show the mesh at work: two nodes, six pods, nine steps
#[derive(clap::Args)]
pub struct Demo {
    /// Do not wait for Enter between the steps; exit status 1 if a step is not as promised
    #[arg(long)]
    once: bool,
    /// Write what was promised and what was seen to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Leave it running after the last step and print how to poke at it
    #[arg(long)]
    keep: bool,
    /// With --keep: return to the shell; `cargo xtask clean` ends it
    #[arg(long, requires = "keep")]
    detach: bool,
    /// Only these steps
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    steps: Vec<String>,
    /// Between the pods use IPv6
    #[arg(long)]
    ipv6: bool,
}

impl Demo {
    /// Runs the steps; the exit status says whether all were as promised.
    pub fn run(self) -> Result<ExitCode> {
        let Self { once, json, keep, detach, steps, ipv6 } = self;
        for id in &steps {
            steps::by_id(id)?;
        }
        packages::for_build()?;
        packages::for_testbed()?;
        let mut report = Report::new();
        report.progress("building the agent (the first time takes a few minutes)");
        build::agent()?;
        let family = if ipv6 { Family::V6 } else { Family::V4 };
        let mut stage = set_up(family, &report, steps.is_empty() || steps.iter().any(|id| id == "cost"))?;
        report.opening(&stage);
        let pause = !once && std::io::stdin().is_terminal();
        for step in STEPS.iter().filter(|step| steps.is_empty() || steps.iter().any(|id| id == step.id)) {
            if pause {
                wait_for_enter(&format!("Enter: {}", step.title));
            }
            report.begin(step);
            let result = (step.run)(&mut stage, &|text| report.progress(text));
            if result.is_err() {
                report.logs(&stage.bed.log_tails(8));
            }
            report.end(step, result);
        }
        report.closing();
        if let Some(file) = json {
            std::fs::write(&file, report.json()?).with_context(|| format!("writing {}", file.display()))?;
        }
        let code = if report.all_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        match (keep, detach) {
            (true, true) => {
                let map = something_to_see(&mut stage)?;
                report.how_to_poke(&stage, &map);
                stage.keep();
            }
            (true, false) => {
                let map = something_to_see(&mut stage)?;
                report.how_to_poke(&stage, &map);
                wait_for_enter("it runs until Enter or ^C");
            }
            (false, _) => {}
        }
        Ok(code)
    }
}

fn set_up(family: Family, report: &Report, with_cost: bool) -> Result<Stage> {
    report.progress("setting up two nodes and six pods");
    let mut stage = Stage::build(family)?;
    report.progress("looking at the wire while there is no mesh");
    stage.record_plain()?;
    if with_cost {
        report.progress("measuring while there is no mesh");
        stage.measure_plain()?;
    }
    report.progress("starting the agents");
    stage.start_mesh()?;
    Ok(stage)
}

/// Serves the live map, with some traffic to see there; its address.
fn something_to_see(stage: &mut Stage) -> Result<String> {
    stage.start_visitors()?;
    stage.serve_map()
}

fn wait_for_enter(text: &str) {
    eprint!("\n[{text}] ");
    let mut line = String::new();
    // End of input is as good as Enter.
    let _ = std::io::stdin().lock().read_line(&mut line);
}
