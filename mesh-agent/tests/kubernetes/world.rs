//! The objects of the tests, and an agent's discovery that watches them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mesh_agent::discovery::{self, Config, Health, Pace, Source, WatchState};
use mesh_agent::drain::Drain;
use mesh_agent::policy::{Facts, authorize};
use mesh_agent::readiness::Readiness;
use mesh_agent::spiffe::SpiffeId;
use mesh_agent::state::{StateReader, StateWriter};
use serde_json::{Value, json};

use crate::apiserver_rig::{Hand, PATIENCE, Plane, eventually};

pub const NODE: &str = "node-1";

/// Fast, so that tests need not wait.
pub const PACE: Pace = Pace { look_again: Duration::from_millis(500), certain: Duration::from_secs(5) };

pub fn namespace(name: &str, labels: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

pub fn node(name: &str, ip: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
        "status": {"addresses": [{"type": "InternalIP", "address": ip}]},
    })
}

pub fn pod(namespace: &str, name: &str, node: &str, ip: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": {"app": name}},
        "spec": {
            "nodeName": node, "serviceAccountName": name,
            "containers": [{"name": "app", "image": "none", "env": [{"name": "A", "value": "b"}],
                            "ports": [{"name": "http", "containerPort": 8080}]}],
        },
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                   "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

pub fn service(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": namespace, "name": name},
        "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]},
    })
}

pub fn slice(namespace: &str, service: &str, ips: &[&str]) -> Value {
    let endpoints: Vec<Value> =
        ips.iter().map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}})).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"namespace": namespace, "name": format!("{service}-1"), "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}], "endpoints": endpoints,
    })
}

/// web is refused by api.
pub fn deny_web() -> Value {
    json!({
        "apiVersion": "nodemesh.dev/v1alpha1", "kind": "AuthorizationPolicy",
        "metadata": {"namespace": "shop", "name": "no-web"},
        "spec": {
            "targetRefs": [{"kind": "Pod", "selector": {"matchLabels": {"app": "api"}}}], "action": "DENY",
            "rules": [{"sources": [{"type": "ServiceAccount", "serviceAccount": {"name": "web"}}]}],
        },
    })
}

/// Everything but policies.
pub fn shop() -> Vec<Value> {
    vec![
        node(NODE, "192.168.0.1"),
        node("node-2", "192.168.0.2"),
        namespace("shop", json!({"nodemesh.dev/mesh": "enabled"})),
        pod("shop", "web", "node-2", "10.1.2.1"),
        pod("shop", "api", NODE, "10.1.1.1"),
        service("shop", "api"),
        slice("shop", "api", &["10.1.1.1"]),
    ]
}

/// What an agent may do: as its ClusterRole has it.
pub fn role(without: &str) -> Vec<Value> {
    let rules = [
        ("", vec!["namespaces", "nodes", "pods", "services"]),
        ("discovery.k8s.io", vec!["endpointslices"]),
        ("gateway.networking.k8s.io", vec!["httproutes", "grpcroutes", "tcproutes", "tlsroutes", "referencegrants"]),
        (
            "nodemesh.dev",
            vec![
                "peerauthentications",
                "authorizationpolicies",
                "requestauthentications",
                "trafficpolicies",
                "externalauthorizers",
            ],
        ),
    ];
    let rules: Vec<Value> = rules
        .into_iter()
        .map(|(group, resources)| {
            let resources: Vec<&str> = resources.into_iter().filter(|resource| *resource != without).collect();
            json!({"apiGroups": [group], "resources": resources, "verbs": ["list", "watch"]})
        })
        .collect();
    let group = "rbac.authorization.k8s.io";
    vec![
        json!({"apiVersion": format!("{group}/v1"), "kind": "ClusterRole", "metadata": {"name": "agent"}, "rules": rules}),
        json!({"apiVersion": format!("{group}/v1"), "kind": "ClusterRoleBinding", "metadata": {"name": "agent"},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "agent"},
            "subjects": [{"apiGroup": group, "kind": "User", "name": "agent"}]}),
    ]
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The committed CustomResourceDefinitions.
pub fn definitions() -> Vec<Value> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(repository().join("manifests/crds")).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|ending| ending == "yaml"));
    paths.sort();
    let read = |path: PathBuf| serde_saphyr::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let all: Vec<Value> = paths.into_iter().map(read).collect();
    all.into_iter().filter(|object| object["kind"] == "CustomResourceDefinition").collect()
}

