//! What is told of a connection that the kernel refused or dropped: the program's word for it, and whose it was.

use std::net::SocketAddr;

use mesh_common::outcome::Outcome;

use super::record;
use crate::addr::ClientAddr;
use crate::podnet::KernelRefusal;
use crate::state::{Destination, MeshState, Workload};
use crate::telemetry::{ConnectionRecord, ConnectionResult, Direction};

/// What a refusal is told as. None: no connection was refused by it.
///
/// The pod at which it was refused is known by its namespace or its link, so its identity is told. Whoever else an address
/// leads to is named as a caller without an identity: nobody has proved anything.
pub fn record(world: &MeshState, refusal: &KernelRefusal) -> Option<ConnectionRecord> {
    let KernelRefusal { outcome, pod, source, destination } = refusal;
    let (direction, is_forged) = kind(*outcome, pod.as_deref(), *destination)?;
    let by_address = |address: &SocketAddr| world.workload_by_ip(address.ip()).map(|pod| &**pod);
    let is_outbound = direction == Direction::Outbound;
    let from = if is_outbound { pod.as_deref() } else { None };
    let named = from.or_else(|| by_address(source).filter(|_| !is_forged));
    let client =
        from.filter(|_| source.ip().is_unspecified()).and_then(|pod| own(pod, *destination)).unwrap_or(*source);
    let mut record = ConnectionRecord {
        source_pod: named.map(record::name),
        source_identity: from.map(|pod| pod.identity.clone()),
        result: ConnectionResult::Refused { reason: outcome.name() },
        ..record::blank(direction, ClientAddr::new(client))
    };
    match world.destination(*destination, client.ip()) {
        Destination::Service { service, .. } => record.service = Some(record::service_name(service)),
        Destination::Pod { workload, .. } => {
            record.destination_pod = Some(record::name(workload));
            record.destination_identity = Some(workload.identity.clone());
        }
        _ => {}
    }
    // connect() says what the application asked for; the others what was on the way.
    let asked = if source.ip().is_unspecified() { &mut record.dialled } else { &mut record.server };
    *asked = Some(*destination);
    Some(record)
}

/// Which way it was to go, and whether its source is a lie.
fn kind(outcome: Outcome, pod: Option<&Workload>, destination: SocketAddr) -> Option<(Direction, bool)> {
    match outcome {
        // Segments of connections that are over: nobody was refused.
        Outcome::LookupLate => None,
        Outcome::LookupNotLo | Outcome::LookupForged | Outcome::GuardForged => Some((Direction::Inbound, true)),
        Outcome::LookupNoListener | Outcome::LookupAssign | Outcome::GuardForwarded => {
            Some((Direction::Inbound, false))
        }
        // Either way: towards the pod whose address it asks for.
        Outcome::GuardFragment | Outcome::GuardMalformed | Outcome::GuardUnknownPod => {
            let is_to_pod = pod.is_some_and(|pod| pod.ips.contains(&destination.ip()));
            Some((if is_to_pod { Direction::Inbound } else { Direction::Outbound }, false))
        }
        // What a pod dialled, and SYNs of its own.
        _ => Some((Direction::Outbound, false)),
    }
}

/// The pod's own address of that family.
fn own(pod: &Workload, destination: SocketAddr) -> Option<SocketAddr> {
    let ip = pod.ips.iter().find(|ip| ip.is_ipv4() == destination.ip().to_canonical().is_ipv4())?;
    Some(SocketAddr::new(*ip, 0))
}

#[cfg(test)]
mod tests {
    use super::super::straight::tests::{pod, world};
    use super::*;

    /// At whom it was met, from where, for whom; then who is told as the caller (pod, identity), whom it was for, which way.
    #[test]
    fn a_refusal_names_whom_it_met() {
        let world = MeshState::build(1, "node", &world(vec![], vec![]));
        let client = || Some(pod("client", "10.0.0.1", "node", true).into());
        let near = || Some(pod("near", "10.0.0.2", "node", true).into());
        const NOBODY: &str = "0.0.0.0:0";
        const CLIENT: (Option<&str>, bool) = (Some("shop/client"), true);
        let table = [
            // connect() to a Service, to a pod, to nobody that is known.
            (Outcome::ConnectNoEndpoint, client(), NOBODY, "10.96.0.1:80", CLIENT, "service shop/one", "outbound"),
            (Outcome::ConnectNotReady, client(), NOBODY, "10.0.0.2:8080", CLIENT, "pod shop/near", "outbound"),
            (Outcome::ConnectRange, client(), NOBODY, "127.64.0.1:1", CLIENT, "-", "outbound"),
            // A SYN of the pod's own: its link says whose it is, whatever address it claims.
            (Outcome::GuardSynUnfiled, client(), "10.0.0.1:9", "10.0.0.2:8080", CLIENT, "pod shop/near", "outbound"),
            (Outcome::GuardSynUnfiled, client(), "10.0.0.2:9", "192.0.2.1:80", CLIENT, "-", "outbound"),
            // What comes for a pod: an address proves nothing, and one that is forged names nobody.
            (
                Outcome::LookupNoListener,
                None,
                "10.0.0.1:9",
                "10.0.0.2:8080",
                (Some("shop/client"), false),
                "pod shop/near",
                "inbound",
            ),
            (Outcome::GuardForged, near(), "10.0.0.1:9", "10.0.0.2:8080", (None, false), "pod shop/near", "inbound"),
            (Outcome::GuardFragment, near(), "192.0.2.1:9", "10.0.0.2:8080", (None, false), "pod shop/near", "inbound"),
            (Outcome::GuardFragment, client(), "10.0.0.1:9", "10.0.0.2:8080", CLIENT, "pod shop/near", "outbound"),
        ];
        for (outcome, pod, source, destination, (caller, is_proved), whom, direction) in table {
            let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
            let told = record(&world, &KernelRefusal { outcome, pod, source, destination }).unwrap();
            let name = outcome.name();
            assert_eq!((told.source_pod.as_deref(), told.source_identity.is_some()), (caller, is_proved), "{name}");
            let found = match (&told.service, &told.destination_pod) {
                (Some(service), _) => format!("service {service}"),
                (None, Some(pod)) => format!("pod {pod}"),
                (None, None) => "-".to_string(),
            };
            assert_eq!((&*found, told.direction.name()), (whom, direction), "{name}");
            assert_eq!((told.result.name(), told.result.reason()), ("refused", Some(name)));
            assert_eq!(told.dialled.or(told.server), Some(destination), "{name}");
        }
        let late = KernelRefusal {
            outcome: Outcome::LookupLate,
            pod: None,
            source: "127.128.0.1:1".parse().unwrap(),
            destination: "10.0.0.1:1".parse().unwrap(),
        };
        assert!(record(&world, &late).is_none(), "the end of a connection is no refusal");
    }
}
