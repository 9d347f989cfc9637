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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_said_leaves_in_order(
            said in proptest::collection::vec((any::<bool>(), 0usize..3 * SMALL, 0usize..4 * SMALL), 0..40),
        ) {
            let (mut out, mut expected, mut left) = (Outbox::default(), Vec::new(), Vec::new());
            for (number, (is_small, length, written)) in said.into_iter().enumerate() {
                let bytes = vec![number as u8; length];
                expected.extend_from_slice(&bytes);
                if is_small { out.put(|tail| tail.extend_from_slice(&bytes)) } else { out.push(bytes.into()) }
                write(&mut out, written, &mut left);
                prop_assert_eq!(out.len(), expected.len() - left.len());
            }
            while out.len() > 0 {
                write(&mut out, usize::MAX, &mut left);
            }
            prop_assert!(left == expected);
            prop_assert!(out.tail.capacity() <= FIRST, "an idle tunnel holds what a burst needed");
        }
    }

    /// As a socket that takes so much.
    fn write(out: &mut Outbox, most: usize, left: &mut Vec<u8>) {
        let before = left.len();
        let mut slices = [IoSlice::new(&[]); 3];
        let filled = out.slices(&mut slices);
        for slice in &slices[..filled] {
            let room = most - (left.len() - before);
            left.extend_from_slice(&slice[..slice.len().min(room)]);
        }
        out.advance(left.len() - before);
    }
}
