//! Every limit of the room: a constant with unit and reason. `/config_dump` lists them.

use std::time::Duration;

use crate::limit::{Limit, limits};

/// What an authorizer may answer, in bytes: a page for people fits. Of a longer one that refuses, the status alone is told.
pub const MAX_ANSWER_BYTES: usize = 64 << 10;

/// Headers that an authorizer may change; an answer with more is none. As many as a head may have.
pub const MAX_CHANGES: usize = 100;

/// Authorizers that are asked about one request.
pub const MAX_CHECKS: usize = 8;

/// How long the part of a body that is shown may take to come.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(15);

/// The bounds of this room.
pub fn all() -> Vec<Limit> {
    limits![
        MAX_ANSWER_BYTES, "bytes", "of an authorizer's answer";
        MAX_CHANGES, "headers", "that an authorizer may change";
        MAX_CHECKS, "authorizers", "that are asked about one request; it is refused where there are more";
        BODY_TIMEOUT, "milliseconds", "for the part of a body that an authorizer is shown";
    ]
}
