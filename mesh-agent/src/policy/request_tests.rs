//! Rules on requests: what each attribute means, what cannot be known, and that the index changes no decision.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use proptest::prelude::*;

use super::request::normal_host;
use super::*;
use crate::path;
use crate::tokens::Token;

/// A request in words.
#[derive(Clone, Debug)]
struct Ask {
    account: &'static str,
    method: &'static str,
    host: &'static str,
    path: &'static str,
    headers: Vec<(&'static str, &'static str)>,
    token: Option<Token>,
}

fn get(path: &'static str) -> Ask {
    Ask { account: "web", method: "GET", host: "web.shop", path, headers: Vec::new(), token: None }
}

impl Ask {
    fn decide(&self, policies: &[AuthorizationPolicy]) -> Result<Permit, Denial> {
        self.put(policies, |compiled, request| authorize_request(compiled, &self.facts(), request, &[]))
    }

    fn audited(&self, policies: &[AuthorizationPolicy]) -> Vec<Arc<str>> {
        self.put(policies, |compiled, request| audited_request(compiled, &self.facts(), request))
    }

    fn facts(&self) -> Facts {
        Facts {
            source: SpiffeId::new("cluster.local", "shop", self.account).ok(),
            is_same_node: false,
            source_ip: IpAddr::from([10, 0, 0, 1]),
            destination_ip: IpAddr::from([10, 0, 0, 9]),
            destination_port: 80,
        }
    }

    fn put<T>(&self, policies: &[AuthorizationPolicy], ask: impl FnOnce(&WorkloadPolicy, &Request<'_>) -> T) -> T {
        let method = Method::from_bytes(self.method.as_bytes()).unwrap();
        let host = normal_host(self.host).unwrap();
        let path = path::normalise(self.path).unwrap();
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_static(value));
        }
        let request =
            Request { method: &method, host: &host, path: &path, headers: &headers, token: self.token.as_ref() };
        ask(&compiled(policies), &request)
    }
}

fn compiled(policies: &[AuthorizationPolicy]) -> WorkloadPolicy {
    let set = PolicySet::new(vec![], policies.to_vec(), vec![]);
    set.compile(&Subject { namespace: "shop", labels: &BTreeMap::new(), services: &BTreeMap::new() })
}

fn policy(name: &str, action: Action, rules: Vec<Rule>) -> AuthorizationPolicy {
    let meta = PolicyMeta { id: format!("shop/{name}").into(), created: None };
    AuthorizationPolicy { meta, targets: vec![Target::Namespace("shop".into())], action, provider: None, rules }
}

fn rule(operation: Operation, conditions: Vec<Condition>) -> Rule {
    let operations = if operation.is_empty() { vec![] } else { vec![operation] };
    Rule { sources: vec![Source::Any], operations, conditions, ..Rule::default() }
}

fn words(list: &[&str]) -> Vec<Pattern> {
    list.iter().map(|word| Pattern::parse(word).unwrap()).collect()
}

fn of_paths(list: &[&str]) -> Vec<PathPattern> {
    list.iter().map(|path| PathPattern::parse(path).unwrap()).collect()
}

fn paths(list: &[&str]) -> Rule {
    rule(Operation { paths: of_paths(list), ..Operation::default() }, vec![])
}

fn not_paths(list: &[&str]) -> Rule {
    rule(Operation { not_paths: of_paths(list), ..Operation::default() }, vec![])
}

fn methods(list: &[&str]) -> Rule {
    rule(Operation { methods: words(list), ..Operation::default() }, vec![])
}

fn not_methods(list: &[&str]) -> Rule {
    rule(Operation { not_methods: words(list), ..Operation::default() }, vec![])
}

fn hosts(list: &[&str]) -> Rule {
    rule(Operation { hosts: words(list), ..Operation::default() }, vec![])
}

fn when(key: Attribute, values: &[&str], not_values: &[&str]) -> Rule {
    rule(Operation::default(), vec![Condition { key, values: words(values), not_values: words(not_values) }])
}

