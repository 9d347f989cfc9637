//! What a worker knows of an endpoint.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::load::PeakEwma;
use super::places::Place;
use crate::resilience::limits::{FAILURE_RTT, LEAST_WEIGHT};
use crate::resilience::outcome::Sign;
use crate::resilience::outlier::{Health, State};
use crate::resilience::policy::Endpoints;
use crate::resilience::pool::Pool;

/// One endpoint of one Service port. Changed by the worker that holds it, hence the cells.
pub struct Endpoint {
    address: SocketAddr,
    /// Counts that all workers share.
    pool: Arc<Pool>,
    place: Cell<Place>,
    /// When it came; None for those that were there from the first.
    came: Option<Instant>,
    in_flight: Cell<u32>,
    load: Cell<PeakEwma>,
    /// It asked for less until then.
    busy: Cell<Option<Instant>>,
    health: RefCell<Health>,
}

impl Endpoint {
    pub(super) fn new(address: SocketAddr, pool: Arc<Pool>, now: Instant, came: Option<Instant>) -> Self {
        Self {
            address,
            pool,
            place: Cell::new(Place::Elsewhere),
            came,
            in_flight: Cell::new(0),
            load: Cell::new(PeakEwma::new(now)),
            busy: Cell::new(None),
            health: RefCell::default(),
        }
    }

    /// Where it is reached.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Requests of this worker that are under way there.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.get()
    }

    /// Whether it is left out.
    pub fn is_ejected(&self) -> bool {
        self.health.borrow().is_ejected()
    }

    /// How far it is.
    pub fn place(&self) -> Place {
        self.place.get()
    }

    pub(super) fn set_place(&self, place: Place) {
        self.place.set(place);
    }

    pub(super) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    pub(super) fn health(&self) -> &RefCell<Health> {
        &self.health
    }

    pub(super) fn ejected_until(&self) -> Option<Instant> {
        match self.health.borrow().state() {
            State::Ejected(until) => Some(until),
            State::Healthy | State::Probation => None,
        }
    }

    pub(super) fn begin(&self) {
        self.in_flight.set(self.in_flight.get().saturating_add(1));
    }

    pub(super) fn end(&self) {
        self.in_flight.set(self.in_flight.get().saturating_sub(1));
    }

    /// Takes note of a round trip.
    pub(super) fn note(&self, took: Duration, sign: Sign, now: Instant) {
        let counts = match sign {
            Sign::Well => took,
            Sign::Failing | Sign::Unreachable => took.max(FAILURE_RTT),
            Sign::Busy(length) => {
                let until = now.checked_add(length).unwrap_or(now);
                self.busy.set(self.busy.get().max(Some(until)));
                took
            }
        };
        self.note_load(counts, now);
    }

    /// Takes note that there was no answer for so long: no round trip, but if it is longer than the usual one, it counts.
    pub(super) fn note_wait(&self, waited: Duration, now: Instant) {
        if waited.as_secs_f64() > self.load.get().cost(0, now) {
            self.note_load(waited, now);
        }
    }

    fn note_load(&self, sample: Duration, now: Instant) {
        let mut load = self.load.get();
        load.note(sample, now);
        self.load.set(load);
    }

    /// What the next request would cost here.
    pub(super) fn cost(&self, now: Instant) -> f64 {
        self.load.get().cost(self.in_flight.get(), now)
    }

    /// The part of its load that it is to have now, in percent.
    pub(super) fn weight(&self, policy: &Endpoints, now: Instant) -> u32 {
        let busy = self.busy.get().is_some_and(|until| now < until);
        let probation = self.health.borrow().state() == State::Probation;
        if busy || probation {
            return LEAST_WEIGHT;
        }
        let (Some(came), Some(window)) = (self.came, policy.slow_start) else { return 100 };
        let age = now.saturating_duration_since(came);
        if age >= window {
            return 100;
        }
        let grown = 100.0 * age.as_secs_f64() / window.as_secs_f64();
        (grown as u32).clamp(LEAST_WEIGHT, 100)
    }
}
