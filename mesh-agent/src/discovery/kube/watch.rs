//! One list of an API server, followed for good: told from its beginning, then by its changes.
//!
//! ```text
//!   ┌──────────── not served ◄── 404 ──┐     (and the API server's list of what it serves says so too)
//!   ▼  (looked for now and then)       │
//! Listing ──► objects ──► Listed ──► changes ──► …
//!   ▲                                  │
//!   └──── 410 Gone: the list anew ─────┘      any other failure: again, later each time
//! ```
//! What it tells is for [`super::ledger`] to judge. Nothing that fails here takes anything away.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ::kube::api::{Api, ApiResource};
use ::kube::runtime::watcher::{self, Event, watcher};
use ::kube::{Client, Error as RequestError};
use futures_util::StreamExt;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep, timeout};

use super::Pace;
use super::kinds::Watch;
use super::object::Watched;
use crate::apiserver::{self, ApiServer};
use crate::state::Key;

/// Objects per request of a list: what an agent and the API server hold at once of a large one.
pub const PAGE: u32 = 500;
/// After how many seconds a watch is asked for anew, from where it was. A connection that died without a word is found by
/// the kernel much earlier, see `apiserver`.
pub const WATCH_SECONDS: u32 = 240;
/// How long a list may stand still before it is asked for anew.
pub const LIST_PATIENCE: Duration = Duration::from_secs(120);
/// The pause after a failure, twice as long after each further one, a random part of it.
pub const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// Refusals of a watch in a row after which the list is made anew: where the API server's storage was set back, it knows
/// nothing of where the watch was.
pub const REFUSALS: u32 = 3;
/// How often a kind is looked for that the API server does not serve.
pub const LOOK_AGAIN: Duration = Duration::from_secs(15);
/// The same, when it was not found for the first time: an API server that starts may not know yet what it serves.
pub const CONFIRMED: Duration = Duration::from_secs(1);

/// How much of an answer is told that is not what was asked for: it may be a page for people, from whoever stands before
/// the API server.
pub const TOLD: usize = 200;

/// What a watch tells.
#[derive(Debug)]
pub enum Heard {
    /// A list begins. What is not in it is gone.
    Listing,
    /// An object as it is now.
    Object(Box<Watched>, Arc<ApiResource>),
    /// An object is gone.
    Gone(Key),
    /// The list is whole.
    Listed,
    /// The API server answers again.
    Answered,
    /// The API server does not serve the kind, by its own list of what it serves.
    NotServed,
    /// The API server does not know any more what changed since.
    Expired,
    /// It was asked in vain, and will be again.
    Failed(Failure),
}

/// Why it was asked in vain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Who has to do something about it.
    pub cause: Cause,
    /// In words.
    pub reason: String,
}

/// The causes of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// No answer.
    Unreachable,
    /// 401 or 403.
    Forbidden,
    /// Another answer than what was asked for.
    Refused,
}

/// Where a watch tells it: its number, and what.
pub type Teller = mpsc::Sender<(usize, Heard)>;

/// Follows a list until nobody listens.
pub async fn follow(number: usize, watch: Watch, server: ApiServer, tell: Teller, pace: Pace) {
    let answers = Arc::<Answers>::default();
    let noted = answers.clone();
    let client = server.watching(move |status| noted.note(status.is_success()));
    let (client, asking) = match client.and_then(|client| Ok((client, server.client()?))) {
        Ok(clients) => clients,
        Err(error) => {
            let failure = Failure { cause: Cause::Refused, reason: apiserver::chain(&error) };
            let _ = tell.send((number, Heard::Failed(failure))).await;
            return;
        }
    };
    let mut looked = false;
    let failures = Failures::default();
    let mut follower =
        Follower { number, watch, client, asking, answers, tell, failures, certain: pace.certain, missed: None };
    loop {
        let mut versions: VecDeque<ApiResource> = follower.watch.resources().collect();
        while let Some(resource) = versions.front() {
            match follower.follow(Arc::new(resource.clone())).await {
                End::NotServed => drop(versions.pop_front()),
                End::Again => {}
                End::Unheard => return,
            }
        }
        let heard = follower.missing().await;
        let pause = match heard {
            Heard::NotServed if looked => jittered(pace.look_again),
            Heard::NotServed => CONFIRMED,
            _ => follower.failures.pause(),
        };
        looked |= matches!(heard, Heard::NotServed);
        if follower.tell(heard).await.is_err() {
            return;
        }
        sleep(pause).await;
    }
}

