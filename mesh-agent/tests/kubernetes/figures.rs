//! What 10 000 pods cost an agent's discovery, through a real API server. Prints; asserts what the project promises, with
//! room for a busy machine.
//!
//! cargo test --release -p mesh-agent --test kubernetes -- --ignored --nocapture figures

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::world::{Agent, NODE, namespace, node, pod, service, slice};
use crate::apiserver_rig::{Hand, Plane};

const PODS: usize = 10_000;
const SERVICES: usize = 1_000;
const NAMESPACES: usize = 100;
const NODES: usize = 100;
/// Requests under way while the world is made.
const AT_ONCE: usize = 16;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "figures, for a release build"]
async fn figures_of_ten_thousand_pods() {
    let Some(mut plane) = Plane::start("figures_of_ten_thousand_pods").await else { return };
    let hand = Hand { client: plane.admin().await };
    hand.define().await;
    let since = Instant::now();
    let names = (0..NAMESPACES).map(|index| namespace(&format!("ns-{index}"), json!({"nodemesh.dev/mesh": "enabled"})));
    let nodes = (0..NODES).map(|index| node(&format!("node-{index}"), &format!("192.168.1.{index}")));
    make(&hand, names.chain(nodes).collect()).await;
    let services = (0..SERVICES).flat_map(|index| {
        let ips: Vec<String> = (0..PODS / SERVICES).map(|number| ip(index + number * SERVICES)).collect();
        let ips: Vec<&str> = ips.iter().map(String::as_str).collect();
        let (namespace, name) = (format!("ns-{}", index % NAMESPACES), format!("s-{index}"));
        [service(&namespace, &name), slice(&namespace, &name, &ips)]
    });
    make(&hand, services.collect()).await;
    make(&hand, (0..PODS).map(one).collect()).await;
    println!("{PODS} pods, {SERVICES} Services with a slice each, made in {:?}", since.elapsed());

    let before = resident();
    let since = Instant::now();
    let agent = Agent::start(&plane, "admin");
    agent.ready().await;
    let listed = since.elapsed();
    assert_eq!(agent.pods(), PODS);
    let held = resident().saturating_sub(before) >> 20;
    println!("the first snapshot after {listed:?}, {held} MiB more resident");

    for (what, index) in [("a pod of this node", 1), ("a pod elsewhere", 2)] {
        let mut times = Vec::new();
        let object = one(index);
        for round in 0..21 {
            let (label, enrolled) = if round % 2 == 0 { (json!("disabled"), false) } else { (json!(null), true) };
            let since = Instant::now();
            hand.patch(&object, json!({"metadata": {"labels": {"nodemesh.dev/mesh": label}}})).await;
            let answered = since.elapsed();
            agent.eventually("the label", |agent| agent.is_enrolled(&ip(index)) == enrolled).await;
            times.push((since.elapsed(), answered));
        }
        times.sort();
        let (median, worst) = (times[10], times[20]);
        println!("{what} labelled: in a snapshot after {median:?} (of which the request), worst {worst:?}");
        assert!(worst.0 < Duration::from_secs(2), "{worst:?}");
    }

    // The list anew, while a pod of this node is labelled.
    plane.kill_apiserver();
    plane.forget_history();
    plane.start_apiserver();
    plane.ready().await;
    let since = Instant::now();
    agent
        .eventually("all lists", |agent| {
            assert_eq!(agent.pods(), PODS);
            agent.health.report().unreachable.is_none() && agent.lists("pods (elsewhere)") >= 2
        })
        .await;
    println!("after a restart of the API server all is listed anew in {:?}", since.elapsed());
    println!("at the end {} MiB more than at the beginning", resident().saturating_sub(before) >> 20);
}

/// Pods go round the nodes: every hundredth is of the agent's node.
fn one(index: usize) -> Value {
    let node = if index % NODES == 1 { NODE.to_string() } else { format!("node-{}", index % NODES) };
    pod(&format!("ns-{}", index % NAMESPACES), &format!("p-{index}"), &node, &ip(index))
}

fn ip(index: usize) -> String {
    format!("10.{}.{}.{}", 1 + index / 62_500, index / 250 % 250, 1 + index % 250)
}

async fn make(hand: &Hand, objects: Vec<Value>) {
    let mut tasks = tokio::task::JoinSet::new();
    let share = objects.len().div_ceil(AT_ONCE).max(1);
    for part in objects.chunks(share) {
        let (hand, part) = (hand.clone(), part.to_vec());
        tasks.spawn(async move { hand.create_all(&part).await });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
}

/// Bytes of memory that this process has.
fn resident() -> usize {
    let pages = fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}
