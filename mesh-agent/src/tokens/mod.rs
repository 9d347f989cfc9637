//! Tokens that requests bring: JSON Web Tokens (RFC 7519), checked against keys that an operator gave. Pure: the time is
//! handed in, and nothing is fetched.
//!
//! | a request | is |
//! |---|---|
//! | with no token in the places that are looked at | without a principal; whether that is enough is policy's to say |
//! | with one that its issuer's keys vouch for, for an audience that is asked for, in its time | its principal's |
//! | with any other, or with two of different principals | refused with 401 |
//!
//! Keys are in the object, or fetched by somebody else and handed in; a token whose issuer's keys are not there is refused.
//!
//! What may sign is the key's to say, never the token's: a key has the algorithms of its type or the one that it names;
//! `none` is of no key, and symmetric keys are refused when they are read.

mod cache;
mod keys;
pub mod limits;
mod uri;
mod verify;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use http::header::HeaderName;
use serde::Serialize;

pub use cache::Verified;
pub use keys::{KeySource, Keys, KeysError};
pub use uri::{KeysUri, KeysUriError};
pub use verify::{Asked, Found, Refused, find, strip, tell};

/// Who issues tokens, and what becomes of them.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Issuer {
    /// What `iss` says, exactly.
    pub name: Arc<str>,
    /// One of these must be in `aud`; empty: whatever it says.
    pub audiences: Vec<String>,
    /// Who may sign.
    pub keys: KeySource,
    /// Where tokens of this issuer are looked for.
    pub places: Vec<Place>,
    /// How far the issuer's clock may be off, in seconds.
    pub skew: u64,
    /// Whether the application gets the token too.
    pub forward: bool,
    /// What of it the application is told in headers.
    pub outputs: Vec<Output>,
}

/// Where a token is looked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Place {
    /// In a header, behind a word such as `Bearer `, whose case does not matter.
    Header {
        /// The header.
        #[serde(serialize_with = "as_text")]
        name: HeaderName,
        /// What stands before it.
        prefix: String,
    },
    /// In a cookie of this name.
    Cookie(String),
    /// In a parameter of the query.
    Query(String),
}

/// One claim that is told in a header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Output {
    /// The header; what a caller says in it is removed, with or without a token.
    #[serde(serialize_with = "as_text")]
    pub header: HeaderName,
    /// The claim, and the names within it.
    pub claim: Vec<String>,
}

fn as_text<S: serde::Serializer>(name: &HeaderName, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(name.as_str())
}

/// What a token says that was found valid.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Token {
    /// `<issuer>/<subject>`; empty where it names no subject.
    pub principal: String,
    /// For whom it was issued.
    pub audiences: Vec<String>,
    /// All it says.
    pub claims: serde_json::Map<String, serde_json::Value>,
}

/// Why a token is refused. The words are metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalid {
    /// No token at all, or too large.
    Malformed,
    /// Signed in a way that no key of the issuer's has.
    Algorithm,
    /// It names a key that the issuer does not have.
    Key,
    /// The issuer's keys have not been had, or not for too long.
    NoKeys,
    /// No key vouches for it.
    Signature,
    /// It names no end, or has ended.
    Expired,
    /// Its time has not come.
    NotYet,
    /// Nobody is known who could have issued it.
    Issuer,
    /// It was issued for somebody else.
    Audience,
    /// Two tokens of different principals in one request.
    Disagree,
}

impl Invalid {
    /// The stable label for metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            Invalid::Malformed => "token-malformed",
            Invalid::Algorithm => "token-algorithm",
            Invalid::Key => "token-key",
            Invalid::NoKeys => "token-no-keys",
            Invalid::Signature => "token-signature",
            Invalid::Expired => "token-expired",
            Invalid::NotYet => "token-not-yet",
            Invalid::Issuer => "token-issuer",
            Invalid::Audience => "token-audience",
            Invalid::Disagree => "tokens-disagree",
        }
    }
}
