//! What one agent counts, as counts of edges: of its `/metrics`, or, within the agent itself, of what these are written from.

use std::collections::BTreeMap;

use crate::spiffe::SpiffeId;
use crate::telemetry::{Answers, CountedConnections, CountedRequests, Direction, Metrics, Transport, Whose};
use crate::told::{self, Counted, UNKNOWN};

/// How many buckets of one histogram are read.
pub(super) const MOST_BUCKETS: usize = 64;

/// The names that agents count under when there are too many others.
const OVERFLOW: &str = "_overflow";

/// Who calls whom: `<namespace>/<service account>`, a Service's where nobody of it was reached, or one of the words below.
pub type Edge = (Party, Party);

/// One end of an edge.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Party {
    /// `<namespace>/<service account>`
    Account(String),
    /// `<namespace>/<name>` of a Service of which nobody was reached.
    Service(String),
    /// Nobody knows who: outside the mesh, or not captured.
    Unknown,
    /// Too many to tell apart.
    Other,
}

impl Party {
    /// A name that no other party has.
    pub fn id(&self) -> String {
        match self {
            Party::Account(name) => name.clone(),
            Party::Service(name) => format!("service:{name}"),
            Party::Unknown => UNKNOWN.to_string(),
            Party::Other => "other".to_string(),
        }
    }

    fn new(namespace: &str, account: &str, service: &str) -> Self {
        match (namespace, account, service) {
            (OVERFLOW, _, _) => Party::Other,
            ("", "", "") => Party::Unknown,
            ("", "", OVERFLOW) => Party::Other,
            ("", "", service) => Party::Service(service.to_string()),
            (namespace, account, _) => Party::Account(format!("{namespace}/{account}")),
        }
    }

    fn of(identity: Option<&SpiffeId>, service: Option<&str>) -> Self {
        match (identity, service) {
            (Some(identity), _) => Party::Account(format!("{}/{}", identity.namespace(), identity.service_account())),
            (None, Some(service)) => Party::Service(service.to_string()),
            (None, None) => Party::Unknown,
        }
    }

    fn edge(whose: Whose<'_>) -> Edge {
        match whose {
            Whose::Edge { source, destination, service } => (Party::of(source, None), Party::of(destination, service)),
            Whose::Others => (Party::Other, Party::Other),
        }
    }

    fn named(name: &str) -> Self {
        match name.split_once('/') {
            Some((OVERFLOW, _)) => Party::Other,
            Some(_) => Party::Account(name.to_string()),
            None => Party::Unknown,
        }
    }
}

/// What was counted of an edge, at one of its ends.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counts {
    /// Connections and bytes.
    pub connections: Counted,
    /// Connections that failed, or were refused by a rule that is no policy.
    pub failed: u64,
    /// Connections that policy denied.
    pub denied: u64,
    /// Requests.
    pub requests: Requests,
    /// Connections opened, by how they were carried.
    pub transports: BTreeMap<String, u64>,
}

/// Requests of an edge.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Requests {
    /// All.
    pub count: u64,
    /// Those that were not answered as they should.
    pub failed: u64,
    /// Those that policy refused.
    pub denied: u64,
    /// Bytes of bodies, either way.
    pub bytes: u64,
    /// How long they took: how many took no longer than so many microseconds, by these.
    pub within: BTreeMap<u64, u64>,
}

/// What both ends counted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ends {
    /// By agents of callers.
    pub outbound: Counts,
    /// By agents of those called.
    pub inbound: Counts,
}

/// What an agent has counted, by edge.
pub type Reading = BTreeMap<Edge, Ends>;

/// Reads `/metrics`.
pub fn read(answer: &[u8]) -> Reading {
    let mut reading = Reading::new();
    for ((from, to, transport), ends) in told::tallies(answer) {
        let own = reading.entry((Party::named(&from), Party::named(&to))).or_default();
        for (own, counted) in [(&mut own.outbound, ends.outbound), (&mut own.inbound, ends.inbound)] {
            own.connections.add(counted);
            if counted.opened > 0 {
                *own.transports.entry(transport.clone()).or_default() += counted.opened;
            }
        }
    }
    let text = String::from_utf8_lossy(answer);
    text.lines().filter(|line| line.starts_with("nodemesh_")).for_each(|line| count(line, &mut reading));
    reading
}

