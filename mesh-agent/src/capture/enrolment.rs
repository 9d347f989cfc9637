//! Keeps what is captured in step with what the state says and with what is really there: looks, asks [`plan`] what is
//! to be done, and does it step by step, each only while capture is this agent's.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_common::addr::{CAPTURE_V6, Ip, SOURCE_V6};
use mesh_common::names::programs;
use mesh_common::record::{Gate, PodAddresses, PodConfig};
use tokio::sync::mpsc::Sender;

use super::exclusions::Exclusions;
use super::guard::{HostSide, Obstacle};
use super::links::{self, Target};
use super::loader::Loaded;
use super::namespace::{self, Found, Life};
use super::netlink::{self, Interface, LocalRoute};
use super::ownership::{Ownership, Standing};
use super::plan::{self, Duty, Failures, Forsaken, Held, Kernel, Phase, Plan, Step, Uid, View};
use super::pod::{Live, PodNamespace};
use super::pod_thread::PodThread;
use super::probes::Probes;
use super::refused::Refused;
use super::straight::{Neighbour, Neighbours, Paths};
use super::tables::Tables;
use super::{POD_GATE, Shutdown, TcMode, guard, sweep};
use crate::named::named;
use crate::podnet::{EnrolledPod, Family, PodEvent, PodListener, PodNet};
use crate::readiness::Readiness;
use crate::sandboxes::{Progress, Sandboxes};
use crate::state::{MeshState, StateReader, Workload};
use crate::sys;

const SK_LOOKUP: u32 = 36;
/// How often what failed is tried again.
pub(super) const RETRY: Duration = Duration::from_millis(500);
/// How many retries pass between two looks at whether enrolled pods still are as they were left.
pub(super) const VERIFY_EVERY: u32 = 10;
/// How many of those pass between two sweeps of stale records.
pub(super) const SWEEP_EVERY: u32 = 12;
/// How long captured connections of a pod that left have to meet their end before their routes go.
pub(super) const ROUTES_OUTLIVE: Duration = Duration::from_secs(1);
/// How long pods that were never captured hold an agent back that has just started. Longer than a few tries; a pod that
/// cannot be enrolled at all must not stop the DaemonSet's rollout.
pub(super) const ENROL_PATIENCE: Duration = Duration::from_secs(10);
/// What becomes of a pod that something of its own keeps from being enrolled.
const REFUSED: &str =
    "it is refused until that is gone, or until the label nodemesh.dev/mesh=disabled takes it out of the mesh";
/// The same of one that it comes to after enrolment.
const KEPT: &str = "it stays enrolled and its other links guarded, and what leaves by that one nobody guards";
/// As many as the pods' and the guards' map hold.
const MAP_KEYS: usize = 65_536;

/// The one task that enrols.
pub(super) struct Enroller {
    pub loaded: Loaded,
    pub tables: Arc<Tables>,
    pub live: Arc<Live>,
    pub tc: TcMode,
    pub events: Sender<PodEvent>,
    pub readiness: Readiness,
    pub sandboxes: Sandboxes,
    pub ownership: Ownership,
    pub neighbours: Arc<Neighbours>,
    state: Bookkeeping,
}

/// What this agent knows of its own work.
#[derive(Default)]
struct Bookkeeping {
    /// By the cookie of the network namespace.
    held: BTreeMap<u64, Pod>,
    /// Namespaces of pods that are to be enrolled, found in this round.
    found: BTreeMap<u64, Prepared>,
    /// Pods that are or were captured, by this agent or one before it.
    captured: HashSet<Uid>,
    /// Namespaces that were found captured and guarded, by an agent before it: one step that fails does not make newcomers
    /// of them.
    adopted: HashSet<u64>,
    /// Why wanted pods are not captured, in this round.
    obstacles: HashMap<Uid, String>,
    /// Those of them that pods can make themselves, in this round: they hold nobody's readiness back.
    barred: HashSet<Uid>,
    /// The readiness gates that were declared.
    gates: BTreeMap<Uid, String>,
    refused: Refused,
    exclusions: Exclusions,
    probes: Probes,
    paths: Paths,
    /// The newest agent over whose work this one has put its own; none in the beginning.
    answered: u64,
    /// Readiness was reached once.
    was_ready: bool,
}

/// A wanted pod whose namespace was found.
struct Prepared {
    workload: Arc<Workload>,
    found: Found,
    /// One of the links that it has was guarded as its before.
    was_guarded: bool,
}

/// A pod that this agent has something of.
struct Pod {
    workload: Arc<Workload>,
    net: Arc<PodNamespace>,
    namespace: File,
    inode: u64,
    /// Host-side interfaces, those that are not guarded yet as well.
    interfaces: Vec<Interface>,
    guards: BTreeSet<u32>,
    routes: Vec<LocalRoute>,
    phase: Phase,
    /// When a departed pod's routes may go.
    due: Instant,
    present: bool,
    elsewhere: bool,
    /// What would have kept it from being enrolled, had it been there before.
    odd: Option<Obstacle>,
    closed: bool,
    /// Until the proxy has them.
    listeners: Vec<PodListener>,
    announced: bool,
}

impl Pod {
    /// Processes of it live in this namespace, or none anywhere.
    fn lives_here(&mut self, present: bool) {
        (self.present, self.elsewhere) = (present, false);
    }
}

