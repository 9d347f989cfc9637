//! Tables: a route or grant, and what the mesh takes from it.

use serde_json::{Value, json};

use super::Taken;
use crate::discovery::finding::{Effect, Problem};
use crate::discovery::object::{self, Meaning};
use crate::routes::{
    Backend, BackendRef, Filter, Fraction, Head, Match, Parent, PathMatch, PathRewrite, Route, RouteKind, Rule, Rules,
    Table, Text,
};
use crate::state::{BadBackend, Item, RouteSpec};

/// (parentRefs of a route in namespace shop) → (the Services that it is attached to).
#[test]
fn parents() {
    let service = |rest: Value| merged(json!({"group": "", "kind": "Service", "name": "web"}), rest);
    let web = Parent { namespace: "shop".into(), name: "web".into(), port: None, section: None };
    let table = [
        (json!([service(json!({}))]), Ok(Some(vec![web.clone()]))),
        (json!([]), Ok(None)),
        (json!([{"name": "gateway"}]), Ok(None)),
        (json!([{"group": "gateway.networking.k8s.io", "kind": "Service", "name": "web"}]), Ok(None)),
        (json!([{"kind": "Service", "name": "web"}]), Ok(None)),
        (json!([{"group": "", "kind": "ConfigMap", "name": "web"}]), Ok(None)),
        (json!([{"name": "gateway"}, service(json!({}))]), Ok(Some(vec![web.clone()]))),
        (
            json!([service(json!({"namespace": "bank", "port": 80, "sectionName": "http"}))]),
            Ok(Some(vec![Parent {
                namespace: "bank".into(),
                port: Some(80),
                section: Some("http".into()),
                ..web.clone()
            }])),
        ),
        (
            json!([service(json!({"port": 80})), service(json!({"port": 81}))]),
            Ok(Some(vec![Parent { port: Some(80), ..web.clone() }, Parent { port: Some(81), ..web.clone() }])),
        ),
        (json!([service(json!({"port": 80})), service(json!({"port": 80}))]), Err("spec.parentRefs[1]")),
        (json!([service(json!({"port": 80})), service(json!({}))]), Err("spec.parentRefs[1]")),
        (json!([service(json!({"sectionName": "a"})), service(json!({"port": 80}))]), Err("spec.parentRefs[1]")),
        (json!([service(json!({"port": 0}))]), Err("spec.parentRefs[0].port")),
        (json!([service(json!({"port": 65536}))]), Err("spec.parentRefs[0].port")),
        (json!([service(json!({"sektionName": "http"}))]), Err("spec.parentRefs[0].sektionName")),
        (json!(vec![json!({"name": "x"}); 33]), Err("spec.parentRefs")),
    ];
    for (references, expected) in table {
        let route = object("HTTPRoute", json!({"parentRefs": references}));
        let seen = read(&route).map(|taken| route_of(taken).map(|spec| spec.route.parents.clone()));
        assert_eq!(seen.map_err(|problem| problem.field.to_string()), expected.map_err(str::to_string), "{references}");
    }
}

/// The defaults of the schema, which a file has not been through.
#[test]
fn defaults_of_an_http_route() {
    let spec = http(json!({}));
    let expected = Match { path: Some(PathMatch::Prefix("/".into())), ..Match::default() };
    assert_eq!(rules(&spec).len(), 1);
    assert_eq!(rules(&spec)[0].matches, std::slice::from_ref(&expected));
    assert_eq!(rules(&spec)[0].backends, []);
    let spec = http(json!({"rules": [{"matches": [], "backendRefs": [{"name": "web", "port": 80}]}]}));
    assert_eq!(rules(&spec)[0].matches, [expected]);
    assert_eq!(rules(&spec)[0].backends, [backend("shop", "web", 80, 1)]);
    assert_eq!(spec.route.created, i64::MAX);
    let mut dated = object("HTTPRoute", attached(json!({})));
    dated["metadata"]["creationTimestamp"] = "1970-01-01T00:01:00Z".into();
    dated["metadata"]["generation"] = 7.into();
    let spec = route_of(read(&dated).unwrap()).unwrap();
    assert_eq!((spec.route.created, spec.generation), (60, Some(7)));
}

