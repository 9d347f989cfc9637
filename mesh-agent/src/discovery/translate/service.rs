//! Service.
//!
//! externalTrafficPolicy is not read: it is about clients outside the cluster. Neither is the timeout of sessionAffinity:
//! see `routing::affinity`.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{LoadBalancerIngress, Service, ServicePort, ServiceSpec, ServiceStatus};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{FieldPath, Item, Problem, is_tcp, parse_ip, port_number};
use crate::discovery::object::Key;
use crate::state::{
    self, Affinity, AppProtocol, Backends, Distribution, ExternalAddresses, InternalTraffic, PortSpec, TargetPort,
    Traffic,
};

/// A Service counts by its TCP ports. An ExternalName is a matter of DNS alone, and a headless Service leads to its
/// pods by their IPs: neither has an address of its own.
pub fn service(service: &Service, key: &Key) -> Result<Item, Problem> {
    let nothing = ServiceSpec::default();
    let spec = service.spec.as_ref().unwrap_or(&nothing);
    let ports = spec.ports.as_deref().unwrap_or_default().iter().enumerate();
    let tcp = ports.filter(|(_, port)| is_tcp(port.protocol.as_deref()));
    let ports = tcp.map(|(index, port)| service_port(port, &FieldPath::of("spec.ports").index(index)));
    let external_name = spec.type_.as_deref() == Some("ExternalName");
    let mut translated = state::ServiceSpec {
        namespace: key.namespace.as_str().into(),
        name: key.name.as_str().into(),
        cluster_ips: if external_name { Vec::new() } else { cluster_ips(spec)? },
        external: external(spec, service.status.as_ref())?,
        selector: spec.selector.clone().filter(|_| !external_name),
        ports: ports.collect::<Result<_, _>>()?,
        traffic: traffic(spec)?,
        backends: Backends::Selected,
    };
    if external_name || is_headless(spec) {
        translated.external = ExternalAddresses::default();
        translated.ports.iter_mut().for_each(|port| port.node_port = None);
    }
    Ok(Item::Service(translated.into()))
}

fn cluster_ips(spec: &ServiceSpec) -> Result<Vec<IpAddr>, Problem> {
    let list = spec.cluster_ips.as_deref().unwrap_or_default();
    if list.is_empty() {
        let one = spec.cluster_ip.iter().filter(|ip| is_address(ip));
        return one.map(|ip| parse_ip(ip, || FieldPath::of("spec.clusterIP"))).collect();
    }
    let addresses = list.iter().enumerate().filter(|(_, ip)| is_address(ip));
    addresses.map(|(index, ip)| parse_ip(ip, || FieldPath::of("spec.clusterIPs").index(index))).collect()
}

/// "None" is a headless Service; an empty text is one that has no address yet.
fn is_address(cluster_ip: &str) -> bool {
    !cluster_ip.is_empty() && cluster_ip != "None"
}

fn is_headless(spec: &ServiceSpec) -> bool {
    spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip).any(|ip| ip == "None")
}

fn external(spec: &ServiceSpec, status: Option<&ServiceStatus>) -> Result<ExternalAddresses, Problem> {
    let external_ips = spec.external_ips.iter().flatten().enumerate();
    let external_ips = external_ips.map(|(index, ip)| parse_ip(ip, || FieldPath::of("spec.externalIPs").index(index)));
    let balancer = status.and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.iter().flat_map(|balancer| balancer.ingress.iter().flatten()).enumerate();
    let ranges = spec.load_balancer_source_ranges.iter().flatten().enumerate();
    Ok(ExternalAddresses {
        ips: external_ips.collect::<Result<_, _>>()?,
        load_balancer_ips: ingress
            .filter_map(|(index, ingress)| load_balancer_ip(ingress, index).transpose())
            .collect::<Result<_, _>>()?,
        source_ranges: ranges.map(|(index, range)| source_range(range, index)).collect::<Result<_, _>>()?,
    })
}

/// None for a name, which DNS leads on, and for an IP that is to be dialled as it is (ipMode Proxy).
fn load_balancer_ip(ingress: &LoadBalancerIngress, index: usize) -> Result<Option<IpAddr>, Problem> {
    let Some(ip) = ingress.ip.as_deref().filter(|ip| !ip.is_empty()) else { return Ok(None) };
    if ingress.ip_mode.as_deref() == Some("Proxy") {
        return Ok(None);
    }
    parse_ip(ip, || FieldPath::of("status.loadBalancer.ingress").index(index).key("ip")).map(Some)
}

/// An API server lets spaces pass.
fn source_range(range: &str, index: usize) -> Result<IpNet, Problem> {
    let field = || FieldPath::of("spec.loadBalancerSourceRanges").index(index);
    range.trim().parse().map_err(|_| Problem::new(field(), format!("{range:?} is not a CIDR")))
}

fn traffic(spec: &ServiceSpec) -> Result<Traffic, Problem> {
    let unknown = |field, word: &str, known| {
        Err(Problem::new(FieldPath::of("spec").key(field), format!("{word:?} is not known: {known}")))
    };
    let internal = match spec.internal_traffic_policy.as_deref() {
        None | Some("" | "Cluster") => InternalTraffic::Cluster,
        Some("Local") => InternalTraffic::Local,
        Some(other) => return unknown("internalTrafficPolicy", other, "Cluster or Local"),
    };
    let affinity = match spec.session_affinity.as_deref() {
        None | Some("" | "None") => Affinity::None,
        Some("ClientIP") => Affinity::ClientIp,
        Some(other) => return unknown("sessionAffinity", other, "None or ClientIP"),
    };
    let distribution = match spec.traffic_distribution.as_deref() {
        Some("PreferClose" | "PreferSameZone") => Distribution::SameZone,
        Some("PreferSameNode") => Distribution::SameNode,
        // A preference only; one that is not known is none, as the API has it.
        None | Some(_) => Distribution::Even,
    };
    let publish_not_ready = spec.publish_not_ready_addresses == Some(true);
    Ok(Traffic { internal, distribution, affinity, publish_not_ready })
}

fn service_port(port: &ServicePort, path: &FieldPath) -> Result<PortSpec, Problem> {
    let number = port_number(port.port, || path.key("port"))?;
    let target = match &port.target_port {
        None => TargetPort::Number(number),
        // An API server stores 0 for "the same as port".
        Some(IntOrString::Int(0)) => TargetPort::Number(number),
        Some(IntOrString::Int(target)) => TargetPort::Number(port_number(*target, || path.key("targetPort"))?),
        Some(IntOrString::String(name)) => TargetPort::Name(name.clone()),
    };
    let node_port = port.node_port.filter(|node_port| *node_port != 0);
    let node_port = node_port.map(|node_port| port_number(node_port, || path.key("nodePort"))).transpose()?;
    let name = port.name.as_deref().unwrap_or_default();
    let protocol = AppProtocol::of(port.app_protocol.as_deref(), name);
    Ok(PortSpec { name: name.into(), port: number, target, node_port, protocol })
}
