//! meshctl: one command line for a whole mesh. Each command asks the agents' own HTTP (`admin`), prints, and answers with an
//! exit status for scripts.
//!
//! How agents are reached is `reach`'s business; a command is a file, and what it shows is made of the answers by pure
//! functions. JSON and YAML are interfaces, tables are for people. An agent that does not answer is a line of the output,
//! not its end. Nothing here changes an agent, and nothing a cluster but `install`, and `bench` for a time.

mod args;
mod bench;
mod bundle;
mod check;
mod connections;
mod convert;
mod diff;
mod explain;
mod flows;
mod graph;
mod identity;
mod install;
mod map;
mod reach;
mod routes;
mod status;
mod table;
mod top;
mod words;

#[cfg(test)]
mod cluster_tests;
#[cfg(test)]
mod golden_tests;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::io::{self, IsTerminal as _, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::error::{ContextKind, ContextValue};
use clap::{CommandFactory as _, FromArgMatches as _};
use serde::Serialize;

use self::args::{Command, ConfigCommand, Ctl, PolicyCommand, Question, Shell, WhomArgs};
use self::reach::Agents;
use self::table::Paint;
use crate::limit::{Limit, limits};
use crate::{cli, commands};

/// kubectl runs `kubectl-mesh` for `kubectl mesh`.
const PLUGIN: &str = "kubectl-mesh";

/// The bounds of this room.
pub fn limits() -> Vec<Limit> {
    limits![
        bench::POD_LOOK_EVERY, "milliseconds", "between two looks at whether the pods of a load are there";
        bench::RUNS_LONGER, "milliseconds", "that a load in a pod may take beyond its own time: exec, and the way of its words";
        bench::LIVES_LONGER, "milliseconds", "that the pods of a load live beyond its time where nobody deletes them";
        bundle::MAX_BUNDLE_BYTES, "bytes", "of a support bundle before it is compressed";
        bundle::LONGEST, "milliseconds", "that a support bundle takes to gather";
        bundle::MAX_OBJECTS, "objects", "of one kind in a support bundle";
        bundle::MAX_LOG_LINES, "lines", "of a container's log in a support bundle, the last ones";
        bundle::MAX_LOG_BYTES, "bytes", "of these lines";
        reach::AT_ONCE, "agents", "that meshctl asks at once";
        reach::CHUNK_BYTES, "bytes", "of an answer through the API server that wait to be read";
        reach::MAX_COMPLAINT_BYTES, "bytes", "that are kept of what a failed command in a pod says";
        check::MAX_SKEW, "milliseconds", "that the clocks of two nodes may differ: certificates begin a minute early";
        check::ROOT_SOON, "milliseconds", "of a root's life, under which it is time to replace it";
        check::SHOWN, "things", "of one kind that a line of `check` names";
        diff::SHOWN_FIELDS, "fields", "in which two objects differ that `config diff` names";
        flows::WAITING, "lines", "of agents that wait to be printed";
        reach::PARTS, "parts", "of an answer that goes on that wait to be cut into lines; with more, that agent is heard no more";
        reach::MAX_LINE_BYTES, "bytes", "of one line of an answer that goes on";
        status::LATE_PART, "parts of a life", "a certificate with less than one left is late: it is renewed at half";
        connections::LOOK_EVERY, "milliseconds", "between two looks of `connections --watch`";
        install::ROLLOUT_LOOK_EVERY, "milliseconds", "between two looks at how far an install, an upgrade or an uninstall is";
        identity::SHOWN_OF_ROOT, "characters", "of a root in a table of identities: enough to tell it from others";
        map::FIND_EVERY, "milliseconds", "between two looks at which agents a cluster has, while the map is served";
        map::MAX_TOKEN_FILE_BYTES, "bytes", "of the file of the map's token";
        status::OLD_CONFIG, "milliseconds", "from which an agent's world is shown as old";
    ]
}

/// What scripts are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// All is well.
    Well,
    /// Something is wrong, or somebody did not answer.
    Wrong,
    /// The question cannot be asked, or nobody answers; as clap's own refusals.
    Unasked,
}

impl Verdict {
    /// Of what those said that answered; so many did not.
    fn of(is_well: bool, silent: usize, agents: &Agents) -> Self {
        match (silent, is_well) {
            (0, true) => Self::Well,
            (silent, _) if silent == agents.count() => Self::Unasked,
            _ => Self::Wrong,
        }
    }
}

