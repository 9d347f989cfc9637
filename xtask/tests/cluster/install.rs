//! Ways to install the mesh that come to the same.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::testbed::eventually;

use crate::support::{Kube, PATIENCE, in_cluster};

/// Objects by kind, namespace and name, as kubectl reads them.
fn objects(kube: &Kube, yaml: &str) -> Result<BTreeMap<String, Value>> {
    let arguments = ["create", "--dry-run=client", "--validate=false", "-o", "json", "-f", "-"];
    let json = xtask::cluster::kubectl(&kube.parts, &arguments, Some(yaml))?;
    let mut objects = BTreeMap::new();
    for object in serde_json::Deserializer::from_str(&json).into_iter::<Value>() {
        let object = object.context("kubectl's JSON")?;
        let list = object.get("items").and_then(Value::as_array).cloned();
        for mut object in list.unwrap_or_else(|| vec![object]) {
            let word = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default().to_string();
            let name = format!("{} {}/{}", word("/kind"), word("/metadata/namespace"), word("/metadata/name"));
            // The namespace is Helm's to make, and CRDs are a folder of the chart, compared by another test.
            if !name.starts_with("Namespace ") && !name.starts_with("CustomResourceDefinition ") {
                if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                    metadata.remove("creationTimestamp");
                }
                objects.insert(name, object);
            }
        }
    }
    Ok(objects)
}

#[test]
fn helm_renders_what_the_manifests_say() {
    in_cluster("helm_renders_what_the_manifests_say", |kube| {
        same(kube, "base", &[])?;
        same(kube, "overlays/cni", &["--set=cni.enabled=true"])?;
        kube.apply(MONITORS)?;
        kube.apply(&MONITORS.replace("servicemonitor", "prometheusrule").replace("ServiceMonitor", "PrometheusRule"))?;
        // Kinds are known a while after they are defined.
        eventually(PATIENCE, "the operator's kinds to be served", || {
            let kinds = "servicemonitors.monitoring.coreos.com,prometheusrules.monitoring.coreos.com";
            kube.kubectl(&["get", kinds, "-A"]).map(Some)
        })?;
        same(kube, "overlays/monitoring", &["--set=serviceMonitor.enabled=true"])
    });
}

/// Enough of the Prometheus operator for its kind to be known; its other kind by that one's name.
const MONITORS: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: servicemonitors.monitoring.coreos.com}
spec:
  group: monitoring.coreos.com
  scope: Namespaced
  names: {kind: ServiceMonitor, plural: servicemonitors, singular: servicemonitor}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
";

#[test]
fn what_is_to_be_scraped_can_be() {
    in_cluster("what_is_to_be_scraped_can_be", |kube| {
        let prometheus = kube.strangers("prometheus")?;
        let folder = xtask::build::root().join("manifests/overlays/monitoring/monitoring.yaml");
        let text = std::fs::read_to_string(&folder)?;
        let service = text.split("\n---\n").next().unwrap_or_default();
        kube.apply(service)?;
        for url in ["http://nodemesh-agent.nodemesh-system:15020", "http://nodemesh-controller.nodemesh-system:15014"] {
            prometheus.eventually_answers("stranger", &format!("{url}/metrics"), "nodemesh_")?;
        }
        kube.kubectl(&["-n", "nodemesh-system", "delete", "service", "nodemesh-agent"]).map(drop)
    });
}

fn same(kube: &Kube, folder: &str, settings: &[&str]) -> Result<()> {
    let manifests = xtask::build::root().join("manifests");
    let base = kube.kubectl(&["kustomize", &manifests.join(folder).display().to_string()])?;
    let output = Command::new(kube.parts.program("helm"))
        .args(["template", "nodemesh"])
        .arg(manifests.join("helm/nodemesh"))
        .args(["--namespace", "nodemesh-system", "--kube-version", xtask::cluster::parts::KUBERNETES])
        .args(settings)
        .env("HOME", xtask::cluster::layout::work())
        .output()
        .context("starting helm")?;
    ensure!(output.status.success(), "helm: {}", String::from_utf8_lossy(&output.stderr));
    let (base, chart) = (objects(kube, &base)?, objects(kube, &String::from_utf8_lossy(&output.stdout))?);
    ensure!(base.len() > 10, "{} objects", base.len());
    let (names, others): (Vec<_>, Vec<_>) = (base.keys().collect(), chart.keys().collect());
    ensure!(names == others, "{folder}: {names:?}\n{others:?}");
    for (name, object) in &base {
        ensure!(chart.get(name) == Some(object), "{folder}, {name}: {object}\n{:?}", chart.get(name));
    }
    Ok(())
}

