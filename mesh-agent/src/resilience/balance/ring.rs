//! Consistent hashing: every endpoint has many places on a ring, and a key leads to the next place after its own. When an
//! endpoint comes or goes, only keys that it gets or had are moved. The places are a function of the address alone, so
//! every worker and every node leads a key to the same endpoint.

use std::net::{IpAddr, SocketAddr};

use twox_hash::XxHash64;

use crate::resilience::limits::{RING_MANY, RING_POINTS, RING_POINTS_OF_MANY};

/// The ring.
#[derive(Debug, Default)]
pub(super) struct Ring {
    /// (place, index of the endpoint), in order.
    points: Vec<(u64, u32)>,
}

impl Ring {
    pub(super) fn new(addresses: &[SocketAddr]) -> Self {
        let each = if addresses.len() > RING_MANY { RING_POINTS_OF_MANY } else { RING_POINTS };
        let numbered = (0_u32..).zip(addresses);
        let mut points: Vec<(u64, u32)> = numbered
            .flat_map(|(index, address)| (0..each).map(move |point| (place(address, point.into()), index)))
            .collect();
        // Of two endpoints at one place the smaller address is first, in whatever order they came.
        points.sort_unstable_by_key(|(place, index)| (*place, addresses.get(*index as usize)));
        Self { points }
    }

    pub(super) fn len(&self) -> usize {
        self.points.len()
    }

    /// Endpoints from the key's place on, as often as they are met.
    pub(super) fn from(&self, key: u64) -> impl Iterator<Item = usize> {
        let start = self.points.partition_point(|(place, _)| *place < key);
        let (before, after) = self.points.split_at_checked(start).unwrap_or_default();
        after.iter().chain(before).map(|(_, index)| *index as usize)
    }
}

/// Where a key is on the ring.
pub fn key(bytes: &[u8]) -> u64 {
    // The seed is never changed: nodes of two versions agree.
    XxHash64::oneshot(0x6e6f_6465_6d65_7368, bytes)
}

/// One place of an endpoint.
pub(super) fn place(address: &SocketAddr, point: u64) -> u64 {
    let mut bytes = [0; 18];
    let ip = match address.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    let whole = ip.octets().into_iter().chain(address.port().to_be_bytes());
    bytes.iter_mut().zip(whole).for_each(|(byte, value)| *byte = value);
    XxHash64::oneshot(point, &bytes)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn address(number: u32) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::from(0x0af4_0000 + number), 8080))
    }

    fn owner(ring: &Ring, addresses: &[SocketAddr], name: u32) -> Option<SocketAddr> {
        ring.from(key(format!("user-{name}").as_bytes())).next().map(|index| addresses[index])
    }

    #[test]
    fn nobody_has_much_more_than_the_others() {
        for count in [2_u32, 10, 50] {
            let addresses: Vec<SocketAddr> = (0..count).map(address).collect();
            let ring = Ring::new(&addresses);
            let mut keys = std::collections::HashMap::new();
            let total = 20_000;
            for name in 0..total {
                *keys.entry(owner(&ring, &addresses, name)).or_insert(0) += 1;
            }
            let fair = total / count;
            let most = keys.values().copied().max().unwrap();
            assert!(keys.len() == count as usize && most < fair * 3 / 2, "{count}: {most} of {fair}");
        }
    }

    #[test]
    fn an_empty_ring_leads_nowhere() {
        assert_eq!(Ring::new(&[]).from(1).next(), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Only keys of the endpoint that went are moved, and about its share of all: with k keys on n endpoints about
        /// k/n, never more than three times that.
        #[test]
        fn who_goes_moves_his_keys_alone(count in 2_u32..40, gone in 0_u32..40, order in any::<u64>()) {
            let gone = address(gone % count);
            let mut before: Vec<SocketAddr> = (0..count).map(address).collect();
            fastrand::Rng::with_seed(order).shuffle(&mut before);
            let after: Vec<SocketAddr> = before.iter().copied().filter(|other| *other != gone).collect();
            let (ring, smaller) = (Ring::new(&before), Ring::new(&after));
            let keys = 1000;
            let mut moved = 0;
            for name in 0..keys {
                let (old, new) = (owner(&ring, &before, name), owner(&smaller, &after, name));
                if old == Some(gone) {
                    moved += 1;
                } else {
                    prop_assert_eq!(old, new, "a key of another endpoint moved");
                }
            }
            prop_assert!(moved <= keys * 3 / count, "{} of {} keys on {} endpoints", moved, keys, count);
        }
    }
}
