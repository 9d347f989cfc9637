//! When the keys of one address are fetched, and how long they hold. Pure: clock and chance are handed in.
//!
//! ```text
//!  wanted ─► fetching ─► good: keys in force; again before they are old (max-age, else 5 to 20 minutes)
//!               │ ▲                                   │ a token names a key that is not there: again now,
//!               │ └── pause over ◄────────────────────┘ unless it was tried a moment ago
//!               └──► failed: the keys from before stay for a day; again after a pause that grows
//! ```

use std::time::{Duration, Instant};

use super::fetch::{Fetched, Trouble};
use super::limits::{
    FIRST_RETRY, KEYS_END, LAST_RETRY, MAX_REFRESH, MIN_REFRESH, REFETCH_PAUSE, REFRESH_FROM, REFRESH_TO,
};
use crate::tokens::Keys;

/// What is known of the keys of one address.
#[derive(Debug)]
pub struct Source {
    keys: Option<Keys>,
    /// When they were had last.
    had: Option<Instant>,
    due: Instant,
    began: Option<Instant>,
    is_fetching: bool,
    failures: u32,
    /// Tries that ended.
    ended: u64,
    good: u64,
    trouble: Option<Trouble>,
}

impl Source {
    /// One that is wanted from now on.
    pub fn new(now: Instant) -> Self {
        Self {
            keys: None,
            had: None,
            due: now,
            began: None,
            is_fetching: false,
            failures: 0,
            ended: 0,
            good: 0,
            trouble: None,
        }
    }

    /// When it is to be fetched next; None while it is.
    pub fn due(&self) -> Option<Instant> {
        (!self.is_fetching).then_some(self.due)
    }

    /// Notes that it is fetched now.
    pub fn begin(&mut self, now: Instant) {
        (self.is_fetching, self.began) = (true, Some(now));
    }

    /// Notes what came of it. `chance` is from 0 to 1.
    pub fn end(&mut self, fetched: Result<Fetched, Trouble>, now: Instant, chance: f64) {
        self.is_fetching = false;
        self.ended = self.ended.saturating_add(1);
        let pause = match fetched {
            Ok(Fetched { keys, max_age }) => {
                // The same keys stay the same, so that what is remembered of them does too.
                if self.keys.as_ref() != Some(&keys) {
                    self.keys = Some(keys);
                }
                (self.had, self.trouble, self.failures) = (Some(now), None, 0);
                self.good = self.good.saturating_add(1);
                match max_age {
                    // Before it is old; and not all nodes at once.
                    Some(age) => age.mul_f64(0.95 - 0.15 * chance).clamp(MIN_REFRESH, MAX_REFRESH),
                    None => REFRESH_FROM + REFRESH_TO.saturating_sub(REFRESH_FROM).mul_f64(chance),
                }
            }
            Err(trouble) => {
                self.trouble = Some(trouble);
                let pause = FIRST_RETRY.saturating_mul(1 << self.failures.min(16)).min(LAST_RETRY);
                self.failures = self.failures.saturating_add(1);
                pause.mul_f64(0.75 + 0.25 * chance)
            }
        };
        self.due = now + pause;
    }

    /// A token names a key that is not there.
    pub fn miss(&mut self, now: Instant) {
        if now >= self.refetch_from(now) {
            self.due = self.due.min(now);
        }
    }

    /// From when on it is fetched again because a key is missing.
    pub fn refetch_from(&self, now: Instant) -> Instant {
        self.began.map_or(now, |began| began + REFETCH_PAUSE)
    }

    /// The keys that hold, and until when.
    pub fn in_force(&self) -> Option<(&Keys, Instant)> {
        Some((self.keys.as_ref()?, self.had? + KEYS_END))
    }

    /// Whether it is fetched now.
    pub fn is_fetching(&self) -> bool {
        self.is_fetching
    }

    /// How many tries ended, and how many of them well.
    pub fn counts(&self) -> (u64, u64) {
        (self.ended, self.good)
    }

    /// How old the keys are.
    pub fn age(&self, now: Instant) -> Option<Duration> {
        self.had.map(|had| now.saturating_duration_since(had))
    }

    /// Why the last try failed, if it did.
    pub fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SET: &str = r#"{"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "KID",
        "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

