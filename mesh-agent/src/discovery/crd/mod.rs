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
    let yaml = |definition: CustomResourceDefinition| {
        serde_saphyr::to_string(&described(definition)).map(|yaml: String| format!("{header}{yaml}"))
    };
    Ok(vec![
        ("authorizationpolicies.yaml", yaml(AuthorizationPolicy::crd())?),
        ("externalauthorizers.yaml", yaml(ExternalAuthorizer::crd())?),
        ("peerauthentications.yaml", yaml(PeerAuthentication::crd())?),
        ("requestauthentications.yaml", yaml(RequestAuthentication::crd())?),
        ("trafficpolicies.yaml", yaml(TrafficPolicy::crd())?),
    ])
}

/// What `kubectl explain` says of a kind is what its spec is for, and numbers have the formats that Kubernetes knows.
fn described(mut definition: CustomResourceDefinition) -> CustomResourceDefinition {
    let schemas = definition.spec.versions.iter_mut().filter_map(|version| version.schema.as_mut());
    for schema in schemas.filter_map(|schema| schema.open_api_v3_schema.as_mut()) {
        let spec = schema.properties.as_ref().and_then(|properties| properties.get("spec"));
        schema.description = spec.and_then(|spec| spec.description.clone());
        known_formats(schema);
    }
    definition
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
