//! For tests: routes in few words.

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};

use super::*;

impl Route {
    /// Attached to this Service too.
    pub fn to(mut self, namespace: &str, name: &str) -> Route {
        self.parents.push(parent(namespace, name));
        self
    }

    /// As old as this.
    pub fn at(self, created: i64) -> Route {
        Route { created, ..self }
    }
}

/// All ports of a Service.
pub fn parent(namespace: &str, name: &str) -> Parent {
    Parent { namespace: namespace.into(), name: name.into(), port: None, section: None }
}

/// An HTTPRoute.
pub fn http(namespace: &str, name: &str, rules: Vec<Rule>) -> Route {
    Route {
        kind: RouteKind::Http,
        namespace: namespace.into(),
        name: name.into(),
        created: 0,
        parents: vec![],
        rules: Rules::Requests(rules),
    }
}

/// A GRPCRoute.
pub fn grpc(namespace: &str, name: &str, rules: Vec<Rule>) -> Route {
    Route { kind: RouteKind::Grpc, ..http(namespace, name, rules) }
}

/// A rule that leads to a Service of its own name, so that tests see which rule it was.
pub fn rule(backend: &str, matches: Vec<Match>) -> Rule {
    Rule {
        name: None,
        matches,
        filters: vec![],
        backends: vec![self::backend(backend)],
        timeouts: Timeouts::default(),
        retry: None,
        session: None,
    }
}

/// Port 80 of a Service in the namespace `default`.
pub fn backend(name: &str) -> Backend {
    let target = BackendRef::Service { namespace: "default".into(), name: name.into(), port: 80 };
    Backend { target, weight: 1, filters: vec![] }
}

/// The name of a backend's Service.
pub fn name_of(backend: &Backend) -> &str {
    match &backend.target {
        BackendRef::Service { name, .. } => name,
        BackendRef::Wrong { reason } => reason,
    }
}

/// This path.
pub fn exact(path: &str) -> Match {
    Match { path: Some(PathMatch::Exact(path.into())), ..Match::default() }
}

/// Whatever begins like this.
pub fn prefix(path: &str) -> Match {
    Match { path: Some(PathMatch::Prefix(path.into())), ..Match::default() }
}

/// A path like this.
pub fn pattern(path: &str) -> Match {
    Match { path: Some(PathMatch::Regex(anchored(path).unwrap())), ..Match::default() }
}

impl Match {
    /// Of this method only.
    pub fn method(self, method: Method) -> Match {
        Match { method: Some(method), ..self }
    }

    /// With this header.
    pub fn header(mut self, name: &str, value: &str) -> Match {
        self.headers.push((name.parse().unwrap(), Text::Exact(value.into())));
        self
    }

    /// With a header like this.
    pub fn header_pattern(mut self, name: &str, value: &str) -> Match {
        self.headers.push((name.parse().unwrap(), Text::Regex(anchored(value).unwrap())));
        self
    }

    /// With this query parameter.
    pub fn query(mut self, name: &str, value: &str) -> Match {
        self.query.push((name.into(), Text::Exact(value.into())));
        self
    }

    /// With a query parameter like this.
    pub fn query_pattern(mut self, name: &str, value: &str) -> Match {
        self.query.push((name.into(), Text::Regex(anchored(value).unwrap())));
        self
    }
}

/// A request's head, to be borrowed.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: Method,
    pub host: String,
    pub uri: Uri,
    pub headers: HeaderMap,
}

/// `GET path?query` at the host `web`.
pub fn get(uri: &str) -> Request {
    Request { method: Method::GET, host: "web".into(), uri: uri.parse().unwrap(), headers: HeaderMap::new() }
}

impl Request {
    pub fn method(self, method: Method) -> Request {
        Request { method, ..self }
    }

    pub fn host(self, host: &str) -> Request {
        Request { host: host.into(), ..self }
    }

    pub fn header(mut self, name: &str, value: &str) -> Request {
        let name: HeaderName = name.parse().unwrap();
        self.headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        self
    }

    pub fn head(&self) -> Head<'_> {
        Head {
            method: &self.method,
            host: &self.host,
            path: self.uri.path(),
            query: self.uri.query(),
            headers: &self.headers,
        }
    }
}

/// The name of the first backend of the rule that is found.
pub fn found(table: &Table, request: &Request) -> Option<String> {
    table.find(&request.head()).map(|found| name_of(&found.rule.backends[0]).to_string())
}

impl From<PathMatch> for Match {
    fn from(path: PathMatch) -> Match {
        Match { path: Some(path), ..Match::default() }
    }
}

/// A change of headers.
pub fn change(set: &[(&str, &str)], add: &[(&str, &str)], remove: &[&str]) -> HeaderChange {
    let pairs = |pairs: &[(&str, &str)]| {
        let pair =
            |(name, value): &(&str, &str)| NameValue { name: name.parse().unwrap(), value: value.parse().unwrap() };
        pairs.iter().map(pair).collect()
    };
    let remove = remove.iter().map(|name| name.parse().unwrap()).collect();
    HeaderChange { set: pairs(set), add: pairs(add), remove }
}

/// 302 to where the request was going.
pub fn redirect() -> Redirect {
    Redirect { scheme: None, hostname: None, port: None, path: None, status: StatusCode::FOUND }
}
