//! Policies as they are written, and what they mean.

use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, StatusCode};

use super::*;
use crate::discovery::object::Kind;
use crate::resilience::policy::{
    Abort, Balance, Delay, Endpoints, HashKey, HeaderMatch, Locality, Outlier, Panic, PathMatch, PoolLimits, RateKey,
    RateLimit, RateScope, RequestMatch, Retry, RetryBudget, Session, SessionBy, Share, SourceMatch, Timeouts,
};

const SERVICE: &str = "targetRefs: [{kind: Service, name: web}]";
const ROUTE: &str = "targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: web}]";

fn read_spec(spec: &str) -> Result<TrafficPolicy, Problem> {
    let text = format!(
        "apiVersion: nodemesh.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{namespace: shop, name: p}}\nspec:\n{spec}"
    );
    let key = Key { kind: Kind::Service, namespace: "shop".into(), name: "p".into() };
    let wrong = |error: String| Problem::new(FieldPath::of("yaml"), error);
    let policy: crd::TrafficPolicy = serde_saphyr::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    traffic_policy(&policy, &key)
}

fn settings_of(target: &str, rest: &str) -> Result<Settings, Problem> {
    let indented = format!("{target}\n{rest}").lines().map(|line| format!("  {line}\n")).collect::<String>();
    read_spec(&indented).map(|policy| (*policy.settings).clone())
}

