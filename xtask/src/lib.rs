//! What builds, demonstrates and tests Nodemesh.
//!
//! The [`testbed`] makes simulated Kubernetes nodes on one machine; the demo and the kernel tests share it. Nothing here
//! is part of the product: the agent neither links against this crate nor knows of it.
//!
//! Modules in reading order: what the commands do, then what they are made of.

pub mod bench;
pub mod build;
pub mod clean;
pub mod cluster;
pub mod demo;
pub mod ebpf;
pub mod exec;
pub mod fuzz;
pub mod image;
pub mod kernels;
pub mod manifests;
pub mod oci;
pub mod packages;
pub mod probe;
pub mod rings;
pub mod soak;
pub mod testbed;
pub mod tools;
pub mod ui;

mod stack;
mod sys;
