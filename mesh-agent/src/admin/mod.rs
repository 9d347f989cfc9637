//! The agent's own HTTP: readiness, metrics, and a window into what it is doing.
//!
//! `app` binds the listeners and fills [`Sources`] with closures, so this room knows no other but readiness, telemetry
//! and drain. Three surfaces: the admin address (everything; loopback or a unix socket of mode 0600, because it can
//! change the agent), the metrics address (/metrics) and the readiness address (/readyz).
//!
//! | endpoint | |
//! |---|---|
//! | `GET /readyz` | 200 `ready` or 503 `not ready`, with what is missing, a line each |
//! | `GET /metrics` | OpenMetrics text |
//! | `GET /config_dump` | JSON: every named section that `app` has registered; those alone of `?sections=agent,settings` |
//! | `GET /connections` | JSON: live connections |
//! | `GET /flows` | JSON, a line for each connection and request that ends from now on; those alone that the query names |
//! | `GET /denials` | JSON: the last refusals, the newest first |
//! | `POST /rotate` | renews every certificate now |
//! | `POST /drain` | begins the drain, as SIGTERM does |
//! | `GET`, `PUT /log-level` | reads, replaces the log filter (plain text) |
//! | `GET`, `PUT /access-log` | reads, replaces which connections get a line (plain text) |
//!
//! Not here: authentication (whoever reaches the admin address may use it) and TLS.

mod ask;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod listener;
mod respond;
mod serve;
mod stream;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use crate::limit::{Limit, limits};
use crate::readiness::Readiness;
use crate::telemetry::{AccessLog, Metrics, access_log, logs};

pub use ask::{Answer, MAX_ANSWER_BYTES, ask, follow};
pub use listener::{Address, AddressError, Listener, bind_private, bind_tcp};
pub use respond::tell;
pub use serve::{REQUEST_TIMEOUT, serve, serve_with};

/// A future that a closure gives back.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Answers what a part of the agent looks like now.
pub type Provider = Arc<dyn Fn() -> BoxFuture<serde_json::Value> + Send + Sync>;

/// Does something to the agent; the text is for the person who asked.
pub type Hook = Arc<dyn Fn() -> BoxFuture<Result<String, String>> + Send + Sync>;

/// Everything that the endpoints show and do.
#[derive(Clone)]
pub struct Sources {
    /// For /readyz.
    pub readiness: Readiness,
    /// For /metrics.
    pub metrics: Metrics,
    /// For /config_dump: name of the section and what fills it.
    pub config_dump: BTreeMap<&'static str, Provider>,
    /// For /connections.
    pub connections: Provider,
    /// For POST /rotate.
    pub rotate: Hook,
    /// For POST /drain.
    pub drain: Hook,
    /// For /log-level; without one the endpoint answers 404.
    pub log_filter: Option<logs::Filter>,
    /// For /access-log.
    pub access_log: AccessLog,
}

impl Sources {
    /// For [`Surface::Status`], of a process that has nothing else to show.
    pub fn status(readiness: Readiness, metrics: Metrics, log_filter: logs::Filter) -> Self {
        let nothing = || hook(|| async { Err("not here".to_string()) });
        Self {
            readiness,
            metrics,
            config_dump: BTreeMap::new(),
            connections: provider(|| async { serde_json::Value::Null }),
            rotate: nothing(),
            drain: nothing(),
            log_filter: Some(log_filter),
            access_log: AccessLog::new(access_log::Filter::default()),
        }
    }
}

/// Which endpoints a listener has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surface {
    /// All of them.
    Admin,
    /// /metrics alone.
    Metrics,
    /// /readyz alone.
    Readiness,
    /// /readyz and /metrics.
    Status,
}

/// The bounds of this room.
pub fn limits() -> Vec<Limit> {
    limits![
        ask::MAX_ANSWER_BYTES, "bytes", "of an answer that `mesh-agent get` and meshctl take";
        ask::ANSWER_TIMEOUT, "milliseconds", "for a whole answer to `mesh-agent get`";
        serve::MAX_CONNECTIONS, "connections per surface", "more wait in the kernel's queue";
        serve::HEADER_TIMEOUT, "milliseconds", "for a request's line and headers, and for an idle connection";
        serve::REQUEST_TIMEOUT, "milliseconds", "for one answer to be made";
        serve::CONNECTION_TIMEOUT, "milliseconds", "a client that reads a byte at a time ends here";
        serve::STREAM_TIMEOUT, "milliseconds", "more for one whose answer goes on; whoever wants more asks again";
        stream::HEARTBEAT, "milliseconds", "between two empty lines of /flows: who went away is noticed";
        ask::SILENCE, "milliseconds", "without even an empty line, after which /flows is over for who listens";
        serve::MAX_HEADER_BYTES, "bytes", "a request's line and headers together";
        serve::MAX_HEADERS, "headers", "of one request";
        serve::ACCEPT_PAUSE, "milliseconds", "no spinning when descriptors run out";
        respond::MAX_BODY_BYTES, "bytes", "a log filter is the longest body there is";
        respond::SECTION_TIMEOUT, "milliseconds", "a part that hangs does not hold the rest of a dump";
    ]
}

/// Wraps an async closure as a [`Provider`].
pub fn provider<F, Fut>(read: F) -> Provider
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = serde_json::Value> + Send + 'static,
{
    Arc::new(move || Box::pin(read()))
}

/// Wraps an async closure as a [`Hook`].
pub fn hook<F, Fut>(act: F) -> Hook
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<String, String>> + Send + 'static,
{
    Arc::new(move || Box::pin(act()))
}
