//! Map keys and values.

use crate::addr::{Endpoint, Ip};
use crate::key::DialKey;
use crate::share::Place;

/// PODS, by netns cookie: an enrolled pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodConfig {
    addresses: PodAddresses,
    gate: [u8; 1],
    zero: [u8; 1],
    place: [u8; 2],
}

/// Whether a pod's connections may be captured yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// Enrolment is under way or failed: everything that would be captured is refused.
    Closed,
    /// The pod's listeners are in place.
    Open,
}

impl PodConfig {
    /// An enrolled pod's entry, with no place of its own.
    pub const fn new(addresses: PodAddresses, gate: Gate) -> Self {
        let place = Place::NONE.bytes();
        Self { addresses, gate: [matches!(gate, Gate::Open) as u8], zero: [0; 1], place }
    }

    /// The same with a place where its dials are counted.
    pub const fn at(self, place: Place) -> Self {
        Self { place: place.bytes(), ..self }
    }

    /// Where its dials are counted.
    #[inline(always)]
    pub const fn place(&self) -> Place {
        Place::from_bytes(self.place)
    }

    /// The pod's own addresses.
    #[inline(always)]
    pub const fn addresses(&self) -> &PodAddresses {
        &self.addresses
    }

    /// Whether connections may be captured.
    #[inline(always)]
    pub const fn gate(&self) -> Gate {
        if self.gate[0] == 1 { Gate::Open } else { Gate::Closed }
    }
}

/// GUARDED, by the index of a host-side interface: the addresses of the pod behind it. Also part of [`PodConfig`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodAddresses {
    v4: Ip,
    v6: Ip,
}

impl PodAddresses {
    /// A pod's addresses; [`Ip::UNSPECIFIED`] for a family that it does not have.
    pub const fn new(v4: Ip, v6: Ip) -> Self {
        Self { v4, v6 }
    }

    /// Those that there are.
    pub fn iter(&self) -> impl Iterator<Item = Ip> {
        [self.v4, self.v6].into_iter().filter(|ip| !ip.is_unspecified())
    }

    /// Whether `ip` is the pod's.
    #[inline(always)]
    pub const fn contain(&self, ip: &Ip) -> bool {
        !ip.is_unspecified() && (self.v4.equals(ip) || self.v6.equals(ip))
    }

    /// The pod's address of the family of `other`; none if it has none.
    #[inline(always)]
    pub const fn of_family(&self, other: &Ip) -> Option<Ip> {
        let own = if other.is_v4() { self.v4 } else { self.v6 };
        if own.is_unspecified() { None } else { Some(own) }
    }
}

/// DIALS, by [`DialKey`]: what an application passed to connect().
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DialRecord {
    dialled: Endpoint,
    place: [u8; 2],
    zero: [u8; 2],
    netns: u64,
    time: u64,
}

impl DialRecord {
    /// `time` is CLOCK_MONOTONIC in nanoseconds, `place` where the record is counted.
    #[inline(always)]
    pub const fn new(dialled: Endpoint, netns: u64, time: u64, place: Place) -> Self {
        Self { dialled, place: place.bytes(), zero: [0; 2], netns, time }
    }

    /// Where it is counted. It goes with the record: its pod may be gone before it.
    #[inline(always)]
    pub const fn place(&self) -> Place {
        Place::from_bytes(self.place)
    }

    /// What was dialled.
    #[inline(always)]
    pub const fn dialled(&self) -> Endpoint {
        self.dialled
    }

    /// The netns cookie of the socket that dialled.
    #[inline(always)]
    pub const fn netns(&self) -> u64 {
        self.netns
    }

    /// When, CLOCK_MONOTONIC, nanoseconds.
    #[inline(always)]
    pub const fn time(&self) -> u64 {
        self.time
    }
}

/// DIALLED, storage of an application's socket: what it dialled, for getpeername, as long as the socket lives.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DialStorage {
    dialled: Endpoint,
    generation: [u8; 1],
    zero: [u8; 3],
    key: u64,
}

impl DialStorage {
    /// What the last connect() of a socket left.
    #[inline(always)]
    pub const fn new(dialled: Endpoint, generation: u8, key: DialKey) -> Self {
        Self { dialled, generation: [generation], zero: [0; 3], key: key.raw() }
    }

    /// What was dialled last.
    #[inline(always)]
    pub const fn dialled(&self) -> Endpoint {
        self.dialled
    }

    /// The generation of the last key.
    #[inline(always)]
    pub const fn generation(&self) -> u8 {
        self.generation[0]
    }

    /// The key of the last record; none before the first connect().
    #[inline(always)]
    pub const fn key(&self) -> Option<DialKey> {
        if self.key == 0 { None } else { Some(DialKey::from_raw(self.key)) }
    }
}

/// CLIENTS key: a source address of the agent, inside one pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SourceKey {
    netns: u64,
    source: Ip,
}

impl SourceKey {
    /// `source` is in the agent's source range.
    #[inline(always)]
    pub const fn new(netns: u64, source: Ip) -> Self {
        Self { netns, source }
    }

    /// The source address.
    pub const fn source(&self) -> Ip {
        self.source
    }
}

/// CLIENTS value: the real client behind a connection that the agent dials.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientRecord {
    client: Endpoint,
    zero: [u8; 4],
    time: u64,
}

impl ClientRecord {
    /// `time` is CLOCK_MONOTONIC in nanoseconds.
    pub const fn new(client: Endpoint, time: u64) -> Self {
        Self { client, zero: [0; 4], time }
    }

    /// Who the application is to see.
    #[inline(always)]
    pub const fn client(&self) -> Endpoint {
        self.client
    }

