//! EndpointSlice.

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use super::{FieldPath, Item, Problem, is_tcp, parse_ip, port_number};
use crate::discovery::object::Key;
use crate::state::Backend;

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
    Ok(Some(Item::EndpointSlice { service: service.as_str().into(), backends }))
}

/// The addresses of one endpoint are all the same place: clients use the first.
fn slice_backend(endpoint: &Endpoint, index: usize, name: &str, port: u16) -> Result<Option<Backend>, Problem> {
    let Some(address) = endpoint.addresses.first() else { return Ok(None) };
    let ip = parse_ip(address, || FieldPath::of("endpoints").index(index).key("addresses").index(0))?;
    let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) != Some(false);
    Ok(Some(Backend { ip, port_name: name.into(), port, ready }))
}
