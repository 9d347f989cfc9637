//! `xtask __exec`: becomes a process of a pod or a node, then the program that shall run there.
//!
//! A program of its own, and not code between fork and exec, because joining a mount namespace wants a process with one
//! thread, and so that nothing here has to be async-signal-safe. It ends by exec: the pid that the testbed got back from
//! spawning it is the program's.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::cgroup;
use crate::sys;

/// Where to go, and what to become there.
#[derive(clap::Args)]
pub struct Exec {
    /// The network namespace's file
    #[arg(long)]
    netns: PathBuf,
    /// The cgroup's directory
    #[arg(long)]
    cgroup: PathBuf,
    /// A file to see as /etc/hosts, in a mount namespace of its own
    #[arg(long)]
    hosts: Option<PathBuf>,
    /// The program and its arguments
    #[arg(last = true, required = true)]
    argv: Vec<String>,
}

impl Exec {
    /// Returns only if something failed.
    pub fn run(self) -> Result<()> {
        let Self { netns, cgroup, hosts, argv } = self;
        cgroup::enter(&cgroup)?;
        join_network(&netns)?;
        if let Some(hosts) = hosts {
            see_hosts(&hosts)?;
        }
        let (program, arguments) = argv.split_first().context("no program given")?;
        let error = Command::new(program).args(arguments).exec();
        Err(error).with_context(|| format!("starting {program}"))
    }
}

/// Moves the calling thread into a network namespace.
pub fn join_network(netns: &Path) -> Result<()> {
    let file = File::open(netns).with_context(|| format!("opening {}", netns.display()))?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .with_context(|| format!("joining {}", netns.display()))
}

fn see_hosts(hosts: &Path) -> Result<()> {
    sys::unshare_mounts().context("unsharing mounts")?;
    // Slave: what is unmounted outside goes here too, so that this process keeps nothing of the run alive.
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .context("making mounts slaves")?;
    mount_bind(hosts, "/etc/hosts").with_context(|| format!("binding {} over /etc/hosts", hosts.display()))
}
