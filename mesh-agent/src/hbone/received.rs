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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_in_order_and_small_ones_joined() {
        let mut received = Received::default();
        let mut expected = Vec::new();
        for round in 0..3u8 {
            for length in [1, 2, JOIN - 1, JOIN, 5, 3 * JOIN, 1, 1, 0] {
                let bytes = vec![round.wrapping_mul(77).wrapping_add(length as u8); length];
                expected.extend_from_slice(&bytes);
                received.push(bytes.into());
            }
        }
        let came: Vec<u8> = std::iter::from_fn(|| received.pop()).flatten().collect();
        assert!(came == expected);
        (0..1 << 20).for_each(|_| received.push(Bytes::from_static(b"x")));
        assert!(received.blocks.len() <= 2 + (1 << 20) / (2 * JOIN), "{} blocks", received.blocks.len());
    }
}
