//! The world directory: the Kubernetes objects of a run as the YAML that a cluster would give, one file per object.
//!
//! The agents read it with `--discovery dir:`. A file changes by an atomic rename, as `kubectl` and GitOps tools that
//! write directories do it, so nobody ever reads half an object.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::address::{self, Family, ServiceAddress};
use super::node::Node;
use super::pod::Pod;
use super::yaml;

/// The directory, and a place beside it where files are written before they are moved in.
pub struct World {
    dir: PathBuf,
    staging: PathBuf,
}

/// A Service to be made.
#[derive(Clone, Debug)]
pub struct ServiceSpec {
    /// metadata.namespace
    pub namespace: String,
    /// metadata.name
    pub name: String,
    /// spec.selector app=…: the pods of this label in the namespace are its endpoints.
    pub app: String,
    /// spec.ports
    pub ports: Vec<PortSpec>,
}

/// A port of a Service.
#[derive(Clone, Debug)]
pub struct PortSpec {
    /// Its name; empty for the only port of a Service.
    pub name: String,
    /// The port at the cluster IP.
    pub port: u16,
    /// The port in the pods.
    pub target: u16,
    /// TCP or UDP.
    pub protocol: &'static str,
}

impl ServiceSpec {
    /// A Service in front of the pods whose `app` label is its name.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into(), app: name.into(), ports: Vec::new() }
    }

    /// The same with a TCP port.
    pub fn port(mut self, name: &str, port: u16, target: u16) -> Self {
        self.ports.push(PortSpec { name: name.into(), port, target, protocol: "TCP" });
        self
    }
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
        let ranges = address::pod_ranges(node.index);
        let addresses: Vec<Value> = Family::BOTH
            .iter()
            .map(|f| json!({"type": "InternalIP", "address": node.ips.ip(*f).to_string()}))
            .collect();
        let object = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": node.name, "labels": {"kubernetes.io/hostname": node.name}},
            "spec": {"podCIDR": ranges[0], "podCIDRs": ranges},
            "status": {"addresses": addresses},
        });
        self.apply(&format!("node-{}", node.name), &yaml::document(&object))
    }

    pub(super) fn write_pod(&self, pod: &Pod) -> Result<()> {
        let spec = &pod.spec;
        let account = json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": spec.service_account, "namespace": spec.namespace},
        });
        self.apply(&format!("serviceaccount-{}-{}", spec.namespace, spec.service_account), &yaml::document(&account))?;
        self.apply(&pod_file(pod), &yaml::document(&pod_object(pod)))
    }

    pub(super) fn remove_pod(&self, pod: &Pod) -> Result<()> {
        self.delete(&pod_file(pod))
    }

    pub(super) fn write_service<'a>(
        &self,
        spec: &ServiceSpec,
        address: &ServiceAddress,
        pods: impl Iterator<Item = &'a Pod>,
    ) -> Result<()> {
        let behind: Vec<&Pod> = pods
            .filter(|pod| pod.spec.namespace == spec.namespace && pod.spec.labels.get("app") == Some(&spec.app))
            .collect();
        let mut text = yaml::document(&service_object(spec, address));
        for family in Family::BOTH {
            text.push_str("---\n");
            text.push_str(&yaml::document(&endpoint_slice(spec, family, &behind)));
        }
        self.apply(&format!("service-{}-{}", spec.namespace, spec.name), &text)
    }
}

fn pod_file(pod: &Pod) -> String {
    format!("pod-{}-{}", pod.spec.namespace, pod.spec.name)
}

fn pod_object(pod: &Pod) -> Value {
    let spec = &pod.spec;
    let ports: Vec<Value> =
        spec.ports.iter().map(|(name, port)| json!({"name": name, "containerPort": port, "protocol": "TCP"})).collect();
    let ips: Vec<Value> = Family::BOTH.iter().map(|f| json!({"ip": pod.ips.ip(*f).to_string()})).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": spec.name, "namespace": spec.namespace, "uid": pod.uid, "labels": spec.labels},
        "spec": {
            "nodeName": spec.node,
            "serviceAccountName": spec.service_account,
            "containers": [{"name": spec.name, "image": format!("testbed/{}", spec.name), "ports": ports}],
        },
        "status": {
            "phase": "Running",
            "podIP": pod.ips.v4.to_string(),
            "podIPs": ips,
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

fn service_object(spec: &ServiceSpec, address: &ServiceAddress) -> Value {
    let ports: Vec<Value> = spec.ports.iter().map(|p| port_object(p, "port", p.port, Some(p.target))).collect();
    let ips: Vec<String> = Family::BOTH.iter().map(|f| address.ips.ip(*f).to_string()).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": spec.name, "namespace": spec.namespace},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": ips[0],
            "clusterIPs": ips,
            "ipFamilies": ["IPv4", "IPv6"],
            "ipFamilyPolicy": "RequireDualStack",
            "selector": {"app": spec.app},
            "ports": ports,
        },
    })
}

fn endpoint_slice(spec: &ServiceSpec, family: Family, behind: &[&Pod]) -> Value {
    let endpoints: Vec<Value> = behind
        .iter()
        .map(|pod| {
            json!({
                "addresses": [pod.ips.ip(family).to_string()],
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "nodeName": pod.spec.node,
                "targetRef": {
                    "kind": "Pod",
                    "name": pod.spec.name,
                    "namespace": pod.spec.namespace,
                    "uid": pod.uid,
                },
            })
        })
        .collect();
    let ports: Vec<Value> = spec.ports.iter().map(|p| port_object(p, "port", p.target, None)).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{}-{}", spec.name, family.to_string().to_lowercase()),
            "namespace": spec.namespace,
            "labels": {"kubernetes.io/service-name": spec.name},
        },
        "addressType": family.to_string(),
        "endpoints": endpoints,
        "ports": ports,
    })
}

fn port_object(port: &PortSpec, field: &str, number: u16, target: Option<u16>) -> Value {
    let mut object = json!({field: number, "protocol": port.protocol});
    if !port.name.is_empty() {
        object["name"] = port.name.clone().into();
    }
    if let Some(target) = target {
        object["targetPort"] = target.into();
    }
    object
}
