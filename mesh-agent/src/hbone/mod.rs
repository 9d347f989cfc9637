//! HBONE: one HTTP/2 CONNECT per tunnelled connection, inside mutual TLS, on port 15008 of the destination pod.
//!
//! `proxy` opens streams through a [`Pool`] and takes them from a [`Tunnel`] that it accepted; what crosses the wire is what Istio's ztunnel
//! speaks. Everything here lives on one current-thread runtime with a `LocalSet`: nothing is shared between workers.
//!
//! What is not here: no policy, no choice of endpoints, no dialling (the caller hands in how), no application sockets.

pub mod limits;

pub use client::{OpenError, Timeout};
pub use gather::Gather;
pub use limits::{Limits, PORT};
pub use pool::{Carrier, Pool, TunnelKey, TunnelStatus};
pub use server::{Incoming, ServeError, Status, Tunnel, accept};
pub use socket::{Line, poll_read};
pub use stream::{Stream, StreamError, Waiting};
pub use tally::Tally;
pub use words::{Baggage, ConnectRequest, Forwarded, TraceParent, parse_authority};

/// Sets what both ends bound alike; h2's two builders have no trait in common.
macro_rules! bound {
    ($builder:expr) => {{
        let mut builder = $builder;
        builder
            .initial_window_size(limits::STREAM_WINDOW as u32)
            .initial_connection_window_size(limits::CONNECTION_WINDOW as u32)
            .max_frame_size(limits::MAX_FRAME_BYTES as u32)
            .max_header_list_size(limits::MAX_HEADER_LIST_BYTES as u32)
            .header_table_size(limits::HEADER_TABLE_BYTES as u32)
            .max_send_buffer_size(limits::SEND_BUFFER_BYTES as usize)
            .data_frame_budget(limits::DATA_FRAME_BUDGET as usize)
            .max_concurrent_reset_streams(limits::MAX_RESET_STREAMS as usize)
            .reset_stream_duration(Duration::from_secs(limits::RESET_STREAM_SECONDS))
            .max_pending_accept_reset_streams(limits::MAX_PENDING_RESETS as usize)
            .max_local_error_reset_streams(Some(limits::MAX_LOCAL_ERROR_RESETS as usize));
        builder
    }};
}

mod backoff;
mod client;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod gather;
mod liveness;
mod pool;
mod server;
mod socket;
mod stream;
mod tally;
mod words;
