//! The composition root: builds the rooms, connects them, waits, drains. Nothing is decided here.
//!
//! ```text
//! discovery ──► state ──► capture ──► proxy (worker threads)
//!                            identity ──┘        admin, metrics, readiness
//! ```
//!
//! Control work runs on a runtime of its own; connections run on the proxy's workers. A part that ends early ends the
//! process: the pins in the kernel go on refusing, and a new agent picks them up.

mod controller;
mod descriptors;
mod drain;
mod parties;
mod show;
mod surfaces;

use std::future::Future;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context as _, Result, anyhow};
pub use controller::control;
use descriptors::Descriptors;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::apiserver::ApiServer;
use crate::capture::{self, Capture, Standing, StraightReader, cgroups};
use crate::cni::desk::Desk;
use crate::config::{self, Config};
use crate::drain::Drain;
use crate::identity::{self, CertificateAuthority, Identities};
use crate::issuers::{self, Ring};
use crate::limit::{Limit, limits};
use crate::proxy::{Budgets, Neighbours, Proxy, Shared};
use crate::readiness::Readiness;
use crate::sandboxes::Sandboxes;
use crate::state::{StateReader, StateWriter};
use crate::telemetry::{AccessLog, KeysFacts, Metrics, TunnelNumbers, WatchFacts, logs, otlp};
use crate::{admin, conditions, departure, discovery, hbone, http};

/// Threads of the control runtime: discovery may compile a large world while the admin endpoints answer.
const CONTROL_THREADS: usize = 2;

/// Pods that capture may announce before the proxy takes them. Bounded, so that enrolment waits for the proxy.
const POD_EVENTS: usize = 64;

/// The bounds of this room.
fn limits() -> Vec<Limit> {
    limits![
        CONTROL_THREADS, "threads", "discovery may compile a large world while the admin endpoints answer";
        POD_EVENTS, "pods", "that wait for the proxy; then enrolment waits";
        drain::POLL, "milliseconds", "how often the drain looks whether the last connection has ended";
        drain::SYN_ACK_WINDOW, "milliseconds", "that listeners stay open behind those of a newer agent";
        drain::RELEASE, "milliseconds", "for pods to be let go before the mesh leaves a node";
        drain::FAREWELL, "milliseconds", "for resets and access log lines to leave after the drain window";
        surfaces::BIND_RETRY, "milliseconds", "between two tries of an address that the agent before this one still holds";
        descriptors::RESERVE, "descriptors", "that are not connections: maps, pins, listeners, socket stocks, logs";
        descriptors::PER_CONNECTION, "descriptors", "two where a connection does not go through a tunnel";
        descriptors::POD_SHARE, "percent", "of the descriptors for one pod's connections; its neighbours have the rest";
    ]
}

/// Runs the agent until SIGTERM or SIGINT and the end of the drain, or until a part fails.
pub fn run(config: Config) -> Result<()> {
    let log = logs::init(config.logs.format, &config.logs.level)?;
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("control")
        .enable_all()
        .build()
        .context("cannot start the control runtime")?
        .block_on(serve(config, log.filter()))
}

/// The rooms, connected.
pub(crate) struct Agent {
    config: Config,
    started: SystemTime,
    descriptors: Descriptors,
    readiness: Readiness,
    metrics: Metrics,
    logs: LogControls,
    /// Where this agent stands among the agents of its node.
    standing: watch::Receiver<Standing>,
    /// The mesh leaves this node.
    leaving: Drain,
    /// The agent was told to end.
    drain: Drain,
    /// Peers are told to open no more streams: a newer agent takes them.
    handed_over: Drain,
    /// Nothing new is accepted.
    closing: Drain,
    /// The end of the drain: until then live connections are judged by the world as it is, and certificates renewed.
    end: Drain,
    state: StateReader,
    health: discovery::Health,
    identities: Identities,
    /// Of issuers of tokens.
    keys: Ring,
    proxy: Proxy,
    /// What goes from pod to pod without it.
    straight: StraightReader,
}

/// What is logged, as it is now; both change at run time.
struct LogControls {
    levels: logs::Filter,
    access: AccessLog,
}

