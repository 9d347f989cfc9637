//! The limit of open files: raised to what the system allows, and told at start.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that are not connections: maps, programs, pins, listeners, socket stocks, logs.
pub(super) const RESERVE: u64 = 1024;

/// A connection takes one descriptor where it goes through a tunnel and two where it does not.
pub(super) const PER_CONNECTION: u64 = 2;

/// Raises the soft limit to the hard one, and returns how many connections fit at the least.
pub fn raise() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        tracing::warn!(%error, "the limit of open files stays where it is");
    }
    // None is no limit.
    let open_files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    open_files.saturating_sub(RESERVE) / PER_CONNECTION
}
