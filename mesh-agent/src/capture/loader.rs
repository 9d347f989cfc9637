//! Loads the object, makes or re-opens the pinned maps, and keeps the cgroup links.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::programs::Program;
use aya::util::KernelVersion;
use aya::{Ebpf, EbpfLoader};
use mesh_common::names::{self, maps, programs};

use super::error::Error;
use super::links::{self, Target};
use super::ownership::Ownership;
use super::tables::Tables;
use super::{Config, ObjectSource, cgroups};
use crate::sys;

/// The kernel side of this agent: loaded programs, and where their maps and links are pinned.
pub(super) struct Loaded {
    /// Keeps the programs loaded; new pods' links are made from them.
    pub ebpf: Ebpf,
    /// The pins of this ABI version.
    pub pins: Pins,
    /// The pods' parent cgroup.
    pub kubepods: PathBuf,
    /// Connections may go from pod to pod by the kernel alone.
    pub goes_straight: bool,
}

/// The directories below the pin directory of this ABI version.
#[derive(Clone)]
pub(super) struct Pins {
    root: PathBuf,
}

impl Pins {
    pub fn new(pins: &Path) -> Self {
        Self { root: pins.join(names::ABI_VERSION) }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn maps(&self) -> PathBuf {
        self.root.join(names::pins::MAPS)
    }

    pub fn links(&self) -> PathBuf {
        self.root.join(names::pins::LINKS)
    }

    pub fn pods(&self) -> PathBuf {
        self.root.join(names::pins::PODS)
    }

    pub fn pod(&self, uid: &str) -> PathBuf {
        self.pods().join(uid)
    }

    /// Programs of two ABI versions would both capture: the second finds a connection that the first has led away.
    fn refuse_others(&self) -> Result<(), Error> {
        self.other_version().map_or(Ok(()), |other| Err(Error::OtherAbi(other)))
    }

    /// The pins of an agent of another ABI version, if there are any.
    pub fn other_version(&self) -> Option<PathBuf> {
        let versions = self.root.parent().map(fs::read_dir).into_iter().flatten().flatten().flatten();
        let mut others = versions.map(|entry| entry.path()).filter(|path| *path != self.root);
        others.find(|path| path.join(names::pins::LINKS).is_dir())
    }

    fn make(&self) -> Result<(), Error> {
        check_bpffs(&self.root)?;
        for directory in [self.maps(), self.links(), self.pods()] {
            fs::create_dir_all(&directory).map_err(Error::io(format!("making {}", directory.display())))?;
        }
        Ok(())
    }
}

/// Refuses before anything is made where the nearest directory that exists is on another file system.
fn check_bpffs(path: &Path) -> Result<(), Error> {
    const BPFFS_MAGIC: rustix::fs::FsWord = 0xcafe_4a11;
    let existing = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
    let statfs = rustix::fs::statfs(existing).map_err(|error| Error::Io {
        step: format!("asking for the file system of {}", existing.display()),
        source: error.into(),
    })?;
    if statfs.f_type == BPFFS_MAGIC { Ok(()) } else { Err(Error::NotBpffs(path.to_path_buf())) }
}

const CGROUP_SOCK_OPS: u32 = 3;
/// The hooks on the pods' parent cgroup, with their attach types. A fresh set goes on in this order: what shows a peer's
/// name first, so that no captured socket is ever seen without it.
const POD_HOOKS: [(&str, u32); 5] = [
    (programs::GETPEERNAME4, 29),
    (programs::GETPEERNAME6, 30),
    (programs::SOCK_RELEASE, 34),
    (programs::CONNECT4, 10),
    (programs::CONNECT6, 11),
];

impl Loaded {
    /// Loads everything and puts the new programs behind the links that are there, or makes the links.
    pub fn start(config: &Config) -> Result<(Self, Ownership), Error> {
        let kubepods = cgroups::kubepods(&config.cgroup_root)?;
        let pins = Pins::new(&config.pins);
        pins.refuse_others()?;
        pins.make()?;
        let ebpf = load(&config.object, config.map_connections, config.bpf_log, Some(&pins))?;
        warn_of_other_sizes(config, &pins);
        let mut loaded = Self { ebpf, pins, kubepods, goes_straight: config.same_node_kernel };
        loaded.load_programs()?;
        // Before the first change of what an agent that is still there may own.
        let ownership = Ownership::take(&loaded.pins)?;
        loaded.attach_hooks()?;
        Ok((loaded, ownership))
    }

    /// The descriptor of a loaded program.
    pub fn program(&self, name: &'static str) -> Result<OwnedFd, Error> {
        let program = self.ebpf.program(name).ok_or(Error::ProgramMissing(name))?;
        let descriptor = program.fd().map_err(|source| Error::Program { program: name, source })?;
        descriptor.as_fd().try_clone_to_owned().map_err(Error::io("duplicating a program's descriptor"))
    }

    fn load_programs(&mut self) -> Result<(), Error> {
        programs::ALL.iter().try_for_each(|name| load_program(&mut self.ebpf, name).map(|_| ()))
    }

    /// The agent's own dials are filed before the first pod's connect can be captured.
    pub fn attach_hooks(&self) -> Result<(), Error> {
        let own = cgroups::own()?;
        let id = cgroups::id(&own).map_err(Error::io("reading the agent's cgroup"))?;
        let pin = self.pins.links().join(format!("{}-{id}", programs::SOCK_OPS));
        self.attach_to_cgroup(programs::SOCK_OPS, CGROUP_SOCK_OPS, &own, &pin)?;
        // What an earlier agent let go straight is told and taken off the file when it closes.
        let pin = self.pins.links().join(programs::POD_OPS);
        if self.goes_straight || pin.exists() {
            self.attach_to_cgroup(programs::POD_OPS, CGROUP_SOCK_OPS, &self.kubepods, &pin)?;
        }
        for (name, attach_type) in POD_HOOKS {
            self.attach_to_cgroup(name, attach_type, &self.kubepods, &self.pins.links().join(name))?;
        }
        Ok(())
    }

