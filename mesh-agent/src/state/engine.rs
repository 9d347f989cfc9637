//! The one place where snapshots come from: takes objects as they come and go, and works out what follows.
//!
//! A change is noted with what was read ([`Engine::upsert`], [`Engine::delete`]); [`Engine::snapshot`] then goes through
//! what depends on it, each stage marking what the next has to look at:
//!
//! ```text
//! namespace ─► its pods ─► IPs ─► who holds them ─┬─► pods that are there, pods of this node
//! node ─► zone ─────────┐                         ├─► host ports
//! slice ─► its Service ─┴─► Services that select or list them ─► addresses, unserved addresses
//! traffic policy ─► the targets at which it is the oldest
//! policy ─► its targets ───► pods to judge ◄── Services that a policy targets
//! route ─► its parents ───► Services ─► the routes of their ports ─► unserved addresses
//! ```
//!
//! Nothing is scanned but what an index says may depend on the change. What comes out equal to what was there stays the
//! very object that was there. The order in which objects came plays no part.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::attachments::Attachments;
use super::claims::Claims;
use super::endpoints::{Behind, target_port};
use super::frontends::{AddressClaims, Moved};
use super::nodes::Nodes;
use super::object::{Item, Key, Kind, Name, RouteId};
use super::pods::Pods;
use super::specs::Specs;
use super::topology::Here;
use super::traffic::TrafficPolicies;
use super::{MeshState, Node, Overruled, ReferenceGrant, RouteSpec, Service, Stamp, Workload, World};
use crate::policy::{
    AuthorizationPolicy, Operator, PeerAuthentication, PeerModes, RequestAuthentication, Selector, Subject, Target,
    Unreadable, Weight,
};
use crate::resilience::policy::TrafficPolicy;
use crate::routes::RouteKind;

/// See the module.
#[derive(Default)]
pub struct Engine {
    pods: Pods,
    nodes: Nodes,
    specs: Specs,
    addresses: AddressClaims,
    attachments: Attachments,
    peers: HashMap<Name, Arc<PeerAuthentication>>,
    authorizations: HashMap<Name, Arc<AuthorizationPolicy>>,
    tokens: HashMap<Name, Arc<RequestAuthentication>>,
    unreadable: Vec<Arc<Unreadable>>,
    traffic: TrafficPolicies,
    /// By pod: the Services that lead to it and that a policy targets, and at which of its ports.
    covered: Claims<Name, Name, BTreeSet<u16>>,
    dirty: Dirty,
    /// What the next snapshot is made of.
    state: MeshState,
}

/// What has to be looked at.
#[derive(Default)]
struct Dirty {
    pods: BTreeSet<Name>,
    nodes: BTreeSet<Arc<str>>,
    /// Nodes that are in another zone now.
    zones: BTreeSet<Arc<str>>,
    /// Addresses that may be a node's now, or no longer.
    node_ips: BTreeSet<IpAddr>,
    /// IPs that may have another holder.
    ips: BTreeSet<IpAddr>,
    /// Pods that may hold other IPs.
    present: BTreeSet<Name>,
    services: BTreeSet<Name>,
    /// What policies that came or went apply to.
    targets: Vec<(Reach, Target)>,
    /// Pods whose policies may be others, by uid.
    judge: BTreeSet<Arc<str>>,
    unserved: bool,
}

/// Where it matters what a policy says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// At the pods of this node: who may connect is decided there.
    Local,
    /// Everywhere: whether plaintext is taken matters to callers too.
    Everywhere,
}

impl MeshState {
    /// Builds the snapshot of a world as one node's agent sees it.
    pub fn build(version: u64, node: &str, world: &World) -> Self {
        let mut engine = Engine::new(node);
        for node in &world.nodes {
            engine.node(&node.name, Some(Arc::new(node.clone())));
        }
        for workload in &world.workloads {
            // Whether it is enrolled is settled.
            engine.pod(&Name::from(workload), Some((Arc::new(workload.clone()), Some(true))));
        }
        for spec in &world.services {
            engine.service(&Name::from(spec), Some(Arc::new(spec.clone())));
        }
        for route in &world.routes {
            engine.route(RouteId::from(route), Some(Arc::new(route.clone())));
        }
        for (namespace, name, grant) in &world.grants {
            engine.reference_grant(&Name::new(namespace, name), Some(Arc::new(grant.clone())));
        }
        // Every pod is judged anyway.
        engine.state.policies = Arc::new(world.policies.clone());
        engine.state.version = version.saturating_sub(1);
        engine.snapshot()
    }
}