/// Whether a pod of the same uid must be enrolled anew. Kubernetes changes none of this in a pod's life; a directory of
/// YAML can.
fn is_another(wanted: &Workload, enrolled: &Workload) -> bool {
    let as_set = |workload: &Workload| workload.ips.iter().copied().collect::<BTreeSet<IpAddr>>();
    as_set(wanted) != as_set(enrolled) || wanted.identity != enrolled.identity
}

/// What is asked of this node's pods.
#[derive(Default)]
struct Asked {
    /// Those that are to be captured.
    wanted: BTreeMap<Uid, Arc<Workload>>,
    /// Those that are known and not to be.
    others: HashSet<Uid>,
    /// The agent takes the mesh off the node: nobody is.
    is_leaving: bool,
}

impl Asked {
    fn of(world: &MeshState, is_leaving: bool) -> Self {
        if is_leaving {
            return Self { is_leaving, ..Self::default() };
        }
        let mut asked = Self::default();
        for workload in world.local_workloads() {
            if workload.enrolled {
                asked.wanted.insert(workload.uid.clone(), workload.clone());
            } else {
                asked.others.insert(workload.uid.clone());
            }
        }
        asked
    }

    /// Whether what a pod sends and takes may be its own again. Of one that nobody speaks of any more nobody said so.
    fn may_leave(&self, uid: &str) -> bool {
        self.is_leaving || self.others.contains(uid)
    }
}

/// The readiness gate of a pod.
fn gate(workload: &Workload) -> String {
    format!("{POD_GATE}{}/{}", workload.namespace, workload.name)
}

/// How closely a round looks at what is there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    /// At what has changed.
    Quick,
    /// At every pod's interfaces and routes, at maps and pins.
    Close,
}

impl Enroller {
    #[allow(clippy::too_many_arguments, reason = "the one place that puts it together")]
    pub fn new(
        loaded: Loaded,
        tables: Arc<Tables>,
        tc: TcMode,
        events: Sender<PodEvent>,
        readiness: Readiness,
        sandboxes: Sandboxes,
        ownership: Ownership,
        neighbours: Arc<Neighbours>,
    ) -> Self {
        let live = Arc::new(Live::new());
        let state = Bookkeeping { answered: ownership.newest(), ..Bookkeeping::default() };
        Self { loaded, tables, live, tc, events, readiness, sandboxes, ownership, neighbours, state }
    }

