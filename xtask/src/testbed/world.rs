//! The world directory: the Kubernetes objects of a run as the YAML that a cluster would give, one file per object.
//!
//! The agents read it with `--discovery dir:`. A file changes by an atomic rename, as `kubectl` and GitOps tools that
//! write directories do it, so nobody ever reads half an object.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::address::{self, DualStack, ServiceAddress};
use super::node::Node;
use super::pod::Pod;
use super::service::ServiceSpec;
use super::yaml;

/// The directory, and a place beside it where files are written before they are moved in.
pub struct World {
    dir: PathBuf,
    staging: PathBuf,
}

impl World {
    pub(super) fn create(run: &Path) -> Result<Self> {
        let world = Self { dir: run.join("world"), staging: run.join("staging") };
        fs::create_dir(&world.dir)?;
        fs::create_dir(&world.staging)?;
        Ok(world)
    }

    /// The directory to give to `--discovery dir:`.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Puts a file of YAML in place, whatever was there before: `kubectl apply`.
    pub fn apply(&self, name: &str, yaml: &str) -> Result<()> {
        let (new, place) = (self.staging.join(name), self.file(name));
        fs::write(&new, yaml).with_context(|| format!("writing {}", new.display()))?;
        fs::rename(&new, &place).with_context(|| format!("moving {} in place", place.display()))
    }

    /// Takes a file away: `kubectl delete`.
    pub fn delete(&self, name: &str) -> Result<()> {
        let place = self.file(name);
        fs::remove_file(&place).with_context(|| format!("removing {}", place.display()))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.yaml"))
    }

    pub(super) fn write_namespace(&self, name: &str, labels: &[(&str, &str)]) -> Result<()> {
        let labels: serde_json::Map<String, Value> =
            labels.iter().map(|(name, value)| (name.to_string(), Value::from(*value))).collect();
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
        self.apply(&format!("namespace-{name}"), &yaml::document(&object))
    }

    pub(super) fn write_node(&self, node: &Node) -> Result<()> {
        let ranges: Vec<String> = node.families.iter().map(|f| address::pod_range(node.index, *f)).collect();
        let addresses: Vec<Value> = node
            .families
            .iter()
            .map(|f| json!({"type": "InternalIP", "address": node.ips.ip(*f).to_string()}))
            .collect();
        let mut labels = json!({"kubernetes.io/hostname": node.name});
        if !node.zone.is_empty() {
            labels["topology.kubernetes.io/zone"] = node.zone.as_str().into();
        }
        let mut status = json!({"addresses": addresses});
        if let Some(port) = node.kubelet_port {
            status["daemonEndpoints"] = json!({"kubeletEndpoint": {"Port": port}});
        }
        let object = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": node.name, "labels": labels},
            "spec": {"podCIDR": ranges[0], "podCIDRs": ranges},
            "status": status,
        });
        self.apply(&format!("node-{}", node.name), &yaml::document(&object))
    }

    pub(super) fn write_pod(&self, pod: &Pod, node: &Node) -> Result<()> {
        let spec = &pod.spec;
        let account = json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": spec.service_account, "namespace": spec.namespace},
        });
        self.apply(&format!("serviceaccount-{}-{}", spec.namespace, spec.service_account), &yaml::document(&account))?;
        self.apply(&pod_file(pod), &yaml::document(&pod_object(pod, node)))
    }

    pub(super) fn remove_pod(&self, pod: &Pod) -> Result<()> {
        self.delete(&pod_file(pod))
    }

    pub(super) fn write_service<'a>(
        &self,
        spec: &ServiceSpec,
        address: &ServiceAddress,
        pods: impl Iterator<Item = &'a Pod>,
        nodes: &[Node],
    ) -> Result<()> {
        let behind: Vec<&Pod> = pods.filter(|pod| spec.selects(pod)).collect();
        let documents: Vec<String> = spec.objects(address, &behind, nodes).iter().map(yaml::document).collect();
        self.apply(&format!("service-{}-{}", spec.namespace, spec.name), &documents.join("---\n"))
    }
}

fn pod_file(pod: &Pod) -> String {
    format!("pod-{}-{}", pod.spec.namespace, pod.spec.name)
}

fn pod_object(pod: &Pod, node: &Node) -> Value {
    let spec = &pod.spec;
    let named = spec.ports.iter().map(|(name, port)| json!({"name": name, "containerPort": port, "protocol": "TCP"}));
    let of_host = spec.host_ports.iter();
    let of_host = of_host.map(|(host, port)| json!({"hostPort": host, "containerPort": port, "protocol": "TCP"}));
    let ips = |addresses: &DualStack| -> Vec<Value> {
        spec.families.iter().map(|family| json!({"ip": addresses.ip(*family).to_string()})).collect()
    };
    let mut metadata = json!({
        "name": spec.name,
        "namespace": spec.namespace,
        "uid": pod.uid,
        "labels": spec.labels,
        "annotations": spec.annotations,
    });
    if spec.terminating {
        metadata["deletionTimestamp"] = "2026-01-31T12:00:00Z".into();
    }
    let mut container = json!({
        "name": spec.name,
        "image": format!("testbed/{}", spec.name),
        "ports": named.chain(of_host).collect::<Vec<_>>(),
    });
    spec.container.iter().for_each(|(field, value)| container[field] = value.clone());
    let status = if spec.pending {
        json!({"phase": "Pending"})
    } else {
        json!({
            "phase": "Running",
            "podIP": ips(&pod.ips)[0]["ip"],
            "podIPs": ips(&pod.ips),
            "hostIPs": node.families.iter().map(|f| json!({"ip": node.ips.ip(*f).to_string()})).collect::<Vec<_>>(),
            "conditions": [{"type": "Ready", "status": if spec.ready { "True" } else { "False" }}],
        })
    };
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {
            "nodeName": spec.node,
            "serviceAccountName": spec.service_account,
            "containers": [container],
        },
        "status": status,
    })
}
