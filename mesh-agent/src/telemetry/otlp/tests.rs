use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTracePartialSuccess, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::{Metric, number_data_point};
use prost::Message;
use tokio::net::TcpListener;

use super::super::tests::Buffer;
use super::super::{
    AccessLog, ConnectionRecord, ConnectionResult, Direction, Network, RequestMemo, RequestRecord, RequestResult,
    Transport, metrics,
};
use super::points::Chunks;
use super::starts::Starts;
use super::*;
use crate::spiffe::SpiffeId;

/// What came: the path and the message.
type Seen = mpsc::UnboundedSender<(String, Bytes)>;

/// How a collector answers a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Says {
    Ok,
    /// It took the request, and one of its records not.
    NotAll,
    /// For good.
    Bad,
    /// The first time; then it takes it.
    Later,
    /// Nothing, ever.
    Nothing,
}

async fn collect(listener: TcpListener, is_grpc: bool, says: Says, seen: Seen) {
    let asked = Arc::new(AtomicU64::new(0));
    while let Ok((tcp, _)) = listener.accept().await {
        let (seen, asked) = (seen.clone(), asked.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            let (seen, asked) = (seen.clone(), asked.clone());
            async move {
                let kind = if is_grpc { "application/grpc" } else { "application/x-protobuf" };
                assert_eq!(request.headers()["content-type"], kind);
                let path = request.uri().path().to_string();
                let body = request.into_body().collect().await.unwrap().to_bytes();
                // gRPC: whether it is compressed, and the length.
                let _ = seen.send((path, if is_grpc { body.slice(5..) } else { body }));
                let is_first = asked.fetch_add(1, Ordering::SeqCst) == 0;
                let says = match says {
                    Says::Nothing => std::future::pending().await,
                    Says::Later if !is_first => Says::Ok,
                    says => says,
                };
                Ok::<_, Infallible>(if is_grpc { by_grpc(says) } else { by_http(says) })
            }
        });
        let tcp = TokioIo::new(tcp);
        tokio::spawn(async move {
            if is_grpc {
                let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(tcp, service).await;
            } else {
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(tcp, service).await;
            }
        });
    }
}

fn message(says: Says) -> Vec<u8> {
    let partial = ExportTracePartialSuccess { rejected_spans: 1, error_message: "too old".to_string() };
    let partial_success = (says == Says::NotAll).then_some(partial);
    ExportTraceServiceResponse { partial_success }.encode_to_vec()
}

fn by_http(says: Says) -> Response<BoxBody<Bytes, Infallible>> {
    let mut response = Response::new(match says {
        Says::Ok | Says::NotAll => Full::new(message(says).into()).boxed(),
        _ => Empty::new().boxed(),
    });
    *response.status_mut() = match says {
        Says::Bad => StatusCode::BAD_REQUEST,
        Says::Later => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::OK,
    };
    response
}

fn by_grpc(says: Says) -> Response<BoxBody<Bytes, Infallible>> {
    let code = match says {
        Says::Bad => "3",
        Says::Later => "14",
        _ => "0",
    };
    let message = message(says);
    let mut framed = vec![0];
    framed.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    framed.extend(message);
    let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), code.parse().unwrap())]);
    let frames = [Frame::data(Bytes::from(framed)), Frame::trailers(trailers)];
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(futures_util::stream::iter(frames.map(Ok)))));
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    response
}

async fn collector(is_grpc: bool, says: Says) -> (Collector, mpsc::UnboundedReceiver<(String, Bytes)>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let scheme = if is_grpc { "grpc" } else { "http" };
    let collector = format!("{scheme}://{}", listener.local_addr().unwrap()).parse().unwrap();
    let (send, seen) = mpsc::unbounded_channel();
    tokio::spawn(collect(listener, is_grpc, says, send));
    (collector, seen)
}

fn telling(collector: Collector, signals: &str) -> (Telling, Metrics) {
    let metrics = Metrics::new();
    let settings = Settings {
        collector,
        credentials: Credentials::default(),
        signals: signals.parse().unwrap(),
        interval: Duration::from_secs(3600),
        sampling: Sampling::percent(100.0).unwrap(),
    };
    (Telling::new(settings, "node-1", SystemTime::now(), &metrics).unwrap(), metrics)
}

pub(super) fn counted(metrics: &Metrics, signal: &str, result: &str) -> u64 {
    let start = format!("nodemesh_otlp_records_total{{signal=\"{signal}\",result=\"{result}\"}} ");
    metrics.encode().lines().find_map(|line| line.strip_prefix(&start)).unwrap().parse().unwrap()
}

