//! What an end of a tunnel says and has not written yet: small things one behind the other, large ones as they are.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes};

use super::limits::{GATHER_FIRST_BYTES, READ_SMALL_BYTES};

const FIRST: usize = GATHER_FIRST_BYTES as usize;
/// Up to this, copying is cheaper than a slice of its own.
const SMALL: usize = READ_SMALL_BYTES as usize;

/// In order: blocks, then the tail.
#[derive(Default)]
pub(super) struct Outbox {
    blocks: VecDeque<Bytes>,
    tail: Vec<u8>,
    /// Written of the tail.
    given: usize,
    length: usize,
}

impl Outbox {
    /// Bytes in all of it.
    pub(super) fn len(&self) -> usize {
        self.length
    }

    /// Adds something small.
    pub(super) fn put(&mut self, put: impl FnOnce(&mut Vec<u8>)) {
        let before = self.tail.len();
        if self.tail.capacity() == 0 {
            self.tail.reserve_exact(FIRST);
        }
        put(&mut self.tail);
        self.length = self.length.saturating_add(self.tail.len().saturating_sub(before));
    }

    /// Adds bytes.
    pub(super) fn push(&mut self, bytes: Bytes) {
        if bytes.len() < SMALL {
            return self.put(|tail| tail.extend_from_slice(&bytes));
        }
        self.seal();
        self.length = self.length.saturating_add(bytes.len());
        self.blocks.push_back(bytes);
    }

    fn seal(&mut self) {
        if self.tail.len() > self.given {
            let mut sealed = if self.tail.len() <= FIRST / 2 {
                // So that the tail keeps its memory.
                let sealed = Bytes::copy_from_slice(&self.tail);
                self.tail.clear();
                sealed
            } else {
                Bytes::from(std::mem::take(&mut self.tail))
            };
            sealed.advance(self.given);
            self.blocks.push_back(sealed);
        } else {
            self.tail.clear();
        }
        self.given = 0;
    }

    /// The first of it, as many as there is room for.
    pub(super) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let tail = self.tail.get(self.given..).unwrap_or_default();
        let all = self.blocks.iter().map(|block| &block[..]).chain([tail]).filter(|block| !block.is_empty());
        let mut filled = 0;
        for (slice, block) in slices.iter_mut().zip(all) {
            *slice = IoSlice::new(block);
            filled += 1;
        }
        filled
    }

    /// So much of it was written.
    pub(super) fn advance(&mut self, mut written: usize) {
        self.length = self.length.saturating_sub(written);
        while let Some(front) = self.blocks.front_mut() {
            if written < front.len() {
                return front.advance(written);
            }
            written = written.saturating_sub(front.len());
            self.blocks.pop_front();
        }
        self.given = self.given.saturating_add(written);
        if self.length == 0 {
            self.given = 0;
            self.tail.clear();
            if self.tail.capacity() > FIRST {
                // What a burst needed is not kept.
                self.tail = Vec::new();
            }
            self.blocks.shrink_to(4);
        }
    }
}
