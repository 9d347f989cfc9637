//! What the soak prints: a line now and then, a table at the end, and all of it as JSON.

use std::time::Instant;

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::gauges::{Gauges, shown};

/// Prints while it goes, keeps for the end.
pub struct Report {
    began: Instant,
    phase: &'static str,
    figures: Map<String, Value>,
    failures: Vec<String>,
    peak: Gauges,
}

impl Report {
    /// A report of nothing yet.
    pub fn new() -> Self {
        Self {
            began: Instant::now(),
            phase: "set up",
            figures: Map::new(),
            failures: Vec::new(),
            peak: Gauges::default(),
        }
    }

    /// Says what happens.
    pub fn say(&self, text: &str) {
        let seconds = self.began.elapsed().as_secs();
        println!("{:>3}:{:02}  {:<9} {text}", seconds / 60, seconds % 60, self.phase);
    }

    /// Begins a phase.
    pub fn phase(&mut self, name: &'static str, what: &str) {
        self.phase = name;
        self.say(&format!("== {what}"));
    }

    /// Says how it stands.
    pub fn progress(&self, text: &str, gauges: &Gauges) {
        self.say(text);
        let brief = ["memory", "descriptors", "connections"];
        let few = gauges.0.iter().filter(|(name, _)| brief.iter().any(|part| name.ends_with(part)));
        let few: Vec<String> = few.map(|(name, gauge)| format!("{name} {}", shown(name, gauge.value))).collect();
        self.say(&format!("   {}", few.join(", ")));
    }

    /// Keeps the highest of each gauge.
    pub fn peak(&mut self, gauges: &Gauges) {
        self.peak.raise(gauges);
    }

    /// Keeps and shows a result.
    pub fn figure(&mut self, name: &str, value: &Value) {
        let short = |(_, field): &(&String, &Value)| !field.is_array();
        let fields: Map<String, Value> = value
            .as_object()
            .into_iter()
            .flatten()
            .filter(short)
            .map(|(name, field)| (name.clone(), field.clone()))
            .collect();
        self.say(&format!("{name}: {}", Value::Object(fields)));
        self.figures.insert(name.to_string(), value.clone());
    }

    /// Keeps and shows what went wrong.
    pub fn failure(&mut self, text: &str) {
        self.say(&format!("FAILED: {text}"));
        self.failures.push(format!("{}: {text}", self.phase));
    }

    /// Shows the logs of what failed.
    pub fn logs(&self, tails: &str) {
        println!("{}", tails.trim_end());
    }

    /// Shows and keeps the gauges of before, at their highest, and after.
    pub fn table(&mut self, before: &Gauges, after: &Gauges) {
        println!("\n{:<22} {:>10} {:>10} {:>10} {:>10}", "", "before", "highest", "after", "slack");
        for (name, gauge) in &after.0 {
            let column =
                |gauges: &Gauges| gauges.0.get(name).map_or("–".to_string(), |gauge| shown(name, gauge.value));
            let slack = shown(name, gauge.slack);
            println!(
                "{name:<22} {:>10} {:>10} {:>10} {slack:>10}",
                column(before),
                column(&self.peak),
                shown(name, gauge.value)
            );
        }
        println!();
        self.figures.insert("gauges".into(), json!({"before": before, "highest": self.peak, "after": after}));
    }

    /// Whether nothing went wrong.
    pub fn held(&self) -> bool {
        self.failures.is_empty()
    }

    /// Sums up.
    pub fn closing(&self) {
        match self.failures.len() {
            0 => println!("soak: it held"),
            _ => println!("soak: it did NOT hold:\n  {}", self.failures.join("\n  ")),
        }
    }

    /// Everything.
    pub fn json(&self) -> Result<String> {
        let seconds = self.began.elapsed().as_secs();
        let all = json!({"held": self.held(), "seconds": seconds, "failures": self.failures, "figures": self.figures});
        Ok(serde_json::to_string_pretty(&all)? + "\n")
    }
}
