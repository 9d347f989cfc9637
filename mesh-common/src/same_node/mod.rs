//! From one pod of a node straight to another, by the kernel alone: records, and the pure decisions that hooks and agent
//! share.
//!
//! The agent decides who may ([`decide`]) and publishes a [`Path`] for each; nothing else is a permission. What the hooks
//! decide is whether a connection is on a path that holds *now*: [`choose`] at connect(), [`file`] when its addresses are
//! known and before its SYN leaves, [`may_leave`] on the caller's link, [`may_arrive`] in the other pod. A path ends with the
//! agent's word for it ([`Published::lease`]), with its removal, and with the other pod's interface, which the kernel itself
//! takes off the list.

use crate::addr::{Endpoint, FourTuple, Ip, TUNNEL_PORT};
use crate::record::{Gate, PodAddresses, PodConfig};

/// PATHS key: what a pod dials. A destination has as many entries as it has endpoints, numbered from 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PathKey {
    netns: u64,
    dialled: Endpoint,
    slot: u32,
}

impl PathKey {
    /// `netns` is the cookie of the caller's namespace.
    #[inline(always)]
    pub const fn new(netns: u64, dialled: Endpoint, slot: u32) -> Self {
        Self { netns, dialled, slot }
    }

    /// The cookie of the caller's namespace.
    #[inline(always)]
    pub const fn netns(&self) -> u64 {
        self.netns
    }

    /// What is dialled.
    #[inline(always)]
    pub const fn dialled(&self) -> Endpoint {
        self.dialled
    }

    /// Which of its endpoints.
    #[inline(always)]
    pub const fn slot(&self) -> u32 {
        self.slot
    }
}

/// PATHS value: an endpoint that the caller may reach by the kernel alone.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Path {
    server: u64,
    endpoint: Endpoint,
    interface: u32,
    slots: u32,
    zero: [u8; 4],
}

impl Path {
    /// `server` is the cookie of the other pod's namespace, `interface` the host's end of its link, `slots` how many
    /// endpoints the destination has.
    #[inline(always)]
    pub const fn new(endpoint: Endpoint, server: u64, interface: u32, slots: u32) -> Self {
        Self { server, endpoint, interface, slots, zero: [0; 4] }
    }

    /// Where it leads.
    #[inline(always)]
    pub const fn endpoint(&self) -> Endpoint {
        self.endpoint
    }

    /// The cookie of the other pod's namespace.
    #[inline(always)]
    pub const fn server(&self) -> u64 {
        self.server
    }

    #[inline(always)]
    const fn leads_as(&self, other: &Path) -> bool {
        self.server == other.server && self.interface == other.interface && same(&self.endpoint, &other.endpoint)
    }
}

/// STRAIGHT_SOCKETS, storage of an application's socket: the path that its connect() took.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StraightSocket {
    key: PathKey,
    path: Path,
}

impl StraightSocket {
    /// What connect() chose.
    #[inline(always)]
    pub const fn new(key: PathKey, path: Path) -> Self {
        Self { key, path }
    }

    /// What was dialled.
    #[inline(always)]
    pub const fn dialled(&self) -> Endpoint {
        self.key.dialled
    }

    /// Where it leads.
    #[inline(always)]
    pub const fn endpoint(&self) -> Endpoint {
        self.path.endpoint
    }

    /// Whether `peer` is where it leads.
    #[inline(always)]
    pub const fn leads_to(&self, peer: &Endpoint) -> bool {
        same(&self.path.endpoint, peer)
    }
}

/// STRAIGHT value, by four-tuple: a connection from pod to pod, from before its SYN until its caller's socket is closed. A
/// SYN that is sent again, a syncookie's ACK and a tuple that meets TIME_WAIT enter the lookup anew.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StraightRecord {
    socket: StraightSocket,
    cookie: u64,
    time: u64,
    standing: u32,
    zero: [u8; 4],
}

