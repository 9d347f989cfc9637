//! Routes for people and tools: what each does, in words, beside its conditions.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Duration;

use serde::Serialize;

use super::object::RouteId;
use super::{Endpoint, MeshState, RouteSpec, RouteStatus};
use crate::routes::{Backend, BackendRef, Filter, Match, PathMatch, Rules, Text};

/// A route: its conditions, and what it does.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ShownRoute {
    /// Who it is, and how it stands at its parents.
    #[serde(flatten)]
    pub status: RouteStatus,
    /// In their order.
    pub rules: Vec<ShownRule>,
}

/// A rule of a route, in words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ShownRule {
    /// rules[].name
    pub name: Option<String>,
    /// One is enough.
    pub matches: Vec<String>,
    /// Kinds of filters.
    pub filters: Vec<&'static str>,
    /// Where requests or connections go.
    pub backends: Vec<ShownBackend>,
    /// For the whole answer.
    pub request_timeout: Option<String>,
    /// For one try.
    pub backend_timeout: Option<String>,
    /// Whether failures are tried again.
    pub retries: bool,
}

/// Where a rule leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ShownBackend {
    /// `<namespace>/<name>`; None: the reference itself is wrong.
    pub service: Option<String>,
    /// The Service's port.
    pub port: Option<u16>,
    /// Of the sum of all.
    pub weight: u32,
    /// Endpoints that are ready: a pod is one, though it has an address of each family.
    pub endpoints: Option<usize>,
    /// Why requests that would go there are answered with an error.
    pub trouble: Option<String>,
}

impl MeshState {
    /// Every route, in the order of [`MeshState::route_status`].
    pub fn shown_routes(&self) -> Vec<ShownRoute> {
        let mut routes: Vec<(&RouteId, _)> = self.routes.iter().collect();
        routes.sort_unstable_by_key(|(id, _)| *id);
        let specs = routes.into_iter().map(|(_, spec)| self.shown_rules(spec));
        self.route_status().into_iter().zip(specs).map(|(status, rules)| ShownRoute { status, rules }).collect()
    }

    fn shown_rules(&self, spec: &RouteSpec) -> Vec<ShownRule> {
        let backends = |backends: &[Backend]| backends.iter().map(|backend| self.shown_backend(backend)).collect();
        match &spec.route.rules {
            Rules::Requests(rules) => {
                let shown = |rule: &crate::routes::Rule| ShownRule {
                    name: rule.name.as_deref().map(str::to_string),
                    matches: rule.matches.iter().map(match_words).collect(),
                    filters: rule.filters.iter().map(filter_word).collect(),
                    backends: backends(&rule.backends),
                    request_timeout: rule.timeouts.request.map(duration_words),
                    backend_timeout: rule.timeouts.backend_request.map(duration_words),
                    retries: rule.retry.is_some(),
                };
                rules.iter().map(shown).collect()
            }
            Rules::Connections(all) => vec![ShownRule {
                matches: vec!["every connection".into()],
                backends: backends(all),
                ..ShownRule::default()
            }],
            Rules::ServerNames(rule) => {
                let names = rule.hostnames.iter().map(|name| format!("server name {name}"));
                let matches: Vec<String> = names.collect();
                let matches = if matches.is_empty() { vec!["every server name".into()] } else { matches };
                vec![ShownRule { matches, backends: backends(&rule.backends), ..ShownRule::default() }]
            }
        }
    }

    fn shown_backend(&self, backend: &Backend) -> ShownBackend {
        let resolved = self.backend(&backend.target);
        let (service, port, wrong) = match &backend.target {
            BackendRef::Service { namespace, name, port } => (Some(format!("{namespace}/{name}")), Some(*port), None),
            BackendRef::Wrong { reason } => (None, None, Some(reason.to_string())),
        };
        ShownBackend {
            service,
            port,
            weight: backend.weight,
            endpoints: resolved.ok().map(|(_, port)| count_ready(&port.endpoints)),
            trouble: wrong.or_else(|| resolved.err().map(|bad| bad.reason().to_string())),
        }
    }
}

/// Pods, and addresses that are no pod's. Of these nothing says which belong together, so the family counts of which there
/// are more.
pub(super) fn count_ready(endpoints: &[Endpoint]) -> usize {
    let mut pods = HashSet::new();
    let (mut v4, mut v6) = (0, 0);
    for Endpoint { ip, port, workload, .. } in endpoints {
        match (workload, ip) {
            (Some(pod), _) => drop(pods.insert((&pod.uid, port))),
            (None, IpAddr::V4(_)) => v4 += 1,
            (None, IpAddr::V6(_)) => v6 += 1,
        }
    }
    pods.len() + v4.max(v6)
}

fn duration_words(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

fn match_words(one: &Match) -> String {
    let Match { path, method, headers, query } = one;
    let mut words: Vec<String> = method.iter().map(ToString::to_string).collect();
    words.extend(path.as_ref().map(path_words));
    words.extend(headers.iter().map(|(name, value)| format!("header {name}{}", text_words(value))));
    words.extend(query.iter().map(|(name, value)| format!("query {name}{}", text_words(value))));
    if words.is_empty() { "every request".into() } else { words.join(" ") }
}

fn path_words(path: &PathMatch) -> String {
    match path {
        PathMatch::Exact(path) => format!("{path} exactly"),
        PathMatch::Prefix(path) if &**path == "/" => "/*".into(),
        PathMatch::Prefix(path) => format!("{path}/*"),
        PathMatch::Regex(regex) => format!("path ~ {}", regex.as_str()),
        PathMatch::Call(call) => format!("call {}", path_words(call.path())),
    }
}

fn text_words(text: &Text) -> String {
    match text {
        Text::Exact(text) => format!("={text}"),
        Text::Regex(regex) => format!(" ~ {}", regex.as_str()),
    }
}

fn filter_word(filter: &Filter) -> &'static str {
    match filter {
        Filter::RequestHeaders(_) => "RequestHeaderModifier",
        Filter::ResponseHeaders(_) => "ResponseHeaderModifier",
        Filter::Redirect(_) => "RequestRedirect",
        Filter::Rewrite(_) => "URLRewrite",
        Filter::Mirror(_) => "RequestMirror",
        Filter::Cors(_) => "CORS",
    }
}
