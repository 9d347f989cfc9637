//! The last refusals: who asked whom for what, which rule said no, and why. For people, on the admin address.
//!
//! Refusals that are alike are one entry with a count, so that one caller that tries again and again does not push all
//! others out. What is kept is bounded ([`MOST_DENIALS`]); the access log has every single one.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};

use super::{ConnectionRecord, ConnectionResult, Direction, RequestRecord};
use crate::spiffe::SpiffeId;

/// How many refusals that differ are kept.
pub(super) const MOST_DENIALS: usize = 256;
/// How much of a path is kept, in bytes.
pub(super) const MAX_PATH_BYTES: usize = 256;

/// Refusals that are alike. Its JSON is an interface.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Denial {
    /// What they have in common.
    #[serde(flatten)]
    alike: Alike,
    /// Of the last one.
    method: Option<String>,
    /// Of the last one; without its query, which is never told.
    path: Option<String>,
    /// Unix time.
    first: f64,
    /// Unix time.
    last: f64,
    count: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Alike {
    /// `connection` or `request`
    kind: &'static str,
    direction: &'static str,
    /// `denied` by policy, `refused` by another rule, `cut` because policy changed.
    result: &'static str,
    reason: &'static str,
    /// `namespace/name`; none where no policy had to be named.
    policy: Option<Arc<str>>,
    /// The number of the rule in there, from 0, where requests are judged.
    rule: Option<usize>,
    source_pod: Option<Arc<str>>,
    #[serde(serialize_with = "shown")]
    source_identity: Option<SpiffeId>,
    source_address: IpAddr,
    service: Option<Arc<str>>,
    destination_pod: Option<Arc<str>>,
    #[serde(serialize_with = "shown")]
    destination_identity: Option<SpiffeId>,
    destination_port: Option<u16>,
}

fn shown<S: Serializer>(id: &Option<SpiffeId>, serializer: S) -> Result<S::Ok, S::Error> {
    id.as_ref().map(ToString::to_string).serialize(serializer)
}

/// The last refusals, in the order of their last time.
#[derive(Debug, Default)]
pub struct Denials {
    last: Mutex<VecDeque<Denial>>,
}

impl Denials {
    /// Notes a connection that has ended, if it was refused.
    pub fn connection(&self, record: &ConnectionRecord) {
        let is_one = match record.result {
            ConnectionResult::Denied { .. } | ConnectionResult::Refused { .. } => true,
            // Policy changed. Other cuts are no refusals, and name none.
            ConnectionResult::Cut { reason } => reason == "policy-revoked",
            ConnectionResult::Ok | ConnectionResult::Failed { .. } => false,
        };
        if !is_one {
            return;
        }
        let alike = Alike {
            kind: "connection",
            direction: record.direction.name(),
            result: record.result.name(),
            reason: record.result.reason().unwrap_or_default(),
            policy: record.rule.clone(),
            rule: None,
            source_pod: record.source_pod.clone(),
            source_identity: record.source_identity.clone(),
            source_address: record.client.ip(),
            service: record.service.clone(),
            destination_pod: record.destination_pod.clone(),
            destination_identity: record.destination_identity.clone(),
            destination_port: record.server.or(record.dialled).map(|address| address.port()),
        };
        self.note(alike, None, None);
    }

    /// Notes a request that is over, if this node's policy refused it.
    pub fn request(&self, record: &RequestRecord) {
        // What a client's own agent refuses is told by its status; who judges is the application's node.
        if record.direction == Direction::Outbound || !matches!(record.kind(), "denied" | "refused") {
            return;
        }
        let alike = Alike {
            kind: "request",
            direction: record.direction.name(),
            result: record.kind(),
            reason: record.result.reason().unwrap_or_default(),
            policy: record.policy.clone(),
            rule: record.rule,
            source_pod: record.source_pod.clone(),
            source_identity: record.source_identity.clone(),
            source_address: record.client.ip(),
            service: record.service.clone(),
            destination_pod: record.destination_pod.clone(),
            destination_identity: record.destination_identity.clone(),
            destination_port: record.server.map(|address| address.port()),
        };
        let path = record.path.as_ref().map(|path| start_of(path.path()));
        self.note(alike, record.method.as_ref().map(ToString::to_string), path);
    }

