//! `meshctl map`: serves the live map of the agents that it reaches.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use clap::{ArgAction, Args};
use tokio::sync::Mutex;

use super::args::{WhomArgs, some_time};
use super::reach::Agents;
use super::{Screen, Verdict};
use crate::admin::{Address, Listener};
use crate::map::{self, Asked, Gate, Map, Source};
use crate::told::Told;

/// How often a cluster is asked which agents it has.
pub(super) const FIND_EVERY: Duration = Duration::from_secs(30);
/// How large the file of a token may be.
pub(super) const MAX_TOKEN_FILE_BYTES: u64 = 4096;

/// `meshctl map`
#[derive(Args, Debug)]
pub struct MapArgs {
    /// Where to serve it; port 0 is one that is free
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:15080")]
    pub listen: SocketAddr,
    /// A file with the token that whoever looks has to give; on another address than a loopback one there must be one
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// A name by which the page may be called beside localhost, such as that of a proxy before it; may be given several
    /// times
    #[arg(long, value_name = "NAME", action = ArgAction::Append)]
    pub host: Vec<String>,
    /// Between two rounds of questions to the agents
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = some_time)]
    pub interval: Duration,
}

/// Serves until the process is ended.
pub async fn run(args: &MapArgs, whom: &WhomArgs, agents: Agents, screen: &mut Screen<'_>) -> Result<Verdict> {
    let token = args.token_file.as_deref().map(token).transpose()?;
    // Before anything listens.
    Gate::new(args.listen, token.as_deref(), Vec::new())?;
    let listener = Listener::bind(&Address::Tcp(args.listen)).await;
    let listener = listener.with_context(|| format!("--listen: cannot listen on {}", args.listen))?;
    let address = listener.address().clone();
    let Address::Tcp(bound) = address else { anyhow::bail!("--listen: not an IP address") };
    let gate = Gate::new(bound, token.as_deref(), args.host.clone())?;
    let count = agents.count();
    let map = Map::new(Found { whom: whom.clone(), agents: Mutex::new((Instant::now(), Arc::new(agents))) });
    screen.print(&format!("the map of {count} agent(s): http://{bound}/\n"))?;
    tokio::select! {
        () = map.run(args.interval) => {}
        () = map::serve(listener, map.clone(), gate) => {}
    }
    Ok(Verdict::Well)
}

fn token(file: &Path) -> Result<String> {
    let told = || format!("--token-file: {}", file.display());
    let length = std::fs::metadata(file).with_context(told)?.len();
    ensure!(length <= MAX_TOKEN_FILE_BYTES, "{}: longer than {MAX_TOKEN_FILE_BYTES} bytes", told());
    std::fs::read_to_string(file).with_context(told)
}

/// Agents that are asked; those of a cluster come and go.
struct Found {
    whom: WhomArgs,
    /// Since when these are known.
    agents: Mutex<(Instant, Arc<Agents>)>,
}

impl Found {
    async fn now(&self) -> Arc<Agents> {
        let mut known = self.agents.lock().await;
        if self.whom.admin.is_empty() && known.0.elapsed() >= FIND_EVERY {
            known.0 = Instant::now();
            // Where they cannot be listed now, those that were known are asked.
            if let Ok(agents) = Agents::find(&self.whom).await {
                known.1 = Arc::new(agents);
            }
        }
        known.1.clone()
    }
}

impl Source for Found {
    fn ask(&self, path: &'static str) -> Asked<'_, Vec<Told>> {
        Box::pin(async move { self.now().await.ask(path).await })
    }

    fn ask_one(&self, path: &'static str) -> Asked<'_, Result<Bytes, String>> {
        Box::pin(async move { self.now().await.ask_one(path).await })
    }
}