/// The same of an agent in this process: no text is written and read for it.
pub fn of(metrics: &Metrics) -> Reading {
    let mut reading = Reading::new();
    metrics.each_of_connections(|counted| add_connections(&counted, &mut reading));
    metrics.each_of_requests(|counted| add_requests(&counted, &mut reading));
    reading
}

fn add_connections(counted: &CountedConnections<'_>, reading: &mut Reading) {
    let CountedConnections { whose, direction, transport, opened, open, sent, received, closed } = *counted;
    // Where each request chooses its own way, each is counted as one.
    if transport == Some(Transport::Requests) {
        return;
    }
    let ended = |names: &[&str]| -> u64 {
        closed.iter().filter(|(name, _)| names.contains(name)).map(|(_, count)| count).sum()
    };
    let (denied, failed) = (ended(&["denied"]), ended(&["failed", "refused"]));
    // Of these no way was chosen: that they ended counts.
    let has_way = transport != Some(Transport::Undecided);
    if !has_way && denied + failed == 0 {
        return;
    }
    let ends = reading.entry(Party::edge(whose)).or_default();
    let own = if direction == Direction::Outbound { &mut ends.outbound } else { &mut ends.inbound };
    own.denied += denied;
    own.failed += failed;
    if !has_way {
        return;
    }
    own.connections.add(Counted { opened, open, sent_bytes: sent, received_bytes: received });
    if opened > 0 {
        let name = transport.map_or(OVERFLOW, Transport::name);
        *own.transports.entry(name.to_string()).or_default() += opened;
    }
}

fn add_requests(counted: &CountedRequests<'_>, reading: &mut Reading) {
    let CountedRequests { whose, direction, answers, count, bytes, within } = counted;
    let ends = reading.entry(Party::edge(*whose)).or_default();
    let own = if *direction == Direction::Outbound { &mut ends.outbound } else { &mut ends.inbound };
    let how =
        answers.map_or(Outcome::Fine, |Answers { status, grpc_status, error }| outcome(status, grpc_status, error));
    own.requests.take(how, *count);
    own.requests.bytes += bytes;
    for (bound, count) in within {
        own.requests.take_within(*bound, *count);
    }
}

fn count(line: &str, reading: &mut Reading) {
    const CLOSED: &str = "nodemesh_connections_closed_total";
    let side = |name: &str| match name {
        _ if name.starts_with("nodemesh_http_client_") => Some(true),
        _ if name.starts_with("nodemesh_http_server_") => Some(false),
        _ => None,
    };
    let name = line.split('{').next().unwrap_or_default();
    if name != CLOSED && side(name).is_none() {
        return;
    }
    let Some((name, labels, value)) = told::sample(line) else { return };
    let label = |name: &str| labels.get(name).map(String::as_str).unwrap_or_default();
    let from = Party::new(label("source_namespace"), label("source_service_account"), "");
    let to = Party::new(label("destination_namespace"), label("destination_service_account"), label("server_address"));
    // A float that does not fit becomes the nearest that does.
    let value = value as u64;
    let Some(is_client) = side(name) else {
        // Where each request chooses its own way, each is counted as one.
        if label("transport") == "requests" || value == 0 {
            return;
        }
        let ends = reading.entry((from, to)).or_default();
        let own = if label("direction") == "outbound" { &mut ends.outbound } else { &mut ends.inbound };
        match label("result") {
            "denied" => own.denied += value,
            "failed" | "refused" => own.failed += value,
            _ => {}
        }
        return;
    };
    let ends = reading.entry((from, to)).or_default();
    let requests = if is_client { &mut ends.outbound.requests } else { &mut ends.inbound.requests };
    if name.ends_with("_request_duration_seconds_count") {
        let grpc_status = label("rpc_grpc_status_code").parse().ok();
        let how = match label("error_type") {
            // Of what found no room nobody knows how it went.
            OVERFLOW => Outcome::Fine,
            error => outcome(label("http_response_status_code"), grpc_status, error),
        };
        requests.take(how, value);
    } else if name.ends_with("_request_duration_seconds_bucket") {
        requests.take_within(label("le").parse().unwrap_or(f64::INFINITY), value);
    } else if name.ends_with("_body_size_bytes_total") {
        requests.bytes += value;
    }
}

/// How a request went, for whoever asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Fine,
    Failed,
    Denied,
}