    /// Moves the program that files probes to kubelet's cgroup, if it is not on it.
    pub fn attach_probes(&self, kubelet: &Path) -> Result<(), Error> {
        let pin = self.pins.links().join(programs::PROBE_OPS);
        self.attach_to_cgroup(programs::PROBE_OPS, CGROUP_SOCK_OPS, kubelet, &pin)
    }

    /// Names this agent's cgroup to the connect hooks, and takes out those of agents that are gone.
    pub fn file_agent(&self, tables: &Tables) -> Result<(), Error> {
        let id = cgroups::own().and_then(|own| cgroups::id(&own).map_err(Error::io("reading the agent's cgroup")))?;
        tables.agents.set(&id, &0).map_err(Error::io("filing the agent's cgroup"))?;
        self.collect_agents(tables);
        Ok(())
    }

    /// Takes out what agents left whose cgroup is gone.
    pub fn collect_agents(&self, tables: &Tables) {
        let entries = fs::read_dir(self.pins.links()).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()) {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let Some(old) = name.strip_prefix(programs::SOCK_OPS).and_then(|rest| rest.strip_prefix('-')) else {
                continue;
            };
            if links::is_defunct(&path) {
                let _ = fs::remove_file(&path);
                if let Ok(old) = old.parse() {
                    tables.agents.remove(&old);
                }
            }
        }
    }

    fn attach_to_cgroup(&self, name: &'static str, attach_type: u32, cgroup: &Path, pin: &Path) -> Result<(), Error> {
        let step = || format!("attaching {name} to {}", cgroup.display());
        let program = self.program(name)?;
        let directory = fs::File::open(cgroup).map_err(Error::io(step()))?;
        let id = cgroups::id(cgroup).map_err(Error::io(step()))?;
        let target = Target::Cgroup { descriptor: directory.as_raw_fd(), id };
        links::ensure(pin, &program, target, attach_type).map_err(Error::io(step()))
    }
}

/// The object with what it is told of this kernel. Its maps are pinned, or found, below `pins`; without, they are its own.
pub(super) fn load(object: &ObjectSource, entries: u32, log: bool, pins: Option<&Pins>) -> Result<Ebpf, Error> {
    let (set_retval, ingress_ifindex) = (has(5, 18), has(5, 17));
    let current_cgroup = has(6, 16);
    let log_level: u8 = if log { 5 } else { 0 };
    let directory = pins.map(Pins::maps);
    // A pinned map keeps the size that it was made with.
    let pinned = directory.as_ref().and_then(|directory| entries_of(&directory.join(maps::DIALS)).ok());
    let dial_entries = pinned.unwrap_or(entries);
    let mut loader = EbpfLoader::new();
    loader
        .override_global(names::globals::SET_RETVAL, &set_retval, true)
        .override_global(names::globals::INGRESS_IFINDEX, &ingress_ifindex, true)
        .override_global(names::globals::CURRENT_CGROUP, &current_cgroup, true)
        .override_global(names::globals::DIAL_ENTRIES, &dial_entries, true)
        .override_global(names::globals::LOG_LEVEL, &log_level, false);
    for name in maps::ALL {
        if let Some(directory) = &directory {
            loader.map_pin_path(name, directory.join(name));
        }
    }
    for name in maps::PER_CONNECTION {
        loader.map_max_entries(name, entries);
    }
    let loaded = match object {
        ObjectSource::File(path) => loader.load_file(path)?,
        ObjectSource::Embedded => loader.load(embedded()?)?,
    };
    // The library reads all types of the kernel, 15 MB.
    drop(loader);
    sys::give_memory_back();
    Ok(loaded)
}

/// A pinned map keeps the size that it was made with.
fn warn_of_other_sizes(config: &Config, pins: &Pins) {
    for name in maps::PER_CONNECTION {
        if let Ok(entries) = entries_of(&pins.maps().join(name))
            && entries != config.map_connections
        {
            let wanted = config.map_connections;
            tracing::warn!(
                map = name,
                entries,
                wanted,
                "an earlier agent made this map with another size, which it keeps; `mesh-agent detach` removes it"
            );
        }
    }
}

/// How many entries a pinned map was made for.
fn entries_of(pin: &Path) -> std::io::Result<u32> {
    sys::bpf_open(pin).and_then(|map| sys::map_entries(map.as_fd()))
}

fn has(major: u8, minor: u8) -> u8 {
    u8::from(KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(major, minor, 0)))
}

#[cfg(nodemesh_embed_object)]
fn embedded() -> Result<&'static [u8], Error> {
    Ok(aya::include_bytes_aligned!(env!("NODEMESH_BPF_OBJECT")))
}

#[cfg(not(nodemesh_embed_object))]
fn embedded() -> Result<&'static [u8], Error> {
    Err(Error::NoObject)
}

/// Hands a program to the verifier.
pub(super) fn load_program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a Program, Error> {
    let program = ebpf.program_mut(name).ok_or(Error::ProgramMissing(name))?;
    let loaded = match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::SkLookup(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        _ => Err(aya::programs::ProgramError::UnexpectedProgramType),
    };
    loaded.map_err(|source| Error::Program { program: name, source })?;
    Ok(program)
}
