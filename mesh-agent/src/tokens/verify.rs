//! Finding tokens in a request, and finding out whether they are good.

use std::borrow::Cow;
use std::sync::Arc;

use http::header::{COOKIE, HeaderMap, HeaderValue};
use http::uri::PathAndQuery;
use http::{Uri, request};
use jsonwebtoken::{Validation, decode, decode_header};
use serde_json::{Map, Value};

use super::limits::{MAX_TOKEN_BYTES, MAX_TOKENS};
use super::{Invalid, Issuer, KeySource, Keys, KeysUri, Output, Place, Token, Verified};
use crate::fields;

/// What a request's tokens are held against.
pub struct Asked<'a> {
    /// Who is believed.
    pub issuers: &'a [&'a Issuer],
    /// The keys that were fetched from an address, if they are in force.
    pub fetched: &'a dyn Fn(&KeysUri) -> Option<Keys>,
    /// What is remembered of tokens.
    pub verified: &'a Verified,
    /// Seconds since 1970.
    pub now: u64,
}

/// What a request was found to bring.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// What it says.
    pub token: Arc<Token>,
    /// The issuer's own number among those that were asked.
    issuer: usize,
}

/// Why a request is answered with 401.
#[derive(Clone, Debug, PartialEq)]
pub struct Refused {
    /// Why.
    pub why: Invalid,
    /// Where keys are that might change that.
    pub lacking: Option<KeysUri>,
}

impl From<Invalid> for Refused {
    fn from(why: Invalid) -> Self {
        Self { why, lacking: None }
    }
}

/// Looks for the tokens that a request brings, and finds out what they are worth. Nothing of the head is changed, so it
/// can be asked again when there are other keys.
pub fn find(asked: &Asked<'_>, head: &request::Parts) -> Result<Option<Found>, Refused> {
    let issuers = asked.issuers;
    // One text is checked once, however many issuers look at its place.
    let mut texts: Vec<Cow<'_, str>> = Vec::new();
    for text in issuers.iter().flat_map(|issuer| &issuer.places).flat_map(|place| tokens_at(place, head)) {
        if !texts.contains(&text) {
            texts.push(text);
        }
        if texts.len() > MAX_TOKENS {
            return Err(Invalid::Malformed.into());
        }
    }
    let mut found: Option<Found> = None;
    for text in texts {
        let looks_there = |issuer: &Issuer| issuer.places.iter().any(|place| tokens_at(place, head).contains(&text));
        let known = |name: &str| {
            let mut issuers = issuers.iter().enumerate();
            issuers.find(|(_, issuer)| *issuer.name == *name && looks_there(issuer))
        };
        let (number, token) = asked.token(&text, known)?;
        match &found {
            Some(other) if other.token.principal != token.principal => return Err(Invalid::Disagree.into()),
            Some(_) => {}
            None => found = Some(Found { token, issuer: number }),
        }
    }
    Ok(found)
}

/// Takes headers from the head that only the mesh may set, and sets them.
pub fn tell(issuers: &[&Issuer], head: &mut request::Parts, found: Option<&Found>) {
    for output in issuers.iter().flat_map(|issuer| &issuer.outputs) {
        fields::remove_alike(&mut head.headers, &output.header);
    }
    if let Some(found) = found
        && let Some(issuer) = issuers.get(found.issuer)
    {
        issuer.outputs.iter().for_each(|output| tell_one(output, &found.token, &mut head.headers));
    }
}

/// Takes tokens from the head that are not to be passed on.
pub fn strip(issuers: &[&Issuer], head: &mut request::Parts) {
    let places = issuers.iter().filter(|issuer| !issuer.forward).flat_map(|issuer| &issuer.places);
    places.for_each(|place| strip_one(place, head));
}

