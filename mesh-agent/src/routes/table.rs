//! The table that a request is looked up in.
//!
//! ```text
//! path ─┬─ exact ──► shelf        a shelf: all matches of one path
//!       ├─ patterns ► shelves       ├─ by a fact (a header's value, …): the rarest that the match asks for
//!       └─ prefixes ► shelves       └─ the first that asks for nothing more
//!          (a trie of segments)
//! ```
//! Matches are numbered by precedence, so the answer is the smallest number that matches, and a shelf whose first number
//! is larger than what is found already is not opened. What a lookup costs grows with the depth of the path, with what
//! the request itself brings, and with matches that share their path and their rarest fact with it; never with the rest.

use std::collections::HashMap;
use std::sync::Arc;

use http::{HeaderMap, Method};
use regex::{Regex, RegexSet, RegexSetBuilder};
use smallvec::SmallVec;

use super::attach::of_one_kind;
use super::compile::{CompiledRule, Entry, Path, entries};
use super::facts::{Answers, Conditions, Fact, Questions};
use super::limits::{PATTERN_BYTES, PATTERN_CACHE_BYTES};
use super::object::Route;

/// What of a request decides where it goes.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// Its method.
    pub method: &'a Method,
    /// Host or `:authority`, as it was sent, with its port. A match on the header `host` looks here.
    pub host: &'a str,
    /// The path as it will be sent on, percent-encoding kept: matching changes nothing and decodes nothing. Whoever asks
    /// has refused or normalised what is ambiguous (`..`, `//`, `%2f`).
    pub path: &'a str,
    /// What follows the `?`.
    pub query: Option<&'a str>,
    /// Its headers.
    pub headers: &'a HeaderMap,
}

/// The rule that a request meets.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    /// Where to, and what on the way.
    pub rule: &'a Arc<CompiledRule>,
    /// The prefix that matched, without a slash at the end (`/` is empty); what a prefix rewrite replaces. None: it was
    /// no prefix that matched.
    pub matched_prefix: Option<&'a str>,
}

/// The routes of one Service port, as one client namespace sees them, ready to be asked.
#[derive(Debug, Default)]
pub struct Table {
    /// The first in precedence first; a place in here is a `Number`.
    candidates: Vec<Candidate>,
    questions: Questions,
    exact: HashMap<Arc<str>, Shelf>,
    prefixes: Node,
    patterns: Patterns,
}

/// A match's place among all of its table; the smaller wins.
type Number = usize;

#[derive(Debug)]
struct Candidate {
    rule: Arc<CompiledRule>,
    prefix: Option<Arc<str>>,
    conditions: Conditions,
}

/// The matches of one path.
#[derive(Debug)]
struct Shelf {
    /// The smallest number here.
    first: Number,
    /// The first that asks for nothing but the path; no other such is ever reached.
    rest: Option<Number>,
    /// The others, in order, each under one of the facts that it needs.
    by_fact: HashMap<Fact, Vec<Number>>,
}

/// A segment of a prefix.
#[derive(Debug, Default)]
struct Node {
    shelf: Option<Shelf>,
    children: HashMap<Box<str>, Node>,
}

/// Paths by regular expression: one pass over the path says which of them match.
#[derive(Debug, Default)]
struct Patterns {
    set: RegexSet,
    /// In the set's order.
    shelves: Vec<(Regex, Shelf)>,
    /// The set became too large: they are tried one by one.
    one_by_one: bool,
}

/// What a lookup has looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Effort {
    /// Shelves opened, nodes of the trie passed.
    pub(super) steps: usize,
    /// Matches whose conditions were looked at.
    pub(super) candidates: usize,
}