async fn serve(config: Config, log_filter: logs::Filter) -> Result<()> {
    let mut signals = Signals::new()?;
    let readiness = Readiness::default();
    // Before anyone can ask: an agent with no gate yet would call itself ready.
    for gate in ["capture", "discovery"] {
        readiness.waiting(gate, "starting");
    }
    let metrics = Metrics::with(config.metrics);
    let [leaving, drain, handed_over, closing, end] = std::array::from_fn(|_| Drain::new());
    let (writer, state) = StateWriter::new(&config.node);
    let identities = identities(&config.identity)?;
    let started = SystemTime::now();
    let (spans, lines, exporter) = match telling(&config, started, &metrics)? {
        Some(otlp::Telling { spans, lines, exporter }) => (spans, lines, Some(exporter)),
        None => Default::default(),
    };
    let (access_log, tunnels) = (AccessLog::telling(config.logs.access.clone(), lines), Arc::<hbone::Tally>::default());
    let neighbours = Arc::new(Neighbours::new(metrics.clone(), access_log.clone()));
    let capture = Capture::start(capture_config(&config), neighbours).context("cannot capture on this node")?;
    let descriptors = Descriptors::raise();
    let (requests, keys) = (Arc::<http::Tally>::default(), Ring::default());
    let shared = Shared {
        state: state.clone(),
        identities: identities.clone(),
        keys: keys.clone(),
        metrics: metrics.clone(),
        access_log: access_log.clone(),
        spans,
        budgets: budgets(&config.proxy.pod, descriptors),
        tunnels: tunnels.clone(),
        requests: requests.clone(),
        node_limits: http::NodeLimits::within(http::MemoryGauge::new(cgroups::memory_limit())),
        mode: config.proxy.outbound_mode,
        leaving: drain.token(),
        drain: handed_over.token(),
        limits: hbone::Limits { drain_window: config.proxy.drain_window, ..hbone::Limits::default() },
    };
    let proxy = Proxy::start(shared, config.proxy.workers.get()).context("cannot start the worker threads")?;
    let health = discovery::Health::default();
    register_collectors(&metrics, &capture, &identities, &health, &readiness);
    register_usage(&metrics, &proxy, tunnels, requests);
    register_keys(&metrics, keys.clone());
    parties::register(&metrics, state.clone(), &config.node);
    let logs = LogControls { levels: log_filter, access: access_log };
    let sandboxes = Sandboxes::default();
    let (standing, predecessor) = (capture.standing(), capture.predecessor());
    let straight = capture.straight();
    let agent = Arc::new(Agent {
        config,
        started,
        descriptors,
        readiness,
        metrics,
        logs,
        standing,
        leaving,
        drain,
        handed_over,
        closing,
        end,
        state,
        health,
        identities,
        keys,
        proxy,
        straight,
    });

    let mut parts = JoinSet::new();
    surfaces::start(&mut parts, &agent, predecessor).await?;
    if let Some(exporter) = exporter {
        let mut token = agent.end.token();
        part(&mut parts, "the exporter of telemetry", async move {
            exporter.run(token.started()).await;
            Ok(())
        });
    }
    start_desk(&mut parts, &agent, &sandboxes)?;
    agent.start_parts(&mut parts, writer, capture, sandboxes);
    let connections = descriptors.connections();
    let version = env!("CARGO_PKG_VERSION");
    tracing::info!(node = %agent.config.node, version, connections, predecessor, "started");
    let failed = tokio::select! {
        () = signals.any() => None,
        () = drain::asked(&agent) => None,
        ended = parts.join_next() => ended,
    };
    if let Some(ended) = failed {
        return part_ended(ended);
    }
    let leaves = match (&agent.config.discovery, &agent.config.daemonset) {
        (config::Discovery::Kubernetes { kubeconfig }, Some(own)) => departure::is_meant(kubeconfig.clone(), own).await,
        _ => false,
    };
    if leaves {
        tracing::info!("the DaemonSet is gone: the mesh leaves this node");
        agent.leaving.start();
    }
    drain::drain(&agent, leaves, &mut signals).await;
    if leaves {
        parts.shutdown().await;
        capture::detach_all(&agent.config.capture.bpf_pins).context("taking the mesh off this node")?;
        if let Some(socket) = &agent.config.cni_socket {
            Desk::remove(socket);
        }
        tracing::info!("nothing of the mesh is left on this node");
    }
    Ok(())
}

