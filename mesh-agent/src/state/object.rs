//! One object of the cluster, as far as the mesh cares: what discovery hands over, one by one, for good or until it is
//! handed over again.

use std::fmt;
use std::sync::Arc;

use super::{Backend, Node, ReferenceGrant, RouteSpec, ServiceSpec, Workload};
use crate::policy::{AuthorizationPolicy, Authorizer, PeerAuthentication, RequestAuthentication};
use crate::resilience::policy::TrafficPolicy;
use crate::routes::RouteKind;

/// The kinds that the mesh reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// v1
    Namespace,
    /// v1
    Node,
    /// v1
    Pod,
    /// v1
    Service,
    /// discovery.k8s.io/v1
    EndpointSlice,
    /// gateway.networking.k8s.io/v1
    HttpRoute,
    /// gateway.networking.k8s.io/v1
    GrpcRoute,
    /// gateway.networking.k8s.io/v1
    TcpRoute,
    /// gateway.networking.k8s.io/v1
    TlsRoute,
    /// gateway.networking.k8s.io/v1
    ReferenceGrant,
    /// nodemesh.dev/v1alpha1
    PeerAuthentication,
    /// nodemesh.dev/v1alpha1
    AuthorizationPolicy,
    /// nodemesh.dev/v1alpha1
    RequestAuthentication,
    /// nodemesh.dev/v1alpha1
    TrafficPolicy,
    /// nodemesh.dev/v1alpha1
    ExternalAuthorizer,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::HttpRoute => f.write_str("HTTPRoute"),
            Kind::GrpcRoute => f.write_str("GRPCRoute"),
            Kind::TcpRoute => f.write_str("TCPRoute"),
            Kind::TlsRoute => f.write_str("TLSRoute"),
            other => fmt::Debug::fmt(other, f),
        }
    }
}

impl Kind {
    /// Whether an object of this kind restricts who may connect.
    pub fn is_policy(self) -> bool {
        match self {
            Kind::PeerAuthentication | Kind::AuthorizationPolicy | Kind::RequestAuthentication => true,
            // It restricts how much comes, not who; and who is asked restricts nothing by himself.
            Kind::TrafficPolicy | Kind::ExternalAuthorizer => false,
            Kind::Namespace
            | Kind::Node
            | Kind::Pod
            | Kind::Service
            | Kind::EndpointSlice
            | Kind::HttpRoute
            | Kind::GrpcRoute
            | Kind::TcpRoute
            | Kind::TlsRoute
            | Kind::ReferenceGrant => false,
        }
    }

    /// The kind of objects that are routes of a kind.
    pub fn of_route(kind: RouteKind) -> Self {
        match kind {
            RouteKind::Http => Kind::HttpRoute,
            RouteKind::Grpc => Kind::GrpcRoute,
            RouteKind::Tcp => Kind::TcpRoute,
            RouteKind::Tls => Kind::TlsRoute,
        }
    }

    /// The kind of route that an object of this kind is.
    pub fn route(self) -> Option<RouteKind> {
        match self {
            Kind::HttpRoute => Some(RouteKind::Http),
            Kind::GrpcRoute => Some(RouteKind::Grpc),
            Kind::TcpRoute => Some(RouteKind::Tcp),
            Kind::TlsRoute => Some(RouteKind::Tls),
            Kind::Namespace
            | Kind::Node
            | Kind::Pod
            | Kind::Service
            | Kind::EndpointSlice
            | Kind::ReferenceGrant
            | Kind::PeerAuthentication
            | Kind::AuthorizationPolicy
            | Kind::RequestAuthentication
            | Kind::TrafficPolicy
            | Kind::ExternalAuthorizer => None,
        }
    }
}

/// How an object is told from all others.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Its kind.
    pub kind: Kind,
    /// metadata.namespace, `default` when absent; empty for Namespaces and Nodes.
    pub namespace: String,
    /// metadata.name
    pub name: String,
}

impl Key {
    /// `namespace/name`, or the name alone.
    pub fn object(&self) -> String {
        if self.namespace.is_empty() { self.name.clone() } else { format!("{}/{}", self.namespace, self.name) }
    }
}

/// What the mesh takes from one object. Cheap to clone.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// A namespace: what its label says.
    Namespace {
        /// None: nothing.
        mesh: Option<bool>,
    },
    /// A node.
    Node(Arc<Node>),
    /// A pod; whether it is enrolled is settled with its namespace.
    Pod {
        /// `enrolled` and `refusal` say what would be if the pod were asked for.
        workload: Arc<Workload>,
        /// What the pod's own label says.
        mesh: Option<bool>,
    },
    /// A Service; its endpoints come with the EndpointSlices.
    Service(Arc<ServiceSpec>),
    /// Some endpoints of a Service.
    EndpointSlice {
        /// Its name, in the slice's namespace.
        service: Arc<str>,
        /// The endpoints.
        backends: Arc<[Backend]>,
    },
    /// Where requests or connections to Services go.
    Route(Arc<RouteSpec>),
    /// Which routes of other namespaces may refer to Services of this one.
    ReferenceGrant(Arc<ReferenceGrant>),
    /// Whether plaintext is acceptable.
    PeerAuthentication(Arc<PeerAuthentication>),
    /// Who may connect.
    AuthorizationPolicy(Arc<AuthorizationPolicy>),
    /// Which tokens are believed.
    RequestAuthentication(Arc<RequestAuthentication>),
    /// How requests are treated.
    TrafficPolicy(Arc<TrafficPolicy>),
    /// Who may be asked about requests.
    ExternalAuthorizer(Arc<Authorizer>),
}

/// Namespace and name: how pods, Services and slices are told apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Name {
    pub(super) namespace: Arc<str>,
    pub(super) name: Arc<str>,
}

impl Name {
    pub(super) fn new(namespace: &Arc<str>, name: &Arc<str>) -> Self {
        Self { namespace: namespace.clone(), name: name.clone() }
    }

    pub(super) fn of(key: &Key) -> Self {
        Self { namespace: key.namespace.as_str().into(), name: key.name.as_str().into() }
    }
}

/// How routes are told apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct RouteId {
    pub(super) kind: RouteKind,
    pub(super) name: Name,
}

impl From<&RouteSpec> for RouteId {
    fn from(spec: &RouteSpec) -> Self {
        Self { kind: spec.route.kind, name: Name::new(&spec.route.namespace, &spec.route.name) }
    }
}

impl From<&Workload> for Name {
    fn from(workload: &Workload) -> Self {
        Self::new(&workload.namespace, &workload.name)
    }
}

impl From<&ServiceSpec> for Name {
    fn from(spec: &ServiceSpec) -> Self {
        Self::new(&spec.namespace, &spec.name)
    }
}