    /// Runs until `end`; everything stays in place then. From `closing` on it accepts nothing and owns nothing.
    pub async fn run(mut self, mut world: StateReader, shutdown: Shutdown) {
        let Shutdown { mut leaving, mut closing, mut end } = shutdown;
        self.readiness.waiting("capture", "waiting for the first state of the cluster");
        let started = Instant::now();
        let mut standing = self.ownership.standing();
        let mut retry = tokio::time::interval(RETRY);
        retry.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut ticks, mut is_leaving, mut is_closed, mut world_ended) = (0u32, false, false, false);
        let mut look = Look::Close;
        loop {
            tokio::select! {
                () = end.started() => return,
                () = leaving.started(), if !is_leaving => {
                    is_leaving = true;
                    self.ownership.leave();
                }
                () = closing.started(), if !is_closed => {
                    is_closed = true;
                    self.ownership.retire();
                    self.state.held.values().for_each(|pod| pod.net.close_listeners());
                }
                changed = world.changed(), if !world_ended => world_ended = !changed,
                // An error means that the ownership is gone, which this agent itself holds.
                changed = standing.changed() => drop(changed),
                _ = retry.tick() => {
                    ticks = ticks.wrapping_add(1);
                    if ticks.is_multiple_of(VERIFY_EVERY) {
                        look = Look::Close;
                    }
                }
            }
            let current = world.current();
            // Before the first state nothing is known, least of all who left.
            if current.version == 0 {
                continue;
            }
            if ticks % (VERIFY_EVERY * SWEEP_EVERY) == 1 && self.ownership.is_alone() {
                sweep::sweep(&self.tables, &self.live);
            }
            self.round(&current, Asked::of(&current, is_leaving), look, started.elapsed() < ENROL_PATIENCE).await;
            look = Look::Quick;
        }
    }

    /// Looks, decides, acts, and says what is missing.
    async fn round(&mut self, world: &MeshState, asked: Asked, look: Look, is_starting: bool) {
        let newest = self.ownership.newest();
        let duty = self.duty(newest).await;
        self.state.obstacles.clear();
        self.state.barred.clear();
        if duty != Duty::LetGo {
            self.publish(world).await;
        }
        // Another agent may have met pods in other namespaces, and left anything behind.
        let look = if duty == Duty::Resume { Look::Close } else { look };
        let view = self.look(&asked, look, duty).await;
        let Plan { steps, in_conflict } = plan::plan(&view, duty);
        for uid in in_conflict {
            self.state.obstacles.insert(uid, "another pod that lives holds its IP".into());
        }
        let whole = self.carry_out(steps).await;
        self.state.found.clear();
        if duty == Duty::LetGo {
            return;
        }
        self.lead_straight(world).await;
        if whole {
            self.state.answered = newest;
        }
        self.tell(&asked.wanted, is_starting);
        self.tell_sandboxes(world);
        if look == Look::Close
            && let Some(_turn) = self.ownership.turn().await
        {
            self.loaded.collect_agents(&self.tables);
        }
        self.readiness.ready("capture");
        if self.readiness.missing().is_empty() {
            self.state.was_ready = true;
            self.ownership.mark_ready();
        }
    }

    /// What this agent is to do now. One that owns capture again puts its programs back: those of the agent that died
    /// may be why it did.
    async fn duty(&mut self, newest: u64) -> Duty {
        const GATE: &str = "ownership";
        match self.ownership.look() {
            Standing::Owner if self.state.answered >= newest => Duty::Own,
            Standing::Owner => {
                let Some(_turn) = self.ownership.turn().await else { return Duty::LetGo };
                if let Err(error) = self.loaded.attach_hooks() {
                    tracing::error!(%error, "the programs of this agent could not be put back");
                }
                self.state.refused = Refused::default();
                self.state.exclusions = Exclusions::default();
                self.state.probes = Probes::default();
                self.state.paths = Paths::default();
                self.readiness.remove(GATE);
                Duty::Resume
            }
            Standing::Superseded { by, .. } => {
                self.readiness.waiting(GATE, format!("process {by}, a newer agent, owns capture on this node"));
                Duty::LetGo
            }
            Standing::Retired => {
                self.readiness.waiting(GATE, "this agent accepts no more connections");
                Duty::LetGo
            }
        }
    }

    /// What the kernel refuses and what it lets pass follow the world, whatever is enrolled.
    async fn publish(&mut self, world: &MeshState) {
        if let Some(_turn) = self.ownership.turn().await {
            self.state.refused.publish(world, &self.tables);
            self.state.exclusions.publish(world, &self.tables);
            self.state.probes.follow(world, &self.loaded, &self.tables, &self.readiness);
        }
        self.lead_straight(world).await;
    }

    /// Whom pods may reach by the kernel alone follows the world and what is enrolled: before enrolment's steps, which take
    /// their time, and after them.
    async fn lead_straight(&mut self, world: &MeshState) {
        let held = self.state.held.iter();
        self.neighbours.know(held.map(|(cookie, pod)| (*cookie, &pod.workload, &pod.guards)));
        if self.state.paths.are_idle(&self.neighbours) {
            return;
        }
        let Some(_turn) = self.ownership.turn().await else { return };
        let Self { tables, neighbours, state, .. } = self;
        let wanted: HashMap<&str, &Arc<Workload>> = world.local_workloads().map(|pod| (&*pod.uid, pod)).collect();
        let held = state.held.iter();
        let pods =
            held.map(|(cookie, pod)| (*cookie, neighbour(wanted.get(&*pod.workload.uid).copied(), pod))).collect();
        state.paths.follow(world, &pods, neighbours, tables).await;
    }

    /// Opens and closes the pods' readiness gates.
    fn tell(&mut self, wanted: &BTreeMap<Uid, Arc<Workload>>, is_starting: bool) {
        let Bookkeeping { held, captured, obstacles, barred, gates, was_ready, .. } = &mut self.state;
        let readiness = &self.readiness;
        captured.retain(|uid| wanted.contains_key(uid));
        gates.retain(|uid, gate| {
            let stays = wanted.contains_key(uid);
            if !stays {
                readiness.remove(gate);
            }
            stays
        });
        for (uid, workload) in wanted {
            let gate = gates.entry(uid.clone()).or_insert_with(|| gate(workload));
            let is_enrolled = held.values().any(|pod| pod.workload.uid == *uid && pod.phase == Phase::Enrolled);
            match obstacles.get(uid) {
                None if is_enrolled => readiness.ready(gate),
                Some(reason) if is_enrolled && barred.contains(uid) => readiness.remarked(gate, reason),
                reason => {
                    let reason = reason.map_or("it is being enrolled", String::as_str);
                    tracing::debug!(pod = %workload.name, namespace = %workload.namespace, reason, "not enrolled");
                    let is_lost = captured.contains(uid) && !barred.contains(uid);
                    if is_lost || (is_starting && !*was_ready) {
                        readiness.waiting(gate, reason);
                    } else {
                        readiness.noted(gate, reason);
                    }
                }
            }
        }
    }

    /// How far it is with pods whose sandbox waits for it.
    fn tell_sandboxes(&self, world: &MeshState) {
        let Bookkeeping { held, obstacles, barred, .. } = &self.state;
        let uids: HashSet<&str> = world.local_workloads().map(|workload| &*workload.uid).collect();
        let enrolled = |uid: &str| held.values().find(|pod| *pod.workload.uid == *uid && pod.phase == Phase::Enrolled);
        self.sandboxes.tell(
            |uid| uids.contains(uid),
            |uid| match (obstacles.get(uid), enrolled(uid)) {
                (reason, Some(pod)) if reason.is_none() || barred.contains(uid) => Progress::Captured(pod.inode),
                (Some(reason), _) => Progress::Waiting(reason.clone()),
                (None, _) => Progress::Waiting("it is being enrolled".into()),
            },
        );
    }

    async fn look(&mut self, asked: &Asked, look: Look, duty: Duty) -> View {
        let wanted = &asked.wanted;
        let held = self.look_at_held(asked, look).await;
        let found = match duty {
            Duty::Own | Duty::Resume => self.find(wanted, &held).await,
            Duty::LetGo => BTreeMap::new(),
        };
        let kernel = match look == Look::Close && duty != Duty::LetGo {
            true => self.look_at_kernel(asked).await,
            false => None,
        };
        let wanted = wanted.iter().map(|(uid, workload)| (uid.clone(), workload.ips.iter().copied().collect()));
        View { wanted: wanted.collect(), held, found, kernel }
    }

    async fn look_at_held(&mut self, asked: &Asked, look: Look) -> BTreeMap<u64, Held> {
        let (kubepods, now) = (&self.loaded.kubepods, Instant::now());
        let mut seen = BTreeMap::new();
        for (cookie, pod) in &mut self.state.held {
            let uid = pod.workload.uid.clone();
            let fits = asked.wanted.get(&uid).is_some_and(|wanted| !is_another(wanted, &pod.workload));
            if let Phase::Departed { due } = &mut pod.phase {
                *due = pod.due <= now;
            }
            let is_enrolled = pod.phase == Phase::Enrolled && fits;
            if look == Look::Close || !is_enrolled {
                let in_sandbox = self.sandboxes.get(&uid).is_some_and(|sandbox| sandbox.inode() == pod.inode);
                match namespace::life(kubepods, &uid, pod.inode) {
                    Ok(Life::Here) => pod.lives_here(true),
                    Ok(Life::Elsewhere) => (pod.present, pod.elsewhere) = (false, true),
                    // With a runtime that keeps no process for the sandbox, such as CRI-O, the containers that begin again
                    // find the namespace with the link as they left it.
                    Ok(Life::Nowhere) => pod.lives_here(in_sandbox || (fits && has_link(&pod.guards))),
                    Ok(Life::Ended) => pod.lives_here(in_sandbox),
                    // What an agent that lacks descriptors cannot see is as it was.
                    Err(error) => {
                        self.state.obstacles.insert(uid.clone(), format!("looking at its processes: {error}"));
                    }
                }
            }
            let mut interfaces = None;
            if look == Look::Close && is_enrolled && pod.present {
                match guard::host_side(pod.net.thread()).await {
                    Ok(mut seen) => {
                        seen.keep(&pod.guards);
                        interfaces = Some(indexes(&seen.links));
                        pod.interfaces = seen.links;
                        pod.odd = seen.obstacle;
                    }
                    Err(reason) => drop(self.state.obstacles.insert(uid.clone(), reason)),
                }
            }
            if let Some(obstacle) = pod.odd.as_ref().filter(|_| is_enrolled && pod.present) {
                let then = if obstacle.may_come_later() { KEPT } else { "it stays enrolled" };
                self.state.obstacles.insert(uid.clone(), format!("{obstacle}; {then}"));
                self.state.barred.insert(uid.clone());
            }
            let ips = pod.workload.ips.iter().copied().collect();
            let Pod { phase, present, elsewhere, closed, .. } = *pod;
            let (guards, may_leave) = (pod.guards.clone(), asked.may_leave(&uid));
            let held = Held { uid, ips, phase, fits, present, elsewhere, may_leave, guards, interfaces, closed };
            seen.insert(*cookie, held);
        }
        seen
    }

    /// Finds the namespaces of wanted pods that are not held as they are.
    async fn find(
        &mut self,
        wanted: &BTreeMap<Uid, Arc<Workload>>,
        held: &BTreeMap<u64, Held>,
    ) -> BTreeMap<Uid, plan::Found> {
        let (mut found, mut filed) = (BTreeMap::new(), None);
        for (uid, workload) in wanted {
            if held.values().any(|pod| pod.uid == *uid && pod.phase == Phase::Enrolled && pod.fits && pod.present) {
                continue;
            }
            let mut was_captured = self.loaded.pins.pod(uid).join("lookup").exists();
            let filed = filed.get_or_insert_with(|| self.filed_guards());
            match self.prepare(workload, filed).await {
                Ok((cookie, mut prepared)) => {
                    // One that was refused has a lookup too.
                    was_captured &= self.tables.pods.get(&cookie).is_none_or(|pod| pod.gate() == Gate::Open);
                    let is_captured = self.is_captured(cookie, workload) || self.state.adopted.contains(&cookie);
                    let was_enrolled = prepared.was_guarded && is_captured;
                    if was_enrolled {
                        self.state.adopted.insert(cookie);
                    }
                    let HostSide { links, obstacle, .. } = &mut prepared.found.host_side;
                    let interfaces = indexes(links);
                    let stays = |obstacle: &Obstacle| was_enrolled && obstacle.may_come_later();
                    let barred = obstacle.as_ref().is_some_and(|obstacle| !stays(obstacle));
                    if let Some(obstacle) = obstacle.take() {
                        let then = if barred { REFUSED } else { KEPT };
                        self.state.obstacles.insert(uid.clone(), format!("{obstacle}; {then}"));
                        self.state.barred.insert(uid.clone());
                    }
                    self.state.found.insert(cookie, prepared);
                    found.insert(uid.clone(), plan::Found { cookie, interfaces, barred });
                }
                Err(reason) => drop(self.state.obstacles.insert(uid.clone(), reason)),
            }
            if was_captured {
                self.state.captured.insert(uid.clone());
            }
        }
        found
    }

    /// The interfaces that are guarded, each with its pod's addresses.
    fn filed_guards(&self) -> BTreeMap<u32, PodAddresses> {
        let guarded = &self.tables.guarded;
        guarded.keys(MAP_KEYS).into_iter().filter_map(|index| Some((index, guarded.get(&index)?))).collect()
    }

    async fn prepare(
        &self,
        workload: &Arc<Workload>,
        filed: &BTreeMap<u32, PodAddresses>,
    ) -> Result<(u64, Prepared), String> {
        let first = *workload.ips.first().ok_or("it has no IP yet")?;
        // The newest sandbox, if it is known: of one before it processes may still run.
        let in_sandbox = match self.sandboxes.get(&workload.uid) {
            Some(sandbox) => Some(namespace::of_sandbox(&sandbox, first).await?),
            None => None,
        };
        let mut found = match in_sandbox {
            Some(found) if found.host_side.obstacle.is_none() => found,
            barred => namespace::find(&self.loaded.kubepods, &workload.uid, Some(first))
                .await
                .or_else(|error| barred.filter(|found| !found.host_side.links.is_empty()).ok_or(error))?,
        };
        let guarded = self.guarded(workload, filed).map_err(step("reading its pins"))?;
        let was_guarded = found.host_side.has_one_of(&guarded);
        // A link that the pod moved elsewhere within itself stays guarded.
        found.host_side.keep(&guarded);
        let cookie = cookie_of(&found.thread).await.map_err(step("reading its namespace's cookie"))?;
        Ok((cookie, Prepared { workload: workload.clone(), found, was_guarded }))
    }

    /// The interfaces that were guarded for a pod before, by this agent or another. A guard on clsact has no pins, so what is
    /// filed for the pod's addresses counts too, unless it is another's that this agent holds.
    fn guarded(&self, workload: &Workload, filed: &BTreeMap<u32, PodAddresses>) -> io::Result<BTreeSet<u32>> {
        let (mut guarded, own) = (guarded_in(&self.loaded.pins.pod(&workload.uid))?, addresses(&workload.ips));
        let others = self.state.held.values().filter(|pod| pod.workload.uid != workload.uid);
        let others: BTreeSet<u32> = others.flat_map(|pod| pod.guards.iter().copied()).collect();
        let filed = filed.iter().filter(|(index, addresses)| **addresses == own && !others.contains(index));
        guarded.extend(filed.map(|(index, _)| *index));
        Ok(guarded)
    }

    /// Whether what the pod in this namespace dials is captured, by the addresses that it has.
    fn is_captured(&self, cookie: u64, workload: &Workload) -> bool {
        let own = addresses(&workload.ips);
        self.tables.pods.get(&cookie).is_some_and(|pod| pod.gate() == Gate::Open && *pod.addresses() == own)
    }

    /// None where the pins cannot be read: nobody knows then what in the maps is nobody's.
    async fn look_at_kernel(&self, asked: &Asked) -> Option<Kernel> {
        let pins = match pinned(&self.loaded.pins.pods()) {
            Ok(pins) => pins,
            Err(error) => {
                tracing::warn!(%error, "the pins of pods cannot be read: nothing that is left of any is collected");
                return None;
            }
        };
        let held = &self.state.held;
        let is_silent = |uid: &&Uid| !asked.wanted.contains_key(*uid) && !asked.may_leave(uid);
        let mut forsaken = BTreeMap::new();
        for uid in pins.keys().filter(is_silent) {
            if !namespace::may_live(&self.loaded.kubepods, uid) {
                continue;
            }
            let found = self.forsaken(uid).await;
            // One whose enrolment was broken off is let go of.
            let is_kept = |pod: &Pod| pod.phase != Phase::Joining;
            let is_held = match &found {
                Some(found) => held.get(&found.cookie).is_some_and(is_kept),
                None => held.values().any(|pod| pod.workload.uid == *uid && pod.present && is_kept(pod)),
            };
            if !is_held {
                forsaken.insert(uid.clone(), found);
            }
        }
        let tables = &self.tables;
        let gates = tables.pods.keys(MAP_KEYS).into_iter();
        Some(Kernel {
            forsaken,
            pins,
            gates: gates.filter_map(|cookie| Some((cookie, ips(tables.pods.get(&cookie)?.addresses())))).collect(),
            guards: self.filed_guards().into_iter().map(|(index, pod)| (index, ips(&pod))).collect(),
        })
    }

    /// Where a pod lives of which nobody speaks.
    async fn forsaken(&self, uid: &str) -> Option<Forsaken> {
        let found = namespace::find(&self.loaded.kubepods, uid, None).await.ok()?;
        let cookie = cookie_of(&found.thread).await.ok()?;
        Some(Forsaken { cookie, interfaces: indexes(&found.host_side.links) })
    }

    /// Does the steps in order. A pod of which one fails has no more of them done; false when the owner changed before
    /// the last.
    async fn carry_out(&mut self, steps: Vec<Step>) -> bool {
        let mut failures = Failures::default();
        for step in steps {
            if failures.forbid(&step) {
                continue;
            }
            match self.carry_out_one(&step).await {
                Some(Ok(())) => {}
                Some(Err(reason)) => {
                    failures.add(&step, |cookie| Some(self.state.held.get(&cookie)?.workload.uid.clone()));
                    if !self.after_failure(&step, reason).await {
                        return false;
                    }
                }
                None => return false,
            }
        }
        true
    }

    /// None when capture is not this agent's any more.
    async fn carry_out_one(&mut self, step: &Step) -> Option<Result<(), String>> {
        let ownership = self.ownership.clone();
        let _turn = if step.is_owners() { Some(ownership.turn().await?) } else { None };
        tracing::trace!(?step, "enrolment");
        Some(self.act(step).await)
    }

    async fn after_failure(&mut self, step: &Step, reason: String) -> bool {
        let Some(cookie) = step.cookie() else {
            tracing::warn!(?step, reason, "a step of enrolment failed");
            return true;
        };
        let prepared = self.state.found.get(&cookie).map(|prepared| prepared.workload.uid.clone());
        let (uid, phase, interfaces) = match self.state.held.get(&cookie) {
            Some(pod) => (Some(pod.workload.uid.clone()), pod.phase, indexes(&pod.interfaces)),
            None => (prepared, Phase::Joining, BTreeSet::new()),
        };
        if let Some(uid) = uid {
            self.state.obstacles.insert(uid, reason);
        }
        for step in plan::after_failure(cookie, phase, step, &interfaces) {
            match self.carry_out_one(&step).await {
                Some(Ok(())) => {}
                Some(Err(reason)) => tracing::error!(?step, reason, "a pod that should be refused may not be"),
                None => return false,
            }
        }
        true
    }
}

