//! What becomes of a connect(): the pure decision, run by the connect hooks.

use crate::addr::Ip;
use crate::outcome::Outcome;
use crate::record::{Gate, PodConfig};

/// The decision for one connect() of an enrolled pod's TCP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Decided; the outcome says whether it goes on or is refused.
    Done(Outcome),
    /// Lead it to the agent, unless the destination is published as a Service port without endpoint.
    Capture,
}

/// Decides by destination. Bypass happens only here, by rule, and is counted.
#[inline(always)]
pub fn decide(destination: &Ip, pod: &PodConfig) -> Decision {
    if destination.is_capture() || destination.is_agent_source() {
        return Decision::Done(Outcome::ConnectRange);
    }
    if destination.is_loopback() || destination.is_unspecified() {
        return Decision::Done(Outcome::ConnectLoopback);
    }
    if pod.addresses().contain(destination) {
        return Decision::Done(Outcome::ConnectOwnAddress);
    }
    if destination.is_v6_link_local() {
        return Decision::Done(Outcome::ConnectLinkLocal);
    }
    match pod.gate() {
        Gate::Closed => Decision::Done(Outcome::ConnectNotReady),
        Gate::Open => Decision::Capture,
    }
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;
    use crate::outcome::Verdict;
    use crate::record::PodAddresses;

    fn ip(text: &str) -> Ip {
        text.parse::<IpAddr>().expect("an address").into()
    }

    fn pod(gate: Gate) -> PodConfig {
        PodConfig::new(PodAddresses::new(ip("10.0.0.2"), ip("fd99::2")), gate)
    }

    #[test]
    fn by_destination() {
        let table = [
            ("10.96.0.7", Decision::Capture),
            ("8.8.8.8", Decision::Capture),
            ("169.254.169.254", Decision::Capture),
            ("fd99::3", Decision::Capture),
            ("::ffff:10.96.0.7", Decision::Capture),
            ("127.0.0.1", Decision::Done(Outcome::ConnectLoopback)),
            ("127.0.0.53", Decision::Done(Outcome::ConnectLoopback)),
            ("::1", Decision::Done(Outcome::ConnectLoopback)),
            ("0.0.0.0", Decision::Done(Outcome::ConnectLoopback)),
            ("::", Decision::Done(Outcome::ConnectLoopback)),
            ("10.0.0.2", Decision::Done(Outcome::ConnectOwnAddress)),
            ("fd99::2", Decision::Done(Outcome::ConnectOwnAddress)),
            ("127.128.0.1", Decision::Done(Outcome::ConnectRange)),
            ("127.64.9.9", Decision::Done(Outcome::ConnectRange)),
            ("::ffff:127.200.0.1", Decision::Done(Outcome::ConnectRange)),
            ("fd6e:6f64:656d:6573::1", Decision::Done(Outcome::ConnectRange)),
            ("fd6e:6f64:656d:6572::1", Decision::Done(Outcome::ConnectRange)),
            ("fe80::1", Decision::Done(Outcome::ConnectLinkLocal)),
        ];
        for (destination, expected) in table {
            assert_eq!(decide(&ip(destination), &pod(Gate::Open)), expected, "{destination}");
        }
    }

    #[test]
    fn a_closed_gate_refuses_whatever_would_be_captured() {
        for destination in ["10.96.0.7", "8.8.8.8", "fd99::3", "::ffff:10.96.0.7"] {
            let Decision::Done(outcome) = decide(&ip(destination), &pod(Gate::Closed)) else {
                panic!("{destination} was captured");
            };
            assert_eq!(outcome.verdict(), Verdict::Refuse, "{destination}");
        }
        assert_eq!(decide(&ip("127.0.0.1"), &pod(Gate::Closed)), Decision::Done(Outcome::ConnectLoopback));
    }
}
