//! What is told about a connection: filled as the connection learns it, for the access log, metrics and `/connections`.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::copy;
use super::error::Failure;
use super::worker::Pod;
use crate::addr::{ClientAddr, OrigDstAddr, ServerAddr};
use crate::podnet::Role;
use crate::routing::{self, Route, Upstream};
use crate::spiffe::SpiffeId;
use crate::state::{Service, Workload};
use crate::sys::TcpInfo;
use crate::telemetry::{ConnectionRecord, ConnectionResult, Direction, Network, RequestRecord, Transport};

/// An outbound connection, as far as its decision tells.
pub fn outbound(pod: &Pod, client: ClientAddr, dialled: OrigDstAddr, route: &Route) -> ConnectionRecord {
    let (transport, service) = match route {
        Route::Upstreams { service, .. } => (Transport::Undecided, service.as_ref()),
        Route::Requests { service } => (Transport::Requests, Some(service)),
        Route::ByServerName { service, .. } => (Transport::Undecided, Some(service)),
        Route::PassThrough(_) => (Transport::PassThrough, None),
        Route::Refused(_) => (Transport::Undecided, None),
    };
    ConnectionRecord {
        transport,
        dialled: Some(dialled.socket()),
        service: service.map(|service| service_name(service)),
        ..from_pod(pod, client)
    }
}

/// A connection that requests of this pod share, to one endpoint of a Service.
pub fn shared(pod: &Pod, client: ClientAddr, service: &Service, upstream: &Upstream) -> ConnectionRecord {
    let mut record = ConnectionRecord { service: Some(service_name(service)), ..from_pod(pod, client) };
    aim(&mut record, upstream);
    record
}

/// What every request of a connection is told with.
pub fn request(pod: &Pod, client: ClientAddr, service: &Service) -> RequestRecord {
    RequestRecord {
        source_pod: Some(name(&pod.workload)),
        source_identity: Some(pod.workload.identity.clone()),
        service: Some(service_name(service)),
        ..RequestRecord::blank(Direction::Outbound, client.socket())
    }
}

/// What every request to an application of `pod` is told with.
pub fn judged(pod: &Pod, client: ClientAddr, peer: Option<&SpiffeId>, server: ServerAddr) -> RequestRecord {
    RequestRecord {
        source_identity: peer.cloned(),
        destination_pod: Some(name(&pod.workload)),
        destination_identity: Some(pod.workload.identity.clone()),
        server: Some(server.socket()),
        ..RequestRecord::blank(Direction::Inbound, client.socket())
    }
}

/// `<namespace>/<name>`
pub fn service_name(service: &Service) -> Arc<str> {
    format!("{}/{}", service.namespace, service.name).into()
}

/// A connection that failed before its ends were known.
pub fn nameless(pod: &Pod, role: Role) -> ConnectionRecord {
    unserved(pod, role, ClientAddr::new(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0)))
}

/// A connection of which no more is known than who made it.
pub fn unserved(pod: &Pod, role: Role, client: ClientAddr) -> ConnectionRecord {
    match role {
        Role::Outbound => from_pod(pod, client),
        Role::Tunnel => tunnel(pod, client),
        Role::Plaintext => ConnectionRecord { transport: Transport::Plaintext, ..to_pod(pod, client) },
    }
}

fn from_pod(pod: &Pod, client: ClientAddr) -> ConnectionRecord {
    ConnectionRecord {
        source_pod: Some(name(&pod.workload)),
        source_identity: Some(pod.workload.identity.clone()),
        ..blank(Direction::Outbound, client)
    }
}

/// Notes the endpoint that is tried now.
pub fn aim(record: &mut ConnectionRecord, upstream: &Upstream) {
    if record.transport != Transport::PassThrough {
        record.transport = match upstream.transport {
            routing::Transport::Tunnel(_) => Transport::Tunnel,
            routing::Transport::SameNode(_) => Transport::SameNode,
            routing::Transport::Itself => Transport::Itself,
            routing::Transport::Plaintext => Transport::Plaintext,
        };
    }
    (record.rule, record.audited) = (None, Vec::new());
    record.server = Some(upstream.address.socket());
    record.destination_pod = upstream.workload.as_deref().map(name);
    record.destination_identity = upstream.workload.as_ref().map(|workload| workload.identity.clone());
}

