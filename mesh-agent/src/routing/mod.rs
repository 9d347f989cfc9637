//! Where an outbound connection goes: a pure function of the snapshot and what was dialled.

mod affinity;
mod balance;

#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use crate::addr::{OrigDstAddr, ServerAddr};
use crate::limit::{Limit, limits};
use crate::routes::{ConnectionRule, Connections, Seed};
use crate::spiffe::SpiffeId;
use crate::state::{Affinity, AppProtocol, Destination, Endpoint, Frontend, MeshState, Service, ServicePort, Workload};

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
    /// A Service port on which requests are spoken: every request is decided by itself.
    Requests {
        /// The Service that was dialled.
        service: Arc<Service>,
    },
    /// A TLSRoute leads here: the client's first message says which way, see [`by_server_name`].
    ByServerName {
        /// The Service that was dialled.
        service: Arc<Service>,
        /// The routes at its port.
        routes: Arc<Connections>,
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
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// HBONE to the pod's :15008, whose certificate must carry this identity.
    Tunnel(SpiffeId),
    /// A pod of the source's own node that has this identity: reached within the agent where the agent holds both pods,
    /// by tunnel where it does not.
    SameNode(SpiffeId),
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
    /// The Service port has endpoints, but none on this node, where internalTrafficPolicy Local wants them.
    NoLocalEndpoint,
    /// The Service has no such port.
    NoSuchPort,
    /// loadBalancerSourceRanges leave this pod out.
    SourceRange,
    /// Unknown destination in registry-only mode.
    NotInRegistry,
    /// No TLSRoute is for the server name that the client asked for.
    NoRoute,
    /// The route's backend is no Service that is there, or its backends weigh nothing.
    BadBackend,
    /// A TLSRoute leads here, and what the client said is not TLS.
    NotTls,
    /// A TLSRoute leads here, and the client said nothing in time.
    SilentClient,
}

impl Refusal {
    /// The stable label for metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            Refusal::NoEndpoint => "no-endpoint",
            Refusal::NoLocalEndpoint => "no-local-endpoint",
            Refusal::NoSuchPort => "no-such-port",
            Refusal::SourceRange => "source-range",
            Refusal::NotInRegistry => "not-in-registry",
            Refusal::NoRoute => "no-route",
            Refusal::BadBackend => "bad-backend",
            Refusal::NotTls => "not-tls",
            Refusal::SilentClient => "silent-client",
        }
    }
}

/// Decides where `source`'s connection to `dialled` goes. `seed` picks among equal endpoints.
pub fn resolve(state: &MeshState, source: &Workload, dialled: OrigDstAddr, mode: OutboundMode, seed: u64) -> Route {
    let client = client_ip(source, dialled);
    match state.destination(dialled.socket(), client) {
        Destination::Service { service, port, .. }
            if state.protocol(service, port, &source.namespace) != AppProtocol::Bytes =>
        {
            Route::Requests { service: service.clone() }
        }
        Destination::Service { service, port, frontend } => {
            if let Some(routes) = state.connections(service, port.port, &source.namespace) {
                return along(state, source, service, routes, dialled, seed);
            }
            let upstreams = endpoints(state, source, (service, port, frontend), dialled, seed);
            if upstreams.is_empty() {
                return Route::Refused(no_endpoint(port, dialled));
            }
            Route::Upstreams { service: Some(service.clone()), upstreams }
        }
        Destination::NoSuchPort => Route::Refused(Refusal::NoSuchPort),
        Destination::NotAdmitted => Route::Refused(Refusal::SourceRange),
        Destination::Pod { workload, address } => {
            let upstream = upstream(state, source, ServerAddr::new(address), Some(workload));
            Route::Upstreams { service: None, upstreams: vec![upstream] }
        }
        Destination::Endpoint(service) => {
            let upstream = upstream(state, source, ServerAddr::new(dialled.socket()), None);
            Route::Upstreams { service: Some(service.clone()), upstreams: vec![upstream] }
        }
        Destination::Unknown => match mode {
            OutboundMode::AllowAny => Route::PassThrough(ServerAddr::new(dialled.socket())),
            OutboundMode::RegistryOnly => Route::Refused(Refusal::NotInRegistry),
        },
    }
}

fn along(
    state: &MeshState,
    source: &Workload,
    service: &Arc<Service>,
    routes: &Arc<Connections>,
    dialled: OrigDstAddr,
    seed: u64,
) -> Route {
    match &**routes {
        Connections::Named(_) => Route::ByServerName { service: service.clone(), routes: routes.clone() },
        Connections::All(rule) => match backend(state, source, rule, dialled, seed) {
            Ok((service, upstreams)) => Route::Upstreams { service: Some(service), upstreams },
            Err(refusal) => Route::Refused(refusal),
        },
    }
}

/// What a connection of bytes may come to, where chance alone decides.
#[derive(Clone, Debug, PartialEq)]
pub struct Choices {
    /// The Service that was dialled, if it was one.
    pub service: Option<Arc<Service>>,
    /// Every endpoint that [`resolve`] chooses from.
    pub upstreams: Vec<Upstream>,
    /// Clients are bound to some of them.
    pub has_affinity: bool,
}

