//! A directory of Kubernetes YAML: lists it, and reads the files that are not as they were.
//!
//! Read are `.yaml`, `.yml` and `.json` files right in the directory, hidden ones left out, symbolic links followed (a
//! mounted ConfigMap is made of them). Write files elsewhere and rename them into place: a file that is read while it
//! is being written is read as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, Metadata};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The largest file that is read, in bytes. Kubernetes objects are at most 1.5 MiB; a list of 10 000 pods is about
/// 30 MiB.
pub const MAX_FILE_BYTES: u64 = 64 << 20;
/// How many files are read. A directory with more is likely the wrong one.
pub const MAX_FILES: usize = 50_000;
/// How old a file's times must be for them to tell that it is as it was: file systems keep time in steps of up to 2 s
/// (FAT), and what is written twice within a step looks the same. A younger file is read again.
pub const SETTLED: Duration = Duration::from_secs(2);

/// One file and what is in it, or why that could not be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its text.
    pub content: Result<String, String>,
}

/// The files of a directory as they were read last.
#[derive(Default)]
pub struct Directory {
    known: BTreeMap<PathBuf, Known>,
    hasher: RandomState,
}

/// What changed since the reading before.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Files that are new or say something else.
    pub changed: Vec<SourceFile>,
    /// Files that are gone.
    pub gone: Vec<PathBuf>,
}

struct Known {
    /// None while the times of the file do not tell.
    identity: Option<Identity>,
    content: u64,
}

/// What changes when a file does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    /// The same, of the inode: nobody sets it at will.
    changed: (i64, i64),
}

impl Identity {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether whatever was written until now shows in the times. Times in the future never tell.
    fn is_settled(&self, now: SystemTime) -> bool {
        let latest = self.modified.max(self.changed);
        let seconds = u64::try_from(latest.0).unwrap_or_default();
        let latest = UNIX_EPOCH + Duration::new(seconds, 0) + Duration::from_nanos(latest.1.unsigned_abs());
        now.duration_since(latest).is_ok_and(|age| age > SETTLED)
    }
}

/// The files of a directory in the order of their names; a path that is a file stands for itself.
pub fn list(path: &Path) -> io::Result<Vec<(PathBuf, Identity)>> {
    let metadata = std::fs::metadata(path)?;
    if metadata.is_file() {
        return Ok(vec![(path.to_path_buf(), Identity::of(&metadata))]);
    }
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let path = entry?.path();
        if is_wanted(&path) {
            paths.push(path);
        }
    }
    if paths.len() > MAX_FILES {
        return Err(io::Error::other(format!("{} files, more than {MAX_FILES}: the wrong directory?", paths.len())));
    }
    paths.sort();
    // A file that went away since it was listed was deleted, no more.
    let there = paths.into_iter().filter_map(|path| {
        let metadata = std::fs::metadata(&path).ok().filter(Metadata::is_file)?;
        Some((path, Identity::of(&metadata)))
    });
    Ok(there.collect())
}

fn is_wanted(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    let known = path.extension().is_some_and(|ending| ending == "yaml" || ending == "yml" || ending == "json");
    known && !hidden
}

impl Directory {
    /// Reads what is not as it was. `listed` is what [`list`] says now, `now` the time before that.
    pub fn changes(&mut self, listed: Vec<(PathBuf, Identity)>, now: SystemTime) -> Changes {
        let mut changes = Changes::default();
        let there: BTreeSet<&PathBuf> = listed.iter().map(|(path, _)| path).collect();
        changes.gone.extend(self.known.keys().filter(|path| !there.contains(path)).cloned());
        for path in &changes.gone {
            self.known.remove(path);
        }
        for (path, identity) in listed {
            if self.known.get(&path).is_some_and(|known| known.identity == Some(identity)) {
                continue;
            }
            let (identity, content) = match read(&path) {
                Ok((identity, text)) => (Some(identity).filter(|identity| identity.is_settled(now)), Ok(text)),
                // What cannot be read is tried again each time.
                Err(error) => (None, Err(format!("cannot be read: {error}"))),
            };
            let hash = self.hasher.hash_one(&content);
            let before = self.known.insert(path.clone(), Known { identity, content: hash });
            if before.is_none_or(|before| before.content != hash) {
                changes.changed.push(SourceFile { path, content });
            }
        }
        changes
    }
}

impl Changes {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.gone.is_empty()
    }
}

