//! Two agents in one process: real TLS, real HTTP/2, real sockets on loopback, no kernel programs.
//!
//! A pod is a loopback address. What eBPF does for a real pod is done by [`LoopbackNet`]: a client that dials
//! `127.128.x.y` reaches the pod's outbound listener, and `x.y` is the key of what it "dialled". Plaintext steering needs
//! the kernel and is tested there (ring 3).

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::num::NonZeroU16;
use std::pin::Pin;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use mesh_agent::addr::{ClientAddr, OrigDstAddr};
use mesh_agent::discovery;
use mesh_agent::drain::Drain;
use mesh_agent::hbone;
use mesh_agent::http;
use mesh_agent::identity::local_ca::LocalCa;
use mesh_agent::identity::{self, CertificateAuthority, Identities};
use mesh_agent::issuers::{Reach, Ring};
use mesh_agent::podnet::{EnrolledPod, Family, PodEvent, PodListener, PodNet, RecordError, Role};
use mesh_agent::proxy::{Budgets, LiveConnection, Proxy, Shared};
use mesh_agent::routing::OutboundMode;
use mesh_agent::state::{StateReader, StateWriter};
use mesh_agent::telemetry::spans::Sampling;
use mesh_agent::telemetry::{AccessLog, Metrics, Spans};
use opentelemetry_sdk::trace::SpanData;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

pub const TRUST_DOMAIN: &str = "cluster.local";
/// Longer than anything here takes, shorter than a person's patience with a test that hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Gives every pod of every test of this process an address of its own; processes differ in the second byte.
pub fn fresh_ip() -> Ipv4Addr {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let [high, low] = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    let process = 2 + (std::process::id() % 60) as u8;
    Ipv4Addr::new(127, process, high, low)
}

/// One agent without its kernel side.
pub struct Node {
    pub name: &'static str,
    pub identities: Identities,
    pub proxy: Proxy,
    pub metrics: Metrics,
    writer: StateWriter,
    pub state: StateReader,
    pods: mpsc::Sender<PodEvent>,
    pub drain: Drain,
    pub leaving: Drain,
    pub requests: Arc<http::Tally>,
    pub keys: Ring,
    /// What would go to a collector. Requests that bring no trace have none.
    pub told: Mutex<mpsc::Receiver<SpanData>>,
}

/// Whether all pods are on one node and one agent carries what is between them: these tests are there twice, as the
/// binaries `mesh` and `near`.
pub const IS_NEAR: bool = matches!(env!("CARGO_CRATE_NAME").as_bytes(), b"near");

/// Whether this test is about what lies between two nodes (the tunnel, certificates, who has which budget, who is near),
/// and there is one.
pub fn needs_two_nodes() -> bool {
    IS_NEAR
}

/// Two nodes that trust one CA, and the YAML that both read. In `near` they are the same node.
pub struct Mesh {
    pub nodes: [Arc<Node>; 2],
    world: tempfile::TempDir,
}

impl Mesh {
    /// Two agents with an empty world.
    pub fn start() -> Self {
        Self::start_with(OutboundMode::AllowAny)
    }

    pub fn start_with(mode: OutboundMode) -> Self {
        Self::start_within(mode, [ample(), ample()])
    }

    /// Two agents with these budgets for each of their pods.
    pub fn start_within(mode: OutboundMode, budgets: [Budgets; 2]) -> Self {
        Self::start_by(Arc::new(LocalCa::memory(TRUST_DOMAIN).unwrap()), mode, budgets)
    }

    /// On a CA of the test's own.
    pub fn start_on(ca: Arc<dyn CertificateAuthority>, mode: OutboundMode) -> Self {
        Self::start_by(ca, mode, [ample(), ample()])
    }

    fn start_by(ca: Arc<dyn CertificateAuthority>, mode: OutboundMode, [first, second]: [Budgets; 2]) -> Self {
        let one = Arc::new(Node::start("node1", ca.clone(), mode, first));
        let other = if IS_NEAR { one.clone() } else { Arc::new(Node::start("node2", ca, mode, second)) };
        let nodes = [one, other];
        Self { nodes, world: tempfile::tempdir().unwrap() }
    }

