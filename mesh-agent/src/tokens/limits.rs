//! Every limit of the room: a constant with unit and reason. `/config_dump` lists them.

use crate::limit::{Limit, limits};

/// The largest token that is looked at, in bytes. What fits into a head may be larger; nobody's token is.
pub const MAX_TOKEN_BYTES: usize = 16 << 10;

/// Tokens of one request that are looked at; each costs a signature.
pub const MAX_TOKENS: usize = 4;

/// Keys of one issuer. A rotation has two or three; a token without `kid` is tried with each.
pub const MAX_KEYS: usize = 32;

/// How far an issuer's clock may be off, in seconds, where nothing else is said. As Envoy.
pub const CLOCK_SKEW_SECONDS: u64 = 60;

/// The most that a policy may say of it, in seconds: more would keep tokens alive that have ended.
pub const MAX_CLOCK_SKEW_SECONDS: u64 = 3600;

/// Tokens that a worker remembers as signed; the ones that were not asked for lately go first. With what they say, some
/// KiB each.
pub const MAX_REMEMBERED_TOKENS: usize = 2048;

/// The largest that is remembered, in bytes: what it says takes several times as much.
pub const MAX_REMEMBERED_BYTES: usize = 4 << 10;

/// The bounds of this room.
pub fn all() -> Vec<Limit> {
    limits![
        MAX_TOKEN_BYTES, "bytes", "of a token; a larger one is refused with 401";
        MAX_TOKENS, "tokens", "of one request; more are refused with 401";
        MAX_KEYS, "keys", "of one issuer";
        CLOCK_SKEW_SECONDS, "seconds", "that an issuer's clock may be off, where a policy does not say";
        MAX_CLOCK_SKEW_SECONDS, "seconds", "that a policy may say it is";
        MAX_REMEMBERED_TOKENS, "tokens", "that a worker remembers as signed";
        MAX_REMEMBERED_BYTES, "bytes", "of a token that is remembered; a larger one is checked each time";
    ]
}