/// How many connections STRAIGHT holds.
pub const MAX_STRAIGHT: u32 = 32_768;

/// The key for all pods of the node, where else the cookie of a pod's namespace stands. No namespace has it.
pub const NODE: u64 = 0;

/// Whether a filed connection may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It took a path that still held when it was filed.
    Good,
    /// It did not: its SYN goes nowhere, and the agent ends it.
    Refused,
}

impl StraightRecord {
    /// `cookie` is the caller's socket's, `time` CLOCK_MONOTONIC in nanoseconds.
    #[inline(always)]
    pub const fn new(socket: StraightSocket, cookie: u64, time: u64, standing: Standing) -> Self {
        Self { socket, cookie, time, standing: matches!(standing, Standing::Good) as u32, zero: [0; 4] }
    }

    /// The same connection, refused.
    #[inline(always)]
    pub const fn refused(self) -> Self {
        Self { standing: 0, ..self }
    }

    /// Whether it may go on.
    #[inline(always)]
    pub const fn is_good(&self) -> bool {
        self.standing == 1
    }

    /// Whose record it is: a socket that has the same addresses in another namespace does not remove it.
    #[inline(always)]
    pub const fn is_of(&self, cookie: u64) -> bool {
        self.cookie == cookie
    }

    /// The cookie of the caller's socket.
    #[inline(always)]
    pub const fn cookie(&self) -> u64 {
        self.cookie
    }

    /// The cookie of the caller's namespace.
    #[inline(always)]
    pub const fn client(&self) -> u64 {
        self.socket.key.netns
    }

    /// The cookie of the other pod's namespace.
    #[inline(always)]
    pub const fn server(&self) -> u64 {
        self.socket.path.server
    }

    /// What the application dialled.
    #[inline(always)]
    pub const fn dialled(&self) -> Endpoint {
        self.socket.key.dialled
    }

    /// When it was filed, CLOCK_MONOTONIC, nanoseconds.
    #[inline(always)]
    pub const fn time(&self) -> u64 {
        self.time
    }
}

/// What the hooks look into.
pub trait Published {
    /// The path of a pod to what it dials.
    fn path(&self, key: &PathKey) -> Option<Path>;
    /// Until when the agent's word holds, CLOCK_MONOTONIC, nanoseconds; 0 where it gave none.
    fn lease(&self) -> u64;
    /// Whether the kernel still has this interface.
    fn has_interface(&self, index: u32) -> bool;
    /// An enrolled pod, by the cookie of its namespace.
    fn pod(&self, netns: u64) -> Option<PodConfig>;
    /// How many connections are on file that a pod has a part in, by the cookie of its namespace, or of all ([`NODE`]). The
    /// kernel alone counts.
    fn live(&self, netns: u64) -> Option<i64>;
    /// With how many of them no more come. The agent alone says.
    fn room(&self, netns: u64) -> Option<i64>;
}

/// Why connect() leaves a connection to the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Not {
    /// No path holds.
    NoPath,
    /// The caller, the other pod or the node has as many as may be.
    NoRoom,
}

/// connect(): the path of a pod that dials `dialled`, if it may go straight; else the agent carries it. `chance` picks among
/// several endpoints.
#[inline(always)]
pub fn choose(
    published: &impl Published,
    netns: u64,
    dialled: Endpoint,
    now: u64,
    chance: u32,
) -> Result<StraightSocket, Not> {
    let mut key = PathKey::new(netns, dialled, 0);
    let Some(mut path) = published.path(&key) else { return Err(Not::NoPath) };
    if path.slots > 1 {
        key.slot = chance % path.slots;
        // The first again, where it is that: one place on the stack for both.
        path = match published.path(&key) {
            Some(path) => path,
            None => return Err(Not::NoPath),
        };
    }
    if !may_be_taken(published, &path, now) {
        return Err(Not::NoPath);
    }
    if has_room(published, NODE) && has_room(published, netns) && has_room(published, path.server) {
        Ok(StraightSocket::new(key, path))
    } else {
        Err(Not::NoRoom)
    }
}

