//! RequestAuthentication.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{PolicyStatus, TargetRef, rules};

/// Which tokens of requests are believed. A request that brings a token that is not good is refused with 401; one without
/// a token passes without a principal, and what that is worth an AuthorizationPolicy says. The requests of the ports that
/// it covers are read; what is no HTTP is refused there.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "nodemesh.dev",
    version = "v1alpha1",
    kind = "RequestAuthentication",
    namespaced,
    shortname = "reqauth",
    category = "nodemesh"
)]
#[kube(status = "PolicyStatus")]
#[kube(printcolumn = r#"{"name": "Issuers", "type": "string", "jsonPath": ".spec.jwtRules[*].issuer"}"#)]
#[kube(printcolumn = r#"{"name": "Targets", "type": "string", "jsonPath": ".spec.targetRefs[*].kind"}"#)]
#[kube(
    printcolumn = r#"{"name": "Accepted", "type": "string", "jsonPath": ".status.ancestors[0].conditions[?(@.type=='Accepted')].status"}"#
)]
#[kube(printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}"#)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestAuthenticationSpec {
    /// What it applies to: kind Pod, Service or Namespace. In the namespace nodemesh-system, Namespace means the whole
    /// mesh and Pod means pods of every namespace.
    #[schemars(length(min = 1, max = 16))]
    pub target_refs: Vec<TargetRef>,
    /// Ports of the application. Absent: all of the target's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), inner(range(min = 1)))]
    pub ports: Option<Vec<u16>>,
    /// Who issues tokens.
    #[schemars(length(min = 1, max = 16), extend("x-kubernetes-validations" = rules::rules(rules::JWT_RULES)))]
    pub jwt_rules: Vec<JwtRule>,
}

/// One issuer of tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules::rules(rules::JWT)))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JwtRule {
    /// What `iss` says, exactly.
    #[schemars(length(min = 1, max = 1024))]
    pub issuer: String,
    /// One of these must be in `aud`. Absent: whatever it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub audiences: Option<Vec<String>>,
    /// The issuer's public keys: a JWK Set as JSON. A key signs by the algorithms of its type, or by the one in its `alg`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwks: Option<String>,
    /// Where the keys are, instead of `jwks`: an https address that the agent of the node fetches, such as
    /// `https://issuer.example/.well-known/jwks.json`. A Service of the cluster is `<name>.<namespace>.svc`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub jwks_uri: Option<String>,
    /// Headers that a token is looked for in. Absent, with no cookies and parameters either: `Authorization: Bearer `.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 8))]
    pub from_headers: Option<Vec<JwtHeader>>,
    /// Cookies that a token is looked for in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 8))]
    pub from_cookies: Option<Vec<String>>,
    /// Parameters of the query that a token is looked for in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 8))]
    pub from_params: Option<Vec<String>>,
    /// Whether the application gets the token too.
    #[serde(default)]
    pub forward_original_token: bool,
    /// Claims that the application is told in headers. What a caller says in these headers is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16))]
    pub output_claim_to_headers: Option<Vec<JwtOutput>>,
    /// How far the issuer's clock may be off, in seconds. Absent: 60.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 3600))]
    pub clock_skew_seconds: Option<u64>,
}

/// A header with a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JwtHeader {
    /// Its name.
    pub name: String,
    /// What stands before the token, with the blank behind it: `Bearer `. Absent: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
}

/// A claim in a header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JwtOutput {
    /// The header's name.
    pub header: String,
    /// The claim; names within an object are joined by dots.
    pub claim: String,
}
