//! What a pod keeps out of the mesh by annotation goes and comes as without one, and nothing else does.

use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask::rings::can_use_kernel;
use xtask::testbed::{AgentOptions, Family, PodSpec, Process, Testbed, eventually};

use crate::reach::{ask, ask_by_mesh, ask_in_plaintext, failure, is_logged, outcome, say_names};

const PATIENCE: Duration = Duration::from_secs(30);
/// In the mesh.
const PORT: u16 = 7000;
/// Excluded where a pod's annotations say so.
const EXCLUDED: u16 = 7001;
/// Where servers echo.
const ECHO: u16 = 7002;

const OUTBOUND_PORTS: &str = "nodemesh.dev/exclude-outbound-ports";
const INBOUND_PORTS: &str = "nodemesh.dev/exclude-inbound-ports";
const OUTBOUND_CIDRS: &str = "nodemesh.dev/exclude-outbound-cidrs";

const STRICT: &str = "apiVersion: nodemesh.dev/v1alpha1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {targetRefs: [{kind: Namespace}], mode: STRICT}
";

/// `caller` excludes a port and the outsider's addresses, `server` a port of its own; `plain` nothing.
struct Street {
    bed: Testbed,
    _servers: Vec<Process>,
}

impl Street {
    fn build(test: &str, arguments: &[&str]) -> Result<Option<Self>> {
        if !can_use_kernel(test) {
            return Ok(None);
        }
        let mut bed = Testbed::of_two_nodes("shop")?;
        bed.add_namespace("outside", &[])?;
        bed.world.apply("strict", STRICT)?;
        bed.add_pod(PodSpec::new("outside", "outsider", "n2"))?;
        let outsiders = networks(&bed, "outsider");
        let port = EXCLUDED.to_string();
        let caller = PodSpec::new("shop", "caller", "n1").annotation(OUTBOUND_PORTS, &port);
        bed.add_pod(caller.annotation(OUTBOUND_CIDRS, &outsiders))?;
        bed.add_pod(PodSpec::new("shop", "plain", "n1"))?;
        bed.add_pod(PodSpec::new("shop", "server", "n2").annotation(INBOUND_PORTS, &port))?;
        let mut servers = say_names(&bed, &["outsider", "server"], PORT)?;
        servers.extend(say_names(&bed, &["outsider", "server"], EXCLUDED)?);
        servers.push(bed.pod("outsider").spawn_probe("echo", &["listen", &ECHO.to_string(), "echo"])?);
        bed.pod("outsider").wait_listening(ECHO)?;
        let options = AgentOptions::with(arguments.iter().copied());
        bed.start_agents(&options)?;
        Ok(Some(Self { bed, _servers: servers }))
    }

    /// Reaches a pod with no agent on the way.
    fn direct(&self, from: &str, to: &str, family: Family, port: u16) -> Result<()> {
        let answer = ask(&self.bed, from, self.bed.pod(to).ips.socket(family, port))?;
        ensure!(answer.name == to, "{from} to {to}: {answer:?}");
        ensure!(!is_logged(&self.bed, from, &answer), "{from} to {to} went through the agent: {answer:?}");
        Ok(())
    }

    /// Reaches the outsider by the caller's agent.
    fn by_agent(&self, from: &str, family: Family, port: u16) -> Result<()> {
        let name = ask_in_plaintext(&self.bed, from, self.bed.pod("outsider").ips.socket(family, port))?;
        ensure!(name == "outsider", "{name}");
        Ok(())
    }

    /// Waits until new connections of a pod to the outsider are excluded, or are not, and shows that it is so.
    fn settle(&self, from: &str, family: Family, excluded: bool) -> Result<()> {
        let count = || outcome(&self.bed, "n1", "connect_excluded");
        let what = format!("{from} over {family} to be excluded: {excluded}");
        eventually(PATIENCE, &what, || {
            let before = count()?;
            ask(&self.bed, from, self.bed.pod("outsider").ips.socket(family, PORT))?;
            Ok(((count()? > before) == excluded).then_some(()))
        })?;
        if excluded { self.direct(from, "outsider", family, PORT) } else { self.by_agent(from, family, PORT) }
    }

    /// What a process in the pod's namespace meets that no hook on the pod's cgroup sees: the guard alone.
    fn past_the_hooks(&self, from: &str, to: &str, family: Family, port: u16, wait: Duration) -> Result<bool> {
        let address = self.bed.pod(to).ips.socket(family, port);
        let dial = || TcpStream::connect_timeout(&address, wait).is_ok();
        self.bed.pod(from).netns.within(dial)
    }

