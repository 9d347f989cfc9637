//! The agent's own HTTP: binds the three surfaces, fills them, and hands them over at an upgrade.
//!
//! A TCP address has one holder: the agent before this one gives it up when this one is ready, and until then this one
//! tries again and again. The file of a unix socket is replaced at once: whoever asks there asks the newest agent, and an
//! agent with a path of its own is asked about itself for as long as it lives.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;

use super::{Agent, Ended, part, show};
use crate::admin::{self, Address, BoxFuture, Listener, Provider, Sources, Surface};
use crate::capture::Standing;
use crate::config;
use crate::identity::RemoteCa;
use crate::map::{self, Asked, Gate, Map, Reading, Source};
use crate::told::{Name, Told};

/// How often an address is tried that another agent still holds: metrics are away for no longer than this.
pub(super) const BIND_RETRY: Duration = Duration::from_millis(100);

/// Binds and serves admin, metrics and readiness. With a predecessor, what that one holds is waited for.
pub async fn start(parts: &mut JoinSet<Ended>, agent: &Arc<Agent>, predecessor: Option<u32>) -> Result<()> {
    let sources = Arc::new(sources(agent));
    let http = &agent.config.http;
    let surfaces = [
        ("--admin", &http.admin, Surface::Admin),
        ("--metrics", &http.metrics, Surface::Metrics),
        ("--readiness", &http.readiness, Surface::Readiness),
    ];
    if let config::Ca::Remote(remote) = &agent.config.identity.ca {
        // By a connection of its own, and by what it reads itself: certificates do not wait for it.
        let line = ToController(RemoteCa::new(remote.clone()));
        let own = Own { node: agent.config.node.clone(), sources: sources.clone() };
        part(parts, "what the controller's map is told", async move {
            map::tell(own, line, map::Patience::default()).await;
            Ok(())
        });
    }
    let mut shown: Vec<(&'static str, Address, Serve)> = Vec::new();
    for (flag, address, surface) in surfaces {
        let sources = sources.clone();
        let serve: Serve = Box::new(move |listener| Box::pin(admin::serve(listener, surface, sources.clone())));
        shown.push((flag, address.clone(), serve));
    }
    if let Some(address) = http.map {
        shown.push(("--map", Address::Tcp(address), map_of(parts, agent, address, sources)?));
    }
    for (flag, address, serve) in shown {
        let address = &address;
        let first = match bind(address, predecessor.is_some()).await {
            Err(error) if predecessor.is_some() && error.kind() == io::ErrorKind::AddrInUse => {
                tracing::info!(flag, %address, predecessor, "the agent before this one holds the address: trying again");
                None
            }
            bound => Some(bound.with_context(|| format!("{flag}: cannot listen on {address}"))?),
        };
        let surface = Shown { flag, address: address.clone(), serve };
        let standing = agent.standing.clone();
        part(parts, flag, async move {
            surface.run(first, standing).await;
            Ok(())
        });
    }
    Ok(())
}

async fn bind(address: &Address, has_predecessor: bool) -> io::Result<Listener> {
    if has_predecessor { Listener::bind_over(address).await } else { Listener::bind(address).await }
}

/// The live map of what this agent tells.
fn map_of(parts: &mut JoinSet<Ended>, agent: &Agent, address: SocketAddr, sources: Arc<Sources>) -> Result<Serve> {
    // Loopback: this does not fail; if it did, nobody may look.
    Gate::new(address, None, Vec::new()).context("--map")?;
    let map = Map::new(Own { node: agent.config.node.clone(), sources });
    part(parts, "the live map", {
        let map = map.clone();
        async move {
            map.run(map::LOOK_EVERY).await;
            Ok(())
        }
    });
    Ok(Box::new(move |listener| {
        let (map, gate) = (map.clone(), Gate::new(address, None, Vec::new()));
        Box::pin(async move {
            if let Ok(gate) = gate {
                map::serve(listener, map, gate).await;
            }
        })
    }))
}

/// The controller, called for its map.
struct ToController(RemoteCa);

impl map::Line for ToController {
    fn open(&self) -> Asked<'_, Result<(Channel, AsciiMetadataValue), String>> {
        Box::pin(async move { self.0.call().await.map_err(|error| error.to_string()) })
    }
}

/// This agent, asked for the map.
struct Own {
    node: String,
    sources: Arc<Sources>,
}

