//! What has to be done so that exactly the pods that should be are captured: a pure decision over what is wanted, what
//! this agent holds, and what is in the kernel and below the pins. `enrolment` looks, asks here, and does the steps.
//!
//! ```text
//! none ──Join … Guard──► Enrolled ──Unguard … Release──► Departed ──RemoveRoutes … LetGo──► none
//!   ▲                       │ ▲
//!   └─Release, LetGo────────┤ └─Join …─┐
//!                           └─CloseGate, Forsake──► Forsaken ──Unguard … LetGo──► none
//! ```
//!
//! Release and LetGo alone are an agent's that is no longer the owner: it lets go of what is its own, no more. A pod is
//! forsaken when nobody speaks of it any more and processes of it live: its object was deleted by force, or somebody else
//! says that he has its address. It did not ask to leave, so it is refused until it has ended, or is spoken of again. One
//! that is spoken of in another way, with other addresses, is refused until it is enrolled with these.
//!
//! Every prefix of a plan is safe to stop after: a process may be killed anywhere. A pod's pin directory is made first
//! and goes last, so that the next agent finds whatever was begun.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

#[cfg(test)]
mod tests;

/// metadata.uid
pub(super) type Uid = Arc<str>;

/// Everything that is looked at.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    /// The pods of this node that are to be captured, with their addresses.
    pub wanted: BTreeMap<Uid, BTreeSet<IpAddr>>,
    /// The pods that this agent has something of, by the cookie of their network namespace.
    pub held: BTreeMap<u64, Held>,
    /// Namespaces that were found for wanted pods of which this agent does not hold the present one.
    pub found: BTreeMap<Uid, Found>,
    /// What is in maps and pins, from this agent or another; looked at now and then.
    pub kernel: Option<Kernel>,
}

/// A pod that this agent has something of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub uid: Uid,
    pub ips: BTreeSet<IpAddr>,
    pub phase: Phase,
    /// Whether it is wanted with the addresses and the identity that it was enrolled with.
    pub fits: bool,
    /// Whether processes of the pod live in this namespace.
    pub present: bool,
    /// Processes of it live, in another namespace.
    pub elsewhere: bool,
    /// It is known, and not asked for: what it sends and takes may be its own again. So may everybody's where the agent
    /// itself is told to leave.
    pub may_leave: bool,
    /// The interfaces that are guarded.
    pub guards: BTreeSet<u32>,
    /// The interfaces that it has; none if nobody has looked.
    pub interfaces: Option<BTreeSet<u32>>,
    /// A step failed and its gate was closed.
    pub closed: bool,
}

/// How far a pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Enrolment began and has not come to its end.
    Joining,
    /// Its traffic is led to this agent's listeners.
    Enrolled,
    /// Its traffic is its own again; captured connections still meet their end.
    Departed {
        /// They have had their time.
        due: bool,
    },
    /// Nobody speaks of it any more, and it lives: it is refused.
    Forsaken,
}

/// A pod's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub cookie: u64,
    pub interfaces: BTreeSet<u32>,
    /// Something that the pod could have made itself keeps it from being enrolled: it is refused. Not so where it was enrolled
    /// before it had that.
    pub barred: bool,
}

/// What is in maps and pins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Kernel {
    /// Pods with a pin directory, and the interfaces whose guards are pinned there.
    pub pins: BTreeMap<Uid, BTreeSet<u32>>,
    /// The pods map: whose addresses a namespace's cookie stands for.
    pub gates: BTreeMap<u64, BTreeSet<IpAddr>>,
    /// The guards' map: whose addresses are behind an interface.
    pub guards: BTreeMap<u32, BTreeSet<IpAddr>>,
    /// Those with pins of whom nobody speaks any more, and who live where this agent holds nothing: another has forsaken
    /// them, or would.
    pub forsaken: BTreeMap<Uid, Option<Forsaken>>,
}

