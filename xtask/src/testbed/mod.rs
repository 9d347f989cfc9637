//! Simulated Kubernetes nodes on one machine, with real processes in real pods.
//!
//! ```text
//!   netns nodemesh-<run>-n1                        netns nodemesh-<run>-n2
//!  ┌───────────────────────────────┐              ┌───────────────────────────────┐
//!  │ mesh-agent (cgroup n1/agent)  │    to-n2     │  mesh-agent (cgroup n2/agent) │
//!  │                               ├──────────────┤                               │
//!  │  nm0          nm1             │     to-n1    │  nm0          nm1             │
//!  └───┬────────────┬──────────────┘              └───┬────────────┬──────────────┘
//!    eth0          eth0                             eth0          eth0
//!   netns         netns                            netns         netns
//!   …-n1-shop     …-n1-ledger                      …-n2-web      …-n2-cache
//! ```
//!
//! A node is a network namespace, a cgroup subtree (`<cgroup2>/nodemesh-<run>/n1/{kubepods/…,agent}`) and an agent
//! process of its own. A pod is a network namespace joined to its node as the CNI plugin `ptp` does it, a cgroup
//! `kubepods/besteffort/pod<uid>/<container>`, real processes in both, and an /etc/hosts of its own for Service names.
//! There is no kube-proxy: a cluster IP leads somewhere only through the mesh.
//!
//! The world directory holds ordinary Kubernetes YAML, the same files for the agents and for a reader.
//!
//! Nothing reaches beyond the machine: no namespace here has a route out. Everything made is written down first (see
//! [`run`]) and ended on drop, on panic and, by a guard process, when the maker is killed.

pub mod address;
mod agent;
mod bpf;
pub mod cgroup;
mod cni;
pub mod enter;
mod kubelet;
mod net;
mod node;
mod pod;
mod process;
pub mod relay;
pub mod run;
mod servers;
mod service;
mod wire;
mod world;
mod yaml;

pub use address::{Family, ServiceAddress};
pub use agent::{Agent, AgentOptions};
pub use bpf::map_entries;
pub use kubelet::{Dialler, KUBELET_PORT};
pub use net::{Links, Netns};
pub use node::Node;
pub use pod::{Pod, PodSpec};
pub use process::{Finished, Place, Process, log_tails};
pub use relay::Impairment;
pub use servers::{
    authorizer_checks, dial_odd_sockets, greeter_client, greeter_session, grpc_calls, handshake_storm, hostile_client,
    make_certificate, postgres_programs, postgres_url, psql, python, start_authorizer, start_endless, start_greeter,
    start_grpc_echo, start_issuer, start_nginx, start_odd_sockets, start_postgres, start_redis, start_reflector,
    start_tls_reflector, start_web, start_websocket, web_requests, websocket_client,
};
pub use service::{PortSpec, ServiceSpec};
pub use wire::{Packets, Recording, TcpPacket};
pub use world::World;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use run::Run;
use rustix::process::Signal;

/// One run: its nodes, pods, Services and world directory. Dropping it ends all of it.
pub struct Testbed {
    // Field order is drop order: processes before what they live in, `run` last.
    agents: BTreeMap<String, Agent>,
    /// How many were started beside another.
    agents_beside: usize,
    pods: BTreeMap<String, Pod>,
    cables: Vec<Cable>,
    nodes: Vec<Node>,
    links: Links,
    services: Vec<ServiceAddress>,
    /// The directory of Kubernetes YAML that the agents watch.
    pub world: World,
    run: Run,
}

/// An agent that starts beside much else.
const READY: Duration = Duration::from_secs(60);

/// A bad cable and the names of the nodes that it joins.
struct Cable {
    ends: [String; 2],
    process: Process,
}

impl Testbed {
    /// An empty testbed. Needs root.
    pub fn new() -> Result<Self> {
        Self::with_links(Links::default())
    }

