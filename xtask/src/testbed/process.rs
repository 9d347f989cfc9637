//! Processes of pods and nodes: started in place, logged, ended with their owner.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use super::run::xtask_binary;

/// No pyenv, no cargo: what a process sees is what the distribution installed.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where processes run: a container of a pod, or a node's host side.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Place {
    /// The network namespace's file.
    pub netns: PathBuf,
    /// The cgroup's directory.
    pub cgroup: PathBuf,
    /// What to see as /etc/hosts; None for the machine's.
    pub hosts: Option<PathBuf>,
    /// Where logs go.
    pub logs: PathBuf,
    /// The first part of log file names, such as `n1-shop`.
    pub owner: String,
}

/// A running process. Killed when dropped.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    /// How long the log was when the process started: an earlier one of the same name may have written to it.
    log_start: usize,
    kept: bool,
}

/// How a short process ended, and what it said.
#[derive(Debug)]
pub struct Finished {
    /// The exit status; None if it was killed because it took too long.
    pub status: Option<ExitStatus>,
    /// What it wrote to stdout.
    pub stdout: String,
    /// What it wrote to stderr.
    pub stderr: String,
}

impl Finished {
    /// Whether it ended in time with status 0.
    pub fn ok(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// Its stdout, or an error that shows everything.
    pub fn expect_ok(self, what: &str) -> Result<String> {
        if self.ok() {
            return Ok(self.stdout);
        }
        bail!("{what}: {self}")
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.status {
            Some(status) => write!(f, "{status}")?,
            None => f.write_str("took too long and was killed")?,
        }
        for said in [&self.stdout, &self.stderr] {
            if !said.trim().is_empty() {
                write!(f, ": {}", said.trim())?;
            }
        }
        Ok(())
    }
}

impl Place {
    /// Starts a process that stays; stdout and stderr go to `<owner>-<name>.log`.
    pub fn spawn(&self, name: &str, argv: &[&str]) -> Result<Process> {
        let log = self.logs.join(format!("{}-{name}.log", self.owner));
        let output = File::options().create(true).append(true).open(&log)?;
        let log_start = output.metadata()?.len() as usize;
        let mut command = self.command(argv)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        // A process group of its own: the terminal's ^C is for the maker of the run.
        command.process_group(0);
        let child = command.spawn().with_context(|| format!("starting {}", argv.join(" ")))?;
        Ok(Process { name: format!("{}-{name}", self.owner), child, log, log_start, kept: false })
    }

    /// Runs a process to its end, for at most `timeout`.
    pub fn run(&self, argv: &[&str], timeout: Duration) -> Result<Finished> {
        // Files instead of pipes: a process that says much cannot block on a reader that waits for it to end.
        let (mut stdout, mut stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
        let mut command = self.command(argv)?;
        command.stdin(Stdio::null()).stdout(stdout.try_clone()?).stderr(stderr.try_clone()?);
        let mut child = command.spawn().with_context(|| format!("starting {}", argv.join(" ")))?;
        let status = wait(&mut child, timeout)?;
        if status.is_none() {
            child.kill()?;
            child.wait()?;
        }
        Ok(Finished { status, stdout: read_back(&mut stdout)?, stderr: read_back(&mut stderr)? })
    }

    /// The command that becomes `argv` in this place.
    pub fn command(&self, argv: &[&str]) -> Result<Command> {
        let mut command = Command::new(xtask_binary()?);
        command.arg("__exec").arg("--netns").arg(&self.netns).arg("--cgroup").arg(&self.cgroup);
        if let Some(hosts) = &self.hosts {
            command.arg("--hosts").arg(hosts);
        }
        command.arg("--").args(argv).current_dir("/");
        command.env_clear().env("PATH", PATH).env("LANG", "C.UTF-8").env("HOME", "/nonexistent");
        Ok(command)
    }
}

impl Process {
    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has said so far.
    pub fn log(&self) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(bytes.get(self.log_start..).unwrap_or_default()).into_owned()
    }

    /// The last few kilobytes of what it has said, for one that says much and is asked often.
    pub fn recent_log(&self) -> String {
        const RECENT_BYTES: u64 = 4096;
        let read = || -> std::io::Result<Vec<u8>> {
            let mut file = File::open(&self.log)?;
            let from = file.metadata()?.len().saturating_sub(RECENT_BYTES).max(self.log_start as u64);
            file.seek(SeekFrom::Start(from))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
    }

    /// Its log's file.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Fails, with its log, if it has ended.
    pub fn check_running(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} ended ({status}):\n{}", self.name, tail(&self.log(), 20));
        }
        Ok(())
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.child), signal).with_context(|| format!("signalling {}", self.name))
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Waits for the end, for at most `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let status = wait(&mut self.child, timeout)?;
        status.with_context(|| format!("{} did not end in {timeout:?}:\n{}", self.name, tail(&self.log(), 20)))
    }

    /// Lets it live on when this is dropped.
    pub fn keep(&mut self) {
        self.kept = true;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.kept {
            // It may have ended by itself, which is what is wanted.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn wait(child: &mut Child, timeout: Duration) -> Result<Option<ExitStatus>> {
    let end = Instant::now() + timeout;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= end {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn read_back(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The last lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// The last lines of every log that says anything.
pub fn log_tails(logs: &Path, lines: usize) -> String {
    let mut text = String::new();
    let mut files: Vec<PathBuf> = fs::read_dir(logs).into_iter().flatten().flatten().map(|e| e.path()).collect();
    files.sort();
    for file in files {
        let said = fs::read(&file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        if !said.trim().is_empty() {
            text.push_str(&format!("--- {}\n{}\n", file.display(), tail(&said, lines)));
        }
    }
    text
}
