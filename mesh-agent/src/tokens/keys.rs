//! The keys of an issuer (JWK Set, RFC 7517).

use std::fmt;
use std::sync::Arc;

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::{Serialize, Serializer};

use super::KeysUri;
use super::limits::MAX_KEYS;

/// Where the keys of an issuer are.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum KeySource {
    /// In the object.
    Here(Keys),
    /// To be fetched.
    At(KeysUri),
}

/// Public keys, each with what it may sign by.
#[derive(Clone)]
pub struct Keys {
    /// As they were given: what tells two sets apart.
    text: Arc<str>,
    keys: Arc<[Key]>,
}

/// One key.
pub(super) struct Key {
    pub(super) id: Option<String>,
    pub(super) algorithms: Vec<Algorithm>,
    pub(super) key: DecodingKey,
}

/// Why a text is no set of keys.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeysError {
    /// No JSON, or not of that form.
    #[error("no JWK Set (RFC 7517): {0}")]
    Form(String),
    /// A secret in a policy would be everybody's.
    #[error("a symmetric key: whoever can read the policy could sign by it")]
    Symmetric,
    /// None of them can check a signature.
    #[error("no key in it checks signatures by an algorithm that is known")]
    None,
    /// More than anybody rotates.
    #[error("more than {MAX_KEYS} keys")]
    TooMany,
}

impl Keys {
    /// Reads a set. Keys of types that are not known are left out, as RFC 7517, section 5 has it.
    pub fn parse(text: &str) -> Result<Self, KeysError> {
        let set: JwkSet = serde_json::from_str(text).map_err(|error| KeysError::Form(error.to_string()))?;
        if set.keys.len() > MAX_KEYS {
            return Err(KeysError::TooMany);
        }
        if set.keys.iter().any(|key| matches!(key.algorithm, AlgorithmParameters::OctetKey(_))) {
            return Err(KeysError::Symmetric);
        }
        let keys: Vec<Key> = set.keys.iter().filter_map(read).collect();
        if keys.is_empty() {
            return Err(KeysError::None);
        }
        Ok(Self { text: text.into(), keys: keys.into() })
    }

    /// Whether these are the very same, not just alike.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.keys, &other.keys)
    }

    /// What tells these keys from others that are alike.
    #[cfg(test)]
    pub(crate) fn identity(&self) -> *const () {
        Arc::as_ptr(&self.keys).cast()
    }

    pub(super) fn all(&self) -> &[Key] {
        &self.keys
    }
}

fn read(jwk: &Jwk) -> Option<Key> {
    let is_for_signatures = matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature));
    let of_its_type: &[Algorithm] = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => &[
            Algorithm::RS256,
            Algorithm::RS384,
            Algorithm::RS512,
            Algorithm::PS256,
            Algorithm::PS384,
            Algorithm::PS512,
        ],
        AlgorithmParameters::EllipticCurve(key) => match key.curve {
            EllipticCurve::P256 => &[Algorithm::ES256],
            EllipticCurve::P384 => &[Algorithm::ES384],
            _ => &[],
        },
        AlgorithmParameters::OctetKeyPair(_) => &[Algorithm::EdDSA],
        _ => &[],
    };
    let algorithms: Vec<Algorithm> = match jwk.common.key_algorithm {
        None => of_its_type.to_vec(),
        Some(named) => of_its_type.iter().copied().filter(|one| Some(*one) == algorithm(named)).collect(),
    };
    if !is_for_signatures || algorithms.is_empty() {
        return None;
    }
    Some(Key { id: jwk.common.key_id.clone(), algorithms, key: DecodingKey::from_jwk(jwk).ok()? })
}

fn algorithm(named: KeyAlgorithm) -> Option<Algorithm> {
    match named {
        KeyAlgorithm::RS256 => Some(Algorithm::RS256),
        KeyAlgorithm::RS384 => Some(Algorithm::RS384),
        KeyAlgorithm::RS512 => Some(Algorithm::RS512),
        KeyAlgorithm::PS256 => Some(Algorithm::PS256),
        KeyAlgorithm::PS384 => Some(Algorithm::PS384),
        KeyAlgorithm::PS512 => Some(Algorithm::PS512),
        KeyAlgorithm::ES256 => Some(Algorithm::ES256),
        KeyAlgorithm::ES384 => Some(Algorithm::ES384),
        KeyAlgorithm::EdDSA => Some(Algorithm::EdDSA),
        _ => None,
    }
}

impl PartialEq for Keys {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.keys.iter().map(|key| (&key.id, &key.algorithms))).finish()
    }
}

impl Serialize for Keys {
    /// Their names and algorithms: what is asked when a token is refused.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.keys.iter().map(|key| format!("{:?} {:?}", key.id, key.algorithms)))
    }
}
