//! A hash map whose copies share what they have in common: a snapshot costs one reference count, and a change after it
//! copies one shard.
//!
//! The persistent maps of the registry (imbl, rpds) are under a licence that `deny.toml` does not allow. This one reads
//! like the standard library's, which a connection does a few times, and writes more slowly, which one thread does.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;

/// Into how many parts a map is cut. With 10 000 entries a part has 40, whose copy takes about a microsecond.
const SHARDS: usize = 256;

/// See the module.
pub(super) struct CowMap<K, V> {
    shards: Arc<Vec<Arc<HashMap<K, V>>>>,
    hasher: RandomState,
}

impl<K, V> Default for CowMap<K, V> {
    fn default() -> Self {
        Self { shards: Arc::new(vec![Arc::default(); SHARDS]), hasher: RandomState::new() }
    }
}

impl<K, V> Clone for CowMap<K, V> {
    fn clone(&self) -> Self {
        Self { shards: self.shards.clone(), hasher: self.hasher.clone() }
    }
}

impl<K: Hash + Eq + Clone, V: Clone> CowMap<K, V> {
    pub(super) fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.shards.get(self.shard_of(key))?.get(key)
    }

    pub(super) fn contains<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.get(key).is_some()
    }

    /// Sets or, with None, removes.
    pub(super) fn set(&mut self, key: &K, value: Option<V>) {
        // Nothing is copied for the removal of what is not there.
        if value.is_none() && !self.contains(key) {
            return;
        }
        let index = self.shard_of(key);
        let Some(shard) = Arc::make_mut(&mut self.shards).get_mut(index).map(Arc::make_mut) else { return };
        match value {
            Some(value) => drop(shard.insert(key.clone(), value)),
            None => drop(shard.remove(key)),
        }
    }

    /// In no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.shards.iter().flat_map(|shard| shard.iter())
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.shards.iter().all(|shard| shard.is_empty())
    }

    fn shard_of<Q: Hash + ?Sized>(&self, key: &Q) -> usize {
        (self.hasher.hash_one(key) % SHARDS as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// It is a map, and a copy keeps what it had.
        #[test]
        fn copies_are_independent(before in changes(), after in changes()) {
            let (mut map, mut model) = (CowMap::default(), BTreeMap::new());
            write(&mut map, &mut model, &before);
            let (copy, then) = (map.clone(), model.clone());
            write(&mut map, &mut model, &after);
            prop_assert_eq!(content(&copy), then);
            prop_assert_eq!(map.is_empty(), model.is_empty());
            prop_assert!(model.iter().all(|(key, value)| map.get(key) == Some(value)));
            prop_assert_eq!(content(&map), model);
        }
    }

    type Changes = Vec<(u16, Option<u8>)>;

    fn changes() -> impl Strategy<Value = Changes> {
        prop::collection::vec((0..700u16, any::<Option<u8>>()), 0..1000)
    }

    fn write(map: &mut CowMap<u16, u8>, model: &mut BTreeMap<u16, u8>, changes: &Changes) {
        for (key, value) in changes {
            map.set(key, *value);
            match value {
                Some(value) => drop(model.insert(*key, *value)),
                None => drop(model.remove(key)),
            }
        }
    }

    fn content(map: &CowMap<u16, u8>) -> BTreeMap<u16, u8> {
        map.iter().map(|(key, value)| (*key, *value)).collect()
    }
}
