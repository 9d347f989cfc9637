//! The directory of `--ca dir:PATH`: the root that signs, the roots that are trusted beside it, and how one replaces
//! another.
//!
//! ```text
//! root.pem         the root that signs: certificate and key        root-cert.pem   its certificate, for people
//! next.pem         the root that will sign next, while a rotation is prepared
//! roots/*.pem      certificates that are trusted beside it: next-…, retired-…, and what the operator puts there
//! lock             held by whoever changes the directory
//!
//! prepare: next.pem, roots/next ──► switch: next becomes root, root becomes roots/retired ──► finish: no roots/retired
//! ```
//! At every instant, also when a phase is interrupted, what signs is trusted by whoever reads `root.pem` first and
//! `roots/` second. A phase that was interrupted is run again.

use std::fmt::Display;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
    SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use time::OffsetDateTime;

use super::pem;
use super::signing::{CLOCK_SKEW, blocks};
use super::tls;
use super::trust::RootId;
use crate::spiffe;

/// How long a new root is good for.
pub(super) const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Most of a file with certificates that is read. A root is under a kilobyte.
pub(super) const MAX_FILE_BYTES: u64 = 256 << 10;
/// From one phase of a rotation to the next: every agent that runs has looked into the directory several times, and has
/// had time to renew its certificates.
pub(super) const SETTLE: Duration = Duration::from_secs(15);

/// The root's certificate and key together: one file, so that one rename replaces both.
const ROOT_FILE: &str = "root.pem";
/// The same of the root that comes next.
const NEXT_FILE: &str = "next.pem";
/// The root's certificate alone, for people and tools.
const ROOT_CERTIFICATE_FILE: &str = "root-cert.pem";
/// Certificates that are trusted beside it.
const ROOTS_DIRECTORY: &str = "roots";
/// Begins the name of the next root's certificate there.
const NEXT: &str = "next-";
/// Begins the name of an earlier root's certificate there.
const RETIRED: &str = "retired-";
/// Held while the directory is changed.
const LOCK_FILE: &str = "lock";

/// Group and others.
const OTHERS: u32 = 0o077;
/// Writing by group and others.
const WRITE_BY_OTHERS: u32 = 0o022;

/// Why the directory cannot be used.
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
    /// A root in the directory is not usable.
    #[error("{path} holds no usable root: {reason}")]
    BadRoot {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The key may be read by others than its owner.
    #[error(
        "{path} has mode {mode:03o}: others than its owner may read the key of every identity. chmod 600 it, and if \
         anybody may have read it, replace the root: mesh-agent ca rotate"
    )]
    Exposed {
        /// The file.
        path: String,
        /// Its mode.
        mode: u32,
    },
    /// Others may put roots of their own there.
    #[error("{path} has mode {mode:03o}: others than its owner may write there what the mesh trusts. chmod go-w it")]
    Writable {
        /// The file or directory.
        path: String,
        /// Its mode.
        mode: u32,
    },
    /// It belongs to somebody else.
    #[error("{path} belongs to user {owner}, who is neither root nor the one that runs this: chown it")]
    Owner {
        /// The file or directory.
        path: String,
        /// Whose it is.
        owner: u32,
    },
    /// The phase does not follow what is there.
    #[error("{0}")]
    Phase(&'static str),
    /// Agents may not have taken the last phase yet.
    #[error("agents may not have taken the last phase yet: {} s more, or --force", .0.as_secs() + 1)]
    TooSoon(Duration),
    /// Making a key or a certificate failed.
    #[error("making the root: {0}")]
    Generate(#[from] rcgen::Error),
}

/// The phases in which one root replaces another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// A next root is made and trusted; it signs nothing.
    Prepare,
    /// It signs; the earlier one stays trusted.
    Switch,
    /// The earlier one is no longer trusted.
    Finish,
    /// What was prepared is thrown away.
    Cancel,
}

/// A directory that holds the root of a trust domain.
#[derive(Clone, Debug)]
pub struct RootDirectory {
    path: PathBuf,
    trust_domain: String,
}

