//! Addresses as both sides keep them: 16 bytes, network order, IPv4 in its v4-mapped form.

/// The HBONE port.
pub const TUNNEL_PORT: u16 = 15008;

/// The capture range: connections of an enrolled pod's applications are led here. 127.128.0.0/9.
const CAPTURE_V4: (u32, u32) = (0x7f80_0000, 0xff80_0000);
/// The agent's source addresses, one per connection to an application. 127.64.0.0/10.
const SOURCE_V4: (u32, u32) = (0x7f40_0000, 0xffc0_0000);
/// fd6e:6f64:656d:6573::/64, the capture range ("n" "o" "d" "e" "m" "e" "s").
pub const CAPTURE_V6: [u8; 8] = [0xfd, 0x6e, 0x6f, 0x64, 0x65, 0x6d, 0x65, 0x73];
/// fd6e:6f64:656d:6572::/64, the agent's source addresses; adjacent, so that one mask tells both.
pub const SOURCE_V6: [u8; 8] = [0xfd, 0x6e, 0x6f, 0x64, 0x65, 0x6d, 0x65, 0x72];

const MAPPED_MARK: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

/// An IP address: 16 bytes in network order, IPv4 as `::ffff:a.b.c.d`. Held as four words whose memory is in network
/// order, because the kernel's contexts are read and the verifier reasons by words.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ip([u32; 4]);

impl Ip {
    /// `::`, which stands for no address.
    pub const UNSPECIFIED: Ip = Ip([0; 4]);

    /// From the bytes of an IPv6 address, or of a v4-mapped one.
    pub const fn from_v6(o: [u8; 16]) -> Self {
        Self([
            u32::from_ne_bytes([o[0], o[1], o[2], o[3]]),
            u32::from_ne_bytes([o[4], o[5], o[6], o[7]]),
            u32::from_ne_bytes([o[8], o[9], o[10], o[11]]),
            u32::from_ne_bytes([o[12], o[13], o[14], o[15]]),
        ])
    }

    /// From the bytes of an IPv4 address.
    pub const fn from_v4(octets: [u8; 4]) -> Self {
        Self::from_v4_word(u32::from_ne_bytes(octets))
    }

    /// From an IPv4 address as the kernel's contexts hold it: one word whose memory is in network order.
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        Self([0, 0, MAPPED_MARK, word])
    }

    /// From four words whose memory is in network order, as the kernel's contexts hold them.
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        Self(words)
    }

    /// The inverse of [`Ip::from_words`].
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        self.0
    }

    /// The 16 bytes, network order.
    pub const fn octets(&self) -> [u8; 16] {
        let [a, b, c, d] = self.0;
        let (a, b, c, d) = (a.to_ne_bytes(), b.to_ne_bytes(), c.to_ne_bytes(), d.to_ne_bytes());
        [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]]
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        let w = self.words();
        w[0] == 0 && w[1] == 0 && w[2] == MAPPED_MARK
    }

    /// The IPv4 address in host order; meaningful only where [`Ip::is_v4`].
    #[inline(always)]
    pub const fn v4_host_order(&self) -> u32 {
        u32::from_be(self.words()[3])
    }

    /// The IPv4 address as the kernel's contexts hold it; meaningful only where [`Ip::is_v4`].
    #[inline(always)]
    pub const fn v4_word(&self) -> u32 {
        self.words()[3]
    }

    /// `::` or 0.0.0.0: connect() takes either for loopback.
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        let w = self.words();
        w[0] == 0 && w[1] == 0 && w[3] == 0 && (w[2] == 0 || w[2] == MAPPED_MARK)
    }

    /// 127.0.0.0/8 or ::1. The capture and source ranges of IPv4 lie within: ask for them first.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        let w = self.words();
        if self.is_v4() {
            return self.v4_host_order() >> 24 == 127;
        }
        w[0] == 0 && w[1] == 0 && w[2] == 0 && w[3] == 1u32.to_be()
    }

    /// fe80::/10, which a scope belongs to that capture cannot carry.
    #[inline(always)]
    pub const fn is_v6_link_local(&self) -> bool {
        u32::from_be(self.words()[0]) & 0xffc0_0000 == 0xfe80_0000
    }

    /// Whether this is in the range that connections of applications are led to.
    #[inline(always)]
    pub const fn is_capture(&self) -> bool {
        self.is_v4() && self.v4_host_order() & CAPTURE_V4.1 == CAPTURE_V4.0 || self.has_prefix(CAPTURE_V6)
    }

    /// Whether this is in the range that the agent dials applications from.
    #[inline(always)]
    pub const fn is_agent_source(&self) -> bool {
        self.is_v4() && self.v4_host_order() & SOURCE_V4.1 == SOURCE_V4.0 || self.has_prefix(SOURCE_V6)
    }

    #[inline(always)]
    const fn has_prefix(&self, p: [u8; 8]) -> bool {
        let w = self.words();
        w[0] == u32::from_ne_bytes([p[0], p[1], p[2], p[3]]) && w[1] == u32::from_ne_bytes([p[4], p[5], p[6], p[7]])
    }

    /// Equality by words. The derived one compares bytes, which calls `bcmp`, which the kernel side does not have.
    #[inline(always)]
    pub const fn equals(&self, other: &Ip) -> bool {
        let (a, b) = (self.words(), other.words());
        a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3]
    }
}

