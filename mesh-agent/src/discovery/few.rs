//! A map that mostly has one entry: a watched object is spoken of by itself, and there are ten thousands of them. The
//! standard map would make room for four at once, beside which the objects themselves are small.

use std::collections::HashMap;
use std::hash::Hash;

/// See the module.
#[derive(Clone, Debug)]
pub(super) enum Few<K, V> {
    /// At most one entry.
    One(Option<(K, V)>),
    /// Any number of them.
    Many(HashMap<K, V>),
}

impl<K, V> Default for Few<K, V> {
    fn default() -> Self {
        Self::One(None)
    }
}

impl<K: Hash + Eq, V> Few<K, V> {
    pub(super) fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    pub(super) fn get(&self, key: &K) -> Option<&V> {
        match self {
            Few::One(Some((one, value))) if one == key => Some(value),
            Few::One(_) => None,
            Few::Many(map) => map.get(key),
        }
    }

    pub(super) fn contains_key(&self, key: &K) -> bool {
        self.get(key).is_some()
    }

    /// Sets an entry; what was there.
    pub(super) fn insert(&mut self, key: K, value: V) -> Option<V> {
        match self {
            Few::Many(map) => map.insert(key, value),
            Few::One(entry) => match entry.take() {
                None => {
                    *entry = Some((key, value));
                    None
                }
                Some((one, before)) if one == key => {
                    *entry = Some((one, value));
                    Some(before)
                }
                Some(one) => {
                    *self = Few::Many(HashMap::from([one, (key, value)]));
                    None
                }
            },
        }
    }

    /// Sets an entry where there is none.
    pub(super) fn or_insert(&mut self, key: K, value: V) {
        if !self.contains_key(&key) {
            self.insert(key, value);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        let (one, many) = match self {
            Few::One(one) => (one.as_ref(), None),
            Few::Many(many) => (None, Some(many)),
        };
        one.map(|(key, value)| (key, value)).into_iter().chain(many.into_iter().flatten())
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }
}

impl<K: Hash + Eq, V> Extend<(K, V)> for Few<K, V> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, entries: I) {
        entries.into_iter().for_each(|(key, value)| drop(self.insert(key, value)));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// As the standard map, whatever is done to it.
        #[test]
        fn it_is_a_map(steps in prop::collection::vec((0u8..4, any::<u8>(), any::<bool>()), 0..12)) {
            let (mut few, mut map) = (Few::default(), HashMap::new());
            for (key, value, replaces) in steps {
                if replaces {
                    prop_assert_eq!(few.insert(key, value), map.insert(key, value));
                } else {
                    few.or_insert(key, value);
                    map.entry(key).or_insert(value);
                }
                prop_assert_eq!(few.iter().collect::<HashMap<_, _>>(), map.iter().collect::<HashMap<_, _>>());
                prop_assert_eq!(few.keys().count(), map.len());
                prop_assert_eq!(few.is_empty(), map.is_empty());
                for key in 0..4 {
                    prop_assert_eq!(few.get(&key), map.get(&key));
                    prop_assert_eq!(few.contains_key(&key), map.contains_key(&key));
                }
            }
        }
    }
}
