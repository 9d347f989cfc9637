//! What the container runtime starts: `nodemesh-cni`, last in the chain. It hands the pod's sandbox to the agent, waits for
//! capture, and passes the result of the plugins before it on as it is.
//!
//! It keeps nobody out but pods of the mesh. Those of the mesh's own namespace never wait; where no agent answers, the API
//! server says whether a pod is labelled at all.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::Api;
use kube::api::PartialObjectMeta;
use serde_json::{Value, json};

use super::ask::{self, About, Answer, Question};
use super::spec::{Failure, NetworkConfig, PodName, VERSIONS, code, pod_ips};
use super::{SOCKET, desk};
use crate::apiserver::{self, ApiServer};
use crate::discovery::{MESH_LABEL, MESH_NAMESPACE};

/// A little longer than the agent takes.
pub(super) const ANSWER: Duration = desk::PATIENCE.saturating_add(Duration::from_secs(5));
/// For the API server, where no agent answers.
pub(super) const API: Duration = Duration::from_secs(10);
/// To tell of a sandbox's end. Nothing depends on it.
pub(super) const FAREWELL: Duration = Duration::from_secs(2);
/// Where kubelet keeps the uid by which it runs a static pod; the API server's copy has another.
const STATIC_UID: &str = "kubernetes.io/config.hash";

/// What the runtime says in the environment.
#[derive(Clone, Debug, Default)]
pub struct Call {
    /// CNI_COMMAND
    pub command: String,
    /// CNI_CONTAINERID
    pub container: String,
    /// CNI_NETNS
    pub netns: String,
    /// CNI_ARGS
    pub arguments: String,
}

impl Call {
    /// Reads the environment; None where this was not started as a plugin.
    pub fn of_environment() -> Option<Self> {
        let variable = |name: &str| std::env::var(name).unwrap_or_default();
        let command = std::env::var("CNI_COMMAND").ok()?;
        let (container, netns) = (variable("CNI_CONTAINERID"), variable("CNI_NETNS"));
        Some(Self { command, container, netns, arguments: variable("CNI_ARGS") })
    }
}

/// Does what the runtime asks for, and says how it ended on `out`.
pub fn run(call: &Call, input: impl Read, out: &mut impl Write) -> ExitCode {
    let (version, done) = match NetworkConfig::read(input) {
        // The specification has VERSION come with a configuration, and runtimes exist that give none.
        Err(_) if call.command == "VERSION" => (newest().to_string(), Ok(Some(versions(newest())))),
        Err(failure) => (newest().to_string(), Err(failure)),
        Ok(config) => (config.cni_version.clone(), carry_out(call, &config)),
    };
    let (said, status) = match done {
        Ok(Some(result)) => (Some(result), ExitCode::SUCCESS),
        Ok(None) => (None, ExitCode::SUCCESS),
        Err(failure) => (Some(failure.to_json(&version)), ExitCode::FAILURE),
    };
    if let Some(said) = said {
        // A runtime that does not listen has gone.
        let _ = writeln!(out, "{said}");
    }
    status
}

fn newest() -> &'static str {
    VERSIONS.last().copied().unwrap_or_default()
}

fn versions(version: &str) -> Value {
    json!({"cniVersion": version, "supportedVersions": VERSIONS})
}

fn carry_out(call: &Call, config: &NetworkConfig) -> Result<Option<Value>, Failure> {
    match call.command.as_str() {
        "VERSION" => Ok(Some(versions(&config.cni_version))),
        "ADD" => add(call, config).map(Some),
        "CHECK" => check(call, config).map(|()| None),
        "DEL" => {
            del(call, config);
            Ok(None)
        }
        // That no agent answers is no reason to call the node's network broken: most pods do not wait for it. What was
        // left behind the agent finds by itself.
        "STATUS" | "GC" => Ok(None),
        other => Err(Failure::new(code::ENVIRONMENT, format!("CNI_COMMAND {other:?} is not known"))),
    }
}

