//! A pinned map with the types of its ABI. Lock-free: every access is one bpf(2) call.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use aya::Pod;

use crate::sys;

/// A hash map of the kernel programs.
pub(super) struct Table<K, V> {
    map: OwnedFd,
    types: PhantomData<fn(K) -> V>,
}

const ONLY_IF_ABSENT: u64 = 1;

impl<K: Pod, V: Pod> Table<K, V> {
    /// Opens the map `name` below the pins' map directory.
    pub fn open(maps: &Path, name: &str) -> io::Result<Self> {
        Ok(Self { map: sys::bpf_open(&maps.join(name))?, types: PhantomData })
    }

    /// Opens the map `name`, which no kernel program uses, or makes and pins it.
    pub fn open_or_make(maps: &Path, name: &str, entries: u32) -> io::Result<Self> {
        if let Ok(table) = Self::open(maps, name) {
            return Ok(table);
        }
        let map = sys::map_create::<K, V>(entries)?;
        sys::bpf_pin(map.as_fd(), &maps.join(name))?;
        Ok(Self { map, types: PhantomData })
    }

    /// The value of `key`.
    pub fn get(&self, key: &K) -> Option<V> {
        let mut value = [sys::zeroed::<V>()];
        sys::map_lookup(self.map.as_fd(), key, &mut value).ok()?;
        let [value] = value;
        Some(value)
    }

    /// Sets or replaces.
    pub fn set(&self, key: &K, value: &V) -> io::Result<()> {
        sys::map_update(self.map.as_fd(), key, value, 0)
    }

    /// Sets where there is none; AlreadyExists else.
    pub fn insert(&self, key: &K, value: &V) -> io::Result<()> {
        sys::map_update(self.map.as_fd(), key, value, ONLY_IF_ABSENT)
    }

    /// Removes, if it is there.
    pub fn remove(&self, key: &K) {
        let _ = sys::map_delete(self.map.as_fd(), key);
    }

    /// Removes, and says what it was; none where there was none.
    pub fn take(&self, key: &K) -> Option<V> {
        let mut value = sys::zeroed::<V>();
        sys::map_take(self.map.as_fd(), key, &mut value).ok()?;
        Some(value)
    }

    /// Every key at some time during the walk. A map that changes under the walk may restart it: the walk is bounded.
    pub fn keys(&self, limit: usize) -> Vec<K> {
        let mut keys = Vec::new();
        let mut last = None;
        while let Ok(key) = sys::map_next_key(self.map.as_fd(), last.as_ref()) {
            keys.push(key);
            last = Some(key);
            if keys.len() >= limit {
                break;
            }
        }
        keys
    }
}