impl Asked<'_> {
    /// What one text says, and the number of its issuer.
    fn token<'i>(
        &self,
        text: &str,
        known: impl Fn(&str) -> Option<(usize, &'i &'i Issuer)>,
    ) -> Result<(usize, Arc<Token>), Refused> {
        if text.len() > MAX_TOKEN_BYTES {
            return Err(Invalid::Malformed.into());
        }
        let hash = Verified::hash(text);
        let mut remembered = None;
        let before = hash.as_ref().and_then(|hash| {
            self.verified.get(hash, |token, keys| {
                remembered = issuer_named(token).and_then(&known);
                remembered.and_then(|(_, issuer)| self.keys(issuer)).is_some_and(|in_force| in_force.is(keys))
            })
        });
        if let (Some(token), Some((number, issuer))) = (before, remembered) {
            issuer.check(&token, self.now)?;
            return Ok((number, token));
        }
        let (number, issuer) = known(&issuer_of(text)?).ok_or(Invalid::Issuer)?;
        let lacking = || match &issuer.keys {
            KeySource::Here(_) => None,
            KeySource::At(uri) => Some(uri.clone()),
        };
        let keys = self.keys(issuer).ok_or_else(|| Refused { why: Invalid::NoKeys, lacking: lacking() })?;
        let claims = signed(&keys, text).map_err(|why| match why {
            Invalid::Key => Refused { why, lacking: lacking() },
            why => why.into(),
        })?;
        let token = Arc::new(issuer.token(claims));
        issuer.check(&token, self.now)?;
        if let Some(hash) = hash {
            self.verified.remember(hash, &keys, &token);
        }
        Ok((number, token))
    }

    /// The keys of an issuer, if they are in force.
    fn keys(&self, issuer: &Issuer) -> Option<Keys> {
        match &issuer.keys {
            KeySource::Here(keys) => Some(keys.clone()),
            KeySource::At(uri) => (self.fetched)(uri),
        }
    }
}

fn issuer_named(token: &Token) -> Option<&str> {
    token.claims.get("iss").and_then(Value::as_str)
}

fn tokens_at<'a>(place: &Place, head: &'a request::Parts) -> Vec<Cow<'a, str>> {
    match place {
        Place::Header { name, prefix } => {
            let values = head.headers.get_all(name).iter();
            // What is no text may be meant as a token, and is none.
            let texts = values.filter_map(|value| value.to_str().map_or(Some(""), |value| after(value, prefix)));
            texts.map(|text| Cow::Borrowed(text.trim())).collect()
        }
        Place::Cookie(name) => {
            let lines = head.headers.get_all(COOKIE).iter().filter_map(|line| line.to_str().ok());
            let cookies = lines.flat_map(|line| line.split(';')).filter_map(|cookie| cookie.trim().split_once('='));
            cookies.filter(|(have, _)| have == name).map(|(_, value)| Cow::Borrowed(value.trim_matches('"'))).collect()
        }
        Place::Query(name) => {
            let query = head.uri.query().unwrap_or_default();
            form_urlencoded::parse(query.as_bytes()).filter(|(have, _)| have == name).map(|(_, value)| value).collect()
        }
    }
}

/// What stands behind a word, whatever its case (RFC 9110 11.1).
fn after<'a>(value: &'a str, prefix: &str) -> Option<&'a str> {
    let start = value.get(..prefix.len())?;
    if start.eq_ignore_ascii_case(prefix) { value.get(prefix.len()..) } else { None }
}

/// What it says of its issuer, which decides whose keys are tried and nothing else.
fn issuer_of(text: &str) -> Result<String, Invalid> {
    let claims: Map<String, Value> =
        jsonwebtoken::dangerous::insecure_decode_claims(text).map_err(|_| Invalid::Malformed)?;
    match claims.get("iss") {
        Some(Value::String(issuer)) => Ok(issuer.clone()),
        _ => Err(Invalid::Issuer),
    }
}

impl Issuer {
    /// What is said, for which a key vouches.
    fn token(&self, claims: Map<String, Value>) -> Token {
        let audiences = match claims.get("aud") {
            Some(Value::String(one)) => vec![one.clone()],
            Some(Value::Array(list)) => list.iter().filter_map(|one| one.as_str().map(str::to_string)).collect(),
            _ => Vec::new(),
        };
        let subject = claims.get("sub").and_then(Value::as_str);
        let principal = subject.map(|subject| format!("{}/{subject}", self.name)).unwrap_or_default();
        Token { principal, audiences, claims }
    }

