//! Who listens to connections and requests as they end: `GET /flows`, for `meshctl flows` and `meshctl tap`.
//!
//! Told is what the access log is made of, and it is as private: no query, no header, no body. Headers of requests are told
//! to those who ask for them, most of them by their names alone (`tapped`). Nobody waits for a listener:
//! each has a queue of its own, and what does not fit is lost for it, counted, and told. Where nobody listens it costs one
//! relaxed load.
//!
//! ```text
//! worker ─► Flows::tell ─ filter ─► queue of a listener (QUEUE) ─► admin's task makes a line of it
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use http::HeaderMap;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::access_log::Filter as LogFilter;
use super::{ConnectionRecord, Direction, RequestRecord, TappedHeaders};

/// How many may listen to one agent at once.
pub(super) const MAX_LISTENERS: usize = 4;
/// How many records wait for one listener; about 500 bytes each.
pub(super) const QUEUE: usize = 2048;

/// Those who listen. Cheap to clone; clones share them.
#[derive(Clone, Default)]
pub struct Flows {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    /// How many there are; what the data path looks at.
    count: AtomicUsize,
    /// How many of them want headers; what the data path looks at where a request begins.
    with_headers: AtomicUsize,
    /// Replaced as a whole: the data path reads it without a lock.
    listeners: ArcSwap<Vec<Arc<Listener>>>,
}

struct Listener {
    filter: Filter,
    queue: mpsc::Sender<Ended>,
    /// Records that did not fit since it was last told.
    lost: AtomicU64,
    /// What ended well and was to be sampled.
    ok: AtomicU64,
}

/// What a listener reads. It listens until this is dropped.
pub struct Subscription {
    flows: Flows,
    listener: Arc<Listener>,
    queue: mpsc::Receiver<Ended>,
}

/// Something that ended.
#[derive(Clone, Debug)]
pub struct Ended {
    at: SystemTime,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    Connection(Box<ConnectionRecord>),
    Request(Box<RequestRecord>),
}

/// What a listener is told next.
#[derive(Debug)]
pub enum Told {
    /// This many were lost before what follows.
    Lost(u64),
    /// A record.
    Ended(Ended),
}

/// Nobody more may listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{MAX_LISTENERS} listen already: end one of them")]
pub struct TooMany;

/// Why a query is no filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name}={value} is refused: {expected}; give kind, direction, service, method, path, status, slower, headers, or words of \
     the access log's filter as filter"
)]
pub struct FilterError {
    name: String,
    value: String,
    expected: &'static str,
}

/// What a listener wants to hear. Its text is a query:
///
/// | | |
/// |---|---|
/// | `kind=request` | `connection` or `request`; else both |
/// | `direction=outbound` | or `inbound`; else both |
/// | `service=shop/api` | the Service that was called |
/// | `method=GET` `path=/v1` `status=5xx` | of requests: the method, the beginning of the path, the status or its class |
/// | `slower=100ms` | what took longer |
/// | `filter=failures,namespace=shop` | as for the access log |
/// | `headers=redacted` | of requests that begin from now on their headers, too: names, and harmless values |
#[derive(Clone, Debug, Default)]
pub struct Filter {
    kind: Option<Kind>,
    direction: Option<Direction>,
    service: Option<String>,
    method: Option<String>,
    path: Option<String>,
    status: Option<String>,
    slower: Option<Duration>,
    log: LogFilter,
    /// Whether headers are told.
    headers: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Connection,
    Request,
}

