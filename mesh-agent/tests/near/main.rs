//! Ring 2 once more, with all pods on one node: the same journeys, without a tunnel.

#[path = "../mesh/main.rs"]
mod mesh;