fn header(name: &'static str) -> Attribute {
    Attribute::Header(HeaderName::from_static(name))
}

fn claim(path: &[&str]) -> Attribute {
    Attribute::Claim(path.iter().map(|name| Arc::from(*name)).collect())
}

/// FIELD 6.4 D: whoever chooses how a request is written does not choose how it is judged.
#[test]
fn a_rule_means_a_request_however_it_is_written() {
    let with = |ask: Ask, headers: &[(&'static str, &'static str)]| Ask { headers: headers.to_vec(), ..ask };
    let method = |method| Ask { method, ..get("/") };
    let host = |host| Ask { host, ..get("/") };
    // (what, the rule, the request, whether ALLOW lets it pass, whether DENY refuses it)
    let table: Vec<(&str, Rule, Ask, bool, bool)> = vec![
        ("the path", paths(&["/admin"]), get("/admin"), true, true),
        ("another path", paths(&["/admin"]), get("/user"), false, false),
        ("one of the paths", paths(&["/user", "/admin/*"]), get("/admin/x"), true, true),
        ("a template", paths(&["/u/{*}/x"]), get("/u/7/x"), true, true),
        ("D1", paths(&["/admin"]), get("//admin"), true, true),
        ("D2", paths(&["/admin"]), get("/%61dmin"), true, true),
        ("D2 slash: DENY sees both", paths(&["/a/b"]), get("/a%2fb"), false, true),
        ("D2 slash as meant", paths(&["/a%2Fb", "/a/b"]), get("/a%2fb"), true, true),
        ("D3", paths(&["/admin"]), get("/a/../admin"), true, true),
        ("D4", paths(&["/a/b"]), get("/a%5cb"), false, true),
        ("D5: DENY sees both", paths(&["/admin"]), get("/admin;x"), false, true),
        ("D5 as a prefix", paths(&["/admin*"]), get("/admin;x"), true, true),
        ("D6: paths have case", paths(&["/admin"]), get("/Admin"), false, false),
        ("all but a path", not_paths(&["/admin"]), get("/user"), true, true),
        ("all but this path", not_paths(&["/admin"]), get("/admin"), false, false),
        ("all but a path, in two readings", not_paths(&["/admin"]), get("/admin;x"), false, true),
        ("the method", methods(&["GET"]), get("/"), true, true),
        ("another method", methods(&["GET"]), method("POST"), false, false),
        ("a method in lower case", methods(&["GET"]), method("get"), false, true),
        ("any method but", not_methods(&["GET"]), method("POST"), true, true),
        ("any method but this", not_methods(&["GET"]), get("/"), false, false),
        ("D14", methods(&["GET"]), with(get("/"), &[("x-http-method-override", "DELETE")]), false, true),
        ("D14, as CGI has it", methods(&["GET"]), with(get("/"), &[("x_http_method_override", "DELETE")]), false, true),
        ("D14, DENY, so", methods(&["DELETE"]), with(get("/"), &[("x_method-override", "delete")]), false, true),
        ("D14, DENY", methods(&["DELETE"]), with(get("/"), &[("x-method-override", "delete")]), false, true),
        ("D14, any but", not_methods(&["DELETE"]), with(get("/"), &[("x-http-method", "DELETE")]), false, true),
        ("the host", hosts(&["web.shop"]), get("/"), true, true),
        ("D7 port", hosts(&["web.shop"]), host("web.shop:8080"), true, true),
        ("D7 case", hosts(&["web.shop"]), host("WEB.Shop"), true, true),
        ("D7 dot", hosts(&["web.shop"]), host("web.shop.:80"), true, true),
        ("D7 IPv6", hosts(&["[::1]"]), host("[0:0::1]:80"), true, true),
        ("hosts that end so", hosts(&["*.shop"]), host("a.b.shop"), true, true),
        ("hosts that do not", hosts(&["*.shop"]), host("shop"), false, false),
        ("a header", when(header("x-a"), &["1"], &[]), with(get("/"), &[("x-a", "1")]), true, true),
        ("a header that is not there", when(header("x-a"), &["1"], &[]), get("/"), false, false),
        ("a header that must be there", when(header("x-a"), &["*"], &[]), get("/"), false, false),
        ("D9 first", when(header("x-a"), &["1"], &[]), with(get("/"), &[("x-a", "1"), ("x-a", "2")]), false, true),
        ("D9 last", when(header("x-a"), &["2"], &[]), with(get("/"), &[("x-a", "1"), ("x-a", "2")]), false, true),
        ("D9 both", when(header("x-a"), &["1", "2"], &[]), with(get("/"), &[("x-a", "1"), ("x-a", "2")]), true, true),
        ("D9 in a list", when(header("x-a"), &["2"], &[]), with(get("/"), &[("x-a", "1, 2")]), false, true),
        ("D9 not", when(header("x-a"), &[], &["2"]), with(get("/"), &[("x-a", "1"), ("x-a", "2")]), false, true),
        ("D9 not, in a list", when(header("x-a"), &[], &["2"]), with(get("/"), &[("x-a", "1,2")]), false, true),
        ("not, absent", when(header("x-a"), &[], &["2"]), get("/"), true, true),
        ("D10", when(header("x-role"), &["admin"], &[]), with(get("/"), &[("x_role", "admin")]), true, true),
        (
            "D10 beside the real one",
            when(header("x-role"), &["user"], &[]),
            with(get("/"), &[("x-role", "user"), ("x_role", "admin")]),
            false,
            true,
        ),
        ("Host as a header", when(header("host"), &["web.shop"], &[]), host("Web.shop:80"), true, true),
        (
            "D15 forged fields decide nothing",
            Rule { sources: vec![account("api")], ..paths(&["/*"]) },
            with(get("/"), &[("x-forwarded-client-cert", "URI=spiffe://cluster.local/ns/shop/sa/api")]),
            false,
            false,
        ),
    ];
    for (what, rule, ask, passes, is_refused) in table {
        let allow = ask.decide(&[policy("p", Action::Allow, vec![rule.clone()])]);
        assert_eq!(allow.is_ok(), passes, "ALLOW, {what}: {rule:?} {ask:?} {allow:?}");
        let deny = ask.decide(&[policy("p", Action::Deny, vec![rule.clone()])]);
        assert_eq!(deny.is_err(), is_refused, "DENY, {what}: {rule:?} {ask:?} {deny:?}");
        let audited = ask.audited(&[policy("p", Action::Audit, vec![rule.clone()])]);
        assert_eq!(!audited.is_empty(), is_refused, "AUDIT is as DENY, {what}");
    }
    assert_eq!(normal_host("a.."), None);
    assert_eq!(normal_host("."), None);
}