impl Engine {
    /// An empty world, seen from a node.
    pub fn new(node: &str) -> Self {
        Self { state: MeshState { node: node.into(), ..MeshState::default() }, ..Self::default() }
    }

    /// Takes an object that is new, or as it is now.
    pub fn upsert(&mut self, key: &Key, item: Item) {
        let name = Name::of(key);
        match item {
            Item::Namespace { mesh } => self.namespace(&name.name, mesh),
            Item::Node(node) => self.node(&name.name, Some(node)),
            Item::Pod { workload, mesh } => self.pod(&name, Some((workload, mesh))),
            Item::Service(spec) => self.service(&name, Some(spec)),
            Item::EndpointSlice { service, backends } => self.slice(&name, Some((service, backends))),
            Item::Route(spec) => self.route(RouteId::from(&*spec), Some(spec)),
            Item::ReferenceGrant(grant) => self.reference_grant(&name, Some(grant)),
            Item::PeerAuthentication(peer) => self.peer_authentication(&name, Some(peer)),
            Item::AuthorizationPolicy(policy) => self.authorization_policy(&name, Some(policy)),
            Item::RequestAuthentication(object) => self.request_authentication(&name, Some(object)),
            Item::TrafficPolicy(policy) => self.traffic_policy(&name, Some(policy)),
            Item::ExternalAuthorizer(authorizer) => self.state.authorizers.set(&name, Some(authorizer)),
        }
    }

    /// Takes that an object is gone. Of one that never was, nothing follows.
    pub fn delete(&mut self, key: &Key) {
        let name = Name::of(key);
        match key.kind {
            Kind::Namespace => self.namespace(&name.name, None),
            Kind::Node => self.node(&name.name, None),
            Kind::Pod => self.pod(&name, None),
            Kind::Service => self.service(&name, None),
            Kind::EndpointSlice => self.slice(&name, None),
            Kind::HttpRoute => self.route(RouteId { kind: RouteKind::Http, name }, None),
            Kind::GrpcRoute => self.route(RouteId { kind: RouteKind::Grpc, name }, None),
            Kind::TcpRoute => self.route(RouteId { kind: RouteKind::Tcp, name }, None),
            Kind::TlsRoute => self.route(RouteId { kind: RouteKind::Tls, name }, None),
            Kind::ReferenceGrant => self.reference_grant(&name, None),
            Kind::PeerAuthentication => self.peer_authentication(&name, None),
            Kind::AuthorizationPolicy => self.authorization_policy(&name, None),
            Kind::RequestAuthentication => self.request_authentication(&name, None),
            Kind::TrafficPolicy => self.traffic_policy(&name, None),
            Kind::ExternalAuthorizer => self.state.authorizers.set(&name, None),
        }
    }

    /// Takes the addresses of pods of this node that their objects may not tell yet, by uid: all of them, each time. Says
    /// whether anything may follow.
    pub fn sandboxes(&mut self, sandboxes: HashMap<Arc<str>, Vec<IpAddr>>) -> bool {
        let about = self.pods.take_sandboxes(&self.state.node, sandboxes);
        let changed = !about.is_empty();
        self.dirty.pods.extend(about);
        changed
    }

    /// Takes which policies cannot be read: all of them, each time.
    pub fn refuse(&mut self, unreadable: Vec<Unreadable>) {
        if self.unreadable.iter().map(|known| &**known).eq(&unreadable) {
            return;
        }
        let now: Vec<Arc<Unreadable>> = unreadable.into_iter().map(Arc::new).collect();
        let before = std::mem::replace(&mut self.unreadable, now);
        let policies = Arc::make_mut(&mut self.state.policies);
        for gone in &before {
            policies.replace_unreadable(Some(gone), None);
        }
        for new in &self.unreadable {
            policies.replace_unreadable(None, Some(new.clone()));
        }
        for object in before.iter().chain(&self.unreadable) {
            let reach = match object.weight {
                Weight::DenyAll => Reach::Local,
                Weight::Strict => Reach::Everywhere,
            };
            self.dirty.targets.extend(object.targets.iter().map(|target| (reach, target.clone())));
        }
    }