/// A root that can sign.
pub(super) struct SigningRoot {
    pub certificate: CertificateDer<'static>,
    /// The certificate alone, as PEM.
    certificate_pem: String,
    pub issuer: Issuer<'static, KeyPair>,
    pub not_after: OffsetDateTime,
}

impl SigningRoot {
    pub fn id(&self) -> RootId {
        RootId::of(&self.certificate)
    }
}

impl RootDirectory {
    /// The directory, which need not exist.
    pub fn new(path: &Path, trust_domain: &str) -> Result<Self, Error> {
        spiffe::check_trust_domain(trust_domain)?;
        Ok(Self { path: path.to_path_buf(), trust_domain: trust_domain.to_string() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the directory and a first root, unless they are there. Of several that try, one does.
    pub fn create(&self) -> Result<(), Error> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.path)
            .map_err(|error| io_error(&self.path, error))?;
        let _lock = self.lock()?;
        if self.has(ROOT_FILE)? {
            return Ok(());
        }
        let root = new_root(&self.trust_domain)?;
        write_atomically(&self.file(ROOT_FILE), &root.together(), 0o600)?;
        write_atomically(&self.file(ROOT_CERTIFICATE_FILE), &root.certificate, 0o644)
    }

    /// The root that signs now.
    pub(super) fn signer(&self) -> Result<SigningRoot, Error> {
        self.private_root(ROOT_FILE)
    }

    /// The certificates of the roots that are trusted now, that which signs first. Those that have ended by `now` are
    /// not among them.
    pub(super) fn trusted(&self, signer: &SigningRoot, now: SystemTime) -> Result<Vec<CertificateDer<'static>>, Error> {
        let mut roots = vec![(signer.certificate.clone(), signer.not_after)];
        for file in self.beside()? {
            for root in self.certificates(&file)? {
                if roots.iter().all(|(known, _)| *known != root.0) {
                    roots.push(root);
                }
            }
        }
        roots.retain(|(_, not_after)| SystemTime::from(*not_after) > now);
        Ok(roots.into_iter().map(|(certificate, _)| certificate).collect())
    }

    /// Does one phase of a rotation; says what was done and what comes next. `is_forced` does not wait for agents.
    pub fn rotate(&self, phase: Phase, is_forced: bool) -> Result<Vec<String>, Error> {
        let _lock = self.lock()?;
        match phase {
            Phase::Prepare => self.prepare(),
            Phase::Switch => self.switch(is_forced),
            Phase::Finish => self.finish(is_forced),
            Phase::Cancel => self.cancel(),
        }
    }

