//! Service.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{FieldPath, Item, Problem, is_tcp, parse_ip, port_number};
use crate::discovery::object::Key;
use crate::state::{Backends, PortSpec, ServiceSpec, TargetPort};

/// A Service counts by its TCP ports; ExternalName is a matter of DNS alone.
pub fn service(service: &Service, key: &Key) -> Result<Item, Problem> {
    let nothing = k8s_openapi::api::core::v1::ServiceSpec::default();
    let spec = service.spec.as_ref().unwrap_or(&nothing);
    let ports = spec.ports.as_deref().unwrap_or_default().iter().enumerate();
    let tcp = ports.filter(|(_, port)| is_tcp(port.protocol.as_deref()));
    let ports = tcp.map(|(index, port)| service_port(port, &FieldPath::of("spec.ports").index(index)));
    let external_name = spec.type_.as_deref() == Some("ExternalName");
    Ok(Item::Service(ServiceSpec {
        namespace: key.namespace.as_str().into(),
        name: key.name.as_str().into(),
        cluster_ips: if external_name { Vec::new() } else { cluster_ips(spec)? },
        selector: spec.selector.clone().filter(|_| !external_name),
        ports: ports.collect::<Result<_, _>>()?,
        backends: Backends::Selected,
    }))
}

fn cluster_ips(spec: &k8s_openapi::api::core::v1::ServiceSpec) -> Result<Vec<IpAddr>, Problem> {
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

fn service_port(port: &ServicePort, path: &FieldPath) -> Result<PortSpec, Problem> {
    let number = port_number(port.port, || path.key("port"))?;
    let target = match &port.target_port {
        None => TargetPort::Number(number),
        // An API server stores 0 for "the same as port".
        Some(IntOrString::Int(0)) => TargetPort::Number(number),
        Some(IntOrString::Int(target)) => TargetPort::Number(port_number(*target, || path.key("targetPort"))?),
        Some(IntOrString::String(name)) => TargetPort::Name(name.clone()),
    };
    Ok(PortSpec { name: port.name.as_deref().unwrap_or_default().into(), port: number, target })
}
