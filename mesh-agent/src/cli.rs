//! What was typed: the command line, the environment and the configuration file as texts, not yet judged.
//!
//! The three are the same set of settings under the same names: `--drain-window` is `NODEMESH_DRAIN_WINDOW` and
//! `drain-window:`. [`RunArgs::or`] lays one over another; what a text means is `config`'s business.

use std::convert::Infallible;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Deserializer};

/// The agent of a sidecarless service mesh: one per node, carries the traffic of the node's enrolled pods.
#[derive(Debug, Parser)]
#[command(name = "mesh-agent", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the pods of a node
    Run(Box<RunArgs>),
    /// Sign certificates for the agents of a cluster, and keep what only one of all may write
    Controller(Box<ControllerArgs>),
    /// Say, feature by feature, what this kernel offers and what is missing
    ///
    /// Exit status: 0 everything is there, 1 something that the mesh needs is missing, 2 something optional is missing.
    Check(CheckArgs),
    /// Say what is wrong with a file or a directory of Kubernetes YAML
    ///
    /// Exit status: 0 nothing, 1 something.
    Validate(ValidateArgs),
    /// Look at the root of `--ca dir:PATH`, or replace it
    #[command(subcommand)]
    Ca(CaCommand),
    /// Ask what policies say
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Be the plugin of the node's container network (CNI), put it on the node, or take it off
    #[command(subcommand)]
    Cni(CniCommand),
    /// Ask a running agent: /readyz /metrics /config_dump /connections /flows /log-level /access-log
    ///
    /// Exit status: 0 a good answer, such as "ready"; 1 any other.
    Get(GetArgs),
    /// Print the version
    Version,
    /// Be the load of `meshctl bench` in a pod, and print what it came to as JSON
    ///
    /// Exit status: 0 every request was answered well, 1 one was not, or there is no load.
    #[command(hide = true)]
    Bench(BenchArgs),
    /// Do nothing for a time: the process of a pod in which others are run
    #[command(hide = true)]
    Rest(RestArgs),
    /// Take every pinned program and map out of the kernel
    #[command(hide = true)]
    Detach(DetachArgs),
}

/// `mesh-agent check`
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// The cgroup v2 directory to look at [default: where cgroup v2 is mounted]
    #[arg(long, value_name = "PATH")]
    pub cgroup_root: Option<PathBuf>,
    /// Where kubelet listens; an agent reads it from the Node object
    #[arg(long, value_name = "PORT", default_value_t = 10250)]
    pub kubelet_port: u16,
    /// Where programs of another version would be in an agent's way [default: /sys/fs/bpf/nodemesh]
    #[arg(long, value_name = "PATH")]
    pub bpf_pins: Option<PathBuf>,
    /// Load each kernel program too, attached to nothing, and say how much the verifier went through
    #[arg(long)]
    pub load: bool,
    /// Load those of this file [default: those inside this agent]
    #[arg(long, value_name = "PATH", requires = "load")]
    pub bpf_object: Option<PathBuf>,
}

/// `mesh-agent cni`
#[derive(Debug, Subcommand)]
pub enum CniCommand {
    /// Put the plugin last into the first configuration of the node's network, and keep it there
    ///
    /// Runs until it is ended, and leaves everything in place then, unless the agents' DaemonSet was deleted. The directories
    /// are mounted where the node has them.
    Install(CniInstallArgs),
    /// Take the plugin off the node: configuration, then binary. End what runs `install` before
    Uninstall(CniDirectories),
}

/// Where a node has its container network.
#[derive(Debug, Args)]
pub struct CniDirectories {
    /// The directory of the configurations
    #[arg(long, value_name = "PATH", default_value = "/etc/cni/net.d")]
    pub conf_dir: PathBuf,
    /// The directory of the plugins
    #[arg(long, value_name = "PATH", default_value = "/opt/cni/bin")]
    pub bin_dir: PathBuf,
}

/// `mesh-agent cni install`
#[derive(Debug, Args)]
pub struct CniInstallArgs {
    /// Where.
    #[command(flatten)]
    pub directories: CniDirectories,
    /// The agent's `--cni-socket`, as the node has it
    #[arg(long, value_name = "PATH", default_value = "/run/nodemesh/cni/cni.sock")]
    pub socket: PathBuf,
    /// The agents' DaemonSet
    #[arg(long, value_name = "NAMESPACE/NAME", default_value = "nodemesh-system/nodemesh-agent")]
    pub daemonset: String,
}

