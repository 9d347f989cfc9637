//! From the policy objects of the whole world to what concerns one workload.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use serde::{Serialize, Serializer};

use super::object::{
    Action, AuthorizationPolicy, Mode, PeerAuthentication, PolicyMeta, RequestAuthentication, SameNode, Target,
    Unreadable, Weight,
};
use super::{Believed, PortScope, Statement, Unread, WorkloadPolicy};

/// What a policy's target may ask of a workload.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// metadata.namespace
    pub namespace: &'a str,
    /// metadata.labels
    pub labels: &'a BTreeMap<String, String>,
    /// The Services of its namespace that lead to it, and at which of its ports.
    pub services: &'a BTreeMap<Arc<str>, BTreeSet<u16>>,
}

/// The PeerAuthentication modes of a workload's ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerModes {
    /// Ports without an override.
    rest: Chosen,
    /// Ports with one.
    ports: BTreeMap<u16, Chosen>,
    /// The object that wants TLS from callers of the same node too, if one does.
    #[serde(skip_serializing_if = "Option::is_none")]
    encrypted_by: Option<Arc<str>>,
}

/// A mode and the object that chose it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Chosen {
    mode: Mode,
    rule: Option<Arc<str>>,
}

impl Default for PeerModes {
    fn default() -> Self {
        Self { rest: Chosen { mode: Mode::Permissive, rule: None }, ports: BTreeMap::new(), encrypted_by: None }
    }
}

impl PeerModes {
    /// The mode of a port and the object that chose it.
    pub fn at(&self, port: u16) -> (Mode, Option<&Arc<str>>) {
        let chosen = self.ports.get(&port).unwrap_or(&self.rest);
        (chosen.mode, chosen.rule.as_ref())
    }

    /// The object that wants TLS from callers of the same node too; None: that the kernel knows them will do.
    pub fn encrypted_by(&self) -> Option<&Arc<str>> {
        self.encrypted_by.as_ref()
    }
}

/// Every policy object, by where it may apply.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicySet {
    #[serde(rename = "peerAuthentications")]
    peers: Shelf<PeerAuthentication>,
    #[serde(rename = "authorizationPolicies")]
    authorizations: Shelf<AuthorizationPolicy>,
    #[serde(rename = "requestAuthentications")]
    tokens: Shelf<RequestAuthentication>,
    unreadable: Shelf<Unreadable>,
    /// How many targets are this Service, as (namespace, name).
    #[serde(skip)]
    services: HashMap<(Arc<str>, Arc<str>), usize>,
}

impl PolicySet {
    /// Sorts the objects, oldest first, and notes for which namespaces each is worth a look.
    pub fn new(
        peers: Vec<PeerAuthentication>,
        authorizations: Vec<AuthorizationPolicy>,
        unreadable: Vec<Unreadable>,
    ) -> Self {
        let mut set = Self::default();
        for peer in peers {
            set.replace_peer_authentication(None, Some(Arc::new(peer)));
        }
        for authorization in authorizations {
            set.replace_authorization_policy(None, Some(Arc::new(authorization)));
        }
        for unreadable in unreadable {
            set.replace_unreadable(None, Some(Arc::new(unreadable)));
        }
        set
    }

    /// Takes one object out and puts another in.
    pub fn replace_peer_authentication(
        &mut self,
        before: Option<&Arc<PeerAuthentication>>,
        now: Option<Arc<PeerAuthentication>>,
    ) {
        replace(&mut self.peers, &mut self.services, before, now);
    }

    /// Takes one object out and puts another in.
    pub fn replace_authorization_policy(
        &mut self,
        before: Option<&Arc<AuthorizationPolicy>>,
        now: Option<Arc<AuthorizationPolicy>>,
    ) {
        replace(&mut self.authorizations, &mut self.services, before, now);
    }

    /// Takes one object out and puts another in.
    pub fn replace_request_authentication(
        &mut self,
        before: Option<&Arc<RequestAuthentication>>,
        now: Option<Arc<RequestAuthentication>>,
    ) {
        replace(&mut self.tokens, &mut self.services, before, now);
    }

    /// Takes one object out and puts another in.
    pub fn replace_unreadable(&mut self, before: Option<&Arc<Unreadable>>, now: Option<Arc<Unreadable>>) {
        replace(&mut self.unreadable, &mut self.services, before, now);
    }

    /// Whether some policy targets a Service.
    pub fn targets_service(&self, namespace: &Arc<str>, name: &Arc<str>) -> bool {
        self.services.contains_key(&(namespace.clone(), name.clone()))
    }

