//! Servers that say their name, and callers that find out whom they reached and how.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use xtask::testbed::{Process, Testbed, eventually};

use crate::pair::{lines, text_of};

const PATIENCE: Duration = Duration::from_secs(30);

/// Starts a server in a pod that says the pod's name to whoever connects.
pub fn say_names(bed: &Testbed, pods: &[&str], port: u16) -> Result<Vec<Process>> {
    let start = |pod: &&str| {
        let says = format!("send:{pod}");
        bed.pod(pod).spawn_probe(&format!("names-{port}"), &["listen", &port.to_string(), &says, "fin", "read-end"])
    };
    let servers = pods.iter().map(start).collect::<Result<_>>()?;
    for pod in pods {
        bed.pod(pod).wait_listening(port)?;
    }
    Ok(servers)
}

/// A connection that was answered.
#[derive(Debug)]
pub struct Answer {
    /// The name that the server said.
    pub name: String,
    /// The caller's own address. Ports come back soon: each connection has a destination of its own.
    pub local: String,
    /// How many lines the access log of the caller's node had before.
    logged: usize,
}

/// Connects from a pod and listens to the name.
pub fn ask(bed: &Testbed, from: &str, address: SocketAddr) -> Result<Answer> {
    let logged = access_log(bed, from).len();
    let said = bed.pod(from).probe(&["connect", &address.to_string(), "read-end"])?;
    ensure!(said.ok(), "{from} to {address}: {said}");
    let said = lines(&said.stdout);
    let local = said.iter().find_map(|line| line["local"].as_str()).context("no address of its own")?;
    Ok(Answer { name: text_of(&said, "read-end").to_string(), local: local.to_string(), logged })
}

fn access_log(bed: &Testbed, from: &str) -> Vec<Value> {
    bed.agents().find(|agent| agent.node == bed.pod(from).spec.node).map(|agent| agent.access_log()).unwrap_or_default()
}

/// Why a connection from a pod fails, by the name of the error; an error if it does not.
pub fn failure(bed: &Testbed, from: &str, address: SocketAddr) -> Result<String> {
    let said = bed.pod(from).probe(&["connect", "--timeout", "10", &address.to_string(), "read-end"])?;
    let last = lines(&said.stdout).pop().context("the probe said nothing")?;
    match last["error"].as_str() {
        Some(error) => Ok(format!("{} at {}", error, last["step"].as_str().unwrap_or_default())),
        None => bail!("{from} reached something at {address}: {last}"),
    }
}

/// The caller's side of an answer, in the access log of its node.
pub fn record(bed: &Testbed, from: &str, answer: &Answer) -> Result<Value> {
    let is_it = |record: &Value| record["direction"] == "outbound" && record["client"] == *answer.local;
    eventually(PATIENCE, "the connection to be logged", || {
        Ok(access_log(bed, from).into_iter().skip(answer.logged).find(is_it))
    })
}

/// Whether the agent of the caller's node carried it.
pub fn is_logged(bed: &Testbed, from: &str, answer: &Answer) -> bool {
    access_log(bed, from).iter().skip(answer.logged).any(|record| record["client"] == *answer.local)
}

/// Connects, and fails unless the mesh led to the pod that answered: by tunnel, or on one node within the agent. Its name.
pub fn ask_by_mesh(bed: &Testbed, from: &str, address: SocketAddr) -> Result<String> {
    let answer = ask(bed, from, address)?;
    let record = record(bed, from, &answer)?;
    let pod = bed.pod(&answer.name);
    let expected = format!("{}/{}", pod.spec.namespace, pod.spec.name);
    let is_near = pod.spec.node == bed.pod(from).spec.node;
    let is_way = record["transport"] == "tunnel" || (is_near && record["transport"] == "same-node");
    ensure!(
        is_way && record["destination_pod"] == *expected && record["result"] == "ok",
        "{from} to {address} was answered by {} and logged as {record}",
        answer.name
    );
    Ok(answer.name)
}

/// Connects, and fails unless the caller's agent led it on in plaintext. The name of who answered.
pub fn ask_in_plaintext(bed: &Testbed, from: &str, address: SocketAddr) -> Result<String> {
    let answer = ask(bed, from, address)?;
    let record = record(bed, from, &answer)?;
    ensure!(record["transport"] == "plaintext" && record["result"] == "ok", "{from} to {address}: {record}");
    Ok(answer.name)
}

/// How often the kernel programs of a node ended in an outcome.
pub fn outcome(bed: &Testbed, node: &str, name: &str) -> Result<u64> {
    bed.agent(node).kernel_outcome(name)
}
