//! Finds and opens an enrolled pod's network namespace through one of its processes.

use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::cgroups;
use super::guard::{self, HostSide, Obstacle};
use super::netlink;
use super::pod_thread::PodThread;
use crate::sandboxes::Sandbox;

/// A pod's namespace and the thread in it.
pub(super) struct Found {
    pub namespace: File,
    pub inode: u64,
    pub thread: PodThread,
    pub host_side: HostSide,
}

/// Opens the namespace of the pod `uid` that holds `ip`, if one is given. A pod may have several, as docker in docker
/// does, and any process of it may make one and give it the pod's address: the sandbox's is the one that hangs on this
/// node, which nothing inside the pod can imitate. Where that is not as it should be, it is what is found, with what is
/// in the way.
pub(super) async fn find(kubepods: &Path, uid: &str, ip: Option<IpAddr>) -> Result<Found, String> {
    let reading = |error: io::Error| format!("reading its cgroup: {error}");
    let cgroup = cgroups::pod(kubepods, uid).map_err(reading)?.ok_or("its cgroup is not there yet")?;
    let mut seen = Vec::new();
    let mut trouble = "it has no process yet".to_string();
    let mut barred = None;
    for pid in cgroups::processes(&cgroup).map_err(reading)? {
        let opened = match open(pid, &cgroup) {
            Ok(opened) => opened,
            Err(error) => {
                trouble = format!("opening the network namespace of process {pid}: {error}");
                continue;
            }
        };
        let inode = opened.metadata().map(|metadata| metadata.ino()).unwrap_or(0);
        if seen.contains(&inode) {
            continue;
        }
        seen.push(inode);
        match enter(opened, inode, ip).await {
            Ok(found) if found.host_side.obstacle.is_none() => return Ok(found),
            // Nothing leaves the node by it, so there is nothing to guard.
            Ok(found) if found.host_side.links.is_empty() => {
                trouble = found.host_side.obstacle.map_or(trouble, |obstacle| obstacle.to_string());
            }
            Ok(found) => barred = Some(found),
            Err(error) => trouble = error,
        }
    }
    barred.ok_or(trouble)
}

/// The namespace that the runtime's plugin handed over: no process of the pod may run yet.
pub(super) async fn of_sandbox(sandbox: &Sandbox, ip: IpAddr) -> Result<Found, String> {
    let namespace = sandbox.netns.try_clone().map_err(|error| format!("opening its network namespace: {error}"))?;
    enter(namespace, sandbox.inode(), Some(ip)).await
}

async fn enter(namespace: File, inode: u64, ip: Option<IpAddr>) -> Result<Found, String> {
    let entering = |error: io::Error| format!("entering its network namespace: {error}");
    let thread = PodThread::start(namespace.try_clone().map_err(entering)?).await.map_err(entering)?;
    let addresses = thread.run(netlink::addresses).await.map_err(entering)?;
    let mut host_side = guard::host_side(&thread).await?;
    if ip.is_some_and(|ip| !addresses.contains(&ip)) {
        host_side.obstacle = Some(Obstacle::Addressless);
    }
    Ok(Found { namespace, inode, thread, host_side })
}

/// Opens the namespace of `pid`, and makes sure that it was that process's all along: a process id may be reused between
/// the look at the cgroup and the open.
fn open(pid: i32, cgroup: &Path) -> io::Result<File> {
    let gone = || io::Error::from(io::ErrorKind::NotFound);
    let name = cgroup.file_name().ok_or_else(gone)?;
    let process = pidfd_open(Pid::from_raw(pid).ok_or_else(gone)?, PidfdFlags::empty())?;
    let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
    if cgroups::is_process_in(pid, name) && is_alive(&process)? { Ok(namespace) } else { Err(gone()) }
}

/// A process that ended shows as -1 behind its descriptor.
fn is_alive(process: &OwnedFd) -> io::Result<bool> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", process.as_raw_fd()))?;
    Ok(info.lines().any(|line| line.strip_prefix("Pid:").is_some_and(|pid| pid.trim() != "-1")))
}

/// Where a pod's processes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// In the namespace that was asked for, at least one of them.
    Here,
    /// In others, all of them.
    Elsewhere,
    /// Nowhere, though the pod has a cgroup still: its containers have not begun, or are begun again, or have ended.
    Nowhere,
    /// It has no cgroup.
    Ended,
}

/// Where the pod's processes are, as seen from the namespace with this inode.
///
/// # Errors
/// That cannot be told.
pub(super) fn life(kubepods: &Path, uid: &str, inode: u64) -> io::Result<Life> {
    let Some(cgroup) = cgroups::pod(kubepods, uid)? else { return Ok(Life::Ended) };
    let mut life = Life::Nowhere;
    for pid in cgroups::processes(&cgroup)? {
        match fs::metadata(format!("/proc/{pid}/ns/net")) {
            Ok(namespace) if namespace.ino() == inode => return Ok(Life::Here),
            Ok(_) => life = Life::Elsewhere,
            Err(error) if cgroups::has_ended(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(life)
}

/// Whether a pod has any process; also where that cannot be told.
pub(super) fn may_live(kubepods: &Path, uid: &str) -> bool {
    let cgroup = match cgroups::pod(kubepods, uid) {
        Ok(Some(cgroup)) => cgroup,
        Ok(None) => return false,
        Err(_) => return true,
    };
    cgroups::processes(&cgroup).map_or(true, |processes| !processes.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_pod_lives() {
        let root = tempfile::tempdir().expect("a directory");
        let own = fs::metadata("/proc/self/ns/net").expect("a namespace").ino();
        let me = std::process::id().to_string();
        // Process ids of a container; what is seen from this process's namespace, and from another.
        let table = [
            ("alive", Some(me.as_str()), [Life::Here, Life::Elsewhere], true),
            ("beginning", Some(""), [Life::Nowhere, Life::Nowhere], false),
            // A number that no process has.
            ("ending", Some("4194305"), [Life::Nowhere, Life::Nowhere], true),
            ("gone", None, [Life::Ended, Life::Ended], false),
        ];
        for (uid, processes, seen, lives) in table {
            if let Some(processes) = processes {
                let container = root.path().join(format!("besteffort/pod{uid}/container"));
                fs::create_dir_all(&container).expect("a directory");
                fs::write(container.join("cgroup.procs"), processes).expect("a file");
            }
            let inodes = [own, own + 1];
            assert_eq!(inodes.map(|inode| life(root.path(), uid, inode).expect("readable")), seen, "{uid}");
            assert_eq!(may_live(root.path(), uid), lives, "{uid}");
        }
    }
}