    fn namespace(&mut self, namespace: &Arc<str>, mesh: Option<bool>) {
        self.dirty.pods.extend(self.pods.take_namespace(namespace, mesh));
    }

    fn node(&mut self, name: &Arc<str>, node: Option<Arc<Node>>) {
        let zone = node.as_ref().map(|node| node.zone.clone()).unwrap_or_default();
        if *name == self.state.node {
            self.state.kubelet_port = node.as_ref().and_then(|node| node.kubelet_port);
        }
        let (before, ips) = self.nodes.take(name, node);
        self.dirty.node_ips.extend(ips);
        self.dirty.nodes.insert(name.clone());
        if before.map(|before| before.zone.clone()).unwrap_or_default() != zone {
            self.dirty.zones.insert(name.clone());
        }
    }

    fn pod(&mut self, name: &Name, pod: Option<(Arc<Workload>, Option<bool>)>) {
        self.pods.take(name, pod);
        self.dirty.pods.insert(name.clone());
    }

    fn service(&mut self, name: &Name, spec: Option<Arc<super::ServiceSpec>>) {
        self.specs.take(name, spec, self.pods.labels());
        self.dirty.services.insert(name.clone());
    }

    fn slice(&mut self, name: &Name, slice: Option<(Arc<str>, Arc<[super::Backend]>)>) {
        self.dirty.services.extend(self.specs.take_slice(name, slice));
    }

    fn route(&mut self, id: RouteId, spec: Option<Arc<RouteSpec>>) {
        self.dirty.services.extend(self.attachments.take(id, spec, &mut self.state));
    }

    fn reference_grant(&mut self, name: &Name, grant: Option<Arc<ReferenceGrant>>) {
        if self.state.grants.get(name) != grant.as_ref() {
            self.state.grants.set(name, grant);
        }
    }

    fn peer_authentication(&mut self, name: &Name, peer: Option<Arc<PeerAuthentication>>) {
        if self.peers.get(name) == peer.as_ref() {
            return;
        }
        let before = put(&mut self.peers, name, peer.clone());
        let targets = before.iter().chain(&peer).flat_map(|object| object.targets.iter().cloned());
        self.dirty.targets.extend(targets.map(|target| (Reach::Everywhere, target)));
        Arc::make_mut(&mut self.state.policies).replace_peer_authentication(before.as_ref(), peer);
    }

    fn authorization_policy(&mut self, name: &Name, policy: Option<Arc<AuthorizationPolicy>>) {
        if self.authorizations.get(name) == policy.as_ref() {
            return;
        }
        let before = put(&mut self.authorizations, name, policy.clone());
        let targets = before.iter().chain(&policy).flat_map(|object| object.targets.iter().cloned());
        self.dirty.targets.extend(targets.map(|target| (Reach::Local, target)));
        Arc::make_mut(&mut self.state.policies).replace_authorization_policy(before.as_ref(), policy);
    }

    fn request_authentication(&mut self, name: &Name, object: Option<Arc<RequestAuthentication>>) {
        if self.tokens.get(name) == object.as_ref() {
            return;
        }
        let before = put(&mut self.tokens, name, object.clone());
        let targets = before.iter().chain(&object).flat_map(|object| object.targets.iter().cloned());
        self.dirty.targets.extend(targets.map(|target| (Reach::Local, target)));
        Arc::make_mut(&mut self.state.policies).replace_request_authentication(before.as_ref(), object);
    }

    fn traffic_policy(&mut self, name: &Name, policy: Option<Arc<TrafficPolicy>>) {
        self.traffic.take(name, policy, &mut self.state.traffic_policies);
        self.state.stamps.traffic = Stamp::default();
    }

