//! Where an outbound connection goes: a pure function of the snapshot and what was dialled.

use std::sync::Arc;

use crate::addr::{OrigDstAddr, ServerAddr};
use crate::spiffe::SpiffeId;
use crate::state::{MeshState, Service, Workload};

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

/// Decides where `source`'s connection to `dialled` goes. `seed` picks among equal endpoints.
pub fn resolve(_state: &MeshState, _source: &Workload, dialled: OrigDstAddr, _mode: OutboundMode, _seed: u64) -> Route {
    Route::PassThrough(ServerAddr::new(dialled.socket()))
}
