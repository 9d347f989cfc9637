//! The objects in force: what was read last, and for what could not be read its last good version.
//!
//! ```text
//! changed files ─► changed documents ─► objects ─┬─ read ────────────────► in force
//!                                                ├─ not read, known ─────► its last good version stays
//!                                                ├─ not read, a route ───► what it is attached to fails (stand-in)
//!                                                └─ not read, a policy ──► its target refuses (Unreadable)
//! ```
//! Several files may speak of one object: the last that can be read is in force, whatever the others are like. An API
//! server speaks of each object by itself, so what cannot be read there always has a name.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::crd::GROUP;
use super::document::{self, Document, SyntaxError};
use super::few::Few;
use super::file::SourceFile;
use super::finding::{Effect, FieldPath, Finding, Origin, Problem};
use super::object::{self, Key, Kind, Meaning};
use super::translate::{self, Item, Taken};
use crate::policy::{Unreadable, Weight};

/// All objects in force. Changes only by [`Store::apply`] and [`Store::observe`].
#[derive(Clone, Debug)]
pub struct Store {
    trust_domain: String,
    /// What each speaker says.
    said: BTreeMap<Speaker, Said>,
    /// Who speaks of an object, in their order: one, but for mistakes.
    speakers: HashMap<Key, Vec<Speaker>>,
    /// None for objects that say nothing now, such as pods that ended.
    in_force: HashMap<Key, Option<Item>>,
    /// Routes of which nothing is in force, because they cannot be read: what stands for them until they can.
    stand_ins: HashMap<Key, Item>,
    /// Speakers with whom something is wrong.
    noted: BTreeSet<Speaker>,
    /// Objects that can be read in several files.
    doubled: BTreeSet<Key>,
    hasher: RandomState,
}

/// Who speaks of objects: a file of all that are in it, a watch of each by itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Speaker {
    /// A file.
    File(Arc<Path>),
    /// A watch of an API server, of one object.
    Watch {
        /// The watch's name.
        watch: &'static str,
        /// The object.
        key: Arc<Key>,
    },
}

impl Speaker {
    fn origin(&self, said: &Said) -> Origin {
        match self {
            Speaker::File(path) => Origin::File(path.to_path_buf()),
            Speaker::Watch { .. } => Origin::Cluster { generation: said.generation },
        }
    }
}

/// What a watch says of one object.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The watch's name.
    pub watch: &'static str,
    /// The object.
    pub key: Key,
    /// metadata.generation
    pub generation: Option<i64>,
    /// The object as it is now; None when it is gone.
    pub object: Option<Value>,
}

/// What a change of the source comes to.
#[derive(Debug, Default, PartialEq)]
pub struct Delta {
    /// Objects that are new or say something else.
    pub upserts: Vec<(Key, Item)>,
    /// Objects that are gone, or say nothing any more.
    pub deletes: Vec<Key>,
}

/// What a speaker says.
#[derive(Clone, Debug, Default)]
struct Said {
    claims: Few<Key, Claim>,
    notes: Vec<Note>,
    /// Documents in which nothing is wrong, by the hash of their text, with the objects in them and their hashes.
    sound: Few<u64, Vec<(Key, u64)>>,
    /// Whether it could be opened at least once.
    opened: bool,
    /// metadata.uid of a watched object: another under the same name is not its next version.
    uid: Option<Box<str>>,
    /// metadata.generation of a watched object.
    generation: Option<i64>,
}

/// What a speaker says of one object.
#[derive(Clone, Debug)]
enum Claim {
    /// This.
    Read {
        taken: Taken,
        /// The hash of what it was read from.
        hash: u64,
        /// The line of its document, in a file.
        line: Option<u64>,
    },
    /// Something that cannot be read: what is in force stays, else this stands for it.
    Unread { stand_in: Option<Item> },
}

