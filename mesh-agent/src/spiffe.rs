//! SPIFFE ids of the form `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.

use std::fmt;
use std::sync::Arc;

/// A workload identity. Cheap to clone; two ids are equal when their text is.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    trust_domain: Arc<str>,
    namespace: Arc<str>,
    service_account: Arc<str>,
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
        Self::parse(&format!("spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}"))
    }

    /// Parses the URI form.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let rest = text.strip_prefix("spiffe://").ok_or(ParseError { reason: "scheme is not spiffe" })?;
        let pieces: Vec<&str> = rest.split('/').collect();
        let [trust_domain, "ns", namespace, "sa", service_account] = pieces[..] else {
            return Err(ParseError { reason: "path is not /ns/<namespace>/sa/<service account>" });
        };
        Ok(Self {
            trust_domain: trust_domain.into(),
            namespace: namespace.into(),
            service_account: service_account.into(),
        })
    }

    /// The trust domain, such as `cluster.local`.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// The Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The Kubernetes service account.
    pub fn service_account(&self) -> &str {
        &self.service_account
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
