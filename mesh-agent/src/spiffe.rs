//! SPIFFE ids of the form `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
//!
//! The grammar is strict: what parses here is a name that Kubernetes could have given, so nothing downstream has to ask
//! again. There is no percent decoding and no case folding; an id that would need either is refused.

use std::fmt;
use std::sync::Arc;

/// Longest id that is read, in bytes: the bound of the SPIFFE standard.
pub const MAX_ID_BYTES: usize = 2048;
/// Longest trust domain, in bytes: the bound of the SPIFFE standard.
const MAX_TRUST_DOMAIN_BYTES: usize = 255;
/// Longest namespace, in bytes: a DNS label.
const MAX_NAMESPACE_BYTES: usize = 63;
/// Longest service account, in bytes: a DNS subdomain.
const MAX_SERVICE_ACCOUNT_BYTES: usize = 253;

const SCHEME: &str = "spiffe://";
const NAMESPACE: &str = "/ns/";
const SERVICE_ACCOUNT: &str = "/sa/";

/// A workload identity. Cheap to clone; two ids are equal when their text is.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    text: Arc<str>,
    /// Where the trust domain ends in `text`.
    trust_domain_end: u16,
    /// Where the namespace ends in `text`.
    namespace_end: u16,
}

/// Why a text is no SPIFFE id of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a SPIFFE id of the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>: {reason}")]
pub struct ParseError {
    reason: &'static str,
}

impl SpiffeId {
    /// Builds an id from its parts.
    pub fn new(trust_domain: &str, namespace: &str, service_account: &str) -> Result<Self, ParseError> {
        check_trust_domain(trust_domain)?;
        check(is_dns_label(namespace, MAX_NAMESPACE_BYTES), "the namespace is not a DNS label")?;
        check(is_dns_subdomain(service_account), "the service account is not a DNS subdomain")?;
        // The bounds above keep both far below what the field can hold.
        let trust_domain_end = (SCHEME.len() + trust_domain.len()) as u16;
        let namespace_end = trust_domain_end + (NAMESPACE.len() + namespace.len()) as u16;
        let text = format!("{SCHEME}{trust_domain}{NAMESPACE}{namespace}{SERVICE_ACCOUNT}{service_account}");
        Ok(Self { text: text.into(), trust_domain_end, namespace_end })
    }

    /// Parses the URI form.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        check(text.len() <= MAX_ID_BYTES, "longer than 2048 bytes")?;
        let rest = text.strip_prefix(SCHEME).ok_or(ParseError { reason: "scheme is not spiffe" })?;
        let mut pieces = rest.split('/');
        let mut next = || pieces.next();
        match (next(), next(), next(), next(), next(), next()) {
            (Some(trust_domain), Some("ns"), Some(namespace), Some("sa"), Some(service_account), None) => {
                Self::new(trust_domain, namespace, service_account)
            }
            _ => Err(ParseError { reason: "path is not /ns/<namespace>/sa/<service account>" }),
        }
    }

    /// The trust domain, such as `cluster.local`.
    pub fn trust_domain(&self) -> &str {
        self.piece(SCHEME.len(), self.trust_domain_end.into())
    }

    /// The Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        self.piece(usize::from(self.trust_domain_end) + NAMESPACE.len(), self.namespace_end.into())
    }

    /// The Kubernetes service account.
    pub fn service_account(&self) -> &str {
        self.piece(usize::from(self.namespace_end) + SERVICE_ACCOUNT.len(), self.text.len())
    }

    /// The whole URI.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    fn piece(&self, from: usize, to: usize) -> &str {
        // Both lie on the borders that `new` laid.
        self.text.get(from..to).unwrap_or_default()
    }
}

/// Refuses a text that is no trust domain: lower-case letters, digits, `.`, `-` and `_`, as the SPIFFE standard has it.
pub fn check_trust_domain(text: &str) -> Result<(), ParseError> {
    check(!text.is_empty(), "the trust domain is empty")?;
    check(text.len() <= MAX_TRUST_DOMAIN_BYTES, "the trust domain is longer than 255 bytes")?;
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'_');
    check(text.bytes().all(allowed), "the trust domain has characters other than a-z, 0-9, '.', '-' and '_'")?;
    check(text.split('.').all(|piece| !piece.is_empty()), "the trust domain has an empty piece between dots")
}

