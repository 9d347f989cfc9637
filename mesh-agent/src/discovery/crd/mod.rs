//! Our own Kubernetes resources, group `nodemesh.dev/v1alpha1`. `manifests/crds/` is generated from these types.
//!
//! Every field that is not known here is refused: a misspelt restriction must not vanish. What a type cannot say (which
//! target kinds go with which object, what a source type needs) is checked in `translate`.

mod authorization;
mod authorizer;
mod peer;
mod request;
mod target;
mod traffic;

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
    let with_header = |yaml: String| format!("{header}{yaml}");
    Ok(vec![
        ("authorizationpolicies.yaml", serde_saphyr::to_string(&AuthorizationPolicy::crd()).map(with_header)?),
        ("externalauthorizers.yaml", serde_saphyr::to_string(&ExternalAuthorizer::crd()).map(with_header)?),
        ("peerauthentications.yaml", serde_saphyr::to_string(&PeerAuthentication::crd()).map(with_header)?),
        ("requestauthentications.yaml", serde_saphyr::to_string(&RequestAuthentication::crd()).map(with_header)?),
        ("trafficpolicies.yaml", serde_saphyr::to_string(&TrafficPolicy::crd()).map(with_header)?),
    ])
}