/// `mesh-agent validate`
#[derive(Debug, Args)]
pub struct ValidateArgs {
    /// A YAML file, or a directory of them
    pub path: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// The trust domain that principals may name [default: cluster.local]
    #[arg(long, value_name = "NAME")]
    pub trust_domain: Option<String>,
}

/// `mesh-agent get`
#[derive(Debug, Args)]
pub struct GetArgs {
    /// What to ask for
    #[arg(value_name = "/PATH")]
    pub path: String,
    /// The agent's address [default: 127.0.0.1:15000]
    #[arg(long, env = "NODEMESH_ADMIN", value_name = "IP:PORT|unix:PATH")]
    pub admin: Option<String>,
}

/// Requests at a fixed rate, whatever the answers take.
#[derive(Args, Clone, Debug)]
pub struct LoadArgs {
    /// What is asked for, such as http://web.shop/
    pub url: String,
    /// Requests a second, all connections together
    #[arg(long, value_name = "NUMBER", default_value_t = 100)]
    pub rate: u32,
    /// How many connections; each has one request at a time
    #[arg(long, value_name = "NUMBER", default_value_t = 4)]
    pub connections: u32,
    /// How long requests are sent
    #[arg(long = "for", value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    pub length: Duration,
}

/// `mesh-agent bench`
#[derive(Args, Debug)]
pub struct BenchArgs {
    /// What is asked for.
    #[command(flatten)]
    pub load: LoadArgs,
    /// How long an answer may take
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
}

/// `mesh-agent rest`
#[derive(Args, Debug)]
pub struct RestArgs {
    /// How long
    #[arg(value_parser = humantime::parse_duration)]
    pub length: Duration,
}

const POLICY_TEST_AFTER_HELP: &str = "\
Without --method, --path, --host, --header or words of a token the question is about a connection.

Exit status: 0 allowed, 1 refused, 2 the question cannot be answered.

Example:
  mesh-agent policy test manifests/samples --from shop/web-0 --to service/shop/api --method GET --path /items/7";

/// `mesh-agent policy`
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Say whether a caller may ask for something, and by which rule
    #[command(after_help = POLICY_TEST_AFTER_HELP)]
    Test(Box<PolicyTestArgs>),
}

/// `mesh-agent policy test`
#[derive(Debug, Args)]
pub struct PolicyTestArgs {
    /// A YAML file, or a directory of them: pods, Services and policies
    #[arg(value_name = "PATH")]
    pub directory: PathBuf,
    /// Who asks: <namespace>/<pod>, spiffe://… or an IP address
    #[arg(long, value_name = "WHO")]
    pub from: String,
    /// Whom: a pod or a Service, as <namespace>/<name>, pod/… or service/…
    #[arg(long, value_name = "WHOM")]
    pub to: String,
    /// The Service's port, or the application's for a pod [default: the Service's only one]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// The request's method [default: GET]
    #[arg(long, value_name = "NAME")]
    pub method: Option<String>,
    /// Its path; a query is no part of it [default: /]
    #[arg(long, value_name = "PATH")]
    pub path: Option<String>,
    /// Its host [default: <name>.<namespace> of --to]
    #[arg(long, value_name = "HOST")]
    pub host: Option<String>,
    /// One of its headers, 'name: value'
    #[arg(long = "header", value_name = "HEADER")]
    pub headers: Vec<String>,
    /// Who asks by a valid token, <issuer>/<subject>
    #[arg(long, value_name = "WHO")]
    pub principal: Option<String>,
    /// For whom the token was issued
    #[arg(long = "audience", value_name = "WHOM")]
    pub audiences: Vec<String>,
    /// What the token says, name=value; the value may be JSON
    #[arg(long = "claim", value_name = "CLAIM")]
    pub claims: Vec<String>,
    /// What to print
    #[arg(short, long, value_name = "text|json", value_enum, default_value_t = OutputFormat::Text)]
    pub output: OutputFormat,
    /// The trust domain of the identities [default: cluster.local]
    #[arg(long, value_name = "NAME")]
    pub trust_domain: Option<String>,
}

/// What is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

