//! Spaces the tries to reach a peer that could not be reached.
//!
//! ```text
//! no failure ──► the next try at once ──► again after a random part of 50 ms, 100 ms, … up to the most
//! ```
//! Full jitter: callers of many nodes that lost one peer at one moment do not come back at one moment. A caller in
//! between does not wait: it takes another endpoint, or fails at once.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::client::OpenError;
use super::limits;
use super::pool::TunnelKey;

/// What a caller may do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Nothing is known against the peer.
    Free,
    /// It could not be reached lately; it is time to try again.
    Retry,
    /// It is not, and this is why it could not be reached.
    Wait(String),
}

/// Peers that could not be reached lately.
#[derive(Default)]
pub(super) struct Backoffs {
    by_key: HashMap<TunnelKey, Backoff>,
}

struct Backoff {
    /// In a row.
    failures: u32,
    last: Instant,
    not_before: Instant,
    reason: String,
}

impl Backoff {
    fn is_forgotten(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last) >= Duration::from_millis(limits::BACKOFF_MEMORY_MS)
    }
}

impl Backoffs {
    pub(super) fn turn(&self, key: &TunnelKey, now: Instant) -> Turn {
        match self.by_key.get(key) {
            Some(backoff) if backoff.is_forgotten(now) => Turn::Free,
            Some(backoff) if now < backoff.not_before => Turn::Wait(backoff.reason.clone()),
            Some(_) => Turn::Retry,
            None => Turn::Free,
        }
    }

    /// `random` is from 0 to 1.
    pub(super) fn failed(&mut self, key: &TunnelKey, error: &OpenError, now: Instant, random: f32) {
        if self.by_key.len() as u64 >= limits::MAX_BACKOFFS && !self.by_key.contains_key(key) {
            self.by_key.retain(|_, backoff| !backoff.is_forgotten(now));
            if self.by_key.len() as u64 >= limits::MAX_BACKOFFS {
                // Tried as if it had never failed: no harm but the cost of trying.
                return;
            }
        }
        let earlier = self.by_key.get(key).filter(|backoff| !backoff.is_forgotten(now));
        let failures = earlier.map_or(0, |backoff| backoff.failures).saturating_add(1);
        let not_before = now + most(failures, error).mul_f32(random.clamp(0.0, 1.0));
        self.by_key.insert(key.clone(), Backoff { failures, last: now, not_before, reason: error.to_string() });
    }

    pub(super) fn reached(&mut self, key: &TunnelKey) {
        self.by_key.remove(key);
    }

    pub(super) fn drop_source(&mut self, uid: &str) {
        self.by_key.retain(|key, _| *key.source_uid != *uid);
    }
}

/// The longest wait after so many failures in a row.
fn most(failures: u32, error: &OpenError) -> Duration {
    let most = if error.is_closed_port() { limits::BACKOFF_CLOSED_MS } else { limits::BACKOFF_MOST_MS };
    let doubled = failures.checked_sub(2).map_or(0, |times| limits::BACKOFF_FIRST_MS << times.min(16));
    Duration::from_millis(doubled.min(most))
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::net::{IpAddr, Ipv4Addr};

    use super::super::client::Timeout;
    use super::*;
    use crate::spiffe::SpiffeId;

    fn key(number: u32) -> TunnelKey {
        TunnelKey {
            source_uid: "pod".into(),
            destination: SpiffeId::new("cluster.local", "shop", "web").unwrap(),
            address: IpAddr::V4(Ipv4Addr::from_bits(number)),
        }
    }

    fn closed() -> OpenError {
        OpenError::Connect { kind: io::ErrorKind::ConnectionRefused, message: "refused".into() }
    }

    #[test]
    fn the_first_retry_is_at_once_and_later_ones_are_spaced_up_to_the_most() {
        let lost = OpenError::TimedOut(Timeout::Connect);
        for (failures, silent, refused) in
            [(1, 0, 0), (2, 50, 50), (3, 100, 100), (4, 200, 200), (5, 400, 200), (6, 800, 200), (7, 1000, 200)]
        {
            assert_eq!(most(failures, &lost), Duration::from_millis(silent), "{failures} silent");
            assert_eq!(most(failures, &closed()), Duration::from_millis(refused), "{failures} refused");
        }
        assert_eq!(most(u32::MAX, &lost), Duration::from_secs(1));
    }

    #[tokio::test]
    async fn whose_turn_it_is() {
        let (mut backoffs, now) = (Backoffs::default(), Instant::now());
        let after = |millis| now + Duration::from_millis(millis);
        assert_eq!(backoffs.turn(&key(1), now), Turn::Free);
        backoffs.failed(&key(1), &closed(), now, 1.0);
        assert_eq!(backoffs.turn(&key(1), now), Turn::Retry);
        backoffs.failed(&key(1), &closed(), now, 0.5);
        assert!(matches!(backoffs.turn(&key(1), after(24)), Turn::Wait(_)));
        assert_eq!(backoffs.turn(&key(1), after(25)), Turn::Retry);
        assert_eq!(backoffs.turn(&key(2), now), Turn::Free);
        assert_eq!(backoffs.turn(&key(1), after(limits::BACKOFF_MEMORY_MS)), Turn::Free);
        backoffs.reached(&key(1));
        assert_eq!(backoffs.turn(&key(1), now), Turn::Free);
    }

    #[tokio::test]
    async fn what_is_remembered_is_bounded_and_expires() {
        let (mut backoffs, now) = (Backoffs::default(), Instant::now());
        let most = u32::try_from(limits::MAX_BACKOFFS).unwrap();
        (0..most + 10).for_each(|number| backoffs.failed(&key(number), &closed(), now, 1.0));
        assert_eq!(backoffs.by_key.len() as u64, limits::MAX_BACKOFFS);
        backoffs.failed(&key(0), &closed(), now, 1.0);
        assert_eq!(backoffs.by_key[&key(0)].failures, 2, "one that is known is still counted");
        let later = now + Duration::from_millis(limits::BACKOFF_MEMORY_MS);
        backoffs.failed(&key(most), &closed(), later, 1.0);
        assert_eq!(backoffs.by_key.len(), 1);
        backoffs.drop_source("pod");
        assert!(backoffs.by_key.is_empty());
    }
}
