//! Who a rule speaks of.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Serialize, Serializer};

use super::Facts;
use crate::spiffe::SpiffeId;

/// One kind of caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Callers whose identity has this form. A caller without identity never matches.
    Principal(Principal),
    /// Callers of a namespace of this trust domain. A caller without identity never matches.
    Namespace {
        /// The mesh's own trust domain.
        trust_domain: Arc<str>,
        /// The Kubernetes namespace.
        namespace: Arc<str>,
    },
    /// Callers by the IP of their TCP connection.
    IpBlock(IpBlock),
    /// Everyone, with or without identity.
    Any,
}

/// A range of addresses with holes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpBlock {
    /// The range.
    pub cidr: IpNet,
    /// Parts of it that do not belong.
    pub except: Vec<IpNet>,
}

/// A SPIFFE id, or a pattern of ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// `*`: any authenticated caller.
    Any,
    /// One id.
    Exact(SpiffeId),
    /// `spiffe://cluster.local/ns/shop/*`: ids that begin so.
    Prefix(Arc<str>),
    /// `*/sa/web`: ids that end so.
    Suffix(Arc<str>),
}

/// Why a text is no pattern of ids.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrincipalError {
    /// The wildcard is not at one end.
    #[error("`*` may stand alone, at the end or at the beginning, once")]
    Wildcard,
    /// A prefix that no id can begin with.
    #[error("must begin with spiffe:// or with `*`")]
    Scheme,
    /// An exact id that is none.
    #[error(transparent)]
    Id(#[from] crate::spiffe::ParseError),
}

impl Principal {
    /// Parses an exact id, `prefix*`, `*suffix` or `*`.
    pub fn parse(text: &str) -> Result<Self, PrincipalError> {
        if text == "*" {
            return Ok(Principal::Any);
        }
        let pattern = match (text.strip_prefix('*'), text.strip_suffix('*')) {
            (Some(suffix), None) => Principal::Suffix(no_wildcard(suffix)?.into()),
            (None, Some(prefix)) if prefix.starts_with("spiffe://") => Principal::Prefix(no_wildcard(prefix)?.into()),
            (None, Some(_)) => return Err(PrincipalError::Scheme),
            (None, None) => Principal::Exact(SpiffeId::parse(no_wildcard(text)?)?),
            (Some(_), Some(_)) => return Err(PrincipalError::Wildcard),
        };
        Ok(pattern)
    }

    fn matches(&self, id: &SpiffeId) -> bool {
        match self {
            Principal::Any => true,
            Principal::Exact(exact) => exact == id,
            Principal::Prefix(prefix) => id.as_str().starts_with(&**prefix),
            Principal::Suffix(suffix) => id.as_str().ends_with(&**suffix),
        }
    }
}

fn no_wildcard(text: &str) -> Result<&str, PrincipalError> {
    if text.contains('*') { Err(PrincipalError::Wildcard) } else { Ok(text) }
}

impl IpBlock {
    /// Whether an address lies in the range and in none of its holes.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.cidr.contains(&ip) && !self.except.iter().any(|hole| hole.contains(&ip))
    }
}

impl Source {
    pub(super) fn matches(&self, facts: &Facts) -> bool {
        let id = facts.source.as_ref();
        match self {
            Source::Principal(principal) => id.is_some_and(|id| principal.matches(id)),
            Source::Namespace { trust_domain, namespace } => {
                id.is_some_and(|id| id.trust_domain() == &**trust_domain && id.namespace() == &**namespace)
            }
            Source::IpBlock(block) => block.contains(facts.source_ip),
            Source::Any => true,
        }
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Principal::Any => f.write_str("*"),
            Principal::Exact(id) => id.fmt(f),
            Principal::Prefix(prefix) => write!(f, "{prefix}*"),
            Principal::Suffix(suffix) => write!(f, "*{suffix}"),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Principal(principal) => write!(f, "identity {principal}"),
            Source::Namespace { trust_domain, namespace } => write!(f, "namespace {namespace} of {trust_domain}"),
            Source::IpBlock(IpBlock { cidr, except }) => {
                write!(f, "ip {cidr}")?;
                except.iter().try_for_each(|hole| write!(f, " except {hole}"))
            }
            Source::Any => f.write_str("anyone"),
        }
    }
}

impl Serialize for Source {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
