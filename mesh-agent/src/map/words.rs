//! What agents tell the controller for its map: `nodemesh.map.v1`, a stream from each agent, by the connection and the token by
//! which it asks for certificates.
//!
//! ```text
//! service Telling { rpc Tell(stream Report) returns (stream Welcome); }
//! ```
//! A controller says who it is before it is told anything, and whether somebody looks at its map; when that changes it says so
//! again. One that never says ([`Welcome::once`] is younger than the rest) is told all the time, and an agent that does not
//! know the word tells all the time: either works with the other, at the old price.
//!
//! Counts are a row of messages, each with its length before it, so that whoever reads them takes no more than it wants.

use std::collections::{BTreeMap, HashMap};

use bytes::{Buf, Bytes};
use prost::Message;

use super::reading::{Counts, Ends, MOST_BUCKETS, Party, Reading, Requests};
use crate::told::Counted;

/// The method that is called.
pub const TELL: &str = "/nodemesh.map.v1.Telling/Tell";

/// Edges that are read of one agent's counts.
pub(super) const MOST_EDGES_TOLD: usize = 4096;

/// What an agent tells now.
#[derive(Clone, PartialEq, Message)]
pub struct Report {
    /// What it has counted since it started, by edge.
    #[prost(bytes = "bytes", tag = "1")]
    pub counts: Bytes,
    /// The last refusals, as `/denials` shows them. None: as before.
    #[prost(bytes = "bytes", optional, tag = "2")]
    pub denials: Option<Bytes>,
    /// Itself, its pods and their certificates, as `/config_dump` shows them. None: as before.
    #[prost(bytes = "bytes", optional, tag = "3")]
    pub world: Option<Bytes>,
    /// That there is somebody: all is as it was told last. Sent to a controller alone that has asked to be told `once`.
    #[prost(bool, tag = "4")]
    pub is_sign_of_life: bool,
    /// Live connections of the edges that are asked for, as `/connections` shows them. None: of none.
    #[prost(bytes = "bytes", optional, tag = "5")]
    pub connections: Option<Bytes>,
}

/// What a controller says first, and again when it wants something else.
#[derive(Clone, PartialEq, Message)]
pub struct Welcome {
    /// Which replica this is.
    #[prost(string, tag = "1")]
    pub replica: String,
    /// Nobody looks: it is to be told now, and then no more than that there is somebody, until it asks again.
    #[prost(bool, tag = "2")]
    pub once: bool,
    /// Somebody looks at these: live connections are to be told too. An older agent does not know the word, and tells none.
    #[prost(message, repeated, tag = "3")]
    pub edges: Vec<Edge>,
}

/// An edge as the page has it: `<namespace>/<service account>`, and `unknown`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Message)]
pub struct Edge {
    /// Who calls.
    #[prost(string, tag = "1")]
    pub from: String,
    /// Who is called.
    #[prost(string, tag = "2")]
    pub to: String,
}

#[derive(Clone, PartialEq, Message)]
struct EdgeWords {
    #[prost(message, optional, tag = "1")]
    from: Option<PartyWords>,
    #[prost(message, optional, tag = "2")]
    to: Option<PartyWords>,
    #[prost(message, optional, tag = "3")]
    outbound: Option<CountWords>,
    #[prost(message, optional, tag = "4")]
    inbound: Option<CountWords>,
}

#[derive(Clone, PartialEq, Message)]
struct PartyWords {
    /// One of the numbers below.
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(string, tag = "2")]
    name: String,
}

const UNKNOWN: u32 = 0;
const ACCOUNT: u32 = 1;
const SERVICE: u32 = 2;
const OTHER: u32 = 3;

#[derive(Clone, PartialEq, Message)]
struct CountWords {
    #[prost(uint64, tag = "1")]
    opened: u64,
    #[prost(uint64, tag = "2")]
    open: u64,
    #[prost(uint64, tag = "3")]
    sent_bytes: u64,
    #[prost(uint64, tag = "4")]
    received_bytes: u64,
    #[prost(uint64, tag = "5")]
    failed: u64,
    #[prost(uint64, tag = "6")]
    denied: u64,
    #[prost(uint64, tag = "7")]
    requests: u64,
    #[prost(uint64, tag = "8")]
    requests_failed: u64,
    #[prost(uint64, tag = "9")]
    requests_denied: u64,
    #[prost(uint64, tag = "10")]
    request_bytes: u64,
    #[prost(btree_map = "uint64, uint64", tag = "11")]
    within: BTreeMap<u64, u64>,
    #[prost(map = "string, uint64", tag = "12")]
    transports: HashMap<String, u64>,
}

/// Counts as they are told.
pub fn written(reading: &Reading) -> Bytes {
    let mut bytes = Vec::new();
    for ((from, to), Ends { outbound, inbound }) in reading {
        let words = EdgeWords {
            from: Some(from.into()),
            to: Some(to.into()),
            outbound: Some(outbound.into()),
            inbound: Some(inbound.into()),
        };
        // A Vec takes everything.
        let _ = words.encode_length_delimited(&mut bytes);
    }
    bytes.into()
}

/// Counts as they were told; nothing more where something is none, and no more than [`MOST_EDGES_TOLD`].
#[cfg(test)]
pub fn read(told: &[u8]) -> Reading {
    read_most(told, MOST_EDGES_TOLD).0
}