    /// The modes of a workload's ports.
    ///
    /// A port's override beats every plain mode; then the object that selects the workload's pods beats that of its
    /// namespace, which beats the mesh's. The oldest wins among equals; so it is with `sameNode`. An unreadable
    /// PeerAuthentication counts as STRICT with TLS on one node too, and beats all.
    pub fn peer_modes(&self, subject: &Subject<'_>) -> PeerModes {
        let mut modes = PeerModes::default();
        let (mut plain, mut same_node): (Option<Width>, Option<Width>) = (None, None);
        for object in self.peers.of(subject.namespace) {
            let Some(width) = width(&object.targets, subject) else { continue };
            let choose = |mode| Chosen { mode, rule: Some(object.meta.id.clone()) };
            if let Some(mode) = object.mode
                && plain.is_none_or(|chosen| width < chosen)
            {
                plain = Some(width);
                modes.rest = choose(mode);
            }
            if let Some(wanted) = object.same_node
                && same_node.is_none_or(|chosen| width < chosen)
            {
                same_node = Some(width);
                modes.encrypted_by = (wanted == SameNode::Encrypt).then(|| object.meta.id.clone());
            }
            for (port, mode) in &object.ports {
                modes.ports.entry(*port).or_insert_with(|| choose(*mode));
            }
        }
        for object in self.unreadable.of(subject.namespace).filter(|object| object.weight == Weight::Strict) {
            let strict = Chosen { mode: Mode::Strict, rule: Some(object.meta.id.clone()) };
            let encrypted_by = strict.rule.clone();
            match port_scope(&object.targets, subject) {
                None => {}
                Some(PortScope::All) => return PeerModes { rest: strict, ports: BTreeMap::new(), encrypted_by },
                Some(PortScope::Only(ports)) => {
                    modes.encrypted_by = encrypted_by;
                    modes.ports.extend(ports.into_iter().map(|port| (port, strict.clone())))
                }
            }
        }
        modes
    }

    /// Everything that decides about connections to a workload.
    pub fn compile(&self, subject: &Subject<'_>) -> WorkloadPolicy {
        let mut policy = WorkloadPolicy { modes: self.peer_modes(subject), ..WorkloadPolicy::default() };
        for object in self.authorizations.of(subject.namespace) {
            let Some(ports) = port_scope(&object.targets, subject) else { continue };
            let statements = match object.action {
                Action::Allow => &mut policy.allow,
                Action::Custom => &mut policy.custom,
                Action::Deny => &mut policy.deny,
                Action::Audit => &mut policy.audit,
            };
            statements.push(Statement { id: object.meta.id.clone(), ports, policy: object.clone() });
        }
        for object in self.tokens.of(subject.namespace) {
            let Some(ports) = port_scope(&object.targets, subject) else { continue };
            policy.tokens.push(Believed { id: object.meta.id.clone(), ports, object: object.clone() });
        }
        for object in self.unreadable.of(subject.namespace).filter(|object| object.weight == Weight::DenyAll) {
            let Some(ports) = port_scope(&object.targets, subject) else { continue };
            policy.unreadable.push(Unread { id: object.meta.id.clone(), ports });
        }
        policy.indexed()
    }
}

/// How much of the mesh a target covers; the narrower is the lesser.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Width {
    Workload,
    Namespace,
    Mesh,
}

/// The narrowest target that selects the whole workload.
fn width(targets: &[Target], subject: &Subject<'_>) -> Option<Width> {
    targets.iter().filter_map(|target| target_width(target, subject)).min()
}

impl Target {
    /// Whether it is these pods as a whole; a Service is never more than ports of them.
    pub fn selects(&self, namespace: &str, labels: &BTreeMap<String, String>) -> bool {
        target_width(self, &Subject { namespace, labels, services: &BTreeMap::new() }).is_some()
    }
}

fn target_width(target: &Target, subject: &Subject<'_>) -> Option<Width> {
    match target {
        Target::Mesh => Some(Width::Mesh),
        Target::Namespace(namespace) => (**namespace == *subject.namespace).then_some(Width::Namespace),
        Target::Pods { namespace, selector } => {
            let here = namespace.as_ref().is_none_or(|namespace| **namespace == *subject.namespace);
            (here && selector.matches(subject.labels)).then_some(Width::Workload)
        }
        Target::Service { .. } => None,
    }
}

/// The ports of the workload that the targets cover; None if they do not select it.
fn port_scope(targets: &[Target], subject: &Subject<'_>) -> Option<PortScope> {
    if width(targets, subject).is_some() {
        return Some(PortScope::All);
    }
    let ports: BTreeSet<u16> =
        targets.iter().filter_map(|target| service_ports(target, subject)).flatten().copied().collect();
    (!ports.is_empty()).then_some(PortScope::Only(ports))
}

fn service_ports<'a>(target: &Target, subject: &Subject<'a>) -> Option<&'a BTreeSet<u16>> {
    match target {
        Target::Service { namespace, name } if **namespace == *subject.namespace => subject.services.get(name),
        Target::Service { .. } | Target::Mesh | Target::Namespace(_) | Target::Pods { .. } => None,
    }
}

