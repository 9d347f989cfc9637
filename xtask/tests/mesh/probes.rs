//! Kubelet's probes reach STRICT pods, on the ports that pods declare, and nobody else's do.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use xtask::rings::can_use_kernel;
use xtask::testbed::{
    AgentOptions, Dialler, Family, Pod, PodSpec, Process, Testbed, eventually, map_entries, start_grpc_echo, start_web,
};

use crate::full::{empty, fill};
use crate::reach::{ask_by_mesh, outcome, say_names};

const PATIENCE: Duration = Duration::from_secs(30);
/// Declared for HTTP, by name.
const WEB: u16 = 8080;
/// Declared for TCP.
const TCP: u16 = 7000;
/// Declared for gRPC.
const GRPC: u16 = 50051;
/// Declared for nothing.
const OTHER: u16 = 7001;
/// Where the pod echoes; declared.
const ECHO: u16 = 7002;

const STRICT: &str = "apiVersion: nodemesh.dev/v1alpha1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {targetRefs: [{kind: Namespace}], mode: STRICT}
";

/// A STRICT pod with probes, a kubelet on its node, and a meshed caller on the other.
struct Ward {
    bed: Testbed,
    kubelet: Option<Process>,
    _servers: Vec<Process>,
}

impl Ward {
    fn build(test: &str) -> Result<Option<Self>> {
        if !can_use_kernel(test) {
            return Ok(None);
        }
        let mut bed = Testbed::of_two_nodes("shop")?;
        bed.world.apply("strict", STRICT)?;
        bed.add_pod(PodSpec::new("shop", "caller", "n2"))?;
        let server = PodSpec::new("shop", "server", "n1").port("web", WEB);
        let server = server.container("livenessProbe", json!({"httpGet": {"port": "web", "path": "/healthz"}}));
        let server = server.container("readinessProbe", json!({"tcpSocket": {"port": TCP}}));
        let server = server.container("startupProbe", json!({"grpc": {"port": GRPC}}));
        bed.add_pod(server.container("lifecycle", json!({"preStop": {"httpGet": {"port": ECHO}}})))?;
        start_web(bed.pod("server"), WEB, 200, 0)?;
        start_grpc_echo(bed.pod("server"), GRPC)?;
        let mut servers = say_names(&bed, &["server"], TCP)?;
        servers.extend(say_names(&bed, &["server"], OTHER)?);
        servers.push(bed.pod("server").spawn_probe("echo", &["listen", &ECHO.to_string(), "echo"])?);
        bed.pod("server").wait_listening(ECHO)?;
        let kubelet = Some(bed.start_kubelet("n1", "kubelet")?);
        bed.start_agents(&AgentOptions::default())?;
        let ward = Self { bed, kubelet, _servers: servers };
        ward.settle("kubelet")?;
        Ok(Some(ward))
    }

    fn server(&self, family: Family, port: u16) -> SocketAddr {
        self.bed.pod("server").ips.socket(family, port)
    }

    fn from(&self, cgroup: &str) -> Result<Dialler> {
        self.bed.dialler("n1", cgroup)
    }

    /// Waits until what dials from a cgroup counts as kubelet.
    fn settle(&self, cgroup: &str) -> Result<()> {
        let dialler = self.from(cgroup)?;
        eventually(PATIENCE, &format!("{cgroup} to count as kubelet"), || {
            Ok(dialler.probe("tcp", self.server(Family::V4, TCP))?.is_ok().then_some(()))
        })
    }

    /// A probe that must pass; the port that it came from.
    fn passes(&self, from: &str, family: Family, kind: &str, port: u16) -> Result<u16> {
        let answer = self.from(from)?.probe(kind, self.server(family, port))?;
        let (said, port) = answer.map_err(|error| anyhow::anyhow!("{kind} from {from} over {family}: {error}"))?;
        let expected = match kind {
            "http" => "HTTP/1.1 200 OK",
            "tcp" => "server",
            _ => "OK",
        };
        ensure!(said == expected, "{kind} from {from} over {family}: {said}");
        Ok(port)
    }

    /// A dial that policy must meet: STRICT, so that it is reset.
    fn is_refused(&self, from: &str, family: Family, port: u16, source: u16) -> Result<()> {
        let answer = self.from(from)?.probe_from("tcp", self.server(family, port), source)?;
        let error = answer.err().with_context(|| format!("{from} over {family} reached port {port} from {source}"))?;
        let is_refusal = ["ConnectionResetError", "ConnectionRefusedError"].contains(&&*error);
        ensure!(is_refusal, "{from} over {family} to {port} from {source}: {error}");
        Ok(())
    }

    fn end_kubelet(&mut self) -> Result<()> {
        self.kubelet.take().context("no kubelet runs")?.kill()
    }

