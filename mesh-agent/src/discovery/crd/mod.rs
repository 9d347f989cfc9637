//! Our own Kubernetes resources, group `nodemesh.dev/v1alpha1`. `manifests/crds/` is generated from these types.
//!
//! Every field that is not known here is refused: a misspelt restriction must not vanish. What a type cannot say (which
//! target kinds go with which object, what a source type needs) is checked in `translate`.

mod authorization;
mod authorizer;
mod peer;
mod request;
mod rules;
mod status;
mod target;
mod traffic;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray,
};
use kube::CustomResourceExt;
use schemars::{Schema, schema_for};
use serde_json::Value;

pub use authorization::{
    AuthorizationPolicy, AuthorizationPolicySpec, IpBlockSource, PolicyAction, PolicyCondition, PolicyGrpc,
    PolicyProvider, PolicyRequest, PolicyRule, PolicySource, ServiceAccountSource, SourceType,
};
pub use authorizer::{
    AuthorizerBody, AuthorizerHeader, AuthorizerProtocol, AuthorizerService, ExternalAuthorizer, ExternalAuthorizerSpec,
};
pub use peer::{PeerAuthentication, PeerAuthenticationSpec, PeerMode, PortOverride, SameNode};
pub use request::{JwtHeader, JwtOutput, JwtRule, RequestAuthentication, RequestAuthenticationSpec};
pub use status::{AncestorRef, AuthorizerStatus, PolicyAncestorStatus, PolicyStatus};
pub use target::{LabelExpression, LabelOperator, PodSelector, TargetKind, TargetRef};
pub use traffic::{
    Algorithm, ConnectionLimits, ConsistentHash, CookieLifetime, ExponentialDelay, FaultAbort, FaultDelay, FaultShare,
    GrpcCode, HashSource, LoadBalancing, LocalityMode, LocalityWeights, OutlierDetection, RateKeyType, RetryMethods,
    RetryOn, RetryRate, SuccessRateDetection, TrafficFault, TrafficLocality, TrafficMatch, TrafficPath, TrafficPolicy,
    TrafficPolicySpec, TrafficRateKey, TrafficRateLimit, TrafficRateScope, TrafficRetry, TrafficRetryBudget,
    TrafficSession, TrafficSessionType, TrafficSource, TrafficTargetKind, TrafficTargetRef, TrafficTimeouts, UnderWay,
    UniformDelay,
};

/// The API group of our resources.
pub const GROUP: &str = "nodemesh.dev";
/// The only version so far.
pub const VERSION: &str = "v1alpha1";

/// Every CustomResourceDefinition as (file name, YAML), as committed under `manifests/crds/`.
pub fn manifests() -> Result<Vec<(&'static str, String)>, serde_saphyr::SerializeError> {
    let header = "# Generated from mesh-agent/src/discovery/crd; do not edit.\n";
    let yaml = |definition: CustomResourceDefinition, spec: Schema| {
        let definition = described(definition, spec.as_value());
        serde_saphyr::to_string(&definition).map(|yaml: String| format!("{header}{yaml}"))
    };
    Ok(vec![
        ("authorizationpolicies.yaml", yaml(AuthorizationPolicy::crd(), schema_for!(AuthorizationPolicySpec))?),
        ("externalauthorizers.yaml", yaml(ExternalAuthorizer::crd(), schema_for!(ExternalAuthorizerSpec))?),
        ("peerauthentications.yaml", yaml(PeerAuthentication::crd(), schema_for!(PeerAuthenticationSpec))?),
        ("requestauthentications.yaml", yaml(RequestAuthentication::crd(), schema_for!(RequestAuthenticationSpec))?),
        ("trafficpolicies.yaml", yaml(TrafficPolicy::crd(), schema_for!(TrafficPolicySpec))?),
    ])
}

/// What `kubectl explain` says of a kind is what its spec is for, and numbers have the formats that Kubernetes knows.
fn described(mut definition: CustomResourceDefinition, written: &Value) -> CustomResourceDefinition {
    let schemas = definition.spec.versions.iter_mut().filter_map(|version| version.schema.as_mut());
    for schema in schemas.filter_map(|schema| schema.open_api_v3_schema.as_mut()) {
        if let Some(spec) = schema.properties.as_mut().and_then(|properties| properties.get_mut("spec")) {
            field_words(spec, written, written);
            schema.description = spec.description.clone();
        }
        known_formats(schema);
    }
    definition
}

/// What is written at a field, in place of what is written at its type: the type does not know what holds where the field
/// is absent. `all` has the types that `written` refers to.
fn field_words(schema: &mut JSONSchemaProps, written: &Value, all: &Value) {
    for (name, field) in schema.properties.iter_mut().flatten() {
        let Some(written) = written.get("properties").and_then(|fields| fields.get(name)) else { continue };
        if let Some(words) = written.get("description").and_then(Value::as_str) {
            field.description = Some(words.to_string());
        }
        field_words(field, type_of(written, all), all);
    }
    if let (Some(JSONSchemaPropsOrArray::Schema(items)), Some(written)) = (&mut schema.items, written.get("items")) {
        field_words(items, type_of(written, all), all);
    }
}

/// The type that a schema refers to, itself or as one of two with null.
fn type_of<'a>(written: &'a Value, all: &'a Value) -> &'a Value {
    let either = written.get("anyOf").and_then(|either| either.get(0)).unwrap_or(written);
    let name = either.get("$ref").and_then(Value::as_str).and_then(|name| name.strip_prefix("#/$defs/"));
    name.and_then(|name| all.get("$defs")?.get(name)).unwrap_or(either)
}

fn known_formats(schema: &mut JSONSchemaProps) {
    match schema.format.as_deref() {
        Some("uint16") => schema.format = Some("int32".to_string()),
        Some("uint32" | "uint64") => schema.format = Some("int64".to_string()),
        Some(_) | None => {}
    }
    schema.properties.iter_mut().flat_map(|properties| properties.values_mut()).for_each(known_formats);
    match schema.items.as_mut() {
        Some(JSONSchemaPropsOrArray::Schema(items)) => known_formats(items),
        Some(JSONSchemaPropsOrArray::Schemas(items)) => items.iter_mut().for_each(known_formats),
        None => {}
    }
}