const ROTATE_AFTER_HELP: &str = "\
No agent is restarted. Those that use a directory notice each phase within seconds, those of a cluster when kubelet
brings them the roots, which takes it a minute or two.

  mesh-agent ca rotate --ca WHERE --phase prepare   a next root is made and trusted; it signs nothing yet
  mesh-agent ca rotate --ca WHERE --phase switch    it signs; every certificate is renewed;
                                                    what the earlier root signed stays trusted
  mesh-agent ca rotate --ca WHERE --phase finish    the earlier root is no longer trusted; tunnels that still
                                                    rest on it are cut (nodemesh_root_peers shows them)
  mesh-agent ca rotate --ca WHERE --phase cancel    instead of switch: the prepared root is thrown away

WHERE is dir:PATH, or kubernetes for the cluster of your kubeconfig: it needs the right to change Secret nodemesh-ca and
ConfigMap nodemesh-ca-roots of the mesh's namespace.

A phase waits until every agent has had time to take the one before. A phase that was interrupted is run again. When the
key is known to others, run the three one after another with --force: connections may fail for some seconds.";

/// `mesh-agent ca`
#[derive(Debug, Subcommand)]
pub enum CaCommand {
    /// Print which root signs, which are trusted beside it, and whether a rotation is under way
    Status(CaArgs),
    /// Do one phase of replacing the root that signs
    #[command(after_help = ROTATE_AFTER_HELP)]
    Rotate(CaRotateArgs),
}

/// Which root is meant.
#[derive(Debug, Args)]
pub struct CaArgs {
    /// dir: and the directory of the root, as the agents have it; or kubernetes for that of a cluster
    #[arg(long, value_name = "dir:PATH|kubernetes")]
    pub ca: String,
    /// How the cluster is reached [default: as kubectl does]
    #[arg(long, value_name = "PATH")]
    pub kubeconfig: Option<PathBuf>,
    /// The mesh's namespace in the cluster [default: nodemesh-system]
    #[arg(long, value_name = "NAME")]
    pub namespace: Option<String>,
    /// The trust domain of the root [default: cluster.local]
    #[arg(long, value_name = "NAME")]
    pub trust_domain: Option<String>,
}

/// `mesh-agent ca rotate`
#[derive(Debug, Args)]
pub struct CaRotateArgs {
    /// Which root.
    #[command(flatten)]
    pub root: CaArgs,
    /// What to do
    #[arg(long)]
    pub phase: CaPhase,
    /// Do not wait for agents to take the phase before
    #[arg(long)]
    pub force: bool,
}

/// A phase, as it is typed.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum CaPhase {
    /// Make a next root and trust it
    Prepare,
    /// Sign by it
    Switch,
    /// Trust the earlier one no longer
    Finish,
    /// Throw the prepared root away
    Cancel,
}

/// `mesh-agent detach`
#[derive(Debug, Args)]
pub struct DetachArgs {
    /// The directory of the pins
    #[arg(long, value_name = "PATH")]
    pub bpf_pins: PathBuf,
}

/// One setting as it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The text.
    pub text: OsString,
    /// Who gave it.
    pub origin: Origin,
}

/// Who gave a setting. A later one wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Nobody: it has a default.
    Default,
    /// The configuration file.
    File,
    /// The environment.
    Environment,
    /// The command line.
    Flag,
}

const RUN_AFTER_HELP: &str = "\
Every flag is also an environment variable (--drain-window is NODEMESH_DRAIN_WINDOW) and a key of the \
configuration file (drain-window: 10m). A flag wins over the environment, the environment over the file.

Example:
  mesh-agent run --node worker-1 --discovery dir:/etc/nodemesh/world --ca dir:/var/lib/nodemesh/ca";

const NODE: &str = "Node and world";
const KERNEL: &str = "Kernel";
const IDENTITY: &str = "Identity";
const TRAFFIC: &str = "Traffic";
const HTTP: &str = "The agent's own HTTP";
const LOG: &str = "Log";