    /// The TrafficPolicies that do not count at one of their targets, because an older one does.
    pub fn overruled(&self) -> impl Iterator<Item = Overruled> {
        self.traffic.overruled()
    }

    /// The CUSTOM policies that name somebody who is not there, with what they name.
    pub fn unanswerable(&self) -> impl Iterator<Item = (Key, String)> {
        self.authorizations.iter().filter_map(|(name, policy)| {
            let provider = policy.provider.as_ref().filter(|provider| self.state.authorizer(provider).is_none())?;
            let key = Key {
                kind: Kind::AuthorizationPolicy,
                namespace: name.namespace.to_string(),
                name: name.name.to_string(),
            };
            let names = provider.places.iter().map(|(namespace, name)| format!("{namespace}/{name}"));
            Some((key, names.collect::<Vec<_>>().join(" or ")))
        })
    }

    /// The world as it is now, with the next version.
    pub fn snapshot(&mut self) -> MeshState {
        let mut dirty = std::mem::take(&mut self.dirty);
        self.state.version += 1;
        self.settle_pods(&mut dirty);
        self.settle_ips(&mut dirty);
        self.settle_presence(&dirty);
        self.settle_zones(&mut dirty);
        self.settle_services(&mut dirty);
        self.settle_host_ports(&mut dirty);
        self.settle_node_ips(&mut dirty);
        self.settle_targets(&mut dirty);
        self.judge(&dirty);
        if dirty.unserved {
            self.state.stamps.unserved = Stamp::default();
        }
        self.state.clone()
    }

    fn settle_pods(&mut self, dirty: &mut Dirty) {
        for name in std::mem::take(&mut dirty.pods) {
            let Some(changed) = self.pods.settle(&name) else { continue };
            dirty.ips.extend(changed.ips);
            dirty.node_ips.extend(self.nodes.take_pod(&name, changed.new.as_deref()));
            for workload in changed.old.iter().chain(&changed.new) {
                let selecting = self.specs.selecting(workload, self.pods.labels());
                dirty.services.extend(selecting.map(|(name, _)| name.clone()));
                dirty.judge.insert(workload.uid.clone());
            }
            dirty.present.insert(name);
        }
    }

    fn settle_ips(&mut self, dirty: &mut Dirty) {
        for ip in std::mem::take(&mut dirty.ips) {
            // Who holds it here does not hang on who holds it in the cluster.
            dirty.present.extend(self.pods.claimants(&ip).map(|workload| Name::from(&**workload)));
            let had_holder = self.pods.by_ip(&ip).is_some();
            if !self.pods.settle_ip(&ip) {
                continue;
            }
            dirty.services.extend(self.specs.using(&ip).cloned());
            if had_holder != self.pods.by_ip(&ip).is_some() {
                dirty.unserved |= self.hides(&ip);
            }
        }
        self.state.workloads_by_ip = self.pods.holders().clone();
    }

    /// Whether an IP that becomes a pod's or a Service's own, or ceases to be, hides a node port or an external address.
    fn hides(&self, ip: &IpAddr) -> bool {
        self.addresses.is_external(ip) || self.state.frontends.has_node_ip(ip)
    }

    fn settle_presence(&mut self, dirty: &Dirty) {
        for name in &dirty.present {
            let pod = self.pods.get(name);
            let there = pod.filter(|workload| self.pods.is_there(workload)).cloned();
            let is_here = |workload: &Workload| workload.node == self.state.node && self.pods.is_on_its_node(workload);
            let local = pod.filter(|workload| is_here(workload)).cloned();
            if local.is_some() || self.state.local.contains_key(name) {
                let list = Arc::make_mut(&mut self.state.local);
                let before = match &local {
                    Some(local) => list.insert(name.clone(), local.clone()),
                    None => list.remove(name),
                };
                if before != local {
                    self.state.stamps.local_workloads = Stamp::default();
                }
            }
            self.state.workloads.set(name, there);
        }
    }

