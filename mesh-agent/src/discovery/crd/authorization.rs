//! AuthorizationPolicy.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{PolicyStatus, TargetRef, rules};

/// Who may connect to workloads. CUSTOM first, then DENY; where any ALLOW applies, nothing passes but what one of them allows.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "nodemesh.dev",
    version = "v1alpha1",
    kind = "AuthorizationPolicy",
    namespaced,
    shortname = "authz",
    category = "nodemesh"
)]
#[kube(status = "PolicyStatus")]
#[kube(printcolumn = r#"{"name": "Action", "type": "string", "jsonPath": ".spec.action"}"#)]
#[kube(printcolumn = r#"{"name": "Targets", "type": "string", "jsonPath": ".spec.targetRefs[*].kind"}"#)]
#[kube(
    printcolumn = r#"{"name": "Accepted", "type": "string", "jsonPath": ".status.ancestors[0].conditions[?(@.type=='Accepted')].status"}"#
)]
#[kube(printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}"#)]
#[schemars(extend("x-kubernetes-validations" = rules::rules(rules::AUTHORIZATION)))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizationPolicySpec {
    /// What it applies to: kind Pod, Service or Namespace. In the namespace nodemesh-system, Namespace means the whole
    /// mesh and Pod means pods of every namespace.
    #[schemars(length(min = 1, max = 16))]
    pub target_refs: Vec<TargetRef>,
    /// What a match means.
    pub action: PolicyAction,
    /// For action CUSTOM, required: who is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<PolicyProvider>,
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
    /// An ExternalAuthorizer is asked about each request, before the other actions; only what it lets pass goes on to
    /// them. What is no HTTP is refused.
    Custom,
}

/// Who is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicyProvider {
    /// The name of an ExternalAuthorizer of the policy's namespace or, if there is none, of nodemesh-system. While there
    /// is neither, what the rules mean is refused.
    #[schemars(length(min = 1, max = 253), pattern(r"^[a-z0-9.-]+$"))]
    pub name: String,
}

/// Matches when one of its sources, one of its ports, one of its requests and all its conditions do.
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
    /// Who does not: a rule never matches these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub not_sources: Option<Vec<PolicySource>>,
    /// What is asked for, one of them. Absent: anything. With this, `when` or a request principal, the port's requests
    /// are read and each is judged; what is no HTTP is refused there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub requests: Option<Vec<PolicyRequest>>,
    /// Who asks by a token that a RequestAuthentication found valid, as `<issuer>/<subject>`, `prefix*`, `*suffix`, or
    /// `*` for any. One of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub request_principals: Option<Vec<String>>,
    /// Request principals that are not meant. A request without a token is none of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub not_request_principals: Option<Vec<String>>,
    /// What else must be so, all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    pub when: Option<Vec<PolicyCondition>>,
}

/// What is asked for: one value of each list that is there, and none of those that begin with `not`. At least one list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules::rules(rules::REQUEST)))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicyRequest {
    /// The host that is asked, without case and without port: `web.shop`, `*.shop`, `web*`, `*`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub hosts: Option<Vec<String>>,
    /// Hosts that are not meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub not_hosts: Option<Vec<String>>,
    /// Methods, in capitals: `GET`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), inner(pattern(r"^[A-Z0-9_*-]+$")))]
    pub methods: Option<Vec<String>>,
    /// Methods that are not meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), inner(pattern(r"^[A-Z0-9_*-]+$")))]
    pub not_methods: Option<Vec<String>>,
    /// Paths without their query, with case, normalised: `/a`, `/a/*`, `*/b`, `*`, or with `{*}` for one segment and
    /// `{**}` for any number of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub paths: Option<Vec<String>>,
    /// Paths that are not meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub not_paths: Option<Vec<String>>,
    /// gRPC methods, beside `paths`: the same as the path `/<service>/<method>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub grpc: Option<Vec<PolicyGrpc>>,
    /// gRPC methods that are not meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub not_grpc: Option<Vec<PolicyGrpc>>,
}

/// Methods of gRPC; a service, a method, or both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules::rules(rules::GRPC)))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicyGrpc {
    /// The service with its package, such as `shop.Cart`; absent: of any service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(pattern(r"^[A-Za-z0-9._]+$"))]
    pub service: Option<String>,
    /// The method; absent: all of the service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(pattern(r"^[A-Za-z0-9._]+$"))]
    pub method: Option<String>,
}

/// Something about a request that must be so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules::rules(rules::CONDITION)))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicyCondition {
    /// `request.headers[name]`, `request.auth.principal`, `request.auth.audiences`, or `request.auth.claims[name]`,
    /// with more names in brackets for what is within an object.
    #[schemars(pattern(
        r"^request\.(headers\[[^\[\]]+\]|auth\.principal|auth\.audiences|auth\.claims(\[[^\[\]]+\])+)$"
    ))]
    pub key: String,
    /// One of these: a word, `prefix*`, `*suffix`, or `*` for any that is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub values: Option<Vec<String>>,
    /// None of these. What is not there is none of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub not_values: Option<Vec<String>>,
}

/// One kind of caller; the field that belongs to the type must be set, and no other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules::rules(rules::SOURCE)))]
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
    #[schemars(length(min = 1, max = 253), pattern(r"^[a-z0-9.-]+$"))]
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
    #[schemars(length(min = 1, max = 253), pattern(r"^[a-z0-9.-]+$"))]
    pub name: String,
    /// Its namespace; absent: that of the policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), pattern(r"^[a-z0-9.-]+$"))]
    pub namespace: Option<String>,
}

/// A range of addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules::rules(rules::IP_BLOCK)))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IpBlockSource {
    /// Such as `10.0.0.0/8` or `fd00::/8`.
    #[schemars(length(min = 1, max = 49))]
    pub cidr: String,
    /// Ranges within it that do not belong.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 49)))]
    pub except: Vec<String>,
}
