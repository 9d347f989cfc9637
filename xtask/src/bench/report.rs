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
    /// mesh / direct; beside a flood: flood / no flood, with the mesh
    pub ratio: Option<f64>,
    /// The least of the mesh's samples.
    pub min: Option<f64>,
    /// The most of them.
    pub max: Option<f64>,
    /// How many of them count.
    pub n: usize,
    /// How many were left out, or would have been if enough had been left: something else used the processors.
    pub noisy: usize,
    /// Where all of that is beside a flood: what it is without.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub alone: Option<Alone>,
}

/// A figure with no flood, and how it changes beside one.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Alone {
    /// The median with neither mesh nor flood.
    pub direct_alone: Option<f64>,
    /// The median with the mesh and no flood.
    pub mesh_alone: Option<f64>,
    /// flood / no flood where there is no mesh: what the machine lacks.
    pub direct_ratio: Option<f64>,
    /// flood / no flood with the mesh.
    pub mesh_ratio: Option<f64>,
}

impl Row {
    /// This row, measured beside a flood, against the one that was measured without. Both their samples may be noisy.
    pub fn against(self, alone: &Row) -> Self {
        let noisy = self.noisy + alone.noisy;
        let rise = |beside: Option<f64>, alone: Option<f64>| beside.zip(alone).map(|(beside, alone)| beside / alone);
        let (direct_ratio, mesh_ratio) = (rise(self.direct, alone.direct), rise(self.mesh, alone.mesh));
        let alone = Alone { direct_alone: alone.direct, mesh_alone: alone.mesh, direct_ratio, mesh_ratio };
        Self { ratio: mesh_ratio, noisy, alone: Some(alone), ..self }
    }
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
        let (direct, n) = (direct_median, mesh.len());
        Row { id, unit, direct, mesh: mesh_median, peer, ratio, min, max, n, noisy, alone: None }
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

/// The same for what telemetry costs.
pub fn head_of_telemetry() -> String {
    head().replace("   no mesh", "  as it is").replace("      mesh", "    all on").replace("   HAProxy", "          ")
}

/// The first line of a table of rows beside a flood.
pub fn head_beside() -> String {
    let [id, unit, direct, mesh, flood, ratio] = ["", "unit", "no mesh", "mesh", "+ flood", "ratio"];
    format!(
        "{id:<38} {unit:<8} {direct:>10} {flood:>10} {ratio:>7} {mesh:>10} {flood:>10} {ratio:>7}  {:<21} n",
        "min..max"
    )
}

/// A row as a line.
pub fn line(row: &Row) -> String {
    let number = |value: Option<f64>| value.map_or("–".to_string(), shown);
    let times = |ratio: Option<f64>| ratio.map_or("–".to_string(), |ratio| format!("{ratio:.2}x"));
    let spread = format!("{}..{}", number(row.min), number(row.max));
    let noisy = if row.noisy > 0 { format!(" ({} noisy)", row.noisy) } else { String::new() };
    let (direct, mesh) = (number(row.direct), number(row.mesh));
    let columns = match &row.alone {
        None => format!("{direct:>10} {mesh:>10} {:>7} {:>10}", times(row.ratio), number(row.peer)),
        Some(alone) => {
            let (quiet, meshed) = (number(alone.direct_alone), number(alone.mesh_alone));
            let (rise, meshed_rise) = (times(alone.direct_ratio), times(alone.mesh_ratio));
            format!("{quiet:>10} {direct:>10} {rise:>7} {meshed:>10} {mesh:>10} {meshed_rise:>7}")
        }
    };
    format!("{:<38} {:<8} {columns}  {spread:<21} {}{noisy}", row.id, row.unit, row.n)
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

    #[test]
    fn beside_a_flood_each_way_has_a_ratio_of_its_own() {
        let of = |direct: f64, mesh: f64| {
            let mut figure = Figure::default();
            figure.add(Way::Direct, direct, 0.0);
            figure.add(Way::Mesh, mesh, 0.0);
            figure.row("neighbour.iperf.p99_us".into(), "us")
        };
        let row = of(300.0, 600.0).against(&of(100.0, 500.0));
        let json = serde_json::to_value(&row).expect("a row is JSON");
        let figures = ["direct", "mesh", "ratio", "directAlone", "meshAlone", "directRatio", "meshRatio"];
        let figures = figures.map(|name| json[name].as_f64().unwrap_or_default());
        assert_eq!(figures, [300.0, 600.0, 1.2, 100.0, 500.0, 3.0, 1.2]);
        // With no flood nothing is said of one.
        let json = serde_json::to_value(of(1.0, 2.0)).expect("a row is JSON");
        assert_eq!((json["ratio"].as_f64(), json.get("meshRatio")), (Some(2.0), None));
        assert_eq!(head_beside().chars().count(), line(&row).chars().count());
    }
}