impl From<core::net::IpAddr> for Ip {
    fn from(ip: core::net::IpAddr) -> Self {
        match ip {
            core::net::IpAddr::V4(v4) => Ip::from_v4(v4.octets()),
            core::net::IpAddr::V6(v6) => Ip::from_v6(v6.octets()),
        }
    }
}

impl From<Ip> for core::net::IpAddr {
    fn from(ip: Ip) -> Self {
        core::net::IpAddr::V6(core::net::Ipv6Addr::from(ip.octets())).to_canonical()
    }
}

/// An address and a port.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    ip: Ip,
    port: [u8; 2],
    zero: [u8; 2],
}

impl Endpoint {
    /// `port` in host order.
    #[inline(always)]
    pub const fn new(ip: Ip, port: u16) -> Self {
        Self { ip, port: port.to_be_bytes(), zero: [0; 2] }
    }

    /// The address.
    #[inline(always)]
    pub const fn ip(&self) -> Ip {
        self.ip
    }

    /// The port in host order.
    #[inline(always)]
    pub const fn port(&self) -> u16 {
        u16::from_be_bytes(self.port)
    }
}

impl From<core::net::SocketAddr> for Endpoint {
    fn from(address: core::net::SocketAddr) -> Self {
        Endpoint::new(address.ip().into(), address.port())
    }
}

impl From<Endpoint> for core::net::SocketAddr {
    fn from(endpoint: Endpoint) -> Self {
        core::net::SocketAddr::new(endpoint.ip.into(), endpoint.port())
    }
}

/// A TCP connection as the wire shows it in the direction of its SYN.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FourTuple {
    source: Ip,
    destination: Ip,
    source_port: [u8; 2],
    destination_port: [u8; 2],
}

impl FourTuple {
    /// From the end that sends the SYN to the end that receives it.
    #[inline(always)]
    pub const fn new(source: Endpoint, destination: Endpoint) -> Self {
        Self {
            source: source.ip,
            destination: destination.ip,
            source_port: source.port,
            destination_port: destination.port,
        }
    }

    /// Who sends the SYN.
    #[inline(always)]
    pub const fn source(&self) -> Endpoint {
        Endpoint { ip: self.source, port: self.source_port, zero: [0; 2] }
    }

    /// Who receives it.
    #[inline(always)]
    pub const fn destination(&self) -> Endpoint {
        Endpoint { ip: self.destination, port: self.destination_port, zero: [0; 2] }
    }
}

#[cfg(test)]
mod tests;
