//! Pods start captured: the container runtime's plugin lets a sandbox finish only then.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask::rings::can_use_kernel;
use xtask::testbed::{AgentOptions, Family, PodSpec, Process, Testbed, eventually};

use crate::reach::{ask, ask_by_mesh, failure, say_names};

const PATIENCE: Duration = Duration::from_secs(30);
/// A pod's end waits two seconds for an agent at most; the rest is the machine's.
const FAREWELL: Duration = Duration::from_secs(10);
const PORT: u16 = 7000;

const STRICT: &str = "apiVersion: nodemesh.dev/v1alpha1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {targetRefs: [{kind: Namespace}], mode: STRICT}
";

/// A STRICT server on one node; pods come on the other, where the agent answers the plugin.
struct Yard {
    bed: Testbed,
    _servers: Vec<Process>,
}

impl Yard {
    fn build(test: &str) -> Result<Option<Self>> {
        if !can_use_kernel(test) {
            return Ok(None);
        }
        let mut bed = Testbed::of_two_nodes("shop")?;
        bed.add_namespace("outside", &[])?;
        bed.add_namespace("nodemesh-system", &[("nodemesh.dev/mesh", "enabled")])?;
        bed.world.apply("strict", STRICT)?;
        bed.add_pod(PodSpec::new("shop", "server", "n2"))?;
        let servers = say_names(&bed, &["server"], PORT)?;
        bed.start_agent("n2", &AgentOptions::default())?;
        let yard = Self { bed, _servers: servers };
        Ok(Some(yard))
    }

    fn socket(&self) -> PathBuf {
        self.bed.dir().join("n1-cni.sock")
    }

    fn start_agent(&mut self) -> Result<()> {
        let socket = format!("--cni-socket={}", self.socket().display());
        // Who is enrolled is read from its log.
        let options = AgentOptions::with([socket, "--log-level=info,names=debug".to_string()]);
        self.bed.start_agent("n1", &options)
    }

    /// The plugin must say that it is done, with the result of those before it. How long it took.
    fn passes(&self, command: &str, pod: &str) -> Result<Duration> {
        let said = self.bed.call_plugin(command, pod, &self.socket())?;
        ensure!(said.ok, "{command} for {pod}: {said:?}");
        if command == "ADD" {
            ensure!(said.result["interfaces"][1]["name"] == "eth0", "{pod}: not the result that was: {said:?}");
        }
        Ok(said.took)
    }

    /// The plugin must refuse; what it says.
    fn refuses(&self, pod: &str) -> Result<String> {
        let said = self.bed.call_plugin("ADD", pod, &self.socket())?;
        ensure!(!said.ok && said.result["code"] == 11, "ADD for {pod}: {said:?}");
        Ok(said.result["msg"].as_str().unwrap_or_default().to_string())
    }

    /// How often the agent has enrolled a pod.
    fn enrolled(&self, pod: &str) -> usize {
        let log = self.bed.agent("n1").log();
        let of_capture =
            log.lines().filter(|line| line.contains("capture::enrolment") && line.contains("\"enrolled\""));
        of_capture.filter(|line| line.contains(&format!("\"{pod}\""))).count()
    }
}

#[test]
fn a_pods_first_connection_is_meshed() -> Result<()> {
    let Some(mut yard) = Yard::build("race-free enrolment")? else { return Ok(()) };
    let run = yard.start_agent().and_then(|()| first_connections(&mut yard)).and_then(|()| others(&mut yard));
    run.map_err(|error| yard.bed.explain(error))
}

