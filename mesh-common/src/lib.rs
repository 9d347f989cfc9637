//! The contract between the kernel programs and the agent: map keys and values, outcomes, names, and the pure decisions
//! that run in the kernel and are tested on the host.
//!
//! Addresses and ports are byte arrays in network order. Cookies, keys and times are integers in the machine's own
//! order, because they never leave it. Every type is `repr(C)` without padding, because padding in a map key makes two
//! equal keys differ. A changed layout is a new [`names::ABI_VERSION`], never an edit under the old one.
#![no_std]

pub mod addr;
pub mod capture;
pub mod exclude;
pub mod key;
pub mod names;
pub mod outcome;
pub mod record;
pub mod same_node;
pub mod share;
pub mod steer;

#[cfg(feature = "user")]
mod pod;