/// `mesh-agent run`: every setting, from one of its sources.
#[derive(Args, Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[command(after_help = RUN_AFTER_HELP)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct RunArgs {
    /// YAML file with settings, named as the flags without their dashes
    #[arg(long, value_name = "FILE", help_heading = NODE)]
    #[serde(skip)]
    pub config: Option<PathBuf>,

    /// The Kubernetes node that this agent serves; needed
    #[arg(long, value_name = "NAME", value_parser = Setting::flag, help_heading = NODE)]
    pub node: Option<Setting>,

    /// Where pods, Services and policies come from; needed. dir:PATH is a directory of Kubernetes YAML, read again when
    /// it changes; kubernetes is the API server of the cluster
    #[arg(long, value_name = "dir:PATH|kubernetes", value_parser = Setting::flag, help_heading = NODE)]
    pub discovery: Option<Setting>,

    /// Where the API server is and who we are to it [default: the pod's service account, else KUBECONFIG, else
    /// ~/.kube/config]
    #[arg(long, value_name = "FILE", value_parser = Setting::flag, help_heading = NODE)]
    pub kubeconfig: Option<Setting>,

    /// The DaemonSet that this agent is of: when it is deleted, the agent takes everything off the node at its end. Without
    /// one, what keeps pods closed while no agent runs stays for the next agent
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = Setting::flag, help_heading = NODE)]
    pub daemonset: Option<Setting>,

    /// The cgroup v2 directory under which the pods of this node are found [default: where cgroup v2 is mounted]
    #[arg(long, value_name = "PATH", value_parser = Setting::flag, help_heading = KERNEL)]
    pub cgroup_root: Option<Setting>,

    /// Directory on bpffs for what outlives the agent; its path contains "nodemesh" [default: /sys/fs/bpf/nodemesh]
    #[arg(long, value_name = "PATH", value_parser = Setting::flag, help_heading = KERNEL)]
    pub bpf_pins: Option<Setting>,

    /// The eBPF object file [default: the one inside this binary]
    #[arg(long, value_name = "PATH", value_parser = Setting::flag, help_heading = KERNEL)]
    pub bpf_object: Option<Setting>,

    /// How many connections can be on record at once; when a map is full, new ones are refused, and before that those of a
    /// pod that has opened as many as are left for all. Takes 48 bytes of kernel memory for each from the start (262144:
    /// 13 MB), and while in use 104 more for one that a pod opens and 216 for one that it accepts (all maps full: 97 MB).
    /// Maps that are pinned keep their size [default: 262144]
    #[arg(long, value_name = "N", value_parser = Setting::flag, help_heading = KERNEL)]
    pub map_connections: Option<Setting>,

    /// How the guard is attached to pod interfaces: auto takes tcx where the kernel has it (6.6), else clsact
    /// [default: auto]
    #[arg(long, value_name = "auto|tcx|clsact", value_parser = Setting::flag, help_heading = KERNEL)]
    pub tc: Option<Setting>,

    /// Unix socket on which the agent answers the plugin of the node's container network (CNI), for root alone; with it
    /// pods start captured [default: none]
    #[arg(long, value_name = "PATH", value_parser = Setting::flag, help_heading = KERNEL)]
    pub cni_socket: Option<Setting>,

    /// Let the eBPF programs log; costs nothing when off [default: false]
    #[arg(long, value_name = "true|false", value_parser = Setting::flag, help_heading = KERNEL,
          num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub bpf_log: Option<Setting>,

    /// Let pods of this node reach each other by the kernel alone, where nobody has to read what they say; an agent that
    /// is gone is done without for 30 seconds [default: false]
    #[arg(long, value_name = "true|false", value_parser = Setting::flag, help_heading = KERNEL,
          num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub same_node_kernel: Option<Setting>,

    /// Who signs certificates; needed. dir:PATH keeps a root there, which all agents of one machine share; memory is
    /// for a single agent; https:// asks an authority as Istio's agents do: our controller, istiod or istio-csr
    #[arg(long, value_name = "dir:PATH|memory|https://HOST:PORT", value_parser = Setting::flag, help_heading = IDENTITY)]
    pub ca: Option<Setting>,

    /// The roots that peers and the authority of --ca https:// are checked against, as PEM; needed with that. Read again
    /// when it changes
    #[arg(long, value_name = "FILE", value_parser = Setting::flag, help_heading = IDENTITY)]
    pub ca_roots: Option<Setting>,

    /// The token that says to the authority of --ca https:// who this agent is; needed with that. Read for each request
    #[arg(long, value_name = "FILE", value_parser = Setting::flag, help_heading = IDENTITY)]
    pub ca_token: Option<Setting>,

    /// The trust domain of every identity [default: cluster.local]
    #[arg(long, value_name = "NAME", value_parser = Setting::flag, help_heading = IDENTITY)]
    pub trust_domain: Option<Setting>,

    /// How long a workload's certificate is valid; it is renewed at half of it [default: 4h]
    #[arg(long, value_name = "DURATION", value_parser = Setting::flag, help_heading = IDENTITY)]
    pub svid_ttl: Option<Setting>,

    /// Roots, as PEM, that the servers with the keys of tokens' issuers may rest on, beside those of the machine. Read for
    /// each fetch
    #[arg(long, value_name = "FILE", value_parser = Setting::flag, help_heading = IDENTITY)]
    pub jwks_ca: Option<Setting>,

    /// What is refused otherwise when keys of tokens' issuers are fetched (from the node's network namespace): http, and
    /// ranges of loopback, link-local and metadata addresses; joined by commas
    #[arg(long, value_name = "http|CIDR,…", value_parser = Setting::flag, help_heading = IDENTITY)]
    pub jwks_allow: Option<Setting>,

    /// Whether destinations that the mesh does not know pass as they are or are refused [default: allow-any]
    #[arg(long, value_name = "allow-any|registry-only", value_parser = Setting::flag, help_heading = TRAFFIC)]
    pub outbound_mode: Option<Setting>,

    /// How many threads serve connections [default: the CPUs that this process may use]
    #[arg(long, value_name = "N", value_parser = Setting::flag, help_heading = TRAFFIC)]
    pub workers: Option<Setting>,

    /// How many connections of one pod may live at once, both directions together; more are refused. One pod never gets
    /// more than four fifths of the descriptors that the agent may use [default: 32768]
    #[arg(long, value_name = "N", value_parser = Setting::flag, help_heading = TRAFFIC)]
    pub pod_connections: Option<Setting>,

    /// How many new connections of one pod are taken per second; more are refused [default: 5000]
    #[arg(long, value_name = "N", value_parser = Setting::flag, help_heading = TRAFFIC)]
    pub pod_accept_rate: Option<Setting>,

    /// How many new connections of one pod may come at once before the rate counts [default: 20000]
    #[arg(long, value_name = "N", value_parser = Setting::flag, help_heading = TRAFFIC)]
    pub pod_accept_burst: Option<Setting>,

    /// How many peers of one pod's tunnel port may be in their handshake at once; more are refused [default: 1024]
    #[arg(long, value_name = "N", value_parser = Setting::flag, help_heading = TRAFFIC)]
    pub pod_handshakes: Option<Setting>,

    /// How much may wait in the agent for the applications of one pod to read it; over it, a connection that makes more
    /// wait is cut [default: 256Mi]
    #[arg(long, value_name = "SIZE", value_parser = Setting::flag, help_heading = TRAFFIC)]
    pub pod_buffer: Option<Setting>,

    /// How long connections may go on after the agent was told to end [default: 10m]
    #[arg(long, value_name = "DURATION", value_parser = Setting::flag, help_heading = TRAFFIC)]
    pub drain_window: Option<Setting>,

    /// Where everything is shown and changed: /readyz /metrics /config_dump /connections /flows /rotate /drain /log-level
    /// /access-log. A loopback address or a unix socket, for whoever reaches it may use it [default: 127.0.0.1:15000]
    #[arg(long, value_name = "IP:PORT|unix:PATH", value_parser = Setting::flag, help_heading = HTTP)]
    pub admin: Option<Setting>,

    /// Where /metrics is, for Prometheus [default: [::]:15020]
    #[arg(long, value_name = "IP:PORT|unix:PATH", value_parser = Setting::flag, help_heading = HTTP)]
    pub metrics: Option<Setting>,

    /// Where /readyz is, for the kubelet [default: [::]:15021]
    #[arg(long, value_name = "IP:PORT|unix:PATH", value_parser = Setting::flag, help_heading = HTTP)]
    pub readiness: Option<Setting>,

    /// Where the live map of what this agent knows is, a web page; loopback. Without it there is none; meshctl map
    /// serves one of all agents
    #[arg(long, value_name = "IP:PORT", value_parser = Setting::flag, help_heading = HTTP)]
    pub map: Option<Setting>,

    /// Lines for people or for machines [default: text]
    #[arg(long, value_name = "text|json", value_parser = Setting::flag, help_heading = LOG)]
    pub log_format: Option<Setting>,

    /// What is logged: a level (error, warn, info, debug, trace, off) or a list such as info,mesh_agent::hbone=debug.
    /// The access log is the target access: info,access=off silences it [default: info]
    #[arg(long, value_name = "FILTER", value_parser = Setting::flag, help_heading = LOG)]
    pub log_level: Option<Setting>,

    /// Which connections get a line in the access log: all, off, or words joined by commas: failures, result=NAME,
    /// namespace=NAME, pod=NAMESPACE/NAME, sample=N (one of N that ended well) [default: all]
    #[arg(long, value_name = "FILTER", value_parser = Setting::flag, help_heading = LOG)]
    pub access_log: Option<Setting>,

    /// A collector that takes OTLP, over HTTP (protobuf) or gRPC, with TLS (https, grpcs) or without: it is told spans of
    /// requests, lines of the access log, metrics. Without it nobody is
    #[arg(long, value_name = "http[s]|grpc[s]://HOST:PORT", value_parser = Setting::flag, help_heading = LOG)]
    pub otlp: Option<Setting>,

    /// Roots (PEM) for the collector's certificate, in place of the machine's
    #[arg(long, value_name = "FILE", value_parser = Setting::flag, help_heading = LOG)]
    pub otlp_ca: Option<Setting>,

    /// A directory with tls.crt and tls.key (PEM, as a Secret of type kubernetes.io/tls is mounted), for a collector that
    /// asks for a certificate
    #[arg(long, value_name = "DIRECTORY", value_parser = Setting::flag, help_heading = LOG)]
    pub otlp_client: Option<Setting>,

    /// Headers for each request to the collector, such as Authorization: lines of NAME: VALUE; # begins a comment
    #[arg(long, value_name = "FILE", value_parser = Setting::flag, help_heading = LOG)]
    pub otlp_headers_file: Option<Setting>,

    /// What it is told: traces, logs, metrics, joined by commas [default: traces,logs,metrics]
    #[arg(long, value_name = "SIGNALS", value_parser = Setting::flag, help_heading = LOG)]
    pub otlp_signals: Option<Setting>,

    /// How often it is told metrics [default: 60s]
    #[arg(long, value_name = "DURATION", value_parser = Setting::flag, help_heading = LOG)]
    pub otlp_interval: Option<Setting>,

    /// How many of the requests that come without a trace begin one, in percent. Those that come with one keep what
    /// their caller decided [default: 1]
    #[arg(long, value_name = "PERCENT", value_parser = Setting::flag, help_heading = LOG)]
    pub trace_sampling: Option<Setting>,

    /// How many series the metrics of connections and requests may have together; what finds no room is counted under
    /// names of its own [default: 50000]
    #[arg(long, value_name = "N", value_parser = Setting::flag, help_heading = LOG)]
    pub metrics_series: Option<Setting>,

    /// Whether Istio's metrics are shown too, for Kiali and dashboards that read them [default: false]
    #[arg(long, value_name = "true|false", value_parser = Setting::flag, help_heading = LOG)]
    pub istio_metrics: Option<Setting>,
}