    /// A connection that is open for a while, and exchanges a word at its beginning and at its end.
    fn hold(&self, from: &str, family: Family) -> Result<Process> {
        let address = self.bed.pod("outsider").ips.socket(family, ECHO).to_string();
        let steps =
            ["connect", &address, "send:open", "read:4", "sleep:4000", "send:still", "read:5", "fin", "read-end"];
        let probe = self.bed.pod(from).spawn_probe(&format!("held-{family}"), &steps)?;
        eventually(PATIENCE, "the connection to be open", || Ok(probe.log().contains("\"read\"").then_some(())))?;
        Ok(probe)
    }

    fn published(&self, node: &str) -> Result<usize> {
        ["EXCLUDED_PORTS", "EXCLUDED_NETS"].iter().map(|map| entries(&self.bed, node, map)).sum()
    }
}

#[test]
fn what_is_excluded_goes_and_comes_untouched() -> Result<()> {
    untouched(&[])
}

#[test]
fn what_is_excluded_goes_and_comes_untouched_under_clsact() -> Result<()> {
    untouched(&["--tc=clsact"])
}

fn untouched(arguments: &[&str]) -> Result<()> {
    let Some(street) = Street::build("exclusions", arguments)? else { return Ok(()) };
    for family in Family::BOTH {
        let run = goes_and_comes(&street, family).and_then(|()| guarded(&street, family));
        run.with_context(|| format!("over {family}")).map_err(|error| street.bed.explain(error))?;
    }
    Ok(())
}

fn goes_and_comes(street: &Street, family: Family) -> Result<()> {
    let bed = &street.bed;
    let names = [("n1", "connect_excluded"), ("n1", "guard_syn_excluded"), ("n2", "lookup_excluded")];
    let counts = || names.iter().map(|(node, name)| outcome(bed, node, name)).collect::<Result<Vec<_>>>();
    let before = counts()?;
    street.direct("caller", "outsider", family, PORT).context("by network")?;
    street.direct("caller", "outsider", family, EXCLUDED).context("by both")?;
    street.direct("caller", "server", family, EXCLUDED).context("by port, both sides")?;
    // In plaintext and with no identity, to a pod that is STRICT.
    let answer = ask(bed, "outsider", bed.pod("server").ips.socket(family, EXCLUDED)).context("inbound")?;
    ensure!(answer.name == "server", "{answer:?}");
    let counted: Vec<u64> = counts()?.iter().zip(&before).map(|(now, before)| now - before).collect();
    // A SYN that is sent twice counts twice where packets are counted.
    let as_often = counted[0] == 3 && counted[1] >= 3 && counted[2] >= 2;
    ensure!(as_often, "{names:?} moved by {counted:?}");

    let server = |port| bed.pod("server").ips.socket(family, port);
    ask_by_mesh(bed, "caller", server(PORT)).context("another port")?;
    ask_by_mesh(bed, "plain", server(EXCLUDED)).context("a caller in the mesh, to the excluded port")?;
    street.by_agent("plain", family, PORT).context("a pod that excludes nothing")?;
    street.by_agent("plain", family, EXCLUDED).context("a pod that excludes nothing")?;
    let refused = failure(bed, "outsider", server(PORT))?;
    ensure!(refused.starts_with("ECONNRESET"), "plaintext to a STRICT port: {refused}");
    Ok(())
}

fn guarded(street: &Street, family: Family) -> Result<()> {
    let unfiled = || outcome(&street.bed, "n1", "guard_syn_unfiled");
    ensure!(street.past_the_hooks("caller", "outsider", family, PORT, PATIENCE)?, "an excluded network");
    ensure!(street.past_the_hooks("caller", "server", family, EXCLUDED, PATIENCE)?, "an excluded port");
    let before = unfiled()?;
    // Nothing answers a SYN that is dropped: a short wait shows as much as a long one.
    let wait = Duration::from_millis(700);
    for (from, to, port) in [
        ("caller", "server", PORT),
        ("caller", "server", 15008),
        ("caller", "outsider", 15008),
        ("plain", "outsider", PORT),
        ("plain", "server", EXCLUDED),
    ] {
        ensure!(!street.past_the_hooks(from, to, family, port, wait)?, "{from} to {to}:{port} went past the guard");
    }
    ensure!(unfiled()? >= before + 5, "{} of 5 were counted", unfiled()? - before);
    // From an address that is not the pod's, which the connect hook does not see.
    let caller = street.bed.pod("caller");
    let other = street.bed.pod("plain").ips.ip(family).to_string();
    let outsider = street.bed.pod("outsider").ips.ip(family).to_string();
    let length = if family == Family::V4 { 32 } else { 128 };
    caller.netns.batch(&format!("address add {other}/{length} dev lo"))?;
    let before = unfiled()?;
    let said = caller.run(&[PYTHON, "-c", DIAL_FROM, &other, &outsider, &PORT.to_string()], PATIENCE)?;
    ensure!(said.expect_ok("dialling from another's address")?.trim() == "TimeoutError");
    ensure!(unfiled()? > before, "not counted");
    Ok(())
}

