//! An enrolled pod's namespace as the data path uses it: records, sockets, listeners.

use std::collections::HashSet;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_queue::ArrayQueue;
use mesh_common::addr::{Endpoint, Ip};
use mesh_common::key::DialKey;
use mesh_common::record::{ClientRecord, ListenerKey, ListenerRole, SourceKey};
use socket2::{Domain, Protocol, Socket, Type};

use super::pod_thread::PodThread;
use super::tables::Tables;
use crate::addr::{ClientAddr, OrigDstAddr};
use crate::podnet::{Family, PodListener, PodNet, RecordError, Role};
use crate::sys;

/// Sockets that lie ready per pod and family: a burst of connections this large meets no thread switch.
pub(super) const STOCK: usize = 32;
/// At or below this the stock is filled up again.
pub(super) const LOW_WATER: usize = 16;
/// The kernel's own limit (net.core.somaxconn) cuts this.
const BACKLOG: i32 = 65_535;
/// How many source addresses are tried before the dial is refused.
pub(super) const SOURCE_TRIES: u32 = 16;

/// The pod's namespace.
pub(super) struct PodNamespace {
    cookie: u64,
    tables: Arc<Tables>,
    live: Arc<Live>,
    thread: PodThread,
    /// The listeners once more, so that they can be put back where another agent put its own.
    steered: Mutex<Vec<(ListenerKey, TcpListener)>>,
    v4: Stock,
    v6: Stock,
}

struct Stock {
    sockets: Arc<ArrayQueue<Socket>>,
    /// A refill is under way.
    filling: Arc<AtomicBool>,
}

/// What this agent's connections hold, so that the sweep leaves it alone, and the source addresses' counter.
pub(super) struct Live {
    dials: [Mutex<HashSet<u64>>; 16],
    clients: [Mutex<HashSet<SourceKey>>; 16],
    next_source: AtomicU64,
}

impl Live {
    pub fn new() -> Self {
        // Not from 1: another agent, before this one or beside it, may still hold addresses.
        let start = sys::monotonic_time() / 1_000;
        Self { dials: Default::default(), clients: Default::default(), next_source: AtomicU64::new(start) }
    }

    fn shard<T>(shards: &[Mutex<HashSet<T>>; 16], number: u64) -> std::sync::MutexGuard<'_, HashSet<T>> {
        let [first, ..] = shards;
        let shard = shards.get((number % 16) as usize).unwrap_or(first);
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn client_shard(&self, key: &SourceKey) -> std::sync::MutexGuard<'_, HashSet<SourceKey>> {
        Self::shard(&self.clients, u64::from(key.source().words()[3].swap_bytes()))
    }

    pub fn has_dial(&self, key: u64) -> bool {
        Self::shard(&self.dials, key >> 8).contains(&key)
    }

    pub fn has_client(&self, key: &SourceKey) -> bool {
        self.client_shard(key).contains(key)
    }
}

impl PodNamespace {
    pub fn new(cookie: u64, tables: Arc<Tables>, live: Arc<Live>, thread: PodThread) -> Self {
        let steered = Mutex::default();
        Self { cookie, tables, live, thread, steered, v4: Stock::new(), v6: Stock::new() }
    }

    pub fn thread(&self) -> &PodThread {
        &self.thread
    }

    /// Lets go of the namespace: sockets and the thread keep it alive.
    pub fn close(&self) {
        self.thread.stop();
        self.empty_stock();
        self.close_listeners();
    }

    /// Closes the sockets in stock.
    pub fn empty_stock(&self) {
        for stock in [&self.v4, &self.v6] {
            while stock.sockets.pop().is_some() {}
        }
    }

    /// Closes this side of the listeners; they are closed when the proxy has closed its own.
    pub fn close_listeners(&self) {
        self.steered().clear();
    }

    fn steered(&self) -> std::sync::MutexGuard<'_, Vec<(ListenerKey, TcpListener)>> {
        self.steered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the listeners and steers the pod's traffic to them.
    pub async fn listen(&self, ips: &[IpAddr]) -> io::Result<Vec<PodListener>> {
        let mut listeners = Vec::new();
        for ip in ips {
            let family = Family::of(*ip);
            for role in [Role::Outbound, Role::Tunnel, Role::Plaintext] {
                let socket = self.thread.run(move || listener(family)).await?;
                self.steered().push((ListenerKey::new(Ip::from(*ip), abi_role(role)), socket.try_clone()?));
                listeners.push(PodListener { role, family, socket });
            }
        }
        self.steer()?;
        Ok(listeners)
    }

    /// Whether its listeners were made and are open.
    pub fn listens(&self) -> bool {
        !self.steered().is_empty()
    }

    /// Steers the pod's traffic to the listeners that there are: in one step each where there is one of another agent,
    /// which keeps accepting what it has.
    pub fn steer(&self) -> io::Result<()> {
        let steered = self.steered();
        steered.iter().try_for_each(|(key, socket)| self.tables.listeners.set(key, &(socket.as_raw_fd() as u32)))
    }

