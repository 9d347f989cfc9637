//! What was typed to meshctl.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

use super::bench::{self, BenchArgs};
use super::bundle::BundleArgs;
use super::check::CheckArgs;
use super::connections::ConnectionsArgs;
use super::convert::ConvertCommand;
use super::diff::DiffArgs;
use super::explain::ExplainArgs;
use super::flows::{FlowsArgs, TapArgs};
use super::graph::GraphArgs;
use super::identity::IdentityArgs;
use super::install::{InstallArgs, UninstallArgs, UpgradeArgs};
use super::map::MapArgs;
use super::routes::RoutesArgs;
use super::status::StatusArgs;
use super::top::TopArgs;
use crate::admin::Address;
use crate::cli::{PolicyTestArgs, ValidateArgs};

const AFTER_HELP: &str = "\
The agents are those of the cluster that kubectl talks to, asked with your own rights: you may list
and exec pods in the mesh's namespace. With --admin they are those at these addresses. Nothing is
changed but by install, upgrade and uninstall, and by bench --from, which deletes the pods that it makes.

Installed in your PATH as kubectl-mesh it is `kubectl mesh`.

Exit status: 0 all is well, 1 something is wrong or somebody did not answer, 2 nobody can be asked.";

/// Look at a mesh: its agents, who talks to whom, and by which certificates
#[derive(Debug, Parser)]
#[command(name = "meshctl", version, max_term_width = 100, after_help = AFTER_HELP)]
pub struct Ctl {
    /// Whom to ask.
    #[command(flatten)]
    pub whom: WhomArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const WHOM: &str = "Whom to ask";

/// Whom to ask.
#[derive(Args, Clone, Debug)]
pub struct WhomArgs {
    /// An agent's admin address, instead of the cluster's agents; may be given several times
    #[arg(long, global = true, value_name = "IP:PORT|unix:PATH", action = ArgAction::Append, help_heading = WHOM)]
    pub admin: Vec<Address>,
    /// The namespace of the mesh's agents
    #[arg(short = 'n', long, global = true, value_name = "NAME", default_value = "nodemesh-system", help_heading = WHOM)]
    pub mesh_namespace: String,
    /// How the cluster is reached [default: as kubectl does]
    #[arg(long, global = true, value_name = "PATH", help_heading = WHOM)]
    pub kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig [default: its current one]
    #[arg(long, global = true, value_name = "NAME", help_heading = WHOM)]
    pub context: Option<String>,
    /// How long one agent may take to answer
    #[arg(long, global = true, value_name = "DURATION", default_value = "10s", value_parser = some_time, help_heading = WHOM)]
    pub timeout: Duration,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Ask agents.
    #[command(flatten)]
    Ask(Question),
    /// Ask what policies say
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Look at YAML before an agent meets it
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Write objects of another mesh as those of this one
    #[command(subcommand)]
    Convert(ConvertCommand),
    /// Print what makes a shell complete this command
    ///
    /// For example: source <(meshctl completion bash)
    Completion {
        /// Which shell
        shell: Shell,
    },
    /// Print the version
    Version,
}

/// What agents are asked.
#[derive(Debug, Subcommand)]
pub enum Question {
    /// Say whether a cluster is fit for the mesh, and whether the mesh is well; what to do where it is not
    ///
    /// Exit status: 0 nothing is wrong, 1 something is, 2 nobody answers.
    Check(CheckArgs),
    /// Say how every agent is: version, pods, certificates, age of its configuration
    ///
    /// Exit status: 0 all are well, 1 something is wrong (it is said what), 2 nobody answers.
    Status(StatusArgs),
    /// Show the live connections of the mesh
    Connections(ConnectionsArgs),
    /// Hear of connections and requests as they end: who, how long, how it went, by which policy
    ///
    /// Agents tell of what ends while somebody listens, and keep nothing. Exit status: 0 all agents were heard to the end,
    /// 1 one was not, 2 none was.
    Flows(FlowsArgs),
    /// Hear of requests as they are answered: method, path without query, status, latency, route and policy
    ///
    /// Bodies and queries are never told, headers with --headers alone, most of them by their names. Exit status: 0 all agents were heard to the end, 1 one was not, 2 none was.
    Tap(TapArgs),
    /// Show the identities of the mesh and their certificates, or those of one pod
    ///
    /// Exit status: 0 each has a certificate in force, 1 one has not, or no agent knows the pod; 2 nobody answers.
    Identity(IdentityArgs),
    /// Show which requests and connections go where: the routes of every Service, with conditions, backends and weights
    ///
    /// Exit status: 0 each is as its author meant, 1 one is refused or leads nowhere, 2 nobody answers.
    Routes(RoutesArgs),
    /// Draw who talks to whom, and how that is protected
    ///
    /// Counted by every agent since it started, by namespace and service account.
    Graph(GraphArgs),
    /// Show what is carried now, in a second, between whom; the busiest first
    Top(TopArgs),
    /// Ask a server at a fixed rate, and say how long its answers take; with --from, what the mesh adds to that
    #[command(after_help = bench::AFTER_HELP)]
    Bench(BenchArgs),
    /// Serve the live map: a web page of all of it, until ^C
    ///
    /// It shows and changes nothing. On another address than a loopback one it takes a token.
    Map(MapArgs),
    /// Install the mesh in a cluster, and wait until it is there; or print what would be installed
    ///
    /// Exit status: 0 controller and agents are ready, 1 they are not yet, 2 nothing was installed or not all of it.
    Install(InstallArgs),
    /// Have the agents and the controller of this version, a node after the other; live connections go on
    ///
    /// Exit status: 0 all are ready, 1 they are not yet, 2 nothing was changed or not all of it.
    Upgrade(UpgradeArgs),
    /// Take the mesh off a cluster: its agents first, and the rest when they are gone
    ///
    /// Exit status: 0 it is gone, 1 nothing was changed, as you wished, 2 it is not gone.
    Uninstall(UninstallArgs),
    /// Write one file for whoever helps from afar: what agents say, logs, events, policies and routes; no secrets
    ///
    /// Exit status: 0 all of it is there, 1 something could not be had (its index says what), 2 there is no file.
    SupportBundle(BundleArgs),
    /// `meshctl policy explain`
    #[command(skip)]
    Explain(ExplainArgs),
    /// `meshctl config diff`
    #[command(skip)]
    Diff(DiffArgs),
}

impl Command {
    /// What agents are asked, wherever among the commands it stands; else the command again.
    ///
    /// # Errors
    /// One that asks no agent.
    pub fn question(self) -> Result<Question, Box<Self>> {
        match self {
            Command::Ask(question) => Ok(question),
            Command::Policy(PolicyCommand::Explain(args)) => Ok(Question::Explain(args)),
            Command::Config(ConfigCommand::Diff(args)) => Ok(Question::Diff(args)),
            other => Err(Box::new(other)),
        }
    }
}

/// `meshctl policy`
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Say whether a caller may ask for something, and by which rule
    ///
    /// Exit status: 0 allowed, 1 refused, 2 the question cannot be answered.
    Test(Box<PolicyTestArgs>),
    /// Say which policies select a pod, and what each says
    ///
    /// Exit status: 0 all that select it can be read, 1 one cannot, or no agent has the pod; 2 nobody answers.
    Explain(ExplainArgs),
}

/// `meshctl config`
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Say what is wrong with a file or a directory of Kubernetes YAML
    ///
    /// Exit status: 0 nothing, 1 something.
    Validate(ValidateArgs),
    /// Say where agents differ from each other, or from YAML that is meant to be in force
    ///
    /// Exit status: 0 nowhere, 1 somewhere (it is said where) or somebody did not answer, 2 nobody answers.
    Diff(DiffArgs),
}

/// A shell that can complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// GNU's.
    Bash,
    /// The Z shell.
    Zsh,
    /// The friendly one.
    Fish,
}

/// What is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For people with a broad window: more columns, whole names.
    Wide,
    /// For machines.
    Json,
    /// The same as JSON.
    Yaml,
}

/// A time that is not nothing.
pub fn some_time(text: &str) -> Result<Duration, String> {
    let parsed = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if parsed.is_zero() { Err("expected more than nothing, such as 10s".into()) } else { Ok(parsed) }
}
