//! The table against the standard's text taken literally: every match is looked at, and the one that beats all others in
//! a comparison by pairs wins. Parameters are not decoded here, so whoever compares uses none that would be.

use http::HeaderValue;

use super::*;

/// A match with what decides between equals.
struct Contender<'a> {
    route: &'a Route,
    rule: usize,
    place: usize,
    asked: &'a Match,
}

impl Contender<'_> {
    fn matches(&self, head: &Head<'_>) -> bool {
        let Match { path, method, headers, query } = self.asked;
        let values = |wanted: &str| match wanted {
            "host" => Some(head.host.as_bytes().to_vec()),
            _ => {
                let all: Vec<&[u8]> = head.headers.get_all(wanted).iter().map(HeaderValue::as_bytes).collect();
                let separator: &[u8] = if wanted == "cookie" { b"; " } else { b"," };
                (!all.is_empty()).then(|| all.join(separator))
            }
        };
        let parameter = |wanted: &str| {
            let pairs = head.query?.split('&').filter(|pair| !pair.is_empty());
            let mut pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
            pairs.find(|(name, _)| *name == wanted).map(|(_, value)| value.as_bytes())
        };
        path.as_ref().is_none_or(|path| is_path(path, head.path))
            && method.as_ref().is_none_or(|method| method == head.method)
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

fn is_text(asked: &Text, value: &[u8]) -> bool {
    match asked {
        Text::Exact(wanted) => wanted.as_bytes() == value,
        Text::Regex(pattern) => std::str::from_utf8(value).is_ok_and(|value| pattern.is_match(value)),
    }
}

/// The route's name and the rule's place; of routes of one kind, which the table has to find.
pub fn wanted<'a>(routes: &'a [Route], head: &Head<'_>) -> Option<(&'a str, usize)> {
    let mut contenders = Vec::new();
    for route in routes {
        let Rules::Requests(rules) = &route.rules else { panic!("not generated") };
        for (index, rule) in rules.iter().enumerate() {
            let each = rule.matches.iter().enumerate();
            contenders.extend(each.map(|(place, asked)| Contender { route, rule: index, place, asked }));
        }
    }
    contenders.retain(|contender| contender.matches(head));
    let best =
        contenders.iter().find(|one| contenders.iter().all(|other| std::ptr::eq(*one, other) || one.beats(other)));
    assert_eq!(best.is_none(), contenders.is_empty(), "one of them beats all others");
    best.map(|best| (&*best.route.name, best.rule))
}
