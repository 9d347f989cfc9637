//! What came by a stream and was not taken yet.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use super::limits::COPY_JOIN_BYTES;

const JOIN: usize = COPY_JOIN_BYTES as usize;

/// In order: blocks as they came, then small ones joined. Each would otherwise hold on to the whole read that it came in, and
/// a peer can send a window's worth of single bytes.
#[derive(Default)]
pub(super) struct Received {
    blocks: VecDeque<Bytes>,
    joined: BytesMut,
}

impl Received {
    pub(super) fn push(&mut self, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        if self.blocks.is_empty() && self.joined.is_empty() || bytes.len() >= JOIN {
            self.seal();
            return self.blocks.push_back(bytes);
        }
        if self.joined.capacity() - self.joined.len() < bytes.len() {
            self.seal();
            self.joined = BytesMut::with_capacity(2 * JOIN);
        }
        self.joined.extend_from_slice(&bytes);
    }

    fn seal(&mut self) {
        if !self.joined.is_empty() {
            self.blocks.push_back(std::mem::take(&mut self.joined).freeze());
        }
    }

    pub(super) fn pop(&mut self) -> Option<Bytes> {
        if self.blocks.is_empty() {
            self.seal();
        }
        let front = self.blocks.pop_front();
        if self.blocks.is_empty() && self.blocks.capacity() > 4 {
            // Most connections are idle most of the time.
            self.blocks = VecDeque::new();
        }
        front
    }
}
