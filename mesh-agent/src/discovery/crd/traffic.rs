//! TrafficPolicy: load balancing, limits, retries, rate limits, faults.
//!
//! Durations are those of Gateway API (GEP-2257): `1h30m`, `10s`, `500ms`. docs/traffic.md says what each field does.

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{PolicyStatus, rules};

/// How the requests to a Service, or those of a route, are treated. Of two policies on one target the oldest counts.
/// Where a Service and a route have one each, timeouts, retry, faults and sessionPersistence of the route's count, and
/// rate limits of both.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "nodemesh.dev",
    version = "v1alpha1",
    kind = "TrafficPolicy",
    namespaced,
    shortname = "traffic",
    category = "nodemesh"
)]
#[kube(status = "PolicyStatus")]
#[kube(printcolumn = r#"{"name": "Targets", "type": "string", "jsonPath": ".spec.targetRefs[*].name"}"#)]
#[kube(
    printcolumn = r#"{"name": "Accepted", "type": "string", "jsonPath": ".status.ancestors[0].conditions[?(@.type=='Accepted')].status"}"#
)]
#[kube(printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}"#)]
#[schemars(extend("x-kubernetes-validations" = rules::rules(rules::TRAFFIC)))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficPolicySpec {
    /// What it applies to, in its own namespace: Services, HTTPRoutes, GRPCRoutes.
    #[schemars(length(min = 1, max = 16))]
    pub target_refs: Vec<TrafficTargetRef>,
    /// Which endpoint a request goes to. Targets of kind Service only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancing: Option<LoadBalancing>,
    /// How much may be under way from a node. Targets of kind Service only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection_limits: Option<ConnectionLimits>,
    /// When an endpoint is left out for a while. Targets of kind Service only. Absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outlier_detection: Option<OutlierDetection>,
    /// How long things may take. Answered with 504.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<TrafficTimeouts>,
    /// What is tried again. Absent: nothing. What an HTTPRoute's own `retry` says goes before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<TrafficRetry>,
    /// How many retries there may be, whoever asks for them (GEP-3388). Targets of kind Service only. Beyond it: 503.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_budget: Option<TrafficRetryBudget>,
    /// How many requests pass. All limits about a request must have room. Answered with 429.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub rate_limits: Vec<TrafficRateLimit>,
    /// What goes wrong on purpose.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub faults: Vec<TrafficFault>,
    /// A client comes to the same endpoint again (GEP-1619).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_persistence: Option<TrafficSession>,
}

/// What a policy applies to, in its own namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules::rules(rules::TRAFFIC_TARGET)))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficTargetRef {
    /// Empty for Service; gateway.networking.k8s.io for routes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Service, HTTPRoute or GRPCRoute.
    pub kind: TrafficTargetKind,
    /// The name.
    #[schemars(length(min = 1, max = 253), pattern(r"^[a-z0-9.-]+$"))]
    pub name: String,
}

/// What a TrafficPolicy can apply to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TrafficTargetKind {
    /// Requests to a Service, by whatever route.
    Service,
    /// Requests that a rule of the route matched.
    #[serde(rename = "HTTPRoute")]
    HttpRoute,
    /// Requests that a rule of the route matched.
    #[serde(rename = "GRPCRoute")]
    GrpcRoute,
}

/// Which endpoint a request goes to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules::rules(rules::LOAD_BALANCING)))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LoadBalancing {
    /// Absent: PeakEwma.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub algorithm: Option<Algorithm>,
    /// For ConsistentHash, required: what is hashed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistent_hash: Option<ConsistentHash>,
    /// Whether near endpoints come first. Absent: distance plays no part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locality: Option<TrafficLocality>,
    /// A duration over which a new endpoint comes to its full load. Absent: at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(pattern(r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"))]
    pub slow_start: Option<String>,
    /// Percent of endpoints in use, below which ejections are ignored; 0: never. Absent: 30.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 100))]
    pub panic_threshold: Option<u32>,
}

/// How an endpoint is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Algorithm {
    /// Of two at random the one with the smaller product of latency and requests under way.
    PeakEwma,
    /// Of two at random the one with fewer requests under way.
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// Any.
    Random,
    /// The one that a key of the request leads to.
    ConsistentHash,
}