/// The steps, done.
impl Enroller {
    async fn act(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Join { uid, cookie } => self.join(uid, *cookie),
            Step::AddRoutes { cookie } | Step::RestoreRoutes { cookie } => self.add_routes(*cookie).await,
            Step::Steer { cookie } => self.steer(*cookie).await,
            Step::Announce { cookie } => self.announce(*cookie).await,
            Step::AttachLookup { cookie } => self.attach_lookup(*cookie),
            Step::OpenGate { cookie } => self.set_gate(*cookie, Gate::Open),
            Step::CloseGate { cookie } => self.set_gate(*cookie, Gate::Closed),
            Step::Guard { cookie, index } => self.guard(*cookie, *index),
            Step::Settle { cookie } => self.settle(*cookie),
            Step::Unguard { uid, index } => self.unguard(uid.as_deref(), *index),
            Step::RemoveGate { cookie } => {
                self.tables.pods.remove(cookie);
                self.state.adopted.remove(cookie);
                Ok(())
            }
            Step::DetachLookup { uid } => remove_pin(&self.loaded.pins.pod(uid).join("lookup")),
            Step::Release { cookie } => self.release(*cookie).await,
            Step::Forsake { cookie } => self.forsake(*cookie).await,
            Step::RemoveRoutes { cookie } => self.remove_routes(*cookie).await,
            Step::RemoveStrangersRoutes { uid } => self.remove_strangers_routes(uid).await,
            Step::RemovePins { uid } => remove_pins(&self.loaded.pins.pod(uid)),
            Step::LetGo { cookie } => {
                if let Some(pod) = self.state.held.remove(cookie) {
                    pod.net.close();
                }
                Ok(())
            }
        }
    }

    fn pod(&mut self, cookie: u64) -> Result<&mut Pod, String> {
        self.state.held.get_mut(&cookie).ok_or_else(|| "nothing of it is held".to_string())
    }

    fn join(&mut self, uid: &Uid, cookie: u64) -> Result<(), String> {
        fs::create_dir_all(self.loaded.pins.pod(uid)).map_err(step("making its pin directory"))?;
        let Prepared { workload, found, .. } =
            self.state.found.remove(&cookie).ok_or("its namespace is not at hand")?;
        let Found { namespace, inode, thread, host_side } = found;
        let pod = Pod {
            routes: routes(&workload.ips),
            net: Arc::new(self.pod_namespace(cookie, thread)),
            workload,
            namespace,
            inode,
            interfaces: host_side.links,
            guards: BTreeSet::new(),
            phase: Phase::Joining,
            due: Instant::now(),
            present: true,
            elsewhere: false,
            odd: None,
            closed: false,
            listeners: Vec::new(),
            announced: false,
        };
        // It may have left a moment ago: its routes stay now.
        if let Some(departed) = self.state.held.insert(cookie, pod) {
            departed.net.close();
        }
        Ok(())
    }

    fn pod_namespace(&self, cookie: u64, thread: PodThread) -> PodNamespace {
        PodNamespace::new(cookie, self.tables.clone(), self.live.clone(), thread)
    }

    async fn add_routes(&mut self, cookie: u64) -> Result<(), String> {
        let pod = self.pod(cookie)?;
        let routes = pod.routes.clone();
        let added = pod.net.thread().run(move || routes.iter().try_for_each(add_route));
        added.await.map_err(step("adding its capture routes"))
    }

    async fn steer(&mut self, cookie: u64) -> Result<(), String> {
        let pod = self.pod(cookie)?;
        if pod.net.listens() {
            return pod.net.steer().map_err(step("leading its traffic to its listeners"));
        }
        pod.listeners = pod.net.listen(&pod.workload.ips).await.map_err(step("listening inside it"))?;
        for family in [Family::V4, Family::V6] {
            if pod.workload.ips.iter().any(|ip| Family::of(*ip) == family) {
                pod.net.refill(family);
            }
        }
        Ok(())
    }

    async fn announce(&mut self, cookie: u64) -> Result<(), String> {
        let pod = self.pod(cookie)?;
        let listeners = std::mem::take(&mut pod.listeners);
        let net = pod.net.clone() as Arc<dyn PodNet>;
        let enrolled = EnrolledPod { workload: pod.workload.clone(), net, listeners };
        pod.announced = true;
        self.events.send(PodEvent::Enrolled(enrolled)).await.map_err(|_| "the proxy is gone".to_string())
    }

    fn attach_lookup(&mut self, cookie: u64) -> Result<(), String> {
        let lookup = self.loaded.program(programs::SK_LOOKUP).map_err(|error| error.to_string())?;
        let pins = self.loaded.pins.clone();
        let pod = self.pod(cookie)?;
        let target = Target::Namespace { descriptor: pod.namespace.as_raw_fd(), inode: pod.inode };
        let pin = pins.pod(&pod.workload.uid).join("lookup");
        links::ensure(&pin, &lookup, target, SK_LOOKUP).map_err(step("attaching its lookup"))
    }

    fn set_gate(&mut self, cookie: u64, gate: Gate) -> Result<(), String> {
        let workload = match self.state.held.get_mut(&cookie) {
            Some(pod) => {
                pod.closed = gate == Gate::Closed;
                pod.workload.clone()
            }
            None => match self.state.found.get(&cookie) {
                Some(prepared) => prepared.workload.clone(),
                None => return Ok(()),
            },
        };
        let place = self.tables.dials.place(cookie, &self.tables.pods);
        let config = PodConfig::new(addresses(&workload.ips), gate).at(place);
        self.tables.pods.set(&cookie, &config).map_err(step("setting its gate"))
    }

    fn guard(&mut self, cookie: u64, index: u32) -> Result<(), String> {
        let Self { loaded, tables, tc, state, .. } = self;
        let pod = state.held.get_mut(&cookie).ok_or("nothing of it is held")?;
        let interface = pod.interfaces.iter().find(|interface| interface.index == index).ok_or("no such interface")?;
        let pins = loaded.pins.pod(&pod.workload.uid);
        guard::attach(loaded, tables, *tc, &pins, interface, &addresses(&pod.workload.ips))
            .map_err(step("guarding its interface"))?;
        pod.guards.insert(index);
        Ok(())
    }

    fn settle(&mut self, cookie: u64) -> Result<(), String> {
        let pod = self.pod(cookie)?;
        pod.phase = Phase::Enrolled;
        let workload = pod.workload.clone();
        let Workload { uid, name, namespace, .. } = &*workload;
        tracing::info!(%uid, pod = named(name), namespace = named(namespace), "enrolled");
        self.state.captured.insert(workload.uid.clone());
        Ok(())
    }

    fn unguard(&mut self, uid: Option<&str>, index: u32) -> Result<(), String> {
        let pins = uid.map_or_else(|| self.loaded.pins.pods(), |uid| self.loaded.pins.pod(uid));
        guard::detach(&self.tables, &pins, index);
        for pod in self.state.held.values_mut().filter(|pod| Some(&*pod.workload.uid) == uid) {
            pod.guards.remove(&index);
        }
        Ok(())
    }

    async fn release(&mut self, cookie: u64) -> Result<(), String> {
        let Some(pod) = self.state.held.get_mut(&cookie) else { return Ok(()) };
        let Workload { uid, name, namespace, .. } = &*pod.workload;
        if matches!(pod.phase, Phase::Enrolled | Phase::Forsaken) {
            tracing::info!(%uid, pod = named(name), namespace = named(namespace), "left the mesh");
        }
        pod.phase = Phase::Departed { due: false };
        pod.due = Instant::now() + ROUTES_OUTLIVE;
        self.take_from_proxy(cookie).await;
        Ok(())
    }

    async fn forsake(&mut self, cookie: u64) -> Result<(), String> {
        let pod = self.pod(cookie)?;
        let Workload { uid, name, namespace, .. } = &*pod.workload;
        // Of one that ends as usual this holds for a moment only.
        tracing::info!(
            %uid, pod = named(name), namespace = named(namespace),
            "refused while its processes live: its object is gone or says that it has ended, or another pod has its address"
        );
        pod.phase = Phase::Forsaken;
        // Where it is spoken of again, what it has is what it had.
        self.state.adopted.insert(cookie);
        self.take_from_proxy(cookie).await;
        Ok(())
    }

    /// The proxy closes what it has of a pod.
    async fn take_from_proxy(&mut self, cookie: u64) {
        let Some(pod) = self.state.held.get_mut(&cookie) else { return };
        pod.net.empty_stock();
        pod.net.close_listeners();
        pod.listeners.clear();
        if std::mem::take(&mut pod.announced) {
            // It fails when the proxy is gone, and every connection with it.
            let _ = self.events.send(PodEvent::Left(pod.workload.uid.clone())).await;
        }
    }

    async fn remove_routes(&mut self, cookie: u64) -> Result<(), String> {
        let pod = self.pod(cookie)?;
        let routes = pod.routes.clone();
        // They are gone with the namespace's interfaces, if not before.
        let _ = pod.net.thread().run(move || routes.iter().try_for_each(netlink::remove_route)).await;
        Ok(())
    }

    async fn remove_strangers_routes(&mut self, uid: &str) -> Result<(), String> {
        // The pod may still run, without the mesh now.
        if let Ok(found) = namespace::find(&self.loaded.kubepods, uid, None).await {
            let _ = found.thread.run(remove_routes).await;
        }
        tracing::info!(uid, "collected what an earlier agent left of a pod that is not in the mesh");
        Ok(())
    }
}