#[test]
fn what_a_token_says() {
    let claims = serde_json::json!({
        "groups": ["dev", "ops"], "scope": "read write", "realm": {"roles": ["admin"]}, "level": 3, "null": null
    });
    let token = Token {
        principal: "https://issuer/alice".into(),
        audiences: vec!["shop".into(), "web".into()],
        claims: claims.as_object().unwrap().clone(),
    };
    // (the rule, with the token, without)
    for (key, values, not_values, with, without) in [
        (Attribute::Principal, vec!["https://issuer/alice"], vec![], true, false),
        (Attribute::Principal, vec!["https://issuer/*"], vec![], true, false),
        (Attribute::Principal, vec!["*"], vec![], true, false),
        (Attribute::Principal, vec!["https://other/*"], vec![], false, false),
        (Attribute::Principal, vec![], vec!["*"], false, true),
        (Attribute::Audiences, vec!["web"], vec![], true, false),
        (claim(&["groups"]), vec!["ops"], vec![], true, false),
        (claim(&["groups"]), vec!["root"], vec![], false, false),
        (claim(&["groups"]), vec![], vec!["ops"], false, true),
        (claim(&["scope"]), vec!["write"], vec![], true, false),
        (claim(&["scope"]), vec!["rite"], vec![], false, false),
        (claim(&["realm", "roles"]), vec!["admin"], vec![], true, false),
        (claim(&["realm"]), vec!["*"], vec![], false, false),
        (claim(&["level"]), vec!["3"], vec![], true, false),
        (claim(&["null"]), vec!["*"], vec![], false, false),
        (claim(&["groups", "x"]), vec!["*"], vec![], false, false),
    ] {
        let rule = when(key, &values, &not_values);
        for action in [Action::Allow, Action::Deny] {
            for (token, expected) in [(Some(token.clone()), with), (None, without)] {
                let ask = Ask { token, ..get("/") };
                let seen = ask.decide(&[policy("p", action, vec![rule.clone()])]).is_ok() == (action == Action::Allow);
                assert_eq!(seen, expected, "{action:?} {rule:?} {ask:?}");
            }
        }
    }
}