/// What is hashed: exactly one. A request without it goes where PeakEwma sends it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules::rules(rules::CONSISTENT_HASH)))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConsistentHash {
    /// The first value of this header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// This cookie. The mesh does not set it; sessionPersistence does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cookie: Option<String>,
    /// Who calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<HashSource>,
}

/// By what a caller is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum HashSource {
    /// The IP of the calling pod.
    #[serde(rename = "IP")]
    Ip,
    /// The service account of the calling pod.
    Identity,
}

/// Whether near endpoints come first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules::rules(rules::LOCALITY)))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficLocality {
    /// How.
    pub mode: LocalityMode,
    /// For Weighted, required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<LocalityWeights>,
}

/// How distance counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LocalityMode {
    /// This node, then this zone, then elsewhere, as endpoints fail.
    Failover,
    /// By weight, as far as endpoints are healthy.
    Weighted,
}

/// Shares of places; only their relation counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LocalityWeights {
    /// The caller's node.
    #[serde(default)]
    #[schemars(range(max = 1_000_000))]
    pub node: u32,
    /// Other nodes of the caller's zone.
    #[serde(default)]
    #[schemars(range(max = 1_000_000))]
    pub zone: u32,
    /// Everything else.
    #[serde(default)]
    #[schemars(range(max = 1_000_000))]
    pub elsewhere: u32,
}

/// Limits of one node: what its pods together may have under way. Beyond: 503.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules::rules(rules::CONNECTION_LIMITS)))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConnectionLimits {
    /// To the Service as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<UnderWay>,
    /// To each endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<UnderWay>,
}

/// How much may be under way; absent: any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UnderWay {
    /// Connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_connections: Option<u32>,
    /// Requests that wait for a connection; 0: none waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_pending: Option<u32>,
    /// Requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_requests: Option<u32>,
    /// Retries. Of `service` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_retries: Option<u32>,
}

/// When an endpoint is left out for a while.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OutlierDetection {
    /// 5xx answers and failures in a row; 0 or absent: not for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consecutive5xx: Option<u32>,
    /// 502, 503, 504, failed connections, resets and timeouts in a row; 0: not for that. Absent: 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consecutive_gateway_errors: Option<u32>,
    /// A success rate far below the others'. Absent: not for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub success_rate: Option<SuccessRateDetection>,
    /// A duration: how often success rates are compared, and an ejection is forgiven. Absent: 10s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(pattern(r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"))]
    pub interval: Option<String>,
    /// The duration of the first ejection; the n-th is n times as long. Absent: 30s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), pattern(r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"))]
    #[schemars(extend("x-kubernetes-validations" = rules::within("10ms", "24h")))]
    pub base_ejection_time: Option<String>,
    /// The duration of the longest ejection. Absent: 300s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), pattern(r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"))]
    #[schemars(extend("x-kubernetes-validations" = rules::within("10ms", "24h")))]
    pub max_ejection_time: Option<String>,
    /// The percentage of endpoints that may be ejected at a time; one of two in any case. Absent: 50.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 100))]
    pub max_ejection_percent: Option<u32>,
}

/// How success rates are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SuccessRateDetection {
    /// Endpoints that must have enough requests. Absent: 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 2))]
    pub minimum_endpoints: Option<u32>,
    /// Requests of an interval that are enough. Absent: 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub minimum_requests: Option<u32>,
    /// How far below the mean, in thousandths of the standard deviation. Absent: 1900.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub deviation_thousandths: Option<u32>,
}

/// Durations; zero or absent: no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficTimeouts {
    /// From the request to the end of the response, retries included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(pattern(r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"))]
    pub request: Option<String>,
    /// From one try's request to the headers of its response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(pattern(r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"))]
    pub per_try: Option<String>,
    /// Without a byte in either direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(pattern(r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"))]
    pub idle: Option<String>,
    /// Of a connection to an endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(pattern(r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"))]
    pub connect: Option<String>,
}

