//! Kubelet's probes of pods that let no stranger in.

use anyhow::ensure;
use xtask::testbed::eventually;

use crate::support::{ENABLED, PATIENCE, STRICT, in_cluster};

/// The conformance suite's server speaks everything that kubelet asks. It may take a while to start, and a busy machine to
/// answer: kubelet's own second is not what this is about.
const PROBED: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: probed, labels: {app: probed}}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: registry.k8s.io/gateway-api/echo-advanced:v1.5.1
    args: [--port=8080, --tcp=9090, --grpc=7070, --crt=/cert.crt, --key=/cert.key]
    ports: [{name: web, containerPort: 8080}]
    startupProbe: {tcpSocket: {port: 9090}, periodSeconds: 1, timeoutSeconds: 5, failureThreshold: 60}
    readinessProbe: {httpGet: {port: web, path: /}, periodSeconds: 1, timeoutSeconds: 5, failureThreshold: 1}
    livenessProbe: {grpc: {port: 7070}, periodSeconds: 1, timeoutSeconds: 5, failureThreshold: 3}
  - name: aside
    image: localhost/tools:1
    readinessProbe: {exec: {command: ["true"]}, periodSeconds: 1, timeoutSeconds: 10}
"#;

#[test]
fn kubelet_probes_pods_that_are_strict() {
    in_cluster("kubelet_probes_pods_that_are_strict", |kube| {
        let namespace = kube.namespace("probed", ENABLED)?;
        namespace.apply(STRICT)?;
        namespace.apply(PROBED)?;
        namespace.wait_ready()?;
        // It stays so, and nobody restarts it.
        std::thread::sleep(std::time::Duration::from_secs(20));
        let ready = namespace.field("pod/probed", ".status.conditions[?(@.type=='Ready')].status")?;
        let restarts = namespace.field("pod/probed", ".status.containerStatuses[*].restartCount")?;
        ensure!((ready.as_str(), restarts.as_str()) == ("True", "0 0"), "ready {ready}, restarts {restarts}");
        // Whoever is on the node and is not kubelet is a stranger to it.
        let ip = namespace.field("pod/probed", ".status.podIP")?;
        eventually(PATIENCE, "a root shell on the node to be refused", || {
            let url = format!("http://{ip}:8080/");
            let argv = ["curl", "-sS", "--max-time", "5", &url];
            let output = xtask::cluster::node::command("n1", &kube.parts, &argv)?.output()?;
            Ok((!output.status.success()).then_some(()))
        })
    });
}
