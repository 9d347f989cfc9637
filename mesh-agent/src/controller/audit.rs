//! What was issued and what was refused: a line of the log each, under the target `audit`, and a count.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use tracing::{info, warn};

use super::authorize::{Caller, Grant};
use crate::identity::Signed;

/// Counts certificates by what became of them: `issued`, or why not.
#[derive(Debug, Default)]
pub struct Tally {
    certificates: Mutex<BTreeMap<&'static str, u64>>,
    reviews: Mutex<BTreeMap<&'static str, u64>>,
}

/// Who asked for what, as far as it is known when it is told.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Where the question came from.
    pub peer: SocketAddr,
    /// Who asked.
    pub caller: Option<&'a Caller>,
    /// What for, as it was written; control characters and length are not ours.
    pub identity: Option<&'a str>,
}

/// Longest identity that is written into a line, in characters.
const SHOWN: usize = 256;

impl Tally {
    /// What became of requests for certificates, by word.
    pub fn certificates(&self) -> Vec<(&'static str, u64)> {
        read(&self.certificates)
    }

    /// What the API server was asked about tokens, by its answer; `remembered` was not asked.
    pub fn reviews(&self) -> Vec<(&'static str, u64)> {
        read(&self.reviews)
    }

    /// Counts a review.
    pub fn reviewed(&self, word: &'static str) {
        count(&self.reviews, word);
    }

    /// Tells of a certificate.
    pub fn issued(&self, request: Request<'_>, grant: &Grant, signed: &Signed) {
        count(&self.certificates, "issued");
        let left = signed.not_after.duration_since(SystemTime::now()).unwrap_or_default();
        info!(
            target: "audit",
            outcome = "issued",
            identity = shown(request.identity),
            node = grant.node,
            pod = grant.pod,
            pod_uid = grant.pod_uid,
            caller = caller(request.caller),
            peer = %request.peer,
            serial = signed.serial,
            seconds = left.as_secs(),
            "certificate"
        );
    }

    /// Tells of a refusal.
    pub fn refused(&self, request: Request<'_>, reason: &'static str, why: &str) {
        count(&self.certificates, reason);
        warn!(
            target: "audit",
            outcome = "refused",
            reason,
            identity = shown(request.identity),
            caller = caller(request.caller),
            peer = %request.peer,
            why,
            "certificate"
        );
    }
}

fn caller(caller: Option<&Caller>) -> String {
    caller.map_or_else(|| "-".to_string(), |caller| format!("{}/{}", caller.account.namespace, caller.pod))
}

fn shown(identity: Option<&str>) -> String {
    let plain = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    identity.map_or_else(|| "-".to_string(), |identity| identity.chars().take(SHOWN).map(plain).collect())
}

fn count(counts: &Mutex<BTreeMap<&'static str, u64>>, word: &'static str) {
    *counts.lock().unwrap_or_else(PoisonError::into_inner).entry(word).or_default() += 1;
}

fn read(counts: &Mutex<BTreeMap<&'static str, u64>>) -> Vec<(&'static str, u64)> {
    counts.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|(word, count)| (*word, *count)).collect()
}
