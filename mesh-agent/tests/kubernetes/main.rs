//! Discovery, and what else asks it, against a real API server: kube-apiserver and etcd, nothing else. They are found by
//! NODEMESH_KUBE_BIN; where they are missing the tests say so and do nothing (MESH_REQUIRE_CLUSTER=1: they fail).

#[path = "../apiserver_rig/mod.rs"]
mod apiserver_rig;
mod definitions;
mod figures;
mod front;
mod install;
mod pods;
mod source;
mod world;