pub fn samples() -> PathBuf {
    repository().join("manifests/samples")
}

impl Hand {
    pub async fn create_all(&self, objects: &[Value]) {
        for object in objects {
            self.create(object).await;
        }
    }

    /// Installs our definitions and waits until they are served.
    pub async fn define(&self) {
        let definitions = definitions();
        self.create_all(&definitions).await;
        for definition in &definitions {
            let plural = definition["spec"]["names"]["plural"].as_str().unwrap();
            eventually(plural, || async {
                let path = format!("/apis/nodemesh.dev/v1alpha1/{plural}?limit=1");
                let request = http::Request::get(path).body(Vec::new()).unwrap();
                self.client.request_text(request).await.is_ok()
            })
            .await;
        }
    }
}

/// Discovery of one agent.
pub struct Agent {
    pub state: StateReader,
    pub health: Health,
    pub readiness: Readiness,
    drain: Drain,
}

impl Agent {
    pub fn start(plane: &Plane, user: &str) -> Self {
        Self::of(plane, user, NODE)
    }

    pub fn of(plane: &Plane, user: &str, node: &str) -> Self {
        Self::by(plane.kubeconfig(user), node)
    }

    pub fn by(kubeconfig: PathBuf, node: &str) -> Self {
        let (writer, state) = StateWriter::new(node);
        let (health, readiness, drain) = (Health::default(), Readiness::default(), Drain::new());
        let config = Config { node: node.into(), trust_domain: "cluster.local".into() };
        let source = Source::Kubernetes { kubeconfig: Some(kubeconfig), pace: PACE };
        tokio::spawn(discovery::run(
            source,
            config,
            writer,
            health.clone(),
            readiness.clone(),
            Default::default(),
            drain.token(),
        ));
        Self { state, health, readiness, drain }
    }

    pub async fn eventually(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let waited = tokio::time::timeout(PATIENCE, async {
            while !holds(self) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        let told = || format!("{what}: {:?}\n{:#?}", self.readiness.missing(), self.health.report());
        waited.await.unwrap_or_else(|_| panic!("{}", told()));
    }

    /// With the first snapshot.
    pub async fn ready(&self) {
        self.eventually("the first snapshot", |agent| {
            agent.state.current().version > 0 && agent.readiness.missing().is_empty()
        })
        .await;
    }

    pub fn pods(&self) -> usize {
        self.state.current().workloads().count()
    }

    pub fn is_enrolled(&self, ip: &str) -> bool {
        self.state.current().workload_by_ip(ip.parse().unwrap()).is_some_and(|pod| pod.enrolled)
    }

    pub fn has(&self, ip: &str) -> bool {
        self.state.current().workload_by_ip(ip.parse().unwrap()).is_some()
    }

    /// Whether api would take a connection of web.
    pub fn web_may(&self) -> bool {
        let state = self.state.current();
        let Some(api) = state.workload_by_ip("10.1.1.1".parse().unwrap()) else { return false };
        let Some(policy) = state.inbound_policy(&api.uid) else { return false };
        let facts = Facts {
            source: Some(SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/web").unwrap()),
            is_same_node: false,
            source_ip: "10.1.2.1".parse().unwrap(),
            destination_ip: api.ips[0],
            destination_port: 8080,
        };
        authorize(policy, &facts).is_ok()
    }

    pub fn gate(&self) -> String {
        self.readiness.missing().into_iter().map(|(_, reason)| reason).collect()
    }

    pub fn note(&self) -> String {
        self.readiness.notes().into_iter().map(|(_, reason)| reason).collect()
    }

    pub fn stands(&self, watch: &str) -> Option<WatchState> {
        self.health.report().watches.iter().find(|report| report.watch == watch).map(|report| report.state)
    }

    pub fn lists(&self, watch: &str) -> u64 {
        self.health.report().watches.iter().find(|report| report.watch == watch).map_or(0, |report| report.lists)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.drain.start();
    }
}
