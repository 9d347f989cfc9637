//! The limit of open files: raised to what the system allows, and shared out.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that are not connections: maps, programs, pins, listeners, socket stocks, logs. A quarter of all where
/// there are so few that this would be more.
pub(super) const RESERVE: u64 = 1024;

/// A connection takes one descriptor where it goes through a tunnel and two where it does not.
pub(super) const PER_CONNECTION: u64 = 2;

/// Percent of the descriptors that the connections of one pod get at most: its neighbours have the rest.
pub(super) const POD_SHARE: u64 = 80;

/// How many descriptors connections may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptors(u64);

impl Descriptors {
    /// Raises the soft limit to the hard one.
    pub fn raise() -> Self {
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        if current != maximum
            && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
        {
            tracing::warn!(%error, "the limit of open files stays where it is");
        }
        // None is no limit.
        Self::of(getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX))
    }

    fn of(open_files: u64) -> Self {
        Self(open_files.saturating_sub(RESERVE.min(open_files / 4)))
    }

    /// All of them.
    pub fn count(self) -> u64 {
        self.0
    }

    /// How many connections fit at the least.
    pub fn connections(self) -> u64 {
        self.0 / PER_CONNECTION
    }

    /// How many connections one pod may have, if each takes one.
    pub fn of_one_pod(self) -> u64 {
        self.0 / 100 * POD_SHARE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_pod_holds_15_000_connections_within_20_000_descriptors() {
        for (open_files, count, at_least, of_one_pod) in
            [(1024, 768, 384, 560), (20_000, 18_976, 9_488, 15_120), (1_048_576, 1_047_552, 523_776, 838_000)]
        {
            let descriptors = Descriptors::of(open_files);
            let shared = (descriptors.count(), descriptors.connections(), descriptors.of_one_pod());
            assert_eq!(shared, (count, at_least, of_one_pod), "{open_files}");
        }
        assert!(Descriptors::of(u64::MAX).of_one_pod() > u64::from(u32::MAX));
    }
}
