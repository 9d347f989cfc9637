//! Every map: what it holds, who writes it, how large, what happens when it is full. None of them evicts: a decision
//! or a live socket depends on each entry. Sizes here are defaults; the agent sets those of the per-connection maps.

use aya_ebpf::Global;
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{Array, DevMapHash, HashMap, LpmTrie, PerCpuArray, RingBuf, SockHash};
use mesh_common::addr::{Endpoint, FourTuple};
use mesh_common::exclude::{Place, PortKey};
use mesh_common::outcome::Outcome;
use mesh_common::record::{
    ClientRecord, DialRecord, DialStorage, Filed, ListenerKey, PodAddresses, PodConfig, ProbeRecord, SourceKey,
};
use mesh_common::same_node::{MAX_STRAIGHT, Path, PathKey, StraightRecord, StraightSocket};
use mesh_common::share::{COUNTERS, PLACES};

/// BPF_F_NO_PREALLOC: memory follows the connections that there are, and an element that is read while it is removed
/// stays whole.
const ON_DEMAND: u32 = 1;
/// BPF_F_MMAPABLE: agents add to the very numbers. Kernel 5.5.
const SHARED_WITH_AGENTS: u32 = 1 << 10;
const CONNECTIONS: u32 = 262_144;

/// Enrolled pods by netns cookie. The agent writes. Full: the pod is not enrolled.
#[map]
pub static PODS: HashMap<u64, PodConfig> = HashMap::with_max_entries(PLACES as u32, ON_DEMAND);

/// What applications dialled, by DialKey. connect writes; the agent, sock_release and the sweep remove. A pod leaves as much
/// as it has. Full: connect is refused.
#[map]
pub static DIALS: HashMap<u64, DialRecord> = HashMap::with_max_entries(CONNECTIONS, ON_DEMAND);

/// How many of these records there are, of all and by pod (`mesh_common::share`). Whoever files or removes one counts.
#[map]
pub static DIAL_COUNTS: Array<i64> = Array::with_max_entries(COUNTERS, SHARED_WITH_AGENTS);

/// What a socket dialled last. Lives and dies with the socket.
#[btf_map]
pub static DIALLED: SkStorage<DialStorage> = SkStorage::new();

/// The real client behind each of the agent's source addresses. The agent writes and removes; sock_release removes.
/// Full: the connection is refused by the agent.
#[map]
pub static CLIENTS: HashMap<SourceKey, ClientRecord> = HashMap::with_max_entries(CONNECTIONS, ON_DEMAND);

/// Connections that the agent itself opens. sock_ops writes and removes. Full: the guard drops the SYN.
#[map]
pub static FILED: HashMap<FourTuple, Filed> = HashMap::with_max_entries(CONNECTIONS, ON_DEMAND);

/// The agent's listeners. The agent writes; a socket that closes leaves by itself.
#[map]
pub static LISTENERS: SockHash<ListenerKey> = SockHash::with_max_entries(16_384, 0);

/// Service ports without endpoint. The agent writes. Full: the agent refuses those connections later.
#[map]
pub static NO_ENDPOINT: HashMap<Endpoint, u8> = HashMap::with_max_entries(65_536, ON_DEMAND);

/// The pod behind each guarded interface, by interface index. The agent writes. Missing: TCP is dropped.
#[map]
pub static GUARDED: HashMap<u32, PodAddresses> = HashMap::with_max_entries(8_192, ON_DEMAND);

/// Ports that pods keep out of the mesh. The agent writes. Full: what is beyond is not excluded.
#[map]
pub static EXCLUDED_PORTS: HashMap<PortKey, u8> = HashMap::with_max_entries(65_536, ON_DEMAND);

/// Networks that pods keep out of the mesh. The agent writes. Full: what is beyond is not excluded.
#[map]
pub static EXCLUDED_NETS: LpmTrie<Place, u8> = LpmTrie::with_max_entries(16_384, ON_DEMAND);