fn request(span: Option<super::super::Span>) -> RequestRecord {
    RequestRecord { span, ..RequestRecord::blank(Direction::Inbound, SocketAddr::from(([10, 0, 0, 1], 1))) }
}

/// At the end what waits goes out.
async fn ends(exporter: Exporter) {
    tokio::time::timeout(Duration::from_secs(30), exporter.run(std::future::ready(()))).await.unwrap();
}

#[tokio::test]
async fn spans_reach_the_collector_and_what_does_not_is_counted() {
    for is_grpc in [false, true] {
        for (says, requests, expected) in [
            (Says::Ok, 1, [3, 0, 0, 0]),
            (Says::NotAll, 1, [2, 0, 1, 0]),
            (Says::Bad, 1, [0, 3, 0, 0]),
            // At the end nothing is tried again.
            (Says::Later, 1, [0, 3, 0, 0]),
        ] {
            let (collector, mut seen) = collector(is_grpc, says).await;
            let (Telling { spans, exporter, .. }, metrics) = telling(collector, "traces");
            for _ in 0..3 {
                spans.end(&request(spans.begin(&mut HeaderMap::new(), || 7)));
            }
            ends(exporter).await;
            let numbers = ["exported", "failed", "rejected", "dropped"].map(|of| counted(&metrics, "traces", of));
            assert_eq!(numbers, expected, "grpc {is_grpc}, {says:?}");
            let (path, message) = seen.recv().await.unwrap();
            let service = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
            assert_eq!(path, if is_grpc { service } else { "/v1/traces" });
            let message = ExportTraceServiceRequest::decode(message).unwrap();
            let of = &message.resource_spans[0];
            let resource = format!("{:?}", of.resource);
            assert!(resource.contains("node-1") && resource.contains("nodemesh"), "{resource}");
            assert_eq!(of.scope_spans[0].spans.len(), 3);
            assert_eq!(of.scope_spans[0].spans[0].span_id, 7_u64.to_be_bytes());
            assert_eq!(1 + seen.len(), requests, "grpc {is_grpc}, {says:?}");
        }
    }
}

/// A collector that cannot take it now has it a moment later, once; one that does not answer has it not a second time.
#[tokio::test]
async fn what_cannot_be_taken_now_is_tried_again() {
    for (is_grpc, says, requests, result) in [
        (false, Says::Later, 2, "exported"),
        (true, Says::Later, 2, "exported"),
        (false, Says::Nothing, 1, "failed"),
        (true, Says::Nothing, 1, "failed"),
    ] {
        let (collector, mut seen) = collector(is_grpc, says).await;
        let (Telling { spans, mut exporter, .. }, metrics) = telling(collector, "traces");
        if says == Says::Nothing {
            exporter.spans.as_mut().unwrap().1.timeout = SHORTEST_PAUSE;
        }
        spans.end(&request(spans.begin(&mut HeaderMap::new(), || 7)));
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let running = tokio::spawn(exporter.run(async { drop(ended.await) }));
        let begun = tokio::time::Instant::now();
        while counted(&metrics, "traces", result) == 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert!(begun.elapsed() < 3 * EXPORT_TIMEOUT, "grpc {is_grpc}, {says:?}");
        }
        for number in 0..requests {
            assert!(seen.recv().await.is_some(), "grpc {is_grpc}, {says:?}: {number} of {requests}");
        }
        assert!(seen.try_recv().is_err(), "grpc {is_grpc}, {says:?}: sent again");
        drop(end);
        running.await.unwrap();
    }
}

#[tokio::test]
async fn lines_reach_the_collector_as_the_filter_says() {
    for is_grpc in [false, true] {
        let (collector, mut seen) = collector(is_grpc, Says::Ok).await;
        let (Telling { spans, lines, exporter }, metrics) = telling(collector, "traces,logs");
        let log = AccessLog::telling("result=denied".parse().unwrap(), lines);
        let span = spans.begin(&mut HeaderMap::new(), || 7);
        let denied = RequestResult::Local { reason: "no-allow-rule" };
        for (result, status) in [(RequestResult::Answered, StatusCode::OK), (denied, StatusCode::FORBIDDEN)] {
            log.write_request(&RequestRecord { result, status: Some(status), ..request(span) });
        }
        ends(exporter).await;
        assert_eq!(counted(&metrics, "logs", "exported"), 1);
        let (path, message) = seen.recv().await.unwrap();
        let service = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";
        assert_eq!(path, if is_grpc { service } else { "/v1/logs" });
        let message = ExportLogsServiceRequest::decode(message).unwrap();
        let record = &message.resource_logs[0].scope_logs[0].log_records[0];
        assert_eq!(
            (record.event_name.as_str(), record.span_id.as_slice()),
            ("nodemesh.request", &7_u64.to_be_bytes()[..])
        );
        assert_eq!(record.trace_id.len(), 16);
        let attributes = format!("{:?}", record.attributes);
        assert!(attributes.contains("no-allow-rule") && attributes.contains("403"), "{attributes}");
    }
}

