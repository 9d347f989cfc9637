//! Discovery against a real API server: kube-apiserver and etcd, nothing else. They are found by NODEMESH_KUBE_BIN; where
//! they are missing the tests say so and do nothing (MESH_REQUIRE_CLUSTER=1: they fail).

mod definitions;
mod figures;
mod plane;
mod source;
mod world;
