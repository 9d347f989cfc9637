//! Where the world comes from: reads Kubernetes objects and publishes snapshots. The only writer of `state`.
//!
//! Called by `app`, which passes the writer in. Kubernetes types and YAML are known here and nowhere else. What cannot
//! be read is named, and never makes the mesh more permissive: see `store`.

pub mod crd;
pub mod finding;
pub mod health;

mod document;
mod file;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod gateway;
#[cfg(any(test, feature = "fuzzing"))]
mod join;
mod object;
mod store;
mod translate;
mod watch;

#[cfg(test)]
mod figures;
#[cfg(test)]
mod route_tests;
#[cfg(test)]
mod sequences;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

pub use finding::{Effect, Finding};
pub use health::{Health, Report};
pub use translate::{MESH_LABEL, MESH_NAMESPACE};

use crate::drain::Token;
use crate::limit::{Limit, limits};
use crate::readiness::Readiness;
use crate::sandboxes::Sandboxes;
use crate::state::{Engine, Key, MeshState, Overruled, StateWriter};
use file::{Changes, Directory};
use finding::FieldPath;
use store::{Delta, Store};

/// The readiness gate of this room.
pub const GATE: &str = "discovery";

/// Where objects are read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A directory of YAML files, re-read when it changes.
    Directory(PathBuf),
}

/// What this room must know.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node whose pods get their policies compiled.
    pub node: String,
    /// The trust domain of the identities of this cluster's pods.
    pub trust_domain: String,
}

/// Why discovery ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The thread that reads and translates is gone.
    #[error("reading the objects failed: {0}")]
    Reader(#[from] tokio::task::JoinError),
}

/// Publishes a snapshot for what the source says, and one for every change, until `shutdown` starts. That is the end of
/// the drain, not its beginning: live connections are judged again by what is published.
///
/// The gate opens with the first snapshot. From then on a source that cannot be reached changes nothing: the last good
/// state stays, and [`Health`] says since when.
pub async fn run(
    source: Source,
    config: Config,
    writer: StateWriter,
    health: Health,
    readiness: Readiness,
    sandboxes: Sandboxes,
    mut shutdown: Token,
) -> Result<(), Error> {
    let Source::Directory(directory) = source;
    readiness.waiting(GATE, format!("{} has not been read", directory.display()));
    let mut changes = watch::Changes::of(&directory);
    let mut publisher = Publisher {
        current: Current::new(&config),
        files: Directory::default(),
        directory,
        writer,
        health,
        readiness,
        published: None,
    };
    let mut sandbox_changes = sandboxes.changes();
    loop {
        publisher = tokio::task::spawn_blocking(move || publisher.refresh()).await?;
        tokio::select! {
            () = shutdown.started() => return Ok(()),
            () = changes.next() => {}
            // An error means that nobody holds them, and this does.
            _ = sandbox_changes.changed() => publisher.addressed(sandboxes.ips()),
        }
    }
}

/// Reads a directory or a file as [`run`] does at its start, and says what is wrong with it, and which routes lead
/// nowhere. Pure but for the reading.
pub fn validate(path: &Path, trust_domain: &str) -> std::io::Result<Vec<Finding>> {
    let mut current = Current::new(&Config { node: String::new(), trust_domain: trust_domain.to_string() });
    current.take(&Changes { changed: read_once(path)?, gone: Vec::new() });
    let mut findings = current.findings();
    findings.extend(unattached(&current.store, &current.engine.snapshot()));
    findings.sort_by(|one, other| one.file.cmp(&other.file));
    Ok(findings)
}

/// Routes that do not hold where they should, and backends that are not there. Nothing where there are no Services: then
/// it is the routes alone that were looked at.
fn unattached(store: &Store, state: &MeshState) -> Vec<Finding> {
    if state.services().next().is_none() {
        return Vec::new();
    }
    let mut findings = Vec::new();
    for route in state.route_status() {
        let key = Key { kind: route.kind, namespace: route.namespace.to_string(), name: route.name.to_string() };
        let conditions = route.parents.iter().flat_map(|parent| &parent.conditions);
        for condition in conditions {
            // The other reasons are findings of the object by itself.
            let (field, effect) = match condition.reason {
                "NoMatchingParent" | "Conflicted" => ("spec.parentRefs", Effect::NotAttached),
                "BackendNotFound" => ("spec.rules", Effect::ShareFails),
                _ => continue,
            };
            let Some(finding) = store.finding_about(&key, field, condition.message.clone(), effect) else { continue };
            if !findings.contains(&finding) {
                findings.push(finding);
            }
        }
    }
    findings
}

/// Builds a snapshot from a directory or a file once, with no watching: for tests, and for tools that explain.
pub fn load(path: &Path, config: &Config) -> std::io::Result<(MeshState, Vec<Finding>)> {
    let mut current = Current::new(config);
    current.take(&Changes { changed: read_once(path)?, gone: Vec::new() });
    Ok((current.engine.snapshot(), current.findings()))
}

fn read_once(path: &Path) -> std::io::Result<Vec<file::SourceFile>> {
    Ok(Directory::default().changes(file::list(path)?, SystemTime::now()).changed)
}

