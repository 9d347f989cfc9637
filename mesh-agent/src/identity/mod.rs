//! Who a workload is and how it proves it: certificates, their rotation, and the TLS configurations made from them.
//!
//! ```text
//! want(ids) ─► certs: key made here ─► CSR ─► ca (local today, remote later) ─► chain ─► Svid { client, server } ─► hbone
//! ```
//!
//! What is not here: private keys never leave this room (an [`Svid`] holds them inside opaque TLS configurations), no
//! connection is made here, and nothing here decides whether an identity may do something.

pub mod ca;
mod certs;
pub mod local_ca;
mod tls;

pub use ca::{BoxFuture, CaError, CertificateAuthority, CertificateRequest, IssuedCertificate};
pub use certs::{Config, Identities, Svid, SvidStatus};
pub use tls::{PeerError, peer_expiry, peer_id};

use crate::limit::{Limit, limits};

/// The bounds of this room.
pub fn limits() -> Vec<Limit> {
    limits![
        certs::MAX_REQUESTS_IN_FLIGHT, "requests", "a node that starts does not flood the authority";
        certs::REQUEST_TIMEOUT, "milliseconds", "for one answer of the authority";
        certs::FIRST_RETRY, "milliseconds", "after the first failure; doubled with each further one";
        certs::LAST_RETRY, "milliseconds", "the longest wait between two tries";
        certs::SHORTEST_ROTATION, "milliseconds", "between two issues, however short-lived they are";
        local_ca::ROOT_LIFETIME, "milliseconds", "of a root that the embedded authority makes";
        local_ca::CLOCK_SKEW, "milliseconds", "certificates start this far back, for peers whose clock is behind";
    ]
}

/// Fills `bytes` with randomness from the source that TLS uses; leaves them as they are if there is none.
pub fn fill_random(bytes: &mut [u8]) {
    let _ = tls::fill_random(bytes);
}
