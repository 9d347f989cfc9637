//! What the data path asks about routes: of a Service's port, and of a reference.

use std::sync::Arc;

use super::attachments::Attached;
use super::object::{Name, RouteId};
use super::{AppProtocol, BadBackend, Kind, MeshState, ReferenceGrant, RouteSpec, Service, ServicePort};
use crate::routes::{BackendRef, Connections, RouteKind, Table};

impl MeshState {
    /// The routes of requests at a Service's port, as clients of a namespace see them: consumer routes of that namespace,
    /// else the producer's. None: no HTTPRoute or GRPCRoute holds, and the port does what it did without any.
    pub fn requests(&self, service: &Service, port: u16, client_namespace: &str) -> Option<&Arc<Table>> {
        self.attached_at(service, port, client_namespace)?.requests()
    }

    /// The routes of connections at a Service's port, in the same way. None: no TCPRoute or TLSRoute holds.
    pub fn connections(&self, service: &Service, port: u16, client_namespace: &str) -> Option<&Arc<Connections>> {
        self.attached_at(service, port, client_namespace)?.connections()
    }

    /// The routes that hold at a Service's port for a namespace's clients, the first in precedence first: for people.
    pub fn routes_at(
        &self,
        service: &Service,
        port: u16,
        client_namespace: &str,
    ) -> impl Iterator<Item = &Arc<RouteSpec>> {
        self.attached_at(service, port, client_namespace).into_iter().flat_map(Attached::routes)
    }

    /// What is to be read of the connections of a namespace's clients to a Service's port: what the Service says, unless
    /// a route says more. An HTTPRoute makes a port of bytes one of HTTP, a GRPCRoute any port one of gRPC; where a
    /// TCPRoute or a TLSRoute holds, requests are not looked at.
    pub fn protocol(&self, service: &Service, port: &ServicePort, client_namespace: &str) -> AppProtocol {
        let attached = self.attached_at(service, port.port, client_namespace);
        match (attached.and_then(Attached::kind), port.protocol) {
            (None, said) => said,
            (Some(RouteKind::Http), AppProtocol::Bytes) => AppProtocol::Http1,
            (Some(RouteKind::Http), said) => said,
            (Some(RouteKind::Grpc), _) => AppProtocol::Grpc,
            (Some(RouteKind::Tcp | RouteKind::Tls), _) => AppProtocol::Bytes,
        }
    }

    /// Where a reference of a route leads. A Service that is there may have no endpoint.
    ///
    /// "Routes of either type can send traffic to backendRefs in any namespace. Unlike Gateway bound routes, this is
    /// allowed without a ReferenceGrant" (GEP-1294, Namespace boundaries): the client could dial that Service itself, and
    /// meets the same policy there.
    pub fn backend(&self, target: &BackendRef) -> Result<(&Arc<Service>, &ServicePort), BadBackend> {
        let BackendRef::Service { namespace, name, port } = target else { return Err(BadBackend::InvalidKind) };
        let service = self.services.get(&Name::new(namespace, name)).ok_or(BadBackend::BackendNotFound)?;
        let port = service.port(*port).ok_or(BadBackend::BackendNotFound)?;
        Ok((service, port))
    }

    /// Whether there is such a route, in whatever state.
    pub fn has_route(&self, kind: Kind, namespace: &Arc<str>, name: &Arc<str>) -> bool {
        let id = kind.route().map(|kind| RouteId { kind, name: Name::new(namespace, name) });
        id.is_some_and(|id| self.routes.contains(&id))
    }

    /// The ReferenceGrants, with namespace and name: for people.
    pub fn reference_grants(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<str>, &ReferenceGrant)> {
        let mut grants: Vec<_> = self.grants.iter().collect();
        grants.sort_unstable_by_key(|(name, _)| *name);
        grants.into_iter().map(|(name, grant)| (&name.namespace, &name.name, &**grant))
    }

    /// Whether the agent itself answers where a port has no endpoint: with an error of the protocol, or by a route that
    /// leads elsewhere.
    pub(super) fn answers_at(&self, service: &Service, port: &ServicePort) -> bool {
        let routes = self.attached.get(&Name::new(&service.namespace, &service.name));
        port.protocol != AppProtocol::Bytes || routes.is_some_and(|routes| routes.any_at(port.port))
    }

    pub(super) fn attached_at(&self, service: &Service, port: u16, client_namespace: &str) -> Option<&Attached> {
        self.attached.get(&Name::new(&service.namespace, &service.name))?.at(port, client_namespace)
    }
}
