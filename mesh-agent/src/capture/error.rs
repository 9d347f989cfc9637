//! Why capture cannot start or a pod cannot be enrolled, for the operator.

use std::io;
use std::path::PathBuf;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The agent was built without the object.
    #[error("this agent has no BPF object inside: build it with `cargo xtask build`, or name one with --bpf-object")]
    NoObject,
    /// A step of the start failed.
    #[error("{step}: {source}")]
    Io {
        /// What was being done, to what.
        step: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The object could not be read or its maps not made.
    #[error("loading the BPF object: {0}")]
    Object(#[from] aya::EbpfError),
    /// The kernel refused a program.
    #[error("loading the kernel program {program} (`mesh-agent check` says what this kernel offers): {source}")]
    Program {
        /// Its name.
        program: &'static str,
        /// aya's error, with the verifier's log.
        source: aya::programs::ProgramError,
    },
    /// The object has no such program: it is of another version.
    #[error("the BPF object has no program {0}: it belongs to another version of the agent")]
    ProgramMissing(&'static str),
    /// There is no cgroup2 mount.
    #[error("no cgroup2 is mounted here: nodes with cgroup v1 alone are not supported")]
    NoCgroup2,
    /// Pods are not where they are looked for.
    #[error("neither kubepods nor kubepods.slice below {0}: --cgroup-root names the directory that holds one of them")]
    NoKubepods(PathBuf),
    /// Pins need bpffs.
    #[error(
        "{0} is not on a BPF file system: mount one with `mount -t bpf bpf DIR`, and name a path in it with --bpf-pins"
    )]
    NotBpffs(PathBuf),
    /// Programs and maps of another layout are attached.
    #[error(
        "{0} holds the programs of an agent with another ABI version, which would capture beside this one's: end that \
         agent and run its `mesh-agent detach`"
    )]
    OtherAbi(PathBuf),
}

impl Error {
    pub(super) fn io(step: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let step = step.into();
        move |source| Error::Io { step, source }
    }
}