impl Filter {
    /// Reads a query.
    ///
    /// # Errors
    /// A word that is none: nobody is to think that something was left out that was not.
    pub fn of_query(query: &str) -> Result<Self, FilterError> {
        let mut filter = Self::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            filter.add(&name, &value).map_err(|expected| FilterError {
                name: name.into_owned(),
                value: value.into_owned(),
                expected,
            })?;
        }
        Ok(filter)
    }

    fn add(&mut self, name: &str, value: &str) -> Result<(), &'static str> {
        match (name, value) {
            ("kind", "connection") => self.kind = Some(Kind::Connection),
            ("kind", "request") => self.kind = Some(Kind::Request),
            ("kind", _) => return Err("expected connection or request"),
            ("direction", "outbound") => self.direction = Some(Direction::Outbound),
            ("direction", "inbound") => self.direction = Some(Direction::Inbound),
            ("direction", _) => return Err("expected outbound or inbound"),
            ("service", service) => self.service = Some(service.to_string()),
            ("method", method) => self.method = Some(method.to_string()),
            ("path", path) => self.path = Some(path.to_string()),
            ("status", status) => {
                let is_class = matches!(status.as_bytes(), [b'1'..=b'5', b'x', b'x']);
                let is_code = status.len() == 3 && status.bytes().all(|byte| byte.is_ascii_digit());
                if !is_class && !is_code {
                    return Err("expected a status such as 503, or a class such as 5xx");
                }
                self.status = Some(status.to_string());
            }
            ("slower", span) => {
                self.slower = Some(humantime::parse_duration(span).map_err(|_| "expected a time such as 100ms")?);
            }
            ("filter", words) => {
                self.log = words.parse().map_err(|_| "expected words such as failures,namespace=shop")?;
            }
            ("headers", "redacted") => self.headers = true,
            ("headers", _) => return Err("expected redacted: all of them are told to nobody"),
            (_, _) => return Err("there is no such word"),
        }
        Ok(())
    }

    /// Whether it asks for something that requests alone have.
    fn means_requests(&self) -> bool {
        self.kind == Some(Kind::Request) || self.method.is_some() || self.path.is_some() || self.status.is_some()
    }

    fn admits_connection(&self, record: &ConnectionRecord, ok: &AtomicU64) -> bool {
        !self.means_requests()
            && self.admits(record.direction, record.service.as_deref(), record.duration)
            && self.log.admits(&record.into(), ok)
    }

    fn admits_request(&self, record: &RequestRecord, ok: &AtomicU64) -> bool {
        let is_status = |wanted: &str| {
            let status = record.status.map(|status| status.as_u16().to_string()).unwrap_or_default();
            status == wanted || (wanted.ends_with("xx") && wanted.get(..1) == status.get(..1))
        };
        let path = record.path.as_ref().map(http::uri::PathAndQuery::path).unwrap_or_default();
        self.kind != Some(Kind::Connection)
            && self.method.as_deref().is_none_or(|wanted| record.method.as_ref().is_some_and(|method| method == wanted))
            && self.path.as_deref().is_none_or(|wanted| path.starts_with(wanted))
            && self.status.as_deref().is_none_or(is_status)
            && self.admits(record.direction, record.service.as_deref(), record.duration)
            && self.log.admits(&record.into(), ok)
    }

    fn admits(&self, direction: Direction, service: Option<&str>, duration: Duration) -> bool {
        self.direction.is_none_or(|wanted| wanted == direction)
            && self.service.as_deref().is_none_or(|wanted| service == Some(wanted))
            && self.slower.is_none_or(|wanted| duration > wanted)
    }
}

impl Flows {
    /// Tells a connection that has ended.
    pub fn tell(&self, record: &ConnectionRecord) {
        if self.inner.count.load(Ordering::Relaxed) > 0 {
            let admits = |listener: &Listener| listener.filter.admits_connection(record, &listener.ok);
            self.hand_out(admits, |_| What::Connection(Box::new(record.clone())));
        }
    }

    /// Tells a request that is over.
    pub fn tell_request(&self, record: &RequestRecord) {
        if self.inner.count.load(Ordering::Relaxed) > 0 {
            let admits = |listener: &Listener| listener.filter.admits_request(record, &listener.ok);
            self.hand_out(admits, |listener| {
                let headers = record.headers.clone().filter(|_| listener.filter.headers);
                What::Request(Box::new(RequestRecord { headers, ..record.clone() }))
            });
        }
    }