/// (a match) → (as it is taken), or the field that cannot be. Which requests the rule is about cannot be told then: the
/// whole route is refused.
#[test]
fn matches_of_an_http_route() {
    let path = |kind: &str, value: &str| json!({"path": {"type": kind, "value": value}});
    let prefix = |text: &str| Match { path: Some(PathMatch::Prefix(text.into())), ..Match::default() };
    let exact = |text: &str| Match { path: Some(PathMatch::Exact(text.into())), ..Match::default() };
    let table = [
        (json!({}), Ok(prefix("/"))),
        (json!({"path": {}}), Ok(prefix("/"))),
        (json!({"path": {"value": "/a"}}), Ok(prefix("/a"))),
        (path("PathPrefix", "/a/"), Ok(prefix("/a"))),
        (path("PathPrefix", "/"), Ok(prefix("/"))),
        (path("Exact", "/a/"), Ok(exact("/a/"))),
        (path("Exact", "/a%20b;c=d"), Ok(exact("/a%20b;c=d"))),
        (json!({"method": "GET"}), Ok(Match { method: Some(http::Method::GET), ..prefix("/") })),
        (
            json!({"headers": [{"name": "Version", "value": "one"}, {"name": "version", "value": "two"}]}),
            Ok(Match { headers: vec![("version".parse().unwrap(), Text::Exact("one".into()))], ..prefix("/") }),
        ),
        (
            json!({"queryParams": [{"name": "A", "value": "1"}, {"name": "a", "value": "2"}, {"name": "A", "value": "3"}]}),
            Ok(Match {
                query: vec![("A".into(), Text::Exact("1".into())), ("a".into(), Text::Exact("2".into()))],
                ..prefix("/")
            }),
        ),
        (path("Exact", "a"), Err(".path.value")),
        (path("Exact", "/a//b"), Err(".path.value")),
        (path("PathPrefix", "/a/./b"), Err(".path.value")),
        (path("PathPrefix", "/a/../b"), Err(".path.value")),
        (path("Exact", "/a/.."), Err(".path.value")),
        (path("Exact", "/a/."), Err(".path.value")),
        (path("Exact", "/a%2fb"), Err(".path.value")),
        (path("Exact", "/a%2Fb"), Err(".path.value")),
        (path("Exact", "/a#b"), Err(".path.value")),
        (path("Exact", "/a?b"), Err(".path.value")),
        (path("Exact", "/a b"), Err(".path.value")),
        (path("Exact", "/ä"), Err(".path.value")),
        (path("Exact", "/a%2"), Err(".path.value")),
        (path("Exact", &format!("/{}", "a".repeat(1024))), Err(".path.value")),
        (path("RegularExpression", "("), Err(".path.value")),
        (path("RegularExpression", "/a)|(?:/b"), Err(".path.value")),
        (path("RegularExpression", r"\w{5000}"), Err(".path.value")),
        (path("Glob", "/a"), Err(".path.type")),
        (json!({"method": "get"}), Err(".method")),
        (json!({"method": "BREW"}), Err(".method")),
        (json!({"headers": [{"name": ":method", "value": "x"}]}), Err(".headers[0].name")),
        (json!({"headers": [{"name": "a", "value": ""}]}), Err(".headers[0].value")),
        (json!({"headers": [{"name": "a"}]}), Err(".headers[0]")),
        (json!({"header": []}), Err(".header")),
        (json!({"queryParams": [{"name": "", "value": "x"}]}), Err(".queryParams[0].name")),
        (json!({"headers": vec![json!({"name": "a", "value": "x"}); 17]}), Err(".headers")),
    ];
    for (spec, expected) in table {
        let route = object("HTTPRoute", attached(json!({"rules": [{"matches": [spec]}]})));
        match (read(&route), expected) {
            (Ok(taken), Ok(expected)) => {
                assert_eq!(rules(&route_of(taken).unwrap())[0].matches, [expected], "{spec}");
            }
            (Err(problem), Err(field)) => {
                assert_eq!(problem.field.to_string(), format!("spec.rules[0].matches[0]{field}"), "{spec}");
            }
            (seen, expected) => panic!("{spec}: {seen:?}, not {expected:?}"),
        }
    }
}

/// A regular expression is one for the whole text.
#[test]
fn regular_expressions_are_anchored() {
    let rule = json!({"matches": [{
        "path": {"type": "RegularExpression", "value": "/a|/b+"},
        "headers": [{"type": "RegularExpression", "name": "x", "value": "v[0-9]"}],
    }]});
    let spec = http(json!({"rules": [rule]}));
    let [Match { path: Some(PathMatch::Regex(path)), headers, .. }] = &rules(&spec)[0].matches[..] else { panic!() };
    let [(_, Text::Regex(value))] = &headers[..] else { panic!() };
    let table = [("/a", true), ("/bb", true), ("/ab", false), ("x/a", false), ("/a\n", false)];
    table.into_iter().for_each(|(text, expected)| assert_eq!(path.is_match(text), expected, "{text:?}"));
    assert!(value.is_match("v1") && !value.is_match("v12") && !value.is_match("av1"));
}

