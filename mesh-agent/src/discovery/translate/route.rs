//! What all routes have in common: parents, backends, rules that stand for what cannot be taken.
//!
//! A rule that cannot be taken, but whose matches can, stays as one that answers with an error: were it left out, its
//! requests would fall to a rule that was not meant for them. Where not even the matches can be read, no rule of the
//! route can be trusted to be the one for a request, and the route as a whole is refused: its last good version stays, or
//! else [`stand_in`] answers everything that it is attached to with an error.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{FieldPath, Item, Problem, Taken, port_number};
use crate::discovery::finding::Effect;
use crate::discovery::gateway::{BackendObjectReference, BackendRef, GROUP, ParentReference, RuleHead};
use crate::discovery::object::{self, Key};
use crate::routes::{Backend, BackendRef as Target, Match, Parent, Route, RouteKind, Rule, Rules, Timeouts, TlsRule};
use crate::state::{BadBackend, Reading, RouteSpec};

// What the schema of the API allows. It bounds what a request is compared with, and holds for files too.
/// Parents of a route.
pub const MAX_PARENTS: usize = 32;
/// Rules of a route.
pub const MAX_RULES: usize = 16;
/// Matches of a rule.
pub const MAX_MATCHES: usize = 64;
/// Matches of all rules of a route.
pub const MAX_ROUTE_MATCHES: usize = 128;
/// Filters of a rule or backend.
pub const MAX_FILTERS: usize = 16;
/// Backends of a rule.
pub const MAX_BACKENDS: usize = 16;
/// The weight of a backend.
const MAX_WEIGHT: i64 = 1_000_000;

/// What is noted while a route is read.
pub(super) struct Notes<'a> {
    /// The route's namespace.
    pub(super) namespace: &'a str,
    pub(super) wrong_refs: Vec<(BadBackend, Reading)>,
    pub(super) problems: Vec<(Effect, Problem)>,
}

impl<'a> Notes<'a> {
    pub(super) fn new(key: &'a Key) -> Self {
        Self { namespace: &key.namespace, wrong_refs: Vec::new(), problems: Vec::new() }
    }

    /// hostnames are for Gateways: "implementations SHOULD NOT infer any functionality" from them on a Service (GEP-1294).
    pub(super) fn hostnames(&mut self, hostnames: &[String]) {
        if !hostnames.is_empty() {
            let reason = "means nothing for a route on a Service; match the header Host instead";
            self.problems.push((Effect::NoEffect, Problem::new(FieldPath::of("spec.hostnames"), reason)));
        }
    }

    /// What a backendRef leads to, as far as the object alone tells.
    pub(super) fn target(&mut self, reference: &BackendObjectReference, path: &FieldPath) -> Result<Target, Problem> {
        let BackendObjectReference { group, kind, namespace, name, port } = reference;
        let (group, kind) = (group.as_deref().unwrap_or_default(), kind.as_deref().unwrap_or("Service"));
        if !group.is_empty() || kind != "Service" {
            let group = if group.is_empty() { "the core group" } else { group };
            let reason: Arc<str> = format!("kind {kind} of {group} is not supported as a backend; Service is").into();
            let field = path.key("kind").to_string().into();
            self.wrong_refs.push((BadBackend::InvalidKind, Reading { field, reason: reason.clone() }));
            self.problems.push((Effect::ShareFails, Problem::new(path.key("kind"), &*reason)));
            return Ok(Target::Wrong { reason });
        }
        let port = port.ok_or_else(|| Problem::new(path.key("port"), "missing: a Service needs it"))?;
        let port = checked_port(port, || path.key("port"))?;
        let namespace = namespace.as_deref().unwrap_or(self.namespace);
        Ok(Target::Service { namespace: namespace.into(), name: name.as_str().into(), port })
    }

    /// One of `backendRefs`, without filters.
    pub(super) fn backend<F>(&mut self, reference: &BackendRef<F>, path: &FieldPath) -> Result<Backend, Problem> {
        let weight = reference.weight.unwrap_or(1);
        let weight = u32::try_from(weight)
            .ok()
            .filter(|_| weight <= MAX_WEIGHT)
            .ok_or_else(|| Problem::new(path.key("weight"), format!("{weight} is not a weight: 0 to {MAX_WEIGHT}")))?;
        Ok(Backend { target: self.target(&reference.object(), path)?, weight, filters: Vec::new() })
    }

    /// Those of a TCPRoute or TLSRoute: at least one.
    pub(super) fn backends<F>(
        &mut self,
        references: &[BackendRef<F>],
        path: &FieldPath,
    ) -> Result<Vec<Backend>, Problem> {
        bounded(references.len(), MAX_BACKENDS, path)?;
        if references.is_empty() {
            return Err(Problem::new(path.clone(), "empty: at least one backend is needed"));
        }
        references.iter().enumerate().map(|(index, one)| self.backend(one, &path.index(index))).collect()
    }
}

