//! Who may talk to whom: pure decisions, no clock, no I/O.
//!
//! Order: a policy that could not be read refuses, then PeerAuthentication (is plaintext acceptable at all), then any
//! DENY that matches, then, if there is any ALLOW, one of them must match. Only this room can make a [`Permit`], and
//! nothing dials an application without one.
//!
//! The objects come in already parsed ([`PeerAuthentication`], [`AuthorizationPolicy`], [`Unreadable`]); [`PolicySet`]
//! compiles those that select a workload into its [`WorkloadPolicy`]. Nothing here knows Kubernetes types.

mod compile;
mod object;
mod selector;
mod source;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use serde::Serialize;

pub use compile::{PeerModes, PolicySet, Subject};
pub use object::{Action, AuthorizationPolicy, Mode, PeerAuthentication, PolicyMeta, Rule, Target, Unreadable, Weight};
pub use selector::{Operator, Requirement, Selector};
pub use source::{IpBlock, Principal, PrincipalError, Source};

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

/// Everything that decides about connections to one workload, compiled once per change. Two are equal when they decide
/// alike, so a change of the world that leaves it equal needs no new judgement of live connections.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadPolicy {
    /// Whether plaintext is acceptable, by port.
    modes: PeerModes,
    /// AuthorizationPolicies that select the workload and cannot be read: they refuse everything on their ports.
    unreadable: Vec<Unread>,
    /// DENY policies, oldest first.
    deny: Vec<Statement>,
    /// ALLOW policies, oldest first.
    allow: Vec<Statement>,
    /// AUDIT policies, oldest first. They decide nothing.
    audit: Vec<Statement>,
}

/// One AuthorizationPolicy, as far as it concerns one workload.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    /// `namespace/name`
    id: Arc<str>,
    /// The ports of the workload that the policy's targets cover.
    ports: PortScope,
    #[serde(skip)]
    policy: Arc<AuthorizationPolicy>,
}

/// One unreadable AuthorizationPolicy, as far as it concerns one workload.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Unread {
    id: Arc<str>,
    ports: PortScope,
}

/// Which ports of a workload a policy covers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum PortScope {
    /// The whole workload is the target.
    All,
    /// A Service is the target: its target ports on this workload.
    Only(BTreeSet<u16>),
}

impl PortScope {
    fn covers(&self, port: u16) -> bool {
        match self {
            PortScope::All => true,
            PortScope::Only(ports) => ports.contains(&port),
        }
    }
}

/// Proof that policy allowed a connection. Cannot be made outside this room.
#[derive(Clone, Debug, PartialEq)]
pub struct Permit {
    rule: Option<Arc<str>>,
}

impl Permit {
    /// The policy that allowed it, as `namespace/name`; None when no ALLOW policy selects the workload.
    pub fn rule(&self) -> Option<&Arc<str>> {
        self.rule.as_ref()
    }
}

/// A refusal: an answer, not an error.
#[derive(Clone, Debug, PartialEq)]
pub struct Denial {
    /// Why, for metrics and logs.
    pub reason: DenyReason,
    /// The policy that decided, as `namespace/name`, where one did. For [`DenyReason::NoAllowRule`] the oldest of the
    /// ALLOW policies that cover the port.
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
    /// The pod that is dialled is not, or no longer, known to this node.
    UnknownWorkload,
}

impl DenyReason {
    /// The stable label for metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            DenyReason::StrictPlaintext => "strict-plaintext",
            DenyReason::DenyRule => "deny-rule",
            DenyReason::NoAllowRule => "no-allow-rule",
            DenyReason::UnreadablePolicy => "unreadable-policy",
            DenyReason::UnknownWorkload => "unknown-workload",
        }
    }
}

/// Decides one connection.
pub fn authorize(policy: &WorkloadPolicy, facts: &Facts) -> Result<Permit, Denial> {
    let port = facts.destination_port;
    if let Some(unread) = policy.unreadable.iter().find(|unread| unread.ports.covers(port)) {
        return Err(Denial { reason: DenyReason::UnreadablePolicy, rule: Some(unread.id.clone()) });
    }
    let (mode, rule) = policy.modes.at(port);
    if facts.source.is_none() && mode == Mode::Strict {
        return Err(Denial { reason: DenyReason::StrictPlaintext, rule: rule.cloned() });
    }
    if let Some(statement) = policy.deny.iter().find(|statement| statement.matches(facts)) {
        return Err(Denial { reason: DenyReason::DenyRule, rule: Some(statement.id.clone()) });
    }
    let mut applicable = policy.allow.iter().filter(|statement| statement.ports.covers(port)).peekable();
    let Some(oldest) = applicable.peek().map(|statement| statement.id.clone()) else {
        return Ok(Permit { rule: None });
    };
    match applicable.find(|statement| statement.matches(facts)) {
        Some(statement) => Ok(Permit { rule: Some(statement.id.clone()) }),
        None => Err(Denial { reason: DenyReason::NoAllowRule, rule: Some(oldest) }),
    }
}

/// The AUDIT policies that match a connection, as `namespace/name`. They change no decision; record them.
pub fn audited(policy: &WorkloadPolicy, facts: &Facts) -> Vec<Arc<str>> {
    let matching = policy.audit.iter().filter(|statement| statement.matches(facts));
    matching.map(|statement| statement.id.clone()).collect()
}

impl WorkloadPolicy {
    /// The PeerAuthentication mode of a port.
    pub fn mode(&self, port: u16) -> Mode {
        self.modes.at(port).0
    }
}

impl Statement {
    fn matches(&self, facts: &Facts) -> bool {
        let action = self.policy.action;
        let rules = &self.policy.rules;
        self.ports.covers(facts.destination_port)
            && (rules.iter().any(|rule| rule.matches(action, facts)) || rules.is_empty() && action.empty_list_matches())
    }
}

impl Rule {
    fn matches(&self, action: Action, facts: &Facts) -> bool {
        let port_matches = self.ports.is_empty() || self.ports.contains(&facts.destination_port);
        let source_matches = self.sources.iter().any(|source| source.matches(facts))
            || self.sources.is_empty() && action.empty_list_matches();
        port_matches && source_matches
    }
}