/// (a filter of a rule) → (as it is taken).
#[test]
fn filters() {
    let change = |set: &[(&str, &str)], add: &[(&str, &str)], remove: &[&str]| {
        let pairs = |list: &[(&str, &str)]| {
            let pair = |(name, value): &(&str, &str)| crate::routes::NameValue {
                name: name.parse().unwrap(),
                value: value.parse().unwrap(),
            };
            list.iter().map(pair).collect()
        };
        let remove = remove.iter().map(|name| name.parse().unwrap()).collect();
        crate::routes::HeaderChange { set: pairs(set), add: pairs(add), remove }
    };
    let modifier =
        json!({"set": [{"name": "X-A", "value": "1"}], "add": [{"name": "x-b", "value": "2, 3"}], "remove": ["X-C"]});
    let changed = change(&[("x-a", "1")], &[("x-b", "2, 3")], &["x-c"]);
    let redirect = |status, scheme: Option<&str>, hostname: Option<&str>, port, path| {
        Filter::Redirect(crate::routes::Redirect {
            scheme: scheme.map(Into::into),
            hostname: hostname.map(Into::into),
            port,
            path,
            status: http::StatusCode::from_u16(status).unwrap(),
        })
    };
    let mirror = |numerator, denominator| {
        let backend = BackendRef::Service { namespace: "shop".into(), name: "copy".into(), port: 80 };
        Filter::Mirror(crate::routes::Mirror { backend, share: Fraction { numerator, denominator } })
    };
    let to = json!({"name": "copy", "port": 80});
    let table = [
        (
            json!({"type": "RequestHeaderModifier", "requestHeaderModifier": modifier}),
            Filter::RequestHeaders(changed.clone()),
        ),
        (
            json!({"type": "ResponseHeaderModifier", "responseHeaderModifier": modifier}),
            Filter::ResponseHeaders(changed),
        ),
        (json!({"type": "RequestRedirect", "requestRedirect": {}}), redirect(302, None, None, None, None)),
        (
            json!({"type": "RequestRedirect", "requestRedirect": {"scheme": "https", "hostname": "a.example", "port": 8443, "statusCode": 308}}),
            redirect(308, Some("https"), Some("a.example"), Some(8443), None),
        ),
        (
            json!({"type": "RequestRedirect", "requestRedirect": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": ""}}}),
            redirect(302, None, None, None, Some(PathRewrite::Prefix("".into()))),
        ),
        (
            json!({"type": "URLRewrite", "urlRewrite": {"hostname": "a", "path": {"type": "ReplaceFullPath", "replaceFullPath": "/x"}}}),
            Filter::Rewrite(crate::routes::UrlRewrite {
                hostname: Some("a".into()),
                path: Some(PathRewrite::Full("/x".into())),
            }),
        ),
        (json!({"type": "RequestMirror", "requestMirror": {"backendRef": to}}), mirror(100, 100)),
        (json!({"type": "RequestMirror", "requestMirror": {"backendRef": to, "percent": 0}}), mirror(0, 100)),
        (
            json!({"type": "RequestMirror", "requestMirror": {"backendRef": to, "fraction": {"numerator": 1, "denominator": 3}}}),
            mirror(1, 3),
        ),
        (
            json!({"type": "RequestMirror", "requestMirror": {"backendRef": to, "fraction": {"numerator": 7}}}),
            mirror(7, 100),
        ),
        (json!({"type": "CORS", "cors": {}}), Filter::Cors(cors(&[], false, &[], &[], &[], 5))),
        (
            json!({"type": "CORS", "cors": {
                "allowOrigins": ["https://*.example.com", "http://a:8080"], "allowCredentials": true, "allowMethods": ["GET", "PUT"],
                "allowHeaders": ["X-A"], "exposeHeaders": ["X-B"], "maxAge": 60,
            }}),
            Filter::Cors(cors(
                &["https://*.example.com", "http://a:8080"],
                true,
                &["GET", "PUT"],
                &["X-A"],
                &["X-B"],
                60,
            )),
        ),
    ];
    for (filter, expected) in table {
        let rule = json!({"matches": [{"path": {"value": "/p"}}], "filters": [filter]});
        let route = object("HTTPRoute", attached(json!({"rules": [rule]})));
        let taken = read(&route).unwrap();
        assert_eq!(rules(&route_of(taken).unwrap())[0].filters, [expected], "{filter}");
    }
}

fn cors(
    origins: &[&str],
    allow_credentials: bool,
    methods: &[&str],
    headers: &[&str],
    exposed: &[&str],
    seconds: u64,
) -> crate::routes::Cors {
    let texts = |list: &[&str]| list.iter().map(|text| (*text).into()).collect();
    crate::routes::Cors {
        allow_origins: texts(origins),
        allow_credentials,
        allow_methods: texts(methods),
        allow_headers: texts(headers),
        expose_headers: texts(exposed),
        max_age: std::time::Duration::from_secs(seconds),
    }
}

/// (what is wrong with a rule whose matches are sound) → the field. Its requests meet an error; the other rule is as it
/// was.
#[test]
fn a_rule_that_cannot_be_taken_fails_alone() {
    let filter = |filter: Value| json!({"filters": [filter]});
    let headers = |change: Value| filter(json!({"type": "RequestHeaderModifier", "requestHeaderModifier": change}));
    let redirect = |redirect: Value| filter(json!({"type": "RequestRedirect", "requestRedirect": redirect}));
    let mirror = |mirror: Value| filter(json!({"type": "RequestMirror", "requestMirror": mirror}));
    let cors = |cors: Value| filter(json!({"type": "CORS", "cors": cors}));
    let to = json!({"name": "copy", "port": 80});
    let table = [
        (
            filter(json!({"type": "ExtensionRef", "extensionRef": {"group": "x", "kind": "y", "name": "z"}})),
            ".filters[0].type",
        ),
        (filter(json!({"type": "ExternalAuth", "externalAuth": {}})), ".filters[0].type"),
        (filter(json!({"type": "Unheard"})), ".filters[0].type"),
        (filter(json!({"type": "URLRewrite"})), ".filters[0].urlRewrite"),
        (filter(json!({"type": "URLRewrite", "urlRewrite": {}, "cors": {}})), ".filters[0].cors"),
        (
            headers(json!({"set": [{"name": "a", "value": "1"}], "remove": ["A"]})),
            ".filters[0].requestHeaderModifier.remove[0]",
        ),
        (
            headers(json!({"add": [{"name": "Transfer-Encoding", "value": "chunked"}]})),
            ".filters[0].requestHeaderModifier.add[0].name",
        ),
        (headers(json!({"set": [{"name": "Host", "value": "x"}]})), ".filters[0].requestHeaderModifier.set[0].name"),
        (
            headers(json!({"set": [{"name": "a", "value": "1\r\nb: 2"}]})),
            ".filters[0].requestHeaderModifier.set[0].value",
        ),
        (headers(json!({"sets": []})), ".filters[0].requestHeaderModifier.sets"),
        (redirect(json!({"scheme": "ftp"})), ".filters[0].requestRedirect.scheme"),
        (redirect(json!({"statusCode": 304})), ".filters[0].requestRedirect.statusCode"),
        (redirect(json!({"hostname": "*.example"})), ".filters[0].requestRedirect.hostname"),
        (redirect(json!({"hostname": "10.0.0.1"})), ".filters[0].requestRedirect.hostname"),
        (redirect(json!({"path": {"type": "ReplaceFullPath"}})), ".filters[0].requestRedirect.path.replaceFullPath"),
        (
            redirect(json!({"path": {"type": "ReplaceFullPath", "replaceFullPath": "/a?b"}})),
            ".filters[0].requestRedirect.path.replaceFullPath",
        ),
        (
            json!({"filters": [{"type": "RequestRedirect", "requestRedirect": {}}], "backendRefs": [to]}),
            ".filters[0].requestRedirect",
        ),
        (
            json!({"filters": [{"type": "RequestRedirect", "requestRedirect": {}}, {"type": "URLRewrite", "urlRewrite": {}}]}),
            ".filters[1].type",
        ),
        (json!({"filters": [{"type": "CORS", "cors": {}}, {"type": "CORS", "cors": {}}]}), ".filters[1].type"),
        (mirror(json!({"backendRef": to, "percent": 101})), ".filters[0].requestMirror.percent"),
        (
            mirror(json!({"backendRef": to, "percent": 1, "fraction": {"numerator": 1}})),
            ".filters[0].requestMirror.fraction",
        ),
        (
            mirror(json!({"backendRef": to, "fraction": {"numerator": 2, "denominator": 1}})),
            ".filters[0].requestMirror.fraction",
        ),
        (
            mirror(json!({"backendRef": to, "fraction": {"numerator": 0, "denominator": 0}})),
            ".filters[0].requestMirror.fraction",
        ),
        (cors(json!({"allowOrigins": ["*", "https://a"]})), ".filters[0].cors.allowOrigins[0]"),
        (cors(json!({"allowOrigins": ["a.example"]})), ".filters[0].cors.allowOrigins[0]"),
        (cors(json!({"maxAge": 0})), ".filters[0].cors.maxAge"),
        (json!({"backendRefs": [{"name": "web"}]}), ".backendRefs[0].port"),
        (json!({"backendRefs": [{"name": "web", "port": 80, "weight": -1}]}), ".backendRefs[0].weight"),
        (json!({"backendRefs": [{"name": "web", "port": 80, "weight": 1_000_001}]}), ".backendRefs[0].weight"),
        (
            json!({"backendRefs": [{"name": "web", "port": 80, "filters": [{"type": "ExtensionRef", "extensionRef": {}}]}]}),
            ".backendRefs[0].filters[0].type",
        ),
        (json!({"backendRefs": vec![to.clone(); 17]}), ".backendRefs"),
        (json!({"timeouts": {"request": "1d"}}), ".timeouts.request"),
        (json!({"timeouts": {"request": "1s", "backendRequest": "2s"}}), ".timeouts.backendRequest"),
        (json!({"retry": {"codes": [200]}}), ".retry.codes[0]"),
        (json!({"retry": {"attempts": -1}}), ".retry.attempts"),
        (json!({"retry": {"backoff": "fast"}}), ".retry.backoff"),
        (json!({"sessionPersistence": {"idleTimeout": "1h"}}), ".sessionPersistence.idleTimeout"),
        (
            json!({"sessionPersistence": {"cookieConfig": {"lifetimeType": "Permanent"}}}),
            ".sessionPersistence.absoluteTimeout",
        ),
        (json!({"sessionPersistence": {"type": "Header", "cookieConfig": {}}}), ".sessionPersistence.cookieConfig"),
        (json!({"sessionPersistence": {"sessionName": "a b"}}), ".sessionPersistence.sessionName"),
        (json!({"fitlers": []}), ".fitlers"),
    ];
    for (change, field) in table {
        let rule =
            merged(json!({"name": "bad", "matches": [{"path": {"type": "Exact", "value": "/bad"}}]}), change.clone());
        let good = json!({"name": "good", "backendRefs": [{"name": "web", "port": 80}]});
        let route = object("HTTPRoute", attached(json!({"rules": [rule, good]})));
        let taken = read(&route).unwrap_or_else(|problem| panic!("{change}: {problem:?}"));
        let [(Effect::RuleFails, problem)] = &taken.problems[..] else { panic!("{change}: {:?}", taken.problems) };
        assert_eq!(problem.field.to_string(), format!("spec.rules[0]{field}"), "{change}");
        let spec = route_of(taken).unwrap();
        let [bad, good] = rules(&spec) else { panic!("{change}") };
        assert_eq!(bad.matches[0].path, Some(PathMatch::Exact("/bad".into())));
        assert!(matches!(&bad.backends[..], [Backend { target: BackendRef::Wrong { .. }, weight: 1, .. }]), "{change}");
        assert_eq!((&bad.filters[..], bad.name.as_deref()), (&[][..], Some("bad")));
        assert_eq!(good.backends, [backend("shop", "web", 80, 1)]);
        assert_eq!(spec.refused_rules.iter().map(|(rule, _)| *rule).collect::<Vec<_>>(), [0]);
        // With no other rule, nothing of the route is good.
        let alone = merged(json!({"matches": [{"path": {"type": "Exact", "value": "/bad"}}]}), change.clone());
        let alone = object("HTTPRoute", attached(json!({"rules": [alone]})));
        assert_eq!(read(&alone).unwrap_err().field.to_string(), format!("spec.rules[0]{field}"), "{change}");
    }
}

/// (backendRef) → (where to, the fault of the reference).
#[test]
fn backends() {
    let service = |namespace: &str, port, weight| Ok(backend(namespace, "web", port, weight));
    let table = [
        (json!({"name": "web", "port": 80}), service("shop", 80, 1)),
        (json!({"name": "web", "port": 80, "weight": 0, "group": "", "kind": "Service"}), service("shop", 80, 0)),
        (json!({"name": "web", "port": 80, "namespace": "bank", "weight": 1_000_000}), service("bank", 80, 1_000_000)),
        (json!({"name": "web", "port": 80, "kind": "ConfigMap"}), Err(BadBackend::InvalidKind)),
        (
            json!({"name": "web", "port": 80, "group": "multicluster.x-k8s.io", "kind": "ServiceImport"}),
            Err(BadBackend::InvalidKind),
        ),
        (json!({"name": "web", "kind": "Bucket", "group": "storage.example"}), Err(BadBackend::InvalidKind)),
    ];
    for (reference, expected) in table {
        let other = json!({"name": "web", "port": 1});
        let route = object("HTTPRoute", attached(json!({"rules": [{"backendRefs": [reference, other]}]})));
        let taken = read(&route).unwrap();
        let problems = taken.problems.clone();
        let spec = route_of(taken).unwrap();
        let [first, second] = &rules(&spec)[0].backends[..] else { panic!("{reference}") };
        assert_eq!(*second, backend("shop", "web", 1, 1));
        match expected {
            Ok(expected) => assert_eq!((first, &spec.wrong_refs[..]), (&expected, &[][..]), "{reference}"),
            Err(fault) => {
                assert!(matches!(first.target, BackendRef::Wrong { .. }));
                let [(seen, at)] = &spec.wrong_refs[..] else { panic!("{reference}") };
                assert_eq!((*seen, &*at.field), (fault, "spec.rules[0].backendRefs[0].kind"));
                assert!(matches!(problems[..], [(Effect::ShareFails, _)]), "{problems:?}");
            }
        }
    }
}

#[test]
fn timeouts_retries_and_sessions() {
    use std::time::Duration;
    let rule = json!({
        "timeouts": {"request": "10s", "backendRequest": "2s500ms"},
        "retry": {"codes": [500, 503], "attempts": 3, "backoff": "100ms"},
        "sessionPersistence": {"sessionName": "s", "absoluteTimeout": "1h", "cookieConfig": {"lifetimeType": "Permanent"}},
    });
    let spec = http(json!({"rules": [rule]}));
    let rule = &rules(&spec)[0];
    assert_eq!(rule.timeouts.request, Some(Duration::from_secs(10)));
    assert_eq!(rule.timeouts.backend_request, Some(Duration::from_millis(2500)));
    let retry = rule.retry.as_ref().unwrap();
    assert_eq!((retry.codes.iter().map(|code| code.as_u16()).collect(), retry.attempts), (vec![500, 503], 3));
    assert_eq!(retry.backoff, Some(Duration::from_millis(100)));
    let session = rule.session.as_ref().unwrap();
    assert_eq!((&*session.name, session.cookie.unwrap().permanent), ("s", true));
    assert_eq!(session.absolute_timeout, Some(Duration::from_secs(3600)));

    // Zero disables; what is absent is the default.
    let rule = json!({"timeouts": {"request": "0s", "backendRequest": "1s"}, "retry": {}, "sessionPersistence": {"type": "Header"}});
    let spec = http(json!({"rules": [rule, {"retry": {"attempts": 0}, "matches": [{"path": {"value": "/x"}}]}]}));
    let [first, second] = rules(&spec) else { panic!() };
    assert_eq!((first.timeouts.request, first.timeouts.backend_request), (None, Some(Duration::from_secs(1))));
    assert_eq!(first.retry.as_ref().map(|retry| (retry.codes.len(), retry.attempts)), Some((0, 1)));
    let session = first.session.as_ref().unwrap();
    assert_eq!((&*session.name, session.cookie), ("nodemesh-shop-r-0", None));
    assert_eq!(second.retry, None);
}

/// (method) → paths that it matches, and that it does not.
#[test]
fn methods_of_a_grpc_route() {
    let table = [
        (json!({}), vec!["/a.B/C"], vec![]),
        (json!({"service": "a.B", "method": "C"}), vec!["/a.B/C"], vec!["/a.B/D", "/A.B/C", "/a.B/C/"]),
        (json!({"service": "a.B"}), vec!["/a.B/C", "/a.B/D"], vec!["/a.BB/C", "/b/C"]),
        (json!({"service": "", "method": "C"}), vec!["/a.B/C", "/b/C"], vec!["/a.B/D", "/a/b/C"]),
        (
            json!({"type": "RegularExpression", "service": "a.[BC]|x", "method": "C|D"}),
            vec!["/a.B/C", "/x/D"],
            vec!["/a.D/C", "/x/E", "/x/DD"],
        ),
        (json!({"type": "RegularExpression", "method": "Get.*"}), vec!["/b/GetX"], vec!["/b/SetX"]),
    ];
    for (asked, matching, others) in table {
        let spec = grpc(json!({"rules": [{"matches": [{"method": asked}]}]}));
        let table = Table::compile([&*spec.route]);
        let (method, headers) = (http::Method::POST, http::HeaderMap::new());
        let is_match = |path: &str| {
            let head = Head { method: &method, host: "a", path, query: None, headers: &headers };
            table.find(&head).is_some()
        };
        matching.iter().for_each(|text| assert!(is_match(text), "{asked} {text}"));
        others.iter().for_each(|text| assert!(!is_match(text), "{asked} {text}"));
    }
    let wrong = [
        (json!({"service": "a/b"}), "service"),
        (json!({"service": "a..b"}), "service"),
        (json!({"method": "1x"}), "method"),
        (json!({"method": "a-b"}), "method"),
        (json!({"type": "RegularExpression", "service": "a)|(b"}), "service"),
        (json!({"type": "Prefix", "service": "a"}), "type"),
    ];
    for (method, field) in wrong {
        let route = object("GRPCRoute", attached(json!({"rules": [{"matches": [{"method": method}]}]})));
        let problem = read(&route).unwrap_err();
        assert_eq!(problem.field.to_string(), format!("spec.rules[0].matches[0].method.{field}"), "{method}");
    }
    // What only an HTTPRoute has.
    for filter in [
        json!({"type": "URLRewrite", "urlRewrite": {}}),
        json!({"type": "RequestRedirect", "requestRedirect": {}}),
        json!({"type": "CORS", "cors": {}}),
    ] {
        let route = object("GRPCRoute", attached(json!({"rules": [{"filters": [filter]}]})));
        assert_eq!(read(&route).unwrap_err().field.to_string(), "spec.rules[0].filters[0].type", "{filter}");
    }
    let spec = grpc(json!({"rules": [{}]}));
    assert_eq!(rules(&spec)[0].matches, [Match::default()]);
    assert_eq!(rules(&grpc(json!({}))).len(), 0);
}

#[test]
fn tcp_and_tls_routes() {
    let backends = json!([{"name": "web", "port": 80}, {"name": "old", "namespace": "bank", "port": 81, "weight": 3}]);
    let expected = vec![backend("shop", "web", 80, 1), backend("bank", "old", 81, 3)];
    let tcp = object("TCPRoute", attached(json!({"rules": [{"name": "all", "backendRefs": backends}]})));
    let spec = route_of(read(&tcp).unwrap()).unwrap();
    assert_eq!((spec.route.kind, &spec.route.rules), (RouteKind::Tcp, &Rules::Connections(expected.clone())));
    let names = json!(["a.example", "*.b.example"]);
    let tls = object("TLSRoute", attached(json!({"hostnames": names, "rules": [{"backendRefs": backends}]})));
    let spec = route_of(read(&tls).unwrap()).unwrap();
    let Rules::ServerNames(rule) = &spec.route.rules else { panic!() };
    assert_eq!(rule.hostnames.iter().map(|name| &**name).collect::<Vec<_>>(), ["a.example", "*.b.example"]);
    assert_eq!(rule.backends, expected);
    let wrong = [
        ("TCPRoute", json!({}), "spec"),
        ("TCPRoute", json!({"rules": []}), "spec.rules"),
        ("TCPRoute", json!({"rules": [{"backendRefs": backends}, {"backendRefs": backends}]}), "spec.rules"),
        ("TCPRoute", json!({"rules": [{"backendRefs": []}]}), "spec.rules[0].backendRefs"),
        (
            "TCPRoute",
            json!({"rules": [{"backendRefs": [{"name": "x", "port": 1, "filters": []}]}]}),
            "spec.rules[0].backendRefs[0].filters",
        ),
        ("TCPRoute", json!({"hostnames": [], "rules": [{"backendRefs": backends}]}), "spec.hostnames"),
        ("TLSRoute", json!({"rules": [{"backendRefs": backends}]}), "spec"),
        ("TLSRoute", json!({"hostnames": [], "rules": [{"backendRefs": backends}]}), "spec.hostnames"),
        ("TLSRoute", json!({"hostnames": ["10.0.0.1"], "rules": [{"backendRefs": backends}]}), "spec.hostnames[0]"),
        ("TLSRoute", json!({"hostnames": ["a.*.example"], "rules": [{"backendRefs": backends}]}), "spec.hostnames[0]"),
        ("TLSRoute", json!({"hostnames": ["A.example"], "rules": [{"backendRefs": backends}]}), "spec.hostnames[0]"),
    ];
    for (kind, spec, field) in wrong {
        assert_eq!(read(&object(kind, attached(spec.clone()))).unwrap_err().field.to_string(), field, "{spec}");
    }
}

#[test]
fn hostnames_mean_nothing_on_a_service() {
    for kind in ["HTTPRoute", "GRPCRoute"] {
        let taken = read(&object(kind, attached(json!({"hostnames": ["a.example"]})))).unwrap();
        let [(Effect::NoEffect, problem)] = &taken.problems[..] else { panic!("{:?}", taken.problems) };
        assert_eq!(problem.field.to_string(), "spec.hostnames");
    }
    // For a Gateway they mean what they say, and that is not our affair.
    let foreign = object("HTTPRoute", json!({"parentRefs": [{"name": "g"}], "hostnames": ["a.example"]}));
    assert_eq!(read(&foreign).unwrap(), Taken::default());
}

/// What another parent's controller reads is none of ours, also when we would refuse it.
#[test]
fn a_route_of_a_gateway_is_left_alone() {
    let rule = json!({"filters": [{"type": "ExtensionRef", "extensionRef": {}}], "matches": [{"path": {"type": "New", "value": "x"}}]});
    let route = object("HTTPRoute", json!({"parentRefs": [{"name": "g"}], "rules": [rule]}));
    assert_eq!(read(&route).unwrap(), Taken::default());
}

/// (version, kind) → whether it is read.
#[test]
fn versions() {
    let spec = attached(json!({"hostnames": ["a"], "rules": [{"backendRefs": [{"name": "x", "port": 1}]}]}));
    let table = [
        ("v1", "HTTPRoute", true),
        ("v1beta1", "HTTPRoute", true),
        ("v1alpha2", "HTTPRoute", false),
        ("v1", "GRPCRoute", true),
        ("v1alpha2", "GRPCRoute", false),
        ("v1", "TLSRoute", true),
        ("v1alpha2", "TLSRoute", false),
    ];
    for (version, kind, expected) in table {
        let mut object = object(kind, spec.clone());
        object["apiVersion"] = format!("gateway.networking.k8s.io/{version}").into();
        assert_eq!(read(&object).is_ok(), expected, "{version} {kind}");
    }
    for (version, expected) in [("v1", true), ("v1beta1", true), ("v1alpha2", false)] {
        let mut object = object("ReferenceGrant", json!({"from": [], "to": []}));
        object["apiVersion"] = format!("gateway.networking.k8s.io/{version}").into();
        assert_eq!(read(&object).is_ok(), expected, "{version}");
    }
    assert!(matches!(object::meaning(&object("UDPRoute", attached(json!({})))), Meaning::Mistaken(_)));
    let foreign = object("UDPRoute", json!({"parentRefs": [{"name": "gateway"}]}));
    assert!(matches!(object::meaning(&foreign), Meaning::Foreign));
    let gateway = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "x"}});
    assert!(matches!(object::meaning(&gateway), Meaning::Foreign));
}