const CONTROLLER_AFTER_HELP: &str = "\
Every flag is also an environment variable (--svid-ttl-max is NODEMESH_SVID_TTL_MAX). A flag wins.

Beside others of its kind it serves as they do; the one that holds the Lease nodemesh-controller makes Secret nodemesh-ca,
unless somebody brought it, and keeps ConfigMap nodemesh-ca-roots.";

/// `mesh-agent controller`: every setting, from one of its sources.
#[derive(Args, Clone, Debug, Default)]
#[command(after_help = CONTROLLER_AFTER_HELP)]
pub struct ControllerArgs {
    /// The namespace of the mesh's own objects [default: nodemesh-system]
    #[arg(long, value_name = "NAME", value_parser = Setting::flag)]
    pub namespace: Option<Setting>,

    /// The name of this replica among the others, its pod's [default: the host's name]
    #[arg(long, value_name = "NAME", value_parser = Setting::flag)]
    pub pod: Option<Setting>,

    /// Where the API server is and who we are to it [default: the pod's service account, else KUBECONFIG, else
    /// ~/.kube/config]
    #[arg(long, value_name = "FILE", value_parser = Setting::flag)]
    pub kubeconfig: Option<Setting>,

    /// The trust domain of every identity [default: cluster.local]
    #[arg(long, value_name = "NAME", value_parser = Setting::flag)]
    pub trust_domain: Option<Setting>,

