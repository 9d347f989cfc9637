//! Every limit of the routes: a constant with unit and reason. `/config_dump` lists them.

use crate::limit::{Limit, limits};

/// What one regular expression may take once compiled, in bytes: several times a pattern of Unicode classes (`\w+` takes 30 KiB). A route has up to
/// 128 matches, each with several.
pub const PATTERN_BYTES: usize = 256 << 10;

/// What each thread keeps of the automaton of a table's path patterns, in bytes; what does not fit is made anew. The
/// default of the crate `regex`.
pub const PATTERN_CACHE_BYTES: usize = 2 << 20;

/// The bounds of this room.
pub fn all() -> Vec<Limit> {
    limits![
        PATTERN_BYTES, "bytes", "of one compiled regular expression, so that no author of a route fills the agent's memory";
        PATTERN_CACHE_BYTES, "bytes per thread", "kept of the automaton of a table's path patterns";
    ]
}
