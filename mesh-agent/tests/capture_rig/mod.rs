//! The node, the pods and the agent that the capture test plays with.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mesh_agent::addr::ClientAddr;
use mesh_agent::capture::{
    Capture, Config, ObjectSource, OutcomeReader, Shutdown, StraightReader, TcMode, cgroups, detach_all,
};
use mesh_agent::drain::Drain;
use mesh_agent::podnet::{
    ClientRecord, DialRecord, EnrolledPod, Family, KernelRefusal, PodEvent, PodListener, PodNet, Role, Straight,
    StraightConnection, StraightPath,
};
use mesh_agent::readiness::Readiness;
use mesh_agent::spiffe::SpiffeId;
use mesh_agent::state::{Exclusions, MeshState, StateWriter, Workload, World};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

pub const POD_UID: &str = "5e6f0000-1111-2222-3333-0000nodemesh";
pub const OUTSIDER_UID: &str = "outsider";
/// In how many connections from pod to pod one has a part.
pub const POD_CONNECTIONS: u32 = 40;

/// What is dialled answers at once, but for what a busy machine needs. Where no answer is expected, a few seconds show as much.
const PATIENCE: &str = "20";
const SHORT: &str = "3";

/// Python, because an application's own view of its socket is what the test is about.
const CLIENT: &str = r#"
import socket, sys
host, port = sys.argv[1].rsplit(":", 1)
host = host.strip("[]")
family = socket.AF_INET6 if ":" in host else socket.AF_INET
s = socket.socket(family, socket.SOCK_STREAM)
s.settimeout(float(PATIENCE))
def show(a):
    ip = a[0][7:] if a[0].startswith("::ffff:") else a[0]
    return ("[%s]:%d" if ":" in ip else "%s:%d") % (ip, a[1])
try:
    if len(sys.argv) > 2: s.bind((sys.argv[2], 0))
    s.connect((host, int(port)))
    peer, own = show(s.getpeername()), show(s.getsockname())
    s.sendall(b"hello\n")
    seen = s.makefile().readline().strip()
    print("connected peer=%s own=%s seen=%s" % (peer, own, seen))
except Exception as e:
    print(type(e).__name__)
"#;

const SERVER: &str = r#"
import socket, sys
s = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
s.bind(("::", int(sys.argv[1]))); s.listen(64)
print("ready", flush=True)
while True:
    c, _ = s.accept()
    a = c.getpeername()
    ip = a[0][7:] if a[0].startswith("::ffff:") else a[0]
    c.recv(100)
    c.sendall((("[%s]:%d\n" if ":" in ip else "%s:%d\n") % (ip, a[1])).encode())
    c.close()
"#;

/// The node, its pods, its cgroups and its pins. Gone when dropped.
pub struct Rig {
    node: Namespace,
    pub pod: Pod,
    pub outsider: Pod,
    root: PathBuf,
    home: PathBuf,
    pins: tempfile::TempDir,
    object: PathBuf,
}

/// A network namespace that a process keeps.
pub struct Namespace {
    keeper: Child,
    file: File,
}

/// A pod: a namespace and a cgroup.
pub struct Pod {
    namespace: Namespace,
    cgroup: PathBuf,
    elsewhere: PathBuf,
}

/// A process that ends with its owner.
pub struct Running {
    child: Child,
    stdout: io::BufReader<std::process::ChildStdout>,
}

