//! A load at a fixed rate, and how long its answers took: what `meshctl bench` runs, here or in a pod.
//!
//! Each request has a time at which it is due (`schedule`), whatever becomes of those before it, and its latency counts from
//! then: one that had to wait for another has waited (no coordinated omission). Whichever connection is free takes the next
//! that is due, and carries one request at a time (`line`). Every request is told of in the end: answered, or failed in one
//! of a few ways (`tally`). Knows nothing of the mesh: what that costs is the difference between two such loads.

mod line;
mod schedule;
mod tally;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use self::line::{Line, Target};
use self::schedule::Schedule;
pub use self::tally::{Failure, Latency, Summary};
use self::tally::{Outcome, Tally};
use crate::limit::{Limit, limits};

/// Requests a second: one thread sends them, and its own delay is not to be what is measured.
const MAX_RATE: u32 = 20_000;
/// Connections: below the descriptors that a process usually has.
const MAX_CONNECTIONS: u32 = 512;
/// How long a load may last.
const MAX_LENGTH: Duration = Duration::from_secs(3600);
/// How long an answer may be waited for.
const MAX_PATIENCE: Duration = Duration::from_secs(60);
/// How long after it was due a request is sent late: many times what this machine itself is late.
const LATE: Duration = Duration::from_millis(10);
/// How often it is told how far a load is.
const TELL_EVERY: Duration = Duration::from_millis(500);

/// The bounds of this room.
pub fn limits() -> Vec<Limit> {
    limits![
        MAX_RATE, "requests a second", "of a load: one thread sends them, and its own delay is not to be measured";
        MAX_CONNECTIONS, "connections", "of a load: below the descriptors that a process usually has";
        MAX_LENGTH, "milliseconds", "that a load may last";
        MAX_PATIENCE, "milliseconds", "that a load may wait for an answer";
        LATE, "milliseconds", "after it was due from which a request of a load is told as sent late";
        TELL_EVERY, "milliseconds", "between two words on how far a load is";
        tally::SLOWEST, "milliseconds", "the longest latency that a load tells apart: longer than any answer is waited for";
    ]
}

/// A load that cannot be.
#[derive(Debug, Error)]
pub enum Error {
    /// What was asked for is none.
    #[error("{url}: {expected}")]
    Url {
        /// What was given.
        url: String,
        /// What is.
        expected: &'static str,
    },
    /// Too much or too little of something.
    #[error("{what}: expected {least} to {most}")]
    Bounds {
        /// Of what.
        what: &'static str,
        /// At least.
        least: String,
        /// At most.
        most: String,
    },
    /// The server's name has no address.
    #[error("{host} has no address that is known here: {reason}")]
    Unresolved {
        /// The name.
        host: String,
        /// Why.
        reason: String,
    },
}

/// What is asked for, how often and by how many: within bounds.
#[derive(Clone, Debug)]
pub struct Load {
    target: Target,
    schedule: Schedule,
    connections: u32,
    patience: Duration,
}

/// How far a load is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Since the first was due.
    pub elapsed: Duration,
    /// Requests that were answered or failed.
    pub done: u64,
    /// Those of them that failed.
    pub failed: u64,
}

impl Load {
    /// So many requests a second for so long, by so many connections; an answer may take `patience`.
    ///
    /// # Errors
    /// It is none, or beyond bounds.
    pub fn new(url: &str, rate: u32, connections: u32, length: Duration, patience: Duration) -> Result<Self, Error> {
        let counts = [("--rate", rate, MAX_RATE), ("--connections", connections, MAX_CONNECTIONS)];
        for (what, count, most) in counts {
            if count == 0 || count > most {
                return Err(Error::Bounds { what, least: "1".into(), most: most.to_string() });
            }
        }
        let shown = |time: Duration| humantime::format_duration(time).to_string();
        let schedule = Schedule::new(rate, length);
        if schedule.count() == 0 || length > MAX_LENGTH {
            let one = Duration::from_secs(1) / rate;
            return Err(Error::Bounds { what: "--for", least: shown(one), most: shown(MAX_LENGTH) });
        }
        if patience < LATE || patience > MAX_PATIENCE {
            return Err(Error::Bounds { what: "--timeout", least: shown(LATE), most: shown(MAX_PATIENCE) });
        }
        Ok(Self { target: Target::read(url)?, schedule, connections, patience })
    }

    /// As the command line says it once more, for another process.
    pub fn arguments(&self) -> Vec<String> {
        vec![
            self.target.url.clone(),
            format!("--rate={}", self.schedule.rate),
            format!("--connections={}", self.connections),
            format!("--for={}", humantime::format_duration(self.schedule.length)),
            format!("--timeout={}", humantime::format_duration(self.patience)),
        ]
    }

    /// How long requests become due.
    pub fn length(&self) -> Duration {
        self.schedule.length
    }

