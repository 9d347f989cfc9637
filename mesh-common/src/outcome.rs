//! How every path in every program ends. Numbers are the index of the counters and are never reused; an outcome that
//! is retired keeps its number here as a comment.

/// What becomes of the connection, lookup or packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on.
    Pass,
    /// It ends here: connect() fails, the lookup or the packet is dropped.
    Refuse,
}

macro_rules! outcomes {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal, $text:literal, $verdict:ident;)+) => {
        /// A numbered reason. Shared by the programs' counters, the events and the metrics.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Outcome { $($(#[doc = $doc])+ $name = $number,)+ }

        impl Outcome {
            /// Every outcome, in the order of the data path.
            pub const ALL: &'static [Outcome] = &[$(Outcome::$name,)+];

            /// The name in metrics and events. Stable.
            pub const fn name(self) -> &'static str {
                match self { $(Outcome::$name => $text,)+ }
            }

            /// What becomes of the connection, lookup or packet.
            #[inline(always)]
            pub const fn verdict(self) -> Verdict {
                match self { $(Outcome::$name => Verdict::$verdict,)+ }
            }
        }
    };
}

outcomes! {
    // connect4, connect6
    /// An IPv4 connect() was led to the agent.
    ConnectCapturedV4 = 0, "connect_captured_v4", Pass;
    /// An IPv6 connect() was led to the agent.
    ConnectCapturedV6 = 1, "connect_captured_v6", Pass;
    /// An IPv6 socket's connect() to a v4-mapped address was led to the agent.
    ConnectCapturedMapped = 2, "connect_captured_mapped", Pass;
    /// Not a TCP socket.
    ConnectNotTcp = 3, "connect_not_tcp", Pass;
    /// The socket's network namespace is not that of an enrolled pod.
    ConnectNotEnrolled = 4, "connect_not_enrolled", Pass;
    /// Loopback inside the pod.
    ConnectLoopback = 5, "connect_loopback", Pass;
    /// The pod's own address.
    ConnectOwnAddress = 6, "connect_own_address", Pass;
    /// The agent's own dial from inside a pod's namespace.
    ConnectAgent = 7, "connect_agent", Pass;
    /// An application dialled the capture or source range itself.
    ConnectRange = 8, "connect_range", Refuse;
    /// IPv6 link-local: capture cannot carry its scope.
    ConnectLinkLocal = 9, "connect_link_local", Refuse;
    /// The pod's enrolment is not complete.
    ConnectNotReady = 10, "connect_not_ready", Refuse;
    /// The Service port has no endpoint.
    ConnectNoEndpoint = 11, "connect_no_endpoint", Refuse;
    /// The record could not be stored: the map is full, or memory is out.
    ConnectMapFull = 12, "connect_map_full", Refuse;
    /// Eight generations in a row were taken by live records.
    ConnectKeyClash = 13, "connect_key_clash", Refuse;
    /// The kernel gave no socket to remember the dial with.
    ConnectNoSocket = 14, "connect_no_socket", Refuse;
    /// The socket is bound to a device and could not be unbound: it would miss the capture range.
    ConnectDeviceBound = 15, "connect_device_bound", Refuse;
    /// The pod has as many dials on record as are left for all pods of the node: what is left is for others.
    ConnectPodFull = 74, "connect_pod_full", Refuse;
    // getpeername4, getpeername6
    /// A client saw what it dialled, from its socket's storage.
    PeerDialled = 16, "peer_dialled", Pass;
    /// A client saw what it dialled, from the record.
    PeerRecord = 17, "peer_record", Pass;
    /// A server saw the real client.
    PeerClient = 18, "peer_client", Pass;
    /// No address of ours.
    PeerOther = 19, "peer_other", Pass;
    /// An address of ours with no record: it is shown as it is.
    PeerMissing = 20, "peer_missing", Pass;
    // sock_release
    /// A client socket died before it was established or after the agent's end; its record went with it.
    ReleaseDial = 21, "release_dial", Pass;
    /// An application's socket went; its real-client record went with it.
    ReleaseClient = 22, "release_client", Pass;
    /// A socket with no record.
    ReleaseOther = 23, "release_other", Pass;
    // sock_ops
    /// The agent dials: its connection is filed before the SYN leaves.
    DialFiled = 24, "dial_filed", Pass;
    /// The agent's dial could not be filed: the guard will drop its SYN.
    DialNotFiled = 25, "dial_not_filed", Pass;
    /// A filed connection closed.
    DialClosed = 26, "dial_closed", Pass;
    /// Another callback.
    DialOther = 27, "dial_other", Pass;
    // sk_lookup
    /// To the pod's outbound listener.
    LookupOutbound = 28, "lookup_outbound", Pass;
    /// To the pod's tunnel listener.
    LookupTunnel = 29, "lookup_tunnel", Pass;
    /// To the pod's plaintext listener.
    LookupPlaintext = 30, "lookup_plaintext", Pass;
    /// Not TCP.
    LookupNotTcp = 31, "lookup_not_tcp", Pass;
    /// Loopback inside the pod.
    LookupLoopback = 32, "lookup_loopback", Pass;
    /// The pod to itself.
    LookupOwnAddress = 33, "lookup_own_address", Pass;
    /// The agent's own dial to the application.
    LookupFiled = 34, "lookup_filed", Pass;
    /// The capture range or loopback, but not over lo: forged, or redirected there by rules inside the pod.
    LookupNotLo = 35, "lookup_not_lo", Refuse;
    /// From the agent's source range, but the agent did not dial it.
    LookupForged = 36, "lookup_forged", Refuse;
    /// From the capture range: the last segments of sockets that are gone.
    LookupLate = 37, "lookup_late", Refuse;
    /// The agent has no listener here: it is down, or the address is not the pod's.
    LookupNoListener = 38, "lookup_no_listener", Refuse;
    /// The kernel refused the listener.
    LookupAssign = 39, "lookup_assign", Refuse;
    // guard
    /// Not TCP and not UDP: ARP, neighbour discovery, ICMP.
    GuardOther = 40, "guard_other", Pass;
    /// UDP: passes, not covered.
    GuardUdp = 41, "guard_udp", Pass;
    /// TCP, but not the start of a connection.
    GuardTcp = 42, "guard_tcp", Pass;
    /// A SYN that the agent sends from the pod.
    GuardSynFiled = 43, "guard_syn_filed", Pass;
    /// A SYN to the pod.
    GuardSynToPod = 44, "guard_syn_to_pod", Pass;
    /// A SYN from the pod that the agent did not send.
    GuardSynUnfiled = 45, "guard_syn_unfiled", Refuse;
    /// A TCP fragment, or one that hides what it is.
    GuardFragment = 46, "guard_fragment", Refuse;
    /// Shorter than its headers say, or nested tags.
    GuardMalformed = 47, "guard_malformed", Refuse;
    /// From the pod to itself, on the wire.
    GuardToItself = 48, "guard_to_itself", Refuse;
    /// To the pod, from loopback, from the ranges, or from the pod's own address.
    GuardForged = 49, "guard_forged", Refuse;
    /// A SYN to the pod for another address, which the pod would forward past the lookup.
    GuardForwarded = 50, "guard_forwarded", Refuse;
    /// TCP on an interface that no pod is filed for.
    GuardUnknownPod = 51, "guard_unknown_pod", Refuse;
    // what pods keep out of the mesh, by annotation
    /// A connect() to a port or network that the pod excludes: it goes out as the application dialled it.
    ConnectExcluded = 53, "connect_excluded", Pass;
    /// To a port that the pod excludes: to the application itself.
    LookupExcluded = 54, "lookup_excluded", Pass;
    /// A SYN of the pod's own, to a port or network that it excludes.
    GuardSynExcluded = 55, "guard_syn_excluded", Pass;
    // kubelet's probes
    /// Kubelet dials a port that a pod declares in its probes: filed before the SYN leaves.
    ProbeFiled = 56, "probe_filed", Pass;
    /// Such a dial could not be filed: it meets policy as any other.
    ProbeNotFiled = 57, "probe_not_filed", Pass;
    /// A filed probe closed.
    ProbeClosed = 58, "probe_closed", Pass;
    /// Kubelet's cgroup, but no declared port; or another callback.
    ProbeOther = 59, "probe_other", Pass;
    /// Below kubelet's cgroup, but not in it: what it dials meets policy.
    ProbeStranger = 60, "probe_stranger", Pass;
    /// To the application itself: kubelet's probe.
    LookupProbe = 61, "lookup_probe", Pass;
    // from pod to pod of one node, by the kernel alone
    /// An IPv4 connect() went straight to a pod of the node.
    ConnectStraightV4 = 62, "connect_straight_v4", Pass;
    /// An IPv6 connect() went straight to a pod of the node.
    ConnectStraightV6 = 63, "connect_straight_v6", Pass;
    /// An IPv6 socket's connect() to a v4-mapped address went straight to a pod of the node.
    ConnectStraightMapped = 64, "connect_straight_mapped", Pass;
    /// A client that went straight saw what it dialled.
    PeerStraight = 65, "peer_straight", Pass;
    /// Such a connection was filed before its SYN leaves.
    StraightFiled = 66, "straight_filed", Pass;
    /// Its path ended between connect() and the SYN, or it comes from an address that is not the pod's: the guard drops it.
    StraightRefused = 67, "straight_refused", Pass;
    /// It could not be filed: the guard drops its SYN.
    StraightNotFiled = 68, "straight_not_filed", Pass;
    /// It closed.
    StraightClosed = 69, "straight_closed", Pass;
    /// A socket that goes another way; or another callback.
    StraightOther = 70, "straight_other", Pass;
    /// To the application itself: from a pod of the node that may.
    LookupStraight = 71, "lookup_straight", Pass;
    /// A SYN of the pod's own to a pod of the node.
    GuardSynStraight = 72, "guard_syn_straight", Pass;
    /// It might have gone straight, but a pod or the node has as many as may be: the agent carries it. Counted beside the
    /// outcome that connect() had.
    StraightNoRoom = 73, "straight_no_room", Pass;
    // all
    /// The ring buffer was full; counted beside the outcome that it was to report.
    EventLost = 52, "event_lost", Pass;
}

impl Outcome {
    /// One past the highest number: the size of the counters.
    pub const LIMIT: u32 = 128;

    /// The outcome with this number, if it is one that this build knows.
    pub fn from_number(number: u32) -> Option<Outcome> {
        Self::ALL.iter().copied().find(|outcome| *outcome as u32 == number)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn numbers_and_names_are_unique_and_within_the_limit() {
        let numbers: HashSet<u32> = Outcome::ALL.iter().map(|o| *o as u32).collect();
        let names: HashSet<&str> = Outcome::ALL.iter().map(|o| o.name()).collect();
        assert_eq!((numbers.len(), names.len()), (Outcome::ALL.len(), Outcome::ALL.len()));
        assert!(numbers.iter().all(|n| *n < Outcome::LIMIT));
        for outcome in Outcome::ALL {
            assert_eq!(Outcome::from_number(*outcome as u32), Some(*outcome));
        }
        assert_eq!(Outcome::from_number(Outcome::LIMIT - 1), None);
    }
}