/// How the rules of HTTPRoute and GRPCRoute are read.
pub(super) trait RequestRules {
    /// The kind of route.
    const KIND: RouteKind;

    /// One of a rule's matches. The default matches everything.
    type Match: DeserializeOwned + Default;

    /// Reads one.
    fn read_match(spec: &Self::Match, path: &FieldPath) -> Result<Match, Problem>;

    /// The rule, with its matches.
    fn rule(
        number: usize,
        rule: &Value,
        matches: Vec<Match>,
        path: &FieldPath,
        key: &Key,
        notes: &mut Notes<'_>,
    ) -> Result<Rule, Problem>;
}

/// Reads rules one by one.
pub(super) fn requests<R: RequestRules>(
    metadata: &ObjectMeta,
    key: &Key,
    parents: Vec<Parent>,
    rules: &[Value],
    mut notes: Notes<'_>,
) -> Result<Taken, Problem> {
    let path = FieldPath::of("spec.rules");
    bounded(rules.len(), MAX_RULES, &path)?;
    let mut read: Vec<Rule> = Vec::with_capacity(rules.len());
    let mut refused = Vec::new();
    let mut all_matches = 0;
    for (number, value) in rules.iter().enumerate() {
        let path = path.index(number);
        let head: RuleHead<R::Match> = part(value, &path)?;
        let specs = if head.matches.is_empty() { vec![R::Match::default()] } else { head.matches };
        let specs = specs.iter().enumerate();
        let matches = specs.map(|(index, spec)| R::read_match(spec, &path.key("matches").index(index)));
        let matches: Vec<Match> = matches.collect::<Result<_, _>>()?;
        all_matches += matches.len();
        bounded(matches.len(), MAX_MATCHES, &path.key("matches"))?;
        bounded(all_matches, MAX_ROUTE_MATCHES, &path.key("matches"))?;
        let name: Option<Arc<str>> = head.name.map(Arc::from);
        if name.is_some() && read.iter().any(|earlier| earlier.name == name) {
            return Err(Problem::new(path.key("name"), "another rule of this route has this name"));
        }
        let rule = match R::rule(number, value, matches.clone(), &path, key, &mut notes) {
            Ok(rule) => rule,
            Err(problem) => {
                let rule = refusing(matches, &problem);
                refused.push((number, problem));
                rule
            }
        };
        read.push(Rule { name, ..rule });
    }
    if refused.len() == rules.len()
        && let Some((_, first)) = refused.first()
    {
        return Err(first.clone());
    }
    let refused_rules = refused.iter().map(|(number, problem)| (*number, Reading::from(problem))).collect();
    notes.problems.extend(refused.into_iter().map(|(_, problem)| (Effect::RuleFails, problem)));
    Ok(taken(R::KIND, metadata, key, parents, Rules::Requests(read), refused_rules, notes))
}

/// A rule in place of one that cannot be taken.
fn refusing(matches: Vec<Match>, problem: &Problem) -> Rule {
    Rule {
        name: None,
        matches,
        filters: Vec::new(),
        backends: vec![wrong(problem)],
        timeouts: Timeouts::default(),
        retry: None,
        session: None,
    }
}

fn wrong(problem: &Problem) -> Backend {
    let reason = format!("{}: {}", problem.field, problem.reason).into();
    Backend { target: Target::Wrong { reason }, weight: 1, filters: Vec::new() }
}

/// A route that was read.
pub(super) fn taken(
    kind: RouteKind,
    metadata: &ObjectMeta,
    key: &Key,
    parents: Vec<Parent>,
    rules: Rules,
    refused_rules: Vec<(usize, Reading)>,
    notes: Notes<'_>,
) -> Taken {
    let created = metadata.creation_timestamp.as_ref().map(|time| time.0.as_second());
    let spec = RouteSpec {
        route: Arc::new(route(kind, key, created, parents, rules)),
        generation: metadata.generation,
        refused: None,
        refused_rules,
        wrong_refs: notes.wrong_refs,
    };
    Taken { item: Some(Item::Route(spec.into())), problems: notes.problems }
}

/// Without creationTimestamp a route is younger than all that have one.
fn route(kind: RouteKind, key: &Key, created: Option<i64>, parents: Vec<Parent>, rules: Rules) -> Route {
    Route {
        kind,
        namespace: key.namespace.as_str().into(),
        name: key.name.as_str().into(),
        created: created.unwrap_or(i64::MAX),
        parents,
        rules,
    }
}

