//! `meshctl install`, `upgrade` and `uninstall` at a real API server. What controllers and kubelets would do is played.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::apiserver_rig::{Plane, eventually};

const NAMESPACE: &str = "nodemesh-system";

struct Cluster {
    plane: Plane,
    client: kube::Client,
    /// Whether the agents' pods are ready.
    is_well: Arc<AtomicBool>,
}

impl Cluster {
    /// What controllers and kubelets do is done from now on.
    async fn start(test: &str) -> Option<Self> {
        let plane = Plane::start(test).await?;
        let client = plane.admin().await;
        let is_well = Arc::new(AtomicBool::new(false));
        tokio::spawn(play(client.clone(), is_well.clone()));
        Some(Self { plane, client, is_well })
    }

    /// Its exit status, and all that it said.
    async fn meshctl(&self, typed: &[&str]) -> (Option<i32>, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_meshctl"));
        command.args(typed).arg("--kubeconfig").arg(self.plane.kubeconfig("admin")).stdin(Stdio::null());
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(said).unwrap())
    }

    async fn expect(&self, typed: &[&str], status: i32, parts: &[&str]) -> String {
        let (ended, said) = self.meshctl(typed).await;
        assert_eq!(ended, Some(status), "{typed:?}: {said}");
        for part in parts {
            assert!(said.contains(part), "{typed:?}: no {part:?} in {said}");
        }
        said
    }

    async fn agents(&self) -> DaemonSet {
        Api::namespaced(self.client.clone(), NAMESPACE).get("nodemesh-agent").await.unwrap()
    }

    fn controller(&self) -> Api<Deployment> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    async fn count_definitions(&self) -> usize {
        let all: Api<CustomResourceDefinition> = Api::all(self.client.clone());
        all.list(&ListParams::default()).await.unwrap().items.len()
    }
}

/// Two controllers, one node: objects' statuses, and a pod of each template. The pod goes when its DaemonSet does, a while
/// later; by then nothing that it needs may be gone.
async fn play(client: kube::Client, is_well: Arc<AtomicBool>) {
    let sets: Api<DaemonSet> = Api::namespaced(client.clone(), NAMESPACE);
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), NAMESPACE);
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let roles: Api<ClusterRole> = Api::all(client.clone());
    let merge = PatchParams::default();
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if !is_well.load(Ordering::Relaxed) {
            continue;
        }
        if let Ok(Some(deployment)) = deployments.get_opt("nodemesh-controller").await {
            let status = json!({"status": {"observedGeneration": deployment.metadata.generation, "replicas": 2,
                "updatedReplicas": 2, "availableReplicas": 2, "readyReplicas": 2}});
            let _ = deployments.patch_status("nodemesh-controller", &merge, &Patch::Merge(status)).await;
        }
        match sets.get_opt("nodemesh-agent").await.unwrap() {
            Some(set) => {
                let status = json!({"status": {"observedGeneration": set.metadata.generation, "desiredNumberScheduled": 1,
                    "currentNumberScheduled": 1, "numberMisscheduled": 0, "numberReady": 1}});
                let _ = sets.patch_status("nodemesh-agent", &merge, &Patch::Merge(status)).await;
                let template = &set.metadata.annotations.unwrap()["deprecated.daemonset.template.generation"];
                let name = format!("nodemesh-agent-{template}");
                let pod = json!({
                    "metadata": {"name": name, "namespace": NAMESPACE, "labels":
                        {"app.kubernetes.io/name": "nodemesh-agent", "pod-template-generation": template}},
                    "spec": {"nodeName": "n1", "containers": [{"name": "agent", "image": "none"}]},
                });
                let _ = pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await;
                let status =
                    json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
                let _ = pods.patch_status(&name, &merge, &Patch::Merge(status)).await;
            }
            None => {
                for pod in pods.list(&ListParams::default()).await.unwrap().items {
                    tokio::time::sleep(Duration::from_millis(1500)).await;
                    let role = roles.get_opt("nodemesh-agent").await.unwrap();
                    assert!(role.is_some(), "an agent lost its rights before it ended");
                    let _ = pods.delete(&pod.metadata.name.unwrap(), &DeleteParams::default().grace_period(0)).await;
                }
            }
        }
    }
}

