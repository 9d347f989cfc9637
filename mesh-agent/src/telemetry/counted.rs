//! What is counted of connections and requests, read as numbers: for whoever in this process wants what a scrape says of them,
//! and not its text. The series and their bounds are those of the scrape.

use std::sync::atomic::Ordering;

use super::series::{self, RESULTS};
use super::table::Owner;
use super::{ConnectionKey, Direction, Transport, requests};
use crate::spiffe::SpiffeId;

/// Whose counts these are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose<'a> {
    /// Of one edge.
    Edge {
        /// Who called, where known.
        source: Option<&'a SpiffeId>,
        /// Who was called, where known.
        destination: Option<&'a SpiffeId>,
        /// `<namespace>/<name>` of the Service, where it is told.
        service: Option<&'a str>,
    },
    /// Of all for whom there was no room.
    Others,
}

/// Connections of one set of labels.
#[derive(Clone, Copy, Debug)]
pub struct CountedConnections<'a> {
    /// Whose.
    pub whose: Whose<'a>,
    /// Which journey.
    pub direction: Direction,
    /// How they are carried; None of those for whom there was no room.
    pub transport: Option<Transport>,
    /// Opened ever.
    pub opened: u64,
    /// Open now.
    pub open: u64,
    /// From client to server.
    pub sent: u64,
    /// From server to client.
    pub received: u64,
    /// Ends, by the name of the result.
    pub closed: [(&'static str, u64); RESULTS],
}

/// How requests were answered.
#[derive(Clone, Copy, Debug)]
pub struct Answers {
    /// The class of the status, such as `2xx`.
    pub status: &'static str,
    /// Of gRPC.
    pub grpc_status: Option<u16>,
    /// Why an agent answered itself, or an answer did not come whole; empty where it did.
    pub error: &'static str,
}

/// Requests of one set of labels.
#[derive(Clone, Debug)]
pub struct CountedRequests<'a> {
    /// Whose.
    pub whose: Whose<'a>,
    /// Which journey.
    pub direction: Direction,
    /// How they were answered; None of those for whom there was no room.
    pub answers: Option<Answers>,
    /// All of them.
    pub count: u64,
    /// Bytes of bodies, either way.
    pub bytes: u64,
    /// How many took no longer than so many seconds, rising; the last has all of them.
    pub within: Vec<(f64, u64)>,
}

impl<'a> CountedConnections<'a> {
    pub(super) fn new(owner: &'a Owner<ConnectionKey>, series: &series::Series) -> Self {
        let (whose, direction, transport) = match owner {
            Owner::Key(ConnectionKey { direction, transport, source, destination }) => {
                let whose = Whose::Edge { source: source.as_ref(), destination: destination.as_ref(), service: None };
                (whose, *direction, Some(*transport))
            }
            Owner::Overflow(direction) => (Whose::Others, *direction, None),
        };
        let mut closed = [("", 0); RESULTS];
        closed.iter_mut().zip(series.closed_by_name()).for_each(|(own, one)| *own = one);
        Self {
            whose,
            direction,
            transport,
            opened: series.opened.load(Ordering::Relaxed),
            open: u64::try_from(series.open.load(Ordering::Relaxed)).unwrap_or_default(),
            sent: series.sent.load(Ordering::Relaxed),
            received: series.received.load(Ordering::Relaxed),
            closed,
        }
    }
}

impl<'a> CountedRequests<'a> {
    pub(super) fn new(owner: &'a Owner<requests::Key>, series: &requests::Series) -> Self {
        let (whose, direction, answers) = match owner {
            Owner::Key(key) => {
                let whose = Whose::Edge {
                    source: key.source.as_ref(),
                    destination: key.destination.as_ref(),
                    service: key.service.as_deref(),
                };
                let answers = Answers { status: key.status, grpc_status: key.grpc_status, error: key.error };
                (whose, key.direction, Some(answers))
            }
            Owner::Overflow(direction) => (Whose::Others, *direction, None),
        };
        let (within, bytes) = (series.durations.within(), series.bytes());
        let count = within.last().map_or(0, |(_, count)| *count);
        Self { whose, direction, answers, count, bytes, within }
    }
}
