//! Which agent of this node owns capture.
//!
//! Agents that share pins know of each other through a pinned map: an entry per agent under a generation that only
//! rises. The newest that lives owns; only the owner enrols, un-enrols, sweeps and publishes. At an upgrade the new agent
//! stands beside the old one:
//!
//! ```text
//! start ──► Owner ──a newer agent starts──► Superseded ──retire()──► Retired
//!             ▲                                 │
//!             └──the newer agent dies───────────┘
//! ```
//! One that takes the mesh off the node says so in its entry, and then counts for the owner for good: an earlier one that
//! still serves what it has must not put back what was taken off.
//!
//! An entry names its process by pid and start time, so the entry of one that was killed counts for nothing. The agents
//! of a node see each other's processes: they share the node's PID namespace, as they have to for the pods'.
//!
//! A generation is taken, and every step of the owner is done, under a lock on the pins' directory, which the kernel
//! takes from a process that dies: no step of an earlier owner is under way when a later one begins.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_common::names::maps;
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::sync::watch;

use super::cgroups;
use super::error::Error;
use super::loader::Pins;
use super::table::Table;
use crate::sys;

/// How often an agent looks whether it still owns capture. What it must not do is asked at every step besides.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long the lock is waited for. It is held for single steps, milliseconds each; a process that hangs in one must not
/// keep the next agent from starting for ever.
pub(super) const LOCK_PATIENCE: Duration = Duration::from_secs(5);
/// How often the lock is tried.
pub(super) const LOCK_RETRY: Duration = Duration::from_millis(2);
/// How many agents may be on record: the entries of those that died go when the next one starts.
pub(super) const MAX_INSTANCES: u32 = 64;

/// Where this agent stands among the agents of its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is the newest: capture is its work.
    Owner,
    /// A newer agent owns capture; this one serves what it has.
    Superseded {
        /// The newest agent.
        by: u32,
        /// Whether that one has said that it is ready.
        ready: bool,
    },
    /// It accepts nothing any more, and no newer agent lives.
    Retired,
}

impl Standing {
    /// Whether another agent has taken over and is ready.
    pub fn is_handed_over(self) -> bool {
        matches!(self, Standing::Superseded { ready: true, .. })
    }
}

/// This agent's entry, and those of the others.
#[derive(Clone)]
pub(super) struct Ownership {
    inner: Arc<Inner>,
}

struct Inner {
    /// By generation. The value is pid, start time, [`Stage`].
    instances: Table<u64, [u64; 3]>,
    /// The pins' directory, open for its lock.
    lock: File,
    own: u64,
    /// The pid of the agent that was there before, and lived at the start of this one.
    predecessor: Option<u32>,
    standing: watch::Sender<Standing>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instance {
    process: Process,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
enum Stage {
    Starting = 0,
    Ready = 1,
    Retired = 2,
    /// It takes the mesh off the node.
    Leaving = 3,
}

/// A process that no other can be mistaken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Process {
    pid: u32,
    /// In clock ticks since boot.
    started: u64,
}

/// The right to do one step; gives the lock back when dropped.
pub(super) struct Turn<'a> {
    lock: &'a File,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let _ = flock(self.lock, FlockOperation::Unlock);
    }
}

impl Ownership {
    /// Makes this agent the owner. The one before it, if it lives, notices.
    pub fn take(pins: &Pins) -> Result<Self, Error> {
        let failed = || Error::io("taking capture over");
        let lock = File::open(pins.root()).map_err(failed())?;
        let turn = lock_patiently(&lock).map_err(failed())?;
        if turn.is_none() {
            tracing::warn!("another agent of this node hangs in a step of its capture; taking over without it");
        }
        let instances = Table::open_or_make(&pins.maps(), maps::INSTANCES, MAX_INSTANCES).map_err(failed())?;
        let known: Vec<(u64, Instance)> = instances_of(&instances);
        for (generation, _) in known.iter().filter(|(_, instance)| !instance.process.is_alive()) {
            instances.remove(generation);
        }
        let living = known.iter().filter(|(_, instance)| instance.process.is_alive());
        let before = living.max_by_key(|(generation, _)| *generation).map(|(_, instance)| instance.process.pid);
        let own = known.iter().map(|(generation, _)| *generation).max().unwrap_or(0).saturating_add(1);
        let process = Process::own().map_err(failed())?;
        instances.insert(&own, &Instance { process, stage: Stage::Starting }.to_words()).map_err(failed())?;
        drop(turn);
        let standing = watch::Sender::new(Standing::Owner);
        Ok(Self { inner: Arc::new(Inner { instances, lock, own, predecessor: before, standing }) })
    }

    /// The pid of the living agent that this one took over from.
    pub fn predecessor(&self) -> Option<u32> {
        self.inner.predecessor
    }

