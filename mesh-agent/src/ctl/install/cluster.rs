//! The cluster that the mesh goes into or out of: objects applied and deleted, and how far what came of it is.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PropagationPolicy};
use kube::core::GroupVersionKind;
use kube::discovery::ApiResource;
use kube::{Api, Client};
use serde_json::Value;

use super::objects::{self, AGENTS, CONTROLLER};
use crate::apiserver::{ApiServer, chain};
use crate::ctl::args::WhomArgs;

/// Who applied a field, to the API server.
pub const MANAGER: &str = "meshctl";
/// The agents' pods.
pub(super) const OF_AGENTS: &str = "app.kubernetes.io/name=nodemesh-agent";
/// The DaemonSet controller's number of the template that a pod was made by, and the DaemonSet's.
const OF_TEMPLATE: &str = "pod-template-generation";
const TEMPLATE: &str = "deprecated.daemonset.template.generation";

/// Where objects go.
pub struct Cluster {
    pub server: ApiServer,
    pub namespace: String,
    client: Client,
    timeout: Duration,
}

/// What became of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    Created,
    Changed,
    Same,
}

/// How far something is that takes its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub is_done: bool,
    pub told: String,
}

impl Cluster {
    /// As kubectl reaches it.
    pub async fn find(whom: &WhomArgs) -> Result<Self> {
        let WhomArgs { admin, mesh_namespace, kubeconfig, context, timeout } = whom;
        ensure!(
            admin.is_empty(),
            "--admin names agents that are there; this is about a cluster: --kubeconfig and --context"
        );
        let server = ApiServer::find_context(kubeconfig.clone(), context.clone()).await?;
        let client = server.client()?;
        Ok(Self { server, namespace: mesh_namespace.clone(), client, timeout: *timeout })
    }

    /// To ask for what is not here.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// For one answer.
    pub fn patience(&self) -> Duration {
        self.timeout
    }

    /// What the API server answers; else what to tell.
    pub async fn within<T>(&self, asked: impl Future<Output = kube::Result<T>>) -> Result<T> {
        match tokio::time::timeout(self.timeout, asked).await {
            Ok(answer) => answer.map_err(|error| match error {
                kube::Error::Api(status) if status.code == 403 => {
                    anyhow!("you may not: {}; ask whoever grants rights in this cluster", status.message)
                }
                kube::Error::Api(status) => anyhow!("{}", status.message),
                other => anyhow!("asking {}: {}", self.server.address(), chain(&other)),
            }),
            Err(_) => Err(anyhow!(
                "{} did not answer within {} (--timeout)",
                self.server.address(),
                humantime::format_duration(self.timeout)
            )),
        }
    }