/// Something that is wrong with what is said.
#[derive(Clone, Debug)]
struct Note {
    /// Its effect counts only where nothing else decides about it.
    finding: Finding,
    /// The object that it is about, if that can be told: what is in force of it stays.
    key: Option<Key>,
    /// What stands for the object as long as nothing is in force of it.
    unreadable: Option<Unreadable>,
}

impl Store {
    /// Nothing yet.
    pub fn new(trust_domain: &str) -> Self {
        Self {
            trust_domain: trust_domain.to_string(),
            said: BTreeMap::new(),
            speakers: HashMap::new(),
            in_force: HashMap::new(),
            stand_ins: HashMap::new(),
            noted: BTreeSet::new(),
            doubled: BTreeSet::new(),
            hasher: RandomState::new(),
        }
    }

    /// Takes files that are new or changed, and those that are gone. The others are not looked at.
    pub fn apply(&mut self, changed: &[SourceFile], gone: &[PathBuf]) -> Delta {
        let mut touched = BTreeSet::new();
        for path in gone {
            let before = self.withdraw(&Speaker::File(path.as_path().into()));
            touched.extend(before.claims.keys().cloned());
        }
        let mut readings: Vec<Reading<'_>> = Vec::new();
        for file in changed {
            let speaker = Speaker::File(file.path.as_path().into());
            let before = self.withdraw(&speaker);
            touched.extend(before.claims.keys().cloned());
            let mut reading = Reading::new(speaker, before);
            reading.file(file, self);
            readings.push(reading);
        }
        for reading in &readings {
            self.speak(reading);
        }
        // What tells no name comes last: only then it shows which objects of a file are missing.
        for mut reading in readings {
            reading.nameless(self);
            touched.extend(reading.said.claims.keys().cloned());
            self.speak(&reading);
            self.take(reading);
        }
        self.settle(touched)
    }

    /// Takes what a watch says of one object. Of two watches that speak of it at once, as when an object passes from one to
    /// the other, what the first says is not gone with the second.
    pub fn observe(&mut self, observed: &Observed) -> Delta {
        let Observed { watch, key, generation, object } = observed;
        let speaker = Speaker::Watch { watch, key: Arc::new(key.clone()) };
        let mut before = self.withdraw(&speaker);
        let Some(value) = object else { return self.settle([key.clone()].into()) };
        let uid = object::text(value, &["metadata", "uid"]);
        let mut delta = Delta::default();
        if before.uid.is_some() && before.uid.as_deref() != uid {
            // Another object under the name: nothing of the one before may stay, were this one unreadable.
            before = Said::default();
            delta = self.settle([key.clone()].into());
        }
        let mut reading = Reading::new(speaker, before);
        reading.said.uid = uid.map(Box::from);
        reading.said.generation = *generation;
        let hash = self.hasher.hash_one(value);
        reading.object(&Place::Watch, key.clone(), value, hash, self);
        self.speak(&reading);
        self.take(reading);
        delta.then(self.settle([key.clone()].into()))
    }

    /// Whether something is wrong with what a watch says of an object.
    pub fn is_noted(&self, observed: &Observed) -> bool {
        let Observed { watch, key, .. } = observed;
        !self.noted.is_empty() && self.noted.contains(&Speaker::Watch { watch, key: Arc::new(key.clone()) })
    }

    /// The objects that a watch speaks of.
    pub fn spoken_of(&self, watch: &'static str) -> impl Iterator<Item = &Key> {
        self.said.keys().filter_map(move |speaker| match speaker {
            Speaker::Watch { watch: of, key } if *of == watch => Some(&**key),
            Speaker::Watch { .. } | Speaker::File(_) => None,
        })
    }

    /// How many objects are in force.
    pub fn len(&self) -> usize {
        self.in_force.len()
    }

    /// The policies that cannot be read now and never could.
    pub fn unreadable(&self) -> Vec<Unreadable> {
        let notes = self.notes().filter(|note| !self.is_in_force(note.key.as_ref()));
        notes.filter_map(|note| note.unreadable.clone()).collect()
    }