#[test]
fn lines_that_nobody_takes_are_counted() {
    let (lines, _queue, counts) = Lines::new();
    let log = AccessLog::telling(Default::default(), Some(lines));
    (0..COLLECTOR_LINES + 3).for_each(|_| log.write_request(&request(None)));
    assert_eq!(counts.numbers()[3], ("dropped", 3));
}

fn full_request() -> RequestRecord {
    let identity = |name: &str| Some(SpiffeId::new("cluster.local", "shop", name).unwrap());
    RequestRecord {
        source_pod: Some("shop/client-0".into()),
        source_identity: identity("client"),
        service: Some("shop/web".into()),
        destination_pod: Some("shop/web-0".into()),
        destination_identity: identity("web"),
        server: Some(SocketAddr::from(([10, 0, 0, 2], 80))),
        method: Some(Method::GET),
        host: Some(HeaderValue::from_static("web.shop")),
        path: Some("/a?secret".parse().unwrap()),
        route: Some("shop/r".into()),
        status: Some(StatusCode::FORBIDDEN),
        grpc_status: Some(7),
        result: RequestResult::Local { reason: "no-allow-rule" },
        policy: Some("shop/p".into()),
        rule: Some(1),
        audited: vec!["shop/a".into(), "shop/b".into()],
        principal: Some("issuer/subject".into()),
        authorizer: Some(("shop/opa".into(), "denied")),
        retries: 2,
        traffic_rule: Some("slow".into()),
        duration: Duration::from_micros(1500),
        traceparent: Some(HeaderValue::from_static("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")),
        ..request(None)
    }
}

fn full_connection() -> ConnectionRecord {
    let RequestRecord {
        source_pod,
        source_identity,
        client,
        service,
        destination_pod,
        destination_identity,
        server,
        ..
    } = full_request();
    ConnectionRecord {
        direction: Direction::Outbound,
        transport: Transport::Tunnel,
        source_pod,
        source_identity,
        client,
        dialled: server,
        service,
        destination_pod,
        destination_identity,
        server,
        trace_id: Some("4bf92f3577b34da6a3ce929d0e0e4736".into()),
        rule: Some("shop/p".into()),
        audited: vec!["shop/a".into()],
        result: ConnectionResult::Denied { reason: "no-allow-rule" },
        bytes_sent: 1,
        bytes_received: 2,
        duration: Duration::from_micros(1500),
        network: Some(Network { rtt: Duration::from_micros(250), retransmits: 3 }),
    }
}

/// Every field of the log's line is an attribute by the same name, and of the same text.
#[test]
fn a_line_says_the_same_to_a_collector_as_in_the_log() {
    use tracing_subscriber::layer::SubscriberExt as _;
    let logged = Buffer::default();
    let layer = tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(logged.clone());
    let (lines, mut queue, _) = Lines::new();
    let log = AccessLog::telling(Default::default(), Some(lines));
    tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
        log.write_request(&full_request());
        log.write(&full_connection());
    });
    for line in logged.text().lines() {
        let line: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line).unwrap();
        let record = LogRecord::decode(queue.try_recv().unwrap()).unwrap();
        assert_eq!(record.trace_id.len(), 16);
        let general = ["timestamp", "level", "message", "target"];
        let in_log: BTreeSet<_> = line
            .iter()
            .filter(|(name, _)| !general.contains(&name.as_str()))
            .map(|(name, value)| format!("{name}={}", value.as_str().map_or_else(|| value.to_string(), str::to_string)))
            .collect();
        let told: BTreeSet<_> = record.attributes.iter().map(|of| format!("{}={}", of.key, shown(of))).collect();
        assert_eq!(told, in_log);
        assert!(told.len() > 15 && !told.iter().any(|of| of.contains("secret")), "{told:?}");
    }
}

fn shown(of: &KeyValue) -> String {
    match of.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::DoubleValue(number)) => number.to_string(),
        other => panic!("{other:?}"),
    }
}

