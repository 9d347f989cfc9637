//! The counters of connections, kept per [`ConnectionKey`] in a [`Table`](super::table::Table).

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use super::table::{Counters, Key, Present};
use super::{ConnectionKey, ConnectionResult, Direction, Network};

/// How many lines of a scrape a key takes: opened, open, both ways' bytes, an end of each kind, and how the network was.
pub const LINES_OF_CONNECTIONS: usize = 4 + RESULTS + 3;

/// How many kinds of result there are.
pub(super) const RESULTS: usize = 5;

/// The names of the results, by their place in [`Series::closed`].
pub(super) const RESULT_NAMES: [&str; RESULTS] = ["ok", "denied", "refused", "failed", "cut"];

/// The counters of one key.
#[derive(Debug, Default)]
pub(super) struct Series {
    /// Connections that were opened.
    pub opened: AtomicU64,
    /// Connections that are open now.
    pub open: AtomicI64,
    /// Connections that were closed, by result.
    closed: [AtomicU64; RESULTS],
    /// Application bytes, client to server.
    pub sent: AtomicU64,
    /// Application bytes, server to client.
    pub received: AtomicU64,
    /// Round trip times at the ends of connections that crossed a network, in microseconds, together.
    pub round_trips: AtomicU64,
    /// How many of these.
    pub measured: AtomicU64,
    /// Segments that were sent again.
    pub retransmits: AtomicU64,
}

impl Series {
    /// The counter of connections that ended so.
    pub fn closed(&self, result: &ConnectionResult) -> &AtomicU64 {
        let [ok, denied, refused, failed, cut] = &self.closed;
        match result {
            ConnectionResult::Ok => ok,
            ConnectionResult::Denied { .. } => denied,
            ConnectionResult::Refused { .. } => refused,
            ConnectionResult::Failed { .. } => failed,
            ConnectionResult::Cut { .. } => cut,
        }
    }

    /// Counts how the network was for a connection that has ended.
    pub fn crossed(&self, network: Network) {
        let micros = u64::try_from(network.rtt.as_micros()).unwrap_or(u64::MAX);
        self.round_trips.fetch_add(micros, Ordering::Relaxed);
        self.measured.fetch_add(1, Ordering::Relaxed);
        self.retransmits.fetch_add(network.retransmits.into(), Ordering::Relaxed);
    }

    /// Name and count of every kind of result.
    pub fn closed_by_name(&self) -> impl Iterator<Item = (&'static str, u64)> {
        RESULT_NAMES.into_iter().zip(self.closed.iter().map(|count| count.load(Ordering::Relaxed)))
    }
}

impl Counters for Series {
    fn counted(&self) -> u64 {
        let closed: u64 = self.closed_by_name().map(|(_, count)| count).sum();
        self.opened.load(Ordering::Relaxed).wrapping_add(closed)
    }
}

impl Key for ConnectionKey {
    fn direction(&self) -> Direction {
        self.direction
    }

    fn is_present(&self, present: &Present) -> bool {
        present.has(self.source.as_ref()) && present.has(self.destination.as_ref())
    }
}
