//! An API server as the source: every list that matters is followed, and what comes of each object goes where a file's
//! objects go.
//!
//! ```text
//! watch ─┐
//! watch ─┼─► ledger ─► Store ─► Engine ─► a snapshot, some ms after the first change
//! watch ─┘   (what is whole, what is in trouble)
//! ```
//! The first snapshot waits for every list. From then on a list that fails takes nothing away.

mod kinds;
mod ledger;
mod object;
mod watch;

#[cfg(test)]
mod tests;

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use self::ledger::{Ledger, Moment};
use self::watch::Heard;
use super::Error;
use super::publisher::Publisher;
use crate::apiserver::ApiServer;
use crate::drain::Token;
use crate::limit::{Limit, limits};

/// How long nothing must come before what came is shown: the changes of one wish come close together.
const CHANGE_QUIET: Duration = Duration::from_millis(10);
/// How long what came is held back where more comes all the time.
const CHANGE_PATIENCE: Duration = Duration::from_millis(100);
/// Objects that are translated in one go.
const BATCH: usize = 1024;
/// Objects that wait to be translated; beyond that the watches wait.
const WAITING: usize = 1024;
/// How often the age of the state is looked at where nothing changes.
const LOOK: Duration = Duration::from_secs(2);

/// The bounds of this part.
pub fn limits() -> Vec<Limit> {
    use ledger::CERTAIN;
    use watch::{
        CONFIRMED, FIRST_PAUSE, LIST_PATIENCE, LONGEST_PAUSE, LOOK_AGAIN, PAGE, REFUSALS, TOLD, WATCH_SECONDS,
    };
    limits![
        BATCH, "objects", "that are translated in one go";
        CERTAIN, "milliseconds", "that the API server must not serve a kind, until what is in force of it goes";
        CONFIRMED, "milliseconds", "after which a kind that is not served is looked for again, the first time";
        FIRST_PAUSE, "milliseconds", "after a failed request; twice as long after each further one";
        LIST_PATIENCE, "milliseconds", "that a list may stand still before it is asked for anew";
        LONGEST_PAUSE, "milliseconds", "after a failed request";
        LOOK, "milliseconds", "between two looks at the age of the state where nothing changes";
        LOOK_AGAIN, "milliseconds", "until a kind is looked for again that the API server does not serve";
        PAGE, "objects", "per request of a list";
        CHANGE_PATIENCE, "milliseconds", "that a change waits for others where more come all the time";
        CHANGE_QUIET, "milliseconds", "that a change waits for others";
        REFUSALS, "refusals", "of a watch in a row, after which its list is made anew";
        TOLD, "characters", "of an answer that is not what was asked for";
        WAITING, "objects", "that wait to be translated; then the watches wait";
        WATCH_SECONDS, "seconds", "until a watch is asked for anew, from where it was";
    ]
}

/// How patient this is; tests have less time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// How often a kind is looked for that the API server does not serve.
    pub look_again: Duration,
    /// How long it must not be served until what is in force of it goes.
    pub certain: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { look_again: watch::LOOK_AGAIN, certain: ledger::CERTAIN }
    }
}

/// Publishes what the API server has, and every change, until `shutdown` starts.
pub(super) async fn run(
    server: ApiServer,
    node: &str,
    pace: Pace,
    publisher: Publisher,
    mut shutdown: Token,
) -> Result<(), Error> {
    let watches = kinds::watches(node);
    let address = server.address();
    publisher.waiting(format!("{address} was not heard of yet"));
    let (tell, mut told) = mpsc::channel(WAITING);
    let mut followers = JoinSet::new();
    for (number, watch) in watches.iter().enumerate() {
        followers.spawn(watch::follow(number, watch.clone(), server.clone(), tell.clone(), pace));
    }
    drop(tell);
    let ledger = Ledger::new(watches, pace.certain, Moment::now().wall);
    let mut sandboxes = publisher.sandbox_changes();
    let mut cluster = Cluster { address, ledger, publisher };
    loop {
        let heard = tokio::select! {
            () = shutdown.started() => return Ok(()),
            heard = next(&mut told, &mut sandboxes) => heard,
        };
        cluster = tokio::task::spawn_blocking(move || cluster.take(heard)).await?;
    }
}

/// What comes until it is quiet for a moment; nothing where nothing comes for a while, or a sandbox comes or goes.
async fn next(
    told: &mut mpsc::Receiver<(usize, Heard)>,
    sandboxes: &mut tokio::sync::watch::Receiver<u64>,
) -> Vec<(usize, Heard)> {
    let mut heard = Vec::new();
    let first = tokio::select! {
        first = timeout_at(Instant::now() + LOOK, told.recv()) => first,
        // An error would mean that nobody holds them, and the publisher does.
        _ = sandboxes.changed() => return heard,
    };
    match first {
        Ok(Some(first)) => heard.push(first),
        // Nobody follows anything any more: what there is is watched getting old.
        Ok(None) => tokio::time::sleep(LOOK).await,
        Err(_) => {}
    }
    if heard.is_empty() {
        return heard;
    }
    let latest = Instant::now() + CHANGE_PATIENCE;
    while heard.len() < BATCH {
        let quiet = (Instant::now() + CHANGE_QUIET).min(latest);
        match timeout_at(quiet, told.recv()).await {
            Ok(Some(more)) => heard.push(more),
            Ok(None) | Err(_) => break,
        }
    }
    heard
}

/// The source, as far as it is known.
struct Cluster {
    address: String,
    ledger: Ledger,
    publisher: Publisher,
}

impl Cluster {
    fn take(mut self, heard: Vec<(usize, Heard)>) -> Self {
        let now = Moment::now();
        self.publisher.address();
        let mut changed = false;
        for (number, heard) in heard {
            let observed = self.ledger.hear(number, heard, &self.publisher.current.store, now);
            for observed in &observed {
                changed |= self.publisher.current.observe(observed);
            }
        }
        self.publisher.health.watches(self.ledger.report());
        let trouble = self.ledger.trouble().map(|trouble| format!("{}: {trouble}", self.address));
        if !self.ledger.is_settled() {
            if let Some(trouble) = &trouble {
                self.publisher.health.unreachable(trouble.clone());
            }
            self.publisher.waiting(trouble.unwrap_or_else(|| format!("{}: {}", self.address, self.ledger.missing())));
            return self;
        }
        if changed || !self.publisher.is_published() {
            self.publisher.publish();
        }
        match trouble {
            Some(trouble) => self.publisher.keep(trouble),
            None if self.ledger.is_current() => self.publisher.seen_again(),
            None => {}
        }
        self
    }
}
