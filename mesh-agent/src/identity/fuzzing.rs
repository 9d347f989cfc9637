//! Fuzz target: whatever a peer may show for a certificate.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::CertificateDer;

use super::ca::CertificateRequest;
use super::clock::Clock;
use super::local_ca::LocalCa;
use super::trust::{Peer, Trust};
use super::{peer_expiry, peer_id, tls};
use crate::spiffe::SpiffeId;

/// A root and the only certificate that it ever signed.
struct Mesh {
    trust: Trust,
    leaf: CertificateDer<'static>,
}

/// Chains are written as certificates with their length before each, two bytes.
pub fn chain(input: &[u8]) {
    let Mesh { trust, leaf } = mesh();
    let chain = certificates(input);
    let read = peer_id(Some(&chain));
    assert!(read.is_err() || peer_expiry(Some(&chain)).is_ok(), "an identity without an end");
    if let Ok(id) = &read {
        assert_eq!(SpiffeId::parse(id.as_str()).as_ref(), Ok(id));
    }
    for certificate in &chain {
        let _ = (tls::root_facts(certificate), tls::leaf_facts(certificate));
        // Any root at all may be in a file of the operator's.
        let _ = Trust::new(Clock::system()).replace(std::slice::from_ref(certificate));
    }
    if chain.first() != Some(leaf) {
        assert!(trust.peer(Some(&chain)).is_err(), "a certificate that the root did not sign is trusted");
    }
}

/// A peer of a mesh, for whoever needs one.
pub fn peer() -> Peer {
    let Mesh { trust, leaf } = mesh();
    trust.peer(Some(std::slice::from_ref(leaf))).expect("the mesh's own certificate")
}

fn certificates(mut input: &[u8]) -> Vec<CertificateDer<'static>> {
    let mut chain = Vec::new();
    while let Some((length, rest)) = input.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes(*length)).min(rest.len());
        let (certificate, rest) = rest.split_at(length);
        chain.push(CertificateDer::from(certificate.to_vec()));
        input = rest;
    }
    chain
}

fn mesh() -> &'static Mesh {
    static MESH: OnceLock<Mesh> = OnceLock::new();
    MESH.get_or_init(|| {
        let ca = LocalCa::memory("cluster.local").expect("a root");
        let id = SpiffeId::new("cluster.local", "shop", "web").expect("an id");
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key");
        let csr = CertificateParams::default().serialize_request(&key).expect("a request").der().to_vec();
        let request = CertificateRequest { id, csr, lifetime: Duration::from_secs(365 * 24 * 3600) };
        let leaf = ca.sign_now(&request).expect("a certificate").chain.remove(0);
        let trust = Trust::new(Clock::new(SystemTime::now));
        trust.replace(&[ca.root()]).expect("the root is trusted");
        Mesh { trust, leaf }
    })
}