/// (from, to) → (kinds and namespaces, names), or nothing that is about routes and Services.
#[test]
fn grants() {
    let from = |kind: &str| json!({"group": "gateway.networking.k8s.io", "kind": kind, "namespace": "shop"});
    let to = |name: Value| json!({"group": "", "kind": "Service", "name": name});
    let table = [
        (json!([from("HTTPRoute")]), json!([to(json!("web"))]), Some((1, Some(1)))),
        (json!([from("HTTPRoute"), from("TCPRoute")]), json!([to(json!("a")), to(json!("b"))]), Some((2, Some(2)))),
        (json!([from("HTTPRoute")]), json!([to(json!("web")), to(json!(null))]), Some((1, None))),
        (json!([from("Gateway")]), json!([to(json!("web"))]), None),
        (json!([{"group": "", "kind": "HTTPRoute", "namespace": "shop"}]), json!([to(json!("web"))]), None),
        (json!([from("HTTPRoute")]), json!([{"group": "", "kind": "Secret"}]), None),
    ];
    for (from, to, expected) in table {
        let taken = read(&object("ReferenceGrant", json!({"from": from, "to": to}))).unwrap();
        let seen = taken.item.map(|item| match item {
            Item::ReferenceGrant(grant) => (grant.from.len(), grant.to.as_ref().map(|to| to.len())),
            other => panic!("{other:?}"),
        });
        assert_eq!(seen, expected, "{from} {to}");
    }
    let wrong = object("ReferenceGrant", json!({"from": [{"kind": "HTTPRoute", "namespace": "shop"}], "to": []}));
    assert_eq!(read(&wrong).unwrap_err().field.to_string(), "spec.from[0]");
}

