//! The unsafe calls of xtask.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;

use rustix::ioctl::{Opcode, Updater, ioctl};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Gives the calling thread a mount namespace of its own, a copy of the one it was in.
pub fn unshare_mounts() -> io::Result<()> {
    // SAFETY: the call is unsafe because some flags take the file descriptor table away from other threads. NEWNS
    // takes only mounts and the working directory, and no memory of this process depends on either.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS)? };
    Ok(())
}

/// `_IOW('T', 202, int)` of linux/if_tun.h.
const TUNSETIFF: Opcode = 0x4004_54ca;
const IFF_TAP: i16 = 0x0002;
/// Frames alone, with no header of the driver's before them.
const IFF_NO_PI: i16 = 0x1000;

/// `struct ifreq`: a name of at most 15 bytes and, for this call, flags; 40 bytes in all.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: i16,
    rest: [u8; 22],
}

/// Makes an open /dev/net/tun a TAP interface of the network namespace that it was opened in.
pub fn become_tap(tun: &File, name: &str) -> io::Result<()> {
    let mut request = InterfaceRequest { name: [0; 16], flags: IFF_TAP | IFF_NO_PI, rest: [0; 22] };
    if name.len() >= request.name.len() {
        return Err(io::Error::from(io::ErrorKind::InvalidFilename));
    }
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: TUNSETIFF takes a pointer to a struct ifreq, which this is in size and layout, and writes it back.
    unsafe { ioctl(tun, Updater::<TUNSETIFF, InterfaceRequest>::new(&mut request))? };
    Ok(())
}