impl From<Verdict> for ExitCode {
    fn from(verdict: Verdict) -> Self {
        ExitCode::from(match verdict {
            Verdict::Well => 0,
            Verdict::Wrong => 1,
            Verdict::Unasked => 2,
        })
    }
}

/// Does what was typed, the program's name first.
pub fn run(typed: impl Iterator<Item = OsString>) -> ExitCode {
    let typed: Vec<OsString> = typed.collect();
    let name = name(typed.first());
    let (whom, command) = match parsed(name, typed) {
        Err(refusal) => return refused(name, &refusal),
        Ok(Ctl { whom, command }) => (whom, command),
    };
    let question = match command.question() {
        Ok(question) => question,
        Err(command) => return told(alone(*command, name, &whom)),
    };
    let mut out = io::stdout();
    let mut screen = Screen { is_terminal: out.is_terminal(), paint: paint(), out: &mut out };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = runtime.map_err(anyhow::Error::from);
    told(ended.and_then(|runtime| runtime.block_on(ask(&whom, &question, &mut screen)).map(ExitCode::from)))
}

/// What asks no agent.
fn alone(command: Command, name: &str, whom: &WhomArgs) -> Result<ExitCode> {
    match command {
        Command::Convert(command) => convert::run(&command, &whom.mesh_namespace).map(ExitCode::from),
        Command::Policy(PolicyCommand::Test(args)) => commands::policy(cli::PolicyCommand::Test(args)),
        Command::Config(ConfigCommand::Validate(args)) => commands::validate(args),
        Command::Completion { shell } => complete(shell, name),
        Command::Version => commands::print_lines(&[version()]).map(|()| ExitCode::SUCCESS),
        // `Command::question` has these.
        Command::Ask(_) | Command::Policy(PolicyCommand::Explain(_)) | Command::Config(ConfigCommand::Diff(_)) => {
            Ok(Verdict::Unasked.into())
        }
    }
}

async fn ask(whom: &WhomArgs, question: &Question, screen: &mut Screen<'_>) -> Result<Verdict> {
    let agents = || Agents::find(whom);
    match question {
        Question::Check(args) => check::run(args, whom, screen).await,
        Question::Status(args) => status::run(args, &agents().await?, screen).await,
        Question::Connections(args) => connections::run(args, &agents().await?, screen).await,
        Question::Identity(args) => identity::run(args, &agents().await?, screen).await,
        Question::Graph(args) => graph::run(args, &agents().await?, screen).await,
        Question::Flows(args) => flows::flows(args, &agents().await?, screen).await,
        Question::Tap(args) => flows::tap(args, &agents().await?, screen).await,
        Question::Routes(args) => routes::run(args, &agents().await?, screen).await,
        Question::Explain(args) => explain::run(args, &agents().await?, screen).await,
        Question::Diff(args) => diff::run(args, &agents().await?, screen).await,
        Question::Bench(args) => bench::run(args, whom, screen).await,
        Question::Top(args) => top::run(args, &agents().await?, screen).await,
        Question::Install(args) => install::install(args, whom, screen).await,
        Question::Upgrade(args) => install::upgrade(args, whom, screen).await,
        Question::Uninstall(args) => install::uninstall(args, whom, screen).await,
        Question::SupportBundle(args) => bundle::run(args, whom, screen).await,
        Question::Map(args) => map::run(args, whom, agents().await?, screen).await,
    }
}

/// Every verb as it is typed, such as `policy explain`: for tests that hold that none is forgotten.
pub fn verbs() -> Vec<String> {
    fn of(command: &clap::Command, before: &str) -> Vec<String> {
        let verb = |command: &clap::Command| {
            let typed = format!("{before}{}", command.get_name());
            match command.has_subcommands() {
                true => of(command, &format!("{typed} ")),
                false => vec![typed],
            }
        };
        command.get_subcommands().flat_map(verb).collect()
    }
    of(&Ctl::command(), "")
}

fn told(ended: Result<ExitCode>) -> ExitCode {
    ended.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        Verdict::Unasked.into()
    })
}

fn parsed(name: &str, typed: Vec<OsString>) -> Result<Ctl, clap::Error> {
    let matches = command(name).try_get_matches_from(typed)?;
    Ctl::from_arg_matches(&matches)
}

