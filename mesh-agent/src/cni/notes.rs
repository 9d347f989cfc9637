//! What outlives an agent between a pod's sandbox and the pod's addresses at the API server: a file for each sandbox that
//! was handed over, on the node's own /run. Without it the next agent would take such a pod for none of the mesh.

use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::ask::Question;
use crate::sandboxes::{Sandbox, Sandboxes};

/// The directory of the files. Each is named by the runtime's id of its sandbox.
#[derive(Clone, Debug)]
pub(super) struct Notes {
    directory: PathBuf,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    uid: String,
    ips: Vec<IpAddr>,
    netns: PathBuf,
}

impl Notes {
    /// Beside the socket.
    pub fn beside(socket: &Path) -> Self {
        Self { directory: socket.with_extension("sandboxes") }
    }

    /// Notes a sandbox that is about to be captured.
    pub fn write(&self, question: &Question) -> io::Result<()> {
        let Question { uid, ips, netns, .. } = question;
        let note = Note { uid: uid.clone(), ips: ips.clone(), netns: netns.clone() };
        fs::create_dir_all(&self.directory)?;
        let place = self.place(&question.container)?;
        let unnamed = place.with_extension("new");
        fs::write(&unnamed, serde_json::to_vec(&note)?)?;
        fs::rename(&unnamed, &place)
    }

    /// Forgets one.
    pub fn remove(&self, container: &str) {
        if let Ok(place) = self.place(container) {
            // There may be none.
            let _ = fs::remove_file(place);
        }
    }

    /// Forgets all, and the directory.
    pub fn remove_all(&self) {
        // There may be none.
        let _ = fs::remove_dir_all(&self.directory);
    }

    /// Hands over what earlier agents noted, as far as it is there still.
    pub fn recall(&self, sandboxes: &Sandboxes) {
        for entry in fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let recalled = recall(&path).and_then(|note| {
                let sandbox = Sandbox::new(&name.to_string_lossy(), note.ips, open(&note.netns)?)?;
                Ok((note.uid, sandbox))
            });
            match recalled {
                Ok((uid, sandbox)) => sandboxes.add(uid.into(), sandbox),
                Err(error) => {
                    tracing::debug!(sandbox = ?name, %error, "a sandbox of an earlier agent's is gone");
                    let _ = fs::remove_file(path);
                }
            }
        }
    }

    /// The name comes from the runtime, but is a path for none of that.
    fn place(&self, container: &str) -> io::Result<PathBuf> {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if container.is_empty() || !container.chars().all(is_name) {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        Ok(self.directory.join(container))
    }
}

fn recall(path: &Path) -> io::Result<Note> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

/// The agent may see the node's directories through its first process alone.
fn open(netns: &Path) -> io::Result<File> {
    File::open(netns).or_else(|_| {
        let below = netns.strip_prefix("/").map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        File::open(Path::new("/proc/1/root").join(below))
    })
}

#[cfg(test)]
mod tests {
    use super::super::ask::About;
    use super::*;

    fn question(container: &str, netns: &str) -> Question {
        Question {
            about: About::Add,
            container: container.into(),
            uid: format!("uid-{container}"),
            namespace: "shop".into(),
            name: "web".into(),
            ips: vec!["10.0.0.2".parse().unwrap()],
            netns: netns.into(),
        }
    }

    #[test]
    fn the_next_agent_knows_what_is_there_still() {
        let directory = tempfile::tempdir().unwrap();
        let notes = Notes::beside(&directory.path().join("cni.sock"));
        notes.write(&question("stays", "/proc/self/ns/net")).unwrap();
        notes.write(&question("gone", "/nowhere/netns")).unwrap();
        notes.write(&question("ended", "/proc/self/ns/net")).unwrap();
        notes.remove("ended");
        let sandboxes = Sandboxes::default();
        notes.recall(&sandboxes);
        assert_eq!(sandboxes.ips().keys().map(|uid| &**uid).collect::<Vec<_>>(), ["uid-stays"]);
        assert_eq!(sandboxes.get("uid-stays").unwrap().container, "stays".into());
        let left: Vec<_> = fs::read_dir(directory.path().join("cni.sandboxes")).unwrap().flatten().collect();
        assert_eq!(left.len(), 1, "{left:?}");
        for container in ["", "../x", "a/b"] {
            assert!(notes.write(&question(container, "/x")).is_err(), "{container}");
        }
        let socket = directory.path().join("cni.sock");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        super::super::desk::Desk::remove(&socket);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "what is left where no other agent comes");
    }
}