impl Running {
    /// Waits for the next line that it prints.
    pub fn line(&mut self) -> String {
        use std::io::BufRead;
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("a line of a program");
        line.trim().to_string()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn skip(reason: &str) {
    assert!(std::env::var_os("MESH_REQUIRE_KERNEL").is_none_or(|set| set != "1"), "cannot run: {reason}");
    eprintln!("\n*** SKIPPED: the capture test needs {reason} (MESH_REQUIRE_KERNEL=1 makes this a failure) ***\n");
}

fn run(command: &[&str]) {
    let output = Command::new(command[0]).args(&command[1..]).output().expect("a command that starts");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Namespace {
    fn new() -> Self {
        let keeper = Command::new("unshare").args(["-n", "sleep", "600"]).spawn().expect("unshare");
        let own = fs::read_link("/proc/self/ns/net").expect("the own namespace");
        let path = format!("/proc/{}/ns/net", keeper.id());
        wait("a new network namespace", || fs::read_link(&path).is_ok_and(|link| link != own));
        let file = File::open(&path).expect("the new namespace");
        Self { keeper, file }
    }

    /// Runs `job` on a thread in the namespace.
    fn enter<T: Send>(&self, job: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let entered = scope.spawn(|| {
                move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network)).expect("setns");
                job()
            });
            match entered.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

impl Pod {
    fn command(&self, cgroup: &Path, arguments: &[&str]) -> Command {
        // The shell joins the cgroup before the program starts, so that its first socket is already the pod's.
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$@\""]).arg(cgroup).args(arguments);
        command
    }

    fn output(&self, cgroup: &Path, arguments: &[&str]) -> String {
        let output = self.namespace.enter(|| self.command(cgroup, arguments).output().expect("a command that starts"));
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_string()
    }

    pub fn run(&self, arguments: &[&str]) -> String {
        self.output(&self.cgroup, arguments)
    }

    pub fn dial(&self, target: &str) -> String {
        self.run(&["/usr/bin/python3", "-c", &CLIENT.replace("PATIENCE", PATIENCE), target])
    }

    pub fn dial_from(&self, target: &str, source: &str) -> String {
        self.run(&["/usr/bin/python3", "-c", &CLIENT.replace("PATIENCE", SHORT), target, source])
    }

    pub fn dial_outside_cgroup(&self, target: &str) -> String {
        self.output(&self.elsewhere, &["/usr/bin/python3", "-c", &CLIENT.replace("PATIENCE", SHORT), target])
    }

    pub fn serve(&self, port: u16) -> Running {
        let mut server = self.start(SERVER, &port.to_string());
        assert_eq!(server.line(), "ready");
        server
    }

    /// A program with one argument, whose lines are read one by one.
    pub fn start(&self, program: &str, argument: &str) -> Running {
        let mut child = self.namespace.enter(|| {
            let mut command = self.command(&self.cgroup, &["/usr/bin/python3", "-c", program, argument]);
            command.stdout(Stdio::piped()).spawn().expect("a program that starts")
        });
        let stdout = child.stdout.take().expect("its output");
        Running { child, stdout: io::BufReader::new(stdout) }
    }
}

pub fn wait(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60), "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Rig {
    /// None where this cannot run and need not.
    pub fn make() -> Option<Self> {
        let object = std::env::var_os("NODEMESH_TEST_BPF_OBJECT")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/mesh-ebpf"), PathBuf::from);
        if !rustix::process::geteuid().is_root() {
            skip("root");
            return None;
        }
        if !object.exists() {
            skip("the BPF object: cargo xtask build-ebpf");
            return None;
        }
        let Some(mount) = cgroups::cgroup2_mount() else {
            skip("a cgroup2 mount");
            return None;
        };
        Some(Self::build(&mount, object))
    }

    fn build(mount: &Path, object: PathBuf) -> Self {
        let own = fs::read_to_string("/proc/self/cgroup").expect("the own cgroup");
        let own = own.lines().find_map(|line| line.strip_prefix("0::")).expect("a cgroup2 line");
        let home = mount.join(own.trim_start_matches('/'));
        let root = mount.join(format!("nodemesh-capture-test-{}", std::process::id()));
        let pod = root.join(format!("kubepods/besteffort/pod{POD_UID}/container"));
        let (outsider, elsewhere, agent) =
            (root.join("kubepods/podoutsider"), root.join("elsewhere"), root.join("agent"));
        for directory in [&pod, &outsider, &elsewhere, &agent] {
            fs::create_dir_all(directory).expect("a cgroup");
        }
        let pins = tempfile::Builder::new().prefix("nodemesh-capture-bpf-").tempdir().expect("a directory");
        run(&["mount", "-t", "bpf", "bpf", pins.path().to_str().expect("a path")]);
        fs::write(agent.join("cgroup.procs"), std::process::id().to_string()).expect("joining the agent's cgroup");
        let pod = |cgroup| Pod { namespace: Namespace::new(), cgroup, elsewhere: elsewhere.clone() };
        let rig = Self {
            node: Namespace::new(),
            pod: pod(root.join(format!("kubepods/besteffort/pod{POD_UID}/container"))),
            outsider: pod(outsider),
            root,
            home,
            pins,
            object,
        };
        // The pods' sandbox processes: enrolment finds the namespaces through them.
        for pod in [&rig.pod, &rig.outsider] {
            fs::write(pod.cgroup.join("cgroup.procs"), pod.namespace.keeper.id().to_string()).expect("the sandbox");
        }
        rig.connect();
        rig
    }