    fn api(&self, object: &Value) -> Api<DynamicObject> {
        let word = |value: &Value| value.as_str().unwrap_or_default().to_string();
        let version = word(&object["apiVersion"]);
        let (group, version) = version.split_once('/').unwrap_or(("", &version));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &word(&object["kind"])));
        match object["metadata"]["namespace"].as_str() {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        }
    }

    /// Applies an object. With `force`, fields that somebody else said are ours from now on.
    pub async fn apply(&self, object: &Value, force: bool) -> Result<Applied> {
        let api = self.api(object);
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let told = || objects::name(object);
        let before = self.within(api.get_opt(name)).await.with_context(told)?;
        let parameters = PatchParams { force, ..PatchParams::apply(MANAGER) };
        let applied = tokio::time::timeout(self.timeout, api.patch(name, &parameters, &Patch::Apply(object))).await;
        let applied = match applied {
            Ok(Err(kube::Error::Api(status))) if status.code == 409 && !force => {
                return Err(anyhow!("{}", status.message))
                    .context("somebody else says otherwise; --force-conflicts has it as it is here")
                    .with_context(told);
            }
            Ok(applied) => self.within(std::future::ready(applied)).await.with_context(told)?,
            Err(_) => self.within(std::future::pending()).await.with_context(told)?,
        };
        Ok(match before {
            None => Applied::Created,
            Some(before) if version(&before) == version(&applied) => Applied::Same,
            Some(_) => Applied::Changed,
        })
    }

    /// Deletes an object; whether it was there.
    pub async fn delete(&self, object: &Value) -> Result<bool> {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let parameters =
            DeleteParams { propagation_policy: Some(PropagationPolicy::Background), ..DeleteParams::default() };
        let deleted = tokio::time::timeout(self.timeout, self.api(object).delete(name, &parameters)).await;
        match deleted {
            // A kind that is not served has no objects.
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => Ok(false),
            Ok(deleted) => {
                self.within(std::future::ready(deleted)).await.with_context(|| objects::name(object))?;
                Ok(true)
            }
            Err(_) => self.within(std::future::pending()).await.with_context(|| objects::name(object)),
        }
    }

    /// The agents' DaemonSet.
    pub async fn agents(&self) -> Result<Option<DaemonSet>> {
        let sets: Api<DaemonSet> = Api::namespaced(self.client.clone(), &self.namespace);
        self.within(sets.get_opt(AGENTS)).await
    }

    /// Other namespaces that have agents.
    pub async fn elsewhere(&self) -> Result<BTreeSet<String>> {
        let sets: Api<DaemonSet> = Api::all(self.client.clone());
        let listed = self.within(sets.list(&ListParams::default().labels(OF_AGENTS))).await?;
        let namespaces = listed.items.into_iter().filter_map(|set| set.metadata.namespace);
        Ok(namespaces.filter(|namespace| *namespace != self.namespace).collect())
    }

    /// The agents' pods.
    pub async fn pods(&self) -> Result<Vec<Pod>> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        Ok(self.within(pods.list(&ListParams::default().labels(OF_AGENTS))).await?.items)
    }

    /// Pods in the mesh's namespace that are not the mesh's.
    pub async fn strangers(&self) -> Result<Vec<String>> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let of_mesh = format!("app.kubernetes.io/name notin ({AGENTS}, {CONTROLLER})");
        let listed = self.within(pods.list(&ListParams::default().labels(&of_mesh))).await?;
        Ok(listed.items.into_iter().filter_map(|pod| pod.metadata.name).collect())
    }

    /// Whether the mesh's namespace is there.
    pub async fn has_namespace(&self) -> Result<bool> {
        let all: Api<Namespace> = Api::all(self.client.clone());
        Ok(self.within(all.get_opt(&self.namespace)).await?.is_some())
    }

    /// How far the controller is.
    pub async fn controller_step(&self) -> Result<Step> {
        let deployments: Api<Deployment> = Api::namespaced(self.client.clone(), &self.namespace);
        Ok(controller_step(self.within(deployments.get_opt(CONTROLLER)).await?))
    }

    /// How far the agents are.
    pub async fn agents_step(&self) -> Result<Step> {
        let Some(set) = self.agents().await? else {
            return Ok(Step { is_done: false, told: "there is no DaemonSet".into() });
        };
        Ok(agents_step(&set, &self.pods().await?))
    }

    /// Why pods of the mesh are not ready, a line each.
    pub async fn obstacles(&self) -> Vec<String> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let of_mesh = format!("app.kubernetes.io/name in ({AGENTS}, {CONTROLLER})");
        match self.within(pods.list(&ListParams::default().labels(&of_mesh))).await {
            Ok(listed) => listed.items.iter().filter_map(obstacle).collect(),
            Err(error) => vec![format!("{error:#}")],
        }
    }
}

/// What moves when somebody changes an object. Statuses, which move by themselves, are no part of a generation.
fn version(object: &DynamicObject) -> (Option<i64>, Option<&str>) {
    match object.metadata.generation {
        Some(generation) => (Some(generation), None),
        None => (None, object.metadata.resource_version.as_deref()),
    }
}

fn controller_step(deployment: Option<Deployment>) -> Step {
    let Some(deployment) = deployment else { return Step { is_done: false, told: "there is no Deployment".into() } };
    let wanted = deployment.spec.replicas.unwrap_or(1);
    let status = deployment.status.unwrap_or_default();
    let updated = status.updated_replicas.unwrap_or_default();
    let available = status.available_replicas.unwrap_or_default().min(updated);
    let is_seen = status.observed_generation >= deployment.metadata.generation;
    // More than are wanted: some are of the template before, and still end.
    let is_done = is_seen && available >= wanted && status.replicas.unwrap_or_default() <= updated;
    Step { is_done, told: format!("{available} of {wanted} ready") }
}

