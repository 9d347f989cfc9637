//! The way to a collector, for one signal.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceResponse;
use opentelemetry_proto::tonic::collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use prost::Message;
use tokio::sync::watch;
use tonic::client::Grpc;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::wire::{self, Connector, Credentials};
use super::{Collector, Counts, Signal, Unusable, record};
use crate::identity::WebSettings;

/// How long a connection to the collector may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the collector may take for a request.
pub const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a gRPC connection is asked whether it lives.
pub const KEEPALIVE: Duration = Duration::from_secs(30);
/// How often a request is sent that the collector cannot take now.
pub const MAX_TRIES: u32 = 4;
/// The pause before the second try; it doubles.
pub const SHORTEST_PAUSE: Duration = Duration::from_millis(500);
/// Also where the collector asks for more.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Of an answer; usually it is empty.
pub const MAX_ANSWER_BYTES: usize = 64 << 10;

/// A request of OTLP.
pub(super) trait Export: Message + Clone + Default + 'static {
    const SIGNAL: Signal;
    /// Of HTTP.
    const PATH: &'static str;
    /// Of gRPC.
    const METHOD: &'static str;
    type Answer: Message + Default + 'static;
    /// Records that the collector did not want.
    fn rejected(answer: &Self::Answer) -> i64;
}

macro_rules! export {
    ($request:ty, $answer:ty, $signal:ident, $path:literal, $method:literal, $rejected:ident) => {
        impl Export for $request {
            const SIGNAL: Signal = Signal::$signal;
            const PATH: &'static str = $path;
            const METHOD: &'static str = $method;
            type Answer = $answer;

            fn rejected(answer: &Self::Answer) -> i64 {
                answer.partial_success.as_ref().map_or(0, |partial| partial.$rejected)
            }
        }
    };
}

export! {
    ExportTraceServiceRequest, ExportTraceServiceResponse, Traces, "v1/traces",
    "/opentelemetry.proto.collector.trace.v1.TraceService/Export", rejected_spans
}
export! {
    record::Request, ExportLogsServiceResponse, Logs, "v1/logs",
    "/opentelemetry.proto.collector.logs.v1.LogsService/Export", rejected_log_records
}
export! {
    ExportMetricsServiceRequest, ExportMetricsServiceResponse, Metrics, "v1/metrics",
    "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export", rejected_data_points
}

/// By what requests go.
pub(super) struct Way {
    carrier: Carrier,
    /// What goes with each, in a file.
    headers: Option<PathBuf>,
}

enum Carrier {
    Http(Box<Client<Connector, Full<Bytes>>>),
    Grpc(Channel),
}

/// Why a request was not taken.
#[derive(Debug)]
pub(super) struct Refused {
    why: String,
    /// Whether the same may be taken later; after how long, where the collector says.
    again: Option<Option<Duration>>,
}

impl Refused {
    fn for_good(why: impl Into<String>) -> Self {
        Self { why: why.into(), again: None }
    }

    fn for_now(why: impl Into<String>, after: Option<Duration>) -> Self {
        Self { why: why.into(), again: Some(after) }
    }
}

impl Way {
    /// To a collector; nothing is connected yet.
    pub fn to(collector: &Collector, credentials: &Credentials) -> Result<Self, Unusable> {
        let Credentials { ca, client, headers } = credentials.clone();
        let tls = collector.is_encrypted.then_some(WebSettings { roots: ca, client, is_http2: collector.is_grpc });
        let connector = Connector::new(tls);
        let carrier = match collector.is_grpc {
            true => Carrier::Grpc(channel(collector, connector)?),
            false => {
                let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(1).build(connector);
                Carrier::Http(Box::new(client))
            }
        };
        Ok(Self { carrier, headers })
    }

    pub async fn send<R: Export>(&self, collector: &Collector, request: &R) -> Result<R::Answer, Refused> {
        let headers = match &self.headers {
            Some(file) => wire::headers(file).await.map_err(Refused::for_good)?,
            None => HeaderMap::new(),
        };
        match &self.carrier {
            Carrier::Http(client) => by_http(client, collector, headers, request).await,
            Carrier::Grpc(channel) => by_grpc(channel.clone(), headers, request).await,
        }
    }
}

fn channel(collector: &Collector, connector: Connector) -> Result<Channel, Unusable> {
    let unusable =
        |error: &dyn std::fmt::Display| Unusable { collector: collector.to_string(), why: error.to_string() };
    let (_, address) = collector.text.split_once("://").unwrap_or_default();
    // TLS is the connector's business, and only the name of the scheme is left for the library.
    let origin = format!("{}://{address}", if collector.is_encrypted { "https" } else { "http" });
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| unusable(&error))?;
    let endpoint = endpoint.origin(origin.parse().map_err(|error| unusable(&error))?).connect_timeout(CONNECT_TIMEOUT);
    let endpoint = endpoint.http2_keep_alive_interval(KEEPALIVE).keep_alive_timeout(EXPORT_TIMEOUT);
    Ok(endpoint.connect_with_connector_lazy(connector))
}

