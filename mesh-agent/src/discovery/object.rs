//! One parsed document to the objects in it: which kinds the mesh reads, and by which name they go.

use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::crd::{
    AuthorizationPolicy, ExternalAuthorizer, GROUP, PeerAuthentication, RequestAuthentication, TrafficPolicy, VERSION,
};
use super::finding::{FieldPath, Problem, Step};
use super::gateway;
use super::translate::{self, Taken};
pub use crate::state::{Item, Key, Kind};

/// What an object in a file is to the mesh.
pub enum Meaning {
    /// Of a kind that the mesh does not read.
    Foreign,
    /// Of a kind that looks as if the mesh should read it, and does not.
    Mistaken(Problem),
    /// Of a kind that the mesh reads; the name may be missing.
    Known {
        /// The kind.
        kind: Kind,
        /// namespace and name, if it has a name.
        key: Result<Key, Problem>,
    },
}

/// The objects of a document with the way to each: itself, or the items of a List.
pub fn objects(document: &Value) -> Vec<(FieldPath, &Value)> {
    let is_list = document.get("kind").and_then(Value::as_str).is_some_and(|kind| kind.ends_with("List"));
    match document.get("items").and_then(Value::as_array) {
        Some(items) if is_list => {
            items.iter().enumerate().map(|(index, item)| (FieldPath::of("items").index(index), item)).collect()
        }
        Some(_) | None => vec![(FieldPath::default(), document)],
    }
}

/// Tells what an object is, without reading its body.
pub fn meaning(object: &Value) -> Meaning {
    let api_version = text(object, &["apiVersion"]).unwrap_or_default();
    let kind = text(object, &["kind"]).unwrap_or_default();
    if kind.is_empty() || api_version.is_empty() {
        let field = if kind.is_empty() { "kind" } else { "apiVersion" };
        return Meaning::Mistaken(Problem::new(FieldPath::of(field), "missing: not a Kubernetes object"));
    }
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let kind = match (group, version, kind) {
        ("", "v1", "Namespace") => Kind::Namespace,
        ("", "v1", "Node") => Kind::Node,
        ("", "v1", "Pod") => Kind::Pod,
        ("", "v1", "Service") => Kind::Service,
        ("discovery.k8s.io", "v1", "EndpointSlice") => Kind::EndpointSlice,
        (gateway::GROUP, _, "HTTPRoute") => Kind::HttpRoute,
        (gateway::GROUP, _, "GRPCRoute") => Kind::GrpcRoute,
        (gateway::GROUP, _, "TCPRoute") => Kind::TcpRoute,
        (gateway::GROUP, _, "TLSRoute") => Kind::TlsRoute,
        (gateway::GROUP, _, "ReferenceGrant") => Kind::ReferenceGrant,
        (GROUP, _, "PeerAuthentication") => Kind::PeerAuthentication,
        (GROUP, _, "AuthorizationPolicy") => Kind::AuthorizationPolicy,
        (GROUP, _, "RequestAuthentication") => Kind::RequestAuthentication,
        (GROUP, _, "TrafficPolicy") => Kind::TrafficPolicy,
        (GROUP, _, "ExternalAuthorizer") => Kind::ExternalAuthorizer,
        (gateway::GROUP, _, "UDPRoute") if is_on_a_service(object) => {
            return Meaning::Mistaken(Problem::new(FieldPath::of("kind"), "UDP is not routed by the mesh"));
        }
        (GROUP, _, other) => {
            let reason = format!("{GROUP} has no kind {other}: {OURS} are known");
            return Meaning::Mistaken(Problem::new(FieldPath::of("kind"), reason));
        }
        (other, _, "PeerAuthentication" | "AuthorizationPolicy" | "RequestAuthentication" | "TrafficPolicy") => {
            let reason = format!("{kind} of {other:?} is not read; the mesh's own is {GROUP}/{VERSION}");
            return Meaning::Mistaken(Problem::new(FieldPath::of("apiVersion"), reason));
        }
        _ => return Meaning::Foreign,
    };
    Meaning::Known { kind, key: key(kind, object) }
}

/// The kinds of our group.
const OURS: &str =
    "PeerAuthentication, AuthorizationPolicy, RequestAuthentication, ExternalAuthorizer and TrafficPolicy";

/// Whether one of a route's parents is a Service, which makes it the mesh's.
fn is_on_a_service(route: &Value) -> bool {
    let parents = route.get("spec").and_then(|spec| spec.get("parentRefs")).and_then(Value::as_array);
    let is_service =
        |parent: &Value| text(parent, &["group"]) == Some("") && text(parent, &["kind"]) == Some("Service");
    parents.is_some_and(|parents| parents.iter().any(is_service))
}

/// Every field that metadata can have. A misspelt `namespace` would put a policy where it restricts nothing.
const METADATA: [&str; 15] = [
    "annotations",
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "labels",
    "managedFields",
    "name",
    "namespace",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
];

/// namespace and name of an object of a kind.
pub fn key(kind: Kind, object: &Value) -> Result<Key, Problem> {
    let metadata = object.get("metadata").and_then(Value::as_object);
    let unknown = metadata.and_then(|metadata| metadata.keys().find(|key| !METADATA.contains(&key.as_str())));
    let is_ours = kind.is_policy() || matches!(kind, Kind::TrafficPolicy | Kind::ExternalAuthorizer);
    if let Some(field) = unknown.filter(|_| is_ours || kind.route().is_some()) {
        return Err(Problem::new(FieldPath::of("metadata").key(field), "unknown field"));
    }
    let name = text(object, &["metadata", "name"]).filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| Problem::new(FieldPath::of("metadata.name"), "missing, or not a text"))?;
    let namespace = match kind {
        Kind::Namespace | Kind::Node => "",
        Kind::Pod
        | Kind::Service
        | Kind::EndpointSlice
        | Kind::HttpRoute
        | Kind::GrpcRoute
        | Kind::TcpRoute
        | Kind::TlsRoute
        | Kind::ReferenceGrant
        | Kind::PeerAuthentication
        | Kind::AuthorizationPolicy
        | Kind::RequestAuthentication
        | Kind::TrafficPolicy
        | Kind::ExternalAuthorizer => namespace(object)?,
    };
    Ok(Key { kind, namespace: namespace.to_string(), name: name.to_string() })
}

