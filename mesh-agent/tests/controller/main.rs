//! Ring 2: the authority of a cluster. The agent's side against a server that answers as istiod does, and the controller
//! against a real API server (where NODEMESH_KUBE_BIN names one), agents that lie among its callers.

#[path = "../apiserver_rig/mod.rs"]
mod apiserver_rig;
mod cluster;
mod remote;
#[path = "../support/mod.rs"]
mod support;
