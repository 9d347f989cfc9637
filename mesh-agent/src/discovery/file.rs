//! A directory of Kubernetes YAML: lists it, reads it, and tells when it changed.
//!
//! Read are `.yaml`, `.yml` and `.json` files right in the directory, hidden ones left out, symbolic links followed (a
//! mounted ConfigMap is made of them). Write files elsewhere and rename them into place: a file that is read while it
//! is being written is read as it is.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The largest file that is read, in bytes. Kubernetes objects are at most 1.5 MiB; a list of 10 000 pods is about
/// 30 MiB.
pub const MAX_FILE_BYTES: u64 = 64 << 20;
/// How many files are read. A directory with more is likely the wrong one.
pub const MAX_FILES: usize = 10_000;

/// One file and what is in it, or why that could not be had.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SourceFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its text.
    pub content: Result<String, String>,
}

/// Reads a directory's files in the order of their names; a path that is a file is read alone.
pub fn read(path: &Path) -> io::Result<Vec<SourceFile>> {
    if std::fs::metadata(path)?.is_file() {
        return Ok(vec![read_file(path.to_path_buf())]);
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
    let there = paths.into_iter().filter(|path| std::fs::metadata(path).is_ok_and(|file| file.is_file()));
    Ok(there.map(read_file).collect())
}

fn is_wanted(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    let known = path.extension().is_some_and(|ending| ending == "yaml" || ending == "yml" || ending == "json");
    known && !hidden
}

fn read_file(path: PathBuf) -> SourceFile {
    let content = read_text(&path).map_err(|error| format!("cannot be read: {error}"));
    SourceFile { path, content }
}

fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let read = std::fs::File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
    if read as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other(format!("larger than {} MiB", MAX_FILE_BYTES >> 20)));
    }
    Ok(text)
}

/// Tells two readings apart.
pub fn fingerprint(files: &[SourceFile]) -> u64 {
    let mut hasher = DefaultHasher::new();
    files.hash(&mut hasher);
    hasher.finish()
}
