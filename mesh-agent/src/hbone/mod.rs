//! HBONE: one HTTP/2 CONNECT per tunnelled connection, inside mutual TLS, on port 15008 of the destination pod.
//!
//! `proxy` opens streams through a [`Pool`] and takes them from a [`Tunnel`] that it accepted; what crosses the wire is what Istio's ztunnel
//! speaks. Everything here lives on one current-thread runtime with a `LocalSet`: nothing is shared between workers.
//!
//! What is not here: no policy, no choice of endpoints, no dialling (the caller hands in how), no application sockets.

pub mod limits;

pub use client::{OpenError, Timeout};
pub use limits::{Limits, PORT};
pub use pool::{Carrier, Pool, TunnelKey, TunnelStatus};
pub use round::Round;
pub use server::{Incoming, ServeError, Status, Tunnel, accept};
pub use session::Broken;
pub use socket::{Line, poll_read};
pub use stream::{Stream, StreamError, Waiting};
pub use tally::Tally;
pub use words::{Baggage, ConnectRequest, Forwarded, TraceParent, parse_authority};

mod backoff;
mod client;
mod connection;
mod frame;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod head;
mod hpack;
mod huffman;
mod liveness;
mod outbox;
mod pool;
mod received;
mod round;
mod server;
mod session;
mod socket;
mod stream;
mod tally;
mod words;
