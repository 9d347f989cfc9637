//! The world model: workloads, services and compiled policies, as immutable snapshots.
//!
//! One writer (`discovery`) publishes; everyone else reads. A connection works on the snapshot that it started with.
//! No I/O, no clock, no async work here: a snapshot is built by a pure function ([`MeshState::build`], from a
//! [`World`]) and cannot fail for outside reasons.

mod build;
mod endpoints;
mod pods;
mod service;
mod snapshot;
mod workload;
mod world;

#[cfg(test)]
mod tests;

pub use service::{Endpoint, Service, ServicePort};
pub use snapshot::{MeshState, StateReader, StateWriter};
pub use workload::Workload;
pub use world::{Backend, Backends, PortSpec, ServiceSpec, TargetPort, World};
