//! cgroup2: where it is mounted, and subtrees of our own in it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::eventually;

/// Where cgroup2 is mounted. It is not always at /sys/fs/cgroup: hybrid systems have it at /sys/fs/cgroup/unified.
pub fn mount_point() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
    let found = mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let is_cgroup2 = after.split(' ').next() == Some("cgroup2");
        is_cgroup2.then(|| before.split(' ').nth(4)).flatten()
    });
    found.map(PathBuf::from).context("cgroup2 is not mounted; mount -t cgroup2 none /sys/fs/cgroup would do it")
}

/// The same for who has mounts of his own: what is mounted last hides what was mounted before.
pub fn mount_point_of_namespace() -> Result<PathBuf> {
    let usual = [Path::new("/sys/fs/cgroup/unified"), Path::new("/sys/fs/cgroup")];
    let found = usual.into_iter().find(|path| path.join("cgroup.subtree_control").is_file());
    found.map(Path::to_path_buf).context("cgroup2 is not mounted")
}

/// Moves the calling process into a cgroup.
pub fn enter(cgroup: &Path) -> Result<()> {
    let file = cgroup.join("cgroup.procs");
    fs::write(&file, "0").with_context(|| format!("joining {}", file.display()))
}

/// Kills every process in the subtree and removes it, children first. One of version 1, which cannot kill, has to be
/// empty: its processes are those of another of cgroup2.
pub fn destroy(cgroup: &Path) -> Result<()> {
    if !cgroup.exists() {
        return Ok(());
    }
    if !cgroup.join("cgroup.kill").exists() {
        return remove_tree(cgroup).with_context(|| format!("removing {}", cgroup.display()));
    }
    fs::write(cgroup.join("cgroup.kill"), "1").with_context(|| format!("killing {}", cgroup.display()))?;
    eventually(Duration::from_secs(30), &format!("the processes of {} to end", cgroup.display()), || {
        let events = fs::read_to_string(cgroup.join("cgroup.events"))?;
        Ok(events.contains("populated 0").then_some(()))
    })?;
    remove_tree(cgroup).with_context(|| format!("removing {}", cgroup.display()))
}

fn remove_tree(cgroup: &Path) -> io::Result<()> {
    for entry in fs::read_dir(cgroup)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    // A process that was just killed may hold its cgroup busy for an instant after it stopped being counted.
    for _ in 0..1000 {
        match fs::remove_dir(cgroup) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => std::thread::sleep(Duration::from_millis(10)),
            result => return result,
        }
    }
    fs::remove_dir(cgroup)
}
