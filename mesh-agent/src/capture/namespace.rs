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
    let cgroup = cgroups::pod(kubepods, uid).ok_or("its cgroup is not there yet")?;
    let mut seen = Vec::new();
    let mut trouble = "it has no process yet".to_string();
    let mut barred = None;
    for pid in cgroups::processes(&cgroup) {
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

/// Whether the pod's processes still are in the namespace with this inode; none if that cannot be told.
pub(super) fn is_current(kubepods: &Path, uid: &str, inode: u64) -> Option<bool> {
    let cgroup = cgroups::pod(kubepods, uid)?;
    let mut seen = cgroups::processes(&cgroup).into_iter().filter_map(|pid| {
        let namespace = fs::metadata(format!("/proc/{pid}/ns/net")).ok()?;
        Some(namespace.ino())
    });
    let first = seen.next()?;
    Some(first == inode || seen.any(|other| other == inode))
}