    fn connect(&self) {
        let node = &self.node;
        node.enter(|| {
            run(&["ip", "link", "set", "lo", "up"]);
            fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("forwarding");
            fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").expect("forwarding");
        });
        for (pod, number) in [(&self.pod, 1), (&self.outsider, 2)] {
            let (device, keeper) = (format!("nodemesh{number}"), pod.namespace.keeper.id().to_string());
            node.enter(|| {
                run(&["ip", "link", "add", &device, "type", "veth", "peer", "name", "eth0", "netns", &keeper]);
                run(&["ip", "link", "set", &device, "up"]);
                run(&["ip", "address", "add", &format!("10.177.{number}.1/24"), "dev", &device]);
                run(&["ip", "address", "add", &format!("fd77:{number}::1/64"), "dev", &device, "nodad"]);
            });
            pod.namespace.enter(|| {
                run(&["ip", "link", "set", "lo", "up"]);
                run(&["ip", "link", "set", "eth0", "up"]);
                run(&["ip", "address", "add", &format!("10.177.{number}.2/24"), "dev", "eth0"]);
                run(&["ip", "address", "add", &format!("fd77:{number}::2/64"), "dev", "eth0", "nodad"]);
                run(&["ip", "route", "add", "default", "via", &format!("10.177.{number}.1")]);
                run(&["ip", "-6", "route", "add", "default", "via", &format!("fd77:{number}::1")]);
            });
        }
    }

    /// Takes the outsider's link away, as a container network does when a pod goes.
    pub fn cut_link_of_outsider(&self) {
        run(&["ip", "link", "delete", "nodemesh2"]);
    }

    /// Runs `job` in the node's namespace.
    pub fn on_node(&self, job: impl FnOnce() + Send) {
        self.node.enter(job);
    }

    /// The names of the pinned links.
    pub fn pinned_programs(&self) -> Vec<PathBuf> {
        let version = self.pins.path().join("nodemesh/v1");
        let pod = version.join("pods").join(POD_UID);
        let entries = [version.join("links"), pod].map(|directory| fs::read_dir(directory).into_iter().flatten());
        entries.into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    }

    pub fn pod_pins(&self) -> usize {
        fs::read_dir(self.pins.path().join("nodemesh/v1/pods")).expect("the pins").count()
    }

    /// What bpftool says of a pinned map.
    pub fn map(&self, name: &str) -> String {
        let pin = self.pins.path().join("nodemesh/v1/maps").join(name);
        let output = Command::new("bpftool").args(["-j", "map", "dump", "pinned"]).arg(pin).output();
        String::from_utf8_lossy(&output.expect("bpftool").stdout).into_owned()
    }

