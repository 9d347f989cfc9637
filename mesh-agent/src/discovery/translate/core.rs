//! Namespace and Pod.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{ContainerPort, Namespace, Pod, PodSpec, PodStatus};

use super::{Effect, FieldPath, Item, Problem, Taken, exclusions, is_tcp, mesh_label, parse_ip, port_number, probes};
use crate::discovery::object::Key;
use crate::spiffe::SpiffeId;
use crate::state::{HostPort, Workload};

/// A namespace counts by its label.
pub fn namespace(namespace: &Namespace) -> Result<Item, Problem> {
    Ok(Item::Namespace { mesh: mesh_label(namespace.metadata.labels.as_ref())? })
}

/// A pod counts once it is on a node, until it has ended; while it has no IP only there, where its sandbox may be known.
pub fn pod(pod: &Pod, key: &Key, trust_domain: &str) -> Result<Taken, Problem> {
    let nothing_yet = PodStatus::default();
    let status = pod.status.as_ref().unwrap_or(&nothing_yet);
    let ips = pod_ips(status)?;
    let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    let Some(spec) = pod.spec.as_ref().filter(|spec| !ended && (!ips.is_empty() || is_placed(spec))) else {
        return Ok(Taken::default());
    };
    let metadata = &pod.metadata;
    let Some(uid) = metadata.uid.as_deref().filter(|uid| !uid.is_empty()) else {
        return Err(Problem::new(FieldPath::of("metadata.uid"), "missing: the pod's cgroup is found by it"));
    };
    let account = spec.service_account_name.as_deref().filter(|name| !name.is_empty()).unwrap_or("default");
    let identity = SpiffeId::new(trust_domain, &key.namespace, account)
        .map_err(|error| Problem::new(FieldPath::of("spec.serviceAccountName"), error.to_string()))?;
    let refusal = refusal(spec);
    let mut problems = Vec::new();
    let workload = Workload {
        uid: uid.into(),
        name: key.name.as_str().into(),
        namespace: key.namespace.as_str().into(),
        node: spec.node_name.as_deref().unwrap_or_default().into(),
        identity,
        ips,
        labels: metadata.labels.clone().unwrap_or_default(),
        named_ports: named_ports(spec)?,
        host_ips: host_ips(status)?,
        host_ports: host_ports(spec)?,
        exclusions: exclusions::read(metadata.annotations.as_ref(), &mut problems),
        probe_ports: probes::ports(spec),
        forwards: forwards(metadata.annotations.as_ref(), &mut problems),
        enrolled: refusal.is_none(),
        refusal,
        host_network: spec.host_network == Some(true),
        ready: is_ready(status),
        terminating: metadata.deletion_timestamp.is_some(),
        created: metadata.creation_timestamp.as_ref().map(|time| time.0.as_second()),
    };
    let item = Item::Pod { workload: workload.into(), mesh: mesh_label(metadata.labels.as_ref())? };
    let effect = |problem: &Problem| match problem.field.to_string().contains(FORWARDED) {
        true => Effect::ClaimsDropped,
        false => Effect::ExcludesNothing,
    };
    let problems = problems.into_iter().map(|problem| (effect(&problem), problem)).collect();
    Ok(Taken { item: Some(item), problems })
}

fn is_placed(spec: &PodSpec) -> bool {
    spec.node_name.as_deref().is_some_and(|node| !node.is_empty())
}

/// The annotation by which a pod's owner answers for what its requests say of where they come from.
const FORWARDED: &str = "nodemesh.dev/forwarded";

/// Whether a pod's requests keep what they say of where they come from. What cannot be read says no.
fn forwards(annotations: Option<&BTreeMap<String, String>>, problems: &mut Vec<Problem>) -> bool {
    match annotations.and_then(|annotations| annotations.get(FORWARDED)).map(String::as_str) {
        Some("append") => true,
        Some(other) => {
            let field = FieldPath::of("metadata.annotations").key(FORWARDED);
            problems.push(Problem::new(field, format!("{other:?} is not known; append is")));
            false
        }
        None => false,
    }
}

