//! `mesh-agent check`: what this kernel offers of what capture needs, feature by feature. Looks, changes nothing. With
//! `--load` the kernel's verifier looks at each program too: that is loaded, attached to nothing, and gone again.

use std::path::Path;

use aya::maps::MapType;
use aya::programs::{ProgramInfo, ProgramType};
use aya::sys::{is_map_supported, is_program_supported};
use aya::util::KernelVersion;

use super::error::Error;
use super::kubelet::{self, Kubelet};
use super::loader::{self, Pins};
use super::{ObjectSource, cgroups, netlink, probes};

/// Instructions that the verifier goes through on all ways together before it refuses, for who is privileged: the kernel's
/// BPF_COMPLEXITY_LIMIT_INSNS.
const VERIFIER_LIMIT: u32 = 1_000_000;

/// One feature.
#[derive(Clone, Debug)]
pub struct Feature {
    /// What it is called in the kernel.
    pub name: &'static str,
    /// Whether the agent starts without it.
    pub needed: Needed,
    /// Whether it is here.
    pub state: State,
    /// What was found, where that says more than that it is here.
    pub found: Option<String>,
    /// What it is for, and what is lost without it.
    pub matters: &'static str,
}

/// Whether the agent starts without a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needed {
    /// It does not.
    Required,
    /// It does, with less.
    Optional,
}

/// Whether a feature is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It is.
    Offered,
    /// It is not, or could not be looked at; with the reason.
    Missing(String),
}

/// Exit status for scripts: 0 all there, 1 something required is missing, 2 something optional is.
pub fn exit_status(features: &[Feature]) -> u8 {
    let missing = |needed| features.iter().any(|f| f.needed == needed && f.state != State::Offered);
    if missing(Needed::Required) {
        1
    } else if missing(Needed::Optional) {
        2
    } else {
        0
    }
}

/// Looks at this kernel, at the cgroup tree below `cgroup_root`, for the kubelet that listens on a port, and at what is
/// pinned below `pins`.
pub fn check(cgroup_root: &Path, kubelet_port: u16, pins: &Path) -> Vec<Feature> {
    use Needed::{Optional, Required};
    let feature = |name, needed, state, matters| Feature { name, needed, state, matters, found: None };
    vec![
        feature(
            "CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_SYS_PTRACE",
            Required,
            privileges(),
            "load programs, guard interfaces, find and enter pods",
        ),
        feature("kernel 5.15", Required, version(5, 15), "the oldest kernel whose hooks are all that capture needs"),
        feature("cgroup2", Required, cgroup2(), "connect() hooks attach to cgroup2 directories"),
        feature("kubepods", Required, kubepods(cgroup_root), "the pods' parent cgroup, which the hooks attach to"),
        feature(
            "cgroup/connect4,6 and getpeername4,6",
            Required,
            program(ProgramType::CgroupSockAddr),
            "lead what pods dial to the agent, and show both ends the right peer",
        ),
        feature(
            "cgroup/sock_release",
            Required,
            program(ProgramType::CgroupSock),
            "take the records of failed connections away",
        ),
        feature("sockops", Required, program(ProgramType::SockOps), "tell the guard which connections the agent opens"),
        feature(
            "sk_lookup",
            Required,
            program(ProgramType::SkLookup),
            "lead what arrives in a pod to the agent without touching its ports",
        ),
        feature("tc classifier", Required, program(ProgramType::SchedClassifier), "the guard on the pods' interfaces"),
        feature("socket storage", Required, map(MapType::SkStorage), "remember what a socket dialled"),
        feature("SOCKHASH", Required, map(MapType::SockHash), "hold the agent's listeners"),
        feature("LPM trie", Required, map(MapType::LpmTrie), "hold the networks that pods keep out of the mesh"),
        feature("ring buffer", Required, map(MapType::RingBuf), "report refusals and drops"),
        feature(
            "BPF type information",
            Optional,
            btf(),
            "socket storage needs it; kernels without do not load the object",
        ),
        feature(
            "sk_lookup's ingress_ifindex (5.17)",
            Optional,
            version(5, 17),
            "a second line against forged capture addresses; without it the guard alone keeps them out",
        ),
        feature(
            "bpf_set_retval (5.18)",
            Optional,
            version(5, 18),
            "a refused connect() fails with ECONNREFUSED; without it with EPERM",
        ),
        feature(
            "tcx (6.6)",
            Optional,
            version(6, 6),
            "the guard is pinned and updated without a gap; without it clsact filters are used",
        ),
        feature(
            "sockops' current cgroup (6.16)",
            Optional,
            version(6, 16),
            "tells kubelet from pods below its own cgroup; without it kubelet needs a cgroup without pods below",
        ),
        feature(
            "SOCK_DESTROY",
            Optional,
            netlink::can_destroy_sockets().map_or_else(|error| State::Missing(error.to_string()), |()| State::Offered),
            "ends connections of pods; without it none goes from pod to pod by the kernel alone (--same-node-kernel)",
        ),
        kubelet(cgroup_root, kubelet_port),
        feature(
            "no pins of another version",
            Required,
            own_pins_alone(pins),
            "two sets of programs would both capture: an agent does not start beside those of another version",
        ),
    ]
}

