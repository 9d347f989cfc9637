//! What a connection may read in one wake-up before it lets the others of its worker go ahead.

use std::time::{Duration, Instant};

use super::limits::{COPY_ROUND_BYTES, READ_ROUND_MS};

const ROUND: usize = COPY_ROUND_BYTES as usize;
const ROUND_TIME: Duration = Duration::from_millis(READ_ROUND_MS);

/// The share of one wake-up, from when it is first asked for.
pub struct Round {
    left: usize,
    began: Option<Instant>,
}

impl Default for Round {
    fn default() -> Self {
        Self { left: ROUND, began: None }
    }
}

impl Round {
    /// Whether the others go ahead: what was read has been much, or dear. A frame of a few bytes can ask for work on every
    /// stream that there is.
    pub fn is_over(&mut self) -> bool {
        if self.left == 0 {
            return true;
        }
        self.began.get_or_insert_with(Instant::now).elapsed() >= ROUND_TIME
    }

    /// So much was read.
    pub fn took(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(bytes);
    }
}