    /// When it was filed, CLOCK_MONOTONIC, nanoseconds.
    pub const fn time(&self) -> u64 {
        self.time
    }
}

/// Which of a pod's listeners of the agent. The numbers are part of the ABI.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerRole {
    /// What the pod's applications dial.
    Outbound = 0,
    /// HBONE, port 15008.
    Tunnel = 1,
    /// Everything else that arrives.
    Plaintext = 2,
}

/// LISTENERS key.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenerKey {
    pod: Ip,
    role: [u8; 1],
    zero: [u8; 3],
}

impl ListenerKey {
    /// The listener of the pod that holds the address `pod`.
    #[inline(always)]
    pub const fn new(pod: Ip, role: ListenerRole) -> Self {
        Self { pod, role: [role as u8], zero: [0; 3] }
    }
}

/// FILED value, by four-tuple: a connection that the agent itself opens. The time lets old ones be swept.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filed {
    time: u64,
}

impl Filed {
    /// `time` is CLOCK_MONOTONIC in nanoseconds.
    #[inline(always)]
    pub const fn new(time: u64) -> Self {
        Self { time }
    }

    /// When, CLOCK_MONOTONIC, nanoseconds.
    pub const fn time(&self) -> u64 {
        self.time
    }
}

/// PROBES value, by four-tuple: a connection that kubelet opens to a port declared in a pod's probes. It stays until the
/// connection closes, because a SYN that is sent again, a syncookie's ACK and a tuple that meets TIME_WAIT enter the
/// lookup anew.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeRecord {
    time: u64,
    socket: u64,
}

impl ProbeRecord {
    /// `time` is CLOCK_MONOTONIC in nanoseconds, `socket` the cookie of kubelet's socket.
    #[inline(always)]
    pub const fn new(time: u64, socket: u64) -> Self {
        Self { time, socket }
    }

    /// When, CLOCK_MONOTONIC, nanoseconds.
    pub const fn time(&self) -> u64 {
        self.time
    }

    /// Whose record it is: a socket that has the same addresses in another namespace does not remove it.
    #[inline(always)]
    pub const fn is_of(&self, socket: u64) -> bool {
        self.socket == socket
    }
}

/// What goes through the ring buffer: a refusal or a drop, with whom it met.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    time: u64,
    netns: u64,
    source: Endpoint,
    destination: Endpoint,
    outcome: u32,
    interface: u32,
}

impl Event {
    /// `netns` is 0 where the hook cannot know it, `interface` where there is none.
    #[inline(always)]
    pub const fn new(time: u64, outcome: crate::outcome::Outcome, tuple: FromTo, netns: u64, interface: u32) -> Self {
        Self { time, netns, source: tuple.0, destination: tuple.1, outcome: outcome as u32, interface }
    }

    /// Reads what the kernel wrote; none if the length is another.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; 64] = bytes.try_into().ok()?;
        let u64_at = |at: usize| Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let u32_at = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let endpoint_at = |at: usize| {
            let ip: [u8; 16] = bytes.get(at..at + 16)?.try_into().ok()?;
            let port: [u8; 2] = bytes.get(at + 16..at + 18)?.try_into().ok()?;
            Some(Endpoint::new(Ip::from_v6(ip), u16::from_be_bytes(port)))
        };
        Some(Self {
            time: u64_at(0)?,
            netns: u64_at(8)?,
            source: endpoint_at(16)?,
            destination: endpoint_at(36)?,
            outcome: u32_at(56)?,
            interface: u32_at(60)?,
        })
    }

    /// The number of the outcome; an agent may meet one that it does not know.
    pub const fn outcome(&self) -> u32 {
        self.outcome
    }

    /// The netns cookie, or 0.
    pub const fn netns(&self) -> u64 {
        self.netns
    }

    /// Who opened the connection; unspecified where the hook cannot know.
    pub const fn source(&self) -> Endpoint {
        self.source
    }

    /// Whom it was for.
    pub const fn destination(&self) -> Endpoint {
        self.destination
    }

    /// The host-side interface, or 0.
    pub const fn interface(&self) -> u32 {
        self.interface
    }
}

/// Source and destination of an [`Event`].
#[derive(Clone, Copy)]
pub struct FromTo(pub Endpoint, pub Endpoint);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_have_no_padding() {
        assert_eq!(size_of::<PodConfig>(), 16 + 16 + 1 + 1 + 2);
        assert_eq!(size_of::<PodAddresses>(), 32);
        assert_eq!(size_of::<DialRecord>(), 20 + 2 + 2 + 8 + 8);
        assert_eq!(size_of::<DialStorage>(), 20 + 1 + 3 + 8);
        assert_eq!(size_of::<SourceKey>(), 8 + 16);
        assert_eq!(size_of::<ClientRecord>(), 20 + 4 + 8);
        assert_eq!(size_of::<ListenerKey>(), 16 + 1 + 3);
        assert_eq!(size_of::<Filed>(), 8);
        assert_eq!(size_of::<ProbeRecord>(), 8 + 8);
        assert_eq!(size_of::<Event>(), 8 + 8 + 20 + 20 + 4 + 4);
    }

    #[test]
    fn a_family_that_is_missing_is_nobodys_address() {
        let pod = PodAddresses::new(Ip::from_v4([10, 0, 0, 2]), Ip::UNSPECIFIED);
        assert!(pod.contain(&Ip::from_v4([10, 0, 0, 2])));
        assert!(!pod.contain(&Ip::UNSPECIFIED));
        assert!(!pod.contain(&Ip::from_v4([0, 0, 0, 0])));
    }
}
