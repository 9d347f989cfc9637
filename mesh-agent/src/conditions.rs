//! What a pod's own status says of the mesh: the condition `nodemesh.dev/Captured`, for `kubectl` and for readiness gates.
//!
//! Told from what capture says of its pods, to the API server, by the agent of the pod's node alone. Nothing waits for it:
//! an API server that is away is told later. What an earlier agent told and no label says any more is taken back: an agent
//! that begins to own capture reads once what the node's pods say.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::apiserver;
use crate::capture::{POD_GATE, Standing};
use crate::drain::Token;
use crate::limit::{Limit, limits};
use crate::readiness::Readiness;
use crate::state::{MeshState, StateReader, Workload};

/// The condition's type.
pub const CAPTURED: &str = "nodemesh.dev/Captured";
/// How often is looked whether there is something to tell.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long the API server is left alone with a pod that it refused to take.
const PAUSE: Duration = Duration::from_secs(10);
/// The reason of a condition that was taken back.
const NOT_IN_MESH: &str = "NotInMesh";
/// For one answer.
const ANSWER: Duration = Duration::from_secs(10);

/// The bounds of this room.
pub fn limits() -> Vec<Limit> {
    limits![
        LOOK_EVERY, "milliseconds", "between two looks at what pods' conditions should say";
        PAUSE, "milliseconds", "until a pod's condition is told again that could not be told";
        ANSWER, "milliseconds", "for the API server to take a condition";
    ]
}

/// What the condition says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Condition {
    status: bool,
    reason: &'static str,
    message: String,
}

/// A pod that there is something to say of.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Subject {
    namespace: Arc<str>,
    name: Arc<str>,
    condition: Condition,
}