/// What is not counted has no room.
#[inline(always)]
fn has_room(published: &impl Published, netns: u64) -> bool {
    match (published.live(netns), published.room(netns)) {
        (Some(live), Some(room)) => live < room,
        _ => false,
    }
}

/// When the addresses of a connection are known, and before its SYN leaves: whether it took a path, and that still holds.
/// None: it has nothing to do with one. To be asked once more *after* the record is there: whoever removes a path looks
/// through the records afterwards, so a connection is refused here or found there.
#[inline(always)]
pub fn file(published: &impl Published, socket: &StraightSocket, tuple: &FourTuple, now: u64) -> Option<Standing> {
    if !same(&socket.path.endpoint, &tuple.destination()) {
        return None;
    }
    let is_its_own = match published.pod(socket.key.netns) {
        Some(pod) => pod.addresses().contain(&tuple.source().ip()),
        None => false,
    };
    Some(if is_its_own && holds(published, socket, now) { Standing::Good } else { Standing::Refused })
}

/// The caller's link: whether a SYN from `pod` may leave by this record. Whoever forges the source of another pod's is on
/// another link.
#[inline(always)]
pub fn may_leave(published: &impl Published, record: &StraightRecord, pod: &PodAddresses, source: &Ip) -> bool {
    record.is_good() && pod.contain(source) && published.has_interface(record.socket.path.interface)
}

/// The other pod: whether a lookup for `local` may pass by this record. Of two pods that had one address after each other
/// only the one that it was filed for has it in the table of pods.
#[inline(always)]
pub fn may_arrive(published: &impl Published, record: &StraightRecord, local: &Ip) -> bool {
    if !record.is_good() {
        return false;
    }
    match published.pod(record.server()) {
        Some(pod) => matches!(pod.gate(), Gate::Open) && pod.addresses().contain(local),
        None => false,
    }
}

#[inline(always)]
fn holds(published: &impl Published, socket: &StraightSocket, now: u64) -> bool {
    match published.path(&socket.key) {
        Some(path) => path.leads_as(&socket.path) && may_be_taken(published, &path, now),
        None => false,
    }
}

/// Whether a path that is published has the agent's word still, and somewhere to lead.
#[inline(always)]
fn may_be_taken(published: &impl Published, path: &Path, now: u64) -> bool {
    published.lease() > now && published.has_interface(path.interface)
}

/// By words: the derived one calls `bcmp`, which the kernel side does not have.
#[inline(always)]
const fn same(one: &Endpoint, other: &Endpoint) -> bool {
    one.ip().equals(&other.ip()) && one.port() == other.port()
}

/// What the agent knows of one caller and one endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// How the endpoint would be reached by the agent is [`Facts::is_near`]: a pod of the caller's node that asks for no TLS
    /// there, and is not the caller itself.
    pub is_near: bool,
    /// This agent holds both pods, and what comes for them comes to it.
    pub is_held: bool,
    /// The endpoint is the address of that very pod, and of the family that was dialled.
    pub is_its_address: bool,
    /// The endpoint's port.
    pub port: u16,
    /// Requests are spoken there, or a route is attached: somebody reads.
    pub is_read: bool,
    /// A TrafficPolicy is attached: limits, faults, tries are the agent's.
    pub is_regulated: bool,
    /// Clients are bound to endpoints.
    pub has_affinity: bool,
    /// What policy says of the connection as bytes, without a look at requests.
    pub policy: Said,
    /// A policy wants to be told of what it would refuse.
    pub is_audited: bool,
}

/// What policy says of a connection of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// It may.
    Allowed,
    /// It may not.
    Denied,
    /// That depends on requests.
    Depends,
}

