//! Ring 3: real programs in simulated nodes, eBPF in the kernel, an agent per node.
//!
//! Each test has a testbed of its own, so they run beside each other.

mod connections;
mod dishonest_peer;
mod kernel;
mod lifecycle;
mod pair;
mod policy;
mod steps;
mod upgrade;
mod wire;
