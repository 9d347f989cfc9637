//! From routes to a table: what each match asks, and in which order matches are asked.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, Method};
use regex::Regex;

use super::object::{
    Backend, Filter, Match, PathMatch, Retry, Route, RouteKind, Rule, Rules, Said, Session, Text, Timeouts,
};

/// A rule as a request meets it.
#[derive(Clone, Debug, PartialEq)]
pub struct CompiledRule {
    /// HTTPRoute or GRPCRoute.
    pub kind: RouteKind,
    /// The route's namespace: references are made from there.
    pub namespace: Arc<str>,
    /// The route's name.
    pub route: Arc<str>,
    /// The rule's name, for telemetry and policies.
    pub name: Option<Arc<str>>,
    /// The rule's place in its route, from zero: tells rules without a name apart.
    pub index: usize,
    /// In this order.
    pub filters: Vec<Filter>,
    /// By weight.
    pub backends: Vec<Backend>,
    /// Zero is read as none.
    pub timeouts: Timeouts,
    /// When to try again.
    pub retry: Option<Retry>,
    /// Which endpoint a client comes back to.
    pub session: Option<Session>,
}

/// One match of one rule.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) rule: Arc<CompiledRule>,
    pub(super) path: Path,
    pub(super) method: Option<Method>,
    /// Each name once.
    pub(super) headers: Vec<(HeaderName, Text)>,
    /// Each name once.
    pub(super) query: Vec<(Arc<str>, Text)>,
}

/// Where an entry is looked for.
#[derive(Clone, Debug)]
pub(super) enum Path {
    Exact(Arc<str>),
    /// Without a slash at the end; `/` is empty.
    Prefix(Arc<str>),
    Regex(Regex),
}

/// All matches of all rules of routes of one kind, the first in precedence first.
pub(super) fn entries(routes: &[&Route]) -> Vec<Entry> {
    let mut ranked: Vec<(Rank, Entry)> = routes.iter().flat_map(|route| of_route(route)).collect();
    // Stable, and no two ranks are equal unless two routes have one name, which the world does not have.
    ranked.sort_by(|(a, _), (b, _)| a.cmp(b));
    ranked.into_iter().map(|(_, entry)| entry).collect()
}

fn of_route(route: &Route) -> Vec<(Rank, Entry)> {
    let Rules::Requests(rules) = &route.rules else { return Vec::new() };
    let (created, name) = route.age();
    let name: Arc<str> = name.into();
    let mut found = Vec::new();
    for (index, rule) in rules.iter().enumerate() {
        let compiled = Arc::new(CompiledRule::new(route, index, rule));
        for (place, asked) in rule.matches.iter().enumerate() {
            let entry = Entry::new(&compiled, asked);
            let age = Age { created, name: name.clone(), rule: index, place };
            found.push((Rank::new(asked.path.as_ref(), &entry, age), entry));
        }
    }
    found
}

impl CompiledRule {
    fn new(route: &Route, index: usize, rule: &Rule) -> Self {
        let Rule { name, matches: _, filters, backends, timeouts, retry, session } = rule;
        Self {
            kind: route.kind,
            namespace: route.namespace.clone(),
            route: route.name.clone(),
            name: name.clone(),
            index,
            filters: filters.clone(),
            backends: backends.clone(),
            timeouts: Timeouts { request: some(timeouts.request), backend_request: some(timeouts.backend_request) },
            retry: retry.clone(),
            session: session.clone(),
        }
    }
}

fn some(timeout: Option<Duration>) -> Option<Duration> {
    timeout.filter(|timeout| !timeout.is_zero())
}

impl Entry {
    fn new(rule: &Arc<CompiledRule>, asked: &Match) -> Self {
        let Match { path, method, headers, query } = asked;
        Self {
            rule: rule.clone(),
            path: Path::new(path.as_ref()),
            method: method.clone(),
            headers: first_of_each(headers),
            query: first_of_each(query),
        }
    }
}

/// "If multiple entries specify equivalent names, only the first entry must be considered."
fn first_of_each<N: Clone + Eq + Hash>(asked: &[(N, Text)]) -> Vec<(N, Text)> {
    let mut seen = HashSet::new();
    asked.iter().filter(|(name, _)| seen.insert(name)).cloned().collect()
}

impl Path {
    fn new(asked: Option<&PathMatch>) -> Self {
        match asked {
            None => Self::Prefix("".into()),
            Some(PathMatch::Exact(path)) => Self::Exact(path.clone()),
            Some(PathMatch::Prefix(path)) => Self::Prefix(trimmed(path)),
            Some(PathMatch::Regex(pattern)) => Self::Regex(pattern.clone()),
            Some(PathMatch::Call(call)) => Self::new(Some(&call.path)),
        }
    }
}

/// Without the slash at the end.
fn trimmed(prefix: &Arc<str>) -> Arc<str> {
    prefix.strip_suffix('/').map_or_else(|| prefix.clone(), Arc::from)
}

/// What decides between two matches of one request; the smaller wins.
///
/// HTTPRoute: "the match having an Exact path match; a Prefix path match with the largest number of characters; a method
/// match; the largest number of header matches; of query param matches; … the oldest Route; the Route appearing first in
/// alphabetical order by {namespace}/{name}; … the first matching rule."
/// GRPCRoute: "characters in a matching service; in a matching method; header matches", then as above.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    path: PathRank,
    has_method: Reverse<bool>,
    headers: Reverse<usize>,
    query: Reverse<usize>,
    age: Age,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum PathRank {
    Exact,
    /// The standard leaves the place of regular expressions open. Ours: whoever writes one means it to win over the
    /// plain prefix beside it. Two of them are equals here, since the length of a pattern says nothing of what it
    /// matches; so the author's order decides.
    Regex,
    Prefix(Reverse<usize>),
    /// By service, then by method.
    Call(Said, Said),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Age {
    created: i64,
    /// `namespace/name`
    name: Arc<str>,
    rule: usize,
    place: usize,
}

impl Rank {
    fn new(path: Option<&PathMatch>, entry: &Entry, age: Age) -> Self {
        let path = match entry.rule.kind {
            RouteKind::Grpc => call_rank(path),
            RouteKind::Http | RouteKind::Tcp | RouteKind::Tls => PathRank::of(&entry.path),
        };
        Self {
            path,
            has_method: Reverse(entry.method.is_some()),
            headers: Reverse(entry.headers.len()),
            query: Reverse(entry.query.len()),
            age,
        }
    }
}

impl PathRank {
    fn of(path: &Path) -> Self {
        match path {
            Path::Exact(_) => Self::Exact,
            Path::Regex(_) => Self::Regex,
            Path::Prefix(prefix) => Self::Prefix(Reverse(prefix.len())),
        }
    }
}

fn call_rank(path: Option<&PathMatch>) -> PathRank {
    let (service, method) = match path {
        None => (Said::Nothing, Said::Nothing),
        Some(PathMatch::Call(call)) => (call.service, call.method),
        Some(PathMatch::Exact(_)) => (Said::Exact, Said::Exact),
        Some(PathMatch::Prefix(prefix)) if &**prefix == "/" => (Said::Nothing, Said::Nothing),
        Some(PathMatch::Prefix(_)) => (Said::Exact, Said::Nothing),
        Some(PathMatch::Regex(_)) => (Said::Regex, Said::Regex),
    };
    PathRank::Call(service, method)
}