    /// How long a workload's certificate is valid at most, whatever an agent asks for [default: 24h]
    #[arg(long, value_name = "DURATION", value_parser = Setting::flag)]
    pub svid_ttl_max: Option<Setting>,

    /// The service account of the agents, in the same namespace [default: nodemesh-agent]
    #[arg(long, value_name = "NAME", value_parser = Setting::flag)]
    pub agents: Option<Setting>,

    /// Names and IP addresses by which agents call this, joined by commas [default: nodemesh-controller and that with
    /// the namespace, .svc and .svc.cluster.local]
    #[arg(long, value_name = "NAME,…", value_parser = Setting::flag)]
    pub names: Option<Setting>,

    /// Where certificates are asked for [default: [::]:15012]
    #[arg(long, value_name = "IP:PORT", value_parser = Setting::flag)]
    pub listen: Option<Setting>,

    /// Where /readyz and /metrics are [default: [::]:15014]
    #[arg(long, value_name = "IP:PORT|unix:PATH", value_parser = Setting::flag)]
    pub http: Option<Setting>,

    /// Where the live map of the cluster is served, such as 127.0.0.1:15080; other than on loopback only with
    /// --map-token-file [default: nowhere, and agents tell nothing for it]
    #[arg(long, value_name = "IP:PORT", value_parser = Setting::flag)]
    pub map: Option<Setting>,