    /// Two nodes, `n1` and `n2`, and a namespace whose pods are in the mesh.
    pub fn of_two_nodes(namespace: &str) -> Result<Self> {
        let mut bed = Self::new()?;
        bed.add_node()?;
        bed.add_node()?;
        bed.add_namespace(namespace, &[("nodemesh.dev/mesh", "enabled")])?;
        Ok(bed)
    }

    /// An empty testbed whose nodes and pods will have such links.
    pub fn with_links(links: Links) -> Result<Self> {
        let run = Run::create()?;
        let world = World::create(run.dir())?;
        Ok(Self {
            agents: BTreeMap::new(),
            agents_beside: 0,
            pods: BTreeMap::new(),
            cables: Vec::new(),
            nodes: Vec::new(),
            links,
            services: Vec::new(),
            world,
            run,
        })
    }

    /// The run's id, part of every name that it makes.
    pub fn id(&self) -> &str {
        self.run.id()
    }

    /// The run's directory below /run/nodemesh: notes, world, logs, sockets, pins.
    pub fn dir(&self) -> &std::path::Path {
        self.run.dir()
    }

    /// This machine's own network, in a cgroup of the run: for what people look at nodes with.
    pub fn outside(&self) -> Result<Place> {
        let cgroup = self.cgroup().join("outside");
        std::fs::create_dir_all(&cgroup).with_context(|| format!("making {}", cgroup.display()))?;
        Ok(Place {
            netns: "/proc/self/ns/net".into(),
            cgroup,
            hosts: None,
            logs: self.dir().join("logs"),
            owner: "outside".to_string(),
        })
    }

    /// The run's cgroup, with those of all nodes in it.
    pub fn cgroup(&self) -> &std::path::Path {
        self.run.cgroup()
    }

    /// Adds a node and joins it to those that exist. Nodes are called n1, n2, … in the order they are added.
    pub fn add_node(&mut self) -> Result<()> {
        self.add_node_in("")
    }

    /// The same in a zone.
    pub fn add_node_in(&mut self, zone: &str) -> Result<()> {
        let node = Node::create(&self.run, self.nodes.len() + 1, zone, self.links.families)?;
        for other in &self.nodes {
            if let Some(process) = net::join_nodes(other, &node, &self.links)? {
                self.cables.push(Cable { ends: [other.name.clone(), node.name.clone()], process });
            }
        }
        self.world.write_node(&node)?;
        self.nodes.push(node);
        Ok(())
    }

    /// Adds a namespace with labels to the world.
    pub fn add_namespace(&mut self, name: &str, labels: &[(&str, &str)]) -> Result<()> {
        self.world.write_namespace(name, labels)
    }

    /// Adds a pod to a node: network, cgroup, pause process, YAML.
    pub fn add_pod(&mut self, mut spec: PodSpec) -> Result<()> {
        spec.families.retain(|family| self.links.families.contains(family));
        let node = self.nodes.iter_mut().find(|n| n.name == spec.node);
        let node = node.with_context(|| format!("no node {}", spec.node))?;
        let pod = Pod::create(&self.run, node, spec, &self.links)?;
        pod.write_hosts(&self.services)?;
        self.world.write_pod(&pod, self.node(&pod.spec.node))?;
        self.pods.insert(pod.spec.name.clone(), pod);
        Ok(())
    }

    /// Ends a pod as kubelet does: its object goes, then its processes, then its network.
    pub fn remove_pod(&mut self, name: &str) -> Result<()> {
        let pod = self.pods.remove(name).with_context(|| format!("no pod {name}"))?;
        self.world.remove_pod(&pod)?;
        let node = pod.spec.node.clone();
        pod.destroy(self.node(&node))
    }

    /// Adds a Service with the EndpointSlices that its selector gives now. It has every family of
    /// the testbed unless it says otherwise.
    pub fn add_service(&mut self, mut spec: ServiceSpec) -> Result<ServiceAddress> {
        spec.families.retain(|family| self.links.families.contains(family));
        let mut address = ServiceAddress::nth(self.services.len(), &spec.namespace, &spec.name);
        if let Some(pod) = self.pods.values().find(|pod| spec.resolves_to(pod)) {
            address.ips = pod.ips;
        }
        self.world.write_service(&spec, &address, self.pods.values(), &self.nodes)?;
        self.services.push(address.clone());
        for pod in self.pods.values() {
            pod.write_hosts(&self.services)?;
        }
        Ok(address)
    }

