//! What becomes of a TCP lookup inside an enrolled pod, and of a TCP packet on its host-side interface: the pure
//! decisions of sk_lookup and of the guard.

use crate::addr::{Endpoint, Ip, TUNNEL_PORT};
use crate::exclude::{self, Exclusions};
use crate::outcome::Outcome;
use crate::record::{ListenerKey, ListenerRole, PodAddresses};

/// The decision of sk_lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steer {
    /// Decided.
    Done(Outcome),
    /// Pass if the agent filed this connection, else end with the outcome.
    FiledOr(Outcome),
    /// To the listener; where it is missing, drop.
    Listener(ListenerKey, Outcome),
    /// Pass if it is a probe on file, else to the plaintext listener; where that is missing, drop.
    ProbeOr(ListenerKey),
}

/// Decides a TCP lookup from `remote` to `local`. `over_lo`: whether the packet came in over lo, which is not so for a
/// local dial to the pod's own address.
#[inline(always)]
pub fn steer(local: Endpoint, remote: Ip, over_lo: bool, exclusions: &impl Exclusions) -> Steer {
    let ip = local.ip();
    if ip.is_capture() {
        if !over_lo {
            return Steer::Done(Outcome::LookupNotLo);
        }
        return Steer::Listener(ListenerKey::new(remote, ListenerRole::Outbound), Outcome::LookupOutbound);
    }
    if ip.is_agent_source() {
        return Steer::Done(Outcome::LookupLate);
    }
    if remote.is_agent_source() {
        return Steer::FiledOr(Outcome::LookupForged);
    }
    if remote.is_capture() {
        return Steer::Done(Outcome::LookupLate);
    }
    if remote.is_loopback() {
        return Steer::Done(Outcome::LookupLoopback);
    }
    // What came over the wire and was given a loopback destination inside the pod, by its NAT rules, is no loopback.
    if ip.is_loopback() {
        return Steer::Done(if over_lo { Outcome::LookupLoopback } else { Outcome::LookupNotLo });
    }
    if remote.equals(&ip) {
        return Steer::Done(Outcome::LookupOwnAddress);
    }
    if local.port() == TUNNEL_PORT {
        return Steer::Listener(ListenerKey::new(ip, ListenerRole::Tunnel), Outcome::LookupTunnel);
    }
    if exclude::inbound(&local, exclusions) {
        return Steer::Done(Outcome::LookupExcluded);
    }
    // On file or not: the agent files what it dials for its other pods too, and those dials meet this pod's policy.
    Steer::ProbeOr(ListenerKey::new(ip, ListenerRole::Plaintext))
}

/// The guard's decision on a SYN that leaves a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromPod {
    /// Decided without a map.
    Done(Outcome),
    /// Pass if the agent filed this connection, else [`unfiled_syn`].
    Filed,
}

/// Decides a SYN that leaves the pod `pod` for `destination`.
#[inline(always)]
pub fn syn_from_pod(pod: &PodAddresses, destination: &Ip) -> FromPod {
    if pod.contain(destination) {
        return FromPod::Done(Outcome::GuardToItself);
    }
    FromPod::Filed
}

/// Decides a SYN that the agent did not file: the pod's own, from its own address, to what it excludes, may go.
#[inline(always)]
pub fn unfiled_syn(pod: &PodAddresses, source: &Ip, destination: &Endpoint, exclusions: &impl Exclusions) -> Outcome {
    if pod.contain(source) && exclude::outbound(pod, destination, exclusions) {
        return Outcome::GuardSynExcluded;
    }
    Outcome::GuardSynUnfiled
}