    /// What is wrong with the source as it is now, by file.
    pub fn findings(&self) -> Vec<Finding> {
        let mut findings: Vec<Finding> = self.notes().map(|note| self.finding(note)).collect();
        findings.extend(self.doubled.iter().flat_map(|key| self.double_findings(key)));
        Finding::sort(&mut findings);
        findings
    }

    fn notes(&self) -> impl Iterator<Item = &Note> {
        let said = self.noted.iter().filter_map(|speaker| self.said.get(speaker));
        said.flat_map(|said| said.notes.iter())
    }

    fn finding(&self, note: &Note) -> Finding {
        let effect = match &note.unreadable {
            _ if self.is_in_force(note.key.as_ref()) => Effect::PreviousStays,
            Some(unreadable) => effect_of(unreadable.weight),
            None => note.finding.effect,
        };
        Finding { effect, ..note.finding.clone() }
    }

    fn double_findings(&self, key: &Key) -> Vec<Finding> {
        let files = self.readers(key).filter_map(|(speaker, _, line)| match speaker {
            Speaker::File(path) => Some((path, line)),
            Speaker::Watch { .. } => None,
        });
        let files: Vec<(&Arc<Path>, Option<u64>)> = files.collect();
        let pairs = files.iter().zip(files.iter().skip(1));
        let mut findings = Vec::new();
        for ((earlier, _), (later, line)) in pairs {
            findings.push(Finding {
                origin: Origin::File(later.to_path_buf()),
                line: *line,
                kind: key.kind.to_string(),
                object: key.object(),
                field: "metadata.name".to_string(),
                reason: format!("is also in {}", earlier.display()),
                effect: Effect::LaterWins,
            });
        }
        findings
    }

    /// What follows for an object from the rest of the world; None when nobody says it.
    pub fn finding_about(&self, key: &Key, field: &str, reason: String, effect: Effect) -> Option<Finding> {
        let (speaker, _, line) = self.readers(key).last()?;
        Some(Finding {
            origin: speaker.origin(self.said.get(speaker)?),
            line,
            kind: key.kind.to_string(),
            object: key.object(),
            field: field.to_string(),
            reason,
            effect,
        })
    }

    /// The speakers of whom an object can be read, in their order, with what it says and the line of its document.
    fn readers(&self, key: &Key) -> impl Iterator<Item = (&Speaker, &Option<Item>, Option<u64>)> {
        let speakers = self.speakers.get(key).into_iter().flatten();
        speakers.filter_map(|speaker| match self.said.get(speaker)?.claims.get(key)? {
            Claim::Read { taken, line, .. } => Some((speaker, &taken.item, *line)),
            Claim::Unread { .. } => None,
        })
    }

    /// What stands for an object that can be read of nobody: as the last speaker has it.
    fn stand_in(&self, key: &Key) -> Option<Item> {
        let speakers = self.speakers.get(key)?.iter().rev();
        speakers.filter_map(|speaker| self.said.get(speaker)?.claims.get(key)).find_map(|claim| match claim {
            Claim::Unread { stand_in } => stand_in.clone(),
            Claim::Read { .. } => None,
        })
    }

    fn is_in_force(&self, key: Option<&Key>) -> bool {
        key.is_some_and(|key| self.in_force.contains_key(key))
    }

    fn speak(&mut self, reading: &Reading<'_>) {
        for key in reading.said.claims.keys() {
            match self.speakers.get_mut(key) {
                Some(speakers) => {
                    if let Err(place) = speakers.binary_search(&reading.speaker) {
                        speakers.insert(place, reading.speaker.clone());
                    }
                }
                None => drop(self.speakers.insert(key.clone(), vec![reading.speaker.clone()])),
            }
        }
    }

    fn take(&mut self, reading: Reading<'_>) {
        if !reading.said.notes.is_empty() {
            self.noted.insert(reading.speaker.clone());
        }
        self.said.insert(reading.speaker, reading.said);
    }

