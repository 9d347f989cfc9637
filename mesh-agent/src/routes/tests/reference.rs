//! The table against the standard's text taken literally: every match is looked at, and the one that beats all others in
//! a comparison by pairs wins.

use http::{HeaderMap, HeaderName, Method, Uri};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use regex::Regex;

use super::super::build::{self, Request};
use super::super::*;

/// A match with what decides between equals.
struct Contender<'a> {
    route: &'a Route,
    rule: usize,
    place: usize,
    asked: &'a Match,
}

impl Contender<'_> {
    fn matches(&self, request: &Request) -> bool {
        let Match { path, method, headers, query } = self.asked;
        let values = |wanted: &str| match wanted {
            "host" => Some(request.host.clone()),
            _ => {
                let all: Vec<&str> = request.headers.get_all(wanted).iter().map(|v| v.to_str().unwrap()).collect();
                let separator = if wanted == "cookie" { "; " } else { "," };
                (!all.is_empty()).then(|| all.join(separator))
            }
        };
        let parameter = |wanted: &str| {
            let pairs = request.uri.query()?.split('&').filter(|pair| !pair.is_empty());
            pairs
                .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
                .find(|(name, _)| *name == wanted)
                .map(|(_, v)| v)
        };
        path.as_ref().is_none_or(|path| is_path(path, request.uri.path()))
            && method.as_ref().is_none_or(|method| *method == request.method)
            && distinct(headers).all(|(name, text)| values(name.as_str()).is_some_and(|value| is_text(text, &value)))
            && distinct(query).all(|(name, text)| parameter(name).is_some_and(|value| is_text(text, value)))
    }

    /// Criterion by criterion, each time the larger first.
    fn criteria(&self) -> [usize; 6] {
        let Match { path, method, headers, query } = self.asked;
        let [first, second, third] = match (self.route.kind, path) {
            (RouteKind::Grpc, Some(PathMatch::Call(call))) => match &*call.path {
                PathMatch::Exact(path) => {
                    let (service, method) = path[1..].split_once('/').unwrap();
                    [service.len(), method.len(), 0]
                }
                PathMatch::Prefix(path) => [path[1..].len(), 0, 0],
                other => panic!("not generated: {other:?}"),
            },
            (RouteKind::Grpc, None) => [0, 0, 0],
            (_, Some(PathMatch::Exact(_))) => [2, 0, 0],
            (_, Some(PathMatch::Regex(_))) => [1, 0, 0],
            (_, Some(PathMatch::Prefix(path))) => [0, path.trim_end_matches('/').len(), 0],
            (_, None) => [0, 0, 0],
            other => panic!("not generated: {other:?}"),
        };
        [first, second, third, method.is_some().into(), distinct(headers).count(), distinct(query).count()]
    }

    fn beats(&self, other: &Contender<'_>) -> bool {
        for (mine, theirs) in self.criteria().into_iter().zip(other.criteria()) {
            if mine != theirs {
                return mine > theirs;
            }
        }
        let full = |route: &Route| format!("{}/{}", route.namespace, route.name);
        let (mine, theirs) = (self.route, other.route);
        if mine.created != theirs.created {
            return mine.created < theirs.created;
        }
        if full(mine) != full(theirs) {
            return full(mine) < full(theirs);
        }
        (self.rule, self.place) < (other.rule, other.place)
    }
}

fn distinct<N: PartialEq>(asked: &[(N, Text)]) -> impl Iterator<Item = &(N, Text)> {
    asked.iter().enumerate().filter(|(at, (name, _))| asked[..*at].iter().all(|(n, _)| n != name)).map(|(_, pair)| pair)
}

fn is_path(asked: &PathMatch, path: &str) -> bool {
    match asked {
        PathMatch::Exact(wanted) => **wanted == *path,
        PathMatch::Regex(pattern) => pattern.is_match(path),
        // Element by element.
        PathMatch::Prefix(prefix) => {
            let wanted: Vec<&str> = prefix.trim_end_matches('/').split('/').collect();
            path.split('/').collect::<Vec<_>>().starts_with(&wanted)
        }
        PathMatch::Call(call) => is_path(&call.path, path),
    }
}

fn is_text(asked: &Text, value: &str) -> bool {
    match asked {
        Text::Exact(wanted) => **wanted == *value,
        Text::Regex(pattern) => pattern.is_match(value),
    }
}

fn wanted<'a>(routes: &'a [Route], request: &Request) -> Option<(&'a str, usize)> {
    let mut contenders = Vec::new();
    for route in routes {
        let Rules::Requests(rules) = &route.rules else { panic!("not generated") };
        for (index, rule) in rules.iter().enumerate() {
            let each = rule.matches.iter().enumerate();
            contenders.extend(each.map(|(place, asked)| Contender { route, rule: index, place, asked }));
        }
    }
    contenders.retain(|contender| contender.matches(request));
    let best =
        contenders.iter().find(|one| contenders.iter().all(|other| std::ptr::eq(*one, other) || one.beats(other)));
    assert_eq!(best.is_none(), contenders.is_empty(), "one of them beats all others");
    best.map(|best| (&*best.route.name, best.rule))
}

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
        assert_eq!(found, wanted(routes, request), "{request:?}");
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
