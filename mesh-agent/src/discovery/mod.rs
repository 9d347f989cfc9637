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
mod join;
mod object;
mod store;
mod translate;
mod watch;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::SystemTime;

pub use finding::{Effect, Finding};
pub use health::{Health, Report};
pub use translate::{MESH_LABEL, MESH_NAMESPACE};

use crate::drain::Token;
use crate::limit::{Limit, limits};
use crate::readiness::Readiness;
use crate::state::{MeshState, StateWriter};
use store::Store;

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
    mut shutdown: Token,
) -> Result<(), Error> {
    let Source::Directory(directory) = source;
    readiness.waiting(GATE, format!("{} has not been read", directory.display()));
    let mut changes = watch::Changes::of(&directory);
    let mut publisher = Publisher { directory, config, writer, health, readiness, current: Current::default() };
    loop {
        publisher = tokio::task::spawn_blocking(move || publisher.refresh()).await?;
        tokio::select! {
            () = shutdown.started() => return Ok(()),
            () = changes.next() => {}
        }
    }
}

/// Reads a directory or a file as [`run`] does at its start, and says what is wrong with it. Pure but for the reading.
pub fn validate(path: &Path, trust_domain: &str) -> std::io::Result<Vec<Finding>> {
    Ok(Store::default().apply(&file::read(path)?, trust_domain).findings)
}

/// Builds a snapshot from a directory or a file once, with no watching: for tests, and for tools that explain.
pub fn load(path: &Path, config: &Config) -> std::io::Result<(MeshState, Vec<Finding>)> {
    let store = Store::default().apply(&file::read(path)?, &config.trust_domain);
    Ok((MeshState::build(1, &config.node, &join::world(&store)), store.findings))
}

/// The bounds of this room.
pub fn limits() -> Vec<Limit> {
    limits![
        file::MAX_FILE_BYTES, "bytes per file", "a list of 10 000 pods is about 30 MiB";
        file::MAX_FILES, "files", "a directory with more is likely the wrong one";
        document::MAX_NODES, "values per document", "a list of 10 000 pods has about a million";
        document::MAX_EVENTS, "parser's events per document", "two or so for each value";
        watch::QUIET, "milliseconds", "several files of one change come in one snapshot";
        watch::PATIENCE, "milliseconds", "for a directory that never gets quiet";
        watch::POLL_WATCHED, "milliseconds", "the directory is read although nothing was heard";
        watch::POLL_UNWATCHED, "milliseconds", "the same, while inotify does not work";
    ]
}

struct Publisher {
    directory: PathBuf,
    config: Config,
    writer: StateWriter,
    health: Health,
    readiness: Readiness,
    current: Current,
}

/// What is in force.
#[derive(Default)]
struct Current {
    version: u64,
    fingerprint: Option<u64>,
    store: Store,
}

impl Publisher {
    /// Reads the source and publishes if it says something else than before.
    fn refresh(mut self) -> Self {
        let emptied = |files: &Vec<_>| files.is_empty() && !self.current.store.entries.is_empty();
        match file::read(&self.directory) {
            // Nothing left of what was there is a volume that went away, not a wish to leave the mesh.
            Ok(files) if emptied(&files) => self.keep("no files any more".to_string()),
            Ok(files) => self.take(&files),
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
        if self.current.fingerprint.is_none() {
            self.readiness.waiting(GATE, reason.clone());
        }
        self.health.unreachable(reason);
    }

    fn take(&mut self, files: &[file::SourceFile]) {
        let fingerprint = file::fingerprint(files);
        if self.current.fingerprint == Some(fingerprint) {
            return self.health.seen_again();
        }
        let store = self.current.store.apply(files, &self.config.trust_domain);
        for finding in store.findings.iter().filter(|finding| !self.current.store.findings.contains(finding)) {
            tracing::warn!("{finding}");
        }
        let version = self.current.version + 1;
        let state = MeshState::build(version, &self.config.node, &join::world(&store));
        self.writer.publish(state);
        self.health.set(Report {
            version,
            seen: Some(SystemTime::now()),
            unreachable: None,
            objects: store.entries.len(),
            findings: store.findings.clone(),
        });
        self.readiness.ready(GATE);
        tracing::debug!(version, objects = store.entries.len(), "a snapshot is published");
        self.current = Current { version, fingerprint: Some(fingerprint), store };
    }
}
