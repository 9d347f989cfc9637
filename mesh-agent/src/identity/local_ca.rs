//! A certificate authority inside the agent: for one machine, tests and demos.
//!
//! Its root is either in memory (one agent) or in a directory that several agents of one machine share. It signs for
//! whoever holds the directory; a controller that checks who asks comes in its place in a real cluster.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer};
use time::OffsetDateTime;

use super::ca::{BoxFuture, CaError, CertificateAuthority, CertificateRequest, IssuedCertificate};
use super::tls;
use crate::spiffe::{self, SpiffeId};

/// How long a new root is good for.
pub(super) const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How far back a certificate starts, so that a peer whose clock is behind takes it.
pub(super) const CLOCK_SKEW: Duration = Duration::from_secs(60);
/// The root's certificate and key together: one file, so that one rename creates both.
const ROOT_FILE: &str = "root.pem";
/// The root's certificate alone, for people and tools.
const ROOT_CERTIFICATE_FILE: &str = "root-cert.pem";
/// Held while the root is looked for and created.
const LOCK_FILE: &str = "lock";

/// The embedded authority.
pub struct LocalCa {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
    root_not_after: OffsetDateTime,
    trust_domain: String,
    description: String,
}

/// Why the embedded authority could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The trust domain is no trust domain.
    #[error(transparent)]
    TrustDomain(#[from] spiffe::ParseError),
    /// The directory or a file in it.
    #[error("{path}: {source}")]
    Io {
        /// What was read or written.
        path: String,
        /// What went wrong.
        source: io::Error,
    },
    /// The root in the directory is not usable.
    #[error("{path} holds no usable root: {reason}; move it away to have a new one made")]
    BadRoot {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Making a key or a certificate failed.
    #[error("making the root: {0}")]
    Generate(#[from] rcgen::Error),
}

impl LocalCa {
    /// An authority that lives and dies with this process.
    pub fn memory(trust_domain: &str) -> Result<Self, Error> {
        spiffe::check_trust_domain(trust_domain)?;
        let (pem, _) = new_root(trust_domain)?;
        Self::from_pem(&pem, trust_domain, "memory".to_string(), "memory")
    }

    /// An authority whose root is in `path`. The first of several agents creates it, the others read it.
    pub fn directory(path: &Path, trust_domain: &str) -> Result<Self, Error> {
        spiffe::check_trust_domain(trust_domain)?;
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| io_error(path, error))?;
        let _lock = lock(&path.join(LOCK_FILE))?;
        let file = path.join(ROOT_FILE);
        let pem = match fs::read_to_string(&file) {
            Ok(pem) => pem,
            Err(error) if error.kind() == io::ErrorKind::NotFound => create_root(path, &file, trust_domain)?,
            Err(error) => return Err(io_error(&file, error)),
        };
        Self::from_pem(&pem, trust_domain, format!("dir:{}", path.display()), &file.display().to_string())
    }

    /// The root certificate.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    fn from_pem(pem: &str, trust_domain: &str, description: String, path: &str) -> Result<Self, Error> {
        let bad = |reason: String| Error::BadRoot { path: path.to_string(), reason };
        let root = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| bad(error.to_string()))?;
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|error| bad(error.to_string()))?;
        let key = KeyPair::try_from(&key).map_err(|error| bad(error.to_string()))?;
        let (owner, not_after) = tls::root_facts(&root).map_err(|error| bad(error.to_string()))?;
        let wanted = format!("spiffe://{trust_domain}");
        if owner.as_deref() != Some(wanted.as_str()) {
            let owner = owner.unwrap_or_else(|| "no trust domain".to_string());
            return Err(bad(format!("it is the root of {owner}, not of {wanted}")));
        }
        let issuer = Issuer::from_ca_cert_der(&root, key).map_err(|error| bad(error.to_string()))?;
        Ok(Self { issuer, root, root_not_after: not_after, trust_domain: trust_domain.to_string(), description })
    }

    fn sign(&self, request: &CertificateRequest) -> Result<IssuedCertificate, CaError> {
        if request.id.trust_domain() != self.trust_domain {
            return Err(CaError::Refused(format!("{} is not in trust domain {}", request.id, self.trust_domain)));
        }
        let csr = CertificateSigningRequestDer::from(request.csr.as_slice());
        let csr = CertificateSigningRequestParams::from_der(&csr)
            .map_err(|error| CaError::Refused(format!("unreadable signing request: {error}")))?;
        // Nothing but the public key is taken from the signing request: what it asks to be called is not our evidence.
        let params = leaf_params(&request.id, request.lifetime, self.root_not_after)?;
        let leaf = params
            .signed_by(&csr.public_key, &self.issuer)
            .map_err(|error| CaError::Unavailable(format!("signing: {error}")))?;
        Ok(IssuedCertificate { chain: vec![leaf.der().clone()], roots: vec![self.root.clone()] })
    }
}

