//! The ports that kubelet may dial in a pod: those of its probes and lifecycle hooks.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, HTTPGetAction, LifecycleHandler, PodSpec, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// Liveness, readiness and startup by HTTP, TCP and gRPC, and hooks by HTTP; of init containers too, which may be
/// sidecars. What names another host is not dialled at the pod. A port that cannot be resolved is none: kubelet cannot
/// resolve it either, and says so in the pod's events.
pub(super) fn ports(spec: &PodSpec) -> BTreeSet<u16> {
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    containers.flat_map(of_container).collect()
}

fn of_container(container: &Container) -> impl Iterator<Item = u16> {
    let probes = [&container.liveness_probe, &container.readiness_probe, &container.startup_probe];
    let probed = probes.into_iter().flatten().flat_map(|probe| of_probe(probe, container));
    let hooks = container.lifecycle.iter().flat_map(|hooks| [&hooks.post_start, &hooks.pre_stop]).flatten();
    probed.chain(hooks.filter_map(|hook| of_hook(hook, container)))
}

fn of_probe<'a>(probe: &'a Probe, container: &'a Container) -> impl Iterator<Item = u16> + 'a {
    let http = probe.http_get.as_ref().and_then(|http| of_http(http, container));
    let tcp = probe.tcp_socket.as_ref().filter(|tcp| is_pods(tcp.host.as_deref()));
    let tcp = tcp.and_then(|tcp| resolve(&tcp.port, container));
    let grpc = probe.grpc.as_ref().and_then(|grpc| number(grpc.port));
    http.into_iter().chain(tcp).chain(grpc)
}

/// Hooks know HTTP alone: the API takes a TCP hook, and kubelet never carries it out.
fn of_hook(hook: &LifecycleHandler, container: &Container) -> Option<u16> {
    of_http(hook.http_get.as_ref()?, container)
}

fn of_http(http: &HTTPGetAction, container: &Container) -> Option<u16> {
    if is_pods(http.host.as_deref()) { resolve(&http.port, container) } else { None }
}

/// Without a host the pod's own address is dialled.
fn is_pods(host: Option<&str>) -> bool {
    host.unwrap_or_default().is_empty()
}

/// As kubelet does: a name is one of the same container's ports, else a number that is written as a text.
fn resolve(port: &IntOrString, container: &Container) -> Option<u16> {
    match port {
        IntOrString::Int(port) => number(*port),
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|port| port.name.as_deref() == Some(name));
            named.map_or_else(|| name.parse().ok().and_then(number), |port| number(port.container_port))
        }
    }
}

fn number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declared(spec: &str) -> Vec<u16> {
        let spec: PodSpec = serde_saphyr::from_str(spec).unwrap();
        ports(&spec).into_iter().collect()
    }

    #[test]
    fn what_kubelet_may_dial() {
        let table: [(&str, &str, &[u16]); 12] = [
            ("nothing", "containers: [{name: a, ports: [{containerPort: 80}]}]", &[]),
            ("http", "containers: [{name: a, livenessProbe: {httpGet: {port: 8080}}}]", &[8080]),
            ("tcp", "containers: [{name: a, readinessProbe: {tcpSocket: {port: 5432}}}]", &[5432]),
            ("grpc", "containers: [{name: a, startupProbe: {grpc: {port: 9000}}}]", &[9000]),
            ("exec", "containers: [{name: a, livenessProbe: {exec: {command: [x]}}}]", &[]),
            (
                "by name",
                "containers: [{name: a, ports: [{name: web, containerPort: 8080}], livenessProbe: {httpGet: {port: web}}}]",
                &[8080],
            ),
            ("a number as a text", "containers: [{name: a, livenessProbe: {httpGet: {port: '81'}}}]", &[81]),
            (
                "another container's name",
                "containers: [{name: a, livenessProbe: {tcpSocket: {port: web}}}, {name: b, ports: [{name: web, containerPort: 1}]}]",
                &[],
            ),
            (
                "hooks",
                "containers: [{name: a, lifecycle: {postStart: {httpGet: {port: 1}}, preStop: {httpGet: {port: 2}}}}]",
                &[1, 2],
            ),
            ("a hook by TCP", "containers: [{name: a, lifecycle: {preStop: {tcpSocket: {port: 2}}}}]", &[]),
            (
                "another host",
                "containers: [{name: a, livenessProbe: {httpGet: {port: 1, host: example.org}}, readinessProbe: {tcpSocket: {port: 2, host: ''}}}]",
                &[2],
            ),
            (
                "a sidecar, and no ports",
                "{containers: [{name: a, livenessProbe: {httpGet: {port: 0}}, readinessProbe: {httpGet: {port: 70000}}}], initContainers: [{name: b, restartPolicy: Always, startupProbe: {tcpSocket: {port: 15021}}}]}",
                &[15021],
            ),
        ];
        for (what, spec, expected) in table {
            assert_eq!(declared(spec), expected, "{what}");
        }
    }
}
