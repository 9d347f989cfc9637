//! TLS as HBONE wants it, and the check of a peer's certificate.
//!
//! TLS 1.3 only, mutual, ALPN `h2`, no server name, no resumption in either direction: a resumed session would carry
//! an identity that nobody checked at the time.

use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, aws_lc_rs, hash, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::clock::Clock;
use super::trust::Trust;
use crate::spiffe::SpiffeId;

/// The only protocol spoken inside.
pub(super) const ALPN: &[u8] = b"h2";

/// Suites and groups in the order they are preferred. The hybrid group is first: what is recorded today stays closed
/// to tomorrow's quantum computer.
pub(super) static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
            aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
        ],
        kx_groups: vec![
            aws_lc_rs::kx_group::X25519MLKEM768,
            aws_lc_rs::kx_group::X25519,
            aws_lc_rs::kx_group::SECP256R1,
            aws_lc_rs::kx_group::SECP384R1,
        ],
        ..aws_lc_rs::default_provider()
    })
});

/// Why a peer's certificate is not taken for an identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// The peer showed no certificate.
    #[error("the peer showed no certificate")]
    NoCertificate,
    /// The certificate cannot be read.
    #[error("the peer's certificate cannot be read")]
    Unreadable,
    /// A SPIFFE certificate carries one identity.
    #[error("the peer's certificate has {0} URI names instead of exactly one")]
    UriNames(usize),
    /// The URI is no identity of ours.
    #[error("the peer's URI name is {0}")]
    NotSpiffe(#[from] crate::spiffe::ParseError),
    /// Federation is not configured.
    #[error("the peer is of trust domain {0}, which is not ours")]
    TrustDomain(String),
    /// A signing certificate must not be used to authenticate.
    #[error("the peer's certificate is one of an authority")]
    Authority,
    /// No key usage, or one that signs certificates.
    #[error("the key usage of the peer's certificate does not allow this use")]
    KeyUsage,
    /// Not for TLS servers and TLS clients both.
    #[error("the extended key usage of the peer's certificate is not server and client authentication")]
    ExtendedKeyUsage,
    /// No root that is trusted now vouches for it: the root was withdrawn during the handshake.
    #[error("the peer's certificate does not end at a trusted root")]
    NotTrusted,
    /// A bundle with more roots than are tried for each peer.
    #[error("the trust bundle has more than {} roots", super::trust::MAX_ROOTS)]
    TooManyRoots,
}