/// A held pod as its neighbours meet it.
/// `workload`: what the world says of the pod.
fn neighbour<'a>(workload: Option<&Arc<Workload>>, pod: &'a Pod) -> Neighbour<'a> {
    let wanted = workload.filter(|workload| workload.enrolled);
    let is_wanted = pod.present && wanted.is_some_and(|wanted| !is_another(wanted, &pod.workload));
    let is_enrolled = match pod.phase {
        Phase::Enrolled | Phase::Joining if !is_wanted => Some(false),
        Phase::Enrolled if !pod.closed => Some(true),
        Phase::Enrolled | Phase::Joining => None,
        Phase::Departed { .. } | Phase::Forsaken => Some(false),
    };
    Neighbour {
        workload: pod.workload.clone(),
        is_enrolled,
        interface: pod.guards.first().copied(),
        thread: pod.net.thread(),
    }
}

/// Whether one of these interfaces of the node is there; also where that cannot be told.
fn has_link(indexes: &BTreeSet<u32>) -> bool {
    use rustix::io::Errno;
    use rustix::net::{AddressFamily, SocketType, netdevice, socket};

    // Any socket can be asked.
    let Ok(socket) = socket(AddressFamily::UNIX, SocketType::DGRAM, None) else { return true };
    let is_gone = |index: &u32| matches!(netdevice::index_to_name(&socket, *index), Err(Errno::NODEV | Errno::NXIO));
    !indexes.iter().all(is_gone)
}

