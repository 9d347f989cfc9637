//! ExternalAuthorizer.

use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};

use super::super::duration::duration;
use super::{FieldPath, MESH_NAMESPACE, Problem, checked_port, plain_name};
use crate::discovery::crd;
use crate::discovery::object::Key;
use crate::policy::{Authorizer, BodyInCheck, CheckProtocol, HttpCheck, Provider};
use crate::routes::filters::is_changeable;

/// How long an answer may take where nothing is said: two round trips and some work, with room for a slow day.
pub const CHECK_TIMEOUT: Duration = Duration::from_millis(500);
/// The most that may be said: every request waits so long when the authorizer hangs.
pub const MAX_CHECK_TIMEOUT: Duration = Duration::from_secs(10);
/// The most of a body that may be asked for, in bytes: so much of each request is held.
pub const MAX_CHECK_BODY: u32 = 1 << 20;

/// Checks what the type cannot say, and fills the defaults in.
pub fn external_authorizer(object: &crd::ExternalAuthorizer, key: &Key) -> Result<Authorizer, Problem> {
    let spec = FieldPath::of("spec");
    let crd::ExternalAuthorizerSpec { service, timeout, fail_open, status_on_error, .. } = &object.spec;
    let crd::AuthorizerService { name, namespace, port } = service;
    let path = spec.key("service");
    let namespace = namespace.as_deref().unwrap_or(&key.namespace);
    let timeout = match timeout {
        None => CHECK_TIMEOUT,
        Some(text) => checked_timeout(text, &spec.key("timeout"))?,
    };
    Ok(Authorizer {
        id: key.object().into(),
        service: (plain_name(namespace, &path.key("namespace"))?.into(), plain_name(name, &path.key("name"))?.into()),
        port: checked_port(*port, &path.key("port"))?,
        protocol: protocol(&object.spec, &spec)?,
        timeout,
        fail_open: *fail_open,
        status_on_error: status(status_on_error.unwrap_or(403), &spec.key("statusOnError"))?,
        body: body(object.spec.include_request_body_in_check.as_ref(), &spec)?,
    })
}

/// Who is named by a policy.
pub fn provider(provider: &crd::PolicyProvider, key: &Key, path: &FieldPath) -> Result<Provider, Problem> {
    let name = plain_name(&provider.name, &path.key("name"))?;
    let mut places = vec![(key.namespace.as_str().into(), name.into())];
    if key.namespace != MESH_NAMESPACE {
        places.push((MESH_NAMESPACE.into(), name.into()));
    }
    Ok(Provider { places })
}

fn checked_timeout(text: &str, path: &FieldPath) -> Result<Duration, Problem> {
    let timeout = duration(text, path)?;
    if timeout.is_zero() || timeout > MAX_CHECK_TIMEOUT {
        return Err(Problem::new(path.clone(), format!("{text}: 1ms to {}s", MAX_CHECK_TIMEOUT.as_secs())));
    }
    Ok(timeout)
}

fn status(number: u16, path: &FieldPath) -> Result<StatusCode, Problem> {
    let status = StatusCode::from_u16(number).ok().filter(|status| (400..600).contains(&status.as_u16()));
    status.ok_or_else(|| Problem::new(path.clone(), format!("{number}: 400 to 599")))
}

fn body(body: Option<&crd::AuthorizerBody>, spec: &FieldPath) -> Result<Option<BodyInCheck>, Problem> {
    let Some(crd::AuthorizerBody { max_request_bytes, allow_partial_message }) = body else { return Ok(None) };
    if !(1..=MAX_CHECK_BODY).contains(max_request_bytes) {
        let path = spec.key("includeRequestBodyInCheck").key("maxRequestBytes");
        return Err(Problem::new(path, format!("{max_request_bytes}: 1 to {MAX_CHECK_BODY}")));
    }
    let most = usize::try_from(*max_request_bytes).unwrap_or(usize::MAX);
    Ok(Some(BodyInCheck { most, allow_partial: *allow_partial_message }))
}

fn protocol(object: &crd::ExternalAuthorizerSpec, spec: &FieldPath) -> Result<CheckProtocol, Problem> {
    let crd::ExternalAuthorizerSpec {
        protocol,
        path_prefix,
        include_request_headers_in_check: shown,
        include_additional_headers_in_check: added,
        headers_to_upstream_on_allow: to_application,
        headers_to_downstream_on_deny: to_caller,
        ..
    } = object;
    if *protocol == crd::AuthorizerProtocol::Grpc {
        let of_http = [
            ("pathPrefix", path_prefix.is_some()),
            ("includeRequestHeadersInCheck", !shown.is_empty()),
            ("includeAdditionalHeadersInCheck", !added.is_empty()),
            ("headersToUpstreamOnAllow", !to_application.is_empty()),
            ("headersToDownstreamOnDeny", to_caller.is_some()),
        ];
        return match of_http.into_iter().find(|(_, is_set)| *is_set) {
            Some((field, _)) => Err(Problem::new(spec.key(field), "goes with protocol HTTP only")),
            None => Ok(CheckProtocol::Grpc),
        };
    }
    let names = |list: &[String], field: &str| {
        let path = spec.key(field);
        let names = list.iter().enumerate().map(|(index, name)| header_name(name, &path.index(index)));
        names.collect::<Result<Vec<_>, _>>()
    };
    let path = spec.key("includeAdditionalHeadersInCheck");
    let added = added.iter().enumerate().map(|(index, crd::AuthorizerHeader { name, value })| {
        let path = path.index(index);
        let parsed = HeaderValue::try_from(value.as_str());
        let wrong = |_| Problem::new(path.key("value"), format!("{value:?} is no value of a header"));
        Ok((header_name(name, &path.key("name"))?, parsed.map_err(wrong)?))
    });
    Ok(CheckProtocol::Http(HttpCheck {
        path_prefix: prefix(path_prefix.as_deref(), &spec.key("pathPrefix"))?,
        shown: names(shown, "includeRequestHeadersInCheck")?,
        added: added.collect::<Result<_, Problem>>()?,
        to_application: names(to_application, "headersToUpstreamOnAllow")?,
        to_caller: match to_caller {
            Some(list) => Some(names(list, "headersToDownstreamOnDeny")?),
            None => None,
        },
    }))
}

/// A path that another can follow.
fn prefix(text: Option<&str>, path: &FieldPath) -> Result<String, Problem> {
    let text = text.unwrap_or_default();
    let is_plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte));
    if !text.is_empty() && (!text.starts_with('/') || !is_plain || text.contains("/..")) {
        return Err(Problem::new(path.clone(), format!("{text:?} is no path such as /check")));
    }
    Ok(text.trim_end_matches('/').to_string())
}

/// A header that does not say where a message ends.
fn header_name(text: &str, path: &FieldPath) -> Result<HeaderName, Problem> {
    let name = HeaderName::try_from(text).ok().filter(is_changeable);
    name.ok_or_else(|| Problem::new(path.clone(), format!("{text:?} is no header that can be passed on")))
}