    /// Replaces one file of the world and publishes the whole to both nodes. Nothing in it may be refused.
    pub fn apply(&self, file: &str, yaml: &str) {
        let findings = self.apply_whatever(file, yaml);
        assert!(findings.is_empty(), "{findings:?}");
    }

    /// The same; something in it may be wrong.
    pub fn apply_whatever(&self, file: &str, yaml: &str) -> Vec<discovery::Finding> {
        std::fs::write(self.world.path().join(file), yaml).unwrap();
        let publish = |node: &Arc<Node>| {
            let config = discovery::Config { node: node.name.into(), trust_domain: TRUST_DOMAIN.into() };
            let (state, findings) = discovery::load(self.world.path(), &config).unwrap();
            node.writer.publish(state);
            findings
        };
        self.distinct().iter().flat_map(publish).collect()
    }

    fn distinct(&self) -> &[Arc<Node>] {
        if IS_NEAR { &self.nodes[..1] } else { &self.nodes }
    }

    /// Enrols the pod that holds `ip` on its node, once the world knows it.
    pub async fn enrol(&self, ip: Ipv4Addr) -> Pod {
        self.enrol_with(ip, |_| true).await
    }

    /// The same, without its listeners of one role.
    pub async fn enrol_without(&self, ip: Ipv4Addr, role: Role) -> Pod {
        self.enrol_with(ip, |listener| listener.role != role).await
    }

    async fn enrol_with(&self, ip: Ipv4Addr, is_there: impl Fn(&PodListener) -> bool) -> Pod {
        let state = self.nodes[0].state.current();
        let workload = state.workload_by_ip(ip.into()).expect("a pod of the world").clone();
        let node = self.nodes.iter().find(|node| *node.name == *workload.node).expect("a node of this mesh");
        let (net, mut listeners, outbound_port) = LoopbackNet::open(ip);
        listeners.retain(is_there);
        let pod = EnrolledPod { workload: workload.clone(), net: net.clone(), listeners };
        node.pods.send(PodEvent::Enrolled(pod)).await.unwrap();
        // `want` happens when the proxy takes the event.
        while node.identities.svid(&workload.identity).is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Pod { net, outbound_port, uid: workload.uid.clone(), ip }
    }

    /// Takes a pod out of the mesh.
    pub async fn unenrol(&self, pod: &Pod) {
        for node in self.distinct() {
            node.pods.send(PodEvent::Left(pod.uid.clone())).await.unwrap();
        }
    }
}

/// More than a test takes unless it means to.
pub fn ample() -> Budgets {
    Budgets {
        connections: 32_768,
        accept_rate: 100_000,
        accept_burst: 100_000,
        handshakes: 1024,
        buffered_bytes: 256 << 20,
        descriptors: u64::MAX,
    }
}

/// Servers with keys are on loopback here.
fn test_reach() -> Reach {
    let allowed = "127.0.0.0/8".parse().unwrap();
    Reach { ca: Some(ISSUERS_CA.path().to_path_buf()), allowed }
}

/// Where the root of the servers with keys is, once there is one.
pub static ISSUERS_CA: LazyLock<tempfile::NamedTempFile> = LazyLock::new(|| tempfile::NamedTempFile::new().unwrap());

impl Node {
    fn start(name: &'static str, ca: Arc<dyn CertificateAuthority>, mode: OutboundMode, budgets: Budgets) -> Self {
        let config = identity::Config { trust_domain: TRUST_DOMAIN.into(), lifetime: Duration::from_secs(3600) };
        let identities = Identities::new(ca, config);
        let [drain, leaving] = [(); 2].map(|()| Drain::new());
        tokio::spawn(identities.clone().run(drain.token()));
        let (writer, state) = StateWriter::new(name);
        let metrics = Metrics::new();
        let requests = Arc::<http::Tally>::default();
        let keys = Ring::default();
        tokio::spawn(keys.clone().run(state.clone(), test_reach(), drain.token()));
        let (spans, told, _) = Spans::new(Sampling::percent(0.0).unwrap());
        let shared = Shared {
            state: state.clone(),
            identities: identities.clone(),
            keys: keys.clone(),
            metrics: metrics.clone(),
            access_log: AccessLog::default(),
            spans,
            budgets,
            tunnels: Arc::default(),
            requests: requests.clone(),
            node_limits: http::NodeLimits::default(),
            mode,
            leaving: leaving.token(),
            drain: drain.token(),
            limits: hbone::Limits::default(),
        };
        let proxy = Proxy::start(shared, 2).unwrap();
        let (pods, enrolled) = mpsc::channel(8);
        tokio::spawn(proxy.clone().run(enrolled));
        Self {
            name,
            identities,
            proxy,
            metrics,
            writer,
            state,
            pods,
            drain,
            leaving,
            requests,
            keys,
            told: Mutex::new(told),
        }
    }