fn of_service(rest: &str) -> Settings {
    settings_of(SERVICE, rest).unwrap_or_else(|problem| panic!("{}: {}", problem.field, problem.reason))
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn an_empty_policy_says_nothing() {
    assert_eq!(of_service(""), Settings::default());
    let sections = "loadBalancing: {}\nconnectionLimits: {}\nretry: {}\nretryBudget: {}\ntimeouts: {}";
    let expected = Settings {
        retry: Some(Retry::default()),
        budget: Some(RetryBudget::default()),
        timeouts: Some(Timeouts::default()),
        ..Settings::default()
    };
    assert_eq!(of_service(sections), expected, "an empty section is the defaults");
    assert_eq!(of_service("outlierDetection: {}").endpoints.outlier, Some(Outlier::default()));
}

#[test]
fn everything_about_endpoints() {
    let found = of_service(
        "loadBalancing:
  algorithm: RoundRobin
  locality: {mode: Weighted, weights: {node: 80, zone: 20}}
  slowStart: 1m
  panicThreshold: 0
connectionLimits:
  service: {maxConnections: 10, maxPending: 0, maxRequests: 30, maxRetries: 4}
  endpoint: {maxRequests: 5}
outlierDetection:
  consecutive5xx: 7
  consecutiveGatewayErrors: 0
  successRate: {minimumEndpoints: 3}
  baseEjectionTime: 10m
  maxEjectionPercent: 10
",
    );
    let expected = Endpoints {
        balance: Balance::RoundRobin,
        locality: Locality::Weighted { node: 80, zone: 20, elsewhere: 0 },
        slow_start: Some(seconds(60)),
        of_service: PoolLimits { connections: Some(10), pending: Some(0), requests: Some(30), retries: Some(4) },
        of_endpoint: PoolLimits { requests: Some(5), ..PoolLimits::default() },
        outlier: Some(Outlier {
            consecutive_5xx: Some(7),
            consecutive_gateway: None,
            success_rate: Some(crate::resilience::policy::SuccessRate { hosts: 3, ..Default::default() }),
            ejection: seconds(600),
            longest: seconds(600),
            share: 10,
            ..Outlier::default()
        }),
        panic_percent: Panic(0),
    };
    assert_eq!(found.endpoints, expected);
    let hashes = [
        ("header: X-User", HashKey::Header(HeaderName::from_static("x-user"))),
        ("cookie: SID", HashKey::Cookie("SID".into())),
        ("source: IP", HashKey::SourceIp),
        ("source: Identity", HashKey::SourceIdentity),
    ];
    for (text, key) in hashes {
        let found = of_service(&format!("loadBalancing: {{algorithm: ConsistentHash, consistentHash: {{{text}}}}}"));
        assert_eq!(found.endpoints.balance, Balance::ConsistentHash(key), "{text}");
    }
}

#[test]
fn everything_about_requests() {
    let found = settings_of(
        ROUTE,
        "timeouts: {request: 10s, perTry: 2s, idle: 0s, connect: 500ms}
retry:
  attempts: 3
  codes: [500, 503]
  grpcCodes: [UNAVAILABLE, RESOURCE_EXHAUSTED]
  on: [ConnectFailure]
  methods: All
  backoff: 100ms
  maxBodyBytes: 10
rateLimits:
- {name: all, requests: 100, fair: true, scope: Mesh}
- name: each-user
  requests: 5
  per: 1m
  burst: 2
  key: {type: Header, header: X-User}
  when:
    methods: [GET]
    paths: [{exact: /a}, {prefix: /b}]
    headers: {x-tier: gold, x-any: ''}
    sources: [{serviceAccount: web}, {namespace: bank}]
faults:
- name: slow
  delay: {fixed: 1s}
- name: broken
  delay: {share: {numerator: 1}, uniform: {min: 0s, max: 2s}}
  abort: {share: {numerator: 1, denominator: 1000}, grpcStatus: UNAVAILABLE}
- name: teapot
  delay: {exponential: {mean: 20ms}}
  abort: {httpStatus: 418}
sessionPersistence: {sessionName: sid, cookieLifetime: Permanent, absoluteTimeout: 1h}
",
    );
    let found = found.unwrap_or_else(|problem| panic!("{}: {}", problem.field, problem.reason));
    let timeouts = Timeouts {
        request: Some(seconds(10)),
        per_try: Some(seconds(2)),
        idle: None,
        connect: Some(Duration::from_millis(500)),
    };
    assert_eq!(found.timeouts, Some(timeouts));
    let retry = Retry {
        attempts: 3,
        codes: vec![StatusCode::INTERNAL_SERVER_ERROR, StatusCode::SERVICE_UNAVAILABLE],
        grpc_codes: vec![14, 8],
        connect_failure: true,
        refused_stream: false,
        reset: false,
        per_try_timeout: false,
        not_idempotent: true,
        backoff: Duration::from_millis(100),
        longest_backoff: seconds(1),
        body: 10,
    };
    assert_eq!(found.retry, Some(retry));
    let source = |namespace: &str, account: Option<&str>| SourceMatch {
        namespace: namespace.into(),
        service_account: account.map(Into::into),
    };
    let limits = vec![
        RateLimit {
            name: "all".into(),
            requests: 100,
            per: seconds(1),
            burst: 100,
            key: RateKey::All,
            fair: true,
            scope: RateScope::Mesh,
            when: RequestMatch::default(),
        },
        RateLimit {
            name: "each-user".into(),
            requests: 5,
            per: seconds(60),
            burst: 2,
            key: RateKey::Header(HeaderName::from_static("x-user")),
            fair: false,
            scope: RateScope::Node,
            when: RequestMatch {
                methods: vec![Method::GET],
                paths: vec![PathMatch::Exact("/a".into()), PathMatch::Prefix("/b".into())],
                headers: vec![
                    (HeaderName::from_static("x-any"), HeaderMatch::Present),
                    (HeaderName::from_static("x-tier"), HeaderMatch::Exact(HeaderValue::from_static("gold"))),
                ],
                sources: vec![source("shop", Some("web")), source("bank", None)],
            },
        },
    ];
    assert_eq!(found.rate_limits, limits);
    let faults: Vec<_> = found.faults.iter().map(|fault| (&*fault.name, fault.delay, fault.abort)).collect();
    let two = Delay::Uniform { least: Duration::ZERO, most: seconds(2) };
    let few = Share { numerator: 1, denominator: 1000 };
    let exponential = Delay::Exponential { mean: Duration::from_millis(20), most: seconds(300) };
    let expected = [
        ("slow", Some((Share::percent(100), Delay::Fixed(seconds(1)))), None),
        ("broken", Some((Share::percent(1), two)), Some((few, Abort::Grpc(14)))),
        (
            "teapot",
            Some((Share::percent(100), exponential)),
            Some((Share::percent(100), Abort::Http(StatusCode::IM_A_TEAPOT))),
        ),
    ];
    assert_eq!(faults, expected);
    let session = Session {
        name: "sid".into(),
        by: SessionBy::Cookie { permanent: true },
        absolute_timeout: Some(seconds(3600)),
    };
    assert_eq!(found.session, Some(session));
}

#[test]
fn targets_are_named_with_their_group() {
    let route = |kind: &str| format!("  targetRefs: [{{group: gateway.networking.k8s.io, kind: {kind}, name: r}}]\n");
    let target = |kind, name: &str| vec![Target { kind, name: name.into() }];
    let found = |spec: &str| read_spec(spec).unwrap().targets;
    assert_eq!(found("  targetRefs: [{kind: Service, name: web}]\n"), target(TargetKind::Service, "web"));
    assert_eq!(found(&route("HTTPRoute")), target(TargetKind::HttpRoute, "r"));
    assert_eq!(found(&route("GRPCRoute")), target(TargetKind::GrpcRoute, "r"));
}

/// `(target, the rest of the spec, field, part of the reason)`
#[test]
fn what_cannot_be_meant_is_refused() {
    let table: &[(&str, &str, &str, &str)] = &[
        ("targetRefs: []", "", "spec.targetRefs", "empty"),
        ("targetRefs: [{kind: HTTPRoute, name: a}]", "", "spec.targetRefs[0].group", "gateway.networking"),
        ("targetRefs: [{kind: Service, group: v1, name: a}]", "", "spec.targetRefs[0].group", "the group of Service"),
        ("targetRefs: [{kind: Service, name: '*'}]", "", "spec.targetRefs[0].name", "not a Kubernetes name"),
        ("targetRefs: [{kind: Service, name: a}, {kind: Service, name: a}]", "", "spec.targetRefs[1]", "twice"),
        (ROUTE, "loadBalancing: {}", "spec.loadBalancing", "only with targets of kind Service"),
        (ROUTE, "connectionLimits: {}", "spec.connectionLimits", "kind Service"),
        (ROUTE, "outlierDetection: {}", "spec.outlierDetection", "kind Service"),
        (ROUTE, "retryBudget: {}", "spec.retryBudget", "kind Service"),
        (SERVICE, "loadBalancing: {algorithm: ConsistentHash}", "spec.loadBalancing.consistentHash", "missing"),
        (SERVICE, "loadBalancing: {consistentHash: {source: IP}}", "spec.loadBalancing.consistentHash", "goes with"),
        (
            SERVICE,
            "loadBalancing: {algorithm: ConsistentHash, consistentHash: {}}",
            "spec.loadBalancing.consistentHash",
            "one of header, cookie, source",
        ),
        (
            SERVICE,
            "loadBalancing: {algorithm: ConsistentHash, consistentHash: {source: IP, cookie: a}}",
            "spec.loadBalancing.consistentHash.source",
            "only one",
        ),
        (
            SERVICE,
            "loadBalancing: {algorithm: ConsistentHash, consistentHash: {source: IP}, slowStart: 1s}",
            "spec.loadBalancing.slowStart",
            "at once",
        ),
        (SERVICE, "loadBalancing: {slowStart: soon}", "spec.loadBalancing.slowStart", "not a duration"),
        (SERVICE, "loadBalancing: {panicThreshold: 101}", "spec.loadBalancing.panicThreshold", "0 to 100"),
        (SERVICE, "loadBalancing: {locality: {mode: Weighted}}", "spec.loadBalancing.locality.weights", "missing"),
        (
            SERVICE,
            "loadBalancing: {locality: {mode: Weighted, weights: {}}}",
            "spec.loadBalancing.locality.weights",
            "zero",
        ),
        (
            SERVICE,
            "connectionLimits: {endpoint: {maxRequests: 0}}",
            "spec.connectionLimits.endpoint.maxRequests",
            "refuse",
        ),
        (
            SERVICE,
            "connectionLimits: {endpoint: {maxRetries: 1}}",
            "spec.connectionLimits.endpoint.maxRetries",
            "another endpoint",
        ),
        (SERVICE, "outlierDetection: {consecutiveGatewayErrors: 0}", "spec.outlierDetection", "nothing would eject"),
        (
            SERVICE,
            "outlierDetection: {baseEjectionTime: 10s, maxEjectionTime: 5s}",
            "spec.outlierDetection.maxEjectionTime",
            "shorter",
        ),
        (SERVICE, "outlierDetection: {interval: 0s}", "spec.outlierDetection.interval", "10ms"),
        (SERVICE, "timeouts: {request: 10}", "spec.timeouts.request", "not a duration"),
        (SERVICE, "retry: {attempts: 0}", "spec.retry.attempts", "1 to 10"),
        (SERVICE, "retry: {attempts: 11}", "spec.retry.attempts", "1 to 10"),
        (SERVICE, "retry: {codes: [200]}", "spec.retry.codes[0]", "400 to 599"),
        (SERVICE, "retry: {backoff: 1s, maxBackoff: 10ms}", "spec.retry.maxBackoff", "shorter"),
        (SERVICE, "retryBudget: {interval: 10ms}", "spec.retryBudget.interval", "1s"),
        (SERVICE, "retryBudget: {percent: 200}", "spec.retryBudget.percent", "0 to 100"),
        (SERVICE, "rateLimits: [{name: A, requests: 1}]", "spec.rateLimits[0].name", "lower-case"),
        (SERVICE, "rateLimits: [{name: a-, requests: 1}]", "spec.rateLimits[0].name", "lower-case"),
        (SERVICE, "rateLimits: [{name: a, requests: 0}]", "spec.rateLimits[0].requests", "1 to"),
        (SERVICE, "rateLimits: [{name: a, requests: 1, per: 25h}]", "spec.rateLimits[0].per", "to"),
        (
            SERVICE,
            "rateLimits: [{name: a, requests: 1}, {name: a, requests: 2}]",
            "spec.rateLimits[1].name",
            "another's name",
        ),
        (
            SERVICE,
            "rateLimits: [{name: a, requests: 1, key: {type: Header}}]",
            "spec.rateLimits[0].key.header",
            "missing",
        ),
        (
            SERVICE,
            "rateLimits: [{name: a, requests: 1, key: {type: All, header: x}}]",
            "spec.rateLimits[0].key.header",
            "goes with type Header",
        ),
        (
            SERVICE,
            "rateLimits: [{name: a, requests: 1, fair: true, key: {type: SourceIdentity}}]",
            "spec.rateLimits[0].fair",
            "key All",
        ),
        (
            SERVICE,
            "rateLimits: [{name: a, requests: 1, when: {paths: [{prefix: a}]}}]",
            "spec.rateLimits[0].when.paths[0].prefix",
            "begin with /",
        ),
        (
            SERVICE,
            "rateLimits: [{name: a, requests: 1, when: {headers: {'a b': c}}}]",
            "spec.rateLimits[0].when.headers.a b",
            "name of a header",
        ),
        (SERVICE, "faults: [{name: a}]", "spec.faults[0]", "delay, abort"),
        (SERVICE, "faults: [{name: a, delay: {}}]", "spec.faults[0].delay", "one of fixed"),
        (SERVICE, "faults: [{name: a, delay: {fixed: 301s}}]", "spec.faults[0].delay.fixed", "to"),
        (SERVICE, "faults: [{name: a, abort: {httpStatus: 99}}]", "spec.faults[0].abort.httpStatus", "200 to 599"),
        (
            SERVICE,
            "faults: [{name: a, abort: {httpStatus: 500, grpcStatus: INTERNAL}}]",
            "spec.faults[0].abort.grpcStatus",
            "only one",
        ),
        (
            SERVICE,
            "faults: [{name: a, delay: {fixed: 1s, share: {numerator: 101}}}]",
            "spec.faults[0].delay.share.numerator",
            "0 to 100",
        ),
        (SERVICE, "sessionPersistence: {sessionName: 'a;b'}", "spec.sessionPersistence.sessionName", "not the name"),
        (
            SERVICE,
            "sessionPersistence: {sessionName: a, cookieLifetime: Permanent}",
            "spec.sessionPersistence.absoluteTimeout",
            "missing",
        ),
        (
            SERVICE,
            "sessionPersistence: {sessionName: a, type: Header, cookieLifetime: Session}",
            "spec.sessionPersistence.cookieLifetime",
            "type Cookie",
        ),
        // What the type refuses by itself, at every depth.
        (SERVICE, "retries: {}", "yaml", "unknown field `retries`"),
        (SERVICE, "retry: {tries: 1}", "yaml", "unknown field `tries`"),
        (SERVICE, "rateLimits: [{name: a, requests: 1, when: {method: GET}}]", "yaml", "unknown field `method`"),
        (SERVICE, "faults: [{name: a, delay: {fixed: 1s, percent: 5}}]", "yaml", "unknown field `percent`"),
        (SERVICE, "retry: {grpcCodes: [Unavailable]}", "yaml", "unknown variant"),
    ];
    for (target, rest, field, reason) in table {
        match settings_of(target, rest) {
            Ok(settings) => panic!("{rest} is taken as {settings:?}"),
            Err(problem) => {
                assert_eq!(problem.field.to_string(), *field, "{rest}: {}", problem.reason);
                assert!(problem.reason.contains(reason), "{rest}: {}", problem.reason);
            }
        }
    }
}