/// Where a pod lives that an earlier agent has forsaken; nobody knows where that was not found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Forsaken {
    pub cookie: u64,
    pub interfaces: BTreeSet<u32>,
}

impl Kernel {
    /// Whether this is the gate of one that is forsaken.
    fn refuses(&self, cookie: u64) -> bool {
        self.forsaken.values().flatten().any(|pod| pod.cookie == cookie)
    }

    /// Whether any gate may be of one that is forsaken: of its addresses nobody can tell, which may be another's by now.
    fn may_refuse(&self) -> bool {
        self.forsaken.values().any(Option::is_none)
    }

    /// Whether this may be a guarded interface of one that is forsaken.
    fn may_guard(&self, index: u32) -> bool {
        let is_pinned = |uid: &Uid| self.pins.get(uid).is_some_and(|guards| guards.contains(&index));
        let is_of = |pod: &Option<Forsaken>| pod.as_ref().is_none_or(|pod| pod.interfaces.contains(&index));
        self.forsaken.iter().any(|(uid, pod)| is_pinned(uid) || is_of(pod))
    }
}

/// What this agent is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Duty {
    /// Everything.
    Own,
    /// Everything, and first put its own listeners and programs back in the place of an agent that died.
    Resume,
    /// Another agent owns capture: only let go.
    LetGo,
}

/// One act. Each can be done again, and done when there is nothing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Makes its pin directory, and takes it among the held.
    Join { uid: Uid, cookie: u64 },
    /// Adds the routes of the capture ranges to its namespace.
    AddRoutes { cookie: u64 },
    /// The same where it may have lost them, and for which it is not refused.
    RestoreRoutes { cookie: u64 },
    /// Makes its listeners, unless they are there, and leads what is looked up to them.
    Steer { cookie: u64 },
    /// Hands its listeners to the proxy.
    Announce { cookie: u64 },
    /// Puts the lookup on its namespace: what arrives meets the listeners.
    AttachLookup { cookie: u64 },
    /// What it dials is captured.
    OpenGate { cookie: u64 },
    /// What it dials is refused.
    CloseGate { cookie: u64 },
    /// What is on the wire and was not captured is dropped.
    Guard { cookie: u64, index: u32 },
    /// Enrolment is done.
    Settle { cookie: u64 },
    /// Takes the guard off an interface, and its pins, which are the pod's where that is known.
    Unguard { uid: Option<Uid>, index: u32 },
    /// What it dials is its own.
    RemoveGate { cookie: u64 },
    /// What arrives is its own.
    DetachLookup { uid: Uid },
    /// Tells the proxy, which closes listeners, tunnels and connections, and closes the sockets in stock.
    Release { cookie: u64 },
    /// The same where what it dials and what arrives is refused from now on.
    Forsake { cookie: u64 },
    /// Removes the capture routes from a held pod's namespace.
    RemoveRoutes { cookie: u64 },
    /// The same for a pod that an earlier agent left, if it lives.
    RemoveStrangersRoutes { uid: Uid },
    /// Removes its pin directory with whatever is in it.
    RemovePins { uid: Uid },
    /// Ends the thread in its namespace and forgets it.
    LetGo { cookie: u64 },
}

impl Step {
    /// Whether it touches what another agent may own now.
    pub fn is_owners(&self) -> bool {
        match self {
            Step::Announce { .. }
            | Step::Settle { .. }
            | Step::Release { .. }
            | Step::Forsake { .. }
            | Step::LetGo { .. } => false,
            Step::Join { .. }
            | Step::AddRoutes { .. }
            | Step::RestoreRoutes { .. }
            | Step::Steer { .. }
            | Step::AttachLookup { .. }
            | Step::OpenGate { .. }
            | Step::CloseGate { .. }
            | Step::Guard { .. }
            | Step::Unguard { .. }
            | Step::RemoveGate { .. }
            | Step::DetachLookup { .. }
            | Step::RemoveRoutes { .. }
            | Step::RemoveStrangersRoutes { .. }
            | Step::RemovePins { .. } => true,
        }
    }

