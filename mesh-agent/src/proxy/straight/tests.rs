use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use mesh_common::addr::Endpoint;
use mesh_common::record::{Gate, PodAddresses, PodConfig};
use mesh_common::same_node::{self, PathKey, Published};
use proptest::prelude::*;

use super::*;
use crate::policy::{
    Action, AuthorizationPolicy, Mode, Operation, PeerAuthentication, PolicyMeta, PolicySet, Principal, Rule, SameNode,
    Source, Target,
};
use crate::routing::{OutboundMode, Route};
use crate::spiffe::SpiffeId;
use crate::state::{
    Affinity, AppProtocol, Backend, Backends, Exclusions, PortSpec, ServiceSpec, TargetPort, Traffic, World,
};

pub fn pod(name: &str, ip: &str, node: &str, enrolled: bool) -> Workload {
    Workload {
        uid: name.into(),
        name: name.into(),
        namespace: "shop".into(),
        node: node.into(),
        identity: SpiffeId::new("cluster.local", "shop", name).unwrap(),
        ips: vec![ip.parse().unwrap()],
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

pub fn service(name: &str, ip: &str, backends: &[(&str, u16)], protocol: AppProtocol) -> ServiceSpec {
    let backend = |(ip, port): &(&str, u16)| Backend::ready(ip.parse().unwrap(), *port);
    ServiceSpec {
        namespace: "shop".into(),
        name: name.into(),
        cluster_ips: vec![ip.parse().unwrap()],
        ports: vec![PortSpec {
            name: "".into(),
            port: 80,
            target: TargetPort::Number(8080),
            node_port: None,
            protocol,
        }],
        backends: Backends::Listed(backends.iter().map(backend).collect()),
        ..ServiceSpec::default()
    }
}

fn meta(name: &str) -> PolicyMeta {
    PolicyMeta { id: format!("shop/{name}").into(), created: None }
}

pub fn policy(action: Action, account: &str, ports: &[u16], operations: Vec<Operation>) -> AuthorizationPolicy {
    let identity = SpiffeId::new("cluster.local", "shop", account).unwrap();
    let sources = vec![Source::Principal(Principal::Exact(identity))];
    let rule = Rule { sources, ports: ports.to_vec(), operations, ..Rule::default() };
    let targets = vec![Target::Namespace("shop".into())];
    AuthorizationPolicy { meta: meta("p"), targets, action, provider: None, rules: vec![rule] }
}

pub fn peer(mode: Option<Mode>, same_node: Option<SameNode>) -> PeerAuthentication {
    let targets = vec![Target::Namespace("shop".into())];
    PeerAuthentication { meta: meta("peer"), targets, mode, ports: BTreeMap::new(), same_node }
}

/// `client`, `near` and `other` on this node, `far` on another, `outside` not in the mesh.
pub fn world(peers: Vec<PeerAuthentication>, policies: Vec<AuthorizationPolicy>) -> World {
    let bytes = AppProtocol::Bytes;
    World {
        workloads: vec![
            pod("client", "10.0.0.1", "node", true),
            pod("near", "10.0.0.2", "node", true),
            pod("other", "10.0.0.3", "node", true),
            pod("far", "10.0.1.2", "far", true),
            pod("outside", "10.0.0.9", "node", false),
        ],
        services: vec![
            service("one", "10.96.0.1", &[("10.0.0.2", 8080)], bytes),
            service("two", "10.96.0.2", &[("10.0.0.2", 8080), ("10.0.0.3", 8080)], bytes),
            service("mixed", "10.96.0.3", &[("10.0.0.2", 8080), ("10.0.1.2", 8080)], bytes),
            service("http", "10.96.0.4", &[("10.0.0.2", 8081)], AppProtocol::Http1),
            service("plain", "10.96.0.5", &[("10.0.0.9", 8080)], bytes),
            service("own", "10.96.0.6", &[("10.0.0.1", 8080)], bytes),
            service("tunnel", "10.96.0.7", &[("10.0.0.2", 15008)], bytes),
            service("none", "10.96.0.8", &[], bytes),
            ServiceSpec {
                traffic: Traffic { affinity: Affinity::ClientIp, ..Traffic::default() },
                ..service("sticky", "10.96.0.9", &[("10.0.0.2", 8082)], bytes)
            },
        ],
        policies: PolicySet::new(peers, policies, vec![]),
        ..World::default()
    }
}

/// What `client` may reach by the kernel alone, as "dialled > endpoints".
fn of_client(state: &MeshState, is_held: &dyn Fn(&str) -> bool) -> Vec<String> {
    let paths = Memory::default().paths(state, is_held);
    let own = paths.iter().filter(|path| &*path.client == "client");
    let words = own.map(|path| {
        let endpoints: Vec<String> = path.endpoints.iter().map(|(address, uid)| format!("{uid} {address}")).collect();
        format!("{} > {}", path.dialled, endpoints.join(", "))
    });
    let mut words: Vec<String> = words.collect();
    words.sort();
    words
}

#[test]
fn whom_a_pod_may_reach_by_the_kernel_alone() {
    let by_address = ["10.0.0.2:8080 > near 10.0.0.2:8080", "10.0.0.3:8080 > other 10.0.0.3:8080"];
    let by_port = ["10.0.0.2:8081 > near 10.0.0.2:8081", "10.0.0.2:8082 > near 10.0.0.2:8082"];
    let services = ["10.96.0.1:80 > near 10.0.0.2:8080", "10.96.0.2:80 > near 10.0.0.2:8080, other 10.0.0.3:8080"];
    let all: Vec<&str> = vec![by_address[0], by_port[0], by_port[1], by_address[1], services[0], services[1]];
    let reading = || vec![Operation { methods: vec![], ..Operation::default() }];
    let allow = |account| policy(Action::Allow, account, &[], vec![]);
    let table: Vec<(&str, World, Vec<&str>)> = vec![
        ("no policy", world(vec![], vec![]), all.clone()),
        ("STRICT", world(vec![peer(Some(Mode::Strict), None)], vec![]), all.clone()),
        ("TLS on one node too", world(vec![peer(None, Some(SameNode::Encrypt))], vec![]), vec![]),
        ("plaintext is asked for", world(vec![peer(Some(Mode::Disable), None)], vec![]), vec![]),
        ("allowed", world(vec![], vec![allow("client")]), all),
        ("somebody else is allowed", world(vec![], vec![allow("somebody")]), vec![]),
        ("denied", world(vec![], vec![policy(Action::Deny, "client", &[], vec![])]), vec![]),
        ("denied on one port", world(vec![], vec![policy(Action::Deny, "client", &[8080], vec![])]), by_port.to_vec()),
        ("what requests say counts", world(vec![], vec![policy(Action::Allow, "client", &[], reading())]), vec![]),
        ("who would be refused is told", world(vec![], vec![policy(Action::Audit, "client", &[], vec![])]), vec![]),
    ];
    for (name, world, expected) in table {
        let state = MeshState::build(1, "node", &world);
        assert_eq!(of_client(&state, &|_| true), expected, "{name}");
    }
}

#[test]
fn only_between_pods_that_are_held() {
    let state = MeshState::build(1, "node", &world(vec![], vec![]));
    assert_eq!(of_client(&state, &|uid| uid != "client"), Vec::<String>::new());
    let without_other = of_client(&state, &|uid| uid != "other");
    assert!(without_other.iter().all(|path| !path.contains("other")), "{without_other:?}");
    assert_eq!(without_other.len(), 4, "{without_other:?}");
}

#[test]
fn policy_alone_ends_what_lives() {
    let server = "10.0.0.2:8080".parse().unwrap();
    let deny = policy(Action::Deny, "client", &[], vec![]);
    let mut gone = world(vec![], vec![]);
    gone.workloads.retain(|pod| &*pod.name != "near");
    let mut unserved = world(vec![], vec![]);
    unserved.services.clear();
    let mut taken = gone.clone();
    taken.workloads.push(Workload { ips: vec![server_ip()], ..pod("thief", "10.0.0.2", "node", true) });
    for (name, world, expected) in [
        ("as it was", world(vec![], vec![]), true),
        ("nothing new would come", unserved, true),
        ("denied", world(vec![], vec![deny]), false),
        ("TLS is asked for", world(vec![peer(None, Some(SameNode::Encrypt))], vec![]), false),
        ("the pod is gone", gone, false),
        ("its address is another's", taken, false),
    ] {
        let state = MeshState::build(1, "node", &world);
        let (from, to) = (pod("client", "10.0.0.1", "node", true), pod("near", "10.0.0.2", "node", true));
        assert_eq!(may_go_on(&state, &from, &to, server), expected, "{name}");
    }
}

fn server_ip() -> IpAddr {
    "10.0.0.2".parse().unwrap()
}

/// The kernel's maps, filled as capture would.
struct Maps(HashMap<PathKey, same_node::Path>);

const LINK: u32 = 1;

impl Published for Maps {
    fn path(&self, key: &PathKey) -> Option<same_node::Path> {
        self.0.get(key).copied()
    }

    fn lease(&self) -> u64 {
        u64::MAX
    }

    fn has_interface(&self, index: u32) -> bool {
        index == LINK
    }

    fn pod(&self, _: u64) -> Option<PodConfig> {
        let nowhere = mesh_common::addr::Ip::UNSPECIFIED;
        Some(PodConfig::new(PodAddresses::new(nowhere, nowhere), Gate::Open))
    }

    fn live(&self, _: u64) -> Option<i64> {
        Some(0)
    }

    fn room(&self, _: u64) -> Option<i64> {
        Some(1)
    }
}

fn maps(paths: &[StraightPath], cookies: &HashMap<&str, u64>) -> Maps {
    let mut maps = HashMap::new();
    for path in paths {
        let slots = path.endpoints.len() as u32;
        for (slot, (address, server)) in (0..).zip(&path.endpoints) {
            let key = PathKey::new(cookies[&*path.client], Endpoint::from(path.dialled), slot);
            maps.insert(key, same_node::Path::new(Endpoint::from(*address), cookies[&**server], LINK, slots));
        }
    }
    Maps(maps)
}

fn a_policy() -> impl Strategy<Value = AuthorizationPolicy> {
    let action = prop::sample::select(vec![Action::Allow, Action::Deny, Action::Audit]);
    let account = prop::sample::select(vec!["client", "near", "other", "far"]);
    let ports = prop::sample::select(vec![vec![], vec![8080], vec![8081, 8082]]);
    let reads = any::<bool>();
    (action, account, ports, reads).prop_map(|(action, account, ports, reads)| {
        let operations = if reads { vec![Operation::default()] } else { vec![] };
        policy(action, account, &ports, operations)
    })
}

fn a_world() -> impl Strategy<Value = World> {
    let mode = prop::sample::select(vec![None, Some(Mode::Strict), Some(Mode::Permissive), Some(Mode::Disable)]);
    let near = prop::sample::select(vec![None, Some(SameNode::Encrypt), Some(SameNode::KernelIdentity)]);
    let peers = prop::option::of((mode, near).prop_map(|(mode, near)| peer(mode, near)));
    (peers, prop::collection::vec(a_policy(), 0..3))
        .prop_map(|(peers, policies)| world(peers.into_iter().collect(), policies))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the kernel chooses, the agent could have chosen, by a way with no TLS, and policy lets it pass as bytes. And
    /// where the kernel chooses nothing, that is not so of all that the agent may choose.
    #[test]
    fn kernel_and_agent_answer_alike(world in a_world(), chance in any::<u32>()) {
        let state = MeshState::build(1, "node", &world);
        let cookies: HashMap<&str, u64> = [("client", 1), ("near", 2), ("other", 3)].into();
        let maps = maps(&Memory::default().paths(&state, &|uid| cookies.contains_key(uid)), &cookies);
        let dialled: BTreeSet<SocketAddr> = world.services.iter()
            .flat_map(|service| service.cluster_ips.iter().map(|ip| SocketAddr::new(*ip, 80)))
            .chain((8080..8083).map(|port| SocketAddr::new(server_ip(), port)))
            .collect();
        for (name, cookie) in &cookies {
            let client = state.local_workloads().find(|pod| &*pod.name == *name).unwrap();
            for dialled in &dialled {
                let chosen = same_node::choose(&maps, *cookie, Endpoint::from(*dialled), 1, chance).ok();
                let by_agent: BTreeSet<_> = (0..16).flat_map(|seed| by_agent(&state, client, *dialled, seed)).collect();
                match chosen {
                    Some(socket) => {
                        let server = SocketAddr::from(socket.endpoint());
                        prop_assert!(by_agent.contains(&(server, true)), "{name} {dialled}: {server}, {by_agent:?}");
                        prop_assert!(by_agent.iter().all(|(_, straight)| *straight), "{name} {dialled}: {by_agent:?}");
                    }
                    None => {
                        let sticky = dialled.ip() == "10.96.0.9".parse::<IpAddr>().unwrap();
                        let all = !by_agent.is_empty() && by_agent.iter().all(|(_, straight)| *straight);
                        prop_assert!(sticky || !all, "{name} {dialled}: {by_agent:?}");
                    }
                }
            }
        }
    }
}

/// What the agent does first with a connection, and whether that would be without TLS, allowed as bytes and told to nobody.
fn by_agent(state: &MeshState, client: &Workload, dialled: SocketAddr, seed: u64) -> Option<(SocketAddr, bool)> {
    let route = routing::resolve(state, client, OrigDstAddr::new(dialled), OutboundMode::AllowAny, seed);
    let Route::Upstreams { upstreams, .. } = route else { return None };
    let upstream = upstreams.first()?;
    let server = upstream.address.socket();
    let is_near = matches!(upstream.transport, Transport::SameNode(_)) && server.port() != crate::hbone::PORT;
    let facts = policy::Facts {
        source: Some(client.identity.clone()),
        is_same_node: true,
        source_ip: client.ips[0],
        destination_ip: server.ip(),
        destination_port: server.port(),
    };
    let policy = upstream.workload.as_ref().and_then(|pod| state.inbound_policy(&pod.uid));
    let passes = policy.is_some_and(|policy| {
        let admitted = policy::admit(policy, &facts);
        matches!(admitted, Ok(Admission::Bytes(_))) && policy::audited(policy, &facts).is_empty()
    });
    Some((server, is_near && passes))
}

#[test]
fn both_sides_are_told() {
    let connection = |was_open, cut| StraightConnection {
        from: pod("client", "10.0.0.1", "node", true).into(),
        to: pod("near", "10.0.0.2", "node", true).into(),
        client: "10.0.0.1:40000".parse().unwrap(),
        dialled: "10.96.0.1:80".parse().unwrap(),
        server: "10.0.0.2:8080".parse().unwrap(),
        sent: 5,
        received: 7,
        duration: std::time::Duration::from_millis(3),
        was_open,
        cut,
        rtt: std::time::Duration::from_micros(250),
        retransmits: 2,
    };
    let [outbound, inbound] = records(&connection(true, None));
    assert_eq!((outbound.direction, inbound.direction), (Direction::Outbound, Direction::Inbound));
    assert_eq!((outbound.dialled.is_some(), inbound.dialled), (true, None));
    for record in [&outbound, &inbound] {
        assert_eq!(record.transport.name(), "same-node-kernel");
        assert_eq!(
            (record.source_pod.as_deref(), record.destination_pod.as_deref()),
            (Some("shop/client"), Some("shop/near"))
        );
        assert_eq!((record.bytes_sent, record.bytes_received, &record.result), (5, 7, &ConnectionResult::Ok));
        let network = record.network.unwrap();
        assert_eq!((network.rtt.as_micros(), network.retransmits), (250, 2));
    }
    let [cut, _] = records(&connection(true, Some("policy-revoked")));
    assert_eq!((cut.result.name(), cut.result.reason()), ("cut", Some("policy-revoked")));
    let [failed, _] = records(&connection(false, None));
    assert_eq!((failed.result.name(), failed.result.reason()), ("failed", Some("connect-failed")));
}
