//! The world model: workloads, services and compiled policies, as immutable snapshots.
//!
//! One writer (`discovery`) publishes; everyone else reads. A connection works on the snapshot that it started with.
//! No I/O, no clock, no async work here: a snapshot is built by a pure function ([`MeshState::build`], from a
//! [`World`]) and cannot fail for outside reasons.

mod build;
mod endpoints;
mod frontends;
mod nodes;
mod pods;
mod service;
mod snapshot;
mod topology;
mod workload;
mod world;

#[cfg(test)]
mod tests;

pub use frontends::Destination;
pub use service::{Endpoint, Frontend, Service, ServicePort};
pub use snapshot::{MeshState, StateReader, StateWriter};
pub use workload::{Exclusions, HostPort, Workload};
pub use world::{
    Affinity, Backend, Backends, Distribution, ExternalAddresses, Hints, InternalTraffic, Node, PortSpec, ServiceSpec,
    TargetPort, Traffic, World,
};
