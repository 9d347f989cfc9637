//! Every limit of the routes: a constant with unit and reason. `/config_dump` lists them.

use crate::limit::{Limit, limits};

/// What one regular expression may take once compiled, in bytes: several times a pattern of Unicode classes (`\w+` takes 30 KiB). A route has up to
/// 128 matches, each with several.
pub const PATTERN_BYTES: usize = 256 << 10;

/// What each thread keeps of the automaton of a table's path patterns, in bytes; what does not fit is made anew. The
/// default of the crate `regex`.
pub const PATTERN_CACHE_BYTES: usize = 2 << 20;

/// The longest first message of a TLS client that is read for its server name, in bytes. Browsers with post-quantum key
/// shares send 2 KiB; OpenSSL's servers take 128 KiB at most.
pub const CLIENT_HELLO_BYTES: usize = 16 << 10;

/// The longest server name, in bytes: DNS has no longer ones.
pub const SERVER_NAME_BYTES: usize = 253;

/// The bounds of this room.
pub fn all() -> Vec<Limit> {
    limits![
        PATTERN_BYTES, "bytes", "of one compiled regular expression, so that no author of a route fills the agent's memory";
        PATTERN_CACHE_BYTES, "bytes per thread", "kept of the automaton of a table's path patterns";
        CLIENT_HELLO_BYTES, "bytes", "of a TLS client's first message, read for its server name; browsers send 2 KiB";
        SERVER_NAME_BYTES, "bytes", "of a server name: DNS has no longer ones";
    ]
}
