//! From the policy objects of the whole world to what concerns one workload.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use serde::{Serialize, Serializer};

use super::object::{Action, AuthorizationPolicy, Mode, PeerAuthentication, PolicyMeta, Target, Unreadable, Weight};
use super::{PortScope, Statement, Unread, WorkloadPolicy};

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
        Self { rest: Chosen { mode: Mode::Permissive, rule: None }, ports: BTreeMap::new() }
    }
}

impl PeerModes {
    /// The mode of a port and the object that chose it.
    pub fn at(&self, port: u16) -> (Mode, Option<&Arc<str>>) {
        let chosen = self.ports.get(&port).unwrap_or(&self.rest);
        (chosen.mode, chosen.rule.as_ref())
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
    unreadable: Shelf<Unreadable>,
}

impl PolicySet {
    /// Sorts the objects, oldest first, and notes for which namespaces each is worth a look.
    pub fn new(
        peers: Vec<PeerAuthentication>,
        authorizations: Vec<AuthorizationPolicy>,
        unreadable: Vec<Unreadable>,
    ) -> Self {
        Self {
            peers: Shelf::new(peers),
            authorizations: Shelf::new(authorizations),
            unreadable: Shelf::new(unreadable),
        }
    }

    /// The Services that some policy targets, as (namespace, name).
    pub fn targeted_services(&self) -> BTreeSet<(Arc<str>, Arc<str>)> {
        let peers = self.peers.all.iter().flat_map(|object| &object.targets);
        let authorizations = self.authorizations.all.iter().flat_map(|object| &object.targets);
        let unreadable = self.unreadable.all.iter().flat_map(|object| &object.targets);
        let services = peers.chain(authorizations).chain(unreadable).filter_map(|target| match target {
            Target::Service { namespace, name } => Some((namespace.clone(), name.clone())),
            Target::Mesh | Target::Namespace(_) | Target::Pods { .. } => None,
        });
        services.collect()
    }

    /// The modes of a workload's ports.
    ///
    /// A port's override beats every plain mode; then the object that selects the workload's pods beats that of its
    /// namespace, which beats the mesh's. The oldest wins among equals. An unreadable PeerAuthentication counts as
    /// STRICT and beats all.
    pub fn peer_modes(&self, subject: &Subject<'_>) -> PeerModes {
        let mut modes = PeerModes::default();
        let mut plain: Option<Width> = None;
        for object in self.peers.of(subject.namespace) {
            let Some(width) = width(&object.targets, subject) else { continue };
            let choose = |mode| Chosen { mode, rule: Some(object.meta.id.clone()) };
            if let Some(mode) = object.mode
                && plain.is_none_or(|chosen| width < chosen)
            {
                plain = Some(width);
                modes.rest = choose(mode);
            }
            for (port, mode) in &object.ports {
                modes.ports.entry(*port).or_insert_with(|| choose(*mode));
            }
        }
        for object in self.unreadable.of(subject.namespace).filter(|object| object.weight == Weight::Strict) {
            let strict = Chosen { mode: Mode::Strict, rule: Some(object.meta.id.clone()) };
            match port_scope(&object.targets, subject) {
                None => {}
                Some(PortScope::All) => return PeerModes { rest: strict, ports: BTreeMap::new() },
                Some(PortScope::Only(ports)) => {
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
                Action::Deny => &mut policy.deny,
                Action::Audit => &mut policy.audit,
            };
            statements.push(Statement { id: object.meta.id.clone(), ports, policy: object.clone() });
        }
        for object in self.unreadable.of(subject.namespace).filter(|object| object.weight == Weight::DenyAll) {
            let Some(ports) = port_scope(&object.targets, subject) else { continue };
            policy.unreadable.push(Unread { id: object.meta.id.clone(), ports });
        }
        policy
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
    all: Vec<Arc<T>>,
    /// Indexes of the objects that may apply in any namespace, ascending.
    everywhere: Vec<usize>,
    /// Indexes of the objects that apply in one namespace, ascending.
    by_namespace: HashMap<Arc<str>, Vec<usize>>,
}

impl<T> Default for Shelf<T> {
    fn default() -> Self {
        Self { all: Vec::new(), everywhere: Vec::new(), by_namespace: HashMap::new() }
    }
}

impl<T: Serialize> Serialize for Shelf<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.all.iter().map(|object| &**object))
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

shelved!(PeerAuthentication, AuthorizationPolicy, Unreadable);

impl<T: Shelved> Shelf<T> {
    fn new(mut objects: Vec<T>) -> Self {
        objects.sort_by_cached_key(|object| object.meta().age_order());
        let mut shelf = Self::default();
        for (index, object) in objects.iter().enumerate() {
            match namespaces(object.targets()) {
                None => shelf.everywhere.push(index),
                Some(namespaces) => {
                    for namespace in namespaces {
                        shelf.by_namespace.entry(namespace).or_default().push(index);
                    }
                }
            }
        }
        shelf.all = objects.into_iter().map(Arc::new).collect();
        shelf
    }

    /// The objects that may apply in a namespace, oldest first.
    fn of(&self, namespace: &str) -> impl Iterator<Item = &Arc<T>> {
        let here = self.by_namespace.get(namespace).map(Vec::as_slice).unwrap_or_default();
        let mut indexes: Vec<usize> = self.everywhere.iter().chain(here).copied().collect();
        indexes.sort_unstable();
        indexes.into_iter().filter_map(|index| self.all.get(index))
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
