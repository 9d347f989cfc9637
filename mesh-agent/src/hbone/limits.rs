//! Every bound of the tunnel, with its unit and its reason. `/config_dump` lists them.

use std::time::Duration;

use crate::limit::Limit;

/// The port on which agents speak HBONE, in the pod's address space.
pub const PORT: u16 = 15008;

macro_rules! limits {
    ($($name:ident = $value:expr, $unit:literal, $reason:literal;)*) => {
        $(#[doc = concat!("In ", $unit, ". ", $reason)] pub const $name: u64 = $value;)*

        /// All bounds, in the order of this file.
        pub fn all() -> Vec<Limit> {
            vec![$(Limit { name: stringify!($name), value: $name, unit: $unit, reason: $reason },)*]
        }
    };
}

limits! {
    STREAM_WINDOW = 1 << 20, "bytes",
        "What one connection may have in flight: 10 Gbit/s at 0.8 ms, and the most that an application that does not read can make us hold.";
    CONNECTION_WINDOW = 100 << 20, "bytes",
        "STREAM_WINDOW times MAX_STREAMS: applications that stop reading can never starve the other streams of their tunnel.";
    MAX_STREAMS = 100, "streams per tunnel",
        "What ztunnel assumes of its peers; more connections make another tunnel.";
    MAX_FRAME_BYTES = 64 << 10, "bytes",
        "One read of a bulk transfer is one frame; larger frames would only delay the streams beside it.";
    MAX_HEADER_LIST_BYTES = 16 << 10, "bytes",
        "Our own requests have under 1 KiB; ztunnel's baggage under 4 KiB.";
    HEADER_FLOOD_BYTES = 64 << 10, "bytes",
        "A head beyond MAX_HEADER_LIST_BYTES is refused, which a mistake may be; one of four times that ends the tunnel.";
    HEADER_TABLE_BYTES = 4 << 10, "bytes",
        "HPACK's default, which a peer may use before it has heard of another; a larger table is memory that a peer can make us hold.";
    SEND_BUFFER_BYTES = 256 << 10, "bytes per tunnel",
        "What is read from applications ahead of the tunnel: enough to fill a pipe. Whoever finds no room waits until half of it has left.";
    MAX_RESET_STREAMS = 1024, "streams per tunnel",
        "Remembered after we reset them, so that late frames are ignored rather than answered; four bytes each.";
    MAX_PENDING_RESETS = 1000, "streams per tunnel",
        "Reset by the peer before we looked at them (rapid reset); ten times its streams, since applications that give up in a hurry do this too. MAX_HANDLERS bounds the work; beyond it the tunnel is closed.";
    MAX_FAULTS = 16384, "frames in a tunnel's life",
        "Frames that no sane peer sends: streams that we reset for breaking the protocol, frames for streams that are over and forgotten, empty DATA. The count never falls, so a busy tunnel must not come near it. Beyond it the tunnel is closed.";
    MAX_CONTINUATIONS = 32, "frames per head",
        "A head of MAX_HEADER_LIST_BYTES fits into one frame; a peer that cuts it smaller than this has no reason to.";
    MAX_HANDLERS = 200, "requests in work per tunnel",
        "A peer that resets and asks anew does not get more of our work than its streams: beyond it requests get 503.";
    MAX_TUNNELS_PER_KEY = 1024, "tunnels",
        "100 000 connections from one pod to one endpoint on one worker.";
    CONNECT_TIMEOUT_MS = 5_000, "milliseconds",
        "TCP connect to the other agent: two lost SYNs; then another endpoint is tried.";
    HANDSHAKE_TIMEOUT_MS = 10_000, "milliseconds",
        "TLS and HTTP/2 preface together, either side: a stalled peer holds no socket for longer.";
    RESPONSE_TIMEOUT_MS = 15_000, "milliseconds",
        "From CONNECT to its answer; the far side's dial of its application is in it.";
    DEAD_PEER_MS = 8_000, "milliseconds",
        "Sent and not acknowledged, or silent to every probe: the other machine is gone, and the tunnel's connections are reset. Six transmissions of a segment, so that one packet lost in twenty ends no tunnel.";
    KEEPALIVE_IDLE_MS = 3_000, "milliseconds",
        "A silent tunnel is probed by the kernel after this, so that DEAD_PEER_MS holds for idle connections too.";
    KEEPALIVE_INTERVAL_MS = 1_000, "milliseconds",
        "Between probes: five are lost before the peer is held to be gone.";
    PING_INTERVAL_MS = 10_000, "milliseconds",
        "As ztunnel: between a pong and the next ping, while the tunnel has streams.";
    PING_TIMEOUT_MS = 20_000, "milliseconds",
        "As ztunnel: an agent that hangs though its machine answers is given up after this, and its connections are reset.";
    BACKOFF_FIRST_MS = 50, "milliseconds",
        "At most this long after the second failure in a row to reach one peer nobody tries again; then twice that, and so on.";
    BACKOFF_MOST_MS = 1_000, "milliseconds",
        "The longest such pause: a peer that is back is found within two seconds.";
    BACKOFF_CLOSED_MS = 200, "milliseconds",
        "The longest when the port was closed, which costs little to ask: shorter than the pause before a connection's second try, so that a pod is reached as soon as it is enrolled.";
    BACKOFF_MEMORY_MS = 30_000, "milliseconds",
        "A failure older than this is forgotten.";
    MAX_BACKOFFS = 4096, "peers per worker",
        "Remembered as not reachable; half a KiB each.";
    RETRY_CONNECT_TIMEOUT_MS = 1_500, "milliseconds",
        "TCP connect to a peer that could not be reached lately: one lost SYN, so that its return is noticed soon.";
    RETRY_WAIT_MS = 300, "milliseconds",
        "How long callers wait for the one who tries such a peer again, before they take another endpoint.";
    FRESH_TUNNELS = 3, "tunnels per request",
        "Made for one request if each says goodbye before it answers: a peer that hands over to its successor does so once.";
    IDLE_TUNNEL_MS = 300_000, "milliseconds",
        "As ztunnel: a tunnel without connections is closed by its client after this.";
    IDLE_SERVER_TUNNEL_MS = 900_000, "milliseconds",
        "Three times the client's: an agent that forgets to close its tunnels does not hold ours.";
    FAREWELL_MS = 1_000, "milliseconds",
        "How long the last words of a tunnel may take to leave.";
    MAX_BAGGAGE_BYTES = 4 << 10, "bytes",
        "A longer baggage header is ignored.";
    COPY_CHUNK_BYTES = 64 << 10, "bytes",
        "Read from an application at once when data is plentiful.";
    COPY_JOIN_BYTES = 16 << 10, "bytes",
        "Received blocks below this are joined while the application does not keep up, so that small ones do not each hold on to a large read. What waits for one application is bounded by STREAM_WINDOW.";
    COPY_ROUND_BYTES = 512 << 10, "bytes per wake-up and direction",
        "A bulk connection, or a tunnel, lets the others of its worker go ahead after this much.";
    READ_ROUND_MS = 2, "milliseconds per wake-up",
        "A connection of HTTP/2 lets the others of its worker go ahead after this long too: COPY_ROUND_BYTES of frames can be work for a tenth of a second, where each moves the windows of all streams.";
    READ_BLOCK_BYTES = 256 << 10, "bytes per worker",
        "The shared block that reads are cut from: four of COPY_CHUNK_BYTES.";
    READ_SMALL_BYTES = 4 << 10, "bytes",
        "Up to this a read is copied into a block of its own size rather than holding on to the shared one.";
    GATHER_FIRST_BYTES = 2 << 10, "bytes per tunnel, and per client's connection of HTTP/2",
        "Taken for the first frame of a wake-up, and kept for the next: what a few requests need.";
    GATHER_BYTES = 64 << 10, "bytes per tunnel, and per client's connection of HTTP/2",
        "What a wake-up may say before the first of it goes out: four full records, in one write.";
    GATHER_LARGE_BYTES = 16 << 10, "bytes",
        "A full record: a frame of this size is not copied to be sent with others.";
}

/// The bounds in force for one pool or server. The defaults are the constants above; tests shorten the times.
#[derive(Clone, Debug)]
pub struct Limits {
    /// See [`MAX_STREAMS`].
    pub max_streams: u32,
    /// See [`CONNECT_TIMEOUT_MS`].
    pub connect_timeout: Duration,
    /// See [`RETRY_CONNECT_TIMEOUT_MS`].
    pub retry_connect_timeout: Duration,
    /// See [`HANDSHAKE_TIMEOUT_MS`].
    pub handshake_timeout: Duration,
    /// See [`RESPONSE_TIMEOUT_MS`].
    pub response_timeout: Duration,
    /// See [`DEAD_PEER_MS`].
    pub dead_peer: Duration,
    /// See [`PING_INTERVAL_MS`].
    pub ping_interval: Duration,
    /// See [`PING_TIMEOUT_MS`].
    pub ping_timeout: Duration,
    /// See [`IDLE_TUNNEL_MS`].
    pub idle_tunnel: Duration,
    /// See [`IDLE_SERVER_TUNNEL_MS`].
    pub idle_server_tunnel: Duration,
    /// From the start of the drain to the abrupt end of a tunnel that still has streams. The operator's drain window.
    pub drain_window: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_streams: MAX_STREAMS as u32,
            connect_timeout: Duration::from_millis(CONNECT_TIMEOUT_MS),
            retry_connect_timeout: Duration::from_millis(RETRY_CONNECT_TIMEOUT_MS),
            handshake_timeout: Duration::from_millis(HANDSHAKE_TIMEOUT_MS),
            response_timeout: Duration::from_millis(RESPONSE_TIMEOUT_MS),
            dead_peer: Duration::from_millis(DEAD_PEER_MS),
            ping_interval: Duration::from_millis(PING_INTERVAL_MS),
            ping_timeout: Duration::from_millis(PING_TIMEOUT_MS),
            idle_tunnel: Duration::from_millis(IDLE_TUNNEL_MS),
            idle_server_tunnel: Duration::from_millis(IDLE_SERVER_TUNNEL_MS),
            drain_window: Duration::from_secs(600),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_windows_cannot_starve_a_stream_and_http2_can_carry_the_rest() {
        assert_eq!(CONNECTION_WINDOW, STREAM_WINDOW * MAX_STREAMS);
        assert!((16 << 10..1 << 24).contains(&MAX_FRAME_BYTES));
        const { assert!(CONNECTION_WINDOW < 1 << 31 && MAX_HANDLERS >= MAX_STREAMS) };
        assert!(all().iter().all(|limit| limit.value > 0 && limit.reason.ends_with('.')));
    }
}