/// D16: what cannot be known is never the weaker reading.
#[test]
fn a_connection_of_bytes_meets_rules_on_requests_closed() {
    let of_bytes = |policies: &[AuthorizationPolicy]| {
        authorize(&compiled(policies), &get("/").facts()).map(drop).map_err(|denial| denial.reason)
    };
    let coming = |policies: &[AuthorizationPolicy]| match admit(&compiled(policies), &get("/").facts()) {
        Ok(Admission::Bytes(_)) => "bytes",
        Ok(Admission::Requests(_)) => "requests",
        Err(denial) => denial.reason.label(),
    };
    let l7 = |action| policy("l7", action, vec![paths(&["/a"])]);
    let l4 = |action| policy("l4", action, vec![Rule { sources: vec![account("web")], ..Rule::default() }]);
    let others = |action| policy("o", action, vec![Rule { sources: vec![account("api")], ..paths(&["/a"]) }]);
    let elsewhere = |action| policy("e", action, vec![Rule { ports: vec![81], ..paths(&["/a"]) }]);
    use Action::{Allow, Audit, Deny};
    use DenyReason::{DenyRule, NoAllowRule};
    for (policies, bytes, requests) in [
        (vec![l7(Deny)], Err(DenyRule), "requests"),
        (vec![l7(Allow)], Err(NoAllowRule), "requests"),
        (vec![l7(Audit)], Ok(()), "bytes"),
        (vec![l4(Allow), l7(Allow)], Ok(()), "bytes"),
        (vec![l4(Allow), l7(Deny)], Err(DenyRule), "requests"),
        (vec![l4(Deny), l7(Allow)], Err(DenyRule), "deny-rule"),
        (vec![others(Deny)], Ok(()), "bytes"),
        (vec![others(Allow)], Err(NoAllowRule), "no-allow-rule"),
        (vec![elsewhere(Deny)], Ok(()), "bytes"),
        (vec![elsewhere(Allow)], Err(NoAllowRule), "no-allow-rule"),
    ] {
        assert_eq!(of_bytes(&policies), bytes, "{policies:?}");
        assert_eq!(coming(&policies), requests, "{policies:?}");
    }
    assert_eq!(audited(&compiled(&[l7(Audit)]), &get("/").facts()), [Arc::from("shop/l7")], "recorded, if in doubt");
}

#[test]
fn the_policy_and_the_rule_are_named() {
    let policies = [
        policy("a", Action::Allow, vec![paths(&["/x"]), paths(&["/y"])]),
        policy("b", Action::Allow, vec![paths(&["/*"])]),
        policy("c", Action::Deny, vec![methods(&["PUT"]), paths(&["/y/*", "/z"])]),
    ];
    let named = |ask: Ask| match ask.decide(&policies) {
        Ok(permit) => (permit.rule, permit.number),
        Err(denial) => (denial.rule, denial.number),
    };
    assert_eq!(named(get("/y")), (Some("shop/a".into()), Some(1)));
    assert_eq!(named(get("/w")), (Some("shop/b".into()), Some(0)));
    assert_eq!(named(get("/z")), (Some("shop/c".into()), Some(1)));
    let nobody = policy("n", Action::Deny, vec![]);
    let denial = get("/y").decide(&[policies[0].clone(), nobody]).unwrap_err();
    assert_eq!((denial.rule, denial.number), (Some("shop/n".into()), None));
}

