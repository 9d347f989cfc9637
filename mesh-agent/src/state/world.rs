//! What discovery hands over: every object, translated one by one, not yet joined.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::Workload;
use crate::policy::PolicySet;

/// The whole cluster, as far as the mesh cares.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// Pods that run or will, with at least one IP.
    pub workloads: Vec<Workload>,
    /// Services, with and without selector and cluster IP.
    pub services: Vec<ServiceSpec>,
    /// Policy objects, also those that could not be read.
    pub policies: PolicySet,
}

/// A Service before its endpoints are known.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceSpec {
    /// metadata.namespace
    pub namespace: Arc<str>,
    /// metadata.name
    pub name: Arc<str>,
    /// spec.clusterIPs without "None", canonical.
    pub cluster_ips: Vec<IpAddr>,
    /// spec.selector; None or empty when something else lists the endpoints.
    pub selector: Option<BTreeMap<String, String>>,
    /// spec.ports, TCP only.
    pub ports: Vec<PortSpec>,
    /// Where the endpoints come from.
    pub backends: Backends,
}

/// One TCP port of a Service.
#[derive(Clone, Debug, PartialEq)]
pub struct PortSpec {
    /// Empty when unnamed.
    pub name: Arc<str>,
    /// What clients dial.
    pub port: u16,
    /// What pods listen on.
    pub target: TargetPort,
}

/// A target port, by number or by the name that each pod gives it.
#[derive(Clone, Debug, PartialEq)]
pub enum TargetPort {
    /// The same on every pod.
    Number(u16),
    /// The container port of this name, pod by pod.
    Name(String),
}

/// Where a Service's endpoints come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Backends {
    /// EndpointSlices list them.
    Listed(Vec<Backend>),
    /// There are no EndpointSlices: the pods that the selector selects, by their own readiness.
    Selected,
}

/// One address and port of an EndpointSlice.
#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    /// Canonical.
    pub ip: IpAddr,
    /// The Service port that this serves, by name.
    pub port_name: Arc<str>,
    /// The target port, already resolved.
    pub port: u16,
    /// conditions.ready; absent means ready.
    pub ready: bool,
}
