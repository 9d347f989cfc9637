//! Which process is kubelet, and in which cgroup: whatever it is called and whoever started it.
//!
//! Kubelet is who listens on the port that the Node object says it listens on, as root, outside the pods. Names of units
//! and binaries differ (k3s, a cluster made by hand); this port is what the API server itself reaches kubelet by.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Component, Path, PathBuf};

use super::cgroups;

/// A kubelet that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kubelet {
    pub pid: i32,
    /// The name of its process, for people.
    pub name: String,
    pub cgroup: PathBuf,
    /// The cgroup's id.
    pub id: u64,
}

impl Kubelet {
    /// Whether its process still is in the cgroup.
    pub fn is_there(&self) -> bool {
        cgroups::holds(&self.cgroup, self.pid)
    }
}

/// The sockets that listen on a TCP port of this network namespace, by inode.
pub(super) fn listeners(port: u16) -> BTreeSet<u64> {
    let tables = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];
    let files = tables.into_iter().filter_map(|table| File::open(table).ok());
    files.flat_map(|file| listening(BufReader::new(file), port)).collect()
}

/// Reads a table as procfs writes it. Listeners come first: a node may have very many connections behind them.
fn listening(table: impl BufRead, port: u16) -> BTreeSet<u64> {
    const LISTEN: &str = "0A";
    let lines = table.lines().map_while(Result::ok).skip(1);
    let rows = lines.map_while(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, local, _, state, _, _, _, _, _, inode, ..] = words.as_slice() else { return None };
        let (_, local_port) = local.rsplit_once(':')?;
        (*state == LISTEN).then_some((u16::from_str_radix(local_port, 16).ok()?, inode.parse().ok()?))
    });
    rows.filter(|(listened, _)| *listened == port).map(|(_, inode)| inode).collect()
}

/// Finds kubelet among the processes that hold these sockets.
///
/// # Errors
/// Why there is none that may be believed: nobody holds them, who does is a pod or not root, or several do.
pub(super) fn find(port: u16, sockets: &BTreeSet<u64>, kubepods: &Path) -> Result<Kubelet, String> {
    if sockets.is_empty() {
        return Err(format!("nothing listens on port {port}, where the Node object says that kubelet does"));
    }
    let holders = holders(sockets);
    if holders.is_empty() {
        return Err(format!("no process that can be seen here listens on port {port}: the agent needs hostPID"));
    }
    let mount = cgroups::cgroup2_mount().ok_or("no cgroup2 is mounted")?;
    let kubelets = holders.into_iter().map(|pid| kubelet(pid, &mount, kubepods));
    choose(port, kubelets.collect())
}

/// One cgroup, or none: children of kubelet that hold its sockets are in the same.
fn choose(port: u16, found: Vec<Result<Kubelet, String>>) -> Result<Kubelet, String> {
    let (mut kubelets, mut refused) = (Vec::new(), Vec::new());
    for one in found {
        match one {
            Ok(kubelet) => kubelets.push(kubelet),
            Err(reason) => refused.push(reason),
        }
    }
    let Some(first) = kubelets.first().cloned() else { return Err(refused.join("; ")) };
    match kubelets.iter().find(|other| other.id != first.id) {
        Some(other) => Err(format!(
            "processes {} and {} listen on port {port}, in the cgroups {} and {}",
            first.pid,
            other.pid,
            first.cgroup.display(),
            other.cgroup.display()
        )),
        None => Ok(first),
    }
}

fn kubelet(pid: i32, mount: &Path, kubepods: &Path) -> Result<Kubelet, String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let name = field(&status, "Name:").unwrap_or_default().to_string();
    if effective_user(&status) != Some(0) {
        return Err(format!("process {pid} ({name}), which listens there, is not root's"));
    }
    let cgroup = cgroup_of(pid, mount).ok_or_else(|| format!("the cgroup of process {pid} ({name}) cannot be seen"))?;
    if cgroup.starts_with(kubepods) {
        return Err(format!("process {pid} ({name}), which listens there, is a pod's"));
    }
    let id = cgroups::id(&cgroup).map_err(|error| format!("reading {}: {error}", cgroup.display()))?;
    Ok(Kubelet { pid, name, cgroup, id })
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// The second of the four numbers.
fn effective_user(status: &str) -> Option<u32> {
    field(status, "Uid:")?.split_whitespace().nth(1)?.parse().ok()
}