fn pod_ips(status: &PodStatus) -> Result<Vec<IpAddr>, Problem> {
    let list = status.pod_ips.as_deref().unwrap_or_default();
    if let (true, Some(ip)) = (list.is_empty(), &status.pod_ip) {
        return Ok(vec![parse_ip(ip, || FieldPath::of("status.podIP"))?]);
    }
    let at = |index| FieldPath::of("status.podIPs").index(index).key("ip");
    list.iter().enumerate().map(|(index, ip)| parse_ip(&ip.ip, || at(index))).collect()
}

fn host_ips(status: &PodStatus) -> Result<Vec<IpAddr>, Problem> {
    let list = status.host_ips.as_deref().unwrap_or_default();
    if let (true, Some(ip)) = (list.is_empty(), &status.host_ip) {
        return Ok(vec![parse_ip(ip, || FieldPath::of("status.hostIP"))?]);
    }
    let at = |index| FieldPath::of("status.hostIPs").index(index).key("ip");
    list.iter().enumerate().map(|(index, host)| parse_ip(&host.ip, || at(index))).collect()
}

/// Why a pod cannot be in the mesh, whatever its labels say.
fn refusal(spec: &PodSpec) -> Option<&'static str> {
    let runtime = spec.runtime_class_name.as_deref().unwrap_or_default();
    if spec.host_network == Some(true) {
        Some("hostNetwork: the pod has no network namespace of its own")
    } else if spec.os.as_ref().is_some_and(|os| os.name == "windows") {
        Some("a Windows pod: there is no eBPF for it")
    } else if runtime.contains("gvisor") || runtime.contains("runsc") {
        Some("gVisor: its sockets are not the kernel's")
    } else if runtime.contains("kata") {
        Some("Kata: its sockets are in a virtual machine")
    } else {
        None
    }
}

/// Named TCP ports; the first of a name counts.
fn named_ports(spec: &PodSpec) -> Result<BTreeMap<String, u16>, Problem> {
    let mut named = BTreeMap::new();
    for (path, port) in container_ports(spec) {
        let number = port_number(port.container_port, || path.key("containerPort"))?;
        if let (true, Some(name)) = (is_tcp(port.protocol.as_deref()), &port.name) {
            named.entry(name.clone()).or_insert(number);
        }
    }
    Ok(named)
}

/// TCP ports of the node. A pod of the host network states them too, and holds them by itself.
fn host_ports(spec: &PodSpec) -> Result<Vec<HostPort>, Problem> {
    let mut host_ports = Vec::new();
    for (path, port) in container_ports(spec) {
        let Some(number) = port.host_port.filter(|number| *number != 0) else { continue };
        if spec.host_network == Some(true) || !is_tcp(port.protocol.as_deref()) {
            continue;
        }
        let ip = port.host_ip.as_deref().filter(|ip| !ip.is_empty());
        let ip = ip.map(|ip| parse_ip(ip, || path.key("hostIP"))).transpose()?;
        host_ports.push(HostPort {
            ip,
            port: port_number(number, || path.key("hostPort"))?,
            target: port_number(port.container_port, || path.key("containerPort"))?,
        });
    }
    Ok(host_ports)
}

/// The ports of containers, and of init containers that keep running.
fn container_ports(spec: &PodSpec) -> impl Iterator<Item = (FieldPath, &ContainerPort)> {
    let init = spec.init_containers.as_deref().unwrap_or_default().iter().enumerate();
    let sidecars = init.filter(|(_, container)| container.restart_policy.as_deref() == Some("Always"));
    let sidecars = sidecars.map(|(index, container)| (FieldPath::of("spec.initContainers").index(index), container));
    let containers = spec.containers.iter().enumerate();
    let containers = containers.map(|(index, container)| (FieldPath::of("spec.containers").index(index), container));
    containers.chain(sidecars).flat_map(|(path, container)| {
        let ports = container.ports.as_deref().unwrap_or_default().iter().enumerate();
        ports.map(move |(index, port)| (path.key("ports").index(index), port))
    })
}

/// The Ready condition; a pod that states none (written by hand) is ready while it runs.
fn is_ready(status: &PodStatus) -> bool {
    let conditions = status.conditions.as_deref().unwrap_or_default();
    match conditions.iter().find(|condition| condition.type_ == "Ready") {
        Some(condition) => condition.status == "True",
        None => matches!(status.phase.as_deref(), None | Some("Running")),
    }
}
