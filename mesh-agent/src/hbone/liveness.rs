//! Finding out that the other end of a tunnel is gone without a word.
//!
//! Two watchers, since each sees what the other cannot:
//! - the kernel sees a *machine* that is gone: nothing sent is acknowledged, keep-alive probes are not answered
//!   (TCP_USER_TIMEOUT, RFC 5482). It costs no wake-up of ours, and acknowledgements pass a full socket by: a bulk
//!   transfer over a slow line is not taken for death;
//! - a PING sees an *agent* that hangs while its kernel goes on answering. Only while there are streams to lose.

use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use super::limits::{self, Limits};
use super::session::Session;

/// Has the kernel break the connection when the peer has said nothing for [`Limits::dead_peer`].
pub(super) fn watch(tcp: &TcpStream, limits: &Limits) {
    let probes = TcpKeepalive::new()
        .with_time(Duration::from_millis(limits::KEEPALIVE_IDLE_MS).min(limits.dead_peer))
        .with_interval(Duration::from_millis(limits::KEEPALIVE_INTERVAL_MS));
    let socket = SockRef::from(tcp);
    // These fail only on a socket that is gone already.
    let _ = socket.set_tcp_keepalive(&probes);
    let _ = socket.set_tcp_user_timeout(Some(limits.dead_peer));
}

/// Pings, while the tunnel is in use, until the peer stops answering; returns only then.
pub(super) async fn keep_alive(session: &Session, limits: &Limits, is_in_use: impl Fn() -> bool) {
    loop {
        tokio::time::sleep(limits.ping_interval).await;
        if !is_in_use() {
            continue;
        }
        match tokio::time::timeout(limits.ping_timeout, session.ping()).await {
            Ok(Ok(())) => {}
            // The connection itself is over, and whoever drives it says so better.
            Ok(Err(())) => return std::future::pending().await,
            Err(_) => return,
        }
    }
}