    pub fn wait(&self, what: &str, condition: impl Fn() -> bool) {
        wait(what, condition);
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = detach_all(&self.pins.path().join("nodemesh"));
        let _ = Command::new("umount").arg(self.pins.path()).status();
        let _ = fs::write(self.home.join("cgroup.procs"), std::process::id().to_string());
        let _ = fs::write(self.root.join("cgroup.kill"), "1");
        for _ in 0..50 {
            remove_cgroups(&self.root);
            if !self.root.exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn remove_cgroups(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_cgroups(&entry.path());
        }
    }
    let _ = fs::remove_dir(directory);
}

/// Capture with an acceptor that carries bytes and judges nothing.
pub struct Agent {
    writer: StateWriter,
    outcomes: OutcomeReader,
    straight: StraightReader,
    seen: Arc<Seen>,
    runtime: tokio::runtime::Runtime,
    drain: Drain,
    /// The mesh does not leave while this is there.
    _staying: Drain,
    running: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Seen {
    dialled: Mutex<Option<SocketAddr>>,
    plaintext: AtomicU64,
    stop: std::sync::atomic::AtomicBool,
    /// How many listeners are open.
    listening: AtomicU64,
}

/// The pod alone, or the outsider as another pod of the mesh beside it.
pub fn world(enrolled: &[&str]) -> World {
    let pod = |uid, name, ips| workload(uid, name, ips, enrolled.contains(&uid));
    let outsider = pod(OUTSIDER_UID, "neighbour", ["10.177.2.2", "fd77:2::2"]);
    let mut workloads = vec![pod(POD_UID, "app", ["10.177.1.2", "fd77:1::2"])];
    workloads.extend(enrolled.contains(&OUTSIDER_UID).then_some(outsider));
    World { workloads, ..World::default() }
}

fn workload(uid: &str, name: &str, ips: [&str; 2], enrolled: bool) -> Workload {
    Workload {
        uid: uid.into(),
        name: name.into(),
        namespace: "test".into(),
        node: "node".into(),
        identity: SpiffeId::new("cluster.local", "test", name).expect("an identity"),
        ips: ips.map(|ip| ip.parse().expect("an IP")).to_vec(),
        labels: BTreeMap::new(),
        named_ports: BTreeMap::new(),
        host_ips: vec![],
        host_ports: vec![],
        exclusions: Exclusions::default(),
        probe_ports: Default::default(),
        forwards: false,
        enrolled,
        refusal: None,
        host_network: false,
        ready: true,
        terminating: false,
        created: None,
    }
}

/// Nothing goes straight.
pub struct Nobody;

impl Straight for Nobody {
    fn paths(&self, _: &MeshState, _: &dyn Fn(&str) -> bool) -> Arc<[StraightPath]> {
        Arc::default()
    }

    fn may_go_on(&self, _: &MeshState, _: &Workload, _: &Workload, _: SocketAddr) -> bool {
        false
    }

    fn ended(&self, _: StraightConnection) {}

    fn refused(&self, _: &MeshState, _: KernelRefusal) {}
}

impl Agent {
    pub fn start(rig: &Rig) -> Self {
        Self::start_with(rig, &[POD_UID], None)
    }