    /// How long all of it takes at most: connections are made and tried before, and what is due last is waited for.
    pub fn at_most(&self) -> Duration {
        self.schedule.length + self.patience * 2
    }

    /// In one line.
    pub fn told(&self) -> String {
        let Self { target, schedule: Schedule { rate, length }, connections, patience: _ } = self;
        let of = |count: u32, one: &str| if count == 1 { format!("1 {one}") } else { format!("{count} {one}s") };
        let length = humantime::format_duration(*length);
        format!("{}: {} a second for {length}, {}", target.url, of(*rate, "request"), of(*connections, "connection"))
    }

    /// Asks, and says how it went. `tell` hears now and then how far it is.
    ///
    /// # Errors
    /// The server's name has no address. Whatever else goes wrong is counted.
    pub async fn run(&self, mut tell: impl FnMut(Progress)) -> Result<Summary, Error> {
        let addresses = self.target.addresses().await?;
        let lines = self.warmed(&addresses).await;
        let shared = Arc::new(Shared {
            schedule: self.schedule,
            patience: self.patience,
            begin: Instant::now(),
            due: Semaphore::new(0),
            taken: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
            tally: Mutex::new(Tally::new()),
        });
        let mut working = JoinSet::new();
        for line in lines {
            working.spawn(shared.clone().work(line));
        }
        let _over = pace(shared.clone());
        let mut look = tokio::time::interval(TELL_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                ended = working.join_next() => if ended.is_none() { break },
                _ = look.tick() => tell(shared.progress()),
            }
        }
        let tally = shared.tally();
        Ok(tally.summary(&self.target.url, self.schedule, self.connections, shared.begin.elapsed()))
    }

    /// Connections, each of which has asked once: what is new to the server or the mesh is not what is measured. One that
    /// fails now fails later, and is counted there.
    async fn warmed(&self, addresses: &[SocketAddr]) -> Vec<Line> {
        let mut warming = JoinSet::new();
        for number in 0..self.connections as usize {
            // Where there are several addresses, connections go round them.
            let first = number % addresses.len().max(1);
            let mut own = addresses.to_vec();
            own.rotate_left(first);
            let (target, patience) = (self.target.clone(), self.patience);
            warming.spawn(async move {
                let mut line = Line::new(target, own);
                let _ = tokio::time::timeout(patience, line.ask()).await;
                line
            });
        }
        warming.join_all().await
    }
}

/// What the connections of a load share.
struct Shared {
    schedule: Schedule,
    patience: Duration,
    /// When the first request is due.
    begin: Instant,
    /// A permit for each request that is due and that nobody has taken. Closed when the last one was.
    due: Semaphore,
    /// How many were taken.
    taken: AtomicU64,
    /// Nobody listens any more.
    is_over: AtomicBool,
    tally: Mutex<Tally>,
}

impl Shared {
    fn tally(&self) -> MutexGuard<'_, Tally> {
        // What panicked had not begun to count.
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn progress(&self) -> Progress {
        let tally = self.tally();
        Progress { elapsed: self.begin.elapsed(), done: tally.done(), failed: tally.failed() }
    }

    /// Takes requests as they become due, one after the other, until there are no more.
    async fn work(self: Arc<Self>, mut line: Line) {
        while let Ok(permit) = self.due.acquire().await {
            permit.forget();
            let number = self.taken.fetch_add(1, Ordering::Relaxed);
            if number + 1 >= self.schedule.count() {
                self.due.close();
            }
            let due = self.begin + self.schedule.due(number);
            let waited = due.elapsed();
            let outcome = match waited < self.patience {
                true => self.ask(&mut line, due).await,
                false => Outcome::Failed(Failure::Unsent),
            };
            self.tally().count(outcome, waited >= LATE);
        }
    }

    async fn ask(&self, line: &mut Line, due: Instant) -> Outcome {
        match tokio::time::timeout_at((due + self.patience).into(), line.ask()).await {
            Ok(Ok(answer)) => Outcome::Answered { answer, latency: due.elapsed() },
            Ok(Err(failure)) => Outcome::Failed(failure),
            Err(_) => Outcome::Failed(Failure::Timeout),
        }
    }
}

/// Ends the thread that says what is due.
struct Over(Arc<Shared>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::Relaxed);
    }
}

/// Says what is due when it is: by a thread, since tokio's own clock is a millisecond wide.
fn pace(shared: Arc<Shared>) -> Over {
    let over = Over(shared.clone());
    std::thread::spawn(move || {
        // A sleep of this thread ends when it is over, not 50 µs later. A kernel that refuses leaves it so.
        let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
        for number in 0..shared.schedule.count() {
            let due = shared.begin + shared.schedule.due(number);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if shared.is_over.load(Ordering::Relaxed) {
                return;
            }
            shared.due.add_permits(1);
        }
    });
    over
}
