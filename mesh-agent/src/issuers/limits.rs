//! Every limit of the room: a constant with unit and reason. `/config_dump` lists them.

use std::time::Duration;

use crate::limit::{Limit, limits};

/// One fetch, from the look-up of the name to the last byte.
pub const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// The largest set of keys, in bytes. Large issuers have 10 KiB.
pub const MAX_JWKS_BYTES: usize = 256 << 10;

/// What the head of an answer may have, in bytes.
pub const MAX_ANSWER_HEAD: usize = 32 << 10;

/// Addresses of one name that are tried.
pub const MAX_ADDRESSES: usize = 4;

/// Fetches at once.
pub const MAX_FETCHES: usize = 8;

/// Where an answer says nothing of its age: a rotation is noticed within the longer.
pub const REFRESH_FROM: Duration = Duration::from_secs(300);
/// The longest without a word about age.
pub const REFRESH_TO: Duration = Duration::from_secs(1200);

/// An issuer cannot ask for more than one fetch a minute.
pub const MIN_REFRESH: Duration = Duration::from_secs(60);
/// A key that was withdrawn is forgotten within an hour, whatever max-age says.
pub const MAX_REFRESH: Duration = Duration::from_secs(3600);

/// After the first failure; doubled with each further one.
pub const FIRST_RETRY: Duration = Duration::from_secs(1);
/// The longest pause between two tries.
pub const LAST_RETRY: Duration = Duration::from_secs(60);

/// Between two fetches that are made because a token names a key that is not there: whoever sends tokens with invented
/// names causes no more than this.
pub const REFETCH_PAUSE: Duration = Duration::from_secs(10);

/// How long keys hold while their issuer does not answer: longer than an outage, shorter than a stolen key should be of
/// use.
pub const KEYS_END: Duration = Duration::from_secs(24 * 3600);

/// How long a request waits for keys that are being fetched.
pub const KEYS_WAIT: Duration = Duration::from_secs(2);

/// The bounds of this room.
pub fn all() -> Vec<Limit> {
    limits![
        FETCH_TIMEOUT, "milliseconds", "for one fetch of an issuer's keys";
        MAX_JWKS_BYTES, "bytes", "of a set of keys that is fetched";
        MAX_ANSWER_HEAD, "bytes", "of the head of an answer with keys";
        MAX_ADDRESSES, "addresses", "of an issuer's name that are tried";
        MAX_FETCHES, "fetches", "of keys at once";
        REFRESH_FROM, "milliseconds", "at least, until keys of unknown age are fetched again";
        REFRESH_TO, "milliseconds", "at most, until keys of unknown age are fetched again";
        MIN_REFRESH, "milliseconds", "at least between two fetches, whatever max-age says";
        MAX_REFRESH, "milliseconds", "at most between two fetches, whatever max-age says";
        FIRST_RETRY, "milliseconds", "after the first fetch that failed; doubled with each further one";
        LAST_RETRY, "milliseconds", "the longest pause between two tries to fetch keys";
        REFETCH_PAUSE, "milliseconds", "between two fetches for a key that a token names and that is not there";
        KEYS_END, "milliseconds", "keys hold while their issuer does not answer";
        KEYS_WAIT, "milliseconds", "a request waits for keys that are being fetched";
    ]
}