/// How following one version of a kind ends.
enum End {
    /// The API server does not serve it.
    NotServed,
    /// The list has to be made anew.
    Again,
    /// Nobody listens any more.
    Unheard,
}

/// Nobody listens any more.
struct Unheard;

struct Follower {
    number: usize,
    watch: Watch,
    client: Client,
    /// For what is asked beside the watch; its answers say nothing of the watch.
    asking: Client,
    answers: Arc<Answers>,
    tell: Teller,
    failures: Failures,
    /// How long the kind must not be served until what is in force of it goes.
    certain: Duration,
    /// Since when the API server has said each time that it does not serve the kind.
    missed: Option<Instant>,
}

impl Follower {
    async fn follow(&mut self, resource: Arc<ApiResource>) -> End {
        let api: Api<Watched> = Api::all_with(self.client.clone(), resource.as_ref());
        let config = self.watch.config(PAGE, WATCH_SECONDS);
        let mut events = pin!(watcher(api, config));
        let answers = self.answers.clone();
        let mut listing = true;
        let mut refusals = 0;
        loop {
            let patience = if listing { LIST_PATIENCE } else { Duration::MAX };
            let event = tokio::select! {
                event = timeout(patience, events.next()) => event,
                () = answers.again.notified() => {
                    if answers.good.load(Ordering::Relaxed) > 0 && self.tell(Heard::Answered).await.is_err() {
                        return End::Unheard;
                    }
                    continue;
                }
            };
            let heard = match event {
                Ok(Some(Ok(event))) => {
                    if !matches!(event, Event::Init) {
                        refusals = 0;
                        self.failures.over();
                    }
                    match event {
                        Event::Init => {
                            listing = true;
                            Heard::Listing
                        }
                        Event::InitDone => {
                            listing = false;
                            Heard::Listed
                        }
                        Event::InitApply(object) | Event::Apply(object) => {
                            Heard::Object(Box::new(object), resource.clone())
                        }
                        Event::Delete(object) => match object.key(self.watch.kind) {
                            Some(key) => Heard::Gone(key),
                            None => continue,
                        },
                    }
                }
                Ok(Some(Err(error))) => match judge(&error, self.watch.is_built_in()) {
                    Verdict::NotServed => return End::NotServed,
                    Verdict::Expired => {
                        if self.tell(Heard::Expired).await.is_err() {
                            return End::Unheard;
                        }
                        sleep(jittered(FIRST_PAUSE)).await;
                        return End::Again;
                    }
                    Verdict::Failed(failure) => {
                        if matches!(error, watcher::Error::WatchStartFailed(RequestError::Api(_))) {
                            refusals += 1;
                        }
                        answers.lost();
                        if self.tell(Heard::Failed(failure)).await.is_err() {
                            return End::Unheard;
                        }
                        sleep(self.failures.pause()).await;
                        if refusals >= REFUSALS {
                            return End::Again;
                        }
                        continue;
                    }
                },
                // The stream has no end; and a list that stands still is begun anew.
                Ok(None) | Err(_) => {
                    sleep(self.failures.pause()).await;
                    return End::Again;
                }
            };
            if self.tell(heard).await.is_err() {
                return End::Unheard;
            }
        }
    }

    /// What it means that no version of the kind was found. Whoever stands before an API server may say so as well; so it
    /// counts where the list of what is served does not have the kind either.
    async fn missing(&mut self) -> Heard {
        // By now nothing of it is in force: there is nothing that another 404 could take away.
        if self.missed.is_some_and(|since| since.elapsed() > 2 * self.certain) {
            return Heard::NotServed;
        }
        let reason = match timeout(LIST_PATIENCE, self.is_served()).await {
            Ok(Ok(false)) => {
                self.missed.get_or_insert_with(Instant::now);
                return Heard::NotServed;
            }
            Ok(Ok(true)) => "404, and it is in the list of what is served".to_string(),
            Ok(Err(reason)) => format!("404, and /apis does not confirm it (ClusterRole system:discovery): {reason}"),
            Err(_) => "404, and /apis does not answer".to_string(),
        };
        self.answers.lost();
        Heard::Failed(Failure { cause: Cause::Refused, reason })
    }

