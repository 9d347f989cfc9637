//! Every limit of the proxy: a constant with unit and reason. `/config_dump` lists them.

use std::time::Duration;

/// How long one TCP connect may take before the next endpoint is tried. Three SYNs: at 0, 1 and 3 seconds.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connection waits for its pod's first certificate. Longer than a CA round trip, shorter than the
/// patience of common clients (10 s).
pub const SVID_TIMEOUT: Duration = Duration::from_secs(5);

/// How many more connections its home worker must carry than the least loaded one before a new connection is handed
/// over. Few, so that bulk streams spread; not zero, so that light traffic stays on one awake core.
pub const SPILL: usize = 4;

/// Pause after accept() failed for want of descriptors or memory: long enough not to spin, short against SYN retries.
pub const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// How often the byte counters of live connections are brought up to date: below a common scrape interval (15 s).
pub const COUNT_INTERVAL: Duration = Duration::from_secs(5);

/// Sizes and times for `/config_dump`: name, value, unit, reason.
pub fn all() -> [(&'static str, u64, &'static str, &'static str); 5] {
    [
        ("proxy.connect_timeout", CONNECT_TIMEOUT.as_secs(), "s", "three SYNs, then the next endpoint"),
        ("proxy.svid_timeout", SVID_TIMEOUT.as_secs(), "s", "longer than a CA round trip"),
        ("proxy.spill", SPILL as u64, "connections", "before a connection leaves its pod's home worker"),
        ("proxy.accept_backoff", ACCEPT_BACKOFF.as_millis() as u64, "ms", "no spinning when descriptors run out"),
        ("proxy.count_interval", COUNT_INTERVAL.as_secs(), "s", "byte counters move while a connection lives"),
    ]
}