/// The bounds of this room.
pub fn limits() -> Vec<Limit> {
    let mut limits = limits![
        file::MAX_FILE_BYTES, "bytes per file", "a list of 10 000 pods is about 30 MiB";
        file::MAX_FILES, "files", "a directory with more is likely the wrong one";
        file::SETTLED, "milliseconds", "a file that changed within this time is read again: its times may not tell";
        document::MAX_NODES, "values per document", "a list of 10 000 pods has about a million";
        document::MAX_EVENTS, "parser's events per document", "two or so for each value";
        translate::MAX_PORTS, "ports per annotation", "an exclusion is an exception; a map holds those of 250 pods";
        translate::MAX_NETWORKS, "networks per annotation", "the same";
        translate::CHECK_TIMEOUT, "milliseconds", "for an authorizer's answer, where its object does not say";
        translate::MAX_CHECK_TIMEOUT, "milliseconds", "for an authorizer's answer, whatever its object says";
        translate::MAX_CHECK_BODY, "bytes", "of a request that an authorizer may be shown";
        watch::QUIET, "milliseconds", "several files of one change come in one snapshot";
        watch::PATIENCE, "milliseconds", "for a directory that never gets quiet";
        watch::POLL_WATCHED, "milliseconds", "the directory is read although nothing was heard";
        watch::POLL_UNWATCHED, "milliseconds", "the same, while inotify does not work";
    ];
    limits.extend(translate::route_limits());
    limits
}

struct Publisher {
    directory: PathBuf,
    files: Directory,
    current: Current,
    writer: StateWriter,
    health: Health,
    readiness: Readiness,
    /// What was said of the source with the last snapshot; None before the first.
    published: Option<Report>,
}

/// What is in force, and what follows from it.
struct Current {
    store: Store,
    engine: Engine,
}

impl Current {
    fn new(config: &Config) -> Self {
        Self { store: Store::new(&config.trust_domain), engine: Engine::new(&config.node) }
    }

    fn take(&mut self, changes: &Changes) {
        let Delta { upserts, deletes } = self.store.apply(&changes.changed, &changes.gone);
        for (key, item) in upserts {
            self.engine.upsert(&key, item);
        }
        for key in deletes {
            self.engine.delete(&key);
        }
        self.engine.refuse(self.store.unreadable());
    }

    /// What is wrong with the objects, each for itself and together.
    fn findings(&self) -> Vec<Finding> {
        let mut findings = self.store.findings();
        findings.extend(self.engine.overruled().filter_map(|Overruled { policy, target, by }| {
            let field = FieldPath::of("spec.targetRefs").index(target).to_string();
            self.store.finding_about(&policy, &field, format!("is a target of {by} too"), Effect::OlderCounts)
        }));
        findings.extend(self.engine.unanswerable().filter_map(|(policy, names)| {
            let reason = format!("there is no ExternalAuthorizer {names}");
            self.store.finding_about(&policy, "spec.provider.name", reason, Effect::RefusesUnasked)
        }));
        findings.sort_by(|one, other| one.file.cmp(&other.file));
        findings
    }
}

impl Publisher {
    /// Reads what changed in the source and publishes what follows.
    fn refresh(mut self) -> Self {
        let now = SystemTime::now();
        match file::list(&self.directory) {
            // Nothing left of what was there is a volume that went away, not a wish to leave the mesh.
            Ok(listed) if listed.is_empty() && self.current.store.len() > 0 => {
                self.keep("no files any more".to_string())
            }
            Ok(listed) => {
                let changes = self.files.changes(listed, now);
                self.take(&changes);
            }
            Err(error) => self.keep(error.to_string()),
        }
        self
    }

    /// The source cannot be had.
    fn keep(&mut self, reason: String) {
        let reason = format!("{}: {reason}", self.directory.display());
        if self.health.report().unreachable.as_ref() != Some(&reason) {
            tracing::warn!(reason, "the source cannot be read; the last good state stays in force");
        }
        if self.published.is_none() {
            self.readiness.waiting(GATE, reason.clone());
        }
        self.health.unreachable(reason);
    }

    /// Pods have addresses that their objects do not tell yet, or no longer.
    fn addressed(&mut self, sandboxes: HashMap<Arc<str>, Vec<IpAddr>>) {
        self.current.engine.sandboxes(sandboxes);
        if self.published.is_some() {
            self.writer.publish(self.current.engine.snapshot());
        }
    }

    fn take(&mut self, changes: &Changes) {
        if changes.is_empty() && self.published.is_some() {
            return self.health.seen_again();
        }
        self.current.take(changes);
        let state = self.current.engine.snapshot();
        let report = Report {
            version: state.version,
            seen: Some(SystemTime::now()),
            unreachable: None,
            unreachable_since: None,
            objects: self.current.store.len(),
            findings: self.current.findings(),
        };
        let known = self.published.as_ref().map(|published| published.findings.as_slice()).unwrap_or_default();
        for finding in report.findings.iter().filter(|finding| !known.contains(finding)) {
            tracing::warn!("{finding}");
        }
        self.writer.publish(state);
        tracing::debug!(version = report.version, objects = report.objects, "a snapshot is published");
        self.health.set(report.clone());
        self.readiness.ready(GATE);
        self.published = Some(report);
    }
}
