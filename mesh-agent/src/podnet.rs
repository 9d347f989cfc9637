//! What the data path needs from an enrolled pod's network namespace: listeners, sockets that live in it, and the two
//! records that eBPF and the agent exchange per connection.
//!
//! `capture` implements [`PodNet`] on real namespaces and BPF maps; the in-process tests implement it on loopback.
//! The guards here remove their record when dropped, so a connection cannot end without taking its records with it.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use mesh_common::outcome::Outcome;
use socket2::Socket;

use crate::addr::{ClientAddr, OrigDstAddr};
use crate::state::{MeshState, Workload};

/// The IP family of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// AF_INET
    V4,
    /// AF_INET6
    V6,
}

impl Family {
    /// The family that reaches `ip`; an IPv4-mapped address is reached by IPv4.
    pub fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        }
    }
}

/// What arrives on one of the agent's listeners in a pod. `sk_lookup` steers by role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Connections that the pod's own applications dial.
    Outbound,
    /// HBONE from other agents: TLS on the pod's port 15008.
    Tunnel,
    /// Everything else that arrives for the pod, with no identity.
    Plaintext,
}

/// A listening, non-blocking socket of the agent inside a pod's network namespace.
pub struct PodListener {
    /// What arrives here.
    pub role: Role,
    /// The family it serves. A pod without IPv6 has no IPv6 listeners.
    pub family: Family,
    /// The socket; closing it takes it out of the steering map.
    pub socket: TcpListener,
}

/// A pod whose traffic is in the agent's hands.
pub struct EnrolledPod {
    /// Who it is. Identity, node and IPs do not change in a pod's life.
    pub workload: Arc<Workload>,
    /// Its network namespace.
    pub net: Arc<dyn PodNet>,
    /// Two families times three roles at most.
    pub listeners: Vec<PodListener>,
}

/// What capture tells the proxy.
pub enum PodEvent {
    /// A pod's traffic now reaches these listeners.
    Enrolled(EnrolledPod),
    /// The pod left the mesh or ended, by uid: close its listeners and its tunnels, cut the connections that the agent
    /// carries for it.
    Left(Arc<str>),
}

/// What pods of this node may do without the agent (`mesh_common::same_node`): whoever decides about connections decides
/// this, capture publishes and ends it.
pub trait Straight: Send + Sync + 'static {
    /// Whom pods may reach by the kernel alone: the same object as at the last time, if that has not changed. `is_held`: this
    /// agent has the pod of that uid.
    fn paths(&self, world: &MeshState, is_held: &dyn Fn(&str) -> bool) -> Arc<[StraightPath]>;

    /// Whether a connection that lives may go on.
    fn may_go_on(&self, world: &MeshState, from: &Workload, to: &Workload, server: SocketAddr) -> bool;

    /// One ended.
    fn ended(&self, connection: StraightConnection);

    /// The kernel refused a connection, whichever way it was to go.
    fn refused(&self, world: &MeshState, refusal: KernelRefusal);
}

/// What one pod may reach under one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StraightPath {
    /// The caller, by uid.
    pub client: Arc<str>,
    /// What it dials.
    pub dialled: SocketAddr,
    /// Every place that serves there, with the pod's uid: one is met by chance.
    pub endpoints: Vec<(SocketAddr, Arc<str>)>,
}

/// A connection from pod to pod: one that is over, or one that lives, of which it is not known yet what it carried.
#[derive(Clone, Debug)]
pub struct StraightConnection {
    /// The caller.
    pub from: Arc<Workload>,
    /// The pod that served.
    pub to: Arc<Workload>,
    /// The caller's own address.
    pub client: SocketAddr,
    /// What it dialled.
    pub dialled: SocketAddr,
    /// Where that led.
    pub server: SocketAddr,
    /// Bytes that the caller sent and the other end acknowledged.
    pub sent: u64,
    /// Bytes that came back.
    pub received: u64,
    /// From connect() to close.
    pub duration: Duration,
    /// The other end answered.
    pub was_open: bool,
    /// Why the agent ended it, if it did: a label.
    pub cut: Option<&'static str>,
    /// The caller's round trip time at the end.
    pub rtt: Duration,
    /// Segments that the caller sent again.
    pub retransmits: u32,
}

