//! The kernel edge: loads and pins the programs, enrols pods, and gives the data path what it needs of a pod's network
//! namespace. aya lives here and nowhere else.
//!
//! `app` starts it; the proxy takes [`PodEvent`]s. It does not accept, dial or judge connections, and it does not take
//! its programs off when the agent ends: capture and guard outlive the agent, so that nothing leaves in plaintext
//! meanwhile. [`detach_all`] does. Two agents of one node stand beside each other at an upgrade: see `ownership`.

mod check;
mod detach;
mod dials;
mod enrolment;
mod error;
mod events;
mod exclusions;
mod guard;
mod kubelet;
mod links;
mod loader;
mod namespace;
mod netlink;
mod outcomes;
mod ownership;
mod plan;
mod pod;
mod pod_thread;
mod probes;
mod program_log;
mod refused;
mod room;
mod straight;
mod sweep;
mod table;
mod tables;

/// Where pods are in the cgroup tree.
pub mod cgroups;

pub use check::{Feature, Needed, State, check, exit_status, programs};
pub use detach::detach_all;
pub use error::Error;
pub use mesh_common::outcome::Outcome;
pub use outcomes::OutcomeReader;
pub use ownership::Standing;
pub use straight::StraightReader;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::mpsc::Sender;
use tokio::sync::watch;

use crate::drain;
use crate::limit::{Limit, limits};
use crate::podnet::{PodEvent, Straight};
use crate::readiness::Readiness;
use crate::sandboxes::Sandboxes;
use crate::state::StateReader;
use enrolment::Enroller;
use events::Events;
use loader::{Loaded, Pins};
use ownership::Ownership;
use program_log::ProgramLog;
use straight::Neighbours;
use tables::Tables;

/// What capture is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node's name, for the log.
    pub node: String,
    /// The directory of the cgroup tree that holds `kubepods` or `kubepods.slice`.
    pub cgroup_root: PathBuf,
    /// A directory on a BPF file system; a directory per ABI version is made below.
    pub pins: PathBuf,
    /// Where the kernel programs come from.
    pub object: ObjectSource,
    /// How many connections the node may hold at once: the size of three maps. Together they take 48 bytes of kernel
    /// memory for each from the start; in use a connection that a pod opens takes 104 more, one that it accepts 216.
    pub map_connections: u32,
    /// How the guard is attached.
    pub tc: TcMode,
    /// Whether the programs' own log is on. When off the kernel drops its code at load.
    pub bpf_log: bool,
    /// Whether pods of the node may reach each other by the kernel alone.
    pub same_node_kernel: bool,
    /// In how many such connections one pod may have a part; then the agent carries it.
    pub pod_connections: u32,
}

/// Where the kernel programs come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObjectSource {
    /// This binary; only in agents made by `cargo xtask build`.
    Embedded,
    /// A file, as `cargo xtask build-ebpf` makes it.
    File(PathBuf),
}

/// How the guard is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcMode {
    /// tcx where the kernel has it (6.6), else clsact.
    Auto,
    /// tcx, or not at all.
    Tcx,
    /// clsact, as on older kernels.
    Clsact,
}

/// How the readiness gates of pods begin; namespace and name follow.
pub const POD_GATE: &str = "pod/";

/// Capture, loaded and attached.
pub struct Capture {
    loaded: Loaded,
    ownership: Ownership,
    tables: Arc<Tables>,
    tc: TcMode,
    log: ProgramLog,
    neighbours: Arc<Neighbours>,
}

/// How capture is told of the end of the process, which comes in two steps, and of that of the mesh.
#[derive(Clone, Debug)]
pub struct Shutdown {
    /// From here on no pod of this node is to be captured: the mesh leaves it.
    pub leaving: drain::Token,
    /// From here on this agent accepts nothing, and does not own capture again.
    pub closing: drain::Token,
    /// Capture's work is over; what it made stays in place.
    pub end: drain::Token,
}