impl Source for Own {
    fn ask(&self, path: &'static str) -> Asked<'_, Vec<Told>> {
        Box::pin(async move {
            let name = Name { node: self.node.clone(), pod: None };
            vec![Told { name, answer: self.ask_one(path).await }]
        })
    }

    fn ask_one(&self, path: &'static str) -> Asked<'_, Result<Bytes, String>> {
        Box::pin(async move { admin::tell(path, &self.sources).await.ok_or_else(|| format!("no {path} here")) })
    }

    /// Not by the text of a scrape; on a thread of its own for the same reason.
    fn counts(&self) -> Asked<'_, Vec<(Name, Reading)>> {
        let metrics = self.sources.metrics.clone();
        Box::pin(async move {
            let reading = tokio::task::spawn_blocking(move || map::counted(&metrics)).await;
            let name = Name { node: self.node.clone(), pod: None };
            reading.into_iter().map(|reading| (name.clone(), reading)).collect()
        })
    }
}

/// Serves on a listener until it is dropped.
type Serve = Box<dyn Fn(Listener) -> BoxFuture<()> + Send + Sync>;

/// One surface, for the agent's life.
struct Shown {
    flag: &'static str,
    address: Address,
    serve: Serve,
}

impl Shown {
    /// Never ends.
    async fn run(self, first: Option<Listener>, mut standing: watch::Receiver<Standing>) {
        let mut listener = first;
        loop {
            let bound = match listener.take() {
                Some(bound) => bound,
                None => self.bind_patiently(&mut standing).await,
            };
            tokio::select! {
                () = (self.serve)(bound) => {}
                () = self.given_up(&mut standing) => {}
            }
        }
    }

    /// Returns when the listener is to be closed, or to be bound again.
    async fn given_up(&self, standing: &mut watch::Receiver<Standing>) {
        until(standing, Standing::is_handed_over).await;
        match self.address {
            Address::Tcp(_) => tracing::info!(flag = self.flag, "closed: the newer agent takes the address"),
            // The newer one may have replaced the file and died.
            Address::Unix(_) => until(standing, |standing| standing == Standing::Owner).await,
        }
    }

    async fn bind_patiently(&self, standing: &mut watch::Receiver<Standing>) -> Listener {
        let mut told = false;
        loop {
            // A newer agent that is ready has it, or is about to.
            until(standing, |standing| !standing.is_handed_over()).await;
            match bind(&self.address, true).await {
                Ok(listener) => return listener,
                Err(error) if !told && error.kind() != io::ErrorKind::AddrInUse => {
                    told = true;
                    tracing::warn!(flag = self.flag, address = %self.address, %error, "cannot listen: trying again");
                }
                Err(_) => {}
            }
            tokio::time::sleep(BIND_RETRY).await;
        }
    }
}

/// Returns when the standing is such. When capture has ended, which ends the agent, nothing changes any more.
async fn until(standing: &mut watch::Receiver<Standing>, is_such: impl Fn(Standing) -> bool) {
    if standing.wait_for(|standing| is_such(*standing)).await.is_err() {
        std::future::pending().await
    }
}

fn sources(agent: &Arc<Agent>) -> Sources {
    let show = |section: fn(&Agent) -> serde_json::Value| -> Provider {
        let agent = agent.clone();
        admin::provider(move || {
            let value = section(&agent);
            async move { value }
        })
    };
    let config_dump = BTreeMap::from([
        ("agent", show(show::agent)),
        ("authorizers", show(show::authorizers)),
        ("discovery", show(show::discovery)),
        ("identities", show(show::identities)),
        ("issuers", show(show::issuers)),
        ("limits", show(show::limits)),
        ("policies", show(show::policies)),
        ("routes", show(show::routes)),
        ("settings", show(show::settings)),
        ("services", show(show::services)),
        ("workloads", show(show::workloads)),
        ("tunnels", {
            let agent = agent.clone();
            admin::provider(move || show::tunnels(agent.proxy.clone()))
        }),
    ]);
    Sources {
        readiness: agent.readiness.clone(),
        metrics: agent.metrics.clone(),
        config_dump,
        connections: {
            let agent = agent.clone();
            admin::provider(move || show::connections(agent.proxy.clone(), agent.straight.clone()))
        },
        rotate: {
            let agent = agent.clone();
            admin::hook(move || {
                agent.identities.force_rotate();
                async { Ok("every certificate is renewed now".to_string()) }
            })
        },
        drain: {
            let agent = agent.clone();
            admin::hook(move || {
                agent.drain.start();
                async { Ok("draining".to_string()) }
            })
        },
        log_filter: Some(agent.logs.levels.clone()),
        access_log: agent.logs.access.clone(),
    }
}