#[test]
fn check_says_what_a_node_offers() {
    in_cluster("check_says_what_a_node_offers", |kube| {
        let check = || -> Result<String> {
            let agent = kube.agent("n1")?;
            let arguments = ["-n", "nodemesh-system", "exec", &agent, "--", "/mesh-agent", "check"];
            let output =
                xtask::cluster::kubectl_command(&kube.parts, &arguments)?.output().context("starting kubectl")?;
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let said = check()?;
        ensure!(!said.contains("MISSING"), "the mesh runs here:\n{said}");
        ensure!(said.contains("(kubelet) in "), "kubelet is not named:\n{said}");
        kube.on_node("n1", "mkdir -p /sys/fs/bpf/nodemesh/v0/links")?;
        let said = check()?;
        kube.on_node("n1", "cd /sys/fs/bpf/nodemesh && rmdir v0/links v0")?;
        ensure!(said.contains("MISSING   no pins of another version: /sys/fs/bpf/nodemesh/v0 "), "{said}");
        Ok(())
    });
}

/// Verb, group, resource, subresource, name, namespace.
type Right = [&'static str; 6];

/// What both accounts are for; and what an account that was stolen must not be good for.
const BOTH_MAY: [Right; 3] = [
    ["list", "", "pods", "", "", ""],
    ["watch", "discovery.k8s.io", "endpointslices", "", "", ""],
    ["get", "nodemesh.dev", "authorizationpolicies", "", "", "default"],
];
const AGENTS_MAY: [Right; 2] = [
    ["patch", "", "pods", "status", "", "default"],
    ["get", "apps", "daemonsets", "", "nodemesh-agent", "nodemesh-system"],
];
const CONTROLLER_MAY: [Right; 2] = [
    ["create", "authentication.k8s.io", "tokenreviews", "", "", ""],
    ["get", "", "secrets", "", "nodemesh-ca", "nodemesh-system"],
];
const NEITHER_MAY: [Right; 27] = [
    ["*", "*", "*", "", "", ""],
    ["get", "", "secrets", "", "", "default"],
    ["get", "", "secrets", "", "another", "nodemesh-system"],
    ["list", "", "secrets", "", "", "nodemesh-system"],
    ["create", "", "secrets", "", "", "default"],
    ["delete", "", "secrets", "", "nodemesh-ca", "nodemesh-system"],
    ["get", "", "configmaps", "", "", "kube-system"],
    ["create", "", "pods", "", "", "nodemesh-system"],
    ["patch", "", "pods", "", "", "default"],
    ["delete", "", "pods", "", "", "default"],
    ["create", "", "pods", "exec", "", "default"],
    ["create", "", "pods", "attach", "", "default"],
    ["create", "", "pods", "portforward", "", "default"],
    ["update", "", "pods", "ephemeralcontainers", "", "default"],
    ["get", "", "pods", "log", "", "default"],
    ["create", "", "pods", "eviction", "", "default"],
    ["patch", "", "services", "", "", "default"],
    ["patch", "", "nodes", "", "", ""],
    ["get", "", "nodes", "proxy", "", ""],
    ["create", "", "serviceaccounts", "token", "", "nodemesh-system"],
    ["impersonate", "", "serviceaccounts", "", "", "default"],
    ["patch", "apps", "daemonsets", "", "nodemesh-agent", "nodemesh-system"],
    ["create", "rbac.authorization.k8s.io", "clusterrolebindings", "", "", ""],
    ["escalate", "rbac.authorization.k8s.io", "clusterroles", "", "", ""],
    ["create", "nodemesh.dev", "authorizationpolicies", "", "", "default"],
    ["delete", "nodemesh.dev", "peerauthentications", "", "", "default"],
    ["approve", "certificates.k8s.io", "signers", "", "", ""],
];

#[test]
fn accounts_may_do_what_they_are_for_and_nothing_else() {
    in_cluster("accounts_may_do_what_they_are_for_and_nothing_else", |kube| {
        let agent = BOTH_MAY.iter().chain(&AGENTS_MAY).map(|right| (right, true));
        let agent = agent.chain(NEITHER_MAY.iter().chain(&CONTROLLER_MAY).map(|right| (right, false)));
        have(kube, "nodemesh-agent", &agent.collect::<Vec<_>>())?;
        let controller = BOTH_MAY.iter().chain(&CONTROLLER_MAY).map(|right| (right, true));
        let controller = controller.chain(NEITHER_MAY.iter().chain(&AGENTS_MAY).map(|right| (right, false)));
        have(kube, "nodemesh-controller", &controller.collect::<Vec<_>>())
    });
}

/// Asks the API server about an account's rights.
fn have(kube: &Kube, account: &str, rights: &[(&Right, bool)]) -> Result<()> {
    let review = |[verb, group, resource, subresource, name, namespace]: &Right| {
        serde_json::json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": format!("system:serviceaccount:nodemesh-system:{account}"),
                "groups": ["system:serviceaccounts", "system:serviceaccounts:nodemesh-system", "system:authenticated"],
                "resourceAttributes": {
                    "verb": verb, "group": group, "resource": resource, "subresource": subresource, "name": name,
                    "namespace": namespace,
                },
            },
        })
    };
    let reviews: Vec<String> = rights.iter().map(|(right, _)| review(right).to_string()).collect();
    let arguments = ["create", "-o", "jsonpath={.status.allowed}{\"\\n\"}", "-f", "-"];
    let said = xtask::cluster::kubectl(&kube.parts, &arguments, Some(&reviews.join("\n---\n")))?;
    let said: Vec<&str> = said.lines().collect();
    ensure!(said.len() == rights.len(), "{} answers to {} questions: {said:?}", said.len(), rights.len());
    for ((right, may), said) in rights.iter().zip(said) {
        ensure!(said == may.to_string(), "{account}: {right:?} is {said}");
    }
    Ok(())
}
