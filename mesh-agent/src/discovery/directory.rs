//! A directory of YAML files as the source, re-read when it changes.

use std::path::PathBuf;
use std::time::SystemTime;

use super::Error;
use super::file::{self, Changes, Directory};
use super::publisher::Publisher;
use super::watch;
use crate::drain::Token;

/// Publishes what the directory says, and every change, until `shutdown` starts.
pub async fn run(directory: PathBuf, publisher: Publisher, mut shutdown: Token) -> Result<(), Error> {
    publisher.waiting(format!("{} has not been read", directory.display()));
    let mut changes = watch::Changes::of(&directory);
    let mut sandboxes = publisher.sandbox_changes();
    let mut reader = Reader { directory, files: Directory::default(), publisher };
    loop {
        reader = tokio::task::spawn_blocking(move || reader.refresh()).await?;
        tokio::select! {
            () = shutdown.started() => return Ok(()),
            () = changes.next() => {}
            // An error would mean that nobody holds them, and the publisher does.
            _ = sandboxes.changed() => reader.publisher.address(),
        }
    }
}

struct Reader {
    directory: PathBuf,
    files: Directory,
    publisher: Publisher,
}

impl Reader {
    /// Reads what changed in the source and publishes what follows.
    fn refresh(mut self) -> Self {
        let now = SystemTime::now();
        match file::list(&self.directory) {
            // Nothing left of what was there is a volume that went away, not a wish to leave the mesh.
            Ok(listed) if listed.is_empty() && self.publisher.current.store.len() > 0 => {
                self.keep("no files any more".to_string())
            }
            Ok(listed) => {
                let changes = self.files.changes(listed, now);
                self.take(&changes);
            }
            Err(error) => self.keep(error.to_string()),
        }
        self
    }

    fn keep(&self, reason: String) {
        self.publisher.keep(format!("{}: {reason}", self.directory.display()));
    }

    fn take(&mut self, changes: &Changes) {
        if changes.is_empty() && self.publisher.is_published() {
            return self.publisher.seen_again();
        }
        self.publisher.current.take(changes);
        self.publisher.publish();
    }
}