/// Probes that kubelet has open, by four-tuple. probe_ops writes and removes; the sweep removes. Full: the probe meets
/// policy.
#[map]
pub static PROBES: HashMap<FourTuple, ProbeRecord> = HashMap::with_max_entries(8_192, ON_DEMAND);

/// Ports that pods declare in probes and lifecycle hooks, by the pod's address. The agent writes. Full: probes of what is
/// beyond meet policy.
#[map]
pub static PROBE_PORTS: HashMap<Endpoint, u8> = HashMap::with_max_entries(16_384, ON_DEMAND);

/// Kubelet's cgroup, by id: two while it moves. The agent writes.
#[map]
pub static KUBELETS: HashMap<u64, u8> = HashMap::with_max_entries(16, ON_DEMAND);

/// The agents' cgroups, by id: two during a handover. The agent writes.
#[map]
pub static AGENTS: HashMap<u64, u8> = HashMap::with_max_entries(64, ON_DEMAND);

/// Whom pods may reach by the kernel alone. The agent writes. Full: what is beyond is carried by the agent.
#[map]
pub static PATHS: HashMap<PathKey, Path> = HashMap::with_max_entries(65_536, ON_DEMAND);

/// Connections from pod to pod. pod_ops writes and removes; the agent removes. connect leaves them to the agent before it is
/// full. Full: the guard drops the SYN.
#[map]
pub static STRAIGHT: HashMap<FourTuple, StraightRecord> = HashMap::with_max_entries(MAX_STRAIGHT, ON_DEMAND);

/// The path that a socket's last connect() took. Lives and dies with the socket.
#[btf_map]
pub static STRAIGHT_SOCKETS: SkStorage<StraightSocket> = SkStorage::new();

/// How many of them a pod has a part in, by netns cookie; all of them at 0. The agent makes and removes; pod_ops counts.
/// Missing: none goes straight.
#[map]
pub static STRAIGHT_LIVE: HashMap<u64, i64> = HashMap::with_max_entries(8_192, ON_DEMAND);

/// With how many of them no more come. The agent writes. Missing: none goes straight.
#[map]
pub static STRAIGHT_ROOM: HashMap<u64, i64> = HashMap::with_max_entries(8_192, ON_DEMAND);

/// Until when paths hold. The agent writes, again and again. Missing: no path holds.
#[map]
pub static LEASE: HashMap<u32, u64> = HashMap::with_max_entries(1, ON_DEMAND);

/// The host's ends of the links of pods that others reach straight, by interface index. The agent writes; the kernel takes
/// out what it unregisters, before anybody else can have the pod's address. Missing: no path holds.
#[map]
pub static LINKED: DevMapHash = DevMapHash::with_max_entries(8_192, 0);

/// How often each outcome was met, per CPU.
#[map]
pub static OUTCOMES: PerCpuArray<u64> = PerCpuArray::with_max_entries(Outcome::LIMIT, 0);

/// Refusals and drops, for the log. Full: counted as event_lost; nothing is decided by it.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);

/// How many records DIALS holds.
#[unsafe(no_mangle)]
pub static DIAL_ENTRIES: Global<u32> = Global::new(CONNECTIONS);

/// Whether this kernel has bpf_set_retval (5.18). Without it a refused connect() fails with EPERM.
#[unsafe(no_mangle)]
pub static HAS_SET_RETVAL: Global<u8> = Global::new(1);

/// Whether sk_lookup has ingress_ifindex (5.17). Without it the guard alone keeps forged capture addresses out.
#[unsafe(no_mangle)]
pub static HAS_INGRESS_IFINDEX: Global<u8> = Global::new(1);

/// Whether sockops has bpf_get_current_cgroup_id (6.16). Without it whatever is below kubelet's cgroup counts as kubelet:
/// the agent attaches to none that has pods below it.
#[unsafe(no_mangle)]
pub static HAS_CURRENT_CGROUP: Global<u8> = Global::new(1);
