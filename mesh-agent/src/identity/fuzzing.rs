//! Fuzz target: whatever a peer may show for a certificate.
//!
//! The mesh is the same in every process, keys, clock and signatures, so that what one run put into the corpus the next
//! one can trust as far. A part of an input can be the inside of a certificate, which the root or a workload then signs:
//! no mutation of a signed certificate gets past its signature, and the checks behind it would never be reached.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
    SerialNumber, SigningKey,
};
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;

use super::clock::Clock;
use super::signing::leaf_params;
use super::tls::{self, PeerVerifier};
use super::trust::{Peer, Trust};
use super::{peer_expiry, peer_id};
use crate::spiffe::SpiffeId;

const TRUST_DOMAIN: &str = "cluster.local";
/// What the time is in every run.
const NOW: Duration = Duration::from_secs(1_800_000_000);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A root, a workload's key, and the only certificate that the root ever signed by itself.
struct Mesh {
    root: KeyPair,
    workload: KeyPair,
    leaf: CertificateDer<'static>,
    trust: Trust,
    verifier: PeerVerifier,
}

/// A certificate of an input: two bytes that say what and how long, then as many bytes.
struct Shown {
    certificate: CertificateDer<'static>,
    /// The root has signed what the input says.
    is_made_by_root: bool,
}

/// What the bytes of a [`Shown`] are, in the highest two bits of its length.
mod kind {
    pub const CERTIFICATE: u16 = 0;
    /// The inside of a certificate, for the root to sign.
    pub const OF_ROOT: u16 = 1;
    /// The inside of a certificate, for a workload to sign that may not sign.
    pub const OF_WORKLOAD: u16 = 2;
    // Else the mesh's own leaf.
    pub const SHIFT: u32 = 14;
}

/// Only what the root has signed is trusted, and whoever is trusted is somebody, by a certificate that is in force.
pub fn chain(input: &[u8]) {
    let mesh = mesh();
    let shown = shown(mesh, input);
    let is_made_by_root = shown.iter().any(|shown| shown.is_made_by_root);
    let chain: Vec<_> = shown.into_iter().map(|shown| shown.certificate).collect();
    let read = peer_id(Some(&chain));
    assert!(read.is_err() || peer_expiry(Some(&chain)).is_ok(), "an identity without an end");
    if let Ok(id) = &read {
        assert_eq!(SpiffeId::parse(id.as_str()).as_ref(), Ok(id));
    }
    for certificate in &chain {
        let _ = (tls::root_facts(certificate), tls::leaf_facts(certificate));
        // Any root at all may be in a file of the operator's.
        let _ = Trust::new(clock()).replace(std::slice::from_ref(certificate));
    }
    let verdict = handshake(mesh, &chain);
    let peer = mesh.trust.peer(Some(&chain));
    if verdict.is_some() || peer.is_ok() {
        assert!(is_made_by_root || chain.first() == Some(&mesh.leaf), "what the root did not sign is trusted");
    }
    if let Some(id) = verdict {
        assert_eq!(id.trust_domain(), TRUST_DOMAIN);
        let peer = peer.expect("the handshake trusts whom nobody can rely on");
        assert_eq!(peer.id, id);
        assert!(peer.is_current(), "the handshake trusts a certificate that has ended");
    }
}

/// Whom a handshake takes the other end for, if anybody; a client and a server agree on it.
fn handshake(mesh: &Mesh, chain: &[CertificateDer<'static>]) -> Option<SpiffeId> {
    let (leaf, intermediates) = chain.split_first()?;
    let now = UnixTime::since_unix_epoch(NOW);
    let name = ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into());
    let by_client = mesh.verifier.verify_server_cert(leaf, intermediates, &name, &[], now);
    let by_server = mesh.verifier.verify_client_cert(leaf, intermediates, now);
    assert_eq!(by_client.is_ok(), by_server.is_ok(), "{:?} and {:?}", by_client.err(), by_server.err());
    by_client.ok()?;
    Some(peer_id(Some(chain)).expect("a handshake that nobody's certificate passes"))
}

/// A peer of a mesh, for whoever needs one.
pub fn peer() -> Peer {
    let Mesh { trust, leaf, .. } = mesh();
    trust.peer(Some(std::slice::from_ref(leaf))).expect("the mesh's own certificate")
}

fn shown(mesh: &Mesh, mut input: &[u8]) -> Vec<Shown> {
    let mut chain = Vec::new();
    while let Some((head, rest)) = input.split_first_chunk() {
        let head = u16::from_be_bytes(*head);
        let (kind, length) = (head >> kind::SHIFT, usize::from(head & ((1 << kind::SHIFT) - 1)));
        let (bytes, rest) = rest.split_at(length.min(rest.len()));
        let certificate = match kind {
            kind::CERTIFICATE => CertificateDer::from(bytes.to_vec()),
            kind::OF_ROOT => signed(bytes, &mesh.root),
            kind::OF_WORKLOAD => signed(bytes, &mesh.workload),
            _ => mesh.leaf.clone(),
        };
        chain.push(Shown { certificate, is_made_by_root: kind == kind::OF_ROOT });
        input = rest;
    }
    chain
}

