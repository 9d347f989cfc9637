//! Names that both sides spell: maps, programs, pins.

/// The layout of every map and the meaning of every outcome. Another layout is another number: pins of two versions
/// stand side by side during an upgrade.
pub const ABI_VERSION: &str = "v1";

/// Map names, as `bpftool map` shows them.
pub mod maps {
    /// netns cookie → PodConfig
    pub const PODS: &str = "PODS";
    /// DialKey → DialRecord
    pub const DIALS: &str = "DIALS";
    /// counter → how many records there are in DIALS, of all and by pod (`share`)
    pub const DIAL_COUNTS: &str = "DIAL_COUNTS";
    /// socket storage: DialStorage
    pub const DIALLED: &str = "DIALLED";
    /// SourceKey → ClientRecord
    pub const CLIENTS: &str = "CLIENTS";
    /// FourTuple → Filed
    pub const FILED: &str = "FILED";
    /// ListenerKey → the agent's listening socket
    pub const LISTENERS: &str = "LISTENERS";
    /// Endpoint → nothing: cluster IP and port of a Service port without endpoint
    pub const NO_ENDPOINT: &str = "NO_ENDPOINT";
    /// host-side interface index → PodAddresses
    pub const GUARDED: &str = "GUARDED";
    /// PortKey → nothing: ports that pods keep out of the mesh
    pub const EXCLUDED_PORTS: &str = "EXCLUDED_PORTS";
    /// NetworkKey → nothing, by longest prefix: destinations that pods keep out of the mesh
    pub const EXCLUDED_NETS: &str = "EXCLUDED_NETS";
    /// FourTuple → ProbeRecord
    pub const PROBES: &str = "PROBES";
    /// Endpoint → nothing: ports that pods declare in their probes
    pub const PROBE_PORTS: &str = "PROBE_PORTS";
    /// cgroup id → nothing: the cgroup that kubelet is in
    pub const KUBELETS: &str = "KUBELETS";
    /// cgroup id → nothing: the agents' own cgroups
    pub const AGENTS: &str = "AGENTS";
    /// Outcome → count, per CPU
    pub const OUTCOMES: &str = "OUTCOMES";
    /// ring buffer of Event
    pub const EVENTS: &str = "EVENTS";
    /// PathKey → Path: whom pods may reach by the kernel alone
    pub const PATHS: &str = "PATHS";
    /// FourTuple → StraightRecord: connections from pod to pod
    pub const STRAIGHT: &str = "STRAIGHT";
    /// socket storage: StraightSocket
    pub const STRAIGHT_SOCKETS: &str = "STRAIGHT_SOCKETS";
    /// netns cookie, or 0 for all → how many of these there are, as the kernel counts
    pub const STRAIGHT_LIVE: &str = "STRAIGHT_LIVE";
    /// netns cookie, or 0 for all → with how many no more come, as the agent says
    pub const STRAIGHT_ROOM: &str = "STRAIGHT_ROOM";
    /// 0 → until when paths hold, CLOCK_MONOTONIC
    pub const LEASE: &str = "LEASE";
    /// host-side interface index → the interface, as long as the kernel has it
    pub const LINKED: &str = "LINKED";
    /// generation → pid, start time, standing: the agents of this node, which alone use it
    pub const INSTANCES: &str = "INSTANCES";

    /// Every map of the kernel programs, all of which are pinned.
    pub const ALL: [&str; 24] = [
        PODS,
        DIALS,
        DIAL_COUNTS,
        DIALLED,
        CLIENTS,
        FILED,
        LISTENERS,
        NO_ENDPOINT,
        GUARDED,
        EXCLUDED_PORTS,
        EXCLUDED_NETS,
        PROBES,
        PROBE_PORTS,
        KUBELETS,
        AGENTS,
        OUTCOMES,
        EVENTS,
        PATHS,
        STRAIGHT,
        STRAIGHT_SOCKETS,
        STRAIGHT_LIVE,
        STRAIGHT_ROOM,
        LEASE,
        LINKED,
    ];
    /// The maps whose size follows the number of connections that a node may hold.
    pub const PER_CONNECTION: [&str; 3] = [DIALS, CLIENTS, FILED];
}

/// Program names, as `bpftool prog` shows them (15 characters at most).
pub mod programs {
    /// cgroup/connect4
    pub const CONNECT4: &str = "nm_connect4";
    /// cgroup/connect6
    pub const CONNECT6: &str = "nm_connect6";
    /// cgroup/getpeername4
    pub const GETPEERNAME4: &str = "nm_getpeername4";
    /// cgroup/getpeername6
    pub const GETPEERNAME6: &str = "nm_getpeername6";
    /// cgroup/sock_release
    pub const SOCK_RELEASE: &str = "nm_sock_release";
    /// sockops, on the agent's cgroup
    pub const SOCK_OPS: &str = "nm_sock_ops";
    /// sockops, on kubelet's cgroup
    pub const PROBE_OPS: &str = "nm_probe_ops";
    /// sockops, on the pods' parent cgroup
    pub const POD_OPS: &str = "nm_pod_ops";
    /// sk_lookup, in each enrolled pod's netns
    pub const SK_LOOKUP: &str = "nm_sk_lookup";
    /// tc, host-side interface, ingress: what leaves the pod
    pub const GUARD_FROM_POD: &str = "nm_guard_from";
    /// tc, host-side interface, egress: what reaches the pod
    pub const GUARD_TO_POD: &str = "nm_guard_to";

    /// Every program of the object.
    pub const ALL: [&str; 11] = [
        CONNECT4,
        CONNECT6,
        GETPEERNAME4,
        GETPEERNAME6,
        SOCK_RELEASE,
        SOCK_OPS,
        PROBE_OPS,
        POD_OPS,
        SK_LOOKUP,
        GUARD_FROM_POD,
        GUARD_TO_POD,
    ];
}

/// Load-time constants of the object: what this kernel offers. The verifier drops the branches that are off.
pub mod globals {
    /// u8: bpf_set_retval, from kernel 5.18.
    pub const SET_RETVAL: &str = "HAS_SET_RETVAL";
    /// u8: ingress_ifindex in sk_lookup, from kernel 5.17.
    pub const INGRESS_IFINDEX: &str = "HAS_INGRESS_IFINDEX";
    /// u8: bpf_get_current_cgroup_id in sockops, from kernel 6.16.
    pub const CURRENT_CGROUP: &str = "HAS_CURRENT_CGROUP";
    /// u32: how many records DIALS holds.
    pub const DIAL_ENTRIES: &str = "DIAL_ENTRIES";
    /// u8: the level of the programs' own log; 0 is off. The name is aya-log's.
    pub const LOG_LEVEL: &str = "AYA_LOG_LEVEL";
}

/// Below the pin directory of an ABI version.
pub mod pins {
    /// One directory per enrolled pod, by uid.
    pub const PODS: &str = "pods";
    /// One directory per map name.
    pub const MAPS: &str = "maps";
    /// One link per cgroup program.
    pub const LINKS: &str = "links";
}