/// What is tried again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficRetry {
    /// Tries after the first. Absent: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10))]
    pub attempts: Option<u32>,
    /// Status codes, 400 to 599. Absent: 502, 503, 504.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), inner(range(min = 400, max = 599)))]
    pub codes: Option<Vec<u16>>,
    /// States of gRPC calls, which are then made again though they may have been carried out. Absent: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub grpc_codes: Vec<GrpcCode>,
    /// What else. Absent: all of these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4))]
    pub on: Option<Vec<RetryOn>>,
    /// Which methods, after an outcome that does not say whether the request was carried out. Absent: Idempotent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub methods: Option<RetryMethods>,
    /// The duration of the shortest pause before the first retry; each further one is twice as long. Absent: 25ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), pattern(r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"))]
    #[schemars(extend("x-kubernetes-validations" = rules::within("1ms", "1h")))]
    pub backoff: Option<String>,
    /// The duration of the longest pause. Absent: ten times `backoff`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), pattern(r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"))]
    #[schemars(extend("x-kubernetes-validations" = rules::within("1ms", "1h")))]
    pub max_backoff: Option<String>,
    /// How much of a body is kept; a request with a longer one is sent once. Absent and at most: 65536.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 65536))]
    pub max_body_bytes: Option<u32>,
}

/// An outcome without a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RetryOn {
    /// No connection: any method.
    ConnectFailure,
    /// The endpoint says that it did not look at the request: any method.
    RefusedStream,
    /// The connection ended before a response.
    Reset,
    /// `timeouts.perTry`.
    PerTryTimeout,
}

/// Methods that may be sent twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RetryMethods {
    /// GET, HEAD, OPTIONS, TRACE, PUT, DELETE.
    Idempotent,
    /// Any: the application recognises a request that it has seen.
    All,
}

/// States of gRPC calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum GrpcCode {
    /// 1
    Cancelled,
    /// 2
    Unknown,
    /// 3
    InvalidArgument,
    /// 4
    DeadlineExceeded,
    /// 5
    NotFound,
    /// 6
    AlreadyExists,
    /// 7
    PermissionDenied,
    /// 8
    ResourceExhausted,
    /// 9
    FailedPrecondition,
    /// 10
    Aborted,
    /// 11
    OutOfRange,
    /// 12
    Unimplemented,
    /// 13
    Internal,
    /// 14
    Unavailable,
    /// 15
    DataLoss,
    /// 16
    Unauthenticated,
}

/// GEP-3388
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficRetryBudget {
    /// The percentage of all requests that may be retries. Absent: 20.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 100))]
    pub percent: Option<u32>,
    /// The duration over which that is taken, 1s to 1h. Absent: 10s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(pattern(r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"))]
    pub interval: Option<String>,
    /// Retries that are allowed however few requests there are. Absent: 10 in 1s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_retry_rate: Option<RetryRate>,
}

/// So many in a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetryRate {
    /// Retries.
    #[schemars(range(max = 1_000_000))]
    pub count: u32,
    /// The duration, 10ms to 1h. Absent: 1s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(pattern(r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"))]
    pub interval: Option<String>,
}

/// How many requests pass.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules::rules(rules::RATE_LIMIT)))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficRateLimit {
    /// Its name in answers, logs and metrics: lower-case letters, digits and `-`.
    #[schemars(length(min = 1, max = 63), pattern(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Requests...
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub requests: u32,
    /// ...in this duration, 10ms to 24h. Absent: 1s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), pattern(r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"))]
    #[schemars(extend("x-kubernetes-validations" = rules::within("10ms", "24h")))]
    pub per: Option<String>,
    /// Requests that may come at once. Absent: `requests`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub burst: Option<u32>,
    /// What has a limit of its own. Absent: all requests to the target have one together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<TrafficRateKey>,
    /// With key All: no identity can take what is due to another.
    #[serde(default)]
    pub fair: bool,
    /// Absent: Node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<TrafficRateScope>,
    /// Requests that it is about. Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<TrafficMatch>,
}

/// What has a limit of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules::rules(rules::RATE_KEY)))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficRateKey {
    /// By what.
    #[serde(rename = "type")]
    pub key_type: RateKeyType,
    /// For type Header, required: its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
}