    /// What is kept of a request's headers. Where nobody listens for that: nothing, for one relaxed load.
    pub fn tapped(&self, headers: &HeaderMap) -> Option<Arc<TappedHeaders>> {
        (self.inner.with_headers.load(Ordering::Relaxed) > 0).then(|| Arc::new(TappedHeaders::of(headers)))
    }

    #[cold]
    fn hand_out(&self, admits: impl Fn(&Listener) -> bool, what: impl Fn(&Listener) -> What) {
        for listener in self.inner.listeners.load().iter().filter(|listener| admits(listener)) {
            match listener.queue.try_reserve() {
                Ok(place) => place.send(Ended { at: SystemTime::now(), what: what(listener) }),
                // One that is gone is taken off the list by its subscription.
                Err(_) => {
                    listener.lost.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    /// Begins to listen.
    ///
    /// # Errors
    /// As many as may listen already.
    pub fn listen(&self, filter: Filter) -> Result<Subscription, TooMany> {
        let (sender, queue) = mpsc::channel(QUEUE);
        let listener = Arc::new(Listener { filter, queue: sender, lost: AtomicU64::new(0), ok: AtomicU64::new(0) });
        let before = self.inner.listeners.rcu(|listeners| {
            let mut all = Vec::clone(listeners);
            if all.len() < MAX_LISTENERS {
                all.push(listener.clone());
            }
            all
        });
        if before.len() >= MAX_LISTENERS {
            return Err(TooMany);
        }
        self.inner.count.fetch_add(1, Ordering::Relaxed);
        self.inner.with_headers.fetch_add(listener.filter.headers.into(), Ordering::Relaxed);
        Ok(Subscription { flows: self.clone(), listener, queue })
    }
}

impl Subscription {
    /// What is told next. None never comes: whoever holds this is on the list.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Told>> {
        let lost = self.listener.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            return Poll::Ready(Some(Told::Lost(lost)));
        }
        self.queue.poll_recv(context).map(|ended| ended.map(Told::Ended))
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.flows.inner.listeners.rcu(|listeners| {
            let others = listeners.iter().filter(|other| !Arc::ptr_eq(other, &self.listener));
            others.cloned().collect::<Vec<_>>()
        });
        self.flows.inner.count.fetch_sub(1, Ordering::Relaxed);
        self.flows.inner.with_headers.fetch_sub(self.listener.filter.headers.into(), Ordering::Relaxed);
    }
}

impl Told {
    /// As JSON: an interface, to which fields are added.
    pub fn to_json(&self) -> Value {
        match self {
            Told::Lost(lost) => json!({ "kind": "lost", "lost": lost }),
            Told::Ended(ended) => {
                let at = ended.at.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
                match &ended.what {
                    What::Connection(record) => connection(at, record),
                    What::Request(record) => request(at, record),
                }
            }
        }
    }
}

fn connection(at: f64, record: &ConnectionRecord) -> Value {
    json!({
        "kind": "connection",
        "ended": at,
        "direction": record.direction.name(),
        "transport": record.transport.name(),
        "result": record.result.name(),
        "reason": record.result.reason(),
        "source": {
            "pod": record.source_pod,
            "identity": record.source_identity.as_ref().map(ToString::to_string),
        },
        "client": record.client,
        "dialled": record.dialled,
        "service": record.service,
        "destination": {
            "pod": record.destination_pod,
            "identity": record.destination_identity.as_ref().map(ToString::to_string),
        },
        "server": record.server,
        "traceId": record.trace_id,
        "rule": record.rule,
        "audited": record.audited,
        "bytesSent": record.bytes_sent,
        "bytesReceived": record.bytes_received,
        "durationSeconds": record.duration.as_secs_f64(),
        "rttSeconds": record.network.map(|network| network.rtt.as_secs_f64()),
        "retransmits": record.network.map(|network| network.retransmits),
    })
}

/// The query is left out, as from the access log.
fn request(at: f64, record: &RequestRecord) -> Value {
    let mut told = json!({
        "kind": "request",
        "ended": at,
        "direction": record.direction.name(),
        "result": record.kind(),
        "reason": record.result.reason(),
        "method": record.method.as_ref().map(http::Method::as_str),
        "host": record.host.as_ref().and_then(|host| host.to_str().ok()),
        "path": record.path.as_ref().map(http::uri::PathAndQuery::path),
        "protocol": if record.version == http::Version::HTTP_2 { "2" } else { "1.1" },
        "status": record.status.map(|status| status.as_u16()),
        "grpcStatus": record.grpc_status,
        "route": record.route,
        "policy": record.policy,
        "rule": record.rule,
        "audited": record.audited,
        "principal": record.principal,
        "authorizer": record.authorizer.as_ref().map(|(authorizer, _)| authorizer),
        "retries": record.retries,
        "trafficRule": record.traffic_rule,
        "source": {
            "pod": record.source_pod,
            "identity": record.source_identity.as_ref().map(ToString::to_string),
        },
        "client": record.client,
        "service": record.service,
        "destination": {
            "pod": record.destination_pod,
            "identity": record.destination_identity.as_ref().map(ToString::to_string),
        },
        "server": record.server,
        "traceId": record.trace_id(),
        "bytesSent": record.bytes_sent,
        "bytesReceived": record.bytes_received,
        "durationSeconds": record.duration.as_secs_f64(),
    });
    if let (Some(headers), Some(fields)) = (&record.headers, told.as_object_mut()) {
        fields.insert("headers".into(), headers.to_json());
        fields.insert("headersLeftOut".into(), headers.left_out().into());
    }
    told
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use http::{Method, StatusCode};

    use super::super::{ConnectionResult, Transport};
    use super::*;

    fn request(path: &'static str, status: u16) -> RequestRecord {
        RequestRecord {
            method: Some(Method::GET),
            path: Some(path.parse().unwrap()),
            status: StatusCode::from_u16(status).ok(),
            service: Some("shop/api".into()),
            source_pod: Some("shop/web-0".into()),
            duration: Duration::from_millis(20),
            ..RequestRecord::blank(Direction::Outbound, "10.0.0.1:1".parse().unwrap())
        }
    }

    fn connection(result: ConnectionResult) -> ConnectionRecord {
        ConnectionRecord {
            direction: Direction::Inbound,
            transport: Transport::Tunnel,
            source_pod: Some("shop/web-0".into()),
            source_identity: None,
            client: "10.0.0.1:1".parse().unwrap(),
            dialled: None,
            service: None,
            destination_pod: Some("shop/api-0".into()),
            destination_identity: None,
            server: None,
            trace_id: None,
            rule: None,
            audited: Vec::new(),
            result,
            bytes_sent: 1,
            bytes_received: 2,
            duration: Duration::from_secs(1),
            network: None,
        }
    }

    fn heard(subscription: &mut Subscription) -> Vec<Value> {
        let mut context = Context::from_waker(Waker::noop());
        let mut all = Vec::new();
        while let Poll::Ready(Some(told)) = subscription.poll_next(&mut context) {
            all.push(told.to_json());
        }
        all
    }

    #[test]
    fn who_listens_hears_what_it_asked_for() {
        let denied = ConnectionResult::Denied { reason: "no-allow-rule" };
        let table: [(&str, &[&str]); 13] = [
            ("", &["/v1/items", "/", "connection", "connection"]),
            ("kind=request", &["/v1/items", "/"]),
            ("kind=connection", &["connection", "connection"]),
            ("path=/v1", &["/v1/items"]),
            ("status=5xx", &["/"]),
            ("status=200", &["/v1/items"]),
            ("method=POST", &[]),
            ("service=shop%2Fapi", &["/v1/items", "/"]),
            ("direction=inbound", &["connection", "connection"]),
            ("slower=100ms", &["connection", "connection"]),
            ("filter=result%3Ddenied", &["connection"]),
            ("filter=namespace%3Dother", &[]),
            ("filter=pod%3Dshop%2Fapi-0", &["connection", "connection"]),
        ];
        for (query, expected) in table {
            let flows = Flows::default();
            let mut subscription = flows.listen(Filter::of_query(query).unwrap()).unwrap();
            flows.tell_request(&request("/v1/items?secret=1", 200));
            flows.tell_request(&request("/", 503));
            flows.tell(&connection(ConnectionResult::Ok));
            flows.tell(&connection(denied.clone()));
            let heard = heard(&mut subscription);
            let shown: Vec<&str> = heard.iter().map(|one| one["path"].as_str().unwrap_or("connection")).collect();
            assert_eq!(shown, expected, "{query}");
            assert!(!format!("{heard:?}").contains("secret"), "a query is told");
        }
    }

    #[test]
    fn headers_are_for_who_asks_for_them_and_kept_while_somebody_does() {
        let flows = Flows::default();
        let mut head = HeaderMap::new();
        head.insert("accept", http::HeaderValue::from_static("*/*"));
        head.insert("authorization", http::HeaderValue::from_static("Bearer hunter2"));
        let begun = || RequestRecord { headers: flows.tapped(&head), ..request("/", 200) };
        let mut without = flows.listen(Filter::default()).unwrap();
        assert_eq!(begun().headers, None, "nobody wants them");
        let mut with = flows.listen(Filter::of_query("headers=redacted").unwrap()).unwrap();
        flows.tell_request(&begun());
        let told = heard(&mut with);
        assert_eq!(
            told[0]["headers"],
            json!([{"name": "accept", "value": "*/*"}, {"name": "authorization", "value": "…"}])
        );
        assert_eq!(told[0]["headersLeftOut"], 0);
        assert!(!format!("{told:?}").contains("hunter2"));
        assert_eq!(heard(&mut without)[0].get("headers"), None);
        // It began before anybody asked.
        flows.tell_request(&request("/", 200));
        assert_eq!(heard(&mut with)[0].get("headers"), None);
        drop(with);
        assert_eq!(begun().headers, None, "nobody wants them any more");
    }

    #[test]
    fn words_that_are_none_are_refused() {
        for query in [
            "kind=all",
            "direction=up",
            "status=5",
            "status=9xx",
            "slower=soon",
            "filter=x",
            "namespace=shop",
            "headers=all",
        ] {
            let refused = Filter::of_query(query).unwrap_err().to_string();
            assert!(refused.starts_with(query), "{refused}");
        }
    }

    #[test]
    fn a_listener_that_lags_is_told_what_it_lost_and_holds_nobody_up() {
        let flows = Flows::default();
        let mut slow = flows.listen(Filter::default()).unwrap();
        let mut quick = flows.listen(Filter::default()).unwrap();
        for number in 0..QUEUE + 7 {
            flows.tell_request(&request("/", 200));
            if number % 100 == 0 {
                heard(&mut quick);
            }
        }
        assert!(heard(&mut quick).iter().all(|one| one["kind"] == "request"));
        let late = heard(&mut slow);
        assert_eq!(late[0], json!({"kind": "lost", "lost": 7}));
        assert_eq!(late.len(), QUEUE + 1);
        flows.tell_request(&request("/", 200));
        assert_eq!(heard(&mut slow).len(), 1, "it goes on");
    }

    #[test]
    fn few_may_listen_and_who_leaves_makes_room() {
        let flows = Flows::default();
        let all: Vec<Subscription> = (0..MAX_LISTENERS).map(|_| flows.listen(Filter::default()).unwrap()).collect();
        assert_eq!(flows.listen(Filter::default()).err(), Some(TooMany));
        assert_eq!(flows.inner.count.load(Ordering::Relaxed), MAX_LISTENERS);
        drop(all);
        assert_eq!((flows.inner.count.load(Ordering::Relaxed), flows.inner.listeners.load().len()), (0, 0));
        flows.tell_request(&request("/", 200));
        let mut later = flows.listen(Filter::default()).unwrap();
        assert!(heard(&mut later).is_empty(), "nothing is kept for those who come");
    }
}
