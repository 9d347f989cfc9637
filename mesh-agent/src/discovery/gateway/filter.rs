//! Filters of HTTPRoute and GRPCRoute.

use serde::Deserialize;
use serde_json::Value;

use super::BackendObjectReference;

/// What `backendRefs[].filters` holds.
pub type BackendFilters = Vec<Filter>;

/// One filter; the field that belongs to the type must be set, and no other.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Filter {
    /// Which of the fields below counts.
    #[serde(rename = "type")]
    pub filter_type: FilterType,
    /// For type RequestHeaderModifier.
    pub request_header_modifier: Option<HeaderFilter>,
    /// For type ResponseHeaderModifier.
    pub response_header_modifier: Option<HeaderFilter>,
    /// For type RequestMirror.
    pub request_mirror: Option<MirrorFilter>,
    /// For type RequestRedirect.
    pub request_redirect: Option<RedirectFilter>,
    /// For type URLRewrite.
    pub url_rewrite: Option<RewriteFilter>,
    /// For type CORS.
    pub cors: Option<Cors>,
    /// For type ExternalAuth, which is not supported.
    pub external_auth: Option<Value>,
    /// For type ExtensionRef, which is not supported.
    pub extension_ref: Option<Value>,
}

/// What a filter does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum FilterType {
    /// Changes headers of the request.
    RequestHeaderModifier,
    /// Changes headers of the response.
    ResponseHeaderModifier,
    /// Sends a copy.
    RequestMirror,
    /// Answers with a redirect.
    RequestRedirect,
    /// Changes host and path.
    #[serde(rename = "URLRewrite")]
    UrlRewrite,
    /// Cross-origin requests.
    #[serde(rename = "CORS")]
    Cors,
    /// Asks an authorization server (experimental). Not supported.
    ExternalAuth,
    /// Something of an implementation. There is none.
    ExtensionRef,
}

/// Changes of headers.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderFilter {
    /// Replaced.
    #[serde(default)]
    pub set: Vec<Header>,
    /// Added.
    #[serde(default)]
    pub add: Vec<Header>,
    /// Removed.
    #[serde(default)]
    pub remove: Vec<String>,
}

/// A header.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Header {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// RequestMirror.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MirrorFilter {
    /// Where to.
    pub backend_ref: BackendObjectReference,
    /// 0 to 100.
    pub percent: Option<i64>,
    /// Instead of percent.
    pub fraction: Option<FractionSpec>,
}

/// A share.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FractionSpec {
    /// So many.
    pub numerator: i64,
    /// Of so many. Absent: 100.
    pub denominator: Option<i64>,
}

/// RequestRedirect.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RedirectFilter {
    /// http or https.
    pub scheme: Option<String>,
    /// The host.
    pub hostname: Option<String>,
    /// The path.
    pub path: Option<PathModifier>,
    /// The port.
    pub port: Option<i64>,
    /// Absent: 302.
    pub status_code: Option<i64>,
}

/// URLRewrite.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RewriteFilter {
    /// The host.
    pub hostname: Option<String>,
    /// The path.
    pub path: Option<PathModifier>,
}

/// A change of the path.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PathModifier {
    /// Which of the fields below counts.
    #[serde(rename = "type")]
    pub modifier_type: PathModifierType,
    /// For type ReplaceFullPath.
    pub replace_full_path: Option<String>,
    /// For type ReplacePrefixMatch.
    pub replace_prefix_match: Option<String>,
}

/// How a path is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum PathModifierType {
    /// All of it.
    ReplaceFullPath,
    /// The prefix that matched.
    ReplacePrefixMatch,
}

/// CORS.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cors {
    /// Origins, or `*` alone.
    #[serde(default)]
    pub allow_origins: Vec<String>,
    /// Absent: false.
    #[serde(default)]
    pub allow_credentials: bool,
    /// Methods, or `*` alone.
    #[serde(default)]
    pub allow_methods: Vec<String>,
    /// Header names, or `*` alone.
    #[serde(default)]
    pub allow_headers: Vec<String>,
    /// Header names.
    #[serde(default)]
    pub expose_headers: Vec<String>,
    /// Seconds. Absent: 5.
    pub max_age: Option<i64>,
}