/// Decides a TCP packet that is about to reach the pod `pod`.
#[inline(always)]
pub fn tcp_to_pod(pod: &PodAddresses, source: &Ip, destination: &Ip, syn: bool) -> Outcome {
    let forged = source.is_loopback() || source.is_capture() || source.is_agent_source() || pod.contain(source);
    let unreachable = destination.is_loopback() || destination.is_capture() || destination.is_agent_source();
    if forged || unreachable {
        return Outcome::GuardForged;
    }
    if !syn {
        return Outcome::GuardTcp;
    }
    if pod.contain(destination) { Outcome::GuardSynToPod } else { Outcome::GuardForwarded }
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;
    use crate::exclude::fake::{Fake, NOTHING};

    fn ip(text: &str) -> Ip {
        text.parse::<IpAddr>().expect("an address").into()
    }

    #[test]
    fn lookups() {
        let outbound =
            |pod| Steer::Listener(ListenerKey::new(ip(pod), ListenerRole::Outbound), Outcome::LookupOutbound);
        let tunnel = |pod| Steer::Listener(ListenerKey::new(ip(pod), ListenerRole::Tunnel), Outcome::LookupTunnel);
        let plaintext = |pod| Steer::ProbeOr(ListenerKey::new(ip(pod), ListenerRole::Plaintext));
        let lo = true;
        let table = [
            ("127.128.0.9", 0x8001, "10.0.0.2", lo, outbound("10.0.0.2")),
            ("127.128.0.9", 0x8001, "10.0.0.2", !lo, Steer::Done(Outcome::LookupNotLo)),
            ("fd6e:6f64:656d:6573::5", 80, "fd99::2", lo, outbound("fd99::2")),
            ("fd6e:6f64:656d:6573::5", 80, "fd99::2", !lo, Steer::Done(Outcome::LookupNotLo)),
            ("10.0.0.2", 80, "127.64.0.1", lo, Steer::FiledOr(Outcome::LookupForged)),
            ("fd99::2", 80, "fd6e:6f64:656d:6572::1", !lo, Steer::FiledOr(Outcome::LookupForged)),
            ("10.0.0.2", 40000, "127.128.0.9", lo, Steer::Done(Outcome::LookupLate)),
            ("127.64.0.1", 40000, "10.0.0.2", lo, Steer::Done(Outcome::LookupLate)),
            ("127.0.0.1", 80, "127.0.0.1", lo, Steer::Done(Outcome::LookupLoopback)),
            ("127.0.0.1", 80, "10.0.0.2", lo, Steer::Done(Outcome::LookupLoopback)),
            ("127.0.0.1", 80, "10.0.0.3", !lo, Steer::Done(Outcome::LookupNotLo)),
            ("::1", 80, "fd99::3", !lo, Steer::Done(Outcome::LookupNotLo)),
            ("10.0.0.2", 80, "10.0.0.2", !lo, Steer::Done(Outcome::LookupOwnAddress)),
            ("10.0.0.2", 15008, "10.0.0.3", !lo, tunnel("10.0.0.2")),
            ("10.0.0.2", 15006, "10.0.0.3", !lo, plaintext("10.0.0.2")),
            ("fd99::2", 80, "fd99::3", !lo, plaintext("fd99::2")),
        ];
        for (local, port, remote, over_lo, expected) in table {
            let local = Endpoint::new(ip(local), port);
            assert_eq!(steer(local, ip(remote), over_lo, &NOTHING), expected, "{remote} -> {local:?}");
        }
    }

    #[test]
    fn guard() {
        let pod = PodAddresses::new(ip("10.0.0.2"), ip("fd99::2"));
        assert_eq!(syn_from_pod(&pod, &ip("10.0.0.3")), FromPod::Filed);
        assert_eq!(syn_from_pod(&pod, &ip("fd99::2")), FromPod::Done(Outcome::GuardToItself));
        let table = [
            ("10.0.0.3", "10.0.0.2", true, Outcome::GuardSynToPod),
            ("10.0.0.3", "10.0.0.2", false, Outcome::GuardTcp),
            ("10.0.0.3", "10.9.9.9", true, Outcome::GuardForwarded),
            ("127.0.0.1", "10.0.0.2", true, Outcome::GuardForged),
            ("127.64.0.1", "10.0.0.2", false, Outcome::GuardForged),
            ("::1", "fd99::2", true, Outcome::GuardForged),
            ("fd99::2", "fd99::2", true, Outcome::GuardForged),
            ("fd6e:6f64:656d:6572::1", "fd99::2", true, Outcome::GuardForged),
            ("fd99::3", "fd6e:6f64:656d:6573::1", true, Outcome::GuardForged),
        ];
        for (source, destination, syn, expected) in table {
            assert_eq!(tcp_to_pod(&pod, &ip(source), &ip(destination), syn), expected, "{source} -> {destination}");
        }
    }

    #[test]
    fn excluded_ports_arrive() {
        let exclusions = Fake::inbound(&[("10.0.0.2", 9100), ("fd99::2", 9100), ("10.0.0.2", 15008)]);
        let plaintext = |pod| Steer::ProbeOr(ListenerKey::new(ip(pod), ListenerRole::Plaintext));
        let tunnel = Steer::Listener(ListenerKey::new(ip("10.0.0.2"), ListenerRole::Tunnel), Outcome::LookupTunnel);
        let table = [
            ("10.0.0.2", 9100, "10.0.0.3", Steer::Done(Outcome::LookupExcluded)),
            ("fd99::2", 9100, "fd99::3", Steer::Done(Outcome::LookupExcluded)),
            ("10.0.0.2", 9101, "10.0.0.3", plaintext("10.0.0.2")),
            // Another pod's.
            ("10.0.0.4", 9100, "10.0.0.3", plaintext("10.0.0.4")),
            ("10.0.0.2", 15008, "10.0.0.3", tunnel),
            ("10.0.0.2", 9100, "127.64.0.1", Steer::FiledOr(Outcome::LookupForged)),
            ("10.0.0.2", 9100, "127.128.0.1", Steer::Done(Outcome::LookupLate)),
        ];
        for (local, port, remote, expected) in table {
            let seen = steer(Endpoint::new(ip(local), port), ip(remote), false, &exclusions);
            assert_eq!(seen, expected, "{remote} -> {local}:{port}");
        }
    }

    #[test]
    fn syns_of_the_pods_own() {
        let pod = PodAddresses::new(ip("10.0.0.2"), ip("fd99::2"));
        let exclusions = Fake::new(
            &[("10.0.0.2", 3306), ("fd99::2", 3306)],
            &[("10.0.0.2", "0.0.0.0", 0), ("fd99::2", "fd77::", 16)],
        );
        let (excluded, unfiled) = (Outcome::GuardSynExcluded, Outcome::GuardSynUnfiled);
        let table = [
            ("10.0.0.2", "10.9.9.9", 80, excluded),
            ("fd99::2", "fd55::1", 3306, excluded),
            ("fd99::2", "fd77::1", 80, excluded),
            ("fd99::2", "fd55::1", 80, unfiled),
            ("10.0.0.3", "10.9.9.9", 3306, unfiled),
            ("fd99::3", "fd77::1", 80, unfiled),
            ("10.0.0.2", "10.9.9.9", 15008, unfiled),
            ("10.0.0.2", "127.128.0.1", 3306, unfiled),
            ("fd99::2", "fe80::1", 3306, unfiled),
            ("fd99::2", "fd6e:6f64:656d:6573::1", 3306, unfiled),
        ];
        for (source, destination, port, expected) in table {
            let destination = Endpoint::new(ip(destination), port);
            assert_eq!(unfiled_syn(&pod, &ip(source), &destination, &exclusions), expected, "{source} {destination:?}");
        }
    }
}
