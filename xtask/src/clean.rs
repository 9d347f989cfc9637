//! `cargo xtask clean`: ends what runs left behind, after a crash, kill -9 or `demo --keep`.
//!
//! A run is found by its directory under /run/nodemesh, by its cgroup and by its network namespaces: any one of the
//! three is enough. Processes end through `cgroup.kill` of the run's own cgroup, never by name. A run that is still in
//! progress is ended as well, so there is a way to name one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::mount::{UnmountFlags, unmount};

use crate::testbed::cgroup;
use crate::testbed::run::{Kind, PREFIX, RUNS};

const NETNS_DIR: &str = "/run/netns";

/// End everything that demos and tests left on this machine
#[derive(clap::Args)]
pub struct Clean {
    /// Only list what would be ended
    #[arg(long)]
    dry_run: bool,
    /// Only these runs; all of them if none is named, also those in progress
    runs: Vec<String>,
}

impl Clean {
    /// Finds, lists and ends.
    pub fn run(self) -> Result<()> {
        let Self { dry_run, runs } = self;
        let mut found = find()?;
        if !runs.is_empty() {
            found.retain(|run| runs.contains(&run.id));
        }
        if found.is_empty() {
            println!("nothing to clean");
        }
        let mut failed = Vec::new();
        for leftover in &found {
            print!("{leftover}");
            if dry_run {
                continue;
            }
            match leftover.end() {
                Ok(()) => println!("  ended"),
                Err(error) => failed.push(format!("run {}: {error:#}", leftover.id)),
            }
        }
        ensure!(failed.is_empty(), "{}", failed.join("\n"));
        Ok(())
    }
}

/// Ends one run by its id; nothing to do is fine.
pub fn end_run(id: &str) -> Result<()> {
    match find()?.into_iter().find(|run| run.id == id) {
        Some(leftover) => leftover.end(),
        None => Ok(()),
    }
}

/// What there is of one run.
#[derive(Default)]
pub struct Leftover {
    id: String,
    cgroups: BTreeSet<PathBuf>,
    namespaces: BTreeSet<String>,
    mounts: BTreeSet<PathBuf>,
    directories: BTreeSet<PathBuf>,
    dir: Option<PathBuf>,
}

/// Every run of which anything is left.
pub fn find() -> Result<Vec<Leftover>> {
    let mut runs = BTreeMap::<String, Leftover>::new();
    for name in names_in(Path::new(RUNS)) {
        of(&mut runs, &name).read_notes(&Path::new(RUNS).join(&name));
    }
    let cgroups = cgroup::mount_point()?;
    for name in names_in(&cgroups) {
        if let Some(id) = name.strip_prefix(PREFIX) {
            of(&mut runs, id).cgroups.insert(cgroups.join(&name));
        }
    }
    for name in names_in(Path::new(NETNS_DIR)) {
        if let Some((id, _)) = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')) {
            of(&mut runs, id).namespaces.insert(name.clone());
        }
    }
    for mount in mounts()? {
        let below = mount.strip_prefix(RUNS).ok().and_then(|rest| rest.components().next());
        if let Some(id) = below.and_then(|part| part.as_os_str().to_str()) {
            of(&mut runs, id).mounts.insert(mount.clone());
        }
    }
    Ok(runs.into_values().filter(|run| !run.is_empty()).collect())
}

fn of<'a>(runs: &'a mut BTreeMap<String, Leftover>, id: &str) -> &'a mut Leftover {
    runs.entry(id.to_string()).or_insert_with(|| Leftover { id: id.to_string(), ..Leftover::default() })
}

impl Leftover {
    /// The run's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    fn is_empty(&self) -> bool {
        let Self { id: _, cgroups, namespaces, mounts, directories, dir } = self;
        let nothing_made = cgroups.is_empty() && namespaces.is_empty() && mounts.is_empty() && directories.is_empty();
        nothing_made && dir.is_none()
    }

    fn read_notes(&mut self, dir: &Path) {
        self.dir = Some(dir.to_path_buf());
        // A run killed before its first note has none; what it made is found by name.
        for line in fs::read_to_string(dir.join("made")).unwrap_or_default().lines() {
            match line.split_once(' ') {
                Some((kind, path)) if kind == Kind::Cgroup.word() && Path::new(path).exists() => {
                    self.cgroups.insert(path.into());
                }
                Some((kind, name)) if kind == Kind::Netns.word() && Path::new(NETNS_DIR).join(name).exists() => {
                    self.namespaces.insert(name.to_string());
                }
                Some((kind, path)) if kind == Kind::Directory.word() && Path::new(path).exists() => {
                    self.directories.insert(path.into());
                }
                // Mounts are found in mountinfo, which cannot be wrong about them.
                _ => {}
            }
        }
    }

    fn end(&self) -> Result<()> {
        // Those of version 1 are empty once the processes of cgroup2's are killed.
        let (of_v2, of_v1): (Vec<_>, Vec<_>) =
            self.cgroups.iter().partition(|cgroup| cgroup.join("cgroup.kill").exists());
        for cgroup in of_v2.into_iter().chain(of_v1) {
            cgroup::destroy(cgroup)?;
        }
        for mount in self.mounts.iter().rev() {
            unmount(mount, UnmountFlags::DETACH).with_context(|| format!("unmounting {}", mount.display()))?;
        }
        for name in &self.namespaces {
            delete_netns(name)?;
        }
        for dir in self.directories.iter().chain(&self.dir) {
            match fs::remove_dir_all(dir) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("removing {}", dir.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn maker(&self) -> Option<String> {
        let pid = fs::read_to_string(self.dir.as_ref()?.join("maker")).ok()?;
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        Some(format!("{} (pid {pid})", name.trim()))
    }
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.maker() {
            Some(maker) => writeln!(f, "run {}, in progress: {maker}", self.id)?,
            None => writeln!(f, "run {}", self.id)?,
        }
        for cgroup in &self.cgroups {
            writeln!(f, "  cgroup   {}", cgroup.display())?;
            for process in processes(cgroup) {
                writeln!(f, "  process  {process}")?;
            }
        }
        for name in &self.namespaces {
            writeln!(f, "  netns    {name}")?;
        }
        for mount in &self.mounts {
            writeln!(f, "  mount    {}", mount.display())?;
        }
        self.directories.iter().chain(&self.dir).try_for_each(|dir| writeln!(f, "  files    {}", dir.display()))
    }
}

/// Takes the name away; the namespace, its links and its routes go with its last process.
pub fn delete_netns(name: &str) -> Result<()> {
    let path = Path::new(NETNS_DIR).join(name);
    // Not mounted (made and killed half way) is as good as unmounted.
    let _ = unmount(&path, UnmountFlags::DETACH);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn names_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn mounts() -> Result<Vec<PathBuf>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
    Ok(text.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).collect())
}

fn processes(cgroup: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for pid in fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default().lines() {
        let arguments = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        found.push(format!("{pid:>7} {}", arguments.replace('\0', " ").trim_end()));
    }
    for name in names_in(cgroup) {
        let child = cgroup.join(name);
        if child.is_dir() {
            found.extend(processes(&child));
        }
    }
    found
}
