//! Tokens that were found to be signed, so that the next request that brings one costs no signature.
//!
//! What is remembered is that certain keys vouch for a certain text. Everything else, above all its time and its audience,
//! is looked at anew for each request; so a token ends when it ends, and a rule that changed holds at once. Keys that
//! changed are other keys, and vouch for nothing yet. Tokens themselves are not kept, their hashes are.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::Arc;

use aws_lc_rs::digest;

use super::limits::{MAX_REMEMBERED_BYTES, MAX_REMEMBERED_TOKENS};
use super::{Keys, Token};

/// What tells tokens apart: SHA-256.
type Hash = [u8; digest::SHA256_OUTPUT_LEN];

/// The tokens that one worker remembers.
#[derive(Default)]
pub struct Verified {
    /// Those that were asked for lately, and those that were before: when the first are half of what is kept, they become
    /// the second, and the second go.
    young: RefCell<HashMap<Hash, Entry>>,
    old: RefCell<HashMap<Hash, Entry>>,
    hits: Cell<u64>,
}

#[derive(Clone)]
struct Entry {
    keys: Keys,
    token: Arc<Token>,
}

impl Verified {
    /// None for a text that is too long to be remembered.
    pub(super) fn hash(text: &str) -> Option<Hash> {
        if text.len() > MAX_REMEMBERED_BYTES {
            return None;
        }
        digest::digest(&digest::SHA256, text.as_bytes()).as_ref().try_into().ok()
    }

    /// What a text says for which keys vouch that `is_in_force` knows.
    pub(super) fn get(&self, hash: &Hash, is_in_force: impl FnOnce(&Token, &Keys) -> bool) -> Option<Arc<Token>> {
        if let Some(entry) = self.young.borrow().get(hash) {
            return self.checked(entry, is_in_force);
        }
        let entry = self.old.borrow_mut().remove(hash)?;
        let found = self.checked(&entry, is_in_force);
        if found.is_some() {
            self.put(*hash, entry);
        }
        found
    }

    fn checked(&self, entry: &Entry, is_in_force: impl FnOnce(&Token, &Keys) -> bool) -> Option<Arc<Token>> {
        let found = is_in_force(&entry.token, &entry.keys).then(|| entry.token.clone());
        self.hits.set(self.hits.get().saturating_add(u64::from(found.is_some())));
        found
    }

    /// Remembers that these keys vouch for a text.
    pub(super) fn remember(&self, hash: Hash, keys: &Keys, token: &Arc<Token>) {
        self.put(hash, Entry { keys: keys.clone(), token: token.clone() });
    }

    fn put(&self, hash: Hash, entry: Entry) {
        let mut young = self.young.borrow_mut();
        young.insert(hash, entry);
        if young.len() >= MAX_REMEMBERED_TOKENS / 2 {
            self.old.replace(std::mem::take(&mut young));
        }
    }

    /// How many signatures were saved.
    pub fn hits(&self) -> u64 {
        self.hits.get()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.young.borrow().len() + self.old.borrow().len()
    }
}