/// What [`resolve`] chooses from. None: requests are spoken there, a route leads on, or there is nothing to choose.
pub fn choices(state: &MeshState, source: &Workload, dialled: OrigDstAddr) -> Option<Choices> {
    match state.destination(dialled.socket(), client_ip(source, dialled)) {
        Destination::Service { service, port, frontend }
            if state.protocol(service, port, &source.namespace) == AppProtocol::Bytes
                && state.connections(service, port.port, &source.namespace).is_none() =>
        {
            let upstreams = port.behind(frontend, dialled.ip()).map(|endpoint| {
                let address = ServerAddr::new(SocketAddr::new(endpoint.ip, endpoint.port));
                upstream(state, source, address, endpoint.workload.as_ref())
            });
            let has_affinity = service.affinity != Affinity::None;
            Some(Choices { service: Some(service.clone()), upstreams: upstreams.collect(), has_affinity })
        }
        Destination::Pod { workload, address } => {
            let upstreams = vec![upstream(state, source, ServerAddr::new(address), Some(workload))];
            Some(Choices { service: None, upstreams, has_affinity: false })
        }
        Destination::Service { .. }
        | Destination::NoSuchPort
        | Destination::NotAdmitted
        | Destination::Endpoint(_)
        | Destination::Unknown => None,
    }
}

/// Decides where a connection goes that asks for this server, in lower case, or for none: the backend's Service, and
/// the endpoints to try.
pub fn by_server_name(
    state: &MeshState,
    source: &Workload,
    routes: &Connections,
    name: Option<&str>,
    dialled: OrigDstAddr,
    seed: u64,
) -> Result<(Arc<Service>, Vec<Upstream>), Refusal> {
    let rule = match routes {
        Connections::All(rule) => Some(rule),
        Connections::Named(names) => names.find(name),
    };
    backend(state, source, rule.ok_or(Refusal::NoRoute)?, dialled, seed)
}

fn backend(
    state: &MeshState,
    source: &Workload,
    rule: &ConnectionRule,
    dialled: OrigDstAddr,
    seed: u64,
) -> Result<(Arc<Service>, Vec<Upstream>), Refusal> {
    let backend = rule.backend(Seed::new(seed)).ok_or(Refusal::BadBackend)?;
    let (service, port) = state.backend(&backend.target).map_err(|_| Refusal::BadBackend)?;
    let upstreams = endpoints(state, source, (service, port, Frontend::ClusterIp), dialled, seed);
    if upstreams.is_empty() {
        return Err(no_endpoint(port, dialled));
    }
    Ok((service.clone(), upstreams))
}

/// The endpoints of a Service's port to try for a connection, in this order; none if it has none of the family that was
/// dialled.
pub fn endpoints(
    state: &MeshState,
    source: &Workload,
    (service, port, frontend): (&Service, &ServicePort, Frontend),
    dialled: OrigDstAddr,
    seed: u64,
) -> Vec<Upstream> {
    let candidates: Vec<&Endpoint> = port.behind(frontend, dialled.ip()).collect();
    let chosen = choose(service.affinity, &candidates, client_ip(source, dialled), seed);
    let upstreams = chosen.into_iter().map(|endpoint| {
        let address = ServerAddr::new(SocketAddr::new(endpoint.ip, endpoint.port));
        upstream(state, source, address, endpoint.workload.as_ref())
    });
    upstreams.collect()
}

/// The endpoints that sessionAffinity ClientIP would have a client try, in this order.
pub fn favourites<'a>(endpoints: impl Iterator<Item = &'a Endpoint>, client: IpAddr) -> Vec<SocketAddr> {
    let endpoints: Vec<&Endpoint> = endpoints.collect();
    let favourites = affinity::favourites(&endpoints, client, MAX_TRIES);
    favourites.into_iter().map(|endpoint| SocketAddr::new(endpoint.ip, endpoint.port)).collect()
}

/// The address that the source dials from.
pub fn client_ip(source: &Workload, dialled: OrigDstAddr) -> IpAddr {
    own_ip(source, dialled.ip())
}

/// The address of a pod from which it reaches another.
pub fn own_ip(source: &Workload, other: IpAddr) -> IpAddr {
    let of_family = source.ips.iter().find(|ip| ip.is_ipv4() == other.is_ipv4());
    of_family.or(source.ips.first()).copied().unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED))
}

fn no_endpoint(port: &ServicePort, dialled: OrigDstAddr) -> Refusal {
    match port.behind(Frontend::External, dialled.ip()).next() {
        Some(_) => Refusal::NoLocalEndpoint,
        None => Refusal::NoEndpoint,
    }
}

fn choose<'a>(affinity: Affinity, candidates: &[&'a Endpoint], client: IpAddr, seed: u64) -> Vec<&'a Endpoint> {
    match affinity {
        Affinity::None => {
            let picked = balance::pick(candidates.len(), MAX_TRIES, seed);
            picked.into_iter().filter_map(|index| candidates.get(index).copied()).collect()
        }
        Affinity::ClientIp => affinity::favourites(candidates, client, MAX_TRIES),
    }
}

/// How the source reaches an address, and the pod that is behind it.
pub fn upstream(
    state: &MeshState,
    source: &Workload,
    address: ServerAddr,
    workload: Option<&Arc<Workload>>,
) -> Upstream {
    let transport = match workload {
        Some(workload) if workload.uid == source.uid => Transport::Itself,
        Some(workload) if state.tunnels_to(workload, address.port()) => {
            let identity = workload.identity.clone();
            let is_near = workload.node == source.node && !state.is_encrypted_on_its_node(workload);
            if is_near { Transport::SameNode(identity) } else { Transport::Tunnel(identity) }
        }
        Some(_) | None => Transport::Plaintext,
    };
    Upstream { address, workload: workload.cloned(), transport }
}
