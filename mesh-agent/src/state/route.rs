//! Routes and the grants between namespaces, as discovery hands them over.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::Serialize;

use crate::routes::{Route, RouteKind};

/// A route with what its reading found, for conditions and people.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteSpec {
    /// What is in force of it. A rule that cannot be taken is there with its matches and a backend that is wrong: its
    /// requests are answered with an error, and do not fall to the next rule.
    pub route: Arc<Route>,
    /// metadata.generation
    pub generation: Option<i64>,
    /// Why nothing of it could be taken: it is there as one rule that refuses everything. None: it was read.
    pub refused: Option<Reading>,
    /// Rules that could not be taken, with their number.
    pub refused_rules: Vec<(usize, Reading)>,
    /// References that the object itself makes wrong.
    pub wrong_refs: Vec<(BadBackend, Reading)>,
}

/// What was wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The field.
    pub field: Arc<str>,
    /// What is wrong with it.
    pub reason: Arc<str>,
}

/// Why a reference leads nowhere: the reasons of the condition ResolvedRefs. Requests that would go there are answered
/// with 500, or UNAVAILABLE for gRPC; connections are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum BadBackend {
    /// Not a Service.
    InvalidKind,
    /// No such Service, or no such port.
    BackendNotFound,
}

impl BadBackend {
    /// The reason of the condition.
    pub fn reason(self) -> &'static str {
        match self {
            BadBackend::InvalidKind => "InvalidKind",
            BadBackend::BackendNotFound => "BackendNotFound",
        }
    }
}

/// A ReferenceGrant, as far as it is about routes and Services: routes of these kinds and namespaces may refer to these
/// Services of its own namespace. Routes on Services need none (GEP-1294).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReferenceGrant {
    /// Who refers: kind and namespace.
    pub from: BTreeSet<(RouteKind, Arc<str>)>,
    /// To what. None: to every Service.
    pub to: Option<BTreeSet<Arc<str>>>,
}