    /// `straight` lets pods reach each other by the kernel alone.
    pub fn start_with(rig: &Rig, enrolled: &[&str], straight: Option<Arc<dyn Straight>>) -> Self {
        let config = Config {
            node: "node".into(),
            cgroup_root: rig.root.clone(),
            pins: rig.pins.path().join("nodemesh"),
            object: ObjectSource::File(rig.object.clone()),
            map_connections: 1024,
            tc: match std::env::var("NODEMESH_TEST_TC").as_deref() {
                Ok("clsact") => TcMode::Clsact,
                _ => TcMode::Auto,
            },
            bpf_log: std::env::var_os("NODEMESH_TEST_BPF_LOG").is_some(),
            same_node_kernel: straight.is_some(),
            pod_connections: POD_CONNECTIONS,
        };
        let capture = Capture::start(config, straight.unwrap_or(Arc::new(Nobody)))
            .unwrap_or_else(|error| panic!("capture does not start: {error}"));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("tokio");
        let (writer, state) = StateWriter::new("node");
        let straight = capture.straight();
        let (outcomes, [drain, staying], seen) =
            (capture.outcomes(), std::array::from_fn(|_| Drain::new()), Arc::new(Seen::default()));
        let (readiness, shared) = (Readiness::default(), seen.clone());
        let shutdown = Shutdown { leaving: staying.token(), closing: drain.token(), end: drain.token() };
        let gates = readiness.clone();
        let running = runtime.spawn(async move {
            let (events, mut pods) = tokio::sync::mpsc::channel(8);
            let capture = tokio::spawn(capture.run(state, events, readiness, Default::default(), shutdown));
            while let Some(event) = pods.recv().await {
                match event {
                    PodEvent::Enrolled(pod) => accept_all(pod, &shared),
                    PodEvent::Left(_) => shared.stop.store(true, Ordering::Relaxed),
                }
            }
            capture.await.expect("capture's task").expect("capture");
        });
        writer.publish(MeshState::build(1, "node", &world(enrolled)));
        let start = Instant::now();
        let pins = rig.pins.path().join("nodemesh/v1/pods");
        while !gates.missing().is_empty() || !enrolled.iter().all(|uid| pins.join(uid).exists()) {
            assert!(start.elapsed() < Duration::from_secs(60), "not ready: {:?}", gates.missing());
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { writer, outcomes, straight, seen, runtime, drain, _staying: staying, running }
    }

    pub fn stop(self) {
        let Self { seen, runtime, drain, running, .. } = self;
        seen.stop.store(true, Ordering::Relaxed);
        runtime.block_on(async {
            drain.start();
            running.await.expect("the agent's task");
        });
        // The acceptors close their listeners when they see the flag.
        wait("the listeners to close", || seen.listening.load(Ordering::Relaxed) == 0);
    }

    pub fn unenrol(&self) {
        self.publish(2, &[]);
    }

    pub fn publish(&self, version: u64, enrolled: &[&str]) {
        self.writer.publish(MeshState::build(version, "node", &world(enrolled)));
    }

    pub fn last_dialled(&self) -> Option<SocketAddr> {
        *self.seen.dialled.lock().expect("a lock")
    }

    pub fn plaintext(&self) -> u64 {
        self.seen.plaintext.load(Ordering::Relaxed)
    }

    /// What goes from pod to pod by the kernel alone.
    pub fn straight(&self) -> &StraightReader {
        &self.straight
    }

    pub fn outcome(&self, name: &str) -> u64 {
        self.outcomes.read().into_iter().find(|(outcome, _)| outcome.name() == name).expect("a known outcome").1
    }
}

fn accept_all(pod: EnrolledPod, seen: &Arc<Seen>) {
    for listener in pod.listeners {
        let (net, seen) = (pod.net.clone(), seen.clone());
        seen.listening.fetch_add(1, Ordering::Relaxed);
        std::thread::spawn(move || {
            accept(&listener, &net, &seen);
            drop(listener);
            seen.listening.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

fn accept(listener: &PodListener, net: &Arc<dyn PodNet>, seen: &Arc<Seen>) {
    while !seen.stop.load(Ordering::Relaxed) {
        let Ok((app, client)) = listener.socket.accept() else {
            std::thread::sleep(Duration::from_millis(10));
            continue;
        };
        app.set_nonblocking(false).expect("blocking");
        let (net, seen, role) = (net.clone(), seen.clone(), listener.role);
        std::thread::spawn(move || match role {
            Role::Outbound => outbound(app, &net, &seen),
            Role::Plaintext => inbound(app, client, &net, &seen),
            Role::Tunnel => {}
        });
    }
}

fn outbound(app: TcpStream, net: &Arc<dyn PodNet>, seen: &Seen) {
    let record = DialRecord::lookup(net, app.local_addr().expect("an address")).expect("a record");
    let dialled = record.dialled().socket();
    *seen.dialled.lock().expect("a lock") = Some(dialled);
    let socket = net.stocked_socket(Family::of(dialled.ip())).expect("a socket in stock");
    socket.set_nonblocking(false).expect("blocking");
    if socket.connect_timeout(&dialled.into(), Duration::from_secs(20)).is_ok() {
        carry(app, socket.into());
    }
}

fn inbound(app: TcpStream, client: SocketAddr, net: &Arc<dyn PodNet>, seen: &Seen) {
    seen.plaintext.fetch_add(1, Ordering::Relaxed);
    let local = app.local_addr().expect("an address");
    let family = Family::of(local.ip());
    let record = ClientRecord::file(net, ClientAddr::new(client), family).expect("a record");
    let socket = net.stocked_socket(family).expect("a socket in stock");
    socket.set_nonblocking(false).expect("blocking");
    match family {
        Family::V4 => mesh_agent::sys::set_socket_option(socket.as_fd(), 0, 24, 1),
        Family::V6 => mesh_agent::sys::set_socket_option(socket.as_fd(), 41, 78, 1),
    }
    .expect("an option");
    socket.bind(&SocketAddr::new(record.source(), 0).into()).expect("a source address");
    if socket.connect_timeout(&local.into(), Duration::from_secs(20)).is_ok() {
        carry(app, socket.into());
    }
}

fn carry(a: TcpStream, b: TcpStream) {
    let (mut a2, mut b2) = (a.try_clone().expect("a clone"), b.try_clone().expect("a clone"));
    let (mut a, mut b) = (a, b);
    let back = std::thread::spawn(move || {
        let _ = io::copy(&mut b2, &mut a2);
        let _ = a2.shutdown(std::net::Shutdown::Write);
    });
    let _ = io::copy(&mut a, &mut b);
    let _ = b.shutdown(std::net::Shutdown::Write);
    let _ = back.join();
}