/// By what requests are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RateKeyType {
    /// Not at all.
    All,
    /// The service account of the caller. Callers without identity are one.
    SourceIdentity,
    /// The namespace of the caller. Callers without identity are one.
    SourceNamespace,
    /// A header. Requests without it are one.
    Header,
}

/// Of what a rate holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TrafficRateScope {
    /// Every node has the whole rate.
    Node,
    /// Every node has a share: rate × ready endpoints there ÷ all ready endpoints.
    Mesh,
}

/// All that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficMatch {
    /// One of these methods.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub methods: Vec<String>,
    /// One of these paths.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub paths: Vec<TrafficPath>,
    /// Each of these headers: a value, or empty for any.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(length(max = 16))]
    pub headers: BTreeMap<String, String>,
    /// One of these callers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub sources: Vec<TrafficSource>,
}

/// A path without its query: exactly one of the two.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules::rules(rules::TRAFFIC_PATH)))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficPath {
    /// The whole path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(pattern(r"^/"))]
    pub exact: Option<String>,
    /// Whole segments, as in an HTTPRoute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(pattern(r"^/"))]
    pub prefix: Option<String>,
}

/// A caller, by the identity of the connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficSource {
    /// The namespace. Absent: that of the policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The service account. Absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<String>,
}

/// What goes wrong on purpose; a delay, an abort or both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules::rules(rules::FAULT)))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficFault {
    /// Its name in logs and metrics: lower-case letters, digits and `-`.
    #[schemars(length(min = 1, max = 63), pattern(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Requests that it is about. Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<TrafficMatch>,
    /// Requests wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<FaultDelay>,
    /// Requests are answered by the mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abort: Option<FaultAbort>,
}

/// How long, and how many: exactly one of fixed, uniform and exponential.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules::rules(rules::FAULT_DELAY)))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultDelay {
    /// How many. Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<FaultShare>,
    /// A duration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), pattern(r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"))]
    #[schemars(extend("x-kubernetes-validations" = rules::within("1ms", "300s")))]
    pub fixed: Option<String>,
    /// Anything between two durations, equally likely.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uniform: Option<UniformDelay>,
    /// Many short, few long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exponential: Option<ExponentialDelay>,
}

/// Between two durations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UniformDelay {
    /// The shortest.
    #[schemars(pattern(r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"))]
    pub min: String,
    /// The longest.
    #[schemars(pattern(r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"))]
    pub max: String,
}

/// An exponential distribution, cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExponentialDelay {
    /// The mean before the cut.
    #[schemars(pattern(r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"))]
    pub mean: String,
    /// Longer ones are cut to this. Absent: 300s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(pattern(r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"))]
    pub max: Option<String>,
}

/// What is answered, and how often: exactly one of httpStatus and grpcStatus.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules::rules(rules::FAULT_ABORT)))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultAbort {
    /// How many. Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<FaultShare>,
    /// A status code, 200 to 599.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 200, max = 599))]
    pub http_status: Option<u16>,
    /// The state of a gRPC call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc_status: Option<GrpcCode>,
}

/// So many of so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules::rules(rules::FAULT_SHARE)))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultShare {
    /// At most `denominator`.
    pub numerator: u32,
    /// Absent: 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub denominator: Option<u32>,
}

/// GEP-1619
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules::rules(rules::SESSION)))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficSession {
    /// The name of the cookie or header.
    #[schemars(length(min = 1, max = 128))]
    pub session_name: String,
    /// Absent: Cookie.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub session_type: Option<TrafficSessionType>,
    /// Of a cookie. Absent: Session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cookie_lifetime: Option<CookieLifetime>,
    /// A duration, required for a permanent cookie.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(pattern(r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"))]
    pub absolute_timeout: Option<String>,
}

/// Where a session is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TrafficSessionType {
    /// In a cookie that the mesh sets.
    Cookie,
    /// In a header that the client sends back.
    Header,
}

/// How long a cookie lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CookieLifetime {
    /// As long as the client runs.
    Session,
    /// For `absoluteTimeout`.
    Permanent,
}
