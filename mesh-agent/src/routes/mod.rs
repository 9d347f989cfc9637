//! Which requests go where: Gateway API routes attached to Services (GAMMA, Gateway API v1.6.3), compiled once per
//! change into tables and asked once per request. Pure: no clock, no I/O, no Kubernetes types.
//!
//! ```text
//! discovery ─► Route (as it was read) ─► state::Engine ─► Table, per Service port and client namespace ─► http asks
//! ```

//! For whoever asks:
//! - `state::Engine` calls `attached` for a Service port and a client's namespace, then `Table::compile`;
//! - `discovery` makes patterns by `anchored` and gRPC matches by `grpc::call`;
//! - `http` calls `Table::find` with a request's head.

mod attach;
#[cfg(any(test, feature = "fuzzing"))]
// The fuzz targets need few of the words that tests have.
#[cfg_attr(not(test), allow(dead_code))]
mod build;
mod chance;
mod compile;
mod connections;
mod facts;
pub mod filters;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod grpc;
mod hello;
pub mod limits;
mod object;
mod pattern;
#[cfg(any(test, feature = "fuzzing"))]
mod reference;
mod table;
mod values;

pub use attach::{Attached, Frontend, attached};
pub use chance::Seed;
pub use compile::CompiledRule;
pub use connections::{ConnectionRule, Connections, ServerNames};
pub use hello::ClientHello;
pub use object::{
    Backend, BackendRef, Call, Cookie, Cors, Filter, Fraction, HeaderChange, Match, Mirror, NameValue, Parent,
    PathMatch, PathRewrite, Redirect, Retry, Route, RouteKind, Rule, Rules, Session, Text, Timeouts, TlsRule,
    UrlRewrite,
};
pub use pattern::anchored;
pub use table::{Found, Head, Table};

#[cfg(test)]
mod tests;
