//! Named readiness gates: the agent is ready when every gate that was declared is open. `/readyz` lists what is missing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// All gates of the process. Cheap to clone.
#[derive(Clone, Default)]
pub struct Readiness {
    gates: Arc<Mutex<BTreeMap<String, Option<String>>>>,
}

impl Readiness {
    /// Declares a gate, or closes it again, with what is still missing. Write the reason for the operator.
    pub fn waiting(&self, gate: &str, reason: impl Into<String>) {
        self.lock().insert(gate.to_string(), Some(reason.into()));
    }

    /// Opens a gate.
    pub fn ready(&self, gate: &str) {
        self.lock().insert(gate.to_string(), None);
    }

    /// Removes a gate, such as that of a pod that is gone.
    pub fn remove(&self, gate: &str) {
        self.lock().remove(gate);
    }

    /// Every gate that is closed and why; empty when ready.
    pub fn missing(&self) -> Vec<(String, String)> {
        self.lock().iter().filter_map(|(gate, reason)| Some((gate.clone(), reason.clone()?))).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Option<String>>> {
        self.gates.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
