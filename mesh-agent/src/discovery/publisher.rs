//! From the objects in force to what is published: snapshots, their findings, how good they are.

use std::time::SystemTime;

use tokio::sync::watch;

use super::file::Changes;
use super::finding::{Effect, FieldPath, Finding};
use super::health::{Health, Report};
use super::store::{Delta, Observed, Store};
use super::{Config, GATE};
use crate::readiness::Readiness;
use crate::sandboxes::Sandboxes;
use crate::state::{Engine, Overruled, StateWriter};

/// What is in force, and what follows from it.
pub struct Current {
    pub store: Store,
    pub engine: Engine,
}

impl Current {
    pub fn new(config: &Config) -> Self {
        Self { store: Store::new(&config.trust_domain), engine: Engine::new(&config.node) }
    }

    pub fn take(&mut self, changes: &Changes) {
        let delta = self.store.apply(&changes.changed, &changes.gone);
        self.follow(delta);
    }

    /// Takes what a watch says of an object. Says whether anything may follow from it.
    pub fn observe(&mut self, observed: &Observed) -> bool {
        let noted = self.store.is_noted(observed);
        let delta = self.store.observe(observed);
        let changed = !delta.upserts.is_empty() || !delta.deletes.is_empty();
        let noted = noted || self.store.is_noted(observed);
        if changed || noted {
            self.follow(delta);
        }
        changed || noted
    }

    fn follow(&mut self, delta: Delta) {
        let Delta { upserts, deletes } = delta;
        for (key, item) in upserts {
            self.engine.upsert(&key, item);
        }
        for key in deletes {
            self.engine.delete(&key);
        }
        self.engine.refuse(self.store.unreadable());
    }

    /// What is wrong with the objects, each for itself and together.
    pub fn findings(&self) -> Vec<Finding> {
        let mut findings = self.store.findings();
        findings.extend(self.engine.overruled().filter_map(|Overruled { policy, target, by }| {
            let field = FieldPath::of("spec.targetRefs").index(target).to_string();
            self.store.finding_about(&policy, &field, format!("is a target of {by} too"), Effect::OlderCounts)
        }));
        findings.extend(self.engine.unanswerable().filter_map(|(policy, names)| {
            let reason = format!("there is no ExternalAuthorizer {names}");
            self.store.finding_about(&policy, "spec.provider.name", reason, Effect::RefusesUnasked)
        }));
        Finding::sort(&mut findings);
        findings
    }
}

/// The writer of snapshots.
pub struct Publisher {
    pub current: Current,
    pub health: Health,
    writer: StateWriter,
    readiness: Readiness,
    sandboxes: Sandboxes,
    /// What was said of the source with the last snapshot; None before the first.
    published: Option<Report>,
}

impl Publisher {
    pub fn new(
        config: &Config,
        writer: StateWriter,
        health: Health,
        readiness: Readiness,
        sandboxes: Sandboxes,
    ) -> Self {
        Self { current: Current::new(config), health, writer, readiness, sandboxes, published: None }
    }

    /// Wakes when pods have addresses that their objects do not tell yet, or no longer: [`Publisher::address`].
    pub fn sandbox_changes(&self) -> watch::Receiver<u64> {
        self.sandboxes.changes()
    }

    /// Gives pods of this node the addresses of their sandboxes, and publishes if that changes anything.
    pub fn address(&mut self) {
        let changed = self.current.engine.sandboxes(self.sandboxes.ips());
        if changed && self.is_published() {
            self.writer.publish(self.current.engine.snapshot());
        }
    }

    /// Whether there is a snapshot.
    pub fn is_published(&self) -> bool {
        self.published.is_some()
    }

    /// What the first snapshot waits for.
    pub fn waiting(&self, reason: String) {
        if self.published.is_none() {
            self.readiness.waiting(GATE, reason);
        }
    }

    /// The source cannot be had, or not all of it.
    pub fn keep(&self, reason: String) {
        if self.health.report().unreachable.as_ref() != Some(&reason) {
            tracing::warn!(reason, "the source cannot be read; the last good state stays in force");
        }
        if self.published.is_some() {
            self.readiness.noted(GATE, format!("the last good state is in force: {reason}"));
        }
        self.waiting(reason.clone());
        self.health.unreachable(reason);
    }

    /// The source is as it is in force.
    pub fn seen_again(&self) {
        if self.health.report().unreachable.is_some() {
            tracing::info!("the source can be read again");
        }
        self.readiness.ready(GATE);
        self.health.seen_again();
    }

    /// Publishes what follows from what is in force.
    pub fn publish(&mut self) {
        // The first snapshot too knows of sandboxes: those that an earlier agent was told of.
        self.current.engine.sandboxes(self.sandboxes.ips());
        let state = self.current.engine.snapshot();
        let findings = self.current.findings();
        let known = self.published.as_ref().map(|published| published.findings.as_slice()).unwrap_or_default();
        for finding in findings.iter().filter(|finding| !known.contains(finding)) {
            finding.log();
        }
        let report = Report {
            version: state.version,
            seen: Some(SystemTime::now()),
            unreachable: None,
            unreachable_since: None,
            objects: self.current.store.len(),
            findings,
            watches: self.health.report().watches.clone(),
        };
        self.writer.publish(state);
        tracing::debug!(version = report.version, objects = report.objects, "a snapshot is published");
        self.health.set(report.clone());
        self.readiness.ready(GATE);
        self.published = Some(report);
    }
}
