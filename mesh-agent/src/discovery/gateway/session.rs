//! Session persistence (GEP-1619, experimental).

use serde::Deserialize;

/// Of a rule of an HTTPRoute or a GRPCRoute.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SessionPersistence {
    /// The name of the cookie or header.
    pub session_name: Option<String>,
    /// A GEP-2257 duration.
    pub absolute_timeout: Option<String>,
    /// A GEP-2257 duration.
    pub idle_timeout: Option<String>,
    /// By what a session is known.
    #[serde(rename = "type", default)]
    pub session_type: SessionType,
    /// For type Cookie.
    pub cookie_config: Option<CookieConfig>,
}

/// By what a session is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum SessionType {
    /// A cookie.
    #[default]
    Cookie,
    /// A header.
    Header,
}

/// The cookie.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CookieConfig {
    /// How long it lasts.
    #[serde(default)]
    pub lifetime_type: LifetimeType,
}

/// How long a cookie lasts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum LifetimeType {
    /// Until `absoluteTimeout`.
    Permanent,
    /// As long as the client's session.
    #[default]
    Session,
}