/// A connection that the kernel refused or dropped.
#[derive(Clone, Debug)]
pub struct KernelRefusal {
    /// Which way out of which program: a label.
    pub outcome: Outcome,
    /// The enrolled pod at which it was refused, by its namespace or its link; none where the program does not say.
    pub pod: Option<Arc<Workload>>,
    /// Where it came from, as its first packet says; unspecified at connect().
    pub source: SocketAddr,
    /// Whom it was for.
    pub destination: SocketAddr,
}

/// Why the record of an accepted outbound connection could not be had. The connection is closed in every case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The local address of the accepted socket carries no key.
    #[error("accepted on an address outside the capture range")]
    NoKey,
    /// The client was gone before the accept, or the record was swept.
    #[error("no record for this connection")]
    NoRecord,
    /// The record was made in another network namespace.
    #[error("the record belongs to another pod")]
    OtherPod,
}

/// A pod's network namespace, as the data path sees it. Methods but [`PodNet::make_socket`] never block for longer
/// than one bpf(2) call.
pub trait PodNet: Send + Sync + 'static {
    /// Reads what the application dialled. `local` is `getsockname` of the socket accepted on the outbound listener.
    /// Returns the key under which [`PodNet::forget_dial`] removes the record.
    fn lookup_dial(&self, local: SocketAddr) -> Result<(u64, OrigDstAddr), RecordError>;

    /// Removes an outbound record, at close.
    fn forget_dial(&self, key: u64);

    /// Files the real client of a connection that the agent is about to dial to this pod's application, under a source
    /// address of its own in the agent range. Returns that address, to bind with port 0.
    fn file_client(&self, client: ClientAddr, family: Family) -> io::Result<IpAddr>;

    /// Removes a real-client record, at close.
    fn forget_client(&self, source: IpAddr);

    /// A TCP socket made ahead inside the namespace, if one is in stock: non-blocking, close-on-exec, TCP_NODELAY, and
    /// fit to be bound to an address of the agent range (IP_BIND_ADDRESS_NO_PORT, IPV6_FREEBIND).
    fn stocked_socket(&self, family: Family) -> Option<Socket>;

    /// Makes such a socket now, when the stock is empty.
    fn make_socket(&self, family: Family) -> Pin<Box<dyn Future<Output = io::Result<Socket>> + Send + '_>>;
}

/// What an application dialled; removes the kernel's record when dropped.
pub struct DialRecord {
    dialled: OrigDstAddr,
    key: u64,
    net: Arc<dyn PodNet>,
}

impl DialRecord {
    /// Looks up the record of a socket accepted on the outbound listener at `local`.
    pub fn lookup(net: &Arc<dyn PodNet>, local: SocketAddr) -> Result<Self, RecordError> {
        let (key, dialled) = net.lookup_dial(local)?;
        Ok(Self { dialled, key, net: net.clone() })
    }

    /// The address that the application passed to connect().
    pub fn dialled(&self) -> OrigDstAddr {
        self.dialled
    }
}

impl Drop for DialRecord {
    fn drop(&mut self) {
        self.net.forget_dial(self.key);
    }
}

/// The real client of a connection that the agent dials to an application; removed when dropped.
pub struct ClientRecord {
    source: IpAddr,
    net: Arc<dyn PodNet>,
}

impl ClientRecord {
    /// Files `client` and picks the source address of the dial.
    pub fn file(net: &Arc<dyn PodNet>, client: ClientAddr, family: Family) -> io::Result<Self> {
        Ok(Self { source: net.file_client(client, family)?, net: net.clone() })
    }

    /// The address in the agent range to bind before connecting.
    pub fn source(&self) -> IpAddr {
        self.source
    }
}

impl Drop for ClientRecord {
    fn drop(&mut self) {
        self.net.forget_client(self.source);
    }
}
