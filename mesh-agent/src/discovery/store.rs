//! The objects in force: what was read last, and for what could not be read its last good version.
//!
//! ```text
//! files ─► documents ─► objects ─┬─ read ────────────────► in force
//!                                ├─ not read, known ─────► its last good version stays
//!                                └─ not read, a policy ──► its target refuses (Unreadable)
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::document::{self, Document, SyntaxError};
use super::file::SourceFile;
use super::finding::{Effect, FieldPath, Finding, Problem};
use super::object::{self, Key, Kind, Meaning};
use super::translate::{self, Item};
use crate::policy::{Unreadable, Weight};

/// An object in force.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What the mesh takes from it; None for objects that say nothing now, such as pods that ended.
    pub item: Option<Item>,
    /// The file it came from.
    file: PathBuf,
}

/// All objects in force. Grows only by [`Store::apply`].
#[derive(Clone, Debug, Default)]
pub struct Store {
    /// Objects that could be read, now or before.
    pub entries: BTreeMap<Key, Entry>,
    /// Policies that never could.
    pub unreadable: Vec<Unreadable>,
    /// What is wrong with the source as it is now.
    pub findings: Vec<Finding>,
    /// Files that could be opened at least once.
    known_files: BTreeSet<PathBuf>,
}

impl Store {
    /// The store after reading the whole source again.
    #[must_use]
    pub fn apply(&self, files: &[SourceFile], trust_domain: &str) -> Store {
        let mut reading = Reading { previous: self, next: Store::default(), broken: Vec::new(), trust_domain };
        for file in files {
            reading.file(file);
        }
        reading.keep_objects_of_broken_files();
        reading.next
    }
}

/// One pass over all files.
struct Reading<'a> {
    previous: &'a Store,
    next: Store,
    /// Files of which a part could not even be told apart into objects.
    broken: Vec<&'a Path>,
    trust_domain: &'a str,
}

/// Where an object stands.
struct Place<'a> {
    file: &'a Path,
    document: &'a Document<'a>,
    /// The way to the object in its document.
    path: &'a FieldPath,
}

impl<'a> Reading<'a> {
    fn file(&mut self, file: &'a SourceFile) {
        match &file.content {
            Ok(text) => {
                self.next.known_files.insert(file.path.clone());
                for document in document::split(text) {
                    self.document(&file.path, &document);
                }
            }
            Err(reason) => self.unreadable_file(&file.path, reason),
        }
    }

    /// A file that cannot be opened may hold any policy. If it could be opened before, what it held stays.
    fn unreadable_file(&mut self, path: &'a Path, reason: &str) {
        self.broken.push(path);
        let known = self.previous.known_files.contains(path);
        if known {
            self.next.known_files.insert(path.to_path_buf());
        } else {
            self.next.unreadable.extend(translate::unreadable(Kind::AuthorizationPolicy, None, &Value::Null));
        }
        self.next.findings.push(Finding {
            file: path.to_path_buf(),
            line: None,
            kind: String::new(),
            object: String::new(),
            field: String::new(),
            reason: reason.to_string(),
            effect: if known { Effect::PreviousStays } else { Effect::TargetDeniesAll },
        });
    }

    fn document(&mut self, file: &'a Path, document: &Document<'_>) {
        let value = match document.parse() {
            Ok(value) => value,
            Err(error) => return self.broken_document(file, document, error),
        };
        for (path, value) in object::objects(&value) {
            self.object(&Place { file, document, path: &path }, value);
        }
    }

    fn object(&mut self, place: &Place<'_>, value: &Value) {
        let (kind, key) = match object::meaning(value) {
            Meaning::Known { kind, key } => (kind, key),
            Meaning::Mistaken(problem) => {
                let kind = object::text(value, &["kind"]).unwrap_or_default();
                let name = object::text(value, &["metadata", "name"]).unwrap_or_default();
                return self.find(place, kind, name, problem, Effect::Skipped);
            }
            Meaning::Foreign => {
                let kind = object::text(value, &["kind"]).unwrap_or_default();
                return tracing::debug!(file = %place.file.display(), kind, "not a kind that the mesh reads");
            }
        };
        let key = match key {
            Ok(key) => key,
            Err(problem) => {
                let effect = self.refuse_unless_known(kind, None, value);
                return self.find(place, &kind.to_string(), "", problem, effect);
            }
        };
        match self.admit(&key, value) {
            Ok(item) => self.insert(place, key, item),
            Err(problem) => {
                let effect = self.refuse_unless_known(kind, Some(&key), value);
                self.find(place, &kind.to_string(), &key.object(), problem, effect);
            }
        }
    }

