//! The key of an outbound connection's record, and how the rewritten destination carries it to the agent.
//!
//! `key = socket cookie << 8 | generation`. IPv4 carries 38 bits of it, 23 in the address and 15 in the port; IPv6
//! carries all 64 in the address and keeps the port.

use crate::addr::{CAPTURE_V6, Endpoint, Ip};

const ADDRESS_BITS: u32 = 23;
const PORT_BITS: u32 = 15;
/// Keeps the port out of the range that the listeners' ephemeral ports and privileged ports would raise questions in.
const PORT_MARK: u16 = 1 << PORT_BITS;
const V4_MASK: u64 = (1 << (ADDRESS_BITS + PORT_BITS)) - 1;

/// The key of a record of what an application dialled. Unique per connect(), not per socket: a socket that connects
/// again keeps its cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DialKey(u64);

impl DialKey {
    /// The key for an IPv6 destination: all 64 bits.
    #[inline(always)]
    pub const fn for_v6(cookie: u64, generation: u8) -> Self {
        Self(cookie << 8 | generation as u64)
    }

    /// The key for an IPv4 destination: the 38 bits that it can carry.
    #[inline(always)]
    pub const fn for_v4(cookie: u64, generation: u8) -> Self {
        Self(Self::for_v6(cookie, generation).0 & V4_MASK)
    }

    /// A key as it stands in a map.
    #[inline(always)]
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// The key as it stands in a map.
    #[inline(always)]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The IPv4 destination that carries this key.
    #[inline(always)]
    pub const fn encode_v4(self) -> Endpoint {
        let address = 0x7f80_0000 | (self.0 & ((1 << ADDRESS_BITS) - 1)) as u32;
        let port = PORT_MARK | ((self.0 >> ADDRESS_BITS) & ((1 << PORT_BITS) - 1)) as u16;
        Endpoint::new(Ip::from_v4_word(address.to_be()), port)
    }

    /// The IPv6 destination that carries this key; the port stays what was dialled.
    #[inline(always)]
    pub const fn encode_v6(self, port: u16) -> Endpoint {
        let p = CAPTURE_V6;
        let words = [
            u32::from_ne_bytes([p[0], p[1], p[2], p[3]]),
            u32::from_ne_bytes([p[4], p[5], p[6], p[7]]),
            ((self.0 >> 32) as u32).to_be(),
            (self.0 as u32).to_be(),
        ];
        Endpoint::new(Ip::from_words(words), port)
    }

    /// The key that a destination carries, if it is one that capture made.
    #[inline(always)]
    pub const fn decode(destination: Endpoint) -> Option<Self> {
        let ip = destination.ip();
        if !ip.is_capture() {
            return None;
        }
        if !ip.is_v4() {
            let w = ip.words();
            return Some(Self((u32::from_be(w[2]) as u64) << 32 | u32::from_be(w[3]) as u64));
        }
        let port = destination.port();
        if port & PORT_MARK == 0 {
            return None;
        }
        let low = (ip.v4_host_order() & ((1 << ADDRESS_BITS) - 1)) as u64;
        Some(Self(low | ((port & !PORT_MARK) as u64) << ADDRESS_BITS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v4_round_trip() {
        for cookie in [0, 1, 0x7fff, 0x8000, 0x12_3456, (1 << 30) - 1, 1 << 30, u64::MAX >> 8] {
            for generation in [0, 1, 255] {
                let key = DialKey::for_v4(cookie, generation);
                let endpoint = key.encode_v4();
                assert!(endpoint.ip().is_capture() && endpoint.ip().is_v4());
                assert!(endpoint.port() >= 0x8000);
                assert_eq!(DialKey::decode(endpoint), Some(key), "{cookie} {generation}");
            }
        }
    }

    #[test]
    fn v6_round_trip_keeps_port() {
        for cookie in [1, 0xdead_beef, u64::MAX >> 8] {
            let key = DialKey::for_v6(cookie, 7);
            let endpoint = key.encode_v6(443);
            assert!(endpoint.ip().is_capture() && !endpoint.ip().is_v4());
            assert_eq!((endpoint.port(), DialKey::decode(endpoint)), (443, Some(key)));
        }
    }

    #[test]
    fn generations_differ() {
        assert_ne!(DialKey::for_v4(5, 1), DialKey::for_v4(5, 2));
        assert_ne!(DialKey::for_v4(5, 255), DialKey::for_v4(6, 0));
    }

    #[test]
    fn other_addresses_carry_no_key() {
        assert_eq!(DialKey::decode(Endpoint::new(Ip::from_v4([127, 128, 0, 1]), 80)), None);
        assert_eq!(DialKey::decode(Endpoint::new(Ip::from_v4([10, 0, 0, 1]), 0x8001)), None);
        assert_eq!(DialKey::decode(Endpoint::new(Ip::from_v4([127, 64, 0, 1]), 0x8001)), None);
    }
}