    /// Forgets what a speaker says.
    fn withdraw(&mut self, speaker: &Speaker) -> Said {
        let said = self.said.remove(speaker).unwrap_or_default();
        self.noted.remove(speaker);
        for key in said.claims.keys() {
            let Some(speakers) = self.speakers.get_mut(key) else { continue };
            speakers.retain(|one| one != speaker);
            if speakers.is_empty() {
                self.speakers.remove(key);
            }
        }
        said
    }

    /// Finds out what is in force of these objects now.
    fn settle(&mut self, touched: BTreeSet<Key>) -> Delta {
        let mut delta = Delta::default();
        for key in touched {
            let mut readers = self.readers(&key).map(|(_, item, _)| item);
            let earlier = readers.next();
            let later = readers.last();
            let doubled = later.is_some();
            let read = later.or(earlier).cloned();
            if doubled {
                self.doubled.insert(key.clone());
            } else {
                self.doubled.remove(&key);
            }
            let before = self.in_force.get(&key).cloned();
            let now = match read {
                Some(read) => Some(read),
                None if self.speakers.contains_key(&key) => before.clone(),
                None => None,
            };
            match &now {
                Some(now) => drop(self.in_force.insert(key.clone(), now.clone())),
                None => drop(self.in_force.remove(&key)),
            }
            let stand_in = if now.is_none() { self.stand_in(&key) } else { None };
            let stood_in = match &stand_in {
                Some(stand_in) => self.stand_ins.insert(key.clone(), stand_in.clone()),
                None => self.stand_ins.remove(&key),
            };
            match (before.flatten().or(stood_in), now.flatten().or(stand_in)) {
                (Some(before), Some(now)) if before == now => {}
                (_, Some(now)) => delta.upserts.push((key, now)),
                (Some(_), None) => delta.deletes.push(key),
                (None, None) => {}
            }
        }
        delta
    }

    /// The items in force, in the order of their keys.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn items(&self) -> BTreeMap<&Key, &Item> {
        let in_force = self.in_force.iter().filter_map(|(key, item)| Some((key, item.as_ref()?)));
        in_force.chain(&self.stand_ins).collect()
    }
}

impl Delta {
    /// This, then what came of the same objects after it.
    fn then(mut self, later: Delta) -> Self {
        self.deletes.retain(|key| later.upserts.iter().all(|(again, _)| again != key));
        self.upserts.extend(later.upserts);
        self.deletes.extend(later.deletes);
        self
    }
}

/// What one speaker says, while it is read.
struct Reading<'a> {
    speaker: Speaker,
    /// What it said before.
    before: Said,
    said: Said,
    /// What has to wait until the names of all files are known.
    waiting: Vec<Waiting<'a>>,
    /// Something could be one of several objects that are missing.
    is_guessed: bool,
}

/// What tells no name.
enum Waiting<'a> {
    /// An object of a kind that the mesh reads.
    Nameless { kind: Kind, problem: Problem, value: Value, line: Option<u64> },
    /// An object of a kind that there is not.
    Mistaken { problem: Problem, value: Value, line: Option<u64> },
    /// Text that is no YAML.
    Broken { document: Document<'a>, error: SyntaxError },
    /// The file cannot be opened.
    Closed { reason: String },
}

/// Where an object stands.
enum Place<'a> {
    /// In a file.
    File {
        document: &'a Document<'a>,
        /// The way to the object in its document.
        path: &'a FieldPath,
    },
    /// Nowhere: a watch tells it.
    Watch,
}

impl Place<'_> {
    fn line(&self, problem: &Problem) -> Option<u64> {
        match self {
            Place::File { document, path } => Some(document.line_of(&problem.field.below(path))),
            Place::Watch => None,
        }
    }

    /// The line on which the whole begins.
    fn first_line(&self) -> Option<u64> {
        match self {
            Place::File { document, .. } => Some(document.line),
            Place::Watch => None,
        }
    }
}

impl<'a> Reading<'a> {
    fn new(speaker: Speaker, before: Said) -> Self {
        Self { speaker, before, said: Said::default(), waiting: Vec::new(), is_guessed: false }
    }