    /// What an API server checks by the schema before an object is stored, then the reading proper.
    fn admit(&self, key: &Key, value: &Value) -> Result<Option<Item>, Problem> {
        let item = object::read(key, value, self.trust_domain)?;
        if let Some(Item::AuthorizationPolicy(policy)) = &item
            && let Some(index) = policy.rules.iter().position(|rule| rule.sources.is_empty())
        {
            let path = FieldPath::of("spec.rules").index(index).key("sources");
            return Err(Problem::new(path, "empty: at least one source is needed; {type: Any} is everyone"));
        }
        Ok(item)
    }

    fn insert(&mut self, place: &Place<'_>, key: Key, item: Option<Item>) {
        let entry = Entry { item, file: place.file.to_path_buf() };
        if let Some(earlier) = self.next.entries.insert(key.clone(), entry) {
            let reason = format!("is also in {}", earlier.file.display());
            let problem = Problem::new(FieldPath::of("metadata.name"), reason);
            self.find(place, &key.kind.to_string(), &key.object(), problem, Effect::LaterWins);
        }
    }

    /// What follows when an object cannot be read: its last version stays, or, for a policy, its target refuses.
    fn refuse_unless_known(&mut self, kind: Kind, key: Option<&Key>, value: &Value) -> Effect {
        if let Some(key) = key
            && let Some(previous) = self.previous.entries.get(key)
        {
            self.next.entries.entry(key.clone()).or_insert_with(|| previous.clone());
            return Effect::PreviousStays;
        }
        let Some(unreadable) = translate::unreadable(kind, key, value) else {
            return Effect::Skipped;
        };
        let effect = effect_of(unreadable.weight);
        self.next.unreadable.push(unreadable);
        effect
    }

    /// Text that is no YAML: what its file held before stays, and if it reads like a policy that is new, that refuses.
    fn broken_document(&mut self, file: &'a Path, document: &Document<'_>, error: SyntaxError) {
        self.broken.push(file);
        let mut effect = Effect::PreviousStays;
        let mut object = String::new();
        let kinds = [Kind::AuthorizationPolicy, Kind::PeerAuthentication];
        for kind in kinds.into_iter().filter(|kind| document.text.contains(&kind.to_string())) {
            let guess = guess_key(kind, document.text);
            if guess.as_ref().is_some_and(|key| self.previous.entries.contains_key(key)) {
                continue;
            }
            object = guess.as_ref().map(Key::object).unwrap_or_default();
            effect = self.refuse_unless_known(kind, guess.as_ref(), &Value::Null);
        }
        self.next.findings.push(Finding {
            file: file.to_path_buf(),
            line: error.line.or(Some(document.line)),
            kind: String::new(),
            object,
            field: String::new(),
            reason: format!("not YAML: {}", error.reason),
            effect,
        });
    }

    /// In a file with a part that could not be told apart, an object that is missing may be that part.
    fn keep_objects_of_broken_files(&mut self) {
        for (key, entry) in &self.previous.entries {
            if self.broken.iter().any(|file| **file == entry.file) {
                self.next.entries.entry(key.clone()).or_insert_with(|| entry.clone());
            }
        }
    }

    fn find(&mut self, place: &Place<'_>, kind: &str, object: &str, problem: Problem, effect: Effect) {
        let Problem { field, reason } = problem;
        self.next.findings.push(Finding {
            file: place.file.to_path_buf(),
            line: Some(place.document.line_of(&field.below(place.path))),
            kind: kind.to_string(),
            object: object.to_string(),
            field: field.to_string(),
            reason,
            effect,
        });
    }
}

fn effect_of(weight: Weight) -> Effect {
    match weight {
        Weight::DenyAll => Effect::TargetDeniesAll,
        Weight::Strict => Effect::TargetStrict,
    }
}

/// Whose policy a text that is no YAML might be: by the first lines that look like its name and namespace. None, which
/// means the whole mesh, unless both are there: the lines may be the very ones that are broken.
fn guess_key(kind: Kind, text: &str) -> Option<Key> {
    let value = |field: &str| {
        let line = text.lines().find_map(|line| line.trim_start().strip_prefix(field)?.strip_prefix(':'))?;
        let value = line.trim().trim_matches(['"', '\'']);
        let legal = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || "-.".contains(letter);
        (!value.is_empty() && value.chars().all(legal)).then(|| value.to_string())
    };
    Some(Key { kind, namespace: value("namespace")?, name: value("name")? })
}
