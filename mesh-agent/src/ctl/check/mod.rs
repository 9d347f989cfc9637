//! `meshctl check`: whether a cluster is fit for the mesh, and whether the mesh is well. Each line is one thing that was
//! looked at; one that is wrong says what to do.
//!
//! First is asked (`cluster` the API server, `reach` the agents), then judged, by pure functions of what was said. What
//! cannot be seen with the rights that somebody has is told as not seen, never as well.

mod agents;
mod cluster;

use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use serde::Serialize;

use super::args::{Output, WhomArgs};
use super::reach::Agents;
use super::table::{Paint, Tone};
use super::{Screen, Verdict};
use crate::apiserver::ApiServer;
use crate::told::{Name, dump};

/// What the clocks of two nodes may differ by: certificates begin a minute early.
pub(super) const MAX_SKEW: Duration = Duration::from_secs(30);
/// A root with less of its life left should be replaced.
pub(super) const ROOT_SOON: Duration = Duration::from_secs(30 * 24 * 3600);
/// How many things of one kind a line names.
pub(super) const SHOWN: usize = 5;

/// `meshctl check`
#[derive(Args, Debug)]
pub struct CheckArgs {
    /// What to print
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// Everything that was looked at. Its JSON is an interface.
#[derive(Debug, Serialize)]
struct Report {
    /// Whether nothing is wrong.
    healthy: bool,
    checks: Vec<Line>,
}

/// One thing that was looked at.
#[derive(Debug, PartialEq, Serialize)]
struct Line {
    part: Part,
    name: &'static str,
    result: Judged,
    /// What was found.
    found: String,
    /// What to do, where something is wrong or worth a look.
    todo: Option<String>,
}

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum Part {
    /// Whether the cluster is fit.
    Cluster,
    /// Whether the mesh is well.
    Mesh,
}

/// What came of a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum Judged {
    Ok,
    /// Worth a look; nothing fails for it.
    Warning,
    Failed,
    /// It could not be seen.
    Unknown,
}

/// Asks, prints, and says by its exit status whether nothing is wrong.
pub async fn run(args: &CheckArgs, whom: &WhomArgs, screen: &mut Screen<'_>) -> Result<Verdict> {
    let (mut lines, is_answered) =
        if whom.admin.is_empty() { of_cluster(whom).await? } else { of_addresses(whom).await? };
    lines.iter_mut().for_each(|line| line.be_about(&whom.mesh_namespace));
    let healthy = lines.iter().all(|line| line.result != Judged::Failed);
    let report = Report { healthy, checks: lines };
    match args.output {
        Output::Table | Output::Wide => screen.print(&report.render(screen.paint()))?,
        Output::Json => screen.json(&report)?,
        Output::Yaml => screen.yaml(&report)?,
    }
    Ok(match (is_answered, healthy) {
        (false, _) => Verdict::Unasked,
        (true, false) => Verdict::Wrong,
        (true, true) => Verdict::Well,
    })
}

/// What keeps the mesh from a cluster, as `check` says it; nothing where it is fit.
pub async fn unfit(server: &ApiServer, namespace: &str, timeout: Duration) -> Result<Vec<String>> {
    let facts = cluster::Asked { server, namespace, timeout }.look().await?;
    let wrong = facts.fitness().into_iter().filter(|line| line.result == Judged::Failed);
    Ok(wrong.map(|line| line.render(Paint::Plain)).collect())
}

/// Of single agents: what they themselves say, and whether anybody answered.
async fn of_addresses(whom: &WhomArgs) -> Result<(Vec<Line>, bool)> {
    let agents = Agents::find(whom).await?;
    let mesh = agents::Mesh::new(agents.ask_timed(dump::PATH).await, Vec::new());
    let is_answered = mesh.is_answered();
    Ok((mesh.judge(), is_answered))
}