    /// A node's zone tells how far the endpoints on it are, and who prefers them; this node's, which it prefers.
    fn settle_zones(&mut self, dirty: &mut Dirty) {
        for node in std::mem::take(&mut dirty.zones) {
            if node == self.state.node {
                dirty.services.extend(self.specs.names().cloned());
            }
            for workload in self.pods.on(&node) {
                dirty.services.extend(workload.ips.iter().flat_map(|ip| self.specs.using(ip)).cloned());
            }
        }
    }

    fn settle_services(&mut self, dirty: &mut Dirty) {
        for (_, target) in &dirty.targets {
            if let Target::Service { namespace, name } = target {
                dirty.services.insert(Name::new(namespace, name));
            }
        }
        let here = self.nodes.here(&self.state.node);
        for name in std::mem::take(&mut dirty.services) {
            let behind = self.specs.behind(&name, &self.pods, &self.nodes);
            let service = behind.as_ref().map(|behind| service(behind, &here));
            let ips = behind.as_ref().map(Behind::ips).unwrap_or_default();
            if self.state.services.get(&name).map(|known| &**known) != service.as_ref() {
                self.state.services.set(&name, service.map(Arc::new));
            }
            self.attachments.settle(&name, &mut self.state);
            let moved = self.addresses.settle_service(&name, behind.as_ref(), &mut self.state);
            let targeted = behind.filter(|_| self.state.policies.targets_service(&name.namespace, &name.name));
            let coverage = targeted.as_ref().map(coverage).unwrap_or_default();
            for pod in self.covered.replace(&name, coverage) {
                dirty.judge.extend(self.pods.get(&pod).map(|workload| workload.uid.clone()));
            }
            self.specs.note_use(&name, ips);
            self.note_moved(&moved, dirty);
        }
    }

    fn note_moved(&self, moved: &Moved, dirty: &mut Dirty) {
        dirty.unserved |= moved.unserved || moved.cluster_ips.iter().any(|ip| self.hides(ip));
    }

    fn settle_host_ports(&mut self, dirty: &mut Dirty) {
        let of_nodes = dirty.nodes.iter().flat_map(|node| self.pods.on(node));
        let of_nodes = of_nodes.filter(|workload| !workload.host_ports.is_empty());
        let names: BTreeSet<Name> = of_nodes.map(|workload| Name::from(&**workload)).collect();
        for name in names.union(&dirty.present) {
            self.addresses.settle_host_ports(name, &self.pods, &self.nodes, &mut self.state);
        }
    }

    fn settle_node_ips(&mut self, dirty: &mut Dirty) {
        for ip in &dirty.node_ips {
            dirty.unserved |= self.state.frontends.set_node_ip(ip, self.nodes.have(ip));
        }
    }

    /// Finds the pods that policies which came or went are about.
    fn settle_targets(&mut self, dirty: &mut Dirty) {
        for (reach, target) in std::mem::take(&mut dirty.targets) {
            let mark = |workload: &Arc<Workload>| {
                dirty.judge.insert(workload.uid.clone());
            };
            match (&target, reach) {
                (Target::Service { namespace, name }, _) => {
                    let pods = self.covered.of(&Name::new(namespace, name)).iter();
                    pods.filter_map(|pod| self.pods.get(pod)).for_each(mark);
                }
                (_, Reach::Local) => {
                    let local = self.pods.on(&self.state.node);
                    local.filter(|workload| target.selects(&workload.namespace, &workload.labels)).for_each(mark);
                }
                (Target::Pods { namespace: Some(namespace), selector }, Reach::Everywhere) => {
                    let candidates = self.candidates(namespace, selector);
                    candidates.filter(|workload| target.selects(&workload.namespace, &workload.labels)).for_each(mark);
                }
                (Target::Namespace(namespace), Reach::Everywhere) => self.pods.in_namespace(namespace).for_each(mark),
                (Target::Mesh | Target::Pods { namespace: None, .. }, Reach::Everywhere) => self
                    .pods
                    .all()
                    .filter(|workload| target.selects(&workload.namespace, &workload.labels))
                    .for_each(mark),
            }
        }
    }

