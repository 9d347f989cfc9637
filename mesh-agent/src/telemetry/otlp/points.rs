//! What a scrape has, as metrics of OTLP: cumulative, with the names that Prometheus makes the scrape's of again.
//!
//! Read from the text of a scrape: so both have the same series and the same bounds, and no table is locked twice. A label
//! without a value is left out, as Prometheus has it.

use std::time::{Duration, SystemTime};

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Exemplar, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics,
    ScopeMetrics, Sum, exemplar, number_data_point,
};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use super::super::Metrics;
use super::courier::Courier;
use super::starts::Starts;
use super::{About, nanos, text};

/// Points that go out together, of half a KiB to a KiB each.
pub const MOST_POINTS: usize = 2000;

/// Until the end, and once then. The first time is by chance, so that agents that began together do not all tell at once.
pub(super) async fn run(
    metrics: Metrics,
    interval: Duration,
    mut courier: Courier,
    mut ended: watch::Receiver<bool>,
    about: &About,
) {
    let first = Instant::now() + interval.mul_f64(fastrand::f64());
    let mut ticks = tokio::time::interval_at(first, interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut starts, mut end, mut is_over) = (Starts::new(nanos(about.started)), ended.clone(), false);
    while !is_over {
        is_over = tokio::select! {
            _ = ticks.tick() => false,
            _ = end.wait_for(|ended| *ended) => true,
        };
        let (metrics, at) = (metrics.clone(), SystemTime::now());
        let Ok(scrape) = tokio::task::spawn_blocking(move || metrics.encode()).await else { return };
        starts.begin(nanos(at));
        let mut chunks = Chunks::new(&scrape, nanos(at), &mut starts);
        let mut is_taken = true;
        while let Some((metrics, points)) = chunks.next(MOST_POINTS) {
            // Where one was not taken the rest would not be: the next round has all of it.
            if is_taken {
                is_taken = courier.bring(&about.metrics(metrics), points as u64, &mut ended).await;
            } else {
                courier.leave_out(points as u64);
            }
        }
        starts.end();
    }
}

impl About {
    fn metrics(&self, metrics: Vec<Metric>) -> ExportMetricsServiceRequest {
        let scope_metrics = vec![ScopeMetrics { scope: Some(self.scope.clone()), metrics, ..ScopeMetrics::default() }];
        let resource = Some(self.resource.clone());
        ExportMetricsServiceRequest {
            resource_metrics: vec![ResourceMetrics { resource, scope_metrics, ..ResourceMetrics::default() }],
        }
    }
}

/// The names and values of a line's labels.
type Labels<'t> = Vec<(&'t str, String)>;

/// A line of a scrape that has a value.
struct Sample<'t> {
    name: &'t str,
    labels: Labels<'t>,
    value: &'t str,
    exemplar: Option<(Labels<'t>, &'t str, &'t str)>,
}

/// What the lines before those of a family say.
#[derive(Clone, Copy, Default)]
struct Family<'t> {
    name: &'t str,
    kind: &'t str,
    help: &'t str,
}

/// A scrape, read bit by bit.
pub(super) struct Chunks<'t, 's> {
    lines: std::str::Lines<'t>,
    family: Family<'t>,
    /// The histogram whose lines are being read.
    pending: Option<(Family<'t>, Labels<'t>, HistogramDataPoint)>,
    starts: &'s mut Starts,
    at: u64,
    chunk: Vec<Metric>,
    points: usize,
}

impl<'t, 's> Chunks<'t, 's> {
    pub fn new(scrape: &'t str, at: u64, starts: &'s mut Starts) -> Self {
        let (lines, family) = (scrape.lines(), Family::default());
        Self { lines, family, pending: None, starts, at, chunk: Vec::new(), points: 0 }
    }

