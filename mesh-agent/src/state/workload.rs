//! A pod, as the mesh knows it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::spiffe::SpiffeId;

/// A pod anywhere in the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// metadata.uid
    pub uid: Arc<str>,
    /// metadata.name
    pub name: Arc<str>,
    /// metadata.namespace
    pub namespace: Arc<str>,
    /// spec.nodeName; empty until scheduled.
    pub node: Arc<str>,
    /// `spiffe://<trust domain>/ns/<namespace>/sa/<spec.serviceAccountName>`
    pub identity: SpiffeId,
    /// status.podIPs, canonical, primary first.
    pub ips: Vec<IpAddr>,
    /// metadata.labels
    pub labels: BTreeMap<String, String>,
    /// Named container ports: name → port.
    pub named_ports: BTreeMap<String, u16>,
    /// status.hostIPs: its node's addresses, canonical.
    pub host_ips: Vec<IpAddr>,
    /// Ports of the node that lead to it. None for hostNetwork pods, which hold the node's ports themselves.
    pub host_ports: Vec<HostPort>,
    /// What its annotations keep out of the mesh.
    pub exclusions: Exclusions,
    /// Ports of its own that its probes and lifecycle hooks name: kubelet dials them.
    pub probe_ports: BTreeSet<u16>,
    /// Whether its owner answers for what its requests say of where they come from (an ingress).
    pub forwards: bool,
    /// Whether label and kind put it into the mesh. False for pods that ask but cannot be (see `refusal`).
    pub enrolled: bool,
    /// Why a pod that asks for the mesh cannot be enrolled (hostNetwork, …).
    pub refusal: Option<&'static str>,
    /// spec.hostNetwork: its IPs are the node's, so it is not found by them.
    pub host_network: bool,
    /// The pod's Ready condition; a pod that states none counts as ready while it runs.
    pub ready: bool,
    /// metadata.deletionTimestamp is set.
    pub terminating: bool,
    /// metadata.creationTimestamp in seconds since 1970.
    pub created: Option<i64>,
}

/// A TCP port of the node that leads to a container's port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// hostIP: the one address of the node where it holds; 0.0.0.0 or :: for all of that family; None for all.
    pub ip: Option<IpAddr>,
    /// hostPort
    pub port: u16,
    /// containerPort
    pub target: u16,
}

/// What a pod keeps out of the mesh, new connections only. Empty when nothing is asked for, or what is asked for cannot be
/// read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exclusions {
    /// Connections that it opens to these ports, at whatever address.
    pub outbound_ports: BTreeSet<u16>,
    /// Connections that it receives at these ports of its own.
    pub inbound_ports: BTreeSet<u16>,
    /// Connections that it opens to these networks, at whatever port; no bits beyond the prefix.
    pub outbound_networks: BTreeSet<IpNet>,
}

impl Workload {
    /// Whether this pod holds an IP that both claim: one that stays beats one that ends, then the newest creation. The
    /// uid only makes the choice repeatable.
    pub(super) fn beats(&self, other: &Workload) -> bool {
        (!self.terminating, self.created, &self.uid) > (!other.terminating, other.created, &other.uid)
    }
}
