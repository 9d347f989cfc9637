//! Session persistence of a rule.

use super::duration::timeout;
use super::{FieldPath, Problem};
use crate::discovery::gateway::{LifetimeType, SessionPersistence, SessionType};
use crate::discovery::object::Key;
use crate::routes::{Cookie, Session};

/// Letters of a session's name.
pub const MAX_SESSION_NAME: usize = 128;

/// By default the session is named after the rule: two routes must not take each other's.
pub(super) fn session(spec: &SessionPersistence, key: &Key, rule: usize, path: &FieldPath) -> Result<Session, Problem> {
    let SessionPersistence { session_name, absolute_timeout, idle_timeout, session_type, cookie_config } = spec;
    if idle_timeout.is_some() {
        return Err(Problem::new(path.key("idleTimeout"), "not supported: the node keeps no record of sessions"));
    }
    let absolute_timeout = timeout(absolute_timeout.as_deref(), &path.key("absoluteTimeout"))?;
    let lifetime = cookie_config.clone().unwrap_or_default().lifetime_type;
    let cookie = match (session_type, lifetime) {
        (SessionType::Header, _) if cookie_config.is_some() => {
            return Err(Problem::new(path.key("cookieConfig"), "goes with type Cookie only"));
        }
        (SessionType::Header, _) => None,
        (SessionType::Cookie, LifetimeType::Permanent) if absolute_timeout.is_none() => {
            return Err(Problem::new(path.key("absoluteTimeout"), "missing: a permanent cookie needs it"));
        }
        (SessionType::Cookie, lifetime) => Some(Cookie { permanent: lifetime == LifetimeType::Permanent }),
    };
    let name = match session_name.as_deref().filter(|name| !name.is_empty()) {
        Some(name) => name.to_string(),
        None => format!("nodemesh-{}-{}-{rule}", key.namespace, key.name),
    };
    // What is one as a header and as a cookie: RFC 9110's token.
    if name.parse::<http::HeaderName>().is_err() || (session_name.is_some() && name.len() > MAX_SESSION_NAME) {
        return Err(Problem::new(path.key("sessionName"), format!("{name:?} is not the name of a cookie or header")));
    }
    Ok(Session { name: name.into(), cookie, absolute_timeout })
}
