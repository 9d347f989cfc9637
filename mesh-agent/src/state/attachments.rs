//! Which routes hold at which port of which Service, for whom.
//!
//! GEP-1294, "Multiple routes for a Service": requests from a namespace with consumer routes (routes of that namespace,
//! attached to a Service of another) go by these alone, those of everyone else by the producer's. "Route types": of
//! several kinds at one port only the first of GRPCRoute, HTTPRoute, TLSRoute, TCPRoute holds, the others are refused
//! (Conflicted). Each group of routes is judged by itself, because no client meets two of them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::claims::Claims;
use super::connections::Connections;
use super::object::{Name, RouteId};
use super::table::Table;
use super::{MeshState, RouteSpec, Service, ServicePort};
use crate::routes::{Parent, RouteKind};

/// Routes as they were read, with the ways to find them.
#[derive(Default)]
pub(super) struct Attachments {
    all: HashMap<RouteId, Arc<RouteSpec>>,
    /// The Services that a route names as its parents, also such as are not there.
    by_parent: Claims<Name, RouteId, ()>,
}

/// The routes of a Service, by port.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct ServiceRoutes {
    ports: BTreeMap<u16, PortRoutes>,
}

/// The routes of a port, by who sees them.
#[derive(Clone, Debug, Default, PartialEq)]
struct PortRoutes {
    /// For all who have none of their own.
    producer: Option<Arc<Attached>>,
    /// By the clients' namespace.
    consumers: BTreeMap<Arc<str>, Arc<Attached>>,
}

/// Routes that hold together.
#[derive(Clone, Debug)]
pub(super) struct Attached {
    /// Of one kind, the first in precedence first. Never empty.
    routes: Vec<Arc<RouteSpec>>,
    /// Of kinds that come after.
    conflicted: Vec<Arc<RouteSpec>>,
    action: Action,
}

#[derive(Clone, Debug)]
enum Action {
    Requests(Arc<Table>),
    Connections(Arc<Connections>),
}

/// The action follows from the routes.
impl PartialEq for Attached {
    fn eq(&self, other: &Self) -> bool {
        self.routes == other.routes && self.conflicted == other.conflicted
    }
}

impl Attached {
    fn of(mut routes: Vec<Arc<RouteSpec>>) -> Option<Self> {
        routes.sort_by(|one, other| age(one).cmp(&age(other)));
        let kind = routes.iter().map(|spec| spec.route.kind).min_by_key(|kind| place(*kind))?;
        let (routes, conflicted): (Vec<_>, Vec<_>) = routes.into_iter().partition(|spec| spec.route.kind == kind);
        let action = match Connections::compile(&routes) {
            Some(connections) => Action::Connections(Arc::new(connections)),
            None => Action::Requests(Arc::new(Table::compile(routes.iter().map(|spec| &spec.route)))),
        };
        Some(Self { routes, conflicted, action })
    }

    pub(super) fn routes(&self) -> impl Iterator<Item = &Arc<RouteSpec>> {
        self.routes.iter()
    }

    pub(super) fn kind(&self) -> Option<RouteKind> {
        self.routes.first().map(|spec| spec.route.kind)
    }

    pub(super) fn requests(&self) -> Option<&Arc<Table>> {
        match &self.action {
            Action::Requests(table) => Some(table),
            Action::Connections(_) => None,
        }
    }

    pub(super) fn connections(&self) -> Option<&Arc<Connections>> {
        match &self.action {
            Action::Requests(_) => None,
            Action::Connections(connections) => Some(connections),
        }
    }

    /// Whether a route is here, and holds.
    pub(super) fn holds(&self, spec: &RouteSpec) -> bool {
        self.routes.iter().any(|other| RouteId::from(&**other) == RouteId::from(spec))
    }

    fn is_of(&self, routes: &[Arc<RouteSpec>]) -> bool {
        let all = self.routes.len() + self.conflicted.len();
        let here = |spec| self.routes.iter().chain(&self.conflicted).any(|other| Arc::ptr_eq(other, spec));
        all == routes.len() && routes.iter().all(here)
    }
}

/// "The oldest Route based on creation timestamp; the Route appearing first in alphabetical order by {namespace}/{name}."
fn age(spec: &RouteSpec) -> (i64, String) {
    let route = &spec.route;
    (route.created, format!("{}/{}", route.namespace, route.name))
}

/// GEP-1294's order of kinds.
fn place(kind: RouteKind) -> u8 {
    match kind {
        RouteKind::Grpc => 0,
        RouteKind::Http => 1,
        RouteKind::Tls => 2,
        RouteKind::Tcp => 3,
    }
}

