//! `cargo xtask cluster`: a real Kubernetes of two nodes on this machine.
//!
//! ```text
//!   netns nodemesh-cluster-cp          netns …-n1                    netns …-n2
//!  ┌───────────────────────────┐      ┌───────────────────────┐     ┌───────────────────────┐
//!  │ etcd, API server,         │      │ containerd, kubelet,  │     │ containerd, kubelet,  │
//!  │ controllers, scheduler    │      │ kube-proxy            │     │ kube-proxy            │
//!  │      bridge 172.30.0.1    ├──────┤ 172.30.0.11           │     │ 172.30.0.12           │
//!  └─────────────┬─────────────┘      │  pods 10.244.x.0/24   │     │  pods 10.244.y.0/24   │
//!                │                    └───────────────────────┘     └───────────┬───────────┘
//!                └──────────────────────────────────────────────────────────────┘
//! ```
//! A node has namespaces of its own for network, mounts, processes, names and cgroups: what runs on it sees a machine.
//! Nothing is patched: Kubernetes, CoreDNS and the conformance suite are built from their Go modules ([`parts`]),
//! etcd, containerd, runc and the CNI plugins are Debian's. Nothing reaches beyond the machine. The cluster is a run of
//! the testbed's kind, so `cargo xtask clean cluster` ends it as well.

pub mod conformance;
pub mod control;
pub mod go;
pub mod init;
pub mod layout;
pub mod node;
pub mod parts;
mod pki;
pub mod tools;

use std::io::{Seek, Write};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Subcommand, ValueEnum};

use crate::build::{self, root};
use crate::testbed::eventually;
use crate::testbed::run::{Kind, Run};
use crate::{clean, image, rings};
use layout::{NODES, RUN};
use parts::Parts;

/// How long nodes and DNS may take to be ready; half a minute when nothing else runs.
const READY: &str = "180s";
/// The same for the agents.
const AGENTS_READY: Duration = Duration::from_secs(180);

/// A real Kubernetes cluster of two nodes on this machine
#[derive(clap::Args)]
pub struct Cluster {
    #[command(subcommand)]
    command: ClusterCommand,
}

#[derive(Subcommand)]
enum ClusterCommand {
    /// Build what is missing (minutes, once) and start the cluster, with the agent's image on its nodes
    Up(Options),
    /// End the cluster and remove what it wrote
    Down,
    /// Say whether it runs, and what in it
    Status,
    /// Install the mesh as it is built here, from manifests/
    Install {
        /// Which of manifests/
        #[arg(default_value = "base")]
        manifests: String,
    },
    /// Run Gateway API's conformance suite against the mesh that is installed
    Conformance(conformance::Conformance),
    /// Run the tests of ring 4: in a cluster that is up, else in one for them
    Test {
        /// Only tests whose name contains this
        #[arg(default_value = "")]
        name: String,
    },
    /// A shell with kubectl, or one command: cluster shell -- kubectl get pods -A
    Shell {
        /// On a node, as root there, instead of beside the API server
        #[arg(long, value_name = "n1|n2")]
        node: Option<String>,
        /// The command [default: $SHELL]
        #[arg(last = true)]
        argv: Vec<String>,
    },
}

/// What a cluster shall be like.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Options {
    /// How kube-proxy works
    #[arg(long, value_enum, default_value_t)]
    pub proxy: ProxyMode,
    /// Join pods to their node by a bridge instead of point to point
    #[arg(long)]
    pub bridge: bool,
}

/// kube-proxy's mode.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum ProxyMode {
    /// What Kubernetes recommends.
    #[default]
    Nftables,
    /// What many clusters have.
    Iptables,
}

impl ProxyMode {
    /// As kube-proxy's configuration has it.
    pub fn as_str(self) -> &'static str {
        match self {
            ProxyMode::Nftables => "nftables",
            ProxyMode::Iptables => "iptables",
        }
    }
}

