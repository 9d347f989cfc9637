//! What pods of this node may do without the agent: the connections that the kernel may carry from pod to pod, and what is
//! told of them. The decision is `mesh_common::same_node::decide` over what `routing` and `policy` say, the same that the
//! agent asks when it carries a connection itself.

mod memory;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use mesh_common::same_node::{Facts, Said, decide};

use super::{record, refused};
use crate::addr::{ClientAddr, OrigDstAddr};
use crate::podnet::{KernelRefusal, Straight, StraightConnection, StraightPath};
use crate::policy::{self, Admission};
use crate::routing::{self, Choices, Transport, Upstream};
use crate::state::{MeshState, Workload};
use crate::telemetry::{self, AccessLog, ConnectionRecord, ConnectionResult, Direction, Metrics, Network};
use memory::Memory;

/// Decides by `routing` and `policy`, tells metrics and access log.
pub struct Neighbours {
    metrics: Metrics,
    access_log: AccessLog,
    memory: Mutex<Memory>,
}

impl Neighbours {
    /// Counts and tells there.
    pub fn new(metrics: Metrics, access_log: AccessLog) -> Self {
        Self { metrics, access_log, memory: Mutex::default() }
    }
}

impl Straight for Neighbours {
    fn paths(&self, world: &MeshState, is_held: &dyn Fn(&str) -> bool) -> Arc<[StraightPath]> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).paths(world, is_held)
    }

    fn may_go_on(&self, world: &MeshState, from: &Workload, to: &Workload, server: SocketAddr) -> bool {
        may_go_on(world, from, to, server)
    }

    fn ended(&self, connection: StraightConnection) {
        for record in records(&connection) {
            self.metrics.closed(&record);
            self.access_log.write(&record);
        }
    }

    fn refused(&self, world: &MeshState, refusal: KernelRefusal) {
        if let Some(record) = refused::record(world, &refusal) {
            self.access_log.tell(&record);
        }
    }
}

/// What `client` may reach at `dialled` by the kernel alone: all of what it may come to, or nothing.
fn path(
    world: &MeshState,
    client: &Workload,
    dialled: SocketAddr,
    is_held: &dyn Fn(&str) -> bool,
) -> Option<StraightPath> {
    let choices = routing::choices(world, client, OrigDstAddr::new(dialled))?;
    if choices.upstreams.is_empty() {
        return None;
    }
    let endpoints = choices.upstreams.iter().map(|upstream| {
        decide(&facts(world, client, &choices, upstream, dialled, is_held)).ok()?;
        Some((upstream.address.socket(), upstream.workload.as_ref()?.uid.clone()))
    });
    let endpoints = endpoints.collect::<Option<Vec<_>>>()?;
    Some(StraightPath { client: client.uid.clone(), dialled, endpoints })
}

fn facts(
    world: &MeshState,
    client: &Workload,
    choices: &Choices,
    upstream: &Upstream,
    dialled: SocketAddr,
    is_held: &dyn Fn(&str) -> bool,
) -> Facts {
    let server = upstream.address.socket();
    let is_its_address = upstream.workload.as_ref().is_some_and(|pod| {
        let holds = world.workload_by_ip(server.ip()).is_some_and(|holder| holder.uid == pod.uid);
        holds && pod.ips.contains(&server.ip()) && server.is_ipv4() == dialled.is_ipv4()
    });
    let both_held =
        is_held(&client.uid) && upstream.workload.as_ref().is_some_and(|pod| pod.enrolled && is_held(&pod.uid));
    let (policy, is_audited) = match &upstream.workload {
        Some(pod) => said(world, client, pod, server),
        None => (Said::Denied, false),
    };
    Facts {
        is_near: matches!(upstream.transport, Transport::SameNode(_)),
        is_held: both_held,
        is_its_address,
        port: server.port(),
        // Where they are, there are no choices.
        is_read: false,
        is_regulated: choices.service.as_ref().is_some_and(|service| !world.traffic(service, None).is_silent()),
        has_affinity: choices.has_affinity,
        policy,
        is_audited,
    }
}

/// What policy says of a connection from pod to pod, and whether one wants to be told.
fn said(world: &MeshState, from: &Workload, to: &Workload, server: SocketAddr) -> (Said, bool) {
    let Some(policy) = world.inbound_policy(&to.uid) else { return (Said::Denied, false) };
    let facts = policy::Facts {
        source: Some(from.identity.clone()),
        is_same_node: true,
        source_ip: routing::own_ip(from, server.ip()),
        destination_ip: server.ip(),
        destination_port: server.port(),
    };
    let said = match policy::admit(policy, &facts) {
        Ok(Admission::Bytes(_)) => Said::Allowed,
        Ok(Admission::Requests(_)) => Said::Depends,
        Err(_) => Said::Denied,
    };
    (said, !policy::audited(policy, &facts).is_empty())
}

/// Whether a connection that lives may go on: policy alone ends it, not what new ones would meet. One that requests decide
/// about now is nothing that anybody can read any more.
fn may_go_on(world: &MeshState, from: &Workload, to: &Workload, server: SocketAddr) -> bool {
    let holds = world.workload_by_ip(server.ip()).is_some_and(|holder| holder.uid == to.uid);
    holds && said(world, from, to, server).0 == Said::Allowed
}

/// What is told on either side.
pub fn records(connection: &StraightConnection) -> [ConnectionRecord; 2] {
    let StraightConnection { from, to, client, dialled, server, .. } = connection;
    let result = match (connection.cut, connection.was_open) {
        (Some(reason), _) => ConnectionResult::Cut { reason },
        (None, true) => ConnectionResult::Ok,
        (None, false) => ConnectionResult::Failed { reason: "connect-failed" },
    };
    let outbound = ConnectionRecord {
        transport: telemetry::Transport::SameNodeKernel,
        source_pod: Some(record::name(from)),
        source_identity: Some(from.identity.clone()),
        dialled: Some(*dialled),
        destination_pod: Some(record::name(to)),
        destination_identity: Some(to.identity.clone()),
        server: Some(*server),
        result,
        bytes_sent: connection.sent,
        bytes_received: connection.received,
        duration: connection.duration,
        network: connection.was_open.then_some(Network { rtt: connection.rtt, retransmits: connection.retransmits }),
        ..record::blank(Direction::Outbound, ClientAddr::new(*client))
    };
    let inbound = ConnectionRecord { direction: Direction::Inbound, dialled: None, ..outbound.clone() };
    [outbound, inbound]
}

#[cfg(test)]
pub(super) mod tests;
