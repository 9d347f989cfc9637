//! What loads came to, for people and machines.

use serde::Serialize;

use super::pods::{Measured, Place};
use crate::bench::{Latency, Summary};
use crate::ctl::table::{Cell, Paint, Table, Tone};

/// Both pods' loads. Its JSON is an interface.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Compared {
    /// Where the pods were.
    pub place: Place,
    /// Of the pod that is not in the mesh.
    pub plain: Summary,
    /// Of the one that is.
    pub meshed: Summary,
    /// Not one request of the pod outside the mesh was answered well: there is nothing to compare with.
    pub plain_is_refused: bool,
    /// How many times as long answers took in the mesh. None where a pod had none.
    pub ratio: Option<Latency>,
    /// In one line.
    #[serde(skip)]
    told: String,
    /// Pods that are still there: what to do.
    pub left: Vec<String>,
}

/// A figure of latencies, and its name.
type Figure = (&'static str, fn(&Latency) -> f64);

/// As they are shown.
const LATENCIES: [Figure; 6] = [
    ("mean", |latency| latency.mean),
    ("p50", |latency| latency.p50),
    ("p90", |latency| latency.p90),
    ("p99", |latency| latency.p99),
    ("p99.9", |latency| latency.p999),
    ("max", |latency| latency.max),
];

/// What was measured, compared.
pub fn compared(measured: Measured) -> Compared {
    let Measured { place, told, plain, meshed, left } = measured;
    let plain_is_refused = plain.ok == 0 && meshed.ok > 0;
    let both = plain.latency_seconds.zip(meshed.latency_seconds).filter(|_| !plain_is_refused);
    let ratio = both.map(|(plain, meshed)| {
        let of = |value: fn(&Latency) -> f64| value(&meshed) / value(&plain).max(f64::MIN_POSITIVE);
        Latency {
            mean: of(|latency| latency.mean),
            p50: of(|latency| latency.p50),
            p90: of(|latency| latency.p90),
            p99: of(|latency| latency.p99),
            p999: of(|latency| latency.p999),
            max: of(|latency| latency.max),
        }
    });
    Compared { place, plain, meshed, plain_is_refused, ratio, told, left }
}

impl Compared {
    /// Whether all is as it should be: STRICT lets nobody in without an identity.
    pub fn is_well(&self) -> bool {
        self.meshed.failed == 0 && (self.plain.failed == 0 || self.plain_is_refused) && self.left.is_empty()
    }

    pub fn render(&self, paint: Paint) -> String {
        let Place { namespace, service_account, node } = &self.place;
        let head = format!("{}, from {namespace}/{service_account} on {node}", self.told);
        let mut text = match self.plain_is_refused {
            true => render(&head, &[("MESHED", &self.meshed)], None, paint),
            false => render(&head, &[("PLAIN", &self.plain), ("MESHED", &self.meshed)], self.ratio.as_ref(), paint),
        };
        if self.plain_is_refused {
            let line = format!(
                "without the mesh nothing is let in ({}), so there is nothing to compare with",
                told_of(&self.plain).join("; ")
            );
            text.push_str(&format!("{}\n", paint.apply(&line, Tone::Doubtful)));
        }
        for line in &self.left {
            text.push_str(&format!("{}\n", paint.apply(line, Tone::Bad)));
        }
        text
    }
}

/// A column for each load, and one of what is told of both.
pub fn render(head: &str, loads: &[(&'static str, &Summary)], ratio: Option<&Latency>, paint: Paint) -> String {
    let mut columns = vec!["FIGURE"];
    columns.extend(loads.iter().map(|(name, _)| *name));
    columns.extend(ratio.map(|_| "RATIO"));
    let mut table = Table::new(&columns);
    let row = |figure: &str, cell: &dyn Fn(&Summary) -> Cell| -> Vec<Cell> {
        let mut cells = vec![Cell::plain(figure)];
        cells.extend(loads.iter().map(|(_, load)| cell(load)));
        cells
    };
    let failed =
        |load: &Summary| Cell::new(load.failed.to_string(), if load.failed == 0 { Tone::Good } else { Tone::Bad });
    table.push(row("requests", &|load| Cell::plain(load.requests.to_string())));
    table.push(row("failed", &failed));
    table.push(row("answered/s", &|load| Cell::plain(format!("{:.1}", load.answered_per_second))));
    for (name, of) in LATENCIES {
        let told = |load: &Summary| {
            let latency = load.latency_seconds.as_ref().map(of);
            Cell::plain(latency.map_or_else(String::new, |seconds| format!("{:.2}ms", seconds * 1e3)))
        };
        let mut cells = row(name, &told);
        cells.extend(ratio.map(|ratio| Cell::plain(format!("{:.2}", of(ratio)))));
        table.push(cells);
    }
    let mut text = format!("{}\n{}", paint.apply(head, Tone::Faint), table.render(paint));
    for (name, load) in loads {
        let whose = if loads.len() == 1 { String::new() } else { format!("{}: ", name.to_lowercase()) };
        for line in told_of(load) {
            let tone = if load.failed == 0 { Tone::Plain } else { Tone::Bad };
            text.push_str(&format!("{}\n", paint.apply(&format!("{whose}{line}"), tone)));
        }
        if load.late > 0 {
            let line = format!(
                "{whose}{} were sent late: every connection waited for an answer; more --connections, or a lower --rate",
                load.late
            );
            text.push_str(&format!("{}\n", paint.apply(&line, Tone::Doubtful)));
        }
    }
    text
}

/// By which statuses, and why not.
fn told_of(load: &Summary) -> Vec<String> {
    let listed = |words: Vec<String>, what: &str| (!words.is_empty()).then(|| format!("{what}: {}", words.join(", ")));
    let statuses = load.statuses.iter().map(|(status, count)| format!("{count} by {status}")).collect();
    let errors = load.errors.iter().map(|(word, count)| format!("{count} {word}")).collect();
    [listed(statuses, "answered"), listed(errors, "not answered")].into_iter().flatten().collect()
}