    /// The held pod that it is about.
    pub fn cookie(&self) -> Option<u64> {
        match self {
            Step::Join { cookie, .. }
            | Step::AddRoutes { cookie }
            | Step::RestoreRoutes { cookie }
            | Step::Steer { cookie }
            | Step::Announce { cookie }
            | Step::AttachLookup { cookie }
            | Step::OpenGate { cookie }
            | Step::CloseGate { cookie }
            | Step::Guard { cookie, .. }
            | Step::Settle { cookie }
            | Step::RemoveGate { cookie }
            | Step::Release { cookie }
            | Step::Forsake { cookie }
            | Step::RemoveRoutes { cookie }
            | Step::LetGo { cookie } => Some(*cookie),
            Step::Unguard { .. }
            | Step::DetachLookup { .. }
            | Step::RemoveStrangersRoutes { .. }
            | Step::RemovePins { .. } => None,
        }
    }
}

/// The steps of a plan that failed, and so which others are not to be done.
#[derive(Debug, Default)]
pub(super) struct Failures {
    cookies: BTreeSet<u64>,
    uids: BTreeSet<Uid>,
}

impl Failures {
    /// `holds` tells whose namespace is held under a cookie.
    pub fn add(&mut self, step: &Step, holds: impl Fn(u64) -> Option<Uid>) {
        self.cookies.extend(step.cookie());
        match step {
            Step::Unguard { uid, .. } => self.uids.extend(uid.clone()),
            Step::DetachLookup { uid } | Step::RemoveStrangersRoutes { uid } => drop(self.uids.insert(uid.clone())),
            other => self.uids.extend(other.cookie().and_then(holds)),
        }
    }

    /// Whether a step must not follow those that failed. By its pins the next round finds what is left of a pod.
    pub fn forbid(&self, step: &Step) -> bool {
        let of_pins = matches!(step, Step::RemovePins { uid } if self.uids.contains(uid));
        of_pins || step.cookie().is_some_and(|cookie| self.cookies.contains(&cookie))
    }
}

/// What was decided.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// In this order.
    pub steps: Vec<Step>,
    /// Wanted pods that have to wait because another pod that lives holds one of their addresses.
    pub in_conflict: Vec<Uid>,
}

/// Decides.
pub(super) fn plan(view: &View, duty: Duty) -> Plan {
    let mut plan = Plan::default();
    match duty {
        Duty::LetGo => plan.steps = let_go(view),
        Duty::Own | Duty::Resume => {
            // What is captured must be looked up: gates go before lookups.
            let unexplained = view.kernel.as_ref().map(|kernel| collect_gates(view, kernel, &mut plan.steps));
            let unexplained = unexplained.unwrap_or_default();
            // What leaves first: the addresses of a pod may already be another's.
            for (cookie, pod) in &view.held {
                let lookup_stays = lives_elsewhere(view, *cookie, &pod.uid) || !pod.ips.is_disjoint(&unexplained);
                match pod.phase {
                    Phase::Enrolled if stays(pod) => {}
                    Phase::Enrolled if must_stay(pod) => plan.steps.extend(forsake(*cookie)),
                    Phase::Forsaken if must_stay(pod) => {}
                    // It has ended, or may leave.
                    Phase::Enrolled | Phase::Forsaken => {
                        leave(view, *cookie, pod, lookup_stays, &mut plan.steps);
                    }
                    Phase::Joining => plan.steps.extend(give_up(*cookie)),
                    Phase::Departed { due } => part(view, *cookie, pod, due, lookup_stays, &mut plan.steps),
                }
            }
            if let Some(kernel) = &view.kernel {
                collect(view, kernel, unexplained.is_empty(), &mut plan.steps);
            }
            for (cookie, pod) in view.held.iter().filter(|(_, pod)| pod.phase == Phase::Enrolled && stays(pod)) {
                if duty == Duty::Resume || pod.closed {
                    resume(view, *cookie, pod, &mut plan.steps);
                } else {
                    repair(view, *cookie, pod, &mut plan.steps);
                }
            }
            enrol_found(view, &mut plan);
        }
    }
    plan
}

