//! The pods with the ways to find them, kept up to date one by one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::Arc;

use super::Workload;
use super::claims::Claims;
use super::cow::CowMap;
use super::object::Name;

#[derive(Default)]
pub(super) struct Pods {
    /// As they were read, each with what its own label says.
    read: BTreeMap<Name, (Arc<Workload>, Option<bool>)>,
    /// Addresses of pods of this node that their objects do not tell yet, by uid.
    sandboxes: HashMap<Arc<str>, Vec<IpAddr>>,
    /// What the namespaces' labels say.
    namespaces: HashMap<Arc<str>, bool>,
    /// As they are, with what their namespace says.
    all: BTreeMap<Name, Arc<Workload>>,
    by_label: HashMap<LabelHash, BTreeSet<Name>>,
    by_node: HashMap<Arc<str>, BTreeSet<Name>>,
    /// In the order of names; one, if Kubernetes is right.
    by_uid: HashMap<Arc<str>, Vec<Name>>,
    claims: Claims<IpAddr, Name, ()>,
    /// Who of those that claim an IP holds it.
    by_ip: CowMap<IpAddr, Arc<Workload>>,
    labels: Labels,
}

/// What became of a pod: as it was, and as it is.
pub(super) struct Changed {
    pub(super) old: Option<Arc<Workload>>,
    pub(super) new: Option<Arc<Workload>>,
    /// The IPs that may have another holder now.
    pub(super) ips: Vec<IpAddr>,
}

/// Namespace, label and value in one number. What is found by it has to be compared: two may share a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct LabelHash(u64);

/// Makes the numbers.
#[derive(Default)]
pub(super) struct Labels(RandomState);

impl Labels {
    pub(super) fn hash(&self, namespace: &str, label: &str, value: &str) -> LabelHash {
        LabelHash(self.0.hash_one((namespace, label, value)))
    }

    pub(super) fn of(&self, workload: &Workload) -> Vec<LabelHash> {
        workload.labels.iter().map(|(label, value)| self.hash(&workload.namespace, label, value)).collect()
    }
}

impl Pods {
    /// Takes a pod as it is read, or that it is gone. [`Pods::settle`] makes it count.
    pub(super) fn take(&mut self, name: &Name, pod: Option<(Arc<Workload>, Option<bool>)>) {
        match pod {
            Some(pod) => drop(self.read.insert(name.clone(), pod)),
            None => drop(self.read.remove(name)),
        }
    }

    /// Takes what a namespace's label says. Returns the pods that this may be about.
    pub(super) fn take_namespace(&mut self, namespace: &Arc<str>, mesh: Option<bool>) -> Vec<Name> {
        let before = match mesh {
            Some(mesh) => self.namespaces.insert(namespace.clone(), mesh),
            None => self.namespaces.remove(namespace),
        };
        if before == mesh { Vec::new() } else { self.read_in(namespace) }
    }

    /// Takes the addresses of all sandboxes of this node. Returns the pods that this may be about.
    pub(super) fn take_sandboxes(&mut self, node: &str, sandboxes: HashMap<Arc<str>, Vec<IpAddr>>) -> Vec<Name> {
        if self.sandboxes == sandboxes {
            return Vec::new();
        }
        let before = std::mem::replace(&mut self.sandboxes, sandboxes);
        let after = &self.sandboxes;
        let moved = |uid: &Arc<str>| before.get(uid) != after.get(uid);
        let here = self.read.iter().filter(|(_, (workload, _))| *workload.node == *node && moved(&workload.uid));
        here.map(|(name, _)| name.clone()).collect()
    }

    /// A pod with the addresses that it has: those of its newest sandbox, in the order that its object tells them if it
    /// tells the same. None without any.
    fn addressed(&self, workload: &Arc<Workload>) -> Option<Arc<Workload>> {
        let told: BTreeSet<&IpAddr> = workload.ips.iter().collect();
        match self.sandboxes.get(&workload.uid) {
            Some(ips) if ips.iter().collect::<BTreeSet<_>>() != told => {
                Some(Arc::new(Workload { ips: ips.clone(), ..(**workload).clone() }))
            }
            Some(_) | None => (!workload.ips.is_empty()).then(|| workload.clone()),
        }
    }

