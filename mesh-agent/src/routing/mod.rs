//! Where an outbound connection goes: a pure function of the snapshot and what was dialled.

mod balance;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;

use crate::addr::{OrigDstAddr, ServerAddr};
use crate::limit::{Limit, limits};
use crate::spiffe::SpiffeId;
use crate::state::{Endpoint, MeshState, Service, Workload};

/// What happens to destinations that the mesh does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutboundMode {
    /// They pass as they are.
    AllowAny,
    /// They are refused.
    RegistryOnly,
}

/// The decision about one outbound connection.
#[derive(Clone, Debug, PartialEq)]
pub enum Route {
    /// Try these in order, until one connects.
    Upstreams {
        /// The Service that was dialled, if it was one.
        service: Option<Arc<Service>>,
        /// At least one, at most [`MAX_TRIES`].
        upstreams: Vec<Upstream>,
    },
    /// Not of this mesh: dial it from the pod, as it is.
    PassThrough(ServerAddr),
    /// Refuse.
    Refused(Refusal),
}

/// How many endpoints one connection tries before it gives up.
pub const MAX_TRIES: usize = 3;

/// The bounds of this room.
pub fn limits() -> Vec<Limit> {
    limits![MAX_TRIES, "endpoints", "that one connection tries before it gives up";]
}

/// One place to try.
#[derive(Clone, Debug, PartialEq)]
pub struct Upstream {
    /// Endpoint IP and target port.
    pub address: ServerAddr,
    /// The pod behind it, where known.
    pub workload: Option<Arc<Workload>>,
    /// How to get there.
    pub transport: Transport,
}

/// How an upstream is reached.
#[derive(Clone, Debug, PartialEq)]
pub enum Transport {
    /// HBONE to the pod's :15008, whose certificate must carry this identity.
    Tunnel(SpiffeId),
    /// The endpoint is the source pod itself: served inside the agent, with policy.
    Itself,
    /// The endpoint is not in the mesh, or takes plaintext only.
    Plaintext,
}

/// Why an outbound connection is refused. The names are metric labels: stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The Service port has no endpoint.
    NoEndpoint,
    /// The Service has no such port.
    NoSuchPort,
    /// Unknown destination in registry-only mode.
    NotInRegistry,
}

impl Refusal {
    /// The stable label for metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            Refusal::NoEndpoint => "no-endpoint",
            Refusal::NoSuchPort => "no-such-port",
            Refusal::NotInRegistry => "not-in-registry",
        }
    }
}

/// Decides where `source`'s connection to `dialled` goes. `seed` picks among equal endpoints.
pub fn resolve(state: &MeshState, source: &Workload, dialled: OrigDstAddr, mode: OutboundMode, seed: u64) -> Route {
    if let Some(service) = state.service_by_ip(dialled.ip()) {
        return to_service(state, source, service, dialled, seed);
    }
    if let Some(workload) = state.workload_by_ip(dialled.ip()) {
        let address = ServerAddr::new(dialled.socket());
        let upstream = upstream(state, source, address, Some(workload));
        return Route::Upstreams { service: None, upstreams: vec![upstream] };
    }
    match mode {
        OutboundMode::AllowAny => Route::PassThrough(ServerAddr::new(dialled.socket())),
        OutboundMode::RegistryOnly => Route::Refused(Refusal::NotInRegistry),
    }
}

fn to_service(state: &MeshState, source: &Workload, service: &Arc<Service>, dialled: OrigDstAddr, seed: u64) -> Route {
    let Some(port) = service.port(dialled.port()) else {
        return Route::Refused(Refusal::NoSuchPort);
    };
    let candidates: Vec<&Endpoint> = port.endpoints_of_family(dialled.ip()).collect();
    let chosen = balance::pick(candidates.len(), MAX_TRIES, seed).into_iter().filter_map(|index| candidates.get(index));
    let upstreams: Vec<Upstream> = chosen
        .map(|endpoint| {
            let address = ServerAddr::new(SocketAddr::new(endpoint.ip, endpoint.port));
            upstream(state, source, address, endpoint.workload.as_ref())
        })
        .collect();
    if upstreams.is_empty() {
        return Route::Refused(Refusal::NoEndpoint);
    }
    Route::Upstreams { service: Some(service.clone()), upstreams }
}

fn upstream(state: &MeshState, source: &Workload, address: ServerAddr, workload: Option<&Arc<Workload>>) -> Upstream {
    let transport = match workload {
        Some(workload) if workload.uid == source.uid => Transport::Itself,
        Some(workload) if state.tunnels_to(workload, address.port()) => Transport::Tunnel(workload.identity.clone()),
        Some(_) | None => Transport::Plaintext,
    };
    Upstream { address, workload: workload.cloned(), transport }
}
