//! A run: the id in every name it makes, the notes of what it made, and its end whatever happens.
//!
//! Everything is noted under `/run/nodemesh/<run>/made` before it is made, and has `nodemesh-<run>` in its name, so that
//! `cargo xtask clean` finds it with or without the notes. The run ends when it is dropped, which a panic does as well;
//! a guard process that holds the other end of a pipe ends it when its maker is interrupted or killed.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::mount::{MountFlags, mount};

use super::cgroup;
use crate::clean;

/// Where every run has its directory.
pub const RUNS: &str = "/run/nodemesh";

/// What everything that a run makes is called by: `nodemesh-<run>`, `nodemesh-<run>-<more>`.
pub const PREFIX: &str = "nodemesh-";

/// The kinds of things that are noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A cgroup's directory.
    Cgroup,
    /// A named network namespace.
    Netns,
    /// A mount point.
    Mount,
    /// A directory with files that need a real disk.
    Directory,
}

impl Kind {
    /// The word in the notes.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Cgroup => "cgroup",
            Kind::Netns => "netns",
            Kind::Mount => "mount",
            Kind::Directory => "directory",
        }
    }
}

/// A run in progress.
pub struct Run {
    id: String,
    dir: PathBuf,
    cgroup: PathBuf,
    guard: Option<Child>,
}

impl Run {
    /// Makes the run's directory, its cgroup, its bpffs and its guard.
    pub fn create() -> Result<Self> {
        require_root()?;
        let (id, dir) = claim_id()?;
        Self::begin(id, dir)
    }

    /// The same under a name that there is once on a machine.
    pub fn named(id: &str) -> Result<Self> {
        require_root()?;
        let dir = Path::new(RUNS).join(id);
        fs::create_dir_all(RUNS).with_context(|| format!("making {RUNS}"))?;
        fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
        fs::write(dir.join("maker"), std::process::id().to_string())?;
        Self::begin(id.to_string(), dir)
    }

    fn begin(id: String, dir: PathBuf) -> Result<Self> {
        let cgroup = cgroup::mount_point()?.join(format!("{PREFIX}{id}"));
        let guard = start_guard(&id)?;
        // From here on, dropping `run` takes back whatever the rest of this function made.
        let run = Self { id, dir, cgroup, guard: Some(guard) };
        fs::create_dir(run.dir.join("logs"))?;
        fs::create_dir(run.dir.join("pods"))?;
        run.note(Kind::Cgroup, &run.cgroup.to_string_lossy())?;
        fs::create_dir(&run.cgroup).with_context(|| format!("making {}", run.cgroup.display()))?;
        run.mount_bpffs()?;
        Ok(run)
    }

    /// Six hexadecimal digits, or the name it was given.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// /run/nodemesh/<run>
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The run's cgroup; nodes are its children.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// The run's own bpffs.
    pub fn bpffs(&self) -> PathBuf {
        self.dir.join("bpf")
    }

    /// A name that contains the run: `nodemesh-<run>-<rest>`.
    pub fn name(&self, rest: &str) -> String {
        format!("{PREFIX}{}-{rest}", self.id)
    }

    /// Writes down what is about to be made.
    pub fn note(&self, kind: Kind, what: &str) -> Result<()> {
        let mut notes = OpenOptions::new().create(true).append(true).open(self.dir.join("made"))?;
        writeln!(notes, "{} {what}", kind.word()).context("writing the run's notes")
    }

    /// Leaves everything as it is when this is dropped.
    pub fn keep(&mut self) {
        if let Some(mut guard) = self.guard.take() {
            tell_to_keep(&mut guard);
        }
    }

    fn mount_bpffs(&self) -> Result<()> {
        let target = self.bpffs();
        fs::create_dir(&target)?;
        self.note(Kind::Mount, &target.to_string_lossy())?;
        mount("bpf", &target, "bpf", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, c"mode=0700")
            .with_context(|| format!("mounting bpffs on {}", target.display()))
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let Some(mut guard) = self.guard.take() else { return };
        if let Err(error) = clean::end_run(&self.id) {
            eprintln!("run {} did not end cleanly, `cargo xtask clean` tries again: {error:#}", self.id);
        }
        drop(guard.stdin.take());
        // The guard finds nothing left to do.
        let _ = guard.wait();
    }
}

fn require_root() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("the testbed makes network namespaces, cgroups and BPF programs: run it as root");
    }
    Ok(())
}

fn claim_id() -> Result<(String, PathBuf)> {
    fs::create_dir_all(RUNS).with_context(|| format!("making {RUNS}"))?;
    for _ in 0..8 {
        let id: String = random_uuid()?.chars().take(6).collect();
        let dir = Path::new(RUNS).join(&id);
        match fs::create_dir(&dir) {
            Ok(()) => {
                fs::write(dir.join("maker"), std::process::id().to_string())?;
                return Ok((id, dir));
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| format!("making {}", dir.display())),
        }
    }
    bail!("no free run id below {RUNS}: cargo xtask clean")
}

/// A random UUID, such as a pod's uid.
pub fn random_uuid() -> Result<String> {
    let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid").context("reading a random uuid")?;
    Ok(uuid.trim().to_string())
}

/// The xtask binary: this process, or for a test the one that cargo built beside it.
pub fn xtask_binary() -> Result<PathBuf> {
    let own = std::env::current_exe().context("finding this program")?;
    if own.file_name().is_some_and(|name| name == "xtask") {
        return Ok(own);
    }
    let beside = own.ancestors().skip(1).take(3).map(|dir| dir.join("xtask")).find(|path| path.is_file());
    beside.with_context(|| format!("no xtask binary beside {}: cargo build -p xtask", own.display()))
}

const KEEP: &[u8] = b"keep";

fn start_guard(id: &str) -> Result<Child> {
    let mut command = Command::new(xtask_binary()?);
    command.args(["__guard", id]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    // A process group of its own: the terminal's ^C is for the maker, not for the guard.
    command.process_group(0).current_dir("/").spawn().context("starting the guard process")
}

fn tell_to_keep(guard: &mut Child) {
    if let Some(mut stdin) = guard.stdin.take() {
        let _ = stdin.write_all(KEEP);
    }
    let _ = guard.wait();
}

/// `xtask __guard`: waits until the run's maker is gone, then ends the run unless it was told to keep it.
pub fn guard(id: &str) -> Result<()> {
    let mut said = Vec::new();
    File::open("/dev/stdin")?.read_to_end(&mut said)?;
    if said == KEEP { Ok(()) } else { clean::end_run(id) }
}

/// `xtask __hold`: makes a run with a node, says its id, and waits to be killed.
pub fn hold() -> Result<()> {
    let mut bed = super::Testbed::new()?;
    bed.add_node()?;
    println!("{}", bed.id());
    loop {
        std::thread::park();
    }
}
