//! Pinned links: made once, updated in place by every later agent.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::Path;

use crate::sys;

/// What a link is attached to, and how the kernel names that afterwards.
#[derive(Clone, Copy)]
pub(super) enum Target {
    /// A cgroup directory.
    Cgroup {
        /// Open on it.
        descriptor: RawFd,
        /// Its inode number.
        id: u64,
    },
    /// A network namespace.
    Namespace {
        /// Open on it.
        descriptor: RawFd,
        /// Its inode number.
        inode: u64,
    },
    /// An interface of this namespace.
    Interface(u32),
}

impl Target {
    fn is_of(self, link: &OwnedFd) -> bool {
        let seen = match self {
            Target::Cgroup { .. } => sys::link_cgroup(link.as_fd()),
            Target::Namespace { .. } | Target::Interface(_) => sys::link_target(link.as_fd()).map(u64::from),
        };
        let expected = match self {
            Target::Cgroup { id, .. } => id,
            Target::Namespace { inode, .. } => inode,
            Target::Interface(index) => u64::from(index),
        };
        seen.is_ok_and(|seen| seen == expected)
    }

    fn number(self) -> u32 {
        match self {
            Target::Cgroup { descriptor, .. } | Target::Namespace { descriptor, .. } => descriptor as u32,
            Target::Interface(index) => index,
        }
    }
}

/// Puts `program` behind the link pinned at `pin` if that is attached to `target`; else attaches and pins anew. A link
/// whose target went away is defunct and cannot be updated.
pub(super) fn ensure(pin: &Path, program: &OwnedFd, target: Target, attach_type: u32) -> io::Result<()> {
    if let Ok(link) = sys::bpf_open(pin) {
        if target.is_of(&link) && sys::link_update(link.as_fd(), program.as_fd()).is_ok() {
            return Ok(());
        }
        fs::remove_file(pin)?;
    }
    let link = sys::link_create(program.as_fd(), target.number(), attach_type)?;
    sys::bpf_pin(link.as_fd(), pin)
}

/// Whether the cgroup of a pinned cgroup link is gone.
pub(super) fn is_defunct(pin: &Path) -> bool {
    sys::bpf_open(pin).and_then(|link| sys::link_cgroup(link.as_fd())).is_ok_and(|id| id == 0)
}
