//! What many connections came to: how many went well, and the others by their error.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use super::script::error_name;

/// Counted by many threads.
#[derive(Default)]
pub struct Tally(Mutex<Counts>);

#[derive(Default)]
struct Counts {
    done: u64,
    errors: BTreeMap<String, u64>,
}

impl Tally {
    /// Counts one outcome; `step` says where it failed. Returns what went well.
    pub fn count<T>(&self, step: &str, outcome: io::Result<T>) -> Option<T> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(value) => {
                counts.done += 1;
                Some(value)
            }
            Err(error) => {
                *counts.errors.entry(format!("{step}: {}", error_name(&error))).or_default() += 1;
                None
            }
        }
    }

    /// Counts the outcome of a step that alone is nothing yet: its errors only.
    pub fn count_errors<T>(&self, step: &str, outcome: io::Result<T>) -> Option<T> {
        if outcome.is_err() { self.count(step, outcome) } else { outcome.ok() }
    }

    /// `{"done": …, "failed": …, "errors": {…}}`
    pub fn json(&self) -> Value {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        json!({"done": counts.done, "failed": counts.errors.values().sum::<u64>(), "errors": counts.errors})
    }
}

/// Raises the soft limit of open descriptors to the hard one: a shell's default of 1024 is no server's.
pub fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // Without it the first connection that finds no descriptor says so.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}