/// Whoever is to be asked is asked first, and what nobody was asked about passes nowhere.
#[test]
fn custom_comes_first_and_is_never_passed_over() {
    let admin = || paths(&["/admin/*"]);
    let web = Rule { sources: vec![account("web")], ..Rule::default() };
    let custom = |name: &str, rules| AuthorizationPolicy {
        provider: Some(Provider { places: vec![("shop".into(), name.into())] }),
        ..policy(name, Action::Custom, rules)
    };
    let deny = policy("deny", Action::Deny, vec![paths(&["/admin/b"])]);
    let allow = policy("allow", Action::Allow, vec![paths(&["/admin/*", "/x"])]);
    let all = [custom("a", vec![admin()]), custom("b", vec![web]), deny, allow];
    let refused = |reason, rule: &str| Err((reason, Some(rule.to_string())));
    // (policies, who and what, who is to be asked, what is decided when they were, and when they were not)
    let unasked = |rule| refused(DenyReason::AuthorizerUnasked, rule);
    for (policies, ask, referred, answered, ignored) in [
        (&all[..1], get("/x"), vec![], Ok(()), Ok(())),
        (&all[..1], get("/admin/a"), vec!["shop/a"], Ok(()), unasked("shop/a")),
        (&all[..1], get("/%61dmin/../admin//a"), vec!["shop/a"], Ok(()), unasked("shop/a")),
        (&all[..2], get("/admin/a"), vec!["shop/a", "shop/b"], Ok(()), unasked("shop/a")),
        (&all[..2], Ask { account: "api", ..get("/x") }, vec![], Ok(()), Ok(())),
        (&all[..], get("/x"), vec!["shop/b"], Ok(()), unasked("shop/b")),
        (
            &all[..],
            get("/admin/b"),
            vec!["shop/a", "shop/b"],
            refused(DenyReason::DenyRule, "shop/deny"),
            unasked("shop/a"),
        ),
        (&all[..], get("/y"), vec!["shop/b"], refused(DenyReason::NoAllowRule, "shop/allow"), unasked("shop/b")),
        (&[custom("none", vec![])][..], get("/x"), vec!["shop/none"], Ok(()), unasked("shop/none")),
    ] {
        let seen = ask.put(policies, |compiled, request| {
            let referrals = referrals(compiled, &ask.facts(), request);
            let named: Vec<String> = referrals.iter().map(|referral| referral.policy.to_string()).collect();
            assert!(referrals.iter().all(|referral| referral.provider.is_some()), "{ask:?}");
            let all: Vec<Arc<str>> = referrals.iter().map(|referral| referral.policy.clone()).collect();
            let decide = |answered: &[Arc<str>]| {
                let decided = authorize_request(compiled, &ask.facts(), request, answered);
                decided.map(drop).map_err(|denial| (denial.reason, denial.rule.map(|rule| rule.to_string())))
            };
            (named, decide(&all), decide(&[]))
        });
        assert_eq!(seen, (referred.iter().map(ToString::to_string).collect(), answered, ignored), "{ask:?}");
    }
}

