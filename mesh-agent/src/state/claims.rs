//! Who claims what: every key with those who claim it, and everyone with what it claims.

use std::collections::HashMap;
use std::hash::Hash;

/// Keys that several owners may claim at once, each with a value of its own.
pub(super) struct Claims<K, O, V> {
    /// In the order of owners. There is mostly one, for whom a tree would make room for eleven.
    by_key: HashMap<K, Vec<(O, V)>>,
    by_owner: HashMap<O, Vec<K>>,
}

impl<K, O, V> Default for Claims<K, O, V> {
    fn default() -> Self {
        Self { by_key: HashMap::new(), by_owner: HashMap::new() }
    }
}

impl<K: Hash + Eq + Clone, O: Hash + Ord + Clone, V: PartialEq> Claims<K, O, V> {
    /// Replaces all that an owner claims; of two claims to one key the first counts. Returns the keys that somebody
    /// else may have now, or with another value.
    pub(super) fn replace(&mut self, owner: &O, claims: impl IntoIterator<Item = (K, V)>) -> Vec<K> {
        let mut wanted = HashMap::new();
        for (key, value) in claims {
            wanted.entry(key).or_insert(value);
        }
        let mut changed = Vec::new();
        for key in self.by_owner.remove(owner).unwrap_or_default() {
            if !wanted.contains_key(&key) {
                self.release(&key, owner);
                changed.push(key);
            }
        }
        if !wanted.is_empty() {
            self.by_owner.insert(owner.clone(), wanted.keys().cloned().collect());
        }
        for (key, value) in wanted {
            let Some(claimants) = self.by_key.get_mut(&key) else {
                self.by_key.insert(key.clone(), vec![(owner.clone(), value)]);
                changed.push(key);
                continue;
            };
            match claimants.binary_search_by(|(other, _)| other.cmp(owner)) {
                Ok(place) => match claimants.get_mut(place) {
                    Some((_, known)) if *known != value => {
                        *known = value;
                        changed.push(key);
                    }
                    Some(_) | None => {}
                },
                Err(place) => {
                    claimants.insert(place, (owner.clone(), value));
                    changed.push(key);
                }
            }
        }
        changed
    }

    fn release(&mut self, key: &K, owner: &O) {
        let Some(claimants) = self.by_key.get_mut(key) else { return };
        claimants.retain(|(other, _)| other != owner);
        if claimants.is_empty() {
            self.by_key.remove(key);
        }
    }

    /// Who claims a key, in their order.
    pub(super) fn claimants(&self, key: &K) -> impl Iterator<Item = (&O, &V)> {
        self.by_key.get(key).into_iter().flatten().map(|(owner, value)| (owner, value))
    }

    /// The first of them.
    pub(super) fn first(&self, key: &K) -> Option<(&O, &V)> {
        self.by_key.get(key)?.first().map(|(owner, value)| (owner, value))
    }

    pub(super) fn is_claimed(&self, key: &K) -> bool {
        self.by_key.contains_key(key)
    }

    /// What an owner claims.
    pub(super) fn of(&self, owner: &O) -> &[K] {
        self.by_owner.get(owner).map(Vec::as_slice).unwrap_or_default()
    }
}
