//! What signs certificates: the key of a root, or that of an intermediate whose chain ends at one; wherever it is kept.

use std::time::{Duration, SystemTime};

use rcgen::{
    Certificate, CertificateParams, CertificateSigningRequestParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;

use super::ca::CaError;
use super::clock::Clock;
use super::directory::random_serial;
use super::pem;
use super::serving::{self, Serving};
use super::tls;
use super::trust::{MAX_ROOTS, RootId, Trust};
use crate::spiffe::SpiffeId;

/// How far back a certificate starts, so that a peer whose clock is behind takes it.
pub(super) const CLOCK_SKEW: Duration = Duration::from_secs(60);
/// Most certificates between a leaf and its root, that which signs among them.
pub(super) const MAX_INTERMEDIATES: usize = 8;

/// Why a key does not sign.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SigningError {
    /// A text is not what it should be.
    #[error("{what}: {reason}")]
    Unreadable {
        /// Which text.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// What would be signed would be believed by nobody.
    #[error("what tls.key signs does not end at a root of ca.crt: {0}")]
    NoChain(String),
    /// A root of another mesh.
    #[error("{what} is of {owner}, not of spiffe://{trust_domain}")]
    TrustDomain {
        /// Which text.
        what: &'static str,
        /// Whose it is.
        owner: String,
        /// Whose it should be.
        trust_domain: String,
    },
}

/// A key that signs, with the certificates up to its root. The key cannot be taken out.
pub struct Signing {
    /// What is shown after each leaf: from the certificate that signs upwards, without the root.
    intermediates: Vec<CertificateDer<'static>>,
    /// The same, as PEM.
    intermediates_pem: Vec<String>,
    issuer: Issuer<'static, KeyPair>,
    root: RootId,
    roots: Vec<CertificateDer<'static>>,
    not_after: OffsetDateTime,
    trust_domain: String,
}

/// What a signing request asks for, its signature checked.
pub struct SigningRequest {
    public_key: rcgen::PublicKey,
    names: Vec<String>,
}

impl Signing {
    /// Reads what cert-manager calls `tls.crt` (the certificate that signs, then those above it), `tls.key` and `ca.crt`
    /// (one root or several), all PEM.
    ///
    /// # Errors
    /// They cannot be read, do not fit together, or belong to another trust domain.
    pub fn parse(tls_crt: &str, tls_key: &str, ca_crt: &str, trust_domain: &str) -> Result<Self, SigningError> {
        let chain = certificates("tls.crt", tls_crt, MAX_INTERMEDIATES)?;
        let roots = certificates("ca.crt", ca_crt, MAX_ROOTS)?;
        let key = PrivateKeyDer::from_pem_slice(tls_key.as_bytes())
            .map_err(|error| unreadable("tls.key", &pem::words(&error)))?;
        let key = KeyPair::try_from(&key).map_err(|error| unreadable("tls.key", &error))?;
        let first = chain.first().ok_or_else(|| unreadable("tls.crt", &"no certificate"))?;
        let mut not_after = None::<OffsetDateTime>;
        for (what, certificate) in
            chain.iter().map(|one| ("tls.crt", one)).chain(roots.iter().map(|one| ("ca.crt", one)))
        {
            let (owner, end) = tls::root_facts(certificate).map_err(|error| unreadable(what, &error))?;
            check_owner(what, owner, trust_domain)?;
            // Of the roots only that at which it ends counts; it is looked for below.
            if what == "tls.crt" {
                not_after = Some(not_after.map_or(end, |earlier| earlier.min(end)));
            }
        }
        let issuer = Issuer::from_ca_cert_der(first, key).map_err(|error| unreadable("tls.crt", &error))?;
        let shown = || chain.iter().zip(blocks(tls_crt)).filter(|(certificate, _)| !roots.contains(certificate));
        let intermediates = shown().map(|(certificate, _)| certificate.clone()).collect();
        let intermediates_pem = shown().map(|(_, pem)| pem).collect();
        let mut signing = Self {
            intermediates,
            intermediates_pem,
            issuer,
            // Set by the trial below.
            root: RootId::of(first),
            not_after: not_after.unwrap_or(OffsetDateTime::UNIX_EPOCH),
            roots,
            trust_domain: trust_domain.to_string(),
        };
        signing.root = signing.trial()?;
        let root = signing.roots.iter().find(|root| RootId::of(root) == signing.root);
        if let Some((_, end)) = root.and_then(|root| tls::root_facts(root).ok()) {
            signing.not_after = signing.not_after.min(end);
        }
        Ok(signing)
    }

    /// The root at which certificates end.
    pub fn root(&self) -> RootId {
        self.root
    }

    /// The roots that came with it.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// When the first certificate of its chain ends; nothing that it signs is good for longer.
    pub fn not_after(&self) -> SystemTime {
        self.not_after.into()
    }

    /// Signs for `id`. Nothing but the public key is taken from the request. Says when the certificate ends and its
    /// serial number.
    ///
    /// # Errors
    /// The identity is of another trust domain, or the key's own certificate has ended.
    pub fn sign(
        &self,
        request: &SigningRequest,
        id: &SpiffeId,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Signed, CaError> {
        if id.trust_domain() != self.trust_domain {
            return Err(CaError::Refused(format!("{id} is not in trust domain {}", self.trust_domain)));
        }
        let leaf = request.sign(&self.issuer, self.not_after, id, lifetime, now)?;
        let bad = |error: tls::PeerError| CaError::Unavailable(format!("what was signed: {error}"));
        let (_, not_after, serial) = tls::leaf_facts(leaf.der()).map_err(bad)?;
        let pem = std::iter::once(leaf.pem()).chain(self.intermediates_pem.iter().cloned()).collect();
        Ok(Signed { pem, not_after: not_after.into(), serial })
    }

    /// Makes the certificate of a TLS server with these names, and its key.
    ///
    /// # Errors
    /// A name is none, or the key's own certificate has ended.
    pub fn serving(&self, names: &[String], lifetime: Duration, clock: &Clock) -> Result<Serving, CaError> {
        let now = clock.now();
        let unavailable = |error: &dyn std::fmt::Display| CaError::Unavailable(format!("serving certificate: {error}"));
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(|error| unavailable(&error))?;
        let mut params = base_params(now.into(), lifetime, self.not_after)?;
        params.subject_alt_names = serving::names(names).map_err(|error| unavailable(&error))?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = params.signed_by(&key, &self.issuer).map_err(|error| unavailable(&error))?;
        let not_after = params.not_after.into();
        let chain = std::iter::once(leaf.der().clone()).chain(self.intermediates.iter().cloned()).collect();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Serving::new(chain, key, not_after, clock).map_err(|error| unavailable(&error))
    }

    /// Signs something and looks whether a peer would believe it: key, certificate, path length, usage and root together.
    fn trial(&self) -> Result<RootId, SigningError> {
        let no_chain = |error: &dyn std::fmt::Display| SigningError::NoChain(error.to_string());
        let id = SpiffeId::new(&self.trust_domain, "trial", "trial").map_err(|error| no_chain(&error))?;
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(|error| no_chain(&error))?;
        // Whether it has ended is said when something is signed.
        let at = self.not_after - CLOCK_SKEW;
        let params = leaf_params(&id, at, CLOCK_SKEW, self.not_after).map_err(|error| no_chain(&error))?;
        let leaf = params.signed_by(&key, &self.issuer).map_err(|error| no_chain(&error))?;
        let chain: Vec<_> = std::iter::once(leaf.der().clone()).chain(self.intermediates.iter().cloned()).collect();
        let trust = Trust::new(Clock::new(move || at.into()));
        trust.replace(&self.roots).map_err(|error| no_chain(&error))?;
        trust.anchor(&chain, at.into()).map_err(|error| no_chain(&error))
    }
}

/// What was signed.
#[derive(Clone, Debug)]
pub struct Signed {
    /// The chain as PEM, leaf first, without the root.
    pub pem: Vec<String>,
    /// When the leaf ends.
    pub not_after: SystemTime,
    /// The leaf's serial number in hexadecimal.
    pub serial: String,
}

impl SigningRequest {
    /// Reads a PKCS #10 request in PEM.
    ///
    /// # Errors
    /// It is none, or who made it does not hold its key.
    pub fn from_pem(pem: &str) -> Result<Self, CaError> {
        let request = CertificateSigningRequestParams::from_pem(pem)
            .map_err(|error| CaError::Refused(format!("unreadable signing request: {error}")))?;
        let name = |name: &SanType| match name {
            SanType::URI(uri) => uri.as_str().to_string(),
            SanType::DnsName(dns) => format!("DNS:{}", dns.as_str()),
            SanType::IpAddress(ip) => format!("IP:{ip}"),
            SanType::Rfc822Name(mail) => format!("email:{}", mail.as_str()),
            _ => "a name of another kind".to_string(),
        };
        let names = request.params.subject_alt_names.iter().map(name).collect();
        Ok(Self { public_key: request.public_key, names })
    }

    /// The subject's alternative names; URIs as they are, others with their kind before them.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The certificate of a workload for the key of this request, good for no longer than `latest`, when the issuer's own
    /// ends.
    pub(super) fn sign(
        &self,
        issuer: &Issuer<'static, KeyPair>,
        latest: OffsetDateTime,
        id: &SpiffeId,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Certificate, CaError> {
        if SystemTime::from(latest) <= now {
            return Err(CaError::Unavailable(format!("the root ended at {latest}: mesh-agent ca rotate")));
        }
        let params = leaf_params(id, now.into(), lifetime, latest)?;
        let signed = params.signed_by(&self.public_key, issuer);
        signed.map_err(|error| CaError::Unavailable(format!("signing: {error}")))
    }
}

/// What a workload's certificate says.
pub(super) fn leaf_params(
    id: &SpiffeId,
    now: OffsetDateTime,
    lifetime: Duration,
    latest: OffsetDateTime,
) -> Result<CertificateParams, CaError> {
    let name = id.to_string().try_into().map_err(|_| CaError::Refused(format!("{id} is not ASCII")))?;
    let mut params = base_params(now, lifetime, latest)?;
    params.subject_alt_names = vec![SanType::URI(name)];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

fn base_params(now: OffsetDateTime, lifetime: Duration, latest: OffsetDateTime) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    params.not_before = now - CLOCK_SKEW;
    params.not_after = (now + lifetime).min(latest);
    params.serial_number = Some(random_serial().map_err(CaError::Unavailable)?);
    // With an empty subject, RFC 5280 and SPIFFE want the alternative name critical; rcgen marks it so.
    params.distinguished_name = DistinguishedName::new();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// A root among others, as it is published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// Which.
    pub id: RootId,
    /// When it ends.
    pub not_after: SystemTime,
    /// The certificate alone, as PEM.
    pub pem: String,
}

/// The roots of a PEM text, each once, in order.
///
/// # Errors
/// One cannot be read, or there are none or too many.
pub fn roots(what: &'static str, pem: &str) -> Result<Vec<Root>, SigningError> {
    let mut roots: Vec<Root> = Vec::new();
    for (certificate, pem) in certificates(what, pem, MAX_ROOTS)?.iter().zip(blocks(pem)) {
        let (_, not_after) = tls::root_facts(certificate).map_err(|error| unreadable(what, &error))?;
        let root = Root { id: RootId::of(certificate), not_after: not_after.into(), pem };
        if roots.iter().all(|known| known.id != root.id) {
            roots.push(root);
        }
    }
    Ok(roots)
}

/// The certificates of a PEM text one by one, without what is between them.
pub(super) fn blocks(pem: &str) -> impl Iterator<Item = String> + '_ {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    pem.split(BEGIN).skip(1).filter_map(|begun| Some(format!("{BEGIN}{}{END}\n", begun.split_once(END)?.0)))
}

/// All certificates of a PEM text; `most` bounds how many.
///
/// # Errors
/// One cannot be read, there are more, or none.
pub(super) fn certificates(
    what: &'static str,
    pem: &str,
    most: usize,
) -> Result<Vec<CertificateDer<'static>>, SigningError> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).take(most + 1).collect();
    let read = read.map_err(|error| unreadable(what, &pem::words(&error)))?;
    match read.len() {
        0 => Err(unreadable(what, &"no certificate in PEM")),
        count if count > most => Err(unreadable(what, &format!("more than {most} certificates"))),
        _ => Ok(read),
    }
}

/// A root need not name its trust domain (istiod's does not), but must not name another.
fn check_owner(what: &'static str, owner: Option<String>, trust_domain: &str) -> Result<(), SigningError> {
    match owner {
        Some(owner) if owner != format!("spiffe://{trust_domain}") => {
            Err(SigningError::TrustDomain { what, owner, trust_domain: trust_domain.to_string() })
        }
        Some(_) | None => Ok(()),
    }
}

fn unreadable(what: &'static str, reason: &dyn std::fmt::Display) -> SigningError {
    SigningError::Unreadable { what, reason: reason.to_string() }
}