impl Attachments {
    /// Takes a route as it is now. Returns the Services that it is about or was.
    pub(super) fn take(&mut self, id: RouteId, spec: Option<Arc<RouteSpec>>, state: &mut MeshState) -> Vec<Name> {
        if self.all.get(&id) == spec.as_ref() {
            return Vec::new();
        }
        let parents = spec.iter().flat_map(|spec| &spec.route.parents);
        let parents: Vec<(Name, ())> = parents.map(|parent| (Name::new(&parent.namespace, &parent.name), ())).collect();
        let mut touched: Vec<Name> = self.by_parent.of(&id).to_vec();
        self.by_parent.replace(&id, parents);
        touched.extend(self.by_parent.of(&id).iter().cloned());
        state.routes.set(&id, spec.clone());
        match spec {
            Some(spec) => drop(self.all.insert(id, spec)),
            None => drop(self.all.remove(&id)),
        }
        touched
    }

    /// Works out the routes of a Service, whose present form is in `state.services`. What did not change is not compiled
    /// again.
    pub(super) fn settle(&self, name: &Name, state: &mut MeshState) {
        let before = state.attached.get(name).cloned();
        if before.is_none() && !self.by_parent.is_claimed(name) {
            return;
        }
        let routes: Vec<&Arc<RouteSpec>> =
            self.by_parent.claimants(name).filter_map(|(id, ())| self.all.get(id)).collect();
        let service = state.services.get(name).filter(|service| can_have_routes(service));
        let mut known = Compiled { before: before.as_deref(), new: Vec::new() };
        let ports = service.iter().flat_map(|service| &service.ports);
        let ports = ports.filter_map(|port| Some((port.port, port_routes(name, port, &routes, &mut known)?)));
        let now = ServiceRoutes { ports: ports.collect() };
        if before.as_deref() != Some(&now) {
            state.attached.set(name, Some(now).filter(|now| !now.ports.is_empty()).map(Arc::new));
        }
    }
}

/// Tables that are there already: a route without a port makes the same for every port.
struct Compiled<'a> {
    before: Option<&'a ServiceRoutes>,
    new: Vec<Arc<Attached>>,
}

impl Compiled<'_> {
    fn attached(&mut self, routes: Vec<Arc<RouteSpec>>) -> Option<Arc<Attached>> {
        let ports = self.before.iter().flat_map(|before| before.ports.values());
        let before = ports.flat_map(|port| port.producer.iter().chain(port.consumers.values()));
        if let Some(known) = before.chain(&self.new).find(|known| known.is_of(&routes)) {
            return Some(known.clone());
        }
        let attached = Arc::new(Attached::of(routes)?);
        self.new.push(attached.clone());
        Some(attached)
    }
}

fn port_routes(
    service: &Name,
    port: &ServicePort,
    routes: &[&Arc<RouteSpec>],
    known: &mut Compiled<'_>,
) -> Option<PortRoutes> {
    let mut groups: BTreeMap<Arc<str>, Vec<Arc<RouteSpec>>> = BTreeMap::new();
    for spec in routes.iter().filter(|spec| spec.route.parents.iter().any(|parent| is_at(parent, service, port))) {
        groups.entry(spec.route.namespace.clone()).or_default().push((*spec).clone());
    }
    let producer = groups.remove(&service.namespace).and_then(|routes| known.attached(routes));
    let consumers = groups.into_iter().filter_map(|(namespace, routes)| Some((namespace, known.attached(routes)?)));
    let consumers: BTreeMap<_, _> = consumers.collect();
    (producer.is_some() || !consumers.is_empty()).then_some(PortRoutes { producer, consumers })
}

/// Whether a parent is this port: "the name and port of the selected port must match both specified values".
pub(super) fn is_at(parent: &Parent, service: &Name, port: &ServicePort) -> bool {
    (&parent.namespace, &parent.name) == (&service.namespace, &service.name)
        && parent.port.is_none_or(|wanted| wanted == port.port)
        && parent.section.as_ref().is_none_or(|section| *section == port.name)
}

/// A Service without address of its own is no frontend: nobody can be told to have dialled it.
pub(super) fn can_have_routes(service: &Service) -> bool {
    !service.cluster_ips.is_empty()
}

impl ServiceRoutes {
    /// The routes of a port that clients of a namespace see.
    pub(super) fn at(&self, port: u16, client_namespace: &str) -> Option<&Attached> {
        let routes = self.ports.get(&port)?;
        routes.consumers.get(client_namespace).or(routes.producer.as_ref()).map(|attached| &**attached)
    }
}