impl Cluster {
    /// Does what was asked for.
    pub fn run(self) -> Result<ExitCode> {
        match self.command {
            ClusterCommand::Up(options) => {
                let parts = up(&options)?;
                import_agent(&parts)?;
                eprintln!("its nodes have the agent's image: kubectl apply --server-side -k manifests/base");
            }
            ClusterCommand::Down => down()?,
            ClusterCommand::Status => status()?,
            ClusterCommand::Install { manifests } => install(&manifests)?,
            ClusterCommand::Conformance(conformance) => return conformance.run(&running()?),
            ClusterCommand::Test { name } => return rings::of_cluster(name),
            ClusterCommand::Shell { node, argv } => return shell(node.as_deref(), &argv),
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Whether there is a cluster, whole or not.
pub fn is_there() -> bool {
    layout::run_dir().is_dir()
}

/// Starts the cluster unless it is there, and waits until it is ready.
pub fn up(options: &Options) -> Result<Parts> {
    let parts = Parts::build()?;
    if is_there() {
        control::wait_ready(&parts).context("a cluster is there and does not answer; cargo xtask cluster down")?;
        eprintln!("the cluster is up: cargo xtask cluster shell");
        return Ok(parts);
    }
    let begun = Instant::now();
    let progress = |text: &str| eprintln!("[{:>5.1} s] {text}", begun.elapsed().as_secs_f64());
    let mut run = Run::named(RUN)?;
    let started = start(&run, &parts, options, &progress);
    if let Err(error) = started {
        let tails = crate::testbed::log_tails(&layout::run_dir().join("logs"), 5);
        return Err(error.context(format!("the cluster did not start; its logs end with\n{tails}")));
    }
    run.keep();
    progress("the cluster is ready: cargo xtask cluster shell");
    Ok(parts)
}

fn start(run: &Run, parts: &Parts, options: &Options, progress: &dyn Fn(&str)) -> Result<()> {
    let work = layout::work();
    run.note(Kind::Directory, &work.to_string_lossy())?;
    std::fs::create_dir_all(&work).with_context(|| format!("making {}", work.display()))?;
    tools::pack(&layout::tools_archive())?;
    pki::make()?;
    node::make_cgroups(run)?;
    node::make_network(run)?;
    progress("starting the control plane and two nodes");
    control::start_etcd()?;
    control::start_api_server(parts)?;
    for node in NODES {
        node::start(node, parts, options)?;
    }
    control::wait_ready(parts)?;
    control::start_controllers(parts)?;
    progress("the API server is ready");
    for node in NODES {
        node::join_pods(node, parts, options)?;
    }
    apply(parts, &root().join("xtask/cluster/manifests/coredns.yaml"))?;
    apply(parts, &parts.gateway_api())?;
    kubectl(parts, &["wait", "--for=condition=Ready", "node", "--all", "--timeout", READY], None)?;
    progress("the nodes are ready");
    kubectl(parts, &["-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout", READY], None)?;
    Ok(())
}

/// Ends the cluster; none is fine.
pub fn down() -> Result<()> {
    let begun = Instant::now();
    clean::end_run(RUN)?;
    eprintln!("the cluster is down ({:.1} s)", begun.elapsed().as_secs_f64());
    Ok(())
}

/// Cuts a node's power and lets it boot again; returns when kubelet says that it is ready.
pub fn reboot(node: &str, parts: &Parts, options: &Options, off: Duration) -> Result<()> {
    node::cut_power(node)?;
    std::thread::sleep(off);
    node::make_network_anew(node)?;
    node::start(node, parts, options)?;
    node::join_pods(node, parts, options)
}

/// Applies a manifest.
pub fn apply(parts: &Parts, file: &std::path::Path) -> Result<()> {
    let file = file.to_str().context("a path that is text")?;
    kubectl(parts, &["apply", "--server-side", "-f", file], None).map(drop)
}

/// Runs kubectl to its end, with full rights; its stdout.
pub fn kubectl(parts: &Parts, arguments: &[&str], stdin: Option<&str>) -> Result<String> {
    let mut command = kubectl_command(parts, arguments)?;
    // A file: kubectl answers before it has read everything, and nobody reads that while this is still written.
    let mut input = tempfile::tempfile().context("making a file for kubectl")?;
    input.write_all(stdin.unwrap_or_default().as_bytes())?;
    input.rewind()?;
    let output = command.stdin(input).output().context("starting kubectl")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "kubectl {}: {}", arguments.join(" "), said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// kubectl beside the API server.
pub fn kubectl_command(parts: &Parts, arguments: &[&str]) -> Result<Command> {
    let kubectl = parts.program("kubectl").display().to_string();
    let config = format!("--kubeconfig={}", layout::admin_config().display());
    let argv: Vec<&str> = [kubectl.as_str(), &config].into_iter().chain(arguments.iter().copied()).collect();
    let mut command = control::place()?.command(&argv)?;
    // Where it caches what it discovered.
    command.env("HOME", layout::work());
    Ok(command)
}

/// The parts of a cluster that is there.
fn running() -> Result<Parts> {
    ensure!(is_there(), "there is no cluster: cargo xtask cluster up");
    Parts::build()
}

fn install(manifests: &str) -> Result<()> {
    let parts = running()?;
    import_agent(&parts)?;
    apply_mesh(&parts, manifests)?;
    println!("{}", kubectl(&parts, &["-n", "nodemesh-system", "get", "pods", "-o", "wide"], None)?);
    Ok(())
}

/// Builds the agent and gives its image to every node.
pub fn import_agent(parts: &Parts) -> Result<()> {
    import_binary(parts, &build::agent()?)
}

/// Gives every node the image of an agent.
pub fn import_binary(parts: &Parts, binary: &std::path::Path) -> Result<()> {
    let archive = layout::work().join("nodemesh.tar");
    image::pack(binary, &image::default_name(), &archive)?;
    node::import_everywhere(&archive, parts)
}

/// Applies a folder of manifests/ and waits until the mesh is ready everywhere.
pub fn apply_mesh(parts: &Parts, manifests: &str) -> Result<()> {
    let folder = root().join("manifests").join(manifests);
    let folder = folder.to_str().context("a path that is text")?;
    kubectl(parts, &["apply", "--server-side", "-k", folder], None)?;
    let controllers = ["-n", "nodemesh-system", "get", "deployments", "-o", "name"];
    for controller in kubectl(parts, &controllers, None)?.lines() {
        kubectl(parts, &["-n", "nodemesh-system", "rollout", "status", controller, "--timeout", READY], None)?;
    }
    wait_agents(parts)
}

/// Waits until every node has a new agent that is ready. `rollout status` waits for the ends of the earlier ones as well,
/// a minute in which they serve what they have.
fn wait_agents(parts: &Parts) -> Result<()> {
    let get = |arguments: &[&str]| {
        let arguments: Vec<&str> = ["-n", "nodemesh-system", "get"].iter().chain(arguments).copied().collect();
        kubectl(parts, &arguments, None)
    };
    let set = "jsonpath={.metadata.annotations.deprecated\\.daemonset\\.template\\.generation} \
               {.metadata.generation} {.status.observedGeneration}";
    let ready = "jsonpath={range .items[*]}{.spec.nodeName}={.status.conditions[?(@.type=='Ready')].status} {end}";
    eventually(AGENTS_READY, "the agents to be ready", || {
        let said = get(&["daemonset", "nodemesh-agent", "-o", set])?;
        let words: Vec<&str> = said.split_whitespace().collect();
        let [template, generation, observed] = words[..] else { bail!("the DaemonSet says {said:?}") };
        let label = format!("app.kubernetes.io/name=nodemesh-agent,pod-template-generation={template}");
        let pods = get(&["pods", "-l", &label, "-o", ready])?;
        let is_ready = NODES.iter().all(|node| pods.contains(&format!("{node}=True")));
        Ok((generation == observed && is_ready).then_some(()))
    })
}

fn status() -> Result<()> {
    if !is_there() {
        println!("there is no cluster: cargo xtask cluster up");
        return Ok(());
    }
    let parts = Parts::build()?;
    for arguments in [["get", "nodes", "-o", "wide"].as_slice(), &["get", "pods", "-A", "-o", "wide"]] {
        println!("{}", kubectl(&parts, arguments, None)?);
    }
    Ok(())
}

fn shell(node: Option<&str>, argv: &[String]) -> Result<ExitCode> {
    let parts = running()?;
    let shell = std::env::var("SHELL").unwrap_or_else(|_| "/bin/sh".to_string());
    let argv: Vec<&str> = if argv.is_empty() { vec![&shell] } else { argv.iter().map(String::as_str).collect() };
    let mut command = match node {
        Some(node) if !NODES.contains(&node) => bail!("there is no node {node}; there are {}", NODES.join(", ")),
        Some(node) => node::command(node, &parts, &argv)?,
        None => {
            let argv: Vec<&str> = ["env"].into_iter().chain(argv).collect();
            control::place()?.command(&argv)?
        }
    };
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{}:{path}", parts.programs().display()));
    command.env("KUBECONFIG", layout::admin_config()).env("HOME", layout::work());
    command.env("PS1", format!("{}# ", node.unwrap_or("cluster")));
    if let Some(terminal) = std::env::var_os("TERM") {
        command.env("TERM", terminal);
    }
    command.current_dir(std::env::current_dir()?);
    let status = command.status().context("starting the shell")?;
    Ok(status.code().map_or(ExitCode::FAILURE, |code| ExitCode::from(code as u8)))
}
