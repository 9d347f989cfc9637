//! The agent's own HTTP: binds the three surfaces and fills them.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use tokio::task::JoinSet;

use super::{Agent, Ended, part, show};
use crate::admin::{self, Listener, Provider, Sources, Surface};

/// Binds and serves admin, metrics and readiness.
pub async fn start(parts: &mut JoinSet<Ended>, agent: &Arc<Agent>) -> Result<()> {
    let sources = Arc::new(sources(agent));
    let http = &agent.config.http;
    let surfaces = [
        ("--admin", &http.admin, Surface::Admin),
        ("--metrics", &http.metrics, Surface::Metrics),
        ("--readiness", &http.readiness, Surface::Readiness),
    ];
    for (flag, address, surface) in surfaces {
        let listener = Listener::bind(address).await.with_context(|| format!("{flag}: cannot listen on {address}"))?;
        let sources = sources.clone();
        part(parts, flag, async move {
            admin::serve(listener, surface, sources).await;
            Ok(())
        });
    }
    Ok(())
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
        ("discovery", show(show::discovery)),
        ("identities", show(show::identities)),
        ("limits", show(show::limits)),
        ("policies", show(show::policies)),
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
            admin::provider(move || show::connections(agent.proxy.clone()))
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
