//! The agent's only unsafe: system calls that no safe crate offers. Each function is one call with its checks.
#![allow(unsafe_code, reason = "the one place for it; each block says why it holds")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use aya::Pod;

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_MAP_GET_NEXT_KEY: libc::c_long = 4;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_long = 21;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;

/// The head of `union bpf_attr`, large enough for every command here; the rest reads as zero.
#[repr(C, align(8))]
struct Attributes([u32; 16]);

impl Attributes {
    fn new() -> Self {
        Self([0; 16])
    }

    fn word(mut self, index: usize, value: u32) -> Self {
        if let Some(word) = self.0.get_mut(index) {
            *word = value;
        }
        self
    }

    /// Two words that hold a pointer or another 64-bit value.
    fn long(self, index: usize, value: u64) -> Self {
        let bytes = value.to_ne_bytes();
        let [a, b, c, d, e, f, g, h] = bytes;
        self.word(index, u32::from_ne_bytes([a, b, c, d])).word(index + 1, u32::from_ne_bytes([e, f, g, h]))
    }
}

/// The processor time that this thread has used (clock_gettime(2), CLOCK_THREAD_CPUTIME_ID, since Linux 2.6.12).
pub fn thread_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is writable for its own size.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    let (Ok(seconds), Ok(nanos)) = (u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec)) else {
        return Duration::ZERO;
    };
    // It fails for clocks that the kernel does not know only.
    if result == 0 { Duration::new(seconds, nanos) } else { Duration::ZERO }
}

/// Gives the pages that this thread has freed back to the system. For the end of work that took much memory and is not
/// done again: the allocator keeps pages for a thread that may want them soon.
pub fn give_memory_back() {
    collect(true);
}

/// The same for pages that have been free for a second, which the allocator does by itself only where it is asked for
/// much: after a crowd has gone, nobody asks.
pub fn give_old_memory_back() {
    collect(false);
}

fn collect(all: bool) {
    // SAFETY: takes no pointer, and may be called whether or not anything was allocated by this allocator.
    unsafe { libmimalloc_sys::mi_collect(all) };
}

/// # Safety
/// Every pointer in `attributes` is valid for what `command` reads and writes through it.
unsafe fn bpf(command: libc::c_long, attributes: &mut Attributes) -> io::Result<i64> {
    // SAFETY: the attributes are readable and writable for their own size; the caller vouches for what they point at.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.0.as_mut_ptr(), size_of::<Attributes>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// # Safety
/// As [`bpf`]; and `command` returns a new descriptor.
unsafe fn bpf_descriptor(command: libc::c_long, attributes: &mut Attributes) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise.
    let descriptor = unsafe { bpf(command, attributes)? };
    let descriptor = i32::try_from(descriptor).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    // SAFETY: the kernel has just made it, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn element<K>(map: BorrowedFd<'_>, key: *const K, value: u64, flags: u64) -> Attributes {
    Attributes::new().word(0, map.as_raw_fd() as u32).long(2, key as u64).long(4, value).long(6, flags)
}

/// Makes a hash map that only agents use: the kernel programs have none of it.
pub fn map_create<K: Pod, V: Pod>(entries: u32) -> io::Result<OwnedFd> {
    const HASH: u32 = 1;
    let sizes = [HASH, size_of::<K>() as u32, size_of::<V>() as u32, entries];
    let mut attributes = Attributes::new();
    for (index, word) in sizes.into_iter().enumerate() {
        attributes = attributes.word(index, word);
    }
    // SAFETY: no pointers.
    unsafe { bpf_descriptor(BPF_MAP_CREATE, &mut attributes) }
}

/// Reads a map's value into `value`, which is as large as the map's value, or as all CPUs' for a per-CPU map.
///
/// # Errors
/// NotFound where there is none.
pub fn map_lookup<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K, value: &mut [V]) -> io::Result<()> {
    let mut attributes = element(map, key, value.as_mut_ptr() as u64, 0);
    // SAFETY: key and value live through the call; capture's tables pair each map with the types of its ABI, which
    // the map was created with.
    unsafe { bpf(BPF_MAP_LOOKUP_ELEM, &mut attributes) }.map(drop)
}

