//! Filters of HTTPRoute and GRPCRoute.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};

use super::http_match::{MAX_CONDITIONS, MAX_TEXT, header_name};
use super::route::{MAX_FILTERS, Notes, bounded, checked_port};
use super::{FieldPath, Problem};
use crate::discovery::gateway::{
    Cors, Filter, FilterType, Header, HeaderFilter, MirrorFilter, PathModifier, PathModifierType, RedirectFilter,
    RewriteFilter,
};
use crate::routes::{
    self, Fraction, HeaderChange, Match, Mirror, NameValue, PathMatch, PathRewrite, Redirect, RouteKind, UrlRewrite,
};

/// Origins, methods or headers of a CORS filter, each.
pub const MAX_CORS: usize = 64;
/// How long a client may keep the answer to a preflight, where the filter does not say; the API's default.
pub const CORS_MAX_AGE: Duration = Duration::from_secs(5);

/// Where filters stand.
pub(super) struct Place<'a> {
    pub(super) kind: RouteKind,
    /// The rule's.
    pub(super) matches: &'a [Match],
    /// Whether there are backends, so that a redirect has no place.
    pub(super) forwards: bool,
}

/// The filters of a rule or of a backend.
pub(super) fn filters(
    specs: &[Filter],
    place: &Place<'_>,
    path: &FieldPath,
    notes: &mut Notes<'_>,
) -> Result<Vec<routes::Filter>, Problem> {
    bounded(specs.len(), MAX_FILTERS, path)?;
    for (index, spec) in specs.iter().enumerate() {
        let path = path.index(index).key("type");
        let earlier = || specs.iter().take(index);
        let repeated = earlier().any(|other| other.filter_type == spec.filter_type);
        if repeated && spec.filter_type != FilterType::RequestMirror {
            return Err(Problem::new(path, format!("{:?} may come once only", spec.filter_type)));
        }
        let pair = |other: FilterType| earlier().any(|earlier| earlier.filter_type == other);
        match spec.filter_type {
            FilterType::RequestRedirect if pair(FilterType::UrlRewrite) => {
                return Err(Problem::new(path, "RequestRedirect does not go with URLRewrite"));
            }
            FilterType::UrlRewrite if pair(FilterType::RequestRedirect) => {
                return Err(Problem::new(path, "URLRewrite does not go with RequestRedirect"));
            }
            _ => {}
        }
    }
    specs.iter().enumerate().map(|(index, spec)| filter(spec, place, &path.index(index), notes)).collect()
}

fn filter(
    spec: &Filter,
    place: &Place<'_>,
    path: &FieldPath,
    notes: &mut Notes<'_>,
) -> Result<routes::Filter, Problem> {
    let Filter {
        filter_type,
        request_header_modifier,
        response_header_modifier,
        request_mirror,
        request_redirect,
        url_rewrite,
        cors,
        external_auth,
        extension_ref,
    } = spec;
    let given = [
        (FilterType::RequestHeaderModifier, "requestHeaderModifier", request_header_modifier.is_some()),
        (FilterType::ResponseHeaderModifier, "responseHeaderModifier", response_header_modifier.is_some()),
        (FilterType::RequestMirror, "requestMirror", request_mirror.is_some()),
        (FilterType::RequestRedirect, "requestRedirect", request_redirect.is_some()),
        (FilterType::UrlRewrite, "urlRewrite", url_rewrite.is_some()),
        (FilterType::Cors, "cors", cors.is_some()),
        (FilterType::ExternalAuth, "externalAuth", external_auth.is_some()),
        (FilterType::ExtensionRef, "extensionRef", extension_ref.is_some()),
    ];
    if let Some((_, field, _)) = given.iter().find(|(kind, _, is_set)| *is_set && kind != filter_type) {
        return Err(Problem::new(path.key(field), format!("does not go with type {filter_type:?}")));
    }
    let field = given.iter().find(|(kind, ..)| kind == filter_type).map(|(_, field, _)| *field).unwrap_or_default();
    let own = path.key(field);
    let missing = || Problem::new(own.clone(), "missing: the type needs it");
    let unsupported = || Problem::new(path.key("type"), format!("{filter_type:?} is not supported"));
    let http_only = || match place.kind {
        RouteKind::Http => Ok(()),
        RouteKind::Grpc | RouteKind::Tcp | RouteKind::Tls => {
            Err(Problem::new(path.key("type"), format!("{filter_type:?} does not go with a GRPCRoute")))
        }
    };
    match filter_type {
        FilterType::RequestHeaderModifier => {
            let spec = request_header_modifier.as_ref().ok_or_else(missing)?;
            header_change(spec, &own).map(routes::Filter::RequestHeaders)
        }
        FilterType::ResponseHeaderModifier => {
            let spec = response_header_modifier.as_ref().ok_or_else(missing)?;
            header_change(spec, &own).map(routes::Filter::ResponseHeaders)
        }
        FilterType::RequestMirror => {
            mirror(request_mirror.as_ref().ok_or_else(missing)?, &own, notes).map(routes::Filter::Mirror)
        }
        FilterType::RequestRedirect => {
            http_only()?;
            if place.forwards {
                return Err(Problem::new(own, "does not go with backendRefs"));
            }
            redirect(request_redirect.as_ref().ok_or_else(missing)?, place, &own).map(routes::Filter::Redirect)
        }
        FilterType::UrlRewrite => {
            http_only()?;
            rewrite(url_rewrite.as_ref().ok_or_else(missing)?, place, &own).map(routes::Filter::Rewrite)
        }
        FilterType::Cors => {
            http_only()?;
            read_cors(cors.as_ref().ok_or_else(missing)?, &own).map(routes::Filter::Cors)
        }
        FilterType::ExternalAuth | FilterType::ExtensionRef => Err(unsupported()),
    }
}