    /// What is there, a line each.
    pub fn status(&self) -> Result<Vec<String>, Error> {
        let line = |what: &str, root: &CertificateDer<'_>, not_after: OffsetDateTime| {
            format!("{what:<10} {}  valid until {}", RootId::of(root), not_after.date())
        };
        let signer = self.signer()?;
        let mut lines = vec![line("signs", &signer.certificate, signer.not_after)];
        for file in self.beside()? {
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            for (root, not_after) in self.certificates(&file)?.iter().filter(|(root, _)| *root != signer.certificate) {
                lines.push(format!("{}  {ROOTS_DIRECTORY}/{name}", line("is trusted", root, *not_after)));
            }
        }
        lines.push(match (self.has(NEXT_FILE)?, self.retired()?.is_empty()) {
            (true, _) => "a next root is prepared: --phase switch, or cancel".to_string(),
            (false, false) => "an earlier root is still trusted: --phase finish when nothing rests on it".to_string(),
            (false, true) => "no rotation is under way".to_string(),
        });
        Ok(lines)
    }

    fn prepare(&self) -> Result<Vec<String>, Error> {
        // There must be something to replace, and it must be usable.
        self.signer()?;
        if !self.retired()?.is_empty() {
            return Err(Error::Phase("the last rotation is not finished: --phase finish first"));
        }
        let next = if self.has(NEXT_FILE)? {
            self.private_root(NEXT_FILE)?
        } else {
            write_atomically(&self.file(NEXT_FILE), &new_root(&self.trust_domain)?.together(), 0o600)?;
            self.private_root(NEXT_FILE)?
        };
        self.trust(NEXT, &next)?;
        Ok(vec![
            format!("root {} is made; agents trust it within seconds, nothing is signed by it", next.id()),
            "next: --phase switch".to_string(),
        ])
    }

    fn switch(&self, is_forced: bool) -> Result<Vec<String>, Error> {
        if !self.has(NEXT_FILE)? {
            return Err(Error::Phase("no next root: --phase prepare first"));
        }
        let (old, next) = (self.signer()?, self.private_root(NEXT_FILE)?);
        let trusted = self.beside_name(NEXT, &next);
        if !is_forced {
            wait_for_agents(&trusted)?;
        }
        // Before it stops signing, or whoever reads in between would not trust what it has signed.
        self.trust(RETIRED, &old)?;
        fs::rename(self.file(NEXT_FILE), self.file(ROOT_FILE))
            .map_err(|error| io_error(&self.file(NEXT_FILE), error))?;
        write_atomically(&self.file(ROOT_CERTIFICATE_FILE), &next.certificate_pem, 0o644)?;
        remove(&trusted)?;
        Ok(vec![
            format!("root {} signs; certificates are renewed within seconds", next.id()),
            format!("root {} stays trusted", old.id()),
            "next: --phase finish, which cuts what still rests on it: see nodemesh_root_peers".to_string(),
        ])
    }

    fn finish(&self, is_forced: bool) -> Result<Vec<String>, Error> {
        let retired = self.retired()?;
        if retired.is_empty() {
            return Err(Error::Phase("no earlier root is trusted: there is nothing to finish"));
        }
        if !is_forced {
            retired.iter().try_for_each(|file| wait_for_agents(file))?;
        }
        retired.iter().try_for_each(|file| remove(file))?;
        Ok(vec!["the earlier root is no longer trusted; tunnels that rest on it are closed within seconds".to_string()])
    }

    fn cancel(&self) -> Result<Vec<String>, Error> {
        if !self.has(NEXT_FILE)? {
            return Err(Error::Phase("no next root is prepared: there is nothing to cancel"));
        }
        // Whatever is wrong with it.
        remove(&self.file(NEXT_FILE))?;
        let is_next = |file: &PathBuf| name_begins(file, NEXT);
        self.beside()?.into_iter().filter(is_next).try_for_each(|file| remove(&file))?;
        Ok(vec!["the prepared root is gone; nothing was signed by it".to_string()])
    }

    /// Puts a certificate beside the root.
    fn trust(&self, prefix: &str, root: &SigningRoot) -> Result<(), Error> {
        let directory = self.file(ROOTS_DIRECTORY);
        let made = DirBuilder::new().recursive(true).mode(0o755).create(&directory);
        made.map_err(|error| io_error(&directory, error))?;
        let file = self.beside_name(prefix, root);
        // A phase that is run again does not begin anew for the agents.
        if file.is_file() { Ok(()) } else { write_atomically(&file, &root.certificate_pem, 0o644) }
    }

    fn beside_name(&self, prefix: &str, root: &SigningRoot) -> PathBuf {
        self.file(ROOTS_DIRECTORY).join(format!("{prefix}{}.pem", root.id()))
    }

    fn retired(&self) -> Result<Vec<PathBuf>, Error> {
        Ok(self.beside()?.into_iter().filter(|file| name_begins(file, RETIRED)).collect())
    }

    /// The files of `roots/`, in order.
    fn beside(&self) -> Result<Vec<PathBuf>, Error> {
        let directory = self.file(ROOTS_DIRECTORY);
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io_error(&directory, error)),
        };
        check_mode(&directory, &fs::metadata(&directory).map_err(|error| io_error(&directory, error))?, false)?;
        let files = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>();
        let mut files = files.map_err(|error| io_error(&directory, error))?;
        files.retain(|file| file.extension().is_some_and(|ending| ending == "pem"));
        files.sort();
        Ok(files)
    }

    fn private_root(&self, name: &str) -> Result<SigningRoot, Error> {
        check_mode(&self.path, &fs::metadata(&self.path).map_err(|error| io_error(&self.path, error))?, false)?;
        let file = self.file(name);
        parse_root(&read(&file, true)?, &self.trust_domain, &file.display())
    }

    /// Every certificate of a file, with its end.
    fn certificates(&self, file: &Path) -> Result<Vec<(CertificateDer<'static>, OffsetDateTime)>, Error> {
        let pem = match read(file, false) {
            // Removed since the directory was listed.
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            read => read?,
        };
        let bad =
            |reason: &dyn Display| Error::BadRoot { path: file.display().to_string(), reason: reason.to_string() };
        let read = |certificate: Result<CertificateDer<'static>, _>| {
            let certificate = certificate.map_err(|error| bad(&pem::words(&error)))?;
            let (owner, not_after) = tls::root_facts(&certificate).map_err(|error| bad(&error))?;
            // A root need not name its trust domain (istiod's does not), but must not name another.
            match owner {
                Some(owner) if owner != format!("spiffe://{}", self.trust_domain) => {
                    Err(bad(&format!("it is the root of {owner}, not of spiffe://{}", self.trust_domain)))
                }
                Some(_) | None => Ok((certificate, not_after)),
            }
        };
        let certificates = CertificateDer::pem_slice_iter(pem.as_bytes()).map(read).collect::<Result<Vec<_>, _>>()?;
        if certificates.is_empty() { Err(bad(&"no certificate in PEM")) } else { Ok(certificates) }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn has(&self, name: &str) -> Result<bool, Error> {
        let file = self.file(name);
        file.try_exists().map_err(|error| io_error(&file, error))
    }

    fn lock(&self) -> Result<File, Error> {
        let path = self.file(LOCK_FILE);
        let open = || {
            let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path)?;
            file.lock()?;
            Ok(file)
        };
        open().map_err(|error| io_error(&path, error))
    }
}

