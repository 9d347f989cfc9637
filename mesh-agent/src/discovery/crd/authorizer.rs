//! ExternalAuthorizer.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{AuthorizerStatus, rules};

/// Somebody who is asked about requests that an AuthorizationPolicy with action CUSTOM means. In the namespace
/// nodemesh-system it may be named by policies of every namespace. It is reached as the pod that is asked for would reach
/// it: in the mesh by mutual TLS, with that pod's identity.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "nodemesh.dev",
    version = "v1alpha1",
    kind = "ExternalAuthorizer",
    namespaced,
    shortname = "extauthz",
    category = "nodemesh"
)]
#[kube(status = "AuthorizerStatus")]
#[kube(printcolumn = r#"{"name": "Protocol", "type": "string", "jsonPath": ".spec.protocol"}"#)]
#[kube(printcolumn = r#"{"name": "Service", "type": "string", "jsonPath": ".spec.service.name"}"#)]
#[kube(
    printcolumn = r#"{"name": "Accepted", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Accepted')].status"}"#
)]
#[kube(printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}"#)]
#[schemars(extend("x-kubernetes-validations" = rules::rules(rules::AUTHORIZER)))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExternalAuthorizerSpec {
    /// Where it is.
    pub service: AuthorizerService,
    /// How it is asked.
    pub protocol: AuthorizerProtocol,
    /// How long its answer may take, such as `200ms`; at most 10s. Absent: 500ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), pattern(r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"))]
    #[schemars(extend("x-kubernetes-validations" = rules::within("1ms", "10s")))]
    pub timeout: Option<String>,
    /// Whether a request passes where there is no answer: nobody is reached, the time is over, or what is answered is no
    /// answer. Absent: no.
    #[serde(default)]
    pub fail_open: bool,
    /// What a request is answered for which there is no answer, 400 to 599. Absent: 403.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 400, max = 599))]
    pub status_on_error: Option<u16>,
    /// Show the request's body too. Absent: its head alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub include_request_body_in_check: Option<AuthorizerBody>,
    /// For HTTP: what stands before the path that is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(pattern(r"^(/[A-Za-z0-9/._~-]*)?$"))]
    pub path_prefix: Option<String>,
    /// For HTTP: headers of the request that are shown beside Host and Authorization. By gRPC all are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub include_request_headers_in_check: Vec<String>,
    /// For HTTP: headers that are added to what is asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub include_additional_headers_in_check: Vec<AuthorizerHeader>,
    /// For HTTP: headers of an answer that allows which the application gets, in place of the caller's. By gRPC the
    /// answer says which.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub headers_to_upstream_on_allow: Vec<String>,
    /// For HTTP: headers of an answer that refuses which the caller gets. Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub headers_to_downstream_on_deny: Option<Vec<String>>,
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizerService {
    /// Its name.
    #[schemars(length(min = 1, max = 253), pattern(r"^[a-z0-9.-]+$"))]
    pub name: String,
    /// Its namespace. Absent: the authorizer's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), pattern(r"^[a-z0-9.-]+$"))]
    pub namespace: Option<String>,
    /// Its port.
    #[schemars(range(min = 1))]
    pub port: u16,
}

/// How an authorizer is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AuthorizerProtocol {
    /// By gRPC: `envoy.service.auth.v3.Authorization/Check`.
    #[serde(rename = "GRPC")]
    Grpc,
    /// By HTTP/1.1 or HTTP/2, as the Service's port says: the request's own method and path. 200 allows it, any other
    /// answer below 500 refuses it and is what the caller gets.
    #[serde(rename = "HTTP")]
    Http,
}

/// What of a body is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizerBody {
    /// Bytes at most, up to 1 MiB: so much of each request is held while it is asked about.
    #[schemars(range(min = 1, max = 1048576))]
    pub max_request_bytes: u32,
    /// Whether the beginning of a longer body is enough. Absent: no, and a longer one is answered with 413.
    #[serde(default)]
    pub allow_partial_message: bool,
}

/// A header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizerHeader {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}
