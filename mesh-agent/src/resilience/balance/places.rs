//! Endpoints by how far they are, and a draw among them.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Instant;

use fastrand::Rng;

use super::endpoint::Endpoint;
use crate::resilience::limits::{HEALTHY_ENOUGH, MAX_PICKS, MOST_WEIGHT};
use crate::resilience::policy::{Balance, Endpoints, Locality};

/// How far an endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// On this node.
    Node,
    /// On another node of this zone.
    Zone,
    /// In another zone, or in an unknown one.
    Elsewhere,
}

/// The endpoints that may be chosen, by place.
#[derive(Default)]
pub(super) struct Places {
    /// Nearest first; without locality a single one.
    places: Vec<OnePlace>,
}

struct OnePlace {
    endpoints: Vec<Rc<Endpoint>>,
    /// Of 1000 requests, those that go here or to a nearer place.
    upto: u32,
    /// Whose turn it is.
    turn: Cell<usize>,
}

impl Places {
    /// Sorts endpoints into places and shares the load among these.
    pub(super) fn of(
        endpoints: &[Rc<Endpoint>],
        locality: Locality,
        usable: impl Fn(&Endpoint) -> bool,
        rng: &mut Rng,
    ) -> Self {
        let at = |place: Option<Place>| {
            let here = move |endpoint: &&Rc<Endpoint>| place.is_none_or(|place| endpoint.place() == place);
            let all = endpoints.iter().filter(here).count();
            let usable: Vec<_> = endpoints.iter().filter(here).filter(|endpoint| usable(endpoint)).cloned().collect();
            (all, usable)
        };
        let sorted = match locality {
            Locality::Ignore => vec![at(None)],
            Locality::Failover | Locality::Weighted { .. } => {
                [Place::Node, Place::Zone, Place::Elsewhere].map(|place| at(Some(place))).into()
            }
        };
        let health = |(all, usable): &(usize, Vec<Rc<Endpoint>>)| health(*all, usable.len());
        let shares = shares(&sorted.iter().map(health).collect::<Vec<_>>(), locality);
        let mut upto = 0_u32;
        let places = sorted.into_iter().zip(shares).map(|((_, endpoints), share)| {
            upto = upto.saturating_add(share);
            OnePlace { turn: Cell::new(rng.usize(..endpoints.len().max(1))), endpoints, upto }
        });
        Self { places: places.filter(|place| !place.endpoints.is_empty()).collect() }
    }

    /// Whether none may be chosen.
    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Every endpoint, from somewhere on.
    pub(super) fn all_from(&self, start: usize) -> impl Iterator<Item = &Rc<Endpoint>> {
        let count = self.places.iter().map(|place| place.endpoints.len()).sum::<usize>().max(1);
        let all = || self.places.iter().flat_map(|place| &place.endpoints);
        all().skip(start % count).chain(all().take(start % count))
    }

    /// A place by its share, and one of its endpoints as the policy says.
    pub(super) fn draw(&self, policy: &Endpoints, now: Instant, rng: &mut Rng) -> Option<&Rc<Endpoint>> {
        let place = match &*self.places {
            [only] => only,
            several => {
                let total = several.last()?.upto.max(1);
                let drawn = rng.u32(..total);
                several.iter().find(|place| drawn < place.upto).or(several.last())?
            }
        };
        match policy.balance {
            // A hash without a key, such as a request without the header, is like no hash.
            Balance::PeakEwma | Balance::ConsistentHash(_) => {
                place.better_of_two(policy, now, rng, |one, other| one.cost(now) <= other.cost(now))
            }
            Balance::LeastRequest => {
                place.better_of_two(policy, now, rng, |one, other| one.in_flight() <= other.in_flight())
            }
            Balance::Random => {
                let drawn = place.weighted(policy, now, rng, |rng| rng.usize(..place.endpoints.len().max(1)));
                drawn.map(|(_, endpoint)| endpoint)
            }
            Balance::RoundRobin => {
                let in_turn = place.weighted(policy, now, rng, |_| {
                    let turn = place.turn.get();
                    place.turn.set(turn.wrapping_add(1));
                    turn.checked_rem(place.endpoints.len()).unwrap_or_default()
                });
                in_turn.map(|(_, endpoint)| endpoint)
            }
        }
    }
}

impl OnePlace {
    /// Draws until a weight allows, so that an endpoint with a tenth of its weight is drawn a tenth as often.
    fn weighted(
        &self,
        policy: &Endpoints,
        now: Instant,
        rng: &mut Rng,
        mut draw: impl FnMut(&mut Rng) -> usize,
    ) -> Option<(usize, &Rc<Endpoint>)> {
        let mut last = None;
        for _ in 0..=MAX_PICKS {
            let index = draw(rng);
            let endpoint = self.endpoints.get(index)?;
            let weight = endpoint.weight(policy, now);
            if weight >= 100 || rng.u32(..100) < weight {
                return Some((index, endpoint));
            }
            last = Some((index, endpoint));
        }
        last
    }