/// One action for a name, and no more.
fn header_change(spec: &HeaderFilter, path: &FieldPath) -> Result<HeaderChange, Problem> {
    let HeaderFilter { set, add, remove } = spec;
    let mut named: Vec<HeaderName> = Vec::new();
    let mut name = |name: &str, path: FieldPath| {
        let name = header_name(name, &path)?;
        if !routes::filters::is_changeable(&name) {
            return Err(Problem::new(path, format!("{name} is not a filter's to change")));
        }
        if named.contains(&name) {
            return Err(Problem::new(path, format!("{name} is named twice: one action for a header")));
        }
        named.push(name.clone());
        Ok(name)
    };
    let mut pairs = |list: &[Header], path: FieldPath| {
        bounded(list.len(), MAX_CONDITIONS, &path)?;
        let pairs = list.iter().enumerate().map(|(index, header)| {
            let path = path.index(index);
            let name = name(&header.name, path.key("name"))?;
            let value = HeaderValue::from_str(&header.value);
            let value = value.map_err(|_| Problem::new(path.key("value"), "not a value that a header can have"))?;
            Ok(NameValue { name, value })
        });
        pairs.collect::<Result<Vec<_>, Problem>>()
    };
    let (set, add) = (pairs(set, path.key("set"))?, pairs(add, path.key("add"))?);
    bounded(remove.len(), MAX_CONDITIONS, &path.key("remove"))?;
    let remove = remove.iter().enumerate().map(|(index, text)| name(text, path.key("remove").index(index)));
    let remove = remove.collect::<Result<_, _>>()?;
    Ok(HeaderChange { set, add, remove })
}

fn mirror(spec: &MirrorFilter, path: &FieldPath, notes: &mut Notes<'_>) -> Result<Mirror, Problem> {
    let MirrorFilter { backend_ref, percent, fraction } = spec;
    let share = match (percent, fraction) {
        (Some(_), Some(_)) => return Err(Problem::new(path.key("fraction"), "does not go with percent")),
        (None, None) => share(100, 100),
        (Some(percent), None) => share(*percent, 100)
            .ok_or(())
            .map(Some)
            .map_err(|()| Problem::new(path.key("percent"), "not within 0 to 100"))?,
        (None, Some(fraction)) => share(fraction.numerator, fraction.denominator.unwrap_or(100)),
    };
    let wrong = || Problem::new(path.key("fraction"), "numerator must be 0 or more, and at most the denominator");
    Ok(Mirror { backend: notes.target(backend_ref, &path.key("backendRef"))?, share: share.ok_or_else(wrong)? })
}

fn share(numerator: i64, denominator: i64) -> Option<Fraction> {
    let (numerator, denominator) = (u32::try_from(numerator).ok()?, u32::try_from(denominator).ok()?);
    (denominator > 0 && numerator <= denominator).then_some(Fraction { numerator, denominator })
}

fn redirect(spec: &RedirectFilter, place: &Place<'_>, path: &FieldPath) -> Result<Redirect, Problem> {
    let RedirectFilter { scheme, hostname, path: rewrite, port, status_code } = spec;
    let scheme = match scheme.as_deref() {
        None => None,
        Some(scheme @ ("http" | "https")) => Some(scheme.into()),
        Some(other) => return Err(Problem::new(path.key("scheme"), format!("{other:?} is neither http nor https"))),
    };
    let status = status_code.unwrap_or(302);
    let known = [301, 302, 303, 307, 308].contains(&status);
    let status = u16::try_from(status).ok().filter(|_| known).and_then(|status| StatusCode::from_u16(status).ok());
    Ok(Redirect {
        scheme,
        hostname: hostname.as_deref().map(|name| precise_hostname(name, &path.key("hostname"))).transpose()?,
        port: port.map(|port| checked_port(port, || path.key("port"))).transpose()?,
        path: rewrite.as_ref().map(|rewrite| path_rewrite(rewrite, place, &path.key("path"))).transpose()?,
        status: status.ok_or_else(|| Problem::new(path.key("statusCode"), "not one of 301, 302, 303, 307, 308"))?,
    })
}