/// Tells the API server of every pod of this node that is of the mesh or was, until `shutdown` starts; only while capture
/// is this agent's: of two the other knows better.
pub async fn tell(
    client: Client,
    state: StateReader,
    readiness: Readiness,
    standing: watch::Receiver<Standing>,
    mut shutdown: Token,
) {
    let (mut told, mut pauses) = (HashMap::new(), HashMap::new());
    let mut earlier = Earlier::default();
    loop {
        let owns = || *standing.borrow() == Standing::Owner;
        let is_owner = owns();
        let node = state.current().node.clone();
        tokio::select! {
            () = shutdown.started() => return,
            () = earlier.read(&client, &node, is_owner) => {}
        }
        // It takes its time, and capture may be another's since.
        let is_owner = is_owner && owns();
        let was_told = |uid: &Arc<str>| told.contains_key(uid) || earlier.spoken_of.contains(uid);
        let subjects = if is_owner { subjects(&state.current(), &readiness, was_told) } else { BTreeMap::new() };
        pauses.retain(|uid, until| subjects.contains_key(uid) && *until > Instant::now());
        for (uid, subject) in &subjects {
            if !owns() {
                break;
            }
            if told.get(uid) == Some(&subject.condition) || pauses.contains_key(uid) {
                continue;
            }
            let patched = tokio::select! {
                () = shutdown.started() => return,
                patched = patch(&client, uid, subject) => patched,
            };
            match patched {
                Ok(()) => drop(told.insert(uid.clone(), subject.condition.clone())),
                Err(reason) => {
                    let Subject { namespace, name, .. } = subject;
                    tracing::debug!(%namespace, %name, reason, "a pod's condition could not be told");
                    pauses.insert(uid.clone(), Instant::now() + PAUSE);
                }
            }
        }
        // What another agent has told meanwhile is told again.
        told.retain(|uid, _| subjects.contains_key(uid));
        tokio::select! {
            () = shutdown.started() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

/// What agents before this one have told.
#[derive(Default)]
struct Earlier {
    /// Pods, by uid, that are said to be of the mesh, captured or not.
    spoken_of: HashSet<Arc<str>>,
    is_read: bool,
    rests_until: Option<Instant>,
}

impl Earlier {
    /// Reads it, when this agent begins to own capture: before, another one speaks.
    async fn read(&mut self, client: &Client, node: &str, is_owner: bool) {
        if !is_owner {
            *self = Self::default();
        }
        if !is_owner || self.is_read || self.rests_until.is_some_and(|until| Instant::now() < until) {
            return;
        }
        let pods: Api<Pod> = Api::all(client.clone());
        let parameters = ListParams::default().fields(&format!("spec.nodeName={node}"));
        let why = match tokio::time::timeout(ANSWER, pods.list(&parameters)).await {
            Ok(Ok(pods)) => {
                (self.spoken_of, self.is_read) = (spoken_of(&pods.items), true);
                return;
            }
            Ok(Err(error)) => apiserver::chain(&error),
            Err(_) => "the API server did not answer".into(),
        };
        tracing::debug!(why, "what the node's pods say of the mesh could not be read");
        self.rests_until = Some(Instant::now() + PAUSE);
    }
}

/// Pods whose status speaks of the mesh and was not taken back.
fn spoken_of(pods: &[Pod]) -> HashSet<Arc<str>> {
    let speaks = |pod: &&Pod| {
        let conditions = pod.status.iter().filter_map(|status| status.conditions.as_ref()).flatten();
        let mut ours = conditions.filter(|condition| condition.type_ == CAPTURED);
        ours.any(|condition| condition.reason.as_deref() != Some(NOT_IN_MESH))
    };
    pods.iter().filter(speaks).filter_map(|pod| pod.metadata.uid.as_deref().map(Arc::from)).collect()
}

/// Those of the mesh, those that ask and cannot be, and those that were told to be of it and are not any more.
fn subjects(
    state: &MeshState,
    readiness: &Readiness,
    was_told: impl Fn(&Arc<str>) -> bool,
) -> BTreeMap<Arc<str>, Subject> {
    let known = state.local_workloads().filter_map(|workload| {
        let condition = condition(workload, readiness, was_told(&workload.uid))?;
        let (namespace, name) = (workload.namespace.clone(), workload.name.clone());
        Some((workload.uid.clone(), Subject { namespace, name, condition }))
    });
    known.collect()
}

fn condition(workload: &Workload, readiness: &Readiness, was_told: bool) -> Option<Condition> {
    let says = |status, reason, message: &str| Some(Condition { status, reason, message: message.into() });
    if let Some(refusal) = workload.refusal {
        return says(false, "NotEnrollable", refusal);
    }
    if !workload.enrolled {
        return was_told.then(|| says(false, NOT_IN_MESH, "no label puts it into the mesh")).flatten();
    }
    let gate = format!("{POD_GATE}{}/{}", workload.namespace, workload.name);
    match readiness.trouble(&gate) {
        Some(None) => says(true, "Captured", &readiness.remark(&gate).unwrap_or_default()),
        Some(Some(reason)) => says(false, "NotCaptured", &reason),
        None => says(false, "NotCaptured", "it was not looked at yet"),
    }
}

async fn patch(client: &Client, uid: &str, subject: &Subject) -> Result<(), String> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &subject.namespace);
    // With another uid it is another pod's: the API server refuses then.
    let body = json!({"metadata": {"uid": uid}, "status": {"conditions": [subject.condition.to_json()]}});
    let (parameters, body) = (PatchParams::default(), Patch::Strategic(body));
    let asked = pods.patch_status(&subject.name, &parameters, &body);
    match tokio::time::timeout(ANSWER, asked).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(apiserver::chain(&error)),
        Err(_) => Err("the API server did not answer".into()),
    }
}

