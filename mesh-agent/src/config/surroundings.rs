//! What settings depend on outside the process, in one value, so that tests can say what it is.

use std::ffi::OsString;
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

/// The environment, the files and the machine, as far as the configuration looks at them.
#[derive(Clone, Copy)]
pub struct Surroundings<'a> {
    /// A variable of the environment.
    pub variable: &'a dyn Fn(&str) -> Option<OsString>,
    /// The text of a file.
    pub read: &'a dyn Fn(&Path) -> io::Result<String>,
    /// How many CPUs this process may use.
    pub cpus: NonZeroUsize,
}

impl Surroundings<'static> {
    /// Those of this process.
    pub fn of_this_process() -> Self {
        Self {
            variable: &|name| std::env::var_os(name),
            read: &|path| std::fs::read_to_string(path),
            cpus: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
        }
    }
}

impl Surroundings<'_> {
    /// Where cgroup v2 is mounted: not at /sys/fs/cgroup where v1 is mounted too.
    pub fn cgroup2_mount(&self) -> Option<PathBuf> {
        let mounts = (self.read)(Path::new("/proc/self/mountinfo")).ok()?;
        mounts.lines().find_map(cgroup2_mount_point)
    }
}

/// The mount point of a line of mountinfo, if it is the root of a cgroup2:
/// `35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw`
fn cgroup2_mount_point(line: &str) -> Option<PathBuf> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let mount_point = mount.split(' ').nth(4)?;
    (filesystem.split(' ').next() == Some("cgroup2")).then(|| unescape(mount_point).into())
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}
