//! Node.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Node, NodeAddress};

use super::{FieldPath, Item, Problem, parse_ip};
use crate::discovery::object::Key;
use crate::state;

const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// A node counts by its addresses, where node ports are dialled, by its zone, and by the port of its kubelet.
pub fn node(node: &Node, key: &Key) -> Result<Item, Problem> {
    let zone = node.metadata.labels.as_ref().and_then(|labels| labels.get(ZONE_LABEL));
    let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten()).enumerate();
    let ips = addresses.filter(|(_, address)| is_ip(address)).map(|(index, address)| ip(address, index));
    let node = state::Node {
        name: key.name.as_str().into(),
        ips: ips.collect::<Result<_, _>>()?,
        kubelet_port: kubelet_port(node),
        zone: zone.map(String::as_str).unwrap_or_default().into(),
    };
    Ok(Item::Node(node.into()))
}

/// Kubelet writes it there; 0 is what an object says that nobody filled in.
fn kubelet_port(node: &Node) -> Option<u16> {
    let endpoint = node.status.as_ref()?.daemon_endpoints.as_ref()?.kubelet_endpoint.as_ref()?;
    u16::try_from(endpoint.port).ok().filter(|port| *port != 0)
}

/// The other types are names.
fn is_ip(address: &NodeAddress) -> bool {
    matches!(address.type_.as_str(), "InternalIP" | "ExternalIP")
}

fn ip(address: &NodeAddress, index: usize) -> Result<IpAddr, Problem> {
    parse_ip(&address.address, || FieldPath::of("status.addresses").index(index).key("address"))
}