    /// A file with the token that opens the map
    #[arg(long, value_name = "FILE", value_parser = Setting::flag)]
    pub map_token_file: Option<Setting>,

    /// Lines for people or for machines [default: text]
    #[arg(long, value_name = "text|json", value_parser = Setting::flag)]
    pub log_format: Option<Setting>,

    /// What is logged. What is issued and refused is the target audit [default: info]
    #[arg(long, value_name = "FILTER", value_parser = Setting::flag)]
    pub log_level: Option<Setting>,
}

impl ControllerArgs {
    /// These settings where they are given, those of the environment elsewhere.
    pub fn or_environment(self, variable: &dyn Fn(&str) -> Option<OsString>) -> Self {
        let setting = |flag: Option<Setting>, name: &str| {
            flag.or_else(|| {
                let text = variable(&environment_name(name)).filter(|text| !text.is_empty())?;
                Some(Setting { text, origin: Origin::Environment })
            })
        };
        Self {
            namespace: setting(self.namespace, "namespace"),
            pod: setting(self.pod, "pod"),
            kubeconfig: setting(self.kubeconfig, "kubeconfig"),
            trust_domain: setting(self.trust_domain, "trust-domain"),
            svid_ttl_max: setting(self.svid_ttl_max, "svid-ttl-max"),
            agents: setting(self.agents, "agents"),
            names: setting(self.names, "names"),
            listen: setting(self.listen, "listen"),
            http: setting(self.http, "http"),
            map: setting(self.map, "map"),
            map_token_file: setting(self.map_token_file, "map-token-file"),
            log_format: setting(self.log_format, "log-format"),
            log_level: setting(self.log_level, "log-level"),
        }
    }
}

impl Setting {
    /// A setting from the command line.
    pub fn flag(text: &str) -> Result<Self, Infallible> {
        Ok(Self { text: text.into(), origin: Origin::Flag })
    }
}

impl<'de> Deserialize<'de> for Setting {
    /// A setting from the file. Numbers and booleans are texts here, as on the command line.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ok(Self { text: text.into(), origin: Origin::File })
    }
}

impl RunArgs {
    /// The settings that the environment gives. Kubernetes itself puts variables of the form `NODEMESH_…_SERVICE_HOST`
    /// into pods beside a Service of ours, so a name that is no setting is none of our business. An empty one is unset.
    pub fn from_environment(variable: &dyn Fn(&str) -> Option<OsString>) -> Self {
        let raw = |name: &str| variable(&environment_name(name)).filter(|text| !text.is_empty());
        let setting = |name: &str| raw(name).map(|text| Setting { text, origin: Origin::Environment });
        Self {
            config: raw("config").map(PathBuf::from),
            node: setting("node"),
            discovery: setting("discovery"),
            kubeconfig: setting("kubeconfig"),
            daemonset: setting("daemonset"),
            cgroup_root: setting("cgroup-root"),
            bpf_pins: setting("bpf-pins"),
            bpf_object: setting("bpf-object"),
            map_connections: setting("map-connections"),
            tc: setting("tc"),
            bpf_log: setting("bpf-log"),
            same_node_kernel: setting("same-node-kernel"),
            cni_socket: setting("cni-socket"),
            ca: setting("ca"),
            ca_roots: setting("ca-roots"),
            ca_token: setting("ca-token"),
            trust_domain: setting("trust-domain"),
            svid_ttl: setting("svid-ttl"),
            jwks_ca: setting("jwks-ca"),
            jwks_allow: setting("jwks-allow"),
            outbound_mode: setting("outbound-mode"),
            workers: setting("workers"),
            pod_connections: setting("pod-connections"),
            pod_accept_rate: setting("pod-accept-rate"),
            pod_accept_burst: setting("pod-accept-burst"),
            pod_handshakes: setting("pod-handshakes"),
            pod_buffer: setting("pod-buffer"),
            drain_window: setting("drain-window"),
            admin: setting("admin"),
            metrics: setting("metrics"),
            readiness: setting("readiness"),
            map: setting("map"),
            log_format: setting("log-format"),
            log_level: setting("log-level"),
            access_log: setting("access-log"),
            otlp: setting("otlp"),
            otlp_ca: setting("otlp-ca"),
            otlp_client: setting("otlp-client"),
            otlp_headers_file: setting("otlp-headers-file"),
            otlp_signals: setting("otlp-signals"),
            otlp_interval: setting("otlp-interval"),
            trace_sampling: setting("trace-sampling"),
            metrics_series: setting("metrics-series"),
            istio_metrics: setting("istio-metrics"),
        }
    }

