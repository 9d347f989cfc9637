//! What the data path asks about routes: of a Service's port, and of a reference.

use std::sync::Arc;

use super::attachments::{Attached, Way};
use super::object::Name;
use super::{AppProtocol, BadBackend, Connections, MeshState, Service, ServicePort, Table};
use crate::routes::{BackendRef, RouteKind};

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

    /// Where a reference of a route leads: `kind` and `namespace` are the route's, `dialled` is the Service that the
    /// client came for. A Service that is there may have no endpoint.
    pub fn backend(
        &self,
        kind: RouteKind,
        namespace: &Arc<str>,
        dialled: &Service,
        target: &BackendRef,
    ) -> Result<(&Arc<Service>, &ServicePort), BadBackend> {
        self.resolve(kind, namespace, &Name::new(&dialled.namespace, &dialled.name), target)
    }

    pub(super) fn attached_at(&self, service: &Service, port: u16, client_namespace: &str) -> Option<&Attached> {
        self.attached.get(&Name::new(&service.namespace, &service.name))?.at(port, client_namespace)
    }

    /// Where a reference of a route leads. `frontend` is the Service whose port was dialled.
    ///
    /// A reference to another namespace needs a ReferenceGrant there, as the API has it for every reference. One is not
    /// crossing a border: from a Service's own route back to that Service, which a consumer route does.
    pub(super) fn resolve(
        &self,
        kind: RouteKind,
        namespace: &Arc<str>,
        frontend: &Name,
        target: &BackendRef,
    ) -> Result<(&Arc<Service>, &ServicePort), BadBackend> {
        let BackendRef::Service { namespace: to, name, port } = target else { return Err(BadBackend::InvalidKind) };
        let name = Name::new(to, name);
        if to != namespace && name != *frontend && !self.is_granted(kind, namespace, &name) {
            return Err(BadBackend::RefNotPermitted);
        }
        let service = self.services.get(&name).ok_or(BadBackend::BackendNotFound)?;
        let port = service.port(*port).ok_or(BadBackend::BackendNotFound)?;
        Ok((service, port))
    }

    fn is_granted(&self, kind: RouteKind, from: &Arc<str>, to: &Name) -> bool {
        let way = Way { kind, from: from.clone(), to: to.namespace.clone() };
        self.grants.get(&way).is_some_and(|granted| granted.allows(&to.name))
    }
}