/// Reads the identity from a chain that the handshake has verified. Leaf first.
pub fn peer_id(chain: Option<&[CertificateDer<'_>]>) -> Result<SpiffeId, PeerError> {
    leaf_id(chain.and_then(<[_]>::first).ok_or(PeerError::NoCertificate)?)
}

/// When the leaf of a verified chain ends.
pub fn peer_expiry(chain: Option<&[CertificateDer<'_>]>) -> Result<SystemTime, PeerError> {
    let (_, not_after, _) = leaf_facts(chain.and_then(<[_]>::first).ok_or(PeerError::NoCertificate)?)?;
    Ok(not_after.into())
}

/// The client's and the server's configuration for one identity.
pub(super) struct Configs {
    pub client: Arc<ClientConfig>,
    pub server: Arc<ServerConfig>,
}

/// Builds both configurations. `chain` is leaf first, `key` its key in PKCS #8. Peers are checked against the roots that
/// are trusted at the time of each handshake.
pub(super) fn configs(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    trust: &Trust,
    trust_domain: &str,
    clock: &Clock,
) -> Result<Configs, rustls::Error> {
    let verifier = Arc::new(PeerVerifier::new(trust.clone(), trust_domain));
    let key = Arc::new(CertifiedKey::from_der(chain, key, &PROVIDER)?);
    Ok(Configs {
        client: Arc::new(client_config(key.clone(), verifier.clone(), clock)?),
        server: Arc::new(server_config(key, verifier, clock)?),
    })
}

fn client_config(
    key: Arc<CertifiedKey>,
    verifier: Arc<PeerVerifier>,
    clock: &Clock,
) -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_details(PROVIDER.clone(), Arc::new(clock.clone()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn server_config(
    key: Arc<CertifiedKey>,
    verifier: Arc<PeerVerifier>,
    clock: &Clock,
) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_details(PROVIDER.clone(), Arc::new(clock.clone()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

/// Checks the other end, whichever end it is: the chain by webpki, the leaf by the SPIFFE rules.
pub(super) struct PeerVerifier {
    trust: Trust,
    trust_domain: String,
}

impl PeerVerifier {
    pub fn new(trust: Trust, trust_domain: &str) -> Self {
        Self { trust, trust_domain: trust_domain.to_string() }
    }

    fn check_leaf(&self, leaf: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        let id = leaf_id(leaf).map_err(refused)?;
        if id.trust_domain() != self.trust_domain {
            return Err(refused(PeerError::TrustDomain(id.trust_domain().to_string())));
        }
        Ok(())
    }
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        let algorithms = PROVIDER.signature_verification_algorithms.all;
        let bundle = self.trust.bundle();
        verify_server_cert_signed_by_trust_anchor(&parsed, &bundle.store, intermediates, now, algorithms)?;
        self.check_leaf(leaf)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken here".to_string()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &PROVIDER.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        PROVIDER.signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // A client of this mesh has one certificate and needs no hint.
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let bundle = self.trust.bundle();
        let clients = bundle.clients.as_ref().ok_or(CertificateError::UnknownIssuer)?;
        let verified = clients.verify_client_cert(leaf, intermediates, now)?;
        self.check_leaf(leaf)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken here".to_string()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &PROVIDER.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        PROVIDER.signature_verification_algorithms.supported_schemes()
    }
}

impl fmt::Debug for PeerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerVerifier").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}

/// The SPIFFE rules for a leaf that authenticates.
fn leaf_id(leaf: &CertificateDer<'_>) -> Result<SpiffeId, PeerError> {
    let leaf = parse(leaf)?;
    let constraints = leaf.basic_constraints().map_err(|_| PeerError::Unreadable)?;
    if constraints.is_some_and(|extension| extension.value.ca) {
        return Err(PeerError::Authority);
    }
    let usage = leaf.key_usage().map_err(|_| PeerError::Unreadable)?.ok_or(PeerError::KeyUsage)?.value;
    if !usage.digital_signature() || usage.key_cert_sign() || usage.crl_sign() {
        return Err(PeerError::KeyUsage);
    }
    let extended = leaf.extended_key_usage().map_err(|_| PeerError::Unreadable)?;
    if !extended.is_some_and(|extension| extension.value.server_auth && extension.value.client_auth) {
        return Err(PeerError::ExtendedKeyUsage);
    }
    match uri_names(&leaf)?.as_slice() {
        [name] => Ok(SpiffeId::parse(name)?),
        names => Err(PeerError::UriNames(names.len())),
    }
}

/// What is known of a root: the trust domain's URI, and when it ends.
pub(super) fn root_facts(root: &CertificateDer<'_>) -> Result<(Option<String>, OffsetDateTime), PeerError> {
    let root = parse(root)?;
    let name = uri_names(&root)?.first().map(|name| (*name).to_string());
    Ok((name, root.validity().not_after.to_datetime()))
}

/// What is known of a leaf: from when to when, and the serial number in hexadecimal.
pub(super) fn leaf_facts(leaf: &CertificateDer<'_>) -> Result<(OffsetDateTime, OffsetDateTime, String), PeerError> {
    let leaf = parse(leaf)?;
    let validity = leaf.validity();
    let serial = leaf.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((validity.not_before.to_datetime(), validity.not_after.to_datetime(), serial))
}

/// Whether a certificate names itself as its issuer, as roots do.
pub(super) fn is_self_issued(certificate: &CertificateDer<'_>) -> bool {
    parse(certificate).is_ok_and(|parsed| parsed.issuer() == parsed.subject())
}

/// SHA-256, from the same source as TLS.
pub(super) fn sha256(bytes: &[u8]) -> hash::Output {
    aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256
        .tls13()
        .map_or_else(|| hash::Output::new(&[]), |suite| suite.common.hash_provider.hash(bytes))
}

/// Random bytes from the same source as TLS.
pub(super) fn fill_random(bytes: &mut [u8]) -> Result<(), ()> {
    PROVIDER.secure_random.fill(bytes).map_err(|_| ())
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, PeerError> {
    match X509Certificate::from_der(certificate) {
        Ok(([], parsed)) => Ok(parsed),
        Ok(_) | Err(_) => Err(PeerError::Unreadable),
    }
}

fn uri_names<'a>(certificate: &'a X509Certificate<'_>) -> Result<Vec<&'a str>, PeerError> {
    let Some(extension) = certificate.subject_alternative_name().map_err(|_| PeerError::Unreadable)? else {
        return Ok(Vec::new());
    };
    let uri = |name: &GeneralName<'a>| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    };
    Ok(extension.value.general_names.iter().filter_map(uri).collect())
}

fn refused(error: PeerError) -> rustls::Error {
    rustls::Error::InvalidCertificate(rustls::CertificateError::Other(rustls::OtherError(Arc::new(error))))
}