/// What stands for a route that cannot be read: everything it is attached to, as far as that can be told.
#[test]
fn stand_ins() {
    let table = [
        ("HTTPRoute", json!([{"group": "", "kind": "Service", "name": "web", "port": 80}]), Some((Some(80), 1))),
        ("GRPCRoute", json!([{"group": "", "kind": "Service", "name": "web", "port": "x"}]), Some((None, 1))),
        ("TCPRoute", json!([{"group": "", "kind": "Service", "name": "web"}, {"name": "gateway"}]), Some((None, 1))),
        ("TLSRoute", json!([{"group": "", "kind": "Service", "name": "web"}]), Some((None, 1))),
        ("HTTPRoute", json!([{"name": "gateway"}]), None),
        ("HTTPRoute", json!("x"), None),
        ("ReferenceGrant", json!([{"group": "", "kind": "Service", "name": "web"}]), None),
    ];
    for (kind, references, expected) in table {
        let object = object(kind, json!({"parentRefs": references, "rules": 1}));
        let Meaning::Known { key: Ok(key), .. } = object::meaning(&object) else { panic!("{kind}") };
        let problem = read(&object).err().unwrap_or_else(|| panic!("{kind} {references}"));
        let item = super::stand_in(&key, &object, &problem);
        let seen = item.map(|item| match item {
            Item::Route(spec) => {
                assert!(spec.refused.is_some());
                let wrong =
                    |backends: &[Backend]| backends.iter().all(|one| matches!(one.target, BackendRef::Wrong { .. }));
                match &spec.route.rules {
                    Rules::Requests(rules) => assert!(rules.len() == 1 && wrong(&rules[0].backends)),
                    Rules::Connections(backends) => assert!(wrong(backends)),
                    Rules::ServerNames(rule) => assert!(wrong(&rule.backends) && rule.hostnames.is_empty()),
                }
                (spec.route.parents[0].port, spec.route.parents.len())
            }
            other => panic!("{other:?}"),
        });
        assert_eq!(seen, expected, "{kind} {references}");
    }
}

