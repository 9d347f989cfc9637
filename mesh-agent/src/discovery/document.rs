//! Text to documents: splits multi-document YAML, parses each, and finds the line of a field.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_saphyr::{Options, Spanned};

use super::finding::{FieldPath, Step};

/// Values in one document: a list of 10 000 pods has about a million.
pub(super) const MAX_NODES: usize = 8_000_000;
/// What the parser may meet in one document: two or so for each value.
pub(super) const MAX_EVENTS: usize = 16_000_000;

/// One YAML document of a file.
pub struct Document<'a> {
    /// The line of the file on which `text` begins, counted from 1.
    pub line: u64,
    /// The document's text, without the marker that separates it from the one before.
    pub text: &'a str,
}

/// Why a document is no YAML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntaxError {
    /// Line of the file, where known.
    pub line: Option<u64>,
    /// What the parser says.
    pub reason: String,
}

/// Splits a file at its document markers. Documents of comments alone are left out.
pub fn split(text: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let (mut start, mut start_line, mut offset) = (0, 1, 0);
    for (line, number) in text.split_inclusive('\n').zip(1u64..) {
        if is_marker(line) {
            documents.push(Document { line: start_line, text: slice(text, start, offset) });
            // What stands behind the marker on its own line belongs to the document.
            (start, start_line) = (offset + 3, number);
        }
        offset += line.len();
    }
    documents.push(Document { line: start_line, text: slice(text, start, offset) });
    documents.retain(|document| !document.is_empty());
    documents
}

/// A marker is only one at the very beginning of a line, also inside block scalars.
fn is_marker(line: &str) -> bool {
    let rest = line.strip_prefix("---").or_else(|| line.strip_prefix("..."));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

fn slice(text: &str, start: usize, end: usize) -> &str {
    text.get(start..end).unwrap_or_default()
}

impl Document<'_> {
    fn is_empty(&self) -> bool {
        self.text.lines().map(str::trim).all(|line| line.is_empty() || line.starts_with(['#', '%']))
    }

    /// Parses the document.
    pub fn parse(&self) -> Result<Value, SyntaxError> {
        serde_saphyr::from_str_with_options(self.text, options()).map_err(|error| SyntaxError {
            line: error.location().map(|location| self.line_of_file(location.line())),
            reason: error.without_snippet().to_string(),
        })
    }

    /// The line of the file on which a field stands, or the nearest field above it.
    pub fn line_of(&self, field: &FieldPath) -> u64 {
        let mut line = self.first_line();
        let seek = Seek { steps: &field.0, line: &mut line };
        // The search ends early on purpose, which the parser reports as an error.
        let _ =
            serde_saphyr::with_deserializer_from_str_with_options(self.text, options(), |yaml| seek.deserialize(yaml));
        self.line_of_file(line)
    }

    /// The metadata of a document that cannot be parsed as a whole, if that part of it can: `{"metadata": …}`.
    pub fn metadata(&self) -> Option<Value> {
        let mut lines = self.text.split_inclusive('\n').skip_while(|line| !line.starts_with("metadata:"));
        let first = lines.next()?;
        let below = lines.take_while(|line| line.starts_with([' ', '#']) || line.trim().is_empty());
        let section: String = std::iter::once(first).chain(below).collect();
        serde_saphyr::from_str_with_options(&section, options()).ok()
    }

    fn first_line(&self) -> u64 {
        let blank = |line: &&str| line.trim().is_empty() || line.trim_start().starts_with('#');
        1 + self.text.lines().take_while(blank).count() as u64
    }

    fn line_of_file(&self, line: u64) -> u64 {
        self.line + line.saturating_sub(1)
    }
}

/// Kubernetes objects can be large lists; the other bounds stay as the parser sets them. A document cannot hold more
/// than its file, whose size is bounded.
fn options() -> Options {
    serde_saphyr::options! {
        with_snippet: false,
        budget: serde_saphyr::budget! { max_nodes: MAX_NODES, max_events: MAX_EVENTS },
    }
}

/// Walks down a path and notes the line of the deepest key that is there.
struct Seek<'a> {
    steps: &'a [Step],
    line: &'a mut u64,
}

impl<'de> DeserializeSeed<'de> for Seek<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        match self.steps.first() {
            Some(Step::Key(_)) => deserializer.deserialize_map(self),
            Some(Step::Index(_)) => deserializer.deserialize_seq(self),
            None => deserializer.deserialize_ignored_any(IgnoredAny).map(drop),
        }
    }
}

impl<'de> Visitor<'de> for Seek<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the field that is looked for")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((Step::Key(wanted), below)) = self.steps.split_first() else { return Ok(()) };
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            if key.value != *wanted {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            *self.line = key.referenced.line();
            return map.next_value_seed(Seek { steps: below, line: self.line });
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Some((Step::Index(wanted), below)) = self.steps.split_first() else { return Ok(()) };
        for _ in 0..*wanted {
            if list.next_element::<IgnoredAny>()?.is_none() {
                return Ok(());
            }
        }
        list.next_element_seed(Seek { steps: below, line: self.line }).map(drop)
    }
}