/// A connection to an application of `pod`; `peer` is the identity of the tunnel it came by.
pub fn inbound(
    pod: &Pod,
    client: ClientAddr,
    peer: Option<&SpiffeId>,
    server: ServerAddr,
    trace_id: Option<Arc<str>>,
) -> ConnectionRecord {
    ConnectionRecord {
        transport: if peer.is_some() { Transport::Tunnel } else { Transport::Plaintext },
        source_identity: peer.cloned(),
        server: Some(server.socket()),
        trace_id,
        ..to_pod(pod, client)
    }
}

/// A connection to an application of `pod` from another pod of this node, which capture knows.
pub fn from_this_node(
    pod: &Pod,
    source: &Pod,
    client: ClientAddr,
    server: ServerAddr,
    trace_id: Option<Arc<str>>,
) -> ConnectionRecord {
    ConnectionRecord {
        transport: Transport::SameNode,
        source_pod: Some(name(&source.workload)),
        ..inbound(pod, client, Some(&source.workload.identity), server, trace_id)
    }
}

/// A connection of `pod` to its own application, whose requests are judged.
pub fn from_itself(pod: &Pod, client: ClientAddr, server: ServerAddr) -> ConnectionRecord {
    ConnectionRecord { transport: Transport::Itself, ..from_this_node(pod, pod, client, server, None) }
}

/// A tunnel that failed as a whole, before any CONNECT.
pub fn tunnel(pod: &Pod, client: ClientAddr) -> ConnectionRecord {
    ConnectionRecord { transport: Transport::Tunnel, ..to_pod(pod, client) }
}

fn to_pod(pod: &Pod, client: ClientAddr) -> ConnectionRecord {
    ConnectionRecord {
        destination_pod: Some(name(&pod.workload)),
        destination_identity: Some(pod.workload.identity.clone()),
        ..blank(Direction::Inbound, client)
    }
}

pub(super) fn blank(direction: Direction, client: ClientAddr) -> ConnectionRecord {
    ConnectionRecord {
        direction,
        transport: Transport::Undecided,
        source_pod: None,
        source_identity: None,
        client: client.socket(),
        dialled: None,
        service: None,
        destination_pod: None,
        destination_identity: None,
        server: None,
        trace_id: None,
        rule: None,
        audited: Vec::new(),
        result: ConnectionResult::Ok,
        bytes_sent: 0,
        bytes_received: 0,
        duration: Duration::ZERO,
        network: None,
    }
}

/// What the kernel measured, as it is told.
pub(super) fn network(info: TcpInfo) -> Network {
    Network { rtt: info.rtt, retransmits: info.retransmits }
}

pub(super) fn name(workload: &Workload) -> Arc<str> {
    format!("{}/{}", workload.namespace, workload.name).into()
}

/// How a connection that carried bytes ended.
pub fn result_of(end: &copy::End) -> ConnectionResult {
    match end {
        // A reset is how many applications close; it passed through as what it was.
        copy::End::Finished | copy::End::FirstReset(_) | copy::End::SecondReset(_) | copy::End::StreamReset(_) => {
            ConnectionResult::Ok
        }
        copy::End::NotHttp(reason) => ConnectionResult::Refused { reason },
        copy::End::OverBudget(over) => ConnectionResult::Cut { reason: over.label() },
        copy::End::TunnelLost(_) | copy::End::Cut => ConnectionResult::Failed { reason: end.reason() },
    }
}

/// How a connection that never carried a byte ended.
pub fn result_of_failure(failure: &Failure) -> ConnectionResult {
    let reason = failure.reason();
    match failure {
        Failure::Denied(_) => ConnectionResult::Denied { reason },
        Failure::Refused(_) | Failure::NotThisPod(_) | Failure::OverBudget(_) => ConnectionResult::Refused { reason },
        Failure::Cut(_) => ConnectionResult::Cut { reason },
        Failure::Record(_)
        | Failure::NoCertificate(_)
        | Failure::Tunnel { .. }
        | Failure::NotTakenIn { .. }
        | Failure::Connect { .. }
        | Failure::Socket(_)
        | Failure::Abandoned => ConnectionResult::Failed { reason },
    }
}