/// The Services that a route is attached to. None: it is none of ours.
pub(super) fn parents(references: &[ParentReference], key: &Key) -> Result<Option<Vec<Parent>>, Problem> {
    let path = FieldPath::of("spec.parentRefs");
    bounded(references.len(), MAX_PARENTS, &path)?;
    let mut parents: Vec<Parent> = Vec::new();
    for (index, reference) in references.iter().enumerate() {
        let Some(parent) = parent(reference, key, &path.index(index))? else { continue };
        if let Some(problem) = parents.iter().find_map(|other| indistinct(other, &parent, &path.index(index))) {
            return Err(problem);
        }
        parents.push(parent);
    }
    Ok(Some(parents).filter(|parents| !parents.is_empty()))
}

/// None for a parent that is not a Service: a Gateway's affair.
fn parent(reference: &ParentReference, key: &Key, path: &FieldPath) -> Result<Option<Parent>, Problem> {
    let ParentReference { group, kind, namespace, name, section_name, port } = reference;
    if (group.as_deref().unwrap_or(GROUP), kind.as_deref().unwrap_or("Gateway")) != ("", "Service") {
        return Ok(None);
    }
    if name.is_empty() {
        return Err(Problem::new(path.key("name"), "empty"));
    }
    let port = port.map(|port| checked_port(port, || path.key("port"))).transpose()?;
    Ok(Some(Parent {
        namespace: namespace.as_deref().unwrap_or(&key.namespace).into(),
        name: name.as_str().into(),
        port,
        section: section_name.as_deref().filter(|name| !name.is_empty()).map(Arc::from),
    }))
}

/// Two references to one Service must set the same of `sectionName` and `port`, to different values.
fn indistinct(one: &Parent, other: &Parent, path: &FieldPath) -> Option<Problem> {
    if (&one.namespace, &one.name) != (&other.namespace, &other.name) {
        return None;
    }
    let same_fields = one.port.is_some() == other.port.is_some() && one.section.is_some() == other.section.is_some();
    let reason = match same_fields {
        false => "sectionName and port must be set alike in all references to one Service",
        true if one == other => "refers to the same Service as another entry; sectionName or port must differ",
        true => return None,
    };
    Some(Problem::new(path.clone(), reason))
}

/// What stands for a route that cannot be read and never could, if it can be told what it is attached to: everything
/// there is answered with an error. A Service with routes has no other way, so to leave the route out would open one.
pub fn stand_in(key: &Key, object: &Value, problem: &Problem) -> Option<Item> {
    let kind = key.kind.route()?;
    let references = object.get("spec")?.get("parentRefs")?.as_array()?;
    let parents: Vec<Parent> = references.iter().take(MAX_PARENTS).filter_map(|one| lenient_parent(one, key)).collect();
    if parents.is_empty() {
        return None;
    }
    let refusing = || vec![wrong(problem)];
    let rules = match kind {
        RouteKind::Http | RouteKind::Grpc => Rules::Requests(vec![self::refusing(vec![Match::default()], problem)]),
        RouteKind::Tcp => Rules::Connections(refusing()),
        RouteKind::Tls => Rules::ServerNames(TlsRule { hostnames: Vec::new(), backends: refusing() }),
    };
    let spec = RouteSpec {
        route: Arc::new(route(kind, key, None, parents, rules)),
        generation: object.get("metadata").and_then(|metadata| metadata.get("generation")).and_then(Value::as_i64),
        refused: Some(Reading::from(problem)),
        refused_rules: Vec::new(),
        wrong_refs: Vec::new(),
    };
    Some(Item::Route(spec.into()))
}

/// A reference whose other fields may be what cannot be read: then it is all ports of the Service.
fn lenient_parent(reference: &Value, key: &Key) -> Option<Parent> {
    let text = |field: &str| reference.get(field).and_then(Value::as_str);
    if (text("group")?, text("kind")?) != ("", "Service") {
        return None;
    }
    let port = reference.get("port").and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok());
    Some(Parent {
        namespace: text("namespace").unwrap_or(&key.namespace).into(),
        name: text("name").filter(|name| !name.is_empty())?.into(),
        port: port.filter(|port| *port != 0),
        section: text("sectionName").filter(|name| !name.is_empty()).map(Arc::from),
    })
}

/// Reads a part of an object; what is wrong is named from the object's top.
pub(super) fn part<T: DeserializeOwned>(value: &Value, path: &FieldPath) -> Result<T, Problem> {
    object::typed(value).map_err(|problem: Problem| Problem { field: problem.field.below(path), ..problem })
}

pub(super) fn bounded(length: usize, most: usize, path: &FieldPath) -> Result<(), Problem> {
    match length <= most {
        true => Ok(()),
        false => Err(Problem::new(path.clone(), format!("{length} entries; {most} at most"))),
    }
}

pub(super) fn checked_port(port: i64, field: impl Fn() -> FieldPath) -> Result<u16, Problem> {
    port_number(i32::try_from(port).unwrap_or_default(), field)
}

impl From<&Problem> for Reading {
    fn from(problem: &Problem) -> Self {
        Self { field: problem.field.to_string().into(), reason: problem.reason.as_str().into() }
    }
}