fn all_metrics(scrape: &str, most: usize) -> (Vec<Metric>, Vec<usize>) {
    let mut starts = Starts::new(1);
    starts.begin(9);
    let mut chunks = Chunks::new(scrape, 9, &mut starts);
    let (mut all, mut sizes) = (Vec::new(), Vec::new());
    while let Some((metrics, points)) = chunks.next(most) {
        all.extend(metrics);
        sizes.push(points);
    }
    (all, sizes)
}

#[test]
fn a_scrape_becomes_points() {
    let scrape = "# HELP x_bytes Bytes.\n# TYPE x_bytes counter\nx_bytes_total{a=\"q\\\"\\n\\\\\",b=\"\"} 7\nx_bytes_total 8\n\
                  # HELP y How much.\n# TYPE y gauge\ny{le=\"odd\"} -2.5\n\
                  # HELP z_seconds Times.\n# TYPE z_seconds histogram\n\
                  z_seconds_bucket{a=\"1\",le=\"0.5\"} 2 # {trace_id=\"4bf92f3577b34da6a3ce929d0e0e4736\",\
                  span_id=\"00f067aa0ba902b7\"} 0.25 1700000000.5\n\
                  z_seconds_bucket{a=\"1\",le=\"+Inf\"} 5\nz_seconds_count{a=\"1\"} 5\nz_seconds_sum{a=\"1\"} 9.5\n\
                  z_seconds_sum{a=\"2\"} 1\nz_seconds_count{a=\"2\"} 1\nz_seconds_bucket{a=\"2\",le=\"0.5\"} 0\n\
                  z_seconds_bucket{a=\"2\",le=\"+Inf\"} 1\n\
                  # HELP build The agent.\n# TYPE build info\nbuild_info{version=\"1\"} 1\n# EOF\n";
    for most in [1, 2, 100] {
        let (all, sizes) = all_metrics(scrape, most);
        assert_eq!(sizes.iter().sum::<usize>(), 6, "{sizes:?}");
        assert!(sizes.iter().all(|size| *size <= most), "{sizes:?} of {most}");
        let names: BTreeSet<_> = all.iter().map(|metric| (metric.name.as_str(), metric.unit.as_str())).collect();
        assert_eq!(names, [("x_bytes", "By"), ("y", ""), ("z_seconds", "s"), ("build_info", "")].into());
        let mut shown = Vec::new();
        for metric in &all {
            match metric.data.as_ref().unwrap() {
                Data::Sum(sum) => {
                    assert!(sum.is_monotonic && sum.aggregation_temporality == 2);
                    assert!(sum.data_points.iter().all(|point| point.start_time_unix_nano == 1));
                    shown.extend(
                        sum.data_points.iter().map(|point| format!("{} {:?}", named(&point.attributes), point.value)),
                    );
                }
                Data::Gauge(gauge) => {
                    shown.extend(
                        gauge.data_points.iter().map(|point| format!("{} {:?}", named(&point.attributes), point.value)),
                    );
                }
                Data::Histogram(histogram) => shown.extend(histogram.data_points.iter().map(|point| {
                    let of = named(&point.attributes);
                    let exemplars: Vec<_> =
                        point.exemplars.iter().map(|of| (of.trace_id.len(), of.time_unix_nano)).collect();
                    let (count, sum, counts, bounds) =
                        (point.count, point.sum, &point.bucket_counts, &point.explicit_bounds);
                    format!("{of} {count} {sum:?} {counts:?} {bounds:?} {exemplars:?}")
                })),
                other => panic!("{other:?}"),
            }
        }
        let expected = [
            "a=q\"\n\\ Some(AsInt(7))",
            " Some(AsInt(8))",
            "le=odd Some(AsDouble(-2.5))",
            "a=1 5 Some(9.5) [2, 3] [0.5] [(16, 1700000000500000000)]",
            "a=2 1 Some(1.0) [0, 1] [0.5] []",
            "version=1 Some(AsInt(1))",
        ];
        assert_eq!(shown, expected, "{most} at once");
    }
}

fn named(attributes: &[KeyValue]) -> String {
    attributes.iter().map(|of| format!("{}={}", of.key, shown(of))).collect::<Vec<_>>().join(",")
}