    /// The newest first.
    pub fn recent(&self) -> Vec<Denial> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).iter().rev().cloned().collect()
    }

    fn note(&self, alike: Alike, method: Option<String>, path: Option<String>) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        // A flood is alike: its entry is the last one.
        let earlier = last.iter().rposition(|denial| denial.alike == alike).and_then(|at| last.remove(at));
        let (first, count) = earlier.map_or((now, 0), |denial| (denial.first, denial.count));
        if last.len() >= MOST_DENIALS {
            last.pop_front();
        }
        last.push_back(Denial { alike, method, path, first, last: now, count: count.saturating_add(1) });
    }
}

/// As much of a path as is kept.
fn start_of(path: &str) -> String {
    let mut end = path.len().min(MAX_PATH_BYTES);
    while !path.is_char_boundary(end) {
        end -= 1;
    }
    path.get(..end).unwrap_or_default().to_string()
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::super::{RequestResult, Transport};
    use super::*;

    fn connection(port: u16, result: ConnectionResult) -> ConnectionRecord {
        ConnectionRecord {
            direction: Direction::Inbound,
            transport: Transport::Tunnel,
            source_pod: None,
            source_identity: SpiffeId::new("cluster.local", "shop", "web").ok(),
            client: "10.0.0.1:4711".parse().unwrap(),
            dialled: None,
            service: None,
            destination_pod: Some("shop/api-0".into()),
            destination_identity: None,
            server: Some(([10, 0, 0, 2], port).into()),
            trace_id: None,
            rule: Some("shop/only-cart".into()),
            audited: Vec::new(),
            result,
            bytes_sent: 0,
            bytes_received: 0,
            duration: std::time::Duration::ZERO,
            network: None,
        }
    }

    #[test]
    fn what_is_alike_is_one_entry_and_all_are_bounded() {
        let denials = Denials::default();
        let denied = || ConnectionResult::Denied { reason: "no-allow-rule" };
        denials.connection(&connection(1, denied()));
        for port in 2..=3 {
            for client in 0..5 {
                let record = connection(port, denied());
                denials.connection(&ConnectionRecord { client: ([10, 0, 0, 1], 100 + client).into(), ..record });
            }
        }
        denials.connection(&connection(1, denied()));
        let counts: Vec<u64> = denials.recent().iter().map(|denial| denial.count).collect();
        assert_eq!(counts, [2, 5, 5], "the newest first, one entry for what is alike");
        for port in 0..2000 {
            denials.connection(&connection(port, denied()));
        }
        assert_eq!(denials.recent().len(), MOST_DENIALS);
        assert_eq!(denials.recent()[0].alike.destination_port, Some(1999));
    }

    #[test]
    fn what_is_a_refusal() {
        let table = [
            (ConnectionResult::Ok, 0),
            (ConnectionResult::Failed { reason: "tunnel-lost" }, 0),
            (ConnectionResult::Cut { reason: "drain-window" }, 0),
            (ConnectionResult::Cut { reason: "policy-revoked" }, 1),
            (ConnectionResult::Denied { reason: "no-allow-rule" }, 1),
            (ConnectionResult::Refused { reason: "no-endpoint" }, 1),
        ];
        for (result, expected) in table {
            let denials = Denials::default();
            denials.connection(&connection(80, result.clone()));
            assert_eq!(denials.recent().len(), expected, "{result:?}");
        }
        let local = |status: u16, direction| RequestRecord {
            status: StatusCode::from_u16(status).ok(),
            result: RequestResult::Local { reason: "no-allow-rule" },
            path: Some("/cart?secret=1".parse().unwrap()),
            policy: Some("shop/only-cart".into()),
            rule: Some(2),
            ..RequestRecord::blank(direction, "10.0.0.1:1".parse().unwrap())
        };
        let table = [
            (403, Direction::Inbound, 1),
            (401, Direction::Inbound, 1),
            (503, Direction::Inbound, 0),
            (403, Direction::Outbound, 0),
        ];
        for (status, direction, expected) in table {
            let denials = Denials::default();
            denials.request(&local(status, direction));
            assert_eq!(denials.recent().len(), expected, "{status} {direction:?}");
            let shown = serde_json::to_string(&denials.recent()).unwrap();
            assert!(!shown.contains("secret"), "{shown}");
            assert_eq!(expected == 1, shown.contains("\"rule\":2"), "{shown}");
        }
        assert_eq!(start_of(&"é".repeat(200)).len(), MAX_PATH_BYTES);
    }
}
