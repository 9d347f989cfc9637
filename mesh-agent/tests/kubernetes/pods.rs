//! What the node's plugin asks about a pod where no agent answers, and what a pod's status says of the mesh.

use std::process::ExitCode;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use mesh_agent::capture::Standing;
use mesh_agent::cni::plugin::{self, Call};
use mesh_agent::conditions;
use mesh_agent::drain::Drain;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::world::{Agent, NODE, namespace, pod};
use crate::apiserver_rig::{Hand, Plane, eventually};

/// What the plugin says to ADD for a pod, with no agent on the node.
async fn add(plane: &Plane, user: &str, namespace: &str, name: &str) -> (bool, Value) {
    let config = json!({
        "cniVersion": "1.0.0", "name": "n", "type": "nodemesh-cni", "socket": "/nowhere/cni.sock",
        "kubeconfig": plane.kubeconfig(user), "prevResult": {"cniVersion": "1.0.0", "ips": [{"address": "10.1.1.9/32"}]},
    });
    let call = Call {
        command: "ADD".into(),
        container: "c1".into(),
        netns: "/proc/self/ns/net".into(),
        arguments: format!("K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_UID=u-1"),
    };
    let asked = tokio::task::spawn_blocking(move || {
        let mut said = Vec::new();
        let status = plugin::run(&call, config.to_string().as_bytes(), &mut said);
        (status == ExitCode::SUCCESS, serde_json::from_slice(&said).unwrap())
    });
    asked.await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_agent_the_api_server_says_which_pods_wait() {
    let Some(mut plane) = Plane::start("without_an_agent_the_api_server_says").await else { return };
    let hand = Hand { client: plane.admin().await };
    hand.create(&namespace("shop", json!({"nodemesh.dev/mesh": "enabled"}))).await;
    hand.create(&namespace("bare", json!({}))).await;
    let mut optout = pod("shop", "optout", NODE, "10.1.1.3");
    optout["metadata"]["labels"]["nodemesh.dev/mesh"] = "disabled".into();
    for object in [pod("shop", "web", NODE, "10.1.1.1"), optout, pod("bare", "plain", NODE, "10.1.1.2")] {
        hand.create(&object).await;
    }
    let (passes, said) = add(&plane, "admin", "shop", "web").await;
    let message = said["msg"].as_str().unwrap_or_default();
    assert!(!passes && message.contains("nodemesh.dev/mesh"), "{said}");
    for (namespace, name) in [("bare", "plain"), ("shop", "optout")] {
        let (passes, said) = add(&plane, "admin", namespace, name).await;
        assert!(passes && said["ips"][0]["address"] == "10.1.1.9/32", "{namespace}/{name}: {said}");
    }
    // Nothing can be told: no right, no such pod, no API server.
    for (user, name) in [("nobody", "plain"), ("admin", "missing")] {
        let (passes, said) = add(&plane, user, "bare", name).await;
        assert!(!passes && said["msg"].as_str().unwrap_or_default().contains("cannot be told"), "{user}: {said}");
    }
    plane.kill_apiserver();
    let (passes, said) = add(&plane, "admin", "bare", "plain").await;
    assert!(!passes && said["code"] == 11, "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pods_status_says_whether_it_is_captured() {
    const GATE: &str = "pod/shop/web";
    let Some(plane) = Plane::start("a_pods_status_says_whether_it_is_captured").await else { return };
    let hand = Hand { client: plane.admin().await };
    let shop = namespace("shop", json!({"nodemesh.dev/mesh": "enabled"}));
    hand.create(&shop).await;
    hand.create(&pod("shop", "web", NODE, "10.1.1.1")).await;
    hand.create(&pod("shop", "far", "node-2", "10.1.2.1")).await;
    let agent = Agent::start(&plane, "admin");
    agent.ready().await;
    let (standing, is_owner) = watch::channel(Standing::Owner);
    let drain = Drain::new();
    let readiness = agent.readiness.clone();
    let told = conditions::tell(hand.client.clone(), agent.state.clone(), readiness.clone(), is_owner, drain.token());
    let told = tokio::spawn(told);
    let pods: Api<Pod> = Api::namespaced(hand.client.clone(), "shop");
    let says = |name: &'static str| {
        let pods = pods.clone();
        async move {
            let conditions = pods.get(name).await.unwrap().status.unwrap().conditions.unwrap_or_default();
            let condition = conditions.into_iter().find(|condition| condition.type_ == conditions::CAPTURED)?;
            Some((condition.status, condition.reason.unwrap_or_default()))
        }
    };
    let becomes = |status: &'static str, reason: &'static str| async move {
        eventually(reason, || async { says("web").await == Some((status.to_string(), reason.to_string())) }).await;
    };
    becomes("False", "NotCaptured").await;
    readiness.ready(GATE);
    becomes("True", "Captured").await;
    readiness.noted(GATE, "no routes");
    becomes("False", "NotCaptured").await;
    readiness.ready(GATE);
    becomes("True", "Captured").await;
    // Beside a newer agent it holds its tongue.
    standing.send_replace(Standing::Superseded { by: 1, ready: true });
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    readiness.noted(GATE, "the older agent's view");
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    assert_eq!(says("web").await.unwrap().0, "True");
    readiness.ready(GATE);
    standing.send_replace(Standing::Owner);
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    hand.patch(&shop, json!({"metadata": {"labels": {"nodemesh.dev/mesh": null}}})).await;
    becomes("False", "NotInMesh").await;
    assert_eq!(says("far").await, None, "another node's pod");
    // What is taken back once is let be.
    let labelled = json!({"metadata": {"labels": {"nodemesh.dev/mesh": "enabled"}}});
    hand.patch(&shop, labelled).await;
    becomes("True", "Captured").await;
    // A label goes while no agent speaks; the next one takes back what the last one told.
    drain.start();
    told.await.unwrap();
    hand.patch(&shop, json!({"metadata": {"labels": {"nodemesh.dev/mesh": null}}})).await;
    let version = || async { pods.get("web").await.unwrap().metadata.resource_version };
    eventually("the agent to know", || async {
        agent.state.current().local_workloads().all(|workload| !workload.enrolled)
    })
    .await;
    assert_eq!(says("web").await.unwrap().0, "True");
    for round in 0..2 {
        let (drain, before) = (Drain::new(), version().await);
        let (_standing, is_owner) = watch::channel(Standing::Owner);
        let next =
            conditions::tell(hand.client.clone(), agent.state.clone(), readiness.clone(), is_owner, drain.token());
        let next = tokio::spawn(next);
        becomes("False", "NotInMesh").await;
        tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
        drain.start();
        next.await.unwrap();
        assert_eq!(version().await == before, round == 1, "it is taken back once");
    }
    let conditions = pods.get("web").await.unwrap().status.unwrap().conditions.unwrap();
    assert!(conditions.iter().any(|condition| condition.type_ == "Ready"), "kubelet's own stay: {conditions:?}");
}
