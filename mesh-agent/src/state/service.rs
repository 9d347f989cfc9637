//! A Kubernetes Service and its endpoints.

use std::net::IpAddr;
use std::sync::Arc;

use super::Workload;

/// A Service with its ports; endpoints are per port, because readiness and target ports are.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// metadata.namespace
    pub namespace: Arc<str>,
    /// metadata.name
    pub name: Arc<str>,
    /// spec.clusterIPs without "None", canonical.
    pub cluster_ips: Vec<IpAddr>,
    /// spec.ports, TCP only.
    pub ports: Vec<ServicePort>,
}

/// One TCP port of a Service.
#[derive(Clone, Debug, PartialEq)]
pub struct ServicePort {
    /// spec.ports[].name; empty when unnamed.
    pub name: Arc<str>,
    /// spec.ports[].port
    pub port: u16,
    /// Endpoints that may be dialled now (ready), both families.
    pub endpoints: Vec<Endpoint>,
}

/// One place that serves a Service's port.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    /// Canonical.
    pub ip: IpAddr,
    /// The target port, resolved to a number.
    pub port: u16,
    /// The pod behind the address, where we know one.
    pub workload: Option<Arc<Workload>>,
}

impl ServicePort {
    /// The endpoints that a client of this address's family can reach.
    pub fn endpoints_of_family(&self, ip: IpAddr) -> impl Iterator<Item = &Endpoint> {
        self.endpoints.iter().filter(move |endpoint| endpoint.ip.is_ipv4() == ip.is_ipv4())
    }
}

impl Service {
    /// The port that clients dial, if the Service has it.
    pub fn port(&self, port: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|candidate| candidate.port == port)
    }
}
