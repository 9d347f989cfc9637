//! Which rules may mean a request, found without a look at the others.
//!
//! A rule stands under what its paths begin with, or, where it names none, under the callers that it names; what has
//! neither is looked at each time. So the cost of a decision grows with the rules that share path or caller with the
//! request, and with the number of different lengths that paths in rules have; never with the rest.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};

use super::object::Rule;
use super::pattern::{PathPattern, Pattern};
use super::request::Request;
use super::source::{Principal, Source};
use super::{Facts, Statement};

/// A rule: the number of its statement, and its own in there.
pub(super) type Number = (usize, usize);

/// In place of a rule's number: the statement itself, whose list is empty and yet means something.
pub(super) const ITSELF: usize = usize::MAX;

/// The rules of one action.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Index {
    exact: Words,
    prefixes: Ends,
    suffixes: Ends,
    by_caller: Words,
    rest: Vec<Number>,
}

type Words = HashMap<Box<str>, Vec<Number>>;

/// Words that others begin or end with.
#[derive(Clone, Debug, Default, PartialEq)]
struct Ends {
    lengths: BTreeSet<usize>,
    words: Words,
}

impl Index {
    pub(super) fn new(statements: &[Statement]) -> Self {
        let mut index = Self::default();
        for (at, statement) in statements.iter().enumerate() {
            for (rule_at, rule) in statement.policy.rules.iter().enumerate() {
                index.add(rule, (at, rule_at));
            }
            if statement.policy.rules.is_empty() {
                push(&mut index.rest, (at, ITSELF));
            }
        }
        index
    }

    fn add(&mut self, rule: &Rule, number: Number) {
        if rule.operations.is_empty() || rule.operations.iter().any(|operation| operation.paths.is_empty()) {
            return self.add_by_caller(rule, number);
        }
        for path in rule.operations.iter().flat_map(|operation| &operation.paths) {
            match path {
                PathPattern::Plain(Pattern::Any) => push(&mut self.rest, number),
                PathPattern::Plain(Pattern::Exact(path)) => {
                    push(self.exact.entry((&**path).into()).or_default(), number)
                }
                PathPattern::Plain(Pattern::Suffix(end)) => self.suffixes.add(end, number),
                PathPattern::Plain(Pattern::Prefix(_)) | PathPattern::Template(_) => {
                    self.prefixes.add(&path.beginning(), number);
                }
            }
        }
    }

    fn add_by_caller(&mut self, rule: &Rule, number: Number) {
        let callers: Option<Vec<Cow<'_, str>>> = rule.sources.iter().map(caller).collect();
        match callers {
            Some(callers) if !callers.is_empty() => {
                for caller in callers {
                    push(self.by_caller.entry((&*caller).into()).or_default(), number);
                }
            }
            _ => push(&mut self.rest, number),
        }
    }

    /// Lists of rules that may mean the request, each in order; every rule that does is in one of them.
    pub(super) fn visit<'a>(&'a self, facts: &Facts, request: &Request<'_>, mut visit: impl FnMut(&'a [Number])) {
        visit(&self.rest);
        for path in [Some(request.path.as_str()), request.path.folded()].into_iter().flatten() {
            if let Some(numbers) = self.exact.get(path) {
                visit(numbers);
            }
            self.prefixes.visit(|length| path.get(..length), &mut visit);
            self.suffixes.visit(|length| path.get(path.len().checked_sub(length)?..), &mut visit);
        }
        let Some(caller) = facts.source.as_ref().map(|id| id.as_str()) else { return };
        let namespace = caller.split_once("/sa/").map(|(namespace, _)| namespace);
        [Some(caller), namespace]
            .into_iter()
            .flatten()
            .filter_map(|key| self.by_caller.get(key))
            .for_each(|numbers| visit(numbers));
    }
}

impl Ends {
    fn add(&mut self, word: &str, number: Number) {
        self.lengths.insert(word.len());
        push(self.words.entry(word.into()).or_default(), number);
    }

    fn visit<'a, 'p>(&'a self, part: impl Fn(usize) -> Option<&'p str>, visit: &mut impl FnMut(&'a [Number])) {
        // The path is shorter than what is left.
        let parts = self.lengths.iter().map_while(|length| part(*length));
        parts.filter_map(|part| self.words.get(part)).for_each(|numbers| visit(numbers));
    }
}

/// Rules come in their order.
fn push(numbers: &mut Vec<Number>, number: Number) {
    if numbers.last() != Some(&number) {
        numbers.push(number);
    }
}

/// The one id that a source means, or how the ids of its one namespace begin.
fn caller(source: &Source) -> Option<Cow<'_, str>> {
    match source {
        Source::Principal(Principal::Exact(id)) => Some(Cow::Borrowed(id.as_str())),
        Source::Namespace { trust_domain, namespace } => {
            Some(Cow::Owned(format!("spiffe://{trust_domain}/ns/{namespace}")))
        }
        Source::Principal(Principal::Any | Principal::Prefix(_) | Principal::Suffix(_))
        | Source::IpBlock(_)
        | Source::Any => None,
    }
}