fn rewrite(spec: &RewriteFilter, place: &Place<'_>, path: &FieldPath) -> Result<UrlRewrite, Problem> {
    let RewriteFilter { hostname, path: rewrite } = spec;
    Ok(UrlRewrite {
        hostname: hostname.as_deref().map(|name| precise_hostname(name, &path.key("hostname"))).transpose()?,
        path: rewrite.as_ref().map(|rewrite| path_rewrite(rewrite, place, &path.key("path"))).transpose()?,
    })
}

fn path_rewrite(spec: &PathModifier, place: &Place<'_>, path: &FieldPath) -> Result<PathRewrite, Problem> {
    let PathModifier { modifier_type, replace_full_path, replace_prefix_match } = spec;
    let (own, value, other) = match modifier_type {
        PathModifierType::ReplaceFullPath => ("replaceFullPath", replace_full_path, replace_prefix_match),
        PathModifierType::ReplacePrefixMatch => ("replacePrefixMatch", replace_prefix_match, replace_full_path),
    };
    if other.is_some() {
        return Err(Problem::new(path.clone(), format!("only {own} goes with type {modifier_type:?}")));
    }
    let path = path.key(own);
    let value = value.as_deref().ok_or_else(|| Problem::new(path.clone(), "missing: the type needs it"))?;
    bounded(value.len(), MAX_TEXT, &path)?;
    let by_prefix = *modifier_type == PathModifierType::ReplacePrefixMatch;
    // What would make another request of it, or none.
    let legal = |byte: u8| byte.is_ascii_graphic() && !b"?#".contains(&byte);
    let begins = value.starts_with('/') || (by_prefix && value.is_empty());
    if !value.bytes().all(legal) || !begins {
        return Err(Problem::new(path, format!("{value:?} is not a path")));
    }
    if !by_prefix {
        return Ok(PathRewrite::Full(value.into()));
    }
    match place.matches {
        [Match { path: Some(PathMatch::Prefix(_)), .. }] => Ok(PathRewrite::Prefix(value.into())),
        _ => Err(Problem::new(path, "needs exactly one match in its rule, with a path of type PathPrefix")),
    }
}

/// A host name without wildcard; RFC 1123.
fn precise_hostname(name: &str, path: &FieldPath) -> Result<Arc<str>, Problem> {
    match is_hostname(name) {
        true => Ok(name.into()),
        false => Err(Problem::new(path.clone(), format!("{name:?} is not a host name"))),
    }
}

/// Whether it is a host name by the API's grammar, which has no upper case; and no IPv4 address.
pub(super) fn is_hostname(name: &str) -> bool {
    let is_label = |label: &str| {
        let ends = |letter: Option<&u8>| letter.is_some_and(|letter| *letter != b'-');
        let bytes = label.as_bytes();
        let legal = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
        bytes.iter().all(legal) && ends(bytes.first()) && ends(bytes.last())
    };
    name.len() <= MAX_HOSTNAME && name.split('.').all(is_label) && name.parse::<std::net::IpAddr>().is_err()
}

/// Letters of a host name.
pub const MAX_HOSTNAME: usize = 253;

fn read_cors(spec: &Cors, path: &FieldPath) -> Result<routes::Cors, Problem> {
    let Cors { allow_origins, allow_credentials, allow_methods, allow_headers, expose_headers, max_age } = spec;
    let max_age = match max_age {
        None => CORS_MAX_AGE,
        Some(seconds) => {
            let seconds = u64::try_from(*seconds).ok().filter(|seconds| *seconds > 0);
            let seconds = seconds.ok_or_else(|| Problem::new(path.key("maxAge"), "not 1 or more"))?;
            Duration::from_secs(seconds)
        }
    };
    let is_method = |method: &str| method.parse::<http::Method>().is_ok();
    let is_header = |name: &str| name.parse::<HeaderName>().is_ok();
    Ok(routes::Cors {
        allow_origins: words(allow_origins, true, is_origin, &path.key("allowOrigins"))?,
        allow_credentials: *allow_credentials,
        allow_methods: words(allow_methods, true, is_method, &path.key("allowMethods"))?,
        allow_headers: words(allow_headers, true, is_header, &path.key("allowHeaders"))?,
        expose_headers: words(expose_headers, false, is_header, &path.key("exposeHeaders"))?,
        max_age,
    })
}

/// A list of words, or `*`: alone, where it must be.
fn words(list: &[String], alone: bool, is_word: fn(&str) -> bool, path: &FieldPath) -> Result<Vec<Arc<str>>, Problem> {
    bounded(list.len(), MAX_CORS, path)?;
    let words = list.iter().enumerate().map(|(index, word)| match word == "*" || is_word(word) {
        _ if word == "*" && alone && list.len() > 1 => Err(Problem::new(path.index(index), "* stands alone")),
        true => Ok(Arc::from(word.as_str())),
        false => Err(Problem::new(path.index(index), format!("{word:?} is not one"))),
    });
    words.collect()
}

/// `scheme://host[:port]`, the host with any number of `*`.
fn is_origin(origin: &str) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else { return false };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (authority, None),
    };
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-.*".contains(&byte);
    let port_is_one = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port != 0));
    ["http", "https"].contains(&scheme) && !host.is_empty() && host.bytes().all(legal) && port_is_one
}
