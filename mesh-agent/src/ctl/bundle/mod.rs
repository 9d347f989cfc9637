//! `meshctl support-bundle`: one file with what somebody needs who helps from afar. It is bounded in bytes and time, has no
//! secrets in it, and its index says what could not be had. Who sends it sends names and addresses of pods, and policies.

mod archive;
mod cluster;
mod scrub;

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use clap::Args;
use serde_json::Value;

use self::archive::{Archive, Content, Index, Missing};
use super::args::{Output, WhomArgs};
use super::reach::{Agents, Told};
use super::table::{Cell, Paint, Table, Tone};
use super::{Screen, Verdict, words};
use crate::apiserver::ApiServer;

/// What a bundle holds before it is compressed. Text becomes a tenth of it.
pub(super) const MAX_BUNDLE_BYTES: usize = 512 << 20;
/// How long it may take to gather.
pub(super) const LONGEST: Duration = Duration::from_secs(300);
/// Objects of one kind.
pub(super) const MAX_OBJECTS: u32 = 2000;
/// Lines of one container's log, the last ones.
pub(super) const MAX_LOG_LINES: u32 = 20_000;
/// Bytes of them.
pub(super) const MAX_LOG_BYTES: u32 = 8 << 20;

/// What each agent is asked: file and path.
const ASKED: [(&str, &str); 7] = [
    ("readyz.txt", "/readyz"),
    ("metrics.txt", "/metrics"),
    ("config_dump.json", "/config_dump"),
    ("connections.json", "/connections"),
    ("denials.json", "/denials"),
    ("log-level.txt", "/log-level"),
    ("access-log.txt", "/access-log"),
];

/// `meshctl support-bundle`
#[derive(Args, Debug)]
pub struct BundleArgs {
    /// The file to write, which must not be there [default: nodemesh-support-TIME.tar.gz]
    #[arg(short, long, value_name = "PATH")]
    pub file: Option<PathBuf>,
    /// What to print of its index
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// How long there is still for all, and for one answer.
pub struct Clock {
    until: Instant,
    patience: Duration,
}

impl Clock {
    fn left(&self) -> Result<Duration, String> {
        let left = self.until.saturating_duration_since(Instant::now());
        let over = || format!("not asked any more: {} were over", humantime::format_duration(LONGEST));
        if left.is_zero() { Err(over()) } else { Ok(left) }
    }

    async fn within<T>(&self, asked: impl Future<Output = T>) -> Result<T, String> {
        let patience = self.patience.min(self.left()?);
        let late = |_| format!("no answer within {}", humantime::format_duration(patience));
        tokio::time::timeout(patience, asked).await.map_err(late)
    }
}

/// Gathers, writes, and prints the index.
pub async fn run(args: &BundleArgs, whom: &WhomArgs, screen: &mut Screen<'_>) -> Result<Verdict> {
    let begun = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let path = args.file.clone().unwrap_or_else(|| format!("nodemesh-support-{begun}.tar.gz").into());
    let clock = Clock { until: Instant::now() + LONGEST, patience: whom.timeout };
    // Before there is a file: whom to ask.
    let server = match whom.admin.is_empty() {
        true => Some(
            ApiServer::find_context(whom.kubeconfig.clone(), whom.context.clone())
                .await
                .context("to ask agents without a cluster: --admin IP:PORT or --admin unix:PATH")?,
        ),
        false => None,
    };
    let mut archive = Archive::create(&path, begun)?;
    let gathered = gather(server.as_ref(), whom, &clock, &mut archive).await;
    let index = gathered.and_then(|()| archive.finish());
    let index = index.inspect_err(|_| drop(std::fs::remove_file(&path)))?;
    match args.output {
        Output::Table | Output::Wide => screen.print(&render(&index, &path.display().to_string(), screen.paint()))?,
        Output::Json => screen.json(&index)?,
        Output::Yaml => screen.yaml(&index)?,
    }
    Ok(if index.missing.is_empty() { Verdict::Well } else { Verdict::Wrong })
}

async fn gather(server: Option<&ApiServer>, whom: &WhomArgs, clock: &Clock, archive: &mut Archive) -> Result<()> {
    if let Some(server) = server {
        cluster::gather(server, &whom.mesh_namespace, clock, archive).await?;
    }
    let agents = match Agents::find(whom).await {
        Ok(agents) => agents,
        Err(error) => return archive.add("agents", Err(format!("{error:#}"))),
    };
    // Few at a time: what they say is held until it is written.
    for few in agents.few() {
        for (file, path) in ASKED {
            let told = match clock.left() {
                // Each has its own time.
                Ok(_) => few.ask(path).await,
                Err(why) => few.names().map(|name| Told { name: name.clone(), answer: Err(why.clone()) }).collect(),
            };
            for Told { name, answer } in told {
                let place = format!("agents/{}/{file}", of_file(&name.node));
                archive.add(&place, answer.map(|answer| content(&answer)))?;
            }
        }
    }
    Ok(())
}

/// What an agent said, without what is secret. JSON is laid out for people.
fn content(answer: &[u8]) -> Content {
    match serde_json::from_slice::<Value>(answer) {
        Ok(mut said) => {
            let removed = scrub::json(&mut said);
            Content { text: format!("{said:#}\n"), cut: false, removed }
        }
        Err(_) => {
            let (text, removed) = scrub::text(&String::from_utf8_lossy(answer));
            Content { text, cut: false, removed }
        }
    }
}

/// A name that is one of a file: addresses of agents have slashes.
fn of_file(name: &str) -> String {
    name.replace(|c: char| !c.is_ascii_alphanumeric() && !"-.".contains(c), "_").trim_matches(['_', '.']).to_string()
}

fn render(index: &Index, path: &str, paint: Paint) -> String {
    let mut table = Table::new(&["FILE", "BYTES", "NOTE"]);
    for file in &index.files {
        let removed = (file.removed > 0).then(|| format!("{} secrets removed", file.removed));
        let cut = file.cut.then(|| "there was more".to_string());
        let note: Vec<String> = removed.into_iter().chain(cut).collect();
        table.push(vec![
            Cell::plain(&file.path),
            Cell::plain(words::bytes(file.bytes as u64)),
            Cell::new(note.join(", "), Tone::Doubtful),
        ]);
    }
    let missing = |Missing { path, why }: &Missing| paint.apply(&format!("missing: {path}: {why}"), Tone::Bad) + "\n";
    let missing: String = index.missing.iter().map(missing).collect();
    let files = index.files.len();
    format!(
        "{}\n{missing}{path}: {files} files and an index. It names pods, addresses and policies, and has no keys and no tokens: \
         look at it before you send it\n",
        table.render(paint)
    )
}