/// What is not read cannot be asked about.
#[test]
fn bytes_that_somebody_should_be_asked_about_do_not_pass() {
    let custom = |rules| [policy("c", Action::Custom, rules)];
    let from = |name| Rule { sources: vec![account(name)], ..Rule::default() };
    let elsewhere = Rule { ports: vec![81], ..from("web") };
    for (rules, is_covered) in [
        (vec![from("web")], true),
        (vec![paths(&["/admin"])], true),
        (vec![], true),
        (vec![from("api")], false),
        (vec![elsewhere], false),
    ] {
        let compiled = compiled(&custom(rules.clone()));
        let facts = get("/").facts();
        let bytes = authorize(&compiled, &facts).map(drop).map_err(|denial| denial.reason);
        assert_eq!(bytes, if is_covered { Err(DenyReason::RequestsUnread) } else { Ok(()) }, "{rules:?}");
        let reads = matches!(admit(&compiled, &facts), Ok(Admission::Requests(_)));
        assert_eq!(reads, is_covered, "{rules:?}");
    }
    // Nobody is asked about what is refused anyway.
    let unreadable = Unreadable {
        meta: PolicyMeta { id: "shop/u".into(), created: None },
        targets: vec![Target::Mesh],
        weight: Weight::DenyAll,
    };
    let set = PolicySet::new(vec![], custom(vec![]).to_vec(), vec![unreadable]);
    let compiled = set.compile(&Subject { namespace: "shop", labels: &BTreeMap::new(), services: &BTreeMap::new() });
    let (path, headers) = (path::normalise("/").unwrap(), HeaderMap::new());
    let request = Request { method: &Method::GET, host: "w", path: &path, headers: &headers, token: None };
    assert_eq!(referrals(&compiled, &get("/").facts(), &request), []);
    let denial = authorize_request(&compiled, &get("/").facts(), &request, &[]).unwrap_err();
    assert_eq!(denial.reason, DenyReason::UnreadablePolicy);
}

/// What does not match costs nothing: among 1 000 policies a request looks at those of its path and its caller.
#[test]
fn a_decision_looks_at_few_of_a_thousand_policies() {
    let own = |number: usize| {
        let paths =
            Operation { paths: of_paths(&[&format!("/{number}/*"), &format!("/x/{number}")]), ..Operation::default() };
        let caller = Rule { sources: vec![account(&format!("a{number}"))], ..methods(&["GET"]) };
        policy(&format!("p{number}"), Action::Allow, vec![rule(paths, vec![]), caller])
    };
    let compiled = compiled(&(0..1000).map(own).collect::<Vec<_>>());
    let (_, index) = compiled.of(Action::Allow);
    let (method, path, headers) = (Method::GET, path::normalise("/77/a").unwrap(), HeaderMap::new());
    let request = Request { method: &method, host: "w", path: &path, headers: &headers, token: None };
    let mut looked = 0;
    index.unwrap().visit(&get("/").facts(), &request, |numbers| looked += numbers.len());
    assert_eq!(looked, 1);
    let permit = authorize_request(&compiled, &get("/").facts(), &request, &[]).unwrap();
    assert_eq!((permit.rule.as_deref(), permit.number), (Some("shop/p77"), Some(0)));
}

proptest! {
    /// The index finds what reading every rule finds: the same decision by the same rule.
    #[test]
    fn the_index_and_reading_all_rules_agree(
        policies in prop::collection::vec(a_policy(), 0..6),
        ask in an_ask(),
    ) {
        let (indexed, audited) = (ask.decide(&policies), ask.audited(&policies));
        let plain = ask.put(&policies, |compiled, request| {
            let compiled = WorkloadPolicy { indexes: None, ..compiled.clone() };
            (
                authorize_request(&compiled, &ask.facts(), request, &[]),
                audited_request(&compiled, &ask.facts(), request),
            )
        });
        prop_assert_eq!((indexed, audited), plain);
    }

    /// What may be said without requests holds for all of them, and bytes never get further than the worst request.
    #[test]
    fn what_is_said_without_requests_is_never_weaker(
        policies in prop::collection::vec(a_policy(), 0..5),
        ask in an_ask(),
    ) {
        let compiled = compiled(&policies);
        let decided = ask.decide(&policies);
        match admit(&compiled, &ask.facts()) {
            Ok(Admission::Bytes(_)) => prop_assert!(decided.is_ok()),
            Ok(Admission::Requests(_)) => {}
            Err(_) => prop_assert!(decided.is_err()),
        }
        if authorize(&compiled, &ask.facts()).is_ok() {
            prop_assert!(decided.is_ok(), "bytes pass where a request does not");
        }
    }

    /// D17: one more DENY never opens, one more ALLOW beside another never closes.
    #[test]
    fn one_more_policy_moves_a_decision_in_its_own_direction(
        policies in prop::collection::vec(a_policy(), 1..4),
        more in a_policy(),
        ask in an_ask(),
    ) {
        let before = ask.decide(&policies).is_ok();
        let with = |action| [policies.clone(), vec![AuthorizationPolicy { action, ..more.clone() }]].concat();
        prop_assert!(before || ask.decide(&with(Action::Deny)).is_err());
        let has_allow = policies.iter().any(|policy| policy.action == Action::Allow);
        prop_assert!(!before || !has_allow || ask.decide(&with(Action::Allow)).is_ok());
        prop_assert_eq!(before, ask.decide(&with(Action::Audit)).is_ok());
        prop_assert!(before || ask.decide(&with(Action::Custom)).is_err());
    }
}

