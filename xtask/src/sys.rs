//! The one unsafe call of xtask.
#![allow(unsafe_code)]

use std::io;

use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Gives the calling thread a mount namespace of its own, a copy of the one it was in.
pub fn unshare_mounts() -> io::Result<()> {
    // SAFETY: the call is unsafe because some flags take the file descriptor table away from other threads. NEWNS
    // takes only mounts and the working directory, and no memory of this process depends on either.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS)? };
    Ok(())
}