impl Table {
    /// From routes that hold at the port (`attached` chooses them). Where they are of several kinds, those of the first
    /// in GEP-1294's order are taken. A TCPRoute or a TLSRoute has no place in a table.
    pub fn compile<'a>(routes: impl IntoIterator<Item = &'a Route>) -> Self {
        let Some(attached) = of_one_kind(routes.into_iter().collect()) else { return Self::default() };
        Self::of(entries(&attached.routes))
    }

    /// The rule that a request meets. None: no rule matches, the answer is 404.
    pub fn find(&self, head: &Head<'_>) -> Option<Found<'_>> {
        self.search(head, &mut Effort::default())
    }

    /// The rules, each as often as it has matches, in order of precedence: for people.
    pub fn rules(&self) -> impl Iterator<Item = &Arc<CompiledRule>> {
        self.candidates.iter().map(|candidate| &candidate.rule)
    }

    pub(super) fn search(&self, head: &Head<'_>, effort: &mut Effort) -> Option<Found<'_>> {
        let mut search = Search { candidates: &self.candidates, answers: self.questions.ask(head), best: None, effort };
        if let Some(shelf) = self.exact.get(head.path) {
            search.open(shelf);
        }
        self.patterns.matching(head.path, |shelf| search.open(shelf));
        let mut shelves: SmallVec<[&Shelf; 8]> = SmallVec::new();
        search.effort.steps += self.prefixes.walk(head.path, &mut shelves);
        // The longest first: in HTTPRoutes no shorter one beats it.
        for shelf in shelves.into_iter().rev() {
            search.open(shelf);
        }
        let found = self.candidates.get(search.best?)?;
        Some(Found { rule: &found.rule, matched_prefix: found.prefix.as_deref() })
    }

    fn of(entries: Vec<Entry>) -> Self {
        let mut table = Self::default();
        let mut exact: HashMap<Arc<str>, Vec<Number>> = HashMap::new();
        let mut prefixes: HashMap<Arc<str>, Vec<Number>> = HashMap::new();
        let mut patterns: HashMap<String, (Regex, Vec<Number>)> = HashMap::new();
        for (number, entry) in entries.into_iter().enumerate() {
            let conditions = table.questions.add(&entry);
            let mut prefix = None;
            match entry.path {
                Path::Exact(path) => exact.entry(path).or_default().push(number),
                Path::Regex(pattern) => {
                    let same = patterns.entry(pattern.as_str().to_string()).or_insert_with(|| (pattern, Vec::new()));
                    same.1.push(number);
                }
                Path::Prefix(path) => {
                    prefixes.entry(path.clone()).or_default().push(number);
                    prefix = Some(path);
                }
            }
            table.candidates.push(Candidate { rule: entry.rule, prefix, conditions });
        }
        let shelf = |numbers| Shelf::new(numbers, &table.candidates);
        table.exact = exact.into_iter().map(|(path, numbers)| (path, shelf(numbers))).collect();
        let patterns: Vec<_> = patterns.into_values().map(|(pattern, numbers)| (pattern, shelf(numbers))).collect();
        let set_bytes = PATTERN_BYTES.saturating_mul(patterns.len());
        table.patterns = Patterns::new(patterns, set_bytes);
        for (path, numbers) in prefixes {
            let shelf = Shelf::new(numbers, &table.candidates);
            table.prefixes.insert(&path, shelf);
        }
        table
    }
}

/// A lookup under way.
struct Search<'t, 'h, 'e> {
    candidates: &'t [Candidate],
    answers: Answers<'h>,
    best: Option<Number>,
    effort: &'e mut Effort,
}

impl Search<'_, '_, '_> {
    /// Takes the first match of a shelf if it beats what is found already.
    fn open(&mut self, shelf: &Shelf) {
        if !self.beats(shelf.first) {
            return;
        }
        self.effort.steps += 1;
        if let Some(number) = shelf.rest.filter(|number| self.beats(*number)) {
            self.best = Some(number);
        }
        if shelf.by_fact.is_empty() {
            return;
        }
        for fact in self.answers.facts() {
            let Some(numbers) = shelf.by_fact.get(fact) else { continue };
            for number in numbers.iter().copied() {
                if self.best.is_some_and(|best| best <= number) {
                    break;
                }
                self.effort.candidates += 1;
                if self.candidates.get(number).is_some_and(|candidate| candidate.conditions.hold(&self.answers)) {
                    self.best = Some(number);
                    break;
                }
            }
        }
    }

    fn beats(&self, number: Number) -> bool {
        self.best.is_none_or(|best| number < best)
    }
}