impl Condition {
    fn to_json(&self) -> Value {
        let Self { status, reason, message } = self;
        let now = k8s_openapi::jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        json!({
            "type": CAPTURED,
            "status": if *status { "True" } else { "False" },
            "reason": reason,
            "message": message,
            "lastTransitionTime": now,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spiffe::SpiffeId;

    fn pod() -> Workload {
        Workload {
            uid: "u-1".into(),
            name: "web-0".into(),
            namespace: "shop".into(),
            node: "node".into(),
            identity: SpiffeId::new("cluster.local", "shop", "web").unwrap(),
            ips: vec!["10.0.0.2".parse().unwrap()],
            labels: BTreeMap::new(),
            named_ports: BTreeMap::new(),
            host_ips: vec![],
            host_ports: vec![],
            exclusions: Default::default(),
            probe_ports: Default::default(),
            forwards: false,
            enrolled: true,
            refusal: None,
            host_network: false,
            ready: true,
            terminating: false,
            created: None,
        }
    }

    #[test]
    fn what_a_pod_says_of_the_mesh() {
        let of_gate = |set: fn(&Readiness)| {
            let readiness = Readiness::default();
            set(&readiness);
            readiness
        };
        const GATE: &str = "pod/shop/web-0";
        let captured = of_gate(|readiness| readiness.ready(GATE));
        let waiting = of_gate(|readiness| readiness.waiting(GATE, "no routes"));
        let noted = of_gate(|readiness| readiness.noted(GATE, "no routes"));
        let remarked = of_gate(|readiness| readiness.remarked(GATE, "a link that nobody guards"));
        let unknown = Readiness::default();
        let outside = Workload { enrolled: false, ..pod() };
        let refused = Workload { enrolled: false, refusal: Some("hostNetwork"), ..pod() };
        let table = [
            (pod(), &captured, false, Some((true, "Captured", ""))),
            (pod(), &waiting, true, Some((false, "NotCaptured", "no routes"))),
            (pod(), &noted, false, Some((false, "NotCaptured", "no routes"))),
            (pod(), &remarked, false, Some((true, "Captured", "a link that nobody guards"))),
            (pod(), &unknown, false, Some((false, "NotCaptured", "it was not looked at yet"))),
            (outside.clone(), &captured, false, None),
            (outside, &captured, true, Some((false, "NotInMesh", "no label puts it into the mesh"))),
            (refused, &captured, false, Some((false, "NotEnrollable", "hostNetwork"))),
        ];
        for (workload, readiness, was_told, expected) in table {
            let expected =
                expected.map(|(status, reason, message)| Condition { status, reason, message: message.into() });
            assert_eq!(condition(&workload, readiness, was_told), expected);
        }
    }

    #[test]
    fn what_an_earlier_agent_told_and_did_not_take_back() {
        let table = [
            (json!([]), false),
            (json!([{"type": "Ready", "status": "True", "reason": "Captured"}]), false),
            (json!([{"type": CAPTURED, "status": "True", "reason": "Captured"}]), true),
            (json!([{"type": CAPTURED, "status": "False", "reason": "NotCaptured"}]), true),
            (json!([{"type": CAPTURED, "status": "False", "reason": "NotEnrollable"}]), true),
            (json!([{"type": CAPTURED, "status": "False", "reason": "NotInMesh"}]), false),
        ];
        for (conditions, expected) in table {
            let pod = json!({"metadata": {"uid": "u-1"}, "status": {"conditions": conditions}});
            let pod: Pod = serde_json::from_value(pod).unwrap();
            assert_eq!(spoken_of(&[pod]).contains("u-1"), expected, "{conditions}");
        }
        assert!(spoken_of(&[Pod::default()]).is_empty());
    }

    #[test]
    fn as_the_api_server_wants_it() {
        let condition = Condition { status: false, reason: "NotCaptured", message: "no routes".into() };
        let said = condition.to_json();
        assert_eq!((&said["type"], &said["status"]), (&json!(CAPTURED), &json!("False")));
        let read: k8s_openapi::api::core::v1::PodCondition = serde_json::from_value(said).unwrap();
        assert!(read.last_transition_time.is_some());
    }
}