    fn file(&mut self, file: &'a SourceFile, store: &Store) {
        match &file.content {
            Ok(text) => self.text(text, store),
            Err(reason) => self.waiting.push(Waiting::Closed { reason: reason.clone() }),
        }
    }

    fn text(&mut self, text: &'a str, store: &Store) {
        self.said.opened = true;
        let mut broken = Vec::new();
        for document in document::split(text) {
            let hash = store.hasher.hash_one(document.text);
            if self.known(&document, hash) {
                continue;
            }
            match document.parse() {
                Ok(value) => self.document(&document, hash, &value, store),
                Err(error) => broken.push(Waiting::Broken { document, error }),
            }
        }
        self.waiting.append(&mut broken);
    }

    /// Takes what a document said before, if it is the same text and was sound. The line that it is on may be another.
    fn known(&mut self, document: &Document<'_>, hash: u64) -> bool {
        let Some(objects) = self.before.sound.get(&hash) else { return false };
        let mut claims = Vec::with_capacity(objects.len());
        for (key, hash) in objects {
            match self.before.claims.get(key) {
                // Of two documents about one object, the claim is that of the later. What comes twice has to be named.
                Some(Claim::Read { taken, hash: read, line: _ })
                    if read == hash && !self.said.claims.contains_key(key) =>
                {
                    let claim = Claim::Read { taken: taken.clone(), hash: *hash, line: Some(document.line) };
                    claims.push((key.clone(), claim));
                }
                Some(_) | None => return false,
            }
        }
        self.said.claims.extend(claims);
        self.said.sound.insert(hash, objects.clone());
        true
    }

    fn document(&mut self, document: &Document<'_>, hash: u64, value: &Value, store: &Store) {
        let notes = self.said.notes.len() + self.waiting.len();
        let mut objects = Vec::new();
        for (path, value) in object::objects(value) {
            let place = Place::File { document, path: &path };
            match object::meaning(value) {
                Meaning::Known { kind: _, key: Ok(key) } => {
                    let hash = store.hasher.hash_one(value);
                    objects.push((key.clone(), hash));
                    self.object(&place, key, value, hash, store);
                }
                Meaning::Known { kind, key: Err(problem) } => {
                    let line = place.line(&problem);
                    self.waiting.push(Waiting::Nameless { kind, problem, value: value.clone(), line });
                }
                Meaning::Mistaken(problem) => {
                    let line = place.line(&problem);
                    self.waiting.push(Waiting::Mistaken { problem, value: value.clone(), line });
                }
                Meaning::Foreign => {
                    let kind = object::text(value, &["kind"]).unwrap_or_default();
                    tracing::debug!(origin = ?self.speaker, kind, "not a kind that the mesh reads");
                }
            }
        }
        if self.said.notes.len() + self.waiting.len() == notes {
            self.said.sound.insert(hash, objects);
        }
    }

    fn object(&mut self, place: &Place<'_>, key: Key, value: &Value, hash: u64, store: &Store) {
        let taken = match self.before.claims.get(&key) {
            Some(Claim::Read { taken, hash: known, .. }) if *known == hash => Ok(taken.clone()),
            Some(_) | None => admit(&key, value, &store.trust_domain),
        };
        match taken {
            Ok(taken) => {
                for (effect, problem) in taken.problems.iter().cloned() {
                    let line = place.line(&problem);
                    self.note(line, &key.kind.to_string(), &key.object(), problem, effect);
                }
                let claim = Claim::Read { taken, hash, line: place.first_line() };
                let earlier = self.said.claims.insert(key.clone(), claim);
                if let (Some(Claim::Read { .. }), Speaker::File(path)) = (earlier, &self.speaker) {
                    let reason = format!("is also in {}", path.display());
                    let problem = Problem::new(FieldPath::of("metadata.name"), reason);
                    let line = place.line(&problem);
                    self.note(line, &key.kind.to_string(), &key.object(), problem, Effect::LaterWins);
                }
            }
            Err(problem) => {
                let unreadable = translate::unreadable(key.kind, Some(&key), value);
                let line = place.line(&problem);
                let stand_in = translate::stand_in(&key, value, &problem);
                let effect = if stand_in.is_some() { Effect::RouteFails } else { Effect::Skipped };
                self.note(line, &key.kind.to_string(), &key.object(), problem, effect);
                self.said.claims.or_insert(key.clone(), Claim::Unread { stand_in });
                self.keep(Some(key), unreadable);
            }
        }
    }

