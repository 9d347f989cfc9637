//! What was typed to meshctl.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

use super::connections::ConnectionsArgs;
use super::graph::GraphArgs;
use super::identity::IdentityArgs;
use super::map::MapArgs;
use super::status::StatusArgs;
use super::top::TopArgs;
use crate::admin::Address;
use crate::cli::{PolicyTestArgs, ValidateArgs};

const AFTER_HELP: &str = "\
The agents are those of the cluster that kubectl talks to, asked with your own rights: you may list
and exec pods in the mesh's namespace. With --admin they are those at these addresses.

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
    /// Say how every agent is: version, pods, certificates, age of its configuration
    ///
    /// Exit status: 0 all are well, 1 something is wrong (it is said what), 2 nobody answers.
    Status(StatusArgs),
    /// Show the live connections of the mesh
    #[command(visible_alias = "flows")]
    Connections(ConnectionsArgs),
    /// Show the identities of the mesh and their certificates, or those of one pod
    ///
    /// Exit status: 0 each has a certificate in force, 1 one has not, or no agent knows the pod; 2 nobody answers.
    Identity(IdentityArgs),
    /// Draw who talks to whom, and how that is protected
    ///
    /// Counted by every agent since it started, by namespace and service account.
    Graph(GraphArgs),
    /// Show what is carried now, in a second, between whom; the busiest first
    Top(TopArgs),
    /// Serve the live map: a web page of all of it, until ^C
    ///
    /// It shows and changes nothing. On another address than a loopback one it takes a token.
    Map(MapArgs),
}

/// `meshctl policy`
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Say whether a caller may ask for something, and by which rule
    ///
    /// Exit status: 0 allowed, 1 refused, 2 the question cannot be answered.
    Test(Box<PolicyTestArgs>),
}

/// `meshctl config`
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Say what is wrong with a file or a directory of Kubernetes YAML
    ///
    /// Exit status: 0 nothing, 1 something.
    Validate(ValidateArgs),
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