#[tokio::test]
async fn the_mesh_comes_changes_and_goes() {
    let Some(cluster) = Cluster::start("the_mesh_comes_changes_and_goes").await else { return };
    cluster.expect(&["upgrade"], 2, &["there is no mesh in namespace nodemesh-system", "meshctl install"]).await;
    cluster.expect(&["uninstall", "--yes"], 2, &["there is no mesh in namespace nodemesh-system"]).await;
    // Nobody runs anything here yet.
    let said =
        cluster.expect(&["install", "--wait", "5s"], 1, &["controller: 0 of 2 ready", "not ready within 5s"]).await;
    assert!(said.contains("created   DaemonSet nodemesh-system/nodemesh-agent"), "{said}");
    assert!(said.find("CustomResourceDefinition") < said.find("DaemonSet"), "{said}");
    cluster.expect(&["install"], 2, &["already", "meshctl upgrade"]).await;
    cluster
        .expect(&["install", "-n", "other"], 2, &["two would both capture", "meshctl upgrade -n nodemesh-system"])
        .await;
    // A node without an agent would keep its pods captured.
    cluster.is_well.store(true, Ordering::Relaxed);
    let same = cluster.expect(&["upgrade"], 0, &["agents: 1 of 1 nodes", "the mesh is upgraded"]).await;
    assert!(!same.contains("created") && !same.contains("changed  "), "{same}");

    let said = cluster
        .expect(&["upgrade", "--image", "example/nodemesh:2", "--wait", "1m"], 0, &["the mesh is upgraded"])
        .await;
    let changed = said.lines().filter(|line| line.starts_with("changed ")).count();
    assert_eq!(changed, 2, "{said}");
    let set = cluster.agents().await;
    assert_eq!(set.spec.template.spec.unwrap().containers[0].image.as_deref(), Some("example/nodemesh:2"));
    assert!(said.contains("agents: 1 of 1 nodes have a new one that is ready"), "{said}");
    // The plugin comes and goes; another authority does not.
    cluster.expect(&["upgrade", "--profile", "cni"], 0, &["profile cni"]).await;
    assert_eq!(cluster.agents().await.spec.template.spec.unwrap().containers.len(), 2);
    cluster.expect(&["upgrade"], 0, &["profile cni"]).await;
    cluster.expect(&["upgrade", "--profile", "default"], 0, &["profile default"]).await;
    assert_eq!(cluster.agents().await.spec.template.spec.unwrap().containers.len(), 1);
    cluster.expect(&["upgrade", "--profile", "standalone"], 2, &["different authorities"]).await;

    // What somebody else set is taken over only when that is said.
    let other = json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replicas": 3}});
    let parameters = PatchParams::apply("somebody").force();
    cluster.controller().patch("nodemesh-controller", &parameters, &Patch::Apply(other)).await.unwrap();
    cluster
        .expect(&["upgrade"], 2, &["Deployment nodemesh-system/nodemesh-controller", "somebody", "--force-conflicts"])
        .await;
    cluster.expect(&["upgrade", "--force-conflicts"], 0, &[]).await;
    let deployment = cluster.controller().get("nodemesh-controller").await.unwrap();
    assert_eq!(deployment.spec.replicas, Some(2));

    cluster.expect(&["uninstall"], 2, &["no policy of the mesh holds", "--yes"]).await;
    let said = cluster
        .expect(&["uninstall", "--yes"], 0, &["agents: gone", "kept      5 definitions", "is uninstalled"])
        .await;
    assert!(said.find("agents: gone") < said.find("deleted   ClusterRole"), "{said}");
    let roles: Api<ClusterRole> = Api::all(cluster.client.clone());
    assert!(roles.get_opt("nodemesh-agent").await.unwrap().is_none());
    assert_eq!(cluster.count_definitions().await, 5);
    cluster.expect(&["uninstall", "--yes", "--purge"], 0, &["is uninstalled"]).await;
    // The API server takes what is of them first.
    eventually("definitions to be gone", || async { cluster.count_definitions().await == 0 }).await;
}

#[tokio::test]
async fn who_may_not_is_told_so() {
    let Some(plane) = Plane::start("who_may_not_is_told_so").await else { return };
    let mut command = Command::new(env!("CARGO_BIN_EXE_meshctl"));
    command.arg("install").arg("--kubeconfig").arg(plane.kubeconfig("nobody"));
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(said.contains("you may not: daemonsets.apps \"nodemesh-agent\" is forbidden"), "{said}");
}