    /// Waits until the live connections of this node are as asked.
    pub async fn until_live(&self, what: &str, is_so: impl Fn(&[LiveConnection]) -> bool) {
        let waited = tokio::time::timeout(PATIENCE, async {
            while !is_so(&self.proxy.connections().await) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        waited.await.unwrap_or_else(|_| panic!("{}: {what} never came true", self.name));
    }
}

/// Waits until it is so.
pub async fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// An enrolled pod.
pub struct Pod {
    net: Arc<LoopbackNet>,
    outbound_port: NonZeroU16,
    pub uid: Arc<str>,
    pub ip: Ipv4Addr,
}

impl Pod {
    /// Connects as an application of the pod would. A refusal can be quick enough to show here already.
    pub async fn connect(&self, dialled: impl Into<SocketAddr>) -> io::Result<TcpStream> {
        let capture = self.net.file_dial(dialled.into());
        TcpStream::connect((capture, self.outbound_port.get())).await
    }

    /// Says `text` and reads until the other side closes; the error is the reset of a refusal.
    pub async fn ask(&self, dialled: impl Into<SocketAddr>, text: &str) -> io::Result<String> {
        let mut stream = self.connect(dialled).await?;
        let exchange = async {
            stream.write_all(text.as_bytes()).await?;
            stream.shutdown().await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok(answer)
        };
        tokio::time::timeout(PATIENCE, exchange).await.expect("an answer or a refusal in time")
    }

    /// Waits until nobody listens for the pod's connections any more.
    pub async fn until_refused(&self, dialled: SocketAddr) {
        let waited = tokio::time::timeout(PATIENCE, async {
            while self.connect(dialled).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        waited.await.expect("a listener that is closed");
    }

    /// The real clients that the pod's application was told of, by the address it saw.
    pub fn client_behind(&self, seen: SocketAddr) -> Option<SocketAddr> {
        self.net.clients.lock().unwrap().get(&seen.ip()).copied()
    }

    /// Waits until the agent has given every record back.
    pub async fn until_no_records(&self) {
        let waited = tokio::time::timeout(PATIENCE, async {
            while self.records() > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        waited.await.unwrap_or_else(|_| panic!("{} records were not given back", self.records()));
    }

    fn records(&self) -> usize {
        self.net.dials.lock().unwrap().len() + self.net.clients.lock().unwrap().len()
    }
}

/// What eBPF and a network namespace do for a real pod.
pub struct LoopbackNet {
    dials: Mutex<HashMap<u64, OrigDstAddr>>,
    clients: Mutex<HashMap<IpAddr, SocketAddr>>,
}

/// Keys of dials and addresses of agent sources; one sequence serves both.
static NEXT_KEY: AtomicU32 = AtomicU32::new(1);

fn in_range(second: u8) -> (u32, Ipv4Addr) {
    let key = NEXT_KEY.fetch_add(1, Ordering::Relaxed) & 0xffff;
    let [_, _, high, low] = key.to_be_bytes();
    (key, Ipv4Addr::new(127, second, high, low))
}

impl LoopbackNet {
    fn open(ip: Ipv4Addr) -> (Arc<Self>, Vec<PodListener>, NonZeroU16) {
        let net = Arc::new(Self { dials: Mutex::default(), clients: Mutex::default() });
        let outbound = listener((Ipv4Addr::UNSPECIFIED, 0));
        let port = NonZeroU16::new(outbound.local_addr().unwrap().port()).unwrap();
        let listeners = vec![
            PodListener { role: Role::Outbound, family: Family::V4, socket: outbound },
            PodListener { role: Role::Tunnel, family: Family::V4, socket: listener((ip, hbone::PORT)) },
        ];
        (net, listeners, port)
    }

    fn file_dial(&self, dialled: SocketAddr) -> Ipv4Addr {
        let (key, address) = in_range(128);
        self.dials.lock().unwrap().insert(key.into(), OrigDstAddr::new(dialled));
        address
    }
}

fn listener(address: impl Into<SocketAddr>) -> TcpListener {
    let listener = TcpListener::bind(address.into()).unwrap();
    listener.set_nonblocking(true).unwrap();
    listener
}

impl PodNet for LoopbackNet {
    fn lookup_dial(&self, local: SocketAddr) -> Result<(u64, OrigDstAddr), RecordError> {
        let IpAddr::V4(ip) = local.ip() else { return Err(RecordError::NoKey) };
        let [127, 128, high, low] = ip.octets() else { return Err(RecordError::NoKey) };
        let key = u64::from(u16::from_be_bytes([high, low]));
        let dialled = self.dials.lock().unwrap().get(&key).copied();
        dialled.map(|dialled| (key, dialled)).ok_or(RecordError::NoRecord)
    }

    fn forget_dial(&self, key: u64) {
        self.dials.lock().unwrap().remove(&key);
    }

    fn file_client(&self, client: ClientAddr, _family: Family) -> io::Result<IpAddr> {
        let (_, address) = in_range(64);
        self.clients.lock().unwrap().insert(address.into(), client.socket());
        Ok(address.into())
    }

    fn forget_client(&self, source: IpAddr) {
        self.clients.lock().unwrap().remove(&source);
    }

    fn stocked_socket(&self, _family: Family) -> Option<Socket> {
        None
    }

    fn make_socket(&self, _family: Family) -> Pin<Box<dyn Future<Output = io::Result<Socket>> + Send + '_>> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP));
        Box::pin(std::future::ready(socket))
    }
}

/// An application that answers each connection with what it read, prefixed by its name, once the client has finished.
pub fn answering_app(name: &'static str, address: impl Into<SocketAddr>) {
    let listener = tokio::net::TcpListener::from_std(listener(address)).unwrap();
    tokio::spawn(async move {
        loop {
            let Ok((mut stream, _)) = listener.accept().await else { return };
            tokio::spawn(async move {
                let mut text = Vec::new();
                if stream.read_to_end(&mut text).await.is_ok() {
                    let _ = stream.write_all(format!("{name}:{}", String::from_utf8_lossy(&text)).as_bytes()).await;
                }
            });
        }
    });
}

/// An application that sends back each byte as it comes, and reports who connected.
pub fn echo_app(address: impl Into<SocketAddr>) -> mpsc::UnboundedReceiver<SocketAddr> {
    let listener = tokio::net::TcpListener::from_std(listener(address)).unwrap();
    let (seen, clients) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, client)) = listener.accept().await {
            let _ = seen.send(client);
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
    clients
}

/// An application that sends without an end to whoever connects.
pub fn flooding_app(address: impl Into<SocketAddr>) {
    let listener = tokio::net::TcpListener::from_std(listener(address)).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move { while stream.write_all(&[7; 65_536]).await.is_ok() {} });
        }
    });
}

/// The YAML of an enrolled pod.
pub fn pod_yaml(name: &str, node: &str, ip: Ipv4Addr) -> String {
    let node = if IS_NEAR { "node1" } else { node };
    format!(
        "---
apiVersion: v1
kind: Pod
metadata:
  {{name: {name}, namespace: shop, uid: uid-{name}-{ip}, labels: {{app: {name}, nodemesh.dev/mesh: enabled}}}}
spec: {{nodeName: {node}, serviceAccountName: {name}, containers: [{{name: main, image: none}}]}}
status:
  phase: Running
  podIP: {ip}
  podIPs: [{{ip: {ip}}}]
  conditions: [{{type: Ready, status: 'True'}}]
"
    )
}

/// The YAML of a Service that selects the pods called `app`.
pub fn service_yaml(name: &str, app: &str, vip: &str, port: u16, target: u16) -> String {
    format!(
        "---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop}}
spec:
  clusterIP: {vip}
  clusterIPs: [{vip}]
  selector: {{app: {app}}}
  ports: [{{port: {port}, targetPort: {target}, protocol: TCP}}]
"
    )
}