/// What is done when a step about a held pod has failed, so that nothing of it passes where it should not.
/// `interfaces` are those that the pod has.
pub(super) fn after_failure(cookie: u64, phase: Phase, step: &Step, interfaces: &BTreeSet<u32>) -> Vec<Step> {
    match (phase, step) {
        (Phase::Joining, Step::Join { .. }) => give_up(cookie),
        (Phase::Joining, _) => refuse(cookie, interfaces),
        // Its captured connections fail; none goes astray.
        (Phase::Enrolled, Step::RestoreRoutes { .. }) => Vec::new(),
        (Phase::Enrolled, step) if step.is_owners() => vec![Step::CloseGate { cookie }],
        (Phase::Enrolled | Phase::Departed { .. } | Phase::Forsaken, _) => Vec::new(),
    }
}

/// The pod cannot be enrolled, and it may be itself that sees to that: neither what it dials nor what arrives passes, nor
/// what a network within it sends.
fn refuse(cookie: u64, interfaces: &BTreeSet<u32>) -> Vec<Step> {
    let mut steps = vec![Step::AttachLookup { cookie }];
    steps.extend(interfaces.iter().map(|index| Step::Guard { cookie, index: *index }));
    steps.extend(give_up(cookie));
    steps
}

/// Enrolment did not come to its end: the pod is refused, and nothing of this agent stays in it.
fn give_up(cookie: u64) -> Vec<Step> {
    vec![Step::CloseGate { cookie }, Step::Release { cookie }, Step::LetGo { cookie }]
}

fn stays(pod: &Held) -> bool {
    pod.fits && pod.present
}

/// Whether it lives, and nobody says that it may leave: nobody speaks of it, or it is wanted in another way.
fn must_stay(pod: &Held) -> bool {
    pod.present && !pod.may_leave
}

/// Its guards and its lookup stay, and refuse, until it ends or is enrolled anew.
fn forsake(cookie: u64) -> Vec<Step> {
    vec![Step::CloseGate { cookie }, Step::Forsake { cookie }]
}

/// No step of an owner's. The namespace of a pod that was deleted lives for as long as somebody holds it.
fn let_go(view: &View) -> Vec<Step> {
    let mut steps = Vec::new();
    for (cookie, pod) in &view.held {
        let cookie = *cookie;
        match pod.phase {
            Phase::Enrolled if stays(pod) => {}
            Phase::Enrolled | Phase::Joining => steps.extend([Step::Release { cookie }, Step::LetGo { cookie }]),
            // The owner finds what is left by the pod's pins.
            Phase::Departed { .. } | Phase::Forsaken => steps.push(Step::LetGo { cookie }),
        }
    }
    steps
}

/// A pod leaves in the opposite order of its enrolment.
fn leave(view: &View, cookie: u64, pod: &Held, lookup_stays: bool, steps: &mut Vec<Step>) {
    let guards = pod.guards.iter().filter(|index| !is_anothers(view, cookie, **index));
    steps.extend(guards.map(|index| Step::Unguard { uid: Some(pod.uid.clone()), index: *index }));
    steps.push(Step::RemoveGate { cookie });
    if !lookup_stays {
        steps.push(Step::DetachLookup { uid: pod.uid.clone() });
    }
    steps.push(Step::Release { cookie });
    if !pod.present {
        part(view, cookie, pod, true, lookup_stays, steps);
    }
}

