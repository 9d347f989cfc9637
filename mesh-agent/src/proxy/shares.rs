//! What of a pod's budget went to whom of those who reach it, told apart by the address they come from.
//!
//! While there is plenty anybody may take. What is scarce is shared so that whoever floods leaves room: a source may hold
//! as many places as a multiple of those that are free, so a flood of any number of sources never takes the last of
//! them, and a source that held nothing yet is served. Nobody is thrown out for another, and nothing waits.
//!
//! An address is as good as a name here: whoever has one has shaken hands from it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::budget::Kind;
use super::limits::{CONNECTION_SHARE, FEW_SOURCES, MAX_RATE_SHARES, STRANGER_SHARE};

/// Of one pod.
#[derive(Default)]
pub struct Shares {
    sources: Mutex<Sources>,
}

#[derive(Default)]
struct Sources {
    /// Places of each kind, of sources that have any.
    held: HashMap<IpAddr, [usize; Kind::ALL.len()]>,
    /// Sources that came of late.
    owed: HashMap<IpAddr, Debt>,
    /// How many of these there may be before those that owe nothing are forgotten.
    forget_at: usize,
}

/// What a source took of the rate and has not worked off: nanoseconds of the whole rate.
#[derive(Clone, Copy, Default)]
struct Debt {
    owed: u64,
    /// When that was so.
    at: u64,
}

impl Debt {
    /// Each of `sources` works its debt off with its part of the rate.
    fn now(self, now: u64, sources: u64) -> u64 {
        self.owed.saturating_sub(now.saturating_sub(self.at) / sources.max(1))
    }
}

impl Shares {
    /// Takes a place for a source, of which `free` are left for all.
    pub fn take(&self, source: IpAddr, kind: Kind, free: usize) -> bool {
        let share = match kind {
            Kind::Connection => CONNECTION_SHARE,
            Kind::Tunnel | Kind::Handshake => STRANGER_SHARE,
        };
        let mut sources = self.sources();
        let held = sources.held.get(&source).and_then(|held| held.get(kind as usize)).copied().unwrap_or_default();
        let is_within = held < free.saturating_mul(share);
        if is_within && let Some(count) = sources.held.entry(source).or_default().get_mut(kind as usize) {
            *count += 1;
        }
        is_within
    }

    /// Gives it back.
    pub fn give(&self, source: IpAddr, kind: Kind) {
        let mut sources = self.sources();
        let Some(held) = sources.held.get_mut(&source) else { return };
        if let Some(count) = held.get_mut(kind as usize) {
            *count = count.saturating_sub(1);
        }
        if held.iter().all(|count| *count == 0) {
            sources.held.remove(&source);
            give_back(&mut sources.held);
        }
    }

    /// Charges a source for one of the rate's tokens, which takes `token` of what is left for all; false if it has to do
    /// without.
    pub fn charge(&self, source: IpAddr, now: u64, token: u64, left: Left) -> bool {
        let mut sources = self.sources();
        let count = sources.owed.len().min(MAX_RATE_SHARES) as u64;
        let owed = sources.owed.get(&source).map_or(0, |debt| debt.now(now, count));
        if left.is_scarce() && owed > left.now {
            return false;
        }
        sources.owed.insert(source, Debt { owed: owed.saturating_add(token), at: now });
        sources.forget(now, count);
        true
    }

    fn sources(&self) -> MutexGuard<'_, Sources> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sources {
    fn forget(&mut self, now: u64, count: u64) {
        if self.owed.len() <= self.forget_at.max(FEW_SOURCES) {
            return;
        }
        self.owed.retain(|_, debt| debt.now(now, count) > 0);
        self.forget_at = self.owed.len().saturating_mul(2);
        give_back(&mut self.owed);
    }
}

/// A flood of sources that is over leaves no room behind that it took.
fn give_back<T>(map: &mut HashMap<IpAddr, T>) {
    if map.capacity() > map.len().max(FEW_SOURCES).saturating_mul(4) {
        map.shrink_to(map.len().saturating_mul(2));
    }
}

/// What is left of a rate for all, in nanoseconds of it.
#[derive(Clone, Copy, Debug)]
pub struct Left {
    /// Now.
    pub now: u64,
    /// When nobody came for long.
    pub at_most: u64,
}

impl Left {
    fn is_scarce(self) -> bool {
        self.now < self.at_most / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(index: u32) -> IpAddr {
        IpAddr::from(index.to_be_bytes())
    }

    /// What each of `hogs` sources that want all they can get holds of 1024 places, and whether one more source gets one.
    fn flood(kind: Kind, hogs: u32) -> (Vec<usize>, bool) {
        let shares = Shares::default();
        let mut held = vec![0; hogs as usize];
        let mut free = 1024_usize;
        loop {
            let before = free;
            for (index, held) in held.iter_mut().enumerate() {
                if shares.take(source(index as u32), kind, free) {
                    *held += 1;
                    free -= 1;
                }
            }
            if before == free {
                return (held, shares.take(source(hogs), kind, free));
            }
        }
    }

    #[test]
    fn a_flood_of_any_number_of_sources_leaves_room() {
        for (kind, hogs, most) in [
            (Kind::Handshake, 1, 512),
            (Kind::Handshake, 3, 257),
            (Kind::Handshake, 100, 11),
            (Kind::Tunnel, 1, 512),
            (Kind::Connection, 1, 1009),
            (Kind::Connection, 10, 103),
        ] {
            let (held, is_served) = flood(kind, hogs);
            assert!(is_served, "{kind:?} of {hogs}: {held:?}");
            assert!(held.iter().all(|held| *held <= most), "{kind:?} of {hogs}: {held:?}");
            assert!(held.iter().all(|held| *held >= most / 2), "no hog starves another: {kind:?} of {hogs}: {held:?}");
        }
    }

    #[test]
    fn what_is_given_back_is_forgotten() {
        let shares = Shares::default();
        for index in 0..1000 {
            assert!(shares.take(source(index), Kind::Tunnel, 10));
            assert!(shares.take(source(index), Kind::Handshake, 10));
        }
        for index in 0..1000 {
            shares.give(source(index), Kind::Tunnel);
            shares.give(source(index), Kind::Handshake);
            shares.give(source(index), Kind::Handshake);
        }
        let sources = shares.sources();
        assert_eq!(sources.held.len(), 0);
        assert!(sources.held.capacity() <= 8 * FEW_SOURCES, "{}", sources.held.capacity());
    }
}
