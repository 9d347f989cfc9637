//! Where the soak plays: two nodes, servers of every kind, callers on both sides.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::testbed::{
    AgentOptions, Family, PodSpec, Process, ServiceSpec, Testbed, eventually, postgres_programs, start_greeter,
    start_postgres, start_redis,
};

/// The namespace of all pods.
pub const NAMESPACE: &str = "soak";
/// Echo servers listen here.
pub const ECHO: u16 = 7000;
/// Servers of large transfers listen here.
pub const BULK: u16 = 7001;
/// PostgreSQL.
pub const POSTGRES: u16 = 5432;

/// `caller` on n1 calls `servers` on n2, `returner` on n2 calls `back` on n1; `guest` on n1 joins and leaves the mesh.
pub struct Stage {
    /// Everything there is.
    pub bed: Testbed,
    /// How many pods came and went; each has a name of its own.
    pub passers: usize,
}

impl Stage {
    /// Pods and servers; no mesh yet.
    pub fn build() -> Result<Self> {
        let mut bed = Testbed::new()?;
        bed.add_node()?;
        bed.add_node()?;
        bed.add_namespace(NAMESPACE, &[("nodemesh.dev/mesh", "enabled")])?;
        for (pod, node) in [
            ("caller", "n1"),
            ("guest", "n1"),
            ("back", "n1"),
            ("servers", "n2"),
            ("second", "n2"),
            ("returner", "n2"),
            ("database", "n2"),
        ] {
            bed.add_pod(PodSpec::new(NAMESPACE, pod, node))?;
        }
        let service = |name: &str| ServiceSpec::new(NAMESPACE, name);
        let servers = service("servers").port("echo", ECHO, ECHO).port("bulk", BULK, BULK);
        bed.add_service(servers.port("redis", 6379, 6379).port("grpc", 50051, 50051))?;
        bed.add_service(service("back").port("", ECHO, ECHO))?;
        bed.add_service(service("database").port("", POSTGRES, POSTGRES))?;
        let stage = Self { bed, passers: 0 };
        for pod in ["servers", "second", "back"] {
            stage.serve_echo(pod)?;
        }
        stage.serve("servers", "bulk-server", BULK)?;
        start_redis(stage.bed.pod("servers"))?;
        start_greeter(stage.bed.pod("servers"))?;
        start_postgres(stage.bed.pod("database"))?;
        Ok(stage)
    }

    /// Starts both agents, with certificates that are renewed every minute, and what needs the mesh to be made ready.
    pub fn start_mesh(&mut self) -> Result<()> {
        self.bed.start_agents(&options())?;
        let [ip, port] = ip_and_port(self.bed.service("database").socket(Family::V4, POSTGRES));
        let pgbench = pgbench()?;
        let fill = [&pgbench, "-h", &ip, "-p", &port, "-U", "postgres", "-i", "-q", "-s", "1", "postgres"];
        self.bed.pod("caller").run(&fill, Duration::from_secs(60))?.expect_ok("pgbench -i")?;
        self.touch()
    }

    /// Ends a node's agent and starts it again.
    pub fn restart(&mut self, node: &str, kill: bool) -> Result<()> {
        if kill {
            self.bed.agent_mut(node).kill()?;
        } else {
            self.bed.agent_mut(node).stop()?;
        }
        self.bed.start_agent(node, &options())
    }

    /// One connection of each direction and family: what is made at the first use is made after this.
    pub fn touch(&self) -> Result<()> {
        for family in Family::BOTH {
            for (from, to) in [("caller", "servers"), ("returner", "back")] {
                let address = self.bed.service(to).socket(family, ECHO);
                eventually(Duration::from_secs(20), "the mesh to carry a connection", || {
                    self.exchange(from, address).map(Some)
                })?;
            }
        }
        Ok(())
    }

    /// A word from a pod to an echo server and back.
    pub fn exchange(&self, from: &str, address: SocketAddr) -> Result<()> {
        let script = ["connect", &address.to_string(), "send:word", "read:4"];
        self.bed.pod(from).probe(&script)?.expect_ok(&format!("from {from} to {address}")).map(drop)
    }

    /// Short connections through one Service with nothing beside them; what the probe said at its end.
    pub fn sprint(&self, family: Family, connections: u64) -> Result<Value> {
        let address = self.bed.service("servers").socket(family, ECHO).to_string();
        let number = format!("--connections={connections}");
        let mut sprint = self.bed.pod("caller").spawn_probe("sprint", &["short", &address, &number, "--at-once=16"])?;
        // Whether all went well is in what it says.
        let _ = sprint.wait(Duration::from_secs(300))?;
        let log = sprint.log();
        let last = log.lines().rev().find_map(|line| serde_json::from_str(line).ok());
        last.with_context(|| format!("the sprint said: {log}"))
    }

    /// Holds connections through the same Service until they have this age, then uses them and asks who their peer is.
    pub fn grow_old(&self, family: Family, age: Duration) -> Result<Process> {
        let address = self.bed.service("servers").socket(family, ECHO).to_string();
        let idle = format!("--idle={}", age.as_secs());
        let arguments = ["hold", &address, "--connections=2", &idle];
        self.bed.pod("caller").spawn_probe(&format!("old {family}"), &arguments)
    }

    /// Starts an echo server in a pod.
    pub fn serve_echo(&self, pod: &str) -> Result<()> {
        self.serve(pod, "echo", ECHO)
    }

    fn serve(&self, pod: &str, probe: &str, port: u16) -> Result<()> {
        let pod = self.bed.pod(pod);
        pod.start_probe(probe, &[probe, &port.to_string()])?;
        pod.wait_listening(port)
    }
}

fn options() -> AgentOptions {
    AgentOptions::with(["--svid-ttl=2m", "--log-level=info,access=off"])
}

/// PostgreSQL's own load generator.
pub fn pgbench() -> Result<String> {
    Ok(postgres_programs()?.join("pgbench").to_string_lossy().into_owned())
}

/// For programs that take them apart.
pub fn ip_and_port(address: SocketAddr) -> [String; 2] {
    [address.ip().to_string(), address.port().to_string()]
}
