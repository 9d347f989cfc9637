//! Where pods are in the cgroup tree, and which processes they have. Reads only; nothing is created.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::error::Error;

/// The mount point of cgroup2: /sys/fs/cgroup, or /sys/fs/cgroup/unified beside v1 hierarchies.
pub fn cgroup2_mount() -> Option<PathBuf> {
    mount_point(&fs::read_to_string("/proc/self/mountinfo").ok()?)
}

/// The last mount of type cgroup2: a later one covers an earlier.
fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    let mut mounts = mountinfo.lines().filter_map(|line| {
        let (head, tail) = line.split_once(" - ")?;
        (tail.split(' ').next()? == "cgroup2").then(|| head.split(' ').nth(4)).flatten()
    });
    mounts.next_back().map(|path| PathBuf::from(path.replace("\\040", " ")))
}

/// The pods' parent below `root`: `kubepods` (cgroupfs driver) or `kubepods.slice` (systemd driver).
pub(super) fn kubepods(root: &Path) -> Result<PathBuf, Error> {
    let candidates = [root.join("kubepods"), root.join("kubepods.slice")];
    candidates.into_iter().find(|path| path.is_dir()).ok_or_else(|| Error::NoKubepods(root.to_path_buf()))
}

/// The cgroup of the pod with this uid, if there is one.
///
/// # Errors
/// What is there cannot be read, which says nothing of the pod.
pub(super) fn pod(kubepods: &Path, uid: &str) -> io::Result<Option<PathBuf>> {
    let plain = format!("pod{uid}");
    // The systemd driver writes the uid with underscores and repeats the parents in the name.
    let slice = format!("-pod{}.slice", uid.replace('-', "_"));
    let is_pod = |path: &Path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name == plain || name.ends_with(&slice)
    };
    let classes = children(kubepods)?;
    if let Some(found) = classes.iter().find(|path| is_pod(path)) {
        return Ok(Some(found.clone()));
    }
    for class in classes {
        if let Some(found) = children(&class)?.into_iter().find(|path| is_pod(path)) {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// The processes in a cgroup and below, as this process's PID namespace numbers them; none where it is gone.
///
/// # Errors
/// What is there cannot be read.
pub(super) fn processes(cgroup: &Path) -> io::Result<Vec<i32>> {
    let listed = if_there(fs::read_to_string(cgroup.join("cgroup.procs")))?;
    let mut found: Vec<i32> = listed.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect();
    for child in children(cgroup)? {
        found.extend(processes(&child)?);
    }
    Ok(found)
}

/// What is read, or nothing where there is none: a cgroup may go at any moment, and one of threads lists no processes. An
/// agent that lacks descriptors or memory is told nothing.
fn if_there<T: Default>(read: io::Result<T>) -> io::Result<T> {
    const GONE: [rustix::io::Errno; 4] =
        [rustix::io::Errno::NOENT, rustix::io::Errno::NOTDIR, rustix::io::Errno::NODEV, rustix::io::Errno::OPNOTSUPP];
    match read {
        Err(error) if GONE.iter().any(|gone| error.raw_os_error() == Some(gone.raw_os_error())) => Ok(T::default()),
        read => read,
    }
}

/// Whether what was read of a process, below /proc, could not be because it has ended.
pub(super) fn has_ended(error: &io::Error) -> bool {
    let no_such_process = rustix::io::Errno::SRCH.raw_os_error();
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(no_such_process)
}

/// Whether a process is in the cgroup whose directory is named `name`, or below.
pub(super) fn is_process_in(pid: i32, name: &std::ffi::OsStr) -> bool {
    let listed = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let path = listed.lines().find_map(|line| line.strip_prefix("0::"));
    path.is_some_and(|path| Path::new(path).iter().any(|component| component == name))
}

/// The id of a cgroup, as the kernel's programs see it: its inode number.
pub(super) fn id(cgroup: &Path) -> io::Result<u64> {
    Ok(fs::metadata(cgroup)?.ino())
}

/// The agent's own cgroup: that of its pod where it runs in one, because its container's changes at every restart.
pub(super) fn own() -> Result<PathBuf, Error> {
    let mount = cgroup2_mount().ok_or(Error::NoCgroup2)?;
    let own = holding_self(&mount)?;
    let is_pod = |path: &Path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with("pod") || (name.contains("-pod") && name.ends_with(".slice"))
    };
    Ok(own.ancestors().take_while(|path| *path != mount).find(|path| is_pod(path)).unwrap_or(&own).to_path_buf())
}

/// The smallest limit on memory that the agent's cgroup and those above it have, in bytes; None: none, or none that can be
/// seen.
pub fn memory_limit() -> Option<u64> {
    let mount = cgroup2_mount()?;
    let own = holding_self(&mount).ok()?;
    let above = own.ancestors().take_while(|path| path.starts_with(&mount));
    let limits = above.filter_map(|path| fs::read_to_string(path.join("memory.max")).ok()?.trim().parse().ok());
    limits.min()
}

/// The cgroup that the agent's process is in.
fn holding_self(mount: &Path) -> Result<PathBuf, Error> {
    let listed = fs::read_to_string("/proc/self/cgroup").map_err(Error::io("reading /proc/self/cgroup"))?;
    let path = listed.lines().find_map(|line| line.strip_prefix("0::")).ok_or(Error::NoCgroup2)?;
    let direct = mount.join(path.trim_start_matches('/'));
    // With a cgroup namespace of its own the path is cut off at the container: then the tree is searched.
    let own = rustix::process::getpid().as_raw_nonzero().get();
    if holds(&direct, own) { Ok(direct) } else { search(mount, own).ok_or(Error::NoCgroup2) }
}

/// Whether a process is directly in a cgroup.
pub(super) fn holds(cgroup: &Path, pid: i32) -> bool {
    let pid = pid.to_string();
    fs::read_to_string(cgroup.join("cgroup.procs")).is_ok_and(|listed| listed.lines().any(|line| line == pid))
}

/// The cgroup at or below a directory that a process is in.
pub(super) fn search(below: &Path, pid: i32) -> Option<PathBuf> {
    if holds(below, pid) {
        return Some(below.to_path_buf());
    }
    children(below).ok()?.iter().find_map(|child| search(child, pid))
}

fn children(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let Some(entries) = if_there(fs::read_dir(directory).map(Some))? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        // A cgroup's file system says so without another call.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup2_is_found_in_both_layouts() {
        let hybrid = "30 23 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      31 30 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      32 30 0:28 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw";
        assert_eq!(mount_point(hybrid), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        let unified = "32 30 0:28 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw";
        assert_eq!(mount_point(unified), Some(PathBuf::from("/sys/fs/cgroup")));
        assert_eq!(mount_point("1 0 0:1 / / rw - ext4 /dev/vda rw"), None);
    }

    #[test]
    fn pods_are_found_in_both_layouts() {
        let root = tempfile::tempdir().expect("a directory");
        let uid = "0f1e-22";
        for path in [
            "kubepods/besteffort/pod0f1e-22/container",
            "kubepods/podguaranteed",
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0f1e_22.slice/cri-containerd-1.scope",
        ] {
            fs::create_dir_all(root.path().join(path)).expect("a directory");
        }
        let cgroupfs = root.path().join("kubepods");
        assert_eq!(kubepods(root.path()).ok(), Some(cgroupfs.clone()));
        let pod = |kubepods: &Path, uid: &str| super::pod(kubepods, uid).expect("read");
        assert_eq!(pod(&cgroupfs, uid), Some(cgroupfs.join("besteffort/pod0f1e-22")));
        assert_eq!(pod(&cgroupfs, "guaranteed"), Some(cgroupfs.join("podguaranteed")));
        assert_eq!(pod(&cgroupfs, "other"), None);
        let systemd = root.path().join("kubepods.slice");
        let expected = systemd.join("kubepods-burstable.slice/kubepods-burstable-pod0f1e_22.slice");
        assert_eq!(pod(&systemd, uid), Some(expected));
    }

    /// Whoever takes an error for an absence lets a pod that lives out of the mesh.
    #[test]
    fn what_cannot_be_read_is_not_absent() {
        use rustix::io::Errno;
        let read = |errno: Errno| if_there::<String>(Err(errno.into())).map_err(|error| error.raw_os_error());
        for gone in [Errno::NOENT, Errno::NOTDIR, Errno::NODEV, Errno::OPNOTSUPP] {
            assert_eq!(read(gone), Ok(String::new()), "{gone}");
        }
        for unknown in [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::IO, Errno::INTR, Errno::ACCESS] {
            assert_eq!(read(unknown), Err(Some(unknown.raw_os_error())), "{unknown}");
        }
    }
}
