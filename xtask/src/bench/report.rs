//! Rows of figures: medians with their spread, no mesh beside mesh.

use anyhow::Result;
use serde::Serialize;
use serde_json::json;

use super::stage::Way;

/// A sample is noisy when something else used more than this share of the machine.
const NOISE: f64 = 0.05;

/// One figure: several samples of each way.
#[derive(Clone, Debug, Default)]
pub struct Figure {
    direct: Vec<Sample>,
    mesh: Vec<Sample>,
    peer: Vec<Sample>,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    value: f64,
    others: f64,
}

/// A row of the table, and of the file.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// `l7.h1.rate1000.p50_us`
    pub id: String,
    /// The unit.
    pub unit: &'static str,
    /// The median with no mesh; none where there is nothing to measure.
    pub direct: Option<f64>,
    /// The median with the mesh.
    pub mesh: Option<f64>,
    /// The median with the other pair of proxies, where it was measured.
    pub peer: Option<f64>,
    /// mesh / direct
    pub ratio: Option<f64>,
    /// The least of the mesh's samples.
    pub min: Option<f64>,
    /// The most of them.
    pub max: Option<f64>,
    /// How many of them count.
    pub n: usize,
    /// How many were left out, or would have been if enough had been left: something else used the processors.
    pub noisy: usize,
}

impl Figure {
    /// Adds a sample; `others`: the share of the machine that went elsewhere meanwhile.
    pub fn add(&mut self, way: Way, value: f64, others: f64) {
        let samples = match way {
            Way::Direct => &mut self.direct,
            Way::Mesh => &mut self.mesh,
            Way::Peer => &mut self.peer,
        };
        samples.push(Sample { value, others });
    }

    /// Sums it up.
    pub fn row(&self, id: String, unit: &'static str) -> Row {
        let ((direct, _), (peer, _), (mesh, noisy)) = (quiet(&self.direct), quiet(&self.peer), quiet(&self.mesh));
        let (direct_median, mesh_median) = (median(&direct), median(&mesh));
        let ratio = mesh_median.zip(direct_median).map(|(mesh, direct)| mesh / direct);
        let (min, max) = (mesh.first().copied(), mesh.last().copied());
        let peer = median(&peer);
        Row { id, unit, direct: direct_median, mesh: mesh_median, peer, ratio, min, max, n: mesh.len(), noisy }
    }
}

/// In order, and how many are noisy. Those are left out where at least three others are left.
fn quiet(samples: &[Sample]) -> (Vec<f64>, usize) {
    let clean: Vec<f64> = samples.iter().filter(|sample| sample.others <= NOISE).map(|sample| sample.value).collect();
    let noisy = samples.len() - clean.len();
    let mut values = if clean.len() >= 3 { clean } else { samples.iter().map(|sample| sample.value).collect() };
    values.sort_by(f64::total_cmp);
    (values, noisy)
}

fn median(sorted: &[f64]) -> Option<f64> {
    let middle = sorted.len() / 2;
    let upper = sorted.get(middle)?;
    if sorted.len() % 2 == 1 { Some(*upper) } else { Some((sorted.get(middle - 1)? + upper) / 2.0) }
}

/// The table's first line.
pub fn head() -> String {
    let [id, unit, direct, mesh, ratio, peer] = ["", "unit", "no mesh", "mesh", "ratio", "HAProxy"];
    format!("{id:<38} {unit:<8} {direct:>10} {mesh:>10} {ratio:>7} {peer:>10}  {:<21} n", "min..max")
}

/// A row as a line.
pub fn line(row: &Row) -> String {
    let number = |value: Option<f64>| value.map_or("–".to_string(), shown);
    let spread = format!("{}..{}", number(row.min), number(row.max));
    let ratio = row.ratio.map_or("–".to_string(), |ratio| format!("{ratio:.2}x"));
    let noisy = if row.noisy > 0 { format!(" ({} noisy)", row.noisy) } else { String::new() };
    let (direct, mesh, peer) = (number(row.direct), number(row.mesh), number(row.peer));
    format!(
        "{:<38} {:<8} {direct:>10} {mesh:>10} {ratio:>7} {peer:>10}  {spread:<21} {}{noisy}",
        row.id, row.unit, row.n
    )
}

fn shown(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

/// All rows, and what they were measured on.
pub fn json(rows: &[Row], seconds: u64) -> Result<String> {
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let processors = std::thread::available_parallelism()?.get();
    let all = json!({"kernel": kernel, "processors": processors, "secondsPerSample": seconds, "rows": rows});
    Ok(serde_json::to_string_pretty(&all)? + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noisy_samples_count_only_where_there_are_no_others() {
        let mut figure = Figure::default();
        for (value, others) in [(1.0, 0.0), (2.0, 0.01), (3.0, 0.0), (100.0, 0.5)] {
            figure.add(Way::Mesh, value, others);
            figure.add(Way::Direct, value / 2.0, others);
        }
        let row = figure.row("x".into(), "us");
        assert_eq!((row.mesh, row.direct, row.ratio), (Some(2.0), Some(1.0), Some(2.0)));
        assert_eq!((row.min, row.max, row.n, row.noisy), (Some(1.0), Some(3.0), 3, 1));

        let mut figure = Figure::default();
        for (value, others) in [(1.0, 0.9), (5.0, 0.0)] {
            figure.add(Way::Mesh, value, others);
        }
        let row = figure.row("x".into(), "us");
        assert_eq!((row.mesh, row.direct, row.n, row.noisy), (Some(3.0), None, 2, 1));
    }
}