/// Reads certificate and key of a root of `trust_domain`. `path` is for messages.
pub(super) fn parse_root(pem: &str, trust_domain: &str, path: &dyn Display) -> Result<SigningRoot, Error> {
    let bad = |reason: String| Error::BadRoot { path: path.to_string(), reason };
    let unreadable = |error| bad(pem::words(&error));
    let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(unreadable)?;
    let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(unreadable)?;
    let key = KeyPair::try_from(&key).map_err(|error| bad(error.to_string()))?;
    let (owner, not_after) = tls::root_facts(&certificate).map_err(|error| bad(error.to_string()))?;
    let wanted = format!("spiffe://{trust_domain}");
    if owner.as_deref() != Some(wanted.as_str()) {
        let owner = owner.unwrap_or_else(|| "no trust domain".to_string());
        return Err(bad(format!("it is the root of {owner}, not of {wanted}; move it away to have a new one made")));
    }
    let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|error| bad(error.to_string()))?;
    let certificate_pem = blocks(pem).next().ok_or_else(|| bad("no certificate in PEM".to_string()))?;
    Ok(SigningRoot { certificate, certificate_pem, issuer, not_after })
}

/// A root that was made a moment ago, as PEM.
pub struct NewRoot {
    /// Its certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

impl NewRoot {
    /// Both in one text.
    pub(super) fn together(&self) -> String {
        format!("{}{}", self.certificate, self.key)
    }
}

/// Makes a root.
///
/// # Errors
/// There is no randomness, or the trust domain is none.
pub fn new_root(trust_domain: &str) -> Result<NewRoot, Error> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let serial = random_serial().map_err(|_| rcgen::Error::RingUnspecified)?;
    let now = OffsetDateTime::now_utc();
    let mut params = CertificateParams::default();
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + ROOT_LIFETIME;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, trust_domain);
    // Two roots of one mesh must not have one name: some verifiers find a certificate's issuer by name alone.
    let name: String = serial.as_ref().iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    params.distinguished_name.push(DnType::CommonName, format!("Nodemesh root {name}"));
    params.serial_number = Some(serial);
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").try_into()?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(NewRoot { certificate: params.self_signed(&key)?.pem(), key: key.serialize_pem() })
}