async fn of_cluster(whom: &WhomArgs) -> Result<(Vec<Line>, bool)> {
    let WhomArgs { admin: _, mesh_namespace, kubeconfig, context, timeout } = whom;
    let server = ApiServer::find_context(kubeconfig.clone(), context.clone()).await;
    let server = server.context("to ask agents without a cluster: --admin IP:PORT or --admin unix:PATH")?;
    let asked = cluster::Asked { server: &server, namespace: mesh_namespace, timeout: *timeout };
    let mut facts = asked.look().await?;
    if facts.version.is_err() {
        return Ok((facts.judge(), false));
    }
    let mesh = match Agents::find(whom).await {
        Ok(agents) => {
            facts.with_agents = agents.names().map(|Name { node, pod: _ }| node.clone()).collect();
            let (dumps, kernels) = tokio::join!(agents.ask_timed(dump::PATH), agents.ask_kernels());
            agents::Mesh::new(dumps, kernels).judge()
        }
        Err(error) => vec![Line::failed(
            Part::Mesh,
            "agents",
            first_line(&format!("{error:#}")),
            format!(
                "install the mesh, or name its namespace with -n; docs/kubernetes.md has how (looked in {mesh_namespace})"
            ),
        )],
    };
    Ok((facts.judge().into_iter().chain(mesh).collect(), true))
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_string()
}

/// Some of many, by name.
fn some_of(all: &[String]) -> String {
    let more = all.len().saturating_sub(SHOWN);
    let shown = all.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}

impl Line {
    fn ok(part: Part, name: &'static str, found: impl Into<String>) -> Self {
        Self { part, name, result: Judged::Ok, found: found.into(), todo: None }
    }

    fn warning(part: Part, name: &'static str, found: impl Into<String>, todo: impl Into<String>) -> Self {
        Self { part, name, result: Judged::Warning, found: found.into(), todo: Some(todo.into()) }
    }

    fn failed(part: Part, name: &'static str, found: impl Into<String>, todo: impl Into<String>) -> Self {
        Self { part, name, result: Judged::Failed, found: found.into(), todo: Some(todo.into()) }
    }

    fn unknown(part: Part, name: &'static str, found: impl Into<String>, todo: Option<String>) -> Self {
        Self { part, name, result: Judged::Unknown, found: found.into(), todo }
    }

    /// What to do is said for the namespace that the mesh usually has.
    fn be_about(&mut self, namespace: &str) {
        if let Some(todo) = &mut self.todo {
            *todo = todo.replace("-n nodemesh-system", &format!("-n {namespace}"));
        }
    }

    fn render(&self, paint: Paint) -> String {
        let (word, tone) = match self.result {
            Judged::Ok => ("ok     ", Tone::Good),
            Judged::Warning => ("look   ", Tone::Doubtful),
            Judged::Failed => ("WRONG  ", Tone::Bad),
            Judged::Unknown => ("unseen ", Tone::Faint),
        };
        let said = paint.apply(&format!("{}: {}", self.name, self.found), Tone::Plain);
        let mut text = format!("{} {said}\n", paint.apply(word, tone));
        if let Some(todo) = &self.todo {
            text.push_str(&format!("        {}\n", paint.apply(&format!("do: {todo}"), Tone::Plain)));
        }
        text
    }
}

impl Report {
    fn render(&self, paint: Paint) -> String {
        let of = |part: Part, head: &str| {
            let lines: String =
                self.checks.iter().filter(|line| line.part == part).map(|line| line.render(paint)).collect();
            if lines.is_empty() { lines } else { format!("{}\n{lines}", paint.apply(head, Tone::Faint)) }
        };
        let wrong = self.checks.iter().filter(|line| line.result == Judged::Failed).count();
        let end = match wrong {
            0 => paint.apply("nothing is wrong", Tone::Good),
            1 => paint.apply("one thing is wrong", Tone::Bad),
            many => paint.apply(&format!("{many} things are wrong"), Tone::Bad),
        };
        let parts = [of(Part::Cluster, "THE CLUSTER"), of(Part::Mesh, "THE MESH")];
        let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        format!("{}\n{end}\n", parts.join("\n"))
    }
}