/// The bounds of this room.
pub fn limits() -> Vec<Limit> {
    limits![
        pod::STOCK, "sockets per pod and family", "a burst of connections this large meets no thread switch";
        pod::LOW_WATER, "sockets per pod and family", "then the stock is filled up again";
        pod::SOURCE_TRIES, "addresses", "that are tried before a dial to an application is refused";
        pod_thread::STACK_BYTES, "bytes per pod", "its thread makes sockets and netlink requests, no more";
        enrolment::RETRY, "milliseconds", "until what failed is tried again";
        enrolment::VERIFY_EVERY, "retries", "between two looks at whether pods still are as they were left";
        enrolment::SWEEP_EVERY, "such looks", "between two sweeps of stale records";
        enrolment::ENROL_PATIENCE, "milliseconds", "that pods never captured hold back the readiness of an agent that starts";
        ownership::LOOK_EVERY, "milliseconds", "between two looks at whether a newer agent owns capture";
        ownership::LOCK_PATIENCE, "milliseconds", "for another agent to end the step that it is at";
        ownership::LOCK_RETRY, "milliseconds", "between two tries of that lock";
        ownership::MAX_INSTANCES, "agents", "of one node on record";
        enrolment::ROUTES_OUTLIVE, "milliseconds", "for the connections of a pod that left to meet their end";
        sweep::STALE, "milliseconds", "no connection stays so long between its record and its accept";
        straight::LEASE, "milliseconds", "without its agent, then pods reach each other by the kernel alone no more: longer than a restart";
        straight::MAX_PATHS, "endpoints of addresses, for every pod that dials them", "what is beyond is carried by the agent";
        straight::MAX_SLOTS, "endpoints of an address", "with more of them the agent carries it";
        straight::WALK_EVERY, "rounds", "between two looks at all that goes from pod to pod, where nothing changed";
        room::CROWDED, "connections from pod to pod", "then the agent carries new ones";
        room::OF_ONE_POD, "connections from pod to pod", "that one pod has a part in, if its budget has as many; then the agent carries new ones";
        straight::MAX_LISTED, "connections from pod to pod", "that /connections lists";
        straight::MAX_CUT, "connections", "whose end is told as a cut; more of them as an end";
        sweep::MAX_KEYS, "keys per map", "one sweep looks at no more";
        events::BATCH, "events", "then the reader rests: a pod that provokes drops must not keep a core busy";
        events::REST, "milliseconds", "of the reader of the kernel's events";
        refused::MAX_ADDRESSES, "addresses", "of Services without endpoint get ECONNREFUSED; more of them a reset";
        exclusions::MAX_PORTS, "ports that pods exclude, per address", "what is beyond stays in the mesh";
        exclusions::MAX_NETWORKS, "networks that pods exclude, per address", "the same";
        probes::MAX_PROBE_PORTS, "ports that pods declare in probes, per address", "what is beyond meets policy";
        probes::KUBELET_LOOK, "milliseconds", "between two looks at whether kubelet is who it was";
        probes::KUBELET_RETRY, "milliseconds", "between two searches among all processes for a kubelet that was not found";
        program_log::FLUSH_EVERY, "milliseconds", "between two looks at the programs' own log";
    ]
}

impl Capture {
    /// Loads, pins or re-opens, and attaches to the pods' parent cgroup. Nothing is captured until a pod is enrolled.
    pub fn start(config: Config, straight: Arc<dyn Straight>) -> Result<Self, Error> {
        let (mut loaded, ownership) = Loaded::start(&config)?;
        let tables = Tables::open(&loaded.pins.maps()).map_err(Error::io("opening the pinned maps"))?;
        loaded.file_agent(&tables)?;
        let log = ProgramLog::open(&mut loaded, config.bpf_log)?;
        tracing::info!(node = config.node, kubepods = %loaded.kubepods.display(), "capture is loaded");
        let neighbours = Neighbours::new(straight, config.same_node_kernel, config.pod_connections);
        let neighbours = Arc::new(neighbours);
        Ok(Self { loaded, ownership, tables: Arc::new(tables), tc: config.tc, log, neighbours })
    }

    /// The kernel's counters.
    pub fn outcomes(&self) -> OutcomeReader {
        OutcomeReader::new(self.tables.clone())
    }

    /// The connections that go from pod to pod by the kernel alone.
    pub fn straight(&self) -> StraightReader {
        StraightReader::new(self.tables.clone(), self.neighbours.clone())
    }

    /// Where this agent stands among the agents of its node, and every change of it.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.ownership.standing()
    }

    /// The pid of the agent that this one took over from, if that still lives.
    pub fn predecessor(&self) -> Option<u32> {
        self.ownership.predecessor()
    }

    /// Enrols and un-enrols as the state says, publishes VIPs without endpoint, drains the kernel's events, sweeps stale
    /// records: all of it only while this agent owns capture. Leaves everything in place at the end.
    pub async fn run(
        self,
        state: StateReader,
        events: Sender<PodEvent>,
        readiness: Readiness,
        sandboxes: Sandboxes,
        shutdown: Shutdown,
    ) -> Result<(), Error> {
        let Self { loaded, ownership, tables, tc, log, neighbours } = self;
        let pins = loaded.pins.clone();
        let (told, world) = (neighbours.clone(), state.clone());
        let enroller = Enroller::new(loaded, tables, tc, events, readiness, sandboxes, ownership.clone(), neighbours);
        tokio::select! {
            () = enroller.run(state, shutdown) => Ok(()),
            () = ownership.watch() => Ok(()),
            () = log.run() => Ok(()),
            failed = log_events(&pins, ownership.standing(), told, world) => failed,
        }
    }
}

/// The ring buffer has one reader: two agents would read each other's place in it.
async fn log_events(
    pins: &Pins,
    mut standing: watch::Receiver<Standing>,
    neighbours: Arc<Neighbours>,
    world: StateReader,
) -> Result<(), Error> {
    loop {
        // An error means that the ownership is gone, and with it capture's task.
        if standing.wait_for(|standing| *standing == Standing::Owner).await.is_err() {
            return std::future::pending().await;
        }
        let ring = Events::open(&pins.maps(), neighbours.clone(), world.clone())?;
        tokio::select! {
            () = ring.run() => {}
            _ = standing.wait_for(|standing| *standing != Standing::Owner) => {}
        }
    }
}
