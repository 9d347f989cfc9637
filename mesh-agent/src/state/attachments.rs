//! Which routes hold at which port of which Service, for whom.
//!
//! The choice itself is `routes::attached`; here it is made once for every namespace that has routes of its own for a
//! Service (consumer routes, which stand in the place of the producer's), and once for all others.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::claims::Claims;
use super::object::{Name, RouteId};
use super::{MeshState, RouteSpec, Service, ServicePort};
use crate::routes::{Connections, Frontend, Route, RouteKind, Table, attached};

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
    fn of(mut routes: Vec<Arc<RouteSpec>>, conflicted: Vec<Arc<RouteSpec>>) -> Self {
        routes.sort_by_cached_key(|spec| spec.route.age());
        let action = match Connections::compile(routes.iter().map(|spec| &*spec.route)) {
            Some(connections) => Action::Connections(Arc::new(connections)),
            None => Action::Requests(Arc::new(Table::compile(routes.iter().map(|spec| &*spec.route)))),
        };
        Self { routes, conflicted, action }
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

    fn is_of(&self, routes: &[Arc<RouteSpec>], conflicted: &[Arc<RouteSpec>]) -> bool {
        are_the_same(&self.routes, routes) && are_the_same(&self.conflicted, conflicted)
    }
}

/// In any order.
fn are_the_same(some: &[Arc<RouteSpec>], others: &[Arc<RouteSpec>]) -> bool {
    some.len() == others.len() && others.iter().all(|other| some.iter().any(|one| Arc::ptr_eq(one, other)))
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
    /// What clients of a namespace see of these routes.
    fn attached(
        &mut self,
        frontend: Frontend<'_>,
        client_namespace: &str,
        all: &[&Arc<RouteSpec>],
    ) -> Option<Arc<Attached>> {
        let chosen = attached(frontend, client_namespace, all.iter().map(|spec| &*spec.route))?;
        let spec =
            |route: &Route| all.iter().find(|spec| std::ptr::eq(&*spec.route, route)).map(|spec| (*spec).clone());
        let routes: Vec<Arc<RouteSpec>> = chosen.routes.into_iter().filter_map(spec).collect();
        let conflicted: Vec<Arc<RouteSpec>> = chosen.conflicted.into_iter().filter_map(spec).collect();
        let ports = self.before.iter().flat_map(|before| before.ports.values());
        let before = ports.flat_map(|port| port.producer.iter().chain(port.consumers.values()));
        if let Some(known) = before.chain(&self.new).find(|known| known.is_of(&routes, &conflicted)) {
            return Some(known.clone());
        }
        let new = Arc::new(Attached::of(routes, conflicted));
        self.new.push(new.clone());
        Some(new)
    }
}

fn port_routes(
    service: &Name,
    port: &ServicePort,
    routes: &[&Arc<RouteSpec>],
    known: &mut Compiled<'_>,
) -> Option<PortRoutes> {
    let (frontend, namespace) = (frontend(service, port), &service.namespace);
    let producer = known.attached(frontend, namespace, routes);
    let here = routes.iter().filter(|spec| spec.route.parents.iter().any(|parent| parent.is_at(frontend)));
    let others: BTreeSet<&Arc<str>> = here.map(|spec| &spec.route.namespace).filter(|of| *of != namespace).collect();
    let consumers = others.into_iter().filter_map(|of| Some((of.clone(), known.attached(frontend, of, routes)?)));
    let consumers: BTreeMap<_, _> = consumers.collect();
    (producer.is_some() || !consumers.is_empty()).then_some(PortRoutes { producer, consumers })
}

/// A Service's port, as routes name it.
pub(super) fn frontend<'a>(service: &'a Name, port: &'a ServicePort) -> Frontend<'a> {
    let Name { namespace, name } = service;
    Frontend { namespace, name, port: port.port, port_name: Some(&port.name) }
}

/// A Service without address of its own is no frontend: nobody can be told to have dialled it.
pub(super) fn can_have_routes(service: &Service) -> bool {
    !service.cluster_ips.is_empty()
}

impl ServiceRoutes {
    /// Whether anybody's routes hold at a port.
    pub(super) fn any_at(&self, port: u16) -> bool {
        self.ports.contains_key(&port)
    }

    /// The routes of a port that clients of a namespace see.
    pub(super) fn at(&self, port: u16, client_namespace: &str) -> Option<&Attached> {
        let routes = self.ports.get(&port)?;
        routes.consumers.get(client_namespace).or(routes.producer.as_ref()).map(|attached| &**attached)
    }
}