/// A positive integer of 16 bytes.
pub(super) fn random_serial() -> Result<SerialNumber, String> {
    let mut bytes = [0u8; 16];
    tls::fill_random(&mut bytes).map_err(|()| "no randomness for a serial number".to_string())?;
    // A serial is a positive integer: clear the sign, and keep the first byte from being a redundant zero.
    if let Some(first) = bytes.first_mut() {
        *first = (*first & 0x7f) | 0x40;
    }
    Ok(SerialNumber::from_slice(&bytes))
}

fn name_begins(file: &Path, prefix: &str) -> bool {
    file.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(prefix))
}

/// Refuses while a file is younger than agents need to take notice of it.
fn wait_for_agents(file: &Path) -> Result<(), Error> {
    let written = fs::metadata(file).and_then(|metadata| metadata.modified()).map_err(|error| io_error(file, error))?;
    // A time in the future is one before the clock was put back.
    let age = SystemTime::now().duration_since(written).unwrap_or_default();
    match SETTLE.checked_sub(age) {
        Some(left) if !left.is_zero() => Err(Error::TooSoon(left)),
        Some(_) | None => Ok(()),
    }
}

/// Reads a file whose owner and mode are as they must be.
pub(super) fn read(path: &Path, is_private: bool) -> Result<String, Error> {
    let mut file = File::open(path).map_err(|error| io_error(path, error))?;
    check_mode(path, &file.metadata().map_err(|error| io_error(path, error))?, is_private)?;
    let mut text = String::new();
    (&mut file).take(MAX_FILE_BYTES).read_to_string(&mut text).map_err(|error| io_error(path, error))?;
    Ok(text)
}

fn check_mode(path: &Path, metadata: &fs::Metadata, is_private: bool) -> Result<(), Error> {
    let (path, mode, owner) = (path.display().to_string(), metadata.mode() & 0o777, metadata.uid());
    if is_private && mode & OTHERS != 0 {
        return Err(Error::Exposed { path, mode });
    }
    if mode & WRITE_BY_OTHERS != 0 {
        return Err(Error::Writable { path, mode });
    }
    if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        return Err(Error::Owner { path, owner });
    }
    Ok(())
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

fn remove(file: &Path) -> Result<(), Error> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(file, error)),
        _ => Ok(()),
    }
}

fn io_error(path: &Path, source: io::Error) -> Error {
    Error::Io { path: path.display().to_string(), source }
}

#[cfg(test)]
mod tests {
    use std::sync::RwLock;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    struct Home {
        home: tempfile::TempDir,
        directory: RootDirectory,
    }

    fn fresh() -> Home {
        let home = tempfile::tempdir().unwrap();
        let directory = RootDirectory::new(&home.path().join("ca"), "cluster.local").unwrap();
        directory.create().unwrap();
        Home { home, directory }
    }

    impl Home {
        /// Which root signs, and which are trusted.
        fn seen(&self) -> (RootId, Vec<RootId>) {
            let signer = self.directory.signer().unwrap();
            let trusted = self.directory.trusted(&signer, SystemTime::now()).unwrap();
            (signer.id(), trusted.iter().map(RootId::of).collect())
        }

        fn refusal(&self, phase: Phase) -> String {
            self.directory.rotate(phase, false).unwrap_err().to_string()
        }

        fn do_it(&self, phase: Phase) {
            self.directory.rotate(phase, true).unwrap();
        }

        fn file(&self, name: &str) -> PathBuf {
            self.home.path().join("ca").join(name)
        }
    }

