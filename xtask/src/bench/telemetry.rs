//! What telemetry costs: agents as they come beside agents that tell all they can, in turns.
//!
//! All they can: Istio's metrics too, spans of the sampled share of requests, a line of the access log for everything (as
//! they come, and to a collector besides), metrics for the collector as often as it usually gets them, and a scrape every
//! second.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result, ensure};

use super::meter::Meter;
use super::report::{self, Figure, Row};
use super::stage::{Stage, Way};
use super::{Bench, Case, seen};
use crate::testbed::{AgentOptions, Process};

/// OTLP's own.
const COLLECTOR: u16 = 4318;
const METRICS: u16 = 15020;

/// How long a new agent is asked before it is measured.
const WARM_SECONDS: u64 = 1;

/// The column of agents as they come, and that of those that tell all.
const SIDES: [Way; 2] = [Way::Direct, Way::Mesh];

/// Measures every case.
pub fn measure(bench: &Bench, stage: &mut Stage, meter: &Meter, agents: &AgentOptions) -> Result<Vec<Row>> {
    let _collectors = stage.bed.nodes().iter().map(|node| collector(stage, &node.name)).collect::<Result<Vec<_>>>()?;
    let all_on = AgentOptions {
        arguments: [
            &agents.arguments[..],
            &["--istio-metrics=true".to_string(), format!("--otlp=http://127.0.0.1:{COLLECTOR}")],
        ]
        .concat(),
        ..agents.clone()
    };
    println!("{}", report::head_of_telemetry());
    let mut rows = Vec::new();
    for case in bench.cases().into_iter().filter(Case::has_peer) {
        rows.extend(one(bench, stage, meter, [agents, &all_on], &case).with_context(|| case.id.clone())?);
    }
    ensure!(!rows.is_empty(), "no row's id contains {:?}", bench.only);
    Ok(rows)
}

fn collector(stage: &Stage, node: &str) -> Result<Process> {
    let script = stage.bed.dir().join("collector.py");
    fs::write(&script, include_str!("collector.py"))?;
    let (script, [port, metrics]) = (script.to_string_lossy(), [COLLECTOR, METRICS].map(|port| port.to_string()));
    stage.bed.node(node).tool_place().spawn("collector", &["/usr/bin/python3", &script, &port, &metrics])
}

fn one(bench: &Bench, stage: &mut Stage, meter: &Meter, agents: [&AgentOptions; 2], case: &Case) -> Result<Vec<Row>> {
    let mut figures: BTreeMap<&str, Figure> = BTreeMap::new();
    for sample in 0..bench.samples {
        let mut sides: Vec<_> = SIDES.into_iter().zip(agents).collect();
        if sample % 2 == 1 {
            sides.reverse();
        }
        for (side, options) in sides {
            for node in ["n1", "n2"] {
                stage.bed.agent_mut(node).stop()?;
                stage.bed.start_agent(node, options)?;
            }
            let address = stage.address(Way::Mesh, &case.server, case.load.port(case.bytes));
            let run = |seconds| case.load.run(stage.caller(Way::Mesh), address, &case.path, seconds);
            run(WARM_SECONDS)?;
            let before = seen(stage, case.bytes)?;
            let (done, used) = meter.during(|| run(bench.seconds))?;
            ensure!(seen(stage, case.bytes)? > before && done.units > 0.0, "nothing was done");
            for (name, value) in case.values(Way::Mesh, &done, &used) {
                figures.entry(name).or_default().add(side, value, used.others);
            }
        }
    }
    let rows = case
        .figures()
        .into_iter()
        .map(|(name, unit)| figures.remove(name).unwrap_or_default().row(id(&case.row_id(name)), unit));
    let rows: Vec<Row> = rows.filter(|row| row.mesh.is_some() && row.id.contains(&bench.only)).collect();
    for row in &rows {
        println!("{}", report::line(row));
    }
    Ok(rows)
}

/// `l7.h1.max32.rps` → `l7.telemetry.h1.max32.rps`
pub fn id(id: &str) -> String {
    match id.split_once('.') {
        Some((first, rest)) => format!("{first}.telemetry.{rest}"),
        None => id.to_string(),
    }
}