// — helpers —

fn object(kind: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": kind, "metadata": {"namespace": "shop", "name": "r"},
        "spec": spec, "status": {"parents": []},
    })
}

/// With a Service as parent.
fn attached(spec: Value) -> Value {
    merged(json!({"parentRefs": [{"group": "", "kind": "Service", "name": "web"}]}), spec)
}

fn merged(mut into: Value, change: Value) -> Value {
    super::tests::merge(&mut into, change);
    into
}

fn read(object: &Value) -> Result<Taken, Problem> {
    let Meaning::Known { key, .. } = object::meaning(object) else { panic!("{object}") };
    object::read(&key?, object, "cluster.local")
}

fn route_of(taken: Taken) -> Option<RouteSpec> {
    taken.item.map(|item| match item {
        Item::Route(spec) => (*spec).clone(),
        other => panic!("{other:?}"),
    })
}

/// An HTTPRoute of which nothing is refused.
fn http(spec: Value) -> RouteSpec {
    sound("HTTPRoute", spec)
}

fn grpc(spec: Value) -> RouteSpec {
    sound("GRPCRoute", spec)
}

fn sound(kind: &str, spec: Value) -> RouteSpec {
    let taken = read(&object(kind, attached(spec))).unwrap();
    assert_eq!(taken.problems, []);
    route_of(taken).unwrap()
}

fn rules(spec: &RouteSpec) -> &[Rule] {
    let Route { rules: Rules::Requests(rules), .. } = &*spec.route else { panic!("{spec:?}") };
    rules
}

fn backend(namespace: &str, name: &str, port: u16, weight: u32) -> Backend {
    let target = BackendRef::Service { namespace: namespace.into(), name: name.into(), port };
    Backend { target, weight, filters: vec![] }
}
