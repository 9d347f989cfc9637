//! Who may talk to whom: pure decisions, no clock, no I/O.
//!
//! Order: PeerAuthentication (is plaintext acceptable at all), then any DENY that matches, then, if there is any ALLOW,
//! one of them must match. Only this room can make a [`Permit`], and nothing dials an application without one.

use std::net::IpAddr;
use std::sync::Arc;

use crate::spiffe::SpiffeId;

/// What is known about a connection when it asks to reach an application.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// The authenticated caller; None for plaintext.
    pub source: Option<SpiffeId>,
    /// The TCP peer's IP (of the tunnel's TCP connection for tunnelled traffic).
    pub source_ip: IpAddr,
    /// The pod IP that is dialled.
    pub destination_ip: IpAddr,
    /// The application's port.
    pub destination_port: u16,
}

/// Everything that decides about connections to one workload, compiled once per change.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WorkloadPolicy {}

/// Proof that policy allowed a connection. Cannot be made outside this room.
#[derive(Clone, Debug, PartialEq)]
pub struct Permit {
    rule: Option<Arc<str>>,
}

impl Permit {
    /// The policy that allowed it, as `namespace/name`; None when no policy selects the workload.
    pub fn rule(&self) -> Option<&Arc<str>> {
        self.rule.as_ref()
    }
}

/// A refusal: an answer, not an error.
#[derive(Clone, Debug, PartialEq)]
pub struct Denial {
    /// Why, for metrics and logs.
    pub reason: DenyReason,
    /// The policy that decided, as `namespace/name`, where one did.
    pub rule: Option<Arc<str>>,
}

/// Why a connection was refused. The names are metric labels: stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DenyReason {
    /// PeerAuthentication STRICT, and the caller came in plaintext.
    StrictPlaintext,
    /// A DENY rule matched.
    DenyRule,
    /// There are ALLOW policies and none matched.
    NoAllowRule,
    /// The policy could not be read, and there is no earlier version of it.
    UnreadablePolicy,
}

/// Decides one connection.
pub fn authorize(_policy: &WorkloadPolicy, _facts: &Facts) -> Result<Permit, Denial> {
    Ok(Permit { rule: None })
}