/// Why the agent carries a connection itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carried {
    /// The endpoint is elsewhere, outside the mesh, the caller itself, or wants TLS.
    NotNear,
    /// One of the pods is not this agent's.
    NotHeld,
    /// The address is not the pod's.
    OtherAddress,
    /// The tunnel port.
    TunnelPort,
    /// Requests or routes.
    Read,
    /// A TrafficPolicy.
    Regulated,
    /// sessionAffinity.
    Affinity,
    /// Policy refuses it, or has to see requests. The agent refuses it, and tells.
    Policy,
    /// The agent tells what would be refused.
    Audited,
}

/// Whether connections of one caller to one endpoint may go straight. Anything that is not surely so is the agent's.
pub const fn decide(facts: &Facts) -> Result<(), Carried> {
    if !facts.is_near {
        return Err(Carried::NotNear);
    }
    if !facts.is_held {
        return Err(Carried::NotHeld);
    }
    if !facts.is_its_address {
        return Err(Carried::OtherAddress);
    }
    if facts.port == TUNNEL_PORT || facts.port == 0 {
        return Err(Carried::TunnelPort);
    }
    if facts.is_read {
        return Err(Carried::Read);
    }
    if facts.is_regulated {
        return Err(Carried::Regulated);
    }
    if facts.has_affinity {
        return Err(Carried::Affinity);
    }
    if !matches!(facts.policy, Said::Allowed) {
        return Err(Carried::Policy);
    }
    if facts.is_audited {
        return Err(Carried::Audited);
    }
    Ok(())
}

/// What goes through the ring buffer when such a connection ends.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StraightEnd {
    tuple: FourTuple,
    zero: [u8; 4],
    record: StraightRecord,
    time: u64,
    sent: u64,
    received: u64,
    state: u64,
    rtt: u32,
    retransmits: u32,
}

/// Numbers of TCP's states.
const SYN_SENT: u64 = 2;
const FIN_WAIT2: u64 = 5;
const CLOSE_WAIT: u64 = 8;
const LAST_ACK: u64 = 9;
const CLOSING: u64 = 11;

impl StraightEnd {
    /// `sent` and `received` are the caller's acknowledged and received bytes as the kernel counts them, `state` the last
    /// one that its socket was in before it closed.
    #[inline(always)]
    pub const fn new(
        tuple: FourTuple,
        record: StraightRecord,
        time: u64,
        (sent, received): (u64, u64),
        state: u32,
    ) -> Self {
        Self { tuple, zero: [0; 4], record, time, sent, received, state: state as u64, rtt: 0, retransmits: 0 }
    }

    /// With the smoothed round trip time in eighths of a microsecond, as the kernel keeps it, and how many segments the caller
    /// sent again.
    #[inline(always)]
    pub const fn measured(self, rtt: u32, retransmits: u32) -> Self {
        Self { rtt, retransmits, ..self }
    }

    /// The round trip time in microseconds, and how many segments the caller sent again.
    pub const fn network(&self) -> (u32, u32) {
        (self.rtt / 8, self.retransmits)
    }

    /// Between whom.
    pub const fn tuple(&self) -> &FourTuple {
        &self.tuple
    }

    /// What was filed of it.
    pub const fn record(&self) -> &StraightRecord {
        &self.record
    }

    /// When it ended, CLOCK_MONOTONIC, nanoseconds.
    pub const fn time(&self) -> u64 {
        self.time
    }

    /// Bytes from the caller that the other end acknowledged, and bytes to the caller. The kernel counts what opens and what
    /// ends a direction as a byte each; the state says which of them there were.
    pub const fn bytes(&self) -> (u64, u64) {
        let own_end = matches!(self.state, FIN_WAIT2 | CLOSING | LAST_ACK) as u64;
        let others_end = matches!(self.state, FIN_WAIT2 | CLOSING | LAST_ACK | CLOSE_WAIT) as u64;
        (self.sent.saturating_sub(1 + own_end), self.received.saturating_sub(others_end))
    }

    /// Whether the other end answered.
    pub const fn was_open(&self) -> bool {
        self.state != SYN_SENT
    }
}

#[cfg(test)]
mod tests;