fn indexes(interfaces: &[Interface]) -> BTreeSet<u32> {
    interfaces.iter().map(|interface| interface.index).collect()
}

fn ips(addresses: &PodAddresses) -> BTreeSet<IpAddr> {
    addresses.iter().map(IpAddr::from).collect()
}

/// A pod in which IPv6 was switched off is served over IPv4; what it dials over IPv6 finds no way, as without a mesh.
fn add_route(route: &LocalRoute) -> std::io::Result<()> {
    match netlink::add_route(route) {
        Err(error) if route.prefix.is_ipv6() && error.raw_os_error() == Some(libc::EACCES) => Ok(()),
        other => other,
    }
}

fn step(what: &'static str) -> impl FnOnce(io::Error) -> String {
    move |error| format!("{what}: {error}")
}

fn addresses(ips: &[IpAddr]) -> PodAddresses {
    let of = |family| ips.iter().find(|ip| Family::of(**ip) == family).map_or(Ip::UNSPECIFIED, |ip| Ip::from(*ip));
    PodAddresses::new(of(Family::V4), of(Family::V6))
}

/// The capture range and the source range, per family that the pod has. With `source`, getsockname of a captured
/// socket stays the pod's address with no bind in the hook.
fn routes(ips: &[IpAddr]) -> Vec<LocalRoute> {
    let mut routes = Vec::new();
    for ip in ips {
        let prefixes: [(IpAddr, u8); 2] = match ip {
            IpAddr::V4(_) => [(Ipv4Addr::new(127, 128, 0, 0).into(), 9), (Ipv4Addr::new(127, 64, 0, 0).into(), 10)],
            IpAddr::V6(_) => [(v6_prefix(CAPTURE_V6), 64), (v6_prefix(SOURCE_V6), 64)],
        };
        routes.extend(prefixes.map(|(prefix, length)| LocalRoute { prefix, length, source: *ip }));
    }
    routes
}

