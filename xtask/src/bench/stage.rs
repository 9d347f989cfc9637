//! Where benchmarks run: the same pods and servers twice, in the mesh and outside it, on the same two nodes.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{neighbour, peer};
use crate::testbed::{AgentOptions, Family, Pod, PodSpec, ServiceSpec, Testbed, eventually};

/// nginx, HTTP/1.1.
pub const HTTP: u16 = 8080;
/// nginx, HTTP/2.
pub const HTTP2: u16 = 8081;
/// nghttpd, HTTP/2 with the trailers of a gRPC call.
pub const GRPC: u16 = 8082;
/// iperf3.
pub const IPERF: u16 = 5201;
/// Echo.
pub const ECHO: u16 = 7000;
/// The Service's port that leads to [`HTTP`] as bytes.
pub const BYTES: u16 = 7080;

/// What an agent that was started is given to publish its paths.
const TO_BE_STRAIGHT: Duration = Duration::from_secs(20);

/// The body of every answer.
const ANSWER_BYTES: usize = 1024;

/// The body of the answer to [`LARGE`].
const LARGE_BYTES: usize = 16 << 20;
/// The path of an answer that is large.
pub const LARGE: &str = "/large";

/// Of the pods in the mesh.
pub const NAMESPACE: &str = "bench";
/// Of those outside.
pub const OUTSIDE: &str = "outside";
/// The other pair of proxies.
pub const NEAR: &str = "peer-near";
/// The one beside the server.
pub const FAR: &str = "peer-far";

/// Two callers on n1; servers on n2 (`cross`) and n1 (`same`).
pub struct Stage {
    /// Everything there is.
    pub bed: Testbed,
}

/// Whether there is a mesh on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From pod to pod, outside the mesh.
    Direct,
    /// From a pod in the mesh to a Service.
    Mesh,
    /// Outside the mesh, by way of another pair of proxies.
    Peer,
}

impl Way {
    /// The name of the pod that has a part on this way.
    pub fn pod(self, name: &str) -> String {
        match self {
            Way::Direct | Way::Peer => format!("direct-{name}"),
            Way::Mesh => name.to_string(),
        }
    }
}

/// What only some need.
#[derive(Default)]
pub struct More<'a> {
    /// Services with so many HTTPRoutes each, for requests.
    pub routes: &'a [usize],
    /// The other pair of proxies.
    pub peer: bool,
    /// Pods that flood each other.
    pub neighbours: bool,
}

impl Stage {
    /// Pods, servers and agents.
    pub fn build(agents: &AgentOptions, more: &More) -> Result<Self> {
        let mut bed = Testbed::new()?;
        bed.add_node()?;
        bed.add_node()?;
        bed.add_namespace(NAMESPACE, &[("nodemesh.dev/mesh", "enabled")])?;
        bed.add_namespace(OUTSIDE, &[])?;
        for (way, namespace) in [(Way::Direct, OUTSIDE), (Way::Mesh, NAMESPACE)] {
            for (pod, node) in [("caller", "n1"), ("same", "n1"), ("cross", "n2")] {
                bed.add_pod(PodSpec::new(namespace, &way.pod(pod), node))?;
            }
            for pod in ["same", "cross"] {
                serve(bed.pod(&way.pod(pod)))?;
            }
            reuse_ports(bed.pod(&way.pod("caller")))?;
        }
        if more.neighbours {
            neighbour::join(&mut bed)?;
        }
        if more.peer {
            bed.add_pod(PodSpec::new(OUTSIDE, NEAR, "n1"))?;
            bed.add_pod(PodSpec::new(OUTSIDE, FAR, "n2"))?;
            peer::start(bed.pod(NEAR), bed.pod(FAR), bed.pod(&Way::Direct.pod("cross")))?;
        }
        for server in ["same", "cross"] {
            bed.add_service(service(server))?;
        }
        if !more.routes.is_empty() {
            bed.add_pod(PodSpec::new(NAMESPACE, POLICED, "n2"))?;
            serve(bed.pod(POLICED))?;
            bed.add_service(service(POLICED))?;
            bed.world.apply("policies", &many_policies())?;
        }
        for count in more.routes {
            let name = routed(*count);
            bed.add_service(ServiceSpec::new(NAMESPACE, &name).of("cross").port("http", HTTP, HTTP))?;
            bed.world.apply(&name, &many_routes(&name, *count))?;
        }
        bed.start_agents(agents)?;
        Ok(Self { bed })
    }

    /// The pod that calls.
    pub fn caller(&self, way: Way) -> &Pod {
        self.bed.pod(&way.pod("caller"))
    }

    /// From now on by agents that let the kernel carry alone what nobody reads; returns when it does.
    pub fn go_straight(&mut self, agents: &AgentOptions) -> Result<()> {
        for node in ["n1", "n2"] {
            self.bed.agent_mut(node).stop()?;
            self.bed.start_agent(node, agents)?;
        }
        let echo = self.address(Way::Mesh, "same", ECHO).to_string();
        eventually(TO_BE_STRAIGHT, "connections to go straight", || {
            let [before, _] = self.straight_and_captured()?;
            self.caller(Way::Mesh).probe(&["connect", &echo])?;
            let [after, _] = self.straight_and_captured()?;
            Ok((after > before).then_some(()))
        })
    }

