//! The world model: workloads, services and compiled policies, as immutable snapshots.
//!
//! One writer (`discovery`) publishes; everyone else reads. A connection works on the snapshot that it started with.
//! No I/O, no clock, no async work here: an [`Engine`] takes objects as they come and go and makes snapshots of them,
//! which cannot fail for outside reasons. [`MeshState::build`] is that for a whole [`World`] at once.
//!
//! ```text
//! upsert, delete ─► what was read ─► what depends on it, found by indexes ─► the next snapshot
//!                   pods, nodes,     engine                                 (shares with the one before it
//!                   specs            endpoints, frontends, topology          all that did not change: cow)
//! ```

mod attachments;
mod claims;
mod cow;
mod endpoints;
mod engine;
mod frontends;
mod nodes;
mod object;
mod pods;
mod route;
mod routes;
mod service;
mod shown;
mod snapshot;
mod specs;
mod status;
mod topology;
mod traffic;
mod workload;
mod world;

#[cfg(test)]
mod route_tests;
#[cfg(test)]
mod sequences;
#[cfg(test)]
mod tests;

pub use engine::Engine;
pub use frontends::Destination;
pub use object::{Item, Key, Kind};
pub use route::{BadBackend, Reading, ReferenceGrant, RouteSpec};
pub use service::{Endpoint, Frontend, Service, ServicePort};
pub use shown::{ShownBackend, ShownRoute, ShownRule};
pub use snapshot::{MeshState, Stamp, StateReader, StateWriter};
pub use status::{Condition, ConditionType, ParentStatus, RouteStatus};
pub use traffic::Overruled;
pub use workload::{Exclusions, HostPort, Workload};
pub use world::{
    Affinity, AppProtocol, Backend, Backends, Distribution, ExternalAddresses, Hints, InternalTraffic, Node, PortSpec,
    ServiceSpec, TargetPort, Traffic, World,
};