/// A certificate (RFC 5280, 4.1) around its inside.
fn signed(inside: &[u8], key: &KeyPair) -> CertificateDer<'static> {
    /// SEQUENCE { OID 1.3.101.112 }, Ed25519 (RFC 8410).
    const ALGORITHM: &[u8] = &[0x30, 5, 6, 3, 0x2b, 0x65, 0x70];
    const SEQUENCE: u8 = 0x30;
    const BIT_STRING: u8 = 3;
    let signature = key.sign(inside).expect("a signature");
    let bits = element(BIT_STRING, &[&[0], signature.as_slice()].concat());
    element(SEQUENCE, &[inside, ALGORITHM, &bits].concat()).into()
}

/// DER: tag, length, contents.
fn element(tag: u8, contents: &[u8]) -> Vec<u8> {
    let length = contents.len().to_be_bytes();
    let length: Vec<u8> = length.into_iter().skip_while(|byte| *byte == 0).collect();
    let mut element = vec![tag];
    match *length.as_slice() {
        [] => element.push(0),
        [short] if short < 0x80 => element.push(short),
        _ => {
            element.push(0x80 | u8::try_from(length.len()).unwrap_or_default());
            element.extend(&length);
        }
    }
    element.extend(contents);
    element
}

fn mesh() -> &'static Mesh {
    static MESH: OnceLock<Mesh> = OnceLock::new();
    MESH.get_or_init(|| {
        let (root, workload) = (key(1), key(2));
        let certificate = root_params().self_signed(&root).expect("a root").der().clone();
        let leaf = leaf("web").signed_by(&workload, &issuer()).expect("a certificate").der().clone();
        let trust = Trust::new(clock());
        trust.replace(std::slice::from_ref(&certificate)).expect("the root is trusted");
        let verifier = PeerVerifier::new(trust.clone(), TRUST_DOMAIN);
        Mesh { root, workload, leaf, trust, verifier }
    })
}

fn clock() -> Clock {
    Clock::new(|| SystemTime::UNIX_EPOCH + NOW)
}

/// A key that is no secret. Ed25519, because its signatures are the same each time.
fn key(seed: u8) -> KeyPair {
    /// Of a PKCS #8 key (RFC 8410), the seed of 32 bytes follows.
    const HEAD: &[u8] = &[0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    let pkcs8 = PrivatePkcs8KeyDer::from([HEAD, &[seed; 32]].concat());
    KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8, &rcgen::PKCS_ED25519).expect("a key")
}

fn issuer() -> Issuer<'static, KeyPair> {
    Issuer::new(root_params(), key(1))
}

