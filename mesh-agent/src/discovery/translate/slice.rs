//! EndpointSlice.

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointHints, EndpointSlice};

use super::{FieldPath, Item, Problem, is_tcp, parse_ip, port_number};
use crate::discovery::object::Key;
use crate::state::{Backend, Hints};

const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// A slice counts when it belongs to a Service and holds IPs.
pub fn endpoint_slice(slice: &EndpointSlice, key: &Key) -> Result<Option<Item>, Problem> {
    let labels = slice.metadata.labels.as_ref();
    let Some(service) = labels.and_then(|labels| labels.get(SERVICE_NAME_LABEL)) else {
        return Ok(None);
    };
    if slice.address_type == "FQDN" {
        tracing::debug!(slice = %key.object(), "an EndpointSlice of names is not used");
        return Ok(None);
    }
    let mut backends = Vec::new();
    for (index, port) in slice.ports.as_deref().unwrap_or_default().iter().enumerate() {
        let (true, Some(number)) = (is_tcp(port.protocol.as_deref()), port.port) else { continue };
        let number = port_number(number, || FieldPath::of("ports").index(index).key("port"))?;
        for (index, endpoint) in slice.endpoints.iter().flatten().enumerate() {
            let name = port.name.as_deref().unwrap_or_default();
            backends.extend(slice_backend(endpoint, index, name, number)?);
        }
    }
    Ok(Some(Item::EndpointSlice { service: service.as_str().into(), backends: backends.into() }))
}

/// The addresses of one endpoint are all the same place: clients use the first.
fn slice_backend(endpoint: &Endpoint, index: usize, name: &str, port: u16) -> Result<Option<Backend>, Problem> {
    let Some(address) = endpoint.addresses.first() else { return Ok(None) };
    let ip = parse_ip(address, || FieldPath::of("endpoints").index(index).key("addresses").index(0))?;
    let conditions = endpoint.conditions.clone().unwrap_or_default();
    Ok(Some(Backend {
        ip,
        port_name: name.into(),
        port,
        ready: conditions.ready != Some(false),
        serving: conditions.serving != Some(false),
        terminating: conditions.terminating == Some(true),
        node: endpoint.node_name.as_deref().unwrap_or_default().into(),
        hints: endpoint.hints.as_ref().map(hints).unwrap_or_default(),
    }))
}

fn hints(hints: &EndpointHints) -> Hints {
    let zones = hints.for_zones.iter().flatten().map(|zone| zone.name.as_str().into());
    let nodes = hints.for_nodes.iter().flatten().map(|node| node.name.as_str().into());
    Hints { zones: zones.collect(), nodes: nodes.collect() }
}