    /// Checks what it says: whose it is, for whom, and when.
    fn check(&self, token: &Token, now: u64) -> Result<(), Invalid> {
        let claims = &token.claims;
        if issuer_named(token) != Some(&*self.name) {
            return Err(Invalid::Issuer);
        }
        // RFC 7519 2: seconds, perhaps with a fraction.
        let time = |name: &str| claims.get(name).and_then(Value::as_f64);
        let (now, skew) = (now as f64, self.skew as f64);
        if time("exp").is_none_or(|end| now >= end + skew) {
            return Err(Invalid::Expired);
        }
        if claims.contains_key("nbf") && time("nbf").is_none_or(|begin| now + skew < begin) {
            return Err(Invalid::NotYet);
        }
        if !self.audiences.is_empty() && !token.audiences.iter().any(|audience| self.audiences.contains(audience)) {
            return Err(Invalid::Audience);
        }
        Ok(())
    }
}

/// What one of the keys vouches for.
fn signed(keys: &Keys, text: &str) -> Result<Map<String, Value>, Invalid> {
    let header = decode_header(text).map_err(|_| Invalid::Malformed)?;
    // RFC 7515 4.1.11: what must be understood, and is not.
    if header.crit.is_some() {
        return Err(Invalid::Malformed);
    }
    let named = |id: &Option<String>| id.is_none() || header.kid.is_none() || *id == header.kid;
    let mut why = Invalid::Key;
    for key in keys.all().iter().filter(|key| named(&key.id)) {
        if !key.algorithms.contains(&header.alg) {
            why = Invalid::Algorithm;
            continue;
        }
        let mut validation = Validation::new(header.alg);
        // What a token claims is looked at by `check`, with the time that was handed in.
        (validation.validate_exp, validation.validate_nbf, validation.validate_aud) = (false, false, false);
        validation.required_spec_claims.clear();
        match decode::<Map<String, Value>>(text, &key.key, &validation) {
            Ok(data) => return Ok(data.claims),
            Err(_) => why = Invalid::Signature,
        }
    }
    Err(why)
}

/// Takes a token out, so that the application never sees it.
fn strip_one(place: &Place, head: &mut request::Parts) {
    match place {
        Place::Header { name, prefix } => {
            let is_token = |value: &HeaderValue| value.to_str().is_ok_and(|value| after(value, prefix).is_some());
            let values: Vec<HeaderValue> = head.headers.get_all(name).iter().cloned().collect();
            if values.iter().any(is_token) {
                head.headers.remove(name);
                values.into_iter().filter(|value| !is_token(value)).for_each(|value| {
                    head.headers.append(name.clone(), value);
                });
            }
        }
        Place::Cookie(name) => {
            let lines: Vec<HeaderValue> = head.headers.get_all(COOKIE).iter().cloned().collect();
            head.headers.remove(COOKIE);
            for line in lines {
                let Ok(text) = line.to_str() else { continue };
                let is_other = |cookie: &&str| cookie.split_once('=').is_none_or(|(have, _)| have != name);
                let rest: Vec<&str> = text.split(';').map(str::trim).filter(is_other).collect();
                if let Ok(rest) = HeaderValue::try_from(rest.join("; "))
                    && !rest.is_empty()
                {
                    head.headers.append(COOKIE, rest);
                }
            }
        }
        Place::Query(name) => {
            let Some(query) = head.uri.query() else { return };
            let is_other = |part: &&str| {
                let mut pairs = form_urlencoded::parse(part.as_bytes());
                pairs.next().is_none_or(|(have, _)| have != *name)
            };
            // The others stay as they were written.
            let rest: Vec<&str> = query.split('&').filter(is_other).collect();
            let path = head.uri.path();
            let target = if rest.is_empty() { path.to_string() } else { format!("{path}?{}", rest.join("&")) };
            if let Ok(target) = PathAndQuery::try_from(target) {
                head.uri = Uri::from(target);
            }
        }
    }
}

fn tell_one(output: &Output, token: &Token, headers: &mut HeaderMap) {
    let Some((first, within)) = output.claim.split_first() else { return };
    let found = token.claims.get(first);
    let found = within.iter().fold(found, |value, name| value.and_then(|value| value.get(name)));
    let word = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    };
    let text = match found {
        Some(Value::Array(list)) => Some(list.iter().filter_map(word).collect::<Vec<_>>().join(",")),
        Some(value) => word(value),
        None => None,
    };
    if let Some(value) = text.and_then(|text| HeaderValue::try_from(text).ok()) {
        headers.insert(output.header.clone(), value);
    }
}