/// The DaemonSet's own status counts the oldest pod of a node, which serves for minutes what it has; so the pods are looked at.
fn agents_step(set: &DaemonSet, pods: &[Pod]) -> Step {
    let status = set.status.clone().unwrap_or_default();
    let wanted = status.desired_number_scheduled;
    let template = set.metadata.annotations.as_ref().and_then(|all| all.get(TEMPLATE));
    let generation = template.cloned().unwrap_or_else(|| set.metadata.generation.unwrap_or_default().to_string());
    let is_new = |pod: &&Pod| pod.metadata.labels.as_ref().and_then(|all| all.get(OF_TEMPLATE)) == Some(&generation);
    let nodes: BTreeSet<&str> = pods.iter().filter(is_new).filter(|pod| is_ready(pod)).filter_map(node_of).collect();
    let ready = i32::try_from(nodes.len()).unwrap_or(i32::MAX);
    let is_seen = status.observed_generation >= set.metadata.generation;
    Step {
        is_done: is_seen && ready >= wanted,
        told: format!("{ready} of {wanted} nodes have a new one that is ready"),
    }
}

/// Where a pod is.
pub fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

/// As its kubelet says.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|one| one.type_ == "Ready" && one.status == "True")
}

/// Why a pod is not ready, if it is not.
pub fn obstacle(pod: &Pod) -> Option<String> {
    if is_ready(pod) || pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let place = node_of(pod).map_or_else(|| "on no node".to_string(), |node| format!("on {node}"));
    let status = pod.status.clone().unwrap_or_default();
    let waiting = status.container_statuses.into_iter().flatten().find_map(|container| container.state?.waiting);
    let unscheduled =
        status.conditions.into_iter().flatten().find(|one| one.type_ == "PodScheduled" && one.status == "False");
    let why = match (waiting, unscheduled) {
        (Some(waiting), _) => [waiting.reason, waiting.message].into_iter().flatten().collect::<Vec<_>>().join(": "),
        (None, Some(condition)) => condition.message.unwrap_or_default(),
        (None, None) if node_of(pod).is_none() => "nobody has placed it yet".into(),
        (None, None) => "it runs and is not ready; its log has why".into(),
    };
    Some(format!("pod {name} {place}: {why}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(node: &str, generation: &str, ready: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": format!("agent-{node}"), "labels": {OF_TEMPLATE: generation}},
            "spec": {"nodeName": node, "containers": []},
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        }))
        .unwrap()
    }

    #[test]
    fn agents_are_there_when_each_node_has_a_new_one() {
        let set = |observed: i64| -> DaemonSet {
            serde_json::from_value(json!({
                "metadata": {"generation": 3, "annotations": {TEMPLATE: "2"}},
                "spec": {"selector": {}, "template": {}},
                "status": {"observedGeneration": observed, "desiredNumberScheduled": 2, "currentNumberScheduled": 2,
                    "numberMisscheduled": 0, "numberReady": 2},
            }))
            .unwrap()
        };
        let (old, new) = (|node| pod(node, "1", "True"), |node| pod(node, "2", "True"));
        let table = [
            (3, vec![new("a"), new("b")], true, "2 of 2"),
            // The old one still serves what it has.
            (3, vec![old("a"), new("a"), old("b"), new("b")], true, "2 of 2"),
            (3, vec![old("a"), old("b"), new("a")], false, "1 of 2"),
            (3, vec![new("a"), pod("b", "2", "False")], false, "1 of 2"),
            // The controller has not seen it yet.
            (2, vec![new("a"), new("b")], false, "2 of 2"),
        ];
        for (observed, pods, is_done, told) in table {
            let step = agents_step(&set(observed), &pods);
            assert_eq!((step.is_done, step.told.starts_with(told)), (is_done, true), "{step:?}");
        }
    }

    #[test]
    fn why_a_pod_is_not_ready() {
        let waiting = json!({
            "metadata": {"name": "agent"}, "spec": {"nodeName": "n1", "containers": []},
            "status": {"containerStatuses": [{"name": "agent", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}]},
        });
        let unscheduled = json!({
            "metadata": {"name": "agent"}, "spec": {"containers": []},
            "status": {"conditions": [{"type": "PodScheduled", "status": "False", "message": "no memory"}]},
        });
        let table = [
            (waiting, Some("pod agent on n1: ImagePullBackOff: no such image")),
            (unscheduled, Some("pod agent on no node: no memory")),
            (serde_json::to_value(pod("n1", "1", "True")).unwrap(), None),
        ];
        for (pod, expected) in table {
            assert_eq!(obstacle(&serde_json::from_value(pod).unwrap()).as_deref(), expected);
        }
    }
}
