//! Two pods of a node, of which one reaches the other by the kernel alone. What may go is said here: the kernel's side is
//! what is tried.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mesh_agent::podnet::{KernelRefusal, Straight, StraightConnection, StraightPath};
use mesh_agent::state::{MeshState, Workload};

use crate::ONE_AT_A_TIME;
use crate::capture_rig::{Agent, OUTSIDER_UID, POD_CONNECTIONS, POD_UID, Rig, Running};

const BOTH: [&str; 2] = [POD_UID, OUTSIDER_UID];
const VIP_V4: &str = "10.96.0.7:80";
const VIP_V6: &str = "[fd96::7]:80";
const SERVER_V4: &str = "10.177.2.2:8080";
const SERVER_V6: &str = "[fd77:2::2]:8080";

/// Reads until its peer is gone, and says how.
const STAYS: &str = r#"
import socket, sys
host, port = sys.argv[1].rsplit(":", 1)
s = socket.create_connection((host, int(port)))
print("open", flush=True)
s.settimeout(60)
try: print("data" if s.recv(10) else "end", flush=True)
except Exception as e: print(type(e).__name__, flush=True)
"#;

/// Accepts, and says how its peer goes.
const HOLDS: &str = r#"
import socket, sys
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("0.0.0.0", int(sys.argv[1]))); s.listen(5)
print("ready", flush=True)
c, a = s.accept()
print("accepted", flush=True)
c.settimeout(60)
try: print("data" if c.recv(10) else "end", flush=True)
except Exception as e: print(type(e).__name__, flush=True)
"#;

/// Accepts nothing: its backlog has room for all.
const CROWDED: &str = r#"
import socket, sys, time
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("0.0.0.0", int(sys.argv[1]))); s.listen(500)
print("ready", flush=True)
time.sleep(60)
"#;

/// Opens fifty, and says so.
const CROWD: &str = r#"
import socket, sys, time
host, port = sys.argv[1].rsplit(":", 1)
held = [socket.create_connection((host, int(port)), timeout=20) for _ in range(50)]
print(len(held), flush=True)
time.sleep(60)
"#;

/// Says what may go straight, and hears what went.
struct Word {
    paths: Mutex<Vec<StraightPath>>,
    may_go_on: AtomicBool,
    ended: Mutex<Vec<StraightConnection>>,
}

impl Straight for Word {
    fn paths(&self, _: &MeshState, is_held: &dyn Fn(&str) -> bool) -> Arc<[StraightPath]> {
        let both = BOTH.iter().all(|uid| is_held(uid));
        if both { self.paths.lock().unwrap_or_else(PoisonError::into_inner).clone().into() } else { Arc::default() }
    }

    fn may_go_on(&self, _: &MeshState, _: &Workload, _: &Workload, _: SocketAddr) -> bool {
        self.may_go_on.load(Ordering::Relaxed)
    }

    fn ended(&self, connection: StraightConnection) {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
    }

    fn refused(&self, _: &MeshState, _: KernelRefusal) {}
}

impl Word {
    fn new() -> Arc<Self> {
        let path = |dialled: &str, server: &str| StraightPath {
            client: POD_UID.into(),
            dialled: dialled.parse().expect("an address"),
            endpoints: vec![(server.parse().expect("an address"), OUTSIDER_UID.into())],
        };
        let paths = vec![
            path(VIP_V4, SERVER_V4),
            path(VIP_V6, SERVER_V6),
            path(SERVER_V4, SERVER_V4),
            path("10.96.0.8:80", "10.177.2.2:8090"),
        ];
        Arc::new(Self { paths: Mutex::new(paths), may_go_on: AtomicBool::new(true), ended: Mutex::default() })
    }

