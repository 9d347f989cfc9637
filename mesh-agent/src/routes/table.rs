//! The table that a request is looked up in.

use std::sync::Arc;

use http::{HeaderMap, Method};

use super::attach::of_one_kind;
use super::compile::{CompiledRule, Entry, Path, entries};
use super::object::{Route, Text};
use super::values;

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
    /// The first in precedence first.
    entries: Vec<Entry>,
}

impl Table {
    /// From routes that hold at the port (`attached` chooses them). Where they are of several kinds, those of the first
    /// in GEP-1294's order are taken. A TCPRoute or a TLSRoute has no place in a table.
    pub fn compile<'a>(routes: impl IntoIterator<Item = &'a Route>) -> Self {
        let Some(attached) = of_one_kind(routes.into_iter().collect()) else { return Self::default() };
        Self { entries: entries(&attached.routes) }
    }

    /// The rule that a request meets. None: no rule matches, the answer is 404.
    pub fn find(&self, head: &Head<'_>) -> Option<Found<'_>> {
        self.entries.iter().find(|entry| matches(entry, head)).map(Entry::found)
    }

    /// The rules, each as often as it has matches, in order of precedence: for people.
    pub fn rules(&self) -> impl Iterator<Item = &Arc<CompiledRule>> {
        self.entries.iter().map(|entry| &entry.rule)
    }
}

impl Entry {
    fn found(&self) -> Found<'_> {
        let matched_prefix = match &self.path {
            Path::Prefix(prefix) => Some(&**prefix),
            Path::Exact(_) | Path::Regex(_) => None,
        };
        Found { rule: &self.rule, matched_prefix }
    }
}

fn matches(entry: &Entry, head: &Head<'_>) -> bool {
    let path = match &entry.path {
        Path::Exact(path) => **path == *head.path,
        Path::Regex(pattern) => pattern.is_match(head.path),
        Path::Prefix(prefix) => {
            head.path.strip_prefix(&**prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
                || prefix.is_empty()
        }
    };
    path && entry.method.as_ref().is_none_or(|method| method == head.method)
        && entry
            .headers
            .iter()
            .all(|(name, text)| values::header(head, name).is_some_and(|value| is_text(text, &value)))
        && entry
            .query
            .iter()
            .all(|(name, text)| values::query(head, name).is_some_and(|value| is_text(text, value.as_bytes())))
}

fn is_text(text: &Text, value: &[u8]) -> bool {
    match text {
        Text::Exact(wanted) => wanted.as_bytes() == value,
        Text::Regex(pattern) => std::str::from_utf8(value).is_ok_and(|value| pattern.is_match(value)),
    }
}