    #[test]
    fn the_phases_follow_one_another_and_nothing_else() {
        let home = fresh();
        let (first, trusted) = home.seen();
        assert_eq!(trusted, [first]);
        assert!(home.refusal(Phase::Switch).contains("prepare first"));
        assert!(home.refusal(Phase::Finish).contains("nothing to finish"));
        assert!(home.refusal(Phase::Cancel).contains("nothing to cancel"));

        home.do_it(Phase::Prepare);
        let (signer, trusted) = home.seen();
        assert_eq!((signer, trusted.len()), (first, 2));
        assert!(home.refusal(Phase::Switch).contains("--force"), "agents are given no time");
        home.do_it(Phase::Prepare);
        assert_eq!(home.seen().1, trusted, "a phase that is run again makes something else");

        home.do_it(Phase::Switch);
        let (second, trusted) = home.seen();
        assert_ne!(second, first);
        assert_eq!(trusted, [second, first]);
        assert!(home.refusal(Phase::Prepare).contains("finish first"));
        assert!(home.refusal(Phase::Finish).contains("--force"), "agents are given no time");
        let shown = fs::read_to_string(home.file("root-cert.pem")).unwrap();
        assert_eq!(RootId::of(&CertificateDer::from_pem_slice(shown.as_bytes()).unwrap()), second);

        home.do_it(Phase::Finish);
        assert_eq!(home.seen(), (second, vec![second]));
        let left = fs::read_dir(home.file("roots")).unwrap().count();
        assert_eq!(left, 0, "something is left in roots/");
        assert!(home.directory.status().unwrap().iter().any(|line| line == "no rotation is under way"));
    }

    #[test]
    fn what_the_operator_trusts_outlives_a_rotation() {
        let home = fresh();
        let other = fresh();
        fs::create_dir(home.file("roots")).unwrap();
        fs::copy(other.file("root-cert.pem"), home.file("roots/mine.pem")).unwrap();
        for phase in [Phase::Prepare, Phase::Switch, Phase::Finish] {
            home.do_it(phase);
            assert!(home.seen().1.contains(&other.seen().0), "{phase:?}");
        }
    }

    #[test]
    fn keys_are_for_their_owner_alone() {
        let home = fresh();
        home.do_it(Phase::Prepare);
        for name in ["root.pem", "next.pem", "lock"] {
            assert_eq!(fs::metadata(home.file(name)).unwrap().mode() & 0o777, 0o600, "{name}");
        }
        home.do_it(Phase::Switch);
        assert_eq!(fs::metadata(home.file("root.pem")).unwrap().mode() & 0o777, 0o600);
        for entry in fs::read_dir(home.file("roots")).unwrap() {
            assert!(!fs::read_to_string(entry.unwrap().path()).unwrap().contains("PRIVATE"));
        }
    }

    #[test]
    fn roots_that_have_ended_are_not_trusted() {
        let home = fresh();
        let signer = home.directory.signer().unwrap();
        let end = SystemTime::from(signer.not_after);
        assert_eq!(home.directory.trusted(&signer, end - Duration::from_secs(1)).unwrap().len(), 1);
        assert!(home.directory.trusted(&signer, end).unwrap().is_empty());
    }

    /// Whoever looks, at whatever instant of the phases, trusts what has signed before.
    #[test]
    fn what_has_signed_is_trusted_at_every_instant() {
        let home = fresh();
        let (finishing, is_over) = (RwLock::new(()), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let looks = scope.spawn(|| {
                let mut looks = 0;
                while !is_over.load(Ordering::Relaxed) || looks == 0 {
                    let _not_finishing = finishing.read().unwrap();
                    let signed = home.directory.signer().unwrap().id();
                    assert!(home.seen().1.contains(&signed));
                    looks += 1;
                }
                looks
            });
            for _ in 0..30 {
                home.do_it(Phase::Prepare);
                home.do_it(Phase::Switch);
                let _alone = finishing.write().unwrap();
                home.do_it(Phase::Finish);
            }
            is_over.store(true, Ordering::Relaxed);
            assert!(looks.join().unwrap() > 0);
        });
    }
}
