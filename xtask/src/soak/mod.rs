//! `cargo xtask soak`: everything at once for a long time, and then whether it is as if nothing had been.
//!
//! ```text
//! sprint     300 000 short connections to one Service, IPv4 then IPv6, nothing beside them but two that are ten minutes old
//!            at its end, and still have the peer that they dialled
//! restarts   all roles play; the agents are killed or told to end, again and again; connections may break
//! steady     all roles play, pods and policies and endpoints come and go; no connection may break
//! quiet      nothing plays: memory, descriptors, threads, map entries and tunnels go back to where they were
//! ```
//! What plays is in `roles.rs`, what comes and goes in `churn.rs`, what is measured in `gauges.rs`.

mod churn;
mod gauges;
mod report;
mod roles;
mod stage;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::testbed::Family;
use crate::{build, packages};
use gauges::Gauges;
use report::Report;
use roles::Cast;
use stage::Stage;

/// Everything at once for a long time on two nodes; exit status 1 if anything broke or stayed behind
#[derive(clap::Args)]
pub struct Soak {
    /// How long it shall take, building apart; at least 3
    #[arg(long, default_value_t = 30)]
    minutes: u64,
    /// Write every figure to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Tunnels that nobody uses are closed after five minutes; then everything has to be back.
const QUIET: Duration = Duration::from_secs(390);

/// How often a line says how it stands.
const PROGRESS: Duration = Duration::from_secs(30);

/// Shares of the time before the quiet, in percent.
const RESTARTS_PERCENT: u32 = 20;

/// The number of issue and README, of both families; a short soak makes a tenth.
const SHORT_CONNECTIONS: u64 = 300_000;

/// How old a connection is that is looked at after all of them; in a short soak a twentieth.
const OLD: Duration = Duration::from_secs(600);

impl Soak {
    /// Plays it; the exit status says whether it held.
    pub fn run(self) -> Result<ExitCode> {
        let Self { minutes, json } = self;
        packages::for_build()?;
        packages::for_testbed()?;
        let mut report = Report::new();
        report.say("building the agent");
        build::agent()?;
        report.say("setting up two nodes, their pods and servers");
        let mut stage = Stage::build()?;
        let played = play(&mut stage, &mut report, Duration::from_secs(minutes.max(3) * 60));
        if let Err(error) = &played {
            report.failure(&format!("{error:#}"));
        }
        if !report.held() {
            report.logs(&stage.bed.log_tails(15));
        }
        report.closing();
        if let Some(file) = json {
            std::fs::write(&file, report.json()?).with_context(|| format!("writing {}", file.display()))?;
        }
        Ok(if report.held() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn play(stage: &mut Stage, report: &mut Report, time: Duration) -> Result<()> {
    stage.start_mesh()?;
    let loud = time.saturating_sub(QUIET).max(time / 2);
    let restarts = loud * RESTARTS_PERCENT / 100;

    report.phase("sprint", "short connections through one Service, the client closing first");
    let is_short = time < Duration::from_secs(600);
    let (short, old) = if is_short { (SHORT_CONNECTIONS / 10, OLD / 20) } else { (SHORT_CONNECTIONS, OLD) };
    let old_ones = Family::BOTH.into_iter().map(|family| stage.grow_old(family, old)).collect::<Result<Vec<_>>>()?;
    for family in Family::BOTH {
        let said = stage.sprint(family, short / 2)?;
        report.figure(&format!("sprint {family}"), &said);
        ensure!(said["failed"] == 0, "{family}: {said}");
    }
    for mut one in old_ones {
        let status = one.wait(old * 2)?;
        ensure!(status.success(), "of connections of {} s: {}", old.as_secs(), one.log());
    }

    report.phase("restarts", "agents are killed and told to end while everything plays; what they carried may break");
    restart_under_load(stage, report, restarts)?;

    report.phase("steady", "everything plays and pods, endpoints, policies and certificates change; nothing may break");
    let before = Gauges::read(stage)?;
    report.say(&format!("before: {before}"));
    steady(stage, report, loud.saturating_sub(restarts))?;

    report.phase("quiet", "nothing plays; everything has to go back to where it was");
    let (after, left) = quiet(stage, report, &before)?;
    report.table(&before, &after);
    for left in left {
        report.failure(&left);
    }
    Ok(())
}

/// Kills and ends each agent in turn; what was killed serves again before the next.
fn restart_under_load(stage: &mut Stage, report: &mut Report, time: Duration) -> Result<()> {
    let mut cast = Cast::restarts(stage)?;
    let (began, mut restarts) = (Instant::now(), 0);
    let mut said = Instant::now();
    while began.elapsed() < time || restarts < 4 {
        let node = ["n1", "n2"][restarts % 2];
        let way = if restarts % 4 < 2 { "kill -9" } else { "SIGTERM" };
        std::thread::sleep(Duration::from_secs(2));
        stage.restart(node, way == "kill -9").with_context(|| format!("{way} of the agent of {node}"))?;
        restarts += 1;
        // What broke starts again, and all of it has to get somewhere.
        let moved = cast.all_move(stage, Duration::from_secs(30));
        moved.with_context(|| format!("after {way} of the agent of {node}, restart {restarts}"))?;
        if said.elapsed() > PROGRESS {
            said = Instant::now();
            report.progress(&format!("{restarts} restarts; {}", cast.summary()), &Gauges::brief(stage)?);
        }
    }
    report.figure("restarts", &serde_json::json!({"restarts": restarts, "roles": cast.json()}));
    cast.leave()?;
    // Fresh ones, so that what they have now is what they have without any connection.
    for node in ["n1", "n2"] {
        stage.restart(node, true)?;
    }
    stage.touch()
}

fn steady(stage: &mut Stage, report: &mut Report, time: Duration) -> Result<()> {
    let mut cast = Cast::steady(stage, time)?;
    let mut churn = churn::Churn::new(time);
    let began = Instant::now();
    let mut said = Instant::now();
    while began.elapsed() < time {
        churn.step(stage).with_context(|| churn.last_step())?;
        cast.none_broke().map_err(|error| stage.bed.explain(error))?;
        if said.elapsed() > PROGRESS {
            said = Instant::now();
            let brief = Gauges::brief(stage)?;
            report.peak(&brief);
            report.progress(&format!("{}; {}", cast.summary(), churn.summary()), &brief);
        }
    }
    cast.all_move(stage, Duration::from_secs(60)).context("at the end of the steady phase")?;
    cast.silent_were_used()?;
    report.figure("steady", &serde_json::json!({"roles": cast.json(), "changes": churn.json()}));
    cast.leave()
}

/// Waits until all gauges are back; what is not after [`QUIET`].
fn quiet(stage: &Stage, report: &mut Report, before: &Gauges) -> Result<(Gauges, Vec<String>)> {
    let began = Instant::now();
    let mut said = Instant::now();
    loop {
        std::thread::sleep(Duration::from_secs(3));
        let now = Gauges::read(stage)?;
        let left = now.more_than(before);
        if left.is_empty() || began.elapsed() > QUIET {
            report.figure("quiet", &serde_json::json!({"seconds": began.elapsed().as_secs()}));
            return Ok((now, left));
        }
        if said.elapsed() > PROGRESS {
            said = Instant::now();
            report.progress(&format!("not back yet: {}", left.join(", ")), &now);
        }
    }
}
