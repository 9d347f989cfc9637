//! Capture on the real kernel: one node, one enrolled pod, one outsider, with an acceptor that only carries bytes.
//!
//! Needs root and the BPF object (`cargo xtask build-ebpf`). Without them it skips loudly, or fails where
//! MESH_REQUIRE_KERNEL=1 says that it has to run. Everything it makes has `nodemesh` in its name and goes when it ends.

mod capture_rig;
#[path = "capture_rig/straight.rs"]
mod straight;

use std::net::SocketAddr;

use capture_rig::{Agent, Rig};

const OUTSIDER_V4: &str = "10.177.2.2";
const OUTSIDER_V6: &str = "fd77:2::2";
const POD_V4: &str = "10.177.1.2";
const POD_V6: &str = "fd77:1::2";

/// The process plays the agent, of which there is one.
static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());

#[test]
fn capture_end_to_end() {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let Some(rig) = Rig::make() else { return };
    // The node is a namespace: everything that plays its part runs on threads in it.
    rig.on_node(|| {
        let agent = Agent::start(&rig);
        outbound(&rig, &agent);
        inbound(&rig, &agent);
        forbidden(&rig, &agent);
        let links = rig.pinned_programs();
        agent.stop();
        refused_without_agent(&rig);
        let agent = Agent::start(&rig);
        assert_eq!(rig.pinned_programs().len(), links.len(), "a restart adds no link");
        outbound(&rig, &agent);
        inbound(&rig, &agent);
        left(&rig, agent);
    });
}

/// What is dialled reaches the agent, with the right addresses on both sides.
fn outbound(rig: &Rig, agent: &Agent) {
    let _server = rig.outsider.serve(8080);
    for (target, source) in [
        (format!("{OUTSIDER_V4}:8080"), POD_V4),
        (format!("[{OUTSIDER_V6}]:8080"), POD_V6),
        (format!("[::ffff:{OUTSIDER_V4}]:8080"), POD_V4),
    ] {
        let dialled: SocketAddr = target.parse().expect("an address");
        let answer = rig.pod.dial(&target);
        let canonical = SocketAddr::new(dialled.ip().to_canonical(), dialled.port());
        let names: Vec<&str> = answer.split_whitespace().collect();
        assert_eq!(names.first().copied(), Some("connected"), "{target}: {answer}");
        assert_eq!(names.get(1).copied(), Some(&*format!("peer={canonical}")), "{target}: {answer}");
        let own = names.get(2).copied().unwrap_or_default();
        assert!(own.starts_with(&format!("own={}", with_port(source))), "{target}: {answer}");
        let seen = names.get(3).copied().unwrap_or_default();
        assert!(seen.starts_with(&format!("seen={}", with_port(source))), "the server saw {seen}");
        assert_eq!(agent.last_dialled(), Some(canonical), "{target}");
    }
}

/// What arrives reaches the agent, and the application sees the real client.
fn inbound(rig: &Rig, agent: &Agent) {
    let _server = rig.pod.serve(9090);
    for target in [format!("{POD_V4}:9090"), format!("[{POD_V6}]:9090")] {
        let before = agent.plaintext();
        let answer = rig.outsider.dial(&target);
        let names: Vec<&str> = answer.split_whitespace().collect();
        let own = names.get(2).and_then(|own| own.strip_prefix("own=")).unwrap_or_default();
        let seen = names.get(3).and_then(|seen| seen.strip_prefix("seen=")).unwrap_or_default();
        assert_eq!(seen, own, "{target}: the application sees the client's address and port: {answer}");
        assert_eq!(agent.plaintext(), before + 1, "{target} came through the agent");
    }
}

/// Ways past capture are closed.
fn forbidden(rig: &Rig, agent: &Agent) {
    let _server = rig.outsider.serve(8081);
    // A process in the pod's namespace, but in none of its cgroups: no hook sees its connect().
    let answer = rig.pod.dial_outside_cgroup(&format!("{OUTSIDER_V4}:8081"));
    assert_eq!(answer, "TimeoutError", "the guard drops a SYN that no record is for");
    assert!(agent.outcome("guard_syn_unfiled") > 0);
    let answer = rig.pod.dial_outside_cgroup(&format!("[{OUTSIDER_V6}]:8081"));
    assert_eq!(answer, "TimeoutError");
    for range in ["127.128.0.1:40000", "[fd6e:6f64:656d:6573::1]:80"] {
        assert_eq!(rig.pod.dial(range), "ConnectionRefusedError", "{range}");
    }
    // A process in the pod that takes a source address of the agent's.
    let _server = rig.pod.serve(9091);
    let answer = rig.pod.dial_from(&format!("{POD_V4}:9091"), "127.64.3.3");
    assert_ne!(answer.split_whitespace().next(), Some("connected"), "{answer}");
    assert!(agent.outcome("lookup_forged") > 0);
}

/// Fail closed: nothing passes in plaintext while no agent runs.
fn refused_without_agent(rig: &Rig) {
    let _servers = (rig.outsider.serve(8082), rig.pod.serve(9092));
    for target in [format!("{OUTSIDER_V4}:8082"), format!("[{OUTSIDER_V6}]:8082")] {
        assert_eq!(rig.pod.dial(&target), "ConnectionRefusedError", "{target}");
    }
    for target in [format!("{POD_V4}:9092"), format!("[{POD_V6}]:9092")] {
        assert_eq!(rig.outsider.dial(&target), "ConnectionRefusedError", "{target}");
    }
}

/// A pod that leaves has its traffic back, and nothing is left in it.
fn left(rig: &Rig, agent: Agent) {
    agent.unenrol();
    rig.wait("the pod's pins to go", || rig.pod_pins() == 0);
    for (family, route) in [("-4", "127.128.0.0/9"), ("-6", "fd6e:6f64")] {
        rig.wait("its routes to go", || {
            !rig.pod.run(&["ip", family, "route", "show", "table", "local"]).contains(route)
        });
    }
    let _servers = (rig.outsider.serve(8083), rig.pod.serve(9093));
    let captured = agent.outcome("connect_captured_v4");
    assert!(rig.pod.dial(&format!("{OUTSIDER_V4}:8083")).starts_with("connected"));
    assert!(rig.outsider.dial(&format!("{POD_V4}:9093")).starts_with("connected"));
    assert_eq!(agent.outcome("connect_captured_v4"), captured);
    agent.stop();
}

fn with_port(ip: &str) -> String {
    if ip.contains(':') { format!("[{ip}]:") } else { format!("{ip}:") }
}