    fn read_in(&self, namespace: &Arc<str>) -> Vec<Name> {
        let from = Name { namespace: namespace.clone(), name: "".into() };
        let names = self.read.range(from..).map(|(name, _)| name);
        names.take_while(|name| name.namespace == *namespace).cloned().collect()
    }

    /// Brings one pod up to date with what was taken. None when that changes nothing.
    pub(super) fn settle(&mut self, name: &Name) -> Option<Changed> {
        let new = self.effective(name);
        let old = self.all.get(name).cloned();
        if old == new {
            return None;
        }
        if let Some(old) = &old {
            self.unindex(name, old);
            self.all.remove(name);
        }
        let claimed = new.iter().filter(|new| !new.host_network).flat_map(|new| new.ips.iter().map(|ip| (*ip, ())));
        let mut ips: BTreeSet<IpAddr> = self.claims.replace(name, claimed).into_iter().collect();
        // The holder of an IP is told by more than the claim.
        ips.extend(self.claims.of(name));
        if let Some(new) = &new {
            self.index(name, new);
            self.all.insert(name.clone(), new.clone());
        }
        Some(Changed { old, new, ips: ips.into_iter().collect() })
    }

    /// A pod that nobody asks for is not enrolled, and not refused either.
    fn effective(&self, name: &Name) -> Option<Arc<Workload>> {
        let (workload, own) = self.read.get(name)?;
        let workload = self.addressed(workload)?;
        let asked = own.or_else(|| self.namespaces.get(&name.namespace).copied()) == Some(true);
        if asked || (!workload.enrolled && workload.refusal.is_none()) {
            return Some(workload);
        }
        Some(Arc::new(Workload { enrolled: false, refusal: None, ..(*workload).clone() }))
    }

    fn index(&mut self, name: &Name, workload: &Workload) {
        for label in self.labels.of(workload) {
            self.by_label.entry(label).or_default().insert(name.clone());
        }
        self.by_node.entry(workload.node.clone()).or_default().insert(name.clone());
        match self.by_uid.get_mut(&workload.uid) {
            Some(names) => {
                if let Err(place) = names.binary_search(name) {
                    names.insert(place, name.clone());
                }
            }
            None => drop(self.by_uid.insert(workload.uid.clone(), vec![name.clone()])),
        }
    }

    fn unindex(&mut self, name: &Name, workload: &Workload) {
        for label in self.labels.of(workload) {
            remove(&mut self.by_label, &label, name);
        }
        remove(&mut self.by_node, &workload.node, name);
        let Some(names) = self.by_uid.get_mut(&workload.uid) else { return };
        names.retain(|other| other != name);
        if names.is_empty() {
            self.by_uid.remove(&workload.uid);
        }
    }

    /// Finds out who holds an IP. True when that is another pod than before, or the same one changed.
    pub(super) fn settle_ip(&mut self, ip: &IpAddr) -> bool {
        let mut claimants = self.claimants(ip);
        let first = claimants.next();
        let holder =
            first.map(|first| claimants.fold(first, |best, other| if other.beats(best) { other } else { best }));
        let holder = holder.cloned();
        if same(holder.as_ref(), self.by_ip.get(ip)) {
            return false;
        }
        self.by_ip.set(ip, holder);
        true
    }

    /// The pods that claim an IP.
    pub(super) fn claimants(&self, ip: &IpAddr) -> impl Iterator<Item = &Arc<Workload>> {
        self.claims.claimants(ip).filter_map(|(name, ())| self.all.get(name))
    }

    pub(super) fn get(&self, name: &Name) -> Option<&Arc<Workload>> {
        self.all.get(name)
    }