/// The first edges of what was told, and how many more there are.
pub fn read_most(mut told: &[u8], most: usize) -> (Reading, u64) {
    let mut reading = Reading::new();
    while told.has_remaining() && reading.len() < most {
        let Ok(EdgeWords { from, to, outbound, inbound }) = EdgeWords::decode_length_delimited(&mut told) else {
            return (reading, 0);
        };
        let (Some(from), Some(to)) = (from, to) else { continue };
        let ends = reading.entry((from.into(), to.into())).or_default();
        ends.outbound.add(&outbound.unwrap_or_default().into());
        ends.inbound.add(&inbound.unwrap_or_default().into());
    }
    let mut more = 0;
    while let Ok(length) = prost::decode_length_delimiter(&mut told)
        && let Some(rest) = told.get(length..)
    {
        (told, more) = (rest, more + 1);
    }
    (reading, more)
}

impl From<&Party> for PartyWords {
    fn from(party: &Party) -> Self {
        let (kind, name) = match party {
            Party::Unknown => (UNKNOWN, String::new()),
            Party::Account(name) => (ACCOUNT, name.clone()),
            Party::Service(name) => (SERVICE, name.clone()),
            Party::Other => (OTHER, String::new()),
        };
        Self { kind, name }
    }
}

impl From<PartyWords> for Party {
    fn from(PartyWords { kind, name }: PartyWords) -> Self {
        match kind {
            ACCOUNT => Party::Account(name),
            SERVICE => Party::Service(name),
            OTHER => Party::Other,
            // Also what a newer agent may say.
            _ => Party::Unknown,
        }
    }
}

impl From<&Counts> for CountWords {
    fn from(counts: &Counts) -> Self {
        let Counts { connections, failed, denied, requests, transports } = counts;
        Self {
            opened: connections.opened,
            open: connections.open,
            sent_bytes: connections.sent_bytes,
            received_bytes: connections.received_bytes,
            failed: *failed,
            denied: *denied,
            requests: requests.count,
            requests_failed: requests.failed,
            requests_denied: requests.denied,
            request_bytes: requests.bytes,
            within: requests.within.clone(),
            transports: transports.iter().map(|(name, count)| (name.clone(), *count)).collect(),
        }
    }
}

impl From<CountWords> for Counts {
    fn from(words: CountWords) -> Self {
        let known = |name: &str| crate::told::TRANSPORTS.contains(&name);
        Self {
            connections: Counted {
                opened: words.opened,
                open: words.open,
                sent_bytes: words.sent_bytes,
                received_bytes: words.received_bytes,
            },
            failed: words.failed,
            denied: words.denied,
            requests: Requests {
                count: words.requests,
                failed: words.requests_failed,
                denied: words.requests_denied,
                bytes: words.request_bytes,
                within: words.within.into_iter().take(MOST_BUCKETS).collect(),
            },
            transports: words.transports.into_iter().filter(|(name, _)| known(name)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(number: u64) -> Counts {
        Counts {
            connections: Counted { opened: number, open: 2, sent_bytes: 3, received_bytes: 4 },
            failed: 5,
            denied: 6,
            requests: Requests {
                count: 7,
                failed: 8,
                denied: 9,
                bytes: 10,
                within: BTreeMap::from([(5000, 7), (u64::MAX, 8)]),
            },
            transports: BTreeMap::from([("tunnel".to_string(), number)]),
        }
    }

    #[test]
    fn counts_arrive_as_they_were_sent() {
        let parties =
            [Party::Unknown, Party::Other, Party::Account("shop/web".into()), Party::Service("shop/api".into())];
        let mut reading = Reading::new();
        for from in &parties {
            for to in &parties {
                let ends = Ends { outbound: counts(1), inbound: counts(100) };
                reading.insert((from.clone(), to.clone()), ends);
            }
        }
        let told = written(&reading);
        assert_eq!(read(&told), reading);
        // Cut anywhere it is what came whole, and no more is read than is wanted.
        for end in 0..told.len() {
            assert!(read(&told[..end]).len() < reading.len(), "{end}");
        }
        let edge = EdgeWords { from: Some(PartyWords::default()), ..EdgeWords::default() };
        assert!(read(&edge.encode_length_delimited_to_vec()).is_empty(), "an edge without an end");
    }

    #[test]
    fn no_more_is_read_than_is_wanted() {
        let mut reading = Reading::new();
        for number in 0..MOST_EDGES_TOLD + 50 {
            reading.insert((Party::Account(format!("shop/{number}")), Party::Unknown), Ends::default());
        }
        assert_eq!(read(&written(&reading)).len(), MOST_EDGES_TOLD);
        let (first, more) = read_most(&written(&reading), 10);
        assert_eq!((first.len(), more), (10, MOST_EDGES_TOLD as u64 + 40));
        assert!(first.iter().eq(reading.iter().take(10)), "the first ones, each time");
        let mut many = counts(1);
        many.requests.within = (0..10_000).map(|bound| (bound, 1)).collect();
        many.transports.insert("\u{1b}[2J".into(), 1);
        let reading = Reading::from([((Party::Unknown, Party::Unknown), Ends { outbound: many, ..Ends::default() })]);
        let read = read(&written(&reading));
        let counts = &read[&(Party::Unknown, Party::Unknown)].outbound;
        assert_eq!((counts.requests.within.len(), counts.transports.len()), (MOST_BUCKETS, 1));
    }
}