impl CertificateAuthority for LocalCa {
    fn issue(&self, request: CertificateRequest) -> BoxFuture<'_, Result<IssuedCertificate, CaError>> {
        Box::pin(async move { self.sign(&request) })
    }

    fn describe(&self) -> String {
        self.description.clone()
    }
}

fn leaf_params(id: &SpiffeId, lifetime: Duration, latest: OffsetDateTime) -> Result<CertificateParams, CaError> {
    let name = id.to_string().try_into().map_err(|_| CaError::Refused(format!("{id} is not ASCII")))?;
    let now = OffsetDateTime::now_utc();
    let mut params = CertificateParams::default();
    params.not_before = now - CLOCK_SKEW;
    params.not_after = (now + lifetime).min(latest);
    params.serial_number = Some(random_serial().map_err(CaError::Unavailable)?);
    // With an empty subject, RFC 5280 and SPIFFE want the alternative name critical; rcgen marks it so.
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(name)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// Makes a root; returns certificate and key as PEM in one text, and the certificate alone.
fn new_root(trust_domain: &str) -> Result<(String, String), Error> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let now = OffsetDateTime::now_utc();
    let mut params = CertificateParams::default();
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + ROOT_LIFETIME;
    params.serial_number = Some(random_serial().map_err(|_| rcgen::Error::RingUnspecified)?);
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, trust_domain);
    params.distinguished_name.push(DnType::CommonName, "Nodemesh root");
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").try_into()?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key)?.pem();
    Ok((format!("{certificate}{}", key.serialize_pem()), certificate))
}

fn create_root(directory: &Path, file: &Path, trust_domain: &str) -> Result<String, Error> {
    let (pem, certificate) = new_root(trust_domain)?;
    write_atomically(file, &pem, 0o600)?;
    write_atomically(&directory.join(ROOT_CERTIFICATE_FILE), &certificate, 0o644)?;
    Ok(pem)
}

/// Writes beside, then renames: a reader without the lock sees the whole file or none.
fn write_atomically(file: &Path, text: &str, mode: u32) -> Result<(), Error> {
    let beside = file.with_extension("new");
    let write = || {
        // What an earlier try left behind may have another mode, which opening it again would keep.
        if let Err(error) = fs::remove_file(&beside)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let mut new = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
        new.write_all(text.as_bytes())?;
        new.sync_all()?;
        fs::rename(&beside, file)
    };
    write().map_err(|error| io_error(file, error))
}

fn lock(path: &Path) -> Result<File, Error> {
    let open = || {
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        file.lock()?;
        Ok(file)
    };
    open().map_err(|error| io_error(path, error))
}

fn random_serial() -> Result<SerialNumber, String> {
    let mut bytes = [0u8; 16];
    tls::fill_random(&mut bytes).map_err(|()| "no randomness for a serial number".to_string())?;
    // A serial is a positive integer: clear the sign, and keep the first byte from being a redundant zero.
    if let Some(first) = bytes.first_mut() {
        *first = (*first & 0x7f) | 0x40;
    }
    Ok(SerialNumber::from_slice(&bytes))
}

fn io_error(path: &Path, source: io::Error) -> Error {
    Error::Io { path: path.display().to_string(), source }
}
