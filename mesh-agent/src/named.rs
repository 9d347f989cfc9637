//! Names and addresses of workloads in the log: kept out of it, unless somebody asks for them.
//!
//! A log goes to more people than a cluster's objects do. Above debug only the access log (target `access`) and the authority's
//! audit (target `audit`) say whom they speak of: that is what they are for. Every other line has what tells one object
//! from another, a UID or a serial, and names with [`named`], which are written where the log's filter lets debug of the
//! target `names` pass: with `debug`, and with `info,names=debug`.

use std::fmt::Display;

use tracing::Level;
use tracing::field::{DisplayValue, display};

/// The target by which names alone are asked for.
const TARGET: &str = "names";

/// A name, an address or an identity of a workload, as the value of a field: there is no such field where nobody asked.
pub fn named<T: Display>(value: T) -> Option<DisplayValue<T>> {
    tracing::enabled!(target: TARGET, Level::DEBUG).then(|| display(value))
}