    /// The pods of a namespace that a selector may select: by the first label that it wants, if it wants any.
    fn candidates<'a>(
        &'a self,
        namespace: &'a Arc<str>,
        selector: &Selector,
    ) -> Box<dyn Iterator<Item = &'a Arc<Workload>> + 'a> {
        let wanted = selector.requirements.iter().find_map(|requirement| match &requirement.operator {
            Operator::In(values) => Some((&requirement.key, values)),
            Operator::NotIn(_) | Operator::Exists | Operator::DoesNotExist => None,
        });
        let Some((label, values)) = wanted else { return Box::new(self.pods.in_namespace(namespace)) };
        let names: BTreeSet<&Name> =
            values.iter().filter_map(|value| self.pods.having(namespace, label, value)).flatten().collect();
        Box::new(names.into_iter().filter_map(|name| self.pods.get(name)))
    }

    /// Compiles the policies of pods of this node, and for all enrolled pods whether they take plaintext.
    fn judge(&mut self, dirty: &Dirty) {
        for uid in &dirty.judge {
            let workload = self.pods.by_uid(uid).cloned();
            let services = workload.as_deref().map(|workload| self.services_of(workload)).unwrap_or_default();
            let subject = workload.as_deref().map(|workload| Subject {
                namespace: &workload.namespace,
                labels: &workload.labels,
                services: &services,
            });
            let policies = &self.state.policies;
            let enrolled = workload.as_ref().is_some_and(|workload| workload.enrolled);
            let modes = subject.as_ref().filter(|_| enrolled).map(|subject| policies.peer_modes(subject));
            let modes = modes.filter(|modes| *modes != PeerModes::default());
            let node = &self.state.node;
            let local = workload.as_ref().is_some_and(|workload| workload.node == *node && !node.is_empty());
            let policy = subject.as_ref().filter(|_| local).map(|subject| policies.compile(subject));
            if self.state.peer_modes.get(uid).map(|known| &**known) != modes.as_ref() {
                self.state.peer_modes.set(uid, modes.map(Arc::new));
            }
            if self.state.local_policies.get(uid).map(|known| &**known) != policy.as_ref() {
                self.state.local_policies.set(uid, policy.map(Arc::new));
                self.state.stamps.local_policies = Stamp::default();
            }
        }
    }

    /// The Services that lead to a pod and that a policy targets, and at which of its ports.
    fn services_of(&self, workload: &Workload) -> BTreeMap<Arc<str>, BTreeSet<u16>> {
        let name = Name::from(workload);
        let services = self.covered.claimants(&name);
        services.map(|(service, ports)| (service.name.clone(), ports.clone())).collect()
    }
}

fn service(behind: &Behind<'_>, here: &Here) -> Service {
    let spec = behind.spec;
    Service {
        namespace: spec.namespace.clone(),
        name: spec.name.clone(),
        cluster_ips: spec.cluster_ips.clone(),
        external: spec.external.clone(),
        affinity: spec.traffic.affinity,
        ports: spec.ports.iter().map(|port| behind.port(port, here)).collect(),
    }
}

/// Which pods a policy on a Service covers, and at which ports. Pods that are not ready count: they can be dialled by
/// their IP.
fn coverage(behind: &Behind<'_>) -> BTreeMap<Name, BTreeSet<u16>> {
    let mut covered: BTreeMap<Name, BTreeSet<u16>> = BTreeMap::new();
    for workload in behind.selected() {
        let ports = behind.spec.ports.iter().filter_map(|port| target_port(workload, &port.target));
        covered.entry(Name::from(&**workload)).or_default().extend(ports);
    }
    for backend in behind.listed.iter().flatten() {
        let workload = behind.pods.by_ip(&backend.ip);
        if let Some(workload) = workload.filter(|workload| workload.namespace == behind.spec.namespace) {
            covered.entry(Name::from(&**workload)).or_default().insert(backend.port);
        }
    }
    covered.retain(|_, ports| !ports.is_empty());
    covered
}

/// Puts a value into its place, or takes it away. Returns what was there.
fn put<T>(map: &mut HashMap<Name, T>, name: &Name, value: Option<T>) -> Option<T> {
    match value {
        Some(value) => map.insert(name.clone(), value),
        None => map.remove(name),
    }
}