/// What a client asks wrongly is its own affair (4xx); what an agent answers by itself has an error's name.
fn outcome(status: &str, grpc: Option<u16>, error: &str) -> Outcome {
    match (status, grpc, error) {
        ("4xx", _, "") => Outcome::Fine,
        ("4xx", _, _) => Outcome::Denied,
        ("5xx", _, _) => Outcome::Failed,
        (_, _, "client-gone") => Outcome::Fine,
        // UNKNOWN, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE, DATA_LOSS; PERMISSION_DENIED by an agent.
        (_, Some(2 | 4 | 13 | 14 | 15), _) => Outcome::Failed,
        (_, Some(7 | 16), error) if !error.is_empty() => Outcome::Denied,
        (_, _, "") => Outcome::Fine,
        (_, _, _) => Outcome::Failed,
    }
}

impl Counts {
    /// Adds what another agent, or a later round, has counted.
    pub fn add(&mut self, other: &Self) {
        let Self { connections, failed, denied, requests, transports } = other;
        self.connections.add(*connections);
        self.failed = self.failed.saturating_add(*failed);
        self.denied = self.denied.saturating_add(*denied);
        self.requests.add(requests);
        for (transport, count) in transports {
            let own = self.transports.entry(transport.clone()).or_default();
            *own = own.saturating_add(*count);
        }
    }

    /// What was added since. An agent that was started anew counts from nothing: then it is nothing.
    pub fn since(&self, before: &Self) -> Self {
        let (now, then) = (self.connections, before.connections);
        let within = |(bound, count): (&u64, &u64)| {
            (*bound, count.saturating_sub(before.requests.within.get(bound).copied().unwrap_or_default()))
        };
        Self {
            connections: Counted {
                opened: now.opened.saturating_sub(then.opened),
                open: now.open,
                sent_bytes: now.sent_bytes.saturating_sub(then.sent_bytes),
                received_bytes: now.received_bytes.saturating_sub(then.received_bytes),
            },
            failed: self.failed.saturating_sub(before.failed),
            denied: self.denied.saturating_sub(before.denied),
            requests: Requests {
                count: self.requests.count.saturating_sub(before.requests.count),
                failed: self.requests.failed.saturating_sub(before.requests.failed),
                denied: self.requests.denied.saturating_sub(before.requests.denied),
                bytes: self.requests.bytes.saturating_sub(before.requests.bytes),
                within: self.requests.within.iter().map(within).collect(),
            },
            transports: self
                .transports
                .iter()
                .map(|(name, count)| {
                    (name.clone(), count.saturating_sub(before.transports.get(name).copied().unwrap_or_default()))
                })
                .filter(|(_, count)| *count > 0)
                .collect(),
        }
    }
}

impl Requests {
    fn take(&mut self, how: Outcome, count: u64) {
        self.count += count;
        match how {
            Outcome::Fine => {}
            Outcome::Failed => self.failed += count,
            Outcome::Denied => self.denied += count,
        }
    }

    /// So many took no longer than so many seconds.
    fn take_within(&mut self, seconds: f64, count: u64) {
        // A float that does not fit becomes the nearest that does.
        let bound = (seconds * 1e6) as u64;
        if self.within.len() < MOST_BUCKETS || self.within.contains_key(&bound) {
            *self.within.entry(bound).or_default() += count;
        }
    }

    fn add(&mut self, other: &Self) {
        let Self { count, failed, denied, bytes, within } = other;
        self.count = self.count.saturating_add(*count);
        self.failed = self.failed.saturating_add(*failed);
        self.denied = self.denied.saturating_add(*denied);
        self.bytes = self.bytes.saturating_add(*bytes);
        for (bound, count) in within {
            let own = self.within.entry(*bound).or_default();
            *own = own.saturating_add(*count);
        }
    }

    /// The time, in seconds, within which this part of them was answered, as the buckets let it be known. None: there were
    /// none.
    pub fn quantile(&self, part: f64) -> Option<f64> {
        let total = *self.within.values().next_back().filter(|total| **total > 0)? as f64;
        let rank = part * total;
        let (mut lower, mut below) = (0.0, 0.0);
        for (bound, count) in &self.within {
            let (upper, count) = (*bound as f64 / 1e6, *count as f64);
            if count >= rank {
                // Of what is above all bounds nobody knows how far.
                let is_last = *bound == u64::MAX || count <= below;
                return Some(if is_last { lower } else { lower + (upper - lower) * (rank - below) / (count - below) });
            }
            (lower, below) = (upper, count);
        }
        Some(lower)
    }
}

