//! The only unsafe of the kernel programs: reads and writes of the contexts' fields, map elements and helpers.
//!
//! Fields are read volatile, because LLVM otherwise merges the loads of two branches into one at a variable offset,
//! which the verifier refuses ("dereference of modified ctx ptr").

use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{
    BPF_SK_LOOKUP_F_NO_REUSEPORT, BPF_SOCK_OPS_STATE_CB_FLAG, bpf_sk_lookup, bpf_sock, bpf_sock_addr, bpf_sock_ops,
};
use aya_ebpf::helpers::generated::{
    bpf_get_current_ancestor_cgroup_id, bpf_get_current_cgroup_id, bpf_get_netns_cookie, bpf_get_prandom_u32,
    bpf_get_socket_cookie, bpf_ktime_get_ns, bpf_set_retval, bpf_setsockopt, bpf_sk_storage_get,
    bpf_sock_ops_cb_flags_set,
};
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, PerCpuArray};
use aya_ebpf::programs::{SkLookupContext, SockAddrContext, SockContext, SockOpsContext, TcContext};
use mesh_common::addr::{Endpoint, FourTuple, Ip};
use mesh_common::record::{DialStorage, ListenerKey};
use mesh_common::same_node::StraightSocket;

use crate::maps::{DIALLED, HAS_INGRESS_IFINDEX, HAS_SET_RETVAL, LISTENERS, STRAIGHT_SOCKETS};

const AF_INET: u32 = 2;
const IPPROTO_TCP: u32 = 6;
const ECONNREFUSED: i32 = 111;
const SOL_SOCKET: i32 = 1;
const SO_BINDTODEVICE: i32 = 25;
/// The index of lo in every network namespace.
const LO: u32 = 1;

/// A copy of a map's value.
#[inline(always)]
pub fn get<K, V: Copy>(map: &HashMap<K, V>, key: &K) -> Option<V> {
    // SAFETY: the maps are not preallocated, so an element that is removed while it is read stays whole until the
    // program ends; the value is copied at once.
    unsafe { map.get(key) }.copied()
}

/// Whether a prefix in the trie covers all `bits` of `place`.
#[inline(always)]
pub fn covers<K: Copy>(trie: &LpmTrie<K, u8>, place: &K, bits: u32) -> bool {
    trie.get(Key::new(bits, *place)).is_some()
}

/// Adds one to a counter.
#[inline(always)]
pub fn increment(map: &PerCpuArray<u64>, index: u32) {
    if let Some(counter) = map.get_ptr_mut(index) {
        // SAFETY: the verifier checked the pointer against null; the element is this CPU's own.
        unsafe { *counter += 1 }
    }
}

/// Adds to a number that all CPUs count in, if it is there.
#[inline(always)]
pub fn add(map: &HashMap<u64, i64>, key: &u64, by: i64) {
    let Some(number) = map.get_ptr_mut(key) else { return };
    // SAFETY: the verifier checked the pointer against null, and that eight bytes are there; the element stays whole as in
    // `get`.
    unsafe { add_to(number, by) }
}

/// Adds to a number that all CPUs and the agents count in.
#[inline(always)]
pub fn add_at(map: &Array<i64>, index: u32, by: i64) {
    let Some(number) = map.get_ptr_mut(index) else { return };
    // SAFETY: the verifier checked the pointer against null, and that eight bytes are there; an array's stay where they are.
    unsafe { add_to(number, by) }
}

/// A number that all CPUs and the agents count in.
#[inline(always)]
pub fn number_at(map: &Array<i64>, index: u32) -> Option<i64> {
    let number = map.get_ptr(index)?;
    // SAFETY: as in `add_at`; others write eight bytes at once.
    Some(unsafe { read_volatile(number) })
}

/// # Safety
/// `number` points at eight bytes of a map.
#[inline(always)]
unsafe fn add_to(number: *mut i64, by: i64) {
    // SAFETY: the caller's promise. The core library has no atomics for BPF.
    #[cfg(target_arch = "bpf")]
    unsafe {
        core::arch::asm!("lock *(u64 *)({number} + 0) += {by}", number = in(reg) number, by = in(reg) by)
    }
    // SAFETY: never run: on the host there is no map.
    #[cfg(not(target_arch = "bpf"))]
    unsafe {
        *number += by
    }
}