/// What a collector is told of a full table is all that a scrape has, in requests that it takes.
#[tokio::test]
async fn metrics_reach_the_collector_whole_and_in_bounds() {
    for is_grpc in [false, true] {
        let (collector, mut seen) = collector(is_grpc, Says::Ok).await;
        let (Telling { exporter, .. }, metrics) = telling(collector, "metrics");
        let name = "n".repeat(60);
        for number in 0..3000 {
            let route = Some(format!("{name}/{number}").into());
            metrics.request(&RequestRecord { route, ..full_request() }, &RequestMemo::default());
        }
        let scrape = metrics.encode();
        let lines = |part: &str| scrape.lines().filter(|line| !line.starts_with('#') && line.contains(part)).count();
        let histogram_parts = lines("_bucket{") + lines("_sum{");
        let expected = lines("") - histogram_parts;
        ends(exporter).await;
        let (mut points, mut requests) = (0, 0);
        while let Ok((path, message)) = seen.try_recv() {
            let service = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export";
            assert_eq!(path, if is_grpc { service } else { "/v1/metrics" });
            assert!(message.len() < 4 << 20, "{} bytes", message.len());
            let message = ExportMetricsServiceRequest::decode(message).unwrap();
            let metrics = message.resource_metrics.iter().flat_map(|of| &of.scope_metrics).flat_map(|of| &of.metrics);
            points += metrics.map(points_of).sum::<usize>();
            requests += 1;
        }
        assert!(requests > 1, "{requests} requests");
        assert_eq!(points, expected, "of {} lines", lines(""));
        assert_eq!(counted(&metrics, "metrics", "exported"), points as u64);
    }
}

fn points_of(metric: &Metric) -> usize {
    match metric.data.as_ref().unwrap() {
        Data::Sum(sum) => sum.data_points.len(),
        Data::Gauge(gauge) => gauge.data_points.len(),
        Data::Histogram(histogram) => histogram.data_points.len(),
        other => panic!("{other:?}"),
    }
}

/// What it costs to make points of the most that a scrape has: by hand, in a release build.
#[test]
fn a_full_scrape_is_read_whole() {
    let metrics = Metrics::with(metrics::Settings { series: metrics::DEFAULT_SERIES, istio: false });
    for number in 0..3000 {
        let route = Some(format!("shop/{number}").into());
        metrics.request(&RequestRecord { route, ..full_request() }, &RequestMemo::default());
    }
    let scrape = metrics.encode();
    let begun = std::time::Instant::now();
    let (all, sizes) = all_metrics(&scrape, MOST_POINTS);
    println!(
        "{} bytes, {} points in {} requests: {:?}",
        scrape.len(),
        sizes.iter().sum::<usize>(),
        sizes.len(),
        begun.elapsed()
    );
    let requests = |metric: &&Metric| metric.name == "nodemesh_http_server_request_duration_seconds";
    let told: u64 = all
        .iter()
        .filter(requests)
        .flat_map(|metric| match &metric.data {
            Some(Data::Histogram(histogram)) => histogram.data_points.iter().map(|point| point.count).collect(),
            _ => Vec::new(),
        })
        .sum();
    assert_eq!(told, 3000);
    let ready = |metric: &&Metric| matches!(&metric.data, Some(Data::Gauge(gauge)) if gauge.data_points.iter().any(|of| of.value == Some(number_data_point::Value::AsInt(1))));
    assert!(all.iter().any(|metric| ready(&metric)), "no build info");
}

#[test]
fn collectors_and_signals() {
    for (text, expected) in [
        ("http://otel:4318", Some("http://otel:4318")),
        ("http://otel:4318/", Some("http://otel:4318")),
        ("http://[::1]:9090/api/v1/otlp/", Some("http://[::1]:9090/api/v1/otlp")),
        ("grpc://otel:4317", Some("grpc://otel:4317")),
        ("grpc://otel", None),
        ("grpc://otel:4317/path", None),
        ("http://user:secret@otel:4318", None),
        ("https://otel", Some("https://otel")),
        ("https://otel:4318/otlp/", Some("https://otel:4318/otlp")),
        ("grpcs://otel:4317", Some("grpcs://otel:4317")),
        ("grpcs://otel", None),
        ("tls://otel:4318", None),
        ("otel:4318", None),
        ("http://", None),
        ("http://otel:4318/?key=x", None),
        ("", None),
    ] {
        let read = text.parse::<Collector>().map(|collector| collector.to_string());
        assert_eq!(read.ok().as_deref(), expected, "{text}");
    }
    for (text, expected) in [
        ("traces", Some("traces")),
        ("metrics, traces", Some("traces,metrics")),
        ("logs,logs", Some("logs")),
        ("", None),
        ("all", None),
        ("traces,", None),
    ] {
        assert_eq!(text.parse::<Signals>().ok().map(|signals| signals.to_string()).as_deref(), expected, "{text}");
    }
}
