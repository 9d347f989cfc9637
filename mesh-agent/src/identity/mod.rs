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
pub use tls::{PeerError, peer_id};

/// Fills `bytes` with randomness from the source that TLS uses; leaves them as they are if there is none.
pub fn fill_random(bytes: &mut [u8]) {
    let _ = tls::fill_random(bytes);
}
