//! Circuit breaking: how much may be under way to an endpoint and to a Service, from this node.
//!
//! The counts are atomics that all workers share: a limit of 100 requests would otherwise be 100 for each worker, and a
//! limit of one could not be kept at all. They are touched only where a policy sets a limit. The map that hands the counts
//! out is locked when a worker hears of a new endpoint, never for a request.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::policy::PoolLimits;

/// What is under way to one endpoint, or to a Service as a whole.
#[derive(Debug, Default)]
pub struct Pool {
    connections: AtomicU32,
    pending: AtomicU32,
    requests: AtomicU32,
    retries: AtomicU32,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// Connections to an endpoint.
    Connections,
    /// Requests that wait for a connection.
    Pending,
    /// Requests from their head to the end of their response.
    Requests,
    /// Those of them that are retries.
    Retries,
}

/// One of what is counted; dropping it gives it back.
#[derive(Debug)]
#[must_use]
pub struct Permit {
    /// None: there is no limit, so nobody counts.
    held: Option<(Arc<Pool>, Counted)>,
}

/// A limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overflow(pub Counted);

impl Pool {
    /// Takes one, if the limits allow one more.
    pub fn take(self: &Arc<Self>, counted: Counted, limits: &PoolLimits) -> Result<Permit, Overflow> {
        let Some(limit) = limit(counted, limits) else { return Ok(Permit { held: None }) };
        let more = |under_way: u32| under_way.checked_add(1).filter(|more| *more <= limit);
        // No other memory hangs on the counts, so no order is asked for.
        match self.count(counted).fetch_update(Ordering::Relaxed, Ordering::Relaxed, more) {
            Ok(_) => Ok(Permit { held: Some((self.clone(), counted)) }),
            Err(_) => Err(Overflow(counted)),
        }
    }

    /// How many are under way, of those that a limit counted.
    pub fn under_way(&self, counted: Counted) -> u32 {
        self.count(counted).load(Ordering::Relaxed)
    }

    fn count(&self, counted: Counted) -> &AtomicU32 {
        match counted {
            Counted::Connections => &self.connections,
            Counted::Pending => &self.pending,
            Counted::Requests => &self.requests,
            Counted::Retries => &self.retries,
        }
    }
}

fn limit(counted: Counted, limits: &PoolLimits) -> Option<u32> {
    match counted {
        Counted::Connections => limits.connections,
        Counted::Pending => limits.pending,
        Counted::Requests => limits.requests,
        Counted::Retries => limits.retries,
    }
}

impl Permit {
    /// Whether it counts: there is a limit.
    pub fn is_held(&self) -> bool {
        self.held.is_some()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some((pool, counted)) = self.held.take() {
            pool.count(counted).fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Whose counts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PoolKey {
    /// `namespace/name` of the Service.
    pub service: Arc<str>,
    /// Its port.
    pub port: u16,
    /// One of its endpoints, or the Service as a whole.
    pub endpoint: Option<SocketAddr>,
}

/// The counts of the node; every worker holds the same ones.
#[derive(Clone, Debug, Default)]
pub struct Pools {
    /// Those that somebody holds; what nobody holds any more goes when the map has doubled.
    pools: Arc<Mutex<Held>>,
}

#[derive(Debug, Default)]
struct Held {
    pools: HashMap<PoolKey, Weak<Pool>>,
    sweep_at: usize,
}

impl Pools {
    /// The counts of a key.
    pub fn of(&self, key: PoolKey) -> Arc<Pool> {
        // Nothing that can panic is done under the lock, and a count that survived would be right all the same.
        let mut held = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = held.pools.get(&key).and_then(Weak::upgrade) {
            return pool;
        }
        if held.pools.len() >= held.sweep_at {
            held.pools.retain(|_, pool| pool.strong_count() > 0);
            held.sweep_at = held.pools.len().saturating_mul(2).max(64);
        }
        let pool = Arc::new(Pool::default());
        held.pools.insert(key, Arc::downgrade(&pool));
        pool
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_holds_whoever_counts() {
        let limits = PoolLimits { requests: Some(2), ..PoolLimits::default() };
        let pools = Pools::default();
        let key = PoolKey { service: "shop/web".into(), port: 80, endpoint: None };
        let (one, same) = (pools.of(key.clone()), pools.clone().of(key));
        let first = one.take(Counted::Requests, &limits).unwrap();
        let _second = same.take(Counted::Requests, &limits).unwrap();
        assert_eq!(one.take(Counted::Requests, &limits).unwrap_err(), Overflow(Counted::Requests));
        assert!(one.take(Counted::Retries, &limits).is_ok(), "no limit on retries");
        drop(first);
        assert_eq!(one.under_way(Counted::Requests), 1);
        assert!(same.take(Counted::Requests, &limits).is_ok());
    }

    #[test]
    fn what_nobody_limits_nobody_counts() {
        let pool = Arc::new(Pool::default());
        let _permit = pool.take(Counted::Connections, &PoolLimits::default()).unwrap();
        assert_eq!(pool.under_way(Counted::Connections), 0);
        let none = PoolLimits { connections: Some(0), ..PoolLimits::default() };
        assert!(pool.take(Counted::Connections, &none).is_err());
    }

    #[test]
    fn threads_never_pass_a_limit_and_give_everything_back() {
        let pool = Arc::new(Pool::default());
        let limits = PoolLimits { requests: Some(3), ..PoolLimits::default() };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..2000 {
                        let _permit = pool.take(Counted::Requests, &limits);
                        assert!(pool.under_way(Counted::Requests) <= 3);
                    }
                });
            }
        });
        assert_eq!(pool.under_way(Counted::Requests), 0);
    }

    #[test]
    fn counts_of_endpoints_that_are_gone_go() {
        let pools = Pools::default();
        for port in 1..2000 {
            let endpoint = Some(SocketAddr::from(([10, 0, 0, 1], port)));
            let _dropped = pools.of(PoolKey { service: "shop/web".into(), port: 80, endpoint });
        }
        assert!(pools.pools.lock().unwrap().pools.len() <= 64);
    }
}