    /// The next points, and how many they are.
    pub fn next(&mut self, most: usize) -> Option<(Vec<Metric>, usize)> {
        while self.points < most {
            match self.lines.next() {
                Some(line) => self.read(line),
                None => {
                    self.finish();
                    break;
                }
            }
        }
        (self.points > 0).then(|| (std::mem::take(&mut self.chunk), std::mem::take(&mut self.points)))
    }

    fn read(&mut self, line: &'t str) {
        if let Some(comment) = line.strip_prefix("# ") {
            self.finish();
            let mut words = comment.splitn(3, ' ');
            match [words.next(), words.next(), words.next()] {
                [Some("HELP"), Some(name), help] => self.family = Family { name, kind: "", help: help.unwrap_or("") },
                [Some("TYPE"), Some(name), Some(kind)] if name == self.family.name => self.family.kind = kind,
                _ => {}
            }
        } else if let Some(sample) = Sample::read(line) {
            match self.family.kind {
                "histogram" => self.part(sample),
                "counter" => self.count(&sample),
                _ => self.gauge(&sample),
            }
        }
    }

    fn count(&mut self, sample: &Sample<'t>) {
        let start_time_unix_nano = self.starts.of(sample.name, &sample.labels, sample.number());
        let point = NumberDataPoint { start_time_unix_nano, ..self.point(sample) };
        let empty = || {
            let aggregation_temporality = AggregationTemporality::Cumulative.into();
            Data::Sum(Sum { data_points: Vec::new(), aggregation_temporality, is_monotonic: true })
        };
        if let Some(Data::Sum(sum)) = self.metric(self.family.name, self.family.help, empty) {
            sum.data_points.push(point);
        }
    }

    fn gauge(&mut self, sample: &Sample<'t>) {
        let point = self.point(sample);
        let empty = || Data::Gauge(Gauge::default());
        // Of what only informs the sample has another name than the family.
        if let Some(Data::Gauge(gauge)) = self.metric(sample.name, self.family.help, empty) {
            gauge.data_points.push(point);
        }
    }

    fn point(&self, sample: &Sample<'t>) -> NumberDataPoint {
        let value = match sample.value.parse() {
            Ok(whole) => number_data_point::Value::AsInt(whole),
            Err(_) => number_data_point::Value::AsDouble(sample.number()),
        };
        NumberDataPoint {
            attributes: attributes(&sample.labels),
            time_unix_nano: self.at,
            value: Some(value),
            ..NumberDataPoint::default()
        }
    }

    /// One line of a histogram. Those of one series come one after the other.
    fn part(&mut self, mut sample: Sample<'t>) {
        let bound = sample.labels.iter().position(|(name, _)| *name == "le").map(|at| sample.labels.remove(at).1);
        if self.pending.as_ref().is_none_or(|(_, labels, _)| *labels != sample.labels) {
            self.finish();
            let point = HistogramDataPoint { time_unix_nano: self.at, ..HistogramDataPoint::default() };
            self.pending = Some((self.family, sample.labels.clone(), point));
        }
        let Some((family, _, point)) = &mut self.pending else { return };
        match (bound, sample.name.strip_prefix(family.name)) {
            (Some(bound), _) => {
                point.explicit_bounds.extend(bound.parse().ok().filter(|bound: &f64| bound.is_finite()));
                // Up to the bound, of all; what is between is made of it when they are whole.
                point.bucket_counts.push(sample.value.parse().unwrap_or_default());
                point.exemplars.extend(sample.exemplar());
            }
            (None, Some("_sum")) => point.sum = Some(sample.number()),
            (None, Some("_count")) => point.count = sample.value.parse().unwrap_or_default(),
            (None, _) => {}
        }
    }

    /// The histogram is whole.
    fn finish(&mut self) {
        let Some((family, labels, mut point)) = self.pending.take() else { return };
        let mut before = 0;
        for count in &mut point.bucket_counts {
            (*count, before) = (count.saturating_sub(before), *count);
        }
        // The lines are read one by one while requests are counted: what is told agrees with itself.
        point.count = before;
        point.start_time_unix_nano = self.starts.of(family.name, &labels, before as f64);
        point.attributes = attributes(&labels);
        let empty = || {
            let aggregation_temporality = AggregationTemporality::Cumulative.into();
            Data::Histogram(Histogram { data_points: Vec::new(), aggregation_temporality })
        };
        if let Some(Data::Histogram(histogram)) = self.metric(family.name, family.help, empty) {
            histogram.data_points.push(point);
        }
    }

