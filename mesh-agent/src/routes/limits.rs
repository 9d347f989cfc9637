//! Every limit of the routes: a constant with unit and reason. `/config_dump` lists them.

use crate::limit::{Limit, limits};

/// What one regular expression may take once compiled, in bytes: several times a pattern of Unicode classes (`\w+` takes 30 KiB). A route has up to
/// 128 matches, each with several.
pub const PATTERN_BYTES: usize = 256 << 10;

/// The bounds of this room.
pub fn all() -> Vec<Limit> {
    limits![
        PATTERN_BYTES, "bytes", "of one compiled regular expression, so that no author of a route fills the agent's memory";
    ]
}
