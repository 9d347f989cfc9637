//! What the demo prints: coloured on a terminal, plain elsewhere or with NO_COLOR.

use std::io::IsTerminal;

use anyhow::Result;
use serde::Serialize;

use super::stage::Stage;
use super::steps::Step;
use crate::build;

/// One step's outcome, as `--json` writes it.
#[derive(Serialize)]
struct Outcome {
    step: &'static str,
    promised: &'static str,
    seen: String,
    ok: bool,
}

/// Prints while it goes, keeps for the end.
pub struct Report {
    outcomes: Vec<Outcome>,
    coloured: bool,
}

const BOLD: &str = "1";
const DIM: &str = "2";
const RED: &str = "1;31";
const GREEN: &str = "1;32";
const CYAN: &str = "36";

impl Report {
    /// A report of nothing yet.
    pub fn new() -> Self {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { outcomes: Vec::new(), coloured: std::io::stdout().is_terminal() && !no_color }
    }

    /// Says what takes a while.
    pub fn progress(&self, text: &str) {
        println!("{}", self.paint(DIM, &format!("  … {text}")));
    }

    /// Shows who is there.
    pub fn opening(&self, stage: &Stage) {
        println!("\n{}", self.paint(BOLD, "The pods, and who they are in the mesh"));
        for pod in stage.bed.pods() {
            let who = if pod.spec.namespace == stage.namespace() { pod.identity() } else { "not in the mesh".into() };
            println!("  {}  {:<9} {:<15} {}", pod.spec.node, pod.spec.name, pod.ips.ip(stage.family), who);
        }
    }

    /// Announces a step.
    pub fn begin(&self, step: &Step) {
        println!("\n{} {}", self.paint(BOLD, &format!("{} · {}", step.id, step.title)), self.paint(DIM, ""));
        println!("  {} {}", self.paint(CYAN, "promised"), step.promised);
    }

    /// Shows the logs of a step that failed.
    pub fn logs(&self, tails: &str) {
        println!("{}", self.paint(DIM, tails.trim_end()));
    }

    /// Tells how a step ended.
    pub fn end(&mut self, step: &Step, result: Result<String>) {
        let (ok, seen) = match result {
            Ok(seen) => (true, seen),
            Err(error) => (false, format!("{error:#}")),
        };
        let mut lines = seen.lines();
        println!("  {}     {}", self.paint(CYAN, "seen"), lines.next().unwrap_or_default());
        lines.for_each(|line| println!("           {line}"));
        println!("  {}", if ok { self.paint(GREEN, "as promised") } else { self.paint(RED, "NOT AS PROMISED") });
        self.outcomes.push(Outcome { step: step.id, promised: step.promised, seen, ok });
    }

    /// Sums up.
    pub fn closing(&self) {
        let failed: Vec<&str> =
            self.outcomes.iter().filter(|outcome| !outcome.ok).map(|outcome| outcome.step).collect();
        let total = self.outcomes.len();
        println!();
        if failed.is_empty() {
            println!("{}", self.paint(GREEN, &format!("{total} of {total} steps as promised")));
        } else {
            let text = format!("{} of {total} steps not as promised: {}", failed.len(), failed.join(", "));
            println!("{}", self.paint(RED, &text));
        }
    }

    /// Prints how to look around in what is running.
    pub fn how_to_poke(&self, stage: &Stage, map: &str) {
        let run = stage.bed.id();
        let dir = stage.bed.dir().display();
        println!("\n{}", self.paint(BOLD, &format!("It is running. The live map: {map}")));
        println!("{}", self.paint(BOLD, "Some things to try:"));
        let admin = format!("--admin unix:{dir}/n1-admin.sock --admin unix:{dir}/n2-admin.sock");
        let meshctl = build::meshctl_binary().map_or_else(|_| "meshctl".into(), |path| path.display().to_string());
        for (command, what) in [
            (format!("{meshctl} status {admin}"), "every agent: pods, certificates, what is wrong"),
            (format!("{meshctl} graph {admin}"), "who talks to whom, and how that is protected"),
            (format!("{meshctl} connections {admin}"), "live connections, with identity and transport"),
            (format!("cargo xtask exec --run {run} shop -- curl -s http://web.demo/"), "a request from a pod"),
            (format!("cargo xtask exec --run {run} outsider -- bash"), "a shell in a pod"),
            (format!("curl -s --unix-socket {dir}/n1-admin.sock http://localhost/config_dump"), "what an agent knows"),
            (format!("ls {dir}/world"), "the cluster; edit a file and see"),
            (format!("tail -f {dir}/logs/n2-agent.log"), "an agent's log"),
            (format!("cargo xtask clean {run}"), "the end of it"),
        ] {
            println!("  {command}\n      {}", self.paint(DIM, what));
        }
    }

    /// Whether every step was as promised.
    pub fn all_ok(&self) -> bool {
        self.outcomes.iter().all(|outcome| outcome.ok)
    }

    /// `[{step, promised, seen, ok}]`
    pub fn json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(&self.outcomes)? + "\n")
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.coloured { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
    }
}