/// metadata.namespace, `default` when absent.
pub fn namespace(object: &Value) -> Result<&str, Problem> {
    match object.get("metadata").and_then(|metadata| metadata.get("namespace")) {
        None => Ok("default"),
        Some(Value::String(namespace)) if !namespace.is_empty() => Ok(namespace),
        Some(_) => Err(Problem::new(FieldPath::of("metadata.namespace"), "not a text, or empty")),
    }
}

/// Reads an object's body. None for an object that says nothing to the mesh, such as a pod that ended.
pub fn read(key: &Key, object: &Value, trust_domain: &str) -> Result<Taken, Problem> {
    match key.kind {
        Kind::Namespace => translate::namespace(&typed::<Namespace>(object)?).map(Taken::from),
        Kind::Node => translate::node(&typed::<Node>(object)?, key).map(Taken::from),
        Kind::Pod => translate::pod(&typed::<Pod>(object)?, key, trust_domain),
        Kind::Service => translate::service(&typed::<Service>(object)?, key).map(Taken::from),
        Kind::EndpointSlice => translate::endpoint_slice(&typed::<EndpointSlice>(object)?, key).map(Taken::from),
        Kind::HttpRoute => {
            versioned(object, &[&in_gateway_api("v1"), &in_gateway_api("v1beta1")])?;
            translate::http_route(&typed(object)?, key)
        }
        Kind::GrpcRoute => {
            versioned(object, &[&in_gateway_api("v1")])?;
            translate::grpc_route(&typed(object)?, key)
        }
        Kind::TcpRoute => {
            versioned(object, &[&in_gateway_api("v1")])?;
            translate::tcp_route(&typed(object)?, key)
        }
        Kind::TlsRoute => {
            versioned(object, &[&in_gateway_api("v1")])?;
            translate::tls_route(&typed(object)?, key)
        }
        Kind::ReferenceGrant => {
            versioned(object, &[&in_gateway_api("v1"), &in_gateway_api("v1beta1")])?;
            translate::reference_grant(&typed(object)?).map(Taken::from)
        }
        Kind::PeerAuthentication => {
            ours(object)?;
            translate::peer_authentication(&typed::<PeerAuthentication>(object)?, key).map(Taken::from)
        }
        Kind::AuthorizationPolicy => {
            ours(object)?;
            translate::authorization_policy(&typed::<AuthorizationPolicy>(object)?, key, trust_domain).map(Taken::from)
        }
        Kind::RequestAuthentication => {
            ours(object)?;
            translate::request_authentication(&typed::<RequestAuthentication>(object)?, key).map(Taken::from)
        }
        Kind::ExternalAuthorizer => {
            ours(object)?;
            let authorizer = translate::external_authorizer(&typed::<ExternalAuthorizer>(object)?, key)?;
            Ok(Item::ExternalAuthorizer(authorizer.into()).into())
        }
        Kind::TrafficPolicy => {
            ours(object)?;
            let policy = translate::traffic_policy(&typed::<TrafficPolicy>(object)?, key)?;
            Ok(Item::TrafficPolicy(policy.into()).into())
        }
    }
}

fn ours(object: &Value) -> Result<(), Problem> {
    versioned(object, &[&format!("{GROUP}/{VERSION}")])
}

fn in_gateway_api(version: &str) -> String {
    format!("{}/{version}", gateway::GROUP)
}

/// What the types do not refuse by themselves: another version, and unknown fields at the top.
fn versioned(object: &Value, versions: &[&str]) -> Result<(), Problem> {
    let api_version = text(object, &["apiVersion"]).unwrap_or_default();
    if !versions.contains(&api_version) {
        let expected = versions.first().copied().unwrap_or_default();
        let reason = format!("{api_version} is not a version that this agent reads; {expected} is");
        return Err(Problem::new(FieldPath::of("apiVersion"), reason));
    }
    let known = ["apiVersion", "kind", "metadata", "spec", "status"];
    let unknown = object.as_object().and_then(|map| map.keys().find(|key| !known.contains(&key.as_str())));
    match unknown {
        Some(key) => Err(Problem::new(FieldPath::default().key(key), "unknown field")),
        None => Ok(()),
    }
}

/// Reads a value as what it should be; the first field that is not is named.
pub fn typed<T: DeserializeOwned>(object: &Value) -> Result<T, Problem> {
    serde_path_to_error::deserialize(object).map_err(|error| {
        let mut steps = Vec::new();
        for segment in error.path() {
            match segment {
                serde_path_to_error::Segment::Seq { index } => steps.push(Step::Index(*index)),
                serde_path_to_error::Segment::Map { key } => steps.push(Step::Key(key.clone())),
                serde_path_to_error::Segment::Enum { .. } | serde_path_to_error::Segment::Unknown => {}
            }
        }
        Problem::new(FieldPath(steps), error.inner().to_string())
    })
}

/// A text below a chain of keys.
pub fn text<'a>(object: &'a Value, keys: &[&str]) -> Option<&'a str> {
    keys.iter().try_fold(object, |value, key| value.get(key))?.as_str()
}
