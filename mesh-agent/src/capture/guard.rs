//! Puts the guard on the host-side peers of a pod's interfaces, where nothing inside the pod can go round it.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use aya::programs::tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle};
use aya::programs::{SchedClassifier, TcAttachType};
use mesh_common::names::programs;
use mesh_common::record::PodAddresses;

use super::TcMode;
use super::links::{self, Target};
use super::loader::Loaded;
use super::netlink::{self, Interface};
use super::pod_thread::PodThread;
use super::table::Table;
use super::tables::Tables;

const TCX_INGRESS: u32 = 46;
const TCX_EGRESS: u32 = 47;
/// Ours among the clsact filters of an interface, so that a later agent replaces instead of adding.
const CLSACT_PRIORITY: u16 = 0x4e4d;
const CLSACT_HANDLE: TcHandle = TcHandle::new(0, 1);

/// Both ways of the guard, seen from the host-side interface.
const WAYS: [(&str, TcAttachType, u32, &str); 2] = [
    (programs::GUARD_FROM_POD, TcAttachType::Ingress, TCX_INGRESS, "from"),
    (programs::GUARD_TO_POD, TcAttachType::Egress, TCX_EGRESS, "to"),
];

/// A pod's links, seen from a network namespace of its and from the node's.
pub(super) struct HostSide {
    /// The host-side peers of every interface but lo, also of those that are down: the pod may bring them up.
    pub links: Vec<Interface>,
    /// Why the pod cannot be enrolled as it is, if it is not already. Its links are to be guarded all the same: it can make
    /// such a thing itself.
    pub obstacle: Option<Obstacle>,
    /// The node's interfaces.
    node: Vec<Interface>,
}

/// Why a pod cannot be enrolled as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// No guard can stand on this interface of its.
    Odd(String),
    /// None of its interfaces leads to the node.
    Linkless,
    /// The address that the world knows it by is not there.
    Addressless,
}

impl Obstacle {
    /// Whether a pod that an earlier agent enrolled, by links that are still there, stays enrolled all the same: it is as
    /// guarded as it was under that agent.
    pub fn may_come_later(&self) -> bool {
        matches!(self, Self::Odd(_))
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Odd(name) => write!(f, "its interface {name} has no host-side peer in this network namespace"),
            Self::Linkless => f.write_str("it has no interface to this network namespace that is up"),
            Self::Addressless => f.write_str("no network namespace of its processes holds its IP yet"),
        }
    }
}

impl HostSide {
    /// Whether one of the links by which it reaches the node is among these.
    pub fn has_one_of(&self, guarded: &BTreeSet<u32>) -> bool {
        self.links.iter().any(|link| guarded.contains(&link.index))
    }

    /// Adds those of `guarded` that the node still has: the pod may have moved the other end into a namespace of its own.
    pub fn keep(&mut self, guarded: &BTreeSet<u32>) {
        let Self { links, node, .. } = self;
        let is_moved = |seen: &Interface| guarded.contains(&seen.index) && links.iter().all(|l| l.index != seen.index);
        let moved: Vec<_> = node.iter().filter(|seen| is_moved(seen)).cloned().collect();
        links.extend(moved);
    }
}

/// Looks at the links of the namespace that `thread` is in.
pub(super) async fn host_side(thread: &PodThread) -> Result<HostSide, String> {
    let failed = |what: &str| {
        let what = what.to_string();
        move |error: io::Error| format!("{what}: {error}")
    };
    let inside = thread.run(netlink::interfaces).await.map_err(failed("listing the pod's interfaces"))?;
    let namespace = thread.run(|| File::open("/proc/thread-self/ns/net")).await;
    let namespace = namespace.map_err(failed("opening the pod's namespace"))?;
    // The dump also makes the kernel number the pod's namespace, which the next request asks for.
    let node = netlink::interfaces().map_err(failed("listing the node's interfaces"))?;
    let id = netlink::namespace_id(namespace.as_fd()).map_err(failed("asking for the pod's namespace id"))?;
    let mut links = Vec::new();
    let (mut up, mut obstacle) = (false, None);
    for interface in inside.iter().filter(|interface| !interface.loopback) {
        let peer = node.iter().find(|candidate| {
            id.is_some() && candidate.peer_namespace == id && candidate.peer == Some(interface.index)
        });
        match peer {
            Some(peer) => {
                links.push(peer.clone());
                up |= interface.up;
            }
            None if !interface.up || interface.leads_through_others() => {}
            None => obstacle = Some(Obstacle::Odd(interface.name.clone())),
        }
    }
    if !up && obstacle.is_none() {
        obstacle = Some(Obstacle::Linkless);
    }
    Ok(HostSide { links, obstacle, node })
}