    fn stock(&self, family: Family) -> &Stock {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// Fills the stock up, unless that is under way.
    pub fn refill(&self, family: Family) {
        let stock = self.stock(family);
        if stock.sockets.len() > LOW_WATER || stock.filling.swap(true, Ordering::AcqRel) {
            return;
        }
        let (sockets, filling) = (stock.sockets.clone(), stock.filling.clone());
        let posted = self.thread.post(move || {
            while !sockets.is_full()
                && let Ok(socket) = dial_socket(family)
                && sockets.push(socket).is_ok()
            {}
            filling.store(false, Ordering::Release);
        });
        if posted.is_err() {
            stock.filling.store(false, Ordering::Release);
        }
    }
}

impl Stock {
    fn new() -> Self {
        Self { sockets: Arc::new(ArrayQueue::new(STOCK)), filling: Arc::default() }
    }
}

impl PodNet for PodNamespace {
    fn lookup_dial(&self, local: SocketAddr) -> Result<(u64, OrigDstAddr), RecordError> {
        let key = DialKey::decode(Endpoint::from(local)).ok_or(RecordError::NoKey)?.raw();
        let record = self.tables.dials.get(&key).ok_or(RecordError::NoRecord)?;
        if record.netns() != self.cookie {
            return Err(RecordError::OtherPod);
        }
        Live::shard(&self.live.dials, key >> 8).insert(key);
        Ok((key, OrigDstAddr::new(record.dialled().into())))
    }

    fn forget_dial(&self, key: u64) {
        self.tables.dials.remove(&key);
        Live::shard(&self.live.dials, key >> 8).remove(&key);
    }

    fn file_client(&self, client: ClientAddr, family: Family) -> io::Result<IpAddr> {
        let record = ClientRecord::new(client.socket().into(), sys::monotonic_time());
        for _ in 0..SOURCE_TRIES {
            let source = source_address(self.live.next_source.fetch_add(1, Ordering::Relaxed), family);
            let key = SourceKey::new(self.cookie, Ip::from(source));
            match self.tables.clients.insert(&key, &record) {
                Ok(()) => {
                    self.live.client_shard(&key).insert(key);
                    return Ok(source);
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::from(io::ErrorKind::AddrInUse))
    }

    fn forget_client(&self, source: IpAddr) {
        let key = SourceKey::new(self.cookie, Ip::from(source));
        self.tables.clients.remove(&key);
        self.live.client_shard(&key).remove(&key);
    }

    fn stocked_socket(&self, family: Family) -> Option<Socket> {
        let socket = self.stock(family).sockets.pop();
        self.refill(family);
        socket
    }

    fn make_socket(&self, family: Family) -> Pin<Box<dyn Future<Output = io::Result<Socket>> + Send + '_>> {
        Box::pin(self.thread.run(move || dial_socket(family)))
    }
}

/// The `number`th address of the agent's source range, round and round.
fn source_address(number: u64, family: Family) -> IpAddr {
    const FIRST_V4: u32 = 0x7f40_0000;
    const V4_BITS: u32 = 0x003f_ffff;
    match family {
        Family::V4 => Ipv4Addr::from(FIRST_V4 | ((number as u32) & V4_BITS).max(1)).into(),
        Family::V6 => {
            let prefix = u128::from(u64::from_be_bytes(mesh_common::addr::SOURCE_V6)) << 64;
            Ipv6Addr::from(prefix | u128::from(number.max(1))).into()
        }
    }
}

fn abi_role(role: Role) -> ListenerRole {
    match role {
        Role::Outbound => ListenerRole::Outbound,
        Role::Tunnel => ListenerRole::Tunnel,
        Role::Plaintext => ListenerRole::Plaintext,
    }
}

fn domain(family: Family) -> Domain {
    match family {
        Family::V4 => Domain::IPV4,
        Family::V6 => Domain::IPV6,
    }
}

fn new_socket(family: Family) -> io::Result<Socket> {
    let socket = Socket::new(domain(family), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    match family {
        Family::V4 => {}
        Family::V6 => allow_any_address(&socket)?,
    }
    Ok(socket)
}

/// For the stock: as [`PodNet::make_socket`] promises.
fn dial_socket(family: Family) -> io::Result<Socket> {
    let socket = new_socket(family)?;
    choose_port_at_connect(&socket)?;
    Ok(socket)
}

/// On an address of the capture range, which the pod's processes cannot dial.
fn listener(family: Family) -> io::Result<TcpListener> {
    let socket = new_socket(family)?;
    let address: IpAddr = match family {
        Family::V4 => Ipv4Addr::new(127, 128, 0, 1).into(),
        Family::V6 => {
            let prefix = u128::from(u64::from_be_bytes(mesh_common::addr::CAPTURE_V6)) << 64;
            Ipv6Addr::from(prefix | 1).into()
        }
    };
    socket.bind(&SocketAddr::new(address, 0).into())?;
    socket.listen(BACKLOG)?;
    // For the accepted sockets, which inherit it: they stand on the application's own port, and it must be able to bind
    // that again beside them. After bind, so that the listener itself never shares its port.
    socket.set_reuse_address(true)?;
    Ok(socket.into())
}

/// IP_BIND_ADDRESS_NO_PORT: bind() takes the address alone and connect() the port, when the other end is known; the two
/// families share the option.
fn choose_port_at_connect(socket: &Socket) -> io::Result<()> {
    const IP_BIND_ADDRESS_NO_PORT: i32 = 24;
    sys::set_socket_option(socket.as_fd(), libc::IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
}

/// IPV6_FREEBIND: the range's addresses are local by route, not by assignment.
fn allow_any_address(socket: &Socket) -> io::Result<()> {
    const IPV6_FREEBIND: i32 = 78;
    sys::set_socket_option(socket.as_fd(), libc::IPPROTO_IPV6, IPV6_FREEBIND, 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_stay_in_their_range() {
        for number in [0, 1, 0x3f_ffff, 0x40_0000, u64::MAX] {
            for family in [Family::V4, Family::V6] {
                let source = source_address(number, family);
                assert!(Ip::from(source).is_agent_source(), "{source}");
                assert_eq!(Family::of(source), family);
            }
        }
    }
}
