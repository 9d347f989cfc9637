//! The smallest mesh: a client on one node, a server on the other, and a Service in front of it.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::rings::can_use_kernel;
use xtask::testbed::{AgentOptions, Family, Finished, Links, PodSpec, Process, ServiceSpec, Testbed, eventually};

/// With this set, the tests of connections run over plain networking: what fails then is a fault of the test.
const WITHOUT_MESH: &str = "MESH_TEST_WITHOUT_MESH";

const PATIENCE: Duration = Duration::from_secs(30);

/// Ports that the server's Service passes on as they are.
pub const PORT: u16 = 7000;

/// The two pods and their mesh.
pub struct Pair {
    pub bed: Testbed,
    pub with_mesh: bool,
}

impl Pair {
    /// Pods only; the mesh is for the caller to start.
    pub fn build() -> Result<Self> {
        Self::build_over(Links::default())
    }

    /// The same over links of some kind.
    pub fn build_over(links: Links) -> Result<Self> {
        let mut bed = Testbed::with_links(links)?;
        bed.add_node()?;
        bed.add_node()?;
        bed.add_namespace("pair", &[("nodemesh.dev/mesh", "enabled")])?;
        bed.add_pod(PodSpec::new("pair", "client", "n1"))?;
        bed.add_pod(PodSpec::new("pair", "server", "n2"))?;
        let service = ServiceSpec::new("pair", "server");
        bed.add_service(
            service.port("probe", PORT, PORT).port("http", 80, 80).port("other", 81, 8080).port("redis", 6379, 6379),
        )?;
        bed.add_service(ServiceSpec::new("pair", "nobody").port("", 80, 80))?;
        Ok(Self { bed, with_mesh: false })
    }

    /// Where a client dials a port of the server: the Service's, or the pod's without a mesh.
    pub fn server(&self, family: Family, port: u16) -> SocketAddr {
        if self.with_mesh {
            return self.bed.service("server").socket(family, port);
        }
        let target = if port == 81 { 8080 } else { port };
        self.bed.pod("server").ips.socket(family, target)
    }

    /// Requests to the server's nginx by Service, which only the mesh can lead anywhere.
    pub fn served(&self) -> Result<()> {
        for family in Family::BOTH {
            let url = format!("http://{}/", self.server(family, 80));
            eventually(PATIENCE, "requests to be served", || {
                let answer =
                    self.bed.pod("client").run(&["curl", "-sS", "--fail", "--max-time", "10", &url], PATIENCE)?;
                answer.expect_ok("curl").map(Some)
            })?;
        }
        Ok(())
    }

    /// Starts the server's end of a scripted connection.
    pub fn listen(&self, steps: &[&str]) -> Result<Process> {
        let port = PORT.to_string();
        let listener = self.bed.pod("server").spawn_probe("listen", &[&["listen", &port][..], steps].concat())?;
        self.bed.pod("server").wait_listening(PORT)?;
        Ok(listener)
    }

    /// Plays the client's end of a scripted connection.
    pub fn connect(&self, family: Family, steps: &[&str]) -> Result<Finished> {
        self.connect_to(self.server(family, PORT), steps)
    }

    /// The same to any address.
    pub fn connect_to(&self, address: SocketAddr, steps: &[&str]) -> Result<Finished> {
        self.bed.pod("client").probe(&[&["connect", &address.to_string()][..], steps].concat())
    }

    /// Plays both ends of one connection, which must go through every step; returns what each printed.
    pub fn play(&self, family: Family, server: &[&str], client: &[&str]) -> Result<[Vec<Value>; 2]> {
        let listener = self.listen(server)?;
        let answer = self.connect(family, client)?;
        let said = eventually(PATIENCE, "the server's end to finish", || {
            let said = lines(&listener.log());
            let ended = said.len() > server.len() || said.iter().any(|line| line["error"].is_string());
            Ok(ended.then_some(said))
        })
        .with_context(|| format!("client: {answer}\nserver: {}", listener.log()))?;
        ensure!(answer.ok(), "client: {answer}\nserver: {}", listener.log());
        ensure!(!said.iter().any(|line| line["error"].is_string()), "server: {}", listener.log());
        Ok([said, lines(&answer.stdout)])
    }
}

/// Runs a test on a pair with the mesh, in both families one after another.
pub fn in_both_families(test: &str, run: impl Fn(&Pair, Family) -> Result<()>) -> Result<()> {
    let Some(pair) = meshed(test)? else { return Ok(()) };
    for family in Family::BOTH {
        run(&pair, family).with_context(|| format!("over {family}")).map_err(|error| pair.bed.explain(error))?;
    }
    Ok(())
}

/// A pair with its mesh started; None if this machine cannot.
pub fn meshed(test: &str) -> Result<Option<Pair>> {
    if std::env::var_os(WITHOUT_MESH).is_some() {
        return Pair::build().map(Some);
    }
    if !can_use_kernel(test) {
        return Ok(None);
    }
    let mut pair = Pair::build()?;
    pair.bed.start_agents(&AgentOptions::default())?;
    pair.with_mesh = true;
    Ok(Some(pair))
}

/// JSON lines.
pub fn lines(text: &str) -> Vec<Value> {
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// What a step read or sent, by the step's name.
pub fn text_of<'a>(lines: &'a [Value], step: &str) -> &'a str {
    lines.iter().find(|line| line["step"] == step).and_then(|line| line["text"].as_str()).unwrap_or_default()
}
