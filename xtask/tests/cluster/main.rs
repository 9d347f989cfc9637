//! Ring 4: the mesh on a real Kubernetes, installed as users install it.
//!
//! There is one cluster and one mesh for all tests, which take turns. Each has namespaces of its own, and leaves the
//! mesh as it found it or says so to the next one ([`support::Kube::spoil`]).

mod enrolment;
mod install;
mod kinds;
mod meshctl;
mod outage;
mod plugin;
mod policy;
mod probes;
mod services;
mod standalone;
mod support;
mod uninstall;
mod upgrade;
mod webhook;
