//! Which rule a request meets, by tables and against a reference.

use http::Method;

use super::build::{self, exact, found, get, pattern, prefix, rule};
use super::*;

mod agreement;
mod conformance;
mod effort;

/// One HTTPRoute whose rules are named by their backends.
fn table(rules: &[(&str, Vec<Match>)]) -> Table {
    let rules = rules.iter().map(|(name, matches)| rule(name, matches.clone())).collect();
    Table::compile([&build::http("default", "r", rules)])
}

#[test]
fn paths() {
    let table = table(&[
        ("all", vec![prefix("/")]),
        ("foo", vec![prefix("/foo")]),
        ("slash", vec![prefix("/slash/")]),
        ("deep", vec![prefix("/foo/bar/baz")]),
        ("exact", vec![exact("/foo/exact")]),
        ("pattern", vec![pattern("/foo/[0-9]+")]),
        ("encoded", vec![prefix("/a%20b")]),
    ]);
    for (path, wanted) in [
        ("/", "all"),
        ("/foo", "foo"),
        ("/foo/", "foo"),
        ("/foo/bar", "foo"),
        ("/foo/bar/baz", "deep"),
        ("/foo/bar/baz/", "deep"),
        ("/foo/bar/bazz", "foo"),
        ("/foobar", "all"),
        ("/Foo", "all"),
        ("/slash", "slash"),
        ("/slash/", "slash"),
        ("/slash/x", "slash"),
        ("/slashx", "all"),
        ("/foo/exact", "exact"),
        ("/foo/exact/", "foo"),
        ("/foo/7", "pattern"),
        ("/foo/7/", "foo"),
        ("/a%20b/c", "encoded"),
        ("/a%20B/c", "all"),
        ("//foo", "all"),
        ("/foo//bar", "foo"),
        ("/foo/../x", "foo"),
        ("/%66oo", "all"),
    ] {
        assert_eq!(found(&table, &get(path)).as_deref(), Some(wanted), "{path}");
    }
}

#[test]
fn what_matches_everything_matches_a_target_that_is_no_path() {
    let all = table(&[("all", vec![Match::default()])]);
    let some = table(&[("foo", vec![prefix("/foo")])]);
    let star = get("*").method(Method::OPTIONS);
    assert_eq!(found(&all, &star).as_deref(), Some("all"));
    assert_eq!(found(&some, &star), None);
}

#[test]
fn precedence_within_a_route() {
    for (asked, rules) in [
        // Each list is in the wrong order: the last one has to win.
        (get("/a/b"), vec![prefix("/"), prefix("/a"), prefix("/a/b"), pattern("/a/."), exact("/a/b")]),
        (get("/a"), vec![prefix("/a"), prefix("/a").method(Method::GET)]),
        (
            get("/a?q=1").header("x", "1").header("y", "1"),
            vec![
                prefix("/").method(Method::GET).header("x", "1").header("y", "1").query("q", "1"),
                prefix("/a").query("q", "1"),
                prefix("/a").header("x", "1"),
                prefix("/a").header("x", "1").query("q", "1"),
                prefix("/a").header("x", "1").header("y", "1"),
                prefix("/a").method(Method::GET),
            ],
        ),
        // A regular expression counts like an exact value, and so do patterns of any length among themselves.
        (get("/a").header("x", "1"), vec![prefix("/a"), prefix("/a").header_pattern("x", ".")]),
    ] {
        let named: Vec<(String, Vec<Match>)> =
            rules.into_iter().enumerate().map(|(index, asked)| (index.to_string(), vec![asked])).collect();
        let last = (named.len() - 1).to_string();
        let borrowed: Vec<(&str, Vec<Match>)> = named.iter().map(|(name, m)| (name.as_str(), m.clone())).collect();
        assert_eq!(found(&table(&borrowed), &asked), Some(last), "{borrowed:?}");
    }
    let equal = table(&[("first", vec![pattern("/a.*")]), ("second", vec![pattern("/abc.*")])]);
    assert_eq!(found(&equal, &get("/abcd")).as_deref(), Some("first"));
}

#[test]
fn precedence_between_routes() {
    let route = |namespace: &str, name: &str, created: i64| {
        build::http(namespace, name, vec![rule(&format!("{namespace}/{name}"), vec![prefix("/")])]).at(created)
    };
    for (routes, wanted) in [
        (vec![route("a", "new", 2), route("b", "old", 1)], "b/old"),
        (vec![route("a", "b", 1), route("a", "a", 1)], "a/a"),
        // By the text "{namespace}/{name}", in which a hyphen comes before the slash.
        (vec![route("a", "x", 1), route("a-b", "x", 1)], "a-b/x"),
    ] {
        assert_eq!(found(&Table::compile(&routes), &get("/")).as_deref(), Some(wanted));
        assert_eq!(found(&Table::compile(routes.iter().rev()), &get("/")).as_deref(), Some(wanted));
    }
    // Age decides only between equals.
    let old = build::http("a", "old", vec![rule("old", vec![prefix("/")])]).at(1);
    let new = build::http("a", "new", vec![rule("new", vec![prefix("/x")])]).at(2);
    assert_eq!(found(&Table::compile([&old, &new]), &get("/x/y")).as_deref(), Some("new"));
}

