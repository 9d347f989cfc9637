//! What the matches of a table ask of a request besides its path, each question once, and what a request answers.
//!
//! A request is asked for its method and for the headers and parameters that occur in the table. What holds comes as a
//! list of numbers; a match whose numbers are all in the list matches, and a match none of whose numbers is there is
//! never looked at.

use std::borrow::Cow;
use std::collections::HashMap;

use http::{HeaderName, Method};
use regex::Regex;
use smallvec::SmallVec;

use super::compile::Entry;
use super::object::Text;
use super::table::Head;
use super::values;

/// Something that holds for a request or not.
pub(super) type Fact = u32;

/// What must hold for one match.
#[derive(Debug, Default)]
pub(super) struct Conditions {
    /// All of these.
    facts: Vec<Fact>,
    /// And these values, by the fact that there is one.
    patterns: Vec<(Fact, Regex)>,
}

/// The facts that a table is interested in.
#[derive(Debug, Default)]
pub(super) struct Questions {
    methods: HashMap<Method, Fact>,
    headers: HashMap<HeaderName, Values>,
    query: HashMap<Box<str>, Values>,
    count: Fact,
}

/// Of one header or parameter.
#[derive(Debug)]
struct Values {
    /// That it is there.
    present: Fact,
    /// That it is this.
    exact: HashMap<Box<[u8]>, Fact>,
    /// Whether a pattern asks for it, so that the value is kept.
    has_patterns: bool,
}

/// What holds for a request.
#[derive(Debug, Default)]
pub(super) struct Answers<'a> {
    facts: SmallVec<[Fact; 16]>,
    /// Values that patterns ask for, by the fact that there is one.
    values: SmallVec<[(Fact, Cow<'a, [u8]>); 2]>,
}

impl Questions {
    /// Notes what a match asks.
    pub(super) fn add(&mut self, entry: &Entry) -> Conditions {
        let mut conditions = Conditions::default();
        if let Some(method) = &entry.method {
            let fact = *self.methods.entry(method.clone()).or_insert_with(|| next(&mut self.count));
            conditions.facts.push(fact);
        }
        for (name, text) in &entry.headers {
            let values = self.headers.entry(name.clone()).or_insert_with(|| Values::new(&mut self.count));
            values.add(text, &mut self.count, &mut conditions);
        }
        for (name, text) in &entry.query {
            let values = self.query.entry((**name).into()).or_insert_with(|| Values::new(&mut self.count));
            values.add(text, &mut self.count, &mut conditions);
        }
        conditions
    }

    /// Asks a request.
    pub(super) fn ask<'a>(&self, head: &Head<'a>) -> Answers<'a> {
        let mut answers = Answers::default();
        answers.facts.extend(self.methods.get(head.method).copied());
        // Whichever are fewer, what is asked or what is there.
        if self.headers.len() <= head.headers.keys_len() {
            for (name, values) in &self.headers {
                self.ask_header(head, name, values, &mut answers);
            }
        } else {
            for name in head.headers.keys().chain([&http::header::HOST]) {
                if let Some(values) = self.headers.get(name) {
                    self.ask_header(head, name, values, &mut answers);
                }
            }
        }
        if !self.query.is_empty() {
            for (name, value) in values::parameters(head) {
                if let Some(values) = self.query.get(&*name)
                    && !answers.holds(values.present)
                {
                    values.answer(bytes(value), &mut answers);
                }
            }
        }
        answers
    }

    fn ask_header<'a>(&self, head: &Head<'a>, name: &HeaderName, values: &Values, answers: &mut Answers<'a>) {
        if let Some(value) = values::header(head, name)
            && !answers.holds(values.present)
        {
            values.answer(value, answers);
        }
    }
}

fn next(count: &mut Fact) -> Fact {
    *count = count.saturating_add(1);
    *count
}

fn bytes(text: Cow<'_, str>) -> Cow<'_, [u8]> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
        Cow::Owned(text) => Cow::Owned(text.into_bytes()),
    }
}

impl Values {
    fn new(count: &mut Fact) -> Self {
        Self { present: next(count), exact: HashMap::new(), has_patterns: false }
    }

    fn add(&mut self, text: &Text, count: &mut Fact, conditions: &mut Conditions) {
        match text {
            Text::Exact(value) => {
                let fact = self.exact.entry(value.as_bytes().into()).or_insert_with(|| next(count));
                conditions.facts.push(*fact);
            }
            Text::Regex(pattern) => {
                self.has_patterns = true;
                conditions.facts.push(self.present);
                conditions.patterns.push((self.present, pattern.clone()));
            }
        }
    }

    fn answer<'a>(&self, value: Cow<'a, [u8]>, answers: &mut Answers<'a>) {
        answers.facts.push(self.present);
        answers.facts.extend(self.exact.get(&*value).copied());
        if self.has_patterns {
            answers.values.push((self.present, value));
        }
    }
}

impl Conditions {
    /// What is seen without looking at a value.
    pub(super) fn facts(&self) -> &[Fact] {
        &self.facts
    }

    /// Whether all of them hold.
    pub(super) fn hold(&self, answers: &Answers<'_>) -> bool {
        self.facts.iter().all(|fact| answers.holds(*fact))
            && self
                .patterns
                .iter()
                .all(|(name, pattern)| answers.value(*name).is_some_and(|text| pattern.is_match(text)))
    }
}

impl Answers<'_> {
    /// Each once.
    pub(super) fn facts(&self) -> &[Fact] {
        &self.facts
    }

    fn holds(&self, fact: Fact) -> bool {
        self.facts.contains(&fact)
    }

    /// A value that is text: no pattern matches other bytes.
    fn value(&self, name: Fact) -> Option<&str> {
        let (_, value) = self.values.iter().find(|(known, _)| *known == name)?;
        std::str::from_utf8(value).ok()
    }
}