/// Writes a map's value; `flags` 1 means only if there is none.
pub fn map_update<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K, value: &V, flags: u64) -> io::Result<()> {
    let mut attributes = element(map, key, std::ptr::from_ref(value) as u64, flags);
    // SAFETY: as in map_lookup.
    unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut attributes) }.map(drop)
}

/// Removes a map's element.
///
/// # Errors
/// NotFound where there is none.
pub fn map_delete<K: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<()> {
    let mut attributes = element(map, key, 0, 0);
    // SAFETY: as in map_lookup.
    unsafe { bpf(BPF_MAP_DELETE_ELEM, &mut attributes) }.map(drop)
}

/// Removes a map's element and reads it into `value`, in one step. Kernel 5.14 for hash maps.
///
/// # Errors
/// NotFound where there is none.
pub fn map_take<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K, value: &mut V) -> io::Result<()> {
    let mut attributes = element(map, key, std::ptr::from_mut(value) as u64, 0);
    // SAFETY: as in map_lookup.
    unsafe { bpf(BPF_MAP_LOOKUP_AND_DELETE_ELEM, &mut attributes) }.map(drop)
}

/// The numbers of an array map themselves, in which kernel programs count too. They stay mapped until the process ends.
///
/// # Errors
/// InvalidData where the map has another number of them.
pub fn map_numbers(map: BorrowedFd<'_>, count: usize) -> io::Result<&'static [AtomicI64]> {
    if map_entries(map)? as usize != count {
        return Err(io::Error::from(io::ErrorKind::InvalidData));
    }
    let length = count * size_of::<AtomicI64>();
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping, where the kernel likes.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, libc::MAP_SHARED, map.as_raw_fd(), 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: page-aligned, as long as the mapping, which is never taken away; the kernel adds to a number at once, as
    // atomics do here.
    Ok(unsafe { std::slice::from_raw_parts(start.cast::<AtomicI64>(), count) })
}

/// The key after `key`, or the first.
///
/// # Errors
/// NotFound after the last.
pub fn map_next_key<K: Pod>(map: BorrowedFd<'_>, key: Option<&K>) -> io::Result<K> {
    let key = key.map_or(std::ptr::null(), std::ptr::from_ref);
    let mut next = std::mem::MaybeUninit::<K>::zeroed();
    let mut attributes = element(map, key, next.as_mut_ptr() as u64, 0);
    // SAFETY: as in map_lookup; the kernel takes a null key for "the first".
    unsafe { bpf(BPF_MAP_GET_NEXT_KEY, &mut attributes)? };
    // SAFETY: plain bytes, zeroed before and written by the kernel.
    Ok(unsafe { next.assume_init() })
}

fn path_pointer(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

/// Opens what is pinned at `path`.
pub fn bpf_open(path: &Path) -> io::Result<OwnedFd> {
    let path = path_pointer(path)?;
    let mut attributes = Attributes::new().long(0, path.as_ptr() as u64);
    // SAFETY: a C string that lives through the call.
    unsafe { bpf_descriptor(BPF_OBJ_GET, &mut attributes) }
}

/// Pins an object at `path`.
pub fn bpf_pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = path_pointer(path)?;
    let mut attributes = Attributes::new().long(0, path.as_ptr() as u64).word(2, object.as_raw_fd() as u32);
    // SAFETY: a C string that lives through the call.
    unsafe { bpf(BPF_OBJ_PIN, &mut attributes) }.map(drop)
}

/// Attaches a program: `target` is a cgroup's or namespace's descriptor, or an interface's index.
pub fn link_create(program: BorrowedFd<'_>, target: u32, attach_type: u32) -> io::Result<OwnedFd> {
    let mut attributes = Attributes::new().word(0, program.as_raw_fd() as u32).word(1, target).word(2, attach_type);
    // SAFETY: no pointers.
    unsafe { bpf_descriptor(BPF_LINK_CREATE, &mut attributes) }
}

/// Puts another program behind a link, without a gap.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = Attributes::new().word(0, link.as_raw_fd() as u32).word(1, program.as_raw_fd() as u32);
    // SAFETY: no pointers.
    unsafe { bpf(BPF_LINK_UPDATE, &mut attributes) }.map(drop)
}

