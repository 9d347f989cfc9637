//! AuthorizationPolicy.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::TargetRef;

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
