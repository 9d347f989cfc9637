//! The Nodemesh agent: one per node, carries the traffic of the node's enrolled pods.
//!
//! ```text
//! app pod ─► capture ─► proxy::outbound ─► routing ─► hbone ══15008══►
//!                                                                     ║
//! app pod ◄─ proxy::inbound ◄─ policy ◄─ hbone::server ◄══════════════╝
//! discovery ─► state ─► (routing, policy, capture)    identity ─► hbone    telemetry ◄─ all
//! ```
//!
//! Modules are declared in the order a connection meets them. Which room may import which, and what must never be in
//! which room, is in `docs/ARCHITECTURE.md`.

// — the data path —
pub mod capture;
pub mod extauth;
pub mod hbone;
pub mod http;
pub mod identity;
pub mod issuers;
pub mod podnet;
pub mod policy;
pub mod proxy;
pub mod resilience;
pub mod routes;
pub mod routing;
pub mod tokens;
// — the world —
pub mod controller;
pub mod discovery;
pub mod state;
// — around it —
pub mod addr;
pub mod admin;
pub mod apiserver;
pub mod app;
pub mod bench;
pub mod cli;
pub mod cni;
pub mod commands;
pub mod conditions;
pub mod config;
pub mod ctl;
pub mod departure;
pub mod drain;
pub mod fields;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod limit;
pub mod map;
pub mod named;
pub mod path;
pub mod readiness;
pub mod sandboxes;
pub mod spiffe;
pub mod sys;
pub mod telemetry;
pub mod told;
