//! Since when each cumulative series counts: OTLP says so with every point, a scrape does not.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

/// The series of the last round, and since when each counts. As many as a scrape has, in some 40 bytes each.
#[derive(Debug)]
pub(super) struct Starts {
    known: HashMap<u64, Known>,
    /// When the last round was; before the first, when the process began.
    last: u64,
    now: u64,
}

#[derive(Debug)]
struct Known {
    start: u64,
    value: f64,
    /// When it was there last.
    seen: u64,
}

impl Starts {
    /// Of a process that began then; times in nanoseconds of Unix time.
    pub fn new(began: u64) -> Self {
        Self { known: HashMap::new(), last: began, now: began }
    }

    /// A round begins.
    pub fn begin(&mut self, now: u64) {
        self.now = now;
    }

    /// Since when a series counts that has this value now. One that is new, or has gone and come back, began after the last
    /// round.
    pub fn of(&mut self, name: &str, labels: &[(&str, String)], value: f64) -> u64 {
        let mut hasher = DefaultHasher::new();
        (name, labels).hash(&mut hasher);
        let fresh = Known { start: self.last, value, seen: self.now };
        match self.known.entry(hasher.finish()) {
            Entry::Vacant(vacant) => vacant.insert(fresh).start,
            Entry::Occupied(mut known) if known.get().value > value => {
                known.insert(fresh);
                self.last
            }
            Entry::Occupied(known) => {
                let known = known.into_mut();
                (known.value, known.seen) = (value, self.now);
                known.start
            }
        }
    }

    /// The round is over: what was not in it is forgotten.
    pub fn end(&mut self) {
        self.known.retain(|_, known| known.seen == self.now);
        self.last = self.now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_counts_from_where_it_began() {
        let mut starts = Starts::new(100);
        let labels = |pod: &str| [("pod", pod.to_string())];
        let table = [
            // The time, the values of a and b, since when they count.
            (200, [Some((5.0, 100)), None]),
            (300, [Some((6.0, 100)), Some((1.0, 200))]),
            // a began anew between two rounds.
            (400, [Some((2.0, 300)), None]),
            // b is back.
            (500, [Some((2.0, 300)), Some((1.0, 400))]),
        ];
        for (now, values) in table {
            starts.begin(now);
            for (pod, (value, expected)) in ["a", "b"].into_iter().zip(values).filter_map(|(pod, of)| Some((pod, of?)))
            {
                assert_eq!(starts.of("x", &labels(pod), value), expected, "{pod} at {now}");
            }
            starts.end();
        }
        assert_eq!(starts.known.len(), 2);
    }
}
