//! Services of every kind, with the EndpointSlices that a cluster's controller would write for them.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::address::{Family, ServiceAddress};
use super::node::Node;
use super::pod::Pod;

/// A Service to be made.
#[derive(Clone, Debug)]
pub struct ServiceSpec {
    /// metadata.namespace
    pub namespace: String,
    /// metadata.name
    pub name: String,
    /// spec.selector app=…: the pods of this label in the namespace are its endpoints. None: see `manual`.
    pub app: Option<String>,
    /// spec.ports
    pub ports: Vec<PortSpec>,
    /// spec.ipFamilies
    pub families: Vec<Family>,
    /// Addresses of endpoints that no selector finds.
    manual: Vec<IpAddr>,
    /// More of spec, by its own names.
    spec: Map<String, Value>,
    /// status.loadBalancer.ingress[].ip
    load_balancer_ips: Vec<IpAddr>,
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
    /// The port of every node.
    pub node_port: Option<u16>,
}

impl ServiceSpec {
    /// A Service in front of the pods whose `app` label is its name.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            app: Some(name.into()),
            ports: Vec::new(),
            families: Family::BOTH.to_vec(),
            manual: Vec::new(),
            spec: Map::new(),
            load_balancer_ips: Vec::new(),
        }
    }

    /// The same with a TCP port.
    pub fn port(mut self, name: &str, port: u16, target: u16) -> Self {
        self.ports.push(PortSpec { name: name.into(), port, target, node_port: None });
        self
    }

    /// The same in front of other pods: those with this `app` label.
    pub fn of(mut self, app: &str) -> Self {
        self.app = Some(app.into());
        self
    }

    /// The same with a cluster IP of one family alone.
    pub fn only(mut self, family: Family) -> Self {
        self.families = vec![family];
        self
    }

    /// The same with no cluster IP: its name leads to its pods' IPs.
    pub fn headless(self) -> Self {
        self.with("clusterIP", "None")
    }

    /// The same, another name for a pod of the testbed; DNS leads there, and nothing else.
    pub fn external_name(mut self, pod: &str) -> Self {
        self.app = None;
        self.with("type", "ExternalName").with("externalName", pod)
    }

    /// The same with endpoints that somebody lists by hand, in a slice of their own.
    pub fn listing(mut self, endpoints: &[IpAddr]) -> Self {
        self.app = None;
        self.manual = endpoints.to_vec();
        self
    }

    /// The same at a port of every node: its last port's.
    pub fn node_port(mut self, node_port: u16) -> Self {
        if let Some(port) = self.ports.last_mut() {
            port.node_port = Some(node_port);
        }
        self.with("type", "NodePort")
    }

    /// The same at addresses outside the cluster that lead to its nodes.
    pub fn external_ips(self, ips: &[IpAddr]) -> Self {
        self.with("externalIPs", ips.iter().map(IpAddr::to_string).collect::<Vec<_>>())
    }

    /// The same behind a load balancer's addresses.
    pub fn load_balancer(mut self, ips: &[IpAddr]) -> Self {
        self.load_balancer_ips = ips.to_vec();
        self.with("type", "LoadBalancer")
    }

    /// The same with one more field of spec.
    pub fn with(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.spec.insert(field.into(), value.into());
        self
    }

    pub(super) fn selects(&self, pod: &Pod) -> bool {
        let app = self.app.as_ref();
        pod.spec.namespace == self.namespace && app.is_some() && pod.spec.labels.get("app") == app
    }

    /// Whether DNS answers the Service's name with this pod's addresses, because it has none of its own.
    pub(super) fn resolves_to(&self, pod: &Pod) -> bool {
        self.is("clusterIP", "None") && self.selects(pod) || self.is("externalName", &pod.spec.name)
    }

    /// The Service and its slices, one for each family.
    pub(super) fn objects(&self, address: &ServiceAddress, behind: &[&Pod], nodes: &[Node]) -> Vec<Value> {
        let slices = self.families.iter().map(|family| self.slice(*family, behind, nodes));
        std::iter::once(self.service(address)).chain(slices.filter(|_| !self.is("type", "ExternalName"))).collect()
    }

    fn is(&self, field: &str, value: &str) -> bool {
        self.spec.get(field).and_then(Value::as_str) == Some(value)
    }

    fn service(&self, address: &ServiceAddress) -> Value {
        let ports = self.ports.iter().map(|port| {
            let mut object = port.object(port.port);
            object["targetPort"] = port.target.into();
            if let Some(node_port) = port.node_port {
                object["nodePort"] = node_port.into();
            }
            object
        });
        let mut spec = json!({"type": "ClusterIP", "ports": ports.collect::<Vec<_>>()});
        if let Some(app) = &self.app {
            spec["selector"] = json!({"app": app});
        }
        if self.is("clusterIP", "None") {
            spec["clusterIPs"] = json!(["None"]);
        } else if !self.is("type", "ExternalName") {
            let ips: Vec<String> = self.families.iter().map(|family| address.ips.ip(*family).to_string()).collect();
            let policy = if ips.len() == 1 { "SingleStack" } else { "RequireDualStack" };
            spec["clusterIP"] = ips[0].clone().into();
            spec["clusterIPs"] = ips.into();
            spec["ipFamilies"] = self.families.iter().map(Family::to_string).collect::<Vec<_>>().into();
            spec["ipFamilyPolicy"] = policy.into();
        }
        for (field, value) in &self.spec {
            spec[field] = value.clone();
        }
        let ingress: Vec<Value> = self.load_balancer_ips.iter().map(|ip| json!({"ip": ip.to_string()})).collect();
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": self.name, "namespace": self.namespace},
            "spec": spec,
            "status": {"loadBalancer": {"ingress": ingress}},
        })
    }

    fn slice(&self, family: Family, behind: &[&Pod], nodes: &[Node]) -> Value {
        let behind = behind.iter().filter(|pod| pod.spec.families.contains(&family));
        let of_pods = behind.map(|pod| self.endpoint(pod, family, nodes));
        let manual = self.manual.iter().filter(|ip| Family::of(**ip) == family);
        let manual = manual.map(|ip| json!({"addresses": [ip.to_string()], "conditions": {"ready": true}}));
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{}-{}", self.name, family.to_string().to_lowercase()),
                "namespace": self.namespace,
                "labels": {"kubernetes.io/service-name": self.name},
            },
            "addressType": family.to_string(),
            "endpoints": of_pods.chain(manual).collect::<Vec<_>>(),
            "ports": self.ports.iter().map(|port| port.object(port.target)).collect::<Vec<_>>(),
        })
    }

    /// Conditions and hints as the EndpointSlice controller of Kubernetes 1.35 writes them.
    fn endpoint(&self, pod: &Pod, family: Family, nodes: &[Node]) -> Value {
        let spec = &pod.spec;
        let publishes = self.spec.get("publishNotReadyAddresses") == Some(&Value::Bool(true));
        let mut endpoint = json!({
            "addresses": [pod.ips.ip(family).to_string()],
            "conditions": {
                "ready": publishes || spec.ready && !spec.terminating,
                "serving": publishes || spec.ready,
                "terminating": spec.terminating,
            },
            "nodeName": spec.node,
            "targetRef": {"kind": "Pod", "name": spec.name, "namespace": spec.namespace, "uid": pod.uid},
        });
        let zone = nodes.iter().find(|node| node.name == spec.node).map_or("", |node| &node.zone);
        if !zone.is_empty() {
            endpoint["zone"] = zone.into();
        }
        match self.spec.get("trafficDistribution").and_then(Value::as_str) {
            Some("PreferSameNode") => {
                endpoint["hints"] = json!({"forZones": [{"name": zone}], "forNodes": [{"name": spec.node}]});
            }
            Some(_) => endpoint["hints"] = json!({"forZones": [{"name": zone}]}),
            None => {}
        }
        endpoint
    }
}

impl PortSpec {
    fn object(&self, number: u16) -> Value {
        let mut object = json!({"port": number, "protocol": "TCP"});
        if !self.name.is_empty() {
            object["name"] = self.name.clone().into();
        }
        object
    }
}
