//! RequestAuthentication.

use std::collections::BTreeSet;

use http::HeaderName;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, COOKIE, HOST, TRANSFER_ENCODING};

use super::{FieldPath, Problem, checked_port, meta, not_empty, targets};
use crate::discovery::crd;
use crate::discovery::object::Key;
use crate::policy::RequestAuthentication;
use crate::state::Item;
use crate::tokens::limits::{CLOCK_SKEW_SECONDS, MAX_CLOCK_SKEW_SECONDS};
use crate::tokens::{Issuer, KeySource, Keys, KeysUri, Output, Place};

/// Checks what the type cannot say, and reads the keys.
pub fn request_authentication(object: &crd::RequestAuthentication, key: &Key) -> Result<Item, Problem> {
    let crd::RequestAuthenticationSpec { target_refs, ports, jwt_rules } = &object.spec;
    let path = FieldPath::of("spec.ports");
    let ports = not_empty(ports.as_deref(), &path)?.unwrap_or_default().iter().enumerate();
    let ports: BTreeSet<u16> =
        ports.map(|(index, port)| checked_port(*port, &path.index(index))).collect::<Result<_, _>>()?;
    let path = FieldPath::of("spec.jwtRules");
    let rules = not_empty(Some(jwt_rules), &path)?.unwrap_or_default();
    let mut issuers: Vec<Issuer> = Vec::new();
    for (index, rule) in rules.iter().enumerate() {
        let path = path.index(index);
        let issuer = issuer(rule, &path)?;
        if issuers.iter().any(|other| other.name == issuer.name) {
            return Err(Problem::new(path.key("issuer"), "this issuer has a rule already"));
        }
        issuers.push(issuer);
    }
    let meta = meta(key, &object.metadata);
    Ok(Item::RequestAuthentication(
        RequestAuthentication { meta, targets: targets(target_refs, key)?, ports, issuers }.into(),
    ))
}

fn issuer(rule: &crd::JwtRule, path: &FieldPath) -> Result<Issuer, Problem> {
    let crd::JwtRule {
        issuer,
        audiences,
        jwks,
        jwks_uri,
        from_headers,
        from_cookies,
        from_params,
        forward_original_token,
        output_claim_to_headers,
        clock_skew_seconds,
    } = rule;
    if issuer.is_empty() {
        return Err(Problem::new(path.key("issuer"), "empty: what `iss` says"));
    }
    let skew = clock_skew_seconds.unwrap_or(CLOCK_SKEW_SECONDS);
    if skew > MAX_CLOCK_SKEW_SECONDS {
        return Err(Problem::new(path.key("clockSkewSeconds"), format!("more than {MAX_CLOCK_SKEW_SECONDS}")));
    }
    let mut places = Vec::new();
    let headers = path.key("fromHeaders");
    for (index, header) in not_empty(from_headers.as_deref(), &headers)?.unwrap_or_default().iter().enumerate() {
        let name = header_name(&header.name, &headers.index(index).key("name"))?;
        places.push(Place::Header { name, prefix: header.prefix.clone().unwrap_or_default() });
    }
    for name in named(from_cookies, &path.key("fromCookies"))? {
        places.push(Place::Cookie(name));
    }
    for name in named(from_params, &path.key("fromParams"))? {
        places.push(Place::Query(name));
    }
    if places.is_empty() {
        places.push(Place::Header { name: AUTHORIZATION, prefix: "Bearer ".to_string() });
    }
    let told = path.key("outputClaimToHeaders");
    let outputs = not_empty(output_claim_to_headers.as_deref(), &told)?.unwrap_or_default().iter().enumerate();
    let outputs = outputs.map(|(index, output)| {
        let path = told.index(index);
        let claim: Vec<String> = output.claim.split('.').map(str::to_string).collect();
        if claim.iter().any(String::is_empty) {
            return Err(Problem::new(path.key("claim"), format!("{:?} is no claim", output.claim)));
        }
        Ok(Output { header: header_name(&output.header, &path.key("header"))?, claim })
    });
    Ok(Issuer {
        name: issuer.as_str().into(),
        audiences: named(audiences, &path.key("audiences"))?,
        keys: keys(jwks.as_deref(), jwks_uri.as_deref(), path)?,
        places,
        skew,
        forward: *forward_original_token,
        outputs: outputs.collect::<Result<_, _>>()?,
    })
}

/// In the object or elsewhere, and not both: which of them held would be a guess.
fn keys(jwks: Option<&str>, uri: Option<&str>, path: &FieldPath) -> Result<KeySource, Problem> {
    match (jwks, uri) {
        (Some(jwks), None) => {
            let keys = Keys::parse(jwks).map_err(|error| Problem::new(path.key("jwks"), error.to_string()))?;
            Ok(KeySource::Here(keys))
        }
        (None, Some(uri)) => {
            let uri = KeysUri::parse(uri).map_err(|error| Problem::new(path.key("jwksUri"), error.to_string()))?;
            Ok(KeySource::At(uri))
        }
        (Some(_), Some(_)) => Err(Problem::new(path.key("jwksUri"), "does not go with jwks")),
        (None, None) => Err(Problem::new(path.key("jwks"), "missing: neither jwks nor jwksUri is set")),
    }
}

/// Texts that are there.
fn named(texts: &Option<Vec<String>>, path: &FieldPath) -> Result<Vec<String>, Problem> {
    let texts = not_empty(texts.as_deref(), path)?.unwrap_or_default();
    match texts.iter().position(String::is_empty) {
        Some(index) => Err(Problem::new(path.index(index), "empty")),
        None => Ok(texts.to_vec()),
    }
}

/// A header that may be taken out and set without changing what the message is.
fn header_name(text: &str, path: &FieldPath) -> Result<HeaderName, Problem> {
    let name = HeaderName::try_from(text).map_err(|_| Problem::new(path.clone(), format!("{text:?} is no header")))?;
    if [HOST, CONTENT_LENGTH, TRANSFER_ENCODING, COOKIE].contains(&name) {
        return Err(Problem::new(path.clone(), format!("{name} is not for this; cookies have fromCookies")));
    }
    Ok(name)
}
