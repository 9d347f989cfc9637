//! One list of an API server, followed for good: told from its beginning, then by its changes.
//!
//! ```text
//!   ┌──────────── not served ◄── 404 ──┐
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
    /// The API server does not serve the kind.
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
pub async fn follow(number: usize, watch: Watch, server: ApiServer, tell: Teller, look_again: Duration) {
    let answers = Arc::<Answers>::default();
    let noted = answers.clone();
    let client = server.watching(move |status| noted.note(status.is_success()));
    let client = match client {
        Ok(client) => client,
        Err(error) => {
            let failure = Failure { cause: Cause::Refused, reason: apiserver::chain(&error) };
            let _ = tell.send((number, Heard::Failed(failure))).await;
            return;
        }
    };
    let mut looked = false;
    let mut follower = Follower { number, watch, client, answers, tell, failures: Failures::default() };
    loop {
        let mut versions: VecDeque<ApiResource> = follower.watch.resources().collect();
        while let Some(resource) = versions.front() {
            match follower.follow(Arc::new(resource.clone())).await {
                End::NotServed => drop(versions.pop_front()),
                End::Again => {}
                End::Unheard => return,
            }
        }
        if follower.tell(Heard::NotServed).await.is_err() {
            return;
        }
        sleep(if looked { jittered(look_again) } else { CONFIRMED }).await;
        looked = true;
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
    answers: Arc<Answers>,
    tell: Teller,
    failures: Failures,
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
                Ok(Some(Err(error))) => match judge(&error) {
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

    async fn tell(&self, heard: Heard) -> Result<(), Unheard> {
        self.tell.send((self.number, heard)).await.map_err(|_| Unheard)
    }
}

/// What follows from an error of the watcher.
enum Verdict {
    NotServed,
    Expired,
    Failed(Failure),
}

fn judge(error: &watcher::Error) -> Verdict {
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
    let reason = || if status.message.is_empty() { status.reason.clone() } else { status.message.clone() };
    match status.code {
        404 => Verdict::NotServed,
        410 => Verdict::Expired,
        401 | 403 => Verdict::Failed(Failure { cause: Cause::Forbidden, reason: reason() }),
        code => Verdict::Failed(Failure { cause: Cause::Refused, reason: format!("{code} {}", reason()) }),
    }
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
