//! Named readiness gates: the agent is ready when no gate that was declared is closed. `/readyz` lists what is missing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// All gates of the process. Cheap to clone.
#[derive(Clone, Default)]
pub struct Readiness {
    gates: Arc<Mutex<BTreeMap<String, Gate>>>,
}

enum Gate {
    Open,
    /// The agent is not ready.
    Closed(String),
    /// Something is missing, and the agent is ready all the same.
    Noted(String),
    /// Nothing is missing, and something is to be said of it.
    Remarked(String),
}

impl Readiness {
    /// Declares a gate, or closes it again, with what is still missing. Write the reason for the operator.
    pub fn waiting(&self, gate: &str, reason: impl Into<String>) {
        self.lock().insert(gate.to_string(), Gate::Closed(reason.into()));
    }

    /// Shows what is missing without holding readiness back.
    pub fn noted(&self, gate: &str, reason: impl Into<String>) {
        self.lock().insert(gate.to_string(), Gate::Noted(reason.into()));
    }

    /// Opens a gate of which something is to be said to the operator.
    pub fn remarked(&self, gate: &str, remark: impl Into<String>) {
        self.lock().insert(gate.to_string(), Gate::Remarked(remark.into()));
    }

    /// Opens a gate.
    pub fn ready(&self, gate: &str) {
        self.lock().insert(gate.to_string(), Gate::Open);
    }

    /// Removes a gate, such as that of a pod that is gone.
    pub fn remove(&self, gate: &str) {
        self.lock().remove(gate);
    }

    /// Every gate that is closed and why; empty when ready.
    pub fn missing(&self) -> Vec<(String, String)> {
        self.list(|gate| match gate {
            Gate::Closed(reason) => Some(reason.clone()),
            Gate::Open | Gate::Noted(_) | Gate::Remarked(_) => None,
        })
    }

    /// What is missing and does not hold readiness back.
    pub fn notes(&self) -> Vec<(String, String)> {
        self.list(|gate| match gate {
            Gate::Noted(reason) => Some(reason.clone()),
            Gate::Open | Gate::Closed(_) | Gate::Remarked(_) => None,
        })
    }

    /// What is to be said of gates that are open.
    pub fn remarks(&self) -> Vec<(String, String)> {
        self.list(|gate| match gate {
            Gate::Remarked(remark) => Some(remark.clone()),
            Gate::Open | Gate::Closed(_) | Gate::Noted(_) => None,
        })
    }

    /// What is missing at a gate: nothing where it is open. None where it was not declared.
    pub fn trouble(&self, gate: &str) -> Option<Option<String>> {
        Some(match self.lock().get(gate)? {
            Gate::Open | Gate::Remarked(_) => None,
            Gate::Closed(reason) | Gate::Noted(reason) => Some(reason.clone()),
        })
    }

    /// What is to be said of a gate that is open.
    pub fn remark(&self, gate: &str) -> Option<String> {
        match self.lock().get(gate)? {
            Gate::Remarked(remark) => Some(remark.clone()),
            Gate::Open | Gate::Closed(_) | Gate::Noted(_) => None,
        }
    }

    fn list(&self, reason: impl Fn(&Gate) -> Option<String>) -> Vec<(String, String)> {
        self.lock().iter().filter_map(|(name, gate)| Some((name.clone(), reason(gate)?))).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Gate>> {
        self.gates.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