    fn keys(id: &str) -> Keys {
        Keys::parse(&SET.replace("KID", id)).unwrap()
    }

    fn good(id: &str, max_age: Option<u64>) -> Result<Fetched, Trouble> {
        Ok(Fetched { keys: keys(id), max_age: max_age.map(Duration::from_secs) })
    }

    fn bad() -> Result<Fetched, Trouble> {
        Err(Trouble::TimedOut)
    }

    fn seconds(number: u64) -> Duration {
        Duration::from_secs(number)
    }

    #[test]
    fn keys_are_fetched_before_they_are_old() {
        // (max-age, chance, the next fetch after)
        for (max_age, chance, next) in [
            (None, 0.0, 300.0),
            (None, 0.5, 750.0),
            (None, 1.0, 1200.0),
            (Some(1000), 0.0, 950.0),
            (Some(1000), 1.0, 800.0),
            (Some(0), 0.5, 60.0),
            (Some(10), 0.5, 60.0),
            (Some(1 << 40), 0.5, 3600.0),
        ] {
            let now = Instant::now();
            let mut source = Source::new(now);
            assert_eq!(source.due(), Some(now));
            source.begin(now);
            assert_eq!(source.due(), None, "one at a time");
            source.end(good("a", max_age), now, chance);
            let pause = source.due().unwrap() - now;
            assert!((pause.as_secs_f64() - next).abs() < 0.01, "{max_age:?} {chance}: {pause:?}");
        }
    }

    #[test]
    fn the_last_good_keys_stay_while_the_issuer_does_not_answer_and_end() {
        let begun = Instant::now();
        let mut source = Source::new(begun);
        assert!(source.in_force().is_none(), "no keys yet");
        source.begin(begun);
        source.end(bad(), begun, 0.5);
        assert!(source.in_force().is_none());
        let now = source.due().unwrap();
        source.begin(now);
        source.end(good("a", None), now, 0.5);
        assert_eq!(source.in_force(), Some((&keys("a"), now + KEYS_END)));
        let (mut later, mut pauses) = (source.due().unwrap(), Vec::new());
        for _ in 0..10 {
            source.begin(later);
            source.end(bad(), later, 1.0);
            assert_eq!(source.in_force(), Some((&keys("a"), now + KEYS_END)), "not a moment longer than before");
            let next = source.due().unwrap();
            pauses.push((next - later).as_secs());
            later = next;
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]);
        assert_eq!(source.trouble(), Some(&Trouble::TimedOut));
        source.begin(later);
        source.end(good("b", None), later, 0.5);
        assert_eq!(source.in_force(), Some((&keys("b"), later + KEYS_END)));
        assert_eq!((source.trouble(), source.counts()), (None, (13, 2)));
    }

    /// However many tokens name keys that are not there.
    #[test]
    fn a_missing_key_is_looked_for_once_in_a_while() {
        let mut now = Instant::now();
        let mut source = Source::new(now);
        source.begin(now);
        source.end(good("a", None), now, 0.5);
        let mut fetches = Vec::new();
        for second in 0..100 {
            now += seconds(1);
            (0..1000).for_each(|_| source.miss(now));
            if source.due().is_some_and(|due| due <= now) {
                source.begin(now);
                fetches.push(second + 1);
                source.end(if fetches.len() == 2 { bad() } else { good("a", None) }, now, 0.5);
            }
        }
        assert!(fetches.len() <= 11, "{fetches:?}");
        assert_eq!(fetches.first(), Some(&10));
        // A try that failed is tried again by itself, and no sooner for being asked for.
        assert!(fetches.windows(2).filter(|pair| pair[1] - pair[0] < 10).count() <= 1, "{fetches:?}");
    }

    /// So that what is remembered of their tokens stays remembered.
    #[test]
    fn keys_that_did_not_change_stay_the_same() {
        let now = Instant::now();
        let mut source = Source::new(now);
        let held = |source: &Source| format!("{:p}", source.in_force().unwrap().0.identity());
        source.end(good("a", None), now, 0.5);
        let first = held(&source);
        source.end(good("a", None), now, 0.5);
        assert_eq!(held(&source), first);
        source.end(good("b", None), now, 0.5);
        assert_ne!(held(&source), first);
    }
}
