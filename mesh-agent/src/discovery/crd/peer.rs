//! PeerAuthentication.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{PolicyStatus, TargetRef, rules};

/// Whether workloads accept plaintext. The narrowest object wins: port, then pods, then namespace, then mesh; the oldest
/// among equals. Without any, PERMISSIVE.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "nodemesh.dev",
    version = "v1alpha1",
    kind = "PeerAuthentication",
    namespaced,
    shortname = "peerauth",
    category = "nodemesh"
)]
#[kube(status = "PolicyStatus")]
#[kube(printcolumn = r#"{"name": "Mode", "type": "string", "jsonPath": ".spec.mode"}"#)]
#[kube(printcolumn = r#"{"name": "Targets", "type": "string", "jsonPath": ".spec.targetRefs[*].kind"}"#)]
#[kube(
    printcolumn = r#"{"name": "Accepted", "type": "string", "jsonPath": ".status.ancestors[0].conditions[?(@.type=='Accepted')].status"}"#
)]
#[kube(printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}"#)]
#[schemars(extend("x-kubernetes-validations" = rules::rules(rules::PEER)))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PeerAuthenticationSpec {
    /// What it applies to: kind Pod or Namespace. In the namespace nodemesh-system, Namespace means the whole mesh and
    /// Pod means pods of every namespace.
    #[schemars(length(min = 1, max = 16))]
    pub target_refs: Vec<TargetRef>,
    /// The mode of every port that has no override. Absent: what the wider object says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<PeerMode>,
    /// Modes of single ports of the application. Only with targets of kind Pod that have a selector.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub port_overrides: Vec<PortOverride>,
    /// What callers of the mesh owe on the workload's own node. Absent: what the wider object says, and in the end
    /// KernelIdentity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub same_node: Option<SameNode>,
}

/// Whether a workload accepts plaintext.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum PeerMode {
    /// Only callers with an identity of the mesh.
    Strict,
    /// Both.
    Permissive,
    /// Both, and peers in the mesh dial in plaintext. AuthorizationPolicy still applies.
    Disable,
}

/// The mode of one port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortOverride {
    /// The application's port.
    #[schemars(range(min = 1))]
    pub port: u16,
    /// Its mode.
    pub mode: PeerMode,
}

/// What satisfies STRICT on one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SameNode {
    /// That the kernel knows both pods will do, for STRICT too: their bytes do not leave the node, and no TLS is spent.
    KernelIdentity,
    /// TLS, as between nodes.
    Encrypt,
}