    /// Two different ones at random, and the better of them.
    fn better_of_two(
        &self,
        policy: &Endpoints,
        now: Instant,
        rng: &mut Rng,
        better: impl Fn(&Endpoint, &Endpoint) -> bool,
    ) -> Option<&Rc<Endpoint>> {
        let count = self.endpoints.len();
        let (first, one) = self.weighted(policy, now, rng, |rng| rng.usize(..count.max(1)))?;
        if count < 2 {
            return Some(one);
        }
        let (_, other) = self.weighted(policy, now, rng, |rng| {
            let index = rng.usize(..count.saturating_sub(1).max(1));
            if index >= first { index.saturating_add(1) } else { index }
        })?;
        // One that had to be drawn for want of another does not win against one with its full weight.
        let lighter = |endpoint: &Endpoint, than: &Endpoint| endpoint.weight(policy, now) < than.weight(policy, now);
        let one_by_chance = lighter(other, one) && rng.u32(..100) >= other.weight(policy, now);
        Some(if one_by_chance || better(one, other) { one } else { other })
    }
}

/// How much of its due a place can take, of 1000.
fn health(all: usize, usable: usize) -> u32 {
    let scaled = usable.saturating_mul(100_000).checked_div(all.saturating_mul(HEALTHY_ENOUGH as usize));
    u32::try_from(scaled.unwrap_or(0)).unwrap_or(1000).min(1000)
}

/// Of 1000 requests, how many go to each place, nearest first.
fn shares(healths: &[u32], locality: Locality) -> Vec<u32> {
    let wanted: Vec<u32> = match locality {
        Locality::Ignore => healths.iter().map(|_| 1000).collect(),
        Locality::Failover => {
            let mut left = 1000_u32;
            let spilled = healths.iter().map(|health| {
                let share = left.min(*health);
                left = left.saturating_sub(share);
                share
            });
            spilled.collect()
        }
        Locality::Weighted { node, zone, elsewhere } => {
            let weighted = healths.iter().zip([node, zone, elsewhere]);
            weighted.map(|(health, weight)| health.saturating_mul(weight.min(MOST_WEIGHT))).collect()
        }
    };
    let sum: u64 = wanted.iter().copied().map(u64::from).sum();
    // Weights that leave everything to places without endpoints: better a place without weight than none.
    let wanted = if sum == 0 { healths.to_vec() } else { wanted };
    let sum: u64 = wanted.iter().copied().map(u64::from).sum::<u64>().max(1);
    wanted.iter().map(|share| u32::try_from(u64::from(*share) * 1000 / sum).unwrap_or(1000)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn load_spills_to_the_next_place_as_health_goes() {
        let weighted = |node, zone, elsewhere| Locality::Weighted { node, zone, elsewhere };
        type Case = (Locality, [(usize, usize); 3], [u32; 3]);
        let table: [Case; 10] = [
            (Locality::Failover, [(4, 4), (4, 4), (4, 4)], [1000, 0, 0]),
            (Locality::Failover, [(4, 3), (4, 4), (4, 4)], [1000, 0, 0]),
            (Locality::Failover, [(4, 2), (4, 4), (4, 4)], [694, 306, 0]),
            (Locality::Failover, [(4, 1), (4, 1), (4, 4)], [347, 347, 306]),
            (Locality::Failover, [(0, 0), (4, 4), (4, 4)], [0, 1000, 0]),
            (Locality::Failover, [(4, 0), (0, 0), (4, 4)], [0, 0, 1000]),
            (Locality::Failover, [(4, 1), (0, 0), (0, 0)], [1000, 0, 0]),
            (weighted(80, 20, 0), [(4, 4), (4, 4), (4, 4)], [800, 200, 0]),
            (weighted(80, 20, 0), [(4, 0), (4, 4), (4, 4)], [0, 1000, 0]),
            (weighted(80, 20, 0), [(4, 0), (4, 0), (4, 4)], [0, 0, 1000]),
        ];
        for (locality, places, expected) in table {
            let healths: Vec<u32> = places.iter().map(|(all, usable)| health(*all, *usable)).collect();
            let found = shares(&healths, locality);
            let near = found.iter().zip(expected).all(|(found, expected)| found.abs_diff(expected) <= 1);
            assert!(near, "{locality:?} {places:?}: {found:?}, not {expected:?}");
        }
    }
}