/// The processes that have one of these sockets open.
fn holders(sockets: &BTreeSet<u64>) -> Vec<i32> {
    let names: BTreeSet<PathBuf> = sockets.iter().map(|inode| PathBuf::from(format!("socket:[{inode}]"))).collect();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let holds = |pid: &i32| {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        open.into_iter().any(|entry| fs::read_link(entry.path()).is_ok_and(|target| names.contains(&target)))
    };
    pids.filter(holds).collect()
}

/// The directory of a process's cgroup. Where the agent has a cgroup namespace of its own the path that it reads leads up
/// from there: then what is below the last step up is tried, and at last the whole tree is searched.
fn cgroup_of(pid: i32, mount: &Path) -> Option<PathBuf> {
    let listed = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = listed.lines().find_map(|line| line.strip_prefix("0::"))?;
    let direct = mount.join(below_root(path));
    if cgroups::holds(&direct, pid) { Some(direct) } else { cgroups::search(mount, pid) }
}

fn below_root(path: &str) -> PathBuf {
    Path::new(path).components().filter(|part| matches!(part, Component::Normal(_))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_told_from_connections() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 0100007F:2808 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 11 1 x\n\
             1: 00000000:280A 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12 1 x\n\
             2: 0100007F:280A 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 13 1 x\n\
             3: 0A00000A:280A 0B00000A:D2F0 01 00000000:00000000 02:00000000 00000000     0        0 14 2 x\n\
             4: 00000000:280A 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 15 1 x\n";
        assert_eq!(listening(table.as_bytes(), 10250), BTreeSet::from([12, 13]));
        assert_eq!(listening(table.as_bytes(), 10251), BTreeSet::new());
        assert_eq!(listening(&b"one line\nanother\n"[..], 10250), BTreeSet::new());
    }

    #[test]
    fn one_cgroup_or_none() {
        let kubelet = |pid, id| Kubelet { pid, name: "kubelet".into(), cgroup: format!("/c/{id}").into(), id };
        assert_eq!(choose(1, vec![Ok(kubelet(7, 1))]), Ok(kubelet(7, 1)));
        assert_eq!(choose(1, vec![Ok(kubelet(7, 1)), Ok(kubelet(8, 1))]), Ok(kubelet(7, 1)));
        // A pod that listens on another address of the node does not stand in kubelet's way.
        assert_eq!(choose(1, vec![Err("a pod's".into()), Ok(kubelet(7, 1))]), Ok(kubelet(7, 1)));
        assert_eq!(choose(1, vec![Err("a".into()), Err("b".into())]), Err("a; b".into()));
        let both = choose(10250, vec![Ok(kubelet(7, 1)), Ok(kubelet(8, 2))]);
        assert_eq!(both, Err("processes 7 and 8 listen on port 10250, in the cgroups /c/1 and /c/2".into()));
    }

    #[test]
    fn a_process_as_procfs_shows_it() {
        let status = "Name:\tk3s-server\nUid:\t1000\t0\t0\t0\n";
        assert_eq!((field(status, "Name:"), effective_user(status)), (Some("k3s-server"), Some(0)));
        assert_eq!(effective_user("Name:\tx\n"), None);
        let table = [
            ("/system.slice/kubelet.service", "system.slice/kubelet.service"),
            ("/../../../system.slice/k3s.service", "system.slice/k3s.service"),
            ("/", ""),
        ];
        for (path, expected) in table {
            assert_eq!(below_root(path), Path::new(expected));
        }
    }
}
