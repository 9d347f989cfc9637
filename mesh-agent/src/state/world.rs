//! What discovery hands over: every object, translated one by one, not yet joined.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::Serialize;

use super::{ReferenceGrant, RouteSpec, Workload};
use crate::policy::PolicySet;

/// The whole cluster, as far as the mesh cares.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// Pods that run or will, with at least one IP.
    pub workloads: Vec<Workload>,
    /// Services, with and without selector and cluster IP.
    pub services: Vec<ServiceSpec>,
    /// Nodes, as far as their objects are to be had.
    pub nodes: Vec<Node>,
    /// Routes.
    pub routes: Vec<RouteSpec>,
    /// What ReferenceGrants say, with namespace and name.
    pub grants: Vec<(Arc<str>, Arc<str>, ReferenceGrant)>,
    /// Policy objects, also those that could not be read.
    pub policies: PolicySet,
}

/// A machine that runs pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// metadata.name
    pub name: Arc<str>,
    /// status.addresses of the types InternalIP and ExternalIP, canonical.
    pub ips: Vec<IpAddr>,
    /// status.daemonEndpoints.kubeletEndpoint.Port
    pub kubelet_port: Option<u16>,
    /// The label topology.kubernetes.io/zone; empty without.
    pub zone: Arc<str>,
}

/// A Service before its endpoints are known.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServiceSpec {
    /// metadata.namespace
    pub namespace: Arc<str>,
    /// metadata.name
    pub name: Arc<str>,
    /// spec.clusterIPs without "None", canonical.
    pub cluster_ips: Vec<IpAddr>,
    /// Addresses that lead to it besides.
    pub external: ExternalAddresses,
    /// spec.selector; None or empty when something else lists the endpoints.
    pub selector: Option<BTreeMap<String, String>>,
    /// spec.ports, TCP only.
    pub ports: Vec<PortSpec>,
    /// Which of its endpoints a client gets.
    pub traffic: Traffic,
    /// Where the endpoints come from.
    pub backends: Backends,
}

/// Where a Service is reached besides its cluster IPs, at the same ports. Node ports are with the ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExternalAddresses {
    /// spec.externalIPs, canonical.
    pub ips: Vec<IpAddr>,
    /// status.loadBalancer.ingress[].ip, canonical, without those of ipMode Proxy: these stay the load balancer's.
    pub load_balancer_ips: Vec<IpAddr>,
    /// spec.loadBalancerSourceRanges: who may use the load balancer's IPs; a family that has none is open.
    pub source_ranges: Vec<IpNet>,
}

/// Which of a Service's endpoints a client gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// spec.internalTrafficPolicy
    pub internal: InternalTraffic,
    /// spec.trafficDistribution. Looked at only where no EndpointSlice brings hints of its own.
    pub distribution: Distribution,
    /// spec.sessionAffinity
    pub affinity: Affinity,
    /// spec.publishNotReadyAddresses. Looked at only where no EndpointSlice says what is ready.
    pub publish_not_ready: bool,
}

/// Where the endpoints behind a cluster IP may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InternalTraffic {
    /// Anywhere.
    #[default]
    Cluster,
    /// On the client's node, and nowhere else.
    Local,
}

/// Which endpoints are preferred, as long as there are any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Distribution {
    /// All alike.
    #[default]
    Even,
    /// Those in the client's zone: PreferSameZone, and PreferClose, its old name.
    SameZone,
    /// Those on the client's node, then those in its zone.
    SameNode,
}

/// Whether a client comes to the same endpoint again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Affinity {
    /// Any endpoint.
    #[default]
    None,
    /// The same one by the client's IP.
    ClientIp,
}

/// One TCP port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSpec {
    /// Empty when unnamed.
    pub name: Arc<str>,
    /// What clients dial.
    pub port: u16,
    /// What pods listen on.
    pub target: TargetPort,
    /// The port of every node that leads here too.
    pub node_port: Option<u16>,
    /// What is spoken there, as far as the Service says.
    pub protocol: AppProtocol,
}

/// What is spoken on a Service's port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum AppProtocol {
    /// Nothing that the mesh looks at.
    #[default]
    Bytes,
    /// HTTP/1.1. A client that begins HTTP/2 with prior knowledge is understood too.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// gRPC: HTTP/2 with prior knowledge.
    Grpc,
}

impl AppProtocol {
    /// What a Service says of a port: by its appProtocol where it has one, whatever that is; else by the port's name.
    /// What is not known is bytes, and never waited for.
    pub fn of(app_protocol: Option<&str>, port_name: &str) -> Self {
        match app_protocol {
            Some("http" | "kubernetes.io/ws") => AppProtocol::Http1,
            Some("kubernetes.io/h2c") => AppProtocol::Http2,
            Some("grpc") => AppProtocol::Grpc,
            Some(_) => AppProtocol::Bytes,
            None => match port_name.split_once('-').map_or(port_name, |(prefix, _)| prefix) {
                "http" => AppProtocol::Http1,
                "http2" => AppProtocol::Http2,
                "grpc" => AppProtocol::Grpc,
                _ => AppProtocol::Bytes,
            },
        }
    }
}

/// A target port, by number or by the name that each pod gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// The same on every pod.
    Number(u16),
    /// The container port of this name, pod by pod.
    Name(String),
}

/// Where a Service's endpoints come from.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Backends {
    /// EndpointSlices list them.
    Listed(Vec<Backend>),
    /// There are no EndpointSlices: the pods that the selector selects, by their own readiness.
    #[default]
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
    /// conditions.serving; absent means serving.
    pub serving: bool,
    /// conditions.terminating; absent means staying.
    pub terminating: bool,
    /// nodeName; empty when not told.
    pub node: Arc<str>,
    /// Who should prefer it.
    pub hints: Hints,
}

/// Which clients an endpoint is meant for; nobody in particular when empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// hints.forZones[].name
    pub zones: Vec<Arc<str>>,
    /// hints.forNodes[].name
    pub nodes: Vec<Arc<str>>,
}

impl Backend {
    /// A ready endpoint of an unnamed port, on no node in particular.
    pub fn ready(ip: IpAddr, port: u16) -> Self {
        Self {
            ip,
            port_name: "".into(),
            port,
            ready: true,
            serving: true,
            terminating: false,
            node: "".into(),
            hints: Hints::default(),
        }
    }
}