fn is_dns_subdomain(text: &str) -> bool {
    text.len() <= MAX_SERVICE_ACCOUNT_BYTES && text.split('.').all(|label| is_dns_label(label, 253))
}

fn is_dns_label(text: &str, most: usize) -> bool {
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.len() <= most
        && bytes.first().is_some_and(alphanumeric)
        && bytes.last().is_some_and(alphanumeric)
        && bytes.iter().all(|byte| alphanumeric(byte) || *byte == b'-')
}

fn check(holds: bool, reason: &'static str) -> Result<(), ParseError> {
    if holds { Ok(()) } else { Err(ParseError { reason }) }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_kubernetes_can_name() {
        for text in [
            "spiffe://cluster.local/ns/default/sa/default",
            "spiffe://td/ns/a/sa/b",
            "spiffe://td_1-x.example/ns/0a-b/sa/system.node.1",
        ] {
            assert_eq!(SpiffeId::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn refuses_everything_else() {
        let long_namespace = format!("spiffe://td/ns/{}/sa/b", "a".repeat(64));
        let long_account = format!("spiffe://td/ns/a/sa/{}", "b".repeat(254));
        let long_domain = format!("spiffe://{}/ns/a/sa/b", "t".repeat(256));
        for text in [
            "",
            "spiffe://",
            "spiffe://td",
            "spiffe://td/",
            "spiffe:///ns/a/sa/b",
            "SPIFFE://td/ns/a/sa/b",
            "https://td/ns/a/sa/b",
            "spiffe:/td/ns/a/sa/b",
            "spiffe://TD/ns/a/sa/b",
            "spiffe://td:1/ns/a/sa/b",
            "spiffe://user@td/ns/a/sa/b",
            "spiffe://td..x/ns/a/sa/b",
            "spiffe://.td/ns/a/sa/b",
            "spiffe://td/ns//sa/b",
            "spiffe://td/ns/a/sa/",
            "spiffe://td/ns/a/sa/b/",
            "spiffe://td/ns/a/sa/b/c",
            "spiffe://td//ns/a/sa/b",
            "spiffe://td/ns/./sa/b",
            "spiffe://td/ns/../sa/b",
            "spiffe://td/ns/a/sa/..",
            "spiffe://td/ns/a.b/sa/b",
            "spiffe://td/ns/A/sa/b",
            "spiffe://td/ns/-a/sa/b",
            "spiffe://td/ns/a-/sa/b",
            "spiffe://td/ns/a/sa/b?x",
            "spiffe://td/ns/a/sa/b#x",
            "spiffe://td/ns/a/sa/%62",
            "spiffe://td/ns/a/sa/b ",
            "spiffe://td/ns/a/sa/b\0",
            "spiffe://td/ns/a/sa/é",
            "spiffe://td/NS/a/sa/b",
            "spiffe://td/sa/b/ns/a",
            &long_namespace,
            &long_account,
            &long_domain,
        ] {
            assert!(SpiffeId::parse(text).is_err(), "{text:?} was read as an id");
        }
    }

    proptest! {
        #[test]
        fn round_trip(
            domain in "[a-z0-9_-]{1,20}(\\.[a-z0-9_-]{1,20}){0,3}",
            namespace in "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
            account in "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\\.[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?){0,3}",
        ) {
            let id = SpiffeId::new(&domain, &namespace, &account).unwrap();
            prop_assert_eq!((id.trust_domain(), id.namespace(), id.service_account()), (&*domain, &*namespace, &*account));
            prop_assert_eq!(SpiffeId::parse(&id.to_string()).unwrap(), id);
        }

        #[test]
        fn never_panics_and_prints_what_it_read(text in "(spiffe://)?[ -~]{0,60}") {
            if let Ok(id) = SpiffeId::parse(&text) {
                prop_assert_eq!(id.to_string(), text);
            }
        }
    }
}
