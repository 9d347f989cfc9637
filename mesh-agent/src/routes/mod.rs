//! Which requests go where: Gateway API routes attached to Services (GAMMA, Gateway API v1.6.3), compiled once per
//! change into tables and asked once per request. Pure: no clock, no I/O, no Kubernetes types.
//!
//! ```text
//! discovery ─► Route (as it was read) ─► state::Engine ─► Table, per Service port and client namespace ─► http asks
//! ```

mod object;

pub use object::{
    Backend, BackendRef, Cookie, Cors, Filter, Fraction, HeaderChange, Match, Mirror, NameValue, Parent, PathMatch,
    PathRewrite, Redirect, Retry, Route, RouteKind, Rule, Rules, Session, Text, Timeouts, TlsRule, UrlRewrite,
};