async fn by_http<R: Export>(
    client: &Client<Connector, Full<Bytes>>,
    collector: &Collector,
    headers: HeaderMap,
    request: &R,
) -> Result<R::Answer, Refused> {
    let mut request = Request::post(format!("{}/{}", collector.text, R::PATH))
        .header(header::CONTENT_TYPE, "application/x-protobuf")
        .header(header::USER_AGENT, concat!("nodemesh/", env!("CARGO_PKG_VERSION")))
        .body(Full::new(request.encode_to_vec().into()))
        .map_err(|error| Refused::for_good(error.to_string()))?;
    request.headers_mut().extend(headers);
    let answer = client.request(request).await.map_err(|error| Refused::for_now(chain(&error), None))?;
    let (head, body) = answer.into_parts();
    match head.status {
        status if status.is_success() => {}
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => return Err(Refused::for_now(head.status.to_string(), after(&head.headers))),
        status => return Err(Refused::for_good(status.to_string())),
    }
    let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
    let body = body.map_err(|error| Refused::for_good(error.to_string()))?.to_bytes();
    // The request was taken, whatever the answer says in whichever way.
    Ok(R::Answer::decode(body).unwrap_or_default())
}

/// Retry-After in seconds; as a date it says too little about now.
fn after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

async fn by_grpc<R: Export>(channel: Channel, headers: HeaderMap, request: &R) -> Result<R::Answer, Refused> {
    let mut grpc = Grpc::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES);
    grpc.ready().await.map_err(|error| Refused::for_now(chain(&error), None))?;
    let codec = tonic_prost::ProstCodec::<R, R::Answer>::default();
    let method = PathAndQuery::from_static(R::METHOD);
    let mut request = tonic::Request::new(request.clone());
    *request.metadata_mut() = MetadataMap::from_headers(headers);
    let answer = grpc.unary(request, method, codec).await;
    answer.map(tonic::Response::into_inner).map_err(|status| refused(&status))
}

/// As OTLP has it. RESOURCE_EXHAUSTED is for now only where the collector says until when; that is in details that are
/// read by nobody here, so it is tried again as well: not often, and later each time.
fn refused(status: &Status) -> Refused {
    let why = match status.message() {
        "" => format!("{:?}", status.code()),
        message => format!("{:?}: {message}", status.code()),
    };
    match status.code() {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => Refused::for_now(why, None),
        _ => Refused::for_good(why),
    }
}

/// An error and what it comes from.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Takes the requests of one signal to the collector, and counts what became of them.
pub(super) struct Courier {
    way: Way,
    collector: Collector,
    counts: Arc<Counts>,
    /// [`EXPORT_TIMEOUT`]
    pub(super) timeout: Duration,
    is_well: bool,
}

impl Courier {
    pub fn new(way: Way, collector: Collector, counts: Arc<Counts>) -> Self {
        Self { way, collector, counts, timeout: EXPORT_TIMEOUT, is_well: true }
    }

    /// Counts what was left out.
    pub fn leave_out(&self, records: u64) {
        self.counts.dropped.fetch_add(records, Ordering::Relaxed);
    }

    /// Takes a request of so many records there, several times where that may help and the end has not come. Returns
    /// whether the collector has it.
    pub async fn bring<R: Export>(&mut self, request: &R, records: u64, ended: &mut watch::Receiver<bool>) -> bool {
        let (mut tries, mut pause) = (1, SHORTEST_PAUSE);
        let taken = loop {
            // What was sent and not answered in time may have been taken: it is not sent twice.
            let sending = tokio::time::timeout(self.timeout, self.way.send(&self.collector, request));
            let refused = match sending.await {
                Ok(Ok(answer)) => break Ok(answer),
                Ok(Err(refused)) => refused,
                Err(_) => Refused::for_good(format!("no answer within {} s", self.timeout.as_secs())),
            };
            let Some(after) = refused.again.filter(|_| tries < MAX_TRIES && !*ended.borrow()) else {
                break Err(refused.why);
            };
            let share = 0.5 + fastrand::f64();
            let pausing = after.unwrap_or_else(|| pause.mul_f64(share)).min(LONGEST_PAUSE);
            // The end is a last occasion.
            let _ = tokio::time::timeout(pausing, ended.wait_for(|ended| *ended)).await;
            (tries, pause) = (tries + 1, (pause * 2).min(LONGEST_PAUSE));
        };
        self.tell::<R>(taken, records)
    }

    /// Said when it begins and when it is over, not for every batch.
    fn tell<R: Export>(&mut self, taken: Result<R::Answer, String>, records: u64) -> bool {
        let (collector, signal, was_well) = (&self.collector, R::SIGNAL.name(), self.is_well);
        let add = |count: &std::sync::atomic::AtomicU64, records| count.fetch_add(records, Ordering::Relaxed);
        match taken {
            Ok(answer) => {
                let rejected = u64::try_from(R::rejected(&answer)).unwrap_or_default().min(records);
                add(&self.counts.rejected, rejected);
                add(&self.counts.exported, records - rejected);
                if !was_well {
                    tracing::info!(%collector, signal, "the collector takes telemetry again");
                }
                self.is_well = true;
            }
            Err(error) => {
                add(&self.counts.failed, records);
                if was_well {
                    tracing::warn!(%collector, signal, error, "the collector does not take telemetry; it is lost");
                }
                self.is_well = false;
            }
        }
        self.is_well
    }
}
