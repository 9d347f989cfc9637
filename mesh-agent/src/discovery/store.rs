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

use super::crd::GROUP;
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

/// Which objects of a file are looked at.
#[derive(Clone, Copy)]
enum Pass {
    /// Those of known kind and name.
    Named,
    /// The others.
    Nameless,
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
        let text = match &file.content {
            Ok(text) => text,
            Err(reason) => return self.unreadable_file(&file.path, reason),
        };
        self.next.known_files.insert(file.path.clone());
        let (mut parsed, mut broken) = (Vec::new(), Vec::new());
        for document in document::split(text) {
            match document.parse() {
                Ok(value) => parsed.push((document, value)),
                Err(error) => broken.push((document, error)),
            }
        }
        // What tells no name comes last: only then it shows which objects of the file are missing.
        for pass in [Pass::Named, Pass::Nameless] {
            for (document, value) in &parsed {
                self.document(&file.path, document, value, pass);
            }
        }
        for (document, error) in broken {
            self.broken_document(&file.path, &document, error);
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

    fn document(&mut self, file: &'a Path, document: &Document<'_>, value: &Value, pass: Pass) {
        for (path, value) in object::objects(value) {
            let place = Place { file, document, path: &path };
            match (pass, object::meaning(value)) {
                (Pass::Named, Meaning::Known { kind: _, key: Ok(key) }) => self.object(&place, key, value),
                (Pass::Nameless, Meaning::Known { kind, key: Err(problem) }) => {
                    self.nameless(&place, kind, problem, value);
                }
                (Pass::Nameless, Meaning::Mistaken(problem)) => self.mistaken(&place, problem, value),
                (Pass::Nameless, Meaning::Foreign) => {
                    let kind = object::text(value, &["kind"]).unwrap_or_default();
                    tracing::debug!(file = %file.display(), kind, "not a kind that the mesh reads");
                }
                (Pass::Named, _) | (Pass::Nameless, Meaning::Known { kind: _, key: Ok(_) }) => {}
            }
        }
    }

    fn object(&mut self, place: &Place<'_>, key: Key, value: &Value) {
        match self.admit(&key, value) {
            Ok(item) => {
                for problem in item.iter().flat_map(Item::problems).cloned() {
                    self.find(place, &key.kind.to_string(), &key.object(), problem, Effect::ExcludesNothing);
                }
                self.insert(place, key, item);
            }
            Err(problem) => {
                let effect = self.refuse_unless_known(key.kind, Some(&key), value);
                self.find(place, &key.kind.to_string(), &key.object(), problem, effect);
            }
        }
    }

    fn nameless(&mut self, place: &Place<'_>, kind: Kind, problem: Problem, value: &Value) {
        let key = self.missing(place.file, kind);
        let effect = self.refuse_unless_known(kind, key.as_ref(), value);
        self.find(place, &kind.to_string(), &key.map(|key| key.object()).unwrap_or_default(), problem, effect);
    }

    /// A kind that there is not. A policy that the file held under this name is taken to be meant.
    fn mistaken(&mut self, place: &Place<'_>, problem: Problem, value: &Value) {
        let name = object::text(value, &["metadata", "name"]).unwrap_or_default();
        let namespace = object::namespace(value).unwrap_or_default();
        let meant = |key: &&Key| key.kind.is_policy() && key.name == name && key.namespace == namespace;
        let key = self.missing_of(place.file).find(meant).cloned();
        let effect = key.map_or(Effect::Skipped, |key| self.refuse_unless_known(key.kind, Some(&key), value));
        let kind = object::text(value, &["kind"]).unwrap_or_default();
        self.find(place, kind, name, problem, effect);
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
        let held = self.previous.entries.values().any(|entry| entry.file == file);
        let mut effect = if held { Effect::PreviousStays } else { Effect::Skipped };
        let mut object = String::new();
        let metadata = document.metadata();
        let named = |kind| metadata.as_ref().and_then(|metadata| object::key(kind, metadata).ok());
        let guesses = kinds_of(document.text);
        let keys = guesses.iter().map(|kind| (*kind, named(*kind).or_else(|| self.missing(file, *kind))));
        let keys: Vec<(Kind, Option<Key>)> = keys.collect();
        let known = |key: &Key| self.previous.entries.contains_key(key);
        let best = keys.iter().find(|(_, key)| key.as_ref().is_some_and(known)).or(keys.first());
        if let Some((kind, key)) = best {
            object = key.as_ref().map(Key::object).unwrap_or_default();
            effect = self.refuse_unless_known(*kind, key.as_ref(), &Value::Null);
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

    /// An object that the file held before and is not read from it now. What tells no name can only be taken for such
    /// a one.
    fn missing(&self, file: &Path, kind: Kind) -> Option<Key> {
        self.missing_of(file).find(|key| key.kind == kind).cloned()
    }

    fn missing_of(&self, file: &Path) -> impl Iterator<Item = &Key> {
        let of_file = self.previous.entries.iter().filter(move |(_, entry)| entry.file == file);
        of_file.map(|(key, _)| key).filter(|key| !self.next.entries.contains_key(key))
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

/// The kinds of policy that a text which is no YAML may be, the strictest first.
fn kinds_of(text: &str) -> Vec<Kind> {
    let kinds = [Kind::AuthorizationPolicy, Kind::PeerAuthentication];
    let mentioned: Vec<Kind> = kinds.into_iter().filter(|kind| text.contains(&kind.to_string())).collect();
    // The word for the kind may be the very one that is broken.
    let of_our_group = text.contains(&format!("{GROUP}/v"));
    if mentioned.is_empty() && of_our_group { kinds.to_vec() } else { mentioned }
}

fn effect_of(weight: Weight) -> Effect {
    match weight {
        Weight::DenyAll => Effect::TargetDeniesAll,
        Weight::Strict => Effect::TargetStrict,
    }
}