    /// These settings where they are given, those of `lower` elsewhere.
    pub fn or(self, lower: Self) -> Self {
        Self {
            config: self.config.or(lower.config),
            node: self.node.or(lower.node),
            discovery: self.discovery.or(lower.discovery),
            kubeconfig: self.kubeconfig.or(lower.kubeconfig),
            daemonset: self.daemonset.or(lower.daemonset),
            cgroup_root: self.cgroup_root.or(lower.cgroup_root),
            bpf_pins: self.bpf_pins.or(lower.bpf_pins),
            bpf_object: self.bpf_object.or(lower.bpf_object),
            map_connections: self.map_connections.or(lower.map_connections),
            tc: self.tc.or(lower.tc),
            bpf_log: self.bpf_log.or(lower.bpf_log),
            same_node_kernel: self.same_node_kernel.or(lower.same_node_kernel),
            cni_socket: self.cni_socket.or(lower.cni_socket),
            ca: self.ca.or(lower.ca),
            ca_roots: self.ca_roots.or(lower.ca_roots),
            ca_token: self.ca_token.or(lower.ca_token),
            trust_domain: self.trust_domain.or(lower.trust_domain),
            svid_ttl: self.svid_ttl.or(lower.svid_ttl),
            jwks_ca: self.jwks_ca.or(lower.jwks_ca),
            jwks_allow: self.jwks_allow.or(lower.jwks_allow),
            outbound_mode: self.outbound_mode.or(lower.outbound_mode),
            workers: self.workers.or(lower.workers),
            pod_connections: self.pod_connections.or(lower.pod_connections),
            pod_accept_rate: self.pod_accept_rate.or(lower.pod_accept_rate),
            pod_accept_burst: self.pod_accept_burst.or(lower.pod_accept_burst),
            pod_handshakes: self.pod_handshakes.or(lower.pod_handshakes),
            pod_buffer: self.pod_buffer.or(lower.pod_buffer),
            drain_window: self.drain_window.or(lower.drain_window),
            admin: self.admin.or(lower.admin),
            metrics: self.metrics.or(lower.metrics),
            readiness: self.readiness.or(lower.readiness),
            map: self.map.or(lower.map),
            log_format: self.log_format.or(lower.log_format),
            log_level: self.log_level.or(lower.log_level),
            access_log: self.access_log.or(lower.access_log),
            otlp: self.otlp.or(lower.otlp),
            otlp_ca: self.otlp_ca.or(lower.otlp_ca),
            otlp_client: self.otlp_client.or(lower.otlp_client),
            otlp_headers_file: self.otlp_headers_file.or(lower.otlp_headers_file),
            otlp_signals: self.otlp_signals.or(lower.otlp_signals),
            otlp_interval: self.otlp_interval.or(lower.otlp_interval),
            trace_sampling: self.trace_sampling.or(lower.trace_sampling),
            metrics_series: self.metrics_series.or(lower.metrics_series),
            istio_metrics: self.istio_metrics.or(lower.istio_metrics),
        }
    }
}

/// `drain-window` → `NODEMESH_DRAIN_WINDOW`
pub fn environment_name(setting: &str) -> String {
    format!("NODEMESH_{}", setting.replace('-', "_").to_ascii_uppercase())
}