    /// What `check` says of kubelet.
    fn check(&self) -> Result<Value> {
        let agent = xtask::build::agent_binary()?.to_string_lossy().into_owned();
        let root = format!("--cgroup-root={}", self.bed.node("n1").cgroup.display());
        let said = self.from("tools")?.run(&[&agent, "check", "--json", &root])?;
        let features: Vec<Value> = serde_json::from_str(&said.stdout).with_context(|| format!("check: {said}"))?;
        features.into_iter().find(|feature| feature["name"] == "kubelet").context("check says nothing of kubelet")
    }

    fn on_file(&self) -> Result<usize> {
        map_entries(&self.bed.agent("n1").pins().join("v1/maps/PROBES"))
    }
}

/// A pod of the host network, as far as the kernel knows: in the pods' cgroups and in the node's network.
const HOST_NETWORK_POD: &str = "kubepods/besteffort/pod0b1e/container";

#[test]
fn kubelets_probes_pass_and_impostors_do_not() -> Result<()> {
    let Some(mut ward) = Ward::build("kubelet's probes")? else { return Ok(()) };
    let run = probes_pass(&ward).and_then(|()| impostors(&ward)).and_then(|()| without_agent(&mut ward));
    run.map_err(|error| ward.bed.explain(error))
}

fn probes_pass(ward: &Ward) -> Result<()> {
    let before = outcome(&ward.bed, "n1", "lookup_probe")?;
    for family in Family::BOTH {
        ward.passes("kubelet", family, "http", WEB)?;
        ward.passes("kubelet", family, "tcp", TCP)?;
        ward.passes("kubelet", family, "grpc", GRPC)?;
        ward.is_refused("kubelet", family, OTHER, 0).context("a port that is not declared")?;
        let name = ask_by_mesh(&ward.bed, "caller", ward.server(family, TCP)).context("the mesh, to a probed port")?;
        ensure!(name == "server", "{name}");
    }
    let passed = outcome(&ward.bed, "n1", "lookup_probe")? - before;
    ensure!(passed >= 6, "{passed} of 6 probes passed by record");
    let found = ward.check()?;
    let cgroup = ward.from("kubelet")?.cgroup().to_string_lossy().into_owned();
    ensure!(found["found"].as_str().is_some_and(|text| text.ends_with(&cgroup)), "check says {found}");
    let dump = ward.bed.agent("n1").get_json("/config_dump")?["workloads"].to_string();
    ensure!(dump.contains("\"probePorts\":[7000,7002,8080,50051]"), "not shown: {dump}");
    Ok(())
}

fn impostors(ward: &Ward) -> Result<()> {
    for family in Family::BOTH {
        for impostor in ["tools", HOST_NETWORK_POD, "kubelet/below"] {
            ward.is_refused(impostor, family, TCP, 0)?;
            let port = ward.passes("kubelet", family, "tcp", TCP)?;
            ward.is_refused(impostor, family, TCP, port).context("from kubelet's last port")?;
            // The port was free to take, so it was the record that the impostor lacked.
            ward.from("kubelet")?.probe_from("tcp", ward.server(family, TCP), port)?.map_err(anyhow::Error::msg)?;
        }
    }
    ensure!(outcome(&ward.bed, "n1", "probe_stranger")? > 0, "nobody below kubelet's cgroup was told from it");
    let gone = || Ok((ward.on_file()? == 0).then_some(()));
    eventually(PATIENCE, "the records to go with their connections", gone)
}

fn without_agent(ward: &mut Ward) -> Result<()> {
    ward.bed.agent_mut("n1").kill()?;
    for family in Family::BOTH {
        ward.passes("kubelet", family, "http", WEB).context("with no agent")?;
        ward.passes("kubelet", family, "tcp", TCP).context("with no agent")?;
        ward.is_refused("kubelet", family, OTHER, 0).context("with no agent")?;
        ward.is_refused("tools", family, TCP, 0).context("with no agent")?;
    }
    Ok(())
}

#[test]
fn kubelet_is_found_wherever_it_starts() -> Result<()> {
    let Some(mut ward) = Ward::build("kubelet elsewhere")? else { return Ok(()) };
    let run = elsewhere(&mut ward).and_then(|()| above_the_pods(&mut ward)).and_then(|()| no_kubelet(&mut ward));
    run.map_err(|error| ward.bed.explain(error))
}

/// Restarted in another cgroup, as a unit that was renamed: the one that it left counts no more.
fn elsewhere(ward: &mut Ward) -> Result<()> {
    ward.end_kubelet()?;
    ward.passes("kubelet", Family::V4, "tcp", TCP).context("while it is away")?;
    ward.kubelet = Some(ward.bed.start_kubelet("n1", "k3s.slice/k3s")?);
    ward.settle("k3s.slice/k3s")?;
    for family in Family::BOTH {
        ward.passes("k3s.slice/k3s", family, "http", WEB)?;
        ward.is_refused("kubelet", family, TCP, 0)?;
        ward.is_refused("k3s.slice", family, TCP, 0)?;
    }
    Ok(())
}