    /// The second pass: what tells no name can only be taken for an object that the file held before and that is missing
    /// now.
    fn nameless(&mut self, store: &Store) {
        let (mut nameless, mut mistaken, mut broken) = (Vec::new(), Vec::new(), Vec::new());
        for waiting in std::mem::take(&mut self.waiting) {
            match waiting {
                Waiting::Nameless { .. } => nameless.push(waiting),
                Waiting::Mistaken { .. } => mistaken.push(waiting),
                Waiting::Broken { .. } | Waiting::Closed { .. } => broken.push(waiting),
            }
        }
        let in_pieces = !broken.is_empty();
        for waiting in nameless.into_iter().chain(mistaken).chain(broken) {
            match waiting {
                Waiting::Nameless { kind, problem, value, line } => {
                    self.nameless_object(kind, problem, &value, line, store)
                }
                Waiting::Mistaken { problem, value, line } => self.mistaken(problem, &value, line, store),
                Waiting::Broken { document, error } => self.broken_document(&document, error, store),
                Waiting::Closed { reason } => self.closed(reason),
            }
        }
        // In a file with a part that could not be told apart, an object that is missing may be that part. A policy that
        // cannot be read, and never could under this name, may be one that is missing; and what could be several that are
        // missing may be any of them.
        let strange = |note: &Note| note.unreadable.is_some() && !store.is_in_force(note.key.as_ref());
        let strange = self.said.notes.iter().any(strange);
        let kept =
            self.missing(store).filter(|key| in_pieces || ((strange || self.is_guessed) && key.kind.is_policy()));
        let kept: Vec<Key> = kept.cloned().collect();
        self.said.claims.extend(kept.into_iter().map(|key| (key, Claim::Unread { stand_in: None })));
    }

    fn nameless_object(&mut self, kind: Kind, problem: Problem, value: &Value, line: Option<u64>, store: &Store) {
        let missing: Vec<Key> = self.missing(store).filter(|key| key.kind == kind).cloned().collect();
        let key = missing.first().cloned();
        self.is_guessed |= missing.len() > 1;
        let unreadable = translate::unreadable(kind, key.as_ref(), value);
        let object = key.as_ref().map(Key::object).unwrap_or_default();
        self.note(line, &kind.to_string(), &object, problem, Effect::Skipped);
        self.keep(key, unreadable);
    }

    /// A kind that there is not. A policy that the file held under this name is taken to be meant, else one that is missing.
    fn mistaken(&mut self, problem: Problem, value: &Value, line: Option<u64>, store: &Store) {
        let name = object::text(value, &["metadata", "name"]).unwrap_or_default();
        let namespace = object::namespace(value).unwrap_or_default();
        let policies: Vec<Key> = self.missing(store).filter(|key| key.kind.is_policy()).cloned().collect();
        let meant = policies.iter().find(|key| key.name == name && key.namespace == namespace);
        self.is_guessed |= meant.is_none() && policies.len() > 1;
        let namesake = policies.iter().find(|key| key.name == name);
        let key = meant.or(namesake).or(policies.first()).cloned();
        let unreadable = key.as_ref().and_then(|key| translate::unreadable(key.kind, Some(key), value));
        let kind = object::text(value, &["kind"]).unwrap_or_default();
        let object = key.as_ref().map_or_else(|| name.to_string(), Key::object);
        self.note(line, kind, &object, problem, Effect::Skipped);
        self.keep(key, unreadable);
    }