#[test]
fn headers() {
    let table = table(&[
        ("joined", vec![prefix("/").header("x-list", "a,b")]),
        ("cookie", vec![prefix("/").header("cookie", "a=1; b=2")]),
        ("host", vec![prefix("/").header("Host", "shop.example")]),
        ("pattern", vec![prefix("/").header_pattern("x-version", "v[0-9]+")]),
        ("twice", vec![prefix("/").header("x-twice", "1").header("X-Twice", "2")]),
        ("empty", vec![prefix("/").header_pattern("x-any", ".*")]),
    ]);
    for (request, wanted) in [
        (get("/").header("x-list", "a,b"), Some("joined")),
        (get("/").header("x-list", "a").header("X-List", "b"), Some("joined")),
        (get("/").header("x-list", "b").header("x-list", "a"), None),
        (get("/").header("x-list", "a"), None),
        (get("/").header("cookie", "a=1").header("cookie", "b=2"), Some("cookie")),
        (get("/").host("shop.example"), Some("host")),
        (get("/").host("shop.example:80"), None),
        // The host is what routing was told, not a header that somebody left there.
        (get("/").header("host", "shop.example"), None),
        (get("/").header("x-version", "v12"), Some("pattern")),
        (get("/").header("x-version", "v12 "), None),
        (get("/").header("x-version", "xv12"), None),
        (get("/").header("x-version", "V12"), None),
        // Of equal names the first counts.
        (get("/").header("x-twice", "1"), Some("twice")),
        (get("/").header("x-twice", "2"), None),
        (get("/").header("x-any", ""), Some("empty")),
        (get("/").header("x-any", "\u{e9}"), Some("empty")),
        (get("/"), None),
    ] {
        assert_eq!(found(&table, &request).as_deref(), wanted, "{request:?}");
    }
}

#[test]
fn query_parameters() {
    let table = table(&[
        ("one", vec![prefix("/").query("a", "1")]),
        ("space", vec![prefix("/").query("s", "x y")]),
        ("pattern", vec![prefix("/").query_pattern("p", "[a-c]+")]),
        ("empty", vec![prefix("/").query("e", "")]),
    ]);
    for (uri, wanted) in [
        ("/?a=1", Some("one")),
        ("/?b=2&a=1&c", Some("one")),
        ("/?a=11", None),
        ("/?A=1", None),
        ("/?a=2&a=1", None),
        ("/?a=1&a=2", Some("one")),
        ("/?%61=%31", Some("one")),
        ("/?s=x+y", Some("space")),
        ("/?s=x%20y", Some("space")),
        ("/?p=abc", Some("pattern")),
        ("/?p=abcd", None),
        ("/?e", Some("empty")),
        ("/?e=", Some("empty")),
        ("/?", None),
        ("/", None),
    ] {
        assert_eq!(found(&table, &get(uri)).as_deref(), wanted, "{uri}");
    }
}

#[test]
fn a_request_learns_which_prefix_it_matched() {
    let table = table(&[
        ("all", vec![prefix("/")]),
        ("foo", vec![prefix("/foo/")]),
        ("exact", vec![exact("/x")]),
        ("pattern", vec![pattern("/y")]),
    ]);
    for (path, wanted) in [("/a", Some("")), ("/foo/a", Some("/foo")), ("/x", None), ("/y", None)] {
        let request = get(path);
        assert_eq!(table.find(&request.head()).unwrap().matched_prefix, wanted, "{path}");
    }
}

#[test]
fn one_kind_of_route_holds_in_a_table() {
    let routes = [
        build::http("a", "http", vec![rule("http", vec![prefix("/")])]),
        build::grpc(
            "a",
            "grpc",
            vec![rule("grpc", vec![grpc::call(Some(grpc::Name::Exact("s")), None).unwrap().into()])],
        ),
    ];
    let table = Table::compile(&routes);
    assert_eq!(found(&table, &get("/s/m")).as_deref(), Some("grpc"));
    assert_eq!(found(&table, &get("/other")), None);
}

#[test]
fn calls() {
    use grpc::Name::{Exact, Regex};
    let call = |name: &str, service, method| rule(name, vec![grpc::call(service, method).unwrap().into()]);
    let rules = vec![
        call("any", None, None),
        call("r", None, Some(Regex("G.*"))),
        call("m", None, Some(Exact("Get"))),
        call("R", Some(Regex("shop\\..*")), None),
        call("Rm", Some(Regex("shop\\..*")), Some(Exact("Get"))),
        call("S", Some(Exact("shop.Cart")), None),
        call("Sr", Some(Exact("shop.Cart")), Some(Regex("G.*"))),
        call("SM", Some(Exact("shop.Cart")), Some(Exact("Get"))),
    ];
    let table = Table::compile([&build::grpc("default", "r", rules)]);
    for (path, wanted) in [
        ("/shop.Cart/Get", "SM"),
        ("/shop.Cart/Go", "Sr"),
        ("/shop.Cart/Put", "S"),
        ("/shop.Pay/Get", "Rm"),
        ("/shop.Pay/Put", "R"),
        ("/x/Get", "m"),
        ("/x/Go", "r"),
        ("/x/Put", "any"),
        ("/shopxCart/Put", "any"),
        ("/shop.Cartx/Put", "R"),
        ("/Get", "any"),
    ] {
        assert_eq!(found(&table, &get(path)).as_deref(), Some(wanted), "{path}");
    }
}

#[test]
fn of_equal_calls_the_one_with_more_headers_goes_first() {
    let with = |name: &str, count: usize| {
        let mut asked: Match = grpc::call(Some(grpc::Name::Exact("s")), None).unwrap().into();
        for index in 0..count {
            asked = asked.header(&format!("x-{index}"), "1");
        }
        rule(name, vec![asked])
    };
    let table = Table::compile([&build::grpc("default", "r", vec![with("0", 0), with("1", 1), with("2", 2)])]);
    let request = get("/s/m").header("x-0", "1");
    assert_eq!(found(&table, &request).as_deref(), Some("1"));
    assert_eq!(found(&table, &request.header("x-1", "1")).as_deref(), Some("2"));
}
