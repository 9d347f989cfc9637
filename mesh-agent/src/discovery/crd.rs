//! Our own Kubernetes resources, group `nodemesh.dev/v1alpha1`. `manifests/crds/` is generated from these types.
//!
//! Every field that is not known here is refused: a misspelt restriction must not vanish. What a type cannot say (which
//! target kinds go with which object, what a source type needs) is checked in `translate`.

use std::collections::BTreeMap;

use kube::{CustomResource, CustomResourceExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The API group of our resources.
pub const GROUP: &str = "nodemesh.dev";
/// The only version so far.
pub const VERSION: &str = "v1alpha1";

/// Whether workloads accept plaintext. The narrowest object wins: port, then pods, then namespace, then mesh; the oldest
/// among equals. Without any, PERMISSIVE.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(group = "nodemesh.dev", version = "v1alpha1", kind = "PeerAuthentication", namespaced, shortname = "peerauth")]
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
    /// What STRICT asks for between two pods of one node. Until connections can stay in the kernel there, every
    /// connection is encrypted, whatever this says.
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
    /// The kernel knows both pods; their bytes do not leave the node.
    KernelIdentity,
    /// TLS there too.
    Encrypt,
}

/// Who may connect to workloads. DENY first; where any ALLOW applies, nothing passes but what one of them allows.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(group = "nodemesh.dev", version = "v1alpha1", kind = "AuthorizationPolicy", namespaced, shortname = "authz")]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizationPolicySpec {
    /// What it applies to: kind Pod, Service or Namespace. In the namespace nodemesh-system, Namespace means the whole
    /// mesh and Pod means pods of every namespace.
    #[schemars(length(min = 1, max = 16))]
    pub target_refs: Vec<TargetRef>,
    /// What a match means.
    pub action: PolicyAction,
    /// One match is enough. An empty list matches nobody in ALLOW and everybody in DENY.
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub rules: Vec<PolicyRule>,
}

/// What a match means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum PolicyAction {
    /// The connection may pass.
    Allow,
    /// The connection is refused.
    Deny,
    /// The connection is recorded, nothing else.
    Audit,
}

/// Matches when one of its sources and one of its ports do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicyRule {
    /// Who connects; type Any for everyone.
    #[schemars(length(min = 1, max = 256))]
    pub sources: Vec<PolicySource>,
    /// Ports of the application (target ports, not the Service's). Absent: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(range(min = 1)))]
    pub ports: Vec<u16>,
}

/// One kind of caller; the field that belongs to the type must be set, and no other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicySource {
    /// Which of the fields below counts.
    #[serde(rename = "type")]
    pub source_type: SourceType,
    /// For type ServiceAccount.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<ServiceAccountSource>,
    /// For type SPIFFE: an id `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`, or `prefix*`, `*suffix`, `*`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spiffe: Option<String>,
    /// For type Namespace: its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// For type IPBlock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_block: Option<IpBlockSource>,
}

/// What a source is told by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SourceType {
    /// The service account of the calling pod.
    ServiceAccount,
    /// The caller's SPIFFE id.
    #[serde(rename = "SPIFFE")]
    Spiffe,
    /// The namespace of the calling pod.
    Namespace,
    /// The IP of the caller's TCP connection.
    #[serde(rename = "IPBlock")]
    IpBlock,
    /// Everyone, also without identity.
    Any,
}

/// A service account of this cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceAccountSource {
    /// Its name.
    pub name: String,
    /// Its namespace; absent: that of the policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

/// A range of addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IpBlockSource {
    /// Such as `10.0.0.0/8` or `fd00::/8`.
    pub cidr: String,
    /// Ranges within it that do not belong.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub except: Vec<String>,
}

/// What a policy applies to, in its own namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TargetRef {
    /// The API group; empty for the kinds there are.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Pod, Service or Namespace.
    pub kind: TargetKind,
    /// The name: required for Service; for Namespace it may be absent or the policy's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// For kind Pod, required: which pods. An empty selector is all of the namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<PodSelector>,
}

/// What a policy can apply to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TargetKind {
    /// Pods by label.
    Pod,
    /// The pods of a Service at its target ports.
    Service,
    /// Every pod of the policy's namespace.
    Namespace,
}

/// Kubernetes' label selector, but strict about its fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PodSelector {
    /// Labels that the pod has.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
    /// Conditions on labels: In, NotIn, Exists, DoesNotExist.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<LabelExpression>,
}

/// One condition on one label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LabelExpression {
    /// The label.
    pub key: String,
    /// What is asked of it.
    pub operator: LabelOperator,
    /// For In and NotIn, at least one; for the others none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

/// What is asked of a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LabelOperator {
    /// Its value is one of these.
    In,
    /// Its value is none of these, or it is absent.
    NotIn,
    /// It is there.
    Exists,
    /// It is not there.
    DoesNotExist,
}

/// Every CustomResourceDefinition as (file name, YAML), as committed under `manifests/crds/`.
pub fn manifests() -> Result<Vec<(&'static str, String)>, serde_saphyr::SerializeError> {
    let header = "# Generated from mesh-agent/src/discovery/crd.rs; do not edit.\n";
    let with_header = |yaml: String| format!("{header}{yaml}");
    Ok(vec![
        ("authorizationpolicies.yaml", serde_saphyr::to_string(&AuthorizationPolicy::crd()).map(with_header)?),
        ("peerauthentications.yaml", serde_saphyr::to_string(&PeerAuthentication::crd()).map(with_header)?),
    ])
}