    /// Whether the API server has any version of the kind in its list of what it serves.
    async fn is_served(&self) -> Result<bool, String> {
        let groups = self.asking.list_api_groups().await.map_err(|error| told(&apiserver::chain(&error)))?.groups;
        if groups.is_empty() {
            return Err("a list of no groups, which no API server has".to_string());
        }
        for resource in self.watch.resources() {
            let has = |version: &str| version == resource.api_version;
            if !groups.iter().flat_map(|group| &group.versions).any(|version| has(&version.group_version)) {
                continue;
            }
            let list = self.asking.list_api_group_resources(&resource.api_version).await;
            let list = list.map_err(|error| told(&apiserver::chain(&error)))?;
            if !has(&list.group_version) {
                return Err(format!("/apis/{} is not what it was asked for", resource.api_version));
            }
            if list.resources.iter().any(|one| one.name == resource.plural) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn tell(&mut self, heard: Heard) -> Result<(), Unheard> {
        if !matches!(heard, Heard::Listing | Heard::NotServed) {
            self.missed = None;
        }
        self.tell.send((self.number, heard)).await.map_err(|_| Unheard)
    }
}

/// What follows from an error of the watcher.
enum Verdict {
    NotServed,
    Expired,
    Failed(Failure),
}

/// A kind that every API server serves is not missing: who says so is not the API server, or is not itself.
fn judge(error: &watcher::Error, is_built_in: bool) -> Verdict {
    let status = match error {
        watcher::Error::InitialListFailed(RequestError::Api(status))
        | watcher::Error::WatchStartFailed(RequestError::Api(status))
        | watcher::Error::WatchFailed(RequestError::Api(status))
        | watcher::Error::WatchError(status) => status,
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => {
            return Verdict::Failed(Failure { cause: Cause::Unreachable, reason: apiserver::chain(error) });
        }
        watcher::Error::NoResourceVersion => {
            let reason = "a list or an object without resourceVersion".to_string();
            return Verdict::Failed(Failure { cause: Cause::Refused, reason });
        }
    };
    let reason = || told(if status.message.is_empty() { &status.reason } else { &status.message });
    match status.code {
        404 if !is_built_in => Verdict::NotServed,
        410 => Verdict::Expired,
        401 | 403 => Verdict::Failed(Failure { cause: Cause::Forbidden, reason: reason() }),
        code => Verdict::Failed(Failure { cause: Cause::Refused, reason: format!("{code} {}", reason()) }),
    }
}

/// In one line, and not all of it.
fn told(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").chars().take(TOLD).collect()
}

/// Whether the API server answers, as the client sees it: the watcher says nothing of a watch that was taken up again.
#[derive(Default)]
struct Answers {
    /// Answers since the last failure.
    good: AtomicU64,
    /// The first of them.
    again: Notify,
}

impl Answers {
    fn note(&self, good: bool) {
        if good && self.good.fetch_add(1, Ordering::Relaxed) == 0 {
            self.again.notify_one();
        }
    }

    fn lost(&self) {
        self.good.store(0, Ordering::Relaxed);
    }
}

/// Failures in a row.
#[derive(Default)]
struct Failures {
    count: u32,
    last: Option<Instant>,
}

impl Failures {
    fn over(&mut self) {
        self.count = 0;
    }

    /// How long to wait before the next try. One after a long time is a first one.
    fn pause(&mut self) -> Duration {
        let now = Instant::now();
        if self.last.is_some_and(|last| now.duration_since(last) > 2 * LONGEST_PAUSE) {
            self.count = 0;
        }
        self.last = Some(now);
        let pause = FIRST_PAUSE.saturating_mul(2u32.saturating_pow(self.count)).min(LONGEST_PAUSE);
        self.count = self.count.saturating_add(1);
        jittered(pause)
    }
}

/// Half of a time to all of it: what many agents do at once spreads.
fn jittered(time: Duration) -> Duration {
    time.mul_f64(0.5 + fastrand::f64() / 2.0)
}
