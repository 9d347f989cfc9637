//! The file that is written: a tar, compressed, and its index, which says what is in it and what could not be had.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Serialize;

use super::MAX_BUNDLE_BYTES;

/// Everything lies in this directory.
const ROOT: &str = "nodemesh-support";

/// A bundle that is being written.
pub struct Archive {
    path: PathBuf,
    tar: tar::Builder<GzEncoder<File>>,
    left: usize,
    /// When it was begun, in seconds of Unix time.
    begun: u64,
    pub index: Index,
}

/// What is in it, and what is not. Its JSON is an interface.
#[derive(Debug, Default, Serialize)]
pub struct Index {
    /// Of meshctl.
    pub version: &'static str,
    pub files: Vec<Entry>,
    /// What could not be had.
    pub missing: Vec<Missing>,
}

/// A file of it.
#[derive(Debug, Serialize)]
pub struct Entry {
    pub path: String,
    pub bytes: usize,
    /// Whether there was more.
    pub cut: bool,
    /// Things that look secret, which were taken out.
    pub removed: usize,
}

/// What is not there.
#[derive(Debug, Serialize)]
pub struct Missing {
    pub path: String,
    pub why: String,
}

/// What goes into a file.
pub struct Content {
    pub text: String,
    pub cut: bool,
    pub removed: usize,
}

impl Archive {
    /// A new file, which its owner alone may read: it names pods and addresses.
    pub fn create(path: &Path, begun: u64) -> Result<Self> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let file = file.with_context(|| format!("--file: making {}", path.display()))?;
        let tar = tar::Builder::new(GzEncoder::new(file, Compression::default()));
        let index = Index { version: env!("CARGO_PKG_VERSION"), ..Index::default() };
        Ok(Self { path: path.into(), tar, left: MAX_BUNDLE_BYTES, begun, index })
    }

    /// Adds what was said, or why nothing was.
    pub fn add(&mut self, path: &str, content: Result<Content, String>) -> Result<()> {
        match content {
            Err(why) => self.index.missing.push(Missing { path: path.into(), why }),
            Ok(content) if content.text.len() > self.left => {
                let why = format!("the bundle has {MAX_BUNDLE_BYTES} bytes at most");
                self.index.missing.push(Missing { path: path.into(), why });
            }
            Ok(Content { text, cut, removed }) => {
                self.left -= text.len();
                self.write(path, text.as_bytes())?;
                self.index.files.push(Entry { path: path.into(), bytes: text.len(), cut, removed });
            }
        }
        Ok(())
    }

    fn write(&mut self, path: &str, bytes: &[u8]) -> Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(self.begun);
        let written = self.tar.append_data(&mut header, format!("{ROOT}/{path}"), bytes);
        written.with_context(|| format!("writing {}", self.path.display()))
    }

    /// Writes the index and ends the file.
    pub fn finish(mut self) -> Result<Index> {
        let index = format!("{}\n", serde_json::to_string_pretty(&self.index)?);
        self.write("index.json", index.as_bytes())?;
        let told = || format!("writing {}", self.path.display());
        let mut file = self.tar.into_inner().and_then(GzEncoder::finish).with_context(told)?;
        file.flush().with_context(told)?;
        Ok(self.index)
    }
}