/// Whether the pod has another namespace now, also where nobody speaks of it any more. Its lookup may be on that one
/// already, and else is led there.
fn lives_elsewhere(view: &View, cookie: u64, uid: &Uid) -> bool {
    let found = view.found.get(uid).is_some_and(|found| found.cookie != cookie);
    let forsaken = view.held.get(&cookie).is_some_and(|pod| pod.elsewhere && !pod.may_leave);
    found || forsaken || view.held.iter().any(|(other, pod)| *other != cookie && pod.uid == *uid && stays(pod))
}

/// The last of a pod that left, once its captured connections have met their end; at once where no process of it is.
fn part(view: &View, cookie: u64, pod: &Held, due: bool, lookup_stays: bool, steps: &mut Vec<Step>) {
    let returns = view.found.get(&pod.uid).is_some_and(|found| found.cookie == cookie);
    let waits = pod.present && !due;
    if returns || waits {
        return;
    }
    if pod.present {
        steps.push(Step::RemoveRoutes { cookie });
    }
    let others = view.held.iter().any(|(other, held)| *other != cookie && held.uid == pod.uid);
    if !view.wanted.contains_key(&pod.uid) && !others && !lookup_stays {
        if !pod.present {
            // Another agent may have met it in another namespace since.
            steps.push(Step::RemoveStrangersRoutes { uid: pod.uid.clone() });
        }
        steps.push(Step::RemovePins { uid: pod.uid.clone() });
    }
    steps.push(Step::LetGo { cookie });
}

/// Whether an interface is guarded for another pod that stays, or about to be.
fn is_anothers(view: &View, cookie: u64, index: u32) -> bool {
    let held = view.held.iter().any(|(other, pod)| *other != cookie && stays(pod) && pod.guards.contains(&index));
    held || view.found.values().any(|found| found.cookie != cookie && found.interfaces.contains(&index))
}

/// Whether these may be addresses of a wanted pod whose namespace is not known yet.
fn may_be_wanted(view: &View, ips: &BTreeSet<IpAddr>) -> bool {
    let known = |uid: &Uid| view.found.contains_key(uid) || view.held.values().any(|pod| pod.uid == *uid);
    view.wanted.iter().any(|(uid, wanted)| !known(uid) && !wanted.is_disjoint(ips))
}

/// Removes the gates that no pod of the mesh stands for any more: earlier agents left them, or a step that failed did.
/// Returns the addresses of those that stay because nobody can say whose they are.
fn collect_gates(view: &View, kernel: &Kernel, steps: &mut Vec<Step>) -> BTreeSet<IpAddr> {
    let mut unexplained = BTreeSet::new();
    for (cookie, ips) in &kernel.gates {
        let found = view.found.values().any(|found| found.cookie == *cookie);
        if view.held.contains_key(cookie) || found || kernel.refuses(*cookie) {
            continue;
        }
        if may_be_wanted(view, ips) || kernel.may_refuse() {
            unexplained.extend(ips.iter().copied());
        } else {
            steps.push(Step::RemoveGate { cookie: *cookie });
        }
    }
    unexplained
}

/// Collects what else no pod of the mesh stands for any more.
fn collect(view: &View, kernel: &Kernel, all_explained: bool, steps: &mut Vec<Step>) {
    for (index, ips) in &kernel.guards {
        // Another agent may have guarded what one held has been given since.
        let has = |pod: &Held| pod.guards.contains(index) || pod.interfaces.iter().flatten().any(|own| own == index);
        let held = view.held.values().any(has);
        let found = view.found.values().any(|found| found.interfaces.contains(index));
        if !held && !found && !may_be_wanted(view, ips) && !kernel.may_guard(*index) {
            let of = kernel.pins.iter().find(|(_, guards)| guards.contains(index));
            steps.push(Step::Unguard { uid: of.map(|(uid, _)| uid.clone()), index: *index });
        }
    }
    // A gate that nobody can explain may be any pod's.
    let is_kept = |uid: &&Uid| view.wanted.contains_key(*uid) || kernel.forsaken.contains_key(*uid);
    for uid in kernel.pins.keys().filter(|uid| all_explained && !is_kept(uid)) {
        if view.held.values().all(|pod| pod.uid != *uid) {
            steps.push(Step::DetachLookup { uid: uid.clone() });
            steps.push(Step::RemoveStrangersRoutes { uid: uid.clone() });
            steps.push(Step::RemovePins { uid: uid.clone() });
        }
    }
}

