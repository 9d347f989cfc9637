//! What Gateway API's conditions say of each route, as plain values.

use std::sync::Arc;

use serde::{Serialize, Serializer};

use super::attachments::{can_have_routes, frontend};
use super::object::{Name, RouteId};
use super::{BadBackend, Kind, MeshState, Reading, RouteSpec};
use crate::routes::{Backend, BackendRef, Filter, Parent, Rules};

/// The conditions of a route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteStatus {
    /// HTTPRoute and so on.
    #[serde(serialize_with = "shown")]
    pub kind: Kind,
    /// metadata.namespace
    pub namespace: Arc<str>,
    /// metadata.name
    pub name: Arc<str>,
    /// metadata.generation of what is in force.
    pub generation: Option<i64>,
    /// One for each parent that is a Service, in the route's order.
    pub parents: Vec<ParentStatus>,
}

/// The conditions of a route at one of its parents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentStatus {
    /// The Service's namespace.
    pub namespace: Arc<str>,
    /// The Service's name.
    pub name: Arc<str>,
    /// As the reference has it.
    pub port: Option<u16>,
    /// As the reference has it.
    pub section_name: Option<Arc<str>>,
    /// Accepted and ResolvedRefs, and PartiallyInvalid where it is so.
    pub conditions: Vec<Condition>,
}

/// metav1.Condition, without what only its writer knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Its type.
    #[serde(rename = "type")]
    pub condition: ConditionType,
    /// Its status.
    pub status: bool,
    /// One word.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// The types of conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum ConditionType {
    /// Whether the route holds at the parent.
    Accepted,
    /// Whether all that it refers to is there.
    ResolvedRefs,
    /// That some of its rules are not in force.
    PartiallyInvalid,
}

impl MeshState {
    /// The conditions of all routes, by kind, namespace and name. Worked out now: for people, and for who writes status.
    pub fn route_status(&self) -> Vec<RouteStatus> {
        let mut routes: Vec<(&RouteId, &Arc<RouteSpec>)> = self.routes.iter().collect();
        routes.sort_unstable_by_key(|(id, _)| *id);
        routes.into_iter().map(|(_, spec)| self.status_of(spec)).collect()
    }

    fn status_of(&self, spec: &RouteSpec) -> RouteStatus {
        let route = &spec.route;
        let parent = |parent: &Parent| ParentStatus {
            namespace: parent.namespace.clone(),
            name: parent.name.clone(),
            port: parent.port,
            section_name: parent.section.clone(),
            conditions: self.conditions(spec, parent),
        };
        RouteStatus {
            kind: Kind::of_route(route.kind),
            namespace: route.namespace.clone(),
            name: route.name.clone(),
            generation: spec.generation,
            parents: route.parents.iter().map(parent).collect(),
        }
    }

    fn conditions(&self, spec: &RouteSpec, parent: &Parent) -> Vec<Condition> {
        let accepted = self.accepted(spec, parent);
        let partly = partially_invalid(spec).filter(|_| accepted.status);
        let resolved = spec.refused.is_none().then(|| self.resolved(spec));
        std::iter::once(accepted).chain(resolved).chain(partly).collect()
    }

