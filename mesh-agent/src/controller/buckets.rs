//! How often each of many may ask: a bucket of tokens for each, filled again as time goes by. The time is handed in.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Most of them that are remembered. Whoever is not has a full bucket; when all are in use, newcomers have none.
pub(super) const MAX_BUCKETS: usize = 16_384;

/// A rate for each key.
pub struct Buckets<K> {
    burst: f64,
    per_second: f64,
    table: Mutex<HashMap<K, Bucket>>,
}

struct Bucket {
    left: f64,
    at: Instant,
}

impl<K: Eq + Hash> Buckets<K> {
    /// `burst` at once, then `per_second`.
    pub fn new(burst: u32, per_second: u32) -> Self {
        Self { burst: burst.into(), per_second: per_second.into(), table: Mutex::default() }
    }

    /// Takes a token, if there is one.
    pub fn take(&self, key: K, now: Instant) -> bool {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if table.len() >= MAX_BUCKETS && !table.contains_key(&key) {
            let full = Duration::from_secs_f64(self.burst / self.per_second.max(f64::MIN_POSITIVE));
            table.retain(|_, bucket| now.saturating_duration_since(bucket.at) < full);
            if table.len() >= MAX_BUCKETS {
                return false;
            }
        }
        let bucket = table.entry(key).or_insert(Bucket { left: self.burst, at: now });
        let since = now.saturating_duration_since(bucket.at).as_secs_f64();
        bucket.left = (bucket.left + since * self.per_second).min(self.burst);
        bucket.at = now;
        let has_one = bucket.left >= 1.0;
        if has_one {
            bucket.left -= 1.0;
        }
        has_one
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_a_rate_for_each_alone() {
        let buckets = Buckets::new(3, 2);
        let start = Instant::now();
        let taken = |key: &'static str, after: u64| buckets.take(key, start + Duration::from_millis(after));
        assert_eq!([0; 4].map(|after| taken("a", after)), [true, true, true, false]);
        assert!(taken("b", 0), "one pays for the other");
        assert_eq!([499, 500, 501].map(|after| taken("a", after)), [false, true, false]);
        let later = Duration::from_secs(3600).as_millis() as u64;
        assert_eq!(
            [later; 4].map(|after| taken("a", after)),
            [true, true, true, false],
            "more than the burst is saved"
        );
    }

    #[test]
    fn the_table_is_bounded() {
        let buckets = Buckets::new(2, 1);
        let start = Instant::now();
        assert!((0..MAX_BUCKETS).all(|key| buckets.take(key, start)));
        assert!(!buckets.take(MAX_BUCKETS, start), "a flood of keys has no end");
        assert!(buckets.take(0, start), "one that is known is forgotten");
        assert!(buckets.take(MAX_BUCKETS, start + Duration::from_secs(2)), "those that are full again are kept");
        assert_eq!(buckets.table.lock().unwrap().len(), 1);
    }
}
