//! The table and the reference agree on random routes and requests.

use http::{HeaderMap, HeaderName, Method, Uri};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use regex::Regex;

use super::super::build::{self, Request};
use super::super::reference::wanted;
use super::super::*;

const SEGMENTS: &[&str] = &["a", "b", "ab", "c"];
const HEADERS: &[&str] = &["x", "y", "host", "cookie"];
const VALUES: &[&str] = &["1", "2", "12", "1,2", "1; 2"];

fn path() -> impl Strategy<Value = String> {
    (vec(select(SEGMENTS), 0..4), any::<bool>()).prop_map(|(segments, slash)| {
        let path: String = segments.iter().map(|segment| format!("/{segment}")).collect();
        if slash || path.is_empty() { path + "/" } else { path }
    })
}

fn text() -> impl Strategy<Value = Text> {
    prop_oneof![
        3 => select(VALUES).prop_map(|value| Text::Exact(value.into())),
        1 => patterns(&["[12]", ".*", "1.2"]).prop_map(Text::Regex),
    ]
}

fn patterns(texts: &[&str]) -> impl Strategy<Value = Regex> + use<> {
    select(texts.iter().map(|text| anchored(text).unwrap()).collect::<Vec<_>>())
}

fn http_path() -> impl Strategy<Value = PathMatch> {
    prop_oneof![
        2 => path().prop_map(|path| PathMatch::Exact(path.into())),
        3 => path().prop_map(|path| PathMatch::Prefix(path.into())),
        1 => patterns(&["/a.*", ".*b", "/[ab]/c?", "/a"]).prop_map(PathMatch::Regex),
    ]
}

fn grpc_path() -> impl Strategy<Value = PathMatch> {
    let name = || select(SEGMENTS).prop_map(grpc::Name::Exact);
    (name(), option::of(name())).prop_map(|(service, method)| grpc::call(Some(service), method).unwrap())
}

fn asked(path: impl Strategy<Value = PathMatch>, http: bool) -> impl Strategy<Value = Match> {
    let name = || select(HEADERS).prop_map(HeaderName::from_static);
    let methods = if http { vec![None, None, Some(Method::GET), Some(Method::POST)] } else { vec![None] };
    let parameters = if http { 3 } else { 1 };
    (
        option::weighted(0.8, path),
        select(methods),
        vec((name(), text()), 0..4),
        vec((select(&["p", "q"][..]).prop_map(Into::into), text()), 0..parameters),
    )
        .prop_map(|(path, method, headers, query)| Match { path, method, headers, query })
}

fn routes(kind: RouteKind) -> impl Strategy<Value = Vec<Route>> {
    let matches = match kind {
        RouteKind::Grpc => asked(grpc_path(), false).boxed(),
        _ => asked(http_path(), true).boxed(),
    };
    let rules = vec(vec(matches, 1..4), 0..4);
    vec((rules, select(&["n", "n-m"][..]), 0..2_i64), 0..6).prop_map(move |routes| {
        let route = |(at, (rules, namespace, created)): (usize, (Vec<Vec<Match>>, &str, i64))| {
            let rules = rules.into_iter().map(|matches| build::rule("x", matches)).collect();
            Route { kind, created, ..build::http(namespace, &format!("r{at}"), rules) }
        };
        routes.into_iter().enumerate().map(route).collect()
    })
}

fn request() -> impl Strategy<Value = Request> {
    let pair = || (select(&["p", "q", "r"][..]), select(&["1", "2", "12"][..]));
    (
        select(vec![Method::GET, Method::POST]),
        select(VALUES),
        path(),
        vec(pair(), 0..4),
        vec((select(&["x", "y", "cookie", "z", "w"][..]), select(&["1", "2", "12"][..])), 0..6),
    )
        .prop_map(|(method, host, path, query, headers)| {
            let query: Vec<String> = query.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
            let uri: Uri = format!("{path}?{}", query.join("&")).parse().unwrap();
            let request = Request { method, host: host.into(), uri, headers: HeaderMap::new() };
            headers.into_iter().fold(request, |request, (name, value)| request.header(name, value))
        })
}

fn agree(routes: &[Route], requests: &[Request]) {
    let table = Table::compile(routes);
    for request in requests {
        let found = table.find(&request.head()).map(|found| (&*found.rule.route, found.rule.index));
        assert_eq!(found, wanted(routes, &request.head()), "{request:?}");
    }
}

proptest! {
    #[test]
    fn http_routes_are_found_as_the_standard_orders_them(
        routes in routes(RouteKind::Http), requests in vec(request(), 1..12),
    ) {
        agree(&routes, &requests);
    }

    #[test]
    fn grpc_routes_are_found_as_the_standard_orders_them(
        routes in routes(RouteKind::Grpc), requests in vec(request(), 1..12),
    ) {
        agree(&routes, &requests);
    }
}