/// A file's text, and what it was identified by before the first byte was read.
fn read(path: &Path) -> io::Result<(Identity, String)> {
    let file = File::open(path)?;
    let identity = Identity::of(&file.metadata()?);
    let mut text = String::new();
    let read = file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
    if read as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other(format!("larger than {} MiB", MAX_FILE_BYTES >> 20)));
    }
    Ok((identity, text))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// What a reading at `now` finds: the files that say something else, by name, with their text.
    fn changed(directory: &mut Directory, path: &Path, now: SystemTime) -> Vec<(String, String)> {
        let changes = directory.changes(list(path).unwrap(), now);
        let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
        let gone = changes.gone.iter().map(|path| (name(path), "gone".to_string()));
        let changed = changes.changed.iter().map(|file| (name(&file.path), file.content.clone().unwrap()));
        changed.chain(gone).collect()
    }

    fn says(name: &str, text: &str) -> Vec<(String, String)> {
        vec![(name.to_string(), text.to_string())]
    }

    /// As kubelet does it: all files lead through `..data`, which is replaced in one step.
    #[test]
    fn a_config_map_is_replaced_as_a_whole() {
        let mount = tempfile::tempdir().unwrap();
        let path = mount.path();
        let version = |number: usize, files: &[(&str, &str)]| {
            let place = path.join(format!("..version-{number}"));
            fs::create_dir(&place).unwrap();
            files.iter().for_each(|(name, text)| fs::write(place.join(name), text).unwrap());
            symlink(&place, path.join("..data-new")).unwrap();
            fs::rename(path.join("..data-new"), path.join("..data")).unwrap();
        };
        version(1, &[("a.yaml", "one"), ("b.yaml", "both")]);
        for name in ["a.yaml", "b.yaml"] {
            symlink(format!("..data/{name}"), path.join(name)).unwrap();
        }
        let (mut directory, later) = (Directory::default(), SystemTime::now() + 2 * SETTLED);
        assert_eq!(changed(&mut directory, path, later).len(), 2);
        assert_eq!(changed(&mut directory, path, later), []);
        version(2, &[("a.yaml", "two"), ("b.yaml", "both")]);
        assert_eq!(changed(&mut directory, path, later), says("a.yaml", "two"), "b.yaml is another file, alike");
        version(3, &[("b.yaml", "both")]);
        assert_eq!(changed(&mut directory, path, later), says("a.yaml", "gone"), "its link leads nowhere");
    }

    /// The times of a file stand still within a step of the file system's clock: what is written then is not missed.
    #[test]
    fn a_young_file_is_read_again_though_its_times_say_the_same() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("a.yaml");
        fs::write(&file, "one").unwrap();
        let listed = list(place.path()).unwrap();
        let (mut directory, now) = (Directory::default(), SystemTime::now());
        assert_eq!(directory.changes(listed.clone(), now).changed.len(), 1);
        fs::write(&file, "two").unwrap();
        let again = directory.changes(listed, now);
        assert_eq!(again.changed.iter().map(|file| file.content.clone()).collect::<Vec<_>>(), [Ok("two".to_string())]);
    }

    #[test]
    fn hidden_files_other_endings_and_directories_are_not_read() {
        let place = tempfile::tempdir().unwrap();
        for name in [".hidden.yaml", "notes.txt", "a.yaml~", "yaml"] {
            fs::write(place.path().join(name), name).unwrap();
        }
        fs::create_dir(place.path().join("directory.yaml")).unwrap();
        assert_eq!(list(place.path()).unwrap(), []);
        for name in ["c.json", "a.yaml", "b.yml"] {
            fs::write(place.path().join(name), name).unwrap();
        }
        let names: Vec<_> = list(place.path()).unwrap().into_iter().map(|(path, _)| path).collect();
        assert_eq!(names, ["a.yaml", "b.yml", "c.json"].map(|name| place.path().join(name)));
    }

    /// A file that cannot be read is told once, and read as soon as it can be.
    #[test]
    fn an_unreadable_file_is_tried_again() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("a.yaml");
        fs::write(&file, [0xff, 0xfe]).unwrap();
        let (mut directory, later) = (Directory::default(), SystemTime::now() + 2 * SETTLED);
        let first = directory.changes(list(place.path()).unwrap(), later);
        assert!(first.changed[0].content.as_ref().is_err_and(|reason| reason.contains("UTF-8")), "{first:?}");
        assert!(directory.changes(list(place.path()).unwrap(), later).is_empty());
        fs::write(&file, "text").unwrap();
        assert_eq!(changed(&mut directory, place.path(), later), says("a.yaml", "text"));
    }
}