fn some<T: Clone + std::fmt::Debug + 'static>(values: &'static [T]) -> impl Strategy<Value = Vec<T>> {
    prop::collection::vec(prop::sample::select(values), 0..3)
}

fn a_policy() -> impl Strategy<Value = AuthorizationPolicy> {
    let action = prop_oneof![Just(Action::Allow), Just(Action::Deny), Just(Action::Audit), Just(Action::Custom)];
    ("[a-e]", action, prop::collection::vec(a_rule(), 0..4))
        .prop_map(|(name, action, rules)| policy(&name, action, rules))
}

fn a_rule() -> impl Strategy<Value = Rule> {
    let sources = prop::collection::vec(
        prop_oneof![
            Just(Source::Any),
            Just(account("web")),
            Just(account("api")),
            Just(Source::Namespace { trust_domain: "cluster.local".into(), namespace: "shop".into() }),
        ],
        0..3,
    );
    let not_sources = prop_oneof![3 => Just(vec![]), 1 => Just(vec![account("api")])];
    let ports = prop_oneof![3 => Just(vec![]), 1 => Just(vec![80]), 1 => Just(vec![81])];
    let conditions = prop::collection::vec(
        (some(&["1", "2", "*"]), some(&["2", "3"])).prop_map(|(values, not)| Condition {
            key: header("x-a"),
            values: words(&values),
            not_values: words(&not),
        }),
        0..2,
    );
    (sources, not_sources, ports, prop::collection::vec(an_operation(), 0..3), conditions).prop_map(
        |(sources, not_sources, ports, operations, conditions)| Rule {
            sources,
            not_sources,
            ports,
            operations,
            conditions,
        },
    )
}

const PATHS: &[&str] = &["/a", "/a/*", "/a*", "*", "*/b", "/{*}/b", "/a/{**}", "/{**}/b", "/c", "/a%2Fb"];

fn an_operation() -> impl Strategy<Value = Operation> {
    let methods = || some(&["GET", "POST", "*"]);
    let hosts = || some(&["web.shop", "*.shop", "api"]);
    (methods(), methods(), hosts(), hosts(), some(PATHS), some(PATHS)).prop_map(
        |(methods, not_methods, hosts, not_hosts, paths, not_paths)| Operation {
            hosts: words(&hosts),
            not_hosts: words(&not_hosts),
            methods: words(&methods),
            not_methods: words(&not_methods),
            paths: of_paths(&paths),
            not_paths: of_paths(&not_paths),
        },
    )
}

fn an_ask() -> impl Strategy<Value = Ask> {
    let paths = prop::sample::select(&["/", "/a", "/a/", "/a/b", "/a%2fb", "/a;x", "/a;x/b", "/c", "//a", "/b/b"][..]);
    let header = (prop::sample::select(&["x-a", "x_a", "x-b"][..]), prop::sample::select(&["1", "2", "1,3", ""][..]));
    (
        prop::sample::select(&["web", "api"][..]),
        prop::sample::select(&["GET", "POST", "get"][..]),
        prop::sample::select(&["web.shop", "API:80", "other"][..]),
        paths,
        prop::collection::vec(header, 0..3),
    )
        .prop_map(|(account, method, host, path, headers)| Ask {
            account,
            method,
            host,
            path,
            headers,
            token: None,
        })
}

fn account(name: &str) -> Source {
    Source::Principal(Principal::Exact(SpiffeId::new("cluster.local", "shop", name).unwrap()))
}