    fn accepted(&self, spec: &RouteSpec, parent: &Parent) -> Condition {
        let no = |reason, message: String| Condition::new(ConditionType::Accepted, false, reason, message);
        let shown = format!("Service {}/{}", parent.namespace, parent.name);
        if let Some(Reading { field, reason }) = &spec.refused {
            let message = format!("{field}: {reason}; requests to {shown} that no other route takes meet an error");
            return no("UnsupportedValue", message);
        }
        let name = Name::new(&parent.namespace, &parent.name);
        let Some(service) = self.services.get(&name) else {
            return no("NoMatchingParent", format!("there is no {shown}"));
        };
        if !can_have_routes(service) {
            return no("NoMatchingParent", format!("{shown} has no cluster IP to attach a route to"));
        }
        let ports: Vec<u16> =
            service.ports.iter().filter(|port| parent.is_at(frontend(&name, port))).map(|port| port.port).collect();
        if ports.is_empty() {
            return no("NoMatchingParent", format!("{shown} has no such port"));
        }
        let holds =
            |port: &u16| self.attached_at(service, *port, &spec.route.namespace).is_some_and(|at| at.holds(spec));
        let (held, lost): (Vec<u16>, Vec<u16>) = ports.iter().partition(|port| holds(port));
        let conflict = |ports: &[u16]| {
            let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
            format!("a route of a kind that comes first is at port {}", ports.join(", "))
        };
        match (held.is_empty(), lost.is_empty()) {
            (true, _) => no("Conflicted", conflict(&lost)),
            (false, true) => Condition::new(ConditionType::Accepted, true, "Accepted", String::new()),
            (false, false) => Condition::new(ConditionType::Accepted, true, "Accepted", conflict(&lost)),
        }
    }

    /// The first reference that leads nowhere decides.
    fn resolved(&self, spec: &RouteSpec) -> Condition {
        let wrong = |fault: BadBackend, message: String| {
            Condition::new(ConditionType::ResolvedRefs, false, fault.reason(), message)
        };
        if let Some((fault, Reading { field, reason })) = spec.wrong_refs.first() {
            return wrong(*fault, format!("{field}: {reason}"));
        }
        for target in references(&spec.route.rules) {
            // What is wrong by itself is among the above, or in a rule that is not in force.
            let BackendRef::Service { namespace, name, port } = target else { continue };
            if let Err(fault) = self.backend(target) {
                return wrong(fault, format!("Service {namespace}/{name} port {port} is not there"));
            }
        }
        Condition::new(ConditionType::ResolvedRefs, true, "ResolvedRefs", String::new())
    }
}

/// "The message for this condition MUST start with the prefix Dropped Rule."
fn partially_invalid(spec: &RouteSpec) -> Option<Condition> {
    let dropped = |(_, Reading { field, reason }): &(usize, Reading)| format!("{field}: {reason}");
    let dropped: Vec<String> = spec.refused_rules.iter().map(dropped).collect();
    let message = format!("Dropped Rule: requests that it matches are answered with an error. {}", dropped.join("; "));
    (!dropped.is_empty()).then(|| Condition::new(ConditionType::PartiallyInvalid, true, "UnsupportedValue", message))
}

/// Every backend that rules name, mirrors included.
fn references(rules: &Rules) -> Vec<&BackendRef> {
    fn mirrors(filters: &[Filter]) -> impl Iterator<Item = &BackendRef> {
        filters.iter().filter_map(|filter| match filter {
            Filter::Mirror(mirror) => Some(&mirror.backend),
            Filter::RequestHeaders(_)
            | Filter::ResponseHeaders(_)
            | Filter::Redirect(_)
            | Filter::Rewrite(_)
            | Filter::Cors(_) => None,
        })
    }
    fn targets(backends: &[Backend]) -> impl Iterator<Item = &BackendRef> {
        backends.iter().flat_map(|backend| std::iter::once(&backend.target).chain(mirrors(&backend.filters)))
    }
    match rules {
        Rules::Requests(rules) => {
            rules.iter().flat_map(|rule| targets(&rule.backends).chain(mirrors(&rule.filters))).collect()
        }
        Rules::Connections(backends) => targets(backends).collect(),
        Rules::ServerNames(rule) => targets(&rule.backends).collect(),
    }
}

fn shown<S: Serializer>(kind: &Kind, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(kind)
}

impl Condition {
    fn new(condition: ConditionType, status: bool, reason: &'static str, message: String) -> Self {
        Self { condition, status, reason, message }
    }

    /// Whether it says that all is well.
    pub fn is_good(&self) -> bool {
        match self.condition {
            ConditionType::Accepted | ConditionType::ResolvedRefs => self.status,
            ConditionType::PartiallyInvalid => !self.status,
        }
    }
}
