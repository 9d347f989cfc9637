//! What every step plays on: two nodes, six pods, their servers, and what was seen before there was a mesh.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::steps::cost::{self, Figures};
use crate::build;
use crate::testbed::run::xtask_binary;
use crate::testbed::{
    AgentOptions, Family, Finished, Links, Packets, PodSpec, Process, Recording, ServiceSpec, Testbed, eventually,
    greeter_session, start_greeter, start_nginx, start_redis,
};

/// The namespace of the pods in the mesh.
const NAMESPACE: &str = "demo";
/// Where the live map is, if nobody else is there.
const MAP_PORT: u16 = 15080;
/// In seconds: longer than anybody looks.
const A_DAY: u64 = 86_400;
/// The label that puts a namespace or a pod into the mesh.
pub const MESH_LABEL: &str = "nodemesh.dev/mesh";
/// The port that agents speak to each other on.
pub const TUNNEL_PORT: u16 = 15008;

/// The cast: `shop`, `ledger` and `outsider` call from n1; `web` (nginx), `cache` (Redis) and `greeter` (gRPC) serve on n2.
pub struct Stage {
    /// Everything there is.
    pub bed: Testbed,
    /// The family that pods talk over.
    pub family: Family,
    /// How its agents are started.
    pub agents: AgentOptions,
    /// nginx's access log.
    pub web_log: PathBuf,
    /// How many packets carried the marker with no mesh.
    pub plain_hits: Option<usize>,
    /// What was measured with no mesh.
    pub plain_figures: Option<Figures>,
    /// The live map, once it is served, and clients that give it something to show.
    lookers: Vec<Process>,
    recordings: usize,
}

impl Stage {
    /// Nodes, pods and servers; no mesh yet.
    pub fn build(family: Family) -> Result<Self> {
        Self::build_over(family, Links::default(), AgentOptions::default())
    }

    /// The same over links of some kind, for agents that are started in some way.
    pub fn build_over(family: Family, links: Links, agents: AgentOptions) -> Result<Self> {
        let mut bed = Testbed::with_links(links)?;
        bed.add_node()?;
        bed.add_node()?;
        bed.add_namespace(NAMESPACE, &[(MESH_LABEL, "enabled")])?;
        bed.add_namespace("elsewhere", &[])?;
        for (name, port) in [("web", 80), ("cache", 6379), ("greeter", 50051)] {
            bed.add_pod(PodSpec::new(NAMESPACE, name, "n2").port("main", port))?;
        }
        bed.add_pod(PodSpec::new(NAMESPACE, "shop", "n1"))?;
        bed.add_pod(PodSpec::new(NAMESPACE, "ledger", "n1"))?;
        bed.add_pod(PodSpec::new("elsewhere", "outsider", "n1"))?;
        bed.add_service(ServiceSpec::new(NAMESPACE, "web").port("http", 80, 80).port("other", 8080, 8080))?;
        bed.add_service(ServiceSpec::new(NAMESPACE, "cache").port("", 6379, 6379))?;
        bed.add_service(ServiceSpec::new(NAMESPACE, "greeter").port("grpc", 50051, 50051))?;
        let web_log = start_nginx(bed.pod("web"))?;
        start_redis(bed.pod("cache"))?;
        start_greeter(bed.pod("greeter"))?;
        Ok(Self {
            bed,
            family,
            agents,
            web_log,
            plain_hits: None,
            plain_figures: None,
            lookers: Vec::new(),
            recordings: 0,
        })
    }

    /// Records one request between two pods while there is no mesh: the search that must find something.
    pub fn record_plain(&mut self) -> Result<()> {
        let marker = marker("plain")?;
        let (answer, packets) = self.record(|stage| stage.marked_request("shop", &marker))?;
        answer?.expect_ok("a request with no mesh")?;
        self.plain_hits = Some(packets.containing(&marker));
        Ok(())
    }

    /// Measures while there is no mesh.
    pub fn measure_plain(&mut self) -> Result<()> {
        self.plain_figures = Some(cost::measure(self)?);
        Ok(())
    }

    /// Starts both agents and waits until they are ready.
    pub fn start_mesh(&mut self) -> Result<()> {
        self.bed.start_agents(&self.agents)
    }

    /// Serves the live map of both agents with meshctl; its address. The port is the map's own, where that is free.
    pub fn serve_map(&mut self) -> Result<String> {
        let program = build::meshctl_binary()?.to_string_lossy().into_owned();
        let port = if TcpListener::bind(("127.0.0.1", MAP_PORT)).is_ok() { MAP_PORT } else { 0 };
        let mut argv = vec![program, "map".to_string(), format!("--listen=127.0.0.1:{port}")];
        argv.extend(self.bed.agents().map(|agent| format!("--admin=unix:{}", agent.admin().display())));
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        let mut map = self.bed.outside()?.spawn("map", &argv)?;
        let address = eventually(Duration::from_secs(60), "meshctl map to say its address", || {
            map.check_running()?;
            let said = map.log();
            Ok(said.split_whitespace().find(|word| word.starts_with("http://")).map(str::to_string))
        })?;
        self.lookers.push(map);
        Ok(address)
    }

