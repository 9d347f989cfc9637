//! Ring 3: real programs in simulated nodes, eBPF in the kernel, an agent per node.
//!
//! Each test has a testbed of its own, so they run beside each other.

mod bulk;
mod conformance;
mod connections;
mod crash_under_load;
mod dishonest_peer;
mod exclusions;
mod external;
mod features;
mod flows;
mod full;
mod h2spec;
mod hostile;
mod kernel;
mod lifecycle;
mod many;
mod meshctl;
mod odd_sockets;
mod otlp;
mod pair;
mod partitions;
mod policy;
mod probes;
mod prometheus;
mod reach;
mod requests;
mod root;
mod rough_network;
mod same_node;
mod same_node_kernel;
mod sandboxes;
mod scarce;
mod scenes;
mod secrets;
mod services;
mod sessions;
mod steps;
mod streams;
mod traffic;
mod upgrade;
mod wire;
mod within;
