//! The controller's rooms, connected: much fewer than an agent's.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::{CONTROL_THREADS, Signals, show};
use crate::admin::{self, Address, Listener, Sources, Surface};
use crate::apiserver::ApiServer;
use crate::config::ControllerConfig;
use crate::controller::{Config, Controller, SETTLE, ServiceAccount, World, lease};
use crate::discovery::{self, Health, Pace, Source};
use crate::drain::Drain;
use crate::map::{self, Cluster, Gate, Heard, Map};
use crate::readiness::Readiness;
use crate::sandboxes::Sandboxes;
use crate::state::{StateReader, StateWriter};
use crate::telemetry::{AuthorityNumbers, Metrics, logs};

/// Runs the controller until SIGTERM or SIGINT.
pub fn control(config: ControllerConfig) -> Result<()> {
    let log = logs::init(config.log_format, &config.log_level)?;
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("control")
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(serve(config, log.filter()))
}

async fn serve(config: ControllerConfig, log_filter: logs::Filter) -> Result<()> {
    let mut signals = Signals::new()?;
    let (readiness, metrics, drain) = (Readiness::default(), Metrics::new(), Drain::new());
    let server = ApiServer::find(config.kubeconfig.clone()).await?;
    let client = server.client()?;
    let listener = bind(config.listen).await.with_context(|| format!("--listen {}", config.listen))?;
    let http = Listener::bind(&config.http).await.with_context(|| format!("--http {}", config.http))?;
    let (writer, state) = StateWriter::new("");
    let health = Health::default();
    let source = Source::Kubernetes { kubeconfig: config.kubeconfig.clone(), pace: Pace::default() };
    let whole = discovery::Config { node: String::new(), trust_domain: config.trust_domain.clone() };
    // What is missing of the world is no reason to give no certificates: it has a readiness of its own.
    let (ready, sandboxes) = (Readiness::default(), Sandboxes::default());
    let world = discovery::run(source, whole, writer, health.clone(), ready, sandboxes, drain.token());
    metrics.register_config_age(Box::new({
        let health = health.clone();
        move || health.report().seen?.elapsed().ok()
    }));
    let map = match config.map {
        Some(address) => Some(map_of(address, config.map_token_file.as_deref(), state.clone()).await?),
        None => None,
    };
    let mut controller = Controller::new(settings(config), client, World { state, health }, readiness.clone());
    if let Some(map) = &map {
        controller = controller.listening(map.heard.clone());
    }
    register(&metrics, &controller);
    let sources = Sources::status(readiness, metrics, log_filter);
    tracing::info!(version = env!("CARGO_PKG_VERSION"), api_server = server.address(), "started");
    let token = drain.token();
    let run = async {
        tokio::select! {
            () = signals.any() => drain.start(),
            () = admin::serve(http, Surface::Status, sources.into()) => {}
            () = Served::run(map) => {}
        }
        // The controller lets go of what it has; until then somebody may want to look no more.
        std::future::pending::<()>().await
    };
    tokio::select! {
        () = run => {}
        () = controller.run(listener, token) => {}
        ended = world => ended.context("following the cluster's objects ended")?,
    }
    Ok(())
}

/// The live map, of what agents tell.
struct Served {
    heard: Heard,
    map: Map,
    listener: Listener,
    gate: Gate,
}

impl Served {
    /// Never ends.
    async fn run(served: Option<Self>) {
        let Some(Self { map, listener, gate, .. }) = served else { return std::future::pending().await };
        tokio::select! {
            () = map.run(map::LOOK_EVERY) => {}
            () = map::serve(listener, map.clone(), gate) => {}
        }
    }
}

async fn map_of(address: SocketAddr, token: Option<&Path>, state: StateReader) -> Result<Served> {
    let token =
        token.map(|file| std::fs::read_to_string(file).with_context(|| format!("--map-token-file {}", file.display())));
    let gate = Gate::new(address, token.transpose()?.as_deref(), Vec::new()).context("--map")?;
    let listener = Listener::bind(&Address::Tcp(address)).await.with_context(|| format!("--map {address}"))?;
    let heard = Heard::new(Whole { state });
    Ok(Served { map: Map::new(heard.clone()), heard, listener, gate })
}

/// The whole cluster, as the map is told of it.
struct Whole {
    state: StateReader,
}

impl Cluster for Whole {
    fn pods(&self) -> map::Pods {
        let mut nodes = map::Pods::new();
        for pod in self.state.current().workloads() {
            let node = nodes.entry(pod.node.to_string()).or_default();
            let facts = (pod.identity.to_string(), pod.ips.clone());
            node.pods.insert(format!("{}/{}", pod.namespace, pod.name), facts);
            node.is_meshed |= pod.enrolled;
        }
        nodes
    }

    fn shown(&self) -> Value {
        let state = self.state.current();
        json!({
            "policies": state.policies(),
            "routes": show::routes_of(&state),
            "services": show::services_of(&state),
        })
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener> {
    Ok(admin::bind_tcp(address).await?)
}

fn settings(config: ControllerConfig) -> Config {
    let host = config.pod.unwrap_or_else(|| {
        std::fs::read_to_string("/proc/sys/kernel/hostname").map_or_else(|_| "?".to_string(), |name| name.trim().into())
    });
    Config {
        agents: ServiceAccount { namespace: config.namespace.clone(), name: config.agents },
        namespace: config.namespace,
        trust_domain: config.trust_domain,
        names: config.names,
        longest: config.svid_ttl_max,
        replica: lease::replica_name(&host),
        settle: SETTLE,
        pace: lease::Pace::default(),
    }
}

fn register(metrics: &Metrics, controller: &Controller) {
    let (tally, leadership) = (controller.tally(), controller.leadership());
    metrics.register_authority(Box::new(move || AuthorityNumbers {
        certificates: tally.certificates(),
        reviews: tally.reviews(),
        leads: leadership.is_held(),
    }));
}
