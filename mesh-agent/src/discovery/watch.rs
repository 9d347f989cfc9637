//! Tells when a directory changed: by inotify, and by the clock where that fails or misses something.

use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout_at};

/// How long a directory must be quiet before it is read: several files of one change come in one snapshot.
pub(super) const QUIET: Duration = Duration::from_millis(100);
/// How long a directory that never gets quiet is waited for.
pub(super) const PATIENCE: Duration = Duration::from_millis(500);
/// How often it is read although nothing was heard, while inotify works.
pub(super) const POLL_WATCHED: Duration = Duration::from_secs(10);
/// How often it is read while inotify does not work.
pub(super) const POLL_UNWATCHED: Duration = Duration::from_millis(500);

/// Changes of one directory.
pub(super) struct Changes {
    heard: mpsc::Receiver<()>,
    /// None where inotify could not be had; the directory may also come into being later.
    watcher: Option<RecommendedWatcher>,
    tell: mpsc::Sender<()>,
    directory: PathBuf,
}

impl Changes {
    pub(super) fn of(directory: &Path) -> Self {
        let (tell, heard) = mpsc::channel(1);
        let mut changes = Self { heard, watcher: None, tell, directory: directory.to_path_buf() };
        changes.watch();
        changes
    }

    /// Returns when the directory may have changed; never later than the poll interval.
    pub(super) async fn next(&mut self) {
        let poll = match self.watcher {
            Some(_) => POLL_WATCHED,
            None => POLL_UNWATCHED,
        };
        tokio::select! {
            _ = self.heard.recv() => self.settle().await,
            () = sleep(poll) => {}
        }
        // A watch ends with its directory, silently, and a directory that is replaced needs a new one.
        self.watch();
    }

    async fn settle(&mut self) {
        let latest = Instant::now() + PATIENCE;
        while Instant::now() < latest {
            let quiet = (Instant::now() + QUIET).min(latest);
            if timeout_at(quiet, self.heard.recv()).await.is_err() {
                return;
            }
        }
    }

    fn watch(&mut self) {
        let tell = self.tell.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading the directory makes events of its own, which must not lead to reading it again.
            if event.is_ok_and(|event| !matches!(event.kind, EventKind::Access(_))) {
                // One message waiting is enough.
                let _ = tell.try_send(());
            }
        });
        let watching = watcher.and_then(|mut watcher| {
            watcher.watch(&self.directory, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        self.watcher = match watching {
            Ok(watcher) => Some(watcher),
            Err(error) => {
                tracing::debug!(%error, directory = %self.directory.display(), "no inotify; polling");
                None
            }
        };
    }
}
