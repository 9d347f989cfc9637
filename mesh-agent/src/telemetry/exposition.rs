//! Lines of OpenMetrics for the large families, and the histograms in them.
//!
//! prometheus-client writes the rest. It gives no histogram that counts for itself an exemplar, and writes the labels of
//! each of a key's lines anew.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::spans::Span;

/// What a histogram counts.
#[derive(Debug)]
pub(super) struct Shape {
    /// Upper bounds, rising.
    pub bounds: &'static [f64],
    /// How many of what is observed make one of what is shown.
    pub per_unit: f64,
}

/// How often values of each size were observed.
#[derive(Debug)]
pub(super) struct Distribution {
    shape: &'static Shape,
    /// By bound; the last has what is above all of them.
    counts: Box<[AtomicU64]>,
    total: AtomicU64,
    /// The last value of each bucket that was part of a trace.
    exemplars: Mutex<BTreeMap<usize, Exemplar>>,
}

#[derive(Clone, Debug)]
struct Exemplar {
    span: Span,
    value: f64,
    at: SystemTime,
}

impl Distribution {
    /// Nothing was observed.
    pub fn new(shape: &'static Shape) -> Self {
        let counts = (0..=shape.bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { shape, counts, total: AtomicU64::new(0), exemplars: Mutex::default() }
    }

    /// Counts a value, which may be part of a trace.
    pub fn observe(&self, observed: u64, span: Option<&Span>) {
        let value = observed as f64 / self.shape.per_unit;
        let bucket = self.shape.bounds.partition_point(|bound| *bound < value);
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.total.fetch_add(observed, Ordering::Relaxed);
        // An example is as good as the next: nobody waits for the lock.
        if let Some(span) = span
            && let Ok(mut exemplars) = self.exemplars.try_lock()
        {
            exemplars.insert(bucket, Exemplar { span: *span, value, at: SystemTime::now() });
        }
    }

    /// How often.
    pub fn count(&self) -> u64 {
        self.counts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// How many values were not above each bound, in what is shown; the last has all of them.
    pub fn within(&self) -> Vec<(f64, u64)> {
        let bounds = self.shape.bounds.iter().copied().chain([f64::INFINITY]);
        let mut sum = 0;
        let counts = self.counts.iter().map(|count| {
            sum += count.load(Ordering::Relaxed);
            sum
        });
        bounds.zip(counts).collect()
    }

    /// Writes the lines of a histogram.
    pub fn write(&self, out: &mut String, name: &str, labels: &str) {
        let exemplars = self.exemplars.lock().map(|exemplars| exemplars.clone()).unwrap_or_default();
        let separator = if labels.is_empty() { "" } else { "," };
        let bounds = self.shape.bounds.iter().map(Some).chain([None]);
        let mut sum = 0;
        for (bucket, (bound, count)) in bounds.zip(&self.counts).enumerate() {
            sum += count.load(Ordering::Relaxed);
            // Writing into a String does not fail.
            let _ = match bound {
                Some(bound) => write!(out, "{name}_bucket{{{labels}{separator}le=\"{bound:?}\"}} {sum}"),
                None => write!(out, "{name}_bucket{{{labels}{separator}le=\"+Inf\"}} {sum}"),
            };
            if let Some(Exemplar { span, value, at }) = exemplars.get(&bucket) {
                let at = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
                let _ =
                    write!(out, " # {{trace_id=\"{}\",span_id=\"{}\"}} {value} {at:.3}", span.trace_id(), span.id());
            }
            out.push('\n');
        }
        sample(out, &format!("{name}_count"), labels, sum);
        let total = self.total.load(Ordering::Relaxed) as f64 / self.shape.per_unit;
        sample(out, &format!("{name}_sum"), labels, total);
    }
}

/// The lines before those of a family. `kind` is OpenMetrics' word.
pub(super) fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = write!(out, "# HELP {name} {help}.\n# TYPE {name} {kind}\n");
}

/// One line. The labels are those of [`labels`].
pub(super) fn sample(out: &mut String, name: &str, labels: &str, value: impl Display) {
    let _ = match labels {
        "" => writeln!(out, "{name} {value}"),
        _ => writeln!(out, "{name}{{{labels}}} {value}"),
    };
}

/// `name="value",…`
pub(super) fn labels<V: AsRef<str>>(pairs: impl IntoIterator<Item = (&'static str, V)>) -> String {
    let mut out = String::new();
    for (name, value) in pairs {
        if !out.is_empty() {
            out.push(',');
        }
        let _ = write!(out, "{name}=\"");
        for character in value.as_ref().chars() {
            match character {
                '\\' => out.push_str("\\\\"),
                '"' => out.push_str("\\\""),
                '\n' => out.push_str("\\n"),
                other => out.push(other),
            }
        }
        out.push('"');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    static SHAPE: Shape = Shape { bounds: &[0.5, 1.0, 5.0], per_unit: 1000.0 };

    #[test]
    fn a_bucket_has_what_is_not_above_its_bound() {
        let distribution = Distribution::new(&SHAPE);
        for observed in [0, 500, 501, 5000, 5001, u64::from(u32::MAX)] {
            distribution.observe(observed, None);
        }
        let mut out = String::new();
        distribution.write(&mut out, "x", "");
        let expected = "x_bucket{le=\"0.5\"} 2\nx_bucket{le=\"1.0\"} 3\nx_bucket{le=\"5.0\"} 4\n\
                        x_bucket{le=\"+Inf\"} 6\nx_count 6\nx_sum 4294978.297\n";
        assert_eq!(out, expected);
    }

    #[test]
    fn no_value_ends_its_line() {
        assert_eq!(labels([("a", "x"), ("b", "\"} 1\n\\")]), "a=\"x\",b=\"\\\"} 1\\n\\\\\"");
        assert_eq!(labels::<&str>([]), "");
    }
}
