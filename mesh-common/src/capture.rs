//! What becomes of a connect(): the pure decision, run by the connect hooks.

use crate::addr::Endpoint;
use crate::exclude::{self, Exclusions};
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

/// Decides by destination. Bypass happens only here, by rule, and is counted. What is excluded needs no listener of the
/// agent, so it goes out while the gate is closed too.
#[inline(always)]
pub fn decide(destination: &Endpoint, pod: &PodConfig, exclusions: &impl Exclusions) -> Decision {
    let ip = destination.ip();
    if ip.is_capture() || ip.is_agent_source() {
        return Decision::Done(Outcome::ConnectRange);
    }
    if ip.is_loopback() || ip.is_unspecified() {
        return Decision::Done(Outcome::ConnectLoopback);
    }
    if pod.addresses().contain(&ip) {
        return Decision::Done(Outcome::ConnectOwnAddress);
    }
    if ip.is_v6_link_local() {
        return Decision::Done(Outcome::ConnectLinkLocal);
    }
    if exclude::outbound(pod.addresses(), destination, exclusions) {
        return Decision::Done(Outcome::ConnectExcluded);
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
    use crate::addr::Ip;
    use crate::exclude::fake::{Fake, NOTHING};
    use crate::outcome::Verdict;
    use crate::record::PodAddresses;

    fn ip(text: &str) -> Ip {
        text.parse::<IpAddr>().expect("an address").into()
    }

    fn at(address: &str, port: u16) -> Endpoint {
        Endpoint::new(ip(address), port)
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
            assert_eq!(decide(&at(destination, 80), &pod(Gate::Open), &NOTHING), expected, "{destination}");
        }
    }

    #[test]
    fn a_closed_gate_refuses_whatever_would_be_captured() {
        for destination in ["10.96.0.7", "8.8.8.8", "fd99::3", "::ffff:10.96.0.7"] {
            let Decision::Done(outcome) = decide(&at(destination, 80), &pod(Gate::Closed), &NOTHING) else {
                panic!("{destination} was captured");
            };
            assert_eq!(outcome.verdict(), Verdict::Refuse, "{destination}");
        }
        assert_eq!(
            decide(&at("127.0.0.1", 80), &pod(Gate::Closed), &NOTHING),
            Decision::Done(Outcome::ConnectLoopback)
        );
    }

    /// What is excluded goes out whatever the gate; what never can be is as it was.
    #[test]
    fn exclusions() {
        let all = Fake::new(&[], &[("10.0.0.2", "0.0.0.0", 0), ("fd99::2", "::", 0)]);
        let some = Fake::new(
            &[("10.0.0.2", 3306), ("fd99::2", 3306), ("10.0.0.2", 15008)],
            &[("10.0.0.2", "10.9.0.0", 16), ("fd99::2", "fd77::", 16)],
        );
        let excluded = Decision::Done(Outcome::ConnectExcluded);
        let table = [
            (&some, "10.1.1.1", 3306, excluded),
            (&some, "::ffff:10.1.1.1", 3306, excluded),
            (&some, "fd99::3", 3306, excluded),
            (&some, "10.1.1.1", 3307, Decision::Capture),
            (&some, "10.9.255.1", 80, excluded),
            (&some, "10.10.0.1", 80, Decision::Capture),
            (&some, "fd77::1", 80, excluded),
            (&some, "fd78::1", 80, Decision::Capture),
            (&some, "10.9.0.1", 15008, Decision::Capture),
            (&all, "8.8.8.8", 443, excluded),
            (&all, "2001:db8::1", 443, excluded),
            (&all, "10.1.1.1", 15008, Decision::Capture),
            (&all, "127.128.0.1", 80, Decision::Done(Outcome::ConnectRange)),
            (&all, "fd6e:6f64:656d:6573::1", 80, Decision::Done(Outcome::ConnectRange)),
            (&all, "fd6e:6f64:656d:6572::1", 80, Decision::Done(Outcome::ConnectRange)),
            (&all, "fe80::1", 80, Decision::Done(Outcome::ConnectLinkLocal)),
            (&all, "127.0.0.1", 80, Decision::Done(Outcome::ConnectLoopback)),
        ];
        for (exclusions, address, port, expected) in table {
            for gate in [Gate::Open, Gate::Closed] {
                let expected = match (expected, gate) {
                    (Decision::Capture, Gate::Closed) => Decision::Done(Outcome::ConnectNotReady),
                    (expected, _) => expected,
                };
                assert_eq!(decide(&at(address, port), &pod(gate), exclusions), expected, "{address} {port} {gate:?}");
            }
        }
    }
}