/// Removes every capture route of the calling thread's namespace, whatever source it has.
fn remove_routes() -> std::io::Result<()> {
    let any = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    routes(&any).iter().try_for_each(netlink::remove_route)
}

fn v6_prefix(prefix: [u8; 8]) -> IpAddr {
    Ipv6Addr::from(u128::from(u64::from_be_bytes(prefix)) << 64).into()
}

fn remove_pin(pin: &std::path::Path) -> Result<(), String> {
    match fs::remove_file(pin) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("removing {}: {error}", pin.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Removes a pod's pin directory with whatever is in it.
fn remove_pins(directory: &std::path::Path) -> Result<(), String> {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        remove_pin(&entry.path())?;
    }
    let _ = fs::remove_dir(directory);
    Ok(())
}

/// The cookie of the namespace that a thread is in.
async fn cookie_of(thread: &PodThread) -> io::Result<u64> {
    let cookie = thread.run(|| {
        let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        sys::netns_cookie(socket.as_fd())
    });
    cookie.await
}

/// Whoever has pins, and the interfaces that these guard.
fn pinned(pods: &std::path::Path) -> io::Result<BTreeMap<Uid, BTreeSet<u32>>> {
    let mut pinned = BTreeMap::new();
    for entry in fs::read_dir(pods)? {
        let entry = entry?;
        if let Ok(uid) = entry.file_name().into_string() {
            pinned.insert(Uid::from(uid), guarded_in(&entry.path())?);
        }
    }
    Ok(pinned)
}

/// The interfaces that a pod's pins guard: `guard-from-INDEX`. None where it has no pins.
fn guarded_in(directory: &std::path::Path) -> io::Result<BTreeSet<u32>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        entries => entries?,
    };
    let mut guarded = BTreeSet::new();
    for entry in entries {
        let name = entry?.file_name();
        let index: Option<u32> = name.to_str().and_then(|name| name.strip_prefix("guard-from-")?.parse().ok());
        guarded.extend(index);
    }
    Ok(guarded)
}