fn add(call: &Call, config: &NetworkConfig) -> Result<Value, Failure> {
    let chained = "there is no prevResult: nodemesh-cni comes after the plugin that makes the pod's network";
    let result = config.prev_result.clone().ok_or_else(|| Failure::new(code::CONFIG, chained))?;
    let pod = PodName::read(&call.arguments);
    // Not kubelet's, or a runtime that does not say whose it is: nothing can be waited for.
    if !pod.is_whole() || pod.namespace == MESH_NAMESPACE {
        return Ok(result);
    }
    let netns = File::open(&call.netns);
    let netns = netns.map_err(|error| Failure::new(code::ENVIRONMENT, format!("{}: {error}", call.netns)))?;
    let question = question(About::Add, call, pod.clone(), pod_ips(&result));
    let waits = |reason: String| Failure::new(code::LATER, format!("nodemesh: {reason}"));
    match ask::ask(socket(config), &question, Some(netns.as_fd()), ANSWER) {
        Ok(Answer::Done | Answer::NotMeshed) => Ok(result),
        Ok(Answer::Failed { reason }) => Err(waits(format!("the pod is of the mesh and is not captured: {reason}"))),
        Ok(Answer::Unknown) => {
            without_agent(config, &pod, "the agent on this node has not heard of the pod yet").map_err(waits)?;
            Ok(result)
        }
        Err(error) => {
            without_agent(config, &pod, &format!("no agent answers on this node ({error})")).map_err(waits)?;
            Ok(result)
        }
    }
}

fn check(call: &Call, config: &NetworkConfig) -> Result<(), Failure> {
    let pod = PodName::read(&call.arguments);
    if !pod.is_whole() || pod.namespace == MESH_NAMESPACE {
        return Ok(());
    }
    match ask::ask(socket(config), &question(About::Check, call, pod, Vec::new()), None, ANSWER) {
        Ok(Answer::Failed { reason }) => Err(Failure::new(code::NOT_CAPTURED, format!("nodemesh: {reason}"))),
        // What is captured stays so without an agent.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Always succeeds: capture goes with the pod, and the agent looks for itself.
fn del(call: &Call, config: &NetworkConfig) {
    let pod = PodName::read(&call.arguments);
    let _ = ask::ask(socket(config), &question(About::Del, call, pod, Vec::new()), None, FAREWELL);
}

fn socket(config: &NetworkConfig) -> &Path {
    config.socket.as_deref().unwrap_or(Path::new(SOCKET))
}

fn question(about: About, call: &Call, pod: PodName, ips: Vec<std::net::IpAddr>) -> Question {
    let PodName { namespace, name, uid } = pod;
    let (container, netns) = (call.container.clone(), call.netns.as_str().into());
    Question { about, container, uid, namespace, name, ips, netns }
}

/// Whether a pod may start that no agent answers for; else why it waits.
fn without_agent(config: &NetworkConfig, pod: &PodName, trouble: &str) -> Result<(), String> {
    let labels = config.kubeconfig.clone().ok_or_else(|| "no kubeconfig is configured".to_string());
    match labels.and_then(|kubeconfig| labels_of(kubeconfig, pod)) {
        Ok(labels) if labels.is_meshed(&pod.uid) => {
            Err(format!("{trouble}; the pod is of the mesh (label {MESH_LABEL}) and waits for it"))
        }
        Ok(_) => Ok(()),
        Err(reason) => Err(format!("{trouble}, and whether the pod is of the mesh cannot be told: {reason}")),
    }
}

/// What the API server says of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Labels {
    namespace: Option<String>,
    pod: Option<String>,
    /// By which kubelet runs it, if it is a static pod.
    static_uid: Option<String>,
}

impl Labels {
    /// A word that is not known may have been meant as yes.
    fn is_meshed(&self, uid: &str) -> bool {
        if self.static_uid.as_deref() == Some(uid) {
            // The mesh finds pods by the API server's uid: a static pod is none of it.
            return false;
        }
        let said = self.pod.as_deref().or(self.namespace.as_deref());
        !matches!(said, None | Some("disabled"))
    }
}

fn labels_of(kubeconfig: PathBuf, pod: &PodName) -> Result<Labels, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("no runtime: {error}"))?;
    let asked = runtime.block_on(async { tokio::time::timeout(API, ask_api(kubeconfig, pod)).await });
    asked.map_err(|_| format!("the API server did not answer within {} s", API.as_secs()))?
}