fn first_connections(yard: &mut Yard) -> Result<()> {
    let server = yard.bed.pod("server").ips;
    let mut longest = Duration::ZERO;
    for number in 0..5 {
        let name = format!("fresh-{number}");
        yard.bed.add_pod(PodSpec::new("shop", &name, "n1").pending())?;
        longest = longest.max(yard.passes("ADD", &name)?);
        // The first process of the pod, and its object tells no address.
        let family = if number % 2 == 0 { Family::V4 } else { Family::V6 };
        ask_by_mesh(&yard.bed, &name, server.socket(family, PORT)).context("the first connection")?;
        yard.bed.finish_pod(&name)?;
    }
    println!("the plugin took {longest:?} at most");
    // Seen by its processes and its object now: the same pod, enrolled once.
    std::thread::sleep(Duration::from_secs(7));
    for number in 0..5 {
        let name = format!("fresh-{number}");
        yard.passes("CHECK", &name)?;
        ask_by_mesh(&yard.bed, &name, server.socket(Family::V4, PORT)).context("a later connection")?;
        ensure!(yard.enrolled(&name) == 1, "{name} was enrolled {} times", yard.enrolled(&name));
    }
    Ok(())
}

fn others(yard: &mut Yard) -> Result<()> {
    yard.bed.add_pod(PodSpec::new("outside", "plain", "n1").pending())?;
    // An agent that waited would do so each time; a machine that stalls does not.
    let took =
        (0..3).map(|_| yard.passes("ADD", "plain")).collect::<Result<Vec<_>>>().context("a pod without a label")?;
    ensure!(took.iter().any(|took| *took < Duration::from_secs(4)), "it waited {took:?}");
    let refused = failure(&yard.bed, "plain", yard.bed.pod("server").ips.socket(Family::V4, PORT))?;
    ensure!(refused.starts_with("ECONNRESET"), "plaintext to a STRICT pod: {refused}");
    // An end that was not expected, and one more.
    for pod in ["fresh-0", "fresh-0", "plain"] {
        let took = yard.passes("DEL", pod)?;
        ensure!(took < FAREWELL, "the end of {pod} took {took:?}");
    }
    yard.bed.remove_pod("fresh-0")?;
    eventually(PATIENCE, "the pod to leave", || Ok(yard.bed.agent("n1").log().contains("left the mesh").then_some(())))
}

/// Without an agent pods of the mesh wait; its own do not. With the agent back, the runtime's next try passes.
#[test]
fn without_an_agent_pods_of_the_mesh_wait() -> Result<()> {
    let Some(mut yard) = Yard::build("no agent, and a plugin")? else { return Ok(()) };
    let run = waits(&mut yard);
    run.map_err(|error| yard.bed.explain(error))
}

fn waits(yard: &mut Yard) -> Result<()> {
    yard.bed.add_pod(PodSpec::new("shop", "fresh", "n1").pending())?;
    yard.bed.add_pod(PodSpec::new("nodemesh-system", "controller", "n1").pending())?;
    let message = yard.refuses("fresh")?;
    ensure!(message.contains("no agent answers"), "{message}");
    let took = yard.passes("DEL", "fresh")?;
    ensure!(took < FAREWELL, "its end took {took:?}");
    yard.passes("ADD", "controller").context("the mesh's own")?;
    yard.start_agent()?;
    yard.passes("ADD", "fresh").context("with an agent")?;
    let server = yard.bed.pod("server").ips.socket(Family::V4, PORT);
    ask_by_mesh(&yard.bed, "fresh", server).context("the first connection")?;
    // A pod of which nobody has heard: whether it is of the mesh cannot be told here.
    yard.bed.add_pod(PodSpec::new("shop", "unheard", "n1").pending())?;
    yard.bed.world.delete("pod-shop-unheard")?;
    let message = yard.refuses("unheard")?;
    ensure!(message.contains("not heard of the pod"), "{message}");
    // The agent is killed with the pod's sandbox made, none of its processes started, and its object not yet written.
    yard.bed.agent_mut("n1").kill()?;
    let answer = ask(&yard.bed, "fresh", server);
    ensure!(answer.is_err(), "with no agent: {answer:?}");
    yard.start_agent()?;
    ask_by_mesh(&yard.bed, "fresh", server).context("with the next agent")?;
    yard.bed.finish_pod("fresh")?;
    std::thread::sleep(Duration::from_secs(7));
    ask_by_mesh(&yard.bed, "fresh", server).context("with its addresses told")?;
    ensure!(yard.enrolled("fresh") == 1, "the next agent enrolled it {} times", yard.enrolled("fresh"));
    Ok(())
}
