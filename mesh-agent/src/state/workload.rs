//! A pod, as the mesh knows it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::spiffe::SpiffeId;

/// A pod anywhere in the cluster.
#[derive(Clone, Debug, PartialEq)]
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
    /// Whether label and kind put it into the mesh (see [`Workload::refusal`] for pods that ask but cannot be).
    pub enrolled: bool,
    /// Why a pod that asks for the mesh cannot be enrolled (hostNetwork, …).
    pub refusal: Option<&'static str>,
}
