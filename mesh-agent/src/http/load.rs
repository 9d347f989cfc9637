//! How busy a worker is and how much memory the agent has taken: what load shedding goes by.
//!
//! A request waits for its worker as long as the worker's other work takes. That is measured by stepping back behind all
//! that is ready to run, now and then and not for each request, and in processor time: where the node gives the agent no
//! time, refusing requests would not bring it back.

use std::cell::{Cell, RefCell};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fastrand::Rng;

use super::limits::{MEMORY_SAMPLE, QUEUE_SAMPLE};
use crate::resilience::Shedder;
use crate::resilience::shed::{Memory, Shed};
use crate::sys;

/// How busy one worker is.
pub(super) struct Load {
    shedder: RefCell<Shedder>,
    /// How long the last measurement had to wait, and when it began.
    queued: Cell<Duration>,
    measured: Cell<Option<Instant>>,
    memory: MemoryGauge,
}

impl Load {
    pub(super) fn new(memory: MemoryGauge) -> Self {
        Self { shedder: RefCell::default(), queued: Cell::default(), measured: Cell::default(), memory }
    }

    /// Whether one more request is served.
    pub(super) async fn admit(&self, chance: &RefCell<Rng>) -> Result<(), Shed> {
        let now = Instant::now();
        if self.measured.get().is_none_or(|last| now.saturating_duration_since(last) >= QUEUE_SAMPLE) {
            self.measured.set(Some(now));
            let before = sys::thread_time();
            tokio::task::yield_now().await;
            self.queued.set(sys::thread_time().saturating_sub(before));
        }
        self.shedder.borrow_mut().admit(self.queued.get(), self.memory.read(now), now, &mut chance.borrow_mut())
    }
}

/// How much memory the process has taken, of how much. Clones are the same.
#[derive(Clone)]
pub struct MemoryGauge {
    inner: Arc<Gauge>,
}

struct Gauge {
    /// In bytes; 0: not known.
    budget: u64,
    used: AtomicU64,
    start: Instant,
    /// When it was read last, in milliseconds since the start, plus one.
    read: AtomicU64,
}

impl MemoryGauge {
    /// Of so many bytes; None: nobody knows a limit, so none is kept.
    pub fn new(budget: Option<u64>) -> Self {
        let (used, read) = (AtomicU64::new(0), AtomicU64::new(0));
        let gauge = Gauge { budget: budget.unwrap_or(0), used, start: Instant::now(), read };
        Self { inner: Arc::new(gauge) }
    }

    /// What is taken now, or was a moment ago.
    fn read(&self, now: Instant) -> Memory {
        let Gauge { budget, used, start, read } = &*self.inner;
        if *budget > 0 {
            let since = now.saturating_duration_since(*start).as_millis();
            let now = u64::try_from(since).unwrap_or(u64::MAX).saturating_add(1);
            let last = read.load(Ordering::Relaxed);
            let sample = u64::try_from(MEMORY_SAMPLE.as_millis()).unwrap_or(u64::MAX);
            let is_due = last == 0 || now.saturating_sub(last) >= sample;
            // One worker reads for all.
            if is_due && read.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                used.store(resident().unwrap_or(0), Ordering::Relaxed);
            }
        }
        Memory { used: used.load(Ordering::Relaxed), budget: *budget }
    }
}

impl Default for MemoryGauge {
    fn default() -> Self {
        Self::new(None)
    }
}

/// What this process has in memory, in bytes (proc(5), VmRSS).
fn resident() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn burn(length: Duration) {
        let start = sys::thread_time();
        while sys::thread_time().saturating_sub(start) < length {}
    }

    /// A worker whose other work takes longer than anybody should wait refuses, and takes requests again when it is done.
    #[test]
    fn a_worker_that_is_too_busy_refuses_until_it_is_not() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let (load, chance) = (Load::new(MemoryGauge::default()), RefCell::new(Rng::with_seed(1)));
            assert_eq!(load.admit(&chance).await, Ok(()));
            let other = tokio::task::spawn_local(async {
                for _ in 0..20 {
                    burn(Duration::from_millis(80));
                    tokio::task::yield_now().await;
                }
            });
            let mut refused = 0;
            while !other.is_finished() {
                refused += usize::from(load.admit(&chance).await == Err(Shed::Queue));
                tokio::task::yield_now().await;
            }
            assert!(refused > 0, "20 times 80 ms, and nobody was refused");
            let recovers = async {
                while load.admit(&chance).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), recovers).await.expect("it serves again");
        });
    }

    #[test]
    fn memory_is_read_now_and_then() {
        let (start, gauge) = (Instant::now(), MemoryGauge::new(Some(1 << 40)));
        let Memory { used, budget } = gauge.read(start);
        assert!(used > 1 << 20 && budget == 1 << 40, "{used} of {budget}");
        gauge.inner.used.store(7, Ordering::Relaxed);
        assert_eq!(gauge.read(start + MEMORY_SAMPLE / 2).used, 7);
        assert_ne!(gauge.clone().read(start + MEMORY_SAMPLE * 2).used, 7);
        assert_eq!(MemoryGauge::default().read(start), Memory { used: 0, budget: 0 });
    }
}