    /// Where this agent stands, and every change of it.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.inner.standing.subscribe()
    }

    /// The right to do one step of capture's work; none if the work is another's.
    pub async fn turn(&self) -> Option<Turn<'_>> {
        let give_up = Instant::now() + LOCK_PATIENCE;
        let turn = loop {
            match try_lock(&self.inner.lock) {
                Ok(Some(turn)) => break turn,
                Ok(None) if Instant::now() < give_up => tokio::time::sleep(LOCK_RETRY).await,
                Ok(None) | Err(_) => return None,
            }
        };
        (self.look() == Standing::Owner).then_some(turn)
    }

    /// Says that this agent serves every pod that it can.
    pub fn mark_ready(&self) {
        self.inner.mark(Stage::Ready);
    }

    /// Says that this agent accepts nothing any more; it does not own capture again.
    pub fn retire(&self) {
        self.inner.mark(Stage::Retired);
        self.look();
    }

    /// Says that this agent takes the mesh off the node: no earlier one owns capture again, whatever becomes of this one.
    pub fn leave(&self) {
        self.inner.mark(Stage::Leaving);
    }

    /// Whether no other agent lives: records that no connection of this agent holds are nobody's then.
    pub fn is_alone(&self) -> bool {
        let known = instances_of(&self.inner.instances);
        known.iter().all(|(generation, instance)| *generation == self.inner.own || !instance.process.is_alive())
    }

    /// The generation of the newest agent on record, alive or not: one may have come and gone unseen.
    pub fn newest(&self) -> u64 {
        self.inner.instances.keys(MAX_INSTANCES as usize).into_iter().max().unwrap_or(self.inner.own)
    }

    /// Looks where this agent stands now.
    pub fn look(&self) -> Standing {
        let known = instances_of(&self.inner.instances);
        let standing = match owner(&known) {
            Some((generation, instance)) if generation > self.inner.own => {
                Standing::Superseded { by: instance.process.pid, ready: instance.stage >= Stage::Ready }
            }
            Some((generation, _)) if generation == self.inner.own => Standing::Owner,
            Some(_) => Standing::Retired,
            // With its entry gone, the pins were taken off under it: it goes on as it stood.
            None if known.iter().all(|(generation, _)| *generation != self.inner.own) => *self.inner.standing.borrow(),
            None => Standing::Retired,
        };
        self.inner.standing.send_if_modified(|before| {
            let changed = *before != standing;
            if changed {
                tell(standing);
            }
            *before = standing;
            changed
        });
        standing
    }

    /// Keeps looking; never returns. The end of the owner's process is noticed at once.
    pub async fn watch(&self) {
        loop {
            match self.look() {
                standing @ Standing::Superseded { by, .. } => {
                    let ended = tokio::time::timeout(LOOK_EVERY, ended(by)).await;
                    // It may have taken the mesh along.
                    if ended.is_ok() && self.look() == standing {
                        tokio::time::sleep(LOOK_EVERY).await;
                    }
                }
                Standing::Owner | Standing::Retired => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
    }
}

impl Inner {
    /// Stages only rise.
    fn mark(&self, stage: Stage) {
        let Self { instances, own, .. } = self;
        let Some(mut instance) = instances.get(own).and_then(Instance::from_words) else { return };
        if instance.stage < stage {
            instance.stage = stage;
            if let Err(error) = instances.set(own, &instance.to_words()) {
                tracing::warn!(%error, "this agent's entry among the agents of the node could not be changed");
            }
        }
    }
}

impl Drop for Inner {
    /// The entry stays, for others to see that there was an agent; the next one to start takes it out.
    fn drop(&mut self) {
        self.mark(Stage::Retired);
    }
}

fn tell(standing: Standing) {
    match standing {
        Standing::Owner => tracing::warn!("the newer agent is gone: capture is this agent's again"),
        Standing::Superseded { by, ready } => {
            tracing::info!(by, ready, "a newer agent owns capture; this one serves what it has")
        }
        Standing::Retired => tracing::info!("this agent accepts no more connections"),
    }
}

/// The newest agent that lives and accepts connections, or that has taken the mesh off the node.
fn owner(known: &[(u64, Instance)]) -> Option<(u64, Instance)> {
    let mut candidates: Vec<_> = known.iter().filter(|(_, instance)| instance.stage != Stage::Retired).collect();
    candidates.sort_unstable_by_key(|(generation, _)| *generation);
    let is_one = |instance: &Instance| instance.stage == Stage::Leaving || instance.process.is_alive();
    candidates.into_iter().rev().find(|(_, instance)| is_one(instance)).copied()
}

fn instances_of(table: &Table<u64, [u64; 3]>) -> Vec<(u64, Instance)> {
    let keys = table.keys(MAX_INSTANCES as usize);
    keys.into_iter().filter_map(|key| Some((key, Instance::from_words(table.get(&key)?)?))).collect()
}

impl Instance {
    fn to_words(self) -> [u64; 3] {
        [u64::from(self.process.pid), self.process.started, self.stage as u64]
    }

    /// None for what an agent of another version has written.
    fn from_words([pid, started, stage]: [u64; 3]) -> Option<Self> {
        let stages = [Stage::Starting, Stage::Ready, Stage::Retired, Stage::Leaving];
        let stage = stages.into_iter().find(|known| *known as u64 == stage)?;
        Some(Self { process: Process { pid: u32::try_from(pid).ok()?, started }, stage })
    }
}

impl Process {
    fn own() -> io::Result<Self> {
        let pid = std::process::id();
        let started = start_time(pid)?.ok_or_else(|| io::Error::other("this process has no entry in /proc"))?;
        Ok(Self { pid, started })
    }

    /// Also where that cannot be told: an agent that lacks descriptors lives.
    fn is_alive(self) -> bool {
        start_time(self.pid).map_or(true, |started| started == Some(self.started))
    }
}

/// When a process that runs was started; none for one that ended, also while its parent has not taken note.
///
/// # Errors
/// It cannot be told.
fn start_time(pid: u32) -> io::Result<Option<u64>> {
    match fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")) {
        Ok(stat) => Ok(start_time_in(&stat)),
        Err(error) if cgroups::has_ended(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// `PID (NAME) STATE …`: the name may hold anything, and field 22 is the start.
fn start_time_in(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    let state = fields.next()?;
    let started = fields.nth(18)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(started)
}

fn try_lock(lock: &File) -> io::Result<Option<Turn<'_>>> {
    match flock(lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(Turn { lock })),
        Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// At the start of the agent, when there is nothing else to do yet. None when it took too long.
fn lock_patiently(lock: &File) -> io::Result<Option<Turn<'_>>> {
    let give_up = Instant::now() + LOCK_PATIENCE;
    loop {
        match try_lock(lock)? {
            Some(turn) => return Ok(Some(turn)),
            None if Instant::now() >= give_up => return Ok(None),
            None => std::thread::sleep(LOCK_RETRY),
        }
    }
}

/// Returns when the process has ended; never if it cannot be watched.
async fn ended(pid: u32) {
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let Some(process) = process else { return std::future::pending().await };
    match pidfd_open(process, PidfdFlags::empty()) {
        Ok(descriptor) => match sys::watch_process(descriptor) {
            Ok(descriptor) => drop(descriptor.readable().await),
            Err(_) => std::future::pending().await,
        },
        Err(rustix::io::Errno::SRCH) => {}
        Err(_) => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_by_its_start() {
        let own = Process::own().unwrap();
        assert!(own.is_alive());
        assert!(!Process { started: own.started + 1, ..own }.is_alive());
        let stat =
            |state: &str| format!("7 (a) b) ({state}) {state} 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20");
        let table = [("S", Some(4242)), ("R", Some(4242)), ("Z", None), ("X", None)];
        for (state, expected) in table {
            assert_eq!(start_time_in(&stat(state)), expected, "{state}");
        }
        assert_eq!(start_time_in("7 (a"), None);
    }

    #[test]
    fn the_newest_that_lives_and_accepts_owns() {
        let own = Process::own().unwrap();
        let dead = Process { started: own.started + 1, ..own };
        let at = |generation, process, stage| (generation, Instance { process, stage });
        let (starting, ready, retired, leaving) = (Stage::Starting, Stage::Ready, Stage::Retired, Stage::Leaving);
        type Row<'a> = (&'a [(u64, Instance)], Option<u64>);
        let table: [Row<'_>; 9] = [
            (&[], None),
            (&[at(1, own, ready)], Some(1)),
            (&[at(2, own, starting), at(1, own, ready)], Some(2)),
            (&[at(2, dead, ready), at(1, own, ready)], Some(1)),
            (&[at(2, own, retired), at(1, own, ready)], Some(1)),
            (&[at(1, own, retired), at(2, dead, ready)], None),
            (&[at(3, dead, ready), at(2, own, starting), at(1, own, retired)], Some(2)),
            (&[at(2, dead, leaving), at(1, own, ready)], Some(2)),
            (&[at(3, own, starting), at(2, dead, leaving), at(1, own, ready)], Some(3)),
        ];
        for (known, expected) in table {
            assert_eq!(owner(known).map(|(generation, _)| generation), expected, "{known:?}");
            for (_, instance) in known {
                assert_eq!(Instance::from_words(instance.to_words()), Some(*instance));
            }
        }
        assert_eq!(Instance::from_words([1, 1, 4]), None);
    }
}