    /// Clients that go on calling, a little, so that there is something to look at.
    pub fn start_visitors(&mut self) -> Result<()> {
        let cache = self.service("cache", 6379).to_string();
        for (pod, pause) in [("shop", "0.1"), ("ledger", "0.4")] {
            let pod = self.bed.pod(pod);
            let loops = format!("while :; do curl -s -o /dev/null --max-time 2 http://web.demo/; sleep {pause}; done");
            self.lookers.push(pod.spawn("visitor", &["sh", "-c", &loops])?);
            // A session that policy cuts is begun again.
            let binary = xtask_binary()?.to_string_lossy().into_owned();
            let again = format!("while :; do {binary} __probe redis {cache} --interval=50; sleep 0.5; done");
            self.lookers.push(pod.spawn("visitor-redis", &["sh", "-c", &again])?);
        }
        self.lookers.push(greeter_session(self.bed.pod("shop"), self.service("greeter", 50051), A_DAY)?);
        Ok(())
    }

    /// Leaves everything running; `cargo xtask clean` ends it.
    pub fn keep(mut self) {
        self.lookers.iter_mut().for_each(Process::keep);
        self.bed.keep();
    }

    /// The namespace whose pods are in the mesh.
    pub fn namespace(&self) -> &'static str {
        NAMESPACE
    }

    /// Puts the namespace into the mesh or takes it out, by its label.
    pub fn label_namespace(&mut self, enabled: bool) -> Result<()> {
        let labels: &[(&str, &str)] = if enabled { &[(MESH_LABEL, "enabled")] } else { &[] };
        self.bed.add_namespace(NAMESPACE, labels)
    }

    /// A Service's cluster IP and port.
    pub fn service(&self, name: &str, port: u16) -> SocketAddr {
        self.bed.service(name).socket(self.family, port)
    }

    /// A pod's IP and a port.
    pub fn pod_socket(&self, name: &str, port: u16) -> SocketAddr {
        self.bed.pod(name).ips.socket(self.family, port)
    }

    /// curl from a pod, in this stage's family, for at most twenty seconds.
    pub fn curl(&self, from: &str, arguments: &[&str]) -> Result<Finished> {
        let fixed = ["curl", "-sS", "--fail", "--max-time", "20", self.family.flag()];
        self.bed.pod(from).run(&[&fixed[..], arguments].concat(), Duration::from_secs(40))
    }

    /// A request to web's pod IP that carries a marker in a header and in its body.
    pub fn marked_request(&self, from: &str, marker: &str) -> Result<Finished> {
        let url = format!("http://{}/?{marker}", self.pod_socket("web", 80));
        self.curl(from, &["-H", &format!("x-marker: {marker}"), &url])
    }

    /// xtask's probe in a pod, to its end.
    pub fn probe(&self, from: &str, arguments: &[&str]) -> Result<Finished> {
        self.bed.pod(from).probe(arguments)
    }

    /// Records the link between the nodes while `work` goes on.
    pub fn record<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> Result<(T, Packets)> {
        self.recordings += 1;
        let file = self.bed.dir().join(format!("wire-{}.pcap", self.recordings));
        let node = self.bed.node("n2");
        let recording = Recording::start(&node.tool_place(), &node.link_to("n1"), &file)?;
        let done = work(self);
        Ok((done, recording.stop()?))
    }

    /// nginx's log so far.
    pub fn web_requests(&self) -> Result<Vec<String>> {
        let text = std::fs::read_to_string(&self.web_log).context("reading nginx's log")?;
        Ok(text.lines().map(str::to_string).collect())
    }

    /// The line of nginx's log with a marker: it is written when the client has its answer already.
    pub fn logged_by_web(&self, marker: &str) -> Result<String> {
        eventually(Duration::from_secs(20), "nginx to log the request", || {
            Ok(self.web_requests()?.into_iter().find(|line| line.contains(marker)))
        })
    }

    /// Fails unless the agents are up.
    pub fn check_agents(&mut self) -> Result<()> {
        for node in ["n1", "n2"] {
            let (status, body) = self.bed.agent(node).get("/readyz")?;
            ensure!(status == 200, "the agent of {node} is not ready: {body}");
        }
        Ok(())
    }
}

/// Text that occurs nowhere else.
pub fn marker(purpose: &str) -> Result<String> {
    Ok(format!("MARKER-{purpose}-{}", crate::testbed::run::random_uuid()?))
}