/// Guards one host-side interface, both ways. The addresses are filed first: without them all TCP is dropped.
pub(super) fn attach(
    loaded: &mut Loaded,
    tables: &Tables,
    mode: TcMode,
    pins: &Path,
    interface: &Interface,
    pod: &PodAddresses,
) -> io::Result<()> {
    tables.guarded.set(&interface.index, pod)?;
    for (program, way, attach_type, name) in WAYS {
        let pin = pin(pins, name, interface.index);
        if mode != TcMode::Clsact {
            let descriptor = loaded.program(program).map_err(io::Error::other)?;
            match links::ensure(&pin, &descriptor, Target::Interface(interface.index), attach_type) {
                Ok(()) => {
                    // Left by an agent that was told to use clsact.
                    detach_clsact(way, &interface.name);
                    continue;
                }
                // Before 6.6 the kernel does not know the attach type.
                Err(error) if mode == TcMode::Auto && error.raw_os_error() == Some(libc::EINVAL) => {}
                Err(error) => return Err(error),
            }
        }
        attach_clsact(loaded, program, way, &interface.name).map_err(io::Error::other)?;
        // Left by an agent that used tcx.
        let _ = std::fs::remove_file(&pin);
    }
    Ok(())
}

fn pin(pins: &Path, name: &str, index: u32) -> PathBuf {
    pins.join(format!("guard-{name}-{index}"))
}

fn attach_clsact(
    loaded: &mut Loaded,
    name: &'static str,
    way: TcAttachType,
    interface: &str,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let program = loaded.ebpf.program_mut(name).ok_or("no such program")?;
    let program: &mut SchedClassifier = program.try_into()?;
    // An error means that the qdisc is there.
    let _ = tc::qdisc_add_clsact(interface);
    // Replace in place what an earlier agent left.
    let earlier = SchedClassifierLink::attached(interface, way, CLSACT_PRIORITY, CLSACT_HANDLE, None)?;
    let id = match program.attach_to_link(earlier) {
        Ok(id) => id,
        Err(_) => {
            let options = NlOptions { priority: CLSACT_PRIORITY, handle: CLSACT_HANDLE, ..NlOptions::default() };
            program.attach_with_options(interface, way, TcAttachOptions::Netlink(options))?
        }
    };
    // Dropping the link would detach it; the filter is to outlive the agent.
    std::mem::forget(program.take_link(id)?);
    Ok(())
}

/// Takes the guard off an interface. Its pins go with the pod's directory.
pub(super) fn detach(tables: &Tables, pins: &Path, index: u32) {
    detach_filed(&tables.guarded, pins, index);
}

/// The same with the one map that it takes, whatever else an agent of another version has or has not pinned.
pub(super) fn detach_filed(guarded: &Table<u32, PodAddresses>, pins: &Path, index: u32) {
    let interfaces = netlink::interfaces().unwrap_or_default();
    let interface = interfaces.iter().find(|interface| interface.index == index);
    for (_, way, _, name) in WAYS {
        let _ = std::fs::remove_file(pin(pins, name, index));
        if let Some(interface) = interface {
            detach_clsact(way, &interface.name);
        }
    }
    guarded.remove(&index);
}

/// Takes our clsact filter off, if there is one.
fn detach_clsact(way: TcAttachType, interface: &str) {
    if let Ok(link) = SchedClassifierLink::attached(interface, way, CLSACT_PRIORITY, CLSACT_HANDLE, None) {
        // Dropping the link detaches it.
        drop(link);
    }
}