/// What the API server fills in is in the manifests where a list or a reference is one's as a whole: else whoever applies the
/// same would say otherwise.
#[tokio::test]
async fn what_kubectl_applied_is_upgraded_by_nobody_s_force() {
    let Some(cluster) = Cluster::start("what_kubectl_applied_is_upgraded_by_nobody_s_force").await else { return };
    cluster.is_well.store(true, Ordering::Relaxed);
    for (folder, profile) in [("base", "profile default"), ("overlays/cni", "profile cni")] {
        let folder = manifests().join(folder).display().to_string();
        let (ok, said) = cluster.plane.kubectl(&["apply", "--server-side", "-k", &folder], "");
        assert!(ok, "{said}");
        cluster.expect(&["upgrade"], 0, &[profile, "the mesh is upgraded"]).await;
    }
    // An image of its own is something else.
    cluster.expect(&["upgrade", "--image", "example/nodemesh:2"], 2, &["image", "kubectl", "--force-conflicts"]).await;
}

/// `meshctl bench --from` in a namespace that takes none but the most harmless pods. No kubelet runs them here, and nothing of
/// them is left.
#[tokio::test]
async fn the_pods_of_a_load_are_the_most_harmless() {
    let Some(cluster) = Cluster::start("the_pods_of_a_load_are_the_most_harmless").await else { return };
    let typed = ["bench", "http://web/", "--from", "careful", "--wait", "5s"];
    cluster.expect(&typed, 2, &["there is no mesh in namespace nodemesh-system"]).await;
    cluster.expect(&["install", "--no-wait"], 0, &[]).await;
    cluster.expect(&typed, 2, &["making pod careful/meshctl-bench-plain-", "\"careful\" not found"]).await;
    let labels = json!({"pod-security.kubernetes.io/enforce": "restricted"});
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "careful", "labels": labels}});
    let (ok, said) = cluster.plane.kubectl(&["create", "-f", "-"], &namespace.to_string());
    assert!(ok, "{said}");
    // Others are not taken there.
    let (ok, said) = cluster.plane.kubectl(&["-n", "careful", "run", "other", "--image=none"], "");
    assert!(!ok && said.contains("violates PodSecurity"), "{said}");
    let said = cluster.expect(&typed, 2, &["the pods are not there within 5s (--wait)"]).await;
    assert_eq!(said.matches("on no node: nobody has placed it yet").count(), 2, "{said}");
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), "careful");
    eventually("the pods to be gone", || async { pods.list(&ListParams::default()).await.unwrap().items.is_empty() })
        .await;
}

/// Every profile is what kustomize makes of its folder, as kubectl reads both.
#[tokio::test]
async fn profiles_are_what_the_overlays_say() {
    let Some(cluster) = Cluster::start("profiles_are_what_the_overlays_say").await else { return };
    for (profile, folder) in [("default", "base"), ("cni", "overlays/cni"), ("standalone", "overlays/standalone")] {
        let folder = manifests().join(folder).display().to_string();
        let (ok, folder) = cluster.plane.kubectl(&["kustomize", &folder], "");
        assert!(ok, "{folder}");
        let rendered = cluster.expect(&["install", "--render", "--profile", profile], 0, &[]).await;
        let (rendered, folder) = (objects(&cluster.plane, &rendered), objects(&cluster.plane, &folder));
        assert_eq!(rendered.keys().collect::<Vec<_>>(), folder.keys().collect::<Vec<_>>(), "{profile}");
        for (name, object) in &rendered {
            assert_eq!(object, &folder[name], "{profile}: {name}");
        }
    }
}

fn manifests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests")
}

/// By kind and name; lists of things with names in the order of these.
fn objects(plane: &Plane, yaml: &str) -> BTreeMap<String, Value> {
    let (ok, said) = plane.kubectl(&["create", "--dry-run=client", "--validate=false", "-o", "json", "-f", "-"], yaml);
    assert!(ok, "{said}");
    let mut objects = BTreeMap::new();
    for read in serde_json::Deserializer::from_str(&said).into_iter::<Value>() {
        let read = read.unwrap();
        let items = read["items"].as_array().cloned();
        for mut object in items.unwrap_or_else(|| vec![read]) {
            sort(&mut object);
            objects.insert(format!("{} {}", object["kind"], object["metadata"]["name"]), object);
        }
    }
    assert!(objects.len() > 10, "{said}");
    objects
}

fn sort(value: &mut Value) {
    match value {
        Value::Array(items) => {
            items.iter_mut().for_each(sort);
            if items.iter().all(|item| item["name"].is_string()) {
                items.sort_by_key(|item| format!("{} {}", item["name"], item["mountPath"]));
            }
        }
        Value::Object(fields) => fields.values_mut().for_each(sort),
        _ => {}
    }
}