/// Debian's interpreter: an application that chooses its source address.
const PYTHON: &str = "/usr/bin/python3";
const DIAL_FROM: &str = "
import socket, sys
source, to, port = sys.argv[1:4]
s = socket.socket(socket.AF_INET6 if ':' in to else socket.AF_INET); s.settimeout(1); s.bind((source, 0))
try: s.connect((to, int(port))); print('connected')
except Exception as e: print(type(e).__name__)
";

/// Annotations that are edited hold for the next connection; what is open stays; what nobody asks for any more goes.
#[test]
fn exclusions_follow_the_annotations() -> Result<()> {
    let Some(mut street) = Street::build("edited exclusions", &[])? else { return Ok(()) };
    let run = edited(&mut street).and_then(|()| without_agent(&mut street));
    run.map_err(|error| street.bed.explain(error))
}

fn edited(street: &mut Street) -> Result<()> {
    let mut held = Vec::new();
    for family in Family::BOTH {
        held.push(street.hold("caller", family)?);
        held.push(street.hold("plain", family)?);
    }
    let networks = networks(&street.bed, "outsider");
    street.bed.annotate_pod("caller", OUTBOUND_CIDRS, None)?;
    street.bed.annotate_pod("plain", OUTBOUND_CIDRS, Some(&networks))?;
    for family in Family::BOTH {
        street.settle("caller", family, false)?;
        street.settle("plain", family, true)?;
    }
    for probe in &mut held {
        let status = probe.wait(PATIENCE)?;
        ensure!(status.success(), "an open connection: {}", probe.log());
    }
    let workloads = street.bed.agent("n1").get_json("/config_dump")?["workloads"].clone();
    ensure!(workloads.to_string().contains("10.244.2.2/32"), "not shown: {workloads}");
    // What cannot be read excludes nothing, and is said.
    street.bed.annotate_pod("plain", OUTBOUND_CIDRS, Some(&format!("{networks},10.0.0.0/33")))?;
    street.settle("plain", Family::V4, false)?;
    let dump = street.bed.agent("n1").get_json("/config_dump")?.to_string();
    ensure!(dump.contains("10.0.0.0/33") && dump.contains("excludesNothing"), "no finding: {dump}");
    street.bed.annotate_pod("plain", OUTBOUND_CIDRS, Some(&networks))?;
    street.settle("plain", Family::V4, true)
}

/// What is excluded needs no agent. What changes meanwhile is settled by the next one.
fn without_agent(street: &mut Street) -> Result<()> {
    street.bed.agent_mut("n1").kill()?;
    let outsider = street.bed.pod("outsider").ips;
    for family in Family::BOTH {
        ask(&street.bed, "plain", outsider.socket(family, PORT)).context("with no agent")?;
        let refused = failure(&street.bed, "caller", outsider.socket(family, PORT))?;
        ensure!(refused == "ECONNREFUSED at connect", "what is not excluded, with no agent: {refused}");
    }
    street.bed.annotate_pod("plain", OUTBOUND_CIDRS, None)?;
    street.bed.start_agent("n1", &AgentOptions::default())?;
    for family in Family::BOTH {
        street.by_agent("plain", family, PORT).context("an exclusion that ended while no agent ran")?;
        street.direct("caller", "server", family, EXCLUDED).context("one that did not")?;
    }
    // caller's port, in two families.
    eventually(PATIENCE, "these entries alone", || Ok((street.published("n1")? == 2).then_some(())))?;
    street.bed.remove_pod("caller")?;
    eventually(PATIENCE, "the entries to go with the pod", || Ok((street.published("n1")? == 0).then_some(())))
}

/// A pod's addresses, as networks.
fn networks(bed: &Testbed, pod: &str) -> String {
    let ips = bed.pod(pod).ips;
    format!("{}/32, {}/128", ips.v4, ips.v6)
}

fn entries(bed: &Testbed, node: &str, map: &str) -> Result<usize> {
    let pin = bed.agent(node).pins().join("v1/maps").join(map);
    let dump = Command::new("bpftool").args(["-j", "map", "dump", "pinned"]).arg(pin).output()?;
    let dump: serde_json::Value = serde_json::from_slice(&dump.stdout)?;
    dump.as_array().map(Vec::len).context("no list of entries")
}