/// CLOCK_MONOTONIC in nanoseconds.
#[inline(always)]
pub fn monotonic_time() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_ktime_get_ns() }
}

/// Reads four words of a context, one by one.
///
/// # Safety
/// `at` points at four readable words of a context.
#[inline(always)]
unsafe fn read_words(at: *const u32) -> [u32; 4] {
    // SAFETY: the caller's promise.
    unsafe { [read_volatile(at), read_volatile(at.add(1)), read_volatile(at.add(2)), read_volatile(at.add(3))] }
}

/// A number that nobody foresees.
#[inline(always)]
pub fn chance() -> u32 {
    // SAFETY: no arguments.
    unsafe { bpf_get_prandom_u32() }
}

/// connect and getpeername.
pub struct SocketContext<'a> {
    ctx: &'a SockAddrContext,
    raw: *mut bpf_sock_addr,
}

impl<'a> SocketContext<'a> {
    #[inline(always)]
    pub fn new(ctx: &'a SockAddrContext) -> Self {
        Self { ctx, raw: ctx.sock_addr }
    }

    #[inline(always)]
    pub fn is_tcp(&self) -> bool {
        // SAFETY: a readable field of the context.
        unsafe { read_volatile(addr_of!((*self.raw).protocol)) == IPPROTO_TCP }
    }

    #[inline(always)]
    fn port(&self) -> u16 {
        // SAFETY: a readable field of the context; network order in the low half.
        u16::from_be(unsafe { read_volatile(addr_of!((*self.raw).user_port)) } as u16)
    }

    /// The address in the user's sockaddr_in.
    #[inline(always)]
    pub fn destination_v4(&self) -> Endpoint {
        // SAFETY: a readable field of the context.
        let word = unsafe { read_volatile(addr_of!((*self.raw).user_ip4)) };
        Endpoint::new(Ip::from_v4_word(word), self.port())
    }

    /// The address in the user's sockaddr_in6.
    #[inline(always)]
    pub fn destination_v6(&self) -> Endpoint {
        // SAFETY: four readable words of the context.
        let words = unsafe { read_words(addr_of!((*self.raw).user_ip6).cast()) };
        Endpoint::new(Ip::from_words(words), self.port())
    }

    #[inline(always)]
    fn set_port(&self, port: u16) {
        // SAFETY: a writable field of the context.
        unsafe { write_volatile(addr_of_mut!((*self.raw).user_port), u32::from(port.to_be())) }
    }

    /// Writes a sockaddr_in.
    #[inline(always)]
    pub fn set_v4(&self, to: Endpoint) {
        // SAFETY: a writable field of the context.
        unsafe { write_volatile(addr_of_mut!((*self.raw).user_ip4), to.ip().v4_word()) }
        self.set_port(to.port());
    }

    /// Writes a sockaddr_in6, v4-mapped addresses too.
    #[inline(always)]
    pub fn set_v6(&self, to: Endpoint) {
        let words = to.ip().words();
        // SAFETY: four writable words of the context, written one by one.
        unsafe {
            let at = addr_of_mut!((*self.raw).user_ip6).cast::<u32>();
            write_volatile(at, words[0]);
            write_volatile(at.add(1), words[1]);
            write_volatile(at.add(2), words[2]);
            write_volatile(at.add(3), words[3]);
        }
        self.set_port(to.port());
    }

    /// The cookie of the socket's network namespace. Kernel 5.7.
    #[inline(always)]
    pub fn netns_cookie(&self) -> u64 {
        // SAFETY: the helper takes this context.
        unsafe { bpf_get_netns_cookie(self.ctx.as_ptr()) }
    }

    #[inline(always)]
    pub fn socket_cookie(&self) -> u64 {
        // SAFETY: the helper takes this context.
        unsafe { bpf_get_socket_cookie(self.ctx.as_ptr()) }
    }

    #[inline(always)]
    fn socket(&self) -> *mut bpf_sock {
        // SAFETY: a readable field of the context.
        unsafe { (*self.raw).__bindgen_anon_1.sk }
    }

    /// Whether the socket is bound to a device; none when the kernel gives no socket.
    #[inline(always)]
    pub fn is_bound_to_device(&self) -> Option<bool> {
        let socket = self.socket();
        if socket.is_null() {
            return None;
        }
        // SAFETY: not null, and a readable field.
        Some(unsafe { (*socket).bound_dev_if } != 0)
    }