    /// How many connections of n1's pods went straight from pod to pod, and how many to the agent.
    pub fn straight_and_captured(&self) -> Result<[f64; 2]> {
        let agent = self.bed.agent("n1");
        let count = |name| agent.kernel_outcome(name).map(|count| count as f64);
        Ok([count("connect_straight_v4")?, count("connect_captured_v4")?])
    }

    /// Where it calls: a server's own address, or its Service's.
    pub fn address(&self, way: Way, server: &str, port: u16) -> SocketAddr {
        match way {
            Way::Mesh => self.bed.service(server).socket(Family::V4, port),
            Way::Direct => {
                let pod = if server == "same" { "same" } else { "cross" };
                let target = if port == BYTES { HTTP } else { port };
                self.bed.pod(&way.pod(pod)).ips.socket(Family::V4, target)
            }
            Way::Peer => self.bed.pod(NEAR).ips.socket(Family::V4, port),
        }
    }
}

/// A server whose requests are judged by many policies.
pub const POLICED: &str = "policed";
/// How many.
pub const POLICIES: usize = 1000;

/// The Service with so many routes.
pub fn routed(count: usize) -> String {
    format!("routed-{count}")
}

/// What the last of many routes matches.
pub fn last_path(count: usize) -> String {
    format!("/team-{}/", count - 1)
}

/// Without it the ports of a client that closes first are used up after some seconds, and what is measured is the search
/// for a free one.
pub fn reuse_ports(pod: &Pod) -> Result<()> {
    pod.netns.within(|| fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1"))?.context("setting tcp_tw_reuse")
}

/// A Service of the mesh with all that [`serve`] starts.
pub fn service(name: &str) -> ServiceSpec {
    let service = ServiceSpec::new(NAMESPACE, name);
    let service = service.port("tcp-bytes", BYTES, HTTP).port("tcp-echo", ECHO, ECHO).port("tcp-iperf", IPERF, IPERF);
    service.port("http", HTTP, HTTP).port("http2", HTTP2, HTTP2).port("grpc", GRPC, GRPC)
}

/// Each with a path of its own and a header that no request has, and one for all that have the path alone.
fn many_routes(service: &str, count: usize) -> String {
    let mut yaml = String::new();
    for number in 0..count {
        yaml.push_str(&format!(
            "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: {service}-{number}, namespace: {NAMESPACE}}}
spec:
  parentRefs: [{{group: '', kind: Service, name: {service}, port: {HTTP}}}]
  rules:
    - matches: [{{path: {{type: PathPrefix, value: /team-{number}}}, headers: [{{name: x-version, value: canary}}]}}]
      backendRefs: [{{name: same, port: {HTTP}}}]
    - matches: [{{path: {{type: PathPrefix, value: /team-{number}}}}}]
      backendRefs: [{{name: cross, port: {HTTP}}}]
"
        ));
    }
    yaml
}

/// Each lets one path be read that no other does; only the last is asked for.
fn many_policies() -> String {
    let mut yaml = String::new();
    for number in 0..POLICIES {
        yaml.push_str(&format!(
            "---
apiVersion: nodemesh.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {{name: team-{number}, namespace: {NAMESPACE}}}
spec:
  targetRefs: [{{kind: Service, name: {POLICED}}}]
  action: ALLOW
  rules: [{{sources: [{{type: Any}}], requests: [{{methods: [GET], paths: ['/team-{number}/*']}}]}}]
"
        ));
    }
    yaml
}

/// Starts the servers of a pod.
pub fn serve(pod: &Pod) -> Result<()> {
    let dir = pod.dir.join("bench");
    fs::create_dir_all(&dir)?;
    let at = dir.to_string_lossy();
    fs::write(dir.join("index.html"), vec![b'x'; ANSWER_BYTES])?;
    fs::write(dir.join(LARGE.trim_start_matches('/')), vec![b'x'; LARGE_BYTES])?;
    let config = include_str!("nginx.conf").replace("DIR", &at).replace("BODY", &"x".repeat(ANSWER_BYTES));
    let file = dir.join("nginx.conf");
    fs::write(&file, config)?;
    pod.start("nginx", &["nginx", "-e", "stderr", "-p", &at, "-c", &file.to_string_lossy()])?;
    let grpc = GRPC.to_string();
    pod.start("nghttpd", &["nghttpd", "--no-tls", "-d", &at, "--trailer", "grpc-status: 0", &grpc])?;
    pod.start("iperf3", &["iperf3", "-s", "-p", &IPERF.to_string()])?;
    pod.start_probe("echo", &["echo", &ECHO.to_string()])?;
    for port in [HTTP, HTTP2, GRPC, IPERF, ECHO] {
        pod.wait_listening(port)?;
    }
    Ok(())
}
