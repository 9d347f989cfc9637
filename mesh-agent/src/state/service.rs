//! A Kubernetes Service and its endpoints.

use std::net::IpAddr;
use std::sync::Arc;

use super::{Affinity, AppProtocol, ExternalAddresses, Workload};
use crate::resilience::balance::Place;

/// A Service with its ports; endpoints are per port, because readiness and target ports are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// metadata.namespace
    pub namespace: Arc<str>,
    /// metadata.name
    pub name: Arc<str>,
    /// spec.clusterIPs without "None", canonical.
    pub cluster_ips: Vec<IpAddr>,
    /// Addresses that lead to it besides.
    pub external: ExternalAddresses,
    /// Whether a client comes to the same endpoint again.
    pub affinity: Affinity,
    /// spec.ports, TCP only.
    pub ports: Vec<ServicePort>,
}

/// One TCP port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// spec.ports[].name; empty when unnamed.
    pub name: Arc<str>,
    /// spec.ports[].port
    pub port: u16,
    /// The port of every node that leads here too.
    pub node_port: Option<u16>,
    /// Endpoints that may be dialled now from this node, both families.
    pub endpoints: Vec<Endpoint>,
    /// With internalTrafficPolicy Local: the endpoints of this node, which are all that the cluster IPs lead to.
    pub node_local: Option<Vec<Endpoint>>,
    /// What is spoken there, as far as the Service says; see [`super::MeshState::protocol`].
    pub protocol: AppProtocol,
}

/// By which of a Service's addresses a client comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Frontend {
    /// A cluster IP: internalTrafficPolicy holds.
    ClusterIp,
    /// An external IP, a load balancer's IP or a node port. externalTrafficPolicy is about clients outside the cluster;
    /// a pod gets any endpoint.
    External,
}

/// One place that serves a Service's port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Canonical.
    pub ip: IpAddr,
    /// The target port, resolved to a number.
    pub port: u16,
    /// The pod behind the address, where we know one.
    pub workload: Option<Arc<Workload>>,
    /// How far it is from this node. Without a pod there is no zone: on this node, or elsewhere.
    pub place: Place,
}

impl ServicePort {
    /// The endpoints that a client who dialled this address of the frontend can reach: those of its family.
    pub fn behind(&self, frontend: Frontend, dialled: IpAddr) -> impl Iterator<Item = &Endpoint> {
        let endpoints = match (frontend, &self.node_local) {
            (Frontend::ClusterIp, Some(node_local)) => node_local,
            (Frontend::ClusterIp, None) | (Frontend::External, _) => &self.endpoints,
        };
        endpoints.iter().filter(move |endpoint| endpoint.ip.is_ipv4() == dialled.is_ipv4())
    }
}

impl Service {
    /// The port that clients dial, if the Service has it.
    pub fn port(&self, port: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|candidate| candidate.port == port)
    }

    /// Whether a client may use the load balancer's IPs. Like kube-proxy: a family without any range is open.
    pub fn admits(&self, client: IpAddr) -> bool {
        let ranges = self.external.source_ranges.iter();
        let mut of_family = ranges.filter(|range| range.addr().is_ipv4() == client.is_ipv4()).peekable();
        of_family.peek().is_none() || of_family.any(|range| range.contains(&client))
    }
}