impl Ends {
    /// Adds what another agent has counted.
    pub fn add(&mut self, other: &Self) {
        self.outbound.add(&other.outbound);
        self.inbound.add(&other.inbound);
    }

    /// What was added since.
    pub fn since(&self, before: &Self) -> Self {
        Self { outbound: self.outbound.since(&before.outbound), inbound: self.inbound.since(&before.inbound) }
    }

    /// One account of both: the caller's, where a caller of the mesh has counted; `ever` says whether one has. Refusals are
    /// known where they are made.
    pub fn believed(&self, ever: &Self) -> Counts {
        let of_connections = if ever.outbound.connections.opened > 0 { &self.outbound } else { &self.inbound };
        let of_requests = if ever.outbound.requests.count > 0 { &self.outbound } else { &self.inbound };
        Counts {
            connections: of_connections.connections,
            failed: self.outbound.failed.max(self.inbound.failed),
            denied: self.outbound.denied.max(self.inbound.denied),
            requests: Requests {
                denied: self.outbound.requests.denied.max(self.inbound.requests.denied),
                ..of_requests.requests.clone()
            },
            transports: of_connections.transports.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_a_request_went() {
        let table = [
            ("2xx", None, "", Outcome::Fine),
            ("4xx", None, "", Outcome::Fine),
            ("4xx", None, "no-allow-rule", Outcome::Denied),
            ("5xx", None, "", Outcome::Failed),
            ("5xx", None, "far-side-denied", Outcome::Failed),
            ("2xx", Some(0), "", Outcome::Fine),
            ("2xx", Some(5), "", Outcome::Fine),
            ("2xx", Some(14), "", Outcome::Failed),
            ("2xx", Some(7), "no-allow-rule", Outcome::Denied),
            ("2xx", Some(7), "", Outcome::Fine),
            ("2xx", None, "answer-broke-off", Outcome::Failed),
            ("", None, "client-gone", Outcome::Fine),
        ];
        for (status, grpc, error, expected) in table {
            assert_eq!(outcome(status, grpc, error), expected, "{status} {grpc:?} {error}");
        }
    }

    #[test]
    fn times_of_histograms() {
        let of = |buckets: &[(u64, u64)]| Requests { within: buckets.iter().copied().collect(), ..Requests::default() };
        let spread = of(&[(1_000, 50), (5_000, 90), (10_000, 100), (u64::MAX, 100)]);
        let close = |found: Option<f64>, expected: f64| found.is_some_and(|found| (found - expected).abs() < 1e-9);
        assert!(close(spread.quantile(0.5), 0.001));
        assert!(close(spread.quantile(0.7), 0.003));
        assert!(close(spread.quantile(0.99), 0.0095), "{:?}", spread.quantile(0.99));
        assert!(close(of(&[(1_000, 0), (10_000_000, 0), (u64::MAX, 4)]).quantile(0.99), 10.0), "no further than known");
        assert_eq!(of(&[(1_000, 0), (u64::MAX, 0)]).quantile(0.5), None);
        assert_eq!(Requests::default().quantile(0.5), None);
    }

    /// Whatever an agent has counted: its text says the same as its numbers, what found no room among it.
    #[test]
    fn numbers_say_what_the_text_says() {
        use crate::telemetry::{ConnectionKey, RequestMemo, RequestRecord, RequestResult, Transport};
        let metrics = Metrics::with_capacity(12);
        let id = |name: &str| Some(SpiffeId::new("cluster.local", "shop", name).unwrap());
        let blank = |direction| RequestRecord::blank(direction, "10.0.0.1:1".parse().unwrap());
        let mut open = Vec::new();
        let transports = [Transport::Tunnel, Transport::Plaintext, Transport::Requests, Transport::Undecided];
        for (number, transport) in transports.into_iter().cycle().take(20).enumerate() {
            let direction = if number % 3 == 0 { Direction::Outbound } else { Direction::Inbound };
            let source = if number == 5 { None } else { id(&format!("caller-{}", number / 4)) };
            let key = ConnectionKey { direction, transport, source: source.clone(), destination: id("api") };
            open.push(metrics.opened(&key));
            // Without an end it has failed.
            drop(metrics.opened(&key));
            metrics.opened(&key).progress(number as u64, 1000);
            let statuses =
                [(Some(200), None), (Some(503), None), (Some(403), None), (Some(200), Some(14)), (None, None)];
            let (status, grpc_status) = statuses[number % 5];
            let request = RequestRecord {
                source_identity: source,
                destination_identity: if number % 2 == 0 { id("api") } else { None },
                service: Some("shop/api".into()),
                status: status.map(|status| http::StatusCode::from_u16(status).unwrap()),
                grpc_status,
                result: match number % 5 {
                    2 => RequestResult::Local { reason: "no-allow-rule" },
                    1 => RequestResult::ClientGone,
                    _ => RequestResult::Answered,
                },
                duration: std::time::Duration::from_millis(number as u64 * 40),
                bytes_sent: 3,
                ..blank(direction)
            };
            metrics.request(&request, &RequestMemo::default());
        }
        let counted = of(&metrics);
        assert_eq!(counted, read(metrics.encode().as_bytes()));
        let rest = &counted[&(Party::Other, Party::Other)];
        assert!(rest.inbound.connections.opened > 0 && rest.inbound.requests.count > 0, "{rest:?}");
        assert_eq!(rest.inbound.requests.failed, 0, "of these nobody knows how they went");
        let api = counted.iter().filter(|((_, to), _)| *to == Party::Account("shop/api".into()));
        let denied: u64 = api.map(|(_, ends)| ends.outbound.requests.denied + ends.inbound.requests.denied).sum();
        assert!(denied > 0 && counted.keys().any(|(from, _)| *from == Party::Unknown), "{counted:?}");
    }

    #[test]
    fn edges_of_metrics() {
        let way = "source_namespace=\"shop\",source_service_account=\"web\",destination_namespace=\"shop\",\
                   destination_service_account=\"api\"";
        let nobody = "source_namespace=\"shop\",source_service_account=\"web\",destination_namespace=\"\",\
                      destination_service_account=\"\",server_address=\"shop/cart\"";
        let text = format!(
            "# HELP x y\n\
             nodemesh_connections_opened_total{{direction=\"inbound\",transport=\"tunnel\",{way}}} 3\n\
             nodemesh_connections_closed_total{{direction=\"inbound\",transport=\"tunnel\",{way},result=\"denied\"}} 2\n\
             nodemesh_connections_closed_total{{direction=\"outbound\",transport=\"requests\",{way},result=\"failed\"}} 9\n\
             nodemesh_http_client_request_duration_seconds_count{{{way},http_response_status_code=\"2xx\"}} 10\n\
             nodemesh_http_client_request_duration_seconds_count{{{way},http_response_status_code=\"5xx\"}} 5\n\
             nodemesh_http_client_request_duration_seconds_bucket{{{way},http_response_status_code=\"5xx\",le=\"0.005\"}} 5\n\
             nodemesh_http_client_request_duration_seconds_bucket{{{way},http_response_status_code=\"2xx\",le=\"+Inf\"}} 10\n\
             nodemesh_http_client_response_body_size_bytes_total{{{way}}} 77\n\
             nodemesh_http_client_request_duration_seconds_count{{{nobody},http_response_status_code=\"5xx\"}} 4\n\
             nodemesh_config_age_seconds 1\n"
        );
        let reading = read(text.as_bytes());
        let account = |name: &str| Party::Account(format!("shop/{name}"));
        let ends = &reading[&(account("web"), account("api"))];
        let all = ends.believed(ends);
        assert_eq!((all.connections.opened, all.denied, all.failed), (3, 2, 0));
        assert_eq!(all.transports, BTreeMap::from([("tunnel".to_string(), 3)]));
        assert_eq!((all.requests.count, all.requests.failed, all.requests.bytes), (15, 5, 77));
        assert_eq!(all.requests.within, BTreeMap::from([(5_000, 5), (u64::MAX, 10)]));
        let lost = &reading[&(account("web"), Party::Service("shop/cart".into()))];
        assert_eq!(lost.outbound.requests.failed, 4);
        assert_eq!(reading.len(), 2);
        // An agent that was started anew counts less.
        assert_eq!(Ends::default().since(ends).outbound.requests.count, 0);
    }
}
