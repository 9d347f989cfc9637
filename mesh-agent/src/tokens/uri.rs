//! Where keys are fetched from.

use std::fmt;
use std::sync::Arc;

use http::Uri;
use http::uri::Scheme;
use serde::{Serialize, Serializer};

/// The port of a scheme, where none is named.
const HTTP_PORT: u16 = 80;
const HTTPS_PORT: u16 = 443;

/// The address of a JWK Set. Two are equal when they are written alike.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeysUri {
    text: Arc<str>,
    is_encrypted: bool,
    host: Arc<str>,
    port: u16,
    target: Arc<str>,
}

/// Why a text is no address of keys.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeysUriError {
    /// Not a URI, or one without a host.
    #[error("not an address such as https://issuer.example/.well-known/jwks.json")]
    Form,
    /// Neither https nor http.
    #[error("the scheme is neither https nor http")]
    Scheme,
    /// It would be written into logs.
    #[error("a name and a password do not belong there")]
    UserInfo,
}

impl KeysUri {
    /// Reads an address.
    pub fn parse(text: &str) -> Result<Self, KeysUriError> {
        let uri: Uri = text.parse().map_err(|_| KeysUriError::Form)?;
        let authority = uri.authority().ok_or(KeysUriError::Form)?;
        let is_encrypted = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            Some(scheme) if *scheme == Scheme::HTTP => false,
            Some(_) => return Err(KeysUriError::Scheme),
            None => return Err(KeysUriError::Form),
        };
        if authority.as_str().contains('@') {
            return Err(KeysUriError::UserInfo);
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').trim_end_matches('.');
        // What stands behind the host and is no port is no address.
        let names_port = authority.as_str().rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'));
        if host.is_empty() || names_port && authority.port_u16().is_none_or(|port| port == 0) {
            return Err(KeysUriError::Form);
        }
        Ok(Self {
            text: text.into(),
            is_encrypted,
            host: host.to_ascii_lowercase().into(),
            port: authority.port_u16().unwrap_or(if is_encrypted { HTTPS_PORT } else { HTTP_PORT }),
            target: uri.path_and_query().map_or("/", |target| target.as_str()).into(),
        })
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it is https.
    pub fn is_encrypted(&self) -> bool {
        self.is_encrypted
    }

    /// A name in lower case, or an IP address without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, that of the scheme where none is named.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Path and query.
    pub fn target(&self) -> &str {
        &self.target
    }
}

impl fmt::Debug for KeysUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for KeysUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for KeysUri {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_keys() {
        let ends = |text: &str| {
            let uri = KeysUri::parse(text)?;
            Ok((uri.is_encrypted(), uri.host().to_string(), uri.port(), uri.target().to_string()))
        };
        let is = |is_encrypted, host: &str, port, target: &str| {
            Ok((is_encrypted, host.to_string(), port, target.to_string()))
        };
        for (text, expected) in [
            ("https://Issuer.example/keys?v=1", is(true, "issuer.example", 443, "/keys?v=1")),
            ("https://issuer.example", is(true, "issuer.example", 443, "/")),
            ("https://issuer.example.:8443/k", is(true, "issuer.example", 8443, "/k")),
            ("http://keys.auth.svc/k", is(false, "keys.auth.svc", 80, "/k")),
            ("https://[fd00::1]:8443/k", is(true, "fd00::1", 8443, "/k")),
            ("https://[fd00::1]/k", is(true, "fd00::1", 443, "/k")),
            ("https://me:secret@issuer.example/k", Err(KeysUriError::UserInfo)),
            ("ftp://issuer.example/k", Err(KeysUriError::Scheme)),
            ("file:///etc/keys", Err(KeysUriError::Form)),
            ("/keys", Err(KeysUriError::Form)),
            ("issuer.example", Err(KeysUriError::Form)),
            ("https://issuer.example:0/k", Err(KeysUriError::Form)),
            ("https://issuer.example:99999/k", Err(KeysUriError::Form)),
            ("https:///k", Err(KeysUriError::Form)),
            ("", Err(KeysUriError::Form)),
        ] {
            assert_eq!(ends(text), expected, "{text}");
        }
    }
}
