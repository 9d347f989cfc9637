//! Container images without a container daemon: an OCI image layout in a tar archive, as `ctr image import` and
//! `docker load` take it. The same files give the same bytes.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

/// The time that everything in an image has, so that an image says what is in it and not when it was made.
const EPOCH: &str = "2026-01-01T00:00:00Z";

/// An image of one layer, from scratch.
pub struct Image<'a> {
    /// Its full names, such as `localhost/pause:1`.
    pub names: Vec<String>,
    /// What its processes are like: `Entrypoint`, `Env`, `User`, …
    pub config: Value,
    /// What is in it, in order.
    pub entries: Vec<Entry<'a>>,
}

/// Something in an image; paths are absolute.
pub enum Entry<'a> {
    /// A file of this machine.
    File(PathBuf, String),
    /// A file with this text.
    Text(String, String),
    /// A symbolic link: where it leads, where it is.
    Link(&'a str, String),
    /// An empty directory that everybody may write to.
    Scratch(String),
}

impl Image<'_> {
    /// Writes the archive.
    pub fn write(&self, archive: &Path) -> Result<()> {
        let layer = self.layer()?;
        let (layer_digest, layer_size) = (digest(&layer), layer.len());
        let config = json!({
            "architecture": architecture(), "os": "linux", "created": EPOCH, "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
            "history": [{"created": EPOCH, "created_by": "cargo xtask"}],
        })
        .to_string();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": digest(config.as_bytes()), "size": config.len(),
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer_digest, "size": layer_size,
            }],
        })
        .to_string();
        let manifests = self.names.iter().map(|name| {
            json!({
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": digest(manifest.as_bytes()), "size": manifest.len(),
                "platform": {"architecture": architecture(), "os": "linux"},
                "annotations": {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name},
            })
        });
        let manifests: Vec<Value> = manifests.collect();
        let index = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests,
        })
        .to_string();
        // A reader never meets half an archive.
        let partial = archive.with_extension(format!("partial-{}", std::process::id()));
        let file = File::create(&partial).with_context(|| format!("making {}", partial.display()))?;
        let mut tar = tar::Builder::new(file);
        append(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)?;
        append(&mut tar, "index.json", index.as_bytes(), 0o644)?;
        for blob in [manifest.as_bytes(), config.as_bytes(), &layer] {
            append(&mut tar, &format!("blobs/{}", digest(blob).replace(':', "/")), blob, 0o644)?;
        }
        tar.into_inner()?.sync_all()?;
        fs::rename(&partial, archive).with_context(|| format!("writing {}", archive.display()))
    }

    fn layer(&self) -> Result<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut directories = Vec::new();
        for entry in &self.entries {
            let path = match entry {
                Entry::File(_, path) | Entry::Text(_, path) | Entry::Link(_, path) | Entry::Scratch(path) => {
                    path.trim_start_matches('/')
                }
            };
            for parent in Path::new(path).ancestors().skip(1).filter(|parent| *parent != Path::new("")) {
                if !directories.contains(&parent.to_path_buf()) {
                    directories.push(parent.to_path_buf());
                }
            }
        }
        // Parents before children.
        directories.sort();
        for directory in &directories {
            let mut header = header(EntryType::Directory, 0o755, 0);
            tar.append_data(&mut header, directory, std::io::empty())?;
        }
        for entry in &self.entries {
            match entry {
                Entry::File(source, path) => {
                    let content = fs::read(source).with_context(|| format!("reading {}", source.display()))?;
                    let mode = fs::metadata(source)?.permissions().mode() & 0o777;
                    append(&mut tar, path.trim_start_matches('/'), &content, mode)?;
                }
                Entry::Text(text, path) => append(&mut tar, path.trim_start_matches('/'), text.as_bytes(), 0o644)?,
                Entry::Link(target, path) => {
                    let mut header = header(EntryType::Symlink, 0o777, 0);
                    tar.append_link(&mut header, path.trim_start_matches('/'), target)?;
                }
                Entry::Scratch(path) => {
                    let mut header = header(EntryType::Directory, 0o1777, 0);
                    tar.append_data(&mut header, path.trim_start_matches('/'), std::io::empty())?;
                }
            }
        }
        Ok(tar.into_inner()?)
    }
}

/// The name of a sequence of bytes, as OCI writes it.
pub fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    let digits: Vec<String> = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{}", digits.concat())
}

fn append<W: Write>(tar: &mut tar::Builder<W>, path: &str, content: &[u8], mode: u32) -> Result<()> {
    let mut header = header(EntryType::Regular, mode, content.len() as u64);
    tar.append_data(&mut header, path, content).with_context(|| format!("writing {path} into an image"))
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// As Go and OCI call it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_files_give_the_same_bytes() {
        let place = tempfile::tempdir().unwrap();
        let program = place.path().join("program");
        fs::write(&program, "a program").unwrap();
        let write = |name: &str| {
            let image = Image {
                names: vec!["localhost/one:1".to_string(), "localhost/two:1".to_string()],
                config: json!({"Entrypoint": ["/bin/program"]}),
                entries: vec![
                    Entry::File(program.clone(), "/bin/program".to_string()),
                    Entry::Link("program", "/bin/other".to_string()),
                    Entry::Scratch("/tmp".to_string()),
                ],
            };
            image.write(&place.path().join(name)).unwrap();
            fs::read(place.path().join(name)).unwrap()
        };
        let first = write("first.tar");
        assert_eq!(first, write("second.tar"));
        let mut archive = tar::Archive::new(first.as_slice());
        let names: Vec<String> =
            archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect();
        assert_eq!(names[..2], ["oci-layout", "index.json"]);
        assert_eq!(names.len(), 5, "{names:?}");
    }
}