    /// Text that is no YAML: what its file held before stays, and if it reads like a policy that is new, that refuses.
    fn broken_document(&mut self, document: &Document<'_>, error: SyntaxError, store: &Store) {
        let held = if self.before.claims.is_empty() { Effect::Skipped } else { Effect::PreviousStays };
        let metadata = document.metadata();
        let named = |kind| metadata.as_ref().and_then(|metadata| object::key(kind, metadata).ok());
        let missing = |kind| self.missing(store).find(|key| key.kind == kind).cloned();
        let keys = kinds_of(document.text).into_iter().map(|kind| (kind, named(kind).or_else(|| missing(kind))));
        let mut keys: Vec<(Kind, Option<Key>)> = keys.collect();
        let best = keys.iter().position(|(_, key)| store.is_in_force(key.as_ref())).unwrap_or_default();
        let best = if keys.is_empty() { None } else { Some(keys.swap_remove(best)) };
        let unreadable = best.as_ref().and_then(|(kind, key)| translate::unreadable(*kind, key.as_ref(), &Value::Null));
        let key = best.and_then(|(_, key)| key);
        let object = key.as_ref().map(Key::object).unwrap_or_default();
        let problem = Problem::new(FieldPath::default(), format!("not YAML: {}", error.reason));
        self.note(error.line.or(Some(document.line)), "", &object, problem, held);
        self.keep(key, unreadable);
    }

    /// A file that cannot be opened may hold any policy. If it could be opened before, what it held stays.
    fn closed(&mut self, reason: String) {
        self.said.opened = self.before.opened;
        let unknown = || translate::unreadable(Kind::AuthorizationPolicy, None, &Value::Null);
        let unreadable = if self.before.opened { None } else { unknown() };
        self.note(None, "", "", Problem::new(FieldPath::default(), reason), Effect::PreviousStays);
        self.keep(None, unreadable);
    }

    /// The objects that the file held before, and that no file names now.
    fn missing<'s>(&'s self, store: &'s Store) -> impl Iterator<Item = &'s Key> {
        let named = |key: &Key| store.speakers.contains_key(key) || self.said.claims.contains_key(key);
        let mut missing: Vec<&Key> = self.before.claims.keys().filter(|key| !named(key)).collect();
        missing.sort_unstable();
        missing.into_iter()
    }

    fn note(&mut self, line: Option<u64>, kind: &str, object: &str, problem: Problem, effect: Effect) {
        let finding = Finding {
            origin: self.speaker.origin(&self.said),
            line,
            kind: kind.to_string(),
            object: object.to_string(),
            field: problem.field.to_string(),
            reason: problem.reason,
            effect,
        };
        self.said.notes.push(Note { finding, key: None, unreadable: None });
    }

    /// What the last note is about: its last version stays, or, for a policy without one, its target refuses.
    fn keep(&mut self, key: Option<Key>, unreadable: Option<Unreadable>) {
        if let Some(key) = &key {
            self.said.claims.or_insert(key.clone(), Claim::Unread { stand_in: None });
        }
        if let Some(note) = self.said.notes.last_mut() {
            (note.key, note.unreadable) = (key, unreadable);
        }
    }
}

/// What an API server checks by the schema before an object is stored, then the reading proper.
fn admit(key: &Key, value: &Value, trust_domain: &str) -> Result<Taken, Problem> {
    let taken = object::read(key, value, trust_domain)?;
    if let Some(Item::AuthorizationPolicy(policy)) = &taken.item
        && let Some(index) = policy.rules.iter().position(|rule| rule.sources.is_empty())
    {
        let path = FieldPath::of("spec.rules").index(index).key("sources");
        return Err(Problem::new(path, "empty: at least one source is needed; {type: Any} is everyone"));
    }
    Ok(taken)
}

/// The kinds of policy that a text which is no YAML may be, the strictest first.
fn kinds_of(text: &str) -> Vec<Kind> {
    let kinds = [Kind::AuthorizationPolicy, Kind::RequestAuthentication, Kind::PeerAuthentication];
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
