//! Every limit of the room: a constant with unit and reason. `/config_dump` lists them.

use std::time::Duration;

use crate::limit::{Limit, limits};

/// How large a request's line and fields may be together, in bytes. As Envoy (60 KiB): cookies and tokens of real
/// applications fit.
pub const MAX_HEAD_BYTES: usize = 64 << 10;

/// How many fields a head may have. The parser's own bound, up to which it needs no memory for them.
pub const MAX_HEADERS: usize = 100;

/// Empty lines before a request line: some old clients send one after a body (RFC 9112 2.2).
pub const MAX_EMPTY_LINES: usize = 2;

/// What one chunk's extension may have, in bytes. Nobody reads them; a signature fits.
pub const MAX_CHUNK_EXTENSION_BYTES: usize = 256;

/// What the trailers of a chunked body may have, in bytes. The parser's bound too.
pub const MAX_TRAILER_BYTES: usize = 8 << 10;

/// Fields that a Connection field may nominate. More is an attack on whoever removes them.
pub const MAX_CONNECTION_OPTIONS: usize = 16;

/// What is read ahead behind a request that asks for an upgrade while its answer is awaited, in bytes: what a client says
/// that does not wait for it. The end of one that says no more is heard.
pub const HELD_BYTES: usize = 16 << 10;

/// How long a head may take to arrive from its first byte on. Slowloris ends here.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a client's connection may rest between requests. As Envoy and ztunnel's tunnels; above common clients' own.
pub const IDLE_CLIENT: Duration = Duration::from_secs(300);

/// How long a client's HTTP/1.1 connection keeps its parser and buffers, some 30 KiB, when nothing is asked: making them
/// anew takes microseconds.
pub const REST_AFTER: Duration = Duration::from_secs(2);

/// How long a connection to an application may rest. Below the common keep-alive times of servers (nginx 75 s, Apache
/// and Node 5 s are met by trying again), so that we are the ones who close.
pub const IDLE_UPSTREAM: Duration = Duration::from_secs(60);

/// How often connections that rest are looked through. An agent that drains waits so long for those of its peers.
pub const SWEEP_INTERVAL: Duration = Duration::from_secs(2);

/// Resting HTTP/1.1 connections of one pod to one endpoint, per worker. More are closed when their request is done.
pub const MAX_IDLE_PER_ENDPOINT: usize = 128;

/// Resting HTTP/1.1 connections of one worker, all pods together: each is a stream of a tunnel and some 10 KiB.
pub const MAX_IDLE: usize = 4096;

/// Requests of one client's HTTP/2 connection that run at once.
pub const MAX_STREAMS: u32 = 100;

/// What one HTTP/2 stream may have in flight, in bytes: 1 Gbit/s at 2 ms, and what a reader that has stopped makes us
/// hold for it.
pub const STREAM_WINDOW: u32 = 256 << 10;

/// `STREAM_WINDOW` times `MAX_STREAMS`, in bytes: readers that have stopped never starve the other streams.
pub const CONNECTION_WINDOW: u32 = STREAM_WINDOW * MAX_STREAMS;

/// What more may wait on one HTTP/2 connection for readers of its bodies before its pod's budget hears of it, in bytes:
/// once a second would be too late for what a whole window of the connection has.
pub const UNTAKEN_STEP: usize = 1 << 20;

/// The largest HTTP/2 frame that we take, in bytes.
pub const MAX_FRAME_BYTES: u32 = 32 << 10;

/// What is written ahead for one HTTP/2 stream, in bytes.
pub const SEND_BUFFER_BYTES: usize = 64 << 10;

/// HTTP/2 streams that a client reset before we looked at them (CVE-2023-44487); beyond it the connection ends.
pub const MAX_PENDING_RESETS: usize = 100;

/// HTTP/2 streams that a client made us reset by breaking the protocol (CVE-2025-8671); beyond it the connection ends.
pub const MAX_LOCAL_RESETS: usize = 1024;

/// What the parser of HTTP/1.1 may hold of one connection and direction, in bytes: a head, or what a reader that has
/// stopped leaves waiting.
pub const BUFFER_BYTES: usize = MAX_HEAD_BYTES + (8 << 10);

/// One write into a tunnel, in bytes: as much as one frame of it takes.
pub const MAX_TUNNEL_WRITE: usize = 64 << 10;

/// How long a connection to an application is used for new requests: what it was made with, such as a certificate, is
/// not kept in use for ever.
pub const MAX_UPSTREAM_AGE: Duration = Duration::from_secs(600);

/// How long after its last answer a connection that we end is read on, so that the client sees the answer and not a
/// reset.
pub const LINGER: Duration = Duration::from_secs(1);

/// What is read and thrown away meanwhile, in bytes.
pub const LINGER_BYTES: usize = 256 << 10;

/// What is read and thrown away of a body that nobody wants, so that its connection serves further requests, in bytes:
/// as much as the parser holds of one anyway.
pub const UNREAD_BYTES: u64 = 64 << 10;

/// How long that may take: a small body comes with its head or right behind it, and the answer waits meanwhile.
pub const UNREAD_PATIENCE: Duration = Duration::from_millis(50);

/// How often one request is sent anew because the connection that it went out on had been closed by the application.
pub const MAX_RESENDS: usize = 2;

/// How long a mirrored request may take: nobody waits for it.
pub const MIRROR_TIMEOUT: Duration = Duration::from_secs(15);

/// The longest body of which a copy is sent where a rule mirrors, in bytes; as much as a retried one by default. A longer
/// one is not mirrored.
pub const MAX_MIRROR_BODY: u64 = 64 << 10;

/// What a kept piece of a body takes beside its bytes, as the pod's budget counts it.
pub const KEPT_PIECE_BYTES: usize = 64;