/// In a cgroup that has the pods below it.
fn above_the_pods(ward: &mut Ward) -> Result<()> {
    ward.end_kubelet()?;
    ward.kubelet = Some(ward.bed.start_kubelet("n1", "")?);
    ward.settle("")?;
    for family in Family::BOTH {
        ward.passes("", family, "tcp", TCP)?;
        for impostor in [HOST_NETWORK_POD, "tools", "k3s.slice/k3s"] {
            ward.is_refused(impostor, family, TCP, 0)?;
        }
    }
    Ok(())
}

/// A pod that takes kubelet's port while kubelet is away is not kubelet.
fn no_kubelet(ward: &mut Ward) -> Result<()> {
    ward.end_kubelet()?;
    ward.kubelet = Some(ward.bed.start_kubelet("n1", HOST_NETWORK_POD)?);
    eventually(PATIENCE, "the pod to be seen", || {
        let (_, notes) = ward.bed.agent("n1").get("/readyz")?;
        Ok(notes.contains("is a pod's").then_some(()))
    })?;
    for family in Family::BOTH {
        ward.is_refused(HOST_NETWORK_POD, family, TCP, 0)?;
    }
    let missing = ward.check()?["missing"].clone();
    ensure!(missing.as_str().is_some_and(|reason| reason.contains("is a pod's")), "check says {missing}");
    Ok(())
}

/// Entries of the map of probes.
const MOST_PROBES: usize = 8192;

/// With no room for its record a probe meets policy, as anybody's dial does; with room again it passes.
#[test]
fn a_probe_that_cannot_be_recorded_meets_policy() -> Result<()> {
    let Some(ward) = Ward::build("the map of probes, full")? else { return Ok(()) };
    let pin = ward.bed.agent("n1").pins().join("v1/maps/PROBES");
    let file = ward.bed.dir().join("probes.batch");
    eventually(PATIENCE, "the map to be empty", || Ok((ward.on_file()? == 0).then_some(())))?;
    fill(&pin, MOST_PROBES, &file)?;
    for family in Family::BOTH {
        ward.is_refused("kubelet", family, TCP, 0).context("with a full map")?;
        let name = ask_by_mesh(&ward.bed, "caller", ward.server(family, TCP)).context("the mesh, beside a full map")?;
        ensure!(name == "server", "{name}");
    }
    empty(&pin, MOST_PROBES, &file)?;
    for family in Family::BOTH {
        ward.passes("kubelet", family, "tcp", TCP).context("with room again")?;
    }
    Ok(())
}

/// A SYN that is sent again, and the ACK of a syncookie, enter the lookup anew.
#[test]
fn a_thousand_probes_survive_lost_syns_and_syncookies() -> Result<()> {
    const LOSS: &str = "table inet nodemesh {
        chain in {
            type filter hook input priority 0
            tcp flags & (syn|ack) == syn numgen random mod 5 == 0 counter drop
        }
    }
";
    let Some(ward) = Ward::build("a thousand probes")? else { return Ok(()) };
    let pod = ward.bed.pod("server");
    let force = || std::fs::write("/proc/sys/net/ipv4/tcp_syncookies", "2");
    pod.netns.within(force)?.context("forcing syncookies")?;
    let rules = pod.dir.join("loss.nft");
    std::fs::write(&rules, LOSS)?;
    nft(pod, &["-f", &rules.to_string_lossy()])?;
    let kubelet = ward.from("kubelet")?;
    for family in Family::BOTH {
        let said = kubelet.probe_often(ward.server(family, ECHO), 500, Duration::from_secs(240))?;
        said.expect_ok("500 probes").map_err(|error| ward.bed.explain(error))?;
    }
    let lost = nft(pod, &["-j", "list", "table", "inet", "nodemesh"])?;
    let lost: Value = serde_json::from_str(&lost)?;
    let packets =
        lost["nftables"].as_array().into_iter().flatten().find_map(|part| {
            part["rule"]["expr"].as_array()?.iter().find_map(|part| part["counter"]["packets"].as_u64())
        });
    ensure!(packets.is_some_and(|packets| packets >= 50), "{packets:?} SYNs were lost: {lost}");
    let cookies = tcp_counter(pod, "SyncookiesRecv")?;
    ensure!(cookies >= 900, "{cookies} of 1000 came by syncookie");
    println!("1000 probes: {} SYNs lost, {cookies} came by syncookie", packets.unwrap_or_default());
    Ok(())
}

/// Runs nft in the pod's network, from the node: the pod's own processes have no such rights.
fn nft(pod: &Pod, arguments: &[&str]) -> Result<String> {
    let output = pod.netns.within(|| Command::new("nft").args(arguments).output())?.context("starting nft")?;
    ensure!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// What the kernel has counted in a pod's network: of the extended counters of TCP.
pub fn tcp_counter(pod: &Pod, wanted: &str) -> Result<u64> {
    let text = pod.netns.within(|| std::fs::read_to_string("/proc/thread-self/net/netstat"))??;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let mut pairs = names.split(' ').zip(values.split(' '));
    let found = pairs.find(|(name, _)| *name == wanted).with_context(|| format!("no count of {wanted}"))?;
    Ok(found.1.parse()?)
}