    fn ended(&self) -> Vec<StraightConnection> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn start(rig: &Rig, word: &Arc<Word>) -> Agent {
    let agent = Agent::start_with(rig, &BOTH, Some(word.clone()));
    // A round ends with the agent's word that what it has published holds: after the second there was a whole one.
    rig.wait("its paths to be published", || rig.map("PATHS").contains("key"));
    for _ in 0..2 {
        let before = rig.map("LEASE");
        rig.wait("the agent's word", || rig.map("LEASE") != before);
    }
    agent
}

fn run(test: impl FnOnce(&Rig) + Send) {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(rig) = Rig::make() else { return };
    rig.on_node(|| test(&rig));
}

/// Ended by the agent at this end, or by a reset from the other where that was first.
fn is_cut(end: &mut Running) {
    let line = end.line();
    assert!(["ConnectionAbortedError", "ConnectionResetError"].contains(&&*line), "{line}");
}

/// Both ends of a connection that stays.
fn connected(rig: &Rig) -> (Running, Running) {
    let mut server = rig.outsider.start(HOLDS, "8090");
    assert_eq!(server.line(), "ready");
    let mut client = rig.pod.start(STAYS, "10.96.0.8:80");
    assert_eq!((client.line(), server.line()), ("open".into(), "accepted".into()));
    (client, server)
}

/// Dials, and tells whether the server saw the client itself and the client what it dialled.
fn dial(rig: &Rig, target: &str) {
    let answer = rig.pod.dial(target);
    let names: Vec<&str> = answer.split_whitespace().collect();
    assert_eq!(names.first().copied(), Some("connected"), "{target}: {answer}");
    let shown = target.replace("::ffff:", "").replace("[10.96.0.7]", "10.96.0.7");
    assert_eq!(names.get(1).copied(), Some(&*format!("peer={shown}")), "{target}: {answer}");
    let own = names.get(2).and_then(|own| own.strip_prefix("own=")).unwrap_or("none");
    assert_eq!(names.get(3).copied(), Some(&*format!("seen={own}")), "{target}: {answer}");
}

#[test]
fn what_may_goes_straight_and_nothing_else() {
    run(|rig| {
        let word = Word::new();
        let agent = start(rig, &word);
        let _servers = (rig.outsider.serve(8080), rig.outsider.serve(8081), rig.pod.serve(9090));
        let targets = [(VIP_V4, "v4"), (VIP_V6, "v6"), ("[::ffff:10.96.0.7]:80", "mapped"), (SERVER_V4, "v4")];
        for (number, (target, kind)) in targets.into_iter().enumerate() {
            let before = agent.outcome(&format!("connect_straight_{kind}"));
            dial(rig, target);
            assert_eq!(agent.outcome(&format!("connect_straight_{kind}")), before + 1, "{target}");
            rig.wait("its end to be told", || word.ended().len() == number + 1);
        }
        assert_eq!((agent.last_dialled(), agent.plaintext()), (None, 0), "the agent carried nothing");
        assert!(agent.outcome("guard_syn_straight") >= 4 && agent.outcome("lookup_straight") >= 4);
        let first = &word.ended()[0];
        assert_eq!((&*first.from.name, &*first.to.name), ("app", "neighbour"));
        assert_eq!((first.dialled.to_string(), first.server.to_string()), (VIP_V4.into(), SERVER_V4.into()));
        assert!(first.sent == 6 && first.received > 8 && first.was_open && first.cut.is_none(), "{first:?}");
        assert_eq!(first.client.ip().to_string(), "10.177.1.2");

        // Another port, and the other way: by the agent as ever. Nothing filed: not at all.
        assert!(rig.pod.dial("10.177.2.2:8081").starts_with("connected"));
        assert_eq!(agent.last_dialled().map(|dialled| dialled.port()), Some(8081));
        assert!(rig.outsider.dial("10.177.1.2:9090").starts_with("connected"));
        assert_eq!(agent.outcome("connect_straight_v4"), 2, "no more than what may");
        assert_eq!(rig.pod.dial_outside_cgroup(SERVER_V4), "TimeoutError");
        agent.stop();
    });
}

#[test]
fn what_may_no_more_is_cut_at_both_ends() {
    run(|rig| {
        let word = Word::new();
        let agent = start(rig, &word);
        let (mut client, mut server) = connected(rig);
        // A path that goes ends no connection by itself.
        let paths = std::mem::take(&mut *word.paths.lock().unwrap());
        agent.publish(2, &BOTH);
        std::thread::sleep(Duration::from_millis(1500));
        assert!(word.ended().is_empty());
        *word.paths.lock().unwrap() = paths;
        word.may_go_on.store(false, Ordering::Relaxed);
        agent.publish(3, &BOTH);
        is_cut(&mut client);
        is_cut(&mut server);
        rig.wait("its end to be told", || word.ended().len() == 1);
        assert_eq!(word.ended()[0].cut, Some("policy-revoked"));
        agent.stop();
    });
}

/// The agent is away: what it said holds for a while, then no more. What lives goes on, and the next agent judges it.
#[test]
fn without_the_agent_paths_hold_for_a_while() {
    run(|rig| {
        let word = Word::new();
        let agent = start(rig, &word);
        let _echo = rig.outsider.serve(8080);
        let (mut client, _server) = connected(rig);
        agent.stop();
        dial(rig, VIP_V4);
        assert_eq!(rig.pod.dial("10.177.2.2:8081"), "ConnectionRefusedError", "what the agent carries");
        std::thread::sleep(Duration::from_secs(31));
        assert_eq!(rig.pod.dial(VIP_V4), "ConnectionRefusedError", "its word is too old");

        let agent = start(rig, &word);
        dial(rig, VIP_V4);
        assert!(word.ended().iter().all(|connection| connection.cut.is_none()), "what may go on does");
        word.may_go_on.store(false, Ordering::Relaxed);
        agent.publish(2, &BOTH);
        is_cut(&mut client);
        agent.stop();
    });
}

/// The other pod goes: with its link, or out of the mesh.
#[test]
fn a_pod_that_goes_takes_its_paths_along() {
    run(|rig| {
        let word = Word::new();
        let agent = start(rig, &word);
        let _echo = rig.outsider.serve(8080);
        let (mut client, _server) = connected(rig);
        agent.publish(2, &[POD_UID]);
        is_cut(&mut client);
        rig.wait("its paths to go", || {
            let before = agent.outcome("connect_straight_v4");
            let _ = rig.pod.dial(VIP_V4);
            agent.outcome("connect_straight_v4") == before
        });
        agent.publish(3, &BOTH);
        rig.wait("its paths to be back", || {
            let before = agent.outcome("connect_straight_v4");
            let _ = rig.pod.dial(VIP_V4);
            agent.outcome("connect_straight_v4") > before
        });
        // The kernel knows before the agent does: nobody is asked between these two.
        agent.stop();
        dial(rig, VIP_V4);
        rig.cut_link_of_outsider();
        assert_eq!(rig.pod.dial(VIP_V4), "ConnectionRefusedError", "the link is gone, and with it the path");
    });
}

/// A pod opens more than it may have: the agent carries the rest, and no SYN is lost. With the first that closes there is room
/// again.
#[test]
fn what_a_pod_has_too_many_of_the_agent_carries() {
    run(|rig| {
        let word = Word::new();
        let agent = start(rig, &word);
        let mut server = rig.outsider.start(CROWDED, "8090");
        assert_eq!(server.line(), "ready");
        for round in 1..=2 {
            let (straight, carried) = (agent.outcome("connect_straight_v4"), agent.outcome("connect_captured_v4"));
            let mut crowd = rig.pod.start(CROWD, "10.96.0.8:80");
            assert_eq!(crowd.line(), "50", "every one was answered");
            let most = u64::from(POD_CONNECTIONS);
            assert_eq!(agent.outcome("connect_straight_v4") - straight, most, "round {round}");
            assert_eq!(agent.outcome("connect_captured_v4") - carried, 50 - most, "round {round}");
            let listed = agent.straight().connections();
            assert_eq!((agent.straight().open(), listed.len()), (most, most as usize));
            let first = &listed[0];
            assert_eq!((&*first.from.name, &*first.to.name), ("app", "neighbour"));
            assert_eq!((first.dialled.to_string(), first.server.port()), ("10.96.0.8:80".into(), 8090));
            drop(crowd);
            rig.wait("them to close", || agent.straight().open() == 0);
        }
        assert_eq!((agent.outcome("straight_not_filed"), agent.outcome("straight_refused")), (0, 0));
        assert!(agent.outcome("straight_no_room") >= 20);
        agent.stop();
    });
}