    /// Every pod, also those that hold no IP.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.all.values()
    }

    pub(super) fn in_namespace(&self, namespace: &Arc<str>) -> impl Iterator<Item = &Arc<Workload>> {
        let from = Name { namespace: namespace.clone(), name: "".into() };
        self.all.range(from..).map(|(_, workload)| workload).take_while(|workload| workload.namespace == *namespace)
    }

    /// The pods of a node.
    pub(super) fn on(&self, node: &str) -> impl Iterator<Item = &Arc<Workload>> {
        self.by_node.get(node).into_iter().flatten().filter_map(|name| self.all.get(name))
    }

    /// The pod of a uid. Two pods of one uid are not a thing of Kubernetes; the choice is repeatable.
    pub(super) fn by_uid(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.all.get(self.by_uid.get(uid)?.last()?)
    }

    /// The pods of a namespace that have all these labels; none for an empty selector, as Kubernetes has it.
    pub(super) fn selected<'a>(
        &'a self,
        namespace: &'a str,
        selector: &'a BTreeMap<String, String>,
    ) -> impl Iterator<Item = &'a Arc<Workload>> {
        let lists = selector.iter().map(|(label, value)| self.having(namespace, label, value));
        let fewest = lists.min_by_key(|names| names.map_or(0, BTreeSet::len)).flatten();
        let candidates = fewest.into_iter().flatten().filter_map(|name| self.all.get(name));
        candidates.filter(move |workload| *workload.namespace == *namespace && selects(selector, workload))
    }

    /// The pods that may have a label: those whose number it is.
    pub(super) fn having(&self, namespace: &str, label: &str, value: &str) -> Option<&BTreeSet<Name>> {
        self.by_label.get(&self.labels.hash(namespace, label, value))
    }

    pub(super) fn labels(&self) -> &Labels {
        &self.labels
    }

    /// The pod that holds an IP.
    pub(super) fn by_ip(&self, ip: &IpAddr) -> Option<&Arc<Workload>> {
        self.by_ip.get(ip)
    }

    pub(super) fn holders(&self) -> &CowMap<IpAddr, Arc<Workload>> {
        &self.by_ip
    }

    /// Whether a pod holds an IP that it claims.
    pub(super) fn holds(&self, workload: &Workload, ip: &IpAddr) -> bool {
        self.by_ip.get(ip).is_some_and(|holder| holder.uid == workload.uid)
    }

    /// Whether a pod holds at least one of the IPs that it claims, or is of the host network.
    pub(super) fn is_there(&self, workload: &Workload) -> bool {
        workload.host_network || workload.ips.iter().any(|ip| self.holds(workload, ip))
    }

    /// The same among the pods of its own node: whoever says elsewhere that he has its address takes nothing from it there.
    pub(super) fn is_on_its_node(&self, workload: &Workload) -> bool {
        let is_first = |ip: &IpAddr| {
            let mut beside =
                self.claimants(ip).filter(|other| other.node == workload.node && other.uid != workload.uid);
            !beside.any(|other| other.beats(workload))
        };
        workload.host_network || workload.ips.iter().any(is_first)
    }
}

/// Whether a pod has all the labels; an empty selector selects nothing.
pub(super) fn selects(selector: &BTreeMap<String, String>, workload: &Workload) -> bool {
    !selector.is_empty() && selector.iter().all(|(label, value)| workload.labels.get(label) == Some(value))
}

/// Whether two are one and the same, not just alike.
pub(super) fn same<T>(one: Option<&Arc<T>>, other: Option<&Arc<T>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    }
}

/// Removes a name from an index, and the place of the last one.
pub(super) fn remove<K: std::hash::Hash + Eq>(index: &mut HashMap<K, BTreeSet<Name>>, key: &K, name: &Name) {
    let Some(names) = index.get_mut(key) else { return };
    names.remove(name);
    if names.is_empty() {
        index.remove(key);
    }
}