    /// Takes the socket off its device. Kernel 5.8.
    #[inline(always)]
    pub fn unbind_device(&self) -> bool {
        let mut none = [0u8; 4];
        // SAFETY: the helper takes this context and reads one byte of `none`.
        unsafe { bpf_setsockopt(self.ctx.as_ptr(), SOL_SOCKET, SO_BINDTODEVICE, none.as_mut_ptr().cast(), 1) == 0 }
    }

    /// What the socket dialled last, if it ever did.
    #[inline(always)]
    pub fn dialled(&self) -> Option<DialStorage> {
        // SAFETY: aya reads the socket of this context and hands it to the helper, which allows null.
        let storage = unsafe { DIALLED.get_ptr_mut(self.ctx) };
        if storage.is_null() {
            return None;
        }
        // SAFETY: not null; the socket is locked by connect, and readers of getpeername see one socket's own value.
        Some(unsafe { *storage })
    }

    /// Remembers what the socket dials. False when there is no storage to be had.
    #[inline(always)]
    pub fn remember(&self, dialled: DialStorage) -> bool {
        // SAFETY: aya reads the socket of this context and hands it to the helper.
        let storage = unsafe { DIALLED.get_or_insert_ptr_mut(self.ctx, None) };
        if storage.is_null() {
            return false;
        }
        // SAFETY: not null, and the socket is locked here.
        unsafe { *storage = dialled };
        true
    }

    /// The path that the socket took last, if it ever took one.
    #[inline(always)]
    pub fn straight(&self) -> Option<StraightSocket> {
        // SAFETY: as in `dialled`.
        let storage = unsafe { STRAIGHT_SOCKETS.get_ptr_mut(self.ctx) };
        if storage.is_null() {
            return None;
        }
        // SAFETY: as in `dialled`.
        Some(unsafe { *storage })
    }

    /// Remembers the path that the socket takes. False when there is no storage to be had.
    #[inline(always)]
    pub fn remember_straight(&self, straight: StraightSocket) -> bool {
        // SAFETY: as in `remember`.
        let storage = unsafe { STRAIGHT_SOCKETS.get_or_insert_ptr_mut(self.ctx, None) };
        if storage.is_null() {
            return false;
        }
        // SAFETY: as in `remember`.
        unsafe { *storage = straight };
        true
    }

    /// The id of the current task's ancestor cgroup at `level`, 0 below the task's own.
    #[inline(always)]
    pub fn ancestor_cgroup(&self, level: i32) -> u64 {
        // SAFETY: no pointer is passed.
        unsafe { bpf_get_current_ancestor_cgroup_id(level) }
    }

    /// Makes the refusal a genuine ECONNREFUSED. Before 5.18 the application sees EPERM.
    #[inline(always)]
    pub fn refuse(&self) {
        if HAS_SET_RETVAL.load() != 0 {
            // SAFETY: no pointer is passed.
            unsafe { bpf_set_retval(-ECONNREFUSED) };
        }
    }
}

/// sock_release.
pub struct ReleaseContext<'a> {
    ctx: &'a SockContext,
    raw: *mut bpf_sock,
}

impl<'a> ReleaseContext<'a> {
    #[inline(always)]
    pub fn new(ctx: &'a SockContext) -> Self {
        Self { ctx, raw: ctx.sock }
    }

    /// The TCP state number.
    #[inline(always)]
    pub fn state(&self) -> u32 {
        // SAFETY: a readable field of the context.
        unsafe { read_volatile(addr_of!((*self.raw).state)) }
    }

    /// Whom the socket is connected to.
    #[inline(always)]
    pub fn remote(&self) -> Ip {
        // SAFETY: readable fields of the context.
        let (family, v4, v6) = unsafe {
            (
                read_volatile(addr_of!((*self.raw).family)),
                read_volatile(addr_of!((*self.raw).dst_ip4)),
                read_words(addr_of!((*self.raw).dst_ip6).cast()),
            )
        };
        if family == AF_INET { Ip::from_v4_word(v4) } else { Ip::from_words(v6) }
    }

    #[inline(always)]
    pub fn netns_cookie(&self) -> u64 {
        // SAFETY: the helper takes this context.
        unsafe { bpf_get_netns_cookie(self.ctx.as_ptr()) }
    }