/// A root as the embedded authority makes it, but for the serial number and the time.
fn root_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    let now = SystemTime::UNIX_EPOCH + NOW;
    (params.not_before, params.not_after) = ((now - DAY).into(), (now + 3650 * DAY).into());
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "Nodemesh root");
    params.serial_number = Some(SerialNumber::from_slice(&[1]));
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{TRUST_DOMAIN}").try_into().expect("it is ASCII"))];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// A leaf as the embedded authority makes it, but for the serial number and the time.
fn leaf(account: &str) -> CertificateParams {
    let now = SystemTime::UNIX_EPOCH + NOW;
    let id = SpiffeId::new(TRUST_DOMAIN, "shop", account).expect("an id");
    let mut params = leaf_params(&id, now.into(), DAY, (now + DAY).into()).expect("a leaf");
    params.serial_number = Some(SerialNumber::from_slice(&[2]));
    params
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use rcgen::ExtendedKeyUsagePurpose;
    use x509_parser::prelude::{FromDer, X509Certificate};

    use super::*;

    type Edit = fn(&mut CertificateParams);

    /// Leaves that the root signs, by how they differ from what the authority makes, and what a handshake says to them.
    const LEAVES: &[(&str, Edit, &str)] = &[
        ("as-it-should", |_| (), "spiffe://cluster.local/ns/shop/sa/api"),
        ("no-name", |leaf| leaf.subject_alt_names.clear(), "UriNames(0)"),
        ("two-names", |leaf| leaf.subject_alt_names.push(uri("spiffe://cluster.local/ns/shop/sa/b")), "UriNames(2)"),
        ("dns-name-too", |leaf| leaf.subject_alt_names.push(dns("api.shop")), "spiffe://cluster.local/ns/shop/sa/api"),
        ("other-name", |leaf| leaf.subject_alt_names = vec![uri("https://cluster.local/")], "NotSpiffe"),
        (
            "other-domain",
            |leaf| leaf.subject_alt_names = vec![uri("spiffe://other.local/ns/shop/sa/api")],
            "TrustDomain(\"other.local\")",
        ),
        ("authority", |leaf| leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained), "CaUsedAsEndEntity"),
        ("no-usage", |leaf| leaf.key_usages.clear(), "KeyUsage"),
        ("signs-too", |leaf| leaf.key_usages.push(KeyUsagePurpose::KeyCertSign), "KeyUsage"),
        ("no-extended-usage", |leaf| leaf.extended_key_usages.clear(), "ExtendedKeyUsage"),
        ("server-alone", |leaf| drop(leaf.extended_key_usages.pop()), "ExtendedKeyUsage"),
        ("any-usage", |leaf| leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any], "InvalidPurpose"),
        ("ended", |leaf| leaf.not_after = (SystemTime::UNIX_EPOCH + NOW - DAY).into(), "Expired"),
        ("to-come", |leaf| leaf.not_before = (SystemTime::UNIX_EPOCH + NOW + DAY).into(), "NotValidYet"),
    ];

    /// What a handshake says to the input, and that it is what the target finds.
    fn verdict(input: &[u8]) -> String {
        let mesh = mesh();
        let chain: Vec<_> = shown(mesh, input).into_iter().map(|shown| shown.certificate).collect();
        super::chain(input);
        let name = ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into());
        let verified =
            mesh.verifier.verify_server_cert(&chain[0], &chain[1..], &name, &[], UnixTime::since_unix_epoch(NOW));
        match verified {
            Ok(_) => peer_id(Some(&chain)).unwrap().to_string(),
            Err(error) => format!("{error:?}"),
        }
    }

    /// Every input of the corpus that is made here: its name, itself, a part of the verdict.
    fn corpus() -> Vec<(&'static str, Vec<u8>, &'static str)> {
        let mut corpus: Vec<_> = LEAVES
            .iter()
            .map(|(name, edit, expected)| {
                let mut params = leaf("api");
                edit(&mut params);
                (*name, part(kind::OF_ROOT, &inside(&params, &issuer())), *expected)
            })
            .collect();
        let own = part(3, &[]);
        let raw = part(kind::CERTIFICATE, &mesh().leaf);
        let nameless = Issuer::new(leaf("web"), key(2));
        let by_workload = part(kind::OF_WORKLOAD, &inside(&leaf("admin"), &nameless));
        let mut between = root_params();
        between.distinguished_name = DistinguishedName::new();
        between.distinguished_name.push(DnType::CommonName, "between");
        let between = part(kind::OF_ROOT, &inside(&between, &issuer()));
        let mut name = root_params();
        name.distinguished_name.push(DnType::CommonName, "between");
        let by_between = part(kind::OF_WORKLOAD, &inside(&leaf("api"), &Issuer::new(name, key(2))));
        corpus.extend([
            ("own", own.clone(), "spiffe://cluster.local/ns/shop/sa/web"),
            ("own-in-full", raw, "spiffe://cluster.local/ns/shop/sa/web"),
            ("by-a-workload", by_workload.clone(), "UnknownIssuer"),
            ("by-a-workload-with-its-own", [by_workload, own].concat(), "UnknownIssuer"),
            ("by-an-intermediate", [by_between, between].concat(), "spiffe://cluster.local/ns/shop/sa/api"),
        ]);
        corpus
    }

    fn part(kind: u16, bytes: &[u8]) -> Vec<u8> {
        let head = kind << kind::SHIFT | u16::try_from(bytes.len()).unwrap();
        [&head.to_be_bytes(), bytes].concat()
    }

    /// For the workload's key, as the issuer would sign it.
    fn inside(params: &CertificateParams, issuer: &Issuer<'_, KeyPair>) -> Vec<u8> {
        let certificate = params.clone().signed_by(&key(2), issuer).unwrap();
        X509Certificate::from_der(certificate.der()).unwrap().1.tbs_certificate.as_ref().to_vec()
    }

    fn uri(name: &str) -> SanType {
        SanType::URI(name.try_into().unwrap())
    }

    fn dns(name: &str) -> SanType {
        SanType::DnsName(name.try_into().unwrap())
    }

    fn file(name: &str) -> PathBuf {
        [env!("CARGO_MANIFEST_DIR"), "fuzz/corpus/peer_certificate", name].iter().collect()
    }

    #[test]
    fn the_corpus_reaches_every_check() {
        for (name, input, expected) in corpus() {
            let said = verdict(&input);
            assert!(said.contains(expected), "{name}: {said}");
            let committed = fs::read(file(name)).unwrap_or_default();
            assert!(committed == input, "{name} is not what is committed: cargo test -- --ignored corpus_is_written");
        }
    }

    #[test]
    #[ignore = "it changes the clone"]
    fn corpus_is_written() {
        for (name, input, _) in corpus() {
            fs::write(file(name), input).unwrap();
        }
    }

    #[test]
    fn one_mesh_in_every_process() {
        assert_eq!(verdict(&fs::read(file("own-in-full")).unwrap()), "spiffe://cluster.local/ns/shop/sa/web");
    }
}
