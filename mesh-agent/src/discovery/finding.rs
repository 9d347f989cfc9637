//! What is wrong with the objects that were read, in words for the operator.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::named::named;

/// Where something was read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Origin {
    /// In this file.
    File(PathBuf),
    /// From the API server: kind and name of the object say the rest.
    Cluster {
        /// metadata.generation of what was read.
        generation: Option<i64>,
    },
}

/// Something in the source that could not be taken as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Where it is.
    pub origin: Origin,
    /// The line of the file, counted from 1, where it is known.
    pub line: Option<u64>,
    /// The object's kind; empty when it could not be told.
    pub kind: String,
    /// `namespace/name` (or the name alone); empty when it could not be told.
    pub object: String,
    /// The field; empty when it is the document as a whole.
    pub field: String,
    /// What is wrong with it.
    pub reason: String,
    /// What follows from that.
    pub effect: Effect,
}

/// What follows from a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Effect {
    /// The object is not there for the mesh.
    Skipped,
    /// The last version that could be read stays in force.
    PreviousStays,
    /// A policy without earlier version: its target refuses every connection.
    TargetDeniesAll,
    /// A PeerAuthentication without earlier version: its target refuses plaintext.
    TargetStrict,
    /// A pod's annotation that keeps nothing out of the mesh.
    ExcludesNothing,
    /// A pod's annotation that leaves what its requests say of where they come from removed.
    ClaimsDropped,
    /// The later of two objects of one name is used.
    LaterWins,
    /// Of two policies on one target the older counts there.
    OlderCounts,
    /// A route without earlier version: what it is attached to answers with an error.
    RouteFails,
    /// A rule of a route: its requests are answered with an error.
    RuleFails,
    /// A backend of a route: its share of requests or connections meets an error.
    ShareFails,
    /// A field that means nothing to the mesh.
    NoEffect,
    /// A route that does not hold at a Service that it names.
    NotAttached,
    /// A policy that names somebody to ask who is not there.
    RefusesUnasked,
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Effect::Skipped => "the object is ignored",
            Effect::PreviousStays => "the previous version stays in force",
            Effect::TargetDeniesAll => "there is no previous version, so its target refuses every connection",
            Effect::TargetStrict => "there is no previous version, so its target refuses plaintext",
            Effect::ExcludesNothing => "the annotation excludes nothing, so everything it is about stays in the mesh",
            Effect::ClaimsDropped => "what the pod's requests say of where they come from is removed, as for any pod",
            Effect::LaterWins => "the later one is used",
            Effect::OlderCounts => "the older one counts there",
            Effect::RouteFails => {
                "there is no previous version, so requests that no other route takes are answered with an error"
            }
            Effect::RuleFails => "requests that the rule matches are answered with an error",
            Effect::ShareFails => "what would go there is answered with an error",
            Effect::NoEffect => "the rest of the object is in force",
            Effect::NotAttached => "the route does not hold there",
            Effect::RefusesUnasked => "what its rules mean is refused",
        })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Origin::File(file) = &self.origin {
            write!(f, "{}", file.display())?;
            if let Some(line) = self.line {
                write!(f, ":{line}")?;
            }
            f.write_str(": ")?;
        }
        for part in [&self.kind, &self.object].into_iter().filter(|part| !part.is_empty()) {
            write!(f, "{part} ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        write!(f, "{} ({})", self.reason, self.effect)
    }
}

impl Finding {
    /// Writes it to the log. Which object it is stands in `/config_dump` and `meshctl config`, and there if names are asked for.
    pub(super) fn log(&self) {
        let at = self.file().map(|file| file.display().to_string());
        let (kind, line, effect) = (&*self.kind, self.line, self.effect);
        tracing::warn!(kind, at, line, %effect, finding = named(self), "an object is not in force as it was written");
    }

    /// The file that it is in, if it is in one.
    pub fn file(&self) -> Option<&Path> {
        match &self.origin {
            Origin::File(file) => Some(file),
            Origin::Cluster { .. } => None,
        }
    }

    /// Findings by file, in the order of its lines; those of a cluster by object.
    pub(super) fn sort(findings: &mut [Finding]) {
        findings.sort_by(|one, other| match (&one.origin, &other.origin) {
            (Origin::Cluster { .. }, Origin::Cluster { .. }) => {
                (&one.kind, &one.object).cmp(&(&other.kind, &other.object))
            }
            (one, other) => one.cmp(other),
        });
    }
}

/// One field that cannot be taken, before it is known where it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The way to the field.
    pub field: FieldPath,
    /// What is wrong with it.
    pub reason: String,
}

impl Problem {
    /// A problem with a field.
    pub fn new(field: FieldPath, reason: impl Into<String>) -> Self {
        Self { field, reason: reason.into() }
    }
}

/// The way to a field of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldPath(pub Vec<Step>);

/// One step down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Into a map.
    Key(String),
    /// Into a list.
    Index(usize),
}

impl FieldPath {
    /// The way that a dotted text names: `spec.clusterIPs`.
    pub fn of(dotted: &str) -> Self {
        Self(dotted.split('.').map(|key| Step::Key(key.to_string())).collect())
    }

    /// One step further, into a map.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        self.with(Step::Key(key.to_string()))
    }

    /// One step further, into a list.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        self.with(Step::Index(index))
    }

    /// This way, after another.
    #[must_use]
    pub fn below(&self, prefix: &FieldPath) -> Self {
        Self(prefix.0.iter().chain(&self.0).cloned().collect())
    }

    fn with(&self, step: Step) -> Self {
        Self(self.0.iter().cloned().chain([step]).collect())
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, step) in self.0.iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Key(key) if key.contains(['.', '/']) => write!(f, "[{key:?}]")?,
                Step::Key(key) if position == 0 => f.write_str(key)?,
                Step::Key(key) => write!(f, ".{key}")?,
            }
        }
        Ok(())
    }
}