/// A part of the agent, by name, with what it ended on.
type Ended = (&'static str, Result<()>);

fn part_ended(ended: Result<Ended, tokio::task::JoinError>) -> Result<()> {
    let (name, result) = ended.context("a part of the agent panicked")?;
    result.with_context(|| format!("{name} ended"))?;
    Err(anyhow!("{name} ended without being asked to"))
}

impl Agent {
    fn start_parts(
        self: &Arc<Self>,
        parts: &mut JoinSet<Ended>,
        writer: StateWriter,
        capture: Capture,
        sandboxes: Sandboxes,
    ) {
        let (pods, enrolled) = mpsc::channel(POD_EVENTS);
        part(parts, "the proxy", {
            let proxy = self.proxy.clone();
            async move {
                proxy.run(enrolled).await;
                Ok(())
            }
        });
        part(parts, "capture", {
            let (state, readiness) = (self.state.clone(), self.readiness.clone());
            let sandboxes = sandboxes.clone();
            let shutdown = capture::Shutdown {
                leaving: self.leaving.token(),
                closing: self.closing.token(),
                end: self.end.token(),
            };
            async move { Ok(capture.run(state, pods, readiness, sandboxes, shutdown).await?) }
        });
        part(parts, "identity", {
            let (identities, token) = (self.identities.clone(), self.end.token());
            async move {
                identities.run(token).await;
                Ok(())
            }
        });
        part(parts, "the sweep of metrics", {
            let (metrics, state, token) = (self.metrics.clone(), self.state.clone(), self.end.token());
            async move {
                parties::sweep(metrics, state, token).await;
                Ok(())
            }
        });
        part(parts, "the keys of issuers", {
            let (keys, state, token) = (self.keys.clone(), self.state.clone(), self.end.token());
            let reach = self.config.issuers.clone();
            async move {
                keys.run(state, reach, token).await;
                Ok(())
            }
        });
        if let config::Discovery::Kubernetes { kubeconfig } = &self.config.discovery {
            part(parts, "pods' conditions", {
                let (state, readiness, standing) = (self.state.clone(), self.readiness.clone(), self.standing.clone());
                let (kubeconfig, token) = (kubeconfig.clone(), self.end.token());
                async move {
                    let client = ApiServer::find(kubeconfig).await?.client()?;
                    conditions::tell(client, state, readiness, standing, token).await;
                    Ok(())
                }
            });
        }
        part(parts, "discovery", {
            let source = match self.config.discovery.clone() {
                config::Discovery::Directory(path) => discovery::Source::Directory(path),
                config::Discovery::Kubernetes { kubeconfig } => {
                    discovery::Source::Kubernetes { kubeconfig, pace: discovery::Pace::default() }
                }
            };
            let config = discovery::Config {
                node: self.config.node.clone(),
                trust_domain: self.config.identity.trust_domain.clone(),
            };
            let (health, readiness, token) = (self.health.clone(), self.readiness.clone(), self.end.token());
            async move { Ok(discovery::run(source, config, writer, health, readiness, sandboxes, token).await?) }
        });
    }
}

fn part(parts: &mut JoinSet<Ended>, name: &'static str, run: impl Future<Output = Result<()>> + Send + 'static) {
    parts.spawn(async move { (name, run.await) });
}

/// Where the container runtime's plugin asks, if one is to.
fn start_desk(parts: &mut JoinSet<Ended>, agent: &Arc<Agent>, sandboxes: &Sandboxes) -> Result<()> {
    let Some(path) = &agent.config.cni_socket else { return Ok(()) };
    let listener = admin::bind_private(path);
    let listener = listener.with_context(|| format!("--cni-socket: cannot listen on {}", path.display()))?;
    let desk = Desk::new(sandboxes.clone(), agent.state.clone(), path);
    part(parts, "the container network's plugin", async move {
        desk.serve(listener).await;
        Ok(())
    });
    Ok(())
}

fn identities(config: &config::Identity) -> Result<Identities> {
    let ca: Arc<dyn CertificateAuthority> = match &config.ca {
        config::Ca::Memory => Arc::new(identity::local_ca::LocalCa::memory(&config.trust_domain)?),
        config::Ca::Directory(path) => {
            let ca = identity::local_ca::LocalCa::directory(path, &config.trust_domain);
            Arc::new(ca.with_context(|| format!("--ca dir:{}", path.display()))?)
        }
        config::Ca::Remote(remote) => Arc::new(identity::RemoteCa::new(remote.clone())),
    };
    let settings = identity::Config { trust_domain: config.trust_domain.clone(), lifetime: config.svid_ttl };
    Ok(Identities::new(ca, settings))
}

/// What a collector is told, if there is one.
fn telling(config: &Config, started: SystemTime, metrics: &Metrics) -> Result<Option<otlp::Telling>> {
    let config::Otlp { collector, credentials, signals, interval, sampling } = config.otlp.clone();
    let Some(collector) = collector else { return Ok(None) };
    let settings = otlp::Settings { collector, credentials, signals, interval, sampling };
    Ok(Some(otlp::Telling::new(settings, &config.node, started, metrics).context("--otlp")?))
}

fn capture_config(config: &Config) -> capture::Config {
    let config::Capture { cgroup_root, bpf_pins, bpf_object, map_connections, tc, bpf_log, same_node_kernel } =
        &config.capture;
    capture::Config {
        node: config.node.clone(),
        cgroup_root: cgroup_root.clone(),
        pins: bpf_pins.clone(),
        object: match bpf_object {
            Some(path) => capture::ObjectSource::File(path.clone()),
            None => capture::ObjectSource::Embedded,
        },
        map_connections: *map_connections,
        tc: match tc {
            config::Tc::Auto => capture::TcMode::Auto,
            config::Tc::Tcx => capture::TcMode::Tcx,
            config::Tc::Clsact => capture::TcMode::Clsact,
        },
        bpf_log: *bpf_log,
        same_node_kernel: *same_node_kernel,
        pod_connections: config.proxy.pod.connections,
    }
}

fn register_collectors(
    metrics: &Metrics,
    capture: &Capture,
    identities: &Identities,
    health: &discovery::Health,
    readiness: &Readiness,
) {
    let outcomes = capture.outcomes();
    metrics.register_outcomes(Box::new(move || outcomes.read().into_iter().map(|(o, n)| (o.name(), n)).collect()));
    let straight = capture.straight();
    metrics.register_straight(Box::new(move || straight.open()));
    let identities = identities.clone();
    metrics.register_certificates(Box::new(move || show::certificates(&identities)));
    let (health, watched) = (health.clone(), health.clone());
    metrics.register_config_age(Box::new(move || health.report().seen?.elapsed().ok()));
    let facts = |report: &discovery::WatchReport| WatchFacts {
        watch: report.watch,
        state: report.state.word(),
        lists: report.lists,
        failures: report.failures.clone(),
    };
    metrics.register_watches(Box::new(move || watched.report().watches.iter().map(facts).collect()));
    let (ready, remarks, readiness) = (readiness.clone(), readiness.clone(), readiness.clone());
    let is_pods = |gate: &(String, String)| gate.0.starts_with(capture::POD_GATE);
    metrics.register_ready(Box::new(move || ready.missing().is_empty()));
    metrics.register_pods_not_captured(Box::new(move || {
        let gates = readiness.missing().into_iter().chain(readiness.notes());
        gates.filter(is_pods).count()
    }));
    metrics.register_pods_with_remarks(Box::new(move || remarks.remarks().into_iter().filter(is_pods).count()));
}

fn register_usage(metrics: &Metrics, proxy: &Proxy, tunnels: Arc<hbone::Tally>, requests: Arc<http::Tally>) {
    let proxy = proxy.clone();
    metrics.register_workloads(Box::new(move || proxy.usage()));
    metrics.register_tunnels(Box::new(move || TunnelNumbers {
        open: tunnels.tunnels(),
        streams: tunnels.streams(),
        establishments: tunnels.establishments(),
    }));
    metrics.register_upstreams(Box::new(move || requests.numbers()));
}

fn register_keys(metrics: &Metrics, keys: Ring) {
    let facts = |status: issuers::KeysStatus| KeysFacts {
        uri: status.uri,
        in_force: status.in_force,
        age: status.age,
        good: status.good,
        failed: status.failed,
    };
    metrics.register_keys(Box::new(move || keys.status().into_iter().map(facts).collect()));
}

/// What each pod may take, within what the process has.
fn budgets(pod: &config::PodBudget, descriptors: Descriptors) -> Budgets {
    let config::PodBudget { connections, accept_rate, accept_burst, handshakes, buffer } = *pod;
    let connections = u64::from(connections).min(descriptors.of_one_pod());
    Budgets {
        connections: usize::try_from(connections).unwrap_or(usize::MAX),
        accept_rate,
        accept_burst,
        handshakes: usize::try_from(handshakes).unwrap_or(usize::MAX),
        buffered_bytes: buffer,
        descriptors: descriptors.count(),
    }
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn any(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
