//! Who a workload is and how it proves it: certificates, their rotation, and the TLS configurations made from them.
//!
//! ```text
//! want(ids) ─► certs: key made here ─► CSR ─► ca (local, remote) ─► chain ─► Svid { client, server } ─► hbone
//!                                              └─ roots ─► trust: asked at each handshake, and for live peers when it changes
//! ```
//!
//! What is not here: private keys never leave this room (an [`Svid`] holds them inside opaque TLS configurations), no
//! connection is made here, and nothing here decides whether an identity may do something.

pub mod ca;
mod certs;
mod clock;
mod directory;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
pub mod istio;
pub mod local_ca;
mod pem;
mod remote;
mod schedule;
mod serving;
mod signing;
mod tls;
mod trust;
mod web;

pub use ca::{BoxFuture, CaError, CaState, CertificateAuthority, CertificateRequest, IssuedCertificate};
pub use certs::{Config, Identities, Svid, SvidStatus};
pub use clock::Clock;
pub use directory::{NewRoot, Phase, RootDirectory, new_root};
pub use remote::{Remote, RemoteAddress, RemoteCa, SIGNS};
pub use serving::Serving;
pub use signing::{Root, Signed, Signing, SigningError, SigningRequest, roots};
pub use tls::{PeerError, peer_expiry, peer_id};
pub use trust::{MAX_ROOTS, Peer, RootId, RootStatus};
pub use web::{WebSettings, WebTls};

use crate::limit::{Limit, limits};

/// The bounds of this room.
pub fn limits() -> Vec<Limit> {
    limits![
        certs::MAX_REQUESTS_IN_FLIGHT, "requests", "a node that starts does not flood the authority";
        certs::REQUEST_TIMEOUT, "milliseconds", "for one answer of the authority";
        schedule::FIRST_RETRY, "milliseconds", "after the first failure; doubled with each further one";
        schedule::LAST_RETRY, "milliseconds", "the longest wait between two tries";
        schedule::URGENT_RETRY, "milliseconds", "the longest wait when the certificate has ended or is about to";
        schedule::SHORTEST_ROTATION, "milliseconds", "between two issues, however short-lived they are";
        schedule::CLOCK_CHECK, "milliseconds", "how long a step of the clock can go unnoticed";
        schedule::RENEWAL_SPREAD, "milliseconds", "within this every certificate follows its authority to another root";
        trust::MAX_ROOTS, "roots", "of a trust bundle; each may be tried for each peer";
        directory::ROOT_LIFETIME, "milliseconds", "of a root that the embedded authority makes";
        directory::MAX_FILE_BYTES, "bytes", "of a file with certificates";
        directory::SETTLE, "milliseconds", "between two phases of a rotation of the root: every agent has taken the first";
        signing::CLOCK_SKEW, "milliseconds", "certificates start this far back, for peers whose clock is behind";
        signing::MAX_INTERMEDIATES, "certificates", "between a leaf and its root";
        local_ca::POLL, "milliseconds", "between two looks at the roots on disk";
        remote::CALL_TIMEOUT, "milliseconds", "for one answer of a remote authority; below REQUEST_TIMEOUT, which would not say why";
        remote::CONNECT_TIMEOUT, "milliseconds", "for a connection to a remote authority";
        remote::KEEPALIVE, "milliseconds", "between signs of life of a remote authority that owes an answer";
        remote::MAX_TOKEN_BYTES, "bytes", "of the token that a remote authority is shown";
        remote::MAX_ANSWER_BYTES, "bytes", "of a remote authority's answer";
    ]
}

/// A digest of something that is compared and not kept.
pub type Digest = [u8; 32];

/// SHA-256.
pub fn digest(bytes: &[u8]) -> Digest {
    let mut digest = Digest::default();
    for (byte, computed) in digest.iter_mut().zip(tls::sha256(bytes).as_ref()) {
        *byte = *computed;
    }
    digest
}

/// Fills `bytes` with randomness from the source that TLS uses; leaves them as they are if there is none.
pub fn fill_random(bytes: &mut [u8]) {
    let _ = tls::fill_random(bytes);
}