/// Each program, as this kernel's verifier takes it: how many instructions it went through, on all ways together, of those
/// that it would go through before it refuses; and how many there are.
pub fn programs(object: &ObjectSource) -> Vec<Feature> {
    // What the verifier says is the same for maps of one entry.
    let mut ebpf = loader::load(object, 1, false, None);
    let mut look = |name: &'static str| match &mut ebpf {
        Err(error) => (State::Missing(error.to_string()), None),
        Ok(ebpf) => match loader::load_program(ebpf, name) {
            Err(error) => (State::Missing(error.to_string()), None),
            Ok(program) => (State::Offered, program.info().ok().map(|info| effort(&info))),
        },
    };
    let matters = "the agent does not start where this kernel refuses one of its programs";
    let feature = |name: &&'static str| {
        let (state, found) = look(name);
        Feature { name, needed: Needed::Required, state, found, matters }
    };
    mesh_common::names::programs::ALL.iter().map(feature).collect()
}

fn effort(info: &ProgramInfo) -> String {
    // Of eight bytes each.
    let there = info.size_translated().unwrap_or(0) / 8;
    match info.verified_instruction_count() {
        Some(verified) => format!("{there} instructions, {verified} of {VERIFIER_LIMIT} processed"),
        // Before 5.16.
        None => format!("{there} instructions"),
    }
}

fn privileges() -> State {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    match missing_capabilities(&status).as_slice() {
        [] => State::Offered,
        missing => {
            State::Missing(format!("not granted: {}; what follows may be wrong for that reason", missing.join(", ")))
        }
    }
}

/// Those that the effective set in /proc/self/status lacks.
fn missing_capabilities(status: &str) -> Vec<&'static str> {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0);
    let needed = [("CAP_NET_ADMIN", 12), ("CAP_SYS_PTRACE", 19), ("CAP_SYS_ADMIN", 21)];
    needed.iter().filter(|(_, bit)| effective & (1u64 << *bit) == 0).map(|(name, _)| *name).collect()
}

fn version(major: u8, minor: u8) -> State {
    match KernelVersion::current() {
        Ok(version) if version >= KernelVersion::new(major, minor, 0) => State::Offered,
        Ok(version) => State::Missing(format!("this is {version:?}")),
        Err(error) => State::Missing(error.to_string()),
    }
}

fn cgroup2() -> State {
    match cgroups::cgroup2_mount() {
        Some(_) => State::Offered,
        None => State::Missing("no mount of type cgroup2: a node with cgroup v1 alone is not supported".into()),
    }
}

fn kubepods(root: &Path) -> State {
    match cgroups::kubepods(root) {
        Ok(_) => State::Offered,
        Err(error) => State::Missing(error.to_string()),
    }
}

/// Who counts as kubelet, or why nobody does.
fn kubelet(root: &Path, port: u16) -> Feature {
    let found = cgroups::kubepods(root).map_err(|error| error.to_string()).and_then(|kubepods| {
        let kubelet = kubelet::find(port, &kubelet::listeners(port), &kubepods)?;
        probes::obstacle(&kubelet, &kubepods).map_or(Ok(kubelet), Err)
    });
    let (state, found) = match found {
        Ok(Kubelet { pid, name, cgroup, .. }) => {
            (State::Offered, Some(format!("process {pid} ({name}) in {}", cgroup.display())))
        }
        Err(reason) => (State::Missing(reason), None),
    };
    let matters = "its probes go to the application; without it policy decides on them, and STRICT pods refuse them";
    Feature { name: "kubelet", needed: Needed::Optional, state, matters, found }
}

fn own_pins_alone(pins: &Path) -> State {
    match Pins::new(pins).other_version() {
        Some(other) => State::Missing(Error::OtherAbi(other).to_string()),
        None => State::Offered,
    }
}

fn program(kind: ProgramType) -> State {
    match is_program_supported(kind) {
        Ok(true) => State::Offered,
        Ok(false) => State::Missing("this kernel does not know the program type".into()),
        Err(error) => State::Missing(error.to_string()),
    }
}

fn map(kind: MapType) -> State {
    match is_map_supported(kind) {
        Ok(true) => State::Offered,
        Ok(false) => State::Missing("this kernel does not know the map type".into()),
        Err(error) => State::Missing(error.to_string()),
    }
}

fn btf() -> State {
    if Path::new("/sys/kernel/btf/vmlinux").exists() {
        State::Offered
    } else {
        State::Missing("/sys/kernel/btf/vmlinux is not there: CONFIG_DEBUG_INFO_BTF is off".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_in_a_container_may_lack_capabilities() {
        assert_eq!(missing_capabilities("Name:\tx\nCapEff:\t000001ffffffffff\n"), Vec::<&str>::new());
        // What containerd gives by default.
        let container = missing_capabilities("CapEff:\t00000000a80425fb\n");
        assert_eq!(container, ["CAP_NET_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_ADMIN"]);
    }

    #[test]
    fn pins_that_another_version_left_are_named() {
        let place = tempfile::tempdir().unwrap();
        let make = |path: &str| std::fs::create_dir_all(place.path().join(path)).unwrap();
        assert_eq!(own_pins_alone(&place.path().join("none")), State::Offered);
        make(&format!("{}/links", mesh_common::names::ABI_VERSION));
        make("something-else");
        assert_eq!(own_pins_alone(place.path()), State::Offered);
        make("v0/links");
        let State::Missing(reason) = own_pins_alone(place.path()) else { panic!("v0 is not seen") };
        assert!(reason.contains(&place.path().join("v0").display().to_string()), "{reason}");
    }

    #[test]
    fn status_for_scripts() {
        let feature = |needed, state| Feature { name: "", needed, state, matters: "", found: None };
        let missing = || State::Missing(String::new());
        assert_eq!(exit_status(&[feature(Needed::Required, State::Offered)]), 0);
        assert_eq!(exit_status(&[feature(Needed::Optional, missing())]), 2);
        assert_eq!(exit_status(&[feature(Needed::Optional, missing()), feature(Needed::Required, missing())]), 1);
    }
}