/// Below this a piece of a body is copied to be kept, in bytes: a few bytes of a read buffer would keep the whole buffer.
pub const SMALL_PIECE: usize = 4 << 10;

/// Below this a frame out of a tunnel is passed on by itself, in bytes: who sends little has said it, and looking whether
/// another frame has come would be dearer than what it spares.
pub const SMALL_FRAME: usize = 4 << 10;

/// Pause before endpoints whose tunnel port was closed are tried once more, as for connections of bytes.
pub const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// How often at most a worker measures how long requests wait for it: well within the 500 ms that make an overload.
pub const QUEUE_SAMPLE: Duration = Duration::from_millis(20);

/// How often at most the agent looks how much memory it has taken.
pub const MEMORY_SAMPLE: Duration = Duration::from_millis(250);

/// How long a worker remembers a Service's port that nobody asks for: round trips and ejections are forgotten before.
pub const KEPT_UNASKED: Duration = Duration::from_secs(900);

/// Rules of routes whose treatment a worker remembers for one Service port. With more they are made again when met.
pub const MAX_TREATMENTS: usize = 1024;

/// Pause before the first bytes of a connection are looked at again, when they may yet become HTTP/2's preface.
pub const PREFACE_PAUSE: Duration = Duration::from_millis(5);

/// How long a connection that rested for too long may take to say goodbye.
pub const FAREWELL: Duration = Duration::from_secs(2);

/// Read from one side of an upgraded connection at once, in bytes.
pub const UPGRADE_CHUNK: usize = 16 << 10;

/// HTTP/2 connections of one pod to one endpoint, per worker.
pub const MAX_CONNECTIONS_PER_ENDPOINT: usize = 64;

/// The bounds of this room.
pub fn all() -> Vec<Limit> {
    limits![
        MAX_HEAD_BYTES, "bytes", "of a request's line and fields; more is answered with 431";
        MAX_HEADERS, "fields", "of a head; more is answered with 431";
        MAX_EMPTY_LINES, "lines", "empty ones before a request";
        MAX_CHUNK_EXTENSION_BYTES, "bytes", "of one chunk's extension";
        MAX_TRAILER_BYTES, "bytes", "of a chunked body's trailers";
        MAX_CONNECTION_OPTIONS, "fields", "that a Connection field may nominate";
        HELD_BYTES, "bytes", "read ahead behind a request that asks for an upgrade, until that is answered";
        HEAD_TIMEOUT, "milliseconds", "for a head to arrive, from its first byte on";
        IDLE_CLIENT, "milliseconds", "a client's connection may rest between requests";
        REST_AFTER, "milliseconds", "after a request a client's connection keeps its parser and buffers";
        IDLE_UPSTREAM, "milliseconds", "a connection to an application may rest";
        SWEEP_INTERVAL, "milliseconds", "between two looks at the connections that rest";
        MAX_IDLE_PER_ENDPOINT, "connections", "that rest, of one pod to one endpoint, per worker";
        MAX_IDLE, "connections", "that rest, per worker";
        MAX_STREAMS, "requests", "at once on one HTTP/2 connection";
        STREAM_WINDOW, "bytes", "in flight on one HTTP/2 stream";
        CONNECTION_WINDOW, "bytes", "in flight on one HTTP/2 connection";
        UNTAKEN_STEP, "bytes", "more that wait on one HTTP/2 connection before its pod's budget hears of it";
        MAX_FRAME_BYTES, "bytes", "of one HTTP/2 frame";
        SEND_BUFFER_BYTES, "bytes", "written ahead for one HTTP/2 stream";
        MAX_PENDING_RESETS, "streams", "reset by a client before they were looked at";
        MAX_LOCAL_RESETS, "streams", "that a client made us reset";
        BUFFER_BYTES, "bytes", "that the HTTP/1.1 parser holds of one connection and direction";
        MAX_TUNNEL_WRITE, "bytes", "in one write into a tunnel";
        MAX_UPSTREAM_AGE, "milliseconds", "a connection to an application takes new requests";
        LINGER, "milliseconds", "a connection that we end is read on";
        LINGER_BYTES, "bytes", "read and thrown away meanwhile";
        UNREAD_BYTES, "bytes", "of a body that nobody wants, read so that its connection serves on";
        UNREAD_PATIENCE, "milliseconds", "for them to come";
        MAX_RESENDS, "times", "that a request goes out anew because its connection had been closed";
        MIRROR_TIMEOUT, "milliseconds", "for a mirrored request and its answer";
        MAX_MIRROR_BODY, "bytes", "of a body that is mirrored; a longer one is not";
        KEPT_PIECE_BYTES, "bytes", "that a kept piece of a body counts beside its own";
        SMALL_PIECE, "bytes", "below which a piece of a body is copied to be kept";
        SMALL_FRAME, "bytes", "below which a frame out of a tunnel is passed on by itself";
        RETRY_PAUSE, "milliseconds", "before closed tunnel ports are tried once more";
        QUEUE_SAMPLE, "milliseconds", "at least between two measurements of a worker's queue";
        MEMORY_SAMPLE, "milliseconds", "at least between two looks at the memory in use";
        KEPT_UNASKED, "milliseconds", "a worker remembers a Service's port that nobody asks for";
        MAX_TREATMENTS, "rules", "whose treatment a worker remembers for one Service port";
        PREFACE_PAUSE, "milliseconds", "before a piece of HTTP/2's preface is looked at again";
        FAREWELL, "milliseconds", "for a connection that rested too long to say goodbye";
        UPGRADE_CHUNK, "bytes", "read from one side of an upgraded connection at once";
        MAX_CONNECTIONS_PER_ENDPOINT, "connections", "by HTTP/2, of one pod to one endpoint, per worker";
    ]
}