async fn ask_api(kubeconfig: PathBuf, pod: &PodName) -> Result<Labels, String> {
    let told = |error: &(dyn std::error::Error + 'static)| apiserver::chain(error);
    let server = ApiServer::find(Some(kubeconfig)).await.map_err(|error| told(&error))?;
    let client = server.client().map_err(|error| told(&error))?;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let pods: Api<Pod> = Api::namespaced(client, &pod.namespace);
    let namespace = namespaces.get_metadata(&pod.namespace).await.map_err(|error| told(&error))?;
    let found = pods.get_metadata(&pod.name).await.map_err(|error| told(&error))?;
    Ok(Labels {
        namespace: label(&namespace),
        pod: label(&found),
        static_uid: found.metadata.annotations.as_ref().and_then(|notes| notes.get(STATIC_UID)).cloned(),
    })
}

fn label<K>(object: &PartialObjectMeta<K>) -> Option<String> {
    object.metadata.labels.as_ref()?.get(MESH_LABEL).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=u-1";

    fn call(command: &str, arguments: &str) -> Call {
        let (container, netns) = ("c1".into(), "/proc/self/ns/net".into());
        Call { command: command.into(), container, netns, arguments: arguments.into() }
    }

    /// What is said, where no agent answers.
    fn said(command: &str, arguments: &str, config: &str) -> (ExitCode, Value) {
        let mut out = Vec::new();
        let status = run(&call(command, arguments), config.as_bytes(), &mut out);
        (status, serde_json::from_slice(&out).unwrap_or(Value::Null))
    }

    const CONFIG: &str = r#"{"cniVersion": "0.4.0", "name": "n", "type": "nodemesh-cni", "socket": "/nowhere/cni.sock",
        "prevResult": {"cniVersion": "0.4.0", "ips": [{"address": "10.0.0.2/24"}], "dns": {}}}"#;

    #[test]
    fn versions_are_said_with_and_without_a_configuration() {
        for config in ["", CONFIG] {
            let (status, said) = said("VERSION", "", config);
            assert_eq!(status, ExitCode::SUCCESS);
            assert_eq!(said["supportedVersions"], json!(VERSIONS));
        }
    }

    #[test]
    fn a_sandbox_of_the_meshs_own_or_of_no_pod_does_not_wait() {
        let own = POD.replace("shop", MESH_NAMESPACE);
        for arguments in ["", "IgnoreUnknown=1", &own] {
            let (status, said) = said("ADD", arguments, CONFIG);
            assert_eq!(status, ExitCode::SUCCESS, "{arguments}");
            assert_eq!(said["ips"][0]["address"], "10.0.0.2/24", "{arguments}");
        }
    }

    #[test]
    fn where_nothing_can_be_told_a_pod_waits_and_says_why() {
        let (status, said) = said("ADD", POD, CONFIG);
        assert_eq!(status, ExitCode::FAILURE);
        assert_eq!((&said["code"], &said["cniVersion"]), (&json!(code::LATER), &json!("0.4.0")));
        let message = said["msg"].as_str().unwrap_or_default();
        assert!(message.contains("no agent answers") && message.contains("cannot be told"), "{message}");
    }

    #[test]
    fn an_end_always_succeeds_and_so_does_what_needs_no_agent() {
        for command in ["DEL", "STATUS", "GC", "CHECK"] {
            assert_eq!(said(command, POD, CONFIG), (ExitCode::SUCCESS, Value::Null), "{command}");
        }
        assert_eq!(said("ADD", POD, "{}").0, ExitCode::FAILURE);
        let alone = CONFIG.replace("prevResult", "other");
        assert_eq!(said("ADD", POD, &alone).1["code"], code::CONFIG);
        assert_eq!(said("DANCE", POD, CONFIG).1["code"], code::ENVIRONMENT);
    }

    #[test]
    fn who_is_of_the_mesh() {
        let labels = |namespace: &str, pod: &str, uid: &str| {
            let some = |text: &str| Some(text.to_string()).filter(|text| !text.is_empty());
            Labels { namespace: some(namespace), pod: some(pod), static_uid: some(uid) }
        };
        let table = [
            (labels("", "", ""), false),
            (labels("enabled", "", ""), true),
            (labels("enabled", "disabled", ""), false),
            (labels("", "enabled", ""), true),
            (labels("disabled", "enabled", ""), true),
            (labels("enabld", "", ""), true),
            (labels("enabled", "", "u-1"), false),
            (labels("enabled", "", "u-2"), true),
        ];
        for (labels, expected) in table {
            assert_eq!(labels.is_meshed("u-1"), expected, "{labels:?}");
        }
    }
}