/// What a link is attached to: a namespace's inode or an interface's index, 0 when that is gone. Not for cgroup links,
/// whose target is [`link_cgroup`].
pub fn link_target(link: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(object_info(link)?.get(4).copied().unwrap_or(0))
}

/// How many entries a map was made for.
pub fn map_entries(map: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(object_info(map)?.get(4).copied().unwrap_or(0))
}

/// The id of the cgroup that a link is attached to.
pub fn link_cgroup(link: BorrowedFd<'_>) -> io::Result<u64> {
    let info = object_info(link)?;
    let [low, high] = [info.get(4), info.get(5)].map(|word| word.copied().unwrap_or(0).to_ne_bytes());
    let [[a, b, c, d], [e, f, g, h]] = [low, high];
    Ok(u64::from_ne_bytes([a, b, c, d, e, f, g, h]))
}

fn object_info(object: BorrowedFd<'_>) -> io::Result<[u32; 32]> {
    let mut info = [0u32; 32];
    let mut attributes = Attributes::new()
        .word(0, object.as_raw_fd() as u32)
        .word(1, size_of_val(&info) as u32)
        .long(2, info.as_mut_ptr() as u64);
    // SAFETY: the kernel writes at most as much as the length says.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)? };
    Ok(info)
}

/// The cookie of the network namespace that a socket lives in. Kernel 5.14.
pub fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    const SO_NETNS_COOKIE: i32 = 71;
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: eight writable bytes, and their length.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &mut length,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

/// What the kernel has measured on a TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpInfo {
    /// The smoothed time from a segment to its acknowledgement; zero before the first was measured.
    pub rtt: Duration,
    /// Segments that were sent again, since it was made.
    pub retransmits: u32,
}

/// Asks for it. One system call, which takes the socket's lock for a moment.
pub fn tcp_info(socket: BorrowedFd<'_>) -> io::Result<TcpInfo> {
    // `struct tcp_info` up to and with `tcpi_total_retrans` (Linux 2.6): eight bytes, then words.
    const WORDS: usize = 26;
    const RTT: usize = 17;
    const TOTAL_RETRANS: usize = 25;
    let mut info = [0u32; WORDS];
    let mut length = size_of_val(&info) as libc::socklen_t;
    // SAFETY: as many writable bytes as the length says; the kernel writes no more.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, info.as_mut_ptr().cast(), &mut length)
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(TcpInfo { rtt: Duration::from_micros(info[RTT].into()), retransmits: info[TOTAL_RETRANS] })
}

/// Sets an integer socket option that no crate knows.
pub fn set_socket_option(socket: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: four readable bytes, and their length.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(&value).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// CLOCK_MONOTONIC in nanoseconds, as the kernel programs see it.
pub fn monotonic_time() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a writable timespec; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    (time.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(time.tv_nsec as u64)
}

/// What the kernel wrote in one piece; none if the length is another.
pub fn read_plain<V: Pod>(bytes: &[u8]) -> Option<V> {
    if bytes.len() != size_of::<V>() {
        return None;
    }
    // SAFETY: as many bytes as the type has, of which every pattern is a value; they need not be aligned.
    Some(unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) })
}

/// A value of plain bytes, all zero, to be written over.
pub fn zeroed<V: Pod>() -> V {
    // SAFETY: Pod types are valid for every bit pattern.
    unsafe { std::mem::zeroed() }
}

/// Registers a ring buffer for waking up when it has something.
pub fn watch_ring(
    ring: aya::maps::RingBuf<aya::maps::MapData>,
) -> io::Result<tokio::io::unix::AsyncFd<aya::maps::RingBuf<aya::maps::MapData>>> {
    // SAFETY: the ring buffer owns its descriptor, always returns the same one, and closes it when it is dropped, which
    // the AsyncFd that owns it does last.
    unsafe { tokio::io::unix::AsyncFd::register(ring) }.map_err(io::Error::from)
}

/// Registers a process's descriptor, which becomes readable when the process has ended.
pub fn watch_process(process: OwnedFd) -> io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd always returns the same descriptor, and closes it when it is dropped, which the AsyncFd that
    // owns it does last.
    unsafe { tokio::io::unix::AsyncFd::register_with_interest(process, tokio::io::Interest::READABLE) }
        .map_err(io::Error::from)
}
