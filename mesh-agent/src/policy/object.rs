//! The policy objects that users write, parsed and valid.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use super::request::{Condition, Operation};
use super::{Provider, Selector, Source};
use crate::tokens::Issuer;

/// What every policy object has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyMeta {
    /// `namespace/name`
    pub id: Arc<str>,
    /// metadata.creationTimestamp in seconds since 1970. Objects that have none count as the newest.
    pub created: Option<i64>,
}

impl PolicyMeta {
    /// Sorts the oldest first; equal ages by name, so that the order never depends on how objects arrived.
    pub fn age_order(&self) -> (i64, Arc<str>) {
        (self.created.unwrap_or(i64::MAX), self.id.clone())
    }
}

/// What a policy applies to, with its namespace worked in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Every workload.
    Mesh,
    /// Every workload of a namespace.
    Namespace(Arc<str>),
    /// The workloads with these labels, in one namespace or, for mesh-wide objects (None), in all.
    Pods {
        /// The namespace, or None for all.
        namespace: Option<Arc<str>>,
        /// Which of its pods. Never empty: an empty selector is translated to the namespace.
        selector: Selector,
    },
    /// The pods of a Service, at its target ports.
    Service {
        /// The Service's namespace, which is that of its pods.
        namespace: Arc<str>,
        /// The Service's name.
        name: Arc<str>,
    },
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Mesh => f.write_str("the mesh"),
            Target::Namespace(namespace) => write!(f, "namespace {namespace}"),
            Target::Pods { namespace: Some(namespace), selector } => write!(f, "pods of {namespace} with {selector}"),
            Target::Pods { namespace: None, selector } => write!(f, "pods with {selector}"),
            Target::Service { namespace, name } => write!(f, "service {namespace}/{name}"),
        }
    }
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Whether a workload takes plaintext.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Mode {
    /// Only authenticated callers.
    Strict,
    /// Both; enrolled callers use tunnels.
    Permissive,
    /// Both; enrolled callers dial in plaintext. Authorisation still applies.
    Disable,
}

/// What satisfies STRICT between two pods of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum SameNode {
    /// The kernel knows both pods, and their bytes do not leave the node.
    KernelIdentity,
    /// TLS there too.
    Encrypt,
}

/// Says whether plaintext is acceptable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerAuthentication {
    /// Name and age.
    #[serde(flatten)]
    pub meta: PolicyMeta,
    /// What it applies to; never a Service.
    pub targets: Vec<Target>,
    /// The mode of every port without an override; None leaves it to the wider object.
    pub mode: Option<Mode>,
    /// Modes of single ports. Only objects that select pods have them.
    pub ports: BTreeMap<u16, Mode>,
    /// What callers of the same node owe; None leaves it to the wider object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub same_node: Option<SameNode>,
}

/// What happens to a connection that a policy's rules match.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// It may pass; and where there is an ALLOW policy, nothing else may.
    Allow,
    /// It is refused, whatever allows it.
    Deny,
    /// It is recorded.
    Audit,
    /// Somebody is asked, whatever else there is; nothing passes that is not let pass there.
    Custom,
}

impl Action {
    /// An empty list is never the weaker reading: it matches nobody in ALLOW and everybody in DENY.
    pub(super) fn empty_list_matches(self) -> bool {
        match self {
            Action::Allow => false,
            Action::Deny | Action::Audit | Action::Custom => true,
        }
    }
}

/// Says who may connect.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizationPolicy {
    /// Name and age.
    #[serde(flatten)]
    pub meta: PolicyMeta,
    /// What it applies to.
    pub targets: Vec<Target>,
    /// What a match means.
    pub action: Action,
    /// Who is asked, if the action is CUSTOM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<Provider>,
    /// One match is enough.
    pub rules: Vec<Rule>,
}

/// Matches when one of the sources, one of the ports, one of the operations and all conditions do.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// Who calls.
    pub sources: Vec<Source>,
    /// Who does not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_sources: Vec<Source>,
    /// The application's ports; empty means all.
    pub ports: Vec<u16>,
    /// What is asked for; empty means anything.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub operations: Vec<Operation>,
    /// What else must be so.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

impl Rule {
    /// Whether it asks for what a request alone has.
    pub fn needs_requests(&self) -> bool {
        !self.operations.is_empty() || !self.conditions.is_empty()
    }
}

/// Says which tokens of requests are believed.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestAuthentication {
    /// Name and age.
    #[serde(flatten)]
    pub meta: PolicyMeta,
    /// What it applies to.
    pub targets: Vec<Target>,
    /// The application's ports; empty means all.
    pub ports: BTreeSet<u16>,
    /// Who issues them. Not empty.
    pub issuers: Vec<Issuer>,
}

/// A policy object that is there and cannot be read, with no earlier version to go by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Unreadable {
    /// Name and age.
    #[serde(flatten)]
    pub meta: PolicyMeta,
    /// What it applies to, as far as that could be read; otherwise its namespace, or the mesh.
    pub targets: Vec<Target>,
    /// What it might have said at most.
    pub weight: Weight,
}

/// The strictest thing that an unreadable object could have said, which is what it then means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Weight {
    /// An AuthorizationPolicy could deny everything, and a RequestAuthentication believe nobody.
    DenyAll,
    /// A PeerAuthentication could refuse plaintext.
    Strict,
}