    /// The metric that points go to now: the last one, or a new one.
    fn metric(&mut self, name: &str, help: &str, empty: impl FnOnce() -> Data) -> Option<&mut Data> {
        self.points += 1;
        if self.chunk.last().is_none_or(|last| last.name != name) {
            self.chunk.push(Metric {
                name: name.to_string(),
                description: help.to_string(),
                unit: unit(name).to_string(),
                data: Some(empty()),
                ..Metric::default()
            });
        }
        self.chunk.last_mut().and_then(|metric| metric.data.as_mut())
    }
}

/// By the name's last word, as the collector writes it.
fn unit(name: &str) -> &'static str {
    match name.rsplit('_').next() {
        Some("seconds") => "s",
        Some("milliseconds") => "ms",
        Some("bytes") => "By",
        _ => "",
    }
}

fn attributes(labels: &Labels<'_>) -> Vec<KeyValue> {
    labels.iter().filter(|(_, value)| !value.is_empty()).map(|(name, value)| text(name, value)).collect()
}

impl<'t> Sample<'t> {
    /// `name{label="value",…} value # {label="value",…} value time`
    fn read(line: &'t str) -> Option<Self> {
        let (name, rest) = line.split_at_checked(line.find(['{', ' '])?)?;
        let (labels, rest) = read_labels(rest)?;
        let (value, exemplar) = match rest.trim_start().split_once(" # ") {
            Some((value, exemplar)) => (value, Some(exemplar)),
            None => (rest.trim_start(), None),
        };
        let exemplar = exemplar.and_then(|exemplar| {
            let (labels, rest) = read_labels(exemplar)?;
            let (value, at) = rest.trim_start().split_once(' ')?;
            Some((labels, value, at))
        });
        Some(Self { name, labels, value, exemplar })
    }

    fn number(&self) -> f64 {
        self.value.parse().unwrap_or(f64::NAN)
    }

    fn exemplar(&self) -> Option<Exemplar> {
        let (labels, value, at) = self.exemplar.as_ref()?;
        let id = |wanted: &str| -> Option<Vec<u8>> {
            let (_, hex) = labels.iter().find(|(name, _)| *name == wanted)?;
            hex.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
        };
        let at = Duration::try_from_secs_f64(at.parse().ok()?).ok()?;
        Some(Exemplar {
            time_unix_nano: u64::try_from(at.as_nanos()).ok()?,
            trace_id: id("trace_id")?,
            span_id: id("span_id")?,
            value: Some(exemplar::Value::AsDouble(value.parse().ok()?)),
            ..Exemplar::default()
        })
    }
}

/// The labels, if there are any, and what follows them.
fn read_labels(text: &str) -> Option<(Labels<'_>, &str)> {
    let mut labels = Vec::new();
    let Some(mut rest) = text.strip_prefix('{') else { return Some((labels, text)) };
    loop {
        if let Some(after) = rest.strip_prefix('}') {
            return Some((labels, after));
        }
        let (name, after) = rest.trim_start_matches(',').split_once("=\"")?;
        let (value, after) = read_value(after)?;
        labels.push((name, value));
        rest = after;
    }
}

/// A label's value up to its quote, and what follows that.
fn read_value(text: &str) -> Option<(String, &str)> {
    let (mut value, mut characters) = (String::new(), text.chars());
    loop {
        match characters.next()? {
            '"' => return Some((value, characters.as_str())),
            '\\' => value.push(match characters.next()? {
                'n' => '\n',
                other => other,
            }),
            other => value.push(other),
        }
    }
}
