//! Where the world comes from: reads Kubernetes objects and publishes snapshots. The only writer of `state`.
//!
//! Called by `app`, which passes the writer in. Kubernetes types and YAML are known here and nowhere else. What cannot
//! be read is named, and never makes the mesh more permissive: see `store`.

pub mod crd;
pub mod finding;
pub mod health;

mod directory;
mod document;
mod few;
mod file;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod gateway;
#[cfg(any(test, feature = "fuzzing"))]
mod join;
mod kube;
mod object;
mod publisher;
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

use std::path::{Path, PathBuf};
use std::time::SystemTime;

pub use finding::{Effect, Finding, Origin};
pub use health::{Health, Report, WatchReport, WatchState};
pub use kube::Pace;
pub use translate::{MESH_LABEL, MESH_NAMESPACE};

use crate::apiserver::{self, ApiServer};
use crate::drain::Token;
use crate::limit::{Limit, limits};
use crate::readiness::Readiness;
use crate::sandboxes::Sandboxes;
use crate::state::{Key, MeshState, StateWriter};
use file::{Changes, Directory};
use publisher::{Current, Publisher};
use store::Store;

/// The readiness gate of this room.
pub const GATE: &str = "discovery";

/// Where objects are read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A directory of YAML files, re-read when it changes.
    Directory(PathBuf),
    /// The API server that the pod's service account, or this kubeconfig, leads to.
    Kubernetes {
        /// A kubeconfig; None: see [`ApiServer::find`].
        kubeconfig: Option<PathBuf>,
        /// How patient it is.
        pace: Pace,
    },
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
    /// There is no way to the API server.
    #[error(transparent)]
    ApiServer(#[from] apiserver::Error),
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
    shutdown: Token,
) -> Result<(), Error> {
    let publisher = Publisher::new(&config, writer, health, readiness, sandboxes);
    match source {
        Source::Directory(directory) => directory::run(directory, publisher, shutdown).await,
        Source::Kubernetes { kubeconfig, pace } => {
            let server = ApiServer::find(kubeconfig).await?;
            kube::run(server, &config.node, pace, publisher, shutdown).await
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
    Finding::sort(&mut findings);
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

/// What is wrong with one object by itself, as every agent finds it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// The field and what is wrong with it, where the object as a whole cannot be taken.
    pub refused: Option<(String, String)>,
    /// What of it is not taken as it is: what follows, the field, what is wrong with it.
    pub problems: Vec<(Effect, String, String)>,
}

/// Reads one object by itself. None for what the mesh does not read.
pub fn judge(object: &serde_json::Value, trust_domain: &str) -> Option<Judgement> {
    let said = |problem: finding::Problem| (problem.field.to_string(), problem.reason);
    let refused = |problem| Some(Judgement { refused: Some(said(problem)), problems: Vec::new() });
    let key = match object::meaning(object) {
        object::Meaning::Foreign => return None,
        object::Meaning::Mistaken(problem) | object::Meaning::Known { key: Err(problem), .. } => {
            return refused(problem);
        }
        object::Meaning::Known { key: Ok(key), .. } => key,
    };
    match object::read(&key, object, trust_domain) {
        Err(problem) => refused(problem),
        Ok(taken) => {
            let problem = |(effect, problem)| {
                let (field, reason) = said(problem);
                (effect, field, reason)
            };
            Some(Judgement { refused: None, problems: taken.problems.into_iter().map(problem).collect() })
        }
    }
}

/// Builds a snapshot from a directory or a file once, with no watching: for tests, and for tools that explain.
pub fn load(path: &Path, config: &Config) -> std::io::Result<(MeshState, Vec<Finding>)> {
    let mut current = Current::new(config);
    current.take(&Changes { changed: read_once(path)?, gone: Vec::new() });
    Ok((current.engine.snapshot(), current.findings()))
}

/// What is wrong with each object of a text by itself.
pub fn validate_text(text: &str, trust_domain: &str) -> Vec<Finding> {
    let mut current = Current::new(&Config { node: String::new(), trust_domain: trust_domain.to_string() });
    let file = file::SourceFile { path: "converted.yaml".into(), content: Ok(text.to_string()) };
    current.take(&Changes { changed: vec![file], gone: Vec::new() });
    current.findings()
}

/// Every document of a directory or a file as it is, whatever it is about; or what is wrong with it, and where.
pub fn raw(path: &Path) -> std::io::Result<Vec<Result<serde_json::Value, String>>> {
    let mut documents = Vec::new();
    for file::SourceFile { path, content } in read_once(path)? {
        match content {
            Err(error) => documents.push(Err(format!("{}: {error}", path.display()))),
            Ok(content) => documents.extend(document::split(&content).iter().map(|document| {
                let at = |line: u64| format!("{}:{line}", path.display());
                document
                    .parse()
                    .map_err(|error| format!("{}: {}", at(error.line.unwrap_or(document.line)), error.reason))
            })),
        }
    }
    Ok(documents)
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
    limits.extend(kube::limits());
    limits
}
