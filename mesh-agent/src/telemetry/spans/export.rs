//! The way to the collector: spans in batches, by OTLP over HTTP.

use std::fmt;
use std::future::Future;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use tokio::sync::mpsc;

use super::Tally;

/// Spans that go out together: some 500 KiB.
pub const MOST_AT_ONCE: usize = 512;
/// How long a span waits for others.
pub const LINGER: Duration = Duration::from_secs(1);
/// How long the collector may take.
pub const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where the collector is: `http://HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collector(String);

impl FromStr for Collector {
    type Err = ();

    /// `http://HOST:PORT`, with a path or without; without, the standard's `/v1/traces`.
    fn from_str(text: &str) -> Result<Self, ()> {
        let uri: http::Uri = text.parse().map_err(drop)?;
        if uri.scheme_str() != Some("http") || uri.host().is_none_or(str::is_empty) || uri.query().is_some() {
            return Err(());
        }
        let base = text.trim_end_matches('/');
        let has_path = uri.path().len() > 1;
        Ok(Self(if has_path { base.to_string() } else { format!("{base}/v1/traces") }))
    }
}

impl fmt::Display for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Sends spans to the collector.
pub struct Exporter {
    spans: mpsc::Receiver<SpanData>,
    tally: Arc<Tally>,
    exporter: SpanExporter,
    collector: Collector,
}

impl Exporter {
    /// An exporter of the agent of a node.
    ///
    /// # Errors
    /// The library takes the collector's address for none.
    pub fn new(
        collector: Collector,
        node: &str,
        spans: mpsc::Receiver<SpanData>,
        tally: Arc<Tally>,
    ) -> Result<Self, opentelemetry_otlp::ExporterBuildError> {
        let builder = SpanExporter::builder().with_http().with_protocol(Protocol::HttpBinary);
        let mut exporter = builder.with_endpoint(collector.to_string()).with_timeout(EXPORT_TIMEOUT).build()?;
        let node = KeyValue::new("k8s.node.name", node.to_string());
        exporter.set_resource(&Resource::builder_empty().with_service_name("nodemesh").with_attribute(node).build());
        Ok(Self { spans, tally, exporter, collector })
    }

    /// Until nobody begins spans any more, or `end`; what waits then goes out.
    pub async fn run(mut self, end: impl Future<Output = ()>) {
        let mut end = std::pin::pin!(end);
        let (mut batch, mut is_over, mut is_closed, mut is_well) = (Vec::new(), false, false, true);
        while !is_over {
            tokio::select! {
                last = self.fill(&mut batch) => is_over = last,
                () = &mut end, if !is_closed => {
                    self.spans.close();
                    is_closed = true;
                    continue;
                }
            }
            if !batch.is_empty() {
                self.export(std::mem::take(&mut batch), &mut is_well).await;
            }
        }
    }

    /// Takes what there is, once there is something and others have had time to come. True when no more will come. What
    /// was taken stays in the batch if this is dropped.
    async fn fill(&mut self, batch: &mut Vec<SpanData>) -> bool {
        if batch.is_empty() && self.spans.recv_many(batch, MOST_AT_ONCE).await == 0 {
            return true;
        }
        let others = async {
            while let Some(room) = MOST_AT_ONCE.checked_sub(batch.len()).filter(|room| *room > 0) {
                if self.spans.recv_many(batch, room).await == 0 {
                    return true;
                }
            }
            false
        };
        tokio::time::timeout(LINGER, others).await.unwrap_or(false)
    }

    async fn export(&self, batch: Vec<SpanData>, is_well: &mut bool) {
        let count = batch.len() as u64;
        let exported = self.exporter.export(batch).await;
        let tally = if exported.is_ok() { &self.tally.exported } else { &self.tally.failed };
        tally.fetch_add(count, Ordering::Relaxed);
        // Said when it begins and when it is over, not for every batch.
        match &exported {
            Ok(()) if !*is_well => tracing::info!(collector = %self.collector, "the collector takes spans again"),
            Err(error) if *is_well => {
                tracing::warn!(collector = %self.collector, %error, "the collector does not take spans; they are lost");
            }
            _ => {}
        }
        *is_well = exported.is_ok();
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::net::SocketAddr;

    use bytes::Bytes;
    use http::{HeaderMap, Request, Response, StatusCode};
    use http_body_util::{BodyExt, Empty};
    use hyper::body::Incoming;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use prost::Message;
    use tokio::net::TcpListener;

    use super::super::super::{Direction, RequestRecord};
    use super::super::{Sampling, Spans};
    use super::*;

    /// Takes what OTLP brings: the path, the content type and the spans; answers with `status`.
    async fn collect(
        listener: TcpListener,
        status: StatusCode,
        seen: mpsc::UnboundedSender<ExportTraceServiceRequest>,
    ) {
        while let Ok((tcp, _)) = listener.accept().await {
            let seen = seen.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let seen = seen.clone();
                async move {
                    assert_eq!(request.uri().path(), "/v1/traces");
                    assert_eq!(request.headers()["content-type"], "application/x-protobuf");
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    seen.send(ExportTraceServiceRequest::decode(body).unwrap()).unwrap();
                    let mut response = Response::new(Empty::<Bytes>::new());
                    *response.status_mut() = status;
                    Ok::<_, Infallible>(response)
                }
            });
            let serve = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tcp), service);
            tokio::spawn(async move { drop(serve.await) });
        }
    }

    #[tokio::test]
    async fn spans_reach_the_collector_and_what_does_not_is_counted() {
        for (status, expected) in [(StatusCode::OK, ("exported", 3)), (StatusCode::BAD_REQUEST, ("failed", 3))] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let collector: Collector = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
            let (send, mut seen) = mpsc::unbounded_channel();
            let collecting = tokio::spawn(collect(listener, status, send));
            let (spans, queue, tally) = Spans::new(Sampling::percent(100.0).unwrap());
            let exporter = Exporter::new(collector, "node-1", queue, tally.clone()).unwrap();
            for _ in 0..3 {
                let span = spans.begin(&mut HeaderMap::new(), || 7);
                let client: SocketAddr = "10.0.0.1:1".parse().unwrap();
                spans.end(&RequestRecord { span, ..RequestRecord::blank(Direction::Inbound, client) });
            }
            // At the end of the process what waits goes out.
            tokio::time::timeout(Duration::from_secs(30), exporter.run(std::future::ready(()))).await.unwrap();
            assert!(tally.numbers().contains(&expected), "{status}: {:?}", tally.numbers());
            let request = seen.recv().await.unwrap();
            let of = &request.resource_spans[0];
            let resource = format!("{:?}", of.resource);
            assert!(resource.contains("node-1") && resource.contains("nodemesh"), "{resource}");
            assert_eq!(of.scope_spans[0].spans.len(), 3);
            assert_eq!(of.scope_spans[0].spans[0].span_id, 7_u64.to_be_bytes());
            collecting.abort();
        }
    }

    #[test]
    fn collectors() {
        for (text, expected) in [
            ("http://otel:4318", Some("http://otel:4318/v1/traces")),
            ("http://otel:4318/", Some("http://otel:4318/v1/traces")),
            ("http://[::1]:4318/otlp/v1/traces", Some("http://[::1]:4318/otlp/v1/traces")),
            ("https://otel:4318", None),
            ("otel:4318", None),
            ("http://", None),
            ("http://otel:4318/?key=x", None),
            ("", None),
        ] {
            let read = text.parse::<Collector>().map(|collector| collector.to_string());
            assert_eq!(read.ok().as_deref(), expected, "{text}");
        }
    }
}
