//! What the agent shows of itself: the sections of `/config_dump` and `/connections`, as JSON.

use std::time::UNIX_EPOCH;

use serde_json::{Value, json};

use super::Agent;
use crate::identity::Identities;
use crate::proxy::{LiveConnection, Proxy};
use crate::spiffe::SpiffeId;
use crate::{hbone, proxy};

/// Version, node and the configuration as it was understood.
pub fn agent(agent: &Agent) -> Value {
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "node": agent.config.node,
        "pid": std::process::id(),
        "config": format!("{:?}", agent.config),
    })
}

/// Where the world comes from, how old it is, and what was refused.
pub fn discovery(agent: &Agent) -> Value {
    json!({ "stateVersion": agent.state.current().version, "health": &*agent.health.report() })
}

/// The certificates; never a key.
pub fn identities(agent: &Agent) -> Value {
    let one = |status: crate::identity::SvidStatus| {
        json!({
            "id": status.id.to_string(),
            "notAfter": status.not_after.map(unix_seconds),
            "serial": status.serial,
            "generation": status.generation,
            "lastError": status.last_error,
        })
    };
    json!({
        "authority": agent.identities.authority(),
        "svids": agent.identities.status().into_iter().map(one).collect::<Vec<_>>(),
    })
}

/// Every limit with its unit and reason.
pub fn limits(_: &Agent) -> Value {
    let hbone = hbone::limits::all().into_iter().map(|limit| (limit.name, limit.value, limit.unit, limit.reason));
    let all = hbone.chain(proxy::limits::all());
    all.map(|(name, value, unit, reason)| json!({ "name": name, "value": value, "unit": unit, "reason": reason }))
        .collect()
}

/// Services and their endpoints.
pub fn services(agent: &Agent) -> Value {
    let state = agent.state.current();
    let port = |port: &crate::state::ServicePort| {
        let endpoints = port.endpoints.iter().map(|e| std::net::SocketAddr::new(e.ip, e.port).to_string());
        json!({ "name": port.name, "port": port.port, "endpoints": endpoints.collect::<Vec<_>>() })
    };
    let one = |service: &std::sync::Arc<crate::state::Service>| {
        json!({
            "namespace": service.namespace,
            "name": service.name,
            "clusterIPs": service.cluster_ips,
            "ports": service.ports.iter().map(port).collect::<Vec<_>>(),
        })
    };
    state.services().map(one).collect()
}

/// The pods of this node, with the policy that stands before each.
pub fn workloads(agent: &Agent) -> Value {
    let state = agent.state.current();
    let one = |workload: &std::sync::Arc<crate::state::Workload>| {
        json!({
            "uid": workload.uid,
            "namespace": workload.namespace,
            "name": workload.name,
            "identity": workload.identity.to_string(),
            "ips": workload.ips,
            "enrolled": workload.enrolled,
            "refusal": workload.refusal,
            "policy": state.inbound_policy(&workload.uid).map(|policy| format!("{policy:?}")),
        })
    };
    state.local_workloads().map(one).collect()
}

/// The tunnels to other pods, of all workers.
pub async fn tunnels(proxy: Proxy) -> Value {
    let one = |tunnel: hbone::TunnelStatus| {
        json!({
            "sourceUid": tunnel.key.source_uid,
            "destination": tunnel.key.destination.to_string(),
            "address": tunnel.key.address,
            "generation": tunnel.generation,
            "streams": tunnel.streams,
            "retired": tunnel.retired,
            "since": unix_seconds(tunnel.since),
        })
    };
    proxy.tunnels().await.into_iter().map(one).collect()
}

/// The live connections, of all workers.
pub async fn connections(proxy: Proxy) -> Value {
    let one = |LiveConnection { worker, record }: LiveConnection| {
        json!({
            "worker": worker,
            "direction": record.direction.name(),
            "transport": record.transport.name(),
            "source": { "pod": record.source_pod, "identity": record.source_identity.map(|id| id.to_string()) },
            "client": record.client,
            "dialled": record.dialled,
            "service": record.service,
            "destination": {
                "pod": record.destination_pod,
                "identity": record.destination_identity.map(|id| id.to_string()),
            },
            "server": record.server,
            "traceId": record.trace_id,
            "rule": record.rule,
            "audited": record.audited,
            "bytesSent": record.bytes_sent,
            "bytesReceived": record.bytes_received,
            "ageSeconds": record.duration.as_secs_f64(),
        })
    };
    proxy.connections().await.into_iter().map(one).collect()
}

/// Identity and end of validity, for the expiry metric.
pub fn expiries(identities: &Identities) -> Vec<(SpiffeId, f64)> {
    let with_end = |status: crate::identity::SvidStatus| Some((status.id, unix_seconds(status.not_after?)));
    identities.status().into_iter().filter_map(with_end).collect()
}

fn unix_seconds(time: std::time::SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
