//! Every limit of the proxy: a constant with unit and reason. `/config_dump` lists them.

use std::time::Duration;

use super::copy;
use crate::limit::{Limit, limits};

/// How long one TCP connect may take before the next endpoint is tried. Three SYNs: at 0, 1 and 3 seconds.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause before endpoints whose tunnel port was closed are tried once more: their pod is being enrolled, or their agent
/// is back in a moment. Longer than an enrolment, and little against the patience of a client.
pub const TUNNEL_RETRY_PAUSE: Duration = Duration::from_millis(250);

/// How long a connection that asks whether the network lets one pod of this node through to another may be silent. It
/// stays on the node and begins with its word.
pub const WITNESS_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the network's leave holds: a tunnel is not asked for again as long as it lives.
pub const WAY_OPEN: Duration = Duration::from_secs(60);

/// How long its refusal holds. Meanwhile the tunnel is tried, which spaces its own tries.
pub const WAY_CLOSED: Duration = Duration::from_secs(2);

/// How long a connection waits for its pod's first certificate. Longer than a CA round trip, shorter than the
/// patience of common clients (10 s).
pub const SVID_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the first message of a TLS client may take where its server name leads the connection. As the head of a
/// request.
pub const SERVER_NAME_TIMEOUT: Duration = Duration::from_secs(15);

/// How many more connections its home worker must carry than the least loaded one before a new connection is handed
/// over. Few, so that bulk streams spread; not zero, so that light traffic stays on one awake core.
pub const SPILL: usize = 4;

/// Pause after accept() failed for want of descriptors or memory: long enough not to spin, short against SYN retries.
pub const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// How often the byte counters of live connections are brought up to date: below a common scrape interval (15 s).
pub const COUNT_INTERVAL: Duration = Duration::from_secs(5);

/// How often what waits in tunnels for readers of requests is counted. What comes in between is beyond the budget for so
/// long.
pub const WEIGH_INTERVAL: Duration = Duration::from_secs(1);

/// How often a worker gives pages back to the system that it has not used for a second.
pub const MEMORY_INTERVAL: Duration = Duration::from_secs(2);

/// What a pod's connection may hold for an application that does not read, in bytes, though its pod is over budget: an
/// application that keeps up holds less, and does not pay for one that has stopped.
pub const FAIR_BUFFER: usize = 16 << 10;

/// How many times as many connections as are left for all one source may hold at a pod: all but a 65th of what the pod
/// may have, if nobody else comes, for whom that is left. One gateway may be most of a pod's callers.
pub const CONNECTION_SHARE: usize = 64;

/// The same for tunnels, and for peers that have not proved who they are: half. A pod of the mesh keeps a tunnel or a few.
pub const STRANGER_SHARE: usize = 1;

/// How many sources the rate of new connections is divided among at most, where it is scarce: more than reach one pod in
/// the same moment, and as few as are forgotten in a moment (at 5000 a second, each within 51 ms of its last connection).
pub const MAX_RATE_SHARES: usize = 256;

/// How many sources may be remembered before those that took nothing of late are looked for: a few kilobytes a pod.
pub const FEW_SOURCES: usize = 64;

/// How many live connections are looked at before the others of the worker go ahead: under a millisecond of judging.
pub const TABLE_CHUNK: usize = 256;

/// What each of a pod's busy connections may move in a turn of its worker, in bytes, however many they are: less would not
/// be worth the look at all sockets that follows.
pub const TURN_LEAST_BYTES: u64 = 16 << 10;

/// How long a connection on the wire outside a tunnel may be silent before its other end is asked whether it lives. As
/// ztunnel.
pub const KEEPALIVE_IDLE: Duration = Duration::from_secs(180);

/// How long to wait for each answer.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);

/// How often to ask before the connection is given up: a lost packet or eight are no death.
pub const KEEPALIVE_PROBES: u32 = 9;

/// Pairs of a pod and what it dials that may go by the kernel alone, as many as its table holds: Services first, pods' own
/// addresses last.
pub const MAX_PAIRS: usize = 65_536;

/// The bounds of this room.
pub fn all() -> Vec<Limit> {
    limits![
        CONNECT_TIMEOUT, "milliseconds", "three SYNs, then the next endpoint";
        SERVER_NAME_TIMEOUT, "milliseconds", "for a TLS client's first message, where its server name leads";
        TUNNEL_RETRY_PAUSE, "milliseconds", "an enrolment, before closed tunnel ports are tried once more";
        MAX_PAIRS, "pairs of a pod and what it dials", "that may go by the kernel alone; the agent carries what is beyond";
        WITNESS_TIMEOUT, "milliseconds", "for one word between two pods of this node";
        WAY_OPEN, "milliseconds", "then the network is asked anew whether one pod of this node reaches another";
        WAY_CLOSED, "milliseconds", "the same, where it said no";
        SVID_TIMEOUT, "milliseconds", "longer than a CA round trip, shorter than a client's patience";
        SPILL, "connections", "before a connection leaves its pod's home worker";
        ACCEPT_BACKOFF, "milliseconds", "no spinning when descriptors run out";
        COUNT_INTERVAL, "milliseconds", "byte counters move while a connection lives";
        WEIGH_INTERVAL, "milliseconds", "between two counts of what waits for readers of requests";
        MEMORY_INTERVAL, "milliseconds", "between two looks at pages that a worker does not use any longer";
        FAIR_BUFFER, "bytes per connection", "held for a slow application though its pod is over its buffer budget";
        CONNECTION_SHARE, "times what is left", "of a pod's connections, for one source";
        STRANGER_SHARE, "times what is left", "of a pod's tunnels and of handshakes, for one source";
        MAX_RATE_SHARES, "sources", "among whom the rate of new connections is divided where it is scarce";
        FEW_SOURCES, "sources", "remembered before those that took nothing of late are looked for";
        TABLE_CHUNK, "connections", "judged again, or listed, before the others of the worker go ahead";
        TURN_LEAST_BYTES, "bytes per busy connection", "moved in a worker's turn; all of a pod move COPY_ROUND_BYTES, or this by each";
        KEEPALIVE_IDLE, "milliseconds", "then a silent end of a plaintext connection is asked whether it lives";
        KEEPALIVE_INTERVAL, "milliseconds", "between two such questions";
        KEEPALIVE_PROBES, "questions", "before the connection is given up";
        copy::SLICES, "blocks", "of a queue, in one write";
    ]
}
