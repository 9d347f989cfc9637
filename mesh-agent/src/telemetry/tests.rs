//! Tests of the room as a whole: what a scrape and a log line say.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

use super::logs::{Format, parse_filter, subscriber};
use super::*;
use crate::named::named;

fn identity(service_account: &str) -> Option<SpiffeId> {
    Some(SpiffeId::new("cluster.local", "shop", service_account).unwrap())
}

fn record(result: ConnectionResult) -> ConnectionRecord {
    ConnectionRecord {
        direction: Direction::Inbound,
        transport: Transport::Tunnel,
        source_pod: Some("shop/web-0".into()),
        source_identity: identity("web"),
        client: "10.1.0.5:40000".parse().unwrap(),
        dialled: None,
        service: None,
        destination_pod: Some("shop/db-0".into()),
        destination_identity: identity("db"),
        server: Some("[fd00::7]:5432".parse().unwrap()),
        trace_id: None,
        rule: None,
        audited: Vec::new(),
        result,
        bytes_sent: 100,
        bytes_received: 2000,
        duration: Duration::from_micros(1500),
        network: None,
    }
}

/// The value of the line that has this name and all of these labels.
fn value(scrape: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let mut lines = scrape.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
    let line = lines.find(|line| labels.iter().all(|label| line.contains(label)))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[test]
fn a_connection_is_counted_while_open_and_at_its_end() {
    let metrics = Metrics::new();
    let record = record(ConnectionResult::Ok);
    let open = metrics.opened_as(&record);
    open.progress(60, 500);
    open.progress(60, 700);
    let labels = [
        "direction=\"inbound\"",
        "transport=\"tunnel\"",
        "source_namespace=\"shop\"",
        "source_service_account=\"web\"",
        "destination_namespace=\"shop\"",
        "destination_service_account=\"db\"",
    ];
    let scrape = metrics.encode();
    assert_eq!(value(&scrape, "nodemesh_connections_opened_total", &labels), Some(1.0), "{scrape}");
    assert_eq!(value(&scrape, "nodemesh_connections_open", &labels), Some(1.0));
    assert_eq!(value(&scrape, "nodemesh_sent_bytes_total", &labels), Some(60.0));
    assert_eq!(value(&scrape, "nodemesh_received_bytes_total", &labels), Some(700.0));
    assert_eq!(value(&scrape, "nodemesh_connections_closed_total", &labels), None);

    open.closed(&record);
    let scrape = metrics.encode();
    assert_eq!(value(&scrape, "nodemesh_connections_open", &labels), Some(0.0));
    assert_eq!(value(&scrape, "nodemesh_sent_bytes_total", &labels), Some(100.0));
    assert_eq!(value(&scrape, "nodemesh_received_bytes_total", &labels), Some(2000.0));
    assert_eq!(value(&scrape, "nodemesh_connections_closed_total", &["result=\"ok\""]), Some(1.0));
    assert_eq!(value(&scrape, "nodemesh_connection_duration_seconds_count", &[]), Some(1.0));
}

/// Means of the round trip by edge; who crossed no network has no such series.
#[test]
fn how_the_network_was_is_counted_at_the_end() {
    let metrics = Metrics::new();
    for (millis, retransmits) in [(2, 3), (4, 0)] {
        let network = Some(Network { rtt: Duration::from_millis(millis), retransmits });
        metrics.closed(&ConnectionRecord { network, ..record(ConnectionResult::Ok) });
    }
    metrics.closed(&record(ConnectionResult::Ok));
    let network = Some(Network { rtt: Duration::from_micros(30), retransmits: 1 });
    for (transport, network) in [(Transport::SameNode, None), (Transport::SameNodeKernel, network)] {
        metrics.closed(&ConnectionRecord { transport, network, ..record(ConnectionResult::Ok) });
    }
    let scrape = metrics.encode();
    let edge = ["transport=\"tunnel\"", "source_service_account=\"web\"", "destination_service_account=\"db\""];
    let rows = [("rtt_seconds", 0.006), ("rtt_measurements", 2.0), ("retransmits", 3.0)];
    for (name, expected) in rows {
        let name = format!("nodemesh_tcp_{name}_total");
        assert_eq!(value(&scrape, &name, &edge), Some(expected), "{name}: {scrape}");
        for near in ["transport=\"same-node\"", "transport=\"same-node-kernel\""] {
            assert_eq!(value(&scrape, &name, &[near]), None);
        }
    }
}

#[test]
fn every_result_is_counted_with_its_reason() {
    let metrics = Metrics::new();
    metrics.closed(&record(ConnectionResult::Denied { reason: "no-allow-rule" }));
    metrics.closed(&record(ConnectionResult::Refused { reason: "no-endpoint" }));
    metrics.closed(&record(ConnectionResult::Failed { reason: "connect" }));
    metrics.closed(&record(ConnectionResult::Cut { reason: "policy-changed" }));
    drop(metrics.opened_as(&record(ConnectionResult::Ok)));
    let scrape = metrics.encode();
    let denial = ["reason=\"no-allow-rule\"", "destination_service_account=\"db\"", "direction=\"inbound\""];
    assert_eq!(value(&scrape, "nodemesh_denials_total", &denial), Some(1.0), "{scrape}");
    for (result, reason) in [("refused", "no-endpoint"), ("failed", "connect"), ("cut", "policy-changed")] {
        let labels = [format!("result=\"{result}\""), format!("reason=\"{reason}\"")];
        let labels = [labels[0].as_str(), labels[1].as_str()];
        assert_eq!(value(&scrape, "nodemesh_connection_faults_total", &labels), Some(1.0), "{result}");
    }
    assert_eq!(value(&scrape, "nodemesh_connections_closed_total", &["result=\"denied\""]), Some(1.0));
    assert_eq!(value(&scrape, "nodemesh_connections_closed_total", &["result=\"failed\""]), Some(2.0), "one abandoned");
    assert_eq!(value(&scrape, "nodemesh_connections_open", &["source_service_account=\"web\""]), Some(0.0));
    assert_eq!(value(&scrape, "nodemesh_connections_opened_total", &["source_service_account=\"web\""]), Some(5.0));
}

#[test]
fn what_audit_policies_match_is_counted_and_logged() {
    let metrics = Metrics::new();
    let audited =
        ConnectionRecord { audited: vec!["shop/dry-run".into(), "shop/other".into()], ..record(ConnectionResult::Ok) };
    metrics.closed(&audited);
    let scrape = metrics.encode();
    for policy in ["policy=\"shop/dry-run\"", "policy=\"shop/other\""] {
        assert_eq!(value(&scrape, "nodemesh_audit_matches_total", &[policy]), Some(1.0), "{scrape}");
    }
    let text = logged(Format::Text, "info", |_| AccessLog::default().write(&audited));
    assert!(text.contains("audited=\"shop/dry-run,shop/other\""), "{text}");
}

#[test]
fn label_sets_have_an_end() {
    let metrics = Metrics::with_capacity(3);
    for number in 0..100 {
        let mut record = record(ConnectionResult::Ok);
        record.source_identity = identity(&format!("caller-{number}"));
        metrics.closed(&record);
    }
    let scrape = metrics.encode();
    let opened = scrape.lines().filter(|line| line.starts_with("nodemesh_connections_opened_total{"));
    assert_eq!(opened.count(), 4, "{scrape}");
    let overflow = ["source_namespace=\"_overflow\"", "direction=\"inbound\""];
    assert_eq!(value(&scrape, "nodemesh_connections_opened_total", &overflow), Some(97.0));
    assert_eq!(value(&scrape, "nodemesh_metrics_overflow_total", &[]), Some(97.0));
}

/// As many callers as there are; their requests, connections and denials.
fn crowd(metrics: &Metrics, callers: usize) {
    for number in 0..callers {
        let caller = identity(&format!("caller-{number}"));
        let memo = RequestMemo::default();
        for direction in [Direction::Outbound, Direction::Inbound] {
            let request = RequestRecord {
                source_identity: caller.clone(),
                destination_identity: identity("db"),
                service: Some("shop/db".into()),
                ..RequestRecord::blank(direction, "10.1.0.5:40000".parse().unwrap())
            };
            metrics.request(&request, &memo);
            for result in [ConnectionResult::Ok, ConnectionResult::Denied { reason: "no-allow-rule" }] {
                metrics.closed(&ConnectionRecord { direction, source_identity: caller.clone(), ..record(result) });
            }
        }
    }
}

#[test]
fn a_scrape_has_no_more_series_than_it_may() {
    for istio in [false, true] {
        for series in [1_000, metrics::DEFAULT_SERIES] {
            let metrics = Metrics::with(metrics::Settings { series, istio });
            crowd(&metrics, series / 10);
            let started = std::time::Instant::now();
            let scrape = metrics.encode();
            let lines = scrape.lines().filter(|line| !line.starts_with('#')).count();
            println!("{lines} series, {} bytes, istio {istio}: {:?}", scrape.len(), started.elapsed());
            // Overflow's own, and what is not by connection or request.
            assert!(lines <= series + 250, "{lines} of {series}");
            assert!(lines >= series / 2, "{lines} of {series}: not full");
            assert!(value(&scrape, "nodemesh_metrics_overflow_total", &[]) > Some(0.0));
            assert!(value(&scrape, "nodemesh_http_requests_overflow_total", &[]) > Some(0.0));
            let names: std::collections::HashSet<_> = scrape
                .lines()
                .filter(|line| !line.starts_with('#'))
                .map(|line| line.rsplit_once(' ').unwrap().0)
                .collect();
            assert_eq!(names.len(), lines, "a series is there twice");
        }
    }
}

#[test]
fn series_of_who_left_go_and_come_back_from_zero() {
    let metrics = Metrics::with(metrics::Settings { series: 10_000, istio: true });
    crowd(&metrics, 3);
    let count = |scrape: &str| scrape.lines().filter(|line| line.contains("caller-")).count();
    let before = metrics.encode();
    assert!(count(&before) > 100, "{before}");
    let present = table::Present::default();
    let inner_now = std::time::Instant::now();
    for after in [std::time::Duration::ZERO, table::GRACE] {
        metrics.sweep_at(&present, inner_now + after);
    }
    let after = metrics.encode();
    assert_eq!(count(&after), 0, "{after}");
    assert!(value(&after, "nodemesh_denials_total", &["destination_service_account=\"db\""]) > Some(0.0));
    crowd(&metrics, 1);
    let labels = ["source_service_account=\"caller-0\"", "direction=\"inbound\""];
    assert_eq!(value(&metrics.encode(), "nodemesh_connections_opened_total", &labels), Some(2.0));
}

#[test]
fn a_bucket_shows_the_trace_of_a_sampled_request() {
    let metrics = Metrics::new();
    let (spans, _queue, _) = Spans::new(spans::Sampling::percent(100.0).unwrap());
    let blank = RequestRecord::blank(Direction::Inbound, "10.1.0.5:40000".parse().unwrap());
    let span = spans.begin(&mut http::HeaderMap::new(), || 7);
    for (span, millis) in [(span, 4), (None, 8)] {
        let duration = Duration::from_millis(millis);
        metrics.request(&RequestRecord { span, duration, ..blank.clone() }, &RequestMemo::default());
    }
    let scrape = metrics.encode();
    let exemplars: Vec<_> = scrape.lines().filter(|line| line.contains(" # {")).collect();
    let [line] = exemplars[..] else { panic!("{exemplars:?} in {scrape}") };
    let expected =
        format!("le=\"0.005\"}} 1 # {{trace_id=\"{}\",span_id=\"0000000000000007\"}} 0.004 ", span.unwrap().trace_id());
    assert!(line.contains(&expected), "{line}");
}

#[test]
fn what_other_rooms_know_is_read_at_the_scrape() {
    let metrics = Metrics::new();
    metrics.register_outcomes(Box::new(|| vec![("captured", 7), ("map-full", 1)]));
    metrics.register_certificates(Box::new(|| {
        let certificate = CertificateFacts {
            identity: identity("web").unwrap(),
            expiry: Some(1.75e9),
            left: Some(-2.5),
            issued: Some(1.74e9),
            failures: 3,
        };
        let never = CertificateFacts {
            identity: identity("never").unwrap(),
            expiry: None,
            left: None,
            issued: None,
            failures: 1,
        };
        let root = RootFacts { root: "c0ffee".to_string(), expiry: 2e9, signs: true, peers: 4 };
        (vec![certificate, never], vec![root])
    }));
    metrics.register_config_age(Box::new(|| Some(Duration::from_millis(2500))));
    let scrape = metrics.encode();
    assert_eq!(value(&scrape, "nodemesh_kernel_outcomes_total", &["outcome=\"captured\""]), Some(7.0), "{scrape}");
    let certificate = ["identity=\"spiffe://cluster.local/ns/shop/sa/web\""];
    assert_eq!(value(&scrape, "nodemesh_certificate_expiry_timestamp_seconds", &certificate), Some(1.75e9));
    assert_eq!(value(&scrape, "nodemesh_certificate_expiry_seconds", &certificate), Some(-2.5));
    assert_eq!(value(&scrape, "nodemesh_certificate_issued_timestamp_seconds", &certificate), Some(1.74e9));
    assert_eq!(value(&scrape, "nodemesh_certificate_renewal_failures_total", &certificate), Some(3.0));
    let never = ["identity=\"spiffe://cluster.local/ns/shop/sa/never\""];
    assert_eq!(value(&scrape, "nodemesh_certificate_expiry_seconds", &never), None);
    assert_eq!(value(&scrape, "nodemesh_certificate_renewal_failures_total", &never), Some(1.0));
    let root = ["root=\"c0ffee\""];
    assert_eq!(value(&scrape, "nodemesh_root_expiry_timestamp_seconds", &root), Some(2e9));
    assert_eq!(value(&scrape, "nodemesh_root_peers", &root), Some(4.0));
    assert_eq!(value(&scrape, "nodemesh_config_age_seconds", &[]), Some(2.5));
    assert_eq!(value(&scrape, "nodemesh_build_info", &["version=\""]), Some(1.0));
    assert!(scrape.ends_with("# EOF\n"));
}

fn usage(pod: &str) -> WorkloadUsage {
    WorkloadUsage {
        namespace: "shop".into(),
        pod: pod.into(),
        connections: 3,
        tunnels: 2,
        handshakes: 1,
        buffered_bytes: 4096,
        refused: vec![("connection-budget", 7), ("accept-budget", 0)],
    }
}

#[test]
fn pods_and_tunnels_are_shown_as_long_as_they_are_there() {
    let metrics = Metrics::new();
    let pods = Arc::new(Mutex::new(vec![usage("web-0"), usage("web-1")]));
    let source = pods.clone();
    metrics.register_workloads(Box::new(move || source.lock().unwrap().clone()));
    let establishments = vec![("ok", 5), ("backoff", 1)];
    metrics.register_tunnels(Box::new(move || TunnelNumbers {
        open: 2,
        streams: 9,
        establishments: establishments.clone(),
    }));
    let scrape = metrics.encode();
    let web = ["namespace=\"shop\"", "pod=\"web-0\""];
    for (name, expected) in [
        ("nodemesh_workload_connections", 3.0),
        ("nodemesh_workload_tunnels", 2.0),
        ("nodemesh_workload_handshakes", 1.0),
        ("nodemesh_workload_buffered_bytes", 4096.0),
    ] {
        assert_eq!(value(&scrape, name, &web), Some(expected), "{name}: {scrape}");
    }
    let over = |budget: &str| value(&scrape, "nodemesh_workload_over_budget_total", &[web[1], budget]);
    assert_eq!((over("connection-budget"), over("accept-budget")), (Some(7.0), None));
    assert_eq!(value(&scrape, "nodemesh_tunnels_open", &[]), Some(2.0));
    assert_eq!(value(&scrape, "nodemesh_tunnel_streams_open", &[]), Some(9.0));
    assert_eq!(value(&scrape, "nodemesh_tunnel_establishments_total", &["result=\"backoff\""]), Some(1.0));
    pods.lock().unwrap().remove(0);
    let scrape = metrics.encode();
    assert!(!scrape.contains("web-0") && scrape.contains("web-1"), "{scrape}");
}

#[test]
fn the_access_log_writes_what_its_filter_admits() {
    let denied = ConnectionResult::Denied { reason: "no-allow-rule" };
    let cut = ConnectionResult::Cut { reason: "policy-revoked" };
    for (filter, of_ten_ok, of_denied, of_cut) in [
        ("all", 10, 1, 1),
        ("off", 0, 0, 0),
        ("failures", 0, 1, 1),
        ("result=cut", 0, 0, 1),
        ("result=ok,result=cut", 10, 0, 1),
        ("namespace=shop", 10, 1, 1),
        ("namespace=elsewhere", 0, 0, 0),
        ("namespace=elsewhere, namespace=shop", 10, 1, 1),
        ("pod=shop/db-0", 10, 1, 1),
        ("pod=shop/web-0,failures", 0, 1, 1),
        ("pod=shop/other", 0, 0, 0),
        ("sample=5", 2, 1, 1),
        ("sample=5,failures", 0, 1, 1),
    ] {
        let log = AccessLog::new(filter.parse().unwrap());
        assert_eq!(log.filter().to_string(), filter);
        let lines = |result: &ConnectionResult, times: usize| {
            let record = record(result.clone());
            logged(Format::Text, "info", |_| (0..times).for_each(|_| log.write(&record))).lines().count()
        };
        let written = (lines(&ConnectionResult::Ok, 10), lines(&denied, 1), lines(&cut, 1));
        assert_eq!(written, (of_ten_ok, of_denied, of_cut), "{filter}");
    }
    for wrong in ["", "ok", "result=fine", "result=", "namespace=", "pod=web", "sample=0", "sample=x", "all,failures"] {
        let told = wrong.parse::<access_log::Filter>().unwrap_err().to_string();
        assert!(told.contains("failures,namespace=shop"), "{told}");
    }
}

#[test]
fn every_metric_is_in_the_table_of_the_module() {
    let metrics = Metrics::new();
    metrics.register_outcomes(Box::new(|| vec![("captured", 7)]));
    metrics.register_certificates(Box::new(|| (Vec::new(), Vec::new())));
    metrics.register_config_age(Box::new(|| Some(Duration::ZERO)));
    metrics.register_workloads(Box::new(|| vec![usage("web-0")]));
    metrics.register_tunnels(Box::new(TunnelNumbers::default));
    let documentation: String = include_str!("metrics.rs").lines().take_while(|line| line.starts_with("//!")).collect();
    for line in metrics.encode().lines().filter(|line| line.starts_with("# TYPE ")) {
        let mut words = line.split(' ').skip(2);
        let (name, kind) = (words.next().unwrap(), words.next().unwrap());
        let name = match kind {
            "counter" => format!("`{name}_total` | counter"),
            "info" => format!("`{name}_info` | info"),
            _ => format!("`{name}` | {kind}"),
        };
        assert!(documentation.contains(&name), "{name}");
    }
}

/// A log that a test can read.
#[derive(Clone, Default)]
pub(super) struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Buffer {
    /// What was written.
    pub(super) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Buffer {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

fn logged(format: Format, filter: &str, events: impl FnOnce(&logs::Filter)) -> String {
    let buffer = Buffer::default();
    let (subscriber, filter) = subscriber(format, parse_filter(filter).unwrap(), buffer.clone());
    tracing::subscriber::with_default(subscriber, || events(&filter));
    buffer.text()
}

/// A record in which everything that could come from outside tries to end the line.
fn forging_record() -> ConnectionRecord {
    let evil = "x\"}\n2026-01-01T00:00:00Z  INFO access: connection result=\"ok\"\r\u{1b}[2J\u{85}\u{2028}";
    let mut record = record(ConnectionResult::Denied { reason: "deny-rule" });
    record.rule = Some(evil.into());
    record.audited = vec![evil.into()];
    record.source_pod = Some(evil.into());
    record.service = Some(evil.into());
    record.trace_id = Some(evil.into());
    record
}

#[test]
fn no_value_can_forge_a_line_of_text() {
    let text = logged(Format::Text, "info", |_| AccessLog::default().write(&forging_record()));
    assert_eq!(text.matches('\n').count(), 1, "{text}");
    assert!(text.ends_with('\n') && !text.trim_end().contains(char::is_control), "{text:?}");
    assert!(text.contains("rule=\"x\\\"}\\n2026"), "{text}");
}

#[test]
fn no_value_can_forge_a_line_of_json() {
    let text = logged(Format::Json, "info", |_| AccessLog::default().write(&forging_record()));
    assert_eq!(text.matches('\n').count(), 1, "{text}");
    assert!(!text.trim_end().contains(char::is_control), "{text:?}");
    let line: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(line["result"], "denied");
    assert!(line["rule"].as_str().unwrap().ends_with("\u{85}\u{2028}"), "{line}");
}

#[test]
fn a_message_of_another_room_is_one_line_as_well() {
    for format in [Format::Text, Format::Json] {
        let text = logged(format, "info", |_| tracing::warn!(error = %"a\nb\u{7f}", "c\nd"));
        assert_eq!(text.matches('\n').count(), 1, "{text}");
        assert!(!text.trim_end().contains(char::is_control), "{text:?}");
    }
}

#[test]
fn the_access_log_says_everything_once() {
    let text = logged(Format::Text, "info", |_| AccessLog::default().write(&record(ConnectionResult::Ok)));
    let expected = "INFO access: connection direction=\"inbound\" transport=\"tunnel\" result=\"ok\" \
        source_pod=\"shop/web-0\" source_identity=\"spiffe://cluster.local/ns/shop/sa/web\" client=\"10.1.0.5:40000\" \
        destination_pod=\"shop/db-0\" destination_identity=\"spiffe://cluster.local/ns/shop/sa/db\" \
        server=\"[fd00::7]:5432\" bytes_sent=100 bytes_received=2000 duration_ms=1.5\n";
    assert!(text.ends_with(expected), "{text}");
    let json = logged(Format::Json, "info", |_| AccessLog::default().write(&record(ConnectionResult::Ok)));
    let line: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(line["target"], "access");
    assert_eq!(line["bytes_received"], 2000);
    assert_eq!(line["client"], "10.1.0.5:40000");
    assert!(line.get("reason").is_none(), "{line}");
}

#[test]
fn workloads_are_named_where_somebody_asked() {
    for (filter, is_named) in [
        ("warn", false),
        ("info", false),
        ("info,mesh_agent::hbone=debug", false),
        ("info,names=debug", true),
        ("debug", true),
        ("trace", true),
    ] {
        for format in [Format::Text, Format::Json] {
            let text = logged(format, filter, |_| tracing::warn!(uid = "7f", pod = named("web-0"), "left"));
            assert_eq!(text.contains("web-0"), is_named, "{filter}: {text}");
            assert_eq!(text.contains("pod"), is_named, "{filter}: {text}");
            assert!(text.contains("7f"), "{filter}: {text}");
        }
    }
    let text = logged(Format::Text, "info", |filter| {
        tracing::info!(pod = named("before"), "one");
        filter.set("info,names=debug").unwrap();
        tracing::info!(pod = named("after"), "two");
    });
    assert!(text.contains("after") && !text.contains("before"), "{text}");
}

#[test]
fn the_filter_changes_at_run_time() {
    let text = logged(Format::Text, "info,access=off", |filter| {
        AccessLog::default().write(&record(ConnectionResult::Ok));
        tracing::debug!("not yet");
        assert!(filter.set("mesh_agent=loud").is_err());
        filter.set("debug").unwrap();
        assert_eq!(filter.current(), "debug");
        tracing::debug!("now");
    });
    assert!(text.contains("now") && !text.contains("not yet") && !text.contains("access"), "{text}");
}