    /// A pod by its name; names are unique in a testbed, whatever the namespace.
    pub fn pod(&self, name: &str) -> &Pod {
        self.pods.get(name).unwrap_or_else(|| panic!("the testbed has no pod {name}"))
    }

    /// All pods.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values()
    }

    /// Writes a pod's object anew with one more label or, with None, without it.
    pub fn label_pod(&mut self, name: &str, label: &str, value: Option<&str>) -> Result<()> {
        let pod = self.pods.get_mut(name).with_context(|| format!("no pod {name}"))?;
        match value {
            Some(value) => pod.spec.labels.insert(label.to_string(), value.to_string()),
            None => pod.spec.labels.remove(label),
        };
        self.write_pod(name)
    }

    /// The same with an annotation.
    pub fn annotate_pod(&mut self, name: &str, annotation: &str, value: Option<&str>) -> Result<()> {
        let pod = self.pods.get_mut(name).with_context(|| format!("no pod {name}"))?;
        match value {
            Some(value) => pod.spec.annotations.insert(annotation.to_string(), value.to_string()),
            None => pod.spec.annotations.remove(annotation),
        };
        self.write_pod(name)
    }

    /// Takes a pod's object away and leaves its processes: `kubectl delete --force` where kubelet does not come.
    pub fn delete_object(&self, name: &str) -> Result<()> {
        self.world.remove_pod(self.pod(name))
    }

    /// Writes a pod's object as it was.
    pub fn write_pod(&self, name: &str) -> Result<()> {
        let pod = self.pod(name);
        self.world.write_pod(pod, self.node(&pod.spec.node))
    }

    /// Runs the mesh's plugin on a pod's node for the pod's sandbox, as a container runtime does: `ADD`, `DEL`, ….
    pub fn call_plugin(&self, command: &str, pod: &str, socket: &std::path::Path) -> Result<cni::Said> {
        let pod = self.pod(pod);
        cni::call(self.node(&pod.spec.node), pod, command, socket, self.dir())
    }

    /// What a pod becomes that was pending: its first process runs, and its object tells its addresses.
    pub fn finish_pod(&mut self, name: &str) -> Result<()> {
        let pod = self.pods.get_mut(name).with_context(|| format!("no pod {name}"))?;
        pod.spec.pending = false;
        pod.start_pause()?;
        self.write_pod(name)
    }

    /// A node by its name.
    pub fn node(&self, name: &str) -> &Node {
        self.nodes.iter().find(|n| n.name == name).unwrap_or_else(|| panic!("the testbed has no node {name}"))
    }

    /// Pulls the cable between two nodes: nothing passes and nobody is told. They must be joined by a cable.
    pub fn pull_cable(&self, a: &str, b: &str) -> Result<()> {
        self.cable(a, b)?.signal(Signal::STOP)
    }

    /// Plugs it in again.
    pub fn plug_cable(&self, a: &str, b: &str) -> Result<()> {
        self.cable(a, b)?.signal(Signal::CONT)
    }

    fn cable(&self, a: &str, b: &str) -> Result<&Process> {
        let joins = |cable: &&Cable| cable.ends.iter().all(|end| end == a || end == b);
        let cable = self.cables.iter().find(joins).with_context(|| format!("no cable joins {a} and {b}"))?;
        Ok(&cable.process)
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A Service's addresses.
    pub fn service(&self, name: &str) -> &ServiceAddress {
        self.services.iter().find(|s| s.name == name).unwrap_or_else(|| panic!("the testbed has no Service {name}"))
    }

    /// Starts what stands for the node's kubelet: a process that listens where its Node object says, in a cgroup of the
    /// node. What is in that cgroup beside it ([`Dialler`]) dials as kubelet.
    pub fn start_kubelet(&mut self, node: &str, cgroup: &str) -> Result<Process> {
        let node = self.nodes.iter_mut().find(|n| n.name == node).with_context(|| format!("no node {node}"))?;
        node.kubelet_port = Some(KUBELET_PORT);
        self.world.write_node(node)?;
        kubelet::listen(node, cgroup)
    }

    /// Who dials pods from a node's host side, in a cgroup of the node.
    pub fn dialler(&self, node: &str, cgroup: &str) -> Result<Dialler> {
        Dialler::new(self.node(node), cgroup, self.dir())
    }

    /// Starts the node's agent and waits until it is ready.
    pub fn start_agent(&mut self, node: &str, options: &AgentOptions) -> Result<()> {
        let agent = Agent::start(&self.run, self.node(node), agent::FIRST, options)?;
        let agent = self.agents.entry(node.to_string()).insert_entry(agent).into_mut();
        agent.wait_ready(READY)
    }

    /// Starts a newer agent beside the node's, as an upgrade does: the same pins and ports, a log and an admin socket of
    /// its own. It takes the place of the older one here, which is returned; nothing is waited for.
    pub fn start_agent_beside(&mut self, node: &str, options: &AgentOptions) -> Result<Agent> {
        self.agents_beside += 1;
        let name = format!("{}-{}", agent::FIRST, self.agents_beside + 1);
        let newer = Agent::start(&self.run, self.node(node), &name, options)?;
        self.agents.insert(node.to_string(), newer).with_context(|| format!("no agent was started on {node}"))
    }

    /// Makes an agent that was started beside another the node's again.
    pub fn put_agent_back(&mut self, agent: Agent) {
        self.agents.insert(agent.node.clone(), agent);
    }

    /// Starts every node's agent, all at once, and waits until all are ready.
    pub fn start_agents(&mut self, options: &AgentOptions) -> Result<()> {
        for node in &self.nodes {
            self.agents.insert(node.name.clone(), Agent::start(&self.run, node, agent::FIRST, options)?);
        }
        for agent in self.agents.values_mut() {
            agent.wait_ready(READY)?;
        }
        Ok(())
    }

    /// The agent of a node.
    pub fn agent(&self, node: &str) -> &Agent {
        self.agents.get(node).unwrap_or_else(|| panic!("no agent was started on {node}"))
    }

    /// The agent of a node, to end it.
    pub fn agent_mut(&mut self, node: &str) -> &mut Agent {
        self.agents.get_mut(node).unwrap_or_else(|| panic!("no agent was started on {node}"))
    }

    /// Every agent that was started.
    pub fn agents(&self) -> impl Iterator<Item = &Agent> {
        self.agents.values()
    }

    /// The last lines of every log and what the kernel programs counted, for a failure's message.
    pub fn log_tails(&self, lines: usize) -> String {
        let mut text = process::log_tails(&self.run.dir().join("logs"), lines);
        for agent in self.agents.values() {
            text.push_str(&format!("--- kernel outcomes on {}: {}\n", agent.node, agent.kernel_outcomes()));
        }
        text
    }

    /// A test's error with the end of every log below it.
    pub fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        anyhow::anyhow!("{error:#}\n\n{}", self.log_tails(30))
    }

    /// Leaves everything running when this is dropped; `cargo xtask clean` ends it.
    pub fn keep(mut self) -> PathBuf {
        for agent in self.agents.values_mut() {
            agent.keep();
        }
        for pod in self.pods.values_mut() {
            pod.keep();
        }
        for cable in &mut self.cables {
            cable.process.keep();
        }
        self.run.keep();
        self.run.dir().to_path_buf()
    }
}

/// Asks again and again until there is an answer, for at most `timeout`.
pub fn eventually<T>(timeout: Duration, what: &str, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + timeout;
    loop {
        let error = match ask() {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if Instant::now() >= end {
            match error {
                Some(error) => return Err(error.context(format!("waited {timeout:?} for {what}"))),
                None => bail!("waited {timeout:?} for {what}"),
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