/// Objects of one kind, oldest first, found by namespace without a look at the rest.
#[derive(Clone, Debug)]
struct Shelf<T> {
    all: BTreeMap<Place, Arc<T>>,
    /// Those that may apply in any namespace.
    everywhere: BTreeSet<Place>,
    /// Those that apply in one namespace.
    by_namespace: HashMap<Arc<str>, BTreeSet<Place>>,
}

/// An object's age and name, and a number that tells apart those that have both in common.
type Place = (i64, Arc<str>, usize);

impl<T> Default for Shelf<T> {
    fn default() -> Self {
        Self { all: BTreeMap::new(), everywhere: BTreeSet::new(), by_namespace: HashMap::new() }
    }
}

impl<T: Serialize> Serialize for Shelf<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.all.values().map(|object| &**object))
    }
}

trait Shelved {
    fn meta(&self) -> &PolicyMeta;
    fn targets(&self) -> &[Target];
}

macro_rules! shelved {
    ($($kind:ty),*) => {
        $(impl Shelved for $kind {
            fn meta(&self) -> &PolicyMeta {
                &self.meta
            }
            fn targets(&self) -> &[Target] {
                &self.targets
            }
        })*
    };
}

shelved!(PeerAuthentication, AuthorizationPolicy, Unreadable, RequestAuthentication);

/// Takes one object off a shelf and puts another on it.
fn replace<T: Shelved>(
    shelf: &mut Shelf<T>,
    services: &mut HashMap<(Arc<str>, Arc<str>), usize>,
    before: Option<&Arc<T>>,
    now: Option<Arc<T>>,
) {
    if let Some(before) = before
        && shelf.remove(before)
    {
        for service in targeted_services(before.targets()) {
            let count = services.remove(&service).unwrap_or_default();
            if count > 1 {
                services.insert(service, count - 1);
            }
        }
    }
    if let Some(now) = now {
        for service in targeted_services(now.targets()) {
            *services.entry(service).or_default() += 1;
        }
        shelf.insert(now);
    }
}

fn targeted_services(targets: &[Target]) -> impl Iterator<Item = (Arc<str>, Arc<str>)> {
    targets.iter().filter_map(|target| match target {
        Target::Service { namespace, name } => Some((namespace.clone(), name.clone())),
        Target::Mesh | Target::Namespace(_) | Target::Pods { .. } => None,
    })
}

impl<T: Shelved> Shelf<T> {
    fn insert(&mut self, object: Arc<T>) {
        let (created, id) = object.meta().age_order();
        let alike = self.all.range((created, id.clone(), 0)..=(created, id.clone(), usize::MAX));
        let number = alike.last().map_or(0, |((_, _, number), _)| number + 1);
        let place = (created, id, number);
        match namespaces(object.targets()) {
            None => drop(self.everywhere.insert(place.clone())),
            Some(namespaces) => {
                for namespace in namespaces {
                    self.by_namespace.entry(namespace).or_default().insert(place.clone());
                }
            }
        }
        self.all.insert(place, object);
    }

    /// False when the object is not here.
    fn remove(&mut self, object: &Arc<T>) -> bool {
        let (created, id) = object.meta().age_order();
        let mut alike = self.all.range((created, id.clone(), 0)..=(created, id, usize::MAX));
        let Some(place) = alike.find(|(_, candidate)| Arc::ptr_eq(candidate, object)).map(|(place, _)| place.clone())
        else {
            return false;
        };
        self.all.remove(&place);
        self.everywhere.remove(&place);
        for namespace in namespaces(object.targets()).into_iter().flatten() {
            let Some(places) = self.by_namespace.get_mut(&namespace) else { continue };
            places.remove(&place);
            if places.is_empty() {
                self.by_namespace.remove(&namespace);
            }
        }
        true
    }

    /// The objects that may apply in a namespace, oldest first.
    fn of(&self, namespace: &str) -> impl Iterator<Item = &Arc<T>> {
        let here = self.by_namespace.get(namespace);
        let mut places: Vec<&Place> = self.everywhere.iter().chain(here.into_iter().flatten()).collect();
        places.sort_unstable();
        places.into_iter().filter_map(|place| self.all.get(place))
    }
}

/// The namespaces that the targets lie in; None when they may be anywhere.
fn namespaces(targets: &[Target]) -> Option<BTreeSet<Arc<str>>> {
    let namespaces = targets.iter().map(|target| match target {
        Target::Mesh => None,
        Target::Namespace(namespace) | Target::Service { namespace, .. } => Some(namespace.clone()),
        Target::Pods { namespace, .. } => namespace.clone(),
    });
    namespaces.collect()
}