/// Wrong use, with the right one where it can be told; help and the like, which clap hands over in the same way.
fn refused(name: &str, refusal: &clap::Error) -> ExitCode {
    // There is nobody to tell that nobody reads.
    let _ = refusal.print();
    if let Some(right) = right_command(refusal) {
        eprintln!("\n  tip: {} {right}", usage_name(name));
    }
    match refusal.exit_code() {
        0 => ExitCode::SUCCESS,
        _ => Verdict::Unasked.into(),
    }
}

/// What somebody meant who typed what other programs have.
fn right_command(refusal: &clap::Error) -> Option<&'static str> {
    let Some(ContextValue::String(word)) = refusal.get(ContextKind::InvalidSubcommand) else { return None };
    RIGHT.iter().find(|(words, _)| words.contains(&word.as_str())).map(|(_, right)| *right)
}

/// What is typed for what is meant.
const RIGHT: [(&[&str], &str); 16] = [
    (&["agents", "nodes", "get", "proxy-status", "ps", "health"], "status"),
    (&["doctor", "preflight", "precheck", "verify", "verify-install"], "check"),
    (&["bug-report", "sysdump", "support", "dump", "diagnostics"], "support-bundle"),
    (&["apply", "deploy", "init", "manifest"], "install"),
    (&["delete", "remove", "purge", "prune"], "uninstall"),
    (&["conn", "conntrack"], "connections --watch"),
    (&["observe", "monitor", "hubble"], "flows --follow"),
    (&["requests", "trace"], "tap"),
    (&["benchmark", "load", "perf", "latency", "fortio"], "bench URL"),
    (&["migrate", "translate", "import"], "convert istio PATH"),
    (&["cert", "certs", "certificate", "certificates", "svid", "identities", "secret"], "identity"),
    (&["validate", "lint", "analyze", "vet"], "config validate PATH"),
    (&["test", "auth", "authz", "can-i"], "policy test PATH --from WHO --to WHOM"),
    (&["explain", "describe", "x", "why"], "policy explain NAMESPACE/POD"),
    (&["diff", "proxy-config", "pc", "config-diff"], "config diff"),
    (&["route", "httproutes", "httproute", "stat"], "routes"),
];

/// The command line. A plugin of kubectl tells its usage as it is typed.
fn command(name: &str) -> clap::Command {
    Ctl::command().bin_name(usage_name(name))
}

/// What is typed to start this program.
fn usage_name(name: &str) -> &str {
    if name == PLUGIN { "kubectl mesh" } else { name }
}

/// What this program was called as: the plugin's name or its own.
fn name(program: Option<&OsString>) -> &'static str {
    let file = program.and_then(|program| Path::new(program).file_name());
    if file.is_some_and(|file| file == PLUGIN) { PLUGIN } else { "meshctl" }
}

fn complete(shell: Shell, name: &str) -> Result<ExitCode> {
    let shell = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Ctl::command(), name, &mut script);
    commands::print_lines(&[String::from_utf8_lossy(&script)]).map(|()| ExitCode::SUCCESS)
}

fn version() -> String {
    format!("meshctl {}", env!("CARGO_PKG_VERSION"))
}

/// Colours for a terminal, unless its owner wants none (no-color.org).
fn paint() -> Paint {
    let wants_none = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if io::stdout().is_terminal() && !wants_none { Paint::Coloured } else { Paint::Plain }
}

/// Where answers are shown.
struct Screen<'a> {
    out: &'a mut dyn Write,
    is_terminal: bool,
    paint: Paint,
}

impl Screen<'_> {
    fn paint(&self) -> Paint {
        self.paint
    }

    /// Shows a text. A reader that has seen enough (`| head`) ends the program, and is no error.
    fn print(&mut self, text: &str) -> Result<()> {
        self.show(text).map(|_| ())
    }

    /// Shows a text; whether somebody reads it.
    fn show(&mut self, text: &str) -> Result<bool> {
        match self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            written => Ok(written.map(|()| true)?),
        }
    }

    /// Shows what follows in place of what is there: on a terminal alone, elsewhere below it.
    fn again(&mut self) -> Result<()> {
        self.print(if self.is_terminal { "\x1b[H\x1b[2J" } else { "\n" })
    }

    fn json(&mut self, value: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string_pretty(value)?;
        self.print(&format!("{text}\n"))
    }

    fn yaml(&mut self, value: &impl Serialize) -> Result<()> {
        let text = serde_saphyr::to_string(value)?;
        self.print(&format!("---\n{}\n", text.trim_end()))
    }
}
