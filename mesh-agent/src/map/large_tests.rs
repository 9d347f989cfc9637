//! A large cluster, through all that the controller does with what it is told: what that takes is bounded, and what somebody
//! should look at is shown.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::{Value, json};

use super::heard::{MOST_BYTES, MOST_EDGES_READ};
use super::history::MOST_EDGES;
use super::picture::{MOST_DENIALS, MOST_REASONS, MOST_WORKLOADS};
use super::reading::{Counts, Party, Requests};
use super::*;
use crate::told::Counted;

const NODES: usize = 300;
const WORKLOADS: usize = 10_000;
const CALLS: usize = 3;

/// What an SSE message may weigh: a browser reads one in a moment, and thirty-two pages at once are no flood.
const PICTURE_BYTES: usize = 3 << 20;

struct Large;

fn account(number: usize) -> String {
    format!("namespace-{:02}/service-account-{number:05}", number % 40)
}

fn identity(number: usize) -> String {
    let account = account(number);
    let (namespace, name) = account.split_once('/').unwrap();
    format!("spiffe://cluster.local/ns/{namespace}/sa/{name}")
}

/// A workload has one pod, and a node each three hundredth workload.
fn on(node: usize) -> impl Iterator<Item = usize> {
    (node..WORKLOADS).step_by(NODES)
}

fn called_by(number: usize) -> impl Iterator<Item = usize> {
    (1..=CALLS).map(move |call| (number + call * 7) % WORKLOADS)
}

impl Cluster for Large {
    fn pods(&self) -> Pods {
        let node = |node: usize| {
            let pods = on(node).map(|number| (format!("{}-0", account(number)), (identity(number), Vec::new())));
            (format!("node-{node:03}"), OnNode { pods: pods.collect(), is_meshed: true })
        };
        (0..NODES).map(node).collect()
    }

    fn shown(&self) -> Value {
        json!({"services": [], "routes": {"routes": []}, "policies": {}})
    }
}

/// What one end has counted after so many rounds.
fn counts(round: u64, is_failing: bool) -> Counts {
    let requests = Requests {
        count: 1000 * round,
        failed: if is_failing { 500 * round } else { 0 },
        within: (1..=16).map(|bound| (bound * 1000, 60 * bound * round)).collect(),
        ..Requests::default()
    };
    Counts {
        connections: Counted { opened: round, open: 1, sent_bytes: 9999 * round, received_bytes: 9999 * round },
        requests,
        transports: BTreeMap::from([("tunnel".to_string(), round)]),
        ..Counts::default()
    }
}

/// The last workload of all fails for whoever calls it.
const FAILING: usize = WORKLOADS - 1;

fn counted(node: usize, round: u64) -> Bytes {
    let mut reading = Reading::new();
    for own in on(node) {
        for other in called_by(own) {
            let edge = (Party::Account(account(own)), Party::Account(account(other)));
            reading.entry(edge).or_default().outbound = counts(round, other == FAILING);
        }
        for call in 1..=CALLS {
            let caller = (own + WORKLOADS - call * 7) % WORKLOADS;
            let edge = (Party::Account(account(caller)), Party::Account(account(own)));
            reading.entry(edge).or_default().inbound = counts(round, own == FAILING);
        }
    }
    words::written(&reading)
}