/// Everything of a pod once more: over what another agent put in its place or took away, or because a step failed. Its
/// gate opens last: unlike at enrolment nothing that the pod dials by itself is to pass meanwhile.
fn resume(view: &View, cookie: u64, pod: &Held, steps: &mut Vec<Step>) {
    steps.extend([Step::AddRoutes { cookie }, Step::Steer { cookie }, Step::AttachLookup { cookie }]);
    let guards = pod.interfaces.as_ref().unwrap_or(&pod.guards);
    steps.extend(guards.iter().map(|index| Step::Guard { cookie, index: *index }));
    unguard_gone(view, cookie, pod, guards, steps);
    steps.push(Step::OpenGate { cookie });
}

/// Puts back what a pod lost, such as routes when IPv6 was switched off and on, and guards interfaces that it was given.
fn repair(view: &View, cookie: u64, pod: &Held, steps: &mut Vec<Step>) {
    let Some(interfaces) = &pod.interfaces else { return };
    steps.push(Step::RestoreRoutes { cookie });
    unguard_gone(view, cookie, pod, interfaces, steps);
    let new = interfaces.difference(&pod.guards);
    steps.extend(new.map(|index| Step::Guard { cookie, index: *index }));
}

fn unguard_gone(view: &View, cookie: u64, pod: &Held, interfaces: &BTreeSet<u32>, steps: &mut Vec<Step>) {
    let gone = pod.guards.difference(interfaces).filter(|index| !is_anothers(view, cookie, **index));
    steps.extend(gone.map(|index| Step::Unguard { uid: Some(pod.uid.clone()), index: *index }));
}

fn enrol_found(view: &View, plan: &mut Plan) {
    let staying = view.held.values().filter(|pod| pod.phase == Phase::Enrolled && stays(pod));
    let mut taken: BTreeSet<IpAddr> = staying.flat_map(|pod| pod.ips.iter().copied()).collect();
    for (uid, found) in &view.found {
        let Some(ips) = view.wanted.get(uid) else { continue };
        let cookie = found.cookie;
        if !ips.is_disjoint(&taken) {
            plan.in_conflict.push(uid.clone());
            plan.steps.push(Step::CloseGate { cookie });
            continue;
        }
        taken.extend(ips);
        enrol(view, uid, found, &mut plan.steps);
    }
}

/// In an order that refuses nothing on the way: nothing leads to the listeners until they are there, and last comes the
/// guard, which would drop what the pod still dialled by itself.
fn enrol(view: &View, uid: &Uid, found: &Found, steps: &mut Vec<Step>) {
    let cookie = found.cookie;
    steps.push(Step::Join { uid: uid.clone(), cookie });
    if found.barred {
        steps.extend(refuse(cookie, &found.interfaces));
        return;
    }
    steps.extend([Step::AddRoutes { cookie }, Step::Steer { cookie }, Step::Announce { cookie }]);
    steps.extend([Step::AttachLookup { cookie }, Step::OpenGate { cookie }]);
    steps.extend(found.interfaces.iter().map(|index| Step::Guard { cookie, index: *index }));
    // Of a sandbox that was made anew while no agent was there.
    let pinned = view.kernel.as_ref().and_then(|kernel| kernel.pins.get(uid)).into_iter().flatten();
    let stale = pinned.filter(|index| !found.interfaces.contains(index) && !is_anothers(view, cookie, **index));
    steps.extend(stale.map(|index| Step::Unguard { uid: Some(uid.clone()), index: *index }));
    steps.push(Step::Settle { cookie });
}