    /// What the socket dialled last. aya's SkStorage takes a SockAddrContext only; here the context is the socket.
    #[inline(always)]
    pub fn dialled(&self) -> Option<DialStorage> {
        let map = addr_of!(DIALLED).cast_mut().cast();
        // SAFETY: a socket storage map and a socket; no value to insert.
        let storage = unsafe { bpf_sk_storage_get(map, self.ctx.as_ptr(), core::ptr::null_mut(), 0) };
        let storage = storage.cast::<DialStorage>();
        if storage.is_null() {
            return None;
        }
        // SAFETY: not null; nothing else uses a socket that is being released.
        Some(unsafe { *storage })
    }
}

/// sockops.
pub struct OpsContext<'a> {
    ctx: &'a SockOpsContext,
    raw: *mut bpf_sock_ops,
}

impl<'a> OpsContext<'a> {
    #[inline(always)]
    pub fn new(ctx: &'a SockOpsContext) -> Self {
        Self { ctx, raw: ctx.ops }
    }

    #[inline(always)]
    pub fn operation(&self) -> u32 {
        self.ctx.op()
    }

    /// The second argument: the new state, in a state callback.
    #[inline(always)]
    pub fn new_state(&self) -> u32 {
        // SAFETY: a readable field of the context.
        unsafe { (*self.raw).__bindgen_anon_1.args[1] }
    }

    /// The first argument: the state before, in a state callback.
    #[inline(always)]
    pub fn old_state(&self) -> u32 {
        // SAFETY: a readable field of the context.
        unsafe { (*self.raw).__bindgen_anon_1.args[0] }
    }

    /// Bytes that the peer acknowledged, and bytes that came from it.
    #[inline(always)]
    pub fn bytes(&self) -> (u64, u64) {
        // SAFETY: readable fields of the context.
        unsafe {
            (read_volatile(addr_of!((*self.raw).bytes_acked)), read_volatile(addr_of!((*self.raw).bytes_received)))
        }
    }

    /// The smoothed round trip time in eighths of a microsecond, and the segments that were sent again.
    #[inline(always)]
    pub fn measured(&self) -> (u32, u32) {
        // SAFETY: readable fields of the context.
        unsafe { (read_volatile(addr_of!((*self.raw).srtt_us)), read_volatile(addr_of!((*self.raw).total_retrans))) }
    }

    /// The path that the socket took, if it did. Kernel 5.7.
    #[inline(always)]
    pub fn straight(&self) -> Option<StraightSocket> {
        // SAFETY: a readable field of the context.
        let socket = unsafe { (*self.raw).__bindgen_anon_2.sk };
        if socket.is_null() {
            return None;
        }
        let map = addr_of!(STRAIGHT_SOCKETS).cast_mut().cast();
        // SAFETY: a socket storage map and a socket, not null; no value to insert.
        let storage = unsafe { bpf_sk_storage_get(map, socket.cast(), core::ptr::null_mut(), 0) };
        let storage = storage.cast::<StraightSocket>();
        if storage.is_null() {
            return None;
        }
        // SAFETY: not null, and the socket is locked here.
        Some(unsafe { *storage })
    }

    /// From this socket to its peer. v4-mapped sockets report AF_INET6 and mapped addresses.
    #[inline(always)]
    pub fn four_tuple(&self) -> FourTuple {
        // SAFETY: readable fields of the context.
        unsafe {
            let (local, remote) = if (*self.raw).family == AF_INET {
                (Ip::from_v4_word((*self.raw).local_ip4), Ip::from_v4_word((*self.raw).remote_ip4))
            } else {
                (
                    Ip::from_words(read_words(addr_of!((*self.raw).local_ip6).cast())),
                    Ip::from_words(read_words(addr_of!((*self.raw).remote_ip6).cast())),
                )
            };
            // local_port is in host order, remote_port in network order.
            let local_port = (*self.raw).local_port as u16;
            let remote_port = u32::from_be((*self.raw).remote_port) as u16;
            FourTuple::new(Endpoint::new(local, local_port), Endpoint::new(remote, remote_port))
        }
    }

    #[inline(always)]
    pub fn socket_cookie(&self) -> u64 {
        // SAFETY: the helper takes this context.
        unsafe { bpf_get_socket_cookie(self.ctx.as_ptr()) }
    }

    /// The id of the cgroup that the current task is in; only at connect() the task is the one that dials. Kernel 6.16.
    #[inline(always)]
    pub fn current_cgroup(&self) -> u64 {
        // SAFETY: no pointer is passed.
        unsafe { bpf_get_current_cgroup_id() }
    }