fn told(node: usize) -> Report {
    let pod = |number: usize| {
        let account = account(number);
        let (namespace, name) = account.split_once('/').unwrap();
        json!({
            "namespace": namespace, "name": format!("{name}-0"), "identity": identity(number), "ips": [], "enrolled": true,
            "captured": number.is_multiple_of(2), "notCaptured": "its interface is gone",
            "policy": {"allow": [{"id": "namespace-00/only-some"}]},
        })
    };
    let denial = |number: usize| {
        json!({
            "kind": "connection", "direction": "inbound", "result": "denied", "reason": "no-allow-rule", "last": number, "count": 1,
            "sourceIdentity": identity(0), "destinationIdentity": identity(number), "destinationPod": format!("{}-0", account(number)),
        })
    };
    let world = json!({
        "agent": {"version": "1", "node": "?", "started": 1.0, "notReady": {}, "connectionsByWorker": [9]},
        "discovery": {"stateVersion": 1, "ageSeconds": 0.1, "health": {"findings": []}},
        "identities": {"roots": [], "svids": on(node).map(|number| json!({"id": identity(number)})).collect::<Vec<_>>()},
        "workloads": on(node).map(pod).collect::<Vec<_>>(),
    });
    Report {
        counts: counted(node, 1),
        denials: Some(json!(on(node).map(denial).collect::<Vec<_>>()).to_string().into()),
        world: Some(world.to_string().into()),
        ..Report::default()
    }
}

#[tokio::test]
async fn a_large_cluster_is_bounded_and_its_trouble_is_shown() {
    let heard = Heard::new(Large);
    let map = Map::new(heard.clone());
    let streams: Vec<Telling> = (0..NODES).map(|node| heard.begin(&format!("node-{node:03}"), "agent")).collect();
    let mut largest = 0;
    for (node, stream) in streams.iter().enumerate() {
        let report = told(node);
        let parts = [Some(&report.counts), report.denials.as_ref(), report.world.as_ref()];
        largest = largest.max(parts.into_iter().flatten().map(Bytes::len).sum());
        stream.take(report).unwrap();
    }
    heard.refresh();
    map.look().await;
    map.round(true).await;
    // What is new in the second round has a place from then on.
    for round in 2..=3 {
        for (node, stream) in streams.iter().enumerate() {
            stream.take(Report { counts: counted(node, round), ..Report::default() }).unwrap();
        }
        // However slow this machine is.
        heard.refresh();
        map.round(true).await;
    }
    heard.refresh();
    let read: usize = heard.counts().await.iter().map(|(_, reading)| reading.len()).sum();
    let picture = map.shots().borrow().json.clone();
    println!("{largest} bytes of a node, {} of all; {read} edges read; a picture of {}", heard.size(), picture.len());
    assert!(largest < MAX_REPORT_BYTES, "{largest}");
    assert!(heard.size() < MOST_BYTES / 4, "{}", heard.size());
    assert!(read == 2 * CALLS * WORKLOADS && read <= MOST_EDGES_READ, "{read}");
    assert!(picture.len() < PICTURE_BYTES, "{}", picture.len());

    let picture: Value = serde_json::from_slice(&picture).unwrap();
    let list = |name: &str| picture[name].as_array().unwrap();
    assert_eq!(list("agents").len(), NODES);
    assert_eq!(list("denials").len(), MOST_DENIALS);
    let (edges, workloads) = (list("edges"), list("workloads"));
    assert!(edges.len() <= MOST_EDGES + 1 && edges.len() >= MOST_EDGES, "{}", edges.len());
    assert_eq!(workloads.len(), MOST_WORKLOADS);
    // Of the edge that stands for all others nobody has a pod.
    assert_eq!(picture["omitted"], WORKLOADS + 1 - MOST_WORKLOADS);
    assert!(picture["overflowed"].as_u64().unwrap() > 0);
    let ids: BTreeMap<&str, &Value> = workloads.iter().map(|one| (one["id"].as_str().unwrap(), one)).collect();
    let ends = edges.iter().flat_map(|edge| [&edge["from"], &edge["to"]]);
    assert!(ends.clone().all(|end| ids.contains_key(end.as_str().unwrap())), "an edge without an end");
    let failing = account(FAILING);
    let bad = edges.iter().filter(|edge| edge["to"] == failing.as_str() && edge["health"] == "bad").count();
    assert!(bad > 0, "what fails is shown, however much there is");
    assert!(workloads.iter().all(|one| one["why"].as_array().unwrap().len() <= MOST_REASONS + 1));
}
