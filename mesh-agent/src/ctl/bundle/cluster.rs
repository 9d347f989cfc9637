//! What the API server says for a bundle: the mesh's pods, their logs and events, nodes, and the objects that the mesh reads.
//! Secrets and ConfigMaps are not asked for, nor pods outside the mesh's own namespace.

use anyhow::Result;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DynamicObject, ListParams, LogParams};
use kube::core::GroupVersionKind;
use kube::discovery::ApiResource;
use kube::{Api, Client};
use serde_json::{Value, json};

use super::archive::{Archive, Content};
use super::{Clock, MAX_LOG_BYTES, MAX_LOG_LINES, MAX_OBJECTS, scrub};
use crate::apiserver::{ApiServer, chain};

/// What is listed: file, group, the versions that may be served (the best first), kind; in the mesh's namespace alone or in all.
type Listed = (&'static str, &'static str, &'static [&'static str], &'static str, bool);

const GATEWAY: &str = "gateway.networking.k8s.io";
const OURS: &str = "nodemesh.dev";
const OBJECTS: [Listed; 16] = [
    ("cluster/nodes", "", &["v1"], "Node", false),
    ("cluster/definitions", "apiextensions.k8s.io", &["v1"], "CustomResourceDefinition", false),
    ("mesh/pods", "", &["v1"], "Pod", true),
    ("mesh/events", "", &["v1"], "Event", true),
    ("mesh/daemonsets", "apps", &["v1"], "DaemonSet", true),
    ("mesh/deployments", "apps", &["v1"], "Deployment", true),
    ("objects/peerauthentications", OURS, &["v1alpha1"], "PeerAuthentication", false),
    ("objects/authorizationpolicies", OURS, &["v1alpha1"], "AuthorizationPolicy", false),
    ("objects/requestauthentications", OURS, &["v1alpha1"], "RequestAuthentication", false),
    ("objects/trafficpolicies", OURS, &["v1alpha1"], "TrafficPolicy", false),
    ("objects/externalauthorizers", OURS, &["v1alpha1"], "ExternalAuthorizer", false),
    ("objects/httproutes", GATEWAY, &["v1", "v1beta1"], "HTTPRoute", false),
    ("objects/grpcroutes", GATEWAY, &["v1"], "GRPCRoute", false),
    ("objects/tcproutes", GATEWAY, &["v1"], "TCPRoute", false),
    ("objects/tlsroutes", GATEWAY, &["v1"], "TLSRoute", false),
    ("objects/referencegrants", GATEWAY, &["v1", "v1beta1"], "ReferenceGrant", false),
];

/// Asks one thing after the other, and adds what was said.
pub async fn gather(server: &ApiServer, namespace: &str, clock: &Clock, archive: &mut Archive) -> Result<()> {
    let client = server.client()?;
    let version = within(clock, client.apiserver_version()).await.map(|info| {
        let said = json!({"meshctl": env!("CARGO_PKG_VERSION"), "apiServer": info.git_version});
        content(said, false)
    });
    archive.add("cluster/versions.json", version)?;
    for (file, group, versions, kind, is_of_mesh) in OBJECTS {
        let place = is_of_mesh.then_some(namespace);
        let listed = list(&client, clock, group, versions, kind, place).await;
        archive.add(&format!("{file}.json"), listed)?;
    }
    logs(&client, namespace, clock, archive).await
}

async fn within<T>(clock: &Clock, asked: impl Future<Output = kube::Result<T>>) -> Result<T, String> {
    match clock.within(asked).await? {
        Ok(answer) => Ok(answer),
        Err(kube::Error::Api(status)) => Err(status.message.clone()),
        Err(error) => Err(chain(&error)),
    }
}

async fn list(
    client: &Client,
    clock: &Clock,
    group: &str,
    versions: &[&str],
    kind: &str,
    namespace: Option<&str>,
) -> Result<Content, String> {
    let mut answer = Err("not served".to_string());
    for version in versions {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        let objects: Api<DynamicObject> = match namespace {
            Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
            None => Api::all_with(client.clone(), &resource),
        };
        match clock.within(objects.list(&ListParams::default().limit(MAX_OBJECTS))).await? {
            Ok(list) => {
                let cut = list.metadata.continue_.is_some_and(|token| !token.is_empty());
                let items: Result<Vec<Value>, _> = list.items.iter().map(serde_json::to_value).collect();
                let mut items = items.map_err(|error| error.to_string())?;
                match kind {
                    "Pod" => items.iter_mut().for_each(scrub::environment),
                    // What each version may say is in the release; what is served and stored is not.
                    "CustomResourceDefinition" => items.iter_mut().for_each(without_schemas),
                    _ => {}
                }
                return Ok(content(Value::Array(items), cut));
            }
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(kube::Error::Api(status)) => answer = Err(status.message.clone()),
            Err(error) => return Err(chain(&error)),
        }
    }
    answer
}

fn without_schemas(definition: &mut Value) {
    let versions = definition.pointer_mut("/spec/versions").and_then(Value::as_array_mut);
    for version in versions.into_iter().flatten().filter_map(Value::as_object_mut) {
        version.remove("schema");
    }
}

fn content(mut said: Value, cut: bool) -> Content {
    let removed = scrub::json(&mut said);
    Content { text: format!("{said:#}\n"), cut, removed }
}

/// The last lines of every container of the mesh's namespace, and of the run before where there was one.
async fn logs(client: &Client, namespace: &str, clock: &Clock, archive: &mut Archive) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let of_mesh = ListParams::default().labels("app.kubernetes.io/name in (nodemesh-agent, nodemesh-controller)");
    let listed = match within(clock, pods.list(&of_mesh.limit(MAX_OBJECTS))).await {
        Ok(listed) => listed,
        Err(why) => return archive.add("logs", Err(why)),
    };
    for pod in listed.items {
        let name = pod.metadata.name.unwrap_or_default();
        for status in pod.status.and_then(|status| status.container_statuses).unwrap_or_default() {
            let runs: &[bool] = if status.restart_count > 0 { &[false, true] } else { &[false] };
            for previous in runs {
                let parameters = LogParams {
                    container: Some(status.name.clone()),
                    previous: *previous,
                    tail_lines: Some(MAX_LOG_LINES.into()),
                    limit_bytes: Some(MAX_LOG_BYTES.into()),
                    timestamps: true,
                    ..LogParams::default()
                };
                let said = within(clock, pods.logs(&name, &parameters)).await.map(|said| {
                    let is_cut = said.len() >= MAX_LOG_BYTES as usize || said.lines().count() >= MAX_LOG_LINES as usize;
                    let (text, removed) = scrub::text(&said);
                    Content { text, cut: is_cut, removed }
                });
                let run = if *previous { "-before" } else { "" };
                archive.add(&format!("logs/{name}/{}{run}.log", status.name), said)?;
            }
        }
    }
    Ok(())
}