impl Shelf {
    /// `numbers` in order, not empty.
    fn new(numbers: Vec<Number>, candidates: &[Candidate]) -> Self {
        let facts = |number: &Number| candidates.get(*number).map_or(&[][..], |candidate| candidate.conditions.facts());
        let mut frequency: HashMap<Fact, usize> = HashMap::new();
        for fact in numbers.iter().flat_map(facts) {
            *frequency.entry(*fact).or_default() += 1;
        }
        let mut shelf = Self { first: Number::MAX, rest: None, by_fact: HashMap::new() };
        for number in numbers {
            shelf.first = shelf.first.min(number);
            match facts(&number).iter().min_by_key(|fact| frequency.get(fact)) {
                Some(rarest) => shelf.by_fact.entry(*rarest).or_default().push(number),
                None => shelf.rest = shelf.rest.or(Some(number)),
            }
        }
        shelf
    }
}

impl Node {
    /// `prefix` without a slash at the end.
    fn insert(&mut self, prefix: &str, shelf: Shelf) {
        if prefix.is_empty() {
            self.shelf = Some(shelf);
            return;
        }
        // A prefix that begins without a slash matches no path.
        let Some(segments) = prefix.strip_prefix('/') else { return };
        let node = segments.split('/').fold(self, |node, segment| node.children.entry(segment.into()).or_default());
        node.shelf = Some(shelf);
    }

    /// The shelves of all prefixes of a path, the shortest first; how many nodes that were.
    fn walk<'t>(&'t self, path: &str, shelves: &mut SmallVec<[&'t Shelf; 8]>) -> usize {
        let mut node = self;
        let mut steps = 1;
        shelves.extend(&node.shelf);
        let Some(segments) = path.strip_prefix('/') else { return steps };
        for segment in segments.split('/') {
            let Some(child) = node.children.get(segment) else { break };
            node = child;
            steps += 1;
            shelves.extend(&node.shelf);
        }
        steps
    }
}

impl Patterns {
    /// `set_bytes`: what the set may take.
    fn new(shelves: Vec<(Regex, Shelf)>, set_bytes: usize) -> Self {
        let texts = shelves.iter().map(|(pattern, _)| pattern.as_str());
        let set = RegexSetBuilder::new(texts).size_limit(set_bytes).dfa_size_limit(PATTERN_CACHE_BYTES).build();
        let one_by_one = set.is_err();
        Self { set: set.unwrap_or_default(), shelves, one_by_one }
    }

    fn matching<'t>(&'t self, path: &str, mut take: impl FnMut(&'t Shelf)) {
        if self.one_by_one {
            self.shelves.iter().filter(|(pattern, _)| pattern.is_match(path)).for_each(|(_, shelf)| take(shelf));
        } else if !self.shelves.is_empty() {
            self.set
                .matches(path)
                .iter()
                .filter_map(|index| self.shelves.get(index))
                .for_each(|(_, shelf)| take(shelf));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::anchored;
    use super::*;

    #[test]
    fn patterns_match_alike_as_a_set_and_one_by_one() {
        let patterns = ["/a.*", "/a", ".*b", "/c", "/[ab]{1,3}", "/(?i)d"];
        let shelves = || {
            let shelf = |first| Shelf { first, rest: Some(first), by_fact: HashMap::new() };
            patterns.iter().enumerate().map(|(at, text)| (anchored(text).unwrap(), shelf(at))).collect()
        };
        let [set, single] = [PATTERN_BYTES, 0].map(|bytes| Patterns::new(shelves(), bytes));
        assert_eq!((set.one_by_one, single.one_by_one), (false, true));
        for (path, wanted) in [
            ("/a", vec![0, 1, 4]),
            ("/ab", vec![0, 2, 4]),
            ("/c", vec![3]),
            ("/D", vec![5]),
            ("/e", vec![]),
            ("", vec![]),
        ] {
            for patterns in [&set, &single] {
                let mut found = Vec::new();
                patterns.matching(path, |shelf| found.push(shelf.first));
                assert_eq!(found, wanted, "{path}");
            }
        }
    }
}
