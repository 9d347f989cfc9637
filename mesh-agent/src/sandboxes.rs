//! Pods whose network stands before any process of theirs runs: what the container runtime's plugin hands to the agent.
//! The world learns their addresses from here before the API server knows them, capture their network namespace, and who
//! answers the plugin how far capture is.

use std::collections::HashMap;
use std::fs::File;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::limit::{Limit, limits};

/// How long a sandbox is remembered that no pod of this node is known for. Longer than the plugin waits.
const FORGET_AFTER: Duration = Duration::from_secs(120);

/// The bounds of this room.
pub fn limits() -> Vec<Limit> {
    limits![
        FORGET_AFTER, "milliseconds", "that a sandbox is remembered for which no pod of this node is known";
    ]
}

/// All of them. Cheap to clone.
#[derive(Clone, Default)]
pub struct Sandboxes {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    /// By the pod's uid: the newest of each.
    pods: Mutex<HashMap<Arc<str>, Sandbox>>,
    /// Counts every change of addresses.
    changes: watch::Sender<u64>,
    /// By the pod's uid.
    progress: watch::Sender<HashMap<Arc<str>, Progress>>,
}

/// One pod's network.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// The runtime's id of it.
    pub container: Arc<str>,
    /// The pod's addresses, the primary first.
    pub ips: Vec<IpAddr>,
    /// Open on the network namespace.
    pub netns: Arc<File>,
    inode: u64,
    since: Instant,
}

/// How far capture is with a pod that has a sandbox here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It is captured in the namespace with this inode.
    Captured(u64),
    /// It is not, for this reason.
    Waiting(String),
}

impl Sandbox {
    /// A sandbox that has just been made.
    ///
    /// # Errors
    /// The descriptor cannot be looked at.
    pub fn new(container: &str, ips: Vec<IpAddr>, netns: File) -> std::io::Result<Self> {
        let inode = netns.metadata()?.ino();
        Ok(Self { container: container.into(), ips, netns: netns.into(), inode, since: Instant::now() })
    }

    /// The namespace's inode.
    pub fn inode(&self) -> u64 {
        self.inode
    }
}

impl Sandboxes {
    /// Remembers a pod's newest sandbox.
    pub fn add(&self, uid: Arc<str>, sandbox: Sandbox) {
        self.lock().insert(uid, sandbox);
        self.changed();
    }

    /// Forgets a sandbox, if it is still a pod's newest.
    pub fn remove(&self, container: &str) {
        let mut pods = self.lock();
        let before = pods.len();
        pods.retain(|_, sandbox| &*sandbox.container != container);
        let removed = pods.len() < before;
        drop(pods);
        if removed {
            self.changed();
        }
    }

    /// A pod's sandbox.
    pub fn get(&self, uid: &str) -> Option<Sandbox> {
        self.lock().get(uid).cloned()
    }

    /// The addresses of all pods that have one, by uid.
    pub fn ips(&self) -> HashMap<Arc<str>, Vec<IpAddr>> {
        self.lock().iter().map(|(uid, sandbox)| (uid.clone(), sandbox.ips.clone())).collect()
    }

    /// Wakes when addresses come or go.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    /// Told by capture after each of its rounds: how far it is with each pod. Forgets sandboxes of pods that are gone.
    pub fn tell(&self, is_known: impl Fn(&str) -> bool, progress: impl Fn(&str) -> Progress) {
        let mut pods = self.lock();
        let before = pods.len();
        pods.retain(|uid, sandbox| is_known(uid) || sandbox.since.elapsed() < FORGET_AFTER);
        let forgotten = pods.len() < before;
        let now: HashMap<Arc<str>, Progress> = pods.keys().map(|uid| (uid.clone(), progress(uid))).collect();
        drop(pods);
        if forgotten {
            self.changed();
        }
        self.inner.progress.send_if_modified(|known| {
            let moved = *known != now;
            *known = now;
            moved
        });
    }

    /// How far capture is, and every change of it.
    pub fn progress(&self) -> watch::Receiver<HashMap<Arc<str>, Progress>> {
        self.inner.progress.subscribe()
    }

    fn changed(&self) {
        self.inner.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Sandbox>> {
        self.inner.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(container: &str, ip: &str) -> Sandbox {
        let netns = File::open("/proc/self/ns/net").unwrap();
        Sandbox::new(container, vec![ip.parse().unwrap()], netns).unwrap()
    }

    #[test]
    fn the_newest_of_a_pod_counts_and_an_older_ones_end_is_none_of_its_business() {
        let sandboxes = Sandboxes::default();
        let mut changes = sandboxes.changes();
        sandboxes.add("pod".into(), sandbox("first", "10.0.0.1"));
        sandboxes.add("pod".into(), sandbox("second", "10.0.0.2"));
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        sandboxes.remove("first");
        assert!(!changes.has_changed().unwrap());
        assert_eq!(sandboxes.ips()["pod"], ["10.0.0.2".parse::<IpAddr>().unwrap()]);
        sandboxes.remove("second");
        assert!(changes.has_changed().unwrap() && sandboxes.ips().is_empty());
    }

    #[test]
    fn progress_is_told_of_those_that_are_here() {
        let sandboxes = Sandboxes::default();
        sandboxes.add("pod".into(), sandbox("first", "10.0.0.1"));
        let progress = sandboxes.progress();
        sandboxes.tell(|_| false, |_| Progress::Captured(7));
        assert_eq!(progress.borrow().get("pod"), Some(&Progress::Captured(7)), "young, and so not forgotten");
        assert!(progress.borrow().get("other").is_none());
    }
}
