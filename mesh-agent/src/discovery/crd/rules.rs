//! Rules in CEL (x-kubernetes-validations) for what a schema cannot say: an API server refuses at once what `translate`
//! would. What a rule cannot see (the object's own namespace, other objects, keys and patterns that have to be parsed) is
//! said by the object's status instead.

use serde_json::{Value, json};

/// A rule of a type: the field that is at fault (empty: the whole), what must hold, and what to say where it does not.
pub type Rule = (&'static str, &'static str, &'static str);

/// Rules, as a schema has them.
pub fn rules(rules: &[Rule]) -> Vec<Value> {
    rules.iter().copied().map(one).collect()
}

fn one((field, rule, message): Rule) -> Value {
    match field {
        "" => json!({"rule": rule, "message": message}),
        field => json!({"rule": rule, "message": message, "fieldPath": format!(".{field}")}),
    }
}

/// A duration within bounds.
pub fn within(shortest: &str, longest: &str) -> Vec<Value> {
    let rule = format!("duration(self) >= duration('{shortest}') && duration(self) <= duration('{longest}')");
    vec![json!({"rule": rule, "message": format!("{shortest} to {longest}")})]
}

pub const AUTHORIZATION: &[Rule] = &[
    ("provider", "self.action != 'CUSTOM' || has(self.provider)", "action CUSTOM needs it"),
    ("provider", "self.action == 'CUSTOM' || !has(self.provider)", "goes with action CUSTOM only"),
];

pub const REQUEST: &[Rule] = &[(
    "",
    "has(self.hosts) || has(self.notHosts) || has(self.methods) || has(self.notMethods) || has(self.paths) || \
     has(self.notPaths) || has(self.grpc) || has(self.notGrpc)",
    "empty: name hosts, methods, paths or grpc, or leave requests out",
)];

pub const GRPC: &[Rule] = &[("", "has(self.service) || has(self.method)", "empty: name a service, a method or both")];

pub const CONDITION: &[Rule] =
    &[("", "has(self.values) || has(self.notValues)", "neither values nor notValues is set: it would ask for nothing")];

pub const SOURCE: &[Rule] = &[
    (
        "serviceAccount",
        "(self.type == 'ServiceAccount') == has(self.serviceAccount)",
        "goes with type ServiceAccount, which needs it",
    ),
    ("spiffe", "(self.type == 'SPIFFE') == has(self.spiffe)", "goes with type SPIFFE, which needs it"),
    ("namespace", "(self.type == 'Namespace') == has(self.namespace)", "goes with type Namespace, which needs it"),
    ("ipBlock", "(self.type == 'IPBlock') == has(self.ipBlock)", "goes with type IPBlock, which needs it"),
];

pub const IP_BLOCK: &[Rule] =
    &[("cidr", "isCIDR(self.cidr) || isIP(self.cidr)", "is not a range such as 10.0.0.0/8 or fd00::/8")];

pub const TARGET: &[Rule] = &[
    ("group", "!has(self.group) || self.group == ''", "only kinds of the core group can be targets"),
    ("name", "self.kind != 'Pod' || !has(self.name)", "pods are selected by labels, not by name"),
    ("selector", "self.kind != 'Pod' || has(self.selector)", "kind Pod needs it; {} selects all pods"),
    ("selector", "self.kind == 'Pod' || !has(self.selector)", "goes with kind Pod only"),
    ("name", "self.kind != 'Service' || has(self.name)", "kind Service needs it"),
];

pub const LABEL: &[Rule] = &[
    (
        "values",
        "!(self.operator in ['In', 'NotIn']) || (has(self.values) && size(self.values) > 0)",
        "In and NotIn need at least one value",
    ),
    (
        "values",
        "self.operator in ['In', 'NotIn'] || !has(self.values) || size(self.values) == 0",
        "Exists and DoesNotExist take no values",
    ),
];

pub const PEER: &[Rule] = &[
    (
        "targetRefs",
        "self.targetRefs.all(target, target.kind != 'Service')",
        "a PeerAuthentication applies to kind Pod or Namespace",
    ),
    (
        "portOverrides",
        "!has(self.portOverrides) || size(self.portOverrides) == 0 || self.targetRefs.all(target, target.kind == 'Pod')",
        "port overrides need targets of kind Pod with a selector, and no others",
    ),
    (
        "mode",
        "has(self.mode) || has(self.sameNode) || (has(self.portOverrides) && size(self.portOverrides) > 0)",
        "none of mode, portOverrides and sameNode is set",
    ),
];

pub const JWT: &[Rule] = &[
    ("jwks", "has(self.jwks) || has(self.jwksUri)", "neither jwks nor jwksUri is set"),
    ("jwksUri", "!(has(self.jwks) && has(self.jwksUri))", "does not go with jwks"),
];

pub const JWT_RULES: &[Rule] = &[(
    "",
    "self.all(rule, self.exists_one(other, other.issuer == rule.issuer))",
    "two rules are about the same issuer",
)];

pub const AUTHORIZER: &[Rule] = &[
    ("pathPrefix", "self.protocol == 'HTTP' || !has(self.pathPrefix)", "goes with protocol HTTP only"),
    (
        "includeRequestHeadersInCheck",
        "self.protocol == 'HTTP' || !has(self.includeRequestHeadersInCheck) || size(self.includeRequestHeadersInCheck) == 0",
        "goes with protocol HTTP only",
    ),
    (
        "includeAdditionalHeadersInCheck",
        "self.protocol == 'HTTP' || !has(self.includeAdditionalHeadersInCheck) || size(self.includeAdditionalHeadersInCheck) == 0",
        "goes with protocol HTTP only",
    ),
    (
        "headersToUpstreamOnAllow",
        "self.protocol == 'HTTP' || !has(self.headersToUpstreamOnAllow) || size(self.headersToUpstreamOnAllow) == 0",
        "goes with protocol HTTP only",
    ),
    (
        "headersToDownstreamOnDeny",
        "self.protocol == 'HTTP' || !has(self.headersToDownstreamOnDeny)",
        "goes with protocol HTTP only",
    ),
];

const SERVICES_ALONE: &str = "is about endpoints: only with targets of kind Service";

pub const TRAFFIC: &[Rule] = &[
    ("loadBalancing", "!has(self.loadBalancing) || self.targetRefs.all(t, t.kind == 'Service')", SERVICES_ALONE),
    ("connectionLimits", "!has(self.connectionLimits) || self.targetRefs.all(t, t.kind == 'Service')", SERVICES_ALONE),
    ("outlierDetection", "!has(self.outlierDetection) || self.targetRefs.all(t, t.kind == 'Service')", SERVICES_ALONE),
    ("retryBudget", "!has(self.retryBudget) || self.targetRefs.all(t, t.kind == 'Service')", SERVICES_ALONE),
    (
        "targetRefs",
        "self.targetRefs.all(one, self.targetRefs.exists_one(other, other.kind == one.kind && other.name == one.name))",
        "is named twice",
    ),
    (
        "rateLimits",
        "!has(self.rateLimits) || self.rateLimits.all(one, self.rateLimits.exists_one(other, other.name == one.name))",
        "two have the same name",
    ),
    (
        "faults",
        "!has(self.faults) || self.faults.all(one, self.faults.exists_one(other, other.name == one.name))",
        "two have the same name",
    ),
];

pub const TRAFFIC_TARGET: &[Rule] = &[
    ("group", "self.kind != 'Service' || !has(self.group) || self.group == ''", "the group of Service is empty"),
    (
        "group",
        "self.kind == 'Service' || (has(self.group) && self.group == 'gateway.networking.k8s.io')",
        "the group of routes is gateway.networking.k8s.io",
    ),
];

pub const LOAD_BALANCING: &[Rule] = &[
    (
        "consistentHash",
        "!(has(self.algorithm) && self.algorithm == 'ConsistentHash') || has(self.consistentHash)",
        "algorithm ConsistentHash needs it",
    ),
    (
        "consistentHash",
        "(has(self.algorithm) && self.algorithm == 'ConsistentHash') || !has(self.consistentHash)",
        "goes with algorithm ConsistentHash only",
    ),
    (
        "locality",
        "!(has(self.algorithm) && self.algorithm == 'ConsistentHash') || !has(self.locality)",
        "a hash knows no distance: not with algorithm ConsistentHash",
    ),
];

pub const CONSISTENT_HASH: &[Rule] = &[(
    "",
    "[has(self.header), has(self.cookie), has(self.source)].filter(given, given).size() == 1",
    "exactly one of header, cookie, source",
)];

pub const LOCALITY: &[Rule] = &[
    ("weights", "self.mode != 'Weighted' || has(self.weights)", "mode Weighted needs them"),
    ("weights", "self.mode == 'Weighted' || !has(self.weights)", "go with mode Weighted only"),
];

pub const CONNECTION_LIMITS: &[Rule] = &[(
    "endpoint",
    "!has(self.endpoint) || !has(self.endpoint.maxRetries)",
    "maxRetries: a retry goes to another endpoint, so only of the Service",
)];

pub const RATE_LIMIT: &[Rule] = &[(
    "fair",
    "!has(self.fair) || !self.fair || !has(self.key) || self.key.type == 'All'",
    "with key All only: another key is a limit for each already",
)];

pub const RATE_KEY: &[Rule] =
    &[("header", "(self.type == 'Header') == has(self.header)", "goes with type Header, which needs it")];

pub const TRAFFIC_PATH: &[Rule] = &[("", "has(self.exact) != has(self.prefix)", "exactly one of exact, prefix")];

pub const FAULT: &[Rule] = &[("", "has(self.delay) || has(self.abort)", "missing: delay, abort or both")];

pub const FAULT_DELAY: &[Rule] = &[(
    "",
    "[has(self.fixed), has(self.uniform), has(self.exponential)].filter(given, given).size() == 1",
    "exactly one of fixed, uniform, exponential",
)];

pub const FAULT_ABORT: &[Rule] =
    &[("", "has(self.httpStatus) != has(self.grpcStatus)", "exactly one of httpStatus, grpcStatus")];

pub const FAULT_SHARE: &[Rule] = &[(
    "numerator",
    "self.numerator <= (has(self.denominator) ? self.denominator : 100)",
    "is more than the denominator",
)];

pub const SESSION: &[Rule] = &[
    (
        "cookieLifetime",
        "!has(self.cookieLifetime) || !has(self.type) || self.type == 'Cookie'",
        "goes with type Cookie only",
    ),
    (
        "absoluteTimeout",
        "!(has(self.cookieLifetime) && self.cookieLifetime == 'Permanent') || has(self.absoluteTimeout)",
        "a permanent cookie needs it",
    ),
];
