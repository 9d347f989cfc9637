//! `meshctl bench`: what a server answers to a load at a fixed rate, from where meshctl runs; or, by two pods on one node of
//! which one is in the mesh (`pods`), what the mesh costs there.

mod pods;
mod shown;
#[cfg(test)]
mod tests;

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;

use self::pods::Account;
pub(super) use self::pods::{LIVES_LONGER, POD_LOOK_EVERY, RUNS_LONGER};
use self::shown::{Compared, compared, render};
use super::args::{Output, WhomArgs, some_time};
use super::install::cluster::Cluster;
use super::{Screen, Verdict};
use crate::bench::{Load, Progress};
use crate::cli::LoadArgs;

pub(super) const AFTER_HELP: &str = "\
Requests are due at fixed times, whatever the answers before them take, and a latency counts from then. Connections
are made, and one request is sent on each, before. --timeout is how long one answer may take.

With --from two pods of the mesh's own image are made in a namespace, on one node, and deleted in the end: one labelled
into the mesh, one out of it. You need the rights to create, get and delete pods there, to exec in them, and to get the
agents' DaemonSet. They pass the pod security profile `restricted`.

Exit status: 0 every request was answered with a status below 400 (with --from those of the pod outside the mesh may all
be refused, as STRICT does), 1 one was not, 2 there was no load.

Example:
  meshctl bench http://web.shop/ --from shop --rate 200 --for 30s";

/// `meshctl bench`
#[derive(Args, Debug)]
pub struct BenchArgs {
    /// What is asked for.
    #[command(flatten)]
    pub load: LoadArgs,
    /// Ask from two pods of this namespace, with this service account, in the mesh and out of it, and compare
    #[arg(long, value_name = "NAMESPACE[/SERVICEACCOUNT]")]
    pub from: Option<Account>,
    /// Their node [default: as the cluster chooses]
    #[arg(long, value_name = "NAME", requires = "from")]
    pub node: Option<String>,
    /// How long they may take to be there
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = some_time, requires = "from")]
    pub wait: Duration,
    /// What to print
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// `meshctl bench`
pub async fn run(args: &BenchArgs, whom: &WhomArgs, screen: &mut Screen<'_>) -> Result<Verdict> {
    let LoadArgs { url, rate, connections, length } = &args.load;
    let load = Load::new(url, *rate, *connections, *length, whom.timeout)?;
    match &args.from {
        None => here(&load, args.output, whom, screen).await,
        Some(from) => {
            let cluster = Cluster::find(whom).await?;
            let wanted = pods::Wanted { from, node: args.node.as_deref(), wait: args.wait, load: &load };
            let measured = pods::measure(&cluster, &wanted, pods::interruption()?).await?;
            show(&compared(measured), args.output, screen)
        }
    }
}

async fn here(load: &Load, output: Output, whom: &WhomArgs, screen: &mut Screen<'_>) -> Result<Verdict> {
    ensure!(whom.admin.is_empty(), "--admin names agents, and a load asks a server: meshctl bench {}", load.told());
    let told = Told::new();
    let came_to = load.run(|Progress { elapsed, done, failed }| {
        let length = humantime::format_duration(load.length());
        told.say(&format!("{}s of {length}: {done} done, {failed} failed", elapsed.as_secs()));
    });
    let came_to = came_to.await;
    drop(told);
    let came_to = came_to?;
    match output {
        Output::Json => screen.json(&came_to)?,
        Output::Yaml => screen.yaml(&came_to)?,
        Output::Table | Output::Wide => {
            screen.print(&render(&load.told(), &[("HERE", &came_to)], None, screen.paint()))?;
        }
    }
    Ok(if came_to.failed == 0 { Verdict::Well } else { Verdict::Wrong })
}

fn show(compared: &Compared, output: Output, screen: &mut Screen<'_>) -> Result<Verdict> {
    match output {
        Output::Json => screen.json(compared)?,
        Output::Yaml => screen.yaml(compared)?,
        Output::Table | Output::Wide => screen.print(&compared.render(screen.paint()))?,
    }
    Ok(if compared.is_well() { Verdict::Well } else { Verdict::Wrong })
}

/// How far something is, in one line of the terminal; nowhere else.
struct Told {
    is_shown: bool,
}

impl Told {
    fn new() -> Self {
        Self { is_shown: io::stderr().is_terminal() }
    }

    fn say(&self, text: &str) {
        if self.is_shown {
            // Nobody misses it who cannot be told.
            let _ = write!(io::stderr(), "\r\x1b[K{}", text.replace(char::is_control, " "));
        }
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        if self.is_shown {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
