//! From the objects in force to the [`World`], at once and by itself: what the engine's pieces are held against.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::object::Key;
use super::store::Store;
use super::translate::Item;
use crate::policy::PolicySet;
use crate::state::{Backend, Backends, Node, ReferenceGrant, RouteSpec, ServiceSpec, Workload, World};

/// Joins pods with their namespace's label and EndpointSlices with their Service. Cannot fail.
pub fn world(store: &Store) -> World {
    let mut loose = Loose::default();
    let items = store.items();
    for (key, item) in &items {
        loose.take(key, item);
    }
    let mut policies =
        PolicySet::new(std::mem::take(&mut loose.peers), std::mem::take(&mut loose.authorizations), store.unreadable());
    for object in std::mem::take(&mut loose.tokens) {
        policies.replace_request_authentication(None, Some(Arc::new(object)));
    }
    World {
        workloads: loose.workloads(),
        services: loose.services,
        nodes: loose.nodes,
        routes: loose.routes,
        grants: loose.grants,
        policies,
    }
    .with_slices(loose.slices)
}

#[derive(Default)]
struct Loose<'a> {
    namespaces: BTreeMap<&'a str, Option<bool>>,
    pods: Vec<(&'a Workload, Option<bool>)>,
    services: Vec<ServiceSpec>,
    nodes: Vec<Node>,
    slices: HashMap<(Arc<str>, Arc<str>), Vec<Backend>>,
    routes: Vec<RouteSpec>,
    grants: Vec<(Arc<str>, Arc<str>, ReferenceGrant)>,
    peers: Vec<crate::policy::PeerAuthentication>,
    authorizations: Vec<crate::policy::AuthorizationPolicy>,
    tokens: Vec<crate::policy::RequestAuthentication>,
}

impl<'a> Loose<'a> {
    fn take(&mut self, key: &'a Key, item: &'a Item) {
        match item {
            Item::Namespace { mesh } => {
                self.namespaces.insert(&key.name, *mesh);
            }
            Item::Node(node) => self.nodes.push((**node).clone()),
            Item::Pod { workload, mesh } => self.pods.push((workload, *mesh)),
            Item::Service(service) => self.services.push((**service).clone()),
            Item::EndpointSlice { service, backends } => {
                let slice = self.slices.entry((key.namespace.as_str().into(), service.clone())).or_default();
                slice.extend_from_slice(backends);
            }
            Item::Route(route) => self.routes.push((**route).clone()),
            Item::ReferenceGrant(grant) => {
                let (namespace, name) = (key.namespace.as_str().into(), key.name.as_str().into());
                self.grants.push((namespace, name, (**grant).clone()));
            }
            Item::PeerAuthentication(peer) => self.peers.push((**peer).clone()),
            Item::AuthorizationPolicy(policy) => self.authorizations.push((**policy).clone()),
            Item::RequestAuthentication(object) => self.tokens.push((**object).clone()),
            // No part of a world: what follows from them is in the engine, by itself.
            Item::TrafficPolicy(_) | Item::ExternalAuthorizer(_) => {}
        }
    }

    fn workloads(&self) -> Vec<Workload> {
        let enrolment = |(workload, own): &(&Workload, Option<bool>)| {
            let of_namespace = self.namespaces.get(&*workload.namespace).copied().flatten();
            let asked = own.or(of_namespace) == Some(true);
            Workload {
                enrolled: asked && workload.enrolled,
                refusal: workload.refusal.filter(|_| asked),
                ..(*workload).clone()
            }
        };
        self.pods.iter().map(enrolment).collect()
    }
}

impl World {
    /// A Service with slices takes its endpoints from them. One without has none yet in a cluster, where a controller
    /// makes slices; a directory may do without, and then the selector tells (see [`Backends::Selected`]).
    fn with_slices(mut self, mut slices: HashMap<(Arc<str>, Arc<str>), Vec<Backend>>) -> Self {
        for service in &mut self.services {
            if let Some(backends) = slices.remove(&(service.namespace.clone(), service.name.clone())) {
                service.backends = Backends::Listed(backends);
            }
        }
        self
    }
}