    /// Asks for the state callback.
    #[inline(always)]
    pub fn watch_state(&self) {
        // SAFETY: the helper takes this context.
        unsafe { bpf_sock_ops_cb_flags_set(self.raw, BPF_SOCK_OPS_STATE_CB_FLAG as i32) };
    }
}

/// sk_lookup, with every field read before any branch.
pub struct LookupContext<'a> {
    ctx: &'a SkLookupContext,
    is_tcp: bool,
    over_lo: bool,
    local: Endpoint,
    remote: Endpoint,
}

impl<'a> LookupContext<'a> {
    #[inline(always)]
    pub fn read(ctx: &'a SkLookupContext) -> Self {
        let raw: *mut bpf_sk_lookup = ctx.lookup;
        // SAFETY: readable fields of the context, each read once.
        unsafe {
            let protocol = read_volatile(addr_of!((*raw).protocol));
            let family = read_volatile(addr_of!((*raw).family));
            let local_port = read_volatile(addr_of!((*raw).local_port)) as u16;
            // A 16-bit field in network order, padded.
            let remote_port = u16::from_be(read_volatile(addr_of!((*raw).remote_port)) as u16);
            let local_v4 = read_volatile(addr_of!((*raw).local_ip4));
            let remote_v4 = read_volatile(addr_of!((*raw).remote_ip4));
            let local_v6 = read_words(addr_of!((*raw).local_ip6).cast());
            let remote_v6 = read_words(addr_of!((*raw).remote_ip6).cast());
            let over_lo = if HAS_INGRESS_IFINDEX.load() != 0 {
                read_volatile(addr_of!((*raw).ingress_ifindex)) == LO
            } else {
                true
            };
            let (local, remote) = if family == AF_INET {
                (Ip::from_v4_word(local_v4), Ip::from_v4_word(remote_v4))
            } else {
                (Ip::from_words(local_v6), Ip::from_words(remote_v6))
            };
            Self {
                ctx,
                is_tcp: protocol == IPPROTO_TCP,
                over_lo,
                local: Endpoint::new(local, local_port),
                remote: Endpoint::new(remote, remote_port),
            }
        }
    }

    #[inline(always)]
    pub fn is_tcp(&self) -> bool {
        self.is_tcp
    }

    #[inline(always)]
    pub fn over_lo(&self) -> bool {
        self.over_lo
    }

    #[inline(always)]
    pub fn local(&self) -> Endpoint {
        self.local
    }

    #[inline(always)]
    pub fn remote(&self) -> Endpoint {
        self.remote
    }

    /// Hands the connection to a listener of the agent, past any SO_REUSEPORT group that a container's root joined.
    #[inline(always)]
    pub fn assign(&self, key: &ListenerKey) -> Result<(), i32> {
        LISTENERS.redirect_sk_lookup(self.ctx, key, u64::from(BPF_SK_LOOKUP_F_NO_REUSEPORT))
    }
}

/// tc.
pub struct PacketContext<'a> {
    ctx: &'a TcContext,
}

/// The packet is shorter than what was to be read.
pub struct Short;

impl<'a> PacketContext<'a> {
    #[inline(always)]
    pub fn new(ctx: &'a TcContext) -> Self {
        Self { ctx }
    }

    /// The index of the interface.
    #[inline(always)]
    pub fn interface(&self) -> u32 {
        // SAFETY: a readable field of the context.
        unsafe { (*self.ctx.skb.skb).ifindex }
    }

    #[inline(always)]
    pub fn byte(&self, offset: usize) -> Result<u8, Short> {
        self.ctx.load::<u8>(offset).map_err(|_| Short)
    }

    /// Two bytes in network order.
    #[inline(always)]
    pub fn half(&self, offset: usize) -> Result<u16, Short> {
        self.ctx.load::<u16>(offset).map(u16::from_be).map_err(|_| Short)
    }

    #[inline(always)]
    pub fn ip4(&self, offset: usize) -> Result<Ip, Short> {
        self.ctx.load::<u32>(offset).map(Ip::from_v4_word).map_err(|_| Short)
    }

    #[inline(always)]
    pub fn ip6(&self, offset: usize) -> Result<Ip, Short> {
        self.ctx.load::<[u32; 4]>(offset).map(Ip::from_words).map_err(|_| Short)
    }
}
